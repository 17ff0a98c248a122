/* A GGUF checkpoint: one file, or the parts of a split set, to entries and configuration.
 *
 * Any part opens the set: its name gives the number of parts and the others' names, and the split.*
 * keys of every part must agree with them. Metadata is that of the first part.
 *
 * general.architecture names the family; its keys stand behind that name, as llama.cpp has them.
 * One fact has no key and is read off a tensor: the vocabulary's size is the height of the
 * embedding.
 *
 * Extents are checked per file: every tensor of a type that we know ends within it, and none
 * overlap. */
#include "model/gguf.h"

#include "base/json.h"
#include "base/status.h"
#include "model/config.h"
#include "tensor/dtype.h"

#include <stdlib.h>
#include <string.h>

int32_t mm2_gguf_split_name(const char *name, int32_t *part, int32_t *count)
{
    static const char form[] = "-#####-of-#####.gguf"; /* # is a digit */
    size_t length = strlen(name), tail = sizeof form - 1;
    if (length <= tail)
        return 0;
    const char *at = name + length - tail;
    int32_t numbers[2] = {0, 0};
    for (size_t i = 0; i < tail; i++) {
        int is_digit = at[i] >= '0' && at[i] <= '9';
        if (form[i] == '#' ? !is_digit : at[i] != form[i])
            return 0;
        if (is_digit)
            numbers[i > 6] = numbers[i > 6] * 10 + (at[i] - '0');
    }
    if (numbers[0] < 1 || numbers[0] > numbers[1])
        return 0;
    *part = numbers[0];
    *count = numbers[1];
    return (int32_t)(length - tail);
}

/* ---- Parts ---- */

/* split.count of a file, 1 if it is no part; its number among them, from 0; and the tensors of all
 * parts together (-1: not said). */
typedef struct split_facts {
    int64_t count, number, tensors;
} split_facts;

static mm2_status read_split(const mm2_gguf *g, split_facts *s)
{
    *s = (split_facts){.count = 1, .number = 0, .tensors = -1};
    int32_t found = mm2_gguf_integer(g, "split.count", &s->count);
    if (found > 0)
        found = mm2_gguf_integer(g, "split.no", &s->number);
    if (found > 0)
        found = mm2_gguf_integer(g, "split.tensors.count", &s->tensors);
    if (found < 0)
        return found;
    if (s->count == 0) /* some writers say 0 for a file that is whole */
        s->count = 1;
    if (s->count < 1 || s->count > MM2_MAX_SHARDS || s->number < 0 || s->number >= s->count)
        return mm2_fail(MM2_E_FORMAT, "%s: split.no is %lld of split.count %lld, expected 0 to %d",
                        g->file->path, (long long)s->number, (long long)s->count,
                        MM2_MAX_SHARDS - 1);
    return MM2_OK;
}

/* The path of part `number` (from 1) beside `path`, which ends with a split name of this stem. */
static mm2_status part_path(char **out, const char *path, int32_t stem, int32_t number,
                            int32_t count)
{
    char tail[64];
    char digits[2][6];
    int32_t values[2] = {number, count};
    for (int k = 0; k < 2; k++) {
        for (int i = 4; i >= 0; i--, values[k] /= 10)
            digits[k][i] = (char)('0' + values[k] % 10);
        digits[k][5] = 0;
    }
    int length = mm2_format(tail, sizeof tail, "-%s-of-%s.gguf", digits[0], digits[1]);
    *out = malloc((size_t)stem + (size_t)length + 1);
    if (!*out)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    memcpy(*out, path, (size_t)stem);
    memcpy(*out + stem, tail, (size_t)length + 1);
    return MM2_OK;
}

typedef struct reader {
    mm2_checkpoint *c;
    mm2_gguf *parts; /* one per file of the checkpoint */
    uint32_t flags;
} reader;

