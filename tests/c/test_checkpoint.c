/* model/: the JSON reader, configuration checks, the table of tensors, and binding. Whole files,
 * good and bad, are read in tests/python/test_loaders.py and test_hostile_files.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/status.h"
#include "model/config.h"
#include "model/experts.h"
#include "model/gguf.h"
#include "tensor/dtype.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- JSON ---- */

static mm2_json begin(const char *text)
{
    mm2_json j;
    mm2_json_begin(&j, "file", text, (int64_t)strlen(text));
    return j;
}

static void strings_are_decoded(void **state)
{
    static const char *const pairs[][2] = {
        {"\"plain\"", "plain"},
        {" \t\r\n\"\"", ""},
        {"\"a\\n\\t\\\"\\\\\\/\\b\\f\\r\"", "a\n\t\"\\/\b\f\r"},
        {"\"\\u0061\\u00e9\\u20AC\\ud83d\\ude00\"", "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"\"\xc3\xa9\xf0\x9f\x98\x80\"", "\xc3\xa9\xf0\x9f\x98\x80"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char out[64];
        mm2_json j = begin(pairs[i][0]);
        assert_int_equal(MM2_OK, mm2_json_string(&j, out, sizeof out));
        assert_string_equal(pairs[i][1], out);
        assert_int_equal(MM2_OK, mm2_json_end(&j));
    }
}

static void bad_strings_are_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "x",
        "\"",
        "\"open",
        "\"\\",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\"\\ud800x\"",
        "\"\\ud800\\u0061\"",
        "\"\\udc00\"",
        "\"tab\there\"",
        "\"\xff\"",
        "\"\xc3\"",
        "\"\xed\xa0\x80\"",
        "\"\xc0\x80\"",
        "\"\xf4\x90\x80\x80\"",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char out[64];
        mm2_json j = begin(bad[i]), k = j;
        assert_int_equal(MM2_E_FORMAT, mm2_json_string(&j, out, sizeof out));
        assert_int_equal(MM2_E_FORMAT, mm2_json_string(&k, NULL, 0));
    }
}

static void strings_stay_within_their_buffer(void **state)
{
    char out[4];
    mm2_json j = begin("\"abc\"");
    assert_int_equal(MM2_OK, mm2_json_string(&j, out, 4));
    j = begin("\"abcd\"");
    assert_int_equal(MM2_E_FORMAT, mm2_json_string(&j, out, 4));
    j = begin("\"ab\\u00e9\"");
    assert_int_equal(MM2_E_FORMAT, mm2_json_string(&j, out, 4));
}

static void whole_numbers_only(void **state)
{
    static const char *const bad[] = {"",      "-1",
                                      "01",    "1.0",
                                      "1e3",   "9223372036854775808",
                                      "\"1\"", "x",
                                      "[1]",   "99999999999999999999"};
    int64_t value;
    mm2_json j = begin(" 9223372036854775807 ");
    assert_int_equal(MM2_OK, mm2_json_integer(&j, &value));
    assert_true(value == INT64_MAX);
    assert_int_equal(MM2_OK, mm2_json_end(&j));
    j = begin("0");
    assert_int_equal(MM2_OK, mm2_json_integer(&j, &value));
    assert_true(value == 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        j = begin(bad[i]);
        assert_int_equal(MM2_E_FORMAT, mm2_json_integer(&j, &value));
    }
}

static void members_are_stepped_through(void **state)
{
    mm2_json j = begin(" { \"a\" : [1,2 , 3] , \"b\":[ ] } ");
    int object = 0, array = 0;
    int64_t sum = 0, value;
    char key[8];
    assert_int_equal(1, mm2_json_next(&j, '{', &object));
    assert_int_equal(MM2_OK, mm2_json_key(&j, key, sizeof key));
    while (mm2_json_next(&j, '[', &array) > 0) {
        assert_int_equal(MM2_OK, mm2_json_integer(&j, &value));
        sum += value;
    }
    assert_int_equal(6, sum);
    assert_int_equal(1, mm2_json_next(&j, '{', &object));
    assert_int_equal(MM2_OK, mm2_json_key(&j, key, sizeof key));
    assert_string_equal("b", key);
    array = 0;
    assert_int_equal(0, mm2_json_next(&j, '[', &array));
    assert_int_equal(0, mm2_json_next(&j, '{', &object));
    assert_int_equal(MM2_OK, mm2_json_end(&j));
}

