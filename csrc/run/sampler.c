/* The sampler: a chain of steps over a copy of the logits, in the order of minimax2.h.
 *
 *   on all logits      mask, bias, penalties, DRY; at temperature 0 the best one is the answer
 *   on candidates      temperature, top_k, top_p, min_p, typical_p, top_n_sigma
 *   draw               inverse of the cumulative distribution at u = uniform(seed, position)
 *
 * Nothing is sorted that need not be. top_k keeps the k best in a bounded heap while it reads the
 * logits once. Without top_k every token is a candidate, and the list is put in order lazily, first
 * the 64 best, then eight times as many at a time, until the filter that walks down it stops.
 *
 * Same bits. Candidates are ordered by descending logit, then ascending id: a total order, so the
 * heap's own order never shows. Weights and sums are doubles; sums run down the list as it stands,
 * which is that order, or ascending id as long as no filter has ordered it (with every filter off
 * it stays so, for the draw too). exp and log are our own: those of libm depend on its version.
 *
 * Infinities. -inf is a forbidden token, and nothing brings it back. +inf, given or by overflow,
 * wins outright, the lowest id among several. NaN anywhere is an error.
 *
 * All memory is allocated by mm2_sampler_new, except the bias list. `count` is all zero between
 * steps. */
#include "run/sampler.h"
#include "base/guard.h"
#include "base/pool.h"
#include "base/rng.h"
#include "base/status.h"
#include "model/model.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct candidate {
    float key; /* what the list is ordered by: the logit; how typical it is within that step */
    int32_t id;
    double weight; /* exp((logit - best) / temperature): probability x a common factor */
} candidate;

typedef struct list {
    candidate *c;
    int32_t n, ordered; /* c[0, ordered) are the best ones, in order */
} list;

struct mm2_sampler {
    mm2_model *model;
    mm2_sampling options;
    mm2_busy busy;
    int32_t vocab;
    float *logits;         /* [vocab]: the copy that the first steps change */
    candidate *candidates; /* [vocab] */
    int32_t *count;        /* [vocab]: times seen, or length of the longest repetition */
    uint32_t *breakers;    /* bit i % 32 of word i / 32 */
    int32_t *match;        /* [match_capacity]: DRY's table of prefix matches; NULL without DRY */
    int32_t match_capacity;
    int32_t bias_count;
    int32_t *bias_ids;
    float *bias_values;
};

/* ---- exp and log ---- */

/* e^x for x <= 0, relative error below 1e-15: 2^n times the Taylor series of the rest. */
static double exponential(double x)
{
    if (x < -708)
        return 0;
    int64_t n = (int64_t)(x * 1.4426950408889634 - 0.5); /* truncated: the nearest integer */
    double r = x - (double)n * 0x1.62e42fefa38p-1 - (double)n * 0x1.ef35793c7673p-45; /* ln 2 */
    double sum = 1.0 / 479001600;
    sum = sum * r + 1.0 / 39916800;
    sum = sum * r + 1.0 / 3628800;
    sum = sum * r + 1.0 / 362880;
    sum = sum * r + 1.0 / 40320;
    sum = sum * r + 1.0 / 5040;
    sum = sum * r + 1.0 / 720;
    sum = sum * r + 1.0 / 120;
    sum = sum * r + 1.0 / 24;
    sum = sum * r + 1.0 / 6;
    sum = sum * r + 0.5;
    sum = sum * r + 1;
    sum = sum * r + 1;
    uint64_t bits = (uint64_t)(n + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, 8);
    return sum * scale;
}

/* ln x for finite x >= 1: e ln 2 + 2 artanh((m - 1) / (m + 1)), x = m 2^e, m near 1. */
static double logarithm(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, 8);
    int64_t e = (int64_t)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffff) | (uint64_t)1023 << 52;
    double m;
    memcpy(&m, &bits, 8);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        e++;
    }
    double f = (m - 1) / (m + 1), square = f * f, sum = 0;
    for (int k = 21; k >= 1; k -= 2)
        sum = sum * square + 1.0 / k;
    return 2 * f * sum + (double)e * 0.6931471805599453;
}

