"""layer.save and conv3dt.load: everything comes back, damaged files are refused."""

import copy
import io
import json
import random
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

import conv3dt
from conv3dt import Conv3DTranspose, initializers

OPTIONS = [
    {},
    {"padding": "same", "output_padding": (0, 1, 0), "strides": (1, 2, 1), "name": "up"},
    {"padding": ((0, 1), (1, 1), (2, 0)), "strides": 2, "dilation_rate": 3, "output_padding": 2},
    {"groups": 3, "num_threads": 2, "algorithm": "direct", "trainable": False},
    {"data_format": "channels_first", "use_bias": False},
    {"activation": {"class_name": "LeakyReLU", "config": {"alpha": np.float32(0.25)}}},
    {"activation": "softmax", "kernel_regularizer": "l2", "bias_constraint": "nonneg"},
    {"kernel_initializer": initializers.Constant(np.ones((1, 1)))},
    *({"dtype": d} for d in ("float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16")),
]


def layer_of(channels=6, **options):
    made = {"kernel_initializer": "he_normal", "bias_initializer": "random_normal"} | options
    return Conv3DTranspose(6, (2, 3, 1), **made, input_shape=layer_shape(options, channels))


def layer_shape(options, channels):
    space = (None, None, None)
    first = options.get("data_format") == "channels_first"
    return (channels, *space) if first else (*space, channels)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.npz"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_round_trip(path, options):
    layer = layer_of(**options)
    layer.save(path)
    again = conv3dt.load(path)
    assert again.get_config() == layer.get_config()
    assert len(again.weights) == len(layer.weights)
    for got, want in zip(again.weights, layer.weights, strict=True):
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes()
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 6, 6))
    assert again(x).tobytes() == layer(x).tobytes()
    assert list(path.parent.iterdir()) == [path]


def test_weights_of_any_bits(path):
    layer = layer_of(dtype="bfloat16", use_bias=False, channels=1024)
    bits = np.arange(2**16, dtype=np.uint16)[: 6 * 6 * 1024]
    layer.kernel = bits.view(ml_dtypes.bfloat16).reshape(layer.kernel.shape)
    layer.save(path)
    np.testing.assert_array_equal(conv3dt.load(path).kernel.view(np.uint16).ravel(), bits)


def test_layer_that_is_not_built(path):
    Conv3DTranspose(2, 3, name="later").save(path)
    layer = conv3dt.load(str(path))
    assert layer.name == "later" and not layer.built


def test_numpy_can_read_it(path):
    layer = layer_of()
    layer.save(path)
    with np.load(path) as file:
        np.testing.assert_array_equal(file["kernel"], layer.kernel)
        assert json.loads(file["config"].tobytes())["config"]["filters"] == 6


def test_the_old_file_stays_until_the_new_one_is_whole(path, monkeypatch):
    layer_of(name="old").save(path)

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space"):
        layer_of(name="new").save(path)
    assert conv3dt.load(path).name == "old" and list(path.parent.iterdir()) == [path]


def clip(x):
    return np.clip(x, 0, 1)


class Up(Conv3DTranspose):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: Conv3DTranspose(2, 3, activation=clip),
        lambda: Conv3DTranspose(2, 3, activation=lambda x: x),
        lambda: Conv3DTranspose(2, 3, kernel_regularizer=np.sum),
        lambda: Up(2, 3),
    ],
)
def test_code_has_no_place_in_a_file(path, make):
    with pytest.raises(ValueError, match="must be (made of what conv3dt knows|a Conv3DT)"):
        make().save(path)
    assert not path.exists()


