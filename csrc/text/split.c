/* The pattern comes from a file that may be hostile and was written for Oniguruma, so it goes
 * through two gates. First `translate` admits only the subset that Oniguruma and PCRE2 read alike:
 * classes, general categories, groups, alternation, greedy and lazy repetition, lookahead. That
 * leaves out recursion, back references and verbs. \s is spelled \p{White_Space}, because PCRE2's
 * own \s still counts U+180E as a space. Then PCRE2 runs it without JIT, under limits: memory for
 * backtracking, and for all matches in a text together steps in proportion to its length. A pattern
 * that needs more ends in an error value.
 *
 * Steps are counted in callouts before every item of the pattern: one for each, and one for each
 * byte that the matcher has gone since. PCRE2's own limit counts backtracking only, and of one
 * match only: a look ahead to the end of the text costs nothing there, at every byte. The family's
 * pattern needs no callouts, which take half its time again: whatever it looks at without success
 * is part of the next match, so that some twenty steps a byte are enough.
 *
 * Compiled once, never written again; what a match needs lives in the walk. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/split.h"

#include "base/status.h"
#include "text/shadow.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_PATTERN = 4096,   /* bytes */
    HEAP_LIMIT = 16384,   /* KiB of backtracking memory */
    DEPTH_LIMIT = 10000,  /* backtracking points at once */
    MATCH_LIMIT = 100000, /* PCRE2's count for one match, and beside it */
    MATCH_LIMIT_PER_BYTE = 8
};

const char mm2_split_family[] =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

struct mm2_split {
    pcre2_code *code;
    int keep_gaps, counts_steps;
};

typedef struct translation {
    const char *p, *end;
    char *out;
    int64_t length;
} translation;

static void put(translation *t, const char *text, int64_t length)
{
    memcpy(t->out + t->length, text, (size_t)length);
    t->length += length;
}

static mm2_status refuse(const translation *t, const char *begin, const char *what)
{
    return mm2_fail(MM2_E_UNSUPPORTED,
                    "the split pattern uses %s at byte %d, which this tokenizer does not take over",
                    what, (int)(t->p - begin));
}

/* An escape, p on the backslash: \r \n \t \s \S, \p{..} of a general category, or punctuation. */
static mm2_status translate_escape(translation *t, const char *begin)
{
    char c = t->end - t->p > 1 ? t->p[1] : 0;
    if (c == 's' || c == 'S') {
        put(t, c == 's' ? "\\p{White_Space}" : "\\P{White_Space}", 15);
        t->p += 2;
        return MM2_OK;
    }
    if (c == 'p' || c == 'P') {
        int64_t n = t->end - t->p;
        int two = n > 4 && t->p[4] >= 'a' && t->p[4] <= 'z';
        if (n < 5 + two || t->p[2] != '{' || t->p[3] < 'A' || t->p[3] > 'Z' || t->p[4 + two] != '}')
            return refuse(t, begin, "a property that is not a general category");
        put(t, t->p, 5 + two);
        t->p += 5 + two;
        return MM2_OK;
    }
    if (!c || !strchr("rnt\\/.*+?()[]{}|^$-'\"!#&,:;<=>@_`~% ", c))
        return refuse(t, begin, "an escape other than \\r \\n \\t \\s \\S \\p{..}");
    put(t, t->p, 2);
    t->p += 2;
    return MM2_OK;
}

/* A class, p on its bracket. */
static mm2_status translate_class(translation *t, const char *begin)
{
    put(t, t->p++, 1);
    if (t->p < t->end && *t->p == '^')
        put(t, t->p++, 1);
    if (t->p < t->end && *t->p == ']')
        return refuse(t, begin, "an empty class");
    while (t->p < t->end && *t->p != ']') {
        if (*t->p == '[' || *t->p == '&')
            return refuse(t, begin, "a class in a class");
        if (*t->p == '\\') {
            mm2_status status = translate_escape(t, begin);
            if (status)
                return status;
        } else
            put(t, t->p++, 1);
    }
    if (t->p == t->end)
        return mm2_fail(MM2_E_FORMAT, "the split pattern ends inside a class");
    put(t, t->p++, 1);
    return MM2_OK;
}

/* `out` has room for 8 times the pattern: \s grows from 2 bytes to 15. */
static mm2_status translate(char *out, int64_t *out_length, const char *pattern, int64_t length)
{
    translation t = {pattern, pattern + length, out, 0};
    while (t.p < t.end) {
        mm2_status status = MM2_OK;
        char c = *t.p, next = t.end - t.p > 1 ? t.p[1] : 0, third = t.end - t.p > 2 ? t.p[2] : 0;
        if (c == '\\')
            status = translate_escape(&t, pattern);
        else if (c == '[')
            status = translate_class(&t, pattern);
        else if (c == '(' && next == '*')
            status = refuse(&t, pattern, "a verb");
        else if (c == '(' && next == '?' && third != ':' && third != '!' && third != '=' &&
                 !(third == 'i' && t.end - t.p > 3 && t.p[3] == ':'))
            status = refuse(&t, pattern, "a group other than (?: (?i: (?! (?=");
        else if ((c == '*' || c == '+' || c == '?' || c == '}') && next == '+')
            status = refuse(&t, pattern, "a possessive repetition");
        else
            put(&t, t.p++, 1);
        if (status)
            return status;
    }
    *out_length = t.length;
    return MM2_OK;
}

static mm2_status no_memory(void)
{
    return mm2_fail(MM2_E_NOMEM, "no memory for the split pattern");
}

