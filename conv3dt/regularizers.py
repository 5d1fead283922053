"""Regularizers: penalties on kernel, bias and output.

Names, arguments and meaning are those of Keras 3.15. A penalty is a float, summed in
float64 whatever the dtype of the array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import identifiers

Array = np.ndarray[Any, Any]

EPSILON = 1e-7  # Keras' backend.epsilon()


class Regularizer:
    """Base of the regularizers: ``regularizer(x)`` returns a float."""

    def __call__(self, x: Array) -> float:
        return 0.0

    def get_config(self) -> identifiers.Config:
        """The arguments that make an equal regularizer."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Regularizer:
        """A regularizer from its ``get_config``."""
        return cls(**config)


class L1L2(Regularizer):
    """``l1 * sum(|x|) + l2 * sum(x**2)``."""

    def __init__(self, l1: float | None = 0.0, l2: float | None = 0.0) -> None:
        self.l1, self.l2 = _factor("l1", l1, 0.0), _factor("l2", l2, 0.0)

    def __call__(self, x: Array) -> float:
        return _penalty(x, self.l1, self.l2)

    def get_config(self) -> identifiers.Config:
        return {"l1": self.l1, "l2": self.l2}


class L1(Regularizer):
    """``l1 * sum(|x|)``."""

    def __init__(self, l1: float | None = 0.01) -> None:
        self.l1 = _factor("l1", l1, 0.01)

    def __call__(self, x: Array) -> float:
        return _penalty(x, self.l1, 0.0)

    def get_config(self) -> identifiers.Config:
        return {"l1": self.l1}


class L2(Regularizer):
    """``l2 * sum(x**2)``."""

    def __init__(self, l2: float | None = 0.01) -> None:
        self.l2 = _factor("l2", l2, 0.01)

    def __call__(self, x: Array) -> float:
        return _penalty(x, 0.0, self.l2)

    def get_config(self) -> identifiers.Config:
        return {"l2": self.l2}


class OrthogonalRegularizer(Regularizer):
    """``factor`` times the mean |cosine| between the rows (or columns) of a matrix."""

    def __init__(self, factor: float = 0.01, mode: str = "rows") -> None:
        if mode not in ("rows", "columns"):
            raise ValueError(f"mode must be rows or columns, got {mode!r}")
        self.factor, self.mode = _factor("factor", factor, 0.01), mode

    def __call__(self, x: Array) -> float:
        if np.ndim(x) != 2:
            raise ValueError(f"OrthogonalRegularizer must be used for 2 axes, got {np.shape(x)}")
        rows = np.asarray(x, np.float64)
        rows = rows if self.mode == "rows" else rows.T
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), EPSILON)
        cosines = np.abs(rows @ rows.T)
        np.fill_diagonal(cosines, 0.0)
        pairs = len(rows) * (len(rows) - 1) / 2
        return self.factor * 0.5 * float(cosines.sum()) / pairs if pairs else math.nan

    def get_config(self) -> identifiers.Config:
        return {"factor": self.factor, "mode": self.mode}


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The regularizer that ``identifier`` stands for; None stays None.

    Parameters
    ----------
    identifier
        A name, an instance, a class, a callable ``f(x)``, or a config dict of Keras 2 or
        Keras 3.
    custom_objects
        The user's own classes or functions by name; they come first.
    """
    own = isinstance(identifier, str) and identifier == "l1_l2"
    if own and not (custom_objects and "l1_l2" in custom_objects):
        return L1L2(0.01, 0.01)  # the function of Keras 2; "l1l2" is Keras 3's, with zeros
    return identifiers.resolve("regularizer", identifier, REGULARIZERS, custom_objects)


def serialize(regularizer: Any) -> identifiers.Config | None:
    """The config dict of a regularizer, as Keras 3 writes it."""
    return identifiers.serialize("regularizer", regularizer, "keras.regularizers")


def _factor(name: str, value: Any, default: float) -> float:
    value = default if value is None else value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite non-negative number, got {value!r}")
    return number


def _penalty(x: Array, l1: float, l2: float) -> float:
    x = np.asarray(x, np.float64)
    total = 0.0
    if l1:
        total += l1 * float(np.sum(np.abs(x)))
    if l2:
        total += l2 * float(np.sum(np.square(x)))
    return total


#: Every regularizer by name.
REGULARIZERS: dict[str, Any] = {
    "L1": L1,
    "L2": L2,
    "L1L2": L1L2,
    "OrthogonalRegularizer": OrthogonalRegularizer,
    "l1": L1,
    "l2": L2,
    "l1l2": L1L2,
    "l1_l2": L1L2,
    "orthogonal_regularizer": OrthogonalRegularizer,
}