static void any_value_is_skipped_to_a_depth(void **state)
{
    static const char *const good[] = {
        "1",    "-1.5e+3", "true",
        "null", "\"s\"",   "[]",
        "{}",   "[[],{}]", "{\"a\":{\"b\":[1,\"2\",{\"c\":null}]},\"d\":[[[]]]}"};
    static const char *const bad[] = {"",        "[",     "{",        "[1,",  "[1 2]",
                                      "{\"a\"}", "{1:2}", "{\"a\":}", "[1,]", "{\"a\":1,}",
                                      "[}",      "{]",    "]",        "[1}",  "{\"a\":1]"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        mm2_json j = begin(good[i]);
        assert_int_equal(MM2_OK, mm2_json_skip(&j));
        assert_int_equal(MM2_OK, mm2_json_end(&j));
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mm2_json j = begin(bad[i]);
        assert_int_equal(MM2_E_FORMAT, mm2_json_skip(&j));
    }
    char deep[2 * MM2_JSON_DEPTH + 3];
    for (int depth = MM2_JSON_DEPTH; depth <= MM2_JSON_DEPTH + 1; depth++) {
        memset(deep, '[', (size_t)depth);
        memset(deep + depth, ']', (size_t)depth);
        deep[2 * depth] = 0;
        mm2_json j = begin(deep);
        assert_int_equal(depth == MM2_JSON_DEPTH ? MM2_OK : MM2_E_FORMAT, mm2_json_skip(&j));
    }
}

static void foreign_text_is_cleaned(void **state)
{
    char out[8];
    mm2_text_clean(out, sizeof out, "a\nb\xff", 4);
    assert_string_equal("a?b?", out);
    mm2_text_clean(out, sizeof out, "abcdef\xc3\xa9", 8); /* does not fit: cut in front of it */
    assert_string_equal("abcdef", out);
    mm2_text_clean(out, sizeof out, "abcde\xc3\xa9xyz", 10);
    assert_string_equal("abcde\xc3\xa9", out);
    mm2_text_clean(out, sizeof out, "", 0);
    assert_string_equal("", out);
}

/* ---- names and shapes ---- */

