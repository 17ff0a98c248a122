/* Messages as they come: in every form that is understood, and the sentences for what is not; calls,
 * results and tools as text and as ids. */
#include "base/rng.h"
#include "base/status.h"
#include "text/json_form.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tag_tokenizer.h"

#define SYSTEM "]~!b[]~b]system\nS[e~[\n"
#define USER "{'role': 'user', 'content': 'U'}"
#define ASKED SYSTEM "]~b]user\nU[e~[\n]~b]ai\n"

/* JSON with ' for ", so that it can be read here. */
static char *json(const char *text)
{
    static char room[8][8192];
    static int next;
    char *out = strcpy(room[next++ % 8], text);
    for (char *p = out; *p; p++)
        if (*p == '\'')
            *p = '"';
    return out;
}

static int32_t render(const mm2_tokenizer *t, const char *messages, const char *tools,
                      int32_t flags, char out[8192])
{
    mm2_conversation c = {.size = sizeof c,
                          .flags = flags,
                          .messages = json(messages),
                          .tools = tools ? json(tools) : NULL,
                          .identity = "S"};
    int32_t n = mm2_chat_render(t, &c, out, 8191);
    out[n > 0 ? n : 0] = 0;
    return n;
}

static void expect(const mm2_tokenizer *t, const char *messages, const char *tools, int32_t flags,
                   const char *want)
{
    char out[8192];
    if (render(t, messages, tools, flags, out) < 0)
        fail_msg("%s: %s", messages, mm2_error());
    assert_string_equal(out, want);
}

#define TURN(more) "[" USER ", {'role': 'assistant', " more "}]"

static void forms_that_are_understood(void **state)
{
    static const struct {
        const char *messages, *want;
    } cases[] = {
        /* contents */
        {"[{'content': 'a\\nb', 'role': 'user'}]", SYSTEM "]~b]user\na\nb[e~[\n"},
        {"[{'role': 'user', 'content': ['a', {'type': 'text', 'text': 'b'}, 'c']}]",
         SYSTEM "]~b]user\nabc[e~[\n"},
        {"[{'role': 'user', 'content': []}]", SYSTEM "]~b]user\n[e~[\n"},
        {"[{'role': 'user', 'content': 'a', 'name': 'bob', 'refusal': null, 'audio': null}]",
         SYSTEM "]~b]user\na[e~[\n"},
        {"[{'role': 'developer', 'content': 'D'}, " USER "]",
         "]~!b[]~b]system\nD[e~[\n]~b]user\nU[e~[\n"},
        {"[{'role': 'system', 'content': null, 'current_date': 'today'}]",
         "]~!b[]~b]system\nS\nCurrent date: today[e~[\n"},
        {"[{'role': 'system', 'content': 'X', 'current_location': 'here', 'current_date': 'd'}]",
         "]~!b[]~b]system\nX\nCurrent date: d\nCurrent location: here[e~[\n"},
        {TURN("'content': null"), ASKED "[e~[\n"},
        {TURN("'tool_calls': []"), ASKED "[e~[\n"},
        {TURN("'tool_calls': {}"), ASKED "[e~[\n"}, /* Lua's empty list */
        /* thinking under its names */
        {TURN("'content': 'A', 'reasoning_content': 'R'"), ASKED "<think>\nR\n</think>\n\nA[e~[\n"},
        {TURN("'content': 'A', 'thinking': 'R'"), ASKED "<think>\nR\n</think>\n\nA[e~[\n"},
        {TURN("'reasoning': 'R', 'content': 'A'"), ASKED "<think>\nR\n</think>\n\nA[e~[\n"},
        {TURN("'content': 'A', 'reasoning_content': null, 'reasoning_details': [{'type': "
              "'reasoning.text', 'text': 'R1'}, {'text': 'R2', 'index': 1}]"),
         ASKED "<think>\nR1R2\n</think>\n\nA[e~[\n"},
        {TURN("'content': [{'type': 'thinking', 'thinking': 'R', 'signature': 'x'}, {'type': "
              "'text', 'text': 'A'}]"),
         ASKED "<think>\nR\n</think>\n\nA[e~[\n"},
        {TURN("'content': 'A', 'reasoning_content': '', 'reasoning': 'R'"),
         ASKED "<think>\nR\n</think>\n\nA[e~[\n"},
        {TURN("'content': 'A', 'reasoning_content': 'R', 'reasoning': 'R'"),
         ASKED "<think>\nR\n</think>\n\nA[e~[\n"},
        {TURN("'content': '<think>R</think>A'"), ASKED "<think>\nR\n</think>\n\nA[e~[\n"},
        {TURN("'content': '<think>R</think>A', 'thinking': ''"), ASKED "<think>R</think>A[e~[\n"},
        /* calls */
        {TURN("'content': 'A', 'tool_calls': [{'id': '1', 'function': {'name': 'f', 'arguments': "
              "{'z': 'x<y\\n', 'a': 1.50, 'l':[1,{'k':'\\u00e9\\u0001'}],'n':null}}}]"),
         ASKED
         "A\n<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"z\">x<y\n</parameter>"
         "\n<parameter name=\"a\">1.50</parameter>\n<parameter name=\"l\">[1, {\"k\": "
         "\"\xc3\xa9\\u0001\"}]</parameter>\n<parameter name=\"n\">null</parameter>\n"
         "</invoke>\n</minimax:tool_call>[e~[\n"},
        {TURN("'thinking': 'R', 'tool_calls': [{'name': 'f', 'arguments': '{\\u0022a\\u0022: "
              "\\u0022b\\u0022}'}, {'name': 'g', 'arguments': ''}, {'name': 'h'}]"),
         ASKED "<think>\nR\n</think>\n\n\n<minimax:tool_call>\n<invoke name=\"f\">\n<parameter "
               "name=\"a\">b</parameter>\n</invoke>\n<invoke name=\"g\">\n</invoke>\n<invoke "
               "name=\"h\">\n</invoke>\n</minimax:tool_call>[e~[\n"},
    };
    mm2_tokenizer *t = make(TOKENS);
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect(t, cases[i].messages, NULL, 0, cases[i].want);
    mm2_tokenizer_release(t);
}

