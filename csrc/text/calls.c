/* The calls of tools in a chat turn, read byte by byte:
 *
 *     {thinking}</think>{text}
 *     <minimax:tool_call>
 *     <invoke name="f">
 *     <parameter name="a">value</parameter>
 *     </invoke>
 *     </minimax:tool_call>
 *
 * A tag is the same whether it came as a token or spelled, in one piece or in many. Values are not
 * escaped in this format, so whether a tag ends a value is decided by what follows it: the end of a
 * parameter is one if a parameter or the end of the invoke comes next, and part of the value
 * otherwise. A block that opens without an invoke in it is no block but a text about one. Nothing
 * that a model writes is an error, and nothing is lost: what is no call comes out as the text or the
 * thinking that it is, with a reason beside it.
 *
 * What is not decided waits in `held`. Every tag begins with "<" and has no other, so a tag that
 * fails gives all of its bytes away at once, and each byte is looked at twice at most. Strings come
 * out character by character, as JSON; values of other types when they are complete. Where the reply
 * ends, strings and objects are closed, so the arguments are JSON wherever it was cut.
 *
 * Room is made by mm2_calls_reserve before bytes are pushed, so that pushing cannot fail. */
#include "text/calls.h"

#include "base/status.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { /* mm2_calls.state */
       S_THINKING,
       S_TEXT,
       S_BLOCK,     /* between invokes */
       S_INVOKE,    /* behind <invoke name= */
       S_BODY,      /* between parameters */
       S_PARAMETER, /* behind <parameter name= */
       S_VALUE
};

enum { T_NONE, T_THINK, T_THOUGHT, T_OPEN, T_CLOSE, T_INVOKE, T_INVOKED, T_PARAMETER, T_GIVEN };
static const char *const tags[] = {"",
                                   "<think>",
                                   "</think>",
                                   "<minimax:tool_call>",
                                   "</minimax:tool_call>",
                                   "<invoke name=",
                                   "</invoke>",
                                   "<parameter name=",
                                   "</parameter>"};
enum { PARTIAL = -1, MOST_NAME = 512 };

enum { AS_STRING, AS_NULL_OR_STRING, WHEN_COMPLETE }; /* mm2_calls.mode */

/* ---- Room ---- */

mm2_status mm2_growing_reserve(mm2_growing *g, int64_t n)
{
    int64_t needed = g->length + n;
    if (needed <= g->capacity)
        return MM2_OK;
    if (needed > INT32_MAX)
        return mm2_fail(MM2_E_ARG, "the text has %lld bytes, at most %d can be counted",
                        (long long)needed, INT32_MAX);
    int64_t capacity = needed + needed / 2 + 256;
    char *bytes = realloc(g->bytes, (size_t)capacity);
    if (!bytes)
        return mm2_fail(MM2_E_NOMEM, "no memory for a text of %lld bytes", (long long)needed);
    g->bytes = bytes;
    g->capacity = capacity;
    return MM2_OK;
}

static void append(mm2_growing *g, const char *bytes, int64_t n)
{
    memcpy(g->bytes + g->length, bytes, (size_t)n);
    g->length += n;
}

static void append_text(mm2_growing *g, const char *text)
{
    append(g, text, (int64_t)strlen(text));
}

mm2_status mm2_calls_init(mm2_calls *c, mm2_sink sink, const char *tools, int thinking)
{
    *c = (mm2_calls){.sink = sink, .tag = -1, .state = thinking ? S_THINKING : S_TEXT};
    return mm2_tools_read(&c->tools, tools, tools ? (int64_t)strlen(tools) : 0);
}

void mm2_calls_free(mm2_calls *c)
{
    mm2_tools_free(&c->tools);
    free(c->held.bytes);
    free(c->value.bytes);
    free(c->written.bytes);
    free(c->records);
}

