/* Replies: what each id adds, what is held back and for how long, what ends a reply, and that none
 * of it depends on how ids cut the text. Then the same against a slow and simple model of a reply,
 * on random ids and options. */
#include "base/rng.h"
#include "base/status.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tag_tokenizer.h"

/* Tokens of several bytes, some of which are no characters. */
static const char *const words[] = {
    "ab",       "bcd",  "cde", "\n\n",   "\n",  "x\n",  "\xe6\x97\xa5", "\xe6\x97", "\xf0\x9f",
    "\x99\x82", "\xff", "aab", "aabaab", "\nx", "stop", "st",           "op now",
};
enum { WORDS = sizeof words / sizeof *words, WORD = TOKENS };

static int begin(void **state)
{
    *state = make_with(TOKENS, words, WORDS);
    return 0;
}

static int end(void **state)
{
    mm2_tokenizer_release(*state);
    return 0;
}

typedef struct script { /* a reply that is compared with what it should say */
    mm2_reply *r;
    mm2_piece all;
    char text[512], thinking[512]; /* pieces joined */
    int32_t pieces;
} script;

static void add(script *s, const mm2_piece *p)
{
    strncat(s->text, p->text, (size_t)p->text_len);
    strncat(s->thinking, p->thinking, (size_t)p->thinking_len);
    s->pieces += p->text_len > 0;
    s->all = (mm2_piece){.size = sizeof s->all};
    assert_int_equal(mm2_reply_all(s->r, &s->all), MM2_OK);
    assert_int_equal(s->all.text_len, strlen(s->text));
    assert_memory_equal(s->all.text, s->text, strlen(s->text));
    assert_int_equal(s->all.thinking_len, strlen(s->thinking));
    assert_memory_equal(s->all.thinking, s->thinking, strlen(s->thinking));
    assert_int_equal(s->all.end, p->end);
    assert_int_equal(s->all.count, p->count);
}

static void start(script *s, const mm2_tokenizer *t, const mm2_reply_options *o)
{
    *s = (script){0};
    assert_int_equal(mm2_reply_new(&s->r, t, o), MM2_OK);
}

static void push(script *s, int32_t id)
{
    mm2_piece p = {.size = sizeof p};
    assert_int_equal(mm2_reply_push(s->r, id, &p), MM2_OK);
    add(s, &p);
}

/* Bytes, one id each. */
static void say(script *s, const char *bytes)
{
    for (; *bytes; bytes++)
        push(s, (uint8_t)*bytes);
}

static void finish(script *s, int32_t reason)
{
    mm2_piece p = {.size = sizeof p};
    assert_int_equal(mm2_reply_end(s->r, reason, &p), MM2_OK);
    add(s, &p);
}

static void expect(script *s, const char *text, const char *thinking, int32_t end_reason)
{
    assert_string_equal(s->text, text);
    assert_string_equal(s->thinking, thinking);
    assert_int_equal(s->all.end, end_reason);
    mm2_reply_free(s->r);
}

static void text_comes_as_it_is(void **state)
{
    const mm2_tokenizer *t = *state;
    script s;
    start(&s, t, NULL);
    say(&s, "\n\na<b");
    assert_int_equal(s.pieces, 5);
    push(&s, THINK);
    push(&s, UNTHINK);
    push(&s, ROLE); /* special: decoding leaves it out */
    push(&s, WORD + 1);
    assert_int_equal(s.all.count, 9);
    push(&s, END);
    assert_int_equal(s.all.count, 10);
    expect(&s, "\n\na<b<think></think>bcd", "", MM2_END_STOP);
}

