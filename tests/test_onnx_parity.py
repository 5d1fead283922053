"""ONNX Runtime, where it is installed: the same numbers from the same models, both ways."""

import itertools

import numpy as np
import pytest

import conv3dt

onnx = pytest.importorskip("onnx", reason="needs the package onnx (the onnx extra)")
runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the bench extra)")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from test_onnx_format import DATA, WRITABLE, WRITTEN, built, sample  # noqa: E402

RNG = np.random.default_rng(0)


def run(model, x):
    """ONNX Runtime's answer; None where it refuses the model."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x})[0]
    except Exception as error:  # its exceptions have no common base of their own
        assert "onnxruntime" in type(error).__module__
        return None


def conv_transpose(x_shape, weight, attributes):
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize("taps", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_every_spelling_of_padding(taps, stride, dilation):
    """Along each axis, what the two take, and what comes out of it, is the same."""
    taken = 0
    weight = RNG.normal(size=(2, 1, taps, taps, taps)).astype("float32")
    x = RNG.normal(size=(1, 2, 2, 3, 4)).astype("float32")
    full = [(size - 1) * stride + (taps - 1) * dilation + 1 for size in x.shape[2:]]
    pads = [{}, {"pads": [0, 1, 0, 1, 0, 0]}]
    pads += [{"auto_pad": name} for name in ("SAME_UPPER", "SAME_LOWER", "VALID")]
    shapes = [{}] + [{"output_shape": [f + n for f in full]} for n in (-3, -2, -1, 0, 1)]
    extras = [{}, {"output_padding": [1, 0, 1]}]
    for parts in itertools.product(pads, shapes, extras):
        attributes = {"strides": [stride] * 3, "dilations": [dilation] * 3}
        for part in parts:
            attributes |= part
        model = conv_transpose(x.shape, weight, attributes)
        want = run(model.SerializeToString(), x)
        if want is None or want.size == 0:
            continue
        try:
            layer = conv3dt.from_onnx(model)
        except ValueError as error:
            # Runtime lets output_shape extend beyond what output_padding may.
            assert "output_padding must be less" in str(error), attributes
            continue
        np.testing.assert_allclose(layer(x), want, rtol=1e-5, atol=1e-5, err_msg=str(attributes))
        taken += 1
    assert taken >= 15


@pytest.mark.parametrize(
    "options",
    [o for o in WRITTEN if o.get("dtype") not in ("float64", "bfloat16")]
    + [{"activation": activation, "strides": 2, "padding": "same"} for activation in WRITABLE]
    + [{"dtype": "mixed_float16", "activation": "gelu"}],
    ids=str,
)
def test_what_we_write(tmp_path, options):
    layer = built(**options)
    layer.to_onnx(tmp_path / "up.onnx")
    x = sample(layer)
    if layer.dtype_policy == "mixed_float16":
        x = x.astype("float16")
    got = run((tmp_path / "up.onnx").read_bytes(), x)
    assert got is not None
    want = layer(x)
    assert got.dtype == want.dtype and got.shape == want.shape
    tolerance = 2e-3 if want.dtype == np.float16 else 2e-5
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def test_any_size_and_batch(tmp_path):
    layer = built(strides=2, padding="same", data_format="channels_first")
    layer.to_onnx(tmp_path / "up.onnx")
    for shape in ((1, 4, 1, 1, 1), (3, 4, 5, 2, 1)):
        x = RNG.normal(size=shape).astype("float32")
        got = run((tmp_path / "up.onnx").read_bytes(), x)
        np.testing.assert_allclose(got, layer(x), rtol=1e-5, atol=1e-5)


def test_a_chain_of_pytorch_layers():
    """A whole exported module, layer by layer."""
    y = np.load(DATA / "expected.npz")["x"]
    session = runtime.InferenceSession(DATA / "exported.onnx", providers=["CPUExecutionProvider"])
    want = session.run(None, {session.get_inputs()[0].name: y})[0]
    for info in conv3dt.list_layers(DATA / "exported.onnx"):
        y = conv3dt.from_onnx(DATA / "exported.onnx", info.name, fold=True)(y)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
