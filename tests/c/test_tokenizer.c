/* The tokenizer on small vocabularies made here: what it computes, checked against a plain
 * quadratic merge loop and known sequences, and what it refuses, case by case (T1 to T14 are the
 * hostile tokenizers and texts of the project's list). */
#include "base/status.h"
#include "base/utf8.h"
#include "text/nfc.h"
#include "text/split.h"
#include "text/tokenizer.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#ifdef __SANITIZE_ADDRESS__
enum { MILLION = 200000, WORD = 1000000 };
#else
enum { MILLION = 1000000, WORD = 10000000 };
#endif

/* ----------------------------------------------------------------------------------------------
 * Documents */

typedef struct parts { /* of a tokenizer.json; NULL: what the family has */
    const char *normalizer, *split, *pre, *decoder, *settings, *vocab, *words, *merges, *added;
} parts;

#define FAMILY_SPLIT                                                                               \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\",\"invert\":"     \
    "false}"
#define BYTE_LEVEL                                                                                 \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":"      \
    "false}"
#define ADDED                                                                                      \
    "[{\"id\":300,\"content\":\"[e~[\",\"special\":true,\"normalized\":false},"                    \
    "{\"id\":301,\"content\":\"<think>\",\"special\":false,\"normalized\":false},"                 \
    "{\"id\":302,\"content\":\"<go>\",\"special\":false,\"normalized\":true}]"

static void put_json_text(FILE *f, const char *text)
{
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            fputc('\\', f);
        fputc(*text, f);
    }
}

/* The 256 bytes in GPT-2's printable spelling, byte b with id b. */
static void put_bytes(FILE *f)
{
    int next = 0x100;
    for (int b = 0; b < 256; b++) {
        int printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
        uint8_t text[5] = {0};
        text[mm2_utf8_put(text, printable ? b : next++)] = 0;
        fputs(b ? ",\"" : "\"", f);
        put_json_text(f, (char *)text);
        fprintf(f, "\":%d", b);
    }
}

static char *document(const parts *p)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    fprintf(f, "{\"version\":\"1.0\",\"added_tokens\":%s,\"normalizer\":%s,",
            p->added ? p->added : ADDED, p->normalizer ? p->normalizer : "{\"type\":\"NFC\"}");
    fputs("\"pre_tokenizer\":", f);
    if (p->pre)
        fputs(p->pre, f);
    else {
        fputs("{\"type\":\"Sequence\",\"pretokenizers\":[", f);
        if (p->split)
            fputs(p->split, f);
        else {
            fputs("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"", f);
            put_json_text(f, mm2_split_family);
            fputs("\"},\"behavior\":\"Isolated\",\"invert\":false}", f);
        }
        fputs("," BYTE_LEVEL "]}", f);
    }
    fprintf(f, ",\"decoder\":%s,\"model\":{\"type\":\"BPE\",%s\"vocab\":",
            p->decoder ? p->decoder : BYTE_LEVEL, p->settings ? p->settings : "");
    if (p->vocab)
        fputs(p->vocab, f);
    else {
        fputc('{', f);
        put_bytes(f);
        fprintf(f, "%s}", p->words ? p->words : ",\"ab\":256,\"bc\":257,\"abc\":258,\"ĠĠ\":259");
    }
    fprintf(f, ",\"merges\":%s}}",
            p->merges ? p->merges : "[\"b c\",\"a b\",\"a bc\",[\"Ġ\",\"Ġ\"]]");
    fclose(f);
    return text;
}

static mm2_tokenizer *make(const parts *p)
{
    mm2_tokenizer *t;
    char *json = document(p);
    mm2_status status = mm2_tokenizer_from_json(&t, json, (int64_t)strlen(json), "small.json");
    if (status)
        print_message("%s\n", mm2_status_text());
    free(json);
    assert_int_equal(status, MM2_OK);
    return t;
}

/* Opening must fail with this status and a sentence that names the file and holds this word. */
static void refuse_text(const char *json, int64_t length, mm2_status want, const char *word)
{
    mm2_tokenizer *t = (mm2_tokenizer *)1;
    mm2_status status = mm2_tokenizer_from_json(&t, json, length, "small.json");
    if (status != want || !strstr(mm2_status_text(), word))
        print_message("status %d, sentence: %s\n", status, mm2_status_text());
    assert_int_equal(status, want);
    assert_null(t);
    assert_ptr_equal(strstr(mm2_status_text(), "small.json: "), mm2_status_text());
    assert_non_null(strstr(mm2_status_text(), word));
}

static void refuse(const parts *p, mm2_status want, const char *word)
{
    char *json = document(p);
    refuse_text(json, (int64_t)strlen(json), want, word);
    free(json);
}

static void expect_ids(const mm2_tokenizer *t, const char *text, int32_t length, int32_t flags,
                       int32_t count, const int32_t *want)
{
    int32_t ids[256];
    assert_int_equal(mm2_tokenizer_encode(t, text, length, flags, ids, 256), count);
    for (int32_t i = 0; i < count; i++)
        assert_int_equal(ids[i], want[i]);
}

#define EXPECT(t, text, flags, ...)                                                                \
    do {                                                                                           \
        const int32_t want_[] = {__VA_ARGS__};                                                     \
        expect_ids(t, text, sizeof text - 1, flags, sizeof want_ / sizeof *want_, want_);          \
    } while (0)

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ----------------------------------------------------------------------------------------------
 * What it computes */

static void merges_lowest_rank_first(void **state)
{
    (void)state;
    mm2_tokenizer *t = make(&(parts){0});
    EXPECT(t, "abc", 0, 258); /* b c comes first, then a bc */
    EXPECT(t, "ab", 0, 256);
    EXPECT(t, "abbc", 0, 256, 257);
    EXPECT(t, "xab", 0, 'x', 256);
    EXPECT(t, "   x", 0, 259, ' ', 'x'); /* two spaces, then " x" */
    mm2_tokenizer_release(t);
}

/* Random words over a random vocabulary, against the definition: again and again the best pair. Some
 * tokens are made by several merges. `shuffled`: a merge may come before those that make its parts. */
