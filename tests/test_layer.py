"""The layer: Keras' arguments, weights, shapes, penalties, dtypes; the function's numbers."""

import copy
import gc
import inspect
import itertools
import pickle
import threading
import weakref

import ml_dtypes
import numpy as np
import oracle
import pytest

from conv3dt import activations, arguments
from conv3dt.functional import conv3d_transpose
from conv3dt.layer import SEEN_SHAPES, Conv3DTranspose

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4, 5, 4)).astype(np.float32)


def layer_of(*args, **options):
    return Conv3DTranspose(*(args or (6, 3)), **{"bias_initializer": "random_normal"} | options)


def test_signature_is_keras_with_three_more():
    parameters = inspect.signature(Conv3DTranspose).parameters
    positional = [p.name for p in parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert positional == ["filters", "kernel_size", "strides", "padding"]
    assert {name: p.default for name, p in parameters.items() if p.default is not p.empty} == {
        "strides": (1, 1, 1), "padding": "valid", "output_padding": None, "data_format": None,
        "dilation_rate": (1, 1, 1), "groups": 1, "activation": None, "use_bias": True,
        "kernel_initializer": "glorot_uniform", "bias_initializer": "zeros",
        "kernel_regularizer": None, "bias_regularizer": None, "activity_regularizer": None,
        "kernel_constraint": None, "bias_constraint": None, "input_shape": None, "name": None,
        "dtype": "float32", "trainable": True, "num_threads": None, "algorithm": "auto",
    }  # fmt: skip


def test_against_the_oracle():
    layer = layer_of(6, (3, 2, 3), strides=2, padding="same", activation="relu")
    y = layer(X)
    want = oracle.conv3d_transpose(X, layer.kernel, layer.bias, (2, 2, 2), (0, 0, 0), (6, 8, 10))
    np.testing.assert_allclose(y, np.maximum(want, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2, "padding": "same"},
        {"strides": (1, 2, 3), "padding": "SAME", "output_padding": (0, 1, 2)},
        {"strides": 2, "output_padding": 1, "activation": "gelu"},
        {"dilation_rate": (1, 2, 3), "padding": "same"},
        {"strides": 2, "dilation_rate": 2, "padding": ((0, 1), (1, 1), (2, 0))},
        {"padding": 1, "strides": 2, "output_padding": 1},
        {"groups": 2, "activation": "softmax", "data_format": "channels_first"},
        {"use_bias": False, "data_format": "channels_first", "algorithm": "im2col"},
        {"num_threads": 3, "algorithm": "direct", "activation": "sigmoid"},
    ],
)
def test_is_the_function_with_memory(options):
    layer = layer_of(**options)
    x = X if layer.data_format == "channels_last" else np.moveaxis(X, -1, 1)
    options = {k: v for k, v in options.items() if k != "use_bias"}
    for batch in (x, x[:1], x):
        y = layer(batch)
        want = conv3d_transpose(batch, layer.kernel, layer.bias, **options)
        np.testing.assert_array_equal(y, want)
        assert y.shape == layer.compute_output_shape(batch.shape) and y.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"filters": 0}, "filters"),
        ({"filters": 2.5}, "filters"),
        ({"kernel_size": (3, 3)}, "kernel_size"),
        ({"strides": 0}, "strides"),
        ({"strides": "2"}, "strides"),
        ({"padding": "causal"}, "padding"),
        ({"padding": -1}, "padding"),
        ({"output_padding": 1}, "output_padding"),
        ({"strides": 2, "output_padding": -1}, "output_padding"),
        ({"data_format": "bogus"}, "data_format"),
        ({"strides": 2, "dilation_rate": 2}, "dilation_rate"),
        ({"strides": (2, 1, 1), "dilation_rate": (1, 1, 2)}, "dilation_rate"),
        ({"groups": 0}, "groups"),
        ({"groups": 4}, "groups"),
        ({"activation": "nonsense"}, "activation"),
        ({"kernel_initializer": "nonsense"}, "initializer"),
        ({"bias_regularizer": "nonsense"}, "regularizer"),
        ({"kernel_constraint": "nonsense"}, "constraint"),
        ({"input_shape": (2, 3, 4)}, "input_shape"),
        ({"input_shape": (2, 3, -4, 1)}, "input_shape"),
        ({"input_shape": (2, 3, 4, None)}, "input_shape"),
        ({"input_shape": (2, 3, 4, 3), "groups": 2}, "groups"),
        ({"input_shape": (2**40, 2**40, 4, 3)}, "bytes"),
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
        ({"dtype": "int32"}, "dtype"),
        ({"dtype": "float8"}, "dtype"),
        ({"dtype": {"class_name": "DTypePolicy"}}, "dtype"),
        ({"num_threads": 0}, "num_threads"),
        ({"algorithm": "fft"}, "algorithm"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(ValueError, match=word):
        Conv3DTranspose(**{"filters": 6, "kernel_size": 3} | options)


def test_built_by_input_shape_by_build_or_by_the_first_call():
    assert layer_of(input_shape=(None, None, None, 4)).kernel.shape == (3, 3, 3, 6, 4)
    first = layer_of(input_shape=(4, None, None, None), data_format="channels_first", groups=2)
    assert first.kernel.shape == (3, 3, 3, 3, 4)
    by_build, by_call = layer_of(), layer_of()
    by_build.build((None, 3, 4, 5, 4))
    by_call(X)
    for layer in (by_build, by_call):
        assert layer.built and layer.kernel.shape == (3, 3, 3, 6, 4) and layer.bias.shape == (6,)


def test_build_again_keeps_the_weights():
    layer = layer_of(input_shape=(3, 4, 5, 4))
    kernel = layer.kernel
    layer.build((None, 9, 9, 9, 4))
    assert (layer.kernel == kernel).all()
    with pytest.raises(ValueError, match="channels"):
        layer.build((None, 9, 9, 9, 5))


def test_before_build():
    layer = layer_of()
    assert not layer.built and layer.weights == layer.get_weights() == layer.losses == []
    for bad in (layer.count_params, lambda: layer.set_weights([]), layer.apply_constraints):
        with pytest.raises(ValueError, match="not built"):
            bad()
    for name in ("kernel", "bias"):
        with pytest.raises(AttributeError, match="before it is built"):
            getattr(layer, name)
        with pytest.raises(ValueError, match="not built"):
            setattr(layer, name, np.zeros(3))
    with pytest.raises(ValueError, match="channels"):
        layer.build((None, 3, 4, 5, None))
    assert not layer.built


def test_a_failed_first_call_builds_nothing():
    layer = layer_of(padding=9)
    with pytest.raises(ValueError, match="padding"):
        layer(X)
    assert not layer.built


@pytest.mark.parametrize("shape", [(), (3,), (3, 4, 5, 4), (1, 1, 3, 4, 5, 4), (2, 3, 4, 5, 3)])
def test_input_shapes_that_do_not_fit(shape):
    layer = layer_of(input_shape=(3, 4, 5, 4))
    with pytest.raises(ValueError, match="x must"):
        layer(np.zeros(shape, np.float32))
    if len(shape) != 5:
        with pytest.raises(ValueError, match="shape of x must be 5 sizes"):
            layer_of()(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="input_shape must be 5 sizes|4 input channels, got 3"):
        layer.compute_output_shape(shape)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 2, 2, 2, 4), int),
        np.zeros((1, 2, 2, 2, 4), bool),
        np.zeros((1, 2, 2, 2, 4), complex),
        np.zeros((1, 2, 2, 2, 4), object),
        np.ma.zeros((1, 2, 2, 2, 4)),
        None,
        "x",
    ],
)
def test_inputs_that_are_no_floats(x):
    for layer in (layer_of(), layer_of(input_shape=(2, 2, 2, 4))):
        with pytest.raises(TypeError, match="x must be .*, got"):
            layer(x)


def unaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    y = raw.view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


class WithArray:
    def __array__(self, dtype=None, copy=None):
        return X


def test_the_same_numbers_in_any_form():
    layer = layer_of(strides=2, activation="tanh")
    want = layer(X)
    for same in (
        X.tolist(), X.astype(">f4"), X.astype(np.float64), unaligned(X), np.asfortranarray(X),
        X[:, ::-1][:, ::-1], np.repeat(X, 2, axis=3)[:, :, :, ::2], WithArray(), X.view(Sub),
    ):  # fmt: skip
        y = layer(same)
        assert type(y) is np.ndarray and y.dtype == np.float32
        np.testing.assert_array_equal(y, want)
    half = X.astype(np.float16)
    np.testing.assert_array_equal(layer(half), layer(half.astype(np.float32)))


class Sub(np.ndarray):
    """A subclass of ndarray."""


def test_float64_beyond_float32_is_inf():
    layer = layer_of(1, 1, kernel_initializer="ones", bias_initializer="zeros")
    y = layer(np.full((1, 1, 1, 1, 1), 1e300))
    assert y.dtype == np.float32 and np.isinf(y).all()


@pytest.mark.parametrize("activation", [None, "relu", "softmax", "glu", np.abs])
def test_out(activation):
    layer = layer_of(activation=activation)
    want = layer(X)
    out = np.full(want.shape, np.nan, np.float32)
    assert layer(X, out=out) is out
    np.testing.assert_array_equal(out, want)
    wide = np.full((*want.shape[:4], want.shape[4] + 4), 7, np.float32)
    layer(X, out=wide[..., 2:-2])
    np.testing.assert_array_equal(wide[..., 2:-2], want)
    assert (wide[..., :2] == 7).all() and (wide[..., -2:] == 7).all()
    with pytest.raises(ValueError, match="shape"):
        layer(X, out=out[..., :-1])
    with pytest.raises(TypeError, match="dtype"):
        layer(X, out=out.astype(np.float64))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        layer(X, out=out)


