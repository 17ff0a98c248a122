/* Sessions on disk.
 *
 * A file is a header, the tokens, the logits of the last one if they are at hand, a checksum of every
 * cell, and then page by page the cells as they lie in memory:
 *
 *     header | tokens | logits | sums | ... | page 0 | ... | page n - 1 |
 *
 * each of these at a multiple of 64 bytes, pages at a multiple of ALIGN, which every system can map.
 * Numbers are those of the machine; `order` tells one that has others. Header, tokens, logits and
 * sums have checksums in the header, and are read and checked when the file is restored. Cells are
 * mapped; each is checked before it is first used (pages.c). What lies between the parts is zero and
 * nobody looks at it.
 *
 * What is saved is what was committed: rows in flight have written beyond it. The cells of the last
 * page are written as far as they are filled. What lies in a cell is part of this format: FORMAT is
 * raised when it changes, unless the layout's sum changes with it.
 *
 * A file may say anything, with checksums that fit: every number is held against the model, the
 * layout and the file's size before it is used. */
#include "base/checksum.h"
#include "base/output.h"
#include "base/status.h"
#include "model/fingerprint.h"
#include "run/session.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { FORMAT = 1, ORDER = 0x01020304, ALIGN = 65536 };

static const char magic[16] = "minimax2 session"; /* without an end */

typedef struct header {
    char magic[16];
    uint32_t order, format, numerics;
    int32_t kv_dtype;
    int32_t context, length, position;
    int32_t logits; /* 1: the last token's are there */
    int64_t bytes;  /* of the file */
    uint64_t layout;
    mm2_fingerprint model;
    uint64_t tokens_sum, logits_sum, sums_sum;
    uint64_t sum; /* of all before it */
} header;
_Static_assert(sizeof(header) == 320, "another header is another FORMAT");

/* Where the parts begin. */
typedef struct parts {
    int64_t tokens, logits, sums, pages; /* in bytes of the file */
    int64_t tokens_bytes, logits_bytes, sums_bytes, stride, end;
    int32_t count; /* of pages */
} parts;

static int64_t round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* FORMAT if they have no size. */
static mm2_status lay_out(parts *out, const header *h, const mm2_timeline *t, const char *path)
{
    const mm2_layout *l = t->pages.layout;
    int64_t vocab = t->model->checkpoint.config.vocab_size, bytes;
    parts p = {.count = (int32_t)mm2_pages_for(h->position),
               .tokens_bytes = (int64_t)h->length * (int64_t)sizeof(int32_t),
               .logits_bytes = h->logits * vocab * (int64_t)sizeof(float),
               .stride = round_up(l->page_bytes, ALIGN)};
    p.sums_bytes = (int64_t)p.count * l->layers * (int64_t)sizeof(uint64_t);
    p.tokens = round_up(sizeof *h, 64);
    p.logits = round_up(p.tokens + p.tokens_bytes, 64);
    p.sums = round_up(p.logits + p.logits_bytes, 64);
    p.pages = round_up(p.sums + p.sums_bytes, ALIGN);
    if (__builtin_mul_overflow(p.stride, p.count, &bytes) ||
        __builtin_add_overflow(p.pages, bytes, &p.end))
        return mm2_fail(MM2_E_FORMAT, "%s: %d positions of it have no size", path, h->position);
    *out = p;
    return MM2_OK;
}

static uint64_t sum_of(const header *h)
{
    return mm2_checksum(h, offsetof(header, sum));
}

/* ---- Saving ---- */

typedef struct saving {
    mm2_timeline *t;
    mm2_output *file;
    header *head;
    parts parts;
    char *cell;     /* room for one */
    uint64_t *sums; /* [pages][layers] */
} saving;

