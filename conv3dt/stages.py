"""The steps of a chain as the stages of a program, or as links that can be cut."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import prod

from . import dtypes
from .batchnorm import BatchNormalization
from .chained import Convolution, Given, Link
from .dense import Dense
from .layer import Conv3DTranspose
from .members import Activation, Dropout, InputLayer, Member, Overwriting, View
from .pieces import Range
from .program import DType, Program, Stage, naming

Step = Conv3DTranspose | Member
Sizes = tuple[int, ...]


def program(steps: Sequence[Step], x_shape: Sizes, x_dtype: DType) -> Program:
    """The program of a chain for one input shape and dtype."""
    stages: list[Stage] = []
    shape, dtype = x_shape, x_dtype
    borrowed = True  # the caller's x, which is not to be written to
    for step in steps:
        with naming(step):
            stages.append(_stage(step, shape, dtype, borrowed))
        borrowed = borrowed and stages[-1].inplace
        shape, dtype = stages[-1].shape, stages[-1].dtype
    if borrowed:  # the result must be no view of x
        stages.append(Stage(Activation(None, name="copy"), shape, dtype, inplace=False))
    return Program(stages)


def _stage(step: Step, x_shape: Sizes, x_dtype: DType, borrowed: bool) -> Stage:
    shape: Sizes = step.compute_output_shape(x_shape)  # type: ignore[assignment]
    if isinstance(step, View):
        return Stage(step, shape, x_dtype, inplace=True)
    if isinstance(step, Overwriting):
        dtype = step.result_dtype(x_dtype)
        inplace = not borrowed and (shape, dtype) == (x_shape, x_dtype)
        halved = shape != x_shape
        return Stage(step, shape, dtype, inplace, prod(x_shape) * dtype.itemsize * halved)
    assert isinstance(step, (Conv3DTranspose, Dense))
    policy = dtypes.policy(step.dtype_policy)
    return Stage(step, shape, policy.result, False, _scratch(step, policy, x_shape, x_dtype, shape))


def _scratch(
    step: Conv3DTranspose | Dense,
    policy: dtypes.Policy,
    x_shape: Sizes,
    x_dtype: DType,
    shape: Sizes,
) -> int:
    """Bytes of the copies that a layer makes of its input and of its result."""
    copies = 0
    if x_dtype not in policy.direct:
        x_dtype = policy.direct[0]
        copies += prod(x_shape) * x_dtype.itemsize
    if x_dtype != policy.compute:
        copies += prod(x_shape) * policy.compute.itemsize
    result = prod(shape) * policy.compute.itemsize
    if step.activation.halves:  # what is halved, and two halves
        return copies + 4 * result
    return copies if policy.result == policy.compute else copies + result


def links(steps: Sequence[Step], x_shape: Sizes, x_dtype: DType) -> list[Link]:
    """The steps for volumes that are cut.

    Raises
    ------
    ValueError
        A shape that a step cannot take, or a step that cannot be cut; the message has its name.
    """
    formats = [step.data_format for step in steps if isinstance(step, Conv3DTranspose)]
    if not formats:
        raise ValueError("layers must have a Conv3DTranspose among them, got none")
    found: list[Link] = []
    shape, dtype = x_shape, x_dtype
    for step in steps:
        with naming(step):
            given, shape = shape, step.compute_output_shape(shape)  # type: ignore[assignment]
            if isinstance(step, (Dropout, InputLayer)):
                continue
            if isinstance(step, Conv3DTranspose):
                if step.data_format != formats[0]:
                    raise ValueError(f"data_format must be {formats[0]!r} as of those before it")
                found.append(Convolution(step.operation(given)))
            else:
                grains = found[-1].grains if found else (1, 1, 1, 1)
                last = formats[0] == "channels_last"
                found.append(Voxels.of(step, given, dtype, last, grains))
        dtype = found[-1].result
    return found


@dataclass(frozen=True)
class Voxels:
    """A layer that looks at each voxel by itself, or along whole axes, as a link.

    Attributes
    ----------
    mixed
        Of samples, depth, height and width those that must stay whole.
    """

    step: Dense | Overwriting
    channels_last: bool
    x_shape: Sizes
    y_shape: Sizes
    result: DType
    mixed: frozenset[int]
    grains: Sizes

    @classmethod
    def of(
        cls, step: Member, x_shape: Sizes, x_dtype: DType, channels_last: bool, grains: Sizes
    ) -> Voxels:
        """The link; outputs begin where those before it may, so that none are computed in vain."""
        if not isinstance(step, (Activation, BatchNormalization, Dense)) or len(x_shape) != 5:
            raise ValueError("a volume must go through it whole: call the chain, not in blocks")
        stage = _stage(step, x_shape, x_dtype, True)
        space = _space(channels_last)
        mixed = frozenset(space.index(axis) for axis in _mixed(step) if axis in space)
        own = tuple(
            max(stage.shape[axis], 1) if i in mixed else grains[i] for i, axis in enumerate(space)
        )
        return cls(step, channels_last, x_shape, stage.shape, stage.dtype, mixed, own)

    @property
    def sizes(self) -> Sizes:
        return tuple(self.y_shape[axis] for axis in _space(self.channels_last))

    def cut(self, axis: int, outputs: Range) -> tuple[Hashable, Range]:
        if axis in self.mixed:
            outputs = 0, self.x_shape[_space(self.channels_last)[axis]]
        return outputs[1] - outputs[0], outputs

    def stage(self, outputs: Sequence[Range], given: Given) -> Stage:
        stage = _stage(self.step, given.shape, given.dtype, given.borrowed)
        more = (
            2 * stage.nbytes * (self.step.activation.scope == "whole")
            if isinstance(self.step, (Activation, Dense))
            else 0
        )
        if isinstance(self.step, Dense):
            more += self.step.scratch(prod(given.shape[:-1]))
            more += given.borrowed * prod(given.shape) * given.dtype.itemsize  # as rows
        return stage._replace(scratch=stage.scratch + more)


def _space(channels_last: bool) -> Sizes:
    """The axes of samples, depth, height and width."""
    return (0, 1, 2, 3) if channels_last else (0, 2, 3, 4)


def _mixed(step: Activation | BatchNormalization | Dense) -> set[int]:
    """The axes of 5 along which numbers do not stand for themselves."""
    if isinstance(step, BatchNormalization):
        return {step.axis % 5}
    mixed = {step.activation.mixed_axis(5)} - {None}
    return mixed | {4} if isinstance(step, Dense) else mixed  # type: ignore[return-value]
