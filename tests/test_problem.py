"""The rules of output sizes and crops: pure integers, compared with those who set them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import product

import pytest
from layers import LAYERS, Layer

from conv3dt.problem import (
    Axis,
    Problem,
    effective_kernel,
    explicit_axis,
    keras_axis,
    phases,
)


def test_effective_kernel() -> None:
    assert [effective_kernel(k, d) for k, d in ((1, 5), (3, 1), (3, 2), (2, 7))] == [1, 3, 5, 8]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "padding", "extra", "want"),
    [
        (5, 3, 2, 1, "valid", None, (11, 0)),
        (5, 3, 2, 1, "same", None, (10, 0)),
        (5, 3, 2, 1, "valid", 1, (12, 0)),
        (5, 3, 2, 1, "valid", 0, (11, 0)),
        (4, 4, 2, 1, "same", None, (8, 1)),
        (4, 3, 2, 1, "same", 0, (7, 1)),  # raising output_padding moves the window ...
        (4, 3, 2, 1, "same", 1, (8, 0)),
        (4, 5, 3, 1, "same", 2, (12, 1)),  # ... by half of it
        (4, 1, 3, 1, "valid", None, (12, 0)),  # gaps, also after the last voxel
        (4, 1, 3, 1, "valid", 0, (10, 0)),
        (4, 1, 3, 1, "same", None, (12, 0)),
        (4, 3, 1, 2, "same", None, (4, 2)),
        (4, 3, 1, 2, "valid", None, (8, 0)),
        (1, 2, 1, 1, "same", 0, (0, 1)),  # an empty result
        (0, 3, 2, 1, "same", None, (0, 0)),
        (0, 3, 2, 1, "valid", None, (1, 0)),
        (0, 3, 1, 1, "valid", None, (2, 0)),
        (0, 1, 3, 1, "valid", 1, (0, 0)),
        (2**40, 2, 2**30, 1, "same", None, (2**70, 0)),  # no overflow
    ],
)
def test_keras_axis(
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: str,
    extra: int | None,
    want: tuple[int, int],
) -> None:
    assert keras_axis(size, kernel, stride, dilation, padding, extra) == want


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "pads", "extra", "want"),
    [
        (4, 3, 2, 1, (1, 1), 1, (8, 1)),  # PyTorch's usual k3 s2 p1 op1
        (4, 3, 2, 1, (1, 1), 0, (7, 1)),
        (4, 4, 2, 1, (1, 1), 0, (8, 1)),
        (4, 2, 2, 1, (0, 0), 0, (8, 0)),
        (4, 3, 3, 2, (0, 3), 2, (13, 0)),
        (1, 1, 1, 1, (1, 1), 0, (-1, 1)),  # no such output: arguments refuses it
        (0, 3, 2, 1, (0, 0), 0, (1, 0)),
        (0, 3, 2, 1, (1, 1), 0, (0, 1)),
    ],
)
def test_explicit_axis(
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    pads: tuple[int, int],
    extra: int,
    want: tuple[int, int],
) -> None:
    assert explicit_axis(size, kernel, stride, dilation, pads, extra) == want


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_sizes_and_crops_of_the_published_layers(layer: Layer) -> None:
    for small in (layer, layer.small()):
        got = []
        for i in range(3):
            geometry = (
                small.size[i],
                small.kernel_size[i],
                small.strides[i],
                small.dilation_rate[i],
            )
            extra = small.output_padding and small.output_padding[i]
            if isinstance(small.padding, str):
                got.append(keras_axis(*geometry, small.padding, extra))
            else:
                got.append(explicit_axis(*geometry, small.padding[i], extra or 0))
        assert got == list(zip(small.out, small.crop, strict=True))


def test_shapes_follow_the_data_format() -> None:
    axes = (Axis(4, 8, 2, 2, 1, 0), Axis(5, 11, 3, 2, 1, 0), Axis(6, 6, 1, 1, 1, 0))
    last, first = (Problem(6, 4, 2, axes, channels_last) for channels_last in (True, False))
    assert last.kernel_shape == first.kernel_shape == (2, 3, 1, 2, 6)
    assert (last.x_shape(7), last.y_shape(7)) == ((7, 4, 5, 6, 6), (7, 8, 11, 6, 4))
    assert (first.x_shape(7), first.y_shape(7)) == ((7, 6, 4, 5, 6), (7, 4, 8, 11, 6))
    assert last.multiplications == first.multiplications == 6 * 120 * 6 * 2


def test_frozen_and_hashable() -> None:
    axes = (Axis(4, 8, 2, 2, 1, 0),) * 3
    problem = Problem(1, 1, 1, axes, True)
    assert {problem: "plan"}[Problem(1, 1, 1, axes, True)] == "plan"
    with pytest.raises(FrozenInstanceError):
        problem.filters = 2  # type: ignore[misc]


def test_phases_gather_what_the_formula_scatters() -> None:
    """Every (input, tap) reaches the output that the scatter form says, and none is lost."""
    for kernel, stride, dilation, crop in product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3), (0, 1, 4)):
        axis = Axis(5, 9, kernel, stride, dilation, crop)
        scattered = {
            (i, t, i * stride + t * dilation - crop) for i in range(5) for t in range(kernel)
        }
        gathered = {
            (j + offset, tap, j * stride + phase.first)
            for phase in phases(axis)
            for j in range(phase.count(axis))
            for tap, offset in phase.taps
            if 0 <= j + offset < 5
        }
        assert gathered == {(i, t, o) for i, t, o in scattered if 0 <= o < 9}
        assert sum(phase.count(axis) for phase in phases(axis)) <= 9
