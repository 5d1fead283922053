"""Where the weights of a layer are in the HDF5 files of Keras.

There are two layouts. `Numbered` is that of ``.weights.h5``: the layers of a model by class, in
the model's order, and the variables of a layer by number:

    layers/conv3d_transpose_1/vars/0
    layers/functional/layers/conv3d_transpose/vars/0

`Named` is the older one: the names of the weights of each layer of the whole model are in an
attribute. Those of a model within it are all together there, under names of their own:

    up1/up1/kernel:0
    decoder/up2/kernel:0  or  decoder/decoder/up2/kernel
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import count, takewhile
from typing import Protocol

from .hdf5 import Group, Variable

# The groups that hold the layers of a model; the second until Keras 2.13.
LISTS = ("layers", "_layer_checkpoint_dependencies")


class Place(Protocol):
    """Where the weights of a layer, and of the layers in it, are."""

    def variables(self) -> list[Variable]:
        """The layer's own, in Keras' order: kernel, bias; gamma, beta, mean, variance."""

    def layers(self, names: Sequence[str], words: Sequence[str]) -> Sequence[Place]:
        """The places of all layers of a model, by their names and classes in snake case."""


class Numbered:
    """A place in the layout of ``.weights.h5``, in all the files over which it is spread."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups

    def child(self, name: str) -> Numbered:
        """The group of this name, empty where there is none."""
        found = (group.get(name) for group in self._groups)
        return Numbered([group for group in found if isinstance(group, Group)])

    def names(self) -> list[str]:
        """Names of what is there."""
        return list(dict.fromkeys(name for group in self._groups for name in group.names()))

    def attribute(self, name: str) -> str | list[str] | None:
        """An attribute of the group there."""
        return next((group.attribute(name) for group in self._groups), None)

    def keys(self) -> list[tuple[int, int]]:
        """What tells the groups there from all others."""
        return [group.key for group in self._groups]

    def layers(self, names: Sequence[str], words: Sequence[str]) -> list[Numbered]:
        seen: Counter[str] = Counter()
        numbered = []
        for word in words:
            numbered.append((word, seen[word]))
            seen[word] += 1
        now, then = map(self.child, LISTS)
        if now._groups:
            return [now.child(f"{word}_{n}" if n else word) for word, n in numbered]
        # Keras 2.12 and 2.13 counted a layer that has weights twice: the next is _2.
        there: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for name in then.names():
            word, _, number = name.rpartition("_")
            key = (word, int(number)) if number.isdecimal() else (name, 0)
            there[key[0]].append((key[1], name))
        order = {word: [name for _, name in sorted(found)] for word, found in there.items()}
        return [
            then.child(order[word][n]) if n < len(order.get(word, ())) else Numbered([])
            for word, n in numbered
        ]

    def variables(self) -> list[Variable]:
        found: dict[int, Variable] = {}
        groups = self.child("vars")._groups
        for group in groups:
            for name in group.names():
                variable = group.get(name)
                if not isinstance(variable, Variable) or not name.isdecimal():
                    raise group.error(f"{name} should be a numbered array")
                found[int(name)] = variable
        if len(found) != 1 + max(found, default=-1):
            raise groups[-1].error(f"arrays {sorted(found)} should be numbered in a row")
        return [found[number] for number in range(len(found))]


class Named:
    """A whole model in the older layout."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def layers(self, names: Sequence[str], words: Sequence[str] = ()) -> list[NamedLayer]:
        return [NamedLayer(_Owner(self._group.get(name)), (name,)) for name in names]

    def variables(self) -> list[Variable]:
        return []


class NamedLayer:
    """A layer in the older layout; `path` begins with the layer of the whole model it is in."""

    def __init__(self, owner: _Owner, path: tuple[str, ...]) -> None:
        self._owner, self._path = owner, path

    def layers(self, names: Sequence[str], words: Sequence[str] = ()) -> list[NamedLayer]:
        return [NamedLayer(self._owner, (*self._path, name)) for name in names]

    def variables(self) -> list[Variable]:
        return self._owner.variables(self._path)

    def parts(self) -> list[tuple[str, Part]]:
        """Without a config to tell the layers in it: each prefix of names of weights is one."""
        return [(prefix, Part(self._owner, prefix)) for prefix in self._owner.prefixes]


class Part:
    """A layer in the older layout that is known by the prefix of the names of its weights."""

    def __init__(self, owner: _Owner, prefix: str) -> None:
        self._owner, self._prefix = owner, prefix

    def layers(self, names: Sequence[str], words: Sequence[str] = ()) -> list[Place]:
        return []

    def variables(self) -> list[Variable]:
        return self._owner.open(self._prefix)


class _Owner:
    """A layer of the whole model: the names of its weights, by all but their last part."""

    def __init__(self, group: Group | Variable | None) -> None:
        self._group = group if isinstance(group, Group) else None

    @cached_property
    def prefixes(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in strings(self._group, "weight_names") if self._group else ():
            names.setdefault(name.rpartition("/")[0], []).append(name)
        return names

    @cached_property
    def _by_end(self) -> dict[str, list[str]]:
        """The prefixes by their last part, which is a layer's name or the end of it."""
        ends: dict[str, list[str]] = {}
        for prefix in self.prefixes:
            ends.setdefault(prefix.rpartition("/")[2], []).append(prefix)
        return ends

    def variables(self, path: tuple[str, ...]) -> list[Variable]:
        if len(path) == 1:
            return [variable for prefix in self.prefixes for variable in self.open(prefix)]
        # The names may begin anywhere above the layer: decoder/up, up or model/decoder/up.
        prefixes = self._by_end.get(path[-1].rpartition("/")[2], [])
        prefixes = [prefix for prefix in prefixes if f"/{prefix}".endswith(f"/{path[-1]}")]
        best = max(prefixes, key=partial(_likeness, "/".join(path)), default=None)
        return [] if best is None else self.open(best)

    def open(self, prefix: str) -> list[Variable]:
        assert self._group is not None  # else there are no prefixes
        found = []
        for name in self.prefixes[prefix]:
            place: Group | Variable | None = self._group
            for part in name.split("/"):
                place = place.get(part) if isinstance(place, Group) else None
            if not isinstance(place, Variable):
                raise self._group.error(f"weight_names has {name!r}, and there is no such array")
            found.append(place)
        return found


def _likeness(path: str, prefix: str) -> tuple[int, int]:
    """How many names at the end are the same, then how few others there are."""
    pairs = zip(reversed(path.split("/")), reversed(prefix.split("/")), strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return same, -prefix.count("/")


def strings(group: Group, name: str) -> list[str]:
    """A list of strings in an attribute; Keras spreads a long one over name0, name1, ..."""
    parts = [group.attribute(name)]
    if parts == [None]:
        numbered = (group.attribute(f"{name}{number}") for number in count())
        parts = list(takewhile(lambda part: part is not None, numbered))
    texts = []
    for part in parts:
        if not isinstance(part, list):
            raise group.error(f"attribute {name} must be a list")
        texts.extend(part)
    return texts
