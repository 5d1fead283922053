# The register tile: up to MR rows of broadcast operands times one or NV vectors.
#
#     out[i][column:column+width] = sums[i][0:width] + bias[0:width]   (a)
#                                or sums[i][column:column+width]          (b)
#                       + sum over t < taps, low <= k < high of
#                         a[t*MR + i][k] * b[(t*(high-low) + k-low) * ldb][0:width]
#
#            b: ldb apart, one row a term      rows are named by pointers, so that a tile may
#            +-----------+-----------+         run over any positions: several short image rows,
#            | vector 0  | vector 1  |         edges (a pointer to zeros), strided weights; and
#     a[0] --+-----------+-----------+         write them where they belong
#     a[1] --|  mr x nv accumulators |
#      :     |  stay in registers    |         `sums` and `bias` may be NULL: nothing to add
#     a[mr]--+-----------------------+
#
# A call sums a block of a longer sum in registers and adds the former `sums`. Blocks are what
# bounds the rounding error: one tap of at most 128 channels, or several taps of together 64,
# make it no larger than oneDNN's (relative to the result's RMS: 1.5e-7 for psmnet_c5, 2.1e-7
# for gan3d_4; 2.6e-7 and 2.9e-7 with blocks of 256).
#
# kernels.pyx makes two functions of this, one and NV vectors wide, which the algorithms call
# through Call.tile: inlined into their loops, GCC spilled an accumulator at every step.
from geometry cimport even_part
from simd cimport real, vf, MR, NR, NV, VECTOR, vload, vstore, vstream, vset, vadd, vfma

cdef enum:
    TERMS = 64
    MOST_TERMS = 128


cdef inline Py_ssize_t depth_block(Py_ssize_t depth) noexcept nogil:
    # Channels of a tap in a block of the sum.
    return even_part(depth, MOST_TERMS)


cdef inline Py_ssize_t tap_block(Py_ssize_t depth) noexcept nogil:
    # Taps in a block of the sum.
    return max(TERMS // depth, 1)


ctypedef void (*Tile)(
    Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high, const real *const *a,
    const real *b, Py_ssize_t ldb, const real *const *sums, const real *bias,
    real *const *out, Py_ssize_t column, bint stream, int mr,
) noexcept nogil

ctypedef void (*SplitTile)(
    Py_ssize_t depth, Py_ssize_t block, const real *a, Py_ssize_t lda,
    const real *b, real *out, int mr,
) noexcept nogil


cdef inline void tile_sized(
    Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high, const real *const *a,
    const real *b, Py_ssize_t ldb, const real *const *sums, const real *bias,
    real *const *out, Py_ssize_t column, bint stream, int mr, int nv,
) noexcept nogil:
    cdef vf acc[MR][NV]
    cdef vf row[NV]
    cdef vf scalar
    cdef Py_ssize_t t, k
    cdef int i, j
    for i in range(mr):
        for j in range(nv):
            acc[i][j] = vset(0)
    for t in range(taps):
        for k in range(low, high):
            for j in range(nv):
                row[j] = vload(b + j * VECTOR)
            for i in range(mr):
                scalar = vset(a[i][k])
                for j in range(nv):
                    acc[i][j] = vfma(scalar, row[j], acc[i][j])
            b += ldb
        a += MR
    if bias == NULL and sums != NULL:  # row by row: rows of `out` may overlap each other
        for i in range(mr):
            for j in range(nv):
                vstore(
                    out[i] + column + j * VECTOR,
                    vadd(acc[i][j], vload(sums[i] + column + j * VECTOR)),
                )
        return
    if sums != NULL:
        for i in range(mr):
            for j in range(nv):
                acc[i][j] = vadd(acc[i][j], vload(sums[i] + j * VECTOR))
    if bias != NULL:
        for j in range(nv):
            row[j] = vload(bias + j * VECTOR)
        for i in range(mr):
            for j in range(nv):
                acc[i][j] = vadd(acc[i][j], row[j])
    if stream:
        for i in range(mr):
            for j in range(nv):
                vstream(out[i] + column + j * VECTOR, acc[i][j])
        return
    for i in range(mr):
        for j in range(nv):
            vstore(out[i] + column + j * VECTOR, acc[i][j])


cdef inline void tile_rows(
    Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high, const real *const *a,
    const real *b, Py_ssize_t ldb, const real *const *sums, const real *bias,
    real *const *out, Py_ssize_t column, bint stream, int mr, int nv,
) noexcept nogil:
    # A constant row count for every call: only then do the accumulators live in registers.
    if mr == 1:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 1 if 1 < MR else MR, nv)
    elif mr == 2:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 2 if 2 < MR else MR, nv)
    elif mr == 3:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 3 if 3 < MR else MR, nv)
    elif mr == 4:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 4 if 4 < MR else MR, nv)
    elif mr == 5:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 5 if 5 < MR else MR, nv)
    elif mr == 6:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 6 if 6 < MR else MR, nv)
    elif mr == 7:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 7 if 7 < MR else MR, nv)
    elif mr == 8:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 8 if 8 < MR else MR, nv)
    elif mr == 9:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 9 if 9 < MR else MR, nv)
    elif mr == 10:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 10 if 10 < MR else MR, nv)
    elif mr == 11:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 11 if 11 < MR else MR, nv)
    elif mr == 12:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 12 if 12 < MR else MR, nv)
    elif mr == 13:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, 13 if 13 < MR else MR, nv)
    else:
        tile_sized(taps, low, high, a, b, ldb, sums, bias, out, column, stream, MR, nv)


