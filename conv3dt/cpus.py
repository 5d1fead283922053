"""How many CPUs this process may use: its affinity mask and its cgroup's quota."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def affinity() -> int:
    """Number of CPUs that the calling thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(membership: Path = MEMBERSHIP, root: Path = CGROUPS) -> int | None:
    """CPUs' worth of time that the cgroups grant, rounded up; None without a limit.

    Every enclosing group counts, so the least quota on the way to the root is the answer.
    Reads version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``).
    """
    found = [ceil(q) for group in groups("cpu", membership, root) for q in _quotas_of(group)]
    return max(1, min(found)) if found else None


def groups(controller: str, membership: Path, root: Path) -> Iterator[Path]:
    """Folders of a controller's groups of this process, innermost first."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / controllers  # "" for version 2, else such as "cpu,cpuacct"
        group = mount / path.lstrip("/")
        yield from (group, *(p for p in group.parents if p.is_relative_to(mount)))


def _quotas_of(group: Path) -> Iterator[float]:
    for limit, period in (("cpu.max", None), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = (group / limit).read_text().split()
            if period is not None:
                words += (group / period).read_text().split()
            allowed, interval = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max": no limit
            continue
        if allowed > 0 and interval > 0:  # version 1 writes -1 for no limit
            yield allowed / interval
