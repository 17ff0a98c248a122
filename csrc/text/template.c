/* Recognising a chat template. A template is a Jinja program out of a downloaded file: it is never
 * run, it is compared with the ones that are known, by a hash of its normal form. Two templates
 * with the same normal form render the same, so that nothing which renders something else is taken
 * for a known one.
 *
 * The normal form is what Jinja's own lexer makes of the text, with trim_blocks and lstrip_blocks
 * as everybody sets them for chat templates: text after white space control, and tags. Comments,
 * the kind of line ends and white space inside tags do not reach it. In
 * `set model_identity = "..."` the string is taken out: the default system prompt is the only thing
 * in which the releases differ.
 *
 * Where this reading is simpler than Jinja's, the normal form keeps what it does not understand,
 * and the hash is then an unknown one: a template can be refused without need, never mistaken. The
 * hash is no shield against a template made to collide: who writes one harms the reader of that
 * file only, with a rendering that the same file could have asked for. */
#include "text/template.h"

#include "base/utf8.h"

#include <string.h>

// clang-format off
static const struct {
    uint64_t fingerprint;
    int keeps_tags, newline_after_calls;
} known[] = {
    {0x42b97d7f3912adf8, 0, 0}, /* the vendor's, of M2 to M2.7 */
    {0x4f17e07a43d3074d, 0, 0}, /* the same with a branch for a content of none, of some M2.1 */
    {0x55a15ab96be7be04, 0, 0}, /* llama.cpp's of M2 */
    {0x381ed7952d87e626, 1, 1}, /* unsloth's of M2 */
    {0x4f4e1f33fe3435db, 0, 0}, /* atlas's of M2.7, with a switch for thinking */
    {0xad85a558bc3a725b, 1, 0}, /* m2-tiny's */
};
// clang-format on

static const char identity[] = "set model_identity = ";

enum { HEAD = sizeof identity - 1, TAG_BEGIN = 1, TAG_END = 2 };

typedef struct reader {
    const char *at, *end;
    int line_start; /* what was read last ended with a line end, as Jinja's lexer sees it */
    int failed;
    uint64_t hash; /* FNV-1a */
    mm2_template *out;
} reader;

static int is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void hash_byte(reader *r, int c)
{
    r->hash = (r->hash ^ (uint8_t)c) * 0x100000001b3ULL;
}

/* Every character of the template comes through here. Line ends become \n; other control characters
 * are marks of the normal form, so they cannot stand in a template. */
static void put(reader *r, const char *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (p[i] == '\r') {
            if (i + 1 == n || p[i + 1] != '\n')
                hash_byte(r, '\n');
        } else {
            r->failed |= (uint8_t)p[i] < 0x20 && !is_space(p[i]);
            hash_byte(r, p[i]);
        }
    }
}

/* Reads the string whose opening quote is at `at`, for what it means. Returns its length in `out`,
 * or -1 if it is too long or holds an escape that is not known here. */
static int read_string(char out[MM2_MAX_SYSTEM], const char *at, const char *end)
{
    char quote = *at;
    int n = 0;
    for (at++; at < end && n < MM2_MAX_SYSTEM; at++) {
        char c = *at;
        if (c == quote)
            return mm2_utf8_valid(out, n) == n ? n : -1;
        if (c == '\r')
            return -1;
        if (c == '\\') {
            if (++at == end)
                return -1;
            c = *at;
            if (c == 'n')
                c = '\n';
            else if (c == 't')
                c = '\t';
            else if (c != '\\' && c != '"' && c != '\'')
                return -1;
        }
        if (!c)
            return -1;
        out[n++] = c;
    }
    return -1;
}

/* Behind the string whose opening quote is at `at`. */
static const char *skip_string(const char *at, const char *end)
{
    char quote = *at;
    for (at++; at < end && *at != quote; at++)
        at += *at == '\\' && at + 1 < end;
    return at < end ? at + 1 : end;
}

/* Behind the end of a tag, at r->at: a minus in it takes all white space that follows; else one
 * line end goes, if `trim`. */
