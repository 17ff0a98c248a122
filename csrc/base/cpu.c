/* Processor, cores and memory, from cpuid and from the text files of /proc and /sys.
 *
 * A feature counts only if the system saves its registers (xgetbv). Cores are counted as physical
 * ones: of the CPUs in the affinity mask, the first of each group of siblings. The CPU quota and
 * the memory limit may be set on any ancestor of the process's cgroup, and inside a container the
 * path that /proc shows may not exist, so all of its prefixes are tried and what is missing is
 * passed over; both cgroup versions are looked at, at their usual mount points.
 *
 * Tiles must be asked for, once a process. The system refuses if a thread's alternative signal
 * stack could not hold them; the avx512 kernels serve then.
 *
 * The facts and the sentence of mm2_cpu() are made once and never change. */
#define _GNU_SOURCE /* syscall */

#include "base/cpu.h"

#include "base/levels.h"
#include "base/numa.h"
#include "base/status.h"

#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

enum { TEXT = MM2_SYSFILE, PATH = 1024 };

/* ---- Text files ---- */

/* The number behind the line's key, "MemAvailable:   123 kB"; -1 if there is none. */
static int64_t parse_field(const char *text, const char *key)
{
    size_t length = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, length) == 0) {
            line += length;
            while (*line == ' ' || *line == '\t')
                line++;
            return mm2_sysfile_number(&line);
        }
    }
    return -1;
}

/* The number that a file consists of; -1 without one ("max", "-1", no such file). */
static int64_t read_number(const char *path)
{
    char text[TEXT];
    const char *p = text;
    return mm2_sysfile_read(path, text) ? mm2_sysfile_number(&p) : -1;
}

/* ---- Control groups ---- */

/* What one cgroup directory allows; `limit` goes down if it allows less. */
typedef void (*group_check)(const char *directory, int version, int64_t *limit);

static void check_quota(const char *directory, int version, int64_t *limit)
{
    char path[PATH], text[TEXT];
    int64_t quota, period;
    if (version == 2) { /* "200000 100000", or "max 100000" */
        const char *p = text;
        mm2_format(path, PATH, "%s/cpu.max", directory);
        if (!mm2_sysfile_read(path, text))
            return;
        quota = mm2_sysfile_number(&p);
        if (*p == ' ')
            p++;
        period = mm2_sysfile_number(&p);
    } else {
        mm2_format(path, PATH, "%s/cpu.cfs_quota_us", directory);
        quota = read_number(path);
        mm2_format(path, PATH, "%s/cpu.cfs_period_us", directory);
        period = read_number(path);
    }
    if (quota < 0 || period <= 0)
        return;
    int64_t cores = quota / period + (quota % period != 0);
    if (cores < *limit)
        *limit = cores;
}

static void check_memory(const char *directory, int version, int64_t *limit)
{
    char path[PATH], text[TEXT];
    mm2_format(path, PATH, version == 2 ? "%s/memory.max" : "%s/memory.limit_in_bytes", directory);
    int64_t most = read_number(path);
    mm2_format(path, PATH, version == 2 ? "%s/memory.current" : "%s/memory.usage_in_bytes",
               directory);
    int64_t used = read_number(path);
    if (most < 0 || used < 0)
        return;
    mm2_format(path, PATH, "%s/memory.stat", directory);
    if (mm2_sysfile_read(path, text)) {
        int64_t active = parse_field(text, version == 2 ? "active_file " : "total_active_file ");
        int64_t inactive =
            parse_field(text, version == 2 ? "inactive_file " : "total_inactive_file ");
        used -= active > 0 ? active : 0;
        used -= inactive > 0 ? inactive : 0;
    }
    int64_t left = used <= 0 ? most : used < most ? most - used : 0;
    if (left < *limit)
        *limit = left;
}

static void check_memory_limit(const char *directory, int version, int64_t *limit)
{
    char path[PATH];
    mm2_format(path, PATH, version == 2 ? "%s/memory.max" : "%s/memory.limit_in_bytes", directory);
    int64_t most = read_number(path);
    if (most >= 0 && most < *limit)
        *limit = most;
}

