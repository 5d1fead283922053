# The depthwise algorithm: one input channel for each filter, so that only taps are summed.
#
# Within a phase the outputs are shifted inputs times weights, element by element. So the
# vectors run along rows as they lie in memory, whatever these are made of:
#
#     channels_last    | c0 c1 c2 | c0 c1 c2 | c0 ...    positions x filters: weights repeat
#     channels_first   | p0 p1 p2 p3 p4 p5 ...           positions of one filter: one weight
#
#     for box of positions, some of the filters          a task
#       channels_last: image = what they read, a channel repeated for each of its filters
#       for output depth, for band of rows
#         for phase of height, of width
#           for rectangle of positions with the same taps in range
#             for ROWS rows, for NV vectors: tile           weights are loaded once for the rows
#         activation, phases woven into output rows
#
#                t:  w[t] | vector 0  | vector 1  |
#                         +-----------+-----------+      accumulators; x[t] + i*step is what
#     x[t]          ------+           |           |      the tap multiplies in row i
#     x[t] + step   ------+           |           |
#
# Rows of the tile are rows of the grid, or with whole vectors of filters (`along`) positions of
# one such row, which are stored where they belong. Taps out of range are left out: nothing is
# multiplied by padding, and infinite weights stay where they are.
#
# Packed weights: [tap of depth][of height][of width][filters, then the first NR of them again],
# so that a vector may start at any filter.
from libc.string cimport memcpy
from call cimport Call
from epilogue cimport LINEAR, activate
from geometry cimport Axis, Box, box_at, box_count
from microkernel cimport MOST_TERMS
from scratch cimport Scratch, cut, scratch_at
from simd cimport (
    real, vf, NR, NV, ROWS, VECTOR, REAL_BYTES,
    vload, vload_part, vstore, vstream, vset, vadd, vfma,
)
from tiles cimport largest_phase
from transfer cimport interleave, put_row, put_run


cdef struct Terms:  # a sum, for any number of rows
    Py_ssize_t count
    const real *const *x
    const real *const *w
    const real *bias
    const real *zeros  # instead of the bias
    Py_ssize_t step  # between the rows of x
    Py_ssize_t out_step
    Py_ssize_t period  # of the weights in a row
    Py_ssize_t wrap  # NR modulo that
    bint alike  # one weight for all lanes
    bint stream


ctypedef void (*Tile)(
    const Terms *terms, Py_ssize_t blocks, Py_ssize_t tiles, Py_ssize_t at, Py_ssize_t column,
    real *out, Py_ssize_t length, int rows,
) noexcept nogil


cdef struct Depthwise:
    Tile tile
    Axis axes[3]
    Py_ssize_t side[3]
    Py_ssize_t band  # rows of the grid that are summed before they are stored
    Py_ssize_t channels
    Py_ssize_t filters
    Py_ssize_t repeat  # filters of a channel
    Py_ssize_t voxel  # reals of a position: filters or 1
    Py_ssize_t tap_step[3]  # from a tap's weights to the next one's
    bint along
    bint channels_last
    const real *weights
    const real *bias  # as the weights of a tap
    const real *zeros  # as many, and as many as there are phases of the width


cdef struct Source:
    const real *x  # where position (0, 0, 0) would be
    Py_ssize_t step[3]


cdef struct Space:  # parts of the scratch memory
    const real **x  # per term: what it reads at position (0, 0) of the plane, and its weights
    const real **w
    real *sums  # [phase of height][phase of width][row of the band][reach]
    real *run  # output rows of the band
    real *image  # channels_last: the box's input in whole rows of filters


cdef inline Py_ssize_t reach(const Depthwise *p) noexcept nogil:
    # Reals between rows of sums, off the powers of two that would crowd into a few cache sets.
    cdef Py_ssize_t n = (p.side[2] * p.voxel + NR + VECTOR - 1) // VECTOR * VECTOR
    return n + VECTOR if n // VECTOR % 2 == 0 else n


cdef inline Py_ssize_t run_reach(const Depthwise *p) noexcept nogil:
    return p.axes[2].phases * (p.side[2] * p.voxel + VECTOR)


