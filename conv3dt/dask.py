"""Transposed convolution of dask arrays: lazily, in chunks, with the bits of one piece.

    source chunks → per axis: slices with their halo, as chunks → one task a chunk → result

Output chunks begin where pieces may (see `pieces`), as near as possible to what the source's
chunks are centred on. The layer is one task that all others share, so that each worker packs
its weights once. Nothing but dask.array is needed here, and any scheduler will do.
"""

from __future__ import annotations

import copy
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arguments, output_pool
from .layer import Conv3DTranspose
from .optional import require
from .pieces import Operation, Piece, Range
from .problem import Axis, cut, effective_kernel

if TYPE_CHECKING:
    import numpy.typing as npt

# Policies in which a layer computes what the function does with x of a dtype.
POLICIES = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}


def conv3d_transpose(
    x: Any,
    kernel: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    strides: int | tuple[int, int, int] = 1,
    padding: Any = "valid",
    *,
    output_padding: int | tuple[int, int, int] | None = None,
    data_format: str | None = "channels_last",
    dilation_rate: int | tuple[int, int, int] = 1,
    groups: int = 1,
    activation: Any = None,
    num_threads: int | None = 1,
    algorithm: str = "auto",
) -> Any:
    """`conv3dt.conv3d_transpose` of a dask array, lazily.

    Parameters
    ----------
    x : dask.array.Array, (N, D, H, W, C) or (N, C, D, H, W)
        float16, bfloat16, float32 or float64, chunked along any axis. Chunks of the channels
        are merged: every output sums over all input channels, so a task needs them all, and
        a sum of partial results would be rounded in another order.
    num_threads : int or None
        Threads of one task. dask runs the tasks side by side, so one is enough where there
        are at least as many chunks as CPUs. None: as conv3dt decides.
    kernel, bias, strides, padding, output_padding, data_format, dilation_rate, groups, \
activation, algorithm
        As for `conv3dt.conv3d_transpose`; arrays, not dask arrays.

    Returns
    -------
    dask.array.Array
        Chunked as `x`, ``stride`` times as large, along samples and space. The channels, and
        an axis along which softmax or glu work, are one chunk. The same bits as
        `conv3dt.conv3d_transpose` of the whole, if all workers run the same instruction set.

    Raises
    ------
    ValueError, TypeError
        As `conv3dt.conv3d_transpose`, at once; chunks of unknown size; `x` is no dask array.
    ImportError
        dask is not installed: the extra `dask` brings it.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from conv3dt.dask import conv3d_transpose
    >>> x = da.ones((1, 64, 64, 64, 2), chunks=(1, 16, 32, 64, 2), dtype="float32")
    >>> y = conv3d_transpose(x, np.ones((3, 3, 3, 4, 2), "float32"), strides=2, padding="same")
    >>> y.shape, y.chunks[1]
    ((1, 128, 128, 128, 4), (32, 32, 32, 32))
    """
    _check(x)
    kernel = arguments.as_array("kernel", kernel)
    if kernel.ndim != 5:
        raise ValueError(f"kernel must have 5 axes, got {kernel.ndim}, shape {kernel.shape}")
    groups = arguments.positive_int("groups", groups)
    layer = Conv3DTranspose(
        kernel.shape[3] * groups,
        kernel.shape[:3],
        strides,
        padding,
        output_padding=output_padding,
        data_format=data_format,
        dilation_rate=dilation_rate,
        groups=groups,
        activation=activation,
        use_bias=bias is not None,
        dtype=POLICIES.get(x.dtype.name, x.dtype.name),
        name="conv3d_transpose",
        algorithm=algorithm,
    )
    layer._adopt(kernel, bias)
    return apply(layer, x, num_threads=num_threads)


