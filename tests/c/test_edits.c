/* Edits as data on m2-tiny: each kind against a tap where a script does the same by hand; alone, in
 * pieces, in batches and behind forks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "minimax2.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 70, VOCAB = 4096, HIDDEN = 256, EXPERTS = 16, LAYER = 2 };

static mm2_model *model;
static mm2_config config = {.size = sizeof config};
static int32_t prompt[PROMPT];
static float values[4096];

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

static void logits_of(mm2_session *s, float *out)
{
    mm2_tensor t;
    assert_int_equal(MM2_OK, mm2_session_logits(s, &t));
    memcpy(out, t.data, VOCAB * sizeof *out);
}

static void evaluate(mm2_session *s, float *out)
{
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    logits_of(s, out);
}

static int set_up(void **state)
{
    mm2_model_options o = {.size = sizeof o};
    mm2_model_options_init(&o);
    o.threads = 3;
    if (mm2_model_open(&model, "../python/minimax2/m2-tiny", &o))
        return -1;
    mm2_model_config(model, &config);
    for (int32_t i = 0; i < PROMPT; i++)
        prompt[i] = 17 * i % 4000;
    for (int32_t i = 0; i < 4096; i++)
        values[i] = (float)(i * 37 % 101) / 50 - 1;
    return 0;
}

static int tear_down(void **state)
{
    mm2_model_release(model);
    return 0;
}

static mm2_edit edit_of(int32_t kind, int32_t point)
{
    return (mm2_edit){.size = sizeof(mm2_edit), .kind = kind, .point = point};
}

/* What a script would write. */
static void by_hand(const mm2_edit *e, float *x, int32_t n)
{
    double share[2] = {0}, lengths[2] = {0};
    for (int32_t i = 0; i < n; i++)
        for (int32_t r = 0; r < 2 && e->kind == MM2_EDIT_PROJECT; r++) {
            share[r] += (double)x[i] * (double)e->values[r * n + i];
            lengths[r] += (double)e->values[r * n + i] * (double)e->values[r * n + i];
        }
    for (int32_t i = 0; i < n; i++) {
        float v = e->values ? e->values[i] : e->factor;
        switch (e->kind) {
        case MM2_EDIT_ADD:
            x[i] += e->factor * v;
            break;
        case MM2_EDIT_SET:
            x[i] = v;
            break;
        case MM2_EDIT_SCALE:
            x[i] *= v;
            break;
        case MM2_EDIT_CLAMP:
            x[i] = fminf(fmaxf(x[i], e->low), e->high);
            break;
        case MM2_EDIT_CAP:
            x[i] = e->factor * tanhf(x[i] / e->factor);
            break;
        case MM2_EDIT_PROJECT: /* its rows are orthogonal */
            for (int32_t r = 0; r < 2; r++)
                x[i] -= e->factor * (float)(share[r] / lengths[r] * (double)e->values[r * n + i]);
            break;
        }
    }
}

/* The logits behind a run whose rows are changed at a tap. */
static void tapped(const mm2_edit *e, float *out)
{
    mm2_session *s = session_of(0);
    mm2_event event = {.size = sizeof event};
    mm2_status status;
    assert_int_equal(MM2_OK, mm2_session_tap(s, e->point, -1, 1));
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    while ((status = mm2_session_run(s, 0, &event)) == MM2_TAP) {
        int32_t width = (int32_t)event.tensor.strides[0], n = e->n ? e->n : width - e->at;
        for (int32_t r = 0; r < event.count; r++)
            if (event.layer >= e->first_layer &&
                event.layer < (e->end_layer ? e->end_layer : config.num_hidden_layers) &&
                event.first + r >= e->first && event.first + r < (e->end ? e->end : PROMPT))
                by_hand(e, (float *)event.tensor.data + (int64_t)r * width + e->at, n);
    }
    assert_int_equal(MM2_OK, status);
    logits_of(s, out);
    mm2_session_free(s);
}

