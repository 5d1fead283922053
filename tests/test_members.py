"""The layers of a chain beside Conv3DTranspose: their numbers, shapes, weights and configs."""

from __future__ import annotations

import copy
import json
import pickle

import ml_dtypes
import numpy as np
import pytest

import conv3dt
from conv3dt import (
    Activation,
    BatchNormalization,
    Dense,
    Dropout,
    Flatten,
    InputLayer,
    Reshape,
    activations,
)  # fmt: skip

RNG = np.random.default_rng(0)


def dense(*args, inputs=7, **options):
    layer = Dense(*(args or (5,)), **{"bias_initializer": "random_normal"} | options)
    layer.build((None, inputs))
    return layer


def normalization(channels=5, **options):
    layer = BatchNormalization(**options)
    layer.build((None,) * layer.axis + (channels,) + (None,) * 3 if layer.axis > 0 else (channels,))
    layer.set_weights([RNG.uniform(0.5, 1.5, w.shape).astype(w.dtype) for w in layer.weights])
    return layer


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ---- Dense ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 7), (2, 1, 3, 2, 7), (0, 7), (1, 7)])
def test_dense_is_the_matrix_product(isa, shape, dtype):
    layer = dense(5, "sigmoid", dtype=dtype)
    x = RNG.normal(size=shape).astype(dtype)
    y = layer(x)
    assert y.shape == (*shape[:-1], 5) == layer.compute_output_shape(shape) and y.dtype == dtype
    want = sigmoid(x.astype(float) @ layer.kernel.astype(float) + layer.bias)
    np.testing.assert_allclose(y, want, rtol=1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda v: np.maximum(v, 0)),
        ("softmax", lambda v: np.exp(v) / np.exp(v).sum(axis=1, keepdims=True)),
        ("glu", lambda v: v[:, :3] * sigmoid(v[:, 3:])),
        (lambda v: v - v.mean(axis=1, keepdims=True), lambda v: v - v.mean(axis=1, keepdims=True)),
    ],
)
@pytest.mark.parametrize("where", ["new", "out", "strided"])
def test_activations_of_dense_see_the_shape_of_its_result(activation, function, where):
    layer = dense(6, activation)
    x = RNG.normal(size=(4, 7)).astype("float32")
    shape = layer.compute_output_shape(x.shape)
    want = function(x.astype(float) @ layer.kernel + layer.bias)
    out = {"new": None, "out": np.empty(shape, "float32")}.get(
        where, np.empty((4, 2 * shape[1]), "float32")[:, ::2]
    )
    y = layer(x, out=out)
    assert out is None or y is out
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-6)


def test_rows_of_dense_do_not_depend_on_each_other(isa, always_parallel):
    """The same bits for any batch and any number of threads."""
    layer = dense(33, "tanh", inputs=300)
    x = RNG.normal(size=(29, 300)).astype("float32")
    want = np.concatenate([layer(row[None]) for row in x])
    for threads in (1, 2, 3):
        layer.num_threads = threads
        np.testing.assert_array_equal(layer(x), want)
        np.testing.assert_array_equal(layer(x[:7]), want[:7])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_dense_in_half_precision(dtype):
    layer = dense(5, dtype=dtype)
    half = ml_dtypes.bfloat16 if "bfloat16" in dtype else np.float16
    x = RNG.normal(size=(3, 7)).astype(half)
    y = layer(x)
    exact = x.astype(float) @ layer.kernel.astype(float) + layer.bias.astype(float)
    assert y.dtype == half
    np.testing.assert_allclose(y.astype(float), exact, rtol=1e-2, atol=1e-2)


def test_dense_initializers_see_inputs_and_units():
    seen = []

    def initial(shape, dtype=None):
        seen.append(shape)
        return np.arange(np.prod(shape)).reshape(shape).astype(dtype)

    layer = dense(5, kernel_initializer=initial)
    assert seen == [(7, 5)]
    np.testing.assert_array_equal(layer.kernel, np.arange(35).reshape(7, 5))
    with pytest.raises(ValueError, match=r"kernel_initializer .*\(7, 5\)"):
        dense(5, kernel_initializer=lambda shape, dtype=None: np.zeros((5, 7), dtype))
    limit = np.sqrt(6 / (1000 + 3))
    spread = abs(dense(3, kernel_initializer=None, inputs=1000).kernel).max()
    assert 0.9 * limit < spread <= limit


