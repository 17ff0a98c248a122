/* One pass over a JSON value that checks it and writes it in the chat format's spelling. Brackets
 * that are open lie on a stack of fixed depth, so nesting costs no recursion.
 *
 * The pull reader of base/ reads documents of ours and of files, and says in a sentence what is
 * wrong with them. Here the text may come from a model, which is wrong often and without anybody
 * wanting a sentence: it is then no JSON but a text. */
#include "text/json_form.h"

#include "base/json.h"
#include "base/utf8.h"

#include <string.h>

int mm2_view_is(mm2_view v, const char *text)
{
    return v.length == (int64_t)strlen(text) && !memcmp(v.begin, text, (size_t)v.length);
}

static int is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

mm2_view mm2_view_trim(mm2_view v)
{
    while (v.length && is_space(*v.begin)) {
        v.begin++;
        v.length--;
    }
    while (v.length && is_space(v.begin[v.length - 1]))
        v.length--;
    return v;
}

/* One character below 0x20, a quote or a backslash, escaped. Returns its length. */
static int escape(char *out, uint8_t c)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt", hex[] = "0123456789abcdef";
    const char *simple = c ? strchr(from, c) : NULL;
    out[0] = '\\';
    if (simple) {
        out[1] = to[simple - from];
        return 2;
    }
    memcpy(out + 1, "u00", 3);
    out[4] = hex[c >> 4];
    out[5] = hex[c & 15];
    return 6;
}

int64_t mm2_json_escape(char *out, mm2_view text)
{
    char *begin = out;
    for (int64_t i = 0; i < text.length; i++) {
        uint8_t c = (uint8_t)text.begin[i];
        if (c < 0x20 || c == '"' || c == '\\')
            out += escape(out, c);
        else
            *out++ = (char)c;
    }
    return out - begin;
}

static int64_t digits(mm2_view v, int64_t i)
{
    while (i < v.length && v.begin[i] >= '0' && v.begin[i] <= '9')
        i++;
    return i;
}

int64_t mm2_json_number(mm2_view v)
{
    int64_t i = v.length && *v.begin == '-', first = i;
    i = digits(v, i);
    if (i == first || (v.begin[first] == '0' && i - first > 1))
        return 0;
    if (i < v.length && v.begin[i] == '.') {
        first = i + 1;
        i = digits(v, first);
        if (i == first)
            return 0;
    }
    if (i < v.length && (v.begin[i] == 'e' || v.begin[i] == 'E')) {
        i++;
        i += i < v.length && (v.begin[i] == '-' || v.begin[i] == '+');
        first = i;
        i = digits(v, first);
        if (i == first)
            return 0;
    }
    return i;
}

typedef struct form {
    const char *at, *end;
    char *out;
    int python;
} form;

static char peek(form *f)
{
    while (f->at < f->end && is_space(*f->at))
        f->at++;
    return f->at < f->end ? *f->at : 0;
}

/* The escape behind a backslash, as the character that it stands for. */
static int put_escape(form *f)
{
    char text[4];
    int32_t code = mm2_json_unescape(&f->at, f->end);
    if (code < 0)
        return 0;
    f->out += mm2_json_escape(f->out, (mm2_view){text, mm2_utf8_put((uint8_t *)text, code)});
    return 1;
}

static int put_string(form *f)
{
    if (peek(f) != '"')
        return 0;
    *f->out++ = *f->at++;
    while (f->at < f->end && *f->at != '"') {
        char c = *f->at++;
        if ((uint8_t)c < 0x20)
            return 0;
        if (c != '\\')
            *f->out++ = c;
        else if (!put_escape(f))
            return 0;
    }
    if (f->at == f->end)
        return 0;
    *f->out++ = *f->at++;
    return 1;
}

static int put_scalar(form *f)
{
    static const char *const words[] = {"true", "false", "null", "NaN", "Infinity", "-Infinity"};
    mm2_view rest = {f->at, f->end - f->at};
    int64_t n = mm2_json_number(rest);
    for (int i = 0; i < (f->python ? 6 : 3) && !n; i++) {
        int64_t length = (int64_t)strlen(words[i]);
        if (rest.length >= length && !memcmp(rest.begin, words[i], (size_t)length))
            n = length;
    }
    memcpy(f->out, f->at, (size_t)n);
    f->out += n;
    f->at += n;
    return n > 0;
}

static int put_key(form *f)
{
    if (!put_string(f) || peek(f) != ':')
        return 0;
    f->at++;
    memcpy(f->out, ": ", 2);
    f->out += 2;
    return 1;
}

int64_t mm2_json_form(char *out, mm2_view json, int python)
{
    form f = {json.begin, json.begin + json.length, out, python};
    char closing[MM2_JSON_DEPTH];
    int depth = 0;
    if (mm2_utf8_valid(json.begin, json.length) != json.length)
        return -1;
    do {
        char c = peek(&f);
        int begins = c == '{' || c == '[';
        if (begins) {
            if (depth == MM2_JSON_DEPTH)
                return -1;
            closing[depth++] = c == '{' ? '}' : ']';
            *f.out++ = c;
            f.at++;
        } else if (c == '"' ? !put_string(&f) : !put_scalar(&f)) {
            return -1;
        }
        /* Close what is complete, then stand in front of the next value. */
        for (; depth; begins = 0, depth--) {
            c = peek(&f);
            if (c == closing[depth - 1]) {
                *f.out++ = c;
                f.at++;
                continue;
            }
            if (!begins) {
                if (c != ',')
                    return -1;
                f.at++;
                memcpy(f.out, ", ", 2);
                f.out += 2;
            }
            if (closing[depth - 1] == '}' && !put_key(&f))
                return -1;
            break;
        }
    } while (depth);
    return peek(&f) || f.at != f.end ? -1 : f.out - out;
}
