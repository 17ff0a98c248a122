/* JSON Schema, and lists of choices, as regular expressions. */
#ifndef MM2_JSON_PATTERN_H
#define MM2_JSON_PATTERN_H

#include "text/calls.h"

/* Appends the pattern, which mm2_pattern_read takes as ours; it belongs to the caller then, too,
 * when it fails: with ARG, the sentence names what is not known and where; NOMEM. */
mm2_status mm2_choices_pattern(mm2_growing *out, const char *json);
mm2_status mm2_schema_pattern(mm2_growing *out, const char *json);

#endif
