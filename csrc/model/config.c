/* Facts of a configuration: what each key must say, whichever container it stands in.
 *
 * A fact that shapes the computation must be there, in range, and say what this engine computes;
 * one that has another value is refused by its name, never ignored. A fact that changes nothing
 * here is not looked at. Which is which says the family's table (minimax_m2.c); the readers only
 * hand out values.
 *
 * A number may stand as a list with one equal item for each layer: GGUF writers do that for sizes
 * that differ between layers in other families.
 *
 * The table of sizes holds the ranges that every family keeps. */
#include "model/config.h"

#include "base/status.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

enum {
    TILE = 16,         /* positions and head dimensions that attention takes at once */
    MOST_LAYERS = 1024 /* and items of a list */
};

static const struct size_field {
    const char *name;
    size_t offset;
    int32_t low, high;
} sizes[] = {
    {"num_hidden_layers", offsetof(mm2_config, num_hidden_layers), 1, MOST_LAYERS},
    {"hidden_size", offsetof(mm2_config, hidden_size), 1, 1 << 20},
    {"num_attention_heads", offsetof(mm2_config, num_attention_heads), 1, 4096},
    {"num_key_value_heads", offsetof(mm2_config, num_key_value_heads), 1, 4096},
    {"head_dim", offsetof(mm2_config, head_dim), 1, MM2_HEAD_DIM_LIMIT},
    {"num_local_experts", offsetof(mm2_config, num_local_experts), 1, 4096},
    {"num_experts_per_tok", offsetof(mm2_config, num_experts_per_tok), 1, 4096},
    {"intermediate_size", offsetof(mm2_config, intermediate_size), 1, 1 << 20},
    {"vocab_size", offsetof(mm2_config, vocab_size), 1, 1 << 20},
    {"max_position_embeddings", offsetof(mm2_config, max_position_embeddings), 1, 1 << 24},
};
enum { SIZES = sizeof sizes / sizeof *sizes };

static mm2_status check_positive(float value, const char *name, const char *where)
{
    if (value > 0 && value <= 3.402823466e38f)
        return MM2_OK;
    return mm2_fail(MM2_E_FORMAT, "%s: %s is %g, expected a finite number above 0", where, name,
                    (double)value);
}

mm2_status mm2_config_check(const mm2_config *config, const char *where)
{
    mm2_config c = *config;
    for (int i = 0; i < SIZES; i++) {
        int32_t value = *(int32_t *)((char *)&c + sizes[i].offset);
        if (value < sizes[i].low || value > sizes[i].high)
            return mm2_fail(MM2_E_FORMAT, "%s: %s is %d, expected %d to %d", where, sizes[i].name,
                            value, sizes[i].low, sizes[i].high);
    }
    if (c.num_attention_heads % c.num_key_value_heads)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: num_attention_heads is %d, expected a multiple of the %d "
                        "num_key_value_heads",
                        where, c.num_attention_heads, c.num_key_value_heads);
    if (c.head_dim % TILE)
        return mm2_fail(MM2_E_UNSUPPORTED, "%s: head_dim is %d; this build needs a multiple of %d",
                        where, c.head_dim, TILE);
    if (c.rotary_dim < 2 || c.rotary_dim > c.head_dim || c.rotary_dim % 2)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: rotary_dim is %d, expected an even number from 2 to head_dim (%d)",
                        where, c.rotary_dim, c.head_dim);
    if (c.num_experts_per_tok > c.num_local_experts)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: num_experts_per_tok is %d, expected at most num_local_experts (%d)",
                        where, c.num_experts_per_tok, c.num_local_experts);
    mm2_status status = check_positive(c.rope_theta, "rope_theta", where);
    if (!status)
        status = check_positive(c.rms_norm_eps, "rms_norm_eps", where);
    if (!status)
        status = check_positive(c.routed_scaling_factor, "routed_scaling_factor", where);
    return status;
}

/* ---- What a file gives ---- */

