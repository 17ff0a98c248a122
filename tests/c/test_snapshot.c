/* Sessions on disk, on m2-tiny: that a restored session goes on with the bits of one that was never
 * saved; that a file is whole or not there whatever fails, whoever is killed; and that no file, cut
 * or damaged or made on purpose, does more than be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/checksum.h"
#include "base/rng.h"
#include "run/session.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PROMPT = 300, /* crosses a page of the cache */
    VOCAB = 4096,
    CONTEXT = 900,
    HEADER = 320,                                  /* bytes; the last eight are its checksum */
    LOGITS = (HEADER + PROMPT * 4 + 63) / 64 * 64, /* in a file of PROMPT tokens */
    SUMS = LOGITS + VOCAB * 4,
    PAGES = 65536,
    KILLS = 50 /* MM2_KILLS in the environment: another number */
};

static const char tiny[] = "../python/minimax2/m2-tiny";
static char folder[] = "/tmp/minimax2-snapshot-XXXXXX", path[64], temporary[80];
static mm2_model *model;
static int32_t ids[CONTEXT];

/* ---- The system, which fails when a test says so ---- */

static _Thread_local int failing; /* calls until one fails, from 1; 0: none does */
static _Thread_local int failed;  /* with this error */
static _Thread_local int in_pieces;

static int fails(void)
{
    if (!failing || --failing)
        return 0;
    failed = 1;
    errno = ENOSPC;
    return 1;
}

#pragma GCC visibility push(default)

ssize_t pwrite(int file, const void *data, size_t size, off_t at)
{
    if (fails())
        return -1;
    if (in_pieces && ++in_pieces % 3 == 0) {
        errno = EINTR;
        return -1;
    }
    return syscall(SYS_pwrite64, file, data, in_pieces && size > 1000 ? size / 2 : size, at);
}

int fsync(int file)
{
    return fails() ? -1 : (int)syscall(SYS_fsync, file);
}

int ftruncate(int file, off_t size)
{
    return fails() ? -1 : (int)syscall(SYS_ftruncate, file, size);
}

int rename(const char *from, const char *to)
{
    return fails() ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

#pragma GCC visibility pop

/* ---- Helpers ---- */

static mm2_session *session_of(int32_t kv_dtype)
{
    mm2_session_options o = {.size = sizeof o};
    mm2_session *s;
    mm2_session_options_init(&o);
    o.context = CONTEXT;
    o.chunk = 64;
    o.kv_dtype = kv_dtype;
    assert_int_equal(MM2_OK, mm2_session_new(&s, model, &o));
    return s;
}

static void feed_and_run(mm2_session *s, const int32_t *tokens, int32_t n)
{
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens, n));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
}

static mm2_session *evaluated(int32_t n)
{
    mm2_session *s = session_of(MM2_BF16);
    feed_and_run(s, ids, n);
    return s;
}

static const float *logits_of(mm2_session *s)
{
    mm2_tensor t;
    assert_int_equal(MM2_OK, mm2_session_logits(s, &t));
    return t.data;
}

static void assert_same_logits(mm2_session *a, mm2_session *b)
{
    assert_memory_equal(logits_of(a), logits_of(b), VOCAB * sizeof(float));
}

/* The logits equal those of a session that evaluates the same tokens alone, at once. */
static void assert_alone(mm2_session *s)
{
    mm2_session *alone = session_of(s->timeline.kv_dtype);
    mm2_tensor tokens;
    assert_int_equal(MM2_OK, mm2_session_tokens(s, &tokens));
    feed_and_run(alone, tokens.data, (int32_t)tokens.shape[0]);
    assert_same_logits(alone, s);
    mm2_session_free(alone);
}

static void save(mm2_session *s)
{
    if (mm2_session_save(s, path))
        fail_msg("%s", mm2_error());
}

static mm2_session *restored(uint32_t flags)
{
    mm2_restore_options o = {.size = sizeof o};
    mm2_session *s;
    mm2_restore_options_init(&o);
    o.flags = flags;
    if (mm2_session_restore(&s, model, path, &o))
        fail_msg("%s", mm2_error());
    return s;
}

/* Restoring fails so, with a sentence that names the file and says this. */
static void assert_refused(mm2_status status, const char *says)
{
    mm2_session *s = (mm2_session *)1;
    assert_int_equal(status, mm2_session_restore(&s, model, path, NULL));
    assert_null(s);
    if (!strstr(mm2_error(), says) || !strstr(mm2_error(), path))
        fail_msg("\"%s\" does not say \"%s\"", mm2_error(), says);
}