static mm2_status open_part(reader *r, const char *path, int32_t number)
{
    mm2_status status =
        mm2_file_open(&r->c->files[number], path, mm2_checkpoint_file_flags(r->flags));
    r->c->file_count += !status;
    return status;
}

static mm2_status parse_part(reader *r, int32_t number, split_facts *split)
{
    mm2_status status = mm2_gguf_parse(&r->parts[number], &r->c->files[number]);
    return status ? status : read_split(&r->parts[number], split);
}

/* Opens all parts beside `path`. */
static mm2_status open_set(reader *r, const char *path, int64_t count)
{
    int32_t part, named_count;
    int32_t stem = mm2_gguf_split_name(path, &part, &named_count);
    if (!stem || named_count != count)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: is one of %lld parts, but its name does not end in "
                        "-NNNNN-of-NNNNN.gguf with that count: give the parts their names back",
                        path, (long long)count);
    mm2_status status = MM2_OK;
    for (int32_t i = 0; !status && i < count; i++) {
        char *name;
        status = part_path(&name, path, stem, i + 1, (int32_t)count);
        if (!status)
            status = open_part(r, name, i);
        free(name);
    }
    return status;
}

static mm2_status parse_set(reader *r, const char *path, int32_t count)
{
    int64_t expected = -1, found = 0;
    for (int32_t i = 0; i < count; i++) {
        split_facts split;
        mm2_status status = parse_part(r, i, &split);
        if (!status && (split.count != count || split.number != i))
            status = mm2_fail(MM2_E_FORMAT,
                              "%s: says it is part %lld of %lld, expected %d of %d: it belongs "
                              "elsewhere",
                              r->c->files[i].path, (long long)split.number + 1,
                              (long long)split.count, i + 1, count);
        if (status)
            return status;
        expected = split.tensors >= 0 ? split.tensors : expected;
        found += r->parts[i].info_count;
    }
    if (expected >= 0 && expected != found)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: the parts hold %lld tensors together, split.tensors.count says %lld",
                        path, (long long)found, (long long)expected);
    return MM2_OK;
}

static mm2_status open_files(reader *r, const char *path)
{
    mm2_file file;
    mm2_gguf header;
    split_facts split;
    mm2_status status = mm2_file_open(&file, path, 0);
    if (status)
        return status;
    status = mm2_gguf_parse(&header, &file);
    if (!status)
        status = read_split(&header, &split);
    mm2_gguf_free(&header);
    mm2_file_close(&file);
    if (status)
        return status;
    r->c->files = calloc((size_t)split.count, sizeof *r->c->files);
    r->parts = calloc((size_t)split.count, sizeof *r->parts);
    if (!r->c->files || !r->parts)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    status = split.count == 1 ? open_part(r, path, 0) : open_set(r, path, split.count);
    if (!status)
        status = mm2_checkpoint_fill(r->c);
    return status ? status : parse_set(r, path, (int32_t)split.count);
}

/* ---- Tensors ---- */

static int by_offset(const void *a, const void *b)
{
    const mm2_entry *x = *(const mm2_entry *const *)a, *y = *(const mm2_entry *const *)b;
    return x->view.data < y->view.data ? -1 : x->view.data > y->view.data;
}

/* Entries from `first` on are those of one file. */
static mm2_status check_overlap(const mm2_checkpoint *c, int32_t first)
{
    int32_t count = c->entry_count - first;
    const mm2_entry **sorted = malloc(((size_t)count + 1) * sizeof *sorted);
    if (!sorted)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for %d tensors", c->path, count);
    int32_t known = 0;
    for (int32_t i = 0; i < count; i++)
        if (!c->entries[first + i].odd)
            sorted[known++] = &c->entries[first + i];
    qsort(sorted, (size_t)known, sizeof *sorted, by_offset);
    mm2_status status = MM2_OK;
    for (int32_t i = 1; !status && i < known; i++) {
        const mm2_entry *a = sorted[i - 1], *b = sorted[i];
        if ((const uint8_t *)b->view.data - (const uint8_t *)a->view.data < a->view.nbytes)
            status = mm2_fail(MM2_E_FORMAT, "%s: tensors \"%s\" and \"%s\" overlap", a->file,
                              a->name, b->name);
    }
    free(sorted);
    return status;
}

