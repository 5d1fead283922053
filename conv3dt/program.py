"""A chain made ready for an input shape: what is computed where.

The results of a chain live one after the other: each is made from the one before. So they lie
in one block of memory, by turns at its start and at its end, and the block is as large as the
largest two neighbours. What works in place stays where it is, and the last result is the
caller's. The block is taken from the output pool at each call, so that calls of several
threads share nothing, and goes back at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import numpy as np

from . import dtypes, output_pool
from .dense import Dense
from .layer import Conv3DTranspose
from .members import Activation, Array, Member, Overwriting, View

Step = Conv3DTranspose | Member
DType = np.dtype[Any]


@contextmanager
def naming(step: Step) -> Iterator[None]:
    """Say in an error which layer of the chain it comes from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{step.name} ({type(step).__name__}): {error}") from error


class Stage(NamedTuple):
    """A step and its result; `scratch` is what the step needs for itself meanwhile, in bytes."""

    step: Any
    shape: tuple[int, ...]
    dtype: DType
    inplace: bool
    scratch: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return prod(self.shape) * self.dtype.itemsize


class Program:
    """The steps of a chain for one input shape and dtype.

    Attributes
    ----------
    shape, dtype
        Of the result.
    nbytes : int
        Memory that a call takes, beside its input, its result and the weights, if the input
        can be read and `out` be written as they are.
    """

    def __init__(self, steps: Sequence[Step], x_shape: tuple[int, ...], x_dtype: DType) -> None:
        self._stages = _stages(steps, x_shape, x_dtype)
        self.shape, self.dtype = self._stages[-1].shape, self._stages[-1].dtype
        writing = [stage for stage in self._stages if not stage.inplace]
        self._block, self._places = _places([stage.nbytes for stage in writing[:-1]])
        self._last_shape = writing[-1].shape
        self.nbytes = self._block + max(stage.scratch for stage in writing)

    def run(self, x: Array, out: Array | None = None) -> Array:
        """The result for `x`, of the shape and dtype of the program; `out` has been checked."""
        block = output_pool.empty((self._block,), np.dtype(np.uint8))
        target = _as(out, self._last_shape)
        places = iter(self._places)
        y = x
        for stage in self._stages:
            if stage.inplace:
                y = stage.step.inplace(y)
            elif (place := next(places, None)) is not None:
                y = stage.step(y, out=block[place].view(stage.dtype).reshape(stage.shape))
            else:
                y = stage.step(y, out=target)
        if out is None:
            return y
        if target is None:
            out[...] = y
        return out


def _places(sizes: list[int]) -> tuple[int, list[slice]]:
    """Size of a block for results of these sizes, and where each of them lies in it."""
    room = [-(-size // output_pool.ALIGNMENT) * output_pool.ALIGNMENT for size in sizes]
    block = max(map(sum, zip([0, *room], [*room, 0], strict=True)))
    starts = [block - size if i % 2 else 0 for i, size in enumerate(room)]
    return block, [slice(i, i + size) for i, size in zip(starts, sizes, strict=True)]


def _as(out: Array | None, shape: tuple[int, ...]) -> Array | None:
    """`out` in another shape, None if it cannot be seen so."""
    if out is None or out.shape == shape:
        return out
    return out.reshape(shape) if out.flags.c_contiguous else None


def _stages(steps: Sequence[Step], shape: tuple[int, ...], dtype: DType) -> list[Stage]:
    stages: list[Stage] = []
    borrowed = True  # the caller's x, which is not to be written to
    for step in steps:
        with naming(step):
            stages.append(_stage(step, shape, dtype, borrowed))
        borrowed = borrowed and stages[-1].inplace
        shape, dtype = stages[-1].shape, stages[-1].dtype
    if borrowed:  # the result must be no view of x
        stages.append(Stage(Activation(None, name="copy"), shape, dtype, inplace=False))
    return stages


def _stage(step: Step, x_shape: tuple[int, ...], x_dtype: DType, borrowed: bool) -> Stage:
    shape: tuple[int, ...] = step.compute_output_shape(x_shape)  # type: ignore[assignment]
    if isinstance(step, View):
        return Stage(step, shape, x_dtype, inplace=True)
    if isinstance(step, Overwriting):
        dtype = step.result_dtype(x_dtype)
        inplace = not borrowed and (shape, dtype) == (x_shape, x_dtype)
        halved = shape != x_shape
        return Stage(step, shape, dtype, inplace, prod(x_shape) * dtype.itemsize * halved)
    assert isinstance(step, (Conv3DTranspose, Dense))
    policy = dtypes.policy(step.dtype_policy)
    return Stage(step, shape, policy.result, False, _scratch(step, policy, x_shape, x_dtype, shape))


def _scratch(
    step: Conv3DTranspose | Dense,
    policy: dtypes.Policy,
    x_shape: tuple[int, ...],
    x_dtype: DType,
    shape: tuple[int, ...],
) -> int:
    """Bytes of the copies that a layer makes of its input and of its result."""
    copies = 0
    if x_dtype not in policy.direct:
        x_dtype = policy.direct[0]
        copies += prod(x_shape) * x_dtype.itemsize
    if x_dtype != policy.compute:
        copies += prod(x_shape) * policy.compute.itemsize
    result = prod(shape) * policy.compute.itemsize
    if step.activation.halves:  # what is halved, and two halves
        return copies + 4 * result
    return copies if policy.result == policy.compute else copies + result
