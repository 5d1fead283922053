# Vector exponential and what follows from it, to a few units in the last place.
#
# exp(x) = 2**n * exp(r) with n = round(x / ln 2) and |r| <= ln(2)/2, exp(r) - 1 by its Taylor
# series, whose first dropped term is below half a unit in the last place there. 2**n is
# applied in two halves, so that results near overflow and denormal results come out right.
from simd cimport (
    real, vf, REAL_BYTES, vset, vadd, vsub, vmul, vdiv, vfma, vless, vselect, vround, vpow2,
)


cdef inline vf vmax(vf x, vf bound) noexcept nogil:
    return vselect(vless(x, bound), bound, x)  # a NaN in x stays


cdef inline vf vmin(vf x, vf bound) noexcept nogil:
    return vselect(vless(bound, x), bound, x)


cdef inline vf vabs(vf x) noexcept nogil:
    return vmax(x, vsub(vset(0), x))


cdef inline vf reduced(vf x, vf n) noexcept nogil:
    # r = x - n * ln 2, with ln 2 in two parts of which the first times n is exact.
    if REAL_BYTES == 4:
        x = vfma(n, vset(<real>-0.693359375), x)
        return vfma(n, vset(<real>2.12194440e-4), x)
    x = vfma(n, vset(<real>-6.93147180369123816490e-01), x)
    return vfma(n, vset(<real>-1.90821492927058770002e-10), x)


cdef inline vf series(vf r) noexcept nogil:
    # exp(r) - 1 = r + r**2 * (1/2 + r/6 + ...)
    cdef vf s
    if REAL_BYTES == 4:
        s = vset(<real>(1.0 / 5040))
    else:
        s = vset(<real>(1.0 / 6227020800.0))
        s = vfma(s, r, vset(<real>(1.0 / 479001600.0)))
        s = vfma(s, r, vset(<real>(1.0 / 39916800.0)))
        s = vfma(s, r, vset(<real>(1.0 / 3628800.0)))
        s = vfma(s, r, vset(<real>(1.0 / 362880.0)))
        s = vfma(s, r, vset(<real>(1.0 / 40320.0)))
        s = vfma(s, r, vset(<real>(1.0 / 5040.0)))
    s = vfma(s, r, vset(<real>(1.0 / 720.0)))
    s = vfma(s, r, vset(<real>(1.0 / 120.0)))
    s = vfma(s, r, vset(<real>(1.0 / 24.0)))
    s = vfma(s, r, vset(<real>(1.0 / 6.0)))
    s = vfma(s, r, vset(<real>0.5))
    return vfma(vmul(r, r), s, r)


cdef inline vf clamped(vf x) noexcept nogil:
    # Beyond these bounds exp is 0 or inf; within, both halves of 2**n are in range.
    if REAL_BYTES == 4:
        return vmin(vmax(x, vset(-105)), vset(90))
    return vmin(vmax(x, vset(-750)), vset(711))


cdef inline vf vexp(vf x) noexcept nogil:
    cdef vf n, half
    x = clamped(x)
    n = vround(vmul(x, vset(<real>1.4426950408889634)))
    half = vround(vmul(n, vset(<real>0.5)))
    x = vadd(series(reduced(x, n)), vset(1))
    return vmul(vmul(x, vpow2(half)), vpow2(vsub(n, half)))


cdef inline vf vexpm1(vf x) noexcept nogil:
    # For x <= 0, where 2**n cannot overflow: 2**n * (exp(r) - 1) + (2**n - 1).
    cdef vf n, scale
    x = vmax(x, vset(-40))  # expm1 is -1 there
    n = vround(vmul(x, vset(<real>1.4426950408889634)))
    scale = vpow2(n)
    return vfma(scale, series(reduced(x, n)), vsub(scale, vset(1)))


cdef inline vf vsigmoid(vf x) noexcept nogil:
    # With t = exp(-|x|) <= 1: 1 / (1 + t), or t / (1 + t) for negative x.
    cdef vf t = vexp(vsub(vset(0), vabs(x)))
    return vdiv(vselect(vless(x, vset(0)), t, vset(1)), vadd(vset(1), t))


cdef inline vf vtanh(vf x) noexcept nogil:
    # tanh|x| = -m / (2 + m) with m = expm1(-2|x|); then the sign of x.
    cdef vf m = vexpm1(vmul(vset(-2), vabs(x)))
    cdef vf t = vdiv(vsub(vset(0), m), vadd(vset(2), m))
    return vselect(vless(x, vset(0)), vsub(vset(0), t), t)
