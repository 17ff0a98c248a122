/* UTF-8 by the table of well-formed sequences in the Unicode standard (table 3-7): only the second
 * byte has a range that depends on the first, the others are 80..BF. Replacement follows the
 * "maximal subpart" practice that Python, browsers and Hugging Face share, so that hostile bytes
 * give the same tokens everywhere.
 *
 * Nothing is kept between calls; buffers handed out belong to the caller. */
#include "base/utf8.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>

int mm2_utf8_length(const uint8_t *p, int64_t n)
{
    uint8_t lead = p[0], low = 0x80, high = 0xbf;
    if (lead < 0x80)
        return 1;
    int length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (lead < 0xc2 || lead > 0xf4)
        return -1;
    if (lead == 0xe0)
        low = 0xa0; /* shorter forms exist */
    else if (lead == 0xed)
        high = 0x9f; /* surrogates */
    else if (lead == 0xf0)
        low = 0x90;
    else if (lead == 0xf4)
        high = 0x8f; /* above U+10FFFF */
    for (int i = 1; i < length; i++, low = 0x80, high = 0xbf) {
        if (i == n)
            return 0;
        if (p[i] < low || p[i] > high)
            return -i;
    }
    return length;
}

int mm2_utf8_cut(const uint8_t *text, int64_t length)
{
    for (int back = length < 3 ? (int)length : 3; back > 0; back--)
        if (mm2_utf8_length(text + length - back, back) == 0)
            return back;
    return 0;
}

int32_t mm2_utf8_code(const uint8_t *p, int length)
{
    switch (length) {
    case 1:
        return p[0];
    case 2:
        return (p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    case 3:
        return (p[0] & 0x0f) << 12 | (p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    default:
        return (p[0] & 0x07) << 18 | (p[1] & 0x3f) << 12 | (p[2] & 0x3f) << 6 | (p[3] & 0x3f);
    }
}

int mm2_utf8_put(uint8_t *out, int32_t code)
{
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (uint8_t)(0xc0 | code >> 6);
        out[1] = (uint8_t)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (uint8_t)(0xe0 | code >> 12);
        out[1] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
        out[2] = (uint8_t)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | code >> 18);
    out[1] = (uint8_t)(0x80 | (code >> 12 & 0x3f));
    out[2] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
    out[3] = (uint8_t)(0x80 | (code & 0x3f));
    return 4;
}

int64_t mm2_utf8_valid(const char *text, int64_t length)
{
    const uint8_t *p = (const uint8_t *)text;
    int64_t i = 0;
    while (i < length) {
        uint64_t eight;
        if (length - i >= 8 && (memcpy(&eight, p + i, 8), !(eight & 0x8080808080808080ULL))) {
            i += 8;
            continue;
        }
        int n = mm2_utf8_length(p + i, length - i);
        if (n <= 0)
            break;
        i += n;
    }
    return i;
}

mm2_status mm2_utf8_repair(char **out, int64_t *out_length, const char *text, int64_t length)
{
    *out = NULL;
    *out_length = length;
    int64_t valid = mm2_utf8_valid(text, length), capacity, rest;
    if (valid == length)
        return MM2_OK;
    if (__builtin_mul_overflow(length - valid, 3, &rest) ||
        __builtin_add_overflow(valid, rest, &capacity)) /* one bad byte becomes three */
        return mm2_fail(MM2_E_ARG, "a text of %lld bytes is too long", (long long)length);
    char *buffer = malloc((size_t)capacity);
    if (!buffer)
        return mm2_fail(MM2_E_NOMEM, "no memory to repair the UTF-8 of a text: %lld bytes needed",
                        (long long)capacity);
    int64_t from = 0, to = 0;
    for (;;) {
        memcpy(buffer + to, text + from, (size_t)valid);
        from += valid;
        to += valid;
        if (from == length)
            break;
        int bad = mm2_utf8_length((const uint8_t *)text + from, length - from);
        from = bad ? from - bad : length;
        to += mm2_utf8_put((uint8_t *)buffer + to, 0xfffd);
        valid = mm2_utf8_valid(text + from, length - from);
    }
    *out = buffer;
    *out_length = to;
    return MM2_OK;
}

int32_t mm2_text_complete(const char *bytes, int32_t len)
{
    if (len < 0 || (!bytes && len))
        return mm2_fail(MM2_E_ARG, "bytes must be given and len at least 0, not %d", len);
    return len - mm2_utf8_cut((const uint8_t *)bytes, len);
}
