/* Parsing a GGUF header: one cursor, every read checked against the bytes that remain, every count
 * checked against the bytes its items need before anything is allocated.
 *
 * It is parsed twice: in the file, to find its end, and then in a copy of those bytes, which is
 * kept. A file that is rewritten meanwhile can make it fail, but not lead a later reader of its
 * arrays out of bounds.
 *
 * Pairs cost fixed-size records, at most about three times the bytes they take in the file. Of infos
 * only the places are kept: there may be a quarter of a million. Arrays of strings are walked to
 * find their end; who wants the items walks them again.
 *
 * The file is refused rather than repaired: duplicate keys, keys and value types of no meaning,
 * offsets that are unaligned, overlap or lead beyond the file. Tensors may come in any order, and
 * bytes behind the last one are left alone. A tensor's name, type and rank may be anything: they
 * matter once it is needed. */
#include "model/gguf.h"

#include "base/json.h"
#include "base/status.h"
#include "base/strmap.h"
#include "tensor/dtype.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_PAIRS = 4096,
    MAX_KEY = 255,         /* bytes */
    MAX_STRING = 16 << 20, /* bytes */
    MAX_ARRAY = 1 << 24,   /* items */
    MIN_ALIGNMENT = 8,
    MAX_ALIGNMENT = 65536,
    MAX_RANK = 64, /* dimensions that are read over */
    MAX_TENSOR_NAME = 65535,
    PAIR_BYTES = 8 + 1 + 4 + 1, /* the least that a pair takes in the file */
    INFO_BYTES = 8 + 4 + 4 + 8
};

typedef struct cursor {
    const mm2_file *file;
    const uint8_t *data; /* the file's bytes, or the copy's */
    int64_t size, at;
} cursor;

static mm2_status short_of(const cursor *c, const char *what)
{
    return mm2_fail(MM2_E_FORMAT, "%s: byte %lld: the file ends within %s: is it cut short?",
                    c->file->path, (long long)c->at, what);
}

/* The next n bytes, or NULL if the file has fewer. */
static const uint8_t *take(cursor *c, int64_t n)
{
    if (n < 0 || n > c->size - c->at)
        return NULL;
    const uint8_t *p = c->data + c->at;
    c->at += n;
    return p;
}

static mm2_status take_u32(cursor *c, uint32_t *out, const char *what)
{
    const uint8_t *p = take(c, 4);
    *out = 0;
    if (!p)
        return short_of(c, what);
    memcpy(out, p, 4);
    return MM2_OK;
}

static mm2_status take_u64(cursor *c, uint64_t *out, const char *what)
{
    const uint8_t *p = take(c, 8);
    *out = 0;
    if (!p)
        return short_of(c, what);
    memcpy(out, p, 8);
    return MM2_OK;
}

static mm2_status too_many(const cursor *c, const char *what, uint64_t found, uint64_t limit)
{
    return mm2_fail(MM2_E_FORMAT, "%s: byte %lld: %s %llu, expected at most %llu", c->file->path,
                    (long long)c->at, what, (unsigned long long)found, (unsigned long long)limit);
}

static mm2_status take_string(cursor *c, const char **out, int64_t *length, uint64_t limit,
                              const char *what)
{
    uint64_t n;
    mm2_status status = take_u64(c, &n, what);
    if (status)
        return status;
    if (n > limit)
        return too_many(c, what, n, limit);
    *out = (const char *)take(c, (int64_t)n);
    *length = (int64_t)n;
    return *out ? MM2_OK : short_of(c, what);
}

/* A key: printable ASCII, so that sentences and lookups are safe. */
static mm2_status take_name(cursor *c, const char **out, uint32_t *length, const char *what)
{
    int64_t n = 0;
    mm2_status status = take_string(c, out, &n, MM2_MAX_NAME, what);
    for (int64_t i = 0; !status && i < n; i++)
        if ((*out)[i] <= ' ' || (*out)[i] > '~')
            status =
                mm2_fail(MM2_E_FORMAT, "%s: byte %lld: %s holds byte %d: expected printable ASCII",
                         c->file->path, (long long)c->at, what, (uint8_t)(*out)[i]);
    if (!status && !n)
        status = mm2_fail(MM2_E_FORMAT, "%s: byte %lld: %s is empty", c->file->path,
                          (long long)c->at, what);
    *length = (uint32_t)n;
    return status;
}

int32_t mm2_gguf_scalar_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof bytes ? bytes[type] : 0;
}

static mm2_status bad_type(const cursor *c, const mm2_gguf_pair *p, uint32_t type)
{
    return mm2_fail(MM2_E_FORMAT, "%s: %.*s has value type %u, expected 0 to 12%s", c->file->path,
                    (int)p->key_length, p->key, type,
                    type == MM2_GGUF_ARRAY ? "; arrays of arrays are not read" : "");
}

