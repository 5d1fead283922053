"""Volumes larger than memory: the bits of one piece, within the memory allowed."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conv3dt
from conv3dt import activations, arguments, blocks, engine, initializers
from conv3dt.chained import Chain, Section, chain_of

LAYERS: dict[str, dict[str, Any]] = {
    "k2 s2": {"kernel_size": 2, "strides": 2},
    "k3 s2 same": {"kernel_size": 3, "strides": 2, "padding": "same"},
    "k4 s2 same": {"kernel_size": 4, "strides": 2, "padding": "same"},
    "k3 s1 crops": {"kernel_size": 3, "padding": ((1, 2), (0, 1), (3, 0))},
    "k3 d2": {"kernel_size": 3, "dilation_rate": 2},
    "k2 s3 d2 gaps": {
        "kernel_size": 2,
        "strides": 3,
        "dilation_rate": 2,
        "padding": 1,
        "output_padding": 2,
    },
    "k123 s321": {"kernel_size": (1, 2, 3), "strides": (3, 2, 1)},
    "groups": {"kernel_size": 3, "strides": 2, "groups": 2},
    "depthwise": {"kernel_size": 3, "strides": 2, "groups": 6},
}
SPACE = (8, 5, 6)


def make(kind: str, channels_last: bool = True, **changed: Any) -> conv3dt.Conv3DTranspose:
    given = {"filters": 6, "activation": "relu", **LAYERS[kind], **changed}
    return conv3dt.Conv3DTranspose(
        data_format="channels_last" if channels_last else "channels_first",
        kernel_initializer=initializers.RandomNormal(seed=1),
        **given,
    )


def volume(channels_last: bool = True, dtype: Any = "float32", batch: int = 2) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((batch, *SPACE, 6))
    return np.ascontiguousarray(x if channels_last else np.moveaxis(x, -1, 1), dtype)


def least(layer: conv3dt.Conv3DTranspose, source: Any, target: Any) -> int:
    """The least memory, as the error says it."""
    with pytest.raises(ValueError, match="max_memory must be at least") as caught:
        layer.apply_blocks(source, target, max_memory=1)
    return int(str(caught.value).split("at least ")[1].split()[0])


def streamed(layer: conv3dt.Conv3DTranspose, x: np.ndarray, share: float) -> np.ndarray:
    """The result in blocks; `share` 0 is the least memory, 1 what the whole takes."""
    want = layer(x)
    target = np.full(want.shape, np.nan, want.dtype)
    lowest = least(layer, x, target)
    most = max(x.nbytes + 8 * target.nbytes, lowest)
    counts: list[int] = []
    layer.apply_blocks(
        x,
        target,
        max_memory=lowest + int(share * (most - lowest)),
        progress=lambda done, total: counts.append(done),
    )
    assert share == 1 or len(counts) > 1
    return target


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("share", [0, 0.02])
def test_bits_of_one_piece(kind: str, share: float, channels_last: bool) -> None:
    layer = make(kind, channels_last)
    x = volume(channels_last)
    np.testing.assert_array_equal(streamed(layer, x, share), layer(x))


@pytest.mark.parametrize("algorithm", ["auto", "direct", "winograd", "im2col"])
@pytest.mark.parametrize("activation", ["linear", "gelu", "mish", "softmax", "glu"])
def test_algorithms_and_activations(algorithm: str, activation: str, channels_last: bool) -> None:
    kind = "k4 s2 same"
    layer = make(kind, channels_last, algorithm=algorithm, activation=activation)
    x = volume(channels_last)
    np.testing.assert_array_equal(streamed(layer, x, 0), layer(x))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "mixed_float16"])
@pytest.mark.parametrize("given", ["float32", "float64", "float16", ">f4"])
def test_dtypes(dtype: str, given: str) -> None:
    layer = make("k3 s2 same", dtype=dtype)
    x = volume(dtype=given)
    np.testing.assert_array_equal(streamed(layer, x, 0), layer(x))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_as_set(
    threads: int, always_parallel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make("k3 s2 same", num_threads=threads)
    x = volume()
    teams = []
    asked = engine.threads
    monkeypatch.setattr(engine, "threads", lambda *given: teams.append(given[0]) or asked(*given))
    np.testing.assert_array_equal(streamed(layer, x, 0), layer(x))
    assert set(teams) == {threads}


# ---- what slices like an array ----------------------------------------------------


def _memmap(folder: Path, array: np.ndarray, name: str) -> Iterator[Any]:
    path = folder / f"{name}.npy"
    mapped = np.lib.format.open_memmap(path, "w+", array.dtype, array.shape)
    mapped[...] = array
    yield mapped


def _memmap_fortran(folder: Path, array: np.ndarray, name: str) -> Iterator[Any]:
    path = folder / f"{name}.bin"
    mapped = np.memmap(path, array.dtype, "w+", shape=array.shape, order="F")
    mapped[...] = array
    yield mapped


def _h5py(folder: Path, array: np.ndarray, name: str) -> Iterator[Any]:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (the test extra)")
    with h5py.File(folder / f"{name}.h5", "w") as file:
        yield file.create_dataset("data", data=array, chunks=True)


def _zarr(folder: Path, array: np.ndarray, name: str) -> Iterator[Any]:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed (the zarr extra)")
    made = zarr.open(folder / name, mode="w", shape=array.shape, chunks=(1, 5, 5, 5, 6), dtype="f4")
    made[...] = array
    yield made


@pytest.mark.parametrize("store", [_memmap, _memmap_fortran, _h5py, _zarr])
def test_anything_that_slices(
    store: Callable[..., Iterator[Any]], tmp_path: Path, channels_last: bool
) -> None:
    layer = make("k3 s2 same", channels_last)
    x = volume(channels_last)
    want = layer(x)
    for source in store(tmp_path, x, "source"):
        for target in store(tmp_path, np.zeros_like(want), "target"):
            budget = least(layer, source, target) + 30_000
            conv3dt.apply_blocks(layer, source, target, max_memory=budget)
            np.testing.assert_array_equal(target[...], want)
            np.testing.assert_array_equal(source[...], x)


def test_private_mapping_keeps_what_was_written(tmp_path: Path) -> None:
    layer = make("k2 s2")
    x = volume()
    want = layer(x)
    np.zeros_like(want).tofile(tmp_path / "target")
    target = np.memmap(tmp_path / "target", "float32", "c", shape=want.shape)
    layer.apply_blocks(x, target, max_memory=least(layer, x, target))
    np.testing.assert_array_equal(target, want)


def test_a_layer_that_is_not_built_is_built() -> None:
    layer = conv3dt.Conv3DTranspose(3, 2, strides=2)
    x = volume()
    target = np.zeros((2, 16, 10, 12, 3), "float32")
    layer.apply_blocks(x, target)
    assert layer.built
    np.testing.assert_array_equal(target, layer(x))


@pytest.mark.parametrize("shape", [(0, 4, 4, 4, 6), (1, 0, 4, 4, 6)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    layer = make("k3 s2 same")
    target = np.zeros(layer.compute_output_shape(shape), "float32")
    layer.apply_blocks(np.zeros(shape, "float32"), target, max_memory=1)


def test_empty_input_axis_is_all_bias() -> None:
    layer = make("k3 d2", activation=None)
    layer.build((None, None, None, None, 6))
    layer.bias = np.arange(6, dtype="float32")
    x = np.zeros((1, 0, 4, 4, 6), "float32")
    target = np.full(layer.compute_output_shape(x.shape), np.nan, "float32")
    assert target.size
    layer.apply_blocks(x, target)
    np.testing.assert_array_equal(target, layer(x))


# ---- memory -----------------------------------------------------------------------


@pytest.mark.parametrize("budget", [5 << 20, 7 << 20])
@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("kind", ["k2 s2", "k4 s2 same", "depthwise"])
def test_memory_that_is_allocated(
    kind: str, dtype: str, algorithm: str, budget: int, channels_last: bool
) -> None:
    layer = make(kind, channels_last, dtype=dtype, algorithm=algorithm, num_threads=2)
    x = np.ones((1, 48, 40, 40, 6) if channels_last else (1, 6, 48, 40, 40), "float32")
    target = np.zeros(layer(x).shape, layer(x).dtype)
    counts: list[int] = []
    tracemalloc.start()
    layer.apply_blocks(
        x, target, max_memory=budget, progress=lambda done, total: counts.append(done)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(counts) > 1
    assert peak <= budget + (1 << 17)  # plans, indices and the like


STREAM = """
import sys
import numpy as np
import conv3dt

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

