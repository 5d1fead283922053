"""Threads, forks, limits and Ctrl-C: every call finishes with the same bits, or raises.

What could hang or end the process runs in a subprocess: ``scenario_...`` functions below.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from cases import axis, normal, switching

from conv3dt import Conv3DTranspose, engine, plan
from conv3dt.functional import conv3d_transpose
from conv3dt.problem import Problem

HERE = Path(__file__).parent
PROBLEM = Problem(16, 16, 1, (axis(12, 3, 2),) * 3, channels_last=True)
MIB = 1 << 20

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")


def call(threads: int) -> tuple[bytes, int]:
    """A digest of the bits of one result, and the size of the team that made it."""
    engine.serial_below = 0
    x, kernel, bias = normal(PROBLEM)
    y = np.full(PROBLEM.y_shape(1), np.nan, np.float32)
    made = plan.plan_for(PROBLEM, plan.Weights(kernel, bias))
    asked = engine.threads(threads, made.work)
    team = made.run(x, y, threads=asked)
    return sha256(y).digest(), team  # without a copy, for which there may be no memory


def full_team(threads: int) -> int:
    """The team that ``call(threads)`` has when nothing prevents it."""
    has_openmp = engine.runtime is not None and engine.runtime.openmp()[0] > 0
    return threads if engine.selected() != "numpy" and has_openmp else 1


def run(scenario: Callable[[], None], timeout: float = 120, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", f"import test_threads; test_threads.{scenario.__name__}()"],
        cwd=HERE,
        env=os.environ
        | {"CONV3DT_ISA": engine.selected(), "PYTHONPATH": os.pathsep.join(sys.path)}
        | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def in_child(work: Callable[[], object]) -> None:
    """Fork; the child does ``work`` and must end well within 20 seconds."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


# ---- team sizes -------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_team_is_as_asked(isa: str, threads: int) -> None:
    alone, _ = call(1)
    assert call(threads) == (alone, full_team(threads))


def test_eight_python_threads_at_once(isa: str) -> None:
    want = call(2)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(call, [2] * 100):
            assert got == want