static void characters_are_whole(void **state)
{
    const mm2_tokenizer *t = *state;
    const char *text = "\xc3\xa9\xe6\x97\xa5\xf0\x9f\x99\x82x"; /* 2 + 3 + 4 + 1 bytes */
    script s;
    start(&s, t, NULL);
    say(&s, text);
    assert_int_equal(s.pieces, 4);
    push(&s, WORD + 8); /* half a character, then the other half */
    assert_int_equal(s.pieces, 4);
    push(&s, WORD + 9);
    push(&s, WORD + 7); /* half a character, then another one */
    push(&s, 'y');
    push(&s, WORD + 10); /* a byte that is none */
    push(&s, WORD + 7);  /* a half at the end comes out with it */
    assert_int_equal(s.all.text_len, 18);
    finish(&s, MM2_END_CONTEXT);
    expect(&s, "\xc3\xa9\xe6\x97\xa5\xf0\x9f\x99\x82x\xf0\x9f\x99\x82\xe6\x97y\xff\xe6\x97", "",
           MM2_END_CONTEXT);
}

static void thinking_and_answer_are_parted(void **state)
{
    const mm2_tokenizer *t = *state;
    mm2_reply_options o = {.size = sizeof o};
    script s;
    mm2_reply_options_init(&o);
    o.start = MM2_START_THINKING;
    start(&s, t, &o);
    say(&s, "\n\n\nhm\n");
    assert_string_equal(s.thinking, "hm"); /* a newline may be the last one */
    say(&s, "\nso\n\xe6");
    assert_string_equal(s.thinking, "hm\n\nso\n"); /* it was not, whatever comes of that byte */
    say(&s, "\x97\xa5\n\n");
    push(&s, UNTHINK);
    assert_string_equal(s.thinking, "hm\n\nso\n\xe6\x97\xa5");
    push(&s, WORD + 3);
    push(&s, WORD + 13);
    say(&s, "\n\n");
    push(&s, THINK); /* in the answer, both are text */
    push(&s, UNTHINK);
    push(&s, UNTHINK); /* but for an end without a beginning */
    push(&s, END);
    expect(&s, "x\n\n<think></think>", "hm\n\nso\n\xe6\x97\xa5", MM2_END_STOP);

    start(&s, t, &o); /* a tag that repeats the prompt's is left out, a later one is text */
    say(&s, "\n");
    push(&s, THINK);
    say(&s, "\na");
    push(&s, THINK);
    say(&s, "\xe6");
    push(&s, UNTHINK);
    assert_string_equal(s.thinking, "a<think>\xe6");
    push(&s, END);
    expect(&s, "", "a<think>\xe6", MM2_END_STOP);

    start(&s, t, &o); /* cut while it thinks */
    say(&s, "hm\n");
    finish(&s, MM2_END_CANCELLED);
    expect(&s, "", "hm", MM2_END_CANCELLED);

    o.start = MM2_START_ANSWER;
    start(&s, t, &o);
    say(&s, "\n\nyes\n");
    push(&s, UNTHINK);
    assert_string_equal(s.text, "yes"); /* the newline may be the one before a call */
    push(&s, 'x');
    expect(&s, "yes\nx", "", MM2_END_NONE);
}

static void ids_without_a_token_write_nothing(void **state)
{
    const mm2_tokenizer *t = *state;
    mm2_reply_options o = {.size = sizeof o};
    script s;
    mm2_reply_options_init(&o);
    o.start = MM2_START_THINKING;
    start(&s, t, &o);
    push(&s, TOKENS + WORDS); /* the first row of padding */
    say(&s, "a");
    push(&s, INT32_MAX);
    say(&s, "b\xe6");
    push(&s, TOKENS + WORDS + 7);
    say(&s, "\x97\xa5");
    push(&s, UNTHINK);
    for (int32_t i = 0; i < 100; i++)
        push(&s, TOKENS + WORDS + i);
    say(&s, "c");
    expect(&s, "c", "ab\xe6\x97\xa5", MM2_END_NONE);
}

