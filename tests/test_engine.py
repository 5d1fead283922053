"""The engine: built, can and selected agree with the machine; threads stay within bounds."""

from __future__ import annotations

import ctypes
import io
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cases import COMPILED, ISAS

from conv3dt import __main__, cpus, engine

PACKAGE = Path(engine.__file__).parent
EXPECTED = os.environ.get("CONV3DT_EXPECT_ISA", "").replace(",", " ").split()
LARGE = 1 << 40  # work for any number of threads

needs_compiled = pytest.mark.skipif(not COMPILED, reason="no compiled kernels are installed")
needs_openmp = pytest.mark.skipif(
    engine.runtime is None or engine.runtime.openmp()[0] == 0, reason="built without OpenMP"
)


def python(code: str, folder: Path = PACKAGE.parent, **environment: str) -> tuple[int, str, str]:
    """Run ``code`` in a fresh interpreter; an empty value removes a variable."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CONV3DT_", "OMP_"))}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.returncode, result.stdout.strip(), result.stderr


# ---- instruction sets -------------------------------------------------------------


@pytest.mark.skipif(not EXPECTED, reason="CONV3DT_EXPECT_ISA (best first) is not set")
def test_the_instruction_sets_that_ci_names_run() -> None:
    assert tuple(EXPECTED) == COMPILED
    code, selected, _ = python("from conv3dt import engine; print(engine.selected())")
    assert (code, selected) == (0, EXPECTED[0])


def test_selected_is_the_best_unless_overridden() -> None:
    assert engine.selected() == os.environ.get("CONV3DT_ISA", ISAS[0])


@needs_compiled
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of x86")
def test_can_agrees_with_the_kernel() -> None:
    cpuinfo = Path("/proc/cpuinfo").read_text()
    flags = set(cpuinfo.partition("\nflags")[2].partition("\n")[0].split())
    levels = {
        "baseline": {"sse4_2", "popcnt", "cx16", "lahf_lm", "ssse3"},
        "avx2": {"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"},
        "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    }
    can = [isa for isa, needed in levels.items() if needed <= flags]
    assert set(engine.can()) == {"generic", *can}


@pytest.mark.parametrize("isa", ISAS)
def test_override(isa: str) -> None:
    code, selected, _ = python(
        "from conv3dt import engine; print(engine.selected())", CONV3DT_ISA=isa
    )
    assert (code, selected) == (0, isa)


def test_unknown_override() -> None:
    code, _, error = python("import conv3dt.engine", CONV3DT_ISA="sse9")
    assert code == 1
    assert "ValueError: CONV3DT_ISA must be one of" in error and "'sse9'" in error


@needs_compiled
def test_impossible_override() -> None:
    foreign = "neon" if platform.machine() == "x86_64" else "avx512"
    code, _, error = python("import conv3dt.engine", CONV3DT_ISA=foreign)
    assert code == 1
    assert f"RuntimeError: CONV3DT_ISA '{foreign}' is impossible here: built are" in error


@pytest.mark.skipif(len(COMPILED) < 2, reason="needs a best and a lesser instruction set")
def test_foreign_modules_are_never_imported() -> None:
    best, second = COMPILED[:2]
    code, said, error = python(
        f"""
import os, sys
from conv3dt import engine
lesser = tuple(isa for isa in engine.can() if isa != {best!r})
engine.can = lambda: lesser
del os.environ["CONV3DT_ISA"]
engine._select_at_import()
try:
    engine.select({best!r})
except RuntimeError:
    print(engine.selected(), any("{best}_" in name for name in sys.modules))
