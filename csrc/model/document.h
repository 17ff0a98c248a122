/* A small JSON document of a checkpoint's directory as jansson's tree. */
#ifndef MM2_DOCUMENT_H
#define MM2_DOCUMENT_H

#include "minimax2.h"

#include <jansson.h>

typedef struct mm2_document {
    char *path;   /* for sentences */
    json_t *root; /* an object; NULL if there is no such file */
} mm2_document;

/* IO, NOMEM, or FORMAT if the file is no JSON object of at most MM2_MAX_CONFIG bytes or has a key
 * twice. Close it in any case. */
mm2_status mm2_document_open(mm2_document *d, const char *directory, const char *name);
void mm2_document_close(mm2_document *d);
/* NULL where the field is absent or null: the family's files write both. */
const json_t *mm2_document_field(const json_t *object, const char *name);
/* "a string", "a whole number", ... */
const char *mm2_document_kind(const json_t *value);

#endif
