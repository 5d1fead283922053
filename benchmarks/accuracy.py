"""Rounding errors of every algorithm beside PyTorch's and TensorFlow's, on the same data.

    python benchmarks/accuracy.py                both tables, into docs/accuracy.md
    python benchmarks/accuracy.py --rows gan3d   print those layers only

Inputs and weights are standard normal. Judge is the formula, tap by tap, in the next wider
type: float64 for float32, the longest of NumPy for float64. An error is given in ULP of a
number as large as the result's root mean square: a sum of random signs may come out near zero,
where an ULP of its own would say nothing about the summation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import machine
import numpy as np
from ring import HERE, VENVS, Entry, interpreters
from rows import Array, Row, arrays, select

sys.path.insert(0, str(HERE.parent))
from conv3dt import engine, plan  # noqa: E402
from conv3dt.problem import Axis, Problem  # noqa: E402

PAGE = HERE.parent / "docs" / "accuracy.md"
ALGORITHMS = plan.ALGORITHMS
PEERS = ("PyTorch", "TensorFlow")


class Error(NamedTuple):
    """In ULP of the result's root mean square."""

    rms: float
    most: float


Errors = dict[str, Error]  # by algorithm or peer


# ---- problems ---------------------------------------------------------------------


def sums() -> Iterator[tuple[int, Row]]:
    """Layers whose inner voxels are sums of so many products."""
    for (kernel, stride, taps), channels in product(
        ((2, 2, 1), (4, 2, 8), (3, 1, 27)), (8, 64, 512)
    ):
        yield taps * channels, _row(kernel, stride, channels, 16, 1)
    for kernel, stride, taps in ((4, 2, 8), (3, 1, 27), (7, 1, 343)):
        yield taps, _row(kernel, stride, 16, 16, 16)


def _row(kernel: int, stride: int, channels: int, filters: int, groups: int) -> Row:
    """An output of stride x the input's size, cropped alike on both sides."""
    size, crop = 8, (kernel - stride) // 2
    return Row(
        f"k{kernel}s{stride}c{channels}g{groups}", 1, channels, (size,) * 3, filters,
        (kernel,) * 3, (stride,) * 3, groups, False, ((crop, crop),) * 3, None,
        (size * stride,) * 3, (crop,) * 3,
    )  # fmt: skip


def problem_of(row: Row) -> Problem:
    geometry = zip(row.size, row.out, row.kernel, row.strides, (1, 1, 1), row.crop, strict=True)
    depth, height, width = (Axis(*axis) for axis in geometry)
    return Problem(row.in_channels, row.filters, row.groups, (depth, height, width), True)


# ---- results ----------------------------------------------------------------------


def exact(row: Row, drawn: str) -> Array:
    """The formula in a wider type than the data's, one product of matrices a tap."""
    dtype = np.float64 if drawn == "float32" else np.longdouble
    x, kernel, bias = arrays(row, drawn)
    y = np.zeros(row.y_shape, dtype)
    depth, filters = row.in_channels // row.groups, row.filters // row.groups
    for tap in product(*map(range, row.kernel)):
        inputs, outputs = zip(*(_hits(row, axis, tap[axis]) for axis in range(3)), strict=True)
        for group in range(row.groups):
            c, f = slice(group * depth, (group + 1) * depth), filters * group
            weights = kernel[tap][:, c].astype(dtype).T
            y[(slice(None), *outputs, slice(f, f + filters))] += (
                x[(slice(None), *inputs, c)].astype(dtype) @ weights
            )
    return y if bias is None else y + bias


