"""A contestant's process: waits for "go" on its pipe, works, answers; sleeps in between.

    python contestant.py NAME THREADS

One JSON object per line each way. Commands: prepare, result, special, drawn, time, memory.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import CONTESTANTS, Call, Cannot, Contestant
from rows import Row

Reply = dict[str, Any]


def timed(call: Call, calls: int) -> int:
    """Nanoseconds for ``calls`` calls after one that warms the caches the others have emptied.

    The result stays alive while the next is computed, as in a user's ``y = layer(x)``.
    """
    y = call()
    start = time.perf_counter_ns()
    for _ in range(calls):
        y = call()
    elapsed = time.perf_counter_ns() - start
    del y
    return elapsed


class Session:
    """The state between commands: the row being raced and the variant that was best on it."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.row: Row
        self.call: Call

    def hello(self) -> Reply:
        return {"version": self.contestant.version}

    def prepare(self, row: Reply, variant: str | None = None) -> Reply:
        self.row = Row.from_json(row)
        ways = self.contestant.variants(self.row)
        return {**self.choose(ways, variant), "exact": self.contestant.exact(self.row)}

    def choose(self, ways: dict[str, Callable[[], Call]], variant: str | None = None) -> Reply:
        """Build every variant in turn, keep the fastest."""
        self.__dict__.pop("call", None)
        tried: dict[str, float] = {}
        failed: dict[str, str] = {}
        for name, build in ways.items():
            if variant is not None and name != variant:
                continue
            try:
                call = build()
                best = quickest(call)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                failed[name] = str(error).strip().splitlines()[0]
                continue
            if not tried or best < min(tried.values()):
                self.call, kept = call, name
            tried[name] = best
            del call
        if not tried:
            raise Cannot("; ".join(failed.values()) or "no variant")
        ns = tried[kept]
        return {"variant": kept, "tried": tried, "failed": failed, "ns": ns}

    def result(self, path: str) -> Reply:
        """The row's result as a .npy file, NDHWC."""
        found = self.contestant.channels_last(self.row, self.call())
        np.save(path, np.ascontiguousarray(found))
        return {}

    def special(self, what: str, path: str) -> Reply:
        """A result that is never timed, as a .npy file, NDHWC: see ``Contestant.special``."""
        found = self.contestant.special(self.row, what)
        np.save(path, np.ascontiguousarray(found))
        return {}

    def drawn(self, row: Reply, dtype: str, path: str) -> Reply:
        """Results for accuracy.py, as PATH0.npy, PATH1.npy …: see ``Contestant.drawn``."""
        found = self.contestant.drawn(Row.from_json(row), dtype)
        for number, result in enumerate(found):
            np.save(f"{path}{number}.npy", result)
        return {"count": len(found)}

    def time(self, calls: int) -> Reply:
        return {"ns": timed(self.call, calls) / calls}

    def memory(self, row: Reply, variant: str) -> Reply:
        """Bytes beyond input, output and weights at the peak of a call; see memory.py."""
        self.prepare(tiny(Row.from_json(row)).to_json(), variant)
        self.__dict__.pop("call", None)
        before = resident()
        self.prepare(row, variant)
        self.contestant.forget_outputs()
        kept = resident() - before - self.row.x_bytes - self.row.weight_bytes
        reset_peak()
        y = self.call()
        peak = _status("VmHWM")
        del y
        total = peak - before - self.row.x_bytes - self.row.y_bytes - self.row.weight_bytes
        return {"total": total, "kept": kept, "scratch": total - kept}


def tiny(row: Row) -> Row:
    """A small row of the same kind, for whatever a library sets up at its first call."""
    return Row(
        "tiny", 1, 16 * row.groups, (4, 4, 4), 16 * row.groups, row.kernel, row.strides, row.groups,
        row.bias, "valid", None,
        tuple(3 * s + k for k, s in zip(row.kernel, row.strides, strict=True)), (0, 0, 0),
    )  # fmt: skip


def quickest(call: Call) -> float:
    """Nanoseconds of the best of a few calls, about half a second at most."""
    call()
    best = spent = 0
    for _ in range(8):
        start = time.perf_counter_ns()
        y = call()
        elapsed = time.perf_counter_ns() - start
        best, spent = min(best or elapsed, elapsed), spent + elapsed
        if spent > 200_000_000:
            break
    del y
    return best


def resident() -> int:
    """Resident bytes, after the heap has given back what is free."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return _status("VmRSS")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def serve(session: Any) -> None:
    """Answer commands until the pipe closes. Libraries' own prints go to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply = getattr(session, command.pop("do"))(**command)
        except Cannot as reason:
            reply = {"cannot": str(reason)}
        answers.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    name, threads = sys.argv[1], int(sys.argv[2])
    if name == "floor":
        from floor import Floor

        serve(Floor(threads))
    else:
        serve(Session(CONTESTANTS[name](threads)))
