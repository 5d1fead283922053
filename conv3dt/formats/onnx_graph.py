"""ONNX graphs, read: nodes in order, attributes as values, constants as arrays.

A file may be damaged or made to harm: whatever is wrong with it is a ValueError. Time and memory
are bounded by the sizes of the file and of the external data that is asked for. External data
is read from regular files below the model's folder only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..optional import require
from .files import regular

Array = np.ndarray[Any, Any]

# The limit of the file format.
LARGEST_FILE = 2**31 - 1

# Nodes, or values, of a graph, and attributes of a node: far more than models have. A hostile
# file has room for millions.
MOST_NODES, MOST_ATTRIBUTES = 200_000, 1_000

# The element types that weights and sizes may have: their dtypes and bytes.
_KINDS = {
    "FLOAT": ("float32", 4),
    "DOUBLE": ("float64", 8),
    "FLOAT16": ("float16", 2),
    "BFLOAT16": ("bfloat16", 2),
    "INT32": ("int32", 4),
    "INT64": ("int64", 8),
}


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes
    ----------
    op
        ``"ConvTranspose"``, say; with its domain if it is not one of ONNX' own:
        ``"com.microsoft::FusedConv"``.
    name
        May be empty, and need not be unique.
    inputs, outputs
        Names of values; an input left out is ``""``.
    attributes
        Only those that the file has: numbers, strings and lists of them. Tensors and
        subgraphs are left as they are.
    captured
        Names that subgraphs of the node may take from the graph around them.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    captured: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """The name, else that of the first output, which is unique."""
        return self.name or self.outputs[0]

    def input(self, index: int) -> str:
        """Name of an input; ``""`` if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


class Graph:
    """A graph of named values; see `read`.

    Attributes
    ----------
    nodes : tuple of Node
        In the order of the file, in which values come before their use.
    inputs, outputs : tuple of str
        What is fed and fetched. Initializers are not among the inputs.
    shapes : dict
        Shape of each value that has a declared one; unknown sizes are None.
    opset : int
        Version of ONNX' operators, which some attributes depend on.
    has_functions : bool
        Whether some nodes may be calls of the model's own functions.
    """

    def __init__(self, model: Any, folder: Path | None) -> None:
        graph = model.graph
        for part in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info):
            if len(part) > MOST_NODES:
                raise ValueError(f"{len(part)} nodes or values are more than {MOST_NODES}")
        self._folder = folder
        self.nodes = tuple(_node(proto) for proto in graph.node)
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = tuple(v.name for v in graph.input if v.name not in self._tensors)
        self.outputs = tuple(v.name for v in graph.output)
        versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
        self.opset = max(versions, default=1)
        self.has_functions = len(model.functions) > 0

        self._producers: dict[str, Node] = {}
        self._consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in filter(None, node.outputs):
                if name in self._producers or name in self._tensors:
                    raise ValueError(f"value {name!r} is made twice")
                self._producers[name] = node
            looked_at = () if node.op == "Shape" else node.inputs  # it sees no number of it
            for name in {*looked_at, *node.captured} - {""}:
                self._consumers.setdefault(name, []).append(node)
            constant = self._constant(node)
            if constant is not None:
                self._tensors[node.outputs[0]] = constant
        self.shapes = dict(_declared([*graph.input, *graph.value_info, *graph.output]))

    def producer(self, name: str) -> Node | None:
        """The node that makes a value; None for inputs and initializers."""
        return self._producers.get(name)

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that use the numbers of a value, in order."""
        return tuple(self._consumers.get(name, ()))

    def constant(self, name: str) -> Array | None:
        """The array of an initializer or of a Constant node; None for any other value.

        Raises
        ------
        ValueError
            Data that does not fit its shape, is not of a known type or cannot be found.
        """
        tensor = self._tensors.get(name)
        return None if tensor is None else _array(tensor, self._folder)

    def constant_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a constant, without its numbers; None for any other value."""
        tensor = self._tensors.get(name)
        return None if tensor is None else tuple(tensor.dims)

    def constant_dtype(self, name: str) -> str | None:
        """The name of a constant's dtype, likewise. ValueError for an unknown type."""
        tensor = self._tensors.get(name)
        return None if tensor is None else _kind(tensor)[0]

    def _constant(self, node: Node) -> Any:
        """The tensor that a node stands for, if it is constant."""
        if node.op == "Identity":
            return self._tensors.get(node.input(0))
        if node.op != "Constant":
            return None
        for key, dtype in _NUMBERS.items():
            if key in node.attributes:
                numbers = np.array(node.attributes[key], dtype)
                return require("onnx", "onnx").numpy_helper.from_array(numbers)
        tensor = node.attributes.get("value")
        return tensor if hasattr(tensor, "dims") else None


