"""The command line: ``conv3dt info`` and ``conv3dt demo``, also as ``python -m conv3dt``."""

from __future__ import annotations

import argparse
import sys

from . import demo, engine


def main(argv: list[str] | None = None) -> int:
    """Run one command; ``argv`` as on the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="conv3dt", description="3D transposed convolution on the CPU for NumPy arrays."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, instruction sets and threads")
    # The demo has a parser of its own: everything after its name is passed on.
    commands.add_parser("demo", help="apply a trained layer to a real volume", add_help=False)
    options, rest = parser.parse_known_args(argv)
    if options.command == "demo":
        return demo.main(rest)
    if rest:
        parser.error(f"info takes no arguments, got {' '.join(rest)}")
    engine.show_config()
    return 0


if __name__ == "__main__":
    sys.exit(main())
