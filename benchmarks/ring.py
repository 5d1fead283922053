"""The parent's side of the race: one process per contestant, one of them running at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rows import Array, Row

HERE = Path(__file__).parent
VENVS = HERE / ".venvs"
# Worker threads of the previous contestant may spin for a moment before they sleep.
SETTLE = 0.01


class Process:
    """A contestant's process and its pipe."""

    def __init__(
        self,
        name: str,
        kind: str,
        python: Path,
        threads: int,
        environment: dict[str, str],
        script: str = "contestant.py",
    ) -> None:
        self.name = name
        self._pipe = subprocess.Popen(
            [str(python), str(HERE / script), kind, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment},
        )  # fmt: skip

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and wait for the answer."""
        assert self._pipe.stdin is not None and self._pipe.stdout is not None
        try:
            self._pipe.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            line = self._pipe.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.name}: process ended with {self._pipe.wait()} during {do}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._pipe.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._pipe.stdin.close()
        self._pipe.wait()


@dataclass
class Entry:
    """Who races: a name for the table, the contestant's kind, its interpreter and environment."""

    name: str
    kind: str
    python: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, threads: int) -> Process:
        return Process(self.name, self.kind, self.python, threads, self.environment)


@contextlib.contextmanager
def exclusive(lock: Path | None) -> Iterator[None]:
    """Hold ``flock`` on a file, so that builds and tests on a shared machine can keep away."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class Options:
    """How long and how strictly a row is raced."""

    rounds: int = 7
    # One answer holds as many calls as fit in this time (seconds), at least one.
    slice: float = 0.05
    errors: bool = True
    lock: Path | None = None


def race_row(
    row: Row, processes: list[Process], options: Options, meter: Process | None = None
) -> dict[str, Any]:
    """Prepare, compare, then time in alternating rounds. Times are in ms."""
    with exclusive(options.lock):
        prepared = {p.name: p.ask("prepare", row=row.to_json()) for p in processes}
        runners = [p for p in processes if "cannot" not in prepared[p.name]]
        compared = compare(row, runners, prepared, options.errors)
        if meter is not None:
            meter.ask("prepare", row=row.to_json())
        times, floor = rounds(runners, prepared, options, meter)
    contestants: dict[str, Any] = {}
    for process in processes:
        ready = prepared[process.name]
        if "cannot" in ready:
            contestants[process.name] = {"cannot": ready["cannot"]}
            continue
        taken = times[process.name]
        contestants[process.name] = {
            "ms": float(np.median(taken)),
            "min_ms": min(taken),
            "rounds_ms": taken,
            "variant": ready["variant"],
            "tried_ms": {name: ns / 1e6 for name, ns in ready["tried"].items()},
            "failed": ready["failed"],
            "exact": ready["exact"],
            **compared[process.name],
        }
    return {
        "row": row.to_json(),
        "shape": row.shape_text,
        "gflop": row.flops / 1e9,
        "needed_gflop": row.needed_flops / 1e9,
        "bytes": {"x": row.x_bytes, "y": row.y_bytes, "weights": row.weight_bytes},
        "floor": floor,
        "contestants": contestants,
    }


def rounds(
    runners: list[Process], prepared: dict[str, Any], options: Options, meter: Process | None
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds per call of each contestant in each round, and the best of the probes.

    The first place moves on from round to round.
    """
    times: dict[str, list[float]] = {p.name: [] for p in runners}
    floor: dict[str, float] = {}
    calls = {p.name: max(1, int(options.slice * 1e9 / prepared[p.name]["ns"])) for p in runners}
    for number in range(options.rounds):
        first = number % max(len(runners), 1)
        for process in runners[first:] + runners[:first]:
            time.sleep(SETTLE)
            answer = process.ask("time", calls=min(calls[process.name], 1000))
            times[process.name].append(answer["ns"] / 1e6)
        if meter is not None:
            time.sleep(SETTLE)
            measured = meter.ask("measure")
            floor = {name: max(value, floor.get(name, 0.0)) for name, value in measured.items()}
    return times, floor


def compare(
    row: Row, runners: list[Process], prepared: dict[str, Any], errors: bool
) -> dict[str, dict[str, float]]:
    """Relative RMS difference of each result: to float64 with ``errors``, else to the first.

    Nobody is timed on a wrong answer: more than 1e-4 of the output's RMS ends the race.
    Stand-ins compute something else and are compared by shape alone.
    """
    found: dict[str, dict[str, float]] = {process.name: {} for process in runners}
    judge = next((p for p in runners if p.name == "PyTorch"), None) if errors else None
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder:
        path = Path(folder) / "y.npy"
        reference = fetch(row, judge, path, special="float64") if judge is not None else None
        for process in runners:
            result = fetch(row, process, path)
            if not prepared[process.name]["exact"]:
                continue
            if reference is None:
                reference = result
                continue
            difference = checked_rms(row, process.name, result, reference)
            found[process.name]["difference" if judge is None else "error"] = difference
            if judge is not None and process.name == "conv3dt":
                direct = fetch(row, process, path, special="direct")
                difference = checked_rms(row, "direct", direct, reference)
                found[process.name]["direct_error"] = difference
    return found


def fetch(row: Row, process: Process, path: Path, special: str | None = None) -> Array:
    """A contestant's result, NDHWC."""
    if special is None:
        process.ask("result", path=str(path))
    else:
        process.ask("special", what=special, path=str(path))
    result: Array = np.load(path)
    if result.shape != row.y_shape:
        raise RuntimeError(f"{process.name}, {row.id}: {result.shape} != {row.y_shape}")
    return result


def checked_rms(row: Row, name: str, result: Array, reference: Array) -> float:
    difference = relative_rms(result, reference)
    if not difference < 1e-4:
        raise RuntimeError(f"{name}, {row.id}: wrong by {difference:.1e} RMS")
    return difference


def relative_rms(result: Array, reference: Array) -> float:
    """RMS of the difference over RMS of the reference; in slabs, to stay small."""
    error = norm = 0.0
    for mine, true in zip(
        result.reshape(-1, result.shape[-1]).swapaxes(0, 1),
        reference.reshape(-1, reference.shape[-1]).swapaxes(0, 1),
        strict=True,
    ):
        true = true.astype(np.float64)
        error += float(np.sum((mine - true) ** 2))
        norm += float(np.sum(true**2))
    return float(np.sqrt(error / norm)) if norm else float(np.sqrt(error))


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def interpreters(venvs: Path, python: Path | None) -> dict[str, Path]:
    """Contestant → interpreter; ours runs in the one given, else in the one running this."""
    bench, tensorflow = venvs / "bench" / "bin" / "python", venvs / "tf" / "bin" / "python"
    return {
        "conv3dt": python or Path(sys.executable),
        "PyTorch": bench,
        "ONNX Runtime": bench,
        "OpenVINO": bench,
        "TensorFlow": tensorflow,
        "floor": bench,
    }
