/* Anything at all for the text layer: replies, messages, tools, templates, timelines, JSON.
 *
 * The first byte of an input chooses what reads the rest. Nothing may crash, and what is promised is
 * held: fragments of arguments add up to JSON, ids say what the text says, what is written in
 * another form is read back the same. With clang this is a target of libFuzzer (make -C csrc
 * fuzz-text); by itself a program that makes inputs out of pieces for some seconds, or reads files:
 *
 *     test_fuzz [SECONDS [SEED]]      test_fuzz FILE... */
#include "base/json_tree.h"
#include "base/rng.h"
#include "text/json_form.h"
#include "text/schema.h"
#include "text/template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HOLDS(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)
#define assert_int_equal(a, b) HOLDS((a) == (b))
#include "../c/tag_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { REPLY, SPELLED, MESSAGES, TOOLS, CONTINUED, TEMPLATE, JSON, KINDS };

static const char some_tools[] =
    "[{\"name\": \"f\", \"parameters\": {\"properties\": {\"s\": {\"type\": \"string\"}, \"i\": "
    "{\"type\": \"integer\"}, \"n\": {\"type\": [\"string\", \"null\"]}, \"o\": {\"type\": "
    "\"object\"}, \"b\": {\"anyOf\": [{\"type\": \"boolean\"}, {\"$ref\": \"#/x\"}]}}}}]";
static const char ask[] = "[{\"role\": \"user\", \"content\": \"U\"}]";

static void *checked(void *memory)
{
    HOLDS(memory);
    return memory;
}

/* A block of exactly this size, terminated where `end` is 1: a string without NUL. */
static char *copy(const uint8_t *data, size_t size, int end)
{
    char *text = checked(malloc(size + 1));
    for (size_t i = 0; i < size; i++)
        text[i] = end && !data[i] ? ' ' : (char)data[i];
    text[size] = 0;
    return end ? text : checked(realloc(text, size ? size : 1));
}

/* ---- What reads ---- */

static void check_calls(mm2_reply *r, int32_t count, int ended)
{
    for (int32_t i = 0; i < count; i++) {
        mm2_call c = {.size = sizeof c};
        HOLDS(!mm2_reply_call(r, i, &c));
        if (!ended && i == count - 1)
            return;
        HOLDS(c.state == MM2_CALL_COMPLETE || c.state == MM2_CALL_CUT);
        char *room = checked(malloc(2 * (size_t)c.arguments_len));
        HOLDS(mm2_json_form(room, (mm2_view){c.arguments, c.arguments_len}, 0) > 0);
        free(room);
    }
}

static void read_reply(const mm2_tokenizer *t, const uint8_t *data, size_t size, const char *tools,
                       int spelled)
{
    static const char *const stops[] = {"ab", "\n\n"};
    mm2_reply_options o = {.size = sizeof o};
    mm2_piece p = {.size = sizeof p}, all = {.size = sizeof all};
    mm2_reply *r;
    int32_t text = 0, thinking = 0, known = 0;
    uint8_t flags = size ? *data : 0;
    mm2_reply_options_init(&o);
    o.start = flags % 3;
    o.tools = tools;
    o.stop = stops;
    o.stop_count = flags / 3 % 3;
    o.max_thinking = flags & 64 ? flags % 7 : INT32_MAX;
    o.call = flags & 128 && o.start ? (flags & 32 ? "f" : "") : NULL;
    if (mm2_reply_new(&r, t, &o))
        return;
    for (size_t i = 1; i < size && !p.end; i++) {
        int32_t id = spelled || data[i] < 0xf0 ? data[i] : BEGIN + data[i] % (TOKENS - BEGIN);
        int32_t before = 0;
        mm2_call c = {.size = sizeof c};
        if (known) {
            HOLDS(!mm2_reply_call(r, known - 1, &c));
            before = c.arguments_len;
        }
        HOLDS(!mm2_reply_push(r, p.next >= 0 && i % 5 ? p.next : id, &p));
        text += p.text_len;
        thinking += p.thinking_len;
        if (known) {
            HOLDS(!mm2_reply_call(r, known - 1, &c));
            HOLDS(c.arguments_len >= before);
        }
        known = p.calls;
    }
    HOLDS(!mm2_reply_end(r, MM2_END_CANCELLED, &p));
    HOLDS(!mm2_reply_all(r, &all));
    if (size > 1 || p.text_len || p.thinking_len)
        HOLDS(all.text_len >= text && all.thinking_len >= thinking);
    check_calls(r, all.calls, 1);
    mm2_reply_free(r);
}