/* `check` for the group at `path` (a slice of /proc/self/cgroup) and all its ancestors. */
static void walk_group(const char *mount, const char *path, int length, int version,
                       group_check check, int64_t *limit)
{
    char directory[PATH];
    for (;;) {
        while (length > 0 && path[length - 1] == '/')
            length--;
        if (mm2_format(directory, PATH - 64, "%s%.*s", mount, length, path) < PATH - 64)
            check(directory, version, limit);
        if (length == 0)
            return;
        while (length > 0 && path[length - 1] != '/')
            length--;
    }
}

/* Is `word` among the comma-separated names of text[0 .. length)? */
static int lists(const char *text, int length, const char *word)
{
    int size = (int)strlen(word);
    for (int i = 0; i + size <= length; i++)
        if ((i == 0 || text[i - 1] == ',') && memcmp(text + i, word, (size_t)size) == 0 &&
            (i + size == length || text[i + size] == ','))
            return 1;
    return 0;
}

/* Lines of /proc/self/cgroup: "0::/path" for version 2, "4:cpu,cpuacct:/path" for version 1. */
static int64_t group_limit(const char *root, const char *controller, group_check check)
{
    char text[TEXT], mount[PATH];
    int64_t limit = INT64_MAX;
    mm2_format(mount, PATH, "%s/proc/self/cgroup", root);
    if (!mm2_sysfile_read(mount, text))
        return limit;
    for (char *line = text; line && *line;) {
        char *end = strchr(line, '\n');
        int length = end ? (int)(end - line) : (int)strlen(line);
        char *names = memchr(line, ':', (size_t)length);
        char *path = names ? memchr(names + 1, ':', (size_t)(line + length - names - 1)) : NULL;
        if (path) {
            int names_length = (int)(path - names - 1), path_length = (int)(line + length - path);
            if (names_length == 0) {
                mm2_format(mount, PATH, "%s/sys/fs/cgroup", root);
                walk_group(mount, path + 1, path_length - 1, 2, check, &limit);
                mm2_format(mount, PATH, "%s/sys/fs/cgroup/unified", root);
                walk_group(mount, path + 1, path_length - 1, 2, check, &limit);
            } else if (lists(names + 1, names_length, controller)) {
                mm2_format(mount, PATH, "%s/sys/fs/cgroup/%s", root, controller);
                walk_group(mount, path + 1, path_length - 1, 1, check, &limit);
            }
        }
        line = end ? end + 1 : NULL;
    }
    return limit;
}

/* ---- Cores ---- */

/* Is `cpu` the first of its siblings ("0,64" or "0-1") that the process may use? */
static int leads_core(const char *root, const mm2_cpus *set, int cpu)
{
    char path[PATH], text[TEXT];
    int64_t sibling, last;
    mm2_format(path, PATH, "%s/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", root,
               cpu);
    if (!mm2_sysfile_read(path, text))
        return 1;
    for (const char *p = text; mm2_sysfile_range(&p, &sibling, &last);)
        for (; sibling <= last && sibling < cpu; sibling++)
            if (mm2_cpus_has(set, sibling))
                return 0;
    return 1;
}

int32_t mm2_cpu_cores_under(const char *root)
{
    mm2_cpus set;
    mm2_cpus_allowed(&set);
    int64_t cores = 0;
    for (int cpu = 0; cpu < MM2_CPU_LIMIT; cpu++)
        if (mm2_cpus_has(&set, cpu) && leads_core(root, &set, cpu))
            cores++;
    int64_t quota = group_limit(root, "cpu", check_quota);
    if (quota < cores)
        cores = quota;
    return cores < 1 ? 1 : (int32_t)cores;
}

int32_t mm2_cpu_cores(void)
{
    return mm2_cpu_cores_under("");
}

/* ---- Memory ---- */

int64_t mm2_memory_available_under(const char *root)
{
    char path[PATH], text[TEXT];
    int64_t available = group_limit(root, "memory", check_memory);

    mm2_format(path, PATH, "%s/proc/meminfo", root);
    int64_t kib = mm2_sysfile_read(path, text) ? parse_field(text, "MemAvailable:") : -1;
    if (kib >= 0 && kib < available / 1024)
        available = kib * 1024;

    struct rlimit space; /* address space: what is mapped already counts, first field of statm */
    if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur < INT64_MAX) {
        mm2_format(path, PATH, "%s/proc/self/statm", root);
        int64_t pages = read_number(path), page = sysconf(_SC_PAGESIZE), used;
        if (pages < 0 || __builtin_mul_overflow(pages, page, &used))
            used = 0;
        int64_t left = (int64_t)space.rlim_cur - used;
        if (left < available)
            available = left > 0 ? left : 0;
    }
    return available;
}

