"""Chains on volumes larger than memory: the bits of one call, within the memory allowed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conv3dt
from conv3dt import Activation, BatchNormalization, Dense, Flatten, Reshape, Sequential, blocks
from conv3dt.chained import Chain

SPACE = (5, 4, 6)
CHANNELS = 4


def up(filters: int, size: Any, last: bool, **options: Any) -> conv3dt.Conv3DTranspose:
    data_format = "channels_last" if last else "channels_first"
    return conv3dt.Conv3DTranspose(filters, size, data_format=data_format, **options)


def norm(last: bool, **options: Any) -> BatchNormalization:
    return BatchNormalization(-1 if last else 1, **options)


def softmax(axis: int) -> Activation:
    return Activation({"class_name": "Softmax", "config": {"axis": axis}})


CHAINS: dict[str, Callable[[bool], list[Any]]] = {
    "decoder": lambda last: [
        up(6, 4, last, strides=2, padding="same", use_bias=False),
        norm(last),
        "relu",
        up(3, 3, last, strides=2, padding="same", activation="tanh"),
    ],
    "normalized after an activation": lambda last: [
        up(5, 3, last, strides=2, padding="same", activation="relu"),
        norm(last),
        up(4, 2, last, strides=2),
        "elu",
        norm(last),
    ],
    "normalized first": lambda last: [
        norm(last),
        "gelu",
        up(3, 3, last, padding="same"),
        "mish",
    ],
    "crops": lambda last: [
        up(5, 4, last, strides=(3, 2, 1), padding=((1, 2), (3, 0), (0, 2))),
        up(4, 3, last, padding=((1, 2), (0, 1), (2, 0)), activation="relu"),
        up(2, 3, last, strides=2, padding=1, output_padding=1),
    ],
    "dilation": lambda last: [
        up(5, 3, last, dilation_rate=(2, 1, 3)),
        up(3, 2, last, strides=3, dilation_rate=2, padding=1, output_padding=2),
        up(3, 3, last, dilation_rate=2, padding=1),
    ],
    "groups": lambda last: [
        up(4, 3, last, strides=2, groups=4),
        up(6, 3, last, groups=2, padding="same"),
    ],
    "minimal filtering": lambda last: [
        up(6, 4, last, strides=2, padding="same", algorithm="winograd"),
        up(3, 3, last, padding="same", algorithm="winograd"),
        up(3, 3, last, strides=2, algorithm="winograd"),
    ],
    "im2col": lambda last: [
        up(6, 4, last, strides=2, padding="same", algorithm="im2col"),
        up(3, 3, last, strides=2, padding="same", algorithm="im2col"),
    ],
    "classes": lambda last: [
        up(6, 3, last, strides=2, padding="same", activation="relu"),
        up(3, 2, last, strides=2),
        softmax(-1 if last else 1),
    ],
    "softmax on the way": lambda last: [
        up(6, 3, last, strides=2, padding="same", activation="relu"),
        softmax(-1 if last else 1),
        up(3, 3, last, padding="same"),
    ],
    "along the last axis": lambda last: [
        up(6, 3, last, strides=2, padding="same", activation="softmax"),
        up(4, 3, last, strides=2, padding="same", activation="glu"),
        up(4, 3, last, padding="same"),
        "glu",
    ],
    "normalized along the height": lambda last: [
        up(5, 3, last, strides=2, padding="same", activation="relu"),
        BatchNormalization(2 if last else 3),
        up(3, 3, last, padding="same"),
    ],
    "nothing on the way": lambda last: [
        conv3dt.InputLayer((*SPACE, CHANNELS) if last else (CHANNELS, *SPACE)),
        conv3dt.Dropout(0.5),
        up(3, 3, last, strides=2),
        conv3dt.Dropout(0.5),
    ],
    "dense": lambda last: [
        Dense(5 if last else SPACE[2], "relu"),
        up(6, 3, last, strides=2, padding="same"),
        norm(last),
        Dense(4, "softmax"),
        up(2, 3, last, strides=2, padding="same"),
    ],
    "dtypes": lambda last: [
        up(6, 3, last, strides=2, padding="same", dtype="mixed_float16", activation="relu"),
        norm(last, dtype="float64"),
        up(4, 2, last, strides=2, dtype="float64"),
        up(3, 3, last, padding="same", dtype="float16", activation="sigmoid"),
    ],
}


def filled(chain: Sequential, x: np.ndarray) -> Sequential:
    """Built for `x`, with weights that are not those of the beginning."""
    chain.build((None, *x.shape[1:]))
    draw = np.random.default_rng(1)
    chain.set_weights([draw.normal(0, 0.3, w.shape) for w in chain.weights])
    for layer in chain:
        if isinstance(layer, BatchNormalization):
            layer.set_weights([np.abs(w) + 0.1 for w in layer.get_weights()])
    return chain


def volume(last: bool, dtype: str = "float32", batch: int = 2) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((batch, *SPACE, CHANNELS)).astype(dtype)
    return x if last else np.ascontiguousarray(np.moveaxis(x, -1, 1))


def whole(chain: Sequential, source: np.ndarray) -> int:
    """The memory of a single piece."""
    links = Chain(chain.links(source.shape, source.dtype), source.dtype)
    return blocks.Division(links, source, [1] * 4).memory()


def least(chain: Sequential, source: Any, target: Any) -> int:
    """The least memory, as the error says it."""
    with pytest.raises(ValueError, match="max_memory must be at least") as caught:
        chain.apply_blocks(source, target, max_memory=1)
    return int(str(caught.value).split("at least ")[1].split()[0])


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_bits_of_one_call(kind: str, share: float, channels_last: bool) -> None:
    x = volume(channels_last)
    chain = filled(Sequential(CHAINS[kind](channels_last)), x)
    want = chain(x)
    assert np.isfinite(want).all() and np.ptp(want) > 0
    target = np.full(want.shape, np.nan, want.dtype)
    counts: list[int] = []
    chain.apply_blocks(
        x,
        target,
        max_memory=max(least(chain, x, target), int(share * whole(chain, x))),
        progress=lambda done, total: counts.append(done),
    )
    assert len(counts) > 1
    np.testing.assert_array_equal(target, want)


@pytest.mark.parametrize("kind", ["decoder", "softmax on the way", "dense"])
def test_on_every_instruction_set(isa: str, kind: str) -> None:
    x = volume(True)
    chain = filled(Sequential(CHAINS[kind](True)), x)
    target = np.zeros(chain(x).shape, "float32")
    budget = max(whole(chain, x) // 2, least(chain, x, target))
    chain.apply_blocks(x, target, max_memory=budget)
    np.testing.assert_array_equal(target, chain(x))


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_sources_of_any_dtype_and_order(dtype: str, channels_last: bool) -> None:
    x = np.asfortranarray(volume(channels_last, dtype))[:, ::-1]
    chain = filled(Sequential(CHAINS["decoder"](channels_last)), x)
    target = np.zeros(chain(x).shape, "float32")
    conv3dt.apply_blocks(chain, x, target, max_memory=whole(chain, x) // 2)
    np.testing.assert_array_equal(target, chain(x))


def test_the_source_stays_as_it_is() -> None:
    """What works in place may not begin on it."""
    x = volume(True)
    chain = filled(Sequential(CHAINS["normalized first"](True)), x)
    before = x.copy()
    chain.apply_blocks(x, np.zeros(chain(x).shape, "float32"))
    np.testing.assert_array_equal(x, before)


def test_files(tmp_path: Path) -> None:
    x = volume(True)
    chain = filled(Sequential(CHAINS["classes"](True)), x)
    source = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", x.dtype, x.shape)
    source[...] = x
    want = chain(x)
    target = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", want.dtype, want.shape)
    chain.apply_blocks(source, target, max_memory=whole(chain, x) // 2)
    np.testing.assert_array_equal(target, want)


@pytest.mark.parametrize("kind", ["decoder", "normalized first", "classes", "dtypes", "dense"])
@pytest.mark.parametrize("share", [3, 10])
def test_memory_that_is_allocated(kind: str, share: int, channels_last: bool) -> None:
    x = np.ones((1, 24, 20, SPACE[2], 4) if channels_last else (1, 4, 24, 20, SPACE[2]), "float32")
    chain = filled(Sequential(CHAINS[kind](channels_last), num_threads=2), x)
    target = np.zeros(chain(x).shape, chain(x).dtype)
    budget = max(whole(chain, x) // share, least(chain, x, target))
    counts: list[int] = []
    tracemalloc.start()
    chain.apply_blocks(
        x, target, max_memory=budget, progress=lambda done, total: counts.append(done)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(counts) > 1
    # Plans, indices and the like; blocks of float64 in which activations are computed.
    assert peak <= budget + (1 << 20)


def test_a_chain_that_is_not_built_is_built() -> None:
    chain = Sequential([up(3, 2, True, strides=2), "relu", up(2, 2, True, strides=2)])
    target = np.zeros((2, 20, 16, 24, 2), "float32")
    chain.apply_blocks(volume(True), target)
    assert chain.built
    np.testing.assert_array_equal(target, chain(volume(True)))


def test_empty_axes_are_all_bias() -> None:
    layers = [up(3, 3, True, padding=2), up(2, 3, True, bias_initializer="ones")]
    chain = Sequential(layers, input_shape=(None, None, None, 4))
    x = np.zeros((1, 2, 4, 4, 4), "float32")
    target = np.zeros(chain(x).shape, "float32")
    assert target.size
    chain.apply_blocks(x, target)
    np.testing.assert_array_equal(target, 1)


def flat(shape: tuple[int, ...]) -> list[Any]:
    return [Flatten(name="row"), Dense(64), Reshape(shape), up(2, 2, True)]


@pytest.mark.parametrize(
    ("layers", "shape", "words"),
    [
        (
            flat((4, 4, 4, 1)),
            (1, 2, 2, 2, 4),
            r"row \(Flatten\): a volume must go",
        ),
        (flat((4, 4, 4, 1))[1:], (1, 8), r"dense.* \(Dense\): a volume must"),
        ([up(2, 2, True), Reshape((3, 3, 3, 2), name="r")], (1, 2, 2, 2, 4), r"r \(Reshape\)"),
        ([Dense(3, "relu")], (1, 2, 2, 2, 4), "must have a Conv3DTranspose"),
        ([up(2, 2, True), up(2, 2, False)], (1, 2, 2, 2, 4), "data_format must be 'channels_last'"),
        ([up(2, 2, True)], (1, 2, 2, 4), "x must have 5 axes|input_shape"),
    ],
)
def test_refused(layers: list[Any], shape: tuple[int, ...], words: str) -> None:
    source = np.ones(shape, "float32")
    with pytest.raises(ValueError, match=f"source: .*{words}"):
        Sequential(layers).apply_blocks(source, np.zeros(1, "float32"))