def test_out_that_is_the_input():
    layer = layer_of(4, 3, padding="same", input_shape=(3, 4, 5, 4))
    x = X.copy()
    np.testing.assert_array_equal(layer(x, out=x), layer(X))


SPECIAL = [-np.inf, -1e30, -200, -20, -3.5, -3, -2.5, -1, -0.5, -1e-6, -0.0]
SPECIAL = np.array([*SPECIAL, *(-v for v in SPECIAL[::-1]), np.nan, 2.9])


@pytest.mark.parametrize("name", [n for n in activations.ACTIVATIONS if n != "threshold"])
def test_fused_activations_are_the_numpy_ones(name, isa, dtype, channels_last):
    """A layer whose results before activation are the special values themselves."""
    act = activations.get(name)
    layer = Conv3DTranspose(
        len(SPECIAL), 1, activation=name, dtype=dtype, input_shape=(2, 3, 6, 1) if channels_last
        else (1, 2, 3, 6), data_format="channels_last" if channels_last else "channels_first",
        kernel_initializer="zeros",
    )  # fmt: skip
    layer.bias = SPECIAL.astype(dtype)
    x = np.zeros((1, 2, 3, 6, 1) if channels_last else (1, 1, 2, 3, 6), dtype)
    row = SPECIAL.astype(dtype)
    before = np.broadcast_to(row, (1, 2, 3, 6, len(row)))
    before = before if channels_last else np.moveaxis(before, -1, 1)
    y = layer(x)
    want = act(np.ascontiguousarray(before))
    eps = np.finfo(dtype).eps
    assert y.shape == want.shape and y.dtype == dtype
    np.testing.assert_allclose(y, want, rtol=16 * eps, atol=eps)


def test_glu_has_its_true_shape():
    layer = layer_of(activation="glu")
    assert layer(X).shape == layer.compute_output_shape(X.shape) == (2, 5, 6, 7, 3)
    assert layer.compute_output_shape((None, None, 4, 5, 4)) == (None, None, 6, 7, 3)
    first = layer_of(activation="glu", data_format="channels_first")
    assert first.compute_output_shape((2, 4, 3, 3, 4)) == (2, 6, 5, 5, 3)  # the last axis
    with pytest.raises(ValueError, match="even"):
        layer_of(5, 3, activation="glu")(X)


