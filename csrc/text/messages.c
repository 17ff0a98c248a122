/* Messages come as JSON, in the form that everybody sends: a role, a content that is a text or a
 * list of parts, the calls of an assistant, the results of tools. What this knows of the forms in
 * use is here and nowhere else; chat.c sees turns.
 *
 * Each message is read twice: first over its fields, keeping where each begins, because the role,
 * which says what they mean, may come last; then field by field. Texts are decoded into one block.
 * It is as large as the JSON, and a decoded text with its NUL is never longer than its JSON with
 * both quotes.
 *
 * What the vendor's template would pass over in silence is refused here, with a sentence that
 * names the message; what everybody sends and means well (null beside calls, arguments as a text,
 * thinking under another name) is understood. CHAT.md has the list. */
#include "text/messages.h"

#include "base/json.h"
#include "base/status.h"
#include "base/utf8.h"
#include "text/schema.h"

#include <stdlib.h>
#include <string.h>

enum { /* fields of a message */
       F_ROLE,
       F_CONTENT,
       F_CALL_ID,
       F_IS_ERROR,
       F_REASONING_CONTENT, /* the names of thinking, the vendor's first */
       F_THINKING,
       F_REASONING,
       F_REASONING_DETAILS,
       F_TOOL_CALLS,
       F_DATE,
       F_LOCATION,
       F_COUNT
};
static const char *const field_names[F_COUNT] = {
    "role",         "content",           "tool_call_id",
    "is_error",     "reasoning_content", "thinking",
    "reasoning",    "reasoning_details", "tool_calls",
    "current_date", "current_location"};
/* These say nothing that the format has a place for, in messages, parts and calls. */
static const char *const ignored[] = {
    "name",    "id",     "type",      "status",        "index",    "annotations",
    "refusal", "format", "signature", "cache_control", "citations"};
static const char *const role_names[MM2_ROLE_COUNT] = {"system", "user", "assistant", "tool"};

typedef struct reader {
    mm2_turns *out;
    mm2_json j;
    int32_t index; /* of the message */
} reader;

/* Where the values of an object's fields begin; NULL: absent, or null. */
typedef struct fields {
    const char *at[F_COUNT];
} fields;

static void *add(mm2_list *list, size_t size)
{
    if (list->count == list->capacity) {
        int32_t capacity = list->capacity < 8 ? 8 : list->capacity / 2 * 3;
        void *grown =
            list->capacity > INT32_MAX / 2 ? NULL : realloc(list->items, (size_t)capacity * size);
        if (!grown) {
            mm2_fail(MM2_E_NOMEM, "no memory for %d messages", list->count);
            return NULL;
        }
        list->items = grown;
        list->capacity = capacity;
    }
    void *item = (char *)list->items + (size_t)list->count++ * size;
    memset(item, 0, size);
    return item;
}

static const char *kind_of(const mm2_json *j, const char *at)
{
    char c = at < j->end ? *at : 0;
    return c == '"'               ? "a string"
           : c == '['             ? "an array"
           : c == '{'             ? "an object"
           : c == 't' || c == 'f' ? "a boolean"
           : c == 'n'             ? "null"
                                  : "a number";
}

/* ---- Values ---- */

/* A text is added to those that were read; several in a row are one. */
static mm2_status read_text(reader *r, mm2_view *text)
{
    char *place = r->out->texts + r->out->used;
    int64_t room = r->j.end - r->j.at + 1;
    mm2_status status = mm2_json_string(&r->j, place, room > INT32_MAX ? INT32_MAX : (int32_t)room);
    if (status)
        return status;
    int64_t length = (int64_t)strlen(place);
    if (!text->begin || text->begin + text->length != place)
        *text = (mm2_view){place, 0};
    text->length += length;
    r->out->used += length;
    return MM2_OK;
}

/* Behind the texts that make one: the next is another one. */
static void end_text(reader *r)
{
    r->out->texts[r->out->used++] = 0;
}

