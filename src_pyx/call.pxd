# What changes from call to call, and what every algorithm offers to the driver.
from epilogue cimport Activation
from microkernel cimport SplitTile, Tile
from simd cimport real


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
    Activation act


# One task: some outputs of one sample, which no other task writes. `scratch` belongs to the
# thread and is aligned to a cache line.
ctypedef void (*Task)(
    const void *plan, const Call *call, Py_ssize_t index, char *scratch
) noexcept nogil