cdef inline Py_ssize_t depthwise_scratch(
    const Depthwise *p, char *scratch, Space *space
) noexcept nogil:
    # Cuts `scratch` into `space`; returns its size in bytes.
    cdef Py_ssize_t rows = p.band * p.axes[1].phases, terms = sizeof(void *)
    cdef Py_ssize_t image = p.filters
    cdef Scratch memory = scratch_at(scratch)
    cdef int a
    for a in range(3):
        terms *= largest_phase(&p.axes[a])
        image *= min(p.side[a] + p.axes[a].high - p.axes[a].low, p.axes[a].size)
    if not p.channels_last:
        image = -VECTOR
    space.x = <const real **>cut(&memory, terms)
    space.w = <const real **>cut(&memory, terms)
    space.sums = <real *>cut(&memory, rows * p.axes[2].phases * reach(p) * REAL_BYTES)
    space.run = <real *>cut(&memory, (rows * run_reach(p) + VECTOR) * REAL_BYTES)
    space.image = <real *>cut(&memory, (image + VECTOR) * REAL_BYTES)
    return memory.size


cdef inline void repeat_row(
    const real *x, Py_ssize_t n, Py_ssize_t repeat, real *target
) noexcept nogil:
    # target[i*repeat + r] = x[i]; less than a vector past its end is overwritten.
    cdef Py_ssize_t i, r
    if repeat == 1:
        memcpy(target, x, n * REAL_BYTES)
        return
    for i in range(n):
        for r from 0 <= r < repeat by VECTOR:
            vstore(target + i * repeat + r, vset(x[i]))


cdef inline void load_image(
    const Depthwise *p, const Box *box, Py_ssize_t column, Py_ssize_t columns, Source *source,
    real *image,
) noexcept nogil:
    # Worth it for single filters as well: an image has no vectors across two cache lines, and
    # no rows that crowd into a few cache sets.
    cdef Py_ssize_t channel = column // p.repeat
    cdef Py_ssize_t channels = (column + columns - 1) // p.repeat + 1 - channel
    cdef Py_ssize_t lo[3]
    cdef Py_ssize_t n[3]
    cdef Py_ssize_t d, h, w
    cdef const real *row
    cdef real *target = image + channel * p.repeat
    cdef int a
    for a in range(3):
        lo[a] = max(box.lo[a] + p.axes[a].low, 0)
        n[a] = max(min(box.hi[a] + p.axes[a].high, p.axes[a].size) - lo[a], 0)
    for d in range(n[0]):
        for h in range(n[1]):
            row = (
                source.x + (lo[0] + d) * source.step[0] + (lo[1] + h) * source.step[1]
                + lo[2] * source.step[2] + channel
            )
            if channels == p.channels and source.step[2] == channels:
                repeat_row(row, n[2] * channels, p.repeat, target)
                target += n[2] * p.filters
                continue
            for w in range(n[2]):
                repeat_row(row + w * source.step[2], channels, p.repeat, target)
                target += p.filters
    source.step[2] = p.filters
    source.step[1] = n[2] * source.step[2]
    source.step[0] = n[1] * source.step[1]
    source.x = image - (
        lo[0] * source.step[0] + lo[1] * source.step[1] + lo[2] * source.step[2]
    )


