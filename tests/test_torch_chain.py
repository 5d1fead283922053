"""Sequential.from_torch: PyTorch's modules, known by what they have, and where it is installed."""

from pathlib import Path

import numpy as np
import pytest

from conv3dt import Sequential

RNG = np.random.default_rng(0)


def fake(kind, *children, **attributes):
    """A module as far as a loader looks at it."""
    named = [(str(i), child) for i, child in enumerate(children)]
    attributes |= {"named_children": lambda self: named, "named_modules": lambda self: [("", self)]}
    return type(kind, (), attributes)()


def linear(inputs, units):
    weight = RNG.normal(size=(units, inputs)).astype("float32")
    return fake("Linear", weight=weight, bias=RNG.normal(size=units).astype("float32"))


def up(channels, filters, **options):
    weight = RNG.normal(size=(channels, filters, 2, 2, 2)).astype("float32")
    geometry = {"stride": (2,) * 3, "padding": (0,) * 3, "output_padding": (0,) * 3}
    given = geometry | {"groups": 1, "dilation": (1,) * 3, "bias": None} | options
    return fake("ConvTranspose3d", weight=weight, kernel_size=(2,) * 3, transposed=True, **given)


def norm(channels, kind="BatchNorm3d", **options):
    weight, bias, mean, variance = RNG.uniform(0.5, 2, (4, channels)).astype("float32")
    given = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    return fake(kind, **given | {"eps": 1e-5} | options)


def test_a_generator_of_modules_that_look_right():
    last = [up(2, 3), norm(3, weight=None), fake("Dropout"), fake("Sigmoid")]
    parts = [
        linear(5, 16), norm(16, "BatchNorm1d"), fake("ReLU"),
        fake("Unflatten", dim=1, unflattened_size=(2, 2, 2, 2)), fake("Sequential", *last),
    ]  # fmt: skip
    chain = Sequential.from_torch(fake("Sequential", *parts))
    assert [layer.name for layer in chain] == ["0", "3", "4.0"] and chain.built
    x = RNG.normal(size=(3, 5)).astype("float32")
    v = x.astype(float) @ parts[0].weight.T + parts[0].bias
    one, three = parts[1], last[1]
    v = (v - one.running_mean) / np.sqrt(one.running_var + 1e-5) * one.weight + one.bias
    v = np.maximum(v, 0).reshape(3, 2, 2, 2, 2)
    v = np.einsum("ncdhw,cfijk->nfdihjwk", v, last[0].weight).reshape(3, 3, 4, 4, 4)
    mean, variance, bias = (
        getattr(three, name).reshape(3, 1, 1, 1) for name in ("running_mean", "running_var", "bias")
    )
    want = 1 / (1 + np.exp(-(v - mean) / np.sqrt(variance + 1e-5) - bias))
    np.testing.assert_allclose(chain(x), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fake("Sequential", up(2, 3), fake("Conv3d")), "got Conv3d '1'"),
        (lambda: fake("Sequential", fake("Sequential", fake("Mine"))), "got Mine '0.0'"),
        (lambda: fake("Generator"), "got Generator ''"),
        (lambda: fake("Sequential"), "at least one"),
        (lambda: fake("Sequential", up(2, 3), norm(3, running_mean=None)), "BatchNorm3d '1'"),
        (lambda: fake("Sequential", up(2, 3), norm(4)), r"1 \(BatchNormalization\): .* got 3"),
        (lambda: fake("Unflatten", dim=2, unflattened_size=(2,)), "dim must be 1"),
        (lambda: fake("Flatten", start_dim=1, end_dim=-1), "input_shape must be known"),
        (lambda: fake("Flatten", start_dim=0, end_dim=-1), "dims must be"),
        (lambda: fake("Softmax", dim=None), "dim"),
        (lambda: fake("Softplus", beta=2), "beta"),
        (lambda: fake("Hardtanh", min_val=-2, max_val=2), "from -1 to 1"),
        (lambda: fake("PReLU", weight=np.ones(2, "float32")), "one slope"),
    ],
)
def test_refused(make, words):
    with pytest.raises(ValueError, match=words):
        Sequential.from_torch(make())


def test_no_module():
    with pytest.raises(TypeError, match="Module, got dict"):
        Sequential.from_torch({"weight": np.ones((1, 1, 1, 1, 1))})


# ---- PyTorch itself ---------------------------------------------------------------


def torch_and_nn():
    torch = pytest.importorskip("torch", reason="needs PyTorch (the bench extra)")
    torch.manual_seed(0)
    return torch, torch.nn


def compare(module, shape, **options):
    torch, _ = torch_and_nn()
    chain = Sequential.from_torch(module, **options)
    x = torch.randn(*shape)
    with torch.inference_mode():
        want = module.eval()(x).numpy()
    y = chain(x.numpy())
    assert y.shape == want.shape and y.dtype == want.dtype
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-5)
    return chain


def test_activations():
    _, nn = torch_and_nn()
    for activation in (
        nn.CELU(0.7), nn.ELU(0.3), nn.GELU(), nn.GELU("tanh"), nn.GLU(1), nn.Hardshrink(0.2),
        nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh(), nn.Hardtanh(0, 2.5), nn.LeakyReLU(0.3),
        nn.LogSigmoid(), nn.LogSoftmax(1), nn.Mish(), nn.PReLU(), nn.ReLU(), nn.ReLU6(), nn.SELU(),
        nn.SiLU(), nn.Sigmoid(), nn.Softmax(1), nn.Softmax(-1), nn.Softplus(), nn.Softshrink(0.2),
        nn.Softsign(), nn.Tanh(), nn.Tanhshrink(),
    ):  # fmt: skip
        compare(nn.Sequential(nn.ConvTranspose3d(2, 4, 2, 2), activation), (2, 2, 2, 3, 2))


def test_generators():
    _, nn = torch_and_nn()
    chain = compare(
        nn.Sequential(
            nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(),
            nn.Unflatten(1, (2, 2, 2, 2)),
            nn.ConvTranspose3d(2, 4, 3, 2, 1, 1, groups=2), nn.BatchNorm3d(4, affine=False),
            nn.LeakyReLU(0.2), nn.ConvTranspose3d(4, 1, 4, 2, 1), nn.Tanh(), nn.Flatten(),
        ),
        (3, 6),
    )  # fmt: skip
    assert [type(layer).__name__ for layer in chain] == [
        "Dense", "Reshape", "Conv3DTranspose", "Conv3DTranspose", "Flatten",
    ]  # fmt: skip
    compare(nn.Sequential(nn.BatchNorm3d(3), nn.ConvTranspose3d(3, 1, 2)), (1, 3, 2, 2, 2))


def test_the_module_of_the_onnx_fixture():
    pytest.importorskip("onnx", reason="needs the package onnx (the test extra has it)")
    _, nn = torch_and_nn()
    import runpy

    made = runpy.run_path(
        str(Path(__file__).parent / "data" / "formats" / "onnx_chain" / "make.py")
    )
    parts = list(made["generator"]())
    parts[3] = nn.Unflatten(1, (2, 2, 2, 2))
    chain = compare(nn.Sequential(*parts), (2, 5))
    folder = Path(__file__).parent / "data" / "formats" / "onnx_chain"
    with np.load(folder / "expected.npz") as expected:
        np.testing.assert_allclose(chain(expected["x"]), expected["y"], rtol=0, atol=1e-6)
