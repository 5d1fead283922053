"""BatchNormalization at inference: a scale and a shift per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import activations, arguments, dtypes, initializers
from .members import TRAINING, Array, Member, Overwriting

if TYPE_CHECKING:
    import numpy.typing as npt

    from .arguments import Shape


class BatchNormalization(Overwriting):
    """``gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta`` per channel.

    The meaning is that of Keras' layer at inference. After a layer with weights and without
    an activation a chain folds it into that layer, see `Sequential`.

    Parameters
    ----------
    axis : int
        The axis of the channels.
    momentum : float
        Of training; kept for the config.
    epsilon : float
        Keras' default; PyTorch and ONNX have 1e-5.
    center, scale : bool
        Whether there are a beta and a gamma.
    beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer
        What the weights are until they are set.
    name : str, optional
    dtype : str, dtype or config dict of a dtype policy
        As `Conv3DTranspose` has it.

    Raises
    ------
    ValueError
        A bad argument; at build or call, a shape without the axis or with other channels.

    Examples
    --------
    >>> import numpy as np
    >>> from conv3dt import BatchNormalization
    >>> layer = BatchNormalization(epsilon=0.0)
    >>> layer.build((None, 2))
    >>> layer.set_weights([np.full(2, v) for v in (3.0, 1.0, 4.0, 4.0)])
    >>> layer(np.array([[4.0, 8.0]], "float32"))
    array([[1., 7.]], dtype=float32)
    """

    _ignored = TRAINING

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        *,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        name: str | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(name)
        self._axis = arguments.axis("axis", axis)
        self._momentum = arguments.number("momentum", momentum)
        self._epsilon = arguments.number("epsilon", epsilon)
        if not self._epsilon >= 0:
            raise ValueError(f"epsilon must be a non-negative number, got {epsilon!r}")
        self._center, self._scale = bool(center), bool(scale)
        self._initializers = {
            "beta_initializer": initializers.get(beta_initializer),
            "gamma_initializer": initializers.get(gamma_initializer),
            "moving_mean_initializer": initializers.get(moving_mean_initializer),
            "moving_variance_initializer": initializers.get(moving_variance_initializer),
        }
        self._policy = dtypes.policy(dtype)
        self._named: dict[str, Array] = {}
        # Scale and shift, in the dtype of the sums.
        self._affine: tuple[Array, Array] | None = None

    @property
    def axis(self) -> int:
        """The axis of the channels."""
        return self._axis

    _channel_axis = axis

    @property
    def epsilon(self) -> float:
        """What is added to the variance."""
        return self._epsilon

    @property
    def dtype_policy(self) -> str:
        """Name of the dtype policy."""
        return self._policy.name

    @property
    def built(self) -> bool:
        return self._affine is not None

    @property
    def weights(self) -> list[Array]:
        """Read-only views: gamma, beta, moving_mean, moving_variance, as far as there are."""
        return [w.view() for w in self._named.values()]

    def _state(self) -> tuple[Any, ...]:
        return (self._affine,)

    @property
    def finite(self) -> bool:
        """Whether scale and shift are numbers: not with a negative or empty variance."""
        return self._affine is not None and all(np.isfinite(a).all() for a in self._affine)

    @property
    def statistics(self) -> dict[str, Any]:
        """The arguments of ``fold_batchnorm``."""
        self._check_built("statistics")
        return {
            "gamma": self._named.get("gamma"),
            "beta": self._named.get("beta"),
            "mean": self._named["moving_mean"],
            "variance": self._named["moving_variance"],
            "epsilon": self._epsilon,
        }

    def build(self, input_shape: Sequence[int | None]) -> None:
        shape = self.compute_output_shape(input_shape)
        channels = shape[self._axis]
        if channels is None:
            raise ValueError(f"input_shape must say the size of axis {self._axis}, got {shape}")
        arguments.check_bytes("weights", (channels,), 8, f"got {channels} channels in input_shape")
        if self._affine is None:
            self._store([self._initial(name, channels) for name in self._names()])

    def _names(self) -> list[str]:
        optional = {"gamma": self._scale, "beta": self._center}
        return [n for n, there in optional.items() if there] + ["moving_mean", "moving_variance"]

    def _initial(self, name: str, channels: int) -> Array:
        initializer = self._initializers[f"{name}_initializer"]
        array = np.asarray(initializer((channels,), dtype=self._policy.variable.name))
        return arguments.weight(f"{name}_initializer", array, (channels,))

    def _store(self, weights: list[Array]) -> None:
        named: dict[str, Array] = {}
        for name, array in zip(self._names(), weights, strict=True):
            named[name] = dtypes.cast(array, self._policy.variable)
            named[name].flags.writeable = False
        with np.errstate(all="ignore"):
            exact = {name: array.astype(np.float64) for name, array in named.items()}
            scale = exact.get("gamma", 1.0) / np.sqrt(exact["moving_variance"] + self._epsilon)
            shift = exact.get("beta", 0.0) - exact["moving_mean"] * scale
            affine = scale.astype(self._policy.compute), shift.astype(self._policy.compute)
        self._named, self._affine = named, affine

    def _adopt(self, *weights: npt.ArrayLike) -> None:
        names = self._names()
        if len(weights) != len(names):
            raise ValueError(f"weights must be {', '.join(names)}, got {len(weights)}")
        channels = arguments.as_array(names[0], weights[0]).shape[:1]
        pairs = zip(names, weights, strict=True)
        self._store([arguments.weight(name, w, channels or (0,)) for name, w in pairs])

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        shape = super().compute_output_shape(input_shape)
        if not -len(shape) <= self._axis < len(shape):
            raise ValueError(f"x must have an axis {self._axis}, got shape {shape}")
        channels = shape[self._axis]
        if self._affine is None:
            return shape
        own = len(self._affine[0])
        if channels not in (None, own):
            raise ValueError(
                f"x must have {own} channels on axis {self._axis}, got {channels}: shape {shape}"
            )
        result = list(shape)
        result[self._axis] = own
        return tuple(result)

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return self._policy.result

    def inplace(self, y: Array) -> Array:
        assert self._affine is not None
        scale, shift = self._affine
        with np.errstate(all="ignore"):
            for block in activations.blocks(np.moveaxis(y, self._axis, -1), keep=1):
                block[...] = block.astype(scale.dtype, copy=False) * scale + shift
        return y

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Member:
        if config.get("renorm"):
            raise ValueError("renorm must be False, got True: it has more weights than are used")
        known = {key: value for key, value in config.items() if not key.startswith("renorm")}
        return super().from_config(known, custom_objects)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dtype": dtypes.config(self._policy.name),
            "axis": self._axis,
            "momentum": self._momentum,
            "epsilon": self._epsilon,
            "center": self._center,
            "scale": self._scale,
            **{key: initializers.serialize(value) for key, value in self._initializers.items()},
        }

    def _shown(self) -> list[str]:
        defaults = {"axis": -1, "epsilon": 1e-3, "center": True, "scale": True}
        values = {key: getattr(self, f"_{key}") for key in defaults}
        shown = [f"{key}={values[key]!r}" for key in defaults if values[key] != defaults[key]]
        if self._policy.name != "float32":
            shown.append(f"dtype={self._policy.name!r}")
        return shown
