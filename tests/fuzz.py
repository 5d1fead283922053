"""Random problems against the oracle: ``python tests/fuzz.py --isa avx2 --problems 100000``.

A problem is made of random integers alone, by `draw`. test_fuzz.py has them from Hypothesis,
which finds the simplest that fails; this command from a generator that takes no time. Every
candidate of the plan computes every problem, from guarded memory into guarded memory that was
NaN, with a team of the size that was asked for; then the function, or the layer, computes it
from arrays that lie in memory in any way arrays can. Small integers must come out equal;
numbers that round, within ULPS of the sum of the absolute products.

The command numbers its problems. It names the one that failed, also when that ended the
process, and ``--first NUMBER --problems 1`` repeats it.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np
import oracle
from guarded import Guarded

from conv3dt import activations, engine, plan
from conv3dt.functional import conv3d_transpose
from conv3dt.layer import Conv3DTranspose
from conv3dt.problem import Axis, Problem

T = TypeVar("T")
Triple = tuple[int, int, int]

ULPS = 4.0
EXACT = 180  # channels, up to which minimal filtering's fractions of small integers are exact
STREAM_BYTES = 4 << 20  # outputs of this size are stored past the cache
MOST_OUTPUTS, MOST_PRODUCTS = 100_000, 1_000_000  # of a sample, for the sake of time


# ---- what is drawn ----------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A problem, its numbers, where they lie in memory, and how the public call is made."""

    problem: Problem
    padding: Any  # of the public call; None where no argument means these crops
    output_padding: Triple | None
    batch: int
    stream: bool  # repeat the batch until the output is stored past the cache
    dtype: str  # of the computation
    integers: bool
    use_bias: bool
    activation: str
    threads: int
    at_end: bool  # which end of each operand lies at a forbidden page
    layouts: tuple[str, str, str, str]  # of x, kernel, bias, out
    cast: str  # x has this half type, or "weights": these have the other dtype
    algorithm: str
    layer: bool
    seed: int

    @property
    def repeats(self) -> int:
        """Samples, all equal, for an output that is stored past the cache; 0: not so."""
        sample = prod(self.problem.y_shape(1)) * np.dtype(self.dtype).itemsize
        stream = self.stream and 128 * sample >= STREAM_BYTES
        return -(-STREAM_BYTES // sample) if stream else 0


READ = (
    "plain", "permuted", "reversed", "sliced", "stepped", "unaligned", "records", "big-endian",
    "read-only", "memmap", "broadcast",
)  # fmt: skip
WRITTEN = ("new", "plain", "permuted", "reversed", "sliced", "stepped", "unaligned", "records")
HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

# Around the rows, vectors and columns of the register tiles: 4, 6, 14; 1 to 16; 2 to 32.
SMALL = (1, 1, 2, 3)
TILE = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 31, 32, 33)
LONG = (*TILE, 35, 59, 60, 61, 67)  # more positions than a box
DEEP = (63, 64, 65, 127, 128, 129, 257)  # around the blocks of the sum
FAMILIES: tuple[tuple[Sequence[int], ...], ...] = (
    # sizes of depth and height, of width; channels and filters of a group; groups
    (range(6), range(10), (0, *SMALL, 5, 17), TILE, (1, 1, 1, 2, 3)),
    (range(1, 5), LONG, (*SMALL, 4, 8, 9), (*SMALL, 4, 8), (1,)),
    (range(1, 4), range(1, 6), TILE, LONG, (1, 1, 2)),
    (range(1, 3), range(1, 4), DEEP, TILE, (1,)),
    (range(1, 6), TILE, (1,), (1, 1, 2, 3), TILE),
    ((1,), (1, 1, 2), TILE, LONG, (1, 1, 2)),
)
# kernel, stride, dilation
GEOMETRIES = ((2, 2, 1), (3, 2, 1), (4, 2, 1), (3, 1, 1), (1, 1, 1), (3, 3, 1), (3, 1, 2))


class Draw:
    """Choices made of random integers; ``integer(low, high)`` includes both."""

    def __init__(self, integer: Callable[[int, int], int]) -> None:
        self.integer = integer

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def one_in(self, many: int) -> bool:
        return self.integer(1, many) == many


