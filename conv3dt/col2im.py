"""Transposed convolution in NumPy: matrix products, then strided additions.

The last resort of every plan, the only algorithm without compiled kernels, and an
implementation to compare the kernels with. Per depth tap::

    cols[i, (kh, kw, f)] = x[i, c] * w[(kh, kw, f), c]       BLAS, i = input positions
    y[i_h*sh + th*dh - crop, i_w*sw + tw*dw - crop, f] += cols[i, th, tw, f]

Depth is gathered rather than scattered: the output planes of one phase ``(o + crop) % s``
see the same taps, so a run of them is written by one thread only, and every product
``x[i] * w[t]`` is still computed once. Positions and taps outside either array are sliced
away, never multiplied by zeros: NaN and Inf appear exactly where the formula puts them.

Work is cut into chunks that depend on the problem alone, each thread works on its own
chunks, and BLAS is held to one thread (its sums change with its number of threads): a
result depends on neither threads, batch nor the strides of the arrays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from math import prod
from threading import Lock, Thread
from typing import Any, NamedTuple

import numpy as np

from .problem import Axis, Problem

# Scratch per thread. One MiB of columns stays in L2, and 64 threads need 64 MiB.
SCRATCH_BYTES = 1 << 20

Box = tuple[int, int, int]


class Hits(NamedTuple):
    """The input positions that a tap takes, and the output positions it takes them to."""

    inputs: slice
    outputs: slice


def run(
    problem: Problem,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    x: np.ndarray,
    y: np.ndarray,
    num_threads: int = 1,
    box: Box | None = None,
) -> None:
    """Fill ``y`` with the transposed convolution of ``x`` plus ``bias``.

    Parameters
    ----------
    problem : Problem
    kernel : array of ``problem.kernel_shape``
    bias : array (filters,) or None
    x, y : arrays of ``problem.x_shape(batch)`` and ``problem.y_shape(batch)``, any strides,
        float32 or float64 as the kernel; they must not overlap
    num_threads : threads to use, the calling one included
    box : positions in a chunk; of the whole, where the problem is a part of another one
    """
    if y.size == 0:
        return
    box = box or box_of(problem, kernel.itemsize)
    chunks = [(n, planes) for n in range(x.shape[0]) for planes in _plane_runs(problem, box[0])]

    def fill(chunk: tuple[int, range]) -> None:
        n, planes = chunk
        with np.errstate(all="ignore"):
            _fill_planes(problem, box, kernel, bias, x[n], y[n], planes)

    with _blas.one_thread():
        _share(fill, chunks, num_threads)


def box_of(problem: Problem, itemsize: int) -> Box:
    """Input positions (depth, height, width) whose columns fit into the scratch memory.

    They are the rows of a matrix product, whose bits may depend on their number.
    """
    _, kh, kw, filters, channels = problem.kernel_shape
    room = max(1, SCRATCH_BYTES // (itemsize * max(1, kh * kw * filters + channels)))
    box = []
    for axis in reversed(problem.axes):
        box.append(max(1, min(axis.size, room)))
        room = max(1, room // box[-1])
    return box[2], box[1], box[0]


def scratch(kernel: np.ndarray, box: Box) -> int:
    """Bytes that a thread takes at most: columns and rows of x, a tap's weights, two copies."""
    _, kh, kw, filters, channels = kernel.shape
    columns = prod(box) * (kh * kw * filters + channels) * kernel.itemsize
    return int(2 * (columns + kernel.nbytes // len(kernel)))


def _plane_runs(problem: Problem, length: int) -> Iterator[range]:
    """Runs of output planes of one depth phase: the unit of work, of one thread."""
    depth = problem.axes[0]
    for phase in range(min(depth.stride, depth.out)):
        planes = range(phase, depth.out, depth.stride)
        for begin in range(0, len(planes), length):
            yield planes[begin : begin + length]


def _fill_planes(
    problem: Problem,
    box: Box,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    x: np.ndarray,
    y: np.ndarray,
    planes: range,
) -> None:
    """Write the output planes ``planes`` of one sample, all filters."""
    channel_axis = 3 if problem.channels_last else 0
    x, y = np.moveaxis(x, channel_axis, 3), np.moveaxis(y, channel_axis, 3)
    y = y[planes.start : planes[-1] + 1 : planes.step]
    y[...] = 0 if bias is None else bias
    if x.size == 0:  # also ends kernels of no channels, whose taps can be any number
        return

    depth = problem.axes[0]
    cin, cout = problem.in_channels // problem.groups, problem.filters // problem.groups
    for tap in range(depth.kernel):
        first, rest = divmod(planes.start + depth.crop - tap * depth.dilation, depth.stride)
        begin, end = max(0, first), min(depth.size, first + len(planes))
        if rest or begin >= end:
            continue
        for group in range(problem.groups):
            inputs = slice(group * cin, (group + 1) * cin)
            outputs = slice(group * cout, (group + 1) * cout)
            _add_planes(
                problem,
                box,
                kernel[tap][..., inputs],
                x[begin:end, ..., inputs],
                y[begin - first : end - first, ..., outputs],
            )


def _add_planes(
    problem: Problem, box: Box, kernel: np.ndarray, x: np.ndarray, y: np.ndarray
) -> None:
    """Add to each plane of y the 2D result of the same plane of x: (D, H, W, C) views."""
    _, height, width = problem.axes
    kh, kw, filters, channels = kernel.shape
    matrix = np.ascontiguousarray(kernel).reshape(kh * kw * filters, channels)
    for h, w in product(range(0, height.size, box[1]), range(0, width.size, box[2])):
        block = x[:, h : h + box[1], w : w + box[2]]
        cols = _columns(matrix, block, problem.channels_last)
        for th, tw in product(range(kh), range(kw)):
            rows = _hits(height, th, h, h + block.shape[1])
            row = _hits(width, tw, w, w + block.shape[2])
            if rows and row:
                begin = (th * kw + tw) * filters
                target = y[:, rows.outputs, row.outputs]
                target += cols[:, rows.inputs, row.inputs, begin : begin + filters]


def _columns(matrix: np.ndarray, block: np.ndarray, channels_last: bool) -> np.ndarray:
    """All products of a block of positions: (d, h, w, c) with (n, c) gives (d, h, w, n).

    Computed in the layout of the output, which makes the additions run along memory.
    """
    *space, channels = block.shape
    if channels_last:
        flat = np.ascontiguousarray(block).reshape(prod(space), channels)
        return np.reshape(flat @ matrix.T, (*space, len(matrix)))
    flat = np.ascontiguousarray(np.moveaxis(block, 3, 0)).reshape(channels, prod(space))
    return np.moveaxis(np.reshape(matrix @ flat, (len(matrix), *space)), 0, 3)


def _hits(axis: Axis, tap: int, begin: int, end: int) -> Hits | None:
    """Where ``tap`` takes the input positions ``begin:end``; None when outside the output."""
    shift = tap * axis.dilation - axis.crop
    first = max(begin, -(shift // axis.stride))
    last = min(end - 1, (axis.out - 1 - shift) // axis.stride)
    if first > last:
        return None
    return Hits(
        slice(first - begin, last - begin + 1),
        slice(first * axis.stride + shift, last * axis.stride + shift + 1, axis.stride),
    )


def _share(work: Callable[[Any], None], chunks: Sequence[Any], threads: int) -> None:
    """Do all chunks on ``threads`` threads, this one included, or on as many as there can be."""
    queue = iter(chunks)
    errors: list[BaseException] = []

    def drain() -> None:
        try:
            for chunk in queue:
                work(chunk)
                if errors:
                    break
        except BaseException as error:
            errors.append(error)

    helpers = []
    for _ in range(min(threads, len(chunks)) - 1):
        helper = Thread(target=drain, daemon=True)
        try:
            helper.start()
        except RuntimeError:
            break
        helpers.append(helper)
    drain()
    while any(helper.is_alive() for helper in helpers):
        try:
            for helper in helpers:
                helper.join()
        except KeyboardInterrupt as error:  # nobody writes any more when the call has ended
            errors.append(error)
    if errors:
        raise errors[0]


class _Blas:
    """NumPy's BLAS, held to one thread while at least one call is running.

    The limit belongs to the process, so calls that overlap in time share it: the first
    sets it, the last restores what was there.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget calls in progress: a forked child has none."""
        self._lock = Lock()
        self._running = 0
        self._limit: Any = None

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """Hold the limit."""
        with self._lock:
            if self._running == 0:
                self._limit = _controller().limit(limits=1, user_api="blas")
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self._limit.restore_original_limits()


@cache
def _controller() -> Any:
    """Handles of the BLAS that NumPy loaded; finding them takes milliseconds, once."""
    host = os.environ.get("KMP_DUPLICATE_LIB_OK")
    from threadpoolctl import ThreadpoolController

    if host is None:  # the import sets it, and the environment is not ours
        os.environ.pop("KMP_DUPLICATE_LIB_OK", None)
    return ThreadpoolController()


_blas = _Blas()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_blas.reset)
