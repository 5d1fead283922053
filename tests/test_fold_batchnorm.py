"""fold_batchnorm: the layer then computes itself followed by the normalization."""

import numpy as np
import oracle
import pytest

from conv3dt import Conv3DTranspose

RNG = np.random.default_rng(0)
GAMMA, BETA, MEAN = RNG.normal(size=(3, 6))
VARIANCE = RNG.uniform(0.1, 2, 6)


def layer_of(channels=4, **options):
    options = {"bias_initializer": "random_normal", "name": "up"} | options
    first = options.get("data_format") == "channels_first"
    shape = (channels, 3, 4, 5) if first else (3, 4, 5, channels)
    return Conv3DTranspose(6, (2, 3, 2), strides=(1, 2, 3), **options, input_shape=shape)


def normalized(y, gamma, beta, epsilon, axis):
    shape = [1] * 5
    shape[axis] = 6
    gamma, beta, mean, variance = (
        np.asarray(a, np.float64).reshape(shape) for a in (gamma, beta, MEAN, VARIANCE)
    )
    return gamma * (y - mean) / np.sqrt(variance + epsilon) + beta


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_against_the_formula(use_bias, groups, data_format):
    options = {"groups": groups, "use_bias": use_bias, "data_format": data_format}
    layer = layer_of(**options, dtype="float64")
    last = data_format == "channels_last"
    x = RNG.normal(size=(2, 3, 4, 5, 4) if last else (2, 4, 3, 4, 5))
    y = oracle.conv3d_transpose(
        x, layer.kernel, layer.bias, (1, 2, 3), (0, 0, 0), (4, 9, 15), groups=groups,
        channels_last=last,
    )  # fmt: skip
    layer.fold_batchnorm(GAMMA, BETA, MEAN, VARIANCE)
    assert layer.use_bias and len(layer.weights) == 2
    want = normalized(y, GAMMA, BETA, 1e-3, 4 if last else 1)
    np.testing.assert_allclose(layer(x), want, rtol=1e-12, atol=1e-12)
    config = layer.get_config()
    assert Conv3DTranspose.from_config(config).use_bias and config["use_bias"]


def test_without_scale_or_center():
    x = RNG.normal(size=(1, 3, 4, 5, 4))
    plain = layer_of(dtype="float64")
    folded = Conv3DTranspose.from_config(plain.get_config())
    folded.build(x.shape)
    folded.set_weights(plain.get_weights())
    folded.fold_batchnorm(None, None, MEAN, VARIANCE, epsilon=1e-5)
    want = normalized(plain(x), np.ones(6), np.zeros(6), 1e-5, 4)
    np.testing.assert_allclose(folded(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "mixed_float16"])
def test_rounded_once(dtype):
    """The weights are those of the exact formula, cast to the layer's dtype."""
    layer = layer_of(dtype=dtype)
    kernel, bias = (w.astype(np.float64) for w in layer.weights)
    scale = GAMMA / np.sqrt(VARIANCE + 0.25)
    layer.fold_batchnorm(GAMMA, BETA, MEAN, VARIANCE, 0.25)
    want = (kernel * scale[:, None]).astype(layer.kernel.dtype)
    assert layer.kernel.tobytes() == want.tobytes()
    want = ((bias - MEAN) * scale + BETA).astype(layer.kernel.dtype)
    assert layer.bias.tobytes() == want.tobytes()


def test_activation_afterwards():
    layer = layer_of()
    layer.fold_batchnorm(GAMMA, BETA, MEAN, VARIANCE)
    before = layer(np.ones((1, 3, 4, 5, 4), np.float32))
    layer.activation = "relu"
    after = layer(np.ones((1, 3, 4, 5, 4), np.float32))
    np.testing.assert_array_equal(after, np.maximum(before, 0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gamma": GAMMA[:5]}, ValueError, r"gamma must have shape \(6,\)"),
        ({"beta": 0.0}, ValueError, r"beta must have shape \(6,\)"),
        ({"mean": [0] * 6}, TypeError, "mean must be"),
        ({"variance": None}, TypeError, "variance must be"),
        ({"variance": -VARIANCE}, ValueError, "variance . epsilon must be positive"),
        ({"variance": np.zeros(6), "epsilon": 0}, ValueError, "variance . epsilon must be"),
        ({"variance": np.full(6, np.nan)}, ValueError, "variance . epsilon must be positive"),
    ],
)
def test_bad_arguments_change_nothing(change, error, message):
    layer = layer_of(use_bias=False)
    (kernel,) = layer.get_weights()
    given = {"gamma": GAMMA, "beta": BETA, "mean": MEAN, "variance": VARIANCE}
    with pytest.raises(error, match=message):
        layer.fold_batchnorm(**given | change)
    assert not layer.use_bias
    np.testing.assert_array_equal(layer.kernel, kernel)


def test_not_after_an_activation():
    with pytest.raises(ValueError, match="linear activation, got tanh"):
        layer_of(activation="tanh").fold_batchnorm(GAMMA, BETA, MEAN, VARIANCE)


def test_not_before_build():
    with pytest.raises(ValueError, match="not built"):
        Conv3DTranspose(6, 3).fold_batchnorm(GAMMA, BETA, MEAN, VARIANCE)
