"""Thousands of mixed calls from many threads: right every time, and memory stays flat.

    python tests/soak.py [--calls 10000] [--threads 8]

Every call's result is compared with what the same call gave at first. Between rounds, when all
threads wait and the heap has given back what is free, it looks at the resident memory, the output
pool (which counts as resident), open files and threads. Fails when, after the warm-up, the mean
memory of a third of the rounds is more than 2% from that of all, or files or threads change.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import conv3dt  # noqa: E402

MIB = 1 << 20
ROUNDS = 20
WARM_UP = 5  # rounds: every thread's heap, every plan
Work = Callable[[], np.ndarray]


class Level(NamedTuple):
    """What a process holds while nobody works."""

    resident: int
    pooled: int
    files: int
    threads: int


# ---- the calls --------------------------------------------------------------------


def calls() -> list[Work]:
    """One of each kind; layers and arrays are shared by all threads."""
    rng = np.random.default_rng(0)

    def function(shape: tuple[int, ...], filters: int, k: int, dtype: str, **more: object) -> Work:
        channels = shape[1] if more.get("data_format") == "channels_first" else shape[-1]
        groups = int(more.get("groups", 1))  # type: ignore[call-overload]
        x = rng.standard_normal(shape).astype(dtype)
        kernel = rng.standard_normal((k, k, k, filters // groups, channels)).astype(dtype)
        bias = rng.standard_normal(filters).astype(dtype)
        return lambda: conv3dt.conv3d_transpose(x, kernel, bias, **more)  # type: ignore[arg-type]

    first = {"data_format": "channels_first"}
    return [
        function((1, 2, 2, 2, 1), 1, 2, "float32", strides=2),
        function((1, 8, 8, 8, 32), 16, 4, "float32", strides=2, padding="same"),
        function((2, 5, 6, 7, 24), 40, 3, "float32", padding="same", activation="gelu"),
        function((1, 9, 9, 9, 16), 2, 3, "float32", strides=2, activation="softmax"),
        function((1, 16, 6, 6, 20), 3, 4, "float32", strides=2, num_threads=2, **first),
        function((1, 32, 9, 9, 9), 16, 3, "float64", strides=2, algorithm="direct", **first),
        function((1, 8, 8, 8, 16), 16, 3, "float32", padding=1, groups=16, num_threads=3),
        function((1, 6, 6, 6, 8), 4, 2, "float16", strides=2),
        function((1, 6, 6, 6, 8), 4, 3, "float32", strides=(1, 2, 3), algorithm="im2col"),
        # 6 MiB each, from the pool: its blocks, which are all kept, are then all in use.
        function((1, 48, 32, 32, 4), 4, 2, "float32", strides=2),
        function((1, 16, 48, 32, 8), 8, 2, "float32", strides=2, num_threads=2),
        function((3, 2, 32, 32, 32), 2, 2, "float32", strides=2, **first),
        strided_out(rng),
        refused,
        *layer(rng),
    ]


def layer(rng: np.random.Generator) -> list[Work]:
    """One layer on more shapes than it keeps plans."""
    made = conv3dt.Conv3DTranspose(8, 3, strides=2, input_shape=(None, None, None, 16))
    inputs = [rng.standard_normal((1, 8, 8, n, 16)).astype(np.float32) for n in range(1, 21)]
    return [lambda x=x: made(x) for x in inputs]  # type: ignore[misc]


def strided_out(rng: np.random.Generator) -> Work:
    x = rng.standard_normal((1, 6, 6, 6, 8)).astype(np.float32)
    kernel = rng.standard_normal((2, 2, 2, 4, 8)).astype(np.float32)

    def call() -> np.ndarray:
        wide = np.zeros((1, 12, 12, 12, 9), np.float32)
        conv3dt.conv3d_transpose(x, kernel, strides=2, out=wide[..., 1::2])
        return wide

    return call


def refused() -> np.ndarray:
    try:
        conv3dt.conv3d_transpose(np.ones((1, 2, 2, 2, 3)), np.ones((2, 2, 2, 4, 5)))
    except ValueError as error:
        return np.array(str(error))
    raise AssertionError("3 channels went into a kernel of 5")


# ---- the soak ---------------------------------------------------------------------


def level() -> Level:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what was freed at random
    if trim is not None:
        trim(0)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    pooled, _ = conv3dt.output_pool.usage()
    files, threads = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
    return Level(resident, pooled, files, threads)


def soak(total: int, threads: int) -> list[Level]:
    works = calls()
    want = [work() for work in works]
    for work, y in zip(works, want, strict=True):
        if y.nbytes >= conv3dt.output_pool.POOLED:
            fill = [work() for _ in range(conv3dt.output_pool.MOST_IDLE)]
    del fill
    levels = []

    def some(seed: int) -> None:
        random = Random(seed)
        for _ in range(total // ROUNDS // threads):
            i = random.randrange(len(works))
            np.testing.assert_array_equal(works[i](), want[i], err_msg=f"call {i}")

    print("  calls     MiB  pooled  files  threads")
    with ThreadPoolExecutor(threads) as pool:
        for number in range(ROUNDS):
            list(pool.map(some, range(number * threads, (number + 1) * threads)))
            now = level()
            done = (number + 1) * (total // ROUNDS // threads) * threads
            mib = f"{now.resident / MIB:7.1f} {now.pooled / MIB:7.1f}"
            print(f"{done:7} {mib} {now.files:6} {now.threads:8}", flush=True)
            levels.append(now)
    return levels[WARM_UP:]


def thirds(values: np.ndarray) -> np.ndarray:
    return np.array([part.mean() for part in np.array_split(values, 3)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    conv3dt.set_output_pool(conv3dt.output_pool.MOST_IDLE * 6 * MIB)
    levels = soak(options.calls, options.threads)
    resident = np.array([one.resident for one in levels])
    most, drift = (np.abs(r / resident.mean() - 1).max() for r in (resident, thirds(resident)))
    still = len({(one.files, one.threads) for one in levels}) == 1
    print(f"resident memory: thirds within {drift:.2%} of the mean (2%), rounds within {most:.2%}")
    print(f"files and threads {'constant' if still else 'NOT constant'}")
    return 0 if drift <= 0.02 and still else 1


if __name__ == "__main__":
    sys.exit(main())
