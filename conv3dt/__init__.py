"""3D transposed convolution on the CPU, for NumPy arrays.

The way of the data; imports follow the arrows, never back::

    Conv3DTranspose  (layer) ─────┐
    conv3d_transpose (functional) ┴→ arguments → problem → plan → engine → _compiled
                                                             └──→ col2im

`arguments` turns what users pass into canonical values and raises every error; `problem` is
one sample's operation as integers; `plan` chooses an algorithm and packs the weights;
`engine` knows which compiled kernels run here and how many threads; `col2im` does the same
in NumPy. `activations`, `initializers`, `regularizers` and `constraints` are leaves.
"""

__version__ = "0.1.0"

from .engine import get_num_threads, set_num_threads, show_config
from .functional import conv3d_transpose
from .layer import Conv3DTranspose
from .output_pool import set_output_pool

__all__ = [
    "Conv3DTranspose",
    "__version__",
    "conv3d_transpose",
    "get_num_threads",
    "set_num_threads",
    "set_output_pool",
    "show_config",
]
