/* An allocator for NumPy's arrays (PyDataMem_Handler) that refuses the n-th request, once.
 *
 * In C, because NumPy frees arrays while an exception is on its way, which a callback in
 * Python would lose. Arrays start behind a header with their size.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER = 64 };

static atomic_long countdown = 0; /* requests until one is refused; below 1: none is */
static atomic_long live = 0;      /* bytes of arrays that exist */

long refusing_arm(long n) { return atomic_exchange(&countdown, n); } /* the former one */

long refusing_live(void) { return atomic_load(&live); }

int refusing_now(void) { return atomic_fetch_sub(&countdown, 1) == 1; }

static void *refusing_realloc(void *context, void *array, size_t size) {
    char *block = array ? (char *)array - HEADER : NULL;
    (void)context;
    if (refusing_now()) return NULL;
    if (block) atomic_fetch_sub(&live, *(size_t *)block);
    block = realloc(block, size + HEADER);
    if (!block) return NULL;
    *(size_t *)block = size;
    atomic_fetch_add(&live, size);
    return block + HEADER;
}

static void *refusing_malloc(void *context, size_t size) {
    return refusing_realloc(context, NULL, size);
}

static void *refusing_calloc(void *context, size_t number, size_t size) {
    void *array = refusing_realloc(context, NULL, number * size);
    return array ? memset(array, 0, number * size) : NULL;
}

static void refusing_free(void *context, void *array, size_t size) {
    char *block = array ? (char *)array - HEADER : NULL;
    (void)context, (void)size;
    if (block) atomic_fetch_sub(&live, *(size_t *)block);
    free(block);
}

struct {
    char name[127];
    uint8_t version;
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *, size_t);
} refusing_handler = {
    "refusing", 1, NULL, refusing_malloc, refusing_calloc, refusing_realloc, refusing_free,
};
