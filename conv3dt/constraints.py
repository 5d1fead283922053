"""Constraints: projections of kernel and bias, applied by ``apply_constraints``.

Names, arguments and meaning are those of Keras 3.15. Norms are taken over ``axis``, 0 by
default: for a kernel that is its depth alone, as in Keras; (0, 1, 2, 4) is all that one
filter holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import identifiers

Array = np.ndarray[Any, Any]
Axis = int | Sequence[int]

EPSILON = 1e-7  # Keras' backend.epsilon()


class Constraint:
    """Base of the constraints: ``constraint(w)`` returns the projected array."""

    def __call__(self, w: Array) -> Array:
        return w

    def get_config(self) -> identifiers.Config:
        """The arguments that make an equal constraint."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Constraint:
        """A constraint from its ``get_config``."""
        return cls(**config)


class MaxNorm(Constraint):
    """Norms of at most ``max_value``."""

    def __init__(self, max_value: float = 2, axis: Axis = 0) -> None:
        self.max_value, self.axis = max_value, axis

    def __call__(self, w: Array) -> Array:
        norms = _norms(w, self.axis)
        return _scaled(w, np.clip(norms, 0, self.max_value) / (EPSILON + norms))

    def get_config(self) -> identifiers.Config:
        return {"max_value": self.max_value, "axis": self.axis}


class MinMaxNorm(Constraint):
    """Norms between ``min_value`` and ``max_value``, approached at ``rate`` (1: at once)."""

    def __init__(
        self,
        min_value: float = 0.0,
        max_value: float = 1.0,
        rate: float = 1.0,
        axis: Axis = 0,
    ) -> None:
        self.min_value, self.max_value, self.rate, self.axis = min_value, max_value, rate, axis

    def __call__(self, w: Array) -> Array:
        norms = _norms(w, self.axis)
        clipped = np.clip(norms, self.min_value, self.max_value)
        desired = self.rate * clipped + (1 - self.rate) * norms
        return _scaled(w, desired / (EPSILON + norms))

    def get_config(self) -> identifiers.Config:
        return {
            "min_value": self.min_value,
            "max_value": self.max_value,
            "rate": self.rate,
            "axis": self.axis,
        }


class NonNeg(Constraint):
    """Negative weights become zero."""

    def __call__(self, w: Array) -> Array:
        return np.maximum(w, np.zeros((), w.dtype))


class UnitNorm(Constraint):
    """Norms of 1."""

    def __init__(self, axis: Axis = 0) -> None:
        self.axis = axis

    def __call__(self, w: Array) -> Array:
        return _scaled(w, 1 / (EPSILON + _norms(w, self.axis)))

    def get_config(self) -> identifiers.Config:
        return {"axis": self.axis}


class RadialConstraint(Constraint):
    """Keras 2's constraint on the kernels of 2D convolutions: no kernel of this package."""

    def __call__(self, w: Array) -> Array:
        raise ValueError(f"RadialConstraint must be used for 4 axes, got shape {np.shape(w)}")


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The constraint that ``identifier`` stands for; None stays None.

    Parameters
    ----------
    identifier
        A name, an instance, a class, a callable ``f(w)``, or a config dict of Keras 2 or
        Keras 3.
    custom_objects
        The user's own classes or functions by name; they come first.
    """
    return identifiers.resolve("constraint", identifier, CONSTRAINTS, custom_objects)


def serialize(constraint: Any) -> identifiers.Config | None:
    """The config dict of a constraint, as Keras 3 writes it."""
    return identifiers.serialize("constraint", constraint, "keras.constraints")


def _norms(w: Array, axis: Axis) -> Array:
    axes = axis if isinstance(axis, int) else tuple(axis)
    squares = np.square(np.asarray(w, np.float64))
    return np.asarray(np.sqrt(np.sum(squares, axis=axes, keepdims=True)))


def _scaled(w: Array, factor: Array) -> Array:
    scaled: Array = (np.asarray(w, np.float64) * factor).astype(w.dtype)
    return scaled


#: Every constraint by name: the classes, their snake_case, and the names of Keras 2.
CONSTRAINTS: dict[str, type[Constraint]] = {
    "MaxNorm": MaxNorm,
    "MinMaxNorm": MinMaxNorm,
    "NonNeg": NonNeg,
    "RadialConstraint": RadialConstraint,
    "UnitNorm": UnitNorm,
    "max_norm": MaxNorm,
    "min_max_norm": MinMaxNorm,
    "non_neg": NonNeg,
    "radial_constraint": RadialConstraint,
    "unit_norm": UnitNorm,
    "maxnorm": MaxNorm,
    "minmaxnorm": MinMaxNorm,
    "nonneg": NonNeg,
    "unitnorm": UnitNorm,
}