static void assert_fails(mm2_status expected, mm2_status status, const char *says)
{
    assert_int_equal(expected, status);
    if (!strstr(mm2_error(), says))
        fail_msg("\"%s\" does not say \"%s\"", mm2_error(), says);
}

static char *contents(int64_t *size)
{
    struct stat facts;
    int file = open(path, O_RDONLY);
    assert_true(file >= 0 && !fstat(file, &facts));
    char *data = malloc((size_t)facts.st_size + 1);
    assert_int_equal(facts.st_size, read(file, data, (size_t)facts.st_size));
    close(file);
    *size = facts.st_size;
    return data;
}

static void put(int64_t at, const void *data, int64_t bytes)
{
    int file = open(path, O_WRONLY);
    assert_int_equal(bytes, pwrite(file, data, (size_t)bytes, at));
    close(file);
}

static void assert_no_temporary(void)
{
    assert_true(access(temporary, F_OK) && errno == ENOENT);
}

static int set_up(void **state)
{
    mm2_model_options o = {.size = sizeof o};
    mm2_model_options_init(&o);
    o.threads = 2;
    for (int32_t i = 0; i < CONTEXT; i++)
        ids[i] = 17 * i % 4000;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/a.mm2", folder);
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    return mm2_model_open(&model, tiny, &o) ? -1 : 0;
}

static int tear_down(void **state)
{
    mm2_model_release(model);
    unlink(path);
    return rmdir(folder); /* nothing else is in it */
}

/* ---- Going on ---- */

static void a_restored_session_goes_on_with_the_same_bits(void **state)
{
    static const int32_t lengths[] = {1, 15, 255, 256, 257, PROMPT};
    for (int32_t i = 0; i < 24; i++) {
        mm2_session *a = session_of(i % 2 ? MM2_BF16 : MM2_F32);
        feed_and_run(a, ids, lengths[i / 4]);
        save(a);
        mm2_session *b = restored(i / 2 % 2 ? MM2_IN_MEMORY : 0);
        unlink(path); /* what is mapped stays */
        assert_int_equal(CONTEXT, mm2_session_context(b));
        assert_int_equal(lengths[i / 4], mm2_session_position(b));
        assert_same_logits(a, b);
        mm2_session *c;
        assert_int_equal(MM2_OK, mm2_session_fork(&c, b)); /* nothing of it has been checked */
        feed_and_run(b, ids + 400, 5);
        feed_and_run(c, ids + 500, 260); /* over pages of its own */
        feed_and_run(a, ids + 400, 5);
        assert_same_logits(a, b);
        assert_alone(c);
        assert_int_equal(MM2_OK, mm2_session_rewind(b, lengths[i / 4] / 2));
        feed_and_run(b, ids + 600, 9); /* into a page of the file, if it is left */
        assert_alone(b);
        mm2_session_free(b);
        feed_and_run(c, ids, 1); /* what it shared is still there */
        assert_alone(c);
        mm2_session_free(a);
        mm2_session_free(c);
    }
}

static void a_restored_session_can_be_saved(void **state)
{
    mm2_session *a = evaluated(PROMPT);
    save(a);
    for (int32_t i = 0; i < 4; i++) { /* over the file that it comes from */
        mm2_session *b = restored(i % 2 ? MM2_IN_MEMORY : 0);
        if (i)
            feed_and_run(b, ids + i, 100);
        save(b);
        if (i)
            feed_and_run(a, ids + i, 100);
        assert_same_logits(a, b);
        mm2_session_free(b);
        assert_no_temporary();
    }
    mm2_session *c = restored(0);
    assert_same_logits(a, c);
    assert_alone(c);
    mm2_session_free(a);
    mm2_session_free(c);
}

