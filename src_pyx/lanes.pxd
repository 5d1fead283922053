# The lanes algorithm: gather by phase, positions across the lanes, for few filters and channels.
#
# The twin of the tiles algorithm: within a phase every output position is a sum over the same
# taps, here a row of weights times an image of the input:
#
#     for box of positions                             a task
#       image = its input as [depth][channel][height][pitch], zeros beyond the edges
#       for depth of the box, phase of depth, of height
#         for phase of width, for some filters: lanes_tile
#           sums[phase][filter][position] = weights[tap][channel][filter] * image[tap][position]
#         activation, streams interleaved into output rows
#
# Rows of a plane touch, so that a tap is a constant shift and the positions of a plane are one
# run, whatever the width; where the run passes the end of a row it computes what nobody reads.
# Nothing but the results is written, which is what the taps algorithm spends its time on
# where channels are few; there the image would be large.
#
# A tile is mr filters by SUMS // mr vectors of positions: one broadcast weight meets many
# vectors, which are loaded at any address.
from libc.string cimport memcpy, memset
from call cimport Call
from epilogue cimport LINEAR, activate
from geometry cimport Axis, Box, box_at, ceil_div, even_part
from microkernel cimport depth_block, tap_block
from scratch cimport Scratch, cut, scratch_at
from simd cimport (
    real, vf, MOST_FILTERS, MOST_VECTORS, REAL_BYTES, REGISTERS, SUMS, VECTOR, vadd, vfma, vload, vset,
    vstore,
)
from transfer cimport interleave, put_voxels, put_woven, transpose_into


ctypedef void (*LanesTile)(
    Py_ssize_t positions, Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high,
    const real *const *a, const real *const *b, Py_ssize_t ldb, const real *bias,
    bint more, real *out, Py_ssize_t ldo, int mr,
) noexcept nogil


cdef struct Lanes:
    Axis axes[3]
    Py_ssize_t side[3]
    Py_ssize_t channels
    Py_ssize_t filters
    Py_ssize_t some  # filters of a tile
    Py_ssize_t streams  # (phase of the width, filter), in the order of the output
    Py_ssize_t pitch  # positions of a row of the image
    Py_ssize_t height  # rows of a plane
    Py_ssize_t lane  # from channel to channel of a plane
    Py_ssize_t span  # from stream to stream of the sums
    bint channels_last
    const real *weights  # [tap][some filters][channel][filter]
    const real *bias  # [filter]
    const real *spread  # the same, [stream]
    const real *zeros  # [stream]
    LanesTile tile


cdef struct LanesRoom:  # parts of the scratch memory
    real *image
    real *sums
    real *mixed  # an output row
    const real **weights  # [tap of a phase]
    const real **inputs


cdef inline void lanes_sized(
    Py_ssize_t positions, Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high,
    const real *const *a, const real *const *b, Py_ssize_t ldb, const real *bias,
    bint more, real *out, Py_ssize_t ldo, int mr, int nv,
) noexcept nogil:
    # out[i][0:positions] = sum over t, low <= k < high of a[t][k*mr + i] * b[t][k*ldb:],
    #                     + out if `more`, + bias[i] if that is not NULL
    cdef vf acc[SUMS]
    # The side of the tile that is shorter is kept in registers.
    cdef vf kept[MOST_VECTORS]
    cdef vf passing
    cdef Py_ssize_t at, t, k
    cdef const real *weight
    cdef const real *x
    cdef int i, j
    for at from 0 <= at < positions by nv * VECTOR:
        for i in range(mr):
            for j in range(nv):
                acc[i * nv + j] = vset(0)
        for t in range(taps):
            weight = a[t] + low * mr
            x = b[t] + low * ldb + at
            for k in range(low, high):
                if mr < nv:
                    for i in range(mr):
                        kept[i] = vset(weight[i])
                    for j in range(nv):
                        passing = vload(x + j * VECTOR)
                        for i in range(mr):
                            acc[i * nv + j] = vfma(kept[i], passing, acc[i * nv + j])
                else:
                    for j in range(nv):
                        kept[j] = vload(x + j * VECTOR)
                    for i in range(mr):
                        passing = vset(weight[i])
                        for j in range(nv):
                            acc[i * nv + j] = vfma(passing, kept[j], acc[i * nv + j])
                weight += mr
                x += ldb
        if more:
            for i in range(mr):
                for j in range(nv):
                    acc[i * nv + j] = vadd(acc[i * nv + j], vload(out + i * ldo + j * VECTOR))
        if bias != NULL:
            for i in range(mr):
                passing = vset(bias[i])
                for j in range(nv):
                    acc[i * nv + j] = vadd(acc[i * nv + j], passing)
        for i in range(mr):
            for j in range(nv):
                vstore(out + i * ldo + j * VECTOR, acc[i * nv + j])
        out += nv * VECTOR


