"""No byte outside any operand is touched: each lies at the edge of memory that may not be."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
from cases import axis, check, exact_case, plans, tile
from guarded import PAGE, Guarded, guarded
from layers import LAYERS, Layer

from conv3dt import engine, plan
from conv3dt.problem import Problem

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")

SPARE = 4096  # bytes that a thread's scratch memory has beyond what it is cut into


class GuardedNumpy:
    """NumPy, as far as it makes arrays for the kernels: they lie at a forbidden page."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.spare = 0

    def __getattr__(self, name: str) -> Any:
        its = getattr(np, name)
        if name not in ("zeros", "zeros_like", "tile", "repeat", "ascontiguousarray"):
            return its
        return lambda *arguments: guarded(its(*arguments), self.at_end)

    def aligned(self, dtype: np.dtype, count: int) -> np.ndarray:
        nbytes = count * dtype.itemsize - self.spare
        return Guarded(nbytes).bytes(nbytes, self.at_end).view(dtype)


def _compare(problem: Problem, dtype: str, at_end: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every array of the kernels, and their scratch memory, at a forbidden page."""
    *arrays, want = exact_case(problem)
    x, kernel, bias = (guarded(array.astype(dtype), at_end) for array in arrays)
    kernels, columns = engine.kernels(x.dtype), plan.bias_columns
    with monkeypatch.context() as patch:
        numpy = GuardedNumpy(at_end)
        patch.setattr(kernels, "np", numpy)
        patch.setattr(kernels, "aligned", partial(numpy.aligned, x.dtype))
        patch.setattr(plan, "bias_columns", lambda *its: guarded(columns(*its), at_end))
        compiled = [made for made in plans(problem, kernel, bias) if made.compiled is not None]
        numpy.spare = SPARE
        for made in compiled:
            for threads in (1, 2):
                y = guarded(np.full(want.shape, np.nan, dtype), at_end)
                made.run(x, y, threads=threads)
                check(y, want, made)


at_both_ends = pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])


def test_the_guard_guards() -> None:
    array = guarded(np.arange(5.0), at_end=True)
    assert array.tolist() == [0, 1, 2, 3, 4]
    assert (array.ctypes.data + array.nbytes) % PAGE == 0
    assert guarded(np.arange(5.0), at_end=False).ctypes.data % PAGE == 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for at_end, step in ((True, 5), (False, -1)):
        code = (
            "import ctypes, numpy, test_guard_pages as t;"
            f"a = t.guarded(numpy.arange(5.0), {at_end});"
            f"ctypes.c_double.from_address(a.ctypes.data + 8 * {step}).value"
        )
        died = subprocess.run([sys.executable, "-c", code], env=environment)
        assert died.returncode == -signal.SIGSEGV


@at_both_ends
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_published_layers(
    layer: Layer,
    compiled: str,
    dtype: str,
    channels_last: bool,
    at_end: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _compare(layer.small(3).problem(channels_last), dtype, at_end, monkeypatch)


@at_both_ends
@pytest.mark.parametrize(
    "geometry", [(1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 2, 1), (3, 1, 1)], ids=str
)
def test_edges_of_the_register_tile(
    geometry: tuple[int, int, int],
    compiled: str,
    dtype: str,
    channels_last: bool,
    at_end: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel, stride, crop = geometry
    vector, rows, columns = tile(dtype)
    for width, channels, filters in (
        (1, 1, 1),
        (rows - 1, 1, 2),
        (rows, vector, columns),
        (rows + 1, vector - 1, columns - 1),
        (vector + 1, vector + 1, columns + 1),
        (2 * rows + 3, 3, vector - 1),
        (2 * vector + 3, 2, 3),
    ):
        if min(width, channels, filters) < 1:
            continue
        axes = (axis(2, kernel, stride, crop=crop), axis(1, kernel, stride, crop=crop))
        space = (*axes, axis(width, kernel, stride, crop=crop))
        _compare(Problem(channels, filters, 1, space, channels_last), dtype, at_end, monkeypatch)


@at_both_ends
def test_depthwise(
    compiled: str, dtype: str, channels_last: bool, at_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = tile(dtype)[0]
    for (kernel, stride), width, channels, repeat in itertools.product(
        ((2, 2), (3, 2), (3, 1)), (1, vector - 1, vector + 1), (1, 3, vector), (1, 2)
    ):
        if width > 0:
            axes = (axis(2, kernel, stride), axis(1, kernel, stride), axis(width, kernel, stride))
            sizes = channels, channels * repeat, channels
            _compare(Problem(*sizes, axes, channels_last), dtype, at_end, monkeypatch)


@at_both_ends
def test_whole_call(compiled: str, channels_last: bool, at_end: bool) -> None:
    """Strided views and ``out=`` at the edge, through validation, packing and epilogue."""
    problem = Problem(5, 7, 1, (axis(3, 3, 2, crop=1),) * 3, channels_last)
    *arrays, want = exact_case(problem, 2)
    x, kernel, bias = (guarded(array.astype(np.float32), at_end) for array in arrays)
    out = guarded(np.full(want.shape, np.nan, np.float32), at_end)
    weights = plan.Weights(kernel, bias)
    plan.execute(problem, weights, x, out=out)
    np.testing.assert_array_equal(out, want)
    backwards = x[:, ::-1, :, ::-1]
    turned = plan.execute(problem, weights, backwards[:, ::-1, :, ::-1])
    np.testing.assert_array_equal(turned, want)
