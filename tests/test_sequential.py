"""Sequential: the composed formula, the bits of its layers one by one, memory as stated."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest
from cases import COMPILED
from hypothesis import given, settings
from hypothesis import strategies as st

import conv3dt
from conv3dt import (
    Activation,
    BatchNormalization,
    Conv3DTranspose,
    Dense,
    Dropout,
    Flatten,
    InputLayer,
    Reshape,
    Sequential,
    activations,
    output_pool,
)

RNG = np.random.default_rng(0)
FIRST = {"data_format": "channels_first"}


def filled(chain, seed=0):
    """The chain with weights that keep numbers near 1."""
    rng = np.random.default_rng(seed)
    chain.set_weights(
        [
            rng.uniform(0.5, 1.5, w.shape) if w.ndim == 1
            else rng.normal(0, 2 / w.shape[-1] ** 0.5, w.shape)
            for w in chain.weights
        ]
    )  # fmt: skip
    return chain


def up(filters, size=4, **options):
    return Conv3DTranspose(filters, size, **{"strides": 2, "padding": "same"} | options)


def norm(axis=-1, **options):
    return BatchNormalization(axis, **options)


def generator(**options):
    """A small generator with whatever a chain can have."""
    layers = [
        Dense(2**3 * 12, use_bias=False), norm(), "relu", Reshape((2, 2, 2, 12)),
        up(8, use_bias=False), norm(), activations.leaky_relu, Dropout(0.3),
        up(6, 3, activation="tanh"), norm(epsilon=1e-5),
        Conv3DTranspose(4, 2, groups=2), norm(), {"class_name": "ELU", "config": {"alpha": 0.5}},
        Conv3DTranspose(2, 2), "softmax",
    ]  # fmt: skip
    return filled(Sequential(layers, input_shape=(10,), **options))


def one_by_one(chain, x):
    for layer in chain.fold():
        x = layer(x)
    return x


# ---- numbers ----------------------------------------------------------------------


def normalized(v, layer, axis=-1):
    gamma, beta, mean, variance = (w.astype(float) for w in layer.weights)
    v = np.moveaxis(v, axis, -1)
    return np.moveaxis(gamma * (v - mean) / np.sqrt(variance + layer.epsilon) + beta, -1, axis)


def convolved(v, layer, crop, out):
    return oracle.conv3d_transpose(
        v, layer.kernel, layer.bias, layer.strides, crop, out, groups=layer.groups,
        channels_last=layer.data_format == "channels_last",
    )  # fmt: skip


def test_is_the_composed_formula(isa):
    chain = generator()
    dense, bn1, _, _, up1, bn2, _, _, up2, bn3, up3, bn4, _, last, _ = chain
    x = RNG.normal(size=(2, 10)).astype("float32")

    v = np.maximum(normalized(x.astype(float) @ dense.kernel, bn1), 0).reshape(2, 2, 2, 2, 12)
    v = normalized(convolved(v, up1, (1, 1, 1), (4, 4, 4)), bn2)
    v = np.where(v > 0, v, 0.2 * v)
    v = normalized(np.tanh(convolved(v, up2, (0, 0, 0), (8, 8, 8))), bn3)
    v = normalized(convolved(v, up3, (0, 0, 0), (9, 9, 9)), bn4)
    v = np.where(v > 0, v, 0.5 * np.expm1(v))
    v = np.exp(convolved(v, last, (0, 0, 0), (10, 10, 10)))
    want = v / v.sum(axis=-1, keepdims=True)

    y = chain(x)
    assert y.dtype == np.float32 and y.shape == want.shape == chain.compute_output_shape(x.shape)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-5)


def test_channels_first():
    chain = filled(
        Sequential(
            [up(5, **FIRST), norm(1), "relu", norm(1), up(3, **FIRST)], input_shape=(4, 2, 3, 2)
        )
    )
    up1, bn1, _, bn2, up2 = chain
    x = RNG.normal(size=(2, 4, 2, 3, 2)).astype("float32")
    v = np.maximum(normalized(convolved(x, up1, (1, 1, 1), (4, 6, 4)), bn1, 1), 0)
    want = convolved(normalized(v, bn2, 1), up2, (1, 1, 1), (8, 12, 8))
    np.testing.assert_allclose(chain(x), want, rtol=1e-4, atol=1e-4)
    assert [type(layer).__name__ for layer in chain.fold()] == [
        "Conv3DTranspose", "BatchNormalization", "Conv3DTranspose",
    ]  # fmt: skip


# ---- bits -------------------------------------------------------------------------

CHAINS = {
    "generator": (generator, (3, 10)),
    "plain": (lambda: Sequential([up(4), up(3, activation="relu"), up(1)]), (2, 3, 2, 4, 5)),
    "half": (
        lambda: filled(
            Sequential(
                [up(4, dtype="mixed_float16"), norm(dtype="mixed_float16"), "relu", up(2)],
                input_shape=(3, 3, 3, 5),
            )
        ),
        (2, 3, 3, 3, 5),
    ),
    "in place first": (lambda: Sequential([norm(), "tanh", up(2), "tanh"]), (2, 2, 2, 2, 3)),
    "views around": (
        lambda: Sequential([Reshape((2, 2, 2, 3)), up(2), Flatten(), Dense(7), Reshape((7, 1))]),
        (2, 24),
    ),
    "halving": (
        lambda: Sequential([up(4, activation="glu"), up(4), "glu", up(1)]), (1, 2, 2, 2, 3)
    ),
    "views alone": (lambda: Sequential([Reshape((2, 3)), Dropout(0.1)]), (2, 6)),
}  # fmt: skip
each_chain = pytest.mark.parametrize(("make", "shape"), CHAINS.values(), ids=CHAINS)


@each_chain
def test_same_bits_as_the_layers_one_by_one(isa, make, shape):
    chain = make()
    x = RNG.normal(size=shape).astype("float32")
    y = chain(x)
    want = one_by_one(chain, x)
    assert y.dtype == want.dtype and y.shape == chain.compute_output_shape(shape)
    np.testing.assert_array_equal(y, want)
    if not any(isinstance(layer, BatchNormalization) for layer in chain):
        for layer in chain:  # nothing is folded then: the same with the layers as given
            x = layer(x)
        np.testing.assert_allclose(y, x, rtol=1e-6, atol=1e-7)


@each_chain
def test_out_receives_the_same_bits(make, shape):
    chain = make()
    x = RNG.normal(size=shape).astype("float32")
    before = x.copy()
    y = chain(x)
    for out in (
        np.full_like(y, np.nan),
        np.full((*y.shape, 2), np.nan, y.dtype)[..., 1],
        np.full(y.shape, np.nan, y.dtype, order="F"),
    ):
        assert chain(x, out=out) is out
        np.testing.assert_array_equal(out, y)
    np.testing.assert_array_equal(x, before)
    assert not np.may_share_memory(y, x)


def test_out_may_overlap_x():
    layers = [up(4, strides=1), norm(), up(3, strides=1)]
    chain = filled(Sequential(layers, input_shape=(4, 4, 4, 3)))
    x = RNG.normal(size=(2, 4, 4, 4, 3)).astype("float32")
    want = chain(x)
    assert chain(x, out=x) is x
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_any_threads_and_batch(isa, always_parallel, threads):
    x = RNG.normal(size=(3, 10)).astype("float32")
    want = np.concatenate([generator(num_threads=1)(row[None]) for row in x])
    np.testing.assert_array_equal(generator(num_threads=threads)(x), want)


def test_threads_call_at_once():
    chain = generator()
    inputs = [RNG.normal(size=(n, 10)).astype("float32") for n in (1, 2, 3, 2)]
    wants = [chain(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for i, y in enumerate(pool.map(chain, inputs * 25)):
            np.testing.assert_array_equal(y, wants[i % 4])


def test_threads_share_an_unbuilt_chain():
    chain = Sequential([Dense(8), Reshape((1, 1, 1, 8)), up(3), norm(), "relu"])
    x = RNG.normal(size=(2, 5)).astype("float32")
    barrier = threading.Barrier(8)

    def call(_):
        barrier.wait()
        return chain(x)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(8)))
    for y in results:
        np.testing.assert_array_equal(y, results[0])


def test_inputs_of_any_kind():
    chain = generator()
    x = RNG.normal(size=(3, 10)).astype("float32")
    want = chain(x)
    for same in (x.astype("float64"), x.astype(">f4"), np.asfortranarray(x), x.tolist()):
        np.testing.assert_array_equal(chain(same), want)
    assert chain(x[:0]).shape == (0, 10, 10, 10, 2)
    for bad in (None, x.astype(int), "abc"):
        with pytest.raises(TypeError, match="x must be"):
            chain(bad)


def test_double_precision():
    options = {"dtype": "float64"}
    chain = filled(Sequential([up(4, **options), norm(**options), "gelu", up(2, **options)],
                              input_shape=(2, 2, 2, 3)))  # fmt: skip
    x = RNG.normal(size=(1, 2, 2, 2, 3))
    y = chain(x)
    assert y.dtype == np.float64
    v = normalized(convolved(x, chain[0], (1, 1, 1), (4, 4, 4)), chain[1])
    want = convolved(activations.gelu(v), chain[3], (1, 1, 1), (8, 8, 8))
    np.testing.assert_allclose(y, want, rtol=1e-12, atol=1e-12)


def menu(channels_last):
    """Layers that fit behind each other: 5 axes, and an even number of channels."""
    axis = -1 if channels_last else 1
    options = {"data_format": "channels_last" if channels_last else "channels_first"}
    return (
        lambda: up(4, 3, dtype="float64", **options),
        lambda: up(2, 1, strides=1, use_bias=False, dtype="float64", **options),
        lambda: up(6, 2, strides=(1, 2, 1), activation="tanh", dtype="float64", **options),
        lambda: norm(axis, dtype="float64"),
        lambda: Activation("relu"),
        lambda: Activation(activations.softmax),
        lambda: Activation(lambda x: x * abs(x)),
        lambda: Dropout(0.5),
        lambda: Reshape((-1, 2, 1, 2) if channels_last else (2, -1, 1, 2)),
        lambda: Dense(4, "silu", dtype="float64"),
        lambda: Dense(2, "softmax", dtype="float64"),
    )


@given(
    numbers=st.lists(st.integers(0, 10), min_size=1, max_size=8).filter(
        lambda numbers: numbers.count(0) <= 2 and numbers.count(2) <= 2  # these enlarge
    ),
    channels_last=st.booleans(),
    batch=st.integers(0, 3),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_any_chain_is_its_layers_one_by_one(numbers, channels_last, batch, seed):
    layers = menu(channels_last)
    chain = Sequential([layers[number]() for number in numbers])
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, 2, 2, 2, 2))
    chain.build(x.shape)
    filled(chain, seed)
    before = x.copy()
    y = chain(x)
    np.testing.assert_array_equal(x, before)
    out = np.empty((*y.shape[:-1], y.shape[-1] + 1))[..., 1:]
    np.testing.assert_array_equal(chain(x, out=out), y)
    folded, want = x, x
    for step in chain.fold():
        folded = step(folded)
    for layer in chain:
        want = layer(want)
    np.testing.assert_array_equal(y, folded)
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-9 * abs(want).max(initial=1))


# ---- folding ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "steps"),
    [
        ([up(4), norm(), "relu", up(2)], "Conv3DTranspose Conv3DTranspose"),
        ([up(4), norm(4), norm(), "relu"], "Conv3DTranspose"),
        ([up(4), Dropout(0.1), norm(), Dropout(0.1), "relu"], "Conv3DTranspose"),
        ([up(4, activation="relu"), norm()], "Conv3DTranspose BatchNormalization"),
        ([up(4), "relu", norm(), "relu"], "Conv3DTranspose BatchNormalization Activation"),
        ([up(4), "relu", "sigmoid"], "Conv3DTranspose Activation"),
        ([up(4), norm(1)], "Conv3DTranspose BatchNormalization"),
        ([up(4), "glu"], "Conv3DTranspose Activation"),
        ([up(4), norm(dtype="float64")], "Conv3DTranspose BatchNormalization"),
        ([up(4, dtype="float16"), norm(dtype="float16")], "Conv3DTranspose BatchNormalization"),
        ([up(4), norm(moving_variance_initializer=lambda s, dtype: -np.ones(s, dtype))],
         "Conv3DTranspose BatchNormalization"),
        ([norm(), up(4)], "BatchNormalization Conv3DTranspose"),
        ([Flatten(), Dense(4), norm(), "relu"], "Flatten Dense"),
        ([Flatten(), Dense(4), norm(1), "relu"], "Flatten Dense"),
        ([Dense(4), norm(1), "relu"], "Dense BatchNormalization Activation"),
        ([Dense(4), norm(4), "relu"], "Dense"),
        ([InputLayer((4, 4, 4, 4)), up(4), Reshape((-1,)), norm()],
         "InputLayer Conv3DTranspose Reshape BatchNormalization"),
    ],
)  # fmt: skip
def test_what_is_folded(layers, steps):
    chain = Sequential(layers, input_shape=(4, 4, 4, 4))
    assert " ".join(type(step).__name__ for step in chain.fold()) == steps
    assert len(chain) == len(layers)
    x = np.ones((1, 4, 4, 4, 4), "float32")
    np.testing.assert_array_equal(chain.fold()(x), chain(x))


def test_the_axis_of_a_normalization_depends_on_the_rank():
    chain = filled(Sequential([Dense(4), norm(1)], input_shape=(6,)))
    assert len(chain.fold()) == 1
    x = RNG.normal(size=(2, 4, 6)).astype("float32")
    want = normalized(x.astype(float) @ chain[0].kernel + chain[0].bias, chain[1], 1)
    for _ in range(2):
        np.testing.assert_allclose(chain(x), want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            chain(x[:, 0]), normalized(x[:, 0] @ chain[0].kernel + chain[0].bias, chain[1]),
            rtol=1e-5, atol=1e-5,
        )  # fmt: skip
    with pytest.raises(ValueError, match="4 channels on axis 1, got 3"):
        chain(x[:, :3])


def test_the_layers_stay_as_they_are():
    chain = generator()
    configs = [layer.get_config() for layer in chain]
    weights = chain.get_weights()
    chain(np.ones((1, 10), "float32"))
    assert [layer.get_config() for layer in chain] == configs
    for got, want in zip(chain.weights, weights, strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_is_set_in_a_layer_is_used():
    chain = generator()
    x = RNG.normal(size=(2, 10)).astype("float32")
    for change in (
        lambda: setattr(chain[4], "kernel", 2 * chain[4].kernel),
        lambda: chain[5].set_weights([w + 1 for w in chain[5].weights]),
        lambda: chain[0].set_weights([-w for w in chain[0].weights]),
        lambda: setattr(chain[13], "activation", "relu"),
    ):
        before = chain(x)
        change()
        after = chain(x)
        assert (after != before).any()
        fresh = Sequential(chain.layers)
        np.testing.assert_array_equal(after, fresh(x))
    chain[4].algorithm = "im2col"
    assert chain.fold()[2].algorithm == "im2col"


def test_threads_reach_the_layers_that_have_none_of_their_own():
    chain = Sequential([up(2), up(2, num_threads=3), Dense(2)], input_shape=(2, 2, 2, 2))
    assert [step.num_threads for step in chain.fold()] == [None, 3, None]
    chain.num_threads = 2
    assert [step.num_threads for step in chain.fold()] == [2, 3, 2]
    assert chain[0].num_threads is None
    with pytest.raises(ValueError, match="num_threads"):
        chain.num_threads = 0


# ---- memory -----------------------------------------------------------------------


@pytest.fixture
def _no_pool():
    gc.collect()
    conv3dt.set_output_pool(0)
    yield
    conv3dt.set_output_pool(None)


def measured(chain, x, out):
    """The peak of what NumPy allocates in a warm call."""
    chain(x, out=out)
    tracemalloc.start()
    try:
        chain(x, out=out)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MIB = 1 << 20
LARGE = {
    # 24³ x 8 floats: 0.42 MiB in, each layer 8 times as many voxels
    "pairs": (
        [up(4), norm(), "relu", up(2), up(1)], "float32", (24, 24, 24, 8), 110592 * 4 * (4 + 16)
    ),
    "one layer": ([up(8), "relu"], "float32", (24, 24, 24, 8), 0),
    "in place": ([up(8, activation="relu"), norm(), "mish"], "float32", (24, 24, 24, 8), 0),
    "copied first": ([norm(), up(4)], "float32", (24, 24, 24, 8), 13824 * 8 * 4),
    "views": ([Reshape((24, 24, 24, 8)), up(4), Reshape((-1,))], "float32", (24**3, 8), 0),
    "shrinking": (
        [up(8), up(4, 1, strides=1), up(2, 1, strides=1), up(1, 1, strides=1)],
        "float32", (24, 24, 24, 8), 110592 * 12 * 4,
    ),
    "halving": ([up(8), "glu", up(1, 1, strides=1)], "float32", (24, 24, 24, 4), 110592 * 20 * 4),
    "half": (
        [up(8, dtype="mixed_float16"), up(4, 1, strides=1, dtype="mixed_float16")],
        "float16", (24, 24, 24, 8), 110592 * (8 * 2 + 8 * 4 + 4 * 4),
    ),
}  # fmt: skip


@pytest.mark.skipif(not COMPILED, reason="NumPy's own algorithm has columns in memory, too")
@pytest.mark.parametrize(("layers", "dtype", "shape", "want"), LARGE.values(), ids=LARGE)
def test_peak_memory_is_what_a_call_takes(_no_pool, layers, dtype, shape, want):
    chain = Sequential(layers, input_shape=shape)
    x = RNG.normal(size=(1, *shape)).astype(dtype)
    out = np.empty(chain.compute_output_shape(x.shape), chain(x).dtype)
    stated = chain.peak_memory(x.shape, dtype)
    assert stated == want
    # Activations work in blocks of a few hundred KiB; the rest is the call's own objects.
    assert stated <= measured(chain, x, out) <= stated + MIB
    assert chain.peak_memory((3, *shape), dtype) == 3 * stated


@pytest.mark.skipif(not COMPILED, reason="NumPy's own algorithm has columns in memory, too")
def test_buffers_are_reused(_no_pool):
    """Ten results of 1.7 MiB, of which two are there at a time."""
    same = [up(4, 1, strides=1) for _ in range(10)]
    chain = Sequential([up(4), *same], input_shape=(24, 24, 24, 8))
    x = RNG.normal(size=(1, 24, 24, 24, 8)).astype("float32")
    out = np.empty(chain.compute_output_shape(x.shape), "float32")
    assert chain.peak_memory(x.shape) == 2 * out.nbytes
    assert measured(chain, x, out) < 2.2 * out.nbytes
    tracemalloc.start()
    kept = [x]
    for layer in chain:
        kept.append(layer(kept[-1]))
    assert tracemalloc.get_traced_memory()[1] > 10 * out.nbytes
    tracemalloc.stop()


def test_the_block_comes_from_the_pool_and_goes_back():
    conv3dt.set_output_pool(0)
    conv3dt.set_output_pool(None)
    chain = Sequential([up(32), up(1)], input_shape=(24, 24, 24, 8))
    x = RNG.normal(size=(1, 24, 24, 24, 8)).astype("float32")
    out = np.empty(chain.compute_output_shape(x.shape), "float32")
    size = chain.peak_memory(x.shape)
    for _ in range(3):
        chain(x, out=out)
        assert size <= output_pool.usage()[0] <= size + output_pool.HUGE_PAGE


def test_peak_memory_refuses():
    chain = generator()
    with pytest.raises(ValueError, match="unknown"):
        chain.peak_memory((None, 10))
    with pytest.raises(ValueError, match="dense"):
        chain.peak_memory((1, 11))
    with pytest.raises(ValueError, match="not built"):
        Sequential([up(2)]).peak_memory((1, 2, 2, 2, 2))


# ---- shapes -----------------------------------------------------------------------


def test_built_by_its_shape_an_input_layer_its_first_layer_or_the_first_call():
    x = np.ones((2, 3, 3, 3, 4), "float32")
    by_shape = Sequential([up(2), norm(), up(1)], input_shape=(None, None, None, 4))
    by_input = Sequential([InputLayer((3, 3, 3, 4)), up(2), norm(), up(1)])
    by_first = Sequential([up(2, input_shape=(3, 3, 3, 4)), norm(), up(1)])
    by_build, by_call = Sequential([up(2), norm(), up(1)]), Sequential([up(2), norm(), up(1)])
    assert not by_call.built
    by_build.build((None, 3, 3, 3, 4))
    by_call(x)
    for chain in (by_shape, by_input, by_first, by_build, by_call):
        assert chain.built and chain.count_params() == 4 * 64 * 2 + 2 + 8 + 64 * 2 + 1
    with pytest.raises(ValueError, match="axis 7"):
        Sequential([up(2, input_shape=(3, 3, 3, 4)), norm(7)])
    # The channels of Dense depend on sizes that nobody has told.
    late = Sequential([up(2, input_shape=(3, 3, 3, 4)), Flatten(), Dense(2)])
    assert not late.built
    assert late(x).shape == (2, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sequential([]), "at least one"),
        (lambda: Sequential([up(2), 3]), r"layers\[1\].*activation"),
        (lambda: Sequential([up(2), "nonsense"]), r"layers\[1\].*nonsense"),
        (lambda: Sequential([Flatten]), r"layers\[0\].*the class Flatten"),
        (lambda: Sequential([up(2), up(3, name="b", groups=3)], input_shape=(3, 3, 3, 4)),
         r"b \(Conv3DTranspose\): groups must divide"),
        (lambda: Sequential([Dense(9), Reshape((2, 2, 2, 2), name="c")], input_shape=(4,)),
         r"c \(Reshape\): target_shape must have the 9 elements"),
        (lambda: Sequential([Dense(8), up(2, name="d")], input_shape=(4,)),
         r"d \(Conv3DTranspose\): input_shape must be 5 sizes"),
        (lambda: Sequential([up(2, input_shape=(3, 3, 3, 4)), up(2, name="e",
                                                                 input_shape=(3, 3, 3, 4))]),
         r"e \(Conv3DTranspose\): .*4 input channels, got 2"),
        (lambda: Sequential([up(3), "glu"], input_shape=(2, 2, 2, 2)), r"Activation\): glu"),
        (lambda: Sequential([up(2)], input_shape=(2, 2, 2, None)), "channels"),
        (lambda: Sequential([up(2)], input_shape=(2, -2, 2, 2)), "input_shape"),
        (lambda: Sequential([up(2)], name=""), "name"),
        (lambda: Sequential([up(2)], num_threads=-1), "num_threads"),
        (lambda: Sequential([up(2)]).fold(), "not built"),
        (lambda: Sequential([Sequential([Dense(2)], input_shape=(3,))[0]]).fold(),
         "input_shape must be known"),
        (lambda: Sequential([up(2)]).count_params(), "not built"),
        (lambda: Sequential([up(2)]).set_weights([]), "not built"),
        (lambda: generator()(np.ones((2, 11), "float32")), r"dense\w* \(Dense\): .*10 numbers"),
        (lambda: Sequential([InputLayer((2, 2, 2, 2)), up(2)])(np.ones((1, 3, 2, 2, 2))),
         r"InputLayer\): x must have shape"),
        (lambda: generator()(np.ones((2, 10)), out=np.ones((2, 3))), "out must have"),
    ],
)  # fmt: skip
def test_refused(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_out_is_checked_before_any_work():
    chain = generator()
    x = np.ones((1, 10), "float32")
    out = chain(x)
    with pytest.raises(TypeError, match="out"):
        chain(x, out=out.astype("float64"))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        chain(x, out=out)


def test_compute_output_shape_with_unknown_sizes():
    chain = Sequential([up(2), "relu", up(1)])
    assert chain.compute_output_shape((None, 3, None, 5, 4)) == (None, 12, None, 20, 1)
    assert Sequential([Flatten(), Dense(3)]).compute_output_shape((None, None, 2)) == (None, 3)


def test_chains_in_chains():
    inner = Sequential([up(2), "relu"])
    chain = Sequential([inner, up(1), inner.layers[1]], input_shape=(2, 2, 2, 3))
    assert len(chain) == 4 and chain[0] is inner[0] and inner.built


# ---- weights and configs ----------------------------------------------------------


def test_weights_are_those_of_the_layers_all_or_none():
    chain = generator()
    weights = chain.get_weights()
    assert [w.shape for w in weights[:6]] == [(10, 96)] + [(96,)] * 4 + [(4, 4, 4, 8, 12)]
    assert chain.count_params() == sum(w.size for w in weights)
    assert not any(w.flags.writeable for w in chain.weights)
    x = RNG.normal(size=(1, 10)).astype("float32")
    before = chain(x)
    changed = [w + 1 for w in weights]
    for bad in (changed[:-1], [*changed[:-1], changed[-1][:1]], [*changed[:-1], None]):
        with pytest.raises((ValueError, TypeError), match="weights"):
            chain.set_weights(bad)
    np.testing.assert_array_equal(chain(x), before)


@pytest.mark.parametrize("options", [{}, {"name": "g", "num_threads": 2}])
def test_config_and_copies(options):
    chain = generator(**options)
    x = RNG.normal(size=(2, 10)).astype("float32")
    y = chain(x)
    again = Sequential.from_config(json.loads(json.dumps(chain.get_config())))
    assert again.built and json.dumps(again.get_config()) == json.dumps(chain.get_config())
    again.set_weights(chain.get_weights())
    twins = copy.copy(chain), copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))
    for twin in (again, *twins):
        np.testing.assert_array_equal(twin(x), y)
        assert repr(twin) == repr(chain)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"class_name": "Conv3D", "config": {"name": "c"}}, "got Conv3D 'c'"),
        ({"class_name": "Dense", "config": {"nonsense": 1}}, "Dense"),
        ({"class_name": "Dense"}, "class_name and a config"),
        (3, "class_name and a config"),
        ({"class_name": "Sequential", "config": {"layers": 3}}, 'list "layers"'),
        ({"class_name": [], "config": {}}, "class_name"),
    ],
)
def test_bad_configs(layer, words):
    with pytest.raises(ValueError, match=words):
        Sequential.from_config({"name": "s", "layers": [layer]})


def test_readable():
    chain = Sequential(
        [Dense(8, name="d"), Reshape((1, 1, 1, 8), name="r"), up(2, name="u")], name="s"
    )
    assert repr(chain).splitlines()[0] == "Sequential 's', 0 parameters:"
    chain.build((None, 4))
    assert [line.split() for line in repr(chain).splitlines()] == [
        ["Sequential", "'s'", "for", "(None,", "4),", "1,066", "parameters:"],
        ["d", "Dense", "(None,", "8)", "40"],
        ["r", "Reshape", "(None,", "1,", "1,", "1,", "8)", "0"],
        ["u", "Conv3DTranspose", "(None,", "2,", "2,", "2,", "2)", "1,026"],
    ]
