"""The real Keras layer, where Keras is installed: the same numbers, penalties and configs."""

import itertools
import json
import os

import numpy as np
import pytest

from conv3dt import activations
from conv3dt.layer import Conv3DTranspose

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("JAX_ENABLE_X64", "1")  # else JAX has no float64
keras = pytest.importorskip(
    "keras", reason="needs Keras 3 and one of its backends (the parity extra)"
)
if int(keras.__version__.split(".")[0]) < 3:
    pytest.skip(f"compares with Keras 3, found {keras.__version__}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.default_rng(0)
TENSORFLOW = keras.backend.backend() == "tensorflow"


def pair(x_shape=(2, 3, 4, 5, 4), **options):
    """Our layer and Keras', with the same arguments and weights."""
    options = {"filters": 6, "kernel_size": 3} | options
    ours, theirs = Conv3DTranspose(**options), keras.layers.Conv3DTranspose(**options)
    ours.build(x_shape)
    theirs.build(x_shape)
    ours.set_weights([RNG.normal(size=w.shape).astype(w.dtype) for w in ours.weights])
    theirs.set_weights(ours.get_weights())
    return ours, theirs


def assert_same(ours, theirs, x, rtol=1e-5, atol=1e-5):
    y = ours(x)
    want = keras.ops.convert_to_numpy(theirs(x))
    assert y.dtype == want.dtype
    assert y.shape == want.shape == ours.compute_output_shape(x.shape)
    np.testing.assert_allclose(y.astype(float), want.astype(float), rtol=rtol, atol=atol)


def possible(kernel, stride, dilation, padding, output_padding):
    """Whether Keras computes it: not stride with dilation; TensorFlow no dilation on a CPU, and
    not even K exactly."""
    if stride > 1 and dilation > 1 or output_padding is not None and output_padding >= stride:
        return False
    extent = (kernel - 1) * dilation + 1
    even_same = padding == "same" and extent % 2 == 0 and output_padding == 0
    return not (TENSORFLOW and (even_same or dilation > 1))


GEOMETRIES = [
    case
    for case in itertools.product((1, 2, 3, 4), (1, 2, 3), (1, 2), ("valid", "same"), (None, 0, 1))
    if possible(*case)
]


@pytest.mark.parametrize(("kernel", "stride", "dilation", "padding", "output_padding"), GEOMETRIES)
def test_geometry(kernel, stride, dilation, padding, output_padding):
    ours, theirs = pair(
        filters=3, kernel_size=kernel, strides=stride, dilation_rate=dilation, padding=padding,
        output_padding=output_padding,
    )  # fmt: skip
    assert_same(ours, theirs, RNG.normal(size=(2, 3, 4, 5, 4)).astype(np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (1, 2, 3), "strides": (3, 2, 1), "padding": "same"},
        {"use_bias": False},
        {"strides": 2, "padding": "same", "output_padding": (0, 1, 1)},
        {"dtype": "float64"},
    ],
)
def test_arguments(options):
    x = RNG.normal(size=(2, 3, 4, 5, 4)).astype(options.get("dtype", "float32"))
    assert_same(*pair(**options), x)


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow has no channels_first on a CPU")
def test_channels_first():
    ours, theirs = pair((2, 4, 3, 4, 5), strides=2, padding="same", data_format="channels_first")
    x = RNG.normal(size=(2, 4, 3, 4, 5)).astype(np.float32)
    assert_same(ours, theirs, x)


@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "mixed_bfloat16"])
def test_half_types(policy):
    x = RNG.normal(size=(2, 3, 4, 5, 4)).astype(np.float16)
    ours, theirs = pair(dtype=policy)
    tolerance = 0.02 if "bfloat16" not in policy else 0.1
    assert_same(ours, theirs, x, rtol=tolerance, atol=3 * tolerance)


