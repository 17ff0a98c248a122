/* The messages and tools of a conversation, read from the JSON that callers hand in. */
#ifndef MM2_MESSAGES_H
#define MM2_MESSAGES_H

#include "text/json_form.h"

enum { MM2_ROLE_SYSTEM, MM2_ROLE_USER, MM2_ROLE_ASSISTANT, MM2_ROLE_TOOL, MM2_ROLE_COUNT };

typedef struct mm2_turn {
    int32_t role;
    int32_t thinks; /* assistant: thinking is given, if only as an empty text */
    mm2_view content, thinking;
    mm2_view date, location; /* system */
    mm2_view id;             /* tool: of the call that it answers; of length 0: none is given */
    int32_t first, count;    /* assistant: its calls; tool: its results */
    int32_t is_list;         /* the content came as a list, which is not [] */
    int32_t message;         /* which one it comes from */
} mm2_turn;

typedef struct mm2_turn_call {
    mm2_view name, arguments; /* the latter the JSON of an object */
    mm2_view id;              /* of length 0: none is given */
} mm2_turn_call;

typedef struct mm2_turn_tool {
    mm2_view json; /* an object */
    int flat;      /* it has its name beside its type, instead of an object in `function` */
} mm2_turn_tool;

typedef struct mm2_list { /* of any of these */
    void *items;
    int32_t count, capacity;
} mm2_list;

typedef struct mm2_turns {
    mm2_list turns, calls, results, tools; /* of mm2_turn, mm2_turn_call, mm2_view, mm2_turn_tool */
    char *sources[2];                      /* repaired JSON; NULL: the caller's is used */
    char *texts;
    int64_t used; /* bytes of texts */
} mm2_turns;

/* Everything is checked here: what is read can be rendered. goes_on: the messages go on behind a
 * timeline. tools may be NULL. Views point into the result and into the two texts. Fails with ARG,
 * NOMEM and a sentence; mm2_turns_free then, too. */
mm2_status mm2_turns_read(mm2_turns *out, const char *messages, const char *tools, int goes_on);
void mm2_turns_free(mm2_turns *t);
/* ARG, with its sentence: message `index` has results of tools that nobody has called. */
mm2_status mm2_turns_uncalled(int32_t index);
/* Puts neighbouring results into the order of the calls that they answer, where both have ids. Fails
 * with ARG where ids say that it cannot be right; NOMEM. */
mm2_status mm2_turns_order(mm2_turns *t);

#endif