static mm2_status take_array(cursor *c, mm2_gguf_pair *p)
{
    uint64_t count;
    mm2_status status = take_u32(c, &p->item, "an array");
    if (!status)
        status = take_u64(c, &count, "an array");
    if (status)
        return status;
    if (count > MAX_ARRAY)
        return too_many(c, "an array's item count is", count, MAX_ARRAY);
    p->count = (int64_t)count;
    p->data = c->data + c->at;
    if (p->item == MM2_GGUF_STRING) {
        for (int64_t i = 0; !status && i < p->count; i++) {
            const char *text;
            int64_t length;
            status = take_string(c, &text, &length, MAX_STRING, "a string of an array");
        }
        return status;
    }
    int64_t bytes = mm2_gguf_scalar_bytes(p->item);
    if (!bytes)
        return bad_type(c, p, p->item);
    return take(c, p->count * bytes) ? MM2_OK : short_of(c, "an array");
}

static mm2_status take_pair(cursor *c, mm2_gguf_pair *p)
{
    mm2_status status = take_name(c, &p->key, &p->key_length, "a metadata key");
    if (!status)
        status = take_u32(c, &p->type, "a metadata value");
    if (status)
        return status;
    if (p->type == MM2_GGUF_ARRAY)
        return take_array(c, p);
    if (p->type == MM2_GGUF_STRING)
        return take_string(c, (const char **)&p->data, &p->count, MAX_STRING, "a string");
    int64_t bytes = mm2_gguf_scalar_bytes(p->type);
    if (!bytes)
        return bad_type(c, p, p->type);
    p->data = take(c, bytes);
    if (!p->data)
        return short_of(c, "a metadata value");
    if (p->type == MM2_GGUF_BOOL && *p->data > 1)
        return mm2_fail(MM2_E_FORMAT, "%s: %.*s is a flag of value %d, expected 0 or 1",
                        c->file->path, (int)p->key_length, p->key, *p->data);
    return MM2_OK;
}

static mm2_status take_pairs(cursor *c, mm2_gguf *g, uint64_t count)
{
    uint64_t limit = (uint64_t)(c->size - c->at) / PAIR_BYTES;
    if (count > MAX_PAIRS || count > limit)
        return too_many(c, "the number of metadata pairs is", count,
                        limit < MAX_PAIRS ? limit : MAX_PAIRS);
    g->pairs = calloc(count + 1, sizeof *g->pairs);
    mm2_strmap keys;
    if (!g->pairs || mm2_strmap_init(&keys, (uint32_t)count))
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for its metadata", c->file->path);
    mm2_status status = MM2_OK;
    for (uint64_t i = 0; !status && i < count; i++) {
        mm2_gguf_pair *p = &g->pairs[i];
        status = take_pair(c, p);
        if (status)
            break;
        int added = mm2_strmap_add(&keys, p->key, p->key_length, g->pair_count++);
        if (added <= 0)
            status =
                added ? mm2_fail(MM2_E_NOMEM, "%s: out of memory for its metadata", c->file->path)
                      : mm2_fail(MM2_E_FORMAT, "%s: key %.*s appears twice", c->file->path,
                                 (int)p->key_length, p->key);
    }
    mm2_strmap_free(&keys);
    return status;
}

const char *mm2_gguf_type_name(uint32_t type)
{
    static const struct {
        uint32_t type;
        const char *name;
    } known[] = {{3, "Q4_1"}, {7, "Q5_1"}, {9, "Q8_1"},   {15, "Q8_K"},  {24, "I8"},  {25, "I16"},
                 {27, "I64"}, {28, "F64"}, {39, "MXFP4"}, {40, "NVFP4"}, {41, "Q1_0"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].type == type)
            return known[i].name;
    if (type == 4 || type == 5 || (type >= 31 && type <= 33) || (type >= 36 && type <= 38))
        return "gone from ggml: take a newer file";
    if (type >= 97 && type <= 399)
        return "this file needs ik_llama.cpp"; /* and other forks; from 42 up they collide */
    return "unknown to this build";
}

