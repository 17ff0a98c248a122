/* A reply: sampled ids go in, thinking, answer and calls come out, until something ends it.
 *
 * Two texts grow, the thinking and the answer. Each is kept whole, with a mark up to which it may
 * be seen; a piece is what lies between two marks. Behind the mark waits what is not decided yet:
 * the first bytes of a character, what may become a stop string (answer), newlines that may be the
 * format's last ones (thinking). In a chat turn, calls.c parts the bytes into the two texts and
 * calls; what it has not decided waits there.
 *
 * A budget of thinking is kept by asking for ids: when it is spent, the piece says which ones come
 * next, until the block is closed as the format does it. A call that must come is opened likewise.
 *
 * Stop strings are found byte by byte (Knuth, Morris, Pratt), each in time proportional to the
 * text. So it does not matter how tokens cut the text: the string that is complete first ends it.
 *
 * A push that fails changes nothing: what can fail is done first. The texts belong to the reply,
 * the tokenizer does not. */
#include "base/guard.h"
#include "base/status.h"
#include "text/calls.h"
#include "text/parts.h"

#include <stdlib.h>
#include <string.h>

typedef struct shown_text {
    mm2_growing text;
    int64_t shown; /* may be seen */
} shown_text;

typedef struct stop_string {
    char *bytes;
    int32_t *border; /* [i]: length of the longest beginning that ends bytes[0, i], not all of it */
    int32_t length;
    int32_t matched; /* of its bytes, at the end of the answer */
} stop_string;

enum { MOST_CLOSING = 16 };

struct mm2_reply {
    const mm2_tokenizer *t;
    mm2_busy busy;
    int torn; /* a call was cut off by fork(): the buffers may be anywhere */
    int chat; /* newlines at the beginning of the answer are the format's */
    mm2_calls calls;
    int32_t open_tags; /* <think> in the answer, without its end */
    int32_t end, count, max_tokens;
    int32_t answer_at;             /* ids before the answer began; -1: it has not */
    int32_t thought, max_thinking; /* ids of thinking */
    int32_t closing[MOST_CLOSING]; /* ids that close the thinking when its budget is spent */
    int32_t closing_count, closed; /* how many of them have come */
    int32_t *opening;              /* ids that open the call that must come; NULL: none must */
    int32_t opening_count, opened; /* how many of them have come; -1: it is not their turn yet */
    shown_text thinking, answer;
    int64_t last; /* behind the last byte of the thinking that is not a newline */
    int32_t *ends;
    int32_t end_count;
    stop_string *stops;
    int32_t stop_count;
};

/* ---- Growing ---- */

/* Where the text ends that holds no beginning of a character, among the first n bytes. */
static int64_t complete(const shown_text *t, int64_t n)
{
    return n ? mm2_text_complete(t->text.bytes, (int32_t)n) : 0;
}

static void put_thinking(void *of, char byte)
{
    mm2_reply *r = of;
    mm2_growing *g = &r->thinking.text;
    if (byte == '\n' && !g->length)
        return;
    g->bytes[g->length++] = byte;
    if (byte != '\n')
        r->last = g->length;
}

static void end_thinking(void *of)
{
    mm2_reply *r = of;
    r->thinking.shown = r->last;
}

/* Before a block of calls stands one newline of the format. Stop strings do not reach across. */
static int64_t begin_call(void *of, int block)
{
    mm2_reply *r = of;
    mm2_growing *g = &r->answer.text;
    g->length -= block && g->length && g->bytes[g->length - 1] == '\n';
    for (int32_t i = 0; i < r->stop_count; i++)
        r->stops[i].matched = 0;
    return g->length;
}

/* One byte more for all stop strings. Returns the length of the longest that is complete, or 0. */
static int32_t match(mm2_reply *r, char byte)
{
    int32_t found = 0;
    for (int32_t i = 0; i < r->stop_count; i++) {
        stop_string *s = &r->stops[i];
        while (s->matched && s->bytes[s->matched] != byte)
            s->matched = s->border[s->matched - 1];
        s->matched += s->bytes[s->matched] == byte;
        if (s->matched == s->length && s->length > found)
            found = s->length;
    }
    return found;
}

