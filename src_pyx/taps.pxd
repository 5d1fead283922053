# The taps algorithm: positions across the lanes of the vectors, for few filters.
#
# With one to eight filters the tiles algorithm would leave most lanes idle. Here the rows
# of the register tile are taps x filters (weights are what is broadcast), its columns are
# consecutive positions of one input row, and every product belongs to an output row at a
# fixed shift:
#
#     for box of positions                           a task
#       for input row (depth, height) that reaches it
#         panel = the row as [channel][position]
#         for block of NR positions, for MR rows of taps x filters: tile
#           sums[output row][stream][position - offset] += the tile's row
#       bias, activation, streams interleaved into output rows
#
# A stream is a (phase of the width, filter): [phase][filter] for channels_last and
# [filter][phase] for channels_first, the order in which they alternate in memory. Sums have
# a margin before them, so that shifted rows need no bounds: what falls beyond a sum on either side
# goes to its own margin or the next one's, and is dropped.
#
# Without overlap of the taps (kernel = stride) every sum has one addend, and short rows share a
# panel (`lines`), side by side; woven.pxd does not keep their sums. Whatever is added to an
# output comes by input row, block of channels, position, each ascending: the order depends
# neither on the box nor on blocks of NR.
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset
from call cimport Call
from epilogue cimport LINEAR, activate
from geometry cimport Axis, Box, box_at, box_count
from microkernel cimport depth_block
from scratch cimport Scratch, cut, scratch_at
from simd cimport real, vf, MR, NR, VECTOR, REAL_BYTES, VECTOR_BYTES, vload, vstore, vset, vadd
from transfer cimport interleave, put_voxels, put_woven, transpose_into
from woven cimport WovenTile


cdef struct Taps:
    Axis axes[3]
    Py_ssize_t side[3]
    Py_ssize_t channels
    Py_ssize_t filters
    Py_ssize_t rows  # taps of the width x filters: rows of the tile per tap of depth, height
    Py_ssize_t streams
    Py_ssize_t left  # margin of a sum
    Py_ssize_t reach  # from sum to sum: margin and positions
    Py_ssize_t lines  # input rows that lie in a panel side by side
    bint overlap
    bint plain  # every sum has one addend
    const Py_ssize_t *row  # [stream]: its [tap of width][filter]
    Py_ssize_t woven  # and woven.pxd stores so many streams at once; or 0
    WovenTile weave
    bint channels_last
    const real *weights  # [tap of depth][of height][of width][filter][channel]
    const Py_ssize_t *shift  # [tap of width][filter]: stream * reach - offset
    Py_ssize_t taps[2]  # of depth, height
    const Py_ssize_t *first[2]  # per tap of these: its phase's first output,
    const Py_ssize_t *count[2]  # how many positions that has,
    const Py_ssize_t *offset[2]  # and the tap's offset
    const real *bias  # [stream]
    const real *no_bias  # zeros


cdef struct Room:  # parts of the scratch memory
    real *sums  # [output depth][output height][stream][reach]
    real *panel  # [channel][position]
    const real **weights  # rows of the tile, and the sums that their products go to
    real **targets
    const real **bias  # of these rows
    real *mixed  # an output row


cdef inline Py_ssize_t panel_row(const Taps *p) noexcept nogil:
    # Whole tiles, and off the powers of two that would crowd into a few cache sets.
    cdef Py_ssize_t n = p.lines * (p.side[2] + p.axes[2].high - p.axes[2].low)
    n = (n + NR - 1) // NR * NR
    return n + VECTOR if n % 256 == 0 else n


cdef inline Py_ssize_t sum_reals(const Taps *p) noexcept nogil:
    cdef Py_ssize_t rows = p.side[0] * p.axes[0].stride * p.side[1] // p.lines * p.axes[1].stride
    return rows * p.streams * p.reach + p.left