static void end_tokens(void **state)
{
    const mm2_tokenizer *t = *state;
    const int32_t ends[] = {'!', WORD, INT32_MAX};
    mm2_reply_options o = {.size = sizeof o};
    script s;
    mm2_reply_options_init(&o);
    o.end_tokens = ends;
    o.end_count = 3;
    for (int32_t i = 0; i < 3; i++) {
        start(&s, t, &o);
        say(&s, "a");
        push(&s, END); /* of text, only the given ones are ends */
        push(&s, ends[i]);
        expect(&s, "a", "", MM2_END_STOP);
    }
    o.start = MM2_START_THINKING;
    for (int32_t i = 0; i < 4; i++) { /* of a chat turn, [e~[ is one in any case */
        start(&s, t, &o);
        say(&s, "a");
        push(&s, i < 3 ? ends[i] : END);
        expect(&s, "", "a", MM2_END_STOP);
    }
    o.start = MM2_START_TEXT;
    o.end_count = 0; /* none at all */
    start(&s, t, &o);
    push(&s, END);
    say(&s, "!");
    expect(&s, "!", "", MM2_END_NONE);
}

static void most_tokens(void **state)
{
    const mm2_tokenizer *t = *state;
    const char *stop[] = {"bc"};
    mm2_reply_options o = {.size = sizeof o};
    mm2_piece p = {.size = sizeof p};
    script s;
    mm2_reply_options_init(&o);
    o.stop = stop;
    o.stop_count = 1;
    o.max_tokens = 2;
    start(&s, t, &o);
    say(&s, "ab"); /* what was held back comes out */
    assert_int_equal(mm2_reply_push(s.r, 'c', &p), MM2_E_ARG);
    finish(&s, MM2_END_CANCELLED); /* the end stays what it was */
    expect(&s, "ab", "", MM2_END_LENGTH);
    o.max_tokens = 3; /* what ends with the last token: the stop string, or the token */
    start(&s, t, &o);
    say(&s, "abc");
    expect(&s, "a", "", MM2_END_STOP);
    start(&s, t, &o);
    say(&s, "aa");
    push(&s, END);
    expect(&s, "aa", "", MM2_END_STOP);
    o.max_tokens = 0;
    start(&s, t, &o);
    assert_int_equal(mm2_reply_push(s.r, 'c', NULL), MM2_E_ARG);
    assert_int_equal(mm2_reply_all(s.r, &s.all), MM2_E_ARG); /* its size is 0 */
    finish(&s, MM2_END_CANCELLED);
    expect(&s, "", "", MM2_END_LENGTH);
}

static void answer_begins(void **state)
{
    const mm2_tokenizer *t = *state;
    mm2_reply_options o = {.size = sizeof o};
    script s;
    mm2_reply_options_init(&o);
    start(&s, t, &o); /* a text is all answer */
    push(&s, UNTHINK);
    assert_int_equal(s.all.answer_at, 0);
    expect(&s, "</think>", "", MM2_END_NONE);
    o.start = MM2_START_ANSWER;
    start(&s, t, &o);
    say(&s, "a");
    assert_int_equal(s.all.answer_at, 0);
    expect(&s, "a", "", MM2_END_NONE);
    o.start = MM2_START_THINKING;
    start(&s, t, &o);
    say(&s, "ab");
    assert_int_equal(s.all.answer_at, -1);
    push(&s, UNTHINK);
    assert_int_equal(s.all.answer_at, 3);
    push(&s, WORD + 3);
    say(&s, "c</think>");
    assert_int_equal(s.all.answer_at, 3);
    expect(&s, "c</think>", "ab", MM2_END_NONE);
    start(&s, t, &o); /* spelled, and only thought of */
    say(&s, "<minimax:tool_call> a</think>");
    assert_int_equal(s.all.answer_at, 29);
    expect(&s, "", "<minimax:tool_call> a", MM2_END_NONE);
    start(&s, t, &o); /* a call ends the thinking */
    say(&s, "a");
    push(&s, CALL);
    say(&s, "\n<invoke name=\"f\">\n</invoke>\n");
    assert_int_equal(s.all.answer_at, -1);
    push(&s, UNCALL);
    assert_int_equal(s.all.answer_at, s.all.count);
    expect(&s, "", "a", MM2_END_NONE);
}

