# Minimal filtering (Toom-Cook, Winograd): fewer multiplications for phases with 2 or 3 taps.
#
# Along an axis whose phase has r taps, m = 2 neighbouring outputs need n = r + 1 products
# instead of 2r. With inputs x0.. and taps g0.. in the order of the input:
#
#     r = 2   m0 = (x0-x1) g0          y0 = m0 + m1        3 products for 4
#             m1 = x1 (g0+g1)          y1 = m1 + m2
#             m2 = (x2-x1) g1
#
#     r = 3   m0 = (x0-x2) g0                 y0 = m0 + m1 + m2      4 products for 6
#             m1 = (x1+x2) (g0+g1+g2)/2       y1 = m1 - m2 - m3
#             m2 = (x2-x1) (g0-g1+g2)/2
#             m3 = (x1-x3) g2
#
# and an axis with one tap stays as it is (m = n = 1); a phase needs two others to gain. In three dimensions the products of a
# tile of m*m*m outputs are n*n*n matrix products over the channels:
#
#     images[product][tile][channel]      inputs of a tile, transformed         (per phase)
#     panel [product][channel][columns]   taps, transformed when packed
#     products[product][tile][NR]         their matrix product, by register tiles
#     outputs                             of a tile, transformed back
#
# The transforms are additions that the filters (in) and channels (out) amortise. Tiles begin
# at even positions of the grid, wherever a box begins, so the box does not change a bit.
from libc.string cimport memcpy, memset
from call cimport Call
from geometry cimport Axis, Source, even_part
from microkernel cimport depth_block, tap_block
from simd cimport (
    real, vf, HALF_MR, MR, NR, VECTOR, vload, vstore, vstream, vadd, vsub, vset,
)

cdef enum:
    MOST = 64  # products of a tile: 4 * 4 * 4


