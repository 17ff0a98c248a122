/* Files, read-only: the map or a copy of a whole file, and directories without surprises. */
#ifndef MM2_FILE_H
#define MM2_FILE_H

#include "minimax2.h"

enum {
    MM2_FILE_WRITABLE = 1, /* the memory may be written to; the file is never */
    MM2_FILE_COPY = 2,     /* memory of its own instead of a map, filled by mm2_file_fill */
    MM2_FILE_WATCH = 4     /* keeps the file's descriptor, for mm2_file_check */
};

typedef struct mm2_file {
    const char *path; /* owned copy, for sentences */
    uint8_t *data;    /* the map or copy; NULL for an empty file */
    int64_t size;     /* bytes at open; nothing beyond is touched */
    int64_t modified; /* nanoseconds, at open */
    int32_t flags;    /* MM2_FILE_* */
    int32_t is_open;  /* also if there is no data */
    int32_t watch;    /* the descriptor + 1 while it is kept; 0: none */
} mm2_file;

/* Opens close-on-exec and maps a regular file: read-only, or copy-on-write with MM2_FILE_WRITABLE.
 * IO or NOMEM with a sentence that names the path; directories, FIFOs and devices are refused. */
mm2_status mm2_file_open(mm2_file *f, const char *path, int32_t flags);
/* Reads a file that was opened with MM2_FILE_COPY. IO, also if it is cut short or written to
 * meanwhile. Others: nothing to do. */
mm2_status mm2_file_fill(mm2_file *f);
/* Bytes [at, at + bytes) of a file that was opened with MM2_FILE_WATCH or MM2_FILE_COPY, not yet
 * filled, by reading: no fault if it is cut short meanwhile, but IO. */
mm2_status mm2_file_read(const mm2_file *f, int64_t at, void *out, int64_t bytes);
/* IO if the file of a map was cut short, or written to, since it was opened. A file that was
 * replaced by renaming another has not changed. Needs MM2_FILE_WATCH; others: OK. About a
 * microsecond. */
mm2_status mm2_file_check(const mm2_file *f);
void mm2_file_close(mm2_file *f); /* idempotent */

/* "path: cannot do it: what errno says": IO, or NOMEM. */
mm2_status mm2_file_fail(const char *path, const char *doing);

/* dir + "/" + name as a fresh string. The name must be one plain component ("model.gguf"): a path,
 * "..", an empty or an over-long one fails with FORMAT and a sentence that calls it `what`. */
mm2_status mm2_file_join(char **out, const char *dir, const char *name, const char *what);
int mm2_file_is_directory(const char *path);
/* 1: something is there; it may still be no regular file. 0: nothing. IO, or NOMEM: it cannot be
 * looked at, or is a link that leads nowhere. */
int32_t mm2_file_exists(const char *path);

#endif
