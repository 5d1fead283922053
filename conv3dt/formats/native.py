"""Our own format: every argument and weight of a layer, bit for bit.

A file is a NumPy ``.npz``, uncompressed: ``config``, the bytes of a JSON object
``{"format": "conv3dt", "version": 1, "class_name": ..., "config": ...}``, and, if the layer is
built, ``kernel`` and perhaps ``bias``. NumPy has no bfloat16: such weights lie there as uint16.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..layer import Conv3DTranspose
from .files import replacing
from .layer_info import LayerInfo, choose

Array = np.ndarray[Any, Any]

VERSION = 1

# The head of an array in the file, as NumPy writes it; none that needs evaluating is read.
_HEAD = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][fu][1248])', 'fortran_order': False, "
    rb"'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)


def save(layer: Conv3DTranspose, path: str | os.PathLike[str]) -> None:
    """Write a layer; see `Conv3DTranspose.save`."""
    arrays = {"config": np.frombuffer(_header(layer).encode(), np.uint8)}
    for name, array in zip(("kernel", "bias"), layer.weights, strict=False):
        arrays[name] = array.view(np.uint16) if layer.dtype == "bfloat16" else array
    with replacing(path) as temporary, open(temporary, "xb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load(path: str | os.PathLike[str]) -> Conv3DTranspose:
    """A layer from a file that `Conv3DTranspose.save` wrote.

    Parameters
    ----------
    path : path
        Nothing in the file is executed, and no more memory is used than its size.

    Returns
    -------
    Conv3DTranspose
        With the same arguments and the same weights, bit for bit.

    Raises
    ------
    ValueError
        A damaged file, or one of another kind or a later version. OSError: it cannot be read.
    ImportError
        bfloat16 weights without the package ml_dtypes.
    """
    try:
        arrays = _read(path)
        header = json.loads(arrays.pop("config").tobytes())
        return _layer(header, **arrays)
    except _DAMAGE as error:
        raise ValueError(
            f"path must be a file that Conv3DTranspose.save wrote, got {os.fspath(path)!r}: "
            f"{error or type(error).__name__}"
        ) from error


def list_layers(path: Path) -> list[LayerInfo]:
    """The layer in the file; `formats.list_layers` calls it."""
    layer = load(path)
    channels = layer.kernel.shape[4] if layer.built else None
    return [LayerInfo.of(layer, layer.name, type(layer).__name__, channels)]


def read_weights(path: Path, name: str | None, like: Conv3DTranspose) -> list[Array]:
    """Kernel and bias of the layer in the file; `formats.load_weights` calls it."""
    layer = load(path)
    choose(path, [layer.name], name)
    if not layer.built:
        raise ValueError(f"{path} must hold weights, got a layer that is not built")
    return layer.weights


# What reading a file that is not what it should be may raise.
_DAMAGE = (
    ValueError, KeyError, TypeError, ArithmeticError, RuntimeError, EOFError, zipfile.BadZipFile
)  # fmt: skip


def _header(layer: Conv3DTranspose) -> str:
    """The JSON of a layer, once it is known to stand for an equal one."""
    if type(layer) is not Conv3DTranspose:
        raise ValueError(f"layer must be a Conv3DTranspose itself, got a {type(layer).__name__}")
    try:
        config = layer.get_config()
        text = json.dumps(config, default=_plain)
        Conv3DTranspose.from_config(json.loads(text))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{layer.name} must be made of what conv3dt knows by name, to be saved: {error}"
        ) from error
    head = {"format": "conv3dt", "version": VERSION, "class_name": "Conv3DTranspose"}
    return json.dumps({**head, "config": config}, default=_plain)


def _plain(value: Any) -> Any:
    """A NumPy number as JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a file")


def _layer(header: Any, kernel: Array | None = None, bias: Array | None = None) -> Conv3DTranspose:
    if not isinstance(header, dict) or header.get("format") != "conv3dt":
        raise ValueError("its config is not one of conv3dt")
    if header.get("version") != VERSION or header.get("class_name") != "Conv3DTranspose":
        raise ValueError(
            f"version {header.get('version')!r} of {header.get('class_name')!r} is unknown here"
        )
    config = header["config"]
    if {"input_shape", "batch_input_shape"} & set(config):
        raise ValueError("its config has a shape, which would make weights")
    layer = Conv3DTranspose.from_config(config)
    if kernel is not None:
        layer._adopt(_weight(layer, kernel), None if bias is None else _weight(layer, bias))
    elif bias is not None:
        raise ValueError("it holds a bias without a kernel")
    return layer


def _weight(layer: Conv3DTranspose, array: Array) -> Array:
    stored = "uint16" if layer.dtype == "bfloat16" else layer.dtype
    if array.dtype.name != stored:
        raise ValueError(f"weights must be {stored} for dtype {layer.dtype}, got {array.dtype}")
    return array.view(layer._variable)


def _read(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of the file by name, ``config`` among them."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        known = {"config.npy", "kernel.npy", "bias.npy"}
        if len(members) != len(archive.infolist()) or not {"config.npy"} <= set(members) <= known:
            raise ValueError(f"it holds {sorted(members)[:5]}")
        return {name.removesuffix(".npy"): _array(archive, info) for name, info in members.items()}


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    # Stored as it is, an array cannot be larger than the file.
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.header_offset < 0:
        raise ValueError(f"{info.filename} is compressed, encrypted or misplaced")
    data = archive.read(info)
    head = _HEAD.match(data)
    if head is None:
        raise ValueError(f"{info.filename} is no array of numbers")
    dtype = np.dtype(head[1].decode())
    shape = tuple(int(size) for size in head[2].split(b",") if size.strip())
    if len(data) - head.end() != prod(shape) * dtype.itemsize:
        raise ValueError(f"{info.filename} has {len(data)} bytes, too few or many for {shape}")
    return np.frombuffer(data, dtype, offset=head.end()).reshape(shape)
