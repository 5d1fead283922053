"""Files of Keras 2 and Keras 3: the layers in them, and what those layers compute.

The files in data/formats/keras were written by Keras itself, with its results beside them
(data/formats/make_keras.py): 2.13 and 2.21 of Keras 2, 3.15 of Keras 3.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import conv3dt
from conv3dt import Conv3DTranspose
from conv3dt.formats import keras_model

FILES = Path(__file__).parent / "data" / "formats" / "keras"
VERSIONS = ("2.13", "2.21", "3.15")
CONTENTS = {version: zipfile.ZipFile(FILES / f"{version}.zip").namelist() for version in VERSIONS}
TOLERANCES = {"float16": 0.02, "bfloat16": 0.1}

# What the layers were made with, which a file of weights alone does not tell.
SINGLE = {"filters": 3, "kernel_size": 2, "strides": 2}
LEAKY = {"class_name": "LeakyReLU", "config": {"negative_slope": 0.1}}
MADE_WITH = {
    "simple": {
        "up1": SINGLE | {"kernel_size": 3, "padding": "same", "activation": "hard_sigmoid"},
        "up2": {"filters": 2, "kernel_size": (1, 2, 3), "strides": (2, 1, 2), "use_bias": False},
    },
    "nested": {
        "up1": {"filters": 3, "kernel_size": 1},
        "inner/up1": {"filters": 3, "kernel_size": 1, "activation": LEAKY},
        "inner/up3": {"filters": 3, "kernel_size": 1, "activation": LEAKY},
        "inner/decoder/up1": {"filters": 4, "kernel_size": 2, "strides": 2},
        "inner/decoder/up2": {"filters": 2, "kernel_size": 2, "activation": "relu"},
    },
    "mixed_float16": {
        "up": SINGLE | {"output_padding": 1, "padding": "same", "dtype": "mixed_float16"}
    },
    "mixed_bfloat16": {"up": SINGLE | {"dtype": "mixed_bfloat16"}},
    "float16": {"up": SINGLE | {"dtype": "float16"}},
    "bfloat16": {"up": SINGLE | {"activation": "relu", "dtype": "bfloat16"}},
    "dilated": {"up": SINGLE | {"strides": 1, "activation": "gelu"}},
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A folder for each version."""
    folder = tmp_path_factory.mktemp("keras")
    for version in VERSIONS:
        with zipfile.ZipFile(FILES / f"{version}.zip") as archive:
            archive.extractall(folder / version)
    return folder


