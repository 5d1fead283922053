/* The only C in the project: one vector type and the operations the loops need.
 *
 * `vf` is VECTOR reals wide: what the instruction set this file is compiled for holds in
 * one register. With CONV3DT_GENERIC, or a compiler without vector extensions, it is one
 * real, and the same loops are plain scalar C. Loads and stores take any address that is
 * aligned to a real; `vstream` wants a whole aligned vector.
 */
#ifndef CONV3DT_SIMD_H
#define CONV3DT_SIMD_H

#include <stddef.h>
#include <string.h>
#include <stdint.h>

#ifdef CONV3DT_FLOAT64
typedef double real;
#define REAL_BYTES 8
#else
typedef float real;
#define REAL_BYTES 4
#endif

#if defined(CONV3DT_GENERIC) || !(defined(__GNUC__) || defined(__clang__))
#define VECTOR_BYTES REAL_BYTES
#define MR 4
#define NV 2
#elif defined(__AVX512F__)
#include <immintrin.h>
#define VECTOR_BYTES 64 /* 32 registers: 14 x 2 accumulators, 2 weights, 1 broadcast */
#define MR 14
#define NV 2
#elif defined(__AVX__)
#include <immintrin.h>
#define VECTOR_BYTES 32 /* 16 registers: 6 x 2 accumulators, 2 weights, 1 broadcast */
#define MR 6
#define NV 2
#elif defined(__SSE2__)
#include <immintrin.h>
#define VECTOR_BYTES 16
#define MR 6
#define NV 2
#elif defined(__aarch64__)
#define VECTOR_BYTES 16 /* 32 registers */
#define MR 14
#define NV 2
#else
#define VECTOR_BYTES REAL_BYTES
#define MR 4
#define NV 2
#endif

#if VECTOR_BYTES == 64
#define PART_STORES 1 /* storing a part of a vector takes no longer than the whole */
#else
#define PART_STORES 0
#endif
#define VECTOR (VECTOR_BYTES / REAL_BYTES)
#define NR (NV * VECTOR)
#define ROWS (MR < 8 ? 4 : 8)
#define SUMS (MR * NV) /* accumulators, also of tiles of another shape */
#define REGISTERS (SUMS + 4)
#define MOST_VECTORS 8
#define MOST_FILTERS (SUMS > 16 ? 8 : SUMS / 2)

#if defined(_MSC_VER)
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

/* `cdef inline` shall mean it: the tile keeps its accumulators in registers only where its
 * row count is a constant, and left to itself GCC shares one copy between all counts. */
#if defined(__GNUC__) && defined(CYTHON_INLINE)
#undef CYTHON_INLINE
#define CYTHON_INLINE inline __attribute__((always_inline))
#endif

#if VECTOR == 16
#define LOG2_VECTOR 4
#define LO_ 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HI_ 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VECTOR == 8
#define LOG2_VECTOR 3
#define LO_ 0, 8, 1, 9, 2, 10, 3, 11
#define HI_ 4, 12, 5, 13, 6, 14, 7, 15
#elif VECTOR == 4
#define LOG2_VECTOR 2
#define LO_ 0, 4, 1, 5
#define HI_ 2, 6, 3, 7
#elif VECTOR == 2
#define LOG2_VECTOR 1
#define LO_ 0, 2
#define HI_ 1, 3
#else
#define LOG2_VECTOR 0
#endif

/* A module that this CPU cannot run says so when it is imported, by whatever tool walks through
 * the package: its first instructions would end the process. The levels are those of setup.py,
 * by what tells them apart on every CPU made so far. */
#if defined(Py_PYTHON_H) && defined(__x86_64__) && defined(__GNUC__) && defined(__SSE4_2__)
#if defined(__AVX512F__)
#define RUNS_HERE() (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"))
#elif defined(__AVX2__)
#define RUNS_HERE() (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#else
#define RUNS_HERE() __builtin_cpu_supports("sse4.2")
#endif
static PyObject *init_checked(PyModuleDef *module) {
    __builtin_cpu_init();
    if (RUNS_HERE()) {
        return PyModuleDef_Init(module);
    }
    PyErr_Format(PyExc_ImportError, "%s: this CPU lacks its instruction set", module->m_name);
    return NULL;
}
#define PyModuleDef_Init init_checked
#endif