static void each_kind_is_what_a_script_would_write(void **state)
{
    static float plain[VOCAB], edited[VOCAB], expected[VOCAB], orthogonal[2 * HIDDEN];
    for (int32_t i = 0; i < HIDDEN; i++) {
        orthogonal[i] = i % 2 ? 0 : values[i];
        orthogonal[HIDDEN + i] = i % 2 ? values[i] : 0;
    }
    mm2_edit edits[] = {
        edit_of(MM2_EDIT_ADD, MM2_POINT_RESID_POST), edit_of(MM2_EDIT_SET, MM2_POINT_ATTN_OUT),
        edit_of(MM2_EDIT_SET, MM2_POINT_Z),          edit_of(MM2_EDIT_SCALE, MM2_POINT_MLP_OUT),
        edit_of(MM2_EDIT_SCALE, MM2_POINT_Q),        edit_of(MM2_EDIT_CLAMP, MM2_POINT_RESID_MID),
        edit_of(MM2_EDIT_CAP, MM2_POINT_LOGITS),     edit_of(MM2_EDIT_PROJECT, MM2_POINT_RESID_PRE),
        edit_of(MM2_EDIT_ADD, MM2_POINT_EMBED),      edit_of(MM2_EDIT_ADD, MM2_POINT_ROUTER_LOGITS),
        edit_of(MM2_EDIT_SCALE, MM2_POINT_V),        edit_of(MM2_EDIT_CLAMP, MM2_POINT_FINAL_NORM)};
    int32_t count = sizeof edits / sizeof *edits;
    for (int32_t i = 0; i < count; i++) {
        mm2_edit *e = &edits[i];
        e->factor = 0.5f;
        e->low = -0.25f;
        e->high = 0.5f;
        e->values = e->kind == MM2_EDIT_PROJECT ? orthogonal : i % 3 ? values : NULL;
        e->rows = 2;
        e->first = i % 4 * 9;
    }
    edits[0].values = edits[8].values = edits[9].values = values;
    static const int64_t counts[] = {256, 256, 32, 0, 384, 0, 0, 512, 256, 16, 128, 0};
    for (int32_t i = 0; i < count; i++)
        edits[i].count = counts[i];
    edits[5].values = edits[6].values = edits[11].values = NULL;
    edits[0].first_layer = LAYER;
    edits[0].end_layer = LAYER + 1;
    edits[1].end = 40;
    edits[2].at = 16;
    edits[2].n = 32;
    edits[6].first = 0;
    mm2_session *whole = session_of(0);
    evaluate(whole, plain);
    mm2_session_free(whole);
    for (int32_t i = 0; i < count; i++) {
        tapped(&edits[i], expected);
        assert_memory_not_equal(expected, plain, sizeof plain);
        for (int32_t chunk = 0; chunk < 30; chunk += 13) {
            mm2_session *s = session_of(chunk);
            assert_int_equal(MM2_OK, mm2_session_set_edits(s, &edits[i], 1));
            evaluate(s, edited);
            int exact = edits[i].kind != MM2_EDIT_PROJECT && edits[i].kind != MM2_EDIT_CAP;
            for (int32_t v = 0; v < VOCAB; v++)
                assert_true(exact ? !memcmp(&expected[v], &edited[v], 4)
                                  : fabsf(expected[v] - edited[v]) < 1e-3f);
            mm2_session_free(s);
        }
    }
}

static int is_chosen(const int32_t *chosen, int32_t expert)
{
    int found = 0;
    for (int32_t i = 0; i < config.num_experts_per_tok; i++)
        found |= chosen[i] == expert;
    return found;
}

