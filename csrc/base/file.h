/* Files, read-only: the map of a whole file, and directories without surprises. */
#ifndef MM2_FILE_H
#define MM2_FILE_H

#include "minimax2.h"

typedef struct mm2_file {
    const char *path; /* owned copy, for sentences */
    uint8_t *data;    /* the map; NULL for an empty file */
    int64_t size;     /* bytes at open; nothing beyond is touched */
} mm2_file;

/* Opens close-on-exec and maps a regular file: read-only, or copy-on-write with `writable`. IO or
 * NOMEM with a sentence that names the path; directories, FIFOs and devices are refused. */
mm2_status mm2_file_open(mm2_file *f, const char *path, int writable);
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