static void what_is_not_evaluated_is_saved_too(void **state)
{
    mm2_session *a = session_of(MM2_BF16);
    save(a); /* nothing at all */
    mm2_session *b = restored(0);
    assert_int_equal(0, mm2_session_length(b));
    feed_and_run(b, ids, 20);
    assert_alone(b);
    mm2_session_free(b);
    assert_int_equal(MM2_OK, mm2_session_feed(a, ids, PROMPT)); /* tokens alone */
    int32_t saves = 0;
    for (mm2_status status = MM2_MORE; status == MM2_MORE; status = mm2_session_run(a, 50, NULL)) {
        if (saves++ % 16)
            continue;
        save(a); /* in the middle of the prompt */
        b = restored(0);
        mm2_tensor none;
        assert_int_equal(mm2_session_position(a), mm2_session_position(b));
        assert_int_equal(PROMPT, mm2_session_length(b));
        assert_int_equal(MM2_E_ARG, mm2_session_logits(b, &none));
        assert_int_equal(MM2_OK, mm2_session_run(b, 0, NULL));
        assert_alone(b);
        mm2_session_free(b);
    }
    assert_true(saves > 16);
    assert_int_equal(MM2_OK, mm2_session_rewind(a, 100)); /* no logits */
    save(a);
    b = restored(0);
    feed_and_run(b, ids, 1);
    assert_alone(b);
    mm2_session_free(a);
    mm2_session_free(b);
}

static void taps_are_not_saved_and_edits_of_logits_are(void **state)
{
    mm2_session *a = session_of(MM2_BF16);
    mm2_event e = {.size = sizeof e};
    assert_int_equal(MM2_OK, mm2_session_tap(a, MM2_POINT_Z, 2, 1));
    assert_int_equal(MM2_OK, mm2_session_feed(a, ids, 20));
    assert_int_equal(MM2_TAP, mm2_session_run(a, 0, &e));
    save(a); /* within the stop */
    mm2_session *b = restored(0);
    assert_int_equal(0, mm2_session_position(b));
    assert_int_equal(MM2_OK, mm2_session_run(b, 0, &e));
    assert_int_equal(MM2_OK, mm2_session_run(a, 0, &e));
    assert_same_logits(a, b);
    mm2_session_free(b);
    ((float *)logits_of(a))[5] = 1e9f;
    save(a);
    b = restored(0);
    assert_true(logits_of(b)[5] == 1e9f);
    mm2_session_free(a);
    mm2_session_free(b);
}

/* ---- Files that change ---- */

static void a_file_may_be_replaced_but_not_changed(void **state)
{
    mm2_session *a = evaluated(PROMPT), *b;
    for (int32_t what = 0; what < 3; what++) {
        save(a);
        mm2_session *mapped = restored(0), *copied = restored(MM2_IN_MEMORY);
        if (what == 0) {
            b = evaluated(7);
            save(b); /* another file under its name */
            mm2_session_free(b);
        } else if (what == 1) {
            assert_int_equal(0, truncate(path, PAGES + 1000));
        } else {
            put(PAGES + 100, "x", 1);
        }
        assert_int_equal(MM2_OK, mm2_session_feed(mapped, ids, 3));
        if (what)
            assert_fails(MM2_E_IO, mm2_session_run(mapped, 0, NULL),
                         what == 1 ? "cut short" : "written to");
        else
            assert_int_equal(MM2_OK, mm2_session_run(mapped, 0, NULL));
        if (what)
            assert_fails(MM2_E_IO, mm2_session_save(mapped, path), path);
        else
            assert_alone(mapped);
        feed_and_run(copied, ids, 3);
        assert_alone(copied);
        mm2_session_free(mapped);
        mm2_session_free(copied);
    }
    mm2_session_free(a);
}

/* ---- Damage ---- */

static int64_t tried;

/* Refused with a sentence; or it is as it was, if `harmless`. */
static void try_damaged(const mm2_session *whole, int harmless)
{
    mm2_session *s = (mm2_session *)1;
    mm2_status status = mm2_session_restore(&s, model, path, NULL);
    tried++;
    if (status) {
        assert_null(s);
        assert_true(status == MM2_E_FORMAT || status == MM2_E_UNSUPPORTED || status == MM2_E_ARG);
        if (!strstr(mm2_error(), path))
            fail_msg("\"%s\" names no file", mm2_error());
        return;
    }
    assert_true(harmless);
    assert_int_equal(mm2_session_length(whole), mm2_session_length(s));
    assert_int_equal(mm2_session_position(whole), mm2_session_position(s));
    mm2_session_free(s);
}

static void flip(const mm2_session *whole, const char *data, int64_t at, int bit, int harmless)
{
    char damaged = (char)(data[at] ^ 1 << bit);
    put(at, &damaged, 1);
    try_damaged(whole, harmless);
    put(at, &data[at], 1);
}

/* Every bit of the header and of the checksums, every byte of tokens and logits, every length in
 * steps, every word of the header with a checksum that fits. */
