/* A pull reader for JSON: no tree, no allocation, no recursion. It reads what is large: the headers
 * and the index of safetensors, which name 96,103 tensors in 24 MB for MiniMax-M2 (with this reader
 * the whole opening takes 0.15 s), and the vocabulary and merges of a tokenizer.json. Small
 * documents become trees (json_tree.h). */
#ifndef MM2_JSON_H
#define MM2_JSON_H

#include "minimax2.h"

enum { MM2_JSON_DEPTH = 64 }; /* containers within each other */

typedef struct mm2_json {
    const char *start, *at, *end;
    const char *where; /* file to name in sentences; borrowed */
} mm2_json;

void mm2_json_begin(mm2_json *j, const char *where, const void *text, int64_t length);
/* The character behind white space, 0 at the end; stands in front of it. */
char mm2_json_peek(mm2_json *j);
/* Nothing but spaces may be left. */
mm2_status mm2_json_end(mm2_json *j);

/* Steps through an object (open '{') or an array (open '['): 1 in front of each member, 0 behind
 * the closing bracket, negative on failure. *begun is 0 before the first call. */
int32_t mm2_json_next(mm2_json *j, char open, int *begun);
/* A string, decoded, checked to be UTF-8 without NUL, and terminated; FORMAT if it does not fit
 * into `cap` bytes. out NULL: read over it. A key is a string and its colon. */
mm2_status mm2_json_string(mm2_json *j, char *out, int32_t cap);
mm2_status mm2_json_key(mm2_json *j, char *out, int32_t cap);
/* What an escape stands for, from behind its backslash on: a code point, 0 included, or -1. */
int32_t mm2_json_unescape(const char **at, const char *end);
/* A whole number, 0..2^63-1. */
mm2_status mm2_json_integer(mm2_json *j, int64_t *out);
/* The characters of a number, true, false or null, borrowed from the document, in *text; returns
 * how many. NaN, Infinity and -Infinity are numbers, because Python writes them. */
int32_t mm2_json_scalar(mm2_json *j, const char **text);
/* Reads over any value; nesting deeper than MM2_JSON_DEPTH fails. */
mm2_status mm2_json_skip(mm2_json *j);

/* Foreign text for a sentence or a fact: invalid UTF-8 and control characters become '?', and what
 * does not fit into `cap` bytes is cut at a character. Always terminated. */
void mm2_text_clean(char *out, int32_t cap, const char *text, int64_t length);

#endif
