/* A regular expression to a nondeterministic automaton whose edges take ranges of bytes.
 *
 * Every part of an expression becomes a fragment: states and edges that lie together in the arrays,
 * with one state to enter it by and one to leave it by. Repeating a fragment is copying what lies
 * there. Characters are code points; a class of them becomes the byte ranges of their UTF-8, whose
 * common ends share states. Open groups lie on a stack, so nothing recurs.
 *
 * The dialect is what Python's re understands under re.ASCII, without what no automaton has or
 * fullmatch makes no use of: look-around, references, lazy quantifiers, flags. All of it is bounded:
 * a pattern that would need more is refused before memory is asked for. No class may be empty, so
 * every state leads to the end: a text that has a state can always be completed. */
#include "text/pattern.h"

#include "base/status.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_RANGES = 1 << 16, LAST_CODE = 0x10ffff, NO_END = -1 };

typedef struct range { /* of code points */
    int32_t low, high;
} range;

typedef struct fragment {
    int32_t start, end;
    int32_t state, edge; /* the first ones of it */
} fragment;

typedef struct group {
    fragment whole;
    int32_t at; /* the end of the branch so far */
    int empty;  /* the branch */
} group;

typedef struct reader {
    mm2_pattern *p;
    const char *text;
    int64_t length, at;
    int ours, in_string;
    group *groups;
    int32_t depth, group_room; /* of groups; the outermost one is the pattern */
    range *ranges;             /* of the class at hand */
    int32_t range_count, range_room;
    mm2_status status; /* once it is set, nothing is done any more */
} reader;

/* ---- States and edges ---- */

static void refuse(reader *r, int64_t at, const char *why)
{
    if (!r->status)
        r->status = mm2_fail(MM2_E_ARG, "byte %lld: %s", (long long)at, why);
}

/* What others may know. */
static void pass_on(reader *r, int64_t at, const char *why)
{
    if (!r->status)
        r->status = mm2_fail(MM2_E_UNSUPPORTED, "byte %lld: %s", (long long)at, why);
}

/* Room for `count` things of `size` bytes in an array that has *room. */
static int reserve(reader *r, void **array, int32_t *room, int64_t count, size_t size, int32_t most)
{
    if (r->status || count <= *room)
        return !r->status;
    if (count > most) {
        pass_on(r, r->at, "the pattern is too large here; repeat less, or less often");
        return 0;
    }
    int64_t wanted = 2 * count + 64 < most ? 2 * count + 64 : most;
    void *grown = realloc(*array, (size_t)wanted * size);
    if (!grown) {
        r->status =
            mm2_fail(MM2_E_NOMEM, "no memory for a pattern of %lld parts", (long long)count);
        return 0;
    }
    *array = grown;
    *room = (int32_t)wanted;
    return 1;
}

static int reserve_states(reader *r, int64_t more)
{
    mm2_pattern *p = r->p;
    return reserve(r, (void **)&p->first, &p->state_room, p->states + more, sizeof *p->first,
                   MM2_PATTERN_STATES);
}

static int reserve_edges(reader *r, int64_t more)
{
    mm2_pattern *p = r->p;
    return reserve(r, (void **)&p->edges, &p->edge_room, p->edge_count + more, sizeof *p->edges,
                   MM2_PATTERN_EDGES);
}

static int32_t new_state(reader *r)
{
    if (!reserve_states(r, 1))
        return 0;
    r->p->first[r->p->states] = -1;
    return r->p->states++;
}

static void add_edge(reader *r, int32_t from, int low, int high, int32_t to)
{
    mm2_pattern *p = r->p;
    if (!reserve_edges(r, 1))
        return;
    p->edges[p->edge_count] = (mm2_edge){to, p->first[from], (uint8_t)low, (uint8_t)high};
    p->first[from] = p->edge_count++;
}

static void join(reader *r, int32_t from, int32_t to)
{
    add_edge(r, from, 1, 0, to);
}

/* A fragment of which nothing exists yet but the two states. */
static fragment new_fragment(reader *r)
{
    fragment f = {.state = r->p->states, .edge = r->p->edge_count};
    f.start = new_state(r);
    f.end = new_state(r);
    return f;
}

/* Appends `times` copies of the last fragment, each a fragment's number of states behind the one
 * before it. */
