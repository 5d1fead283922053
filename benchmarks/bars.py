"""What a race between peers does not show; each line with the bar it has to clear.

    python benchmarks/bars.py [overhead] [import] [out] [scaling] [float64]

overhead   median of 100,000 warm layer calls on 1×2×2×2×1 with one filter, kernel included
import     ``import conv3dt`` after NumPy, in fresh processes, with the bytecode of an install
out        the default call against ``out=``, on outputs over 50 MB, after the first call
scaling    1 → 2 threads against what the machine's own floor gains, rows over 1 GFLOP
float64    against float32, both ``algorithm="direct"``, rows over 1 GFLOP
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean, median
from time import perf_counter_ns
from typing import Any

import numpy as np
from report import floors_ms
from ring import HERE, VENVS, Entry, Options, Process, exclusive, interpreters, race_row
from rows import Row, select

sys.path.insert(0, str(HERE.parent))

Settings = argparse.Namespace


def overhead(options: Settings) -> None:
    import conv3dt

    layer = conv3dt.Conv3DTranspose(1, 2, strides=2, input_shape=(2, 2, 2, 1))
    x = np.ones((1, 2, 2, 2, 1), np.float32)
    for _ in range(1000):
        layer(x)
    taken = []
    for _ in range(100_000):
        start = perf_counter_ns()
        layer(x)
        taken.append(perf_counter_ns() - start)
    print(f"overhead: {median(taken) / 1e3:.2f} µs a call, best {min(taken) / 1e3:.2f} (≤ 6)")


def import_time(options: Settings) -> None:
    script = (
        "import numpy, time; start = time.perf_counter(); import conv3dt; "
        "print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": cache,
        }  # fmt: skip
        command = [sys.executable, "-c", script]
        runs = [
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            for _ in range(16)
        ]
    taken = [1e3 * float(run.stdout) for run in runs[1:]]  # the first compiles
    print(f"import: {median(taken):.1f} ms after numpy, best {min(taken):.1f} (≤ 30)")


def out(options: Settings) -> None:
    from peers import Conv3dt

    ours = Conv3dt(options.threads)
    for row in select(options.rows, False, None):
        if row.y_bytes > 50e6:
            compare_out(row, *ours.layer(row))


def compare_out(row: Row, layer: Any, x: Any) -> None:
    into = np.empty_like(layer(x))
    default, given = alternate(lambda: layer(x), lambda: layer(x, out=into))
    times = f"default {default:.2f} ms, out= {given:.2f} ms"
    print(f"out: {row.id}: {times}: {default / given:.3f} (≤ 1.15)")


def alternate(one: Callable[[], Any], other: Callable[[], Any]) -> tuple[float, float]:
    """Medians in ms of two calls in turn; results stay alive until the next, as with a user."""
    times: tuple[list[int], list[int]] = ([], [])
    kept: list[Any] = [None, None]
    for _ in range(11):
        for i, call in enumerate((one, other)):
            for warm in (True, False):
                start = perf_counter_ns()
                kept[i] = call()
                if not warm:
                    times[i].append(perf_counter_ns() - start)
    return median(times[0][1:]) / 1e6, median(times[1][1:]) / 1e6


def scaling(options: Settings) -> None:
    """The same layer on 1 and on 2 threads, in alternating rounds, and the floors after them.

    The bar is what the larger floor gains, almost always the multiply-adds'. What the traffic
    gains is printed too: a row that waits for both cannot gain more than something between.
    """
    entry = ours(options, "conv3dt", {"RACE_ALGORITHM": options.algorithm})
    meter = Entry("floor", "floor", interpreters(options.venvs, options.python)["floor"])
    processes = [replace(entry, name=str(t)).start(t) for t in (1, 2)]
    meters = [meter.start(t) for t in (1, 2)]
    parts = []
    for row in large_rows(options):
        raced = race_row(row, processes, Options(errors=False, lock=options.lock))
        with exclusive(options.lock):
            floors = both_floors(row, raced, meters)
        gain = raced["contestants"]["1"]["ms"] / raced["contestants"]["2"]["ms"]
        own = max(floors[0]) / max(floors[1])
        traffic = floors[0][1] / floors[1][1]
        share = floors[1][1] / max(floors[1])
        parts.append(gain / own)
        print(
            f"scaling: {row.id}: {gain:.2f}, machine {own:.2f}: {gain / own:.3f} (≥ 0.93); "
            f"its traffic, {share:.2f} of the floor's time, gains {traffic:.2f}"
        )
    summary("scaling", parts)
    for process in [*processes, *meters]:
        process.close()


def both_floors(
    row: Row, raced: dict[str, Any], meters: list[Process]
) -> list[tuple[float, float]]:
    """Milliseconds of the row's floors on 1 and on 2 threads: the best probes of 7 rounds."""
    best: list[dict[str, float]] = [{}, {}]
    for meter in meters:
        meter.ask("prepare", row=row.to_json())
    for _ in range(7):
        for found, meter in zip(best, meters, strict=True):
            for name, value in meter.ask("measure").items():
                found[name] = max(value, found.get(name, 0.0))
    return [floors_ms({**raced, "floor": found}) for found in best]


def float64(options: Settings) -> None:
    names = ("float32", "float64")
    direct = {"RACE_ALGORITHM": "direct"}
    processes = [
        ours(options, n, {**direct, "RACE_DTYPE": n}).start(options.threads) for n in names
    ]
    parts = []
    for row in large_rows(options):
        raced = race_row(row, processes, Options(errors=False, lock=options.lock))["contestants"]
        parts.append(raced["float32"]["ms"] / raced["float64"]["ms"])
        print(f"float64: {row.id}: {parts[-1]:.3f} of float32's speed (≥ 0.45)")
    summary("float64", parts)
    for process in processes:
        process.close()


def ours(options: Settings, name: str, environment: dict[str, str]) -> Entry:
    python = interpreters(options.venvs, options.python)["conv3dt"]
    return Entry(name, "conv3dt", python, {"PYTHONPATH": str(HERE.parent), **environment})


def large_rows(options: Settings) -> list[Row]:
    return [row for row in select(options.rows, False, None) if row.flops > 1e9]


def summary(what: str, parts: list[float]) -> None:
    if parts:
        print(f"{what}: geometric mean {geometric_mean(parts):.3f}, worst {min(parts):.3f}")


BARS: dict[str, Callable[[Settings], None]] = {
    "overhead": overhead,
    "import": import_time,
    "out": out,
    "scaling": scaling,
    "float64": float64,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bars", nargs="*", metavar="BAR", help=f"of {', '.join(BARS)}; default: all")
    add("--rows")
    add("--threads", type=int, default=2)
    add("--algorithm", default="auto")
    add("--python", type=Path)
    add("--venvs", type=Path, default=VENVS)
    add("--lock", type=Path)
    options = parser.parse_args()
    for name in options.bars or BARS:
        if name not in BARS:
            parser.error(f"bar must be one of {', '.join(BARS)}, got {name}")
        # The bars that race hold the lock row by row.
        with exclusive(None if name in ("scaling", "float64") else options.lock):
            BARS[name](options)


if __name__ == "__main__":
    main()