int64_t mm2_memory_present_under(const char *root)
{
    char path[PATH], text[TEXT];
    int64_t present = group_limit(root, "memory", check_memory_limit);
    mm2_format(path, PATH, "%s/proc/meminfo", root);
    int64_t kib = mm2_sysfile_read(path, text) ? parse_field(text, "MemTotal:") : -1;
    return kib >= 0 && kib < present / 1024 ? kib * 1024 : present;
}

int64_t mm2_memory_present(void)
{
    return mm2_memory_present_under("");
}

int64_t mm2_memory_available(void)
{
    return mm2_memory_available_under("");
}

/* ---- Processor ---- */

static mm2_cpu_facts facts;
static char sentence[160];
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)

/* May the process use tiles? `features`: edx of leaf 7; `saved`: what the system saves. */
static int permit_tiles(unsigned features, unsigned saved)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* of arch_prctl; as in xgetbv */
    /* Compilers do not agree on names for the bits of AMX-BF16, -TILE and -INT8. */
    const unsigned need = 1u << 22 | 1u << 24 | 1u << 25, states = 3u << (TILE_DATA - 1);
    return (features & need) == need && (saved & states) == states &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

/* The brand string without "(R)", "(TM)", "CPU" and what follows the model: "@ 2.50GHz", "64-Core
 * Processor", "with Radeon Graphics". */
static void clean_brand(char *out, int cap, const char *brand)
{
    int length = 0;
    for (const char *p = brand; *p;) {
        while (*p == ' ')
            p++;
        int size = (int)strcspn(p, " ");
        const char *word = p;
        p += size;
        if (lists(word, size, "CPU"))
            continue;
        if (size == 0 || *word == '@' || lists(word, size, "with") ||
            lists(word, size, "Processor") || (size > 5 && memcmp(p - 5, "-Core", 5) == 0))
            break;
        const char *mark = memchr(word, '(', (size_t)size);
        length += mm2_format(out + length, cap - length, "%s%.*s", length ? " " : "",
                             mark ? (int)(mark - word) : size, word);
    }
}

static void find_facts(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0, brand[13] = {0};
    if ((unsigned)__get_cpuid_max(0x80000000, NULL) >= 0x80000004)
        for (unsigned i = 0; i < 3; i++)
            __cpuid(0x80000002 + i, brand[4 * i], brand[4 * i + 1], brand[4 * i + 2],
                    brand[4 * i + 3]);
    clean_brand(facts.vendor, sizeof facts.vendor, (const char *)brand);

    facts.amd = __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return;
    int fma_f16c = (c & bit_FMA) && (c & bit_F16C);
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return;
    const unsigned need_b = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    const unsigned need_c = bit_AVX512VNNI | bit_AVX512VBMI;
    facts.avx2 = fma_f16c && (b & bit_AVX2) && (low & 0x06) == 0x06; /* xmm, ymm */
    facts.avx512 = facts.avx2 && (b & need_b) == need_b && (c & need_c) == need_c &&
                   (low & 0xe6) == 0xe6; /* and masks, zmm */
    facts.amx = facts.avx512 && permit_tiles(d, low);
}

#else

static void find_facts(void)
{
    mm2_format(facts.vendor, sizeof facts.vendor, "not x86-64");
}

#endif

static void find_all(void)
{
    find_facts();
    int32_t cores = mm2_cpu_cores(), nodes = mm2_numa_nodes();
    const char *level = "ref";
#define BETTER(ID, name, needs)                                                                    \
    if (facts.name)                                                                                \
        level = #name;
    MM2_VECTOR_LEVELS(BETTER)
#undef BETTER
    int length = mm2_format(sentence, sizeof sentence, "%s (%s), %d %s", level,
                            facts.vendor[0] ? facts.vendor : "unknown processor", cores,
                            cores == 1 ? "core" : "cores");
    if (nodes > 1)
        mm2_format(sentence + length, (int)sizeof sentence - length, " on %d memory nodes", nodes);
}

const mm2_cpu_facts *mm2_cpu_find(void)
{
    pthread_once(&once, find_all);
    return &facts;
}

const char *mm2_cpu(void)
{
    pthread_once(&once, find_all);
    return sentence;
}
