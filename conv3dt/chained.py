"""Sections: a part of a chain's result by itself, with the bits that it has in the whole.

A section is walked from its end. The outputs that a link has to give, widened to where a piece
of it may begin, tell the inputs that it reads; these are what the link before has to give. So
neighbouring sections compute some of the results between the links twice, of the last result
none. A layer by itself is a chain of one link.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from . import engine, output_pool
from .pieces import Index, Operation, Piece, Range, index
from .program import Program, Stage

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]


class Link(Protocol):
    """A layer of a chain, for inputs of one shape."""

    @property
    def channels_last(self) -> bool:
        """Where the channels are; they are never cut."""

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input."""

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the result."""

    @property
    def result(self) -> DType:
        """dtype of the result."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """What there is to cut: samples, and outputs of depth, height and width."""

    @property
    def grains(self) -> tuple[int, ...]:
        """Multiples at which outputs may begin; the size of an axis that must stay whole."""

    def cut(self, axis: int, outputs: Range) -> tuple[Hashable, Range]:
        """What along an axis decides how outputs are computed, and the inputs they read."""

    def stage(self, outputs: Sequence[Range], given: Given) -> Stage:
        """How outputs are computed."""


class Given(NamedTuple):
    """What a link gets: shape and dtype of its inputs, and which part of an array they are.

    A `borrowed` array is not to be written to; in one that `runs`, kernels find the strides
    that they need.
    """

    shape: tuple[int, ...]
    dtype: DType
    inputs: Index
    borrowed: bool = False
    runs: bool = True


@dataclass(frozen=True)
class Convolution:
    """A transposed convolution as a link."""

    operation: Operation

    @property
    def channels_last(self) -> bool:
        return self.operation.plan.problem.channels_last

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.operation.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.operation.y_shape

    @property
    def result(self) -> DType:
        return self.operation.result

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.operation.sizes

    @property
    def grains(self) -> tuple[int, ...]:
        return self.operation.grains

    def cut(self, axis: int, outputs: Range) -> tuple[Hashable, Range]:
        if axis == 0:
            return outputs[1] - outputs[0], outputs
        part, first = self.operation.part(axis - 1, outputs)
        return part, (first, first + part.size)

    def stage(self, outputs: Sequence[Range], given: Given) -> Stage:
        step = _PieceOf(Piece(self.operation, outputs), given.inputs)
        shape = self.operation.activation.output_shape(step.piece.y_shape)
        return Stage(step, shape, self.result, False, step.scratch(given))


class _PieceOf:
    """A piece as a step of a program."""

    def __init__(self, piece: Piece, inputs: Index) -> None:
        self.piece = piece
        self._inputs = inputs

    def __call__(self, x: Array, out: Array) -> Array:
        piece = self.piece
        if out.size == 0:
            return out
        if (out.shape, out.dtype) == (piece.y_shape, piece.operation.compute):
            return piece.apply(x[self._inputs], out)
        room = output_pool.fresh(self._room()).view(piece.operation.compute)
        out[...] = piece.apply(x[self._inputs], room.reshape(piece.y_shape))
        return out

    def _room(self) -> int:
        return prod(self.piece.y_shape) * self.piece.operation.compute.itemsize

    def scratch(self, given: Given) -> int:
        """Bytes beside what is given and the result: copies of both, and what kernels take."""
        operation = self.piece.operation
        copies = sum(step.itemsize for step in _casts(operation, given))
        other = operation.result != operation.compute or operation.activation.halves
        results = 2 * other + 2 * (operation.activation.scope == "whole")
        threads = operation.num_threads or engine.get_num_threads()
        return (
            prod(self.piece.x_shape) * copies
            + self._room() * results
            + self.piece.plan.scratch(threads)
        )


def _casts(operation: Operation, given: Given) -> Iterable[DType]:
    """The copies that are made of inputs before kernels read them."""
    dtype = given.dtype
    if dtype not in operation.accepts:
        dtype = operation.accepts[0]
        yield dtype
    if dtype != operation.compute or not given.runs:
        yield operation.compute


class Span(NamedTuple):
    """Along one axis: the outputs of a link, the inputs it reads, and what its problem is."""

    outputs: Range
    inputs: Range
    problem: Hashable


class Chain:
    """Links, one after the other, for inputs of one shape and dtype.

    Attributes
    ----------
    x_shape, x_dtype, y_shape, result
        Shapes and dtypes of what goes in and comes out.
    sizes, grains
        Of the last link: what there is to cut, and where a section may begin.
    """

    def __init__(self, links: Sequence[Link], x_dtype: DType, runs: bool = True) -> None:
        self.links = links
        self.x_shape, self.x_dtype, self.runs = links[0].x_shape, x_dtype, runs
        self.y_shape, self.result = links[-1].y_shape, links[-1].result
        self.sizes, self.grains = links[-1].sizes, links[-1].grains
        self.channels_last = links[0].channels_last

    def walk(self, axis: int, ends: Range) -> list[Span]:
        """What each link does along an axis for these outputs of the last."""
        spans = []
        for link in reversed(self.links):
            size, grain = link.sizes[axis], link.grains[axis]
            outputs = ends[0] // grain * grain, min(-(-ends[1] // grain) * grain, size)
            problem, ends = link.cut(axis, outputs)
            spans.append(Span(outputs, ends, problem))
        return spans[::-1]

    def lengths(self, axis: int, ends: Range) -> tuple[int, ...]:
        """How long everything is along an axis, for these outputs of the last link."""
        spans = self.walk(axis, ends)
        return tuple(end - begin for span in spans for begin, end in (span.outputs, span.inputs))

    def scratch(self, ranges: Sequence[Sequence[Range]]) -> int:
        """Bytes that a link itself takes, at most, for any of these ranges along each axis.

        All problems that it poses have to be looked at: a smaller one may take more.
        """
        most = 0
        walks = [[self.walk(axis, ends) for ends in parts] for axis, parts in enumerate(ranges)]
        for i in range(len(self.links)):
            different = ({walk[i].problem: walk[i] for walk in parts}.values() for parts in walks)
            stages = (self.stage(i, spans) for spans in product(*different))
            most = max(most, *(stage.scratch for stage in stages))
        return most

    def stage(self, i: int, spans: Sequence[Span], starts: Sequence[int] | None = None) -> Stage:
        """What a link does for a section; ``starts`` is where the array begins that it gets."""
        link, last = self.links[i], self.channels_last
        inputs = [span.inputs for span in spans]
        shape = [end - begin for begin, end in inputs]
        shape.insert(4 if last else 1, link.x_shape[4 if last else 1])
        starts = starts or [begin for begin, _ in inputs]
        parts = [
            slice(begin - start, end - start)
            for (begin, end), start in zip(inputs, starts, strict=True)
        ]
        dtype = self.links[i - 1].result if i else self.x_dtype
        given = Given(tuple(shape), dtype, index(last, parts), i == 0, i > 0 or self.runs)
        return link.stage([span.outputs for span in spans], given)


def chain_of(layer: Any, x_shape: Sequence[int], x_dtype: DType, runs: bool = True) -> Chain:
    """What a Conv3DTranspose or a Sequential does with inputs of a shape and dtype."""
    if not callable(getattr(layer, "links", None)):
        raise TypeError(
            f"layer must be a Conv3DTranspose or a Sequential, got {type(layer).__name__}"
        )
    dtype = x_dtype.newbyteorder("=")
    return Chain(layer.links(x_shape, dtype), dtype, runs)


class Section:
    """A part of a chain's result: ``ranges`` of samples, depth, height and width.

    Attributes
    ----------
    inputs, outputs
        Slices of the whole input and result, five each.
    x_shape
        Of the inputs.
    program
        What makes the result of the inputs.
    """

    def __init__(self, chain: Chain, ranges: Sequence[Range]) -> None:
        walks = [chain.walk(axis, ends) for axis, ends in enumerate(ranges)]
        links: list[tuple[Span, ...]] = list(zip(*walks, strict=True))
        last = chain.channels_last
        self.sizes = [end - begin for begin, end in ranges]
        self.inputs = index(last, [slice(*span.inputs) for span in links[0]])
        self.outputs = index(  # an axis that glu halves is never cut
            last,
            [
                slice(None) if ends == (0, size) else slice(*ends)
                for ends, size in zip(ranges, chain.sizes, strict=True)
            ],
        )
        self.x_shape = tuple(
            len(range(*part.indices(size)))
            for part, size in zip(self.inputs, chain.x_shape, strict=True)
        )
        stages = [chain.stage(0, links[0])]
        for i, (before, spans) in enumerate(pairwise(links), 1):
            stages.append(chain.stage(i, spans, [span.outputs[0] for span in before]))
        self.program = Program(stages)