static mm2_status write_cell(saving *s, int32_t page, int32_t layer)
{
    const mm2_pages *pages = &s->t->pages;
    const mm2_layout *l = pages->layout;
    const char *cell = mm2_pages_cell(pages, page, layer);
    int32_t filled = s->head->position - page * MM2_PAGE;
    int64_t bytes = mm2_layout_cell_bytes(l, layer);
    if (filled < MM2_PAGE) {
        memset(s->cell, 0, (size_t)bytes);
        mm2_cell_copy(&l->cells[layer], s->cell, cell, filled);
        cell = s->cell;
    }
    s->sums[(int64_t)page * l->layers + layer] = mm2_checksum(cell, bytes);
    return mm2_output_write(s->file, s->parts.pages + page * s->parts.stride + l->cells[layer].at,
                            cell, bytes);
}

/* The cells, then what sums them up. MORE if it was interrupted. */
static mm2_status write_parts(saving *s)
{
    mm2_timeline *t = s->t;
    header *h = s->head;
    mm2_status status = MM2_OK;
    for (int32_t page = 0; page < s->parts.count; page++)
        for (int32_t layer = 0; layer < t->pages.layout->layers; layer++) {
            if (atomic_load(&t->stop))
                return MM2_MORE;
            status = write_cell(s, page, layer);
            if (status)
                return status;
        }
    h->tokens_sum = mm2_checksum(mm2_timeline_tokens(t), s->parts.tokens_bytes);
    h->sums_sum = mm2_checksum(s->sums, s->parts.sums_bytes);
    if (h->logits)
        h->logits_sum = mm2_checksum(mm2_timeline_logits(t), s->parts.logits_bytes);
    h->sum = sum_of(h);
    status =
        mm2_output_write(s->file, s->parts.tokens, mm2_timeline_tokens(t), s->parts.tokens_bytes);
    if (!status && h->logits)
        status = mm2_output_write(s->file, s->parts.logits, mm2_timeline_logits(t),
                                  s->parts.logits_bytes);
    if (!status)
        status = mm2_output_write(s->file, s->parts.sums, s->sums, s->parts.sums_bytes);
    if (!status)
        status = mm2_output_write(s->file, 0, h, sizeof *h);
    return status;
}

static int64_t largest_cell(const mm2_layout *l)
{
    int64_t most = 0;
    for (int32_t i = 0; i < l->layers; i++)
        most = mm2_layout_cell_bytes(l, i) > most ? mm2_layout_cell_bytes(l, i) : most;
    return most;
}

static mm2_status save(mm2_timeline *t, const char *path)
{
    header h;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, magic, sizeof magic);
    h.order = ORDER;
    h.format = FORMAT;
    h.numerics = MM2_NUMERICS;
    h.kv_dtype = t->kv_dtype;
    h.context = t->context;
    h.length = t->length;
    h.position = t->position;
    h.logits = t->position == t->length && t->logits_of >= 0;
    h.layout = mm2_layout_sum(t->pages.layout);
    mm2_fingerprint_of(t->model, &h.model);
    mm2_output file;
    saving s = {.t = t, .file = &file, .head = &h};
    mm2_status status = lay_out(&s.parts, &h, t, path);
    if (status)
        return status;
    h.bytes = s.parts.end;
    s.cell = malloc((size_t)largest_cell(t->pages.layout) + 1);
    s.sums = malloc((size_t)s.parts.sums_bytes + 1);
    if (!s.cell || !s.sums)
        status = mm2_fail(MM2_E_NOMEM, "%s: out of memory while writing it", path);
    if (!status)
        status = mm2_output_open(&file, path, s.parts.end);
    if (!status) {
        status = write_parts(&s);
        if (status)
            mm2_output_drop(&file);
        else
            status = mm2_output_commit(&file);
    }
    free(s.cell);
    free(s.sums);
    return status;
}

mm2_status mm2_session_save(mm2_session *s, const char *path)
{
    MM2_NEED(s, "session");
    MM2_NEED(path, "path");
    if (!*path)
        return mm2_fail(MM2_E_ARG, "mm2_session_save: the path is empty");
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    mm2_timeline *t = &s->timeline;
    mm2_limit limit = {.deadline = INT64_MAX, .stop = &t->stop};
    atomic_store(&t->stop, 0);
    mm2_pool_prepare(t->model->pool);
    status = mm2_checkpoint_check(&t->model->checkpoint);
    /* What is damaged must not get a new checksum. */
    if (!status)
        status = mm2_pages_intact(&t->pages);
    if (!status)
        status = mm2_pages_check(&t->pages, t->model->pool, &limit);
    if (!status)
        status = save(t, path);
    mm2_session_leave(s);
    return status;
}

