"""Files that are damaged, or made to harm: a ValueError that tells the file, and nothing else."""

from __future__ import annotations

import itertools
import json
import os
import random
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import conv3dt
from conv3dt import Conv3DTranspose
from conv3dt.formats import hdf5

FILES = Path(__file__).parent / "data" / "formats" / "keras"
NAMES = [
    ("3.15", "simple.keras"),
    ("3.15", "nested.h5"),
    ("3.15", "simple.weights.h5"),
    ("3.15", "simple.weights.json"),
    ("2.21", "nested_weights.h5"),
    ("2.21", "bfloat16.h5"),
    ("2.13", "nested.keras"),
]


@pytest.fixture
def files(tmp_path):
    """Unpacks a version and gives the path of one of its files."""

    def unpack(version: str, name: str) -> Path:
        with zipfile.ZipFile(FILES / f"{version}.zip") as archive:
            archive.extractall(tmp_path)
        return tmp_path / name

    return unpack


def load_everything(path: Path) -> None:
    for info in conv3dt.list_layers(path):
        like = Conv3DTranspose(info.filters, info.kernel_size, use_bias=info.use_bias)
        like.load_weights(path, info.name)
        if info.strides is not None:
            conv3dt.from_keras(path, info.name)


def harmless(path: Path) -> bool:
    """Whether a file loads. If not, the error must be a ValueError that tells the file."""
    try:
        load_everything(path)
    except ValueError as error:
        assert str(path.parent / path.name.partition(".")[0]) in str(error)
        return False
    return True


