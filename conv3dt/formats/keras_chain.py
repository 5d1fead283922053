"""Models of Keras that are chains: each layer takes the result of the one before, alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..layer import Conv3DTranspose
from ..members import Member
from ..registry import IDENTITIES, make
from . import keras, keras_model
from .keras_model import Layer

Shape = tuple[int | None, ...]
Step = Conv3DTranspose | Member


def read(path: Path) -> tuple[list[Step], Shape | None]:
    """The layers of a chain, with their weights, and the shape of a sample if the file has it.

    Raises
    ------
    ValueError
        A damaged file, weights alone, or a model that is no chain of what conv3dt has: the
        message names the layer. OSError, ImportError: see `keras.from_keras`.
    """
    with keras_model.opened(path) as model:
        if model.version is None:
            raise ValueError(f"{path} holds weights alone: a chain must be read from a whole model")
        leaves = list(_chain(path, model.root))
        made = [
            _made(path, leaf, model.version)
            for leaf in leaves
            if leaf.class_name != "InputLayer" and leaf.class_name not in IDENTITIES
        ]
        shapes = (_sample(part.config) for part in (model.root, *leaves))
        shape = next((shape for shape in shapes if shape is not None), None)
    return made, shape


def _chain(path: Path, model: Layer) -> Iterator[Layer]:
    """The layers of a model, and of the models in it, in the order in which they run."""
    if model.layers is None:
        yield model
        return
    after: dict[str, list[Layer]] = {}
    first: list[Layer] = []
    for layer in model.layers:
        if len(layer.inputs) > 1 or any(len(names) != 1 for names in layer.inputs):
            taken = [list(names) for names in layer.inputs]
            raise ValueError(f"in a chain {_shown(layer)} of {path} must take one, got {taken}")
        for (name,) in layer.inputs:
            after.setdefault(name, []).append(layer)
        if not layer.inputs:
            first.append(layer)
    done: list[str] = []
    while first:
        if len(first) > 1:
            names = ", ".join(map(_shown, first))
            raise ValueError(f"in a chain of {path} one layer must follow, got {names}")
        (layer,) = first
        yield from _chain(path, layer)
        first = after.pop(layer.name, [])
        done.append(layer.name)
    if len(done) != len(model.layers) or list(model.outputs) != done[-1:]:
        raise ValueError(f"a chain must end in its last layer, got {list(model.outputs)} of {path}")


def _made(path: Path, layer: Layer, version: int) -> Step:
    config = keras.layer_config(layer, version)
    try:
        found = make({"class_name": layer.class_name, "config": config})
        weights = [variable.read() for variable in layer.variables()] if not found.built else []
        if not found.built and not weights:
            raise ValueError("it was never built")
        if weights:
            found._adopt(*weights)
    except ImportError:  # bfloat16
        raise
    except Exception as error:  # a config may hold anything
        raise ValueError(f"{_shown(layer)} of {path}: {error}") from error
    return found


def _shown(layer: Layer) -> str:
    return f"{layer.class_name} {layer.path or layer.name!r}"


def _sample(config: dict[str, Any]) -> Shape | None:
    """The shape of a sample that a config tells."""
    for key in ("build_input_shape", "batch_shape", "batch_input_shape"):
        shape = config.get(key)
        if isinstance(shape, list) and len(shape) > 1:
            return tuple(shape[1:])
    return None