#define CALLED USER ", {'role': 'assistant', 'tool_calls': [{'name': 'f'}]}, "
#define CALL_TEXT                                                                                  \
    ASKED "\n<minimax:tool_call>\n<invoke name=\"f\">\n</invoke>\n</minimax:tool_call>[e~[\n]~b]"  \
          "tool"

static void results_of_tools(void **state)
{
    mm2_tokenizer *t = make(TOKENS);
    (void)state;
    expect(t,
           "[" CALLED "{'role': 'tool', 'content': 'r1', 'tool_call_id': 'x'}, "
           "{'role': 'tool', 'content': 'r2'}]",
           NULL, MM2_GENERATION_PROMPT,
           CALL_TEXT "\n<response>r1</response>\n<response>r2</response>[e~[\n]~b]ai\n<think>\n");
    expect(t,
           "[" CALLED "{'content': ['a', {'type': 'text', 'text': 'b'}, {'output': 'c', 'text':"
           " 'd'}], 'role': 'tool'}]",
           NULL, MM2_GENERATION_PROMPT | MM2_NO_THINKING,
           CALL_TEXT "\n<response>a\n</response>\n<response>b\n</response>\n<response>c\n"
                     "</response>[e~[\n]~b]ai\n<think>\n\n</think>\n\n");
    expect(t, "[" CALLED "{'role': 'tool', 'content': []}]", NULL, 0, CALL_TEXT "[e~[\n");
    mm2_tokenizer_release(t);
}

/* Two calls with ids, and a result of one. */
#define BOTH                                                                                       \
    USER ", {'role': 'assistant', 'tool_calls': [{'id': 'a', 'function': {'name': 'f'}}, {'id': "  \
         "'b', 'function': {'name': 'g'}}]}, "
#define RESULT(id, text) "{'role': 'tool', 'tool_call_id': '" id "', 'content': '" text "'}"
#define PART(id, more) "{'type': 'tool_result', 'tool_use_id': '" id "', " more "}"
#define BOTH_TEXT                                                                                  \
    ASKED                                                                                          \
    "\n<minimax:tool_call>\n<invoke name=\"f\">\n</invoke>\n<invoke name=\"g\">\n</invoke>\n"      \
    "</minimax:tool_call>[e~[\n]~b]tool"

