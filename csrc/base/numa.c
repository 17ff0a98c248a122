/* Memory nodes, from /sys/devices/system/node. Nodes are numbered here as a process sees them: those
 * that hold CPUs of its affinity mask, ascending, without gaps; nodes of memory only do not count.
 *
 * Nothing is remembered: the files are read when a pool is made and when a worker is bound, so that
 * the mask of that moment counts. */
#define _GNU_SOURCE /* sched_setaffinity */

#include "base/numa.h"

#include "base/status.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* The nodes that MM2_NUMA_FAKE asks for; 0: none, or nonsense. */
static int32_t fake_nodes(void)
{
    const char *text = getenv("MM2_NUMA_FAKE");
    if (!text)
        return 0;
    int64_t nodes = mm2_sysfile_number(&text);
    return nodes >= 1 && nodes <= MM2_NODES && !*text ? (int32_t)nodes : 0;
}

int32_t mm2_numa_nodes_under(const char *root, const mm2_cpus *allowed, int32_t node,
                             mm2_cpus *near)
{
    char path[1024], list[MM2_SYSFILE], text[MM2_SYSFILE];
    int32_t nodes = 0;
    int64_t id, last;
    if (near)
        memset(near, 0, sizeof *near);
    mm2_format(path, sizeof path, "%s/sys/devices/system/node/has_cpu", root);
    if (!mm2_sysfile_read(path, list))
        return 1;
    for (const char *p = list; nodes <= MM2_NODES && mm2_sysfile_range(&p, &id, &last);)
        for (; nodes <= MM2_NODES && id <= last; id++) {
            int64_t cpu, end;
            int used = 0;
            mm2_format(path, sizeof path, "%s/sys/devices/system/node/node%lld/cpulist", root,
                       (long long)id);
            if (!mm2_sysfile_read(path, text))
                break;
            for (const char *q = text; mm2_sysfile_range(&q, &cpu, &end);)
                for (; cpu <= end && cpu < MM2_CPU_LIMIT; cpu++)
                    if (mm2_cpus_has(allowed, cpu)) {
                        used = 1;
                        if (near && nodes == node)
                            mm2_cpus_add(near, cpu);
                    }
            nodes += used;
        }
    return nodes >= 1 && nodes <= MM2_NODES ? nodes : 1;
}

int32_t mm2_numa_nodes(void)
{
    mm2_cpus allowed;
    int32_t fake = fake_nodes();
    if (fake)
        return fake;
    mm2_cpus_allowed(&allowed);
    return mm2_numa_nodes_under("", &allowed, -1, NULL);
}

void mm2_numa_bind(int32_t node)
{
    mm2_cpus allowed, near;
    if (fake_nodes())
        return;
    mm2_cpus_allowed(&allowed);
    if (mm2_numa_nodes_under("", &allowed, node, &near) > 1)
        /* A failure leaves the thread where it was: slower, and as right. */
        sched_setaffinity(0, sizeof near, (const cpu_set_t *)near.bits);
}
