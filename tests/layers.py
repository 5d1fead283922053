"""The named layers: transposed convolutions of published models, for tests and benchmarks.

``data/layers.json`` has each layer at the size a user runs, with its source; ``Layer.small``
keeps the geometry (kernel, strides, crops, bias, depthwise or not) with few channels and
voxels, for tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conv3dt.problem import Axis, Problem

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """One layer: sizes in voxels, ``padding`` and ``output_padding`` as the function takes them."""

    name: str
    model: str
    source: str
    batch: int
    in_channels: int
    filters: int
    groups: int
    size: Triple
    kernel_size: Triple
    strides: Triple
    dilation_rate: Triple
    padding: Any
    output_padding: Triple | None
    use_bias: bool
    out: Triple
    crop: Triple

    def problem(self, channels_last: bool = True) -> Problem:
        """The layer's problem; its output sizes and crops are literal numbers of the file."""
        geometry = zip(
            self.size,
            self.out,
            self.kernel_size,
            self.strides,
            self.dilation_rate,
            self.crop,
            strict=True,
        )
        depth, height, width = (Axis(*axis) for axis in geometry)
        axes = (depth, height, width)
        return Problem(self.in_channels, self.filters, self.groups, axes, channels_last)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the layer for ``conv3dt.conv3d_transpose``."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
        }

    def small(self, size: int = 4, channels: int = 5, filters: int = 3) -> Layer:
        """The same geometry with at most so many voxels per axis, channels and filters."""
        sizes = _triple(min(size, n) for n in self.size)
        # Every padding rule is linear in the input size: each voxel adds a stride.
        out = _triple(
            o - (n - m) * s
            for o, n, m, s in zip(self.out, self.size, sizes, self.strides, strict=True)
        )
        if self.groups > 1:
            channels = filters = min(channels, self.groups)
        return replace(
            self,
            in_channels=min(channels, self.in_channels),
            filters=min(filters, self.filters),
            groups=min(channels, self.groups),
            size=sizes,
            out=out,
        )


def _triple(values: Any) -> Any:
    return None if values is None else tuple(values)


def _layer(row: dict[str, Any]) -> Layer:
    padding = row["padding"]
    return Layer(
        name=row["id"],
        model=row["model"],
        source=row["source"],
        batch=row["batch"],
        in_channels=row["in_channels"],
        filters=row["filters"],
        groups=row["groups"],
        size=_triple(row["input"]),
        kernel_size=_triple(row["kernel_size"]),
        strides=_triple(row["strides"]),
        dilation_rate=_triple(row["dilation_rate"]),
        padding=padding if isinstance(padding, str) else _triple(map(tuple, padding)),
        output_padding=_triple(row["output_padding"]),
        use_bias=row["bias"],
        out=_triple(row["output"]),
        crop=_triple(row["crop_lo"]),
    )


def _load() -> dict[str, Layer]:
    text = (Path(__file__).parent / "data" / "layers.json").read_text(encoding="utf-8")
    return {row["id"]: _layer(row) for row in json.loads(text)["layers"]}


LAYERS = _load()
