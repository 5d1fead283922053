"""The rows of the race: named layers, and sweeps that change one number of a layer.

A row is plain integers. ``crop`` and ``out`` say what ``padding`` comes to, so that a peer
never has to know what "same" means; ``padding`` and ``output_padding`` are what a user of
conv3dt writes. Arrays are drawn from a seed, the same in every process.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LAYERS = Path(__file__).parent.parent / "tests" / "data" / "layers.json"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One transposed convolution, sizes in voxels and channels."""

    id: str
    batch: int
    in_channels: int
    size: tuple[int, ...]
    filters: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    groups: int
    bias: bool
    padding: str | tuple[tuple[int, int], ...]
    output_padding: tuple[int, ...] | None
    out: tuple[int, ...]
    crop: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Multiplications and additions of the scatter form."""
        work = prod(self.kernel) * prod(self.size) * self.in_channels * self.filters
        return 2 * self.batch * work // self.groups

    @property
    def needed_flops(self) -> int:
        """Those whose product lands inside the output: what a gather form has to do."""
        axes = zip(self.size, self.kernel, self.strides, self.crop, self.out, strict=True)
        pairs = prod(
            sum(0 <= i * s + t - crop < out for i in range(size) for t in range(k))
            for size, k, s, crop, out in axes
        )
        return 2 * self.batch * pairs * self.in_channels * self.filters // self.groups

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, *self.size, self.in_channels)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.batch, *self.out, self.filters)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (*self.kernel, self.filters // self.groups, self.in_channels)

    @property
    def x_bytes(self) -> int:
        return 4 * prod(self.x_shape)

    @property
    def y_bytes(self) -> int:
        return 4 * prod(self.y_shape)

    @property
    def weight_bytes(self) -> int:
        return 4 * prod(self.kernel_shape)

    @property
    def end_padding(self) -> tuple[int, ...]:
        """PyTorch's ``output_padding`` when ``crop`` is its ``padding``."""
        axes = zip(self.out, self.size, self.strides, self.kernel, self.crop, strict=True)
        return tuple(o - ((i - 1) * s + k - 2 * c) for o, i, s, k, c in axes)

    @property
    def shape_text(self) -> str:
        """Short form for tables, like ``64→32 k2 s2 @64³``."""
        kernel, strides = _short(self.kernel), _short(self.strides)
        batch = f" ×{self.batch}" if self.batch > 1 else ""
        groups = f" g{self.groups}" if self.groups > 1 else ""
        space = f"{self.size[0]}³" if len(set(self.size)) == 1 else "×".join(map(str, self.size))
        return f"{self.in_channels}→{self.filters} k{kernel} s{strides}{groups} @{space}{batch}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Row:
        return cls(**{name: _tuples(value) for name, value in fields.items()})


def _short(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "".join(map(str, values))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def layers() -> list[Row]:
    """The 26 layers of published models that the tests use, too."""
    found = json.loads(LAYERS.read_text())["layers"]
    return [
        Row.from_json(
            {
                "id": layer["id"],
                "batch": layer["batch"],
                "in_channels": layer["in_channels"],
                "size": layer["input"],
                "filters": layer["filters"],
                "kernel": layer["kernel_size"],
                "strides": layer["strides"],
                "groups": layer["groups"],
                "bias": layer["bias"],
                "padding": layer["padding"],
                "output_padding": layer["output_padding"],
                "out": layer["output"],
                "crop": layer["crop_lo"],
            }
        )
        for layer in found
    ]


def _layer(name: str, channels: int, filters: int, kernel: int, *size: int, batch: int = 1) -> Row:
    """A layer that doubles each axis, as PyTorch writes it: stride 2, padding (k - 1) // 2."""
    crop = (kernel - 1) // 2
    extra = 2 + 2 * crop - kernel
    pads, output_padding = ((crop, crop),) * 3, (extra,) * 3 if extra else None
    out = tuple(2 * i for i in size)
    return Row(
        name, batch, channels, size, filters, (kernel,) * 3, (2,) * 3, 1, True,
        pads, output_padding, out, (crop,) * 3,
    )  # fmt: skip


def sweeps() -> dict[str, list[Row]]:
    """One number grows, everything else stays."""
    powers = [2**i for i in range(10)]
    widths = (4, 7, 8, 15, 16, 31, 32, 63, 64, 128, 256)
    return {
        "channels-k2": [_layer(f"channels{c}_k2", c, c, 2, 16, 16, 16) for c in powers],
        "channels-k3": [_layer(f"channels{c}_k3", c, c, 3, 8, 8, 8) for c in powers],
        "channels-k4": [_layer(f"channels{c}_k4", c, c, 4, 8, 8, 8) for c in powers],
        "filters": [_layer(f"filters{c}", 64, c, 4, 16, 16, 16) for c in (1, 2, 3, 4, 6, 8, 16)],
        "width-k2": [_layer(f"width{w}_k2", 32, 16, 2, 8, 8, w) for w in widths],
        "width-k4": [_layer(f"width{w}_k4", 32, 16, 4, 8, 8, w) for w in widths],
        "batch": [
            _layer(f"batch{n}", 32, 16, 4, 12, 12, 12, batch=n) for n in (1, 2, 4, 8, 16, 32)
        ],
    }


# One row of every kind, quick enough for a race of one minute.
QUICK = (
    "nvtf2_nnunet_brats_up1",
    "monai_unet_out",
    "psmnet_c5",
    "gan3d_2",
    "gan3d_3",
    "gan3d_5",
    "deepbet_3",
    "voxvae_d4",
    "monai_mednext_dw",
)


def select(names: str | None, quick: bool, sweep: str | None) -> list[Row]:
    """The rows of a run; ``names`` is a comma-separated list of ids or their beginnings."""
    if sweep is not None:
        known = sweeps()
        if sweep == "all":
            rows = [row for axis in known.values() for row in axis]
        elif sweep in known:
            rows = known[sweep]
        else:
            raise SystemExit(f"--sweep must be all or one of {', '.join(known)}, got {sweep}")
    else:
        rows = layers()
        if quick and names is None:
            rows = [row for row in rows if row.id in QUICK]
    if names is None:
        return rows
    wanted = tuple(names.split(","))
    chosen = [row for row in rows if row.id.startswith(wanted)]
    if not chosen:
        raise SystemExit(f"--rows {names} matches none of {', '.join(row.id for row in rows)}")
    return chosen


def arrays(row: Row, dtype: Any = np.float32) -> tuple[Array, Array, Array | None]:
    """``(x, kernel, bias)``, NDHWC, Keras' kernel order, drawn in ``dtype`` from a seed."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal(row.x_shape, dtype)
    kernel = rng.standard_normal(row.kernel_shape, dtype)
    kernel /= kernel.dtype.type(np.sqrt(row.in_channels / row.groups * 8))
    bias = rng.standard_normal(row.filters, dtype) if row.bias else None
    return x, kernel, bias