""",
        CONV3DT_ISA="numpy",
    )
    assert (code, said) == (0, f"{second} False"), error


def test_select_gives_both_dtypes(isa: str) -> None:
    assert engine.selected() == isa
    modules = [engine.kernels(np.dtype(dtype)) for dtype in engine.DTYPES]
    if isa == "numpy":
        assert modules == [None, None]
    else:
        names = [m.__name__ for m in modules if m is not None]
        assert names == [f"conv3dt._compiled.{isa}_{dtype}" for dtype in engine.DTYPES]


def test_a_failed_select_changes_nothing() -> None:
    before = engine.selected()
    with pytest.raises(ValueError, match="'sse9'"):
        engine.select("sse9")
    assert engine.selected() == before


def test_a_package_without_kernels_says_so(tmp_path: Path) -> None:
    """What a checkout that shadows an installed package does."""
    shutil.copytree(
        PACKAGE, tmp_path / "conv3dt", ignore=shutil.ignore_patterns("*.so", "PURE", "__pycache__")
    )
    ask = "import conv3dt; from conv3dt import engine; print(engine.selected(), engine.can())"
    code, _, error = python(ask, tmp_path)
    assert code == 1
    assert "ImportError: conv3dt in " in error and "pip install -e ." in error
    assert python(ask, tmp_path, CONV3DT_ALLOW_PURE="1")[:2] == (0, "numpy ()")
    assert python(ask, tmp_path, CONV3DT_ISA="numpy")[:2] == (0, "numpy ()")
    code, _, error = python(ask, tmp_path, CONV3DT_ISA="generic")
    assert code == 1 and "RuntimeError" in error and "built are none" in error


# ---- threads ----------------------------------------------------------------------


@needs_openmp
def test_explicit_number_is_honoured_above_the_cpus() -> None:
    for wanted in (1, 2, 3, 7, 5):
        assert engine.threads(wanted, LARGE) == wanted
    assert engine.threads(7, LARGE, most=4) == 4


def test_small_work_is_serial() -> None:
    assert engine.threads(None, engine.serial_below - 1) == 1
    assert engine.threads(7, engine.serial_below - 1) == 1


@needs_openmp
def test_the_serial_threshold_can_be_switched_off(always_parallel: None) -> None:
    assert engine.threads(3, 1) == 3


@needs_openmp
def test_set_num_threads() -> None:
    default = engine.get_num_threads()
    engine.set_num_threads(3)
    assert engine.get_num_threads() == engine.threads(None, LARGE) == 3
    assert engine.threads(2, LARGE) == 2
    engine.set_num_threads(10**6)
    assert engine.get_num_threads() == 64
    engine.set_num_threads(None)
    assert engine.get_num_threads() == default


@pytest.mark.parametrize("bad", [0, -5, 2.5, "3", ()])
def test_set_num_threads_refuses(bad: object) -> None:
    with pytest.raises(ValueError, match="num_threads must be a positive integer or None, got"):
        engine.set_num_threads(bad)  # type: ignore[arg-type]


ASK = "from conv3dt import engine; print(engine.get_num_threads(), engine.threads(None, 1 << 40))"


@needs_openmp
def test_omp_num_threads_decides() -> None:
    assert python(ASK, OMP_NUM_THREADS="3")[1] == "3 3"
    assert python(ASK, OMP_NUM_THREADS="100")[1] == "64 64"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks")
def test_affinity_limits_the_default() -> None:
    pin = "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    assert python(f"import os; {pin}; {ASK}")[1] == "1 1"
    if engine.runtime is not None:  # NumPy's own threads do not follow a later change
        assert python(f"import os; from conv3dt import engine; {pin}; {ASK}")[1] == "1 1"


def test_quota_limits_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_quota", 1)
    monkeypatch.setattr(engine, "_openmp_decides", False)
    assert engine.get_num_threads() == engine.threads(None, LARGE) == 1


@needs_openmp
def test_threadpoolctl_limits_hold() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert engine.get_num_threads() == engine.threads(None, LARGE) == 1
        assert engine.threads(2, LARGE) == 2


@needs_openmp
def test_serial_inside_a_parallel_region() -> None:
    gomp = ctypes.CDLL(engine.runtime.openmp()[1])
    if not hasattr(gomp, "GOMP_parallel"):
        pytest.skip("not libgomp")
    seen = []
    region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
        lambda _: seen.append((engine.runtime.in_parallel(), engine.threads(4, LARGE)))
    )
    gomp.GOMP_parallel(region, None, 2, 0)
    assert seen == [(True, 1), (True, 1)]


# ---- CPUs -------------------------------------------------------------------------


def cgroup(tmp_path: Path, membership: str, files: dict[str, str]) -> int | None:
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return cpus.quota(tmp_path / "membership", tmp_path / "fs")


@pytest.mark.parametrize(
    ("membership", "files", "wanted"),
    [
        ("0::/a/b\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000"}, 1),
        ("0::/outside/the/namespace\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        (
            "5:memory:/m\n4:cpu,cpuacct:/d\n",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "250000", "cpu,cpuacct/d/cpu.cfs_period_us": "1e5"},
            3,
        ),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "1e5"}, None),
    ],
)
def test_quota(tmp_path: Path, membership: str, files: dict[str, str], wanted: int | None) -> None:
    assert cgroup(tmp_path, membership, files) == wanted


@pytest.fixture
def group_of_one_cpu() -> Iterator[Path]:
    """A real cgroup, of either version, with a quota of 1 CPU; skips where none can be made."""
    name = f"conv3dt-test-{os.getpid()}"
    for group, file, quota in (
        (cpus.CGROUPS / "cpu" / name, "cpu.cfs_quota_us", "100000"),
        (cpus.CGROUPS / name, "cpu.max", "100000 100000"),
    ):
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / file).exists():
                (group / file).write_text(quota)
                yield group
                return
        finally:
            group.rmdir()
    pytest.skip("no cgroup with a quota can be made here")


def test_quota_of_a_real_group_limits_the_default(group_of_one_cpu: Path) -> None:
    join = f"open({str(group_of_one_cpu / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
    assert python(f"import os; {join}; {ASK}")[1] == "1 1"


def test_no_cgroups(tmp_path: Path) -> None:
    assert cpus.quota(tmp_path / "absent", tmp_path) is None


# ---- report and command line ------------------------------------------------------


def test_show_config(isa: str) -> None:
    file = io.StringIO()
    engine.show_config(file)
    lines = dict(line.split(maxsplit=1) for line in file.getvalue().splitlines())
    assert lines["selected"] == ("NumPy (no compiled kernels)" if isa == "numpy" else isa)
    assert lines["built"] == (", ".join(engine.built()) or "none")
    assert str(PACKAGE) in lines["conv3dt"]


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["info"]) == 0
    assert "selected" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        __main__.main(["info", "more"])
    with pytest.raises(SystemExit):
        __main__.main([])


def test_demo_has_its_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["demo", "--help"])
    assert stopped.value.code == 0
    assert "conv3dt demo" in capsys.readouterr().out