/* Nothing more comes: what is held back is seen. */
static void finish(mm2_reply *r, int32_t reason)
{
    const mm2_calls *c = &r->calls;
    if (r->chat)
        mm2_calls_end(&r->calls, reason == MM2_END_STOP);
    if (reason == MM2_END_STOP && c->count && c->records[c->count - 1].state == MM2_CALL_COMPLETE)
        reason = MM2_END_CALLS;
    r->thinking.shown = r->last;
    r->answer.shown = r->answer.text.length;
    if (!r->end)
        r->end = reason;
}

static void put_answer(void *of, char byte)
{
    mm2_reply *r = of;
    mm2_growing *g = &r->answer.text;
    if (r->end || (byte == '\n' && !g->length && r->chat))
        return;
    g->bytes[g->length++] = byte;
    int32_t stop = match(r, byte);
    if (stop) {
        g->length -= stop;
        r->end = MM2_END_STOP;
    }
}

/* What may be seen now. */
static void show(mm2_reply *r)
{
    int64_t whole = complete(&r->thinking, r->thinking.text.length);
    const mm2_growing *g = &r->answer.text;
    int32_t held = r->chat && g->length && g->bytes[g->length - 1] == '\n';
    if (mm2_calls_thinking(&r->calls))
        r->thinking.shown = whole < r->last ? whole : r->last;
    for (int32_t i = 0; i < r->stop_count; i++)
        held = r->stops[i].matched > held ? r->stops[i].matched : held;
    whole = complete(&r->answer, g->length - held);
    if (whole > r->answer.shown) /* a newline before a call was seen if another one followed it */
        r->answer.shown = whole;
}

/* The bytes of a token. */
static void grow(mm2_reply *r, int32_t id, const char *bytes, int64_t n)
{
    if (r->chat && r->t && id == r->t->facts.think_close && mm2_calls_stray(&r->calls)) {
        if (!r->open_tags)
            n = 0; /* the end of nothing */
        else
            r->open_tags--;
    } else if (r->chat && r->t && id == r->t->facts.think_open && !mm2_calls_thinking(&r->calls)) {
        r->open_tags += mm2_calls_stray(&r->calls);
    }
    for (int64_t i = 0; i < n && !r->end; i++) {
        if (r->chat)
            mm2_calls_push(&r->calls, bytes[i]);
        else
            put_answer(r, bytes[i]);
    }
    if (r->end)
        finish(r, r->end);
    else
        show(r);
}

/* Which of the closing ids must come next, or -1. */
static int32_t next_closing(const mm2_reply *r)
{
    const mm2_growing *g = &r->thinking.text;
    if (r->end || !r->closing_count || r->closed == r->closing_count)
        return -1;
    if (r->closed)
        return r->closed;
    /* The budget is spent; a character is not cut, and a newline that is there is not doubled. */
    if (r->thought < r->max_thinking || !mm2_calls_thinking(&r->calls) ||
        complete(&r->thinking, g->length) != g->length)
        return -1;
    return g->length && g->bytes[g->length - 1] == '\n';
}

static int32_t next_id(const mm2_reply *r)
{
    if (!r->end && r->opened >= 0 && r->opened < r->opening_count)
        return r->opening[r->opened];
    int32_t closing = next_closing(r);
    return closing < 0 ? -1 : r->closing[closing];
}

/* An id has come: how far are we in those that must? */
static void follow(mm2_reply *r, int32_t id, int32_t closing)
{
    if (closing >= 0)
        r->closed = id == r->closing[closing] ? closing + 1 : 0;
    if (r->opened >= 0 && r->opened < r->opening_count) /* another id: the caller's choice */
        r->opened = id == r->opening[r->opened] ? r->opened + 1 : r->opening_count;
}

