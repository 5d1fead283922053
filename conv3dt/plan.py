"""The plan: an ordered list of algorithms, best first, NumPy last.

Each algorithm accepts a problem or says in words why not (printed with
``CONV3DT_VERBOSE=1``). Its weights are packed once, whatever the input shapes; the plans of
the latest shapes are kept. A choice depends on the problem of one sample and on the weights
alone, never on batch, threads or strides, so that the same numbers give the same bits.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from math import prod
from operator import itemgetter
from typing import Any, Protocol

import numpy as np

from . import col2im, cost, engine, output_pool
from .problem import Axis, Phase, Problem, effective_kernel, phases

Triple = tuple[int, int, int]

PLANS_KEPT = 16
SCRATCH_MARGIN = 4096 + 64  # bytes: what the driver leaves between threads
# Taps keeps a row of sums for each phase of each filter: 20 MB in rows of 256 float32.
MOST_STREAMS = 1 << 14
# Lanes keeps a plane of results for each phase of the width of each filter.
MOST_LANES = 1 << 8
SOFTMAX = 13  # the code of an activation that kernels apply as a second pass
FARTHEST = 16  # voxels between the inputs of an output: images hold all between them
VERBOSE = os.environ.get("CONV3DT_VERBOSE") == "1"


class Activation(Protocol):
    """What a plan needs to know of an activation (see ``conv3dt.activations``)."""

    code: int
    params: tuple[float, float, float, float]

    def inplace(self, y: np.ndarray) -> np.ndarray: ...


class Weights:
    """A kernel and bias in the compute dtype, with what was made of them.

    Parameters
    ----------
    kernel : ndarray, shape (kd, kh, kw, filters // groups, in_channels), float32 or float64
    bias : ndarray, shape (filters,), same dtype, or None
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray | None, groups: int = 1) -> None:
        self.kernel = np.ascontiguousarray(kernel)
        self.bias = bias
        self.groups = groups
        self.finite = bool(np.isfinite(self.kernel).all())
        self._packed: dict[Hashable, Any] = {}
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()

    def packed(self, key: Hashable, pack: Any) -> Any:
        """``pack()``, done once per key."""
        found = self._packed.get(key)
        if found is None:
            found = self._packed[key] = pack()
        return found

    def plan(self, problem: Problem, algorithm: str) -> Plan:
        """The plan for a problem, from the latest few or made now."""
        key = (engine.selected(), algorithm, problem)
        return self._kept(key, lambda: make_plan(problem, self, algorithm))

    def part(self, whole: Plan, problem: Problem) -> Plan:
        """The plan for a part of a problem, which computes the bits that the whole would."""
        if problem == whole.problem:
            return whole
        key = (engine.selected(), whole.algorithm, whole.problem, problem)
        return self._kept(key, lambda: make_part(whole, problem, self))

    def _kept(self, key: Hashable, make: Callable[[], Plan]) -> Plan:
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = make()
            while len(self._plans) > PLANS_KEPT:
                self._plans.popitem(last=False)
        return plan


class Candidate(Protocol):
    """An algorithm: what it is called, what it takes, what it costs, how it is made ready."""

    name: str
    family: str  # "direct": the sum as written
    side: int  # positions that are computed as one: where a part of a problem may begin

    def declines(self, problem: Problem, weights: Weights) -> str | None: ...

    def cost(self, problem: Problem, kernels: Any) -> float: ...

    def prepare(self, problem: Problem, weights: Weights, kernels: Any) -> Any: ...


