"""What all kinds of files have in common: dispatch by name, choice of a layer, safe writing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import conv3dt
from conv3dt import formats
from conv3dt.formats.files import replacing
from conv3dt.formats.layer_info import LayerInfo, choose, fitting
from conv3dt.optional import require

KERNEL = np.random.default_rng(0).normal(size=(2, 3, 1, 4, 6)).astype("float32")
BIAS = np.arange(4, dtype="float32")


class Fake:
    """A kind of file with one layer."""

    def list_layers(self, path):
        return [LayerInfo.of(conv3dt.Conv3DTranspose(4, (2, 3, 1)), "up", "Up", 6)]

    def read_weights(self, path, name, like):
        return [KERNEL, BIAS]


@pytest.fixture(autouse=True)
def _kinds(monkeypatch):
    monkeypatch.setitem(sys.modules, "conv3dt.formats.fake", Fake())
    monkeypatch.setitem(formats.READERS, ".fake", "fake")


def test_the_end_of_the_name_says_the_kind():
    (info,) = conv3dt.list_layers("Model.FAKE")
    assert (info.name, info.filters, info.in_channels, info.strides) == ("up", 4, 6, (1, 1, 1))
    assert str(info) == "'up' (Up 6 to 4, 2x3x1)"
    with pytest.raises(ValueError, match=r"path must end in one of .*\.fake, got 'model.txt'"):
        conv3dt.list_layers("model.txt")


def test_load_weights_builds():
    layer = conv3dt.Conv3DTranspose(4, (2, 3, 1))
    layer.load_weights("model.fake")
    assert layer.built
    np.testing.assert_array_equal(layer.kernel, KERNEL)
    np.testing.assert_array_equal(layer.bias, BIAS)
    built = conv3dt.Conv3DTranspose(4, (2, 3, 1), input_shape=(2, 2, 2, 6))
    built.load_weights(Path("model.fake"))
    np.testing.assert_array_equal(built.kernel, KERNEL)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"filters": 5}, "kernel must have shape"),
        ({"use_bias": False}, "bias must agree"),
        ({"input_shape": (2, 2, 2, 3)}, "kernel must have shape"),
        ({"filters": 16, "groups": 4}, "groups must divide in_channels"),
    ],
)
def test_load_weights_of_another_layer(options, match):
    layer = conv3dt.Conv3DTranspose(**{"filters": 4, "kernel_size": (2, 3, 1)} | options)
    before = layer.get_weights()
    with pytest.raises(ValueError, match=match):
        layer.load_weights("model.fake")
    assert all(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["up"], None, "up"),
        (["a/up", "b/up", "up"], "up", "up"),
        (["a/up", "b/up"], "b/up", "b/up"),
        (["a/up", "b/down"], "down", "b/down"),
        (["c/b/down"], "b/down", "c/b/down"),
    ],
)
def test_choose(names, wanted, found):
    assert choose(Path("m"), names, wanted) == found


@pytest.mark.parametrize(
    ("names", "wanted", "match"),
    [
        ([], None, "m has no Conv3DTranspose layer"),
        (["a", "b"], None, "'a', 'b'; got None"),
        (["a/up", "b/up"], "up", "'a/up', 'b/up'; got 'up'"),
        (["a", "a"], "a", "'a', 'a'; got 'a'"),
        (["catch"], "ch", "'catch'; got 'ch'"),
    ],
)
def test_choose_refuses(names, wanted, match):
    with pytest.raises(ValueError, match=match):
        choose(Path("m"), names, wanted)


def test_replacing(tmp_path):
    path = tmp_path / "weights"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.npz", "m.onnx", "m.safetensors"])
def test_only_regular_files_are_opened(tmp_path, name):
    """A pipe would keep whoever opens it waiting."""
    os.mkfifo(tmp_path / name)
    (tmp_path / "folder" / name).mkdir(parents=True)
    for path in (tmp_path / name, tmp_path / "folder" / name):
        with pytest.raises(ValueError, match=f"path must be a regular file, got .*{name}"):
            conv3dt.list_layers(path)


def test_what_is_no_path():
    for value in (None, 3, b"m.keras", [""]):
        with pytest.raises(TypeError, match="path must be a str or an os.PathLike"):
            conv3dt.list_layers(value)
    with pytest.raises(ValueError, match="path must name a file, got .*x00"):
        conv3dt.list_layers("m\0.h5")


def test_a_missing_package_says_which_extra():
    assert require("json", "keras").loads("1") == 1
    with pytest.raises(ImportError, match=r"pip install 'conv3dt\[keras\]'"):
        require("conv3dt_no_such_package", "keras")


def test_the_kernels_that_fit():
    kernels = {"a": (2, 3, 1, 4, 6), "b": (2, 3, 1, 4, 8), "c": (2, 3, 1, 2, 6)}
    layer = conv3dt.Conv3DTranspose(4, (2, 3, 1))
    assert fitting(kernels, layer) == ["a", "b"]
    layer.build((1, 1, 1, 1, 8))
    assert fitting(kernels, layer) == ["b"]
    assert fitting(kernels, conv3dt.Conv3DTranspose(4, (2, 3, 1), groups=2)) == ["c"]
    assert fitting(kernels, conv3dt.Conv3DTranspose(5, (2, 3, 1))) == ["a", "b", "c"]