static void experts_are_masked_forced_and_weighed(void **state)
{
    mm2_session *s = session_of(0);
    mm2_event event = {.size = sizeof event};
    float choice[EXPERTS] = {0}, weights[EXPERTS];
    assert_int_equal(EXPERTS, config.num_local_experts);
    choice[3] = -INFINITY;
    choice[5] = INFINITY;
    for (int32_t e = 0; e < EXPERTS; e++)
        weights[e] = e == 5 ? 0 : 1;
    mm2_edit edits[] = {edit_of(MM2_EDIT_CHOOSE, MM2_POINT_EXPERT_INDICES),
                        edit_of(MM2_EDIT_WEIGH, MM2_POINT_EXPERT_WEIGHTS),
                        edit_of(MM2_EDIT_KEEP, MM2_POINT_EXPERT_WEIGHTS)};
    edits[0].values = choice;
    edits[1].values = weights;
    edits[0].count = edits[1].count = EXPERTS;
    edits[2].rows = 1;
    edits[0].end = edits[1].end = edits[2].first = 50;
    edits[0].first_layer = edits[1].first_layer = edits[2].first_layer = 1;
    assert_int_equal(MM2_OK, mm2_session_set_edits(s, edits, 3));
    assert_int_equal(MM2_OK, mm2_session_tap(s, MM2_POINT_EXPERT_INDICES, -1, 1));
    assert_int_equal(MM2_OK, mm2_session_tap(s, MM2_POINT_EXPERT_WEIGHTS, -1, 1));
    assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
    static int32_t chosen[PROMPT * EXPERTS];
    int32_t k = config.num_experts_per_tok, seen[2] = {0};
    while (mm2_session_run(s, 0, &event) == MM2_TAP) {
        if (event.point == MM2_POINT_EXPERT_INDICES)
            memcpy(chosen, event.tensor.data, (size_t)event.tensor.nbytes);
        for (int32_t r = 0; r < PROMPT; r++) {
            const int32_t *row = chosen + r * k;
            const float *x = (const float *)event.tensor.data + r * k;
            int32_t active = 0;
            float sum = 0;
            seen[0] += event.layer == 0 && is_chosen(row, 3);
            seen[1] += event.layer == 0 && !is_chosen(row, 5);
            if (event.layer && r < 50)
                assert_true(!is_chosen(row, 3) && is_chosen(row, 5));
            if (event.point != MM2_POINT_EXPERT_WEIGHTS)
                continue;
            for (int32_t i = 0; i < k; i++) {
                active += x[i] > 0;
                sum += x[i];
                assert_false(event.layer && r < 50 && row[i] == 5 && x[i] > 0);
            }
            if (event.layer && r >= 50)
                assert_true(active == 1 && fabsf(sum - config.routed_scaling_factor) < 1e-5f);
        }
    }
    assert_true(seen[0] && seen[1]);
    mm2_session_free(s);
}

static void interrupted_runs_edit_each_row_once(void **state)
{
    static float expected[VOCAB], found[VOCAB];
    mm2_edit e = edit_of(MM2_EDIT_SCALE, MM2_POINT_RESID_POST);
    e.factor = 1.25f;
    for (int32_t piece = 0; piece < 2; piece++) {
        mm2_session *s = session_of(0);
        int32_t more = 0;
        assert_int_equal(MM2_OK, mm2_session_set_edits(s, &e, 1));
        assert_int_equal(MM2_OK, mm2_session_feed(s, prompt, PROMPT));
        while (mm2_session_run(s, piece, NULL) == MM2_MORE)
            more++;
        assert_true(!piece || more > 20);
        logits_of(s, piece ? found : expected);
        mm2_session_free(s);
    }
    assert_memory_equal(expected, found, sizeof found);
}

