"""NIfTI: images whose voxels have a size and a place in the patient.

Depth, height and width are the file's first three axes. Channels are its last axis, samples
(a time series) the one before.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..optional import require
from ..problem import Axis, effective_kernel

AXES = "DHWNC"
MOST = 32767  # voxels along an axis of a NIfTI-1 file


def opened(path: Path) -> Any:
    """An image whose numbers are read when they are sliced. ValueError: it is none."""
    nibabel = require("nibabel", "nifti")
    try:
        return nibabel.load(path)
    except nibabel.filebasedimages.ImageFileError as error:
        raise ValueError(f"{path} is no NIfTI image: {error}") from error


def upsampled(affine: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """The affine of a layer's result, from that of its input.

    Input voxel i is spread over the outputs ``i*s - crop`` to ``i*s - crop + K - 1``, whose
    middle therefore has its place: output o lies at input ``(o + crop - (K-1)/2) / s``. Voxels
    are s times smaller. A kernel as large as its stride leaves the field of view as it was.
    """
    to_input = np.eye(4)
    for i, axis in enumerate(axes):
        to_input[i, i] = 1 / axis.stride
        middle = (effective_kernel(axis.kernel, axis.dilation) - 1) / 2
        to_input[i, 3] = (axis.crop - middle) / axis.stride
    return np.asarray(affine @ to_input)


@contextmanager
def created(
    path: Path,
    compressed: bool,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    like: Any = None,
    affine: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """An array of the file's numbers to write to, in the file itself until it is compressed."""
    header = _header(shape, dtype, like, affine)
    plain = path.with_name(f"{path.name}.plain") if compressed else path
    try:
        with open(plain, "wb") as file:
            header.write_to(file)
            file.write(bytes(header["vox_offset"].astype(int) - file.tell()))
        offset = int(header["vox_offset"])
        array = np.memmap(plain, dtype, "r+", offset, shape, order="F")
        yield array
        array.flush()
        if compressed:
            with open(plain, "rb") as file, gzip.open(path, "wb", compresslevel=6) as packed:
                shutil.copyfileobj(file, packed, 1 << 20)
    finally:
        if compressed:
            plain.unlink(missing_ok=True)


def _header(
    shape: tuple[int, ...], dtype: np.dtype[Any], like: Any, affine: np.ndarray | None
) -> Any:
    nibabel = require("nibabel", "nifti")
    Header = nibabel.Nifti2Header if max(shape) > MOST else nibabel.Nifti1Header
    header = Header.from_header(like.header) if like is not None else Header()
    try:
        header.set_data_dtype(dtype)
    except nibabel.spatialimages.HeaderDataError as error:
        raise ValueError(f"NIfTI has no numbers of dtype {dtype}") from error
    header.set_data_shape(shape)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    header["cal_min"] = header["cal_max"] = 0
    if affine is not None:
        codes = [int(header["qform_code"]), int(header["sform_code"])]
        if not any(codes):
            codes[1] = 2  # aligned to something: what the affine says
        header.set_sform(affine, codes[1])
        header.set_qform(affine, codes[0])
    return header
