/* The sampler against distributions worked out by hand and against naive versions of its steps. */
#include "base/rng.h"
#include "model/model.h"
#include "run/sampler.h"

#include <fenv.h>
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB = 1000, CONTEXT = 64 };

/* A model as far as a sampler looks: sizes and hints. Its count never reaches zero. */
static mm2_model model;

static int setup(void **state)
{
    (void)state;
    memset(&model, 0, sizeof model);
    atomic_store(&model.references, 1);
    model.checkpoint.config.vocab_size = VOCAB;
    model.checkpoint.config.max_position_embeddings = CONTEXT;
    model.checkpoint.hints = (mm2_sampling_hints){.temperature = 0.5f, .top_p = 0.25f, .top_k = 3};
    return 0;
}

static mm2_sampling off(void)
{
    mm2_sampling o = {.size = sizeof o};
    mm2_sampling_init(&o, NULL);
    o.top_k = 0;
    o.top_p = 1;
    return o;
}

static mm2_sampler *make(mm2_sampling o)
{
    mm2_sampler *p;
    assert_int_equal(mm2_sampler_new(&p, &model, &o), MM2_OK);
    return p;
}

/* Everything forbidden but the first n ids, which get these probabilities. */
static void set(float *logits, const double *probabilities, int n)
{
    for (int i = 0; i < VOCAB; i++)
        logits[i] = i < n ? (float)log(probabilities[i]) : -INFINITY;
}

/* The sampler must draw exactly these ids, in this order of the cumulative distribution. */
static void expect(mm2_sampling o, const float *logits, const int32_t *ids, const double *weights,
                   int n)
{
    mm2_sampler *p = make(o);
    double total = 0;
    int seen[8] = {0};
    for (int i = 0; i < n; i++)
        total += weights[i];
    for (int position = 0; position < 400; position++) {
        double u = mm2_uniform(o.seed, (uint64_t)position) * total, sum = 0;
        int i = 0;
        while (i < n - 1 && (sum += weights[i]) <= u)
            i++;
        seen[i] = 1;
        assert_int_equal(mm2_sampler_choose(p, logits, NULL, 0, position, NULL), ids[i]);
    }
    for (int i = 0; i < n; i++)
        assert_true(seen[i]);
    mm2_sampler_free(p);
}

static void fails(int32_t result, mm2_status status, const char *word)
{
    assert_int_equal(result, status);
    if (!strstr(mm2_error(), word))
        fail_msg("\"%s\" does not say \"%s\"", mm2_error(), word);
}

static void generator_gives_published_values(void **state)
{
    (void)state;
    static const uint64_t zero[] = {0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f,
                                    0xf88bb8a8724c81ec, 0x1b39896a51a8749b};
    static const uint64_t other[] = {6457827717110365317u, 3203168211198807973u,
                                     9817491932198370423u, 4593380528125082431u,
                                     16408922859458223821u};
    for (uint64_t i = 0; i < 5; i++) {
        assert_int_equal(mm2_splitmix64(0, i), zero[i]);
        assert_int_equal(mm2_splitmix64(1234567, i), other[i]);
    }
    /* The seed is hashed: seeds one step of the counter apart do not shift the same sequence. */
    assert_true(mm2_uniform(0x9e3779b97f4a7c15, 0) != mm2_uniform(0, 1));
    double sum = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        double u = mm2_uniform(i % 100, i / 100);
        assert_true(u >= 0 && u < 1);
        sum += u;
    }
    assert_true(fabs(sum / 10000 - 0.5) < 0.01); /* 3.5 standard deviations */
}

static void defaults_come_from_the_checkpoint(void **state)
{
    (void)state;
    mm2_sampling o;
    memset(&o, 0xff, sizeof o);
    o.size = sizeof o;
    mm2_sampling_init(&o, NULL);
    assert_int_equal(o.size, sizeof o);
    assert_true(o.temperature == 1.0f && o.top_p == 0.95f && o.top_k == 40 && o.seed == 0);
    assert_true(o.min_p == 0 && o.typical_p == 1 && o.top_n_sigma == 0 && o.dry_multiplier == 0);
    assert_true(o.repetition_penalty == 1 && o.presence_penalty == 0 && o.frequency_penalty == 0);
    assert_int_equal(mm2_sampler_check(&o), MM2_OK);
    mm2_sampling_init(&o, &model);
    assert_true(o.temperature == 0.5f && o.top_p == 0.25f && o.top_k == 3);
    mm2_sampling_init(NULL, NULL);
}

