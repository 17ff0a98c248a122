/* A small JSON value as a read-only tree, built by the pull reader: for documents whose fields are
 * looked up in any order. */
#ifndef MM2_JSON_TREE_H
#define MM2_JSON_TREE_H

#include "base/json.h"

enum { /* mm2_value.kind */
       MM2_VALUE_NULL,
       MM2_VALUE_FALSE,
       MM2_VALUE_TRUE,
       MM2_VALUE_NUMBER,
       MM2_VALUE_STRING,
       MM2_VALUE_ARRAY,
       MM2_VALUE_OBJECT
};

typedef struct mm2_value {
    const char *text;     /* of a string, decoded, or of a number, as written; terminated */
    uint32_t size;        /* bytes of the text, items of an array, fields of an object */
    uint32_t kind : 3;    /* MM2_VALUE_... */
    uint32_t extent : 29; /* values that this one consists of, itself counted */
} mm2_value;

typedef struct mm2_json_tree {
    mm2_value *values; /* NULL: nothing read; the first one is the root */
    char *texts;
} mm2_json_tree;

/* Reads the value that `j` stands before. NOMEM, or FORMAT: not JSON, nested deeper than
 * MM2_JSON_DEPTH, more than 1 MiB, or an object with a key twice. After a failure there is nothing
 * to free. */
mm2_status mm2_json_tree_read(mm2_json_tree *t, mm2_json *j);
void mm2_json_tree_free(mm2_json_tree *t); /* idempotent */

/* All of these take NULL for a value that is not there; nothing is found in it. */

/* NULL where the field is absent or null: files write both for the same thing. */
const mm2_value *mm2_value_field(const mm2_value *object, const char *key);
/* The item behind `item`, the first one behind NULL; NULL behind the last. */
const mm2_value *mm2_value_next(const mm2_value *array, const mm2_value *item);
/* The key behind `key` in an object, the first one behind NULL; NULL behind the last. Its value lies
 * behind it. */
const mm2_value *mm2_value_key(const mm2_value *object, const mm2_value *key);
/* NULL if there are fewer. Steps over all items before it. */
const mm2_value *mm2_value_item(const mm2_value *array, uint32_t index);
/* Items; 0 if it is no array. */
uint32_t mm2_value_count(const mm2_value *array);
/* The text of a string; NULL if it is none. */
const char *mm2_value_text(const mm2_value *v);
/* Is it a string and this one? */
int mm2_value_says(const mm2_value *v, const char *text);
/* 1 and the value if it is of this kind and fits: a whole number of 64 bits, a number that a double
 * holds, true or false. Else 0, and *out is left alone. A number of at most 15 digits and 22 powers
 * of ten is rounded right; others may be one unit of a double's last place away. */
int mm2_value_is_whole(const mm2_value *v); /* whether it fits or not */
int mm2_value_integer(const mm2_value *v, int64_t *out);
int mm2_value_number(const mm2_value *v, double *out);
int mm2_value_flag(const mm2_value *v, int32_t *out);
/* "a string", "a whole number", ...; "nothing" if it is not there. */
const char *mm2_value_kind(const mm2_value *v);

static inline int mm2_value_is(const mm2_value *v, int kind)
{
    return v && (int)v->kind == kind;
}

#endif