def test_dense_weights():
    layer = dense(5)
    kernel, bias = layer.get_weights()
    assert kernel.shape == (7, 5) and bias.shape == (5,) and layer.count_params() == 40
    x = RNG.normal(size=(2, 7)).astype("float32")
    before = layer(x)
    layer.set_weights([2 * kernel, 2 * bias])
    np.testing.assert_array_equal(layer(x), 2 * before)
    assert not layer.kernel.flags.writeable
    for bad in ([kernel], [kernel.T, bias], [kernel, bias[:4]]):
        with pytest.raises(ValueError, match="weights|kernel|bias"):
            layer.set_weights(bad)
    np.testing.assert_array_equal(layer(x), 2 * before)
    assert dense(use_bias=False).bias is None


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: Dense(0), "units"),
        (lambda: Dense(2.5), "units"),
        (lambda: Dense(3, "nonsense"), "activation"),
        (lambda: Dense(3, dtype="int8"), "dtype"),
        (lambda: Dense(3, name="a/b"), "name"),
        (lambda: Dense(3, num_threads=0), "num_threads"),
        (lambda: Dense(3).build((None, None)), "last axis"),
        (lambda: Dense(3).build((4,)), "input_shape"),
        (lambda: Dense(3).count_params(), "not built"),
        (lambda: Dense(3).set_weights([]), "not built"),
        (lambda: dense()(np.ones((2, 6), "float32")), "7 numbers on its last axis"),
        (lambda: dense()(np.ones((2, 7), "float32"), out=np.ones((2, 6), "float32")), "out"),
        (lambda: dense(5, "glu"), "even"),
    ],
)
def test_bad_dense(call, word):
    with pytest.raises(ValueError, match=word):
        call()


# ---- BatchNormalization -----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False, "epsilon": 1e-5}])
@pytest.mark.parametrize("axis", [-1, 1, 4])
def test_normalization_is_the_formula(options, axis, dtype):
    layer = normalization(axis=axis, dtype=dtype, **options)
    gamma, beta, mean, variance = (
        w.astype(float) if w is not None else default
        for w, default in zip(
            [layer.statistics[k] for k in ("gamma", "beta", "mean", "variance")],
            (1.0, 0.0, None, None),
            strict=True,
        )
    )
    x = RNG.normal(size=(2, 5, 3, 4, 5)).astype(dtype)
    before = x.copy()
    channels = np.moveaxis(x.astype(float), axis, -1)
    want = gamma * (channels - mean) / np.sqrt(variance + layer.epsilon) + beta
    y = layer(x)
    assert y.dtype == dtype and y.shape == x.shape
    np.testing.assert_allclose(np.moveaxis(y, axis, -1), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(x, before)
    out = np.empty((2, 5, 3, 4, 10), dtype)[..., ::2]
    assert layer(x, out=out) is out and (out == y).all()
    assert layer.inplace(x) is x and (x == y).all()


def test_normalization_of_large_arrays_goes_by_blocks():
    layer = normalization(3)
    x = RNG.normal(size=(5, 30_000, 3)).astype("float32")
    np.testing.assert_array_equal(layer(x)[:, 17], layer(x[:, 17]))


def test_normalization_in_half_precision():
    layer = normalization(dtype="mixed_float16")
    x = RNG.normal(size=(2, 5)).astype("float16")
    y = layer(x)
    assert y.dtype == np.float16 and layer.weights[0].dtype == np.float32
    wide = normalization(dtype="float32")
    wide.set_weights(layer.get_weights())
    np.testing.assert_array_equal(y, wide(x).astype("float16"))


def test_normalization_weights_are_in_the_order_of_keras():
    layer = BatchNormalization()
    layer.build((None, 2))
    assert [w.tolist() for w in layer.weights] == [[1, 1], [0, 0], [0, 0], [1, 1]]
    layer.set_weights([np.full(2, v, "float32") for v in (3, 1, 4, 4 - 1e-3)])
    np.testing.assert_allclose(layer(np.array([[4.0, 8.0]], "float32")), [[1, 7]], rtol=1e-6)
    assert layer.count_params() == 8


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: BatchNormalization(axis=1.5), "axis"),
        (lambda: BatchNormalization(axis=[1, 2]), "axis"),
        (lambda: BatchNormalization(epsilon=-1), "epsilon"),
        (lambda: BatchNormalization(axis=3).build((None, 4)), "axis 3"),
        (lambda: BatchNormalization().build((4, None)), "axis -1"),
        (lambda: BatchNormalization().count_params(), "not built"),
        (lambda: normalization(5)(np.ones((2, 4), "float32")), "5 channels on axis -1, got 4"),
        (lambda: normalization(5).set_weights([np.ones(5)] * 3), "4 arrays"),
        (lambda: BatchNormalization(gamma_initializer=lambda s, dtype=None: np.ones(9)).build((3,)),
         "gamma_initializer"),
    ],
)  # fmt: skip
def test_bad_normalization(call, word):
    with pytest.raises(ValueError, match=word):
        call()


# ---- the others -------------------------------------------------------------------


def test_activation_is_the_function():
    x = RNG.normal(size=(2, 4)).astype("float32")
    before = x.copy()
    for name in ("relu", "softmax", "mish", np.sin):
        np.testing.assert_array_equal(Activation(name)(x), activations.get(name)(x))
    out = np.empty((2, 2), "float32")
    assert Activation("glu")(x, out=out) is out
    np.testing.assert_array_equal(out, activations.glu(x))
    assert Activation("glu").compute_output_shape((None, 4)) == (None, 2)
    np.testing.assert_array_equal(x, before)
    with pytest.raises(ValueError, match="out"):
        Activation("glu")(x, out=np.empty((2, 4), "float32"))
    with pytest.raises(ValueError, match="activation"):
        Activation("nonsense")


