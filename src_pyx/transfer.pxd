# Between arrays and tiles: stores to the output, transposes on the way in and out.
#
# A streaming store writes past the cache. It is worth it where the output is far larger
# than the cache (an ordinary store first reads the line it overwrites), and possible only
# for whole aligned vectors.
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy
from simd cimport (
    real, vf, VECTOR, LOG2_VECTOR, PART_STORES, VECTOR_BYTES, REAL_BYTES,
    vadd, vfetch, vload, vprefetch, vset, vstore, vstore_part, vstream, vtranspose, vturn,
    vzip_lo, vzip_hi,
)


cdef enum:
    LINE = 64  # bytes
    STREAMS = 16  # the most that are woven; GCC does not see that fewer lanes exclude it


cdef inline void put_row(real *y, const real *row, Py_ssize_t n, bint stream) noexcept nogil:
    # y[0:n] = row[0:n]
    cdef Py_ssize_t i
    cdef Py_ssize_t whole = n - n % VECTOR
    if stream and (<uintptr_t>y) % VECTOR_BYTES == 0:
        for i from 0 <= i < whole by VECTOR:
            vstream(y + i, vload(row + i))
    else:
        for i from 0 <= i < whole by VECTOR:
            vstore(y + i, vload(row + i))
    if whole == n:
        return
    if whole:  # the last vector overlaps the one before
        vstore(y + n - VECTOR, vload(row + n - VECTOR))
        return
    i = 0
    if n & 8:  # constant sizes, which the compiler turns into moves
        memcpy(y, row, 8 * REAL_BYTES)
        i = 8
    if n & 4:
        memcpy(y + i, row + i, 4 * REAL_BYTES)
        i += 4
    if n & 2:
        memcpy(y + i, row + i, 2 * REAL_BYTES)
        i += 2
    if n & 1:
        y[i] = row[i]


