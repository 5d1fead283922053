"""Initializers: the first values of kernel and bias.

Names, arguments and distributions are those of Keras 3.15; a seed makes the values
repeatable, but the numbers are NumPy's, not those of Keras' generators. Fans are those of
the kernel as it is stored, (kd, kh, kw, filters // groups, in_channels): ``fan_in`` is
taps * filters // groups and ``fan_out`` taps * in_channels, the reverse of what their names
say for a transposed convolution, and what Keras does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from . import identifiers

Array = np.ndarray[Any, Any]
Shape = Sequence[int]


class Initializer:
    """Base of the initializers: ``initializer(shape, dtype)`` returns an array."""

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    def get_config(self) -> identifiers.Config:
        """The arguments that make an equal initializer."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Initializer:
        """An initializer from its ``get_config``."""
        return cls(**config)


class Constant(Initializer):
    """One value, or an array that broadcasts to the shape."""

    def __init__(self, value: Any = 0.0) -> None:
        self.value = value

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        try:
            value = np.broadcast_to(np.asarray(self.value), tuple(shape))
        except ValueError as error:
            raise ValueError(
                f"Constant must have a value that broadcasts to {tuple(shape)}, "
                f"got shape {np.shape(self.value)}"
            ) from error
        if value.dtype.kind in "cSUOMm":
            raise TypeError(f"Constant must have a value of real numbers, got {value.dtype}")
        return value.astype(_dtype(dtype))

    def get_config(self) -> identifiers.Config:
        value = self.value
        if isinstance(value, (np.ndarray, np.generic)):
            return {"value": _array_config(np.asarray(value))}
        return {"value": value}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Constant:
        value = config.get("value", 0.0)
        if isinstance(value, dict):  # an array, as Keras 3 writes it
            inner = value.get("config", {})
            value = np.array(inner.get("value", 0.0), dtype=inner.get("dtype"))
        return cls(value)


class Zeros(Initializer):
    """Zeros."""

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        return np.zeros(tuple(shape), _dtype(dtype))


class Ones(Initializer):
    """Ones."""

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        return np.ones(tuple(shape), _dtype(dtype))


class Identity(Initializer):
    """The identity matrix: for two axes only, so never for a kernel of this package."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        if len(shape) != 2:
            raise ValueError(f"Identity must be used for 2 axes, got shape {tuple(shape)}")
        return self.gain * np.eye(shape[0], shape[1], dtype=_dtype(dtype))

    def get_config(self) -> identifiers.Config:
        return {"gain": self.gain}


class STFT(Initializer):
    """Keras' kernel of a short-time Fourier transform: no kernel of this package."""

    def __init__(
        self,
        side: str = "real",
        window: Any = "hann",
        scaling: str | None = "density",
        periodic: bool = False,
    ) -> None:
        self.side, self.window, self.scaling, self.periodic = side, window, scaling, periodic

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        raise ValueError(f"STFT must be used for Keras' spectrograms, got shape {tuple(shape)}")

    def get_config(self) -> identifiers.Config:
        return {
            "side": self.side,
            "window": self.window,
            "scaling": self.scaling,
            "periodic": self.periodic,
        }


class RandomInitializer(Initializer):
    """Base of the random initializers; a seed makes every call give the same values."""

    def __init__(self, seed: Any = None) -> None:
        if isinstance(seed, dict):  # a SeedGenerator, as Keras 3 writes it
            seed = seed.get("config", {}).get("seed")
        if seed is not None and not isinstance(seed, (int, np.integer)):
            raise ValueError(f"seed must be None or an integer, got {seed!r}")
        self.seed = None if seed is None else int(seed)

    def generator(self) -> np.random.Generator:
        """A new generator, from the seed if there is one."""
        return np.random.default_rng(None if self.seed is None else self.seed % 2**64)

    def get_config(self) -> identifiers.Config:
        return {"seed": self.seed}