/* x - best as a double; 0 for the best itself, were it infinite. */
static double below(float x, float best)
{
    return x == best ? 0 : (double)x - best;
}

/* The best logit, the lowest id among equals: NUMERIC if there is none. */
static mm2_status best_logit(const float *logits, int32_t vocab, int32_t *id)
{
    float best = -INFINITY;
    *id = -1;
    for (int32_t i = 0; i < vocab; i++) {
        if (logits[i] <= best)
            continue;
        if (logits[i] != logits[i])
            return mm2_fail(MM2_E_NUMERIC,
                            "logit %d is NaN, so no token can be chosen: the weights are damaged, "
                            "or a script wrote it",
                            i);
        best = logits[i];
        *id = i;
    }
    if (*id < 0)
        return mm2_fail(MM2_E_NUMERIC,
                        "mask, bias or logits of -inf forbid all %d tokens: allow at least one",
                        vocab);
    return MM2_OK;
}

/* ---- Order ---- */

static int better(const candidate *a, const candidate *b)
{
    return a->key > b->key || (a->key == b->key && a->id < b->id);
}

/* Restore the heap, worst candidate at the root, after a change at i. */
static void sift(candidate *heap, int32_t n, int32_t i)
{
    candidate moved = heap[i];
    while (i < n / 2) {
        int32_t child = 2 * i + 1;
        if (child + 1 < n && better(&heap[child], &heap[child + 1]))
            child++;
        if (!better(&moved, &heap[child]))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moved;
}

static void make_heap(candidate *heap, int32_t n)
{
    for (int32_t i = n / 2 - 1; i >= 0; i--)
        sift(heap, n, i);
}

static void swap(candidate *a, candidate *b)
{
    candidate t = *a;
    *a = *b;
    *b = t;
}

/* A heap to a list, best first. */
static void sort_heap(candidate *heap, int32_t n)
{
    while (n > 1) {
        n--;
        swap(&heap[0], &heap[n]);
        sift(heap, n, 0);
    }
}

/* Permute c[0, n) so that c[0, k) are the k best in order. */
static void order(candidate *c, int32_t n, int32_t k)
{
    make_heap(c, k);
    for (int32_t i = k; i < n; i++) {
        if (better(&c[i], &c[0])) {
            swap(&c[i], &c[0]);
            sift(c, k, 0);
        }
    }
    sort_heap(c, k);
}

/* The k best of x[0, n) in order. Later ids lose ties, so a plain comparison decides. */
static void select_best(candidate *c, int32_t k, const float *x, int32_t n)
{
    for (int32_t i = 0; i < k; i++)
        c[i] = (candidate){x[i], i, 0};
    make_heap(c, k);
    for (int32_t i = k; k && i < n; i++) {
        if (x[i] > c[0].key) {
            c[0] = (candidate){x[i], i, 0};
            sift(c, k, 0);
        }
    }
    sort_heap(c, k);
}

/* The i-th best candidate, i < n. */
static const candidate *nth(list *l, int32_t i)
{
    if (i >= l->ordered) {
        int64_t more = l->ordered ? 7 * (int64_t)l->ordered : 64;
        if (more > l->n - l->ordered)
            more = l->n - l->ordered;
        order(l->c + l->ordered, l->n - l->ordered, (int32_t)more);
        l->ordered += (int32_t)more;
    }
    return &l->c[i];
}

static void cut(list *l, int32_t n)
{
    l->n = n;
    if (l->ordered > n)
        l->ordered = n;
}

static double total_weight(const list *l)
{
    double total = 0;
    for (int32_t i = 0; i < l->n; i++)
        total += l->c[i].weight;
    return total;
}

/* Keep the smallest set of best candidates with this share of the weight, at least one. */
static void keep_share(list *l, double share)
{
    double wanted = share * total_weight(l), sum = 0;
    int32_t kept = 0;
    do
        sum += nth(l, kept++)->weight;
    while (sum < wanted && kept < l->n);
    cut(l, kept);
}

/* ---- Steps on all logits ---- */

static void apply_mask(float *x, int32_t vocab, const uint32_t *mask)
{
    for (int32_t i = 0; i < vocab; i++) {
        if (i % 32 == 0 && mask[i / 32] == UINT32_MAX) {
            i += 31;
            continue;
        }
        if (!(mask[i / 32] >> i % 32 & 1))
            x[i] = -INFINITY;
    }
}

static void apply_bias(mm2_sampler *p)
{
    for (int32_t i = 0; i < p->bias_count; i++) {
        float *x = &p->logits[p->bias_ids[i]];
        if (*x == -INFINITY || p->bias_values[i] == -INFINITY)
            *x = -INFINITY;
        else
            *x += p->bias_values[i];
    }
}

/* A double within the range of float: the penalties stay finite, whatever the options. */
static float clamp(double x)
{
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : (float)x;
}

/* The last `window` of n tokens: their number, and the first one. */
static int32_t last_tokens(int32_t window, const int32_t *history, int32_t n, const int32_t **first)
{
    int32_t length = window < 0 || window > n ? n : window;
    *first = length ? history + (n - length) : NULL;
    return length;
}

/* Repetition penalty as in CTRL (Keskar et al. 2019), with the sign rule that everybody added: a
 * negative logit is multiplied, so that it becomes less likely too. Then presence and frequency as
 * OpenAI defines them: logit -= presence + frequency x times seen. */
static void apply_penalties(mm2_sampler *p, const int32_t *history, int32_t n)
{
    const mm2_sampling *o = &p->options;
    if (o->repetition_penalty == 1 && o->presence_penalty == 0 && o->frequency_penalty == 0)
        return;
    const int32_t *seen;
    int32_t length = last_tokens(o->penalty_window, history, n, &seen);
    for (int32_t i = 0; i < length; i++)
        p->count[seen[i]]++;
    for (int32_t i = 0; i < length; i++) {
        float *x = &p->logits[seen[i]];
        int32_t times = p->count[seen[i]];
        p->count[seen[i]] = 0;
        if (!times || *x == -INFINITY)
            continue;
        *x = *x > 0 ? *x / o->repetition_penalty : *x * o->repetition_penalty;
        *x -= clamp(o->presence_penalty + (double)o->frequency_penalty * times);
    }
}

/* base^exponent by squaring; may be infinite. */
static double power(double base, int32_t exponent)
{
    double result = 1;
    for (; exponent; exponent >>= 1, base *= base)
        if (exponent & 1)
            result *= base;
    return result;
}

static int is_breaker(const mm2_sampler *p, int32_t id)
{
    return p->breakers[id / 32] >> id % 32 & 1;
}

/* DRY as in text-generation-webui: where the last m tokens also stand earlier, the token that
 * followed there would repeat a sequence of m + 1. If m >= dry_allowed_length it loses multiplier
 * x base^(m - allowed), by the longest match if there are several. A match holds no breaker, and a
 * breaker is never penalised.
 *
 * Read backwards, r[j] = j-th token from the end: the match that ends at j is the longest common
 * prefix of r and r + j. The Z algorithm finds all of them in one pass: [left, right) is the match
 * that reached furthest; inside it the answer is known from the start of r, `match`. Only the part
 * of r before its first breaker can match, so only its table is needed; it is cut at
 * match_capacity (the model's context). */
static void apply_dry(mm2_sampler *p, const int32_t *history, int32_t n)
{
    const mm2_sampling *o = &p->options;
    if (o->dry_multiplier == 0)
        return;
    const int32_t *seen;
    int32_t length = last_tokens(o->dry_window, history, n, &seen), prefix = 0, left = 0, right = 0;
#define R(j) seen[length - 1 - (j)]
    while (prefix < length && prefix < p->match_capacity && !is_breaker(p, R(prefix)))
        prefix++;
    if (prefix < o->dry_allowed_length)
        return;
    for (int32_t j = 1; j < length; j++) {
        int32_t same = 0;
        if (j < right) {
            same = p->match[j - left];
            if (same > right - j)
                same = right - j;
        }
        while (same < prefix && j + same < length && R(same) == R(j + same))
            same++;
        if (j < prefix)
            p->match[j] = same;
        if (j + same > right) {
            left = j;
            right = j + same;
        }
        int32_t next = R(j - 1);
        if (same >= o->dry_allowed_length && same > p->count[next] && !is_breaker(p, next))
            p->count[next] = same;
    }
#undef R
    for (int32_t i = 0; i < length; i++) {
        int32_t longest = p->count[seen[i]];
        p->count[seen[i]] = 0;
        if (longest)
            p->logits[seen[i]] -=
                clamp(o->dry_multiplier * power(o->dry_base, longest - o->dry_allowed_length));
    }
}

/* ---- Steps on candidates ---- */

static void weigh(mm2_sampler *p, list *l, float best)
{
    for (int32_t i = 0; i < l->n; i++)
        l->c[i].weight = exponential(below(l->c[i].key, best) / p->options.temperature);
}

/* Locally typical sampling (Meister et al. 2022): order by |-log p - entropy| and keep the first
 * ones with this share of the probability. With s = (logit - best) / temperature, -log p is ln Z -
 * s and the entropy ln Z - E[s]: the logarithm cancels and the distance is |E[s] - s|. */
static void keep_typical(mm2_sampler *p, list *l, float best)
{
    double mean = 0, temperature = p->options.temperature;
    for (int32_t i = 0; i < l->n; i++)
        if (l->c[i].weight > 0)
            mean += l->c[i].weight * (below(l->c[i].key, best) / temperature);
    mean /= total_weight(l);
    for (int32_t i = 0; i < l->n; i++) {
        double distance = mean - below(l->c[i].key, best) / temperature;
        l->c[i].key = -clamp(distance < 0 ? -distance : distance);
    }
    l->ordered = 0;
    keep_share(l, p->options.typical_p);
    for (int32_t i = 0; i < l->n; i++)
        l->c[i].key = p->logits[l->c[i].id];
    order(l->c, l->n, l->n);
    l->ordered = l->n;
}

/* Top-n-sigma (Tang et al. 2024): keep logits >= best - n sigma. As in the paper, sigma
 * (population) is that of the whole vocabulary, forbidden tokens aside, and not of what earlier
 * filters left. Temperature scales both sides and cancels. One candidate stays even if typical_p
 * dropped all that sigma would keep. */
static void keep_sigma(mm2_sampler *p, list *l, float best)
{
    double mean = 0, squares = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < p->vocab; i++) {
        if (p->logits[i] != -INFINITY) {
            mean += p->logits[i];
            n++;
        }
    }
    mean /= n;
    for (int32_t i = 0; i < p->vocab; i++) {
        if (p->logits[i] != -INFINITY) {
            double d = p->logits[i] - mean;
            squares += d * d;
        }
    }
    double lowest = best - p->options.top_n_sigma * sqrt(squares / n);
    int32_t kept = 1;
    while (kept < l->n && nth(l, kept)->key >= lowest)
        kept++;
    cut(l, kept);
}