/* The format has the order alone: results come into that of the calls whose ids they name. */
static void results_by_their_ids(void **state)
{
    mm2_tokenizer *t = make(TOKENS);
    (void)state;
    const char *ordered = BOTH_TEXT "\n<response>1</response>\n<response>2</response>[e~[\n";
    expect(t, "[" BOTH RESULT("a", "1") ", " RESULT("b", "2") "]", NULL, 0, ordered);
    expect(t, "[" BOTH RESULT("b", "2") ", " RESULT("a", "1") "]", NULL, 0, ordered);
    expect(t,
           "[" BOTH "{'role': 'user', 'content': [" PART("b", "'content': '2'") ", " PART(
               "a", "'content': '1'") "]}]",
           NULL, 0, ordered);
    expect(t, "[" BOTH RESULT("a", "1") "]", NULL, 0, BOTH_TEXT "\n<response>1</response>[e~[\n");
    expect(t, "[" BOTH RESULT("a", "1") ", " USER ", " RESULT("b", "2") "]", NULL, 0,
           BOTH_TEXT "\n<response>1</response>[e~[\n]~b]user\nU[e~[\n]~b]tool\n<response>2"
                     "</response>[e~[\n");
    /* where not all have ids, the order is the caller's */
    expect(t, "[" BOTH RESULT("b", "1") ", {'role': 'tool', 'content': '2'}]", NULL, 0, ordered);
    expect(t, "[" CALLED RESULT("b", "1") "]", NULL, 0, CALL_TEXT "\n<response>1</response>[e~[\n");
    expect(t,
           "[" USER ", {'role': 'assistant', 'tool_calls': [{'id': 'x', 'name': 'f'}, {'id': 'x', "
           "'name': 'g'}]}, " RESULT("b", "1") ", " RESULT("b", "2") "]",
           NULL, 0, ordered);
    mm2_tokenizer_release(t);
}

/* Anthropic's mark of a result that is an error: the text says it, once. */
static void results_that_are_errors(void **state)
{
    mm2_tokenizer *t = make(TOKENS);
    (void)state;
#define MARKED(id, content) PART(id, "'is_error': true, 'content': " content)
    expect(t,
           "[" BOTH "{'role': 'user', 'content': [" MARKED(
               "b", "['no ', {'type': 'text', 'text': "
                    "'luck'}]") ", " MARKED("a", "'Error 5'") ", 'V']}]",
           NULL, 0,
           BOTH_TEXT "\n<response>Error 5</response>\n<response>error: no luck</response>[e~[\n"
                     "]~b]user\nV[e~[\n");
    expect(t,
           "[" BOTH "{'role': 'user', 'content': [{'is_error':true,'type':'tool_result'}, " PART(
               "b", "'is_error': false, 'content': 'x'") "]}]",
           NULL, 0, BOTH_TEXT "\n<response>error: </response>\n<response>x</response>[e~[\n");
    mm2_tokenizer_release(t);
}

static void thinking_is_kept_or_dropped(void **state)
{
    static const char some[] =
        "[" USER ", {'role': 'assistant', 'content': 'A', 'thinking': 'R'}, " USER "]";
    mm2_tokenizer *t = make(TOKENS);
    (void)state;
    expect(t, some, NULL, 0, ASKED "A[e~[\n]~b]user\nU[e~[\n");
    expect(t, some, NULL, MM2_KEEP_THINKING,
           ASKED "<think>\nR\n</think>\n\nA[e~[\n]~b]user\nU[e~[\n");
    mm2_tokenizer_release(t);
}

#define TOOLS(list)                                                                                \
    "]~!b[]~b]system\nS\n\n# Tools\nYou may call one or more tools to assist with the user "       \
    "query.\nHere are the tools available in JSONSchema format:\n\n<tools>\n" list                 \
    "</tools>\n\nWhen making tool calls, use XML format to invoke tools and pass "                 \
    "parameters:\n\n<minimax:tool_call>\n<invoke name=\"tool-name-1\">\n<parameter "               \
    "name=\"param-key-1\">param-value-1</parameter>\n<parameter "                                  \
    "name=\"param-key-2\">param-value-2</parameter>\n...\n</invoke>\n</minimax:tool_call>[e~[\n"   \
    "]~b]user\nU[e~[\n"

static void tools_are_declared(void **state)
{
    mm2_tokenizer *t = make(TOKENS);
    (void)state;
    expect(t, "[" USER "]",
           "[{'type':'function','x':null,'function':{'name':'f','strict':true,'parameters':{'b':{},"
           "'a':[1.0,2e3]}}}, {'type': 'function', 'name': '\\u00e9<g>', 'parameters': {'type': "
           "'object'}}]",
           0,
           TOOLS("<tool>{\"name\": \"f\", \"strict\": true, \"parameters\": {\"b\": {}, \"a\": "
                 "[1.0, 2e3]}}</tool>\n<tool>{\"name\": \"\xc3\xa9<g>\", \"parameters\": {\"type\":"
                 " \"object\"}}</tool>\n"));
    expect(t, "[" USER "]", "[]", 0, SYSTEM "]~b]user\nU[e~[\n");
    expect(t, "[" USER "]", "null", 0, SYSTEM "]~b]user\nU[e~[\n");
    mm2_tokenizer_release(t);
}