def test_eight_python_threads_call_one_layer(isa: str, always_parallel: None) -> None:
    """All begin at once on a layer that has made no plan yet, and on shapes that take turns."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((1, 3, 4, n, 8), np.float32) for n in (2, 5, 9, 12)]
    layer, alone = (
        Conv3DTranspose(6, 3, strides=2, input_shape=(None, None, None, 8)) for _ in "ab"
    )
    alone.set_weights(layer.get_weights())
    want = [alone(x) for x in inputs]
    begin = threading.Barrier(8)

    def work(first: int) -> None:
        begin.wait()
        for i in range(first, first + 24):
            np.testing.assert_array_equal(layer(inputs[i % 4]), want[i % 4])

    with switching(1e-6), ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


# ---- limits of a default call -----------------------------------------------------


def used() -> int:
    """Threads of a large default call; those of its team wait for the next one."""
    x, kernel = np.ones((1, 20, 20, 20, 16), np.float32), np.ones((3, 3, 3, 16, 16), np.float32)
    before = len(os.listdir("/proc/self/task"))
    conv3d_transpose(x, kernel)
    return len(os.listdir("/proc/self/task")) - before + 1


def scenario_no_limit() -> None:
    assert used() == min(len(os.sched_getaffinity(0)), engine._quota or 64)


def scenario_omp_num_threads() -> None:
    assert used() == 3


def scenario_affinity() -> None:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    assert used() == 1


def scenario_threadpoolctl() -> None:
    import threadpoolctl

    with threadpoolctl.threadpool_limits(1):
        assert used() == 1
    scenario_no_limit()


# ---- fork -------------------------------------------------------------------------


def scenario_fork() -> None:
    want = call(4)
    assert want[1] == full_team(4)

    def child() -> None:
        assert call(4) == want
        in_child(lambda: call(4) == want or sys.exit(1))

    for _ in range(3):
        in_child(child)
        assert call(4) == want


def scenario_fork_while_threads_work() -> None:
    want = call(2)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            assert call(2) == want

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(10):
            in_child(lambda: call(2) == want or sys.exit(1))
    finally:
        stop.set()
    for worker in workers:
        worker.join()


def scenario_fork_in_another_thread() -> None:
    want = call(3)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(call, 3).result() == want
        pool.submit(in_child, lambda: call(3) == want or sys.exit(1)).result()


def scenario_pool_of_forks() -> None:
    want = call(3)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(call, [3] * 8) == [want] * 8


def scenario_fork_in_a_parallel_region() -> None:
    """The pool cannot be given back there, so the child stays on one thread."""
    want = call(2)
    gomp = ctypes.CDLL(engine.runtime.openmp()[1])

    def child() -> None:
        assert engine.runtime.fork_guard().endswith(": one thread")
        assert call(2) == (want[0], 1)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def region(_: object) -> None:
        if gomp.omp_get_thread_num() == 0:
            in_child(child)

    gomp.GOMP_parallel(region, None, 2, 0)
    assert call(2) == want


# ---- limits -----------------------------------------------------------------------


def scenario_no_more_threads() -> None:
    want, _ = call(1)
    if os.getuid() == 0:  # the limit does not bind root
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        threading.Thread(target=print).start()
    except RuntimeError:
        pass
    else:
        raise AssertionError("a thread could be started: the limit does not bind")
    assert call(4) == (want, 1)


def scenario_no_more_threads_than_there_are() -> None:
    """The limit comes while a team of two is waiting for its next work."""
    want, _ = call(2)
    if os.getuid() == 0:
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    for threads in (2, 8, 2, 4):
        assert call(threads)[0] == want


def scenario_little_memory() -> None:
    want, _ = call(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 48 * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for _ in range(3):
        got, team = call(64)  # whose stacks alone would be 504 MiB
        assert got == want and team < 64
    x = np.zeros((1, 64, 64, 64, 1), np.float32)
    try:
        conv3d_transpose(x, np.zeros((2, 2, 2, 16, 1), np.float32), strides=2)
    except MemoryError as error:
        assert "shape (1, 128, 128, 128, 16)" in str(error)
    else:
        raise AssertionError("128 MiB were found within the limit of 48")
    assert call(2)[0] == want


# ---- Ctrl-C -----------------------------------------------------------------------


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def seconds_late(call: Callable[[], object], delay: float, threads: int = 2) -> float:
    """From a Ctrl-C, ``delay`` seconds after the call began, to its end.

    In time that the call computed, lest it counts how long a loaded machine let it wait.
    """
    sent = []

    def send() -> None:
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(delay, send)
    timer.start()
    try:
        call()
    except KeyboardInterrupt:
        late = (time.process_time() - sent[0]) / threads
        timer.join()
        return late
    raise AssertionError("the call ended before it could be interrupted")


def scenario_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    want, _ = call(2)
    x = np.ones((32, 16, 16, 16, 64), np.float32)  # 7e11 multiplications: many seconds
    kernel = np.ones((11, 11, 11, 64, 64), np.float32)
    out = np.ones((32, 26, 26, 26, 64), np.float32)
    after = []
    for delay in (1.0, 0.3, 0.3, 0.3):
        late = seconds_late(lambda: conv3d_transpose(x, kernel, out=out, num_threads=2), delay)
        assert late < 1, f"KeyboardInterrupt came {late:.1f} s after the signal"
        after.append(resident())
        assert call(2)[0] == want
    grown = (after[-1] - after[1]) / MIB  # the first call leaves its memory to the allocator
    assert grown < 16, f"{grown:.0f} MiB leaked"


# Long calls of every algorithm, and how many samples make them so.
LONG = {
    "tiles": (Problem(64, 64, 1, (axis(16, 11),) * 3, True), 32),
    "winograd": (Problem(256, 256, 1, (axis(16, 3),) * 3, True), 32),
    "taps": (Problem(256, 2, 1, (axis(32, 11),) * 3, True), 32),
    "lanes": (Problem(16, 4, 1, (axis(64, 11),) * 3, True), 16),
    "depthwise": (Problem(64, 64, 64, (axis(16, 31),) * 3, True), 8),
    "im2col": (Problem(64, 64, 1, (axis(16, 11),) * 3, True), 32),
}


def scenario_interrupt_every_algorithm() -> None:
    assert set(LONG) == set(plan.ALGORITHMS)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = ["im2col"] if engine.selected() == "numpy" else set(LONG) - {"im2col"}
    for name in names:
        problem, batch = LONG[name]
        x = np.broadcast_to(np.ones(problem.x_shape(1), np.float32), problem.x_shape(batch))
        y = np.ones(problem.y_shape(batch), np.float32)
        kernel = np.ones(problem.kernel_shape, np.float32)
        made = plan.plan_for(problem, plan.Weights(kernel, None, problem.groups), name)
        assert made.algorithm == name
        for threads in (1, 2):
            late = seconds_late(lambda: made.run(x, y, threads=threads), 0.2, threads)  # noqa: B023
            assert late < 1, f"{name}: KeyboardInterrupt came {late:.1f} s after the signal"
            assert threading.active_count() == 1, "someone goes on writing"


# ---- the tests of the scenarios ---------------------------------------------------

# The BLAS of NumPy's wheels hangs when the process forks during a product, and ends the
# process when memory is short: conv3dt without kernels cannot promise more than NumPy does.
BEYOND_NUMPY = {scenario_fork_while_threads_work, scenario_little_memory}


def skip_beyond_numpy(scenario: Callable[[], None]) -> None:
    if engine.selected() == "numpy" and scenario in BEYOND_NUMPY:
        pytest.skip("NumPy's BLAS does not survive it either")


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits and /proc")
needs_libgomp = pytest.mark.skipif(
    engine.runtime is None or "libgomp" not in engine.runtime.openmp()[1], reason="not libgomp"
)


@pytest.mark.parametrize(
    "scenario",
    [
        scenario_fork,
        scenario_fork_while_threads_work,
        scenario_fork_in_another_thread,
        scenario_pool_of_forks,
    ],
)
def test_fork(scenario: Callable[[], None]) -> None:
    skip_beyond_numpy(scenario)
    run(scenario)


@needs_libgomp
def test_fork_in_a_parallel_region() -> None:
    run(scenario_fork_in_a_parallel_region)


@needs_linux
@pytest.mark.parametrize(
    "scenario",
    [
        scenario_no_more_threads,
        scenario_no_more_threads_than_there_are,
        # LLVM's libomp ends the process when it has no memory for what it keeps per thread.
        pytest.param(scenario_little_memory, marks=needs_libgomp),
    ],
)
def test_limits(scenario: Callable[[], None]) -> None:
    skip_beyond_numpy(scenario)
    run(scenario, OPENBLAS_NUM_THREADS="1")  # OpenBLAS dies of such limits at import


@needs_linux
@pytest.mark.skipif(full_team(2) == 1, reason="no OpenMP")
@pytest.mark.parametrize(
    ("scenario", "environment"),
    [
        (scenario_no_limit, {}),
        (scenario_omp_num_threads, {"OMP_NUM_THREADS": "3"}),
        (scenario_affinity, {}),
        (scenario_threadpoolctl, {}),
    ],
)
def test_default_team(scenario: Callable[[], None], environment: dict[str, str]) -> None:
    run(scenario, **{"OMP_NUM_THREADS": "", **environment})


@needs_linux
def test_interrupt() -> None:
    run(scenario_interrupt)


@needs_linux
def test_interrupt_every_algorithm(isa: str) -> None:
    run(scenario_interrupt_every_algorithm)
