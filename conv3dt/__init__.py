"""3D transposed convolution on the CPU, for NumPy arrays.

The way of the data; imports follow the arrows, never back::

    apply_blocks     (blocks) → pieces ─┐
    Conv3DTranspose  (layer) ───────────┤
    conv3d_transpose (functional) ──────┴→ arguments → problem → plan → engine → _compiled
                                                                   └──→ col2im

`arguments` turns what users pass into canonical values and raises every error; `problem` is
one sample's operation as integers; `plan` chooses an algorithm and packs the weights;
`engine` knows which compiled kernels run here and how many threads; `col2im` does the same
in NumPy. `pieces` computes a part of a volume with the bits it has in the whole, `chained` one
through several layers, `blocks` whole volumes from such parts, `dask` dask arrays. `activations`,
`initializers`, `regularizers` and `constraints` are leaves. `formats` makes layers from the files
of frameworks, and files from layers. `sequential` stands above: chains of layers, with `folding`,
`stages` and `program` below it and the other layers of a chain in `members`, `dense` and
`batchnorm`. Both are imported when used. The
command line is `__main__` and `cli`.
"""

__version__ = "0.1.0"

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from .blocks import apply_blocks
from .engine import get_num_threads, set_num_threads, show_config
from .functional import conv3d_transpose
from .layer import Conv3DTranspose
from .output_pool import set_output_pool

if _TYPE_CHECKING:
    from .batchnorm import BatchNormalization
    from .dense import Dense
    from .formats import list_layers
    from .formats.keras import from_keras
    from .formats.native import load
    from .formats.onnx import from_onnx
    from .formats.torch import from_torch
    from .members import Activation, Dropout, Flatten, InputLayer, Reshape
    from .sequential import Sequential

# Public names that are imported on first use, and the modules they live in.
_LAZY = {
    "Activation": "members",
    "BatchNormalization": "batchnorm",
    "Dense": "dense",
    "Dropout": "members",
    "Flatten": "members",
    "InputLayer": "members",
    "Reshape": "members",
    "Sequential": "sequential",
    "from_keras": "formats.keras",
    "from_onnx": "formats.onnx",
    "from_torch": "formats.torch",
    "list_layers": "formats",
    "load": "formats.native",
}

__all__ = [
    "Activation",
    "BatchNormalization",
    "Conv3DTranspose",
    "Dense",
    "Dropout",
    "Flatten",
    "InputLayer",
    "Reshape",
    "Sequential",
    "__version__",
    "apply_blocks",
    "conv3d_transpose",
    "from_keras",
    "from_onnx",
    "from_torch",
    "get_num_threads",
    "list_layers",
    "load",
    "set_num_threads",
    "set_output_pool",
    "show_config",
]


def __getattr__(name: str) -> _Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value
