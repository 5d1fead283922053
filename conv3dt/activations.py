"""Activations: their names, their meaning in float64, and what kernels may fuse.

Names and meaning are those of Keras 3.15. Each formula below is evaluated in float64, block
by block, whatever the dtype of the array, so a float32 result is the correctly computed
value rounded once, and the temporaries stay in the cache. The forms are chosen for their
relative accuracy: nothing overflows on the way and nothing cancels (a plain
``x - tanh(x)`` has no correct digit at 1e-6). NaN propagates through every one of them.

The compiled kernels fuse the activations that have a ``code`` >= 0:

====  ===================================================================
code  meaning, with ``params`` p0 ... p3
====  ===================================================================
0     linear
1     x > 0 ? x : p0*x                  (p0 = 0 gives 0, for -inf too)
2     p0 * min(max(x + p1, p2), p3)
3     x * (min(max(x + 3, 0), 6) / 6)
4     softsign
5     exponential
6     sigmoid
7     silu
8     tanh
9     x > 0 ? p1*x : p1*p0*expm1(x)
10    softplus
11    gelu, tanh approximation
12    gelu, exact
-1    not fused: a second pass of NumPy over the output
====  ===================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from . import identifiers

Array = np.ndarray[Any, Any]
Params = tuple[float, float, float, float]
Fusion = tuple[int, Params]

# Numbers per block: 128 KiB of float64 per temporary, a few of which fit a core's L2 cache.
BLOCK = 1 << 14

# Rows of at most this many numbers are computed as columns: see ``_by_columns``.
SHORT_ROW = 32

NOT_FUSED: Fusion = (-1, (0.0, 0.0, 0.0, 0.0))


class Activation:
    """An activation function of an array.

    Parameters
    ----------
    function
        The formula. Elementwise formulas and formulas of rows (the last axis) take and
        return float64 blocks; any other callable takes the whole array.
    options
        Keyword arguments of the formula.
    scope
        ``"element"``, ``"row"``, or ``"whole"`` for any other callable.
    fusion
        ``(code, params)`` for these options, or a function of the options.

    Attributes
    ----------
    code, params
        What the compiled kernels can fuse; code -1: nothing.
    """

    __slots__ = ("_fusion", "code", "function", "name", "options", "params", "scope")

    def __init__(
        self,
        function: Callable[..., Any],
        options: Mapping[str, Any] | None = None,
        *,
        scope: str = "whole",
        fusion: Fusion | Callable[..., Fusion] = NOT_FUSED,
    ) -> None:
        self.function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self.options = dict(options or {})
        self.scope = scope
        self._fusion = fusion
        self.code, self.params = fusion(**self.options) if callable(fusion) else fusion

    def __call__(self, x: Any, **options: Any) -> Array:
        """The activation of ``x`` as a new array; ``options`` as Keras' function takes them."""
        if options:
            return self.with_options(**options)(x)
        y = np.array(x)
        if self.scope != "whole" and y.dtype.kind in "biu":
            y = y.astype(np.float64)
        return self.inplace(y)

    def with_options(self, **options: Any) -> Activation:
        """The same activation with other options."""
        return Activation(
            self.function, {**self.options, **options}, scope=self.scope, fusion=self._fusion
        )

    def inplace(self, y: Array) -> Array:
        """Apply to ``y`` in place and return it; return a new array if the shape changes."""
        if self.code == 0:
            return y
        with np.errstate(all="ignore"):
            if self.scope == "whole":
                return self._whole(y)
            options, rows, by_row = dict(self.options), y, self.scope == "row"
            if by_row:
                rows = np.moveaxis(y, options.pop("axis", -1), -1)
            for block in blocks(rows, keep=int(by_row)):
                if by_row and block.shape[-1] <= SHORT_ROW:
                    _by_columns(self.function, block, options)
                else:
                    block[...] = self.function(block.astype(np.float64, order="C"), **options)
        return y

    def _whole(self, y: Array) -> Array:
        result = np.asarray(self.function(y, **self.options))
        if self.halves:
            return result
        if result.shape != y.shape:
            raise ValueError(
                f"activation must keep the shape {y.shape}, got {result.shape} from {self.name}"
            )
        y[...] = result
        return y

    @property
    def halves(self) -> bool:
        """Whether the result has half as many numbers: only that of ``glu``."""
        return self.function is _glu

    def output_shape(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """Shape of the result for an array of ``shape``, in which sizes may be None.

        Only ``glu`` changes it: it halves its axis, the last one.

        Raises
        ------
        ValueError
            glu of an odd size.
        """
        if not self.halves:
            return shape
        axis = self.options.get("axis", -1)
        sizes = list(shape)
        if sizes[axis] is not None:
            sizes[axis] = _half(sizes[axis], axis)
        return tuple(sizes)

    def mixed_axis(self, rank: int) -> int | None:
        """The axis of an array along which numbers mix; None where each stands for itself.

        Of callables that are not the package's own it is the last, as of Keras' softmax.
        """
        if self.scope == "element":
            return None
        axis: int = self.options.get("axis", -1) if self._named() else -1
        return axis % rank

    def _named(self) -> bool:
        """Whether this is one of the package's own, not the user's."""
        known = ACTIVATIONS.get(self.name)
        return known is not None and known.function is self.function

    def config(self) -> str | identifiers.Config:
        """What stands for this activation in a config: its name, if that says all.

        Activations with options are written as the Keras layer of the same meaning where
        there is one, so that Keras can read them.
        """
        if not self._named():
            if hasattr(self.function, "get_config"):
                config = identifiers.serialize("activation", self.function, "")
                assert config is not None
                return config
            return identifiers.serialize_function("activation", self.function)
        if not self.options:
            return self.name
        layer = _KERAS_LAYERS.get(self.name)
        return {
            "module": "keras.layers" if layer else __name__,
            "class_name": layer or self.name,
            "config": dict(self.options),
            "registered_name": None,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        if self._named():
            return get, (self.config(),)
        return Activation, (self.function, self.options)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Activation):
            return NotImplemented
        return self.function == other.function and self.options == other.options

    def __hash__(self) -> int:
        return hash(self.function)

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"<activation {self.name}{options}>"


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Activation:
    """The activation that ``identifier`` stands for.

    Parameters
    ----------
    identifier
        None (linear), a name, a callable, an ``Activation``, or a config dict of Keras 2 or
        Keras 3, of a function or of an activation layer (ELU, LeakyReLU, PReLU, ReLU,
        Softmax, ThresholdedReLU, Activation).
    custom_objects
        The user's own functions, classes or instances by name; they come first.

    Raises
    ------
    ValueError
        An unknown name or something that cannot be called.
    """
    if isinstance(identifier, Activation):
        return identifier
    if identifier is None:
        return linear
    parsed = identifiers.parse("activation", identifier)
    if parsed is None:
        if not callable(identifier):
            raise identifiers.unknown("activation", identifier, ACTIVATIONS)
        return _custom(identifiers.instantiate("activation", identifier, {}))
    name, config, foreign = parsed
    target = identifiers.find_custom(name, custom_objects)
    if target is not None:
        return _custom(identifiers.instantiate("activation", target, config))
    if not foreign and name in _LAYERS:
        return _LAYERS[name](config)
    if not foreign and name in ACTIVATIONS:
        found = ACTIVATIONS[name]
        return found.with_options(**config) if config else found
    raise identifiers.unknown("activation", identifier, ACTIVATIONS)


def _custom(target: Any) -> Activation:
    return target if isinstance(target, Activation) else Activation(target)


def blocks(y: Array, keep: int) -> Iterator[Array]:
    """Views that cover ``y``, of at most ``BLOCK`` numbers, the last ``keep`` axes whole."""
    if y.ndim <= keep or y.size <= BLOCK:
        yield y
        return
    step = max(1, BLOCK * len(y) // y.size)
    for start in range(0, len(y), step):
        part = y[start : start + step]
        if step == 1 and y.ndim > 1:
            yield from blocks(part[0], keep)
        else:
            yield part


def _by_columns(function: Callable[..., Any], block: Array, options: Mapping[str, Any]) -> None:
    """Apply a formula of rows to ``block`` in place, each column contiguous in memory.

    NumPy reduces the short rows of a C-contiguous array one at a time, but over contiguous
    columns it computes a vector of rows at once; the formula does not see the difference.
    """
    if block.size == block.shape[-1] > 0:  # alone, a row would be summed in another order
        pair = np.stack([block, block])
        _by_columns(function, pair, options)
        block[...] = pair[0]
        return
    columns = np.moveaxis(block, -1, 0)
    x = np.moveaxis(columns.astype(np.float64, order="C"), 0, -1)
    result = np.moveaxis(function(x, **options), -1, 0)
    # One assignment for all would loop over the short rows innermost.
    for i in range(len(columns)):
        columns[i, ...] = result[i]


# --- formulas: float64 in, float64 out ---------------------------------------------------


def _define(
    scope: str, fusion: Fusion | Callable[..., Fusion] = NOT_FUSED
) -> Callable[[Callable[..., Any]], Activation]:
    """Decorator: the activation that a formula defines."""

    def decorate(function: Callable[..., Any]) -> Activation:
        function.__name__ = function.__qualname__ = function.__name__.lstrip("_")
        return Activation(function, scope=scope, fusion=fusion)

    return decorate


def _fused(code: int, *params: float) -> Fusion:
    p0, p1, p2, p3 = (*params, 0.0, 0.0, 0.0, 0.0)[:4]
    return code, (p0, p1, p2, p3)


def _clip(scale: float, shift: float, low: float, high: float) -> Fusion:
    return _fused(2, scale, shift, low, high)


def _fuse_relu(
    negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0
) -> Fusion:
    if threshold == 0 and max_value is None:
        return _fused(1, negative_slope)
    if threshold == 0 and negative_slope == 0:
        return _clip(1.0, 0.0, 0.0, max_value)  # type: ignore[arg-type]
    return NOT_FUSED


@_define("element", _fused(0))
def linear(x: Array) -> Array:
    return x


@_define("element", _fuse_relu)
def relu(
    x: Array, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0
) -> Array:
    y = np.where(x <= threshold, 0.0, x)
    if max_value is not None:
        y = np.clip(y, 0.0, max_value)
    if negative_slope:
        y = y - negative_slope * np.maximum(threshold - x, 0.0)
    return y


@_define("element", _clip(1.0, 0.0, 0.0, 6.0))
def relu6(x: Array) -> Array:
    return np.clip(x, 0.0, 6.0)


@_define("element", lambda negative_slope=0.2: _fused(1, negative_slope))
def leaky_relu(x: Array, negative_slope: float = 0.2) -> Array:
    return np.where(x > 0, x, negative_slope * x)


@_define("element", lambda alpha=1.0: _fused(9, alpha, 1.0))
def elu(x: Array, alpha: float = 1.0) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(x))


SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


@_define("element", _fused(9, SELU_ALPHA, SELU_SCALE))
def selu(x: Array) -> Array:
    return SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(x))


