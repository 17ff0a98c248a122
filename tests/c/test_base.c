/* base/: sentences, the string map, files and the thread pool. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/pool.h"
#include "base/status.h"
#include "base/strmap.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- status ---- */

static void check_number(const char *expected, double value)
{
    char text[64];
    mm2_format(text, sizeof text, "%g", value);
    assert_string_equal(expected, text);
}

static void sentences_are_formatted_like_the_standard_formatter(void **state)
{
    char ours[128], theirs[128];
    mm2_format(ours, sizeof ours, "%s|%.*s|%d|%u|%lld|%llu|%%", "text", 3, "abcdef",
               -2147483647 - 1, 4294967295u, (long long)INT64_MIN, 18446744073709551615ULL);
    snprintf(theirs, sizeof theirs, "%s|%.*s|%d|%u|%lld|%llu|%%", "text", 3, "abcdef",
             -2147483647 - 1, 4294967295u, (long long)INT64_MIN, 18446744073709551615ULL);
    assert_string_equal(theirs, ours);
    assert_int_equal(strlen(theirs), mm2_format(ours, 8, "%s", theirs)); /* full length, cut text */
    assert_int_equal(7, strlen(ours));
    check_number("0", 0);
    check_number("1.5", 1.5);
    check_number("-0.05", -0.05);
    check_number("123456", 123456);
    check_number("1e-6", 1e-6); /* exponents are not padded */
    check_number("2.5e20", 2.5e20);
    check_number("nan", 0.0 / 0.0);
    check_number("inf", 1e308 * 10);
}

static void *fail_elsewhere(void *argument)
{
    mm2_fail(MM2_E_IO, "another thread");
    return argument;
}

static void a_sentence_belongs_to_its_thread(void **state)
{
    pthread_t other;
    assert_int_equal(MM2_E_ARG, mm2_fail(MM2_E_ARG, "this thread, %d", 7));
    pthread_create(&other, NULL, fail_elsewhere, NULL);
    pthread_join(other, NULL);
    assert_string_equal("this thread, 7", mm2_error());
    assert_int_equal(MM2_E_IO, mm2_fail_in(MM2_E_IO, "file"));
    assert_string_equal("file: this thread, 7", mm2_error());
}

/* ---- strmap ---- */

static void a_map_finds_what_was_added_and_refuses_duplicates(void **state)
{
    enum { COUNT = 5000 };
    static char keys[COUNT][16];
    mm2_strmap map;
    assert_int_equal(0, mm2_strmap_init(&map, 4));
    for (int i = 0; i < COUNT; i++) {
        snprintf(keys[i], sizeof keys[i], "key%d", i * 7);
        assert_int_equal(1, mm2_strmap_add(&map, keys[i], (uint32_t)strlen(keys[i]), i));
    }
    assert_int_equal(0, mm2_strmap_add(&map, "key7", 4, 99));
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(i, mm2_strmap_find(&map, keys[i], (uint32_t)strlen(keys[i])));
    assert_int_equal(-1, mm2_strmap_find(&map, "key1", 4));
    assert_int_equal(-1, mm2_strmap_find(&map, "", 0));
    assert_int_equal(1, mm2_strmap_add(&map, "", 0, 5));
    assert_int_equal(5, mm2_strmap_find(&map, "", 0));
    assert_int_equal(COUNT + 1, map.count);
    mm2_strmap_free(&map);
    assert_int_equal(-1, mm2_strmap_find(&map, "key7", 4));
}

/* ---- file ---- */

static void a_file_is_mapped_and_odd_ones_are_refused(void **state)
{
    char dir[] = "/tmp/minimax2-test-XXXXXX", path[64], *joined;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/data", dir);
    FILE *f = fopen(path, "w");
    fputs("hello", f);
    fclose(f);
    mm2_file file;
    assert_int_equal(MM2_OK, mm2_file_open(&file, path, 1));
    assert_int_equal(5, file.size);
    file.data[0] = 'J'; /* copy-on-write: the file keeps its bytes */
    mm2_file_close(&file);
    mm2_file_close(&file);
    assert_int_equal(MM2_OK, mm2_file_open(&file, path, 0));
    assert_memory_equal("hello", file.data, 5);
    mm2_file_close(&file);
    assert_int_equal(MM2_E_IO, mm2_file_open(&file, dir, 0));
    assert_non_null(strstr(mm2_error(), "directory"));
    unlink(path);
    assert_int_equal(MM2_E_IO, mm2_file_open(&file, path, 0));
    assert_non_null(strstr(mm2_error(), path));
    assert_int_equal(0, mkfifo(path, 0600));
    assert_int_equal(MM2_E_IO, mm2_file_open(&file, path, 0));
    unlink(path);
    rmdir(dir);
    const char *bad[] = {"../x", "/etc/passwd", "a/b", "", ".", ".."};
    for (int i = 0; i < 6; i++)
        assert_int_equal(MM2_E_FORMAT, mm2_file_join(&joined, dir, bad[i], "shard"));
    assert_int_equal(MM2_OK, mm2_file_join(&joined, "d", "x.gguf", "shard"));
    assert_string_equal("d/x.gguf", joined);
    free(joined);
}

