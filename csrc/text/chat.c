/* The family's chat format, written by hand. A checkpoint brings it as a Jinja program, which
 * template.c recognises or does not; what is not recognised is not rendered.
 *
 *     ]~!b[]~b]system\n{system}{tools}[e~[\n
 *     ]~b]user\n{content}[e~[\n
 *     ]~b]ai\n<think>\n{thinking}\n</think>\n\n{content}{calls}[e~[\n
 *     ]~b]tool\n<response>{result}</response>[e~[\n
 *     ]~b]ai\n<think>\n                                            (generation prompt)
 *
 * The turns, which messages.c has read and checked, are laid out as a row of tags and stretches of
 * text. Written as text they are all alike; written as ids the tags are control tokens and the text
 * between two tags is encoded as one stretch that cannot contain any. So what a user types never
 * becomes a tag.
 *
 * A conversation goes on behind what was sampled, which stays as it is. Only the end of the last
 * turn is made up for, where it is missing. */
#include "base/guard.h"
#include "base/json.h"
#include "base/status.h"
#include "text/messages.h"
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

static mm2_status copy_text(char **out, const char *text, int64_t length)
{
    *out = malloc((size_t)length + 1);
    if (!*out)
        return mm2_fail(MM2_E_NOMEM, "no memory for a chat template of %lld bytes",
                        (long long)length);
    memcpy(*out, text, (size_t)length);
    (*out)[length] = 0;
    return MM2_OK;
}

mm2_status mm2_tokenizer_set_template(mm2_tokenizer *t, const char *text, int64_t length,
                                      const char *where)
{
    mm2_template found = {0};
    char *unknown = NULL, *copy = NULL, *system = NULL;
    mm2_status status = MM2_OK;
    if (text)
        mm2_template_read(&found, text, length);
    if (text && !found.known)
        status = name_unknown(&unknown, where, found.fingerprint);
    if (text && !found.known && !status)
        status = copy_text(&copy, text, length);
    if (!status)
        status = found.known ? copy_text(&system, found.system, found.system_length)
                             : copy_text(&system, default_system, sizeof default_system - 1);
    if (status) {
        free(unknown);
        free(copy);
        return status;
    }
    free(t->system);
    free(t->unknown_template);
    free(t->unknown_text);
    t->system = system;
    t->unknown_template = unknown;
    t->unknown_text = copy;
    t->template_name = found.known ? "minimax-m2" : NULL;
    t->keeps_tags = found.keeps_tags;
    t->newline_after_calls = found.newline_after_calls;
    return MM2_OK;
}

