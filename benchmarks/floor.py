"""The machine's own floor, measured between the contestants in the same rounds.

A row cannot be done faster than max(flops / FMA peak, bytes read / read bandwidth +
bytes written / write bandwidth). The bandwidths are those of a block as large as the row's input,
output and weights together, so that rows that fit a cache are not held to DRAM; writing
counts the better of ordinary and streaming stores, of what is not zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import probes
from rows import Row

Reply = dict[str, Any]
# Bytes to move and multiply-adds to do per probe: some milliseconds each.
MOVED = 128 << 20
STEPS = 2_000_000


class Floor:
    """Answers the commands of a contestant's process with measurements."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.block = np.zeros(0, np.uint64)
        probes.fma(20 * STEPS, threads)

    def hello(self) -> Reply:
        return {"version": "probes"}

    def prepare(self, row: Reply, variant: str | None = None) -> Reply:
        self.row = Row.from_json(row)
        size = self.row.x_bytes + self.row.y_bytes + self.row.weight_bytes
        self.block = _aligned(max(size, 64 * self.threads))
        return {}

    def measure(self) -> Reply:
        """Multiply-adds in flop/s, bandwidths in bytes/s."""
        threads, block = self.threads, self.block
        times = max(1, MOVED // block.nbytes)
        moved = times * block.nbytes
        seconds, flops = probes.fma(STEPS, threads)
        probes.read(block, 1, threads)
        read = probes.read(block, times, threads)
        floats = block.view(np.float32)
        probes.write(floats, 1, threads, False)
        plain = probes.write(floats, times, threads, False)
        streamed = probes.write(floats, times, threads, True)
        return {
            "fma": flops / seconds,
            "read": moved / read,
            "write": moved / min(plain, streamed),
        }


def _aligned(size: int) -> Any:
    """A written block of whole cache lines that starts at one."""
    block = np.zeros(size // 8 + 16, np.uint64)
    block.fill(1)
    start = -block.ctypes.data % 64 // 8
    return block[start : start + size // 64 * 8]
