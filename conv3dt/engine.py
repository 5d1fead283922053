"""The engine: which compiled kernels are built, can run here, and are selected; threads.

Three questions, three answers: *built* modules lie beside this package, *can* is what the
CPU and the operating system support, *selected* is the best of both, or what ``CONV3DT_ISA``
says. A module that this CPU cannot run is never imported. ``show_config()`` prints it all.

Environment variables, read at import:

CONV3DT_ISA            generic, baseline, avx2, avx512, neon or numpy; impossible: RuntimeError
CONV3DT_ALLOW_PURE=1   do without compiled kernels when there are none
"""

from __future__ import annotations

import importlib.util
import operator
import os
import platform
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TextIO

import numpy as np

from . import cpus, output_pool

ISAS = ("avx512", "avx2", "baseline", "neon", "generic")  # best first
DTYPES = ("float32", "float64")
MAX_THREADS = 64

# A team of two gains from about 30 µs on when it has both CPUs, and waits milliseconds when
# another process holds the second one. So calls that cost less than this, in the unit of
# ``cost``, run on one: about 50 to 150 µs (benchmarks/latency.py measures it).
serial_below = 300_000

_COMPILED = f"{__package__}._compiled"
_num_threads: int | None = None
_quota = cpus.quota() or 0
_openmp_decides = bool(os.environ.get("OMP_NUM_THREADS"))
_selected = "numpy"
_kernels: dict[np.dtype, ModuleType] = {}


# ---- instruction sets -------------------------------------------------------------


def _exists(module: str) -> bool:
    return importlib.util.find_spec(f"{_COMPILED}.{module}") is not None


def _load(module: str) -> ModuleType:
    return importlib.import_module(f"{_COMPILED}.{module}")


if _exists("runtime"):
    from ._compiled import runtime
else:  # a pure install
    runtime = None  # type: ignore[assignment]


@cache
def built() -> tuple[str, ...]:
    """Instruction sets whose kernels are installed, best first; ``()`` for a pure install."""
    if runtime is None:
        return ()
    return tuple(isa for isa in ISAS if all(_exists(f"{isa}_{dtype}") for dtype in DTYPES))


def can() -> tuple[str, ...]:
    """Instruction sets that this CPU and operating system support, best first."""
    return () if runtime is None else runtime.can()


def selected() -> str:
    """The instruction set in use; ``"numpy"`` when no compiled kernel is."""
    return _selected


def select(isa: str) -> None:
    """Use the kernels of one instruction set, in the whole process.

    Parameters
    ----------
    isa : str
        One of ``ISAS``, or ``"numpy"`` for no compiled kernels.

    Raises
    ------
    ValueError
        Unknown name.
    RuntimeError
        Not built, or this CPU cannot run it.
    """
    global _selected
    if isa not in (*ISAS, "numpy"):
        raise ValueError(f"CONV3DT_ISA must be one of {', '.join(ISAS)}, numpy, got {isa!r}")
    if isa != "numpy" and (isa not in built() or isa not in can()):
        raise RuntimeError(
            f"CONV3DT_ISA {isa!r} is impossible here: built are {_names(built())}, "
            f"this CPU can run {_names(can())}"
        )
    dtypes = () if isa == "numpy" else DTYPES
    modules = {np.dtype(dtype): _load(f"{isa}_{dtype}") for dtype in dtypes}
    _kernels.clear()
    _kernels.update(modules)
    _selected = isa


def kernels(dtype: np.dtype) -> ModuleType | None:
    """The selected compiled module for float32 or float64; None: use NumPy."""
    return _kernels.get(dtype)


def _names(isas: tuple[str, ...]) -> str:
    return ", ".join(isas) or "none"


def _select_at_import() -> None:
    isa = os.environ.get("CONV3DT_ISA", "")
    if not isa and not built():
        _require_pure()
    select(isa or next((isa for isa in built() if isa in can()), "numpy"))