/* Calls, thinking and results as parts of a content; tools with an input_schema. */
#define ANTHROPIC                                                                                  \
    "[{'role': 'user', 'content': 'U'}, {'role': 'assistant', 'content': [{'type': 'thinking', "   \
    "'thinking': 'R', 'signature': 'x'}, {'type': 'text', 'text': 'A'}, {'type': 'tool_use', "     \
    "'id': 'i', 'name': 'f', 'input': {'a': '\\u00e9\\n', 'b': 1.0}}, {'type': 'tool_use', 'id': " \
    "'j', 'name': 'g', 'input': {}}]}, {'role': 'user', 'content': [{'type': 'tool_result', "      \
    "'tool_use_id': 'i', 'content': 'r1'}, {'type': 'tool_result', 'tool_use_id': 'j', 'content'"  \
    ": [{'type': 'text', 'text': 'r'}, {'type': 'text', 'text': '2'}]}"

static void calls_and_results_as_parts(void **state)
{
    mm2_tokenizer *t = make(TOKENS);
    (void)state;
#define MADE                                                                                       \
    "A\n<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"a\">\xc3\xa9\n</parameter>\n"  \
    "<parameter name=\"b\">1.0</parameter>\n</invoke>\n<invoke name=\"g\">\n</invoke>\n"           \
    "</minimax:tool_call>[e~[\n]~b]tool\n<response>r1</response>\n<response>r2</response>[e~[\n"
    expect(t, ANTHROPIC "]}]", NULL, 0, ASKED "<think>\nR\n</think>\n\n" MADE);
    expect(t, ANTHROPIC ", {'type': 'text', 'text': 'V'}, {'type': 'text', 'text': 'W'}]}]", NULL,
           0, ASKED MADE "]~b]user\nVW[e~[\n");
    expect(t,
           "[" USER ", {'role': 'assistant', 'content': [{'type': 'tool_use', 'name': 'x'}], "
           "'tool_calls': [{'name': 'f'}]}, {'role': 'user', 'content': [{'type': "
           "'tool_result'}]}]",
           NULL, 0,
           ASKED "\n<minimax:tool_call>\n<invoke name=\"f\">\n</invoke>\n</minimax:tool_call>[e~[\n"
                 "]~b]tool\n<response></response>[e~[\n");
    expect(t, "[" USER "]",
           "[{'name': 'f', 'input_schema': {'type': 'object'}, 'cache_control': {'type': 'x'}}]", 0,
           TOOLS("<tool>{\"name\": \"f\", \"parameters\": {\"type\": \"object\"}}</tool>\n"));
    mm2_tokenizer_release(t);
}

static void written(const char *messages, int32_t form, const char *want)
{
    char out[4096];
    int32_t n = mm2_chat_export(json(messages), form, out, sizeof out - 1);
    if (n < 0)
        fail_msg("%s: %s", messages, mm2_error());
    assert_int_equal(n, mm2_chat_export(json(messages), form, NULL, 0));
    out[n] = 0;
    assert_string_equal(out, want);
    assert_int_equal(n, mm2_chat_export(out, form, out + 2048, 2000)); /* is read back the same */
    assert_memory_equal(out, out + 2048, (size_t)n);
}

