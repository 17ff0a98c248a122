/* Pages are mapped one by one as the timeline grows and are zero until written; the system commits
 * only what is touched. They never move, and truncating gives whole pages back at once.
 *
 * References are the only thing about a page that several threads touch. A timeline that finds the
 * count at 1 is the only one that can raise it again, so it may write; one that finds more makes a
 * page of its own, and if the others have gone by then, a copy was made for nothing, no more.
 *
 * Origins form a chain when a page is shared again before all its cells have arrived. It is
 * followed in loops: its length is chosen by the caller's forks. */
#include "run/pages.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int64_t run_bytes(const mm2_plane *plane)
{
    return (MM2_PAGE + plane->group - 1) / plane->group * plane->group_bytes;
}

void mm2_layout_finish(mm2_layout *l)
{
    int64_t at = 0, bytes;
    for (int32_t i = 0; i < l->layers; i++) {
        mm2_cell *cell = &l->cells[i];
        cell->at = at;
        for (int32_t j = 0; j < cell->count; j++) {
            mm2_plane *plane = &cell->planes[j];
            plane->at = at - cell->at;
            if (__builtin_mul_overflow(run_bytes(plane), plane->runs, &bytes) ||
                __builtin_add_overflow(at, (bytes + 63) / 64 * 64, &at)) {
                l->page_bytes = -1;
                return;
            }
        }
    }
    l->page_bytes = at;
}

void mm2_layout_release(mm2_layout *l)
{
    if (l && atomic_fetch_sub(&l->references, 1) == 1)
        free(l);
}

/* ---- One page ---- */

static mm2_page *new_page(const mm2_layout *l)
{
    mm2_page *page = calloc(1, sizeof *page + (size_t)l->layers);
    if (!page)
        return NULL;
    page->data = mmap(NULL, (size_t)l->page_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (page->data == MAP_FAILED) {
        free(page);
        return NULL;
    }
    atomic_init(&page->references, 1);
    return page;
}

static void release_page(mm2_page *page, int64_t bytes)
{
    while (page && atomic_fetch_sub(&page->references, 1) == 1) {
        mm2_page *origin = page->origin;
        munmap(page->data, (size_t)bytes);
        free(page);
        page = origin;
    }
}

static mm2_status no_memory(const mm2_pages *p, int32_t page)
{
    return mm2_fail(
        MM2_E_NOMEM, "out of memory: the KV cache needs another %lld bytes for positions %d to %d",
        (long long)p->layout->page_bytes, page * MM2_PAGE, page * MM2_PAGE + MM2_PAGE - 1);
}

/* ---- The table ---- */

mm2_status mm2_pages_init(mm2_pages *p, mm2_layout *layout, int32_t positions)
{
    *p = (mm2_pages){.layout = layout, .limit = (int32_t)mm2_pages_for(positions)};
    p->table = calloc((size_t)p->limit, sizeof *p->table);
    if (!p->table)
        return mm2_fail(MM2_E_NOMEM, "out of memory for the page table of %d positions", positions);
    atomic_fetch_add(&layout->references, 1);
    return MM2_OK;
}

mm2_status mm2_pages_fork(mm2_pages *out, const mm2_pages *p, int32_t positions)
{
    mm2_status status = mm2_pages_init(out, p->layout, p->limit * MM2_PAGE);
    if (status)
        return status;
    for (; out->count < mm2_pages_for(positions); out->count++) {
        out->table[out->count] = p->table[out->count];
        atomic_fetch_add(&out->table[out->count]->references, 1);
    }
    return MM2_OK;
}

void mm2_pages_free(mm2_pages *p)
{
    mm2_pages_truncate(p, 0);
    free(p->table);
    if (p->table)
        mm2_layout_release(p->layout);
    *p = (mm2_pages){0};
}

void mm2_pages_truncate(mm2_pages *p, int32_t positions)
{
    while (p->count > mm2_pages_for(positions)) {
        release_page(p->table[--p->count], p->layout->page_bytes);
        p->table[p->count] = NULL;
    }
}

static mm2_status unshare(mm2_pages *p, int32_t index)
{
    mm2_page *shared = p->table[index], *own;
    if (atomic_load(&shared->references) == 1)
        return MM2_OK;
    own = new_page(p->layout);
    if (!own)
        return no_memory(p, index);
    own->origin = shared; /* the table's reference */
    own->missing = p->layout->layers;
    p->table[index] = own;
    return MM2_OK;
}

mm2_status mm2_pages_reserve(mm2_pages *p, int32_t first, int32_t end)
{
    if (first % MM2_PAGE && first / MM2_PAGE < p->count) {
        mm2_status status = unshare(p, first / MM2_PAGE);
        if (status)
            return status;
    }
    while (p->count < mm2_pages_for(end)) {
        mm2_page *page = new_page(p->layout);
        if (!page)
            return no_memory(p, p->count);
        p->table[p->count++] = page;
    }
    return MM2_OK;
}

/* ---- Cells ---- */

const char *mm2_pages_cell(const mm2_pages *p, int32_t page, int32_t layer)
{
    const mm2_page *at = p->table[page];
    while (at->origin && !at->here[layer])
        at = at->origin;
    return at->data + p->layout->cells[layer].at;
}

void mm2_pages_copy(mm2_pages *p, int32_t page, int32_t layer, int32_t filled)
{
    const mm2_cell *cell = &p->layout->cells[layer];
    mm2_page *own = p->table[page];
    const char *from = mm2_pages_cell(p, page, layer);
    char *to = own->data + cell->at;
    for (int32_t i = 0; i < cell->count; i++) {
        const mm2_plane *plane = &cell->planes[i];
        int64_t used = (filled + plane->group - 1) / plane->group * plane->group_bytes;
        for (int32_t run = 0; run < plane->runs; run++) {
            int64_t at = plane->at + run * run_bytes(plane);
            memcpy(to + at, from + at, (size_t)used);
        }
    }
    own->here[layer] = 1;
    if (!--own->missing) {
        release_page(own->origin, p->layout->page_bytes);
        own->origin = NULL;
    }
}
