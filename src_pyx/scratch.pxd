# The scratch memory of a thread, cut into parts that begin at cache lines.
#
# In modules built with AddressSanitizer the memory between the parts must not be touched.
from simd cimport GAP, vforbid


cdef struct Scratch:
    char *start  # or NULL, to learn the size
    Py_ssize_t size  # of all parts so far


cdef inline Scratch scratch_at(char *start) noexcept nogil:
    cdef Scratch scratch
    scratch.start = start
    scratch.size = 0
    return scratch


cdef inline void *cut(Scratch *scratch, Py_ssize_t bytes) noexcept nogil:
    # The next `bytes` bytes
    cdef Py_ssize_t first = scratch.size
    scratch.size += (bytes + 63) // 64 * 64 + GAP
    if scratch.start == NULL:
        return NULL
    vforbid(scratch.start + first + bytes, scratch.size - first - bytes)
    return scratch.start + first
