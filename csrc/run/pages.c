/* Pages are mapped one by one as the timeline grows and are zero until written; the system commits
 * only what is touched. They never move, and truncating gives whole pages back at once.
 *
 * References are the only thing about a page that several threads touch. A timeline that finds the
 * count at 1 is the only one that can raise it again, so it may write; one that finds more makes a
 * page of its own, and if the others have gone by then, a copy was made for nothing, no more.
 *
 * Origins form a chain when a page is shared again before all its cells have arrived. It is
 * followed in loops: its length is chosen by the caller's forks.
 *
 * A page out of a store is a piece of one map of the whole file. When it goes, what was written to it
 * is dropped; the map goes with the last page. Checking is shared by the threads, a cell at a time;
 * forks that share a page may check it at the same time, which is work for nothing, no more. */
#include "run/pages.h"

#include "base/checksum.h"
#include "base/status.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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

int64_t mm2_layout_cell_bytes(const mm2_layout *l, int32_t layer)
{
    return (layer + 1 < l->layers ? l->cells[layer + 1].at : l->page_bytes) - l->cells[layer].at;
}

uint64_t mm2_layout_sum(const mm2_layout *l)
{
    uint64_t sum = 0;
    for (int32_t i = 0; i < l->layers; i++)
        for (int32_t j = 0; j < l->cells[i].count; j++) {
            const mm2_plane *plane = &l->cells[i].planes[j];
            int64_t facts[] = {(int64_t)sum, l->cells[i].at,     plane->at,
                               plane->runs,  plane->group_bytes, plane->group};
            sum = mm2_checksum(facts, sizeof facts);
        }
    return sum;
}

void mm2_cell_copy(const mm2_cell *cell, char *to, const char *from, int32_t filled)
{
    for (int32_t i = 0; i < cell->count; i++) {
        const mm2_plane *plane = &cell->planes[i];
        int64_t used = (filled + plane->group - 1) / plane->group * plane->group_bytes;
        for (int32_t run = 0; run < plane->runs; run++) {
            int64_t at = plane->at + run * run_bytes(plane);
            memcpy(to + at, from + at, (size_t)used);
        }
    }
}

/* ---- One page ---- */

static mm2_page *allocate_page(const mm2_layout *l)
{
    mm2_page *page = calloc(1, sizeof *page + (size_t)l->layers);
    if (page)
        atomic_init(&page->references, 1);
    return page;
}

mm2_page *mm2_page_new(const mm2_layout *l)
{
    mm2_page *page = allocate_page(l);
    if (!page)
        return NULL;
    page->data = mmap(NULL, (size_t)l->page_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (page->data == MAP_FAILED) {
        free(page);
        return NULL;
    }
    return page;
}

mm2_page *mm2_page_retain(mm2_page *page)
{
    atomic_fetch_add(&page->references, 1);
    return page;
}

void mm2_page_release(mm2_page *page, int64_t bytes)
{
    while (page && atomic_fetch_sub(&page->references, 1) == 1) {
        mm2_page *origin = page->origin;
        if (page->store)
            madvise(page->data, (size_t)bytes, MADV_DONTNEED);
        else
            munmap(page->data, (size_t)bytes);
        mm2_store_release(page->store);
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
    while (out->count < mm2_pages_for(positions))
        mm2_pages_append(out, mm2_page_retain(p->table[out->count]));
    return MM2_OK;
}

void mm2_pages_append(mm2_pages *p, mm2_page *page)
{
    p->table[p->count++] = page;
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
        mm2_page_release(p->table[--p->count], p->layout->page_bytes);
        p->table[p->count] = NULL;
    }
}

static mm2_status unshare(mm2_pages *p, int32_t index)
{
    mm2_page *shared = p->table[index], *own;
    if (atomic_load(&shared->references) == 1)
        return MM2_OK;
    own = mm2_page_new(p->layout);
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
        mm2_page *page = mm2_page_new(p->layout);
        if (!page)
            return no_memory(p, p->count);
        mm2_pages_append(p, page);
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
    mm2_cell_copy(cell, own->data + cell->at, from, filled);
    own->here[layer] = 1;
    if (atomic_fetch_sub(&own->missing, 1) == 1) {
        mm2_page_release(own->origin, p->layout->page_bytes);
        own->origin = NULL;
    }
}

/* ---- Pages out of a file ---- */

mm2_status mm2_store_new(mm2_store **out)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return mm2_fail(MM2_E_NOMEM, "out of memory for a session");
    atomic_init(&(*out)->references, 1);
    return MM2_OK;
}

