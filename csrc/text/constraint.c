/* Grammars and constraints: which tokens may come next in a text of a given form.
 *
 * A grammar is an automaton over bytes (pattern.c, automaton.c) and the masks that were asked for: one
 * for each of its places, made by walking the sorted tokens through the automaton. A constraint is a
 * place, and a buffer for its mask, to which the ends are added.
 *
 * Places and masks are made while they are used, by any thread: a lock that spins guards them, held
 * for a mask's few milliseconds at most. In a child of fork() a lock that another thread of the parent
 * held is taken over; what it guards may be in any state then, and is left behind. When places take
 * too much memory, all are forgotten, with their masks: a constraint keeps the states of its place,
 * by which it finds back, and a walk the bytes on which it has come.
 *
 * A constraint holds its grammar by a count. The tokenizer is borrowed by both. */
#include "text/constraint.h"

#include "base/guard.h"
#include "base/status.h"
#include "text/automaton.h"
#include "text/json_pattern.h"
#include "text/parts.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PLACE_BYTES = 1 << 24, /* of places, before they are forgotten */
    MASK_BYTES = 1 << 24,  /* of masks, before the oldest goes */
    MOST_WORK = 1 << 28,   /* edges looked at for one mask */
    TAG_LENGTH = 8         /* of </think> */
};

typedef struct cached_mask {
    int32_t place; /* -1: free */
    int32_t count; /* of tokens */
    int32_t only;  /* one of them */
} cached_mask;

struct mm2_grammar {
    const mm2_tokenizer *t;
    atomic_int references, lock; /* lock: the id of the process whose thread has it */
    mm2_pattern pattern;
    mm2_automaton automaton;
    int64_t limit;    /* bytes of places */
    int64_t refilled; /* bytes of places that had to come back at once when they were forgotten */
    int32_t words;    /* of a mask */
    int32_t mask_count, oldest;
    cached_mask *cached;
    uint32_t *masks;                 /* [mask_count][words] */
    int32_t path[MM2_MAX_TOKEN + 1]; /* of a walk: the places behind each byte */
};

enum { THINKING, TEXT, ENDED }; /* mm2_constraint.phase */

struct mm2_constraint {
    mm2_grammar *g;
    mm2_busy busy;
    int torn; /* a call was cut off by fork(): the states may be anywhere */
    int32_t phase;
    int32_t matched; /* bytes of </think> */
    int32_t vocab_size, words;
    int32_t *ends, end_count;
    int32_t *states, state_count, state_room; /* of the place */
    int32_t place;
    uint32_t generation; /* in which the place has this number */
    uint32_t *mask;
};

/* ---- Grammars ---- */

static mm2_status make_pattern(mm2_grammar *g, int32_t kind, const char *text)
{
    static const char *const names[] = {"", "regex", "choices", "json_schema"};
    mm2_growing made = {0};
    int ours = kind != MM2_GRAMMAR_REGEX;
    mm2_status status = kind == MM2_GRAMMAR_CHOICES       ? mm2_choices_pattern(&made, text)
                        : kind == MM2_GRAMMAR_JSON_SCHEMA ? mm2_schema_pattern(&made, text)
                                                          : MM2_OK;
    if (!status)
        status = mm2_pattern_read(&g->pattern, ours ? made.bytes : text,
                                  ours ? made.length : (int64_t)strlen(text), ours);
    free(made.bytes);
    return status && status != MM2_E_NOMEM ? mm2_fail_in(status, names[kind]) : status;
}

static mm2_status make_masks(mm2_grammar *g)
{
    g->words = (g->t->bpe.size + 31) / 32;
    int64_t bytes = (int64_t)g->words * 4, count = bytes ? MASK_BYTES / bytes : 8;
    g->mask_count = count < 8 ? 8 : count > 4096 ? 4096 : (int32_t)count;
    g->cached = malloc((size_t)g->mask_count * sizeof *g->cached);
    g->masks = malloc((size_t)g->mask_count * (size_t)bytes + 4); /* untouched until it is used */
    if (!g->cached || !g->masks)
        return mm2_fail(MM2_E_NOMEM, "no memory for %d masks", g->mask_count);
    for (int32_t i = 0; i < g->mask_count; i++)
        g->cached[i].place = -1;
    return MM2_OK;
}

