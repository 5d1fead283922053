"""Sequential: layers that run one after the other, as one."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arguments, blocks, names, registry, stages
from .dense import Dense
from .folding import fold
from .layer import SEEN_SHAPES, Conv3DTranspose
from .members import Activation, Array, Dropout, InputLayer, Member, Overwriting
from .program import Program, naming
from .stages import Step

if TYPE_CHECKING:
    import numpy.typing as npt

    from .arguments import Shape
    from .chained import Link


class Sequential:
    """A chain of layers, with the meaning of Keras' ``Sequential`` at inference.

    What runs are fewer steps: a `BatchNormalization` is folded into the layer before it, an
    activation is computed together with that layer, `Dropout` is left out. The results between
    the layers share one block of memory, see `peak_memory`. A chain may be called by several
    threads at once.

    Parameters
    ----------
    layers : sequence
        `Conv3DTranspose`, `Dense`, `BatchNormalization`, `Activation`, `Reshape`, `Flatten`,
        `Dropout`, `InputLayer`; anything that stands for an activation (a name, a callable, a
        config dict); other chains. The layers remain the caller's: weights that are set in
        them are used by the next call.
    input_shape : sizes, optional
        Shape of one sample; unknown sizes are None. Builds the chain at once; so does an
        `InputLayer` in front, or a first layer that is built. Otherwise the first call does.
    name : str, optional
    num_threads : int, optional
        For the layers that have none of their own. The result does not depend on it.

    Raises
    ------
    ValueError
        No layers or something that is none; shapes that do not fit together, as soon as they
        are known, with the layer's name.

    Examples
    --------
    >>> import numpy as np
    >>> import conv3dt
    >>> decoder = conv3dt.Sequential(
    ...     [
    ...         conv3dt.Dense(4 * 4 * 4 * 16, "relu"),
    ...         conv3dt.Reshape((4, 4, 4, 16)),
    ...         conv3dt.Conv3DTranspose(8, 4, strides=2, padding="same", use_bias=False),
    ...         conv3dt.BatchNormalization(),
    ...         "relu",
    ...         conv3dt.Conv3DTranspose(1, 4, strides=2, padding="same", activation="tanh"),
    ...     ],
    ...     input_shape=(32,),
    ... )
    >>> decoder(np.ones((2, 32), np.float32)).shape
    (2, 16, 16, 16, 1)
    >>> decoder.peak_memory((2, 32))
    49152
    """

    def __init__(
        self,
        layers: Iterable[Any],
        *,
        input_shape: Sequence[int | None] | None = None,
        name: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        self._layers = tuple(_members(layers))
        self._name = names.layer_name(name, type(self))
        self._num_threads = arguments.num_threads(num_threads)
        self._input_shape: Shape | None = None
        self._made: tuple[list[Any], list[Step], Any] | None = None
        if input_shape is not None:
            self.build((None, *arguments.any_sizes("input_shape", input_shape, least=0)))
        else:
            self._build_as_far_as_known()

    @property
    def layers(self) -> tuple[Step, ...]:
        """The layers, as they were given; an activation is an `Activation`."""
        return self._layers

    @property
    def name(self) -> str:
        """The chain's name."""
        return self._name

    @property
    def input_shape(self) -> Shape | None:
        """Shape of an input, batch included, unknown sizes None; None as long as nobody told."""
        return self._input_shape

    @property
    def num_threads(self) -> int | None:
        """Threads of the layers that have no number of their own."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, value: int | None) -> None:
        self._num_threads = arguments.num_threads(value)

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Step]:
        return iter(self._layers)

    def __getitem__(self, index: int) -> Step:
        return self._layers[operator.index(index)]

    # --- calling ---------------------------------------------------------------------------

    def __call__(self, x: npt.ArrayLike, out: Array | None = None) -> Array:
        """The chain's result for a batch.

        Parameters
        ----------
        x : array_like
            Floats, of the shape and cast to the dtype that the first layer wants.
        out : ndarray, optional
            Receives the result and is returned. Of the result's shape and dtype; it may be
            strided, and may overlap `x`.

        Returns
        -------
        ndarray
            Of the last layer's dtype; its shape is that of `compute_output_shape`.

        Raises
        ------
        ValueError
            `x` or `out` has the wrong shape, or `out` is read-only.
        TypeError
            `x` is no array of floats, or `out` has another dtype.
        """
        x = arguments.as_array("x", x)
        program = self._program(x.shape, x.dtype)
        if out is not None:
            arguments.check_out(out, program.shape, program.dtype)
        return program.run(x, out)

    def apply_blocks(
        self,
        source: Any,
        target: Any,
        *,
        max_memory: int | str = "2GB",
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Write the chain's result for volumes that need not fit in memory; see `apply_blocks`."""
        blocks.apply_blocks(self, source, target, max_memory=max_memory, progress=progress)

    def links(self, x_shape: Sequence[int], x_dtype: np.dtype[Any]) -> list[Link]:
        """What `conv3dt.apply_blocks` needs: the steps for volumes that are cut."""
        shape = tuple(x_shape)
        self._build_once(shape)
        return stages.links(self._ready(shape)[1], shape, x_dtype)

    def _build_once(self, x_shape: tuple[int, ...]) -> None:
        if self._input_shape is None or not self.built:
            self.build(x_shape)

    def _program(self, x_shape: tuple[int, ...], x_dtype: np.dtype[Any]) -> Program:
        self._build_once(x_shape)
        made: Program = self._ready(x_shape)[2](x_shape, x_dtype)
        return made

    def _ready(self, x_shape: Shape) -> tuple[list[Any], list[Step], Any]:
        """The steps, and what makes programs of them; again when something has been set.

        They depend on the number of axes: a normalization may count its own from the front.
        """
        state = [len(x_shape), self._num_threads]
        state += [part for layer in self._layers for part in layer._state()]
        made = self._made
        if made is None or not all(map(operator.is_, made[0], state)):
            ranks = map(len, self._shapes(x_shape))
            steps = fold(self._layers, ranks, self._num_threads)
            made = self._made = state, steps, lru_cache(SEEN_SHAPES)(partial(stages.program, steps))
        return made

    def fold(self) -> Sequential:
        """The steps that run instead of the layers, as a chain.

        Called one by one, they give the same bits as this chain. The new chain does not hold
        the weights from before the folding.

        Raises
        ------
        ValueError
            The chain is not built; no ``build``, call or ``input_shape`` has told a shape.
        """
        self._check_built("fold")
        if self._input_shape is None:
            raise ValueError(
                "input_shape must be known before a chain is folded: give it, or build or call "
                f"the chain; that of {self._name} is not"
            )
        return Sequential(
            self._ready(self._input_shape)[1],
            input_shape=self._input_shape[1:],
            name=self._name,
            num_threads=self._num_threads,
        )

    def peak_memory(self, input_shape: Sequence[int], dtype: npt.DTypeLike | None = None) -> int:
        """Bytes that a call takes, at most, beside its input, its result and the weights.

        The results between the layers lie in one block as large as the largest two neighbours;
        the half types are computed in copies. Not counted are copies of an input that cannot be
        read as it is (of another byte order, or with strides in a Reshape) and of an `out` that
        cannot be written as it is (strided, after a Reshape), what callables of the user's
        take, and the scratch memory of the kernels, see the documentation on limits.

        Parameters
        ----------
        input_shape : sizes
            Of an input, batch included.
        dtype : dtype, optional
            Of the input; float32 by default.

        Raises
        ------
        ValueError
            A shape that the chain cannot take; the chain is not built.
        """
        self._check_built("peak_memory")
        shape = arguments.any_sizes("input_shape", input_shape)
        if None in shape:
            raise ValueError(f"input_shape must have no unknown size, got {shape}")
        known: Any = shape
        return self._program(known, np.dtype(np.float32 if dtype is None else dtype)).nbytes

    # --- shapes ----------------------------------------------------------------------------

    @property
    def built(self) -> bool:
        """Whether all layers have their weights."""
        return all(layer.built for layer in self._layers)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights for an input shape, batch included; unknown sizes are None.

        Raises
        ------
        ValueError
            A shape that a layer cannot take; the message has its name.
        """
        shape = given = arguments.any_sizes("input_shape", input_shape)
        for layer in self._layers:
            with naming(layer):
                layer.build(shape)
                shape = layer.compute_output_shape(shape)
        self._input_shape = (None, *given[1:])

    def _build_as_far_as_known(self) -> None:
        """Build what the first layer's own shape tells, and check the rest against it."""
        shape = given = _own_shape(self._layers)
        if shape is None:
            return
        for layer in self._layers:
            with naming(layer):
                if not layer.built:
                    if _lacks_channels(layer, shape):
                        return
                    layer.build(shape)
                shape = layer.compute_output_shape(shape)
        self._input_shape = given

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        """Shape of the result for an input shape, batch included; unknown sizes are None.

        Raises
        ------
        ValueError
            A shape that a layer cannot take; the message has its name.
        """
        return self._shapes(arguments.any_sizes("input_shape", input_shape))[-1]

    def _shapes(self, shape: Shape) -> list[Shape]:
        shapes = []
        for layer in self._layers:
            with naming(layer):
                shape = layer.compute_output_shape(shape)
            shapes.append(shape)
        return shapes

    # --- weights ---------------------------------------------------------------------------

    @property
    def weights(self) -> list[Array]:
        """Read-only views of the weights of all layers, in their order, as Keras has it."""
        return [w for layer in self._layers for w in layer.weights]

    def get_weights(self) -> list[Array]:
        """Copies of `weights`."""
        return [w.copy() for w in self.weights]

    def set_weights(self, weights: Sequence[npt.ArrayLike]) -> None:
        """Set the weights of all layers or, after an error, none.

        Raises
        ------
        ValueError
            The chain is not built, or the number or a shape of the arrays is wrong.
        TypeError
            No sequence, or an array that is not of floats.
        """
        self._check_built("weights")
        weights = arguments.listed("weights", weights, "arrays")
        if len(weights) != len(self.weights):
            raise ValueError(f"weights must be {len(self.weights)} arrays, got {len(weights)}")
        given = iter(weights)
        checked = []
        for layer in self._layers:
            with naming(layer):
                own = [arguments.weight("weights", next(given), w.shape) for w in layer.weights]
            checked.append(own)
        for layer, own in zip(self._layers, checked, strict=True):
            if own:
                layer.set_weights(own)

    def count_params(self) -> int:
        """Number of weights. ValueError before build."""
        self._check_built("count_params")
        return sum(w.size for w in self.weights)

    def _check_built(self, what: str) -> None:
        if not self.built:
            raise ValueError(
                f"{what} must be used after the chain is built: call it, build(input_shape) it, "
                f"or give it an input_shape; {self._name} is not built"
            )

    # --- configuration ---------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The arguments of an equal chain, without weights, as Keras 3 writes them."""
        config: dict[str, Any] = {
            "name": self._name,
            "layers": [
                {
                    "module": "keras.layers",
                    "class_name": type(layer).__name__,
                    "config": layer.get_config(),
                    "registered_name": None,
                }
                for layer in self._layers
            ],
        }
        if self._input_shape is not None:
            config["build_input_shape"] = self._input_shape
        return config if self._num_threads is None else {**config, "num_threads": self._num_threads}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Sequential:
        """A chain from the config of this class or of Keras' ``Sequential``.

        Parameters
        ----------
        config
            What ``get_config`` returned, possibly by way of JSON.
        custom_objects
            The user's own activations, initializers and the like by name.

        Raises
        ------
        ValueError
            A layer that a chain cannot have, an unknown key or name, or a bad value.
        """
        options = config if isinstance(config, Mapping) else {"layers": config}  # early Keras 2
        shape = options.get("build_input_shape")
        return cls(
            _of_configs(options.get("layers"), custom_objects),
            input_shape=None if shape is None else tuple(shape)[1:],
            name=options.get("name"),
            num_threads=options.get("num_threads"),
        )

    # --- files -----------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the chain, arguments and weights, to a file that `conv3dt.load` reads.

        The file is of the kind that `Conv3DTranspose.save` writes.

        Raises
        ------
        ValueError
            The chain is not built, or has an activation, initializer, regularizer or constraint
            of the user's own, or a layer of a subclass: no file can hold code.
        """
        from .formats import native

        native.save(self, path)

    @classmethod
    def from_keras(cls, path: str | os.PathLike[str]) -> Sequential:
        """A chain from a model file of Keras 2 or Keras 3; neither is needed.

        Parameters
        ----------
        path : path
            ``.keras`` or ``.h5`` with a whole model, Sequential or functional, in which each
            layer takes the result of the one before: Conv3DTranspose, Dense,
            BatchNormalization, activations, Reshape, Flatten, Dropout and its relatives, models
            of these.

        Returns
        -------
        Sequential
            Built and folded (see `fold`).

        Raises
        ------
        ValueError
            A damaged file, weights alone, or a model that is no chain of these; the message
            names the layer. OSError: the file cannot be read.
        ImportError
            A layer of dtype bfloat16 without the package ml_dtypes.
        """
        from .formats import files, keras_chain

        with files.naming(path):
            layers, shape = keras_chain.read(files.as_path(path))
            return cls(layers, input_shape=shape).fold()

    @classmethod
    def from_onnx(cls, path_or_model: Any) -> Sequential:
        """A chain from an ONNX model that is one.

        Parameters
        ----------
        path_or_model : path or onnx.ModelProto
            One operation after the other: ConvTranspose, BatchNormalization, activations, Gemm
            or MatMul with Add, Reshape, Flatten, Squeeze, Unsqueeze, Dropout, Identity.
            External data is read if it lies in the model's folder, which only a path tells.

        Returns
        -------
        Sequential
            Built and folded (see `fold`), with the axes of the model: channels first.

        Raises
        ------
        ValueError
            A damaged model, or one that is no chain of these; the message names the node.
        TypeError
            Neither a path nor a model. OSError: the file cannot be read.
        ImportError
            The package onnx is missing: ``pip install 'conv3dt[onnx]'``.
        """
        from .formats import files, onnx_chain

        with files.naming(path_or_model):
            layers, shape = onnx_chain.read(path_or_model)
            return cls(layers, input_shape=shape).fold()

    @classmethod
    def from_torch(cls, module: Any, input_shape: Sequence[int | None] | None = None) -> Sequential:
        """A chain from an ``nn.Sequential`` of PyTorch.

        Parameters
        ----------
        module : torch.nn.Sequential
            Of ConvTranspose3d, Linear, BatchNorm1d and 3d, Flatten, Unflatten, activations,
            Dropout, Identity, and others like it. What counts is inference: normalizations use
            their running statistics.
        input_shape : sizes, optional
            Shape of one sample. Not needed if a ConvTranspose3d comes first, or a Linear for
            rows.

        Returns
        -------
        Sequential
            Built and folded (see `fold`), with the axes of PyTorch: channels first.

        Raises
        ------
        ValueError
            A module that a chain cannot have; the message has its name. TypeError: no module.
        """
        from .formats import torch_chain

        layers = torch_chain.read(module)
        if input_shape is None and layers and isinstance(layers[0], Dense):
            input_shape = (len(layers[0].kernel),)
        return cls(layers, input_shape=input_shape).fold()

    def __repr__(self) -> str:
        shapes: list[Any] = ["?"] * len(self._layers)
        if self._input_shape is not None:
            shapes = self._shapes(self._input_shape)
        lines = [
            f"{layer.name:<28} {type(layer).__name__:<20} {shape!s:<28} "
            f"{sum(w.size for w in layer.weights):>14,}"
            for layer, shape in zip(self._layers, shapes, strict=True)
        ]
        total = f"{sum(w.size for w in self.weights):,} parameters"
        shape = f" for {self._input_shape}" if self._input_shape is not None else ""
        return "\n  ".join([f"Sequential {self._name!r}{shape}, {total}:", *lines])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}


def _of_configs(
    configs: Any, custom_objects: Mapping[str, Any] | None
) -> Iterator[Step | Sequential]:
    if not isinstance(configs, (list, tuple)):
        raise ValueError(f'config must have a list "layers", got {configs!r}')
    for config in configs:
        if isinstance(config, dict) and config.get("class_name") == "Sequential":
            yield Sequential.from_config(config.get("config", {}), custom_objects)
        else:
            yield registry.make(config, custom_objects)


def _members(layers: Iterable[Any]) -> Iterator[Step]:
    given = arguments.listed("layers", layers, "layers")
    if not given:
        raise ValueError("layers must be at least one, got none")
    for i, layer in enumerate(given):
        if isinstance(layer, (Conv3DTranspose, Member)):
            yield layer
        elif isinstance(layer, Sequential):
            yield from layer
        elif isinstance(layer, type) and issubclass(layer, (Conv3DTranspose, Member, Sequential)):
            raise ValueError(f"layers[{i}] must be a layer, got the class {layer.__name__}")
        else:
            try:
                yield Activation(layer)
            except ValueError as error:
                raise ValueError(
                    f"layers[{i}] must be a layer of conv3dt, a chain, or stand for an "
                    f"activation: {error}"
                ) from error


def _lacks_channels(layer: Any, shape: Shape) -> bool:
    axis = layer._channel_axis
    return -len(shape) <= axis < len(shape) and shape[axis] is None


def _own_shape(layers: Iterable[Step]) -> Shape | None:
    """The input shape that the first layers know by themselves, batch included."""
    for layer in layers:
        if isinstance(layer, InputLayer):
            return (None, *layer.shape)
        if isinstance(layer, Conv3DTranspose) and layer.built:
            shape: list[int | None] = [None] * 5
            shape[layer._channel_axis] = layer.kernel.shape[4]
            return tuple(shape)
        halving = isinstance(layer, Activation) and layer.activation.halves
        if halving or not isinstance(layer, (Overwriting, Dropout)):
            return None
    return None
