/* A regular expression as a nondeterministic automaton over bytes. */
#ifndef MM2_PATTERN_H
#define MM2_PATTERN_H

#include "minimax2.h"

enum { /* limits on one pattern */
       MM2_PATTERN_BYTES = 1 << 20,
       MM2_PATTERN_STATES = 1 << 18,
       MM2_PATTERN_EDGES = 1 << 20,
       MM2_PATTERN_DEPTH = 1 << 12 /* groups within each other */
};

typedef struct mm2_edge {
    int32_t to, next;  /* next: edge of the same state; -1: none */
    uint8_t low, high; /* bytes; low > high: it takes none */
} mm2_edge;

typedef struct mm2_pattern {
    int32_t *first; /* [state] its first edge, or -1 */
    int32_t states, state_room;
    mm2_edge *edges;
    int32_t edge_count, edge_room;
    int32_t start, end; /* from every state a way leads to the end */
    int32_t lead;       /* the start behind at most two newlines */
} mm2_pattern;

/* What stands between these in a pattern is JSON's spelling, inside of a string, of what it matches:
 * `.` is \" too. For patterns of ours. */
#define MM2_PATTERN_IN_STRING "\001"
#define MM2_PATTERN_BEHIND_STRING "\002"

/* ours: it may hold these. Fails with ARG, or UNSUPPORTED where it is not wrong but beyond what is
 * known here: the sentence says where; NOMEM. mm2_pattern_free then, too. */
mm2_status mm2_pattern_read(mm2_pattern *p, const char *text, int64_t length, int ours);
void mm2_pattern_free(mm2_pattern *p);

#endif