static mm2_status read_value(reader *r, const char *at, mm2_view *json)
{
    r->j.at = at;
    mm2_json_peek(&r->j);
    json->begin = r->j.at;
    mm2_status status = mm2_json_skip(&r->j);
    json->length = r->j.at - json->begin;
    return status;
}

/* Steps into the object at hand: 1 and the name of its next field, as it is written, in front of
 * its value; 0 behind the object. */
static int32_t next_field(reader *r, int *begun, mm2_view *name)
{
    int32_t more = mm2_json_next(&r->j, '{', begun);
    if (more < 1)
        return more;
    mm2_json_peek(&r->j);
    const char *begin = r->j.at + 1;
    mm2_status status = mm2_json_string(&r->j, NULL, 0);
    if (status)
        return status;
    *name = (mm2_view){begin, r->j.at - 1 - begin};
    r->j.at = begin - 1;
    status = mm2_json_key(&r->j, NULL, 0);
    mm2_json_peek(&r->j);
    return status ? status : 1;
}

/* Finds these fields of the object at hand, whatever else it holds, and steps behind it. */
static mm2_status find_fields(reader *r, const char *const *names, int count, const char **at)
{
    int begun = 0;
    int32_t more;
    mm2_view name;
    memset(at, 0, (size_t)count * sizeof *at);
    while ((more = next_field(r, &begun, &name)) > 0) {
        for (int i = 0; i < count; i++)
            if (mm2_view_is(name, names[i]))
                at[i] = mm2_json_peek(&r->j) == 'n' ? NULL : r->j.at;
        mm2_status status = mm2_json_skip(&r->j);
        if (status)
            return status;
    }
    return more;
}

/* A field that is not known may hold nothing. where: " in a part", for instance. */
static mm2_status check_other(reader *r, mm2_view name, const char *where)
{
    mm2_view json;
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        if (mm2_view_is(name, ignored[i]))
            return mm2_json_skip(&r->j);
    mm2_status status = read_value(r, r->j.at, &json);
    if (status || mm2_view_is(json, "null") || mm2_view_is(json, "[]") || mm2_view_is(json, "{}") ||
        mm2_view_is(json, "\"\""))
        return status;
    return mm2_fail(MM2_E_ARG,
                    "message %d has \"%.*s\"%s, which the format has no place for; a message is "
                    "role, content, of an assistant thinking and tool_calls",
                    r->index, name.length > 40 ? 40 : (int)name.length, name.begin, where);
}

/* Refuses what the object at `at` has besides these fields, up to NULL. Stands where it stood. */
static mm2_status check_fields(reader *r, const char *at, const char *const *names,
                               const char *where)
{
    const char *after = r->j.at;
    int begun = 0, i;
    int32_t more;
    mm2_view name;
    r->j.at = at;
    while ((more = next_field(r, &begun, &name)) > 0) {
        for (i = 0; names[i] && !mm2_view_is(name, names[i]); i++)
            continue;
        mm2_status status = names[i] ? mm2_json_skip(&r->j) : check_other(r, name, where);
        if (status)
            return status;
    }
    r->j.at = after;
    return more;
}

/* ---- A content ---- */

enum { P_TYPE, P_TEXT, P_THINKING, P_OUTPUT, P_SUMMARY, P_CONTENT, P_IS_ERROR, P_CALL_ID, P_COUNT };
static const char *const part_names[P_COUNT] = {"type",    "text",    "thinking", "output",
                                                "summary", "content", "is_error", "tool_use_id"};
static const char in_part[] = " in a part of its content", in_call[] = " in a call";
/* Parts that are no text, of an assistant and of a user, as Anthropic's interface has them. */
static const char part_call[] = "tool_use", part_result[] = "tool_result";

static int says(const reader *r, const char *at, const char *text)
{
    int64_t n = (int64_t)strlen(text);
    return at && r->j.end - at >= n + 2 && *at == '"' && at[n + 1] == '"' &&
           !memcmp(at + 1, text, (size_t)n);
}

