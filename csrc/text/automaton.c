/* Places: sets of states in which a text may stand, found when a byte first leads there, each kept
 * once. From a place a byte of a class leads to one other place, or nowhere; what was found is
 * looked up from then on. Only states that take a byte, or end the pattern, are kept in a set; those
 * that lead on without a byte are passed through.
 *
 * Sets are collected as bits and read off in order, so that equal sets are equal rows of numbers.
 * There can be more places than memory has room for: the owner looks at mm2_automaton_bytes and
 * forgets all of them, keeping the states of those that it stands in. */
#include "text/automaton.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>

static void find_classes(mm2_automaton *a)
{
    uint8_t begins[257] = {0};
    for (int32_t i = 0; i < a->pattern->edge_count; i++) {
        const mm2_edge *e = &a->pattern->edges[i];
        if (e->low <= e->high)
            begins[e->low] = begins[e->high + 1] = 1;
    }
    for (int c = 0; c < 256; c++) {
        a->classes += c && begins[c];
        a->class_of[c] = (uint8_t)a->classes;
    }
    a->classes++;
}

mm2_status mm2_automaton_init(mm2_automaton *a, const mm2_pattern *p)
{
    *a = (mm2_automaton){.pattern = p, .low = INT32_MAX, .high = -1};
    a->matters = calloc((size_t)p->states + 1, 1);
    a->marks = calloc((size_t)p->states / 64 + 1, sizeof *a->marks);
    a->waiting = malloc(((size_t)p->states + 1) * sizeof *a->waiting);
    if (!a->matters || !a->marks || !a->waiting)
        return mm2_fail(MM2_E_NOMEM, "no memory for an automaton of %d states", p->states);
    find_classes(a);
    for (int32_t s = 0; s < p->states; s++)
        for (int32_t e = p->first[s]; e >= 0; e = p->edges[e].next)
            a->matters[s] |= p->edges[e].low <= p->edges[e].high;
    a->matters[p->end] = 1;
    return MM2_OK;
}

void mm2_automaton_forget(mm2_automaton *a)
{
    free(a->places);
    free(a->next);
    free(a->sets);
    free(a->slots);
    a->places = NULL;
    a->next = a->sets = a->slots = NULL;
    a->count = a->room = 0;
    a->set_used = a->set_room = 0;
    a->slot_mask = 0;
    a->generation++;
}

void mm2_automaton_free(mm2_automaton *a)
{
    mm2_automaton_forget(a);
    free(a->matters);
    free(a->marks);
    free(a->waiting);
    *a = (mm2_automaton){0};
}

int64_t mm2_automaton_bytes(const mm2_automaton *a)
{
    return a->count * (int64_t)(sizeof *a->places + 4 * (size_t)a->classes + 8) + 4 * a->set_used;
}

/* ---- Sets ---- */

static void mark(mm2_automaton *a, int32_t state)
{
    int32_t word = state / 64;
    uint64_t bit = 1ULL << state % 64;
    if (a->marks[word] & bit)
        return;
    a->marks[word] |= bit;
    a->low = a->low < word ? a->low : word;
    a->high = a->high > word ? a->high : word;
    a->waiting[a->waiting_count++] = state;
}

/* Marks what is reached from the marked states without a byte. */
static void spread(mm2_automaton *a)
{
    const mm2_pattern *p = a->pattern;
    while (a->waiting_count) {
        int32_t s = a->waiting[--a->waiting_count];
        for (int32_t e = p->first[s]; e >= 0; e = p->edges[e].next, a->work++)
            if (p->edges[e].low > p->edges[e].high)
                mark(a, p->edges[e].to);
    }
}

static int32_t no_room(mm2_automaton *a)
{
    for (int32_t i = a->low; i <= a->high; i++)
        a->marks[i] = 0;
    a->waiting_count = 0;
    a->low = INT32_MAX;
    a->high = -1;
    mm2_fail(MM2_E_NOMEM, "no memory for an automaton with %d places", a->count);
    return MM2_NO_ROOM;
}

