"""Which layer of a chain a config stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .batchnorm import BatchNormalization
from .dense import Dense
from .layer import Conv3DTranspose
from .members import Activation, Dropout, Flatten, InputLayer, Member, Reshape

CLASSES: dict[str, type[Conv3DTranspose] | type[Member]] = {
    "Activation": Activation,
    "BatchNormalization": BatchNormalization,
    "Conv3DTranspose": Conv3DTranspose,
    "Dense": Dense,
    "Dropout": Dropout,
    "Flatten": Flatten,
    "InputLayer": InputLayer,
    "Reshape": Reshape,
}

# Layers of Keras that `activations.get` knows.
ACTIVATIONS = ("ELU", "LeakyReLU", "ReLU", "Softmax", "ThresholdedReLU")

# Layers of Keras that do nothing at inference.
IDENTITIES = (
    "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise",
    "Identity", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
)  # fmt: skip


def make(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Conv3DTranspose | Member:
    """The layer that a config ``{"class_name": ..., "config": ...}`` stands for.

    Raises
    ------
    ValueError
        A layer that a chain cannot have, or a bad config.
    """
    given = config if isinstance(config, dict) else {}
    name, inner = given.get("class_name"), given.get("config")
    if not isinstance(name, str) or not isinstance(inner, dict):
        raise ValueError(f"a layer must be a config with a class_name and a config, got {config!r}")
    if name in ACTIVATIONS:
        return Activation(config, name=inner.get("name"))
    if name in CLASSES:
        return CLASSES[name].from_config(inner, custom_objects)
    if name in IDENTITIES:
        return Dropout(0.0, name=inner.get("name"))
    known = ", ".join(sorted({*CLASSES, *ACTIVATIONS, *IDENTITIES}))
    raise ValueError(f"a layer of a chain must be of {known}, got {name} {inner.get('name')!r}")
