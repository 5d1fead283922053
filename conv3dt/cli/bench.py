"""``conv3dt bench``: a layer timed on this machine, with other packages beside it."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import arguments, engine
from ..layer import Conv3DTranspose
from . import model, parser, peers

HELP = "time a layer on this machine, with installed peers beside it"
ROUNDS = 100  # at most, of turns
CALLS = 3  # timed in a turn
PAUSE = 0.01  # seconds


def add_arguments(its: argparse.ArgumentParser) -> None:
    """The options of the command."""
    layer = its.add_argument_group("the layer: of a file, or of these sizes")
    layer.add_argument("--model", type=Path, help="a model file, see `conv3dt layers`")
    layer.add_argument("--filters", type=int, metavar="N")
    layer.add_argument(
        "--kernel-size", type=int, nargs="+", action=parser.OneOrThree, metavar="N",
        help="1 or 3 integers",
    )  # fmt: skip
    layer.add_argument("--in-channels", type=int, metavar="N")
    its.add_argument(
        "--input", type=int, nargs="+", action=parser.OneOrThree, required=True, metavar="N",
        help="voxels: 1 or 3 integers",
    )  # fmt: skip
    its.add_argument("--batch", type=int, default=1, metavar="N")
    its.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    its.add_argument("--threads", type=parser.threads, metavar="N")
    its.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="for each package (default: 2)"
    )
    its.add_argument("--no-peers", action="store_true", help="time conv3dt alone")
    model.add_arguments(its)


def run(options: argparse.Namespace) -> int:
    """Time the contestants in turn, and print medians and minima."""
    layer = _layer(options)
    channels = layer.kernel.shape[4] if layer.built else options.in_channels
    space = arguments.triple("--input", options.input)
    shape = (options.batch, *space, channels)
    if layer.data_format == "channels_first":
        shape = (options.batch, channels, *space)
    x = np.random.default_rng(0).standard_normal(shape).astype(options.dtype)
    threads = options.threads or engine.get_num_threads()
    layer.num_threads = threads
    y = layer(x)
    contestants: dict[str, Callable[[], object]] = {"conv3dt": lambda: layer(x)}
    notes = {}
    for peer in () if options.no_peers else peers.PEERS:
        try:
            its = peer.make(layer, x, threads)
        except peers.Unable as reason:
            notes[peer.name] = str(reason)
            continue
        difference = float(np.abs(its.result() - y).max(initial=0))
        notes[peer.name] = f"{its.note}, largest difference {difference:.1e}"
        contestants[peer.name] = its.call
    _print(layer, x, y, threads, _times(contestants, options.seconds), notes)
    return 0


def _layer(options: argparse.Namespace) -> Conv3DTranspose:
    if options.model is not None:
        return model.open_layer(options.model, options)
    sizes = ("filters", "kernel_size", "in_channels")
    missing = [f"--{name.replace('_', '-')}" for name in sizes if getattr(options, name) is None]
    if missing:
        raise ValueError(f"--model must be given, or {' and '.join(missing)}")
    return Conv3DTranspose(
        options.filters, options.kernel_size, dtype=options.dtype, **parser.geometry(options)
    )


def _times(contestants: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of calls that alternate, so that all meet the same machine.

    The threads of a package go on spinning for a while after its call. Each turn therefore
    begins with a pause, and with a call that wakes the package's own.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds * len(contestants)
    for _ in range(ROUNDS):
        for name, call in contestants.items():
            time.sleep(PAUSE)
            call()
            for _ in range(CALLS):
                begun = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begun)
        if time.perf_counter() > end:
            break
    return times


def _print(
    layer: Conv3DTranspose,
    x: np.ndarray,
    y: np.ndarray,
    threads: int,
    times: dict[str, list[float]],
    notes: dict[str, str],
) -> None:
    algorithm = layer.operation(x.shape).plan.algorithm
    voxels = x.size // layer.kernel.shape[4]
    operations = 2 * layer.kernel.size * voxels
    print(f"{layer!r}")
    print(
        f"{x.shape} -> {y.shape} {y.dtype}, {threads} threads, {algorithm} on {engine.selected()}"
    )
    print(f"{'':<14}{'median ms':>10}{'min ms':>10}{'GF/s':>8}{'x conv3dt':>11}")
    ours = statistics.median(times["conv3dt"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"{name:<14}{median * 1e3:>10.3f}{min(seconds) * 1e3:>10.3f}"
            f"{operations / median / 1e9:>8.1f}{median / ours:>11.2f}"
        )
    for name, note in notes.items():
        print(f"{name}: {note}")
