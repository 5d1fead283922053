"""What a file of Keras 2 or Keras 3 holds, as plain records: layers, their configs and weights.

    .keras           zip of metadata.json, config.json and model.weights.h5
    .weights.h5      weights alone
    .weights.json    the same, spread over several such files
    .h5              the older format: weights, with a config in the attribute model_config or
                     (save_weights of Keras 2) without it

`opened` reads all of them into the same `Model`. Nothing that a file names is imported.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .. import identifiers
from . import hdf5
from .hdf5 import Group, Variable
from .keras_weights import LISTS, Named, Numbered, Place, strings

Config = dict[str, Any]

# Bytes that a part of a zip may declare, and how often what is stored of it.
LARGEST_JSON, LARGEST, EXPANSION = 1 << 24, 1 << 32, 1000
# Models within models, groups within groups.
DEEPEST = 32


@dataclass(frozen=True)
class Layer:
    """A layer, or a model within a model.

    Attributes
    ----------
    path : str
        Its name after the names of the models it is in, as in "decoder/up1".
    name, class_name : str
        ``class_name`` has a ">" if it is not one of Keras. In files without a config it is in
        snake case, as in "conv3d_transpose", or empty.
    config : dict
        Just as the file has it; empty if it has none.
    inputs : tuple of tuples of str
        For each call of the layer, the names of the layers whose results it takes. In a
        Sequential that is the one before.
    place : Place
        Where the weights are.
    layers : tuple of Layer, or None
        Of a model, in order.
    outputs : tuple of str
        Of a model, the names of the layers whose results are its own.
    """

    path: str
    name: str
    class_name: str
    config: Config
    inputs: tuple[tuple[str, ...], ...]
    place: Place
    layers: tuple[Layer, ...] | None = None
    outputs: tuple[str, ...] = ()

    def variables(self) -> list[Variable]:
        """In Keras' order: kernel, bias; gamma, beta, moving mean and variance.

        To be read while the file is open. What a model has is in its layers.
        """
        return self.place.variables()

    def flat(self) -> Iterator[Layer]:
        """This layer; or the layers of this model and of the models in it, in order."""
        if self.layers is None:
            yield self
        for layer in self.layers or ():
            yield from layer.flat()


@dataclass(frozen=True)
class Model:
    """What a file holds, while it is open.

    Attributes
    ----------
    root : Layer
        The model. Without a config: whatever has variables, as its `layers`.
    version : int or None
        Of the Keras that wrote it, 2 or 3. None without a config: then there are only weights,
        and their meaning is up to the user.
    """

    root: Layer
    version: int | None


@contextmanager
def opened(path: Path) -> Iterator[Model]:
    """What is in a file. ValueError if it is damaged, now or when its variables are read."""
    with ExitStack() as stack, hdf5.open_regular(path) as file:
        with hdf5.damage(path):
            model = _content(path, file, stack)
        yield model


# --- kinds of files ------------------------------------------------------------------------


def _content(path: Path, file: BinaryIO, stack: ExitStack) -> Model:
    head = file.read(len(hdf5.SIGNATURE))
    if head == hdf5.SIGNATURE:  # that of .keras, too, before Keras 2.12
        return _hdf5(hdf5.root(file, path))
    if head.startswith(b"PK"):
        return _archive(path, file, stack)
    if path.name.lower().endswith(".json"):
        return _weights_alone(Numbered(_shards(path, file, stack)))
    raise ValueError("it is neither HDF5, nor a zip, nor the .json of sharded weights")


def _archive(path: Path, file: BinaryIO, stack: ExitStack) -> Model:
    archive = stack.enter_context(zipfile.ZipFile(file))
    version = _json(archive.read(_member(archive, "metadata.json", LARGEST_JSON)))
    config = _json(archive.read(_member(archive, "config.json", LARGEST_JSON)))
    # A copy, so that what is read is what the zip's checksum is of.
    weights = stack.enter_context(tempfile.TemporaryFile())
    with archive.open(_member(archive, "model.weights.h5", LARGEST)) as member:
        shutil.copyfileobj(member, weights, 1 << 20)
    weights.flush()
    place = Numbered([hdf5.root(weights, path)])
    return _model(config, version.get("keras_version"), place) or _weights_alone(place)


def _member(archive: zipfile.ZipFile, name: str, largest: int) -> zipfile.ZipInfo:
    """The head of a file in a zip. ValueError if it is missing or may be a bomb."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"it has no {name}") from None
    if info.header_offset + info.compress_size > archive.start_dir:
        raise ValueError(f"{name} declares {info.compress_size} bytes, which are not in the file")
    if info.compress_type == zipfile.ZIP_STORED:
        largest = max(largest, info.compress_size)
    elif info.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"{name} is compressed by an unusual method")
    if info.file_size > min(largest, EXPANSION * info.compress_size):
        raise ValueError(f"{name} declares {info.file_size} bytes for {info.compress_size}")
    return info


def _hdf5(root: Group) -> Model:
    config, weights = root.attribute("model_config"), root.get("model_weights")
    if config is not None and isinstance(weights, Group):
        version = root.attribute("keras_version") or weights.attribute("keras_version")
        model = _model(_json(config), version, Named(weights))
        if model is None:
            raise ValueError("its model_config has no layers")
        return model
    names = strings(root, "layer_names")
    return _named_weights_alone(root, names) if names else _weights_alone(Numbered([root]))


