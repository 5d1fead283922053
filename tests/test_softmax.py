"""Softmax in the kernels: the formula, and the same bits whatever lies around a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import axis

from conv3dt import conv3d_transpose, engine, plan
from conv3dt.problem import Problem

SIZES = [1, 2, 3, 4, 5, 16, 33, 3000]


@pytest.fixture
def softmax(compiled: str, dtype: str) -> Any:
    """The function of the instruction set that is selected."""
    problem = Problem(1, 1, 1, (axis(1, 1),) * 3, True)
    made = plan.plan_for(problem, plan.Weights(np.ones((1, 1, 1, 1, 1), dtype), None))
    return made.compiled.softmax


def normal(size: int, dtype: str) -> np.ndarray:
    x = np.random.default_rng(size).normal(0, 4, (7, 40, size)).astype(dtype)
    x[0, 0] = 2  # ties
    x[0, 1, 0] = 80
    return x


@pytest.mark.parametrize("size", SIZES)
def test_formula(softmax: Any, dtype: str, size: int) -> None:
    x = normal(size, dtype)
    y = x.copy()
    softmax(y, 1)
    exact = x.astype(np.longdouble)
    shifted = exact - exact.max(-1, keepdims=True)
    want = np.exp(shifted)
    want /= want.sum(-1, keepdims=True)
    # An exponent is rounded to the dtype: an error in proportion to it. So is a long sum.
    bound = (4 + size**0.5 - shifted) * np.finfo(dtype).eps * want + np.finfo(dtype).tiny
    assert (np.abs(y - want) <= bound).all()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_what_is_not_finite_stays_in_its_row(softmax: Any, dtype: str, size: int) -> None:
    x = normal(size, dtype)
    want = x.copy()
    softmax(want, 1)
    x[1, 0, 0] = -np.inf
    x[1, 1, -1] = np.nan
    x[1, 2, 0] = np.inf  # inf - inf
    x[1, 3] = -np.inf
    softmax(x, 1)
    assert x[1, 0, 0] == 0 and abs(x[1, 0].sum() - 1) < 1e-6
    assert np.isnan(x[1, 1:4]).all()
    x[1, :4] = want[1, :4]
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("size", SIZES)
def test_same_bits_for_any_threads_and_rows(softmax: Any, dtype: str, size: int) -> None:
    x = normal(size, dtype)
    want = x.copy()
    softmax(want, 1)
    for threads in (2, 3):
        y = x.copy()
        softmax(y, threads)
        np.testing.assert_array_equal(y, want)
    row = x[3, 5].copy()[None]
    softmax(row, 1)
    np.testing.assert_array_equal(row[0], want[3, 5])


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("filters", [1, 2, 3, 9])
def test_layers_on_any_layout_of_out(
    compiled: str, dtype: str, filters: int, data_format: str
) -> None:
    rng = np.random.default_rng(filters)
    shape = (2, 3, 4, 5, 6) if data_format == "channels_last" else (2, 6, 3, 4, 5)
    x = rng.standard_normal(shape).astype(dtype)
    kernel = rng.standard_normal((2, 2, 2, filters, 6)).astype(dtype)
    arguments: dict[str, Any] = {"strides": 2, "data_format": data_format}
    want = conv3d_transpose(x, kernel, activation="softmax", **arguments)
    plain = conv3d_transpose(x, kernel, **arguments).astype(np.longdouble)
    expected = np.exp(plain - plain.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(want, expected, rtol=100 * np.finfo(dtype).eps)
    wide = np.full((*want.shape[:4], want.shape[4] + 3), np.nan, dtype)
    conv3d_transpose(x, kernel, activation="softmax", out=wide[..., 1:-2], **arguments)
    np.testing.assert_array_equal(wide[..., 1:-2], want)
    assert np.isnan(wide[..., 0]).all() and np.isnan(wide[..., -2:]).all()


def test_numpy_beside_it(compiled: str) -> None:
    """A layer on NumPy's path and one in the kernels agree to float32's rounding."""
    x = np.random.default_rng(0).standard_normal((1, 5, 5, 5, 4), np.float32)
    kernel = np.random.default_rng(1).standard_normal((3, 3, 3, 2, 4), np.float32)
    here = conv3d_transpose(x, kernel, activation="softmax")
    engine.select("numpy")
    there = conv3d_transpose(x, kernel, activation="softmax")
    np.testing.assert_allclose(here, there, atol=3e-6)