def draw(integer: Callable[[int, int], int]) -> Case:
    """Any case at all."""
    its = Draw(integer)
    problem, padding, output_padding = draw_problem(its)
    dtype = its.pick(("float32", "float64"))
    halves = HALVES if dtype == "float32" and problem.in_channels <= EXACT else ()
    cast = its.pick(("", "", "", "weights", *halves))
    integers = cast != "" or its.one_in(2)
    # Sums of equal products round the same way at every step.
    weights = READ if integers else READ[:-1]
    return Case(
        problem=problem,
        padding=padding,
        output_padding=output_padding,
        batch=its.pick((1, 1, 1, 2, 3, 7, 0)),
        stream=its.one_in(25),
        dtype=dtype,
        integers=integers,
        use_bias=not its.one_in(3),
        activation=its.pick(("linear", "linear", "relu")),
        threads=its.pick((1, 1, 2, 2, 3, 7)),
        at_end=its.one_in(2),
        layouts=(its.pick(READ), its.pick(weights), its.pick(READ), its.pick(WRITTEN)),
        cast=cast,
        algorithm=its.pick(("auto", "direct", "im2col", "winograd")),
        layer=cast == "" and its.one_in(4),
        seed=integer(0, 1 << 16),
    )


def draw_problem(its: Draw) -> tuple[Problem, Any, Triple | None]:
    """A problem, and the padding and output_padding that mean it."""
    planes, widths, depths, columns, parts = its.pick(FAMILIES)
    groups, channels, filters = its.pick(parts), its.pick(depths), its.pick(columns)
    style = its.pick(("valid", "same", "pads", "any"))
    given, dilated = its.one_in(2), its.one_in(3)
    common = its.pick(GEOMETRIES) if its.one_in(2) else None
    shapes = [common or (its.integer(1, 5), its.integer(1, 4), its.integer(1, 3)) for _ in range(3)]
    if style in ("valid", "same"):  # Keras has no strides together with dilation
        shapes = [(k, 1, d) if dilated else (k, s, 1) for k, s, d in shapes]
    if its.one_in(20):  # numbers far larger than the arrays
        axis, far = its.integer(0, 2), its.pick((40, 300))
        kernel, stride, dilation = shapes[axis]
        shapes[axis] = (kernel, stride, far) if dilated else (kernel, far, dilation)
    sizes = [its.pick(planes), its.pick(planes), its.pick(widths)]
    lighten(sizes, shapes, groups * filters, channels)
    windows = [draw_window(its, style, given, *axis) for axis in zip(sizes, shapes, strict=True)]
    axes = [
        Axis(size, window.out, *shape, window.crop)
        for size, shape, window in zip(sizes, shapes, windows, strict=True)
    ]
    sums = groups * channels, groups * filters, groups
    problem = Problem(*sums, (axes[0], axes[1], axes[2]), its.one_in(2))
    pads = tuple(window.pads for window in windows)
    padding = pads if style == "pads" else None if style == "any" else style
    extras = tuple(window.extra for window in windows)
    return problem, padding, extras if given and padding is not None else None


def lighten(sizes: list[int], shapes: list[Triple], filters: int, channels: int) -> None:
    """Make the problem small enough, if it is not."""

    def heavy() -> bool:
        products = prod(n * k for n, (k, _, _) in zip(sizes, shapes, strict=True))
        outputs = prod(n * s + k * d for n, (k, s, d) in zip(sizes, shapes, strict=True))
        return products * filters * channels > MOST_PRODUCTS or outputs * filters > MOST_OUTPUTS

    while max(sizes) > 1 and heavy():
        sizes[sizes.index(max(sizes))] //= 2


class Window(NamedTuple):
    """What is cut from the full output of an axis, and the arguments that say so."""

    out: int
    crop: int
    pads: tuple[int, int] = (0, 0)
    extra: int = 0