static void every_field_has_its_range(void **state)
{
    (void)state;
    mm2_sampling o = {.size = sizeof o};
#define BAD(field, value)                                                                          \
    o = off();                                                                                     \
    o.field = value;                                                                               \
    fails(mm2_sampler_check(&o), MM2_E_ARG, #field)
#define GOOD(field, value)                                                                         \
    o = off();                                                                                     \
    o.field = value;                                                                               \
    assert_int_equal(mm2_sampler_check(&o), MM2_OK)
#define FLOAT(field, low, high)                                                                    \
    BAD(field, NAN);                                                                               \
    BAD(field, INFINITY);                                                                          \
    BAD(field, -INFINITY);                                                                         \
    GOOD(field, low);                                                                              \
    GOOD(field, high);                                                                             \
    if (low > -FLT_MAX) {                                                                          \
        BAD(field, nextafterf(low, -INFINITY));                                                    \
    }                                                                                              \
    if (high < FLT_MAX) {                                                                          \
        BAD(field, nextafterf(high, INFINITY));                                                    \
    }
    FLOAT(temperature, 0.0f, FLT_MAX)
    FLOAT(top_p, 0.0f, 1.0f)
    FLOAT(min_p, 0.0f, 1.0f)
    FLOAT(typical_p, 0.0f, 1.0f)
    FLOAT(top_n_sigma, 0.0f, FLT_MAX)
    FLOAT(repetition_penalty, FLT_TRUE_MIN, FLT_MAX)
    FLOAT(presence_penalty, -FLT_MAX, FLT_MAX)
    FLOAT(frequency_penalty, -FLT_MAX, FLT_MAX)
    FLOAT(dry_multiplier, 0.0f, FLT_MAX)
    FLOAT(dry_base, 1.0f, FLT_MAX)
    BAD(repetition_penalty, 0);
    BAD(top_k, -1);
    GOOD(top_k, INT32_MAX);
    BAD(penalty_window, -2);
    GOOD(penalty_window, INT32_MAX);
    BAD(dry_window, -2);
    GOOD(dry_window, 0);
    BAD(dry_allowed_length, 0);
    GOOD(dry_allowed_length, INT32_MAX);
    mm2_sampler *p = (mm2_sampler *)&model;
    for (uint32_t size = 0; size <= sizeof o + 8; size += (uint32_t)sizeof o + 8) {
        o = off();
        o.size = size;
        fails(mm2_sampler_new(&p, &model, &o), MM2_E_ARG, "size");
    }
    o = off();
    o.top_p = 2;
    fails(mm2_sampler_new(&p, &model, &o), MM2_E_ARG, "top_p");
    assert_null(p);
    fails(mm2_sampler_new(NULL, &model, NULL), MM2_E_ARG, "out");
    fails(mm2_sampler_new(&p, NULL, NULL), MM2_E_ARG, "model");
    assert_int_equal(mm2_sampler_new(&p, &model, NULL), MM2_OK);
    assert_int_equal(atomic_load(&model.references), 2);
    assert_int_equal(mm2_sampler_vocab(p), VOCAB);
    mm2_sampler_free(p);
    mm2_sampler_free(NULL);
    assert_int_equal(atomic_load(&model.references), 1);
}

static void bad_arguments_are_named(void **state)
{
    (void)state;
    static float x[VOCAB];
    int32_t ids[] = {3, VOCAB, -1};
    float values[] = {1, NAN};
    mm2_sampler *p = make(off());
    fails(mm2_sampler_pick(NULL, x, NULL, 0, NULL), MM2_E_ARG, "sampler is NULL");
    fails(mm2_sampler_pick(p, NULL, NULL, 0, NULL), MM2_E_ARG, "logits are NULL");
    fails(mm2_sampler_pick(p, x, NULL, 1, NULL), MM2_E_ARG, "history is NULL");
    fails(mm2_sampler_pick(p, x, ids, -1, NULL), MM2_E_ARG, "negative");
    fails(mm2_sampler_pick(p, x, ids, 2, NULL), MM2_E_ARG, "history[1] is token 1000");
    fails(mm2_sampler_pick(p, x, ids + 2, 1, NULL), MM2_E_ARG, "token -1");
    fails(mm2_sampler_bias(NULL, ids, values, 1), MM2_E_ARG, "sampler is NULL");
    fails(mm2_sampler_bias(p, ids, NULL, 1), MM2_E_ARG, "NULL");
    fails(mm2_sampler_bias(p, NULL, values, 1), MM2_E_ARG, "NULL");
    fails(mm2_sampler_bias(p, ids, values, -1), MM2_E_ARG, "negative");
    fails(mm2_sampler_bias(p, ids, values, 2), MM2_E_ARG, "ids[1] is 1000");
    ids[1] = 4;
    fails(mm2_sampler_bias(p, ids, values, 2), MM2_E_ARG, "values[1] is NaN");
    fails(mm2_sampler_breakers(p, NULL, 1), MM2_E_ARG, "NULL");
    fails(mm2_sampler_breakers(p, ids, 3), MM2_E_ARG, "ids[2] is -1");
    mm2_sampler_free(p);
}

static void greedy_takes_the_best_allowed(void **state)
{
    (void)state;
    static float x[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        x[i] = (float)-i;
    x[7] = x[9] = 5;
    mm2_sampling o = off();
    o.temperature = 0;
    mm2_sampler *p = make(o);
    assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, NULL), 7);
    uint32_t mask[(VOCAB + 31) / 32];
    memset(mask, 0xff, sizeof mask); /* bits past the vocabulary are set: ignored */
    mask[0] &= ~(1u << 7);
    assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, mask), 9);
    for (int32_t id = 64; id < 96; id++) { /* every bit of a word */
        x[id] = 6;
        memset(mask, 0xff, sizeof mask);
        assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, mask), id);
        mask[2] &= ~(1u << (id - 64));
        assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, mask), 7);
        x[id] = (float)-id;
    }
    memset(mask, 0, sizeof mask);
    mask[999 / 32] = 1u << 999 % 32;
    assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, mask), 999);

    const int32_t ids[] = {7, 800, 800};
    const float values[] = {-INFINITY, 403, 403};
    assert_int_equal(mm2_sampler_bias(p, ids, values, 3), MM2_OK);
    assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, NULL), 800);
    assert_int_equal(mm2_sampler_bias(p, ids, (float[]){NAN}, 1),
                     MM2_E_ARG); /* the old one stays */
    assert_int_equal(mm2_sampler_bias(p, ids, values, 1), MM2_OK);
    assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, NULL), 9);
    assert_int_equal(mm2_sampler_bias(p, NULL, NULL, 0), MM2_OK);
    assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, NULL), 7);
    mm2_sampler_free(p);

    o.temperature = FLT_TRUE_MIN; /* the limit of low temperatures */
    p = make(o);
    assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, NULL), 7);
    mm2_sampler_free(p);
}