static list make_candidates(mm2_sampler *p)
{
    int32_t k = p->options.top_k;
    list l = {p->candidates, 0, 0};
    if (k > 0 && k < p->vocab) {
        select_best(l.c, k, p->logits, p->vocab);
        l.n = l.ordered = k;
        return l;
    }
    for (int32_t i = 0; i < p->vocab; i++)
        if (p->logits[i] != -INFINITY)
            l.c[l.n++] = (candidate){p->logits[i], i, 0};
    return l;
}

/* Never one of weight 0: the sum has to grow past the target. */
static int32_t draw(const list *l, double u)
{
    double target = u * total_weight(l), sum = 0; /* u < 1: below the sum of all */
    int32_t i = 0;
    for (; i < l->n - 1; i++) {
        sum += l->c[i].weight;
        if (sum > target)
            break;
    }
    return l->c[i].id;
}

static int32_t choose(mm2_sampler *p, const float *logits, const int32_t *history, int32_t n,
                      int64_t position, const uint32_t *mask)
{
    const mm2_sampling *o = &p->options;
    int32_t best;
    for (int32_t i = 0; i < n; i++)
        if (history[i] < 0 || history[i] >= p->vocab)
            return mm2_fail(MM2_E_ARG, "history[%d] is token %d, outside the vocabulary 0..%d", i,
                            history[i], p->vocab - 1);
    mm2_status status = best_logit(logits, p->vocab, &best); /* NaN counts even where masked */
    if (status)
        return status;
    memcpy(p->logits, logits, (size_t)p->vocab * sizeof *logits);
    if (mask)
        apply_mask(p->logits, p->vocab, mask);
    apply_bias(p);
    apply_penalties(p, history, n);
    apply_dry(p, history, n);
    status = best_logit(p->logits, p->vocab, &best);
    if (status)
        return status;
    /* The limit of ever smaller temperatures; below FLT_MIN a division would see a zero. */
    if (o->temperature < FLT_MIN || p->logits[best] == INFINITY)
        return best;

    float top = p->logits[best];
    list l = make_candidates(p);
    weigh(p, &l, top);
    if (o->top_p < 1)
        keep_share(&l, o->top_p);
    if (o->min_p > 0) { /* the best one's weight is 1 */
        int32_t kept = 1;
        while (kept < l.n && nth(&l, kept)->weight >= o->min_p)
            kept++;
        cut(&l, kept);
    }
    if (o->typical_p < 1)
        keep_typical(p, &l, top);
    if (o->top_n_sigma > 0)
        keep_sigma(p, &l, top);
    return draw(&l, mm2_uniform(o->seed, (uint64_t)position));
}