/* ---- Restoring ---- */

void mm2_restore_options_init(mm2_restore_options *o)
{
    mm2_restore_options defaults = {.size = sizeof defaults};
    mm2_struct_init(o, &defaults);
}

static mm2_status read_header(header *h, const mm2_file *f)
{
    if (f->size < (int64_t)sizeof *h)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: is no saved session: it has %lld bytes, a session %d or "
                        "more",
                        f->path, (long long)f->size, (int)sizeof *h);
    mm2_status status = mm2_file_read(f, 0, h, sizeof *h);
    if (status)
        return status;
    if (memcmp(h->magic, magic, sizeof magic))
        return mm2_fail(MM2_E_FORMAT, "%s: is no saved session: it does not begin with \"%.*s\"",
                        f->path, (int)sizeof magic, magic);
    if (h->order != ORDER)
        return mm2_fail(MM2_E_UNSUPPORTED, "%s: was saved on a machine with another order of bytes",
                        f->path);
    if (h->format != FORMAT)
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: is a session in format %u, this library reads format %d: it was saved "
                        "by another version",
                        f->path, h->format, FORMAT);
    if (h->sum != sum_of(h))
        return mm2_fail(MM2_E_FORMAT, "%s: is damaged: the header is not what was saved", f->path);
    return MM2_OK;
}

/* Can a session with these options go on with the file? */
static mm2_status check_header(const header *h, const mm2_model *m, const mm2_restore_options *o,
                               const char *path)
{
    mm2_fingerprint ours;
    int32_t most = m->checkpoint.config.max_position_embeddings;
    int32_t context = o->context ? o->context : h->context;
    const char *saved = mm2_dtype_name(h->kv_dtype), *wanted = mm2_dtype_name(o->kv_dtype);
    mm2_fingerprint_of(m, &ours);
    mm2_status status = mm2_fingerprint_compare(&h->model, &ours, m, path);
    if (status)
        return status;
    if (h->numerics != MM2_NUMERICS)
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: was computed with numerics version %u, this library has %d and would "
                        "not go on with the same bits: evaluate the tokens again",
                        path, h->numerics, MM2_NUMERICS);
    if (h->context < 1 || h->length < 0 || h->length > h->context || h->position < 0 ||
        h->position > h->length || h->logits < 0 || h->logits > 1 ||
        (h->logits && (h->position < h->length || !h->length)) || !saved)
        return mm2_fail(MM2_E_FORMAT, "%s: is damaged: its header contradicts itself", path);
    if (o->kv_dtype && o->kv_dtype != h->kv_dtype)
        return mm2_fail(MM2_E_ARG, "%s: has keys and values in %s, %s was asked for", path, saved,
                        wanted ? wanted : "an unknown dtype");
    if (h->length > most)
        return mm2_fail(MM2_E_ARG, "%s: has %d tokens, the model has only %d positions", path,
                        h->length, most);
    if (context < h->length)
        return mm2_fail(MM2_E_ARG, "%s: has %d tokens, which do not fit into a context of %d", path,
                        h->length, context);
    return MM2_OK;
}

/* Reads a part of the file and holds it against its checksum. */
static mm2_status read_part(const mm2_file *f, int64_t at, void *out, int64_t bytes, uint64_t sum,
                            const char *what)
{
    mm2_status status = mm2_file_read(f, at, out, bytes);
    if (!status && mm2_checksum(out, bytes) != sum)
        status = mm2_fail(MM2_E_FORMAT, "%s: is damaged: the %s are not those that were saved",
                          f->path, what);
    return status;
}

static mm2_status check_ids(const mm2_timeline *t, const int32_t *ids, int32_t n, const char *path)
{
    int32_t vocab = t->model->checkpoint.config.vocab_size;
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return mm2_fail(MM2_E_FORMAT, "%s: is damaged: token %d is %d, outside of 0..%d", path,
                            i, ids[i], vocab - 1);
    return MM2_OK;
}

