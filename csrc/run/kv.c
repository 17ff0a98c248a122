/* Pages are mapped one by one as the timeline grows and are zero until written; the system commits
 * only what is touched. They never move, and truncating gives whole pages back at once. */
#include "run/kv.h"

#include "base/status.h"
#include "tensor/dtype.h"

#include <stdlib.h>
#include <sys/mman.h>

static int64_t page_count_for(int32_t positions)
{
    return ((int64_t)positions + MM2_PAGE - 1) / MM2_PAGE;
}

static int64_t bytes_of_page(const mm2_config *c, int32_t dtype)
{
    int64_t head = (int64_t)MM2_PAGE * c->head_dim * (dtype == MM2_F32 ? 4 : 2), bytes;
    if (__builtin_mul_overflow(head * 2, c->num_key_value_heads, &bytes) ||
        __builtin_mul_overflow(bytes, c->num_hidden_layers, &bytes))
        return -1;
    return bytes;
}

int64_t mm2_kv_bytes(const mm2_config *c, int32_t dtype, int32_t context)
{
    int64_t page = bytes_of_page(c, dtype), bytes;
    if (page < 0 || __builtin_mul_overflow(page, page_count_for(context), &bytes))
        return -1;
    return bytes;
}

mm2_status mm2_kv_init(mm2_kv *kv, const mm2_config *c, int32_t dtype, int32_t context)
{
    *kv = (mm2_kv){.layers = c->num_hidden_layers,
                   .heads = c->num_key_value_heads,
                   .head_dim = c->head_dim,
                   .dtype = dtype,
                   .page_limit = (int32_t)page_count_for(context),
                   .page_bytes = bytes_of_page(c, dtype)};
    kv->head_bytes = (int64_t)MM2_PAGE * c->head_dim * (dtype == MM2_F32 ? 4 : 2);
    kv->pages = calloc((size_t)kv->page_limit, sizeof *kv->pages);
    if (!kv->pages)
        return mm2_fail(MM2_E_NOMEM, "out of memory for the page table of %d positions", context);
    return MM2_OK;
}

static void release_page(mm2_page *page, int64_t bytes)
{
    if (atomic_fetch_sub(&page->references, 1) > 1)
        return;
    munmap(page->data, (size_t)bytes);
    free(page);
}

void mm2_kv_truncate(mm2_kv *kv, int32_t positions)
{
    while (kv->page_count > page_count_for(positions)) {
        release_page(kv->pages[--kv->page_count], kv->page_bytes);
        kv->pages[kv->page_count] = NULL;
    }
}

void mm2_kv_free(mm2_kv *kv)
{
    mm2_kv_truncate(kv, 0);
    free(kv->pages);
    *kv = (mm2_kv){0};
}

mm2_status mm2_kv_reserve(mm2_kv *kv, int32_t positions)
{
    while (kv->page_count < page_count_for(positions)) {
        mm2_page *page = malloc(sizeof *page);
        void *data = page ? mmap(NULL, (size_t)kv->page_bytes, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                          : MAP_FAILED;
        if (data == MAP_FAILED) {
            free(page);
            return mm2_fail(
                MM2_E_NOMEM,
                "out of memory: the KV cache needs another %lld bytes for positions %d to %d",
                (long long)kv->page_bytes, kv->page_count * MM2_PAGE,
                kv->page_count * MM2_PAGE + MM2_PAGE - 1);
        }
        page->data = data;
        atomic_init(&page->references, 1);
        kv->pages[kv->page_count++] = page;
    }
    return MM2_OK;
}

static char *keys_of(const mm2_kv *kv, int32_t layer, int32_t head, int32_t page)
{
    return kv->pages[page]->data + ((int64_t)layer * kv->heads + head) * 2 * kv->head_bytes;
}

const void *mm2_kv_keys(const mm2_kv *kv, int32_t layer, int32_t head, int32_t page)
{
    return keys_of(kv, layer, head, page);
}

const void *mm2_kv_values(const mm2_kv *kv, int32_t layer, int32_t head, int32_t page)
{
    return keys_of(kv, layer, head, page) + kv->head_bytes;
}

void mm2_kv_write(mm2_kv *kv, int32_t layer, int32_t head, int32_t position, const float *key,
                  const float *value)
{
    char *base = keys_of(kv, layer, head, position / MM2_PAGE);
    int32_t slot = position % MM2_PAGE, n = kv->head_dim;
    if (kv->dtype == MM2_F32) {
        float *k = (float *)base, *v = (float *)(base + kv->head_bytes);
        for (int32_t d = 0; d < n; d++) {
            k[mm2_key_at(MM2_F32, n, slot, d)] = key[d];
            v[mm2_value_at(MM2_F32, n, slot, d)] = value[d];
        }
    } else {
        uint16_t *k = (uint16_t *)base, *v = (uint16_t *)(base + kv->head_bytes);
        for (int32_t d = 0; d < n; d++) {
            k[mm2_key_at(MM2_BF16, n, slot, d)] = mm2_f32_bf16(key[d]);
            v[mm2_value_at(MM2_BF16, n, slot, d)] = mm2_f32_bf16(value[d]);
        }
    }
}
