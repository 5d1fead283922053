"""Fixtures: the instruction set, dtype and data format that a test runs in, and profiles."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cases import COMPILED, ISAS
from hypothesis import HealthCheck, settings

from conv3dt import engine

_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("default", max_examples=250, derandomize="CI" in os.environ, **_COMMON)
settings.register_profile("heavy", max_examples=3000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _same_engine_afterwards() -> Iterator[None]:
    """Whatever a test selects or sets is undone."""
    selected, serial_below = engine.selected(), engine.serial_below
    yield
    engine.select(selected)
    engine.serial_below = serial_below
    engine.set_num_threads(None)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of this CPU in turn, and NumPy, selected."""
    engine.select(request.param)
    return str(request.param)


@pytest.fixture(params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> str:
    """Each compiled instruction set of this CPU in turn, selected."""
    engine.select(request.param)
    return str(request.param)


@pytest.fixture(params=("float32", "float64"))
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=(True, False), ids=("channels_last", "channels_first"))
def channels_last(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def always_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the rule that small problems run on one thread."""
    monkeypatch.setattr(engine, "serial_below", 0)
