"""A whole 3D-GAN generator, ours against Keras and PyTorch.

    python benchmarks/setup_venvs.py          once
    python benchmarks/gan.py                  a minute

Each in a process of its own, with the fastest of its variants; rounds alternate between them.
All must agree to 1e-5 before anybody is timed. See generator.py for the network.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import machine
import numpy as np
from ring import HERE, VENVS, Options, Process, exclusive, interpreters, rounds
from rows import Array

TOLERANCE = 1e-5  # of results between 0 and 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--batch", type=int, default=1)
    add("--rounds", type=int, default=15)
    add("--python", type=Path, help="interpreter for ours; default: the one running this")
    add("--venvs", type=Path, default=VENVS, help="folder that holds the venvs bench and tf")
    add("--lock", type=Path, help="file to hold an exclusive flock on")
    options = parser.parse_args()
    pythons = interpreters(options.venvs, options.python)
    places = {
        "conv3dt": pythons["conv3dt"], "PyTorch": pythons["PyTorch"], "Keras": pythons["TensorFlow"]
    }  # fmt: skip
    processes = [
        Process(
            name, name, python, options.threads,
            {"PYTHONPATH": str(HERE.parent)} if name == "conv3dt" else {}, "generator.py",
        )
        for name, python in places.items()
    ]  # fmt: skip
    try:
        with exclusive(options.lock):
            found = race(processes, options)
    finally:
        for process in processes:
            process.close()
    found = {"machine": machine.describe(), "threads": options.threads, **found}
    path = HERE / "results" / f"gan-batch{options.batch}-{options.threads}threads.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found))


def race(processes: list[Process], options: argparse.Namespace) -> dict[str, Any]:
    versions = {p.name: p.ask("hello")["version"] for p in processes}  # all have imported
    ready = {p.name: p.ask("ready", batch=options.batch) for p in processes}
    differences = compare(processes)
    times, _ = rounds(processes, ready, Options(rounds=options.rounds), None)
    return {
        "batch": options.batch,
        "contestants": {
            process.name: {
                "version": versions[process.name],
                "variant": ready[process.name]["variant"],
                "tried_ms": {k: ns / 1e6 for k, ns in ready[process.name]["tried"].items()},
                "failed": ready[process.name]["failed"],
                "ms": float(np.median(times[process.name])),
                "min_ms": min(times[process.name]),
                "rounds_ms": times[process.name],
                "difference": differences[process.name],
            }
            for process in processes
        },
    }


def compare(processes: list[Process]) -> dict[str, float]:
    """The largest difference of each from the first; more than `TOLERANCE` ends the race."""
    results: dict[str, Array] = {}
    with tempfile.TemporaryDirectory() as folder:
        for process in processes:
            path = Path(folder) / "y.npy"
            process.ask("result", path=str(path))
            results[process.name] = np.load(path)
    ours = results[processes[0].name]
    differences = {name: float(np.abs(y - ours).max()) for name, y in results.items()}
    if not max(differences.values()) <= TOLERANCE:
        raise RuntimeError(f"results differ: {differences}")
    return differences


def report(found: dict[str, Any]) -> str:
    ours = found["contestants"]["conv3dt"]["ms"]
    lines = [
        f"3D-GAN generator, batch {found['batch']}, {found['threads']} threads, "
        f"{found['machine']['cpu']}",
        "| | median ms | minimum ms | ÷ ours | largest difference | variant |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found["contestants"].items():
        lines.append(
            f"| {name} {one['version']} | {one['ms']:.1f} | {one['min_ms']:.1f} "
            f"| {one['ms'] / ours:.2f} | {one['difference']:.1e} | {one['variant']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