void mm2_store_release(mm2_store *s)
{
    if (!s || atomic_fetch_sub(&s->references, 1) != 1)
        return;
    mm2_file_close(&s->file);
    free(s->sums);
    free(s);
}

mm2_status mm2_pages_adopt(mm2_pages *p, mm2_store *store, int64_t at, int64_t stride,
                           int32_t count)
{
    int32_t layers = p->layout->layers;
    for (; p->count < count; p->count++) {
        mm2_page *page = allocate_page(p->layout);
        if (!page)
            return mm2_fail(MM2_E_NOMEM, "out of memory for a session");
        page->data = (char *)store->file.data + at + p->count * stride;
        page->sums = store->sums + (int64_t)p->count * layers;
        page->store = store;
        atomic_fetch_add(&store->references, 1);
        atomic_init(&page->missing, layers);
        p->table[p->count] = page;
    }
    return MM2_OK;
}

mm2_status mm2_pages_intact(const mm2_pages *p)
{
    for (int32_t i = 0; i < p->count; i++)
        for (const mm2_page *page = p->table[i]; page; page = page->origin)
            if (page->store) /* there is one store at most: a timeline is restored once */
                return mm2_file_check(&page->store->file);
    return MM2_OK;
}

typedef struct check {
    const mm2_pages *pages;
    atomic_llong next;    /* cell of all pages to look at, layer by layer */
    atomic_llong damaged; /* cell + 1; 0: none */
} check;

/* The next cell that has not been checked: every unit checks one, so every run comes further. */
static void check_cell(void *context, int32_t unit, int32_t thread)
{
    check *c = context;
    const mm2_layout *l = c->pages->layout;
    while (!atomic_load(&c->damaged)) {
        int64_t cell = atomic_fetch_add(&c->next, 1);
        if (cell >= (int64_t)c->pages->count * l->layers)
            return;
        mm2_page *page = c->pages->table[cell / l->layers];
        int32_t layer = (int32_t)(cell % l->layers);
        if (!page->store || page->here[layer])
            continue;
        char *data = page->data + l->cells[layer].at;
        int64_t bytes = mm2_layout_cell_bytes(l, layer);
        long long none = 0;
        uintptr_t edge = (uintptr_t)data % (uintptr_t)sysconf(_SC_PAGESIZE);
        madvise(data - edge, (size_t)bytes + edge, MADV_WILLNEED); /* a hint: it may fail */
        if (mm2_checksum(data, bytes) != page->sums[layer])
            atomic_compare_exchange_strong(&c->damaged, &none, cell + 1);
        else if (!atomic_exchange(&page->here[layer], 1))
            atomic_fetch_sub(&page->missing, 1);
        return;
    }
}

mm2_status mm2_pages_check(const mm2_pages *p, mm2_pool *pool, const mm2_limit *limit)
{
    check c = {.pages = p};
    mm2_progress progress = {0};
    int64_t left = 0;
    const char *path = NULL;
    for (int32_t i = 0; i < p->count; i++)
        if (p->table[i]->store && p->table[i]->missing) {
            left += p->table[i]->missing;
            path = p->table[i]->store->file.path;
        }
    int32_t units = left < INT32_MAX ? (int32_t)left : INT32_MAX;
    int done = !units || mm2_pool_run(pool, check_cell, &c, &progress, units, limit);
    int64_t damaged = c.damaged - 1;
    if (damaged < 0)
        return done ? MM2_OK : MM2_MORE;
    int32_t page = (int32_t)(damaged / p->layout->layers);
    return mm2_fail(
        MM2_E_FORMAT,
        "%s: is damaged: keys and values of positions %d to %d at layer %d are not those "
        "that were saved; restore another file, or rewind the session to %d tokens and "
        "feed it the others again",
        path, page * MM2_PAGE, page * MM2_PAGE + MM2_PAGE - 1,
        (int32_t)(damaged % p->layout->layers), page * MM2_PAGE);
}
