/* Grammars and constraints: what patterns and schemas match and refuse, masks against pushing every
 * single token, the life of a constraint, memory that is bounded, threads, fork(), and patterns made
 * of random bytes. python/test_automaton.py compares with Python's re and with jsonschema. */
#include "text/constraint.h"

#include "base/rng.h"
#include "base/utf8.h"
#include "text/tokenizer.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* The 256 bytes, the format's tags, and words. */
static const char *const tags[] = {"]~!b[",   "]~b]",     "[e~[",
                                   "<think>", "</think>", "<minimax:tool_call>"};
static const char *const words[] = {"ab",  "abc", "abab", "yes", "ye",   "no", "not",
                                    "\":", "{\"", "\"}",  "12",  "true", "</", "zz"};
enum { TAGS = 6, WORDS = sizeof words / sizeof *words, END = 258, CLOSE = 260, CALL = 261 };
enum { VOCABULARY = 256 + TAGS + WORDS };
static mm2_tokenizer *t;

static int begin(void **state)
{
    static char spelled[256][3];
    const char *tokens[VOCABULARY];
    uint32_t lengths[VOCABULARY];
    int32_t types[VOCABULARY], next = 0x100;
    for (int i = 0; i < VOCABULARY; i++) {
        int printable = (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i != 0xad);
        if (i < 256)
            mm2_utf8_put((uint8_t *)spelled[i], printable ? i : next++);
        tokens[i] = i < 256 ? spelled[i] : i < 256 + TAGS ? tags[i - 256] : words[i - 256 - TAGS];
        lengths[i] = (uint32_t)strlen(tokens[i]);
        types[i] = i < 256 || i >= 256 + TAGS ? 1 : i <= END ? 3 : 4;
    }
    mm2_vocabulary v = {VOCABULARY, tokens,       lengths, types, 0,  NULL,
                        NULL,       "minimax-m2", -1,      -1,    -1, -1};
    assert_int_equal(mm2_tokenizer_from_vocabulary(&t, &v, "words.gguf"), MM2_OK);
    return 0;
}

static int end(void **state)
{
    mm2_tokenizer_release(t);
    return 0;
}

static mm2_grammar *grammar(int32_t kind, const char *text)
{
    mm2_grammar *g;
    if (mm2_grammar_new(&g, t, kind, text) != MM2_OK)
        fail_msg("%s: %s", text, mm2_error());
    return g;
}

/* ---- What matches ---- */

typedef struct example {
    const char *pattern;
    const char *texts[10]; /* those that match; then NULL; then others; then NULL */
} example;

static void check_examples(int32_t kind, const example *e, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        mm2_grammar *g = grammar(kind, e[i].pattern);
        int expected = 1;
        for (int j = 0; e[i].texts[j] || expected; j++) {
            const char *text = e[i].texts[j];
            if (!text)
                expected = 0;
            else if (mm2_grammar_matches(g, text, (int32_t)strlen(text)) != expected)
                fail_msg("%s, %s: %d", e[i].pattern, text, !expected);
        }
        mm2_grammar_free(g);
    }
}

static void patterns_match_whole_texts(void **state)
{
    static const example list[] = {
        {"", {"", NULL, "a", NULL}},
        {"abc", {"abc", NULL, "ab", "abcd", "", NULL}},
        {"^a|b$", {"a", "b", NULL, "ab", "", NULL}},
        {"a?b*c+", {"c", "abbcc", NULL, "a", "aac", NULL}},
        {"(?:ab|c){2}", {"abab", "cab", "cc", NULL, "ab", "ababab", NULL}},
        {"a{2,3}b{,1}c{1,}", {"aac", "aaabcc", NULL, "ac", "aabbc", "aaaac", NULL}},
        {"(a|b|){3}x{0}", {"", "ab", "bbb", NULL, "abab", "x", NULL}},
        {"[a-cx][^a-c\\n]", {"ad", "x\xc3\xa9", NULL, "aa", "d ", "a\n", NULL}},
        {"[]a][^]a][a-]", {"]b-", "axa", NULL, "b]a", "]]a", NULL}},
        {"\\d\\w\\s\\D\\W\\S", {"1_ x-y", NULL, "a_ x-y", "1_ 1-y", NULL}},
        {".{2}", {"\xf0\x9f\x99\x82\xe6\x97\xa5", "ab", NULL, "\n\n", "\xf0\x9f\x99\x82", NULL}},
        {"[\\u00e0-\\u00ff]+", {"\xc3\xa0\xc3\xbf", NULL, "\xc3\x9f", "\xc4\x80", "\xc3", NULL}},
        {"\\x41\\.\\*\\{\\/\\n\\t", {"A.*{/\n\t", NULL, "A..{/\n\t", NULL}},
        {"a{b}{x,1}", {"a{b}{x,1}", NULL, "ab", NULL}},
    };
    check_examples(MM2_GRAMMAR_REGEX, list, sizeof list / sizeof *list);
}