def _require_pure() -> None:
    """Refuse to run without kernels unless the install or the user said so.

    A checkout shadows an installed package when Python starts in its folder; without this
    the checkout would quietly run everything in NumPy.
    """
    folder = Path(__file__).parent
    if (folder / "_compiled" / "PURE").exists() or os.environ.get("CONV3DT_ALLOW_PURE") == "1":
        return
    raise ImportError(
        f"conv3dt in {folder} has no compiled kernels. In a checkout: `pip install -e .`, or "
        "start Python from another folder to use an installed conv3dt. To run everything in "
        "NumPy, slower: set CONV3DT_ALLOW_PURE=1."
    )


# ---- threads ----------------------------------------------------------------------


def set_num_threads(num_threads: int | None) -> None:
    """Set the number of threads of all later calls that are not given one.

    Parameters
    ----------
    num_threads : int or None
        Honoured even above the number of CPUs, at most 64. None returns to the default:
        what OpenMP says in the calling thread (OMP_NUM_THREADS, threadpoolctl), within the
        affinity mask and the cgroup's quota.

    Raises
    ------
    ValueError
        Not a positive integer.
    """
    global _num_threads
    if num_threads is None:
        _num_threads = None
        return
    try:
        count = operator.index(num_threads)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"num_threads must be a positive integer or None, got {num_threads!r}")
    _num_threads = min(count, MAX_THREADS)


def get_num_threads() -> int:
    """Number of threads that a large call without ``num_threads`` uses in this thread."""
    if _num_threads is not None:
        return _num_threads
    if runtime is None:
        return min(cpus.affinity(), _quota or MAX_THREADS, MAX_THREADS)
    return min(runtime.default_threads(_quota, _openmp_decides), MAX_THREADS)


def threads(num_threads: int | None, work: float, most: int = MAX_THREADS) -> int:
    """Size of the team to ask for.

    Parameters
    ----------
    num_threads : int or None
        Explicit number, already checked; None for the default.
    work : float
        What ``cost`` says; less than ``serial_below`` runs on one thread.
    most : int
        Pieces the work is divided into: no more threads than that.

    Returns
    -------
    int
        1 inside a parallel region. Otherwise threads are tried first, because libgomp ends
        the process when it cannot make one, and what could be made is the answer.
    """
    if work < serial_below:
        return 1
    if runtime is None:
        return min(num_threads or get_num_threads(), most)
    wanted = num_threads or _num_threads or 0
    return runtime.team(wanted, most, _quota, _openmp_decides)


# ---- report -----------------------------------------------------------------------


def show_config(file: TextIO | None = None) -> None:
    """Print versions, instruction sets and threads: what is built, can run, is used.

    Parameters
    ----------
    file : text file, optional
        Where to print; standard output by default.
    """
    version = getattr(sys.modules[__package__], "__version__", "unknown")
    limits = (
        f"affinity {cpus.affinity()}",
        f"cgroup quota {_quota or 'none'}",
        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}",
        f"set_num_threads {_num_threads or 'not set'}",
    )
    rows = [
        ("conv3dt", f"{version} in {Path(__file__).parent}"),
        ("Python", f"{platform.python_version()}, NumPy {np.__version__}, {platform.platform()}"),
        ("selected", "NumPy (no compiled kernels)" if _selected == "numpy" else _selected),
        ("built", _names(built())),
        ("CPU can", _names(can()) if runtime else "not asked: no compiled modules"),
        *_openmp_rows(),
        ("threads", f"{get_num_threads()} by default for large calls ({', '.join(limits)})"),
        ("outputs", "{:,} bytes kept for later results, at most {:,}".format(*output_pool.usage())),
    ]
    for name, value in rows:
        print(f"{name:<10}{value}", file=file)


def _openmp_rows() -> list[tuple[str, str]]:
    if runtime is None:
        return []
    date, library = runtime.openmp()
    return [
        ("compiler", runtime.compiler()),
        ("OpenMP", f"{date}, {library}" if date else "none: one thread"),
        ("fork", runtime.fork_guard()),
    ]


_select_at_import()