static void stop_strings(void **state)
{
    const mm2_tokenizer *t = *state;
    static const struct {
        const char *stop[4], *said, *text;
        int32_t end_reason;
    } cases[] = {
        {{"cd"}, "abcdef", "ab", MM2_END_STOP},
        {{"zzz", "cd"}, "abcdef", "ab", MM2_END_STOP},
        {{"cde", "cd"}, "abcdef", "ab", MM2_END_STOP}, /* the one that is complete first */
        {{"bcd", "c"}, "abcdef", "ab", MM2_END_STOP},  /* even if the other began before */
        {{"c", "bc"}, "abcdef", "a", MM2_END_STOP},    /* the longest of two at once */
        {{"a"}, "abcdef", "", MM2_END_STOP},
        {{"ababx", "bb"}, "ababab", "ababab", MM2_END_CANCELLED},
        {{"aabaac"}, "aabaabaac", "aab", MM2_END_STOP}, /* begins again inside itself */
        {{"aaab"}, "aaaaaab", "aaa", MM2_END_STOP},
        {{"f!"}, "abcdef", "abcdef", MM2_END_CANCELLED},
        {{"\xa5"}, "\xe6\x97\xa5", "\xe6\x97", MM2_END_STOP}, /* bytes are bytes */
        {{"\n\n"}, "a\n\nb", "a", MM2_END_STOP},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mm2_reply_options o = {.size = sizeof o};
        script s;
        mm2_reply_options_init(&o);
        o.stop = cases[i].stop;
        while (o.stop_count < 4 && cases[i].stop[o.stop_count])
            o.stop_count++;
        start(&s, t, &o);
        for (const char *c = cases[i].said; *c && !s.all.end; c++)
            push(&s, (uint8_t)*c);
        finish(&s, MM2_END_CANCELLED);
        expect(&s, cases[i].text, "", cases[i].end_reason);
    }
}

static void what_may_be_a_stop_string_is_held_back(void **state)
{
    const mm2_tokenizer *t = *state;
    const char *stop[] = {"stop now", "\0x"};
    const int32_t lengths[] = {8, 2};
    mm2_reply_options o = {.size = sizeof o};
    script s;
    mm2_reply_options_init(&o);
    o.stop = stop;
    o.stop_count = 1;
    start(&s, t, &o);
    say(&s, "a s");
    assert_string_equal(s.text, "a ");
    push(&s, WORD + 14);
    assert_string_equal(s.text, "a s");
    push(&s, '!');
    assert_string_equal(s.text, "a sstop!");
    push(&s, WORD + 15);
    push(&s, WORD + 16);
    expect(&s, "a sstop!", "", MM2_END_STOP);

    o.start = MM2_START_THINKING; /* thinking is not searched, nor the newlines behind it */
    stop[0] = "\n";
    start(&s, t, &o);
    say(&s, "a\nb");
    push(&s, UNTHINK);
    push(&s, WORD + 3);
    say(&s, "c");
    push(&s, WORD + 5);
    expect(&s, "cx", "a\nb", MM2_END_STOP);

    o.start = MM2_START_TEXT; /* with a length, a stop string may hold a NUL */
    o.stop_len = lengths;
    o.stop_count = 2;
    stop[0] = "12345678";
    start(&s, t, &o);
    push(&s, 'a');
    push(&s, 0);
    assert_string_equal(s.text, "a");
    push(&s, 'x');
    expect(&s, "a", "", MM2_END_STOP);
}

static void without_a_tokenizer(void **state)
{
    (void)state;
    const int32_t ends[] = {7};
    mm2_reply_options o = {.size = sizeof o};
    script s;
    mm2_reply_options_init(&o);
    o.max_tokens = 3;
    o.start = MM2_START_THINKING;
    start(&s, NULL, &o);
    push(&s, 5);
    push(&s, END);
    push(&s, 1000000);
    expect(&s, "", "", MM2_END_LENGTH);
    o.end_tokens = ends;
    o.end_count = 1;
    start(&s, NULL, &o);
    push(&s, 7);
    expect(&s, "", "", MM2_END_STOP);
}