static void parts_are_told_by_their_names(void **state)
{
    int32_t part, count;
    assert_int_equal(4, mm2_gguf_split_name("a/m2-00002-of-00005.gguf", &part, &count));
    assert_int_equal(2, part);
    assert_int_equal(5, count);
    static const char *const others[] = {"m2.gguf",
                                         "m2-00000-of-00005.gguf",
                                         "",
                                         "m2-00006-of-00005.gguf",
                                         "m2-0001-of-00005.gguf",
                                         "m2-00001-of-00005.ggu",
                                         "-00001-of-00005.gguf",
                                         "m2-0000a-of-00005.gguf"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_int_equal(0, mm2_gguf_split_name(others[i], &part, &count));
}

static void names_are_checked(void **state)
{
    mm2_checkpoint c;
    mm2_entry *e;
    mm2_checkpoint_init(&c);
    assert_int_equal(MM2_OK, mm2_checkpoint_add(&c, "a", "file", &e));
    assert_int_equal(MM2_E_FORMAT, mm2_checkpoint_add(&c, "a", "file", &e));
    assert_non_null(strstr(mm2_status_text(), "twice"));
    assert_int_equal(1, c.entry_count);
    assert_string_equal("a", mm2_checkpoint_find(&c, "a")->name);
    assert_null(mm2_checkpoint_find(&c, "b"));
    mm2_checkpoint_close(&c);
    char longest[MM2_MAX_NAME + 1];
    memset(longest, 'x', sizeof longest);
    assert_true(mm2_checkpoint_can_name("a", 1));
    assert_true(mm2_checkpoint_can_name(longest, MM2_MAX_NAME));
    assert_false(mm2_checkpoint_can_name(longest, MM2_MAX_NAME + 1));
    assert_false(mm2_checkpoint_can_name("", 0));
    assert_false(mm2_checkpoint_can_name("a b", 3));
    assert_false(mm2_checkpoint_can_name("\xc3\xa9", 2));
}

static void tensors_without_a_view_are_named_when_needed(void **state)
{
    static const char *const names[] = {"odd", "listed", "last"};
    mm2_checkpoint c;
    mm2_entry *e;
    int64_t shape[] = {2};
    mm2_checkpoint_init(&c);
    c.path = strdup("directory");
    c.format = "safetensors";
    c.file_count = 1;
    c.files = calloc(1, sizeof *c.files);
    c.files->path = strdup("/dev/null/file");
    assert_int_equal(MM2_OK, mm2_checkpoint_expect(&c, "not seen", "index", 0));
    for (int i = 0; i < 3; i++) {
        assert_int_equal(MM2_OK, mm2_checkpoint_add(&c, names[i], "file", &e));
        assert_int_equal(MM2_OK, i == 0 ? mm2_checkpoint_set_odd(&c, e, "has dtype I64")
                                        : mm2_entry_shape(e, MM2_F32, 1, shape));
    }
    assert_int_equal(MM2_OK, mm2_checkpoint_settle(&c));
    assert_int_equal(2, c.listed);
    assert_int_equal(3, c.entry_count);
    assert_string_equal("listed", c.entries[0].name);
    assert_string_equal("last", c.entries[1].name);
    assert_ptr_equal(&c.entries[1], mm2_checkpoint_find(&c, "last"));
    assert_null(mm2_checkpoint_find(&c, "odd"));
    assert_null(mm2_checkpoint_find(&c, "not seen"));
    assert_true(mm2_checkpoint_has(&c, "odd"));
    assert_false(mm2_checkpoint_has(&c, "not seen"));
    assert_true(mm2_checkpoint_names(&c, "not seen"));
    assert_int_equal(MM2_E_UNSUPPORTED, mm2_checkpoint_missing(&c, "odd", "[2]"));
    assert_non_null(strstr(mm2_status_text(), "\"odd\" has dtype I64; this build reads f32, f16"));
    assert_int_equal(MM2_E_IO, mm2_checkpoint_missing(&c, "not seen", "[2]"));
    assert_int_equal(MM2_E_FORMAT, mm2_checkpoint_missing(&c, "nowhere", "[2]"));
    assert_non_null(strstr(mm2_status_text(), "\"nowhere\" is missing, expected of shape [2]"));
    mm2_checkpoint_close(&c);
    mm2_checkpoint_init(&c);
    assert_int_equal(MM2_E_FORMAT, mm2_checkpoint_settle(&c));
    mm2_checkpoint_close(&c);
}

static void a_name_is_claimed_where_an_index_places_it_and_once(void **state)
{
    static const char *const paths[] = {"first", "second"};
    mm2_checkpoint c;
    mm2_entry *e;
    char name[] = "a"; /* the entry keeps the index's own */
    mm2_checkpoint_init(&c);
    c.file_count = 2;
    c.files = calloc(2, sizeof *c.files);
    for (int i = 0; i < 2; i++)
        c.files[i].path = strdup(paths[i]);
    assert_int_equal(MM2_OK, mm2_checkpoint_expect(&c, "a", "index", 1));
    assert_int_equal(MM2_E_FORMAT, mm2_checkpoint_expect(&c, "a", "index", 0));
    assert_string_equal("index: tensor \"a\" appears twice", mm2_status_text());
    assert_int_equal(0, c.entry_count);
    assert_int_equal(MM2_OK, mm2_checkpoint_claim(&c, "b", 1, &e));
    assert_null(e);
    assert_int_equal(MM2_OK, mm2_checkpoint_claim(&c, "a", 0, &e));
    assert_null(e);
    assert_int_equal(MM2_OK, mm2_checkpoint_claim(&c, name, 1, &e));
    name[0] = 'x';
    assert_ptr_equal(e, mm2_checkpoint_find(&c, "a"));
    assert_string_equal("a", e->name);
    assert_string_equal("second", e->file);
    assert_int_equal(MM2_OK, mm2_checkpoint_claim(&c, "a", 0, &e));
    assert_null(e);
    assert_int_equal(MM2_E_FORMAT, mm2_checkpoint_claim(&c, "a", 1, &e));
    assert_string_equal("second: tensor \"a\" appears twice", mm2_status_text());
    mm2_checkpoint_close(&c);
}

static void end_tokens_are_a_set_of_ids(void **state)
{
    mm2_checkpoint c;
    mm2_checkpoint_init(&c);
    int64_t ids[] = {7, -1, 7, MM2_MAX_IDS, 3, INT64_MAX, INT64_MIN};
    for (int i = 0; i < 7; i++)
        assert_int_equal(MM2_OK, mm2_checkpoint_end(&c, ids[i], "file"));
    assert_int_equal(2, c.end_count);
    assert_int_equal(7, c.eos);
    assert_int_equal(3, c.ends[1]);
    for (int i = 2; i < MM2_MAX_ENDS; i++)
        assert_int_equal(MM2_OK, mm2_checkpoint_end(&c, 100 + i, "file"));
    assert_int_equal(MM2_E_FORMAT, mm2_checkpoint_end(&c, 99, "file"));
    mm2_checkpoint_close(&c);
}

/* ---- files that change ---- */

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(strlen(text), fwrite(text, 1, strlen(text), f));
    assert_int_equal(0, fclose(f));
}

