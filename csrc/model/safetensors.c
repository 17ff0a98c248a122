/* Safetensors: eight bytes of header length, a JSON header, and one buffer of tensors.
 *
 * A directory holds either model.safetensors, or shards that model.safetensors.index.json maps
 * every tensor name to. The index is the list of the model's tensors, and of their places: what a
 * shard holds besides is left alone, and so is a name whose shard does not hold it, or is not
 * there, until the tensor is needed. Files that the index does not name are never opened.
 *
 * A header is believed only if the tensors, in the order of their offsets, cover the buffer
 * exactly: no hole, no overlap, nothing behind the last one. Sums that the index states
 * (total_size) are ignored: nothing depends on them.
 *
 * Names are decoded from JSON into one block of memory, as large as the text they come from. */
#include "model/safetensors.h"

#include "base/json.h"
#include "base/status.h"
#include "model/directory.h"
#include "tensor/dtype.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {                      /* bytes of the shortest JSON that names a tensor */
       LEAST_INDEXED = 8,   /* "a":"b", */
       LEAST_DESCRIBED = 49 /* "a":{"dtype":"","shape":[],"data_offsets":[0,0]}, */
};

typedef struct span { /* of a shard's buffer */
    int64_t begin, end;
    int32_t entry; /* -1: a tensor that is left alone */
} span;

typedef struct reader {
    mm2_checkpoint *c;
    const char *directory;
    uint32_t flags;
    char *next_name; /* free space in c->names */
    int indexed;
    span *spans; /* of the shard at hand */
    int32_t span_count, span_room;
} reader;

/* ---- The index ---- */

/* The number of a shard by its file name, adding it to the list if it is new. */
static mm2_status shard_number(reader *r, mm2_strmap *shards, const char *where, const char *name,
                               int32_t *out)
{
    mm2_checkpoint *c = r->c;
    uint32_t length = (uint32_t)strlen(name);
    *out = mm2_strmap_find(shards, name, length);
    if (*out >= 0)
        return MM2_OK;
    if (c->file_count == MM2_MAX_SHARDS)
        return mm2_fail(MM2_E_FORMAT, "%s: names more than %d shards", where, MM2_MAX_SHARDS);
    mm2_file *f = &c->files[c->file_count];
    char *path;
    mm2_status status = mm2_file_join(&path, r->directory, name, "shard name");
    if (status)
        return mm2_fail_in(status, where);
    f->path = path;
    *out = c->file_count++;
    /* the key lives in the path that was just made */
    const char *key = path + strlen(path) - length;
    return mm2_strmap_add(shards, key, length, *out) < 0
               ? mm2_fail(MM2_E_NOMEM, "%s: out of memory for its shards", where)
               : MM2_OK;
}

/* The name of a tensor, with room for MM2_MAX_NAME bytes; "" if nobody can ask for it. */
static mm2_status read_name(mm2_json *j, char *name)
{
    mm2_json begin = *j;
    mm2_status status = mm2_json_key(j, name, MM2_MAX_NAME + 1);
    if (!status && mm2_checkpoint_can_name(name, strlen(name)))
        return MM2_OK;
    *name = 0; /* other characters, too long, or no string at all */
    *j = begin;
    return mm2_json_key(j, NULL, 0);
}

static mm2_status read_weight_map(reader *r, mm2_json *j, mm2_strmap *shards)
{
    int begun = 0;
    int32_t more;
    while ((more = mm2_json_next(j, '{', &begun)) > 0) {
        char shard[MM2_MAX_NAME + 1];
        char *name = r->next_name;
        mm2_status status = read_name(j, name);
        if (!status)
            status = mm2_json_string(j, shard, sizeof shard);
        int32_t number = 0;
        if (!status)
            status = shard_number(r, shards, j->where, shard, &number);
        if (!status && !*name)
            continue;
        if (!status)
            status = mm2_checkpoint_expect(r->c, name, j->where, number);
        if (status)
            return status;
        r->next_name += strlen(name) + 1;
    }
    return more;
}

static mm2_status parse_index(reader *r, const mm2_file *index, mm2_strmap *shards)
{
    mm2_json j;
    mm2_json_begin(&j, index->path, index->data, index->size);
    int begun = 0, maps = 0;
    int32_t more;
    while ((more = mm2_json_next(&j, '{', &begun)) > 0) {
        char key[64];
        mm2_status status = mm2_json_key(&j, key, sizeof key);
        if (!status && !strcmp(key, "weight_map")) {
            if (maps++)
                return mm2_fail(MM2_E_FORMAT, "%s: weight_map appears twice", index->path);
            status = read_weight_map(r, &j, shards);
        } else if (!status) {
            status = mm2_json_skip(&j);
        }
        if (status)
            return status;
    }
    mm2_status status = more ? more : mm2_json_end(&j);
    if (!status && !r->c->by_name.count)
        status = mm2_fail(MM2_E_FORMAT, "%s: weight_map is missing or empty", index->path);
    return status;
}