/* The text and the ids of a conversation say the same. */
static void check_render(const mm2_tokenizer *t, const mm2_conversation *c)
{
    int32_t n = mm2_chat_render(t, c, NULL, 0), count = mm2_chat_encode(t, c, NULL, 0);
    HOLDS((n < 0) == (count < 0));
    if (n < 0)
        return;
    char *text = checked(malloc((size_t)n + 1)), *back = checked(malloc((size_t)n + 1));
    int32_t *ids = checked(malloc(((size_t)count + 1) * sizeof *ids));
    HOLDS(mm2_chat_render(t, c, text, n) == n);
    HOLDS(mm2_chat_encode(t, c, ids, count) == count);
    HOLDS(mm2_tokenizer_decode(t, ids, count, MM2_SPECIAL, back, n) == n);
    HOLDS(!memcmp(text, back, (size_t)n));
    free(text);
    free(back);
    free(ids);
}

/* The messages in a form; NULL: they are refused. */
static char *exported(const char *messages, int32_t form)
{
    int32_t n = mm2_chat_export(messages, form, NULL, 0);
    if (n < 0)
        return NULL;
    char *out = checked(calloc((size_t)n + 1, 1));
    HOLDS(mm2_chat_export(messages, form, out, n) == n);
    return out;
}

/* What is written is understood, and written the same again (Anthropic's interface joins the texts
 * of a result, so it may take one round). */
static void check_export(const char *messages, int32_t form)
{
    char *once = exported(messages, form);
    if (!once)
        return;
    char *twice = exported(once, form);
    HOLDS(twice && (form == MM2_FORM_ANTHROPIC || !strcmp(once, twice)));
    char *thrice = exported(twice, form);
    HOLDS(thrice && !strcmp(twice, thrice));
    free(once);
    free(twice);
    free(thrice);
}

static void read_messages(const mm2_tokenizer *t, const uint8_t *data, size_t size)
{
    char *json = copy(data + 1, size - 1, 1);
    mm2_conversation c = {.size = sizeof c, .messages = json, .flags = *data & 14};
    check_render(t, &c);
    check_export(json, MM2_FORM_OPENAI);
    check_export(json, MM2_FORM_ANTHROPIC);
    free(json);
}

static void read_tools(const mm2_tokenizer *t, const uint8_t *data, size_t size)
{
    static const char call[] = "\x01<minimax:tool_call><invoke name=\"f\"><parameter "
                               "name=\"a\">[1, \"5\"]</parameter></invoke></minimax:tool_call>";
    char *json = copy(data, size, 1);
    mm2_conversation c = {.size = sizeof c, .messages = ask, .tools = json};
    check_render(t, &c);
    read_reply(t, (const uint8_t *)call, sizeof call - 1, json, 1);
    free(json);
}

static void read_timeline(const mm2_tokenizer *t, const uint8_t *data, size_t size)
{
    static const char result[] = "[{\"role\": \"tool\", \"content\": \"r\"}]";
    int32_t *ids = checked(malloc((size + 1) * sizeof *ids)), *out;
    for (size_t i = 0; i < size; i++)
        ids[i] = data[i] < 0xf0 ? data[i] : BEGIN + data[i] % (TOKENS - BEGIN);
    mm2_conversation c = {.size = sizeof c, .messages = size % 2 ? ask : result, .flags = 2};
    int32_t n = mm2_chat_continue(t, ids, (int32_t)size, &c, NULL, 0);
    out = checked(malloc(((size_t)(n < 0 ? 0 : n) + 1) * sizeof *out));
    HOLDS(mm2_chat_continue(t, ids, (int32_t)size, &c, out, n < 0 ? 0 : n) == n);
    free(ids);
    free(out);
}