static void a_changed_file_is_reported(void **state)
{
    char path[] = "/tmp/mm2-checkpoint-XXXXXX", other[64];
    close(mkstemp(path));
    mm2_format(other, sizeof other, "%s.new", path);
    for (int how = 0; how < 4; how++) {
        write_file(path, "0123456789");
        mm2_file file;
        assert_int_equal(MM2_OK, mm2_file_open(&file, path, MM2_FILE_WATCH));
        mm2_checkpoint c;
        mm2_checkpoint_init(&c);
        c.files = malloc(sizeof file);
        *c.files = file;
        c.file_count = 1;
        assert_int_equal(MM2_OK, mm2_checkpoint_check(&c));
        mm2_status expected = MM2_E_IO;
        if (how == 0) {
            assert_int_equal(0, truncate(path, 4));
        } else if (how == 1) {
            assert_int_equal(0, truncate(path, 20));
        } else if (how == 2) {
            struct timespec times[] = {{1, 0}, {1, 0}};
            write_file(path, "9876543210");
            assert_int_equal(0, utimensat(AT_FDCWD, path, times, 0));
        } else { /* a new file under the name: the map is still that of the old one */
            write_file(other, "x");
            assert_int_equal(0, rename(other, path));
            expected = MM2_OK;
        }
        assert_int_equal(MM2_OK, mm2_checkpoint_check(&c)); /* looked at a moment ago */
        atomic_store(&c.checked_at, 0);
        assert_int_equal(expected, mm2_checkpoint_check(&c));
        if (expected) {
            assert_non_null(strstr(mm2_status_text(), path));
            assert_non_null(strstr(mm2_status_text(), how ? "written to" : "from 10 to 4 bytes"));
            assert_int_equal(expected, mm2_checkpoint_check(&c)); /* and again */
        }
        mm2_checkpoint_close(&c);
    }
    remove(path);
}

static void a_copy_is_filled_once(void **state)
{
    char path[] = "/tmp/mm2-checkpoint-XXXXXX";
    close(mkstemp(path));
    for (int writable = 0; writable < 2; writable++) {
        mm2_file f;
        write_file(path, "0123456789");
        assert_int_equal(
            MM2_OK, mm2_file_open(&f, path, MM2_FILE_COPY | (writable ? MM2_FILE_WRITABLE : 0)));
        assert_int_equal(MM2_OK, mm2_file_fill(&f));
        write_file(path, "abc");
        assert_memory_equal("0123456789", f.data, 10);
        if (writable)
            f.data[0] = 'x';
        assert_int_equal(MM2_OK, mm2_file_check(&f));
        assert_int_equal(MM2_OK, mm2_file_fill(&f)); /* nothing to do */
        mm2_file_close(&f);
        write_file(path, "0123456789");
        assert_int_equal(MM2_OK, mm2_file_open(&f, path, MM2_FILE_COPY));
        assert_int_equal(0, truncate(path, 4));
        assert_int_equal(MM2_E_IO, mm2_file_fill(&f));
        assert_non_null(strstr(mm2_status_text(), "ended at byte 4 of 10"));
        mm2_file_close(&f);
        assert_int_equal(MM2_OK, mm2_file_open(&f, path, MM2_FILE_COPY));
        write_file(path, "longer than before");
        assert_int_equal(MM2_E_IO, mm2_file_fill(&f));
        assert_non_null(strstr(mm2_status_text(), "written to"));
        mm2_file_close(&f);
    }
    remove(path);
}

static void a_copy_that_will_not_fit_is_refused_before_it_is_read(void **state)
{
    mm2_checkpoint c;
    mm2_checkpoint_init(&c);
    c.path = strdup("directory");
    c.file_count = 2;
    c.files = calloc(2, sizeof *c.files);
    for (int i = 0; i < 2; i++) /* no descriptor: reading would do nothing */
        c.files[i] = (mm2_file){.size = INT64_MAX / 2 + i * 2, .flags = MM2_FILE_COPY};
    assert_int_equal(MM2_E_NOMEM, mm2_checkpoint_fill(&c));
    assert_non_null(strstr(mm2_status_text(), "bytes, "));
    assert_non_null(strstr(mm2_status_text(), "are available"));
    mm2_checkpoint_close(&c);
}

