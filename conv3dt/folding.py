"""Folding: the fewest steps that compute a chain."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from . import dtypes
from .batchnorm import BatchNormalization
from .dense import Dense
from .layer import Conv3DTranspose
from .members import Activation, Dropout, Member

Step = Conv3DTranspose | Member


def fold(
    layers: Iterable[Step], ranks: Iterable[int], num_threads: int | None = None
) -> list[Step]:
    """The layers that run instead of `layers`, which are built and stay as they are.

    A normalization goes into the weights of the layer before it, an activation becomes that
    layer's; identities go. Layers that have no `num_threads` of their own get the one given.
    `ranks` are the numbers of axes of the layers' results.
    """
    steps: list[Step] = []
    for layer, rank in zip(layers, ranks, strict=True):
        last = steps[-1] if steps else None
        if isinstance(layer, Dropout):
            continue
        if isinstance(layer, BatchNormalization) and _takes_normalization(last, layer, rank):
            last.fold_batchnorm(**layer.statistics)  # type: ignore[union-attr]
        elif isinstance(layer, Activation) and _takes_activation(last, layer):
            last.activation = layer.activation  # type: ignore[union-attr]
        else:
            steps.append(_own(layer, num_threads))
    return steps or [layer]  # of identities alone, one is left


def _own(layer: Step, num_threads: int | None) -> Step:
    """A copy that may be changed; it shares the weights."""
    step = copy.copy(layer)
    if isinstance(step, (Conv3DTranspose, Dense)) and step.num_threads is None:
        step.num_threads = num_threads
    if isinstance(step, Conv3DTranspose):
        step.activity_regularizer = None  # its penalty has no place to go
    return step


def _takes_normalization(last: Step | None, layer: BatchNormalization, rank: int) -> bool:
    if not isinstance(last, (Conv3DTranspose, Dense)) or last.activation.code != 0:
        return False
    policy = dtypes.policy(last.dtype_policy)
    if policy.variable != policy.compute:  # half-precision weights: they would be rounded
        return False
    same_axis = layer.axis % rank == last._channel_axis % rank
    same_dtype = policy.result == dtypes.policy(layer.dtype_policy).result
    return same_axis and same_dtype and layer.finite


def _takes_activation(last: Step | None, layer: Activation) -> bool:
    plain = isinstance(last, (Conv3DTranspose, Dense)) and last.activation.code == 0
    return plain and not layer.activation.halves
