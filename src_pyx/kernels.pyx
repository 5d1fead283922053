"""The compiled kernels of one instruction set and dtype.

A plan object holds the integers of a problem and its packed weights, and runs on arrays
whose shapes and dtype Python has checked. Weights are packed by the functions `pack_*`.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cython.parallel cimport parallel, prange, threadid
from libc.math cimport sqrt
from libc.stdint cimport uintptr_t
cimport numpy as cnp
import numpy as np

from call cimport Call, Grid, Task
from tiles cimport Tiles as TilesPlan, Workspace, tiles_scratch, tiles_task, tiles_units
from tiles cimport box_positions, minimal_room
from depthwise cimport Depthwise as DepthwisePlan, Space, Terms, depthwise_scratch
from depthwise cimport depthwise_task, depthwise_tile_rows, depthwise_units
from epilogue cimport Activation, activate
from geometry cimport Axis, Source, box_count, ceil_div, even_part
from lanes cimport Lanes as LanesPlan, LanesRoom, image_reals, lanes_rows
from lanes cimport lanes_positions, lanes_scratch, lanes_shape, lanes_task
from simd cimport real, vallow, vfence, MOST_FILTERS
from softmax cimport softmax_rows
from taps cimport Room, Taps as TapsPlan, taps_scratch, taps_task
from simd cimport VECTOR as _VECTOR, MR as _MR, NV as _NV, NR as _NR, ROWS, REAL_BYTES, VECTOR_BYTES
from microkernel cimport depth_block, split_rows, tap_block, tile_rows
from team cimport omp_get_num_threads
from winograd cimport images_of, outputs_from
from woven cimport weaves, woven_rows

cnp.import_array()

VECTOR = _VECTOR
MR = _MR
NV = _NV
NR = _NR
FUSED = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11})
DTYPE = np.dtype(np.float32 if REAL_BYTES == 4 else np.float64)

cdef int REAL_TYPE = cnp.NPY_FLOAT32 if REAL_BYTES == 4 else cnp.NPY_FLOAT64

# Sums of the depthwise algorithm: of a row, of rows before they are stored, of a box.
cdef Py_ssize_t ROW_REALS = 4 << 10
cdef Py_ssize_t BAND_REALS = 2 << 10
cdef Py_ssize_t BOX_REALS = 16 << 10
# Parts of the second-level cache, which is larger where AVX-512 is. Sums of float64 take more of it
# there: in boxes of half the rows a third more would be loaded.
cdef Py_ssize_t SUMS_BYTES = (256 if VECTOR_BYTES <= 32 else 384 if REAL_BYTES < 8 else 640) << 10
cdef Py_ssize_t IMAGES_BYTES = 640 << 10
cdef Py_ssize_t MOST_IMAGES_BYTES = 4 << 20  # of a thread
cdef Py_ssize_t ROWS_REALS = 2 << 10  # in the first-level cache, for a second pass
cdef Py_ssize_t PLANES_BYTES = 192 << 10
cdef Py_ssize_t NEAR_BYTES = 32 << 10
cdef Py_ssize_t LEAST_TILES = 10  # register tiles of a box: they share a block of weights
cdef Py_ssize_t LOAD = 10  # multiplications in the time that loads an input, as in cost.py
cdef Py_ssize_t FAR_BYTES = 1 << 20  # weights that do not stay in the second-level cache
cdef Py_ssize_t LINE = 96  # positions that short rows are put together to
cdef Py_ssize_t FINE_SHARE = 8  # tasks a thread, where they cost little
cdef Py_ssize_t SOME_UNITS = 6  # blocks of columns of a chunk, by which loading its input is little
cdef Py_ssize_t LEAST_BOXES = 16  # of a sample, for threads to share
cdef Py_ssize_t CHUNK_BYTES = 1 << 20
# An output this large is written past the cache: it would not stay in the second level.
cdef Py_ssize_t STREAM_BYTES = 4 << 20
# Between two looks at pending signals: 0.02 s with wide vectors, 0.1 s without.
cdef double SIGNAL_MULTIPLICATIONS = min(1.25e8 * _VECTOR, 1e9)
# Multiplications of the tiles algorithm in the time of one of these, at their slowest.
cdef double TAPS_SLOWER = 2
cdef double DEPTHWISE_SLOWER = 8


cdef void tile_narrow(
    Py_ssize_t rows, Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high,
    const real *const *a, Py_ssize_t next_a, const real *b, Py_ssize_t ldb,
    const real *const *sums, const real *bias, real *const *out, Py_ssize_t column, bint stream,
    const real *ahead, Py_ssize_t pace,
) noexcept nogil:
    tile_rows(
        rows, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, 1
    )


cdef void tile_wide(
    Py_ssize_t rows, Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high,
    const real *const *a, Py_ssize_t next_a, const real *b, Py_ssize_t ldb,
    const real *const *sums, const real *bias, real *const *out, Py_ssize_t column, bint stream,
    const real *ahead, Py_ssize_t pace,
) noexcept nogil:
    tile_rows(
        rows, taps, low, high, a, next_a, b, ldb, sums, bias, out, column, stream, ahead, pace, _NV
    )


cdef void split_narrow(
    Py_ssize_t rows, Py_ssize_t depth, Py_ssize_t block, const real *a, Py_ssize_t lda,
    const real *b, real *out,
) noexcept nogil:
    split_rows(rows, depth, block, a, lda, b, out, 1)


cdef void split_wide(
    Py_ssize_t rows, Py_ssize_t depth, Py_ssize_t block, const real *a, Py_ssize_t lda,
    const real *b, real *out,
) noexcept nogil:
    split_rows(rows, depth, block, a, lda, b, out, _NV)


cdef void turn_in(
    const Grid *grid, const Source *source, Py_ssize_t padded, real *images
) noexcept nogil:
    images_of(grid, source, padded, images)


cdef void turn_out(
    const Grid *grid, const real *products, int nv, const real *bias,
    real *const *outputs, Py_ssize_t column, bint stream,
) noexcept nogil:
    outputs_from(grid, products, nv, bias, outputs, column, stream)


# At most one idle buffer. A call takes it out, so that calls at the same time have their own,
# and puts it back; one that is interrupted frees it.
cdef list _scratch = []
cdef Py_ssize_t SCRATCH_KEPT = 8 << 20  # bytes per thread of the call that puts it back


def aligned(Py_ssize_t count):
    """An uninitialised array of `count` reals that starts at a cache line."""
    raw = np.empty(count * REAL_BYTES + 64, np.uint8)
    cdef Py_ssize_t skip = -<uintptr_t>cnp.PyArray_DATA(raw) % 64
    return raw[skip:skip + count * REAL_BYTES].view(DTYPE)


cdef real *reals(cnp.ndarray array):
    assert cnp.PyArray_TYPE(array) == REAL_TYPE
    return <real *>cnp.PyArray_DATA(array)


cdef class Plan:
    """What all plans share: axes, the driver of the tasks."""

    cdef Axis axes[3]
    cdef readonly bint channels_last
    cdef double multiplications  # per sample
    cdef Py_ssize_t tasks  # per sample, before the columns are cut into chunks
    cdef Py_ssize_t share  # tasks a thread, at least, to even out their differences
    cdef Py_ssize_t cheap_chunks  # for the same; up to so many cost little
    cdef Py_ssize_t least_chunks  # for the sake of the caches
    cdef Py_ssize_t most_chunks
    cdef readonly Py_ssize_t scratch  # bytes per thread
    cdef Task task
    cdef const void *self_plan
    cdef Py_ssize_t lone_tasks  # of a thread that is alone, if it has larger boxes; or 0
    cdef const void *lone_plan
    cdef list keep  # arrays whose memory the structs point to

    cdef Py_ssize_t *integers(self, values):
        array = np.array(values, np.intp)
        self.keep.append(array)
        return <Py_ssize_t *>cnp.PyArray_DATA(array)

    cdef void set_axis(self, Axis *axis, tuple record):
        """record: size, out, stride, and per phase (first, count, ((tap, offset), ...))."""
        size, out, stride, phases = record
        taps = [tap for _, _, members in phases for tap in members]
        axis.size = size
        axis.out = out
        axis.stride = stride
        axis.phases = len(phases)
        axis.grid = max([count for _, count, _ in phases], default=0)
        axis.low = min([offset for _, offset in taps], default=0)
        axis.high = max([offset for _, offset in taps], default=0)
        axis.first = self.integers([first for first, _, _ in phases])
        axis.count = self.integers([count for _, count, _ in phases])
        axis.start = self.integers(np.cumsum([0] + [len(members) for _, _, members in phases]))
        axis.tap = self.integers([tap for tap, _ in taps])
        axis.offset = self.integers([offset for _, offset in taps])

    def run(self, cnp.ndarray x, cnp.ndarray y, int code, tuple params, int threads):
        """Compute y from x; returns the size of the team that did it.

        x and y have the problem's shapes, this module's dtype, strides that are whole
        numbers of reals, and channels (channels_last) or rows (channels_first) of unit
        stride. `code` and `params` name a fused activation.
        """
        cdef Call call
        cdef Py_ssize_t total, batch = cnp.PyArray_DIM(x, 0)
        cdef Py_ssize_t size
        cdef int i, team
        cdef bint lone
        cdef int channel = 4 if self.channels_last else 1
        cdef int space = 1 if self.channels_last else 2
        call.x = reals(x)
        call.y = reals(y)
        for i in range(4):
            call.x_step[i] = cnp.PyArray_STRIDE(x, i + space - 1 if i else 0) // REAL_BYTES
            call.y_step[i] = cnp.PyArray_STRIDE(y, i + space - 1 if i else 0) // REAL_BYTES
        call.x_channel = cnp.PyArray_STRIDE(x, channel) // REAL_BYTES
        call.y_channel = cnp.PyArray_STRIDE(y, channel) // REAL_BYTES
        call.act.code = code
        for i in range(4):
            call.act.p[i] = <double>params[i]
        call.stream = cnp.PyArray_NBYTES(y) >= STREAM_BYTES
        call.vectors = <uintptr_t>call.y % VECTOR_BYTES == 0
        for i in range(4):
            call.vectors = call.vectors and call.y_step[i] % _VECTOR == 0
        call.tile[0] = tile_narrow
        call.tile[1] = tile_wide
        call.split[0] = split_narrow
        call.split[1] = split_wide
        call.turn_in = turn_in
        call.turn_out = turn_out
        lone = threads == 1 and self.lone_tasks > 0
        total = batch * (self.lone_tasks if lone else self.tasks)
        if total == 0 or cnp.PyArray_SIZE(y) == 0:
            return 1
        call.chunks = self.least_chunks
        if threads > 1:
            call.chunks = max(
                call.chunks, ceil_div(self.share * threads, total),
                min(ceil_div(FINE_SHARE * threads, total), self.cheap_chunks),
            )
        call.chunks = min(call.chunks, self.most_chunks)
        total *= call.chunks
        threads = <int>max(min(<Py_ssize_t>threads, total), 1)
        size = (self.scratch + 4096 + 63) // 64 * 64
        try:
            buffer = _scratch.pop()
        except IndexError:
            buffer = None
        if buffer is None or cnp.PyArray_NBYTES(buffer) < size * threads:
            buffer = aligned(size * threads // REAL_BYTES)
        vallow(cnp.PyArray_DATA(buffer), size * threads)
        team = self.drive(
            self.lone_plan if lone else self.self_plan, &call, total, batch, threads,
            <char *>cnp.PyArray_DATA(buffer), size,
        )
        if not _scratch and cnp.PyArray_NBYTES(buffer) <= SCRATCH_KEPT * threads:
            _scratch.append(buffer)
        return team

    cdef int drive(
        self, const void *plan, const Call *call, Py_ssize_t total, Py_ssize_t batch, int threads,
        char *scratch, Py_ssize_t size,
    ) except -1:
        """All tasks, with a look at pending signals (Ctrl-C) now and then."""
        cdef Task task = self.task
        cdef double parts = self.multiplications * batch / SIGNAL_MULTIPLICATIONS
        cdef Py_ssize_t part = total, first, last, i
        cdef int team = 1
        if parts > 1:  # a few tasks each, to even out their differences, unless they are long
            part = <Py_ssize_t>max(total / parts, threads * min(4.0, max(4 * total / parts, 1.0)))
            part = even_part(total, part)
        for first in range(0, total, part):
            last = min(first + part, total)
            with nogil:
                team = run_tasks(task, plan, call, first, last, threads, scratch, size)
            if last < total:
                PyErr_CheckSignals()
        return team


    def softmax(self, cnp.ndarray y, int threads):
        """Softmax of the rows of a contiguous array (its last axis), in place."""
        cdef Py_ssize_t n = cnp.PyArray_DIM(y, cnp.PyArray_NDIM(y) - 1)
        cdef Py_ssize_t rows = cnp.PyArray_SIZE(y) // max(n, 1)
        cdef Py_ssize_t some = max(ROWS_REALS // max(n, 1), 1), i
        cdef real *data = reals(y)
        if threads == 1:
            with nogil:
                for i from 0 <= i < rows by some:
                    softmax_rows(data + i * n, min(some, rows - i), n)
            return
        for i in prange(ceil_div(rows, some), num_threads=threads, schedule="static", nogil=True):
            softmax_rows(data + i * some * n, min(some, rows - i * some), n)


cdef int run_tasks(
    Task task, const void *plan, const Call *call, Py_ssize_t first, Py_ssize_t last,
    int threads, char *scratch, Py_ssize_t size,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef int team = 1
    if threads == 1:
        for i in range(first, last):
            task(plan, call, i, scratch)
        vfence()
        return team
    with parallel(num_threads=threads):
        if threadid() == 0:
            note_team(&team)
        for i in prange(first, last, schedule="dynamic", chunksize=1):
            task(plan, call, i, scratch + threadid() * size)
        vfence()
    return team


cdef inline void note_team(int *team) noexcept nogil:
    team[0] = omp_get_num_threads()


def pack_tiles(cnp.ndarray kernel, axes, Py_ssize_t groups, bint fused):
    """Weights as the tiles algorithm reads them, and where each phase's panel starts.

    kernel: (kd, kh, kw, filters per group, channels). axes: per axis the phases' taps.
    Layout: see tiles.pxd.
    """
    cdef Py_ssize_t filters = kernel.shape[3], depth = kernel.shape[4] // groups
    cdef Py_ssize_t columns = filters * (kernel.shape[2] if fused else 1)
    cdef Py_ssize_t padded = ceil_div(columns, _VECTOR) * _VECTOR
    cdef Py_ssize_t start, terms, width, column
    # Fused, the taps of the width are columns; else they are terms of the sum.
    order = (0, 1, 4, 2, 3) if fused else (0, 1, 2, 4, 3)
    combos = [np.ix_(d, h, w) for d in axes[0] for h in axes[1] for w in axes[2]]
    starts, size = [], 0
    for taps in combos:
        starts.append(size)
        terms = taps[0].size * taps[1].size * (1 if fused else taps[2].size) * depth
        size += terms * padded
    packed = aligned(groups * size)
    for g in range(groups):
        part = kernel[..., g * depth:(g + 1) * depth]
        for taps, start in zip(combos, starts):
            matrix = part[taps].transpose(order).reshape(-1, columns)
            terms = matrix.shape[0]
            start += g * size
            for column in range(0, padded, _NR):
                width = min(<Py_ssize_t>_NR, padded - column)
                panel = packed[start:start + terms * width].reshape(terms, width)
                panel[:, columns - column:] = 0
                panel[:, :min(columns - column, width)] = matrix[:, column:column + width]
                start += terms * width
    return packed, tuple(starts)


# The transforms of 1, 2 and 3 taps, in the order of the input; see winograd.pxd.
TRANSFORMS = {
    1: np.array([[1.0]]),
    2: np.array([[1.0, 0], [1, 1], [0, 1]]),
    3: np.array([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
}


def pays(combo):
    """Whether a phase is transformed: it has several taps along two axes (winograd.pxd)."""
    return sum([len(taps) > 1 for taps in combo]) > 1


def pack_winograd(cnp.ndarray kernel, axes):
    """Transformed weights as winograd.pxd reads them, and where each phase's panel starts.

    kernel: (kd, kh, kw, filters, channels). axes: per axis the phases' taps. Computed in
    float64 and rounded once.
    """
    cdef Py_ssize_t filters = kernel.shape[3], channels = kernel.shape[4]
    cdef Py_ssize_t padded = ceil_div(filters, _VECTOR) * _VECTOR
    cdef Py_ssize_t column, width
    parts, starts, size = [], [], 0
    combos = [(d, h, w) for d in axes[0] for h in axes[1] for w in axes[2]]
    for combo in combos:
        starts.append(size)
        products = 1
        for taps in combo:
            products *= TRANSFORMS[len(taps)].shape[0] if pays(combo) else len(taps)
        size += products * channels * padded
    packed = aligned(size)
    for combo, start in zip(combos, starts):
        phase = kernel[np.ix_(*combo)]
        if pays(combo):
            d, h, w = [TRANSFORMS[len(taps)] for taps in combo]
            phase = np.tensordot(d, phase[::-1, ::-1, ::-1].astype(np.float64), (1, 0))
            phase = np.moveaxis(np.tensordot(h, phase, (1, 1)), 0, 1)
            phase = np.moveaxis(np.tensordot(w, phase, (1, 2)), 0, 2)
        matrix = phase.transpose(0, 1, 2, 4, 3).reshape(-1, filters)
        for column in range(0, padded, _NR):
            width = min(<Py_ssize_t>_NR, padded - column)
            panel = packed[start:start + matrix.shape[0] * width].reshape(-1, width)
            panel[:, filters - column:] = 0
            panel[:, :min(filters - column, width)] = matrix[:, column:column + width]
            start += matrix.shape[0] * width
    return packed, tuple(starts)


cdef void tile_sides(TilesPlan *p, Py_ssize_t room):
    """Boxes of about `room` register tiles that leave the fewest rows of tiles idle."""
    cdef Py_ssize_t side[3]
    cdef Py_ssize_t most, tiles, best = -1
    cdef int a
    for most in range(room * _MR, 2 * room * _MR + 1):
        side[2] = even_part(p.axes[2].grid, most)
        side[1] = even_part(p.axes[1].grid, most // side[2])
        side[0] = even_part(p.axes[0].grid, most // (side[2] * side[1]))
        tiles = boxed_tiles(p.axes, side)
        if best < 0 or tiles < best:
            best = tiles
            for a in range(3):
                p.side[a] = side[a]


cdef Py_ssize_t boxed_tiles(const Axis *axes, const Py_ssize_t *side):
    """Register tiles of all boxes, those at the ends of the grid included."""
    cdef Py_ssize_t i, total = 0, positions, boxes
    cdef int a
    for i in range(8):
        positions = boxes = 1
        for a in range(3):
            if i >> a & 1:
                positions *= axes[a].grid % side[a]
            else:
                positions *= side[a]
                boxes *= axes[a].grid // side[a]
        total += boxes * ceil_div(positions, _MR)
    return total


cdef void minimal_sides(TilesPlan *p, Py_ssize_t weights):
    """Equal boxes of whole tiles, whose transformed inputs fit a part of the second-level
    cache: the fewest, and of these the ones that load the fewest inputs. Every box reads all
    `weights`; if those are many bytes, larger boxes cost less, even out of that cache."""
    cdef Py_ssize_t images = max(IMAGES_BYTES, min(weights // 8, MOST_IMAGES_BYTES))
    cdef Py_ssize_t most = images // ((p.channels + _NR) * REAL_BYTES)
    cdef Py_ssize_t half[3]
    cdef Py_ssize_t best[3]
    cdef Py_ssize_t d, h, w, boxes, loads, fewest = 0, least = 0, longest = 1
    cdef int a
    for a in range(3):
        half[a] = max(ceil_div(p.axes[a].grid, 2), 1)
        best[a] = p.side[a] = 2
    if not p.channels_last:  # whole rows: they are stored as runs
        for w in range(1, min(half[2], 32) + 1):
            p.side[2] = 2 * w
            if even_part(half[2], w) == w and minimal_room(p) <= most:
                longest = w
    for d in range(1, half[0] + 1):
        if even_part(half[0], d) < d:
            continue
        p.side[0] = 2 * d
        p.side[1] = p.side[2] = 2
        if minimal_room(p) > most and fewest > 0:
            break
        for h in range(1, half[1] + 1):
            if even_part(half[1], h) < h:
                continue
            p.side[1] = 2 * h
            p.side[2] = 2 * longest
            if minimal_room(p) > most and fewest > 0:
                break
            for w in range(longest, half[2] + 1):
                if even_part(half[2], w) < w:
                    continue
                p.side[2] = 2 * w
                if minimal_room(p) > most and fewest > 0:
                    break
                boxes = loads = box_count(p.side, p.axes)
                for a in range(3):
                    loads *= p.side[a] + p.axes[a].high - p.axes[a].low
                if fewest == 0 or boxes < fewest or (boxes == fewest and loads < least):
                    fewest, least = boxes, loads
                    for a in range(3):
                        best[a] = p.side[a]
    for a in range(3):
        p.side[a] = best[a]


cdef class Tiles(Plan):
    """A problem prepared for the tiles algorithm."""

    cdef TilesPlan plan

    def __init__(
        self, axes, Py_ssize_t channels, Py_ssize_t filters, Py_ssize_t groups,
        bint channels_last, bint fused, bint minimal, bint sparse, packed, bias,
        double multiplications,
    ):
        """axes: records of `set_axis`; packed, bias: (weights, starts), (groups, padded)."""
        cdef TilesPlan *p = &self.plan
        cdef Py_ssize_t columns, room, results
        cdef Workspace work
        cdef int a
        self.keep = []
        for a in range(3):
            self.set_axis(&p.axes[a], axes[a])
        columns = filters // groups
        if fused:
            columns *= p.axes[2].stride
        zeros = np.zeros(channels, DTYPE)
        weights, starts = packed
        self.keep += [zeros, weights, bias]
        p.channels = channels
        p.depth = channels // groups
        p.filters = filters // groups
        p.columns = columns
        p.padded = ceil_div(columns, _VECTOR) * _VECTOR
        p.blocks = ceil_div(p.padded, _NR)
        p.groups = groups
        p.fused = fused
        p.minimal = minimal
        p.alike = groups == 1 and all([
            len({(count, tuple([offset for _, offset in taps])) for _, count, taps in axis[3]}) == 1
            for axis in axes
        ])
        # Positions are left out tap by tap.
        p.sparse = sparse and not minimal and not p.alike and tap_block(p.depth) == 1
        p.channels_last = channels_last
        p.packed = reals(weights)
        p.panel = self.integers(starts)
        p.group_panel = weights.size // groups
        p.bias = reals(bias)
        p.zeros = reals(zeros)
        p.far = weights.nbytes >= FAR_BYTES
        room = LEAST_TILES
        if p.far:  # larger boxes, as long as their inputs stay in the second-level cache
            room = min(max(room, IMAGES_BYTES // (2 * _MR * p.depth * REAL_BYTES)), 2 * room)
        tile_sides(p, room)
        for a in range(3):
            p.spread[a] = 1
        p.together = 1
        p.kept = 1 if channels_last or not minimal else p.blocks
        if not channels_last:
            p.spread[2] = p.axes[2].stride
            p.together = p.axes[2].phases
            results = box_positions(p) * p.axes[1].stride * p.together * _NR * REAL_BYTES
            if not minimal and p.axes[1].phases == p.axes[1].stride and results <= SUMS_BYTES:
                p.spread[1] = p.axes[1].stride
                p.together *= p.axes[1].phases
        if minimal:
            minimal_sides(p, weights.nbytes)
        self.channels_last = channels_last
        self.multiplications = multiplications
        self.tasks = box_count(p.side, p.axes)
        self.most_chunks = tiles_units(p)
        self.share = 4 if channels_last and not minimal else 2
        # A chunk begins by loading its input, or by transforming it for a phase.
        self.cheap_chunks = self.most_chunks // (p.blocks if minimal else SOME_UNITS)
        self.least_chunks = 1
        if self.tasks > 1:  # several boxes take turns with a chunk of the weights
            self.least_chunks = ceil_div(weights.nbytes, CHUNK_BYTES)
        if minimal or not channels_last:  # a chunk begins by transforming its input
            self.least_chunks = min(self.least_chunks, self.most_chunks // p.blocks)
        self.scratch = tiles_scratch(p, NULL, &work)
        self.task = tiles_task
        self.self_plan = p


cdef void taps_sides(TapsPlan *p, Py_ssize_t most, Py_ssize_t boxes):
    """Boxes of at most `most` positions of depth x height that load the fewest input rows, and at
    least so many boxes."""
    cdef const Axis *depth = &p.axes[0]
    cdef const Axis *height = &p.axes[1]
    cdef Py_ssize_t fewest = min(boxes, max(depth.grid, height.grid), depth.grid * height.grid)
    cdef Py_ssize_t loads, planes, rows, d, h, best = -1
    for d in range(1, max(min(depth.grid, most), 1) + 1):
        planes = even_part(depth.grid, d)
        for h in range(max(min(height.grid, most // planes), 1), 0, -1):
            rows = even_part(height.grid, h)
            if ceil_div(depth.grid, planes) * ceil_div(height.grid, rows) < fewest:
                continue
            loads = loaded_rows(depth, planes) * loaded_rows(height, rows)
            if best < 0 or loads < best:
                best = loads
                p.side[0] = planes
                p.side[1] = rows


cdef Py_ssize_t loaded_rows(const Axis *axis, Py_ssize_t side):
    """What all boxes together load along an axis."""
    return ceil_div(axis.grid, side) * min(side + axis.high - axis.low, axis.size)


cdef Py_ssize_t sum_reach(const TapsPlan *p):
    """Positions from sum to sum: a margin, and what is stored. What the tiles of any box add beyond
    that goes to the next sum's margin, or where it is more than that has room of its own."""
    cdef const Axis *width = &p.axes[2]
    cdef Py_ssize_t side = p.side[2]
    cdef Py_ssize_t stored = (p.lines - 1) * side + ceil_div(side, _VECTOR) * _VECTOR
    cdef Py_ssize_t end = stored, lo, first, n
    for lo from 0 <= lo < width.grid by side:
        first = max(lo + width.low, 0)
        n = p.lines * (min(min(lo + side, width.grid) + width.high, width.size) - first)
        end = max(end, first - lo - width.low + ceil_div(n, _VECTOR) * _VECTOR)
    return ceil_div(p.left + (stored if end <= stored + p.left else end), _VECTOR) * _VECTOR


