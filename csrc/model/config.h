/* The configuration, from either container, held against what the family says of each key. */
#ifndef MM2_CONFIG_H
#define MM2_CONFIG_H

#include "model/family.h"

enum { /* mm2_given.kind */
       MM2_GIVEN_NOTHING,
       MM2_GIVEN_NUMBER,
       MM2_GIVEN_FLAG,
       MM2_GIVEN_TEXT,
       MM2_GIVEN_LIST,
       MM2_GIVEN_OTHER
};

/* What a file gives for a key. */
typedef struct mm2_given {
    int32_t kind;     /* MM2_GIVEN_* */
    int32_t is_whole; /* NUMBER: one without a fraction */
    int64_t whole;    /* of a whole number, at the end of the range if it is beyond it */
    double number;    /* of a number; 0 or 1 of a flag */
    int64_t count;    /* LIST: items */
    const char *what; /* "a string", "float32": its kind in a sentence; static */
    char text[64];    /* as a sentence shows it; of a TEXT its beginning, cleaned */
} mm2_given;

/* A container's keys. */
typedef struct mm2_source {
    const char *where;  /* the file to name in sentences */
    const char *prefix; /* in front of the keys in sentences */
    int is_gguf;
    const void *data;
    /* Item `item` of a list, or the value itself with -1. */
    void (*get)(const struct mm2_source *s, const char *key, int32_t item, mm2_given *out);
} mm2_source;

/* Sets *k from the family's defaults and facts. FORMAT, or UNSUPPORTED with a sentence that names
 * the key and what it says. Ranges are not checked: mm2_config_check. */
mm2_status mm2_config_read(mm2_config *k, const mm2_family *family, const mm2_source *s);
/* Field by field range checks, with a sentence; `where` is the file to name. */
mm2_status mm2_config_check(const mm2_config *config, const char *where);

/* For the readers. FORMAT: "key must be `expected`, found ...". */
mm2_status mm2_given_wrong(const mm2_source *s, const char *key, const char *expected,
                           const mm2_given *found);
/* UNSUPPORTED: "key is ...; this build supports `supported`". */
mm2_status mm2_given_unsupported(const mm2_source *s, const char *key, const mm2_given *found,
                                 const char *supported);
/* A number between these bounds, or absent or anything else: then *out is left alone. For hints,
 * which nothing depends on. */
void mm2_given_hint(const mm2_source *s, const char *key, double low, double high, float *out);

#endif