static void forms_of_others(void **state)
{
    (void)state;
    written("[{'role': 'system', 'content': ['S', '\\u0001'], 'current_date': 'd'}]",
            MM2_FORM_OPENAI,
            "[{\"role\": \"system\", \"content\": \"S\\u0001\", \"current_date\": \"d\"}]");
    written(ANTHROPIC ", 'V']}]", MM2_FORM_OPENAI,
            "[{\"role\": \"user\", \"content\": \"U\"}, {\"role\": \"assistant\", \"content\": "
            "\"A\", \"reasoning_content\": \"R\", \"tool_calls\": [{\"id\": \"call_0\", \"type\": "
            "\"function\", \"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": "
            "\\\"\xc3\xa9\\\\n\\\", \\\"b\\\": 1.0}\"}}, {\"id\": \"call_1\", \"type\": "
            "\"function\", \"function\": {\"name\": \"g\", \"arguments\": \"{}\"}}]}, {\"role\": "
            "\"tool\", \"tool_call_id\": \"call_0\", \"content\": \"r1\"}, {\"role\": \"tool\", "
            "\"tool_call_id\": \"call_1\", \"content\": \"r2\"}, {\"role\": \"user\", \"content\": "
            "\"V\"}]");
#define TWO_CALLS                                                                                  \
    "{'role': 'assistant', 'content': null, 'tool_calls': [{'name': 'f'}, {'name': 'f'}]}"
#define ONE_RESULT "{'role': 'tool', 'content': 'r'}"
    written(
        "[" USER ", " TWO_CALLS ", " ONE_RESULT ", " ONE_RESULT ", " TWO_CALLS ", " ONE_RESULT
        ", " USER ", {'role': 'assistant', 'content': ''}]",
        MM2_FORM_ANTHROPIC,
        "[{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"U\"}]}, {\"role\": "
        "\"assistant\", \"content\": [{\"type\": \"tool_use\", \"id\": \"call_0\", \"name\": "
        "\"f\", "
        "\"input\": {}}, {\"type\": \"tool_use\", \"id\": \"call_1\", \"name\": \"f\", "
        "\"input\": {}}]}, {\"role\": \"user\", \"content\": [{\"type\": \"tool_result\", "
        "\"tool_use_id\": \"call_0\", \"content\": \"r\"}, {\"type\": \"tool_result\", "
        "\"tool_use_id\": \"call_1\", \"content\": \"r\"}]}, {\"role\": \"assistant\", "
        "\"content\": [{\"type\": \"tool_use\", \"id\": \"call_2\", \"name\": \"f\", \"input\": "
        "{}}, {\"type\": \"tool_use\", \"id\": \"call_3\", \"name\": \"f\", \"input\": {}}]}, "
        "{\"role\": \"user\", \"content\": [{\"type\": \"tool_result\", \"tool_use_id\": "
        "\"call_2\", \"content\": \"r\"}, {\"type\": \"text\", \"text\": \"U\"}]}, {\"role\": "
        "\"assistant\", \"content\": [{\"type\": \"text\", \"text\": \"\"}]}]");
    /* several texts of a call that is named are its result; one more than there are calls has no id */
    written(
        "[" BOTH "{'role': 'tool', 'tool_call_id': 'a', 'content': ['x', 'y']}, " ONE_RESULT
        ", " ONE_RESULT ", {'role': 'tool', 'content': []}]",
        MM2_FORM_OPENAI,
        "[{\"role\": \"user\", \"content\": \"U\"}, {\"role\": \"assistant\", \"content\": null, "
        "\"tool_calls\": [{\"id\": \"call_0\", \"type\": \"function\", \"function\": {\"name\": "
        "\"f\", \"arguments\": \"{}\"}}, {\"id\": \"call_1\", \"type\": \"function\", "
        "\"function\": "
        "{\"name\": \"g\", \"arguments\": \"{}\"}}]}, {\"role\": \"tool\", \"tool_call_id\": "
        "\"call_0\", \"content\": [{\"type\": \"text\", \"text\": \"x\"}, {\"type\": \"text\", "
        "\"text\": \"y\"}]}, {\"role\": \"tool\", \"tool_call_id\": \"call_1\", \"content\": "
        "\"r\"}, "
        "{\"role\": \"tool\", \"content\": \"r\"}, {\"role\": \"tool\", \"content\": []}]");
    assert_int_equal(mm2_chat_export("[]", MM2_FORM_OPENAI, NULL, 0), MM2_E_ARG);
    assert_int_equal(mm2_chat_export(NULL, MM2_FORM_OPENAI, NULL, 0), MM2_E_ARG);
    assert_int_equal(mm2_chat_export(json("[" USER "]"), 2, NULL, 0), MM2_E_ARG);
    assert_non_null(strstr(mm2_error(), "form"));
}

/* Tags of the format are control tokens, those inside of messages and of tools are text. */
static void text_never_becomes_a_tag(void **state)
{
    const char *tags = "]~!b[<minimax:tool_call></minimax:tool_call>[e~[</think>";
    static const int32_t want[] = {BEGIN, ROLE, CALL,   UNCALL, END,  ROLE, END,
                                   ROLE,  CALL, UNCALL, END,    ROLE, END};
    char messages[2048], tools[512], text[8192], back[8192];
    mm2_tokenizer *t = make(TOKENS);
    (void)state;
    snprintf(messages, sizeof messages,
             "[{'role': 'user', 'content': '%s'}, {'role': 'assistant', 'content': '%s', "
             "'thinking': '', 'tool_calls': [{'name': '%s', 'arguments': {'%s': '%s', 'o': "
             "['%s']}}]}, {'role': 'tool', 'content': '%s'}]",
             tags, tags, tags, tags, tags, tags, tags);
    snprintf(tools, sizeof tools, "[{'name': '%s'}]", tags);
    mm2_conversation c = {
        .size = sizeof c, .messages = json(messages), .tools = json(tools), .identity = tags};
    int32_t ids[8192], n = mm2_chat_encode(t, &c, ids, 8192), found = 0;
    assert_in_range(n, 100, 8192);
    int32_t length = mm2_chat_render(t, &c, text, sizeof text);
    assert_int_equal(mm2_tokenizer_decode(t, ids, n, MM2_SPECIAL, back, sizeof back), length);
    assert_memory_equal(back, text, (size_t)length);
    for (int32_t i = 0; i < n; i++)
        if (ids[i] >= 256)
            assert_int_equal(ids[i], want[found++]);
    assert_int_equal(found, sizeof want / sizeof *want);
    mm2_tokenizer_release(t);
    t = make(CALL); /* a vocabulary without the tags of calls: they are text */
    n = mm2_chat_encode(t, &c, ids, 8192);
    assert_int_equal(mm2_tokenizer_decode(t, ids, n, MM2_SPECIAL, back, sizeof back), length);
    assert_memory_equal(back, text, (size_t)length);
    mm2_tokenizer_release(t);
}

