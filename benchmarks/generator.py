"""The generator of a 3D-GAN in each framework: a contestant's process, started by gan.py.

    python generator.py NAME THREADS

Five transposed convolutions as in tests/data/layers.json (gan3d_1 ... gan3d_5), 200 numbers to
64³ voxels, with normalization and ReLU between them and a sigmoid at the end (Wu et al. 2016).
Weights and statistics are drawn from a seed, the same in every process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from math import prod
from operator import floordiv
from typing import Any

import numpy as np
from contestant import Reply, Session, serve
from peers import Call, channels_first, torch_kernel
from rows import Array, Row, layers

EPSILON = 1e-5  # of the normalizations


def generator() -> list[Row]:
    """The five layers, in their order."""
    return sorted((row for row in layers() if row.id.startswith("gan3d_")), key=lambda row: row.id)


def weights() -> list[Array]:
    """Kernel, gamma, beta, mean, variance of each layer, kernel and bias of the last: as Keras
    orders and shapes them, and so scaled that a result keeps the spread of its input."""
    rng = np.random.default_rng(7)

    def kernel(row: Row) -> Array:
        taps = 1 if row.size == (1, 1, 1) else prod(map(floordiv, row.kernel, row.strides))
        return rng.normal(0, np.sqrt(2 / (row.in_channels * taps)), row.kernel_shape)

    found: list[Array] = []
    *rows, last = generator()
    for row in rows:
        found += [
            kernel(row),
            rng.uniform(0.8, 1.2, row.filters),  # gamma
            *rng.normal(0, 0.1, (2, row.filters)),  # beta, mean
            rng.uniform(0.5, 1.5, row.filters),  # variance
        ]
    found += [kernel(last), rng.normal(0, 0.1, last.filters)]
    return [array.astype(np.float32) for array in found]


def noise(batch: int) -> Array:
    """The input, NDHWC."""
    return np.random.default_rng(8).standard_normal((batch, 1, 1, 1, 200), dtype=np.float32)


def stacked(library: Any, relu: Any) -> list[Any]:
    """The layers of Keras, or ours: they have the same names and arguments."""
    *rows, last = generator()
    found: list[Any] = []
    for row in rows:
        found.append(
            library.Conv3DTranspose(
                row.filters, row.kernel, row.strides, row.padding, use_bias=False
            )
        )
        found += [library.BatchNormalization(epsilon=EPSILON), relu()]
    found.append(
        library.Conv3DTranspose(
            last.filters, last.kernel, last.strides, last.padding, activation="sigmoid"
        )
    )
    return found


class Conv3dt:
    """Ours: the chain as a user calls it, NumPy array in, NumPy array out."""

    def __init__(self, threads: int) -> None:
        import conv3dt

        self.version = conv3dt.__version__
        self.package = conv3dt

    def variants(self, batch: int) -> dict[str, Callable[[], Call]]:
        return {"Sequential": lambda: self._chain(batch)}

    def _chain(self, batch: int) -> Call:
        x = noise(batch)
        chain = self.package.Sequential(
            stacked(self.package, lambda: "relu"), input_shape=x.shape[1:]
        )
        chain.set_weights(weights())
        return lambda: chain(x)

    def channels_last(self, result: Any) -> Array:
        found: Array = result
        return found


class PyTorch:
    """``inference_mode``; contiguous and channels_last_3d, normalizations folded or not."""

    def __init__(self, threads: int) -> None:
        import torch

        self.torch = torch
        self.version = str(torch.__version__)
        torch.set_num_threads(threads)

    def variants(self, batch: int) -> dict[str, Callable[[], Call]]:
        formats = {
            "contiguous": self.torch.contiguous_format,
            "channels_last_3d": self.torch.channels_last_3d,
        }
        found: dict[str, Callable[[], Call]] = {}
        for name, memory in formats.items():
            found[name] = partial(self._call, batch, memory, lambda: self._layers(folded=False))
            found[f"{name}, folded"] = partial(
                self._call, batch, memory, lambda: self._layers(folded=True)
            )
            found[f"{name}, folded, prepacked"] = partial(
                self._call, batch, memory, lambda: self._prepacked(batch)
            )
        return found

    def _call(self, batch: int, memory: Any, make: Callable[[], list[Any]]) -> Call:
        torch = self.torch
        module = torch.nn.Sequential(*make()).eval().to(memory_format=memory)
        x = torch.from_numpy(channels_first(noise(batch))).contiguous(memory_format=memory)

        def call() -> Any:
            with torch.inference_mode():
                return module(x)

        return call

    def _layers(self, folded: bool) -> list[Any]:
        nn, fuse = self.torch.nn, self.torch.nn.utils.fusion.fuse_conv_bn_eval
        given = iter(weights())
        found: list[Any] = []
        *rows, last = generator()
        for row in rows:
            conv = self._convolution(row, next(given), None)
            norm = nn.BatchNorm3d(row.filters, eps=EPSILON).eval()
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                self._fill(tensor, next(given))
            found += [fuse(conv, norm, transpose=True)] if folded else [conv, norm]
            found.append(nn.ReLU())
        return [*found, self._convolution(last, next(given), next(given)), nn.Sigmoid()]

    def _convolution(self, row: Row, kernel: Array, bias: Array | None) -> Any:
        conv = self.torch.nn.ConvTranspose3d(
            row.in_channels, row.filters, row.kernel, row.strides, row.crop, bias=bias is not None
        ).eval()
        self._fill(conv.weight, torch_kernel(kernel))
        if bias is not None:
            self._fill(conv.bias, bias)
        return conv

    def _prepacked(self, batch: int) -> list[Any]:
        """Weights reordered once, activations fused: the operators of PyTorch's compiler."""
        pairs = zip(self._layers(folded=True)[::2], generator(), strict=True)
        return [self._packed(conv, row, batch) for conv, row in pairs]

    def _packed(self, conv: Any, row: Row, batch: int) -> Any:
        ops = self.torch.ops.mkldnn
        geometry = (row.crop, (0, 0, 0), row.strides, (1, 1, 1), 1)
        shape = [batch, row.in_channels, *row.size]
        packed = ops._reorder_convolution_transpose_weight(conv.weight, *geometry, shape)
        run = ops._convolution_transpose_pointwise.default
        last = row.id == generator()[-1].id

        class Packed(self.torch.nn.Module):  # type: ignore[name-defined,misc]
            def forward(self, x: Any) -> Any:
                y = run(x, packed, conv.bias, *geometry, "none" if last else "relu", [], "")
                return y.sigmoid_() if last else y

        return Packed()

    def _fill(self, tensor: Any, array: Array) -> None:
        with self.torch.no_grad():
            tensor.copy_(self.torch.from_numpy(array))

    def channels_last(self, result: Any) -> Array:
        found: Array = np.moveaxis(result.numpy(), 1, -1)
        return found


