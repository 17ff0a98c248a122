/* The cache of prefixes through the public functions, on m2-tiny: what is taken has the bits of what
 * is evaluated, whoever put it in, from memory and from files; what is known to be edited or damaged
 * is never taken; memory and folder stay within their limits, the least recently used pages go first,
 * and nothing leaks. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run/session.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* MM2_PREFIXES in the environment: that many times as much chance. */
enum { VOCAB = 4096, CONTEXT = 900, LENGTH = 700, KNOWN = 512 };

static const char tiny[] = "../python/minimax2/m2-tiny";
static char folder[] = "/tmp/minimax2-prefix-XXXXXX", other[80];
static mm2_model *plain, *model;
static int32_t ids[CONTEXT + 1000];
static int64_t page_bytes;
static int32_t times = 1;

/* ---- The system's calls, which fail when a test says so ---- */

static atomic_int disk_is_full;

#pragma GCC visibility push(default)

ssize_t pwrite(int file, const void *data, size_t size, off_t at)
{
    if (atomic_load(&disk_is_full)) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwrite64, file, data, size, at);
}

#pragma GCC visibility pop

/* ---- Helpers ---- */

static mm2_model *open_with(int64_t limit, const char *where, int64_t disk, int32_t precision)
{
    mm2_model_options o = {.size = sizeof o};
    mm2_model *m;
    mm2_model_options_init(&o);
    o.threads = 2;
    o.prefix_cache = limit;
    o.prefix_folder = where;
    o.prefix_disk = disk;
    o.precision = precision;
    if (mm2_model_open(&m, tiny, &o))
        fail_msg("%s", mm2_error());
    return m;
}

static mm2_session *session_of(mm2_model *m, int32_t kv_dtype)
{
    mm2_session_options o = {.size = sizeof o};
    mm2_session *s;
    mm2_session_options_init(&o);
    o.context = CONTEXT;
    o.kv_dtype = kv_dtype;
    assert_int_equal(MM2_OK, mm2_session_new(&s, m, &o));
    return s;
}

static void feed(mm2_session *s, const int32_t *tokens, int32_t n)
{
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens, n));
}

static void run(mm2_session *s)
{
    if (mm2_session_run(s, 0, NULL))
        fail_msg("%s", mm2_error());
}

static mm2_session *evaluated(mm2_model *m, const int32_t *tokens, int32_t n)
{
    mm2_session *s = session_of(m, MM2_BF16);
    feed(s, tokens, n);
    run(s);
    return s;
}

static const float *logits_of(mm2_session *s)
{
    mm2_tensor t;
    assert_int_equal(MM2_OK, mm2_session_logits(s, &t));
    return t.data;
}

/* The logits equal those of a session without a cache. */
static void assert_alone(mm2_session *s)
{
    mm2_session *alone = session_of(plain, s->timeline.kv_dtype);
    mm2_tensor tokens;
    assert_int_equal(MM2_OK, mm2_session_tokens(s, &tokens));
    feed(alone, tokens.data, (int32_t)tokens.shape[0]);
    run(alone);
    assert_memory_equal(logits_of(alone), logits_of(s), VOCAB * sizeof(float));
    mm2_session_free(alone);
}

/* Evaluates, and says how many positions were taken; the bits are those of a session alone. */
static int32_t reused(mm2_model *m, const int32_t *tokens, int32_t n)
{
    mm2_session *s = evaluated(m, tokens, n);
    int32_t taken = mm2_session_reused(s);
    assert_int_equal(n, mm2_session_position(s));
    assert_alone(s);
    mm2_session_free(s);
    return taken;
}

