"""dask arrays: lazily, chunked on any axis, with the bits of one piece, on any scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import conv3dt
from conv3dt import engine

dask = pytest.importorskip("dask", reason="dask is not installed (the dask extra)")
da = pytest.importorskip("dask.array", reason="dask is not installed (the dask extra)")

from conv3dt.dask import apply, conv3d_transpose  # noqa: E402

CALLS: dict[str, dict[str, Any]] = {
    "k2 s2": {"kernel": 2, "strides": 2},
    "k3 s2 same": {"kernel": 3, "strides": 2, "padding": "same"},
    "k4 s2 same": {"kernel": 4, "strides": 2, "padding": "same"},
    "k3 s2 same, output_padding": {
        "kernel": 3, "strides": 2, "padding": "same", "output_padding": 1
    },
    "k3 s1 crops": {"kernel": 3, "padding": ((1, 2), (0, 1), (3, 0))},
    "k3 d2 same": {"kernel": 3, "dilation_rate": 2, "padding": "same"},
    "k2 s3 d2 gaps": {
        "kernel": 2, "strides": 3, "dilation_rate": 2, "padding": 1, "output_padding": 2
    },
    "k7 s1, a halo of several chunks": {"kernel": 7, "padding": "same"},
    "k1 s1": {"kernel": 1},
}  # fmt: skip
SPACE = (8, 5, 11)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def case(name: str, channels_last: bool = True, dtype: str = "float32") -> dict[str, Any]:
    """Arguments of the function, with a NumPy array for x."""
    given = dict(CALLS[name])
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((given.pop("kernel"),) * 3 + (3, 4)).astype(dtype)
    x = rng.standard_normal((2, *SPACE, 4)).astype(dtype)
    return {
        "x": x if channels_last else np.ascontiguousarray(np.moveaxis(x, -1, 1)),
        "kernel": kernel,
        "bias": rng.standard_normal(3).astype(dtype),
        "data_format": "channels_last" if channels_last else "channels_first",
        **given,
    }


def check(call: dict[str, Any], chunks: Any) -> Any:
    want = conv3dt.conv3d_transpose(**call)
    y = conv3d_transpose(**{**call, "x": da.from_array(call["x"], chunks)})
    assert y.shape == want.shape and y.dtype == want.dtype
    blocks = dask.compute(*y.to_delayed().ravel())
    assert [block.shape for block in blocks] == list(product(*y.chunks))
    got = y.compute()
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
    return y


@pytest.mark.parametrize("name", CALLS)
def test_chunks_of_any_axis(name: str, channels_last: bool) -> None:
    check(case(name, channels_last), (1, 3, 2, 4, 3) if channels_last else (2, 3, 1, 4, 6))


@pytest.mark.parametrize("algorithm", ["direct", "winograd", "im2col"])
def test_algorithms(algorithm: str, isa: str, channels_last: bool) -> None:
    check({**case("k4 s2 same", channels_last), "algorithm": algorithm}, 5)


@pytest.mark.parametrize("activation", ["relu", "gelu", "softmax", "sparsemax"])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_activations_and_dtypes(activation: str, dtype: str, channels_last: bool) -> None:
    check({**case("k3 s2 same", channels_last, dtype), "activation": activation}, 3)


@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(sorted(CALLS)), channels_last=st.booleans())
def test_irregular_chunks(data: st.DataObject, name: str, channels_last: bool) -> None:
    call = case(name, channels_last)
    chunks = []
    for size in call["x"].shape:
        cuts = data.draw(st.lists(st.integers(0, size), max_size=2))
        chunks.append(tuple(np.diff([0, *sorted(cuts), size]).tolist()))
    check(call, tuple(chunks))


def test_chunks_of_the_result() -> None:
    """Where kernels do not overlap a task reads one chunk; channels are one chunk."""
    call = case("k2 s2")
    y = check(call, (1, (3, 5), 5, (4, 7), 2))
    assert y.chunks == ((1, 1), (6, 10), (10,), (8, 14), (3,))
    engine.select("numpy" if not engine.built() else engine.selected())
    same = check(case("k3 s2 same"), (2, (4, 4), 5, 11, 4))
    assert same.chunks == ((2,), (8, 8), (10,), (22,), (3,))


def test_an_axis_along_which_numbers_mix_is_one_chunk() -> None:
    y = check({**case("k2 s2", False), "activation": "softmax"}, (1, 4, 4, 5, 3))
    assert y.chunks[4] == (22,) and len(y.chunks[2]) == 2
    halved = check({**case("k2 s2", False), "activation": "glu"}, (1, 4, 4, 5, 3))
    assert halved.chunks[4] == (11,)


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def refuse(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("computed")

    call = case("k3 s2 same")
    x = da.from_array(call["x"], (1, 2, 5, 11, 4)).map_blocks(refuse, meta=call["x"][:0])
    y = conv3d_transpose(**{**call, "x": x})
    with pytest.raises(RuntimeError, match="computed"):
        y.compute()


def test_a_task_reads_its_halo_and_no_more() -> None:
    call = case("k3 s2 same")
    seen = []

    def note(block: np.ndarray, block_id: Any = None) -> np.ndarray:
        seen.append(block_id[1])
        return block

    x = da.from_array(call["x"], (2, 2, 5, 11, 4)).map_blocks(
        note, dtype="float32", meta=call["x"][:0]
    )
    y = conv3d_transpose(**{**call, "x": x})
    assert y.chunks[1] == (4, 4, 4, 4)
    y[:, 4:8].compute()
    assert set(seen) <= {0, 1, 2} and 1 in seen


def test_a_layer(channels_last: bool) -> None:
    layer = conv3dt.Conv3DTranspose(
        3, 3, strides=2, activation="relu",
        data_format="channels_last" if channels_last else "channels_first",
    )  # fmt: skip
    x = case("k2 s2", channels_last)["x"]
    y = apply(layer, da.from_array(x, 3))
    assert layer.built and layer.num_threads is None
    want = layer(x)
    layer.kernel = np.zeros(layer.kernel.shape, "float32")
    np.testing.assert_array_equal(y.compute(), want)


def test_layers_dtypes() -> None:
    layer = conv3dt.Conv3DTranspose(3, 3, dtype="mixed_float16")
    x = case("k2 s2")["x"].astype(">f8")
    y = apply(layer, da.from_array(x, 3))
    assert y.dtype == "float16"
    np.testing.assert_array_equal(y.compute(), layer(x))


def chain(channels_last: bool, *more: Any) -> conv3dt.Sequential:
    """Of 4 channels: halos of several kinds, a folded normalization, one that is not."""
    axis = -1 if channels_last else 1
    options: dict[str, Any] = {
        "data_format": "channels_last" if channels_last else "channels_first"
    }
    layers = [
        "elu",
        conv3dt.Conv3DTranspose(5, 4, strides=2, padding="same", **options),
        conv3dt.BatchNormalization(axis),
        "relu",
        conv3dt.BatchNormalization(axis),
        conv3dt.Conv3DTranspose(4, 3, strides=(1, 2, 3), padding=1, **options),
        *more,
    ]
    shape = (None,) * 3 + (4,) if channels_last else (4,) + (None,) * 3
    made = conv3dt.Sequential(layers, input_shape=shape)
    rng = np.random.default_rng(0)
    made.set_weights([rng.uniform(0.5, 1, w.shape) for w in made.weights])
    return made


@pytest.mark.parametrize("more", [(), ("tanh",), ("softmax",), ("glu",)], ids=str)
def test_a_chain(more: tuple[str, ...], channels_last: bool) -> None:
    layers, x = chain(channels_last, *more), case("k2 s2", channels_last)["x"]
    y = apply(layers, da.from_array(x, 3))
    want = layers(x)
    assert (y.shape, y.dtype, y.npartitions > 4) == (want.shape, want.dtype, True)
    for layer in layers:
        layer.set_weights([np.zeros(w.shape) for w in layer.weights])
    blocks = dask.compute(*y.to_delayed().ravel())
    assert [block.shape for block in blocks] == list(product(*y.chunks))
    np.testing.assert_array_equal(y.compute(), want)


def test_chunks_of_a_chain() -> None:
    """Chunks of the result lie over those of the source, whatever is cropped on the way."""
    y = apply(chain(True), da.from_array(case("k2 s2")["x"], (1, 4, 5, 11, 2)))
    assert y.chunks == ((1, 1), (8, 8), (19,), (64,), (4,))


def test_samples_that_mix_are_one_chunk() -> None:
    call = {**case("k2 s2"), "activation": {"class_name": "Softmax", "config": {"axis": 0}}}
    assert check(call, (1, 4, 5, 11, 4)).chunks[:2] == ((2,), (8, 8))


@pytest.mark.parametrize("shape", [(0, 4, 4, 4, 4), (1, 0, 4, 4, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    call = case("k3 s2 same")
    check({**call, "x": np.zeros(shape, "float32")}, 2)
    check({**case("k3 d2 same"), "padding": "valid", "x": np.zeros(shape, "float32")}, 2)


def test_threads_of_a_task(always_parallel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    call = case("k3 s2 same")
    x = da.from_array(call.pop("x"), 4)
    teams = []
    monkeypatch.setattr(engine, "threads", lambda wanted, *_: teams.append(wanted) or 1)
    for number in (1, 3, None):
        conv3d_transpose(x, **call, num_threads=number).compute()
        assert set(teams) == {number}
        teams.clear()
    conv3d_transpose(x, **call).compute()
    assert set(teams) == {1}


def test_refusals() -> None:
    call = case("k2 s2")
    x = da.from_array(call.pop("x"), 3)
    with pytest.raises(TypeError, match="x must be a dask array, got ndarray"):
        conv3d_transpose(np.zeros((1, 2, 2, 2, 4), "float32"), **call)
    with pytest.raises(TypeError, match="x must be float16, .*, got int64"):
        conv3d_transpose(x.astype("int64"), **call)
    with pytest.raises(ValueError, match="4 input channels, got 3"):
        conv3d_transpose(x[..., :3], **call)
    with pytest.raises(ValueError, match="kernel must have 5 axes"):
        conv3d_transpose(x, np.zeros((2, 2), "float32"))
    with pytest.raises(ValueError, match="bias must have shape"):
        conv3d_transpose(x, call["kernel"], np.zeros(5, "float32"))
    with pytest.raises(ValueError, match="num_threads must be"):
        conv3d_transpose(x, call["kernel"], num_threads=0)
    with pytest.raises(ValueError, match="known sizes"):
        conv3d_transpose(x[x[:, 0, 0, 0, 0] > 0], call["kernel"])
    flat = conv3dt.Sequential([conv3dt.Conv3DTranspose(2, 2), conv3dt.Flatten(name="flat")])
    with pytest.raises(ValueError, match="flat .*must go through it whole"):
        apply(flat, x)
    with pytest.raises(TypeError, match="layer must be .* or a Sequential, got function"):
        apply(case, x)


# ---- a cluster --------------------------------------------------------------------

LIMIT = 320 << 20  # bytes per worker; one that has done nothing takes half of them


def test_two_workers_and_a_volume_that_fits_neither(tmp_path: Path) -> None:
    """Processes that would be killed above their limit, and may not spill to disk."""
    distributed = pytest.importorskip(
        "distributed", reason="dask.distributed is not installed (the test extra)"
    )
    zarr = pytest.importorskip("zarr", reason="zarr is not installed (the zarr extra)")
    layer = conv3dt.Conv3DTranspose(
        16, 2, strides=2, activation="relu", input_shape=(None,) * 3 + (8,)
    )
    x = np.random.default_rng(0).standard_normal((1, 48, 128, 128, 8), np.float32)
    options = {"mode": "w", "dtype": "float32"}
    stored = zarr.open(tmp_path / "x", shape=x.shape, chunks=(1, 8, 64, 128, 8), **options)
    stored[...] = x
    memory = {"target": False, "spill": False}
    with (
        dask.config.set({f"distributed.worker.memory.{key}": off for key, off in memory.items()}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
        dask.config.set(scheduler=None),
    ):
        y = apply(layer, da.from_zarr(tmp_path / "x"))
        assert y.nbytes > LIMIT
        target = zarr.open(tmp_path / "y", shape=y.shape, chunks=(1, 16, 128, 256, 16), **options)
        y.store(target, lock=False)
    want = layer(x[:, 20:31])
    np.testing.assert_array_equal(target[:, 40:62], want)
    np.testing.assert_array_equal(target[:, ::31, ::17, ::13], layer(x)[:, ::31, ::17, ::13])
