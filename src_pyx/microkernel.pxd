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
# bounds the rounding error: one tap of at most 128 channels, or up to 6 taps, of together 40 or
# a little more, make it no larger than oneDNN's (relative to the result's RMS: 1.5e-7 for
# psmnet_c5, 2.1e-7 for gan3d_4; 2.6e-7 and 2.9e-7 with blocks of 256).
#
# For each term the tile fetches a line at `ahead`, which moves on by `pace` reals: inputs of a later
# call, which the machine would not see coming. 0 is no pace.
#
# kernels.pyx makes two functions of this, one and NV vectors wide, which the algorithms call
# through Call.tile: inlined into their loops, GCC spilled an accumulator at every step.
from geometry cimport even_part
from simd cimport real, vf, MR, NR, NV, VECTOR, vfetch, vfetch_far, vload, vstore, vstream, vset, vadd, vfma

cdef enum:
    TERMS = 40
    MOST_TAPS = 6
    MOST_TERMS = 128


cdef inline Py_ssize_t depth_block(Py_ssize_t depth, Py_ssize_t taps=2) noexcept nogil:
    # Channels of a tap in a block of the sum; a sum of one tap has three blocks where it needs two.
    cdef Py_ssize_t block = even_part(depth, MOST_TERMS)
    return min(block, (depth + 2) // 3) if taps == 1 and depth > MOST_TERMS else block


cdef inline Py_ssize_t tap_block(Py_ssize_t depth) noexcept nogil:
    # Taps in a block of the sum.
    return min((TERMS + depth - 1) // depth, MOST_TAPS)


ctypedef void (*Tile)(
    Py_ssize_t rows, Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high,
    const real *const *a, Py_ssize_t next_a, const real *b, Py_ssize_t ldb,
    const real *const *sums, const real *bias, real *const *out, Py_ssize_t column,
    bint stream, const real *ahead, Py_ssize_t pace,
) noexcept nogil

ctypedef void (*SplitTile)(
    Py_ssize_t rows, Py_ssize_t depth, Py_ssize_t block, const real *a, Py_ssize_t lda,
    const real *b, real *out,
) noexcept nogil


cdef inline void tile_sized(
    Py_ssize_t tiles, Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high,
    const real *const *a, Py_ssize_t next_a, const real *b, Py_ssize_t ldb,
    const real *const *sums, const real *bias, real *const *out, Py_ssize_t column,
    bint stream, const real *ahead, Py_ssize_t pace, int mr, int nv,
) noexcept nogil:
    # Loops over the rows are innermost and within another: only these does GCC unroll before
    # it decides that the accumulators are registers.
    cdef vf left[MR]
    cdef vf right[MR]
    cdef vf b0, b1, scalar
    cdef Py_ssize_t n, t, k, paired
    cdef const real *two
    cdef const real *const *row
    cdef const real *term
    cdef int i
    for n in range(tiles):
        for i in range(mr):
            left[i] = vset(0)
            right[i] = vset(0)
        row = a
        term = b
        for t in range(taps):
            # Two products by address, where of these there are more than registers.
            paired = low + (high - low) // 2 * 2 if nv == 1 else low
            for k from low <= k < paired by 2:
                b0 = vload(term)
                b1 = vload(term + ldb)
                vfetch_far(ahead)
                vfetch_far(ahead + pace)
                ahead += 2 * pace
                for i in range(mr):
                    two = row[i] + k
                    left[i] = vfma(vset(two[1]), b1, vfma(vset(two[0]), b0, left[i]))
                term += 2 * ldb
            for k in range(paired, high):
                b0 = vload(term)
                b1 = vload(term + VECTOR * (nv - 1))
                vfetch_far(ahead)
                ahead += pace
                for i in range(mr):
                    scalar = vset(row[i][k])
                    left[i] = vfma(scalar, b0, left[i])
                    if nv > 1:
                        right[i] = vfma(scalar, b1, right[i])
                term += ldb
            row += MR
        if bias == NULL and sums != NULL:  # row by row: rows of `out` may overlap each other
            for i in range(mr):
                vstore(out[i] + column, vadd(left[i], vload(sums[i] + column)))
                if nv > 1:
                    vstore(
                        out[i] + column + VECTOR,
                        vadd(right[i], vload(sums[i] + column + VECTOR)),
                    )
        else:
            if sums != NULL:
                for i in range(mr):
                    left[i] = vadd(left[i], vload(sums[i]))
                    if nv > 1:
                        right[i] = vadd(right[i], vload(sums[i] + VECTOR))
            if bias != NULL:
                b0 = vload(bias)
                b1 = vload(bias + VECTOR * (nv - 1))
                for i in range(mr):
                    left[i] = vadd(left[i], b0)
                    if nv > 1:
                        right[i] = vadd(right[i], b1)
            if stream:
                for i in range(mr):
                    vstream(out[i] + column, left[i])
                    if nv > 1:
                        vstream(out[i] + column + VECTOR, right[i])
            else:
                for i in range(mr):
                    vstore(out[i] + column, left[i])
                    if nv > 1:
                        vstore(out[i] + column + VECTOR, right[i])
        a += next_a
        out += mr
        if sums != NULL:
            sums += mr


cdef inline void tile_constant(
    Py_ssize_t tiles, Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high,
    const real *const *a, Py_ssize_t next_a, const real *b, Py_ssize_t ldb,
    const real *const *sums, const real *bias, real *const *out, Py_ssize_t column,
    bint stream, const real *ahead, Py_ssize_t pace, int mr, int nv,
) noexcept nogil:
    # A constant row count for every call: only then do the accumulators live in registers.
    if mr == 1:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 1 if 1 < MR else MR, nv)
    elif mr == 2:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 2 if 2 < MR else MR, nv)
    elif mr == 3:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 3 if 3 < MR else MR, nv)
    elif mr == 4:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 4 if 4 < MR else MR, nv)
    elif mr == 5:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 5 if 5 < MR else MR, nv)
    elif mr == 6:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 6 if 6 < MR else MR, nv)
    elif mr == 7:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 7 if 7 < MR else MR, nv)
    elif mr == 8:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 8 if 8 < MR else MR, nv)
    elif mr == 9:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 9 if 9 < MR else MR, nv)
    elif mr == 10:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 10 if 10 < MR else MR, nv)
    elif mr == 11:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 11 if 11 < MR else MR, nv)
    elif mr == 12:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 12 if 12 < MR else MR, nv)
    elif mr == 13:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 13 if 13 < MR else MR, nv)
    else:
        tile_sized(tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, MR, nv)


