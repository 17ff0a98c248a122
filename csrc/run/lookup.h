/* Where a timeline has said before what it says now: the longest earlier occurrence of its end. */
#ifndef MM2_LOOKUP_H
#define MM2_LOOKUP_H

#include <stdint.h>

enum { MM2_MATCH_MOST = 32 }; /* a longer match says no more */

typedef struct mm2_lookup {
    int32_t length;  /* tokens that it knows of */
    int32_t at;      /* the token behind the earlier occurrence */
    int32_t matched; /* tokens of it, up to MM2_MATCH_MOST; 0: there is none */
} mm2_lookup;

/* The timeline has n tokens now, the first `length` of them as it had. Returns what the lookup had
 * said of the token behind these: 1 if it came, 0 if another one did, -1 if it had said nothing, or
 * if more than one is new. */
int32_t mm2_lookup_follow(mm2_lookup *l, const int32_t *tokens, int32_t n);
/* Copies the n tokens that came next then. There is a match. */
void mm2_lookup_read(const mm2_lookup *l, const int32_t *tokens, int32_t n, int32_t *out);

#endif