mm2_status mm2_calls_reserve(mm2_calls *c, int64_t n)
{
    int64_t undecided = c->held.length + n, shortest = 13; /* <invoke name= */
    mm2_status status = mm2_growing_reserve(&c->held, n);
    if (!status)
        status = mm2_growing_reserve(&c->value, undecided);
    /* A byte becomes at most 6 of JSON; what stands around it comes from tags that are longer. */
    if (!status && (c->state >= S_BLOCK || undecided > shortest))
        status = mm2_growing_reserve(&c->written, 7 * (undecided + c->value.length) + 64);
    int64_t more = c->count + undecided / shortest + 1;
    if (status || more <= c->capacity || (c->state < S_BLOCK && undecided <= shortest))
        return status;
    mm2_call_record *grown = realloc(c->records, (size_t)(2 * more) * sizeof *grown);
    if (!grown)
        return mm2_fail(MM2_E_NOMEM, "no memory for %lld calls", (long long)more);
    c->records = grown;
    c->capacity = (int32_t)(2 * more);
    return MM2_OK;
}

/* ---- Writing arguments ---- */

/* One byte of a text, as a part of a JSON string. */
static void put_byte(mm2_calls *c, char byte)
{
    c->partial[c->partial_length++] = byte;
    while (c->partial_length) {
        int n = mm2_utf8_length((const uint8_t *)c->partial, c->partial_length);
        if (!n)
            return;
        if (n > 0)
            c->written.length +=
                mm2_json_escape(c->written.bytes + c->written.length, (mm2_view){c->partial, n});
        else
            append_text(&c->written, "\xef\xbf\xbd");
        n = n < 0 ? -n : n;
        c->partial_length -= n;
        memmove(c->partial, c->partial + n, (size_t)c->partial_length);
    }
}

static void put_string(mm2_calls *c, mm2_view text)
{
    for (int64_t i = 0; i < text.length; i++)
        put_byte(c, text.begin[i]);
}

static void end_string(mm2_calls *c)
{
    if (c->partial_length) /* a beginning of a character */
        append_text(&c->written, "\xef\xbf\xbd");
    c->partial_length = 0;
    append_text(&c->written, "\"");
}

static mm2_call_record *record(mm2_calls *c)
{
    return &c->records[c->count - 1];
}

static void begin_call(mm2_calls *c, mm2_view name)
{
    mm2_call_record *r = &c->records[c->count++];
    int first = !c->confirmed && !c->from_thinking;
    c->function = mm2_tools_find(&c->tools, name);
    c->parameters = 0;
    c->confirmed = 1;
    if (c->from_thinking) {
        c->sink.thought(c->sink.of);
        c->from_thinking = 0;
        c->late = 1;
    }
    *r = (mm2_call_record){.name = c->written.length,
                           .name_length = name.length,
                           .arguments = c->written.length + name.length,
                           .text_at = c->sink.called(c->sink.of, first),
                           .state = MM2_CALL_OPEN,
                           .known = c->function || !c->tools.given};
    append(&c->written, name.begin, name.length);
    append_text(&c->written, "{");
}

static void end_call(mm2_calls *c, int state)
{
    append_text(&c->written, "}");
    record(c)->state = state;
    record(c)->arguments_length = c->written.length - record(c)->arguments;
}

static void begin_parameter(mm2_calls *c, mm2_view name)
{
    append_text(&c->written, c->parameters++ ? ", \"" : "\"");
    put_string(c, name);
    end_string(c);
    append_text(&c->written, ": ");
    c->types = mm2_tools_types(c->function, name);
    c->mode = c->types == MM2_TYPE_STRING                     ? AS_STRING
              : c->types == (MM2_TYPE_STRING | MM2_TYPE_NULL) ? AS_NULL_OR_STRING
                                                              : WHEN_COMPLETE;
    c->value.length = 0;
    if (c->mode == AS_STRING)
        append_text(&c->written, "\"");
}

static void put_value(mm2_calls *c, char byte)
{
    if (c->mode == AS_STRING) {
        put_byte(c, byte);
        return;
    }
    append(&c->value, &byte, 1);
    if (c->mode == AS_NULL_OR_STRING &&
        (c->value.length > 4 || memcmp(c->value.bytes, "null", (size_t)c->value.length))) {
        c->mode = AS_STRING;
        append_text(&c->written, "\"");
        put_string(c, (mm2_view){c->value.bytes, c->value.length});
    }
}

static void end_value(mm2_calls *c)
{
    mm2_view value = {c->value.bytes, c->value.length};
    int64_t n = c->mode == AS_STRING
                    ? -1
                    : mm2_schema_value(c->written.bytes + c->written.length, c->types, value);
    if (n >= 0) {
        c->written.length += n;
        return;
    }
    if (c->mode != AS_STRING) {
        append_text(&c->written, "\"");
        put_string(c, value);
    }
    end_string(c);
}

