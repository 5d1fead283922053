# The tiles algorithm: gather by phase, channels across the lanes of the vectors.
#
# Within a phase every output position is a sum over the same taps, that is a row of a
# matrix product: positions x (taps, input channels) times (taps, input channels) x columns.
# The left matrix is never built: rows of the register tile are pointers into the input, or
# to zeros where a tap falls off its edge.
#
#     for box of positions, group                  a task, or a part of one
#       for phase of depth, of height              rows = pointers of all positions and taps
#         for block of NR columns
#           for phase of width
#             for block of the sum                   weights stay in the first-level cache
#               for MR positions of the box: tile
#             bias, activation, store
#
# In small volumes many taps fall off the edge, and with many channels zeros cost as much as inputs:
# there (`sparse`) a tap is computed for the positions that it reaches alone. Adding zeros changes no
# bit, so it does not matter who leaves them out.
#
# Columns are the filters of a group. Where the taps of all phases of the width coincide
# (kernel = stride, no overlap), they are phases of the width x filters, which lie side by
# side in a channels_last output: `fused`.
#
# Packed weights, per group and phase (of depth, height, width; panel[phase] is its start):
#
#     block of NR columns 0            block 1                    last block (whole vectors)
#     [tap][channel][NR columns]       [tap][channel][NR]         [tap][channel][1..NV vectors]
#
# channels_first: the box's input is transposed into `scratch`, edges filled with zeros, and
# its results are transposed on their way out, so that the loops in between are the same. A
# filter's outputs are stored in runs, as long as they lie side by side in y: all phases of the
# width, and of the height where it has a phase for every output, are results of one unit.
# Minimal filtering reads such an image in any layout: none of its tiles then has an edge.
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset
from call cimport Call, Grid
from epilogue cimport LINEAR, activate_rows
from geometry cimport Axis, Box, Source, box_at, box_count
from microkernel cimport Tile, depth_block, tap_block
from scratch cimport Scratch, cut, scratch_at
from simd cimport real, MR, NR, NV, VECTOR, REAL_BYTES, VECTOR_BYTES
from transfer cimport (
    LINE, announce_run, gather_block, put_row, put_run, put_voxels, scatter_into,
)
from winograd cimport (
    MOST, SKEW, grid_products, make_grid, multiply_images, outputs_of, pays, products_of,
)


cdef struct Tiles:
    Axis axes[3]
    Py_ssize_t side[3]
    Py_ssize_t channels
    Py_ssize_t depth  # input channels of a group
    Py_ssize_t filters  # of a group
    Py_ssize_t columns
    Py_ssize_t padded  # columns, in whole vectors
    Py_ssize_t blocks
    Py_ssize_t groups
    bint fused
    bint alike  # all phases read the same inputs, and have as many positions
    bint minimal  # winograd.pxd does the products
    bint sparse  # many rows are zeros beyond an edge: products with them are left out
    bint channels_last
    Py_ssize_t spread[3]  # outputs along each axis that a position has in a unit
    Py_ssize_t together  # phases in a unit: channels_first stores them as one
    Py_ssize_t kept  # blocks whose results are kept until all phases of the unit have theirs
    bint far  # the weights outgrow the second-level cache
    const real *packed
    const Py_ssize_t *panel
    Py_ssize_t group_panel  # reals of packed weights of a group
    const real *bias  # [groups][padded]
    const real *zeros  # as many as there are channels


cdef struct Workspace:  # parts of the scratch memory
    const real **rows  # [phase of the unit][tile][tap][MR]
    # The same without zeros, and their sums: [phase of the unit][tap][position]
    const real **reached
    real **reached_sums
    Py_ssize_t *reached_count  # [phase of the unit][tap]
    Py_ssize_t *steps  # [tap]: from a position's input to the tap's
    real **outputs  # [position]: where the rows go, first column
    real **sums  # [kept block][phase of the unit][tile][MR]: rows of `results`
    real *results  # [kept block]([phase of the unit][positions, in whole tiles][NR], bias)
    real *images  # minimal: [product][tile][channels in whole vectors]
    real *products  # minimal: [product][tile][NR]
    real *image  # minimal or channels_first: the box's input, [d][h][w][channels]
    # channels_first:
    const real **sources  # [output of the unit]: its row of `results`
    real **places  # [input of the box]: where it is in the image
    real *line  # [VECTOR filters][RUN and a vector]