mm2_status mm2_grammar_new(mm2_grammar **out, const mm2_tokenizer *t, int32_t kind,
                           const char *text)
{
    MM2_NEED(out, "the place for the result");
    *out = NULL;
    MM2_NEED(t, "the tokenizer");
    MM2_NEED(text, "the text");
    if (kind < MM2_GRAMMAR_REGEX || kind > MM2_GRAMMAR_JSON_SCHEMA)
        return mm2_fail(MM2_E_ARG, "the kind of a grammar is %d, expected %d to %d", kind,
                        MM2_GRAMMAR_REGEX, MM2_GRAMMAR_JSON_SCHEMA);
    mm2_grammar *g = calloc(1, sizeof *g);
    if (!g)
        return mm2_fail(MM2_E_NOMEM, "no memory for a grammar");
    g->t = t;
    g->limit = PLACE_BYTES;
    atomic_store(&g->references, 1);
    mm2_status status = make_pattern(g, kind, text);
    if (!status)
        status = mm2_automaton_init(&g->automaton, &g->pattern);
    if (!status)
        status = make_masks(g);
    if (!status && !mm2_tokenizer_order(t))
        status = MM2_E_NOMEM;
    if (status) {
        mm2_grammar_free(g);
        return status;
    }
    *out = g;
    return MM2_OK;
}

void mm2_grammar_free(mm2_grammar *g)
{
    if (!g || atomic_fetch_sub(&g->references, 1) > 1)
        return;
    mm2_automaton_free(&g->automaton);
    mm2_pattern_free(&g->pattern);
    free(g->cached);
    free(g->masks);
    free(g);
}

void mm2_grammar_limit(mm2_grammar *g, int64_t bytes)
{
    g->limit = bytes;
}

static void forget(mm2_grammar *g)
{
    mm2_automaton_forget(&g->automaton);
    for (int32_t i = 0; i < g->mask_count; i++)
        g->cached[i].place = -1;
}

/* The thread that had the lock does not exist here: memory that it was changing is not given back. */
static mm2_status begin_anew(mm2_grammar *g)
{
    uint32_t generation = g->automaton.generation;
    mm2_status status = mm2_automaton_init(&g->automaton, &g->pattern);
    g->automaton.generation = generation;
    forget(g);
    return status;
}

static mm2_status lock(mm2_grammar *g)
{
    int mine = (int)getpid(), found = 0;
    while (!atomic_compare_exchange_weak(&g->lock, &found, mine)) {
        if (found == mine) {
            sched_yield();
            found = 0;
        }
    }
    mm2_status status = found ? begin_anew(g) : MM2_OK;
    if (status)
        atomic_store(&g->lock, found); /* the next one tries again */
    return status;
}

static void unlock(mm2_grammar *g)
{
    atomic_store(&g->lock, 0);
}

static int is_full(const mm2_grammar *g)
{
    int64_t bytes = mm2_automaton_bytes(&g->automaton);
    return bytes > g->limit && bytes > 2 * g->refilled;
}

int32_t mm2_grammar_matches(mm2_grammar *g, const char *text, int32_t len)
{
    MM2_NEED(g, "the grammar");
    MM2_NEED(text, "the text");
    if (len < 0)
        return mm2_fail(MM2_E_ARG, "the length is %d, expected 0 or more", len);
    mm2_status status = lock(g);
    if (status)
        return status;
    mm2_automaton *a = &g->automaton;
    int32_t at = mm2_automaton_enter(a, &g->pattern.start, 1), *states = NULL;
    for (int32_t i = 0; i < len && at >= 0; i++) {
        at = mm2_automaton_step(a, at, (uint8_t)text[i]);
        if (at >= 0 && is_full(g)) {
            mm2_place p = a->places[at];
            size_t bytes = (size_t)p.count * sizeof *states;
            if (!(states = malloc(bytes))) {
                at = MM2_NO_ROOM;
                mm2_fail(MM2_E_NOMEM, "no memory to match a text");
                break;
            }
            memcpy(states, a->sets + p.set, bytes);
            forget(g);
            at = mm2_automaton_enter(a, states, p.count);
            free(states);
        }
    }
    int32_t result = at == MM2_NO_ROOM ? MM2_E_NOMEM : at >= 0 && a->places[at].accepts;
    unlock(g);
    return result;
}

/* ---- Constraints: places ---- */

