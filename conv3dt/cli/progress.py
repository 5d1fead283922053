"""How far a long run is: a bar with an estimate, or plain lines where tqdm is missing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..optional import require

EVERY = 5.0  # seconds between plain lines

Progress = Callable[[int, int], None]


@contextmanager
def progress() -> Iterator[Progress]:
    """A function of the voxels that are done, and of all; on stderr, from its first call on."""
    try:
        tqdm = require("tqdm", "cli")
    except ImportError:
        yield _lines()
        return
    with ExitStack() as stack:
        bars: list[Any] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bar = tqdm.tqdm(
                    total=total, unit="voxel", unit_scale=True, file=sys.stderr, leave=False
                )
                bars.append(stack.enter_context(bar))
            bars[0].update(done - bars[0].n)

        yield show


def _lines() -> Progress:
    begun = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < EVERY and done < total:
            return
        last = now
        left = (now - begun) / done * (total - done)
        print(f"conv3dt: {done / total:.0%}, about {left:.0f} s left", file=sys.stderr)

    return show
