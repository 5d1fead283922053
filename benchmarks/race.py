"""conv3dt against TensorFlow, PyTorch, ONNX Runtime and OpenVINO.

    python benchmarks/setup_venvs.py          once
    python benchmarks/race.py                 all rows, 2 threads, channels_last
    python benchmarks/race.py --quick         one minute
    python benchmarks/race.py --self direct winograd     ours against ours

Results go to benchmarks/results/NAME.json, .png and .md. See README.md here.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import machine
import report
from peers import PEERS
from ring import HERE, VENVS, Entry, Options, Process, interpreters, race_row
from rows import Row, select


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--data-format", default="channels_last", choices=["channels_last", "channels_first"],
        help="of ours; each peer has the layout it likes best")  # fmt: skip
    add("--algorithm", default="auto", help="of ours")
    add("--rows", help="ids or their beginnings, separated by commas")
    add("--sweep", help="all, or the name of one sweep, instead of the layers")
    add("--quick", action="store_true", help="fewer rows, shorter rounds, no float64 reference")
    add("--rounds", type=int, help="at least 7 for numbers to publish")
    add("--self", nargs="+", metavar="ALGORITHM[@FOLDER]", dest="own",
        help="ours against ours: algorithms, or builds found in other checkouts")  # fmt: skip
    add("--contestants", help=f"only these peers, of {', '.join(PEERS)}; empty: none")
    add("--recycle", action="store_true", help="let malloc keep big blocks, for PyTorch and "
        "TensorFlow, which otherwise pay page faults for every large output")  # fmt: skip
    add("--python", type=Path, help="interpreter for ours; default: the one running this")
    add("--venvs", type=Path, default=VENVS, help="folder that holds the venvs bench and tf")
    add("--name", help="of the result files")
    add("--lock", type=Path, help="file to hold an exclusive flock on during each row")
    return parser.parse_args()


# glibc: no mmap for large blocks and no trimming, so freed outputs are used again.
RECYCLE = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def entries(options: argparse.Namespace) -> list[Entry]:
    """Ours first, then the peers."""
    pythons = interpreters(options.venvs, options.python)
    ours = {"RACE_DATA_FORMAT": options.data_format, "RACE_ALGORITHM": options.algorithm}
    root = str(HERE.parent)
    if options.own:
        found = []
        for spec in options.own:
            algorithm, _, folder = spec.partition("@")
            environment = {**ours, "RACE_ALGORITHM": algorithm, "PYTHONPATH": folder or root}
            found.append(Entry(spec, "conv3dt", pythons["conv3dt"], environment))
        return found
    wanted = PEERS if options.contestants is None else options.contestants.split(",")
    found = [Entry("conv3dt", "conv3dt", pythons["conv3dt"], {**ours, "PYTHONPATH": root})]
    for peer in PEERS:
        if peer in wanted:
            recycle = options.recycle and peer in ("PyTorch", "TensorFlow")
            found.append(Entry(peer, peer, pythons[peer], RECYCLE if recycle else {}))
    return found


def main() -> None:
    options = parse()
    rows = select(options.rows, options.quick, options.sweep)
    settings = Options(
        rounds=options.rounds or 7,
        slice=0.02 if options.quick else 0.05,
        errors=not options.quick,
        lock=options.lock,
    )
    started = entries(options)
    processes = [entry.start(options.threads) for entry in started]
    floor = Entry("floor", "floor", interpreters(options.venvs, None)["floor"])
    meter = floor.start(options.threads)
    results = header(options, processes)
    begin = time.time()
    try:
        run(rows, processes, meter, settings, results)
    finally:
        for process in [*processes, meter]:
            process.close()
    results["seconds"] = round(time.time() - begin, 1)
    report.write(results, HERE / "results" / (options.name or default_name(options)))


def run(
    rows: list[Row],
    processes: list[Process],
    meter: Process,
    settings: Options,
    results: dict[str, Any],
) -> None:
    print(report.heading(results))
    for row in rows:
        raced = race_row(row, processes, settings, meter)
        results["rows"].append(raced)
        print(report.line(results, raced), flush=True)
    print(report.summary(results))


def header(options: argparse.Namespace, processes: list[Process]) -> dict[str, Any]:
    """What must be known to read the numbers."""
    return {
        "machine": machine.describe(),
        "threads": options.threads,
        "data_format": options.data_format,
        "algorithm": options.algorithm,
        "quick": options.quick,
        "recycle": options.recycle,
        "ours": [p.name for p in processes if p.name not in PEERS],
        "versions": {p.name: p.ask("hello")["version"] for p in processes},
        "date": time.strftime("%Y-%m-%d"),
        "rows": [],
    }


def default_name(options: argparse.Namespace) -> str:
    parts = ["self" if options.own else "race", options.sweep, options.data_format]
    parts += [f"{options.threads}threads", "quick" if options.quick else None]
    return "-".join(part for part in parts if part)


if __name__ == "__main__":
    main()