def test_the_activation_may_be_changed():
    layer = layer_of()
    linear = layer(X)
    layer.activation = "glu"
    assert layer(X).shape[-1] == 3
    layer.activation = "relu"
    np.testing.assert_array_equal(layer(X), np.maximum(linear, 0))
    with pytest.raises(AttributeError):
        layer.strides = 2


def test_weights():
    layer = layer_of()
    layer(X)
    kernel, bias = layer.get_weights()
    assert layer.count_params() == kernel.size + bias.size == 3**3 * 6 * 4 + 6
    assert [w.shape for w in layer.weights] == [(3, 3, 3, 6, 4), (6,)]
    for view in (layer.kernel, layer.bias, *layer.weights):
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            view.flags.writeable = True
    kernel[...] = 0  # a copy
    assert layer.kernel.any()

    layer.set_weights([kernel, bias + 1])
    np.testing.assert_array_equal(layer(X), np.broadcast_to(bias + 1, (2, 5, 6, 7, 6)))
    layer.bias = np.zeros(6)
    assert layer.bias.dtype == np.float32 and not layer(X).any()
    given = np.ones((3, 3, 3, 6, 4), np.float32)
    layer.kernel = given
    given[...] = 5  # not kept
    assert (layer.kernel == 1).all()
    np.testing.assert_array_equal(layer(X), conv3d_transpose(X, layer.kernel, layer.bias))


def test_weights_that_do_not_fit_change_nothing():
    layer = layer_of(input_shape=(3, 4, 5, 4))
    kernel, bias = layer.get_weights()
    for bad in ([], [kernel], [kernel, bias, bias]):
        with pytest.raises(ValueError, match=f"weights must be 2 arrays .*, got {len(bad)}"):
            layer.set_weights(bad)
    for bad, name in (([bias, kernel], "kernel"), ([kernel, bias[:-1]], "bias")):
        with pytest.raises(ValueError, match=f"{name} must have shape .*, got"):
            layer.set_weights(bad)
    for bad in (kernel[:1], kernel.ravel(), 1.0):
        with pytest.raises(ValueError, match="kernel must have shape"):
            layer.kernel = bad
    with pytest.raises(ValueError, match="bias must have shape"):
        layer.bias = np.zeros(7)
    with pytest.raises(TypeError, match="kernel"):
        layer.kernel = kernel.astype(int)
    np.testing.assert_array_equal(layer.kernel, kernel)
    np.testing.assert_array_equal(layer.bias, bias)


def test_without_bias():
    layer = layer_of(use_bias=False, input_shape=(3, 4, 5, 4))
    assert layer.bias is None and len(layer.weights) == 1
    layer.set_weights([np.ones((3, 3, 3, 6, 4), np.float32)])
    with pytest.raises(ValueError, match="use_bias"):
        layer.bias = np.zeros(6)


def test_trainable():
    layer = layer_of(input_shape=(3, 4, 5, 4), trainable=False)
    assert layer.trainable_weights == [] and len(layer.weights) == 2
    layer.trainable = True
    assert len(layer.trainable_weights) == 2


def test_losses():
    layer = layer_of(
        activity_regularizer="l1", kernel_regularizer="l2", bias_regularizer="l1", activation="relu"
    )
    assert layer.losses == []
    y = layer(X)
    activity = 0.01 * np.abs(y, dtype=np.float64).sum() / 2
    kernel = 0.01 * (layer.kernel.astype(np.float64) ** 2).sum()
    bias = 0.01 * np.abs(layer.bias, dtype=np.float64).sum()
    assert layer.losses == pytest.approx([activity, kernel, bias], rel=1e-12)
    y = layer(X[:1])
    assert layer.losses[0] == pytest.approx(0.01 * np.abs(y).sum(dtype=np.float64), rel=1e-6)
    layer.trainable = False
    assert len(layer.losses) == 1
    layer(X[:0])
    assert layer.losses == [0.0]


def test_losses_of_a_regularizer_for_matrices():
    layer = layer_of(kernel_regularizer="orthogonal_regularizer", input_shape=(3, 4, 5, 4))
    with pytest.raises(ValueError, match="2 axes"):
        _ = layer.losses