/* Forbids and allows memory, where that is watched. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define GAP 64 /* bytes between parts of the scratch memory */
INLINE void vforbid(void *p, ptrdiff_t n) { ASAN_POISON_MEMORY_REGION(p, n); }
INLINE void vallow(void *p, ptrdiff_t n) { ASAN_UNPOISON_MEMORY_REGION(p, n); }
#else
#define GAP 0
INLINE void vforbid(void *p, ptrdiff_t n) { (void)p, (void)n; }
INLINE void vallow(void *p, ptrdiff_t n) { (void)p, (void)n; }
#endif

/* Integers as wide as a real, and the constants of its bits. */
#if REAL_BYTES == 4
typedef int32_t bits;
typedef uint32_t word;
#define MANTISSA 23
#define EXPONENT_BIAS 127
#define ROUNDER 12582912.0f /* 1.5 * 2**23: adding it rounds to an integer */
#else
typedef int64_t bits;
typedef uint64_t word;
#define MANTISSA 52
#define EXPONENT_BIAS 1023
#define ROUNDER 6755399441055744.0
#endif

#if VECTOR == 1

typedef real vf;
typedef int vm;
INLINE vf vload(const real *p) { return *p; }
INLINE vf vload_part(const real *p, ptrdiff_t n) { (void)n; return *p; }
INLINE void vstore(real *p, vf v) { *p = v; }
INLINE void vstore_part(real *p, vf v, ptrdiff_t n) { (void)n, (void)(*p = v); }
INLINE void vstream(real *p, vf v) { *p = v; }
INLINE void vfence(void) {}
INLINE vf vset(real s) { return s; }
INLINE vf vzip_lo(vf a, vf b) { (void)b; return a; }
INLINE vf vzip_hi(vf a, vf b) { (void)a; return b; }
INLINE void vtranspose(vf *v) { (void)v; }
INLINE void vturn(const real *source, ptrdiff_t step, real *target, ptrdiff_t target_step) {
    (void)step, (void)target_step;
    *target = *source;
}
INLINE vf vselect(vm m, vf a, vf b) { return m ? a : b; }
INLINE vf vpow2(vf n) { /* as below; a word, because NaN comes here too */
    word i;
    n += ROUNDER;
    memcpy(&i, &n, sizeof i);
    i = (i + EXPONENT_BIAS) << MANTISSA;
    memcpy(&n, &i, sizeof n);
    return n;
}

#else

typedef real vf __attribute__((vector_size(VECTOR_BYTES)));
typedef real vf_any __attribute__((vector_size(VECTOR_BYTES), aligned(REAL_BYTES), may_alias));
typedef bits vm __attribute__((vector_size(VECTOR_BYTES)));
INLINE vf vload(const real *p) { return *(const vf_any *)p; }
INLINE void vstore(real *p, vf v) { *(vf_any *)p = v; }
INLINE vf vset(real s) { return s - (vf){0}; }
/* Touches nothing past them. Not lane by lane under conditions: GCC then multiplies before the
 * lanes are joined, and vfma rounds twice. */
INLINE vf vload_part(const real *p, ptrdiff_t n) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64 && REAL_BYTES == 4
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif defined(__AVX512F__) && VECTOR_BYTES == 64
    return (vf)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#elif defined(__AVX__) && VECTOR_BYTES == 32
    static const bits lanes[2 * VECTOR] = {[0 ... VECTOR - 1] = -1};
    const __m256i first = _mm256_loadu_si256((const void *)(lanes + VECTOR - n));
#if REAL_BYTES == 4
    return (vf)_mm256_maskload_ps(p, first);
#else
    return (vf)_mm256_maskload_pd(p, first);
