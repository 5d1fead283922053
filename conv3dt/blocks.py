"""Blocks: volumes larger than memory stream through a layer, piece by piece.

    source[inputs] → cast → piece of the plan → cast → target[outputs]

The fewest pieces that fit `max_memory` are taken: whole samples if possible, else slabs of the
depth, and parts of those where even the thinnest slab is too much. All pieces share one buffer.
"""

from __future__ import annotations

import mmap
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np

from . import arguments, engine, output_pool
from .pieces import Operation, Piece, Range
from .plan import unit_stride
from .problem import cut

Progress = Callable[[int, int], object]


class Layer(Protocol):
    """What a layer offers for this: `conv3dt.Conv3DTranspose` does."""

    def operation(self, x_shape: Sequence[int]) -> Operation: ...


def apply_blocks(
    layer: Layer,
    source: Any,
    target: Any,
    *,
    max_memory: int | str = "2GB",
    progress: Progress | None = None,
) -> None:
    """Write a layer's result for volumes that need not fit in memory.

    The same bits as ``target[...] = layer(source[...])``: pieces of the source stream through
    the layer, each with the halo that it needs.

    Parameters
    ----------
    layer : Conv3DTranspose
        Built for the channels of `source`, or not yet built. Its threads are used.
    source : array_like with 5 axes, see `Conv3DTranspose.__call__`
        Anything with ``shape``, ``dtype`` and slices that NumPy can read: arrays,
        ``np.memmap``, h5py datasets, zarr arrays. float16, bfloat16, float32 or float64.
    target : like `source`
        Receives the result by assignment to slices. Of the shape that
        `Conv3DTranspose.compute_output_shape` says and of the layer's dtype. It must not
        share memory, or a file, with `source`.
    max_memory : int or str
        Bytes, also as ``"2GB"`` or ``"512 MiB"``, for pieces of the source and of the result,
        their casts, and what the kernels work in. The layer's weights, and what `source` and
        `target` take to read and write a slice (an HDF5 or zarr chunk), come on top. Pages
        of an ``np.memmap`` are let go when a piece is done.
    progress : callable, optional
        ``progress(done, total)`` after each piece: voxels of the result, the batch included.

    Raises
    ------
    ValueError
        Shapes that do not fit, a read-only target, memory that is shared, or a `max_memory` in
        which not even the smallest piece fits (the message says what does).
    TypeError
        `source` does not hold floats, `target` has another dtype than the layer, or one of
        them is no array. Nothing is written in all these cases.

    Notes
    -----
    An activation that is a callable of yours must treat each voxel by itself, or along the
    last axis, which is not cut for it. The activity regularizer is not evaluated.

    Examples
    --------
    >>> import numpy as np
    >>> import conv3dt
    >>> layer = conv3dt.Conv3DTranspose(4, 3, strides=2, padding="same")
    >>> source = np.ones((1, 64, 32, 32, 8), np.float32)
    >>> target = np.empty((1, 128, 64, 64, 4), np.float32)
    >>> conv3dt.apply_blocks(layer, source, target, max_memory="12MB")
    >>> bool((target == layer(source)).all())
    True
    """
    budget = arguments.memory_size("max_memory", max_memory)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable or None, got {progress!r}")
    _check_array("source", source, "__getitem__")
    _check_array("target", target, "__setitem__")
    try:
        operation = layer.operation(source.shape)
    except ValueError as error:
        raise ValueError(f"source: {error}") from error
    _check_target(operation, source, target)
    if prod(operation.y_shape) == 0:
        return
    division = divide(operation, source, budget)
    # The kernels write to arrays themselves, where these have the right layout.
    size = 0 if _takes_results(operation, target) else division.result_bytes()
    buffer = output_pool.fresh(size).view(operation.compute)
    done, total = 0, prod(operation.sizes)
    for piece in division.pieces():
        _stream(piece, source, target, buffer)
        done += prod(piece.sizes)
        if progress is not None:
            progress(done, total)


def _check_array(name: str, array: Any, access: str) -> None:
    if not all(hasattr(array, needed) for needed in ("shape", "dtype", access)) or isinstance(
        array, np.ma.MaskedArray
    ):
        raise TypeError(
            f"{name} must have shape, dtype and slices, as arrays have, got {type(array).__name__}"
        )
    if getattr(array.dtype, "name", None) not in arguments.FLOATS:
        raise TypeError(f"{name} must be {', '.join(arguments.FLOATS)}, got {array.dtype}")


def _check_target(operation: Operation, source: Any, target: Any) -> None:
    if target.dtype.newbyteorder("=") != operation.result:
        raise TypeError(f"target must have dtype {operation.result}, got {target.dtype}")
    if tuple(target.shape) != operation.y_shape:
        raise ValueError(f"target must have shape {operation.y_shape}, got {target.shape}")
    if not isinstance(target, np.ndarray):
        return
    if not target.flags.writeable:
        raise ValueError("target must be writeable, got a read-only array")
    if isinstance(source, np.ndarray) and np.may_share_memory(source, target):
        raise ValueError("target must not share memory with source")