/* ---- The sampler ---- */

mm2_status mm2_sampler_check(const mm2_sampling *o)
{
    const struct {
        const char *name, *range;
        double value;
        int ok;
    } fields[] = {
        {"top_k", "0 or more", o->top_k, o->top_k >= 0},
        {"temperature", "finite and 0 or more", o->temperature,
         o->temperature >= 0 && o->temperature <= FLT_MAX},
        {"top_p", "0..1", o->top_p, o->top_p >= 0 && o->top_p <= 1},
        {"min_p", "0..1", o->min_p, o->min_p >= 0 && o->min_p <= 1},
        {"typical_p", "0..1", o->typical_p, o->typical_p >= 0 && o->typical_p <= 1},
        {"top_n_sigma", "finite and 0 or more", o->top_n_sigma,
         o->top_n_sigma >= 0 && o->top_n_sigma <= FLT_MAX},
        {"repetition_penalty", "finite and more than 0", o->repetition_penalty,
         o->repetition_penalty > 0 && o->repetition_penalty <= FLT_MAX},
        {"presence_penalty", "finite", o->presence_penalty,
         o->presence_penalty >= -FLT_MAX && o->presence_penalty <= FLT_MAX},
        {"frequency_penalty", "finite", o->frequency_penalty,
         o->frequency_penalty >= -FLT_MAX && o->frequency_penalty <= FLT_MAX},
        {"penalty_window", "-1 or more", o->penalty_window, o->penalty_window >= -1},
        {"dry_multiplier", "finite and 0 or more", o->dry_multiplier,
         o->dry_multiplier >= 0 && o->dry_multiplier <= FLT_MAX},
        {"dry_base", "finite and 1 or more", o->dry_base,
         o->dry_base >= 1 && o->dry_base <= FLT_MAX},
        {"dry_allowed_length", "1 or more", o->dry_allowed_length, o->dry_allowed_length >= 1},
        {"dry_window", "-1 or more", o->dry_window, o->dry_window >= -1},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!fields[i].ok)
            return mm2_fail(MM2_E_ARG, "%s is %g, must be %s", fields[i].name, fields[i].value,
                            fields[i].range);
    return MM2_OK;
}