def apply(layer: Conv3DTranspose, x: Any, *, num_threads: int | None = 1) -> Any:
    """A layer's result for a dask array, lazily; parameters and result as of `conv3d_transpose`.

    The layer is taken as it is now: weights that are set later do not count. Its own number
    of threads does not either. It is built if it is not.

    Examples
    --------
    >>> import dask.array as da
    >>> import conv3dt, conv3dt.dask
    >>> layer = conv3dt.Conv3DTranspose(4, 2, strides=2, activation="softmax")
    >>> x = da.ones((1, 64, 64, 64, 2), chunks=(1, 16, 32, 64, 2), dtype="float32")
    >>> conv3dt.dask.apply(layer, x).shape
    (1, 128, 128, 128, 4)
    """
    _check(x)
    whole = layer.operation(x.shape)
    layer = copy.copy(layer)
    layer.num_threads = num_threads
    ranges = _ranges(whole, x.chunks)
    sizes = [tuple(end - begin for begin, end in axis) for axis in ranges]
    sizes.insert(4 if whole.plan.problem.channels_last else 1, (whole.plan.problem.filters,))
    return require("dask.array", "dask").map_blocks(
        _compute,
        _with_halos(whole, x, ranges),
        layer=require("dask", "dask").delayed(layer, traverse=False),
        x_shape=x.shape,
        ranges=ranges,
        chunks=tuple(  # an axis of one chunk is as long as the result's, which glu may halve
            axis if len(axis) > 1 else (size,)
            for axis, size in zip(sizes, whole.y_shape, strict=True)
        ),
        dtype=whole.result,
        meta=np.empty((0,) * 5, whole.result),
    )


def _check(x: Any) -> None:
    array = require("dask.array", "dask")
    if not isinstance(x, array.Array):
        raise TypeError(f"x must be a dask array, got {type(x).__name__}")
    if x.dtype.name not in arguments.FLOATS:
        raise TypeError(f"x must be {', '.join(arguments.FLOATS)}, got {x.dtype}")
    if any(size != size for size in x.shape):  # NaN
        raise ValueError(f"x must have chunks of known sizes (compute_chunk_sizes), got {x.chunks}")


def _ranges(whole: Operation, chunks: tuple[tuple[int, ...], ...]) -> list[list[Range]]:
    """The outputs of each task: samples, depth, height, width."""
    problem = whole.plan.problem
    space = chunks[1:4] if problem.channels_last else chunks[2:5]
    axes = zip(problem.axes, space, whole.grains[1:], strict=True)
    return [_between(list(accumulate(chunks[0]))), *(_outputs(*axis) for axis in axes)]


def _outputs(axis: Axis, chunks: tuple[int, ...], grain: int) -> list[Range]:
    """The outputs of an axis in parts that read mostly one chunk each."""
    # Input i is the middle of the outputs around i * stride + shift.
    shift = (effective_kernel(axis.kernel, axis.dilation) - axis.stride) // 2 - axis.crop
    edges = {
        round((edge * axis.stride + shift) / grain) * grain for edge in accumulate(chunks[:-1])
    }
    return _between([*sorted(edge for edge in edges if 0 < edge < axis.out), axis.out])


def _between(edges: list[int]) -> list[Range]:
    return list(pairwise([0, *edges]))


def _with_halos(whole: Operation, x: Any, ranges: list[list[Range]]) -> Any:
    """``x`` with a chunk for each task, of all that it reads: neighbours have parts in common."""
    array = require("dask.array", "dask")
    problem = whole.plan.problem
    channel, first = (4, 1) if problem.channels_last else (1, 2)
    x = x.rechunk({channel: -1}, method="tasks")
    for axis in range(3):
        parts = []
        for ends in ranges[1 + axis]:
            part, begin = cut(problem.axes[axis], *ends, whole.plan.cuts()[1][axis])
            index = [slice(None)] * 5
            index[first + axis] = slice(begin, begin + part.size)
            parts.append(x[tuple(index)])
        sizes = tuple(part.shape[first + axis] for part in parts)
        x = array.concatenate(parts, first + axis).rechunk({first + axis: sizes}, method="tasks")
    return x


def _compute(
    x: np.ndarray,
    layer: Conv3DTranspose,
    x_shape: tuple[int, ...],
    ranges: list[list[Range]],
    block_id: tuple[int, ...],
) -> np.ndarray:
    """One task."""
    operation = layer.operation(x_shape)
    batch, *space = block_id
    del space[3 if operation.plan.problem.channels_last else 0]
    mine = [axis[block] for axis, block in zip(ranges, (batch, *space), strict=True)]
    piece = Piece(operation, mine)
    return piece.apply(
        arguments.as_array("x", x), output_pool.empty(piece.y_shape, operation.compute)
    )