static void what_has_no_place_is_refused(void **state)
{
    static const struct {
        const char *messages, *tools, *word;
    } cases[] = {
        {"", NULL, "expected an array"},
        {"{}", NULL, "expected an array"},
        {"[]", NULL, "at least 1 message"},
        {"[" USER "", NULL, "expected a comma or ]"},
        {"[" USER "] x", NULL, "nothing more"},
        {"['x']", NULL, "expected an object"},
        {"[{'content': 'x'}]", NULL, "message 0 has no role"},
        {"[{'role': 5, 'content': 'x'}]", NULL, "message 0 has no role"},
        {"[{'role': 'root', 'content': 'x'}]", NULL, "\"root\""},
        {"[" USER ", {'role': 'system', 'content': 'x'}]", NULL, "only the first"},
        {"[" USER ", {'role': 'developer', 'content': 'x'}]", NULL, "only the first"},
        {"[{'role': 'user'}]", NULL, "message 0 has no content"},
        {"[{'role': 'user', 'content': null}]", NULL, "message 0 has no content"},
        {"[{'role': 'user', 'content': 5}]", NULL, "a number as its content"},
        {"[{'role': 'user', 'content': {'text': 'x'}}]", NULL, "an object as its content"},
        {"[{'role': 'user', 'content': [{'type': 'image_url'}]}]", NULL, "\"image_url\""},
        {"[{'role': 'user', 'content': [5]}]", NULL, "no text"},
        {"[{'role': 'user', 'content': [{'type': 'tool_use', 'name': 'f'}]}]", NULL,
         "\"tool_use\""},
        {"[{'role': 'user', 'content': [{'type': 'tool_result', 'content': 'x'}]}]", NULL,
         "message 0 is of a tool"},
        {TURN("'content': [{'type': 'tool_use', 'name': 'f', 'input': 5}]"), NULL, "a number"},
        {TURN("'content': [{'type': 'tool_use'}]"), NULL, "without the name"},
        {"[" USER
         ", {'role': 'assistant', 'content': [{'type': 'tool_use', 'name': 'f'}]}, {'role': "
         "'user', 'content': [{'type': 'tool_result', 'content': {}}]}]",
         NULL, "an object as a result"},
        {"[{'role': 'user', 'content': [{'type': 'text', 'text': null}]}]", NULL, "\"text\""},
        {"[{'role': 'user', 'content': 'a\\u0000b'}]", NULL, "NUL"},
        {"[{'role': 'user', 'content': 'x', 'contnt': 'y'}]", NULL, "\"contnt\""},
        {"[{'role': 'user', 'content': 'x', 'thinking': 'y'}]", NULL, "only an assistant"},
        {"[{'role': 'user', 'content': 'x', 'tool_calls': [{'name': 'f'}]}]", NULL, "has calls"},
        {"[{'role': 'user', 'content': 'x', 'current_date': 'y'}]", NULL, "only a system"},
        {"[{'role': 'system', 'content': 'x', 'current_date': 5}]", NULL, "a number as its"},
        {TURN("'thinking': 5"), NULL, "a number as its thinking"},
        {TURN("'reasoning_details': [{'type': 'reasoning.encrypted'}]"), NULL, "without text"},
        {TURN("'tool_calls': {'a': 1}"), NULL, "expected an array"},
        {TURN("'tool_calls': [{'arguments': {}}]"), NULL, "name of a tool"},
        {TURN("'tool_calls': [{'name': 'f', 'arguments': []}]"), NULL, "an array, expected"},
        {TURN("'tool_calls': [{'name': 'f', 'arguments': '[1]'}]"), NULL, "no object"},
        {TURN("'tool_calls': [{'name': 'f', 'arguments': '{} x'}]"), NULL, "no object"},
        {"[" USER ", {'role': 'tool', 'content': 'x'}]", NULL, "called none"},
        {TURN("'content': 'x'"), "{}", "expected a list"},
        {"[" CALLED "{'role': 'tool', 'content': 5}]", NULL, "a number among its results"},
        {"[" CALLED "{'role': 'tool', 'content': null}]", NULL, "no content"},
        {"[" CALLED "{'role': 'tool', 'content': [{'type': 'image'}]}]", NULL, "without text"},
        {"[" CALLED "{'role': 'assistant', 'content': 'x'}, {'role': 'tool', 'content': 'x'}]",
         NULL, "called none"},
        /* what nobody would see is gone */
        {"[{'role': 'user', 'content': [{'type': 'text', 'text': 'x', 'txt': 'y'}]}]", NULL,
         "\"txt\" in a part"},
        {"[{'role': 'user', 'content': [{'type': 'text', 'text': 'x', 'content': 'y'}]}]", NULL,
         "\"content\" in a part"},
        {TURN("'content': [{'type': 'thinking', 'thinking': 'x', 'text': 'y'}]"), NULL,
         "\"text\" in a part"},
        {TURN("'tool_calls': [{'function': {'name': 'f', 'argments': {'a': 1}}}]"), NULL,
         "\"argments\" in a call"},
        {TURN("'tool_calls': [{'function': {'name': 'f'}, 'arguments': {'a': 1}}]"), NULL,
         "\"arguments\" in a call"},
        {TURN("'content': [{'type': 'tool_use', 'name': 'f', 'inputs': {'a': 1}}]"), NULL,
         "\"inputs\" in a call"},
        {TURN("'tool_calls': [{'name': 'f', 'id': 5}]"), NULL, "a number as its call's id"},
        {TURN("'reasoning_details': [{'text': 'R', 'data': 'x'}]"), NULL, "\"data\" in its think"},
        {"[" CALLED "{'role': 'tool', 'content': [{'output': 'x', 'is_error': true}]}]", NULL,
         "\"is_error\" in a part"},
        {"[" CALLED "{'role': 'tool', 'content': 'x', 'tool_call_id': 5}]", NULL,
         "a number as its tool_call_id"},
        {"[" CALLED "{'role': 'user', 'content': [{'type': 'tool_result', 'is_error': 1}]}]", NULL,
         "a number as its is_error"},
        {"[" CALLED "{'role': 'user', 'content': [{'type': 'tool_result', 'text': 'x'}]}]", NULL,
         "\"text\" in a part"},
        /* ids */
        {"[" BOTH RESULT("c", "x") "]", NULL, "message 2 has the result of the call \"c\", which"},
        {"[" BOTH RESULT("b", "x") "]", NULL, "a call before that one has none"},
        {"[" BOTH RESULT("a", "x") ", " RESULT("a", "y") "]", NULL,
         "message 3 has the result of the call \"a\", which has one"},
        {"[" BOTH RESULT("a", "x") ", " USER ", " RESULT("a", "y") "]", NULL, "which has one"},
        {"[" BOTH RESULT("a", "x") ", {'role': 'tool', 'content': 'y'}, " RESULT("c", "z") "]",
         NULL, "message 4 has the result of the call \"c\", which"},
        {"[" USER "]", "[{'function': {'parameters': {}}}]", "tool 0 has no name"},
        {"[" USER "]", "[{'name': 'f'}, {'name': 5}]", "tool 1 has no name"},
        {"[" USER "]", "['f']", "tool 0 has no name"},
        {"[" USER "]", "[{'name': ''}]", "tool 0 has no name"},
        {"[" USER "]", "[{'name': 'f', 'parameters': 5}]", "\"f\", has a whole number as its para"},
        {"[" USER "]", "[{'function': {'name': 'f', 'description': []}}]", "as its description"},
        {"[" USER "]", "[{'name': 'f', 'inputSchema': {}}]", "an object in \"inputSchema\""},
        {"[" USER "]", "[{'function': {'name': 'f'}, 'x': 1}]", "\"x\" beside its function"},
        {"[" USER "]", "[{'name': 'f', 'type': 'web_search'}]", "another type"},
        {"[" USER "]", "[{'name': 'f', 'a': 1, 'a': 2}]", "appears twice"},
        {"[" USER "]", "\xff", "expected a"}, /* no UTF-8: it is repaired */
    };
    mm2_tokenizer *t = make(TOKENS);
    char out[8192];
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(render(t, cases[i].messages, cases[i].tools, 0, out), MM2_E_ARG);
        if (!strstr(mm2_error(), cases[i].word))
            fail_msg("%s: \"%s\"", cases[i].messages, mm2_error());
    }
    mm2_tokenizer_release(t);
}

