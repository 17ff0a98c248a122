/* A file is a header, all tokens up to the end of the page, and the cells as they lie in memory:
 *
 *     header | tokens | cells
 *
 * each at a multiple of 64 bytes. Its name is a hash of the model, the kv_dtype and the tokens; what
 * it says itself is compared, not its name. It is read, never mapped, so nobody minds if it goes or is
 * cut short meanwhile. It takes its name when it is whole, but is not brought to the disk at once: what
 * a power failure makes of it does not fit its checksums, and it can be computed again.
 *
 * The folder may be shared by processes with other models, so room is made among all files with names
 * of this kind: whoever wants to write looks at all of them, and removes those that were used longest
 * ago, by their time of modification, which reading renews. Temporary files of writers that were
 * killed go when they are old. */
#include "run/prefix_file.h"

#include "base/checksum.h"
#include "base/output.h"
#include "base/status.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    FORMAT = 1,
    ORDER = 0x01020304,
    DIGITS = 16,
    NAME = DIGITS + 11, /* with ".mm2prefix" and the end */
    HOUR = 3600
};

static const char magic[16] = "minimax2 prefix";
static const char suffix[] = ".mm2prefix";

typedef struct header {
    char magic[16];
    uint32_t order, format, numerics;
    int32_t kv_dtype;
    int32_t count; /* of tokens */
    int32_t reserved;
    int64_t bytes; /* of the file */
    uint64_t layout;
    mm2_fingerprint model;
    uint64_t tokens_sum, cells_sum;
    uint64_t sum; /* of all before it */
} header;
_Static_assert(sizeof(header) == 304, "another header is another FORMAT");

static int64_t tokens_at(void)
{
    return ((int64_t)sizeof(header) + 63) / 64 * 64;
}

static int64_t cells_at(int32_t count)
{
    return tokens_at() + ((int64_t)count * (int64_t)sizeof(int32_t) + 63) / 64 * 64;
}

void mm2_prefix_files_init(mm2_prefix_files *f, const mm2_model *m)
{
    *f = (mm2_prefix_files){.model = m, .folder = m->prefixes.folder, .limit = m->prefixes.disk};
    mm2_fingerprint_of(m, &f->fingerprint);
    mm2_fingerprint same = f->fingerprint; /* without what may differ */
    memset(same.weights, 0, sizeof same.weights);
    same.config.max_position_embeddings = 0;
    f->base = mm2_checksum(&same, sizeof same) ^ MM2_NUMERICS;
}

/* The path of a page's file, owned; NULL without memory. */
static char *path_of(const mm2_prefix_files *f, const mm2_prefix_key *key)
{
    uint64_t both[2] = {f->base, key->hash}, sum = mm2_checksum(both, sizeof both);
    char name[NAME], *path;
    for (int32_t i = 0; i < DIGITS; i++)
        name[i] = "0123456789abcdef"[sum >> (60 - 4 * i) & 15];
    memcpy(name + DIGITS, suffix, sizeof suffix);
    return mm2_file_join(&path, f->folder, name, "the name of a page") ? NULL : path;
}

static header header_of(const mm2_prefix_files *f, const mm2_prefix_key *key)
{
    header h;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, magic, sizeof magic);
    h.order = ORDER;
    h.format = FORMAT;
    h.numerics = MM2_NUMERICS;
    h.kv_dtype = key->kv_dtype;
    h.count = key->count;
    h.bytes = cells_at(key->count) + key->layout->page_bytes;
    h.layout = mm2_layout_sum(key->layout);
    h.model = f->fingerprint;
    h.tokens_sum = mm2_checksum(key->tokens, (int64_t)key->count * (int64_t)sizeof(int32_t));
    return h;
}

/* ---- Reading ---- */

static mm2_status damaged(const mm2_file *f)
{
    return mm2_fail(MM2_E_FORMAT, "%s: is damaged, or holds something else", f->path);
}