cdef inline Py_ssize_t taps_scratch(const Taps *p, char *scratch, Room *room) noexcept nogil:
    # Cuts `scratch` into `room`; returns its size in bytes.
    cdef Py_ssize_t rows = (p.taps[0] * p.taps[1] * p.rows + MR) * sizeof(void *)
    cdef Scratch memory = scratch_at(scratch)
    room.sums = <real *>cut(&memory, sum_reals(p) * REAL_BYTES)
    room.panel = <real *>cut(&memory, p.channels * panel_row(p) * REAL_BYTES)
    room.mixed = <real *>cut(&memory, p.streams * (p.reach + 2 * VECTOR) * REAL_BYTES)
    room.weights = <const real **>cut(&memory, rows)
    room.targets = <real **>cut(&memory, rows)
    room.bias = <const real **>cut(&memory, rows)
    return memory.size


cdef inline void load_rows(
    const Taps *p, const Call *call, const real *x, Py_ssize_t lines, Py_ssize_t n,
    Py_ssize_t row, real *panel,
) noexcept nogil:
    # panel[channel][line * n + position] = the input rows. `multiply_row` had them fetched: nearer
    # yet would cost the quickest of transposes more than it saves.
    cdef Py_ssize_t c, i
    cdef bint fetch = VECTOR_BYTES < 64 or REAL_BYTES > 4
    if p.channels_last:
        for i in range(lines):
            transpose_into(
                x + i * call.x_step[2], call.x_step[3], n, p.channels, panel + i * n, row, fetch
            )
    else:
        for c in range(p.channels):
            for i in range(lines):
                memcpy(
                    panel + c * row + i * n, x + c * call.x_channel + i * call.x_step[2],
                    n * REAL_BYTES,
                )


cdef inline bint within(
    const Taps *p, const Box *box, int a, Py_ssize_t tap, Py_ssize_t row
) noexcept nogil:
    # Whether an input row meets this tap within the box.
    cdef Py_ssize_t i = row - p.offset[a][tap]
    return box.lo[a] <= i and i < min(box.hi[a], p.count[a][tap])


cdef inline bint meets_all(const Taps *p, const Box *box, Py_ssize_t h) noexcept nogil:
    # Whether it meets all taps of the height.
    cdef Py_ssize_t r
    for r in range(p.taps[1]):
        if not within(p, box, 1, r, h):
            return False
    return True


cdef inline Py_ssize_t sums_at(const Taps *p, const Box *box, Py_ssize_t h) noexcept nogil:
    # From the sums of the box's first row to those of row h
    return (h - box.lo[1]) // p.lines * p.axes[1].stride * p.streams * p.reach


cdef inline Py_ssize_t reached(
    const Taps *p, const Box *box, Py_ssize_t d, Py_ssize_t h, const Room *room
) noexcept nogil:
    # The rows of weights that input row (d, h) meets within the box, and the sums they go to,
    # less `sums_at` h: then the next row has the same, if both meet all taps of the height.
    cdef Py_ssize_t q, r, t, i, j, count = 0
    for q in range(p.taps[0]):
        if not within(p, box, 0, q, d):
            continue
        i = (d - p.offset[0][q] - box.lo[0]) * p.axes[0].stride + p.first[0][q]
        i *= p.side[1] // p.lines * p.axes[1].stride
        for r in range(p.taps[1]):
            if not within(p, box, 1, r, h):
                continue
            j = i + p.first[1][r] - p.offset[1][r] * p.axes[1].stride
            for t in range(p.rows - 1, -1, -1):  # by position, as block follows block
                room.weights[count] = p.weights + ((q * p.taps[1] + r) * p.rows + t) * p.channels
                room.targets[count] = room.sums + j * p.streams * p.reach + p.left + p.shift[t]
                count += 1
    return count


cdef inline void multiply_row(
    const Taps *p, const Call *call, const Room *room, Py_ssize_t row, Py_ssize_t n, Py_ssize_t count,
    Py_ssize_t shift, const real *next_x,
) noexcept nogil:
    # The panel's n positions times `count` rows of weights, into sums `shift` further on. The next
    # row is fetched meanwhile, if its channels lie side by side.
    cdef Py_ssize_t j, low
    cdef Py_ssize_t block = depth_block(p.channels)
    cdef Py_ssize_t tiles = (count + MR - 1) // MR
    cdef Py_ssize_t terms = tiles * p.channels  # that NR positions take
    cdef Py_ssize_t pace = (NR * call.x_step[3] + terms - 1) // terms if p.channels_last else 0
    for low from 0 <= low < p.channels by block:
        for j from 0 <= j < n by NR:
            call.tile[n - j > VECTOR](
                count, 1, low, min(low + block, p.channels), room.weights, MR,
                room.panel + low * row + j, row,
                <const real *const *>room.targets if p.overlap or low > 0 else NULL,
                NULL, room.targets, shift + j, False,
                next_x + j * call.x_step[3] + low * tiles * pace, pace,
            )