/* ---- The spelling of JSON ---- */

static void json_in_the_formats_spelling(void **state)
{
    static const struct {
        const char *from, *to; /* NULL: not valid */
    } cases[] = {
        {" { 'a' :1,'b':[ ],'c':{ } , 'd':[1 ,2] } ", "{'a': 1, 'b': [], 'c': {}, 'd': [1, 2]}"},
        {"'\\u00e9\\/\\b\\u001f\\\\'", "'\xc3\xa9/\\b\\u001f\\\\'"},
        {"'\\ud83d\\ude00'", "'\xf0\x9f\x98\x80'"},
        {"'\\u0000'", "'\\u0000'"},
        {"-0.5e+10", "-0.5e+10"},
        {"true", "true"},
        {"", NULL},
        {"[1,]", NULL},
        {"[1 2]", NULL},
        {"{'a' 1}", NULL},
        {"{'a':}", NULL},
        {"{1:2}", NULL},
        {"[1", NULL},
        {"'a", NULL},
        {"'\\x'", NULL},
        {"'\\ud83d'", NULL},
        {"'a\nb'", NULL},
        {"01", NULL},
        {".5", NULL},
        {"1 2", NULL},
        {"[NaN]", NULL},
        {"'\xff'", NULL},
        {"]", NULL},
    };
    (void)state;
    char out[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *from = json(cases[i].from);
        int64_t length = (int64_t)strlen(from), n = mm2_json_form(out, (mm2_view){from, length}, 0);
        if (!cases[i].to) {
            assert_int_equal(n, -1);
            continue;
        }
        char want[512];
        strcpy(want, cases[i].to);
        for (char *p = want; *p; p++)
            *p = *p == '\'' ? '"' : *p;
        assert_int_equal(n, strlen(want));
        assert_memory_equal(out, want, (size_t)n);
    }
    assert_int_equal(mm2_json_form(out, (mm2_view){"[NaN, -Infinity]", 16}, 1), 16);
    char deep[2 * 65 + 1];
    memset(deep, '[', 65);
    memset(deep + 65, ']', 65);
    char room[4 * 65];
    assert_int_equal(mm2_json_form(room, (mm2_view){deep, 130}, 0), -1);
    assert_int_equal(mm2_json_form(room, (mm2_view){deep + 1, 128}, 0), 128);
}

