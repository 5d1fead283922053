"""What several tests share: problems, inputs, what is expected, and how a plan is run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import oracle

from conv3dt import engine, plan
from conv3dt.problem import Axis, Problem

COMPILED = tuple(isa for isa in engine.built() if isa in engine.can())
ISAS = (*COMPILED, "numpy")


@contextmanager
def switching(seconds: float) -> Iterator[None]:
    """Python's threads take turns that often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def axis(
    size: int, kernel: int, stride: int = 1, dilation: int = 1, crop: int = 0, extra: int = 0
) -> Axis:
    """An axis whose output ends ``extra`` voxels after (before, if negative) its last tap."""
    full = (size - 1) * stride + (kernel - 1) * dilation + 1
    return Axis(size, max(0, full - crop + extra), kernel, stride, dilation, crop)


def integers(
    problem: Problem, batch: int = 1, dtype: str = "float32", seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, kernel and bias of small integers: float32 holds every sum of them exactly."""
    rng = np.random.default_rng(seed)
    shapes = problem.x_shape(batch), problem.kernel_shape, (problem.filters,)
    x, kernel, bias = (rng.integers(-4, 5, shape).astype(dtype) for shape in shapes)
    return x, kernel, bias


def normal(
    problem: Problem, batch: int = 1, dtype: str = "float32", seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, kernel and bias that round at every step."""
    rng = np.random.default_rng(seed)
    shapes = problem.x_shape(batch), problem.kernel_shape, (problem.filters,)
    x, kernel, bias = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return x, kernel, bias


def expected(
    problem: Problem, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    """The oracle's answer, float64."""
    return oracle.conv3d_transpose(
        x,
        kernel,
        bias,
        [a.stride for a in problem.axes],
        [a.crop for a in problem.axes],
        [a.out for a in problem.axes],
        [a.dilation for a in problem.axes],
        problem.groups,
        problem.channels_last,
    )


@cache
def exact_case(
    problem: Problem, batch: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, kernel and bias of integers in float64, and the oracle's answer, computed once."""
    x, kernel, bias = integers(problem, batch, "float64", seed)
    return x, kernel, bias, expected(problem, x, kernel, bias)


def plans(problem: Problem, kernel: np.ndarray, bias: np.ndarray | None) -> list[plan.Plan]:
    """A plan for every algorithm that accepts the problem; NumPy's, the last, always does."""
    weights = plan.Weights(kernel, bias, problem.groups)
    made = [(name, plan.plan_for(problem, weights, name)) for name in plan.ALGORITHMS]
    accepted = [its for name, its in made if its.algorithm == name]
    assert accepted[-1].algorithm == "im2col"
    return accepted


def run(made: plan.Plan, x: np.ndarray, threads: int = 1) -> np.ndarray:
    """The plan's output, in memory that was NaN before."""
    y = np.full(made.problem.y_shape(len(x)), np.nan, x.dtype)
    made.run(x, y, threads=threads)
    return y


def check(got: np.ndarray, want: np.ndarray, made: plan.Plan) -> None:
    """Equality for integers; minimal filtering may round its fractions."""
    if made.algorithm != "winograd":
        np.testing.assert_array_equal(got, want, err_msg=made.algorithm)
    else:
        scale = np.abs(want).max(initial=1)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale, err_msg="winograd")


def around(*centers: int, least: int = 1) -> list[int]:
    """Sizes at, just below and just above each center, and its double plus 3."""
    found = {size for c in centers for size in (c - 1, c, c + 1, 2 * c + 3)}
    return sorted(size for size in found if size >= least)


def tile(dtype: str) -> tuple[int, int, int]:
    """(VECTOR, MR, NR) of the selected compiled kernels."""
    kernels = engine.kernels(np.dtype(dtype))
    assert kernels is not None
    return kernels.VECTOR, kernels.MR, kernels.NR
