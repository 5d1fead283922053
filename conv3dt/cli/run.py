"""``conv3dt run MODEL INPUT -o OUTPUT``: a volume in a file through the layers of a model file."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .. import arguments, blocks, dtypes, engine, formats, plan
from ..chained import Chain, Convolution
from ..layer import Conv3DTranspose
from ..pieces import Operation
from ..sequential import Sequential
from . import axes, model, nifti, parser, volumes
from .progress import progress

HELP = "apply a chain of layers, or one layer, of a model file to a volume in a file"
TILE = "2GB"  # of memory, where --tile says nothing else
LAYOUTS = {"channels_last": "NDHWC", "channels_first": "NCDHW"}


def add_arguments(its: argparse.ArgumentParser) -> None:
    """The options of the command."""
    its.add_argument("model", type=Path, help=f"a file: {', '.join(formats.READERS)}")
    its.add_argument("input", type=Path, help=f"a volume: {', '.join(volumes.KINDS)}")
    its.add_argument("-o", "--output", type=Path, required=True, help="a volume of any kind")
    its.add_argument("--array", metavar="NAME", help="which array of an .npz or zarr group")
    its.add_argument(
        "--tile", action="store_true", help=f"stream in pieces within --max-memory, or {TILE}"
    )
    its.add_argument("--max-memory", metavar="SIZE", help='of the pieces, as "500MB"; means --tile')
    its.add_argument("--dtype", choices=list(dtypes.POLICIES), help="instead of the layers' own")
    its.add_argument("--threads", type=parser.threads, metavar="N")
    its.add_argument("--verbose", action="store_true", help="say how it is computed, and why so")
    model.add_arguments(its)


def run(options: argparse.Namespace) -> int:
    """Compute the output, which has its name only when it is whole."""
    tile = options.tile or options.max_memory is not None
    memory = arguments.memory_size("--max-memory", options.max_memory or TILE)
    plan.VERBOSE = options.verbose or plan.VERBOSE
    layers = _model(options)
    print(f"model   {options.model}, {_named(layers)}")
    layout = LAYOUTS[_first(layers).data_format]
    volume = volumes.opened(options.input, options.array)
    stored = axes.stored_axes(
        tuple(volume.array.shape),
        volumes.full_axes(options.input, layout),
        _channels(layers, layout),
    )
    source = _source(options.input, volume.array, stored, layout, _first(layers))
    chain = Chain(layers.links(source.shape, source.dtype), source.dtype)
    if options.verbose:
        _explain(layers, chain)
    channels = chain.y_shape[layout.index("C")]
    written = axes.with_channels(stored, volumes.full_axes(options.output, layout), channels)
    shape = tuple(chain.y_shape[layout.index(axis)] for axis in written)
    begun = time.perf_counter()
    with ExitStack() as stack:
        array = stack.enter_context(
            volumes.created(
                options.output,
                shape,
                chain.result,
                volume.image,
                _affine(volume, chain),
            )
        )
        blocks.apply_blocks(
            layers,
            source,
            axes.five_axes(array, written, layout),
            max_memory=memory if tile else sys.maxsize,
            progress=stack.enter_context(progress()) if tile else None,
        )
    seconds = time.perf_counter() - begun
    print(f"output  {options.output} {shape} {chain.result}, {seconds:.2f} s")
    return 0


def _model(options: argparse.Namespace) -> Conv3DTranspose | Sequential:
    layers = model.open_model(options.model, options)
    if options.dtype is not None:
        if isinstance(layers, Sequential):
            shape = layers.input_shape
            cast = [_cast(layer, options.dtype) for layer in layers]
            layers = Sequential(cast, input_shape=shape and shape[1:], name=layers.name)
        else:
            layers = _cast(layers, options.dtype)
    layers.num_threads = options.threads
    return layers


def _named(layers: Conv3DTranspose | Sequential) -> str:
    if isinstance(layers, Sequential):
        return f"{len(layers)} layers"
    return f"layer {layers.name!r} alone"


def _cast(layer: Any, dtype: str) -> Any:
    config = layer.get_config()
    if "dtype" not in config:  # it has no weights, and keeps the dtype of its input
        return layer
    cast = type(layer).from_config({**config, "dtype": dtype})
    cast._adopt(*layer.get_weights())
    return cast


def _first(layers: Conv3DTranspose | Sequential) -> Conv3DTranspose:
    if isinstance(layers, Conv3DTranspose):
        return layers
    return next(layer for layer in layers if isinstance(layer, Conv3DTranspose))


def _channels(layers: Conv3DTranspose | Sequential, layout: str) -> int:
    if isinstance(layers, Conv3DTranspose):
        channels: int = layers.kernel.shape[4]
        return channels
    assert layers.input_shape is not None
    return layers.input_shape[layout.index("C")] or 1


def _source(path: Path, array: Any, stored: str, layout: str, layer: Conv3DTranspose) -> Any:
    """The input with five axes, of floats; what had to be done for that is said."""
    if array.dtype.kind not in "biuf" and array.dtype.name not in arguments.FLOATS:
        raise TypeError(f"{path} must hold real numbers, got {array.dtype}")
    cast = None if array.dtype.name in arguments.FLOATS else layer._variable
    source = axes.five_axes(array, stored, layout, cast)
    said = f"input   {path} {tuple(array.shape)} {array.dtype}"
    if stored != layout:
        said += f", read as {source.shape} ({layout})"
    print(said if cast is None else f"{said}, cast to {cast}")
    return source


def _affine(volume: volumes.Volume, chain: Chain) -> Any:
    """Where the voxels of the output are, if it is known of the input."""
    if volume.image is None:
        return None
    affine = volume.image.affine
    for link in chain.links:
        if isinstance(link, Convolution):
            affine = nifti.upsampled(affine, link.operation.plan.problem.axes)
    return affine


def _explain(layers: Conv3DTranspose | Sequential, chain: Chain) -> None:
    """What was chosen; why other algorithms were not, the plan has said."""
    print(f"conv3dt: {layers!r}", file=sys.stderr)
    for link in chain.links:
        if isinstance(link, Convolution):
            _explain_convolution(link.operation)


def _explain_convolution(operation: Operation) -> None:
    threads = operation.num_threads or engine.get_num_threads()
    chosen = operation.plan
    for line in (
        f"{chosen.algorithm} on {engine.selected()}, at most {threads} threads, "
        f"{chosen.problem.multiplications:,} multiplications a sample",
        f"weights {operation.weights.kernel.nbytes:,} bytes, "
        f"scratch at most {chosen.scratch(threads):,}",
    ):
        print(f"conv3dt: {line}", file=sys.stderr)
