/* A step that waits: experts that are not there yet. The functions that hold and release an expert
 * are this program's own (see csrc/Makefile), so that a test says when one arrives. What the walk
 * promises: MORE within the budget, or sleep until the step can begin; then the same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/experts.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

enum { PROMPT = 40, VOCAB = 4096 };

static const char tiny[] = "../python/minimax2/m2-tiny";
static mm2_model *model;
static int32_t prompt[PROMPT];
static float expected[VOCAB];

static atomic_int away_layer = -1; /* whose experts are on their way; -1: none */
static atomic_int grants;          /* of it that have arrived */
static atomic_int asked, held;

int __wrap_mm2_experts_hold(const mm2_weights *w, int32_t layer, int32_t expert);
void __wrap_mm2_experts_release(const mm2_weights *w, int32_t layer, int32_t expert);

int __wrap_mm2_experts_hold(const mm2_weights *w, int32_t layer, int32_t expert)
{
    if (layer == away_layer) {
        asked++;
        if (grants < 1)
            return 0;
        grants--;
    }
    held++;
    return 1;
}

void __wrap_mm2_experts_release(const mm2_weights *w, int32_t layer, int32_t expert)
{
    held--;
}

static mm2_session *session_with(int32_t tokens)
{
    mm2_session *s;
    assert_int_equal(MM2_OK, mm2_session_new(&s, model, NULL));
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, tokens));
    return s;
}

static void copy_logits(mm2_session *s, float *out)
{
    mm2_tensor t;
    assert_int_equal(MM2_OK, mm2_session_logits(s, &t));
    memcpy(out, t.data, VOCAB * sizeof *out);
}

static void assert_expected(mm2_session *s)
{
    static float got[VOCAB];
    copy_logits(s, got);
    assert_memory_equal(expected, got, sizeof got);
}

static int set_up(void **state)
{
    mm2_model_options o = {.size = sizeof o};
    mm2_model_options_init(&o);
    o.threads = 2;
    if (mm2_model_open(&model, tiny, &o))
        return -1;
    for (int32_t i = 0; i < PROMPT; i++)
        prompt[i] = 29 * i % 4000;
    mm2_session *s = session_with(PROMPT);
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    copy_logits(s, expected);
    mm2_session_free(s);
    return 0;
}

static int tear_down(void **state)
{
    mm2_model_release(model);
    return 0;
}

static int begin(void **state)
{
    away_layer = -1;
    grants = asked = 0;
    return 0;
}

static int nothing_is_held(void **state)
{
    return held != 0;
}

/* Each run asks, and comes back; experts that have arrived stay held. */
static void a_run_with_a_budget_returns_while_it_waits(void **state)
{
    mm2_session *s = session_with(PROMPT);
    mm2_event e = {.size = sizeof e};
    away_layer = 1;
    while (!asked)
        assert_int_equal(MM2_MORE, mm2_session_run(s, 1000, &e));
    int64_t done = e.done;
    for (int i = 0; i < 3; i++) {
        int before = asked, have = held;
        grants = 1;
        assert_int_equal(MM2_MORE, mm2_session_run(s, 2000, &e));
        assert_true(asked > before + 1);
        assert_int_equal(have + 1, held);
        assert_int_equal(done, e.done);
        assert_in_range(e.done, 1, e.total - 1);
    }
    away_layer = -1;
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, &e));
    assert_int_equal(e.total, e.done);
    assert_expected(s);
    mm2_session_free(s);
}

static void *let_arrive(void *unused)
{
    while (asked < 3)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    away_layer = -1;
    return NULL;
}

static void a_run_without_one_sleeps_until_it_can_go_on(void **state)
{
    mm2_session *s = session_with(PROMPT);
    pthread_t other;
    away_layer = 2;
    assert_int_equal(0, pthread_create(&other, NULL, let_arrive, NULL));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    pthread_join(other, NULL);
    assert_true(asked >= 3);
    assert_expected(s);
    mm2_session_free(s);
}

static void *interrupt(void *session)
{
    while (asked < 3)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    mm2_session_interrupt(session);
    return NULL;
}

static void a_run_that_waits_can_be_interrupted_and_dropped(void **state)
{
    mm2_session *s = session_with(PROMPT);
    pthread_t other;
    away_layer = 1;
    grants = 2;
    assert_int_equal(0, pthread_create(&other, NULL, interrupt, s));
    assert_int_equal(MM2_MORE, mm2_session_run(s, 0, NULL));
    pthread_join(other, NULL);
    assert_int_equal(2, held);
    assert_int_equal(MM2_OK, mm2_session_rewind(s, 0)); /* drops the rows, and what they held */
    assert_int_equal(0, held);
    away_layer = -1;
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    assert_expected(s);
    mm2_session_free(s);
}

/* Rows that wait together, of which one member's are dropped meanwhile: the others' go on. */
static void members_of_a_batch_wait_together(void **state)
{
    mm2_session *members[3] = {session_with(PROMPT), session_with(7), session_with(PROMPT)};
    static float alone[VOCAB], got[VOCAB];
    mm2_session *s = session_with(7);
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    copy_logits(s, alone);
    mm2_session_free(s);
    mm2_batch *b;
    mm2_event e = {.size = sizeof e};
    assert_int_equal(MM2_OK, mm2_batch_new(&b, model, NULL));
    for (int i = 0; i < 3; i++)
        assert_int_equal(MM2_OK, mm2_batch_add(b, members[i]));
    away_layer = 0;
    grants = 1;
    while (asked < 2)
        assert_int_equal(MM2_MORE, mm2_batch_run(b, 1000, &e));
    assert_int_equal(1, held);
    assert_int_equal(MM2_OK, mm2_batch_remove(b, members[2]));
    assert_int_equal(MM2_MORE, mm2_batch_run(b, 1000, &e));
    away_layer = -1;
    mm2_status status;
    do
        status = mm2_batch_run(b, 0, &e);
    while (status == MM2_READY);
    assert_int_equal(MM2_OK, status);
    assert_expected(members[0]);
    copy_logits(members[1], got);
    assert_memory_equal(alone, got, sizeof got);
    mm2_batch_free(b);
    assert_int_equal(MM2_OK, mm2_session_run(members[2], 0, NULL));
    assert_expected(members[2]);
    for (int i = 0; i < 3; i++)
        mm2_session_free(members[i]);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, nothing_is_held)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_run_with_a_budget_returns_while_it_waits),
        TEST(a_run_without_one_sleeps_until_it_can_go_on),
        TEST(a_run_that_waits_can_be_interrupted_and_dropped),
        TEST(members_of_a_batch_wait_together),
    };
    return cmocka_run_group_tests_name("waiting", tests, set_up, tear_down);
}
