/* run/ through the public functions, on m2-tiny: what the sanitizers and a C caller should see of
 * sessions, batches, taps, budgets and threads. The numbers themselves are checked against
 * transformers in tests/python. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "minimax2.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PROMPT = 300, VOCAB = 4096 }; /* the prompt crosses a page of the cache */

static const char tiny[] = "../python/minimax2/m2-tiny";
static mm2_model *model;
static int32_t prompt[PROMPT];
static float expected[VOCAB]; /* logits after the prompt, one run without limits */

static mm2_session *session_of(int32_t chunk)
{
    mm2_session_options o = {.size = sizeof o};
    mm2_session *s;
    mm2_session_options_init(&o);
    o.context = PROMPT + 20;
    o.chunk = chunk;
    assert_int_equal(MM2_OK, mm2_session_new(&s, model, &o));
    return s;
}

static const float *logits_of(mm2_session *s)
{
    mm2_tensor t;
    assert_int_equal(MM2_OK, mm2_session_logits(s, &t));
    assert_int_equal(VOCAB, t.shape[0]);
    return t.data;
}

static void assert_expected(mm2_session *s)
{
    assert_memory_equal(expected, logits_of(s), sizeof expected);
}

static int set_up(void **state)
{
    mm2_model_options o = {.size = sizeof o};
    mm2_model_options_init(&o);
    o.threads = 3;
    if (mm2_model_open(&model, tiny, &o))
        return -1;
    for (int32_t i = 0; i < PROMPT; i++)
        prompt[i] = 17 * i % 4000;
    mm2_session *s = session_of(0);
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    memcpy(expected, logits_of(s), sizeof expected);
    mm2_session_free(s);
    return 0;
}

static int tear_down(void **state)
{
    mm2_model_release(model);
    return 0;
}

static void budgets_chunks_and_rewinds_keep_the_bits(void **state)
{
    mm2_session *s = session_of(7);
    mm2_event e = {.size = sizeof e};
    int32_t more = 0;
    int64_t done = -1;
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    mm2_status status;
    while ((status = mm2_session_run(s, 100, &e)) == MM2_MORE) {
        more++;
        assert_true(e.done >= done && e.done <= e.total);
        done = e.done;
    }
    assert_int_equal(MM2_OK, status);
    assert_int_equal(e.total, e.done);
    assert_true(more > 3);
    assert_expected(s);
    for (int32_t length = PROMPT - 1; length > 0; length -= 99) {
        assert_int_equal(MM2_OK, mm2_session_rewind(s, length));
        assert_int_equal(MM2_OK, mm2_session_feed(s, prompt + length, PROMPT - length));
        assert_int_equal(MM2_MORE, mm2_session_run(s, 1, &e));
        assert_int_equal(MM2_OK, mm2_session_run(s, 0, &e));
        assert_expected(s);
    }
    /* A rewind in the middle of a chunk drops it. */
    assert_int_equal(MM2_OK, mm2_session_rewind(s, 0));
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt + 1, PROMPT - 1));
    assert_int_equal(MM2_MORE, mm2_session_run(s, 1, &e));
    assert_int_equal(MM2_OK, mm2_session_rewind(s, 0));
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    assert_expected(s);
    mm2_session_free(s);
}

static void every_tap_stops_once_a_layer_and_changes_nothing(void **state)
{
    mm2_session *s = session_of(0);
    mm2_event e = {.size = sizeof e};
    mm2_config g = {.size = sizeof g};
    int32_t seen[MM2_POINT_COUNT] = {0};
    mm2_model_config(model, &g);
    for (int32_t point = 0; point < MM2_POINT_COUNT; point++)
        assert_int_equal(MM2_OK, mm2_session_tap(s, point, -1, 1));
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, 200)); /* one chunk */
    mm2_status status;
    while ((status = mm2_session_run(s, 0, &e)) == MM2_TAP) {
        assert_int_equal(seen[e.point],
                         e.point == MM2_POINT_FINAL_NORM || e.point == MM2_POINT_LOGITS ? 0
                                                                                        : e.layer);
        seen[e.point]++;
        assert_int_equal(0, e.first);
        assert_int_equal(200, e.count);
        assert_int_equal(200, e.tensor.shape[0]);
        /* The whole view can be read and written. */
        volatile char *bytes = e.tensor.data;
        for (int64_t i = 0; i < e.tensor.nbytes; i++)
            bytes[i] = bytes[i];
    }
    assert_int_equal(MM2_OK, status);
    for (int32_t point = 0; point < MM2_POINT_COUNT; point++) {
        int once =
            point == MM2_POINT_EMBED || point == MM2_POINT_FINAL_NORM || point == MM2_POINT_LOGITS;
        assert_int_equal(once ? 1 : g.num_hidden_layers, seen[point]);
        assert_int_equal(MM2_OK, mm2_session_tap(s, point, -1, 0));
    }
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt + 200, PROMPT - 200));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, &e));
    assert_expected(s);
    mm2_session_free(s);
}

