"""Other packages that compute the same layer, where they are installed: `bench` times them.

Each gets the arrays in the layout it works in, before the clock starts.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..layer import Conv3DTranspose
from ..problem import Axis, effective_kernel


class Unable(Exception):
    """Why a package does not take part."""


@dataclass(frozen=True)
class Contestant:
    """A call to time, what it gives in the layer's layout, and what is to be said of it."""

    call: Callable[[], Any]
    result: Callable[[], np.ndarray]
    note: str


@dataclass(frozen=True)
class Peer:
    """A package: its name, and what makes a contestant of it or raises `Unable`."""

    name: str
    make: Callable[[Conv3DTranspose, np.ndarray, int], Contestant]


def torch(layer: Conv3DTranspose, x: np.ndarray, threads: int) -> Contestant:
    """PyTorch, channels first; crops that it cannot name are cut from a larger result."""
    package = _package("torch")
    package.set_num_threads(threads)
    axes = _axes(layer, x)
    pads = [axis.crop for axis in axes]
    extra = [axis.out - _full(axis) + 2 * axis.crop for axis in axes]
    limits = [max(axis.stride, axis.dilation) for axis in axes]
    named = all(0 <= p < limit for p, limit in zip(extra, limits, strict=True))
    if not named:
        pads, extra = [0, 0, 0], [0, 0, 0]
        if any(axis.crop + axis.out > _full(axis) for axis in axes):
            raise Unable("PyTorch has no such output size")
    weight = package.from_numpy(np.ascontiguousarray(layer.kernel.transpose(4, 3, 0, 1, 2)))
    bias = None if layer.bias is None else package.from_numpy(layer.bias.copy())
    given = package.from_numpy(_channels_first(layer, x))
    cut = (..., *(slice(axis.crop, axis.crop + axis.out) for axis in axes))
    activation = _activation(package, layer)

    def call() -> Any:
        with package.inference_mode():
            y = package.nn.functional.conv_transpose3d(
                given, weight, bias, layer.strides, pads, extra, layer.groups, layer.dilation_rate
            )
            return activation(y if named else y[cut])

    return Contestant(
        call,
        lambda: _from_channels_first(layer, call().numpy()),
        f"{package.__version__}" + ("" if named else ", cut from the whole result"),
    )


def tensorflow(layer: Conv3DTranspose, x: np.ndarray, threads: int) -> Contestant:
    """TensorFlow, channels last, with its own paddings alone."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    package = _package("tensorflow")
    if not isinstance(layer.padding, str) or layer.output_padding is not None:
        raise Unable("TensorFlow has no explicit padding")
    if layer.groups > 1 or max(layer.dilation_rate) > 1:
        raise Unable("TensorFlow on a CPU has neither groups nor dilation")
    try:
        package.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:
        pass  # it has been used in this process already
    given = package.constant(np.moveaxis(_channels_first(layer, x), 1, -1))
    kernel = package.constant(layer.kernel)
    bias = None if layer.bias is None else package.constant(layer.bias)
    out = [axis.out for axis in _axes(layer, x)]
    activation = _activation(package.nn, layer)

    @package.function  # type: ignore[untyped-decorator]
    def call() -> Any:
        y = package.nn.conv3d_transpose(
            given, kernel, [len(x), *out, layer.filters], layer.strides, layer.padding.upper()
        )
        return activation(y if bias is None else package.nn.bias_add(y, bias))

    return Contestant(
        lambda: call().numpy(),
        lambda: _from_channels_first(layer, np.moveaxis(call().numpy(), -1, 1)),
        f"{package.__version__}",
    )


def onnxruntime(layer: Conv3DTranspose, x: np.ndarray, threads: int) -> Contestant:
    """ONNX Runtime, on the model that the layer's `to_onnx` writes."""
    package = _package("onnxruntime")
    _package("onnx")
    options = package.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layer.onnx")
        try:
            layer.to_onnx(path)
            session = package.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class
            raise Unable(" ".join(str(error).split())) from error
    name = session.get_inputs()[0].name

    def call() -> Any:
        return session.run(None, {name: x})[0]

    try:
        call()
    except Exception as error:
        raise Unable(" ".join(str(error).split())) from error
    return Contestant(call, call, f"{package.__version__}")


PEERS = (Peer("PyTorch", torch), Peer("TensorFlow", tensorflow), Peer("ONNX Runtime", onnxruntime))


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unable(f"not installed ({name})") from error


def _axes(layer: Conv3DTranspose, x: np.ndarray) -> tuple[Axis, Axis, Axis]:
    return layer._poser(layer.kernel.shape[4])(x.shape).axes


def _full(axis: Axis) -> int:
    return (axis.size - 1) * axis.stride + effective_kernel(axis.kernel, axis.dilation)


def _channels_first(layer: Conv3DTranspose, x: np.ndarray) -> np.ndarray:
    last = layer.data_format == "channels_last"
    return np.ascontiguousarray(np.moveaxis(x, -1, 1) if last else x)


def _from_channels_first(layer: Conv3DTranspose, y: np.ndarray) -> np.ndarray:
    return np.moveaxis(y, 1, -1) if layer.data_format == "channels_last" else y


def _activation(functions: Any, layer: Conv3DTranspose) -> Callable[[Any], Any]:
    its = layer.activation
    if its.code == 0:
        return lambda y: y
    found = getattr(functions, its.name, None)
    if its.options or found is None or its.mixed_axis(5) is not None:
        raise Unable(f"has no activation {its.name} that is the same")
    return found  # type: ignore[no-any-return]
