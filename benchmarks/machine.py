"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe() -> dict[str, str | int]:
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "cache": _last_cache(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    widest = next((f for f in ("avx512f", "avx2") if any(f in line.split() for line in lines)), "")
    return f"{names[0] if names else platform.machine()} {widest.removesuffix('f')}".strip()


def _last_cache() -> str:
    sizes = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return sizes[-1].read_text().strip() if sizes else "?"