static void impossible_experts_are_refused_and_can_be_mended(void **state)
{
    mm2_session *s = session_of(0);
    mm2_event e = {.size = sizeof e};
    assert_int_equal(MM2_OK, mm2_session_tap(s, MM2_POINT_EXPERT_INDICES, 2, 1));
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    while (mm2_session_run(s, 0, &e) == MM2_TAP) {
        int32_t *chosen = e.tensor.data, right = chosen[1];
        const int32_t wrong[] = {-1, 16, chosen[0], INT32_MAX};
        for (int i = 0; i < 4; i++) {
            chosen[1] = wrong[i];
            assert_int_equal(MM2_E_ARG, mm2_session_run(s, 0, NULL));
            assert_non_null(strstr(mm2_error(), "expert indices"));
        }
        chosen[1] = right;
    }
    assert_expected(s);
    mm2_session_free(s);
}

static void a_batch_gives_each_member_its_own_bits(void **state)
{
    enum { MEMBERS = 20 };
    mm2_batch *b;
    mm2_session *s[MEMBERS];
    mm2_event e = {.size = sizeof e};
    assert_int_equal(MM2_OK, mm2_batch_new(&b, model, NULL));
    for (int32_t i = 0; i < MEMBERS; i++) {
        s[i] = session_of(0);
        assert_int_equal(MM2_OK, mm2_batch_add(b, s[i]));
        assert_int_equal(MM2_OK, mm2_session_feed(s[i], prompt, PROMPT - i));
        if (i == 9) /* others join in the middle of a pass */
            assert_int_equal(MM2_MORE, mm2_batch_run(b, 200, &e));
    }
    assert_int_equal(MM2_E_ARG, mm2_batch_add(b, s[0]));
    assert_int_equal(MM2_E_BUSY, mm2_session_run(s[0], 0, NULL));
    uint32_t reported = 0;
    for (mm2_status status; (status = mm2_batch_run(b, 5000, &e));) {
        assert_in_range(status, MM2_MORE, MM2_READY);
        if (status == MM2_READY) {
            assert_false(reported >> e.session & 1);
            assert_int_equal(PROMPT - e.session, mm2_session_position(s[e.session]));
            reported |= 1u << e.session;
        }
    }
    assert_int_equal((1u << MEMBERS) - 1, reported);
    for (int32_t i = 0; i < MEMBERS; i += 3) {
        if (i)
            assert_int_equal(MM2_OK, mm2_session_feed(s[i], prompt + PROMPT - i, i));
        if (i == 6) {
            assert_int_equal(MM2_OK, mm2_batch_remove(b, s[i]));
            assert_int_equal(MM2_OK, mm2_session_run(s[i], 0, NULL));
            assert_expected(s[i]);
        }
    }
    for (mm2_status status; (status = mm2_batch_run(b, 0, &e));)
        assert_int_equal(MM2_READY, status);
    for (int32_t i = 0; i < MEMBERS; i += 3)
        assert_expected(s[i]);
    mm2_session_free(s[1]); /* the batch holds it until it goes */
    mm2_batch_free(b);
    assert_expected(s[0]);
    for (int32_t i = 0; i < MEMBERS; i++)
        if (i != 1)
            mm2_session_free(s[i]);
}

static void *run_alone(void *argument)
{
    float *result = argument;
    mm2_session *s = session_of(33);
    mm2_session_feed(s, prompt, PROMPT);
    while (mm2_session_run(s, 2000, NULL) == MM2_MORE)
        ;
    memcpy(result, logits_of(s), sizeof expected);
    mm2_session_free(s);
    return NULL;
}

static void threads_share_a_model(void **state)
{
    enum { THREADS = 4 };
    static float results[THREADS][VOCAB];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, run_alone, results[i]);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_memory_equal(expected, results[i], sizeof expected);
    }
}

typedef struct intruder {
    mm2_session *session;
    atomic_int stop, busy;
    int interrupted;
} intruder;

static void *intrude(void *argument)
{
    intruder *in = argument;
    while (!atomic_load(&in->stop)) {
        atomic_fetch_add(&in->busy, mm2_session_rewind(in->session, 0) == MM2_E_BUSY);
        mm2_session_interrupt(in->session);
    }
    return NULL;
}