def refused(path: Path, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load_everything(path)


# --- damage --------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "name"), NAMES)
def test_cut_short(files, version, name):
    path = files(version, name)
    data = path.read_bytes()
    load_everything(path)
    for size in sorted({*range(0, 100, 7), *range(0, len(data), len(data) // 40 + 1)}):
        path.write_bytes(data[:size])
        loads = harmless(path)
        assert not loads or size > len(data) // 2  # the last arrays may be those of other layers


def damaged(data: bytes, seed: int) -> bytes:
    """A few bytes set, flipped, filled or copied from elsewhere."""
    draw, changed = random.Random(seed), bytearray(data)
    kind = draw.choice(("set", "flip", "fill", "copy"))
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(changed))
        if kind == "set":
            changed[at] = draw.randrange(256)
        elif kind == "flip":
            changed[at] ^= 1 << draw.randrange(8)
        else:
            length = min(draw.choice((2, 4, 8)), len(changed) - at)
            source = draw.randrange(len(changed) - length)
            filled = bytes([draw.choice((0, 127, 255))]) * length
            part = filled if kind == "fill" else changed[source : source + length]
            changed[at : at + length] = part
    return bytes(changed)


def fuzz(path: Path, seeds: range) -> None:
    data = path.read_bytes()
    load_everything(path)  # whatever is imported on use
    loaded = 0
    for seed in seeds:
        path.write_bytes(damaged(data, seed))
        loaded += harmless(path)
    assert 0 < loaded < len(seeds)


@pytest.mark.parametrize(("version", "name"), NAMES)
def test_wrong_bytes(files, version, name):
    fuzz(files(version, name), range(40))


@pytest.mark.heavy
@pytest.mark.parametrize(("version", "name"), NAMES)
def test_many_wrong_bytes(files, version, name):
    """In bounded memory, too; to measure it takes time."""
    path = files(version, name)
    size = path.stat().st_size
    tracemalloc.start()
    try:
        fuzz(path, range(1000, 2000))
        most = 1000 if path.suffix == ".keras" else 20  # a zip may hold that much more
        assert tracemalloc.get_traced_memory()[1] < most * size + 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x89HDF\r\n\x1a\n", b"{}", b"[" * 9999, b"\x00" * 999]
)
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5", "m.weights.json"])
def test_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="m[.].* cannot be read as a file of Keras"):
        conv3dt.list_layers(tmp_path / name)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        conv3dt.from_keras(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="must be a regular file"):
        conv3dt.from_keras(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.h5")
        with pytest.raises(ValueError, match="must be a regular file"):
            conv3dt.from_keras(tmp_path / "pipe.h5")


# --- HDF5 that can do too much -------------------------------------------------------------

KERNEL = np.arange(48, dtype="float32").reshape(2, 2, 2, 3, 2)


def weights_file(path: Path, fill) -> Path:
    """A file of weights whose layer is made by `fill`, from its group."""
    h5py = pytest.importorskip("h5py", reason="makes the files with h5py (the keras extra)")
    with h5py.File(path, "w") as file:
        fill(h5py, file.create_group("layers/conv3d_transpose/vars"))
    return path


def plain(h5py, group):
    group["0"] = KERNEL
    group["1"] = KERNEL[0, 0, 0, :, 0]


def soft_link(h5py, group):
    group.file["kernel"] = KERNEL
    group["0"] = h5py.SoftLink("/kernel")


def external_link(h5py, group):
    group["0"] = h5py.ExternalLink("other.h5", "/secret")


def external_array(h5py, group):
    group.create_dataset("0", KERNEL.shape, "f4", external=[("secret.bin", 0, h5py.h5f.UNLIMITED)])


def virtual_array(h5py, group):
    layout = h5py.VirtualLayout(KERNEL.shape, "f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", KERNEL.shape)
    group.create_virtual_dataset("0", layout)


def never_written(h5py, group):
    group.create_dataset("0", (1 << 10, 1 << 10, 1 << 10, 1 << 9, 1), "f4")


def compressed_bomb(h5py, group):
    group.create_dataset("0", (1 << 6, 1 << 6, 1 << 6, 1 << 5, 1), "f4", compression="gzip")


def plug_in(h5py, group):
    filters = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    filters.set_chunk(KERNEL.shape)
    filters.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    space = h5py.h5s.create_simple(KERNEL.shape)
    h5py.h5d.create(group.id, b"0", h5py.h5t.IEEE_F32LE, space, filters)


def integers(h5py, group):
    group["0"] = KERNEL.astype("int32")


def strings(h5py, group):
    group.create_dataset("0", KERNEL.shape, h5py.string_dtype())


def a_group(h5py, group):
    group.create_group("0")


def gap_in_numbers(h5py, group):
    group["1"] = KERNEL


@pytest.mark.parametrize(
    ("fill", "why"),
    [
        (soft_link, "vars/0 is a link"),
        (external_link, "is neither a group nor an array as Keras writes them"),
        (external_array, "must be stored in one piece, .* in this file"),
        (virtual_array, "must be stored in one piece"),
        (never_written, "ends before|which are not"),
        (compressed_bomb, "must be stored in one piece, without compression"),
        (plug_in, "must be stored in one piece, without compression"),
        (integers, "is no array of floats"),
        (strings, "is no array of floats"),
        (a_group, "should be a numbered array"),
        (gap_in_numbers, "should be numbered in a row"),
    ],
)
def test_only_plain_arrays(tmp_path, fill, why):
    """With what a reader might follow beside the file."""
    weights_file(tmp_path / "other.h5", lambda h5py, group: plain(h5py, group))
    (tmp_path / "secret.bin").write_bytes(KERNEL.tobytes())
    path = weights_file(tmp_path / "m.weights.h5", fill)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=why):
            Conv3DTranspose(3, 2).load_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_plain_arrays(tmp_path):
    layer = Conv3DTranspose(3, 2)
    layer.load_weights(weights_file(tmp_path / "m.weights.h5", plain))
    np.testing.assert_array_equal(layer.kernel, KERNEL)


@pytest.mark.parametrize("bias", [np.float32(1), KERNEL, KERNEL[0, 0]])
def test_a_bias_of_another_rank(tmp_path, bias):
    def fill(h5py, group):
        group["0"], group["1"] = KERNEL, bias

    path = weights_file(tmp_path / "m.weights.h5", fill)
    assert conv3dt.list_layers(path) == []
    with pytest.raises(ValueError, match="m.weights.h5 has no Conv3DTranspose layer"):
        Conv3DTranspose(3, 2).load_weights(path)


@pytest.mark.parametrize("axis", range(4))
def test_a_kernel_without_taps_or_filters(tmp_path, axis):
    def fill(h5py, group):
        group["0"] = np.delete(KERNEL, slice(None), axis)

    path = weights_file(tmp_path / "m.weights.h5", fill)
    assert conv3dt.list_layers(path) == []
    with pytest.raises(ValueError, match="m.weights.h5 has no Conv3DTranspose layer"):
        Conv3DTranspose(3, 2).load_weights(path)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
def test_floats_of_either_byte_order(tmp_path, dtype):
    layer = Conv3DTranspose(3, 2, dtype="float64", use_bias=False)

    def fill(h5py, group):
        group["0"] = KERNEL.astype(dtype)

    layer.load_weights(weights_file(tmp_path / "m.weights.h5", fill))
    np.testing.assert_array_equal(layer.kernel, KERNEL)


def test_groups_in_a_circle(tmp_path):
    def fill(h5py, group):
        group["0"] = KERNEL
        group.parent["layers"] = group.file["layers"]  # one more name for an outer group
        group.parent["again"] = group.parent

    refused(weights_file(tmp_path / "m.weights.h5", fill), "nested in a circle")


def test_groups_without_end(tmp_path):
    """Few groups, and 2**40 paths through them."""

    def fill(h5py, group):
        group["0"] = KERNEL
        place = group.parent
        for _ in range(20):
            inner = place.create_group("a")
            place["b"] = inner
            place = inner

    refused(weights_file(tmp_path / "m.weights.h5", fill), "nested in a circle, or too deep")


def test_the_newest_layout_is_named(tmp_path):
    h5py = pytest.importorskip("h5py", reason="makes the file with h5py (the keras extra)")
    with h5py.File(tmp_path / "m.weights.h5", "w", libver="latest") as file:
        file["layers/conv3d_transpose/vars/0"] = KERNEL
    refused(tmp_path / "m.weights.h5", "format is not the one that h5py, and so Keras, writes")


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_library(tmp_path, seed):
    """Groups of all sizes, so trees of several levels; strings of all kinds; many attributes."""
    h5py = pytest.importorskip("h5py", reason="compares with h5py (the keras extra)")
    draw = np.random.default_rng(seed)
    texts = ["", "x", "naïve", "y" * 5000]
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for number in range(int(draw.integers(1, 300))):
            file[f"group {number}/{'n' * int(draw.integers(1, 99))}"] = draw.normal(
                size=(number % 5)
            )
        file.attrs["text"], file.attrs["bytes"] = texts[seed % 4] + "!", b"bytes"
        file.attrs["texts"], file.attrs["none"] = texts[1:], []
        file.attrs["fixed"] = np.array([b"ab", b"c"])
        for number in range(seed * 3):
            file.attrs[f"more{number}"] = "z" * number * 100 + "!"
    with h5py.File(tmp_path / "m.h5") as file, open(tmp_path / "m.h5", "rb") as own:
        root = hdf5.root(own, tmp_path / "m.h5")
        assert root.names() == list(file)
        for name, group in file.items():
            (inner,) = group
            array = root.get(name).get(inner)
            assert array.shape == group[inner].shape
            if group[inner].size:
                np.testing.assert_array_equal(array.read(), group[inner][()])
        for name, value in file.attrs.items():
            if name == "bytes":
                value = "bytes"
            elif not isinstance(value, str):
                value = [v.decode() if isinstance(v, bytes) else v for v in value]
            assert root.attribute(name) == value


# --- zip, JSON and configs -----------------------------------------------------------------


def rezipped(path: Path, change=None, **options) -> Path:
    """The .keras file with some members changed, compressed or left out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members.update(change or {})
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def test_compressed_by_the_user(files):
    load_everything(rezipped(files("3.15", "simple.keras"), compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("name", ["metadata.json", "config.json", "model.weights.h5"])
def test_missing_members(files, name):
    refused(rezipped(files("3.15", "simple.keras"), {name: None}), f"it has no {name}")


@pytest.mark.parametrize("name", ["metadata.json", "config.json", "model.weights.h5"])
def test_zip_bombs(files, name):
    path = files("3.15", "simple.keras")
    bomb = rezipped(path, {name: bytes(1 << 25)}, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    refused(bomb, f"{name} declares {1 << 25} bytes")


@pytest.mark.parametrize("name", ["metadata.json", "config.json", "model.weights.h5"])
def test_members_that_declare_more_than_the_file(files, name):
    """To read them, all of it would be allocated."""
    path = files("3.15", "simple.keras")
    data = bytearray(path.read_bytes())
    at = data.rindex(name.encode()) - 46  # its record in the directory at the end
    data[at + 20 : at + 24] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(data)
    tracemalloc.start()
    try:
        refused(path, f"{name} declares {2**31 - 1} bytes, which are not in the file")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression(files, compression):
    refused(rezipped(files("3.15", "simple.keras"), compression=compression), "unusual method")


def test_members_that_would_be_written_elsewhere(files, tmp_path):
    """They are not looked at: nothing is unpacked by name."""
    change = {"../escaped": b"x", "/tmp/escaped": b"x", "assets/../../escaped": b"x"}
    before = {path.name for path in tmp_path.parent.iterdir()}
    load_everything(rezipped(files("3.15", "simple.keras"), change))
    assert {path.name for path in tmp_path.parent.iterdir()} == before
    assert not (tmp_path / "escaped").exists()


def with_config(path: Path, change) -> Path:
    """The .keras file with its config changed; `change` gets that of the first up layer, too."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    layers = config["config"]["layers"]
    up = next(entry for entry in layers if entry["class_name"] == "Conv3DTranspose")
    changed = change(config, up)
    return rezipped(path, {"config.json": json.dumps(config if changed is None else changed)})


def evil(name="run"):
    return {"module": "evil", "class_name": "function", "config": name, "registered_name": name}


@pytest.mark.parametrize("key", ["activation", "kernel_initializer", "kernel_constraint"])
def test_nothing_is_imported(files, tmp_path, monkeypatch, key):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = with_config(
        files("3.15", "simple.keras"), lambda config, up: up["config"].update({key: evil()})
    )
    with pytest.raises(ValueError, match=f"layer 'up1' of .*{key.rpartition('_')[2]} must be"):
        conv3dt.from_keras(path, "up1")
    assert [info.name for info in conv3dt.list_layers(path)] == ["up1", "up2"]
    assert conv3dt.from_keras(path, "up1", **{key: None}).built  # what the user says goes first


def test_a_lambda_is_not_run(files):
    """Keras stores a lambda as marshalled code."""
    code = {"class_name": "__lambda__", "config": {"value": "4wEAAAAA"}}
    path = with_config(
        files("3.15", "simple.keras"), lambda config, up: up["config"].update(activation=code)
    )
    with pytest.raises(ValueError, match="activation must be"):
        conv3dt.from_keras(path, "up1")


def test_classes_of_the_users_are_not_keras(files):
    """A class of that name from elsewhere may mean anything."""

    def change(config, up):
        up.update(module="evil", registered_name="evil>Conv3DTranspose")

    infos = conv3dt.list_layers(with_config(files("3.15", "simple.keras"), change))
    assert [info.name for info in infos] == ["up2"]


VALUES = [None, -1, 0, 1 << 70, 0.5, "x", [], [1, 2], {}, {"a": 1}, [[]], True, "9" * 5000]


KEYS = (
    "filters kernel_size strides padding activation dtype name kernel_initializer "
    "bias_regularizer output_padding data_format groups unheard_of"
)


@pytest.mark.parametrize("key", KEYS.split())
@pytest.mark.parametrize("container", ["config", "entry"])
def test_any_value_in_a_config(files, key, container):
    path = files("3.15", "simple.keras")
    for value in VALUES:

        def change(config, up, value=value):
            (up["config"] if container == "config" else up)[key] = value

        harmless(with_config(path, change))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ["config", "class_name", "module", "registered_name", "layers"])
def test_any_value_in_a_model(files, key, value):
    def change(config, up):
        (config["config"] if key == "layers" else config)[key] = value

    harmless(with_config(files("3.15", "simple.keras"), change))
    harmless(with_config(files("3.15", "nested.keras"), lambda config, up: up.update({key: value})))


def test_a_config_without_end(files):
    path = files("3.15", "simple.keras")
    deep = '{"class_name": "Sequential", "config": {"name": "m", "layers": [' * 400 + "]}}" * 400
    refused(rezipped(path, {"config.json": deep}), "nested too deep|recursion")
    refused(rezipped(path, {"config.json": "[" * 10**6}), "cannot be read")


def test_shapes_in_a_config_make_no_weights(files):
    """Keras 2 has them; the weights come from the file, and nowhere else."""
    shape = [None, 1, 1, 1, 10**12]
    path = with_config(
        files("2.21", "simple.keras"),
        lambda config, up: up["config"].update(batch_input_shape=shape),
    )
    assert conv3dt.from_keras(path, "up1").kernel.shape[4] == 4


# --- shards --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../m.h5", "/m.h5", "a/m.h5", "..", ".", "", "C:m.h5", "..\\m.h5", "m.txt", 3, None, {}],
)
def test_shards_lie_beside(files, name):
    path = files("3.15", "simple.weights.json")
    path.write_text(json.dumps({"weight_map": {"/layers/conv3d_transpose/vars": [name]}}))
    refused(path, "weight_map must name files beside it|cannot be read")


def test_a_shard_that_is_missing(files):
    path = files("3.15", "simple.weights.json")
    (path.parent / "simple_00001.weights.h5").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="simple_00001"):
        load_everything(path)


def test_shards_of_a_layer(files):
    """The parts of a layer in several files are put together."""
    path = files("3.15", "simple.weights.json")
    places = json.loads(path.read_text())["weight_map"]
    assert len({*itertools.chain(*places.values())}) > 1
    load_everything(path)
