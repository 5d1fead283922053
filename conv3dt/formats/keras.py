"""Layers from the files of Keras 2 and Keras 3, and weights that Keras 3 loads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import activations, identifiers
from ..layer import Conv3DTranspose
from ..optional import require
from . import give_weights, keras_model
from .files import as_path, replacing
from .keras_model import Layer, Model
from .layer_info import LayerInfo, choose, fitting

Array = np.ndarray[Any, Any]
Config = dict[str, Any]

# In a config, but about the making of weights, which come from the file.
_SHAPES = ("batch_input_shape", "batch_shape", "input_shape")
# What only the user can tell of a file of weights alone.
_UNTOLD = ("strides", "padding", "activation")
# Ends of the names of the other arguments that are objects.
_OBJECTS = ("activation", "_initializer", "_regularizer", "_constraint")


def from_keras(
    path: str | os.PathLike[str], layer: str | None = None, **conv_arguments: Any
) -> Conv3DTranspose:
    """A layer from a file of Keras 2 or Keras 3; neither is needed.

    Parameters
    ----------
    path : path
        A model: ``.keras`` or ``.h5``. Or weights alone: ``.weights.h5``, sharded
        ``.weights.json``, or the ``.h5`` of Keras 2's ``save_weights``.
    layer : str, optional
        Name of the layer, in nested models perhaps with their names before it, as
        `list_layers` shows it. Not needed if only one Conv3DTranspose is there.
    **conv_arguments
        Arguments of `Conv3DTranspose` that go before those in the file. A file of weights alone
        has none: give what the layer was made with. There ``filters`` and ``kernel_size`` may
        be left out, the kernel has them; then strides, padding and activation must be given.

    Returns
    -------
    Conv3DTranspose
        Built, and meaning what it meant to the Keras that wrote the file: Keras 2 has another
        ``hard_sigmoid`` than Keras 3, and ignores ``dilation_rate``.

    Raises
    ------
    ValueError
        No such layer, or several (the message lists them); arguments that are missing or do not
        fit; a damaged file, or one of another kind. OSError: it cannot be read.
    ImportError
        A layer of dtype bfloat16 without the package ml_dtypes.

    Notes
    -----
    Nothing that a file names is imported or run, and no link in it is followed. The memory used
    is at most a small multiple of the file. A compressed ``.keras`` may unpack, in a temporary
    file, to 4 GiB and 1000 times what is stored.
    """
    path = as_path(path)
    with keras_model.opened(path) as model:
        if model.version is None:
            found, conv_arguments = _untold(path, model, layer, conv_arguments)
        else:
            found = _named(path, _transposed(model), layer)
        weights = _read(path, found)
        version = model.version
    made = _made(path, found, version, conv_arguments)
    give_weights(made, weights, _called(path, found))
    return made


def list_layers(path: Path) -> list[LayerInfo]:
    """See `conv3dt.list_layers`."""
    with keras_model.opened(path) as model:
        return [_info(path, layer, model.version) for layer in _transposed(model)]


def read_weights(path: Path, name: str | None, like: Conv3DTranspose) -> list[Array]:
    """Kernel and bias of the layer of this name, or of the only one that fits `like`."""
    with keras_model.opened(path) as model:
        return _read(path, _fitting(path, model, name, like))


def save_weights(layer: Conv3DTranspose, path: str | os.PathLike[str]) -> None:
    """Write the weights for Keras 3, see `Conv3DTranspose.save_weights`."""
    if not layer.built:
        raise ValueError(f"{layer.name} must be built before its weights are saved")
    if not str(path).endswith(".weights.h5"):
        raise ValueError(f"path must end in .weights.h5, as Keras demands it, got {str(path)!r}")
    h5py = require("h5py", "keras")
    with replacing(path) as temporary, h5py.File(temporary, "x") as file:
        file.create_group("vars").attrs["name"] = "sequential"
        group = file.create_group("layers/conv3d_transpose/vars")
        group.attrs["name"] = layer.name
        for number, array in enumerate(layer.weights):
            if layer.dtype == "bfloat16":
                variable = group.create_dataset(str(number), data=array.view("V2"))
                variable.attrs["dtype"] = "bfloat16"
            else:
                group.create_dataset(str(number), data=array)


# --- meaning -------------------------------------------------------------------------------


def layer_config(layer: Layer, version: int | None) -> Config:
    """The config of a layer in terms of today: what it means does not depend on the version."""
    config = {key: value for key, value in layer.config.items() if key not in _SHAPES}
    if "activation" in config:
        config["activation"] = activation(config["activation"], version)
    return config


def activation(identifier: Any, version: int | None) -> Any:
    """An activation in a file of this version of Keras, in terms of today."""
    parsed = identifiers.parse("activation", identifier)
    if (version or 3) < 3 and parsed is not None and parsed[0] == "hard_sigmoid" and not parsed[2]:
        return {"class_name": "hard_sigmoid", "config": {"slope": 0.2}}
    return identifier


# --- choice --------------------------------------------------------------------------------


def _transposed(model: Model) -> list[Layer]:
    """The Conv3DTranspose layers; without a config, all that can be one by their weights."""
    layers = model.root.flat()
    if model.version is None:
        return [layer for layer in layers if _may_be(layer.class_name, _shapes(layer))]
    return [layer for layer in layers if layer.class_name == "Conv3DTranspose"]


def _shapes(layer: Layer) -> list[tuple[int, ...]]:
    return [variable.shape for variable in layer.variables()]


def _may_be(word: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether these are a kernel and perhaps a bias. Those of a Conv3D look much the same."""
    if [len(shape) for shape in shapes] not in ([5], [5, 1]) or word == "conv3d":
        return False
    if not all(shapes[0][:4]):
        return False
    # The file of a layer with groups has a longer bias, but only we write it, with the word.
    return word == "conv3d_transpose" or shapes[1:] in ([], [(shapes[0][3],)])