/* Members have their own, forks their parent's, until they get others. */
static void sessions_have_their_own(void **state)
{
    enum { MEMBERS = 3 };
    static float plain[VOCAB], edited[VOCAB], found[VOCAB];
    mm2_edit e = edit_of(MM2_EDIT_ADD, MM2_POINT_RESID_POST);
    e.factor = 0.5f;
    e.values = values;
    e.count = HIDDEN;
    mm2_session *s[MEMBERS], *fork;
    mm2_batch *b;
    assert_int_equal(MM2_OK, mm2_batch_new(&b, model, NULL));
    for (int i = 0; i < MEMBERS; i++) {
        s[i] = session_of(0);
        if (i == 1)
            assert_int_equal(MM2_OK, mm2_session_set_edits(s[i], &e, 1));
        assert_int_equal(MM2_OK, mm2_session_feed(s[i], prompt, PROMPT));
        assert_int_equal(MM2_OK, mm2_batch_add(b, s[i]));
    }
    mm2_event event = {.size = sizeof event};
    while (mm2_batch_run(b, 0, &event) == MM2_READY)
        ;
    logits_of(s[0], plain);
    logits_of(s[1], edited);
    logits_of(s[2], found);
    assert_memory_equal(plain, found, sizeof found);
    assert_memory_not_equal(plain, edited, sizeof edited);
    mm2_batch_free(b);
    assert_int_equal(MM2_OK, mm2_session_fork(&fork, s[1]));
    mm2_session_free(s[1]);
    s[1] = session_of(0);
    evaluate(s[1], found); /* without */
    assert_memory_equal(plain, found, sizeof found);
    assert_int_equal(MM2_OK, mm2_session_rewind(fork, 0));
    evaluate(fork, found);
    assert_memory_equal(edited, found, sizeof found);
    assert_int_equal(MM2_OK, mm2_session_set_edits(fork, NULL, 0));
    assert_int_equal(MM2_OK, mm2_session_rewind(fork, 0));
    evaluate(fork, found);
    assert_memory_equal(plain, found, sizeof found);
    for (int i = 0; i < MEMBERS; i++)
        mm2_session_free(s[i]);
    mm2_session_free(fork);
}

static void refused(mm2_session *s, mm2_edit e, const char *sentence)
{
    assert_int_equal(MM2_E_ARG, mm2_session_set_edits(s, &e, 1));
    if (!strstr(mm2_error(), sentence))
        fail_msg("\"%s\" does not say \"%s\"", mm2_error(), sentence);
}

static void impossible_edits_are_refused_and_change_nothing(void **state)
{
    static float edited[VOCAB], found[VOCAB];
    float masks[EXPERTS], wrong[HIDDEN] = {0};
    mm2_edit right = edit_of(MM2_EDIT_ADD, MM2_POINT_RESID_POST), e = right;
    mm2_session *s = session_of(0);
    right.values = values;
    right.count = HIDDEN;
    right.factor = 1;
    assert_int_equal(MM2_OK, mm2_session_set_edits(s, &right, 1));
    refused(s, e, "takes 256 values, there are 0");
    e = right;
    e.kind = MM2_EDIT_COUNT;
    refused(s, e, "the kind must be 0..8");
    e = right;
    e.point = -1;
    refused(s, e, "the point must be 0..16");
    e = right;
    e.size = 0;
    refused(s, e, "size");
    e = right;
    e.end_layer = 99;
    refused(s, e, "layers 0 to 99");
    e = right;
    e.first = 5;
    e.end = 5;
    refused(s, e, "no positions from 5 to 5");
    e = right;
    e.at = HIDDEN;
    refused(s, e, "0 elements from 256 on are not within the 256 of resid_post");
    e = right;
    e.n = INT32_MAX;
    e.at = 1;
    refused(s, e, "are not within");
    e = right;
    e.point = MM2_POINT_LOGITS;
    e.end_layer = 1;
    refused(s, e, "logits does not exist at layers 0 to 1");
    e = right;
    e.factor = NAN;
    refused(s, e, "the factor is not finite");
    wrong[7] = INFINITY;
    e = right;
    e.values = wrong;
    refused(s, e, "value 7 is not finite");
    e = right;
    e.point = MM2_POINT_EXPERT_INDICES;
    refused(s, e, "at expert_indices experts can be chosen");
    e = right;
    e.kind = MM2_EDIT_CHOOSE;
    e.count = EXPERTS;
    refused(s, e, "for the point expert_indices, not for resid_post");
    e = edit_of(MM2_EDIT_KEEP, MM2_POINT_EXPERT_WEIGHTS);
    refused(s, e, "rows must be 1..");
    e = edit_of(MM2_EDIT_CLAMP, MM2_POINT_Q);
    e.low = 1;
    refused(s, e, "low must be at most high");
    e = edit_of(MM2_EDIT_CAP, MM2_POINT_LOGITS);
    refused(s, e, "must be above 0");
    e = edit_of(MM2_EDIT_PROJECT, MM2_POINT_RESID_POST);
    e.rows = 2;
    wrong[7] = 1;
    e.n = HIDDEN / 2;
    e.count = HIDDEN;
    e.values = wrong;
    refused(s, e, "row 1 is 0 or lies in the space");
    for (int i = 0; i < EXPERTS; i++)
        masks[i] = -INFINITY;
    e = edit_of(MM2_EDIT_CHOOSE, MM2_POINT_EXPERT_INDICES);
    e.values = masks;
    e.count = EXPERTS;
    refused(s, e, "16 of 16 experts are masked");
    assert_int_equal(MM2_E_ARG, mm2_session_set_edits(s, &right, -1));
    assert_int_equal(MM2_E_ARG, mm2_session_set_edits(s, NULL, 1));
    assert_int_equal(MM2_E_ARG, mm2_session_set_edits(NULL, &right, 1));
    evaluate(s, found);
    tapped(&right, edited);
    assert_memory_equal(edited, found, sizeof found);
    mm2_session_free(s);
}