def draw_window(its: Draw, style: str, given: bool, size: int, shape: Triple) -> Window:
    """Output size and crop, by the rules of the paddings, or any at all."""
    kernel, stride, dilation = shape
    extent = (kernel - 1) * dilation + 1
    reach = (size - 1) * stride + extent
    if style == "any":
        crop = its.integer(0, max(reach, 0) + 2)
        return Window(its.integer(0, max(reach - crop, 0) + 4), crop)
    most = max(stride, dilation) if style == "pads" else stride
    extra = its.integer(0, most - 1) if given else 0
    if style == "pads":
        room = max(reach + extra, 0)
        low = its.integer(0, room) if its.one_in(4) else min(its.integer(0, 2), room)
        high = min(its.integer(0, 2), room - low)
        return Window(room - low - high, low, (low, high), extra)
    if style == "valid":
        out = reach + extra if given else (size - 1) * stride + max(extent, stride)
        return Window(max(out, 0), 0, extra=extra)
    if not given:
        return Window(size * stride, max(extent - stride, 0) // 2)
    odd = extent % 2
    out = (size - 1) * stride + odd + extra if size > 0 else 0
    return Window(out, max(extent - odd - extra, 0) // 2, extra=extra)


# ---- numbers, and where they lie --------------------------------------------------


class Numbers(NamedTuple):
    """Operands in the dtype of the computation, what is expected and how exactly."""

    x: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray | None
    want: np.ndarray
    scale: np.ndarray  # the sums of the absolute products

    def repeated(self, times: int) -> Numbers:
        x, want, scale = (repeated(its, times) for its in (self.x, self.want, self.scale))
        return self._replace(x=x, want=want, scale=scale)


def repeated(samples: np.ndarray, times: int) -> np.ndarray:
    """The first sample, so often, without a copy."""
    return np.broadcast_to(samples[:1], (times, *samples.shape[1:]))


def numbers(case: Case) -> Numbers:
    rng = np.random.default_rng(case.seed)
    problem = case.problem
    batch = 1 if case.repeats else case.batch
    shapes = problem.x_shape(batch), problem.kernel_shape, (problem.filters,)
    operands = []
    for shape, layout in zip(shapes, case.layouts[:3], strict=True):
        if layout == "broadcast":
            shape = tuple(1 if i == case.seed % len(shape) else n for i, n in enumerate(shape))
        if case.integers:
            operands.append(rng.integers(-4, 5, shape).astype(case.dtype))
        else:
            operands.append(rng.standard_normal(shape).astype(case.dtype))
    x, kernel, bias = map(np.broadcast_to, operands, shapes)
    want = expected(case, x, kernel, bias)
    if case.activation == "relu":
        want = np.maximum(want, 0)
    scale = want if case.integers else expected(case, abs(x), abs(kernel), abs(bias))
    return Numbers(x, kernel, bias if case.use_bias else None, want, scale)


def expected(case: Case, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    axes, problem = case.problem.axes, case.problem
    return oracle.conv3d_transpose(
        x,
        kernel,
        bias if case.use_bias else None,
        [a.stride for a in axes],
        [a.crop for a in axes],
        [a.out for a in axes],
        [a.dilation for a in axes],
        problem.groups,
        problem.channels_last,
        np.longdouble if case.dtype == "float64" and not case.integers else np.float64,
    )


@cache
def memory(operand: str, nbytes: int) -> Guarded:
    return Guarded(nbytes)


class Place:
    """Memory of an operand, all its bytes 0xFF (which is NaN), and a view of the shape in it."""

    def __init__(
        self, operand: str, shape: tuple[int, ...], dtype: np.dtype, layout: str, case: Case
    ) -> None:
        rng = np.random.default_rng(case.seed)
        dims = range(len(shape))

        def typed(shape: Sequence[int], dtype: np.dtype = dtype, spare: int = 0) -> np.ndarray:
            nbytes = prod(shape) * dtype.itemsize + spare
            if layout == "memmap" and nbytes > 0:
                with tempfile.TemporaryFile() as file:
                    self.bytes = np.memmap(file, np.uint8, "w+", shape=(nbytes,))
            else:
                size = 1 << max(nbytes - 1, 1 << 16).bit_length()
                self.bytes = memory(operand, size).bytes(nbytes, case.at_end)
            self.bytes[...] = 0xFF
            part = self.bytes[spare:] if case.at_end else self.bytes[: nbytes - spare]
            return part.view(dtype).reshape(shape)

        axis = int(rng.integers(len(shape)))
        if layout == "permuted":
            order = rng.permutation(len(shape))
            self.view = typed([shape[i] for i in order]).transpose(np.argsort(order))
        elif layout == "reversed":
            self.view = typed(shape)[tuple(slice(None, None, rng.choice((1, -1))) for _ in dims)]
        elif layout == "sliced":
            pads = rng.integers(0, 3, (2, len(shape))) * rng.integers(0, 2, len(shape))
            before, after = pads.tolist()
            host = typed([b + n + a for b, n, a in zip(before, shape, after, strict=True)])
            self.view = host[tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))]
        elif layout == "stepped":
            host = typed([n * (2 if i == axis else 1) for i, n in enumerate(shape)])
            self.view = host[(slice(None),) * axis + (slice(case.at_end, None, 2),)]
        elif layout == "unaligned":
            self.view = typed(shape, spare=1)
        elif layout == "records":
            self.view = typed(shape, np.dtype([("tag", "u1"), ("number", dtype)]))["number"]
        elif layout == "big-endian":
            self.view = typed(shape, dtype.newbyteorder(">"))
        elif layout == "broadcast":
            i = case.seed % len(shape)
            self.view = typed([min(n, 1) if j == i else n for j, n in enumerate(shape)])
        else:
            self.view = typed(shape)
        self.layout = layout

    def hold(self, array: np.ndarray) -> np.ndarray:
        """The view, filled."""
        self.view[...] = array[tuple(map(slice, self.view.shape))]
        self.view.flags.writeable = self.layout != "read-only"
        return np.broadcast_to(self.view, array.shape) if self.layout == "broadcast" else self.view

    def untouched(self) -> bool:
        """Whether only the view has been written to. Fills it again."""
        self.view[...] = np.full(self.view.itemsize, 0xFF, np.uint8).view(self.view.dtype)[0]
        return bool((self.bytes == 0xFF).all())


def plain(operand: str, array: np.ndarray, case: Case) -> np.ndarray:
    return Place(operand, array.shape, array.dtype, "plain", case).hold(array)


# ---- what must hold ---------------------------------------------------------------


class GuardedWeights(plan.Weights):
    """Weights whose packed forms lie at a forbidden page too."""

    at_end = True

    def packed(self, key: Any, pack: Any) -> Any:
        return super().packed(key, lambda: self.moved(pack()))

    def moved(self, packed: Any) -> Any:
        if isinstance(packed, tuple):
            return self.moved(packed[0]), *packed[1:]
        return Guarded(packed.nbytes).copy(packed, self.at_end)


class Report(Counter[str]):
    """What has been run, and the largest errors in ULP of the sum of absolute products."""

    def __init__(self) -> None:
        super().__init__()
        self.ulps: dict[str, float] = {}

    def text(self) -> str:
        runs = ", ".join(f"{name} {count:,}" for name, count in sorted(self.items()))
        ulps = ", ".join(f"{name} {most:.2f}" for name, most in sorted(self.ulps.items()))
        return f"runs: {runs}\nlargest errors in ULP of the sum of absolute products: {ulps}"


def check(case: Case, report: Report) -> None:
    """Every candidate and one public call; AssertionError where any is wrong."""
    engine.serial_below = 0
    repeats = case.repeats
    its = numbers(case)
    x, kernel, bias = (
        None if array is None else Place(name, array.shape, array.dtype, layout, case).hold(array)
        for name, array, layout in zip(("x", "kernel", "bias"), its[:3], case.layouts, strict=False)
    )
    if repeats:
        x, its = repeated(x, repeats), its.repeated(repeats)
    check_candidates(case, its, x, report)
    if case.padding is not None and not (repeats and case.algorithm == "im2col"):
        check_call(case, its, x, kernel, bias, report)
    for array, before in ((x, its.x), (kernel, its.kernel), (bias, its.bias)):
        assert before is None or (array == before).all(), "the call wrote to an operand"


def check_candidates(case: Case, its: Numbers, x: np.ndarray, report: Report) -> None:
    """Every algorithm that accepts the problem, by its plan."""
    activation = activations.get(case.activation)
    source = plan.readable(x, its.x.dtype)
    if source is not x:
        source = plain("source", source, case)
    threads = engine.threads(case.threads, 1)
    weights = GuardedWeights(plain("weights", its.kernel, case), its.bias, case.problem.groups)
    weights.at_end = case.at_end
    for name in plan.ALGORITHMS:
        made = plan.plan_for(case.problem, weights, name)
        if made.algorithm != name or (name == "im2col" and (case.repeats or case.seed % 4)):
            continue  # NumPy is slow, and the same for all instruction sets
        place = Place("out", its.want.shape, its.x.dtype, case.layouts[3], case)
        if not made.writable(place.view, source):
            place = Place("out", its.want.shape, its.x.dtype, "plain", case)
        team = made.run(source, place.view, activation, threads)
        busy = its.want.size > 0 and plan.reached(made.problem)
        check_team(team, made, len(source) if busy else 0, threads)
        compare(case, its, place.view, name, report)
        assert place.untouched(), f"{name} wrote beside its output"
        assert (source == its.x).all(), f"{name} wrote to its input"


def check_team(team: int, made: plan.Plan, batch: int, threads: int) -> None:
    """As many threads as were asked for, where there are as many samples."""
    if made.compiled is None or not engine.runtime.openmp()[0]:
        threads = 1
    least = threads if batch >= threads else 1
    assert least <= team <= threads, f"a team of {team} for {batch} samples on {threads} threads"


def check_call(
    case: Case,
    its: Numbers,
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    report: Report,
) -> None:
    """The function, or the layer."""
    problem = case.problem
    dtype = HALVES.get(case.cast, its.x.dtype)
    x = x.astype(dtype, copy=False)
    if case.cast == "weights":
        other = np.dtype("float64" if case.dtype == "float32" else "float32")
        kernel, bias = kernel.astype(other), None if bias is None else bias.astype(other)
    place = Place("out", its.want.shape, dtype, case.layouts[3], case)
    out = None if case.layouts[3] == "new" else place.view
    options = {
        "strides": tuple(axis.stride for axis in problem.axes),
        "padding": case.padding,
        "output_padding": case.output_padding,
        "dilation_rate": tuple(axis.dilation for axis in problem.axes),
        "groups": problem.groups,
        "data_format": "channels_last" if problem.channels_last else "channels_first",
        "activation": case.activation,
        "num_threads": case.threads,
        "algorithm": case.algorithm,
    }
    if case.layer:
        layer = Conv3DTranspose(
            problem.filters, kernel.shape[:3], use_bias=case.use_bias, dtype=case.dtype, **options
        )
        layer.build(problem.x_shape(1))
        layer.set_weights([kernel] if bias is None else [kernel, bias])
        y = layer(x, out=out)
    else:
        y = conv3d_transpose(x, kernel, bias, out=out, **options)
    assert y.dtype == dtype
    assert out is None or y is out
    compare(case, its, y, f"{'layer' if case.layer else 'function'} {case.algorithm}", report)
    assert out is None or place.untouched(), "the call wrote beside its output"


def compare(case: Case, its: Numbers, got: np.ndarray, name: str, report: Report) -> None:
    """Equality where every sum is exact; else a bound for each number.

    The sums of a tile of minimal filtering share their errors, so there the bound is that of
    the largest.
    """
    report[name] += 1
    assert got.shape == its.want.shape
    shared = name.partition(" ")[2] in ("auto", "winograd") or name == "winograd"
    if case.integers and not (shared and case.problem.in_channels > EXACT):
        with np.errstate(over="ignore"):
            want = its.want.astype(case.dtype).astype(got.dtype)
        right = got == want
    else:
        want, scale = its.want, its.scale
        scale = np.finfo(case.dtype).eps * (scale.max(initial=0) if shared else scale)
        error = abs(got - want)
        right = error <= ULPS * scale
        relative = np.divide(error, scale, out=np.zeros_like(error), where=scale > 0)
        most = float(relative.max(initial=0))
        report.ulps[name] = max(report.ulps.get(name, 0), most)
    if not right.all():
        at = tuple(int(i) for i in np.argwhere(~right)[0])
        raise AssertionError(
            f"{name}: {np.count_nonzero(~right)} of {right.size} numbers are wrong, the first at "
            f"{at}: {got[at]} instead of {want[at]}"
        )


# ---- the command ------------------------------------------------------------------


def numbered(number: int) -> Case:
    return draw(random.Random(number).randint)


def run(isa: str, first: int, problems: int, record: int) -> None:
    """Check problems by number; ``record`` is a file that always holds the current one."""
    engine.select(isa)
    report = Report()
    began = time.monotonic()
    for number in range(first, first + problems):
        os.pwrite(record, f"{number:<20}".encode(), 0)
        check(numbered(number), report)
        done = number + 1 - first
        if done % 10_000 == 0 or done == problems:
            print(f"{isa}: {done:,} problems in {time.monotonic() - began:.0f} s", flush=True)
    print(report.text())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", default=engine.selected(), choices=(*engine.can(), "numpy"))
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--record", help=argparse.SUPPRESS)
    its = parser.parse_args(arguments)
    if its.record:  # the process that may die
        faulthandler.enable()
        with open(its.record, "r+b") as record:
            run(its.isa, its.first, its.problems, record.fileno())
        return 0
    with tempfile.NamedTemporaryFile() as record:
        command = [sys.executable, __file__, *arguments, "--record", record.name]
        # Threads of a team that wait for each other, where there are fewer CPUs, sleep.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        code = subprocess.run(command, env=environment).returncode
        if code:
            number = int(record.read() or its.first)
            print(
                f"FAILED (exit code {code}): {numbered(number)}\n"
                f"again: python tests/fuzz.py --isa {its.isa} --first {number} --problems 1",
                file=sys.stderr,
            )
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
