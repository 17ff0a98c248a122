/* Tokens, merges, and byte-pair encoding of one word. */
#ifndef MM2_BPE_H
#define MM2_BPE_H

#include "base/pool.h"

enum {                               /* limits on what a file may hold */
       MM2_MAX_VOCABULARY = 1 << 20, /* ids */
       MM2_MAX_MERGES = (1 << 21) - 1,
       MM2_MAX_TOKEN = 1024 /* bytes of one token */
};

enum {                       /* mm2_bpe.kind: what an id is; 0: it has no token */
       MM2_TOKEN_WORD = 1,   /* takes part in merges */
       MM2_TOKEN_ADDED = 2,  /* cut out of the text before it is split */
       MM2_TOKEN_SPECIAL = 4 /* an added token that decoding leaves out */
};

typedef struct mm2_bpe_table { /* hash table of indices into an array that holds the keys */
    uint32_t *slots;           /* 0: free; else 11 bits of the hash above the index + 1 */
    uint32_t mask;
} mm2_bpe_table;

typedef struct mm2_bpe {
    int32_t size;           /* highest id + 1 */
    uint32_t *start;        /* [id] in bytes */
    uint16_t *length;       /* [id] */
    uint8_t *kind;          /* [id] */
    char *bytes;            /* of all tokens */
    int64_t used, capacity; /* of bytes */
    int32_t byte_ids[256];
    struct mm2_merge *merges; /* by rank */
    int32_t merge_count, merge_capacity;
    mm2_bpe_table words; /* bytes -> id */
    mm2_bpe_table pairs; /* left and right id -> rank */
    uint64_t seed;       /* of both */
    int32_t expected;    /* while building: the word that the next merge probably makes */
} mm2_bpe;

/* Building, in this order: init; the tokens; index; the merges, best first. Sentences do not name
 * the file. mm2_bpe_free after a failure, too. */

/* `capacity`: at least the bytes of all tokens that will be added. */
mm2_status mm2_bpe_init(mm2_bpe *b, int64_t capacity);
/* A token given as its bytes: an added one. FORMAT: the id or the length is out of range, or the id
 * is taken. */
mm2_status mm2_bpe_add_raw(mm2_bpe *b, int64_t id, const char *bytes, int64_t length, int kind);
/* A word in GPT-2's printable spelling, one character a byte. An added token may come again as a
 * word with the same id and text. */
mm2_status mm2_bpe_add_spelled(mm2_bpe *b, int64_t id, const char *spelled, int64_t length);
/* Makes words findable and checks that every single byte is one. `merges`: how many will follow. */
mm2_status mm2_bpe_index(mm2_bpe *b, int64_t merges);
/* The next merge, both sides in printable spelling. */
mm2_status mm2_bpe_add_merge(mm2_bpe *b, const char *left, int64_t left_length, const char *right,
                             int64_t right_length);
void mm2_bpe_free(mm2_bpe *b);

/* The word that is exactly these bytes, or -1. */
int32_t mm2_bpe_word(const mm2_bpe *b, const char *bytes, int64_t length);

typedef struct mm2_ids { /* where ids go: those beyond cap are counted, not written */
    int32_t *ids;
    int32_t cap;
    int64_t count;
} mm2_ids;

static inline void mm2_ids_push(mm2_ids *out, int32_t id)
{
    if (out->count < out->cap)
        out->ids[out->count] = id;
    out->count++;
}

typedef struct mm2_pace { /* when to stop for now */
    int64_t deadline;     /* CLOCK_MONOTONIC nanoseconds; INT64_MAX: none */
    int64_t steps;        /* since the last look at the clock */
} mm2_pace;

enum { MM2_STEPS_PER_LOOK = 1024 };

/* Counts a step, which costs about a microsecond at most; whether the time is over. */
static inline int mm2_pace_over(mm2_pace *p)
{
    if (++p->steps < MM2_STEPS_PER_LOOK)
        return 0;
    p->steps = 0;
    return mm2_now() >= p->deadline;
}

typedef struct mm2_bpe_work { /* one word after the other; zero it first */
    struct mm2_symbol *symbols;
    struct mm2_candidate *candidates;
    struct mm2_run *growing; /* by rank */
    uint64_t *heap;          /* runs of candidates: rank << 32 | first candidate */
    int64_t capacity;
    const char *word; /* borrowed until it is done */
    uint32_t length;
    uint32_t read, count, written; /* bytes that are symbols; runs in the heap; bytes gone out */
    uint32_t used, free;           /* candidates: never used ones begin here; a list of others */
    uint32_t mask;                 /* of growing */
} mm2_bpe_work;

void mm2_bpe_work_free(mm2_bpe_work *w);
/* The word to do next. NOMEM. */
mm2_status mm2_bpe_begin(mm2_bpe_work *w, const char *word, int64_t length);
/* Merges the bytes of the word, lowest rank first, leftmost first among equals, and writes the ids:
 * OK; or MORE if the time is over or there is no more room for ids. */
mm2_status mm2_bpe_run(const mm2_bpe *b, mm2_bpe_work *w, mm2_ids *out, mm2_pace *pace);

#endif