class Tiles:
    """Gather by phase in register tiles (src_pyx/tiles.pxd)."""

    name = "tiles"
    family = "direct"
    side = 1

    def declines(self, problem: Problem, weights: Weights) -> str | None:
        return needs(problem, weights)

    def cost(self, problem: Problem, kernels: Any) -> float:
        return cost.tiles(problem, kernels.VECTOR, kernels.MR, self.fused(problem))

    def prepare(self, problem: Problem, weights: Weights, kernels: Any) -> Any:
        fused = self.fused(problem)
        axes = [nearby(axis) for axis in problem.axes]
        width = problem.axes[2]
        taps = [[[tap for tap, _ in phase.taps] for phase in axis] for axis in axes]
        if fused:  # one phase, whose columns are the taps of the width x filters
            offset = axes[2][0].taps[0][1]
            axes[2] = (Phase(0, ((0, offset),)),)
            taps[2] = [[phase_taps[0] for phase_taps in taps[2]]]
        packed = weights.packed(
            (kernels.__name__, self.name, fused, str(taps)),
            lambda: kernels.pack_tiles(weights.kernel, taps, problem.groups, fused),
        )
        return kernels.Tiles(
            [record(axis, its) for axis, its in zip(problem.axes, axes, strict=True)],
            problem.in_channels,
            problem.filters,
            problem.groups,
            problem.channels_last,
            fused,
            False,
            cost.sparse(problem),
            packed,
            bias_columns(problem, weights, width.stride if fused else 1, kernels.VECTOR),
            float(problem.multiplications),
        )

    @staticmethod
    def fused(problem: Problem) -> bool:
        """Whether all phases of the width have one tap, at the same input."""
        width = problem.axes[2]
        return (
            problem.channels_last
            and problem.groups == 1
            and width.stride == width.kernel > 1
            and width.dilation == 1
            and width.crop % width.stride == 0
        )


class Winograd:
    """Minimal filtering of phases with 2 or 3 taps (src_pyx/winograd.pxd)."""

    name = "winograd"
    family = "winograd"
    side = 2

    def declines(self, problem: Problem, weights: Weights) -> str | None:
        if problem.groups > 1:
            return "groups"
        axes = [phases(axis) for axis in problem.axes]
        if any(len(phase.taps) > 3 for axis in axes for phase in axis):
            return "a phase has more than 3 taps"
        if sum(any(len(phase.taps) > 1 for phase in axis) for axis in axes) < 2:
            return "no phase has several taps along two axes"
        if any(
            one - two != 1
            for axis in axes
            for phase in axis
            for (_, one), (_, two) in zip(phase.taps, phase.taps[1:], strict=False)
        ):
            return "taps of a phase that are not neighbours"
        if far(problem):
            return "phases that are far apart"
        return needs(problem, weights)

    def cost(self, problem: Problem, kernels: Any) -> float:
        return cost.winograd(problem, kernels.VECTOR, kernels.MR)

    def prepare(self, problem: Problem, weights: Weights, kernels: Any) -> Any:
        axes = [phases(axis) for axis in problem.axes]
        taps = [[[tap for tap, _ in phase.taps] for phase in axis] for axis in axes]
        packed = weights.packed(
            (kernels.__name__, self.name, str(taps)),
            lambda: kernels.pack_winograd(weights.kernel, taps),
        )
        return kernels.Tiles(
            [record(axis, its) for axis, its in zip(problem.axes, axes, strict=True)],
            problem.in_channels,
            problem.filters,
            1,
            problem.channels_last,
            False,
            True,
            False,
            packed,
            bias_columns(problem, weights, 1, kernels.VECTOR),
            float(problem.multiplications),
        )


class Taps:
    """Few filters: taps x filters times positions, summed by row (src_pyx/taps.pxd)."""

    name = "taps"
    family = "direct"
    side = 1

    def declines(self, problem: Problem, weights: Weights) -> str | None:
        if problem.groups > 1:
            return "groups"
        if prod(axis.stride for axis in problem.axes) * problem.filters > MOST_STREAMS:
            return "strides whose phases of all filters are too many rows of sums"
        return needs(problem, weights)

    def cost(self, problem: Problem, kernels: Any) -> float:
        return cost.taps(problem, kernels.VECTOR)

    def prepare(self, problem: Problem, weights: Weights, kernels: Any) -> Any:
        return kernels.Taps(
            [record(axis, nearby(axis)) for axis in problem.axes],
            problem.in_channels,
            problem.filters,
            problem.channels_last,
            weights.kernel,
            bias_columns(problem, weights, 1, 1),
            float(problem.multiplications),
        )


class Lanes:
    """Few filters and channels: gather by phase, positions side by side (src_pyx/lanes.pxd)."""

    name = "lanes"
    family = "direct"
    side = 1

    def declines(self, problem: Problem, weights: Weights) -> str | None:
        if problem.groups > 1:
            return "groups"
        if problem.axes[2].stride * problem.filters > MOST_LANES:
            return "too many phases and filters in a row of results"
        if far(problem):
            return "phases that are far apart"
        return needs(problem, weights)

    def cost(self, problem: Problem, kernels: Any) -> float:
        return cost.lanes(problem, kernels.VECTOR, kernels.MR * kernels.NV)

    def prepare(self, problem: Problem, weights: Weights, kernels: Any) -> Any:
        packed = weights.packed(
            (kernels.__name__, self.name), lambda: kernels.pack_lanes(weights.kernel)
        )
        return kernels.Lanes(
            [record(axis, nearby(axis)) for axis in problem.axes],
            problem.in_channels,
            problem.filters,
            problem.channels_last,
            packed,
            bias_columns(problem, weights, 1, 1).reshape(-1),
            float(problem.multiplications),
        )


