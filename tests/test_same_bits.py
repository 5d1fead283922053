"""The same numbers give the same bits: for any threads, batch and memory layout.

Inputs round at every step, so that another order of summation would show.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from cases import axis, normal, plans, run
from layers import LAYERS, Layer

from conv3dt import engine
from conv3dt.functional import conv3d_transpose
from conv3dt.problem import Axis, Problem

GEOMETRIES = {
    "k2 s2": (2, 2, 0),
    "k3 s2": (3, 2, 1),
    "k4 s2": (4, 2, 1),
    "k3 s1": (3, 1, 1),
}


def _problem(geometry: str, channels_last: bool, channels: int = 37, filters: int = 19) -> Problem:
    kernel, stride, crop = GEOMETRIES[geometry]
    axes: list[Axis] = [axis(size, kernel, stride, crop=crop) for size in (5, 6, 7)]
    return Problem(channels, filters, 1, (axes[0], axes[1], axes[2]), channels_last)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("filters", [1, 3, 40])
def test_threads_and_batch(
    geometry: str, filters: int, isa: str, dtype: str, channels_last: bool, always_parallel: None
) -> None:
    _same_bits(_problem(geometry, channels_last, filters=filters), dtype)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("channels", "filters"), [(3, 9), (16, 16), (19, 19)])
def test_threads_and_batch_of_depthwise(
    geometry: str,
    channels: int,
    filters: int,
    isa: str,
    dtype: str,
    channels_last: bool,
    always_parallel: None,
) -> None:
    axes = _problem(geometry, channels_last).axes
    _same_bits(Problem(channels, filters, channels, axes, channels_last), dtype)


def _same_bits(problem: Problem, dtype: str) -> None:
    x, kernel, bias = normal(problem, 4, dtype)
    for made in plans(problem, kernel, bias):
        want = run(made, x)
        for threads in (2, 3, 7):
            np.testing.assert_array_equal(run(made, x, threads), want, err_msg=made.algorithm)
        for part in (slice(0, 1), slice(1, 4), slice(3, 4)):
            np.testing.assert_array_equal(run(made, x[part].copy(), 3), want[part])


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_published_layers(
    layer: Layer, isa: str, channels_last: bool, always_parallel: None
) -> None:
    problem = layer.small(5, 33, 18).problem(channels_last)
    x, kernel, bias = normal(problem, 2)
    for made in plans(problem, kernel, bias):
        want = run(made, x)
        np.testing.assert_array_equal(run(made, x, 3), want)
        np.testing.assert_array_equal(run(made, x[1:].copy()), want[1:])


def _layouts(x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The numbers of ``x`` in other places in memory."""
    yield "F-ordered", np.asfortranarray(x)
    for i in range(5):
        index = (slice(None),) * i + (slice(None, None, -1),)
        yield f"axis {i} backwards", x[index].copy()[index]
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1] + 1), x.dtype)
    yield "every other number", _filled(wide[..., 1::2], x)
    yield "slice of the last axis", _filled(wide[..., 1 : 1 + x.shape[-1]], x)
    padded = np.zeros((*x.shape[:2], x.shape[2] + 3, *x.shape[3:]), x.dtype)
    yield "slice of the third axis", _filled(padded[:, :, 1:-2], x)
    thick = np.zeros((*x.shape[:3], x.shape[3] + 3, x.shape[4]), x.dtype)
    yield "slice of the fourth axis", _filled(thick[:, :, :, 2:-1], x)
    yield "big-endian", x.astype(x.dtype.newbyteorder(">"))
    bytes_ = np.zeros(x.nbytes + 1, np.uint8)
    yield "unaligned", _filled(bytes_[1:].view(x.dtype).reshape(x.shape), x)
    reals = np.zeros(x.size + 1, x.dtype)
    yield "not on a vector's boundary", _filled(reals[1:].reshape(x.shape), x)
    records = np.zeros(x.shape, [("tag", "u1"), ("x", x.dtype)])
    yield "field of packed records", _filled(records["x"], x)
    frozen = x.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen


