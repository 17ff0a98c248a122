/* Tools by their JSON schemas: what type a parameter may have, and what a model's text for it is. */
#ifndef MM2_SCHEMA_H
#define MM2_SCHEMA_H

#include "base/json_tree.h"
#include "text/json_form.h"

enum { /* types that a schema allows */
       MM2_TYPE_STRING = 1,
       MM2_TYPE_INTEGER = 2,
       MM2_TYPE_NUMBER = 4,
       MM2_TYPE_BOOLEAN = 8,
       MM2_TYPE_OBJECT = 16,
       MM2_TYPE_ARRAY = 32,
       MM2_TYPE_NULL = 64
};

typedef struct mm2_tools {
    mm2_json_tree tree;
    int given; /* a list, which may be empty */
} mm2_tools;

/* `json`: as in mm2_conversation; NULL: none. Copied. Fails with ARG, NOMEM. */
mm2_status mm2_tools_read(mm2_tools *t, const char *json, int64_t length);
void mm2_tools_free(mm2_tools *t);
/* The function of that name, or NULL. */
const mm2_value *mm2_tools_find(const mm2_tools *t, mm2_view name);
/* The types of its parameter; a string where the schema does not say, or there is no function. */
uint32_t mm2_tools_types(const mm2_value *function, mm2_view parameter);

/* Writes a model's text as JSON of one of the types; returns its length, at most twice that of the
 * text and 3. -1: it is a string, the text as it is. */
int64_t mm2_schema_value(char *out, uint32_t types, mm2_view text);

#endif
