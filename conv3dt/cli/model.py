"""A layer, or a chain of layers, from a model file of any kind."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import formats
from ..formats.layer_info import choose
from ..layer import Conv3DTranspose
from ..sequential import Sequential
from . import parser as parsing

# What PyTorch calls the arguments of a layer.
_TORCH = {"strides": "stride", "dilation_rate": "dilation"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that choose a layer of a file, and say what the file does not."""
    parser.add_argument("--layer", metavar="NAME", help="the layer, as `conv3dt layers` names it")
    given = parser.add_argument_group(
        "what a file of weights does not say (.safetensors, .weights.h5)"
    )
    parsing.add_geometry(given)  # type: ignore[arg-type]


def open_model(path: Path, options: argparse.Namespace) -> Conv3DTranspose | Sequential:
    """The chain that a file holds, if the options name no layer of it; else the layer.

    Raises
    ------
    ValueError
        As `open_layer`.
    """
    alone = options.layer is None and not parsing.geometry(options)
    chain = _chain(path) if alone else None
    if chain is None or (len(chain) == 1 and isinstance(chain[0], Conv3DTranspose)):
        return open_layer(path, options)
    return chain


def _chain(path: Path) -> Sequential | None:
    """The chain in a file, if there is one, and if it takes volumes."""
    kind = formats.kind(path)
    try:
        if kind == "native":
            from ..formats.native import load

            found: Any = load(path)
        elif kind == "keras":
            found = Sequential.from_keras(path)
        elif kind == "onnx":
            found = Sequential.from_onnx(path)
        else:
            return None
    except ValueError:  # what is wrong will be said when a layer is looked for
        return None
    if not isinstance(found, Sequential) or len(found.input_shape or ()) != 5:
        return None
    return found if any(isinstance(layer, Conv3DTranspose) for layer in found) else None


def open_layer(path: Path, options: argparse.Namespace) -> Conv3DTranspose:
    """The layer that the options name, or the only one.

    Raises
    ------
    ValueError
        A file that is not read, no such layer, or arguments that the file itself says.
    """
    given = parsing.geometry(options)
    kind = formats.kind(path)
    if kind == "torch":
        from ..formats.torch import from_torch

        renamed = {_TORCH.get(name, name): value for name, value in given.items()}
        return from_torch(path, options.layer or "", **renamed)
    if kind == "keras":
        from ..formats.keras import from_keras

        return from_keras(path, options.layer, **given)
    if kind == "onnx":
        from ..formats.onnx import from_onnx

        data_format = given.pop("data_format", "channels_first")
        _refuse(path, given)
        return from_onnx(path, options.layer, data_format=data_format)
    _refuse(path, given)
    return _of_our_own(path, options.layer)


def _refuse(path: Path, given: dict[str, Any]) -> None:
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{path} says itself what its layers do; {named} must not be given")


def _of_our_own(path: Path, name: str | None) -> Conv3DTranspose:
    from ..formats.native import load

    model = load(path)
    members = [model] if isinstance(model, Conv3DTranspose) else model.layers
    layers = [layer for layer in members if isinstance(layer, Conv3DTranspose)]
    chosen = choose(path, [layer.name for layer in layers], name, "--layer")
    return next(layer for layer in layers if layer.name == chosen)
