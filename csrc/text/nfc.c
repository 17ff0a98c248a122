/* NFC. No character below U+0300 is changed by NFC unless a character from U+0300 on follows it, so
 * such stretches are copied and only the chunks between them go through utf8proc, each with the one
 * character before it.
 *
 * A chunk is decomposed character by character, its combining marks are put in order, and utf8proc
 * composes it. The ordering is ours, a counting sort: utf8proc's own exchanges neighbours, which is
 * quadratic in a run of marks, and a text may be one run of a million.
 *
 * The buffers live as long as one call. */
#include "text/nfc.h"

#include "base/status.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum {
    FIRST_LEAD = 0xcc, /* lead byte of U+0300 */
    LONGEST = 32       /* code points that one may decompose into: 4 in Unicode 15 */
};

typedef struct codes {
    int32_t *at;
    int64_t count, capacity;
} codes;

typedef struct normalizer {
    codes chunk, sorted; /* sorted: room for the counting sort */
    char *out;
    int64_t length, capacity;
} normalizer;

static mm2_status no_memory(int64_t bytes)
{
    return mm2_fail(MM2_E_NOMEM, "no memory to normalise a text: %lld bytes needed",
                    (long long)bytes);
}

static mm2_status reserve_codes(codes *c, int64_t count)
{
    if (count <= c->capacity)
        return MM2_OK;
    int64_t capacity = count + count / 2 + 64;
    int32_t *grown = realloc(c->at, (size_t)capacity * sizeof *grown);
    if (!grown)
        return no_memory(capacity * (int64_t)sizeof *grown);
    c->at = grown;
    c->capacity = capacity;
    return MM2_OK;
}

static mm2_status reserve_out(normalizer *z, int64_t more)
{
    int64_t needed = z->length + more;
    if (needed < z->capacity)
        return MM2_OK;
    int64_t capacity = needed + needed / 4 + 64;
    char *grown = realloc(z->out, (size_t)capacity);
    if (!grown)
        return no_memory(capacity);
    z->out = grown;
    z->capacity = capacity;
    return MM2_OK;
}

static int combining_class(int32_t code)
{
    return utf8proc_get_property(code)->combining_class;
}

/* Puts marks first..end-1, all of a class other than 0, in ascending class; equal ones keep their
 * order. */
static mm2_status order_marks(normalizer *z, int64_t first, int64_t end)
{
    int64_t start[257] = {0}, count = end - first;
    int32_t *marks = z->chunk.at + first;
    int ordered = 1;
    for (int64_t i = 1; i < count && ordered; i++)
        ordered = combining_class(marks[i - 1]) <= combining_class(marks[i]);
    if (ordered)
        return MM2_OK;
    mm2_status status = reserve_codes(&z->sorted, count);
    if (status)
        return status;
    for (int64_t i = 0; i < count; i++)
        start[combining_class(marks[i]) + 1]++;
    for (int c = 1; c <= 256; c++)
        start[c] += start[c - 1];
    for (int64_t i = 0; i < count; i++)
        z->sorted.at[start[combining_class(marks[i])]++] = marks[i];
    memcpy(marks, z->sorted.at, (size_t)count * sizeof *marks);
    return MM2_OK;
}

static mm2_status normalize_chunk(normalizer *z, const uint8_t *text, int64_t length)
{
    const utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    codes *chunk = &z->chunk;
    mm2_status status;
    chunk->count = 0;
    for (int64_t i = 0; i < length;) {
        int boundary = 0, n = mm2_utf8_length(text + i, length - i);
        if ((status = reserve_codes(chunk, chunk->count + LONGEST)))
            return status;
        chunk->count += utf8proc_decompose_char(
            mm2_utf8_code(text + i, n), chunk->at + chunk->count, LONGEST, options, &boundary);
        i += n;
    }
    for (int64_t i = 0; i < chunk->count; i++) {
        int64_t first = i;
        while (i < chunk->count && combining_class(chunk->at[i]))
            i++;
        if (i - first > 1 && (status = order_marks(z, first, i)))
            return status;
    }
    int64_t count = utf8proc_normalize_utf32(chunk->at, chunk->count, options);
    if ((status = reserve_out(z, count * 4)))
        return status;
    for (int64_t i = 0; i < count; i++)
        z->length += mm2_utf8_put((uint8_t *)z->out + z->length, chunk->at[i]);
    return MM2_OK;
}

mm2_status mm2_nfc(char **out, int64_t *out_length, const char *text, int64_t length)
{
    const uint8_t *p = (const uint8_t *)text;
    normalizer z = {0};
    mm2_status status = MM2_OK;
    int64_t done = 0;
    *out = NULL;
    *out_length = length;
    while (!status) {
        int64_t from = done, to;
        while (from < length && p[from] < FIRST_LEAD)
            from++;
        if (from == length)
            break;
        for (to = from; to < length && p[to] >= 0x80 && (p[to] >= FIRST_LEAD || p[to] < 0xc0);)
            to++;
        if (from > done) /* the character before belongs to the chunk */
            for (from--; (p[from] & 0xc0) == 0x80;)
                from--;
        if (!(status = reserve_out(&z, from - done))) {
            memcpy(z.out + z.length, text + done, (size_t)(from - done));
            z.length += from - done;
            status = normalize_chunk(&z, p + from, to - from);
        }
        done = to;
    }
    if (!status && done && !(status = reserve_out(&z, length - done))) {
        memcpy(z.out + z.length, text + done, (size_t)(length - done));
        *out = z.out;
        *out_length = z.length + length - done;
    }
    if (status)
        free(z.out);
    free(z.chunk.at);
    free(z.sorted.at);
    return status;
}