/* Is this the file of the page? What follows from the page itself is compared as a whole, but for the
 * fingerprint, of which not all must be the same. */
static mm2_status check(const mm2_prefix_files *f, const mm2_prefix_key *key, const mm2_file *file,
                        header *found)
{
    header ours = header_of(f, key);
    mm2_status status = MM2_OK;
    if (file->size != ours.bytes)
        return damaged(file);
    status = mm2_file_read(file, 0, found, sizeof *found);
    if (status)
        return status;
    if (found->sum != mm2_checksum(found, offsetof(header, sum)) ||
        memcmp(found, &ours, offsetof(header, model)) || found->tokens_sum != ours.tokens_sum ||
        mm2_fingerprint_compare(&found->model, &ours.model, f->model, file->path))
        return damaged(file);
    int64_t bytes = (int64_t)key->count * (int64_t)sizeof(int32_t);
    int32_t *tokens = malloc((size_t)bytes);
    if (!tokens)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while reading it", file->path);
    status = mm2_file_read(file, tokens_at(), tokens, bytes);
    if (!status && memcmp(tokens, key->tokens, (size_t)bytes))
        status = damaged(file);
    free(tokens);
    return status;
}

static mm2_status read_page(const mm2_prefix_files *f, const mm2_prefix_key *key,
                            const mm2_file *file, mm2_page **out)
{
    header h;
    int64_t bytes = key->layout->page_bytes;
    mm2_status status = check(f, key, file, &h);
    if (status)
        return status;
    mm2_page *page = mm2_page_new(key->layout);
    if (!page)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while reading it", file->path);
    status = mm2_file_read(file, cells_at(key->count), page->data, bytes);
    if (!status && mm2_checksum(page->data, bytes) != h.cells_sum)
        status = damaged(file);
    if (status)
        mm2_page_release(page, bytes);
    else
        *out = page;
    return status;
}

mm2_status mm2_prefix_read(const mm2_prefix_files *f, const mm2_prefix_key *key, mm2_page **out)
{
    mm2_file file;
    char *path = path_of(f, key);
    if (!path)
        return MM2_E_NOMEM;
    mm2_status status = access(path, F_OK) ? MM2_MORE : MM2_OK;
    if (!status)
        status = mm2_file_open(&file, path, MM2_FILE_WATCH);
    if (!status) {
        status = read_page(f, key, &file, out);
        mm2_file_close(&file);
        if (status == MM2_E_FORMAT)
            unlink(path);
        else if (!status)
            utimensat(AT_FDCWD, path, NULL, 0); /* where that is not allowed it goes sooner */
    }
    free(path);
    return status;
}

void mm2_prefix_touch(const mm2_prefix_files *f, const mm2_prefix_key *key)
{
    char *path = path_of(f, key);
    if (path)
        utimensat(AT_FDCWD, path, NULL, 0);
    free(path);
}

/* ---- Room ---- */

typedef struct found {
    char name[NAME + 4]; /* also with ".tmp" */
    int64_t bytes;
    struct timespec used;
} found;

typedef struct listing {
    found *files;
    size_t count, room;
    int64_t bytes; /* of all */
} listing;

/* 1: a page's file; 2: one that is being written; 0: not ours. */
static int kind_of(const char *name)
{
    if (strspn(name, "0123456789abcdef") != DIGITS ||
        strncmp(name + DIGITS, suffix, NAME - DIGITS - 1))
        return 0;
    const char *end = name + NAME - 1;
    return !*end ? 1 : !strcmp(end, ".tmp") ? 2 : 0;
}

