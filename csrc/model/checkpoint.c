/* The table of a checkpoint's tensors, its files, and their end.
 *
 * Entries grow in an array that may move while a reader fills it, so the map holds indices. Names
 * and files are borrowed from storage that lives as long as the checkpoint.
 *
 * A tensor that no view can describe (a type without a number here, more dimensions than a view
 * has) keeps its entry behind the listed ones, so that it can be named if it turns out to be needed.
 * Nobody else meets it. One that an index names has no entry until a file turns out to hold it: an
 * index may name a quarter of a million in ten bytes each. */
#include "model/checkpoint.h"

#include "base/cpu.h"
#include "base/status.h"
#include "tensor/dtype.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    LOOK_AGAIN = 100000000, /* nanoseconds between two looks at the files */
    MAX_REASONS = 256       /* for which no view describes a tensor */
};

void mm2_checkpoint_init(mm2_checkpoint *c)
{
    memset(c, 0, sizeof *c);
    c->hints = (mm2_sampling_hints){1.0f, 0.95f, 40};
    c->bos = c->eos = -1;
}

void mm2_checkpoint_close(mm2_checkpoint *c)
{
    for (int32_t i = 0; i < c->file_count; i++)
        mm2_file_close(&c->files[i]);
    for (int32_t i = 0; c->reasons && i < MAX_REASONS; i++)
        free(c->reasons[i]);
    free(c->reasons);
    free(c->files);
    free(c->entries);
    free(c->names);
    free(c->path);
    mm2_strmap_free(&c->by_name);
    memset(c, 0, sizeof *c);
}

static const mm2_entry *find_any(const mm2_checkpoint *c, const char *name)
{
    int32_t i = mm2_strmap_find(&c->by_name, name, (uint32_t)strlen(name));
    return i < 0 ? NULL : &c->entries[i];
}

const mm2_entry *mm2_checkpoint_find(const mm2_checkpoint *c, const char *name)
{
    const mm2_entry *e = find_any(c, name);
    return e && !e->odd ? e : NULL;
}

int mm2_checkpoint_has(const mm2_checkpoint *c, const char *name)
{
    return find_any(c, name) != NULL;
}

int mm2_checkpoint_names(const mm2_checkpoint *c, const char *name)
{
    return mm2_strmap_find(&c->by_name, name, (uint32_t)strlen(name)) != -1;
}

const char *mm2_checkpoint_odd(const mm2_checkpoint *c, const char *name)
{
    const mm2_entry *e = find_any(c, name);
    return e ? e->odd : NULL;
}

mm2_status mm2_checkpoint_integers(const mm2_checkpoint *c, const char *name, int64_t *out,
                                   int32_t n)
{
    const mm2_entry *e = find_any(c, name);
    int is_wide = e && e->odd && !strcmp(e->odd, "has dtype I64") && e->view.data;
    if (!e || (!is_wide && e->odd))
        return mm2_checkpoint_missing(c, name, "a few whole numbers");
    int32_t bytes = is_wide ? 8 : 4;
    if ((!is_wide && e->view.dtype != MM2_I32) || e->view.nbytes != (int64_t)n * bytes)
        return mm2_fail(
            MM2_E_FORMAT, "%s: tensor \"%s\" has %lld bytes of %s, expected %d integers", e->file,
            name, (long long)e->view.nbytes, is_wide ? "I64" : mm2_dtype_name(e->view.dtype), n);
    for (int32_t i = 0; i < n; i++) {
        int32_t narrow;
        memcpy(is_wide ? (void *)&out[i] : &narrow, (const char *)e->view.data + i * bytes,
               (size_t)bytes);
        out[i] = is_wide ? out[i] : narrow;
    }
    return MM2_OK;
}

void mm2_shape_show(char *out, int cap, int32_t ndim, const int64_t *shape)
{
    int used = mm2_format(out, cap, "[");
    for (int32_t i = 0; i < ndim && used < cap; i++)
        used += mm2_format(out + used, cap - used, i ? ", %lld" : "%lld", (long long)shape[i]);
    if (used < cap)
        mm2_format(out + used, cap - used, "]");
}

/* "f32, f16, q8_0": the types that the container may name. */
static void write_types(char *out, int cap, int is_gguf)
{
    int used = 0;
    for (int32_t i = 1; i < MM2_DTYPE_COUNT && used < cap; i++) {
        const mm2_dtype_facts *facts = mm2_dtype_find(i);
        if (facts && (is_gguf ? facts->ggml >= 0 : facts->safetensors != NULL))
            used += mm2_format(out + used, cap - used, used ? ", %s" : "%s", facts->name);
    }
}