static int make_slots(mm2_automaton *a, uint32_t count)
{
    int32_t *slots = malloc(count * sizeof *slots);
    if (!slots)
        return 0;
    memset(slots, 0xff, count * sizeof *slots);
    free(a->slots);
    a->slots = slots;
    a->slot_mask = count - 1;
    for (int32_t i = 0; i < a->count; i++) {
        uint32_t at = a->places[i].hash & a->slot_mask;
        while (slots[at] >= 0)
            at = (at + 1) & a->slot_mask;
        slots[at] = i;
    }
    return 1;
}

/* Room for one place more, with a set of at most `states`. */
static int make_room(mm2_automaton *a, int64_t states)
{
    if (a->count == a->room) {
        int32_t room = 2 * a->room + 16;
        mm2_place *places = realloc(a->places, (size_t)room * sizeof *places);
        a->places = places ? places : a->places;
        int32_t *next = realloc(a->next, (size_t)room * (size_t)a->classes * sizeof *next);
        a->next = next ? next : a->next;
        if (!places || !next || !make_slots(a, a->slots ? 2 * (a->slot_mask + 1) : 64))
            return 0;
        a->room = room;
    }
    if (a->set_used + states > a->set_room) {
        int64_t room = 2 * (a->set_used + states);
        int32_t *sets = realloc(a->sets, (size_t)room * sizeof *sets);
        if (!sets)
            return 0;
        a->sets = sets;
        a->set_room = room;
    }
    return 1;
}

/* The place of the marked states, whose marks go. */
static int32_t find(mm2_automaton *a)
{
    int64_t most = 0;
    uint64_t hash = 0;
    for (int32_t i = a->low; i <= a->high; i++)
        most += __builtin_popcountll(a->marks[i]);
    if (!make_room(a, most))
        return no_room(a);
    mm2_place new = {.set = a->set_used, .mask = -1};
    for (int32_t i = a->low; i <= a->high; i++) {
        for (uint64_t word = a->marks[i]; word; word &= word - 1) {
            int32_t s = i * 64 + __builtin_ctzll(word);
            if (!a->matters[s])
                continue;
            a->sets[new.set + new.count++] = s;
            new.accepts |= s == a->pattern->end;
            hash = (hash ^ (uint64_t)s) * 0x9e3779b97f4a7c15ULL;
            hash ^= hash >> 29;
        }
        a->marks[i] = 0;
    }
    a->low = INT32_MAX;
    a->high = -1;
    if (!new.count)
        return MM2_NOWHERE;
    new.hash = (uint32_t)(hash ^ hash >> 32);
    uint32_t at = new.hash & a->slot_mask;
    for (int32_t i; (i = a->slots[at]) >= 0; at = (at + 1) & a->slot_mask) {
        const mm2_place *p = &a->places[i];
        if (p->hash == new.hash && p->count == new.count &&
            !memcmp(a->sets + p->set, a->sets + new.set, (size_t) new.count * sizeof *a->sets))
            return i;
    }
    a->set_used += new.count;
    a->places[a->count] = new;
    a->slots[at] = a->count;
    int32_t *next = a->next + (int64_t)a->count * a->classes;
    for (int32_t c = 0; c < a->classes; c++)
        next[c] = MM2_UNKNOWN;
    return a->count++;
}

int32_t mm2_automaton_enter(mm2_automaton *a, const int32_t *states, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        mark(a, states[i]);
    spread(a);
    return find(a);
}

int32_t mm2_automaton_explore(mm2_automaton *a, int32_t place, uint8_t byte)
{
    const mm2_pattern *p = a->pattern;
    const mm2_place *from = &a->places[place];
    for (int32_t i = 0; i < from->count; i++)
        for (int32_t e = p->first[a->sets[from->set + i]]; e >= 0; e = p->edges[e].next, a->work++)
            if (p->edges[e].low <= byte && byte <= p->edges[e].high)
                mark(a, p->edges[e].to);
    spread(a);
    int32_t to = find(a);
    if (to != MM2_NO_ROOM)
        a->next[(int64_t)place * a->classes + a->class_of[byte]] = to;
    return to;
}
