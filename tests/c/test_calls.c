/* Calls of tools in a reply. Named cases: inputs that other parsers fail on in public, and those on
 * which they disagree, each with the reading decided here. All of them by tokens and by single
 * bytes, and cut behind every byte: what was seen stays, and the arguments are JSON. */
#include "base/rng.h"
#include "base/status.h"
#include "text/schema.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tag_tokenizer.h"

enum { ROOM = 1 << 14 };

#define T "<minimax:tool_call>"
#define TE "</minimax:tool_call>"
#define I(name) "<invoke name=\"" name "\">"
#define IE "</invoke>"
#define P(name) "<parameter name=\"" name "\">"
#define PE "</parameter>"
#define CALL_OF(value) T "\n" I("f") "\n" P("a") value PE "\n" IE "\n" TE
#define ONE CALL_OF("1")

typedef struct result {
    char thinking[ROOM], text[ROOM], calls[ROOM];
} result;

static void add(char *out, const char *bytes, int32_t n)
{
    size_t length = strlen(out);
    assert_true(n >= 0 && length + (size_t)n < ROOM);
    memcpy(out + length, bytes, (size_t)n);
    out[length + (size_t)n] = 0;
}

/* Calls as text: name{arguments}, "?" before the name of one that is not known, "~" behind one that
 * was cut, "@n" before one that does not come before all text; a space between. */
static void read_calls(result *out, mm2_reply *r, int32_t count, const char *text)
{
    *out->calls = 0;
    for (int32_t i = 0; i < count; i++) {
        mm2_call c = {.size = sizeof c};
        char place[32] = "";
        assert_int_equal(mm2_reply_call(r, i, &c), MM2_OK);
        if (c.text_at)
            snprintf(place, sizeof place, "@%d", c.text_at);
        assert_in_range(c.text_at, 0, strlen(text));
        add(out->calls, " ", i > 0);
        add(out->calls, place, (int32_t)strlen(place));
        add(out->calls, "?", !c.known);
        add(out->calls, c.name, c.name_len);
        add(out->calls, c.arguments, c.arguments_len);
        add(out->calls, "~", c.state == MM2_CALL_CUT);
    }
}

/* Quotes for ', so that JSON can be read here, and ' for \x01. */
static const char *quoted(const char *text)
{
    static char room[4][ROOM];
    static int next;
    char *out = strcpy(room[next++ % 4], text);
    for (char *p = out; *p; p++)
        *p = *p == '\'' ? '"' : *p == 1 ? '\'' : *p;
    return out;
}

static const char *tool(const char *schema)
{
    static char json[ROOM];
    snprintf(json, sizeof json,
             "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": "
             "\"object\", \"properties\": {\"a\": %s}}}}]",
             quoted(schema));
    return json;
}

static mm2_reply *start(const mm2_tokenizer *t, const char *tools, int32_t where)
{
    mm2_reply_options o = {.size = sizeof o};
    mm2_reply *r;
    mm2_reply_options_init(&o);
    o.start = where;
    o.tools = tools;
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_OK);
    return r;
}

static int32_t tag_at(const char *text, int64_t n, int32_t *length)
{
    static const char *const tags[] = {"<think>", "</think>", T, TE};
    for (int i = 0; i < 4; i++) {
        *length = (int32_t)strlen(tags[i]);
        if (*length <= n && !memcmp(text, tags[i], (size_t)*length))
            return THINK + i;
    }
    *length = 1;
    return (uint8_t)*text;
}

/* Reads n bytes of a reply; tokens: tags come as their ids. At each step what was seen is still
 * there, and the last call's arguments have grown. */
static void parse(result *out, const mm2_tokenizer *t, const char *tools, int32_t where,
                  const char *input, int64_t n, int tokens)
{
    mm2_reply *r = start(t, tools, where);
    static char before[ROOM];
    int32_t calls = 0, length = 1;
    mm2_piece p = {.size = sizeof p};
    *out = (result){0};
    *before = 0;
    for (int64_t i = 0; i < n; i += length) {
        length = 1;
        int32_t id = tokens ? tag_at(input + i, n - i, &length) : (uint8_t)input[i];
        assert_int_equal(mm2_reply_push(r, id, &p), MM2_OK);
        add(out->text, p.text, p.text_len);
        add(out->thinking, p.thinking, p.thinking_len);
        assert_true(p.calls >= calls);
        if (p.calls > calls)
            *before = 0;
        calls = p.calls;
        if (calls) {
            mm2_call c = {.size = sizeof c};
            assert_int_equal(mm2_reply_call(r, calls - 1, &c), MM2_OK);
            assert_true((size_t)c.arguments_len >= strlen(before));
            assert_memory_equal(c.arguments, before, strlen(before));
            snprintf(before, ROOM, "%.*s", (int)c.arguments_len, c.arguments);
        }
    }
    assert_int_equal(mm2_reply_end(r, MM2_END_CANCELLED, &p), MM2_OK);
    add(out->text, p.text, p.text_len);
    add(out->thinking, p.thinking, p.thinking_len);
    read_calls(out, r, p.calls, out->text);
    for (int32_t i = 0; i < p.calls; i++) {
        mm2_call c = {.size = sizeof c};
        char *room;
        assert_int_equal(mm2_reply_call(r, i, &c), MM2_OK);
        assert_true(c.state == MM2_CALL_COMPLETE || c.state == MM2_CALL_CUT);
        assert_non_null(room = malloc(2 * (size_t)c.arguments_len));
        assert_true(mm2_json_form(room, (mm2_view){c.arguments, c.arguments_len}, 0) > 0);
        free(room);
        assert_true(i + 1 < p.calls || !memcmp(c.arguments, before, strlen(before)));
    }
    mm2_reply_free(r);
}

typedef struct reading {
    const char *name, *schema, *input, *calls, *text, *thinking;
} reading;

