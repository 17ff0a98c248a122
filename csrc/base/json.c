/* The pull reader: a cursor over bytes in memory. Every step looks at `end` first; a document that
 * stops early fails like any other that lacks what comes next.
 *
 * Members are stepped through by mm2_json_next, so the caller's own loops are the grammar of its
 * document, and what the caller does not expect is refused where it stands. */
#include "base/json.h"

#include "base/status.h"
#include "base/utf8.h"

#include <string.h>

static mm2_status json_fail(const mm2_json *j, const char *expected)
{
    const char *found = j->at < j->end ? j->at : "the end";
    int length = j->at < j->end ? mm2_utf8_length((const uint8_t *)j->at, j->end - j->at) : 7;
    int line = 1; /* what people edit by hand has lines, and what programs write has bytes */
    for (const char *p = j->start; p < j->at; p++)
        line += *p == '\n';
    return mm2_fail(MM2_E_FORMAT, "%s: line %d, JSON byte %lld: expected %s, found %.*s", j->where,
                    line, (long long)(j->at - j->start), expected, length < 1 ? 1 : length, found);
}

void mm2_json_begin(mm2_json *j, const char *where, const void *text, int64_t length)
{
    const char *start = length ? text : ""; /* NULL may not even be added 0 to */
    *j = (mm2_json){.start = start, .at = start, .end = start + length, .where = where};
}

char mm2_json_peek(mm2_json *j)
{
    while (j->at < j->end && (*j->at == ' ' || *j->at == '\n' || *j->at == '\t' || *j->at == '\r'))
        j->at++;
    return j->at < j->end ? *j->at : 0;
}

mm2_status mm2_json_end(mm2_json *j)
{
    mm2_json_peek(j);
    return j->at == j->end ? MM2_OK : json_fail(j, "nothing more");
}

int32_t mm2_json_next(mm2_json *j, char open, int *begun)
{
    char close = open == '{' ? '}' : ']', c = mm2_json_peek(j);
    if (!*begun) {
        if (c != open)
            return json_fail(j, open == '{' ? "an object" : "an array");
        j->at++;
        *begun = 1;
        if (mm2_json_peek(j) != close)
            return 1;
    } else if (c == ',') {
        j->at++;
        return 1;
    } else if (c != close) {
        return json_fail(j, open == '{' ? "a comma or }" : "a comma or ]");
    }
    j->at++;
    return 0;
}

void mm2_text_clean(char *out, int32_t cap, const char *text, int64_t length)
{
    const char *end = text + length;
    int32_t used = 0;
    while (text < end) {
        int n = mm2_utf8_length((const uint8_t *)text, end - text);
        int bad = n <= 0 || (uint8_t)*text < 0x20 || *text == 0x7f;
        if (used + (bad ? 1 : n) >= cap)
            break;
        if (bad)
            out[used++] = '?';
        else
            memcpy(out + used, text, (size_t)n);
        used += bad ? 0 : n;
        text += n > 0 ? n : 1;
    }
    out[used] = 0;
}

