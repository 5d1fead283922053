"""How much memory this process may use: the machine's, or what its cgroup leaves of it."""

from __future__ import annotations

import os
from pathlib import Path

from .cpus import CGROUPS, MEMBERSHIP, groups


def total(membership: Path = MEMBERSHIP, root: Path = CGROUPS) -> int | None:
    """Bytes, by the least limit of the enclosing groups; None where nobody says.

    Reads version 2 (``memory.max``) and version 1 (``memory.limit_in_bytes``), which writes
    an enormous number for no limit.
    """
    found = [
        limit
        for group in groups("memory", membership, root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number_in(group / name)) is not None
    ]
    try:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # not POSIX
        pass
    return min(found, default=None)


def _number_in(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return None
