/* Reading the text files of /proc and /sys: into a stack buffer, parsed by hand, so that what they
 * hold decides nothing but the numbers. */
#define _GNU_SOURCE /* sched_getaffinity */

#include "base/sysfile.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

enum { WORD = 8 * sizeof(unsigned long) };

int mm2_sysfile_read(const char *path, char text[MM2_SYSFILE])
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    int length = 0;
    while (length < MM2_SYSFILE - 1) {
        ssize_t n = read(fd, text + length, (size_t)(MM2_SYSFILE - 1 - length));
        if (n <= 0)
            break;
        length += (int)n;
    }
    close(fd);
    text[length] = 0;
    return length > 0;
}

int64_t mm2_sysfile_number(const char **p)
{
    if (**p < '0' || **p > '9')
        return -1;
    int64_t value = 0;
    for (; **p >= '0' && **p <= '9'; ++*p)
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, **p - '0', &value))
            value = INT64_MAX / 10;
    return value;
}

int mm2_sysfile_range(const char **p, int64_t *first, int64_t *last)
{
    *first = *last = mm2_sysfile_number(p);
    if (*first < 0)
        return 0;
    if (**p == '-') {
        ++*p;
        *last = mm2_sysfile_number(p);
    }
    if (**p == ',')
        ++*p;
    return 1;
}

int mm2_cpus_has(const mm2_cpus *set, int64_t cpu)
{
    return cpu < MM2_CPU_LIMIT && set->bits[cpu / WORD] >> cpu % WORD & 1;
}

void mm2_cpus_add(mm2_cpus *set, int64_t cpu)
{
    if (cpu < MM2_CPU_LIMIT)
        set->bits[cpu / WORD] |= 1UL << cpu % WORD;
}

void mm2_cpus_allowed(mm2_cpus *set)
{
    memset(set, 0, sizeof *set);
    if (sched_getaffinity(0, sizeof *set, (cpu_set_t *)set->bits) < 0)
        memset(set, 0, sizeof *set);
}