/* Room for names: a decoded name is shorter than its JSON. One more for the longest, whose space is
 * reserved before its length is known. The map gets the size that it will need: there are no more
 * names than `mark`s in the JSON, nor than one in `least` bytes. */
static mm2_status reserve_names(reader *r, const char *where, const uint8_t *json, int64_t bytes,
                                char mark, int64_t least)
{
    const uint8_t *p = json, *end = json + bytes;
    uint32_t names = 1;
    while (names < bytes / least && names < MM2_MAX_TENSORS &&
           (p = memchr(p, mark, (size_t)(end - p))) != NULL) {
        names++;
        p++;
    }
    r->c->names = r->next_name = malloc((size_t)bytes + MM2_MAX_NAME + 1);
    if (!r->next_name || mm2_strmap_init(&r->c->by_name, names))
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for %lld bytes of names", where,
                        (long long)bytes);
    return MM2_OK;
}

static mm2_status read_index(reader *r, const char *path)
{
    mm2_file index;
    mm2_strmap shards = {0};
    mm2_status status = mm2_file_open(&index, path, 0);
    if (status)
        return status;
    if (index.size > MM2_MAX_HEADER)
        status = mm2_fail(MM2_E_FORMAT, "%s: has %lld bytes, expected at most %d", path,
                          (long long)index.size, MM2_MAX_HEADER);
    if (!status)
        status = reserve_names(r, path, index.data, index.size, ',', LEAST_INDEXED);
    if (!status && mm2_strmap_init(&shards, 64))
        status = mm2_fail(MM2_E_NOMEM, "%s: out of memory for its shards", path);
    if (!status)
        status = parse_index(r, &index, &shards);
    mm2_strmap_free(&shards);
    mm2_file_close(&index);
    return status;
}

/* ---- One file ---- */

typedef struct header_fields {
    char dtype[32];
    int64_t shape[MM2_MAX_DIMS], begin, end;
    int32_t ndim; /* of any count; the shape has the first MM2_MAX_DIMS */
    int32_t has_dtype, has_shape, has_offsets;
} header_fields;

static mm2_status read_shape(mm2_json *j, header_fields *h)
{
    int begun = 0;
    int32_t more;
    h->ndim = 0;
    while ((more = mm2_json_next(j, '[', &begun)) > 0) {
        int64_t size;
        mm2_status status = mm2_json_integer(j, &size);
        if (status)
            return status;
        if (h->ndim < MM2_MAX_DIMS)
            h->shape[h->ndim] = size;
        h->ndim++;
    }
    return more;
}

static mm2_status read_offsets(mm2_json *j, header_fields *h)
{
    int begun = 0;
    int32_t more;
    int64_t *both[] = {&h->begin, &h->end};
    for (int i = 0; i < 2; i++) {
        more = mm2_json_next(j, '[', &begun);
        mm2_status status = more > 0 ? mm2_json_integer(j, both[i]) : more;
        if (!more)
            status =
                mm2_fail(MM2_E_FORMAT, "%s: data_offsets has %d items, expected 2", j->where, i);
        if (status)
            return status;
    }
    more = mm2_json_next(j, '[', &begun);
    return more > 0 ? mm2_fail(MM2_E_FORMAT, "%s: data_offsets has more than 2 items", j->where)
                    : more;
}

static mm2_status read_fields(mm2_json *j, const char *name, header_fields *h)
{
    int begun = 0;
    int32_t more;
    while ((more = mm2_json_next(j, '{', &begun)) > 0) {
        char key[32];
        mm2_status status = mm2_json_key(j, key, sizeof key);
        int32_t *seen = NULL;
        if (!status && !strcmp(key, "dtype")) {
            seen = &h->has_dtype;
            status = mm2_json_string(j, h->dtype, sizeof h->dtype);
        } else if (!status && !strcmp(key, "shape")) {
            seen = &h->has_shape;
            status = read_shape(j, h);
        } else if (!status && !strcmp(key, "data_offsets")) {
            seen = &h->has_offsets;
            status = read_offsets(j, h);
        }
        if (status)
            return status;
        if (!seen || (*seen)++)
            return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\": field %s is %s", j->where, name,
                            seen ? key : "of the header", seen ? "given twice" : "unknown");
    }
    if (!more && !(h->has_dtype && h->has_shape && h->has_offsets))
        return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\": %s is missing", j->where, name,
                        !h->has_dtype   ? "dtype"
                        : !h->has_shape ? "shape"
                                        : "data_offsets");
    return more;
}

