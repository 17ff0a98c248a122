/* The family's chat format, written by hand. A checkpoint brings it as a Jinja program; a program
 * out of a downloaded file is not run here, it is recognised by the literals that every version of
 * it contains, and the one thing that differs between versions, the default system prompt, is read
 * out of its text.
 *
 *     ]~!b[]~b]system\n{system}[e~[\n
 *     ]~b]user\n{content}[e~[\n
 *     ]~b]ai\n<think>\n{thinking}\n</think>\n\n{content}[e~[\n
 *     ]~b]ai\n<think>\n                                            (generation prompt)
 *
 * One function lays the turns out as a row of tags and stretches of text. Written as text they are
 * all alike; written as ids the tags are control tokens and the text between two tags is encoded as
 * one stretch that cannot contain any. So what a user types never becomes a tag.
 *
 * Where the vendor's template is silent about a mistake (an unknown role, a later system message, a
 * content of None), this refuses with a sentence: a turn that vanishes is found much later. */
#include "base/status.h"
#include "base/utf8.h"
#include "text/parts.h"

#include <stdlib.h>
#include <string.h>

static const char default_system[] =
    "You are a helpful assistant. Your name is MiniMax-M2 and is built by MiniMax.";

enum { MAX_SYSTEM = 4096 }; /* bytes of a default system prompt in a template */

/* ----------------------------------------------------------------------------------------------
 * Recognising the template */

typedef struct text_view {
    const char *begin;
    int64_t length;
} text_view;

/* Index of the first (or last) place of a string in a text, or -1. */
static int64_t find(text_view in, const char *what, int64_t from)
{
    int64_t n = (int64_t)strlen(what);
    for (int64_t i = from; i + n <= in.length; i++) {
        const char *hit = memchr(in.begin + i, what[0], (size_t)(in.length - i - n + 1));
        if (!hit)
            return -1;
        i = hit - in.begin;
        if (!memcmp(hit, what, (size_t)n))
            return i;
    }
    return -1;
}

static int64_t find_last(text_view in, const char *what)
{
    int64_t last = -1;
    for (int64_t at = find(in, what, 0); at >= 0; at = find(in, what, at + 1))
        last = at;
    return last;
}

