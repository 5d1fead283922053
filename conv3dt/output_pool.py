"""Memory for outputs: aligned, so that vectors can be streamed past the cache, and recycled.

A fresh array of 268 MB costs more in page faults than the convolution that fills it. So the
memory of a large output comes back here when the array and all its views are dead, and the
next output of about that size gets it. In ``y = layer(x)``, repeated, the old ``y`` dies when
the new one is there: two buffers take turns.

The way of a buffer: `empty` takes a `Block` out of the idle ones, or makes one, and gives it
to a `Lease`, which the array has as its base. The lease dies with the last view and returns
the block. A finalizer may run anywhere, in any thread, between any two lines of this file
too, so there is no lock for it to wait at: whoever has removed a block from the list, which
is one atomic step, is its only owner.

Idle blocks beyond a small share of memory are offered to the kernel with MADV_FREE: it takes
them when memory gets short, for any process or cgroup, and otherwise leaves them as they are.
Blocks are whole huge pages, where the system has them, which makes this cheap: 0.08 ms for
256 MiB, 3 ms with small pages. Not free, though: the next call pays for it, 5 to 10% of a large
layer's time (1.3 of 20 ms for 268 MB), which is why the share is left alone.
"""

from __future__ import annotations

import atexit
import mmap
import operator
import os
from contextlib import suppress
from math import prod
from typing import Any, NoReturn

import numpy as np

from . import memory

ALIGNMENT = 64  # bytes: a cache line, the widest vector
UNALIGNED = 4 << 10  # bytes: smaller arrays are never streamed
POOLED = 4 << 20  # bytes: malloc recycles smaller arrays well enough
HUGE_PAGE = 2 << 20
MOST_IDLE = 16  # blocks

# Python's default is to share the memory with forked children.
_PRIVATE: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)
# Idle bytes that are not offered to the kernel: a part of the limit, by default 1/32 of the
# memory, and never less than a few small blocks.
OURS = 1 / 8
LEAST_OURS = 64 << 20
_WHEN_MADE = getattr(mmap, "MADV_HUGEPAGE", None)
_WHEN_IDLE = getattr(mmap, "MADV_FREE", None)
_NO_MEMORY = (MemoryError, OSError, OverflowError, ValueError)  # of NumPy, mmap; beyond 2**63


class Block:
    """Huge pages with one owner: the list of idle blocks, or a lease."""

    __slots__ = ("_pages", "_skip", "interface", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._pages = mmap.mmap(-1, self.size + HUGE_PAGE, **_PRIVATE)
        start = np.frombuffer(self._pages, np.uint8)
        self._skip = -start.__array_interface__["data"][0] % HUGE_PAGE
        self.interface = start[self._skip :][: self.size].__array_interface__
        self.advise(_WHEN_MADE)

    def advise(self, advice: int | None) -> None:
        """Tell the kernel what the memory is for, if it knows that advice."""
        if advice is not None:
            with suppress(OSError):  # memory locked by mlockall, a kernel without huge pages
                self._pages.madvise(advice, self._skip, self.size)


class Lease:
    """What an array is based on while it uses a block; returns the block when it dies."""

    __slots__ = ("_block", "_pool")

    def __init__(self, block: Block, pool: Pool) -> None:
        self._block: Block | None = block
        self._pool = pool

    @property
    def __array_interface__(self) -> dict[str, Any]:
        if self._block is None:
            raise AttributeError("this memory has been returned")
        return self._block.interface

    def __del__(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            self._pool.put(block)

    def __reduce__(self) -> NoReturn:  # a copy would return the block a second time
        raise TypeError("the memory of an output cannot be copied or pickled by itself")


class Pool:
    """Idle blocks, oldest first; their sizes sum to at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.idle: list[Block] = []

    def bytes(self, size: int) -> np.ndarray:
        """Uninitialised bytes."""
        whole = -(-size // HUGE_PAGE) * HUGE_PAGE
        block = self.take(whole) or Block(whole)
        return np.asarray(Lease(block, self))[:size]

    def take(self, size: int) -> Block | None:
        """An idle block that holds ``size`` bytes and wastes little."""
        for block in reversed(self.idle):
            if size <= block.size <= size + size // 8:
                with suppress(ValueError):  # another thread has taken it
                    self.idle.remove(block)
                    return block
        return None

    def put(self, block: Block) -> None:
        """Keep a block that nobody uses any more, at the expense of the oldest."""
        if block.size > self.limit:  # always so at exit, when nothing below works any more
            return
        if self.held() + block.size > max(self.limit * OURS, LEAST_OURS):
            block.advise(_WHEN_IDLE)
        self.idle.append(block)
        self.trim()

    def trim(self) -> None:
        """Drop the oldest blocks that are too much."""
        with suppress(IndexError):  # another thread trims too
            while len(self.idle) > MOST_IDLE or self.held() > self.limit:
                self.idle.pop(0)

    def held(self) -> int:
        """Bytes in idle blocks."""
        return sum(block.size for block in self.idle)


def default_limit() -> int:
    """A quarter of the memory that this process may use."""
    return (memory.total() or 4 << 30) // 4


_pool = Pool(default_limit())
atexit.register(setattr, _pool, "limit", 0)
if hasattr(os, "register_at_fork"):
    # The child would copy the pages it writes to; fresh ones are cheaper.
    os.register_at_fork(after_in_child=_pool.idle.clear)


def set_output_pool(limit: int | None) -> None:
    """Set how much memory of dead results is kept for later results.

    Results of 4 MiB or more are made from it. Memory that is used again is not faulted in
    again, which for a large result takes longer than to compute it. What is kept beyond an
    eighth of the limit, or 64 MiB, stays available to the system, which takes it when memory gets
    short (on Linux, see MADV_FREE). All of it is released when a result cannot be allocated
    otherwise.

    Parameters
    ----------
    limit : int or None
        Bytes that wait, unused, for the next result. 0 keeps nothing; None returns to the
        default, a quarter of the memory that this process may use (of its cgroup's limit,
        where it has one).

    Raises
    ------
    ValueError
        Not a non-negative integer.
    """
    if limit is None:
        limit = default_limit()
    try:
        size = operator.index(limit)
    except TypeError:
        size = -1
    if size < 0:
        raise ValueError(f"limit must be a non-negative number of bytes or None, got {limit!r}")
    _pool.limit = size
    _pool.trim()


def usage() -> tuple[int, int]:
    """Bytes that the pool holds idle, and at most."""
    return _pool.held(), _pool.limit


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array, C-contiguous, that starts at a cache line."""
    size = prod(shape) * dtype.itemsize
    if size < UNALIGNED:
        return np.empty(shape, dtype)
    try:
        raw = _pool.bytes(size) if POOLED <= size <= _pool.limit else fresh(size)
    except _NO_MEMORY:
        _pool.idle.clear()
        try:
            raw = fresh(size)
        except _NO_MEMORY:
            raise MemoryError(
                f"Unable to allocate an output of shape {shape} and dtype {dtype}, {size} bytes"
            ) from None
    return raw.view(dtype).reshape(shape)


def fresh(size: int) -> np.ndarray:
    """Uninitialised bytes that start at a cache line, not from the pool."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    skip = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[skip : skip + size]
