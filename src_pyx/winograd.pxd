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
# and an axis with one tap stays as it is (m = n = 1); a phase needs two others to gain. In
# three dimensions the products of a tile of m*m*m outputs are n*n*n matrix products over the
# channels:
#
#     images[product][tile][channel]      inputs of a tile, transformed; per phase
#     panel [product][channel][columns]   taps, transformed when packed
#     products[product][tile][NR]         their matrix product, by register tiles
#     outputs                             of a tile, transformed back
#
# All tiles read an image of the box's input with zeros around, so that no tile has an edge.
# turn_in and turn_out are called through pointers: inlined into the loops of a task, GCC
# keeps less of a tile in registers.
# The transforms are additions that the filters (in) and channels (out) amortise. Tiles begin
# at even positions of the grid, wherever a box begins, so the box does not change a bit.
from call cimport Call, Grid
from geometry cimport Axis, Source, even_part
from microkernel cimport depth_block, tap_block
from simd cimport real, vf, NR, NV, REAL_BYTES, VECTOR, vload, vstore, vstream, vadd, vsub

cdef enum:
    WIDEST = 4  # products along an axis
    PLANE = 16
    MOST = 64
    SKEW = 64 // REAL_BYTES  # between products, lest their sizes be powers of two


cdef inline Py_ssize_t minimal_block(Py_ssize_t channels) noexcept nogil:
    # Channels in a block of the sum. The transforms nearly triple a block's rounding error;
    # with a third of the direct kernels' block (a quarter of a short one) it stays within twice
    # theirs.
    cdef Py_ssize_t direct = tap_block(channels) * depth_block(channels)
    return even_part(channels, (direct + 2) // 3 if direct >= 64 else (direct + 3) // 4)


cdef inline Py_ssize_t outputs_of(Py_ssize_t taps) noexcept nogil:
    return 1 if taps == 1 else 2


cdef inline Py_ssize_t products_of(Py_ssize_t taps) noexcept nogil:
    return 1 if taps == 1 else taps + 1


cdef inline Py_ssize_t grid_products(const Grid *grid) noexcept nogil:
    return (
        products_of(grid.taps[0]) * products_of(grid.taps[1]) * products_of(grid.taps[2])
    )


cdef inline Py_ssize_t grid_step(const Grid *grid, Py_ssize_t width) noexcept nogil:
    # From a product to the next, of rows of `width` reals
    return grid.tiles[0] * grid.tiles[1] * grid.tiles[2] * width + SKEW


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


cdef inline void turn_in(vf *v, Py_ssize_t step, Py_ssize_t taps) noexcept nogil:
    # Inputs x0.. of a tile along an axis -> left factors of m0..
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


cdef inline void turn_out(vf *v, Py_ssize_t step, Py_ssize_t taps) noexcept nogil:
    # m0.. -> y0, y1
    cdef vf m1 = v[step]
    cdef vf m2 = v[2 * step]
    if taps == 2:
        v[0] = vadd(v[0], m1)
        v[step] = vadd(m1, m2)
    elif taps == 3:
        v[0] = vadd(vadd(v[0], m1), m2)
        v[step] = vsub(vsub(m1, m2), v[3 * step])


cdef inline void turn_column(
    const real *x, const Py_ssize_t *step, Py_ssize_t taps_d, Py_ssize_t taps_h, vf *v
) noexcept nogil:
    # v[i][j]: a vector of each input of a column of the width, transformed along the others
    cdef Py_ssize_t nd = products_of(taps_d), nh = products_of(taps_h)
    cdef Py_ssize_t i, j
    for i in range(nd):
        for j in range(nh):
            v[i * nh + j] = vload(x + i * step[0] + j * step[1])
        if taps_h > 1:
            turn_in(v + i * nh, 1, taps_h)
    if taps_d > 1:
        for j in range(nh):
            turn_in(v + j, nh, taps_d)


cdef inline void turn_row(
    const Grid *grid, const real *x, const Py_ssize_t *step, Py_ssize_t padded,
    Py_ssize_t taps_d, Py_ssize_t taps_h, Py_ssize_t taps_w, real *images,
) noexcept nogil:
    # A vector of channels of all tiles along a row. Neighbours share columns of inputs.
    cdef Py_ssize_t plane = products_of(taps_d) * products_of(taps_h)
    cdef Py_ssize_t m = outputs_of(taps_w), n = products_of(taps_w)
    cdef Py_ssize_t product = grid_step(grid, padded)
    cdef vf v[WIDEST][PLANE]
    cdef vf t[WIDEST]
    cdef Py_ssize_t w, i, k
    cdef real *image
    for k in range(n - m):
        turn_column(x, step, taps_d, taps_h, v[k])
        x += step[2]
    for w in range(grid.tiles[2]):
        for k in range(n - m, n):
            turn_column(x, step, taps_d, taps_h, v[k])
            x += step[2]
        image = images
        for i in range(plane):
            for k in range(n):
                t[k] = v[k][i]
            if taps_w > 1:
                turn_in(t, 1, taps_w)
            for k in range(n):
                vstore(image, t[k])
                image += product
        for k in range(n - m):
            for i in range(plane):
                v[k][i] = v[k + m][i]
        images += padded


cdef inline void turn_inputs(
    const Grid *grid, const Source *source, Py_ssize_t padded,
    Py_ssize_t taps_d, Py_ssize_t taps_h, Py_ssize_t taps_w, real *images,
) noexcept nogil:
    cdef Py_ssize_t d, h, c
    cdef const real *plane
    cdef const real *x = source.x
    for d in range(3):
        x += (grid.lo[d] + grid.low[d] - source.lo[d]) * source.step[d]
    for d in range(grid.tiles[0]):
        plane = x
        for h in range(grid.tiles[1]):
            for c from 0 <= c < padded by VECTOR:
                turn_row(
                    grid, plane + c, source.step, padded, taps_d, taps_h, taps_w, images + c
                )
            plane += outputs_of(taps_h) * source.step[1]
            images += grid.tiles[2] * padded
        x += outputs_of(taps_d) * source.step[0]


cdef inline void images_of(
    const Grid *grid, const Source *source, Py_ssize_t padded, real *images
) noexcept nogil:
    # images[product][tile][padded channels]; frequent patterns of taps are constants.
    cdef Py_ssize_t pattern = grid.taps[0] * 100 + grid.taps[1] * 10 + grid.taps[2]
    if pattern == 222:
        turn_inputs(grid, source, padded, 2, 2, 2, images)
    elif pattern == 221:
        turn_inputs(grid, source, padded, 2, 2, 1, images)
    elif pattern == 212:
        turn_inputs(grid, source, padded, 2, 1, 2, images)
    elif pattern == 122:
        turn_inputs(grid, source, padded, 1, 2, 2, images)
    elif pattern == 333:
        turn_inputs(grid, source, padded, 3, 3, 3, images)
    else:
        turn_inputs(
            grid, source, padded, grid.taps[0], grid.taps[1], grid.taps[2], images
        )


cdef inline void multiply_images(
    const Call *call, const Grid *grid, const real *images, Py_ssize_t channels,
    Py_ssize_t padded, const real *panel, int nv, real *products,
) noexcept nogil:
    # products[product][tile][NR] = images x panel, product by product.
    cdef Py_ssize_t tiles = grid.tiles[0] * grid.tiles[1] * grid.tiles[2]
    cdef Py_ssize_t block = minimal_block(channels)
    cdef Py_ssize_t p
    for p in range(grid_products(grid)):
        call.split[nv > 1](tiles, channels, block, images, padded, panel, products)
        panel += channels * nv * VECTOR
        images += grid_step(grid, padded)
        products += grid_step(grid, NR)


cdef inline void turn_outputs(
    const Grid *grid, const real *products, int nv, const real *bias, real *const *outputs,
    Py_ssize_t column, bint stream, Py_ssize_t taps_d, Py_ssize_t taps_h, Py_ssize_t taps_w,
) noexcept nogil:
    cdef Py_ssize_t nd = products_of(taps_d), nh = products_of(taps_h), nw = products_of(taps_w)
    cdef Py_ssize_t md = outputs_of(taps_d), mh = outputs_of(taps_h), mw = outputs_of(taps_w)
    cdef Py_ssize_t product = grid_step(grid, NR)
    cdef Py_ssize_t row = grid.hi[2] - grid.lo[2]
    cdef Py_ssize_t plane = (grid.hi[1] - grid.lo[1]) * row
    cdef Py_ssize_t left[3]
    cdef Py_ssize_t d, h, w, i, j, k
    cdef const real *source
    cdef real *const *tile
    cdef real *target
    cdef vf v[MOST]
    cdef vf done[NV][8]
    cdef vf b
    cdef int q
    for d in range(grid.tiles[0]):
        left[0] = grid.hi[0] - grid.lo[0] - d * md
        for h in range(grid.tiles[1]):
            left[1] = grid.hi[1] - grid.lo[1] - h * mh
            tile = outputs + d * md * plane + h * mh * row
            for w in range(grid.tiles[2]):
                left[2] = row - w * mw
                for q in range(nv):
                    b = vload(bias + q * VECTOR)
                    source = products + q * VECTOR
                    for i in range(nd):
                        for j in range(nh):
                            for k in range(nw):
                                v[(i * nh + j) * nw + k] = vload(source)
                                source += product
                            if taps_w > 1:
                                turn_out(v + (i * nh + j) * nw, 1, taps_w)
                        if taps_h > 1:
                            for k in range(mw):
                                turn_out(v + i * nh * nw + k, nw, taps_h)
                    if taps_d > 1:
                        for j in range(mh):
                            for k in range(mw):
                                turn_out(v + j * nw + k, nh * nw, taps_d)
                    for i in range(md):
                        for j in range(mh):
                            for k in range(mw):
                                done[q][(i * mh + j) * mw + k] = vadd(v[(i * nh + j) * nw + k], b)
                for i in range(md):
                    for j in range(mh):
                        for k in range(mw):
                            if i < left[0] and j < left[1] and k < left[2]:
                                target = tile[i * plane + j * row + k] + column
                                for q in range(nv):
                                    if stream:
                                        vstream(target + q * VECTOR, done[q][(i * mh + j) * mw + k])
                                    else:
                                        vstore(target + q * VECTOR, done[q][(i * mh + j) * mw + k])
                products += NR
                tile += mw


cdef inline void outputs_from(
    const Grid *grid, const real *products, int nv, const real *bias,
    real *const *outputs, Py_ssize_t column, bint stream,
) noexcept nogil:
    # outputs[position of the box][column:] = the tiles' outputs + bias
    cdef Py_ssize_t pattern = grid.taps[0] * 100 + grid.taps[1] * 10 + grid.taps[2]
    if pattern == 222:
        turn_outputs(grid, products, nv, bias, outputs, column, stream, 2, 2, 2)
    elif pattern == 221:
        turn_outputs(grid, products, nv, bias, outputs, column, stream, 2, 2, 1)
    elif pattern == 212:
        turn_outputs(grid, products, nv, bias, outputs, column, stream, 2, 1, 2)
    elif pattern == 122:
        turn_outputs(grid, products, nv, bias, outputs, column, stream, 1, 2, 2)
    elif pattern == 333:
        turn_outputs(grid, products, nv, bias, outputs, column, stream, 3, 3, 3)
    else:
        turn_outputs(
            grid, products, nv, bias, outputs, column, stream,
            grid.taps[0], grid.taps[1], grid.taps[2],
        )