static int add(listing *l, DIR *folder, const char *name)
{
    struct stat facts;
    int kind = kind_of(name);
    if (!kind || fstatat(dirfd(folder), name, &facts, AT_SYMLINK_NOFOLLOW) ||
        !S_ISREG(facts.st_mode))
        return 1;
    l->bytes += facts.st_size;
    if (kind == 2 && facts.st_mtim.tv_sec > time(NULL) - HOUR)
        return 1; /* its writer may be at work */
    if (l->count == l->room) {
        size_t room = l->room ? l->room * 2 : 64;
        found *files = realloc(l->files, room * sizeof *files);
        if (!files)
            return 0;
        l->files = files;
        l->room = room;
    }
    found *file = &l->files[l->count++];
    strcpy(file->name, name);
    file->bytes = facts.st_size;
    file->used = facts.st_mtim;
    return 1;
}

static int older_first(const void *left, const void *right)
{
    const struct timespec *a = &((const found *)left)->used, *b = &((const found *)right)->used;
    if (a->tv_sec != b->tv_sec)
        return a->tv_sec < b->tv_sec ? -1 : 1;
    return (a->tv_nsec > b->tv_nsec) - (a->tv_nsec < b->tv_nsec);
}

/* Removes files until `bytes` more fit. */
static mm2_status make_room(const mm2_prefix_files *f, int64_t bytes, int64_t *removed)
{
    if (bytes > f->limit)
        return mm2_fail(MM2_E_IO, "%s: a page takes %lld bytes there, and prefix_disk is %lld",
                        f->folder, (long long)bytes, (long long)f->limit);
    DIR *folder = opendir(f->folder);
    if (!folder)
        return mm2_file_fail(f->folder, "list it");
    listing l = {0};
    int fits = 1;
    for (const struct dirent *at; fits && (at = readdir(folder));)
        fits = add(&l, folder, at->d_name);
    if (fits && l.count)
        qsort(l.files, l.count, sizeof *l.files, older_first);
    for (size_t i = 0; fits && i < l.count && l.bytes > f->limit - bytes; i++) {
        *removed += !unlinkat(dirfd(folder), l.files[i].name, 0);
        l.bytes -= l.files[i].bytes; /* if it is not ours to remove, nor are others */
    }
    free(l.files);
    closedir(folder);
    return fits ? MM2_OK : mm2_fail(MM2_E_NOMEM, "%s: out of memory while listing it", f->folder);
}

/* ---- Writing ---- */

static mm2_status write_parts(mm2_output *file, const mm2_prefix_key *key, const mm2_page *page,
                              header *h)
{
    int64_t bytes = key->layout->page_bytes;
    h->cells_sum = mm2_checksum(page->data, bytes);
    h->sum = mm2_checksum(h, offsetof(header, sum));
    mm2_status status = mm2_output_write(file, cells_at(key->count), page->data, bytes);
    if (!status)
        status = mm2_output_write(file, tokens_at(), key->tokens,
                                  (int64_t)key->count * (int64_t)sizeof(int32_t));
    if (!status)
        status = mm2_output_write(file, 0, h, sizeof *h);
    return status;
}

static mm2_status write_file(const mm2_prefix_files *f, const char *path, const mm2_prefix_key *key,
                             const mm2_page *page, int64_t *removed)
{
    mm2_output file;
    header h = header_of(f, key);
    mm2_status status = make_room(f, h.bytes, removed);
    if (!status)
        status = mm2_output_open(&file, path, h.bytes);
    if (status)
        return status == MM2_E_BUSY ? MM2_MORE : status;
    status = write_parts(&file, key, page, &h);
    if (!status)
        return mm2_output_publish(&file);
    mm2_output_drop(&file);
    return status;
}

mm2_status mm2_prefix_write(const mm2_prefix_files *f, const mm2_prefix_key *key,
                            const mm2_page *page, int64_t *removed)
{
    char *path = path_of(f, key);
    if (!path)
        return MM2_E_NOMEM;
    mm2_status status = MM2_MORE;
    if (access(path, F_OK))
        status = write_file(f, path, key, page, removed);
    else
        utimensat(AT_FDCWD, path, NULL, 0);
    free(path);
    return status;
}