static void mistakes_are_refused(void **state)
{
    const mm2_tokenizer *t = *state;
    static const char *const stop[] = {"a", NULL}, *const empty[] = {"a", ""};
    static const int32_t ends[] = {1, -1}, lengths[] = {1, 0};
    mm2_reply *r = NULL;
    mm2_reply_options o = {.size = sizeof o};
    for (int i = 0; i < 12; i++) {
        o.size = sizeof o;
        mm2_reply_options_init(&o);
        o.stop = stop;
        o.stop_count = 1;
        o.end_tokens = ends;
        o.end_count = 1;
        if (i == 0)
            o.size = 0;
        if (i == 1)
            o.size = sizeof o + 8;
        if (i == 2)
            o.start = 3;
        if (i == 3)
            o.start = -1;
        if (i == 4)
            o.max_tokens = -1;
        if (i == 5)
            o.stop_count = 2;
        if (i == 6)
            o.stop_count = -1;
        if (i == 7)
            o.end_count = 2;
        if (i == 8)
            o.end_count = -1;
        if (i == 9)
            o.stop = NULL;
        if (i == 10)
            o.end_tokens = NULL;
        if (i == 11) {
            o.stop = empty;
            o.stop_count = 2;
        }
        r = (mm2_reply *)&o;
        assert_int_equal(mm2_reply_new(&r, t, &o), MM2_E_ARG);
        assert_null(r);
        assert_true(strlen(mm2_status_text()) > 10);
    }
    o.size = sizeof o;
    mm2_reply_options_init(&o);
    o.stop = empty;
    o.stop_len = lengths;
    o.stop_count = 2;
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_E_ARG);
    assert_int_equal(mm2_reply_new(NULL, t, NULL), MM2_E_ARG);
    mm2_reply_free(NULL);
    mm2_reply_options_init(NULL);

    /* an older program's smaller structs */
    o.size = 12; /* as far as max_tokens */
    o.stop_count = -1;
    mm2_reply_options_init(&o);
    assert_int_equal(o.stop_count, -1); /* it knows of none */
    o.max_tokens = 1;
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_OK);
    struct {
        uint32_t size;
        int32_t end, canary;
    } small = {8, -1, -7};
    mm2_piece p = {.size = sizeof p + 8};
    assert_int_equal(mm2_reply_push(r, -1, NULL), MM2_E_ARG);
    assert_int_equal(mm2_reply_push(r, 'a', &p), MM2_E_ARG); /* and nothing was pushed */
    assert_int_equal(mm2_reply_end(r, MM2_END_CANCELLED, &p), MM2_E_ARG);
    assert_int_equal(mm2_reply_end(r, MM2_END_STOP, NULL), MM2_E_ARG);
    assert_int_equal(mm2_reply_all(r, NULL), MM2_E_ARG);
    p.size = sizeof p;
    assert_int_equal(mm2_reply_all(r, &p), MM2_OK);
    assert_int_equal(p.count, 0);
    assert_int_equal(p.end, MM2_END_NONE);
    assert_non_null(p.text);
    assert_int_equal(mm2_reply_push(r, 'a', (mm2_piece *)&small), MM2_OK);
    assert_int_equal(small.end, MM2_END_LENGTH);
    assert_int_equal(small.canary, -7);
    assert_int_equal(mm2_reply_push(NULL, 'a', NULL), MM2_E_ARG);
    assert_int_equal(mm2_reply_end(NULL, MM2_END_CANCELLED, NULL), MM2_E_ARG);
    assert_int_equal(mm2_reply_all(NULL, &p), MM2_E_ARG);
    mm2_reply_free(r);
}

