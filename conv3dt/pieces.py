"""Pieces: a part of a result computed by itself, with the bits that it has in the whole.

A piece is a range of outputs along the batch and each spatial axis. Its inputs are those that
they read, the halo among them. In the gather form no output is computed twice. What could
change a bit comes from the whole: the algorithm, what is fused with it, the tiles of minimal
filtering and the matrix products of im2col, which begin where they begin in the whole if the
piece begins at a multiple of its `grains`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import dtypes
from .activations import Activation
from .plan import Plan, Weights, readable
from .problem import Axis, cut

Index = tuple[slice, ...]
Range = tuple[int, int]


@dataclass(frozen=True)
class Operation:
    """What a layer does with arrays of one shape."""

    weights: Weights
    plan: Plan  # of the whole
    activation: Activation
    x_shape: tuple[int, ...]
    accepts: tuple[np.dtype[Any], ...]  # dtypes of x; others are cast to the first
    result: np.dtype[Any]
    num_threads: int | None

    @property
    def compute(self) -> np.dtype[Any]:
        """dtype of the computation."""
        return self.weights.kernel.dtype

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.activation.output_shape(self.plan.problem.y_shape(self.x_shape[0]))

    @property
    def sizes(self) -> tuple[int, ...]:
        """What there is to cut: samples, and outputs of depth, height and width."""
        return (self.x_shape[0], *(axis.out for axis in self.plan.problem.axes))

    @property
    def grains(self) -> tuple[int, ...]:
        """Multiples at which a piece may begin; the size of an axis that must stay whole."""
        first = 1 if self.plan.problem.channels_last else 2
        whole = self.activation.mixed_axis(5)
        axes = (0, first, first + 1, first + 2)
        return tuple(
            max(size, 1) if axis == whole else grain
            for axis, size, grain in zip(axes, self.sizes, (1, *self.plan.cuts()[0]), strict=True)
        )

    def part(self, axis: int, ends: Range) -> tuple[Axis, int]:
        """The axis of space with these outputs alone, and the first input that it has."""
        return cut(self.plan.problem.axes[axis], *ends, self.plan.cuts()[1][axis])

    def cast(self, x: np.ndarray) -> np.ndarray:
        """Inputs as the kernels read them, by way of the dtype that the layer takes."""
        if x.dtype not in self.accepts:
            x = dtypes.cast(x, self.accepts[0])
        return readable(x, self.compute)


class Piece:
    """A part of an operation's result: ``ranges`` of samples, depth, height and width.

    Attributes
    ----------
    x_shape, y_shape
        Of the inputs, and of the result before an activation that changes it.
    """

    def __init__(self, operation: Operation, ranges: Sequence[Range]) -> None:
        batch, *space = ranges
        depth, height, width = (operation.part(axis, ends)[0] for axis, ends in enumerate(space))
        size = batch[1] - batch[0]
        self.operation = operation
        self.problem = replace(operation.plan.problem, axes=(depth, height, width))
        self.x_shape = self.problem.x_shape(size)
        self.y_shape = self.problem.y_shape(size)

    @property
    def plan(self) -> Plan:
        """How the piece is computed."""
        return self.operation.weights.part(self.operation.plan, self.problem)

    def apply(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The result: ``y``, or a new array if that has another shape or dtype.

        Parameters
        ----------
        x : ndarray of float, native and aligned
            The inputs.
        y : ndarray of ``y_shape`` and the dtype of the computation
            As the kernels can write it; overwritten in any case.
        """
        operation = self.operation
        x = operation.cast(x)
        y = self.plan.compute(x, y, operation.activation, operation.num_threads)
        return y if y.dtype == operation.result else dtypes.cast(y, operation.result)


def index(channels_last: bool, parts: Sequence[slice]) -> Index:
    """Slices of samples, depth, height and width, and all channels."""
    batch, *space = parts
    if channels_last:
        return (batch, *space, slice(None))
    return (batch, slice(None), *space)
