/* From the processor to a table of kernels.
 *
 * Each level starts as a copy of the one below it and fills the slots it has. The tables of what
 * the processor can run are built together, once, and never change; blas is built when it is first
 * asked for, because it loads a library. The environment is read at each call with MM2_ISA_AUTO, so
 * that a program may set the variable before it opens a model. */
#include "kernels/kernels.h"

#include "base/cpu.h"
#include "base/levels.h"
#include "base/status.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static mm2_kernels tables[MM2_ISA_BLAS + 1]; /* of those that are built, by MM2_ISA_* */
static const mm2_kernels *best = &mm2_kernels_ref;
static pthread_once_t native_once = PTHREAD_ONCE_INIT;

/* A copy of the best table under another name, to fill. */
static mm2_kernels *table_begin(int32_t isa, const char *name)
{
    tables[isa] = *best;
    tables[isa].name = name;
    tables[isa].isa = isa;
    return &tables[isa];
}

static void build_native(void)
{
#if defined(__x86_64__)
    const mm2_cpu_facts *cpu = mm2_cpu_find();
#define BUILD(ID, level, needs)                                                                    \
    if (cpu->level) {                                                                              \
        mm2_kernels *t = table_begin(MM2_ISA_##ID, #level);                                        \
        mm2_kernels_##level(t);                                                                    \
        best = t;                                                                                  \
    }
    MM2_VECTOR_LEVELS(BUILD)
#undef BUILD
#endif
}

static const mm2_kernels *find_blas(void)
{
    /* Not a pthread_once: a failure leaves its sentence with every caller, and may be mended. */
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int ready;
    pthread_mutex_lock(&lock);
    if (!ready)
        ready = mm2_kernels_blas(table_begin(MM2_ISA_BLAS, "blas")) == 0;
    const mm2_kernels *found = ready ? &tables[MM2_ISA_BLAS] : NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

/* The number behind a name of the environment variable; -1 if it has none. */
static int32_t parse_isa(const char *name)
{
#define PARSE(ID, level, needs)                                                                    \
    if (strcmp(name, #level) == 0)                                                                 \
        return MM2_ISA_##ID;
    PARSE(AUTO, auto, "")
    MM2_LEVELS(PARSE)
#undef PARSE
    return -1;
}

const mm2_kernels *mm2_kernels_find(int32_t isa)
{
#define LIST(ID, level, needs) #level ", "
    static const char names[] = MM2_LEVELS(LIST);
#undef LIST
    pthread_once(&native_once, build_native);
    if (isa == MM2_ISA_AUTO) {
        const char *name = getenv("MM2_ISA");
        if (name && *name) {
            isa = parse_isa(name);
            if (isa < 0) {
                mm2_fail(MM2_E_ARG,
                         "the environment variable MM2_ISA is \"%s\"; it may be %sor auto or unset "
                         "for the best",
                         name, names);
                return NULL;
            }
        }
    }
    switch (isa) {
    case MM2_ISA_AUTO:
        return best;
    case MM2_ISA_REF:
        return &mm2_kernels_ref;
    case MM2_ISA_BLAS:
        return find_blas();
#define FIND(ID, level, needs)                                                                     \
    case MM2_ISA_##ID:                                                                             \
        if (tables[isa].name)                                                                      \
            return &tables[isa];                                                                   \
        mm2_fail(MM2_E_UNSUPPORTED, "the " #level " kernels need " needs "; this one has %s",      \
                 mm2_cpu());                                                                       \
        return NULL;
        MM2_VECTOR_LEVELS(FIND)
#undef FIND
    default:
        mm2_fail(MM2_E_ARG, "isa is %d; expected MM2_ISA_AUTO (0) to MM2_ISA_BLAS (5)", isa);
        return NULL;
    }
}