static void filters_keep_what_they_should(void **state)
{
    (void)state;
    static float x[VOCAB];
    /* id:                0      1    2      3    4      */
    const double p[] = {0.125, 0.4, 0.125, 0.3, 0.05};
    set(x, p, 5);
    mm2_sampling o = off();
    /* Every filter off: ascending ids. */
    expect(o, x, (int32_t[]){0, 1, 2, 3, 4}, p, 5);
    /* Otherwise descending logits, ties in ascending ids. */
    o.top_k = 999;
    expect(o, x, (int32_t[]){1, 3, 0, 2, 4}, (double[]){.4, .3, .125, .125, .05}, 5);
    o.top_k = 3;
    expect(o, x, (int32_t[]){1, 3, 0}, (double[]){.4, .3, .125}, 3);
    /* top_p sees the renormalised 16/33, 12/33, 5/33. */
    o.top_p = 0.8f;
    expect(o, x, (int32_t[]){1, 3}, (double[]){.4, .3}, 2);
    o.top_p = 0.86f;
    expect(o, x, (int32_t[]){1, 3, 0}, (double[]){.4, .3, .125}, 3);
    o = off();
    o.top_p = 0.71f;
    expect(o, x, (int32_t[]){1, 3, 0}, (double[]){.4, .3, .125}, 3);
    o.top_p = 0.69f;
    expect(o, x, (int32_t[]){1, 3}, (double[]){.4, .3}, 2);
    o.top_p = 0;
    expect(o, x, (int32_t[]){1}, (double[]){1}, 1);
    o = off();
    o.min_p = 0.3f; /* x 0.4 = 0.12 */
    expect(o, x, (int32_t[]){1, 3, 0, 2}, (double[]){.4, .3, .125, .125}, 4);
    o.min_p = 1;
    expect(o, x, (int32_t[]){1}, (double[]){1}, 1);
    /* Temperature first: the squares are .16, .09, .0156, and min_p 0.3 drops .0156. */
    o.min_p = 0.3f;
    o.temperature = 0.5f;
    expect(o, x, (int32_t[]){1, 3}, (double[]){.16, .09}, 2);
    /* Entropy 1.397 nats; distances: 1: .481, 3: .193, 0 and 2: .682, 4: 1.599. */
    o = off();
    o.typical_p = 0.29f;
    expect(o, x, (int32_t[]){3}, (double[]){1}, 1);
    o.typical_p = 0.71f;
    expect(o, x, (int32_t[]){1, 3, 0}, (double[]){.4, .3, .125}, 3);
    /* Logits -2.079 -.916 -2.079 -1.204 -2.996: sigma .733. */
    o = off();
    o.top_n_sigma = 1;
    expect(o, x, (int32_t[]){1, 3}, (double[]){.4, .3}, 2);
    o.top_n_sigma = 1.6f;
    expect(o, x, (int32_t[]){1, 3, 0, 2}, (double[]){.4, .3, .125, .125}, 4);
    o.top_k = 3; /* does not narrow sigma */
    expect(o, x, (int32_t[]){1, 3, 0}, (double[]){.4, .3, .125}, 3);
}