/* Reads a Jinja string literal whose opening quote is at `at`. Returns its length in out, or -1. */
static int read_literal(char out[MAX_SYSTEM], text_view in, int64_t at)
{
    char quote = in.begin[at];
    int n = 0;
    for (int64_t i = at + 1; i < in.length && n < MAX_SYSTEM; i++) {
        char c = in.begin[i];
        if (c == quote)
            return mm2_utf8_valid(out, n) == n ? n : -1;
        if (c == '\\') {
            if (++i == in.length)
                return -1;
            c = in.begin[i];
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

/* The literal in `model_identity = "..."`. Returns its length in out, or -1 if there is none. */
static int find_system(char out[MAX_SYSTEM], text_view in)
{
    static const char name[] = "model_identity";
    for (int64_t at = find(in, name, 0); at >= 0; at = find(in, name, at + 1)) {
        int64_t i = at + (int64_t)strlen(name);
        while (i < in.length && in.begin[i] == ' ')
            i++;
        if (i == in.length || in.begin[i] != '=')
            continue;
        for (i++; i < in.length && in.begin[i] == ' ';)
            i++;
        if (i < in.length && (in.begin[i] == '"' || in.begin[i] == '\''))
            return read_literal(out, in, i);
    }
    return -1;
}

mm2_status mm2_tokenizer_set_template(mm2_tokenizer *t, const char *text, int64_t length)
{
    static const char *const literals[] = {"]~!b[",  "]~b]system", "]~b]user",
                                           "]~b]ai", "[e~[",       "<think>"};
    text_view in = {text, text ? length : 0};
    char found[MAX_SYSTEM];
    int known = text != NULL;
    for (size_t i = 0; i < sizeof literals / sizeof *literals && known; i++)
        known = find(in, literals[i], 0) >= 0;
    int n = known ? find_system(found, in) : -1;
    const char *system = n < 0 ? default_system : found;
    n = n < 0 ? (int)strlen(default_system) : n;
    char *copy = malloc((size_t)n + 1);
    if (!copy)
        return mm2_fail(MM2_E_NOMEM, "no memory for a system prompt of %d bytes", n);
    memcpy(copy, system, (size_t)n);
    copy[n] = 0;
    free(t->system);
    t->system = copy;
    t->template_name = known ? "minimax-m2" : NULL;
    t->template_foreign = text && !known;
    return MM2_OK;
}

const char *mm2_tokenizer_template(const mm2_tokenizer *t)
{
    return t->template_name;
}

const char *mm2_tokenizer_system(const mm2_tokenizer *t)
{
    return t->system;
}

/* ----------------------------------------------------------------------------------------------
 * Rendering */

typedef struct page { /* where turns are laid out: as text, or as ids if there are any */
    const mm2_tokenizer *t;
    mm2_ids *ids;
    char *text; /* all of it, or what came after the last tag */
    int64_t length, capacity;
} page;

static mm2_status put(page *p, const char *text, int64_t length)
{
    int64_t needed;
    if (__builtin_add_overflow(p->length, length, &needed) || needed > INT64_MAX / 4)
        return mm2_fail(MM2_E_ARG, "the messages are too long");
    if (needed > p->capacity) {
        int64_t capacity = needed + needed / 2 + 256;
        char *grown = realloc(p->text, (size_t)capacity);
        if (!grown)
            return mm2_fail(MM2_E_NOMEM, "no memory for messages of %lld bytes",
                            (long long)capacity);
        p->text = grown;
        p->capacity = capacity;
    }
    memcpy(p->text + p->length, text, (size_t)length);
    p->length = needed;
    return MM2_OK;
}

static mm2_status put_text(page *p, const char *text)
{
    return put(p, text, (int64_t)strlen(text));
}

/* Encodes the text since the last tag. */
static mm2_status flush(page *p)
{
    mm2_status status =
        p->length ? mm2_tokenizer_append(p->t, p->text, p->length, 0, p->ids) : MM2_OK;
    p->length = 0;
    return status;
}

static mm2_status put_tag(page *p, int tag)
{
    if (!p->ids)
        return put_text(p, mm2_tag_text[tag]);
    mm2_status status = flush(p);
    if (!status)
        mm2_ids_push(p->ids, p->t->tags[tag]);
    return status;
}

static mm2_status open_turn(page *p, const char *role)
{
    mm2_status status = put_tag(p, MM2_TAG_ROLE);
    if (!status)
        status = put_text(p, role);
    return status ? status : put_text(p, "\n");
}

static mm2_status close_turn(page *p)
{
    mm2_status status = put_tag(p, MM2_TAG_END);
    return status ? status : put_text(p, "\n");
}

static mm2_status put_thinking(page *p, text_view thinking)
{
    mm2_status status = put_tag(p, MM2_TAG_THINK_OPEN);
    if (!status)
        status = put_text(p, "\n");
    if (!status)
        status = put(p, thinking.begin, thinking.length);
    if (!status)
        status = put_text(p, "\n");
    if (!status)
        status = put_tag(p, MM2_TAG_THINK_CLOSE);
    return status ? status : put_text(p, "\n\n");
}

static text_view strip_newlines(text_view v)
{
    while (v.length && *v.begin == '\n') {
        v.begin++;
        v.length--;
    }
    while (v.length && v.begin[v.length - 1] == '\n')
        v.length--;
    return v;
}

/* Takes thinking out of a content that still holds it between <think> and </think>, as the vendor's
 * template does: the thinking ends at the first </think>, the answer begins after the last. */
static void split_thinking(text_view *thinking, text_view *content)
{
    const int64_t open = (int64_t)strlen(mm2_tag_text[MM2_TAG_THINK_OPEN]);
    const int64_t close = (int64_t)strlen(mm2_tag_text[MM2_TAG_THINK_CLOSE]);
    int64_t first = find(*content, mm2_tag_text[MM2_TAG_THINK_CLOSE], 0);
    if (first < 0)
        return;
    int64_t last = find_last(*content, mm2_tag_text[MM2_TAG_THINK_CLOSE]);
    *thinking = strip_newlines((text_view){content->begin, first});
    int64_t begin = find_last(*thinking, mm2_tag_text[MM2_TAG_THINK_OPEN]);
    if (begin >= 0)
        *thinking = (text_view){thinking->begin + begin + open, thinking->length - begin - open};
    *thinking = strip_newlines(*thinking);
    *content =
        strip_newlines((text_view){content->begin + last + close, content->length - last - close});
}

static mm2_status put_assistant(page *p, const mm2_message *m, int keep_thinking)
{
    text_view content = {m->content, (int64_t)strlen(m->content)}, thinking = {"", 0};
    if (m->thinking)
        thinking = (text_view){m->thinking, (int64_t)strlen(m->thinking)};
    else
        split_thinking(&thinking, &content);
    mm2_status status = open_turn(p, "ai");
    if (!status && keep_thinking && thinking.length)
        status = put_thinking(p, thinking);
    if (!status)
        status = put(p, content.begin, content.length);
    return status ? status : close_turn(p);
}

static mm2_status put_turn(page *p, const char *role, const char *content)
{
    mm2_status status = open_turn(p, role);
    if (!status)
        status = put_text(p, content);
    return status ? status : close_turn(p);
}

static int is_role(const mm2_message *m, const char *role)
{
    return !strcmp(m->role, role);
}

static mm2_status check(const mm2_message *messages, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        const mm2_message *m = &messages[i];
        if (!m->role || !m->content)
            return mm2_fail(MM2_E_ARG, "message %d has no %s", i, m->role ? "content" : "role");
        if (!is_role(m, "system") && !is_role(m, "user") && !is_role(m, "assistant"))
            return mm2_fail(MM2_E_ARG,
                            "message %d has the role \"%.*s\", expected \"system\", \"user\" or "
                            "\"assistant\"",
                            i, 40, m->role);
        if (i && is_role(m, "system"))
            return mm2_fail(MM2_E_ARG,
                            "message %d is a system message; only the first message can be one", i);
        if (m->thinking && !is_role(m, "assistant"))
            return mm2_fail(MM2_E_ARG, "message %d has thinking, which only an assistant has", i);
    }
    return MM2_OK;
}

static mm2_status lay_out(page *p, const mm2_message *messages, int32_t n, int32_t flags)
{
    int32_t first = is_role(&messages[0], "system"), last_user = -1;
    const char *system = first && *messages[0].content ? messages[0].content : p->t->system;
    mm2_status status = put_tag(p, MM2_TAG_BEGIN);
    for (int32_t i = first; i < n; i++)
        if (is_role(&messages[i], "user"))
            last_user = i;
    if (!status)
        status = put_turn(p, "system", system);
    for (int32_t i = first; i < n && !status; i++)
        status = is_role(&messages[i], "user") ? put_turn(p, "user", messages[i].content)
                                               : put_assistant(p, &messages[i], i > last_user);
    if (status || !(flags & MM2_GENERATION_PROMPT))
        return status;
    if (!(status = open_turn(p, "ai")) && !(status = put_tag(p, MM2_TAG_THINK_OPEN)))
        status = put_text(p, "\n");
    return status;
}

static mm2_status check_call(const char *verb, const mm2_tokenizer *t, const mm2_message *messages,
                             int32_t n, int32_t flags, const void *out, int32_t cap)
{
    if (!t || !messages || n < 1 || (!out && cap) || cap < 0)
        return mm2_fail(MM2_E_ARG,
                        "%s: needs a tokenizer, at least 1 message (given %d) and room for at "
                        "least 0 (given %d)",
                        verb, n, cap);
    if (flags & ~MM2_GENERATION_PROMPT)
        return mm2_fail(MM2_E_ARG, "%s: unknown flags %d, expected 0 or MM2_GENERATION_PROMPT",
                        verb, flags);
    if (t->template_foreign)
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: the checkpoint's chat template is not MiniMax-M2's; write the prompt "
                        "yourself and encode it with MM2_SPECIAL",
                        verb);
    mm2_status status = check(messages, n);
    return status ? mm2_fail_in(status, verb) : MM2_OK;
}

int32_t mm2_chat_render(const mm2_tokenizer *t, const mm2_message *messages, int32_t n,
                        int32_t flags, char *out, int32_t cap)
{
    page p = {.t = t};
    char *repaired = NULL;
    int64_t length = 0;
    mm2_status status = check_call("chat_render", t, messages, n, flags, out, cap);
    if (status)
        return status;
    status = lay_out(&p, messages, n, flags);
    if (!status)
        status = mm2_utf8_repair(&repaired, &length, p.text, p.length);
    if (!status && length > INT32_MAX)
        status = mm2_fail(MM2_E_ARG, "chat_render: %lld bytes, at most %d can be counted",
                          (long long)length, INT32_MAX);
    if (!status && cap)
        memcpy(out, repaired ? repaired : p.text, (size_t)(length < cap ? length : cap));
    free(repaired);
    free(p.text);
    return status ? status : (int32_t)length;
}

int32_t mm2_chat_encode(const mm2_tokenizer *t, const mm2_message *messages, int32_t n,
                        int32_t flags, int32_t *ids, int32_t cap)
{
    mm2_ids out = {ids, cap, 0};
    page p = {.t = t, .ids = &out};
    mm2_status status = check_call("chat_encode", t, messages, n, flags, ids, cap);
    if (status)
        return status;
    for (int i = 0; i < MM2_TAG_COUNT; i++)
        if (t->tags[i] < 0)
            return mm2_fail(MM2_E_UNSUPPORTED, "chat_encode: the vocabulary has no \"%s\" token",
                            mm2_tag_text[i]);
    status = lay_out(&p, messages, n, flags);
    if (!status)
        status = flush(&p);
    if (!status && out.count > INT32_MAX)
        status = mm2_fail(MM2_E_ARG, "chat_encode: %lld ids, at most %d can be counted",
                          (long long)out.count, INT32_MAX);
    free(p.text);
    return status ? status : (int32_t)out.count;
}
