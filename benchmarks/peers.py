"""What each contestant does with a row. Runs in the contestant's own process and venv.

A contestant offers *variants*: ways to make the same call (memory layouts, ways to hand
arrays over). Each is built with constant, prepared weights and tensors already in its own format;
the race times them all and keeps the best, so that nobody is measured on a layout it dislikes.
A variant is a call without arguments that returns the contestant's own output.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from rows import Array, Row, arrays

Call = Callable[[], Any]


class Cannot(Exception):
    """The contestant has no such operation; the reason goes into the results."""


class Contestant(ABC):
    """One library in one process; heavy imports happen in ``__init__``."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the library, for the results."""

    @abstractmethod
    def variants(self, row: Row) -> dict[str, Callable[[], Call]]:
        """Name → builder; a builder prepares everything and returns the call to be timed."""

    @abstractmethod
    def channels_last(self, row: Row, result: Any) -> Array:
        """The result as a float NDHWC array, for the comparison between contestants."""

    def exact(self, row: Row) -> bool:
        """Whether the row is done value for value, not by a stand-in of the same size and work."""
        return True

    def special(self, row: Row, what: str) -> Array:
        """Results that are not raced; PyTorch's "float64" of the float32 data, our "direct"."""
        raise Cannot(what)

    def drawn(self, row: Row, dtype: str) -> list[Array]:
        """Results of data that was drawn in ``dtype``, by each kernel that the library has."""
        raise Cannot(dtype)

    def forget_outputs(self) -> None:  # noqa: B027
        """Release what is held back for later results; called before memory is measured."""


def channels_first(x: Array) -> Array:
    """NDHWC → NCDHW, contiguous."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def torch_kernel(kernel: Array) -> Array:
    """Keras (kd, kh, kw, out, in) → PyTorch and ONNX (in, out, kd, kh, kw)."""
    return np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))


class Conv3dt(Contestant):
    """Ours: the layer as a user calls it, NumPy array in, NumPy array out."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import conv3dt

        self.package = conv3dt
        self.data_format = os.environ.get("RACE_DATA_FORMAT", "channels_last")
        self.algorithm = os.environ.get("RACE_ALGORITHM", "auto")
        self.dtype = os.environ.get("RACE_DTYPE", "float32")

    @property
    def version(self) -> str:
        return str(getattr(self.package, "__version__", "?"))

    def variants(self, row: Row) -> dict[str, Callable[[], Call]]:
        build = self._layer if hasattr(self.package, "Conv3DTranspose") else self._function
        return {self.algorithm: lambda: build(row)}

    def arrays(self, row: Row) -> tuple[Array, Array, Array | None]:
        x, kernel, bias = arrays(row)
        if self.data_format == "channels_first":
            x = channels_first(x)
        dtype = np.dtype(self.dtype)
        return x.astype(dtype), kernel.astype(dtype), None if bias is None else bias.astype(dtype)

    def layer(self, row: Row) -> tuple[Any, Array]:
        """The built layer with its weights set, and its input."""
        x, kernel, bias = self.arrays(row)
        layer = self.package.Conv3DTranspose(
            row.filters, row.kernel, row.strides, row.padding, output_padding=row.output_padding,
            data_format=self.data_format, groups=row.groups, use_bias=row.bias,
            dtype=self.dtype, algorithm=self.algorithm,
        )  # fmt: skip
        layer.build(x.shape)
        layer.set_weights([kernel] if bias is None else [kernel, bias])
        return layer, x

    def forget_outputs(self) -> None:
        if hasattr(self.package, "set_output_pool"):
            self.package.set_output_pool(0)

    def special(self, row: Row, what: str) -> Array:
        """The row by the direct kernel, whatever algorithm is raced."""
        raced, self.algorithm = self.algorithm, what
        build = self._layer if hasattr(self.package, "Conv3DTranspose") else self._function
        try:
            return self.channels_last(row, build(row)())
        finally:
            self.algorithm = raced

    def _layer(self, row: Row) -> Call:
        layer, x = self.layer(row)
        return lambda: layer(x)

    def _function(self, row: Row) -> Call:
        from conv3dt.functional import conv3d_transpose

        x, kernel, bias = self.arrays(row)
        return lambda: conv3d_transpose(
            x, kernel, bias, row.strides, row.padding, output_padding=row.output_padding,
            data_format=self.data_format, groups=row.groups, algorithm=self.algorithm,
        )  # fmt: skip

    def channels_last(self, row: Row, result: Any) -> Array:
        found: Array = result
        return found if self.data_format == "channels_last" else np.moveaxis(found, 1, -1)