/* ---- What is undecided ---- */

/* Gives the first n held bytes to whom they belong. */
static void release(mm2_calls *c, int64_t n)
{
    int state = c->state;
    if ((state == S_BLOCK || state == S_INVOKE) && !c->confirmed)
        state = c->from_thinking ? S_THINKING : S_TEXT;
    for (int64_t i = 0; i < n; i++) {
        char byte = c->held.bytes[i];
        if (state == S_VALUE) {
            put_value(c, byte);
        } else if (state == S_THINKING) {
            c->thought |= byte != '\n';
            c->sink.think(c->sink.of, byte);
        } else {
            c->sink.text(c->sink.of, byte);
        }
    }
    c->held.length -= n;
    if (n && c->held.length)
        memmove(c->held.bytes, c->held.bytes + n, (size_t)c->held.length);
    c->tag = c->tag >= n ? c->tag - n : -1;
    if (!c->held.length)
        c->pending = T_NONE;
}

static void drop(mm2_calls *c)
{
    c->held.length = 0;
    c->tag = -1;
    c->pending = T_NONE;
}

/* All of it is no call, for this reason. The state is then the one around it. */
static void give_up(mm2_calls *c, const char *reason)
{
    int outer = c->confirmed ? S_BLOCK : c->from_thinking ? S_THINKING : S_TEXT;
    release(c, c->held.length);
    c->reason = reason;
    c->state = c->state == S_BODY || c->state == S_PARAMETER ? S_BODY : outer;
    if (!c->confirmed)
        c->from_thinking = 0;
}

static const char no_call[] = "<minimax:tool_call> is not followed by an <invoke name=...>";
static const char stray_text[] = "a block of calls has a text between its tags";
static const char bad_name[] = "the name in a tag of a call does not end";
static const char cut_tag[] = "the reply ended inside a tag of a call";

/* A block opens, with the tag at the end of `held`. */
static void open_block(mm2_calls *c, int keep_before)
{
    if (!keep_before) {
        int64_t tag = c->tag;
        c->held.length -= tag;
        memmove(c->held.bytes, c->held.bytes + tag, (size_t)c->held.length);
    }
    c->from_thinking = c->state == S_THINKING || (c->state == S_BLOCK && c->from_thinking);
    c->state = S_BLOCK;
    c->confirmed = 0;
    c->pending = T_NONE;
    c->tag = -1;
}

/* ---- Tags ---- */

static uint32_t tags_at(const mm2_calls *c)
{
    switch (c->state) {
    case S_THINKING:
        return 1U << T_OPEN | 1U << T_THINK | 1U << T_THOUGHT;
    case S_TEXT:
        return 1U << T_OPEN | (uint32_t)c->late << T_THOUGHT;
    case S_BLOCK:
        return 1U << T_OPEN | 1U << T_CLOSE | 1U << T_INVOKE;
    case S_BODY:
        return 1U << T_OPEN | 1U << T_CLOSE | 1U << T_INVOKE | 1U << T_INVOKED | 1U << T_PARAMETER;
    default:
        return 1U << T_CLOSE | 1U << T_INVOKED | 1U << T_GIVEN |
               (c->pending ? 1U << T_OPEN | 1U << T_INVOKE | 1U << T_PARAMETER : 0);
    }
}

/* The tag that the held one is, PARTIAL, or T_NONE. */
static int match(const mm2_calls *c)
{
    const char *text = c->held.bytes + c->tag;
    size_t n = (size_t)(c->held.length - c->tag);
    uint32_t set = tags_at(c);
    int found = T_NONE;
    for (int i = T_THINK; i <= T_GIVEN; i++) {
        size_t length = strlen(tags[i]);
        if (!(set >> i & 1) || n > length || memcmp(tags[i], text, n))
            continue;
        if (n == length)
            return i;
        found = PARTIAL;
    }
    return found;
}

static void end_block(mm2_calls *c)
{
    drop(c);
    c->state = S_TEXT;
    c->confirmed = 0;
}

