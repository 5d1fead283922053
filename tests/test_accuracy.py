"""Rounding: sums in blocks, and minimal filtering within twice the direct kernel's error.

Errors are root mean squares against float64, relative to the root mean square of the result.
"""

from __future__ import annotations

from importlib.resources import files
from itertools import product

import numpy as np
import pytest
from cases import COMPILED, axis

from conv3dt import engine, plan
from conv3dt.problem import Axis, Problem

# Taps per axis of every phase that is transformed: 1, 2 or 3, several along two axes or more.
PATTERNS = [taps for taps in product((1, 2, 3), repeat=3) if sum(n > 1 for n in taps) > 1]
# (size, kernel, stride, crop) per axis: layers whose phases have different patterns.
LAYERS = {
    "k4 s2": [(8, 4, 2, 1)] * 3,
    "k3 s2": [(8, 3, 2, 1)] * 3,
    "k5 s2": [(8, 5, 2, 2)] * 3,
    "k344 s122": [(6, 3, 1, 1), (8, 4, 2, 1), (8, 4, 2, 1)],
    "k133 s122": [(6, 1, 1, 0), (8, 3, 2, 1), (8, 3, 2, 1)],
    "k6 s2": [(6, 6, 2, 2)] * 3,
}
TRANSFORMS = LAYERS | {
    f"k{''.join(map(str, taps))} s1": [(7, n, 1, n // 2) for n in taps] for taps in PATTERNS
}


def axes(name: str) -> tuple[Axis, Axis, Axis]:
    first, second, third = (
        axis(size, kernel, stride, crop=crop, extra=-crop)
        for size, kernel, stride, crop in TRANSFORMS[name]
    )
    return first, second, third


def error(problem: Problem, x: np.ndarray, kernel: np.ndarray, algorithm: str) -> float:
    """Of an algorithm in float32, against the tiles in float64 (which the oracle checks)."""
    made = plan.plan_for(problem, plan.Weights(kernel, None), algorithm)
    assert algorithm in (made.algorithm, "direct")
    y = np.empty(problem.y_shape(len(x)), np.float32)
    made.run(x, y)
    exact = np.empty(y.shape, np.float64)
    weights = plan.Weights(kernel.astype(np.float64), None)
    plan.plan_for(problem, weights, "tiles").run(x.astype(np.float64), exact)
    return float(np.sqrt(np.mean((y - exact) ** 2) / np.mean(exact**2)))


@pytest.fixture(autouse=True, params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> str:
    before = engine.selected()
    engine.select(request.param)
    request.addfinalizer(lambda: engine.select(before))
    return str(request.param)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("channels", [16, 20, 24, 33, 39, 48, 64, 160])
def test_minimal_filtering_on_normal_data(name: str, channels: int) -> None:
    problem = Problem(channels, 16, 1, axes(name), True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(problem.x_shape(1), np.float32)
    kernel = rng.standard_normal(problem.kernel_shape, np.float32)
    direct = error(problem, x, kernel, "tiles")
    assert error(problem, x, kernel, "winograd") <= 2 * direct


@pytest.mark.parametrize("name", TRANSFORMS)
def test_minimal_filtering_on_real_features(name: str) -> None:
    """The features of a brain, which are smooth and not centred, as a decoder sees them."""
    with np.load(str(files("conv3dt") / "data" / "brain_head.npz")) as data:
        x = data["features"][:, 28:36, 28:36, 28:36].astype(np.float32)
    problem = Problem(8, 16, 1, axes(name), True)
    kernel = np.random.default_rng(1).standard_normal(problem.kernel_shape, np.float32)
    direct = error(problem, x, kernel, "tiles")
    assert error(problem, x, kernel, "winograd") <= 2 * direct


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("algorithm", ["tiles", "taps", "lanes"])
def test_long_sums_are_summed_in_blocks(algorithm: str, channels_last: bool) -> None:
    """8 taps x 512 channels: one running sum of 4096 terms would have an error above 1e-6."""
    problem = Problem(512, 16, 1, axes("k4 s2"), channels_last)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(problem.x_shape(1), np.float32)
    kernel = rng.standard_normal(problem.kernel_shape, np.float32)
    assert error(problem, x, kernel, algorithm) < 3e-7
