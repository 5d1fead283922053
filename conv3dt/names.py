"""Names of layers, as Keras gives them: ``dense``, ``dense_1``, ..."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from .identifiers import snake_case

_counters: dict[str, Iterator[int]] = {}


def layer_name(name: object, cls: type) -> str:
    """``name`` if it can be one; for None the next free name of the class."""
    if name is None:
        base = snake_case(cls.__name__)
        number = next(_counters.setdefault(base, itertools.count()))
        return f"{base}_{number}" if number else base
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f'name must be a non-empty string without "/", got {name!r}')
    return name
