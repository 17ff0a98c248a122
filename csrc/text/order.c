/* Sorting the vocabulary once. A walk over the sorted tokens that keeps where it was behind each byte
 * of the last one goes over a trie, without one in memory: 6 bytes a token are enough.
 *
 * Two threads may both find that there is no order yet; the one that is late drops its own. */
#include "text/order.h"

#include "base/status.h"
#include "text/parts.h"

#include <stdlib.h>
#include <string.h>

typedef struct entry {
    const char *bytes;
    int32_t length, id;
} entry;

static int compare(const void *x, const void *y)
{
    const entry *a = x, *b = y;
    int32_t shorter = a->length < b->length ? a->length : b->length;
    int order = memcmp(a->bytes, b->bytes, (size_t)shorter);
    if (!order)
        order = a->length - b->length;
    return order ? order : a->id - b->id;
}

static uint16_t common(const entry *a, const entry *b)
{
    int32_t n = 0;
    while (n < a->length && n < b->length && a->bytes[n] == b->bytes[n])
        n++;
    return (uint16_t)n;
}

static mm2_order *make(const mm2_bpe *b)
{
    mm2_order *o = calloc(1, sizeof *o);
    entry *entries = malloc(((size_t)b->size + 1) * sizeof *entries);
    int32_t n = 0;
    for (int32_t id = 0; entries && id < b->size; id++)
        if (b->kind[id] == MM2_TOKEN_WORD && b->length[id])
            entries[n++] = (entry){b->bytes + b->start[id], b->length[id], id};
    if (o) {
        o->ids = malloc(((size_t)n + 1) * sizeof *o->ids);
        o->common = malloc(((size_t)n + 1) * sizeof *o->common);
        o->count = n;
    }
    if (!o || !entries || !o->ids || !o->common) {
        free(entries);
        mm2_order_free(o);
        mm2_fail(MM2_E_NOMEM, "no memory to sort %d tokens", b->size);
        return NULL;
    }
    if (n)
        qsort(entries, (size_t)n, sizeof *entries, compare);
    for (int32_t i = 0; i < n; i++) {
        o->ids[i] = entries[i].id;
        o->common[i] = i ? common(&entries[i - 1], &entries[i]) : 0;
    }
    free(entries);
    return o;
}

const mm2_order *mm2_tokenizer_order(const mm2_tokenizer *t)
{
    _Atomic(mm2_order *) *at = &((mm2_tokenizer *)t)->order; /* nothing that a reader can see */
    mm2_order *found = atomic_load(at), *made = found ? NULL : make(&t->bpe);
    if (!made)
        return found;
    if (atomic_compare_exchange_strong(at, &found, made))
        return made;
    mm2_order_free(made);
    return found;
}

void mm2_order_free(mm2_order *o)
{
    if (!o)
        return;
    free(o->ids);
    free(o->common);
    free(o);
}