/* The entry of a name that a file's header holds; NULL if it is left alone. */
static mm2_status claim_entry(reader *r, const char *name, const mm2_file *f, mm2_entry **out)
{
    *out = NULL;
    if (!*name)
        return MM2_OK;
    if (r->indexed)
        return mm2_checkpoint_claim(r->c, name, (int32_t)(f - r->c->files), out);
    mm2_status status = mm2_checkpoint_add(r->c, name, f->path, out);
    r->next_name += status ? 0 : strlen(name) + 1;
    return status;
}

static mm2_status add_span(reader *r, const char *file, int64_t begin, int64_t end, int32_t entry)
{
    if (r->span_count == r->span_room) {
        int32_t room = r->span_room + r->span_room / 2 + 1024;
        span *larger = realloc(r->spans, (size_t)room * sizeof *larger);
        if (!larger)
            return mm2_fail(MM2_E_NOMEM, "%s: out of memory for %d tensors", file, room);
        r->spans = larger;
        r->span_room = room;
    }
    r->spans[r->span_count++] = (span){begin, end, entry};
    return MM2_OK;
}

/* Describes an entry by the fields of the header. */
static mm2_status fill_entry(reader *r, mm2_entry *e, const header_fields *h, const uint8_t *data)
{
    char why[64], text[sizeof h->dtype];
    int is_e8m0 = !strcmp(h->dtype, "F8_E8M0"); /* exponents, which others write as U8 */
    int32_t dtype = mm2_dtype_from_safetensors(is_e8m0 ? "U8" : h->dtype);
    mm2_format(text, sizeof text, "%s", h->dtype);
    if (!dtype)
        mm2_format(why, sizeof why, "has dtype %s", text);
    else if (h->ndim > MM2_MAX_DIMS)
        mm2_format(why, sizeof why, "has %d dimensions", h->ndim);
    if (!dtype || h->ndim > MM2_MAX_DIMS) {
        mm2_status status = mm2_checkpoint_set_odd(r->c, e, why);
        e->view.data = (void *)(data + h->begin);
        e->view.nbytes = h->end - h->begin;
        return status;
    }
    mm2_status status = mm2_entry_shape(e, dtype, h->ndim, h->shape);
    if (status)
        return status;
    if (h->end - h->begin != e->view.nbytes)
        return mm2_fail(
            MM2_E_FORMAT, "%s: tensor \"%s\" has %lld bytes, expected %lld by its shape and dtype",
            e->file, e->name, (long long)(h->end - h->begin), (long long)e->view.nbytes);
    e->view.data = (void *)(data + h->begin);
    e->view.flags = r->flags & MM2_WRITABLE ? 0 : MM2_READ_ONLY;
    return MM2_OK;
}

static mm2_status read_tensor(reader *r, mm2_json *j, const mm2_file *f, int64_t data_start,
                              const char *name)
{
    header_fields h = {0};
    mm2_entry *e = NULL;
    char shown[MM2_MAX_NAME + 1];
    mm2_checkpoint_show(shown, name, strlen(name));
    mm2_status status = read_fields(j, shown, &h);
    if (!status)
        status = claim_entry(r, name, f, &e);
    if (!status && (h.begin > h.end || h.end > f->size - data_start))
        status = mm2_fail(MM2_E_FORMAT,
                          "%s: tensor \"%s\" claims bytes %lld to %lld of %lld: is the file cut "
                          "short?",
                          f->path, shown, (long long)h.begin, (long long)h.end,
                          (long long)(f->size - data_start));
    if (!status && e)
        status = fill_entry(r, e, &h, f->data + data_start);
    if (status)
        return status;
    return add_span(r, f->path, h.begin, h.end, e ? (int32_t)(e - r->c->entries) : -1);
}

/* __metadata__: strings to strings, of no interest here. */
static mm2_status read_metadata(mm2_json *j)
{
    int begun = 0;
    int32_t more;
    while ((more = mm2_json_next(j, '{', &begun)) > 0) {
        mm2_status status = mm2_json_key(j, NULL, 0);
        if (!status)
            status = mm2_json_string(j, NULL, 0);
        if (status)
            return status;
    }
    return more;
}

static int by_offset(const void *a, const void *b)
{
    const span *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* The tensors must cover [0, size) without holes or overlaps. */
static mm2_status check_cover(reader *r, const mm2_file *f, int64_t size)
{
    if (r->span_count)
        qsort(r->spans, (size_t)r->span_count, sizeof *r->spans, by_offset);
    int64_t at = 0;
    for (int32_t i = 0; i < r->span_count; i++) {
        const span *s = &r->spans[i];
        if (s->begin != at)
            return mm2_fail(
                MM2_E_FORMAT,
                "%s: tensor \"%s\" begins at byte %lld of the data, expected %lld: "
                "tensors must follow each other without %s",
                f->path, s->entry < 0 ? "(one that is left alone)" : r->c->entries[s->entry].name,
                (long long)s->begin, (long long)at, s->begin < at ? "overlap" : "holes");
        at = s->end;
    }
    if (at != size)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: %lld bytes follow the last tensor: the file must end with it", f->path,
                        (long long)(size - at));
    return MM2_OK;
}