static void choices_match_themselves(void **state)
{
    static const example list[] = {
        {"[\"yes\", \"no\", \"a|b.\"]",
         {"yes", "no", "a|b.", NULL, "a", "yesno", "a|bx", "", NULL}},
        {"[\"\", \"\\n\\u0001[\"]", {"", "\n\001[", NULL, "n", NULL}},
    };
    check_examples(MM2_GRAMMAR_CHOICES, list, sizeof list / sizeof *list);
}

static void schemas_match_what_fits(void **state)
{
    static const example list[] = {
        {"{\"type\": \"integer\"}", {"0", "-12", NULL, "01", "1.0", "+1", " 1", NULL}},
        {"{\"type\": \"integer\", \"minimum\": -3, \"maximum\": 120}",
         {"-3", "0", "99", "120", NULL, "-4", "121", "007", "200", NULL}},
        {"{\"type\": \"integer\", \"exclusiveMinimum\": 8, \"exclusiveMaximum\": 1000}",
         {"9", "10", "999", NULL, "8", "1000", "-9", NULL}},
        {"{\"type\": \"number\", \"minimum\": 0}",
         {"0", "1.5", "2E-9", NULL, "-1", "1.", "1e", NULL}},
        {"{\"type\": [\"null\", \"boolean\"]}", {"null", "true", "false", NULL, "0", NULL}},
        {"{\"type\": \"string\", \"minLength\": 1, \"maxLength\": 2}",
         {"\"\xc3\xa9\"", "\"\\\"\\n\"", "\"\\u0001x\"", NULL, "\"\"", "\"abc\"", "\"\n\"",
          "\"\\\"", NULL}},
        {"{\"type\": \"string\", \"pattern\": \"^a|b.$\"}",
         {"\"a\"", "\"ax\\\"\"", "\"xb\\\\\"", NULL, "\"xa\"", "\"bxx\"", NULL}},
        {"{\"format\": \"date\", \"type\": \"string\"}",
         {"\"2024-02-28\"", "\"1999-12-31\"", NULL, "\"2023-02-30\"", "\"2023-04-31\"", NULL}},
        {"{\"enum\": [1, \"x\", [true, {\"a\": null}]]}",
         {"1", "\"x\"", "[true, {\"a\":null}]", "[true,{\"a\": null}]", NULL, "x", "[true ,{}]",
          NULL}},
        {"{\"items\": {\"type\": \"null\"}, \"minItems\": 1, \"maxItems\": 2}",
         {"[null]", "[null,null]", "[null, null]", NULL, "[]", "[null,  null]", "[null,null,null]",
          NULL}},
        {"{\"prefixItems\": [{\"const\": 1}], \"items\": {\"const\": 2}}",
         {"[1]", "[1,2, 2]", NULL, "[]", "[2]", NULL}},
        {"{\"properties\": {\"a\": {\"const\": 1}, \"b\": {\"const\": 2}, \"c\": {\"const\": 3}}}",
         {"{}", "{\"c\":3}", "{\"a\": 1,\"c\": 3}", "{\"a\":1, \"b\":2,\"c\":3}", NULL,
          "{\"b\":2,\"a\":1}", "{,\"b\":2}", "{\"a\":1,}", NULL}},
        {"{\"properties\": {\"a\": {\"const\": 1}, \"b\": {\"const\": 2}, \"c\": {\"const\": 3}},"
         " \"required\": [\"b\"]}",
         {"{\"b\":2}", "{\"a\":1,\"b\":2}", "{\"b\":2, \"c\":3}", NULL, "{}", "{\"a\":1}",
          "{\"c\":3}", NULL}},
        {"{\"anyOf\": [{\"$ref\": \"#/$defs/T\"}, {\"type\": \"null\"}], \"$defs\": {\"T\": "
         "{\"const\": 7}}}",
         {"7", "null", NULL, "77", NULL}},
    };
    check_examples(MM2_GRAMMAR_JSON_SCHEMA, list, sizeof list / sizeof *list);
}

/* ---- What is refused ---- */