static void begin_name(mm2_calls *c, int state)
{
    if (c->confirmed) { /* nothing before the tag is needed any more */
        int64_t tag = c->tag;
        c->held.length -= tag;
        memmove(c->held.bytes, c->held.bytes + tag, (size_t)c->held.length);
        c->tag = 0;
    }
    c->pending = T_NONE;
    c->state = state;
}

static void tag_in_block(mm2_calls *c, int tag)
{
    if (tag == T_INVOKE) {
        begin_name(c, S_INVOKE);
    } else if (tag == T_CLOSE && c->confirmed) {
        end_block(c);
    } else if (tag == T_CLOSE) {
        give_up(c, no_call);
    } else if (c->confirmed) {
        open_block(c, 0);
    } else { /* a second opening: the first is a text */
        release(c, c->tag);
        c->reason = no_call;
        open_block(c, 1);
    }
}

/* Between parameters. What does not belong there ends the call. */
static void tag_in_body(mm2_calls *c, int tag)
{
    if (tag == T_PARAMETER) {
        begin_name(c, S_PARAMETER);
        return;
    }
    end_call(c, MM2_CALL_COMPLETE);
    c->state = S_BLOCK;
    if (tag == T_INVOKED)
        drop(c);
    else
        tag_in_block(c, tag);
}

/* In a value: does the tag, with the one that is pending, end it? */
static void tag_in_value(mm2_calls *c, int tag)
{
    int pending = c->pending, ends = 0;
    if (pending == T_GIVEN)
        ends = tag != T_GIVEN;
    else if (pending == T_INVOKED)
        ends = tag == T_CLOSE || tag == T_INVOKE || tag == T_OPEN;
    else if (pending == T_CLOSE)
        ends = tag == T_OPEN;
    if (ends) {
        end_value(c);
        c->state = S_BODY;
        c->pending = T_NONE;
        tag_in_body(c, tag);
    } else if (tag == T_GIVEN || tag == T_INVOKED || tag == T_CLOSE) {
        release(c, c->tag);
        c->pending = tag;
        c->tag = -1;
    } else {
        release(c, c->held.length);
    }
}

static void take_tag(mm2_calls *c, int tag)
{
    switch (c->state) {
    case S_THINKING:
        if (tag == T_OPEN) {
            open_block(c, 1);
        } else if (tag == T_THOUGHT) {
            drop(c);
            c->sink.thought(c->sink.of);
            c->state = S_TEXT;
        } else if (c->thought) {
            release(c, c->held.length);
        } else {
            drop(c); /* the prompt has one already */
        }
        break;
    case S_TEXT:
        if (tag == T_OPEN) {
            open_block(c, 1);
        } else {
            release(c, c->tag);
            drop(c);
            c->late = 0;
        }
        break;
    case S_BLOCK:
        tag_in_block(c, tag);
        break;
    case S_BODY:
        tag_in_body(c, tag);
        break;
    default:
        tag_in_value(c, tag);
    }
}

/* ---- Names ---- */

static int is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Is the name at the end of `held`, which begins at `from`, complete with this byte, a ">" or a
 * newline? The quotes of names are not escaped: one ends the name if the tag ends behind it. */
static int name_ends(const char *from, const char *end, mm2_view *name, int *closed)
{
    char quote = *from == '"' || *from == '\'' ? *from : 0;
    const char *begin = from + (quote != 0), *stop = end;
    while (stop > begin && is_space(stop[-1]))
        stop--;
    *closed = stop > begin && stop[-1] == '/';
    stop -= *closed;
    while (stop > begin && is_space(stop[-1]))
        stop--;
    if (quote && (stop <= begin || stop[-1] != quote))
        return 0;
    *name = (mm2_view){begin, stop - (quote != 0) - begin};
    for (const char *p = begin; quote && p + 1 < stop - 1; p++)
        if (*p == quote && is_space(p[1])) { /* other attributes follow */
            name->length = p - begin;
            break;
        }
    return 1;
}

static void take_name(mm2_calls *c, mm2_view name, int closed)
{
    if (c->state == S_INVOKE) {
        begin_call(c, name);
        c->state = closed ? S_BLOCK : S_BODY;
        if (closed)
            end_call(c, MM2_CALL_COMPLETE);
    } else {
        begin_parameter(c, name);
        c->state = closed ? S_BODY : S_VALUE;
        if (closed)
            end_value(c);
    }
    drop(c);
}

