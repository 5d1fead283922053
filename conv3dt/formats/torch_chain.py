"""PyTorch's ``nn.Sequential``: its layers, without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .. import activations
from ..activations import Activation as Function
from ..batchnorm import BatchNormalization
from ..dense import Dense
from ..layer import Conv3DTranspose
from ..members import Activation, Flatten, Member, Reshape
from .torch import array_of, from_torch

Layer = Conv3DTranspose | Member


def read(module: Any) -> list[Layer]:
    """The layers of a module, with their weights.

    Raises
    ------
    ValueError
        A module that a chain cannot have: the message has its name.
    TypeError
        Not a module, or weights that are no dense tensors of floats.
    """
    if not hasattr(module, "named_children"):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    return list(_layers(module, ""))


def _layers(module: Any, name: str) -> Iterator[Layer]:
    kind = type(module).__name__
    if kind == "Sequential":
        for child, part in module.named_children():
            yield from _layers(part, f"{name}.{child}" if name else child)
        return
    if kind in _NOTHING:
        return
    if kind not in _LAYERS and kind not in _ACTIVATIONS:
        known = ", ".join(["Sequential", *_LAYERS, *_NOTHING, *_ACTIVATIONS])
        raise ValueError(f"module must be made of {known}, got {kind} {name!r}")
    try:
        if kind in _LAYERS:
            yield _LAYERS[kind](module, name or None)
        else:
            yield Activation(_ACTIVATIONS[kind](module))
    except ValueError as error:
        raise ValueError(f"{kind} {name!r}: {error}") from error


def _convolution(module: Any, name: str | None) -> Layer:
    return from_torch(module, name=name)


def _normalization(module: Any, name: str | None) -> Layer:
    if module.running_mean is None:
        raise ValueError("it must track running statistics")
    given = (module.weight, module.bias, module.running_mean, module.running_var)
    weights = [array_of("weights", value) for value in given if value is not None]
    layer = BatchNormalization(
        1,
        epsilon=module.eps,
        scale=module.weight is not None,
        center=module.bias is not None,
        name=name,
        dtype=weights[0][1],
    )
    layer._adopt(*(array for array, _ in weights))
    return layer


def _dense(module: Any, name: str | None) -> Layer:
    kernel, dtype = array_of("weight", module.weight)
    bias = [] if module.bias is None else [array_of("bias", module.bias)[0]]
    layer = Dense(len(kernel), use_bias=bool(bias), name=name, dtype=dtype)
    layer._adopt(kernel.T, *bias)
    return layer


def _unflatten(module: Any, name: str | None) -> Layer:
    if module.dim != 1:
        raise ValueError(f"dim must be 1, got {module.dim}")
    return Reshape(tuple(module.unflattened_size), name=name)


def _flatten(module: Any, name: str | None) -> Layer:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise ValueError(f"dims must be 1 and -1, got {module.start_dim}, {module.end_dim}")
    return Flatten(name=name)


_LAYERS: dict[str, Callable[[Any, str | None], Layer]] = {
    "BatchNorm1d": _normalization,
    "BatchNorm3d": _normalization,
    "ConvTranspose3d": _convolution,
    "Flatten": _flatten,
    "Linear": _dense,
    "Unflatten": _unflatten,
}
_NOTHING = ("AlphaDropout", "Dropout", "Dropout1d", "Dropout3d", "FeatureAlphaDropout", "Identity")


def _plain(function: Function, **only: Any) -> Callable[[Any], Function]:
    """An activation, for these values of the module's attributes."""

    def read(module: Any) -> Function:
        given = {key: getattr(module, key) for key in only}
        if given != only:
            raise ValueError(f"it must have {only}, got {given}")
        return function

    return read


def _with(function: Function, **options: str) -> Callable[[Any], Function]:
    """An activation with options, each from an attribute of the module."""

    def read(module: Any) -> Function:
        given = {option: getattr(module, name) for option, name in options.items()}
        if given.get("axis", 1) is None:
            raise ValueError("it must have a dim")
        return function.with_options(**given)

    return read


def _gelu(module: Any) -> Function:
    return activations.gelu.with_options(approximate=module.approximate == "tanh")


def _hardtanh(module: Any) -> Function:
    low, high = module.min_val, module.max_val
    if (low, high) == (-1, 1):
        return activations.hard_tanh
    if low != 0 or high <= 0:
        raise ValueError(f"it must go from -1 to 1, or from 0, got {low}, {high}")
    return activations.relu.with_options(max_value=float(high))


def _prelu(module: Any) -> Function:
    slopes = array_of("weight", module.weight)[0].reshape(-1)
    if len(slopes) != 1:
        raise ValueError(f"it must have one slope, got {len(slopes)}")
    return activations.leaky_relu.with_options(negative_slope=float(slopes[0]))


_ACTIVATIONS: dict[str, Callable[[Any], Function]] = {
    "CELU": _with(activations.celu, alpha="alpha"),
    "ELU": _with(activations.elu, alpha="alpha"),
    "GELU": _gelu,
    "GLU": _with(activations.glu, axis="dim"),
    "Hardshrink": _with(activations.hard_shrink, threshold="lambd"),
    "Hardsigmoid": _plain(activations.hard_sigmoid),
    "Hardswish": _plain(activations.hard_silu),
    "Hardtanh": _hardtanh,
    "LeakyReLU": _with(activations.leaky_relu, negative_slope="negative_slope"),
    "LogSigmoid": _plain(activations.log_sigmoid),
    "LogSoftmax": _with(activations.log_softmax, axis="dim"),
    "Mish": _plain(activations.mish),
    "PReLU": _prelu,
    "ReLU": _plain(activations.relu),
    "ReLU6": _plain(activations.relu6),
    "SELU": _plain(activations.selu),
    "SiLU": _plain(activations.silu),
    "Sigmoid": _plain(activations.sigmoid),
    "Softmax": _with(activations.softmax, axis="dim"),
    "Softplus": _plain(activations.softplus, beta=1),
    "Softshrink": _with(activations.soft_shrink, threshold="lambd"),
    "Softsign": _plain(activations.softsign),
    "Tanh": _plain(activations.tanh),
    "Tanhshrink": _plain(activations.tanh_shrink),
}
