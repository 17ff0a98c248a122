/* The family's chat format, written by hand. A checkpoint brings it as a Jinja program, which
 * template.c recognises or does not; what is not recognised is not rendered.
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
 * content of None), this refuses with a sentence: a turn that vanishes is found much later.
 *
 * A conversation goes on behind what was sampled, which stays as it is. Only the end of the last
 * turn is made up for, where it is missing. */
#include "base/guard.h"
#include "base/status.h"
#include "base/utf8.h"
#include "text/parts.h"
#include "text/template.h"

#include <stdlib.h>
#include <string.h>

static const char default_system[] =
    "You are a helpful assistant. Your name is MiniMax-M2 and is built by MiniMax.";

/* Where an unknown template stands, and its fingerprint, for sentences. */
static mm2_status name_unknown(char **out, const char *where, uint64_t fingerprint)
{
    enum { EXTRA = 64 };
    int cap = (int)strnlen(where, INT32_MAX - EXTRA) + EXTRA;
    *out = malloc((size_t)cap);
    if (!*out)
        return mm2_fail(MM2_E_NOMEM, "no memory for a path of %d bytes", cap);
    mm2_format(*out, cap, "%s (fingerprint %llu)", where, (unsigned long long)fingerprint);
    return MM2_OK;
}

mm2_status mm2_tokenizer_set_template(mm2_tokenizer *t, const char *text, int64_t length,
                                      const char *where)
{
    mm2_template found = {.splits = 1};
    char *unknown = NULL;
    if (text)
        mm2_template_read(&found, text, length);
    mm2_status status =
        text && !found.known ? name_unknown(&unknown, where, found.fingerprint) : MM2_OK;
    if (status)
        return status;
    const char *system = found.known ? found.system : default_system;
    size_t n = found.known ? (size_t)found.system_length : strlen(default_system);
    char *copy = malloc(n + 1);
    if (!copy) {
        free(unknown);
        return mm2_fail(MM2_E_NOMEM, "no memory for a system prompt of %d bytes", (int)n);
    }
    memcpy(copy, system, n);
    copy[n] = 0;
    free(t->system);
    free(t->unknown_template);
    t->system = copy;
    t->unknown_template = unknown;
    t->template_name = found.known ? "minimax-m2" : NULL;
    t->keeps_tags = !found.splits;
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
 * Messages */

/* Message i. The array may come from a program that was built with an older header. */
static mm2_message message_at(const mm2_message *messages, int32_t i)
{
    uint32_t size = messages->size;
    mm2_message m = {0};
    memcpy(&m, (const char *)messages + (size_t)size * (size_t)i,
           size < sizeof m ? size : sizeof m);
    return m;
}

static int is_role(mm2_message m, const char *role)
{
    return !strcmp(m.role, role);
}

static mm2_status check_messages(const mm2_message *messages, int32_t n, int goes_on)
{
    mm2_message first = {.size = sizeof first};
    mm2_status status = mm2_struct_read(&first, messages, "message 0");
    for (int32_t i = 0; i < n && !status; i++) {
        mm2_message m = message_at(messages, i);
        if (m.size != messages->size)
            return mm2_fail(MM2_E_ARG, "message %d has size %u, but message 0 has %u", i, m.size,
                            messages->size);
        if (!m.role || !m.content)
            return mm2_fail(MM2_E_ARG, "message %d has no %s", i, m.role ? "content" : "role");
        if (!is_role(m, "system") && !is_role(m, "user") && !is_role(m, "assistant"))
            return mm2_fail(MM2_E_ARG,
                            "message %d has the role \"%.*s\", expected \"system\", \"user\" or "
                            "\"assistant\"",
                            i, 40, m.role);
        if (is_role(m, "system") && (i || goes_on))
            return mm2_fail(MM2_E_ARG,
                            "message %d is a system message; only the first message of a "
                            "conversation can be one",
                            i);
        if (m.thinking && !is_role(m, "assistant"))
            return mm2_fail(MM2_E_ARG, "message %d has thinking, which only an assistant has", i);
    }
    return status;
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

typedef struct text_view {
    const char *begin;
    int64_t length;
} text_view;

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

static mm2_status put_assistant(page *p, mm2_message m, int keep_thinking)
{
    text_view content = {m.content, (int64_t)strlen(m.content)}, thinking = {"", 0};
    if (m.thinking)
        thinking = (text_view){m.thinking, (int64_t)strlen(m.thinking)};
    else if (!p->t->keeps_tags)
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

/* The turns, of users and assistants, and the generation prompt. */
static mm2_status put_turns(page *p, const mm2_message *messages, int32_t first, int32_t n,
                            int32_t flags)
{
    mm2_status status = MM2_OK;
    int32_t last_user = -1;
    for (int32_t i = first; i < n; i++)
        if (is_role(message_at(messages, i), "user"))
            last_user = i;
    for (int32_t i = first; i < n && !status; i++) {
        mm2_message m = message_at(messages, i);
        status = is_role(m, "user") ? put_turn(p, "user", m.content)
                                    : put_assistant(p, m, i > last_user);
    }
    if (status || !(flags & MM2_GENERATION_PROMPT))
        return status;
    if (!(status = open_turn(p, "ai")) && !(status = put_tag(p, MM2_TAG_THINK_OPEN)))
        status = put_text(p, "\n");
    return status;
}

static mm2_status put_conversation(page *p, const mm2_message *messages, int32_t n, int32_t flags)
{
    mm2_message m = message_at(messages, 0);
    int32_t first = is_role(m, "system");
    mm2_status status = put_tag(p, MM2_TAG_BEGIN);
    if (!status)
        status = put_turn(p, "system", first && *m.content ? m.content : p->t->system);
    return status ? status : put_turns(p, messages, first, n, flags);
}

/* Ends the last turn of a timeline, as far as that is missing. Inside thinking, the answer is then
 * empty. */
static mm2_status put_end(page *p, const int32_t *ids, int32_t n)
{
    const int32_t *tags = p->t->tags;
    int32_t end = tags[MM2_TAG_END], newline = p->t->bpe.byte_ids['\n'];
    int thinking = 0;
    if (ids[n - 1] == end)
        return put_text(p, "\n");
    if (n > 1 && ids[n - 2] == end && ids[n - 1] == newline)
        return MM2_OK;
    /* Of the tags behind the last role, the first </think> counts, as for a reply. */
    for (int32_t i = n - 1; i >= 0 && ids[i] != tags[MM2_TAG_ROLE]; i--)
        if (ids[i] == tags[MM2_TAG_THINK_CLOSE])
            thinking = -1;
        else if (ids[i] == tags[MM2_TAG_THINK_OPEN] && !thinking)
            thinking = 1;
    mm2_status status = MM2_OK;
    if (thinking > 0 && !(status = put_text(p, "\n")) &&
        !(status = put_tag(p, MM2_TAG_THINK_CLOSE)))
        status = put_text(p, "\n\n");
    return status ? status : close_turn(p);
}

/* ----------------------------------------------------------------------------------------------
 * Public functions */

static mm2_status check_call(const char *verb, const mm2_tokenizer *t, const mm2_message *messages,
                             int32_t n, int32_t flags, const void *out, int32_t cap, int goes_on)
{
    if (!t || !messages || n < 1 || (!out && cap) || cap < 0)
        return mm2_fail(MM2_E_ARG,
                        "%s: needs a tokenizer, at least 1 message (given %d) and room for at "
                        "least 0 (given %d)",
                        verb, n, cap);
    if (flags & ~MM2_GENERATION_PROMPT)
        return mm2_fail(MM2_E_ARG, "%s: unknown flags %d, expected 0 or MM2_GENERATION_PROMPT",
                        verb, flags);
    if (t->unknown_template)
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: the chat template of %s is none of the known ones of MiniMax-M2 and "
                        "may want another format; write the prompt yourself and encode it with "
                        "MM2_SPECIAL",
                        verb, t->unknown_template);
    mm2_status status = check_messages(messages, n, goes_on);
    return status ? mm2_fail_in(status, verb) : MM2_OK;
}

static mm2_status check_tags(const char *verb, const mm2_tokenizer *t)
{
    for (int i = 0; i < MM2_TAG_COUNT; i++)
        if (t->tags[i] < 0)
            return mm2_fail(MM2_E_UNSUPPORTED, "%s: the vocabulary has no \"%s\" token", verb,
                            mm2_tag_text[i]);
    return MM2_OK;
}

/* What a call returns, after its turns were laid out as ids. */
static int32_t finish(page *p, mm2_status status, const char *verb)
{
    if (!status)
        status = flush(p);
    if (!status && p->ids->count > INT32_MAX)
        status = mm2_fail(MM2_E_ARG, "%s: %lld ids, at most %d can be counted", verb,
                          (long long)p->ids->count, INT32_MAX);
    free(p->text);
    return status ? status : (int32_t)p->ids->count;
}

int32_t mm2_chat_render(const mm2_tokenizer *t, const mm2_message *messages, int32_t n,
                        int32_t flags, char *out, int32_t cap)
{
    page p = {.t = t};
    char *repaired = NULL;
    int64_t length = 0;
    mm2_status status = check_call("chat_render", t, messages, n, flags, out, cap, 0);
    if (status)
        return status;
    status = put_conversation(&p, messages, n, flags);
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
    mm2_status status = check_call("chat_encode", t, messages, n, flags, ids, cap, 0);
    if (!status)
        status = check_tags("chat_encode", t);
    if (status)
        return status;
    return finish(&p, put_conversation(&p, messages, n, flags), "chat_encode");
}

int32_t mm2_chat_continue(const mm2_tokenizer *t, const int32_t *timeline, int32_t length,
                          const mm2_message *messages, int32_t n, int32_t flags, int32_t *ids,
                          int32_t cap)
{
    mm2_ids out = {ids, cap, 0};
    page p = {.t = t, .ids = &out};
    mm2_status status = check_call("chat_continue", t, messages, n, flags, ids, cap, 1);
    if (!status)
        status = check_tags("chat_continue", t);
    if (!status && (!timeline || length < 1))
        status = mm2_fail(MM2_E_ARG,
                          "chat_continue: needs the timeline's ids, at least 1 (given %d); a "
                          "conversation begins with chat_encode",
                          length);
    if (status)
        return status;
    status = put_end(&p, timeline, length);
    if (!status)
        status = put_turns(&p, messages, 0, n, flags);
    return finish(&p, status, "chat_continue");
}
