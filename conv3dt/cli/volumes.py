"""Volumes in files: opened without reading them, and written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.files import beside, replacing
from ..optional import require
from . import nifti

KINDS = {".npy": "npy", ".npz": "npz", ".nii": "nifti", ".nii.gz": "nifti", ".zarr": "zarr"}
# What marks a folder as a zarr array or group, of version 2 or 3.
_ZARR = ("zarr.json", ".zarray", ".zgroup")


@dataclass(frozen=True)
class Volume:
    """An array that is read by slices, and the NIfTI image that it comes from."""

    array: Any
    image: Any = None


def kind(path: Path) -> str:
    """What kind of file a name stands for. ValueError: none."""
    name = path.name.lower()
    for suffix, found in KINDS.items():
        if name.endswith(suffix):
            return found
    if any((path / mark).exists() for mark in _ZARR):
        return "zarr"
    raise ValueError(f"{path} must end in one of {', '.join(KINDS)}")


def full_axes(path: Path, layout: str) -> str:
    """All axes in the order in which a file has them: that of the layer, or NIfTI's own."""
    return nifti.AXES if kind(path) == "nifti" else layout


def opened(path: Path, name: str | None = None) -> Volume:
    """A volume; ``name`` chooses one array of several.

    Raises
    ------
    ValueError
        No such array, or a file that holds something else. OSError: it cannot be read.
    ImportError
        The package for this kind is not installed.
    """
    form = kind(path)
    if form == "nifti":
        image = nifti.opened(path)
        return Volume(image.dataobj, image)
    if form == "zarr":
        array = require("zarr", "zarr").open(path, mode="r")
        if hasattr(array, "shape"):
            return Volume(array)
        names = sorted(array.array_keys())
        return Volume(array[_choose(path, names, name)])
    if form == "npy":
        return Volume(np.load(path, mmap_mode="r", allow_pickle=False))
    with np.load(path, allow_pickle=False) as arrays:
        return Volume(arrays[_choose(path, arrays.files, name)])


def _choose(path: Path, names: list[str], wanted: str | None) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return str(wanted)
    raise ValueError(f"--array must name one of the arrays of {path}: {', '.join(names)}")


@contextmanager
def created(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    image: Any = None,
    affine: np.ndarray | None = None,
) -> Iterator[Any]:
    """An array to write by slices; the file has its name when the block ends without error.

    ``image`` is whose header a NIfTI file takes, ``affine`` what replaces its geometry.
    """
    form = kind(path)
    if dtype.kind == "V":  # bfloat16, of which NumPy's files keep the bytes and not the name
        raise TypeError(f"{path} cannot hold numbers of dtype {dtype}: give another --dtype")
    if form == "zarr":
        zarr = require("zarr", "zarr")
        with replacing_folder(path) as folder:
            yield zarr.open(folder, mode="w", shape=shape, dtype=dtype)
        return
    with replacing(path) as temporary:
        if form == "nifti":
            compressed = path.name.lower().endswith(".gz")
            with nifti.created(temporary, compressed, shape, dtype, image, affine) as array:
                yield array
        elif form == "npy":
            array = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            yield array
            array.flush()
        else:
            array = np.empty(shape, dtype)
            yield array
            with open(temporary, "wb") as file:
                np.savez(file, array)


@contextmanager
def replacing_folder(final: Path) -> Iterator[Path]:
    """A folder beside ``final`` to write to, which takes its place unless the block raises.

    Only a zarr folder is replaced.
    """
    if final.exists() and not any((final / mark).exists() for mark in _ZARR):
        raise FileExistsError(f"{final} exists and is no zarr: it is not replaced")
    temporary = beside(final)
    former = temporary.with_suffix(".old")
    try:
        yield temporary
        if final.exists():
            os.rename(final, former)
        os.rename(temporary, final)
    finally:
        for folder in (temporary, former):
            shutil.rmtree(folder, ignore_errors=True)
