"""Sequential.from_onnx: PyTorch's exports, every operator of a chain, and what is no chain."""

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest

from conv3dt import Sequential

onnx = pytest.importorskip("onnx", reason="needs the package onnx (the test extra has it)")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

DATA = Path(__file__).parent / "data" / "formats" / "onnx_chain"
RNG = np.random.default_rng(0)
W = RNG.normal(size=(2, 3, 2, 2, 2)).astype("float32")
B = RNG.normal(size=(4, 16)).astype("float32")
ROW = RNG.normal(size=16).astype("float32")
FOUR = {name: RNG.uniform(0.5, 2, 16).astype("float32") for name in "gbmv"}


def model(*nodes, x_shape=("N", 4), outputs=None, opset=17, **tensors):
    """A model of nodes (op, inputs, output, attributes); x is its input, the last output its."""
    made = [helper.make_node(op, i, [o], name=f"/{o}/{op}", **a) for op, i, o, a in nodes]
    arrays = {"W": W, "B": B, "row": ROW, **FOUR} | tensors
    used = {name for node in made for name in node.input}
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in outputs or [nodes[-1][2]]
        ],
        [numpy_helper.from_array(np.asarray(a), k) for k, a in arrays.items() if k in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def ints(*numbers):
    return np.array(numbers, np.int64)


def up(x, y="u"):
    return "ConvTranspose", [x, "W"], y, {"strides": [2, 2, 2]}


# ---- PyTorch's exports ------------------------------------------------------------


@pytest.mark.parametrize("file", ["traced.onnx", "exported.onnx"])
def test_exported_generator(isa, file):
    chain = Sequential.from_onnx(DATA / file)
    with np.load(DATA / "expected.npz") as expected:
        x, y = expected["x"], expected["y"]
    np.testing.assert_allclose(chain(x), y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(chain(x[:1]), y[:1], rtol=0, atol=1e-6)
    assert [type(layer).__name__ for layer in chain] == [
        "Dense", "Reshape", "Conv3DTranspose", "Conv3DTranspose", "BatchNormalization",
        "Conv3DTranspose",
    ]  # fmt: skip
    assert chain.built and chain.compute_output_shape((None, 5)) == (None, 1, 16, 16, 16)


def test_a_model_as_well_as_a_path():
    chain = Sequential.from_onnx(onnx.load(DATA / "traced.onnx"))
    x = np.ones((1, 5), "float32")
    np.testing.assert_array_equal(chain(x), Sequential.from_onnx(str(DATA / "traced.onnx"))(x))


# ---- the operators, judged by ONNX' own reference ---------------------------------

SPACE = {"x_shape": ("N", 2, 3, "H", 2)}
CHAINS = {
    "Gemm": model(("Gemm", ["x", "B", "row"], "y", {})),
    "Gemm with factors": model(
        ("Gemm", ["x", "C", "row"], "y", {"transB": 1, "alpha": 0.5, "beta": -2.0}), C=B.T.copy()
    ),
    "Gemm with one bias": model(("Gemm", ["x", "B", "one"], "y", {}), one=np.float32([3])),
    "MatMul": model(("MatMul", ["x", "B"], "y", {})),
    "MatMul, Add": model(("MatMul", ["x", "B"], "a", {}), ("Add", ["row", "a"], "y", {})),
    "normalization of rows": model(
        ("Gemm", ["x", "B"], "a", {}),
        ("BatchNormalization", ["a", *"gbmv"], "y", {"epsilon": 0.1}),
    ),
    "Reshape": model(
        ("Gemm", ["x", "B"], "a", {}), ("Reshape", ["a", "to"], "r", {}), up("r", "y"),
        to=ints(0, 2, 2, -1, 2),
    ),
    "Flatten": model(up("x"), ("Flatten", ["u"], "y", {}), x_shape=(1, 2, 2, 2, 2)),
    "Unsqueeze, nothing twice": model(
        ("Unsqueeze", ["x", "new"], "s", {}), up("s"),
        ("Identity", ["u"], "i", {}), ("Dropout", ["i"], "y", {}),
        x_shape=("N", 2, 3), new=ints(-1, 3),
    ),
    "Squeeze": model(
        ("Squeeze", ["x", "old"], "s", {}), up("s", "y"), x_shape=("N", 1, 2, 3, 3, 3), old=ints(1)
    ),
    "axes as attributes": model(
        ("Unsqueeze", ["x"], "s", {"axes": [2, 3, 4]}), up("s", "y"), x_shape=("N", 2), opset=11
    ),
    "activations": model(
        up("x"), ("LeakyRelu", ["u"], "a", {"alpha": 0.3}), ("Sigmoid", ["a"], "s", {}),
        ("Mul", ["s", "a"], "p", {}), ("Softmax", ["p"], "y", {"axis": 1}), **SPACE,
    ),
    "normalization of what is read": model(
        ("BatchNormalization", ["x", "g2", "b2", "b2", "g2"], "a", {}), up("a", "y"),
        g2=FOUR["g"][:2], b2=FOUR["b"][:2], **SPACE,
    ),
    "the batch from Shape": model(
        ("Shape", ["x"], "s", {}), ("Gather", ["s", "zero"], "n", {}),
        ("Unsqueeze", ["n", "at"], "n1", {}), ("Concat", ["n1", "rest"], "to", {"axis": 0}),
        ("Gemm", ["x", "B"], "a", {}), ("Relu", ["a"], "r", {}),
        ("Reshape", ["r", "to"], "p", {}), up("p", "y"),
        zero=np.int64(0), at=ints(0), rest=ints(2, 2, 2, 2),
    ),
    "sizes that are computed": model(
        up("x"), ("Shape", ["u"], "s", {}), ("Slice", ["s", "i0", "i1"], "n", {}),
        ("Slice", ["s", "i1", "i3"], "cd", {}), ("Mul", ["cd", "two"], "c2", {}),
        ("Div", ["c2", "two"], "c1", {}), ("Concat", ["n", "c1", "left"], "to", {"axis": 0}),
        ("Reshape", ["u", "to"], "y", {}),
        i0=ints(0), i1=ints(1), i3=ints(3), two=ints(2), left=ints(-1), x_shape=("N", 2, 2, 3, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("proto", CHAINS.values(), ids=CHAINS)
def test_operators(proto):
    shape = [d.dim_value or 3 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = RNG.normal(size=shape).astype("float32")
    (want,) = ReferenceEvaluator(proto).run(None, {"x": x})
    y = Sequential.from_onnx(proto)(x)
    assert y.dtype == want.dtype
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_names_come_from_the_nodes():
    chain = Sequential.from_onnx(CHAINS["Reshape"])
    assert [layer.name for layer in chain] == ["a.Gemm", "r.Reshape", "y.ConvTranspose"]


def test_double_precision():
    proto = model(("Gemm", ["x", "B", "row"], "y", {}), B=B.astype(float), row=ROW.astype(float))
    assert Sequential.from_onnx(proto)(np.ones((1, 4))).dtype == np.float64


# ---- what is no chain -------------------------------------------------------------

BAD = {
    "another operator": (model(up("x"), ("Erf", ["u"], "y", {}), **SPACE), "Erf '/y/Erf'"),
    "a branch": (
        model(up("x"), ("Relu", ["u"], "a", {}), ("Tanh", ["u"], "c", {}),
              ("Add", ["a", "c"], "y", {}), **SPACE),
        "'u' must go to one node, got Relu '/a/Relu', Tanh '/c/Tanh'",
    ),
    "a skip": (model(up("x"), ("Add", ["u", "u"], "y", {}), **SPACE), "Add '/y/Add'"),
    "a convolution": (model(("Conv", ["x", "W"], "y", {}), **SPACE), "Conv '/y/Conv'"),
    "2D": (model(("ConvTranspose", ["x", "V"], "y", {}), V=W[..., 0], x_shape=("N", 2, 3, 3)),
           "ConvTranspose '/y/ConvTranspose'"),
    "two outputs": (model(up("x"), ("Relu", ["u"], "y", {}), outputs=["u", "y"], **SPACE),
                    "one output"),
    "no shape": (model(up("x", "y"), x_shape=None), "declare the shape of its input 'x'"),
    "other channels": (model(up("x", "y"), x_shape=(1, 3, 2, 2, 2)), "2 input channels, got 3"),
    "another batch": (
        model(("Reshape", ["x", "to"], "r", {}), up("r", "y"), to=ints(5, 2, 2, 1, 1)),
        "the batch must stay",
    ),
    "two sizes left": (
        model(("Reshape", ["x", "to"], "r", {}), up("r", "y"), x_shape=("N", "M", "K"),
              to=ints(0, 0, 0, -1)),
        "the batch must stay and sizes be known",
    ),
    "sizes from an unknown size": (
        model(("Shape", ["x"], "to", {}), ("Reshape", ["x", "to"], "y", {}), x_shape=("N", "M")),
        "Reshape '/y/Reshape': target_shape",
    ),
    "the batch doubled": (
        model(("Shape", ["x"], "s", {}), ("Mul", ["s", "two"], "to", {}),
              ("Reshape", ["x", "to"], "y", {}), two=ints(2)),
        "the batch must stay",
    ),
    "a size that is not there": (
        model(("Shape", ["x"], "s", {}), ("Gather", ["s", "nine"], "n", {}),
              ("Reshape", ["x", "n"], "y", {}), nine=ints(9)),
        "sizes cannot be computed",
    ),
    "sizes that are no integers": (
        model(("Reshape", ["x", "to"], "y", {}), to=np.float32([0, np.inf])),
        "sizes must be integers",
    ),
    "a factor that is a word": (
        model(("Gemm", ["x", "B"], "y", {"alpha": "much"})), "Gemm '/y/Gemm'"
    ),
    "sizes from elsewhere": (
        model(("Size", ["x"], "s", {}), ("Reshape", ["x", "s"], "y", {})),
        "must go to one node",
    ),
    "the flattened batch": (model(("Flatten", ["x"], "y", {"axis": 2})), "axis must be 1"),
    "transposed input": (model(("Gemm", ["x", "B"], "y", {"transA": 1})), "transA"),
    "weights that are computed": (
        model(("Gemm", ["x", "x"], "y", {})), "B must be constant, got 'x'"
    ),
    "a product of stacks": (model(("MatMul", ["x", "S"], "y", {}), S=B[None]), "2 axes"),
    "squeezing two": (
        model(("Squeeze", ["x", "old"], "y", {}), old=ints(1)), "axes must be of size 1"
    ),
    "training": (
        model(up("x"), ("BatchNormalization", ["u", "g3", "g3", "g3", "g3"], "y",
                        {"training_mode": 1}), g3=FOUR["g"][:3], **SPACE),
        "inference",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("proto", "words"), BAD.values(), ids=BAD)
def test_refused(proto, words, tmp_path):
    words = words.replace("(", r"\(")
    with pytest.raises(ValueError, match=words):
        Sequential.from_onnx(proto)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=f"m.onnx.*{words}"):
        Sequential.from_onnx(tmp_path / "m.onnx")


def test_sizes_cannot_grow():
    """Each doubles the number of sizes; a thousand would never end."""
    doubled = [("Concat", [f"s{i}", f"s{i}"], f"s{i + 1}", {"axis": 0}) for i in range(60)]
    added = [("Add", [f"s{i}", f"s{i}"], f"s{i + 1}", {}) for i in range(1000)]
    squared = [("Mul", [f"s{i}", f"s{i}"], f"s{i + 1}", {}) for i in range(60)]
    for nodes in (doubled, added, squared):
        proto = model(
            ("Shape", ["x"], "s0", {}), *nodes, ("Reshape", ["x", f"s{len(nodes)}"], "y", {})
        )
        with pytest.raises(ValueError, match="sizes must"):
            Sequential.from_onnx(proto)


def test_truncated_and_flipped(tmp_path):
    """Whatever is cut or flipped: a ValueError, or a chain."""
    path, draw = tmp_path / "m.onnx", random.Random(0)
    for file in ("traced.onnx", "exported.onnx"):
        whole = (DATA / file).read_bytes()
        for _ in range(200):
            data = bytearray(whole)
            for _ in range(draw.choice((1, 1, 2, 5, 30))):
                data[draw.randrange(len(data))] = draw.randrange(256)
            path.write_bytes(data[: draw.choice((None, draw.randrange(len(data))))])
            with contextlib.suppress(ValueError):
                Sequential.from_onnx(path)


def test_a_circle_ends():
    proto = model(("Relu", ["x"], "a", {}), ("Reshape", ["a", "to"], "x", {}), to=ints(0, 4))
    proto.graph.output[0].name = "nowhere"
    with pytest.raises(ValueError, match="comes from itself"):
        Sequential.from_onnx(proto)


def test_neither_path_nor_model(tmp_path):
    with pytest.raises(TypeError, match="path or an onnx.ModelProto"):
        Sequential.from_onnx(3)
    with pytest.raises(OSError):
        Sequential.from_onnx(tmp_path / "none.onnx")
