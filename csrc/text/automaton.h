/* A pattern as a deterministic automaton, whose places are made when somebody comes to them. */
#ifndef MM2_AUTOMATON_H
#define MM2_AUTOMATON_H

#include "text/pattern.h"

enum { MM2_NOWHERE = -1, MM2_UNKNOWN = -2, MM2_NO_ROOM = -3 };

typedef struct mm2_place {
    int64_t set;     /* its states begin here in `sets` */
    int32_t count;   /* of them */
    int32_t accepts; /* the text may end here */
    int32_t mask;    /* for the owner; -1 at first */
    uint32_t hash;
} mm2_place;

typedef struct mm2_automaton {
    const mm2_pattern *pattern;
    int32_t classes; /* of bytes that no edge tells apart */
    uint8_t class_of[256];
    uint8_t *matters; /* [state] it is the end or takes a byte */
    mm2_place *places;
    int32_t count, room;
    int32_t *next; /* [place][class] */
    int32_t *sets;
    int64_t set_used, set_room;
    int32_t *slots; /* hash table of places; -1: free */
    uint32_t slot_mask;
    uint64_t *marks; /* [state] one bit, all 0 between calls, likewise: */
    int32_t *waiting;
    int32_t waiting_count, low, high; /* words of marks in use */
    uint32_t generation;              /* goes up when all places are forgotten */
    int64_t work;                     /* edges looked at, ever */
} mm2_automaton;

/* The pattern is borrowed. NOMEM; mm2_automaton_free then, too. */
mm2_status mm2_automaton_init(mm2_automaton *a, const mm2_pattern *p);
void mm2_automaton_free(mm2_automaton *a);
/* The place of these states and of what is reached from them without a byte. MM2_NO_ROOM: memory is
 * short, with a sentence. */
int32_t mm2_automaton_enter(mm2_automaton *a, const int32_t *states, int32_t count);
/* Where a byte leads that was not asked for yet; likewise, or MM2_NOWHERE. */
int32_t mm2_automaton_explore(mm2_automaton *a, int32_t place, uint8_t byte);
/* Bytes of memory that places take. */
int64_t mm2_automaton_bytes(const mm2_automaton *a);
/* Forgets all places. */
void mm2_automaton_forget(mm2_automaton *a);

static inline int32_t mm2_automaton_step(mm2_automaton *a, int32_t place, uint8_t byte)
{
    int32_t next = a->next[(int64_t)place * a->classes + a->class_of[byte]];
    return next == MM2_UNKNOWN ? mm2_automaton_explore(a, place, byte) : next;
}

#endif