typedef struct refusal {
    int32_t kind;
    mm2_status status;
    const char *text, *sentence; /* a part of it */
} refusal;

static void what_is_not_known_is_refused_by_name(void **state)
{
    enum { R = MM2_GRAMMAR_REGEX, C = MM2_GRAMMAR_CHOICES, S = MM2_GRAMMAR_JSON_SCHEMA };
    enum { ARG = MM2_E_ARG, BEYOND = MM2_E_UNSUPPORTED };
    static const refusal list[] = {
        {R, ARG, "a(b", "byte 3: a ) is missing"},
        {R, ARG, "ab)", "byte 2: this ) closes nothing"},
        {R, ARG, "[ab", "byte 0: this class has no end"},
        {R, ARG, "*a", "byte 0: there is nothing to repeat"},
        {R, ARG, "(?:+)", "byte 3: there is nothing to repeat"},
        {R, ARG, "a**", "byte 2: two quantifiers"},
        {R, ARG, "a{3,2}", "byte 1: the largest count"},
        {R, ARG, "[b-a]", "byte 1: this range goes backwards"},
        {R, ARG, "[^\\s\\S]", "no character is in this class"},
        {R, ARG, "\\q", "this escape is not known"},
        {R, ARG, "a\\", "byte 1: this escape is not known"},
        {R, ARG, "\\x1g", "\\x needs two hexadecimal digits"},
        {R, ARG, "\\ud83d", "half of a surrogate pair"},
        {R, ARG, "a\xff", "byte 1: this is no UTF-8"},
        {R, BEYOND, "a(?=b)", "no look-around"},
        {R, BEYOND, "(a)\\1", "references to groups"},
        {R, BEYOND, "\\bx", "places between characters"},
        {R, BEYOND, "a+?", "byte 2: lazy"},
        {R, BEYOND, "a^b", "byte 1: ^ is known at the beginning only"},
        {R, BEYOND, "(a$)", "byte 2: $ is known at the end only"},
        {R, BEYOND, "((a{1000}){1000}){1000}", "too large"},
        {R, BEYOND, "a{99999999999}", "too large"},
        {C, ARG, "[]", "at least one string"},
        {C, ARG, "[\"a\", 1]", "expected strings"},
        {C, ARG, "{\"a\": 1}", "at least one string"},
        {S, ARG, "{\"type\"", "json_schema: JSON"},
        {S, ARG, "{\"type\": \"text\"}", "#: type: expected the name of a type"},
        {S, ARG, "{\"enum\": []}", "#: enum"},
        {S, ARG, "{\"type\": \"string\", \"maxLength\": -1}", "#: maxLength"},
        {S, ARG, "{\"type\": \"integer\", \"minimum\": 2, \"maximum\": 1}", "no whole number"},
        {S, ARG, "{\"type\": \"string\", \"pattern\": \"a(\"}", "#: pattern: byte 2"},
        {S, BEYOND, "true", "a schema must be an object"},
        {S, BEYOND, "{}", "#: type"},
        {S, BEYOND, "{\"type\": \"object\"}", "#: properties"},
        {S, BEYOND, "{\"type\": \"array\"}", "#: items"},
        {S, BEYOND,
         "{\"properties\": {\"a\": {\"items\": {\"type\": \"integer\", \"multipleOf\": 2}}}}",
         "#/properties/a/items: multipleOf"},
        {S, BEYOND, "{\"properties\": {}, \"required\": [\"a\"]}", "#: required"},
        {S, BEYOND, "{\"properties\": {}, \"additionalProperties\": {\"type\": \"null\"}}",
         "#: additionalProperties"},
        {S, BEYOND, "{\"oneOf\": [{\"type\": \"integer\"}, {\"type\": \"number\"}]}", "#: oneOf"},
        {S, BEYOND, "{\"type\": \"string\", \"pattern\": \"a\", \"minLength\": 2}", "#: pattern"},
        {S, BEYOND, "{\"type\": \"string\", \"format\": \"color\"}", "#: format"},
        {S, BEYOND, "{\"type\": \"number\", \"maximum\": 2}", "#: maximum: known for integers"},
        {S, BEYOND,
         "{\"$ref\": \"#/$defs/N\", \"$defs\": {\"N\": {\"items\": {\"$ref\": \"#/$defs/N\"}}}}",
         "#/$defs/N/items: $ref: a schema that holds itself"},
        {S, BEYOND, "{\"$ref\": \"other.json\"}", "#: $ref"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        mm2_grammar *g;
        assert_int_equal(mm2_grammar_new(&g, t, list[i].kind, list[i].text), list[i].status);
        assert_null(g);
        if (!strstr(mm2_error(), list[i].sentence))
            fail_msg("%s: %s", list[i].text, mm2_error());
    }
}

static void hostile_patterns_are_bounded(void **state)
{
    enum { N = 300000 };
    static char text[N + 1];
    static const char *const fills[] = {"(",   "[",    "a|", "(a)?", "(?:a?",
                                        "\\d", "[^a]", "{",  ".{9}", "a{2}"};
    mm2_grammar *g;
    for (size_t i = 0; i < sizeof fills / sizeof *fills; i++) {
        size_t n = strlen(fills[i]);
        for (size_t j = 0; j < N; j++)
            text[j] = fills[i][j % n];
        text[N - N % n] = 0;
        mm2_status status = mm2_grammar_new(&g, t, MM2_GRAMMAR_REGEX, text);
        assert_true(status == MM2_OK || status == MM2_E_ARG || status == MM2_E_UNSUPPORTED);
        mm2_grammar_free(g);
    }
    /* Every random text is read or refused; what is read matches or does not. */
    static const char bytes[] = "ab()[]{}|*+?.^$\\-,019dDwsux:=\xc3\xa9\x80\n";
    for (uint32_t i = 0; i < 4000; i++) {
        uint32_t n = (uint32_t)(mm2_splitmix64(1, i) % 24);
        for (uint32_t j = 0; j < n; j++)
            text[j] = bytes[mm2_splitmix64(2 + i, j) % (sizeof bytes - 1)];
        text[n] = 0;
        if (mm2_grammar_new(&g, t, MM2_GRAMMAR_REGEX, text) == MM2_OK)
            assert_true(mm2_grammar_matches(g, text, (int32_t)n) >= 0);
        mm2_grammar_free(g);
    }
}

/* ---- Masks ---- */

static mm2_constraint *constraint(mm2_grammar *g, int32_t start)
{
    static const int32_t ends[] = {END};
    mm2_constraint_options o = {.size = sizeof o};
    mm2_constraint *c;
    mm2_constraint_options_init(&o);
    o.start = start;
    o.end_tokens = ends;
    o.end_count = 1;
    assert_int_equal(mm2_constraint_new(&c, g, &o), MM2_OK);
    return c;
}

static int allows(mm2_constraint *c, int32_t id)
{
    const uint32_t *mask;
    assert_int_equal(mm2_constraint_mask(c, &mask), MM2_OK);
    return mask[id / 32] >> id % 32 & 1;
}

/* The mask against a push of every token; then a random one of those that are allowed. */
static int32_t step(mm2_constraint *c, uint64_t random)
{
    int32_t allowed[VOCABULARY], count = 0;
    for (int32_t id = 0; id < VOCABULARY; id++) {
        mm2_constraint *f;
        assert_int_equal(mm2_constraint_fork(&f, c), MM2_OK);
        int pushed = mm2_constraint_push(f, id) == MM2_OK;
        assert_int_equal(allows(c, id), pushed);
        if (pushed)
            allowed[count++] = id;
        mm2_constraint_free(f);
    }
    assert_true(count > 0);
    assert_int_equal(allows(c, END), mm2_constraint_accepts(c));
    return allowed[random % (uint32_t)count];
}

static void masks_allow_what_can_be_pushed(void **state)
{
    static const char *const patterns[] = {"(?:yes|no|not)+", "[ab]*abc?", "\"[^\"]*\":12?\\d{3}",
                                           "\\{\"(?:ab|abc)\":true\\}", "(?:.\\u00e9?|zz){1,4}"};
    for (int limit = 0; limit < 2;
         limit++) { /* the second time all places are forgotten all the time */
        for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
            mm2_grammar *g = grammar(MM2_GRAMMAR_REGEX, patterns[i]);
            mm2_constraint *c = constraint(g, MM2_START_TEXT);
            if (limit)
                mm2_grammar_limit(g, 1);
            mm2_grammar_free(g); /* the constraint holds it */
            for (uint32_t n = 0; n < 8; n++) {
                int32_t id = step(c, mm2_splitmix64(i, n));
                assert_int_equal(mm2_constraint_push(c, id), MM2_OK);
                if (id == END)
                    break;
            }
            mm2_constraint_free(c);
        }
    }
}