static void long_lists_are_ordered_in_steps(void **state)
{
    (void)state;
    static float x[VOCAB];
    mm2_sampling o = off();
    o.top_p = 0.75f; /* of 1000 equals: ids 0..749, past 64 and 512 */
    mm2_sampler *p = make(o);
    for (int position = 0; position < 5000; position++) {
        int32_t id = mm2_sampler_choose(p, x, NULL, 0, position, NULL);
        assert_int_equal(id, (int32_t)(mm2_uniform(0, (uint64_t)position) * 750));
    }
    /* A ramp in scrambled order, e^-0.01 a step: 75 % in 139 steps. */
    for (int i = 0; i < VOCAB; i++)
        x[i] = -0.01f * (float)(i * 7 % VOCAB);
    for (int position = 0; position < 5000; position++) {
        double u = mm2_uniform(0, (uint64_t)position), kept = 1 - exp(-1.39);
        int32_t id = mm2_sampler_choose(p, x, NULL, 0, position, NULL);
        double rank = -log(1 - u * kept) / 0.01; /* continuous; ranks are its floor */
        if (fabs(rank - rint(rank)) > 1e-3)
            assert_int_equal(id * 7 % VOCAB, (int32_t)rank);
    }
    mm2_sampler_free(p);
}

/* Choosing from adjusted logits must equal choosing with the penalty switched on. */
static void same_choice(mm2_sampler *with, mm2_sampler *without, const float *x, const float *y,
                        const int32_t *history, int32_t n)
{
    for (int position = 0; position < 8; position++)
        assert_int_equal(mm2_sampler_choose(with, x, history, n, position, NULL),
                         mm2_sampler_choose(without, y, history, n, position, NULL));
}

static uint32_t draw_below(uint32_t n)
{
    static uint64_t counter;
    return (uint32_t)(mm2_splitmix64(42, counter++) >> 33) % n;
}

