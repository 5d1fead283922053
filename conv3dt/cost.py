"""What the algorithms cost, in vector multiply-adds per sample: the plan takes the cheapest.

Functions of the problem and the vector width alone. Constants were fitted to measured times
(benchmarks/race); they need to rank the algorithms, not to predict times.
"""

from __future__ import annotations

from itertools import product
from math import prod

from .problem import Axis, Problem, phases

STORE = 4.0  # a vector of results: bias, activation, store
TRANSPOSE = 14.0  # the same through a transpose
LOAD = 10.0  # transposing a vector of inputs
ADD = 4.0  # adding a vector of products to its sum
WEIGHTS = 20.0  # reading a vector of weights once from the third-level cache
TURN_IN = 6.0  # transforming a vector of inputs
TURN_OUT = 4.0  # transforming a vector of products back
PIECE = 150.0  # finding the taps of a rectangle of a plane
TILE = 200.0  # finding the inputs and outputs of a tile of minimal filtering


def vectors(count: int, vector: int) -> int:
    """Vectors that hold ``count`` numbers."""
    return -(-count // vector)


def tiles(problem: Problem, vector: int, fused: bool) -> float:
    """Filters across the lanes: lanes are idle when they are few."""
    filters, depth = problem.filters // problem.groups, problem.in_channels // problem.groups
    repeat = problem.axes[2].stride if fused else 1
    lanes = problem.groups * vectors(filters * repeat, vector) / repeat
    products = prod(a.size * a.kernel for a in problem.axes) * depth * lanes
    results = prod(a.out for a in problem.axes) * lanes
    weights = prod(problem.kernel_shape[:3]) * depth * lanes * WEIGHTS
    return products + weights + results * (STORE if problem.channels_last else STORE + TRANSPOSE)


def taps(problem: Problem, vector: int) -> float:
    """Positions across the lanes: lanes are idle when rows are short."""
    depth, height, width = problem.axes
    rows = depth.size * height.size
    lanes = vectors(width.size, vector)
    weights = depth.kernel * height.kernel * width.kernel * problem.filters
    products = rows * lanes * weights * (problem.in_channels + ADD)
    loads = rows * lanes * problem.in_channels * (LOAD if problem.channels_last else 1)
    loads += weights * problem.in_channels / vector * WEIGHTS
    results = prod(a.out for a in problem.axes) * problem.filters / vector
    streams = width.stride * (problem.filters if problem.channels_last else 1)
    weave = STORE if streams & (streams - 1) == 0 else STORE * vector / 2
    return products + loads + results * (STORE + weave)


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


def winograd(problem: Problem, vector: int) -> float:
    """Tiles of 2 outputs per axis and r + 1 products for phases of r taps; transforms."""
    lanes = vectors(problem.filters, vector)
    depth = vectors(problem.in_channels, vector)
    total = 0.0
    sides = [
        [(phase.count(axis), len(phase.taps)) for phase in phases(axis)] for axis in problem.axes
    ]
    for combination in product(*sides):
        several = sum(taps > 1 for _, taps in combination) > 1
        tiles = prod(vectors(n, 2) if several and taps > 1 else n for n, taps in combination)
        products = prod(taps + 1 if several and taps > 1 else taps for _, taps in combination)
        panels = products * problem.in_channels * lanes
        total += tiles * panels + panels * WEIGHTS
        if several:
            total += tiles * (products * (depth * TURN_IN + lanes * TURN_OUT) + TILE)
    results = prod(a.out for a in problem.axes) * lanes
    return total + results * (STORE if problem.channels_last else STORE + TRANSPOSE)
