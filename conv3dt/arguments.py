"""Arguments: whatever users pass, made canonical, or refused by name.

Every user-facing error of the operation is raised here, before any work: a ValueError or
TypeError that names the argument, what came and the rule. Each function canonicalises one
argument; ``make_problem`` joins them with the shapes of the arrays. Sizes are Python
ints, which cannot overflow, until they are proved to fit; nothing below checks again.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from .problem import Axis, Problem, effective_kernel, explicit_axis, keras_axis

Triple = tuple[int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Shape = tuple[int | None, ...]

ALGORITHMS = ("auto", "direct", "im2col", "winograd")
DATA_FORMATS = ("channels_last", "channels_first")
MAX_THREADS = 64
FLOATS = ("float16", "bfloat16", "float32", "float64")
_AS_THEY_ARE = (np.dtype(np.float32), np.dtype(np.float64))

_MEMORY = re.compile(
    r"(?P<number>\d+(\.\d+)?)\s*((?P<prefix>[kmgt])(?P<binary>i)?)?b?", re.IGNORECASE
)

# NumPy's own limit on the bytes of an array, and a limit on single voxel coordinates that
# keeps sums of two of them within int64 in the kernels.
BYTES_LIMIT = 2**63
COORDINATE_LIMIT = 2**62


def triple(name: str, value: Any) -> Triple:
    """Three positive ints from one or three of them (kernel_size, strides, dilation_rate)."""
    return _triple(name, value, least=1, kind="positive")


def positive_int(name: str, value: Any) -> int:
    """One positive int (filters, groups)."""
    number = _integer(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def axis(name: str, value: Any) -> int:
    """One int; Keras 2 writes it as a list of one."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    number = _integer(items[0]) if len(items) == 1 else None
    if number is None:
        raise ValueError(f"{name} must be an integer, got {value!r}")
    return number


def number(name: str, value: Any) -> float:
    """A real number (epsilon, rate), as a float."""
    if isinstance(value, (Real, np.bool_)):
        with suppress(OverflowError):  # an integer beyond all floats
            return float(value)
    raise ValueError(f"{name} must be a number, got {value!r}")


