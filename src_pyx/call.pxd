# What changes from call to call, and what every algorithm offers to the driver.
from epilogue cimport Activation
from microkernel cimport SplitTile, Tile
from geometry cimport Source
from simd cimport real


cdef struct Grid:  # the tiles of a box for one phase of minimal filtering
    Py_ssize_t taps[3]
    Py_ssize_t low[3]  # offset of the first input
    Py_ssize_t lo[3]
    Py_ssize_t hi[3]
    Py_ssize_t tiles[3]


ctypedef void (*TurnIn)(
    const Grid *grid, const Source *source, Py_ssize_t padded, real *images
) noexcept nogil

ctypedef void (*TurnOut)(
    const Grid *grid, const real *products, int nv, const real *bias,
    real *const *outputs, Py_ssize_t column, bint stream,
) noexcept nogil


cdef struct Call:
    const real *x
    real *y
    Py_ssize_t x_step[4]  # strides in reals: sample, depth, height, width
    Py_ssize_t y_step[4]
    Py_ssize_t x_channel  # stride of the channels
    Py_ssize_t y_channel
    Py_ssize_t chunks  # parts that the columns of a box are cut into, for enough tasks
    bint stream  # write past the cache
    bint vectors  # all rows of y are whole aligned vectors, if its channels are
    Tile tile[2]  # one vector wide, NV vectors wide
    SplitTile split[2]
    TurnIn turn_in
    TurnOut turn_out
    Activation act


# One task: some outputs of one sample, which no other task writes. `scratch` belongs to the
# thread and is aligned to a cache line.
ctypedef void (*Task)(
    const void *plan, const Call *call, Py_ssize_t index, char *scratch
) noexcept nogil