/* Where the answer begins. Behind the thinking it is the call's turn, unless there was one in it. */
static void begin_answer(mm2_reply *r)
{
    if (r->answer_at >= 0 || !mm2_calls_in_text(&r->calls))
        return;
    r->answer_at = r->count;
    if (r->opened >= 0 || !r->opening_count)
        return;
    r->opened = r->calls.count ? r->opening_count : 0;
    r->closed = r->closing_count;
}

/* ---- Making ---- */

void mm2_reply_options_init(mm2_reply_options *o)
{
    static const mm2_reply_options defaults = {
        .size = sizeof defaults, .max_tokens = INT32_MAX, .max_thinking = INT32_MAX};
    mm2_struct_init(o, &defaults);
}

static mm2_status copy_ends(mm2_reply *r, const mm2_reply_options *o)
{
    int32_t own = r->t ? r->t->facts.eos : -1, n = o->end_tokens ? o->end_count : own >= 0;
    r->ends = malloc(((size_t)n + MM2_TAG_NEEDED) * sizeof *r->ends);
    if (!r->ends)
        return mm2_fail(MM2_E_NOMEM, "no memory for %d end tokens", n);
    for (int32_t i = 0; i < n; i++) {
        r->ends[i] = o->end_tokens ? o->end_tokens[i] : own;
        if (r->ends[i] < 0)
            return mm2_fail(MM2_E_ARG, "end token %d is %d, expected an id", i, r->ends[i]);
    }
    for (int i = MM2_TAG_BEGIN; r->t && r->chat && i <= MM2_TAG_END; i++)
        if (r->t->tags[i] >= 0) /* the end of a turn, and what begins another one */
            r->ends[n++] = r->t->tags[i];
    r->end_count = n;
    return MM2_OK;
}

static mm2_status copy_stop(stop_string *s, const char *bytes, int64_t length, int32_t index)
{
    if (length < 1 || length > INT32_MAX)
        return mm2_fail(MM2_E_ARG, "stop string %d has %lld bytes, expected 1 to %d", index,
                        (long long)length, INT32_MAX);
    s->length = (int32_t)length;
    s->bytes = malloc((size_t)length);
    s->border = malloc((size_t)length * sizeof *s->border);
    if (!s->bytes || !s->border)
        return mm2_fail(MM2_E_NOMEM, "no memory for a stop string of %lld bytes",
                        (long long)length);
    memcpy(s->bytes, bytes, (size_t)length);
    s->border[0] = 0;
    for (int32_t i = 1, n = 0; i < s->length; i++) {
        while (n && s->bytes[i] != s->bytes[n])
            n = s->border[n - 1];
        n += s->bytes[i] == s->bytes[n];
        s->border[i] = n;
    }
    return MM2_OK;
}

static mm2_status copy_stops(mm2_reply *r, const mm2_reply_options *o)
{
    mm2_status status = MM2_OK;
    r->stops = calloc((size_t)o->stop_count + 1, sizeof *r->stops);
    if (!r->stops)
        return mm2_fail(MM2_E_NOMEM, "no memory for %d stop strings", o->stop_count);
    for (int32_t i = 0; i < o->stop_count && !status; i++) {
        if (!o->stop[i])
            return mm2_fail(MM2_E_ARG, "stop string %d is NULL", i);
        r->stop_count = i + 1;
        status = copy_stop(&r->stops[i], o->stop[i],
                           o->stop_len ? o->stop_len[i] : (int64_t)strlen(o->stop[i]), i);
    }
    return status;
}

/* The ids of "\n</think>\n\n", as the prompt has them that skips the thinking. */
static mm2_status copy_closing(mm2_reply *r, const mm2_reply_options *o)
{
    mm2_ids ids = {r->closing, MOST_CLOSING, 0};
    r->max_thinking = o->max_thinking;
    if (o->start != MM2_START_THINKING || o->max_thinking == INT32_MAX)
        return MM2_OK;
    if (!r->t || r->t->facts.think_close < 0)
        return mm2_fail(MM2_E_ARG, "max_thinking needs a tokenizer with </think>");
    mm2_status status = mm2_tokenizer_append(r->t, "\n", 1, 0, &ids);
    mm2_ids_push(&ids, r->t->facts.think_close);
    if (!status)
        status = mm2_tokenizer_append(r->t, "\n\n", 2, 0, &ids);
    r->closing_count = (int32_t)(ids.count < MOST_CLOSING ? ids.count : MOST_CLOSING);
    return status;
}

