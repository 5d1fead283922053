"""from_onnx and to_onnx, without any runtime: literal results, PyTorch's exports, hostile files."""

import random
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import oracle
import pytest

import conv3dt
from conv3dt import Conv3DTranspose, activations
from conv3dt.formats import onnx_graph
from conv3dt.formats.onnx import OPSET

onnx = pytest.importorskip("onnx", reason="needs the package onnx (the test extra has it)")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

DATA = Path(__file__).parent / "data" / "formats" / "onnx"
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(4, 3, 2, 3, 1)).astype("float32")
BIAS = RNG.normal(size=6).astype("float32")


def tensor(array, name, **options):
    return numpy_helper.from_array(np.asarray(array), name)


def model(
    attributes=None,
    *,
    tensors=None,
    inputs=("x", "w", "b"),
    after=(),
    x_shape=("N", 4, "D", "H", "W"),
    opset=20,
):
    """A model of a ConvTranspose named "up" and nodes `after` it, which take its result "u"."""
    if tensors is None:
        tensors = [tensor(WEIGHT, "w"), tensor(BIAS, "b")]
        attributes = {"group": 2} | (attributes or {})
    nodes = [helper.make_node("ConvTranspose", inputs, ["u"], "up", **(attributes or {})), *after]
    y = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def line(taps, **attributes):
    """A ConvTranspose of one channel along one axis, the depth."""
    weight = np.arange(1, taps + 1, dtype="float32").reshape(1, 1, taps, 1, 1)
    return model(
        attributes, tensors=[tensor(weight, "w")], inputs=("x", "w"), x_shape=(1, 1, 4, 1, 1)
    )


# ---- PyTorch's exports ------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "first", "second"),
    [
        ("traced.onnx", "/0/ConvTranspose", "/3/ConvTranspose"),
        ("exported.onnx", "node_ConvTranspose_9", "node_convolution_1"),
    ],
)
def test_exports_of_pytorch(file, first, second):
    expected = np.load(DATA / "expected.npz")
    layers = conv3dt.list_layers(DATA / file)
    assert [info.name for info in layers] == [first, second]
    assert layers[0].groups == 2 and layers[0].output_padding == (1, 1, 1)
    with pytest.raises(ValueError, match=f"node must name one of .*{first}.*{second}"):
        conv3dt.from_onnx(DATA / file)

    layer = conv3dt.from_onnx(DATA / file, first, fold=True)
    assert layer.activation.name == "silu"
    np.testing.assert_allclose(layer(expected["x"]), expected["y2"], rtol=1e-5, atol=1e-6)
    layer = conv3dt.from_onnx(str(DATA / file), second, fold=True)
    np.testing.assert_allclose(layer(expected["y2"]), expected["y3"], rtol=1e-5, atol=1e-6)
    layer = conv3dt.from_onnx(DATA / file, second, data_format="channels_last")
    y = layer(np.moveaxis(expected["y2"], 1, -1))
    np.testing.assert_allclose(np.moveaxis(y, -1, 1), expected["y3"], rtol=1e-5, atol=1e-6)


def test_nothing_is_folded_unasked():
    expected = np.load(DATA / "expected.npz")
    layer = conv3dt.from_onnx(DATA / "traced.onnx", "/0/ConvTranspose")
    np.testing.assert_allclose(layer(expected["x"]), expected["y0"], rtol=1e-5, atol=1e-6)
    assert layer.name == "0.ConvTranspose"


def test_load_weights():
    wanted = conv3dt.from_onnx(DATA / "traced.onnx", "/3/ConvTranspose")
    layer = Conv3DTranspose(2, (1, 2, 2))
    layer.load_weights(DATA / "traced.onnx")  # the only one that fits
    np.testing.assert_array_equal(layer.kernel, wanted.kernel)
    layer.load_weights(DATA / "traced.onnx", "3/ConvTranspose")
    np.testing.assert_array_equal(layer.kernel, wanted.kernel)
    np.testing.assert_array_equal(layer.bias, wanted.bias)


# ---- attributes -------------------------------------------------------------------


def test_every_attribute():
    attributes = {
        "kernel_shape": [2, 3, 1],
        "strides": [1, 2, 3],
        "dilations": [2, 1, 1],
        "pads": [1, 0, 0, 0, 1, 0],
        "output_padding": [1, 0, 2],
    }
    layer = conv3dt.from_onnx(model(attributes))
    x = RNG.normal(size=(2, 4, 3, 4, 2)).astype("float32")
    kernel = WEIGHT.transpose(2, 3, 4, 1, 0)
    want = oracle.conv3d_transpose(
        x, kernel, BIAS, (1, 2, 3), (1, 0, 0), (5, 8, 6), (2, 1, 1), 2, False
    )
    np.testing.assert_allclose(layer(x), want, rtol=1e-5, atol=1e-5)
    assert (layer.name, layer.data_format, layer.dtype) == ("up", "channels_first", "float32")


