/* Forks and batches through the public functions, on m2-tiny: that branches share what they can and
 * never see each other, that a batch drops nobody's rows, that handles and processes may go at any
 * moment. The bits are those of sessions that did everything alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run/session.h"
#include "run/walk.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PROMPT = 300, VOCAB = 4096, CONTEXT = 900 }; /* the prompt crosses a page of the cache */

static const char tiny[] = "../python/minimax2/m2-tiny";
static mm2_model *model;
static int32_t ids[CONTEXT];

static mm2_session *session_of(int32_t chunk, int32_t kv_dtype)
{
    mm2_session_options o = {.size = sizeof o};
    mm2_session *s;
    mm2_session_options_init(&o);
    o.context = CONTEXT;
    o.chunk = chunk;
    o.kv_dtype = kv_dtype;
    assert_int_equal(MM2_OK, mm2_session_new(&s, model, &o));
    return s;
}

static void feed_and_run(mm2_session *s, const int32_t *tokens, int32_t n)
{
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens, n));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
}

static mm2_session *fork_of(mm2_session *s)
{
    mm2_session *fork;
    assert_int_equal(MM2_OK, mm2_session_fork(&fork, s));
    return fork;
}

static const float *logits_of(mm2_session *s)
{
    mm2_tensor t;
    assert_int_equal(MM2_OK, mm2_session_logits(s, &t));
    return t.data;
}

/* The logits of a session equal those of one that evaluates the same tokens alone, at once. */
static void assert_alone(mm2_session *s)
{
    mm2_session *alone = session_of(0, s->timeline.kv_dtype);
    mm2_tensor tokens;
    assert_int_equal(MM2_OK, mm2_session_tokens(s, &tokens));
    feed_and_run(alone, tokens.data, (int32_t)tokens.shape[0]);
    assert_memory_equal(logits_of(alone), logits_of(s), VOCAB * sizeof(float));
    mm2_session_free(alone);
}

static int set_up(void **state)
{
    mm2_model_options o = {.size = sizeof o};
    mm2_model_options_init(&o);
    o.threads = 3;
    for (int32_t i = 0; i < CONTEXT; i++)
        ids[i] = 17 * i % 4000;
    return mm2_model_open(&model, tiny, &o) ? -1 : 0;
}

static int tear_down(void **state)
{
    mm2_model_release(model);
    return 0;
}

/* ---- Forks ---- */

static void branches_never_see_each_other(void **state)
{
    static const int32_t dtypes[] = {MM2_F32, MM2_BF16, MM2_INT8};
    for (int32_t i = 0; i < 3; i++)
        /* an empty timeline; within, at the end of and behind a page */
        for (int32_t at = 0; at <= 300; at += at ? 1 + (at == 257) * 42 : 255) {
            mm2_session *a = session_of(0, dtypes[i]);
            if (at)
                feed_and_run(a, ids, at);
            mm2_session *b = fork_of(a), *c = fork_of(b);
            feed_and_run(b, ids + 400, 5);
            feed_and_run(a, ids + 300, 7);
            mm2_session_free(b);
            feed_and_run(c, ids + 500, 260); /* over a page of its own */
            mm2_session *d = fork_of(c);
            mm2_session_rewind(d, at / 2);
            feed_and_run(d, ids + 600, 9);
            feed_and_run(a, ids, 1); /* behind what the others have written meanwhile */
            feed_and_run(c, ids, 1);
            feed_and_run(d, ids, 1);
            assert_alone(a);
            assert_alone(c);
            assert_alone(d);
            mm2_session_free(a);
            mm2_session_free(c);
            mm2_session_free(d);
        }
}

/* At every slice of a prompt, and at a tap in its middle. */
static void a_fork_may_come_in_the_middle_of_a_prompt(void **state)
{
    mm2_session *s = session_of(64, MM2_BF16), *forks[64];
    int32_t count = 0;
    feed_and_run(s, ids, 100); /* so that the prompt begins within a shared page */
    forks[count++] = fork_of(s);
    assert_int_equal(MM2_OK, mm2_session_feed(s, ids + 100, PROMPT));
    mm2_status status;
    for (int32_t i = 0; (status = mm2_session_run(s, 1, NULL)) == MM2_MORE; i++)
        if (i % 7 == 0 && count < 64)
            forks[count++] = fork_of(s);
    assert_int_equal(MM2_OK, status);
    assert_int_equal(64, count);
    assert_alone(s);
    for (int32_t i = 0; i < count; i++) {
        if (i % 2)
            assert_int_equal(MM2_OK, mm2_session_feed(forks[i], ids + i, 3));
        if (!i)
            assert_int_equal(MM2_OK, mm2_session_feed(forks[i], ids + 700, 3));
        assert_int_equal(MM2_OK, mm2_session_run(forks[i], 0, NULL));
        if (i < 8 || i % 9 == 0)
            assert_alone(forks[i]);
        mm2_session_free(forks[i]);
    }
    mm2_session_free(s);
}

