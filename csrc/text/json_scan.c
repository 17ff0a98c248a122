/* A tokenizer.json is 99 % two members, 200,000 words with their ids and as many merges; a tree of
 * them costs five times the time of reading them once, and 60 MB. So they are cut out: a walk over
 * brackets and strings finds where they lie, the rest goes to jansson, and the reader below takes
 * the two strictly, token by token. A document that the walk misreads is one that jansson or the
 * reader refuses: both see every byte of their part.
 *
 * No recursion, no allocation but the copy of the rest. */
#include "text/json_scan.h"

#include "base/status.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

static int is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* Past the closing quote of the string whose opening quote is at p, or the end. */
static const char *skip_string(const char *p, const char *end)
{
    for (p++; p < end && *p != '"'; p++)
        if (*p == '\\' && end - p > 1)
            p++;
    return p < end ? p + 1 : end;
}

static int is_key(const char *begin, const char *end, const char *name)
{
    size_t n = strlen(name);
    return (size_t)(end - begin) == n + 2 && !memcmp(begin + 1, name, n);
}

/* The container at p. Returns 0 if it does not end. */
static int measure(mm2_json_span *span, const char *p, const char *end)
{
    int64_t depth = 0;
    span->begin = p;
    span->commas = 0;
    while (p < end) {
        if (*p == '"') {
            p = skip_string(p, end);
            continue;
        }
        if (*p == '{' || *p == '[')
            depth++;
        else if (*p == ',' && depth == 1)
            span->commas++;
        else if ((*p == '}' || *p == ']') && --depth == 0) {
            span->end = p + 1;
            return 1;
        }
        p++;
    }
    return 0;
}

mm2_status mm2_json_cut(const char *json, int64_t length, mm2_json_span *vocab,
                        mm2_json_span *merges, char **rest, int64_t *rest_length)
{
    const char *p = json, *end = json + length, *kept = json;
    int64_t depth = 0, n = 0;
    int in_model = 0;
    *vocab = *merges = (mm2_json_span){0};
    *rest = malloc((size_t)length + 1);
    if (!*rest)
        return mm2_fail(MM2_E_NOMEM, "no memory for %lld bytes of JSON", (long long)length);
    while (p < end) {
        if (*p == '{' || *p == '[')
            depth++;
        else if (*p == '}' || *p == ']')
            depth--;
        if (*p != '"') {
            p++;
            continue;
        }
        const char *begin = p, *key_end = p = skip_string(p, end);
        while (p < end && is_space(*p))
            p++;
        if (p == end || *p != ':')
            continue;
        for (p++; p < end && is_space(*p);)
            p++;
        if (depth == 1)
            in_model = is_key(begin, key_end, "model");
        mm2_json_span *span = depth != 2 || !in_model            ? NULL
                              : is_key(begin, key_end, "vocab")  ? vocab
                              : is_key(begin, key_end, "merges") ? merges
                                                                 : NULL;
        if (!span || span->begin || p == end || (*p != '{' && *p != '['))
            continue;
        if (!measure(span, p, end)) {
            free(*rest);
            *rest = NULL;
            return mm2_fail(MM2_E_FORMAT, "the JSON ends inside model.%s",
                            span == vocab ? "vocab" : "merges");
        }
        memcpy(*rest + n, kept, (size_t)(p - kept));
        n += p - kept;
        (*rest)[n++] = '0';
        p = kept = span->end;
    }
    memcpy(*rest + n, kept, (size_t)(end - kept));
    *rest_length = n + (end - kept);
    return MM2_OK;
}

void mm2_json_scan_begin(mm2_json_scan *s, const char *document, const mm2_json_span *span)
{
    s->document = document;
    s->p = span->begin;
    s->end = span->end;
}

static mm2_status expected(const mm2_json_scan *s, const char *what)
{
    return mm2_fail(MM2_E_FORMAT, "damaged JSON at byte %lld: expected %s",
                    (long long)(s->p - s->document), what);
}

int mm2_json_scan_take(mm2_json_scan *s, char c)
{
    while (s->p < s->end && is_space(*s->p))
        s->p++;
    if (s->p == s->end || *s->p != c)
        return 0;
    s->p++;
    return 1;
}