mm2_status mm2_checkpoint_missing(const mm2_checkpoint *c, const char *name, const char *expected)
{
    int32_t i = mm2_strmap_find(&c->by_name, name, (uint32_t)strlen(name));
    if (i == -1)
        return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" is missing, expected of shape %s", c->path,
                        name, expected);
    if (i >= 0) {
        char types[512];
        write_types(types, sizeof types, !strcmp(c->format, "gguf"));
        return mm2_fail(MM2_E_UNSUPPORTED, "%s: tensor \"%s\" %s; this build reads %s",
                        c->entries[i].file, name, c->entries[i].odd, types);
    }
    const char *file = c->files[-2 - i].path;
    mm2_file probe;
    mm2_status status = mm2_file_open(&probe, file, 0);
    mm2_file_close(&probe);
    return status ? status
                  : mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" is missing: the index places it here",
                             file, name);
}

mm2_status mm2_checkpoint_check(mm2_checkpoint *c)
{
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t time = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    int64_t last = atomic_load_explicit(&c->checked_at, memory_order_relaxed);
    if (last && time - last < LOOK_AGAIN)
        return MM2_OK;
    for (int32_t i = 0; i < c->file_count; i++) {
        mm2_status status = mm2_file_check(&c->files[i]);
        if (status)
            return status;
    }
    atomic_store_explicit(&c->checked_at, time, memory_order_relaxed);
    return MM2_OK;
}

/* ---- For the readers ---- */

int mm2_checkpoint_can_name(const char *name, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (name[i] <= ' ' || name[i] > '~')
            return 0;
    return length > 0 && length <= MM2_MAX_NAME;
}

void mm2_checkpoint_show(char *out, const char *name, size_t length)
{
    if (mm2_checkpoint_can_name(name, length))
        mm2_format(out, MM2_MAX_NAME + 1, "%.*s", (int)length, name);
    else
        mm2_format(out, MM2_MAX_NAME + 1, "(a name that nobody can ask for)");
}

/* What the map shall say of a name that is new. */
static mm2_status add_name(mm2_checkpoint *c, const char *name, const char *where, int32_t value)
{
    if (c->by_name.count == MM2_MAX_TENSORS)
        return mm2_fail(MM2_E_FORMAT, "%s: more than %d tensors", where, MM2_MAX_TENSORS);
    int added = mm2_strmap_add(&c->by_name, name, (uint32_t)strlen(name), value);
    if (added < 0)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for %u tensors", where, c->by_name.count);
    return added ? MM2_OK : mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" appears twice", where, name);
}

mm2_status mm2_checkpoint_reserve(mm2_checkpoint *c, int64_t count)
{
    int32_t room = count < MM2_MAX_TENSORS ? (int32_t)count : MM2_MAX_TENSORS;
    c->entries = malloc(((size_t)room + 1) * sizeof *c->entries);
    c->entry_room = c->entries ? room + 1 : 0;
    if (!c->entries || mm2_strmap_init(&c->by_name, (uint32_t)room))
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for %d tensors", c->path, room);
    return MM2_OK;
}

static mm2_status add_entry(mm2_checkpoint *c, const char *name, const char *file, mm2_entry **out)
{
    if (c->entry_count == c->entry_room) {
        int32_t room = c->entry_room + c->entry_room / 2 + 1024;
        mm2_entry *larger = realloc(c->entries, (size_t)room * sizeof *larger);
        if (!larger)
            return mm2_fail(MM2_E_NOMEM, "%s: out of memory for %d tensors", file, room);
        c->entries = larger;
        c->entry_room = room;
    }
    *out = &c->entries[c->entry_count++];
    **out = (mm2_entry){.name = name, .file = file};
    return MM2_OK;
}

mm2_status mm2_checkpoint_add(mm2_checkpoint *c, const char *name, const char *file,
                              mm2_entry **out)
{
    mm2_status status = add_name(c, name, file, c->entry_count);
    return status ? status : add_entry(c, name, file, out);
}

mm2_status mm2_checkpoint_expect(mm2_checkpoint *c, const char *name, const char *where,
                                 int32_t file)
{
    return add_name(c, name, where, -2 - file);
}

mm2_status mm2_checkpoint_claim(mm2_checkpoint *c, const char *name, int32_t file, mm2_entry **out)
{
    const char *own, *path = c->files[file].path;
    int32_t *value = mm2_strmap_at(&c->by_name, name, (uint32_t)strlen(name), &own);
    *out = NULL;
    if (value && *value >= 0 && c->entries[*value].file == path)
        return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" appears twice", path, name);
    if (!value || *value != -2 - file)
        return MM2_OK;
    *value = c->entry_count;
    return add_entry(c, own, path, out);
}