@_define("element")
def celu(x: Array, alpha: float = 1.0) -> Array:
    return np.maximum(x, 0.0) + alpha * np.expm1(np.minimum(x, 0.0) / alpha)


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


@_define("element", _fused(6))
def sigmoid(x: Array) -> Array:
    return _sigmoid(x)


@_define("element")
def log_sigmoid(x: Array) -> Array:
    return -_softplus(-x)


@_define("element")
def sparse_sigmoid(x: Array) -> Array:
    return np.clip(x + 1.0, 0.0, 2.0) / 2


def _fuse_hard_sigmoid(slope: float = 1 / 6) -> Fusion:
    return _clip(slope, 0.5 / slope, 0.0, 1 / slope)


@_define("element", _fuse_hard_sigmoid)
def hard_sigmoid(x: Array, slope: float = 1 / 6) -> Array:
    # Keras 3 has relu6(x + 3) / 6; slope 0.2 is the hard_sigmoid of Keras 2.
    return np.clip(x + 0.5 / slope, 0.0, 1 / slope) * slope


@_define("element", _fused(3))
def hard_silu(x: Array) -> Array:
    return x * (np.clip(x + 3.0, 0.0, 6.0) / 6)


@_define("element", _fused(7))
def silu(x: Array) -> Array:
    return x * _sigmoid(x)