cdef inline bint stores_woven(const Taps *p, const Call *call, const Box *box) noexcept nogil:
    # Whether all outputs of the box are whole vectors of woven streams.
    cdef Py_ssize_t n = box.hi[2] - box.lo[2]
    cdef bint aligned = (<uintptr_t>call.y) % VECTOR_BYTES == 0
    cdef int a
    for a in range(3):
        aligned = aligned and call.y_step[a] % VECTOR == 0
    if not p.channels_last:
        aligned = aligned and call.y_channel % VECTOR == 0
    elif call.y_step[3] != p.filters:
        return False
    return (
        p.woven > 0 and call.act.code == LINEAR and (aligned or not call.stream)
        and n % VECTOR == 0 and box.lo[2] % VECTOR == 0
        and p.axes[2].stride * box.hi[2] <= p.axes[2].out
    )


cdef inline Py_ssize_t point_woven(
    const Taps *p, const Call *call, real *y, Py_ssize_t d, Py_ssize_t h, const Room *room
) noexcept nogil:
    # As `reached`; the rows' targets are outputs, from the first of the row on.
    cdef Py_ssize_t q, r, s, i, count = 0
    cdef const real *weights
    cdef real *row
    for q in range(p.taps[0]):
        if d >= p.count[0][q]:
            continue
        for r in range(p.taps[1]):
            if h >= p.count[1][r]:
                continue
            row = (
                y + (d * p.axes[0].stride + p.first[0][q]) * call.y_step[1]
                + (h * p.axes[1].stride + p.first[1][r]) * call.y_step[2]
            )
            weights = p.weights + (q * p.taps[1] + r) * p.rows * p.channels
            for s from 0 <= s < p.streams by p.woven:
                for i in range(s, s + p.woven):
                    room.weights[count] = weights + p.row[i] * p.channels
                    room.targets[count] = row
                    room.bias[count] = p.bias + i
                    count += 1
                row += call.y_channel
    return count


cdef inline void multiply_woven(
    const Taps *p, const Call *call, const Room *room, Py_ssize_t row, Py_ssize_t lines,
    Py_ssize_t n, Py_ssize_t count,
) noexcept nogil:
    # Vectors of the panel, which lie in its lines of n positions, times `count` rows of weights.
    cdef Py_ssize_t step = p.axes[1].stride * call.y_step[2]
    cdef Py_ssize_t j, k
    for j from 0 <= j < lines * n by NR:
        k = j + VECTOR
        p.weave(
            count, <int>p.woven, p.channels, room.weights, room.panel + j, row, room.bias,
            room.targets, j // n * step + p.woven * (j % n), k // n * step + p.woven * (k % n),
            k < lines * n, call.stream,
        )


