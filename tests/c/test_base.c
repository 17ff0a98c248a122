/* base/: sentences, the string map, files and the thread pool. */
#define _GNU_SOURCE /* sched_setaffinity */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json_tree.h"
#include "base/pool.h"
#include "base/status.h"
#include "base/strmap.h"

#include <limits.h>
#include <malloc.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
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

static void foreign_text_is_printable_in_sentences(void **state)
{
    char text[2000], expected[2000];
    mm2_fail(MM2_E_IO, "%s|%s", "a\x1b[2J\x07\n\x7f\xff", "\xc3\xa9\xc2\x9b\xe2\x82\xac\xc3");
    assert_string_equal(mm2_error(),
                        "a\\x1b[2J\\x07\\x0a\\x7f\\xff|\xc3\xa9\\xc2\\x9b\xe2\x82\xac\\xc3");
    mm2_fail_in(MM2_E_IO, "\x1b");
    assert_int_equal(0, strncmp(mm2_error(), "\\x1b: a\\x1b[2J", 14));
    mm2_fail(MM2_E_IO, "%.*s%.*s", 4, "ab\xe2\x82\xac", 2, "\xff\x01"); /* cut: no half character */
    assert_string_equal(mm2_error(), "ab\\xff\\x01");
    mm2_format(text, sizeof text, "%s", "\x1b"); /* not a sentence: a path, say */
    assert_string_equal(text, "\x1b");
    memset(text, 'x', sizeof text);
    memcpy(text, "\xc3\xa9", 2);
    strcpy(text + 1496, "end");
    mm2_fail(MM2_E_IO, "%s: it broke", text);
    memset(expected, 'x', sizeof expected);
    memcpy(expected, "\xc3\xa9", 2);
    memcpy(expected + 240, "...", 3);
    strcpy(expected + 480, "end: it broke");
    assert_string_equal(mm2_error(), expected);
    for (int i = 0; i < 2000; i += 2) /* of two bytes each, from an odd place on */
        memcpy(text + i, "\xc3\xa9", 2);
    text[470] = 0;
    mm2_fail(MM2_E_IO, "!%s%s%s", text, text, text);
    assert_int_equal(strlen(mm2_error()), 1022);
    assert_string_equal(mm2_error() + 1017, "\xc3\xa9...");
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
    const char *own;
    *mm2_strmap_at(&map, "key7", 4, &own) = -9;
    assert_ptr_equal(keys[1], own);
    assert_int_equal(-9, mm2_strmap_find(&map, "key7", 4));
    assert_null(mm2_strmap_at(&map, "key1", 4, &own));
    assert_null(mm2_strmap_at(&map, "no such end", 11, &own));
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
    assert_int_equal(1, mm2_file_exists(path));
    unlink(path);
    assert_int_equal(0, mm2_file_exists(path));
    assert_int_equal(0, symlink("nowhere", path));
    assert_int_equal(MM2_E_IO, mm2_file_exists(path));
    assert_non_null(strstr(mm2_error(), "is a link to a file that does not exist"));
    unlink(path);
    assert_int_equal(0, symlink("data", path));
    assert_int_equal(MM2_E_IO, mm2_file_exists(path));
    assert_non_null(strstr(mm2_error(), "Too many levels of symbolic links"));
    unlink(path);
    rmdir(dir);
    const char *bad[] = {"../x", "/etc/passwd", "a/b", "", ".", ".."};
    for (int i = 0; i < 6; i++)
        assert_int_equal(MM2_E_FORMAT, mm2_file_join(&joined, dir, bad[i], "shard"));
    assert_int_equal(MM2_OK, mm2_file_join(&joined, "d", "x.gguf", "shard"));
    assert_string_equal("d/x.gguf", joined);
    free(joined);
}

/* ---- JSON ---- */

static mm2_status read_tree(mm2_json_tree *t, const char *text)
{
    mm2_json j;
    mm2_json_begin(&j, "x.json", text, (int64_t)strlen(text));
    mm2_status status = mm2_json_tree_read(t, &j);
    return status ? status : mm2_json_end(&j);
}

