# cython: boundscheck=False, wraparound=False, cdivision=True, language_level=3
"""What this machine can do at best: multiply-adds, reads and writes per second.

Plain loops, except that a streaming store has no spelling in Cython or C: the one
SSE instruction below is on every x86-64, and elsewhere ordinary stores are all there is.
Each probe shares its work out over ``threads`` threads and returns seconds.
"""

from cython.parallel cimport prange
from libc.stdint cimport uint64_t
from libc.string cimport memset

cdef extern from *:
    """
    #include <time.h>
    #define BYTE 0x3f /* not 0: some CPUs write zeros twice as fast as anything else */
    #if defined(__x86_64__)
    #include <immintrin.h>
    static void stream(float *p, long n) {
        const __m128 some = _mm_castsi128_ps(_mm_set1_epi8(BYTE));
        for (long i = 0; i < n; i += 16) {
            _mm_stream_ps(p + i, some);
            _mm_stream_ps(p + i + 4, some);
            _mm_stream_ps(p + i + 8, some);
            _mm_stream_ps(p + i + 12, some);
        }
        _mm_sfence();
    }
    #else
    #include <string.h>
    static void stream(float *p, long n) { memset(p, BYTE, n * sizeof(float)); }
    #endif
    /* Independent chains hide the latency: 12 of the widest vectors fit every register file. */
    #if defined(__AVX512F__)
    #define LANES 16
    #elif defined(__AVX__)
    #define LANES 8
    #else
    #define LANES 4
    #endif
    #define CHAINS 12
    typedef float lanes __attribute__((vector_size(4 * LANES)));
    static float chains(long n) {
        lanes acc[CHAINS], a, b;
        for (int l = 0; l < LANES; l++) { a[l] = 0.999f; b[l] = 1e-3f; }
        for (int c = 0; c < CHAINS; c++) acc[c] = a * (float)c;
        __asm__ volatile("" : "+x"(a), "+x"(b));
        for (long i = 0; i < n; i++)
            for (int c = 0; c < CHAINS; c++) acc[c] = acc[c] * a + b;
        for (int c = 1; c < CHAINS; c++) acc[0] += acc[c];
        return acc[0][0];
    }
    static double now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec + 1e-9 * t.tv_nsec;
    }
    """
    int BYTE, LANES, CHAINS
    void stream(float *p, long n) noexcept nogil
    float chains(long n) noexcept nogil
    double now() noexcept nogil

cdef float sink = 0


def fma(long steps, int threads):
    """``(seconds, flops)`` of ``steps`` multiply-adds on every chain of every thread."""
    global sink
    cdef int t
    cdef float total = 0
    cdef double start = now()
    for t in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        total += chains(steps)
    cdef double elapsed = now() - start
    sink = total
    return elapsed, 2.0 * steps * CHAINS * LANES * threads


cdef uint64_t add(const uint64_t *p, Py_ssize_t n) noexcept nogil:
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    for i in range(n):
        total += p[i]
    return total


def read(const uint64_t[::1] block, int times, int threads):
    """Seconds to read the block ``times`` times, each thread its own part."""
    global sink
    cdef Py_ssize_t part = block.shape[0] // threads
    cdef int t, k
    cdef uint64_t total = 0
    cdef double start = now()
    for t in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        for k in range(times):
            total += add(&block[t * part], part) + k
    cdef double elapsed = now() - start
    sink = <float>total
    return elapsed


def write(float[::1] block, int times, int threads, bint streaming):
    """Seconds to fill the block ``times`` times, each thread its own part."""
    cdef Py_ssize_t part = block.shape[0] // threads // 16 * 16
    cdef int t, k
    cdef double start = now()
    for t in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
        for k in range(times):
            if streaming:
                stream(&block[t * part], part)
            else:
                memset(&block[t * part], BYTE, part * sizeof(float))
    return now() - start