static void a_fork_has_the_logits_and_edits_stay_apart(void **state)
{
    mm2_session *a = session_of(0, MM2_BF16);
    feed_and_run(a, ids, 30);
    mm2_session *b = fork_of(a); /* before a script has seen the logits */
    float *seen = (float *)logits_of(a);
    mm2_session *c = fork_of(a); /* and after */
    float kept = seen[5];
    seen[5] = 1e9f;
    mm2_session *d = fork_of(a);
    assert_true(logits_of(b)[5] == kept && logits_of(c)[5] == kept);
    assert_true(logits_of(d)[5] == 1e9f); /* it stands where a stands, edits included */
    feed_and_run(a, ids, 1);
    assert_true(seen == logits_of(a)); /* the view has not moved */
    assert_alone(a);
    feed_and_run(d, ids + 7, 1);
    assert_alone(d);
    mm2_tensor tokens, same;
    assert_int_equal(MM2_OK, mm2_session_tokens(b, &tokens));
    feed_and_run(b, ids + 9, 1);
    assert_int_equal(MM2_OK, mm2_session_tokens(b, &same));
    assert_ptr_equal(tokens.data, same.data);
    assert_int_equal(31, same.shape[0]);
    mm2_session_free(a);
    mm2_session_free(b);
    mm2_session_free(c);
    mm2_session_free(d);
}

static void taps_stay_with_the_session(void **state)
{
    mm2_session *a = session_of(0, MM2_BF16);
    mm2_event e = {.size = sizeof e};
    assert_int_equal(MM2_OK, mm2_session_tap(a, MM2_POINT_Z, 2, 1));
    assert_int_equal(MM2_OK, mm2_session_feed(a, ids, 20));
    assert_int_equal(MM2_TAP, mm2_session_run(a, 0, &e));
    mm2_session *b = fork_of(a); /* within the stop */
    assert_int_equal(MM2_OK, mm2_session_run(b, 0, &e));
    assert_int_equal(MM2_OK, mm2_session_run(a, 0, &e));
    assert_alone(a);
    assert_alone(b);
    mm2_session_free(a);
    mm2_session_free(b);
}

static void pages_are_shared_until_they_are_written(void **state)
{
    mm2_session *a = session_of(0, MM2_BF16);
    feed_and_run(a, ids, PROMPT);
    mm2_session *b = fork_of(a);
    const mm2_pages *of_a = &a->timeline.pages, *of_b = &b->timeline.pages;
    assert_int_equal(2, of_b->count);
    for (int32_t i = 0; i < 2; i++)
        assert_ptr_equal(of_a->table[i], of_b->table[i]);
    feed_and_run(b, ids, 1);
    assert_ptr_equal(of_a->table[0], of_b->table[0]);
    assert_ptr_not_equal(of_a->table[1], of_b->table[1]);
    assert_null(of_b->table[1]->origin); /* every layer has been copied */
    mm2_page *own = of_a->table[1];
    assert_int_equal(1, atomic_load(&own->references));
    feed_and_run(a, ids, 1); /* nobody shares it any more */
    assert_ptr_equal(own, of_a->table[1]);
    mm2_session_free(a);
    assert_alone(b);
    mm2_session_free(b);
}

/* ---- Layers ---- */

static void a_walk_may_be_parted_by_layers(void **state)
{
    enum { ROWS = 100 };
    mm2_session *s = session_of(0, MM2_BF16);
    mm2_timeline *t = &s->timeline;
    mm2_pass *p;
    mm2_event e = {.size = sizeof e};
    static const int32_t ends[] = {1, 4, 5};
    assert_int_equal(MM2_OK, mm2_session_feed(s, ids, ROWS));
    assert_int_equal(MM2_OK, mm2_pages_reserve(&t->pages, 0, ROWS));
    assert_int_equal(MM2_OK, mm2_pass_lease(&p, model, ROWS));
    p->spans[0] = (mm2_span){.timeline = t, .rows = ROWS};
    p->span_count = 1;
    p->rows = ROWS;
    p->logits_rows = 0;
    for (int32_t r = 0; r < ROWS; r++) {
        p->row_span[r] = 0;
        p->row_position[r] = r;
    }
    const mm2_limit limit = {.deadline = INT64_MAX, .stop = &p->stop};
    uint32_t mode = mm2_float_mode_enter();
    for (int32_t i = 0; i < 3; i++) {
        p->first_layer = i ? ends[i - 1] : 0;
        p->end_layer = ends[i];
        mm2_walk_start(p);
        assert_int_equal(MM2_OK, mm2_walk_on(p, &limit, &e));
        assert_int_equal(ends[i] == 5, p->logits_rows); /* the head belongs to the last layer */
    }
    mm2_float_mode_leave(mode);
    mm2_session *alone = session_of(0, MM2_BF16);
    feed_and_run(alone, ids, ROWS);
    assert_memory_equal(logits_of(alone), p->logits, VOCAB * sizeof(float));
    mm2_pass_return(p);
    mm2_session_free(alone);
    mm2_session_free(s);
}

