/* JSON values in the spelling of the chat format, which is that of Python's json.dumps with
 * ensure_ascii=False: ", " and ": " between things, characters as they are. */
#ifndef MM2_JSON_FORM_H
#define MM2_JSON_FORM_H

#include "minimax2.h"

typedef struct mm2_view { /* a text that somebody else keeps */
    const char *begin;
    int64_t length;
} mm2_view;

int mm2_view_is(mm2_view v, const char *text);
/* Without white space at both ends. */
mm2_view mm2_view_trim(mm2_view v);

/* Writes the one value that `json` is, and returns its length: at most twice that of `json`, for
 * which there must be room. Numbers and the order of keys stay as they are. -1 if it is not valid:
 * no JSON, no UTF-8, or nested deeper than MM2_JSON_DEPTH. python: NaN and Infinity are numbers. */
int64_t mm2_json_form(char *out, mm2_view json, int python);

/* Writes what stands for these bytes inside a JSON string; returns its length, at most 6 bytes for
 * each one. They must be valid UTF-8. */
int64_t mm2_json_escape(char *out, mm2_view text);

/* Length of the number by JSON's grammar at the beginning, or 0. */
int64_t mm2_json_number(mm2_view text);

#endif
