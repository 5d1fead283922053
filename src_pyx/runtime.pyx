"""Facts about the machine that hold while the process runs: CPU, OpenMP, threads, forks.

Compiled without any -march, because it is what decides which of the other modules this
CPU may import. OpenMP is optional: without it every team has one thread.
"""

from libc.string cimport strstr

cdef extern from *:
    """
    /* What Cython cannot say: compiler built-ins, thread-local storage, missing headers. */
    #ifdef _OPENMP
    #include <omp.h>
    #define OPENMP_DATE _OPENMP
    #else
    #define OPENMP_DATE 0
    #define omp_get_max_threads() 1
    #define omp_in_parallel() 0
    #endif

    /* The built-ins look at CPUID and at XCR0: a register file that the operating system
       does not save counts as missing. The level names came with GCC 12 and clang 18;
       before those, the features that tell the levels apart on every CPU made so far. */
    #if defined(__x86_64__) && (__clang_major__ >= 18 || (!defined(__clang__) && __GNUC__ >= 12))
    #define CPU_V2() __builtin_cpu_supports("x86-64-v2")
    #define CPU_V3() __builtin_cpu_supports("x86-64-v3")
    #define CPU_V4() __builtin_cpu_supports("x86-64-v4")
    #elif defined(__x86_64__) && defined(__GNUC__)
    #define HAS __builtin_cpu_supports
    #define CPU_V2() (HAS("sse4.2") && HAS("popcnt"))
    #define CPU_V3() (CPU_V2() && HAS("avx2") && HAS("fma") && HAS("bmi") && HAS("bmi2"))
    #define CPU_V4() (CPU_V3() && HAS("avx512f") && HAS("avx512bw") && HAS("avx512cd") && \\
                      HAS("avx512dq") && HAS("avx512vl"))
    #else
    #define __builtin_cpu_init() ((void)0)
    #define CPU_V2() 0
    #define CPU_V3() 0
    #define CPU_V4() 0
    #endif

    #ifdef __aarch64__
    #define CPU_NEON 1
    #else
    #define CPU_NEON 0
    #endif

    #if defined(__VERSION__) && defined(__clang__)
    #define COMPILER __VERSION__
    #elif defined(__VERSION__)
    #define COMPILER "GCC " __VERSION__
    #else
    #define COMPILER "unknown"
    #endif

    #ifdef __linux__
    #include <sched.h>
    static int allowed_cpus(void) {
        cpu_set_t set;
        return sched_getaffinity(0, sizeof set, &set) ? 0 : CPU_COUNT(&set);
    }
    #else
    static int allowed_cpus(void) { return 0; }
    #endif

    /* Each thread has its own pool in libgomp, whose size is that of its latest team. */
    static __thread int pool_size = 1;
    /* Whether that pool was given back before the fork; for the child to read. */
    static __thread int pool_released = 0;
    """
    const char* COMPILER
    const int OPENMP_DATE
    const int CPU_NEON
    int pool_size
    bint pool_released
    void __builtin_cpu_init() noexcept nogil
    int CPU_V2() noexcept nogil
    int CPU_V3() noexcept nogil
    int CPU_V4() noexcept nogil
    int omp_get_max_threads() noexcept nogil
    int omp_in_parallel() noexcept nogil
    int allowed_cpus() noexcept nogil

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_create(pthread_t*, void*, void* (*)(void*) noexcept nogil, void*) noexcept
    int pthread_join(pthread_t, void**) noexcept
    int pthread_mutex_init(pthread_mutex_t*, void*) noexcept
    int pthread_mutex_destroy(pthread_mutex_t*) noexcept
    int pthread_mutex_lock(pthread_mutex_t*) noexcept
    int pthread_mutex_unlock(pthread_mutex_t*) noexcept
    int pthread_atfork(void (*)() noexcept nogil, void (*)() noexcept nogil,
                       void (*)() noexcept nogil) noexcept

cdef extern from "dlfcn.h" nogil:
    ctypedef struct Dl_info:
        const char* dli_fname
    void* RTLD_DEFAULT
    void* dlsym(void*, const char*) noexcept
    int dladdr(void*, Dl_info*) noexcept

cdef enum:
    MAX_THREADS = 64
    PAUSE_SOFT = 1  # omp_pause_soft

ctypedef int (*pause_function)(int) noexcept nogil

cdef pause_function pause_all = NULL  # of libgomp; NULL for other runtimes
cdef bint serial_only = False  # in a child that inherited a pool whose threads are gone


# ---- CPU --------------------------------------------------------------------------

def can() -> tuple:
    """Instruction sets that this CPU and operating system can run, best first."""
    __builtin_cpu_init()
    found = (("avx512", CPU_V4()), ("avx2", CPU_V3()), ("baseline", CPU_V2()),
             ("neon", CPU_NEON), ("generic", 1))
    return tuple([name for name, yes in found if yes])


