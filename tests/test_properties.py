"""What results of related calls have in common, whatever the call, on small integers.

The default profile is moderate, and repeatable in CI; HYPOTHESIS_PROFILE=heavy draws thousands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cases import ISAS
from hypothesis import given
from hypothesis import strategies as st

from conv3dt import engine
from conv3dt.functional import conv3d_transpose

SMALL = st.integers(1, 4)
TRIPLE = st.tuples(SMALL, SMALL, SMALL)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Valid arguments of the function with string paddings."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    dilated = draw(st.booleans())
    groups = draw(st.sampled_from([1, 2]))
    channels_last = draw(st.booleans())
    sizes, channels = draw(TRIPLE), groups * draw(SMALL)
    batch = draw(st.integers(1, 2))
    x_shape = (batch, *sizes, channels) if channels_last else (batch, channels, *sizes)
    filters = draw(SMALL)
    return {
        "x": rng.integers(-4, 5, x_shape).astype(np.float32),
        "kernel": rng.integers(-4, 5, (*draw(TRIPLE), filters, channels)).astype(np.float32),
        "bias": rng.integers(-4, 5, filters * groups).astype(np.float32),
        "strides": (1, 1, 1) if dilated else draw(TRIPLE),
        "dilation_rate": draw(TRIPLE) if dilated else (1, 1, 1),
        "padding": draw(st.sampled_from(["valid", "same"])),
        "groups": groups,
        "data_format": "channels_last" if channels_last else "channels_first",
    }


@given(call=calls(), isa=st.sampled_from(ISAS))
def test_data_formats_agree(call: dict[str, Any], isa: str) -> None:
    engine.select(isa)
    y = conv3d_transpose(**call)
    last = call["data_format"] == "channels_last"
    call["x"] = np.moveaxis(call["x"], -1, 1) if last else np.moveaxis(call["x"], 1, -1)
    call["data_format"] = "channels_first" if last else "channels_last"
    other = conv3d_transpose(**call)
    np.testing.assert_array_equal(
        np.moveaxis(other, 1, -1) if last else np.moveaxis(other, -1, 1), y
    )


@given(call=calls(), isa=st.sampled_from(ISAS), crop=st.tuples(*[st.tuples(SMALL, SMALL)] * 3))
def test_explicit_padding_is_a_slice_of_the_full_result(
    call: dict[str, Any], isa: str, crop: tuple[tuple[int, int], ...]
) -> None:
    engine.select(isa)
    full = conv3d_transpose(**{**call, "padding": 0})
    first = 1 if call["data_format"] == "channels_last" else 2
    space = full.shape[first : first + 3]
    pads = tuple(
        (min(lo, n), min(hi, n - min(lo, n))) for (lo, hi), n in zip(crop, space, strict=True)
    )
    index = (slice(None),) * first + tuple(
        slice(lo, n - hi) for (lo, hi), n in zip(pads, space, strict=True)
    )
    got = conv3d_transpose(**{**call, "padding": pads})
    np.testing.assert_array_equal(got, full[index])


@given(call=calls(), isa=st.sampled_from(ISAS))
def test_linear_in_x(call: dict[str, Any], isa: str) -> None:
    engine.select(isa)
    bias, x = call.pop("bias"), call.pop("x")
    twice = conv3d_transpose(x + x[::-1], **call)
    parts = conv3d_transpose(x, **call) + conv3d_transpose(x[::-1], **call)
    np.testing.assert_array_equal(twice, parts)
    biased = conv3d_transpose(x, bias=bias, **call)
    shape = (-1,) if call["data_format"] == "channels_last" else (-1, 1, 1, 1)
    np.testing.assert_array_equal(biased, conv3d_transpose(x, **call) + bias.reshape(shape))


@given(call=calls(), isa=st.sampled_from(ISAS))
def test_groups_are_separate_convolutions(call: dict[str, Any], isa: str) -> None:
    engine.select(isa)
    axis = -1 if call["data_format"] == "channels_last" else 1
    groups = call.pop("groups")
    together = conv3d_transpose(**call, groups=groups)
    xs = np.split(call.pop("x"), groups, axis)
    kernels = np.split(call.pop("kernel"), groups, -1)
    biases = np.split(call.pop("bias"), groups)
    parts = [
        conv3d_transpose(x, kernel, bias, **call)
        for x, kernel, bias in zip(xs, kernels, biases, strict=True)
    ]
    np.testing.assert_array_equal(together, np.concatenate(parts, axis))