static mm2_sampling defaults_of(const mm2_model *m)
{
    return (mm2_sampling){
        .size = sizeof(mm2_sampling),
        .top_k = m ? m->checkpoint.hints.top_k : 40,
        .temperature = m ? m->checkpoint.hints.temperature : 1.0f,
        .top_p = m ? m->checkpoint.hints.top_p : 0.95f,
        .typical_p = 1,
        .repetition_penalty = 1,
        .penalty_window = -1,
        .dry_base = 1.75f,
        .dry_allowed_length = 2,
        .dry_window = -1,
    };
}

void mm2_sampling_init(mm2_sampling *o, const mm2_model *m)
{
    mm2_sampling defaults = defaults_of(m);
    mm2_struct_init(o, &defaults);
}

mm2_status mm2_sampler_new(mm2_sampler **out, mm2_model *m, const mm2_sampling *options)
{
    MM2_NEED(out, "out");
    *out = NULL;
    MM2_NEED(m, "model");
    mm2_sampling own = defaults_of(m);
    const mm2_sampling *o = &own;
    mm2_status status = options ? mm2_struct_read(&own, options, "mm2_sampling") : MM2_OK;
    if (!status)
        status = mm2_sampler_check(o);
    if (status)
        return status;
    mm2_sampler *p = calloc(1, sizeof *p);
    if (!p)
        return mm2_fail(MM2_E_NOMEM, "not enough memory for a sampler");
    mm2_model_retain(m);
    p->model = m;
    p->options = *o;
    p->vocab = m->checkpoint.config.vocab_size;
    size_t vocab = (size_t)p->vocab;
    p->logits = calloc(vocab, sizeof *p->logits);
    p->candidates = calloc(vocab, sizeof *p->candidates);
    p->count = calloc(vocab, sizeof *p->count);
    p->breakers = calloc((vocab + 31) / 32, sizeof *p->breakers);
    if (o->dry_multiplier > 0) {
        p->match_capacity = m->checkpoint.config.max_position_embeddings;
        p->match = calloc((size_t)p->match_capacity, sizeof *p->match);
    }
    if (!p->logits || !p->candidates || !p->count || !p->breakers ||
        (p->match_capacity && !p->match)) {
        mm2_sampler_free(p);
        return mm2_fail(MM2_E_NOMEM,
                        "not enough memory for a sampler over %d tokens: about %lld bytes",
                        (int)vocab, (long long)vocab * 25);
    }
    *out = p;
    return MM2_OK;
}

