"""The command line: what is written, what is said, and nothing half-written."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conv3dt
from conv3dt import __main__, blocks, plan
from conv3dt.cli import axes, nifti, peers, progress

SPACE = (6, 7, 8)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "VERBOSE", False)


def layer(channels: int = 1, filters: int = 3, **arguments: Any) -> conv3dt.Conv3DTranspose:
    arguments = {"strides": 2, "padding": "same", "name": "up", **arguments}
    made = conv3dt.Conv3DTranspose(filters, arguments.pop("kernel_size", 3), **arguments)
    last = made.data_format == "channels_last"
    made.build((None,) * 4 + (channels,) if last else (None, channels, None, None, None))
    return made


def saved(path: Path, its: conv3dt.Conv3DTranspose) -> str:
    its.save(path / "model.npz")
    return str(path / "model.npz")


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 100).astype(dtype)


def run(*words: Any) -> None:
    assert __main__.main(["run", *map(str, words)]) == 0


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- run --------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [(), ("--tile",), ("--max-memory", "100kB")])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_npy(
    tile: tuple[str, ...], data_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    its = layer(4, 3, data_format=data_format)
    x = numbers(2, *SPACE, 4) if data_format == "channels_last" else numbers(2, 4, *SPACE)
    np.save(tmp_path / "x.npy", x)
    run(saved(tmp_path, its), tmp_path / "x.npy", "-o", tmp_path / "y.npy", *tile)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), its(x))
    assert left(tmp_path) == ["model.npz", "x.npy", "y.npy"]
    out, err = capsys.readouterr()
    assert "read as" not in out and str(its(x).shape) in out


@pytest.mark.parametrize(
    ("shape", "channels", "filters", "said", "expected"),
    [
        (SPACE, 1, 3, "(1, 6, 7, 8, 1)", (12, 14, 16, 3)),
        (SPACE, 1, 1, "(1, 6, 7, 8, 1)", (12, 14, 16)),
        ((*SPACE, 4), 4, 3, "(1, 6, 7, 8, 4)", (12, 14, 16, 3)),
        ((*SPACE, 1), 1, 1, "(1, 6, 7, 8, 1)", (12, 14, 16, 1)),
        ((2, *SPACE), 1, 1, "(2, 6, 7, 8, 1)", (2, 12, 14, 16)),
    ],
)
def test_axes_are_added_and_that_is_said(
    shape: tuple[int, ...],
    channels: int,
    filters: int,
    said: str,
    expected: tuple[int, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    its = layer(channels, filters)
    x = numbers(*shape)
    np.save(tmp_path / "x.npy", x)
    run(saved(tmp_path, its), tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    assert f"read as {said} (NDHWC)" in capsys.readouterr().out
    y = np.load(tmp_path / "y.npy")
    assert y.shape == expected
    want = its(x.reshape([int(n) for n in said.strip("()").split(",")]))
    np.testing.assert_array_equal(y.reshape(want.shape), want)


def test_npz_and_array(tmp_path: Path) -> None:
    its = layer(4)
    x = numbers(*SPACE, 4)
    np.savez(tmp_path / "x.npz", a=x, b=x[:2])
    run(saved(tmp_path, its), tmp_path / "x.npz", "--array", "a", "-o", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], its(x[None])[0])


@pytest.mark.parametrize("tile", [(), ("--max-memory", "100kB")])
def test_zarr(tile: tuple[str, ...], tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed (the zarr extra)")
    its = layer(4)
    x = numbers(*SPACE, 4)
    stored = zarr.open(
        tmp_path / "x.zarr", mode="w", shape=x.shape, chunks=(4, 4, 4, 4), dtype="f4"
    )
    stored[...] = x
    for _ in range(2):  # the second replaces the first
        run(saved(tmp_path, its), tmp_path / "x.zarr", "-o", tmp_path / "y.zarr", *tile)
    y = zarr.open(tmp_path / "y.zarr", mode="r")[...]
    np.testing.assert_array_equal(y, its(x[None])[0])
    assert left(tmp_path) == ["model.npz", "x.zarr", "y.zarr"]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64", ">f4", "bool"])
def test_numbers_that_are_no_floats_are_cast(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    its = layer()
    x = numbers(*SPACE).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    run(saved(tmp_path, its), tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--tile")
    want = its(x.astype("float32")[None, ..., None])[0]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), want)
    assert ("cast to float32" in capsys.readouterr().out) == (np.dtype(dtype).kind in "biu")


def test_dtype_threads_verbose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    its = layer(4)
    x = numbers(*SPACE, 4)
    np.save(tmp_path / "x.npy", x)
    words = ("--dtype", "mixed_float16", "--threads", "1", "--verbose")
    run(saved(tmp_path, its), tmp_path / "x.npy", "-o", tmp_path / "y.npy", *words)
    y = np.load(tmp_path / "y.npy")
    assert y.dtype == "float16"
    np.testing.assert_array_equal(y, its(x[None])[0].astype("float16"))
    said = capsys.readouterr().err
    assert "at most 1 threads" in said and "scratch at most" in said and "strides=(2, 2, 2)" in said
    if conv3dt.engine.selected() != "numpy":
        assert "depthwise declines: more than one input channel per group" in said


# ---- NIfTI ------------------------------------------------------------------------

AFFINE = np.array([[0, -2.0, 0, 90], [1.5, 0, 0, -126], [0, 0, 3.0, -72], [0, 0, 0, 1]])


@pytest.fixture
def nibabel() -> Any:
    return pytest.importorskip("nibabel", reason="nibabel is not installed (the nifti extra)")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_nifti(suffix: str, data_format: str, nibabel: Any, tmp_path: Path) -> None:
    its = layer(1, 3, data_format=data_format, activation="relu")
    x = numbers(*SPACE, dtype="int16")
    image = nibabel.Nifti1Image(x, AFFINE)
    image.header["descrip"] = b"a scan"
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, 0)
    nibabel.save(image, tmp_path / f"x{suffix}")
    words = ("--max-memory", "100kB")
    run(saved(tmp_path, its), tmp_path / f"x{suffix}", "-o", tmp_path / f"y{suffix}", *words)
    got = nibabel.load(tmp_path / f"y{suffix}")
    want = its(
        x.astype("float32")[None, ..., None]
        if data_format == "channels_last"
        else x.astype("float32")[None, None]
    )[0]
    if data_format == "channels_first":
        want = np.moveaxis(want, 0, -1)
    np.testing.assert_array_equal(np.asarray(got.dataobj), want)
    assert got.get_data_dtype() == "float32" and bytes(got.header["descrip"])[:6] == b"a scan"
    np.testing.assert_allclose(got.header.get_zooms()[:3], np.array([1.5, 2, 3]) / 2)
    assert left(tmp_path) == ["model.npz", f"x{suffix}", f"y{suffix}"]


def test_a_kernel_as_large_as_its_stride_keeps_the_field_of_view(
    nibabel: Any, tmp_path: Path
) -> None:
    its = layer(1, 1, kernel_size=(2, 3, 1), strides=(2, 3, 1), padding="valid")
    nibabel.save(nibabel.Nifti1Image(numbers(*SPACE), AFFINE), tmp_path / "x.nii")
    run(saved(tmp_path, its), tmp_path / "x.nii", "-o", tmp_path / "y.nii")
    image = nibabel.load(tmp_path / "y.nii")
    assert image.shape == (12, 21, 8)

    def corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        ends = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], [1.0], indexing="ij"), -1)
        return ends.reshape(-1, 4) @ affine.T

    np.testing.assert_allclose(
        corners(image.affine, image.shape), corners(AFFINE, SPACE), atol=1e-4
    )


@pytest.mark.parametrize(
    ("kernel_size", "strides", "padding"),
    [(3, 2, 1), (4, 2, 1), (3, 2, "same"), (5, 1, 0), (1, 3, 0)],
)
def test_a_bright_voxel_stays_where_it_is(kernel_size: int, strides: int, padding: Any) -> None:
    """The centre of mass of what a symmetric kernel makes of one voxel."""
    kernel = np.ones((kernel_size,) * 3 + (1, 1), "float32")
    x = np.zeros((1, 5, 5, 5, 1), "float32")
    x[0, 2, 3, 2] = 1
    its = layer(1, 1, kernel_size=kernel_size, strides=strides, padding=padding, use_bias=False)
    its.kernel = kernel
    y = its(x)[0, ..., 0]
    centre = np.array([*(np.argwhere(y > 0).mean(0)), 1])
    axes_ = its._poser(1)(x.shape).axes
    np.testing.assert_allclose(nifti.upsampled(AFFINE, axes_) @ centre, AFFINE @ [2, 3, 2, 1])


def test_nifti_of_many_channels_and_samples(nibabel: Any, tmp_path: Path) -> None:
    its = layer(4, 2)
    x = numbers(*SPACE, 4)
    nibabel.save(nibabel.Nifti1Image(x, AFFINE), tmp_path / "x.nii")
    run(saved(tmp_path, its), tmp_path / "x.nii", "-o", tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), its(x[None])[0])
    series = layer(1, 1)
    run(saved(tmp_path, series), tmp_path / "x.nii", "-o", tmp_path / "y.nii")
    y = np.asarray(nibabel.load(tmp_path / "y.nii").dataobj)
    np.testing.assert_array_equal(
        y, np.moveaxis(series(np.moveaxis(x, -1, 0)[..., None]), 0, -2)[..., 0]
    )


# ---- whole or not at all ----------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".nii.gz", ".nii", ".zarr"])
def test_an_interruption_leaves_what_was_there(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".zarr":
        pytest.importorskip("zarr", reason="zarr is not installed (the zarr extra)")
    elif "nii" in suffix:
        pytest.importorskip("nibabel", reason="nibabel is not installed (the nifti extra)")
    its = layer()
    np.save(tmp_path / "x.npy", numbers(*SPACE))
    words = [
        "run",
        saved(tmp_path, its),
        str(tmp_path / "x.npy"),
        "-o",
        str(tmp_path / f"y{suffix}"),
    ]
    words += ["--max-memory", "100kB"]
    stream = blocks._stream

    def interrupted(*given: Any) -> None:
        stream(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(blocks, "_stream", interrupted)
    assert __main__.main(words) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "conv3dt: interrupted"
    assert left(tmp_path) == ["model.npz", "x.npy"]
    monkeypatch.undo()
    assert __main__.main(words) == 0
    before = _bytes(tmp_path / f"y{suffix}")
    monkeypatch.setattr(blocks, "_stream", interrupted)
    assert __main__.main(words) == 130
    assert _bytes(tmp_path / f"y{suffix}") == before
    assert left(tmp_path) == ["model.npz", "x.npy", f"y{suffix}"]


def _bytes(path: Path) -> dict[str, bytes]:
    files = path.rglob("*") if path.is_dir() else [path]
    return {str(file): file.read_bytes() for file in files if file.is_file()}


def test_a_folder_that_is_no_zarr_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("zarr", reason="zarr is not installed (the zarr extra)")
    np.save(tmp_path / "x.npy", numbers(*SPACE))
    (tmp_path / "y.zarr").mkdir()
    (tmp_path / "y.zarr" / "thesis.txt").write_text("mine")
    words = [
        "run",
        saved(tmp_path, layer()),
        str(tmp_path / "x.npy"),
        "-o",
        str(tmp_path / "y.zarr"),
    ]
    assert __main__.main(words) == 2
    assert "exists and is no zarr" in capsys.readouterr().err
    assert left(tmp_path / "y.zarr") == ["thesis.txt"]


# ---- chains ----------------------------------------------------------------------


def chain(data_format: str = "channels_last") -> conv3dt.Sequential:
    """Of two layers named alike but for their number."""
    last = data_format == "channels_last"
    return conv3dt.Sequential(
        [
            layer(2, 4, name="up1", data_format=data_format),
            conv3dt.BatchNormalization(-1 if last else 1, moving_mean_initializer="ones"),
            "relu",
            layer(4, 3, name="up2", data_format=data_format),
        ],
        input_shape=(None, None, None, 2) if last else (2, None, None, None),
    )


@pytest.mark.parametrize("tile", [(), ("--tile",), ("--max-memory", "200kB")])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_chain(tile: tuple[str, ...], data_format: str, tmp_path: Path) -> None:
    its = chain(data_format)
    its.save(tmp_path / "model.npz")
    x = numbers(*SPACE, 2) if data_format == "channels_last" else numbers(2, *SPACE)
    np.save(tmp_path / "x.npy", x)
    run(tmp_path / "model.npz", tmp_path / "x.npy", "-o", tmp_path / "y.npy", *tile)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), its(x[None])[0])
    assert left(tmp_path) == ["model.npz", "x.npy", "y.npy"]


def test_a_layer_of_a_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    its = chain()
    its.save(tmp_path / "model.npz")
    np.save(tmp_path / "x.npy", numbers(*SPACE, 2))
    words = (tmp_path / "model.npz", tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    run(*words, "--layer", "up1")
    assert "model.npz, layer 'up1' alone\n" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), its[0](numbers(1, *SPACE, 2))[0])


def test_a_chain_of_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (the onnx extra)")
    path = tmp_path / "model.onnx"
    parts = [layer(2, 4, data_format="channels_first"), layer(4, 3, data_format="channels_first")]
    models = []
    for name, part in zip("ab", parts, strict=True):
        part.to_onnx(path)
        models.append(onnx.compose.add_prefix(onnx.load(path), name))
    onnx.save(onnx.compose.merge_models(*models, io_map=[("ay", "bx")]), path)
    np.save(tmp_path / "x.npy", numbers(2, *SPACE))
    run(path, tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--tile")
    y = conv3dt.Sequential(parts)(numbers(1, 2, *SPACE))[0]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), y)


def test_dtype_threads_verbose_of_a_chain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    its = chain()
    its.save(tmp_path / "model.npz")
    np.save(tmp_path / "x.npy", numbers(*SPACE, 2))
    words = (tmp_path / "model.npz", tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    run(*words, "--dtype", "float64", "--threads", "1", "--verbose")
    y = np.load(tmp_path / "y.npy")
    assert y.dtype == "float64"
    np.testing.assert_allclose(y, its(numbers(1, *SPACE, 2))[0], rtol=1e-3, atol=1e-3)
    said = capsys.readouterr().err
    assert "up1" in said and said.count("at most 1 threads") == 2


def test_nifti_of_a_chain(nibabel: Any, tmp_path: Path) -> None:
    """Voxels are smaller by both strides."""
    its = conv3dt.Sequential([layer(1, 2, kernel_size=2), layer(2, 1, kernel_size=2)])
    its.save(tmp_path / "model.npz")
    nibabel.save(nibabel.Nifti1Image(numbers(*SPACE), np.eye(4)), tmp_path / "x.nii.gz")
    run(tmp_path / "model.npz", tmp_path / "x.nii.gz", "-o", tmp_path / "y.nii.gz", "--tile")
    image = nibabel.load(tmp_path / "y.nii.gz")
    np.testing.assert_array_equal(
        image.get_fdata(dtype="float32"), its(numbers(*SPACE)[None, ..., None])[0, ..., 0]
    )
    np.testing.assert_allclose(np.diag(image.affine)[:3], 0.25)
    np.testing.assert_allclose(image.affine[:3, 3], -0.375)  # the corner stays where it was


# ---- refusals ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    saved(tmp_path, layer(4))
    whole = conv3dt.Sequential(
        [layer(4, 2), conv3dt.Reshape((-1, 2), name="rows"), conv3dt.Reshape((12, 14, 16, 2))],
    )
    whole.save(tmp_path / "whole.npz")
    shape = conv3dt.Reshape((1, 1, 1, 4))
    conv3dt.Sequential([conv3dt.Dense(4), shape, layer(4), layer(3)], input_shape=(5,)).save(
        tmp_path / "generator.npz"
    )
    np.save(tmp_path / "x.npy", numbers(*SPACE, 4))
    np.save(tmp_path / "flat.npy", numbers(6, 7))
    np.save(tmp_path / "text.npy", np.full(SPACE, "a"))
    np.savez(tmp_path / "two.npz", a=numbers(2), b=numbers(2))
    (tmp_path / "x.txt").write_text("")
    before = left(tmp_path)
    yield tmp_path
    assert left(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run model.npz missing.npy -o y.npy", "No such file"),
        ("run missing.npz x.npy -o y.npy", "No such file"),
        ("run x.txt x.npy -o y.npy", "path must end in one of"),
        ("run model.npz x.txt -o y.npy", "must end in one of .npy, .npz"),
        ("run model.npz x.npy -o y.txt", "must end in one of .npy, .npz"),
        ("run model.npz flat.npy -o y.npy", "must have the axes NDHWC with 4 channels"),
        ("run model.npz text.npy -o y.npy", "must have the axes"),
        ("run model.npz two.npz -o y.npy", "--array must name one of the arrays of"),
        ("run model.npz x.npy -o no/y.npy", "the folder of"),
        ("run model.npz x.npy -o y.npy --dtype bfloat16", "y.npy cannot hold .* bfloat16"),
        ("run model.npz x.npy -o y.npy --max-memory 10", "max_memory must be at least"),
        ("run model.npz x.npy -o y.npy --max-memory much", "--max-memory must be"),
        ("run whole.npz x.npy -o y.npy", r"rows \(Reshape\): a volume must go through it whole"),
        ("run generator.npz x.npy -o y.npy", "--layer must name one of .*'up', 'up'"),
        ("run model.npz x.npy -o y.npy --layer down", "--layer must name one of .*'up'"),
        ("run model.npz x.npy -o y.npy --strides 2", "--strides must not be given"),
        ("run model.npz x.npy -o y.npy --threads 0", "argument --threads: invalid"),
        ("run model.npz x.npy", "the following arguments are required: -o/--output"),
        ("layers x.txt", "path must end in one of"),
        ("bench --input 4 4 4", "--model must be given, or --filters and --kernel-size"),
        ("bench --input 4 4 4 --filters 2 --kernel-size 3 3 --in-channels 1", "1 or 3 integers"),
        ("bench --input 4 4 --filters 2", "--input takes 1 or 3 integers, got 2"),
        ("bench --model model.npz --input 0", "--input must be"),
        ("layers model.pt", "With PyTorch, convert it by python -c .*model.pt"),
        ("nothing", "invalid choice: 'nothing'"),
        ("info more", "unrecognized arguments: more"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    words: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    try:
        status: Any = __main__.main(words.split())
    except SystemExit as done:
        status = done.code
    assert status == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("conv3dt")
    assert not message or re.search(message, lines[0])


# ---- layers, bench, progress ------------------------------------------------------


def test_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    its = layer(4, 3, padding=((0, 1), (1, 1), (0, 0)), activation="relu")
    assert __main__.main(["layers", saved(tmp_path, its)]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["name", "channels", "filters"]
    assert row.split() == "up 4 3 3 3 3 2 2 2 0:1 1:1 0:0 1 1 1 relu channels_last".split()


def test_bench_of_conv3dt_alone(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "bench --filters 2 --kernel-size 3 --strides 2 --padding same --in-channels 4 --input 4 5 6"
    )
    assert __main__.main([*words.split(), "--seconds", "0.01", "--no-peers"]) == 0
    out = capsys.readouterr().out
    assert "(1, 4, 5, 6, 4) -> (1, 8, 10, 12, 2) float32" in out
    assert "median ms" in out and "min ms" in out


def test_bench_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--model", saved(tmp_path, layer(4)), "--input", "4", "--no-peers"]
    assert __main__.main([*words, "--seconds", "0.01", "--batch", "2"]) == 0
    assert "(2, 4, 4, 4, 4) -> (2, 8, 8, 8, 3) float32" in capsys.readouterr().out


def test_peers_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch", "tensorflow", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    words = (
        "bench --filters 2 --kernel-size 2 --strides 2 --in-channels 4 --input 4 5 6 --seconds 0.01"
    )
    assert __main__.main(words.split()) == 0
    out = capsys.readouterr().out
    assert all(f"{peer.name}: not installed" in out for peer in peers.PEERS)


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("padding", ["same", ((1, 1), (0, 2), (1, 0))])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_peers_compute_the_same(peer: peers.Peer, padding: Any, data_format: str) -> None:
    its = layer(4, 3, padding=padding, activation="relu", data_format=data_format)
    x = numbers(*((2, *SPACE, 4) if data_format == "channels_last" else (2, 4, *SPACE)))
    try:
        made = peer.make(its, x, 1)
    except peers.Unable as reason:
        pytest.skip(f"{peer.name}: {reason}")
    np.testing.assert_allclose(made.result(), its(x), atol=1e-3)


def test_progress_without_tqdm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.progress() as show:
        show(1, 4)
        show(4, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("conv3dt: 25%, about") and lines[1].startswith("conv3dt: 100%")


def test_progress_with_tqdm(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm", reason="tqdm is not installed (the cli extra)")
    with progress.progress() as show:
        show(1_000_000, 4_000_000)
        show(4_000_000, 4_000_000)
    assert "4.00M" in capsys.readouterr().err


def test_axes_of_nifti_in_any_layout() -> None:
    assert axes.stored_axes((2, 3, 4), nifti.AXES, 1) == "DHW"
    assert axes.stored_axes((2, 3, 4, 5), nifti.AXES, 5) == "DHWC"
    assert axes.stored_axes((2, 3, 4, 5), nifti.AXES, 1) == "DHWN"
    assert axes.with_channels("DHWN", "NCDHW", 2) == "NCDHW"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of docs/command-line.md, one after the other in one folder."""
    page = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text()
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(compile(code, "command-line.md", "exec"), {})
    commands = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    lines = "".join(commands).splitlines()
    assert len(lines) == 6
    for line in lines:
        program, *words = line.split()
        assert program == "conv3dt" and __main__.main(words) == 0, line
    assert np.load("probabilities.npy").shape == (64, 64, 64, 2)


def test_ctrl_c_waits_for_a_read_or_write() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with axes.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("written")
    assert done == ["written"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "conv3dt", "layers", saved(tmp_path, layer())],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "up" in done.stdout and done.stderr == ""