static void copy_last(reader *r, const fragment *f, int32_t times)
{
    mm2_pattern *p = r->p;
    int32_t states = p->states - f->state, edges = p->edge_count - f->edge;
    if (!reserve_states(r, (int64_t)states * times) || !reserve_edges(r, (int64_t)edges * times))
        return;
    for (int64_t i = 0; i < (int64_t)states * times; i++) {
        int32_t edge = p->first[p->states - states];
        p->first[p->states++] = edge < 0 ? -1 : edge + edges;
    }
    for (int64_t i = 0; i < (int64_t)edges * times; i++) {
        mm2_edge e = p->edges[p->edge_count - edges];
        e.to += states;
        e.next += e.next < 0 ? 0 : edges;
        p->edges[p->edge_count++] = e;
    }
}

/* ---- Classes ---- */

static void add_range(reader *r, int32_t low, int32_t high)
{
    if (reserve(r, (void **)&r->ranges, &r->range_room, r->range_count + 1, sizeof *r->ranges,
                MOST_RANGES))
        r->ranges[r->range_count++] = (range){low, high};
}

static int by_low(const void *x, const void *y)
{
    const range *a = x, *b = y;
    return (a->low > b->low) - (a->low < b->low);
}

/* Sorts and merges the ranges from the one at `begin` on; turns them into the others if `negated`. */
static void settle(reader *r, int32_t begin, int negated)
{
    int32_t count = r->range_count, next = 0;
    if (!reserve(r, (void **)&r->ranges, &r->range_room, 2 * (int64_t)count + 1, sizeof *r->ranges,
                 2 * MOST_RANGES))
        return;
    if (count - begin > 1)
        qsort(r->ranges + begin, (size_t)(count - begin), sizeof *r->ranges, by_low);
    r->range_count = begin;
    range *out = r->ranges + count; /* what is left out, behind them */
    int32_t others = 0;
    for (int32_t i = begin; i < count; i++) {
        range x = r->ranges[i];
        if (x.low > next)
            out[others++] = (range){next, x.low - 1};
        if (r->range_count > begin && x.low <= next) { /* overlaps, or follows */
            range *last = &r->ranges[r->range_count - 1];
            last->high = last->high > x.high ? last->high : x.high;
        } else {
            r->ranges[r->range_count++] = x;
        }
        next = next > x.high + 1 ? next : x.high + 1;
    }
    if (!negated)
        return;
    if (next <= LAST_CODE)
        out[others++] = (range){next, LAST_CODE};
    memmove(r->ranges + begin, out, (size_t)others * sizeof *out);
    r->range_count = begin + others;
}

/* Takes away what is no character, or lies in low..high. */
static void exclude(reader *r, int32_t low, int32_t high)
{
    int32_t count = r->range_count;
    for (int32_t i = 0; i < count; i++) {
        range x = r->ranges[i];
        if (x.high < low || x.low > high)
            continue;
        r->ranges[i].high = low - 1; /* maybe empty now */
        if (x.low >= low)
            r->ranges[i] = (range){1, 0};
        if (x.high > high)
            add_range(r, high + 1, x.high);
    }
    for (count = 0; count < r->range_count && r->ranges[count].low <= r->ranges[count].high;)
        count++;
    for (int32_t i = count; i < r->range_count; i++)
        if (r->ranges[i].low <= r->ranges[i].high)
            r->ranges[count++] = r->ranges[i];
    r->range_count = count;
    settle(r, 0, 0);
}

