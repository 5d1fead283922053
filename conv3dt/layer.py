"""The layer: Keras' ``Conv3DTranspose`` for NumPy arrays.

Everything a call needs is decided when it can first be known: arguments at construction,
weights (and their packed form) when they are set, problem and plan when an input shape is
first seen. A warm call looks the shape up and goes straight to the kernel.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import (
    activations,
    arguments,
    blocks,
    chained,
    constraints,
    dtypes,
    engine,
    initializers,
    names,
    pieces,
    plan,
    regularizers,
)
from .problem import Problem

if TYPE_CHECKING:
    import numpy.typing as npt

Array = np.ndarray[Any, Any]

# Input shapes remembered per layer. A plan is a few integers; all share the packed weights.
SEEN_SHAPES = 32

# What Keras 2 writes into a config and no layer of ours needs.
_IGNORED = ("autocast", "dynamic", "quantization_config", "ragged", "sparse")

_building = threading.Lock()


def _fixed(name: str, doc: str) -> property:
    """A read-only attribute: what it says is built into the cached problems."""
    return property(operator.attrgetter("_" + name), doc=doc)


class Conv3DTranspose:
    """3D transposed convolution layer, with the meaning of Keras' ``Conv3DTranspose``.

    When using this layer as the first layer, ``input_shape`` makes it usable, weights and
    all, before the first call; otherwise the first call builds it.

    Parameters
    ----------
    filters : int
        Channels of the result.
    kernel_size, strides, dilation_rate : int or 3 ints
        For depth, height and width. As in Keras, strides > 1 and dilation_rate > 1 exclude
        each other, except with explicit padding.
    padding : {"valid", "same"}, int, 3 ints, or 3 pairs of ints
        The strings (any case) are those of Keras. Numbers are voxels ``(lo, hi)`` cropped
        from the full output, as PyTorch and ONNX mean their pads.
    output_padding : int or 3 ints, optional
        Settles the output size where several are possible, see `conv3d_transpose`. From here
        on keyword-only, because Keras 2 and Keras 3 disagree about the order.
    data_format : {"channels_last", "channels_first"}, optional
        Default: ``image_data_format`` in Keras' ``keras.json``, else "channels_last".
    groups : int
        Divides `filters` and the input channels; each group has its own share of both.
    activation : str, callable, config dict or None
        Any activation of Keras; None is linear. softmax and glu work on the last axis,
        whatever the data format, as in Keras.
    use_bias : bool
    kernel_initializer : str, callable, array, config dict or None
        None means "glorot_uniform", as in Keras.
    bias_initializer : str, callable, array, config dict or None
        None means "glorot_uniform", as in Keras, and not the default.
    kernel_regularizer, bias_regularizer, activity_regularizer : str, callable, dict or None
        See `losses`.
    kernel_constraint, bias_constraint : str, callable, config dict or None
        See `apply_constraints`.
    input_shape : 4 sizes, optional
        Shape of one sample, channels where `data_format` says; spatial sizes may be None.
        Builds the layer at once (Keras waits for the first call).
    name : str, optional
        Default: ``conv3d_transpose``, ``conv3d_transpose_1``, ...
    dtype : str, dtype or config dict of a dtype policy
        "float32", "float64", "float16", "bfloat16" (needs ml_dtypes), "mixed_float16" or
        "mixed_bfloat16". The half types are computed in float32; mixed policies have float32
        weights and a half-precision result.
    trainable : bool
    num_threads : int, optional
        Default: as `conv3dt.set_num_threads` and OpenMP say.
    algorithm : {"auto", "direct", "im2col", "winograd"}
        "direct" sums the formula as written, and has NaN and Inf exactly where it says.

    Raises
    ------
    ValueError
        A bad argument; at build or call, shapes that do not fit. TypeError: an input that
        is no array of floats.

    Examples
    --------
    >>> import numpy as np
    >>> from conv3dt import Conv3DTranspose
    >>> layer = Conv3DTranspose(8, 3, strides=2, padding="same", activation="relu")
    >>> layer(np.ones((1, 4, 4, 4, 2), np.float32)).shape
    (1, 8, 8, 8, 8)
    >>> layer.kernel.shape
    (3, 3, 3, 8, 2)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1, 1),
        padding: Any = "valid",
        *,
        output_padding: int | Sequence[int] | None = None,
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1, 1),
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        input_shape: Sequence[int | None] | None = None,
        name: str | None = None,
        dtype: Any = "float32",
        trainable: bool = True,
        num_threads: int | None = None,
        algorithm: str = "auto",
    ) -> None:
        self._filters = arguments.positive_int("filters", filters)
        self._kernel_size = arguments.triple("kernel_size", kernel_size)
        self._strides = arguments.triple("strides", strides)
        self._dilation_rate = arguments.triple("dilation_rate", dilation_rate)
        self._padding = arguments.padding(padding)
        arguments.stride_dilation_rule(self._strides, self._dilation_rate, self._padding)
        self._output_padding = arguments.output_padding(
            output_padding, self._strides, self._dilation_rate, self._padding
        )
        self._data_format = arguments.data_format(data_format)
        self._groups = arguments.positive_int("groups", groups)
        arguments.check_groups(self._groups, "filters", self._filters)
        self._use_bias = arguments.flag("use_bias", use_bias)

        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.trainable = arguments.flag("trainable", trainable)

        self._set_policy(dtype)
        self._name = names.layer_name(name, type(self))
        self._kernel: Array | None = None
        self._bias: Array | None = None
        self._weights: plan.Weights | None = None
        self._activity: list[float] = []
        self.activation = activation
        self.num_threads = num_threads
        self.algorithm = algorithm
        if input_shape is not None:
            self.build((None, *arguments.sizes("input_shape", input_shape, 4)))

    filters: Any = _fixed("filters", "Channels of the result.")
    kernel_size: Any = _fixed("kernel_size", "Three ints.")
    strides: Any = _fixed("strides", "Three ints.")
    padding: Any = _fixed("padding", '"valid", "same" or three pairs (lo, hi).')
    output_padding: Any = _fixed("output_padding", "None or three ints.")
    data_format: Any = _fixed("data_format", '"channels_last" or "channels_first".')
    dilation_rate: Any = _fixed("dilation_rate", "Three ints.")
    groups: Any = _fixed("groups", "Number of groups.")
    use_bias: Any = _fixed("use_bias", "Whether there is a bias.")
    name: Any = _fixed("name", "The layer's name.")
    dtype: Any = _fixed("dtype", "Name of the dtype of the weights.")
    dtype_policy: Any = _fixed("dtype_policy", "Name of the dtype policy.")

    @property
    def activation(self) -> activations.Activation:
        """The activation; anything that stands for one may be assigned."""
        return self._activation

    @activation.setter
    def activation(self, value: Any) -> None:
        self._activation = activations.get(value)
        if self._weights is not None:
            self._forget_shapes(self._weights)

    @property
    def num_threads(self) -> int | None:
        """Threads of a call; None leaves it to `conv3dt.set_num_threads` and OpenMP."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, value: int | None) -> None:
        self._num_threads = arguments.num_threads(value)

    @property
    def algorithm(self) -> str:
        """Name of the algorithm, or "auto"."""
        return self._algorithm

    @algorithm.setter
    def algorithm(self, value: str) -> None:
        self._algorithm = arguments.algorithm(value)

    # --- calling ---------------------------------------------------------------------------

    def __call__(self, x: npt.ArrayLike, out: Array | None = None) -> Array:
        """The layer's result for a batch of volumes.

        Parameters
        ----------
        x : array_like, (N, D, H, W, C) or (N, C, D, H, W)
            Cast to the layer's dtype if it is of another float dtype.
        out : ndarray, optional
            Receives the result and is returned. Of the result's shape and dtype; it may be
            strided, and may overlap `x`.

        Returns
        -------
        ndarray
            Of the layer's dtype; its shape is that of `compute_output_shape`.

        Raises
        ------
        ValueError
            `x` or `out` has the wrong shape, or `out` is read-only.
        TypeError
            `x` is no array of floats, or `out` has another dtype.
        """
        if type(x) is not np.ndarray or x.dtype not in self._direct or not x.flags.aligned:
            x = self._cast_input(x)
        if self._weights is None:
            self._build("the shape of x", x.shape)
        # One look at what other threads may set: weights, activation, and what follows from them.
        made, activation, shape, _ = self._seen(x.shape, self._algorithm, engine.selected())
        if out is not None:
            arguments.check_out(out, shape, self._result)
        y: Array = made.apply(x, activation=activation, out=out, num_threads=self._num_threads)
        if y.dtype != self._result:  # a mixed policy, and x was not of the half type
            y = dtypes.cast(y, self._result)
        if self.activity_regularizer is not None:
            # Divided by the batch, so that the strength does not depend on it; empty: 0.
            self._activity = [float(self.activity_regularizer(y)) / max(len(y), 1)]
        return y

    def apply_blocks(
        self,
        source: Any,
        target: Any,
        *,
        max_memory: int | str = "2GB",
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Write the layer's result for volumes that need not fit in memory; see `apply_blocks`."""
        blocks.apply_blocks(self, source, target, max_memory=max_memory, progress=progress)

    def operation(self, x_shape: Sequence[int]) -> pieces.Operation:
        """What `conv3dt.pieces` needs to compute parts of the result for an input shape."""
        if self._weights is None:
            self._build("the shape of x", x_shape)
        shape = tuple(x_shape)
        made, activation, _, weights = self._seen(shape, self._algorithm, engine.selected())
        return pieces.Operation(
            weights, made, activation, shape, self._direct, self._result, self._num_threads
        )

    def links(self, x_shape: Sequence[int], x_dtype: np.dtype[Any]) -> list[chained.Link]:
        """What `conv3dt.apply_blocks` needs: this layer as a chain of one."""
        return [chained.Convolution(self.operation(x_shape))]

    def _cast_input(self, x: Any) -> Array:
        x = arguments.as_array("x", x)
        return x if x.dtype in self._direct else dtypes.cast(x, self._direct[0])

    def _poser(self, in_channels: int) -> Callable[[Sequence[int]], Problem]:
        """What makes the problem of an input shape."""
        return partial(
            arguments.make_problem,
            kernel_shape=self._kernel_shape(in_channels),
            strides=self._strides,
            padding=self._padding,
            output_padding=self._output_padding,
            dilation=self._dilation_rate,
            groups=self._groups,
            channels_last=self._data_format == "channels_last",
            itemsize=self._compute.itemsize,
        )

    def _forget_shapes(self, weights: plan.Weights) -> None:
        """Start a new memory of input shapes. It must not hold the layer itself: the cycle
        would keep the weights of a dead layer until the next garbage collection."""
        pose = self._poser(weights.kernel.shape[4])
        self._seen: Any = lru_cache(SEEN_SHAPES)(partial(_planned, pose, weights, self._activation))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> arguments.Shape:
        """Shape of the result for an input shape, batch included; unknown sizes are None.

        Raises
        ------
        ValueError
            A shape that the layer cannot take.
        """
        shape = arguments.sizes("input_shape", input_shape, 5)
        sizes = [size or 0 for size in shape]  # no padding refuses an empty axis
        channels = shape[self._channel_axis]
        if self._kernel is not None:
            in_channels = self._kernel.shape[4]
        else:
            in_channels = self._groups if channels is None else channels
        if channels is None:
            sizes[self._channel_axis] = in_channels
        known = self._poser(in_channels)(sizes).y_shape(sizes[0])
        result: arguments.Shape = tuple(
            known[i] if shape[i] is not None or i == self._channel_axis else None for i in range(5)
        )
        return self._activation.output_shape(result)

    # --- weights ---------------------------------------------------------------------------

    @property
    def built(self) -> bool:
        """Whether the layer has its weights."""
        return self._weights is not None

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights for an input shape, batch included; sizes but the channels may be None.

        Raises
        ------
        ValueError
            A shape the layer cannot take, or other channels than it was built for.
        """
        self._build("input_shape", input_shape)

    def _build(self, name: str, input_shape: Sequence[int | None]) -> None:
        shape = arguments.sizes(name, input_shape, 5)
        channels = shape[self._channel_axis]
        if channels is None:
            raise ValueError(f"{name} must say the channels, got {shape}")
        with _building:  # one thread's weights, not each its own
            self.compute_output_shape(shape)
            if self._weights is not None:
                return
            kernel_shape = self._kernel_shape(channels)
            kernel = self._initial("kernel", self.kernel_initializer, kernel_shape)
            bias = None
            if self._use_bias:
                bias = self._initial("bias", self.bias_initializer, (self._filters,))
            self._store(kernel, bias)

    def _kernel_shape(self, in_channels: int) -> tuple[int, ...]:
        return (*self._kernel_size, self._filters // self._groups, in_channels)

    def _initial(self, name: str, initializer: Any, shape: tuple[int, ...]) -> Array:
        initializer = initializer or initializers.GlorotUniform()
        try:
            array = np.asarray(initializer(shape, dtype=self._dtype))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}_initializer must return {shape} numbers: {error}") from error
        if array.shape != shape:
            raise ValueError(f"{name}_initializer must return shape {shape}, got {array.shape}")
        return array

    def _store(self, kernel: Array, bias: Array | None) -> None:
        """Take weights of the right shapes: private, read-only, and packed for the kernels."""
        with np.errstate(all="ignore"):  # as in dtypes.cast
            kernel = np.array(kernel, self._variable, order="C")
            bias = None if bias is None else np.array(bias, self._variable, order="C")
        for array in (kernel, bias):
            if array is not None:
                array.flags.writeable = False
        weights = plan.Weights(
            kernel.astype(self._compute, copy=False),
            None if bias is None else bias.astype(self._compute, copy=False),
            self._groups,
        )
        self._forget_shapes(weights)
        self._kernel, self._bias, self._weights = kernel, bias, weights

    @property
    def kernel(self) -> Array:
        """Read-only view of the kernel, (kd, kh, kw, filters // groups, in_channels).

        Assign an array to change it.
        """
        if self._kernel is None:
            raise AttributeError(f"{self._name} has no kernel before it is built")
        return self.weights[0]

    @kernel.setter
    def kernel(self, value: npt.ArrayLike) -> None:
        self._check_built("kernel")
        assert self._kernel is not None
        self._store(arguments.weight("kernel", value, self._kernel.shape), self._bias)

    @property
    def bias(self) -> Array | None:
        """Read-only view of the bias, (filters,), or None without ``use_bias``.

        Assign an array to change it.
        """
        if self._kernel is None:
            raise AttributeError(f"{self._name} has no bias before it is built")
        return None if self._bias is None else self._bias.view()

    @bias.setter
    def bias(self, value: npt.ArrayLike) -> None:
        self._check_built("bias")
        assert self._kernel is not None
        if not self._use_bias:
            raise ValueError(f"bias must not be set with use_bias=False, got {value!r}")
        self._store(self._kernel, arguments.weight("bias", value, (self._filters,)))

    @property
    def weights(self) -> list[Array]:
        """Read-only views: kernel and, with ``use_bias``, bias; empty before build."""
        return [w.view() for w in (self._kernel, self._bias) if w is not None]

    @property
    def trainable_weights(self) -> list[Array]:
        """`weights`, or nothing if the layer is not ``trainable``."""
        return self.weights if self.trainable else []

    def get_weights(self) -> list[Array]:
        """Copies of `weights`, in Keras' order."""
        return [w.copy() for w in self.weights]

    def set_weights(self, weights: Sequence[npt.ArrayLike]) -> None:
        """Set kernel and, with ``use_bias``, bias; both or, after an error, neither.

        Raises
        ------
        ValueError
            The layer is not built, or the number or a shape of the arrays is wrong.
        TypeError
            No sequence, or an array that is not of floats.
        """
        self._check_built("weights")
        assert self._kernel is not None
        weights = arguments.listed("weights", weights, "arrays")
        if len(weights) != len(self.weights):
            raise ValueError(
                f"weights must be {len(self.weights)} arrays (use_bias={self._use_bias}), "
                f"got {len(weights)}"
            )
        kernel = arguments.weight("kernel", weights[0], self._kernel.shape)
        bias = arguments.weight("bias", weights[1], (self._filters,)) if self._use_bias else None
        self._store(kernel, bias)

    def _adopt(self, kernel: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> None:
        """Build the layer with weights from elsewhere; none are initialised first."""
        kernel = arguments.as_array("kernel", kernel)
        in_channels = kernel.shape[4] if kernel.ndim == 5 else self._groups
        arguments.check_groups(self._groups, "in_channels", in_channels)
        kernel = arguments.weight("kernel", kernel, self._kernel_shape(in_channels))
        if (bias is not None) != self._use_bias:
            raise ValueError(f"bias must agree with use_bias={self._use_bias}, got {bias!r}")
        bias = arguments.weight("bias", bias, (self._filters,)) if self._use_bias else None
        self._store(kernel, bias)

    def fold_batchnorm(
        self,
        gamma: npt.ArrayLike | None,
        beta: npt.ArrayLike | None,
        mean: npt.ArrayLike,
        variance: npt.ArrayLike,
        epsilon: float = 1e-3,
    ) -> None:
        """Take a BatchNormalization of the result into the weights, at inference.

        Afterwards the layer computes ``gamma * (y - mean) / sqrt(variance + epsilon) + beta``
        of what it computed before: the kernel is scaled, and the bias shifted and scaled, in
        float64, and then cast once. A layer without a bias gains one.

        Parameters
        ----------
        gamma, beta : array_like, (filters,), or None
            Scale and shift; None is Keras' ``scale=False`` or ``center=False``.
        mean, variance : array_like, (filters,)
            The moving statistics.
        epsilon : float
            Keras' default is 1e-3, that of PyTorch and ONNX is 1e-5.

        Raises
        ------
        ValueError
            The layer is not built or has an activation (the normalization would have to come
            before it); an array of another shape; a variance + epsilon that is not positive.
        TypeError
            An array that is not of floats.
        """
        self._check_built("fold_batchnorm")
        assert self._kernel is not None
        if self._activation.code != 0:
            raise ValueError(
                "fold_batchnorm must be used on a layer with a linear activation, "
                f"got {self._activation.name}: fold first, then set the activation"
            )
        given = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
        whole = {"gamma": np.ones(self._filters), "beta": np.zeros(self._filters)}
        gamma, beta, mean, variance = (
            whole[name]
            if value is None and name in whole
            else dtypes.cast(arguments.weight(name, value, (self._filters,)), np.dtype("f8"))
            for name, value in given.items()
        )
        spread = variance + float(epsilon)
        if not (spread > 0).all():
            raise ValueError(f"variance + epsilon must be positive, got {spread.min()}")
        old = 0.0 if self._bias is None else dtypes.cast(self._bias, np.dtype("f8"))
        with np.errstate(all="ignore"):  # Inf and NaN among the weights spread as they must
            scale = gamma / np.sqrt(spread)
            # An input channel reaches the filters of its own group.
            by_group = scale.reshape(self._groups, -1).T
            by_channel = by_group.repeat(self._kernel.shape[4] // self._groups, axis=1)
            kernel = self._kernel.astype(np.float64) * by_channel
            self._store(kernel, (old - mean) * scale + beta)
        self._use_bias = True

    def count_params(self) -> int:
        """Number of weights. ValueError before build."""
        self._check_built("count_params")
        return sum(w.size for w in self.weights)

    def _check_built(self, what: str) -> None:
        if self._weights is None:
            raise ValueError(
                f"{what} must be used after the layer is built: call it, build(input_shape) it, "
                f"or give it an input_shape; {self._name} is not built"
            )

    def apply_constraints(self) -> None:
        """Replace kernel and bias by what ``kernel_constraint`` and ``bias_constraint`` make
        of them, as Keras does after every training step.

        Raises
        ------
        ValueError
            The layer is not built, or a constraint returns another shape.
        """
        self._check_built("apply_constraints")
        assert self._kernel is not None
        kernel, bias = self._kernel, self._bias
        if self.kernel_constraint is not None:
            kernel = arguments.weight("kernel", self.kernel_constraint(kernel), kernel.shape)
        if self.bias_constraint is not None and bias is not None:
            bias = arguments.weight("bias", self.bias_constraint(bias), bias.shape)
        self._store(kernel, bias)

    @property
    def losses(self) -> list[float]:
        """Penalties: activity of the latest call (over its batch size), kernel, bias.

        Only those that have a regularizer; with ``trainable=False`` not those of the weights.
        """
        losses = list(self._activity)
        if not self.trainable:
            return losses
        pairs = ((self.kernel_regularizer, self._kernel), (self.bias_regularizer, self._bias))
        return losses + [float(r(w)) for r, w in pairs if r is not None and w is not None]

    # --- files -----------------------------------------------------------------------------

    def load_weights(self, path: str | os.PathLike[str], layer: str | None = None) -> None:
        """Set the weights from a file; a layer that is not built gets its input channels so.

        Parameters
        ----------
        path
            A file of a kind that `conv3dt.list_layers` reads. It may be one that holds weights
            alone, and no strides, padding or activation: these stay as they are here anyway.
        layer
            Name of the layer in the file; not needed if only one fits.

        Raises
        ------
        ValueError
            No such layer, several, or weights of another shape; a damaged file.
        ImportError
            The package that reads the file is not installed; the message says how to get it.
        """
        from . import formats

        formats.load_weights(self, path, layer)

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Write the weights to a ``.weights.h5`` file that Keras 3 loads.

        There they are those of a model of this layer alone, for its ``load_weights``. The file
        is written under a temporary name and renamed, so that no half of it is ever seen.

        Raises
        ------
        ValueError
            The layer is not built, or `path` does not end in ``.weights.h5``.
        ImportError
            The package h5py is missing: ``pip install 'conv3dt[keras]'``.
        """
        from .formats import keras

        keras.save_weights(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer, arguments and weights, to a file that `conv3dt.load` reads.

        The file is a NumPy ``.npz`` of the weights and a JSON config, without pickle. It is
        written under a temporary name and renamed, so that no half of it is ever seen.

        Raises
        ------
        ValueError
            An activation, initializer, regularizer or constraint of the user's own, or a
            subclass: no file can hold code.
        """
        from .formats import native

        native.save(self, path)

    def to_torch_state_dict(self, prefix: str = "") -> dict[str, Array]:
        """The weights as PyTorch's ConvTranspose3d stores them.

        Returns
        -------
        dict
            Of new arrays: ``weight``, (in_channels, filters // groups, kd, kh, kw), and, with
            ``use_bias``, ``bias``, (filters,); `prefix` stands before the names. Strides,
            padding and activation are no part of a state dict.

        Raises
        ------
        ValueError
            The layer is not built.
        """
        from .formats import torch

        return torch.to_torch_state_dict(self, prefix)

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write a model of this layer, from ``x`` to ``y``, for any batch and size of the input.

        The model computes in the layer's dtype policy and data format; for "channels_last" it
        transposes to and from the layout of ONNX. String paddings become the explicit pads
        that mean the same. The file is checked by `onnx.checker`, and renamed from a temporary
        name.

        Raises
        ------
        ValueError
            The layer is not built, ONNX has no operator for its activation or not in its
            dtype, or the weights have 2 GiB or more.
        ImportError
            The package onnx is missing: ``pip install 'conv3dt[onnx]'``.

        Notes
        -----
        ONNX Runtime has no ConvTranspose of float64 and bfloat16 for the CPU.
        """
        from .formats import onnx

        onnx.to_onnx(self, path)

    # --- configuration ---------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The arguments of an equal layer, without weights, as Keras 3 writes them.

        ``groups``, ``num_threads`` and ``algorithm``, which Keras does not know, are there
        only when they are not the default: Keras' own ``from_config`` reads the rest.
        """
        config: dict[str, Any] = {
            "name": self._name,
            "trainable": self.trainable,
            "dtype": dtypes.config(self._dtype_policy),
            "filters": self._filters,
            "kernel_size": self._kernel_size,
            "strides": self._strides,
            "padding": self._padding,
            "output_padding": self._output_padding,
            "data_format": self._data_format,
            "dilation_rate": self._dilation_rate,
            "activation": self._activation.config(),
            "use_bias": self._use_bias,
        }
        for key, module in _OBJECTS.items():
            config[key] = module.serialize(getattr(self, key))
        own = {"groups": 1, "num_threads": None, "algorithm": "auto"}
        return config | {
            key: getattr(self, key) for key, default in own.items() if getattr(self, key) != default
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Conv3DTranspose:
        """A layer from the config of this class or of Keras 2 or Keras 3.

        Parameters
        ----------
        config
            What ``get_config`` returned, possibly by way of JSON. ``batch_input_shape``, of
            Keras 2, builds the layer at once, like ``input_shape``.
        custom_objects
            The user's own activations, initializers, regularizers and constraints by name.

        Raises
        ------
        ValueError
            An unknown key or name, or a bad value.
        TypeError
            No dict.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"config must be a dict, got {config!r}")
        known = {key: value for key, value in config.items() if key not in _IGNORED}
        batch_shape = known.pop("batch_input_shape", None)
        if batch_shape is not None:
            shape = arguments.sizes("batch_input_shape", batch_shape, 5)
            known.setdefault("input_shape", shape[1:])
        for key, module in _OBJECTS.items():
            if key in known:
                known[key] = module.get(known[key], custom_objects)
        if "activation" in known:
            known["activation"] = activations.get(known["activation"], custom_objects)
        try:
            return cls(**known)
        except TypeError as error:
            keys = sorted(map(str, config))
            raise ValueError(
                f"config must hold the arguments of {cls.__name__}, got {keys}: {error}"
            ) from error

    def _set_policy(self, dtype: Any) -> None:
        """Set the dtypes: of the weights, of the sums, of the result, and those x may have."""
        policy = dtypes.policy(dtype)
        self._dtype_policy, self._dtype = policy.name, policy.variable.name
        self._variable, self._result = policy.variable, policy.result
        self._compute, self._direct = policy.compute, policy.direct

    @property
    def _channel_axis(self) -> int:
        return 4 if self._data_format == "channels_last" else 1

    def __repr__(self) -> str:
        shown = [f"{self._filters}, {self._kernel_size}"]
        defaults = {
            "strides": (1, 1, 1),
            "padding": "valid",
            "output_padding": None,
            "data_format": "channels_last",
            "dilation_rate": (1, 1, 1),
            "groups": 1,
            "use_bias": True,
            "dtype_policy": "float32",
        }
        for key, default in defaults.items():
            value = getattr(self, key)
            if value != default:
                shown.append(f"{key.removesuffix('_policy')}={value!r}")
        if self._activation.code != 0:
            shown.append(f"activation={self._activation.name!r}")
        shown.append(f"name={self._name!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _state(self) -> tuple[Any, ...]:
        """What results depend on: all the same objects as long as nothing has been set."""
        return self._seen, self._num_threads, self._algorithm

    def __copy__(self) -> Conv3DTranspose:
        # Weights are replaced, never changed: a copy shares them, and what is packed of them.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        packed = ("_weights", "_seen")
        return {key: value for key, value in self.__dict__.items() if key not in packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._weights = None
        self._set_policy(self._dtype_policy)
        if self._kernel is not None:
            self._store(self._kernel, self._bias)


# The arguments that name an object, and who resolves them, in Keras' order.
_OBJECTS: dict[str, Any] = {
    "kernel_initializer": initializers,
    "bias_initializer": initializers,
    "kernel_regularizer": regularizers,
    "bias_regularizer": regularizers,
    "activity_regularizer": regularizers,
    "kernel_constraint": constraints,
    "bias_constraint": constraints,
}


def _planned(
    pose: Callable[[Sequence[int]], Problem],
    weights: plan.Weights,
    activation: activations.Activation,
    x_shape: tuple[int, ...],
    algorithm: str,
    isa: str,
) -> tuple[plan.Plan, activations.Activation, tuple[int, ...], plan.Weights]:
    """The plan for an input shape (with the selected `isa`), and the shape of its result."""
    problem = pose(x_shape)
    made = weights.plan(problem, algorithm)
    return made, activation, activation.output_shape(problem.y_shape(x_shape[0])), weights