class Division:
    """The outputs of an operation in ``parts`` pieces along each axis, of about equal size."""

    def __init__(self, operation: Operation, source: Any, parts: Sequence[int]) -> None:
        self.operation = operation
        self.source = source
        self.ranges = [
            _ranges(size, grain, count)
            for size, grain, count in zip(operation.sizes, operation.grains, parts, strict=True)
        ]

    def pieces(self) -> Iterator[Piece]:
        """All pieces, in the order of the result."""
        for ranges in product(*self.ranges):
            yield Piece(self.operation, ranges)

    @cached_property
    def kinds(self) -> list[Piece]:
        """One of each problem that the pieces pose: most of them pose the same."""
        batch, *space = self.ranges
        made = self.operation.plan
        different = [
            {cut(axis, *ends, blocks)[0]: ends for ends in ranges}.values()
            for axis, blocks, ranges in zip(made.problem.axes, made.cuts()[1], space, strict=True)
        ]
        return [Piece(self.operation, ranges) for ranges in product(batch[:1], *different)]

    def result_bytes(self) -> int:
        """What the largest result takes in the dtype of the computation."""
        return max(prod(piece.y_shape) for piece in self.kinds) * self.operation.compute.itemsize

    def memory(self) -> int:
        """Bytes that the largest inputs, the largest result and the kernels take."""
        inputs = max(prod(piece.x_shape) for piece in self.kinds)
        inputs *= _input_bytes(self.operation, self.source)
        results = self.result_bytes() * (1 + _extra_results(self.operation))
        threads = self.operation.num_threads or engine.get_num_threads()
        return inputs + results + max(piece.plan.scratch(threads) for piece in self.kinds)


def divide(operation: Operation, source: Any, budget: int) -> Division:
    """The fewest pieces of which each takes at most ``budget`` bytes.

    Raises
    ------
    ValueError
        The smallest possible pieces take more.
    """
    parts = [1] * len(operation.sizes)

    def fits(axis: int, count: int) -> bool:
        parts[axis] = count
        return Division(operation, source, parts).memory() <= budget

    for axis, (size, grain) in enumerate(zip(operation.sizes, operation.grains, strict=True)):
        most = -(-size // grain)
        if fits(axis, 1):
            break
        if fits(axis, most):
            counts = range(1, most + 1)
            parts[axis] = counts[bisect_left(counts, True, key=partial(fits, axis))]
            break
    division = Division(operation, source, parts)
    least = division.memory()
    if least > budget:
        raise ValueError(f"max_memory must be at least {least} bytes for this layer, got {budget}")
    return division


def _ranges(size: int, grain: int, parts: int) -> list[Range]:
    """``size`` voxels in about equal parts that begin at multiples of ``grain``."""
    grains = -(-size // grain)
    step = -(-grains // parts) * grain
    return [(begin, min(begin + step, size)) for begin in range(0, size, step)]


def _input_bytes(operation: Operation, source: Any) -> int:
    """Bytes that a number of the source takes, as it is read and in each copy that follows."""
    native = source.dtype.newbyteorder("=")
    steps = [source.dtype]
    if native != source.dtype:
        steps.append(native)
    if native not in operation.accepts:
        steps.append(operation.accepts[0])
    in_place = not isinstance(source, np.ndarray) or unit_stride(source)
    if steps[-1] != operation.compute or not in_place:
        steps.append(operation.compute)
    return sum(dtype.itemsize for dtype in steps)


def _extra_results(operation: Operation) -> int:
    """Results that a piece has at the same time, beside the first."""
    other_dtype = operation.result != operation.compute
    return other_dtype + 2 * (operation.activation.scope == "whole")


def _takes_results(operation: Operation, target: Any) -> bool:
    return (
        isinstance(target, np.ndarray)
        and target.dtype == operation.compute
        and unit_stride(target)
        and operation.y_shape == operation.plan.problem.y_shape(operation.x_shape[0])
    )


def _stream(piece: Piece, source: Any, target: Any, buffer: np.ndarray) -> None:
    x = arguments.as_array("source", source[piece.inputs])
    if buffer.size == 0:
        piece.apply(x, target[piece.outputs])
    else:
        y = buffer[: prod(piece.y_shape)].reshape(piece.y_shape)
        target[piece.outputs] = piece.apply(x, y)
    for array in (source, target):
        let_go(array)


def let_go(array: Any) -> None:
    """Unmap the pages of a file: they would count as memory of this process until it ends.

    What was written is in the system's cache. Not so for a private mapping (mode "c").
    """
    if sys.platform == "linux" and isinstance(array, np.memmap) and array.mode != "c":
        array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