class Keras:
    """``tf.function`` of the model, as installed (oneDNN on). XLA took 15 s for a call."""

    def __init__(self, threads: int) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ["KERAS_BACKEND"] = "tensorflow"
        import keras
        import tensorflow as tf

        self.keras, self.tf = keras, tf
        self.version = f"{keras.__version__}, TensorFlow {tf.__version__}"
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)

    def variants(self, batch: int) -> dict[str, Callable[[], Call]]:
        return {"tf.function": lambda: self._function(batch)}

    def _function(self, batch: int) -> Call:
        x = self.tf.constant(noise(batch))
        model = self.keras.Sequential(
            [self.keras.Input(x.shape[1:]), *stacked(self.keras.layers, self.keras.layers.ReLU)]
        )
        model.set_weights(weights())
        function = self.tf.function(lambda x: model(x, training=False))
        concrete = function.get_concrete_function(x)
        return lambda: concrete(x)

    def channels_last(self, result: Any) -> Array:
        found: Array = result.numpy()
        return found


CONTESTANTS: dict[str, Any] = {"conv3dt": Conv3dt, "PyTorch": PyTorch, "Keras": Keras}


class Generator(Session):
    """What a process keeps between commands: the fastest variant."""

    def ready(self, batch: int) -> Reply:
        """Build every variant in turn, keep the fastest."""
        return self.choose(self.contestant.variants(batch))

    def result(self, path: str) -> Reply:
        np.save(path, np.ascontiguousarray(self.contestant.channels_last(self.call())))
        return {}


if __name__ == "__main__":
    serve(Generator(CONTESTANTS[sys.argv[1]](int(sys.argv[2]))))