static void ten_thousand_damaged_files_are_refused(void **state)
{
    mm2_session *whole = evaluated(PROMPT);
    int64_t size;
    save(whole);
    char *data = contents(&size);
    int64_t end = SUMS + 2 * 5 * 8; /* pages, layers */
    tried = 0;
    for (int64_t at = 0; at < HEADER; at++)
        for (int bit = 0; bit < 8; bit++)
            flip(whole, data, at, bit, 0);
    for (int64_t at = HEADER; at < HEADER + PROMPT * 4; at++)
        flip(whole, data, at, (int)(at % 8), 0);
    for (int64_t at = LOGITS; at < SUMS; at += 3)
        flip(whole, data, at, (int)(at % 8), 0);
    for (int64_t at = SUMS; at < end; at++)
        for (int bit = 0; bit < 8; bit++)
            flip(whole, data, at, bit, 0);
    for (int64_t at = end; at < PAGES; at += 997) /* between the parts */
        flip(whole, data, at, 0, 1);
    for (int64_t at = 0; at < HEADER - 8; at += 4)
        for (int i = 0; i < 8; i++) {
            static const int32_t values[] = {0, -1, INT32_MAX, INT32_MIN, 1, 1 << 24};
            char header[HEADER];
            int32_t value;
            memcpy(header, data, HEADER);
            memcpy(&value, header + at, 4);
            value = i < 6 ? values[i] : value + (i == 6 ? 1 : -1);
            memcpy(header + at, &value, 4);
            uint64_t sum = mm2_checksum(header, HEADER - 8);
            memcpy(header + HEADER - 8, &sum, 8);
            put(0, header, HEADER);
            try_damaged(whole, 1); /* of some the session lives: its context, what was there */
        }
    put(0, data, HEADER);
    for (int64_t length = size - 1; length >= 0; length -= length > PAGES ? 331 : 61) {
        assert_int_equal(0, truncate(path, length));
        try_damaged(whole, 0);
    }
    print_message("%lld damaged files\n", (long long)tried);
    assert_true(tried >= 10000);
    free(data);
    mm2_session_free(whole);
}

/* Numbers that fit the checksums and nothing else. */
static void forged_tokens_are_refused(void **state)
{
    mm2_session *a = evaluated(20);
    char header[HEADER];
    int32_t tokens[20];
    int64_t size;
    for (int32_t bad = -1; bad <= VOCAB; bad += VOCAB + 1) {
        save(a);
        char *data = contents(&size);
        memcpy(header, data, HEADER);
        memcpy(tokens, data + HEADER, sizeof tokens);
        free(data);
        tokens[7] = bad;
        uint64_t sum = mm2_checksum(tokens, sizeof tokens);
        memcpy(header + HEADER - 32, &sum, 8);
        sum = mm2_checksum(header, HEADER - 8);
        memcpy(header + HEADER - 8, &sum, 8);
        put(0, header, HEADER);
        put(HEADER, tokens, sizeof tokens);
        assert_refused(MM2_E_FORMAT, "token 7 is");
    }
    mm2_session_free(a);
}

static void sentences_say_what_is_wrong(void **state)
{
    mm2_session *a = evaluated(PROMPT), *s;
    mm2_restore_options o = {.size = sizeof o};
    int64_t size;
    assert_fails(MM2_E_IO, mm2_session_restore(&s, model, "/nowhere/a.mm2", NULL), "No such file");
    assert_fails(MM2_E_IO, mm2_session_restore(&s, model, folder, NULL), "directory");
    assert_fails(MM2_E_FORMAT, mm2_session_restore(&s, model, "minimax2.h", NULL),
                 "no saved session");
    save(a);
    char *data = contents(&size);
    flip(a, data, HEADER - 1, 0, 0);
    put(0, "x", 1);
    assert_refused(MM2_E_FORMAT, "no saved session");
    put(0, data, 1);
    put(20, "\7", 1);
    assert_refused(MM2_E_UNSUPPORTED, "format 7");
    put(20, data + 20, 1);
    put(24, "\7", 1);
    assert_refused(MM2_E_FORMAT, "the header");
    put(24, data + 24, 1);
    put(HEADER, "\377", 1);
    assert_refused(MM2_E_FORMAT, "the tokens");
    put(HEADER, data + HEADER, 1);
    put(LOGITS, "\377\377", 2);
    assert_refused(MM2_E_FORMAT, "the logits");
    put(LOGITS, data + LOGITS, 2);
    put(SUMS, "\377\377", 2);
    assert_refused(MM2_E_FORMAT, "the checksums");
    put(SUMS, data + SUMS, 2);
    char header[HEADER];
    memcpy(header, data, HEADER);
    header[24] = 2;
    uint64_t sum = mm2_checksum(header, HEADER - 8);
    memcpy(header + HEADER - 8, &sum, 8);
    put(0, header, HEADER);
    assert_refused(MM2_E_UNSUPPORTED, "numerics version 2");
    put(0, data, HEADER);
    mm2_restore_options_init(&o);
    o.context = PROMPT - 1;
    assert_fails(MM2_E_ARG, mm2_session_restore(&s, model, path, &o), "a context of 299");
    o.context = 0;
    o.kv_dtype = MM2_F32;
    assert_fails(MM2_E_ARG, mm2_session_restore(&s, model, path, &o), "bf16, f32 was asked for");
    o.kv_dtype = MM2_BF16;
    o.context = PROMPT;
    assert_int_equal(MM2_OK, mm2_session_restore(&s, model, path, &o));
    assert_int_equal(PROMPT, mm2_session_context(s));
    mm2_session_free(s);
    o.flags = 8;
    assert_fails(MM2_E_ARG, mm2_session_restore(&s, model, path, &o), "unknown bits");
    put(size, "x", 1);
    assert_refused(MM2_E_FORMAT, "something was appended");
    assert_int_equal(0, truncate(path, size - 1));
    assert_refused(MM2_E_FORMAT, "cut short");
    free(data);
    mm2_session_free(a);
}

