/* Turns back to JSON, in the forms that OpenAI's and Anthropic's interfaces take. What messages.c
 * has read is written here, so that any form that is understood becomes any of these.
 *
 * The chat format has no ids: results belong to the calls before them by their order. So calls are
 * numbered, call_0, call_1, ..., and each result gets the id of its call. Nothing is kept between
 * the pieces that are written: `out` counts all bytes and keeps those that fit. */
#include "base/status.h"
#include "base/utf8.h"
#include "text/messages.h"

#include <stdlib.h>
#include <string.h>

typedef struct writer {
    const mm2_turns *turns;
    char *out;
    int64_t cap, length;
    int32_t calls;  /* that were written */
    int32_t result; /* the call that gets the next result */
} writer;

static void put_bytes(writer *w, const char *bytes, int64_t n)
{
    for (int64_t i = 0; i < n && w->length + i < w->cap; i++)
        w->out[w->length + i] = bytes[i];
    w->length += n;
}

static void put_text(writer *w, const char *text)
{
    put_bytes(w, text, (int64_t)strlen(text));
}

/* A JSON string. */
static void put_string(writer *w, mm2_view text)
{
    char escaped[6 * 4];
    put_text(w, "\"");
    for (int64_t i = 0, n; i < text.length; i += n) {
        n = mm2_utf8_length((const uint8_t *)text.begin + i, text.length - i);
        n = n < 1 ? 1 : n;
        put_bytes(w, escaped, mm2_json_escape(escaped, (mm2_view){text.begin + i, n}));
    }
    put_text(w, "\"");
}

static void put_field(writer *w, const char *name, mm2_view text)
{
    put_text(w, name);
    put_string(w, text);
}

static void put_id(writer *w, const char *name, int32_t id)
{
    char text[32];
    mm2_format(text, sizeof text, "\"call_%d\"", id);
    put_text(w, name);
    put_text(w, text);
}

/* Arguments, in the format's spelling; in quotes as a string. */
static mm2_status put_arguments(writer *w, mm2_view arguments, int quoted)
{
    char *form = malloc((size_t)(2 * arguments.length) + 1);
    if (!form)
        return mm2_fail(MM2_E_NOMEM, "no memory for arguments of %lld bytes",
                        (long long)arguments.length);
    int64_t n = mm2_json_form(form, arguments, 1);
    if (n < 0) { /* it was read before */
        free(form);
        return mm2_fail(MM2_E_ARG, "a call's arguments are no JSON");
    }
    if (quoted)
        put_string(w, (mm2_view){form, n});
    else
        put_bytes(w, form, n);
    free(form);
    return MM2_OK;
}

/* The id of the call that gets the next result; nothing where there are more results than calls. */
static void put_result_id(writer *w, const char *name)
{
    if (w->result < w->calls)
        put_id(w, name, w->result++);
}

/* The results of one message: each by itself; those of one call, which it names, as a list. */
static void put_results(writer *w, const mm2_turn *turn, const char *begin, const char *id)
{
    const mm2_view *results = (const mm2_view *)w->turns->results.items + turn->first;
    int as_list = !turn->count || (turn->count > 1 && turn->id.length);
    for (int32_t i = 0; i < (as_list ? 1 : turn->count); i++) {
        put_text(w, i ? ", " : "");
        put_text(w, begin);
        put_result_id(w, id);
        if (!as_list) {
            put_field(w, ", \"content\": ", results[i]);
            put_text(w, "}");
        }
    }
    if (!as_list)
        return;
    put_text(w, ", \"content\": [");
    for (int32_t i = 0; i < turn->count; i++) {
        put_field(w, &", {\"type\": \"text\", \"text\": "[i ? 0 : 2], results[i]);
        put_text(w, "}");
    }
    put_text(w, "]}");
}

/* What both forms write alike. */
static void put_system(writer *w, const mm2_turn *turn)
{
    put_field(w, "{\"role\": \"system\", \"content\": ", turn->content);
    if (turn->date.length)
        put_field(w, ", \"current_date\": ", turn->date);
    if (turn->location.length)
        put_field(w, ", \"current_location\": ", turn->location);
    put_text(w, "}");
}

/* ---- OpenAI ---- */

static mm2_status put_openai_calls(writer *w, const mm2_turn *turn)
{
    const mm2_turn_call *calls = (const mm2_turn_call *)w->turns->calls.items + turn->first;
    mm2_status status = MM2_OK;
    put_text(w, ", \"tool_calls\": [");
    for (int32_t i = 0; i < turn->count && !status; i++) {
        put_id(w, i ? ", {\"id\": " : "{\"id\": ", w->calls++);
        put_field(w, ", \"type\": \"function\", \"function\": {\"name\": ", calls[i].name);
        put_text(w, ", \"arguments\": ");
        status = put_arguments(w, calls[i].arguments, 1);
        put_text(w, "}}");
    }
    put_text(w, "]");
    return status;
}