def test_no_attribute_and_no_bias():
    for inputs in (("x", "w"), ("x", "w", "")):
        layer = conv3dt.from_onnx(model({"group": 1}, inputs=inputs))
        assert (layer.filters, layer.strides, layer.groups) == (3, (1, 1, 1), 1)
        assert layer.padding == ((0, 0),) * 3 and layer.output_padding is None
        assert not layer.use_bias


# x = 1 2 3 4 and taps 1 2 3; what ONNX Runtime 1.31 answers.
SPELLINGS = [
    ({"strides": 2, "auto_pad": "SAME_UPPER"}, [1, 2, 5, 4, 9, 6, 13, 8]),
    ({"strides": 2, "auto_pad": "SAME_LOWER"}, [2, 5, 4, 9, 6, 13, 8, 12]),
    ({"strides": 2, "auto_pad": "VALID"}, [1, 2, 5, 4, 9, 6, 13, 8, 12]),
    ({"strides": 2, "auto_pad": "NOTSET", "pads": (1, 1)}, [2, 5, 4, 9, 6, 13, 8]),
    ({"strides": 2, "pads": (0, 1)}, [1, 2, 5, 4, 9, 6, 13, 8]),
    (  # less than I*s: not extended
        {"strides": 5, "auto_pad": "SAME_UPPER"},
        [1, 2, 3, 0, 0, 2, 4, 6, 0, 0, 3, 6, 9, 0, 0, 4, 8, 12],
    ),
    (
        {"strides": 2, "auto_pad": "SAME_UPPER", "output_padding": 1},
        [2, 5, 4, 9, 6, 13, 8, 12],
    ),
    ({"strides": 2, "output_shape": 8}, [2, 5, 4, 9, 6, 13, 8, 12]),
    ({"strides": 2, "output_shape": 8, "pads": (0, 0)}, [2, 5, 4, 9, 6, 13, 8, 12]),
    (
        {"strides": 2, "output_shape": 8, "auto_pad": "SAME_UPPER"},
        [1, 2, 5, 4, 9, 6, 13, 8],
    ),
    ({"strides": 2, "output_shape": 10}, [1, 2, 5, 4, 9, 6, 13, 8, 12, 0]),
    (
        {"strides": 2, "output_shape": 10, "output_padding": 1},
        [1, 2, 5, 4, 9, 6, 13, 8, 12, 0],
    ),
    ({"pads": (2, 3)}, [10]),
]


@pytest.mark.parametrize(("attributes", "want"), SPELLINGS, ids=str)
def test_padding_as_onnx_runtime_means_it(attributes, want):
    given = dict(attributes)
    for name, other in (("strides", 1), ("output_padding", 0), ("output_shape", 1)):
        if name in given:
            given[name] = [given[name], other, other]
    if "pads" in given:
        lo, hi = given["pads"]
        given["pads"] = [lo, 0, 0, hi, 0, 0]
    layer = conv3dt.from_onnx(line(3, **given))
    x = np.arange(1, 5, dtype="float32").reshape(1, 1, 4, 1, 1)
    np.testing.assert_array_equal(layer(x).ravel(), want)


def test_same_upper_is_same_for_every_size():
    layer = conv3dt.from_onnx(line(4, strides=[2, 1, 1], auto_pad="SAME_UPPER"))
    same = Conv3DTranspose(
        1, (4, 1, 1), (2, 1, 1), "same", data_format="channels_first", use_bias=False
    )
    same._adopt(layer.kernel, None)
    for size in range(1, 6):
        x = RNG.normal(size=(1, 1, size, 1, 1)).astype("float32")
        np.testing.assert_array_equal(layer(x), same(x))


# ---- storage ----------------------------------------------------------------------


def proto(data_type, name="w", dims=WEIGHT.shape, **fields):
    return TensorProto(data_type=data_type, dims=dims, name=name, **fields)


def bits(array, dtype):
    return array.astype(dtype).view(np.uint16).ravel().tolist()