def expectations(folder: Path, model: str) -> dict[str, dict[str, np.ndarray]]:
    """What Keras has and computes, by path of the layer."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(folder / "expected.npz") as arrays:
        for key in arrays:
            name, path, what = key.split(":")
            if name == model:
                found.setdefault(path, {})[what] = arrays[key]
    return found


def of_a_model(name: str) -> bool:
    return name.endswith((".keras", ".h5")) and "weights" not in name


def of_weights(name: str) -> bool:
    return name.endswith((".weights.h5", ".weights.json", "_weights.h5")) and "_0000" not in name


def model_of(name: str) -> str:
    return name.partition(".")[0].removesuffix("_weights")


def assert_equal(layer: Conv3DTranspose, want: dict[str, np.ndarray]) -> None:
    """The same weights bit for bit, and the same result."""
    np.testing.assert_array_equal(layer.kernel.astype("float32"), want["kernel"])
    assert layer.use_bias == ("bias" in want)
    if layer.use_bias:
        np.testing.assert_array_equal(layer.bias.astype("float32"), want["bias"])
    y = layer(want["x"])
    tolerance = TOLERANCES.get(y.dtype.name, 1e-5)
    np.testing.assert_allclose(y.astype("float32"), want["y"], tolerance, tolerance * 5)


CASES = [(version, name) for version in VERSIONS for name in CONTENTS[version]]


@pytest.mark.parametrize(("version", "name"), [case for case in CASES if of_a_model(case[1])])
def test_models(unpacked, version, name):
    wanted = expectations(unpacked / version, model_of(name))
    assert [info.name for info in conv3dt.list_layers(unpacked / version / name)] == list(wanted)
    for path, want in wanted.items():
        layer = conv3dt.from_keras(unpacked / version / name, path)
        assert layer.name == path.rpartition("/")[2]
        assert_equal(layer, want)


@pytest.mark.parametrize(("version", "name"), [case for case in CASES if of_weights(case[1])])
def test_weights_alone(unpacked, version, name):
    """They go into the layers they fit, whatever these are called."""
    model = model_of(name)
    for path, want in expectations(unpacked / version, model).items():
        layer = Conv3DTranspose(
            **MADE_WITH[model][path], input_shape=(2, 2, 3, want["kernel"].shape[4])
        )
        if layer.activation.name == "hard_sigmoid" and version != "3.15":
            layer.activation = {"class_name": "hard_sigmoid", "config": {"slope": 0.2}}
        layer.load_weights(unpacked / version / name)
        assert_equal(layer, want)


@pytest.mark.parametrize("name", ["nested.weights.h5", "nested.weights.json"])
def test_names_in_weights_alone(unpacked, name):
    """Keras 3 stores them. A layer that is not built has its input channels from the file."""
    for path, want in expectations(unpacked / "3.15", "nested").items():
        layer = Conv3DTranspose(**MADE_WITH["nested"][path])
        layer.load_weights(unpacked / "3.15" / name, path)
        assert_equal(layer, want)


@pytest.mark.parametrize("version", ["2.13", "2.21"])
def test_names_in_weights_by_name(unpacked, version):
    """So did the older format of Keras 2."""
    infos = conv3dt.list_layers(unpacked / version / "nested_weights.h5")
    wanted = expectations(unpacked / version, "nested")
    # One level only: what is in a model within the model is not told apart by depth.
    assert [info.name for info in infos][0] == "up1"
    assert len(infos) == len(wanted)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_layer_from_weights_alone(unpacked, version):
    """Two ways to say what they do not: all, or all but what the kernel tells."""
    path = unpacked / version / "mixed_bfloat16.weights.h5"
    want = expectations(unpacked / version, "mixed_bfloat16")["up"]
    told = {"strides": 2, "padding": "valid", "activation": None, "dtype": "mixed_bfloat16"}
    for arguments in (MADE_WITH["mixed_bfloat16"]["up"], told):
        layer = conv3dt.from_keras(path, **arguments)
        assert (layer.filters, layer.kernel_size) == (3, (2, 2, 2))
        assert_equal(layer, want)


def test_what_weights_alone_do_not_tell(unpacked):
    path = unpacked / "3.15" / "float16.weights.h5"
    with pytest.raises(ValueError, match="holds weights alone.*strides, padding, activation"):
        conv3dt.from_keras(path)
    with pytest.raises(ValueError, match="padding, activation must be given"):
        conv3dt.from_keras(path, strides=2, filters=3)
    with pytest.raises(ValueError, match="unexpected keyword argument 'stride'"):
        conv3dt.from_keras(path, stride=2, filters=3, kernel_size=2)
    with pytest.raises(ValueError, match="kernel must have shape"):
        conv3dt.from_keras(path, filters=4, kernel_size=2)


# --- one of several ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nested.keras", "nested.h5"])
def test_the_layer_must_be_told(unpacked, name):
    path = unpacked / "3.15" / name
    listed = "'up1', 'inner/up1', 'inner/decoder/up1', 'inner/decoder/up2'"
    for layer, got in ((None, "None"), ("up", "'up'"), ("decoder", "'decoder'")):
        with pytest.raises(ValueError, match=f"{listed}; got {got}"):
            conv3dt.from_keras(path, layer)
    assert conv3dt.from_keras(path, "up2").filters == 2  # the end of the path is enough
    assert conv3dt.from_keras(path, "decoder/up1").filters == 4
    assert conv3dt.from_keras(path, "up1").kernel.shape[-1] == 2  # that of the model itself


def test_the_only_layer_need_not(unpacked):
    assert conv3dt.from_keras(str(unpacked / "3.15" / "float16.keras")).name == "up"
    with pytest.raises(ValueError, match="must name one.*'up'; got 'down'"):
        conv3dt.from_keras(unpacked / "3.15" / "float16.keras", "down")


def test_a_layer_that_does_not_fit(unpacked):
    layer = Conv3DTranspose(5, 2)
    with pytest.raises(ValueError, match="kernel must have shape"):
        layer.load_weights(unpacked / "3.15" / "float16.keras")
    with pytest.raises(ValueError, match="'up1', 'up2'; got None"):
        layer.load_weights(unpacked / "3.15" / "simple.weights.h5")
    assert not layer.built


# --- meaning -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["simple.keras", "simple.h5"])
def test_hard_sigmoid_is_that_of_the_version(unpacked, name):
    points = np.array([-2.75, -1.0, 0.0, 1.0, 2.75], "float32")
    for version, slope in (("2.13", 0.2), ("2.21", 0.2), ("3.15", 1 / 6)):
        layer = conv3dt.from_keras(unpacked / version / name, "up1")
        want = np.clip(points * slope + 0.5, 0, 1)
        np.testing.assert_allclose(layer.activation(points), want, rtol=1e-6)


@pytest.mark.parametrize("version", ["2.13", "2.21"])
def test_keras_2_ignored_dilation(unpacked, version):
    assert conv3dt.from_keras(unpacked / version / "dilated.keras").dilation_rate == (1, 1, 1)


def test_arguments_go_before_the_file(unpacked):
    path = unpacked / "2.21" / "simple.h5"
    layer = conv3dt.from_keras(
        path, "up1", activation=None, num_threads=1, name="head", input_shape=(4, 4, 4, 4)
    )
    assert (layer.activation.name, layer.num_threads, layer.name) == ("linear", 1, "head")
    assert (layer.strides, layer.padding, layer.built) == ((2, 2, 2), "same", True)
    today = conv3dt.from_keras(path, "up1", activation="hard_sigmoid")
    assert today.activation == Conv3DTranspose(1, 1, activation="hard_sigmoid").activation
    with pytest.raises(ValueError, match="layer 'up1' of .*simple.h5: strides must be"):
        conv3dt.from_keras(path, "up1", strides=0)


@pytest.mark.parametrize("name", ["simple.keras", "simple.h5"])
@pytest.mark.parametrize("version", VERSIONS)
def test_list_layers(unpacked, version, name):
    up1, up2 = conv3dt.list_layers(unpacked / version / name)
    assert up1 == conv3dt.formats.LayerInfo(
        "up1", "Conv3DTranspose", 3, (3, 3, 3), 4, (2, 2, 2), "same", None, "channels_last",
        (1, 1, 1), 1, "hard_sigmoid", True, "float32",
    )  # fmt: skip
    assert (up2.name, up2.kernel_size, up2.use_bias) == ("up2", (1, 2, 3), False)


def test_list_weights(unpacked):
    up1, up2 = conv3dt.list_layers(unpacked / "3.15" / "simple.weights.h5")
    assert up1 == conv3dt.formats.LayerInfo(
        "up1", "conv3d_transpose", 3, (3, 3, 3), 4, use_bias=True
    )
    assert (up2.name, up2.strides, up2.padding) == ("up2", None, None)


def test_reading_needs_no_other_package(unpacked, monkeypatch):
    for package in ("h5py", "keras", "tensorflow"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("simple.keras", "simple.h5", "simple.weights.json"):
        assert len(conv3dt.list_layers(unpacked / "3.15" / name)) == 2


# --- the whole model -----------------------------------------------------------------------


def tree(layer):
    """Names, classes and inputs, and those of the layers within."""
    own = (layer.path, layer.class_name, layer.inputs)
    return own if layer.layers is None else (*own, *map(tree, layer.layers))


def test_models_are_told_whole(unpacked):
    """What a chain of layers is made from: the same records for every version and container."""
    norm = "inner/decoder/norm"
    up = "Conv3DTranspose"
    for version, name in (("3.15", "up1"), ("2.21", "up3"), ("2.13", "up3")):
        for file in ("nested.keras", "nested.h5"):
            with keras_model.opened(unpacked / version / file) as model:
                decoder_input = model.root.layers[2].layers[2].layers[0].name
                assert tree(model.root) == (
                    "", "Functional", (),
                    ("outer_input", "InputLayer", ()),
                    ("up1", up, (("outer_input",),)),
                    ("inner", "Functional", (("up1",),),
                        ("inner/inner_input", "InputLayer", ()),
                        (f"inner/{name}", up, (("inner_input",),)),
                        ("inner/decoder", "Sequential", ((name,),),
                            (f"inner/decoder/{decoder_input}", "InputLayer", ()),
                            ("inner/decoder/up1", up, ((decoder_input,),)),
                            (norm, "BatchNormalization", (("up1",),)),
                            ("inner/decoder/up2", up, (("norm",),)),
                        ),
                    ),
                )  # fmt: skip
                assert model.version == int(version[0])
                assert model.root.outputs == ("inner",)
                found = {layer.path: layer for layer in model.root.flat()}
                assert found[norm].config["epsilon"] == 0.001
                assert [v.shape for v in found[norm].variables()] == [(4,)] * 4
                assert found["inner/decoder/" + decoder_input].variables() == []


@pytest.mark.parametrize("version", VERSIONS)
def test_variables_in_the_order_of_keras(unpacked, version):
    """gamma, beta, mean and variance, in both layouts."""
    read = []
    for name in ("simple.keras", "simple.h5"):
        with keras_model.opened(unpacked / version / name) as model:
            read.append([[v.read() for v in layer.variables()] for layer in model.root.flat()])
    numbered, named = read
    assert [len(variables) for variables in numbered] == [0, 2, 2, 4, 1]
    for a, b in zip(numbered, named, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# --- writing -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_weights_come_back(tmp_path, dtype, use_bias):
    pytest.importorskip("h5py", reason="needs h5py (the keras extra)")
    options = {"filters": 4, "kernel_size": (1, 2, 3), "dtype": dtype, "use_bias": use_bias}
    layer = Conv3DTranspose(**options, input_shape=(2, 2, 2, 3), name="up", groups=1)
    layer.save_weights(tmp_path / "up.weights.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["up.weights.h5"]
    again = Conv3DTranspose(**options)
    again.load_weights(tmp_path / "up.weights.h5", "up")
    for a, b in zip(layer.weights, again.weights, strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_groups_come_back(tmp_path):
    pytest.importorskip("h5py", reason="needs h5py (the keras extra)")
    layer = Conv3DTranspose(6, 2, groups=3, input_shape=(2, 2, 2, 9))
    layer.save_weights(tmp_path / "up.weights.h5")
    again = Conv3DTranspose(6, 2, groups=3)
    again.load_weights(tmp_path / "up.weights.h5")
    np.testing.assert_array_equal(again.kernel, layer.kernel)


def test_what_cannot_be_written(tmp_path, monkeypatch):
    layer = Conv3DTranspose(4, 2, name="up")
    with pytest.raises(ValueError, match="up must be built"):
        layer.save_weights(tmp_path / "up.weights.h5")
    layer.build((None, 1, 1, 1, 2))
    with pytest.raises(ValueError, match=r"path must end in .weights.h5"):
        layer.save_weights(tmp_path / "up.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'conv3dt\[keras\]'"):
        layer.save_weights(tmp_path / "up.weights.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py", reason="needs h5py (the keras extra)")
    path = tmp_path / "up.weights.h5"
    path.write_text("old")
    layer = Conv3DTranspose(4, 2, input_shape=(1, 1, 1, 2))

    def full(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(OSError, match="no space"):
        layer.save_weights(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
