"""A few hundred random problems (see fuzz.py), and that they would find what is wrong.

The default profile is moderate, and repeatable in CI; HYPOTHESIS_PROFILE=heavy draws thousands.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fuzz
import numpy as np
import pytest
from cases import axis
from hypothesis import given, settings
from hypothesis import strategies as st

from conv3dt import plan
from conv3dt.problem import Problem


@st.composite
def cases(draw: st.DrawFn) -> fuzz.Case:
    return fuzz.draw(lambda low, high: draw(st.integers(low, high)))


@settings(max_examples=settings().max_examples // 2)  # for each instruction set
@given(case=cases())
def test_every_algorithm_and_the_public_calls(case: fuzz.Case, isa: str) -> None:
    fuzz.check(case, fuzz.Report())


def test_numbered_problems_are_always_the_same_and_of_every_kind() -> None:
    drawn = [fuzz.numbered(number) for number in range(2000)]
    assert drawn[:50] == [fuzz.numbered(number) for number in range(50)]
    for name in ("batch", "dtype", "integers", "use_bias", "threads", "cast", "algorithm"):
        assert len({getattr(case, name) for case in drawn}) > 1, name
    for i, names in enumerate((fuzz.READ, fuzz.READ, fuzz.READ, fuzz.WRITTEN)):
        assert {case.layouts[i] for case in drawn} == set(names)
    problems = [case.problem for case in drawn]
    assert any(case.repeats for case in drawn)
    assert {problem.channels_last for problem in problems} == {True, False}
    assert {problem.groups == 1 for problem in problems} == {True, False}
    assert {type(case.padding) for case in drawn} == {str, tuple, type(None)}
    axes = [axis for problem in problems for axis in problem.axes]
    assert {0, 1, 2, 5, 61} <= {axis.size for axis in axes}
    for name, least in (("kernel", 5), ("stride", 4), ("dilation", 3)):
        assert {getattr(axis, name) for axis in axes} >= set(range(1, least + 1)), name
    beyond = [a for a in axes if a.crop > (a.size - 1) * a.stride + (a.kernel - 1) * a.dilation]
    assert any(axis.out > 0 for axis in beyond)


def test_command() -> None:
    command = [sys.executable, fuzz.__file__, "--isa", "numpy", "--problems", "20", "--first", "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "numpy: 20 problems" in done.stdout
    assert "im2col" in done.stdout


# ---- it can fail ------------------------------------------------------------------


def nothing(x: np.ndarray, y: np.ndarray) -> None:
    pass


def a_number_off(x: np.ndarray, y: np.ndarray) -> None:
    y[1, 2, 3, 4, 1] *= 1.0001


def a_number_left(x: np.ndarray, y: np.ndarray) -> None:
    y[0, 0, 0, 0, 0] = np.nan


def a_byte_beside_y(x: np.ndarray, y: np.ndarray) -> None:
    y.base[0] = 0


def a_number_of_x(x: np.ndarray, y: np.ndarray) -> None:
    x[0, 0, 0, 0, 0] += 1


@pytest.mark.parametrize(
    ("fault", "team", "message"),
    [
        (nothing, None, ""),
        (a_number_off, None, "numbers are wrong"),
        (a_number_left, None, "numbers are wrong"),
        (a_byte_beside_y, None, "wrote beside its output"),
        (a_number_of_x, None, "wrote to its input"),
        (nothing, 3, "team"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_faults_are_found(
    fault: Callable[[np.ndarray, np.ndarray], None],
    team: int | None,
    message: str,
    compiled: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = plan.Plan.run

    def run(self: plan.Plan, x: np.ndarray, y: np.ndarray, *arguments: Any) -> int:
        its = honest(self, x, y, *arguments)
        fault(x, y)
        return team or its

    case = replace(
        fuzz.numbered(0),
        problem=Problem(3, 5, 1, (axis(2, 3, 2), axis(3, 3, 2), axis(4, 3, 2)), True),
        padding=None,
        batch=2,
        stream=False,
        dtype="float32",
        integers=False,
        activation="linear",
        threads=2,
        at_end=True,
        layouts=("plain", "plain", "plain", "stepped"),
        cast="",
        seed=4,  # the width is the stepped axis
    )
    monkeypatch.setattr(plan.Plan, "run", run)
    if not message:
        fuzz.check(case, fuzz.Report())
        return
    with pytest.raises(AssertionError, match=message):
        fuzz.check(case, fuzz.Report())