STORED = {
    "float32 typed": (proto(TensorProto.FLOAT, float_data=WEIGHT.ravel()), "float32"),
    "float32 raw": (tensor(WEIGHT, "w"), "float32"),
    "float64 typed": (proto(TensorProto.DOUBLE, double_data=WEIGHT.ravel()), "float64"),
    "float64 raw": (tensor(WEIGHT.astype("float64"), "w"), "float64"),
    "float16 typed": (proto(TensorProto.FLOAT16, int32_data=bits(WEIGHT, "float16")), "float16"),
    "float16 raw": (tensor(WEIGHT.astype("float16"), "w"), "float16"),
    "bfloat16 typed": (
        proto(TensorProto.BFLOAT16, int32_data=bits(WEIGHT, ml_dtypes.bfloat16)),
        "bfloat16",
    ),
    "bfloat16 raw": (
        proto(TensorProto.BFLOAT16, raw_data=WEIGHT.astype(ml_dtypes.bfloat16).tobytes()),
        "bfloat16",
    ),
}


@pytest.mark.parametrize(("stored", "dtype"), STORED.values(), ids=STORED)
def test_storage(stored, dtype):
    layer = conv3dt.from_onnx(model(tensors=[stored, tensor(BIAS, "b")], attributes={"group": 2}))
    assert layer.dtype_policy == dtype
    want = WEIGHT.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    np.testing.assert_array_equal(layer.kernel, want.transpose(2, 3, 4, 1, 0))


def test_constants_of_nodes():
    """Weights as Constant nodes, by way of an Identity."""
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor(WEIGHT, "")),
        helper.make_node("Identity", ["c"], ["w"]),
        helper.make_node("Constant", [], ["b"], value_floats=BIAS.tolist()),
    ]
    made = model({"group": 2}, tensors=[])
    for node in reversed(nodes):
        made.graph.node.insert(0, node)
    layer = conv3dt.from_onnx(made)
    np.testing.assert_array_equal(layer.kernel, WEIGHT.transpose(2, 3, 4, 1, 0))
    np.testing.assert_array_equal(layer.bias, BIAS)


def external(**entries):
    """A model whose weights lie elsewhere."""
    stored = proto(TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        stored.external_data.add(key=key, value=str(value))
    return model(tensors=[stored, tensor(BIAS, "b")], attributes={"group": 2})


@pytest.fixture
def folder(tmp_path):
    """A model's folder, with weights in it and outside."""
    inside = tmp_path / "inside"
    (inside / "deeper").mkdir(parents=True)
    data = b"12345678" + WEIGHT.tobytes()
    for path in (inside / "data", inside / "deeper" / "data", tmp_path / "data"):
        path.write_bytes(data)
    (inside / "link").symlink_to("data")
    (inside / "out").symlink_to("../data")
    (inside / "up").symlink_to("..")
    (inside / "circle").symlink_to("circle")
    return inside


SIZE = WEIGHT.nbytes


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "data", "offset": 8, "length": SIZE},
        {"location": "data", "offset": 8},
        {"location": "deeper/data", "offset": 8},
        {"location": "deeper/../data", "offset": 8},
        {"location": "link", "offset": 8},
        {"location": "data", "offset": 8, "checksum": "0"},
    ],
    ids=str,
)
def test_external_data_in_the_folder(folder, entries):
    onnx.save(external(**entries), folder / "model.onnx")
    layer = conv3dt.from_onnx(folder / "model.onnx")
    np.testing.assert_array_equal(layer.kernel, WEIGHT.transpose(2, 3, 4, 1, 0))


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../data", "offset": 8},
        {"location": "out", "offset": 8},
        {"location": "up/data", "offset": 8},
        {"location": "circle"},
        {"location": "deeper"},
        {"location": "."},
        {"location": ""},
        {},
        {"location": "missing"},
        {"location": "x" * 5000},
        {"location": "da\0ta"},
        {"location": "data", "offset": 9},
        {"location": "data", "offset": -1},
        {"location": "data", "offset": 10**30},
        {"location": "data", "offset": "eight"},
        {"location": "data", "length": SIZE + 8},
        {"location": "data", "offset": 8, "length": SIZE - 4},
    ],
    ids=str,
)
def test_external_data_elsewhere(folder, entries):
    (folder / "model.onnx").write_bytes(external(**entries).SerializeToString())
    with pytest.raises(ValueError, match="tensor 'w' is damaged"):
        conv3dt.from_onnx(folder / "model.onnx")
    absolute = external(location=folder.parent / "data", offset=8)
    (folder / "model.onnx").write_bytes(absolute.SerializeToString())
    with pytest.raises(ValueError, match="must be a file in the model's folder"):
        conv3dt.from_onnx(folder / "model.onnx")


def test_external_data_of_a_model_without_a_folder():
    with pytest.raises(ValueError, match="give the path of the model"):
        conv3dt.from_onnx(external(location="data"))


# ---- refused ----------------------------------------------------------------------


def weights(*shape, dtype="float32"):
    return {"tensors": [tensor(np.ones(shape, dtype), "w")], "inputs": ("x", "w")}