static void a_tree_is_looked_up_by_name_and_by_place(void **state)
{
    mm2_json_tree t;
    int32_t flag = -1;
    int64_t number;
    assert_int_equal(read_tree(&t, " {\"a\": [1, [2, {\"a\": 3}], \"x\\u00e9\\n\", []],\n"
                                   "\"none\": null, \"yes\": true, \"no\": false, \"\": {}, "
                                   "\"deep\": {\"a\": {\"b\": \"found\"}}} "),
                     MM2_OK);
    const mm2_value *root = t.values, *list = mm2_value_field(root, "a");
    assert_string_equal(mm2_value_kind(root), "an object");
    assert_int_equal(mm2_value_count(list), 4);
    assert_int_equal(mm2_value_count(root), 0);
    assert_string_equal(mm2_value_text(mm2_value_item(list, 2)), "x\xc3\xa9\n");
    assert_int_equal(mm2_value_item(list, 2)->size, 4);
    assert_true(mm2_value_integer(mm2_value_field(mm2_value_item(mm2_value_item(list, 1), 1), "a"),
                                  &number));
    assert_int_equal(number, 3);
    assert_string_equal(mm2_value_kind(mm2_value_item(list, 3)), "an array");
    assert_null(mm2_value_item(list, 4));
    assert_null(mm2_value_next(mm2_value_item(list, 3), NULL));
    int items = 0;
    for (const mm2_value *item = NULL; (item = mm2_value_next(list, item));)
        items++;
    assert_int_equal(items, 4);
    assert_null(mm2_value_field(root, "none"));
    assert_null(mm2_value_field(root, "b"));
    assert_null(mm2_value_field(list, "a"));
    assert_null(mm2_value_field(NULL, "a"));
    assert_null(mm2_value_text(mm2_value_item(list, 0)));
    assert_string_equal(mm2_value_kind(NULL), "nothing");
    assert_true(mm2_value_flag(mm2_value_field(root, "yes"), &flag) && flag == 1);
    assert_true(mm2_value_flag(mm2_value_field(root, "no"), &flag) && flag == 0);
    assert_false(mm2_value_flag(list, &flag));
    const mm2_value *deep = mm2_value_field(mm2_value_field(root, "deep"), "a");
    assert_true(mm2_value_says(mm2_value_field(deep, "b"), "found"));
    assert_false(mm2_value_says(mm2_value_field(deep, "b"), "foun"));
    mm2_json_tree_free(&t);
    mm2_json_tree_free(&t);
}

static void check_double(const char *text)
{
    mm2_json_tree t;
    double value = -1;
    assert_int_equal(read_tree(&t, text), MM2_OK);
    assert_true(mm2_value_number(t.values, &value));
    double expected = strtod(text, NULL), next = nextafter(expected, INFINITY) - expected;
    int is_exact =
        strlen(text) < 16 && (!expected || (fabs(expected) > 1e-7 && fabs(expected) < 1e22));
    if (fabs(value - expected) > next || (is_exact && value != expected)) {
        print_message("%s: %.17g\n", text, value);
        fail();
    }
    mm2_json_tree_free(&t);
}

static void numbers_are_text_until_they_are_asked_for(void **state)
{
    static const char *const numbers[] = {"0",
                                          "-0",
                                          "-0.0",
                                          "1",
                                          "-1",
                                          "1e-06",
                                          "1E+22",
                                          "0.95",
                                          "5000000.0",
                                          "1e-5",
                                          "123456.789",
                                          "0.30000000000000004",
                                          "9007199254740993",
                                          "18446744073709551615",
                                          "1e300",
                                          "1e-300",
                                          "2.2250738585072014e-308",
                                          "1.7976931348623157e308",
                                          "5e-324",
                                          "1e-400",
                                          "0e99999999999",
                                          "100000000000000000000000000000000000000000",
                                          "0.00000000000000000000000000000000000001",
                                          "1000000000000000019884624838656",
                                          "123456789012345678901234567890e-29"};
    static const char *const whole[] = {"0", "-0", "9223372036854775807", "-9223372036854775808"};
    static const char *const no_whole[] = {"1.0",
                                           "1e3",
                                           "9223372036854775808",
                                           "NaN",
                                           "-Infinity",
                                           "-9223372036854775809",
                                           "1000000000000000019884624838656"};
    static const char *const no_double[] = {"1e309", "-1e309",   "1e99999999999999999999",
                                            "NaN",   "Infinity", "-Infinity",
                                            "\"1\"", "[1]",      "null"};
    mm2_json_tree t;
    double value;
    int64_t number;
    char text[64];
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        check_double(numbers[i]);
    for (int i = 0; i < 20000; i++) {
        snprintf(text, sizeof text, "%.*g", 1 + i % 17, ldexp(rand() * 1e-3 + 1, i % 600 - 300));
        check_double(text);
    }
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        assert_int_equal(read_tree(&t, whole[i]), MM2_OK);
        assert_true(mm2_value_integer(t.values, &number));
        assert_int_equal(number, strtoll(whole[i], NULL, 10));
        mm2_json_tree_free(&t);
    }
    for (size_t i = 0; i < sizeof no_whole / sizeof *no_whole; i++) {
        assert_int_equal(read_tree(&t, no_whole[i]), MM2_OK);
        assert_false(mm2_value_integer(t.values, &number));
        mm2_json_tree_free(&t);
    }
    for (size_t i = 0; i < sizeof no_double / sizeof *no_double; i++) {
        assert_int_equal(read_tree(&t, no_double[i]), MM2_OK);
        assert_false(mm2_value_number(t.values, &value));
        mm2_json_tree_free(&t);
    }
}

