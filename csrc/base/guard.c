/* A busy flag holds the process id of the thread that took it. After fork() the child finds flags
 * of threads that it does not have; the id tells them apart from those of its own threads. */
#include "base/guard.h"

#include "base/status.h"

#include <string.h>
#include <unistd.h>

mm2_status mm2_null_argument(const char *function, const char *argument)
{
    return mm2_fail(MM2_E_ARG, "%s: %s must not be NULL", function, argument);
}

mm2_status mm2_busy_enter(mm2_busy *busy, const char *what, int *torn)
{
    int mine = (int)getpid(), found = 0;
    *torn = 0;
    while (!atomic_compare_exchange_strong(busy, &found, mine)) {
        if (found == mine)
            return mm2_fail(MM2_E_BUSY,
                            "the %s is in use by another thread; use one thread at a time, or one "
                            "%s for each thread",
                            what, what);
        *torn = found != 0;
    }
    return MM2_OK;
}

void mm2_busy_leave(mm2_busy *busy)
{
    atomic_store(busy, 0);
}

static uint32_t size_of(const void *sized)
{
    uint32_t size;
    memcpy(&size, sized, sizeof size);
    return size;
}

static mm2_status check_size(uint32_t theirs, uint32_t ours, const char *what)
{
    if (theirs < sizeof theirs)
        return mm2_fail(MM2_E_ARG, "%s: size is %u; set it to the size of the struct first", what,
                        theirs);
    if (theirs > ours)
        return mm2_fail(MM2_E_ARG,
                        "%s: size is %u, this library knows %u bytes of it; the program was built "
                        "for a newer library",
                        what, theirs, ours);
    return MM2_OK;
}

/* As far as theirs goes, which keeps its size. */
static void fill(void *theirs, const void *ours, uint32_t size)
{
    memcpy(theirs, ours, size);
    memcpy(theirs, &size, sizeof size);
}

void mm2_struct_init(void *theirs, const void *ours)
{
    if (theirs && size_of(theirs) >= sizeof(uint32_t) && size_of(theirs) <= size_of(ours))
        fill(theirs, ours, size_of(theirs));
}

mm2_status mm2_struct_read(void *ours, const void *theirs, const char *what)
{
    uint32_t size = size_of(ours), given = size_of(theirs);
    mm2_status status = check_size(given, size, what);
    if (status)
        return status;
    memcpy(ours, theirs, given);
    memcpy(ours, &size, sizeof size);
    return MM2_OK;
}

mm2_status mm2_struct_write(void *theirs, const void *ours, const char *what)
{
    uint32_t size = size_of(ours), given = size_of(theirs);
    mm2_status status = check_size(given, size, what);
    if (status)
        return status;
    fill(theirs, ours, given);
    return MM2_OK;
}