cdef inline void put_run(real *y, const real *row, Py_ssize_t n, bint stream) noexcept nogil:
    # y[0:n] = row[0:n] for long rows: whole cache lines are streamed. The parts of a line at the
    # ends wait in the cache for the rest of it.
    cdef Py_ssize_t head = 0, lines = 0
    if stream:
        head = min(<Py_ssize_t>(-<uintptr_t>y % LINE) // REAL_BYTES, n)
        lines = (n - head) // (LINE // REAL_BYTES) * (LINE // REAL_BYTES)
        put_row(y, row, head, False)
        put_row(y + head, row + head, lines, True)
    put_row(y + head + lines, row + head + lines, n - head - lines, False)


cdef inline void announce_run(real *y, Py_ssize_t n) noexcept nogil:
    # y[0:n] will be stored soon: fetches its lines, of which an ordinary store needs the rest.
    cdef Py_ssize_t i
    for i from 0 <= i < n by LINE // REAL_BYTES:
        vprefetch(y + i)


cdef inline void put_voxels(
    real *y, Py_ssize_t step, Py_ssize_t filters, Py_ssize_t column, const real *row, Py_ssize_t n
) noexcept nogil:
    # Columns of several voxels that do not touch.
    cdef Py_ssize_t i
    for i in range(n):
        y[(column + i) // filters * step + (column + i) % filters] = row[i]


cdef inline void shuffle(vf *rows, int count, int rounds) noexcept nogil:
    # A round of zips rotates the bits of (row, column) left by one. Log2(count) rounds weave
    # `count` streams into one, LOG2_VECTOR rounds take it apart again; a square of vectors
    # is transposed.
    cdef vf turned[STREAMS]
    cdef int level, i
    for level in range(rounds):
        for i in range(count // 2):
            turned[2 * i] = vzip_lo(rows[i], rows[i + count // 2])
            turned[2 * i + 1] = vzip_hi(rows[i], rows[i + count // 2])
        for i in range(count):
            rows[i] = turned[i]


cdef inline void gather_block(
    const real *const *source, Py_ssize_t column, real *target, Py_ssize_t target_step, bint stream
) noexcept nogil:
    # target[j][i] = source[i][column + j] for i, j < VECTOR; `stream` wants aligned targets.
    cdef vf rows[VECTOR]
    cdef int i
    for i in range(VECTOR):
        rows[i] = vload(source[i] + column)
    vtranspose(rows)
    if stream:
        for i in range(VECTOR):
            vstream(target + i * target_step, rows[i])
    else:
        for i in range(VECTOR):
            vstore(target + i * target_step, rows[i])


cdef inline void scatter_block(
    const real *source, Py_ssize_t source_step, real *const *target, Py_ssize_t column
) noexcept nogil:
    # target[j][column + i] = source[i][j] for i, j < VECTOR
    cdef vf rows[VECTOR]
    cdef int i
    for i in range(VECTOR):
        rows[i] = vload(source + i * source_step)
    vtranspose(rows)
    for i in range(VECTOR):
        vstore(target[i] + column, rows[i])


cdef inline void scatter_into(
    const real *source, Py_ssize_t source_step, Py_ssize_t rows, Py_ssize_t columns,
    real *const *target,
) noexcept nogil:
    # target[j][i] = source[i][j] for i < rows, j < columns; nothing else is touched.
    cdef Py_ssize_t i, j
    if rows < VECTOR or columns < VECTOR:
        for j in range(columns):
            for i in range(rows):
                target[j][i] = source[i * source_step + j]
        return
    for i from 0 <= i < rows by VECTOR:  # last blocks overlap the ones before
        i = min(i, rows - VECTOR)
        for j from 0 <= j < columns by VECTOR:
            j = min(j, columns - VECTOR)
            scatter_block(source + i * source_step + j, source_step, target + j, i)


cdef inline void separate(
    const real *source, int count, int rounds, real *target, Py_ssize_t step, Py_ssize_t n
) noexcept nogil:
    # target[s][i] = source[count*i + s] for i < n, a whole number of vectors.
    cdef vf rows[STREAMS]
    cdef Py_ssize_t i
    cdef int s
    for i from 0 <= i < n by VECTOR:
        for s in range(count):
            rows[s] = vload(source + count * i + s * VECTOR)
        shuffle(rows, count, rounds)
        for s in range(count):
            vstore(target + s * step + i, rows[s])


cdef inline void weave(
    const real *source, Py_ssize_t step, const real *bias, Py_ssize_t streams, int count, int rounds,
    Py_ssize_t n, real *target, bint stream,
) noexcept nogil:
    # target[count*i + s] = source[s][i] + bias[s] for i < n, a whole number of vectors, and s <
    # streams; zeros for the other of `count`.
    cdef vf rows[STREAMS]
    cdef Py_ssize_t i
    cdef int s
    for i from 0 <= i < n by VECTOR:
        for s in range(count):
            rows[s] = vset(0)
            if s < streams:
                rows[s] = vadd(vload(source + s * step + i), vset(bias[s]))
        shuffle(rows, count, rounds)
        if stream:
            for s in range(count):
                vstream(target + count * i + s * VECTOR, rows[s])
        else:
            for s in range(count):
                vstore(target + count * i + s * VECTOR, rows[s])


cdef inline void turn_short(
    const real *source, Py_ssize_t source_step, Py_ssize_t rows, real *target, Py_ssize_t target_step
) noexcept nogil:
    # target[j][i] = source[i][j] for i < rows < VECTOR, j < VECTOR
    cdef vf turned[VECTOR]
    cdef Py_ssize_t i
    for i in range(VECTOR):
        turned[i] = vload(source + min(i, rows - 1) * source_step)
    vtranspose(turned)
    for i in range(VECTOR):
        vstore_part(target + i * target_step, turned[i], rows)


cdef inline void transpose_into(
    const real *source, Py_ssize_t source_step, Py_ssize_t rows, Py_ssize_t columns,
    real *target, Py_ssize_t target_step, bint fetch,
) noexcept nogil:
    # target[j][i] = source[i][j] for i < rows, j < columns; nothing else is touched. `fetch`: the
    # source is far, and the order too wild for the machine to guess.
    cdef Py_ssize_t i, j, k
    cdef Py_ssize_t done = 0
    if PART_STORES and 0 < rows < VECTOR <= columns:
        for j from 0 <= j < columns by VECTOR:  # the last block overlaps the one before
            j = min(j, columns - VECTOR)
            turn_short(source + j, source_step, rows, target + j * target_step, target_step)
        return
    if rows >= VECTOR and columns >= VECTOR:  # so do these
        for i from 0 <= i < rows by VECTOR:
            i = min(i, rows - VECTOR)
            for j from 0 <= j < columns by VECTOR:
                j = min(j, columns - VECTOR)
                if fetch:
                    for k in range(VECTOR):
                        vfetch(source + (i + VECTOR + k) * source_step + j)
                vturn(
                    source + i * source_step + j, source_step,
                    target + j * target_step + i, target_step,
                )
        return
    if source_step == columns:  # few columns without gaps between the rows
        done = rows - rows % VECTOR
        if columns == 2 and VECTOR >= 2:
            separate(source, 2, LOG2_VECTOR, target, target_step, done)
        elif columns == 4 and VECTOR >= 4:
            separate(source, 4, LOG2_VECTOR, target, target_step, done)
        elif columns == 8 and VECTOR >= 8:
            separate(source, 8, LOG2_VECTOR, target, target_step, done)
        else:
            done = 0
    for j in range(columns):
        for i in range(done, rows):
            target[j * target_step + i] = source[i * source_step + j]


cdef inline void turn(
    const real *source, Py_ssize_t step, const real *bias, Py_ssize_t streams,
    Py_ssize_t n, real *target, bint stream,
) noexcept nogil:
    # As weave, any number of streams, by transposes. Where the last vector of a voxel is not whole
    # it is stored first, and what it spills into the next voxel is overwritten; the last of all
    # spills into a vector behind the target.
    cdef vf rows[VECTOR]
    cdef Py_ssize_t i, g
    cdef int s
    for i from 0 <= i < n by VECTOR:
        for g from (streams - 1) // VECTOR * VECTOR >= g >= 0 by VECTOR:
            for s in range(VECTOR):
                rows[s] = vset(0)
                if g + s < streams:
                    rows[s] = vadd(vload(source + (g + s) * step + i), vset(bias[g + s]))
            vtranspose(rows)
            if stream:
                for s in range(VECTOR):
                    vstream(target + (i + s) * streams + g, rows[s])
            else:
                for s in range(VECTOR):
                    vstore(target + (i + s) * streams + g, rows[s])


cdef inline void weave_some(
    const real *source, Py_ssize_t step, const real *bias, Py_ssize_t streams, int count, int rounds,
    Py_ssize_t n, real *target,
) noexcept nogil:
    # Without the zeros of weave: what a voxel spills into the next is overwritten.
    cdef real voxels[STREAMS * VECTOR]
    cdef Py_ssize_t i, v
    for i from 0 <= i < n by VECTOR:
        weave(source + i, step, bias, streams, count, rounds, VECTOR, voxels, False)
        for v in range(VECTOR):
            memcpy(target + (i + v) * streams, voxels + v * count, count * REAL_BYTES)


cdef inline bint exact(Py_ssize_t streams) noexcept nogil:
    # Whether nothing is stored behind the streams when they are interleaved.
    return streams % VECTOR == 0 or streams in (1, 2, 4, 8)


cdef inline void interleave(
    const real *source, Py_ssize_t step, const real *bias, Py_ssize_t streams,
    Py_ssize_t n, real *target, bint stream,
) noexcept nogil:
    # target[streams*i + s] = source[s][i] + bias[s] for i < n; source is read and target
    # written up to the next whole vector of i, and another where not `exact`. `stream` wants
    # an aligned target.
    n = (n + VECTOR - 1) // VECTOR * VECTOR
    if streams == 1:
        weave(source, step, bias, 1, 1, 0, n, target, stream)
    elif streams == 2 and VECTOR >= 2:
        weave(source, step, bias, 2, 2, 1, n, target, stream)
    elif streams == 4 and VECTOR >= 4:
        weave(source, step, bias, 4, 4, 2, n, target, stream)
    elif streams == 8 and VECTOR > 8:
        weave(source, step, bias, 8, 8, 3, n, target, stream)
    elif streams == 3 and VECTOR > 4:
        weave_some(source, step, bias, streams, 4, 2, n, target)
    elif 4 < streams < 8 and VECTOR > 8:
        weave_some(source, step, bias, streams, 8, 3, n, target)
    else:
        turn(source, step, bias, streams, n, target, stream)


cdef inline void put_woven(
    const real *source, Py_ssize_t step, const real *bias, Py_ssize_t streams,
    Py_ssize_t length, real *y, bint stream, real *mixed,
) noexcept nogil:
    # y[0:length] = the streams interleaved, + bias; `mixed` holds what is no whole vector.
    cdef Py_ssize_t whole = length // (streams * VECTOR) * VECTOR
    if not exact(streams) or stream and (<uintptr_t>y) % VECTOR_BYTES != 0:
        interleave(source, step, bias, streams, (length + streams - 1) // streams, mixed, False)
        put_run(y, mixed, length, stream)
        return
    interleave(source, step, bias, streams, whole, y, stream)
    if streams * whole < length:
        interleave(source + whole, step, bias, streams, VECTOR, mixed, False)
        put_row(y + streams * whole, mixed, length - streams * whole, False)