cdef inline void tile_rows(
    Py_ssize_t rows, Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high,
    const real *const *a, Py_ssize_t next_a, const real *b, Py_ssize_t ldb,
    const real *const *sums, const real *bias, real *const *out, Py_ssize_t column,
    bint stream, const real *ahead, Py_ssize_t pace, int nv,
) noexcept nogil:
    # All rows in equal tiles, or where those of several taps lie between them in whole ones; and
    # what is left in one more.
    cdef Py_ssize_t part = even_part(rows, MR) if next_a == MR else MR
    cdef Py_ssize_t tiles = rows // part
    if next_a == MR:
        next_a = part
    while rows > 0:
        if tiles == 0:
            part = rows
            tiles = 1
        tile_constant(
            tiles, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace,
            <int>part, nv,
        )
        ahead += tiles * taps * (high - low) * pace
        a += tiles * next_a
        out += tiles * part
        if sums != NULL:
            sums += tiles * part
        rows -= tiles * part
        tiles = 0


cdef inline void split_sized(
    Py_ssize_t tiles, Py_ssize_t depth, Py_ssize_t block, const real *a, Py_ssize_t lda,
    const real *b, real *out, int mr, int nv,
) noexcept nogil:
    # out[i] = sum over k < depth of a[i * lda + k] * b[k], in blocks; rows of out NR apart.
    # The loops are as in tile_sized.
    cdef vf left[MR]
    cdef vf right[MR]
    cdef vf b0, b1, scalar
    cdef Py_ssize_t n, low, k
    cdef const real *term
    cdef int i
    for n in range(tiles):
        term = b
        for low from 0 <= low < depth by block:
            for i in range(mr):
                left[i] = vset(0)
                right[i] = vset(0)
            for k in range(low, min(low + block, depth)):
                b0 = vload(term)
                b1 = vload(term + VECTOR * (nv - 1))
                if n == 0:
                    vfetch(term + depth * nv * VECTOR)
                for i in range(mr):
                    scalar = vset(a[i * lda + k])
                    left[i] = vfma(scalar, b0, left[i])
                    if nv > 1:
                        right[i] = vfma(scalar, b1, right[i])
                term += nv * VECTOR
            if low > 0:
                for i in range(mr):
                    left[i] = vadd(left[i], vload(out + i * NR))
                    if nv > 1:
                        right[i] = vadd(right[i], vload(out + i * NR + VECTOR))
            for i in range(mr):
                vstore(out + i * NR, left[i])
                if nv > 1:
                    vstore(out + i * NR + VECTOR, right[i])
        a += mr * lda
        out += mr * NR