static void read_json(const uint8_t *data, size_t size)
{
    char *text = copy(data, size, 0), *out = checked(malloc(2 * size + 3));
    mm2_json_tree tree;
    mm2_json j;
    int64_t n = mm2_json_form(out, (mm2_view){text, (int64_t)size}, size % 2);
    if (n >= 0) {
        char *again = checked(malloc(2 * (size_t)n + 1));
        HOLDS(mm2_json_form(again, (mm2_view){out, n}, size % 2) == n);
        HOLDS(!memcmp(again, out, (size_t)n));
        free(again);
    }
    mm2_json_begin(&j, "fuzz", text, (int64_t)size);
    if (!mm2_json_tree_read(&tree, &j))
        mm2_json_tree_free(&tree);
    for (uint32_t types = 1; types < 128; types += 13)
        HOLDS(mm2_schema_value(out, types, (mm2_view){text, (int64_t)size}) <=
              2 * (int64_t)size + 3);
    free(text);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static mm2_tokenizer *t;
    mm2_template found;
    if (!t)
        t = make(TOKENS);
    if (size < 2)
        return 0;
    int kind = *data % KINDS;
    data++;
    size--;
    if (kind == REPLY || kind == SPELLED) {
        read_reply(t, data, size, *data & 16 ? some_tools : NULL, kind == SPELLED);
    } else if (kind == MESSAGES) {
        read_messages(t, data, size);
    } else if (kind == TOOLS) {
        read_tools(t, data, size);
    } else if (kind == CONTINUED) {
        read_timeline(t, data, size);
    } else if (kind == JSON) {
        read_json(data, size);
    } else {
        char *text = copy(data, size, 0);
        mm2_template_read(&found, text, (int64_t)size);
        free(text);
    }
    return 0;
}

#ifndef MM2_LIBFUZZER

/* ---- What is read ---- */

static const char *const pieces[] = {"<invoke name=\"f\">",
                                     "</invoke>",
                                     "<parameter name=\"s\">",
                                     "<parameter name=\"i\">",
                                     "<parameter name=\"n\">",
                                     "<parameter name=\"b\">",
                                     "</parameter>",
                                     "<think>",
                                     "</think>",
                                     "<minimax:tool_call>",
                                     "</minimax:tool_call>",
                                     "\xf5",
                                     "\xf6",
                                     "\xf1",
                                     "\xf2",
                                     "\n",
                                     " ",
                                     "x",
                                     "ab",
                                     "null",
                                     "true",
                                     "-1.5e3",
                                     "007",
                                     "\"",
                                     "\\u00e9",
                                     "\\ud83d",
                                     "\xc3\xa9",
                                     "\xff",
                                     "{",
                                     "}",
                                     "[",
                                     "]",
                                     ",",
                                     ":",
                                     "\"role\":",
                                     "\"user\"",
                                     "\"assistant\"",
                                     "\"tool\"",
                                     "\"system\"",
                                     "\"content\":",
                                     "\"thinking\":",
                                     "\"tool_calls\":",
                                     "\"arguments\":",
                                     "\"name\":",
                                     "\"id\":",
                                     "\"a\"",
                                     "\"tool_call_id\":",
                                     "\"type\":",
                                     "\"text\"",
                                     "\"tool_use\"",
                                     "\"tool_result\"",
                                     "\"is_error\":",
                                     "\"tool_use_id\":",
                                     "\"input\":",
                                     "\"function\":",
                                     "\"parameters\":",
                                     "\"anyOf\":",
                                     "\"$ref\":",
                                     "\"enum\":",
                                     "\"#/x\"",
                                     "{{",
                                     "}}",
                                     "{%",
                                     "-%}",
                                     "{#",
                                     "#}",
                                     "'",
                                     "set model_identity = "};