static void compare_with_the_plain_loop(int shuffled)
{
    enum { MERGES = 80, LONGEST = 300 };
    static char spelled[4 + MERGES][64];
    static int left[MERGES], right[MERGES], result[MERGES];
    char *words = NULL, *merges = NULL;
    size_t a, b;
    FILE *w = open_memstream(&words, &a), *m = open_memstream(&merges, &b);
    int known = 4;
    for (int i = 0; i < 4; i++)
        spelled[i][0] = (char)('a' + i);
    for (int i = 0; i < MERGES; i++) {
        char text[160];
        int fresh = 0;
        for (int tries = 0; !fresh; tries++) {
            left[i] = i < 2 ? 4 * i : rand() % known; /* "aa" and "aaaa" in any case */
            right[i] = i < 2 ? 4 * i : rand() % known;
            if (i == 65) /* 64 ranks behind "aaaa", which is pushed in turns with it */
                left[i] = 4, right[i] = 0;
            fresh = snprintf(text, sizeof text, "%s%s", spelled[left[i]], spelled[right[i]]) < 60;
            fresh &= i >= 65 || left[i] != 4 || right[i] != 0;
            for (int k = 0; k < i; k++)
                fresh &= left[k] != left[i] || right[k] != right[i];
            for (result[i] = 0; result[i] < known && strcmp(spelled[result[i]], text) != 0;)
                result[i]++;
            fresh &= i % 3 || tries > 10000 || result[i] < known;
        }
        if (result[i] == known) {
            fprintf(w, ",\"%s\":%d", text, 256 + known - 4);
            snprintf(spelled[known++], sizeof spelled[0], "%.63s", text);
        }
    }
    for (int i = 0; i < MERGES; i++) {
        int other = shuffled ? i + rand() % (MERGES - i) : i;
        int merge[3] = {left[other], right[other], result[other]};
        left[other] = left[i];
        right[other] = right[i];
        result[other] = result[i];
        left[i] = merge[0];
        right[i] = merge[1];
        result[i] = merge[2];
        fprintf(m, "%s\"%s %s\"", i ? "," : "[", spelled[left[i]], spelled[right[i]]);
    }
    fputc(']', m);
    fclose(w);
    fclose(m);
    assert_in_range(known, 4 + MERGES / 2, 4 + MERGES - 5);
    mm2_tokenizer *t = make(&(parts){.words = words, .merges = merges, .added = "[]"});
    for (int round = 0; round < 2000; round++) {
        char text[LONGEST];
        int32_t got[LONGEST];
        int symbols[LONGEST], n = 1 + rand() % (round % 16 ? 60 : LONGEST), count = n;
        for (int i = 0; i < n; i++) { /* odd rounds: long runs, where equal pairs overlap */
            symbols[i] = i && round % 2 && rand() % 16 ? symbols[i - 1] : rand() % 4;
            text[i] = (char)('a' + symbols[i]);
        }
        for (;;) {
            int best = MERGES, at = 0;
            for (int i = 0; i + 1 < count; i++)
                for (int k = 0; k < best; k++)
                    if (left[k] == symbols[i] && right[k] == symbols[i + 1]) {
                        best = k;
                        at = i;
                    }
            if (best == MERGES)
                break;
            symbols[at] = result[best];
            memmove(symbols + at + 1, symbols + at + 2,
                    (size_t)(--count - at - 1) * sizeof *symbols);
        }
        assert_int_equal(mm2_tokenizer_encode(t, text, n, 0, got, LONGEST), count);
        for (int i = 0; i < count; i++)
            assert_int_equal(got[i], symbols[i] < 4 ? 'a' + symbols[i] : 256 + symbols[i] - 4);
    }
    mm2_tokenizer_release(t);
    free(words);
    free(merges);
    memset(spelled, 0, sizeof spelled);
}

static void merges_as_the_plain_loop_does(void **state)
{
    (void)state;
    srand(7);
    for (int vocabulary = 0; vocabulary < 8; vocabulary++)
        compare_with_the_plain_loop(vocabulary % 2);
}

static void counts_beyond_cap(void **state)
{
    (void)state;
    mm2_tokenizer *t = make(&(parts){0});
    int32_t ids[4] = {-7, -7, -7, -7};
    char out[8] = "-------";
    assert_int_equal(mm2_tokenizer_encode(t, "wxyz", 4, 0, NULL, 0), 4);
    assert_int_equal(mm2_tokenizer_encode(t, "wxyz", 4, 0, ids, 3), 4);
    assert_int_equal(ids[2], 'y');
    assert_int_equal(ids[3], -7);
    ids[0] = 258;
    ids[1] = 'z';
    assert_int_equal(mm2_tokenizer_decode(t, ids, 2, 0, NULL, 0), 4);
    assert_int_equal(mm2_tokenizer_decode(t, ids, 2, 0, out, 2), 4);
    assert_memory_equal(out, "ab-", 3);
    mm2_tokenizer_release(t);
}

/* The same ids whatever the room and the time that a run is given. */
static void encodes_in_parts(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "abc",
        "<go><think>[e~[[e~[",
        "ab <go>\xcc\xb8 e\xcc\x81 abcabcabc<think>\xff 12345 x[e~[ \n\n  end  ",
        "abbcabcabcbcabababcbcbcababcabcabc",
        "                                                    ",
    };
    static const int32_t rooms[] = {1, 2, 5, 200};
    mm2_tokenizer *t = make(&(parts){0});
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (int32_t k = 0; k < 16; k++) {
            int32_t whole[200], ids[200], n = 0, length = (int32_t)strlen(texts[i]);
            int32_t flags = k & 1, budget = k >> 1 & 1, room = rooms[k >> 2];
            int32_t total = mm2_tokenizer_encode(t, texts[i], length, flags, whole, 200);
            mm2_encoding *e;
            mm2_status status = mm2_encoding_new(&e, t, texts[i], length, flags);
            assert_int_equal(status, MM2_OK);
            for (status = MM2_MORE; status == MM2_MORE;) {
                int32_t count = -1;
                status =
                    mm2_encoding_run(e, budget, ids + n, room < 200 - n ? room : 200 - n, &count);
                assert_in_range(count, 0, room);
                assert_true(count == room || status == MM2_OK);
                n += count;
            }
            assert_int_equal(status, MM2_OK);
            assert_int_equal(n, total);
            assert_memory_equal(ids, whole, (size_t)n * 4);
            assert_int_equal(mm2_encoding_run(e, 0, ids, 200, &n), MM2_OK);
            assert_int_equal(n, 0);
            mm2_encoding_free(e);
        }
    mm2_tokenizer_release(t);
}

/* Without time it comes back every thousand steps, in a word too, and may then be left. */
static void a_word_can_be_left_in_its_middle(void **state)
{
    (void)state;
    enum { LONG = 200000 };
    static char text[LONG];
    static int32_t whole[LONG], ids[LONG];
    mm2_tokenizer *t = make(&(parts){0});
    for (int i = 0; i < LONG; i++)
        text[i] = "abcbcaabb "[i < LONG / 2 ? 9 : i % 9]; /* a word of spaces, one of letters */
    int32_t total = mm2_tokenizer_encode(t, text, LONG, 0, whole, LONG), n = 0, more = 0;
    mm2_encoding *e, *left;
    assert_int_equal(mm2_encoding_new(&e, t, text, LONG, 0), MM2_OK);
    assert_int_equal(mm2_encoding_new(&left, t, text, LONG, 0), MM2_OK);
    for (mm2_status status = MM2_MORE; status == MM2_MORE; more++) {
        int32_t count;
        status = mm2_encoding_run(e, 1, ids + n, LONG - n, &count);
        n += count;
        if (more < 150)
            assert_int_equal(mm2_encoding_run(left, 1, NULL, 0, &count), MM2_MORE);
    }
    assert_in_range(more, 3 * LONG / 2 / 1024, 5 * LONG / 1024);
    assert_int_equal(n, total);
    assert_memory_equal(ids, whole, (size_t)n * 4);
    mm2_encoding_free(e);
    mm2_encoding_free(left);
    mm2_encoding_free(NULL);
    mm2_tokenizer_release(t);
}