#endif
#else
    real part[VECTOR] = {0};
    memcpy(part, p, n * sizeof(real));
    return vload(part);
#endif
}
INLINE void vstore_part(real *p, vf v, ptrdiff_t n) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64 && REAL_BYTES == 4
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#elif defined(__AVX512F__) && VECTOR_BYTES == 64
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#else
    memcpy(p, &v, n * sizeof(real));
#endif
}
#if defined(__SSE2__) && VECTOR_BYTES == 64
INLINE void vstream(real *p, vf v) { _mm512_stream_si512((void *)p, (__m512i)v); }
#elif defined(__SSE2__) && VECTOR_BYTES == 32
INLINE void vstream(real *p, vf v) { _mm256_stream_si256((void *)p, (__m256i)v); }
#elif defined(__SSE2__)
INLINE void vstream(real *p, vf v) { _mm_stream_si128((void *)p, (__m128i)v); }
#else
INLINE void vstream(real *p, vf v) { vstore(p, v); }
#endif
#if defined(__SSE2__)
INLINE void vfence(void) { _mm_sfence(); }
#else
INLINE void vfence(void) {}
#endif
#if defined(__clang__)
#define SHUFFLE_(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE_(a, b, ...) __builtin_shuffle(a, b, (vm){__VA_ARGS__})
#endif
#define SHUFFLE(a, b, list) SHUFFLE_(a, b, list)
INLINE vf vzip_lo(vf a, vf b) { return SHUFFLE(a, b, LO_); } /* a0 b0 a1 b1 ... */
INLINE vf vzip_hi(vf a, vf b) { return SHUFFLE(a, b, HI_); } /* the second half of that */
#if VECTOR_BYTES == 32 /* halves are slow to cross: 24 shuffles for 8 x 8 in place of 48 */
#define HALF (VECTOR / 2)
#if VECTOR == 8
#define LO_HALVES_ 0, 8, 1, 9, 4, 12, 5, 13 /* the zips of both halves */
#define HI_HALVES_ 2, 10, 3, 11, 6, 14, 7, 15
#define FIRST_HALVES_ 0, 1, 2, 3, 8, 9, 10, 11
#define LAST_HALVES_ 4, 5, 6, 7, 12, 13, 14, 15
#else
#define LO_HALVES_ 0, 4, 2, 6
#define HI_HALVES_ 1, 5, 3, 7
#define FIRST_HALVES_ 0, 1, 4, 5
#define LAST_HALVES_ 2, 3, 6, 7
#endif
INLINE void vtranspose(vf *v) { /* VECTOR vectors: columns become rows */
    vf t[VECTOR];
    for (int level = 1; level < LOG2_VECTOR; level++) {
        for (int i = 0; i < VECTOR; i += 2) { /* pairs within each half of the rows */
            vf *pair = v + i / HALF * HALF + i % HALF / 2;
            t[i] = SHUFFLE(pair[0], pair[HALF / 2], LO_HALVES_);
            t[i + 1] = SHUFFLE(pair[0], pair[HALF / 2], HI_HALVES_);
        }
        for (int i = 0; i < VECTOR; i++) v[i] = t[i];
    }
    for (int i = 0; i < HALF; i++) {
        vf a = v[i], b = v[i + HALF];
        v[i] = SHUFFLE(a, b, FIRST_HALVES_);
        v[i + HALF] = SHUFFLE(a, b, LAST_HALVES_);
    }
}
#else
INLINE void vtranspose(vf *v) { /* VECTOR vectors: columns become rows */
    vf t[VECTOR];
    for (int level = 0; level < LOG2_VECTOR; level++) { /* each rotates the bits of (row, column) */
        for (int i = 0; i < VECTOR / 2; i++) {
            t[2 * i] = vzip_lo(v[i], v[i + VECTOR / 2]);
            t[2 * i + 1] = vzip_hi(v[i], v[i + VECTOR / 2]);
        }
        for (int i = 0; i < VECTOR; i++) v[i] = t[i];
    }
}
#endif
/* target[j][i] = source[i][j]: halves of two rows are joined as they are loaded, and all shuffles but
 * the last stay within 16 bytes: a third less time than loads and vtranspose, where that counts. */