static void penalties_equal_their_definition(void **state)
{
    (void)state;
    static float x[VOCAB], y[VOCAB];
    mm2_sampler *plain = make(off());
    int changed = 0;
    for (int round = 0; round < 300; round++) {
        int32_t history[40], n = (int32_t)draw_below(41), window = (int32_t)draw_below(45) - 1;
        mm2_sampling o = off();
        o.penalty_window = window;
        o.repetition_penalty = round % 2 ? 0.5f + (float)draw_below(20) / 10 : 1;
        o.presence_penalty = round % 3 ? (float)draw_below(9) - 4 : 0;
        o.frequency_penalty = round % 5 ? (float)draw_below(9) / 4 - 1 : 0;
        for (int i = 0; i < VOCAB; i++)
            y[i] = x[i] = i < 12 ? (float)draw_below(4000) / 1000 - 2 : -INFINITY;
        for (int i = 0; i < n; i++)
            history[i] = (int32_t)draw_below(14);
        for (int id = 0; id < 12; id++) {
            int times = 0;
            for (int i = window < 0 || window > n ? 0 : n - window; i < n; i++)
                times += history[i] == id;
            if (!times)
                continue;
            y[id] = x[id] > 0 ? x[id] / o.repetition_penalty : x[id] * o.repetition_penalty;
            y[id] -= o.presence_penalty + o.frequency_penalty * (float)times;
            changed += y[id] != x[id];
        }
        mm2_sampler *p = make(o);
        same_choice(p, plain, x, y, history, n);
        mm2_sampler_free(p);
    }
    assert_true(changed > 1000);
    mm2_sampler_free(plain);
}

static void dry_equals_its_definition(void **state)
{
    (void)state;
    static float x[VOCAB], y[VOCAB];
    mm2_sampler *plain = make(off());
    int changed = 0;
    for (int round = 0; round < 1500; round++) {
        int32_t history[CONTEXT], n = (int32_t)draw_below(CONTEXT + 1);
        mm2_sampling o = off();
        o.dry_multiplier = 0.25f * (float)(1 + draw_below(8));
        o.dry_base = 1 + 0.125f * (float)draw_below(4);
        o.dry_allowed_length = 1 + (int32_t)draw_below(4);
        o.dry_window = (int32_t)draw_below(CONTEXT + 5) - 1;
        uint32_t alphabet = 1 + draw_below(4), period = 1 + draw_below(9);
        for (int i = 0; i < n; i++) /* often periodic, so that matches are long and overlap */
            history[i] = (uint32_t)i >= period && draw_below(8) ? history[(uint32_t)i - period]
                                                                : (int32_t)draw_below(alphabet);
        int32_t breaker = (int32_t)draw_below(2 * alphabet);
        for (int i = 0; i < VOCAB; i++)
            y[i] = x[i] = i < 5 ? (float)draw_below(4000) / 1000 - 2 : -INFINITY;
        const int32_t *h = history;
        int32_t length = n;
        if (o.dry_window >= 0 && o.dry_window < n) {
            h += n - o.dry_window;
            length = o.dry_window;
        }
        int32_t longest[8] = {0};
        for (int i = 0; i + 1 < length; i++) { /* the match ends at i */
            int m = 0;
            while (m <= i && h[i - m] == h[length - 1 - m] && h[i - m] != breaker)
                m++;
            if (m > longest[h[i + 1]] && h[i + 1] != breaker)
                longest[h[i + 1]] = m;
        }
        for (int id = 0; id < 8; id++) {
            if (longest[id] >= o.dry_allowed_length) {
                double penalty = o.dry_multiplier;
                for (int i = o.dry_allowed_length; i < longest[id]; i++)
                    penalty *= o.dry_base;
                y[id] -= (float)penalty;
                changed++;
            }
        }
        mm2_sampler *p = make(o);
        assert_int_equal(mm2_sampler_breakers(p, &breaker, 1), MM2_OK);
        same_choice(p, plain, x, y, history, n);
        mm2_sampler_free(p);
    }
    assert_true(changed > 500);
    mm2_sampler_free(plain);
}

