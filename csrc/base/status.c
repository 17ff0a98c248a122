/* The sentence of the last failure lives in thread-local storage, 1 KiB a thread, so that a failing
 * call allocates nothing (it may be failing for want of memory) and two threads never mix their
 * sentences.
 *
 * The formatter is ours because the library may not depend on the host's locale ("1,5") and imports
 * nothing of stdio. */
#include "base/status.h"

#include <stdarg.h>
#include <string.h>

enum { SENTENCE = 1024 };

static _Thread_local char sentence[SENTENCE];

typedef struct writer {
    char *out;
    int cap, length;
} writer;

static void put(writer *w, char c)
{
    if (w->length + 1 < w->cap)
        w->out[w->length] = c;
    w->length++;
}

static void put_text(writer *w, const char *s, int limit)
{
    for (int i = 0; (limit < 0 || i < limit) && s[i]; i++)
        put(w, s[i]);
}

static void put_unsigned(writer *w, unsigned long long value)
{
    char digits[20];
    int n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        put(w, digits[--n]);
}

static void put_signed(writer *w, long long value)
{
    if (value < 0)
        put(w, '-');
    put_unsigned(w, value < 0 ? 0ULL - (unsigned long long)value : (unsigned long long)value);
}

/* Six significant digits, trailing zeros dropped, an exponent outside 1e-5..1e15: enough for a
 * sentence. */
static void put_double(writer *w, double value)
{
    if (value != value) {
        put_text(w, "nan", -1);
        return;
    }
    if (value < 0) {
        put(w, '-');
        value = -value;
    }
    if (value > 1.7976931348623157e308) {
        put_text(w, "inf", -1);
        return;
    }
    int exponent = 0;
    if (value != 0) {
        while (value >= 10) {
            value /= 10;
            exponent++;
        }
        while (value < 1) {
            value *= 10;
            exponent--;
        }
    }
    unsigned long long digits =
        (unsigned long long)(value * 100000 + 0.5); /* d.ddddd as six digits */
    if (digits >= 1000000) {
        digits /= 10;
        exponent++;
    }
    int shown = exponent, scientific = exponent < -5 || exponent > 15;
    if (scientific)
        shown = 0;
    char text[6];
    for (int i = 5; i >= 0; i--, digits /= 10)
        text[i] = (char)('0' + digits % 10);
    int last = 5;
    while (last > 0 && text[last] == '0')
        last--;
    if (shown < 0) {
        put_text(w, "0.", -1);
        for (int i = -1; i > shown; i--)
            put(w, '0');
    }
    for (int i = 0; i <= last || i <= shown; i++) {
        if (i == shown + 1 && shown >= 0)
            put(w, '.');
        put(w, i <= 5 ? text[i] : '0');
    }
    if (scientific) {
        put(w, 'e');
        put_signed(w, exponent);
    }
}

static int format_list(char *out, int cap, const char *format, va_list list)
{
    writer w = {out, cap, 0};
    for (const char *f = format; *f; f++) {
        if (*f != '%') {
            put(&w, *f);
            continue;
        }
        f++;
        int limit = -1, longs = 0;
        if (f[0] == '.' && f[1] == '*') {
            limit = va_arg(list, int);
            limit = limit < 0 ? 0 : limit;
            f += 2;
        }
        while (*f == 'l') {
            longs++;
            f++;
        }
        switch (*f) {
        case 's': {
            const char *s = va_arg(list, const char *);
            put_text(&w, s ? s : "(null)", limit);
            break;
        }
        case 'd':
            put_signed(&w, longs ? va_arg(list, long long) : va_arg(list, int));
            break;
        case 'u':
            put_unsigned(&w, longs ? va_arg(list, unsigned long long) : va_arg(list, unsigned));
            break;
        case 'g':
            put_double(&w, va_arg(list, double));
            break;
        default:
            put(&w, '%');
        }
    }
    if (cap > 0)
        out[w.length < cap ? w.length : cap - 1] = 0;
    return w.length;
}

int mm2_format(char *out, int cap, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int length = format_list(out, cap, format, list);
    va_end(list);
    return length;
}

mm2_status mm2_fail(mm2_status code, const char *format, ...)
{
    char text[SENTENCE]; /* the arguments may point into the old sentence */
    va_list list;
    va_start(list, format);
    format_list(text, SENTENCE, format, list);
    va_end(list);
    memcpy(sentence, text, SENTENCE);
    return code;
}

mm2_status mm2_fail_in(mm2_status code, const char *where)
{
    return mm2_fail(code, "%s: %s", where, sentence);
}

const char *mm2_status_text(void)
{
    return sentence;
}