mm2_status mm2_given_wrong(const mm2_source *s, const char *key, const char *expected,
                           const mm2_given *found)
{
    return mm2_fail(MM2_E_FORMAT, "%s: %s%s must be %s, found %s", s->where, s->prefix, key,
                    expected, found->what);
}

mm2_status mm2_given_unsupported(const mm2_source *s, const char *key, const mm2_given *found,
                                 const char *supported)
{
    return mm2_fail(MM2_E_UNSUPPORTED, "%s: %s%s is %s; this build supports %s", s->where,
                    s->prefix, key, found->text, supported);
}

void mm2_given_hint(const mm2_source *s, const char *key, double low, double high, float *out)
{
    mm2_given g;
    s->get(s, key, -1, &g);
    if (g.kind == MM2_GIVEN_NUMBER && g.number >= low && g.number <= high)
        *out = (float)g.number;
}

static int same(const mm2_given *a, const mm2_given *b)
{
    return a->kind == b->kind && a->number == b->number && !strcmp(a->text, b->text);
}

/* A value, or what all items of a list say that has one for each layer. */
static void get_one(const mm2_source *s, const mm2_config *k, const char *key, mm2_given *out)
{
    s->get(s, key, -1, out);
    if (out->kind != MM2_GIVEN_LIST || !out->count || out->count != k->num_hidden_layers)
        return;
    mm2_given first, item;
    s->get(s, key, 0, &first);
    for (int32_t i = 1; i < k->num_hidden_layers; i++) {
        s->get(s, key, i, &item);
        if (!same(&first, &item))
            return;
    }
    *out = first;
}

/* ---- Facts ---- */

typedef struct reading {
    mm2_config *k;
    const mm2_source *s;
    const mm2_fact *fact;
    const char *key;
} reading;

static int32_t *int_field(const reading *r)
{
    return (int32_t *)((char *)r->k + r->fact->field);
}

static mm2_status missing(const reading *r)
{
    return mm2_fail(MM2_E_FORMAT, "%s: %s%s is missing", r->s->where, r->s->prefix, r->key);
}

static mm2_status out_of_range(const reading *r, const mm2_given *g)
{
    return mm2_fail(MM2_E_FORMAT, "%s: %s%s is %s: out of range", r->s->where, r->s->prefix, r->key,
                    g->text);
}

static mm2_status read_size(const reading *r, const mm2_given *g)
{
    if (g->kind != MM2_GIVEN_NUMBER || !g->is_whole)
        return mm2_given_wrong(r->s, r->key, "a whole number", g);
    if (g->whole < 0 || g->whole > INT32_MAX)
        return out_of_range(r, g);
    *int_field(r) = (int32_t)g->whole;
    return MM2_OK;
}

static mm2_status read_number(const reading *r, const mm2_given *g)
{
    if (g->kind != MM2_GIVEN_NUMBER)
        return mm2_given_wrong(r->s, r->key, "a number", g);
    if (!isfinite(g->number))
        return out_of_range(r, g);
    if (r->fact->kind != MM2_FACT_SCALE || g->number != 0)
        *(float *)((char *)r->k + r->fact->field) = (float)g->number;
    return MM2_OK;
}

static int is_neutral(const mm2_fact *fact, const mm2_given *g)
{
    int is_number = g->kind == MM2_GIVEN_NUMBER || g->kind == MM2_GIVEN_FLAG;
    if (fact->says)
        return g->kind == MM2_GIVEN_TEXT &&
               (!strcmp(g->text, fact->says) || (fact->or_says && !strcmp(g->text, fact->or_says)));
    return is_number && (g->number == fact->is || g->number == fact->or_is);
}

/* "0", "true", "sigmoid": what a fact must say. */
static void write_neutral(const mm2_fact *fact, const mm2_given *g, char *out, int cap)
{
    if (fact->says)
        mm2_format(out, cap, "%s", fact->says);
    else if (g->kind == MM2_GIVEN_FLAG)
        mm2_format(out, cap, "%s", fact->is != 0 ? "true" : "false");
    else
        mm2_format(out, cap, "%g", fact->is);
}

