"""Results as lines while racing, then as JSON, a Markdown table and a bar chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

Raced = dict[str, Any]
STAND_IN = "~"


def peers(raced: Raced, results: Raced) -> dict[str, float]:
    """Median ms of everybody but the first of ours (or but the first, when ours races itself)."""
    first = results["ours"][0]
    found = raced["contestants"].items()
    return {name: c["ms"] for name, c in found if "ms" in c and name != first}


def our_ms(raced: Raced, results: Raced) -> float | None:
    mine: float | None = raced["contestants"].get(results["ours"][0], {}).get("ms")
    return mine


def ratio(raced: Raced, results: Raced) -> float | None:
    """Best peer's time over ours; above 1 we are ahead."""
    mine, others = our_ms(raced, results), peers(raced, results)
    return min(others.values()) / mine if mine and others else None


def floor_ms(raced: Raced) -> float:
    """The larger of a row's floors."""
    return max(floors_ms(raced))


def floors_ms(raced: Raced) -> tuple[float, float]:
    """Multiply-adds at the FMA peak; input and weights read + output written."""
    measured, row = raced["floor"], raced["bytes"]
    compute = raced["needed_gflop"] * 1e9 / measured["fma"]
    traffic = (row["x"] + row["weights"]) / measured["read"] + row["y"] / measured["write"]
    return 1e3 * float(compute), 1e3 * float(traffic)


def fraction(raced: Raced, results: Raced) -> float | None:
    """Of the floor; above 1 where an algorithm needs fewer multiplications."""
    mine = our_ms(raced, results)
    return floor_ms(raced) / mine if mine else None


def _names(results: Raced) -> list[str]:
    return list(results["versions"])


def _cells(results: Raced, raced: Raced) -> list[str]:
    contestants = raced["contestants"]
    cells = [raced["row"]["id"], raced["shape"]]
    for name in _names(results):
        entry = contestants[name]
        mark = "" if entry.get("exact", True) else STAND_IN
        cells.append(f"{mark}{entry['ms']:.3g}" if "ms" in entry else "-")
    mine, ahead, part = our_ms(raced, results), ratio(raced, results), fraction(raced, results)
    cells.append(f"{ahead:.2f}" if ahead else "-")
    cells.append(f"{raced['gflop'] / mine * 1e3:.0f}" if mine else "-")
    cells.append(f"{part:.2f}" if part else "-")
    return cells


def _titles(results: Raced) -> list[str]:
    rest = ["best peer ÷ ours", "GF/s", "of floor"]
    return ["row", "layer", *(f"{name} ms" for name in _names(results)), *rest]


def _widths(results: Raced) -> list[int]:
    return [24, 30, *(max(len(name) + 3, 8) for name in _names(results)), 16, 6, 8]


def _aligned(results: Raced, cells: Iterable[str]) -> str:
    return " ".join(c.ljust(w) for c, w in zip(cells, _widths(results), strict=True)).rstrip()


def heading(results: Raced) -> str:
    about = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{about['cpu']}, {results['threads']} threads of {about['cores']} cores; ours in "
        f"{results['data_format']}, algorithm {results['algorithm']}\n{versions}\n"
        f"medians of ms per call; {STAND_IN} a stand-in of the same size and work\n\n"
        + _aligned(results, _titles(results))
    )


def line(results: Raced, raced: Raced) -> str:
    return _aligned(results, _cells(results, raced))


def _geomean(rows: list[Raced], of: Callable[[Raced], float | None]) -> str:
    values = [value for value in map(of, rows) if value]
    if not values:
        return "-"
    return f"{geometric_mean(values):.2f} (worst {min(values):.2f}, {len(values)} rows)"


def summary(results: Raced) -> str:
    """Geometric means, over all rows and over the kinds that decide."""
    rows = results["rows"]
    narrow = [r for r in rows if r["row"]["filters"] <= 3]
    grouped = [r for r in rows if r["row"]["groups"] > 1]

    def ahead(raced: Raced) -> float | None:
        return ratio(raced, results)

    lines = [
        f"best peer ÷ ours, geometric mean: {_geomean(rows, ahead)}",
        f"  of minima: {_geomean(rows, partial(_ratio_of_minima, results))}",
        f"  rows of 1 to 3 filters: {_geomean(narrow, ahead)}",
        f"  depthwise and grouped: {_geomean(grouped, ahead)}",
        f"fraction of the floor: {_geomean(rows, lambda r: fraction(r, results))}",
    ]
    for name in _names(results)[1:]:
        lines.append(f"  {name} alone ÷ ours: {_geomean(rows, partial(_one, name, results))}")
    lines += _errors(results)
    return "\n" + "\n".join(lines)