#if VECTOR_BYTES == 64
#define STEP (8 / REAL_BYTES) /* reals that the second shuffle moves together */
INLINE __m512i vhalves(const real *a, const real *b) {
    const __m512i half = _mm512_castsi256_si512(_mm256_loadu_si256((const void *)a));
    return _mm512_inserti64x4(half, _mm256_loadu_si256((const void *)b), 1);
}
INLINE void vturn(const real *source, ptrdiff_t step, real *target, ptrdiff_t target_step) {
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (int column = 0; column < VECTOR; column += VECTOR / 2) {
        const real *far = source + VECTOR / 2 * step;
        __m512i v[VECTOR / 2], t[VECTOR / 2];
        for (int i = 0; i < VECTOR / 2; i++) {
            v[i] = vhalves(source + i * step + column, far + i * step + column);
        }
#if REAL_BYTES == 4
        for (int i = 0; i < VECTOR / 2; i += 2) {
            const __m512i even = v[i], odd = v[i + 1];
            v[i] = _mm512_unpacklo_epi32(even, odd);
            v[i + 1] = _mm512_unpackhi_epi32(even, odd);
        }
#endif
        for (int i = 0; i < VECTOR / 2; i += 2 * STEP) {
            for (int j = 0; j < STEP; j++) {
                t[i + 2 * j] = _mm512_unpacklo_epi64(v[i + j], v[i + j + STEP]);
                t[i + 2 * j + 1] = _mm512_unpackhi_epi64(v[i + j], v[i + j + STEP]);
            }
        }
        for (int i = 0; i < 2 * STEP; i++) {
            real *row = target + (column + i) * target_step;
            const __m512i a = t[i], b = t[i + 2 * STEP];
            vstore(row, (vf)_mm512_permutex2var_epi64(a, low, b));
            vstore(row + 2 * STEP * target_step, (vf)_mm512_permutex2var_epi64(a, high, b));
        }
    }
}
#undef STEP
#else
INLINE void vturn(const real *source, ptrdiff_t step, real *target, ptrdiff_t target_step) {
    vf v[VECTOR];
    for (int i = 0; i < VECTOR; i++) v[i] = vload(source + i * step);
    vtranspose(v);
    for (int i = 0; i < VECTOR; i++) vstore(target + i * target_step, v[i]);
}
#endif
INLINE vf vselect(vm m, vf a, vf b) { return (vf)((m & (vm)a) | (~m & (vm)b)); }
INLINE vf vpow2(vf n) { /* 2**n for an integer n within the exponent's range */
    return (vf)(((vm)(n + ROUNDER) + EXPONENT_BIAS) << MANTISSA);
}

#endif

#if defined(__GNUC__)
INLINE void vprefetch(real *p) { __builtin_prefetch(p, 1); } /* for writing */
INLINE void vfetch(const real *p) { __builtin_prefetch(p, 0); } /* for reading */
INLINE void vfetch_far(const real *p) { __builtin_prefetch(p, 0, 2); } /* the second-level cache */
#else
INLINE void vprefetch(real *p) { (void)p; }
INLINE void vfetch(const real *p) { (void)p; }
INLINE void vfetch_far(const real *p) { (void)p; }
#endif
INLINE vf vadd(vf a, vf b) { return a + b; }
INLINE vf vsub(vf a, vf b) { return a - b; }
INLINE vf vmul(vf a, vf b) { return a * b; }
INLINE vf vdiv(vf a, vf b) { return a / b; }
INLINE vf vfma(vf a, vf b, vf c) { return a * b + c; } /* one instruction where there is one */
INLINE vm vless(vf a, vf b) { return a < b; }
INLINE vf vround(vf a) { return (a + ROUNDER) - ROUNDER; }

#endif
