"""Junk for any argument is answered with ValueError, TypeError or MemoryError, and named.

Hypothesis puts junk in the place of some arguments of calls that are otherwise right. What
comes back is a result, or one of those errors, whose message has the name of an argument.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import conv3dt
from conv3dt import (
    Activation,
    BatchNormalization,
    Dense,
    Dropout,
    Flatten,
    InputLayer,
    Reshape,
    Sequential,
    apply_blocks,
)
from conv3dt.functional import conv3d_transpose
from conv3dt.layer import Conv3DTranspose

ERRORS = (ValueError, TypeError, MemoryError)


class Index:
    """An integer, if its own method is asked."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __index__(self) -> Any:
        return self.value


class Pretends:
    """Says that it is an array."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __array__(self, dtype: object = None, copy: object = None) -> Any:
        return self.value


class Broken:
    """Fails at every protocol."""

    def _fail(self, *_: object, **__: object) -> Any:
        raise TypeError("broken")

    __index__ = __array__ = __len__ = __iter__ = __float__ = __dlpack__ = __bool__ = _fail


def inside_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


# Nothing between 8 and 2**40: a result of gigabytes would be computed.
NUMBERS = (0, 1, 2, 3, 8, -1, -8, 2**40, -(2**40), 2**62, 2**63, 2**64, -(2**63), 10**1000)
SCALARS = (
    None, True, False, 0.0, 1.0, 2.5, -0.0, float("nan"), float("inf"), 1j, "", "1", "same",
    "valid", "relu", "channels_last", "\0", "é" * 1000, b"", b"same", bytearray(8), ..., slice(3),
    range(3), range(0), type, object(), NotImplemented, Decimal(2), Fraction(1, 2),
    memoryview(b"12"), {}, {"class_name": "relu"}, {1: 2}, set(), frozenset({1}), iter(()),
    io.StringIO(), np, Broken(), inside_itself(), Index(1), Index(2**80), Index("1"),
    Pretends(None), Pretends(3),
    Pretends(np.ones((1, 2, 2, 2, 3), np.float32)), Pretends([["a"]]),
)  # fmt: skip
DTYPES = (
    "f2",
    "f4",
    ">f4",
    "f8",
    "g",
    "i1",
    "u8",
    "?",
    "c8",
    "O",
    "U3",
    "S2",
    "M8[s]",
    "V5",
    "f4,i4",
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.integers(0, 4), max_size=7))
    array = np.zeros(shape, draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()):
        array.flags.writeable = False
    if draw(st.integers(0, 9)) == 0:
        return np.ma.masked_array(array)
    if draw(st.integers(0, 9)) == 0 and array.ndim:
        return np.broadcast_to(array, (draw(st.sampled_from((1, 2**40))), *array.shape))
    return array


number = st.sampled_from(NUMBERS) | st.sampled_from([np.int8(3), np.uint64(2), np.bool_(1)])
scalar = number | st.sampled_from(SCALARS) | st.floats(allow_nan=True) | st.text(max_size=5)
junk = (
    scalar
    | arrays()
    | st.recursive(
        scalar, lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner, inner)
    )
)

X, KERNEL = np.ones((1, 2, 2, 2, 3), np.float32), np.ones((2, 2, 2, 4, 3), np.float32)
FUNCTION: dict[str, Any] = {
    "x": X,
    "kernel": KERNEL,
    "bias": np.ones(4, np.float32),
    "strides": 1,
    "padding": "valid",
    "output_padding": None,
    "data_format": "channels_last",
    "dilation_rate": 1,
    "groups": 1,
    "activation": None,
    "out": None,
    "num_threads": None,
    "algorithm": "auto",
}
LAYER: dict[str, Any] = {
    "filters": 4,
    "kernel_size": 2,
    "kernel_initializer": "glorot_uniform",
    "bias_initializer": "zeros",
    "kernel_regularizer": None,
    "bias_regularizer": None,
    "activity_regularizer": None,
    "kernel_constraint": None,
    "bias_constraint": None,
    "input_shape": None,
    "use_bias": True,
    "name": None,
    "dtype": "float32",
    "trainable": True,
} | {name: FUNCTION[name] for name in FUNCTION if name not in ("x", "kernel", "bias", "out")}


def some(arguments: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """One or two of the arguments, with junk. Functions are not junk: they are the user's."""
    one = st.sampled_from(sorted(arguments)).flatmap(
        lambda name: st.tuples(st.just(name), junk.filter(lambda value: not callable(value)))
    )
    return st.lists(one, min_size=1, max_size=2).map(dict)


# What an object is called where its argument is not known.
KINDS = ("activation", "initializer", "regularizer", "constraint", "class_name", "Constant")
WEIGHTS = ("kernel", "bias")


def answered(call: Any, names: Any) -> Any:
    """The result, or None after a proper error."""
    try:
        return call()
    except MemoryError:
        return None
    except (ValueError, TypeError) as error:
        assert any(name in str(error) for name in (*names, *KINDS, *WEIGHTS)), error
        return None