def _errors(results: Raced) -> list[str]:
    """RMS errors against float64, relative to the output's RMS; rows without one are left out."""

    def of(name: str, key: str) -> dict[str, float]:
        rows = ((r["row"]["id"], r["contestants"][name]) for r in results["rows"])
        return {row: contestant[key] for row, contestant in rows if key in contestant}

    found = {name: of(name, "error") for name in _names(results)}
    if "conv3dt" in found:
        found["conv3dt, direct"] = of("conv3dt", "direct_error")
    lines = [
        f"  {name}: geometric mean {geometric_mean(e.values()):.2e}, largest {max(e.values()):.2e}"
        for name, e in found.items()
        if e
    ]
    direct, torch = found.get("conv3dt, direct", {}), found.get("PyTorch", {})
    worse = [f"{row} {e:.2e} > {torch[row]:.2e}" for row, e in direct.items() if e > torch[row]]
    if direct:
        lines.append(f"  rows where direct errs more than PyTorch: {', '.join(worse) or 'none'}")
    return ["RMS error against float64:", *lines] if lines else []


def _ratio_of_minima(results: Raced, raced: Raced) -> float | None:
    times = {name: c["min_ms"] for name, c in raced["contestants"].items() if "ms" in c}
    mine = times.pop(results["ours"][0], None)
    return min(times.values()) / mine if mine and times else None


def _one(name: str, results: Raced, raced: Raced) -> float | None:
    mine, other = our_ms(raced, results), raced["contestants"][name].get("ms")
    return other / mine if mine and other else None


def markdown(results: Raced) -> str:
    titles = _titles(results)
    lines = [
        f"<!-- written by benchmarks/race.py, {results['date']} -->",
        "| " + " | ".join(titles) + " |",
        "|---|---|" + "---:|" * (len(titles) - 2),
    ]
    for raced in results["rows"]:
        cells = _cells(results, raced)
        others = peers(raced, results)
        if others:
            best = 2 + _names(results).index(min(others, key=lambda name: others[name]))
            cells[best] = f"**{cells[best]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" + summary(results) + "\n"


def chart(results: Raced, path: Path) -> None:
    """GF/s of everybody on every row, and the floor as a line over the bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, names = results["rows"], _names(results)
    width = 0.8 / len(names)
    figure, axes = pyplot.subplots(figsize=(max(6, 0.62 * len(rows) + 2), 5.5))
    colors = ["#c2410c", "#64748b", "#0ea5e9", "#a3a3a3", "#7c3aed", "#16a34a"]
    for place, name in enumerate(names):
        times = [raced["contestants"][name].get("ms") for raced in rows]
        speeds = [r["gflop"] / t * 1e3 if t else 0.0 for r, t in zip(rows, times, strict=True)]
        at = [i + (place - (len(names) - 1) / 2) * width for i in range(len(rows))]
        axes.bar(at, speeds, width, label=name, color=colors[place % len(colors)])
    for i, raced in enumerate(rows):
        top = raced["gflop"] / floor_ms(raced) * 1e3
        axes.hlines(top, i - 0.42, i + 0.42, colors="black", linewidth=0.9,
                    label="" if i else "the machine's floor")  # fmt: skip
    axes.set_xticks(range(len(rows)), [raced["row"]["id"] for raced in rows], rotation=60,
                    ha="right", fontsize=8)  # fmt: skip
    axes.set_ylabel("GF/s, more is better")
    axes.set_title(
        f"3D transposed convolution, float32, {results['threads']} threads, "
        f"{results['machine']['cpu']}",
        fontsize=10,
    )
    axes.legend(fontsize=8, ncols=6, frameon=False, loc="upper right", bbox_to_anchor=(1, 1.0))
    axes.set_ylim(top=1.12 * axes.get_ylim()[1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def write(results: Raced, path: Path) -> None:
    """``path`` with .json, .md and .png; the chart only where matplotlib is."""
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    try:
        chart(results, path.with_suffix(".png"))
    except ModuleNotFoundError:
        print("no chart: this interpreter has no matplotlib")
    print(f"\n{path}.json, .md, .png")