cdef inline int vectors_of(int filters) noexcept nogil:
    # Vectors of positions of a tile, whose sums, shorter side and a passing vector are registers.
    cdef int most = min(SUMS // filters, MOST_VECTORS)
    return most if filters * most + min(filters, most) < REGISTERS else most - 1


cdef inline void lanes_rows(
    Py_ssize_t positions, Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high,
    const real *const *a, const real *const *b, Py_ssize_t ldb, const real *bias,
    bint more, real *out, Py_ssize_t ldo, int mr,
) noexcept nogil:
    # Constant sizes for every call: only then do the accumulators live in registers.
    if mr == 1:
        lanes_sized(positions, taps, low, high, a, b, ldb, bias, more, out, ldo, 1, vectors_of(1))
    elif mr == 2:
        lanes_sized(positions, taps, low, high, a, b, ldb, bias, more, out, ldo, 2, vectors_of(2))
    elif mr == 3:
        lanes_sized(positions, taps, low, high, a, b, ldb, bias, more, out, ldo, 3, vectors_of(3))
    elif mr == 4:
        lanes_sized(positions, taps, low, high, a, b, ldb, bias, more, out, ldo, 4, vectors_of(4))
    elif mr == 5 and MOST_FILTERS > 4:
        lanes_sized(positions, taps, low, high, a, b, ldb, bias, more, out, ldo, 5, vectors_of(5))
    elif mr == 6 and MOST_FILTERS > 4:
        lanes_sized(positions, taps, low, high, a, b, ldb, bias, more, out, ldo, 6, vectors_of(6))
    elif mr == 7 and MOST_FILTERS > 6:
        lanes_sized(positions, taps, low, high, a, b, ldb, bias, more, out, ldo, 7, vectors_of(7))
    elif mr == 8 and MOST_FILTERS > 6:
        lanes_sized(positions, taps, low, high, a, b, ldb, bias, more, out, ldo, 8, vectors_of(8))


cdef inline void lanes_shape(Lanes *p) noexcept nogil:
    # What follows from the sides of a box.
    cdef const Axis *width = &p.axes[2]
    p.pitch = p.side[2] + width.high - width.low
    p.height = p.side[1] + p.axes[1].high - p.axes[1].low
    p.lane = p.height * p.pitch
    if p.lane * REAL_BYTES % 512 < 64:  # channels that crowd into a few cache sets
        p.lane += 64 // REAL_BYTES
    p.span = p.side[1] * p.pitch + MOST_VECTORS * VECTOR


cdef inline Py_ssize_t lanes_positions(const Lanes *p) noexcept nogil:
    # Of a plane, in whole tiles
    cdef Py_ssize_t tile = vectors_of(<int>p.some) * VECTOR
    return ceil_div((p.side[1] - 1) * p.pitch + p.side[2], tile) * tile


cdef inline Py_ssize_t image_reals(const Lanes *p) noexcept nogil:
    # The last tile of a run reads on.
    cdef Py_ssize_t planes = p.side[0] + p.axes[0].high - p.axes[0].low
    return planes * p.channels * p.lane + MOST_VECTORS * VECTOR + p.pitch


cdef inline Py_ssize_t lanes_scratch(
    const Lanes *p, char *scratch, LanesRoom *room
) noexcept nogil:
    # Cuts `scratch` into `room`; returns its size in bytes.
    cdef Scratch memory = scratch_at(scratch)
    cdef Py_ssize_t taps = sizeof(void *)
    cdef int a
    for a in range(3):
        taps *= p.axes[a].start[p.axes[a].phases]
    room.image = <real *>cut(&memory, image_reals(p) * REAL_BYTES)
    room.sums = <real *>cut(&memory, p.streams * p.span * REAL_BYTES)
    room.mixed = <real *>cut(&memory, p.streams * (p.side[2] + 3 * VECTOR) * REAL_BYTES)
    room.weights = <const real **>cut(&memory, taps)
    room.inputs = <const real **>cut(&memory, taps)
    return memory.size


cdef inline void clear_columns(
    const Lanes *p, real *row, Py_ssize_t first, Py_ssize_t stop
) noexcept nogil:
    # Zeros in a row of every channel. A loop of few stores: GCC would call memset for each channel.
    cdef Py_ssize_t c, i
    for i in range(first, stop):
        for c in range(p.channels):
            row[c * p.lane + i] = 0


cdef inline void load_planes(
    const Lanes *p, const Call *call, const real *x, const Box *box, real *image
) noexcept nogil:
    # The inputs of a box, zeros beyond the edges.
    cdef Py_ssize_t first[3]
    cdef Py_ssize_t lo[3]
    cdef Py_ssize_t hi[3]
    cdef Py_ssize_t d, h, c, n
    cdef const real *row
    cdef real *target
    cdef int a
    for a in range(3):
        first[a] = box.lo[a] + p.axes[a].low
        lo[a] = max(first[a], 0)
        hi[a] = min(box.hi[a] + p.axes[a].high, p.axes[a].size)
    n = max(hi[2] - lo[2], 0)
    for d in range(first[0], box.hi[0] + p.axes[0].high):
        target = image + (d - first[0]) * p.channels * p.lane
        if d < lo[0] or d >= hi[0]:
            memset(target, 0, p.channels * p.lane * REAL_BYTES)
            continue
        for h in range(first[1], box.hi[1] + p.axes[1].high):
            if h < lo[1] or h >= hi[1] or n == 0:
                for c in range(p.channels):
                    memset(target + c * p.lane, 0, p.pitch * REAL_BYTES)
                target += p.pitch
                continue
            row = x + d * call.x_step[1] + h * call.x_step[2] + lo[2] * call.x_step[3]
            clear_columns(p, target, 0, lo[2] - first[2])
            clear_columns(p, target, lo[2] - first[2] + n, p.pitch)
            if p.channels_last:
                transpose_into(
                    row, call.x_step[3], n, p.channels, target + lo[2] - first[2], p.lane, True
                )
            else:
                for c in range(p.channels):
                    memcpy(
                        target + c * p.lane + lo[2] - first[2], row + c * call.x_channel,
                        n * REAL_BYTES,
                    )
            target += p.pitch


cdef inline Py_ssize_t point_taps(
    const Lanes *p, const Py_ssize_t *phase, Py_ssize_t d, const LanesRoom *room
) noexcept nogil:
    # Weights and inputs of the taps of a phase, for the box's positions of depth d.
    cdef const Axis *axes = &p.axes[0]
    cdef Py_ssize_t q, r, s, tap, taps = 0
    for q in range(axes[0].start[phase[0]], axes[0].start[phase[0] + 1]):
        for r in range(axes[1].start[phase[1]], axes[1].start[phase[1] + 1]):
            for s in range(axes[2].start[phase[2]], axes[2].start[phase[2] + 1]):
                tap = axes[0].tap[q] * axes[1].start[axes[1].phases] + axes[1].tap[r]
                tap = tap * axes[2].start[axes[2].phases] + axes[2].tap[s]
                room.weights[taps] = p.weights + tap * p.filters * p.channels
                room.inputs[taps] = (
                    room.image + (d + axes[0].offset[q] - axes[0].low) * p.channels * p.lane
                    + (axes[1].offset[r] - axes[1].low) * p.pitch
                    + axes[2].offset[s] - axes[2].low
                )
                taps += 1
    return taps


cdef inline void multiply_plane(
    const Lanes *p, const LanesRoom *room, Py_ssize_t taps, Py_ssize_t positions,
    Py_ssize_t stream, Py_ssize_t filter_step,
) noexcept nogil:
    # sums[stream of each filter][position], for one phase.
    cdef Py_ssize_t most_taps = tap_block(p.channels)
    cdef Py_ssize_t most_channels = depth_block(p.channels)
    cdef Py_ssize_t f, t, n, low, high, i
    cdef int mr
    for f from 0 <= f < p.filters by p.some:
        mr = <int>min(p.some, p.filters - f)
        for t from 0 <= t < taps by most_taps:
            n = min(most_taps, taps - t)
            for low from 0 <= low < p.channels by most_channels:
                high = min(low + most_channels, p.channels)
                p.tile(
                    positions, n, low, high, room.weights + t, room.inputs + t, p.lane,
                    p.bias + f if t + n == taps and high == p.channels else NULL, t + low > 0,
                    room.sums + (stream + f * filter_step) * p.span, filter_step * p.span, mr,
                )
        for i in range(taps):
            room.weights[i] += mr * p.channels


cdef inline void store_plane(
    const Lanes *p, const Call *call, real *y, const Box *box, Py_ssize_t rows, Py_ssize_t first,
    const LanesRoom *room,
) noexcept nogil:
    # One phase of depth and height: all output rows, whole.
    cdef Py_ssize_t phases = p.axes[2].stride
    cdef Py_ssize_t n = box.hi[2] - box.lo[2]
    cdef Py_ssize_t length = min(phases * n, p.axes[2].out - phases * box.lo[2])
    cdef Py_ssize_t h, f, s
    cdef const real *sums
    cdef real *target
    if call.act.code != LINEAR:
        for s in range(p.streams):
            activate(
                room.sums + s * p.span, (rows * p.pitch + VECTOR - 1) // VECTOR * VECTOR, &call.act
            )
    for h in range(rows):
        sums = room.sums + h * p.pitch
        target = (
            y + ((box.lo[1] + h) * p.axes[1].stride + first) * call.y_step[2]
            + phases * box.lo[2] * call.y_step[3]
        )
        if not p.channels_last:
            for f in range(p.filters):
                put_woven(
                    sums + f * phases * p.span, p.span, p.zeros, phases, length,
                    target + f * call.y_channel, call.stream, room.mixed,
                )
        elif call.y_step[3] == p.filters:
            put_woven(
                sums, p.span, p.zeros, p.streams, p.filters * length, target, call.stream,
                room.mixed,
            )
        else:
            interleave(sums, p.span, p.zeros, p.streams, n, room.mixed, False)
            put_voxels(target, call.y_step[3], p.filters, 0, room.mixed, p.filters * length)


cdef inline void lanes_task(
    const void *plan, const Call *call, Py_ssize_t index, char *scratch
) noexcept nogil:
    cdef const Lanes *p = <const Lanes *>plan
    cdef const Axis *axes = &p.axes[0]
    cdef Py_ssize_t boxes = 1, d, q, r, s, i, taps, rows, positions
    cdef Py_ssize_t filter_step = 1 if p.channels_last else axes[2].stride
    cdef Py_ssize_t phase_step = p.filters if p.channels_last else 1
    cdef Py_ssize_t phase[3]
    cdef real *y
    cdef Box box
    cdef LanesRoom room
    cdef int a
    for a in range(3):
        boxes *= (axes[a].grid + p.side[a] - 1) // p.side[a]
    lanes_scratch(p, scratch, &room)
    box = box_at(index % boxes, p.side, p.axes)
    load_planes(p, call, call.x + index // boxes * call.x_step[0], &box, room.image)
    for s in range(p.streams):  # what no tap reaches is the bias
        for i in range(p.span):
            room.sums[s * p.span + i] = p.spread[s]
    for d in range(box.hi[0] - box.lo[0]):
        for q in range(axes[0].phases):
            if box.lo[0] + d >= axes[0].count[q]:
                continue
            y = call.y + index // boxes * call.y_step[0] + call.y_step[1] * (
                (box.lo[0] + d) * axes[0].stride + axes[0].first[q]
            )
            for r in range(axes[1].phases):
                rows = min(box.hi[1], axes[1].count[r]) - box.lo[1]
                if rows <= 0:
                    continue
                phase[0] = q
                phase[1] = r
                positions = (rows - 1) * p.pitch + box.hi[2] - box.lo[2]
                for s in range(axes[2].phases):
                    phase[2] = s
                    taps = point_taps(p, phase, d, &room)
                    multiply_plane(
                        p, &room, taps, positions, axes[2].first[s] * phase_step, filter_step
                    )
                store_plane(p, call, y, &box, rows, axes[1].first[r], &room)
