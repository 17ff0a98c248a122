/* Files that are written whole or not at all. */
#ifndef MM2_OUTPUT_H
#define MM2_OUTPUT_H

#include "minimax2.h"

typedef struct mm2_output {
    char *path, *temporary; /* owned */
    int fd, folder;
    int64_t size;   /* that it will have */
    int64_t behind; /* bytes that the system has not yet been told to write */
} mm2_output;

/* Begins a file of `size` bytes, zero until they are written, that will be called `path`: until then
 * it is `path`.tmp beside it. IO, NOMEM, or BUSY if somebody else is writing the same file; then
 * there is nothing to drop. What `path` names stays as it is; it must be a regular file, or nothing.
 */
mm2_status mm2_output_open(mm2_output *o, const char *path, int64_t size);
/* Within the size, in any order. IO. */
mm2_status mm2_output_write(mm2_output *o, int64_t at, const void *data, int64_t bytes);
/* Brings the file to the disk and gives it its name. Ends the output, whatever it answers. IO: the old
 * file stands, unless the sentence says otherwise. */
mm2_status mm2_output_commit(mm2_output *o);
/* The same, but a power failure may leave the name with a damaged file: for what has checksums, and can
 * be made again. */
mm2_status mm2_output_publish(mm2_output *o);
/* Ends it without a trace. */
void mm2_output_drop(mm2_output *o);

#endif
