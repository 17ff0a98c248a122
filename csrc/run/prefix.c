/* The cache of prefixes.
 *
 * An entry is a full page and the tokens of its positions; `up` leads to the entry of the page before,
 * so that a walk from the first page on compares every token. Entries are found by a hash of all tokens
 * up to their end. They stand in one list, the last used first, and a page behind those before it: so
 * ends of texts go before their beginnings. An entry whose `up` has gone cannot be reached any more,
 * and grows old.
 *
 * A page with more than one holder is in use by a session and costs nothing here; the limit is for the
 * others. Sessions give pages back without asking, so the limit is looked at when they do.
 *
 * All that is here lies under one lock, held for walks over tokens and lists. Memory of pages is given
 * back, and files are read and written, without it. Where there is a folder, a thread does that: pages
 * that sessions wait for (arrivals) first, then what is to be written. Entries hold what is to be
 * written, so one that goes before its turn is not written, and memory stays bounded.
 *
 * A process that was forked has no such thread, and locks that nobody will open: it leaves the cache
 * of its parent alone, and makes one of its own. */
#include "run/prefix.h"

#include "base/checksum.h"
#include "base/guard.h"
#include "base/status.h"
#include "run/prefix_file.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct mm2_prefix mm2_prefix;

enum { BUCKETS = 4096, SPARES = 32 };
enum { WRITE = 1, TOUCH = 2 }; /* what is to be done for an entry */

typedef struct entry {
    struct entry *next; /* in its bucket; of those that go, in their list */
    struct entry *newer, *older;
    struct entry *up; /* NULL: it is the first page's, or the one before has gone */
    mm2_page *page;   /* one count is ours */
    mm2_layout *layout;
    uint64_t hash;
    int32_t index, kv_dtype, chores;
    int32_t tokens[MM2_PAGE];
} entry;

/* Pages that a session waits for. */
struct mm2_arrival {
    atomic_int references; /* the session's and the thread's */
    atomic_int done;
    int pid; /* of the process whose thread fetches them */
    mm2_arrival *next;
    mm2_layout *layout;
    int32_t kv_dtype, count; /* of pages that are wanted */
    int32_t held;
    mm2_page **pages; /* [count]: held, so that they stay in the cache until they are taken */
    int32_t tokens[]; /* [count * MM2_PAGE] */
};

struct mm2_prefix {
    int pid;
    mm2_model *model; /* which frees the cache */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t thread;
    atomic_int has_thread;
    int stop, writing;
    mm2_arrival *first, *last;
    entry *newest, *oldest;
    entry *buckets[BUCKETS];
    mm2_prefix_stats stats; /* but for what report() counts */
};

/* ---- Entries ---- */

/* From the first page of a text on. */
typedef struct walk {
    const int32_t *tokens;
    int32_t kv_dtype;
    int32_t index; /* of the next page */
    uint64_t hash; /* of what was looked for last */
    entry *at;     /* of the page before */
} walk;

static walk walk_over(const int32_t *tokens, int32_t kv_dtype)
{
    return (walk){.tokens = tokens, .kv_dtype = kv_dtype, .hash = (uint64_t)kv_dtype};
}

static const int32_t *tokens_of(const walk *w)
{
    return w->tokens + (int64_t)w->index * MM2_PAGE;
}

/* The entry of the next page; NULL if there is none, then the walk has come to its end. */
static entry *step(const mm2_prefix *s, walk *w)
{
    uint64_t both[2] = {w->hash, mm2_checksum(tokens_of(w), sizeof w->at->tokens)};
    w->hash = mm2_checksum(both, sizeof both);
    entry *e = s->buckets[w->hash % BUCKETS];
    while (e && (e->hash != w->hash || e->index != w->index || e->up != w->at ||
                 e->kv_dtype != w->kv_dtype || memcmp(e->tokens, tokens_of(w), sizeof e->tokens)))
        e = e->next;
    if (e) {
        w->at = e;
        w->index++;
    }
    return e;
}