static void in_name(mm2_calls *c, char byte)
{
    const char *from =
        c->held.bytes + c->tag + strlen(tags[c->state == S_INVOKE ? T_INVOKE : T_PARAMETER]);
    const char *end = c->held.bytes + c->held.length;
    mm2_view name;
    int closed = 0, quoted = end > from && (*from == '"' || *from == '\'');
    append(&c->held, &byte, 1);
    if (byte == '>' && end > from && name_ends(from, end, &name, &closed) && name.length) {
        take_name(c, name, closed);
    } else if (byte == '\n' && quoted && end[-1] == '>' &&
               end - from > 2) { /* the quote is missing */
        take_name(c, (mm2_view){from + 1, end - 1 - (from + 1)}, 0);
    } else if (byte == '\n' || (end == from && (is_space(byte) || byte == '<')) ||
               (byte == '>' && !quoted) || end - from > MOST_NAME) {
        give_up(c, bad_name);
    }
}

/* ---- Bytes ---- */

/* A byte that is in no tag. Returns 1 if the state has changed and it must be looked at again. */
static int plain(mm2_calls *c, char byte)
{
    if (c->state == S_TEXT || c->state == S_THINKING) {
        append(&c->held, &byte, 1);
        release(c, 1);
    } else if (c->state == S_VALUE) {
        if (c->pending && is_space(byte)) {
            append(&c->held, &byte, 1);
            return 0;
        }
        release(c, c->held.length);
        put_value(c, byte);
    } else if (is_space(byte)) {
        append(&c->held, &byte, 1);
    } else if (c->state == S_BLOCK && !c->confirmed) {
        give_up(c, no_call);
        return 1;
    } else {
        append(&c->held, &byte, 1);
        release(c, c->held.length);
        c->reason = stray_text;
    }
    return 0;
}

/* One byte. Returns 1 if it must be looked at again. */
static int look_at(mm2_calls *c, char byte)
{
    if (c->state == S_INVOKE || c->state == S_PARAMETER) {
        in_name(c, byte);
        return 0;
    }
    if (c->tag < 0 && byte != '<')
        return plain(c, byte);
    if (c->tag < 0)
        c->tag = c->held.length;
    append(&c->held, &byte, 1);
    int tag = match(c);
    if (tag == PARTIAL)
        return 0;
    if (tag != T_NONE) {
        take_tag(c, tag);
        return 0;
    }
    c->held.length--;
    if (c->state == S_BLOCK && !c->confirmed) {
        give_up(c, no_call);
    } else {
        if (c->state == S_BLOCK || c->state == S_BODY)
            c->reason = stray_text;
        release(c, c->held.length);
    }
    return 1;
}

void mm2_calls_push(mm2_calls *c, char byte)
{
    while (look_at(c, byte))
        continue;
    if (c->count && record(c)->state == MM2_CALL_OPEN)
        record(c)->arguments_length = c->written.length - record(c)->arguments;
}

void mm2_calls_end(mm2_calls *c, int by_model)
{
    int state = c->state;
    if (state == S_VALUE) {
        int pending = c->pending;
        if (pending)
            drop(c);
        else
            release(c, c->held.length);
        end_value(c);
        by_model &= pending == T_INVOKED || pending == T_CLOSE;
        end_call(c, by_model ? MM2_CALL_COMPLETE : MM2_CALL_CUT);
    } else if (state == S_BODY || state == S_PARAMETER) {
        drop(c);
        end_call(c, MM2_CALL_CUT);
    } else if (state == S_INVOKE) {
        give_up(c, cut_tag);
    } else if (state == S_BLOCK && c->confirmed) {
        drop(c);
    } else if (state == S_BLOCK) {
        give_up(c, no_call);
    } else {
        release(c, c->held.length);
    }
    c->state = S_TEXT;
}

int mm2_calls_thinking(const mm2_calls *c)
{
    return c->state == S_THINKING;
}

int mm2_calls_in_text(const mm2_calls *c)
{
    return c->state == S_TEXT;
}

int mm2_calls_stray(mm2_calls *c)
{
    if (c->state != S_TEXT)
        return 0;
    release(c, c->held.length);
    c->late = 0;
    return 1;
}