REFUSED = {
    "2 axes": ({}, weights(1, 1, 3, 3), "3 spatial axes"),
    "computed weights": ({}, {"tensors": [], "inputs": ("x", "x")}, "constant weights"),
    "no weights": ({}, {"tensors": [], "inputs": ("x",)}, "constant weights"),
    "computed bias": ({"group": 2}, {"inputs": ("x", "w", "x")}, "B of ConvTranspose must be"),
    "short bias": (
        {},
        {"tensors": [tensor(WEIGHT, "w"), tensor(BIAS, "b")]},
        r"'up': bias must have shape \(3,\)",
    ),
    "integers": ({}, weights(1, 1, 1, 1, 1, dtype="int64"), "dtype must be one of"),
    "int8": ({}, weights(1, 1, 1, 1, 1, dtype="int8"), "element type INT8"),
    "empty": ({}, weights(1, 1, 0, 1, 1), "kernel_size must be"),
    "kernel_shape": ({"kernel_shape": [2, 3, 2]}, {}, "kernel_shape must be that of the weights"),
    "group": ({"group": 3}, {}, "groups must divide in_channels"),
    "no group": ({"group": 0}, {}, "group must be a positive integer"),
    "strides": ({"strides": [0, 1, 1]}, {}, "strides must be 1 or 3 positive"),
    "2 strides": ({"strides": [2, 2]}, {}, "strides must be 3 integers"),
    "words": ({"strides": "abc"}, {}, "strides must be 3 integers"),
    "floats": ({"dilations": [1.0, 1.0, 1.0]}, {}, "dilations must be 3 integers"),
    "pads": ({"pads": [-1, 0, 0, 0, 0, 0]}, {}, "padding must be"),
    "3 pads": ({"pads": [1, 1, 1]}, {}, "pads must be 6 integers"),
    "output_padding": ({"output_padding": [0, 0, 1]}, {}, "output_padding must be less"),
    "auto_pad": ({"auto_pad": "SAME"}, {}, "auto_pad must be one of"),
    "both": ({"auto_pad": "VALID", "pads": [0] * 6}, {}, "must not both be there"),
    "unknown size": ({"output_shape": [5, 5, 5]}, {}, "infer_shapes"),
    "half known": (
        {"output_shape": [5, 5, 5]},
        {"x_shape": (1, 4, 3, 3, None)},
        r"got \(1, 4, 3, 3, None\) for 'x'",
    ),
    "too large": (
        {"output_shape": [9, 5, 5]},
        {"x_shape": (1, 4, 3, 3, 5)},
        "output_padding must be less",
    ),
}