mm2_status mm2_split_new(mm2_split **out, const char *pattern, int64_t length, int keep_gaps)
{
    *out = NULL;
    if (length < 1 || length > MAX_PATTERN)
        return mm2_fail(MM2_E_FORMAT, "the split pattern has %lld bytes, expected 1..%d",
                        (long long)length, (int)MAX_PATTERN);
    char *translated = malloc((size_t)length * 8);
    mm2_split *s = calloc(1, sizeof *s);
    mm2_status status = MM2_OK;
    if (!translated || !s)
        status = no_memory();
    if (!status) {
        s->counts_steps = length != sizeof mm2_split_family - 1 ||
                          memcmp(pattern, mm2_split_family, sizeof mm2_split_family - 1) != 0;
        status = translate(translated, &length, pattern, length);
    }
    if (!status) {
        int error;
        PCRE2_SIZE offset;
        s->keep_gaps = keep_gaps;
        uint32_t counting = s->counts_steps ? PCRE2_AUTO_CALLOUT | PCRE2_NO_START_OPTIMIZE : 0;
        s->code = pcre2_compile((PCRE2_SPTR)translated, (PCRE2_SIZE)length,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | counting, &error,
                                &offset, NULL);
        if (!s->code && error == PCRE2_ERROR_HEAP_FAILED) {
            status = no_memory();
        } else if (!s->code) {
            PCRE2_UCHAR why[128] = "unknown error";
            pcre2_get_error_message(error, why, sizeof why);
            status = mm2_fail(MM2_E_FORMAT, "the split pattern does not compile: %s, at byte %d",
                              (char *)why, (int)offset);
        }
    }
    free(translated);
    if (status)
        mm2_split_free(s);
    else
        *out = s;
    return status;
}

void mm2_split_free(mm2_split *s)
{
    if (!s)
        return;
    pcre2_code_free(s->code);
    free(s);
}

static int count_steps(pcre2_callout_block *block, void *walk)
{
    mm2_pieces *w = walk;
    int64_t at = (int64_t)block->current_position;
    *w->steps -= 1 + (at > w->seen ? at - w->seen : w->seen - at);
    w->seen = at;
    return *w->steps < 0 ? PCRE2_ERROR_CALLOUT : 0;
}

mm2_status mm2_pieces_begin(mm2_pieces *w, const mm2_split *s, const char *text, int64_t length,
                            int64_t *steps)
{
    *w = (mm2_pieces){.split = s, .text = text, .length = length, .steps = steps};
    mm2_status status = mm2_shadow(&w->shadow, text, length);
    if (status)
        return status;
    w->match = pcre2_match_data_create(1, NULL);
    w->context = pcre2_match_context_create(NULL);
    if (!w->match || !w->context)
        return mm2_fail(MM2_E_NOMEM, "no memory to split a text");
    pcre2_set_heap_limit(w->context, HEAP_LIMIT);
    pcre2_set_depth_limit(w->context, DEPTH_LIMIT);
    int64_t limit =
        length < INT32_MAX / MATCH_LIMIT_PER_BYTE ? length * MATCH_LIMIT_PER_BYTE : INT32_MAX;
    pcre2_set_match_limit(w->context, (uint32_t)limit + MATCH_LIMIT);
    if (s->counts_steps)
        pcre2_set_callout(w->context, count_steps, w);
    return MM2_OK;
}

void mm2_pieces_end(mm2_pieces *w)
{
    pcre2_match_data_free(w->match);
    pcre2_match_context_free(w->context);
    free(w->shadow);
    w->shadow = NULL;
    w->match = w->context = NULL;
}

static mm2_status too_costly(int code, int64_t at)
{
    if (code == PCRE2_ERROR_NOMEMORY)
        return mm2_fail(MM2_E_NOMEM, "no memory to split a text");
    PCRE2_UCHAR why[128] = "too many steps";
    if (code != PCRE2_ERROR_CALLOUT)
        pcre2_get_error_message(code, why, sizeof why);
    return mm2_fail(MM2_E_UNSUPPORTED,
                    "the tokenizer's split pattern is too costly for this text at byte %lld (%s); "
                    "encode it in smaller parts",
                    (long long)at, (char *)why);
}

/* Finds the match behind `at`; at the end of the text an empty one. */
static mm2_status find(mm2_pieces *w)
{
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    const char *subject = w->shadow ? w->shadow : w->text;
    int code = pcre2_match(w->split->code, (PCRE2_SPTR)subject, (PCRE2_SIZE)w->length,
                           (PCRE2_SIZE)w->at, options, w->match, w->context);
    if (code < 0 && code != PCRE2_ERROR_NOMATCH)
        return too_costly(code, w->at);
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(w->match);
    w->from = code < 0 ? w->length : (int64_t)span[0];
    w->to = code < 0 ? w->length : (int64_t)span[1];
    return MM2_OK;
}

int mm2_pieces_next(mm2_pieces *w, const char **piece, int64_t *length)
{
    if (w->at >= w->to && w->at < w->length) {
        mm2_status status = find(w);
        if (status)
            return status;
        if (w->from > w->at && w->split->keep_gaps) { /* the gap now, the match next time */
            *piece = w->text + w->at;
            *length = w->from - w->at;
            w->at = w->from;
            return 1;
        }
    }
    if (w->from >= w->to)
        return 0;
    *piece = w->text + w->from;
    *length = w->to - w->from;
    w->at = w->from = w->to;
    return 1;
}
