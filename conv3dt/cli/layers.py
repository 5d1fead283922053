"""``conv3dt layers MODEL``: the transposed convolutions of a model file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import formats

HELP = "list the transposed convolutions of a model file"
# Heading, and the attribute of a record.
COLUMNS = {
    "name": "name",
    "channels": "in_channels",
    "filters": "filters",
    "kernel": "kernel_size",
    "strides": "strides",
    "padding": "padding",
    "dilation": "dilation_rate",
    "activation": "activation",
    "data format": "data_format",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("model", type=Path, help=f"a file: {', '.join(formats.READERS)}")


def run(options: argparse.Namespace) -> int:
    """Print a table, "?" where the file does not say."""
    layers = formats.list_layers(options.model)
    if not layers:
        print(f"{options.model} has no transposed convolutions with 3 spatial axes")
        return 0
    rows = [list(COLUMNS)]
    rows += [[_cell(getattr(layer, field)) for field in COLUMNS.values()] for layer in layers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


def _cell(value: Any) -> str:
    if value is None:
        return "?"
    if isinstance(value, tuple):
        return " ".join(":".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
    return str(value)