static const struct {
    int kind;
    const char *text;
} seeds[] = {
    {REPLY, "\x11hm</think>\n\nA\n\xf5\n<invoke name=\"f\">\n<parameter name=\"s\">x</parameter>\n"
            "<parameter name=\"i\">5</parameter>\n</invoke>\n\xf6"},
    {SPELLED, "\x12<minimax:tool_call><invoke name=\"f\"><parameter name=\"o\">{\"k\": [1]}"
              "</parameter></invoke></minimax:tool_call>"},
    {MESSAGES,
     "\x02[{\"role\": \"system\", \"content\": \"S\", \"current_date\": \"d\"}, {\"role\": "
     "\"user\", "
     "\"content\": [\"a\", {\"type\": \"text\", \"text\": \"b\"}]}, {\"role\": \"assistant\", "
     "\"content\": null, \"reasoning_content\": \"R\", \"tool_calls\": [{\"id\": \"a\", "
     "\"function\": "
     "{\"name\": \"f\", \"arguments\": {\"s\": \"x\", \"i\": [1.5, null]}}}, {\"id\": \"b\", "
     "\"name\": "
     "\"g\"}]}, {\"role\": \"tool\", \"tool_call_id\": \"b\", \"content\": \"2\"}, {\"role\": "
     "\"tool\", "
     "\"tool_call_id\": \"a\", \"content\": [\"1\"]}]"},
    {MESSAGES,
     "\x0a[{\"role\": \"user\", \"content\": \"U\"}, {\"role\": \"assistant\", \"content\": "
     "[{\"type\": "
     "\"thinking\", \"thinking\": \"R\"}, {\"type\": \"tool_use\", \"id\": \"i\", \"name\": \"f\", "
     "\"input\": {\"a\": \"\\u00e9\"}}]}, {\"role\": \"user\", \"content\": [{\"type\": "
     "\"tool_result\", "
     "\"tool_use_id\": \"i\", \"is_error\": true, \"content\": [{\"type\": \"text\", \"text\": "
     "\"r\"}]}, "
     "\"V\"]}]"},
    {TOOLS,
     "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"$defs\": "
     "{\"x\": "
     "{\"enum\": [1]}}, \"properties\": {\"a\": {\"anyOf\": [{\"type\": \"array\"}, {\"$ref\": "
     "\"#/$defs/x\"}]}}}}}]"},
    {CONTINUED, "\xf1"
                "ai\n\xf3\nhm\xf4\n\nA\n\xf5\n<invoke name=\"f\">\n</invoke>\n\xf6\xf2"},
    {TEMPLATE,
     "{# c #}\n{%- set model_identity = \"You\" -%}\n {{ x }}\r\n{% if 'a' %}b{% endif -%}"},
    {JSON, " {\"a\": [1, -2.5e3, \"\\u00e9\", null], \"b\": {}}"},
};

enum { MOST = 4096 };

static uint64_t draw(uint64_t seed, uint64_t *draws, uint64_t below)
{
    return mm2_splitmix64(seed, (*draws)++) % below;
}

/* Some bytes of `room` go, and a piece takes their place. */
static size_t edit(uint8_t *room, size_t size, uint64_t seed, uint64_t *draws)
{
    const char *piece = pieces[draw(seed, draws, sizeof pieces / sizeof *pieces)];
    size_t n = draw(seed, draws, 4) ? strlen(piece) : 0, at = 1 + draw(seed, draws, size + 1);
    size_t gone = draw(seed, draws, 3) ? 0 : draw(seed, draws, 30);
    if (draw(seed, draws, 4) == 0) { /* a piece of the input itself, once more */
        size_t from = 1 + draw(seed, draws, size + 1), most = size + 1 - from;
        n = draw(seed, draws, 60);
        n = n < most ? n : most;
        n = size + n < MOST ? n : 0;
        uint8_t again[64];
        memcpy(again, room + from, n);
        memmove(room + at + n, room + at, size + 1 - at);
        memcpy(room + at, again, n);
        return size + n;
    }
    gone = gone < size + 1 - at ? gone : size + 1 - at;
    if (size + n - gone >= MOST)
        return size;
    memmove(room + at + n, room + at + gone, size + 1 - at - gone);
    memcpy(room + at, piece, n);
    return size + n - gone;
}

static void random_input(uint64_t seed, uint64_t *draws)
{
    uint8_t room[MOST + 1];
    size_t which = draw(seed, draws, sizeof seeds / sizeof *seeds),
           size = strlen(seeds[which].text);
    room[0] = (uint8_t)seeds[which].kind;
    memcpy(room + 1, seeds[which].text, size);
    if (draw(seed, draws, 4) == 0)
        size = 1;
    for (uint64_t n = draw(seed, draws, size == 1 ? 40 : 6); n; n--)
        size = edit(room, size, seed, draws);
    if (draw(seed, draws, 3) == 0 && size)
        room[1] = (uint8_t)draw(seed, draws, 256);
    uint8_t *exact = checked(malloc(size + 1));
    memcpy(exact, room, size + 1);
    LLVMFuzzerTestOneInput(exact, size + 1);
    free(exact);
}

static void read_file(const char *path)
{
    static uint8_t room[1 << 20];
    FILE *f = checked(fopen(path, "rb"));
    size_t n = fread(room, 1, sizeof room, f);
    fclose(f);
    LLVMFuzzerTestOneInput(room, n);
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1, draws = 0, count = 0;
    if (argc > 1 && seconds <= 0) {
        for (int i = 1; i < argc; i++)
            read_file(argv[i]);
        return 0;
    }
    for (clock_t end = clock() + (clock_t)(seconds * CLOCKS_PER_SEC); clock() < end; count++)
        random_input(seed, &draws);
    printf("%llu inputs\n", (unsigned long long)count);
    return 0;
}

#endif