cdef class Taps(Plan):
    """A problem prepared for the taps algorithm; `kernel` is used as it is."""

    cdef TapsPlan plan
    cdef TapsPlan lone

    def __init__(
        self, axes, Py_ssize_t channels, Py_ssize_t filters, bint channels_last,
        cnp.ndarray kernel, cnp.ndarray bias, double multiplications,
    ):
        """axes: records of `set_axis`; kernel: (kd, kh, kw, filters, channels) contiguous."""
        cdef TapsPlan *p = &self.plan
        cdef Py_ssize_t row, most
        cdef double rows, work
        cdef Room room
        cdef int a
        per_stream = np.tile(bias.ravel(), axes[2][2]) if channels_last else np.repeat(
            bias.ravel(), axes[2][2]
        )
        no_bias = np.zeros_like(per_stream)
        self.keep = [kernel, per_stream, no_bias]
        for a in range(3):
            self.set_axis(&p.axes[a], axes[a])
        p.channels = channels
        p.filters = filters
        p.channels_last = channels_last
        p.weights = reals(kernel)
        p.bias = reals(per_stream)
        p.no_bias = reals(no_bias)
        p.streams = p.axes[2].stride * filters
        p.side[2] = even_part(p.axes[2].grid, 256)
        # A whole number of vectors: the sums of taps without offset lie within cache lines.
        p.left = ceil_div(p.axes[2].high - p.axes[2].low, _VECTOR) * _VECTOR
        p.overlap = any([len(taps) > 1 for axis in axes for _, _, taps in axis[3]])
        p.plain = not p.overlap
        for a in range(3):
            p.plain = (
                p.plain and p.axes[a].phases == p.axes[a].stride
                and p.axes[a].low == 0 and p.axes[a].high == 0
                and p.axes[a].grid <= p.axes[a].size
            )
        p.woven = p.streams if channels_last else p.axes[2].stride
        if not p.plain or not weaves(p.woven) or depth_block(channels) < channels:
            p.woven = 0
        p.weave = woven_tile
        order = np.arange(p.streams).reshape(-1, filters)
        p.row = self.integers(order.ravel() if channels_last else order.T.ravel())
        p.lines = 1
        if p.plain and (p.woven > 0 or not channels_last) and p.axes[2].grid < LINE:
            p.lines = even_part(p.axes[1].grid, LINE // p.axes[2].grid)
        p.reach = sum_reach(p)
        for a in range(2):
            by_tap = sorted([
                (tap, first, count, offset)
                for first, count, taps in axes[a][3] for tap, offset in taps
            ])
            p.taps[a] = len(by_tap)
            p.first[a] = self.integers([first for _, first, _, _ in by_tap])
            p.count[a] = self.integers([count for _, _, count, _ in by_tap])
            p.offset[a] = self.integers([offset for _, _, _, offset in by_tap])
        by_tap = sorted([
            (tap, first, offset) for first, _, taps in axes[2][3] for tap, offset in taps
        ])
        p.rows = len(by_tap) * filters
        p.shift = self.integers([
            (first * filters + f if channels_last else f * axes[2][2] + first) * p.reach - offset
            for _, first, offset in by_tap for f in range(filters)
        ])
        # Sums of a box fit a part of the second-level cache, and a task ends soon.
        row = p.axes[0].stride * p.axes[1].stride * p.streams * p.reach * REAL_BYTES
        rows = <double>max(p.axes[0].grid * p.axes[1].grid, 1)
        work = max(multiplications * TAPS_SLOWER / SIGNAL_MULTIPLICATIONS, 1.0)
        most = <Py_ssize_t>max(min(SUMS_BYTES // row, rows / work), 1.0)
        taps_sides(p, most, LEAST_BOXES)
        if p.lines > 1:
            p.side[0] = 1
            p.side[1] = p.lines
        self.lone = self.plan
        if not p.plain:  # rows are loaded for several boxes; sums do not depend on the box
            taps_sides(&self.lone, most, 1)
        self.lone_tasks = box_count(self.lone.side, self.lone.axes)
        self.lone_plan = &self.lone
        self.channels_last = channels_last
        self.multiplications = multiplications * TAPS_SLOWER
        self.tasks = box_count(p.side, p.axes)
        self.share = 1
        self.cheap_chunks = 1
        self.least_chunks = 1
        self.most_chunks = 1
        self.scratch = max(taps_scratch(p, NULL, &room), taps_scratch(&self.lone, NULL, &room))
        self.task = taps_task
        self.self_plan = p


cdef void woven_tile(
    Py_ssize_t rows, int streams, Py_ssize_t depth, const real *const *a, const real *b,
    Py_ssize_t ldb, const real *const *bias, real *const *out, Py_ssize_t left_at,
    Py_ssize_t right_at, bint both, bint stream,
) noexcept nogil:
    woven_rows(rows, streams, depth, a, b, ldb, bias, out, left_at, right_at, both, stream)


def pack_lanes(kernel):
    """Weights as lanes.pxd reads them: [tap][some filters][channel][filter].

    kernel: (kd, kh, kw, filters, channels).
    """
    d, h, w, filters, channels = kernel.shape
    some = filters_of_a_tile(filters)
    taps = kernel.reshape(d * h * w, filters, channels)
    parts = [
        taps[:, f:f + some].transpose(0, 2, 1).reshape(d * h * w, -1)
        for f in range(0, filters, some)
    ]
    packed = aligned(kernel.size)
    np.concatenate(parts, axis=1, out=packed.reshape(d * h * w, -1))
    return packed


def filters_of_a_tile(Py_ssize_t filters):
    """Equal parts, the last of them may be smaller."""
    return even_part(filters, MOST_FILTERS)


cdef void lanes_tile(
    Py_ssize_t positions, Py_ssize_t taps, Py_ssize_t low, Py_ssize_t high,
    const real *const *a, const real *const *b, Py_ssize_t ldb, const real *bias,
    bint more, real *out, Py_ssize_t ldo, int mr,
) noexcept nogil:
    lanes_rows(positions, taps, low, high, a, b, ldb, bias, more, out, ldo, mr)


cdef Py_ssize_t lanes_bytes(LanesPlan *p):
    """Of the image and the sums of a box of these sides."""
    lanes_shape(p)
    return (image_reals(p) + p.streams * p.span) * REAL_BYTES


cdef void lanes_sides(LanesPlan *p):
    """Boxes whose image and sums fit a part of the second-level cache: of these the ones that take
    the least time to load and to compute, in enough boxes for threads to share."""
    cdef Py_ssize_t best[2]
    cdef Py_ssize_t products = p.filters, boxes, rows, time, least = -1, d, h, room = PLANES_BYTES
    cdef int a
    best[0] = best[1] = 1
    p.side[2] = even_part(p.axes[2].grid, 256)
    if p.axes[0].low == p.axes[0].high and p.axes[1].low == p.axes[1].high:
        room = NEAR_BYTES  # nothing is loaded twice
    for a in range(3):
        products *= p.axes[a].start[p.axes[a].phases]
    for d in range(1, p.axes[0].grid + 1):
        if even_part(p.axes[0].grid, d) < d:
            continue
        p.side[0] = d
        p.side[1] = 1
        if lanes_bytes(p) > room:
            break
        for h in range(1, p.axes[1].grid + 1):
            if even_part(p.axes[1].grid, h) < h:
                continue
            p.side[1] = h
            if lanes_bytes(p) > room:
                break
            boxes = box_count(p.side, p.axes)
            # Each box costs about as much as a row.
            rows = 1 + (d + p.axes[0].high - p.axes[0].low) * p.height
            time = boxes * (LOAD * rows * p.pitch + products * d * lanes_positions(p))
            if least < 0 or (time < least and boxes >= LEAST_BOXES):
                least = time
                best[0] = d
                best[1] = h
    p.side[0] = best[0]
    p.side[1] = best[1]
    lanes_shape(p)


cdef class Lanes(Plan):
    """A problem prepared for the lanes algorithm."""

    cdef LanesPlan plan

    def __init__(
        self, axes, Py_ssize_t channels, Py_ssize_t filters, bint channels_last,
        cnp.ndarray packed, cnp.ndarray bias, double multiplications,
    ):
        """axes: records of `set_axis`; packed: from `pack_lanes`; bias: (filters,)."""
        cdef LanesPlan *p = &self.plan
        cdef LanesRoom room
        cdef int a
        stride = axes[2][2]
        spread = np.tile(bias, stride) if channels_last else np.repeat(bias, stride)
        zeros = np.zeros_like(spread)
        self.keep = [packed, bias, spread, zeros]
        for a in range(3):
            self.set_axis(&p.axes[a], axes[a])
        p.channels = channels
        p.filters = filters
        p.some = filters_of_a_tile(filters)
        p.streams = stride * filters
        p.channels_last = channels_last
        p.weights = reals(packed)
        p.bias = reals(bias)
        p.spread = reals(spread)
        p.zeros = reals(zeros)
        p.tile = lanes_tile
        lanes_sides(p)
        self.channels_last = channels_last
        self.multiplications = multiplications
        self.tasks = box_count(p.side, p.axes)
        self.share = 1
        self.cheap_chunks = 1
        self.least_chunks = 1
        self.most_chunks = 1
        self.scratch = lanes_scratch(p, NULL, &room)
        self.task = lanes_task
        self.self_plan = p


def pack_depthwise(kernel):
    """Weights as depthwise.pxd reads them: (kd, kh, kw, filters, wrapped).

    kernel: (kd, kh, kw, filters per channel, channels).
    """
    d, h, w, repeat, channels = kernel.shape
    return wrapped(np.moveaxis(kernel, 3, 4).reshape(d, h, w, repeat * channels))


def wrapped(row):
    """The last axis, and its first NR numbers once more, however few it has; `aligned`."""
    size = row.shape[row.ndim - 1]
    long = aligned(row.size // size * (size + _NR)).reshape(*row.shape[:row.ndim - 1], size + _NR)
    return np.take(row, np.arange(size + _NR) % size, axis=row.ndim - 1, out=long)


cdef void depthwise_tile(
    const Terms *terms, Py_ssize_t blocks, Py_ssize_t tiles, Py_ssize_t at, Py_ssize_t column,
    real *out, Py_ssize_t length, int rows,
) noexcept nogil:
    depthwise_tile_rows(terms, blocks, tiles, at, column, out, length, rows)


cdef class Depthwise(Plan):
    """A problem prepared for the depthwise algorithm."""

    cdef DepthwisePlan plan

    def __init__(
        self, axes, Py_ssize_t channels, Py_ssize_t filters, bint channels_last,
        cnp.ndarray packed, cnp.ndarray bias, double multiplications,
    ):
        """axes: records of `set_axis`; packed, bias: from `pack_depthwise`, `wrapped`."""
        cdef DepthwisePlan *p = &self.plan
        cdef Py_ssize_t plane
        cdef Space space
        cdef int a
        zeros = np.zeros(max(bias.size, len(axes[2][3])), DTYPE)
        self.keep = [packed, bias, zeros]
        for a in range(3):
            self.set_axis(&p.axes[a], axes[a])
            p.tap_step[a] = cnp.PyArray_STRIDE(packed, a) // REAL_BYTES
        p.tile = depthwise_tile
        p.channels = channels
        p.filters = filters
        p.repeat = filters // channels
        p.voxel = filters if channels_last else 1
        p.channels_last = channels_last
        p.weights = reals(packed)
        p.bias = reals(bias)
        p.zeros = reals(zeros)
        p.along = channels_last and filters % _VECTOR == 0 and p.axes[2].grid >= min(
            <Py_ssize_t>4, p.axes[1].grid
        )
        p.side[2] = even_part(p.axes[2].grid, max(ROW_REALS // p.voxel, ROWS))
        plane = p.side[2] * p.voxel
        p.band = even_part(p.axes[1].grid, max(BAND_REALS // plane, ROWS))
        p.side[1] = even_part(p.axes[1].grid, max(BOX_REALS // plane, 1))
        p.band = 1 if p.along else min(p.band, p.side[1])
        p.side[0] = even_part(p.axes[0].grid, max(ROW_REALS // (p.side[1] * plane), 1))
        self.channels_last = channels_last
        self.multiplications = multiplications * DEPTHWISE_SLOWER
        self.tasks = box_count(p.side, p.axes)
        self.least_chunks = 1
        self.most_chunks = depthwise_units(p)
        self.share = 4
        self.cheap_chunks = 1
        self.scratch = depthwise_scratch(p, NULL, &space)
        self.task = depthwise_task
        self.self_plan = p
