"""Shapes that an ONNX graph computes: what ``view(x.size(0), ...)`` becomes when it is exported.

Only sizes are computed here, with Python's integers and a few dozen of them at most. A size that
is not known is an absurd number, which no arithmetic of sizes hides.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .onnx_graph import Graph, Node

Array = np.ndarray[Any, Any]
Shape = tuple[int | None, ...]

BATCH, UNKNOWN = -(10**30), -(10**40)

# No graph of sizes is larger; what is larger would grow without end.
MOST_NUMBERS, DEEPEST, LARGEST = 64, 64, 10**100


def reshaped(graph: Graph, node: Node, shapes: Mapping[str, Shape]) -> Shape:
    """What a Reshape, Flatten, Squeeze or Unsqueeze makes of its input; -1 is what is left.

    Parameters
    ----------
    shapes
        Of the values that are known, the node's input among them. The first size of each is
        None, the batch.

    Returns
    -------
    Shape
        The first size is None or -1 if it is the batch.

    Raises
    ------
    ValueError
        Sizes that are not known, or are computed by something else.
    """
    try:
        return _NEW_SHAPE[node.op](_Sizes(graph, shapes), node)
    except (ArithmeticError, IndexError, TypeError) as error:
        raise ValueError(f"sizes cannot be computed: {error}") from error


class _Sizes:
    """The arrays of sizes in a graph."""

    def __init__(self, graph: Graph, shapes: Mapping[str, Shape]) -> None:
        self._graph, self._shapes = graph, shapes
        self._known: dict[str, Array] = {}

    def input(self, node: Node) -> list[int | None]:
        return list(self._shapes[node.input(0)])

    def given(self, node: Node, index: int, attribute: str = "") -> list[int]:
        """Whole numbers, from an input or, in older versions, an attribute."""
        if attribute in node.attributes:
            return [operator.index(n) for n in node.attributes[attribute]]
        return [int(n) for n in self.of(node.input(index)).reshape(-1)]

    def of(self, name: str, depth: int = 0) -> Array:
        """The numbers of a value."""
        if name not in self._known:
            found = self._computed(name, depth)
            if found.size > MOST_NUMBERS or any(abs(n) > LARGEST for n in found.flat):
                raise ValueError(f"sizes must be few, and not absurd, got those of {name!r}")
            self._known[name] = found
        return self._known[name]

    def _computed(self, name: str, depth: int) -> Array:
        shape = self._graph.constant_shape(name)
        if shape is not None and np.prod(shape, dtype=float) <= MOST_NUMBERS:
            constant = self._graph.constant(name)
            if constant is None or constant.dtype.kind not in "iu":
                raise ValueError(f"sizes must be integers, got {name!r}")
            return constant.astype(object)
        node = self._graph.producer(name)
        if node is not None and node.op == "Shape" and node.input(0) in self._shapes:
            batch, *sizes = self._shapes[node.input(0)]
            whole = [BATCH if batch is None else batch]
            whole += [UNKNOWN if size is None else size for size in sizes]
            return np.array(whole, object)[slice(*_ends(node))]
        if node is None or node.op not in _ARITHMETIC or depth == DEEPEST:
            raise ValueError(f"sizes must be constant or follow from the input's, got {name!r}")
        inputs = [self.of(value, depth + 1) for value in node.inputs if value]
        found: Array = np.asarray(_ARITHMETIC[node.op](node, *inputs), object)
        return found


def _ends(node: Node) -> tuple[int | None, int | None]:
    return node.attributes.get("start"), node.attributes.get("end")


def _slice(node: Node, data: Array, starts: Any, ends: Any, axes: Any = (0,), *_: Any) -> Array:
    if data.ndim != 1 or list(axes) not in ([0], [-1]) or _:
        raise ValueError(f"{node.op} {node.label!r} is no slice of sizes")
    found: Array = data[int(starts[0]) : int(ends[0])]
    return found


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": lambda node, a, b: a + b,
    "Cast": lambda node, a: a,
    "Concat": lambda node, *parts: np.concatenate(parts),
    "Div": lambda node, a, b: a // b,
    "Gather": lambda node, a, i: np.take(a, i.astype(int)),
    "Identity": lambda node, a: a,
    "Mod": lambda node, a, b: a % b,
    "Mul": lambda node, a, b: a * b,
    "Reshape": lambda node, a, shape: a.reshape(shape.astype(int)),
    "Slice": _slice,
    "Squeeze": lambda node, a, *axes: a.reshape(()),
    "Sub": lambda node, a, b: a - b,
    "Unsqueeze": lambda node, a, *axes: a.reshape((1,)),
}


def _reshape(sizes: _Sizes, node: Node) -> Shape:
    old = sizes.input(node)
    target: list[int | None] = []
    for i, size in enumerate(sizes.given(node, 1)):
        if size == 0 and not node.attributes.get("allowzero", 0):
            if i >= len(old):
                raise ValueError(f"there is no size {i} to copy from {tuple(old)}")
            target.append(old[i])
        else:
            target.append(None if size == BATCH else size)
    return tuple(target)


def _flatten(sizes: _Sizes, node: Node) -> Shape:
    axis = node.attributes.get("axis", 1)
    if axis not in (1, 1 - len(sizes.input(node))):
        raise ValueError(f"axis must be 1, behind the batch, got {axis!r}")
    return (None, -1)


def _squeeze(sizes: _Sizes, node: Node) -> Shape:
    old = sizes.input(node)
    axes = {axis % len(old) for axis in sizes.given(node, 1, "axes")}
    if any(old[axis] != 1 for axis in axes):
        raise ValueError(f"axes must be of size 1, got {sorted(axes)} of {tuple(old)}")
    return tuple(size for axis, size in enumerate(old) if axis not in axes)


def _unsqueeze(sizes: _Sizes, node: Node) -> Shape:
    old, given = sizes.input(node), sizes.given(node, 1, "axes")
    if len(given) > MOST_NUMBERS:
        raise ValueError(f"axes must be few, got {len(given)}")
    rank = len(old) + len(given)
    axes, rest = {axis % rank for axis in given}, iter(old)
    if len(axes) != len(given):
        raise ValueError(f"axes must be different, got {given}")
    return tuple(1 if axis in axes else next(rest) for axis in range(rank))


_NEW_SHAPE: dict[str, Callable[[_Sizes, Node], Shape]] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
OPERATORS = tuple(_NEW_SHAPE)