static void unlink_entry(mm2_prefix *s, entry *e)
{
    *(e->newer ? &e->newer->older : &s->newest) = e->older;
    *(e->older ? &e->older->newer : &s->oldest) = e->newer;
}

static void link_newest(mm2_prefix *s, entry *e)
{
    e->newer = NULL;
    e->older = s->newest;
    *(e->older ? &e->older->newer : &s->oldest) = e;
    s->newest = e;
}

/* They were used now, the first page last. */
static void touch(mm2_prefix *s, entry *e)
{
    for (; e; e = e->up) {
        unlink_entry(s, e);
        link_newest(s, e);
    }
}

/* An entry for the page that a walk did not find; NULL without memory. */
static entry *insert(mm2_prefix *s, walk *w, mm2_page *page, mm2_layout *layout)
{
    entry *e = malloc(sizeof *e);
    if (!e)
        return NULL;
    *e = (entry){.next = s->buckets[w->hash % BUCKETS],
                 .up = w->at,
                 .page = mm2_page_retain(page),
                 .layout = layout,
                 .hash = w->hash,
                 .index = w->index,
                 .kv_dtype = w->kv_dtype};
    memcpy(e->tokens, tokens_of(w), sizeof e->tokens);
    atomic_fetch_add(&layout->references, 1);
    s->buckets[w->hash % BUCKETS] = e;
    link_newest(s, e);
    s->stats.pages++;
    w->at = e;
    w->index++;
    return e;
}

static void take_out(mm2_prefix *s, entry *gone)
{
    entry **at = &s->buckets[gone->hash % BUCKETS];
    while (*at != gone)
        at = &(*at)->next;
    *at = gone->next;
    unlink_entry(s, gone);
    for (entry *e = s->newest; e; e = e->older)
        if (e->up == gone)
            e->up = NULL;
    s->stats.pages--;
}

static void free_entries(entry *e)
{
    for (entry *next; e; e = next) {
        next = e->next;
        mm2_page_release(e->page, e->layout->page_bytes);
        mm2_layout_release(e->layout);
        free(e);
    }
}

/* Bytes that nobody else holds. */
static int64_t cost_of(const entry *e)
{
    return atomic_load(&e->page->references) == 1 ? e->layout->page_bytes : 0;
}

static int64_t cost_of_all(const mm2_prefix *s)
{
    int64_t bytes = 0;
    for (const entry *e = s->newest; e; e = e->older)
        bytes += cost_of(e);
    return bytes;
}

static void lock(mm2_prefix *s)
{
    pthread_mutex_lock(&s->lock);
}

/* Takes out what is beyond the limit, unlocks, and frees it. */
static void unlock(mm2_prefix *s)
{
    entry *gone = NULL;
    int64_t over = cost_of_all(s) - s->model->prefixes.limit;
    for (entry *e = s->oldest, *newer; e && over > 0; e = newer) {
        newer = e->newer;
        int64_t bytes = cost_of(e);
        if (!bytes)
            continue;
        over -= bytes;
        take_out(s, e);
        e->next = gone;
        gone = e;
        s->stats.evicted++;
    }
    pthread_mutex_unlock(&s->lock);
    free_entries(gone);
}

/* ---- The thread: files ---- */

static void release_arrival(mm2_arrival *a)
{
    if (atomic_fetch_sub(&a->references, 1) != 1)
        return;
    for (int32_t i = 0; i < a->held; i++)
        mm2_page_release(a->pages[i], a->layout->page_bytes);
    mm2_layout_release(a->layout);
    free(a->pages);
    free(a);
}

/* Counts how reading ended. */
static void count_read(mm2_prefix *s, mm2_status status)
{
    s->stats.read += status == MM2_OK;
    s->stats.damaged += status == MM2_E_FORMAT;
}

