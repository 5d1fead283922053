"""Dense: a transposed convolution of single voxels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from . import activations, arguments, dtypes, engine, initializers
from .layer import Conv3DTranspose
from .members import TRAINING, Array, Member

if TYPE_CHECKING:
    import numpy.typing as npt

    from .arguments import Shape


class Dense(Member):
    """``activation(x @ kernel + bias)`` on the last axis, with the meaning of Keras' ``Dense``.

    Parameters
    ----------
    units : int
        Size of the result's last axis.
    activation : str, callable, config dict or None
        Any activation of Keras; None is linear.
    use_bias : bool
    kernel_initializer, bias_initializer : str, callable, array, config dict or None
    name : str, optional
    dtype : str, dtype or config dict of a dtype policy
        As `Conv3DTranspose` has it.
    num_threads : int, optional
        Default: as `conv3dt.set_num_threads` and OpenMP say. The result does not depend on it.

    Raises
    ------
    ValueError
        A bad argument; at build or call, shapes that do not fit. TypeError: an input that
        is no array of floats.

    Examples
    --------
    >>> import numpy as np
    >>> from conv3dt import Dense
    >>> layer = Dense(128, activation="relu")
    >>> layer(np.ones((2, 10), np.float32)).shape
    (2, 128)
    >>> layer.kernel.shape
    (10, 128)
    """

    _ignored = TRAINING
    _channel_axis = -1

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        *,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        name: str | None = None,
        dtype: Any = "float32",
        num_threads: int | None = None,
    ) -> None:
        super().__init__(name)
        self._units = arguments.positive_int("units", units)
        self._kernel_initializer = initializers.get(kernel_initializer or "glorot_uniform")
        self._voxels = Conv3DTranspose(
            self._units,
            1,
            data_format="channels_last",
            use_bias=use_bias,
            kernel_initializer=partial(_initial, self._kernel_initializer),
            bias_initializer=bias_initializer,
            name=self._name,
            dtype=dtype,
            num_threads=num_threads,
        )
        # The one algorithm whose sums do not depend on how many rows there are.
        self._voxels._algorithm = "tiles"
        self.activation = activation

    @property
    def units(self) -> int:
        """Size of the result's last axis."""
        return self._units

    @property
    def use_bias(self) -> bool:
        """Whether there is a bias."""
        return bool(self._voxels.use_bias)

    @property
    def dtype_policy(self) -> str:
        """Name of the dtype policy."""
        return str(self._voxels.dtype_policy)

    @property
    def activation(self) -> activations.Activation:
        """The activation; anything that stands for one may be assigned."""
        return self._activation

    @activation.setter
    def activation(self, value: Any) -> None:
        self._activation = activations.get(value)
        # Others look at the axes, and there are more of them in the convolution.
        elementwise = self._activation.scope == "element"
        self._voxels.activation = self._activation if elementwise else None

    @property
    def num_threads(self) -> int | None:
        """Threads of a call; None leaves it to `conv3dt.set_num_threads` and OpenMP."""
        return self._voxels.num_threads

    @num_threads.setter
    def num_threads(self, value: int | None) -> None:
        self._voxels.num_threads = value

    def __call__(self, x: npt.ArrayLike, out: Array | None = None) -> Array:
        """The result for a batch, (..., inputs) → (..., units); written to `out` if given."""
        x = arguments.as_array("x", x)
        if self.built:
            self._input(x.shape)
        else:
            self.build(x.shape)
        shape = self._activation.output_shape((*x.shape[:-1], self._units))
        if out is not None:
            arguments.check_out(out, shape, self._voxels._result)
        voxels = _voxels(prod(x.shape[:-1]))
        direct = out is not None and out.flags.c_contiguous and shape[-1] == self._units
        target = out.reshape(*voxels, self._units) if direct and out is not None else None
        y: Array = self._voxels(x.reshape(*voxels, x.shape[-1]), out=target)
        y = y.reshape(*x.shape[:-1], self._units)
        if self._activation.scope != "element":
            y = self._activation.inplace(y)
        if out is None:
            return y
        if not direct:
            out[...] = y
        return out

    def scratch(self, rows: int) -> int:
        """Bytes that the kernels take for so many rows, at most."""
        operation = self._voxels.operation((*_voxels(rows), len(self.kernel)))
        return operation.plan.scratch(self.num_threads or engine.get_num_threads())

    @property
    def built(self) -> bool:
        return self._voxels.built

    def build(self, input_shape: Sequence[int | None]) -> None:
        shape = self._input(input_shape)
        if shape[-1] is None:
            raise ValueError(f"input_shape must say the size of the last axis, got {shape}")
        self._activation.output_shape((*shape[:-1], self._units))
        self._voxels._build("input_shape", (None, 1, 1, None, shape[-1]))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        shape = self._input(input_shape)
        self._voxels.compute_output_shape((None, 1, 1, None, shape[-1]))
        return self._activation.output_shape((*shape[:-1], self._units))

    def _input(self, input_shape: Sequence[int | None]) -> Shape:
        shape = arguments.any_sizes("input_shape", input_shape, least=2)
        if self.built and shape[-1] not in (None, len(self.kernel)):
            raise ValueError(
                f"x must have {len(self.kernel)} numbers on its last axis, got shape {shape}"
            )
        return shape

    @property
    def kernel(self) -> Array:
        """Read-only view of the kernel, (inputs, units)."""
        kernel: Array = self._voxels.kernel[0, 0, 0].T
        return kernel

    @property
    def bias(self) -> Array | None:
        """Read-only view of the bias, (units,), or None without ``use_bias``."""
        bias: Array | None = self._voxels.bias
        return bias

    @property
    def weights(self) -> list[Array]:
        """Read-only views: kernel and, with ``use_bias``, bias; empty before build."""
        return [w[0, 0, 0].T if w.ndim == 5 else w for w in self._voxels.weights]

    def _store(self, weights: list[Array]) -> None:
        kernel, *bias = weights
        self._voxels.set_weights([kernel.T[None, None, None], *bias])

    def _adopt(self, *weights: npt.ArrayLike) -> None:
        kernel, *bias = (arguments.as_array("weights", w) for w in weights)
        if kernel.ndim != 2:
            raise ValueError(f"kernel must have 2 axes (inputs, units), got shape {kernel.shape}")
        self._voxels._adopt(kernel.T[None, None, None], *bias)

    def fold_batchnorm(self, **statistics: Any) -> None:
        """Take a BatchNormalization of the result into the weights, at inference.

        See `Conv3DTranspose.fold_batchnorm`.
        """
        self._voxels.fold_batchnorm(**statistics)

    def _state(self) -> tuple[Any, ...]:
        return self._activation, *self._voxels._state()

    def __copy__(self) -> Dense:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _voxels=self._voxels.__copy__())
        return twin

    def get_config(self) -> dict[str, Any]:
        config = {
            **super().get_config(),
            "dtype": dtypes.config(self.dtype_policy),
            "units": self._units,
            "activation": self._activation.config(),
            "use_bias": self.use_bias,
            "kernel_initializer": initializers.serialize(self._kernel_initializer),
            "bias_initializer": initializers.serialize(self._voxels.bias_initializer),
        }
        return config if self.num_threads is None else {**config, "num_threads": self.num_threads}

    def _shown(self) -> list[str]:
        shown = [repr(self._units)]
        if self._activation.code != 0:
            shown.append(f"activation={self._activation.name!r}")
        if not self.use_bias:
            shown.append("use_bias=False")
        if self.dtype_policy != "float32":
            shown.append(f"dtype={self.dtype_policy!r}")
        return shown


def _voxels(rows: int) -> tuple[int, int, int, int]:
    # Without compiled kernels BLAS sums by the number of rows: give them one by one.
    return (1, 1, 1, rows) if engine.selected() != "numpy" else (rows, 1, 1, 1)


def _initial(initializer: Any, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """The kernel of the convolution, by an initializer that looks at (inputs, units)."""
    units, inputs = shape[3:]
    kernel = np.asarray(initializer((inputs, units), dtype=dtype))
    found: Array = arguments.weight("kernel_initializer", kernel, (inputs, units)).T.reshape(shape)
    return found