class RandomNormal(RandomInitializer):
    """The normal distribution."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: Any = None) -> None:
        super().__init__(seed)
        self.mean, self.stddev = mean, stddev

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        values = self.generator().standard_normal(tuple(shape))
        return (self.mean + self.stddev * values).astype(_dtype(dtype))

    def get_config(self) -> identifiers.Config:
        return {**super().get_config(), "mean": self.mean, "stddev": self.stddev}


class TruncatedNormal(RandomNormal):
    """The normal distribution cut off at two standard deviations (of the uncut one)."""

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        values = _truncated_normal(self.generator(), tuple(shape))
        return (self.mean + self.stddev * values).astype(_dtype(dtype))


class RandomUniform(RandomInitializer):
    """The uniform distribution on [minval, maxval)."""

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: Any = None) -> None:
        super().__init__(seed)
        self.minval, self.maxval = minval, maxval

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        values = self.generator().uniform(self.minval, self.maxval, tuple(shape))
        return values.astype(_dtype(dtype))

    def get_config(self) -> identifiers.Config:
        return {**super().get_config(), "minval": self.minval, "maxval": self.maxval}


class VarianceScaling(RandomInitializer):
    """Values of variance ``scale / n``, n being the fan that ``mode`` names.

    Parameters
    ----------
    scale
        Positive.
    mode
        ``"fan_in"``, ``"fan_out"`` or ``"fan_avg"``.
    distribution
        ``"truncated_normal"`` (also called ``"normal"``), ``"untruncated_normal"`` or
        ``"uniform"``.
    input_axes, output_axes
        The axes whose product each fan is, both or none.
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: Any = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(seed)
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale!r}")
        if mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ValueError(f"mode must be fan_in, fan_out or fan_avg, got {mode!r}")
        name = str(distribution).lower()
        name = "truncated_normal" if name == "normal" else name
        if name not in ("truncated_normal", "untruncated_normal", "uniform"):
            raise ValueError(
                "distribution must be truncated_normal, untruncated_normal or uniform, "
                f"got {distribution!r}"
            )
        self.scale, self.mode, self.distribution = scale, mode, name
        self.input_axes, self.output_axes = input_axes, output_axes

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        fan_in, fan_out = fans(shape, self.input_axes, self.output_axes)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        deviation = sqrt(self.scale / max(1.0, fan))
        generator, shape = self.generator(), tuple(shape)
        if self.distribution == "uniform":
            values = generator.uniform(-sqrt(3.0), sqrt(3.0), shape)
        elif self.distribution == "untruncated_normal":
            values = generator.standard_normal(shape)
        else:
            values = _truncated_normal(generator, shape) / TRUNCATED_DEVIATION
        return (deviation * values).astype(_dtype(dtype))

    def get_config(self) -> identifiers.Config:
        return {
            "scale": self.scale,
            "mode": self.mode,
            "distribution": self.distribution,
            **_FanScaling.get_config(self),  # type: ignore[arg-type]
        }


