"""ONNX models: a layer from a ConvTranspose, and a model from a layer.

ConvTranspose's ``pads`` and ``output_padding`` are explicit padding here. ``auto_pad`` and
``output_shape`` become explicit pads when a node is read, by the rules of ONNX Runtime.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import arguments
from ..activations import linear
from ..dtypes import POLICIES
from ..layer import Conv3DTranspose
from ..optional import require
from ..problem import effective_kernel, explicit_equivalent
from . import onnx_activations, onnx_graph
from .files import naming, replacing
from .layer_info import LayerInfo, choose, fitting
from .onnx_graph import Graph, Node

if TYPE_CHECKING:
    from ..arguments import Pads, Triple

Array = np.ndarray[Any, Any]

# The operators' version in the files we write: Gelu came with 20, bfloat16 with 22.
OPSET, OPSET_OF_BFLOAT16 = 20, 22

# Orders of the axes, to the layout of ONNX and back.
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 4, 1, 2, 3), (0, 2, 3, 4, 1)

# Names of sizes that are not fixed.
_SPACE = ("D", "H", "W")


# --- reading -------------------------------------------------------------------------------


def from_onnx(
    path_or_model: Any,
    node: str | None = None,
    *,
    data_format: str | None = "channels_first",
    fold: bool = False,
) -> Conv3DTranspose:
    """A layer from a ConvTranspose of an ONNX model.

    Parameters
    ----------
    path_or_model : path or onnx.ModelProto
        External data is read if it lies in the model's folder, which only a path tells.
    node : str, optional
        Name of the node, or of its output. Default: the only ConvTranspose that has 3
        spatial axes.
    data_format : {"channels_first", "channels_last"} or None
        Order of the axes of the layer's input and result. ONNX itself has channels first;
        None asks Keras' ``keras.json``.
    fold : bool
        Take what follows the node into the layer: one BatchNormalization into its weights,
        then an activation. Identity and Dropout are passed over. Only what alone uses the
        node's result is taken; anything else ends it.

    Returns
    -------
    Conv3DTranspose
        Of the dtype of the weights, with explicit padding. ``auto_pad`` is the same for every
        size of the input. ``output_shape`` is not: the layer gives that shape for the input
        shape that the model declares.

    Raises
    ------
    ValueError
        A damaged model; no such node, or several (the message lists them); another number of
        spatial axes; weights that are not constant; ``output_shape`` without a declared input
        shape; an activation to fold that conv3dt does not have.
    TypeError
        Neither a path nor a model. OSError: the file cannot be read.
    ImportError
        The package onnx is missing: ``pip install 'conv3dt[onnx]'``.

    Notes
    -----
    The pads that ``auto_pad`` and ``output_shape`` stand for are those of ONNX Runtime 1.31:
    with ``K = (k-1)*d + 1``, ``total = max(0, (I-1)*s + K + output_padding - O)`` voxels are
    cropped, where O is ``output_shape`` or ``I*s``; the larger half of an odd total at the end
    for SAME_UPPER, else at the start.
    """
    graph = onnx_graph.read(path_or_model)
    with naming(path_or_model):
        found = _chosen(_candidates(graph), graph, path_or_model, node, "node")
        layer = conv_transpose(graph, found, data_format)
        if fold:
            _fold(graph, found, layer)
    return layer


def conv_transpose(graph: Graph, node: Node, data_format: str | None) -> Conv3DTranspose:
    """The layer that a ConvTranspose node with 3 spatial axes is. ValueError if it is not."""
    try:
        kernel, bias = _weights(graph, node)
        layer = _unbuilt(graph, node, data_format)
        layer._adopt(kernel, bias)
        return layer
    except ValueError as error:
        raise ValueError(f"ConvTranspose {node.label!r}: {error}") from error


def batchnorm(graph: Graph, node: Node) -> dict[str, Any]:
    """The arguments of `Conv3DTranspose.fold_batchnorm` that a BatchNormalization node has."""
    old = graph.opset < 7 and not node.attributes.get("is_test")
    if old or node.attributes.get("training_mode") or node.attributes.get("spatial", 1) != 1:
        raise ValueError(f"BatchNormalization {node.label!r} must be one of inference")
    names = ("gamma", "beta", "mean", "variance")
    values: dict[str, Any] = {
        name: _constant(graph, node, index, name) for index, name in enumerate(names, 1)
    }
    return values | {"epsilon": node.attributes.get("epsilon", 1e-5)}


def list_layers(path: Path) -> list[LayerInfo]:
    """The ConvTranspose nodes with 3 spatial axes; `formats.list_layers` calls it."""
    graph = onnx_graph.read(path)
    return [_info(graph, node, label) for label, node in _candidates(graph).items()]


def read_weights(path: Path, name: str | None, like: Conv3DTranspose) -> list[Array]:
    """Kernel and bias of a ConvTranspose; `formats.load_weights` calls it."""
    graph = onnx_graph.read(path)
    nodes = _candidates(graph)
    if name is None:
        weights = {
            label: graph.constant_shape(node.input(1)) or () for label, node in nodes.items()
        }
        found = fitting({label: (*s[2:], *s[1::-1]) for label, s in weights.items()}, like)
        nodes = {label: nodes[label] for label in found}
    kernel, bias = _weights(graph, _chosen(nodes, graph, path, name, "layer"))
    return [kernel] if bias is None else [kernel, bias]


def _info(graph: Graph, node: Node, label: str) -> LayerInfo:
    """The record of a node, for which no weights are read."""
    d, h, w, share, channels = _kernel_shape(graph, node)
    try:
        layer = _unbuilt(graph, node, "channels_first")
    except ValueError:  # what the weights say, at least
        return LayerInfo(label, node.op, share, (d, h, w), channels)
    return LayerInfo.of(layer, label, node.op, channels)


def _candidates(graph: Graph) -> dict[str, Node]:
    """The ConvTranspose nodes with 3 spatial axes, by their names or, if need be, outputs."""
    nodes = [node for node in graph.nodes if node.op == "ConvTranspose"]
    names = Counter(name for node in nodes for name in {node.name, node.outputs[0]})
    return {
        node.name if node.name and names[node.name] == 1 else node.outputs[0]: node
        for node in nodes
        if len(graph.constant_shape(node.input(1)) or ()) == 5
    }


def _chosen(
    candidates: dict[str, Node], graph: Graph, source: Any, name: str | None, argument: str
) -> Node:
    """The ConvTranspose of this name, or the only one."""
    if not candidates:
        others = Counter(node.op for node in graph.nodes).most_common(5)
        hint = "; functions are not looked into, see onnx.inliner" if graph.has_functions else ""
        raise ValueError(
            "the model must have a ConvTranspose with constant weights (in, out/group, kd, kh, kw) "
            f"for 3 spatial axes, got the nodes {dict(others)}{hint}"
        )
    path = source if isinstance(source, (str, os.PathLike)) else "the model"
    return candidates[choose(os.fspath(path), candidates, name, argument)]


def _unbuilt(graph: Graph, node: Node, data_format: str | None) -> Conv3DTranspose:
    """The layer that a node is, without its weights."""
    *kernel, share, _ = _kernel_shape(graph, node)
    declared = node.attributes.get("kernel_shape", kernel)
    if declared != kernel:
        raise ValueError(f"kernel_shape must be that of the weights, {kernel}, got {declared!r}")
    groups = arguments.positive_int("group", node.attributes.get("group", 1))
    strides = arguments.triple("strides", _ints(node, "strides", 3, 1))
    dilations = arguments.triple("dilations", _ints(node, "dilations", 3, 1))
    pads, output_padding = _padding(graph, node, kernel, strides, dilations)
    return Conv3DTranspose(
        share * groups,
        kernel,
        strides,
        pads,
        output_padding=output_padding if any(output_padding) else None,
        data_format=data_format,
        dilation_rate=dilations,
        groups=groups,
        use_bias=bool(node.input(2)),
        name=node.label.strip("/").replace("/", ".") or None,
        dtype=graph.constant_dtype(node.input(1)),
    )


def _kernel_shape(graph: Graph, node: Node) -> tuple[int, ...]:
    """(kd, kh, kw, out/group, in): as we store it, without reading it."""
    channels, share, *kernel = graph.constant_shape(node.input(1)) or (0, 0)
    return (*kernel, share, channels)


def _weights(graph: Graph, node: Node) -> tuple[Array, Array | None]:
    """Kernel, as we store it, and bias."""
    weight = _constant(graph, node, 1, "W")
    if weight.ndim != 5:
        raise ValueError(
            "W must have 5 axes (in, out/group, kd, kh, kw) for 3 spatial axes, "
            f"got shape {weight.shape}"
        )
    bias = _constant(graph, node, 2, "B") if node.input(2) else None
    return weight.transpose(2, 3, 4, 1, 0), bias


def _constant(graph: Graph, node: Node, index: int, name: str) -> Array:
    value = graph.constant(node.input(index))
    if value is None:
        raise ValueError(f"{name} of {node.op} must be constant, got {node.input(index)!r}")
    return value


def _ints(node: Node, name: str, count: int, default: int) -> list[int]:
    given = node.attributes.get(name, [default] * count)
    values = list(given) if isinstance(given, Sequence) else []
    if len(values) != count or not all(isinstance(value, int) for value in values):
        raise ValueError(f"{name} must be {count} integers, got {given!r}")
    return values


def _padding(
    graph: Graph, node: Node, kernel: Sequence[int], strides: Triple, dilations: Triple
) -> tuple[Pads, Triple]:
    """Explicit pads and output_padding, from any of the ways in which ONNX spells them."""
    auto_pad = node.attributes.get("auto_pad", "NOTSET")
    extra = _ints(node, "output_padding", 3, 0)
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"auto_pad must be one of ONNX' four, got {auto_pad!r}")
    if auto_pad != "NOTSET" and "pads" in node.attributes:
        raise ValueError(f"pads and auto_pad {auto_pad} must not both be there")
    if auto_pad in ("NOTSET", "VALID") and "output_shape" not in node.attributes:
        pads = _ints(node, "pads", 6, 0)
        return tuple(zip(pads[:3], pads[3:], strict=True)), tuple(extra)  # type: ignore[return-value]
    tails = [effective_kernel(k, d) + p for k, d, p in zip(kernel, dilations, extra, strict=True)]
    surplus = _surplus(graph, node, tails, strides)
    smaller = [max(voxels, 0) // 2 for voxels in surplus]
    larger = [max(voxels, 0) - half for voxels, half in zip(surplus, smaller, strict=True)]
    first, last = (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)
    extra = [p + max(-voxels, 0) for p, voxels in zip(extra, surplus, strict=True)]
    return tuple(zip(first, last, strict=True)), tuple(extra)  # type: ignore[return-value]


def _surplus(graph: Graph, node: Node, tails: list[int], strides: Triple) -> list[int]:
    """Voxels, per axis, that the full result has and the wanted one has not.

    ``tails`` are what a full result has beyond ``(I-1)*s``.
    """
    if "output_shape" not in node.attributes:
        # SAME: O = I*s, so the input size drops out. Where that is more than there is, ONNX
        # Runtime does not extend it.
        return [max(tail - s, 0) for tail, s in zip(tails, strides, strict=True)]
    axes = zip(
        _input_sizes(graph, node), strides, tails, _ints(node, "output_shape", 3, 0), strict=True
    )
    return [(size - 1) * s + tail - wanted for size, s, tail, wanted in axes]


def _input_sizes(graph: Graph, node: Node) -> list[int]:
    """Depth, height and width of a node's input, as the graph declares them."""
    shape = graph.shapes.get(node.input(0), ())
    sizes = [size for size in shape[2:] if size is not None]
    if len(shape) != 5 or len(sizes) != 3:
        raise ValueError(
            "output_shape fixes the result for one size of the input, which the model must "
            f"declare, got {shape or 'none'} for {node.input(0)!r}: give it, then pass what "
            "onnx.shape_inference.infer_shapes returns"
        )
    return sizes


