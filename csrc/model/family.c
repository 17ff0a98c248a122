/* The list of families.
 *
 * A family is added by its file and a line here. What it needs of blocks that do not exist yet goes
 * into run/; what its containers need goes into the readers, for all families. */
#include "model/family.h"

#include "base/status.h"

#include <stddef.h>
#include <string.h>

static const mm2_family *const families[] = {&mm2_minimax_m2};
enum { FAMILIES = sizeof families / sizeof *families };

/* `key`: what the file calls the name; `at`: where a family has it. */
static const mm2_family *find(const char *name, const char *key, size_t at, const char *where)
{
    char known[256] = "";
    int used = 0;
    for (int i = 0; i < FAMILIES; i++) {
        const char *own = *(const char *const *)((const char *)families[i] + at);
        if (!strcmp(own, name))
            return families[i];
        if (used < (int)sizeof known)
            used += mm2_format(known + used, (int)sizeof known - used, i ? ", %s" : "%s", own);
    }
    mm2_fail(MM2_E_UNSUPPORTED, "%s: %s is %s; this build supports %s", where, key, name, known);
    return NULL;
}

const mm2_family *mm2_family_of_model_type(const char *name, const char *where)
{
    return find(name, "model_type", offsetof(mm2_family, model_type), where);
}

const mm2_family *mm2_family_of_architecture(const char *name, const char *where)
{
    return find(name, "general.architecture", offsetof(mm2_family, architecture), where);
}
