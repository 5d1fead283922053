"""Keras itself, where it is installed: it writes, we read; we write, it reads."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import conv3dt
from conv3dt import Conv3DTranspose

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(Path(__file__).parent / "data" / "formats"))
make_keras = importlib.import_module("make_keras")
sys.path.pop(0)

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = ("simple", "nested", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16")


def package(name):
    return pytest.importorskip(name, reason=f"needs {name} (the parity extra)")


def assert_same(ours, theirs):
    for a, b in zip(ours.weights, theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a.astype("float32"), np.asarray(b, "float32"))
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 2, ours.kernel.shape[4])).astype("float16")
    y = ours(x)
    want = np.asarray(theirs(x.astype(theirs.compute_dtype))).astype("float32")
    tolerance = {"float16": 0.02, "bfloat16": 0.1}.get(y.dtype.name, 1e-5)
    np.testing.assert_allclose(y.astype("float32"), want, tolerance, 5 * tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("module", ["keras", "tf_keras"])
def test_models(module, name, tmp_path, monkeypatch):
    keras = package(module)
    monkeypatch.chdir(tmp_path)
    model = make_keras.models(keras)[name]()
    make_keras.containers(keras, model, name)
    layers = dict(make_keras.transposed(keras, model))
    assert sorted(path.name for path in tmp_path.glob(f"{name}.*"))
    for path in (f"{name}.keras", f"{name}.h5"):
        assert [info.name for info in conv3dt.list_layers(path)] == list(layers)
        for layer, theirs in layers.items():
            assert_same(conv3dt.from_keras(path, layer), theirs)


@pytest.mark.parametrize("module", ["keras", "tf_keras"])
def test_weights_alone(module, tmp_path, monkeypatch):
    keras = package(module)
    monkeypatch.chdir(tmp_path)
    model = make_keras.models(keras)["nested"]()
    make_keras.containers(keras, model, "nested")
    files = [
        path for path in tmp_path.iterdir() if "weights" in path.name and "0000" not in path.name
    ]
    assert len(files) == 2
    for path in files:
        for name, theirs in make_keras.transposed(keras, model):
            kernel = theirs.get_weights()[0]
            ours = Conv3DTranspose(
                theirs.filters, theirs.kernel_size, theirs.strides, theirs.padding,
                activation=conv3dt.from_keras("nested.keras", name).activation,
                input_shape=(None, None, None, kernel.shape[4]),
            )  # fmt: skip
            ours.load_weights(path)
            assert_same(ours, theirs)


def test_a_layer_in_two_models(tmp_path):
    """Its weights are in the file once. Keras itself cannot load that."""
    keras = package("keras")
    shared = keras.layers.Conv3DTranspose(3, 2, name="shared")
    first, second = (
        keras.Sequential([keras.Input((2, 2, 2, 2)), shared], name=name) for name in "ab"
    )
    x = keras.Input((2, 2, 2, 2))
    keras.Model(x, keras.layers.Add()([first(x), second(x)])).save(tmp_path / "m.keras")
    assert_same(conv3dt.from_keras(tmp_path / "m.keras", "a/shared"), shared)
    with pytest.raises(ValueError, match="no weights for 'b/shared'"):
        conv3dt.from_keras(tmp_path / "m.keras", "b/shared")


def test_a_model_of_ones_own(tmp_path):
    """A subclass has no config that tells its layers: there are only weights."""
    keras = package("keras")

    class Decoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.widen = keras.layers.Conv3DTranspose(4, 2, strides=2, name="up1")
            self.more = [keras.layers.Conv3DTranspose(2, 3, name="up2")]

        def call(self, x):
            return self.more[0](self.widen(x))

    model = Decoder()
    model(np.zeros((1, 2, 2, 2, 3), "float32"))
    model.save(tmp_path / "m.keras")
    assert [info.name for info in conv3dt.list_layers(tmp_path / "m.keras")] == ["up1", "up2"]
    layer = conv3dt.from_keras(tmp_path / "m.keras", "up1", filters=4, kernel_size=2, strides=2)
    assert_same(layer, model.widen)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_keras_loads_what_we_write(tmp_path, dtype, use_bias):
    keras = package("keras")
    ours = Conv3DTranspose(
        4, (1, 2, 3), 2, dtype=dtype, use_bias=use_bias, input_shape=(2, 2, 2, 3), name="up"
    )
    ours.save_weights(tmp_path / "up.weights.h5")
    theirs = keras.layers.Conv3DTranspose.from_config(ours.get_config())
    keras.Sequential([keras.Input((2, 2, 2, 3)), theirs]).load_weights(tmp_path / "up.weights.h5")
    assert_same(ours, theirs)
    x = keras.Input((2, 2, 2, 3))
    theirs = keras.layers.Conv3DTranspose.from_config(ours.get_config())
    keras.Model(x, theirs(x)).load_weights(tmp_path / "up.weights.h5")
    assert_same(ours, theirs)