static void tokens_and_ids(void **state)
{
    (void)state;
    mm2_tokenizer *t = make(&(parts){0});
    mm2_tokenizer_info facts = {.size = sizeof facts};
    int32_t length;
    assert_int_equal(mm2_tokenizer_describe(t, &facts), MM2_OK);
    assert_int_equal(facts.vocab_size, 303);
    assert_int_equal(facts.eos, 300);
    assert_int_equal(facts.think_open, 301);
    assert_int_equal(facts.think_close, -1);
    assert_int_equal(facts.bos, -1);
    assert_memory_equal(mm2_tokenizer_token(t, 258, &length), "abc", 3);
    assert_int_equal(length, 3);
    assert_memory_equal(mm2_tokenizer_token(t, 259, &length), "  ", 2);
    assert_memory_equal(mm2_tokenizer_token(t, 0, &length), "\0", 1);
    assert_int_equal(mm2_tokenizer_id(t, "abc", 3), 258);
    assert_int_equal(mm2_tokenizer_id(t, "\xad", 1), 0xad);
    assert_int_equal(mm2_tokenizer_id(t, "<think>", 7), 301);
    assert_int_equal(mm2_tokenizer_id(t, "<think", 6), -1);
    assert_int_equal(mm2_tokenizer_id(t, "", 0), -1);
    int32_t added[2] = {-1, -1};
    assert_int_equal(mm2_tokenizer_added(t, NULL, 0), 3);
    assert_int_equal(mm2_tokenizer_added(t, added, 1), 3);
    assert_int_equal(added[0], 300);
    assert_int_equal(added[1], -1);
    mm2_tokenizer_set_ids(t, 'B', -1, 2, 3);
    assert_int_equal(mm2_tokenizer_describe(t, &facts), MM2_OK);
    assert_int_equal(facts.bos, 'B');
    assert_int_equal(facts.eos, 300);
    assert_int_equal(facts.pad, 3);
    mm2_tokenizer_set_ids(t, 5, 303, 2, INT32_MAX); /* those without a token change nothing */
    assert_int_equal(mm2_tokenizer_describe(t, &facts), MM2_OK);
    assert_int_equal(facts.bos, 5);
    assert_int_equal(facts.eos, 300);
    assert_int_equal(facts.pad, 3);
    mm2_tokenizer_release(t);
    mm2_tokenizer_release(NULL);
}

static void arguments(void **state)
{
    (void)state;
    mm2_tokenizer *t = make(&(parts){0});
    int32_t id = 'a', length;
    char out[4];
    assert_int_equal(mm2_tokenizer_encode(NULL, "a", 1, 0, &id, 1), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_encode(t, NULL, 1, 0, &id, 1), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_encode(t, "a", -1, 0, &id, 1), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_encode(t, "a", 1, 0, NULL, 1), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_encode(t, "a", 1, 0, &id, -1), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_encode(t, "a", 1, 2, &id, 1), MM2_E_ARG);
    mm2_encoding *e = (mm2_encoding *)1;
    assert_int_equal(mm2_encoding_new(NULL, t, "a", 1, 0), MM2_E_ARG);
    assert_int_equal(mm2_encoding_new(&e, NULL, "a", 1, 0), MM2_E_ARG);
    assert_null(e);
    assert_int_equal(mm2_encoding_new(&e, t, NULL, 1, 0), MM2_E_ARG);
    assert_int_equal(mm2_encoding_new(&e, t, "a", -1, 0), MM2_E_ARG);
    assert_int_equal(mm2_encoding_new(&e, t, "a", 1, 2), MM2_E_ARG);
    assert_int_equal(mm2_encoding_new(&e, t, "ab", 2, 0), MM2_OK);
    assert_int_equal(mm2_encoding_run(NULL, 0, &id, 1, &length), MM2_E_ARG);
    assert_int_equal(mm2_encoding_run(e, -1, &id, 1, &length), MM2_E_ARG);
    assert_int_equal(mm2_encoding_run(e, 0, NULL, 1, &length), MM2_E_ARG);
    assert_int_equal(mm2_encoding_run(e, 0, &id, -1, &length), MM2_E_ARG);
    assert_int_equal(mm2_encoding_run(e, 0, &id, 1, NULL), MM2_E_ARG);
    assert_int_equal(mm2_encoding_run(e, 0, &id, 1, &length), MM2_MORE); /* no more room */
    assert_int_equal(length, 1);
    assert_int_equal(id, 256);
    mm2_encoding_free(e);
    assert_int_equal(mm2_tokenizer_decode(NULL, &id, 1, 0, out, 4), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_decode(t, NULL, 1, 0, out, 4), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_decode(t, &id, -1, 0, out, 4), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_decode(t, &id, 1, 0, NULL, 4), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_decode(t, &id, 1, 4, out, 4), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_added(NULL, &id, 1), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_added(t, &id, -1), MM2_E_ARG);
    assert_int_equal(mm2_tokenizer_added(t, NULL, 1), MM2_E_ARG);
    assert_null(mm2_tokenizer_token(t, -1, &length));
    assert_null(mm2_tokenizer_token(t, 303, &length));
    assert_null(mm2_tokenizer_token(NULL, 0, &length));
    assert_int_equal(mm2_text_complete(NULL, 1), MM2_E_ARG);
    assert_int_equal(mm2_text_complete("a", -1), MM2_E_ARG);
    mm2_tokenizer_release(t);
}

static void normalizes(void **state)
{
    (void)state;
    mm2_tokenizer *t = make(&(parts){0});
    mm2_tokenizer *raw = make(&(parts){.normalizer = "null"});
    EXPECT(t, "e\xcc\x81", 0, 0xc3, 0xa9);
    EXPECT(raw, "e\xcc\x81", 0, 'e', 0xcc, 0x81);
    EXPECT(t, "\xe2\x84\xab", 0, 0xc3, 0x85);                         /* angstrom sign */
    EXPECT(t, "\xe0\xa5\x98", 0, 0xe0, 0xa4, 0x95, 0xe0, 0xa4, 0xbc); /* composition exclusion */
    EXPECT(t, "\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", 0, 0xea, 0xb0, 0x81); /* Hangul */
    EXPECT(t, "q\xcc\x81\xcc\xa3", 0, 'q', 0xcc, 0xa3, 0xcc, 0x81); /* marks in order of class */
    EXPECT(t, "x\xc3\xa9y", 0, 'x', 0xc3, 0xa9, 'y');
    mm2_tokenizer_release(t);
    mm2_tokenizer_release(raw);
}

static void splits_as_the_family_does(void **state)
{
    (void)state;
    static const struct {
        const char *text, *pieces; /* joined by | */
    } cases[] = {
        {"Hello world", "Hello| world"},
        {"it's I'LL", "it's| I'LL"},
        {"12345", "123|45"},
        {"a  b\n\n  c", "a| | b|\n\n| | c"},
        {";\n/", ";\n/"},
        {"tail  ", "tail|  "},
        {"HTMLParser camelCase", "HTMLParser| camel|Case"},
        {"\xe1\xa0\x8e"
         "a",
         "\xe1\xa0\x8e"
         "a"}, /* U+180E is no space */
        {"  \xe1\xa0\x8e", " | \xe1\xa0\x8e"},
        {"a\xc2\x85"
         "b",
         "a|\xc2\x85"
         "b"},
        {"\xf0\xb1\x8d\x90's", "\xf0\xb1\x8d\x90's"}, /* U+31350: a letter since Unicode 15 */
        {"\xe0\xa2\x97"
         "a",
         "\xe0\xa2\x97"
         "a"}, /* U+0897: a mark since Unicode 16 */
    };
    mm2_split *s;
    int64_t steps = MILLION;
    assert_int_equal(mm2_split_new(&s, mm2_split_family, (int64_t)strlen(mm2_split_family), 1), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mm2_pieces walk;
        char joined[256] = "";
        const char *piece;
        int64_t n;
        assert_int_equal(
            mm2_pieces_begin(&walk, s, cases[i].text, (int64_t)strlen(cases[i].text), &steps), 0);
        while (mm2_pieces_next(&walk, &piece, &n) > 0) {
            if (*joined)
                strcat(joined, "|");
            strncat(joined, piece, (size_t)n);
        }
        mm2_pieces_end(&walk);
        assert_string_equal(joined, cases[i].pieces);
    }
    mm2_split_free(s);
}