static mm2_status fill_entry(const reader *r, mm2_entry *e, const mm2_gguf_info *t,
                             const mm2_file *f)
{
    char why[64];
    if (!t->dtype)
        mm2_format(why, sizeof why, "has type %u (%s)", t->type, mm2_gguf_type_name(t->type));
    else if (t->ndim > MM2_MAX_DIMS)
        mm2_format(why, sizeof why, "has %d dimensions", t->ndim);
    if (!t->dtype || t->ndim > MM2_MAX_DIMS)
        return mm2_checkpoint_set_odd(r->c, e, why);
    mm2_status status = mm2_entry_shape(e, t->dtype, t->ndim, t->shape);
    if (status)
        return status;
    if (e->view.nbytes > f->size - t->offset)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: tensor \"%s\" needs %lld bytes at byte %lld, the file has %lld: is it "
                        "cut short?",
                        f->path, e->name, (long long)e->view.nbytes, (long long)t->offset,
                        (long long)f->size);
    e->view.data = f->data + t->offset;
    e->view.flags = r->flags & MM2_WRITABLE ? 0 : MM2_READ_ONLY;
    return MM2_OK;
}

static mm2_status add_tensors(reader *r, const mm2_gguf *g, char **names)
{
    mm2_checkpoint *c = r->c;
    int32_t first = c->entry_count;
    for (int32_t i = 0; i < g->info_count; i++) {
        mm2_gguf_info t = mm2_gguf_info_at(g, i);
        if (!mm2_checkpoint_can_name(t.name, t.name_length))
            continue;
        memcpy(*names, t.name, t.name_length);
        (*names)[t.name_length] = 0;
        mm2_entry *e;
        mm2_status status = mm2_checkpoint_add(c, *names, g->file->path, &e);
        if (!status)
            status = fill_entry(r, e, &t, g->file);
        if (status)
            return status;
        *names += t.name_length + 1;
    }
    return check_overlap(c, first);
}

static mm2_status add_all_tensors(reader *r)
{
    mm2_checkpoint *c = r->c;
    size_t bytes = 1;
    int64_t count = 0;
    for (int32_t i = 0; i < c->file_count; i++) {
        count += r->parts[i].info_count;
        for (int32_t k = 0; k < r->parts[i].info_count; k++)
            bytes += mm2_gguf_info_at(&r->parts[i], k).name_length + 1;
    }
    char *names = c->names = malloc(bytes);
    if (!names)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for its tensors' names", c->path);
    mm2_status status = mm2_checkpoint_reserve(c, count);
    for (int32_t i = 0; !status && i < c->file_count; i++)
        status = add_tensors(r, &r->parts[i], &names);
    return status ? status : mm2_checkpoint_settle(c);
}

/* ---- Configuration ---- */

typedef struct metadata {
    const mm2_gguf *g;
    const char *prefix; /* "architecture." */
} metadata;

