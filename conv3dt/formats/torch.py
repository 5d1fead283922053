"""PyTorch: a layer from a module, a state dict or a safetensors file, and a state dict of one.

torch itself is never imported: modules and tensors are known by what they can do. Pickled
files are refused, because reading them runs what they say.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .. import arguments
from ..layer import Conv3DTranspose
from ..optional import require
from .files import naming, regular
from .layer_info import LayerInfo, choose, fitting

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]

# What a ConvTranspose3d says of itself, and what PyTorch takes when nothing is said.
_GEOMETRY = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}

# Tensors that an error message lists.
_SHOWN = 10


def from_torch(
    module_or_state_dict: Any,
    prefix: str = "",
    *,
    stride: Any = None,
    padding: Any = None,
    output_padding: Any = None,
    groups: int | None = None,
    dilation: Any = None,
    data_format: str | None = "channels_first",
    activation: Any = None,
    name: str | None = None,
    dtype: Any = None,
    num_threads: int | None = None,
    algorithm: str = "auto",
) -> Conv3DTranspose:
    """A layer from a ConvTranspose3d of PyTorch.

    Parameters
    ----------
    module_or_state_dict : torch.nn.Module, mapping or path
        A ConvTranspose3d or a module that has one inside; a state dict, its values tensors or
        arrays; or the path of a ``.safetensors`` file, which is a state dict.
    prefix : str
        Where the layer is: ``"decoder.up1"`` for the weight ``decoder.up1.weight``, or a module
        around it. Not needed if there is only one.
    stride, padding, output_padding, groups, dilation : int or 3 ints, optional
        As in PyTorch, with its defaults 1, 0, 0, 1, 1. A module says them itself; a state dict
        does not.
    data_format : {"channels_first", "channels_last"} or None
        Order of the axes of the layer's input and result. PyTorch's is channels first; None
        asks Keras' ``keras.json``.
    activation, name, num_threads, algorithm
        Of the layer, see `Conv3DTranspose`.
    dtype : str, optional
        Default: that of the weight. "bfloat16" needs ml_dtypes.

    Returns
    -------
    Conv3DTranspose
        With explicit padding, which means what it means in PyTorch.

    Raises
    ------
    ValueError
        No such layer, or several (the message lists them); a ConvTranspose1d or 2d; weights
        that do not fit the arguments; geometry given for a module; a pickled file (the message
        has a command that converts it) or a damaged one. OSError: it cannot be read.
    TypeError
        None of the three sources; weights that are no dense tensors of floats.
    ImportError
        safetensors is missing: ``pip install 'conv3dt[torch]'``.

    Notes
    -----
    In a state dict, a weight of 5 axes is taken for that of a ConvTranspose3d if its bias has
    ``groups * weight.shape[1]`` numbers. A square Conv3d looks the same: give the `prefix`.
    """
    given = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
    }
    given = {key: value for key, value in given.items() if value is not None}
    source = module_or_state_dict
    if hasattr(source, "named_modules"):
        where, geometry, weight, bias = _from_module(source, prefix, given)
    else:
        geometry = _GEOMETRY | given
        arguments.positive_int("groups", geometry["groups"])
        if isinstance(padding, str):  # Keras' word, which means something else
            raise ValueError(f"padding must be 1 or 3 integers, as in PyTorch, got {padding!r}")
        with _opened(source) as (shapes, load):
            where = _only(prefix, geometry["groups"], shapes)
            weight, bias = _weights(where, shapes, load)
    with naming(source):
        weight, kind = array_of("weight", weight)
        kernel = weight.transpose(2, 3, 4, 1, 0)
        layer = Conv3DTranspose(
            kernel.shape[3] * geometry["groups"],
            kernel.shape[:3],
            geometry["stride"],
            geometry["padding"],
            output_padding=geometry["output_padding"],
            data_format=data_format,
            dilation_rate=geometry["dilation"],
            groups=geometry["groups"],
            activation=activation,
            use_bias=bias is not None,
            name=name or where.replace("/", ".") or None,
            dtype=kind if dtype is None else dtype,
            num_threads=num_threads,
            algorithm=algorithm,
        )
        layer._adopt(kernel, None if bias is None else array_of("bias", bias)[0])
    return layer


def to_torch_state_dict(layer: Conv3DTranspose, prefix: str = "") -> dict[str, Array]:
    """The weights of a layer; see `Conv3DTranspose.to_torch_state_dict`."""
    layer._check_built("to_torch_state_dict")
    kernel, *bias = layer.get_weights()
    weight = np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))
    return dict(zip((f"{prefix}weight", f"{prefix}bias"), (weight, *bias), strict=False))


def list_layers(path: Path) -> list[LayerInfo]:
    """The weights that may be a ConvTranspose3d's; `formats.list_layers` calls it."""
    with _opened(path) as (shapes, _):
        return [
            LayerInfo(
                where,
                "weight",
                groups * shape[1],
                shape[2:],
                shape[0],
                groups=groups if _key(where, "bias") in shapes else None,  # 1 is a guess
                use_bias=_key(where, "bias") in shapes,
            )
            for where, shape, groups in _possible(shapes)
        ]