static void a_second_thread_meets_busy_and_may_interrupt(void **state)
{
    intruder in = {.session = session_of(0)};
    pthread_t thread;
    /* The intruder's rewinds may win between two runs, so the timeline is empty when it does. */
    pthread_create(&thread, NULL, intrude, &in);
    for (int i = 0; i < 200 && (!atomic_load(&in.busy) || !in.interrupted); i++) {
        mm2_session_feed(in.session, prompt, PROMPT);
        in.interrupted += mm2_session_run(in.session, 0, NULL) == MM2_MORE;
    }
    atomic_store(&in.stop, 1);
    pthread_join(thread, NULL);
    assert_true(atomic_load(&in.busy) && in.interrupted);
    assert_int_equal(MM2_OK, mm2_session_rewind(in.session, 0));
    assert_int_equal(MM2_OK, mm2_session_feed(in.session, prompt, PROMPT));
    assert_int_equal(MM2_OK, mm2_session_run(in.session, 0, NULL));
    assert_expected(in.session);
    mm2_session_free(in.session);
}

static void a_forked_child_goes_on(void **state)
{
    mm2_session *s = session_of(0);
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    assert_int_equal(MM2_MORE, mm2_session_run(s, 1, NULL));
    pid_t child = fork();
    if (!child) {
        alarm(60);
        int good = mm2_session_run(s, 0, NULL) == MM2_OK &&
                   !memcmp(expected, logits_of(s), sizeof expected);
        _exit(good ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status) && !WEXITSTATUS(status));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    assert_expected(s);
    mm2_session_free(s);
}

static void bad_arguments_meet_a_sentence(void **state)
{
    mm2_session_options o = {.size = sizeof o};
    mm2_session *s;
    mm2_tensor t;
    float value;
    int32_t id = 0;
    mm2_session_options_init(&o);
    o.context = 1 << 20;
    assert_int_equal(MM2_E_ARG, mm2_session_new(&s, model, &o));
    assert_null(s);
    o.context = 0;
    o.kv_dtype = MM2_Q8_0;
    assert_int_equal(MM2_E_ARG, mm2_session_new(&s, model, &o));
    assert_non_null(strstr(mm2_error(), "q8_0"));
    o.size = sizeof o + 4; /* of a newer header */
    assert_int_equal(MM2_E_ARG, mm2_session_new(&s, model, &o));
    assert_non_null(strstr(mm2_error(), "newer"));
    o.size = 0;
    assert_int_equal(MM2_E_ARG, mm2_session_new(&s, model, &o));
    o.size = 2 * sizeof(uint32_t); /* of an older one, which knew the context only */
    o.context = 7;
    assert_int_equal(MM2_OK, mm2_session_new(&s, model, &o));
    assert_int_equal(7, mm2_session_context(s));
    mm2_session_free(s);
    assert_int_equal(MM2_E_ARG, mm2_session_new(NULL, model, NULL));
    s = session_of(0);
    assert_int_equal(MM2_E_ARG, mm2_session_feed(s, prompt, 0));
    assert_int_equal(MM2_E_ARG, mm2_session_feed(s, NULL, 3));
    const int32_t bad[] = {1, VOCAB};
    assert_int_equal(MM2_E_ARG, mm2_session_feed(s, bad, 2));
    assert_int_equal(0, mm2_session_length(s)); /* nothing of it was taken */
    assert_int_equal(MM2_E_ARG, mm2_session_logits(s, &t));
    assert_int_equal(MM2_E_ARG, mm2_session_logprobs(s, &id, 1, &value));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL)); /* nothing to do */
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    assert_int_equal(MM2_E_ARG, mm2_session_logits(s, &t)); /* fed, not run */
    assert_int_equal(MM2_E_FULL, mm2_session_feed(s, prompt, 21));
    assert_int_equal(MM2_E_ARG, mm2_session_rewind(s, PROMPT + 1));
    assert_int_equal(MM2_E_ARG, mm2_session_rewind(s, -1));
    assert_int_equal(MM2_E_ARG, mm2_session_run(s, -1, NULL));
    assert_int_equal(MM2_E_ARG, mm2_session_tap(s, MM2_POINT_COUNT, 0, 1));
    assert_int_equal(MM2_E_ARG, mm2_session_tap(s, MM2_POINT_Q, 99, 1));
    assert_int_equal(MM2_E_ARG, mm2_session_tap(s, MM2_POINT_LOGITS, 0, 1));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    assert_expected(s);
    mm2_session_free(s);
    mm2_session_free(NULL);
    mm2_batch_free(NULL);
}

