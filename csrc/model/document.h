/* A small JSON document of a checkpoint's directory. */
#ifndef MM2_DOCUMENT_H
#define MM2_DOCUMENT_H

#include "base/json_tree.h"

typedef struct mm2_document {
    char *path; /* for sentences */
    mm2_json_tree tree;
    const mm2_value *root; /* an object; NULL if there is no such file */
} mm2_document;

/* IO, NOMEM, or FORMAT if the file is no JSON object of at most MM2_MAX_CONFIG bytes or has a key
 * twice. Close it in any case. */
mm2_status mm2_document_open(mm2_document *d, const char *directory, const char *name);
void mm2_document_close(mm2_document *d);

#endif