static void a_tree_refuses_what_is_not_json(void **state)
{
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "line 1, JSON byte 0: expected a value, found the end"},
        {"{\n\"a\": 1,\n}", "line 3, JSON byte 10: expected a string, found }"},
        {"[1,]", "expected a value, found ]"},
        {"{\"a\": [{\"b\": 1, \"c\": 2, \"b\": 3}]}", "the key \"b\" appears twice in one object"},
        {"{\"a\": 1, \"\\u0061\": 1}", "the key \"a\" appears twice in one object"},
        {"[tru]", "a value"},
        {"[nul]", "a value"},
        {"[+1]", "a value"},
        {"[01]", "a value"},
        {"[-]", "a value"},
        {"[.5]", "a value"},
        {"[1.]", "a value"},
        {"[1e]", "a value"},
        {"[1e+]", "a value"},
        {"[-01]", "a value"},
        {"[nan]", "a value"},
        {"[1 2]", "a comma or ]"},
        {"[0x10]", "a comma or ]"},
        {"[truefalse]", "a comma or ]"},
        {"\"\\x\"", "an escape"},
        {"{1: 2}", "a string"},
        {"{\"a\" 2}", "a colon"},
        {"[1}", "a comma or ]"},
        {"{} {}", "nothing more"},
        {"[\"a", "a closing quote"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mm2_json_tree t;
        assert_int_equal(read_tree(&t, cases[i].text), MM2_E_FORMAT);
        if (!strstr(mm2_status_text(), cases[i].words))
            fail_msg("%s: %s", cases[i].text, mm2_status_text());
        assert_ptr_equal(strstr(mm2_status_text(), "x.json: "), mm2_status_text());
        mm2_json_tree_free(&t);
    }
}

/* Any damaged byte gives a tree or a sentence: nothing is read beyond the text. */
static void damaged_bytes_give_a_tree_or_a_sentence(void **state)
{
    static const char document[] =
        "{\"a\": [1, -2.5e+3, true, null, \"x\\u00e9\\ud83d\\ude00\\n\"], "
        "\"b\": {\"c\": [[], {}], \"\xc3\xa9\": NaN}, \"d\": \"\\\\\"}";
    static const char bytes[] = "{}[]\",:\\u0e-+.tnN \n\xff\xc3\x01";
    enum { LENGTH = sizeof document - 1 };
    int opened = 0;
    for (int round = 0; round < 40000; round++) {
        int length = round % 5 ? LENGTH : 1 + round * 31 % LENGTH;
        char *text = malloc((size_t)length); /* exactly: a sanitizer sees the byte behind it */
        memcpy(text, document, (size_t)length);
        for (int i = 0; i <= round % 3; i++)
            text[(round * 7919 + i * 104729) % length] =
                bytes[(round + i * 5) % (int)(sizeof bytes - 1)];
        mm2_json j;
        mm2_json_tree t;
        mm2_json_begin(&j, "x.json", text, length);
        mm2_status status = mm2_json_tree_read(&t, &j);
        assert_true(status == MM2_OK || (status == MM2_E_FORMAT && *mm2_error()));
        opened += !status;
        free(text);
        mm2_value_field(t.values, "d"); /* the tree is its own */
        mm2_json_tree_free(&t);
    }
    assert_in_range(opened, 1000, 39000);
}

enum { BOMB = 300000 };

static void *read_deep_tree(void *text)
{
    mm2_json_tree t;
    for (int depth = 64; depth <= BOMB; depth += BOMB - 64) {
        memset(text, '[', (size_t)depth);
        memset((char *)text + depth, ']', (size_t)depth);
        ((char *)text)[2 * depth] = 0;
        assert_int_equal(read_tree(&t, text), depth == 64 ? MM2_OK : MM2_E_FORMAT);
        mm2_json_tree_free(&t);
    }
    return NULL;
}