@pytest.mark.parametrize(("attributes", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(attributes, options, message, tmp_path):
    made = model(attributes, **options)
    with pytest.raises(ValueError, match=message):
        conv3dt.from_onnx(made)
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=f"m.onnx.*{message}"):
        conv3dt.from_onnx(tmp_path / "m.onnx")


def test_listed_all_the_same(tmp_path):
    """What the weights say is listed even if the size of the input is missing."""
    onnx.save(model({"output_shape": [5, 5, 5]}), tmp_path / "m.onnx")
    (info,) = conv3dt.list_layers(tmp_path / "m.onnx")
    assert (info.name, info.filters, info.kernel_size, info.in_channels) == ("up", 3, (2, 3, 1), 4)
    assert info.strides is None


def test_the_node_is_chosen():
    second = helper.make_node("ConvTranspose", ["u", "v"], ["y"], group=3)
    made = model(after=[second])
    made.graph.initializer.append(tensor(np.ones((6, 1, 1, 1, 1), "float32"), "v"))
    assert conv3dt.from_onnx(made, "up").filters == 6
    assert conv3dt.from_onnx(made, "y").filters == 3  # it has no name
    for name in (None, "down"):
        with pytest.raises(ValueError, match=f"node must name .*'up', 'y'; got {name!r}"):
            conv3dt.from_onnx(made, name)
    made.graph.node[1].name = "u"  # the other's output
    assert list(conv3dt.from_onnx(made, name).filters for name in ("up", "y")) == [6, 3]
    made.graph.node[1].name = "up"  # neither is unique
    assert conv3dt.from_onnx(made, "u").filters == 6


def test_2d_nodes_do_not_count():
    made = model(after=[helper.make_node("ConvTranspose", ["z", "v"], ["y"])])
    made.graph.initializer.append(tensor(np.ones((1, 1, 1, 1), "float32"), "v"))
    assert conv3dt.from_onnx(made).filters == 6


def test_what_is_no_model():
    with pytest.raises(TypeError, match="model must be a path or an onnx.ModelProto, got int"):
        conv3dt.from_onnx(3)
    with pytest.raises(ValueError, match="constant weights .* got the nodes {}"):
        conv3dt.from_onnx(onnx.ModelProto())


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'conv3dt\[onnx\]'"):
        conv3dt.from_onnx("model.onnx")


# ---- what follows, folded ---------------------------------------------------------

STATISTICS = {
    "gamma": RNG.normal(size=6).astype("float32"),
    "beta": RNG.normal(size=6).astype("float32"),
    "mean": RNG.normal(size=6).astype("float32"),
    "variance": RNG.uniform(0.5, 2, 6).astype("float32"),
}
X = RNG.normal(size=(2, 4, 3, 4, 2)).astype("float32")


def folded(*after, data_format="channels_first", extra=(), **options):
    made = model(after=after, **options)
    made.graph.initializer.extend(tensor(v, k) for k, v in STATISTICS.items())
    made.graph.initializer.extend(extra)
    return conv3dt.from_onnx(made, data_format=data_format, fold=True)


def plain():
    return conv3dt.from_onnx(model())


def node(op, inputs=("u",), outputs=("y",), **attributes):
    return helper.make_node(op, inputs, outputs, **attributes)


def batchnorm(x="u", y="n", **attributes):
    return node("BatchNormalization", (x, *STATISTICS), (y,), **attributes)


def test_normalization_and_activation():
    want = plain()
    want.fold_batchnorm(**STATISTICS, epsilon=1e-5)
    want.activation = "relu"
    layer = folded(batchnorm(), node("Relu", "n"))
    np.testing.assert_array_equal(layer(X), want(X))


def test_epsilon_and_what_does_nothing():
    want = plain()
    want.fold_batchnorm(**STATISTICS, epsilon=0.25)
    want.activation = "tanh"
    layer = folded(
        node("Identity", "u", "a"), batchnorm("a", "n", epsilon=0.25), node("Dropout", "n", "d"),
        node("Tanh", "d"),
    )  # fmt: skip
    np.testing.assert_array_equal(layer(X), want(X))


ACTIVATIONS = [
    ("Relu", {}, "relu"),
    ("LeakyRelu", {}, activations.leaky_relu.with_options(negative_slope=0.01)),
    ("LeakyRelu", {"alpha": 0.2}, "leaky_relu"),
    ("Elu", {}, "elu"),
    ("Elu", {"alpha": 0.5}, activations.elu.with_options(alpha=0.5)),
    ("Celu", {"alpha": 0.5}, activations.celu.with_options(alpha=0.5)),
    ("Selu", {}, "selu"),
    ("Exp", {}, "exponential"),
    ("Sigmoid", {}, "sigmoid"),
    ("HardSigmoid", {}, activations.hard_sigmoid.with_options(slope=0.2)),
    ("HardSigmoid", {"alpha": 1 / 6}, "hard_sigmoid"),
    ("HardSwish", {}, "hard_silu"),
    ("Swish", {}, "silu"),
    ("Tanh", {}, "tanh"),
    ("Softsign", {}, "softsign"),
    ("Softplus", {}, "softplus"),
    ("Mish", {}, "mish"),
    ("Gelu", {}, "gelu"),
    ("Gelu", {"approximate": "tanh"}, activations.gelu.with_options(approximate=True)),
    ("ThresholdedRelu", {}, activations.relu.with_options(threshold=1.0)),
    ("Shrink", {}, "hard_shrink"),
    ("Shrink", {"bias": 0.5}, "soft_shrink"),
    ("Softmax", {}, "softmax"),
    ("Softmax", {"axis": -4}, activations.softmax.with_options(axis=1)),
    ("LogSoftmax", {"axis": 2}, activations.log_softmax.with_options(axis=2)),
]


def same_activation(got, want):
    x = np.linspace(-3, 3, 2 * 6 * 13).reshape(1, 2, 2, 3, 13)
    np.testing.assert_allclose(got(x), activations.get(want)(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("op", "attributes", "want"), ACTIVATIONS, ids=str)
def test_activations(op, attributes, want):
    layer = folded(node(op, **attributes))
    assert layer.activation.name == activations.get(want).name
    same_activation(layer.activation, want)


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0, None, "relu"),
        (0, 6, "relu6"),
        (0, 2, activations.relu.with_options(max_value=2)),
        (-1, 1, "hard_tanh"),
    ],
)
def test_clip(low, high, want):
    bounds = [tensor(np.float32(low), "low")]
    inputs = ["u", "low"]
    if high is not None:
        bounds.append(tensor(np.float32(high), "high"))
        inputs.append("high")
    same_activation(folded(node("Clip", inputs), extra=bounds).activation, want)
    once = {"min": float(low), "max": 3.4028234663852886e38 if high is None else float(high)}
    same_activation(folded(node("Clip", **once), opset=6).activation, want)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)])
