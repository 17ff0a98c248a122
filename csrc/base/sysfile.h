/* The small text files of /proc and /sys. Whatever they hold, numbers saturate and nothing is
 * allocated. */
#ifndef MM2_SYSFILE_H
#define MM2_SYSFILE_H

#include <stdint.h>

enum { MM2_SYSFILE = 16384, MM2_CPU_LIMIT = 8192 };

/* The beginning of a file, NUL-terminated; 0 if it cannot be read or is empty. */
int mm2_sysfile_read(const char *path, char text[MM2_SYSFILE]);
/* The number at *p, saturated; *p moves behind it. -1 if there is none. */
int64_t mm2_sysfile_number(const char **p);
/* The next range of a list ("0-3,8" has two), 0 at its end; *p moves behind it. */
int mm2_sysfile_range(const char **p, int64_t *first, int64_t *last);

/* A set of CPUs with room for more than cpu_set_t has; the kernel's layout. */
typedef struct mm2_cpus {
    unsigned long bits[MM2_CPU_LIMIT / (8 * sizeof(unsigned long))];
} mm2_cpus;

int mm2_cpus_has(const mm2_cpus *set, int64_t cpu);
void mm2_cpus_add(mm2_cpus *set, int64_t cpu);
/* Those the calling thread may run on; empty if the system does not say. */
void mm2_cpus_allowed(mm2_cpus *set);

#endif
