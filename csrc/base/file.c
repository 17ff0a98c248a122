/* A checkpoint is mapped: opening costs milliseconds and two processes share the pages. MAP_PRIVATE
 * keeps writers (MM2_FILE_WRITABLE) away from the file. A file that is cut short while it is mapped
 * faults on access like any map. Sizes are therefore checked against the size at open, and who
 * keeps the descriptor can ask before each run whether the file is still as it was. A copy
 * (MM2_FILE_COPY) never faults: it has memory of its own, filled once.
 *
 * Names out of an index file are plain: one component below the model's directory, so a file can
 * name no place outside it. Symbolic links are followed: download caches are made of them, and
 * whoever can put a link there can put a file there. */
#include "base/file.h"

#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SLICE = 1 << 28 }; /* bytes of one read, far below what the system takes at once */

mm2_status mm2_file_fail(const char *path, const char *doing)
{
    char text[128];
    int code = errno;
    if (strerror_r(code, text, sizeof text) != 0)
        mm2_format(text, sizeof text, "error %d", code);
    return mm2_fail(code == ENOMEM ? MM2_E_NOMEM : MM2_E_IO, "%s: cannot %s: %s", path, doing,
                    text);
}

static int64_t modification(const struct stat *facts)
{
    return (int64_t)((uint64_t)facts->st_mtim.tv_sec * 1000000000u +
                     (uint64_t)facts->st_mtim.tv_nsec);
}

static mm2_status map_file(mm2_file *f, int fd)
{
    struct stat facts;
    if (fstat(fd, &facts))
        return mm2_file_fail(f->path, "read its size");
    if (!S_ISREG(facts.st_mode))
        return mm2_fail(MM2_E_IO, "%s: expected a regular file, found a %s", f->path,
                        S_ISDIR(facts.st_mode) ? "directory" : "special file");
    f->size = facts.st_size;
    f->modified = modification(&facts);
    if (!f->size)
        return MM2_OK;
    int is_copy = (f->flags & MM2_FILE_COPY) != 0,
        is_writable = (f->flags & MM2_FILE_WRITABLE) != 0;
    int protection = PROT_READ | (is_copy || is_writable ? PROT_WRITE : 0);
    /* Whoever fills copies compares their sizes with the memory that is left. */
    int kind =
        MAP_PRIVATE | (is_copy || is_writable ? MAP_NORESERVE : 0) | (is_copy ? MAP_ANONYMOUS : 0);
    void *data = mmap(NULL, (size_t)f->size, protection, kind, is_copy ? -1 : fd, 0);
    if (data == MAP_FAILED)
        return mm2_file_fail(f->path,
                             is_copy ? "have memory for a copy of it" : "map it into memory");
    f->data = data;
    return MM2_OK;
}

mm2_status mm2_file_open(mm2_file *f, const char *path, int32_t flags)
{
    *f = (mm2_file){.path = strdup(path), .flags = flags};
    if (!f->path)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    /* O_NONBLOCK: a FIFO must be refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    mm2_status status = fd < 0 ? mm2_file_fail(path, "open it") : map_file(f, fd);
    if (!status && flags & (MM2_FILE_COPY | MM2_FILE_WATCH))
        f->watch = fd + 1;
    else if (fd >= 0)
        close(fd);
    f->is_open = !status;
    if (status)
        mm2_file_close(f);
    return status;
}

static mm2_status compare(const mm2_file *f)
{
    struct stat facts;
    if (fstat(f->watch - 1, &facts))
        return mm2_file_fail(f->path, "look at it again");
    if (facts.st_size < f->size)
        return mm2_fail(MM2_E_IO,
                        "%s: was cut short from %lld to %lld bytes while it was open: restore the "
                        "file and open it again",
                        f->path, (long long)f->size, (long long)facts.st_size);
    if (facts.st_size != f->size || modification(&facts) != f->modified)
        return mm2_fail(MM2_E_IO,
                        "%s: was written to while it was open: open it again, and replace such "
                        "files by renaming",
                        f->path);
    return MM2_OK;
}

mm2_status mm2_file_read(const mm2_file *f, int64_t at, void *out, int64_t bytes)
{
    char *to = out;
    while (bytes > 0) {
        int64_t slice = bytes < SLICE ? bytes : SLICE;
        ssize_t count = pread(f->watch - 1, to, (size_t)slice, at);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return mm2_file_fail(f->path, "read it");
        if (!count)
            return mm2_fail(MM2_E_IO, "%s: ended at byte %lld of %lld: was it cut short?", f->path,
                            (long long)at, (long long)f->size);
        to += count;
        at += count;
        bytes -= count;
    }
    return MM2_OK;
}

mm2_status mm2_file_fill(mm2_file *f)
{
    if (!(f->flags & MM2_FILE_COPY) || !f->watch)
        return MM2_OK;
    mm2_status status = mm2_file_read(f, 0, f->data, f->size);
    if (!status)
        status = compare(f);
    if (!status && f->size && !(f->flags & MM2_FILE_WRITABLE) &&
        mprotect(f->data, (size_t)f->size, PROT_READ))
        status = mm2_file_fail(f->path, "protect its copy");
    close(f->watch - 1);
    f->watch = 0;
    return status;
}

mm2_status mm2_file_check(const mm2_file *f)
{
    return f->watch && !(f->flags & MM2_FILE_COPY) ? compare(f) : MM2_OK;
}

void mm2_file_close(mm2_file *f)
{
    if (f->data)
        munmap(f->data, (size_t)f->size);
    if (f->watch)
        close(f->watch - 1);
    free((char *)f->path);
    *f = (mm2_file){0};
}

mm2_status mm2_file_join(char **out, const char *dir, const char *name, const char *what)
{
    size_t length = strlen(name);
    if (!length || length > 255 || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
        return mm2_fail(MM2_E_FORMAT,
                        "%s: %s \"%.*s\" must be the plain name of a file in this directory", dir,
                        what, (int)(length > 200 ? 200 : length), name);
    *out = malloc(strlen(dir) + length + 2);
    if (!*out)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while building a file name", dir);
    strcpy(*out, dir);
    strcat(*out, "/");
    strcat(*out, name);
    return MM2_OK;
}

int mm2_file_is_directory(const char *path)
{
    struct stat facts;
    return !stat(path, &facts) && S_ISDIR(facts.st_mode);
}

int32_t mm2_file_exists(const char *path)
{
    struct stat facts;
    if (!stat(path, &facts))
        return 1;
    if (errno != ENOENT)
        return mm2_file_fail(path, "look at it");
    if (lstat(path, &facts))
        return errno == ENOENT ? 0 : mm2_file_fail(path, "look at it");
    return mm2_fail(MM2_E_IO, "%s: is a link to a file that does not exist", path);
}
