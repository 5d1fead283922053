"""dtype policies: what a layer's weights, sums and results are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import arguments

# Policy: (dtype of the weights, dtype of the result). The half types are computed in
# float32, in which the mixed policies also keep their weights.
POLICIES = {
    "float64": ("float64", "float64"),
    "float32": ("float32", "float32"),
    "float16": ("float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "mixed_float16": ("float32", "float16"),
    "mixed_bfloat16": ("float32", "bfloat16"),
}


class Policy(NamedTuple):
    """A policy's dtypes: of the weights, of the sums, of the result, and those x may have.

    Input of a dtype that is not in ``direct`` is cast to the first of them. A mixed policy
    reads its half type as it is.
    """

    name: str
    variable: np.dtype[Any]
    compute: np.dtype[Any]
    result: np.dtype[Any]
    direct: tuple[np.dtype[Any], ...]


def policy(dtype: Any) -> Policy:
    """The policy that a dtype, a policy's name, object or config dict stands for.

    Raises
    ------
    ValueError
        None of ``POLICIES``. ImportError: bfloat16 without ml_dtypes.
    """
    name = _policy_name(dtype)
    variable, result = map(_numpy_dtype, POLICIES[name])
    direct = tuple(dict.fromkeys((variable, result)))
    return Policy(name, variable, arguments.compute_dtype(variable), result, direct)


def config(name: str) -> dict[str, Any]:
    """The config dict of a policy, as Keras 3 writes it."""
    return {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": name},
        "registered_name": None,
    }


def cast(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """A copy in another dtype; numbers beyond the narrower one become Inf, silently."""
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def _policy_name(dtype: Any) -> str:
    name: Any = "float32" if dtype is None else dtype
    if isinstance(dtype, dict):
        config = dtype.get("config")
        name = config.get("name", "") if isinstance(config, dict) else ""
    elif not isinstance(name, (str, type, np.dtype)):
        name = getattr(dtype, "name", "")  # a policy object
    if isinstance(name, (type, np.dtype)):
        try:
            name = np.dtype(name).name
        except TypeError:
            name = ""
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"dtype must be one of {', '.join(POLICIES)}, got {dtype!r}")
    return name


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("dtype bfloat16 needs the package ml_dtypes") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