def compiler() -> str:
    """Name and version of the compiler that built the modules."""
    return COMPILER.decode()


# ---- OpenMP -----------------------------------------------------------------------

cdef bytes openmp_library():
    """File that the process took its OpenMP functions from; empty without OpenMP."""
    cdef Dl_info info
    cdef void* function = dlsym(RTLD_DEFAULT, "omp_get_max_threads")
    if OPENMP_DATE == 0 or function == NULL or dladdr(function, &info) == 0:
        return b""
    return info.dli_fname


def openmp() -> tuple:
    """OpenMP's date (0 without it) and the file of the library in use."""
    return OPENMP_DATE, openmp_library().decode(errors="replace")


def in_parallel() -> bool:
    """Whether the caller is inside a parallel region of the OpenMP library in use."""
    return omp_in_parallel() != 0


# ---- threads ----------------------------------------------------------------------

def default_threads(int quota, bint trust_openmp) -> int:
    """Team size without an explicit number: OpenMP's for this thread, within the CPUs.

    ``quota`` is the cgroup's in CPUs, 0 for none. With ``trust_openmp`` (OMP_NUM_THREADS is
    set: the user has decided) neither it nor the affinity mask counts.
    """
    return default_team(quota, trust_openmp)


def team(int wanted, int most, int quota, bint trust_openmp) -> int:
    """Threads that the next parallel region of this thread may safely ask for.

    ``wanted`` is an explicit number or 0 for the default; ``most`` bounds both. Threads
    are tried before the region starts, and what could be made is the answer.
    """
    if serial_only or omp_in_parallel():
        return 1
    cdef int n = wanted if wanted > 0 else default_team(quota, trust_openmp)
    return grow(max(1, min(n, most, MAX_THREADS)))


def ensure_team(int n) -> int:
    """How many threads, up to ``n``, a region of this thread can have without failing."""
    return grow(max(1, min(n, MAX_THREADS)))


cdef int default_team(int quota, bint trust_openmp) noexcept:
    cdef int n = omp_get_max_threads()
    if trust_openmp:
        return n
    cdef int cpus = allowed_cpus()
    if cpus > 0:
        n = min(n, cpus)
    if quota > 0:
        n = min(n, quota)
    return n


cdef int grow(int n) noexcept:
    """Test a growth of the pool: libgomp ends the process when pthread_create fails.

    The pool then has the size of the team asked for: libgomp lets the threads that a
    smaller team does not need go (except for a team of one), so the next larger team
    creates them anew. Other users of the same libgomp may have made the pool smaller than
    is known here; so once a thread could not be made, none is taken for granted.
    """
    global pool_size
    cdef int missing = n - pool_size
    if missing > 0 and OPENMP_DATE != 0:
        with nogil:
            if startable(missing) < missing:
                n = 1 + startable(n - 1)
    if n > 1:
        pool_size = n
    return n


cdef int startable(int n) noexcept nogil:
    """How many of ``n`` threads can exist at once, by starting them."""
    cdef pthread_t threads[MAX_THREADS]
    cdef pthread_mutex_t gate
    cdef int started = 0, i
    pthread_mutex_init(&gate, NULL)
    pthread_mutex_lock(&gate)
    while started < n and pthread_create(&threads[started], NULL, wait_at, &gate) == 0:
        started += 1
    pthread_mutex_unlock(&gate)
    for i in range(started):
        pthread_join(threads[i], NULL)
    pthread_mutex_destroy(&gate)
    return started


cdef void* wait_at(void* gate) noexcept nogil:
    pthread_mutex_lock(<pthread_mutex_t*> gate)
    pthread_mutex_unlock(<pthread_mutex_t*> gate)
    return NULL


# ---- fork -------------------------------------------------------------------------

# A child inherits libgomp's pool without its threads and would wait for them for ever in
# its first parallel region. So the pool is given back just before every fork (both sides
# make a new one when they need it); where that fails, the child stays on one thread.
# LLVM's libomp has a fork handler of its own.

cdef void prepare_fork() noexcept nogil:
    global pool_size, pool_released
    pool_released = pause_all(PAUSE_SOFT) == 0 if pause_all != NULL else pool_size == 1
    if pool_released:
        pool_size = 1


cdef void after_fork_in_child() noexcept nogil:
    global serial_only
    if not pool_released:
        serial_only = True


def fork_guard() -> str:
    """What happens to the threads at a fork, in words."""
    if not is_gomp():
        return "nothing to do for this OpenMP library"
    if serial_only:
        return "this process was forked with threads that could not be given back: one thread"
    return "threads are given back before it" if pause_all != NULL else "one thread in the child"


cdef bint is_gomp():
    return strstr(openmp_library(), b"libgomp") != NULL


if is_gomp():
    pause_all = <pause_function> dlsym(RTLD_DEFAULT, "omp_pause_resource_all")
    pthread_atfork(prepare_fork, NULL, after_fork_in_child)