static void dry_is_bounded(void **state)
{
    (void)state;
    static float x[VOCAB];
    static int32_t history[10 * CONTEXT]; /* longer than the context, one token only */
    mm2_sampling o = off();
    o.temperature = 0;
    o.dry_multiplier = FLT_MAX;
    o.dry_base = FLT_MAX;
    for (int i = 1; i < VOCAB; i++)
        x[i] = -INFINITY;
    mm2_sampler *p = make(o);
    /* The penalty stays finite: the only token there is survives it. */
    assert_int_equal(mm2_sampler_pick(p, x, history, 10 * CONTEXT, NULL), 0);
    x[1] = -1;
    assert_int_equal(mm2_sampler_pick(p, x, history, 10 * CONTEXT, NULL), 1);
    const int32_t breaker = 0;
    assert_int_equal(mm2_sampler_breakers(p, &breaker, 1), MM2_OK);
    assert_int_equal(mm2_sampler_pick(p, x, history, 10 * CONTEXT, NULL), 0);
    assert_int_equal(mm2_sampler_breakers(p, NULL, 0), MM2_OK);
    assert_int_equal(mm2_sampler_pick(p, x, history, 10 * CONTEXT, NULL), 1);
    mm2_sampler_free(p);
}

static void infinities_and_nan(void **state)
{
    (void)state;
    static float x[VOCAB], before[VOCAB];
    mm2_sampling o = {.size = sizeof o};
    mm2_sampling_init(&o, NULL);
    o.repetition_penalty = 1.2f;
    mm2_sampler *p = make(o);
    const int32_t history[] = {30, 40};
    x[40] = x[30] = INFINITY;
    x[50] = -INFINITY;
    memcpy(before, x, sizeof x);
    for (int position = 0; position < 50; position++)
        assert_int_equal(mm2_sampler_choose(p, x, history, 2, position, NULL), 30);
    assert_memory_equal(before, x, sizeof x);
    uint32_t mask[(VOCAB + 31) / 32] = {0};
    fails(mm2_sampler_pick(p, x, NULL, 0, mask), MM2_E_NUMERIC, "forbid all 1000 tokens");
    mask[50 / 32] = 1u << 50 % 32;
    fails(mm2_sampler_pick(p, x, NULL, 0, mask), MM2_E_NUMERIC, "forbid all");
    /* What is forbidden stays so under a bias of any size; +inf cannot undo -inf. */
    assert_int_equal(mm2_sampler_bias(p, &(int32_t){50}, &(float){INFINITY}, 1), MM2_OK);
    fails(mm2_sampler_pick(p, x, NULL, 0, mask), MM2_E_NUMERIC, "forbid all");
    assert_int_equal(mm2_sampler_bias(p, &(int32_t){30}, &(float){-INFINITY}, 1), MM2_OK);
    assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, NULL), 40);
    x[999] = NAN;
    fails(mm2_sampler_pick(p, x, NULL, 0, mask), MM2_E_NUMERIC, "logit 999 is NaN");
    x[0] = -NAN;
    fails(mm2_sampler_pick(p, x, NULL, 0, NULL), MM2_E_NUMERIC, "logit 0 is NaN");
    for (int i = 0; i < VOCAB; i++)
        x[i] = -INFINITY;
    fails(mm2_sampler_pick(p, x, NULL, 0, NULL), MM2_E_NUMERIC, "forbid all");
    mm2_sampler_free(p);
}

/* The widest range of logits under every filter, temperature and penalty: always an allowed id. */
static void extremes_are_survived(void **state)
{
    (void)state;
    static float x[VOCAB];
    static const float wide[] = {FLT_MAX, -FLT_MAX, FLT_TRUE_MIN, 0, -0.0f, 1e30f, -INFINITY, -88};
    static const float temperatures[] = {FLT_MIN, 1e-20f, 1, 1e20f, FLT_MAX};
    for (int round = 0; round < 400; round++) {
        int32_t history[50];
        mm2_sampling o = off();
        o.temperature = temperatures[round % 5];
        o.top_k = draw_below(2) ? (int32_t)draw_below(2000) : 0;
        o.top_p = (float)draw_below(5) / 4;
        o.min_p = draw_below(2) ? FLT_TRUE_MIN : 0;
        o.typical_p = (float)draw_below(5) / 4;
        o.top_n_sigma = draw_below(2) ? FLT_MAX : 0;
        o.repetition_penalty = draw_below(2) ? FLT_TRUE_MIN : FLT_MAX;
        o.presence_penalty = draw_below(2) ? FLT_MAX : -FLT_MAX;
        o.frequency_penalty = draw_below(2) ? FLT_MAX : -FLT_MAX;
        o.dry_multiplier = draw_below(2) ? FLT_MAX : 0;
        for (int i = 0; i < VOCAB; i++)
            x[i] = wide[draw_below(8)];
        for (int i = 0; i < 50; i++)
            history[i] = (int32_t)draw_below(5);
        mm2_sampler *p = make(o);
        int32_t id = mm2_sampler_pick(p, x, history, 50, NULL);
        assert_in_range(id, 0, VOCAB - 1);
        assert_true(x[id] != -INFINITY);
        mm2_sampler_free(p);
    }
}