/* ---- Batches ---- */

static mm2_batch *batch_of(mm2_session **members, int32_t count, int32_t rows)
{
    mm2_batch_options o = {.size = sizeof o};
    mm2_batch *b;
    mm2_batch_options_init(&o);
    o.rows = rows;
    assert_int_equal(MM2_OK, mm2_batch_new(&b, model, &o));
    for (int32_t i = 0; i < count; i++)
        assert_int_equal(MM2_OK, mm2_batch_add(b, members[i]));
    return b;
}

static void decoding_members_do_not_wait_for_a_prompt(void **state)
{
    mm2_session *s[3];
    mm2_event e = {.size = sizeof e};
    for (int32_t i = 0; i < 3; i++)
        s[i] = session_of(0, MM2_BF16);
    feed_and_run(s[1], ids, 10);
    mm2_batch *b = batch_of(s, 3, 16);
    assert_int_equal(MM2_OK, mm2_session_feed(s[0], ids, PROMPT)); /* 20 passes */
    assert_int_equal(MM2_OK, mm2_session_feed(s[2], ids + 50, 100));
    assert_int_equal(MM2_OK, mm2_session_feed(s[1], ids + 10, 1));
    int32_t decoded = 0, prompts = 0;
    for (mm2_status status; (status = mm2_batch_run(b, 0, &e)) != MM2_OK;) {
        assert_int_equal(MM2_READY, status);
        if (e.session == 1) {
            /* each token has ridden in one pass of 16 rows */
            int32_t others = mm2_session_position(s[0]) + mm2_session_position(s[2]),
                    passes = decoded + 1;
            assert_in_range(others, 0, 15 * passes);
            assert_true(prompts == 2 || others >= 14 * passes - 14);
            decoded++;
            if (prompts < 2)
                assert_int_equal(MM2_OK, mm2_session_feed(s[1], ids + 10 + decoded, 1));
        } else {
            prompts++;
        }
    }
    assert_true(decoded >= 20);
    for (int32_t i = 0; i < 3; i++)
        assert_alone(s[i]);
    mm2_batch_free(b);
    for (int32_t i = 0; i < 3; i++)
        mm2_session_free(s[i]);
}

static void cutting_a_member_drops_nobody_elses_rows(void **state)
{
    mm2_session *s[4];
    mm2_event e = {.size = sizeof e};
    for (int32_t what = 0; what < 3; what++) {
        for (int32_t i = 0; i < 4; i++) {
            s[i] = session_of(0, MM2_BF16);
            assert_int_equal(MM2_OK, mm2_session_feed(s[i], ids + i, 40 + i));
        }
        mm2_batch *b = batch_of(s, 3, 256);
        int32_t stops = 0;
        assert_int_equal(MM2_OK, mm2_session_tap(s[0], MM2_POINT_RESID_POST, -1, 1));
        for (mm2_status status; (status = mm2_batch_run(b, 0, &e)) != MM2_OK;) {
            stops += status == MM2_TAP;
            if (status != MM2_TAP || e.layer != 2)
                continue;
            if (what == 0)
                assert_int_equal(MM2_OK, mm2_session_rewind(s[1], 3));
            else if (what == 1)
                assert_int_equal(MM2_OK, mm2_batch_remove(b, s[1]));
            else
                assert_int_equal(MM2_OK, mm2_batch_add(b, s[3]));
        }
        assert_int_equal(5, stops); /* one pass through the layers, never again */
        if (what == 1)
            assert_int_equal(MM2_OK, mm2_session_run(s[1], 0, NULL));
        if (what == 2)
            assert_alone(s[3]);
        for (int32_t i = 0; i < 3; i++)
            assert_alone(s[i]);
        mm2_batch_free(b);
        for (int32_t i = 0; i < 4; i++)
            mm2_session_free(s[i]);
    }
}

