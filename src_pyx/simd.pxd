# What simd.h offers, as Cython sees it: an opaque vector and the operations on it.
cdef extern from "simd.h" nogil:
    ctypedef float real  # double in the modules built with CONV3DT_FLOAT64
    ctypedef struct vf:  # VECTOR reals
        pass
    ctypedef struct vm:  # a truth value for each of them
        pass
    enum:
        VECTOR  # reals in a vector
        LOG2_VECTOR
        MR  # rows of the register tile
        NV  # vectors in a row of it
        NR  # reals in a row of it: NV * VECTOR
        SUMS  # accumulators
        REGISTERS
        MOST_VECTORS  # of positions, in a tile of the lanes algorithm
        MOST_FILTERS  # of such a tile
        ROWS  # rows of the depthwise tile, a power of two
        PART_STORES  # whether vstore_part is quick
        REAL_BYTES
        VECTOR_BYTES
        GAP  # bytes between parts of the scratch memory
    void vforbid(void *p, Py_ssize_t n)  # under AddressSanitizer
    void vallow(void *p, Py_ssize_t n)
    vf vload(const real *p)
    vf vload_part(const real *p, Py_ssize_t n)  # 0 < n < VECTOR reals, then zeros
    void vstore(real *p, vf v)
    void vstore_part(real *p, vf v, Py_ssize_t n)  # the first n, 0 < n < VECTOR
    void vstream(real *p, vf v)
    void vfence()
    void vprefetch(real *p)  # the cache line around p, for writing
    void vfetch(const real *p)  # for reading
    void vfetch_far(const real *p)  # the same, later
    void vtranspose(vf *v)  # VECTOR vectors: columns become rows
    # target[j][i] = source[i][j] for i, j < VECTOR
    void vturn(const real *source, Py_ssize_t step, real *target, Py_ssize_t target_step)
    vf vset(real s)
    vf vadd(vf a, vf b)
    vf vsub(vf a, vf b)
    vf vmul(vf a, vf b)
    vf vdiv(vf a, vf b)
    vf vfma(vf a, vf b, vf c)
    vm vless(vf a, vf b)
    vf vselect(vm m, vf a, vf b)
    vf vround(vf a)
    vf vpow2(vf n)
    vf vzip_lo(vf a, vf b)
    vf vzip_hi(vf a, vf b)
