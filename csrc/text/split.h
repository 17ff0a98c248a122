/* Cutting text into the words that byte-pair encoding works on, by a regular expression. */
#ifndef MM2_SPLIT_H
#define MM2_SPLIT_H

#include "minimax2.h"

/* The family's pattern, for files that only name it. */
extern const char mm2_split_family[];

typedef struct mm2_split mm2_split; /* immutable; shared by any number of threads */

/* Text between matches is a piece of its own with `keep_gaps` (Isolated), else it is dropped.
 * UNSUPPORTED if the pattern leaves the subset that is read alike everywhere, FORMAT if it is
 * damaged. *out is owned. */
mm2_status mm2_split_new(mm2_split **out, const char *pattern, int64_t length, int keep_gaps);
void mm2_split_free(mm2_split *s);

typedef struct mm2_pieces { /* a walk over one text */
    const mm2_split *split;
    const char *text;   /* borrowed until the walk ends */
    int64_t length, at; /* everything before `at` has been handed out */
    int64_t from, to;   /* the match that was found behind `at` */
    char *shadow;       /* what the pattern sees instead of the text; NULL: the text */
    void *match, *context;
    int64_t *steps, seen; /* left; where the matcher was last */
} mm2_pieces;

/* `text`: valid UTF-8. The walk takes from *steps, borrowed until it ends, what it costs; no more
 * than that is done. `w` must not move. Call mm2_pieces_end whatever happens. */
mm2_status mm2_pieces_begin(mm2_pieces *w, const mm2_split *s, const char *text, int64_t length,
                            int64_t *steps);
/* 1 and the next piece; 0 at the end; or a negative status if the pattern is too costly on this
 * text. */
int mm2_pieces_next(mm2_pieces *w, const char **piece, int64_t *length);
void mm2_pieces_end(mm2_pieces *w);

#endif