/* Fills a new timeline; the file is the store's. */
static mm2_status fill(mm2_timeline *t, const header *h, mm2_store *store)
{
    mm2_file *f = &store->file;
    parts p;
    if (h->layout != mm2_layout_sum(t->pages.layout))
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: its keys and values are laid out in another way: it was saved by "
                        "another version of the library",
                        f->path);
    mm2_status status = lay_out(&p, h, t, f->path);
    if (status)
        return status;
    if (h->bytes != p.end)
        return mm2_fail(MM2_E_FORMAT, "%s: is damaged: its header contradicts itself", f->path);
    if (f->size != p.end)
        return mm2_fail(MM2_E_FORMAT, "%s: has %lld bytes, expected %lld: %s", f->path,
                        (long long)f->size, (long long)p.end,
                        f->size < p.end ? "it was cut short" : "something was appended");
    store->sums = malloc((size_t)p.sums_bytes + 1);
    if (!store->sums)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while restoring it", f->path);
    status = read_part(f, p.tokens, t->tokens->data, p.tokens_bytes, h->tokens_sum, "tokens");
    if (!status)
        status = check_ids(t, t->tokens->data, h->length, f->path);
    if (!status)
        status = read_part(f, p.sums, store->sums, p.sums_bytes, h->sums_sum, "checksums");
    if (!status && h->logits)
        status = mm2_timeline_renew_logits(t);
    if (!status && h->logits)
        status =
            read_part(f, p.logits, mm2_timeline_logits(t), p.logits_bytes, h->logits_sum, "logits");
    if (!status)
        status = mm2_file_fill(f);
    if (!status)
        status = mm2_pages_adopt(&t->pages, store, p.pages, p.stride, p.count);
    if (status)
        return status;
    t->length = h->length;
    t->position = t->progress_base = h->position;
    if (t->position)
        t->edited = 0; /* nobody knows how it was computed */
    if (h->logits)
        t->logits_of = h->position - 1;
    return MM2_OK;
}

static mm2_status restore(mm2_session **out, mm2_model *m, const mm2_restore_options *o,
                          mm2_store *store)
{
    header h;
    mm2_session *s;
    mm2_session_options options = {.size = sizeof options};
    mm2_status status = read_header(&h, &store->file);
    if (!status)
        status = check_header(&h, m, o, store->file.path);
    if (status)
        return status;
    mm2_session_options_init(&options);
    options.context = o->context ? o->context : h.context;
    options.kv_dtype = h.kv_dtype;
    options.chunk = o->chunk;
    if (!o->context && options.context > m->checkpoint.config.max_position_embeddings)
        options.context = m->checkpoint.config.max_position_embeddings;
    status = mm2_session_new(&s, m, &options);
    if (status)
        return mm2_fail_in(status, store->file.path);
    status = fill(&s->timeline, &h, store);
    if (status)
        mm2_session_free(s);
    else
        *out = s;
    return status;
}

mm2_status mm2_session_restore(mm2_session **out, mm2_model *m, const char *path,
                               const mm2_restore_options *options)
{
    MM2_NEED(out, "out");
    *out = NULL;
    MM2_NEED(m, "model");
    MM2_NEED(path, "path");
    mm2_restore_options o = {.size = sizeof o};
    mm2_store *store;
    mm2_status status = options ? mm2_struct_read(&o, options, "restore options") : MM2_OK;
    if (!status && o.flags & ~(uint32_t)MM2_IN_MEMORY)
        status =
            mm2_fail(MM2_E_ARG, "mm2_session_restore: options.flags %u has unknown bits", o.flags);
    if (!status)
        status = mm2_store_new(&store);
    if (status)
        return status;
    status = mm2_file_open(&store->file, path,
                           MM2_FILE_WRITABLE |
                               (o.flags & MM2_IN_MEMORY ? MM2_FILE_COPY : MM2_FILE_WATCH));
    if (!status)
        status = restore(out, m, &o, store);
    mm2_store_release(store); /* the pages keep it */
    return status;
}
