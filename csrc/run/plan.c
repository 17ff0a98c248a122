/* What a session would take of memory, and what there is: the sums that mm2_session_new holds
 * against each other, for who wants to know before. Nothing is counted here: the cache is asked of
 * its layout, the buffers of a pass of their own carving, which measures when it has no memory. */
#include "base/cpu.h"
#include "base/status.h"
#include "run/session.h"

mm2_status mm2_model_plan(mm2_model *m, const mm2_session_options *options, mm2_plan *out)
{
    MM2_NEED(m, "model");
    MM2_NEED(out, "out");
    const mm2_config *g = &m->checkpoint.config;
    mm2_session_options o = {.size = sizeof o};
    mm2_session_options_init(&o);
    mm2_status status = options ? mm2_struct_read(&o, options, "session options") : MM2_OK;
    if (!status)
        status = mm2_session_settle(&o, g);
    if (status)
        return status;
    mm2_plan found = {.size = sizeof found,
                      .context = o.context,
                      .kv_dtype = o.kv_dtype,
                      .chunk = o.chunk < o.context ? o.chunk : o.context,
                      .weights = mm2_model_needed(m),
                      .cache = mm2_timeline_bytes(m, o.kv_dtype, o.context),
                      .cache_page = mm2_timeline_bytes(m, o.kv_dtype, 1),
                      .present = mm2_memory_present(),
                      .available = mm2_memory_available()};
    if (found.cache < 0 || found.cache_page < 0)
        return mm2_fail(MM2_E_NOMEM, "out of memory to lay out a cache of %d positions", o.context);
    found.buffers = mm2_pass_bytes(m, found.chunk);
    found.session = (int64_t)o.context * (int64_t)sizeof(int32_t) +
                    (int64_t)g->vocab_size * (int64_t)sizeof(float);
    return mm2_struct_write(out, &found, "mm2_plan");
}