static void check_case(const mm2_tokenizer *t, const reading *c, int32_t where)
{
    static result by_token, by_byte, cut;
    const char *tools = c->schema ? tool(c->schema) : NULL;
    int64_t n = (int64_t)strlen(c->input);
    parse(&by_token, t, tools, where, c->input, n, 1);
    parse(&by_byte, t, tools, where, c->input, n, 0);
    const char *calls = quoted(c->calls ? c->calls : "");
    if (strcmp(by_token.calls, calls) || strcmp(by_token.text, c->text ? c->text : "") ||
        strcmp(by_token.thinking, c->thinking ? c->thinking : ""))
        fail_msg(
            "%s:\n calls    %s\n wanted   %s\n text     \"%s\"\n wanted   \"%s\"\n thinking \"%s\"",
            c->name, by_token.calls, calls, by_token.text, c->text ? c->text : "",
            by_token.thinking);
    if (strcmp(by_byte.calls, calls) || strcmp(by_byte.thinking, by_token.thinking) ||
        (strcmp(by_byte.text, by_token.text) && !strstr(c->name, "end tag")))
        fail_msg("%s, spelled: %s \"%s\"", c->name, by_byte.calls, by_byte.text);
    for (int64_t i = 0; i < n; i++)
        parse(&cut, t, tools, where, c->input, i, 0);
}

#define S "{'type': 'string'}"

