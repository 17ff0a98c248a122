/* Which container a path holds, and opening it with its reader. */
#ifndef MM2_CONTAINER_H
#define MM2_CONTAINER_H

#include "model/checkpoint.h"

/* out becomes the path to open, owned by the caller, and *format "safetensors" (a directory) or
 * "gguf" (a file: of a directory, the only one or a part of the only set). IO or FORMAT. */
mm2_status mm2_container_locate(char **out, const char **format, const char *path);
/* Opens and validates the container (files, extents, dtypes, duplicate names) and its
 * configuration. `flags`: MM2_WRITABLE, MM2_IN_MEMORY. On failure nothing is left open. */
mm2_status mm2_container_open(mm2_checkpoint *c, const char *path, uint32_t flags);
void mm2_container_close(mm2_checkpoint *c); /* idempotent */

#endif
