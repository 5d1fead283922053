"""from_torch and to_torch_state_dict, without PyTorch: its files, arrays, and what acts like it."""

import json
import random
import re
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import conv3dt
from conv3dt import Conv3DTranspose, from_torch

safetensors = pytest.importorskip(
    "safetensors", reason="needs the package safetensors (the test extra has it)"
)

DATA = Path(__file__).parent / "data" / "formats" / "torch"
RNG = np.random.default_rng(0)
UP1 = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}
STATE = {
    "up.weight": RNG.normal(size=(4, 3, 2, 3, 1)).astype("float32"),
    "up.bias": RNG.normal(size=3).astype("float32"),
}


@pytest.fixture(scope="module")
def expected():
    with np.load(DATA / "decoder.npz") as file:
        return dict(file)


# ---- files ------------------------------------------------------------------------


def test_a_file_of_pytorch(expected):
    layer = from_torch(DATA / "decoder.safetensors", "up1", **UP1)
    np.testing.assert_allclose(layer(expected["x1"]), expected["y1"], rtol=1e-5, atol=1e-6)
    assert (layer.name, layer.data_format, layer.dtype) == ("up1", "channels_first", "float32")
    layer = from_torch(str(DATA / "decoder.safetensors"), "up2.", stride=(1, 2, 2))
    np.testing.assert_allclose(layer(expected["x2"]), expected["y2"], rtol=1e-5, atol=1e-6)
    assert not layer.use_bias


def test_the_layers_arguments(expected):
    layer = from_torch(
        DATA / "decoder.safetensors", "up1", **UP1, data_format="channels_last", activation="relu",
        name="other", dtype="float64", num_threads=1, algorithm="direct",
    )  # fmt: skip
    y = layer(np.moveaxis(expected["x1"], 1, -1))
    want = np.maximum(np.moveaxis(expected["y1"], 1, -1), 0)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    assert (layer.name, layer.num_threads, layer.algorithm) == ("other", 1, "direct")
    assert y.dtype == np.float64


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types(expected, half):
    layer = from_torch(DATA / "half.safetensors", half, **UP1)
    assert layer.dtype_policy == half
    y = layer(expected["x1"])
    assert y.dtype.name == half
    np.testing.assert_allclose(y.astype("f4"), expected["y1"], rtol=0.03, atol=0.03)
    wide = from_torch(DATA / "half.safetensors", half, **UP1, dtype="float32")
    np.testing.assert_array_equal(wide.kernel, layer.kernel.astype("float32"))


def test_the_layer_is_chosen():
    """Of the three weights of 5 axes, by its bias: one has 2 groups, one is a Conv3d's."""
    path = DATA / "decoder.safetensors"
    assert from_torch(path, stride=(1, 2, 2)).name == "up2"
    with pytest.raises(ValueError, match=r"got mix.bias \(2,\), mix.weight \(2, 6, 3, 3, 3\)"):
        from_torch(path, "mix")
    with pytest.raises(ValueError, match="groups=1 under the prefix 'up': .* got no tensors"):
        from_torch(path, "up")
    with pytest.raises(ValueError, match="one ConvTranspose3d of 'up1', 'up2'; got ''"):
        from_torch(path, groups=2)


def test_list_layers():
    layers = {info.name: info for info in conv3dt.list_layers(DATA / "decoder.safetensors")}
    assert set(layers) == {"up1", "up2"}
    up1 = layers["up1"]
    assert (up1.filters, up1.kernel_size, up1.in_channels, up1.groups) == (6, (3, 3, 3), 4, 2)
    assert up1.strides is None and up1.use_bias and not layers["up2"].use_bias


def test_load_weights():
    path = DATA / "decoder.safetensors"
    wanted = from_torch(path, "up1", **UP1)
    layer = Conv3DTranspose(6, 3, strides=2, padding=1, output_padding=1, groups=2)
    layer.load_weights(path)
    np.testing.assert_array_equal(layer.kernel, wanted.kernel)
    np.testing.assert_array_equal(layer.bias, wanted.bias)
    with pytest.raises(ValueError, match="bias must agree"):
        Conv3DTranspose(3, (1, 2, 2)).load_weights(path, "up2")


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "x.ckpt", "model"])
def test_pickled_files_are_refused(tmp_path, name):
    """Before anything is read, with a command that converts them."""
    with pytest.raises(ValueError, match="runs what it says") as error:
        from_torch(tmp_path / name)
    command = str(error.value).splitlines()[-1].strip()
    assert command.startswith("python -c 'import torch") and "weights_only=True" in command
    assert name in command and command.endswith(".safetensors\")'")


