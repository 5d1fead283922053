"""The command line: ``conv3dt COMMAND``, also as ``python -m conv3dt COMMAND``.

Errors are one line on stderr and exit status 2; Ctrl-C is exit status 130.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from . import __version__, demo, engine
from .cli import bench, layers, run
from .cli.parser import Parser

COMMANDS: dict[str, Any] = {"layers": layers, "run": run, "bench": bench}


def main(argv: list[str] | None = None) -> int:
    """Run one command; ``argv`` as on the command line. Returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["demo"]:  # it has a parser of its own
        return demo.main(arguments[1:])
    options = _parser().parse_args(arguments)
    if options.command == "info":
        engine.show_config()
        return 0
    try:
        return int(COMMANDS[options.command].run(options))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        return _fail(str(error) or type(error).__name__, 2)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="conv3dt", description="3D transposed convolution on the CPU for NumPy arrays."
    )
    parser.add_argument("--version", action="version", version=f"conv3dt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, instruction sets and threads")
    commands.add_parser("demo", help="apply a trained layer to a real volume", add_help=False)
    for name, command in COMMANDS.items():
        its = commands.add_parser(name, help=command.HELP, description=f"{command.HELP}.")
        command.add_arguments(its)
    return parser


def _fail(message: str, status: int) -> int:
    print(f"conv3dt: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