static void *run_to_the_end(void *batch)
{
    while (mm2_batch_run(batch, 500, NULL) > MM2_OK)
        ;
    return NULL;
}

static void handles_may_go_while_others_use_the_object(void **state)
{
    for (int32_t i = 0; i < 20; i++) {
        mm2_session *s = session_of(0, MM2_BF16);
        pthread_t thread;
        assert_int_equal(MM2_OK, mm2_session_feed(s, ids, PROMPT));
        mm2_batch *b = batch_of(&s, 1, 16);
        pthread_create(&thread, NULL, run_to_the_end, b);
        for (int32_t wait = 0; wait < i; wait++)
            sched_yield();
        mm2_session_free(s); /* the batch keeps it; the sanitizer sees what stays behind */
        pthread_join(thread, NULL);
        mm2_batch_free(b);
    }
}

static atomic_int over;

static void *rewind_always(void *session)
{
    while (!atomic_load(&over))
        mm2_session_rewind(session, 0);
    return NULL;
}

static void batches_go_beside_a_rewind(void **state)
{
    mm2_session *s = session_of(0, MM2_BF16);
    pthread_t thread;
    atomic_store(&over, 0);
    pthread_create(&thread, NULL, rewind_always, s);
    for (int32_t i = 0; i < 200; i++) {
        mm2_batch *b;
        assert_int_equal(MM2_OK, mm2_batch_new(&b, model, NULL));
        while (mm2_batch_add(b, s) == MM2_E_BUSY)
            ;
        mm2_session_feed(s, ids, 30);
        mm2_batch_run(b, 100, NULL);
        if (i % 2)
            while (mm2_batch_remove(b, s) == MM2_E_BUSY)
                ;
        mm2_batch_free(b);
    }
    atomic_store(&over, 1);
    pthread_join(thread, NULL);
    assert_int_equal(MM2_OK, mm2_session_rewind(s, 0));
    feed_and_run(s, ids, 50);
    assert_alone(s);
    mm2_session_free(s);
}

/* ---- Processes ---- */

static void *run_in_child(void *session)
{
    feed_and_run(session, ids, PROMPT);
    return NULL;
}

static atomic_int running;

static void *run_until_told(void *session)
{
    atomic_store(&running, 1);
    while (!atomic_load(&over)) {
        mm2_session_feed(session, ids, 100);
        mm2_session_run(session, 0, NULL);
        mm2_session_rewind(session, 20);
    }
    return NULL;
}

static int child_is_well(mm2_session *taken)
{
    mm2_session *s[2] = {session_of(0, MM2_BF16), session_of(0, MM2_BF16)};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) /* both make the pool their process's own */
        pthread_create(&threads[i], NULL, run_in_child, s[i]);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++)
        assert_alone(s[i]);
    /* A thread that this process does not have was running it. */
    assert_int_equal(MM2_OK, mm2_session_rewind(taken, mm2_session_position(taken)));
    feed_and_run(taken, ids + 5, 5);
    assert_alone(taken);
    return 1;
}

static void a_forked_child_may_use_everything(void **state)
{
    mm2_session *s = session_of(16, MM2_BF16);
    pthread_t thread;
    feed_and_run(s, ids, 20);
    atomic_store(&over, 0);
    atomic_store(&running, 0);
    pthread_create(&thread, NULL, run_until_told, s);
    while (!atomic_load(&running))
        sched_yield();
    for (int32_t i = 0; i < 10; i++) {
        pid_t child = fork();
        if (!child) {
            alarm(60);
            _exit(child_is_well(s) ? 0 : 1);
        }
        int status;
        waitpid(child, &status, 0);
        assert_true(WIFEXITED(status) && !WEXITSTATUS(status));
    }
    atomic_store(&over, 1);
    pthread_join(thread, NULL);
    mm2_session_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(branches_never_see_each_other),
        cmocka_unit_test(a_fork_may_come_in_the_middle_of_a_prompt),
        cmocka_unit_test(a_fork_has_the_logits_and_edits_stay_apart),
        cmocka_unit_test(taps_stay_with_the_session),
        cmocka_unit_test(pages_are_shared_until_they_are_written),
        cmocka_unit_test(a_walk_may_be_parted_by_layers),
        cmocka_unit_test(decoding_members_do_not_wait_for_a_prompt),
        cmocka_unit_test(cutting_a_member_drops_nobody_elses_rows),
        cmocka_unit_test(handles_may_go_while_others_use_the_object),
        cmocka_unit_test(batches_go_beside_a_rewind),
        cmocka_unit_test(a_forked_child_may_use_everything),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
