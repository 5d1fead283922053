"""The five axes of a layer, on arrays that are stored with fewer or in another order.

Axes are letters: a layer works on "NDHWC" or "NCDHW", a file may have "DHW" (a sample without
channels), "DHWC", and so on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..blocks import let_go

Slices = tuple[slice, ...]


def stored_axes(shape: tuple[int, ...], full: str, in_channels: int) -> str:
    """The axes that an array has, of those in ``full``: samples or channels may be missing.

    An array of 4 axes is a sample with channels if it has as many as the layer takes; else,
    for a layer of one channel, it is samples without.
    """
    for missing in ("", "N", "C", "NC"):
        axes = "".join(axis for axis in full if axis not in missing)
        channels = shape[axes.index("C")] if "C" in axes and len(axes) == len(shape) else 1
        if len(axes) == len(shape) and channels == in_channels:
            return axes
    raise ValueError(
        f"the input must have the axes {full} with {in_channels} channels; samples may be "
        f"missing, and so may a single channel; got shape {shape}"
    )


def with_channels(axes: str, full: str, channels: int) -> str:
    """The axes of a result that is stored like ``full``: those of the input, and its channels."""
    return "".join(axis for axis in full if axis in axes or (axis == "C" and channels > 1))


def five_axes(array: Any, axes: str, layout: str, dtype: np.dtype[Any] | None = None) -> Any:
    """The array with the axes of ``layout``, and numbers of ``dtype`` where it is given.

    A view where NumPy can make one.
    """
    if isinstance(array, np.ndarray) and dtype is None:
        return _expand(array, axes, layout)
    return FiveAxes(array, axes, layout, dtype)


class FiveAxes:
    """An array that is read and written by slices, as if it had the axes of ``layout``."""

    def __init__(
        self, array: Any, axes: str, layout: str, dtype: np.dtype[Any] | None = None
    ) -> None:
        self.array = array
        self.axes = axes
        self.layout = layout
        self.dtype = np.dtype(dtype or array.dtype)
        self.shape = tuple(array.shape[axes.index(a)] if a in axes else 1 for a in layout)

    def __getitem__(self, index: Slices) -> np.ndarray:
        with uninterrupted():
            stored = np.asarray(self.array[self._stored(index)])
        part = _expand(stored, self.axes, self.layout)
        part = np.ascontiguousarray(part, self.dtype)
        let_go(self.array)
        return part

    def __setitem__(self, index: Slices, value: np.ndarray) -> None:
        missing = tuple(i for i, axis in enumerate(self.layout) if axis not in self.axes)
        present = [axis for axis in self.layout if axis in self.axes]
        order = [present.index(axis) for axis in self.axes]
        with uninterrupted():
            self.array[self._stored(index)] = value.squeeze(missing).transpose(order)
        let_go(self.array)

    def _stored(self, index: Slices) -> Slices:
        return tuple(index[self.layout.index(axis)] for axis in self.axes)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: zarr's threads would go on without it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    former = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
    if pressed:
        raise KeyboardInterrupt


def _expand(array: np.ndarray, axes: str, layout: str) -> np.ndarray:
    ordered = array.transpose([axes.index(axis) for axis in layout if axis in axes])
    missing = tuple(i for i, axis in enumerate(layout) if axis not in axes)
    return np.expand_dims(ordered, missing)
