"""The oracle: the scatter formula in float64 or longer, tap by tap.

It imports nothing of the package under test and knows neither phases nor tiles: every tap
adds all positions, strided, to the full output, from which the result is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np


def conv3d_transpose(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    strides: Sequence[int],
    crops: Sequence[int],
    out_sizes: Sequence[int],
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
    channels_last: bool = True,
    dtype: type = np.float64,
) -> np.ndarray:
    """``y[o] = bias + sum of x[i] * w[t]`` over all i, t with ``o = i*s + t*d - crop``.

    Parameters
    ----------
    x : (N, D, H, W, Cin), or (N, Cin, D, H, W) with ``channels_last=False``
    kernel : (kd, kh, kw, filters // groups, Cin)
    bias : (filters,) or None
    strides, crops, out_sizes, dilation : 3 ints, for depth, height, width
    groups : group g maps the g-th share of the input channels to the g-th share of the filters
    dtype : of the computation and of the result

    Returns
    -------
    array in the layout of x. Voxels that no tap reaches hold the bias.
    """
    x = np.asarray(x).astype(dtype)
    if not channels_last:
        x = np.moveaxis(x, 1, -1)
    batch, *sizes, channels = x.shape
    *taps, group_filters, _ = kernel.shape
    x = np.ascontiguousarray(x).reshape(batch, *sizes, groups, channels // groups)
    kernel = np.asarray(kernel).astype(dtype)
    kernel = kernel.reshape(*taps, group_filters, groups, channels // groups)

    full_sizes = [
        max((sizes[a] - 1) * strides[a] + (taps[a] - 1) * dilation[a] + 1, crops[a] + out_sizes[a])
        for a in range(3)
    ]
    full = np.zeros((batch, *full_sizes, groups, group_filters), dtype)
    for t in product(*map(range, taps)) if x.size else ():
        begin = [t[a] * dilation[a] for a in range(3)]
        reached = [
            slice(begin[a], begin[a] + (sizes[a] - 1) * strides[a] + 1, strides[a])
            for a in range(3)
        ]
        with np.errstate(all="ignore"):
            full[(slice(None), *reached)] += np.einsum("...gc,fgc->...gf", x, kernel[t])

    cut = [slice(crops[a], crops[a] + out_sizes[a]) for a in range(3)]
    y = full[(slice(None), *cut)].reshape(batch, *out_sizes, groups * group_filters)
    if bias is not None:
        y = y + np.asarray(bias).astype(dtype)
    return np.ascontiguousarray(y if channels_last else np.moveaxis(y, -1, 1))