def _shards(path: Path, file: BinaryIO, stack: ExitStack) -> list[Group]:
    file.seek(0)
    places = _json(file.read(min(path.stat().st_size, LARGEST_JSON) + 1)).get("weight_map")
    if not isinstance(places, dict):
        raise ValueError("it has no weight_map")
    names = {name for part in places.values() for name in (part if type(part) is list else [part])}
    groups = []
    for name in sorted(names):
        if name != Path(name).name or not name.endswith(".h5") or "\\" in name or ":" in name:
            raise ValueError(f"weight_map must name files beside it, got {name!r}")
        shard = path.with_name(name)
        groups.append(hdf5.root(stack.enter_context(hdf5.open_regular(shard)), shard))
    return groups


def _json(text: Any) -> Config:
    value = json.loads(text) if len(text) <= LARGEST_JSON else None
    if not isinstance(value, dict):
        raise ValueError(f"a config must be a JSON object of at most {LARGEST_JSON} bytes")
    return value


# --- with a config -------------------------------------------------------------------------


def _model(config: Config, version: Any, place: Place) -> Model | None:
    """The model that a config describes; None if it does not say what layers it has."""
    root = _layer(config, (), (), place)
    # "3.15.1", "2.13.1-tf"; Keras 2 did not always say it.
    major = re.match(r"\d+", str(version or "2"))
    return None if root.layers is None else Model(root, int(major[0]) if major else 2)


def _layer(
    entry: Config, above: tuple[str, ...], inputs: tuple[tuple[str, ...], ...], place: Place
) -> Layer:
    name, class_name, config = _parts(entry)
    path = "/".join((*above, name)[1:])  # without the name of the whole model
    inner = config.get("layers")
    if not isinstance(inner, list):
        return Layer(path, name, class_name, config, inputs, place)
    if len(above) > DEEPEST:
        raise ValueError("its models are nested too deep")
    names, classes, _ = zip(*map(_parts, inner), strict=True) if inner else ((), (), ())
    words = [identifiers.snake_case(class_name.rpartition(">")[2]) for class_name in classes]
    places = place.layers(names, words)
    chain = "output_layers" not in config
    layers = tuple(
        _layer(
            entry,
            (*above, name),
            (((names[i - 1],),) if i else ()) if chain else _calls(entry),
            places[i],
        )
        for i, entry in enumerate(inner)
    )
    outputs = names[-1:] if chain else _histories(config["output_layers"])
    return Layer(path, name, class_name, config, inputs, place, layers, outputs)


def _parts(entry: Any) -> tuple[str, str, Config]:
    """Name, class and config of a layer; the class has a ">" if it is not one of Keras."""
    config = entry.get("config") if isinstance(entry, dict) else None
    if isinstance(config, list):  # a Sequential of early Keras 2
        config = {"layers": config}
    if not isinstance(config, dict):
        raise ValueError(f"a layer must have a config, got {str(entry)[:100]}")
    parsed = identifiers.parse("a layer", entry | {"config": config})
    assert parsed is not None  # it is a dict
    class_name, _, foreign = parsed
    name = config.get("name", entry.get("name", ""))
    if not isinstance(name, str):
        raise ValueError(f"a layer must have a name, got {name!r}")
    return name, f">{class_name}" if foreign else class_name, config


def _calls(entry: Config) -> tuple[tuple[str, ...], ...]:
    """For each node of a layer, the names of the layers it takes from."""
    return tuple(_histories(node) for node in entry.get("inbound_nodes", ()))


def _histories(value: Any) -> tuple[str, ...]:
    """The names in all ``["name", node, tensor, ...]`` within, the form of Keras 2 and 3."""
    names, left = [], [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left.extend(reversed(value.values()))
        elif isinstance(value, list):
            if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
                names.append(value[0])
                value = value[3:]
            left.extend(reversed(value))
    return tuple(names)


# --- weights alone -------------------------------------------------------------------------


def _weights_alone(place: Numbered) -> Model:
    """Whatever has variables in the layout of ``.weights.h5``.

    Keras 3 gives the names of layers. Keras 2 does not: there a group's own name has to do.
    """
    found: list[Layer] = []
    seen: set[tuple[int, int]] = set()

    def walk(place: Numbered, above: tuple[str, ...], class_name: str) -> None:
        if not seen.isdisjoint(place.keys()) or len(above) > DEEPEST:
            raise ValueError("its groups are nested in a circle, or too deep")
        seen.update(place.keys())
        variables = place.child("vars").names()
        if above and variables and all(map(str.isdecimal, variables)):
            found.append(Layer("/".join(above), above[-1], class_name, {}, (), place))
        for name, listed, child in _children(place):
            known_as = child.child("vars").attribute("name")
            word = re.sub(r"_\d+$", "", name) if listed else ""
            walk(child, (*above, known_as if isinstance(known_as, str) else name), word)

    walk(place, (), "")
    return _model_of_weights(found, place)


def _children(place: Numbered) -> Iterator[tuple[str, bool, Numbered]]:
    """Name, whether it is that of a class, and place of each group in one, but for variables."""
    for name in place.names():
        child = place.child(name)
        if name in LISTS:
            yield from ((part, True, child.child(part)) for part in child.names())
        elif name != "vars":
            yield name, False, child


def _named_weights_alone(root: Group, names: list[str]) -> Model:
    found = []
    for name, layer in zip(names, Named(root).layers(names), strict=True):
        for prefix, place in layer.parts():
            path = prefix if f"{prefix}/".startswith(f"{name}/") else f"{name}/{prefix}"
            path = path.rstrip("/")
            found.append(Layer(path, path.rpartition("/")[2], "", {}, (), place))
    return _model_of_weights(found, Named(root))


def _model_of_weights(layers: list[Layer], place: Place) -> Model:
    return Model(Layer("", "", "", {}, (), place, tuple(layers)), None)