/* Pages of edited positions stay with their session, and others' are not taken for them. */
static void edits_and_the_cache_of_prefixes(void **state)
{
    enum { LONG = 700 };
    static int32_t ids[LONG];
    static float plain[VOCAB], edited[VOCAB], found[VOCAB];
    mm2_model *own;
    mm2_model_options o = {.size = sizeof o};
    mm2_model_options_init(&o);
    o.prefix_cache = 1 << 28;
    assert_int_equal(MM2_OK, mm2_model_open(&own, "../python/minimax2/m2-tiny", &o));
    for (int i = 0; i < LONG; i++)
        ids[i] = i * 11 % 4000;
    mm2_edit e = edit_of(MM2_EDIT_ADD, MM2_POINT_RESID_POST);
    e.values = values;
    e.count = HIDDEN;
    e.factor = 1;
    e.first = 300;
    for (int round = 0; round < 4; round++) {
        mm2_session *s;
        mm2_session_options so = {.size = sizeof so};
        mm2_session_options_init(&so);
        assert_int_equal(MM2_OK, mm2_session_new(&s, own, &so));
        if (round % 2 == 0)
            assert_int_equal(MM2_OK, mm2_session_set_edits(s, &e, 1));
        assert_int_equal(MM2_OK, mm2_session_feed(s, ids, LONG));
        assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
        logits_of(s, round == 0 ? edited : round == 1 ? plain : found);
        if (round > 1)
            assert_memory_equal(round == 2 ? edited : plain, found, sizeof found);
        /* 256 positions come before the edits. */
        assert_int_equal(round == 0 ? 0 : round == 3 ? 512 : 256, mm2_session_reused(s));
        mm2_session_free(s);
    }
    assert_memory_not_equal(plain, edited, sizeof edited);
    mm2_model_release(own);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_kind_is_what_a_script_would_write),
        cmocka_unit_test(experts_are_masked_forced_and_weighed),
        cmocka_unit_test(interrupted_runs_edit_each_row_once),
        cmocka_unit_test(sessions_have_their_own),
        cmocka_unit_test(impossible_edits_are_refused_and_change_nothing),
        cmocka_unit_test(edits_and_the_cache_of_prefixes)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