/* A header that is rewritten behind the parser's back: what was checked is a copy. */
static void a_parsed_header_does_not_change(void **state)
{
    static const uint8_t header[] = "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0"
                                    "\1\0\0\0\0\0\0\0k\x9\0\0\0\x8\0\0\0\1\0\0\0\0\0\0\0"
                                    "\2\0\0\0\0\0\0\0ab";
    uint8_t bytes[128] = {0};
    memcpy(bytes, header, sizeof header - 1);
    mm2_file f = {.path = "file", .data = bytes, .size = sizeof bytes};
    mm2_gguf g;
    assert_int_equal(MM2_OK, mm2_gguf_parse(&g, &f));
    memset(bytes, 0xff, sizeof bytes);
    const mm2_gguf_pair *p = mm2_gguf_find(&g, "k");
    assert_non_null(p);
    assert_int_equal(1, p->count);
    assert_memory_equal("\2\0\0\0\0\0\0\0ab", p->data, 10);
    mm2_gguf_free(&g);
}

static void shapes_are_multiplied_with_care(void **state)
{
    mm2_entry e = {.name = "t", .file = "file"};
    int64_t good[] = {3, 4, 64}, huge[] = {1LL << 40, 1LL << 40}, bytes[] = {1LL << 40, 1LL << 22};
    int64_t beyond[] = {(1LL << 40) + 1}, ragged[] = {4, 40}, none[] = {0, 1LL << 40};
    assert_int_equal(MM2_OK, mm2_entry_shape(&e, MM2_Q8_0, 3, good));
    assert_true(e.view.nbytes == 3 * 4 * 2 * 34 && e.view.strides[0] == 256 &&
                e.view.strides[1] == 64 && e.view.strides[2] == 1);
    assert_int_equal(MM2_OK, mm2_entry_shape(&e, MM2_F32, 2, none));
    assert_true(e.view.nbytes == 0);
    assert_int_equal(MM2_OK, mm2_entry_shape(&e, MM2_F32, 0, good)); /* a scalar */
    assert_true(e.view.nbytes == 4);
    assert_int_equal(MM2_E_FORMAT, mm2_entry_shape(&e, MM2_F32, 2, huge));
    assert_int_equal(MM2_E_FORMAT, mm2_entry_shape(&e, MM2_F32, 2, bytes));
    assert_int_equal(MM2_E_FORMAT, mm2_entry_shape(&e, MM2_F32, 1, beyond));
    assert_int_equal(MM2_E_FORMAT, mm2_entry_shape(&e, MM2_Q8_0, 2, ragged));
}

/* ---- configuration ---- */

static const mm2_config tiny = {.num_hidden_layers = 1,
                                .hidden_size = 160,
                                .num_attention_heads = 2,
                                .num_key_value_heads = 1,
                                .head_dim = 16,
                                .rotary_dim = 8,
                                .num_local_experts = 3,
                                .num_experts_per_tok = 2,
                                .intermediate_size = 192,
                                .vocab_size = 8,
                                .max_position_embeddings = 64,
                                .use_qk_norm = 1,
                                .use_routing_bias = 1,
                                .rope_theta = 10000,
                                .rms_norm_eps = 1e-6f,
                                .routed_scaling_factor = 1};