def _named(path: Path, layers: Sequence[Layer], name: str | None) -> Layer:
    wanted = choose(path, [layer.path for layer in layers], name)
    return next(layer for layer in layers if layer.path == wanted)


def _fitting(path: Path, model: Model, name: str | None, like: Conv3DTranspose) -> Layer:
    """The layer of this name; without one, the only layer, or the only one that fits."""
    layers = _transposed(model)
    if name is None and len(layers) > 1:
        shapes = {layer.path: _shapes(layer) for layer in layers}
        kernels = {key: own[0] for key, own in shapes.items() if own and len(own[0]) == 5}
        names = fitting(kernels, like)
        name = names[0] if len(names) == 1 else None
    return _named(path, layers, name)


def _untold(path: Path, model: Model, name: str | None, given: Config) -> tuple[Layer, Config]:
    """A layer of a file of weights alone, and its config: what is given, and what they tell."""
    whole = {"filters", "kernel_size"} <= set(given)
    missing = [argument for argument in _UNTOLD if argument not in given]
    if missing and not whole:
        raise ValueError(
            f"{path} holds weights alone: {', '.join(missing)} must be given, and whatever else "
            f"is not the default of Conv3DTranspose; got {', '.join(sorted(given)) or 'nothing'}"
        )
    if whole:
        like = Conv3DTranspose.from_config({**given, "input_shape": None})
        layer = _fitting(path, model, name, like)
    else:
        layer = _named(path, _transposed(model), name)
    kernel, *bias = _shapes(layer)
    told = {"name": layer.name, "filters": kernel[3], "kernel_size": kernel[:3]}
    return layer, told | {"use_bias": bool(bias)} | given


def _read(path: Path, layer: Layer) -> list[Array]:
    variables = layer.variables()
    if not variables:
        raise ValueError(
            f"{path} has no weights for {layer.path!r}: it was not built, or it is part of two "
            "models, and the other one has them"
        )
    if len(variables) > 2:
        raise ValueError(f"{_called(path, layer)} must have a kernel and perhaps a bias")
    return [variable.read() for variable in variables]


def _called(path: Path, layer: Layer) -> str:
    return f"layer {layer.path!r} of {path}"


def _made(
    path: Path, layer: Layer, version: int | None, changes: Config, without: tuple[str, ...] = ()
) -> Conv3DTranspose:
    """The layer of a config: that in a file may hold anything, and changes are the user's."""
    try:
        config = layer_config(layer, version) | changes
        return Conv3DTranspose.from_config(
            {key: value for key, value in config.items() if not key.endswith(without)}
        )
    except ImportError:  # bfloat16
        raise
    except Exception as error:
        raise ValueError(f"{_called(path, layer)}: {error}") from error


def _info(path: Path, layer: Layer, version: int | None) -> LayerInfo:
    shapes = _shapes(layer)
    in_channels = shapes[0][4] if shapes and len(shapes[0]) == 5 else None
    if version is None:
        (depth, height, width, filters, _), *bias = shapes
        return LayerInfo(
            layer.path,
            layer.class_name,
            bias[0][0] if bias else filters,
            (depth, height, width),
            in_channels,
            use_bias=bool(bias),
        )
    # Objects of the user's are no reason not to tell the rest.
    made = _made(path, layer, version, {}, without=_OBJECTS)
    info = LayerInfo.of(made, layer.path, layer.class_name, in_channels)
    return replace(info, activation=_activation_name(layer.config.get("activation")))


def _activation_name(identifier: Any) -> str:
    try:
        return activations.get(identifier).name
    except Exception:
        name = identifier.get("class_name") if isinstance(identifier, dict) else identifier
        return str(name)