class PyTorch(Contestant):
    """``inference_mode``; contiguous, channels_last_3d, and oneDNN-prepacked weights.

    Prepacked weights are what ``torch.compile`` with freezing uses; reached through the same
    operators, because eager PyTorch reorders the weights at every call.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        torch._C._set_grad_enabled(False)

    @property
    def version(self) -> str:
        return str(self.torch.__version__)

    def variants(self, row: Row) -> dict[str, Callable[[], Call]]:
        first, last = self.torch.contiguous_format, self.torch.channels_last_3d
        ways = {
            "contiguous": lambda: self._eager(row, first, first),
            "channels_last_3d": lambda: self._eager(row, last, last),
            "channels_last_3d, weights contiguous": lambda: self._eager(row, last, first),
            "contiguous, weights channels_last_3d": lambda: self._eager(row, first, last),
            "contiguous, prepacked": lambda: self._prepacked(row, first),
            "channels_last_3d, prepacked": lambda: self._prepacked(row, last),
        }
        if row.groups > 1:
            ways = {name: way for name, way in ways.items() if "prepacked" not in name}
        return ways

    def _tensors(self, row: Row, dtype: str = "float32") -> tuple[Any, Any, Any]:
        x, kernel, bias = arrays(row, dtype)
        tensor = self.torch.from_numpy
        return (
            tensor(channels_first(x)),
            tensor(torch_kernel(kernel)),
            None if bias is None else tensor(bias),
        )

    def _eager(
        self, row: Row, x_format: Any, kernel_format: Any, double: bool = False,
        dtype: str = "float32",
    ) -> Call:  # fmt: skip
        x, kernel, bias = self._tensors(row, dtype)
        x = x.contiguous(memory_format=x_format)
        kernel = kernel.contiguous(memory_format=kernel_format)
        if double:
            x, kernel, bias = x.double(), kernel.double(), None if bias is None else bias.double()
        conv = self.torch.conv_transpose3d
        inference = self.torch.inference_mode

        def call() -> Any:
            with inference():
                return conv(x, kernel, bias, row.strides, row.crop, row.end_padding, row.groups)

        return call

    def _prepacked(self, row: Row, x_format: Any) -> Call:
        x, kernel, bias = self._tensors(row)
        x = x.contiguous(memory_format=x_format)
        ops = self.torch.ops.mkldnn
        packed = ops._reorder_convolution_transpose_weight(
            kernel, row.crop, row.end_padding, row.strides, (1, 1, 1), row.groups, list(x.shape)
        )
        conv = ops._convolution_transpose_pointwise.default
        inference = self.torch.inference_mode

        def call() -> Any:
            with inference():
                return conv(
                    x, packed, bias, row.crop, row.end_padding, row.strides, (1, 1, 1),
                    row.groups, "none", [], "",
                )  # fmt: skip

        return call

    def special(self, row: Row, what: str) -> Array:
        """The row in float64: what rounding errors are measured against."""
        first = self.torch.contiguous_format
        return self.channels_last(row, self._eager(row, first, first, double=True)())

    def drawn(self, row: Row, dtype: str) -> list[Array]:
        """Of eager PyTorch; prepacked weights reach the same kernels."""
        layouts = (self.torch.contiguous_format, self.torch.channels_last_3d)
        calls = (self._eager(row, layout, layout, dtype=dtype) for layout in layouts)
        return [self.channels_last(row, call()) for call in calls]

    def channels_last(self, row: Row, result: Any) -> Array:
        found: Array = np.moveaxis(result.numpy(), 1, -1)
        return found


class TensorFlow(Contestant):
    """``tf.function`` as installed (oneDNN on), NDHWC, the only layout it has on a CPU."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        self.tf = tf
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)

    @property
    def version(self) -> str:
        return str(self.tf.__version__)

    def _padding(self, row: Row) -> str:
        """Nothing cropped is "VALID"; everything else is "SAME", whatever that crops."""
        full = tuple(
            (i - 1) * s + k for i, s, k in zip(row.size, row.strides, row.kernel, strict=True)
        )
        return "VALID" if full == row.out else "SAME"

    def exact(self, row: Row) -> bool:
        # "SAME" crops max(full - out, 0) // 2 at the start: k3 s2 p1 op1 is out of its reach.
        axes = zip(row.out, row.size, row.strides, row.kernel, strict=True)
        crop = tuple(max((i - 1) * s + k - o, 0) // 2 for o, i, s, k in axes)
        return bool(crop == row.crop)

    def variants(self, row: Row) -> dict[str, Callable[[], Call]]:
        if row.groups > 1:
            raise Cannot("Conv3DBackpropInputV2 has no groups on a CPU")
        return {
            "weights captured": lambda: self._function(row, False),
            "weights in graph": lambda: self._function(row, True),
        }

    def _function(self, row: Row, in_graph: bool, dtype: str = "float32") -> Call:
        tf = self.tf
        x, kernel, bias = arrays(row, dtype)
        x = tf.constant(x)
        if not in_graph:
            kernel, bias = tf.constant(kernel), None if bias is None else tf.constant(bias)
        strides, padding = (1, *row.strides, 1), self._padding(row)

        def forward(x: Any) -> Any:
            y = tf.nn.conv3d_transpose(x, kernel, row.y_shape, strides, padding)
            return y if bias is None else tf.nn.bias_add(y, bias)

        concrete = tf.function(forward).get_concrete_function(x)
        return lambda: concrete(x)

    def drawn(self, row: Row, dtype: str) -> list[Array]:
        if row.groups > 1 or not self.exact(row):
            return []
        return [self.channels_last(row, self._function(row, False, dtype)())]

    def channels_last(self, row: Row, result: Any) -> Array:
        found: Array = result.numpy()
        return found


class OnnxRuntime(Contestant):
    """NCDHW; plain ``run`` and bound inputs and outputs."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import onnxruntime

        self.ort = onnxruntime

    @property
    def version(self) -> str:
        return str(self.ort.__version__)

    def variants(self, row: Row) -> dict[str, Callable[[], Call]]:
        return {
            "run": lambda: self._run(row),
            "bound": lambda: self._bound(row, reuse=False),
            "bound, output reused": lambda: self._bound(row, reuse=True),
        }

    def _session(self, row: Row) -> tuple[Any, Array]:
        x, kernel, bias = arrays(row)
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        model = _onnx_model(row, kernel, bias)
        session = self.ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return session, channels_first(x)

    def _run(self, row: Row) -> Call:
        session, x = self._session(row)
        return lambda: session.run(["y"], {"x": x})[0]

    def _bound(self, row: Row, reuse: bool) -> Call:
        session, x = self._session(row)
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        if reuse:
            shape = (row.batch, row.filters, *row.out)
            y = self.ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
            binding.bind_ortvalue_output("y", y)
        else:
            binding.bind_output("y")

        def call() -> Any:
            session.run_with_iobinding(binding)
            return binding.get_outputs()[0]

        return call

    def channels_last(self, row: Row, result: Any) -> Array:
        found = result if isinstance(result, np.ndarray) else result.numpy()
        return np.moveaxis(found, 1, -1)


def _onnx_model(row: Row, kernel: Array, bias: Array | None) -> bytes:
    """A model of this one node with constant weights."""
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(torch_kernel(kernel), "w")]
    if bias is not None:
        weights.append(numpy_helper.from_array(bias, "b"))
    node = helper.make_node(
        "ConvTranspose", ["x", *(w.name for w in weights)], ["y"], strides=row.strides,
        pads=row.crop * 2, output_padding=row.end_padding, group=row.groups,
    )  # fmt: skip
    x = helper.make_tensor_value_info(
        "x", TensorProto.FLOAT, (row.batch, row.in_channels, *row.size)
    )
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (row.batch, row.filters, *row.out))
    graph = helper.make_graph([node], "row", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized


class OpenVino(Contestant):
    """Latency hint, f32; NCDHW as the model has it, and NDHWC at its edges."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import openvino

        self.ov = openvino
        self.core = openvino.Core()

    @property
    def version(self) -> str:
        return str(self.ov.__version__).split("-")[0]

    def variants(self, row: Row) -> dict[str, Callable[[], Call]]:
        return {
            "NCDHW": lambda: self._request(row, last=False),
            "NDHWC": lambda: self._request(row, last=True),
        }

    def _request(self, row: Row, last: bool) -> Call:
        x, kernel, bias = arrays(row)
        model = self.core.read_model(_onnx_model(row, kernel, bias), b"")
        if last:
            edges = self.ov.preprocess.PrePostProcessor(model)
            for edge in (edges.input(), edges.output()):
                edge.tensor().set_layout(self.ov.Layout("NDHWC"))
                edge.model().set_layout(self.ov.Layout("NCDHW"))
            model = edges.build()
        compiled = self.core.compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": str(self.threads),
            },
        )
        request = compiled.create_infer_request()
        request.set_input_tensor(self.ov.Tensor(x if last else channels_first(x)))

        def call() -> Any:
            request.infer()
            return last, request.get_output_tensor()

        return call

    def channels_last(self, row: Row, result: Any) -> Array:
        last, tensor = result
        found: Array = tensor.data
        return found if last else np.moveaxis(found, 1, -1)


CONTESTANTS: dict[str, type[Contestant]] = {
    "conv3dt": Conv3dt,
    "PyTorch": PyTorch,
    "TensorFlow": TensorFlow,
    "ONNX Runtime": OnnxRuntime,
    "OpenVINO": OpenVino,
}
PEERS = tuple(name for name in CONTESTANTS if name != "conv3dt")