/* Keeps a place, by its states too. The grammar is locked, likewise: */
static mm2_status stand_at(mm2_constraint *c, int32_t place)
{
    const mm2_automaton *a = &c->g->automaton;
    const mm2_place *p = &a->places[place];
    if (p->count > c->state_room) {
        int32_t *grown = realloc(c->states, (size_t)p->count * sizeof *grown);
        if (!grown)
            return mm2_fail(MM2_E_NOMEM, "no memory for %d states of a grammar", p->count);
        c->states = grown;
        c->state_room = p->count;
    }
    memcpy(c->states, a->sets + p->set, (size_t)p->count * sizeof *c->states);
    c->state_count = p->count;
    c->place = place;
    c->generation = a->generation;
    return MM2_OK;
}

/* The number that the place of the constraint has now. */
static int32_t place_of(mm2_constraint *c)
{
    mm2_grammar *g = c->g;
    if (is_full(g)) {
        forget(g);
        g->refilled = 0;
    }
    if (c->generation != g->automaton.generation) {
        c->place = mm2_automaton_enter(&g->automaton, c->states, c->state_count);
        if (c->place >= 0)
            c->generation = g->automaton.generation;
    }
    return c->place;
}

/* Where bytes lead from the place: MM2_NOWHERE, MM2_NO_ROOM. */
static int32_t follow(mm2_constraint *c, const char *bytes, int32_t n)
{
    int32_t at = place_of(c);
    for (int32_t i = 0; i < n && at >= 0; i++)
        at = mm2_automaton_step(&c->g->automaton, at, (uint8_t)bytes[i]);
    return at;
}

/* ---- Masks ---- */

/* Room for places: those of the walk come back. */
static int make_room(mm2_constraint *c, const char *bytes, int32_t n)
{
    mm2_grammar *g = c->g;
    forget(g);
    int32_t at = g->path[0] = place_of(c);
    for (int32_t i = 0; i < n && at >= 0; i++)
        at = g->path[i + 1] = mm2_automaton_step(&g->automaton, at, (uint8_t)bytes[i]);
    g->refilled = mm2_automaton_bytes(&g->automaton);
    return at >= 0;
}

/* Fills the mask of the place. */
static mm2_status fill(mm2_constraint *c, cached_mask *m, uint32_t *mask)
{
    mm2_grammar *g = c->g;
    mm2_automaton *a = &g->automaton;
    const mm2_bpe *b = &g->t->bpe;
    const mm2_order *o = mm2_tokenizer_order(g->t);
    int64_t limit = a->work + MOST_WORK;
    int32_t alive = 0; /* bytes of the last token that lead somewhere */
    memset(mask, 0, (size_t)g->words * sizeof *mask);
    m->count = 0;
    for (int32_t i = 0; i < o->count; i++) {
        if (o->common[i] > alive)
            continue;
        int32_t id = o->ids[i], at = o->common[i], n = b->length[id];
        const char *bytes = b->bytes + b->start[id];
        if (is_full(g) && !make_room(c, bytes, at))
            return MM2_E_NOMEM;
        int32_t place = g->path[at];
        while (at < n && (place = mm2_automaton_step(a, place, (uint8_t)bytes[at])) >= 0)
            g->path[++at] = place;
        if (place == MM2_NO_ROOM)
            return MM2_E_NOMEM;
        alive = at;
        if (at == n) {
            mask[id / 32] |= 1U << id % 32;
            m->count++;
            m->only = id;
        }
        if (a->work > limit)
            return mm2_fail(MM2_E_UNSUPPORTED,
                            "the grammar is too costly here: a mask of its tokens "
                            "takes too long; use smaller counts, or fewer parts "
                            "that can all match the same text");
    }
    return MM2_OK;
}

/* The mask of the place that the constraint stands at. */
static mm2_status find_mask(mm2_constraint *c, const cached_mask **found, const uint32_t **mask)
{
    mm2_grammar *g = c->g;
    int32_t place = place_of(c);
    if (place < 0)
        return MM2_E_NOMEM;
    int32_t index = g->automaton.places[place].mask;
    if (index < 0) {
        index = g->oldest;
        cached_mask *m = &g->cached[index];
        if (m->place >= 0)
            g->automaton.places[m->place].mask = -1;
        m->place = -1;
        g->path[0] = place;
        mm2_status status = fill(c, m, g->masks + (int64_t)index * g->words);
        if (status)
            return status;
        m->place = place_of(c); /* places may have been forgotten meanwhile */
        if (m->place < 0)
            return MM2_E_NOMEM;
        g->automaton.places[m->place].mask = index;
        g->oldest = (index + 1) % g->mask_count;
    }
    *found = &g->cached[index];
    *mask = g->masks + (int64_t)index * g->words;
    return MM2_OK;
}