/* Inputs from public threads. What they are about is in the name. */
static void inputs_of_public_threads(void **state)
{
    static char long_value[ROOM / 2], long_wanted[ROOM / 2];
    static char filler[3001];
    memset(filler, 'x', 3000);
    snprintf(long_value, sizeof long_value, "</think>" T I("f") P("a") "%s" PE IE TE, filler);
    snprintf(long_wanted, sizeof long_wanted, "f{'a': '%s'}", filler);
    const reading cases[] = {
        {"01 an end of a parameter inside a value", S, "</think>" CALL_OF("<x>" PE "</x>"),
         "f{'a': '<x></parameter></x>'}", 0, 0},
        {"02 the same with one parameter only", S, "</think>" CALL_OF(PE), "f{'a': '</parameter>'}",
         0, 0},
        {"03 a > in the name of a parameter", S, "</think>" T I("f") P("a>b") "1" PE IE TE,
         "f{'a>b': '1'}", 0, 0},
        {"04 a type of string and null", "{'type': ['string', 'null']}",
         "</think>" CALL_OF("Alice"), "f{'a': 'Alice'}", 0, 0},
        {"05 any of string and null", "{'anyOf': [{'type': 'string'}, {'type': 'null'}]}",
         "</think>" CALL_OF("x"), "f{'a': 'x'}", 0, 0},
        {"06 the same, a null", "{'anyOf': [{'type': 'string'}, {'type': 'null'}]}",
         "</think>" CALL_OF("null"), "f{'a': null}", 0, 0},
        {"07 nil as a string", S, "</think>" CALL_OF("nil"), "f{'a': 'nil'}", 0, 0},
        {"08 one call to its end", S, "</think>" ONE, "f{'a': '1'}", 0, 0},
        {"09 an end that comes with the last piece", S, "</think>" T I("f") P("a") "1" PE IE TE,
         "f{'a': '1'}", 0, 0},
        {"10 parameters and ends at once", S, "</think>" T I("f") P("a") "1" PE P("b") "2" PE IE TE,
         "f{'a': '1', 'b': '2'}", 0, 0},
        {"11 a long string", S, long_value, long_wanted, 0, 0},
        {"14 thinking before an answer", S, "R</think>\n\nA", 0, "A", "R"},
        {"15 likewise after a result", S, "R</think>A", 0, "A", "R"},
        {"16 a repeated opening tag", S, "<think>\nR</think>A", 0, "A", "R"},
        {"17 a second end tag", S, "R</think>A</think>B", 0, "AB", "R"},
        {"18 a tool that was not declared", S, "</think>" T I("nope") P("a") "1" PE IE TE,
         "?nope{'a': '1'}", 0, 0},
        {"19 tags as tokens that a text without special ones lacks", S, "R</think>" ONE,
         "f{'a': '1'}", 0, "R"},
        {"20 white space in a value", S, "</think>" CALL_OF("    if x:\n        y\n"),
         "f{'a': '    if x:\\n        y\\n'}", 0, 0},
        {"21 another model's form", S,
         "</think>]<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name=\"f\">]<]minimax[>[<a>1", 0,
         "]<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name=\"f\">]<]minimax[>[<a>1", 0},
        {"22 thinking before a call", S, "R</think>" ONE, "f{'a': '1'}", 0, "R"},
        {"23 cut in the second parameter", S, "</think>" T I("f") P("a") "1" PE P("b") "2" PE IE TE,
         "f{'a': '1', 'b': '2'}", 0, 0},
        {"24 two calls in one piece", S,
         "</think>" T I("f") P("a") "1" PE IE I("f") P("a") "2" PE IE TE, "f{'a': '1'} f{'a': '2'}",
         0, 0},
        {"25 a start that comes in pieces", S, "</think>\n\n" ONE, "f{'a': '1'}", 0, 0},
        {"26 no parameters", S, "</think>" T I("f") IE TE, "f{}", 0, 0},
        {"27 an unknown tool before a known one", S,
         "</think>" T I("nope") IE I("f") P("a") "1" PE IE TE, "?nope{} f{'a': '1'}", 0, 0},
        {"28 text behind a call", S, "</think>" ONE " done.", "f{'a': '1'}", " done.", 0},
        {"29 two blocks", S, "</think>" ONE "\n" ONE, "f{'a': '1'} f{'a': '1'}", 0, 0},
        {"30 thinking apart from the answer", S, "R</think>A", 0, "A", "R"},
        {"32 two invokes in a block", S,
         "</think>" T "\n" I("f") "\n" P("a") "1" PE "\n" IE "\n" I("f") "\n" P("a") "2" PE "\n" IE
                                                                                     "\n" TE,
         "f{'a': '1'} f{'a': '2'}", 0, 0},
        {"33 a constant without quotes", "{'anyOf': [{'const': 'red'}, {'enum': ['blue']}]}",
         "</think>" CALL_OF("red"), "f{'a': 'red'}", 0, 0},
        {"35 a large number", "{'type': 'integer'}", "</think>" CALL_OF("9007199254740993"),
         "f{'a': 9007199254740993}", 0, 0},
        {"37 two invokes, the second of another tool", S,
         "</think>" T I("f") P("a") "1" PE IE "\n" I("g") IE TE, "f{'a': '1'} ?g{}", 0, 0},
        {"38 an invoke without <", S, "</think>" T "\ninvoke name=\"f\">\n" TE, 0,
         T "\ninvoke name=\"f\">\n" TE, 0},
        {"39 the same, and its end", S, "</think>" T "\ninvoke name=\"f\">\n/invoke>\n" TE, 0,
         T "\ninvoke name=\"f\">\n/invoke>\n" TE, 0},
        {"40 JSON, and no quotes of another language", S, "</think>" CALL_OF("it's \"x\""),
         "f{'a': 'it\x01s \\'x\\''}", 0, 0},
        {"41 no opening tag", S, "R\n</think>\nHi", 0, "Hi", "R"},
        {"42 a call in the thinking", S, "R\n" ONE, "f{'a': '1'}", 0, "R"},
        {"43 the same, and its end tag later", S, "R " ONE "\n</think>\n\nA", "f{'a': '1'}", "A",
         "R "},
        {"44 indented lines", S,
         "</think>" T "\n  " I("f") "\n    " P("a") "1" PE "\n  " IE "\n" TE, "f{'a': '1'}", 0, 0},
        {"45 JSON in other tags", S, "</think><tool_calls>\n{}\n</tool_calls>", 0,
         "<tool_calls>\n{}\n</tool_calls>", 0},
        {"46 brackets", S, "</think>[TOOL_CALL]{tool => 1}[/TOOL_CALL]", 0,
         "[TOOL_CALL]{tool => 1}[/TOOL_CALL]", 0},
        {"47 a function instead of an invoke", S,
         "</think>" T "<function=f>" P("a") "1" PE "</function>" TE, 0,
         T "<function=f>" P("a") "1" PE "</function>" TE, 0},
        {"48 another block around an invoke", S,
         "</think><tool_call>" I("f") P("a") "1" PE IE "</tool_call>", 0,
         "<tool_call>" I("f") P("a") "1" PE IE "</tool_call>", 0},
        {"49 a tag inside of the thinking", S, "a <think> b</think>c", 0, "c", "a <think> b"},
        {"50 the end of a value in pieces", S, "</think>" CALL_OF("x"), "f{'a': 'x'}", 0, 0},
        {"51 the end of the thinking before a call", S, "R</think>" ONE, "f{'a': '1'}", 0, "R"},
        {"52 a call in small pieces", "{'type': 'integer'}", "R\n</think>\n\n" CALL_OF("12"),
         "f{'a': 12}", 0, "R"},
        {"53 two invokes", S, "</think>" T I("f") IE "\n" I("f") IE TE, "f{} f{}", 0, 0},
        {"54 the end of the block inside a value", S, "</think>" CALL_OF("x " TE " y"),
         "f{'a': 'x </minimax:tool_call> y'}", 0, 0},
        {"56 an invoke without a name", S, "</think>" T "<invoke>" P("a") "1" PE IE TE, 0,
         T "<invoke>" P("a") "1" PE IE TE, 0},
        {"56 a block of garbage", S, "</think>" T "garbage" TE, 0, T "garbage" TE, 0},
        {"56 the end of a block alone", S, "</think>a" TE, 0, "a" TE, 0},
        {"57 an end tag and nothing else", S, "</think>", 0, 0, 0},
        {"58 thinking through another server's prefix", S, "R</think>\nA", 0, "A", "R"},
        {"59 two invokes, streamed", S, "</think>" T I("f") IE I("f") P("a") "2" PE IE TE,
         "f{} f{'a': '2'}", 0, 0},
        {"60 text between parameters: it may be a part of the value", S,
         "</think>" T I("f") P("a") "1" PE " and " P("b") "2" PE IE TE,
         "f{'a': '1</parameter> and <parameter name=\\'b\\'>2'}", 0, 0},
        {"61 an invoke in a text, without a block", S, "</think>See " I("f") P("a") "1" PE IE, 0,
         "See " I("f") P("a") "1" PE IE, 0},
        {"61 a block in a text", S, "</think>See\n" ONE " there", "@3f{'a': '1'}", "See there", 0},
    };
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_case(t, &cases[i], MM2_START_THINKING);
    mm2_tokenizer_release(t);
}

/* 12, 13: while a value is written it is seen, but for what may be a tag. */
static void values_come_while_they_are_written(void **state)
{
    static const char value[] = "\nint f(int a) { return a < 5 && \"x\" [0] </ para > ? a : 0; }";
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    mm2_reply *r = start(t, tool(S), MM2_START_ANSWER);
    mm2_call c = {.size = sizeof c};
    for (const char *p = T I("f") P("a"); *p; p++)
        assert_int_equal(mm2_reply_push(r, (uint8_t)*p, NULL), MM2_OK);
    assert_int_equal(mm2_reply_call(r, 0, &c), MM2_OK);
    assert_memory_equal(c.arguments, "{\"a\": \"", 7);
    for (int i = 0; i < 2000; i++) {
        char byte = value[(size_t)i % (sizeof value - 1)];
        int32_t before = c.arguments_len;
        assert_int_equal(mm2_reply_push(r, (uint8_t)byte, NULL), MM2_OK);
        assert_int_equal(mm2_reply_call(r, 0, &c), MM2_OK);
        assert_true(c.arguments_len > before || byte == '<' || byte == '/');
    }
    assert_int_equal(c.state, MM2_CALL_OPEN);
    mm2_reply_free(r);
    mm2_tokenizer_release(t);
}