cdef inline void split_constant(
    Py_ssize_t tiles, Py_ssize_t depth, Py_ssize_t block, const real *a, Py_ssize_t lda,
    const real *b, real *out, int mr, int nv,
) noexcept nogil:
    # As tile_constant.
    if mr == 1:
        split_sized(tiles, depth, block, a, lda, b, out, 1 if 1 < MR else MR, nv)
    elif mr == 2:
        split_sized(tiles, depth, block, a, lda, b, out, 2 if 2 < MR else MR, nv)
    elif mr == 3:
        split_sized(tiles, depth, block, a, lda, b, out, 3 if 3 < MR else MR, nv)
    elif mr == 4:
        split_sized(tiles, depth, block, a, lda, b, out, 4 if 4 < MR else MR, nv)
    elif mr == 5:
        split_sized(tiles, depth, block, a, lda, b, out, 5 if 5 < MR else MR, nv)
    elif mr == 6:
        split_sized(tiles, depth, block, a, lda, b, out, 6 if 6 < MR else MR, nv)
    elif mr == 7:
        split_sized(tiles, depth, block, a, lda, b, out, 7 if 7 < MR else MR, nv)
    elif mr == 8:
        split_sized(tiles, depth, block, a, lda, b, out, 8 if 8 < MR else MR, nv)
    elif mr == 9:
        split_sized(tiles, depth, block, a, lda, b, out, 9 if 9 < MR else MR, nv)
    elif mr == 10:
        split_sized(tiles, depth, block, a, lda, b, out, 10 if 10 < MR else MR, nv)
    elif mr == 11:
        split_sized(tiles, depth, block, a, lda, b, out, 11 if 11 < MR else MR, nv)
    elif mr == 12:
        split_sized(tiles, depth, block, a, lda, b, out, 12 if 12 < MR else MR, nv)
    elif mr == 13:
        split_sized(tiles, depth, block, a, lda, b, out, 13 if 13 < MR else MR, nv)
    else:
        split_sized(tiles, depth, block, a, lda, b, out, MR, nv)


cdef inline void split_rows(
    Py_ssize_t rows, Py_ssize_t depth, Py_ssize_t block, const real *a, Py_ssize_t lda,
    const real *b, real *out, int nv,
) noexcept nogil:
    # Equal tiles: a product of minimal filtering often has few rows.
    cdef Py_ssize_t part = even_part(rows, MR), tiles
    while rows > 0:
        part = min(part, rows)
        tiles = rows // part
        split_constant(tiles, depth, block, a, lda, b, out, <int>part, nv)
        a += tiles * part * lda
        out += tiles * part * NR
        rows -= tiles * part