/* The ids of a call's beginning, as the format has it behind an empty answer. */
static mm2_status put_opening(const mm2_reply *r, const mm2_reply_options *o, mm2_ids *ids)
{
    const char *before = o->start == MM2_START_ANSWER ? "\n" : "\n\n\n";
    const char *texts[] = {"\n<invoke name=\"", o->call, "\">\n"};
    char *text;
    size_t n = 0, used = 0;
    int count = *o->call ? 3 : 1;
    const char *tag = mm2_tag_text[MM2_TAG_CALL_OPEN];
    mm2_status status = mm2_tokenizer_append(r->t, before, (int64_t)strlen(before), 0, ids);
    if (r->t->tags[MM2_TAG_CALL_OPEN] >= 0)
        mm2_ids_push(ids, r->t->tags[MM2_TAG_CALL_OPEN]);
    else if (!status)
        status = mm2_tokenizer_append(r->t, tag, (int64_t)strlen(tag), 0, ids);
    for (int i = 0; i < count; i++)
        n += strlen(texts[i]);
    if (!status && !(text = malloc(n)))
        status = mm2_fail(MM2_E_NOMEM, "no memory for the name of a tool");
    if (status)
        return status;
    for (int i = 0; i < count; used += strlen(texts[i++]))
        memcpy(text + used, texts[i], strlen(texts[i]));
    status = mm2_tokenizer_append(r->t, text, (int64_t)n, 0, ids);
    free(text);
    return status;
}

static mm2_status copy_opening(mm2_reply *r, const mm2_reply_options *o)
{
    mm2_ids ids = {0};
    r->opened = o->start == MM2_START_ANSWER ? 0 : -1;
    if (!o->call || !r->chat)
        return MM2_OK;
    mm2_view name = {o->call, (int64_t)strlen(o->call)};
    const mm2_tools *tools = &r->calls.tools;
    if (!tools->given ||
        !(name.length ? mm2_tools_find(tools, name) : mm2_value_next(tools->tree.values, NULL)))
        return mm2_fail(MM2_E_ARG, "a call of %.*s is wanted, but no such tool is declared",
                        name.length > 40 ? 40
                        : name.length    ? (int)name.length
                                         : 6,
                        name.length ? name.begin : "a tool");
    if (!r->t)
        return mm2_fail(MM2_E_ARG, "a call is wanted, which needs a tokenizer");
    mm2_status status = put_opening(r, o, &ids);
    if (status)
        return status;
    r->opening = malloc((size_t)ids.count * sizeof *r->opening);
    if (!r->opening)
        return mm2_fail(MM2_E_NOMEM, "no memory for the name of a tool");
    r->opening_count = (int32_t)ids.count;
    ids = (mm2_ids){r->opening, r->opening_count, 0};
    return put_opening(r, o, &ids);
}

static mm2_status check_options(const mm2_reply_options *o)
{
    if (o->start < MM2_START_TEXT || o->start > MM2_START_ANSWER)
        return mm2_fail(MM2_E_ARG, "the start is %d, expected %d to %d", o->start, MM2_START_TEXT,
                        MM2_START_ANSWER);
    if (o->max_tokens < 0)
        return mm2_fail(MM2_E_ARG, "max_tokens is %d, expected 0 or more", o->max_tokens);
    if (o->max_thinking < 0)
        return mm2_fail(MM2_E_ARG, "max_thinking is %d, expected 0 or more", o->max_thinking);
    if (o->end_count < 0 || (!o->end_tokens && o->end_count))
        return mm2_fail(MM2_E_ARG, "end_count is %d %s", o->end_count,
                        o->end_tokens ? ", expected 0 or more" : "without end_tokens");
    if (o->stop_count < 0 || (!o->stop && o->stop_count))
        return mm2_fail(MM2_E_ARG, "stop_count is %d %s", o->stop_count,
                        o->stop ? ", expected 0 or more" : "without stop");
    return MM2_OK;
}

