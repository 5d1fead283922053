"""Identifiers: what stands for an activation, initializer, regularizer or constraint.

Keras lets a user write a name, a class, an instance, any callable, or the config dict that
a model file holds. The rules that the four kinds share are here, in both directions. Names
found in a file are looked up, never imported.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

Config = dict[str, Any]

# Where Keras' own objects say they live. An object of any other module is the user's, even
# if it has the name of one of Keras'.
_OWN_MODULES = ("keras", "keras_core", "tf_keras", "tensorflow", "builtins", "conv3dt")


def parse(argument: str, identifier: Any) -> tuple[str, Config, bool] | None:
    """``(name, config, foreign)`` of a name or a config dict; None for anything else.

    ``foreign`` says that the dict means an object of the user's, to be found in
    ``custom_objects`` alone. The forms of Keras 2, ``{class_name, config}``, and Keras 3,
    ``{module, class_name, config, registered_name}``, are read; functions come as
    ``{"class_name": "function", "config": name}``.
    """
    if isinstance(identifier, str):
        return identifier, {}, False
    if not isinstance(identifier, dict):
        return None
    name, config = identifier.get("class_name"), identifier.get("config")
    if name == "function":
        name, config = config, {}
    config = {} if config is None else config
    if not isinstance(name, str) or not isinstance(config, dict):
        raise ValueError(
            f'{argument} must be a config with a string "class_name" and a dict "config", '
            f"got {identifier!r}"
        )
    registered = identifier.get("registered_name")
    if isinstance(registered, str) and ">" in registered:
        name = registered
    module = identifier.get("module")
    foreign = isinstance(module, str) and module.split(".")[0] not in _OWN_MODULES
    return name, config, foreign or ">" in name


def find_custom(name: str, custom_objects: Mapping[str, Any] | None) -> Any:
    """The user's object of this name, with or without its ``package>``; None if unknown."""
    custom = custom_objects or {}
    return custom.get(name, custom.get(name.rpartition(">")[2]))


def unknown(argument: str, identifier: Any, names: Iterable[str]) -> ValueError:
    """The error for an identifier that stands for nothing."""
    return ValueError(
        f"{argument} must be None, a callable, a config, or one of {', '.join(names)} "
        f"(others by custom_objects), got {identifier!r}"
    )


def instantiate(argument: str, target: Any, config: Config) -> Any:
    """An instance of the class ``target``; any other callable as it is."""
    if not inspect.isclass(target):
        return target
    try:
        make = getattr(target, "from_config", None)
        return target(**config) if make is None else make(dict(config))
    except TypeError as error:
        raise ValueError(
            f"{argument} must be a config that {target.__name__} accepts, got {config!r}: {error}"
        ) from error


def resolve(
    argument: str,
    identifier: Any,
    known: Mapping[str, Any],
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """The callable that ``identifier`` stands for; None stays None.

    Raises
    ------
    ValueError
        An unknown name, a config its class does not accept, or something not callable.
    """
    if identifier is None:
        return None
    parsed = parse(argument, identifier)
    if parsed is not None:
        name, config, foreign = parsed
        target = find_custom(name, custom_objects) or (None if foreign else known.get(name))
        if target is not None:
            return instantiate(argument, target, config)
    elif callable(identifier):
        return instantiate(argument, identifier, {})
    raise unknown(argument, identifier, known)


def serialize(argument: str, obj: Any, module: str) -> Config | None:
    """The config dict of an object, as Keras 3 writes it; None stays None.

    ``module`` is Keras' name for the home of this package's own classes.
    """
    if obj is None:
        return None
    cls = type(obj)
    if hasattr(obj, "get_config"):
        own = cls.__module__.partition(".")[0] == __package__
        return {
            "module": module if own else cls.__module__,
            "class_name": cls.__name__,
            "config": obj.get_config(),
            "registered_name": None if own else cls.__name__,
        }
    return serialize_function(argument, obj)


def serialize_function(argument: str, function: Any) -> Config:
    """The config dict of the user's function, found again through ``custom_objects``."""
    name = getattr(function, "__name__", "<unnamed>")
    if name.startswith("<"):
        raise ValueError(
            f"{argument} must have a name or a get_config method to be stored, got {function!r}"
        )
    return {
        "module": getattr(function, "__module__", None) or type(function).__module__,
        "class_name": "function",
        "config": name,
        "registered_name": name,
    }


def snake_case(name: str) -> str:
    """``Conv3DTranspose`` → ``conv3d_transpose``, by Keras' rule."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
