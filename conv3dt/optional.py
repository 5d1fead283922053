"""Packages that only some features need: imported on use; the error says how to get them."""

from __future__ import annotations

import importlib
from typing import Any


def require(package: str, extra: str) -> Any:
    """The module `package`, which the extra of this name installs. ImportError without it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"this needs {package}, which could not be imported ({error}): "
            f"pip install 'conv3dt[{extra}]'"
        ) from error