static mm2_status text_at(reader *r, const char *at, mm2_view *text)
{
    const char *after = r->j.at;
    r->j.at = at;
    mm2_status status = read_text(r, text);
    r->j.at = after;
    return status;
}

static mm2_status bad_part(const reader *r, const char *type)
{
    int64_t n = type && *type == '"'
                    ? (const char *)memchr(type + 1, '"', (size_t)(r->j.end - type - 1)) - type - 1
                    : -1;
    if (n < 0)
        return mm2_fail(MM2_E_ARG,
                        "message %d has a part of its content that is no text; expected strings "
                        "and {\"type\": \"text\", \"text\": ...}",
                        r->index);
    return mm2_fail(MM2_E_ARG,
                    "message %d has a part of the type \"%.*s\" in its content; the format has a "
                    "place for texts only",
                    r->index, n > 40 ? 40 : (int)n, type + 1);
}

/* A list of parts: the texts, or with `thinking` the thinking blocks. Parts of the type `besides`
 * are passed over; NULL: there are none. */
static mm2_status read_parts(reader *r, const char *at, int thinking, const char *besides,
                             mm2_view *text)
{
    int begun = 0;
    int32_t more;
    mm2_status status = MM2_OK;
    r->j.at = at;
    while (!status && (more = mm2_json_next(&r->j, '[', &begun)) > 0) {
        const char *part[P_COUNT];
        if (mm2_json_peek(&r->j) == '"' && !thinking) {
            status = read_text(r, text);
            continue;
        }
        if (mm2_json_peek(&r->j) != '{') {
            if (!thinking)
                return bad_part(r, NULL);
            status = mm2_json_skip(&r->j);
            continue;
        }
        const char *begin = r->j.at;
        status = find_fields(r, part_names, P_COUNT, part);
        if (status)
            return status;
        if (besides && says(r, part[P_TYPE], besides))
            continue;
        int thinks = says(r, part[P_TYPE], "thinking") && part[P_THINKING];
        if (!thinks && (!says(r, part[P_TYPE], "text") || !part[P_TEXT]))
            return bad_part(r, part[P_TYPE]);
        const char *const own[] = {"type", thinks ? "thinking" : "text", NULL};
        status = check_fields(r, begin, own, in_part);
        if (!status && thinks == thinking)
            status = text_at(r, part[thinks ? P_THINKING : P_TEXT], text);
    }
    return status ? status : more;
}

static mm2_status read_content(reader *r, mm2_turn *turn, const char *at)
{
    mm2_status status = MM2_OK;
    turn->content = (mm2_view){"", 0};
    if (!at) {
        if (turn->role == MM2_ROLE_SYSTEM || turn->role == MM2_ROLE_ASSISTANT)
            return MM2_OK;
        return mm2_fail(MM2_E_ARG, "message %d has no content", r->index);
    }
    if (*at != '"' && *at != '[')
        return mm2_fail(MM2_E_ARG,
                        "message %d has %s as its content, expected a string or a list of texts",
                        r->index, kind_of(&r->j, at));
    if (*at == '[') {
        const char *besides = turn->role == MM2_ROLE_ASSISTANT ? part_call
                              : turn->role == MM2_ROLE_USER    ? part_result
                                                               : NULL;
        status = read_parts(r, at, 0, besides, &turn->content);
        turn->is_list = r->j.at > at + 2;
    } else
        status = text_at(r, at, &turn->content);
    end_text(r);
    return status;
}

/* The format has no mark for a result that is an error: the text says it. There is room, that of the
 * field which told. */
static void mark_error(reader *r, mm2_view *result)
{
    static const char word[] = "error: ";
    enum { WORD = sizeof word - 1 };
    if (result->length >= 5 && (*result->begin | 32) == 'e' &&
        !memcmp(result->begin + 1, "rror", 4))
        return;
    char *place = r->out->texts + r->out->used - result->length;
    memmove(place + WORD, place, (size_t)result->length);
    memcpy(place, word, WORD);
    *result = (mm2_view){place, result->length + WORD};
    r->out->used += WORD;
}

