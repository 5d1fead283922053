"""Activations as nodes of an ONNX graph, in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import activations
from ..activations import Activation
from ..optional import require
from .onnx_graph import Graph, Node

# Softmax of older versions runs over all axes from its axis on.
SOFTMAX_OF_ONE_AXIS = 13

# Bounds and slopes are float32 in most files.
_CLOSE = 1e-6


def follow(graph: Graph, value: str, channels_last: bool) -> tuple[Activation, str] | None:
    """The activation that alone uses a value, and the name of its result.

    Parameters
    ----------
    value
        Name of a value with the axes (N, C, D, H, W).
    channels_last
        Whether our array of it will be (N, D, H, W, C): axes are renumbered.

    Returns
    -------
    (Activation, str) or None
        None if the value is an output of the graph, or used by other nodes, or several.

    Raises
    ------
    ValueError
        An activation that conv3dt does not have, with these parameters.
    """
    users = graph.consumers(value)
    if value in graph.outputs:
        return None
    if len(users) == 2:
        return _silu(graph, value, *users)
    if len(users) != 1 or users[0].op not in _READ or users[0].input(0) != value:
        return None
    found = _READ[users[0].op](graph, users[0])
    if found is None:
        raise ValueError(f"{users[0].op} {users[0].label!r} is no activation of conv3dt")
    if "axis" in found.options:
        axis = (0, 4, 1, 2, 3)[found.options["axis"]] if channels_last else found.options["axis"]
        found = found.with_options(axis=axis) if axis != 4 else activations.get(found.name)
    return found, users[0].outputs[0]


def _silu(graph: Graph, value: str, first: Node, second: Node) -> tuple[Activation, str] | None:
    """``x * sigmoid(x)``, as exporters write it."""
    for gate, product in ((first, second), (second, first)):
        if gate.op == "Sigmoid" and product.op == "Mul":
            between = gate.outputs[0]
            alone = graph.consumers(between) == (product,) and between not in graph.outputs
            if alone and set(product.inputs) == {value, between}:
                return activations.silu, product.outputs[0]
    return None


# --- reading -------------------------------------------------------------------------------


def _number(node: Node, name: str, default: float) -> float:
    value = node.attributes.get(name, default)
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name} of {node.op} {node.label!r} must be a number, got {value!r}")
    return float(str(np.float32(value)))  # 0.2, of which the file has the nearest float32


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _plain(activation: Activation) -> Callable[[Graph, Node], Activation]:
    return lambda graph, node: activation


def _with(
    activation: Activation, option: str, attribute: str, default: float
) -> Callable[[Graph, Node], Activation]:
    """An activation with one option."""
    return lambda graph, node: activation.with_options(
        **{option: _number(node, attribute, default)}
    )


def _selu(graph: Graph, node: Node) -> Activation | None:
    alpha = _number(node, "alpha", activations.SELU_ALPHA)
    gamma = _number(node, "gamma", activations.SELU_SCALE)
    usual = _close(alpha, activations.SELU_ALPHA) and _close(gamma, activations.SELU_SCALE)
    return activations.selu if usual else None


def _hard_sigmoid(graph: Graph, node: Node) -> Activation | None:
    slope, shift = _number(node, "alpha", 0.2), _number(node, "beta", 0.5)
    if shift != 0.5 or slope <= 0:
        return None
    if _close(slope, 1 / 6):
        return activations.hard_sigmoid
    return activations.hard_sigmoid.with_options(slope=slope)


def _swish(graph: Graph, node: Node) -> Activation | None:
    return activations.silu if _number(node, "alpha", 1.0) == 1 else None


def _gelu(graph: Graph, node: Node) -> Activation:
    tanh = node.attributes.get("approximate") == "tanh"
    return activations.gelu.with_options(approximate=True) if tanh else activations.gelu


def _shrink(graph: Graph, node: Node) -> Activation | None:
    threshold, bias = _number(node, "lambd", 0.5), _number(node, "bias", 0.0)
    if bias == 0:
        return activations.hard_shrink.with_options(threshold=threshold)
    if bias == threshold:
        return activations.soft_shrink.with_options(threshold=threshold)
    return None


def _clip(graph: Graph, node: Node) -> Activation | None:
    low, high = _bound(graph, node, "min", 1, -math.inf), _bound(graph, node, "max", 2, math.inf)
    if (low, high) == (-1, 1):
        return activations.hard_tanh
    if low != 0 or high <= 0:
        return None
    if high == math.inf:
        return activations.relu
    return activations.relu6 if high == 6 else activations.relu.with_options(max_value=high)


def _bound(graph: Graph, node: Node, name: str, index: int, none: float) -> float:
    """A bound of Clip: an attribute once, now an input; ``none``, infinite, if left out."""
    if name in node.attributes:
        bound = _number(node, name, none)
    elif not node.input(index):
        return none
    else:
        value = graph.constant(node.input(index))
        if value is None or value.size != 1:
            raise ValueError(f"{name} of Clip {node.label!r} must be one constant number")
        bound = float(value.reshape(()))
    return none if abs(bound) > 3.4e38 and (bound > 0) == (none > 0) else bound


def _prelu(graph: Graph, node: Node) -> Activation | None:
    slope = graph.constant(node.input(1))
    if slope is None or slope.size != 1:
        return None
    return activations.leaky_relu.with_options(negative_slope=float(slope.reshape(())))


def _of_rows(activation: Activation) -> Callable[[Graph, Node], Activation | None]:
    def read(graph: Graph, node: Node) -> Activation | None:
        one_axis = graph.opset >= SOFTMAX_OF_ONE_AXIS
        axis = node.attributes.get("axis", -1 if one_axis else 1)
        if not isinstance(axis, int) or not -5 <= axis < 5:
            return None
        return activation.with_options(axis=axis % 5) if one_axis or axis % 5 == 4 else None

    return read


_READ: dict[str, Callable[[Graph, Node], Activation | None]] = {
    "Celu": _with(activations.celu, "alpha", "alpha", 1.0),
    "Clip": _clip,
    "Elu": _with(activations.elu, "alpha", "alpha", 1.0),
    "Exp": _plain(activations.exponential),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(activations.hard_silu),
    "LeakyRelu": _with(activations.leaky_relu, "negative_slope", "alpha", 0.01),
    "LogSoftmax": _of_rows(activations.log_softmax),
    "Mish": _plain(activations.mish),
    "PRelu": _prelu,
    "Relu": _plain(activations.relu),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _plain(activations.sigmoid),
    "Softmax": _of_rows(activations.softmax),
    "Softplus": _plain(activations.softplus),
    "Softsign": _plain(activations.softsign),
    "Swish": _swish,
    "Tanh": _plain(activations.tanh),
    "ThresholdedRelu": _with(activations.relu, "threshold", "alpha", 1.0),
}

OPERATORS = tuple(_READ)


# --- writing -------------------------------------------------------------------------------


def write(
    activation: Activation, x: str, y: str, channels_last: bool, element_type: int
) -> tuple[list[Any], list[Any]]:
    """The nodes that make the value ``y`` of ``x``, (N, C, D, H, W), and their constants.

    Parameters
    ----------
    activation
        Not linear.
    channels_last
        Whether our array has the axes (N, D, H, W, C): an axis is renumbered.
    element_type
        ONNX' number for the dtype.

    Raises
    ------
    ValueError
        ONNX has no operator for it.
    """
    helper = require("onnx", "onnx").helper
    ours = activations.ACTIVATIONS.get(activation.name)
    op, attributes = _NONE
    if ours is not None and ours.function is activation.function and ours.name in _WRITE:
        op, attributes = _WRITE[ours.name](**activation.options)
    if op is None:
        names = ", ".join(sorted(_WRITE))
        raise ValueError(f"activation must be one that ONNX has, {names}; got {activation!r}")
    if op == "Swish":  # an operator of its own only in the newest version
        gate = f"{y}_gate"
        product = helper.make_node("Mul", [x, gate], [y])
        return [helper.make_node("Sigmoid", [x], [gate]), product], []
    if op == "Clip":
        bounds = {f"{y}_{name}": value for name, value in attributes.items()}
        constants = [
            helper.make_tensor(name, element_type, (), [value]) for name, value in bounds.items()
        ]
        return [helper.make_node(op, [x, *bounds], [y])], constants
    if "axis" in attributes:
        axis = attributes["axis"] % 5
        attributes["axis"] = (0, 2, 3, 4, 1)[axis] if channels_last else axis
    return [helper.make_node(op, [x], [y], **attributes)], []


Spelling = tuple[str | None, dict[str, Any]]

_NONE: Spelling = (None, {})


def _relu(
    negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0
) -> Spelling:
    if threshold == 0 and max_value is None:
        return ("LeakyRelu", {"alpha": negative_slope}) if negative_slope else ("Relu", {})
    if negative_slope == 0 and threshold == 0:
        return "Clip", {"min": 0.0, "max": max_value}
    if negative_slope == 0 and max_value is None:
        return "ThresholdedRelu", {"alpha": threshold}
    return _NONE


def _simple(op: str) -> Callable[[], Spelling]:
    return lambda: (op, {})


_WRITE: dict[str, Callable[..., Spelling]] = {
    "celu": lambda alpha=1.0: ("Celu", {"alpha": alpha}),
    "elu": lambda alpha=1.0: ("Elu", {"alpha": alpha}),
    "exponential": _simple("Exp"),
    "gelu": lambda approximate=False: ("Gelu", {"approximate": "tanh" if approximate else "none"}),
    "hard_shrink": lambda threshold=0.5: ("Shrink", {"lambd": threshold, "bias": 0.0}),
    "hard_sigmoid": lambda slope=1 / 6: ("HardSigmoid", {"alpha": slope, "beta": 0.5}),
    "hard_silu": _simple("HardSwish"),
    "hard_tanh": lambda: ("Clip", {"min": -1.0, "max": 1.0}),
    "leaky_relu": lambda negative_slope=0.2: ("LeakyRelu", {"alpha": negative_slope}),
    "log_softmax": lambda axis=-1: ("LogSoftmax", {"axis": axis}),
    "mish": _simple("Mish"),
    "relu": _relu,
    "relu6": lambda: ("Clip", {"min": 0.0, "max": 6.0}),
    "selu": lambda: (
        "Selu",
        {"alpha": activations.SELU_ALPHA, "gamma": activations.SELU_SCALE},
    ),
    "sigmoid": _simple("Sigmoid"),
    "silu": _simple("Swish"),
    "soft_shrink": lambda threshold=0.5: ("Shrink", {"lambd": threshold, "bias": threshold}),
    "softmax": lambda axis=-1: ("Softmax", {"axis": axis}),
    "softplus": _simple("Softplus"),
    "softsign": _simple("Softsign"),
    "tanh": _simple("Tanh"),
}
