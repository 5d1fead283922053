"""Small calls beside a busy neighbour, and where a second thread begins to pay.

    python benchmarks/latency.py [bar] [threshold]

bar        a process computes on another CPU; p99 of calls that take about 30 µs, by default and
           with ``num_threads=1``, in turn: the ratio has to stay within 1.5
threshold  medians and p99 of two threads over one on layers of growing size, alone and beside the
           busy process, and whether a default call takes two (``engine.serial_below``): where it
           does, two have to gain 1.2x alone, to be worth the wait for a CPU that is busy
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np
from ring import HERE, exclusive

sys.path.insert(0, str(HERE.parent))
import conv3dt  # noqa: E402
from conv3dt import engine, plan  # noqa: E402
from conv3dt.problem import Axis, Problem, keras_axis  # noqa: E402

BUSY = "import os, sys; os.sched_setaffinity(0, [int(sys.argv[1])])\nwhile True: pass"
MICROSECONDS = 30
WORTH = 1.2
Call = Callable[[], Any]


class Kind(NamedTuple):
    """Layers of a kind, by channels in and out, kernel and groups; they grow with their input."""

    channels: int
    filters: int
    kernel: int
    groups: int = 1

    def call(self, voxels: int, num_threads: int | None) -> Call:
        """A layer that doubles each axis of ``voxels`` 4 x 4 planes, ready to run."""
        layer = conv3dt.Conv3DTranspose(
            self.filters, self.kernel, strides=2, padding="same", groups=self.groups,
            input_shape=(voxels, 4, 4, self.channels), num_threads=num_threads,
        )  # fmt: skip
        x = np.random.default_rng(0).standard_normal((1, voxels, 4, 4, self.channels), np.float32)
        return lambda: layer(x)

    def work(self, voxels: int) -> float:
        """What the plan believes it costs, in vector multiply-adds."""
        axes = []
        for size in (voxels, 4, 4):
            out, crop = keras_axis(size, self.kernel, 2, 1, "same", None)
            axes.append(Axis(size, out, self.kernel, 2, 1, crop))
        problem = Problem(self.channels, self.filters, self.groups, tuple(axes), True)
        weights = plan.Weights(np.zeros(problem.kernel_shape, np.float32), None, self.groups)
        return plan.plan_for(problem, weights).work


KINDS = {
    "k2, 16→16": Kind(16, 16, 2),
    "k3, 16→16": Kind(16, 16, 3),
    "k4, 32→16": Kind(32, 16, 4),
    "k2, 8→2": Kind(8, 2, 2),
    "k4, 32→1": Kind(32, 1, 4),
    "k3, depthwise 32": Kind(32, 32, 3, 32),
}


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """A process that never sleeps, on the last CPU that this one may use."""
    cpu = max(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(cpu)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def in_turn(one: Call, other: Call, calls: int) -> tuple[list[float], list[float]]:
    """Microseconds of each call, ascending."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(calls):
        for call, found in zip((one, other), times, strict=True):
            start = perf_counter_ns()
            call()
            found.append((perf_counter_ns() - start) / 1e3)
    return sorted(times[0]), sorted(times[1])


def p99(ascending: list[float]) -> float:
    return ascending[len(ascending) * 99 // 100]


def voxels_of(kind: Kind, microseconds: float) -> int:
    """The smallest layer of the kind whose call takes so long on one thread."""
    for voxels in range(1, 1000):
        taken, _ = in_turn(kind.call(voxels, 1), lambda: None, 100)
        if median(taken) >= microseconds:
            break
    return voxels


def bar(options: argparse.Namespace) -> bool:
    """Whether the ratio of p99 holds for all kinds, as the median of five rounds."""
    met = True
    for name, kind in KINDS.items():
        voxels = voxels_of(kind, MICROSECONDS)
        default, one = kind.call(voxels, None), kind.call(voxels, 1)
        with busy():
            rounds = [in_turn(default, one, options.calls) for _ in range(5)]
        ratio = median(p99(a) / p99(b) for a, b in rounds)
        met = met and ratio <= 1.5
        print(
            f"bar: {name} @{voxels}×4×4, cost {kind.work(voxels):,.0f}, "
            f"{median(rounds[0][1]):.0f} µs; p99 beside a busy process: "
            f"default {median(p99(a) for a, _ in rounds):.0f} µs, "
            f"one thread {median(p99(b) for _, b in rounds):.0f} µs, ratio {ratio:.2f} (≤ 1.5)"
        )
    return met


def threshold(options: argparse.Namespace) -> bool:
    """The table; whether two threads are worth it wherever a default call takes them."""
    engine.serial_below, limit = 0, engine.serial_below
    print(f"threshold: {limit:,}; µs of one thread, then two ÷ one")
    print("| layer | cost | one | alone | p99 | busy | p99, busy | default |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    met = True
    for name, kind in KINDS.items():
        for voxels in (1, 4, 8, 16, 32, 64, 128):
            two, one = kind.call(voxels, 2), kind.call(voxels, 1)
            alone = in_turn(two, one, options.calls // 10)
            with busy():
                beside = in_turn(two, one, options.calls // 10)
            ratios = [look(a) / look(b) for a, b in (alone, beside) for look in (median, p99)]
            serial = kind.work(voxels) < limit
            met = met and (serial or ratios[0] <= 1 / WORTH)
            cells = [f"{kind.work(voxels):,.0f}", f"{median(alone[1]):.0f}"]
            cells += [f"{ratio:.2f}" for ratio in ratios] + ["one" if serial else "two"]
            print(f"| {name} @{voxels}×4×4 | " + " | ".join(cells) + " |", flush=True)
    engine.serial_below = limit
    return met


BARS = {"bar": bar, "threshold": threshold}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bars", nargs="*", metavar="WHAT", help="bar, threshold; default: both")
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--lock", type=Path)
    options = parser.parse_args()
    with exclusive(options.lock):
        return 0 if all([BARS[name](options) for name in options.bars or BARS]) else 1


if __name__ == "__main__":
    sys.exit(main())