def _filled(view: np.ndarray, x: np.ndarray) -> np.ndarray:
    view[...] = x
    return view


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col", "winograd"])
def test_layouts_of_every_array(
    geometry: str, algorithm: str, isa: str, dtype: str, channels_last: bool
) -> None:
    problem = _problem(geometry, channels_last, 17, 6)
    x, kernel, bias = normal(problem, 2, dtype)
    arguments = {
        "strides": problem.axes[0].stride,
        "padding": problem.axes[0].crop,
        "data_format": "channels_last" if channels_last else "channels_first",
        "algorithm": algorithm,
    }
    want = conv3d_transpose(x, kernel, bias, **arguments)
    for name, same in _layouts(x):
        got = conv3d_transpose(same, kernel, bias, **arguments)
        assert got.dtype == want.dtype, name
        np.testing.assert_array_equal(got, want, err_msg=f"x {name}")
    for name, same in _layouts(kernel):
        got = conv3d_transpose(x, same, bias, **arguments)
        np.testing.assert_array_equal(got, want, err_msg=f"kernel {name}")
    for name, out in _layouts(np.zeros_like(want)):
        if not out.flags.writeable or out.dtype != want.dtype:
            continue
        base = _base(out)
        before = base.copy()
        returned = conv3d_transpose(x, kernel, bias, out=out, **arguments)
        assert returned is out
        np.testing.assert_array_equal(out, want, err_msg=f"out {name}")
        out[...] = 0
        np.testing.assert_array_equal(base, before, err_msg=f"neighbours of out {name}")


def _base(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def test_broadcast_input(isa: str, dtype: str, channels_last: bool) -> None:
    problem = _problem("k3 s2", channels_last)
    x, kernel, bias = normal(problem, 1, dtype)
    arguments = {"strides": 2, "padding": 1}
    arguments["data_format"] = "channels_last" if channels_last else "channels_first"
    thick = np.broadcast_to(x[:, :1], x.shape)
    want = conv3d_transpose(thick.copy(), kernel, bias, **arguments)
    np.testing.assert_array_equal(conv3d_transpose(thick, kernel, bias, **arguments), want)
    many = np.broadcast_to(x, (3, *x.shape[1:]))
    want = conv3d_transpose(x, kernel, bias, **arguments)
    got = conv3d_transpose(many, kernel, bias, **arguments)
    np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))


@pytest.mark.parametrize("name", ["x", "kernel", "bias"])
def test_out_may_overlap_what_is_read(name: str, isa: str, channels_last: bool) -> None:
    axes = (axis(4, 3, crop=1, extra=-1),) * 3  # the output has the input's size
    problem = Problem(6, 6, 1, axes, channels_last)
    x, kernel, bias = normal(problem, 3)
    arrays = {"x": x, "kernel": kernel, "bias": bias}
    arguments = {
        "padding": 1,
        "data_format": "channels_last" if channels_last else "channels_first",
    }
    want = conv3d_transpose(**arrays, **arguments)
    memory = np.zeros(want.size + arrays[name].size, want.dtype)
    inside = memory[want.size // 2 :][: arrays[name].size].reshape(arrays[name].shape)
    inside[...] = arrays[name]
    arrays[name] = inside
    out = memory[: want.size].reshape(want.shape)
    np.testing.assert_array_equal(conv3d_transpose(**arrays, out=out, **arguments), want)


def test_repeated_calls_on_many_shapes(isa: str, always_parallel: None) -> None:
    """Plans and packed weights that are reused, evicted and made again."""
    arguments = {"strides": 2, "padding": "same"}
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 3, 5, 4)).astype(np.float32)
    shapes = [(1, d, h, 3, 4) for d in range(1, 7) for h in range(1, 5)]
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    first = [conv3d_transpose(x, kernel, **arguments) for x in inputs]
    for x, want in reversed(list(zip(inputs, first, strict=True))):
        got = conv3d_transpose(x, kernel, num_threads=3, **arguments)
        np.testing.assert_array_equal(got, want)


def test_instruction_sets_agree_within_rounding(dtype: str, channels_last: bool) -> None:
    problem = _problem("k3 s2", channels_last)
    x, kernel, bias = normal(problem, 1, dtype)
    results = []
    for name in (*engine.built(), "numpy"):
        if name == "numpy" or name in engine.can():
            engine.select(name)
            results += [run(made, x) for made in plans(problem, kernel, bias)]
    bound = 1e-5 if dtype == "float32" else 1e-13
    for result in results:
        np.testing.assert_allclose(result, results[0], rtol=0, atol=bound * np.abs(result).max())