cdef inline void split_sized(
    Py_ssize_t depth, Py_ssize_t block, const real *a, Py_ssize_t lda,
    const real *b, real *out, int mr, int nv,
) noexcept nogil:
    # out[i] = sum over k < depth of a[i * lda + k] * b[k], in blocks; rows of out NR apart.
    cdef vf acc[MR][NV]
    cdef vf row[NV]
    cdef vf scalar
    cdef Py_ssize_t low, k
    cdef int i, j
    for low from 0 <= low < depth by block:
        for i in range(mr):
            for j in range(nv):
                acc[i][j] = vset(0)
        for k in range(low, min(low + block, depth)):
            for j in range(nv):
                row[j] = vload(b + j * VECTOR)
            for i in range(mr):
                scalar = vset(a[i * lda + k])
                for j in range(nv):
                    acc[i][j] = vfma(scalar, row[j], acc[i][j])
            b += nv * VECTOR
        if low > 0:
            for i in range(mr):
                for j in range(nv):
                    acc[i][j] = vadd(acc[i][j], vload(out + i * NR + j * VECTOR))
        for i in range(mr):
            for j in range(nv):
                vstore(out + i * NR + j * VECTOR, acc[i][j])


cdef inline void split_rows(
    Py_ssize_t depth, Py_ssize_t block, const real *a, Py_ssize_t lda,
    const real *b, real *out, int mr, int nv,
) noexcept nogil:
    # As tile_rows.
    if mr == 1:
        split_sized(depth, block, a, lda, b, out, 1 if 1 < MR else MR, nv)
    elif mr == 2:
        split_sized(depth, block, a, lda, b, out, 2 if 2 < MR else MR, nv)
    elif mr == 3:
        split_sized(depth, block, a, lda, b, out, 3 if 3 < MR else MR, nv)
    elif mr == 4:
        split_sized(depth, block, a, lda, b, out, 4 if 4 < MR else MR, nv)
    elif mr == 5:
        split_sized(depth, block, a, lda, b, out, 5 if 5 < MR else MR, nv)
    elif mr == 6:
        split_sized(depth, block, a, lda, b, out, 6 if 6 < MR else MR, nv)
    elif mr == 7:
        split_sized(depth, block, a, lda, b, out, 7 if 7 < MR else MR, nv)
    elif mr == 8:
        split_sized(depth, block, a, lda, b, out, 8 if 8 < MR else MR, nv)
    elif mr == 9:
        split_sized(depth, block, a, lda, b, out, 9 if 9 < MR else MR, nv)
    elif mr == 10:
        split_sized(depth, block, a, lda, b, out, 10 if 10 < MR else MR, nv)
    elif mr == 11:
        split_sized(depth, block, a, lda, b, out, 11 if 11 < MR else MR, nv)
    elif mr == 12:
        split_sized(depth, block, a, lda, b, out, 12 if 12 < MR else MR, nv)
    elif mr == 13:
        split_sized(depth, block, a, lda, b, out, 13 if 13 < MR else MR, nv)
    else:
        split_sized(depth, block, a, lda, b, out, MR, nv)