/* One scalar of a metadata value. */
static void get_scalar(uint32_t type, const uint8_t *data, mm2_given *out)
{
    uint64_t bits = 0;
    memcpy(&bits, data, (size_t)mm2_gguf_scalar_bytes(type));
    float small;
    memcpy(&small, &bits, sizeof small);
    out->kind = MM2_GIVEN_NUMBER;
    out->is_whole = 1;
    out->whole = type == MM2_GGUF_INT8    ? (int8_t)bits
                 : type == MM2_GGUF_INT16 ? (int16_t)bits
                 : type == MM2_GGUF_INT32 ? (int32_t)bits
                                          : (int64_t)bits;
    out->number = (double)out->whole;
    if (type == MM2_GGUF_UINT64 && bits > INT64_MAX) {
        out->whole = INT64_MAX;
        out->number = (double)bits;
    }
    if (type == MM2_GGUF_UINT64)
        mm2_format(out->text, sizeof out->text, "%llu", (unsigned long long)bits);
    else
        mm2_format(out->text, sizeof out->text, "%lld", (long long)out->whole);
    if (type == MM2_GGUF_FLOAT32)
        out->number = small;
    if (type == MM2_GGUF_FLOAT64)
        memcpy(&out->number, &bits, sizeof bits);
    if (type == MM2_GGUF_FLOAT32 || type == MM2_GGUF_FLOAT64) {
        out->is_whole = 0;
        mm2_format(out->text, sizeof out->text, "%g", out->number);
    }
    if (type == MM2_GGUF_BOOL) {
        out->kind = MM2_GIVEN_FLAG;
        out->is_whole = 0;
        mm2_format(out->text, sizeof out->text, "%s", bits ? "true" : "false");
    }
}

static void get(const mm2_source *s, const char *key, int32_t item, mm2_given *out)
{
    const metadata *m = s->data;
    char whole[256];
    mm2_format(whole, sizeof whole, "%s%s", m->prefix, key);
    const mm2_gguf_pair *p = mm2_gguf_find(m->g, whole);
    *out = (mm2_given){.what = p ? mm2_gguf_kind(p) : "nothing"};
    mm2_format(out->text, sizeof out->text, "%s", out->what);
    if (!p)
        return;
    out->kind = MM2_GIVEN_OTHER;
    if (p->type == MM2_GGUF_STRING) {
        out->kind = MM2_GIVEN_TEXT;
        mm2_format(out->text, sizeof out->text, "%.*s",
                   (int)(p->count < INT32_MAX ? p->count : INT32_MAX), (const char *)p->data);
    } else if (p->type != MM2_GGUF_ARRAY) {
        get_scalar(p->type, p->data, out);
    } else if (item < 0) {
        out->kind = MM2_GIVEN_LIST;
        out->count = p->count;
    } else if (p->item != MM2_GGUF_STRING && item < p->count) {
        get_scalar(p->item, p->data + item * mm2_gguf_scalar_bytes(p->item), out);
    }
}

static mm2_source source_of(const metadata *m)
{
    return (mm2_source){
        .where = m->g->file->path, .prefix = m->prefix, .is_gguf = 1, .data = m, .get = get};
}

/* The height of the embedding, which a key may say too. */
static mm2_status read_vocabulary(mm2_checkpoint *c, const mm2_source *s)
{
    char name[MM2_MAX_NAME + 1];
    mm2_format(name, sizeof name, "%s", c->family->names[MM2_PLACE_EMBED].gguf[0]);
    const mm2_entry *embed = mm2_checkpoint_find(c, name);
    if (!embed)
        return mm2_checkpoint_missing(c, name, "[tokens, embedding_length]");
    if (embed->view.ndim != 2 || embed->view.shape[0] > MM2_MAX_IDS)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: tensor \"%s\" has another shape: expected a matrix of at most 2^20 "
                        "rows",
                        embed->file, name);
    c->config.vocab_size = (int32_t)embed->view.shape[0];
    mm2_given said;
    s->get(s, "vocab_size", -1, &said);
    return said.kind == MM2_GIVEN_NOTHING || said.number == c->config.vocab_size
               ? MM2_OK
               : mm2_fail(MM2_E_FORMAT, "%s: %svocab_size is %s but tensor \"%s\" has %d rows",
                          s->where, s->prefix, said.text, name, c->config.vocab_size);
}