static void limits_leave_the_bits_alone(void **state)
{
    (void)state;
    mm2_limits limits = {.size = sizeof limits};
    mm2_cost layers = {.size = sizeof layers}, rest = {.size = sizeof rest};
    assert_int_equal(MM2_E_ARG, mm2_model_limits(NULL, &limits));
    assert_int_equal(MM2_E_ARG, mm2_model_limits(model, NULL));
    assert_int_equal(MM2_OK, mm2_model_limits(model, &limits));
    assert_int_equal(3, limits.threads);
    assert_true(limits.plain_read > 0 && limits.best_read >= limits.plain_read);
    assert_true(limits.int8_ops > 0 && limits.bf16_ops > 0 && limits.f32_ops > 0);
    assert_int_equal(MM2_E_ARG, mm2_model_cost(model, 1, 0, MM2_BF16, &layers, NULL));
    assert_int_equal(MM2_E_ARG, mm2_model_cost(model, 1, 0, MM2_F16, &layers, &rest));
    assert_int_equal(MM2_E_ARG,
                     mm2_model_cost(model, INT32_MAX, INT32_MAX, MM2_F32, &layers, &rest));
    assert_int_equal(MM2_OK, mm2_model_cost(model, 1, 4095, MM2_INT8, &layers, &rest));
    assert_true(layers.kv_bytes == 5.0 * 4095 * 2 * 2 * (64 + 4));
    assert_int_equal(MM2_OK, mm2_model_cost(model, 1, 4095, MM2_F32, &layers, &rest));
    assert_true(layers.kv_bytes == 5.0 * 4095 * 2 * 2 * 64 * 4);
    mm2_attention attention = {.size = sizeof attention};
    assert_int_equal(MM2_E_ARG, mm2_model_attention(model, MM2_F16, &attention));
    assert_int_equal(MM2_E_ARG, mm2_model_attention(model, MM2_BF16, NULL));
    const int32_t kinds[] = {MM2_F32, MM2_BF16, MM2_INT8};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(MM2_OK, mm2_model_attention(model, kinds[i], &attention));
        assert_true(attention.threads == 3 && attention.read > 0 && attention.ops > 0);
    }
    mm2_session *s = session_of(0);
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    assert_expected(s);
    mm2_session_free(s);
}

static void a_plan_is_what_a_session_takes(void **state)
{
    (void)state;
    mm2_session_options o = {.size = sizeof o};
    mm2_plan plan = {.size = sizeof plan};
    assert_int_equal(MM2_E_ARG, mm2_model_plan(NULL, NULL, &plan));
    assert_int_equal(MM2_E_ARG, mm2_model_plan(model, NULL, NULL));
    mm2_session_options_init(&o);
    o.kv_dtype = MM2_F16;
    assert_int_equal(MM2_E_ARG, mm2_model_plan(model, &o, &plan));
    o.kv_dtype = MM2_INT8, o.context = 300, o.chunk = 512;
    assert_int_equal(MM2_OK, mm2_model_plan(model, &o, &plan));
    assert_true(plan.context == 300 && plan.kv_dtype == MM2_INT8 && plan.chunk == 300);
    assert_true(plan.cache_page == 5LL * 2 * 2 * (64 + 4) * 256 &&
                plan.cache == 2 * plan.cache_page);
    assert_true(plan.session == 300 * 4 + VOCAB * 4);
    assert_true(plan.weights > 0 && plan.weights <= mm2_model_bytes(model));
    assert_true(plan.available > 0 && plan.available <= plan.present);
    int64_t buffers = plan.buffers;
    assert_int_equal(MM2_OK, mm2_model_plan(model, NULL, &plan));
    assert_true(plan.context == 4096 && plan.kv_dtype == MM2_BF16 && plan.chunk == 1024);
    assert_true(plan.buffers > buffers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budgets_chunks_and_rewinds_keep_the_bits),
        cmocka_unit_test(every_tap_stops_once_a_layer_and_changes_nothing),
        cmocka_unit_test(impossible_experts_are_refused_and_can_be_mended),
        cmocka_unit_test(a_batch_gives_each_member_its_own_bits),
        cmocka_unit_test(threads_share_a_model),
        cmocka_unit_test(a_second_thread_meets_busy_and_may_interrupt),
        cmocka_unit_test(a_forked_child_goes_on),
        cmocka_unit_test(bad_arguments_meet_a_sentence),
        cmocka_unit_test(limits_leave_the_bits_alone),
        cmocka_unit_test(a_plan_is_what_a_session_takes),
    };
    return cmocka_run_group_tests_name("session", tests, set_up, tear_down);
}