static void add_named(reader *r, char name)
{
    static const range digits[] = {{'0', '9'}}, spaces[] = {{'\t', '\r'}, {' ', ' '}},
                       letters[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    char small = (char)(name | 0x20);
    const range *list = small == 'd' ? digits : small == 's' ? spaces : letters;
    int32_t count = small == 'd' ? 1 : small == 's' ? 2 : 4, begin = r->range_count;
    for (int32_t i = 0; i < count; i++)
        add_range(r, list[i].low, list[i].high);
    settle(r, begin, name != small);
}

/* Edges for code points whose bytes are low[i]..high[i] at each of n places. */
static void add_bytes(reader *r, const fragment *f, const uint8_t *low, const uint8_t *high, int n,
                      int32_t tails[3])
{
    int32_t at = f->start;
    for (int i = 0; i < n && !r->status; i++) {
        int rest = n - 1 - i, full = 1;
        for (int j = i + 1; j < n; j++)
            full &= low[j] == 0x80 && high[j] == 0xbf;
        if (full) { /* any end of `rest` bytes: states that the whole class shares */
            for (int j = 0; j < rest; j++)
                if (!tails[j]) {
                    tails[j] = new_state(r);
                    add_edge(r, tails[j], 0x80, 0xbf, j ? tails[j - 1] : f->end);
                }
            add_edge(r, at, low[i], high[i], rest ? tails[rest - 1] : f->end);
            return;
        }
        /* Ranges come in order, so one that begins alike has made its edge last. */
        const mm2_edge *last = r->p->first[at] < 0 ? NULL : &r->p->edges[r->p->first[at]];
        if (last && last->low == low[i] && last->high == high[i]) {
            at = last->to;
        } else {
            int32_t to = new_state(r);
            add_edge(r, at, low[i], high[i], to);
            at = to;
        }
    }
}

static void add_codes(reader *r, const fragment *f, range x, int32_t tails[3])
{
    while (x.low <= x.high && !r->status) {
        uint8_t low[4], high[4];
        static const int32_t last[] = {0x7f, 0x7ff, 0xffff, LAST_CODE};
        int n = mm2_utf8_put(low, x.low);
        int32_t top = x.high < last[n - 1] ? x.high : last[n - 1];
        for (int i = 1; i < n; i++) { /* the last i bytes run through all values, or the ones before
                                         them do not change */
            int32_t part = (1 << 6 * i) - 1;
            if ((x.low & ~part) == (top & ~part))
                continue;
            if (x.low & part)
                top = x.low | part;
            else if ((top & part) != part)
                top = (top & ~part) - 1;
        }
        mm2_utf8_put(high, top);
        add_bytes(r, f, low, high, n, tails);
        x.low = top + 1;
    }
}

/* Those of the class that a JSON string must escape. */
static void add_escapes(reader *r, const fragment *f)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt", hex[] = "0123456789abcdef";
    int32_t backslash = 0, high[2] = {0, 0};
    for (int32_t i = 0; i < r->range_count; i++) {
        for (int32_t c = r->ranges[i].low; c <= r->ranges[i].high && c <= '\\' && !r->status; c++) {
            const char *simple = c ? strchr(from, c) : NULL;
            if (c >= 0x20 && !simple)
                continue;
            if (!backslash) {
                backslash = new_state(r);
                add_edge(r, f->start, '\\', '\\', backslash);
            }
            if (simple) {
                add_edge(r, backslash, to[simple - from], to[simple - from], f->end);
                continue;
            }
            if (!high[0]) {
                int32_t at = backslash;
                for (const char *s = "u00"; *s; s++) {
                    int32_t next = new_state(r);
                    add_edge(r, at, *s, *s, next);
                    at = next;
                }
                for (int j = 0; j < 2; j++) {
                    high[j] = new_state(r);
                    add_edge(r, at, '0' + j, '0' + j, high[j]);
                }
            }
            add_edge(r, high[c >> 4], hex[c & 15], hex[c & 15], f->end);
        }
    }
}

/* The class at hand, which begins at `at` in the text, as a fragment. */
static fragment end_class(reader *r, int64_t at, int negated)
{
    int32_t tails[3] = {0};
    settle(r, 0, negated);
    exclude(r, 0xd800, 0xdfff);
    if (!r->range_count)
        refuse(r, at, "no character is in this class");
    fragment f = new_fragment(r);
    if (r->in_string) {
        add_escapes(r, &f);
        exclude(r, 0, 0x1f);
        exclude(r, '"', '"');
        exclude(r, '\\', '\\');
    }
    for (int32_t i = 0; i < r->range_count; i++)
        add_codes(r, &f, r->ranges[i], tails);
    return f;
}

/* ---- Characters ---- */

static int next_is(const reader *r, char c)
{
    return r->at < r->length && r->text[r->at] == c;
}

static int32_t take_code(reader *r)
{
    const uint8_t *p = (const uint8_t *)r->text + r->at;
    int n = mm2_utf8_length(p, r->length - r->at);
    r->at += n;
    return mm2_utf8_code(p, n);
}

static int32_t take_hex(reader *r, int64_t at, int digits)
{
    int32_t code = 0;
    for (int i = 0; i < digits; i++, r->at++) {
        int c = r->at < r->length ? (uint8_t)r->text[r->at] : 0, letter = c | 0x20;
        int value = c >= '0' && c <= '9'             ? c - '0'
                    : letter >= 'a' && letter <= 'f' ? letter - 87
                                                     : -1;
        if (value < 0) {
            refuse(r, at,
                   digits == 2 ? "\\x needs two hexadecimal digits"
                               : "\\u needs four hexadecimal digits");
            return 0;
        }
        code = code * 16 + value;
    }
    if (code >= 0xd800 && code <= 0xdfff)
        refuse(r, at, "half of a surrogate pair is no character; write the character itself");
    return code;
}