def test_apply_constraints():
    layer = layer_of(
        kernel_constraint="unit_norm", bias_constraint="non_neg", input_shape=(3, 4, 5, 4)
    )
    layer.bias = bias = np.linspace(-1, 1, 6, dtype=np.float32)
    layer.apply_constraints()
    np.testing.assert_allclose((layer.kernel.astype(float) ** 2).sum(axis=0), 1, rtol=1e-4)
    np.testing.assert_array_equal(layer.bias, np.maximum(bias, 0))
    np.testing.assert_array_equal(layer(X), conv3d_transpose(X, layer.kernel, layer.bias))


def test_initializers():
    given = RNG.normal(size=(3, 3, 3, 6, 4))
    layer = layer_of(kernel_initializer=given, bias_initializer="ones", input_shape=(3, 4, 5, 4))
    np.testing.assert_array_equal(layer.kernel, given.astype(np.float32))
    assert (layer.bias == 1).all()
    for bad in (
        "identity",
        "stft",
        given[:1, :1, :1, :, :1].repeat(2, 0),
        lambda shape, dtype: 1.0,
    ):
        with pytest.raises(ValueError, match="kernel_initializer must return"):
            layer_of(kernel_initializer=bad, input_shape=(3, 4, 5, 4))
    limit = np.sqrt(6 / (27 * 6 + 27 * 4))
    for default in (None, "glorot_uniform"):
        kernel = layer_of(kernel_initializer=default, input_shape=(3, 4, 5, 4)).kernel
        assert 0.9 * limit < np.abs(kernel).max() <= limit


@pytest.mark.parametrize(
    ("dtype", "weights", "result"),
    [
        ("float32", np.float32, np.float32),
        (np.float64, np.float64, np.float64),
        (np.dtype("float16"), np.float16, np.float16),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16, ml_dtypes.bfloat16),
        ("mixed_float16", np.float32, np.float16),
        ("mixed_bfloat16", np.float32, ml_dtypes.bfloat16),
        (
            {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}},
            np.float32,
            np.float16,
        ),
        (None, np.float32, np.float32),
    ],
)
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_dtype_policies(dtype, weights, result, activation):
    layer = layer_of(dtype=dtype, activation=activation)
    exact = layer_of(dtype="float64", activation=activation, input_shape=X.shape[1:])
    for x in (X, X.astype(np.float16), X.astype(ml_dtypes.bfloat16), X.astype(np.float64)):
        y = layer(x)
        assert y.dtype == result and layer.kernel.dtype == layer.bias.dtype == weights
        assert layer.dtype == np.dtype(weights).name
        exact.set_weights([w.astype(np.float64) for w in layer.get_weights()])
        tolerance = 8 * float(ml_dtypes.finfo(result).eps)
        want = exact(x)
        np.testing.assert_allclose(y.astype(np.float64), want, rtol=tolerance, atol=10 * tolerance)
        out = np.empty(y.shape, result)
        assert layer(x, out=out) is out
        np.testing.assert_array_equal(out.view(np.uint8), y.view(np.uint8))


@pytest.mark.parametrize("batch", [None, 2])
def test_compute_output_shape(batch):
    layer = layer_of(strides=(1, 2, 3), padding="same")
    assert layer.compute_output_shape((batch, 3, None, 5, 4)) == (batch, 3, None, 15, 6)
    assert layer.compute_output_shape((batch, 3, None, 5, None)) == (batch, 3, None, 15, 6)
    assert not layer.built
    first = layer_of(padding=((5, 5), (0, 0), (0, 0)), data_format="channels_first")
    assert first.compute_output_shape((batch, 4, None, 4, 5)) == (batch, 6, None, 6, 7)
    with pytest.raises(ValueError, match="padding"):
        first.compute_output_shape((batch, 4, 3, 4, 5))
    for bad in ((1, 2, 3, 4), (1, 2, 3, 4.5, 1), "shape", 5, (1, -2, 3, 4, 4)):
        with pytest.raises(ValueError, match="input_shape"):
            layer.compute_output_shape(bad)