def test_prelu_with_one_slope(shape):
    slope = tensor(np.full(shape, 0.3, "float32"), "s")
    layer = folded(node("PRelu", ("u", "s")), extra=[slope])
    same_activation(layer.activation, activations.leaky_relu.with_options(negative_slope=0.3))


@pytest.mark.parametrize("swap", [False, True])
def test_silu_of_two_nodes(swap):
    after = [node("Sigmoid", outputs=("g",)), node("Mul", ("g", "u") if swap else ("u", "g"))]
    assert folded(*after).activation.name == "silu"


def test_axes_in_channels_last():
    """ONNX' axis 1 is the last of ours, 4 the third spatial axis."""
    layer = folded(node("Softmax", axis=1), data_format="channels_last")
    assert layer.activation == activations.softmax
    layer = folded(node("Softmax", axis=4), data_format="channels_last")
    assert layer.activation.options == {"axis": 3}


def test_softmax_of_old_versions():
    same_activation(folded(node("Softmax", axis=4), opset=11).activation, "softmax")
    with pytest.raises(ValueError, match="no activation of conv3dt"):
        folded(node("Softmax"), opset=11)


NOT_OURS = {
    "PRelu": (node("PRelu", ("u", "gamma")),),
    "Clip": (node("Clip", min=-2.0, max=5.0),),
    "Selu": (node("Selu", alpha=2.0),),
    "HardSigmoid": (node("HardSigmoid", beta=0.25),),
    "Swish": (node("Swish", alpha=2.0),),
    "Shrink": (node("Shrink", bias=0.25),),
    "Softmax": (node("Softmax", axis=7),),
}


@pytest.mark.parametrize("after", NOT_OURS.values(), ids=NOT_OURS)
def test_an_activation_that_is_not_ours(after):
    with pytest.raises(ValueError, match="is no activation of conv3dt"):
        folded(*after, opset=6 if after[0].op_type == "Clip" else 20)


def in_a_branch():
    """A node with a subgraph that uses the value of the outer one."""
    branch = helper.make_graph(
        [node("Neg")], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    )
    return node("If", ("c",), ("z",), then_branch=branch, else_branch=branch)


NOT_FOLDED = {
    "another operator": [node("Abs")],
    "another domain": [node("Relu", domain="com.microsoft")],
    "used twice": [node("Relu", "u", "y"), node("Abs", "u", "z")],
    "used in a branch": [node("Relu", "u", "y"), in_a_branch()],
    "used in another place": [node("BatchNormalization", ("x", "u", "beta", "mean", "variance"))],
    "half a silu": [node("Sigmoid", "u", "g"), node("Mul", ("u", "x"))],
}


@pytest.mark.parametrize("after", NOT_FOLDED.values(), ids=NOT_FOLDED)
def test_not_folded(after):
    layer = folded(*after)
    assert layer.activation.name == "linear"
    np.testing.assert_array_equal(layer(X), plain()(X))


def test_what_is_an_output_is_not_folded():
    made = model(after=[node("Relu")])
    made.graph.output.append(helper.make_tensor_value_info("u", TensorProto.FLOAT, None))
    assert conv3dt.from_onnx(made, fold=True).activation.name == "linear"


@pytest.mark.parametrize(
    ("attributes", "opset"), [({"training_mode": 1}, 15), ({"spatial": 0}, 7), ({}, 6)]
)
def test_normalization_in_training(attributes, opset):
    with pytest.raises(ValueError, match="must be one of inference"):
        folded(batchnorm(**attributes), opset=opset)


def test_normalization_with_computed_statistics():
    with pytest.raises(ValueError, match="mean of BatchNormalization must be constant"):
        folded(node("BatchNormalization", ("u", "gamma", "beta", "x", "variance")))


# ---- damaged and hostile files ----------------------------------------------------


def test_truncated_and_flipped(tmp_path):
    """Whatever is cut or flipped: a ValueError, or a layer."""
    made = model({"strides": [2, 1, 1]}, after=[batchnorm(), node("Relu", "n")])
    made.graph.initializer.extend(tensor(v, k) for k, v in STATISTICS.items())
    whole, path = made.SerializeToString(), tmp_path / "m.onnx"
    draw = random.Random(0)
    flipped = [bytearray(whole) for _ in range(600)]
    for data in flipped:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    outcomes = set()
    for data in [whole[: draw.randrange(len(whole))] for _ in range(100)] + flipped:
        path.write_bytes(data)
        for read in (lambda p: conv3dt.from_onnx(p, fold=True), conv3dt.list_layers):
            try:
                outcomes.add(type(read(path)))
            except ValueError as error:
                outcomes.add(type(error))
    assert outcomes >= {Conv3DTranspose, list, ValueError}


