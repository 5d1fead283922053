"""The process that conv3dt is embedded in keeps its state: whatever the host had set, stays.

Each scenario runs in a process of its own, and looks before conv3dt is imported.
"""

from __future__ import annotations

import ctypes
import locale
import os
import platform
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
FTZ_DAZ_DOWN = 0x8000 | 0x40 | 0x2000  # flush to zero, denormals are zeros, round down
DOUBLE_UP = 0x0100 | 0x0800  # x87, changed bits: 53 of them instead of 64, round up

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and libc's environ")
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="registers of x86")


def use_everything() -> None:
    """Import every kernel, run every algorithm on threads, build a layer."""
    import conv3dt
    from conv3dt import engine

    engine.serial_below = 0
    rng = np.random.default_rng(0)
    for isa in (*engine.built(), "numpy"):
        if isa != "numpy" and isa not in engine.can():
            continue
        engine.select(isa)
        for dtype in ("float16", "float32", "float64"):
            x = rng.standard_normal((2, 4, 5, 6, 16)).astype(dtype)
            kernel = rng.standard_normal((3, 3, 3, 16, 16)).astype(dtype)
            for algorithm in ("direct", "winograd", "im2col"):
                for filters, activation in ((16, "gelu"), (1, "softmax")):
                    conv3dt.conv3d_transpose(
                        x, kernel[..., :filters, :], activation=activation,
                        algorithm=algorithm, num_threads=3,
                    )  # fmt: skip
            conv3dt.conv3d_transpose(x, kernel[..., :1, :], groups=16, num_threads=3)
    layer = conv3dt.Conv3DTranspose(4, 2, strides=2, input_shape=(32, 32, 32, 2))
    for _ in range(3):
        layer(np.ones((2, 64, 64, 32, 2), np.float32))  # an output for the pool
    conv3dt.set_output_pool(0)


def run(scenario: Callable[[], None]) -> None:
    name = f"test_host_state.{scenario.__name__}"
    result = subprocess.run(
        [sys.executable, "-c", f"import test_host_state; {name}()"],
        cwd=HERE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr


# ---- the floating-point environment -----------------------------------------------


def control_words() -> tuple[int, int]:
    """(x87 control word, MXCSR without its status flags) of this thread."""
    env = ctypes.create_string_buffer(64)
    assert ctypes.CDLL(None).fegetenv(env) == 0
    mxcsr = int.from_bytes(env.raw[28:32], "little")
    return int.from_bytes(env.raw[0:2], "little"), mxcsr & ~0x3F


def set_control_words(x87: int, mxcsr: int) -> None:
    env = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    assert libc.fegetenv(env) == 0
    words = x87.to_bytes(2, "little") + env.raw[2:28] + mxcsr.to_bytes(4, "little")
    assert libc.fesetenv(words + env.raw[32:]) == 0


def scenario_default_control_words() -> None:
    before = control_words()
    use_everything()
    assert control_words() == before


def scenario_unusual_control_words() -> None:
    x87, mxcsr = control_words()
    unusual = x87 ^ DOUBLE_UP, mxcsr | FTZ_DAZ_DOWN
    set_control_words(*unusual)
    assert control_words() == unusual != (x87, mxcsr)
    use_everything()
    assert control_words() == unusual


@needs_linux
@needs_x86
@pytest.mark.parametrize(
    "scenario", [scenario_default_control_words, scenario_unusual_control_words]
)
def test_floating_point_control_words(scenario: Callable[[], None]) -> None:
    run(scenario)


# ---- everything else --------------------------------------------------------------


def c_environment() -> list[bytes]:
    """What libraries read, beside the copy of it that is ``os.environ``."""
    entries = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    found = []
    while entry := entries[len(found)]:
        found.append(entry)
    return found


def scenario_environment() -> None:
    before, copy = c_environment(), dict(os.environ)
    use_everything()
    assert c_environment() == before
    assert dict(os.environ) == copy


def scenario_process() -> None:
    """Signals, files, CPUs, NumPy's settings, random numbers, thread limits."""
    from threadpoolctl import threadpool_info  # sets KMP_DUPLICATE_LIB_OK

    np.seterr(over="ignore", invalid="print")
    state = {
        "signals": lambda: [signal.getsignal(s) for s in signal.valid_signals()],
        "files": lambda: len(os.listdir("/proc/self/fd")),
        "affinity": lambda: os.sched_getaffinity(0),
        "folder": os.getcwd,
        "locale": lambda: locale.setlocale(locale.LC_ALL),
        "umask": lambda: Path("/proc/self/status").read_text().partition("Umask:")[2][:6],
        "errors of NumPy": np.geterr,
        "random numbers": lambda: repr(np.random.get_state()),
        "warnings": lambda: list(warnings.filters),
        "switch interval": sys.getswitchinterval,
        "threads": lambda: {
            i["filepath"]: i["num_threads"] for i in threadpool_info() if i["filepath"] in known
        },
    }
    known = {i["filepath"] for i in threadpool_info()}
    before = {name: look() for name, look in state.items()}
    use_everything()
    for name, look in state.items():
        assert look() == before[name], name


@needs_linux
@pytest.mark.parametrize("scenario", [scenario_environment, scenario_process])
def test_process(scenario: Callable[[], None]) -> None:
    run(scenario)
