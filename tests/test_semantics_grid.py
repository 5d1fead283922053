"""Keras' own answers to 864 one-axis cases, as 3D problems along each axis in turn.

The file records that Keras 3 (TensorFlow or JAX) computes exactly ``rule``, except where the
result is empty or TensorFlow gives up; there the rule still holds. The rule is worded here once
more, independently of the package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

from conv3dt import functional

GRID = json.loads((Path(__file__).parent / "data/conformance/semantics_grid.json").read_text())
ROWS = GRID["rows"]


def _rule(row: dict[str, Any]) -> tuple[int, int]:
    """(out, crop) as the file words it."""
    k, s, d, n, p = (row[key] for key in ("k", "s", "d", "n", "output_padding"))
    extent = (k - 1) * d + 1
    full = (n - 1) * s + extent
    if row["padding"] == "valid":
        return full + (max(s - extent, 0) if p is None else p), 0
    out = n * s if p is None else (n - 1) * s + extent % 2 + p
    return out, max(full - out, 0) // 2


def _on(axis: int, value: int, other: int) -> tuple[int, ...]:
    return tuple(value if i == axis else other for i in range(3))


def test_the_file_is_whole() -> None:
    assert len(ROWS) == 864
    assert sum(row["jax"] == "ok" for row in ROWS) == 849
    empty = [row for row in ROWS if row["jax"] != "ok"]
    assert all(_rule(row)[0] == 0 for row in empty)  # Keras refuses empty results, we return them


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_row(axis: int, channels_last: bool) -> None:
    rng = np.random.default_rng(axis)
    for row in ROWS:
        out, crop = _rule(row)
        sizes, taps = _on(axis, row["n"], 2), _on(axis, row["k"], 1)
        x_shape = (1, *sizes, 2) if channels_last else (1, 2, *sizes)
        x = rng.integers(-4, 5, x_shape).astype(np.float32)
        kernel = rng.integers(-4, 5, (*taps, 3, 2)).astype(np.float32)
        bias = np.array([1, 2, 3], np.float32)
        strides, dilation = _on(axis, row["s"], 1), _on(axis, row["d"], 1)
        extra = row["output_padding"]
        got = functional.conv3d_transpose(
            x,
            kernel,
            bias,
            strides,
            row["padding"],
            output_padding=None if extra is None else _on(axis, extra, 0),
            data_format="channels_last" if channels_last else "channels_first",
            dilation_rate=dilation,
        )
        want = oracle.conv3d_transpose(
            x, kernel, bias, strides, _on(axis, crop, 0), _on(axis, out, 2), dilation,
            channels_last=channels_last,
        )  # fmt: skip
        np.testing.assert_array_equal(got, want, err_msg=str(row))