/* Random pieces of JSON in blocks of their size; what is written is valid, stays as it is when it is
 * written again, and fits into twice the room. */
static void random_json(void **state)
{
    static const char *const pieces[] = {"{",  "}",     "[",  "]",        ",",    ":",
                                         "\"", "\"a\"", "1",  "-2.5e3",   "null", " ",
                                         "\\", "u00",   "e9", "\xc3\xa9", "\xff", "\n"};
    uint64_t draws = 0;
    int valid = 0;
    (void)state;
    for (int i = 0; i < 200000; i++) {
        char text[256] = "";
        int n = 1 + (int)(mm2_splitmix64(7, draws++) % 7);
        for (int k = 0; k < n; k++)
            strcat(text, pieces[mm2_splitmix64(7, draws++) % (sizeof pieces / sizeof *pieces)]);
        size_t length = strlen(text);
        char *exact = malloc(length), *out = malloc(2 * length);
        memcpy(exact, text, length);
        int64_t m = mm2_json_form(out, (mm2_view){exact, (int64_t)length}, 0);
        if (m >= 0) {
            char *again = malloc(2 * (size_t)m);
            assert_int_equal(mm2_json_form(again, (mm2_view){out, m}, 0), m);
            assert_memory_equal(again, out, (size_t)m);
            free(again);
            valid++;
        }
        free(exact);
        free(out);
    }
    assert_in_range(valid, 2000, 100000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms_that_are_understood),
        cmocka_unit_test(results_of_tools),
        cmocka_unit_test(results_by_their_ids),
        cmocka_unit_test(results_that_are_errors),
        cmocka_unit_test(thinking_is_kept_or_dropped),
        cmocka_unit_test(tools_are_declared),
        cmocka_unit_test(calls_and_results_as_parts),
        cmocka_unit_test(forms_of_others),
        cmocka_unit_test(text_never_becomes_a_tag),
        cmocka_unit_test(what_has_no_place_is_refused),
        cmocka_unit_test(json_in_the_formats_spelling),
        cmocka_unit_test(random_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