static void configurations_are_checked_field_by_field(void **state)
{
    mm2_config c = tiny;
    assert_int_equal(MM2_OK, mm2_config_check(&c, "file"));
#define REFUSED(status, field, value)                                                              \
    c = tiny;                                                                                      \
    c.field = value;                                                                               \
    assert_int_equal(status, mm2_config_check(&c, "file"));                                        \
    assert_non_null(strstr(mm2_status_text(), #field))
    REFUSED(MM2_E_FORMAT, num_hidden_layers, 0);
    REFUSED(MM2_E_FORMAT, num_hidden_layers, 1025);
    REFUSED(MM2_E_FORMAT, hidden_size, -1);
    REFUSED(MM2_E_FORMAT, hidden_size, INT32_MAX);
    REFUSED(MM2_E_FORMAT, num_attention_heads, 0);
    REFUSED(MM2_E_FORMAT, num_key_value_heads, 0);
    REFUSED(MM2_E_FORMAT, num_key_value_heads, 3);
    REFUSED(MM2_E_FORMAT, head_dim, 0);
    REFUSED(MM2_E_UNSUPPORTED, head_dim, 24);
    REFUSED(MM2_E_FORMAT, rotary_dim, 0);
    REFUSED(MM2_E_FORMAT, rotary_dim, 7);
    REFUSED(MM2_E_FORMAT, rotary_dim, 18);
    REFUSED(MM2_E_FORMAT, num_local_experts, 4097);
    REFUSED(MM2_E_FORMAT, num_experts_per_tok, 4);
    REFUSED(MM2_E_FORMAT, num_experts_per_tok, 0);
    REFUSED(MM2_E_FORMAT, intermediate_size, 0);
    REFUSED(MM2_E_FORMAT, vocab_size, (1 << 20) + 1);
    REFUSED(MM2_E_FORMAT, max_position_embeddings, 0);
    REFUSED(MM2_E_FORMAT, rope_theta, 0);
    REFUSED(MM2_E_FORMAT, rope_theta, mm2_bits_f32(0x7f800000));
    REFUSED(MM2_E_FORMAT, rms_norm_eps, mm2_bits_f32(0x7fc00000));
    REFUSED(MM2_E_FORMAT, rms_norm_eps, -1e-6f);
    REFUSED(MM2_E_FORMAT, routed_scaling_factor, 0);
#undef REFUSED
}

/* ---- binding ---- */

typedef struct builder {
    mm2_checkpoint c;
    void *blocks[64];
    int count;
} builder;

static void add(builder *b, const char *name, int32_t dtype, int32_t ndim, int64_t x, int64_t y,
                int64_t z)
{
    int64_t all[] = {x, y, z};
    mm2_entry *e;
    assert_int_equal(MM2_OK, mm2_checkpoint_add(&b->c, name, "file", &e));
    assert_int_equal(MM2_OK, mm2_entry_shape(e, dtype, ndim, all + 3 - ndim));
    e->view.data = b->blocks[b->count++] = calloc(1, (size_t)e->view.nbytes);
}

/* One layer with experts of FP8 in fused tensors, whose up half begins within a block of scales. */
static void build_fused(builder *b)
{
    static const char l[] = "model.layers.0.";
    static char names[16][64];
    *b = (builder){.count = 0};
    mm2_checkpoint_init(&b->c);
    b->c.path = strdup("directory");
    b->c.format = "safetensors";
    b->c.family = &mm2_minimax_m2;
    b->c.config = tiny;
    static const struct {
        const char *name;
        int64_t rows, columns;
    } plain[] = {{"input_layernorm.weight", 0, 160},   {"post_attention_layernorm.weight", 0, 160},
                 {"self_attn.q_proj.weight", 32, 160}, {"self_attn.k_proj.weight", 16, 160},
                 {"self_attn.v_proj.weight", 16, 160}, {"self_attn.o_proj.weight", 160, 32},
                 {"self_attn.q_norm.weight", 0, 32},   {"self_attn.k_norm.weight", 0, 16},
                 {"mlp.gate.weight", 3, 160},          {"mlp.e_score_correction_bias", 0, 3}};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        mm2_format(names[i], sizeof names[i], "%s%s", l, plain[i].name);
        add(b, names[i], MM2_BF16, plain[i].rows ? 2 : 1, 0, plain[i].rows, plain[i].columns);
    }
    add(b, "model.embed_tokens.weight", MM2_BF16, 2, 0, 8, 160);
    add(b, "model.norm.weight", MM2_F32, 1, 0, 0, 160);
    add(b, "lm_head.weight", MM2_F16, 2, 0, 8, 160);
    add(b, "model.layers.0.mlp.experts.gate_up_proj", MM2_F8_E4M3, 3, 3, 384, 160);
    add(b, "model.layers.0.mlp.experts.gate_up_proj_scale_inv", MM2_F32, 3, 3, 3, 2);
    add(b, "model.layers.0.mlp.experts.down_proj", MM2_F8_E4M3, 3, 3, 160, 192);
    add(b, "model.layers.0.mlp.experts.down_proj_scale_inv", MM2_F32, 3, 3, 2, 2);
}

static void demolish(builder *b)
{
    for (int i = 0; i < b->count; i++)
        free(b->blocks[i]);
    mm2_checkpoint_close(&b->c);
}

static mm2_entry *entry(builder *b, const char *name)
{
    return (mm2_entry *)mm2_checkpoint_find(&b->c, name);
}

static void fused_experts_are_slices_with_their_scales(void **state)
{
    builder b;
    mm2_weights w;
    build_fused(&b);
    uint8_t *codes = entry(&b, "model.layers.0.mlp.experts.gate_up_proj")->view.data;
    float *scales = entry(&b, "model.layers.0.mlp.experts.gate_up_proj_scale_inv")->view.data;
    for (int i = 0; i < 3 * 3 * 2; i++)
        scales[i] = (float)(i + 1);
    memset(codes, 0x38, 3 * 384 * 160); /* 1.0 */
    assert_int_equal(MM2_OK, mm2_weights_bind(&w, &b.c));
    for (int e = 0; e < 3; e++) {
        const mm2_expert *x = &w.layers[0].experts[e];
        assert_ptr_equal(codes + (e * 384) * 160, x->gate.data);
        assert_ptr_equal(codes + (e * 384 + 192) * 160, x->up.data);
        assert_int_equal(192, x->up.n_out);
        assert_int_equal(0, x->gate.scale_row);
        assert_int_equal(128, x->gate.scale_rows);
        assert_int_equal(64, x->up.scale_row);
        assert_ptr_equal(scales + e * 6, x->gate.scale);
        assert_ptr_equal(scales + e * 6 + 2, x->up.scale);
        assert_int_equal(160, x->down.n_out);
        assert_int_equal(192, x->down.n_in);
        for (int row = 0; row < 192; row++) {
            float out[160];
            mm2_weight_values(&x->up, row, 0, 160, out);
            int block = e * 3 + (192 + row) / 128; /* row of scales, counted over all experts */
            assert_true(out[0] == scales[block * 2] && out[127] == scales[block * 2]);
            assert_true(out[128] == scales[block * 2 + 1] && out[159] == scales[block * 2 + 1]);
        }
    }
    assert_int_equal(3, w.layers[0].router.n_out);
    assert_int_equal(3, w.layers[0].routing_bias.n_in);
    mm2_weights_free(&w);
    demolish(&b);
}

static void what_does_not_fit_is_refused(void **state)
{
    static const struct {
        const char *name, *says;
        int32_t status, dtype; /* dtype 0: another shape */
    } cases[] = {
        {"model.norm.weight", "[161], expected [160]", MM2_E_FORMAT, 0},
        {"lm_head.weight", "expected [8, 160]", MM2_E_FORMAT, 0},
        {"model.layers.0.mlp.experts.down_proj", "expected [3, 160, 192]", MM2_E_FORMAT, 0},
        {"model.layers.0.mlp.experts.down_proj_scale_inv", "expected [3, 2, 2]", MM2_E_FORMAT, 0},
        {"model.layers.0.mlp.experts.down_proj_scale_inv", "expected f32", MM2_E_FORMAT, MM2_I32},
        {"model.layers.0.self_attn.k_proj.weight", "[16, 320] decoded", MM2_E_FORMAT, MM2_U8},
        {"model.layers.0.self_attn.q_norm.weight", "dtype f8_e4m3", MM2_E_FORMAT, MM2_F8_E4M3},
        {"model.layers.0.mlp.gate.weight", "dtype i32", MM2_E_FORMAT, MM2_I32},
        {"model.layers.0.self_attn.q_proj.weight", "scales", MM2_E_FORMAT, MM2_F8_E4M3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        builder b;
        mm2_weights w;
        build_fused(&b);
        mm2_entry *e = entry(&b, cases[i].name);
        if (cases[i].dtype)
            e->view.dtype = cases[i].dtype;
        else
            e->view.shape[e->view.ndim - 1]++;
        assert_int_equal(cases[i].status, mm2_weights_bind(&w, &b.c));
        assert_non_null(strstr(mm2_status_text(), cases[i].name));
        assert_non_null(strstr(mm2_status_text(), cases[i].says));
        assert_null(w.layers);
        demolish(&b);
    }
}

static void a_missing_tensor_is_named(void **state)
{
    builder b;
    build_fused(&b);
    for (int32_t i = 0; i < b.c.entry_count; i++) {
        mm2_weights w;
        const char *name = b.c.entries[i].name;
        mm2_strmap all = b.c.by_name; /* the same table without this one */
        assert_int_equal(0, mm2_strmap_init(&b.c.by_name, 32));
        for (int32_t k = 0; k < b.c.entry_count; k++)
            if (k != i)
                mm2_strmap_add(&b.c.by_name, b.c.entries[k].name,
                               (uint32_t)strlen(b.c.entries[k].name), k);
        assert_int_equal(MM2_E_FORMAT, mm2_weights_bind(&w, &b.c));
        /* without its fused form, an expert or a router is looked for under the other name */
        if (!strstr(name, "gate_up_proj") && !strstr(name, "mlp.gate") &&
            !strstr(name, "e_score_correction"))
            assert_non_null(strstr(mm2_status_text(), name));
        assert_non_null(strstr(mm2_status_text(), "missing"));
        mm2_strmap_free(&b.c.by_name);
        b.c.by_name = all;
    }
    demolish(&b);
}

/* Tensors that say that it is another model. */
static void what_would_change_the_result_is_refused_by_name(void **state)
{
    static const struct {
        const char *name;
        int32_t dtype;
        const char *says;
    } cases[] = {
        {"model.layers.0.self_attn.q_proj.bias", MM2_BF16, "adds no biases"},
        {"model.layers.0.input_layernorm.bias", MM2_F32, "adds no biases"},
        {"lm_head.bias", MM2_F32, "adds no biases"},
        {"model.layers.0.self_attn.q_proj.weight_scale_inv", MM2_F32, "stands beside"},
        {"model.layers.0.mlp.experts.down_proj_bias", MM2_F32, "bias of experts"},
        {"model.layers.0.mlp.shared_experts.gate_proj.weight", MM2_F32, "shared expert"},
        {"model.layers.0.self_attn.sinks", MM2_F32, "attention sinks"},
        {"model.layers.0.block_sparse_moe.switch_mlp.gate_proj.weight", MM2_F32, "MLX"},
        {"model.layers.0.block_sparse_moe.gate.weight", MM2_BF16, "two for one place"},
        {"model.layers.0.mlp.gate.e_score_correction_bias", MM2_F32, "two for one place"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int odd = 0; odd < 2; odd++) {
            builder b;
            mm2_weights w;
            build_fused(&b);
            int is_spelling = strstr(cases[i].says, "two") != NULL;
            add(&b, cases[i].name, cases[i].dtype, 1, 0, 0, 16);
            if (odd && !is_spelling) { /* a type that no view describes is no excuse */
                mm2_entry *e = entry(&b, cases[i].name);
                assert_int_equal(MM2_OK, mm2_checkpoint_set_odd(&b.c, e, "has dtype I64"));
            }
            assert_int_equal(is_spelling ? MM2_E_FORMAT : MM2_E_UNSUPPORTED,
                             mm2_weights_bind(&w, &b.c));
            assert_non_null(strstr(mm2_status_text(), cases[i].name));
            assert_non_null(strstr(mm2_status_text(), cases[i].says));
            demolish(&b);
        }
}

static void layers_say_which_types_their_experts_have(void **state)
{
    builder b;
    mm2_weights w;
    build_fused(&b);
    assert_int_equal(MM2_OK, mm2_weights_bind(&w, &b.c));
    assert_true(w.layers[0].gate_up_dtypes == UINT64_C(1) << MM2_F8_E4M3);
    assert_true(w.layers[0].down_dtypes == UINT64_C(1) << MM2_F8_E4M3);
    mm2_experts_hold(&w, 0, 2);
    const mm2_expert *e = mm2_experts_get(&w, 0, 2);
    assert_ptr_equal(&w.layers[0].experts[2], e);
    mm2_experts_release(&w, 0, 2);
    mm2_weights_free(&w);
    demolish(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_are_decoded),
        cmocka_unit_test(bad_strings_are_refused),
        cmocka_unit_test(strings_stay_within_their_buffer),
        cmocka_unit_test(whole_numbers_only),
        cmocka_unit_test(members_are_stepped_through),
        cmocka_unit_test(any_value_is_skipped_to_a_depth),
        cmocka_unit_test(foreign_text_is_cleaned),
        cmocka_unit_test(parts_are_told_by_their_names),
        cmocka_unit_test(names_are_checked),
        cmocka_unit_test(tensors_without_a_view_are_named_when_needed),
        cmocka_unit_test(a_name_is_claimed_where_an_index_places_it_and_once),
        cmocka_unit_test(end_tokens_are_a_set_of_ids),
        cmocka_unit_test(a_changed_file_is_reported),
        cmocka_unit_test(a_copy_is_filled_once),
        cmocka_unit_test(a_copy_that_will_not_fit_is_refused_before_it_is_read),
        cmocka_unit_test(a_parsed_header_does_not_change),
        cmocka_unit_test(shapes_are_multiplied_with_care),
        cmocka_unit_test(configurations_are_checked_field_by_field),
        cmocka_unit_test(fused_experts_are_slices_with_their_scales),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(a_missing_tensor_is_named),
        cmocka_unit_test(what_would_change_the_result_is_refused_by_name),
        cmocka_unit_test(layers_say_which_types_their_experts_have),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