mm2_status mm2_reply_new(mm2_reply **out, const mm2_tokenizer *t, const mm2_reply_options *given)
{
    mm2_reply_options o = {.size = sizeof o};
    mm2_reply_options_init(&o);
    MM2_NEED(out, "the place for the result");
    *out = NULL;
    mm2_status status = given ? mm2_struct_read(&o, given, "reply options") : MM2_OK;
    if (!status)
        status = check_options(&o);
    if (status)
        return status;
    mm2_reply *r = calloc(1, sizeof *r);
    if (!r)
        return mm2_fail(MM2_E_NOMEM, "no memory for a reply");
    r->t = t;
    r->chat = o.start != MM2_START_TEXT;
    r->max_tokens = o.max_tokens;
    r->answer_at = o.start == MM2_START_THINKING ? -1 : 0;
    r->end = o.max_tokens ? MM2_END_NONE : MM2_END_LENGTH;
    status =
        mm2_calls_init(&r->calls, (mm2_sink){r, put_answer, put_thinking, end_thinking, begin_call},
                       r->chat ? o.tools : NULL, o.start == MM2_START_THINKING);
    if (!status)
        status = copy_ends(r, &o);
    if (!status)
        status = copy_stops(r, &o);
    if (!status)
        status = copy_closing(r, &o);
    if (!status)
        status = copy_opening(r, &o);
    if (status) {
        mm2_reply_free(r);
        return status;
    }
    *out = r;
    return MM2_OK;
}

void mm2_reply_free(mm2_reply *r)
{
    if (!r)
        return;
    for (int32_t i = 0; i < r->stop_count; i++) {
        free(r->stops[i].bytes);
        free(r->stops[i].border);
    }
    free(r->stops);
    free(r->ends);
    free(r->opening);
    if (!r->torn) {
        free(r->thinking.text.bytes);
        free(r->answer.text.bytes);
        mm2_calls_free(&r->calls);
    }
    free(r);
}

/* ---- Public functions ---- */

static mm2_status enter(mm2_reply *r)
{
    int torn;
    mm2_status status = mm2_busy_enter(&r->busy, "reply", &torn);
    if (status)
        return status;
    r->torn |= torn;
    if (!r->torn)
        return MM2_OK;
    mm2_busy_leave(&r->busy);
    return mm2_fail(MM2_E_ARG, "this process was forked while another thread used the reply; make "
                               "a new one and push its ids again");
}

/* Fills the piece with what is seen behind these marks. */
static mm2_status report(const mm2_reply *r, mm2_piece *piece, int64_t text, int64_t thinking)
{
    mm2_piece p = {.size = sizeof p,
                   .end = r->end,
                   .count = r->count,
                   .text_len = (int32_t)(r->answer.shown - text),
                   .thinking_len = (int32_t)(r->thinking.shown - thinking),
                   .calls = r->calls.count,
                   .text = r->answer.text.bytes ? r->answer.text.bytes + text : "",
                   .thinking = r->thinking.text.bytes ? r->thinking.text.bytes + thinking : "",
                   .reason = r->calls.reason ? r->calls.reason : "",
                   .thought = r->thought,
                   .next = next_id(r),
                   .answer_at = r->answer_at};
    return piece ? mm2_struct_write(piece, &p, "piece") : MM2_OK;
}

static int ends_at(const mm2_reply *r, int32_t id)
{
    for (int32_t i = 0; i < r->end_count; i++)
        if (r->ends[i] == id)
            return 1;
    return 0;
}