cdef inline void finish_streams(
    const Taps *p, const Call *call, real *sums, Py_ssize_t n
) noexcept nogil:
    # Bias and activation in place, for activations: bias alone is added on the way out.
    cdef Py_ssize_t s, i
    cdef vf b
    for s in range(p.streams):
        b = vset(p.bias[s])
        for i from 0 <= i < n by VECTOR:
            vstore(sums + i, vadd(vload(sums + i), b))
        activate(sums, (n + VECTOR - 1) // VECTOR * VECTOR, &call.act)
        sums += p.reach


cdef inline void store_rows(
    const Taps *p, const Call *call, real *y, const Box *box, Room *room
) noexcept nogil:
    cdef Py_ssize_t d, h, f, i, n, length
    cdef Py_ssize_t phases = p.axes[2].stride
    cdef const real *bias = p.bias
    cdef real *sums
    cdef real *target
    n = box.hi[2] - box.lo[2]
    length = min(phases * n, p.axes[2].out - phases * box.lo[2])
    y += phases * box.lo[2] * call.y_step[3]
    if call.act.code != LINEAR:
        bias = p.no_bias
    for d in range(box.lo[0] * p.axes[0].stride, min(box.hi[0] * p.axes[0].stride, p.axes[0].out)):
        for h in range(
            box.lo[1] * p.axes[1].stride, min(box.hi[1] * p.axes[1].stride, p.axes[1].out)
        ):
            i = h // p.axes[1].stride - box.lo[1]
            sums = room.sums + p.left + p.streams * p.reach * (
                ((d - box.lo[0] * p.axes[0].stride) * (p.side[1] // p.lines) + i // p.lines)
                * p.axes[1].stride + h % p.axes[1].stride
            )
            target = y + d * call.y_step[1] + h * call.y_step[2]
            if call.act.code != LINEAR and i % p.lines == 0:
                finish_streams(p, call, sums, n * min(p.lines, box.hi[1] - box.lo[1] - i))
            sums += i % p.lines * n
            if not p.channels_last:
                for f in range(p.filters):
                    put_woven(
                        sums + f * phases * p.reach, p.reach, bias + f * phases, phases,
                        length, target + f * call.y_channel, call.stream, room.mixed,
                    )
            elif call.y_step[3] == p.filters:
                put_woven(
                    sums, p.reach, bias, p.streams, p.filters * length, target,
                    call.stream, room.mixed,
                )
            else:
                interleave(sums, p.reach, bias, p.streams, n, room.mixed, False)
                put_voxels(target, call.y_step[3], p.filters, 0, room.mixed, p.filters * length)


cdef inline void taps_task(
    const void *plan, const Call *call, Py_ssize_t index, char *scratch
) noexcept nogil:
    cdef const Taps *p = <const Taps *>plan
    cdef Py_ssize_t boxes = box_count(p.side, p.axes)
    cdef Py_ssize_t d, h, w, n, some, stop, count
    cdef Py_ssize_t row = panel_row(p)
    cdef const real *x
    cdef real *y
    cdef bint woven, whole
    cdef Box box = box_at(index % boxes, p.side, p.axes)
    cdef Room room
    taps_scratch(p, scratch, &room)
    w = max(box.lo[2] + p.axes[2].low, 0)
    n = min(box.hi[2] + p.axes[2].high, p.axes[2].size) - w
    x = call.x + index // boxes * call.x_step[0] + w * call.x_step[3]
    y = call.y + index // boxes * call.y_step[0]
    woven = stores_woven(p, call, &box)
    if not p.plain:
        memset(room.sums, 0, sum_reals(p) * REAL_BYTES)
    if n < row:  # positions that no input fills
        memset(room.panel, 0, p.channels * row * REAL_BYTES)
    if n > 0:
        for d in range(
            max(box.lo[0] + p.axes[0].low, 0),
            min(box.hi[0] + p.axes[0].high, p.axes[0].size),
        ):
            whole = False
            stop = min(box.hi[1] + p.axes[1].high, p.axes[1].size)
            for h from max(box.lo[1] + p.axes[1].low, 0) <= h < stop by p.lines:
                if woven:
                    count = point_woven(p, call, y + p.woven * box.lo[2], d, h, &room)
                elif not (whole and meets_all(p, &box, h)):
                    count = reached(p, &box, d, h, &room)
                    whole = meets_all(p, &box, h)
                if count == 0:
                    continue
                some = min(p.lines, stop - h)
                load_rows(
                    p, call, x + d * call.x_step[1] + h * call.x_step[2], some, n, row, room.panel
                )
                if woven:
                    multiply_woven(p, call, &room, row, some, n, count)
                    continue
                multiply_row(
                    p, call, &room, row, some * n, count, sums_at(p, &box, h) + w - box.lo[2],
                    x + d * call.x_step[1] + (h + p.lines) * call.x_step[2],
                )
    if not woven:
        store_rows(p, call, y, &box, &room)
