"""What the algorithms cost, in vector multiply-adds per sample: the plan takes the cheapest, and
one thread for what costs little (``engine.serial_below``).

Functions of the problem and the vector width alone. Constants were fitted to measured times
(benchmarks/race); they need to rank the algorithms, not to predict times.
"""

from __future__ import annotations

from itertools import product
from math import prod

from .problem import Axis, Problem, effective_kernel, phases

STORE = 4.0  # a vector of results: bias, activation, store
TRANSPOSE = 18.0  # the same through a transpose
LOAD = 10.0  # transposing a vector of inputs
ADD = 12.0  # adding a vector of products to its sum, its part of a short tile
TERMS = 40  # channels from which on taps beyond the edges are left out, as in microkernel.pxd
POINT = 2.0  # finding the inputs of a tap of a tile
FEW_SUMS = 1.8  # a product in a tile of one vector, where sums are too few to hide their latency
NARROW = 1.4  # the same where they are enough: a broadcast for each product
SPAN = 1.3  # a product of the lanes algorithm, most of whose inputs start within a cache line
FAR = 2.5  # the same where the inputs of a tile do not fit the first-level cache
NEAR_REALS = 6 << 10  # inputs of a tile that do
PLANES_REALS = 48 << 10  # of the image of a box in the second-level cache
WEIGHTS = 20.0  # reading a vector of weights once from the third-level cache
ANNOUNCED = 14.0  # the same, fetched while the former product is computed
TURN_IN = 8.0  # transforming a vector of inputs
TURN_OUT = 8.0  # transforming a vector of products back
PIECE = 150.0  # finding the taps of a rectangle of a plane
TILE = 200.0  # finding the inputs and outputs of a tile of minimal filtering
BLAS = 16.0  # multiplications of NumPy's path in the time of one vector; its threads start slowly