static void places_are_forgotten_when_they_are_many(void **state)
{
    enum { N = 60000, BACK = 18 };
    static char text[N];
    mm2_grammar *g = grammar(MM2_GRAMMAR_REGEX, "[ab]*a[ab]{17}");
    mm2_grammar_limit(g, 1 << 20);
    mm2_constraint *c = constraint(g, MM2_START_TEXT), *f;
    assert_int_equal(mm2_constraint_push(c, 'a'), MM2_OK);
    for (uint32_t i = 0; i < N; i++)
        text[i] = "ab"[mm2_splitmix64(3, i) & 1];
    for (int32_t n = N - 5; n <= N; n++)
        assert_int_equal(mm2_grammar_matches(g, text, n), text[n - BACK] == 'a');
    assert_int_equal(mm2_constraint_fork(&f, c), MM2_OK);
    for (int i = 0; i < BACK - 1; i++) {
        assert_int_equal(mm2_constraint_accepts(f), 0);
        assert_int_equal(mm2_constraint_push(f, 'b'), MM2_OK);
    }
    assert_int_equal(mm2_constraint_accepts(f), 1);
    mm2_constraint_free(f);
    mm2_constraint_free(c);
    mm2_grammar_free(g);
}

/* ---- The life of a constraint ---- */

static void thinking_comes_before_the_form(void **state)
{
    mm2_grammar *g = grammar(MM2_GRAMMAR_CHOICES, "[\"yes\", \"no\"]");
    for (int spelled = 0; spelled < 2; spelled++) {
        mm2_constraint *c = constraint(g, MM2_START_THINKING);
        assert_true(allows(c, 'x') && allows(c, CLOSE) && !allows(c, END) && !allows(c, CALL));
        assert_int_equal(mm2_constraint_push(c, 'x'), MM2_OK);
        assert_int_equal(mm2_constraint_push(c, END), MM2_E_ARG);
        for (const char *p = "<</think>"; spelled && *p; p++)
            assert_int_equal(mm2_constraint_push(c, *p), MM2_OK);
        if (!spelled)
            assert_int_equal(mm2_constraint_push(c, CLOSE), MM2_OK);
        assert_true(allows(c, '\n') && allows(c, 'y') && !allows(c, 'x') && !allows(c, CLOSE));
        assert_int_equal(mm2_constraint_push(c, '\n'), MM2_OK);
        assert_int_equal(mm2_constraint_push(c, '\n'), MM2_OK);
        assert_true(!allows(c, '\n') && allows(c, 'n'));
        assert_int_equal(mm2_constraint_push(c, '\n'), MM2_E_ARG);
        assert_int_equal(mm2_constraint_accepts(c), 0);
        assert_int_equal(mm2_constraint_push(c, 'n'), MM2_OK);
        assert_int_equal(mm2_constraint_push(c, 'o'), MM2_OK);
        assert_int_equal(mm2_constraint_accepts(c), 1);
        for (int32_t id = 0; id < VOCABULARY; id++) /* nothing but the end is left */
            assert_int_equal(allows(c, id), id == END);
        assert_int_equal(mm2_constraint_push(c, END), MM2_OK);
        const uint32_t *mask;
        assert_int_equal(mm2_constraint_mask(c, &mask), MM2_E_ARG);
        assert_int_equal(mm2_constraint_push(c, 'x'), MM2_E_ARG);
        assert_int_equal(mm2_constraint_accepts(c), 0);
        mm2_constraint_free(c);
    }
    mm2_constraint *c = constraint(g, MM2_START_ANSWER);
    assert_true(!allows(c, '\n') && allows(c, 'y'));
    mm2_constraint_free(c);
    mm2_grammar_free(g);
}