/* A stop string of 100,000 bytes that almost comes, again and again: time stays in proportion. */
static void long_stop_strings(void **state)
{
    const mm2_tokenizer *t = *state;
    enum { LONG = 100000, SAID = 1000000 };
    char *stop = malloc(LONG + 1);
    const char *list[] = {stop};
    mm2_reply_options o = {.size = sizeof o};
    mm2_reply *r;
    mm2_piece p = {.size = sizeof p};
    memset(stop, 'a', LONG);
    strcpy(stop + LONG - 1, "b");
    mm2_reply_options_init(&o);
    o.stop = list;
    o.stop_count = 1;
    assert_int_equal(mm2_reply_new(&r, t, &o), MM2_OK);
    free(stop); /* it was copied */
    for (int i = 0; i < SAID; i++)
        assert_int_equal(mm2_reply_push(r, 'a', NULL), MM2_OK);
    assert_int_equal(mm2_reply_all(r, &p), MM2_OK);
    assert_int_equal(p.text_len, SAID - (LONG - 1));
    assert_int_equal(mm2_reply_push(r, 'b', &p), MM2_OK);
    assert_int_equal(p.end, MM2_END_STOP);
    assert_int_equal(mm2_reply_all(r, &p), MM2_OK);
    assert_int_equal(p.text_len, SAID - (LONG - 1));
    mm2_reply_free(r);
}

/* ---- Two threads ---- */

enum { PUSHES = 20000 };

static void *push_many(void *reply)
{
    intptr_t done = 0;
    for (int i = 0; i < PUSHES; i++) {
        mm2_status status = mm2_reply_push(reply, 'a', NULL);
        if (status && (status != MM2_E_BUSY || !strstr(mm2_status_text(), "reply")))
            return (void *)-1;
        done += !status;
    }
    return (void *)done;
}

/* A second thread is turned away, and nothing it wanted is done by half. */
static void one_thread_at_a_time(void **state)
{
    const mm2_tokenizer *t = *state;
    pthread_t other;
    mm2_reply *r;
    void *done;
    mm2_piece p = {.size = sizeof p};
    assert_int_equal(mm2_reply_new(&r, t, NULL), MM2_OK);
    assert_int_equal(pthread_create(&other, NULL, push_many, r), 0);
    intptr_t mine = (intptr_t)push_many(r);
    assert_int_equal(pthread_join(other, &done), 0);
    assert_true(mine > 0 && (intptr_t)done > 0);
    assert_int_equal(mm2_reply_all(r, &p), MM2_OK);
    assert_int_equal(p.count, mine + (intptr_t)done);
    assert_int_equal(p.text_len, p.count);
    mm2_reply_free(r);
}

/* ---- Against a model of a reply that looks at everything anew each time ---- */

enum { MOST_IDS = 24, MOST_BYTES = 8 * MOST_IDS, CASES = 20000 };

typedef struct model {
    char text[MOST_BYTES], thinking[MOST_BYTES];
    int text_len, thinking_len, end, read; /* read: ids until the end */
} model;

/* Where the answer ends by the stop strings, or -1: the shortest beginning that has one at its
 * end, without the longest that it has. */
static int find_stop(const char *text, int n, const mm2_reply_options *o)
{
    for (int i = 1; i <= n; i++) {
        int longest = 0;
        for (int s = 0; s < o->stop_count; s++) {
            int length = (int)strlen(o->stop[s]);
            if (length <= i && length > longest &&
                !memcmp(text + i - length, o->stop[s], (size_t)length))
                longest = length;
        }
        if (longest)
            return i - longest;
    }
    return -1;
}

static int is_end(int32_t id, const mm2_reply_options *o)
{
    for (int i = 0; i < o->end_count; i++)
        if (o->end_tokens[i] == id)
            return 1;
    if (o->start != MM2_START_TEXT && (id == BEGIN || id == ROLE))
        return 1;
    return id == END && (!o->end_tokens || o->start != MM2_START_TEXT);
}

/* Without newlines at the beginning, or on both sides. */
static void strip(char *text, int *n, int both)
{
    int from = 0;
    while (from < *n && text[from] == '\n')
        from++;
    memmove(text, text + from, (size_t)(*n - from));
    *n -= from;
    while (both && *n && text[*n - 1] == '\n')
        --*n;
}

