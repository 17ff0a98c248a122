/* What the processor can do and how much of it the process may use. */
#ifndef MM2_CPU_H
#define MM2_CPU_H

#include "minimax2.h"

typedef struct mm2_cpu_facts {
    int avx2;        /* AVX2, FMA, F16C, and the system saves their registers */
    int avx512;      /* F, BW, VL, DQ, VNNI, VBMI and avx2, and the system saves their registers */
    int amx;         /* TILE, INT8, BF16 and avx512, and the system lets the process use tiles */
    int amd;         /* made by AMD */
    char vendor[64]; /* as people say it: "AMD EPYC 9355", "Intel Xeon Platinum 8488C" */
} mm2_cpu_facts;

/* Found once; thread-safe. The sentence of mm2_cpu() is made from it. */
const mm2_cpu_facts *mm2_cpu_find(void);
/* Physical cores within the process's affinity mask and cgroup CPU quota, at least 1. */
int32_t mm2_cpu_cores(void);

/* mm2_cpu_cores, mm2_memory_present and _available with `root` put in front of /proc and /sys: for
 * tests. */
int32_t mm2_cpu_cores_under(const char *root);
int64_t mm2_memory_available_under(const char *root);
int64_t mm2_memory_present_under(const char *root);

#endif