def test_damaged_files(tmp_path):
    whole, path = (DATA / "decoder.safetensors").read_bytes(), tmp_path / "m.safetensors"
    draw = random.Random(0)
    flipped = [bytearray(whole) for _ in range(400)]
    for data in flipped:
        data[draw.randrange(600)] ^= 1 << draw.randrange(8)
    outcomes = set()
    for data in [whole[: draw.randrange(len(whole))] for _ in range(50)] + flipped:
        path.write_bytes(data)
        for read in (lambda p: from_torch(p, "up1", **UP1), conv3dt.list_layers):
            try:
                outcomes.add(type(read(path)))
            except (ValueError, TypeError) as error:  # TypeError: a flip makes another dtype
                assert str(path) in str(error)
                outcomes.add(type(error))
    assert outcomes >= {Conv3DTranspose, list, ValueError}


def test_hostile_headers(tmp_path):
    path = tmp_path / "m.safetensors"
    for header in (
        {"w.weight": {"dtype": "F32", "shape": [2**40] * 5, "data_offsets": [0, 4]}},
        {"w.weight": {"dtype": "F32", "shape": [1] * 5, "data_offsets": [0, 2**62]}},
        {"w.weight": {"dtype": "F32", "shape": [1] * 5, "data_offsets": [-4, 0]}},
        {"w.weight": {"dtype": "pickle", "shape": [1] * 5, "data_offsets": [0, 4]}},
        [],
    ):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with pytest.raises(ValueError, match="path must be sound, got .*m.safetensors"):
            from_torch(path)
    for content in (b"", b"\xff" * 8, b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="path must be sound"):
            from_torch(path)
    with pytest.raises(FileNotFoundError):
        from_torch(tmp_path / "none.safetensors")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'conv3dt\[torch\]'"):
        from_torch(DATA / "decoder.safetensors", "up1")


# ---- state dicts of arrays --------------------------------------------------------


def test_arrays():
    layer = from_torch(STATE)
    np.testing.assert_array_equal(layer.kernel, STATE["up.weight"].transpose(2, 3, 4, 1, 0))
    np.testing.assert_array_equal(layer.bias, STATE["up.bias"])
    assert layer.strides == (1, 1, 1) and layer.padding == ((0, 0),) * 3
    bare = {"weight": STATE["up.weight"], "bias": STATE["up.bias"]}
    assert from_torch(bare).name.startswith("conv3d_transpose")
    only = {"weight": STATE["up.weight"].astype(ml_dtypes.bfloat16)}
    assert from_torch(only, groups=4).dtype_policy == "bfloat16"
    assert from_torch(only, groups=4).filters == 12


def test_prefixes():
    many = {
        f"{where}.{key[3:]}": v for where in ("a.up", "a.up.up", "b") for key, v in STATE.items()
    }
    for prefix in ("a.up.up", "a.up", "b", "b."):
        assert from_torch(many, prefix).name == prefix.rstrip(".")
    for prefix in ("", "a"):
        with pytest.raises(ValueError, match="prefix must name one ConvTranspose3d of 'a.up', "):
            from_torch(many, prefix)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"up.bias": np.ones(4, "f4")}, {}, ValueError, r"got up.weight \(4, 3, 2, 3, 1\)"),
        ({"up.weight": np.ones((4, 3, 2, 3), "f4")}, {}, ValueError, r"up.weight \(4, 3, 2, 3\)"),
        ({"up.weight": np.ones((4, 3, 2), "f4")}, {}, ValueError, r"up.weight \(4, 3, 2\)"),
        ({"up.weight": np.ones((4, 3, 0, 1, 1), "f4")}, {}, ValueError, "kernel_size must be"),
        (
            {"up.weight": np.ones((4, 0, 1, 1, 1), "f4")},
            {},
            ValueError,
            "must have a ConvTranspose3d",
        ),
        ({"up.weight": np.ones((4, 3, 2, 3, 1), "i4")}, {}, ValueError, "dtype must be one of"),
        ({"up.weight": np.ones((4, 3, 2, 3, 1), "c8")}, {"dtype": "float32"}, TypeError, "kernel"),
        ({"up.bias": np.ones((3, 1), "f4")}, {}, ValueError, "must have a ConvTranspose3d"),
        ({}, {"groups": 2}, ValueError, "must have a ConvTranspose3d"),
        ({}, {"groups": 0}, ValueError, "groups must be a positive integer"),
        ({}, {"stride": 0}, ValueError, "strides must be"),
        ({}, {"stride": (1, 2)}, ValueError, "strides must be"),
        ({}, {"padding": "same"}, ValueError, "padding must be 1 or 3 integers"),
        ({}, {"padding": -1}, ValueError, "padding must be"),
        ({}, {"output_padding": 1}, ValueError, "output_padding must be less"),
        ({}, {"data_format": "NCDHW"}, ValueError, "data_format must be"),
        ({}, {"prefix": "down"}, ValueError, "under the prefix 'down': .* no tensors"),
    ],
)
def test_refused(change, options, error, message):
    with pytest.raises(error, match=message):
        from_torch(STATE | change, **options)