/* The fingerprint: what belongs to another model is refused, and the sentence says why. */
static void another_model_is_told(void **state)
{
    mm2_session *a = evaluated(20), *s;
    mm2_model_options o = {.size = sizeof o};
    mm2_model *other;
    mm2_tensor weight;
    save(a);
    mm2_model_options_init(&o);
    o.precision = MM2_PRECISION_EXACT;
    assert_int_equal(MM2_OK, mm2_model_open(&other, tiny, &o));
    assert_fails(MM2_E_ARG, mm2_session_restore(&s, other, path, NULL), "precision \"fast\"");
    mm2_model_release(other);
    o.precision = MM2_PRECISION_FAST;
    o.flags = MM2_WRITABLE;
    assert_int_equal(MM2_OK, mm2_model_open(&other, tiny, &o));
    assert_int_equal(MM2_OK, mm2_session_restore(&s, other, path, NULL)); /* the same model */
    mm2_session_free(s);
    assert_int_equal(MM2_OK,
                     mm2_model_tensor(other, "model.layers.2.self_attn.o_proj.weight", &weight));
    memset(weight.data, 0x3c, (size_t)weight.nbytes); /* another training */
    assert_fails(MM2_E_ARG, mm2_session_restore(&s, other, path, NULL), "other weights");
    mm2_model_release(other);
    mm2_session_free(a);
}

static void a_damaged_cell_is_never_used(void **state)
{
    mm2_session *whole = evaluated(PROMPT);
    int64_t size;
    save(whole);
    char *data = contents(&size);
    const mm2_layout *l = whole->timeline.pages.layout;
    int64_t stride = (l->page_bytes + PAGES - 1) / PAGES * PAGES;
    assert_int_equal(PAGES + 2 * stride, size);
    for (int32_t page = 0; page < 2; page++)
        for (int32_t layer = 0; layer < l->layers; layer++) {
            char says[80];
            int64_t at = PAGES + page * stride + l->cells[layer].at + 64 * layer;
            char damaged = (char)(data[at] ^ 1);
            put(at, &damaged, 1);
            mm2_session *s = restored(layer % 2 ? MM2_IN_MEMORY : 0), *fork;
            snprintf(says, sizeof says, "of positions %d to %d at layer %d", page * 256,
                     page ? whole->timeline.position - 1 : 255, layer);
            assert_same_logits(whole, s); /* these are whole */
            assert_int_equal(MM2_OK, mm2_session_fork(&fork, s));
            assert_int_equal(MM2_OK, mm2_session_feed(s, ids, 3));
            for (int32_t budget = 0; budget < 3; budget++) { /* again and again */
                mm2_status status = MM2_MORE;
                while (status == MM2_MORE)
                    status = mm2_session_run(s, budget, NULL);
                assert_fails(MM2_E_FORMAT, status, says);
            }
            assert_int_equal(PROMPT, mm2_session_position(s));
            assert_fails(MM2_E_FORMAT, mm2_session_save(fork, "/nowhere/x"), says);
            assert_int_equal(MM2_OK, mm2_session_rewind(s, page * 256));
            feed_and_run(s, ids + page * 256, 44); /* what is whole goes on */
            assert_alone(s);
            mm2_session_free(s);
            mm2_session_free(fork);
            put(at, &data[at], 1);
        }
    free(data);
    mm2_session_free(whole);
}