static void allow(mm2_constraint *c, int32_t id, int allowed)
{
    if (id < 0 || id >= c->vocab_size)
        return;
    uint32_t bit = 1U << id % 32;
    c->mask[id / 32] = allowed ? c->mask[id / 32] | bit : c->mask[id / 32] & ~bit;
}

/* Anything but the end of the turn, and a call. */
static void mask_thinking(mm2_constraint *c)
{
    const int32_t *tags = c->g->t->tags;
    memset(c->mask, 0xff, (size_t)c->words * sizeof *c->mask);
    for (int32_t i = 0; i < c->end_count; i++)
        allow(c, c->ends[i], 0);
    allow(c, tags[MM2_TAG_BEGIN], 0);
    allow(c, tags[MM2_TAG_ROLE], 0);
    allow(c, tags[MM2_TAG_END], 0);
    allow(c, tags[MM2_TAG_CALL_OPEN], 0);
}

static mm2_status mask_text(mm2_constraint *c)
{
    const cached_mask *found;
    const uint32_t *mask;
    mm2_status status = lock(c->g);
    if (status)
        return status;
    status = find_mask(c, &found, &mask);
    if (!status) {
        int32_t shared = c->words < c->g->words ? c->words : c->g->words;
        memset(c->mask + shared, 0, (size_t)(c->words - shared) * sizeof *c->mask);
        memcpy(c->mask, mask, (size_t)shared * sizeof *mask);
        if (c->vocab_size % 32)
            c->mask[c->words - 1] &= (1U << c->vocab_size % 32) - 1;
        for (int32_t i = 0; i < c->end_count; i++)
            allow(c, c->ends[i], c->g->automaton.places[c->place].accepts);
    }
    unlock(c->g);
    return status;
}

/* ---- Constraints ---- */

void mm2_constraint_options_init(mm2_constraint_options *o)
{
    static const mm2_constraint_options defaults = {.size = sizeof defaults};
    mm2_struct_init(o, &defaults);
}

static mm2_status copy_ends(mm2_constraint *c, const int32_t *ends, int32_t count)
{
    c->ends = malloc(((size_t)count + 1) * sizeof *c->ends);
    if (!c->ends)
        return mm2_fail(MM2_E_NOMEM, "no memory for %d end tokens", count);
    for (int32_t i = 0; i < count; i++)
        if (ends[i] >= 0 && ends[i] < c->vocab_size)
            c->ends[c->end_count++] = ends[i];
    if (!c->end_count)
        return mm2_fail(MM2_E_ARG,
                        "a text that must have a form needs an end token, below %d; none "
                        "was given",
                        c->vocab_size);
    return MM2_OK;
}

static mm2_status enter_grammar(mm2_constraint *c, int32_t state)
{
    mm2_status status = lock(c->g);
    if (status)
        return status;
    int32_t place = mm2_automaton_enter(&c->g->automaton, &state, 1);
    status = place < 0 ? MM2_E_NOMEM : stand_at(c, place);
    unlock(c->g);
    return status;
}

static mm2_status set_up(mm2_constraint *c, const mm2_constraint_options *o)
{
    const mm2_tokenizer *t = c->g->t;
    if (o->start < MM2_START_TEXT || o->start > MM2_START_ANSWER)
        return mm2_fail(MM2_E_ARG, "the start is %d, expected %d to %d", o->start, MM2_START_TEXT,
                        MM2_START_ANSWER);
    if (o->vocab_size < 0)
        return mm2_fail(MM2_E_ARG, "vocab_size is %d, expected 0 or more", o->vocab_size);
    if (o->end_count < 0 || (!o->end_tokens && o->end_count))
        return mm2_fail(MM2_E_ARG, "end_count is %d %s", o->end_count,
                        o->end_tokens ? ", expected 0 or more" : "without end_tokens");
    c->phase = o->start == MM2_START_THINKING ? THINKING : TEXT;
    c->vocab_size = o->vocab_size ? o->vocab_size : t->bpe.size;
    c->words = (int32_t)(((int64_t)c->vocab_size + 31) / 32);
    c->mask = malloc(((size_t)c->words + 1) * sizeof *c->mask);
    if (!c->mask)
        return mm2_fail(MM2_E_NOMEM, "no memory for a mask of %d tokens", c->vocab_size);
    mm2_status status = copy_ends(c, o->end_tokens ? o->end_tokens : &t->facts.eos,
                                  o->end_tokens ? o->end_count : 1);
    if (status)
        return status;
    return enter_grammar(c, c->phase == THINKING ? c->g->pattern.lead : c->g->pattern.start);
}