def test_checkpoints_and_other_things():
    with pytest.raises(ValueError, match="it holds dicts, pass one: 'state_dict', 'optimizer'"):
        from_torch({"epoch": 3, "state_dict": STATE, "optimizer": {}})
    with pytest.raises(ValueError, match="got no tensors"):
        from_torch({3: STATE["up.weight"]})
    for thing in (None, 3, STATE["up.weight"], [STATE]):
        with pytest.raises(TypeError, match="module_or_state_dict must be a torch.nn.Module, a"):
            from_torch(thing)


def test_unknown_arguments():
    with pytest.raises(TypeError, match="strides"):
        from_torch(STATE, strides=2)


# ---- what acts like a module ------------------------------------------------------


class Tensor:
    """What from_torch may use of a tensor, and no `__array__` to go around it."""

    def __init__(self, array, dtype="torch.float32"):
        self.array, self.dtype, self.shape = array, dtype, array.shape

    def detach(self):
        return self

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.array)

    def numpy(self):
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array


class Module:
    transposed = True
    stride, padding, output_padding, dilation = (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)
    groups, kernel_size = 2, (2, 3, 1)

    def __init__(self, **parts):
        self.weight = Tensor(STATE["up.weight"])
        self.bias = Tensor(np.arange(6, dtype="float32"))
        self.parts = parts
        self.transposed = not parts

    def named_modules(self):
        yield "", self
        yield from self.parts.items()


class Flat(Module):
    kernel_size = (2, 2)


def test_a_module_says_its_geometry():
    layer = from_torch(Module())
    assert layer.strides == (2, 2, 2) and layer.groups == 2 and layer.filters == 6
    assert layer.padding == ((1, 1),) * 3 and layer.output_padding == (1, 1, 1)
    np.testing.assert_array_equal(layer.bias, np.arange(6))
    with pytest.raises(ValueError, match="stride, groups must not be given for a module"):
        from_torch(Module(), stride=2, groups=2)


def test_a_module_inside():
    model = Module(encoder=Module(down=None), up=Module(), flat=Flat())
    assert from_torch(model).name == "up"
    model = Module(up1=Module(), up2=Module())
    with pytest.raises(ValueError, match="prefix must name one ConvTranspose3d of 'up1', 'up2'"):
        from_torch(model)
    assert from_torch(model, "up2").name == "up2"
    with pytest.raises(ValueError, match="must have a ConvTranspose3d, got Flat"):
        from_torch(Flat())
    with pytest.raises(ValueError, match="under the prefix 'encoder', got Module"):
        from_torch(Module(encoder=Module(down=None)), "encoder")
    with pytest.raises(ValueError, match="under the prefix 'down', got no module"):
        from_torch(Module(encoder=Module(down=None)), "down")


def test_bfloat16_tensors():
    exact = STATE["up.weight"].astype(ml_dtypes.bfloat16)
    state = {"weight": Tensor(exact.astype("float32"), "torch.bfloat16")}
    layer = from_torch(state)
    assert layer.dtype_policy == "bfloat16"
    np.testing.assert_array_equal(layer.kernel, exact.transpose(2, 3, 4, 1, 0))


# ---- writing ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("groups", [1, 2])
def test_state_dict_of_a_layer(dtype, groups):
    layer = Conv3DTranspose(
        6, (2, 3, 1), groups=groups, dtype=dtype, input_shape=(1, 1, 1, 4),
        bias_initializer="random_normal",
    )  # fmt: skip
    state = layer.to_torch_state_dict("up.")
    assert list(state) == ["up.weight", "up.bias"]
    assert state["up.weight"].shape == (4, 6 // groups, 2, 3, 1)
    assert state["up.weight"].flags.c_contiguous and state["up.weight"].flags.writeable
    again = from_torch(state, groups=groups)
    for got, want in zip(again.weights, layer.weights, strict=True):
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes()


def test_state_dict_without_bias_and_before_build():
    layer = Conv3DTranspose(6, 3, use_bias=False)
    with pytest.raises(ValueError, match="to_torch_state_dict must be used after"):
        layer.to_torch_state_dict()
    layer.build((1, 1, 1, 1, 4))
    assert list(layer.to_torch_state_dict()) == ["weight"]


def test_torch_is_never_imported():
    source = (Path(conv3dt.__file__).parent / "formats" / "torch.py").read_text()
    assert not re.search(r"^\s*(import torch|from torch)", source, re.MULTILINE)
