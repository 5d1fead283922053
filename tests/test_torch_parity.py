"""PyTorch, where it is installed: the same numbers from its modules, and its files converted."""

import shlex
import subprocess
import sys

import numpy as np
import pytest

from conv3dt import Conv3DTranspose, from_torch

torch = pytest.importorskip("torch", reason="needs PyTorch (the bench extra)")
from torch import nn  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (1, 2, 3), "padding": (0, 1, 2), "output_padding": (0, 1, 2), "groups": 2},
    {"stride": 2, "dilation": 3, "padding": 2, "output_padding": 2, "bias": False},
    {"kernel_size": 1, "stride": 3},
    {"kernel_size": 2, "stride": 2, "groups": 4, "out_channels": 4},
    {"kernel_size": (4, 1, 2), "stride": (2, 1, 2), "padding": (1, 0, 0)},
]


def module(dtype=torch.float32, **options):
    torch.manual_seed(0)
    given = {"in_channels": 4, "out_channels": 6, "kernel_size": 3} | options
    return nn.ConvTranspose3d(**given).to(dtype).eval()


def answer(part, x):
    with torch.inference_mode():
        return part(torch.from_numpy(x).to(part.weight.dtype)).float().numpy()


X = np.random.default_rng(0).normal(size=(2, 4, 3, 4, 5)).astype("float32")


@pytest.mark.parametrize("options", MODULES, ids=str)
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_modules(options, data_format):
    theirs = module(**options)
    ours = from_torch(theirs, data_format=data_format)
    last = data_format == "channels_last"
    y = ours(np.moveaxis(X, 1, -1) if last else X)
    y = np.moveaxis(y, -1, 1) if last else y
    np.testing.assert_allclose(y, answer(theirs, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", MODULES, ids=str)
def test_state_dicts_both_ways(options):
    theirs = module(**options)
    geometry = {
        k: v for k, v in options.items() if k not in ("kernel_size", "out_channels", "bias")
    }
    ours = from_torch(theirs.state_dict(), **geometry)
    np.testing.assert_array_equal(ours(X), from_torch(theirs)(X))
    state = {key: torch.from_numpy(a) for key, a in ours.to_torch_state_dict().items()}
    again = module(**options)
    nn.init.zeros_(again.weight)
    again.load_state_dict(state)
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    theirs = module(dtype, stride=2)
    ours = from_torch(theirs)
    assert ours.dtype == str(dtype).removeprefix("torch.")
    tolerance = {torch.float64: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    y = ours(X).astype("float32")
    np.testing.assert_allclose(y, answer(theirs, X), rtol=tolerance, atol=tolerance)


def test_models():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.ups = nn.ModuleList([module(stride=2), module(groups=2)])
            self.mix = nn.Conv3d(6, 6, 3)
            self.flat = nn.ConvTranspose2d(4, 4, 3)

    model = Decoder()
    for i in (0, 1):
        ours = from_torch(model, f"ups.{i}")
        np.testing.assert_allclose(ours(X), answer(model.ups[i], X), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="of 'ups.0', 'ups.1'; got ''"):
        from_torch(model)
    with pytest.raises(ValueError, match="under the prefix 'mix', got Conv3d"):
        from_torch(model, "mix")
    with pytest.raises(ValueError, match="'ups.0'.*'mix'"):  # a square Conv3d looks the same
        from_torch(model.state_dict())


@pytest.mark.parametrize(
    "part", [nn.ConvTranspose1d(1, 1, 2), nn.ConvTranspose2d(1, 1, 2), nn.Conv3d(1, 1, 2)]
)
def test_other_modules(part):
    with pytest.raises(ValueError, match=f"must have a ConvTranspose3d, got {type(part).__name__}"):
        from_torch(part)
    if part.weight.ndim < 5:
        with pytest.raises(ValueError, match="must have a ConvTranspose3d"):
            from_torch(part.state_dict())


def test_weights_that_are_computed():
    """weight_norm: the module's weight is what counts."""
    theirs = nn.utils.parametrizations.weight_norm(module(stride=2))
    np.testing.assert_allclose(from_torch(theirs)(X), answer(theirs, X), rtol=1e-5, atol=1e-5)


def test_weights_that_are_not_there():
    with pytest.raises((TypeError, ValueError), match="uninitialized|dense"):
        from_torch(nn.LazyConvTranspose3d(2, 3))
    with pytest.raises(TypeError, match="weight must be a dense tensor of floats"):
        from_torch(nn.ConvTranspose3d(1, 1, 2, device="meta"))


def test_the_command_that_converts(tmp_path):
    pytest.importorskip("safetensors", reason="needs safetensors (the torch extra)")
    theirs = module(stride=2)
    for name, saved in (("it's.pt", theirs.state_dict()),
                        ("c.pth", {"epoch": 1, "state_dict": theirs.state_dict()})):  # fmt: skip
        path = tmp_path / name
        torch.save(saved, path)
        with pytest.raises(ValueError) as error:
            from_torch(path)
        python, *rest = shlex.split(str(error.value).splitlines()[-1])
        assert python == "python"
        subprocess.run([sys.executable, *rest], check=True, timeout=120)
        ours = from_torch(path.with_suffix(".safetensors"), stride=2)
        np.testing.assert_array_equal(ours(X), from_torch(theirs)(X))


def test_batchnorm_folds():
    norm = nn.BatchNorm3d(6).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    theirs = nn.Sequential(module(stride=2), norm)
    ours = from_torch(theirs, "0")
    statistics = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    ours.fold_batchnorm(*(t.detach().numpy() for t in statistics), norm.eps)
    with torch.inference_mode():
        want = theirs(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(ours(X), want, rtol=1e-5, atol=1e-5)
    assert isinstance(ours, Conv3DTranspose)