@_define("element", _fused(8))
def tanh(x: Array) -> Array:
    return np.tanh(x)


@_define("element", _clip(1.0, 0.0, -1.0, 1.0))
def hard_tanh(x: Array) -> Array:
    return np.clip(x, -1.0, 1.0)


@_define("element")
def tanh_shrink(x: Array) -> Array:
    # x - tanh(x) = (x cosh(x) - sinh(x)) / cosh(x); the numerator is a series of terms of
    # one sign, x^3 * sum of 2n/(2n+1)! * x^(2n-2), where the difference would cancel.
    near = np.abs(x) < 1
    z = np.where(near, x, 0.0)
    square = z * z
    series = np.zeros_like(z)
    for n in range(10, 0, -1):
        series = series * square + 2 * n / math.factorial(2 * n + 1)
    return np.where(near, z * square * series / np.cosh(z), x - np.tanh(x))


@_define("element", _fused(4))
def softsign(x: Array) -> Array:
    return x / (1.0 + np.abs(x))


@_define("element", _fused(10))
def softplus(x: Array) -> Array:
    return _softplus(x)


@_define("element")
def squareplus(x: Array, b: float = 4.0) -> Array:
    # (x + sqrt(x^2 + b)) / 2, without the cancellation for negative x.
    root = np.hypot(x, math.sqrt(b))
    return np.where(x < 0, b / 2 / (root - x), x / 2 + root / 2)