class Depthwise:
    """One input channel per group: sums of taps alone (src_pyx/depthwise.pxd)."""

    name = "depthwise"
    family = "direct"
    side = 1

    def declines(self, problem: Problem, weights: Weights) -> str | None:
        if problem.groups != problem.in_channels:
            return "more than one input channel per group"
        if prod(axis.stride for axis in problem.axes) > MOST_STREAMS:
            return "strides whose phases are too many rows of sums"
        return None

    def cost(self, problem: Problem, kernels: Any) -> float:
        return cost.depthwise(problem, kernels.VECTOR)

    def prepare(self, problem: Problem, weights: Weights, kernels: Any) -> Any:
        packed = weights.packed(
            (kernels.__name__, self.name), lambda: kernels.pack_depthwise(weights.kernel)
        )
        return kernels.Depthwise(
            [record(axis, nearby(axis)) for axis in problem.axes],
            problem.in_channels,
            problem.filters,
            problem.channels_last,
            packed,
            kernels.wrapped(bias_columns(problem, weights, 1, 1).reshape(-1)),
            float(problem.multiplications),
        )


def needs(problem: Problem, weights: Weights) -> str | None:
    """Why no compiled algorithm takes the problem, if so."""
    if not weights.finite:
        return "weights that are not finite (zeros around the input would make NaN)"
    if problem.in_channels == 0:
        return "no input channels"
    return None


def far(problem: Problem) -> bool:
    """Whether the inputs of an output are too far apart for an image with all between them."""
    return any(effective_kernel(a.kernel, a.dilation) > FARTHEST * a.stride for a in problem.axes)


def nearby(axis: Axis) -> tuple[Phase, ...]:
    """The phases of an axis; taps that never meet the input lie just beyond it.

    Kernels multiply offsets and reserve memory by them.
    """
    its = phases(axis)
    grid = max((phase.count(axis) for phase in its), default=0)
    return tuple(
        replace(
            phase,
            taps=tuple((tap, min(max(offset, -grid), axis.size)) for tap, offset in phase.taps),
        )
        for phase in its
    )


def record(axis: Axis, its: tuple[Phase, ...]) -> tuple[Any, ...]:
    """An axis and its phases as the compiled plans take them.

    A stride that is never taken ends just beyond the output: kernels reserve memory by it.
    """
    counts = [phase.count(axis) for phase in its]
    stride = axis.stride
    if max(counts, default=0) <= 1:
        stride = min(stride, axis.out + axis.kernel + 1)  # still more than there are phases
    return (
        axis.size,
        axis.out,
        stride,
        tuple(
            (min(phase.first, axis.out), count, phase.taps)
            for phase, count in zip(its, counts, strict=True)
        ),
    )


