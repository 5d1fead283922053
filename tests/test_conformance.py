"""The tests of Keras 3, Keras 2, TensorFlow Lite and ONNX for this operation, run here.

``data/conformance`` holds their parameters and, where they have any, their literal numbers;
without numbers the oracle gives them. 1D and 2D cases run as 3D problems with axes of one voxel,
along every choice of axes. Each case is run or named in ``SKIPPED`` with the reason.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

from conv3dt import from_onnx
from conv3dt.functional import conv3d_transpose
from conv3dt.layer import Conv3DTranspose
from conv3dt.problem import effective_kernel, explicit_axis, keras_axis

FILES = ("keras", "tfkeras2", "tflite", "onnx")
DATA = Path(__file__).parent / "data" / "conformance"


def _load(name: str) -> list[dict[str, Any]]:
    return list(json.loads((DATA / f"conformance_{name}.json").read_text())["cases"])


CASES = [(f"{file}: {case['name']}", case) for file in FILES for case in _load(file)]
SKIPPED = {
    "keras: test_output_padding_clamped_for_torch_constraint": "how Keras' torch backend adapts an "
    "output_padding that Keras' own layer, like ours, refuses (not less than the stride)",
}


def _of(*kinds: str) -> Any:
    found = [(n, c) for n, c in CASES if c["kind"] in kinds and n not in SKIPPED]
    return pytest.mark.parametrize("case", [c for _, c in found], ids=[n for n, _ in found])


def test_every_case_is_run_or_skipped_in_words() -> None:
    assert Counter(case["kind"] for _, case in CASES) == {
        "forward": 164,
        "construct": 16,
        "op_error": 10,
        "padding_helper": 3,
        "output_length": 3,
        "losses": 1,
        "benchmark_shape": 1,
    }
    assert len(SKIPPED) == 1 and set(SKIPPED) < {name for name, _ in CASES}


# ---- forward ----------------------------------------------------------------------


class Forward:
    """A forward case as a 3D problem, its axes placed at ``where``."""

    def __init__(self, case: dict[str, Any], where: tuple[int, ...]) -> None:
        self.case, self.where = case, where
        self.channels_last = case["layout"] == "channels_last" or case["layout"].endswith("C")
        self.filters, self.groups = case["filters"], case["groups"]
        self.kernel_size, self.strides = self.spread("kernel_size"), self.spread("strides")
        # Keras 2 stores a dilation and ignores it; its files are loaded with 1.
        ignored = case["canonical"].get("dilation_ignored")
        self.dilation = (1, 1, 1) if ignored else self.spread("dilation")
        self.crop = self.place(case["canonical"]["lo"], 0)
        self.out = self.place(case["canonical"]["out"], 1)
        self.x_shape = self.full_shape(case["input_shape"])
        self.channels = self.x_shape[4 if self.channels_last else 1]
        rng = np.random.default_rng(7)
        self.x = _numbers(case["input"], self.x_shape, rng)
        self.kernel = self.read_kernel(rng)
        self.bias = _numbers(case["bias"], (self.filters,), rng) if case["use_bias"] else None

    def place(self, values: list[int], other: int) -> tuple[int, int, int]:
        placed = [other] * 3
        for axis, value in zip(self.where, values, strict=True):
            placed[axis] = value
        return placed[0], placed[1], placed[2]

    def spread(self, name: str) -> tuple[int, int, int]:
        return self.place(self.case[name], 1)

    def full_shape(self, shape: list[int]) -> tuple[int, ...]:
        if self.channels_last:
            return (shape[0], *self.place(shape[1:-1], 1), shape[-1])
        return (*shape[:2], *self.place(shape[2:], 1))

    def read_kernel(self, rng: np.random.Generator) -> np.ndarray:
        """In Keras' order; the ONNX files store (in, out, space)."""
        share = self.filters // self.groups
        layout = self.case["weight_layout"] or "DHWOI"
        if layout.endswith("OI"):
            shape = (*self.kernel_size, share, self.channels)
            return _numbers(self.case["weight"], shape, rng)
        shape = (self.channels, share, *self.kernel_size)
        return _numbers(self.case["weight"], shape, rng).transpose(2, 3, 4, 1, 0)

    def expected(self) -> np.ndarray:
        if self.case["expected"] is not None:
            shape = self.full_shape(self.case["expected_output_shape"])
            return np.reshape(self.case["expected"], shape)
        y = oracle.conv3d_transpose(
            self.x, self.kernel, self.bias, self.strides, self.crop, self.out, self.dilation,
            self.groups, self.channels_last,
        )  # fmt: skip
        assert y.shape == self.full_shape(self.case["expected_output_shape"])
        return np.maximum(y, 0) if self.case["activation"] == "relu" else y

    def explicit(self) -> dict[str, Any]:
        """``padding`` and ``output_padding`` of the case's crop and output size."""
        sizes = self.x_shape[1:4] if self.channels_last else self.x_shape[2:]
        pads, extra = [], []
        for i in range(3):
            geometry = sizes[i], self.kernel_size[i], self.strides[i], self.dilation[i]
            tail = explicit_axis(*geometry, (self.crop[i], 0), 0)[0] - self.out[i]
            pads.append((self.crop[i], max(tail, 0)))
            extra.append(max(-tail, 0))
        return {"padding": tuple(pads), "output_padding": tuple(extra)}

    def keras(self) -> dict[str, Any] | None:
        """The same as Keras spells it; None where Keras has no spelling."""
        spelled = self.case["keras_equivalent"]
        if spelled is None:
            return None
        extra = spelled["output_padding"]
        if extra is not None:
            extra = self.place(extra, 0)
        return {"padding": spelled["padding"], "output_padding": extra}


