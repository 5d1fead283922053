"""A part of a result computed by itself has the bits that it has in the whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from cases import COMPILED, ISAS, axis, normal, plans
from fuzz import Draw, draw_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import LAYERS, Layer

from conv3dt import activations, engine, plan
from conv3dt.chained import Chain, Convolution, Section
from conv3dt.pieces import Operation, Piece
from conv3dt.problem import Axis, Problem, cut, phases

Cuts = list[list[int]]


def operations(
    problem: Problem, kernel: np.ndarray, bias: Any, batch: int, activation: Any, threads: int
) -> Iterator[Operation]:
    """The problem as every algorithm that accepts it does it."""
    weights = plan.Weights(kernel, bias, problem.groups)
    for made in plans(problem, kernel, bias):
        whole = weights.plan(problem, made.algorithm)
        yield Operation(
            weights,
            whole,
            activations.get(activation),
            problem.x_shape(batch),
            (kernel.dtype,),
            kernel.dtype,
            threads,
        )


def in_pieces(operation: Operation, x: np.ndarray, edges: Cuts) -> np.ndarray:
    """The result, put together from pieces that begin and end at `edges`, the ends excluded."""
    result = np.full(operation.y_shape, np.nan, x.dtype)
    chain = Chain([Convolution(operation)], x.dtype)
    ends = [[0, *edge, size] for edge, size in zip(edges, operation.sizes, strict=True)]
    for ranges in product(*map(pairwise, ends)):
        piece, section = Piece(operation, ranges), Section(chain, ranges)
        part = x[section.inputs]
        assert part.shape == piece.x_shape
        result[section.outputs] = piece.apply(part, np.full(piece.y_shape, np.nan, x.dtype))
    return result


def at_once(operation: Operation, x: np.ndarray) -> np.ndarray:
    return operation.plan.apply(x, activation=operation.activation, num_threads=1)


def same_bits(got: np.ndarray, want: np.ndarray, message: str) -> None:
    assert got.shape == want.shape
    kind = f"u{want.itemsize}"
    np.testing.assert_array_equal(got.view(kind), want.view(kind), err_msg=message)


def every(operation: Operation) -> Cuts:
    """Cuts wherever there may be one."""
    return [
        list(range(grain, size, grain))
        for size, grain in zip(operation.sizes, operation.grains, strict=True)
    ]


@settings(max_examples=100)
@given(
    data=st.data(),
    batch=st.integers(1, 3),
    isa=st.sampled_from(ISAS),
    dtype=st.sampled_from(["float32", "float64"]),
    activation=st.sampled_from(["linear", "relu", "sigmoid", "gelu", "mish", "softmax"]),
    threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**16),
)
def test_any_problem_cut_anywhere(
    data: st.DataObject,
    batch: int,
    isa: str,
    dtype: str,
    activation: str,
    threads: int,
    seed: int,
) -> None:
    engine.select(isa)
    engine.serial_below = 0
    problem, _, _ = draw_problem(Draw(lambda low, high: data.draw(st.integers(low, high))))
    x, kernel, bias = normal(problem, batch, dtype, seed)
    for operation in operations(problem, kernel, bias, batch, activation, threads):
        edges = [
            sorted(data.draw(st.sets(st.sampled_from(places), max_size=3))) if places else []
            for places in every(operation)
        ]
        if 0 in operation.sizes:
            continue
        got = in_pieces(operation, x, edges)
        same_bits(got, at_once(operation, x), f"{operation.plan.algorithm} {edges}")


GEOMETRIES = {
    "k2 s2": (2, 2, 1, 0),
    "k3 s2": (3, 2, 1, 1),
    "k4 s2": (4, 2, 1, 1),
    "k3 s1": (3, 1, 1, 1),
    "k1 s3": (1, 3, 1, 0),
    "k5 s2": (5, 2, 1, 0),
    "k3 s1 d2": (3, 1, 2, 2),
    "k3 s2 d3": (3, 2, 3, 0),
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    ("channels", "filters", "dtype"), [(19, 17, "float32"), (150, 2, "float64")]
)
def test_cut_everywhere(
    geometry: str, channels: int, filters: int, dtype: str, isa: str, channels_last: bool
) -> None:
    kernel_size, stride, dilation, crop = GEOMETRIES[geometry]
    axes = [axis(size, kernel_size, stride, dilation, crop, -crop) for size in (4, 3, 7)]
    problem = Problem(channels, filters, 1, (axes[0], axes[1], axes[2]), channels_last)
    x, kernel, bias = normal(problem, 2, dtype)
    for operation in operations(problem, kernel, bias, 2, "relu", 1):
        got = in_pieces(operation, x, every(operation))
        same_bits(got, at_once(operation, x), operation.plan.algorithm)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_published_layers(layer: Layer, isa: str, channels_last: bool) -> None:
    problem = layer.small(5, 33, 18).problem(channels_last)
    x, kernel, bias = normal(problem, 2)
    for operation in operations(problem, kernel, bias, 2, "linear", 3):
        got = in_pieces(operation, x, every(operation))
        same_bits(got, at_once(operation, x), operation.plan.algorithm)


def test_matrix_products_of_im2col_keep_their_sizes(dtype: str, channels_last: bool) -> None:
    """Large enough for several chunks along each axis."""
    problem = Problem(3, 40, 1, (axis(9, 3, 2), axis(40, 3, 2), axis(300, 3, 1)), channels_last)
    x, kernel, bias = normal(problem, 1, dtype)
    operation = list(operations(problem, kernel, bias, 1, "linear", 1))[-1]
    depth, height, width = operation.plan.box
    assert depth == 1 and height < 40 and width == 300
    edges = [[], [2, 6], [8, 30], [100]]
    same_bits(in_pieces(operation, x, edges), at_once(operation, x), "im2col")


@pytest.mark.parametrize("isa", COMPILED)
def test_what_the_whole_decided_holds_for_the_parts(isa: str) -> None:
    """An algorithm that is best for the whole and not for its parts; gaps that parts lack."""
    engine.select(isa)
    problem = Problem(64, 64, 1, (axis(8, 4, 2, crop=1),) * 3, True)
    weights = plan.Weights(*normal(problem)[1:])
    small = Problem(64, 64, 1, (axis(1, 4, 2, crop=1),) * 3, True)
    whole = weights.plan(problem, "auto")
    assert whole.algorithm == "winograd" != weights.plan(small, "auto").algorithm
    piece = Piece(
        Operation(weights, whole, activations.linear, (1, 8, 8, 8, 64), (), np.dtype("f4"), None),
        [(0, 1), (4, 8), (4, 8), (4, 8)],
    )
    assert piece.plan.algorithm == "winograd"

    gaps = Problem(4, 4, 1, (axis(3, 2, 3, extra=1),) * 3, True)
    weights = plan.Weights(*normal(gaps)[1:])
    whole = weights.plan(gaps, "auto")
    part = weights.part(whole, Problem(4, 4, 1, (axis(1, 2, 3),) * 3, True))
    assert whole.gaps and part.gaps and not part.fused


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("activation", "array_axis"),
    [("softmax", 4), ("sparsemax", 4), (activations.softmax.with_options(axis=1), 1)],
)
def test_an_axis_along_which_numbers_mix_stays_whole(
    activation: Any, array_axis: int, channels_last: bool
) -> None:
    problem = Problem(3, 12, 1, (axis(3, 2, 2),) * 3, channels_last)
    x, kernel, bias = normal(problem, 2)
    for operation in operations(problem, kernel, bias, 2, activation, 1):
        edges = every(operation)
        whole = array_axis - (0 if channels_last else 1)
        assert whole in (0, 4) or not edges[whole]
        assert edges[0]
        same_bits(in_pieces(operation, x, edges), at_once(operation, x), "")


def test_parts_of_an_axis_have_its_phases_and_taps() -> None:
    for size, kernel, stride, dilation, crop in product(
        range(1, 6), range(1, 5), range(1, 4), range(1, 3), range(4)
    ):
        whole = axis(size, kernel, stride, dilation, crop, 2)
        for begin in range(0, whole.out, stride):
            for end in range(begin + 1, whole.out + 1):
                part, first = cut(whole, begin, end)
                assert 1 <= part.size and 0 <= first and first + part.size <= size
                _same_reads(whole, part, begin, first)


def _same_reads(whole: Axis, part: Axis, begin: int, first: int) -> None:
    for their, our in zip(phases(whole), phases(part), strict=True):
        assert their.first == our.first
        for (tap, offset), (same, moved) in zip(their.taps, our.taps, strict=True):
            assert tap == same
            for j in range(our.count(part)):
                theirs = j + begin // whole.stride + offset
                ours = j + moved
                assert theirs == ours + first
                assert (0 <= theirs < whole.size) == (0 <= ours < part.size)