static void the_draw_follows_seed_and_position(void **state)
{
    (void)state;
    static float x[VOCAB];
    static int32_t history[100];
    mm2_sampling o = off();
    o.seed = UINT64_MAX;
    mm2_sampler *p = make(o);
    for (int32_t n = 99; n >= 0; n--) { /* all equal: the id is floor(u x vocabulary) */
        int32_t id = (int32_t)(mm2_uniform(UINT64_MAX, (uint64_t)n) * VOCAB);
        assert_int_equal(mm2_sampler_pick(p, x, history, n, NULL), id);
        assert_int_equal(mm2_sampler_choose(p, x, NULL, 0, n, NULL), id);
    }
    mm2_sampler_free(p);
}

static void the_host_keeps_its_float_mode(void **state)
{
    (void)state;
    static float x[VOCAB];
    const int32_t history[] = {5};
    for (int i = 1; i <= 20; i++) {
        mm2_sampling o = off();
        o.temperature = 0;
        o.presence_penalty = 0.05f * (float)i;
        x[5] = 3;
        x[3] = 3 - o.presence_penalty; /* rounded to nearest: a tie, which 3 wins */
        mm2_sampler *p = make(o);
        float up, nearest;
        assert_int_equal(mm2_logprobs_of(x, VOCAB, history, 1, &nearest), MM2_OK);
        assert_int_equal(fesetround(FE_UPWARD), 0);
        assert_int_equal(mm2_sampler_pick(p, x, history, 1, NULL), 3);
        assert_int_equal(mm2_logprobs_of(x, VOCAB, history, 1, &up), MM2_OK);
        assert_int_equal(fegetround(), FE_UPWARD);
        assert_int_equal(fesetround(FE_TONEAREST), 0);
        assert_memory_equal(&up, &nearest, 4);
        mm2_sampler_free(p);
    }
}

typedef struct contest {
    mm2_sampler *p;
    const float *x;
    atomic_int *stop;
    int busy, wrong;
} contest;

static void *compete(void *argument)
{
    contest *c = argument;
    for (int i = 0; i < 100000 && !atomic_load(c->stop); i++) {
        int32_t id = mm2_sampler_pick(c->p, c->x, NULL, 0, NULL);
        if (id == MM2_E_BUSY)
            atomic_store(c->stop, c->busy = 1);
        else if (id != 77)
            c->wrong = 1;
    }
    return NULL;
}

static void a_second_thread_is_told_busy(void **state)
{
    (void)state;
    static float x[VOCAB];
    x[77] = 1000;
    atomic_int stop = 0;
    mm2_sampler *p = make(off());
    contest c[2] = {{p, x, &stop, 0, 0}, {p, x, &stop, 0, 0}};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, compete, &c[0]), 0);
    compete(&c[1]);
    pthread_join(thread, NULL);
    assert_int_equal(c[0].wrong + c[1].wrong, 0);
    assert_true(c[0].busy || c[1].busy);
    assert_int_equal(mm2_sampler_pick(p, x, NULL, 0, NULL), 77);
    mm2_sampler_free(p);
}