def vectors(count: int, vector: int) -> int:
    """Vectors that hold ``count`` numbers."""
    return -(-count // vector)


def tiles(problem: Problem, vector: int, rows: int, fused: bool) -> float:
    """Filters across the lanes: lanes are idle when they are few."""
    filters, depth = problem.filters // problem.groups, problem.in_channels // problem.groups
    repeat = problem.axes[2].stride if fused else 1
    columns = vectors(filters * repeat, vector)
    lanes = problem.groups * columns / repeat
    taps = prod(reached(a) if depth >= TERMS else a.size * a.kernel for a in problem.axes)
    products = taps * (depth + POINT) * lanes
    if columns == 1:
        products *= FEW_SUMS if rows < 8 else NARROW
    results = prod(a.out for a in problem.axes) * lanes
    weights = prod(problem.kernel_shape[:3]) * depth * lanes * WEIGHTS
    return products + weights + results * (STORE if problem.channels_last else STORE + TRANSPOSE)


def sparse(problem: Problem) -> bool:
    """Whether at least a tenth of the inputs of all outputs are zeros beyond the edges."""
    pairs = prod(reached(axis) for axis in problem.axes)
    return pairs < 0.9 * prod(
        sum(phase.count(axis) * len(phase.taps) for phase in phases(axis)) for axis in problem.axes
    )


def reached(axis: Axis) -> int:
    """Pairs of an output and a tap that is within the input."""
    return sum(
        max(min(phase.count(axis), axis.size - offset) - max(-offset, 0), 0)
        for phase in phases(axis)
        for _, offset in phase.taps
    )


def taps(problem: Problem, vector: int) -> float:
    """Positions across the lanes: lanes are idle when rows are short."""
    depth, height, width = problem.axes
    rows = depth.size * height.size
    lanes = vectors(width.size, vector)
    weights = depth.kernel * height.kernel * width.kernel * problem.filters
    add, store = (0.0, STORE) if woven(problem) else (ADD, 2 * STORE)
    products = rows * lanes * weights * (problem.in_channels + add)
    loads = rows * lanes * problem.in_channels * (LOAD if problem.channels_last else 1)
    loads += weights * problem.in_channels / vector * WEIGHTS
    results = prod(a.out for a in problem.axes) * problem.filters / vector
    return products + loads + results * store


def woven(problem: Problem) -> bool:
    """Whether the taps algorithm stores its sums without keeping them (src_pyx/woven.pxd)."""
    streams = problem.axes[2].stride * (problem.filters if problem.channels_last else 1)
    plain = all(a.kernel == a.stride and a.crop == 0 for a in problem.axes)
    return plain and streams in (2, 4) and problem.in_channels <= 128


def lanes(problem: Problem, vector: int, sums: int) -> float:
    """Positions across the lanes, in planes without idle lanes; each box loads what it reads."""
    depth, height, width = problem.axes
    positions = depth.size * height.size * width.size / vector
    products = prod(a.kernel for a in problem.axes) * problem.filters * problem.in_channels
    most_taps = prod(max(len(phase.taps) for phase in phases(a)) for a in problem.axes)
    block = min(max(sums // problem.filters, 1), 8) * vector
    near = most_taps * problem.in_channels * block <= NEAR_REALS
    side = max((PLANES_REALS / (problem.in_channels * max(width.size, 1))) ** 0.5, 1.0)
    halo = max(
        vectors(effective_kernel(a.kernel, a.dilation) - 1, a.stride) for a in (depth, height)
    )
    reload = float((1 + (most_taps > 1) * halo / max(side - halo, 1.0)) ** 2)
    loads = positions * problem.in_channels * reload * (LOAD if problem.channels_last else 1)
    results = prod(a.out for a in problem.axes) * problem.filters / vector
    return positions * products * (SPAN if near else FAR) + loads + results * (STORE + STORE)


def depthwise(problem: Problem, vector: int) -> float:
    """Rows across the lanes, as they lie in memory: lanes are idle when these are short."""
    depth, height, width = problem.axes
    if problem.channels_last:
        lanes = vectors(width.size * problem.filters, vector)
    else:
        lanes = problem.filters * vectors(width.size, vector)
    rows = depth.size * height.size * lanes
    taps, results = prod(a.kernel for a in problem.axes), prod(a.stride for a in problem.axes)
    planes = depth.out * (1 if problem.channels_last else problem.filters)
    return rows * (taps + results * STORE) + planes * pieces(height) * pieces(width) * PIECE


def pieces(axis: Axis) -> int:
    """About how many parts of an axis have the same taps in range, over all phases."""
    return sum(min(phase.count(axis), len(phase.taps)) for phase in phases(axis))


def winograd(problem: Problem, vector: int, rows: int) -> float:
    """Tiles of 2 outputs per axis and r + 1 products for phases of r taps; transforms."""
    lanes = vectors(problem.filters, vector)
    depth = vectors(problem.in_channels, vector)
    few = FEW_SUMS if lanes == 1 and rows < 8 else 1.0
    total = 0.0
    sides = [
        [(phase.count(axis), len(phase.taps)) for phase in phases(axis)] for axis in problem.axes
    ]
    for combination in product(*sides):
        several = sum(taps > 1 for _, taps in combination) > 1
        tiles = prod(vectors(n, 2) if several and taps > 1 else n for n, taps in combination)
        products = prod(taps + 1 if several and taps > 1 else taps for _, taps in combination)
        panels = products * problem.in_channels * lanes
        total += few * tiles * panels + panels * ANNOUNCED
        if several:
            total += tiles * (products * (depth * TURN_IN + lanes * TURN_OUT) + TILE)
    results = prod(a.out for a in problem.axes) * lanes
    return total + results * (STORE if problem.channels_last else STORE + TRANSPOSE)


def im2col(problem: Problem) -> float:
    """NumPy: nothing competes with it, this is for the threads."""
    return problem.multiplications / BLAS
