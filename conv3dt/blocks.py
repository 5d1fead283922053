"""Blocks: volumes larger than memory stream through a layer, piece by piece.

    source[inputs] → section of the chain of layers → target[outputs]

The fewest pieces that fit `max_memory` are taken: whole samples if possible, else slabs of the
depth, and parts of those where even the thinnest slab is too much. All pieces share one buffer
for their results, and one for those between the layers.
"""

from __future__ import annotations

import mmap
import operator
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np

from . import arguments, output_pool
from .chained import Chain, Link, Section, chain_of
from .pieces import Range
from .plan import unit_stride

Progress = Callable[[int, int], object]


class Layer(Protocol):
    """What a layer offers for this, and a chain of layers."""

    def links(self, x_shape: Sequence[int], x_dtype: np.dtype[Any]) -> list[Link]: ...


def apply_blocks(
    layer: Layer,
    source: Any,
    target: Any,
    *,
    max_memory: int | str = "2GB",
    progress: Progress | None = None,
) -> None:
    """Write the result of a layer, or of a chain, for volumes that need not fit in memory.

    The same bits as ``target[...] = layer(source[...])``: pieces of the source stream through
    the layers, each with the halo that it needs.

    Parameters
    ----------
    layer : Conv3DTranspose or Sequential
        Built for the channels of `source`, or not yet built. Its threads are used.
    source : array_like with 5 axes, see `Conv3DTranspose.__call__`
        Anything with ``shape``, ``dtype`` and slices that NumPy can read: arrays,
        ``np.memmap``, h5py datasets, zarr arrays. float16, bfloat16, float32 or float64.
    target : like `source`
        Receives the result by assignment to slices. Of the shape that
        `Conv3DTranspose.compute_output_shape` says and of the layer's dtype. It must not
        share memory, or a file, with `source`.
    max_memory : int or str
        Bytes, also as ``"2GB"`` or ``"512 MiB"``, for pieces of the source and of the results,
        their casts, and what the kernels work in. The weights, and what `source` and
        `target` take to read and write a slice (an HDF5 or zarr chunk), come on top. Pages
        of an ``np.memmap`` are let go when a piece is done.
    progress : callable, optional
        ``progress(done, total)`` after each piece: voxels of the result, the batch included.

    Raises
    ------
    ValueError
        Shapes that do not fit, a read-only target, memory that is shared, or a `max_memory` in
        which not even the smallest piece fits (the message says what does). A chain with a
        layer that mixes voxels of the whole volume (its name is in the message).
    TypeError
        `source` does not hold floats, `target` has another dtype than the layer, or one of
        them is no array. Nothing is written in all these cases.

    Notes
    -----
    An activation that is a callable of yours must treat each voxel by itself, or along the
    last axis, which is not cut for it. The activity regularizer is not evaluated. In a chain,
    what the halos of two pieces have in common is computed for both.

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
    chain = _chain(layer, source)
    _check_target(chain, source, target)
    if prod(chain.y_shape) == 0:
        return
    division = divide(chain, source, budget)
    block = output_pool.fresh(division.block_bytes())
    # The layers write to arrays themselves, where these have the right layout.
    buffer = output_pool.fresh(0 if _takes_results(target) else division.result_bytes())
    done, total = 0, prod(chain.sizes)
    for section in division.sections():
        _stream(section, source, target, block, buffer)
        done += prod(section.sizes)
        if progress is not None:
            progress(done, total)


def _chain(layer: Layer, source: Any) -> Chain:
    # Of another rank it is for the links to refuse.
    runs = not isinstance(source, np.ndarray) or source.ndim != 5 or unit_stride(source)
    try:
        return chain_of(layer, source.shape, source.dtype, runs)
    except ValueError as error:
        raise ValueError(f"source: {error}") from error


def _check_array(name: str, array: Any, access: str) -> None:
    if not all(hasattr(array, needed) for needed in ("shape", "dtype", access)) or isinstance(
        array, np.ma.MaskedArray
    ):
        raise TypeError(
            f"{name} must have shape, dtype and slices, as arrays have, got {type(array).__name__}"
        )
    if getattr(array.dtype, "name", None) not in arguments.FLOATS:
        raise TypeError(f"{name} must be {', '.join(arguments.FLOATS)}, got {array.dtype}")


def _check_target(chain: Chain, source: Any, target: Any) -> None:
    if target.dtype.newbyteorder("=") != chain.result:
        raise TypeError(f"target must have dtype {chain.result}, got {target.dtype}")
    if tuple(target.shape) != chain.y_shape:
        raise ValueError(f"target must have shape {chain.y_shape}, got {target.shape}")
    if not isinstance(target, np.ndarray):
        return
    if not target.flags.writeable:
        raise ValueError("target must be writeable, got a read-only array")
    if isinstance(source, np.ndarray) and np.may_share_memory(source, target):
        raise ValueError("target must not share memory with source")


class Division:
    """The results of a chain in ``parts`` along each axis, of about equal size."""

    def __init__(self, chain: Chain, source: Any, parts: Sequence[int]) -> None:
        self.chain = chain
        self.source = source
        self.ranges = [
            _ranges(size, grain, count)
            for size, grain, count in zip(chain.sizes, chain.grains, parts, strict=True)
        ]

    def sections(self) -> Iterator[Section]:
        """All of them, in the order of the result."""
        for ranges in product(*self.ranges):
            yield Section(self.chain, ranges)

    @cached_property
    def largest(self) -> list[Section]:
        """Sections such that no array of any other is larger than in all of them."""
        ends = [_longest(self.chain, axis, ranges) for axis, ranges in enumerate(self.ranges)]
        return [Section(self.chain, ranges) for ranges in product(*ends)]

    def block_bytes(self) -> int:
        """What the results between the layers take."""
        return max(section.program.block for section in self.largest)

    def result_bytes(self) -> int:
        """What the largest result takes."""
        largest = max(prod(section.program.shape) for section in self.largest)
        return largest * self.chain.result.itemsize

    def memory(self) -> int:
        """Bytes that the largest inputs, the results and the layers themselves take."""
        dtype: np.dtype[Any] = self.source.dtype
        inputs = max(prod(section.x_shape) for section in self.largest)
        inputs *= dtype.itemsize * (1 if dtype.isnative else 2)
        results = self.block_bytes() + self.result_bytes()
        return inputs + results + self.chain.scratch(self.ranges)


def divide(chain: Chain, source: Any, budget: int) -> Division:
    """The fewest sections of which each takes at most ``budget`` bytes.

    Raises
    ------
    ValueError
        The smallest possible sections take more.
    """
    parts = [1] * len(chain.sizes)

    def fits(axis: int, count: int) -> bool:
        parts[axis] = count
        return Division(chain, source, parts).memory() <= budget

    for axis, (size, grain) in enumerate(zip(chain.sizes, chain.grains, strict=True)):
        most = -(-size // grain)
        if fits(axis, 1):
            break
        if fits(axis, most):
            counts = range(1, most + 1)
            parts[axis] = counts[bisect_left(counts, True, key=partial(fits, axis))]
            break
    division = Division(chain, source, parts)
    least = division.memory()
    if least > budget:
        raise ValueError(f"max_memory must be at least {least} bytes, got {budget}")
    return division


def _longest(chain: Chain, axis: int, ranges: list[Range]) -> list[Range]:
    """Those for which some link works on more than for any other."""
    found = {chain.lengths(axis, ends): ends for ends in ranges}
    return [
        ends
        for own, ends in found.items()
        if not any(own != other and all(map(operator.le, own, other)) for other in found)
    ]


def _ranges(size: int, grain: int, parts: int) -> list[Range]:
    """``size`` voxels in about equal parts that begin at multiples of ``grain``."""
    grains = -(-size // grain)
    step = -(-grains // parts) * grain
    return [(begin, min(begin + step, size)) for begin in range(0, size, step)]


def _takes_results(target: Any) -> bool:
    return isinstance(target, np.ndarray) and target.dtype.isnative and unit_stride(target)


def _stream(
    section: Section, source: Any, target: Any, block: np.ndarray, buffer: np.ndarray
) -> None:
    program = section.program
    x = arguments.as_array("source", source[section.inputs])
    if buffer.size == 0:
        program.run(x, target[section.outputs], block)
    else:
        y = buffer.view(program.dtype)[: prod(program.shape)].reshape(program.shape)
        target[section.outputs] = program.run(x, y, block)
    for array in (source, target):
        let_go(array)


def let_go(array: Any) -> None:
    """Unmap the pages of a file: they would count as memory of this process until it ends.

    What was written is in the system's cache. Not so for a private mapping (mode "c").
    """
    if sys.platform == "linux" and isinstance(array, np.memmap) and array.mode != "c":
        array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