class _FanScaling(VarianceScaling):
    """Base of the variance scalings with a name of their own."""

    rule: tuple[float, str, str]

    def __init__(
        self,
        seed: Any = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(*self.rule, seed, input_axes, output_axes)

    def get_config(self) -> identifiers.Config:
        return {
            "seed": self.seed,
            "input_axes": self.input_axes,
            "output_axes": self.output_axes,
        }


class GlorotNormal(_FanScaling):
    """Truncated normal, variance 2 / (fan_in + fan_out)."""

    rule = (1.0, "fan_avg", "truncated_normal")


class GlorotUniform(_FanScaling):
    """Uniform, variance 2 / (fan_in + fan_out): the default of kernels."""

    rule = (1.0, "fan_avg", "uniform")


class HeNormal(_FanScaling):
    """Truncated normal, variance 2 / fan_in."""

    rule = (2.0, "fan_in", "truncated_normal")


class HeUniform(_FanScaling):
    """Uniform, variance 2 / fan_in."""

    rule = (2.0, "fan_in", "uniform")


class LecunNormal(_FanScaling):
    """Truncated normal, variance 1 / fan_in."""

    rule = (1.0, "fan_in", "truncated_normal")


class LecunUniform(_FanScaling):
    """Uniform, variance 1 / fan_in."""

    rule = (1.0, "fan_in", "uniform")


class Orthogonal(RandomInitializer):
    """A random matrix with orthonormal rows or columns (times ``gain``), all axes but the
    last taken as one."""

    def __init__(self, gain: float = 1.0, seed: Any = None) -> None:
        super().__init__(seed)
        self.gain = gain

    def __call__(self, shape: Shape, dtype: Any = None) -> Array:
        if len(shape) < 2:
            raise ValueError(f"Orthogonal must be used for 2 or more axes, got {tuple(shape)}")
        rows, columns = prod(shape[:-1]), shape[-1]
        tall = (max(rows, columns), min(rows, columns))
        q, r = np.linalg.qr(self.generator().standard_normal(tall))
        q = q * np.sign(np.diagonal(r))  # uniform over the orthogonal matrices
        if rows < columns:
            q = q.T
        return np.asarray(self.gain * q.reshape(tuple(shape)), _dtype(dtype))

    def get_config(self) -> identifiers.Config:
        return {**super().get_config(), "gain": self.gain}


# Standard deviation of the standard normal distribution cut off at +-2.
TRUNCATED_DEVIATION = 0.87962566103423978


def fans(
    shape: Shape,
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> tuple[int, int]:
    """``(fan_in, fan_out)`` of a weight, as Keras counts them."""
    if input_axes is not None and output_axes is not None:
        return prod(shape[i] for i in input_axes), prod(shape[i] for i in output_axes)
    if len(shape) < 2:
        return prod(shape), prod(shape)
    taps = prod(shape[:-2])
    return taps * shape[-2], taps * shape[-1]


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The initializer that ``identifier`` stands for; None stays None.

    Parameters
    ----------
    identifier
        A name, an instance, a class, a callable ``f(shape, dtype)``, a config dict of
        Keras 2 or Keras 3, or an array of the values themselves.
    custom_objects
        The user's own classes or functions by name; they come first.
    """
    if isinstance(identifier, (np.ndarray, np.generic)):
        return Constant(identifier)
    return identifiers.resolve("initializer", identifier, INITIALIZERS, custom_objects)


def serialize(initializer: Any) -> identifiers.Config | None:
    """The config dict of an initializer, as Keras 3 writes it."""
    return identifiers.serialize("initializer", initializer, "keras.initializers")


def _dtype(dtype: Any) -> np.dtype[Any]:
    return np.dtype(np.float32 if dtype is None else dtype)


def _truncated_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    values: Array = np.asarray(generator.standard_normal(shape))
    while (outside := np.abs(values) > 2).any():
        values[outside] = generator.standard_normal(np.count_nonzero(outside))
    return values


def _array_config(array: Array) -> identifiers.Config:
    return {
        "class_name": "__numpy__",
        "config": {"value": array.tolist(), "dtype": array.dtype.name},
    }


#: Every initializer by name: the classes, their snake_case, the V2 of Keras 2, and aliases.
INITIALIZERS: dict[str, type[Initializer]] = {
    "Constant": Constant,
    "GlorotNormal": GlorotNormal,
    "GlorotUniform": GlorotUniform,
    "HeNormal": HeNormal,
    "HeUniform": HeUniform,
    "Identity": Identity,
    "LecunNormal": LecunNormal,
    "LecunUniform": LecunUniform,
    "Ones": Ones,
    "Orthogonal": Orthogonal,
    "RandomNormal": RandomNormal,
    "RandomUniform": RandomUniform,
    "STFT": STFT,
    "TruncatedNormal": TruncatedNormal,
    "VarianceScaling": VarianceScaling,
    "Zeros": Zeros,
}
INITIALIZERS |= {
    **{identifiers.snake_case(name): cls for name, cls in INITIALIZERS.items()},
    **{name + "V2": cls for name, cls in INITIALIZERS.items()},
    "IdentityInitializer": Identity,
    "OrthogonalInitializer": Orthogonal,
    "STFTInitializer": STFT,
    "normal": RandomNormal,
    "one": Ones,
    "uniform": RandomUniform,
    "zero": Zeros,
}
