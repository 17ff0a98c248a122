/* The cache of a timeline: pages of MM2_PAGE positions, counted, shared by forks.
 *
 * A page is a table of cells, one a layer. A cell is what one layer keeps of the page's positions,
 * in the planes that its blocks declare; nobody else knows what lies in a plane. A page is also the
 * chunk of absolute positions that attention sums over, so it is the only thing that a kernel ever
 * sees of the cache.
 *
 * A shared page is never written. Who wants to write into it gets a page of its own, whose cells are
 * still those of the shared one (its origin) and are copied one by one when their layer is about to
 * be written, only as far as they are filled.
 *
 * Pages may come from a file (a store): they lie in its copy-on-write map, so nothing is read until it
 * is needed, and writing changes the map alone. Their cells have checksums, and are held against them
 * once, before they are first used. */
#ifndef MM2_PAGES_H
#define MM2_PAGES_H

#include "base/file.h"
#include "base/pool.h"
#include "kernels/kernels.h"

#include <stdatomic.h>

enum { MM2_PAGE = MM2_CHUNK, MM2_PLANES = 4 };

/* `runs` runs of all positions of the page, each made of groups of `group` positions in ascending
 * order, `group_bytes` a group. */
typedef struct mm2_plane {
    int32_t runs, group;
    int64_t group_bytes;
    int64_t at; /* in the cell: set by mm2_layout_new */
} mm2_plane;

typedef struct mm2_cell {
    mm2_plane planes[MM2_PLANES];
    int32_t count; /* of planes; 0: the layer keeps nothing */
    int64_t at;    /* in the page: set by mm2_layout_new */
} mm2_cell;

/* How the pages of a timeline are made. Counted: forks share it. */
typedef struct mm2_layout {
    atomic_int references;
    int32_t layers;
    int64_t page_bytes;
    mm2_cell cells[]; /* [layers] */
} mm2_layout;

/* A file that pages come from. Counted: each of them holds it. */
typedef struct mm2_store {
    atomic_int references;
    mm2_file file;
    uint64_t *sums; /* checksums of cells: [pages][layers] */
} mm2_store;

typedef struct mm2_page {
    atomic_int references;
    char *data;              /* never moves; committed by the system as it is written */
    struct mm2_page *origin; /* has the cells that are not here; NULL: all are here */
    mm2_store *store;        /* that data lies in; NULL: it has memory of its own */
    const uint64_t *sums;    /* [layers], with a store */
    /* With an origin: cells that are not here. With a store: cells that have not been checked. A
     * page has one of the two, or neither. */
    atomic_int missing;
    atomic_uchar here[]; /* [layers]: those that are not missing */
} mm2_page;

typedef struct mm2_pages {
    mm2_layout *layout;
    mm2_page **table; /* [limit] */
    int32_t count, limit;
} mm2_pages;

/* Completes a layout whose cells have runs, groups and counts; -1 for page_bytes if it is too large
 * to have a size. */
void mm2_layout_finish(mm2_layout *l);
void mm2_layout_release(mm2_layout *l);
int64_t mm2_layout_cell_bytes(const mm2_layout *l, int32_t layer);
/* Says how cells are laid out: what is saved under one layout cannot be read under another. */
uint64_t mm2_layout_sum(const mm2_layout *l);
/* Copies the planes of a cell as far as their first `filled` positions. */
void mm2_cell_copy(const mm2_cell *cell, char *to, const char *from, int32_t filled);

static inline int64_t mm2_pages_for(int32_t positions)
{
    return ((int64_t)positions + MM2_PAGE - 1) / MM2_PAGE;
}

/* An empty table for `positions` positions; keeps the layout. NOMEM. */
mm2_status mm2_pages_init(mm2_pages *p, mm2_layout *layout, int32_t positions);
/* A table that shares the pages of the first `positions` positions. NOMEM. */
mm2_status mm2_pages_fork(mm2_pages *out, const mm2_pages *p, int32_t positions);
void mm2_pages_free(mm2_pages *p);

/* A page of its own, zero; one count is the caller's. NULL without memory. `bytes`: of a page. */
mm2_page *mm2_page_new(const mm2_layout *l);
mm2_page *mm2_page_retain(mm2_page *page);
void mm2_page_release(mm2_page *page, int64_t bytes);
/* Is it complete in itself: no cell is missing, and it lies in no file? */
static inline int mm2_page_whole(const mm2_page *page)
{
    return !page->origin && !page->store;
}
/* The caller's count becomes the table's; there is room. */
void mm2_pages_append(mm2_pages *p, mm2_page *page);

/* Makes the pages of positions [first, end) writable: those that do not exist, and one of its own
 * where the first is shared. NOMEM leaves everything as it was, but for pages beyond `first`. */
mm2_status mm2_pages_reserve(mm2_pages *p, int32_t first, int32_t end);
/* Gives back the pages beyond `positions`. */
void mm2_pages_truncate(mm2_pages *p, int32_t positions);

/* An empty store; mm2_store_release gives up one count. NOMEM. */
mm2_status mm2_store_new(mm2_store **out);
void mm2_store_release(mm2_store *s);
/* Fills an empty table with the first `count` pages of a store, page i at byte `at` + i * `stride` of
 * its file. NOMEM. */
mm2_status mm2_pages_adopt(mm2_pages *p, mm2_store *store, int64_t at, int64_t stride,
                           int32_t count);
/* IO if the file behind a page was cut short or written to. */
mm2_status mm2_pages_intact(const mm2_pages *p);
/* Checks the cells that have not been checked: OK when all of them have, MORE at the limit, FORMAT if
 * one is damaged. Cells must not be read or written before. */
mm2_status mm2_pages_check(const mm2_pages *p, mm2_pool *pool, const mm2_limit *limit);

/* Must the cell be copied before it is written? */
static inline int mm2_pages_missing(const mm2_pages *p, int32_t page, int32_t layer)
{
    return p->table[page]->origin && !p->table[page]->here[layer];
}
/* Copies a missing cell as far as its first `filled` positions. A cell of M2 is 1 MiB in BF16. One
 * call at a time on a page; calls on several pages may run at once. */
void mm2_pages_copy(mm2_pages *p, int32_t page, int32_t layer, int32_t filled);
/* A cell to read from. */
const char *mm2_pages_cell(const mm2_pages *p, int32_t page, int32_t layer);
/* A cell to write into: it is not missing. */
static inline char *mm2_pages_own_cell(const mm2_pages *p, int32_t page, int32_t layer)
{
    return p->table[page]->data + p->layout->cells[layer].at;
}

#endif
