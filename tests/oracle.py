"""The oracle: the scatter formula in naive float64 loops.

It imports nothing of the package under test. Taps and positions are Python loops; only
the batch and the two channel axes of one tap at one position are NumPy expressions.
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
) -> np.ndarray:
    """``y[o] = bias + sum of x[i] * w[t]`` over all i, t with ``o = i*s + t*d - crop``.

    Parameters
    ----------
    x : (N, D, H, W, Cin), or (N, Cin, D, H, W) with ``channels_last=False``
    kernel : (kd, kh, kw, filters // groups, Cin)
    bias : (filters,) or None
    strides, crops, out_sizes, dilation : 3 ints, for depth, height, width
    groups : group g maps the g-th share of the input channels to the g-th share of the filters

    Returns
    -------
    float64 array in the layout of x. Voxels that no tap reaches hold the bias.
    """
    x = np.asarray(x).astype(np.float64)
    kernel = np.asarray(kernel).astype(np.float64)
    if not channels_last:
        x = np.moveaxis(x, 1, -1)
    batch, *sizes, channels = x.shape
    *taps, group_filters, _ = kernel.shape
    group_channels = channels // groups

    y = np.zeros((batch, *out_sizes, groups * group_filters))
    for t in product(*map(range, taps)):
        for i in product(*map(range, sizes)):
            o = tuple(i[a] * strides[a] + t[a] * dilation[a] - crops[a] for a in range(3))
            if not all(0 <= o[a] < out_sizes[a] for a in range(3)):
                continue
            for g in range(groups):
                cin = slice(g * group_channels, (g + 1) * group_channels)
                cout = slice(g * group_filters, (g + 1) * group_filters)
                weights, voxels = kernel[t][:, cin], x[(slice(None), *i, None, cin)]
                with np.errstate(all="ignore"):
                    y[(slice(None), *o, cout)] += (voxels * weights).sum(axis=-1)
    if bias is not None:
        y += np.asarray(bias).astype(np.float64)
    return y if channels_last else np.ascontiguousarray(np.moveaxis(y, -1, 1))
