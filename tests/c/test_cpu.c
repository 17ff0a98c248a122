/* What the process may use: counted from made-up /proc and /sys trees below a temporary directory,
 * so that quotas, siblings and limits are those of the test and not of the machine. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/cpu.h"
#include "base/numa.h"
#include "minimax2.h"

#include <ftw.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char root[256];

static int make_root(void **state)
{
    (void)state;
    strcpy(root, "/tmp/test_cpu_XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int remove_root(void **state)
{
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* root/path with the text, directories included. */
static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(full, 0700);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static int32_t affinity(void)
{
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    return CPU_COUNT(&set);
}

static void test_siblings_count_once(void **state)
{
    (void)state;
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_int_equal(mm2_cpu_cores_under(root), affinity()); /* no files: all are cores */
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set)) { /* all of them one core */
            char path[128];
            snprintf(path, sizeof path,
                     "sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
            put(path, "0-1023\n");
        }
    assert_int_equal(mm2_cpu_cores_under(root), 1);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set)) { /* with a sibling that may not be used */
            char path[128], text[64];
            snprintf(path, sizeof path,
                     "sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
            snprintf(text, sizeof text, "%d,99999999999999999999\n", cpu);
            put(path, text);
        }
    assert_int_equal(mm2_cpu_cores_under(root), affinity());
}

static void test_quota(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    assert_int_equal(mm2_cpu_cores_under(root), affinity());
    put("sys/fs/cgroup/a/cpu.max", "50000 100000\n"); /* of an ancestor; half a core is one */
    assert_int_equal(mm2_cpu_cores_under(root), 1);
    put("sys/fs/cgroup/a/cpu.max", "150000 100000\n"); /* one and a half: at most two */
    assert_int_equal(mm2_cpu_cores_under(root), affinity() < 2 ? affinity() : 2);
    put("sys/fs/cgroup/a/cpu.max", "100000 0\n"); /* nonsense */
    assert_int_equal(mm2_cpu_cores_under(root), affinity());

    put("proc/self/cgroup", "7:memory:/m\n4:cpuacct,cpu:/x\n");
    put("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
    assert_int_equal(mm2_cpu_cores_under(root), affinity());
    put("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "100000\n");
    assert_int_equal(mm2_cpu_cores_under(root), 1);
    put("proc/self/cgroup", "4:cpuacct:/x\n"); /* another controller */
    assert_int_equal(mm2_cpu_cores_under(root), affinity());
}

static void test_nodes(void **state)
{
    (void)state;
    mm2_cpus allowed = {{0}}, near;
    for (int cpu = 0; cpu < 24; cpu++)
        mm2_cpus_add(&allowed, cpu);
    assert_int_equal(mm2_numa_nodes_under(root, &allowed, 0, &near), 1); /* no files */
    put("sys/devices/system/node/has_cpu", "0-1,4\n");
    put("sys/devices/system/node/node0/cpulist", "0-3,8-11\n");
    put("sys/devices/system/node/node1/cpulist", "64-95\n"); /* none of ours */
    put("sys/devices/system/node/node4/cpulist", "4-7,12,64\n");
    assert_int_equal(mm2_numa_nodes_under(root, &allowed, -1, NULL), 2);
    assert_int_equal(mm2_numa_nodes_under(root, &allowed, 1, &near), 2);
    for (int cpu = 0; cpu < 100; cpu++)
        assert_int_equal(mm2_cpus_has(&near, cpu), (cpu >= 4 && cpu <= 7) || cpu == 12);
    assert_int_equal(mm2_numa_nodes_under(root, &allowed, 0, &near), 2);
    assert_true(mm2_cpus_has(&near, 11) && !mm2_cpus_has(&near, 4));

    put("sys/devices/system/node/has_cpu", "0-16\n"); /* more than are handled */
    for (int node = 0; node < 17; node++) {
        char path[64], text[16];
        snprintf(path, sizeof path, "sys/devices/system/node/node%d/cpulist", node);
        snprintf(text, sizeof text, "%d\n", node);
        put(path, text);
    }
    assert_int_equal(mm2_numa_nodes_under(root, &allowed, -1, NULL), 1);
    put("sys/devices/system/node/has_cpu", "0-15\n");
    assert_int_equal(mm2_numa_nodes_under(root, &allowed, -1, NULL), 16);
}

static void test_fake_nodes(void **state)
{
    (void)state;
    static const char *const nonsense[] = {"", "0", "17", "-2", "2x", "99999999999999999999"};
    unsetenv("MM2_NUMA_FAKE");
    int32_t real = mm2_numa_nodes();
    mm2_cpus before, after;
    mm2_cpus_allowed(&before);
    setenv("MM2_NUMA_FAKE", "3", 1);
    assert_int_equal(mm2_numa_nodes(), 3);
    mm2_numa_bind(1);
    mm2_cpus_allowed(&after);
    assert_memory_equal(&before, &after, sizeof before);
    for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
        setenv("MM2_NUMA_FAKE", nonsense[i], 1);
        assert_int_equal(mm2_numa_nodes(), real);
    }
    unsetenv("MM2_NUMA_FAKE");
}

static void test_memory(void **state)
{
    (void)state;
    assert_true(mm2_memory_available_under(root) == INT64_MAX);
    assert_true(mm2_memory_present_under(root) == INT64_MAX);
    put("proc/meminfo", "MemTotal:       8000 kB\nMemFree: 1 kB\nMemAvailable:   5000 kB\n");
    assert_true(mm2_memory_available_under(root) == 5000 * 1024);
    assert_true(mm2_memory_present_under(root) == 8000 * 1024);
    put("proc/self/cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/b/memory.max", "max\n");
    put("sys/fs/cgroup/a/b/memory.current", "1000000\n");
    put("sys/fs/cgroup/a/memory.max", "3000000\n");
    put("sys/fs/cgroup/a/memory.current", "2500000\n");
    assert_true(mm2_memory_available_under(root) == 500000);
    assert_true(mm2_memory_present_under(root) == 3000000);
    put("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 300000\nactive_file 100000\n");
    assert_true(mm2_memory_available_under(root) == 900000); /* page cache can be had */
    put("sys/fs/cgroup/a/memory.current", "9000000\n");
    assert_true(mm2_memory_available_under(root) == 0);

    put("proc/self/cgroup", "4:memory:/m\n");
    put("sys/fs/cgroup/memory/m/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/memory/m/memory.usage_in_bytes", "4096\n");
    assert_true(mm2_memory_available_under(root) == 5000 * 1024);
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "8192\n");
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "4096\n");
    assert_true(mm2_memory_available_under(root) == 4096);
    assert_true(mm2_memory_present_under(root) == 8192);
}

