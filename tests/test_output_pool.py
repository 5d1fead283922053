"""Outputs from recycled memory: never one buffer for two arrays, never kept for good.

What changes the whole process (limits, forks, exit) runs in a subprocess: ``scenario_...``.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import switching

import conv3dt
from conv3dt import engine, memory, output_pool

HERE = Path(__file__).parent
MIB = 1 << 20
F4 = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def _empty_pool_with_default_limit() -> Iterator[None]:
    gc.collect()
    conv3dt.set_output_pool(0)
    conv3dt.set_output_pool(None)
    yield
    conv3dt.set_output_pool(0)
    conv3dt.set_output_pool(None)


def make(mib: float) -> np.ndarray:
    return output_pool.empty((int(mib * MIB) // 1024, 256), F4)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def held() -> int:
    return output_pool.usage()[0]


def run(scenario: Callable[[], None]) -> None:
    name = f"{Path(__file__).stem}.{scenario.__name__}"
    result = subprocess.run(
        [sys.executable, "-c", f"import {Path(__file__).stem}; {name}()"],
        cwd=HERE,
        env=os.environ
        | {"CONV3DT_ISA": engine.selected(), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0 and not result.stderr, result.stdout + result.stderr


# ---- arrays -----------------------------------------------------------------------


@pytest.mark.parametrize("mib", [0.001, 0.01, 1, 4, 5.3, 40])
@pytest.mark.parametrize("limit", [None, 0])
def test_outputs_are_ordinary_arrays(mib: float, limit: int | None) -> None:
    conv3dt.set_output_pool(limit)
    y = make(mib)
    assert type(y) is np.ndarray and y.dtype == F4 and y.ndim == 2
    assert y.flags.c_contiguous and y.flags.writeable and y.flags.aligned
    if y.nbytes >= output_pool.UNALIGNED:
        assert address(y) % output_pool.ALIGNMENT == 0
    y[...] = 3
    for same in (copy.copy(y), copy.deepcopy(y), pickle.loads(pickle.dumps(y))):
        assert not np.may_share_memory(same, y)
        np.testing.assert_array_equal(same, y)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_dtype_and_shape(dtype: str) -> None:
    y = output_pool.empty((2, 33, 70, 100, 17), np.dtype(dtype))
    assert y.shape == (2, 33, 70, 100, 17) and y.dtype == dtype and y.flags.c_contiguous
    assert output_pool.empty((0, 1 << 40), F4).shape == (0, 1 << 40)


def test_memory_of_an_output_cannot_be_copied_by_itself() -> None:
    """A copy of the owner would return the buffer a second time."""
    lease = make(5).base.base
    assert isinstance(lease, output_pool.Lease)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied"):
            attempt(lease)


def test_a_finalized_owner_gives_no_more_arrays() -> None:
    lease = output_pool.Lease(output_pool.Block(MIB), output_pool.Pool(0))
    lease.__del__()
    lease.__del__()
    assert not hasattr(lease, "__array_interface__")


# ---- recycling --------------------------------------------------------------------


@pytest.mark.parametrize(("mib", "whole"), [(4, 4), (4.01, 6), (5, 6), (40, 40), (55.5, 56)])
def test_two_buffers_take_turns(mib: float, whole: int) -> None:
    y = make(mib)
    seen = [address(y)]
    for _ in range(7):
        y = make(mib)
        seen.append(address(y))
    assert len(set(seen)) == 2 and seen[:2] * 4 == seen
    assert held() == whole * MIB  # huge pages


def test_a_layer_called_again_writes_into_memory_it_has_had() -> None:
    resource = pytest.importorskip("resource")
    layer = conv3dt.Conv3DTranspose(16, 2, strides=2, input_shape=(32, 32, 32, 2))
    x = np.ones((1, 32, 32, 32, 2), np.float32)  # 16 MiB out
    for _ in range(3):
        y = layer(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        y = layer(x)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 10 * y.nbytes / 4096 / 20
    np.testing.assert_array_equal(y, layer(x, out=np.empty_like(y)))


def test_a_somewhat_smaller_output_fits_too() -> None:
    first = address(make(40))
    assert address(make(38)) == first
    assert address(make(40)) == first
    assert address(make(30)) != first


@pytest.mark.parametrize(
    "view",
    [
        lambda y: y[5:6, ::-3],
        lambda y: y.ravel()[-1:],
        lambda y: y.view(np.uint8)[:1],
        lambda y: memoryview(y),
        lambda y: np.lib.stride_tricks.as_strided(y, (2, 2), (0, 4)),
        lambda y: np.frombuffer(y, np.uint8)[:3],
        lambda y: np.from_dlpack(y),
        lambda y: np.asarray(y.base.base),
    ],
)
def test_a_view_keeps_the_memory(view: Callable[[np.ndarray], object]) -> None:
    y = make(5)
    start = address(y)
    kept = view(y)
    del y
    assert held() == 0
    assert address(make(5)) != start
    del kept
    conv3dt.set_output_pool(0)
    assert held() == 0


def test_the_last_view_returns_the_memory() -> None:
    y = make(5)
    part = y[3:4].T[None]
    del y
    assert held() == 0
    del part
    assert held() == 6 * MIB


def test_a_cycle_returns_its_memory_when_it_is_collected() -> None:
    class Node:
        def __init__(self) -> None:
            self.me, self.y = self, make(5)
            self.owner = self.y.base.base

    node = Node()
    start = address(node.y)
    gc.disable()
    try:
        del node
        assert address(make(5)) != start
    finally:
        gc.enable()
    gc.collect()
    assert held() == 2 * 6 * MIB


def test_a_resurrected_array_keeps_its_memory() -> None:
    saved = []

    class Phoenix:
        def __init__(self) -> None:
            self.me, self.y = self, make(5)

        def __del__(self) -> None:
            saved.append(self.y)

    start = address(Phoenix().y)
    gc.collect()
    assert len(saved) == 1 and address(saved[0]) == start
    assert held() == 0 and address(make(5)) != start


# ---- threads ----------------------------------------------------------------------


def test_no_two_live_arrays_share_memory_whatever_the_threads() -> None:
    """Each array is filled with a number of its own, which must be there until it dies."""
    conv3dt.set_output_pool(40 * MIB)
    failures = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        alive: list[tuple[int, np.ndarray]] = []
        for i in range(80):
            number = seed * 1000 + i
            y = make(rng.choice((4, 5, 6.5, 8)))
            y[::64] = number
            if rng.random() < 0.3:
                holder = {"y": y[:-1]}
                holder["me"] = holder  # dies in a collection, of any thread
            alive.append((number, y if rng.random() < 0.5 else y[64:]))
            if len(alive) > 5:
                number, y = alive.pop(rng.randrange(6))
                if not (y[::64] == number).all():
                    failures.append(number)
            if rng.random() < 0.02:
                conv3dt.set_output_pool(rng.choice((0, 10, 40)) * MIB)
            if rng.random() < 0.05:
                gc.collect()

    with switching(1e-5), ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert not failures
    assert held() <= 40 * MIB


def test_no_block_is_taken_twice() -> None:
    """The same with nothing but taking and returning, of one idle block or two."""
    pool = output_pool.Pool(4 * MIB)
    failures = []

    def work(number: int) -> None:
        for i in range(4000):
            y = pool.bytes(2 * MIB)[:8].view(np.int64)
            y[0] = tag = number * 4000 + i
            sum(range(i % 50))
            if y[0] != tag:
                failures.append(tag)

    with switching(1e-6), ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert not failures


def test_an_array_may_die_in_another_thread() -> None:
    box = [make(5)]
    start = address(box[0])
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert address(make(5)) == start


# ---- limits -----------------------------------------------------------------------


def test_default_limit_is_a_part_of_the_memory(tmp_path: Path) -> None:
    _, limit = output_pool.usage()
    total = memory.total()
    assert total is not None and limit == total // 4 > 0
    assert total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/a/b", {"a/memory.max": "1048576", "a/b/memory.max": "max"}),
        ("0::/a/b", {"memory.max": "9999999", "a/b/memory.max": "1048576"}),
        (
            "4:memory:/a\n3:cpu,cpuacct:/b\n0::/",
            {
                "memory/a/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.limit_in_bytes": "1048576",
            },
        ),
    ],
)
def test_total_memory_is_the_least_limit(
    tmp_path: Path, membership: str, files: dict[str, str]
) -> None:
    (tmp_path / "membership").write_text(membership + "\n")
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert memory.total(tmp_path / "membership", tmp_path / "fs") == MIB
    assert memory.total(tmp_path / "none", tmp_path / "fs") == memory.total()


def test_limit_bounds_what_is_kept_oldest_first() -> None:
    conv3dt.set_output_pool(20 * MIB)
    arrays = [make(8) for _ in range(5)]
    starts = [address(y) for y in arrays]
    while arrays:
        arrays.pop(0)
        assert held() <= 20 * MIB
    assert held() == 16 * MIB
    assert {address(y) for y in (make(8), make(8))} <= set(starts)
    assert make(40).nbytes == 40 * MIB  # beyond the limit: not from the pool, not into it
    assert held() == 16 * MIB
    conv3dt.set_output_pool(10 * MIB)
    assert held() == 8 * MIB


@pytest.mark.skipif(output_pool._WHEN_IDLE is None, reason="the system has no MADV_FREE")
@pytest.mark.parametrize(("limit", "kept"), [(1600, 200), (200, 64)])
def test_all_but_a_share_is_offered_to_the_system(
    limit: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv3dt.set_output_pool(limit * MIB)
    offered: list[int] = []
    monkeypatch.setattr(
        output_pool.Block,
        "advise",
        lambda block, what: offered.append(block.size) if what == output_pool._WHEN_IDLE else None,
    )
    first, second = make(kept), make(4)
    del first
    assert not offered
    del second
    assert offered == [4 * MIB] and held() == (kept + 4) * MIB
    for _ in range(3):  # a repeated call takes back what it can
        make(kept)
    assert offered == [4 * MIB] + 3 * [kept * MIB]


def test_few_blocks_are_kept() -> None:
    arrays = [make(4) for _ in range(output_pool.MOST_IDLE + 3)]
    del arrays
    assert held() == output_pool.MOST_IDLE * 4 * MIB


def test_off() -> None:
    y, z = make(5), make(5)
    del z
    assert held() == 6 * MIB
    conv3dt.set_output_pool(0)
    assert held() == 0
    del y  # was made before
    make(5)
    assert output_pool.usage() == (0, 0)


@pytest.mark.parametrize("limit", [-1, 1.5, "1", [1]])
def test_bad_limit(limit: object) -> None:
    before = output_pool.usage()
    with pytest.raises(ValueError, match="limit must be a non-negative number of bytes or None"):
        conv3dt.set_output_pool(limit)  # type: ignore[arg-type]
    assert output_pool.usage() == before


def test_limit_may_be_a_numpy_integer_or_enormous() -> None:
    conv3dt.set_output_pool(np.int64(20))  # type: ignore[arg-type]
    assert output_pool.usage() == (0, 20)
    conv3dt.set_output_pool(1 << 100)
    make(5)
    for size in (1 << 50, 1 << 62, (1 << 63) - 1):
        with pytest.raises(MemoryError, match=r"shape \(\d+,\) and dtype uint8"):
            output_pool.empty((size,), np.dtype(np.uint8))


def test_show_config() -> None:
    conv3dt.set_output_pool(7 * MIB)
    make(5)
    file = io.StringIO()
    conv3dt.show_config(file)
    assert f"outputs   {6 * MIB:,} bytes kept for later results, at most {7 * MIB:,}" in (
        file.getvalue()
    )


# ---- whole processes --------------------------------------------------------------


def test_a_failed_allocation_empties_the_pool() -> None:
    pytest.importorskip("resource")
    run(scenario_pressure)


def scenario_pressure() -> None:
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + 300 * MIB, resource.RLIM_INFINITY))
    make(180)
    assert held() == 180 * MIB
    y = make(250)  # not without the memory that is idle
    assert held() == 0
    y[...] = 1
    try:
        make(100)
    except MemoryError as error:
        assert "shape (102400, 256) and dtype float32, 104857600 bytes" in str(error)
    else:
        raise AssertionError("no MemoryError")
    conv3dt.set_output_pool(0)
    del y
    make(250)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_resident_memory_is_flat_over_many_calls() -> None:
    run(scenario_soak)


def scenario_soak() -> None:
    rng = random.Random(0)
    conv3dt.set_output_pool(64 * MIB)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    alive: list[np.ndarray] = []
    levels = []
    for _ in range(5):
        for _ in range(200):
            alive.append(make(rng.uniform(3, 12)))
            alive[-1][::4] = 1
            if len(alive) > 4:
                alive.pop(rng.randrange(5))
        alive.clear()
        levels.append(resident())
    assert held() <= 64 * MIB
    assert max(levels) - levels[0] < 64 * MIB, levels
    conv3dt.set_output_pool(0)
    assert resident() < levels[0] - 20 * MIB, (resident(), levels)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")
def test_parent_and_child_write_into_their_own() -> None:
    run(scenario_fork)


def scenario_fork() -> None:
    y = make(5)
    y[...] = 1
    make(8)
    pid = os.fork()
    if pid == 0:
        assert held() == 0  # the parent's would have to be copied
        y[...] = 2
        del y
        for _ in range(3):
            make(5)[...] = 3
        os._exit(0 if held() == 6 * MIB else 1)
    z = make(8)
    z[...] = 4
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert (y == 1).all() and (z == 4).all()


def test_arrays_may_outlive_the_pool_at_exit() -> None:
    run(scenario_exit)


def scenario_exit() -> None:
    import atexit
    import builtins

    make(8)
    builtins.kept = [make(5), make(40)]  # type: ignore[attr-defined]
    atexit.register(lambda: make(5))
    conv3dt.kept = make(6)  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(ctypes, "pythonapi"), reason="CPython only")
def test_owner_dies_with_its_array() -> None:
    """No reference of our own keeps memory: an array that is alone has one owner, used once."""
    lease = make(5).base.base
    assert sys.getrefcount(lease) == 2
