/* What public functions do before their work: refuse NULL and a second thread, and read or fill a
 * struct whose caller may be older than the library. */
#ifndef MM2_GUARD_H
#define MM2_GUARD_H

#include "minimax2.h"

#include <stdatomic.h>

/* Returns from the function, with ARG and a sentence, if an argument is NULL. */
#define MM2_NEED(argument, name)                                                                   \
    do {                                                                                           \
        if (!(argument))                                                                           \
            return mm2_null_argument(__func__, name);                                              \
    } while (0)

mm2_status mm2_null_argument(const char *function, const char *argument);

/* Whether a call works on an object: 0, or the id of the process whose thread does. */
typedef atomic_int mm2_busy;

/* BUSY, with a sentence that names the object ("session"), while another thread is inside. After
 * fork() a flag that a thread of the parent held is taken over: nobody will give it back. *torn is
 * then 1: that call stopped somewhere in its middle. Else 0. */
mm2_status mm2_busy_enter(mm2_busy *busy, const char *what, int *torn);
void mm2_busy_leave(mm2_busy *busy);

/* Structs that cross the border begin with their size in bytes, a uint32_t. A caller that was built
 * with an older header has a smaller one: the fields it does not know keep our defaults, or are not
 * written. A larger one, or 0, is refused with ARG and a sentence. `what`: "session options". */

/* Fills an options struct whose size the caller has set from ours, the defaults; nothing if there is
 * none or its size is impossible: the call that reads it says so. */
void mm2_struct_init(void *theirs, const void *ours);
/* Reads theirs over ours, which holds the defaults and its own size. */
mm2_status mm2_struct_read(void *ours, const void *theirs, const char *what);
/* Fills theirs, whose size the caller has set, from ours, which holds its own; keeps theirs. */
mm2_status mm2_struct_write(void *theirs, const void *ours, const char *what);

#endif