static void a_batch_says_whose_file_is_damaged(void **state)
{
    mm2_session *s[3];
    mm2_batch *b;
    mm2_event e = {.size = sizeof e};
    s[0] = evaluated(PROMPT);
    save(s[0]);
    s[1] = restored(MM2_IN_MEMORY);
    put(PAGES + 5000, "abcdefg", 7);
    s[2] = restored(MM2_IN_MEMORY);
    assert_int_equal(MM2_OK, mm2_batch_new(&b, model, NULL));
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(MM2_OK, mm2_batch_add(b, s[i]));
        assert_int_equal(MM2_OK, mm2_session_feed(s[i], ids, 2));
    }
    assert_fails(MM2_E_FORMAT, mm2_batch_run(b, 0, &e), "is damaged");
    assert_int_equal(2, e.session);
    assert_int_equal(MM2_OK, mm2_batch_remove(b, s[2]));
    assert_int_equal(MM2_READY, mm2_batch_run(b, 0, &e));
    assert_int_equal(MM2_READY, mm2_batch_run(b, 0, &e));
    assert_same_logits(s[0], s[1]);
    assert_alone(s[1]);
    save(s[1]); /* a member may be saved */
    mm2_batch_free(b);
    for (int32_t i = 0; i < 3; i++)
        mm2_session_free(s[i]);
}

/* ---- Failing to save ---- */

static void whatever_call_fails_the_old_file_stands(void **state)
{
    mm2_session *old = evaluated(20), *new = evaluated(PROMPT);
    int64_t size, after;
    for (int there = 0; there < 2; there++) {
        if (there)
            save(old);
        else
            unlink(path);
        char *before = there ? contents(&size) : NULL;
        int k = 1;
        for (failed = 1; failed; k++) {
            failed = 0;
            failing = k;
            mm2_status status = mm2_session_save(new, path);
            failing = 0;
            if (!failed) {
                assert_int_equal(MM2_OK, status);
                continue;
            }
            assert_fails(MM2_E_IO, status, "No space left");
            assert_no_temporary();
            if (strstr(mm2_error(), "the new file is there")) /* the folder's own, the last call */
                break;
            if (!there) {
                assert_true(access(path, F_OK));
                continue;
            }
            char *stands = contents(&after);
            assert_true(size == after && !memcmp(before, stands, (size_t)size));
            free(stands);
        }
        assert_true(k > 15);
        mm2_session *s = restored(0);
        assert_same_logits(new, s);
        mm2_session_free(s);
        free(before);
    }
    in_pieces = 1;
    save(new);
    in_pieces = 0;
    mm2_session *s = restored(0);
    feed_and_run(s, ids, 1);
    assert_alone(s);
    mm2_session_free(s);
    mm2_session_free(old);
    mm2_session_free(new);
}

static void places_that_cannot_be_written(void **state)
{
    mm2_session *s = evaluated(20);
    char other[96];
    assert_fails(MM2_E_ARG, mm2_session_save(s, ""), "empty");
    assert_fails(MM2_E_ARG, mm2_session_save(s, NULL), "NULL");
    assert_fails(MM2_E_IO, mm2_session_save(s, "/nowhere/a.mm2"), "open its folder");
    assert_fails(MM2_E_IO, mm2_session_save(s, folder), "is a directory");
    assert_fails(MM2_E_IO, mm2_session_save(s, "/dev/null"), "special file");
    assert_fails(MM2_E_IO, mm2_session_save(s, "/proc/a.mm2"), "/proc/a.mm2");
    save(s);
    snprintf(other, sizeof other, "%s/b", path);
    assert_fails(MM2_E_IO, mm2_session_save(s, other), "Not a directory");
    /* In the way of the temporary file. */
    assert_int_equal(0, symlink("/tmp/somewhere", temporary));
    assert_fails(MM2_E_IO, mm2_session_save(s, path), temporary);
    unlink(temporary);
    assert_int_equal(0, mkfifo(temporary, 0600));
    assert_fails(MM2_E_IO, mm2_session_save(s, path), "in the way");
    unlink(temporary);
    int file = open(temporary, O_RDWR | O_CREAT, 0600);
    assert_int_equal(9, write(file, "left over", 9)); /* by a process that was killed */
    save(s);
    close(file);
    assert_no_temporary();
    file = open(temporary, O_RDWR | O_CREAT, 0600);
    assert_int_equal(0, flock(file, LOCK_EX)); /* somebody writes it */
    assert_fails(MM2_E_BUSY, mm2_session_save(s, path), "another thread or process");
    close(file);
    save(s);
    mm2_session *b = restored(0);
    assert_same_logits(s, b);
    mm2_session_free(b);
    mm2_session_free(s);
}