@given(junk=some(FUNCTION))
def test_function(junk: dict[str, Any]) -> None:
    result = answered(lambda: conv3d_transpose(**{**FUNCTION, **junk}), FUNCTION)
    assert result is None or isinstance(result, np.ndarray)


@given(junk=some(LAYER))
def test_layer(junk: dict[str, Any]) -> None:
    layer = answered(lambda: Conv3DTranspose(**{**LAYER, **junk}), LAYER)
    if layer is not None:
        answered(lambda: layer(X), [*LAYER, "x "])
        answered(layer.get_config, LAYER)
        repr(layer)


METHODS = ("build", "compute_output_shape", "__call__", "set_weights", "from_config")


@pytest.mark.parametrize("method", METHODS)
@given(junk=junk)
def test_methods(method: str, junk: Any) -> None:
    layer = Conv3DTranspose(4, 2, input_shape=None if method == "build" else (2, 2, 2, 3))
    answered(lambda: getattr(layer, method)(junk), ["x ", "input_shape", "weights", "config"])


@given(junk=some(LAYER))
def test_configs(junk: dict[str, Any]) -> None:
    config = {**Conv3DTranspose(4, 2).get_config(), **junk}
    answered(lambda: Conv3DTranspose.from_config(config), [*LAYER, "config"])


# ---- chains, pieces, files --------------------------------------------------------


def chain() -> Sequential:
    return Sequential([Conv3DTranspose(4, 2, input_shape=(2, 2, 2, 3)), Activation("relu")])


def blocks(**changed: Any) -> None:
    out = np.zeros((1, 3, 3, 3, 4), np.float32)
    apply_blocks(**{"layer": chain(), "source": X, "target": out, **changed})


# What takes one argument, and the names by which an error may call it.
TAKERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "chain": (Sequential, "layers"),
    "chain of one": (lambda v: Sequential([v]), "layers"),
    "chain's build": (lambda v: chain().build(v), "input_shape"),
    "chain's shape": (lambda v: chain().compute_output_shape(v), "input_shape"),
    "chain's call": (lambda v: chain()(v), "x input_shape"),
    "chain's out": (lambda v: chain()(X, out=v), "out"),
    "chain's weights": (lambda v: chain().set_weights(v), "weights"),
    "Dense": (Dense, "units"),
    "Dense's call": (Dense(3), "x input_shape"),
    "BatchNormalization's axis": (lambda v: BatchNormalization(axis=v), "axis"),
    "BatchNormalization's momentum": (lambda v: BatchNormalization(momentum=v), "momentum"),
    "BatchNormalization's epsilon": (lambda v: BatchNormalization(epsilon=v), "epsilon"),
    "BatchNormalization's build": (lambda v: BatchNormalization().build(v), "input_shape weights"),
    "BatchNormalization's call": (lambda v: BatchNormalization()(v), "x input_shape axis"),
    "BatchNormalization's weights": (
        lambda v: BatchNormalization().set_weights(v), "weights"
    ),
    "Reshape": (Reshape, "target_shape"),
    "Reshape's call": (Reshape((3, -1)), "x input_shape target_shape"),
    "Flatten": (Flatten, "data_format"),
    "Flatten's call": (Flatten(), "x input_shape"),
    "Dropout": (Dropout, "rate"),
    "InputLayer": (InputLayer, "shape"),
    "Activation": (Activation, "activation"),
    "Activation's call": (Activation("relu"), "x input_shape"),
    "blocks of a layer": (lambda v: blocks(layer=v), "layer"),
    "blocks' source": (lambda v: blocks(source=v), "source target"),
    "blocks' target": (lambda v: blocks(target=v), "target"),
    "blocks' max_memory": (lambda v: blocks(max_memory=v), "max_memory"),
    "blocks' progress": (lambda v: blocks(progress=v), "progress"),
    "load": (conv3dt.load, "path"),
    "list_layers": (conv3dt.list_layers, "path"),
    "from_keras": (conv3dt.from_keras, "path"),
    "from_onnx": (conv3dt.from_onnx, "path model"),
    "from_torch": (conv3dt.from_torch, "path module_or_state_dict state"),
    "chain from Keras": (Sequential.from_keras, "path"),
    "chain from ONNX": (Sequential.from_onnx, "path model"),
    "chain from PyTorch": (Sequential.from_torch, "path module"),
}  # fmt: skip


@pytest.mark.parametrize(("take", "names"), TAKERS.values(), ids=TAKERS)
@settings(max_examples=settings().max_examples // 10)
@given(junk=junk.filter(lambda value: not callable(value)))
def test_one_argument(take: Callable[[Any], Any], names: str, junk: Any) -> None:
    with suppress(OSError):  # files that are not there, and names that none can have
        answered(lambda: take(junk), names.split())


@given(junk=junk)
def test_settings(junk: Any) -> None:
    answered(lambda: conv3dt.set_num_threads(junk), ["num_threads"])
    answered(lambda: conv3dt.set_output_pool(junk), ["limit"])
    conv3dt.set_output_pool(None)