def _hits(row: Row, axis: int, tap: int) -> tuple[slice, slice]:
    """Inputs that a tap takes, and the outputs that it takes them to."""
    stride, shift = row.strides[axis], tap - row.crop[axis]
    first = max(0, -(shift // stride))
    last = max(first - 1, min(row.size[axis] - 1, (row.out[axis] - 1 - shift) // stride))
    start = first * stride + shift
    return slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride)


def ours(row: Row, algorithm: str, dtype: str) -> tuple[str, Array]:
    """The algorithm's name and its result."""
    x, kernel, bias = arrays(row, dtype)
    weights = plan.Weights(kernel, bias, row.groups)
    made = plan.plan_for(problem_of(row), weights, algorithm)
    return made.algorithm, made.apply(x)


class Peers:
    """PyTorch and TensorFlow, each in its own process and venv."""

    def __init__(self, venvs: Path) -> None:
        pythons = interpreters(venvs, None)
        self.processes = {name: Entry(name, name, pythons[name]).start(2) for name in PEERS}
        self.versions = {n: p.ask("hello")["version"] for n, p in self.processes.items()}

    def errors(self, row: Row, dtype: str, judge: Array) -> Errors:
        """Of each that can do the row value for value; of several kernels the best."""
        found = {}
        for name, process in self.processes.items():
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder, "y"))
                count = process.ask("drawn", row=row.to_json(), dtype=dtype, path=path)["count"]
                errors = [error(np.load(f"{path}{i}.npy"), judge, dtype) for i in range(count)]
            if errors:
                found[name] = min(errors)
        return found

    def close(self) -> None:
        for process in self.processes.values():
            process.close()


def error(result: Array, judge: Array, dtype: str) -> Error:
    """Plane by plane, to stay small."""
    square = norm = most = 0.0
    for mine, true in zip(
        result.reshape(-1, *result.shape[2:]), judge.reshape(-1, *judge.shape[2:]), strict=True
    ):
        difference = np.abs(mine - true)
        square += float(np.sum(difference**2))
        norm += float(np.sum(true**2))
        most = max(most, float(difference.max()))
    ulp = float(np.finfo(dtype).eps) * np.sqrt(norm / judge.size)
    return Error(float(np.sqrt(square / judge.size)) / ulp, most / ulp)


# ---- tables -----------------------------------------------------------------------


def table_of_sums(peers: Peers, dtype: str) -> Iterator[str]:
    """RMS and largest error of each algorithm by the number of products in a sum."""
    yield f"| {dtype}: products | layer | " + " | ".join((*ALGORITHMS, *PEERS)) + " |"
    yield "|---:|---|" + "---:|" * (len(ALGORITHMS) + len(PEERS))
    for products, row in sums():
        judge = exact(row, dtype)
        found: Errors = {}
        for algorithm in ALGORITHMS:
            name, result = ours(row, algorithm, dtype)
            if name == algorithm:
                found[name] = error(result, judge, dtype)
        found |= peers.errors(row, dtype, judge)
        cells = [
            f"{found[n].rms:.2f} / {found[n].most:.1f}" if n in found else "-"
            for n in (*ALGORITHMS, *PEERS)
        ]
        yield f"| {products} | {row.shape_text} | " + " | ".join(cells) + " |"


def table_of_layers(peers: Peers, rows: list[Row]) -> Iterator[str]:
    """RMS errors on published layers; bold: larger than PyTorch's."""
    yield "| row | layer | direct | auto | " + " | ".join(PEERS) + " |"
    yield "|---|---|---:|---:|" + "---:|" * len(PEERS)
    for row in rows:
        judge = exact(row, "float32")
        found = peers.errors(row, "float32", judge)
        limit = found["PyTorch"].rms
        cells = []
        for algorithm in ("direct", "auto"):
            name, result = ours(row, algorithm, "float32")
            rms = error(result, judge, "float32").rms
            del result
            cells.append(f"{name} {rms:.2f}" if rms <= limit else f"{name} **{rms:.2f}**")
        cells += [f"{found[n].rms:.2f}" if n in found else "-" for n in PEERS]
        yield f"| {row.id} | {row.shape_text} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", help="ids or their beginnings, separated by commas")
    parser.add_argument("--venvs", type=Path, default=VENVS)
    options = parser.parse_args()
    peers = Peers(options.venvs)
    lines = []
    for part in parts(peers, options.rows):
        print(part, flush=True)
        lines.append(part)
    peers.close()
    if options.rows is None:
        before, start, rest = PAGE.read_text().partition("<!-- measured:begin -->\n")
        _, end, after = rest.partition("<!-- measured:end -->")
        PAGE.write_text(before + start + "\n".join(lines) + "\n" + end + after)


def parts(peers: Peers, names: str | None) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in peers.versions.items())
    yield f"On {machine.describe()['cpu']}, kernels {engine.selected()}; {versions}.\n"
    if names is None:
        for dtype in ("float32", "float64"):
            yield from table_of_sums(peers, dtype)
            yield ""
    yield from table_of_layers(peers, select(names, False, None))


if __name__ == "__main__":
    main()