def test_other_files(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(FileNotFoundError):
        conv3dt.from_onnx(path)
    for content in (b"", b"\x00" * 100, b"PK\x03\x04", b"\x0a" * 10**6):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="path must be an ONNX model, got .*m.onnx"):
            conv3dt.from_onnx(path)


def test_files_over_the_limit(tmp_path, monkeypatch):
    onnx.save(model(), tmp_path / "m.onnx")
    monkeypatch.setattr(onnx_graph, "LARGEST_FILE", 100)
    with pytest.raises(ValueError, match="more than the format allows"):
        conv3dt.from_onnx(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="smaller than 2 GiB"):
        Conv3DTranspose(4, 3, input_shape=(1, 1, 1, 1)).to_onnx(tmp_path / "y.onnx")


@pytest.mark.parametrize(
    "fields",
    [
        {"dims": (2**40, 1, 1, 1, 1), "float_data": [1.0]},
        {"dims": (2**62, 2**62, 1, 1, 1), "float_data": [1.0]},
        {"dims": (-1, 1, 1, 1, 1), "float_data": [1.0]},
        {"dims": (2, 1, 1, 1, 1), "float_data": [1.0]},
        {"dims": (1, 1, 1, 1, 1), "raw_data": b"abc"},
        {"dims": (1, 1, 1, 1, 1)},
        {"dims": (1, 1, 1, 1, 1), "data_type": 99, "raw_data": b"abcd"},
        {"dims": (1, 1, 1, 1, 1), "data_type": 0, "raw_data": b"abcd"},
        {"dims": (1, 1, 1, 1, 1), "segment": TensorProto.Segment(begin=0), "raw_data": b"abcd"},
    ],
    ids=str,
)
def test_hostile_tensors(fields):
    stored = proto(**{"data_type": TensorProto.FLOAT} | fields)
    with pytest.raises(ValueError, match="tensor 'w'"):
        conv3dt.from_onnx(model(tensors=[stored], inputs=("x", "w")))


def test_hostile_graphs():
    circle = [node("Identity", "p", "q"), node("Identity", "q", "p")]
    made = model(inputs=("x", "q"), after=circle)
    with pytest.raises(ValueError, match="constant weights"):
        conv3dt.from_onnx(made)
    chain = [node("Identity", [f"v{i}"], [f"v{i + 1}"]) for i in range(20_000)]
    chain[0].input[0] = "u"
    assert folded(*chain).activation.name == "linear"
    with pytest.raises(ValueError, match="'u' is made twice"):
        conv3dt.from_onnx(model(after=[node("Relu", "u", "u")]))
    made = model(after=[node("Relu")])
    del made.graph.node[0].output[:]
    assert conv3dt.from_onnx(made, fold=True).activation.name == "linear"


def test_more_of_anything_than_models_have(monkeypatch):
    made = model({"strides": [1, 1, 1], "pads": [0] * 6}, after=[node("Relu")])
    monkeypatch.setattr(onnx_graph, "MOST_ATTRIBUTES", 2)
    with pytest.raises(ValueError, match="node 'up' has 3 attributes"):
        conv3dt.from_onnx(made)
    monkeypatch.setattr(onnx_graph, "MOST_NODES", 1)
    with pytest.raises(ValueError, match="2 nodes or values are more than 1"):
        conv3dt.from_onnx(made)


def test_large_numbers_wait_for_a_call():
    layer = conv3dt.from_onnx(model({"strides": [2**62, 1, 1], "pads": [2**62, 0, 0, 0, 0, 0]}))
    with pytest.raises(ValueError, match="padding must leave|below 2"):
        layer(X)


# ---- writing ----------------------------------------------------------------------

WRITTEN = [
    {},
    {"strides": 2, "padding": "same", "activation": "relu"},
    {"strides": (1, 2, 3), "padding": "same", "output_padding": (0, 1, 2)},
    {"strides": 4, "use_bias": False},
    {"strides": 2, "output_padding": 1, "data_format": "channels_first"},
    {"strides": 2, "padding": ((0, 1), (1, 1), (2, 0)), "dilation_rate": 3, "groups": 2},
    {"padding": "same", "dilation_rate": 2, "dtype": "float64"},
    {"activation": "softmax", "dtype": "float16"},
    {"activation": "softmax", "data_format": "channels_first", "dtype": "bfloat16"},
    {"activation": activations.softmax.with_options(axis=1)},
    {"activation": activations.softmax.with_options(axis=1), "data_format": "channels_first"},
]


def built(**options):
    first = options.get("data_format") == "channels_first"
    shape = (4, None, None, None) if first else (None, None, None, 4)
    made = {"bias_initializer": "random_normal", "name": "up"} | options
    return Conv3DTranspose(6, (3, 2, 4), **made, input_shape=shape)