/* What decoding writes for an id: nothing for special tokens and ids that have none. */
static int64_t token_bytes(const mm2_tokenizer *t, int32_t id, const char **bytes)
{
    *bytes = "";
    if (!t || id >= t->bpe.size || (t->bpe.kind[id] & MM2_TOKEN_SPECIAL) || !t->bpe.length[id])
        return 0;
    *bytes = t->bpe.bytes + t->bpe.start[id];
    return t->bpe.length[id];
}

static mm2_status push(mm2_reply *r, int32_t id, mm2_piece *piece)
{
    const char *bytes;
    int64_t text = r->answer.shown, thinking = r->thinking.shown;
    if (id < 0)
        return mm2_fail(MM2_E_ARG, "id %d, expected 0 or more", id);
    if (r->end)
        return mm2_fail(MM2_E_ARG, "the reply has ended");
    mm2_status status = report(r, piece, text, thinking); /* the piece can be filled */
    int64_t n = token_bytes(r->t, id, &bytes), held = n + r->calls.held.length;
    if (!status)
        status = mm2_growing_reserve(&r->thinking.text, held);
    if (!status)
        status = mm2_growing_reserve(&r->answer.text, held);
    if (!status && r->chat)
        status = mm2_calls_reserve(&r->calls, n);
    if (status)
        return status;
    int32_t closing = next_closing(r);
    r->count++;
    r->thought += mm2_calls_thinking(&r->calls);
    follow(r, id, closing);
    if (ends_at(r, id))
        finish(r, MM2_END_STOP);
    else
        grow(r, id, bytes, n);
    begin_answer(r);
    if (!r->end && r->count == r->max_tokens)
        finish(r, MM2_END_LENGTH);
    return report(r, piece, text, thinking);
}

mm2_status mm2_reply_push(mm2_reply *r, int32_t id, mm2_piece *piece)
{
    MM2_NEED(r, "the reply");
    mm2_status status = enter(r);
    if (status)
        return status;
    status = push(r, id, piece);
    mm2_busy_leave(&r->busy);
    return status;
}

mm2_status mm2_reply_end(mm2_reply *r, int32_t reason, mm2_piece *piece)
{
    MM2_NEED(r, "the reply");
    if (reason != MM2_END_CONTEXT && reason != MM2_END_CANCELLED)
        return mm2_fail(MM2_E_ARG, "the reason is %d, expected %d or %d", reason, MM2_END_CONTEXT,
                        MM2_END_CANCELLED);
    mm2_status status = enter(r);
    if (status)
        return status;
    int64_t text = r->answer.shown, thinking = r->thinking.shown;
    status = report(r, piece, text, thinking);
    if (!status && !r->end)
        finish(r, reason);
    if (!status)
        status = report(r, piece, text, thinking);
    mm2_busy_leave(&r->busy);
    return status;
}

mm2_status mm2_reply_all(mm2_reply *r, mm2_piece *piece)
{
    MM2_NEED(r, "the reply");
    MM2_NEED(piece, "the piece");
    mm2_status status = enter(r);
    if (status)
        return status;
    status = report(r, piece, 0, 0);
    mm2_busy_leave(&r->busy);
    return status;
}

mm2_status mm2_reply_call(mm2_reply *r, int32_t index, mm2_call *call)
{
    MM2_NEED(r, "the reply");
    MM2_NEED(call, "the call");
    mm2_status status = enter(r);
    if (status)
        return status;
    if (index < 0 || index >= r->calls.count) {
        status = mm2_fail(MM2_E_ARG, "call %d of %d is none", index, r->calls.count);
    } else {
        const mm2_call_record *record = &r->calls.records[index];
        mm2_call c = {.size = sizeof c,
                      .state = record->state,
                      .known = record->known,
                      .text_at = (int32_t)record->text_at,
                      .name_len = (int32_t)record->name_length,
                      .arguments_len = (int32_t)record->arguments_length,
                      .name = r->calls.written.bytes + record->name,
                      .arguments = r->calls.written.bytes + record->arguments};
        status = mm2_struct_write(call, &c, "call");
    }
    mm2_busy_leave(&r->busy);
    return status;
}
