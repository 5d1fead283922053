"""NumPy's algorithm: the formula, its IEEE special values, its memory and its threads."""

from __future__ import annotations

import threading
import tracemalloc
from itertools import product

import numpy as np
import pytest
from cases import axis, exact_case, expected, integers, normal
from layers import LAYERS
from threadpoolctl import ThreadpoolController

from conv3dt import col2im
from conv3dt.problem import Axis, Problem

AXES = {
    "k3 s2": axis(4, 3, 2, crop=1, extra=1),
    "k4 s2": axis(3, 4, 2, crop=1, extra=-1),
    "k1 s3": axis(3, 1, 3, extra=2),
    "k2 s3 d2": axis(3, 2, 3, 2, crop=2),
    "empty input": Axis(0, 2, 3, 1, 1, 0),
    "beyond the taps": Axis(2, 4, 2, 1, 1, 9),
}


def _run(problem: Problem, kernel, bias, x, threads: int = 1) -> np.ndarray:  # type: ignore[no-untyped-def]
    y = np.full(problem.y_shape(len(x)), np.nan, x.dtype)
    col2im.run(problem, kernel, bias, x, y, threads)
    return y


def _problem(*names: str, channels_last: bool, groups: int = 1) -> Problem:
    depth, height, width = (AXES[name] for name in names)
    return Problem(2 * groups, 3 * groups, groups, (depth, height, width), channels_last)


@pytest.mark.parametrize("names", list(product(AXES, repeat=3)), ids="-".join)
def test_equals_the_oracle(names: tuple[str, ...]) -> None:
    for channels_last in (True, False):
        problem = _problem(*names, channels_last=channels_last)
        x, kernel, bias, want = exact_case(problem, batch=2)
        got = _run(problem, *(a.astype(np.float32) for a in (kernel, bias, x)))
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("scratch", [1, 100, 700, 5000])
@pytest.mark.parametrize("groups", [1, 3])
def test_slabs_of_any_size(
    scratch: int, groups: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(col2im, "SCRATCH_BYTES", scratch)
    problem = _problem("k3 s2", "k4 s2", "k2 s3 d2", channels_last=channels_last, groups=groups)
    x, kernel, bias, want = exact_case(problem)
    for threads in (1, 3):
        np.testing.assert_array_equal(_run(problem, kernel, bias, x, threads), want)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_published_layers(layer, channels_last: bool) -> None:  # type: ignore[no-untyped-def]
    problem = layer.small().problem(channels_last)
    x, kernel, bias, want = exact_case(problem)
    np.testing.assert_array_equal(_run(problem, kernel, bias, x), want)
    np.testing.assert_array_equal(
        _run(problem, kernel, None, x), expected(problem, x, kernel, None)
    )


def test_no_channels_is_all_bias(channels_last: bool) -> None:
    axes = (AXES["k3 s2"],) * 3
    problem = Problem(0, 2, 1, axes, channels_last)
    x, kernel, bias = integers(problem)
    np.testing.assert_array_equal(
        _run(problem, kernel, bias, x), expected(problem, x, kernel, bias)
    )


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_exactly_where_the_formula_puts_them(
    special: float, channels_last: bool
) -> None:
    problem = _problem("k3 s2", "k1 s3", "k4 s2", channels_last=channels_last)
    x, kernel, bias = integers(problem, batch=2)
    x.flat[5] = special
    kernel[:, :, 1] = 0
    np.testing.assert_array_equal(
        _run(problem, kernel, bias, x), expected(problem, x, kernel, bias)
    )
    x, kernel, bias = integers(problem)
    kernel.flat[7] = special
    np.testing.assert_array_equal(
        _run(problem, kernel, bias, x), expected(problem, x, kernel, bias)
    )


def test_same_bits_for_any_threads_batch_and_strides(dtype: str, channels_last: bool) -> None:
    axes = (axis(9, 3, 2, crop=1), axis(40, 3, 2, crop=1), axis(37, 4, 2, crop=1))
    problem = Problem(17, 13, 1, axes, channels_last)
    x, kernel, bias = normal(problem, 3, dtype)
    want = _run(problem, kernel, bias, x)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(_run(problem, kernel, bias, x, threads), want)
    np.testing.assert_array_equal(_run(problem, kernel, bias, x[1:2]), want[1:2])
    for same in (np.asfortranarray(x), x[..., ::-1].copy()[..., ::-1]):
        np.testing.assert_array_equal(_run(problem, kernel, bias, same), want)
    wide = np.zeros((*want.shape[:-1], want.shape[-1] * 2), dtype)
    col2im.run(problem, kernel, bias, x, wide[..., 1::2])
    np.testing.assert_array_equal(wide[..., 1::2], want)
    assert not wide[..., ::2].any()


def test_scratch_memory_is_bounded(channels_last: bool) -> None:
    axes = (axis(64, 3, 2), axis(48, 3, 2), axis(48, 3, 2))
    problem = Problem(8, 4, 1, axes, channels_last)  # all columns at once would be 64 MB
    x, kernel, bias = integers(problem)
    y = np.empty(problem.y_shape(1), x.dtype)
    tracemalloc.start()
    try:
        col2im.run(problem, kernel, bias, x, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * col2im.SCRATCH_BYTES


def test_blas_gets_its_threads_back() -> None:
    problem = _problem("k3 s2", "k3 s2", "k3 s2", channels_last=True)
    x, kernel, bias = integers(problem)
    controller = ThreadpoolController().select(user_api="blas")
    before = [library["num_threads"] for library in controller.info()]
    callers = [
        threading.Thread(target=lambda: [_run(problem, kernel, bias, x) for _ in range(20)])
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [library["num_threads"] for library in controller.info()] == before


def test_goes_on_without_threads_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThread:
        def __init__(self, **_: object) -> None: ...

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(col2im, "Thread", NoThread)
    problem = _problem("k3 s2", "k3 s2", "k3 s2", channels_last=True)
    x, kernel, bias, want = exact_case(problem)
    np.testing.assert_array_equal(_run(problem, kernel, bias, x, 4), want)


@pytest.mark.parametrize("culprit", range(4))
def test_an_error_on_any_thread_reaches_the_caller(culprit: int) -> None:
    def work(chunk: int) -> None:
        if chunk == culprit:
            raise MemoryError("no memory")

    with pytest.raises(MemoryError, match="no memory"):
        col2im._share(work, range(4), 3)


def test_a_kernel_of_no_numbers_takes_no_time() -> None:
    """2**31 taps, but no channels."""
    axes = (Axis(1, 1, 1, 1, 1, 0), *[Axis(1, 1, 46341, 1, 1, 23170)] * 2)
    problem = Problem(0, 1, 1, axes, True)
    x, kernel, bias = integers(problem)
    np.testing.assert_array_equal(_run(problem, kernel, bias, x), bias.reshape(1, 1, 1, 1, 1))
