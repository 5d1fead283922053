"""The judge is judged by literal numbers and by a second, independent wording of the formula."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import oracle
import pytest
from scipy.signal import convolve

ONE = (1, 1, 1)


def test_imports_nothing_of_the_package() -> None:
    tree = ast.parse(Path(oracle.__file__).read_text(encoding="utf-8"))
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= {
        "__future__",
        "collections",
        "itertools",
        "numpy",
    }


def test_one_axis_by_hand() -> None:
    x = np.array([1.0, 2, 3]).reshape(1, 1, 1, 3, 1)
    kernel = np.array([10.0, 20, 30]).reshape(1, 1, 3, 1, 1)
    # full[2i + t] += x[i] * w[t]
    full = [10, 20, 30 + 20, 40, 60 + 30, 60, 90]
    y = oracle.conv3d_transpose(x, kernel, np.array([0.5]), (1, 1, 2), (0, 0, 1), (1, 1, 8))
    assert y.ravel().tolist() == [v + 0.5 for v in [*full[1:], 0, 0]]


def test_groups_map_shares_of_channels_to_shares_of_filters() -> None:
    x = np.array([1.0, 10, 100, 1000]).reshape(1, 1, 1, 1, 4)
    kernel = np.ones((1, 1, 1, 3, 4))
    y = oracle.conv3d_transpose(x, kernel, None, ONE, (0, 0, 0), ONE, groups=2)
    assert y.ravel().tolist() == [11, 11, 11, 1100, 1100, 1100]


@pytest.mark.parametrize("channels_last", [True, False])
def test_equals_convolution_of_the_zero_stuffed_input(channels_last: bool) -> None:
    rng = np.random.default_rng(0)
    strides, dilation, sizes, taps = (2, 1, 3), (1, 2, 2), (3, 4, 2), (2, 3, 2)
    x = rng.integers(-4, 5, (2, *sizes, 3)).astype(float)
    kernel = rng.integers(-4, 5, (*taps, 2, 3)).astype(float)

    stuffed = np.zeros((2, *((n - 1) * s + 1 for n, s in zip(sizes, strides, strict=True)), 3))
    stuffed[:, :: strides[0], :: strides[1], :: strides[2]] = x
    spread = np.zeros((*((k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)), 2, 3))
    spread[:: dilation[0], :: dilation[1], :: dilation[2]] = kernel
    want = np.array(
        [
            [
                sum(convolve(s[..., c], spread[..., f, c], method="direct") for c in range(3))
                for f in range(2)
            ]
            for s in stuffed
        ]
    )  # (batch, filters, D, H, W), full

    given = x if channels_last else np.moveaxis(x, -1, 1)
    got = oracle.conv3d_transpose(
        given, kernel, None, strides, (1, 0, 2), want[..., 1:, :, 2:].shape[2:], dilation,
        channels_last=channels_last,
    )  # fmt: skip
    got = np.moveaxis(got, -1, 1) if channels_last else got
    np.testing.assert_array_equal(got, want[:, :, 1:, :, 2:])