mm2_status mm2_checkpoint_set_odd(mm2_checkpoint *c, mm2_entry *e, const char *why)
{
    e->view = (mm2_tensor){0};
    if (!c->reasons)
        c->reasons = calloc(MAX_REASONS, sizeof *c->reasons);
    for (int32_t i = 0; c->reasons && !e->odd && i < MAX_REASONS; i++) {
        if (!c->reasons[i] && !(c->reasons[i] = strdup(why)))
            break;
        if (!strcmp(c->reasons[i], why))
            e->odd = c->reasons[i];
        else if (i == MAX_REASONS - 1)
            e->odd = "is of one more type that nobody knows";
    }
    return e->odd ? MM2_OK : mm2_fail(MM2_E_NOMEM, "%s: out of memory for its tensors", e->file);
}

mm2_status mm2_checkpoint_settle(mm2_checkpoint *c)
{
    for (int32_t i = 0; i < c->entry_count; i++) {
        if (c->entries[i].odd)
            continue;
        if (i > c->listed) {
            mm2_entry e = c->entries[i];
            c->entries[i] = c->entries[c->listed];
            c->entries[c->listed] = e;
        }
        c->listed++;
    }
    if (!c->listed)
        return mm2_fail(MM2_E_FORMAT, "%s: holds no tensors that this build reads", c->path);
    for (int32_t i = 0; c->listed < c->entry_count && i < c->entry_count; i++) {
        const char *own, *name = c->entries[i].name;
        *mm2_strmap_at(&c->by_name, name, (uint32_t)strlen(name), &own) = i;
    }
    return MM2_OK;
}

int32_t mm2_checkpoint_file_flags(uint32_t flags)
{
    return (flags & MM2_WRITABLE ? MM2_FILE_WRITABLE : 0) |
           (flags & MM2_IN_MEMORY ? MM2_FILE_COPY : MM2_FILE_WATCH);
}

mm2_status mm2_checkpoint_fill(mm2_checkpoint *c)
{
    int64_t needed = 0, available = mm2_memory_available();
    for (int32_t i = 0; i < c->file_count; i++)
        if (c->files[i].flags & MM2_FILE_COPY &&
            __builtin_add_overflow(needed, c->files[i].size, &needed))
            needed = INT64_MAX;
    if (needed > available)
        return mm2_fail(
            MM2_E_NOMEM,
            "%s: a copy in memory needs %lld bytes, %lld are available; open it mapped, "
            "or take a smaller quantisation",
            c->path, (long long)needed, (long long)available);
    mm2_status status = MM2_OK;
    for (int32_t i = 0; !status && i < c->file_count; i++)
        status = mm2_file_fill(&c->files[i]);
    return status;
}

mm2_status mm2_checkpoint_end(mm2_checkpoint *c, int64_t id, const char *where)
{
    if (id < 0 || id >= MM2_MAX_IDS)
        return MM2_OK;
    for (int32_t i = 0; i < c->end_count; i++)
        if (c->ends[i] == id)
            return MM2_OK;
    if (c->end_count == MM2_MAX_ENDS)
        return mm2_fail(MM2_E_FORMAT, "%s: names more than %d end tokens", where, MM2_MAX_ENDS);
    c->ends[c->end_count++] = (int32_t)id;
    c->eos = c->ends[0];
    return MM2_OK;
}

mm2_status mm2_entry_shape(mm2_entry *e, int32_t dtype, int32_t ndim, const int64_t *shape)
{
    mm2_tensor *v = &e->view;
    const mm2_dtype_facts *facts = mm2_dtype_find(dtype);
    *v = (mm2_tensor){.ndim = ndim, .dtype = dtype};
    if (ndim && shape[ndim - 1] % facts->block)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: tensor \"%s\": rows of %lld elements, expected a multiple of %d, the "
                        "block of %s",
                        e->file, e->name, (long long)shape[ndim - 1], facts->block, facts->name);
    int64_t elements = 1;
    for (int32_t i = ndim - 1; i >= 0; i--) {
        v->shape[i] = shape[i];
        v->strides[i] = elements;
        if (shape[i] < 0 || shape[i] > (int64_t)1 << MM2_MAX_DIMENSION_BITS ||
            __builtin_mul_overflow(elements, shape[i], &elements))
            return mm2_fail(MM2_E_FORMAT,
                            "%s: tensor \"%s\": dimension %d is %lld: too large for any memory",
                            e->file, e->name, i, (long long)shape[i]);
    }
    v->nbytes = mm2_dtype_row_bytes(dtype, elements);
    if (v->nbytes < 0)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: tensor \"%s\": %lld elements are too large for any memory", e->file,
                        e->name, (long long)elements);
    return MM2_OK;
}
