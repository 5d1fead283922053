"""A program: what is computed where, one step after the other.

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

from . import output_pool

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]


@contextmanager
def naming(step: Any) -> Iterator[None]:
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
    """Stages, and where their results lie.

    Attributes
    ----------
    shape, dtype
        Of the result.
    block, scratch : int
        Bytes of the results between the stages, and those that a stage needs for itself.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self.shape, self.dtype = stages[-1].shape, stages[-1].dtype
        writing = [stage for stage in stages if not stage.inplace]
        self.block, self._places = _places([stage.nbytes for stage in writing[:-1]])
        self._last_shape = writing[-1].shape
        self.scratch = max(stage.scratch for stage in stages)

    @property
    def nbytes(self) -> int:
        """Memory that a call takes, beside its input, its result and the weights, if the input
        can be read and `out` be written as they are."""
        return self.block + self.scratch

    def run(self, x: Array, out: Array | None = None, block: Array | None = None) -> Array:
        """The result for `x`, of the shape and dtype of the program.

        `out` has been checked. `block` has at least as many bytes as the program wants.
        """
        if block is None:
            block = output_pool.empty((self.block,), np.dtype(np.uint8))
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
