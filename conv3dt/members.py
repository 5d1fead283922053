"""Members of a chain: what they have in common, and those without weights.

`Conv3DTranspose` has the same methods. A member is called like any layer, on a batch. Beyond
that, a `View` and an `Overwriting` say that they need no memory for their result: a chain lets
them work in the memory of the result before them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from . import activations, arguments, names, output_pool

if TYPE_CHECKING:
    import numpy.typing as npt

    from .arguments import Shape

Array = np.ndarray[Any, Any]


# What a config may hold and no result depends on, here where nothing is trained.
TRAINING = frozenset(
    "activity_regularizer autocast batch_input_shape beta_constraint beta_regularizer "
    "bias_constraint bias_regularizer dynamic fused gamma_constraint gamma_regularizer input_dim "
    "kernel_constraint kernel_regularizer lora_alpha lora_rank quantization_config ragged sparse "
    "synchronized trainable".split()
)


class Member:
    """A layer without weights that returns what it gets."""

    _ignored = TRAINING | {"dtype"}  # whoever has no weights keeps the dtype of its input

    def __init__(self, name: str | None = None) -> None:
        self._name = names.layer_name(name, type(self))

    @property
    def name(self) -> str:
        """The layer's name."""
        return self._name

    @property
    def built(self) -> bool:
        """Whether the layer has its weights."""
        return True

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights for an input shape, batch included. ValueError: it cannot be taken."""
        self.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        """Shape of the result for an input shape, batch included; unknown sizes are None."""
        return arguments.any_sizes("input_shape", input_shape)

    @property
    def weights(self) -> list[Array]:
        """Read-only views, in Keras' order; empty before build."""
        return []

    def get_weights(self) -> list[Array]:
        """Copies of `weights`."""
        return [w.copy() for w in self.weights]

    def set_weights(self, weights: Sequence[npt.ArrayLike]) -> None:
        """Set all weights or, after an error, none.

        Raises
        ------
        ValueError
            The layer is not built, or the number or a shape of the arrays is wrong.
        TypeError
            No sequence, or an array that is not of floats.
        """
        self._check_built("weights")
        weights = arguments.listed("weights", weights, "arrays")
        shapes = [w.shape for w in self.weights]
        if len(weights) != len(shapes):
            raise ValueError(f"weights must be {len(shapes)} arrays, got {len(weights)}")
        self._store(
            [
                arguments.weight("weights", value, shape)
                for value, shape in zip(weights, shapes, strict=True)
            ]
        )

    def _store(self, weights: list[Array]) -> None:
        """Take weights of the right number and shapes."""

    def _adopt(self, *weights: npt.ArrayLike) -> None:
        """Build the layer with weights from elsewhere; none are initialised first."""
        raise ValueError(f"weights must be none, got {len(weights)}")

    def _state(self) -> tuple[Any, ...]:
        """What results depend on: all the same objects as long as nothing has been set."""
        return ()

    def count_params(self) -> int:
        """Number of weights. ValueError before build."""
        self._check_built("count_params")
        return sum(w.size for w in self.weights)

    def _check_built(self, what: str) -> None:
        if not self.built:
            raise ValueError(
                f"{what} must be used after the layer is built: call it or build(input_shape) it; "
                f"{self._name} is not built"
            )

    def get_config(self) -> dict[str, Any]:
        """The arguments of an equal layer, without weights, as Keras 3 writes them."""
        return {"name": self._name}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Member:
        """A layer from the config of this class or of Keras 2 or Keras 3.

        What concerns training alone is ignored.

        Raises
        ------
        ValueError
            An unknown key or name, or a bad value.
        """
        known = {key: value for key, value in config.items() if key not in cls._ignored}
        if "activation" in known:
            known["activation"] = activations.get(known["activation"], custom_objects)
        return cls._made(known)

    @classmethod
    def _made(cls, known: dict[str, Any]) -> Member:
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(
                f"config must hold the arguments of {cls.__name__}, got {sorted(known)}: {error}"
            ) from error

    def _shown(self) -> list[str]:
        """The arguments worth showing."""
        return []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join([*self._shown(), f'name={self._name!r}'])})"