/* What an escape means, whose backslash was taken: a code point, or -1: the class has it now. */
static int32_t take_escape(reader *r, int in_class)
{
    static const char from[] = "ntrfva", to[] = "\n\t\r\f\v\a";
    int64_t at = r->at - 1;
    char c = r->at < r->length ? r->text[r->at] : 0;
    const char *simple = c ? strchr(from, c) : NULL;
    if ((uint8_t)c >= 0x80)
        return take_code(r);
    r->at++;
    if (simple)
        return to[simple - from];
    if (c && strchr("dDwWsS", c)) {
        add_named(r, c);
        return -1;
    }
    if (c == 'x' || c == 'u')
        return take_hex(r, at, c == 'x' ? 2 : 4);
    if (c == 'b' && in_class)
        return '\b';
    if (c >= '0' && c <= '9')
        pass_on(r, at, "references to groups are not known; neither are octal numbers");
    else if (c && strchr("bBAZz", c))
        pass_on(r, at, "places between characters are not known; the whole text must match anyway");
    else if (!c || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z'))
        refuse(r, at, "this escape is not known");
    return c;
}

/* One character of a class, or -1: several. */
static int32_t take_member(reader *r)
{
    if (!next_is(r, '\\'))
        return take_code(r);
    r->at++;
    return take_escape(r, 1);
}

static fragment take_class(reader *r)
{
    int64_t begin = r->at - 1;
    int negated = next_is(r, '^');
    r->at += negated;
    for (int first = 1; !r->status && (first || !next_is(r, ']')); first = 0) {
        int64_t at = r->at;
        if (at >= r->length) {
            refuse(r, begin, "this class has no end");
            break;
        }
        int32_t low = take_member(r), high = low;
        if (next_is(r, '-') && r->at + 1 < r->length && r->text[r->at + 1] != ']') {
            r->at++;
            high = take_member(r);
            if (low < 0 || high < low)
                refuse(r, at, "this range goes backwards, or from or to several characters");
        }
        if (low >= 0)
            add_range(r, low, high);
    }
    r->at++;
    return end_class(r, begin, negated);
}

/* ---- Repetition ---- */

static int take_number(reader *r, int32_t *out)
{
    int64_t begin = r->at;
    *out = 0;
    for (; r->at < r->length && r->text[r->at] >= '0' && r->text[r->at] <= '9'; r->at++)
        if (*out <= MM2_PATTERN_STATES)
            *out = *out * 10 + (r->text[r->at] - '0');
    return r->at > begin;
}

/* A quantifier, if one stands here: else once. What looks like one and is none is text, as in
 * Python. */
static int take_quantifier(reader *r, int32_t *least, int32_t *most)
{
    int64_t begin = r->at;
    char c = r->at < r->length ? r->text[r->at] : 0;
    if (c == '*' || c == '+' || c == '?') {
        *least = c == '+';
        *most = c == '?' ? 1 : NO_END;
        r->at++;
        return 1;
    }
    r->at += c == '{';
    int any = take_number(r, least);
    *most = *least;
    if (next_is(r, ',')) {
        r->at++;
        if (!take_number(r, most))
            *most = NO_END;
        any = 1;
    }
    if (c == '{' && any && next_is(r, '}')) {
        r->at++;
        return 1;
    }
    r->at = begin;
    *least = *most = 1;
    return 0;
}

/* Puts a fragment, the last one, behind what the branch has, as often as a quantifier says. */
static void add_fragment(reader *r, fragment f)
{
    int64_t at = r->at;
    int32_t least, most, ignored;
    group *g = &r->groups[r->depth - 1];
    g->empty = 0;
    if (take_quantifier(r, &least, &most)) {
        int64_t behind = r->at;
        if (next_is(r, '?') || next_is(r, '+'))
            pass_on(r, behind,
                    "lazy and possessive quantifiers are not known; they would match the "
                    "same texts");
        else if (take_quantifier(r, &ignored, &ignored))
            refuse(r, behind, "two quantifiers follow each other; put a group around the first");
        if (most != NO_END && most < least)
            refuse(r, at, "the largest count is smaller than the smallest");
    }
    if (least == 1 && most == 1) {
        join(r, g->at, f.start);
        g->at = f.end;
        return;
    }
    int32_t count = most != NO_END ? most : least ? least : 1, size = r->p->states - f.state;
    if (count > 1)
        copy_last(r, &f, count - 1);
    int32_t exit = new_state(r);
    for (int32_t i = 0; i < count && !r->status; i++, f.start += size, f.end += size) {
        join(r, g->at, f.start);
        if (i >= least)
            join(r, g->at, exit);
        g->at = f.end;
        if (i + 1 == count && most == NO_END)
            join(r, f.end, f.start);
    }
    join(r, g->at, exit);
    g->at = exit;
}

/* ---- Groups ---- */

static void begin_branch(reader *r, group *g)
{
    g->at = new_state(r);
    g->empty = 1;
    join(r, g->whole.start, g->at);
}

static void open_group(reader *r)
{
    if (!reserve(r, (void **)&r->groups, &r->group_room, r->depth + 1, sizeof *r->groups,
                 MM2_PATTERN_DEPTH))
        return;
    group *g = &r->groups[r->depth++];
    g->whole = new_fragment(r);
    begin_branch(r, g);
}

static void take_open(reader *r)
{
    int64_t at = r->at - 1;
    if (next_is(r, '?')) {
        r->at++;
        if (!next_is(r, ':')) {
            pass_on(r, at,
                    "of groups that begin with (? only (?: is known: no look-around, no names, "
                    "no flags");
            return;
        }
        r->at++;
    }
    open_group(r);
}

static void take_close(reader *r)
{
    if (r->depth == 1) {
        refuse(r, r->at - 1, "this ) closes nothing");
        return;
    }
    group g = r->groups[--r->depth];
    join(r, g.at, g.whole.end);
    add_fragment(r, g.whole);
}

static void take_branch(reader *r)
{
    group *g = &r->groups[r->depth - 1];
    join(r, g->at, g->whole.end);
    begin_branch(r, g);
}

static void take_anchor(reader *r, int begins)
{
    int outermost = r->depth == 1;
    if (!outermost || !(begins ? r->groups[0].empty : r->at == r->length || next_is(r, '|')))
        pass_on(r, r->at - 1,
                begins ? "^ is known at the beginning only, where it means nothing"
                       : "$ is known at the end only, where it means nothing");
}

static void take_character(reader *r, int32_t code)
{
    int64_t at = r->at;
    int any = code == '.';
    r->range_count = 0;
    if (code == '[') {
        add_fragment(r, take_class(r));
        return;
    }
    if (any)
        code = '\n';
    else if (code == '\\')
        code = take_escape(r, 0);
    if (code >= 0)
        add_range(r, code, code);
    add_fragment(r, end_class(r, at, any));
}

static void take(reader *r)
{
    int32_t ignored;
    int64_t at = r->at;
    if (take_quantifier(r, &ignored, &ignored)) {
        refuse(r, at, "there is nothing to repeat");
        return;
    }
    int32_t code = take_code(r);
    if (code == '(')
        take_open(r);
    else if (code == ')')
        take_close(r);
    else if (code == '|')
        take_branch(r);
    else if (code == '^' || code == '$')
        take_anchor(r, code == '^');
    else if (r->ours && (code == *MM2_PATTERN_IN_STRING || code == *MM2_PATTERN_BEHIND_STRING))
        r->in_string = code == *MM2_PATTERN_IN_STRING;
    else
        take_character(r, code);
}

mm2_status mm2_pattern_read(mm2_pattern *p, const char *text, int64_t length, int ours)
{
    reader r = {.p = p, .text = text, .length = length, .ours = ours};
    *p = (mm2_pattern){0};
    if (length > MM2_PATTERN_BYTES)
        return mm2_fail(MM2_E_ARG, "it has %lld bytes, expected %d at most", (long long)length,
                        MM2_PATTERN_BYTES);
    if (mm2_utf8_valid(text, length) < length)
        refuse(&r, mm2_utf8_valid(text, length), "this is no UTF-8");
    open_group(&r);
    while (!r.status && r.at < r.length)
        take(&r);
    if (!r.status && r.depth > 1)
        refuse(&r, r.length, "a ) is missing");
    if (!r.status) {
        const group *g = r.groups;
        join(&r, g->at, g->whole.end);
        p->start = g->whole.start;
        p->end = g->whole.end;
        p->lead = new_state(&r);
        for (int32_t i = 0, at = p->lead; i <= 2; i++) {
            join(&r, at, p->start);
            int32_t next = i < 2 ? new_state(&r) : 0;
            if (i < 2)
                add_edge(&r, at, '\n', '\n', next);
            at = next;
        }
    }
    free(r.groups);
    free(r.ranges);
    return r.status;
}

void mm2_pattern_free(mm2_pattern *p)
{
    free(p->first);
    free(p->edges);
    *p = (mm2_pattern){0};
}