def _numbers(given: Any, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """The array that a case describes; small integers where it describes none."""
    if given is None:
        array = rng.integers(-4, 5, shape)
    elif given["kind"] == "const":
        array = np.full(shape, given["value"])
    elif given["kind"] == "arange":
        array = given["start"] + np.arange(np.prod(shape)).reshape(shape)
    else:
        array = np.reshape(given["data"], shape)
    return array.astype(np.float32)


@_of("forward")
def test_forward(case: dict[str, Any]) -> None:
    for where in combinations(range(3), case["ndim"]):
        forward = Forward(case, where)
        want = forward.expected()
        for spelling in (forward.explicit(), forward.keras()):
            if spelling is None:
                continue
            spelling["data_format"] = "channels_last" if forward.channels_last else "channels_first"
            spelling["activation"] = case["activation"]
            spelling["groups"] = forward.groups
            spelling["dilation_rate"] = forward.dilation
            got = conv3d_transpose(
                forward.x, forward.kernel, forward.bias, forward.strides, **spelling
            )
            _assert_values(got, want, case)
            _assert_values(_layer_result(forward, spelling), want, case)


def _assert_values(got: np.ndarray, want: np.ndarray, case: dict[str, Any]) -> None:
    assert got.dtype == np.float32
    assert got.shape == want.shape
    # Literal numbers are rounded decimals in some files; integers are exact.
    tolerance = 1e-5 if case["expected"] is not None or case["weight"] is not None else 0
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def _layer_result(forward: Forward, spelling: dict[str, Any]) -> np.ndarray:
    layer = Conv3DTranspose(
        forward.filters,
        forward.kernel_size,
        forward.strides,
        use_bias=forward.bias is not None,
        **spelling,
    )
    layer.build(forward.x_shape)
    layer.set_weights([w for w in (forward.kernel, forward.bias) if w is not None])
    assert layer.compute_output_shape(forward.x_shape) == forward.full_shape(
        forward.case["expected_output_shape"]
    )
    config = layer.get_config()
    again = Conv3DTranspose.from_config(config)
    again.build(forward.x_shape)
    again.set_weights(layer.get_weights())
    result = again(forward.x)
    np.testing.assert_array_equal(result, layer(forward.x))
    return result


@pytest.mark.parametrize("case", _load("onnx"), ids=lambda case: case["name"])
def test_nodes_of_onnx(case: dict[str, Any]) -> None:
    """ONNX' own cases as they are spelled there, through `from_onnx`."""
    onnx = pytest.importorskip("onnx", reason="needs the package onnx (the onnx extra)")
    for where in combinations(range(3), case["ndim"]):
        forward = Forward(case, where)
        made = _onnx_model(onnx, forward)
        _assert_values(from_onnx(made)(forward.x), forward.expected(), case)


def _onnx_model(onnx: Any, forward: Forward) -> Any:
    padding, place = forward.case["padding"], forward.place
    attributes = {
        "strides": forward.strides,
        "dilations": forward.dilation,
        "group": forward.groups,
        "output_padding": place(forward.case["output_padding"], 0),
    }
    if padding["output_shape"]:
        attributes["output_shape"] = place(padding["output_shape"], 1)
    elif padding["auto_pad"] == "NOTSET":
        attributes["pads"] = place(padding["begin"], 0) + place(padding["end"], 0)
    if padding["auto_pad"] != "NOTSET":
        attributes["auto_pad"] = padding["auto_pad"]
    helper, float_type = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)],
        "case",
        [helper.make_tensor_value_info("x", float_type, forward.x_shape)],
        [helper.make_tensor_value_info("y", float_type, None)],
        [onnx.numpy_helper.from_array(forward.kernel.transpose(4, 3, 0, 1, 2), "w")],
    )
    return helper.make_model(graph)


