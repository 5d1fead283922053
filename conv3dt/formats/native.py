"""Our own format: every argument and weight of a layer or a chain, bit for bit.

A file is a NumPy ``.npz``, uncompressed: ``config``, the bytes of a JSON object
``{"format": "conv3dt", "version": 1, "class_name": ..., "config": ..., "weights": n}``, and, if the
layer is built, n arrays: ``kernel`` and perhaps ``bias``; of a chain ``0.0``, ``0.1``, ...: number
of the layer and of the weight. NumPy has no bfloat16: such weights lie there as uint16.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .. import dtypes, registry
from ..layer import Conv3DTranspose
from ..sequential import Sequential
from .files import regular, replacing
from .layer_info import LayerInfo, choose

Array = np.ndarray[Any, Any]

VERSION = 1

# The head of an array in the file, as NumPy writes it; none that needs evaluating is read.
_HEAD = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][fu][1248])', 'fortran_order': False, "
    rb"'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)

_MEMBER = re.compile(r"(config|kernel|bias|\d+\.\d)\.npy")


def save(layer: Conv3DTranspose | Sequential, path: str | os.PathLike[str]) -> None:
    """Write a layer or a chain; see `Conv3DTranspose.save` and `Sequential.save`."""
    arrays = {"config": np.frombuffer(_header(layer).encode(), np.uint8)}
    for name, array in _named(layer):
        array = np.ascontiguousarray(array)  # `_HEAD` knows no other order
        arrays[name] = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
    with replacing(path) as temporary, open(temporary, "xb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _named(layer: Conv3DTranspose | Sequential) -> Iterator[tuple[str, Array]]:
    if isinstance(layer, Conv3DTranspose):
        yield from zip(("kernel", "bias"), layer.weights, strict=False)
        return
    for i, part in enumerate(layer):
        for j, array in enumerate(part.weights):
            yield f"{i}.{j}", array


def load(path: str | os.PathLike[str]) -> Conv3DTranspose | Sequential:
    """A layer or a chain from a file that its method ``save`` wrote.

    Parameters
    ----------
    path : path
        Nothing in the file is executed, and no more memory is used than its size.

    Returns
    -------
    Conv3DTranspose or Sequential
        With the same arguments and the same weights, bit for bit.

    Raises
    ------
    ValueError
        A damaged file, or one of another kind or a later version. OSError: it cannot be read.
    ImportError
        bfloat16 weights without the package ml_dtypes.
    """
    path = regular(path)
    try:
        arrays = _read(path)
        header = json.loads(arrays.pop("config").tobytes())
        return _made(header, arrays)
    except _DAMAGE as error:
        raise ValueError(
            "path must be a file that Conv3DTranspose.save wrote, or Sequential.save, "
            f"got {os.fspath(path)!r}: "
            f"{error or type(error).__name__}"
        ) from error


def list_layers(path: Path) -> list[LayerInfo]:
    """The transposed convolutions in the file; `formats.list_layers` calls it."""
    return [
        LayerInfo.of(
            layer, layer.name, type(layer).__name__, layer.kernel.shape[4] if layer.built else None
        )
        for layer in _convolutions(path)
    ]


def read_weights(path: Path, name: str | None, like: Conv3DTranspose) -> list[Array]:
    """Kernel and bias of a layer in the file; `formats.load_weights` calls it."""
    layers = _convolutions(path)
    chosen = choose(path, [layer.name for layer in layers], name)
    layer = next(layer for layer in layers if layer.name == chosen)
    if not layer.built:
        raise ValueError(f"{path} must hold weights, got a layer that is not built")
    return layer.weights


def _convolutions(path: Path) -> list[Conv3DTranspose]:
    loaded = load(path)
    layers = [loaded] if isinstance(loaded, Conv3DTranspose) else loaded
    return [layer for layer in layers if isinstance(layer, Conv3DTranspose)]


# What reading a file that is not what it should be may raise.
_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError, EOFError,
    zipfile.BadZipFile,
)  # fmt: skip


def _header(layer: Conv3DTranspose | Sequential) -> str:
    """The JSON of a layer, once it is known to stand for an equal one."""
    parts = layer if isinstance(layer, Sequential) else [layer]
    for part in parts:
        if type(part) not in registry.CLASSES.values():
            raise ValueError(f"layer must be a Conv3DTranspose itself, got a {type(part).__name__}")
    if isinstance(layer, Sequential):
        layer._check_built("save")
    try:
        config = layer.get_config()
        text = json.dumps(config, default=_plain)
        for part in parts:
            type(part).from_config(json.loads(json.dumps(part.get_config(), default=_plain)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{layer.name} must be made of what conv3dt knows by name, to be saved: {error}"
        ) from error
    head: dict[str, Any] = {
        "format": "conv3dt", "version": VERSION, "class_name": type(layer).__name__,
        "weights": sum(len(part.weights) for part in parts),
    }  # fmt: skip
    return json.dumps({**head, "config": json.loads(text)})


def _plain(value: Any) -> Any:
    """A NumPy number as JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a file")


