"""ONNX models that are chains: one operation after the other, from the input to the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..batchnorm import BatchNormalization
from ..dense import Dense
from ..layer import Conv3DTranspose
from ..members import Activation, Member, Reshape
from . import onnx_activations, onnx_graph, onnx_shapes
from .onnx import batchnorm, conv_transpose
from .onnx_graph import Graph, Node
from .onnx_shapes import Shape

Array = np.ndarray[Any, Any]
Layer = Conv3DTranspose | Member


def read(path_or_model: Any) -> tuple[list[Layer], Shape]:
    """The layers of a chain, with their weights, and the shape of a sample.

    Raises
    ------
    ValueError
        A damaged model, or one that is no chain of what conv3dt has: the message names the
        node. TypeError, OSError, ImportError: see `onnx_graph.read`.
    """
    graph = onnx_graph.read(path_or_model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            "a chain must have one input and one output, "
            f"got {list(graph.inputs)} and {list(graph.outputs)}"
        )
    (value,) = graph.inputs
    declared = graph.shapes.get(value, ())
    if len(declared) < 2:
        raise ValueError(f"the model must declare the shape of its input {value!r}")
    walk = _Walk(graph, value, declared)
    while walk.value not in graph.outputs:
        walk.step()
    return walk.layers, declared[1:]


class _Walk:
    """Where we are in the graph, the shapes on the way, and the layers that lead there."""

    def __init__(self, graph: Graph, value: str, declared: Shape) -> None:
        self._graph, self.value, self._batch = graph, value, declared[0]
        self._shapes: dict[str, Shape] = {value: (None, *declared[1:])}
        self.layers: list[Layer] = []

    def step(self) -> None:
        """Go on by one operation."""
        followed = onnx_activations.follow(self._graph, self.value, channels_last=False)
        if followed is not None:
            self._to(Activation(followed[0]), followed[1])
            return
        users = self._graph.consumers(self.value)
        if len(users) != 1:
            names = ", ".join(f"{node.op} {node.label!r}" for node in users)
            raise ValueError(f"{self.value!r} must go to one node, got {names or 'none'}")
        (node,) = users
        if node.op not in _LAYERS or node.input(0) != self.value:
            known = ", ".join(sorted({*_LAYERS, *onnx_activations.OPERATORS}))
            raise ValueError(f"a chain must be made of {known}, got {node.op} {node.label!r}")
        try:
            self._to(*_LAYERS[node.op](self, node))
        except (ValueError, TypeError) as error:  # an attribute may be of any type
            raise ValueError(f"{node.op} {node.label!r}: {error}") from error

    def _to(self, layer: Layer | None, value: str) -> None:
        if value in self._shapes:
            raise ValueError(f"value {value!r} comes from itself")
        shape = self._shapes[self.value]
        if layer is not None:
            shape = layer.compute_output_shape(shape)
            self.layers.append(layer)
        self._shapes[value] = shape
        self.value = value

    # One operation each: the layer, if there is one, and the value it makes.

    def nothing(self, node: Node) -> tuple[None, str]:
        return None, node.outputs[0]

    def convolution(self, node: Node) -> tuple[Layer, str]:
        return conv_transpose(self._graph, node, "channels_first"), node.outputs[0]

    def normalization(self, node: Node) -> tuple[Layer, str]:
        values = batchnorm(self._graph, node)
        epsilon, shape = values.pop("epsilon"), self._shapes[self.value]
        layer = BatchNormalization(
            1 if len(shape) > 2 else -1,
            epsilon=epsilon,
            name=_name(node),
            dtype=values["gamma"].dtype.name,
        )
        layer._adopt(*values.values())
        return layer, node.outputs[0]

    def gemm(self, node: Node) -> tuple[Layer, str]:
        if node.attributes.get("transA", 0):
            raise ValueError("transA must be 0")
        kernel, bias = _scaled(node, "alpha", self._constant(node.input(1), "B")), None
        if node.input(2):
            bias = _scaled(node, "beta", self._constant(node.input(2), "C"))
        transposed = node.attributes.get("transB", 0)
        return _dense(node, kernel.T if transposed else kernel, bias), node.outputs[0]

    def product(self, node: Node) -> tuple[Layer, str]:
        kernel, value = self._constant(node.input(1), "B"), node.outputs[0]
        users = self._graph.consumers(value)
        if len(users) == 1 and users[0].op == "Add" and value not in self._graph.outputs:
            others = [self._graph.constant(name) for name in users[0].inputs if name != value]
            if len(others) == 1 and others[0] is not None:
                return _dense(node, kernel, others[0]), users[0].outputs[0]
        return _dense(node, kernel, None), value

    def reshape(self, node: Node) -> tuple[Layer, str]:
        batch, *sizes = onnx_shapes.reshaped(self._graph, node, self._shapes) or (0,)
        unknown = sizes.count(None)
        if batch not in (None, -1, self._batch) or unknown > 1 or (unknown and -1 in sizes):
            raise ValueError(f"the batch must stay and sizes be known, got {(batch, *sizes)}")
        target = [-1 if size is None else size for size in sizes]
        return Reshape(target, name=_name(node)), node.outputs[0]

    def _constant(self, value: str, argument: str) -> Array:
        array = self._graph.constant(value)
        if array is None:
            raise ValueError(f"{argument} must be constant, got {value!r}")
        return array


def _scaled(node: Node, factor: str, array: Array) -> Array:
    scaled: Array = (array * node.attributes.get(factor, 1)).astype(array.dtype)
    return scaled


def _dense(node: Node, kernel: Array, bias: Array | None) -> Dense:
    if kernel.ndim != 2:
        raise ValueError(f"B must have 2 axes, got shape {kernel.shape}")
    units = kernel.shape[1]
    layer = Dense(units, use_bias=bias is not None, name=_name(node), dtype=kernel.dtype.name)
    row = [] if bias is None else [np.broadcast_to(bias, (1, units))[0]]
    layer._adopt(kernel, *row)
    return layer


def _name(node: Node) -> str | None:
    return node.label.strip("/").replace("/", ".") or None


_LAYERS: dict[str, Callable[[_Walk, Node], tuple[Layer | None, str]]] = {
    "BatchNormalization": _Walk.normalization,
    "ConvTranspose": _Walk.convolution,
    "Dropout": _Walk.nothing,
    "Gemm": _Walk.gemm,
    "Identity": _Walk.nothing,
    "MatMul": _Walk.product,
    **dict.fromkeys(onnx_shapes.OPERATORS, _Walk.reshape),
}