def _fold(graph: Graph, node: Node, layer: Conv3DTranspose) -> None:
    """Take what follows a ConvTranspose into its layer."""
    value, outputs = node.outputs[0], frozenset(graph.outputs)
    folded = False
    while True:
        users = graph.consumers(value)
        if len(users) != 1 or value in outputs or users[0].input(0) != value:
            break
        if users[0].op == "BatchNormalization" and not folded:
            layer.fold_batchnorm(**batchnorm(graph, users[0]))
            folded = True
        elif users[0].op not in ("Dropout", "Identity"):
            break
        value = users[0].outputs[0]
    followed = onnx_activations.follow(graph, value, layer.data_format == "channels_last")
    if followed is not None:
        layer.activation = followed[0]


# --- writing -------------------------------------------------------------------------------


def to_onnx(layer: Conv3DTranspose, path: str | os.PathLike[str]) -> None:
    """Write a layer as a model of its own; see `Conv3DTranspose.to_onnx`."""
    layer._check_built("to_onnx")
    if sum(weight.nbytes for weight in layer.weights) > onnx_graph.LARGEST_FILE - 2**16:
        raise ValueError("weights must be smaller than 2 GiB, the limit of an ONNX file")
    data = _model(layer).SerializeToString()
    with replacing(path) as temporary, open(temporary, "xb") as file:
        file.write(data)