/* What the whole reply must be, if it is ended by the caller behind n ids. */
static void whole(model *m, const mm2_tokenizer *t, const int32_t *ids, int n,
                  const mm2_reply_options *o)
{
    int thinking = o->start == MM2_START_THINKING, chat = o->start != MM2_START_TEXT, open = 0;
    *m = (model){.end = MM2_END_CANCELLED};
    for (; m->read < n;) {
        char bytes[64];
        int32_t id = ids[m->read++];
        if (is_end(id, o)) {
            m->end = MM2_END_STOP;
            break;
        }
        int32_t length = id < TOKENS + WORDS ? mm2_tokenizer_decode(t, &id, 1, 0, bytes, 64) : 0;
        strip(m->thinking, &m->thinking_len, 0);
        if (thinking && id == UNTHINK) {
            thinking = 0;
        } else if ((thinking && id == THINK && !m->thinking_len) ||
                   (chat && !thinking && id == UNTHINK && !open)) {
            length = 0; /* left out */
        } else if (thinking) {
            memcpy(m->thinking + m->thinking_len, bytes, (size_t)length);
            m->thinking_len += length;
        } else {
            open += chat && id == THINK ? 1 : chat && id == UNTHINK ? -1 : 0;
            memcpy(m->text + m->text_len, bytes, (size_t)length);
            m->text_len += length;
            if (o->start != MM2_START_TEXT)
                strip(m->text, &m->text_len, 0);
            int at = find_stop(m->text, m->text_len, o);
            if (at >= 0) {
                m->text_len = at;
                m->end = MM2_END_STOP;
                break;
            }
        }
        if (m->read == o->max_tokens) {
            m->end = MM2_END_LENGTH;
            break;
        }
    }
    strip(m->thinking, &m->thinking_len, 1);
}

/* Bytes at the end of the answer that may become a stop string, or the newline before a call. */
static int may_stop(const model *m, const mm2_reply_options *o)
{
    int most = o->start != MM2_START_TEXT && m->text_len && m->text[m->text_len - 1] == '\n';
    for (int i = 0; i < o->stop_count; i++)
        for (int n = (int)strlen(o->stop[i]) - 1; n > most; n--)
            if (n <= m->text_len && !memcmp(m->text + m->text_len - n, o->stop[i], (size_t)n))
                most = n;
    return most;
}

/* What is seen never has to be taken back, and is as much as can be. */
static void compare(const mm2_tokenizer *t, const int32_t *ids, int n, const mm2_reply_options *o)
{
    script s;
    model final, now;
    int given = 0;
    whole(&final, t, ids, n, o);
    start(&s, t, o);
    while (given < final.read) {
        push(&s, ids[given++]);
        assert_true(s.all.text_len <= final.text_len);
        assert_memory_equal(s.all.text, final.text, (size_t)s.all.text_len);
        assert_true(s.all.thinking_len <= final.thinking_len);
        assert_memory_equal(s.all.thinking, final.thinking, (size_t)s.all.thinking_len);
        if (s.all.end)
            break;
        whole(&now, t, ids, given, o);
        assert_int_equal(s.all.text_len,
                         mm2_text_complete(now.text, now.text_len - may_stop(&now, o)));
        assert_in_range(now.thinking_len - s.all.thinking_len, 0, 3); /* a character */
    }
    finish(&s, MM2_END_CANCELLED);
    assert_int_equal(s.all.count, final.read);
    assert_int_equal(s.all.text_len, final.text_len);
    assert_int_equal(s.all.thinking_len, final.thinking_len);
    expect(&s, s.text, s.thinking, final.end);
}

