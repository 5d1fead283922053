"""Files of other frameworks, and our own: what is in them, weights out of them and into them.

A module for each kind of file, chosen by the end of the file's name and imported when it is
used; so is the package that it needs. Nothing that a file names is ever run, imported or
unpickled. `layer_info` is how all of them say what they found, `files` how all of them write.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from .files import as_path, naming
from .layer_info import LayerInfo

if TYPE_CHECKING:
    from ..layer import Array, Conv3DTranspose

__all__ = ["LayerInfo", "list_layers", "load_weights"]

# The ends of files' names that are PyTorch's pickles: `torch` says how to convert them.
PICKLES = (".bin", ".ckpt", ".pt", ".pth")

# The end of a file's name: the module that reads it. The longest that fits counts.
READERS = {
    ".h5": "keras",
    ".hdf5": "keras",
    ".keras": "keras",
    ".npz": "native",
    ".onnx": "onnx",
    ".safetensors": "torch",
    ".weights.json": "keras",
}


class Reader(Protocol):
    """What a module offers that reads a kind of file."""

    def list_layers(self, path: Path) -> list[LayerInfo]:
        """The transposed convolutions with 3 spatial axes in the file, in its order."""

    def read_weights(self, path: Path, name: str | None, like: Conv3DTranspose) -> list[Array]:
        """Kernel and, if there is one, bias, as `like` stores them, of the layer of this name."""


def kind(path: Path) -> str:
    """Name of the module that reads this file. ValueError if there is none."""
    for suffix in sorted(READERS, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return READERS[suffix]
    if path.suffix.lower() in PICKLES:
        return "torch"
    raise ValueError(f"path must end in one of {', '.join(READERS)}, got {str(path)!r}")


def _reader(path: Path) -> Reader:
    return cast("Reader", importlib.import_module(f".{kind(path)}", __name__))


def list_layers(path: str | os.PathLike[str]) -> list[LayerInfo]:
    """The transposed convolutions with 3 spatial axes in a model file, in the file's order.

    Parameters
    ----------
    path
        A file of any kind that conv3dt reads; the end of its name says which.

    Returns
    -------
    list of LayerInfo
        Small records; what a file does not say is None in them.

    Raises
    ------
    ValueError
        A kind of file that is not read, or a damaged file. OSError: it cannot be read.
    ImportError
        The package that reads the file is not installed; the message says how to get it.
    """
    path = as_path(path)
    with naming(path):
        return _reader(path).list_layers(path)


def load_weights(
    layer: Conv3DTranspose, path: str | os.PathLike[str], name: str | None = None
) -> None:
    """Set the weights of `layer` from a file, see `Conv3DTranspose.load_weights`."""
    path = as_path(path)
    with naming(path):
        give_weights(layer, _reader(path).read_weights(path, name, layer), str(path))


def give_weights(layer: Conv3DTranspose, weights: Sequence[Array], origin: str) -> None:
    """Set kernel and bias, and build the layer if it is not. Errors tell where they came from."""
    try:
        if layer.built:
            layer.set_weights(weights)
        else:
            layer._adopt(weights[0], weights[1] if len(weights) > 1 else None)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