static mm2_status read_config(mm2_checkpoint *c, const mm2_gguf *g)
{
    metadata m = {.g = g, .prefix = ""};
    mm2_source s = source_of(&m);
    mm2_given name;
    get(&s, "general.architecture", -1, &name);
    if (name.kind == MM2_GIVEN_NOTHING)
        return mm2_fail(MM2_E_FORMAT, "%s: metadata key general.architecture is missing", s.where);
    if (name.kind != MM2_GIVEN_TEXT)
        return mm2_given_wrong(&s, "general.architecture", "a string", &name);
    c->family = mm2_family_of_architecture(name.text, s.where);
    if (!c->family)
        return MM2_E_UNSUPPORTED;
    char prefix[80];
    mm2_format(prefix, sizeof prefix, "%s.", c->family->architecture);
    m.prefix = prefix;
    s = source_of(&m);
    mm2_status status = mm2_config_read(&c->config, c->family, &s);
    if (!status)
        status = read_vocabulary(c, &s);
    return status ? status : mm2_config_check(&c->config, s.where);
}

/* ---- Facts beside the configuration ---- */

/* Leaves *out alone if the key is absent, or no text. */
static void read_text(const mm2_gguf *g, const char *key, char *out, int32_t cap)
{
    const mm2_gguf_pair *p = mm2_gguf_find(g, key);
    if (p && p->type == MM2_GGUF_STRING)
        mm2_text_clean(out, cap, (const char *)p->data, p->count);
}

static void read_hints(mm2_checkpoint *c, const mm2_source *s)
{
    float top_k = (float)c->hints.top_k;
    mm2_given_hint(s, "general.sampling.temp", 0, 1e6, &c->hints.temperature);
    mm2_given_hint(s, "general.sampling.top_p", 0, 1, &c->hints.top_p);
    mm2_given_hint(s, "general.sampling.top_k", 0, 1 << 20, &top_k);
    c->hints.top_k = (int32_t)top_k;
}

static mm2_status read_ends(mm2_checkpoint *c, const mm2_source *s)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    mm2_status status = MM2_OK;
    for (int i = 0; !status && i < 3; i++) {
        mm2_given id;
        s->get(s, keys[i], -1, &id);
        if (id.is_whole)
            status = mm2_checkpoint_end(c, id.whole, s->where);
    }
    return status;
}

/* The file's name without ".gguf", for models that do not say theirs. */
static void file_name(char *out, int32_t cap, const char *path)
{
    const char *last = strrchr(path, '/');
    last = last ? last + 1 : path;
    size_t length = strlen(last);
    if (length > 5 && !strcmp(last + length - 5, ".gguf"))
        length -= 5;
    mm2_text_clean(out, cap, last, (int64_t)length);
}

static mm2_status read_facts(mm2_checkpoint *c, const mm2_gguf *g)
{
    metadata m = {.g = g, .prefix = ""};
    mm2_source s = source_of(&m);
    file_name(c->model_name, sizeof c->model_name, c->path);
    read_text(g, "general.name", c->model_name, sizeof c->model_name);
    read_text(g, "general.license", c->license, sizeof c->license);
    read_text(g, "general.architecture", c->architecture, sizeof c->architecture);
    read_hints(c, &s);
    return read_ends(c, &s);
}

mm2_status mm2_gguf_open(mm2_checkpoint *c, const char *path, uint32_t flags)
{
    reader r = {.c = c, .flags = flags};
    mm2_status status = open_files(&r, path);
    if (!status)
        status = add_all_tensors(&r);
    if (!status)
        status = read_config(c, &r.parts[0]);
    if (!status)
        status = read_facts(c, &r.parts[0]);
    if (!status && !(c->gguf = malloc(sizeof *c->gguf)))
        status = mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    if (!status) { /* the first part's metadata moves over; its infos have become entries */
        *c->gguf = r.parts[0];
        r.parts[0] = (mm2_gguf){0};
        free(c->gguf->infos);
        c->gguf->infos = NULL;
        c->gguf->info_count = 0;
    }
    for (int32_t i = 0; r.parts && i < c->file_count; i++)
        mm2_gguf_free(&r.parts[i]);
    free(r.parts);
    return status;
}