def _made(header: Any, arrays: dict[str, Array]) -> Conv3DTranspose | Sequential:
    if not isinstance(header, dict) or header.get("format") != "conv3dt":
        raise ValueError("its config is not one of conv3dt")
    name, config = header.get("class_name"), header["config"]
    if header.get("version") != VERSION or name not in ("Conv3DTranspose", "Sequential"):
        raise ValueError(f"version {header.get('version')!r} of {name!r} is unknown here")
    if header.get("weights") != len(arrays):  # a damaged directory may hide some
        raise ValueError(f"it holds {len(arrays)} arrays in place of {header.get('weights')}")
    if name == "Sequential":
        return _chain(config, arrays)
    if not set(arrays) <= {"kernel", "bias"} or set(arrays) == {"bias"}:
        raise ValueError(f"it holds {sorted(arrays)[:5]}")
    weights = [arrays[key] for key in ("kernel", "bias") if key in arrays]
    layer: Conv3DTranspose = _layer(header, weights)
    return layer


def _chain(config: Any, arrays: dict[str, Array]) -> Sequential:
    layers = []
    for i, part in enumerate(config["layers"]):
        count = sum(name.partition(".")[0] == str(i) for name in arrays)
        weights = [arrays.pop(f"{i}.{j}") for j in range(count)]
        layer = _layer(part, weights)
        if not layer.built:
            raise ValueError(f"it holds no weights of {layer.name}")
        layers.append(layer)
    if arrays:
        raise ValueError(f"it holds {sorted(arrays)[:5]}")
    shape = config.get("build_input_shape")
    options = {key: config[key] for key in ("name", "num_threads") if key in config}
    return Sequential(layers, input_shape=shape and shape[1:], **options)


def _layer(config: Any, weights: list[Array]) -> Any:
    if {"input_shape", "batch_input_shape"} & set(config["config"]):
        raise ValueError("its config has a shape, which would make weights")
    layer = registry.make(config)
    if weights:
        layer._adopt(*(_weight(layer, array) for array in weights))
    return layer


def _weight(layer: Any, array: Array) -> Array:
    variable = dtypes.policy(getattr(layer, "dtype_policy", None)).variable
    stored = "uint16" if variable.name == "bfloat16" else variable.name
    if array.dtype.name != stored:
        raise ValueError(f"weights must be {stored} for dtype {variable}, got {array.dtype}")
    return array.view(variable)


def _read(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of the file by name, ``config`` among them."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()) or not _known(members):
            raise ValueError(f"it holds {sorted(members)[:5]}")
        if sum(info.file_size for info in members.values()) > os.stat(path).st_size:
            raise ValueError("its arrays overlap")  # a few bytes could be many arrays
        return {name.removesuffix(".npy"): _array(archive, info) for name, info in members.items()}


def _known(members: Iterable[str]) -> bool:
    names = set(members)
    return "config.npy" in names and all(_MEMBER.fullmatch(name) for name in names)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    # Stored as it is, an array cannot be larger than the file.
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.header_offset < 0:
        raise ValueError(f"{info.filename} is compressed, encrypted or misplaced")
    if info.compress_size != info.file_size:  # as much would be allocated to read it
        raise ValueError(
            f"{info.filename} declares {info.compress_size} bytes for {info.file_size}"
        )
    data = archive.read(info)
    head = _HEAD.match(data)
    if head is None:
        raise ValueError(f"{info.filename} is no array of numbers")
    dtype = np.dtype(head[1].decode())
    shape = tuple(int(size) for size in head[2].split(b",") if size.strip())
    if len(data) - head.end() != prod(shape) * dtype.itemsize:
        raise ValueError(f"{info.filename} has {len(data)} bytes, too few or many for {shape}")
    return np.frombuffer(data, dtype, offset=head.end()).reshape(shape)
