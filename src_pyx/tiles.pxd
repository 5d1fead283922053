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
# its results are transposed on their way out, so that the loops in between are the same.
from libc.string cimport memset
from call cimport Call
from epilogue cimport LINEAR, activate_rows
from geometry cimport Axis, Box, Source, box_at, box_count
from microkernel cimport Tile, depth_block, tap_block
from simd cimport real, MR, NR, NV, VECTOR, REAL_BYTES
from transfer cimport put_row, put_voxels, put_woven, transpose_block, transpose_into
from winograd cimport (
    Grid, grid_products, make_grid, multiply_images, outputs_of, pays, products_of,
    transform_inputs, transform_outputs,
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
    bint channels_last
    Py_ssize_t together  # phases of the width in a unit: channels_first stores them as one
    const real *packed
    const Py_ssize_t *panel
    Py_ssize_t group_panel  # reals of packed weights of a group
    const real *bias  # [groups][padded]
    const real *zeros  # as many as there are channels, or phases of the width


cdef struct Workspace:  # parts of the scratch memory
    const real **rows  # [phase of width][tile][tap][MR]
    Py_ssize_t *steps  # [tap]: from a position's input to the tap's
    real **outputs  # [phase of width][tile][MR]: where the rows go, first column
    real **sums  # [tile][MR]: rows of `results`
    real *results  # [phase of width][positions, in whole tiles][NR]
    real *images  # minimal: [phase of width][product][tile][channels in whole vectors]
    real *products  # minimal: [product][tile][NR]
    real *line  # [VECTOR filters][phase of width][row of the box]
    real *image  # channels_first: the box's input, [d][h][w][channels]


cdef inline Py_ssize_t box_positions(const Tiles *p) noexcept nogil:
    # Positions of the largest box, in whole tiles.
    cdef Py_ssize_t n = p.side[0] * p.side[1] * p.side[2]
    return (n + MR - 1) // MR * MR


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


cdef inline Py_ssize_t lines(Py_ssize_t size) noexcept nogil:
    return (size + 63) // 64 * 64


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


cdef inline Py_ssize_t tiles_scratch(
    const Tiles *p, char *scratch, Workspace *work
) noexcept nogil:
    # Cuts `scratch` into `work`; returns its size in bytes.
    cdef Py_ssize_t phases = p.together
    cdef Py_ssize_t positions = box_positions(p)
    cdef Py_ssize_t taps = plain_taps(p)
    cdef Py_ssize_t size = 0, image = 0
    cdef int a
    if not p.channels_last:
        image = p.channels * REAL_BYTES
        for a in range(3):
            image *= p.side[a] + p.axes[a].high - p.axes[a].low
    work.images = work.products = <real *>scratch
    if p.minimal:
        size += lines(phases * minimal_room(p) * vectors(p.channels) * REAL_BYTES)
        work.products = <real *>(scratch + size)
        size += lines(minimal_room(p) * NR * REAL_BYTES)
    work.rows = <const real **>(scratch + size)
    size += lines(positions * phases * taps * sizeof(void *))
    work.steps = <Py_ssize_t *>(scratch + size)
    size += lines(taps * sizeof(Py_ssize_t))
    work.outputs = <real **>(scratch + size)
    size += lines(positions * phases * sizeof(void *))
    work.sums = <real **>(scratch + size)
    size += lines(positions * phases * sizeof(void *))
    work.results = <real *>(scratch + size)
    size += lines((positions * phases + VECTOR) * NR * REAL_BYTES)
    work.line = <real *>(scratch + size)
    size += lines((p.side[2] + 2 * VECTOR) * 2 * phases * VECTOR * REAL_BYTES)
    work.image = <real *>(scratch + size)
    return size + lines(image)


cdef inline void load_image(
    const Tiles *p, const Call *call, const real *x, const Box *box, Source *source, real *image
) noexcept nogil:
    # channels_first -> [d][h][w][channels], with zeros around.
    cdef Py_ssize_t d, h, w0, w1, left, right, lines
    cdef real *target = image
    cdef int a
    for a in range(3):
        source.lo[a] = box.lo[a] + p.axes[a].low
        source.hi[a] = box.hi[a] + p.axes[a].high
    source.step[2] = p.channels
    source.step[1] = p.channels * (source.hi[2] - source.lo[2])
    source.step[0] = source.step[1] * (source.hi[1] - source.lo[1])
    source.x = image
    w0 = min(max(source.lo[2], 0), source.hi[2])
    w1 = max(min(source.hi[2], p.axes[2].size), w0)
    left = (w0 - source.lo[2]) * p.channels
    right = (source.hi[2] - w1) * p.channels
    lines = 1
    if (
        w1 - w0 == call.x_step[2] and call.x_step[3] == 1 and left + right == 0
        and source.lo[1] >= 0 and source.hi[1] <= p.axes[1].size
    ):
        lines = source.hi[1] - source.lo[1]  # the rows touch in x and in the image
    for d in range(source.lo[0], source.hi[0]):
        h = source.lo[1]
        while h < source.hi[1]:
            if 0 <= d < p.axes[0].size and 0 <= h < p.axes[1].size:
                memset(target, 0, left * REAL_BYTES)
                transpose_into(
                    x + d * call.x_step[1] + h * call.x_step[2] + w0 * call.x_step[3],
                    call.x_channel, p.channels, lines * (w1 - w0), target + left, p.channels,
                )
                memset(target + source.step[1] - right, 0, right * REAL_BYTES)
            else:
                memset(target, 0, lines * source.step[1] * REAL_BYTES)
            target += lines * source.step[1]
            h += lines


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
    real *const *outputs, Py_ssize_t column, bint stream,
) noexcept nogil:
    # outputs[position][column:] = sum over taps and channels + bias; `sums` has the parts.
    cdef Py_ssize_t width = nv * VECTOR
    cdef Py_ssize_t most_taps = tap_block(depth)
    cdef Py_ssize_t most_channels = depth_block(depth)
    cdef Py_ssize_t t, n, low, high, i
    cdef bint first, last
    cdef int mr
    cdef Tile tile = call.tile[nv > 1]
    for t from 0 <= t < taps by most_taps:
        n = min(most_taps, taps - t)
        for low from 0 <= low < depth by most_channels:
            high = min(low + most_channels, depth)
            first = t + low == 0
            last = t + n == taps and high == depth
            for i from 0 <= i < positions by MR:
                mr = <int>min(MR, positions - i)
                tile(
                    n, low, high, rows + i * taps + t * MR, panel, width,
                    <const real *const *>(sums + i) if not first else NULL,
                    bias if last else NULL, (outputs if last else sums) + i,
                    column if last else 0, stream and last, mr,
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


cdef inline void store_first(
    const Tiles *p, const Call *call, real *y, const Py_ssize_t *phase,
    const Py_ssize_t *lo, const Py_ssize_t *hi, Py_ssize_t column, Py_ssize_t width,
    const real *results, Py_ssize_t result_step, real *line,
) noexcept nogil:
    # channels_first: VECTOR filters at a time, the phases of the width interleaved.
    cdef const Axis *axes = &p.axes[0]
    cdef const Axis *along = &axes[2]
    cdef Py_ssize_t d, h, f, g, q, i, n, position, filters, even
    cdef Py_ssize_t longest = hi[2] - lo[2]
    cdef Py_ssize_t row = (longest + VECTOR - 1) // VECTOR * VECTOR
    cdef real *turned = line
    cdef real *mixed = line + along.phases * row * VECTOR
    cdef real *target
    cdef bint dense = along.phases == along.stride
    for f from 0 <= f < width by VECTOR:
        filters = min(VECTOR, p.columns - column - f)
        for d in range(lo[0], hi[0]):
            for h in range(lo[1], hi[1]):
                even = longest
                for q in range(along.phases):
                    n = min(hi[2], along.count[q]) - lo[2]
                    even = min(even, n)
                    position = ((d - lo[0]) * (hi[1] - lo[1]) + h - lo[1]) * n
                    for i from 0 <= i < n by VECTOR:  # up to a vector too many: room is left
                        transpose_block(
                            results + q * result_step + (position + i) * NR + f, NR,
                            turned + q * row + i, along.phases * row,
                        )
                for g in range(filters):
                    target = (
                        y + (axes[0].stride * d + axes[0].first[phase[0]]) * call.y_step[1]
                        + (axes[1].stride * h + axes[1].first[phase[1]]) * call.y_step[2]
                        + along.stride * lo[2] * call.y_step[3]
                        + (column + f + g) * call.y_channel
                    )
                    n = 0
                    if dense and call.y_step[3] == 1:
                        n = even
                        put_woven(
                            turned + g * along.phases * row, row, p.zeros, along.stride,
                            along.stride * n, target, call.stream, mixed,
                        )
                    for q in range(along.phases):
                        for i in range(n, min(hi[2], along.count[q]) - lo[2]):
                            target[(along.stride * i + along.first[q]) * call.y_step[3]] = (
                                turned[(g * along.phases + q) * row + i]
                            )


cdef inline bint writes_through(
    const Tiles *p, const Call *call, const Box *box, Py_ssize_t column, Py_ssize_t width
) noexcept nogil:
    # Whether tiles can write straight to the output: whole vectors of columns, no activation.
    if not p.channels_last or call.act.code != LINEAR or column + width > p.columns:
        return False
    if not p.fused:
        return True
    return call.y_step[3] == p.filters and box.hi[2] * p.axes[2].stride <= p.axes[2].out


cdef inline void tiles_unit(
    const Tiles *p, const Call *call, const Source *source, real *y, const Box *box,
    Py_ssize_t unit, bint fresh, bint known, Workspace *work,
) noexcept nogil:
    # One block of columns of one group for one phase; all of the width for channels_first.
    cdef const Axis *axes = &p.axes[0]
    cdef Py_ssize_t block = unit % p.blocks
    cdef Py_ssize_t column = block * NR
    cdef int nv = <int>min(NV, (p.padded - column) // VECTOR)
    cdef Py_ssize_t width = nv * VECTOR
    cdef Py_ssize_t tiles = box_positions(p)
    cdef Py_ssize_t phase[3]
    cdef Py_ssize_t hi[3]
    cdef Py_ssize_t group, first, taps, positions, q
    cdef const real **rows
    cdef const real *panel
    cdef const real *bias
    cdef real **sums
    cdef real **target
    cdef real *images
    cdef Grid grid
    cdef bint through = writes_through(p, call, box, column, width)
    unit //= p.blocks
    first = unit % (axes[2].phases // p.together) * p.together
    unit //= axes[2].phases // p.together
    phase[1] = unit % axes[1].phases
    phase[0] = unit // axes[1].phases % axes[0].phases
    group = unit // axes[1].phases // axes[0].phases
    hi[0] = min(box.hi[0], axes[0].count[phase[0]])
    hi[1] = min(box.hi[1], axes[1].count[phase[1]])
    if hi[0] <= box.lo[0] or hi[1] <= box.lo[1]:
        return
    y += group * p.filters * call.y_channel
    bias = p.bias + group * p.padded + column
    for q in range(p.together):
        phase[2] = first + q
        hi[2] = min(box.hi[2], axes[2].count[first + q])
        taps = axes[2].start[first + q + 1] - axes[2].start[first + q]
        taps *= axes[1].start[phase[1] + 1] - axes[1].start[phase[1]]
        taps *= axes[0].start[phase[0] + 1] - axes[0].start[phase[0]]
        positions = (hi[0] - box.lo[0]) * (hi[1] - box.lo[1]) * (hi[2] - box.lo[2])
        rows = work.rows + q * tiles * plain_taps(p)
        images = work.images + q * minimal_room(p) * vectors(p.channels)
        sums = work.sums + q * tiles
        panel = (
            p.packed + group * p.group_panel
            + p.panel[(phase[0] * axes[1].phases + phase[1]) * axes[2].phases + first + q]
        )
        target = work.outputs + q * tiles if through else sums
        if positions > 0:
            if fresh and p.channels_last:
                point_outputs(p, call, y, phase, box.lo, hi, work.outputs + q * tiles)
            if p.minimal:
                grid = make_grid(axes, phase, box.lo, hi)
            if p.minimal and pays(&grid):
                if fresh:
                    transform_inputs(
                        &grid, source, p.channels, vectors(p.channels), p.zeros, images
                    )
                multiply_images(
                    call, &grid, images, p.channels, vectors(p.channels),
                    panel + column * grid_products(&grid) * p.depth, nv, work.products,
                )
                transform_outputs(
                    &grid, work.products, nv, bias, target,
                    column if through else 0, through and call.stream and call.vectors,
                )
            else:
                if fresh and not (known and p.alike):
                    point_rows(p, source, group, phase, box.lo, hi, work.steps, rows)
                multiply(
                    call, rows, positions, taps, p.depth, panel + column * taps * p.depth, nv,
                    bias, sums, target, column if through else 0,
                    through and call.stream and call.vectors,
                )
            if not through:
                activate_rows(work.results + q * tiles * NR, positions, width, &call.act)
                if p.channels_last:
                    store_last(
                        p, call, box.lo, hi, column, width,
                        work.results + q * tiles * NR, work.outputs + q * tiles,
                    )
        if not p.minimal or taps == 1:
            rows += tiles * taps
    if not p.channels_last:
        hi[2] = box.hi[2]
        store_first(
            p, call, y, phase, box.lo, hi, column, width,
            work.results, tiles * NR, work.line,
        )


cdef inline Py_ssize_t tiles_units(const Tiles *p) noexcept nogil:
    return (
        p.groups * p.axes[0].phases * p.axes[1].phases * (p.axes[2].phases // p.together)
        * p.blocks
    )


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
    cdef Py_ssize_t unit
    cdef int a
    tiles_scratch(p, scratch, &work)
    for unit in range(p.together * box_positions(p)):
        work.sums[unit] = work.results + unit * NR
    if p.channels_last:
        source.x = x
        for a in range(3):
            source.lo[a] = 0
            source.hi[a] = p.axes[a].size
            source.step[a] = call.x_step[a + 1]
    else:
        load_image(p, call, x, &box, &source, work.image)
    for unit in range(first, last):
        tiles_unit(
            p, call, &source, call.y + sample * call.y_step[0], &box, unit,
            unit == first or unit % p.blocks == 0, unit > first, &work,
        )