def listed(name: str, value: Any, what: str) -> list[Any]:
    """What can be iterated over, as a list. TypeError: it cannot."""
    try:
        return list(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a list of {what}, got {_kind(value)}") from error


def flag(name: str, value: Any) -> bool:
    """True or False, from anything that counts as one of them (use_bias, trainable)."""
    try:
        if value is not NotImplemented:  # its truth is deprecated
            return bool(value)
        error = None
    except (ValueError, TypeError) as failure:  # arrays
        error = failure
    raise TypeError(f"{name} must be True or False, got {_kind(value)}") from error


def padding(value: Any) -> str | Pads:
    """``"valid"``, ``"same"`` (any case), or three pairs ``(lo, hi)`` of cropped voxels.

    Explicit pads come as one int, three ints or three pairs.
    """
    if isinstance(value, str):
        if value.lower() in ("valid", "same"):
            return value.lower()
    else:
        items = value if _is_sequence(value, 3) else [_integer(value)] * 3
        pairs = [_pair(item) for item in items]
        if None not in pairs:
            return tuple(pairs)  # type: ignore[return-value]
    raise ValueError(
        'padding must be "valid", "same", or non-negative integers: '
        f"one, 3, or 3 pairs (lo, hi), got {value!r}"
    )


def output_padding(
    value: Any, strides: Triple, dilations: Triple, padding: str | Pads
) -> Triple | None:
    """None, or three non-negative ints below what the padding allows.

    The limit is the stride for the string paddings (Keras) and ``max(stride, dilation)``
    for explicit padding (PyTorch).
    """
    if value is None:
        return None
    result = _triple("output_padding", value, least=0, kind="non-negative")
    if isinstance(padding, str):
        limits, rule = strides, f"strides {strides}"
    else:
        limits = tuple(map(max, strides, dilations))  # type: ignore[assignment]
        rule = f"max(strides, dilation_rate) {limits} for explicit padding"
    if any(p >= limit for p, limit in zip(result, limits, strict=True)):
        raise ValueError(f"output_padding must be less than {rule} on every axis, got {value!r}")
    return result


def stride_dilation_rule(strides: Triple, dilations: Triple, padding: str | Pads) -> None:
    """Refuse, as Keras does, any stride > 1 with any dilation > 1 for the string paddings."""
    if isinstance(padding, str) and max(strides) > 1 and max(dilations) > 1:
        raise ValueError(
            f'strides > 1 and dilation_rate > 1 cannot be combined with padding="{padding}" '
            f"(explicit padding allows it), got strides {strides}, dilation_rate {dilations}"
        )


def data_format(value: Any) -> str:
    """``"channels_last"`` or ``"channels_first"`` (any case); None asks keras.json."""
    if value is None:
        value, source = _keras_json_data_format()
        name = f"image_data_format in {source}"
    else:
        name = "data_format"
    if isinstance(value, str) and value.lower() in DATA_FORMATS:
        return value.lower()
    raise ValueError(f'{name} must be "channels_last" or "channels_first", got {value!r}')


def num_threads(value: Any) -> int | None:
    """None, or a positive int, clamped to 64."""
    return None if value is None else min(positive_int("num_threads", value), MAX_THREADS)


def memory_size(name: str, value: Any) -> int:
    """A positive number of bytes, as an int or as text: ``"500 MB"``, ``"1.5GiB"``."""
    number = _integer(value)
    if isinstance(value, str):
        found = _MEMORY.fullmatch(value.strip())
        if found:
            power = ("", *"kmgt").index((found["prefix"] or "").lower())
            number = int(float(found["number"]) * (1024 if found["binary"] else 1000) ** power)
    if number is None or number < 1:
        raise ValueError(
            f'{name} must be a positive number of bytes or text like "2GB" or "512 MiB", '
            f"got {value!r}"
        )
    return number


def algorithm(value: Any) -> str:
    """One of ``ALGORITHMS``."""
    if isinstance(value, str) and value in ALGORITHMS:
        return value
    raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {value!r}")


def sizes(name: str, value: Any, count: int) -> Shape:
    """``count`` sizes, each a non-negative int or None: 5 with the batch, 4 without."""
    shape = _sizes(value)
    if shape is None or len(shape) != count:
        batch = "with" if count == 5 else "without"
        raise ValueError(
            f"{name} must be {count} sizes, {batch} the batch, each a non-negative integer "
            f"or None, got {value!r}"
        )
    return shape


def any_sizes(name: str, value: Any, least: int = 1) -> Shape:
    """At least so many sizes, each a non-negative int or None."""
    shape = _sizes(value)
    if shape is None or len(shape) < least:
        raise ValueError(f"{name} must be non-negative integers or None, got {value!r}")
    return shape


def as_array(name: str, value: Any) -> np.ndarray:
    """The array that ``value`` is or offers, as a native, aligned float array.

    Arrays, (nested) lists, and objects with ``__array__`` or ``__dlpack__`` are read as NumPy
    functions read them, without a copy where possible. Strides are left as they come.

    Raises
    ------
    TypeError
        Anything but float16, bfloat16, float32 and float64 numbers; masked arrays, because
        their mask would be lost.
    ValueError
        Ragged lists.
    """
    if type(value) is np.ndarray and value.dtype in _AS_THEY_ARE and value.flags.aligned:
        return value  # in a tenth of the time of what follows
    if value is None or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array of floats, got {_kind(value)}")
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            array = np.from_dlpack(value)
        else:
            array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array, got {_kind(value)}: {error}") from error
    except (TypeError, RuntimeError, BufferError, AttributeError) as error:
        raise TypeError(f"{name} must be an array, got {_kind(value)}: {error}") from error
    if array.dtype.name not in FLOATS:
        raise TypeError(f"{name} must be {', '.join(FLOATS[:-1])} or float64, got {array.dtype}")
    return np.require(array, array.dtype.newbyteorder("="), "A")


def weight(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of floats of this shape."""
    array = as_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return array


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype a float dtype is computed in: float32 for the half types, else its own."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def make_problem(
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Triple,
    padding: str | Pads,
    output_padding: Triple | None,
    dilation: Triple,
    groups: int,
    channels_last: bool,
    *,
    itemsize: int = 4,
) -> Problem:
    """The problem that canonical arguments and the shapes of x and kernel pose.

    Parameters
    ----------
    x_shape
        Five sizes, the batch among them, in the order of the data format.
    kernel_shape
        (kd, kh, kw, filters // groups, in_channels).
    itemsize
        Bytes per number of the compute dtype, for the size limits.

    Raises
    ------
    ValueError
        Shapes that do not fit together, an output of negative size, or x or a result of
        2**63 bytes or more.
    """
    x_shape, kernel_shape = tuple(x_shape), tuple(kernel_shape)
    in_channels, filters = _channels(x_shape, kernel_shape, groups, channels_last)
    sizes = x_shape[1:4] if channels_last else x_shape[2:5]
    axes = tuple(
        _axis(i, sizes[i], kernel_shape[i], strides[i], dilation[i], padding, output_padding)
        for i in range(3)
    )
    problem = Problem(in_channels, filters, groups, axes, channels_last)  # type: ignore[arg-type]
    check_bytes("x", x_shape, itemsize, f"got shape {x_shape}")
    y_shape = problem.y_shape(x_shape[0])
    cause = f"got shape {y_shape} from strides {strides}, dilation_rate {dilation}"
    check_bytes("the result", y_shape, itemsize, cause)
    return problem


def check_bytes(name: str, shape: Sequence[int], itemsize: int, cause: str) -> None:
    """ValueError for arrays of 2**63 bytes or more."""
    # Empty axes count as 1, as NumPy counts them: it refuses (0, 2**62, 2**62) too.
    if prod(n or 1 for n in shape) * itemsize >= BYTES_LIMIT:
        raise ValueError(f"{name} must have fewer than 2**63 bytes, {cause}")


def check_groups(groups: int, name: str, count: int) -> None:
    """Refuse groups that do not divide ``count``, the size called ``name``."""
    if count % groups:
        raise ValueError(f"groups must divide {name}, got groups {groups} and {name} {count}")


def check_bias(bias: np.ndarray, filters: int) -> None:
    """Refuse a bias that is not one number per filter."""
    if bias.shape != (filters,):
        raise ValueError(f"bias must have shape ({filters},), one per filter, got {bias.shape}")


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse an ``out`` that cannot receive a result of this shape and dtype.

    Any strides will do; the layout is wrong when the shape is.
    """
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a NumPy array, got {_kind(out)}")
    if out.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")


def _integer(value: Any) -> int | None:
    """``value`` as an int when it is an integer or bool of any kind, else None."""
    if isinstance(value, np.bool_):
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        return None


def _sizes(value: Any) -> Shape | None:
    """``value`` as a tuple of non-negative ints and Nones, else None."""
    try:
        shape = tuple(None if size is None else operator.index(size) for size in value)
    except TypeError:
        return None
    return None if any(size is not None and size < 0 for size in shape) else shape


def _is_sequence(value: Any, length: int) -> bool:
    ordered = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)
    return ordered and len(value) == length


def _triple(name: str, value: Any, least: int, kind: str) -> Triple:
    one = _integer(value)
    items: list[int | None] = [one] * 3
    if one is None and _is_sequence(value, 3):
        items = [_integer(item) for item in value]
    if any(item is None or item < least for item in items):
        raise ValueError(f"{name} must be 1 or 3 {kind} integers, got {value!r}")
    return tuple(items)  # type: ignore[return-value]


def _pair(value: Any) -> tuple[int, int] | None:
    """``(lo, hi)`` from one or two non-negative integers, else None."""
    one = _integer(value)
    items = (one, one) if one is not None else value
    if not _is_sequence(items, 2):
        return None
    lo, hi = map(_integer, items)
    return None if lo is None or hi is None or min(lo, hi) < 0 else (lo, hi)


def _keras_json_data_format() -> tuple[Any, Path]:
    """Keras' own setting and where it was looked for. The file is never created."""
    import json  # here, because it is rarely needed and a tenth of the time to import conv3dt

    home = os.environ.get("KERAS_HOME") or os.path.expanduser(os.path.join("~", ".keras"))
    path = Path(home, "keras.json")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        settings = {}
    return settings.get("image_data_format", "channels_last"), path


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _channels(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], groups: int, channels_last: bool
) -> tuple[int, int]:
    """``(in_channels, filters)``, after the rules that tie x, kernel and groups together."""
    layout = "(batch, D, H, W, channels)" if channels_last else "(batch, channels, D, H, W)"
    if len(x_shape) != 5:
        raise ValueError(f"x must have 5 axes {layout}, got {len(x_shape)}, shape {x_shape}")
    if len(kernel_shape) != 5:
        raise ValueError(
            "kernel must have 5 axes (kd, kh, kw, filters // groups, in_channels), "
            f"got {len(kernel_shape)}, shape {kernel_shape}"
        )
    if 0 in kernel_shape[:4]:
        raise ValueError(f"kernel must have no empty spatial or filter axis, got {kernel_shape}")
    in_channels = kernel_shape[4]
    channels = x_shape[4 if channels_last else 1]
    if channels != in_channels:
        raise ValueError(
            f"x must have the kernel's {in_channels} input channels, got {channels}: "
            f"x {layout} has shape {x_shape}, kernel {kernel_shape}"
        )
    check_groups(groups, "in_channels", in_channels)
    return in_channels, kernel_shape[3] * groups


def _axis(
    index: int,
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: str | Pads,
    output_padding: Triple | None,
) -> Axis:
    """One spatial axis, resolved to its output size and crop."""
    extra = None if output_padding is None else output_padding[index]
    if isinstance(padding, str):
        out, crop = keras_axis(size, kernel, stride, dilation, padding, extra)
    else:
        out, crop = explicit_axis(size, kernel, stride, dilation, padding[index], extra or 0)
    name = ("depth", "height", "width")[index]
    if out < 0:
        raise ValueError(
            f"padding must leave an output of size 0 or more, got {out} for the {name}: "
            f"x {size}, kernel {kernel}, stride {stride}, dilation {dilation}, "
            f"padding {padding!r}, output_padding {extra}"
        )
    full = (size - 1) * stride + effective_kernel(kernel, dilation)
    if max(full, out + crop, stride, dilation) >= COORDINATE_LIMIT:
        raise ValueError(
            f"strides and dilation_rate must keep the {name} below 2**62 voxels, "
            f"got stride {stride}, dilation {dilation} for x {size}, kernel {kernel}"
        )
    return Axis(size, out, kernel, stride, dilation, crop)