/* Whatever the files hold. */
static void test_hostile_files(void **state)
{
    (void)state;
    static const char *const texts[] = {"",
                                        "\n",
                                        ":",
                                        "::",
                                        "0::",
                                        "0:::/",
                                        "a:cpu,memory",
                                        "4:cpu,memory:/../../..\n",
                                        "-1\n",
                                        "99999999999999999999999",
                                        "max max",
                                        "1 1",
                                        "0-99999999999",
                                        ",,,,"};
    char longest[40000];
    memset(longest, '/', sizeof longest);
    memcpy(longest, "0::", 3);
    longest[sizeof longest - 1] = 0;
    for (size_t i = 0; i <= sizeof texts / sizeof *texts; i++) {
        const char *text = i < sizeof texts / sizeof *texts ? texts[i] : longest;
        put("proc/self/cgroup", text);
        put("proc/meminfo", text);
        put("sys/fs/cgroup/cpu.max", text);
        put("sys/fs/cgroup/memory.max", text);
        put("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", text);
        put("sys/devices/system/node/has_cpu", i % 2 ? text : "0-99999999999");
        put("sys/devices/system/node/node0/cpulist", text);
        assert_in_range(mm2_cpu_cores_under(root), 1, affinity());
        assert_true(mm2_memory_available_under(root) >= 0);
        assert_true(mm2_memory_present_under(root) >= 0);
        mm2_cpus allowed, near;
        mm2_cpus_allowed(&allowed);
        assert_int_equal(mm2_numa_nodes_under(root, &allowed, 0, &near), 1);
    }
}

static void test_this_machine(void **state)
{
    (void)state;
    const mm2_cpu_facts *cpu = mm2_cpu_find();
    assert_true(cpu->avx2 || !cpu->avx512);
    assert_true(cpu->avx512 || !cpu->amx);
    assert_true(strlen(cpu->vendor) > 0);
    assert_in_range(mm2_cpu_cores(), 1, affinity());
    assert_true(mm2_memory_available() > 0);
    assert_true(mm2_memory_available() <= mm2_memory_present());
    assert_non_null(strstr(mm2_cpu(), cpu->vendor));
    assert_ptr_equal(mm2_cpu(), mm2_cpu());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_siblings_count_once, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_quota, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_nodes, make_root, remove_root),
        cmocka_unit_test(test_fake_nodes),
        cmocka_unit_test_setup_teardown(test_memory, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_hostile_files, make_root, remove_root),
        cmocka_unit_test(test_this_machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