static void a_tree_is_small_beside_its_text_and_deep_ones_need_no_stack(void **state)
{
    char *text = malloc(4 * BOMB);
    mm2_json_tree t;
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, PTHREAD_STACK_MIN < 65536 ? 65536 : PTHREAD_STACK_MIN);
    assert_int_equal(pthread_create(&thread, &small, read_deep_tree, text), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&small);

    strcpy(text, "[0");
    for (int i = 2; i < BOMB; i += 2)
        memcpy(text + i, ",0", 3);
    strcat(text, "]");
    assert_int_equal(read_tree(&t, text), MM2_OK);
    assert_int_equal(mm2_value_count(t.values), BOMB / 2);
    assert_in_range(malloc_usable_size(t.values), 0, 8 * BOMB + 5000);
    assert_in_range(malloc_usable_size(t.texts), 0, BOMB + 5000);
    mm2_json_tree_free(&t);

    char *end = text + sprintf(text, "{\"k\":0");
    for (int i = 0; i < BOMB / 12; i++)
        end += sprintf(end, ",\"%d\":0", i * 7919 % (BOMB / 12)); /* all different */
    strcpy(end, "}");
    assert_int_equal(read_tree(&t, text), MM2_OK);
    assert_non_null(mm2_value_field(t.values, "24999"));
    mm2_json_tree_free(&t);
    strcpy(end, ",\"17\":0}");
    assert_int_equal(read_tree(&t, text), MM2_E_FORMAT);
    free(text);
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

/* Node `node` of `nodes` has done the first next[node] of its units and nothing else. */
static void check_progress(const counting *c, const mm2_progress *done, int32_t nodes)
{
    int32_t period = done->period ? done->period : UNITS;
    for (int32_t node = 0; node < nodes; node++) {
        int32_t first = (int32_t)((int64_t)period * node / nodes);
        int32_t end = (int32_t)((int64_t)period * (node + 1) / nodes), seen = 0;
        for (int32_t i = 0; i < UNITS; i++)
            if (i % period >= first && i % period < end)
                assert_int_equal(seen++ < done->next[node], atomic_load(&c->done[i]));
    }
}

static int32_t done_of(const mm2_progress *progress)
{
    int32_t done = 0;
    for (int32_t node = 0; node < MM2_NODES; node++)
        done += progress->next[node];
    return done;
}

static mm2_pool *pool_of(int32_t threads, const char *nodes)
{
    mm2_pool *p;
    assert_int_equal(0, nodes ? setenv("MM2_NUMA_FAKE", nodes, 1) : unsetenv("MM2_NUMA_FAKE"));
    assert_int_equal(MM2_OK, mm2_pool_new(&p, threads));
    unsetenv("MM2_NUMA_FAKE");
    return p;
}

static void every_unit_is_run_once(void **state)
{
    static const char *const nodes[] = {NULL, "2", "3", "16"};
    static const int32_t periods[] = {0, 1, 7, 1000, 3 * UNITS};
    for (int32_t threads = 1; threads <= 8; threads++)
        for (int32_t n = 0; n < 4; n++) {
            mm2_pool *p = pool_of(threads, nodes[n]);
            for (int32_t i = 0; i < 5; i++) {
                counting c = {0};
                mm2_progress progress = {.period = periods[i]};
                assert_true(mm2_pool_run(p, count_unit, &c, &progress, UNITS, &forever));
                assert_int_equal(UNITS, done_of(&progress));
                for (int32_t unit = 0; unit < UNITS; unit++)
                    assert_int_equal(1, atomic_load(&c.done[unit]));
                /* Again: nothing is left. */
                assert_true(mm2_pool_run(p, count_unit, &c, &progress, UNITS, &forever));
                assert_int_equal(1, atomic_load(&c.done[0]));
            }
            mm2_pool_free(p);
        }
}

/* With one node: a prefix of all units. */
static void units_done_are_a_prefix_of_each_node(void **state)
{
    static const char *const nodes[] = {NULL, "2", "3"};
    for (int32_t n = 0; n < 3; n++)
        for (int32_t period = 0; period < 300; period += 100) {
            mm2_pool *p = pool_of(3, nodes[n]);
            static counting c;
            memset(&c, 0, sizeof c);
            c.stop_at = 1500;
            mm2_limit limit = {.deadline = INT64_MAX, .stop = &c.stop};
            mm2_progress progress = {.period = period};
            assert_false(mm2_pool_run(p, count_unit, &c, &progress, UNITS, &limit));
            assert_in_range(done_of(&progress), 1, UNITS - 1);
            check_progress(&c, &progress, n + 1);
            /* A raised flag or a deadline long past still lets one unit through: a caller that
             * repeats makes progress. */
            int32_t before = done_of(&progress);
            assert_false(mm2_pool_run(p, count_unit, &c, &progress, UNITS, &limit));
            assert_in_range(done_of(&progress), before + 1, UNITS - 1);
            mm2_limit late = {.deadline = 1};
            before = done_of(&progress);
            assert_false(mm2_pool_run(p, count_unit, &c, &progress, UNITS, &late));
            assert_in_range(done_of(&progress), before + 1, before + 3);
            check_progress(&c, &progress, n + 1);
            assert_true(mm2_pool_run(p, count_unit, &c, &progress, UNITS, &forever));
            check_progress(&c, &progress, n + 1);
            mm2_pool_free(p);
        }
}

