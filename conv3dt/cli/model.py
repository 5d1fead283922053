"""A layer from a model file of any kind."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import formats
from ..formats.layer_info import choose
from ..layer import Conv3DTranspose
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
    layers = {layer.name: layer for layer in members if isinstance(layer, Conv3DTranspose)}
    return layers[choose(path, layers, name, "--layer")]
