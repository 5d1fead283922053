"""How the commands read their arguments: errors are one line, numbers come one or three."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from .. import arguments


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class OneOrThree(argparse.Action):
    """One int, or three: for depth, height and width."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        if len(values) not in (1, 3):
            parser.error(f"{option} takes 1 or 3 integers, got {len(values)}")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


class Padding(argparse.Action):
    """``same``, ``valid``, or 1, 3 or 6 ints: voxels cropped, (lo, hi) of each axis if 6."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        padding: Any = values[0]
        if not (len(values) == 1 and padding.lower() in ("same", "valid")):
            if len(values) not in (1, 3, 6) or not all(value.isdigit() for value in values):
                parser.error(f"{option} takes same, valid, or 1, 3 or 6 integers, got {values}")
            numbers = [int(value) for value in values]
            pairs = tuple(zip(numbers[::2], numbers[1::2], strict=False))
            padding = {1: numbers[0], 3: tuple(numbers), 6: pairs}[len(numbers)]
        setattr(namespace, self.dest, padding)


def threads(text: str) -> int:
    """A number of threads."""
    number = arguments.num_threads(int(text))
    assert number is not None
    return number


def add_geometry(parser: argparse.ArgumentParser) -> None:
    """The arguments of a layer but filters and kernel size; absent where not given."""
    absent: Any = {"default": argparse.SUPPRESS}
    numbers: Any = {"type": int, "nargs": "+", "action": OneOrThree, "metavar": "N", **absent}
    parser.add_argument("--strides", help="1 or 3 integers", **numbers)
    parser.add_argument(
        "--padding", nargs="+", action=Padding, metavar="P", **absent,
        help="same, valid, or the voxels to crop: 1, 3 or 6 (lo hi, lo hi, lo hi)",
    )  # fmt: skip
    parser.add_argument("--output-padding", help="1 or 3 integers", **numbers)
    parser.add_argument("--dilation-rate", help="1 or 3 integers", **numbers)
    parser.add_argument("--groups", type=int, metavar="N", **absent)
    parser.add_argument("--activation", metavar="NAME", **absent)
    parser.add_argument("--data-format", choices=arguments.DATA_FORMATS, **absent)


GEOMETRY = (
    "strides", "padding", "output_padding", "dilation_rate", "groups", "activation", "data_format",
)  # fmt: skip


def geometry(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of `add_geometry`."""
    return {name: getattr(options, name) for name in GEOMETRY if hasattr(options, name)}
