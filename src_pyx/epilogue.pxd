# Bias and activation, on rows of results that are still in the first-level cache.
from elementary cimport vmax, vmin, vabs, vexp, vexpm1, vsigmoid, vtanh
from simd cimport (
    real, vf, NR, VECTOR, vload, vstore, vset, vadd, vmul, vdiv, vfma, vless, vselect,
)

cdef enum:  # the codes of conv3dt/activations.py that are cheap enough to fuse
    LINEAR = 0
    RELU = 1  # x < 0 ? p0 * x : x
    CLIP = 2  # p0 * min(max(x + p1, p2), p3)
    HARD_SILU = 3
    SOFTSIGN = 4
    EXPONENTIAL = 5
    SIGMOID = 6
    SILU = 7
    TANH = 8
    ELU = 9  # x < 0 ? p1 * p0 * expm1(x) : p1 * x
    GELU_TANH = 11


cdef struct Activation:
    int code
    real p[4]


cdef inline vf relu(vf x, const Activation *act) noexcept nogil:
    if act.p[0] == 0:  # not 0 * x, which would turn -inf into NaN
        return vselect(vless(x, vset(0)), vset(0), x)
    return vselect(vless(x, vset(0)), vmul(vset(act.p[0]), x), x)


cdef inline vf clip(vf x, const Activation *act) noexcept nogil:
    x = vmin(vmax(vadd(x, vset(act.p[1])), vset(act.p[2])), vset(act.p[3]))
    return vmul(vset(act.p[0]), x)


cdef inline vf hard_silu(vf x) noexcept nogil:
    cdef vf gate = vmin(vmax(vadd(x, vset(3)), vset(0)), vset(6))
    return vmul(x, vdiv(gate, vset(6)))


cdef inline vf elu(vf x, const Activation *act) noexcept nogil:
    cdef vf bend = vmul(vset(act.p[0] * act.p[1]), vexpm1(vmin(x, vset(0))))
    return vselect(vless(x, vset(0)), bend, vmul(vset(act.p[1]), x))


cdef inline vf gelu_tanh(vf x) noexcept nogil:
    # x/2 * (1 + tanh(t)) = x * sigmoid(2t): no cancellation for negative x.
    cdef vf cubic = vfma(vmul(vset(<real>0.044715), vmul(x, x)), x, x)
    return vmul(x, vsigmoid(vmul(vset(<real>1.5957691216057308), cubic)))


cdef inline vf activated(vf x, int code, const Activation *act) noexcept nogil:
    if code == RELU:
        return relu(x, act)
    if code == CLIP:
        return clip(x, act)
    if code == HARD_SILU:
        return hard_silu(x)
    if code == SOFTSIGN:
        return vdiv(x, vadd(vset(1), vabs(x)))
    if code == EXPONENTIAL:
        return vexp(x)
    if code == SIGMOID:
        return vsigmoid(x)
    if code == SILU:
        return vmul(x, vsigmoid(x))
    if code == TANH:
        return vtanh(x)
    if code == ELU:
        return elu(x, act)
    if code == GELU_TANH:
        return gelu_tanh(x)
    return x


cdef inline void activate(real *p, Py_ssize_t n, const Activation *act) noexcept nogil:
    # p[0:n] in place; n is a whole number of vectors.
    cdef Py_ssize_t i
    if act.code != LINEAR:
        for i from 0 <= i < n by VECTOR:
            vstore(p + i, activated(vload(p + i), act.code, act))


cdef inline void activate_rows(
    real *rows, Py_ssize_t count, Py_ssize_t width, const Activation *act
) noexcept nogil:
    # `count` rows, NR apart, of `width` results; width is a whole number of vectors.
    cdef Py_ssize_t i
    if act.code != LINEAR:
        for i in range(count):
            activate(rows + i * NR, width, act)