cdef inline void tile(
    const Terms *terms, Py_ssize_t blocks, Py_ssize_t tiles, Py_ssize_t at, Py_ssize_t column,
    real *out, Py_ssize_t length, bint part, bint alike, int rows, int nv,
) noexcept nogil:
    # blocks x tiles of rows x nv vectors, which overlap where `length` is less than that. Loops
    # over the rows are innermost and within another, as in microkernel.pxd.
    cdef vf left[ROWS]
    cdef vf right[ROWS]
    cdef vf w0, w1, x
    cdef Py_ssize_t step = terms.step, out_step = terms.out_step
    cdef Py_ssize_t second = min(length - VECTOR, VECTOR) if nv > 1 else 0
    cdef Py_ssize_t m, n, t, c
    cdef const real *source
    cdef real *target
    cdef int i
    for m in range(blocks):
        c = column
        for n in range(tiles):
            for i in range(rows):
                left[i] = vset(0)
                right[i] = vset(0)
            for t in range(terms.count):
                source = terms.x[t] + at + n * NR
                w0 = vset(terms.w[t][c]) if alike else vload(terms.w[t] + c)
                w1 = w0 if alike else vload(terms.w[t] + c + second)
                for i in range(rows):
                    x = vload_part(source, length) if part else vload(source)
                    left[i] = vfma(x, w0, left[i])
                    if nv > 1:
                        right[i] = vfma(vload(source + second), w1, right[i])
                    source += step
            # The bias comes last: no partial sum then rounds as coarsely as a large one makes it.
            w0 = vset(terms.bias[c]) if alike else vload(terms.bias + c)
            w1 = w0 if alike else vload(terms.bias + c + second)
            target = out + n * NR
            if terms.stream:
                for i in range(rows):
                    vstream(target, vadd(left[i], w0))
                    if nv > 1:
                        vstream(target + VECTOR, vadd(right[i], w1))
                    target += out_step
            else:
                for i in range(rows):
                    vstore(target, vadd(left[i], w0))
                    if nv > 1:
                        vstore(target + second, vadd(right[i], w1))
                    target += out_step
            if not alike:
                c += terms.wrap
                if c >= terms.period:
                    c -= terms.period
        at += rows * step
        out += rows * out_step


cdef inline void tile_shaped(
    const Terms *terms, Py_ssize_t blocks, Py_ssize_t tiles, Py_ssize_t at, Py_ssize_t column,
    real *out, Py_ssize_t length, int rows,
) noexcept nogil:
    if length < VECTOR:
        if terms.alike:
            tile(terms, blocks, tiles, at, column, out, length, True, True, rows, 1)
        else:
            tile(terms, blocks, tiles, at, column, out, length, True, False, rows, 1)
    elif length > VECTOR:
        if terms.alike:
            tile(terms, blocks, tiles, at, column, out, length, False, True, rows, NV)
        else:
            tile(terms, blocks, tiles, at, column, out, length, False, False, rows, NV)
    elif terms.alike:
        tile(terms, blocks, tiles, at, column, out, length, False, True, rows, 1)
    else:
        tile(terms, blocks, tiles, at, column, out, length, False, False, rows, 1)


cdef inline void depthwise_tile_rows(
    const Terms *terms, Py_ssize_t blocks, Py_ssize_t tiles, Py_ssize_t at, Py_ssize_t column,
    real *out, Py_ssize_t length, int rows,
) noexcept nogil:
    # A constant shape for every call: only then do the accumulators live in registers.
    if rows == 1:
        tile_shaped(terms, blocks, tiles, at, column, out, length, 1)
    elif rows == 2:
        tile_shaped(terms, blocks, tiles, at, column, out, length, 2)
    elif rows == 4:
        tile_shaped(terms, blocks, tiles, at, column, out, length, 4)
    else:
        tile_shaped(terms, blocks, tiles, at, column, out, length, ROWS)


cdef inline void tile_blocks(
    Tile call_tile, const Terms *terms, Py_ssize_t at, Py_ssize_t column, real *out,
    Py_ssize_t length, int rows,
) noexcept nogil:
    # The same for any number of terms, by adding sums of MOST_TERMS of them.
    cdef real sums[ROWS * NR]
    cdef Terms block = terms[0]
    cdef Py_ssize_t low, i, j
    block.stream = False
    block.count = MOST_TERMS
    call_tile(&block, 1, 1, at, column, out, length, rows)
    block.bias = terms.zeros
    block.out_step = NR
    for low from MOST_TERMS <= low < terms.count by MOST_TERMS:
        block.x = terms.x + low
        block.w = terms.w + low
        block.count = min(MOST_TERMS, terms.count - low)
        call_tile(&block, 1, 1, at, column, sums, length, rows)
        for i in range(rows):
            for j in range(length):
                out[i * terms.out_step + j] += sums[i * NR + j]