class View(Member):
    """A layer whose result is its input, seen otherwise."""

    def inplace(self, y: Array) -> Array:
        """The result: a view of `y`, or a copy where its strides allow none."""
        return y

    def __call__(self, x: npt.ArrayLike, out: Array | None = None) -> Array:
        """The result for a batch; written to `out` if that is given."""
        y = self.inplace(arguments.as_array("x", x))
        if out is None:
            return y
        arguments.check_out(out, y.shape, y.dtype)
        out[...] = y
        return out


class Overwriting(Member):
    """A layer whose result may take the place of its input."""

    def inplace(self, y: Array) -> Array:
        """Apply to `y` in place, and return it."""
        raise NotImplementedError

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """dtype of the result for an input of `dtype`."""
        return dtype

    def __call__(self, x: npt.ArrayLike, out: Array | None = None) -> Array:
        """The result for a batch; written to `out` if that is given."""
        x = arguments.as_array("x", x)
        self.build(x.shape)
        dtype = self.result_dtype(x.dtype)
        if out is None:
            out = output_pool.empty(x.shape, dtype)
        arguments.check_out(out, x.shape, dtype)
        with np.errstate(all="ignore"):
            out[...] = x
        return self.inplace(out)


class Activation(Overwriting):
    """An activation as a layer of its own.

    After a layer without an activation a chain computes it together with that layer.

    Parameters
    ----------
    activation : str, callable or config dict
        Any activation of Keras, see `conv3dt.activations`; glu, which halves the last axis,
        needs memory of its own.
    name : str, optional

    Raises
    ------
    ValueError
        An unknown name.

    Examples
    --------
    >>> import numpy as np
    >>> from conv3dt import Activation
    >>> Activation("relu")(np.array([[-1.0, 2.0]]))
    array([[0., 2.]])
    """

    def __init__(self, activation: Any, *, name: str | None = None) -> None:
        super().__init__(name)
        self._activation = activations.get(activation)

    @property
    def activation(self) -> activations.Activation:
        """The activation."""
        return self._activation

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        return self._activation.output_shape(super().compute_output_shape(input_shape))

    def inplace(self, y: Array) -> Array:
        return self._activation.inplace(y)

    def __call__(self, x: npt.ArrayLike, out: Array | None = None) -> Array:
        x = arguments.as_array("x", x)
        shape = self.compute_output_shape(x.shape)
        if shape == x.shape:
            return super().__call__(x, out)
        if out is not None:
            arguments.check_out(out, shape, x.dtype)  # type: ignore[arg-type]
        y = self.inplace(x)
        if out is None:
            return y
        out[...] = y
        return out

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "activation": self._activation.config()}

    def _shown(self) -> list[str]:
        return [repr(self._activation.name)]


class Reshape(View):
    """Another shape for each sample, the numbers in the order of memory.

    Parameters
    ----------
    target_shape : ints
        Without the batch. One of them may be -1: what is left.
    name : str, optional

    Raises
    ------
    ValueError
        Not sizes; at build or call, a shape of another number of elements.

    Examples
    --------
    >>> import numpy as np
    >>> from conv3dt import Reshape
    >>> Reshape((4, 4, 4, 2))(np.ones((3, 128))).shape
    (3, 4, 4, 4, 2)
    """

    def __init__(self, target_shape: Sequence[int], *, name: str | None = None) -> None:
        super().__init__(name)
        self._target_shape = _target(target_shape)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """The shape of a sample; -1 is what is left."""
        return self._target_shape

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        batch, *sizes = arguments.any_sizes("input_shape", input_shape)
        target = self._target_shape
        known = prod(size for size in target if size != -1)
        if None in sizes:
            return (batch, *(None if size == -1 else size for size in target))
        count = prod(size for size in sizes if size is not None)
        if count % known if -1 in target and known else count != known:
            raise ValueError(
                f"target_shape must have the {count} elements of a sample, got {target} for "
                f"{tuple(sizes)}"
            )
        rest = count // known if known else 0
        return (batch, *(rest if size == -1 else size for size in target))

    def inplace(self, y: Array) -> Array:
        return y.reshape(self.compute_output_shape(y.shape))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "target_shape": self._target_shape}

    def _shown(self) -> list[str]:
        return [repr(self._target_shape)]