/* ---- pool ---- */

enum { UNITS = 10000 };

typedef struct counting {
    atomic_int done[UNITS];
    atomic_int threads[8], stop;
    int stop_at;
} counting;

static void count_unit(void *context, int32_t unit, int32_t thread)
{
    counting *c = context;
    atomic_fetch_add(&c->done[unit], 1);
    atomic_fetch_add(&c->threads[thread], 1);
    if (c->stop_at && unit >= c->stop_at)
        atomic_store(&c->stop, 1);
    for (volatile int i = 0; i < 50; i++)
        ;
}

static const mm2_limit forever = {.deadline = INT64_MAX};

static void check_prefix(const counting *c, int32_t done)
{
    for (int i = 0; i < UNITS; i++)
        assert_int_equal(i < done, atomic_load(&c->done[i]));
}

static void every_unit_is_run_once(void **state)
{
    for (int32_t threads = 1; threads <= 8; threads++) {
        mm2_pool *p;
        counting c = {0};
        assert_int_equal(MM2_OK, mm2_pool_new(&p, threads));
        for (int repeat = 0; repeat < 20; repeat++) {
            int32_t next = 0;
            memset(&c, 0, sizeof c);
            mm2_pool_run(p, count_unit, &c, &next, UNITS, &forever);
            assert_int_equal(UNITS, next);
            check_prefix(&c, UNITS);
        }
        mm2_pool_free(p);
    }
}

static void units_done_are_a_prefix_when_stopped(void **state)
{
    mm2_pool *p;
    assert_int_equal(MM2_OK, mm2_pool_new(&p, 3));
    counting c = {.stop_at = 4000};
    mm2_limit limit = {.deadline = INT64_MAX, .stop = &c.stop};
    int32_t next = 0;
    mm2_pool_run(p, count_unit, &c, &next, UNITS, &limit);
    assert_in_range(next, 4001, UNITS - 1);
    check_prefix(&c, next);
    /* A raised flag or a deadline long past still lets one unit through: a caller that repeats makes progress. */
    int32_t before = next;
    mm2_pool_run(p, count_unit, &c, &next, UNITS, &limit);
    assert_in_range(next, before + 1, UNITS - 1);
    mm2_limit past = {.deadline = 1};
    before = next;
    mm2_pool_run(p, count_unit, &c, &next, UNITS, &past);
    assert_in_range(next, before + 1, before + 3);
    check_prefix(&c, next);
    mm2_pool_free(p);
}

typedef struct caller {
    mm2_pool *pool;
    counting counts;
} caller;

static void *run_many(void *argument)
{
    caller *c = argument;
    for (int repeat = 0; repeat < 50; repeat++) {
        int32_t next = 0;
        memset(&c->counts, 0, sizeof c->counts);
        mm2_pool_run(c->pool, count_unit, &c->counts, &next, UNITS, &forever);
        check_prefix(&c->counts, UNITS);
    }
    return NULL;
}

static void callers_may_share_a_pool(void **state)
{
    mm2_pool *p;
    pthread_t threads[4];
    static caller callers[4];
    assert_int_equal(MM2_OK, mm2_pool_new(&p, 2));
    for (int i = 0; i < 4; i++) {
        callers[i].pool = p;
        pthread_create(&threads[i], NULL, run_many, &callers[i]);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    mm2_pool_free(p);
}

static void a_forked_child_has_workers_of_its_own(void **state)
{
    mm2_pool *p;
    static counting c;
    int32_t next = 0;
    assert_int_equal(MM2_OK, mm2_pool_new(&p, 3));
    mm2_pool_run(p, count_unit, &c, &next, UNITS, &forever);
    pid_t child = fork();
    if (!child) {
        alarm(20);
        memset(&c, 0, sizeof c);
        next = 0;
        mm2_pool_prepare(p);
        mm2_pool_run(p, count_unit, &c, &next, UNITS, &forever);
        int good = next == UNITS;
        for (int i = 0; i < UNITS; i++)
            good &= atomic_load(&c.done[i]) == 1;
        mm2_pool_free(p);
        _exit(good ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    mm2_pool_free(p);
}

static void the_float_mode_is_given_back(void **state)
{
    volatile float tiny = 1e-39f;
    uint32_t saved = mm2_float_mode_enter();
#if defined(__x86_64__)
    assert_true(tiny * 1.0f == 0);
#endif
    mm2_float_mode_leave(saved);
    assert_true(tiny * 1.0f != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sentences_are_formatted_like_the_standard_formatter),
        cmocka_unit_test(a_sentence_belongs_to_its_thread),
        cmocka_unit_test(a_map_finds_what_was_added_and_refuses_duplicates),
        cmocka_unit_test(a_file_is_mapped_and_odd_ones_are_refused),
        cmocka_unit_test(every_unit_is_run_once),
        cmocka_unit_test(units_done_are_a_prefix_when_stopped),
        cmocka_unit_test(callers_may_share_a_pool),
        cmocka_unit_test(a_forked_child_has_workers_of_its_own),
        cmocka_unit_test(the_float_mode_is_given_back),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