cdef struct Reached:  # the rows of each tap that are within the input
    const real **rows  # [tap][position]
    real **sums
    Py_ssize_t *count
    Py_ssize_t positions  # from tap to tap; 0 if nothing is left out


cdef struct Part:  # a phase of a box
    Py_ssize_t phase[3]
    Py_ssize_t hi[3]
    Py_ssize_t positions
    Py_ssize_t taps
    Grid grid
    bint minimal
    const real *panel
    const real **rows
    Reached reached
    Py_ssize_t at  # its first position among those of the unit


cdef struct Runs:  # the outputs of a unit, for channels_first
    Py_ssize_t start[3]
    Py_ssize_t count[3]
    Py_ssize_t step[3]


cdef enum:
    RUN = 256  # outputs of a filter that are transposed before they are stored


cdef inline Py_ssize_t box_positions(const Tiles *p) noexcept nogil:
    # Positions of the largest box, in whole tiles.
    cdef Py_ssize_t n = p.side[0] * p.side[1] * p.side[2]
    return (n + MR - 1) // MR * MR


cdef inline Py_ssize_t block_results(const Tiles *p) noexcept nogil:
    return (p.together * box_positions(p) + 1) * NR


cdef inline Py_ssize_t largest_phase(const Axis *axis) noexcept nogil:
    cdef Py_ssize_t i, most = 0
    for i in range(axis.phases):
        most = max(most, axis.start[i + 1] - axis.start[i])
    return most


cdef inline Py_ssize_t plain_taps(const Tiles *p) noexcept nogil:
    # The most taps of a phase whose positions' rows are pointed to.
    cdef Py_ssize_t d = largest_phase(&p.axes[0])
    cdef Py_ssize_t h = largest_phase(&p.axes[1])
    cdef Py_ssize_t w = largest_phase(&p.axes[2])
    return max(d, h, w) if p.minimal else d * h * w


cdef inline Py_ssize_t vectors(Py_ssize_t count) noexcept nogil:
    return (count + VECTOR - 1) // VECTOR * VECTOR


