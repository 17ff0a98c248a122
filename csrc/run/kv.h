/* The key/value cache of one timeline: a table of pages, each holding MM2_PAGE positions of every
 * layer.
 *
 * A page is also the chunk of absolute positions that attention sums over (DESIGN: same bits), so a
 * page is the only thing the attention kernel ever sees. Pages are counted references: a fork can
 * share them.
 *
 * Inside a page: [layer][KV head] keys, then values, each as the kernels want a chunk of them
 * (mm2_key_at, mm2_value_at). */
#ifndef MM2_KV_H
#define MM2_KV_H

#include "kernels/kernels.h"

#include <stdatomic.h>

enum { MM2_PAGE = MM2_CHUNK };

typedef struct mm2_page {
    atomic_int references;
    char *data;
} mm2_page;

typedef struct mm2_kv {
    int32_t layers, heads, head_dim, dtype; /* heads: KV heads */
    int64_t head_bytes;                     /* keys (or values) of one head in a page */
    int64_t page_bytes;
    int32_t page_limit; /* pages that the context has room for */
    int32_t page_count; /* pages that exist: positions [0, page_count * MM2_PAGE) */
    mm2_page **pages;
} mm2_kv;

/* Bytes of a whole cache, or -1 on overflow. */
int64_t mm2_kv_bytes(const mm2_config *c, int32_t dtype, int32_t context);
mm2_status mm2_kv_init(mm2_kv *kv, const mm2_config *c, int32_t dtype, int32_t context);
void mm2_kv_free(mm2_kv *kv);
/* Makes the pages of positions [0, positions). NOMEM leaves the ones that exist. */
mm2_status mm2_kv_reserve(mm2_kv *kv, int32_t positions);
/* Gives back the pages beyond `positions`. */
void mm2_kv_truncate(mm2_kv *kv, int32_t positions);

const void *mm2_kv_keys(const mm2_kv *kv, int32_t layer, int32_t head, int32_t page);
const void *mm2_kv_values(const mm2_kv *kv, int32_t layer, int32_t head, int32_t page);
/* Stores key and value (float [head_dim] each) of one position; its page exists. */
void mm2_kv_write(mm2_kv *kv, int32_t layer, int32_t head, int32_t position, const float *key,
                  const float *value);

#endif