/* What is_error says, where it is there. */
static mm2_status read_error(reader *r, const char *at, int *error)
{
    *error = at && *at == 't';
    return !at || *error || *at == 'f'
               ? MM2_OK
               : mm2_fail(MM2_E_ARG, "message %d has %s as its is_error, expected true or false",
                          r->index, kind_of(&r->j, at));
}

/* The results of a tool message: each is rendered by itself. */
static mm2_status read_results(reader *r, mm2_turn *turn, const char *at, const char *is_error)
{
    int begun = 0, error;
    int32_t more = 0;
    mm2_status status = read_error(r, is_error, &error);
    turn->first = r->out->results.count;
    turn->is_list = *at == '[';
    r->j.at = at;
    while (!status && (!turn->is_list || (more = mm2_json_next(&r->j, '[', &begun)) > 0)) {
        static const char *const own[] = {"type", "text", "output", NULL};
        char c = mm2_json_peek(&r->j);
        const char *part[P_COUNT] = {0}, *text = r->j.at;
        if (c == '{' && turn->is_list) {
            status = check_fields(r, text, own, in_part);
            if (!status)
                status = find_fields(r, part_names, P_COUNT, part);
            text = part[P_OUTPUT]                                  ? part[P_OUTPUT]
                   : says(r, part[P_TYPE], "text") && part[P_TEXT] ? part[P_TEXT]
                                                                   : NULL;
        } else {
            status = mm2_json_skip(&r->j);
        }
        if (!status && (!text || *text != '"'))
            return mm2_fail(MM2_E_ARG,
                            "message %d has %s among its results, expected strings and "
                            "{\"type\": \"text\", \"text\": ...}; write values as JSON in a string",
                            r->index, text ? kind_of(&r->j, text) : "a part without text");
        mm2_view *result = status ? NULL : add(&r->out->results, sizeof *result);
        if (!status)
            status = result ? text_at(r, text, result) : MM2_E_NOMEM;
        if (!status && error && r->out->results.count > turn->first + 1)
            return mm2_fail(MM2_E_ARG, "message %d has several results and is_error", r->index);
        if (!status && error)
            mark_error(r, result);
        end_text(r);
        if (!turn->is_list)
            break;
    }
    turn->count = r->out->results.count - turn->first;
    return status ? status : more;
}

/* Calls f for each part of this type; returns how many there are, or a failure. */
static int32_t each_part(reader *r, const char *at, const char *type,
                         mm2_status (*f)(reader *r, const char *const *part))
{
    int begun = 0;
    int32_t more, count = 0;
    r->j.at = at;
    while ((more = mm2_json_next(&r->j, '[', &begun)) > 0) {
        const char *part[P_COUNT], *begin;
        mm2_status status = MM2_OK;
        if (mm2_json_peek(&r->j) == '{') {
            begin = r->j.at;
            status = find_fields(r, part_names, P_COUNT, part);
            const char *after = r->j.at;
            if (!status && says(r, part[P_TYPE], type)) {
                count++;
                r->j.at = begin;
                status = f(r, part);
            }
            r->j.at = after;
        } else {
            status = mm2_json_skip(&r->j);
        }
        if (status)
            return status;
    }
    return more < 0 ? more : count;
}

/* What stands at a field that is a string, if it is there. */
static mm2_status read_place(reader *r, const char *at, const char *name, mm2_view *text)
{
    if (!at)
        return MM2_OK;
    if (*at != '"')
        return mm2_fail(MM2_E_ARG, "message %d has %s as its %s, expected a string", r->index,
                        kind_of(&r->j, at), name);
    mm2_status status = text_at(r, at, text);
    end_text(r);
    return status;
}

