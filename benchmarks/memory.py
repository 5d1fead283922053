"""Peak memory of each contestant beyond its input, output and weights, in MiB.

    python benchmarks/memory.py [--rows IDS] [--contestants NAMES]

Every row in a fresh process: what a library keeps from one row must not hide what the next one
needs. ``total`` is peak of a warm call minus the process before it had seen the row, minus
input, output and one copy of the weights. ``kept`` is the part that stays between calls (packed
weights, arenas, for some the output), ``scratch`` the rest, which a call takes and gives back.
Our recycled outputs are switched off here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from peers import PEERS
from ring import HERE, VENVS, Entry, exclusive, interpreters
from rows import Row, select

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--rows")
    add("--quick", action="store_true")
    add("--contestants", help="separated by commas; default: all")
    add("--data-format", default="channels_last")
    add("--algorithm", default="auto")
    add("--python", type=Path)
    add("--venvs", type=Path, default=VENVS)
    add("--lock", type=Path)
    options = parser.parse_args()
    names = options.contestants.split(",") if options.contestants else ["conv3dt", *PEERS]
    pythons = interpreters(options.venvs, options.python)
    environment = {
        "PYTHONPATH": str(HERE.parent),
        "RACE_DATA_FORMAT": options.data_format,
        "RACE_ALGORITHM": options.algorithm,
    }
    entries = [Entry(n, n, pythons[n], environment if n == "conv3dt" else {}) for n in names]
    found: dict[str, Any] = {}
    print("row".ljust(24), "x+y".rjust(8), "weights".rjust(8), *(n.rjust(14) for n in names))
    for row in select(options.rows, options.quick, None):
        with exclusive(options.lock):
            found[row.id] = {e.name: measure(row, e, options.threads) for e in entries}
        print(line(row, found[row.id]), flush=True)
    path = HERE / "results" / f"memory-{options.data_format}-{options.threads}threads.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def measure(row: Row, entry: Entry, threads: int) -> dict[str, Any]:
    """The best variant, then its memory in a process that has run nothing else."""
    process = entry.start(threads)
    prepared: dict[str, Any] = process.ask("prepare", row=row.to_json())
    process.close()
    if "cannot" in prepared:
        return prepared
    process = entry.start(threads)
    answer: dict[str, Any] = process.ask("memory", row=row.to_json(), variant=prepared["variant"])
    process.close()
    return answer


def line(row: Row, found: dict[str, Any]) -> str:
    cells = [row.id.ljust(24), f"{(row.x_bytes + row.y_bytes) / MIB:8.1f}"]
    cells.append(f"{row.weight_bytes / MIB:8.2f}")
    for answer in found.values():
        if "total" not in answer:
            cells.append("-".rjust(14))
            continue
        cells.append(f"{answer['total'] / MIB:7.1f} ({answer['scratch'] / MIB:4.1f})".rjust(14))
    return " ".join(cells)


if __name__ == "__main__":
    main()