def bias_columns(problem: Problem, weights: Weights, repeat: int, vector: int) -> np.ndarray:
    """Bias per column of each group, filled up with zeros to whole vectors."""
    columns = problem.filters // problem.groups * repeat
    padded = np.zeros((problem.groups, -(-columns // vector) * vector), weights.kernel.dtype)
    if weights.bias is not None:
        padded[:, :columns] = np.tile(weights.bias.reshape(problem.groups, -1), (1, repeat))
    return padded


CANDIDATES: tuple[Candidate, ...] = (Depthwise(), Lanes(), Taps(), Tiles(), Winograd())
BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}
ALGORITHMS = (*BY_NAME, "im2col")


class Plan:
    """An algorithm made ready for a problem and weights."""

    def __init__(
        self,
        problem: Problem,
        weights: Weights,
        algorithm: str,
        compiled: Any = None,
        fused: frozenset[int] = frozenset(),
        work: float | None = None,
        whole: Plan | None = None,
    ) -> None:
        self.problem = problem
        self.kernel = weights.kernel  # not the weights themselves: they keep their plans
        self.bias = weights.bias
        self.algorithm = algorithm
        self.compiled = compiled
        # A part of a problem takes from the whole's plan whatever decides about bits.
        self.gaps: bool = whole.gaps if whole else compiled is not None and has_gaps(problem)
        self.box: Triple = whole.box if whole else col2im.box_of(problem, self.kernel.itemsize)
        self.fused = frozenset() if self.gaps else fused  # codes of activations
        self.work = cost.im2col(problem) if work is None else work
        self.sample = problem.y_shape(1)[1:]

    def apply(
        self,
        x: np.ndarray,
        *,
        activation: Activation | None = None,
        out: np.ndarray | None = None,
        num_threads: int | None = None,
    ) -> np.ndarray:
        """See `execute`."""
        batch = x.shape[0]
        shape = (batch, *self.sample)
        compute = self.kernel.dtype
        source = readable(x, compute)
        if out is not None and out.shape == shape and self.writable(out, source):
            y = out
        else:
            y = output_pool.empty(shape, compute)
        y = self.compute(source, y, activation, num_threads)
        if y is out:
            return y
        if out is None:
            if y.dtype == x.dtype:
                return y
            out = output_pool.empty(y.shape, x.dtype)
        with np.errstate(all="ignore"):  # a half type may overflow, as it may in any cast
            out[...] = y
        return out

    def compute(
        self,
        x: np.ndarray,
        y: np.ndarray,
        activation: Activation | None = None,
        num_threads: int | None = None,
    ) -> np.ndarray:
        """The result in ``y``, or in a new array where the activation changes the shape.

        Both arrays as ``readable`` and ``writable`` want them.
        """
        team = engine.threads(num_threads, len(x) * self.work)
        if activation is None or activation.code in self.fused or activation.code == 0:
            self.run(x, y, activation, team)
            return y
        self.run(x, y, None, team)
        return self.finish(y, activation, team)

    def run(
        self, x: np.ndarray, y: np.ndarray, activation: Activation | None = None, threads: int = 1
    ) -> int:
        """Fill ``y``; both arrays as ``readable`` and ``writable`` want them.

        Returns the number of threads that took part.
        """
        code, params = 0, (0.0, 0.0, 0.0, 0.0)
        if activation is not None and activation.code in self.fused:
            code, params, activation = activation.code, activation.params, None
        if self.gaps:
            self.fill(y)
        if self.compiled is not None:
            team = self.compiled.run(x, y, code, params, threads)
        else:
            team = 1
            col2im.run(self.problem, self.kernel, self.bias, x, y, threads, self.box)
        if activation is not None and activation.code != 0:
            self.finish(y, activation, threads)
        return int(team)

    def finish(self, y: np.ndarray, activation: Activation, threads: int) -> np.ndarray:
        """An activation as a second pass, in place unless it changes the shape."""
        if activation.code != SOFTMAX or self.compiled is None:
            return activation.inplace(y)
        planes = [y] if y.flags.c_contiguous else (plane for sample in y for plane in sample)
        for plane in planes:
            rows = np.ascontiguousarray(plane)
            self.compiled.softmax(rows, threads)
            if rows is not plane:
                plane[...] = rows
        return y

    def cuts(self) -> tuple[Triple, Triple]:
        """Outputs, and inputs, per axis, at multiples of which a part of the problem may begin.

        There it has the phases of the whole, the tiles and, in im2col, the matrix products.
        """
        depth, height, width = (axis.stride for axis in self.problem.axes)
        if self.compiled is None:
            return (depth * self.box[0], height, width), (1, self.box[1], self.box[2])
        side = BY_NAME[self.algorithm].side
        return (depth * side, height * side, width * side), (1, 1, 1)

    def scratch(self, threads: int) -> int:
        """Bytes that a call takes beside x and y, at most."""
        if self.compiled is None:
            return threads * col2im.scratch(self.kernel, self.box)
        return threads * (int(self.compiled.scratch) + SCRATCH_MARGIN)

    def fill(self, y: np.ndarray) -> None:
        """Bias everywhere: what voxels that no tap reaches keep."""
        bias = self.bias
        if bias is not None and not self.problem.channels_last:
            bias = bias.reshape(-1, 1, 1, 1)
        y[...] = 0 if bias is None else bias

    def writable(self, out: np.ndarray, x: np.ndarray) -> bool:
        """Whether a kernel can write straight into ``out``."""
        return (
            out.dtype == self.kernel.dtype
            and unit_stride(out)
            and not np.may_share_memory(out, x)
            and not np.may_share_memory(out, self.kernel)
            and (self.bias is None or not np.may_share_memory(out, self.bias))
        )


def has_gaps(problem: Problem) -> bool:
    """Whether there are outputs that no tap reaches, whatever the input."""
    return any(sum(phase.count(axis) for phase in phases(axis)) < axis.out for axis in problem.axes)


def reached(problem: Problem) -> bool:
    """Whether any output has a tap; else there is nothing that a kernel could cut into boxes."""
    return all(any(phase.count(axis) for phase in phases(axis)) for axis in problem.axes)


def apart(problem: Problem) -> Problem:
    """The same problem with as large a stride as an axis of one voxel allows.

    There no two taps meet, so each may be a phase of its own. With the stride as given,
    nearly all taps of a phase would read the zeros around the voxel.
    """
    depth, height, width = (
        replace(axis, stride=max(axis.stride, effective_kernel(axis.kernel, axis.dilation)))
        if axis.size == 1
        else axis
        for axis in problem.axes
    )
    return replace(problem, axes=(depth, height, width))


def make_plan(problem: Problem, weights: Weights, algorithm: str) -> Plan:
    kernels = engine.kernels(weights.kernel.dtype)
    if kernels is None or algorithm == "im2col" or not reached(problem):
        return Plan(problem, weights, "im2col")
    problem = apart(problem)
    accepted: list[tuple[float, Candidate]] = []
    for candidate in CANDIDATES:
        if algorithm not in ("auto", candidate.family, candidate.name):
            continue
        reason = candidate.declines(problem, weights)
        if reason is None:
            accepted.append((candidate.cost(problem, kernels), candidate))
        elif VERBOSE:
            print(f"conv3dt: {candidate.name} declines: {reason}", file=sys.stderr)
    if not accepted and algorithm not in ("auto", "direct"):
        return make_plan(problem, weights, "direct")  # what was asked for cannot do it
    if not accepted:
        return Plan(problem, weights, "im2col")
    work, best = min(accepted, key=itemgetter(0))
    compiled = best.prepare(problem, weights, kernels)
    return Plan(problem, weights, best.name, compiled, kernels.FUSED, work)


def make_part(whole: Plan, problem: Problem, weights: Weights) -> Plan:
    if whole.compiled is None:
        return Plan(problem, weights, whole.algorithm, whole=whole)
    kernels = engine.kernels(weights.kernel.dtype)
    its = BY_NAME[whole.algorithm]
    compiled, work = its.prepare(problem, weights, kernels), its.cost(problem, kernels)
    return Plan(problem, weights, whole.algorithm, compiled, whole.fused, work, whole)


def plan_for(problem: Problem, weights: Weights, algorithm: str = "auto") -> Plan:
    """The first algorithm that accepts the problem, or the one that was asked for."""
    return weights.plan(problem, algorithm)


def execute(
    problem: Problem,
    weights: Weights,
    x: np.ndarray,
    *,
    activation: Activation | None = None,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
    algorithm: str = "auto",
) -> np.ndarray:
    """Apply weights to checked input, whatever its float dtype and strides.

    Parameters
    ----------
    problem : Problem
    weights : Weights
        In the compute dtype.
    x : ndarray of float, shape ``problem.x_shape(batch)``
    activation : Activation, optional
    out : ndarray, optional
        The result's shape and dtype; may overlap anything.

    Returns
    -------
    ndarray
        ``out``, or a new array of ``x``'s dtype.
    """
    return plan_for(problem, weights, algorithm).apply(
        x, activation=activation, out=out, num_threads=num_threads
    )


def unit_stride(array: np.ndarray) -> bool:
    """Whether the axis that the kernels run along has unit stride, and all whole reals."""
    size = array.itemsize
    return (
        (array.strides[4] == size or array.shape[4] == 1)
        and all(stride % size == 0 for stride in array.strides)
        and array.flags.aligned
    )


def readable(x: np.ndarray, compute: np.dtype) -> np.ndarray:
    """``x``, or a copy of it, as a kernel can read it."""
    if x.dtype == compute and (x.flags.carray or unit_stride(x)):
        return x
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(x, compute)