/* A part: its content is a text, or a list of texts that are one. */
static mm2_status read_part_result(reader *r, const char *const *part)
{
    static const char *const own[] = {"type", "content", "is_error", "tool_use_id", NULL};
    const char *at = part[P_CONTENT];
    int error;
    int32_t first = r->out->results.count, i = r->out->turns.count;
    mm2_status status = check_fields(r, r->j.at, own, in_part);
    if (!status)
        status = read_error(r, part[P_IS_ERROR], &error);
    if (status)
        return status;
    if (at && *at != '"' && *at != '[')
        return mm2_fail(MM2_E_ARG, "message %d has %s as a result, expected a string or texts",
                        r->index, kind_of(&r->j, at));
    mm2_view *result = add(&r->out->results, sizeof *result);
    mm2_turn *turn = add(&r->out->turns, sizeof *turn);
    if (!result || !turn)
        return MM2_E_NOMEM;
    *result = (mm2_view){"", 0};
    *turn = (mm2_turn){.role = MM2_ROLE_TOOL, .first = first, .count = 1, .message = r->index};
    if (at)
        status = *at == '"' ? text_at(r, at, result) : read_parts(r, at, 0, NULL, result);
    if (!status && error)
        mark_error(r, result);
    end_text(r);
    turn = (mm2_turn *)r->out->turns.items + i;
    return status ? status : read_place(r, part[P_CALL_ID], part_names[P_CALL_ID], &turn->id);
}

/* The results in a user's message are turns of the tools, in front of what the user says. */
static mm2_status part_results(reader *r, const mm2_turn *turn, const char *at)
{
    mm2_turn said = *turn;
    r->out->turns.count--;
    int32_t n = each_part(r, at, part_result, read_part_result);
    if (n < 0 || (n && !said.content.length))
        return n < 0 ? n : MM2_OK;
    mm2_turn *last = add(&r->out->turns, sizeof *last);
    if (!last)
        return MM2_E_NOMEM;
    *last = said;
    return MM2_OK;
}

/* ---- Thinking ---- */

/* [{"type": "reasoning.text", "text": "..."}], as the vendor's service sends it, or thinking blocks. */
static mm2_status read_details(reader *r, const char *at, mm2_view *text)
{
    int begun = 0;
    int32_t more;
    mm2_status status = MM2_OK;
    r->j.at = at;
    while (!status && (more = mm2_json_next(&r->j, '[', &begun)) > 0) {
        static const char *const own[] = {"type", "text", "thinking", "summary", NULL};
        const char *part[P_COUNT];
        mm2_json_peek(&r->j);
        status = check_fields(r, r->j.at, own, " in its thinking");
        if (!status)
            status = find_fields(r, part_names, P_COUNT, part);
        if (status)
            return status;
        const char *found = part[P_TEXT]       ? part[P_TEXT]
                            : part[P_THINKING] ? part[P_THINKING]
                                               : part[P_SUMMARY];
        if (!found)
            return mm2_fail(MM2_E_ARG,
                            "message %d has thinking without text; it cannot be sent back",
                            r->index);
        status = text_at(r, found, text);
    }
    return status ? status : more;
}

/* Under any of its names; the first that is not empty. */
static mm2_status read_thinking(reader *r, mm2_turn *turn, const fields *f)
{
    mm2_status status = MM2_OK;
    turn->thinking = (mm2_view){"", 0};
    for (int i = F_REASONING_CONTENT; i <= F_REASONING_DETAILS && !status; i++) {
        mm2_view text = {0};
        const char *at = f->at[i];
        if (!at || turn->thinking.length)
            continue;
        if (*at != '"' && *at != '[')
            return mm2_fail(MM2_E_ARG, "message %d has %s as its %s, expected a string", r->index,
                            kind_of(&r->j, at), field_names[i]);
        status = *at == '"' ? text_at(r, at, &text) : read_details(r, at, &text);
        end_text(r);
        turn->thinks = 1;
        if (text.length)
            turn->thinking = text;
    }
    if (!status && !turn->thinking.length && f->at[F_CONTENT] && *f->at[F_CONTENT] == '[') {
        mm2_view text = {0};
        status = read_parts(r, f->at[F_CONTENT], 1, part_call, &text);
        end_text(r);
        if (text.begin) {
            turn->thinks = 1;
            turn->thinking = text;
        }
    }
    return status;
}