def _model(layer: Conv3DTranspose) -> Any:
    onnx = require("onnx", "onnx")
    opset = OPSET_OF_BFLOAT16 if "bfloat16" in layer.dtype_policy else OPSET
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(
        _graph(layer, onnx),
        opset_imports=opsets,
        ir_version=onnx.helper.find_min_ir_version_for(opsets),
        producer_name="conv3dt",
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"ONNX does not have {layer!r}: {error}") from error
    return model


def _graph(layer: Conv3DTranspose, onnx: Any) -> Any:
    """x → (Transpose) → (Cast) → ConvTranspose → (activation) → (Cast) → (Transpose) → y."""
    helper = onnx.helper
    variable, result = (_element_type(onnx, name) for name in POLICIES[layer.dtype_policy])
    channels_last = layer.data_format == "channels_last"
    weights = dict(zip(("weight", "bias"), layer.to_torch_state_dict().values(), strict=False))
    constants = [
        helper.make_tensor(name, variable, array.shape, array.tobytes(), raw=True)
        for name, array in weights.items()
    ]
    nodes: list[Any] = []

    def then(op: str, *more: str, **attributes: Any) -> None:
        x = nodes[-1].output[0] if nodes else "x"
        nodes.append(helper.make_node(op, [x, *more], [f"value_{len(nodes)}"], **attributes))

    if channels_last:
        then("Transpose", perm=_TO_CHANNELS_FIRST)
    if result != variable:  # a mixed policy
        then("Cast", to=variable)
    then("ConvTranspose", *weights, name=layer.name, **_attributes(layer))
    if layer.activation != linear:
        added, bounds = onnx_activations.write(
            layer.activation, nodes[-1].output[0], "activated", channels_last, variable
        )
        nodes += added
        constants += bounds
    if result != variable:
        then("Cast", to=result)
    if channels_last:
        then("Transpose", perm=_TO_CHANNELS_LAST)
    nodes[-1].output[0] = "y"

    shapes = [("N", *_SPACE, channels) for channels in (layer.kernel.shape[4], layer.filters)]
    x, y = shapes if channels_last else [(s[0], s[4], *s[1:4]) for s in shapes]
    return helper.make_graph(
        nodes,
        layer.name,
        [helper.make_tensor_value_info("x", result, x)],
        [helper.make_tensor_value_info("y", result, [None if s in _SPACE else s for s in y])],
        constants,
    )


def _element_type(onnx: Any, dtype: str) -> int:
    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    return int(getattr(onnx.TensorProto, names.get(dtype, dtype.upper())))


def _attributes(layer: Conv3DTranspose) -> dict[str, Any]:
    """The attributes of ConvTranspose, all of them: pads are (lo, lo, lo, hi, hi, hi)."""
    pads, extra = layer.padding, layer.output_padding or (0, 0, 0)
    if isinstance(pads, str):
        given = layer.output_padding or (None, None, None)
        axes = zip(layer.kernel_size, layer.strides, layer.dilation_rate, given, strict=True)
        pads, extra = zip(*(explicit_equivalent(*a[:3], pads, a[3]) for a in axes), strict=True)
    return {
        "kernel_shape": layer.kernel_size,
        "strides": layer.strides,
        "pads": [lo for lo, _ in pads] + [hi for _, hi in pads],
        "output_padding": extra,
        "dilations": layer.dilation_rate,
        "group": layer.groups,
    }