mm2_status mm2_constraint_new(mm2_constraint **out, mm2_grammar *g,
                              const mm2_constraint_options *given)
{
    mm2_constraint_options o = {.size = sizeof o};
    mm2_constraint_options_init(&o);
    MM2_NEED(out, "the place for the result");
    *out = NULL;
    MM2_NEED(g, "the grammar");
    mm2_status status = given ? mm2_struct_read(&o, given, "constraint options") : MM2_OK;
    if (status)
        return status;
    mm2_constraint *c = calloc(1, sizeof *c);
    if (!c)
        return mm2_fail(MM2_E_NOMEM, "no memory for a constraint");
    c->g = g;
    atomic_fetch_add(&g->references, 1);
    status = set_up(c, &o);
    if (status) {
        mm2_constraint_free(c);
        return status;
    }
    *out = c;
    return MM2_OK;
}

void mm2_constraint_free(mm2_constraint *c)
{
    if (!c)
        return;
    mm2_grammar_free(c->g);
    free(c->ends);
    if (!c->torn)
        free(c->states);
    free(c->mask);
    free(c);
}

static mm2_status enter(mm2_constraint *c)
{
    int torn;
    mm2_status status = mm2_busy_enter(&c->busy, "constraint", &torn);
    if (status)
        return status;
    c->torn |= torn;
    if (!c->torn)
        return MM2_OK;
    mm2_busy_leave(&c->busy);
    return mm2_fail(MM2_E_ARG, "this process was forked while another thread used the constraint; "
                               "make a new one and push its ids again");
}

static mm2_status fork_of(mm2_constraint **out, const mm2_constraint *c)
{
    mm2_constraint *f = calloc(1, sizeof *f);
    if (!f)
        return mm2_fail(MM2_E_NOMEM, "no memory for a constraint");
    *f = *c;
    atomic_store(&f->busy, 0);
    atomic_fetch_add(&f->g->references, 1);
    f->ends = malloc(((size_t)c->end_count + 1) * sizeof *f->ends);
    f->states = malloc(((size_t)c->state_count + 1) * sizeof *f->states);
    f->mask = malloc(((size_t)c->words + 1) * sizeof *f->mask);
    f->state_room = c->state_count;
    if (!f->ends || !f->states || !f->mask) {
        mm2_constraint_free(f);
        return mm2_fail(MM2_E_NOMEM, "no memory for a constraint");
    }
    memcpy(f->ends, c->ends, (size_t)c->end_count * sizeof *f->ends);
    memcpy(f->states, c->states, (size_t)c->state_count * sizeof *f->states);
    *out = f;
    return MM2_OK;
}

mm2_status mm2_constraint_fork(mm2_constraint **out, mm2_constraint *c)
{
    MM2_NEED(out, "the place for the result");
    *out = NULL;
    MM2_NEED(c, "the constraint");
    mm2_status status = enter(c);
    if (status)
        return status;
    status = fork_of(out, c);
    mm2_busy_leave(&c->busy);
    return status;
}

static mm2_status has_ended(void)
{
    return mm2_fail(MM2_E_ARG, "the text has ended");
}

mm2_status mm2_constraint_mask(mm2_constraint *c, const uint32_t **mask)
{
    MM2_NEED(c, "the constraint");
    MM2_NEED(mask, "the place for the mask");
    mm2_status status = enter(c);
    if (status)
        return status;
    if (c->phase == THINKING)
        mask_thinking(c);
    else
        status = c->phase == ENDED ? has_ended() : mask_text(c);
    if (!status)
        *mask = c->mask;
    mm2_busy_leave(&c->busy);
    return status;
}

/* ---- Pushing ---- */

static int is_end(const mm2_constraint *c, int32_t id)
{
    for (int32_t i = 0; i < c->end_count; i++)
        if (c->ends[i] == id)
            return 1;
    return 0;
}

/* The bytes of an id in a text; none of those that never stand for their bytes. */
static int32_t bytes_of(const mm2_bpe *b, int32_t id, int with_tags, const char **bytes)
{
    if (id >= b->size || !b->length[id] ||
        (b->kind[id] & (with_tags ? MM2_TOKEN_SPECIAL : MM2_TOKEN_ADDED)))
        return 0;
    *bytes = b->bytes + b->start[id];
    return b->length[id];
}

static mm2_status not_allowed(const mm2_constraint *c, int32_t id)
{
    return mm2_fail(MM2_E_ARG, "token %d does not continue the text in the form that it must have",
                    id);
}