# ---- damaged and hostile files ----------------------------------------------------


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def written(path, contents, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_config(contents, **changes):
    head = json.loads(contents["config.npy"].partition(b"\n")[2])
    text = json.dumps(head | changes)
    return contents | {"config.npy": npy(np.frombuffer(text.encode(), np.uint8))}


def config(contents, **changes):
    head = json.loads(contents["config.npy"].partition(b"\n")[2])
    return with_config(contents, config=head["config"] | changes)


HOSTILE = {
    "no config": lambda c: {"kernel.npy": c["kernel.npy"]},
    "bias alone": lambda c: {k: v for k, v in c.items() if k != "kernel.npy"},
    "something else": lambda c: c | {"evil.npy": b""},
    "no JSON": lambda c: c | {"config.npy": npy(np.zeros(9, np.uint8))},
    "deep JSON": lambda c: c | {"config.npy": npy(np.full(10**6, ord("["), np.uint8))},
    "a list": lambda c: c | {"config.npy": npy(np.frombuffer(b"[]", np.uint8))},
    "a later version": lambda c: with_config(c, version=2),
    "another class": lambda c: with_config(c, class_name="os.system"),
    "no arguments": lambda c: with_config(c, config=None),
    "an unknown argument": lambda c: config(c, volume=3),
    "a shape": lambda c: config(c, input_shape=[1, 1, 1, 10**9]),
    "a function": lambda c: config(
        c, activation={"module": "os", "class_name": "function", "config": "system"}
    ),
    "a huge number": lambda c: config(
        c, kernel_regularizer={"class_name": "L2", "config": {"l2": 10**400}}
    ),
    "another kernel": lambda c: c | {"kernel.npy": npy(np.ones((2, 3, 1, 5, 6), "f4"))},
    "a flat kernel": lambda c: c | {"kernel.npy": npy(np.ones(6, "f4"))},
    "a scalar kernel": lambda c: c | {"kernel.npy": npy(np.float32(1))},
    "a float64 kernel": lambda c: c | {"kernel.npy": npy(np.ones((2, 3, 1, 6, 6)))},
    "pickle": lambda c: c | {"kernel.npy": npy(np.array([{}], object))},
    "an end": lambda c: c | {"kernel.npy": c["kernel.npy"][:-1]},
    "more": lambda c: c | {"kernel.npy": c["kernel.npy"] + b"\0"},
    "a bomb": lambda c: (
        c
        | {"kernel.npy": c["kernel.npy"].replace(b"(2, 3, 1, 6, 6)", b"(2, 3, 1, 6, 9" + b"9" * 16)}
    ),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_contents(path, change):
    layer_of().save(path)
    written(path, change(members(path)))
    with pytest.raises(ValueError, match="path must be a file that Conv3DTranspose.save wrote"):
        conv3dt.load(path)


def test_what_the_hostile_files_are_made_of_loads(path):
    layer_of(name="up").save(path)
    written(path, config(members(path)))
    assert conv3dt.load(path).name == "up"


def test_compressed_files(path):
    """A small file must not become a large array."""
    layer_of().save(path)
    written(path, members(path), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        conv3dt.load(path)


def test_arrays_that_declare_more_than_the_file(path):
    """To read them, all of it would be allocated."""
    layer_of().save(path)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"kernel.npy") - 46  # its record in the directory at the end
    data[at + 20 : at + 24] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"kernel.npy declares {2**31 - 1} bytes"):
            conv3dt.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_arrays_that_share_their_bytes(path):
    """A small file must not become many arrays."""
    layer_of(use_bias=False).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        twin = copy.copy(archive.getinfo("kernel.npy"))
        twin.filename = "bias.npy"
        archive.filelist.append(twin)
        archive._didModify = True
    with pytest.raises(ValueError, match="overlap"):
        conv3dt.load(path)


def test_other_files(path):
    with pytest.raises(FileNotFoundError):
        conv3dt.load(path)
    with pytest.raises(FileNotFoundError, match="the folder of .*layer.npz does not exist"):
        Conv3DTranspose(1, 1, input_shape=(1, 1, 1, 1)).save(path.parent / "no" / "layer.npz")
    for content in (b"", b"PK\x05\x06", b"not a zip"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="layer.npz"):
            conv3dt.load(path)


def test_truncated_and_flipped(path):
    """Whatever is cut or flipped: an error that says so, or the same layer."""
    layer = Conv3DTranspose(1, 1, input_shape=(1, 1, 1, 1))
    layer.save(path)
    whole = path.read_bytes()
    draw = random.Random(0)
    flipped = [bytearray(whole) for _ in range(400)]
    for data in flipped:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    for data in [whole[: draw.randrange(len(whole))] for _ in range(100)] + flipped:
        path.write_bytes(data)
        try:
            again = conv3dt.load(path)
        except ValueError:
            continue
        assert again.get_config() == layer.get_config()
        assert [w.tobytes() for w in again.weights] == [w.tobytes() for w in layer.weights]