/* A page of an arrival, out of memory or its file; the count is the caller's. NULL: it ends here. */
static mm2_page *fetch_page(mm2_prefix *s, const mm2_prefix_files *f, const mm2_arrival *a,
                            int32_t index)
{
    mm2_page *page = NULL, *read = NULL;
    for (int32_t tries = 0; tries < 2 && !page; tries++) {
        walk w = walk_over(a->tokens, a->kv_dtype);
        lock(s);
        while (w.index < index && step(s, &w))
            ;
        int is_here = w.index == index; /* those before it are */
        entry *e = is_here ? step(s, &w) : NULL;
        if (is_here && !e && read)
            e = insert(s, &w, read, a->layout);
        page = e ? mm2_page_retain(e->page) : NULL;
        unlock(s);
        if (!is_here || page || read)
            break;
        mm2_prefix_key key = {.tokens = a->tokens,
                              .count = (index + 1) * MM2_PAGE,
                              .kv_dtype = a->kv_dtype,
                              .hash = w.hash,
                              .layout = a->layout};
        mm2_status status = mm2_prefix_read(f, &key, &read);
        lock(s);
        count_read(s, status);
        unlock(s);
        if (status)
            break;
    }
    if (read)
        mm2_page_release(read, a->layout->page_bytes);
    return page;
}

static void fetch(mm2_prefix *s, const mm2_prefix_files *f, mm2_arrival *a)
{
    while (a->held < a->count && atomic_load(&a->references) > 1) {
        mm2_page *page = fetch_page(s, f, a, a->held);
        if (!page)
            break;
        a->pages[a->held++] = page;
    }
    atomic_store(&a->done, 1);
    release_arrival(a);
}

/* All tokens up to the end of the entry's page, owned; NULL without memory, or one before it. */
static int32_t *all_tokens(const entry *e)
{
    int32_t *tokens = malloc((size_t)(e->index + 1) * sizeof e->tokens);
    int32_t index = e->index;
    for (; tokens && e; e = e->up, index--)
        memcpy(tokens + (int64_t)index * MM2_PAGE, e->tokens, sizeof e->tokens);
    if (tokens && index >= 0) {
        free(tokens);
        tokens = NULL;
    }
    return tokens;
}

/* First pages first: others are of no use without them. */
static entry *next_chore(const mm2_prefix *s)
{
    entry *found = NULL;
    for (entry *e = s->oldest; e; e = e->newer)
        if (e->chores && (!found || e->index < found->index))
            found = e;
    return found;
}

static void count_write(mm2_prefix *s, mm2_status status, int64_t removed)
{
    s->stats.removed += removed;
    s->stats.written += status == MM2_OK;
    s->stats.failed += status < 0;
    if (status <= 0)
        mm2_format(s->stats.problem, sizeof s->stats.problem, "%s",
                   status ? mm2_status_text() : "");
}

/* Locked at both ends. */
static void do_chore(mm2_prefix *s, const mm2_prefix_files *f, entry *e)
{
    int32_t chores = e->chores;
    int64_t removed = 0;
    int32_t *tokens = all_tokens(e);
    mm2_prefix_key key = {.tokens = tokens,
                          .count = (e->index + 1) * MM2_PAGE,
                          .kv_dtype = e->kv_dtype,
                          .hash = e->hash,
                          .layout = e->layout};
    mm2_page *page = e->page;
    e->chores = 0;
    if (!tokens)
        return;
    s->writing = chores & WRITE;
    mm2_page_retain(page);
    atomic_fetch_add(&key.layout->references, 1);
    pthread_mutex_unlock(&s->lock);
    mm2_status status = MM2_MORE;
    if (chores & WRITE)
        status = mm2_prefix_write(f, &key, page, &removed);
    else
        mm2_prefix_touch(f, &key);
    mm2_page_release(page, key.layout->page_bytes);
    mm2_layout_release(key.layout);
    free(tokens);
    lock(s);
    s->writing = 0;
    count_write(s, status, removed);
    unlock(s);
    lock(s);
}

static void *work(void *cache)
{
    mm2_prefix *s = cache;
    mm2_prefix_files files;
    entry *e;
    mm2_prefix_files_init(&files, s->model);
    lock(s);
    for (;;) {
        mm2_arrival *a = s->first;
        if (a) {
            s->first = a->next;
            unlock(s);
            fetch(s, &files, a);
            lock(s);
        } else if ((e = next_chore(s)))
            do_chore(s, &files, e);
        else if (s->stop)
            break;
        else
            pthread_cond_wait(&s->wake, &s->lock);
    }
    unlock(s);
    return NULL;
}

