"""Transposed convolution of dask arrays: lazily, in chunks, with the bits of one piece.

    source chunks → per axis: slices with their halo, as chunks → one section a chunk → result

Output chunks begin where sections may (see `chained`), as near as possible to what the source's
chunks are centred on. The layer is one task that all others share, so that each worker packs
its weights once. Nothing but dask.array is needed here, and any scheduler will do.
"""

from __future__ import annotations

import copy
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arguments, output_pool
from .chained import Chain, Convolution, Section, chain_of
from .layer import Conv3DTranspose
from .optional import require
from .pieces import Range
from .problem import effective_kernel
from .sequential import Sequential

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


def apply(layer: Conv3DTranspose | Sequential, x: Any, *, num_threads: int | None = 1) -> Any:
    """A layer's or a chain's result for a dask array, lazily.

    Parameters and result are those of `conv3d_transpose`. The layer is taken as it is now:
    weights that are set later do not count. Its own number of threads does not either. It is
    built if it is not. In a chain, what the halos of two tasks have in common is computed for
    both; one that mixes the voxels of the whole volume is a ValueError.

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
    chain = chain_of(layer, x.shape, x.dtype)
    layer = _taken(layer, num_threads)
    channel = _channel(chain)
    space = [*x.chunks[:channel], *x.chunks[channel + 1 :]]
    ranges = [_outputs(chain, axis, chunks) for axis, chunks in enumerate(space)]
    sizes = [tuple(end - begin for begin, end in axis) for axis in ranges]
    sizes.insert(channel, chain.y_shape[channel : channel + 1])
    return require("dask.array", "dask").map_blocks(
        _compute,
        _with_halos(chain, x, ranges),
        layer=require("dask", "dask").delayed(layer, traverse=False),
        x_shape=x.shape,
        ranges=ranges,
        chunks=tuple(  # an axis of one chunk is as long as the result's, which glu may halve
            axis if len(axis) > 1 else (size,)
            for axis, size in zip(sizes, chain.y_shape, strict=True)
        ),
        dtype=chain.result,
        meta=np.empty((0,) * 5, chain.result),
    )


def _check(x: Any) -> None:
    array = require("dask.array", "dask")
    if not isinstance(x, array.Array):
        raise TypeError(f"x must be a dask array, got {type(x).__name__}")
    if x.dtype.name not in arguments.FLOATS:
        raise TypeError(f"x must be {', '.join(arguments.FLOATS)}, got {x.dtype}")
    if any(size != size for size in x.shape):  # NaN
        raise ValueError(f"x must have chunks of known sizes (compute_chunk_sizes), got {x.chunks}")


def _taken(layer: Any, num_threads: int | None) -> Any:
    """A copy for which it does not matter what is set in the layer, or in layers of a chain."""
    if isinstance(layer, Sequential):
        return Sequential([_taken(step, num_threads) for step in layer.fold()])
    layer = copy.copy(layer)
    if hasattr(layer, "num_threads"):
        layer.num_threads = num_threads
    return layer


def _channel(chain: Chain) -> int:
    return 4 if chain.channels_last else 1


def _outputs(chain: Chain, axis: int, chunks: tuple[int, ...]) -> list[Range]:
    """The outputs along an axis in parts that read mostly one chunk each."""
    edges = list(accumulate(chunks[:-1]))
    for link in chain.links:
        if axis and isinstance(link, Convolution):
            its = link.operation.plan.problem.axes[axis - 1]
            # Input i is the middle of the outputs around i * stride + shift.
            shift = (effective_kernel(its.kernel, its.dilation) - its.stride) // 2 - its.crop
            edges = [edge * its.stride + shift for edge in edges]
    size, grain = chain.sizes[axis], chain.grains[axis]
    begins = {round(edge / grain) * grain for edge in edges}
    return list(pairwise([0, *sorted(begin for begin in begins if 0 < begin < size), size]))


def _with_halos(chain: Chain, x: Any, ranges: list[list[Range]]) -> Any:
    """``x`` with a chunk for each task, of all that it reads: neighbours have parts in common."""
    array = require("dask.array", "dask")
    channel = _channel(chain)
    x = x.rechunk({channel: -1}, method="tasks")
    for axis, parts in enumerate(ranges):
        at = axis + (axis >= channel)
        slices = [slice(*chain.walk(axis, ends)[0].inputs) for ends in parts]
        pieces = [x[(slice(None),) * at + (piece,)] for piece in slices]
        sizes = tuple(piece.shape[at] for piece in pieces)
        x = array.concatenate(pieces, at).rechunk({at: sizes}, method="tasks")
    return x


def _compute(
    x: np.ndarray,
    layer: Conv3DTranspose | Sequential,
    x_shape: tuple[int, ...],
    ranges: list[list[Range]],
    block_id: tuple[int, ...],
) -> np.ndarray:
    """One task."""
    chain = chain_of(layer, x_shape, x.dtype)
    blocks = list(block_id)
    del blocks[_channel(chain)]
    mine = [axis[block] for axis, block in zip(ranges, blocks, strict=True)]
    program = Section(chain, mine).program
    return program.run(arguments.as_array("x", x), output_pool.empty(program.shape, program.dtype))