folder = sys.argv[1]
layer = conv3dt.Conv3DTranspose(8, 3, strides=2, padding="same", num_threads=2)
source = np.lib.format.open_memmap(folder + "/x.npy", "w+", "float32", (1, 64, 64, 64, 8))
shape = layer.compute_output_shape(source.shape)
target = np.lib.format.open_memmap(folder + "/y.npy", "w+", "float32", shape)
layer(np.ones((1, 16, 16, 16, 8), "float32"))
before = peak()
layer.apply_blocks(source, target, max_memory="8 MiB")
print(target.nbytes, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from proc")
def test_memory_of_the_process(tmp_path: Path) -> None:
    """Files that are mapped count too."""
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    size, grown = map(int, done.stdout.split())
    assert size == 64 << 20
    assert grown < 12 << 20


def test_the_fewest_pieces_that_fit() -> None:
    layer = make("k2 s2", num_threads=1)
    x = volume()
    chain = Chain(layer.links(x.shape, x.dtype), x.dtype)

    def parts(budget: int) -> list[int]:
        return [len(ranges) for ranges in blocks.divide(chain, x, budget).ranges]

    assert parts(1 << 30) == [1, 1, 1, 1]
    whole = blocks.Division(chain, x, [1, 1, 1, 1]).memory()
    assert parts(whole) == [1, 1, 1, 1]
    assert parts(whole - 1) == [2, 1, 1, 1]
    sample = blocks.Division(chain, x, [2, 1, 1, 1]).memory()
    assert parts(sample - 1)[:2] == [2, 2]
    thinnest = blocks.Division(chain, x, [2, 8, 1, 1]).memory()
    assert parts(thinnest) == [2, 8, 1, 1]
    assert parts(thinnest - 1)[:2] == [2, 8] and parts(thinnest - 1)[2] > 1


# ---- progress, interruption -------------------------------------------------------


def test_progress_counts_voxels() -> None:
    layer = make("k3 s2 same")
    x = volume()
    target = np.empty((2, 16, 10, 12, 6), "float32")
    calls: list[tuple[int, int]] = []
    budget = least(layer, x, target) + 20_000
    layer.apply_blocks(x, target, max_memory=budget, progress=lambda *call: calls.append(call))
    done = [count for count, _ in calls]
    assert len(done) > 2 and done == sorted(done)
    assert calls[-1] == (2 * 16 * 10 * 12,) * 2
    assert {total for _, total in calls} == {2 * 16 * 10 * 12}


def test_an_error_of_the_source_or_of_progress_comes_through() -> None:
    layer = make("k3 s2 same")
    x = volume()
    target = np.empty((2, 16, 10, 12, 6), "float32")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layer.apply_blocks(x, target, progress=stop)


# ---- refusals ---------------------------------------------------------------------


class Sliced:
    """The least that a source or target must offer."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        raise AssertionError("nothing may be read")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise AssertionError("nothing may be written")


X = (2, *SPACE, 6)
Y = (2, 16, 10, 12, 6)


def _read_only() -> np.ndarray:
    array = np.zeros(Y, "float32")
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"source": Sliced(X[1:], "f4")}, ValueError, "source: x must have 5 axes"),
        ({"source": Sliced((*X[:4], 5), "f4")}, ValueError, "source: .* 6 input channels, got 5"),
        ({"source": Sliced(X, "i2")}, TypeError, "source must be float16, .*, got int16"),
        ({"source": [1.0]}, TypeError, "source must have shape, dtype and slices.*list"),
        ({"source": np.ma.zeros(X, "f4")}, TypeError, "source must have .*Masked"),
        ({"target": Sliced(X, "f4")}, ValueError, r"target must have shape \(2, 16.*got \(2, 8"),
        ({"target": Sliced(Y, "f8")}, TypeError, "target must have dtype float32, got float64"),
        ({"target": None}, TypeError, "target must have shape, dtype and slices.*None"),
        ({"target": _read_only()}, ValueError, "target must be writeable"),
        ({"max_memory": 0}, ValueError, "max_memory must be a positive number of bytes"),
        ({"max_memory": -5}, ValueError, "max_memory must be a positive"),
        ({"max_memory": "much"}, ValueError, "max_memory must be .*'much'"),
        ({"max_memory": 1.5}, ValueError, "max_memory must be .*1.5"),
        ({"max_memory": None}, ValueError, "max_memory must be .*None"),
        ({"max_memory": 1000}, ValueError, r"at least \d+ bytes, got 1000"),
        ({"progress": "bar"}, TypeError, "progress must be callable or None, got 'bar'"),
    ],
)
def test_refused_before_any_work(change: dict[str, Any], error: type, words: str) -> None:
    layer = make("k2 s2")
    layer.build(X)
    given = {"source": Sliced(X, "f4"), "target": Sliced(Y, "f4"), **change}
    with pytest.raises(error, match=words):
        conv3dt.apply_blocks(layer, **given)


def test_shared_memory_is_refused() -> None:
    layer = conv3dt.Conv3DTranspose(6, 3, padding="same")
    x = volume()
    with pytest.raises(ValueError, match="target must not share memory with source"):
        layer.apply_blocks(x, x[::-1])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("512 MiB", 512 << 20),
        ("1.5gib", 3 << 29),
        ("10k", 10**4),
        ("7", 7),
        ("7 B", 7),
        (" 1TB ", 10**12),
        (np.int64(9), 9),
    ],
)
def test_sizes_of_memory(text: Any, size: int) -> None:
    assert arguments.memory_size("max_memory", text) == size


def test_the_activation_of_a_piece_is_the_layers() -> None:
    """A callable of the user's own is applied to whole rows of the last axis."""
    seen = []

    def spread(y: np.ndarray) -> np.ndarray:
        seen.append(y.shape[-1])
        return y - y.mean(axis=-1, keepdims=True)

    layer = make("k3 s2 same", False, activation=spread)
    x = volume(False)
    np.testing.assert_array_equal(streamed(layer, x, 0), layer(x))
    assert set(seen) == {12}
    assert isinstance(layer.activation, activations.Activation)


def test_pieces_are_written_where_they_belong() -> None:
    layer = make("k3 s2 same")
    chain = chain_of(layer, X, np.dtype("float32"))
    piece = Section(chain, [(1, 2), (4, 10), (0, 10), (0, 12)])
    assert piece.inputs == (slice(1, 2), slice(1, 5), slice(0, 5), slice(0, 6), slice(None))
    assert piece.outputs[:2] == (slice(1, 2), slice(4, 10))