static void forced_ids_are_the_only_ones(void **state)
{
    mm2_grammar *g = grammar(MM2_GRAMMAR_REGEX, "x-y(?:1|2)");
    mm2_constraint *c = constraint(g, MM2_START_TEXT);
    int32_t ids[8] = {0};
    assert_int_equal(mm2_constraint_forced(c, ids, 2), 2);
    assert_int_equal(mm2_constraint_forced(c, ids, 8), 3);
    assert_true(ids[0] == 'x' && ids[1] == '-' && ids[2] == 'y');
    assert_true(allows(c, 'x')); /* it has not moved */
    mm2_constraint_free(c);
    mm2_grammar_free(g);
}

static void options_are_checked(void **state)
{
    mm2_grammar *g = grammar(MM2_GRAMMAR_REGEX, "a*");
    mm2_constraint_options o = {.size = sizeof o};
    mm2_constraint *c;
    const uint32_t *mask;
    mm2_constraint_options_init(&o);
    o.vocab_size = 'b'; /* fewer tokens than the tokenizer: its end is none of them */
    assert_int_equal(mm2_constraint_new(&c, g, &o), MM2_E_ARG);
    assert_null(c);
    o.vocab_size = 1000;
    assert_int_equal(mm2_constraint_new(&c, g, &o), MM2_OK);
    assert_int_equal(mm2_constraint_mask(c, &mask), MM2_OK);
    for (int32_t id = 0; id < 1024; id++)
        assert_int_equal(mask[id / 32] >> id % 32 & 1, id == 'a' || id == END);
    assert_int_equal(mm2_constraint_push(c, 999), MM2_E_ARG);
    assert_int_equal(mm2_constraint_push(c, -1), MM2_E_ARG);
    assert_int_equal(mm2_constraint_forced(c, NULL, 1), MM2_E_ARG);
    mm2_constraint_free(c);
    o.start = 3;
    assert_int_equal(mm2_constraint_new(&c, g, &o), MM2_E_ARG);
    mm2_grammar_free(g);
    assert_int_equal(mm2_grammar_new(&g, t, 4, "a"), MM2_E_ARG);
    assert_int_equal(mm2_grammar_new(&g, NULL, 1, "a"), MM2_E_ARG);
}