/* Stands behind further bytes of the text. */
static mm2_status advance(mm2_constraint *c, int32_t id, const char *bytes, int32_t n)
{
    mm2_status status = lock(c->g);
    if (status)
        return status;
    int32_t to = follow(c, bytes, n);
    status = to == MM2_NOWHERE   ? not_allowed(c, id)
             : to == MM2_NO_ROOM ? MM2_E_NOMEM
                                 : stand_at(c, to);
    unlock(c->g);
    return status;
}

/* The thinking ends with the tag, as a token or spelled. */
static mm2_status think(mm2_constraint *c, int32_t id)
{
    const char *bytes = NULL, *tag = mm2_tag_text[MM2_TAG_THINK_CLOSE];
    int32_t n = bytes_of(&c->g->t->bpe, id, 1, &bytes), matched = c->matched, i = 0;
    for (; i < n && matched < TAG_LENGTH; i++)
        matched = bytes[i] == tag[matched] ? matched + 1 : bytes[i] == *tag;
    mm2_status status = matched == TAG_LENGTH && i < n ? advance(c, id, bytes + i, n - i) : MM2_OK;
    if (!status) {
        c->matched = matched;
        c->phase = matched == TAG_LENGTH ? TEXT : THINKING;
    }
    return status;
}

static int32_t accepts(mm2_constraint *c)
{
    mm2_status status = c->phase == TEXT ? lock(c->g) : MM2_OK;
    if (status || c->phase != TEXT)
        return status;
    int32_t place = place_of(c), result = MM2_E_NOMEM;
    if (place >= 0)
        result = c->g->automaton.places[place].accepts;
    unlock(c->g);
    return result;
}

static mm2_status end_text(mm2_constraint *c, int32_t id)
{
    int32_t complete = accepts(c);
    if (complete < 1)
        return complete ? complete : not_allowed(c, id);
    c->phase = ENDED;
    return MM2_OK;
}

static mm2_status push(mm2_constraint *c, int32_t id)
{
    const char *bytes = NULL;
    if (id < 0)
        return mm2_fail(MM2_E_ARG, "id %d, expected 0 or more", id);
    if (c->phase == ENDED)
        return has_ended();
    if (c->phase == THINKING)
        return is_end(c, id) ? not_allowed(c, id) : think(c, id);
    if (is_end(c, id))
        return end_text(c, id);
    int32_t n = bytes_of(&c->g->t->bpe, id, 0, &bytes);
    return n ? advance(c, id, bytes, n) : not_allowed(c, id);
}

mm2_status mm2_constraint_push(mm2_constraint *c, int32_t id)
{
    MM2_NEED(c, "the constraint");
    mm2_status status = enter(c);
    if (status)
        return status;
    status = push(c, id);
    mm2_busy_leave(&c->busy);
    return status;
}

int32_t mm2_constraint_accepts(mm2_constraint *c)
{
    MM2_NEED(c, "the constraint");
    mm2_status status = enter(c);
    if (status)
        return status;
    int32_t result = accepts(c);
    mm2_busy_leave(&c->busy);
    return result;
}

/* The only id that may come next, -1 if there are several, or a negative status in *status. */
static int32_t only_id(mm2_constraint *c, mm2_status *status)
{
    const cached_mask *m;
    const uint32_t *mask;
    int32_t id = -1;
    *status = c->phase == TEXT ? lock(c->g) : MM2_OK;
    if (*status || c->phase != TEXT)
        return -1;
    *status = find_mask(c, &m, &mask);
    if (!*status && m->count == 1 && !c->g->automaton.places[c->place].accepts)
        id = m->only;
    unlock(c->g);
    return id < c->vocab_size && !is_end(c, id) ? id : -1;
}

int32_t mm2_constraint_forced(mm2_constraint *c, int32_t *ids, int32_t cap)
{
    mm2_constraint *f = NULL;
    int32_t count = 0, id;
    MM2_NEED(c, "the constraint");
    if (cap < 0 || (!ids && cap))
        return mm2_fail(MM2_E_ARG, "room for %d ids%s", cap, cap < 0 ? "" : " at NULL");
    mm2_status status = enter(c);
    if (status)
        return status;
    status = fork_of(&f, c);
    while (!status && count < cap && (id = only_id(f, &status)) >= 0 && !status) {
        ids[count++] = id;
        status = push(f, id);
    }
    mm2_constraint_free(f);
    mm2_busy_leave(&c->busy);
    return status ? status : count;
}