# The attributes of a Constant that are numbers and no tensor.
_NUMBERS: dict[str, type[np.generic]] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def read(source: Any) -> Graph:
    """The graph of an ONNX model.

    Parameters
    ----------
    source : path or onnx.ModelProto
        A path, so that external data can be found, or a model as `onnx.load` returns it.

    Raises
    ------
    ValueError
        A file that is no ONNX model. OSError: it cannot be read.
    TypeError
        Neither a path nor a model.
    ImportError
        The package onnx is missing.
    """
    onnx = require("onnx", "onnx")
    if isinstance(source, onnx.ModelProto):
        model, folder, what = source, None, "model must be sound"
    elif isinstance(source, (str, os.PathLike)):
        path = regular(source)
        model, folder = None, path.parent
        what = f"path must be an ONNX model, got {str(path)!r}"
    else:
        raise TypeError(f"model must be a path or an onnx.ModelProto, got {type(source).__name__}")
    try:
        return Graph(_parsed(onnx, path) if model is None else model, folder)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _parsed(onnx: Any, path: Path) -> Any:
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"{size} bytes are more than the format allows")
    decode_error = require("google.protobuf.message", "onnx").DecodeError
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except decode_error as error:
        raise ValueError(str(error)) from error
    if not model.HasField("graph"):
        raise ValueError("no graph in it")
    return model


def _node(proto: Any) -> Node:
    onnx = require("onnx", "onnx")
    if len(proto.attribute) > MOST_ATTRIBUTES:
        raise ValueError(f"node {proto.name!r} has {len(proto.attribute)} attributes")
    own = proto.domain in ("", "ai.onnx")
    attributes = {}
    for attribute in proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        attributes[attribute.name] = _text(value)
    return Node(
        proto.op_type if own else f"{proto.domain}::{proto.op_type}",
        _text(proto.name),
        tuple(map(_text, proto.input)),
        tuple(map(_text, proto.output)) or ("",),
        attributes,
        frozenset(_captured(proto)),
    )


def _text(value: Any) -> Any:
    """Bytes as text: strings of attributes, and names that are no UTF-8."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _captured(proto: Any) -> Iterator[str]:
    for attribute in proto.attribute:
        for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            yield from (v.name for v in graph.output)
            for node in graph.node:
                yield from node.input
                yield from _captured(node)


def _declared(values: Iterable[Any]) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    for value in values:
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            sizes = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
            yield value.name, tuple(sizes)


def _kind(tensor: Any) -> tuple[str, int]:
    """Name of the dtype of a tensor, and its bytes."""
    names = require("onnx", "onnx").TensorProto.DataType
    name = names.Name(tensor.data_type) if tensor.data_type in names.values() else "unknown"
    if name not in _KINDS:
        raise ValueError(f"tensor {tensor.name!r} has the element type {name}")
    return _KINDS[name]


def _array(tensor: Any, folder: Path | None) -> Array:
    """The numbers of a tensor, from whichever field or file holds them."""
    onnx = require("onnx", "onnx")
    _, itemsize = _kind(tensor)
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f"tensor {tensor.name!r} has the shape {tuple(tensor.dims)}")
    try:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            data = _external(tensor, prod(tensor.dims) * itemsize, folder)
            dims, data_type = tensor.dims, tensor.data_type
            tensor = onnx.TensorProto(dims=dims, data_type=data_type, raw_data=data)
        array: Array = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ValueError(f"tensor {tensor.name!r} is damaged: {error}") from error
    return array


def _external(tensor: Any, size: int, folder: Path | None) -> bytes:
    """The ``size`` bytes of a tensor that lie in a file of their own."""
    if folder is None:
        raise ValueError("the data lies in another file: give the path of the model")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    offset, length = (int(entries.get(k, v)) for k, v in (("offset", 0), ("length", size)))
    try:
        path = (folder / location).resolve()  # where links lead to
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, RuntimeError):  # a name too long, a circle of links
        inside = False
    if not inside:
        raise ValueError(f"the data must be a file in the model's folder, got {location!r}")
    if length != size or offset < 0 or offset + size > path.stat().st_size:
        raise ValueError(f"the data must be {size} bytes, got {length} at {offset} of {location!r}")
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
