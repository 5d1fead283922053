"""Every algorithm, instruction set, dtype and data format against the oracle, exactly.

Inputs are small integers, so that the order of summation cannot matter; outputs were NaN
before. CONV3DT_EXPECT_ISA names the instruction sets that must have run: a silent fallback
to NumPy would pass everything else here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from cases import (
    COMPILED,
    around,
    axis,
    check,
    exact_case,
    expected,
    integers,
    normal,
    plans,
    run,
    tile,
)
from layers import LAYERS, Layer

from conv3dt import activations, engine, output_pool, plan
from conv3dt.problem import Axis, Problem

STREAM_BYTES = 4 << 20  # as in kernels.pyx

# ---- what runs at all -------------------------------------------------------------


def test_expected_instruction_sets_run() -> None:
    names = os.environ.get("CONV3DT_EXPECT_ISA", "").replace(",", " ").split()
    assert set(names) <= set(COMPILED)
    for name in names:
        engine.select(name)
        assert engine.selected() == name
        for dtype in ("float32", "float64"):
            assert engine.kernels(np.dtype(dtype)) is not None


def test_no_silent_fallback_to_numpy() -> None:
    if os.environ.get("CONV3DT_ALLOW_PURE") == "1":
        pytest.skip("CONV3DT_ALLOW_PURE=1: compiled kernels are not demanded")
    assert COMPILED
    assert "generic" in engine.can()
    assert engine.selected() == (os.environ.get("CONV3DT_ISA") or COMPILED[0])


def test_tiles_accept_ordinary_problems(compiled: str, dtype: str, channels_last: bool) -> None:
    for layer in LAYERS.values():
        problem = layer.small().problem(channels_last)
        _, kernel, bias = integers(problem, dtype=dtype)
        assert "tiles" in [made.algorithm for made in plans(problem, kernel, bias)]


# ---- values -----------------------------------------------------------------------


def _compare(problem: Problem, dtype: str, batch: int = 1, threads: int = 1) -> None:
    x, kernel, bias, want = exact_case(problem, batch)
    x, kernel, bias = (array.astype(dtype) for array in (x, kernel, bias))
    for made in plans(problem, kernel, bias):
        check(run(made, x, threads), want, made)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_published_layers(layer: Layer, isa: str, dtype: str, channels_last: bool) -> None:
    _compare(layer.small().problem(channels_last), dtype, batch=2)


GEOMETRIES = {
    "k1 s1": (1, 1, 1, 0),
    "k2 s2": (2, 2, 1, 0),
    "k3 s1": (3, 1, 1, 1),
    "k3 s2": (3, 2, 1, 1),
    "k4 s2": (4, 2, 1, 1),
    "k1 s3": (1, 3, 1, 0),
    "k2 s3": (2, 3, 1, 1),
    "k3 s1 d2": (3, 1, 2, 2),
    "k2 s2 d3": (2, 2, 3, 1),
    "k3 s2 far crop": (3, 2, 1, 4),
}


def _axes(depth: int, height: int, width: int, geometry: str) -> tuple[Axis, Axis, Axis]:
    kernel, stride, dilation, crop = GEOMETRIES[geometry]
    return (
        axis(depth, kernel, stride, dilation, crop, 1),
        axis(height, kernel, stride, dilation, crop),
        axis(width, kernel, stride, dilation, crop, -1),
    )


def _tile_edges(dtype: str) -> Iterator[tuple[int, int, int]]:
    """(width, in_channels, filters) at, around and across the edges of the register tile."""
    vector, rows, columns = tile(dtype)
    yield from ((width, 3, 2) for width in around(rows, vector))
    yield from ((3, 2, filters) for filters in (1, 2, 3, *around(vector, columns)))
    yield from ((3, channels, 2) for channels in (1, *around(vector)))
    yield rows + 1, vector + 1, columns + 1
    yield 2 * rows + 3, 5, 2 * columns + 3


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_edges_of_the_register_tile(
    geometry: str, compiled: str, dtype: str, channels_last: bool
) -> None:
    for width, channels, filters in _tile_edges(dtype):
        axes = _axes(2, 1, width, geometry)
        _compare(Problem(channels, filters, 1, axes, channels_last), dtype)


@pytest.mark.parametrize("channels", [127, 128, 129, 255, 256, 257, 520])
def test_edges_of_the_blocks_of_sums(
    channels: int, compiled: str, dtype: str, channels_last: bool
) -> None:
    _compare(Problem(channels, 5, 1, _axes(2, 2, 3, "k3 s2"), channels_last), dtype)


@pytest.mark.parametrize("geometry", ["k4 s2", "k3 s1", "k3 s2 far crop", "k3 s1 d2"])
def test_taps_beyond_the_edges_of_small_volumes(
    geometry: str, compiled: str, dtype: str, channels_last: bool
) -> None:
    """Where channels are many, the products with zeros around the input are left out."""
    vector, _, columns = tile(dtype)
    for sizes, groups in product(((4, 4, 4), (1, 2, 5), (3, 1, 17)), (1, 2)):
        filters = groups * (columns + vector // 2)
        problem = Problem(41 * groups, filters, groups, _axes(*sizes, geometry), channels_last)
        _compare(problem, dtype, batch=2, threads=2)


@pytest.mark.parametrize(("groups", "channels", "filters"), [(2, 4, 6), (3, 3, 6), (17, 17, 17)])
def test_groups(
    groups: int, channels: int, filters: int, isa: str, dtype: str, channels_last: bool
) -> None:
    for geometry in ("k2 s2", "k3 s2", "k3 s1"):
        axes = _axes(2, 3, 5, geometry)
        _compare(Problem(channels, filters, groups, axes, channels_last), dtype)


@pytest.mark.parametrize("repeat", [1, 2, 3])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_depthwise(
    geometry: str, repeat: int, compiled: str, dtype: str, channels_last: bool
) -> None:
    """Rows of positions x filters that are shorter and longer than vectors and tiles."""
    vector = tile(dtype)[0]
    for width, channels in (
        (1, 1),
        (vector + 1, 1),
        (3 * vector, 2),
        (5, 3),
        (1, vector),
        (4, 2 * vector),
        (9, vector),
        (7, vector + 1),
    ):
        axes = _axes(2, 3, width, geometry)
        _compare(Problem(channels, channels * repeat, channels, axes, channels_last), dtype, 2)


def test_depthwise_of_more_taps_than_a_block(
    compiled: str, dtype: str, channels_last: bool
) -> None:
    vector = tile(dtype)[0]
    for channels in (2, vector, vector + 1):
        axes = (axis(2, 6, crop=2), axis(3, 6, crop=2), axis(5, 6, crop=2))
        _compare(Problem(channels, channels, channels, axes, channels_last), dtype)


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (1, 1, 9), (1, 9, 1), (9, 1, 1), (0, 2, 2), (2, 0, 2), (2, 2, 0)], ids=str
)
def test_thin_and_empty_volumes(
    sizes: tuple[int, int, int], isa: str, dtype: str, channels_last: bool
) -> None:
    for geometry in GEOMETRIES:
        for batch in (0, 1, 3):
            _compare(Problem(2, 3, 1, _axes(*sizes, geometry), channels_last), dtype, batch)


@pytest.mark.parametrize("cropped", range(3))
def test_axes_without_outputs(cropped: int, isa: str, dtype: str, channels_last: bool) -> None:
    """A crop that takes all of an axis: once an integer division by its 0 positions."""
    for kernel, stride in ((1, 1), (2, 2), (3, 2)):
        full = stride + kernel
        for crop, extra in ((full, 0), (0, -full)):  # from its start, from its end
            axes = [axis(2, kernel, stride) for _ in range(3)]
            axes[cropped] = axis(2, kernel, stride, crop=crop, extra=extra)
            assert axes[cropped].out == 0
            for groups in (1, 2):
                problem = Problem(2, 2, groups, (axes[0], axes[1], axes[2]), channels_last)
                _compare(problem, dtype)


@pytest.mark.parametrize("cropped", range(3))
def test_axes_whose_outputs_no_tap_reaches(
    cropped: int, isa: str, dtype: str, channels_last: bool
) -> None:
    """Nothing but bias: once boxes without sides, and a division by 0."""
    axes = [axis(9, 3), axis(9, 3, 2), axis(9, 5, 2, 3)]
    axes[cropped] = axis(1, 3, 1, 2, crop=6, extra=2)
    assert axes[cropped].out == 1
    _compare(Problem(1, 4, 1, (axes[0], axes[1], axes[2]), channels_last), dtype)


def test_no_channels(isa: str, dtype: str, channels_last: bool) -> None:
    _compare(Problem(0, 3, 1, _axes(2, 3, 4, "k3 s2"), channels_last), dtype)


def test_no_bias(isa: str, dtype: str, channels_last: bool) -> None:
    problem = Problem(5, 3, 1, _axes(2, 3, 4, "k1 s3"), channels_last)
    x, kernel, _ = integers(problem, dtype=dtype)
    want = expected(problem, x, kernel, None)
    for made in plans(problem, kernel, None):
        check(run(made, x), want, made)


def test_axes_of_different_kinds(isa: str, dtype: str, channels_last: bool) -> None:
    kinds = (axis(3, 3, 2, crop=1), axis(4, 1, 3), axis(5, 2, 2))
    for i in range(3):
        axes = (kinds[i], kinds[i - 1], kinds[i - 2])
        _compare(Problem(3, 2, 1, axes, channels_last), dtype, batch=2)


# ---- outputs that are stored past the cache ---------------------------------------


@pytest.mark.parametrize("kind", ["one group", "two groups", "depthwise"])
@pytest.mark.parametrize("geometry", ["k2 s2", "k3 s1"])
def test_large_outputs(
    geometry: str, kind: str, compiled: str, dtype: str, channels_last: bool
) -> None:
    """Streams want whole aligned vectors. Groups may begin within one: that was a crash."""
    vector, _, columns = tile(dtype)
    for filters in (3, vector, columns, columns + vector // 2):
        sums = {"one group": (2, filters, 1), "two groups": (4, 2 * filters, 2)}
        sums["depthwise"] = (filters,) * 3
        problem = Problem(*sums[kind], _axes(3, 4, 5, geometry), channels_last)
        x, kernel, bias, want = exact_case(problem)
        x, kernel, bias = (array.astype(dtype) for array in (x, kernel, bias))
        batch = STREAM_BYTES // (want.size * x.itemsize) + 1
        y = output_pool.empty(problem.y_shape(batch), x.dtype)  # which starts at a vector
        for made in plans(problem, kernel, bias):
            if made.algorithm != "im2col":
                y.fill(np.nan)
                made.run(np.broadcast_to(x, (batch, *x.shape[1:])), y)
                check(y, np.broadcast_to(want, y.shape), made)


@pytest.mark.parametrize(("stride", "filters"), [(2, 1), (2, 2), (2, 5), (4, 1), (4, 3)])
def test_streams_that_are_woven_have_the_bits_of_sums_that_are_kept(
    stride: int, filters: int, compiled: str, dtype: str, channels_last: bool
) -> None:
    """Taps that do not overlap, rows of whole vectors and others, several to a panel, few and many
    bytes. Activations want the sums."""
    vector, _, _ = tile(dtype)
    relu = activations.get("relu")
    long = STREAM_BYTES // (8 * stride * vector * filters) * vector
    for height, width in ((7, vector), (5, 3 * vector), (2, 3 * vector + 1), (1, long)):
        axes = (axis(2, 1), axis(height, 2, 2), axis(width, stride, stride))
        problem = Problem(5, filters, 1, axes, channels_last)
        x, kernel, bias = normal(problem, dtype=dtype)
        made = plan.plan_for(problem, plan.Weights(kernel, bias), "taps")
        assert made.algorithm == "taps"
        linear, kept = (output_pool.empty(problem.y_shape(1), x.dtype) for _ in range(2))
        linear.fill(np.nan)
        made.run(x, linear)
        made.run(x, kept, relu)
        np.testing.assert_array_equal(np.maximum(linear, 0), kept)
        backward = np.full_like(linear, np.nan)
        planes = (1, 2) if channels_last else (2, 3)  # y that runs backwards: fuzzing found NaN
        made.run(x, np.flip(backward, planes))
        np.testing.assert_array_equal(np.flip(backward, planes), linear)


# ---- threads ----------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("geometry", ["k2 s2", "k3 s2", "k4 s2", "k3 s1", "k1 s3"])
def test_teams(
    geometry: str,
    threads: int,
    compiled: str,
    dtype: str,
    channels_last: bool,
    always_parallel: None,
) -> None:
    """Right for any number of threads, and that many did take part: one sample for each."""
    problem = Problem(6, 5, 1, _axes(3, 4, 5, geometry), channels_last)
    x, kernel, bias, want = exact_case(problem, 7)
    x, kernel, bias = (array.astype(dtype) for array in (x, kernel, bias))
    openmp = engine.runtime is not None and engine.runtime.openmp()[0]
    for made in plans(problem, kernel, bias):
        y = np.full(want.shape, np.nan, dtype)
        team = made.run(x, y, threads=engine.threads(threads, problem.multiplications))
        check(y, want, made)
        if made.algorithm != "im2col":
            assert team == (threads if openmp else 1)


# ---- activations ------------------------------------------------------------------

FUSABLE = (
    "linear relu relu6 leaky_relu hard_sigmoid hard_tanh hard_silu softsign exponential sigmoid "
    "silu tanh elu selu softplus gelu"
).split()


@pytest.mark.parametrize("name", FUSABLE)
def test_fused_activations(name: str, isa: str, dtype: str, channels_last: bool) -> None:
    """A kernel's activation and NumPy's agree within a few ULP, special values included."""
    values = np.concatenate(
        [
            np.linspace(-20, 20, 401),
            np.logspace(-30, 4, 69),
            -np.logspace(-30, 4, 69),
            [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 88.8, -103.9, 709.8, -745.2],
        ]
    ).astype(dtype)
    problem = Problem(1, 1, 1, (axis(1, 1), axis(1, 1), axis(len(values), 1)), channels_last)
    x = values.reshape(problem.x_shape(1))
    activation = activations.get(name)
    with np.errstate(all="ignore"):
        want = activation(x)
    for made in plans(problem, np.ones((1, 1, 1, 1, 1), dtype), None):
        y = np.full_like(x, 7)
        made.run(x, y, activation)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
        np.testing.assert_array_equal(y[np.isinf(want)], want[np.isinf(want)])
        # Results below the least normal number may underflow to zero.
        finite = np.isfinite(want)
        eps, tiny = 8 * np.finfo(dtype).eps, np.finfo(dtype).tiny
        np.testing.assert_allclose(y[finite], want[finite], rtol=eps, atol=tiny)


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_activation_reaches_every_voxel_and_gap(
    name: str, isa: str, dtype: str, channels_last: bool
) -> None:
    activation = activations.get(name)
    for geometry, sizes in product(("k1 s3", "k2 s2", "k3 s2"), ((3, 5, 1), (16, 16, 16))):
        problem = Problem(*sizes, _axes(2, 3, 7, geometry), channels_last)
        x, kernel, bias, linear = exact_case(problem)
        x, kernel, bias = (array.astype(dtype) for array in (x, kernel, bias))
        want = activation(linear.astype(dtype))
        for made in plans(problem, kernel, bias):
            y = np.full(want.shape, np.nan, dtype)
            made.run(x, y, activation)
            np.testing.assert_allclose(y, want, rtol=1e-6, atol=0)


# ---- IEEE -------------------------------------------------------------------------


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("geometry", ["k2 s2", "k3 s2", "k4 s2", "k3 s1"])
def test_special_values_in_x(
    special: float, geometry: str, isa: str, dtype: str, channels_last: bool
) -> None:
    """ "direct" puts NaN and Inf exactly where the formula does, also for weights of zero."""
    problem = Problem(3, 4, 1, _axes(2, 3, 5, geometry), channels_last)
    x, kernel, bias = integers(problem, dtype=dtype)
    kernel[..., 1, :] = 0
    x.flat[[4, 31]] = special, 1
    _same_special(problem, x, kernel, bias)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_special_values_in_kernel_and_bias(
    special: float, isa: str, dtype: str, channels_last: bool
) -> None:
    for geometry in ("k2 s2", "k3 s2", "k3 s1", "k1 s3"):
        problem = Problem(3, 4, 1, _axes(2, 3, 5, geometry), channels_last)
        x, kernel, bias = integers(problem, dtype=dtype)
        with_bias = bias.copy()
        with_bias[1] = special
        _same_special(problem, x, kernel, with_bias)
        kernel.flat[5] = special
        _same_special(problem, x, kernel, bias)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_depthwise_takes_weights_that_are_not_finite(
    special: float, compiled: str, dtype: str, channels_last: bool
) -> None:
    """Taps out of range are left out, not multiplied by zeros."""
    for geometry, channels in product(("k2 s2", "k3 s2", "k3 s1"), (3, 16)):
        axes = _axes(2, 3, 5, geometry)
        problem = Problem(channels, channels, channels, axes, channels_last)
        x, kernel, bias = integers(problem, dtype=dtype)
        kernel.flat[5] = special
        made = plan.plan_for(problem, plan.Weights(kernel, bias, channels), "depthwise")
        assert made.algorithm == "depthwise"
        np.testing.assert_array_equal(run(made, x), expected(problem, x, kernel, bias))


def _same_special(problem: Problem, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> None:
    weights = plan.Weights(kernel, bias)
    made = plan.plan_for(problem, weights, "direct")
    assert made.algorithm in ("lanes", "taps", "tiles", "im2col")
    np.testing.assert_array_equal(run(made, x), expected(problem, x, kernel, bias))


@pytest.mark.parametrize("geometry", ["k3 s2", "k4 s2", "k3 s1"])
def test_infinity_under_minimal_filtering(
    geometry: str, compiled: str, dtype: str, channels_last: bool
) -> None:
    """In x it spoils its own tile at most; in the weights it excludes minimal filtering."""
    problem = Problem(32, 32, 1, _axes(12, 12, 12, geometry), channels_last)
    x, kernel, bias = integers(problem, dtype=dtype)
    made = plan.plan_for(problem, plan.Weights(kernel, bias), "winograd")
    assert made.algorithm == "winograd"
    want = run(made, x)
    x.flat[0] = np.inf  # of the first voxel
    y = run(made, x)
    by_formula = ~np.isfinite(expected(problem, x, kernel, bias))
    assert by_formula.any() and not np.isfinite(y[by_formula]).any()
    space = slice(1, 4) if channels_last else slice(2, 5)
    far = np.indices(y.shape)[space].max(axis=0) >= 10  # output voxels
    np.testing.assert_array_equal(y[far], want[far])

    kernel.flat[0] = np.inf
    weights = plan.Weights(kernel, bias)
    assert plan.plan_for(problem, weights, "winograd").algorithm != "winograd"


def test_threads_are_at_most_the_tasks(isa: str, always_parallel: None) -> None:
    for size in (1, 2):
        problem = Problem(3, 5, 1, (axis(size, 1, 1),) * 3, True)
        x, kernel, bias, want = exact_case(problem)
        for made in plans(problem, kernel.astype("f4"), bias.astype("f4")):
            y = np.full(want.shape, np.nan, np.float32)
            team = made.run(x.astype("f4"), y, threads=64)
            assert 1 <= team <= y.size
            check(y, want, made)


def test_overflow_becomes_infinity(isa: str, dtype: str, channels_last: bool) -> None:
    problem = Problem(2, 2, 1, _axes(2, 2, 3, "k3 s2"), channels_last)
    big = np.finfo(dtype).max
    x = np.full(problem.x_shape(1), big, dtype)
    kernel = np.full(problem.kernel_shape, 2, dtype)
    kernel[..., 1, :] = -2
    made = plan.plan_for(problem, plan.Weights(kernel, None), "direct")
    y = run(made, x)
    first, second = (y[..., 0], y[..., 1]) if channels_last else (y[:, 0], y[:, 1])
    reached = first != 0
    assert (first[reached] == np.inf).all() and (second[reached] == -np.inf).all()


def test_denormals_are_preserved(isa: str, dtype: str, channels_last: bool) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    problem = Problem(3, 17, 1, _axes(2, 3, 5, "k2 s2"), channels_last)
    x, kernel, _, want = exact_case(problem)
    bias = np.zeros(problem.filters)
    want = expected(problem, x, kernel, bias)
    x, kernel, bias = (array.astype(dtype) for array in (x, kernel, bias))
    for made in plans(problem, kernel, bias):
        if made.algorithm != "winograd":
            y = run(made, x * tiny)
            np.testing.assert_array_equal(y, want.astype(dtype) * tiny)
            assert np.count_nonzero(y) == np.count_nonzero(want)
    # Afterwards this thread still has gradual underflow.
    assert np.array([tiny], dtype)[0] * np.ones(1, dtype)[0] == tiny