static void gaps_are_kept_or_dropped(void **state)
{
    (void)state;
    mm2_tokenizer *keep = make(&(parts){
        .split =
            "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-c]+\"},\"behavior\":\"Isolated\"}"});
    mm2_tokenizer *drop = make(
        &(parts){.split = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-c]+\"},\"behavior\":"
                          "\"Removed\",\"invert\":true}"});
    EXPECT(keep, "-ab+abc=", 0, '-', 256, '+', 258, '=');
    EXPECT(drop, "-ab+abc=", 0, 256, 258);
    mm2_tokenizer_release(keep);
    mm2_tokenizer_release(drop);
}

/* ----------------------------------------------------------------------------------------------
 * What it refuses: tokenizer files */

static void t1_ids(void **state)
{
    (void)state;
    static const struct {
        const char *words;
        const char *word;
    } cases[] = {
        {",\"ab\":255", "two tokens"},
        {",\"ab\":-1", "whole number"},
        {",\"ab\":2147483648", "has id 2147483648"},
        {",\"ab\":9007199254740993", "has id 9007199254740993"},
        {",\"ab\":1048576", "has id 1048576"},
        {",\"ab\":18446744073709551616", "below 2^63"},
        {",\"ab\":256.0", "whole number"},
        {",\"ab\":1e3", "whole number"},
        {",\"ab\":007", "a value"},
        {",\"ab\":\"256\"", "whole number"},
        {",\"ab\":null", "whole number"},
        {",\"ab\":256,\"ab\":257", "the same"},
        {",\"ab\":256,\"\\u0061b\":257", "the same"},
        {",\"ab\" 256", "a colon"},
        {",\"ab\":256,", "a string"},
        {",\"a b\":256", "printable spelling"},
        {",\"\xc3\":256", "valid UTF-8"},
        {",\"\":256", "0 bytes"},
        {",\"a\\ud800b\":256", "escape"},
        {",\"a\\udc00b\":256", "escape"},
        {",\"a\\u0000b\":256", "escape"},
        {",\"a\nb\":256", "escape"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(&(parts){.words = cases[i].words, .merges = "[]"}, MM2_E_FORMAT, cases[i].word);
    refuse(&(parts){.vocab = "{\"a\":0}", .merges = "[]"}, MM2_E_FORMAT, "the byte 0");
    refuse(&(parts){.vocab = "{}", .merges = "[]"}, MM2_E_FORMAT, "the byte 0");
    refuse(&(parts){.vocab = "[]", .merges = "[]"}, MM2_E_FORMAT, "an object");
    refuse(&(parts){.vocab = "3", .merges = "[]"}, MM2_E_FORMAT, "model.vocab");
    refuse(&(parts){.merges = "null"}, MM2_E_FORMAT, "model.merges");
    /* gaps are allowed: such ids have no token */
    mm2_tokenizer *t = make(&(parts){.words = ",\"ab\":290", .merges = "[\"a b\"]"});
    int32_t length = -1, gap[] = {280, 290, 299};
    char out[8];
    EXPECT(t, "ab", 0, 290);
    assert_int_equal(mm2_tokenizer_decode(t, gap, 3, 0, out, 8), 2);
    assert_non_null(mm2_tokenizer_token(t, 280, &length));
    assert_int_equal(length, 0);
    mm2_tokenizer_release(t);
}

static void t2_merges(void **state)
{
    (void)state;
    static const struct {
        const char *merges, *word;
    } cases[] = {
        {"[\"zz a\"]", "no left side"},
        {"[\"a zz\"]", "no right side"},
        {"[\"c c\"]", "no token for both"},
        {"[\"a b c\"]", "printable spelling"},
        {"[\"ab\"]", "two tokens"},
        {"[\" ab\"]", "two tokens"},
        {"[\"ab \"]", "two tokens"},
        {"[\"\"]", "two tokens"},
        {"[\"a b\",\"a b\"]", "merges 0 and 1"},
        {"[[\"a\",\"b\"],\"a b\"]", "merges 0 and 1"},
        {"[[\"a\"]]", "fewer strings"},
        {"[[\"a\",\"b\",\"c\"]]", "more strings"},
        {"[[\"a\",3]]", "a string"},
        {"[7]", "a string"},
        {"[[[\"a\",\"b\"]]]", "a string"},
        {"[\"a b\",]", "a value"},
        {"[\"a b\" \"b c\"]", "a comma or ]"},
        {"{\"a\":\"b\"}", "an array"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(&(parts){.merges = cases[i].merges}, MM2_E_FORMAT, cases[i].word);
    enum { MANY = (1 << 21) + 1 };
    char *many = malloc(2 * MANY + 2);
    for (int i = 0; i < MANY; i++)
        memcpy(many + 1 + 2 * i, "0,", 2);
    many[0] = '[';
    many[2 * MANY] = ']';
    many[2 * MANY + 1] = 0;
    refuse(&(parts){.merges = many}, MM2_E_FORMAT, "2097153 merges");
    free(many);
}

static void t3_added_tokens(void **state)
{
    (void)state;
    static const struct {
        const char *added;
        mm2_status status;
        const char *word;
    } cases[] = {
        {"[{\"id\":1048576,\"content\":\"<x>\"}]", MM2_E_FORMAT, "1048576"},
        {"[{\"id\":-3,\"content\":\"<x>\"}]", MM2_E_FORMAT, "id -3"},
        {"[{\"id\":4294967296,\"content\":\"<x>\"}]", MM2_E_FORMAT, "4294967296"},
        {"[{\"id\":300,\"content\":\"\"}]", MM2_E_FORMAT, "0 bytes"},
        {"[{\"id\":300}]", MM2_E_FORMAT, "content"},
        {"[{\"content\":\"<x>\"}]", MM2_E_FORMAT, "integer id"},
        {"[{\"id\":\"300\",\"content\":\"<x>\"}]", MM2_E_FORMAT, "integer id"},
        {"[3]", MM2_E_FORMAT, "integer id"},
        {"{}", MM2_E_FORMAT, "not a list"},
        {"[{\"id\":300,\"content\":\"<x>\"},{\"id\":300,\"content\":\"<y>\"}]", MM2_E_FORMAT,
         "two tokens"},
        {"[{\"id\":300,\"content\":\"<x>\"},{\"id\":301,\"content\":\"<x>\"}]", MM2_E_FORMAT,
         "the same"},
        {"[{\"id\":258,\"content\":\"<x>\"}]", MM2_E_FORMAT, "among the words"},
        {"[{\"id\":300,\"content\":\"abc\"}]", MM2_E_FORMAT, "among the words"},
        {"[{\"id\":300,\"content\":\"<x>\",\"lstrip\":true}]", MM2_E_UNSUPPORTED, "lstrip"},
        {"[{\"id\":300,\"content\":\"<x>\",\"single_word\":true}]", MM2_E_UNSUPPORTED,
         "single_word"},
        {"[{\"id\":300,\"content\":\"\xc3\xa9\",\"normalized\":true}]", MM2_E_UNSUPPORTED, "ASCII"},
        {"[{\"id\":300,\"content\":\"<x>\",\"special\":1}]", MM2_E_FORMAT, "special"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(&(parts){.added = cases[i].added}, cases[i].status, cases[i].word);

    /* an added token that is one of the words, too, keeps its id and its merge */
    mm2_tokenizer *t =
        make(&(parts){.added = "[{\"id\":258,\"content\":\"abc\",\"special\":true}]"});
    EXPECT(t, "abcabc", MM2_SPECIAL, 258, 258);
    EXPECT(t, "abc", 0, 258);
    mm2_tokenizer_release(t);

    /* overlapping: the leftmost, then the longest */
    t = make(&(parts){.added = "[{\"id\":300,\"content\":\"<<\",\"special\":true},"
                               "{\"id\":301,\"content\":\"<<a\",\"special\":true},"
                               "{\"id\":302,\"content\":\"<a>\",\"special\":true}]"});
    EXPECT(t, "<<a>", MM2_SPECIAL, 301, '>');
    EXPECT(t, "<<<a>", MM2_SPECIAL, 300, 302);
    EXPECT(t, "<<<", MM2_SPECIAL, 300, '<');
    mm2_tokenizer_release(t);

    enum { MANY = 100000 };
    char *many = NULL;
    size_t size;
    FILE *f = open_memstream(&many, &size);
    for (int i = 0; i < MANY; i++)
        fprintf(f, "%s{\"id\":%d,\"content\":\"<%d>\",\"special\":true}", i ? "," : "[", 300 + i,
                i);
    fputs("]", f);
    fclose(f);
    t = make(&(parts){.added = many});
    EXPECT(t, "<99999><4>", MM2_SPECIAL, 300 + 99999, 304);
    mm2_tokenizer_release(t);
    free(many);
}

static void t4_byte_tokens_are_plain_text(void **state)
{
    (void)state;
    mm2_tokenizer *t =
        make(&(parts){.words = ",\"<0x-1>\":256,\"<0x100>\":257,\"<0xZZ>\":258", .merges = "[]"});
    assert_int_equal(mm2_tokenizer_id(t, "<0x-1>", 6), 256);
    EXPECT(t, "<0x100>", 0, '<', '0', 'x', '1', '0', '0', '>');
    mm2_tokenizer_release(t);
}

static void t5_long_tokens(void **state)
{
    (void)state;
    enum { LONG = 10000000 };
    char *words = malloc(LONG + 16);
    memcpy(words, ",\"", 2);
    memset(words + 2, 'a', LONG);
    memcpy(words + 2 + LONG, "\":256", 6);
    refuse(&(parts){.words = words}, MM2_E_FORMAT, "longer than 2048 bytes");
    memcpy(words + 2 + 1025, "\":256", 6);
    refuse(&(parts){.words = words}, MM2_E_FORMAT, "1025 bytes");
    memcpy(words + 2 + 1024, "\":256", 6);
    mm2_tokenizer_release(make(&(parts){.words = words, .merges = "[]"}));
    free(words);
}

static void t6_patterns(void **state)
{
    (void)state;
    static const struct {
        const char *pattern; /* as JSON text */
        mm2_status status;
        const char *word;
    } cases[] = {
        {"(?R)", MM2_E_UNSUPPORTED, "a group"},
        {"(?<=a)b", MM2_E_UNSUPPORTED, "a group"},
        {"(?<n>a)", MM2_E_UNSUPPORTED, "a group"},
        {"(*LIMIT_MATCH=1)a", MM2_E_UNSUPPORTED, "a verb"},
        {"(a)\\\\1", MM2_E_UNSUPPORTED, "an escape"},
        {"\\\\w+", MM2_E_UNSUPPORTED, "an escape"},
        {"\\\\p{Han}", MM2_E_UNSUPPORTED, "category"},
        {"\\\\pL", MM2_E_UNSUPPORTED, "category"},
        {"[[:alpha:]]", MM2_E_UNSUPPORTED, "a class in a class"},
        {"[a-z&&b]", MM2_E_UNSUPPORTED, "a class in a class"},
        {"a++", MM2_E_UNSUPPORTED, "possessive"},
        {"a\\\\", MM2_E_UNSUPPORTED, "an escape"},
        {"[ab", MM2_E_FORMAT, "inside a class"},
        {"(a", MM2_E_FORMAT, "does not compile"},
        {"\\\\p{Xx}", MM2_E_FORMAT, "does not compile"},
        {"(((a{9999}){9999}){9999}){9999}", MM2_E_FORMAT, "does not compile"},
        {"", MM2_E_FORMAT, "0 bytes"},
    };
    char split[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(split, sizeof split, FAMILY_SPLIT, cases[i].pattern);
        refuse(&(parts){.split = split}, cases[i].status, cases[i].word);
    }
    refuse(&(parts){.split = "{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":"
                             "\"Isolated\"}"},
           MM2_E_UNSUPPORTED, "pattern");
    refuse(&(parts){.split = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":"
                             "\"MergedWithNext\"}"},
           MM2_E_UNSUPPORTED, "MergedWithNext");
    refuse(&(parts){.split = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":"
                             "\"Removed\"}"},
           MM2_E_UNSUPPORTED, "Removed");
    /* exponential: a limit ends it, and the tokenizer goes on working */
    snprintf(split, sizeof split, FAMILY_SPLIT, "(?:a*)*b|(?:a|a)*c");
    mm2_tokenizer *t = make(&(parts){.split = split});
    char text[64];
    memset(text, 'a', sizeof text);
    assert_int_equal(mm2_tokenizer_encode(t, text, 64, 0, NULL, 0), MM2_E_UNSUPPORTED);
    assert_non_null(strstr(mm2_status_text(), "too costly"));
    EXPECT(t, "xb", 0, 'x', 'b');
    mm2_tokenizer_release(t);
}

static char *repeat(const char *piece, int64_t length)
{
    char *out = malloc((size_t)length + 1);
    int64_t size = (int64_t)strlen(piece);
    for (int64_t i = 0; i < length; i++)
        out[i] = piece[i % size];
    out[length] = 0;
    return out;
}

/* Encoding fails as too costly before it has come far. */
static void expect_costly(const mm2_tokenizer *t, const char *text, int64_t length, int64_t far)
{
    assert_int_equal(mm2_tokenizer_encode(t, text, (int32_t)length, MM2_SPECIAL, NULL, 0),
                     MM2_E_UNSUPPORTED);
    const char *at = strstr(mm2_status_text(), "at byte ");
    assert_non_null(strstr(mm2_status_text(), "too costly"));
    assert_non_null(at);
    assert_in_range(atoll(at + 8), 0, far);
}

/* A pattern that looks ahead to the end of the text at every byte is quadratic: the steps of all
 * matches count together, and those of all stretches between added tokens. */
static void t16_quadratic_patterns(void **state)
{
    (void)state;
    enum { LONG = 200000, SHORT = 400 };
    static const char *const patterns[] = {"a(?![^b]*b)", "a(?=[^b]*|c)", "a(?!a*b)"};
    char split[512];
    int32_t ids[LONG];
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        snprintf(split, sizeof split, FAMILY_SPLIT, patterns[i]);
        mm2_tokenizer *t = make(&(parts){
            .split = split, .added = "[{\"id\":300,\"content\":\"<x>\",\"special\":true}]"});
        char *text = repeat("a", LONG);
        expect_costly(t, text, LONG, LONG / 2);
        assert_int_equal(mm2_tokenizer_encode(t, text, 1000, 0, ids, LONG), 1000);
        for (int stretch = 0; (stretch + 1) * (SHORT + 3) < LONG; stretch++)
            memcpy(text + stretch * (SHORT + 3) + SHORT, "<x>", 3);
        assert_int_equal(mm2_tokenizer_encode(t, text, LONG, MM2_SPECIAL, ids, LONG),
                         MM2_E_UNSUPPORTED);
        mm2_encoding *e;
        int32_t count;
        assert_int_equal(mm2_encoding_new(&e, t, text, LONG, MM2_SPECIAL), MM2_OK);
        for (int again = 0; again < 2; again++) { /* one that failed does not go on */
            assert_int_equal(mm2_encoding_run(e, 0, ids, LONG, &count), MM2_E_UNSUPPORTED);
            assert_int_equal(count, 0);
        }
        mm2_encoding_free(e);
        free(text);
        mm2_tokenizer_release(t);
    }
}

/* The family's pattern costs few steps a byte whatever the text: it is not counted, and a spelling
 * of it that is counted gives the same ids. */
static void t17_the_familys_pattern_is_linear(void **state)
{
    (void)state;
    enum { LONG = 300000, IDS = 3 * LONG };
    static const char *const pieces[] = {"a",
                                         "A",
                                         " ",
                                         "\n",
                                         "!",
                                         "/",
                                         "7",
                                         "a ",
                                         " a",
                                         "A a",
                                         "aA",
                                         "A\xcc\x81",
                                         "\xcc\x81",
                                         "  \n",
                                         "\n ",
                                         "'s",
                                         "'S'",
                                         "!a",
                                         "\xe4\xb8\x80",
                                         "\xe4\xb8\x80"
                                         "A",
                                         "A\xe4\xb8\x80",
                                         " !",
                                         "!/\n",
                                         "7 ",
                                         "7a",
                                         "7!"};
    char escaped[1024], spelled[1200], *to = escaped;
    for (const char *p = mm2_split_family; *p; *to++ = *p++)
        if (*p == '\\')
            *to++ = '\\';
    *to = 0;
    snprintf(spelled, sizeof spelled, FAMILY_SPLIT, "");
    char *hole = strstr(spelled, "\"Regex\":\"") + 9;
    memmove(hole + strlen(escaped) + 4, hole, strlen(hole) + 1);
    memcpy(hole, "(?:", 3);
    memcpy(hole + 3, escaped, strlen(escaped));
    hole[3 + strlen(escaped)] = ')';
    mm2_tokenizer *counted = make(&(parts){.split = spelled}), *plain = make(&(parts){0});
    int32_t *one = malloc(IDS * sizeof *one), *two = malloc(IDS * sizeof *two);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        char *text = repeat(pieces[i], LONG);
        text[LONG - 1] = 'a';
        text[LONG - 2] = text[LONG - 3] = ' '; /* no broken character */
        int32_t n = mm2_tokenizer_encode(counted, text, LONG, 0, one, IDS);
        assert_in_range(n, 1, IDS);
        assert_int_equal(mm2_tokenizer_encode(plain, text, LONG, 0, two, IDS), n);
        assert_memory_equal(one, two, (size_t)n * sizeof *one);
        free(text);
    }
    free(one);
    free(two);
    mm2_tokenizer_release(counted);
    mm2_tokenizer_release(plain);
}

/* Added tokens that go on like the text for long and then do not. */
static void t18_added_tokens_with_long_beginnings(void **state)
{
    (void)state;
    enum { LONG = 300000, TOKENS = 500 };
    char *list = NULL;
    size_t size;
    FILE *f = open_memstream(&list, &size);
    for (int i = 0; i < TOKENS; i++) {
        char *run = repeat("a", 500 + i);
        fprintf(f, "%s{\"id\":%d,\"content\":\"%sz\",\"special\":true}", i ? "," : "[", 300 + i,
                run);
        free(run);
    }
    fputc(']', f);
    fclose(f);
    mm2_tokenizer *t = make(&(parts){.added = list});
    char *text = repeat("a", LONG);
    int32_t ids[2];
    expect_costly(t, text, LONG, LONG / 2);
    assert_in_range(mm2_tokenizer_encode(t, text, LONG, 0, NULL, 0), 1, LONG);
    text[509] = 'z';
    assert_int_equal(mm2_tokenizer_encode(t, text, 510, MM2_SPECIAL, ids, 2), 1);
    assert_int_equal(ids[0], 309);
    free(text);
    free(list);
    mm2_tokenizer_release(t);
}

static void t7_nesting(void **state)
{
    (void)state;
    enum { DEEP = 10000 };
    char *deep = NULL;
    size_t size;
    FILE *f = open_memstream(&deep, &size);
    for (int i = 0; i < DEEP; i++)
        fputs("{\"type\":\"Sequence\",\"normalizers\":[", f);
    fputs("{\"type\":\"NFC\"}", f);
    for (int i = 0; i < DEEP; i++)
        fputs("]}", f);
    fclose(f);
    refuse(&(parts){.normalizer = deep}, MM2_E_FORMAT, "levels of nesting");
    free(deep);
    char *brackets = malloc(MILLION);
    memset(brackets, '[', MILLION);
    refuse_text(brackets, MILLION, MM2_E_FORMAT, "expected an object");
    free(brackets);
    refuse(&(parts){.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Sequence\","
                                  "\"normalizers\":[]}]}"},
           MM2_E_UNSUPPORTED, "Sequence");
    mm2_tokenizer_release(make(
        &(parts){.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}"}));
}

static void t8_unknown_components(void **state)
{
    (void)state;
    refuse(&(parts){.normalizer = "{\"type\":\"Lowercase\"}"}, MM2_E_UNSUPPORTED, "Lowercase");
    refuse(&(parts){.normalizer = "7"}, MM2_E_UNSUPPORTED, "normalizer");
    refuse(&(parts){.pre = "null"}, MM2_E_UNSUPPORTED, "pre_tokenizer");
    refuse(&(parts){.pre = "{\"type\":\"Whitespace\"}"}, MM2_E_UNSUPPORTED, "Whitespace");
    refuse(&(parts){.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[]}"}, MM2_E_UNSUPPORTED,
           "Sequence");
    refuse(&(parts){.decoder = "null"}, MM2_E_UNSUPPORTED, "decoder");
    refuse(&(parts){.decoder = "{\"type\":\"WordPiece\"}"}, MM2_E_UNSUPPORTED, "WordPiece");
    refuse(&(parts){.settings = "\"ignore_merges\":true,"}, MM2_E_UNSUPPORTED, "ignore_merges");
    refuse(&(parts){.settings = "\"dropout\":0.1,"}, MM2_E_UNSUPPORTED, "dropout");
    refuse(&(parts){.settings = "\"end_of_word_suffix\":\"</w>\","}, MM2_E_UNSUPPORTED,
           "end_of_word_suffix");
    refuse(&(parts){.settings = "\"type\":\"BPE\","}, MM2_E_FORMAT, "\"type\" appears twice");
    refuse(&(parts){.settings = "\"vocab\":{},"}, MM2_E_FORMAT, "\"vocab\" appears twice");
    refuse_text("{\"model\":{\"type\":\"Unigram\"}}", 28, MM2_E_UNSUPPORTED, "Unigram");
    refuse_text("{}", 2, MM2_E_UNSUPPORTED, "model");
    refuse_text("[]", 2, MM2_E_FORMAT, "expected an object");
    refuse_text("", 0, MM2_E_FORMAT, "JSON");
    refuse_text("\xef\xbb\xbf{}", 5, MM2_E_FORMAT, "JSON");
    refuse_text("{}", (64 << 20) + 1, MM2_E_FORMAT, "67108865 bytes");
}

/* Every truncation fails; no damaged bit does more than make it fail. */
static void damaged_documents(void **state)
{
    (void)state;
    char *json = document(&(parts){0});
    int64_t length = (int64_t)strlen(json);
    mm2_tokenizer *t;
    for (int64_t n = 0; n < length; n++) {
        char *cut = malloc((size_t)n + 1); /* of its own, so that reading beyond it is seen */
        memcpy(cut, json, (size_t)n);
        assert_true(mm2_tokenizer_from_json(&t, cut, n, "cut.json") < 0);
        free(cut);
    }
    for (int64_t bit = 0; bit < 8 * length; bit += 5) {
        json[bit / 8] ^= (char)(1 << bit % 8);
        mm2_status status = mm2_tokenizer_from_json(&t, json, length, "flip.json");
        assert_true(status == MM2_OK || status == MM2_E_FORMAT || status == MM2_E_UNSUPPORTED);
        assert_true((t != NULL) == (status == MM2_OK));
        if (t)
            assert_true(mm2_tokenizer_encode(t, "abc [e~[", 8, MM2_SPECIAL, NULL, 0) > 0);
        mm2_tokenizer_release(t);
        json[bit / 8] ^= (char)(1 << bit % 8);
    }
    free(json);
}

/* ----------------------------------------------------------------------------------------------
 * What it survives: texts */

static void t9_invalid_utf8(void **state)
{
    (void)state;
    mm2_tokenizer *t = make(&(parts){0});
    EXPECT(t, "a\xff", 0, 'a', 0xef, 0xbf, 0xbd);
    EXPECT(t, "\xe2\x82", 0, 0xef, 0xbf, 0xbd);       /* cut short: one */
    EXPECT(t, "\xe2\x82x", 0, 0xef, 0xbf, 0xbd, 'x'); /* maximal subpart: one */
    EXPECT(t, "\xed\xa0\x80", 0, 0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd);
    EXPECT(t, "\xc0\xaf", 0, 0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd);
    EXPECT(t, "\xf0\x90\x80z", 0, 0xef, 0xbf, 0xbd, 'z');
    EXPECT(t, "\xf4\x90", 0, 0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd);
    EXPECT(t, "\0a\0", 0, 0, 'a', 0);
    mm2_tokenizer_release(t);
}

typedef struct long_text {
    const mm2_tokenizer *t;
    char *text;
    int32_t length, count;
} long_text;

static void *encode_on_small_stack(void *argument)
{
    long_text *job = argument;
    job->count = mm2_tokenizer_encode(job->t, job->text, job->length, 0, NULL, 0);
    return NULL;
}

/* `what` repeated to `length` bytes: so many ids, in linear time, on a stack of 64 KiB. */
static void expect_long(const mm2_tokenizer *t, const char *what, int32_t length, int32_t want)
{
    int32_t n = (int32_t)strlen(what);
    long_text job = {t, malloc((size_t)length), length, 0};
    pthread_attr_t attributes;
    pthread_t thread;
    for (int32_t i = 0; i < length; i++)
        job.text[i] = what[i % n];
    double start = seconds();
    pthread_attr_init(&attributes);
#ifndef __SANITIZE_ADDRESS__ /* whose frames are larger */
    pthread_attr_setstacksize(&attributes, 64 << 10);
#endif
    assert_int_equal(pthread_create(&thread, &attributes, encode_on_small_stack, &job), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    assert_int_equal(job.count, want);
    assert_true(seconds() - start < 60); /* quadratic would be hours */
    free(job.text);
}

static void t10_long_runs(void **state)
{
    (void)state;
    mm2_tokenizer *t = make(&(parts){0});
    expect_long(t, "Z", 131072, 131072);
    expect_long(t, "\n", MILLION, MILLION);
    expect_long(t, " ", MILLION, MILLION / 2);
    expect_long(t, "7", MILLION, MILLION);
    expect_long(t, "!", MILLION, MILLION);
    expect_long(t, "\xcc\x81", 2 * MILLION, 2 * MILLION);
    expect_long(t, "\xcc\x81\xcc\xa3", 2 * MILLION, 2 * MILLION); /* to be put in order */
    expect_long(t, "\xff", MILLION, 3 * MILLION);
    expect_long(t, "abc", WORD / 3 * 3, WORD / 3);
    mm2_tokenizer_release(t);
}

static void t11_control_tokens_stay_text(void **state)
{
    (void)state;
    mm2_tokenizer *t = make(&(parts){0});
    EXPECT(t, "[e~[", 0, '[', 'e', '~', '[');
    EXPECT(t, "a[e~[<think>", MM2_SPECIAL, 'a', 300, 301);
    EXPECT(t, "<think>", 0, '<', 't', 'h', 'i', 'n', 'k', '>');
    EXPECT(t, "a<go>", MM2_SPECIAL, 'a', 302);
    EXPECT(t, "<go>", 0, '<', 'g', 'o', '>');
    /* '>' and U+0338 compose: <think> is cut out before that, <go>, a normalized one, after */
    EXPECT(t, "<think>\xcc\xb8", MM2_SPECIAL, 301, 0xcc, 0xb8);
    EXPECT(t, "<go>\xcc\xb8", MM2_SPECIAL, '<', 'g', 'o', 0xe2, 0x89, 0xaf);
    EXPECT(t, "[e~[[e~[", MM2_SPECIAL, 300, 300);
    int32_t ids[] = {'a', 300, 301, 'b'};
    char out[32];
    assert_int_equal(mm2_tokenizer_decode(t, ids, 4, 0, out, 32), 9);
    assert_memory_equal(out, "a<think>b", 9); /* not special in the file, so shown */
    assert_int_equal(mm2_tokenizer_decode(t, ids, 4, MM2_SPECIAL, out, 32), 13);
    assert_memory_equal(out, "a[e~[<think>b", 13);
    mm2_tokenizer_release(t);
}

static void t12_decoding_bad_ids(void **state)
{
    (void)state;
    mm2_tokenizer *t = make(&(parts){0});
    static const int32_t bad[] = {-1, 303, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++) {
        int32_t ids[] = {'a', bad[i]};
        char out[4] = "--";
        assert_int_equal(mm2_tokenizer_decode(t, ids, 2, 0, out, 4), MM2_E_ARG);
        assert_non_null(strstr(mm2_status_text(), "index 1"));
        assert_string_equal(out, "--");
    }
    mm2_tokenizer_release(t);
}

static void t13_incomplete_characters(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        int32_t complete;
    } cases[] = {
        {"", 0},
        {"abc", 3},
        {"a\xc3", 1},
        {"a\xc3\xa9", 3},
        {"a\xe2\x82", 1},
        {"a\xe2\x82\xac", 4},
        {"\xf0\x9f\x98", 0},
        {"\xf0\x9f\x98\x80", 4},
        {"\xf0\x9f", 0},
        {"a\xff", 2}, /* never becomes a character */
        {"a\x80", 2},
        {"\xe0\x80", 2},
        {"\xed\xa0", 2},
        {"\xf4\x90", 2},
        {"\xf0\x9f\x98\xc3", 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(mm2_text_complete(cases[i].bytes, (int32_t)strlen(cases[i].bytes)),
                         cases[i].complete);
}

static void t14_empty_and_too_long(void **state)
{
    (void)state;
    mm2_tokenizer *t = make(&(parts){0});
    assert_int_equal(mm2_tokenizer_encode(t, "", 0, 0, NULL, 0), 0);
    assert_int_equal(mm2_tokenizer_encode(t, NULL, 0, MM2_SPECIAL, NULL, 0), 0);
    assert_int_equal(mm2_tokenizer_decode(t, NULL, 0, 0, NULL, 0), 0);
    assert_int_equal(mm2_tokenizer_encode(t, "x", INT32_MAX, 0, NULL, 0), MM2_E_ARG);
    assert_non_null(strstr(mm2_status_text(), "67108864"));
    mm2_tokenizer_release(t);
}

/* ----------------------------------------------------------------------------------------------
 * GGUF vocabularies */

enum { GGUF_TOKENS = 262 };

typedef struct gguf { /* 256 bytes, "ab", a control, a user-defined and two unused tokens, "abc" */
    char spelled[256][3];
    const char *tokens[GGUF_TOKENS];
    uint32_t lengths[GGUF_TOKENS];
    int32_t types[GGUF_TOKENS];
    const char *merges[2];
    uint32_t merge_lengths[2];
    mm2_vocabulary v;
} gguf;

static void fill(gguf *g)
{
    static const char *const more[] = {"ab", "[e~[", "<think>", "[PAD1]", "abc", "[PAD2]"};
    static const int32_t types[] = {1, 3, 4, 5, 1, 5};
    int next = 0x100;
    memset(g, 0, sizeof *g);
    for (int i = 0; i < GGUF_TOKENS; i++) {
        int printable = (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i != 0xad);
        if (i < 256)
            mm2_utf8_put((uint8_t *)g->spelled[i], printable ? i : next++);
        g->tokens[i] = i < 256 ? g->spelled[i] : more[i - 256];
        g->types[i] = i < 256 ? 1 : types[i - 256];
        g->lengths[i] = (uint32_t)strlen(g->tokens[i]);
    }
    g->merges[0] = "a b";
    g->merges[1] = "ab c";
    g->merge_lengths[0] = 3;
    g->merge_lengths[1] = 4;
    g->v = (mm2_vocabulary){GGUF_TOKENS,      g->tokens,    g->lengths, g->types, 2,  g->merges,
                            g->merge_lengths, "minimax-m2", -1,         257,      -1, -1};
}

static void refuse_gguf(const gguf *g, mm2_status want, const char *word)
{
    mm2_tokenizer *t;
    assert_int_equal(mm2_tokenizer_from_vocabulary(&t, &g->v, "m.gguf"), want);
    assert_null(t);
    if (!strstr(mm2_status_text(), word))
        print_message("%s\n", mm2_status_text());
    assert_non_null(strstr(mm2_status_text(), word));
    assert_ptr_equal(strstr(mm2_status_text(), "m.gguf: "), mm2_status_text());
}

static void gguf_vocabulary(void **state)
{
    (void)state;
    static gguf g;
    mm2_tokenizer *t;
    mm2_tokenizer_info facts = {.size = sizeof facts};
    fill(&g);
    assert_int_equal(mm2_tokenizer_from_vocabulary(&t, &g.v, "m.gguf"), MM2_OK);
    assert_int_equal(mm2_tokenizer_describe(t, &facts), MM2_OK);
    assert_int_equal(facts.vocab_size, GGUF_TOKENS);
    assert_int_equal(facts.eos, 257);
    assert_int_equal(facts.think_open, 258);
    EXPECT(t, "abc ab[e~[[PAD1]", MM2_SPECIAL, 260, ' ', 256, 257, '[', 'P', 'A', 'D', '1', ']');
    EXPECT(t, "e\xcc\x81", 0, 0xc3, 0xa9); /* NFC, though the file does not say so */
    EXPECT(t, ";\n/", 0, ';', '\n', '/');
    int32_t ids[] = {260, 257, 258, 259, 261};
    char out[32];
    assert_int_equal(mm2_tokenizer_decode(t, ids, 5, 0, out, 32), 10);
    assert_memory_equal(out, "abc<think>", 10);
    mm2_tokenizer_release(t);

    g.v.pre = "llama-bpe";
    refuse_gguf(&g, MM2_E_UNSUPPORTED, "llama-bpe");
    g.v.pre = NULL;
    refuse_gguf(&g, MM2_E_UNSUPPORTED, "absent");
    fill(&g);
    g.types[7] = 6;
    refuse_gguf(&g, MM2_E_UNSUPPORTED, "type 6");
    fill(&g);
    g.types[7] = 5;
    refuse_gguf(&g, MM2_E_FORMAT, "byte 7");
    fill(&g);
    g.merge_lengths[1] = 2;
    refuse_gguf(&g, MM2_E_FORMAT, "merge 1");
    fill(&g);
    g.v.eos = GGUF_TOKENS; /* an id without a token: the format's own stays */
    assert_int_equal(mm2_tokenizer_from_vocabulary(&t, &g.v, "m.gguf"), MM2_OK);
    assert_int_equal(mm2_tokenizer_describe(t, &facts), MM2_OK);
    assert_int_equal(facts.eos, 257);
    mm2_tokenizer_release(t);
    fill(&g);
    g.v.count = 0;
    refuse_gguf(&g, MM2_E_FORMAT, "0 entries");
    g.v.count = (1 << 20) + 1;
    refuse_gguf(&g, MM2_E_FORMAT, "1048577 entries");
    fill(&g);
    g.v.merge_count = 1 << 21;
    refuse_gguf(&g, MM2_E_FORMAT, "2097152 merges");
    g.v.merge_count = -1;
    refuse_gguf(&g, MM2_E_FORMAT, "-1 merges");
    fill(&g);
    g.tokens[260] = "ab";
    g.lengths[260] = 2;
    refuse_gguf(&g, MM2_E_FORMAT, "the same");
    fill(&g);
    g.lengths[256] = 0;
    refuse_gguf(&g, MM2_E_FORMAT, "0 bytes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_lowest_rank_first),
        cmocka_unit_test(merges_as_the_plain_loop_does),
        cmocka_unit_test(counts_beyond_cap),
        cmocka_unit_test(encodes_in_parts),
        cmocka_unit_test(a_word_can_be_left_in_its_middle),
        cmocka_unit_test(tokens_and_ids),
        cmocka_unit_test(arguments),
        cmocka_unit_test(normalizes),
        cmocka_unit_test(splits_as_the_family_does),
        cmocka_unit_test(gaps_are_kept_or_dropped),
        cmocka_unit_test(t1_ids),
        cmocka_unit_test(t2_merges),
        cmocka_unit_test(t3_added_tokens),
        cmocka_unit_test(t4_byte_tokens_are_plain_text),
        cmocka_unit_test(t5_long_tokens),
        cmocka_unit_test(t6_patterns),
        cmocka_unit_test(t7_nesting),
        cmocka_unit_test(t8_unknown_components),
        cmocka_unit_test(damaged_documents),
        cmocka_unit_test(t9_invalid_utf8),
        cmocka_unit_test(t10_long_runs),
        cmocka_unit_test(t11_control_tokens_stay_text),
        cmocka_unit_test(t12_decoding_bad_ids),
        cmocka_unit_test(t13_incomplete_characters),
        cmocka_unit_test(t14_empty_and_too_long),
        cmocka_unit_test(gguf_vocabulary),
        cmocka_unit_test(t16_quadratic_patterns),
        cmocka_unit_test(t17_the_familys_pattern_is_linear),
        cmocka_unit_test(t18_added_tokens_with_long_beginnings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