def test_dilation_that_keras_2_ignores_is_computed() -> None:
    (case,) = [c for _, c in CASES if (c["canonical"] or {}).get("dilation_ignored")]
    layer = Conv3DTranspose(2, 3, dilation_rate=2)
    assert layer.compute_output_shape(tuple(case["input_shape"])) == (2, 9, 11, 10, 2)


# ---- construction -----------------------------------------------------------------


def _arguments(case: dict[str, Any]) -> dict[str, Any]:
    """The layer's arguments; those of 1D and 2D layers get further axes of 1 (or 0)."""
    names = {"strides": 1, "output_padding": 0, "dilation_rate": 1, "kernel_size": 1}
    arguments = {}
    for name, other in names.items():
        value = case["dilation" if name == "dilation_rate" else name]
        if isinstance(value, list):
            value = tuple(value) + (other,) * (3 - case["ndim"])
        if value is not None or case["notes"] == f"{name}=None":
            arguments[name] = value
    if case["notes"] == 'data_format="invalid"':
        arguments["data_format"] = "invalid"
    if case["notes"] in ("strides=None", "kernel_size=None"):
        arguments.setdefault("kernel_size", 3)
    return arguments


@_of("construct")
def test_construct(case: dict[str, Any]) -> None:
    arguments = {"filters": case["filters"], **_arguments(case)}
    if not case["expects_error"]:
        _assert_constraints(arguments, case["input_shape"])
        return
    named = next(
        name
        for name in ("output_padding", "filters", "data_format", "strides", "kernel_size")
        if name in case["error_regex"] or (name in arguments and _has_zero(arguments[name]))
    )
    with pytest.raises(ValueError, match=named):
        Conv3DTranspose(**arguments)


def _has_zero(value: Any) -> bool:
    return isinstance(value, tuple) and 0 in value


def _assert_constraints(arguments: dict[str, Any], input_shape: list[int]) -> None:
    """Keras 2's test_conv3d_transpose_constraints: the layer keeps the very objects."""

    def positive(w: np.ndarray) -> np.ndarray:
        return np.maximum(w, 0)

    def same(w: np.ndarray) -> np.ndarray:
        return w

    layer = Conv3DTranspose(**arguments, kernel_constraint=positive, bias_constraint=same)
    layer.build(tuple(input_shape))
    assert layer.kernel_constraint is positive
    assert layer.bias_constraint is same


# ---- errors of the operation ------------------------------------------------------


REFUSED = {
    "InvalidInputDimsTest": "x must have 5 axes .*, got 4",
    "InvalidFilterDimsTest": "kernel must have 5 axes .*, got 4",
    "MismatchChannelSizeTest": "kernel's 1 input channels, got 2",
    "PrepareSecurityTest.RejectsZeroFilterOutputChannels": "kernel must have no empty .*, got",
    "PrepareSecurityTest.RejectsZeroFilterOutputChannelsDynamic": "kernel must have no empty",
}