def test_empty_inputs():
    layer = layer_of(padding="same", input_shape=(3, 4, 5, 4))
    assert layer(X[:0]).shape == (0, 3, 4, 5, 6)
    assert layer(X[:, :0]).shape == (2, 0, 4, 5, 6)
    no_channels = layer_of(activation="relu")
    y = no_channels(np.zeros((1, 2, 2, 2, 0), np.float32))
    assert y.shape == (1, 4, 4, 4, 6)
    np.testing.assert_array_equal(y[0, 0, 0, 0], np.maximum(no_channels.bias, 0))


def test_names(monkeypatch):
    monkeypatch.setattr("conv3dt.names._counters", {})

    class MyUpBlock3D(Conv3DTranspose):
        pass

    names = [cls(2, 2).name for cls in (Conv3DTranspose, Conv3DTranspose, MyUpBlock3D)]
    assert names == ["conv3d_transpose", "conv3d_transpose_1", "my_up_block3d"]
    assert Conv3DTranspose(2, 2, name="up").name == "up"
    assert Conv3DTranspose(2, 2).name == "conv3d_transpose_2"


def test_data_format_of_keras_json(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert Conv3DTranspose(2, 2).data_format == "channels_last"
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first"}')
    assert Conv3DTranspose(2, 2).data_format == "channels_first"


def test_repr():
    layer = Conv3DTranspose(8, 3, 2, "same", activation="relu", dtype="mixed_float16", name="up")
    assert repr(layer) == (
        "Conv3DTranspose(8, (3, 3, 3), strides=(2, 2, 2), padding='same', "
        "dtype='mixed_float16', activation='relu', name='up')"
    )


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
@pytest.mark.parametrize("built", [True, False])
def test_copies(duplicate, built):
    layer = layer_of(
        strides=2, activation="leaky_relu", kernel_regularizer="l2", kernel_constraint="max_norm",
        kernel_initializer=arguments_free_initializer, dtype="mixed_bfloat16",
    )  # fmt: skip
    if built:
        layer(X)
    again = duplicate(layer)
    assert again.built == built and again.get_config() == layer.get_config()
    if built:
        before = layer(X)
        np.testing.assert_array_equal(again(X), before)
        assert not again.kernel.flags.writeable
        again.kernel = again.kernel + np.float32(1)
        np.testing.assert_array_equal(layer(X), before)


def test_a_copy_shares_the_weights_until_one_is_set():
    layer = layer_of(strides=2)
    layer(X)
    again = copy.copy(layer)
    assert np.shares_memory(again.kernel, layer.kernel)
    before = layer(X)
    again.activation = "relu"
    np.testing.assert_array_equal(again(X), np.maximum(before, 0))
    again.bias = np.zeros(6, np.float32)
    np.testing.assert_array_equal(layer(X), before)


def arguments_free_initializer(shape, dtype=None):
    return np.linspace(-1, 1, int(np.prod(shape))).reshape(shape).astype(dtype)


def test_a_dead_layer_is_freed_at_once():
    gc.disable()
    try:
        layer = layer_of()
        layer(X)
        layer(X)
        dead = weakref.ref(layer)
        del layer
        assert dead() is None
    finally:
        gc.enable()


def test_many_shapes_do_not_pile_up(monkeypatch):
    calls = []
    make = arguments.make_problem
    monkeypatch.setattr(arguments, "make_problem", lambda *a, **k: calls.append(a) or make(*a, **k))
    layer = layer_of(1, 1)
    layer(np.zeros((1, 1, 1, 1, 1), np.float32))
    calls.clear()
    for _, depth in itertools.product(range(2), range(1, SEEN_SHAPES + 1)):
        layer(np.zeros((1, depth, 1, 1, 1), np.float32))
    assert len(calls) == SEEN_SHAPES - 1  # the first shape was known; none is resolved twice
    for depth in range(1, 4 * SEEN_SHAPES):
        layer(np.zeros((1, depth, 1, 1, 1), np.float32))
    assert layer._seen.cache_info().currsize == SEEN_SHAPES


def test_threads_share_an_unbuilt_layer():
    layer = layer_of(strides=2)
    results = [None] * 8
    barrier = threading.Barrier(8)

    def call(i):
        barrier.wait()
        results[i] = layer(X)

    workers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for y in results:
        np.testing.assert_array_equal(y, results[0])