/* 34: a value of a million bytes, with all that may be a tag. */
static void a_value_may_be_long(void **state)
{
    enum { LONG = 1000000 };
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    mm2_reply *r = start(t, tool(S), MM2_START_ANSWER);
    mm2_call c = {.size = sizeof c};
    static const char *const around[] = {T I("f") P("a"), PE IE TE};
    for (const char *p = around[0]; *p; p++)
        assert_int_equal(mm2_reply_push(r, (uint8_t)*p, NULL), MM2_OK);
    for (int i = 0; i < LONG; i++)
        assert_int_equal(mm2_reply_push(r, (uint8_t) "a<b </p"[i % 7], NULL), MM2_OK);
    for (const char *p = around[1]; *p; p++)
        assert_int_equal(mm2_reply_push(r, (uint8_t)*p, NULL), MM2_OK);
    assert_int_equal(mm2_reply_call(r, 0, &c), MM2_OK);
    assert_int_equal(c.state, MM2_CALL_COMPLETE);
    assert_int_equal(c.arguments_len, LONG + 9);
    mm2_reply_free(r);
    mm2_tokenizer_release(t);
}

/* 62: a tool without parameters can be called, with any. */
static void a_tool_without_parameters(void **state)
{
    static const char *const tools[] = {"[{'name': 'f'}]",
                                        "[{'function': {'name': 'f', 'parameters': null}}]",
                                        "[{'name': 'f', 'parameters': {}}]"};
    static result got;
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    for (int i = 0; i < 3; i++) {
        parse(&got, t, quoted(tools[i]), MM2_START_ANSWER, ONE, sizeof ONE - 1, 1);
        assert_string_equal(got.calls, "f{\"a\": \"1\"}");
    }
    mm2_tokenizer_release(t);
}

/* What published parsers do not agree about. */
static void readings_that_lose_nothing(void **state)
{
    const reading cases[] = {
        {"text around blocks", S, "pre\n" ONE "mid" ONE "post", "@3f{'a': '1'} @6f{'a': '1'}",
         "premidpost", 0},
        {"one newline before a block is the format's", S, "A\n\n" ONE, "@2f{'a': '1'}", "A\n", 0},
        {"no white space", S, T I("f") P("a") "1" PE IE TE, "f{'a': '1'}", 0, 0},
        {"an empty block", S, T "\n" TE, 0, T "\n" TE, 0},
        {"a start alone", S, "a\n" T, 0, "a\n" T, 0},
        {"two starts", S, T T I("f") IE TE, "@19f{}", T, 0},
        {"no end of the block", S, "pre" T I("f") P("a") "1" PE IE, "@3f{'a': '1'}", "pre", 0},
        {"no end of the invoke", S, T I("f") P("a") "1" PE TE " x", "f{'a': '1'}", " x", 0},
        {"no end of an invoke before another", S, T I("f") P("a") "1" PE I("f") IE TE,
         "f{'a': '1'} f{}", 0, 0},
        {"no end of the parameter", S, T I("f") P("a") "1" IE TE "x", "f{'a': '1'}", "x", 0},
        {"no end of the parameter at the end", S, T I("f") P("a") "1" IE, "f{'a': '1'}~", 0, 0},
        {"no ends at all", S, T I("f") P("a") "1" TE, "f{'a': '1'}~", 0, 0},
        {"a parameter inside a value", S, CALL_OF("x" P("b") "y"),
         "f{'a': 'x<parameter name=\\'b\\'>y'}", 0, 0},
        {"an invoke inside a value", S, CALL_OF("x" I("b") "y"),
         "f{'a': 'x<invoke name=\\'b\\'>y'}", 0, 0},
        {"the end of an invoke inside a value", S, CALL_OF("x " IE " y" IE),
         "f{'a': 'x </invoke> y</invoke>'}", 0, 0},
        {"the thinking's tags inside a value", S, CALL_OF("x<think>y</think>z"),
         "f{'a': 'x<think>y</think>z'}", 0, 0},
        {"a start inside a value", S, CALL_OF("x" T "z"), "f{'a': 'x<minimax:tool_call>z'}", 0, 0},
        {"half a tag inside a value", S, CALL_OF("a < b </para </ </parameter"),
         "f{'a': 'a < b </para </ </parameter'}", 0, 0},
        {"a brace and quotes", S, CALL_OF("a}\"b{"), "f{'a': 'a}\\'b{'}", 0, 0},
        {"a backslash and a control character", S, CALL_OF("\\n\x01\t"),
         "f{'a': '\\\\n\\u0001\\t'}", 0, 0},
        {"cut in a value", S, T I("f") P("a") "12", "f{'a': '12'}~", 0, 0},
        {"cut behind a value", S, T I("f") P("a") "12" PE, "f{'a': '12'}~", 0, 0},
        {"cut in a number", "{'type': 'integer'}", T I("f") P("a") "12", "f{'a': 12}~", 0, 0},
        {"cut in a list", "{'type': 'array'}", T I("f") P("a") "[1, 2", "f{'a': '[1, 2'}~", 0, 0},
        {"cut in a name", S, "A\n" T "\n<invoke name=\"f", 0, "A\n" T "\n<invoke name=\"f", 0},
        {"cut in the name of a parameter", S, T I("f") "<parameter name=\"a", "f{}~", 0, 0},
        {"cut in the second call", S, T I("f") IE I("f") P("a") "2", "f{} f{'a': '2'}~", 0, 0},
        {"no quotes", S, T "<invoke name=f><parameter name=a>1" PE IE TE, "f{'a': '1'}", 0, 0},
        {"single quotes", S, T "<invoke name='f'><parameter name='a'>1" PE IE TE, "f{'a': '1'}", 0,
         0},
        {"spaces in the tags", S, T "<invoke name=\"f\" ><parameter name=\"a\" >1" PE IE TE,
         "f{'a': '1'}", 0, 0},
        {"other attributes", S, T "<invoke name=\"f\" id=\"1\"><parameter name=\"a\">1" PE IE TE,
         "f{'a': '1'}", 0, 0},
        {"tags that close themselves", S,
         T "<invoke name=\"f\"/><invoke name=\"f\"><parameter "
           "name=\"a\" />" IE TE,
         "f{} f{'a': ''}", 0, 0},
        {"a quote that is missing", S, T "\n<invoke name=\"f>\n" P("a") "1" PE IE TE, "f{'a': '1'}",
         0, 0},
        {"a quote in a name", S, T I("f\"g") P("a\"b") "1" PE IE TE, "?f'g{'a\\'b': '1'}", 0, 0},
        {"a parameter twice", S, T I("f") P("a") "1" PE P("a") "2" PE IE TE,
         "f{'a': '1', 'a': '2'}", 0, 0},
        {"an invoke without a block", S, "x" I("f") P("a") "1" PE IE, 0,
         "x" I("f") P("a") "1" PE IE, 0},
        {"a block that does not end, then text", S, T I("f") IE " then", "f{}", " then", 0},
        {"text that looks like a tag", S, "a < b <min c", 0, "a < b <min c", 0},
        {"the end of a turn, spelled", S, ONE "[e~[", "f{'a': '1'}", "[e~[", 0},
        {"no tools", 0, ONE, "f{'a': '1'}", 0, 0},
        {"a name that does not end", S, T "<invoke name=\"f\ng\">", 0, T "<invoke name=\"f\ng\">",
         0},
        {"a thinking block in the answer", S, "A<think>R2</think>B", 0, "A<think>R2</think>B", 0},
    };
    const reading thinking[] = {
        {"thinking that mentions a block", S, "R" T "mentioned only</think>A", 0, "A",
         "R" T "mentioned only"},
        {"thinking that mentions an empty block", S, "R " T "..." TE "</think>A", 0, "A",
         "R " T "..." TE},
        {"thinking that ends with a mention", S, "R " T, 0, 0, "R " T},
        {"a block behind a mention", S, "R " T " x " ONE, "f{'a': '1'}", 0, "R " T " x "},
        {"a call in the thinking, then text", S, "R" ONE " more</think> A", "f{'a': '1'}",
         " more A", "R"},
        {"half an end tag", S, "R</think", 0, 0, "R</think"},
        {"other end tags", S, "R</mm:think>A</thinking>", 0, 0, "R</mm:think>A</thinking>"},
        {"spaces stay", S, "  R  </think>  A  ", 0, "  A  ", "  R  "},
        {"three newlines before a call", S, "R\n</think>\n\n\n" ONE, "f{'a': '1'}", 0, "R"},
    };
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_case(t, &cases[i], MM2_START_ANSWER);
    for (size_t i = 0; i < sizeof thinking / sizeof *thinking; i++)
        check_case(t, &thinking[i], MM2_START_THINKING);
    mm2_tokenizer_release(t);
}