/* ---- Life ---- */

static void start_thread(mm2_prefix *s)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = pthread_create(&s->thread, NULL, work, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!failed)
        atomic_store(&s->has_thread, 1);
    else
        mm2_format(s->stats.problem, sizeof s->stats.problem,
                   "%s: the system has no thread for it: error %d", s->model->prefixes.folder,
                   failed);
}

static void free_cache(mm2_prefix *s)
{
    entry *all = NULL;
    while (s->newest) {
        entry *e = s->newest;
        unlink_entry(s, e);
        e->next = all;
        all = e;
    }
    free_entries(all);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static void free_prefixes(mm2_prefixes *home)
{
    mm2_prefix *s = atomic_load(&home->cache);
    if (s->pid != (int)getpid())
        return; /* the parent's; nobody here knows what it looked like in the middle of a change */
    if (atomic_load(&s->has_thread)) {
        lock(s);
        s->stop = 1;
        pthread_cond_signal(&s->wake);
        unlock(s);
        pthread_join(s->thread, NULL);
    }
    free_cache(s);
}

/* This process's; NULL if there is none. */
static mm2_prefix *existing(const mm2_model *m)
{
    mm2_prefix *s = m->prefixes.limit ? atomic_load(&m->prefixes.cache) : NULL;
    return s && s->pid == (int)getpid() ? s : NULL;
}

/* The same, made if there is none; NULL without memory. */
static mm2_prefix *cache_of(mm2_model *m)
{
    mm2_prefix *known = atomic_load(&m->prefixes.cache), *s;
    if (known && known->pid == (int)getpid())
        return known;
    s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->pid = (int)getpid();
    s->model = m;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    lock(s); /* whoever finds it waits until it has its thread */
    if (!atomic_compare_exchange_strong(&m->prefixes.cache, &known, s)) {
        pthread_mutex_unlock(&s->lock);
        free_cache(s);
        return existing(m);
    }
    m->prefixes.free = free_prefixes;
    if (m->prefixes.folder)
        start_thread(s);
    pthread_mutex_unlock(&s->lock);
    return s;
}

/* ---- What timelines do ---- */

void mm2_prefix_trim(mm2_model *m)
{
    mm2_prefix *s = existing(m);
    if (!s)
        return;
    lock(s);
    unlock(s);
}

void mm2_prefix_leave(mm2_timeline *t)
{
    if (!t->arrival)
        return;
    release_arrival(t->arrival);
    t->arrival = NULL;
    mm2_prefix_trim(t->model);
}

void mm2_prefix_put(mm2_timeline *t, int32_t before)
{
    int32_t pages = (t->position < t->edited ? t->position : t->edited) / MM2_PAGE, spared = 0;
    mm2_page *spare[SPARES];
    mm2_prefix *s;
    if (pages <= before / MM2_PAGE || !t->model->prefixes.limit || !(s = cache_of(t->model)))
        return;
    walk w = walk_over(mm2_timeline_tokens(t), t->kv_dtype);
    lock(s);
    while (w.index < pages) {
        mm2_page **own = &t->pages.table[w.index];
        entry *e = step(s, &w);
        if (e && e->page != *own &&
            spared < SPARES) { /* two have evaluated it: one page is enough */
            spare[spared++] = *own;
            *own = mm2_page_retain(e->page);
        } else if (!e) {
            e = mm2_page_whole(*own) ? insert(s, &w, *own, t->pages.layout) : NULL;
            if (!e)
                break;
            s->stats.added++;
            e->chores = atomic_load(&s->has_thread) ? WRITE : 0;
        }
    }
    touch(s, w.at);
    pthread_cond_signal(&s->wake);
    unlock(s);
    while (spared--)
        mm2_page_release(spare[spared], t->pages.layout->page_bytes);
}

/* The page where its own begin: of the last token, or of the first one that is edited. */
static int32_t own_page(const mm2_timeline *t)
{
    int32_t edited = mm2_edits_first(t->edits);
    return (edited < t->length - 1 ? edited : t->length - 1) / MM2_PAGE;
}

/* Takes the pages that are in memory. */
static void adopt(mm2_prefix *s, mm2_timeline *t)
{
    int32_t first = t->position / MM2_PAGE, end = own_page(t);
    walk w = walk_over(mm2_timeline_tokens(t), t->kv_dtype);
    entry *e;
    mm2_pages_truncate(&t->pages, t->position);
    lock(s);
    while (w.index < end && (e = step(s, &w))) {
        if (e->index >= first)
            mm2_pages_append(&t->pages, mm2_page_retain(e->page));
        e->chores |= atomic_load(&s->has_thread) && !e->chores ? TOUCH : 0;
    }
    touch(s, w.at);
    int32_t taken = t->pages.count * MM2_PAGE - t->position;
    s->stats.reused += taken;
    if (w.at && atomic_load(&s->has_thread))
        pthread_cond_signal(&s->wake);
    unlock(s);
    t->reused += taken;
    t->position += taken;
    if (taken)
        t->logits_of = -1;
}

/* Is there more than one page to take? No tap is on: it would miss their rows. */
static int wants(const mm2_timeline *t)
{
    size_t taps = (size_t)MM2_POINT_COUNT * (size_t)t->pages.layout->layers;
    return t->position % MM2_PAGE == 0 && t->position / MM2_PAGE < own_page(t) &&
           t->edited >= t->position && !memchr(t->taps, 1, taps);
}

static mm2_arrival *ask(mm2_prefix *s, const mm2_timeline *t)
{
    int32_t count = own_page(t);
    mm2_arrival *a = calloc(1, sizeof *a + (size_t)count * MM2_PAGE * sizeof *a->tokens);
    mm2_page **pages = calloc((size_t)count, sizeof *pages);
    if (!a || !pages) {
        free(a);
        free(pages);
        return NULL;
    }
    atomic_init(&a->references, 2);
    a->pid = s->pid;
    a->layout = t->pages.layout;
    a->kv_dtype = t->kv_dtype;
    a->count = count;
    a->pages = pages;
    memcpy(a->tokens, mm2_timeline_tokens(t), (size_t)count * MM2_PAGE * sizeof *a->tokens);
    atomic_fetch_add(&a->layout->references, 1);
    lock(s);
    *(s->first ? &s->last->next : &s->first) = a;
    s->last = a;
    pthread_cond_signal(&s->wake);
    unlock(s);
    return a;
}

int mm2_prefix_take(mm2_timeline *t)
{
    mm2_prefix *s = t->model->prefixes.limit && wants(t) ? cache_of(t->model) : NULL;
    if (s && t->arrival && t->arrival->pid == s->pid && !atomic_load(&t->arrival->done))
        return 1;
    if (s)
        adopt(s, t);
    mm2_prefix_leave(t);
    if (!s || t->asked || !atomic_load(&s->has_thread) || !wants(t))
        return 0;
    t->asked = 1;
    t->arrival = ask(s, t);
    return t->arrival != NULL;
}

/* ---- What it has and did ---- */

mm2_status mm2_model_prefix_stats(mm2_model *m, mm2_prefix_stats *out)
{
    MM2_NEED(m, "model");
    MM2_NEED(out, "out");
    mm2_prefix_stats stats = {.size = sizeof stats};
    mm2_prefix *s = existing(m);
    if (s) {
        lock(s);
        stats = s->stats;
        stats.size = sizeof stats;
        stats.bytes = cost_of_all(s);
        stats.unwritten = s->writing;
        for (const entry *e = s->newest; e; e = e->older)
            stats.unwritten += e->chores & WRITE;
        pthread_mutex_unlock(&s->lock);
    }
    stats.limit = m->prefixes.limit;
    return mm2_struct_write(out, &stats, "mm2_prefix_stats");
}