/* ---- Threads and processes ---- */

enum { THREADS = 4, STEPS = 40 };

/* Digest of the masks on a fixed way through a grammar. */
static uint64_t walk(mm2_grammar *g)
{
    mm2_constraint *c = constraint(g, MM2_START_TEXT);
    uint64_t digest = 0;
    for (uint32_t n = 0; n < STEPS; n++) {
        const uint32_t *mask;
        assert_int_equal(mm2_constraint_mask(c, &mask), MM2_OK);
        for (int32_t i = 0; i < (VOCABULARY + 31) / 32; i++)
            digest = mm2_mix64(digest ^ mask[i]);
        assert_int_equal(mm2_constraint_push(c, "ab"[mm2_splitmix64(9, n) & 1]), MM2_OK);
    }
    mm2_constraint_free(c);
    return digest;
}

static void *walk_often(void *g)
{
    uint64_t *digest = malloc(sizeof *digest);
    for (int i = 0; i < 10; i++)
        *digest = walk(g);
    return digest;
}

static void threads_share_a_grammar(void **state)
{
    mm2_grammar *g = grammar(MM2_GRAMMAR_REGEX, "[ab]*a(?:[ab]{9}c?)+");
    pthread_t threads[THREADS];
    uint64_t alone = walk(g);
    mm2_grammar_limit(g, 20000);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, walk_often, g), 0);
    for (int i = 0; i < THREADS; i++) {
        void *digest;
        assert_int_equal(pthread_join(threads[i], &digest), 0);
        assert_true(*(uint64_t *)digest == alone);
        free(digest);
    }
    mm2_grammar_free(g);
}

static atomic_int stop;

static void *walk_on(void *g)
{
    while (!atomic_load(&stop))
        walk(g);
    return NULL;
}

static void a_child_goes_on_whatever_a_thread_was_doing(void **state)
{
    mm2_grammar *g = grammar(MM2_GRAMMAR_REGEX, "[ab]*a[ab]{12}");
    uint64_t alone = walk(g);
    pthread_t thread;
    mm2_grammar_limit(g, 20000); /* places come and go all the time */
    assert_int_equal(pthread_create(&thread, NULL, walk_on, g), 0);
    for (int i = 0; i < 12; i++) {
        pid_t child = fork();
        if (!child) {
            alarm(20);
            _exit(walk(g) != alone);
        }
        int status = -1;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    atomic_store(&stop, 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    mm2_grammar_free(g);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns_match_whole_texts),
        cmocka_unit_test(choices_match_themselves),
        cmocka_unit_test(schemas_match_what_fits),
        cmocka_unit_test(what_is_not_known_is_refused_by_name),
        cmocka_unit_test(hostile_patterns_are_bounded),
        cmocka_unit_test(masks_allow_what_can_be_pushed),
        cmocka_unit_test(places_are_forgotten_when_they_are_many),
        cmocka_unit_test(thinking_comes_before_the_form),
        cmocka_unit_test(forced_ids_are_the_only_ones),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(threads_share_a_grammar),
        cmocka_unit_test(a_child_goes_on_whatever_a_thread_was_doing),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