static void values_by_their_schemas(void **state)
{
    static const struct {
        const char *schema, *value, *want;
    } cases[] = {
        {S, "null", "'null'"},
        {S, " x ", "' x '"},
        {S, "\nx\n", "'\\nx\\n'"},
        {S, "123", "'123'"},
        {S, "&lt;b&gt;", "'&lt;b&gt;'"},
        {S, "", "''"},
        {"{'type': 'integer'}", " 42 ", "42"},
        {"{'type': 'integer'}", "-7", "-7"},
        {"{'type': 'integer'}", "+5", "5"},
        {"{'type': 'integer'}", "007", "7"},
        {"{'type': 'integer'}", "1_000", "1000"},
        {"{'type': 'integer'}", "1__0", "'1__0'"},
        {"{'type': 'integer'}", "4.5", "4.5"},
        {"{'type': 'integer'}", "3.0", "3"},
        {"{'type': 'integer'}", "1e3", "1e3"},
        {"{'type': 'integer'}", "true", "true"},
        {"{'type': 'integer'}", "null", "null"},
        {"{'type': 'integer'}", "x", "'x'"},
        {"{'type': 'integer'}", "", "''"},
        {"{'type': 'integer'}", "12345678901234567890123", "12345678901234567890123"},
        {"{'type': 'number'}", "3.50", "3.50"},
        {"{'type': 'number'}", ".5", "0.5"},
        {"{'type': 'number'}", "5.", "5"},
        {"{'type': 'number'}", "-0.25", "-0.25"},
        {"{'type': 'number'}", "1e400", "'1e400'"},
        {"{'type': 'number'}", "inf", "'inf'"},
        {"{'type': 'number'}", "NaN", "'NaN'"},
        {"{'type': 'number'}", "0x10", "'0x10'"},
        {"{'type': 'boolean'}", "true", "true"},
        {"{'type': 'boolean'}", " False ", "false"},
        {"{'type': 'boolean'}", "1", "true"},
        {"{'type': 'boolean'}", "0", "false"},
        {"{'type': 'boolean'}", "yes", "'yes'"},
        {"{'type': 'boolean'}", "banana", "'banana'"},
        {"{'type': 'null'}", "None", "null"},
        {"{'type': 'null'}", "x", "'x'"},
        {"{'type': 'array'}", "[1,  'a',{'b':null}]", "[1, 'a', {'b': null}]"},
        {"{'type': 'array'}", "[NaN]", "'[NaN]'"},
        {"{'type': 'array'}", "[1, 2", "'[1, 2'"},
        {"{'type': 'array', 'items': {'type': 'integer'}}", "['1']", "['1']"},
        {"{'type': 'object'}", "{'k':1,'k':2}", "{'k': 1, 'k': 2}"},
        {"{'type': 'object'}", "{k: 1}", "'{k: 1}'"},
        {"{'type': ['string', 'null']}", "5", "'5'"},
        {"{'type': ['string', 'null']}", "nul", "'nul'"},
        {"{'type': ['string', 'null']}", "null ", "'null '"},
        {"{'type': ['string', 'null']}", "", "''"},
        {"{'type': 'string', 'nullable': true}", "null", "null"},
        {"{'anyOf': [{'type': 'integer'}, {'type': 'null'}]}", "5", "5"},
        {"{'anyOf': [{'type': 'integer'}, {'type': 'null'}]}", "none", "null"},
        {"{'oneOf': [{'type': 'integer'}, {'type': 'string'}]}", "5", "5"},
        {"{'oneOf': [{'type': 'integer'}, {'type': 'string'}]}", "x", "'x'"},
        {"{'type': ['integer', 'string']}", "007", "'007'"},
        {"{'type': ['number', 'string']}", "1e400", "'1e400'"},
        {"{'type': ['boolean', 'string']}", "true", "true"},
        {"{'type': ['boolean', 'string']}", "True", "'True'"},
        {"{'anyOf': [{'type': 'object'}, {'type': 'string'}]}", "5", "'5'"},
        {"{'anyOf': [{'type': 'object'}, {'type': 'string'}]}", "{}", "{}"},
        {"{'allOf': [{'type': 'integer'}]}", "5", "5"},
        {"{'enum': [5, 6]}", "5", "5"},
        {"{'enum': ['5', 'x']}", "5", "'5'"},
        {"{'enum': ['a', null]}", "null", "null"},
        {"{'const': 5}", "5", "5"},
        {"{'const': '5'}", "5", "'5'"},
        {"{'description': 'd'}", "5", "'5'"},
        {"{'anyOf': [{}, {'type': 'integer'}]}", "x", "'x'"},
        {"{'$ref': '#/properties/a'}", "5", "'5'"}, /* in a circle */
        {"{'$ref': '#/nowhere'}", "5", "'5'"},
        {"{'$ref': 'http://x'}", "5", "'5'"},
        {"true", "5", "'5'"},
        {"{'type': 'what'}", "5", "'5'"},
        {"{'type': 'integer'}, '$defs': {}", "5", "5"},
    };
    static result got;
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static char input[ROOM], want[ROOM];
        snprintf(input, sizeof input, CALL_OF("%s"), quoted(cases[i].value));
        snprintf(want, sizeof want, "f{\"a\": %s}", quoted(cases[i].want));
        const char *tools = tool(cases[i].schema);
        parse(&got, t, tools, MM2_START_ANSWER, input, (int64_t)strlen(input), 0);
        if (strcmp(got.calls, want))
            fail_msg("%s of \"%s\": %s", cases[i].schema, cases[i].value, got.calls);
        for (size_t k = 0; k < strlen(input); k++)
            parse(&got, t, tools, MM2_START_ANSWER, input, (int64_t)k, 0);
    }
    static const char refs[] =
        "[{'name': 'f', 'parameters': {'$defs': {'N/~': {'type': 'integer'}, 'M': {'$ref': "
        "'#/$defs/N~1~0'}}, 'properties': {'a': {'$ref': '#/$defs/M'}}, 'additionalProperties': "
        "{'type': 'boolean'}}}]";
    const char *input = T I("f") P("a") "5" PE P("other") "true" PE IE TE;
    parse(&got, t, quoted(refs), MM2_START_ANSWER, input, (int64_t)strlen(input), 1);
    assert_string_equal(got.calls, "f{\"a\": 5, \"other\": true}");
    mm2_tokenizer_release(t);
}

