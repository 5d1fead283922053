# An axis as the kernels see it: its phases, and boxes of positions.
#
# Outputs o = stride*j + first[p] of phase p are indexed by j, the same grid for all phases
# of an axis; tap q of the phase (start[p] <= q < start[p+1]) reads input j + offset[q].

from simd cimport real


cdef struct Axis:
    Py_ssize_t size
    Py_ssize_t out
    Py_ssize_t stride
    Py_ssize_t phases
    Py_ssize_t grid  # the largest count
    Py_ssize_t low  # smallest and largest offset of any tap
    Py_ssize_t high
    const Py_ssize_t *first
    const Py_ssize_t *count
    const Py_ssize_t *start
    const Py_ssize_t *tap
    const Py_ssize_t *offset


cdef struct Box:
    Py_ssize_t lo[3]
    Py_ssize_t hi[3]


cdef struct Source:  # an input image with its channels side by side
    const real *x
    Py_ssize_t step[3]
    Py_ssize_t lo[3]
    Py_ssize_t hi[3]


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t even_part(Py_ssize_t whole, Py_ssize_t most) noexcept nogil:
    # The part size that cuts `whole` into equal parts of at most `most`.
    if whole <= 0:
        return 1
    return ceil_div(whole, ceil_div(whole, most if most > 0 else 1))


cdef inline Box box_at(
    Py_ssize_t index, const Py_ssize_t *side, const Axis *axes
) noexcept nogil:
    # Box number `index` of the grid of boxes, the last axis fastest.
    cdef Box box
    cdef Py_ssize_t a, n
    for a in range(2, -1, -1):
        n = ceil_div(axes[a].grid, side[a])
        box.lo[a] = (index % n) * side[a]
        box.hi[a] = min(box.lo[a] + side[a], axes[a].grid)
        index //= n
    return box


cdef inline Py_ssize_t box_count(const Py_ssize_t *side, const Axis *axes) noexcept nogil:
    cdef Py_ssize_t a, n = 1
    for a in range(3):
        n *= ceil_div(axes[a].grid, side[a])
    return n