static mm2_prefix_stats stats_of(mm2_model *m)
{
    mm2_prefix_stats stats = {.size = sizeof stats};
    assert_int_equal(MM2_OK, mm2_model_prefix_stats(m, &stats));
    return stats;
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static void wait_until_written(mm2_model *m)
{
    while (stats_of(m).unwritten)
        nap();
}

/* A text of its own: the first token tells them apart. */
static const int32_t *text(int32_t number)
{
    return ids + number;
}

typedef char file_name[256];

static int list(file_name *names, int most)
{
    int count = 0;
    DIR *at = opendir(folder);
    for (const struct dirent *e; (e = readdir(at));)
        if (e->d_name[0] != '.' && count < most)
            snprintf(names[count++], sizeof *names, "%s", e->d_name);
    closedir(at);
    return count;
}

static int count_files(void)
{
    file_name names[64];
    return list(names, 64);
}

static void empty_folder(void)
{
    file_name names[64];
    char path[320];
    for (int i = list(names, 64); i--;) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
}

static int count_maps(void)
{
    int count = 0, c;
    FILE *f = fopen("/proc/self/maps", "r");
    while ((c = fgetc(f)) != EOF)
        count += c == '\n';
    fclose(f);
    return count;
}

static int open_cache(void **state)
{
    model = open_with((int64_t)1 << 30, NULL, 0, 0);
    return 0;
}

static int close_cache(void **state)
{
    mm2_model_release(model);
    empty_folder();
    return 0;
}

static int set_up(void **state)
{
    uint32_t seed = 1;
    const char *more = getenv("MM2_PREFIXES");
    times = more ? atoi(more) : 1;
    for (int32_t i = 0; i < CONTEXT + 1000; i++)
        ids[i] = (int32_t)((seed = seed * 1664525 + 1013904223) >> 8) % 4000;
    if (!mkdtemp(folder))
        return -1;
    snprintf(other, sizeof other, "%s/x", folder);
    plain = open_with(0, NULL, 0, 0);
    mm2_session *s = session_of(plain, MM2_BF16);
    page_bytes = s->timeline.pages.layout->page_bytes;
    mm2_session_free(s);
    return 0;
}

static int tear_down(void **state)
{
    mm2_model_release(plain);
    return rmdir(folder); /* nothing is left in it */
}

/* ---- Taking ---- */

static void a_second_session_starts_behind_what_is_known(void **state)
{
    static const int32_t dtypes[] = {MM2_F32, MM2_BF16, MM2_INT8};
    for (int32_t i = 0; i < 3; i++) {
        mm2_session *a = session_of(model, dtypes[i]), *b = session_of(model, dtypes[i]);
        feed(a, ids, LENGTH);
        run(a);
        assert_int_equal(0, mm2_session_reused(a));
        feed(b, ids, 600);
        assert_int_equal(0, mm2_session_position(b)); /* feeding does nothing yet */
        feed(b, ids + 900, 50);
        run(b);
        assert_int_equal(KNOWN, mm2_session_reused(b));
        assert_ptr_equal(a->timeline.pages.table[1], b->timeline.pages.table[1]);
        assert_alone(b);
        feed(a, ids + 300, 50); /* neither sees the other */
        run(a);
        assert_alone(a);
        mm2_session_free(a);
        feed(b, ids, 5);
        run(b);
        assert_alone(b);
        mm2_session_free(b);
    }
    mm2_prefix_stats stats = stats_of(model);
    assert_int_equal(3 * KNOWN, stats.reused);
    assert_int_equal(3 * 2, stats.added);
    assert_int_equal(0, stats.evicted + stats.read + stats.written + stats.failed);
}

static void the_last_token_is_always_evaluated(void **state)
{
    mm2_session_free(evaluated(model, ids, 800));
    assert_int_equal(0, reused(model, ids, 256));
    assert_int_equal(256, reused(model, ids, 257));
    assert_int_equal(256, reused(model, ids, 512));
    assert_int_equal(512, reused(model, ids, 513));
    assert_int_equal(768, reused(model, ids, 800));
}

static void all_tokens_before_a_page_count(void **state)
{
    int32_t changed[LENGTH];
    mm2_session_free(evaluated(model, ids, LENGTH));
    memcpy(changed, ids, sizeof changed);
    changed[0]++; /* its second page is the same, behind another first */
    assert_int_equal(0, reused(model, changed, LENGTH));
    memcpy(changed, ids, sizeof changed);
    changed[511]++;
    assert_int_equal(256, reused(model, changed, LENGTH));
    assert_int_equal(5, stats_of(model).pages); /* 2, 2 and 1 more */
}

static void a_known_page_is_held_once(void **state)
{
    mm2_session *a = session_of(model, MM2_BF16), *b = session_of(model, MM2_BF16);
    feed(a, ids, 200);
    feed(b, ids, 200);
    run(a);
    run(b);
    feed(a, ids + 200, 400);
    feed(b, ids + 200, 400);
    run(a);
    run(b); /* it could not look, at position 200 */
    assert_int_equal(0, mm2_session_reused(b));
    assert_ptr_equal(a->timeline.pages.table[0], b->timeline.pages.table[0]);
    assert_ptr_equal(a->timeline.pages.table[1], b->timeline.pages.table[1]);
    assert_int_equal(0, stats_of(model).bytes); /* they have it anyway */
    mm2_session_free(a);
    assert_int_equal(0, stats_of(model).bytes);
    assert_int_equal(MM2_OK, mm2_session_rewind(b, 100));
    assert_int_equal(page_bytes, stats_of(model).bytes); /* it still holds the first */
    feed(b, ids + 700, 190); /* over the shared page: in one of its own */
    run(b);
    assert_alone(b);
    mm2_session_free(b);
    assert_int_equal(3 * page_bytes, stats_of(model).bytes);
    assert_int_equal(512, reused(model, ids, 600));
}

static void rewinding_and_forking(void **state)
{
    mm2_session *a = evaluated(model, ids, LENGTH), *b, *c;
    mm2_session_free(a);
    b = evaluated(model, ids, 600);
    assert_int_equal(512, mm2_session_reused(b));
    assert_int_equal(MM2_OK, mm2_session_fork(&c, b));
    assert_int_equal(512, mm2_session_reused(c));
    assert_int_equal(MM2_OK, mm2_session_rewind(b, 300));
    assert_int_equal(300, mm2_session_reused(b));
    feed(b, ids + 300, 400);
    run(b); /* 300 is no end of a page */
    assert_alone(b);
    assert_int_equal(MM2_OK, mm2_session_rewind(b, 256));
    feed(b, ids + 256, 400);
    run(b);
    assert_int_equal(512, mm2_session_reused(b));
    assert_alone(b);
    assert_int_equal(MM2_OK, mm2_session_rewind(c, 0));
    feed(c, ids, 700);
    run(c);
    assert_int_equal(512, mm2_session_reused(c));
    assert_alone(c);
    mm2_session_free(b);
    mm2_session_free(c);
}

/* ---- What is private ---- */

static void write_at_taps(mm2_session *s, int32_t from)
{
    mm2_event event = {.size = sizeof event};
    mm2_status status;
    while ((status = mm2_session_run(s, 0, &event)) == MM2_TAP)
        if (event.first >= from)
            for (int64_t i = 0; i < event.tensor.nbytes / 4; i++)
                ((float *)event.tensor.data)[i] += 1;
    assert_int_equal(MM2_OK, status);
}

static void what_a_tap_may_have_changed_is_not_shared(void **state)
{
    mm2_session *s = session_of(model, MM2_BF16);
    feed(s, ids, 300);
    run(s);
    assert_int_equal(MM2_OK, mm2_session_tap(s, MM2_POINT_MLP_OUT, 1, 1));
    feed(s, ids + 300, 400);
    write_at_taps(s, 300);
    assert_int_equal(MM2_OK, mm2_session_tap(s, MM2_POINT_MLP_OUT, -1, 0));
    feed(s, ids + 700, 100); /* another page behind it, without a tap */
    run(s);
    assert_int_equal(1, stats_of(model).pages);
    assert_int_equal(256, reused(model, ids, LENGTH)); /* and puts in the second */
    mm2_session *fork;
    assert_int_equal(MM2_OK, mm2_session_fork(&fork, s)); /* it is private too */
    assert_int_equal(MM2_OK, mm2_session_rewind(fork, 600));
    feed(fork, ids + 600, 200);
    run(fork);
    assert_int_equal(2, stats_of(model).pages);
    mm2_session_free(fork);
    assert_int_equal(MM2_OK, mm2_session_rewind(s, 300)); /* nothing of the edit is left */
    feed(s, ids + 300, 550);
    run(s);
    assert_alone(s);
    assert_int_equal(3, stats_of(model).pages);
    mm2_session_free(s);
    assert_int_equal(768, reused(model, ids, 800));
}

static void who_taps_sees_all_rows(void **state)
{
    mm2_session_free(evaluated(model, ids, LENGTH));
    mm2_session *s = session_of(model, MM2_BF16);
    mm2_event event = {.size = sizeof event};
    int32_t rows = 0;
    assert_int_equal(MM2_OK, mm2_session_tap(s, MM2_POINT_EMBED, 0, 1));
    feed(s, ids, LENGTH);
    while (mm2_session_run(s, 0, &event) == MM2_TAP)
        rows += event.count;
    assert_int_equal(LENGTH, rows);
    assert_int_equal(0, mm2_session_reused(s));
    mm2_session_free(s);
}

static void a_restored_session_puts_nothing_in(void **state)
{
    mm2_session *a = evaluated(plain, ids, 500), *b;
    assert_int_equal(MM2_OK, mm2_session_save(a, other));
    assert_int_equal(MM2_OK, mm2_session_restore(&b, model, other, NULL));
    unlink(other);
    feed(b, ids + 500, 300);
    run(b);
    assert_int_equal(0, stats_of(model).pages);
    assert_int_equal(MM2_OK, mm2_session_rewind(b, 0));
    feed(b, ids, 600);
    run(b);
    assert_int_equal(2, stats_of(model).pages);
    mm2_session_free(a);
    mm2_session_free(b);
}

/* ---- Memory ---- */

static void the_least_recently_used_go_first(void **state)
{
    mm2_model *m = open_with(4 * page_bytes + 1, NULL, 0, 0);
    mm2_session_free(evaluated(m, text(0), 600)); /* two pages each */
    mm2_session_free(evaluated(m, text(1), 600));
    assert_int_equal(4, stats_of(m).pages);
    assert_int_equal(512, reused(m, text(0), 600)); /* text 1 is older now */
    mm2_session *held = evaluated(m, text(2), 300);
    assert_int_equal(5, stats_of(m).pages); /* one of them costs nothing */
    assert_int_equal(4 * page_bytes, stats_of(m).bytes);
    mm2_session_free(held);
    assert_int_equal(4, stats_of(m).pages); /* the end of text 1 went first */
    assert_int_equal(1, stats_of(m).evicted);
    assert_int_equal(256, reused(m, text(1), 300));
    assert_int_equal(512, reused(m, text(0), 600));
    assert_int_equal(256, reused(m, text(2), 300));
    mm2_session_free(evaluated(m, text(3), 900)); /* three pages: text 1, and the end of text 0 */
    assert_int_equal(256, reused(m, text(2), 300));
    assert_int_equal(768, reused(m, text(3), 800));
    assert_int_equal(0, reused(m, text(1), 300));
    assert_true(stats_of(m).bytes <= 4 * page_bytes);
    mm2_model_release(m);
    m = open_with(1, NULL, 0, 0); /* no room: sessions share while they live */
    held = evaluated(m, ids, 600);
    assert_int_equal(512, reused(m, ids, 600));
    mm2_session_free(held);
    assert_int_equal(0, stats_of(m).pages);
    assert_int_equal(0, reused(m, ids, 600));
    mm2_model_release(m);
}

static void many_sessions_leak_nothing(void **state)
{
    int maps = 0;
    for (int32_t i = 0; i < 200 * times; i++) {
        mm2_session *s = session_of(model, MM2_BF16), *fork;
        feed(s, text(i % 3), 257 + i % 2);
        run(s);
        assert_int_equal(i < 3 ? 0 : 256, mm2_session_reused(s));
        assert_int_equal(MM2_OK, mm2_session_fork(&fork, s));
        mm2_session_free(s);
        mm2_session_free(fork);
        if (i == 10)
            maps = count_maps();
    }
    assert_int_equal(3, stats_of(model).pages);
    assert_int_equal(3 * page_bytes, stats_of(model).bytes); /* nobody else holds them */
    assert_in_range(count_maps(), maps - 4, maps + 4);
}

/* ---- Several at once ---- */

enum { THREADS = 3, ROUNDS = 3 };
static float expected[3][VOCAB];

static void *use_the_cache(void *m)
{
    for (int32_t i = 0; i < ROUNDS * times; i++) {
        int32_t which = (i + i / 3) % 3;
        mm2_session *s = session_of(m, MM2_BF16);
        if (mm2_session_feed(s, text(which), 520) || mm2_session_run(s, 0, NULL) ||
            memcmp(logits_of(s), expected[which], sizeof expected[which]))
            return (void *)1;
        mm2_session_free(s);
    }
    return NULL;
}

static void compute_expected(void)
{
    for (int32_t i = 0; i < 3; i++) {
        mm2_session *s = evaluated(plain, text(i), 520);
        memcpy(expected[i], logits_of(s), sizeof expected[i]);
        mm2_session_free(s);
    }
}

static void run_threads(mm2_model *m)
{
    pthread_t threads[THREADS];
    void *failed;
    for (int32_t i = 0; i < THREADS; i++)
        assert_int_equal(0, pthread_create(&threads[i], NULL, use_the_cache, m));
    for (int32_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
}

/* In memory; with evictions all the time; and with a folder that has room for half of it. */
static void threads_share(void **state)
{
    compute_expected();
    mm2_model *models[] = {open_with(1 << 30, NULL, 0, 0), open_with(2 * page_bytes, NULL, 0, 0),
                           open_with(2 * page_bytes, folder, 4 * page_bytes, 0)};
    for (int32_t i = 0; i < 3; i++) {
        run_threads(models[i]);
        mm2_prefix_stats stats = stats_of(models[i]);
        assert_true(stats.bytes <= stats.limit);
        assert_true(i || times == 1 || stats.reused >= (THREADS * ROUNDS * times - 9) * 512);
        assert_int_equal(0, stats.damaged + stats.failed);
        mm2_model_release(models[i]);
    }
}

static void members_of_a_batch_share(void **state)
{
    mm2_model *m = open_with(1 << 30, folder, 0, 0);
    mm2_session_free(evaluated(m, ids, 800));
    mm2_model_release(m);
    m = open_with(1 << 30, folder, 0, 0); /* its pages are on the disk */
    mm2_session *all[3];
    mm2_batch *b;
    mm2_event event = {.size = sizeof event};
    assert_int_equal(MM2_OK, mm2_batch_new(&b, m, NULL));
    for (int32_t i = 0; i < 3; i++) {
        all[i] = session_of(m, MM2_BF16);
        feed(all[i], ids, i ? 700 + i : 5);
        assert_int_equal(MM2_OK, mm2_batch_add(b, all[i]));
    }
    int32_t order[3], count = 0;
    mm2_status status;
    while ((status = mm2_batch_run(b, 100, &event)) != MM2_OK) {
        assert_true(status == MM2_READY || status == MM2_MORE);
        if (status == MM2_READY)
            order[count++] = event.session;
    }
    assert_int_equal(3, count);
    assert_int_equal(0, order[0]); /* it did not wait for the others' pages */
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(i ? 512 : 0, mm2_session_reused(all[i]));
        assert_alone(all[i]);
        mm2_session_free(all[i]);
    }
    mm2_batch_free(b);
    assert_int_equal(2, stats_of(m).read);
    mm2_model_release(m);
}

/* ---- On disk ---- */

static void pages_outlast_the_process(void **state)
{
    mm2_model *m = open_with(1, folder, 1 << 30, 0);
    mm2_session_free(evaluated(m, ids, 800)); /* some may go before they are written */
    mm2_session *held = evaluated(m, ids, 800);
    wait_until_written(m);
    mm2_session_free(held);
    assert_int_equal(0, stats_of(m).pages);
    assert_string_equal("", stats_of(m).problem);
    assert_int_equal(768, reused(m, ids, 800)); /* memory had no room for it */
    mm2_model_release(m);
    assert_int_equal(3, count_files());
    m = open_with(1 << 30, folder, 0, 0);
    mm2_session *s = session_of(m, MM2_BF16);
    feed(s, ids, 700);
    while (mm2_session_run(s, 1, NULL) == MM2_MORE) /* also in slices */
        ;
    assert_int_equal(512, mm2_session_reused(s));
    assert_alone(s);
    mm2_session_free(s);
    assert_int_equal(2, stats_of(m).read);
    s = session_of(m, MM2_F32); /* another cache */
    feed(s, ids, 700);
    run(s);
    assert_int_equal(0, mm2_session_reused(s));
    mm2_session_free(s);
    mm2_model_release(m);
    m = open_with(1 << 30, folder, 0, MM2_PRECISION_EXACT); /* another model */
    s = evaluated(m, ids, 700);
    assert_int_equal(0, mm2_session_reused(s));
    mm2_session_free(s);
    assert_int_equal(0, stats_of(m).damaged);
    mm2_model_release(m);
    assert_int_equal(3 + 2 + 2, count_files());
}

static void a_waiting_session_may_be_cut_forked_and_freed(void **state)
{
    mm2_model *m = open_with(1 << 30, folder, 0, 0);
    mm2_session_free(evaluated(m, ids, 800));
    mm2_model_release(m);
    for (int32_t i = 0; i < 6 * times; i++) {
        mm2_session *s, *fork;
        m = open_with(1 << 30, folder, 0, 0);
        s = session_of(m, MM2_BF16);
        feed(s, ids, 800);
        mm2_session_run(s, 1, NULL); /* the thread has only begun */
        assert_int_equal(MM2_OK, mm2_session_fork(&fork, s));
        if (i % 2)
            assert_int_equal(MM2_OK, mm2_session_rewind(s, 600));
        if (i % 3)
            mm2_session_free(s);
        run(fork);
        if (i % 3 == 0) {
            run(s);
            assert_alone(s);
            mm2_session_free(s);
        }
        assert_alone(fork);
        mm2_session_free(fork);
        mm2_model_release(m);
    }
}

static void damage_is_counted_and_evaluated_again(void **state)
{
    file_name names[2];
    char path[320], away[320], *data;
    struct stat facts;
    mm2_model *m = open_with(1 << 30, folder, 0, 0);
    mm2_session_free(evaluated(m, ids, 300));
    mm2_model_release(m);
    assert_int_equal(1, list(names, 2));
    snprintf(path, sizeof path, "%s/%s", folder, names[0]);
    assert_int_equal(0, stat(path, &facts));
    data = malloc((size_t)facts.st_size);
    int file = open(path, O_RDONLY);
    assert_int_equal(facts.st_size, read(file, data, (size_t)facts.st_size));
    close(file);
    uint32_t seed = 7;
    int32_t flips = 12 * times;
    for (int32_t i = 0; i < flips + 6; i++) {
        /* in the header, the tokens, the cells; empty; cut; longer */
        int32_t cut = i - flips;
        off_t size = cut < 0 || cut == 5 ? facts.st_size : facts.st_size * cut / 5;
        file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        assert_int_equal(size, write(file, data, (size_t)size));
        if (cut < 0) {
            seed = seed * 1664525 + 1013904223;
            off_t at = (off_t[]){0, 320, 1344}[i % 3] + (seed >> 8) % (i % 3 ? 1000 : 304);
            char wrong = (char)(data[at] ^ (1 << i % 8));
            assert_int_equal(1, syscall(SYS_pwrite64, file, &wrong, 1, at));
        } else if (cut == 5)
            assert_int_equal(1, syscall(SYS_pwrite64, file, "", 1, facts.st_size));
        close(file);
        m = open_with(1 << 30, folder, 0, 0);
        mm2_session *s = evaluated(m, ids, 300);
        assert_int_equal(0, mm2_session_reused(s));
        if (i % 10 == 0)
            assert_alone(s);
        mm2_session_free(s);
        assert_int_equal(1, stats_of(m).damaged);
        mm2_model_release(m);
        m = open_with(1 << 30, folder, 0, 0); /* and written again */
        s = evaluated(m, ids, 300);
        assert_int_equal(256, mm2_session_reused(s));
        mm2_session_free(s);
        mm2_model_release(m);
    }
    /* A file that is whole, under the name of another page. */
    m = open_with(1 << 30, folder, 0, 0);
    mm2_session_free(evaluated(m, text(1), 300));
    mm2_model_release(m);
    assert_int_equal(2, list(names, 2));
    snprintf(path, sizeof path, "%s/%s", folder, names[0]);
    snprintf(away, sizeof away, "%s/%s", folder, names[1]);
    assert_int_equal(0, rename(path, away));
    m = open_with(1 << 30, folder, 0, 0);
    reused(m, text(0), 300);
    reused(m, text(1), 300);
    assert_int_equal(1, stats_of(m).damaged);
    assert_int_equal(0, stats_of(m).reused);
    mm2_model_release(m);
    free(data);
}

static void the_folder_stays_within_its_limit(void **state)
{
    mm2_model *m = open_with(1, folder, 4 * page_bytes, 0); /* three pages: tokens take room too */
    for (int32_t i = 0; i < 3; i++) {
        mm2_session *s = evaluated(m, text(i), 300);
        wait_until_written(m);
        mm2_session_free(s);
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* times of files differ */
    }
    assert_int_equal(256, reused(m, text(0), 300)); /* text 1 is the oldest now */
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    mm2_session *s = evaluated(m, text(3), 300);
    wait_until_written(m);
    mm2_session_free(s);
    assert_int_equal(1, stats_of(m).removed);
    assert_int_equal(3, count_files());
    assert_int_equal(256, reused(m, text(0), 300));
    assert_int_equal(256, reused(m, text(2), 300));
    assert_int_equal(0, reused(m, text(1), 300));
    mm2_model_release(m);
    m = open_with(1 << 30, folder, 1000, 0);
    mm2_session_free(evaluated(m, text(5), 300));
    wait_until_written(m);
    assert_non_null(strstr(stats_of(m).problem, "prefix_disk is 1000"));
    assert_int_equal(256, reused(m, text(5), 300)); /* from memory */
    mm2_model_release(m);
}

static void a_full_disk_is_no_error(void **state)
{
    mm2_model *m = open_with(1 << 30, folder, 0, 0);
    atomic_store(&disk_is_full, 1);
    mm2_session_free(evaluated(m, ids, 600));
    wait_until_written(m);
    mm2_prefix_stats stats = stats_of(m);
    assert_int_equal(2, stats.failed);
    assert_non_null(strstr(stats.problem, "No space left"));
    assert_int_equal(512, reused(m, ids, 600));
    assert_int_equal(0, count_files());
    atomic_store(&disk_is_full, 0);
    mm2_session_free(evaluated(m, text(1), 300));
    wait_until_written(m);
    assert_string_equal("", stats_of(m).problem);
    assert_int_equal(1, stats_of(m).written);
    mm2_model_release(m);
    m = open_with(1 << 30, folder, 0, 0);
    empty_folder();
    assert_int_equal(0, rmdir(folder)); /* gone while it is open */
    mm2_session_free(evaluated(m, ids, 600));
    wait_until_written(m);
    assert_non_null(strstr(stats_of(m).problem, "No such file"));
    assert_int_equal(512, reused(m, ids, 600));
    mm2_model_release(m);
    assert_int_equal(0, mkdir(folder, 0700));
}

/* ---- Processes ---- */

static int use_the_folder(void)
{
    mm2_model *m = open_with(2 * page_bytes, folder, 5 * page_bytes, 0);
    int failed = use_the_cache(m) != NULL;
    mm2_prefix_stats stats = stats_of(m);
    failed |= stats.damaged || stats.bytes > stats.limit;
    mm2_model_release(m);
    return failed;
}

static void processes_share_a_folder(void **state)
{
    pid_t children[3];
    int status;
    compute_expected();
    for (int32_t i = 0; i < 3; i++)
        if (!(children[i] = fork()))
            _exit(use_the_folder());
    for (int32_t i = 0; i < 3; i++) {
        waitpid(children[i], &status, 0);
        assert_int_equal(0, status);
    }
    for (int32_t i = 0; i < 4 * times; i++) { /* killed at any moment */
        if (!(children[0] = fork()))
            _exit(use_the_folder());
        nanosleep(&(struct timespec){.tv_nsec = 15000000 * (i % 9 + 1)}, NULL);
        kill(children[0], SIGKILL);
        waitpid(children[0], &status, 0);
    }
    assert_int_equal(0, use_the_folder()); /* nothing that they left is taken for a page */
}

static void a_forked_child_begins_anew(void **state)
{
    int status;
    mm2_model *m = open_with(1 << 30, folder, 0, 0);
    mm2_session *s = evaluated(m, ids, 600);
    wait_until_written(m);
    mm2_session *waiting = session_of(m, MM2_BF16);
    feed(waiting, text(1), 600);
    mm2_session_run(waiting, 1, NULL);
    pid_t child = fork();
    if (!child) {
        run(waiting);
        assert_alone(waiting);
        assert_int_equal(512, reused(m, ids, 600)); /* from the folder */
        feed(s, ids + 600, 200);
        run(s);
        assert_alone(s);
        mm2_session_free(s);
        mm2_session_free(waiting);
        mm2_model_release(m);
        _exit(0);
    }
    waitpid(child, &status, 0);
    assert_int_equal(0, status);
    run(waiting);
    assert_alone(waiting);
    mm2_session_free(waiting);
    mm2_session_free(s);
    mm2_model_release(m);
}

/* ---- Options ---- */

static void assert_refused(mm2_status expected_status, const mm2_model_options *o, const char *says)
{
    mm2_model *m = (mm2_model *)1;
    assert_int_equal(expected_status, mm2_model_open(&m, tiny, o));
    assert_null(m);
    if (!strstr(mm2_error(), says))
        fail_msg("\"%s\" does not say \"%s\"", mm2_error(), says);
}

static void options_are_checked(void **state)
{
    mm2_model_options o = {.size = sizeof o};
    mm2_prefix_stats stats = {.size = sizeof stats};
    mm2_model_options_init(&o);
    o.prefix_cache = -1;
    assert_refused(MM2_E_ARG, &o, "prefix_cache is -1");
    o.prefix_cache = 0;
    o.prefix_folder = folder;
    assert_refused(MM2_E_ARG, &o, "prefix_folder needs prefix_cache");
    o.prefix_cache = 1000;
    o.prefix_disk = -5;
    assert_refused(MM2_E_ARG, &o, "prefix_disk is -5");
    o.prefix_disk = 0;
    o.prefix_folder = other;
    assert_refused(MM2_E_IO, &o, "No such file");
    o.prefix_folder = "/dev/null";
    assert_refused(MM2_E_IO, &o, "is no directory");
    o.prefix_folder = NULL;
    o.prefix_disk = 1;
    assert_refused(MM2_E_ARG, &o, "prefix_disk needs prefix_folder");
    o.prefix_disk = 0;
    o.flags = MM2_WRITABLE;
    assert_refused(MM2_E_ARG, &o, "weights may be written to");
    assert_int_equal(MM2_E_ARG, mm2_model_prefix_stats(NULL, &stats));
    assert_int_equal(MM2_E_ARG, mm2_model_prefix_stats(plain, NULL));
    assert_int_equal(MM2_OK, mm2_model_prefix_stats(plain, &stats));
    assert_int_equal(0, stats.limit + stats.pages);
    assert_int_equal(0, mm2_session_reused(NULL));
}

#define WITH_CACHE(test) cmocka_unit_test_setup_teardown(test, open_cache, close_cache)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_CACHE(a_second_session_starts_behind_what_is_known),
        WITH_CACHE(the_last_token_is_always_evaluated),
        WITH_CACHE(all_tokens_before_a_page_count),
        WITH_CACHE(a_known_page_is_held_once),
        WITH_CACHE(rewinding_and_forking),
        WITH_CACHE(what_a_tap_may_have_changed_is_not_shared),
        WITH_CACHE(who_taps_sees_all_rows),
        WITH_CACHE(a_restored_session_puts_nothing_in),
        WITH_CACHE(the_least_recently_used_go_first),
        WITH_CACHE(many_sessions_leak_nothing),
        WITH_CACHE(threads_share),
        WITH_CACHE(members_of_a_batch_share),
        WITH_CACHE(pages_outlast_the_process),
        WITH_CACHE(a_waiting_session_may_be_cut_forked_and_freed),
        WITH_CACHE(damage_is_counted_and_evaluated_again),
        WITH_CACHE(the_folder_stays_within_its_limit),
        WITH_CACHE(a_full_disk_is_no_error),
        WITH_CACHE(processes_share_a_folder),
        WITH_CACHE(a_forked_child_begins_anew),
        WITH_CACHE(options_are_checked),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