/* ---- Calls ---- */

/* An object, or the JSON of one in a string; nothing for none. */
static mm2_status read_arguments(reader *r, const char *at, mm2_view *arguments)
{
    mm2_view text = {0};
    *arguments = (mm2_view){"{}", 2};
    if (!at)
        return MM2_OK;
    if (*at == '"') {
        mm2_status status = text_at(r, at, &text);
        end_text(r);
        if (status)
            return status;
        text = mm2_view_trim(text);
        if (!text.length)
            return MM2_OK;
        mm2_json inner;
        mm2_json_begin(&inner, "arguments", text.begin, text.length);
        if (*text.begin == '{' && !mm2_json_skip(&inner) && inner.at == inner.end) {
            *arguments = text;
            return MM2_OK;
        }
    } else if (*at == '{') {
        return read_value(r, at, arguments);
    }
    return mm2_fail(MM2_E_ARG, "message %d has a call whose arguments are %s, expected an object",
                    r->index, *at == '"' ? "a string that holds no object" : kind_of(&r->j, at));
}

static mm2_status read_call(reader *r)
{
    static const char *const names[] = {"name", "arguments", "input", "function", "id", NULL};
    static const char *const outer[] = {"function", NULL}, *const flat[] = {"name", "arguments",
                                                                            "input", NULL};
    const char *at[5], *id, *begin;
    mm2_turn_call *call = add(&r->out->calls, sizeof *call);
    if (!call)
        return MM2_E_NOMEM;
    mm2_json_peek(&r->j);
    begin = r->j.at;
    mm2_status status = find_fields(r, names, 5, at);
    const char *after = r->j.at;
    id = at[4];
    if (!status && at[3]) {
        status = check_fields(r, begin, outer, in_call);
        begin = r->j.at = at[3];
        if (!status)
            status = find_fields(r, names, 5, at);
    }
    if (!status)
        status = check_fields(r, begin, flat, in_call);
    if (!status && (!at[0] || *at[0] != '"'))
        status = mm2_fail(MM2_E_ARG, "message %d has a call without the name of a tool", r->index);
    if (!status)
        status = text_at(r, at[0], &call->name);
    end_text(r);
    if (!status)
        status = read_place(r, id, "call's id", &call->id);
    if (!status)
        status = read_arguments(r, at[1] ? at[1] : at[2], &call->arguments);
    r->j.at = after;
    return status;
}

static mm2_status read_part_call(reader *r, const char *const *part)
{
    (void)part;
    return read_call(r);
}

/* Those of a message; else those among the parts of its content. */
static mm2_status read_calls(reader *r, mm2_turn *turn, const fields *f)
{
    const char *at = f->at[F_TOOL_CALLS], *parts = f->at[F_CONTENT];
    if (!at && turn->role == MM2_ROLE_ASSISTANT && parts && *parts == '[') {
        turn->first = r->out->calls.count;
        turn->count = each_part(r, parts, part_call, read_part_call);
        return turn->count < 0 ? turn->count : MM2_OK;
    }
    if (!at)
        return MM2_OK;
    int begun = 0;
    int32_t more = 0;
    mm2_status status = MM2_OK;
    turn->first = r->out->calls.count;
    r->j.at = at;
    while (!status && (more = mm2_json_next(&r->j, '[', &begun)) > 0)
        status = read_call(r);
    turn->count = r->out->calls.count - turn->first;
    return status ? status : more;
}

/* ---- Messages ---- */