@_define("element")
def sparse_plus(x: Array) -> Array:
    return np.where(x <= -1, 0.0, np.where(np.abs(x) < 1, (x + 1) ** 2 / 4, x))


@_define("element")
def mish(x: Array) -> Array:
    # tanh(log(1 + e)) = (e^2 + 2e) / (e^2 + 2e + 2), scaled by the larger of 1 and e^2.
    small = np.exp(-np.abs(x))
    top = np.where(x > 0, 1 + 2 * small, small * (small + 2))
    rest = 2 * np.where(x > 0, small * small, 1.0)
    y: Array = x * (top / (top + rest))
    return y


@_define("element", _fused(5))
def exponential(x: Array) -> Array:
    return np.exp(x)


@_define("element")
def soft_shrink(x: Array, threshold: float = 0.5) -> Array:
    y: Array = x - np.clip(x, -threshold, threshold)
    return y


@_define("element")
def hard_shrink(x: Array, threshold: float = 0.5) -> Array:
    return np.where(np.abs(x) <= threshold, 0.0, x)


@_define("element")
def _threshold(x: Array, threshold: float, default_value: float) -> Array:
    return np.where(x <= threshold, default_value, x)


# The upper tail of the normal distribution, P(X > a) = exp(-a^2/2) * t * polynomial(u) for
# 0 <= a <= 39, where it underflows, with t = 4/(4+a) and u = t scaled to [-1, 1]: the
# Chebyshev series of erfcx(a/sqrt(2)) / 2t as a polynomial, 6 units in the last place at most.
_TAIL_END = 39.0
_TAIL = (
    0.20383459921062924,
    0.15531102555618145,
    0.09097668420676394,
    0.039092488866980586,
    0.010726581694066527,
    0.0008147115476436653,
    -0.0006253647616222109,
    -0.0001843552244984221,
    3.6801995801985286e-05,
    2.2117554049799643e-05,
    -3.405482689722961e-06,
    -2.6160168543526436e-06,
    5.457484122501911e-07,
    3.03569392084313e-07,
    -1.0838406501889608e-07,
    -2.892655990649473e-08,
    2.0431964742329003e-08,
    9.139364181010022e-10,
    -3.0517546747432772e-09,
    3.4918105029646557e-10,
    2.604874680400826e-10,
    -5.744686859543435e-11,
)


def _normal_tail(a: Array) -> Array:
    """P(X > a) of the standard normal distribution, for ``a`` >= 0."""
    a = np.minimum(a, _TAIL_END)
    t = 4.0 / (4.0 + a)
    end = 4.0 / (4.0 + _TAIL_END)
    u = 2.0 * (t - end) / (1.0 - end) - 1.0
    polynomial = np.full_like(a, _TAIL[-1])
    for coefficient in _TAIL[-2::-1]:
        polynomial = polynomial * u + coefficient
    # a^2 in two parts: the first is exact, so its rounding is not amplified by exp.
    head = a.astype(np.float32).astype(np.float64)
    rest = (a - head) * (a + head)
    return t * polynomial * np.exp(-0.5 * head * head) * np.exp(-0.5 * rest)


def _fuse_gelu(approximate: bool = False) -> Fusion:
    return _fused(11 if approximate else 12)


@_define("element", _fuse_gelu)
def gelu(x: Array, approximate: bool = False) -> Array:
    if approximate:
        # x/2 * (1 + tanh(u)) = x * sigmoid(2u), which does not cancel.
        return x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    tail = _normal_tail(np.abs(x))
    return x * np.where(x < 0, tail, 1.0 - tail)


def _shifted(x: Array) -> Array:
    shifted: Array = x - np.max(x, axis=-1, keepdims=True, initial=-np.inf)
    return shifted