class Flatten(View):
    """Each sample as one row, in the order of memory.

    Parameters
    ----------
    data_format : "channels_last", optional
        The only one; it stands here because Keras' layer has it.
    name : str, optional

    Raises
    ------
    ValueError
        Another data format: Keras moves the channels to the end then.
    """

    def __init__(self, data_format: str | None = None, *, name: str | None = None) -> None:
        super().__init__(name)
        if data_format is not None and not _is_channels_last(data_format):
            raise ValueError(f'data_format must be "channels_last", got {data_format!r}')

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        batch, *sizes = arguments.any_sizes("input_shape", input_shape)
        if None in sizes:
            return (batch, None)
        return (batch, prod(size for size in sizes if size is not None))

    def inplace(self, y: Array) -> Array:
        return y.reshape(self.compute_output_shape(y.shape))


def _is_channels_last(value: Any) -> bool:
    return isinstance(value, str) and value == "channels_last"


class Dropout(View):
    """Nothing, at inference; accepted because trained models hold it.

    Parameters
    ----------
    rate : float
        Kept for the config.
    name : str, optional
    """

    def __init__(
        self,
        rate: float = 0.5,
        noise_shape: Sequence[int] | None = None,
        seed: int | None = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self._rate = arguments.number("rate", rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self._rate}

    def _shown(self) -> list[str]:
        return [repr(self._rate)]


class InputLayer(View):
    """The shape of the input, in front of a chain, which it builds at once.

    Parameters
    ----------
    shape : sizes
        Of one sample; unknown sizes are None.
    name : str, optional

    Raises
    ------
    ValueError
        Not sizes; at call, an input of another shape.
    """

    def __init__(self, shape: Sequence[int | None], *, name: str | None = None) -> None:
        super().__init__(name)
        self._shape = arguments.any_sizes("shape", shape, least=0)

    @property
    def shape(self) -> Shape:
        """Shape of one sample."""
        return self._shape

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        batch, *sizes = arguments.any_sizes("input_shape", input_shape)
        pairs = [(a, b) for a, b in zip(sizes, self._shape, strict=False) if None not in (a, b)]
        if len(sizes) != len(self._shape) or any(a != b for a, b in pairs):
            raise ValueError(f"x must have shape {(None, *self._shape)}, got {(batch, *sizes)}")
        return (batch, *(b if a is None else a for a, b in zip(sizes, self._shape, strict=True)))

    def inplace(self, y: Array) -> Array:
        self.compute_output_shape(y.shape)
        return y

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shape": self._shape}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Member:
        known = {key: value for key, value in config.items() if key not in cls._ignored}
        known.pop("optional", None)
        batched = known.pop("batch_shape", None) or config.get("batch_input_shape")
        return cls._made(known if batched is None else {"shape": tuple(batched)[1:], **known})

    def _shown(self) -> list[str]:
        return [repr(self._shape)]


def _target(value: Any) -> tuple[int, ...]:
    try:
        target = tuple(operator.index(size) for size in value)
    except TypeError:
        target = (-2,)
    if min(target, default=0) < -1 or target.count(-1) > 1:
        raise ValueError(
            f"target_shape must be non-negative integers, one of them perhaps -1, got {value!r}"
        )
    return target