@_of("op_error")
def test_errors_of_the_operation(case: dict[str, Any]) -> None:
    if case["ndim"] == 1:  # keras: x (2, 4, 3), a kernel for another number of channels
        _refused("kernel's 4 input channels, got 3", (2, 1, 1, 4, 3), (1, 1, 2, 5, 4))
    elif case["name"] == "PrepareSecurityTest.RejectsCol2ImOverflow":
        # 46341**2 overflows TFLite's int32. There is no column buffer here to overflow, and
        # no input channel: the result is the (absent) bias.
        x, kernel = _zeros(case["input_shape"]), _zeros(case["kernel_size"])
        y = conv3d_transpose(x, kernel, padding="same")
        assert y.shape == (1, 1, 1, 1, 1) and not y.any()
    elif case["name"] == "PrepareSecurityTest.RejectsInvalidStrideOrDilation":
        for name in ("strides", "dilation_rate"):
            options = {name: (0, 1, 1)}
            _refused(f"{name} must be .*, got", case["input_shape"], case["kernel_size"], **options)
    elif case["name"] == "PrepareSecurityTest.RejectsMismatchedOutputChannels":
        out = _zeros(case["expected_output_shape"])
        options = {"padding": "same", "out": out}
        _refused("out must have shape", case["input_shape"], case["kernel_size"], **options)
    elif case["name"] == "MismatchBiasSizeTest":
        bias, message = _zeros((3,)), r"bias must have shape \(2,\), .*, got \(3,\)"
        _refused(message, case["input_shape"], case["kernel_size"], bias=bias)
    else:
        _refused(REFUSED[case["name"]], case["input_shape"], case["kernel_size"])


def _zeros(shape: Any) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _refused(message: str, x_shape: Any, kernel_shape: Any, **arguments: Any) -> None:
    with pytest.raises(ValueError, match=message):
        conv3d_transpose(_zeros(x_shape), _zeros(kernel_shape), **arguments)


# ---- sizes ------------------------------------------------------------------------


@_of("output_length")
def test_output_length(case: dict[str, Any]) -> None:
    (size,), (kernel,), (stride,) = case["input_shape"], case["kernel_size"], case["strides"]
    extra = case["output_padding"]
    axis = (size, kernel, stride, 1, case["padding"], extra and extra[0])
    assert keras_axis(*axis)[0] == case["expected"][0]
    layer = Conv3DTranspose(1, kernel, stride, case["padding"], output_padding=extra and extra[0])
    shape = layer.compute_output_shape((1, size, size, size, 1))
    assert shape == (1, *case["expected"] * 3, 1)


@_of("padding_helper")
def test_pads_of_the_zero_stuffed_input(case: dict[str, Any]) -> None:
    (kernel,), (stride,), (dilation,) = case["kernel_size"], case["strides"], case["dilation"]
    left, right = case["expected"]
    extent = effective_kernel(kernel, dilation)
    for size in range(1, 6):
        stuffed = left + (size - 1) * stride + 1 + right
        want = stuffed - extent + 1, extent - 1 - left
        assert keras_axis(size, kernel, stride, dilation, case["padding"], None) == want


def test_output_padding_not_less_than_the_stride_is_refused() -> None:
    """What is left of the skipped case."""
    with pytest.raises(ValueError, match="output_padding"):
        Conv3DTranspose(1, 2, padding="same", output_padding=1)


@_of("benchmark_shape")
def test_benchmark_shape(case: dict[str, Any]) -> None:
    layer = Conv3DTranspose(case["filters"], tuple(case["kernel_size"]))
    shape = layer.compute_output_shape(tuple(case["input_shape"]))
    assert shape == tuple(case["expected_output_shape"])


@_of("losses")
def test_losses(case: dict[str, Any]) -> None:
    before, after = case["expected"]
    layer = Conv3DTranspose(
        case["filters"],
        tuple(case["kernel_size"]),
        kernel_regularizer="l2",
        bias_regularizer="l2",
        activity_regularizer="l2",
    )
    layer.build(tuple(case["input_shape"]))
    assert len(layer.losses) == before
    layer(np.ones(case["input_shape"], np.float32))
    assert len(layer.losses) == after