def sample(layer, batch=2):
    shape = (batch, 4, 2, 3, 4) if layer.data_format == "channels_first" else (batch, 2, 3, 4, 4)
    return RNG.normal(size=shape).astype(layer.weights[0].dtype)


@pytest.mark.parametrize("options", WRITTEN, ids=str)
def test_round_trip(tmp_path, options):
    layer = built(**options)
    layer.to_onnx(tmp_path / "up.onnx")
    assert list(tmp_path.iterdir()) == [tmp_path / "up.onnx"]
    onnx.checker.check_model(str(tmp_path / "up.onnx"), full_check=True)
    again = conv3dt.from_onnx(tmp_path / "up.onnx", data_format=layer.data_format, fold=True)
    assert again.name == "up" and again.dtype_policy == layer.dtype_policy
    for got, want in zip(again.weights, layer.weights, strict=True):
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes()
    x = sample(layer)
    assert again(x).tobytes() == layer(x).tobytes()


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_policies(tmp_path, dtype):
    """The model takes and gives the half type; its weights are float32."""
    layer = built(dtype=dtype, activation="tanh")
    layer.to_onnx(tmp_path / "up.onnx")
    written = onnx.load(tmp_path / "up.onnx")
    half = TensorProto.FLOAT16 if dtype == "mixed_float16" else TensorProto.BFLOAT16
    ends = (written.graph.input[0], written.graph.output[0])
    assert [v.type.tensor_type.elem_type for v in ends] == [half, half]
    again = conv3dt.from_onnx(written, data_format="channels_last", fold=True)
    assert again.kernel.tobytes() == layer.kernel.tobytes() and again.dtype_policy == "float32"


# ONNX has an operator for each of these.
WRITABLE = [
    "celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh",
    "leaky_relu", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink",
    "softmax", "softplus", "softsign", "tanh",
    activations.relu.with_options(negative_slope=0.1),
    activations.relu.with_options(max_value=2.0),
    activations.relu.with_options(threshold=0.5),
    activations.elu.with_options(alpha=0.5),
    activations.celu.with_options(alpha=0.5),
    activations.gelu.with_options(approximate=True),
    activations.hard_sigmoid.with_options(slope=0.2),
    activations.hard_shrink.with_options(threshold=0.1),
]  # fmt: skip


@pytest.mark.parametrize("activation", WRITABLE, ids=str)
def test_activations_round_trip(tmp_path, activation):
    layer = built(activation=activation)
    layer.to_onnx(tmp_path / "up.onnx")
    again = conv3dt.from_onnx(tmp_path / "up.onnx", data_format="channels_last", fold=True)
    x = sample(layer)
    assert again(x).tobytes() == layer(x).tobytes()


@pytest.mark.parametrize(
    "activation",
    [
        "glu", "sparsemax", "squareplus", "log_sigmoid", np.tanh,
        activations.relu.with_options(negative_slope=0.1, threshold=1.0),
        activations.ACTIVATIONS["threshold"].with_options(threshold=1, default_value=2),
    ],
    ids=str,
)  # fmt: skip
def test_activations_that_onnx_does_not_have(tmp_path, activation):
    with pytest.raises(ValueError, match="activation must be one that ONNX has"):
        built(activation=activation).to_onnx(tmp_path / "up.onnx")
    assert not list(tmp_path.iterdir())


def test_own_functions_are_not_mistaken(tmp_path):
    def relu(x):
        return x + 1

    with pytest.raises(ValueError, match="activation must be one that ONNX has"):
        built(activation=relu).to_onnx(tmp_path / "up.onnx")


def test_types_that_an_operator_lacks(tmp_path):
    with pytest.raises(ValueError, match="ONNX does not have .*celu"):
        built(activation="celu", dtype="float64").to_onnx(tmp_path / "up.onnx")


def test_not_before_build(tmp_path):
    with pytest.raises(ValueError, match="to_onnx must be used after the layer is built"):
        Conv3DTranspose(2, 3).to_onnx(tmp_path / "up.onnx")


def test_what_is_written(tmp_path):
    built(strides=2, padding="same", activation="relu").to_onnx(tmp_path / "up.onnx")
    graph = onnx_graph.read(tmp_path / "up.onnx")
    assert [n.op for n in graph.nodes] == ["Transpose", "ConvTranspose", "Relu", "Transpose"]
    assert graph.inputs == ("x",) and graph.outputs == ("y",) and graph.opset == OPSET
    assert graph.shapes["x"] == (None, None, None, None, 4)
    assert graph.shapes["y"] == (None, None, None, None, 6)