void mm2_sampler_free(mm2_sampler *p)
{
    if (!p)
        return;
    free(p->logits);
    free(p->candidates);
    free(p->count);
    free(p->breakers);
    free(p->match);
    free(p->bias_ids);
    free(p->bias_values);
    mm2_model_release(p->model);
    free(p);
}

int32_t mm2_sampler_vocab(const mm2_sampler *p)
{
    return p->vocab;
}

static mm2_status enter(mm2_sampler *p)
{
    int torn;
    mm2_status status = mm2_busy_enter(&p->busy, "sampler", &torn);
    if (torn) /* counts are zero between two draws */
        memset(p->count, 0, (size_t)p->vocab * sizeof *p->count);
    return status;
}

/* Checks the arguments of both lists of ids. */
static mm2_status check_ids(const mm2_sampler *p, const int32_t *ids, int32_t n, const char *what)
{
    if (!p || n < 0 || (n && !ids))
        return mm2_fail(MM2_E_ARG, "%s: %s", what,
                        !p      ? "the sampler is NULL"
                        : n < 0 ? "n is negative"
                                : "a list is NULL, but n is not 0");
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= p->vocab)
            return mm2_fail(MM2_E_ARG, "%s: ids[%d] is %d, outside the vocabulary 0..%d", what, i,
                            ids[i], p->vocab - 1);
    return MM2_OK;
}

mm2_status mm2_sampler_bias(mm2_sampler *p, const int32_t *ids, const float *values, int32_t n)
{
    mm2_status status = check_ids(p, values ? ids : NULL, n, "bias");
    if (status)
        return status;
    for (int32_t i = 0; i < n; i++)
        if (values[i] != values[i])
            return mm2_fail(MM2_E_ARG, "bias: values[%d] is NaN", i);
    int32_t *new_ids = malloc((size_t)n * sizeof *ids + 1); /* + 1: n may be 0 */
    float *new_values = malloc((size_t)n * sizeof *values + 1);
    if (!new_ids || !new_values)
        status = mm2_fail(MM2_E_NOMEM, "not enough memory for a bias on %d tokens", n);
    else
        status = enter(p);
    if (status) {
        free(new_ids);
        free(new_values);
        return status;
    }
    if (n) {
        memcpy(new_ids, ids, (size_t)n * sizeof *ids);
        memcpy(new_values, values, (size_t)n * sizeof *values);
    }
    free(p->bias_ids);
    free(p->bias_values);
    p->bias_ids = new_ids;
    p->bias_values = new_values;
    p->bias_count = n;
    mm2_busy_leave(&p->busy);
    return MM2_OK;
}