def read_weights(path: Path, name: str | None, like: Conv3DTranspose) -> list[Array]:
    """Kernel and bias of a ConvTranspose3d; `formats.load_weights` calls it."""
    with _opened(path) as (shapes, load):
        found = _candidates(shapes, like.groups)
        if name is None:
            weights = {where: shapes[_key(where, "weight")] for where in found}
            found = fitting({where: (*s[2:], *s[1::-1]) for where, s in weights.items()}, like)
        weight, bias = _weights(choose(path, found, name), shapes, load)
    kernel = weight.transpose(2, 3, 4, 1, 0)
    return [kernel] if bias is None else [kernel, bias]


# --- modules -------------------------------------------------------------------------------


def _from_module(module: Any, prefix: str, given: Mapping[str, Any]) -> tuple[str, Any, Any, Any]:
    """Where the ConvTranspose3d is, its geometry, weight and bias."""
    if given:
        raise ValueError(f"{', '.join(given)} must not be given for a module, which says it itself")
    parts = {path: part for path, part in module.named_modules() if _under(path, prefix)}
    transposed = {path: part for path, part in parts.items() if getattr(part, "transposed", False)}
    ours = [path for path, part in transposed.items() if len(_tuple(part.kernel_size)) == 3]
    if not ours:
        kinds = sorted({type(part).__name__ for part in (transposed or parts).values()})
        got = ", ".join(kinds) or "no module"
        raise ValueError(f"module must have a ConvTranspose3d{_at(prefix)}, got {got}")
    where = _one(ours, prefix)
    found = transposed[where]
    geometry = {key: getattr(found, key) for key in _GEOMETRY}
    return where, geometry, found.weight, found.bias


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


# --- state dicts ---------------------------------------------------------------------------


@contextmanager
def _opened(source: Any) -> Iterator[tuple[Shapes, Callable[[str], Any]]]:
    """The shapes of a state dict's tensors, and what loads one of them."""
    if isinstance(source, Mapping):
        yield _shapes_of(source), source.__getitem__
        return
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            "module_or_state_dict must be a torch.nn.Module, a state dict or a path, "
            f"got {type(source).__name__}"
        )
    path = Path(source)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"path must be a .safetensors file, got {str(path)!r}: reading a pickled file runs "
            f"what it says. With PyTorch, convert it by\n    {_conversion(path)}"
        )
    safetensors = require("safetensors", "torch")
    regular(path)
    try:
        with naming(path), safetensors.safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}
            if any(part.get_dtype() == "BF16" for part in slices.values()):
                require("ml_dtypes", "bfloat16")  # NumPy knows bfloat16 from then on
            yield {key: tuple(s.get_shape()) for key, s in slices.items()}, file.get_tensor
    except safetensors.SafetensorError as error:
        raise ValueError(f"path must be sound, got {str(path)!r}: {error}") from error