cdef inline Py_ssize_t minimal_block(Py_ssize_t channels) noexcept nogil:
    # Channels in a block of the sum. The transforms nearly triple a block's rounding error;
    # with a third of the direct kernels' block (a quarter of a short one) it stays within twice
    # theirs.
    cdef Py_ssize_t direct = tap_block(channels) * depth_block(channels)
    return even_part(channels, (direct + 2) // 3 if direct >= 64 else (direct + 3) // 4)


cdef struct Grid:  # the tiles of a box for one phase
    Py_ssize_t taps[3]
    Py_ssize_t low[3]  # offset of the first input
    Py_ssize_t lo[3]
    Py_ssize_t hi[3]
    Py_ssize_t tiles[3]


cdef inline Py_ssize_t outputs_of(Py_ssize_t taps) noexcept nogil:
    return 1 if taps == 1 else 2


cdef inline Py_ssize_t products_of(Py_ssize_t taps) noexcept nogil:
    return 1 if taps == 1 else taps + 1


cdef inline Py_ssize_t grid_products(const Grid *grid) noexcept nogil:
    return (
        products_of(grid.taps[0]) * products_of(grid.taps[1]) * products_of(grid.taps[2])
    )


cdef inline bint pays(const Grid *grid) noexcept nogil:
    # Phases with several taps along one axis only save less than the transforms cost.
    return (grid.taps[0] > 1) + (grid.taps[1] > 1) + (grid.taps[2] > 1) > 1


cdef inline Grid make_grid(
    const Axis *axes, const Py_ssize_t *phase, const Py_ssize_t *lo, const Py_ssize_t *hi
) noexcept nogil:
    cdef Grid grid
    cdef Py_ssize_t q, m
    cdef int a
    for a in range(3):
        q = axes[a].start[phase[a]]
        grid.taps[a] = axes[a].start[phase[a] + 1] - q
        # Taps are in ascending order, their offsets descend.
        grid.low[a] = axes[a].offset[q + grid.taps[a] - 1]
        grid.lo[a] = lo[a]
        grid.hi[a] = hi[a]
        m = outputs_of(grid.taps[a])
        grid.tiles[a] = (hi[a] - lo[a] + m - 1) // m
    return grid


cdef inline void transform_in(vf *v, Py_ssize_t step, Py_ssize_t taps) noexcept nogil:
    cdef vf x1 = v[step]
    cdef vf x2 = v[2 * step]
    if taps == 2:
        v[0] = vsub(v[0], x1)
        v[2 * step] = vsub(x2, x1)
    elif taps == 3:
        v[0] = vsub(v[0], x2)
        v[step] = vadd(x1, x2)
        v[2 * step] = vsub(x2, x1)
        v[3 * step] = vsub(x1, v[3 * step])


cdef inline void transform_out(vf *v, Py_ssize_t step, Py_ssize_t taps) noexcept nogil:
    cdef vf m1 = v[step]
    cdef vf m2 = v[2 * step]
    if taps == 2:
        v[0] = vadd(v[0], m1)
        v[step] = vadd(m1, m2)
    elif taps == 3:
        v[0] = vadd(vadd(v[0], m1), m2)
        v[step] = vsub(vsub(m1, m2), v[3 * step])


cdef inline void transform_channels(
    const real **inputs, Py_ssize_t channel, Py_ssize_t n,
    Py_ssize_t taps_d, Py_ssize_t taps_h, Py_ssize_t taps_w, real *image, Py_ssize_t step,
) noexcept nogil:
    # The n <= VECTOR channels from `channel` on of one tile.
    cdef vf v[MOST]
    cdef real some[VECTOR]
    cdef Py_ssize_t nd = products_of(taps_d), nh = products_of(taps_h), nw = products_of(taps_w)
    cdef Py_ssize_t i, j
    for i in range(nd * nh * nw):
        if n == VECTOR:
            v[i] = vload(inputs[i] + channel)
        else:
            for j in range(VECTOR):
                some[j] = inputs[i][channel + j] if j < n else 0
            v[i] = vload(some)
    if taps_w > 1:
        for i in range(nd * nh):
            transform_in(v + i * nw, 1, taps_w)
    if taps_h > 1:
        for i in range(nd):
            for j in range(nw):
                transform_in(v + i * nh * nw + j, nw, taps_h)
    if taps_d > 1:
        for i in range(nh * nw):
            transform_in(v + i, nh * nw, taps_d)
    for i in range(nd * nh * nw):
        vstore(image + i * step, v[i])


cdef inline void transform_tile_in(
    const real **inputs, Py_ssize_t channels, Py_ssize_t taps_d, Py_ssize_t taps_h,
    Py_ssize_t taps_w, real *image, Py_ssize_t step,
) noexcept nogil:
    cdef Py_ssize_t c
    cdef Py_ssize_t whole = channels - channels % VECTOR
    for c from 0 <= c < whole by VECTOR:
        transform_channels(inputs, c, VECTOR, taps_d, taps_h, taps_w, image + c, step)
    if whole < channels:
        transform_channels(
            inputs, whole, channels - whole, taps_d, taps_h, taps_w, image + whole, step
        )


cdef inline void transform_inputs(
    const Grid *grid, const Source *source, Py_ssize_t channels, Py_ssize_t padded,
    const real *zeros, real *images,
) noexcept nogil:
    # images[product][tile][padded channels]
    cdef const real *inputs[MOST]
    cdef Py_ssize_t n[3]
    cdef Py_ssize_t start[3]
    cdef Py_ssize_t d, h, w, i, j, k, q
    cdef real *image = images
    cdef const real *row
    cdef bint whole
    cdef Py_ssize_t step = grid.tiles[0] * grid.tiles[1] * grid.tiles[2] * padded
    # The frequent patterns of taps are constants: the tile then stays in registers.
    cdef int pattern = <int>(grid.taps[0] * 100 + grid.taps[1] * 10 + grid.taps[2])
    cdef int a
    for a in range(3):
        n[a] = products_of(grid.taps[a])
    for d in range(grid.tiles[0]):
        start[0] = grid.lo[0] + d * outputs_of(grid.taps[0]) + grid.low[0]
        for h in range(grid.tiles[1]):
            start[1] = grid.lo[1] + h * outputs_of(grid.taps[1]) + grid.low[1]
            for w in range(grid.tiles[2]):
                start[2] = grid.lo[2] + w * outputs_of(grid.taps[2]) + grid.low[2]
                whole = (
                    source.lo[0] <= start[0] and start[0] + n[0] <= source.hi[0]
                    and source.lo[1] <= start[1] and start[1] + n[1] <= source.hi[1]
                    and source.lo[2] <= start[2] and start[2] + n[2] <= source.hi[2]
                )
                q = 0
                for i in range(start[0], start[0] + n[0]):
                    for j in range(start[1], start[1] + n[1]):
                        row = (
                            source.x + (i - source.lo[0]) * source.step[0]
                            + (j - source.lo[1]) * source.step[1]
                            - source.lo[2] * source.step[2]
                        )
                        for k in range(start[2], start[2] + n[2]):
                            inputs[q] = row + k * source.step[2]
                            if not whole and not (
                                source.lo[0] <= i < source.hi[0]
                                and source.lo[1] <= j < source.hi[1]
                                and source.lo[2] <= k < source.hi[2]
                            ):
                                inputs[q] = zeros
                            q += 1
                if pattern == 222:
                    transform_tile_in(inputs, channels, 2, 2, 2, image, step)
                elif pattern == 221:
                    transform_tile_in(inputs, channels, 2, 2, 1, image, step)
                elif pattern == 212:
                    transform_tile_in(inputs, channels, 2, 1, 2, image, step)
                elif pattern == 122:
                    transform_tile_in(inputs, channels, 1, 2, 2, image, step)
                elif pattern == 333:
                    transform_tile_in(inputs, channels, 3, 3, 3, image, step)
                else:
                    transform_tile_in(
                        inputs, channels,
                        grid.taps[0], grid.taps[1], grid.taps[2], image, step,
                    )
                image += padded


cdef inline void multiply_images(
    const Call *call, const Grid *grid, const real *images, Py_ssize_t channels,
    Py_ssize_t padded, const real *panel, int nv, real *products,
) noexcept nogil:
    # products[product][tile][NR] = images x panel, product by product.
    cdef Py_ssize_t tiles = grid.tiles[0] * grid.tiles[1] * grid.tiles[2]
    cdef Py_ssize_t block = minimal_block(channels)
    cdef Py_ssize_t most = even_part(tiles, HALF_MR)
    cdef Py_ssize_t width = nv * VECTOR
    cdef const real *rows[MR]
    cdef real *out[MR]
    cdef Py_ssize_t p, t
    cdef int mr, q
    for p in range(grid_products(grid)):
        for t from 0 <= t < tiles by most:
            mr = <int>min(most, tiles - t)
            for q in range(mr):
                rows[q] = images + (t + q) * padded
                out[q] = products + (t + q) * NR
            call.split[nv > 1](channels, block, rows, panel, width, out, mr)
        panel += channels * width
        images += tiles * padded
        products += tiles * NR


cdef inline void transform_tile_out(
    const real *products, Py_ssize_t step,
    Py_ssize_t taps_d, Py_ssize_t taps_h, Py_ssize_t taps_w, vf *v,
) noexcept nogil:
    # v[i*nh*nw + j*nw + k] for outputs i, j, k < 2 (or 1) of the tile.
    cdef Py_ssize_t nd = products_of(taps_d), nh = products_of(taps_h), nw = products_of(taps_w)
    cdef Py_ssize_t mh = outputs_of(taps_h), mw = outputs_of(taps_w)
    cdef Py_ssize_t i, j
    for i in range(nd * nh * nw):
        v[i] = vload(products + i * step)
    if taps_w > 1:
        for i in range(nd * nh):
            transform_out(v + i * nw, 1, taps_w)
    if taps_h > 1:
        for i in range(nd):
            for j in range(mw):
                transform_out(v + i * nh * nw + j, nw, taps_h)
    if taps_d > 1:
        for i in range(mh):
            for j in range(mw):
                transform_out(v + i * nw + j, nh * nw, taps_d)


cdef inline void transform_outputs(
    const Grid *grid, const real *products, int nv, const real *bias,
    real *const *outputs, Py_ssize_t column, bint stream,
) noexcept nogil:
    # outputs[position of the box][column:] = the tiles' outputs + bias
    cdef Py_ssize_t step = grid.tiles[0] * grid.tiles[1] * grid.tiles[2] * NR
    cdef Py_ssize_t row = grid.hi[2] - grid.lo[2]
    cdef Py_ssize_t plane = (grid.hi[1] - grid.lo[1]) * row
    cdef Py_ssize_t nh = products_of(grid.taps[1]), nw = products_of(grid.taps[2])
    cdef Py_ssize_t m[3]
    cdef Py_ssize_t d, h, w, i, j, k, count
    cdef Py_ssize_t which[8]
    cdef real *targets[8]
    cdef vf v[MOST]
    cdef vf b
    cdef int a, q
    cdef int pattern = <int>(grid.taps[0] * 100 + grid.taps[1] * 10 + grid.taps[2])
    for a in range(3):
        m[a] = outputs_of(grid.taps[a])
    for d in range(grid.tiles[0]):
        for h in range(grid.tiles[1]):
            for w in range(grid.tiles[2]):
                count = 0
                for i in range(min(m[0], grid.hi[0] - grid.lo[0] - d * m[0])):
                    for j in range(min(m[1], grid.hi[1] - grid.lo[1] - h * m[1])):
                        for k in range(min(m[2], row - w * m[2])):
                            targets[count] = column + outputs[
                                (d * m[0] + i) * plane + (h * m[1] + j) * row + w * m[2] + k
                            ]
                            which[count] = (i * nh + j) * nw + k
                            count += 1
                for q in range(nv):
                    b = vload(bias + q * VECTOR)
                    if pattern == 222:
                        transform_tile_out(products + q * VECTOR, step, 2, 2, 2, v)
                    elif pattern == 221:
                        transform_tile_out(products + q * VECTOR, step, 2, 2, 1, v)
                    elif pattern == 212:
                        transform_tile_out(products + q * VECTOR, step, 2, 1, 2, v)
                    elif pattern == 122:
                        transform_tile_out(products + q * VECTOR, step, 1, 2, 2, v)
                    elif pattern == 333:
                        transform_tile_out(products + q * VECTOR, step, 3, 3, 3, v)
                    else:
                        transform_tile_out(
                            products + q * VECTOR, step,
                            grid.taps[0], grid.taps[1], grid.taps[2], v,
                        )
                    for i in range(count):
                        if stream:
                            vstream(targets[i] + q * VECTOR, vadd(v[which[i]], b))
                        else:
                            vstore(targets[i] + q * VECTOR, vadd(v[which[i]], b))
                products += NR
