"""Files are regular, written whole or not at all, and errors name them."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def as_path(value: Any) -> Path:
    """The path that `value` is. TypeError: it is none."""
    try:
        return Path(value)
    except TypeError as error:
        raise TypeError(
            f"path must be a str or an os.PathLike of one, got {type(value).__name__}"
        ) from error


def regular(value: Any) -> Path:
    """The path of a file to read. ValueError for what is no regular file: a pipe may never end.

    OSError: it is not there, or nobody may look at it.
    """
    path = as_path(value)
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise ValueError(f"path must name a file, got {str(path)!r}: {error}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"path must be a regular file, got {str(path)!r}")
    return path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside ``path`` to write to; renamed to ``path`` unless the block raises.

    Whoever reads ``path`` meanwhile has the old file, or none; after an error nothing is left.
    """
    final = Path(path)
    temporary = beside(final)
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def beside(final: Path) -> Path:
    """A new name in the same folder. FileNotFoundError: there is no such folder."""
    if not final.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {final} does not exist")
    return final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def naming(source: Any) -> Iterator[None]:
    """Say in an error about values which file they are of; a `source` that is no path has none."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if not isinstance(source, (str, os.PathLike)) or os.fspath(source) in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{os.fspath(source)}: {error}") from error