static mm2_status take_shape(cursor *c, mm2_gguf_info *t, const char *name)
{
    uint32_t ndim;
    mm2_status status = take_u32(c, &ndim, "a tensor's description");
    if (status)
        return status;
    if (ndim > MAX_RANK)
        return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" has %u dimensions, expected at most %d",
                        c->file->path, name, ndim, MAX_RANK);
    t->ndim = (int32_t)ndim;
    for (int32_t i = t->ndim - 1; i >= 0; i--) { /* the file has the innermost first */
        uint64_t size;
        status = take_u64(c, &size, "a tensor's shape");
        if (status)
            return status;
        if (t->ndim > MM2_MAX_DIMS)
            continue;
        if (size > (uint64_t)1 << MM2_MAX_DIMENSION_BITS)
            return mm2_fail(MM2_E_FORMAT,
                            "%s: tensor \"%s\": a dimension is %llu, expected at most 2^%d",
                            c->file->path, name, (unsigned long long)size, MM2_MAX_DIMENSION_BITS);
        t->shape[i] = (int64_t)size;
    }
    return MM2_OK;
}

static mm2_status take_info(cursor *c, mm2_gguf_info *t)
{
    int64_t length = 0;
    char name[MM2_MAX_NAME + 1];
    mm2_status status = take_string(c, &t->name, &length, MAX_TENSOR_NAME, "a tensor's name");
    if (status)
        return status;
    t->name_length = (uint32_t)length;
    mm2_checkpoint_show(name, t->name, (size_t)length);
    status = take_shape(c, t, name);
    uint64_t offset = 0;
    if (!status)
        status = take_u32(c, &t->type, "a tensor's description");
    if (!status)
        status = take_u64(c, &offset, "a tensor's description");
    if (status)
        return status;
    if (offset > INT64_MAX)
        return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\": its offset %llu lies beyond the file",
                        c->file->path, name, (unsigned long long)offset);
    t->offset = (int64_t)offset;
    t->dtype = mm2_dtype_from_ggml(t->type);
    return MM2_OK;
}

static mm2_status take_infos(cursor *c, mm2_gguf *g, uint64_t count)
{
    uint64_t limit = (uint64_t)(c->size - c->at) / INFO_BYTES;
    if (count > MM2_MAX_TENSORS || count > limit)
        return too_many(c, "the number of tensors is", count,
                        limit < MM2_MAX_TENSORS ? limit : MM2_MAX_TENSORS);
    g->infos = calloc(count + 1, sizeof *g->infos);
    if (!g->infos)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for %llu tensors", c->file->path,
                        (unsigned long long)count);
    mm2_status status = MM2_OK;
    for (uint64_t i = 0; !status && i < count; i++, g->info_count++) {
        mm2_gguf_info t = {0};
        g->infos[i] = c->data + c->at;
        status = take_info(c, &t);
    }
    return status;
}

mm2_gguf_info mm2_gguf_info_at(const mm2_gguf *g, int32_t i)
{
    /* It was read before, so nothing fails. */
    cursor c = {.file = g->file, .data = g->infos[i], .size = INT64_MAX};
    mm2_gguf_info t = {0};
    take_info(&c, &t);
    t.offset += g->start;
    return t;
}

static mm2_status read_alignment(const mm2_gguf *g, int64_t *out)
{
    const mm2_gguf_pair *p = mm2_gguf_find(g, "general.alignment");
    *out = 32;
    if (!p)
        return MM2_OK;
    if (p->type != MM2_GGUF_UINT32)
        return mm2_fail(MM2_E_FORMAT, "%s: general.alignment has value type %u, expected 4",
                        g->file->path, p->type);
    uint32_t alignment;
    memcpy(&alignment, p->data, 4);
    if (alignment < MIN_ALIGNMENT || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)))
        return mm2_fail(MM2_E_FORMAT,
                        "%s: general.alignment is %u, expected a power of two from %d to %d",
                        g->file->path, alignment, MIN_ALIGNMENT, MAX_ALIGNMENT);
    *out = alignment;
    return MM2_OK;
}

/* Offsets are aligned, and count from where the header ends. */
static mm2_status place_tensors(mm2_gguf *g, int64_t header_end)
{
    int64_t alignment, start;
    mm2_status status = read_alignment(g, &alignment);
    if (status)
        return status;
    start = (header_end + alignment - 1) / alignment * alignment;
    for (int32_t i = 0; i < g->info_count; i++) {
        mm2_gguf_info t = mm2_gguf_info_at(g, i);
        char name[MM2_MAX_NAME + 1];
        mm2_checkpoint_show(name, t.name, t.name_length);
        if (t.offset % alignment)
            return mm2_fail(MM2_E_FORMAT,
                            "%s: tensor \"%s\": its offset %lld is no multiple of the alignment "
                            "%lld",
                            g->file->path, name, (long long)t.offset, (long long)alignment);
        if (t.offset > g->file->size - start)
            return mm2_fail(MM2_E_FORMAT,
                            "%s: tensor \"%s\" begins beyond the file's %lld bytes: is it cut "
                            "short?",
                            g->file->path, name, (long long)g->file->size);
    }
    g->start = start;
    return MM2_OK;
}