static void after_tag(reader *r, int minus, int trim)
{
    const char *begin = r->at;
    while (minus && r->at < r->end && is_space(*r->at))
        r->at++;
    if (!minus && trim) {
        r->at += r->at < r->end && *r->at == '\r';
        r->at += r->at < r->end && *r->at == '\n';
    }
    r->line_start = r->at > begin && (r->at[-1] == '\n' || r->at[-1] == '\r');
}

/* The text from `begin` to the tag at r->at, of this kind and with this sign behind its opening. */
static void read_text(reader *r, const char *begin, char kind, char sign)
{
    const char *end = r->at;
    if (sign == '-') {
        while (end > begin && is_space(end[-1]))
            end--;
    } else if (kind != '{' && sign != '+') {
        const char *line = end;
        while (line > begin && (line[-1] == ' ' || line[-1] == '\t'))
            line--;
        if (line > begin ? line[-1] == '\n' || line[-1] == '\r' : r->line_start)
            end = line;
    }
    put(r, begin, end - begin);
}

/* A comment, whose inside begins at r->at. */
static void read_comment(reader *r)
{
    const char *begin = r->at;
    while (r->end - r->at >= 2 && memcmp(r->at, "#}", 2))
        r->at++;
    if (r->end - r->at < 2) {
        r->failed = 1;
        return;
    }
    char sign = r->at > begin ? r->at[-1] : 0;
    r->at += 2;
    after_tag(r, sign == '-', sign != '+');
}

/* A tag, whose inside begins at r->at. White space between its words becomes one space. */
static void read_tag(reader *r, char kind)
{
    char closing = kind == '%' ? '%' : '}', head[HEAD] = {0};
    int64_t count = 0;
    int space = 0;
    hash_byte(r, TAG_BEGIN);
    hash_byte(r, kind);
    while (r->end - r->at >= 2) {
        const char *p = r->at;
        int sign = (*p == '-' || *p == '+') && r->end - p >= 3;
        if (p[sign] == closing && p[sign + 1] == '}' && !(*p == '+' && kind == '{')) {
            hash_byte(r, TAG_END);
            r->at += sign + 2;
            after_tag(r, *p == '-' && sign, kind == '%' && !(*p == '+' && sign));
            return;
        }
        if (is_space(*p)) {
            space = count > 0;
            r->at++;
            continue;
        }
        if (space) {
            hash_byte(r, ' ');
            if (count < HEAD)
                head[count] = ' ';
            count++;
            space = 0;
        }
        if (*p == '"' || *p == '\'') {
            r->at = skip_string(p, r->end);
            if (kind == '%' && count == HEAD && !memcmp(head, identity, HEAD)) {
                r->out->system_length = read_string(r->out->system, p, r->end);
                r->failed |= r->out->system_length < 0;
            } else {
                put(r, p, r->at - p);
            }
            count += HEAD;
            continue;
        }
        if (count < HEAD)
            head[count] = *p;
        count++;
        put(r, p, 1);
        r->at++;
    }
    r->failed = 1; /* never closed */
}

void mm2_template_read(mm2_template *out, const char *text, int64_t length)
{
    reader r = {text, text + length, 1, 0, 0xcbf29ce484222325ULL, out};
    *out = (mm2_template){.system_length = -1};
    /* One line end at the end of the file is none of the template's. */
    if (r.end > r.at && r.end[-1] == '\n')
        r.end--;
    if (r.end > r.at && r.end[-1] == '\r')
        r.end--;
    for (const char *begin = r.at; r.at < r.end && !r.failed;) {
        char kind = r.end - r.at < 2 || *r.at != '{' ? 0 : r.at[1];
        if (kind != '{' && kind != '%' && kind != '#') {
            if (++r.at == r.end)
                put(&r, begin, r.at - begin);
            continue;
        }
        char sign = r.end - r.at > 2 ? r.at[2] : 0;
        sign = sign == '-' || sign == '+' ? sign : 0;
        read_text(&r, begin, kind, sign);
        r.at += 2 + (sign != 0);
        if (kind == '#')
            read_comment(&r);
        else
            read_tag(&r, kind);
        begin = r.at;
    }
    if (r.failed)
        return;
    out->fingerprint = r.hash;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].fingerprint == r.hash && out->system_length >= 0) {
            out->known = 1;
            out->keeps_tags = known[i].keeps_tags;
            out->newline_after_calls = known[i].newline_after_calls;
        }
}