/* Bytes that are no character stand in JSON as U+FFFD, one for each that Unicode says. */
static void bytes_that_are_no_characters(void **state)
{
    static result got;
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    const char *input = CALL_OF("\xc3\xa9\xff\xe6\x97x\xf0\x9f\x99\x82\xe6\x97");
    parse(&got, t, NULL, MM2_START_ANSWER, input, (int64_t)strlen(input), 0);
    assert_string_equal(got.calls, "f{\"a\": \"\xc3\xa9\xef\xbf\xbd\xef\xbf\xbdx\xf0\x9f\x99\x82"
                                   "\xef\xbf\xbd\"}");
    input = CALL_OF("[\"\xff\"]");
    parse(&got, t, tool("{'type': 'array'}"), MM2_START_ANSWER, input, (int64_t)strlen(input), 0);
    assert_string_equal(got.calls, "f{\"a\": \"[\\\"\xef\xbf\xbd\\\"]\"}");
    mm2_tokenizer_release(t);
}

static void a_reason_is_given(void **state)
{
    static const struct {
        const char *input, *word;
    } cases[] = {
        {ONE "text", ""},
        {"a < b", ""},
        {T "garbage", "not followed"},
        {T TE, "not followed"},
        {T "<invoke name=\"f\ng\">", "does not end"},
        {T I("f") "stray" IE TE, "text between"},
        {T "<invoke name=\"f", "ended inside"},
    };
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mm2_reply *r = start(t, NULL, MM2_START_ANSWER);
        mm2_piece p = {.size = sizeof p};
        for (const char *c = cases[i].input; *c; c++)
            assert_int_equal(mm2_reply_push(r, (uint8_t)*c, NULL), MM2_OK);
        assert_int_equal(mm2_reply_end(r, MM2_END_CANCELLED, &p), MM2_OK);
        assert_non_null(strstr(p.reason, cases[i].word));
        assert_int_equal(!*p.reason, !*cases[i].word);
        mm2_reply_free(r);
    }
    mm2_tokenizer_release(t);
}