static mm2_status put_openai(writer *w, const mm2_turn *turn)
{
    mm2_status status = MM2_OK;
    if (turn->role == MM2_ROLE_TOOL) {
        put_results(w, turn, "{\"role\": \"tool\"", ", \"tool_call_id\": ");
        return MM2_OK;
    }
    if (turn->role == MM2_ROLE_USER) {
        put_field(w, "{\"role\": \"user\", \"content\": ", turn->content);
    } else if (turn->count && !turn->content.length) {
        put_text(w, "{\"role\": \"assistant\", \"content\": null");
    } else {
        put_field(w, "{\"role\": \"assistant\", \"content\": ", turn->content);
    }
    if (turn->thinking.length)
        put_field(w, ", \"reasoning_content\": ", turn->thinking);
    if (turn->role == MM2_ROLE_ASSISTANT && turn->count)
        status = put_openai_calls(w, turn);
    put_text(w, "}");
    return status;
}

/* ---- Anthropic ---- */

static mm2_status put_blocks(writer *w, const mm2_turn *turn)
{
    const mm2_turn_call *calls = (const mm2_turn_call *)w->turns->calls.items + turn->first;
    const char *comma = "";
    mm2_status status = MM2_OK;
    put_text(w, "{\"role\": \"assistant\", \"content\": [");
    if (turn->thinking.length) {
        put_field(w, "{\"type\": \"thinking\", \"thinking\": ", turn->thinking);
        put_text(w, ", \"signature\": \"\"}");
        comma = ", ";
    }
    if (turn->content.length || !(turn->thinking.length || turn->count)) {
        put_text(w, comma);
        put_field(w, "{\"type\": \"text\", \"text\": ", turn->content);
        put_text(w, "}");
        comma = ", ";
    }
    for (int32_t i = 0; i < turn->count && !status; i++, comma = ", ") {
        put_text(w, comma);
        put_id(w, "{\"type\": \"tool_use\", \"id\": ", w->calls++);
        put_field(w, ", \"name\": ", calls[i].name);
        put_text(w, ", \"input\": ");
        status = put_arguments(w, calls[i].arguments, 0);
        put_text(w, "}");
    }
    put_text(w, "]}");
    return status;
}

/* Results, and what the user says behind them, are one message. */
static void put_user_blocks(writer *w, const mm2_turn *turn, int first, int last)
{
    put_text(w, first ? "{\"role\": \"user\", \"content\": [" : "");
    if (turn->role == MM2_ROLE_TOOL)
        put_results(w, turn, "{\"type\": \"tool_result\"", ", \"tool_use_id\": ");
    if (turn->role == MM2_ROLE_USER) {
        put_field(w, "{\"type\": \"text\", \"text\": ", turn->content);
        put_text(w, "}");
    }
    put_text(w, last ? "]}" : "");
}

static mm2_status put_anthropic(writer *w, int32_t i)
{
    const mm2_turn *turns = w->turns->turns.items, *turn = &turns[i];
    if (turn->role == MM2_ROLE_ASSISTANT)
        return put_blocks(w, turn);
    int goes_on = i && turns[i - 1].role == MM2_ROLE_TOOL;
    int more = turn->role == MM2_ROLE_TOOL && i + 1 < w->turns->turns.count &&
               (turns[i + 1].role == MM2_ROLE_TOOL || turns[i + 1].role == MM2_ROLE_USER);
    put_user_blocks(w, turn, !goes_on, !more);
    return MM2_OK;
}

/* ---- All ---- */

static mm2_status put_turn(writer *w, int32_t i, int32_t form)
{
    const mm2_turn *turn = (const mm2_turn *)w->turns->turns.items + i;
    int32_t before = w->calls;
    put_text(w, i ? ", " : "");
    if (turn->role == MM2_ROLE_SYSTEM) {
        put_system(w, turn);
        return MM2_OK;
    }
    mm2_status status = form == MM2_FORM_OPENAI ? put_openai(w, turn) : put_anthropic(w, i);
    if (turn->role == MM2_ROLE_ASSISTANT)
        w->result = before;
    return status;
}

int32_t mm2_chat_export(const char *messages, int32_t form, char *out, int32_t cap)
{
    mm2_turns turns = {0};
    if (!messages || (!out && cap) || cap < 0)
        return mm2_fail(MM2_E_ARG,
                        "exporting messages needs messages and room for at least 0 bytes (given "
                        "%d)",
                        cap);
    if (form != MM2_FORM_OPENAI && form != MM2_FORM_ANTHROPIC)
        return mm2_fail(MM2_E_ARG, "the form of messages is %d, expected %d or %d", form,
                        MM2_FORM_OPENAI, MM2_FORM_ANTHROPIC);
    mm2_status status = mm2_turns_read(&turns, messages, NULL, 0);
    writer w = {.turns = &turns, .out = out, .cap = cap};
    put_text(&w, "[");
    for (int32_t i = 0; i < turns.turns.count && !status; i++)
        status = put_turn(&w, i, form);
    put_text(&w, "]");
    mm2_turns_free(&turns);
    if (!status && w.length > INT32_MAX)
        status = mm2_fail(MM2_E_ARG, "the messages have %lld bytes, at most %d can be counted",
                          (long long)w.length, INT32_MAX);
    return status ? status : (int32_t)w.length;
}