cdef inline void sum_rows(
    Tile call_tile, const Terms *terms, Py_ssize_t rows, Py_ssize_t length, Py_ssize_t at,
    Py_ssize_t column, real *out,
) noexcept nogil:
    # `rows` rows of `length` reals. A last vector that is not whole begins further left, and
    # computes again what it shares with the one before.
    cdef Py_ssize_t v, c, tiles, blocks
    cdef bint long = terms.count > MOST_TERMS
    cdef int some = ROWS
    while rows > 0:
        while some > rows:
            some //= 2
        blocks = 1 if long else rows // some
        v = 0
        while v < length:
            if length >= VECTOR:
                v = min(v, length - VECTOR)
            c = column
            if not terms.alike:
                c += v if v < terms.period else v % terms.period
            tiles = 1 if long else max((length - v) // NR, 1)
            if long:
                tile_blocks(call_tile, terms, at + v, c, out + v, min(length - v, NR), some)
            else:
                call_tile(terms, blocks, tiles, at + v, c, out + v, min(length - v, NR), some)
            v += tiles * NR
        rows -= blocks * some
        at += blocks * some * terms.step
        out += blocks * some * terms.out_step


cdef inline Py_ssize_t same_taps(
    const Axis *axis, Py_ssize_t phase, Py_ssize_t j, Py_ssize_t stop, Py_ssize_t *taps
) noexcept nogil:
    # taps[0:2] = the taps that are in range at position j; returns where that ends. They are
    # neighbours, as the offsets fall from tap to tap.
    cdef Py_ssize_t q, offset
    taps[0] = taps[1] = axis.start[phase]
    for q in range(axis.start[phase], axis.start[phase + 1]):
        offset = axis.offset[q]
        if j + offset >= axis.size:
            taps[0] = taps[1] = q + 1
        elif j + offset >= 0:
            taps[1] = q + 1
            stop = min(stop, axis.size - offset)
        else:
            stop = min(stop, -offset)
    return stop


cdef inline Py_ssize_t name_terms(
    const Depthwise *p, const Source *source, Py_ssize_t d, const Py_ssize_t *depth,
    const Py_ssize_t *height, const Py_ssize_t *width, const Space *space,
) noexcept nogil:
    cdef const Axis *axes = &p.axes[0]
    cdef Py_ssize_t q, r, s, count = 0
    cdef const real *x
    cdef const real *w
    for q in range(depth[0], depth[1]):
        for r in range(height[0], height[1]):
            x = (
                source.x + (d + axes[0].offset[q]) * source.step[0]
                + axes[1].offset[r] * source.step[1]
            )
            w = p.weights + axes[0].tap[q] * p.tap_step[0] + axes[1].tap[r] * p.tap_step[1]
            for s in range(width[0], width[1]):
                space.x[count] = x + axes[2].offset[s] * source.step[2]
                space.w[count] = w + axes[2].tap[s] * p.tap_step[2]
                count += 1
    return count


cdef inline void sum_phase(
    const Depthwise *p, const Source *source, const Box *box, Py_ssize_t d,
    const Py_ssize_t *depth, Py_ssize_t band, Py_ssize_t band_end, Py_ssize_t ph, Py_ssize_t pw,
    Py_ssize_t column, Py_ssize_t columns, const Space *space, bint stream,
    real *out, Py_ssize_t row_step, Py_ssize_t voxel_step,
) noexcept nogil:
    # Rows band <= h < band_end of one phase; `out` is for position (band, box.lo[2]).
    cdef Py_ssize_t height[2]
    cdef Py_ssize_t width[2]
    cdef Py_ssize_t h, h_end, w, w_end, i, at
    cdef Py_ssize_t shift = column if p.along else 0
    cdef Py_ssize_t rows = min(band_end, p.axes[1].count[ph])
    cdef Py_ssize_t positions = min(box.hi[2], p.axes[2].count[pw])
    cdef real *target
    cdef Terms terms
    terms.x = space.x
    terms.w = space.w
    terms.bias = p.bias
    terms.zeros = p.zeros
    terms.alike = p.voxel == 1
    terms.period = p.voxel
    terms.wrap = NR % p.voxel
    terms.stream = stream
    terms.step = source.step[2] if p.along else source.step[1]
    terms.out_step = voxel_step if p.along else row_step
    h = band
    while h < rows:
        h_end = same_taps(&p.axes[1], ph, h, rows, height)
        w = box.lo[2]
        while w < positions:
            w_end = same_taps(&p.axes[2], pw, w, positions, width)
            terms.count = name_terms(p, source, d, depth, height, width, space)
            at = h * source.step[1] + w * source.step[2] + shift
            target = out + (h - band) * row_step + (w - box.lo[2]) * voxel_step + shift
            for i in range(h_end - h if p.along else 1):
                sum_rows(
                    p.tile, &terms,
                    w_end - w if p.along else h_end - h,
                    columns if p.along else (w_end - w) * p.voxel,
                    at + i * source.step[1], column, target + i * row_step,
                )
            w = w_end
        h = h_end


cdef inline void weave_phases(
    const real *sums, Py_ssize_t step, const real *zeros, Py_ssize_t phases, Py_ssize_t n,
    Py_ssize_t voxel, real *target,
) noexcept nogil:
    # The voxels of the phases in turn; writes up to (phases + 1) * VECTOR reals past the end.
    cdef Py_ssize_t i, q, v
    if voxel == 1:
        interleave(sums, step, zeros, phases, n, target, False)
        return
    for i in range(n):
        for q in range(phases):
            for v from 0 <= v < voxel by VECTOR:
                vstore(target + v, vload(sums + q * step + i * voxel + v))
            target += voxel


cdef inline void put_positions(
    const Depthwise *p, const Call *call, real *y, const Box *box, real *sums, Py_ssize_t step,
    Py_ssize_t column, Py_ssize_t columns,
) noexcept nogil:
    # One output row voxel by voxel.
    cdef const Axis *axis = &p.axes[2]
    cdef Py_ssize_t q, j
    cdef real *target
    cdef real *row
    for q in range(axis.phases):
        for j in range(box.lo[2], min(box.hi[2], axis.count[q])):
            target = y + (axis.stride * j + axis.first[q]) * call.y_step[3]
            row = sums + q * step + (j - box.lo[2]) * p.voxel
            if p.voxel == 1:
                target[0] = row[0]
            else:
                put_row(target + column, row + column, columns, p.along and call.stream)


cdef inline void store_band(
    const Depthwise *p, const Call *call, real *y, const Box *box, Py_ssize_t band,
    Py_ssize_t band_end, Py_ssize_t column, Py_ssize_t columns, const Space *space,
) noexcept nogil:
    cdef const Axis *axis = &p.axes[1]
    cdef const Axis *along = &p.axes[2]
    cdef Py_ssize_t n = box.hi[2] - box.lo[2]
    cdef Py_ssize_t length = (
        min(along.stride * box.hi[2], along.out) - along.stride * box.lo[2]
    ) * p.voxel
    cdef Py_ssize_t start = along.stride * box.lo[2] * call.y_step[3]
    cdef Py_ssize_t step = p.band * reach(p)
    cdef Py_ssize_t h, q, ph, filled = 0
    cdef bint dense = (
        not p.along and along.phases == along.stride
        and (call.y_step[3] == p.voxel or along.out == 1)
    )
    # Rows that lie side by side in memory are written as one.
    cdef bint side_by_side = (
        dense and axis.phases == axis.stride and n == along.grid and call.y_step[2] == length
    )
    cdef Py_ssize_t row_step = reach(p)
    cdef Py_ssize_t lanes = (n * p.voxel + VECTOR - 1) // VECTOR * VECTOR
    cdef real *sums
    cdef real *target
    for h in range(band, band_end):
        for ph in range(axis.phases):
            if h >= axis.count[ph]:
                continue
            sums = space.sums + ph * along.phases * step + (h - band) * row_step
            if call.act.code != LINEAR:
                for q in range(along.phases):
                    activate(sums + q * step, lanes, &call.act)
            target = y + (axis.stride * h + axis.first[ph]) * call.y_step[2]
            if not dense:
                put_positions(p, call, target, box, sums, step, column, columns)
                continue
            weave_phases(sums, step, p.zeros, along.phases, n, p.voxel, space.run + filled)
            if side_by_side:
                filled += length
            else:
                put_run(target + start, space.run, length, call.stream)
    if side_by_side:
        put_run(y + axis.stride * band * call.y_step[2], space.run, filled, call.stream)


cdef inline void fill_box(
    const Depthwise *p, const Call *call, const Source *source, real *y, const Box *box,
    Py_ssize_t column, Py_ssize_t columns, const Space *space,
) noexcept nogil:
    # Some columns of a channels_last box, or one filter of a channels_first box.
    cdef const Axis *axes = &p.axes[0]
    cdef Py_ssize_t depth[2]
    cdef Py_ssize_t d, q, ph, pw, band, end
    cdef bint direct = p.along and call.act.code == LINEAR
    cdef bint stream = direct and call.stream and call.vectors
    cdef Py_ssize_t row_step = axes[1].stride * call.y_step[2] if direct else reach(p)
    cdef Py_ssize_t voxel_step = axes[2].stride * call.y_step[3] if direct else p.voxel
    cdef real *plane
    cdef real *out
    for d in range(box.lo[0], box.hi[0]):
        for q in range(axes[0].phases):
            if d >= axes[0].count[q]:
                continue
            same_taps(&axes[0], q, d, d + 1, depth)
            plane = y + (axes[0].stride * d + axes[0].first[q]) * call.y_step[1]
            for band from box.lo[1] <= band < box.hi[1] by p.band:
                end = min(band + p.band, box.hi[1])
                for ph in range(axes[1].phases):
                    for pw in range(axes[2].phases):
                        if direct:
                            out = (
                                plane + band * row_step + axes[1].first[ph] * call.y_step[2]
                                + box.lo[2] * voxel_step + axes[2].first[pw] * call.y_step[3]
                            )
                        else:
                            out = space.sums + (ph * axes[2].phases + pw) * p.band * row_step
                        sum_phase(
                            p, source, box, d, depth, band, end, ph, pw, column, columns,
                            space, stream, out, row_step, voxel_step,
                        )
                if not direct:
                    store_band(p, call, plane, box, band, end, column, columns, space)


cdef inline Py_ssize_t depthwise_units(const Depthwise *p) noexcept nogil:
    # Parts that the filters may be cut into.
    if not p.channels_last:
        return p.filters
    return (p.filters + NR - 1) // NR if p.along else 1


cdef inline void depthwise_task(
    const void *plan, const Call *call, Py_ssize_t index, char *scratch
) noexcept nogil:
    cdef const Depthwise *p = <const Depthwise *>plan
    cdef Py_ssize_t units = depthwise_units(p)
    cdef Py_ssize_t boxes = box_count(p.side, p.axes)
    cdef Py_ssize_t chunk = index % call.chunks
    cdef Py_ssize_t first = chunk * units // call.chunks
    cdef Py_ssize_t last = (chunk + 1) * units // call.chunks
    cdef Py_ssize_t sample = index // call.chunks // boxes
    cdef Box box = box_at(index // call.chunks % boxes, p.side, p.axes)
    cdef const real *x = call.x + sample * call.x_step[0]
    cdef real *y = call.y + sample * call.y_step[0]
    cdef Py_ssize_t f, columns = 1
    cdef Source source
    cdef Space space
    depthwise_scratch(p, scratch, &space)
    for f in range(3):
        source.step[f] = call.x_step[f + 1]
    source.x = x
    if p.channels_last:
        columns = p.filters
        if p.along:
            columns = min(last * NR, p.filters) - first * NR
            first *= NR
        last = first + 1
        load_image(p, &box, first, columns, &source, space.image)
    for f in range(first, last):
        if not p.channels_last:
            source.x = x + f // p.repeat * call.x_channel
        fill_box(
            p, call, &source, y if p.channels_last else y + f * call.y_channel, &box,
            f, columns, &space,
        )
