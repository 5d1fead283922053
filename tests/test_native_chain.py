"""Sequential.save and conv3dt.load: everything comes back, hostile files make nothing."""

import json
import tracemalloc

import numpy as np
import pytest
from test_native_format import members, npy, with_config, written
from test_sequential import generator, norm, up

import conv3dt
from conv3dt import Conv3DTranspose, Dense, InputLayer, Reshape, Sequential


@pytest.fixture
def path(tmp_path):
    return tmp_path / "chain.npz"


CHAINS = {
    "generator": (lambda: generator(name="g", num_threads=2), (2, 10)),
    "folded": (lambda: generator().fold(), (2, 10)),
    "half": (
        lambda: Sequential([up(3, dtype="bfloat16"), norm(dtype="mixed_float16"), "relu"],
                           input_shape=(2, 2, 2, 2)),
        (1, 2, 2, 2, 2),
    ),
    "input layer": (lambda: Sequential([InputLayer((8,)), Reshape((1, 1, 1, -1)), up(1)]), (3, 8)),
    "unknown sizes": (lambda: Sequential([up(2), up(1)], input_shape=(None, None, None, 3)),
                      (1, 2, 3, 4, 3)),
}  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), CHAINS.values(), ids=CHAINS)
def test_round_trip(path, make, shape):
    chain = make()
    chain.save(path)
    again = conv3dt.load(path)
    assert again.get_config() == chain.get_config() and again.built
    for got, want in zip(again.weights, chain.weights, strict=True):
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes()
    x = np.random.default_rng(0).normal(size=shape)
    assert again(x).tobytes() == chain(x).tobytes()
    assert repr(again) == repr(chain)


def test_a_chain_that_is_not_built(path):
    with pytest.raises(ValueError, match="not built"):
        Sequential([up(2), Dense(2)]).save(path)
    assert not path.exists()


class Up(Conv3DTranspose):
    pass


@pytest.mark.parametrize("layer", [np.sin, lambda x: x, Up(2, 3), up(2, activation=np.cos)])
def test_code_has_no_place_in_a_file(path, layer):
    with pytest.raises(ValueError, match="must be"):
        Sequential([up(2), layer], input_shape=(2, 2, 2, 2)).save(path)
    assert not path.exists()


def test_its_convolutions_are_listed_and_loaded(path):
    chain = Sequential([up(2, name="a"), norm(), up(3, name="b")], input_shape=(2, 2, 2, 4))
    chain.save(path)
    infos = conv3dt.list_layers(path)
    assert [(info.name, info.in_channels, info.filters) for info in infos] == [
        ("a", 4, 2), ("b", 2, 3),
    ]  # fmt: skip
    layer = up(3)
    layer.load_weights(path, "b")
    np.testing.assert_array_equal(layer.kernel, chain[2].kernel)
    with pytest.raises(ValueError, match="'a', 'b'"):
        layer.load_weights(path)


def layers(contents, change):
    """The contents with other configs of the layers."""
    head = json.loads(contents["config.npy"].partition(b"\n")[2])
    change(head["config"]["layers"])
    return with_config(contents, config=head["config"])


def huge(configs):
    configs[0]["config"]["units"] = 10**12


HOSTILE = {
    "no weights of one": lambda c: {k: v for k, v in c.items() if not k.startswith("0.")},
    "a weight too many": lambda c: c | {"0.2.npy": c["0.0.npy"]},
    "a weight of nobody": lambda c: c | {"9.0.npy": c["0.0.npy"]},
    "a weight left out": lambda c: {k: v for k, v in c.items() if k != "0.0.npy"},
    "weights of a Reshape": lambda c: c | {"1.0.npy": c["0.0.npy"]},
    "another name": lambda c: c | {"0.x.npy": c["0.0.npy"]},
    "a flat kernel": lambda c: c | {"0.0.npy": npy(np.ones(3, "f4"))},
    "another shape": lambda c: c | {"2.0.npy": npy(np.ones((4, 4, 4, 2, 3), "f4"))},
    "huge": lambda c: layers(c, huge),
    "a shape": lambda c: layers(c, lambda ls: ls[2]["config"].update(input_shape=[1, 1, 1, 10**9])),
    "a class": lambda c: layers(c, lambda ls: ls[0].update(class_name="os.system")),
    "no name": lambda c: layers(c, lambda ls: ls[0].update(class_name=[])),
    "a chain inside": lambda c: layers(
        c, lambda ls: ls.append({"class_name": "Sequential", "config": {"layers": ls[:1]}})
    ),
    "no config": lambda c: layers(c, lambda ls: ls[0].update(config=None)),
    "a list for a config": lambda c: layers(c, lambda ls: ls[0].update(config=[1])),
    "a seed that is none": lambda c: layers(
        c,
        lambda ls: ls[0]["config"].update(
            kernel_initializer={"class_name": "HeNormal", "config": {"seed": {"config": "x"}}}
        ),
    ),
    "no layers": lambda c: with_config(c, config={}),
    "layers that are none": lambda c: with_config(c, config={"layers": 3}),
    "a shape that does not fit": lambda c: layers(
        c, lambda ls: ls[1]["config"].update(target_shape=[3, 3, 3, 3])
    ),
    "a layer as a chain": lambda c: with_config(c, class_name="Conv3DTranspose"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_contents(path, change):
    Sequential([Dense(16), Reshape((2, 2, 2, 2)), up(1)], input_shape=(4,)).save(path)
    written(path, change(members(path)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"path must be a file that .* Sequential.save"):
        conv3dt.load(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
