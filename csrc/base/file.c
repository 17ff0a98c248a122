/* A checkpoint is mapped, never read: opening costs milliseconds and two processes share the pages.
 * MAP_PRIVATE keeps writers (MM2_WRITABLE) away from the file. A file that is cut short while it is
 * mapped faults on access like any map; sizes are therefore checked against the size at open,
 * before any kernel runs.
 *
 * Names out of an index file are plain: one component below the model's directory, so a file can name
 * no place outside it. Symbolic links are followed: download caches are made of them, and whoever
 * can put a link there can put a file there. */
#include "base/file.h"

#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

mm2_status mm2_file_fail(const char *path, const char *doing)
{
    char text[128];
    int code = errno;
    if (strerror_r(code, text, sizeof text) != 0)
        mm2_format(text, sizeof text, "error %d", code);
    return mm2_fail(code == ENOMEM ? MM2_E_NOMEM : MM2_E_IO, "%s: cannot %s: %s", path, doing,
                    text);
}

static mm2_status map_file(mm2_file *f, int fd, int writable)
{
    struct stat facts;
    if (fstat(fd, &facts))
        return mm2_file_fail(f->path, "read its size");
    if (!S_ISREG(facts.st_mode))
        return mm2_fail(MM2_E_IO, "%s: expected a regular file, found a %s", f->path,
                        S_ISDIR(facts.st_mode) ? "directory" : "special file");
    f->size = facts.st_size;
    if (!f->size)
        return MM2_OK;
    int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    void *data = mmap(NULL, (size_t)f->size, protection,
                      MAP_PRIVATE | (writable ? MAP_NORESERVE : 0), fd, 0);
    if (data == MAP_FAILED)
        return mm2_file_fail(f->path, "map it into memory");
    f->data = data;
    return MM2_OK;
}

mm2_status mm2_file_open(mm2_file *f, const char *path, int writable)
{
    *f = (mm2_file){.path = strdup(path)};
    if (!f->path)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    /* O_NONBLOCK: a FIFO must be refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    mm2_status status = fd < 0 ? mm2_file_fail(path, "open it") : map_file(f, fd, writable);
    if (fd >= 0)
        close(fd);
    if (status)
        mm2_file_close(f);
    return status;
}

void mm2_file_close(mm2_file *f)
{
    if (f->data)
        munmap(f->data, (size_t)f->size);
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