POINTS = np.concatenate([np.linspace(-8, 8, 64), [-30, 30, -1, 1, -0.5, 0.5, 0, 3]])
NAMES = [n for n in activations.ACTIVATIONS if n != "threshold"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_activations(name, dtype):
    x = POINTS.astype(dtype).reshape(9, 8)
    want = keras.ops.convert_to_numpy(keras.activations.get(name)(keras.ops.convert_to_tensor(x)))
    got = activations.get(name)(x)
    # TensorFlow's gelu and leaky_relu, and tanh on JAX, are computed in float32 to some part.
    single = ("gelu", "leaky_relu") if TENSORFLOW else ("gelu", "leaky_relu", "tanh")
    eps = np.finfo("float32" if name in single else dtype).eps
    np.testing.assert_allclose(got, want, rtol=64 * eps, atol=64 * eps)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("relu", {"negative_slope": 0.25, "max_value": 2.0, "threshold": 0.5}),
        ("relu", {"max_value": 2.0, "threshold": -0.5}),
        ("relu", {"max_value": 6}),
        ("leaky_relu", {"negative_slope": 0.1}),
        ("elu", {"alpha": 0.3}),
        ("celu", {"alpha": 0.3}),
        ("gelu", {"approximate": True}),
        ("hard_shrink", {"threshold": 0.2}),
        ("soft_shrink", {"threshold": 0.2}),
        ("squareplus", {"b": 2.0}),
        ("threshold", {"threshold": 0.5, "default_value": -3.0}),
        ("softmax", {"axis": 0}),
        ("log_softmax", {"axis": 0}),
        ("sparsemax", {"axis": 0}),
        ("glu", {"axis": 1}),
    ],
)
def test_activations_with_options(name, options):
    x = POINTS.astype(np.float32).reshape(9, 8)
    theirs = keras.activations.get(name)(keras.ops.convert_to_tensor(x), **options)
    got = activations.get(name)(x, **options)
    np.testing.assert_allclose(got, keras.ops.convert_to_numpy(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["relu", "softmax", "gelu", "glu", "sparsemax", "hard_sigmoid"])
def test_fused_activations(name):
    x = RNG.normal(size=(2, 3, 4, 5, 4)).astype(np.float32)
    ours, theirs = pair(activation=name)
    want = keras.ops.convert_to_numpy(theirs(x))
    np.testing.assert_allclose(ours(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["l1", "l2", "l1l2", "L1L2"])
def test_losses(kind):
    x = RNG.normal(size=(2, 3, 4, 5, 4)).astype(np.float32)
    options = {f"{what}_regularizer": kind for what in ("kernel", "bias", "activity")}
    ours, theirs = pair(**options)
    ours(x), theirs(x)
    np.testing.assert_allclose(ours.losses, [float(v) for v in theirs.losses], rtol=1e-5)
    ours.trainable = theirs.trainable = False
    ours(x), theirs(x)
    np.testing.assert_allclose(ours.losses, [float(v) for v in theirs.losses], rtol=1e-5)


@pytest.mark.parametrize("kind", ["max_norm", "min_max_norm", "non_neg", "unit_norm"])
def test_constraints(kind):
    ours, _ = pair(kernel_constraint=kind, bias_constraint="non_neg")
    kernel, bias = ours.get_weights()
    ours.apply_constraints()
    constraint = keras.constraints.get(kind)
    want = keras.ops.convert_to_numpy(constraint(keras.ops.convert_to_tensor(kernel)))
    np.testing.assert_allclose(ours.kernel, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours.bias, np.maximum(bias, 0))


INITIALIZERS = [
    "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform",
    "random_normal", "random_uniform", "truncated_normal", "variance_scaling", "orthogonal",
]  # fmt: skip


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers(name):
    shape = (3, 3, 3, 40, 30)
    ours = Conv3DTranspose(40, 3, kernel_initializer=name, input_shape=(2, 2, 2, 30)).kernel
    theirs = keras.ops.convert_to_numpy(keras.initializers.get(name)(shape))
    assert ours.std() == pytest.approx(theirs.std(), rel=0.02)
    largest = np.abs(theirs).max()
    bounded = "uniform" in name or name == "variance_scaling"  # else the largest has a tail
    assert np.abs(ours).max() == pytest.approx(largest, rel=0.1 if bounded else 0.35)


CONFIGS = [
    {},
    {"strides": 2, "padding": "same", "output_padding": 1, "name": "up"},
    {"dilation_rate": (1, 2, 3), "data_format": "channels_first", "use_bias": False},
    {"dtype": "mixed_float16", "trainable": False},
    {"activation": "hard_swish", "activity_regularizer": "l2"},
    {"activation": {"class_name": "LeakyReLU", "config": {"negative_slope": 0.1}}},
    {"activation": {"class_name": "ReLU", "config": {"max_value": 4.0}}},
    {"activation": {"class_name": "ELU", "config": {"alpha": 0.5}}},
    {"kernel_initializer": "he_normal", "bias_initializer": "ones", "kernel_regularizer": "l1l2"},
    {"kernel_constraint": "min_max_norm", "bias_constraint": "non_neg"},
    *({"kernel_initializer": name} for name in INITIALIZERS),
]


def through_json(config):
    return json.loads(json.dumps(config))


@pytest.mark.parametrize("options", CONFIGS)
def test_keras_reads_our_config_and_we_read_its(options):
    ours = Conv3DTranspose(4, 3, **options)
    config = through_json(ours.get_config())
    theirs = keras.layers.Conv3DTranspose.from_config(config)
    back = through_json(theirs.get_config())
    assert set(back) == set(config)
    again = Conv3DTranspose.from_config(back)
    assert again.get_config() == ours.get_config()
    assert type(theirs.kernel_initializer).__name__ == type(ours.kernel_initializer).__name__


def test_names_are_complete():
    theirs = {n for n in dir(keras.activations) if not n.startswith("_")}
    theirs -= {"deserialize", "get", "serialize"}
    assert set(activations.ACTIVATIONS) == theirs