def _shapes_of(state: Mapping[Any, Any]) -> dict[str, tuple[int, ...]]:
    named = {key: value for key, value in state.items() if isinstance(key, str)}
    shapes = {key: tuple(value.shape) for key, value in named.items() if hasattr(value, "shape")}
    nested = [key for key, value in state.items() if isinstance(value, Mapping)]
    if not shapes and nested:
        names = ", ".join(map(repr, nested[:_SHOWN]))
        raise ValueError(f"state dict must map names to tensors; it holds dicts, pass one: {names}")
    return shapes


def _conversion(path: Path) -> str:
    """The command that makes a safetensors file of a pickled state dict."""
    source, target = (json.dumps(str(p)) for p in (path, path.parent / f"{path.stem}.safetensors"))
    code = (
        f"import torch, safetensors.torch as s; d = torch.load({source}, map_location="
        '"cpu", weights_only=True); s.save_file({k: v.clone().contiguous() for k, v in '
        f'd.get("state_dict", d).items() if torch.is_tensor(v)}}, {target})'
    )
    return f"python -c {shlex.quote(code)}"


def _key(where: str, last: str) -> str:
    return f"{where}.{last}" if where else last


def _possible(shapes: Shapes) -> Iterator[tuple[str, Any, int]]:
    """Place, shape and groups of each weight that may be a ConvTranspose3d's."""
    for key, shape in shapes.items():
        where, _, last = key.rpartition(".")
        if last != "weight" or len(shape) != 5 or not shape[1]:
            continue
        bias = shapes.get(_key(where, "bias"), (shape[1],))
        groups, rest = divmod(bias[0] if len(bias) == 1 else 0, shape[1])
        if groups and not rest and shape[0] % groups == 0:
            yield where, shape, groups


def _candidates(shapes: Shapes, groups: int) -> list[str]:
    """Places of the weights that may be a ConvTranspose3d's of so many groups."""
    return [
        where
        for where, _, found in _possible(shapes)
        if found == groups or _key(where, "bias") not in shapes
    ]


def _only(prefix: str, groups: int, shapes: Shapes) -> str:
    """The one candidate under the prefix."""
    found = [where for where in _candidates(shapes, groups) if _under(where, prefix)]
    if found:
        return _one(found, prefix)
    inside = [f"{key} {shape}" for key, shape in shapes.items() if shape and _under(key, prefix)]
    shown = ", ".join(inside[:_SHOWN]) + (", ..." if len(inside) > _SHOWN else "")
    raise ValueError(
        f"state dict must have a ConvTranspose3d of groups={groups}{_at(prefix)}: a weight (in, "
        f"out/groups, kd, kh, kw) and a bias (out,) or none; got {shown or 'no tensors'}"
    )


def _weights(where: str, shapes: Shapes, load: Callable[[str], Any]) -> tuple[Any, Any]:
    bias = _key(where, "bias")
    return load(_key(where, "weight")), load(bias) if bias in shapes else None


# --- both ----------------------------------------------------------------------------------


def _at(prefix: str) -> str:
    return f" under the prefix {prefix!r}" if prefix else ""


def _under(path: str, prefix: str) -> bool:
    """Whether a dotted path is what the prefix names, or inside it."""
    prefix = prefix.rstrip(".")
    return not prefix or path == prefix or path.startswith(f"{prefix}.")


def _one(found: list[str], prefix: str) -> str:
    if prefix.rstrip(".") in found:
        return prefix.rstrip(".")
    if len(found) == 1:
        return found[0]
    names = ", ".join(map(repr, found))
    raise ValueError(f"prefix must name one ConvTranspose3d of {names}; got {prefix!r}")


def array_of(name: str, value: Any) -> tuple[Any, str]:
    """The array of a tensor or array, and the name of its dtype."""
    if not hasattr(value, "detach"):
        array = np.asarray(value)
        return array, array.dtype.name
    kind = str(value.dtype).removeprefix("torch.")
    try:
        value = value.detach().cpu()
        # NumPy has no bfloat16; float32 holds each of its numbers.
        return (value.float() if kind == "bfloat16" else value).numpy(), kind
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} must be a dense tensor of floats, got {kind}: {error}") from error