/* Where the model ends the turn itself, the end of the invoke is enough. */
static void the_model_ends_the_turn(void **state)
{
    static const char *const inputs[] = {T I("f") P("a") "1" IE, T I("f") P("a") "1",
                                         T I("f") P("a") "1" PE};
    static const int32_t states[] = {MM2_CALL_COMPLETE, MM2_CALL_CUT, MM2_CALL_CUT};
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    for (int i = 0; i < 3; i++) {
        mm2_reply *r = start(t, NULL, MM2_START_ANSWER);
        mm2_call c = {.size = sizeof c};
        for (const char *p = inputs[i]; *p; p++)
            assert_int_equal(mm2_reply_push(r, (uint8_t)*p, NULL), MM2_OK);
        assert_int_equal(mm2_reply_push(r, END, NULL), MM2_OK);
        assert_int_equal(mm2_reply_call(r, 0, &c), MM2_OK);
        assert_int_equal(c.state, states[i]);
        assert_int_equal(c.arguments_len, 10);
        assert_memory_equal(c.arguments, "{\"a\": \"1\"}", 10);
        mm2_reply_free(r);
    }
    mm2_tokenizer_release(t);
}

/* In plain text nothing is a call. */
static void text_has_no_calls(void **state)
{
    static result got;
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    parse(&got, t, NULL, MM2_START_TEXT, ONE, sizeof ONE - 1, 1);
    assert_string_equal(got.text, ONE);
    assert_string_equal(got.calls, "");
    mm2_tokenizer_release(t);
}

static void a_budget_of_thinking(void **state)
{
    static const struct {
        const char *thinking;
        int32_t budget;
        int32_t forced[6];
    } cases[] = {
        {"abc", 3, {'\n', UNTHINK, '\n', '\n', -1}},
        {"ab\n", 3, {UNTHINK, '\n', '\n', -1}},
        {"ab\xe6\x97\xa5", 3, {'\n', UNTHINK, '\n', '\n', -1}}, /* a character is not cut */
        {"", 0, {'\n', UNTHINK, '\n', '\n', -1}},
    };
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mm2_reply_options o = {.size = sizeof o};
        mm2_piece p = {.size = sizeof p};
        mm2_reply *r;
        mm2_reply_options_init(&o);
        o.start = MM2_START_THINKING;
        o.max_thinking = cases[i].budget;
        assert_int_equal(mm2_reply_new(&r, t, &o), MM2_OK);
        for (const char *c = cases[i].thinking; *c; c++) {
            assert_int_equal(mm2_reply_all(r, &p), MM2_OK);
            assert_int_equal(p.next, -1);
            assert_int_equal(mm2_reply_push(r, (uint8_t)*c, &p), MM2_OK);
        }
        assert_int_equal(mm2_reply_all(r, &p), MM2_OK);
        for (int k = 0; cases[i].forced[k] >= 0; k++) {
            assert_int_equal(p.next, cases[i].forced[k]);
            assert_int_equal(mm2_reply_push(r, p.next, &p), MM2_OK);
        }
        assert_int_equal(p.next, -1);
        assert_int_equal(mm2_reply_push(r, 'A', &p), MM2_OK);
        assert_int_equal(p.next, -1);
        assert_int_equal(mm2_reply_all(r, &p), MM2_OK);
        assert_int_equal(p.text_len, 1);
        mm2_reply_free(r);
    }
    mm2_tokenizer_release(t);
}

static void push_bytes(mm2_reply *r, const char *bytes, mm2_piece *p)
{
    for (; *bytes; bytes++)
        assert_int_equal(mm2_reply_push(r, (uint8_t)*bytes, p), MM2_OK);
}

/* Pushes the ids that must come; returns them as text, tags as one letter. */
static const char *forced(mm2_reply *r)
{
    static char out[256];
    int n = 0;
    mm2_piece p = {.size = sizeof p};
    assert_int_equal(mm2_reply_all(r, &p), MM2_OK);
    while (p.next >= 0 && !p.end) {
        assert_true(n < 255);
        out[n++] = p.next == CALL ? 'C' : p.next == UNTHINK ? 'U' : (char)p.next;
        assert_int_equal(mm2_reply_push(r, p.next, &p), MM2_OK);
    }
    out[n] = 0;
    return out;
}

/* 55: where the prompt opens the thinking, it is thought first, and the call follows. */
static void a_call_that_must_come(void **state)
{
    mm2_reply_options o = {.size = sizeof o};
    mm2_piece p = {.size = sizeof p};
    mm2_reply *r;
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    mm2_reply_options_init(&o);
    o.start = MM2_START_THINKING;
    o.tools = tool("{'type': 'integer'}");
    for (int spelled = 0; spelled < 2; spelled++) { /* behind the thinking, and only once */
        o.call = "f";
        assert_int_equal(mm2_reply_new(&r, t, &o), MM2_OK);
        push_bytes(r, "x\n", &p);
        assert_int_equal(p.next, -1);
        if (spelled)
            push_bytes(r, "</think>", &p);
        else
            assert_int_equal(mm2_reply_push(r, UNTHINK, &p), MM2_OK);
        assert_string_equal(forced(r), "\n\n\nC\n<invoke name=\"f\">\n");
        push_bytes(r, P("a") "5" PE "\n" IE "\n" TE, &p);
        assert_int_equal(mm2_reply_push(r, END, &p), MM2_OK);
        assert_int_equal(p.end, MM2_END_CALLS);
        result out;
        read_calls(&out, r, p.calls, "");
        assert_string_equal(out.calls, "f{\"a\": 5}");
        mm2_reply_free(r);
    }
    o.call = ""; /* behind an answer's beginning; another id than the one that must come */
    o.start = MM2_START_ANSWER;
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_OK);
    assert_string_equal(forced(r), "\nC\n<invoke name=\"");
    mm2_reply_free(r);
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_OK);
    push_bytes(r, "A", &p);
    assert_int_equal(p.next, -1);
    assert_int_equal(mm2_reply_push(r, END, &p), MM2_OK);
    assert_int_equal(p.end, MM2_END_STOP);
    mm2_reply_free(r);
    o.start = MM2_START_THINKING; /* a budget that is spent; a call in the thinking */
    o.max_thinking = 2;
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_OK);
    push_bytes(r, "ab", &p);
    assert_string_equal(forced(r), "\nU\n\n\nC\n<invoke name=\"");
    mm2_reply_free(r);
    o.max_thinking = INT32_MAX;
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_OK);
    push_bytes(r, "ab" ONE, &p);
    assert_int_equal(p.next, -1);
    assert_int_equal(mm2_reply_push(r, END, &p), MM2_OK);
    assert_int_equal(p.end, MM2_END_CALLS);
    mm2_reply_free(r);
    o.call = "g";
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_E_ARG);
    assert_non_null(strstr(mm2_error(), "a call of g"));
    o.tools = NULL;
    o.call = "";
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_E_ARG);
    assert_non_null(strstr(mm2_error(), "a call of a tool"));
    o.tools = "[]";
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_E_ARG);
    mm2_tokenizer_release(t);
}