/* In a child: 0 if the save fails with IO and these words, and leaves nothing. */
static int save_in_child(mm2_session *s, int as_nobody, const char *says)
{
    pid_t child = fork();
    int status;
    if (!child) {
        struct rlimit most = {.rlim_cur = 100000, .rlim_max = 100000};
        if (as_nobody ? seteuid(65534) : setrlimit(RLIMIT_FSIZE, &most))
            _exit(2);
        if (mm2_session_save(s, path) != MM2_E_IO)
            _exit(3);
        _exit(strstr(mm2_error(), says) && access(temporary, F_OK) ? 0 : 4);
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void limits_and_rights_of_the_process(void **state)
{
    mm2_session *s = evaluated(20);
    unlink(path);
    assert_int_equal(0, save_in_child(s, 0, "may write files of 100000")); /* no SIGXFSZ */
    if (!geteuid())
        assert_int_equal(0, save_in_child(s, 1, "ermission denied"));
    mm2_session_free(s);
}

/* ---- Processes that are killed ---- */

static void save_for_ever(mm2_session *const *states)
{
    for (int32_t i = 0;; i++)
        if (mm2_session_save(states[i % 2], path))
            _exit(1);
}

static void a_killed_process_leaves_the_old_file_or_the_new_one(void **state)
{
    const char *asked = getenv("MM2_KILLS");
    int32_t kills = asked ? atoi(asked) : KILLS, seen[2] = {0};
    mm2_session *states[] = {evaluated(PROMPT), evaluated(600)};
    unlink(path);
    save(states[1]);
    save(states[0]);
    int64_t began = mm2_now();
    save(states[1]);
    save(states[0]);
    double some = 3 * (double)(mm2_now() - began); /* nanoseconds: time for several saves */
    for (int32_t i = 0; i < kills; i++) {
        pid_t child = fork();
        if (!child)
            save_for_ever(states);
        int64_t wait = (int64_t)(mm2_uniform(7, (uint64_t)i) * some);
        nanosleep(&(struct timespec){.tv_sec = wait / 1000000000, .tv_nsec = wait % 1000000000},
                  NULL);
        assert_int_equal(0, kill(child, SIGKILL));
        int status;
        waitpid(child, &status, 0);
        assert_true(WIFSIGNALED(status));
        mm2_session *s = restored(0);
        int32_t which = mm2_session_length(s) == 600;
        seen[which]++;
        assert_same_logits(states[which], s);
        feed_and_run(s, ids, 1); /* every cell is whole */
        if (i % 10 == 0)
            assert_alone(s);
        mm2_session_free(s);
    }
    print_message("%d kills: %d found one state, %d the other\n", kills, seen[0], seen[1]);
    save(states[0]); /* takes over what was left */
    assert_no_temporary();
    mm2_session_free(states[0]);
    mm2_session_free(states[1]);
}

/* ---- Threads ---- */

static atomic_int over;

static void *interrupt_always(void *session)
{
    while (!atomic_load(&over))
        mm2_session_interrupt(session);
    return NULL;
}

static void a_save_can_be_interrupted(void **state)
{
    mm2_session *s = evaluated(PROMPT);
    pthread_t thread;
    unlink(path);
    atomic_store(&over, 0);
    pthread_create(&thread, NULL, interrupt_always, s);
    mm2_status status;
    while ((status = mm2_session_save(s, path)) == MM2_OK) /* it may come too late */
        unlink(path);
    atomic_store(&over, 1);
    pthread_join(thread, NULL);
    assert_int_equal(MM2_MORE, status);
    assert_true(access(path, F_OK));
    assert_no_temporary();
    save(s);
    mm2_session_free(s);
}

typedef struct worker {
    mm2_session *s;
    char path[80];
    pthread_t thread;
} worker;

static void *run_and_save(void *data)
{
    worker *w = data;
    feed_and_run(w->s, ids + 100, 30);
    assert_int_equal(MM2_OK, mm2_session_save(w->s, w->path));
    return NULL;
}

/* Forks check the pages that they share, and write their own. */
static void threads_share_what_was_restored(void **state)
{
    enum { THREADS = 4 };
    worker workers[THREADS];
    mm2_session *a = evaluated(PROMPT);
    save(a);
    for (int32_t round = 0; round < 5; round++) {
        mm2_session *trunk = restored(round % 2 ? MM2_IN_MEMORY : 0);
        for (int32_t i = 0; i < THREADS; i++) {
            worker *w = &workers[i];
            snprintf(w->path, sizeof w->path, "%s/%d.mm2", folder, i);
            assert_int_equal(MM2_OK, mm2_session_fork(&w->s, trunk));
        }
        mm2_session_free(trunk);
        for (int32_t i = 0; i < THREADS; i++)
            pthread_create(&workers[i].thread, NULL, run_and_save, &workers[i]);
        for (int32_t i = 0; i < THREADS; i++)
            pthread_join(workers[i].thread, NULL);
        assert_alone(workers[0].s);
        for (int32_t i = THREADS; i--;) {
            assert_same_logits(workers[0].s, workers[i].s);
            mm2_session_free(workers[i].s);
            unlink(workers[i].path);
        }
    }
    mm2_session_free(a);
}

static void *run_until_told(void *session)
{
    while (!atomic_load(&over)) {
        mm2_session_feed(session, ids, 100);
        mm2_session_run(session, 0, NULL);
        mm2_session_rewind(session, 20);
    }
    return NULL;
}

static void saving_what_another_thread_runs_is_refused(void **state)
{
    mm2_session *s = evaluated(20);
    pthread_t thread;
    atomic_store(&over, 0);
    pthread_create(&thread, NULL, run_until_told, s);
    mm2_status status;
    while ((status = mm2_session_save(s, path)) == MM2_OK) /* between two of its calls */
        sched_yield();
    assert_fails(MM2_E_BUSY, status, "in use by another thread");
    atomic_store(&over, 1);
    pthread_join(thread, NULL);
    assert_no_temporary();
    save(s);
    mm2_session *b = restored(0);
    feed_and_run(b, ids, 1);
    assert_alone(b);
    mm2_session_free(b);
    mm2_session_free(s);
}

/* ---- The checksum ---- */

static void a_checksum_sees_every_bit(void **state)
{
    enum { MOST = 200 };
    uint8_t data[MOST];
    for (int i = 0; i < MOST; i++)
        data[i] = (uint8_t)mm2_mix64((uint64_t)i);
    /* The sum is part of the format of files. */
    assert_true(mm2_checksum(data, MOST) == 0x7b6399afdfaacc62 &&
                mm2_checksum(data, 0) == 0x23e6ec8588a9e953);
    for (int64_t n = 0; n <= MOST; n += 1 + n / 9) {
        uint64_t sum = mm2_checksum(data, n);
        for (int64_t at = 0; at < n; at++)
            for (int bit = 0; bit < 8; bit++) {
                data[at] = (uint8_t)(data[at] ^ 1 << bit);
                assert_true(mm2_checksum(data, n) != sum);
                data[at] = (uint8_t)(data[at] ^ 1 << bit);
            }
        assert_true(n == MOST || mm2_checksum(data, n + 1) != sum);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_checksum_sees_every_bit),
        cmocka_unit_test(a_restored_session_goes_on_with_the_same_bits),
        cmocka_unit_test(a_restored_session_can_be_saved),
        cmocka_unit_test(what_is_not_evaluated_is_saved_too),
        cmocka_unit_test(taps_are_not_saved_and_edits_of_logits_are),
        cmocka_unit_test(a_file_may_be_replaced_but_not_changed),
        cmocka_unit_test(ten_thousand_damaged_files_are_refused),
        cmocka_unit_test(forged_tokens_are_refused),
        cmocka_unit_test(sentences_say_what_is_wrong),
        cmocka_unit_test(another_model_is_told),
        cmocka_unit_test(a_damaged_cell_is_never_used),
        cmocka_unit_test(a_batch_says_whose_file_is_damaged),
        cmocka_unit_test(whatever_call_fails_the_old_file_stands),
        cmocka_unit_test(places_that_cannot_be_written),
        cmocka_unit_test(limits_and_rights_of_the_process),
        cmocka_unit_test(a_killed_process_leaves_the_old_file_or_the_new_one),
        cmocka_unit_test(a_save_can_be_interrupted),
        cmocka_unit_test(threads_share_what_was_restored),
        cmocka_unit_test(saving_what_another_thread_runs_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