cdef inline Py_ssize_t minimal_room(const Tiles *p) noexcept nogil:
    # The most products x tiles that a phase has in a box.
    cdef Py_ssize_t room = 1, most, taps, m
    cdef Py_ssize_t q
    cdef int a
    for a in range(3):
        most = 0
        for q in range(p.axes[a].phases):
            taps = p.axes[a].start[q + 1] - p.axes[a].start[q]
            m = outputs_of(taps)
            most = max(most, (p.side[a] + m - 1) // m * products_of(taps))
        room *= most
    return room


cdef inline Py_ssize_t room_of(const Tiles *p, Py_ssize_t width) noexcept nogil:
    # Reals of the products, each in rows of `width`
    return minimal_room(p) * width + MOST * SKEW


cdef inline Py_ssize_t voxel(const Tiles *p) noexcept nogil:
    # Reals of a position in the image of a box.
    return vectors(p.channels) if p.minimal else p.channels


cdef inline Py_ssize_t tiles_scratch(
    const Tiles *p, char *scratch, Workspace *work
) noexcept nogil:
    # Cuts `scratch` into `work`; returns its size in bytes.
    cdef Py_ssize_t phases = p.together
    cdef Py_ssize_t positions = box_positions(p)
    cdef Py_ssize_t taps = plain_taps(p)
    cdef Py_ssize_t image = 1, outputs = 1, places, side, sparse
    cdef Py_ssize_t line = VECTOR * (RUN + VECTOR)
    cdef Scratch memory = scratch_at(scratch)
    cdef int a
    for a in range(3):
        side = p.side[a] + p.axes[a].high - p.axes[a].low
        image *= side if p.minimal else min(side, p.axes[a].size)
        outputs *= p.side[a] * p.spread[a]
    outputs += VECTOR
    places = image
    if p.channels_last:
        places = outputs = line = 0
        if not p.minimal:
            image = 0
    if p.minimal:
        work.images = <real *>cut(&memory, room_of(p, vectors(p.channels)) * REAL_BYTES)
        work.products = <real *>cut(&memory, room_of(p, NR) * REAL_BYTES)
    work.rows = <const real **>cut(&memory, positions * phases * taps * sizeof(void *))
    sparse = positions * phases * taps if p.sparse else 0
    work.reached = <const real **>cut(&memory, sparse * sizeof(void *))
    work.reached_sums = <real **>cut(&memory, sparse * sizeof(void *))
    work.reached_count = <Py_ssize_t *>cut(&memory, phases * taps * sizeof(Py_ssize_t))
    work.steps = <Py_ssize_t *>cut(&memory, taps * sizeof(Py_ssize_t))
    work.outputs = <real **>cut(&memory, positions * sizeof(void *))
    work.sums = <real **>cut(&memory, p.kept * positions * phases * sizeof(void *))
    work.results = <real *>cut(&memory, p.kept * block_results(p) * REAL_BYTES)
    work.sources = <const real **>cut(&memory, outputs * sizeof(void *))
    work.places = <real **>cut(&memory, places * sizeof(void *))
    work.image = <real *>cut(&memory, image * voxel(p) * REAL_BYTES)
    work.line = <real *>cut(&memory, line * REAL_BYTES)
    return memory.size


cdef inline void copy_last(
    const Tiles *p, const Call *call, const real *x, const Py_ssize_t *lo, const Py_ssize_t *hi,
    const Source *source, const Workspace *work,
) noexcept nogil:
    # Inputs lo..hi of a channels_last x into the image.
    cdef Py_ssize_t d, h, w
    cdef const real *row
    cdef real *image
    for d in range(lo[0], hi[0]):
        for h in range(lo[1], hi[1]):
            row = x + d * call.x_step[1] + h * call.x_step[2]
            image = (
                work.image + (d - source.lo[0]) * source.step[0]
                + (h - source.lo[1]) * source.step[1] - source.lo[2] * source.step[2]
            )
            for w in range(lo[2], hi[2]):
                memcpy(
                    image + w * source.step[2], row + w * call.x_step[3],
                    p.channels * REAL_BYTES,
                )


cdef inline void copy_first(
    const Tiles *p, const Call *call, const real *x, const Py_ssize_t *lo, const Py_ssize_t *hi,
    const Source *source, const Workspace *work,
) noexcept nogil:
    # The same of a channels_first x, transposed.
    cdef Py_ssize_t d, h, w, n, some_d = 1, some_h = 1
    cdef real **place = work.places
    cdef real *image
    for d in range(lo[0], hi[0]):
        for h in range(lo[1], hi[1]):
            image = (
                work.image + (d - source.lo[0]) * source.step[0]
                + (h - source.lo[1]) * source.step[1]
            )
            for w in range(lo[2], hi[2]):
                place[0] = image + (w - source.lo[2]) * source.step[2]
                place += 1
    n = max(hi[2] - lo[2], 0)  # rows, and planes, may touch in x
    if call.x_step[2] == n:
        some_h = max(hi[1] - lo[1], 1)
        n *= some_h
        if call.x_step[1] == n:
            some_d = max(hi[0] - lo[0], 1)
            n *= some_d
    place = work.places
    for d from lo[0] <= d < hi[0] by some_d:
        for h from lo[1] <= h < hi[1] by some_h:
            scatter_into(
                x + d * call.x_step[1] + h * call.x_step[2] + lo[2] * call.x_step[3],
                call.x_channel, p.channels, n, place,
            )
            place += n


cdef inline void load_image(
    const Tiles *p, const Call *call, const real *x, const Box *box, Source *source,
    const Workspace *work,
) noexcept nogil:
    # The input of a box -> [d][h][w][channels]; for minimal filtering with zeros around.
    cdef Py_ssize_t lo[3]
    cdef Py_ssize_t hi[3]
    cdef Py_ssize_t positions = 1
    cdef bint clipped = False
    cdef int a
    for a in range(3):
        source.lo[a] = box.lo[a] + p.axes[a].low
        source.hi[a] = box.hi[a] + p.axes[a].high
        if p.minimal:  # whole tiles
            source.hi[a] += (box.hi[a] - box.lo[a]) % 2
        lo[a] = max(source.lo[a], 0)
        hi[a] = max(min(source.hi[a], p.axes[a].size), lo[a])
        if not p.minimal:  # what is not there is not read
            source.lo[a] = lo[a]
            source.hi[a] = hi[a]
        clipped = clipped or hi[a] - lo[a] < source.hi[a] - source.lo[a]
        positions *= source.hi[a] - source.lo[a]
    source.step[2] = voxel(p)
    source.step[1] = source.step[2] * (source.hi[2] - source.lo[2])
    source.step[0] = source.step[1] * (source.hi[1] - source.lo[1])
    source.x = work.image
    if clipped:
        memset(work.image, 0, positions * voxel(p) * REAL_BYTES)
    if p.channels_last:
        copy_last(p, call, x, lo, hi, source, work)
    else:
        copy_first(p, call, x, lo, hi, source, work)


cdef inline bint inside(
    const Source *source, const Axis *axis, int a, Py_ssize_t j
) noexcept nogil:
    return j + axis.low >= source.lo[a] and j + axis.high < source.hi[a]


cdef inline void point_rows(
    const Tiles *p, const Source *source, Py_ssize_t group, const Py_ssize_t *phase,
    const Py_ssize_t *lo, const Py_ssize_t *hi, Py_ssize_t *steps, const real **rows,
) noexcept nogil:
    # rows[tile][tap][MR]: where the tap of that position reads.
    cdef const Axis *axes = &p.axes[0]
    cdef const real *base
    cdef const real *x = source.x + group * p.depth
    cdef Py_ssize_t d, h, w, q, r, s, i, j, k
    cdef Py_ssize_t start[3]
    cdef Py_ssize_t stop[3]
    cdef Py_ssize_t taps = 0, lane = 0
    cdef bint plane, line
    cdef int a
    for a in range(3):
        start[a] = axes[a].start[phase[a]]
        stop[a] = axes[a].start[phase[a] + 1]
    for q in range(start[0], stop[0]):
        for r in range(start[1], stop[1]):
            for s in range(start[2], stop[2]):
                steps[taps] = (
                    axes[0].offset[q] * source.step[0] + axes[1].offset[r] * source.step[1]
                    + axes[2].offset[s] * source.step[2]
                )
                taps += 1
    for d in range(lo[0], hi[0]):
        plane = inside(source, &axes[0], 0, d)
        for h in range(lo[1], hi[1]):
            line = plane and inside(source, &axes[1], 1, h)
            base = (
                x + (d - source.lo[0]) * source.step[0]
                + (h - source.lo[1]) * source.step[1] + (lo[2] - source.lo[2]) * source.step[2]
            )
            for w in range(lo[2], hi[2]):
                if line and inside(source, &axes[2], 2, w):
                    for i in range(taps):
                        rows[i * MR + lane] = base + steps[i]
                else:
                    i = 0
                    for q in range(start[0], stop[0]):
                        for r in range(start[1], stop[1]):
                            for s in range(start[2], stop[2]):
                                j = d + axes[0].offset[q]
                                k = h + axes[1].offset[r]
                                if (
                                    source.lo[0] <= j < source.hi[0]
                                    and source.lo[1] <= k < source.hi[1]
                                    and source.lo[2] <= w + axes[2].offset[s] < source.hi[2]
                                ):
                                    rows[i * MR + lane] = base + steps[i]
                                else:
                                    rows[i * MR + lane] = p.zeros
                                i += 1
                base += source.step[2]
                lane += 1
                if lane == MR:
                    lane = 0
                    rows += taps * MR


cdef inline void leave_out(
    const Tiles *p, const Part *part, real *const *sums
) noexcept nogil:
    # What `reached` says of the part's rows.
    cdef const Reached *its = &part.reached
    cdef Py_ssize_t t, i, n
    cdef const real *row
    for t in range(part.taps):
        n = t * its.positions
        for i in range(part.positions):
            row = part.rows[(i // MR * part.taps + t) * MR + i % MR]
            if row != p.zeros:
                its.rows[n] = row
                its.sums[n] = sums[i]
                n += 1
        its.count[t] = n - t * its.positions


cdef inline void point_outputs(
    const Tiles *p, const Call *call, real *y, const Py_ssize_t *phase,
    const Py_ssize_t *lo, const Py_ssize_t *hi, real **outputs,
) noexcept nogil:
    # channels_last: where each position's first column goes.
    cdef const Axis *axes = &p.axes[0]
    cdef Py_ssize_t step = axes[2].stride * call.y_step[3]
    cdef Py_ssize_t d, h, w
    cdef real *row
    for d in range(lo[0], hi[0]):
        for h in range(lo[1], hi[1]):
            row = (
                y + (axes[0].stride * d + axes[0].first[phase[0]]) * call.y_step[1]
                + (axes[1].stride * h + axes[1].first[phase[1]]) * call.y_step[2]
                + axes[2].first[phase[2]] * call.y_step[3] + lo[2] * step
            )
            for w in range(lo[2], hi[2]):
                outputs[0] = row
                outputs += 1
                row += step


cdef inline void multiply(
    const Call *call, const real *const *rows, Py_ssize_t positions, Py_ssize_t taps,
    Py_ssize_t depth, const real *panel, int nv, const real *bias, real *const *sums,
    real *const *outputs, Py_ssize_t column, bint stream, const Reached *reached, bint fetch,
) noexcept nogil:
    # outputs[position][column:] = sum over taps and channels + bias; `sums` has the parts.
    cdef Py_ssize_t width = nv * VECTOR
    cdef Py_ssize_t most_taps = tap_block(depth)
    cdef Py_ssize_t most_channels = depth_block(depth, taps)
    cdef Py_ssize_t t, n, low, high
    cdef bint first, last
    cdef bint sparse = reached.positions > 0
    # The next block of weights is fetched by the tiles of this one, if there are several.
    cdef Py_ssize_t tiles = (positions + MR - 1) // MR
    cdef Py_ssize_t pace = width // tiles if fetch and tiles > 1 else 0
    cdef Tile tile = call.tile[nv > 1]
    if sparse:
        for t in range(positions):
            memset(sums[t], 0, width * REAL_BYTES)
    for t from 0 <= t < taps by most_taps:
        n = min(most_taps, taps - t)
        for low from 0 <= low < depth by most_channels:
            high = min(low + most_channels, depth)
            first = t + low == 0
            last = t + n == taps and high == depth
            if sparse and not last:
                tile(
                    reached.count[t], 1, low, high, reached.rows + t * reached.positions, MR, panel,
                    width, <const real *const *>reached.sums + t * reached.positions, NULL,
                    reached.sums + t * reached.positions, 0, False,
                    panel + (high - low) * width, pace,
                )
                panel += (high - low) * width
                continue
            tile(
                positions, n, low, high, rows + t * MR, taps * MR, panel, width,
                <const real *const *>sums if sparse or not first else NULL, bias if last else NULL,
                outputs if last else sums, column if last else 0, stream and last,
                panel + n * (high - low) * width if pace > 0 else panel, pace,
            )
            panel += n * (high - low) * width


cdef inline void store_last(
    const Tiles *p, const Call *call, const Py_ssize_t *lo, const Py_ssize_t *hi,
    Py_ssize_t column, Py_ssize_t width, const real *results, real *const *outputs,
) noexcept nogil:
    # channels_last: a position's columns are one run.
    cdef Py_ssize_t i, n
    cdef Py_ssize_t row = hi[2] - lo[2]
    for i in range((hi[0] - lo[0]) * (hi[1] - lo[1]) * row):
        n = min(width, p.columns - column)
        if p.fused:  # the row may end within its last position
            n = min(
                n, (p.axes[2].out - p.axes[2].stride * (lo[2] + i % row)) * p.filters - column
            )
        if n <= 0:
            continue
        if not p.fused or call.y_step[3] == p.filters:
            put_row(outputs[i] + column, results + i * NR, n, call.stream)
        else:
            put_voxels(outputs[i], call.y_step[3], p.filters, column, results + i * NR, n)


cdef inline Runs make_runs(
    const Tiles *p, const Box *box, const Py_ssize_t *first
) noexcept nogil:
    # first: the first phases of the unit.
    cdef const Axis *axis
    cdef Runs runs
    cdef int a
    for a in range(3):
        axis = &p.axes[a]
        runs.start[a] = axis.stride * box.lo[a]
        runs.step[a] = axis.stride // p.spread[a]
        if p.spread[a] > 1:  # every output, whether a tap reaches it or not
            runs.count[a] = min(axis.stride * box.hi[a], axis.out) - runs.start[a]
        else:
            runs.start[a] += axis.first[first[a]]
            runs.count[a] = min(box.hi[a], axis.count[first[a]]) - box.lo[a]
        runs.count[a] = max(runs.count[a], 0)
    return runs


cdef inline void clear_sources(
    const Runs *runs, const real *bias, const real **sources
) noexcept nogil:
    # What no tap reaches is the bias; a vector of them makes the last transpose whole.
    cdef Py_ssize_t i
    for i in range(runs.count[0] * runs.count[1] * runs.count[2] + VECTOR):
        sources[i] = bias


cdef inline void point_sources(
    const Tiles *p, const Runs *runs, const Py_ssize_t *phase, const Py_ssize_t *lo,
    const Py_ssize_t *hi, const real *results, const real **sources,
) noexcept nogil:
    # Where the unit's outputs of a phase come from.
    cdef Py_ssize_t d, h, w
    cdef Py_ssize_t step[3]
    cdef const real **row
    step[2] = p.spread[2]
    step[1] = p.spread[1] * runs.count[2]
    step[0] = runs.count[1] * runs.count[2]
    if p.spread[1] > 1:
        sources += p.axes[1].first[phase[1]] * runs.count[2]
    if p.spread[2] > 1:
        sources += p.axes[2].first[phase[2]]
    for d in range(hi[0] - lo[0]):
        for h in range(hi[1] - lo[1]):
            row = sources + d * step[0] + h * step[1]
            for w in range(hi[2] - lo[2]):
                row[w * step[2]] = results
                results += NR


cdef inline Py_ssize_t stream_runs(
    const real *const *source, Py_ssize_t column, Py_ssize_t run, real *target,
    Py_ssize_t step, Py_ssize_t filters,
) noexcept nogil:
    # Vectors of a run of VECTOR filters, if they are whole cache lines; returns how many outputs of
    # each that makes.
    cdef Py_ssize_t i = 0
    if VECTOR_BYTES == LINE and filters == VECTOR and <uintptr_t>target % LINE == 0:
        while i + VECTOR <= run:
            gather_block(source + i, column, target + i, step, True)
            i += VECTOR
    return i


cdef inline void store_first(
    const Tiles *p, const Call *call, real *y, const Runs *runs, Py_ssize_t column,
    const real *bias, Py_ssize_t kept, Workspace *work,
) noexcept nogil:
    # channels_first, a block of columns: VECTOR filters at a time, in runs.
    cdef Py_ssize_t f, g, d, h, i, n, part, filters
    cdef Py_ssize_t width = min(NR, p.padded - column)
    cdef Py_ssize_t block = kept * block_results(p)
    cdef real *line = work.line
    cdef Py_ssize_t some = 1
    cdef Py_ssize_t run = runs.count[2]
    cdef const real *const *source
    cdef real *target
    if run == 0 or runs.count[1] == 0:
        return
    if runs.step[1] * call.y_step[2] == run:  # rows touch
        some = runs.count[1]
        run *= some
    memcpy(work.results + block + block_results(p) - NR, bias + column, width * REAL_BYTES)
    y += (
        runs.start[0] * call.y_step[1] + runs.start[1] * call.y_step[2]
        + runs.start[2] * call.y_step[3] + column * call.y_channel
    )
    for f from 0 <= f < width by VECTOR:
        filters = min(VECTOR, p.columns - column - f)
        source = work.sources
        for d in range(runs.count[0]):
            for h from 0 <= h < runs.count[1] by some:
                target = (
                    y + d * runs.step[0] * call.y_step[1] + h * runs.step[1] * call.y_step[2]
                    + f * call.y_channel
                )
                part = 0
                if call.stream and call.y_channel % VECTOR == 0:
                    part = stream_runs(source, block + f, run, target, call.y_channel, filters)
                for part from part <= part < run by RUN:
                    n = min(RUN, run - part)
                    if not call.stream:
                        for g in range(filters):
                            announce_run(target + g * call.y_channel + part, n)
                    for i from 0 <= i < n by VECTOR:
                        gather_block(
                            source + part + i, block + f, line + i, RUN + VECTOR, False
                        )
                    for g in range(filters):
                        put_run(
                            target + g * call.y_channel + part, line + g * (RUN + VECTOR), n,
                            call.stream,
                        )
                source += run


cdef inline bint writes_through(
    const Tiles *p, const Call *call, const Box *box, Py_ssize_t column, Py_ssize_t width
) noexcept nogil:
    # Whether tiles can write straight to the output: whole vectors of columns, no activation.
    if not p.channels_last or call.act.code != LINEAR or column + width > p.columns:
        return False
    if not p.fused:
        return True
    return call.y_step[3] == p.filters and box.hi[2] * p.axes[2].stride <= p.axes[2].out


cdef inline Part make_part(
    const Tiles *p, const Box *box, Py_ssize_t group, const Py_ssize_t *first, Py_ssize_t q,
    const Workspace *work,
) noexcept nogil:
    # Phase number q of the unit.
    cdef const Axis *axes = &p.axes[0]
    cdef Part part
    cdef int a
    part.at = q * box_positions(p)
    part.reached.positions = box_positions(p) if p.sparse else 0
    part.reached.rows = work.reached + part.at * plain_taps(p)
    part.reached.sums = work.reached_sums + part.at * plain_taps(p)
    part.reached.count = work.reached_count + q * plain_taps(p)
    part.rows = work.rows
    if not p.alike:  # else they share the pointers
        part.rows += part.at * plain_taps(p)
    part.positions = 1
    part.taps = 1
    for a in range(2, -1, -1):
        part.phase[a] = first[a]
        if p.spread[a] > 1:
            part.phase[a] = q % axes[a].phases
            q //= axes[a].phases
        part.hi[a] = min(box.hi[a], axes[a].count[part.phase[a]])
        part.positions *= max(part.hi[a] - box.lo[a], 0)
        part.taps *= axes[a].start[part.phase[a] + 1] - axes[a].start[part.phase[a]]
    part.panel = p.packed + group * p.group_panel + p.panel[
        (part.phase[0] * axes[1].phases + part.phase[1]) * axes[2].phases + part.phase[2]
    ]
    part.minimal = False
    if p.minimal and part.positions > 0:
        part.grid = make_grid(axes, part.phase, box.lo, part.hi)
        part.minimal = pays(&part.grid)
    return part


cdef inline void multiply_part(
    const Tiles *p, const Call *call, const Box *box, const Part *part, Py_ssize_t column,
    const real *bias, Py_ssize_t kept, Workspace *work,
) noexcept nogil:
    # One block of columns.
    cdef int nv = <int>min(NV, (p.padded - column) // VECTOR)
    cdef bint through = writes_through(p, call, box, column, nv * VECTOR)
    # Groups begin at whole vectors of y only where they consist of such.
    cdef bint whole = p.groups == 1 or p.filters % VECTOR == 0
    cdef bint stream = through and call.stream and call.vectors and whole
    cdef Py_ssize_t at = column if through else 0
    cdef real **sums = work.sums + kept * p.together * box_positions(p) + part.at
    cdef real **target = work.outputs if through else sums
    if part.minimal:
        multiply_images(
            call, &part.grid, work.images, p.channels, vectors(p.channels),
            part.panel + column * grid_products(&part.grid) * p.depth, nv, work.products,
        )
        call.turn_out(&part.grid, work.products, nv, bias, target, at, stream)
    else:
        multiply(
            call, part.rows, part.positions, part.taps, p.depth,
            part.panel + column * part.taps * p.depth, nv, bias, sums, target, at, stream,
            &part.reached, p.far,
        )
    if through:
        return
    activate_rows(sums[0], part.positions, nv * VECTOR, &call.act)
    if p.channels_last:
        store_last(p, call, box.lo, part.hi, column, nv * VECTOR, sums[0], work.outputs)


cdef inline void tiles_unit(
    const Tiles *p, const Call *call, const Source *source, real *y, const Box *box,
    Py_ssize_t unit, Py_ssize_t blocks, bint known, Workspace *work,
) noexcept nogil:
    # Blocks of columns of one group, for one phase or those that are stored as one.
    cdef Py_ssize_t column = unit % p.blocks * NR
    cdef Py_ssize_t first[3]
    cdef Py_ssize_t group, b, k, q
    cdef const real *bias
    cdef real *results
    cdef Part part
    cdef Runs runs
    cdef int a
    group = unit // p.blocks
    for a in range(2, -1, -1):
        first[a] = 0
        if p.spread[a] == 1:
            first[a] = group % p.axes[a].phases
            group //= p.axes[a].phases
    y += group * p.filters * call.y_channel
    bias = p.bias + group * p.padded
    if not p.channels_last:
        runs = make_runs(p, box, first)
        clear_sources(&runs, work.results + block_results(p) - NR, work.sources)
    for b from 0 <= b < blocks by p.kept:
        for q in range(p.together):
            part = make_part(p, box, group, first, q, work)
            if part.positions == 0:
                continue
            if b == 0 and p.channels_last:
                point_outputs(p, call, y, part.phase, box.lo, part.hi, work.outputs)
            elif b == 0:
                point_sources(
                    p, &runs, part.phase, box.lo, part.hi, work.results + part.at * NR,
                    work.sources,
                )
            if b == 0 and part.minimal:
                call.turn_in(&part.grid, source, vectors(p.channels), work.images)
            elif b == 0 and not (p.alike and (known or q > 0)):
                point_rows(
                    p, source, group, part.phase, box.lo, part.hi, work.steps, part.rows
                )
                if p.sparse:
                    leave_out(p, &part, work.sums + part.at)
            for k in range(min(p.kept, blocks - b)):
                multiply_part(
                    p, call, box, &part, column + (b + k) * NR, bias + column + (b + k) * NR,
                    k, work,
                )
        if p.channels_last:
            continue
        for k in range(min(p.kept, blocks - b)):
            store_first(p, call, y, &runs, column + (b + k) * NR, bias, k, work)


cdef inline Py_ssize_t tiles_units(const Tiles *p) noexcept nogil:
    cdef Py_ssize_t phases = p.axes[0].phases * p.axes[1].phases * p.axes[2].phases
    return p.groups * phases // p.together * p.blocks


cdef inline void tiles_task(
    const void *plan, const Call *call, Py_ssize_t index, char *scratch
) noexcept nogil:
    cdef const Tiles *p = <const Tiles *>plan
    cdef Py_ssize_t units = tiles_units(p)
    cdef Py_ssize_t boxes = box_count(p.side, p.axes)
    # Boxes before chunks: the weights of a chunk are used by one box after the other.
    cdef Py_ssize_t chunk = index // boxes % call.chunks
    # A chunk begins by preparing its input for the phase: whole phases, if there are enough.
    cdef Py_ssize_t grain = p.blocks if call.chunks * p.blocks <= units else 1
    cdef Py_ssize_t first = chunk * (units // grain) // call.chunks * grain
    cdef Py_ssize_t last = (chunk + 1) * (units // grain) // call.chunks * grain
    cdef Py_ssize_t sample = index // boxes // call.chunks
    cdef Box box = box_at(index % boxes, p.side, p.axes)
    cdef const real *x = call.x + sample * call.x_step[0]
    cdef Workspace work
    cdef Source source
    cdef Py_ssize_t unit, blocks, k, i
    cdef Py_ssize_t sums = p.together * box_positions(p)
    cdef int a
    tiles_scratch(p, scratch, &work)
    for k in range(p.kept):
        for i in range(sums):
            work.sums[k * sums + i] = work.results + k * block_results(p) + i * NR
    if p.channels_last and not p.minimal:
        source.x = x
        for a in range(3):
            source.lo[a] = 0
            source.hi[a] = p.axes[a].size
            source.step[a] = call.x_step[a + 1]
    else:
        load_image(p, call, x, &box, &source, &work)
    unit = first
    while unit < last:
        blocks = min(last - unit, p.blocks - unit % p.blocks)
        tiles_unit(
            p, call, &source, call.y + sample * call.y_step[0], &box, unit, blocks,
            unit > first, &work,
        )
        unit += blocks