/* The same text by ids of one byte each says the same. */
static void compare_cuts(const mm2_tokenizer *t, const int32_t *ids, int n, mm2_reply_options o)
{
    int32_t cut[MOST_BYTES];
    int count = 0;
    model a, b;
    o.max_tokens = INT32_MAX;
    for (int i = 0; i < n; i++) {
        if (ids[i] >= WORD && ids[i] < WORD + WORDS && !is_end(ids[i], &o))
            for (const char *c = words[ids[i] - WORD]; *c; c++)
                cut[count++] = (uint8_t)*c;
        else
            cut[count++] = ids[i];
    }
    for (int i = 0; i < o.end_count; i++)
        if (o.end_tokens[i] < 256) /* a byte that ends the reply is another text */
            return;
    whole(&a, t, ids, n, &o);
    whole(&b, t, cut, count, &o);
    assert_int_equal(a.text_len, b.text_len);
    assert_memory_equal(a.text, b.text, (size_t)a.text_len);
    assert_int_equal(a.thinking_len, b.thinking_len);
    compare(t, cut, count, &o);
}

static void random_replies(void **state)
{
    const mm2_tokenizer *t = *state;
    static const char alphabet[] = "aabbcd\n\nxst op\xe6\x97\xa5\xf0\x9f\xff";
    static const char *const stops[] = {"a",
                                        "ab",
                                        "aba",
                                        "bcd",
                                        "cd",
                                        "\n\n",
                                        "b\n",
                                        "stop",
                                        "st",
                                        "\x97",
                                        "\xe6\x97\xa5",
                                        "aabaac",
                                        "x\na",
                                        "ba\n",
                                        "dd",
                                        "opop",
                                        "\xa5"
                                        "a",
                                        "s"};
    static const int32_t ends[] = {WORD + 15, 'd', END, TOKENS + WORDS + 3};
    uint64_t draws = 0;
    for (int i = 0; i < CASES; i++) {
        uint64_t z = mm2_splitmix64(9, draws++);
        int32_t ids[MOST_IDS];
        const char *stop[4];
        int n = (int)(z % (MOST_IDS + 1));
        mm2_reply_options o = {.size = sizeof o};
        mm2_reply_options_init(&o);
        o.start = (int32_t)(z >> 8) % 3;
        o.start = o.start < 0 ? 0 : o.start;
        o.stop_count = (int32_t)(z >> 40 & 3);
        o.stop = stop;
        for (int k = 0; k < o.stop_count; k++)
            stop[k] = stops[mm2_splitmix64(9, draws++) % (sizeof stops / sizeof *stops)];
        if (z >> 42 & 1) {
            o.end_tokens = ends + (z >> 43 & 1);
            o.end_count = (int32_t)(z >> 44 & 3);
        }
        if (!(z >> 46 & 3))
            o.max_tokens = 1 + (int32_t)(z >> 48 & 15);
        for (int k = 0; k < n; k++) {
            uint64_t y = mm2_splitmix64(9, draws++);
            int kind = (int)(y % 16);
            uint64_t which = y >> 8;
            ids[k] = kind < 7    ? (uint8_t)alphabet[which % (sizeof alphabet - 1)]
                     : kind < 13 ? WORD + (int32_t)(which % WORDS)
                     : kind < 14 ? TOKENS + WORDS + (int32_t)(which % 5)
                     : kind < 15 ? THINK + (int32_t)(which % 2)
                     : which % 4 ? UNTHINK
                                 : BEGIN + (int32_t)(which / 4 % 3);
        }
        compare(t, ids, n, &o);
        compare_cuts(t, ids, n, o);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_comes_as_it_is),
        cmocka_unit_test(characters_are_whole),
        cmocka_unit_test(thinking_and_answer_are_parted),
        cmocka_unit_test(ids_without_a_token_write_nothing),
        cmocka_unit_test(end_tokens),
        cmocka_unit_test(answer_begins),
        cmocka_unit_test(most_tokens),
        cmocka_unit_test(stop_strings),
        cmocka_unit_test(what_may_be_a_stop_string_is_held_back),
        cmocka_unit_test(without_a_tokenizer),
        cmocka_unit_test(mistakes_are_refused),
        cmocka_unit_test(long_stop_strings),
        cmocka_unit_test(one_thread_at_a_time),
        cmocka_unit_test(random_replies),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