@pytest.mark.parametrize(
    ("target", "shape", "want"),
    [
        ((4, 3), (2, 12), (2, 4, 3)),
        ((-1, 3), (2, 12), (2, 4, 3)),
        ((-1,), (2, 3, 4), (2, 12)),
        ((), (2, 1), (2,)),
        ((-1, 3), (0, 12), (0, 4, 3)),
        ((0, 5), (2, 0, 7), (2, 0, 5)),
        ((-1, 3), (None, None), (None, None, 3)),
        ((4, 3), (None, 12), (None, 4, 3)),
    ],
)
def test_reshape(target, shape, want):
    layer = Reshape(target)
    assert layer.compute_output_shape(shape) == want
    if None not in shape:
        x = np.arange(np.prod(shape), dtype="float32").reshape(shape)
        np.testing.assert_array_equal(layer(x), x.reshape(want))


@pytest.mark.parametrize("target", [(-1, -1), (-2,), (2.5,), "ab", 3])
def test_bad_target_shape(target):
    with pytest.raises(ValueError, match="target_shape"):
        Reshape(target)


@pytest.mark.parametrize("target", [(5,), (-1, 5), (0, -1)])
def test_reshape_that_does_not_fit(target):
    with pytest.raises(ValueError, match=r"12 elements"):
        Reshape(target)(np.ones((2, 12), "float32"))


def test_flatten_dropout_and_input_layer():
    x = RNG.normal(size=(2, 3, 4)).astype("float32")
    np.testing.assert_array_equal(Flatten()(x), x.reshape(2, 12))
    assert Flatten().compute_output_shape((None, 3, None)) == (None, None)
    np.testing.assert_array_equal(Dropout(0.5)(x), x)
    np.testing.assert_array_equal(InputLayer((3, None))(x), x)
    assert InputLayer((3, None)).compute_output_shape((None, None, 4)) == (None, 3, 4)
    out = np.empty_like(x)
    assert Dropout(0.5)(x, out=out) is out and (out == x).all()
    with pytest.raises(ValueError, match=r"shape \(None, 3, 5\), got \(2, 3, 4\)"):
        InputLayer((3, 5))(x)
    with pytest.raises(ValueError, match="data_format"):
        Flatten("channels_first")


LAYERS = [
    dense(5, "softmax", use_bias=False, num_threads=3),
    dense(5, activations.leaky_relu.with_options(negative_slope=0.1), dtype="mixed_float16"),
    normalization(axis=1, epsilon=1e-5, center=False, dtype="float64"),
    Activation(activations.relu.with_options(max_value=3.0)),
    Reshape((-1, 3)),
    Flatten(),
    Dropout(0.25),
    InputLayer((None, 4)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_config_and_copies(layer):
    again = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    assert json.dumps(again.get_config()) == json.dumps(layer.get_config())
    assert repr(again) == repr(layer)
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.get_config() == layer.get_config() and twin.built
        for got, want in zip(twin.weights, layer.weights, strict=True):
            assert got.tobytes() == want.tobytes() and got.dtype == want.dtype
    with pytest.raises(ValueError, match="config"):
        type(layer).from_config({**layer.get_config(), "nonsense": 1})


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (Dense, {"units": 3, "activation": "relu", "use_bias": True, "trainable": True,
                 "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}},
                 "kernel_regularizer": None, "bias_constraint": None, "dtype": "float32"}),
        (BatchNormalization, {"axis": [4], "momentum": 0.99, "epsilon": 0.001, "center": True,
                              "scale": True, "beta_regularizer": None, "dtype": "float32"}),
        (Reshape, {"target_shape": [2, 3], "dtype": "float32", "trainable": True}),
        (Activation, {"activation": "relu", "dtype": "float32"}),
        (Dropout, {"rate": 0.5, "noise_shape": None, "seed": None, "dtype": "float32"}),
        (InputLayer, {"batch_input_shape": [None, 3], "dtype": "float32", "sparse": False,
                      "ragged": False}),
        (InputLayer, {"batch_shape": [None, 3], "dtype": "float32", "sparse": False,
                      "optional": False}),
    ],
)  # fmt: skip
def test_configs_of_keras(cls, config):
    layer = cls.from_config({"name": "its_name", **config})
    assert layer.name == "its_name"


def test_readable():
    assert repr(Dense(3, "relu", use_bias=False, name="a")) == (
        "Dense(3, activation='relu', use_bias=False, name='a')"
    )
    assert repr(BatchNormalization(axis=1, name="b")) == "BatchNormalization(axis=1, name='b')"
    assert repr(Activation("tanh", name="c")) == "Activation('tanh', name='c')"
    assert repr(Reshape([2, 3], name="d")) == "Reshape((2, 3), name='d')"


def test_public_names():
    assert {"Activation", "BatchNormalization", "Dense", "Dropout", "Flatten", "InputLayer",
            "Reshape", "Sequential"} <= set(conv3dt.__all__)  # fmt: skip