const char *mm2_tokenizer_unknown_template(const mm2_tokenizer *t)
{
    return t ? t->unknown_text : NULL;
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

/* Room for so many bytes more. */
static mm2_status reserve(page *p, int64_t length)
{
    int64_t needed;
    if (__builtin_add_overflow(p->length, length, &needed) || needed > INT64_MAX / 4)
        return mm2_fail(MM2_E_ARG, "the messages are too long");
    if (needed <= p->capacity)
        return MM2_OK;
    int64_t capacity = needed + needed / 2 + 256;
    char *grown = realloc(p->text, (size_t)capacity);
    if (!grown)
        return mm2_fail(MM2_E_NOMEM, "no memory for messages of %lld bytes", (long long)capacity);
    p->text = grown;
    p->capacity = capacity;
    return MM2_OK;
}

static mm2_status put(page *p, mm2_view text)
{
    mm2_status status = text.length ? reserve(p, text.length) : MM2_OK;
    if (!status && text.length) {
        memcpy(p->text + p->length, text.begin, (size_t)text.length);
        p->length += text.length;
    }
    return status;
}

static mm2_status put_text(page *p, const char *text)
{
    return put(p, (mm2_view){text, (int64_t)strlen(text)});
}

/* JSON in the format's spelling. */
static mm2_status put_json(page *p, mm2_view json)
{
    mm2_status status = reserve(p, 2 * json.length);
    int64_t n = status ? 0 : mm2_json_form(p->text + p->length, json, 1);
    if (n < 0)
        return mm2_fail(MM2_E_ARG, "a value is no JSON"); /* it was read before */
    p->length += n;
    return status;
}

/* The text that a JSON string stands for. */
static mm2_status put_decoded(page *p, mm2_view string)
{
    mm2_json j;
    mm2_json_begin(&j, "messages", string.begin, string.length);
    int64_t room = string.length + 1 > INT32_MAX ? INT32_MAX : string.length + 1;
    mm2_status status = reserve(p, room);
    if (!status)
        status = mm2_json_string(&j, p->text + p->length, (int32_t)room);
    if (!status)
        p->length += (int64_t)strlen(p->text + p->length);
    return status;
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
    if (!p->ids || p->t->tags[tag] < 0)
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

static mm2_status put_thinking(page *p, mm2_view thinking)
{
    mm2_status status = put_tag(p, MM2_TAG_THINK_OPEN);
    if (!status)
        status = put_text(p, "\n");
    if (!status)
        status = put(p, thinking);
    if (!status)
        status = put_text(p, "\n");
    if (!status)
        status = put_tag(p, MM2_TAG_THINK_CLOSE);
    return status ? status : put_text(p, "\n\n");
}

static mm2_view strip_newlines(mm2_view v)
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
static int64_t find(mm2_view in, const char *what, int64_t from)
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

static int64_t find_last(mm2_view in, const char *what)
{
    int64_t last = -1;
    for (int64_t at = find(in, what, 0); at >= 0; at = find(in, what, at + 1))
        last = at;
    return last;
}

/* Takes thinking out of a content that still holds it between <think> and </think>, as the vendor's
 * template does: the thinking ends at the first </think>, the answer begins after the last. */
static void split_thinking(mm2_view *thinking, mm2_view *content)
{
    const int64_t open = (int64_t)strlen(mm2_tag_text[MM2_TAG_THINK_OPEN]);
    const int64_t close = (int64_t)strlen(mm2_tag_text[MM2_TAG_THINK_CLOSE]);
    int64_t first = find(*content, mm2_tag_text[MM2_TAG_THINK_CLOSE], 0);
    if (first < 0)
        return;
    int64_t last = find_last(*content, mm2_tag_text[MM2_TAG_THINK_CLOSE]);
    *thinking = strip_newlines((mm2_view){content->begin, first});
    int64_t begin = find_last(*thinking, mm2_tag_text[MM2_TAG_THINK_OPEN]);
    if (begin >= 0)
        *thinking = (mm2_view){thinking->begin + begin + open, thinking->length - begin - open};
    *thinking = strip_newlines(*thinking);
    *content =
        strip_newlines((mm2_view){content->begin + last + close, content->length - last - close});
}

/* A key and its value: a string as it is, other values as JSON. */
static mm2_status put_parameter(page *p, mm2_view key, mm2_view value)
{
    mm2_status status = put_text(p, "<parameter name=\"");
    if (!status)
        status = put_decoded(p, key);
    if (!status)
        status = put_text(p, "\">");
    if (!status)
        status = *value.begin == '"' ? put_decoded(p, value) : put_json(p, value);
    return status ? status : put_text(p, "</parameter>\n");
}

/* An object, member by member: of a call's arguments each a parameter, of a tool that is flat all
 * but its type. */
static mm2_status put_members(page *p, mm2_view object, int arguments)
{
    mm2_json j;
    int begun = 0;
    int32_t more;
    mm2_status status = arguments ? MM2_OK : put_text(p, "{");
    int64_t first = p->length;
    mm2_json_begin(&j, "messages", object.begin, object.length);
    while (!status && (more = mm2_json_next(&j, '{', &begun)) > 0) {
        mm2_json_peek(&j);
        mm2_view key = {j.at, 0}, value;
        if ((status = mm2_json_string(&j, NULL, 0)))
            return status;
        key.length = j.at - key.begin;
        j.at = key.begin;
        if ((status = mm2_json_key(&j, NULL, 0)))
            return status;
        mm2_json_peek(&j);
        value.begin = j.at;
        if ((status = mm2_json_skip(&j)))
            return status;
        value.length = j.at - value.begin;
        if (arguments) {
            status = put_parameter(p, key, value);
        } else if (!mm2_view_is(key, "\"type\"") && !mm2_view_is(key, "\"cache_control\"")) {
            int schema = mm2_view_is(key, "\"input_schema\""); /* Anthropic's name of it */
            if (p->length > first)
                status = put_text(p, ", ");
            if (!status)
                status = schema ? put_text(p, "\"parameters\"") : put_json(p, key);
            if (!status)
                status = put_text(p, ": ");
            if (!status)
                status = put_json(p, value);
        }
    }
    if (!status && more < 0)
        status = more;
    return status || arguments ? status : put_text(p, "}");
}

static mm2_status put_calls(page *p, const mm2_turn_call *calls, int32_t count)
{
    mm2_status status = put_text(p, "\n");
    if (!status)
        status = put_tag(p, MM2_TAG_CALL_OPEN);
    if (!status)
        status = put_text(p, "\n");
    for (int32_t i = 0; i < count && !status; i++) {
        status = put_text(p, "<invoke name=\"");
        if (!status)
            status = put(p, calls[i].name);
        if (!status)
            status = put_text(p, "\">\n");
        if (!status)
            status = put_members(p, calls[i].arguments, 1);
        if (!status)
            status = put_text(p, "</invoke>\n");
    }
    if (!status)
        status = put_tag(p, MM2_TAG_CALL_CLOSE);
    return status || !p->t->newline_after_calls ? status : put_text(p, "\n");
}

static mm2_status put_assistant(page *p, const mm2_turns *all, const mm2_turn *turn,
                                int keep_thinking)
{
    mm2_view content = turn->content, thinking = turn->thinking;
    if (!turn->thinks && !p->t->keeps_tags)
        split_thinking(&thinking, &content);
    mm2_status status = open_turn(p, "ai");
    if (!status && keep_thinking && thinking.length)
        status = put_thinking(p, thinking);
    if (!status)
        status = put(p, content);
    if (!status && turn->count)
        status = put_calls(p, (mm2_turn_call *)all->calls.items + turn->first, turn->count);
    return status ? status : close_turn(p);
}

/* The results of one message. Neighbours of the same role share a turn. */
static mm2_status put_results(page *p, const mm2_turns *all, const mm2_turn *turn)
{
    const mm2_view *results = (const mm2_view *)all->results.items + turn->first;
    mm2_status status = MM2_OK;
    for (int32_t i = 0; i < turn->count && !status; i++) {
        status = put_text(p, "\n<response>");
        if (!status)
            status = put(p, results[i]);
        if (!status)
            status = put_text(p, turn->is_list ? "\n</response>" : "</response>");
    }
    return status;
}

static mm2_status put_user(page *p, mm2_view content)
{
    mm2_status status = open_turn(p, "user");
    if (!status)
        status = put(p, content);
    return status ? status : close_turn(p);
}

static mm2_status put_turn(page *p, const mm2_turns *all, int32_t i, int32_t last_user, int flags)
{
    const mm2_turn *turns = all->turns.items, *turn = &turns[i];
    if (turn->role == MM2_ROLE_USER)
        return put_user(p, turn->content);
    if (turn->role == MM2_ROLE_ASSISTANT)
        return put_assistant(p, all, turn, i > last_user || flags & MM2_KEEP_THINKING);
    mm2_status status = MM2_OK;
    if (!i || turns[i - 1].role != MM2_ROLE_TOOL) {
        status = put_tag(p, MM2_TAG_ROLE);
        if (!status)
            status = put_text(p, "tool");
    }
    if (!status)
        status = put_results(p, all, turn);
    if (!status && (i + 1 == all->turns.count || turns[i + 1].role != MM2_ROLE_TOOL))
        status = close_turn(p);
    return status;
}

/* The opening of an assistant's turn, or an empty block of thinking behind it. */
static mm2_status put_prompt(page *p, int thinks)
{
    mm2_status status = open_turn(p, "ai");
    if (!status)
        status = put_tag(p, MM2_TAG_THINK_OPEN);
    if (!status)
        status = put_text(p, thinks ? "\n" : "\n\n");
    if (!status && !thinks && !(status = put_tag(p, MM2_TAG_THINK_CLOSE)))
        status = put_text(p, "\n\n");
    return status;
}

/* All turns but a system message, and the generation prompt. */
static mm2_status put_turns(page *p, const mm2_turns *all, int32_t first, int32_t flags)
{
    const mm2_turn *turns = all->turns.items;
    mm2_status status = MM2_OK;
    int32_t last_user = -1;
    for (int32_t i = first; i < all->turns.count; i++)
        if (turns[i].role == MM2_ROLE_USER)
            last_user = i;
    for (int32_t i = first; i < all->turns.count && !status; i++)
        status = put_turn(p, all, i, last_user, flags);
    if (status || !(flags & MM2_GENERATION_PROMPT))
        return status;
    return put_prompt(p, !(flags & MM2_NO_THINKING));
}

static mm2_status put_tools(page *p, const mm2_turn_tool *tools, int32_t count)
{
    mm2_status status =
        put_text(p, "\n\n# Tools\nYou may call one or more tools to assist with the user query.\n"
                    "Here are the tools available in JSONSchema format:\n\n<tools>\n");
    for (int32_t i = 0; i < count && !status; i++) {
        status = put_text(p, "<tool>");
        if (!status)
            status = tools[i].flat ? put_members(p, tools[i].json, 0) : put_json(p, tools[i].json);
        if (!status)
            status = put_text(p, "</tool>\n");
    }
    if (!status)
        status = put_text(p, "</tools>\n\nWhen making tool calls, use XML format to invoke tools "
                             "and pass parameters:\n\n");
    if (!status)
        status = put_tag(p, MM2_TAG_CALL_OPEN);
    if (!status)
        status = put_text(p, "\n<invoke name=\"tool-name-1\">\n"
                             "<parameter name=\"param-key-1\">param-value-1</parameter>\n"
                             "<parameter name=\"param-key-2\">param-value-2</parameter>\n"
                             "...\n</invoke>\n");
    return status ? status : put_tag(p, MM2_TAG_CALL_CLOSE);
}

static mm2_status put_place(page *p, const char *name, mm2_view text)
{
    mm2_status status = text.length ? put_text(p, name) : MM2_OK;
    return status ? status : put(p, text);
}

static mm2_status put_conversation(page *p, const mm2_turns *all, const mm2_conversation *c)
{
    static const mm2_turn none = {.content = {"", 0}};
    const mm2_turn *turn = all->turns.items;
    int32_t first = turn->role == MM2_ROLE_SYSTEM;
    if (!first)
        turn = &none;
    mm2_status status = put_tag(p, MM2_TAG_BEGIN);
    if (!status)
        status = open_turn(p, "system");
    if (!status)
        status = turn->content.length || turn->is_list
                     ? put(p, turn->content)
                     : put_text(p, c->identity ? c->identity : p->t->system);
    if (!status)
        status = put_place(p, "\nCurrent date: ", turn->date);
    if (!status)
        status = put_place(p, "\nCurrent location: ", turn->location);
    if (!status && all->tools.count)
        status = put_tools(p, all->tools.items, all->tools.count);
    if (!status)
        status = close_turn(p);
    return status ? status : put_turns(p, all, first, c->flags);
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

/* Whether the last turn of a timeline is an assistant's without a call. */
static mm2_status lacks_call(const mm2_tokenizer *t, const int32_t *ids, int32_t n, int *lacks)
{
    static const char role[] = "ai\n";
    mm2_piece piece = {.size = sizeof piece};
    mm2_reply_options o = {.size = sizeof o};
    mm2_reply *r;
    int32_t at = n, matched = 0, length;
    *lacks = 0;
    while (at > 0 && ids[at - 1] != t->tags[MM2_TAG_ROLE])
        at--;
    for (; at && at < n && role[matched]; at++) {
        const char *bytes = mm2_tokenizer_token(t, ids[at], &length);
        for (int32_t i = 0; bytes && i < length && role[matched]; i++)
            if (bytes[i] != role[matched++])
                return MM2_OK; /* another role's */
    }
    if (role[matched])
        return MM2_OK;
    mm2_reply_options_init(&o);
    o.start =
        at < n && ids[at] == t->tags[MM2_TAG_THINK_OPEN] ? MM2_START_THINKING : MM2_START_ANSWER;
    at += o.start == MM2_START_THINKING;
    mm2_status status = mm2_reply_new(&r, t, &o);
    for (; !status && at < n && !piece.end; at++)
        status = ids[at] < 0 ? MM2_OK : mm2_reply_push(r, ids[at], &piece);
    *lacks = !status && !piece.calls;
    mm2_reply_free(r);
    return status;
}

/* Results of tools that begin further turns stand behind a call in the timeline. */
static mm2_status check_results(const mm2_tokenizer *t, const mm2_turns *all, const int32_t *ids,
                                int32_t n)
{
    const mm2_turn *turns = all->turns.items;
    int32_t i = 0;
    int lacks;
    while (i < all->turns.count && turns[i].role == MM2_ROLE_USER)
        i++;
    if (i == all->turns.count || turns[i].role != MM2_ROLE_TOOL)
        return MM2_OK;
    mm2_status status = lacks_call(t, ids, n, &lacks);
    return !status && lacks ? mm2_turns_uncalled(turns[i].message) : status;
}

/* ----------------------------------------------------------------------------------------------
 * Public functions */

typedef struct call { /* of a public function */
    mm2_conversation c;
    mm2_turns turns;
    page p;
} call;

static mm2_status begin(call *k, const mm2_tokenizer *t, const mm2_conversation *given,
                        const void *out, int32_t cap, int goes_on)
{
    enum { KNOWN = MM2_GENERATION_PROMPT | MM2_NO_THINKING | MM2_KEEP_THINKING };
    if (!t || !given || (!out && cap) || cap < 0)
        return mm2_fail(MM2_E_ARG,
                        "a tokenizer, a conversation and room for at least 0 are needed, given %d",
                        cap);
    k->p.t = t;
    k->c.size = sizeof k->c;
    mm2_status status = mm2_struct_read(&k->c, given, "conversation");
    if (status)
        return status;
    if (!k->c.messages)
        return mm2_fail(MM2_E_ARG, "the conversation has no messages");
    if (k->c.flags & ~KNOWN)
        return mm2_fail(MM2_E_ARG, "unknown flags %d, expected some of %d", k->c.flags, KNOWN);
    if (t->unknown_template)
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "the chat template of %s is none of the known ones of MiniMax-M2 and "
                        "may want another format; in Python, template=\"jinja\" renders it; "
                        "anywhere, write the prompt yourself and encode it with its special tokens",
                        t->unknown_template);
    for (int i = 0; k->p.ids && i < MM2_TAG_NEEDED; i++)
        if (t->tags[i] < 0)
            return mm2_fail(MM2_E_UNSUPPORTED, "the vocabulary has no \"%s\" token",
                            mm2_tag_text[i]);
    return mm2_turns_read(&k->turns, k->c.messages, goes_on ? NULL : k->c.tools, goes_on);
}

/* What a call returns, after its turns were laid out, as ids if there are any. */
static int32_t finish(call *k, mm2_status status)
{
    page *p = &k->p;
    if (!status && p->ids)
        status = flush(p);
    if (!status && p->ids && p->ids->count > INT32_MAX)
        status = mm2_fail(MM2_E_ARG, "the conversation has %lld ids, at most %d can be counted",
                          (long long)p->ids->count, INT32_MAX);
    free(p->text);
    mm2_turns_free(&k->turns);
    return status ? status : p->ids ? (int32_t)p->ids->count : (int32_t)p->length;
}

int32_t mm2_chat_render(const mm2_tokenizer *t, const mm2_conversation *c, char *out, int32_t cap)
{
    call k = {.p.ids = NULL};
    mm2_status status = begin(&k, t, c, out, cap, 0);
    if (!status)
        status = put_conversation(&k.p, &k.turns, &k.c);
    if (!status && k.p.length > INT32_MAX)
        status = mm2_fail(MM2_E_ARG, "the conversation has %lld bytes, at most %d can be counted",
                          (long long)k.p.length, INT32_MAX);
    if (!status && cap)
        memcpy(out, k.p.text, (size_t)(k.p.length < cap ? k.p.length : cap));
    return finish(&k, status);
}

int32_t mm2_chat_encode(const mm2_tokenizer *t, const mm2_conversation *c, int32_t *ids,
                        int32_t cap)
{
    mm2_ids out = {ids, cap, 0};
    call k = {.p.ids = &out};
    mm2_status status = begin(&k, t, c, ids, cap, 0);
    if (!status)
        status = put_conversation(&k.p, &k.turns, &k.c);
    return finish(&k, status);
}

int32_t mm2_chat_continue(const mm2_tokenizer *t, const int32_t *timeline, int32_t length,
                          const mm2_conversation *c, int32_t *ids, int32_t cap)
{
    mm2_ids out = {ids, cap, 0};
    call k = {.p.ids = &out};
    mm2_status status = begin(&k, t, c, ids, cap, 1);
    if (!status && (!timeline || length < 1))
        status = mm2_fail(MM2_E_ARG,
                          "the timeline's ids are needed, at least 1 (given %d): a conversation "
                          "begins without one",
                          length);
    if (!status)
        status = check_results(t, &k.turns, timeline, length);
    if (!status)
        status = put_end(&k.p, timeline, length);
    if (!status)
        status = put_turns(&k.p, &k.turns, 0, k.c.flags);
    return finish(&k, status);
}
