/* Memory nodes: which CPUs are near which memory.
 *
 * MM2_NUMA_FAKE=N in the environment (1 to 16) pretends that there are N nodes, for tests: work is
 * divided among them, no thread is bound to anything. */
#ifndef MM2_NUMA_H
#define MM2_NUMA_H

#include "base/sysfile.h"

enum { MM2_NODES = 16 };

/* Nodes with CPUs that the calling thread may use. 1 on a machine without nodes, or with more than
 * MM2_NODES of them: then nothing is divided. */
int32_t mm2_numa_nodes(void);
/* Binds the calling thread to those of its CPUs that lie in the node (0 .. mm2_numa_nodes() - 1).
 * Nothing happens where nodes are fake or a single one. */
void mm2_numa_bind(int32_t node);

/* For tests: `root` is put in front of /sys, the environment is not looked at. `near` becomes the
 * CPUs of node `node` that are in `allowed`, empty if there is no such node; NULL: only count. */
int32_t mm2_numa_nodes_under(const char *root, const mm2_cpus *allowed, int32_t node,
                             mm2_cpus *near);

#endif