static mm2_status parse(mm2_gguf *g, cursor *c)
{
    const uint8_t *magic = take(c, 4);
    if (!magic || memcmp(magic, "GGUF", 4))
        return mm2_fail(MM2_E_FORMAT, "%s: does not begin with \"GGUF\"", g->file->path);
    uint32_t version;
    uint64_t tensors, pairs;
    mm2_status status = take_u32(c, &version, "the version");
    if (status)
        return status;
    if (version != 3)
        return mm2_fail(MM2_E_UNSUPPORTED, "%s: GGUF version %u%s, expected 3", g->file->path,
                        version, version == 0x03000000 ? " (big-endian)" : "");
    status = take_u64(c, &tensors, "the header");
    if (!status)
        status = take_u64(c, &pairs, "the header");
    if (!status)
        status = take_pairs(c, g, pairs);
    return status ? status : take_infos(c, g, tensors);
}

static void drop_records(mm2_gguf *g)
{
    free(g->pairs);
    free(g->infos);
    g->pairs = NULL;
    g->infos = NULL;
    g->pair_count = g->info_count = 0;
    g->start = 0;
}

mm2_status mm2_gguf_parse(mm2_gguf *g, const mm2_file *f)
{
    *g = (mm2_gguf){.file = f};
    cursor c = {.file = f, .data = f->data, .size = f->size};
    mm2_status status = parse(g, &c);
    if (!status) {
        drop_records(g);
        g->header = malloc((size_t)c.at);
        if (g->header)
            memcpy(g->header, f->data, (size_t)c.at);
        else
            status = mm2_fail(MM2_E_NOMEM, "%s: out of memory for its header of %lld bytes",
                              f->path, (long long)c.at);
    }
    if (!status) {
        c = (cursor){.file = f, .data = g->header, .size = c.at};
        status = parse(g, &c);
    }
    if (!status)
        status = place_tensors(g, c.at);
    if (status)
        mm2_gguf_free(g);
    return status;
}

void mm2_gguf_free(mm2_gguf *g)
{
    drop_records(g);
    free(g->header);
    *g = (mm2_gguf){0};
}

const mm2_gguf_pair *mm2_gguf_find(const mm2_gguf *g, const char *key)
{
    size_t length = strlen(key);
    for (int32_t i = 0; i < g->pair_count; i++)
        if (g->pairs[i].key_length == length && !memcmp(g->pairs[i].key, key, length))
            return &g->pairs[i];
    return NULL;
}

const char *mm2_gguf_kind(const mm2_gguf_pair *p)
{
    static const char *const kinds[] = {"uint8",  "int8",    "uint16", "int16",    "uint32",
                                        "int32",  "float32", "a flag", "a string", "an array",
                                        "uint64", "int64",   "float64"};
    return kinds[p->type];
}

static int32_t wrong_kind(const mm2_gguf *g, const char *key, const char *expected,
                          const mm2_gguf_pair *p)
{
    return mm2_fail(MM2_E_FORMAT, "%s: %s must be %s, found %s", g->file->path, key, expected,
                    mm2_gguf_kind(p));
}

int32_t mm2_gguf_integer(const mm2_gguf *g, const char *key, int64_t *out)
{
    const mm2_gguf_pair *p = mm2_gguf_find(g, key);
    if (!p)
        return 0;
    uint64_t bits = 0;
    memcpy(&bits, p->data, (size_t)mm2_gguf_scalar_bytes(p->type));
    switch (p->type) {
    case MM2_GGUF_INT8:
        *out = (int8_t)bits;
        return 1;
    case MM2_GGUF_INT16:
        *out = (int16_t)bits;
        return 1;
    case MM2_GGUF_INT32:
        *out = (int32_t)bits;
        return 1;
    case MM2_GGUF_UINT8:
    case MM2_GGUF_UINT16:
    case MM2_GGUF_UINT32:
    case MM2_GGUF_UINT64:
    case MM2_GGUF_INT64:
        if (p->type == MM2_GGUF_UINT64 && bits > INT64_MAX)
            return mm2_fail(MM2_E_FORMAT, "%s: %s is %llu: out of range", g->file->path, key,
                            (unsigned long long)bits);
        *out = (int64_t)bits;
        return 1;
    default:
        return wrong_kind(g, key, "a whole number", p);
    }
}

int32_t mm2_gguf_string(const mm2_gguf *g, const char *key, const char **out, int64_t *length)
{
    const mm2_gguf_pair *p = mm2_gguf_find(g, key);
    if (!p)
        return 0;
    if (p->type != MM2_GGUF_STRING)
        return wrong_kind(g, key, "a string", p);
    *out = (const char *)p->data;
    *length = p->count;
    return 1;
}
