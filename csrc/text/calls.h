/* The calls in a chat turn: what is thinking, what is text, and what is a call of a tool. */
#ifndef MM2_CALLS_H
#define MM2_CALLS_H

#include "text/schema.h"

typedef struct mm2_growing { /* a text that grows; room for it is made before it does */
    char *bytes;
    int64_t length, capacity;
} mm2_growing;

/* Room for n more bytes. Fails with ARG (more than can be counted), NOMEM. */
mm2_status mm2_growing_reserve(mm2_growing *g, int64_t n);

typedef struct mm2_call_record {
    int64_t name, name_length; /* in mm2_calls.written, likewise: */
    int64_t arguments, arguments_length;
    int64_t text_at;
    int32_t state, known;
} mm2_call_record;

typedef struct mm2_sink { /* where the bytes go that belong to no call */
    void *of;
    void (*text)(void *of, char byte);
    void (*think)(void *of, char byte);
    void (*thought)(void *of); /* the thinking is over */
    /* A call begins, with `block` the first of its block; returns the length of the text. */
    int64_t (*called)(void *of, int block);
} mm2_sink;

typedef struct mm2_calls {
    mm2_sink sink;
    mm2_tools tools;
    int state;
    int from_thinking; /* the block at hand began inside the thinking */
    int confirmed;     /* it has had a call */
    int late;          /* a call has ended the thinking; its tag may still come */
    int thought;       /* the thinking is not empty */
    mm2_growing held;  /* undecided */
    int64_t tag;       /* where a tag begins in it, or -1 */
    int pending;       /* of a value: the tag that ends it if the right thing follows */
    mm2_growing value; /* of a parameter that is typed when it is complete */
    uint32_t types;
    int mode;
    char partial[4]; /* of a character */
    int partial_length;
    mm2_growing written; /* names and arguments of all calls */
    mm2_call_record *records;
    int32_t count, capacity;
    const mm2_value *function; /* of the call at hand */
    int32_t parameters;        /* that it has had */
    const char *reason;        /* why the last text that looks like a call is none; static */
} mm2_calls;

/* thinking: it begins inside. Fails with ARG, NOMEM; mm2_calls_free then, too. */
mm2_status mm2_calls_init(mm2_calls *c, mm2_sink sink, const char *tools, int thinking);
void mm2_calls_free(mm2_calls *c);
/* Makes room, so that pushing n bytes cannot fail. */
mm2_status mm2_calls_reserve(mm2_calls *c, int64_t n);
void mm2_calls_push(mm2_calls *c, char byte);
/* Nothing more comes, because the model has ended the reply or for another reason: what is undecided
 * is decided. */
void mm2_calls_end(mm2_calls *c, int by_model);
/* Inside the thinking, and in no tag or call? */
int mm2_calls_thinking(const mm2_calls *c);
/* In the answer, and in no call? */
int mm2_calls_in_text(const mm2_calls *c);
/* The tag </think> came as a token, in a text: is it one to leave out? Decides what was undecided. */
int mm2_calls_stray(mm2_calls *c);

#endif