static mm2_status check_value(const reading *r, const char *name, const mm2_given *g)
{
    char supported[64];
    if (is_neutral(r->fact, g))
        return MM2_OK;
    write_neutral(r->fact, g, supported, sizeof supported);
    return mm2_given_unsupported(r->s, name, g, supported);
}

static mm2_status check_each(const reading *r, const mm2_given *list)
{
    char name[128];
    if (list->kind != MM2_GIVEN_LIST)
        return mm2_given_wrong(r->s, r->key, "an array", list);
    if (list->count != r->k->num_hidden_layers)
        return mm2_fail(MM2_E_FORMAT, "%s: %s%s has %lld items, expected num_hidden_layers (%d)",
                        r->s->where, r->s->prefix, r->key, (long long)list->count,
                        r->k->num_hidden_layers);
    mm2_status status = MM2_OK;
    for (int32_t i = 0; !status && i < list->count && i < MOST_LAYERS; i++) {
        mm2_given item;
        r->s->get(r->s, r->key, i, &item);
        mm2_format(name, sizeof name, "%s[%d]", r->key, i);
        status = check_value(r, name, &item);
    }
    return status;
}

static mm2_status check_same(const reading *r, const mm2_given *g)
{
    char supported[64];
    if (g->kind == MM2_GIVEN_NUMBER && g->number == *int_field(r))
        return MM2_OK;
    mm2_format(supported, sizeof supported, "%d", *int_field(r));
    return mm2_given_unsupported(r->s, r->key, g, supported);
}

static mm2_status read_fact(const reading *r)
{
    mm2_given g;
    get_one(r->s, r->k, r->key, &g);
    int32_t kind = r->fact->kind;
    if (kind == MM2_FACT_EACH_IS || kind == MM2_FACT_EACH_SAYS)
        r->s->get(r->s, r->key, -1, &g);
    if (g.kind == MM2_GIVEN_NOTHING)
        return kind == MM2_FACT_SIZE || kind == MM2_FACT_NUMBER ? missing(r) : MM2_OK;
    switch (kind) {
    case MM2_FACT_SIZE:
    case MM2_FACT_SIZE_OR:
        return read_size(r, &g);
    case MM2_FACT_NUMBER:
    case MM2_FACT_NUMBER_OR:
    case MM2_FACT_SCALE:
        return read_number(r, &g);
    case MM2_FACT_FLAG:
        if (g.kind != MM2_GIVEN_FLAG)
            return mm2_given_wrong(r->s, r->key, "true or false", &g);
        *int_field(r) = g.number != 0;
        return MM2_OK;
    case MM2_FACT_SAME:
        return check_same(r, &g);
    case MM2_FACT_EACH_IS:
    case MM2_FACT_EACH_SAYS:
        return check_each(r, &g);
    default:
        return check_value(r, r->key, &g);
    }
}

mm2_status mm2_config_read(mm2_config *k, const mm2_family *family, const mm2_source *s)
{
    *k = family->defaults;
    mm2_status status = MM2_OK;
    for (int32_t i = 0; !status && i < family->fact_count; i++) {
        reading r = {.k = k, .s = s, .fact = &family->facts[i]};
        r.key = s->is_gguf ? r.fact->gguf : r.fact->json;
        if (!r.key || r.fact->kind == MM2_FACT_UNUSED)
            continue;
        if (s->is_gguf && r.fact->gguf_else) {
            mm2_given g;
            s->get(s, r.key, -1, &g);
            r.key = g.kind == MM2_GIVEN_NOTHING ? r.fact->gguf_else : r.key;
        }
        status = read_fact(&r);
    }
    if (k->rotary_dim < 0)
        k->rotary_dim = k->head_dim;
    return status;
}