static void mistakes_are_refused(void **state)
{
    mm2_reply_options o = {.size = sizeof o};
    mm2_call c = {.size = sizeof c};
    mm2_reply *r;
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    mm2_reply_options_init(&o);
    o.start = MM2_START_ANSWER;
    static const char *const bad[] = {"", "{}", "[5]", "[{}]", "[{\"name\": 5}]", "[] x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        o.tools = bad[i];
        assert_int_equal(mm2_reply_new(&r, t, &o), MM2_E_ARG);
        assert_null(r);
    }
    o.tools = "null";
    o.max_thinking = -1;
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_E_ARG);
    o.max_thinking = 5;
    o.start = MM2_START_THINKING;
    assert_int_equal(mm2_reply_new(&r, NULL, &o), MM2_E_ARG);
    assert_non_null(strstr(mm2_error(), "max_thinking"));
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_OK);
    assert_int_equal(mm2_reply_call(r, 0, &c), MM2_E_ARG);
    assert_int_equal(mm2_reply_call(r, -1, &c), MM2_E_ARG);
    assert_int_equal(mm2_reply_call(NULL, 0, &c), MM2_E_ARG);
    assert_int_equal(mm2_reply_call(r, 0, NULL), MM2_E_ARG);
    mm2_reply_free(r);
    mm2_tokenizer_release(t);
}

/* ---- Anything at all ---- */

/* Random rows of tags and pieces: by tokens and by bytes alike, cut anywhere, in linear time. */
static void random_replies(void **state)
{
    static const char *const pieces[] = {
        T,
        TE,
        I("f"),
        IE,
        P("a"),
        PE,
        "<think>",
        "</think>",
        "\n",
        " ",
        "x",
        "{}",
        "<",
        "</",
        "\"",
        "null",
        "<invoke ",
        "\xe6",
        "\x97",
        ">",
        "5",
        "/>",
        "<invoke name=",
        "<parameter name=\"",
        CALL_OF("1"),
    };
    static const char *const schemas[] = {S, "{'type': 'integer'}", "{'type': ['string', 'null']}",
                                          "{'type': 'object'}"};
    static result a, b;
    uint64_t draws = 0;
    int calls = 0;
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    for (int i = 0; i < 30000; i++) {
        char input[1024] = "";
        int n = 1 + (int)(mm2_splitmix64(11, draws++) % 16);
        for (int k = 0; k < n; k++)
            strcat(input, pieces[mm2_splitmix64(11, draws++) % (sizeof pieces / sizeof *pieces)]);
        const char *tools = tool(schemas[i % 4]);
        int64_t length = (int64_t)strlen(input);
        int32_t where = i / 4 % 2 ? MM2_START_THINKING : MM2_START_ANSWER;
        parse(&a, t, tools, where, input, length, 1);
        parse(&b, t, tools, where, input, length, 0);
        if (!strstr(input, "</think>")) { /* which is left out of an answer only as a token */
            assert_string_equal(a.calls, b.calls);
            assert_string_equal(a.text, b.text);
        }
        assert_string_equal(a.thinking, b.thinking);
        calls += *a.calls != 0;
        parse(&b, t, tools, where, input, (int64_t)(mm2_splitmix64(11, draws++) % (uint64_t)length),
              0);
    }
    assert_in_range(calls, 3000, 29000);
    mm2_tokenizer_release(t);
}

static void long_replies_are_linear(void **state)
{
    static const char *const rows[] = {
        T,         "<",    PE,     IE, " ", "\n", "<invoke name=\"", T I("f"), "</parameter> ",
        "<think>", I("f"), P("a"), "x"};
    (void)state;
    mm2_tokenizer *t = make(TOKENS);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int inside = 0; inside < 3; inside++) {
            mm2_reply *r = start(t, tool("{'type': 'array'}"), MM2_START_ANSWER);
            const char *head = inside == 0 ? "" : inside == 1 ? T I("f") P("a") : T I("f") P("b");
            mm2_piece p = {.size = sizeof p};
            for (; *head; head++)
                assert_int_equal(mm2_reply_push(r, (uint8_t)*head, NULL), MM2_OK);
            for (int k = 0; k < 200000; k++)
                assert_int_equal(
                    mm2_reply_push(r, (uint8_t)rows[i][(size_t)k % strlen(rows[i])], &p), MM2_OK);
            assert_int_equal(mm2_reply_end(r, MM2_END_CANCELLED, &p), MM2_OK);
            mm2_reply_free(r);
        }
    }
    mm2_tokenizer_release(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inputs_of_public_threads),
        cmocka_unit_test(values_come_while_they_are_written),
        cmocka_unit_test(a_value_may_be_long),
        cmocka_unit_test(a_tool_without_parameters),
        cmocka_unit_test(readings_that_lose_nothing),
        cmocka_unit_test(values_by_their_schemas),
        cmocka_unit_test(bytes_that_are_no_characters),
        cmocka_unit_test(a_reason_is_given),
        cmocka_unit_test(the_model_ends_the_turn),
        cmocka_unit_test(text_has_no_calls),
        cmocka_unit_test(a_budget_of_thinking),
        cmocka_unit_test(a_call_that_must_come),
        cmocka_unit_test(mistakes_are_refused),
        cmocka_unit_test(random_replies),
        cmocka_unit_test(long_replies_are_linear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
