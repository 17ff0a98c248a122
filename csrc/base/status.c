/* The sentence of the last failure lives in thread-local storage, 1 KiB a thread, so that a failing
 * call allocates nothing (it may be failing for want of memory) and two threads never mix their
 * sentences.
 *
 * The formatter is ours because the library may not depend on the host's locale ("1,5") and imports
 * nothing of stdio.
 *
 * Sentences end up in terminals and logs, and much in them comes out of files: in a sentence, what
 * a %s inserts keeps only whole printable characters. Of the rest every byte becomes \xNN, and the
 * middle of a very long text is left out, so that what stands behind it is still there. */
#include "base/status.h"

#include "base/utf8.h"

#include <stdarg.h>
#include <string.h>

enum {
    SENTENCE = 1024,
    SHOWN = 240 /* bytes at either end of an inserted text that is longer than both */
};

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

/* Bytes of the character at p, of n that are there, if it is one that shows; else 0: controls, and
 * what is invisible or changes the direction of writing. */
static int printable(const uint8_t *p, int64_t n)
{
    static const int32_t hidden[][2] = {{0, 0x1f},        {0x7f, 0x9f},      {0xad, 0xad},
                                        {0x61c, 0x61c},   {0x180e, 0x180e},  {0x200b, 0x200f},
                                        {0x2028, 0x202e}, {0x2060, 0x206f},  {0xfeff, 0xfeff},
                                        {0xfff0, 0xfffb}, {0xe0000, 0xe0fff}};
    int length = mm2_utf8_length(p, n);
    if (length < 1)
        return 0;
    int32_t code = mm2_utf8_code(p, length);
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        if (code >= hidden[i][0] && code <= hidden[i][1])
            return 0;
    return length;
}

static void put_clean(writer *w, const char *s, int64_t length)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *p = (const uint8_t *)s, *end = p + length;
    while (p < end) {
        int n = printable(p, end - p);
        for (int i = 0; i < n; i++)
            put(w, (char)p[i]);
        if (!n) {
            put_text(w, "\\x", -1);
            put(w, digits[*p >> 4]);
            put(w, digits[*p & 15]);
        }
        p += n ? n : 1;
    }
}

/* What a file or a caller has named. A limit may cut a character: its first bytes go. */
static void put_foreign(writer *w, const char *s, int limit)
{
    int64_t length = limit < 0 ? (int64_t)strlen(s) : (int64_t)strnlen(s, (size_t)limit);
    if (length == limit)
        length -= mm2_utf8_cut((const uint8_t *)s, length);
    if (length <= 2 * SHOWN) {
        put_clean(w, s, length);
        return;
    }
    const char *last = s + length - SHOWN;
    while ((*last & 0xc0) == 0x80 && last < s + length)
        last++;
    put_clean(w, s, SHOWN - mm2_utf8_cut((const uint8_t *)s, SHOWN));
    put_text(w, "...", -1);
    put_clean(w, last, s + length - last);
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

typedef void (*insert)(writer *w, const char *text, int limit);

static int format_list(char *out, int cap, insert put_string, const char *format, va_list list)
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
            put_string(&w, s ? s : "(null)", limit);
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
    int length = format_list(out, cap, put_text, format, list);
    va_end(list);
    return length;
}

/* Makes it the thread's sentence. One that did not fit ends with a whole character and dots. */
static void keep(char *text, int length)
{
    if (length >= SENTENCE) {
        int fits = SENTENCE - 4;
        strcpy(text + fits - mm2_utf8_cut((const uint8_t *)text, fits), "...");
    }
    memcpy(sentence, text, SENTENCE);
}

mm2_status mm2_fail(mm2_status code, const char *format, ...)
{
    char text[SENTENCE]; /* the arguments may point into the old sentence */
    va_list list;
    va_start(list, format);
    int length = format_list(text, SENTENCE, put_foreign, format, list);
    va_end(list);
    keep(text, length);
    return code;
}

mm2_status mm2_fail_in(mm2_status code, const char *where)
{
    char text[SENTENCE];
    writer w = {text, SENTENCE, 0};
    put_foreign(&w, where, -1);
    put_text(&w, ": ", -1);
    put_text(&w, sentence, -1);
    text[w.length < SENTENCE ? w.length : SENTENCE - 1] = 0;
    keep(text, w.length);
    return code;
}

const char *mm2_status_text(void)
{
    return sentence;
}
