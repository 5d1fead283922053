"""Configs: lossless here, readable by Keras, and read as Keras 2 and Keras 3 write them."""

import json

import numpy as np
import pytest

from conv3dt import initializers
from conv3dt.layer import Conv3DTranspose

KERAS_KEYS = [
    "name", "trainable", "dtype", "filters", "kernel_size", "strides", "padding",
    "output_padding", "data_format", "dilation_rate", "activation", "use_bias",
    "kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer",
    "activity_regularizer", "kernel_constraint", "bias_constraint",
]  # fmt: skip


def wrapped(module, name, config):
    return {"module": module, "class_name": name, "config": config, "registered_name": None}


# What keras.layers.Conv3DTranspose(3, 2, strides=2, activation="relu", kernel_regularizer="l2",
# kernel_constraint="max_norm", dtype="mixed_float16").get_config() returns in Keras 3.15.1.
KERAS_3 = {
    "name": "conv3d_transpose",
    "trainable": True,
    "dtype": wrapped("keras", "DTypePolicy", {"name": "mixed_float16"}),
    "filters": 3,
    "kernel_size": [2, 2, 2],
    "strides": [2, 2, 2],
    "padding": "valid",
    "output_padding": None,
    "data_format": "channels_last",
    "dilation_rate": [1, 1, 1],
    "activation": "relu",
    "use_bias": True,
    "kernel_initializer": wrapped(
        "keras.initializers",
        "GlorotUniform",
        {"seed": None, "input_axes": None, "output_axes": None},
    ),
    "bias_initializer": wrapped("keras.initializers", "Zeros", {}),
    "kernel_regularizer": wrapped("keras.regularizers", "L2", {"l2": 0.01}),
    "bias_regularizer": None,
    "activity_regularizer": None,
    "kernel_constraint": wrapped("keras.constraints", "MaxNorm", {"max_value": 2, "axis": 0}),
    "bias_constraint": None,
}
# The form of Keras 2: groups, no dilation_rate, plain names, a string as dtype.
KERAS_2 = {
    "name": "up",
    "trainable": True,
    "batch_input_shape": [None, 4, 4, 4, 3],
    "dtype": "float32",
    "filters": 3,
    "kernel_size": [2, 2, 2],
    "strides": [2, 2, 2],
    "padding": "same",
    "data_format": "channels_last",
    "groups": 1,
    "activation": "relu",
    "use_bias": True,
    "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}},
    "bias_initializer": {"class_name": "Zeros", "config": {}},
    "kernel_regularizer": {"class_name": "L2", "config": {"l2": 0.009999999776482582}},
    "bias_regularizer": None,
    "activity_regularizer": None,
    "kernel_constraint": {"class_name": "MaxNorm", "config": {"max_value": 2, "axis": 0}},
    "bias_constraint": None,
    "output_padding": None,
}


def through_json(config):
    return json.loads(json.dumps(config))


def test_keys_are_those_of_keras():
    assert list(Conv3DTranspose(2, 3).get_config()) == KERAS_KEYS
    assert list(KERAS_3) == KERAS_KEYS


def test_keras_3_config_comes_back_the_same():
    layer = Conv3DTranspose.from_config(KERAS_3)
    assert not layer.built
    assert through_json(layer.get_config()) == KERAS_3
    assert layer.dtype == "float32" and layer.dtype_policy == "mixed_float16"


def test_keras_2_config():
    layer = Conv3DTranspose.from_config(KERAS_2)
    assert layer.built and layer.kernel.shape == (2, 2, 2, 3, 3)
    assert (layer.name, layer.strides, layer.groups) == ("up", (2, 2, 2), 1)
    assert layer.activation.name == "relu" and layer.dilation_rate == (1, 1, 1)
    assert layer.kernel_regularizer.l2 == 0.009999999776482582
    again = Conv3DTranspose.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": 3, "num_threads": 2, "algorithm": "im2col"},
        {"padding": ((0, 1), (1, 1), (2, 0)), "strides": 2, "dilation_rate": 3},
        {"padding": "SAME", "output_padding": (0, 1, 0), "strides": (1, 2, 1)},
        {"data_format": "channels_first", "use_bias": False, "trainable": False},
        {"dtype": "bfloat16", "name": "up", "activation": "swish"},
        {"activation": {"class_name": "LeakyReLU", "config": {"alpha": 0.25}}},
        {"activation": {"class_name": "gelu", "config": {"approximate": True}}},
        {"activation": {"class_name": "hard_sigmoid", "config": {"slope": 0.2}}},
        {"activation": {"class_name": "threshold", "config": {"threshold": 1, "default_value": 2}}},
        {"kernel_initializer": "he_normal", "bias_initializer": initializers.Constant(2.0)},
        {"kernel_initializer": initializers.VarianceScaling(2.0, "fan_out", "uniform", 7)},
        {"kernel_initializer": np.ones((2, 2, 2, 6, 1))},
        {"kernel_regularizer": "l1_l2", "bias_regularizer": "l1", "activity_regularizer": "l2"},
        {"kernel_constraint": "min_max_norm", "bias_constraint": "nonneg"},
    ],
)
def test_round_trip(options):
    layer = Conv3DTranspose(6, 2, **options)
    config = layer.get_config()
    assert set(config) - set(KERAS_KEYS) == set(options) & {"groups", "num_threads", "algorithm"}
    again = Conv3DTranspose.from_config(through_json(config))
    assert again.get_config() == config and again.activation == layer.activation


def clip(x):
    return np.clip(x, 0, 1)


class Halves(initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return np.full(shape, 0.5, dtype)


def largest(w):
    return np.abs(w).max()


def test_custom_objects():
    layer = Conv3DTranspose(
        2, 1, activation=clip, kernel_initializer=Halves(), kernel_regularizer=largest,
        input_shape=(2, 2, 2, 1),
    )  # fmt: skip
    assert layer.losses == [0.5]
    config = through_json(layer.get_config())
    again = Conv3DTranspose.from_config(
        config, {"clip": clip, "Halves": Halves, "largest": largest}
    )
    assert again.get_config() == layer.get_config()
    assert (again(np.full((1, 1, 1, 1, 1), 9.0)) == 1).all() and again.losses == [0.5]
    with pytest.raises(ValueError, match="custom_objects"):
        Conv3DTranspose.from_config(config)


def test_subclasses():
    class Up(Conv3DTranspose):
        pass

    assert type(Up.from_config(Up(2, 3).get_config())) is Up


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volume": 3}, "config must hold the arguments of Conv3DTranspose, got .*'volume'"),
        ({"filters": None}, "filters must be a positive integer, got None"),
        ({"activation": "nonsense"}, "activation must be .*, got 'nonsense'"),
        ({"dtype": "mixed_int8"}, "dtype must be .*, got 'mixed_int8'"),
        ({"groups": 2}, "groups 2 and filters 3"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        Conv3DTranspose.from_config(KERAS_3 | change)
    with pytest.raises(ValueError, match="config must hold .*, got .*'name'"):
        Conv3DTranspose.from_config({"name": "up"})


def test_unnamed_functions_cannot_be_stored():
    with pytest.raises(ValueError, match="activation must have a name"):
        Conv3DTranspose(2, 3, activation=lambda x: x).get_config()
