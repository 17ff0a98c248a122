/* Which characters are letters depends on the Unicode version. The tokenizers that defined the ids
 * use Unicode 16; PCRE2 brings its own, 14 in Debian 12, and would take the 9485 letters, marks and
 * numbers that came since for punctuation. So the pattern runs on a shadow of the text in which
 * they are replaced by old characters of the same category and the same number of bytes: what it
 * finds holds for the text itself. Nearly all texts have none of them and are not copied.
 *
 * The table lists the code points whose \p{Lu} \p{Ll} \p{Lm} \p{Lo} \p{M} or \p{N} differs between
 * Unicode 14 and 16. With a newer PCRE2 it changes nothing. */
#include "text/shadow.h"

#include "base/status.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { /* the old characters, of three bytes and of four */
       UPPER_3 = 0x1e00,
       LOWER_3 = 0x1e01,
       MARK_3 = 0x20d0,
       UPPER = 0x10400,
       LOWER = 0x10428,
       MODIFIER = 0x16f93,
       LETTER = 0x20000,
       MARK = 0x1d165,
       NUMBER = 0x1d7ce
};

typedef struct newer {
    int32_t first, last, stand_in;
} newer;

// clang-format off
static const newer table[] = {
    {0x00897, 0x00897, MARK_3}, {0x00cf3, 0x00cf3, MARK_3}, {0x00ece, 0x00ece, MARK_3},
    {0x01c89, 0x01c89, UPPER_3}, {0x01c8a, 0x01c8a, LOWER_3}, {0x0a7cb, 0x0a7cc, UPPER_3},
    {0x0a7cd, 0x0a7cd, LOWER_3}, {0x0a7da, 0x0a7da, UPPER_3}, {0x0a7db, 0x0a7db, LOWER_3},
    {0x0a7dc, 0x0a7dc, UPPER_3}, {0x105c0, 0x105f3, LETTER}, {0x10d40, 0x10d49, NUMBER},
    {0x10d4a, 0x10d4d, LETTER}, {0x10d4e, 0x10d4e, MODIFIER}, {0x10d4f, 0x10d4f, LETTER},
    {0x10d50, 0x10d65, UPPER}, {0x10d69, 0x10d6d, MARK}, {0x10d6f, 0x10d6f, MODIFIER},
    {0x10d70, 0x10d85, LOWER}, {0x10ec2, 0x10ec4, LETTER}, {0x10efc, 0x10eff, MARK},
    {0x1123f, 0x11240, LETTER}, {0x11241, 0x11241, MARK}, {0x11380, 0x11389, LETTER},
    {0x1138b, 0x1138b, LETTER}, {0x1138e, 0x1138e, LETTER}, {0x11390, 0x113b5, LETTER},
    {0x113b7, 0x113b7, LETTER}, {0x113b8, 0x113c0, MARK}, {0x113c2, 0x113c2, MARK},
    {0x113c5, 0x113c5, MARK}, {0x113c7, 0x113ca, MARK}, {0x113cc, 0x113d0, MARK},
    {0x113d1, 0x113d1, LETTER}, {0x113d2, 0x113d2, MARK}, {0x113d3, 0x113d3, LETTER},
    {0x113e1, 0x113e2, MARK}, {0x116d0, 0x116e3, NUMBER}, {0x11bc0, 0x11be0, LETTER},
    {0x11bf0, 0x11bf9, NUMBER}, {0x11f00, 0x11f01, MARK}, {0x11f02, 0x11f02, LETTER},
    {0x11f03, 0x11f03, MARK}, {0x11f04, 0x11f10, LETTER}, {0x11f12, 0x11f33, LETTER},
    {0x11f34, 0x11f3a, MARK}, {0x11f3e, 0x11f42, MARK}, {0x11f50, 0x11f59, NUMBER},
    {0x11f5a, 0x11f5a, MARK}, {0x1342f, 0x1342f, LETTER}, {0x13440, 0x13440, MARK},
    {0x13441, 0x13446, LETTER}, {0x13447, 0x13455, MARK}, {0x13460, 0x143fa, LETTER},
    {0x16100, 0x1611d, LETTER}, {0x1611e, 0x1612f, MARK}, {0x16130, 0x16139, NUMBER},
    {0x16d40, 0x16d42, MODIFIER}, {0x16d43, 0x16d6a, LETTER}, {0x16d6b, 0x16d6c, MODIFIER},
    {0x16d70, 0x16d79, NUMBER}, {0x18cff, 0x18cff, LETTER}, {0x1b132, 0x1b132, LETTER},
    {0x1b155, 0x1b155, LETTER}, {0x1ccf0, 0x1ccf9, NUMBER}, {0x1d2c0, 0x1d2d3, NUMBER},
    {0x1df25, 0x1df2a, LOWER}, {0x1e030, 0x1e06d, MODIFIER}, {0x1e08f, 0x1e08f, MARK},
    {0x1e4d0, 0x1e4ea, LETTER}, {0x1e4eb, 0x1e4eb, MODIFIER}, {0x1e4ec, 0x1e4ef, MARK},
    {0x1e4f0, 0x1e4f9, NUMBER}, {0x1e5d0, 0x1e5ed, LETTER}, {0x1e5ee, 0x1e5ef, MARK},
    {0x1e5f0, 0x1e5f0, LETTER}, {0x1e5f1, 0x1e5fa, NUMBER}, {0x2b739, 0x2b739, LETTER},
    {0x2ebf0, 0x2ee5d, LETTER}, {0x31350, 0x323af, LETTER},
};
// clang-format on

/* The old character for a new one, or 0. */
static int32_t stand_in(int32_t code)
{
    int low = 0, high = (int)(sizeof table / sizeof *table);
    while (low < high) {
        int middle = (low + high) / 2;
        if (table[middle].last < code)
            low = middle + 1;
        else
            high = middle;
    }
    int found = low < (int)(sizeof table / sizeof *table) && table[low].first <= code;
    return found ? table[low].stand_in : 0;
}

mm2_status mm2_shadow(char **out, const char *text, int64_t length)
{
    const uint8_t *p = (const uint8_t *)text;
    *out = NULL;
    for (int64_t i = 0; i < length;) {
        if (p[i] < 0xe0) { /* the table begins at U+0897 */
            i++;
            continue;
        }
        int n = p[i] < 0xf0 ? 3 : 4;
        int32_t old = stand_in(mm2_utf8_code(p + i, n));
        if (old && !*out) {
            *out = malloc((size_t)length);
            if (!*out)
                return mm2_fail(MM2_E_NOMEM, "no memory to split a text of %lld bytes",
                                (long long)length);
            memcpy(*out, text, (size_t)length);
        }
        if (old)
            mm2_utf8_put((uint8_t *)*out + i, old);
        i += n;
    }
    return MM2_OK;
}
