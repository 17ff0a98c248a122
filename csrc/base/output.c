/* A file is written under another name in the same folder, brought to the disk, renamed, and then the
 * folder is brought to the disk: whatever stops the process or the machine, the name leads to the
 * old file or to the new one, each of them whole.
 *
 * The other name is always the same, so a process that was killed leaves one file at most, which the
 * next one takes over. A lock on it keeps two writers of one file apart; the system drops it with
 * its holder. Between the opening and the lock another writer may have renamed the file: who has the
 * lock looks whether the name still leads to what is locked.
 *
 * Where the system limits the size of files (RLIMIT_FSIZE), writing beyond it would send a signal
 * that ends the process: the limit is looked at first. Dirty memory goes to the disk while it is
 * written, in parts, so that the end does not wait for all of it. */
#include "base/output.h"

#include "base/file.h"
#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h> /* rename */
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SLICE = 1 << 28 }; /* bytes of one write, and between two flushes */

static void end(mm2_output *o)
{
    if (o->folder >= 0)
        close(o->folder);
    if (o->fd >= 0)
        close(o->fd); /* and gives the lock up */
    free(o->path);
    free(o->temporary);
    *o = (mm2_output){.fd = -1, .folder = -1};
}

void mm2_output_drop(mm2_output *o)
{
    if (o->fd >= 0)
        unlink(o->temporary);
    end(o);
}

/* Before anything is written. */
static mm2_status check_place(const mm2_output *o)
{
    struct stat facts;
    struct rlimit most;
    if (!stat(o->path, &facts) && !S_ISREG(facts.st_mode))
        return mm2_fail(MM2_E_IO, "%s: is a %s; give the name of a file", o->path,
                        S_ISDIR(facts.st_mode) ? "directory" : "special file");
    if (!getrlimit(RLIMIT_FSIZE, &most) && most.rlim_cur != RLIM_INFINITY &&
        (uint64_t)o->size > (uint64_t)most.rlim_cur)
        return mm2_fail(MM2_E_IO,
                        "%s: needs %lld bytes, and this process may write files of %llu at most "
                        "(ulimit -f)",
                        o->path, (long long)o->size, (unsigned long long)most.rlim_cur);
    return MM2_OK;
}

/* No link is followed, and a FIFO is not waited for. */
static int open_temporary(const mm2_output *o, int *found)
{
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    int fd = open(o->temporary, flags | O_CREAT | O_EXCL, 0666);
    *found = fd < 0 && errno == EEXIST;
    return *found ? open(o->temporary, flags) : fd;
}

/* Opens and locks the temporary file: OK; MORE if it was renamed meanwhile; or an error. */
static mm2_status lock(mm2_output *o)
{
    struct stat mine, named;
    int found, fd = open_temporary(o, &found);
    if (fd < 0)
        return found && errno == ENOENT ? MM2_MORE : mm2_file_fail(o->temporary, "write it");
    mm2_status status = MM2_MORE;
    if (flock(fd, LOCK_EX | LOCK_NB))
        status = errno == EWOULDBLOCK
                     ? mm2_fail(MM2_E_BUSY, "%s: another thread or process is writing it", o->path)
                     : mm2_file_fail(o->temporary, "lock it");
    else if (fstat(fd, &mine))
        status = mm2_file_fail(o->temporary, "look at it");
    else if (!S_ISREG(mine.st_mode) || (found && mine.st_uid != geteuid()))
        status = mm2_fail(MM2_E_IO, "%s: is in the way, and no file of this user: remove it",
                          o->temporary);
    else if (!lstat(o->temporary, &named) && named.st_ino == mine.st_ino &&
             named.st_dev == mine.st_dev)
        status = MM2_OK;
    if (status)
        close(fd);
    else
        o->fd = fd;
    return status;
}

/* The names, and the folder. */
static mm2_status name_files(mm2_output *o, const char *path)
{
    static const char suffix[] = ".tmp";
    const char *slash = strrchr(path, '/');
    size_t length = strlen(path), before = slash ? (size_t)(slash - path) + 1 : 0;
    o->path = strdup(path);
    o->temporary = malloc(length + sizeof suffix);
    if (!o->path || !o->temporary)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while writing it", path);
    memcpy(o->temporary, path, before); /* for a moment the folder's name */
    o->temporary[before] = 0;
    o->folder = open(before ? o->temporary : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (o->folder < 0)
        return mm2_file_fail(path, "open its folder");
    memcpy(o->temporary, path, length);
    memcpy(o->temporary + length, suffix, sizeof suffix);
    return MM2_OK;
}

mm2_status mm2_output_open(mm2_output *o, const char *path, int64_t size)
{
    *o = (mm2_output){.fd = -1, .folder = -1, .size = size};
    mm2_status status = name_files(o, path);
    if (!status)
        status = check_place(o);
    if (!status)
        while ((status = lock(o)) == MM2_MORE)
            ;
    /* What a killed process has left goes first. */
    if (!status && (ftruncate(o->fd, 0) || ftruncate(o->fd, size)))
        status = mm2_file_fail(path, "make room for it");
    if (status)
        mm2_output_drop(o);
    return status;
}

mm2_status mm2_output_write(mm2_output *o, int64_t at, const void *data, int64_t bytes)
{
    const char *from = data;
    while (bytes > 0) {
        int64_t slice = bytes < SLICE ? bytes : SLICE;
        ssize_t count = pwrite(o->fd, from, (size_t)slice, at);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return mm2_file_fail(o->path, "write it");
        from += count;
        at += count;
        bytes -= count;
        o->behind += count;
        if (o->behind >= SLICE && fdatasync(o->fd))
            return mm2_file_fail(o->path, "bring it to the disk");
        o->behind %= SLICE;
    }
    return MM2_OK;
}

/* Gives the file its name; `status`: how it went until here. */
static mm2_status name_it(mm2_output *o, mm2_status status)
{
    if (!status && rename(o->temporary, o->path))
        status = mm2_file_fail(o->path, "give it its name");
    if (status)
        mm2_output_drop(o);
    return status;
}

mm2_status mm2_output_commit(mm2_output *o)
{
    mm2_status status = fsync(o->fd) ? mm2_file_fail(o->path, "bring it to the disk") : MM2_OK;
    status = name_it(o, status);
    if (status)
        return status;
    if (fsync(o->folder) && errno != EINVAL) { /* EINVAL: there is nothing to bring to the disk */
        status = mm2_file_fail(o->path, "bring its folder to the disk");
        mm2_fail_in(status, "the new file is there, but may not outlast a power failure");
    }
    end(o);
    return status;
}

mm2_status mm2_output_publish(mm2_output *o)
{
    mm2_status status = name_it(o, MM2_OK);
    if (!status)
        end(o);
    return status;
}