static mm2_status find_message(reader *r, fields *f)
{
    int begun = 0, i;
    int32_t more;
    mm2_view name;
    *f = (fields){0};
    while ((more = next_field(r, &begun, &name)) > 0) {
        for (i = 0; i < F_COUNT && !mm2_view_is(name, field_names[i]); i++)
            continue;
        mm2_status status = MM2_OK;
        if (i < F_COUNT) {
            f->at[i] = mm2_json_peek(&r->j) == 'n' ? NULL : r->j.at;
            status = mm2_json_skip(&r->j);
            if (status)
                return mm2_fail_in(status, field_names[i]);
            if (f->at[i] && i != F_CONTENT && r->j.at - f->at[i] == 2 && *f->at[i] == '{')
                f->at[i] = NULL; /* Lua's empty list */
        } else {
            status = check_other(r, name, "");
        }
        if (status)
            return status;
    }
    return more;
}

static mm2_status read_role(reader *r, mm2_turn *turn, const char *at, int goes_on)
{
    mm2_view role = {0};
    if (!at || *at != '"')
        return mm2_fail(MM2_E_ARG, "message %d has no role", r->index);
    mm2_status status = text_at(r, at, &role);
    end_text(r);
    if (status)
        return status;
    turn->role = MM2_ROLE_COUNT;
    for (int i = 0; i < MM2_ROLE_COUNT; i++)
        if (mm2_view_is(role, role_names[i]))
            turn->role = i;
    if (mm2_view_is(role, "developer")) /* a later name of the same */
        turn->role = MM2_ROLE_SYSTEM;
    if (turn->role == MM2_ROLE_COUNT)
        return mm2_fail(MM2_E_ARG,
                        "message %d has the role \"%.*s\", expected \"system\", \"user\", "
                        "\"assistant\" or \"tool\"",
                        r->index, role.length > 40 ? 40 : (int)role.length, role.begin);
    if (turn->role == MM2_ROLE_SYSTEM && (r->index || goes_on))
        return mm2_fail(MM2_E_ARG,
                        "message %d is a system message; only the first message of a conversation "
                        "can be one",
                        r->index);
    return MM2_OK;
}

static mm2_status check_places(const reader *r, const mm2_turn *turn, const fields *f)
{
    int assistant = turn->role == MM2_ROLE_ASSISTANT;
    if (f->at[F_IS_ERROR] && turn->role != MM2_ROLE_TOOL)
        return mm2_fail(MM2_E_ARG, "message %d has is_error, which only a tool has", r->index);
    for (int i = F_REASONING_CONTENT; i < F_COUNT; i++) {
        int of_system = i == F_DATE || i == F_LOCATION;
        const char *at = f->at[i];
        if (!at || (of_system ? turn->role == MM2_ROLE_SYSTEM : assistant) || says(r, at, "") ||
            (*at == '[' && at[1] == ']'))
            continue;
        return mm2_fail(MM2_E_ARG, "message %d has %s, which only %s has", r->index,
                        of_system           ? field_names[i]
                        : i == F_TOOL_CALLS ? "calls"
                                            : "thinking",
                        of_system ? "a system message" : "an assistant");
    }
    return MM2_OK;
}

static mm2_status read_message(reader *r, mm2_turn *turn, int goes_on)
{
    fields f;
    mm2_status status = find_message(r, &f);
    const char *after = r->j.at;
    turn->message = r->index;
    if (!status)
        status = read_role(r, turn, f.at[F_ROLE], goes_on);
    if (!status)
        status = check_places(r, turn, &f);
    if (!status && (turn->role != MM2_ROLE_TOOL || !f.at[F_CONTENT]))
        status = read_content(r, turn, f.at[F_CONTENT]);
    else if (!status)
        status = read_results(r, turn, f.at[F_CONTENT], f.at[F_IS_ERROR]);
    if (!status && turn->role == MM2_ROLE_ASSISTANT)
        status = read_thinking(r, turn, &f);
    if (!status)
        status = read_calls(r, turn, &f);
    if (!status)
        status = read_place(r, f.at[F_DATE], field_names[F_DATE], &turn->date);
    if (!status)
        status = read_place(r, f.at[F_LOCATION], field_names[F_LOCATION], &turn->location);
    if (!status && turn->role == MM2_ROLE_TOOL)
        status = read_place(r, f.at[F_CALL_ID], field_names[F_CALL_ID], &turn->id);
    if (!status && turn->role == MM2_ROLE_USER && *f.at[F_CONTENT] == '[')
        status = part_results(r, turn, f.at[F_CONTENT]);
    r->j.at = after;
    return status;
}