def _fuse_softmax(axis: int = -1) -> Fusion:
    return _fused(13) if axis == -1 else NOT_FUSED


@_define("row", _fuse_softmax)
def softmax(x: Array) -> Array:
    y = _shifted(x)
    np.exp(y, out=y)
    y /= np.sum(y, axis=-1, keepdims=True)
    return y


@_define("row")
def log_softmax(x: Array) -> Array:
    # The largest terms of the sum are exactly 1: leave one of them to log1p. The others are
    # counted apart, so that a sum far below 1 keeps its digits; a NaN is equal to nothing.
    shifted = _shifted(x)
    largest = shifted == 0
    rest = np.sum(np.where(largest, 0.0, np.exp(shifted)), axis=-1, keepdims=True)
    rest += np.sum(largest, axis=-1, keepdims=True) - 1
    shifted -= np.log1p(rest)
    return shifted


@_define("row")
def sparsemax(x: Array) -> Array:
    # As Keras 3.15 computes it: its threshold sums *all* running sums of the support, where
    # Martins et al. (2016) take the last one. The two agree for a support of one.
    ordered = np.sort(x, axis=-1)[..., ::-1]
    sums = np.cumsum(ordered, axis=-1)
    support = ordered - (sums - 1.0) / np.arange(1, x.shape[-1] + 1) > 0
    total = np.sum(np.where(support, sums, 0.0), axis=-1, keepdims=True)
    tau: Array = (total - 1.0) / np.sum(support, axis=-1, keepdims=True)
    y: Array = np.maximum(x - tau, 0.0)
    return y


def _half(size: int, axis: int) -> int:
    if size % 2:
        raise ValueError(f"glu must have an even size on axis {axis}, got {size}")
    return size // 2


def _glu(x: Array, axis: int = -1) -> Array:
    half = _half(x.shape[axis], axis)
    parts = np.moveaxis(x, axis, -1)
    gate = sigmoid(parts[..., half:])
    return np.moveaxis(parts[..., :half] * gate, -1, axis)


glu: Activation = _define("whole")(_glu)

_NAMES = (
    "celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu "
    "linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax "
    "softplus softsign sparse_plus sparse_sigmoid sparsemax squareplus tanh tanh_shrink"
)

#: Every activation by name, aliases last.
ACTIVATIONS: dict[str, Activation] = {
    **{name: globals()[name] for name in _NAMES.split()},
    "threshold": _threshold,
    "hard_swish": hard_silu,
    "swish": silu,
}


# --- activation layers of Keras, as the activation of another layer -----------------------

_KERAS_LAYERS = {"elu": "ELU", "leaky_relu": "LeakyReLU", "relu": "ReLU", "softmax": "Softmax"}


def _leaky_relu_layer(config: Mapping[str, Any]) -> Activation:
    slope = config.get("negative_slope", config.get("alpha", 0.3))  # alpha: Keras 2
    return leaky_relu.with_options(negative_slope=float(slope))


def _relu_layer(config: Mapping[str, Any]) -> Activation:
    defaults = {"negative_slope": 0.0, "max_value": None, "threshold": 0.0}
    options = {k: config.get(k, default) for k, default in defaults.items()}
    changed = {k: v for k, v in options.items() if v is not None and v != defaults[k]}
    return relu.with_options(**changed) if changed else relu


def _prelu_layer(config: Mapping[str, Any]) -> Activation:
    initializer = config.get("alpha_initializer", "zeros")
    parsed = identifiers.parse("alpha_initializer", initializer)
    if parsed is None or parsed[0].lower() not in ("zeros", "zero", "zerosv2"):
        raise ValueError(
            "activation PReLU must have the alpha_initializer zeros (its slopes are weights "
            f"of their own), got {initializer!r}"
        )
    return relu


_LAYERS: dict[str, Callable[[Mapping[str, Any]], Activation]] = {
    "Activation": lambda config: get(config.get("activation")),
    "ELU": lambda config: elu.with_options(alpha=float(config.get("alpha", 1.0))),
    "LeakyReLU": _leaky_relu_layer,
    "PReLU": _prelu_layer,
    "ReLU": _relu_layer,
    "Softmax": lambda config: softmax.with_options(axis=config.get("axis", -1)),
    "ThresholdedReLU": lambda config: relu.with_options(threshold=float(config.get("theta", 1))),
}