static void logprobs_are_exact(void **state)
{
    (void)state;
    static float x[VOCAB], out[VOCAB];
    static int32_t ids[VOCAB];
    for (int i = 0; i < VOCAB; i++) {
        x[i] = (float)draw_below(60000) / 1000 - 50;
        ids[i] = VOCAB - 1 - i;
    }
    x[500] = x[400] = 11;
    x[600] = -INFINITY;
    double total = 0;
    for (int i = 0; i < VOCAB; i++)
        total += exp(x[i]);
    assert_int_equal(mm2_logprobs_of(x, VOCAB, ids, VOCAB, out), MM2_OK);
    for (int i = 0; i < VOCAB; i++) {
        if (ids[i] == 600)
            assert_true(out[i] == -INFINITY);
        else
            assert_true(out[i] == (float)(x[ids[i]] - log(total)) ||
                        fabs(out[i] - (x[ids[i]] - log(total))) < 1e-7 * (1 + fabs(out[i])));
    }
    assert_int_equal(mm2_logprobs_top(x, VOCAB, VOCAB, ids, out), MM2_OK);
    assert_true(ids[0] == 400 && ids[1] == 500 && ids[VOCAB - 1] == 600);
    for (int i = 1; i < VOCAB; i++) {
        assert_true(x[ids[i - 1]] > x[ids[i]] ||
                    (x[ids[i - 1]] == x[ids[i]] && ids[i - 1] < ids[i]));
        float again;
        assert_int_equal(mm2_logprobs_of(x, VOCAB, &ids[i], 1, &again), MM2_OK);
        assert_memory_equal(&again, &out[i], 4);
    }
    /* A certain token is exactly certain; infinite logits share. */
    assert_int_equal(mm2_logprobs_of((float[]){-1000, 3}, 2, (int32_t[]){1}, 1, out), MM2_OK);
    assert_true(out[0] == 0);
    assert_int_equal(mm2_logprobs_top((float[]){INFINITY, 3, INFINITY}, 3, 3, ids, out), MM2_OK);
    assert_true(ids[0] == 0 && ids[1] == 2 && ids[2] == 1);
    assert_true(out[0] == (float)-0.6931471805599453 && out[1] == out[0] && out[2] == -INFINITY);

    fails(mm2_logprobs_of(x, VOCAB, (int32_t[]){VOCAB}, 1, out), MM2_E_ARG, "ids[0] is 1000");
    fails(mm2_logprobs_of(NULL, VOCAB, ids, 1, out), MM2_E_ARG, "NULL");
    fails(mm2_logprobs_of(x, VOCAB, ids, -1, out), MM2_E_ARG, "range");
    fails(mm2_logprobs_top(x, VOCAB, VOCAB + 1, ids, out), MM2_E_ARG, "0..1000");
    fails(mm2_logprobs_top(x, VOCAB, -1, ids, out), MM2_E_ARG, "n = -1");
    assert_int_equal(mm2_logprobs_top(x, VOCAB, 0, NULL, NULL), MM2_OK);
    assert_int_equal(mm2_logprobs_of(x, VOCAB, NULL, 0, NULL), MM2_OK);
    x[3] = NAN;
    fails(mm2_logprobs_of(x, VOCAB, ids, 1, out), MM2_E_NUMERIC, "logit 3 is NaN");
    fails(mm2_logprobs_top(x, VOCAB, 1, ids, out), MM2_E_NUMERIC, "logit 3 is NaN");
    x[0] = -INFINITY;
    fails(mm2_logprobs_top(x, 1, 1, ids, out), MM2_E_NUMERIC, "forbid");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(generator_gives_published_values),
        cmocka_unit_test(defaults_come_from_the_checkpoint),
        cmocka_unit_test(every_field_has_its_range),
        cmocka_unit_test(bad_arguments_are_named),
        cmocka_unit_test(greedy_takes_the_best_allowed),
        cmocka_unit_test(filters_keep_what_they_should),
        cmocka_unit_test(long_lists_are_ordered_in_steps),
        cmocka_unit_test(penalties_equal_their_definition),
        cmocka_unit_test(dry_equals_its_definition),
        cmocka_unit_test(dry_is_bounded),
        cmocka_unit_test(infinities_and_nan),
        cmocka_unit_test(extremes_are_survived),
        cmocka_unit_test(the_draw_follows_seed_and_position),
        cmocka_unit_test(the_host_keeps_its_float_mode),
        cmocka_unit_test(a_second_thread_is_told_busy),
        cmocka_unit_test(logprobs_are_exact),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