static mm2_status read_header(reader *r, const mm2_file *f)
{
    uint64_t length = 0;
    if (f->size < 8)
        return mm2_fail(MM2_E_FORMAT, "%s: has %lld bytes, expected a safetensors file", f->path,
                        (long long)f->size);
    memcpy(&length, f->data, 8);
    if (length > MM2_MAX_HEADER || (int64_t)length > f->size - 8)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: the header claims %llu bytes of %lld (limit %d): not a safetensors "
                        "file, or cut short",
                        f->path, (unsigned long long)length, (long long)(f->size - 8),
                        MM2_MAX_HEADER);
    int64_t data_start = 8 + (int64_t)length;
    r->span_count = 0;
    char scratch[MM2_MAX_NAME + 1];
    mm2_status status =
        r->indexed ? MM2_OK
                   : reserve_names(r, f->path, f->data + 8, (int64_t)length, '{', LEAST_DESCRIBED);
    if (status)
        return status;
    mm2_json j;
    mm2_json_begin(&j, f->path, f->data + 8, (int64_t)length);
    int begun = 0, metadata = 0;
    int32_t more;
    while ((more = mm2_json_next(&j, '{', &begun)) > 0) {
        char *name = r->indexed ? scratch : r->next_name;
        status = read_name(&j, name);
        if (!status && !strcmp(name, "__metadata__")) {
            if (metadata++)
                return mm2_fail(MM2_E_FORMAT, "%s: __metadata__ appears twice", f->path);
            status = read_metadata(&j);
        } else if (!status) {
            status = read_tensor(r, &j, f, data_start, name);
        }
        if (status)
            return status;
    }
    status = more ? more : mm2_json_end(&j);
    return status ? status : check_cover(r, f, f->size - data_start);
}

/* Opens a file whose path is set. The path is kept: entries and sentences point to it. One of
 * several that is not there is left out. */
static mm2_status open_shard(reader *r, mm2_file *f)
{
    char *path = (char *)f->path;
    if (r->indexed && mm2_file_exists(path) <= 0)
        return MM2_OK;
    mm2_status status = mm2_file_open(f, path, mm2_checkpoint_file_flags(r->flags));
    free((char *)f->path); /* the copy that opening made; NULL if it failed */
    f->path = path;
    return status;
}

static mm2_status read_shards(reader *r)
{
    mm2_checkpoint *c = r->c;
    mm2_status status = MM2_OK;
    for (int32_t i = 0; !status && i < c->file_count; i++)
        status = open_shard(r, &c->files[i]);
    if (!status)
        status = mm2_checkpoint_fill(c);
    for (int32_t i = 0; !status && i < c->file_count; i++)
        if (c->files[i].is_open)
            status = read_header(r, &c->files[i]);
    return status ? status : mm2_checkpoint_settle(c);
}

/* The last component of a path, for a name: "models/MiniMax-M2/" is MiniMax-M2. */
static mm2_status directory_name(char *out, int32_t cap, const char *directory)
{
    char *real = realpath(directory, NULL);
    if (!real && errno == ENOMEM)
        return mm2_file_fail(directory, "find its full name");
    const char *path = real ? real : directory, *last = strrchr(path, '/');
    last = last ? last + 1 : path;
    mm2_text_clean(out, cap, last, (int64_t)strlen(last));
    free(real);
    return MM2_OK;
}

mm2_status mm2_safetensors_open(mm2_checkpoint *c, const char *directory, uint32_t flags)
{
    reader r = {.c = c, .directory = directory, .flags = flags};
    mm2_status status = mm2_directory_read(c, directory);
    if (!status)
        status = directory_name(c->model_name, sizeof c->model_name, directory);
    if (status)
        return status;
    c->files = calloc(MM2_MAX_SHARDS, sizeof *c->files);
    if (!c->files)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", directory);
    char *index;
    status = mm2_file_join(&index, directory, "model.safetensors.index.json", "index");
    if (status)
        return status;
    r.indexed = mm2_file_exists(index);
    if (r.indexed) {
        status = r.indexed < 0 ? r.indexed : read_index(&r, index);
    } else {
        char *path;
        status = mm2_file_join(&path, directory, "model.safetensors", "file");
        if (!status)
            c->files[c->file_count++].path = path;
    }
    free(index);
    if (!status)
        status = read_shards(&r);
    free(r.spans);
    return status;
}