/* Four hexadecimal digits, or -1. */
static int32_t hex4(const char **at, const char *end)
{
    int32_t value = 0;
    if (end - *at < 4)
        return -1;
    for (int i = 0; i < 4; i++, ++*at) {
        char c = **at;
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

int32_t mm2_json_unescape(const char **at, const char *end)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (*at == end)
        return -1;
    char c = *(*at)++;
    const char *simple = c ? strchr(from, c) : NULL;
    int32_t code = simple ? to[simple - from] : c == 'u' ? hex4(at, end) : -1;
    if (code < 0xd800 || code >= 0xe000)
        return code;
    if (code >= 0xdc00 || end - *at < 2 || (*at)[0] != '\\' || (*at)[1] != 'u')
        return -1;
    *at += 2;
    int32_t low = hex4(at, end);
    return low < 0xdc00 || low > 0xdfff ? -1 : 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
}

/* Bytes from p on that stand for themselves and are ASCII. */
static int64_t plain_run(const char *p, const char *end)
{
    const char *first = p;
    while (p < end && (uint8_t)*p >= 0x20 && (uint8_t)*p < 0x80 && *p != '"' && *p != '\\')
        p++;
    return p - first;
}

mm2_status mm2_json_string(mm2_json *j, char *out, int32_t cap)
{
    if (mm2_json_peek(j) != '"')
        return json_fail(j, "a string");
    j->at++;
    int64_t used = 0;
    while (j->at < j->end && *j->at != '"') {
        char decoded[4];
        const char *piece = j->at;
        int64_t n = plain_run(piece, j->end);
        if (!n && *piece == '\\') {
            j->at++;
            int32_t code = mm2_json_unescape(&j->at, j->end);
            n = code > 0 ? mm2_utf8_put((uint8_t *)decoded, code) : -1;
            piece = decoded;
        } else {
            if (!n && (uint8_t)*piece >= 0x80)
                n = mm2_utf8_length((const uint8_t *)piece, j->end - piece);
            j->at += n > 0 ? n : 0;
        }
        if (n <= 0)
            return json_fail(j, "a character or an escape of valid UTF-8 other than NUL");
        if (out && used + n >= cap)
            return mm2_fail(MM2_E_FORMAT, "%s: JSON byte %lld: the string is longer than %d bytes",
                            j->where, (long long)(j->at - j->start), cap - 1);
        if (out)
            memcpy(out + used, piece, (size_t)n);
        used += n;
    }
    if (j->at == j->end)
        return json_fail(j, "a closing quote");
    j->at++;
    if (out)
        out[used] = 0;
    return MM2_OK;
}

mm2_status mm2_json_key(mm2_json *j, char *out, int32_t cap)
{
    mm2_status status = mm2_json_string(j, out, cap);
    if (status)
        return status;
    if (mm2_json_peek(j) != ':')
        return json_fail(j, "a colon");
    j->at++;
    return MM2_OK;
}

mm2_status mm2_json_integer(mm2_json *j, int64_t *out)
{
    char c = mm2_json_peek(j);
    if (c < '0' || c > '9')
        return json_fail(j, "a whole number, 0 or more");
    int64_t value = 0;
    const char *first = j->at;
    for (; j->at < j->end && *j->at >= '0' && *j->at <= '9'; j->at++)
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, *j->at - '0', &value))
            return json_fail(j, "a number below 2^63");
    if ((*first == '0' && j->at - first > 1) ||
        (j->at < j->end && (*j->at == '.' || *j->at == 'e' || *j->at == 'E')))
        return json_fail(j, "the end of a whole number");
    *out = value;
    return MM2_OK;
}

static const char *digits(const char *p, const char *end)
{
    while (p < end && *p >= '0' && *p <= '9')
        p++;
    return p;
}

/* The end of the number at p, or NULL. */
static const char *number_end(const char *p, const char *end)
{
    p += p < end && *p == '-';
    const char *first = p;
    p = digits(p, end);
    if (p == first || (*first == '0' && p - first > 1))
        return NULL;
    if (p < end && *p == '.') {
        first = ++p;
        p = digits(p, end);
        if (p == first)
            return NULL;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        p += p < end && (*p == '-' || *p == '+');
        first = p;
        p = digits(p, end);
        if (p == first)
            return NULL;
    }
    return p;
}

int32_t mm2_json_scalar(mm2_json *j, const char **text)
{
    static const char *const words[] = {"true", "false", "null", "NaN", "Infinity", "-Infinity"};
    mm2_json_peek(j);
    *text = j->at;
    for (int i = 0; i < 6; i++) {
        size_t length = strlen(words[i]);
        if ((size_t)(j->end - j->at) >= length && !memcmp(j->at, words[i], length)) {
            j->at += length;
            return (int32_t)length;
        }
    }
    const char *end = number_end(j->at, j->end);
    if (!end || end - j->at > INT32_MAX)
        return json_fail(j, "a value");
    j->at = end;
    return (int32_t)(end - *text);
}

mm2_status mm2_json_skip(mm2_json *j)
{
    char open[MM2_JSON_DEPTH];
    int begun[MM2_JSON_DEPTH];
    int depth = 0;
    do {
        char c = mm2_json_peek(j);
        mm2_status status = MM2_OK;
        if (c == '{' || c == '[') {
            if (depth == MM2_JSON_DEPTH)
                return json_fail(j, "at most 64 levels of nesting");
            open[depth] = c;
            begun[depth++] = 0;
        } else {
            const char *text;
            int32_t length = c == '"' ? mm2_json_string(j, NULL, 0) : mm2_json_scalar(j, &text);
            status = length < 0 ? length : MM2_OK;
        }
        /* Close what is complete, then stand in front of the next value. */
        while (!status && depth) {
            int32_t more = mm2_json_next(j, open[depth - 1], &begun[depth - 1]);
            if (more < 0)
                return more;
            if (more)
                break;
            depth--;
        }
        if (!status && depth && open[depth - 1] == '{')
            status = mm2_json_key(j, NULL, 0);
        if (status)
            return status;
    } while (depth);
    return MM2_OK;
}