mm2_status mm2_json_scan_expect(mm2_json_scan *s, char c)
{
    char what[4] = {'\'', c, '\'', 0};
    return mm2_json_scan_take(s, c) ? MM2_OK : expected(s, what);
}

mm2_status mm2_json_scan_finish(mm2_json_scan *s)
{
    return s->p == s->end ? MM2_OK : expected(s, "the end of the value");
}

/* Four hexadecimal digits at p, or -1. */
static int32_t hex4(const mm2_json_scan *s)
{
    int32_t value = 0;
    if (s->end - s->p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = s->p[i], lower = (char)(c | 0x20);
        if (c >= '0' && c <= '9')
            value = value << 4 | (c - '0');
        else if (lower >= 'a' && lower <= 'f')
            value = value << 4 | (lower - 'a' + 10);
        else
            return -1;
    }
    return value;
}

/* What follows a backslash, written to out: 1..4 bytes, or 0 if it is no escape. NUL and lone
 * surrogates are none here: no token is spelled with them. */
static int unescape(mm2_json_scan *s, char *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = s->p < s->end ? *s->p++ : 0;
    const char *simple = c ? strchr(from, c) : NULL;
    if (simple) {
        *out = to[simple - from];
        return 1;
    }
    int32_t low, code = c == 'u' ? hex4(s) : -1;
    if (code <= 0 || (code >= 0xdc00 && code <= 0xdfff))
        return 0;
    s->p += 4;
    if (code >= 0xd800 && code <= 0xdbff) {
        if (s->end - s->p < 6 || s->p[0] != '\\' || s->p[1] != 'u')
            return 0;
        s->p += 2;
        low = hex4(s);
        if (low < 0xdc00 || low > 0xdfff)
            return 0;
        s->p += 4;
        code = 0x10000 + ((code - 0xd800) << 10 | (low - 0xdc00));
    }
    return mm2_utf8_put((uint8_t *)out, code);
}

mm2_status mm2_json_scan_string(mm2_json_scan *s, const char **text, int64_t *length)
{
    if (!mm2_json_scan_take(s, '"'))
        return expected(s, "a string");
    const char *begin = s->p;
    int64_t n = 0;
    while (s->p < s->end && *s->p != '"' && *s->p != '\\' && (uint8_t)*s->p >= 0x20)
        s->p++;
    *text = begin;
    *length = s->p - begin;
    if (s->p < s->end && *s->p == '"') { /* no escapes */
        s->p++;
        return *length <= MM2_JSON_STRING ? MM2_OK : expected(s, "a string of at most 2048 bytes");
    }
    s->p = begin;
    while (s->p < s->end && *s->p != '"') {
        if (n >= MM2_JSON_STRING)
            return expected(s, "a string of at most 2048 bytes");
        char c = *s->p++;
        int written = 1;
        s->scratch[n] = c;
        if (c == '\\')
            written = unescape(s, s->scratch + n);
        if (!written || (uint8_t)c < 0x20)
            return expected(s, "a valid character or escape in a string");
        n += written;
    }
    *text = s->scratch;
    *length = n;
    return mm2_json_scan_take(s, '"') ? MM2_OK : expected(s, "the end of a string");
}

mm2_status mm2_json_scan_integer(mm2_json_scan *s, int64_t *value)
{
    int negative = mm2_json_scan_take(s, '-');
    const char *first = s->p;
    *value = 0;
    if (!negative)
        while (s->p < s->end && is_space(*s->p))
            first = ++s->p;
    for (; s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++)
        if (__builtin_mul_overflow(*value, 10, value) ||
            __builtin_add_overflow(*value, *s->p - '0', value))
            return expected(s, "an integer below 2^63");
    if (s->p == first || (*first == '0' && s->p - first > 1) ||
        (s->p < s->end && (*s->p == '.' || *s->p == 'e' || *s->p == 'E')))
        return expected(s, "an integer");
    *value = negative ? -*value : *value;
    return MM2_OK;
}