mm2_status mm2_sampler_breakers(mm2_sampler *p, const int32_t *ids, int32_t n)
{
    mm2_status status = check_ids(p, ids, n, "breakers");
    if (!status)
        status = enter(p);
    if (status)
        return status;
    memset(p->breakers, 0, ((size_t)p->vocab + 31) / 32 * sizeof *p->breakers);
    for (int32_t i = 0; i < n; i++)
        p->breakers[ids[i] / 32] |= (uint32_t)1 << ids[i] % 32;
    mm2_busy_leave(&p->busy);
    return MM2_OK;
}

int32_t mm2_sampler_choose(mm2_sampler *p, const float *logits, const int32_t *history, int32_t n,
                           int64_t position, const uint32_t *mask)
{
    if (!p || !logits || n < 0 || (n && !history))
        return mm2_fail(MM2_E_ARG, "sampler: %s",
                        !p        ? "the sampler is NULL"
                        : !logits ? "logits are NULL"
                        : n < 0   ? "n is negative"
                                  : "history is NULL, but n is not 0");
    mm2_status status = enter(p);
    if (status)
        return status;
    uint32_t mode = mm2_float_mode_enter(); /* the same bits under any host */
    int32_t id = choose(p, logits, history, n, position, mask);
    mm2_float_mode_leave(mode);
    mm2_busy_leave(&p->busy);
    return id;
}

int32_t mm2_sampler_pick(mm2_sampler *p, const float *logits, const int32_t *history, int32_t n,
                         const uint32_t *mask)
{
    return mm2_sampler_choose(p, logits, history, n, n, mask);
}

/* ---- Log-probabilities ---- */

/* ln of the sum of exp(logit - best), in ascending id. */
static mm2_status log_total(const float *logits, int32_t vocab, float *best, double *out)
{
    int32_t id;
    mm2_status status = best_logit(logits, vocab, &id);
    if (status)
        return status;
    double total = 0;
    for (int32_t i = 0; i < vocab; i++)
        total += exponential(below(logits[i], logits[id]));
    *best = logits[id];
    *out = logarithm(total);
    return MM2_OK;
}

mm2_status mm2_logprobs_of(const float *logits, int32_t vocab, const int32_t *ids, int32_t n,
                           float *out)
{
    if (!logits || vocab < 1 || n < 0 || (n && (!ids || !out)))
        return mm2_fail(MM2_E_ARG, "logprobs: a pointer is NULL or a count is out of range");
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return mm2_fail(MM2_E_ARG, "logprobs: ids[%d] is %d, outside the vocabulary 0..%d", i,
                            ids[i], vocab - 1);
    uint32_t mode = mm2_float_mode_enter();
    float best;
    double log;
    mm2_status status = log_total(logits, vocab, &best, &log);
    for (int32_t i = 0; !status && i < n; i++)
        out[i] = (float)(below(logits[ids[i]], best) - log);
    mm2_float_mode_leave(mode);
    return status;
}

mm2_status mm2_logprobs_top(const float *logits, int32_t vocab, int32_t n, int32_t *ids,
                            float *logprobs)
{
    if (!logits || vocab < 1 || n < 0 || n > vocab || (n && (!ids || !logprobs)))
        return mm2_fail(MM2_E_ARG,
                        "top: a pointer is NULL, or n = %d is outside 0..%d, the vocabulary", n,
                        vocab);
    candidate *c = malloc((size_t)n * sizeof *c + 1);
    if (!c)
        return mm2_fail(MM2_E_NOMEM, "not enough memory for the best %d tokens", n);
    uint32_t mode = mm2_float_mode_enter();
    float best;
    double log;
    mm2_status status = log_total(logits, vocab, &best, &log);
    if (!status) {
        select_best(c, n, logits, vocab);
        for (int32_t i = 0; i < n; i++) {
            ids[i] = c[i].id;
            logprobs[i] = (float)(below(c[i].key, best) - log);
        }
    }
    mm2_float_mode_leave(mode);
    free(c);
    return status;
}