mm2_status mm2_turns_uncalled(int32_t index)
{
    return mm2_fail(MM2_E_ARG,
                    "message %d is of a tool, but the assistant has called none before it", index);
}

static mm2_status read_messages(reader *r, int goes_on)
{
    int begun = 0, called = goes_on;
    int32_t more;
    mm2_status status = MM2_OK;
    for (; !status && (more = mm2_json_next(&r->j, '[', &begun)) > 0; r->index++) {
        int32_t i = r->out->turns.count;
        mm2_turn *turn = add(&r->out->turns, sizeof *turn);
        if (!turn)
            return MM2_E_NOMEM;
        status = read_message(r, turn, goes_on);
        turn = (mm2_turn *)r->out->turns.items + i; /* it may have become several */
        if (!status && turn->role == MM2_ROLE_ASSISTANT)
            called = turn->count > 0;
        if (!status && turn->role == MM2_ROLE_TOOL && !called)
            return mm2_turns_uncalled(r->index);
    }
    if (!status)
        status = more ? more : mm2_json_end(&r->j);
    if (!status && !r->out->turns.count)
        return mm2_fail(MM2_E_ARG, "a conversation needs at least 1 message");
    return status;
}

/* They were checked. */
static mm2_status read_tools(reader *r)
{
    static const char *const names[] = {"function"};
    int begun = 0;
    int32_t more = 0;
    mm2_status status = MM2_OK;
    if (mm2_json_peek(&r->j) == 'n') /* null */
        return MM2_OK;
    while (!status && (more = mm2_json_next(&r->j, '[', &begun)) > 0) {
        const char *at;
        mm2_turn_tool *tool = add(&r->out->tools, sizeof *tool);
        if (!tool)
            return MM2_E_NOMEM;
        mm2_json_peek(&r->j);
        const char *begin = r->j.at;
        status = find_fields(r, names, 1, &at);
        const char *after = r->j.at;
        tool->flat = !at;
        tool->json = (mm2_view){begin, after - begin};
        if (!status && at)
            status = read_value(r, at, &tool->json);
        r->j.at = after;
    }
    return status ? status : more;
}

/* The text, repaired where it is no UTF-8. */
static mm2_status begin(reader *r, char **source, const char *json, const char *where)
{
    int64_t length = (int64_t)strlen(json);
    mm2_status status = mm2_utf8_repair(source, &length, json, length);
    if (!status)
        mm2_json_begin(&r->j, where, *source ? *source : json, length);
    return status;
}

mm2_status mm2_turns_read(mm2_turns *out, const char *messages, const char *tools, int goes_on)
{
    reader r = {.out = out};
    *out = (mm2_turns){0};
    mm2_status status = begin(&r, &out->sources[0], messages, "messages");
    if (status)
        return status;
    out->texts = malloc((size_t)(r.j.end - r.j.start) + 1);
    if (!out->texts)
        return mm2_fail(MM2_E_NOMEM, "no memory for messages of %lld bytes",
                        (long long)(r.j.end - r.j.start));
    status = read_messages(&r, goes_on);
    if (!status)
        status = mm2_turns_order(out);
    if (!status && tools)
        status = begin(&r, &out->sources[1], tools, "tools");
    if (!status && tools) {
        mm2_tools checked;
        status = mm2_tools_read(&checked, r.j.start, r.j.end - r.j.start);
        mm2_tools_free(&checked);
    }
    if (!status && tools)
        status = read_tools(&r);
    return status == MM2_E_FORMAT ? MM2_E_ARG : status; /* the JSON is an argument */
}

void mm2_turns_free(mm2_turns *t)
{
    free(t->turns.items);
    free(t->calls.items);
    free(t->results.items);
    free(t->tools.items);
    free(t->sources[0]);
    free(t->sources[1]);
    free(t->texts);
}