typedef struct caller {
    mm2_pool *pool;
    counting counts;
} caller;

static void *run_many(void *argument)
{
    caller *c = argument;
    for (int repeat = 0; repeat < 50; repeat++) {
        mm2_progress progress = {0};
        memset(&c->counts, 0, sizeof c->counts);
        assert_true(mm2_pool_run(c->pool, count_unit, &c->counts, &progress, UNITS, &forever));
        for (int32_t i = 0; i < UNITS; i++)
            assert_int_equal(1, atomic_load(&c->counts.done[i]));
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
    mm2_progress progress = {0};
    assert_int_equal(MM2_OK, mm2_pool_new(&p, 3));
    mm2_pool_run(p, count_unit, &c, &progress, UNITS, &forever);
    pid_t child = fork();
    if (!child) {
        alarm(20);
        memset(&c, 0, sizeof c);
        progress = (mm2_progress){0};
        mm2_pool_prepare(p);
        int good = mm2_pool_run(p, count_unit, &c, &progress, UNITS, &forever);
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

/* The workers crowd on one CPU with their caller: slower, but nobody waits for ever. */
static void the_mask_may_shrink_under_way(void **state)
{
    cpu_set_t before, one;
    assert_int_equal(0, sched_getaffinity(0, sizeof before, &before));
    CPU_ZERO(&one);
    for (int cpu = 0; !CPU_COUNT(&one); cpu++)
        if (CPU_ISSET(cpu, &before))
            CPU_SET(cpu, &one);
    mm2_pool *p = pool_of(4, NULL), *late = pool_of(4, NULL);
    static counting c;
    mm2_progress progress = {0}, again = {0};
    assert_true(mm2_pool_run(p, count_unit, &c, &progress, UNITS, &forever));
    assert_int_equal(0, sched_setaffinity(0, sizeof one, &one));
    progress = (mm2_progress){0};
    alarm(60);
    assert_true(mm2_pool_run(p, count_unit, &c, &progress, UNITS, &forever));
    assert_true(mm2_pool_run(late, count_unit, &c, &again, UNITS, &forever));
    alarm(0);
    assert_int_equal(0, sched_setaffinity(0, sizeof before, &before));
    mm2_pool_free(p);
    mm2_pool_free(late);
}

/* Process time over a fifth of a second without work: at most a tenth of what it would be if a
 * single worker went on spinning. Falling asleep takes a little, and more on a busy machine. */
static void idle_workers_sleep(void **state)
{
    mm2_pool *p = pool_of(4, NULL);
    static counting c;
    mm2_progress progress = {0};
    assert_true(mm2_pool_run(p, count_unit, &c, &progress, UNITS, &forever));
    struct timespec t, wait = {.tv_nsec = 200000000};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    int64_t before = t.tv_sec * 1000000000LL + t.tv_nsec;
    nanosleep(&wait, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    assert_in_range(t.tv_sec * 1000000000LL + t.tv_nsec - before, 0, 20000000);
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
        cmocka_unit_test(foreign_text_is_printable_in_sentences),
        cmocka_unit_test(a_sentence_belongs_to_its_thread),
        cmocka_unit_test(a_map_finds_what_was_added_and_refuses_duplicates),
        cmocka_unit_test(a_file_is_mapped_and_odd_ones_are_refused),
        cmocka_unit_test(a_tree_is_looked_up_by_name_and_by_place),
        cmocka_unit_test(numbers_are_text_until_they_are_asked_for),
        cmocka_unit_test(a_tree_refuses_what_is_not_json),
        cmocka_unit_test(damaged_bytes_give_a_tree_or_a_sentence),
        cmocka_unit_test(a_tree_is_small_beside_its_text_and_deep_ones_need_no_stack),
        cmocka_unit_test(every_unit_is_run_once),
        cmocka_unit_test(units_done_are_a_prefix_of_each_node),
        cmocka_unit_test(callers_may_share_a_pool),
        cmocka_unit_test(a_forked_child_has_workers_of_its_own),
        cmocka_unit_test(the_mask_may_shrink_under_way),
        cmocka_unit_test(idle_workers_sleep),
        cmocka_unit_test(the_float_mode_is_given_back),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
