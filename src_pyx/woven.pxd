# The taps algorithm without sums in memory, where taps do not overlap: the upsampling of U-Nets.
#
# What a tile has summed is then complete. Its rows are the weights of streams, outputs that
# alternate in memory: phases of the width in channels_first, phases x filters in channels_last. A
# vector of each stream, woven, is a run of outputs. With two streams:
#
#     input positions     p0 p1 p2 ..       (panel, as in taps.pxd)
#     first stream        a0 a1 a2 ..
#     second stream       b0 b1 b2 ..   ->  a0 b0 a1 b1 a2 b2 ..  + bias, in y
#
# The sum and its order are those of taps.pxd: which of the two runs does not change a bit.
from simd cimport real, vf, MR, VECTOR, vadd, vfma, vload, vset, vstore, vstream, vzip_hi, vzip_lo


ctypedef void (*WovenTile)(
    Py_ssize_t rows, int streams, Py_ssize_t depth, const real *const *a, const real *b,
    Py_ssize_t ldb, const real *const *bias, real *const *out, Py_ssize_t left_at,
    Py_ssize_t right_at, bint both, bint stream,
) noexcept nogil


cdef inline bint weaves(Py_ssize_t streams) noexcept nogil:
    # Whether there is a tile for so many streams.
    return streams in (2, 4) and streams <= VECTOR


cdef inline void put_two(real *y, vf a, vf b, bint stream) noexcept nogil:
    if stream:
        vstream(y, vzip_lo(a, b))
        vstream(y + VECTOR, vzip_hi(a, b))
    else:
        vstore(y, vzip_lo(a, b))
        vstore(y + VECTOR, vzip_hi(a, b))


cdef inline void put_four(real *y, vf a, vf b, vf c, vf d, bint stream) noexcept nogil:
    put_two(y, vzip_lo(a, c), vzip_lo(b, d), stream)
    put_two(y + 2 * VECTOR, vzip_hi(a, c), vzip_hi(b, d), stream)


cdef inline void woven_sized(
    Py_ssize_t tiles, Py_ssize_t depth, const real *const *a, const real *b, Py_ssize_t ldb,
    const real *const *bias, real *const *out, Py_ssize_t left_at, Py_ssize_t right_at, bint both,
    bint stream, int streams, int mr,
) noexcept nogil:
    # out[i][left_at:] and, if both, out[i][right_at:] = a vector of positions each. The loops are as
    # in microkernel.pxd.
    cdef vf left[MR]
    cdef vf right[MR]
    cdef vf b0, b1, scalar
    cdef Py_ssize_t n, k
    cdef const real *term
    cdef int i
    for n in range(tiles):
        for i in range(mr):
            left[i] = vset(0)
            right[i] = vset(0)
        term = b
        for k in range(depth):
            b0 = vload(term)
            b1 = vload(term + VECTOR)
            for i in range(mr):
                scalar = vset(a[i][k])
                left[i] = vfma(scalar, b0, left[i])
                right[i] = vfma(scalar, b1, right[i])
            term += ldb
        for i in range(mr):
            scalar = vset(bias[i][0])
            left[i] = vadd(left[i], scalar)
            right[i] = vadd(right[i], scalar)
        for i from 0 <= i < mr by streams:
            if streams == 2:
                put_two(out[i] + left_at, left[i], left[i + 1], stream)
            else:
                put_four(
                    out[i] + left_at, left[i], left[i + 1], left[i + 2], left[i + 3], stream
                )
        if both:
            for i from 0 <= i < mr by streams:
                if streams == 2:
                    put_two(out[i] + right_at, right[i], right[i + 1], stream)
                else:
                    put_four(
                        out[i] + right_at, right[i], right[i + 1], right[i + 2], right[i + 3],
                        stream,
                    )
        a += mr
        bias += mr
        out += mr


cdef inline void woven_streams(
    Py_ssize_t rows, Py_ssize_t depth, const real *const *a, const real *b, Py_ssize_t ldb,
    const real *const *bias, real *const *out, Py_ssize_t left_at, Py_ssize_t right_at, bint both,
    bint stream, int streams,
) noexcept nogil:
    # All rows, whole groups of streams, in tiles of as many groups as it holds, and what is left.
    cdef int most = MR // streams * streams
    cdef Py_ssize_t done = rows // most * most
    woven_sized(
        done // most, depth, a, b, ldb, bias, out, left_at, right_at, both, stream, streams, most
    )
    a += done
    bias += done
    out += done
    done = (rows - done) // streams
    if done == 1:
        woven_sized(
            1, depth, a, b, ldb, bias, out, left_at, right_at, both, stream, streams, streams
        )
    elif done == 2 and most > 2 * streams:
        woven_sized(
            1, depth, a, b, ldb, bias, out, left_at, right_at, both, stream, streams,
            2 * streams if most > 2 * streams else streams,
        )
    elif done == 3 and most > 3 * streams:
        woven_sized(
            1, depth, a, b, ldb, bias, out, left_at, right_at, both, stream, streams,
            3 * streams if most > 3 * streams else streams,
        )
    elif done == 4 and most > 4 * streams:
        woven_sized(
            1, depth, a, b, ldb, bias, out, left_at, right_at, both, stream, streams,
            4 * streams if most > 4 * streams else streams,
        )
    elif done == 5 and most > 5 * streams:
        woven_sized(
            1, depth, a, b, ldb, bias, out, left_at, right_at, both, stream, streams,
            5 * streams if most > 5 * streams else streams,
        )
    elif done == 6 and most > 6 * streams:
        woven_sized(
            1, depth, a, b, ldb, bias, out, left_at, right_at, both, stream, streams,
            6 * streams if most > 6 * streams else streams,
        )


cdef inline void woven_rows(
    Py_ssize_t rows, int streams, Py_ssize_t depth, const real *const *a, const real *b,
    Py_ssize_t ldb, const real *const *bias, real *const *out, Py_ssize_t left_at,
    Py_ssize_t right_at, bint both, bint stream,
) noexcept nogil:
    if streams == 2:
        woven_streams(rows, depth, a, b, ldb, bias, out, left_at, right_at, both, stream, 2)
    else:
        woven_streams(rows, depth, a, b, ldb, bias, out, left_at, right_at, both, stream, 4)
