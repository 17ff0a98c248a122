/* What happens when memory runs out: each request for memory that an act makes fails once, and then
 * all from it on. The act must end with NOMEM and a sentence, or do what it does without the
 * failure; nothing may leak, and afterwards everything works as before. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "inject.h"
#include "minimax2.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PROMPT = 150, VOCAB = 4096, IDS = 512 };

static const char tiny[] = "../python/minimax2/m2-tiny/."; /* its name must be asked for */
static const char text[] = "Hello, w\xc3\xb6rld's \xff\xfe e\xcc\x81\xcc\xa7 \xe0\xa2\x97 ]~b]user "
                           "<think> 12345\n\n x  y WORLD's 's";
static char folder[] = "/tmp/minimax2-faults-XXXXXX", gguf[64];
static mm2_model_options options = {.size = sizeof options};
static mm2_model *model;
static int32_t prompt[PROMPT];
static float expected[VOCAB];

typedef struct act {
    mm2_status (*run)(void); /* under injection: makes what `check` looks at and frees */
    void (*check)(mm2_status status, uint64_t *digest);
} act;

static void mix(uint64_t *digest, const void *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        *digest = (*digest ^ ((const uint8_t *)data)[i]) * 0x100000001b3ULL;
}

static void fail_each(const act *a)
{
    uint64_t want = 0, digest = 0;
    a->check(a->run(), &want); /* once without: what is made once and kept is there */
    for (int lasting = 0; lasting < 2; lasting++) {
        long k = 1, failed = 1;
        for (; failed; k++) {
            long blocks = blocks_in_use(), maps = maps_in_use();
            inject(k, lasting);
            mm2_status status = a->run();
            failed = inject_end();
            if (status && (status != MM2_E_NOMEM || !*mm2_error()))
                fail_msg("request %ld: status %d, \"%s\"", k, status, mm2_error());
            assert_true(failed || !status);
            digest = 0;
            a->check(status, &digest);
            if (!status && digest != want)
                fail_msg("request %ld: OK, but something else than without the failure", k);
            if (blocks_in_use() != blocks || maps_in_use() != maps)
                fail_msg("request %ld: status %d (%s): %ld blocks and %ld maps leaked", k, status,
                         mm2_error(), blocks_in_use() - blocks, maps_in_use() - maps);
        }
        print_message("%ld requests, %s\n", k - 2, lasting ? "all from one on" : "one of them");
        assert_true(k > 2);
    }
}

/* ---- opening ---- */

static void put(FILE *f, const void *data, size_t size)
{
    assert_int_equal(1, fwrite(data, size, 1, f));
}

static mm2_tokenizer *tokenizer;

static void mix_tokenizer(uint64_t *digest, const mm2_tokenizer *t)
{
    int32_t ids[IDS], length;
    char out[1024];
    const mm2_conversation chat = {
        .size = sizeof chat,
        .messages = "[{\"role\": \"user\", \"content\": \"hi\"},"
                    " {\"role\": \"assistant\", \"content\": \"<think>x</think>y\"}]"};
    mm2_tokenizer_info facts = {.size = sizeof facts};
    for (int32_t flags = 0; flags <= MM2_SPECIAL; flags += MM2_SPECIAL) {
        int32_t n = mm2_tokenizer_encode(t, text, sizeof text - 1, flags, ids, IDS);
        assert_in_range(n, 10, IDS);
        mix(digest, ids, (size_t)n * sizeof *ids);
    }
    int32_t n = mm2_chat_render(t, &chat, out, sizeof out);
    mix(digest, out, n > 0 ? (size_t)n : 0);
    assert_int_equal(MM2_OK, mm2_tokenizer_describe(t, &facts));
    mix(digest, &facts, sizeof facts);
    for (int32_t id = 0; id < facts.vocab_size; id++) {
        const char *bytes = mm2_tokenizer_token(t, id, &length);
        mix(digest, bytes, (size_t)length);
    }
}

static mm2_model *opened;

static mm2_status open_model(void)
{
    opened = (mm2_model *)1;
    return mm2_model_open(&opened, tiny, &options);
}

static void check_model(mm2_status status, uint64_t *digest)
{
    mm2_config config = {.size = sizeof config};
    mm2_sampling sampling = {.size = sizeof sampling};
    static const char *const keys[] = {"format", "architecture", "name", "license", "quantization"};
    if (status) {
        assert_null(opened);
        return;
    }
    mm2_model_config(opened, &config);
    mix(digest, &config, sizeof config);
    mm2_sampling_init(&sampling, opened);
    mix(digest, &sampling.temperature, sizeof sampling.temperature);
    for (int i = 0; i < 5; i++) {
        const char *value = mm2_model_info(opened, keys[i]);
        mix(digest, value ? value : "-", value ? strlen(value) : 1);
    }
    assert_non_null(mm2_model_tokenizer(opened));
    mix_tokenizer(digest, mm2_model_tokenizer(opened));
    mm2_model_release(opened);
}

static void check_tokenizer(mm2_status status, uint64_t *digest)
{
    if (status) {
        assert_null(tokenizer);
        return;
    }
    mix_tokenizer(digest, tokenizer);
    mm2_tokenizer_release(tokenizer);
}

static mm2_status open_tokenizer(void)
{
    tokenizer = (mm2_tokenizer *)1;
    return mm2_tokenizer_open(&tokenizer, tiny);
}

static mm2_status open_gguf_tokenizer(void)
{
    tokenizer = (mm2_tokenizer *)1;
    return mm2_tokenizer_open(&tokenizer, gguf);
}

static mm2_status open_folder_tokenizer(void)
{
    tokenizer = (mm2_tokenizer *)1;
    return mm2_tokenizer_open(&tokenizer, folder);
}

static void a_model_opens_or_says_that_memory_ran_out(void **state)
{
    fail_each(&(act){open_model, check_model});
}

static void a_tokenizer_opens_or_says_so(void **state)
{
    fail_each(&(act){open_tokenizer, check_tokenizer});
    fail_each(&(act){open_gguf_tokenizer, check_tokenizer});
    fail_each(&(act){open_folder_tokenizer, check_tokenizer});
}

/* ---- text ---- */

static int32_t ids[5][IDS], counts[5];

static mm2_status encode_in_parts(int32_t *out, int32_t *total)
{
    mm2_encoding *e;
    int32_t count;
    mm2_status status =
        mm2_encoding_new(&e, mm2_model_tokenizer(model), text, sizeof text - 1, MM2_SPECIAL);
    *total = 0;
    for (status = status ? status : MM2_MORE; status == MM2_MORE; *total += count)
        status = mm2_encoding_run(e, 0, out + *total, 3, &count);
    mm2_encoding_free(e);
    return status;
}

static mm2_status encode(void)
{
    static const char more[] =
        "[{\"role\": \"user\", \"content\": [\"hi \xff\", {\"type\": \"text\", \"text\": \"x\"}]},"
        " {\"role\": \"assistant\", \"content\": \"<think>x</think>y\", \"tool_calls\": ["
        "  {\"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": [1]}\"}}]},"
        " {\"role\": \"tool\", \"content\": [\"r\", \"s\"]}, {\"role\": \"user\", \"content\": ["
        "  {\"type\": \"tool_result\", \"content\": \"t\"}, \"u\"]}]";
    static char exported[1024];
    const mm2_conversation c = {.size = sizeof c,
                                .messages = more,
                                .tools = "[{\"function\": {\"name\": \"f\", \"parameters\": {}}}]"};
    const mm2_tokenizer *t = mm2_model_tokenizer(model);
    for (int32_t i = 0; i < 4; i++) {
        counts[i] =
            i < 2 ? mm2_tokenizer_encode(t, text, sizeof text - 1, i ? MM2_SPECIAL : 0, ids[i], IDS)
            : i == 2 ? mm2_chat_encode(t, &c, ids[i], IDS)
                     : mm2_chat_continue(t, ids[2], counts[2] - 3, &c, ids[i], IDS);
        if (counts[i] < 0)
            return counts[i];
    }
    int32_t n = mm2_chat_export(more, MM2_FORM_OPENAI, exported, sizeof exported);
    return n < 0 ? n : encode_in_parts(ids[4], &counts[4]);
}

static void check_ids(mm2_status status, uint64_t *digest)
{
    for (int i = 0; !status && i < 5; i++)
        mix(digest, ids[i], (size_t)counts[i] * sizeof **ids);
}

static void text_is_encoded_or_says_so(void **state)
{
    fail_each(&(act){encode, check_ids});
}

/* ---- a reply ---- */

enum { REPLY = 3000 };

static mm2_reply *reply;
static int32_t pushed;
static uint64_t reply_digest; /* of all of it, whatever failed on the way */

/* Any ids but the end tokens, and </think> in the middle. */
static int32_t reply_id(int32_t i)
{
    return i == REPLY / 2 ? mm2_tokenizer_id(mm2_model_tokenizer(model), "</think>", 8)
                          : 300 + i % 3700;
}

static mm2_status push(void)
{
    mm2_status status = MM2_OK;
    while (pushed < REPLY && !(status = mm2_reply_push(reply, reply_id(pushed), NULL)))
        pushed++;
    return status;
}

static mm2_status make_reply(void)
{
    const char *stop[] = {"never comes", "nor this"};
    mm2_reply_options o = {.size = sizeof o};
    mm2_reply_options_init(&o);
    o.start = MM2_START_THINKING;
    o.stop = stop;
    o.stop_count = 2;
    o.tools = "[{\"function\": {\"name\": \"f\"}}]";
    o.call = "f";
    reply = NULL;
    pushed = 0;
    mm2_status status = mm2_reply_new(&reply, mm2_model_tokenizer(model), &o);
    return status ? status : push();
}

/* A failed push has pushed nothing, and can be done again. */
static void check_reply(mm2_status status, uint64_t *digest)
{
    mm2_piece all = {.size = sizeof all};
    if (!reply) {
        assert_int_equal(MM2_E_NOMEM, status);
        return;
    }
    assert_int_equal(MM2_OK, push());
    assert_int_equal(MM2_OK, mm2_reply_all(reply, &all));
    assert_int_equal(REPLY, all.count);
    mix(digest, all.text, (size_t)all.text_len);
    mix(digest, all.thinking, (size_t)all.thinking_len);
    reply_digest = reply_digest ? reply_digest : *digest;
    assert_true(*digest == reply_digest);
    mm2_reply_free(reply);
}

static void a_reply_grows_or_says_so_and_grows_then(void **state)
{
    fail_each(&(act){make_reply, check_reply});
}

/* ---- a grammar ---- */

enum { FORM = 12 };

static mm2_grammar *grammar;
static mm2_constraint *form;
static int32_t formed[FORM], formed_count;

/* Pushes the highest id that may come, on and on. */
static mm2_status grow_form(void)
{
    const uint32_t *mask;
    mm2_status status = MM2_OK;
    while (formed_count < FORM && !(status = mm2_constraint_mask(form, &mask))) {
        int32_t id = VOCAB - 1, forced;
        while (id > 0 && !(mask[id / 32] >> id % 32 & 1))
            id--;
        mm2_constraint *other = NULL;
        status = mm2_constraint_fork(&other, form);
        mm2_constraint_free(other);
        if (!status && (forced = mm2_constraint_forced(form, &forced, 1)) < 0)
            status = forced;
        if (!status)
            status = mm2_constraint_push(form, id);
        if (status)
            break;
        formed[formed_count++] = id;
    }
    return status;
}

static mm2_status make_form(void)
{
    grammar = NULL;
    form = NULL;
    formed_count = 0;
    mm2_status status =
        mm2_grammar_new(&grammar, mm2_model_tokenizer(model), MM2_GRAMMAR_JSON_SCHEMA,
                        "{\"properties\": {\"\\u00e9\": {\"items\": {\"type\": \"string\", "
                        "\"pattern\": \"[^a-c]+z\"}},"
                        " \"b\": {\"$ref\": \"#/$defs/I\"}}, \"$defs\": {\"I\": {\"type\": "
                        "[\"integer\", \"null\"]}},"
                        " \"required\": [\"b\"]}");
    if (!status)
        status = mm2_constraint_new(&form, grammar, NULL);
    return status ? status : grow_form();
}

static void check_form(mm2_status status, uint64_t *digest)
{
    if (form) {
        assert_int_equal(MM2_OK, grow_form());
        mix(digest, formed, sizeof formed);
    } else {
        assert_int_equal(MM2_E_NOMEM, status);
    }
    mm2_constraint_free(form);
    mm2_grammar_free(grammar);
}

static void a_text_has_its_form_or_says_so_and_has_it_then(void **state)
{
    fail_each(&(act){make_form, check_form});
}

/* ---- running ---- */

static mm2_session *session;

static mm2_status run_session(void)
{
    mm2_session_options o = {.size = sizeof o};
    mm2_session_options_init(&o);
    o.context = PROMPT + 10;
    session = (mm2_session *)1;
    mm2_status status = mm2_session_new(&session, model, &o);
    if (status)
        return status;
    status = mm2_session_feed(session, prompt, PROMPT);
    return status ? status : mm2_session_run(session, 0, NULL);
}

static void assert_expected(mm2_session *s)
{
    mm2_tensor t;
    assert_int_equal(MM2_OK, mm2_session_logits(s, &t));
    assert_memory_equal(expected, t.data, sizeof expected);
}

/* A failed feed has fed nothing, and a failed run can be run again. */
static void check_session(mm2_status status, uint64_t *digest)
{
    if (!session) {
        assert_int_equal(MM2_E_NOMEM, status);
        return;
    }
    if (status && !mm2_session_length(session))
        assert_int_equal(MM2_OK, mm2_session_feed(session, prompt, PROMPT));
    assert_int_equal(PROMPT, mm2_session_length(session));
    assert_int_equal(MM2_OK, mm2_session_run(session, 0, NULL));
    assert_expected(session);
    mm2_session_free(session);
}

static void a_session_runs_or_says_so_and_runs_then(void **state)
{
    fail_each(&(act){run_session, check_session});
}

/* ---- shared prefixes ---- */

enum { SHARED = 300 }; /* a page of 256, and more */

static mm2_model *sharing;
static mm2_session *pair[2];
static int32_t shared_ids[SHARED];
static float shared_logits[VOCAB];

static mm2_status evaluate_twice(void)
{
    mm2_session_options o = {.size = sizeof o};
    mm2_status status = MM2_OK;
    mm2_session_options_init(&o);
    o.context = SHARED;
    for (int i = 0; i < 2; i++)
        pair[i] = NULL;
    for (int i = 0; i < 2 && !status; i++) {
        status = mm2_session_new(&pair[i], sharing, &o);
        if (!status)
            status = mm2_session_feed(pair[i], shared_ids, SHARED);
        if (!status)
            status = mm2_session_run(pair[i], 0, NULL);
    }
    return status;
}

/* A page that cannot be put in is evaluated twice: no error. When nobody holds it, it goes. */
static void check_pair(mm2_status status, uint64_t *digest)
{
    for (int i = 0; i < 2; i++) {
        mm2_tensor t;
        if (!status) {
            assert_int_equal(MM2_OK, mm2_session_logits(pair[i], &t));
            if (!*shared_logits)
                memcpy(shared_logits, t.data, sizeof shared_logits);
            assert_memory_equal(shared_logits, t.data, sizeof shared_logits);
        }
        mm2_session_free(pair[i]);
    }
    mm2_prefix_stats stats = {.size = sizeof stats};
    assert_int_equal(MM2_OK, mm2_model_prefix_stats(sharing, &stats));
    assert_int_equal(0, stats.pages);
}

static void prefixes_are_shared_or_evaluated_again(void **state)
{
    mm2_model_options o = {.size = sizeof o};
    mm2_model_options_init(&o);
    o.threads = 2;
    o.prefix_cache = 1; /* pages live as long as a session has them */
    assert_int_equal(MM2_OK, mm2_model_open(&sharing, tiny, &o));
    for (int32_t i = 0; i < SHARED; i++)
        shared_ids[i] = 3 * i % 4000;
    fail_each(&(act){evaluate_twice, check_pair});
    mm2_prefix_stats stats = {.size = sizeof stats};
    mm2_model_prefix_stats(sharing, &stats);
    assert_true(stats.reused > 256);
    mm2_model_release(sharing);
}

/* ---- on disk ---- */

static char snapshot[64], copy[64];
static uint32_t how;

static mm2_status save_session(void)
{
    return mm2_session_save(session, copy);
}

/* What could not be saved is not there, and nothing else either. */
static void check_copy(mm2_status status, uint64_t *digest)
{
    char temporary[72];
    snprintf(temporary, sizeof temporary, "%s.tmp", copy);
    assert_int_equal(status ? -1 : 0, access(copy, F_OK));
    assert_int_equal(-1, access(temporary, F_OK));
    unlink(copy);
}

static mm2_session *back;

static mm2_status restore_session(void)
{
    mm2_restore_options o = {.size = sizeof o};
    mm2_restore_options_init(&o);
    o.flags = how;
    back = (mm2_session *)1;
    mm2_status status = mm2_session_restore(&back, model, snapshot, &o);
    return status ? status : mm2_session_run(back, 0, NULL);
}

static void check_restored(mm2_status status, uint64_t *digest)
{
    if (!back) {
        assert_int_equal(MM2_E_NOMEM, status);
        return;
    }
    assert_int_equal(MM2_OK, mm2_session_run(back, 0, NULL));
    assert_expected(back);
    mm2_session_free(back);
}

static void a_session_is_saved_and_restored_or_says_so(void **state)
{
    snprintf(snapshot, sizeof snapshot, "%s/s.mm2", folder);
    snprintf(copy, sizeof copy, "%s/copy.mm2", folder);
    assert_int_equal(MM2_OK, run_session());
    fail_each(&(act){save_session, check_copy});
    assert_int_equal(MM2_OK, mm2_session_rewind(session, PROMPT - 5)); /* so that a run has work */
    assert_int_equal(MM2_OK, mm2_session_feed(session, prompt + PROMPT - 5, 5));
    assert_int_equal(MM2_OK, mm2_session_save(session, snapshot));
    mm2_session_free(session);
    for (how = 0; how <= MM2_IN_MEMORY; how += MM2_IN_MEMORY)
        fail_each(&(act){restore_session, check_restored});
    unlink(snapshot);
}

/* ---- in proportion ---- */

enum { BOMB = 2 << 20, PER_BYTE = 8 };

static char *read_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    char *data = malloc(*size + 1);
    assert_int_equal(1, fread(data, *size, 1, f));
    data[*size] = 0;
    fclose(f);
    return data;
}

/* A file of m2-tiny with more text behind the first `anchor`: `piece` with a number in its place,
 * `end`, BOMB bytes in all. */
static void write_bomb(const char *path, const char *name, const char *anchor, const char *piece,
                       const char *end)
{
    char source[128];
    size_t size;
    snprintf(source, sizeof source, "%s/%s", tiny, name);
    char *json = read_file(source, &size), *at = strstr(json, anchor);
    assert_non_null(at);
    at += strlen(anchor);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    put(f, json, (size_t)(at - json));
    for (int i = 5000; ftell(f) < BOMB; i++)
        fprintf(f, piece, i, i);
    fprintf(f, "%s%s", end, at);
    fclose(f);
    free(json);
}

static long peak_of(const char *path, mm2_status *status)
{
    mm2_tokenizer *t;
    peak_begin();
    *status = mm2_tokenizer_open(&t, path);
    long most = peak_bytes();
    mm2_tokenizer_release(*status ? NULL : t);
    return most;
}

static void opening_takes_memory_in_proportion_to_the_file(void **state)
{
    static const struct {
        const char *anchor, *piece, *end;
        int opens;
    } bombs[] = {
        {"{", "\"a%x\":0,", "", 1},
        {"{", "\"a%x\":{},", "", 1},
        {"{", "\"b%x\":\"\",", "", 1},
        {"{", "\"c%x\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],", "", 1},
        {"\"model\": {", "\"a%x\":[[],[],[],[],[],[],[]],", "", 1},
        {"\"model\": {", "\"unk_token\":{\"%x\":[0,0,0,0,0,0]},", "", 1},
        {"\"added_tokens\": [", "{\"id\":%d,\"content\":\"z%x\"},", "", 1},
        {"\"vocab\": {", "\"z%x\":%d,", "", 1},
        {"\"normalizer\": {", "\"a%x\":0,", "", 0},
        {"\"decoder\": {", "\"a%x\":[0,0,0,0,0,0,0,0,0],", "", 0},
        {"\"merges\": [", "\"\\u0120 \\u0120\",", "", 0},
        {"\"added_tokens\": [", "%d,", "0],\"x\":[", 0},
    };
    char path[64];
    snprintf(path, sizeof path, "%s/bomb.json", folder);
    mm2_status status;
    for (size_t i = 0; i < sizeof bombs / sizeof *bombs; i++) {
        write_bomb(path, "tokenizer.json", bombs[i].anchor, bombs[i].piece, bombs[i].end);
        long most = peak_of(path, &status);
        if (status != (bombs[i].opens ? MM2_OK : MM2_E_FORMAT))
            fail_msg("%s: status %d: %s", bombs[i].piece, status, mm2_error());
        if (most > (long)PER_BYTE * BOMB)
            fail_msg("%s: %ld bytes for a file of %d", bombs[i].piece, most, BOMB);
    }
    unlink(path);
}

/* m2-tiny's index, and names that no file holds. */
static void write_index(const char *path)
{
    write_bomb(path, "model.safetensors.index.json", "\"weight_map\": {", "\"%x\":\"s\",", "");
}

static void put_number(FILE *f, uint64_t value, size_t size)
{
    put(f, &value, size);
}

/* One tensor, and others that no view describes. */
static void write_header(const char *path)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    put_number(f, BOMB - 8, 8);
    fputs("{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}", f);
    for (int i = 16; ftell(f) < BOMB - 100; i++)
        fprintf(f, ",\"%x\":{\"dtype\":\"\",\"shape\":[],\"data_offsets\":[0,0]}", i);
    fprintf(f, "%*s", (int)(BOMB - ftell(f)), "}");
    fclose(f);
}

/* A header of nothing but tensors of a type that nobody knows. */
static void write_gguf_header(const char *path)
{
    enum { EACH = 8 + 5 + 4 + 4 + 8, COUNT = BOMB / EACH };
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs("GGUF", f);
    put_number(f, 3, 4);
    put_number(f, COUNT, 8);
    put_number(f, 0, 8);
    for (int i = 0; i < COUNT; i++) {
        put_number(f, 5, 8);
        fprintf(f, "%05x", i);
        put_number(f, 0, 4);
        put_number(f, 77, 4);
        put_number(f, 0, 8);
    }
    fprintf(f, "%64s", "");
    fclose(f);
}

/* The most that opening takes; m2-tiny alone takes some of it, for its tokenizer. */
static long peak_of_model(const char *path, mm2_status *status)
{
    peak_begin();
    *status = mm2_model_open(&opened, path, &options);
    long most = peak_bytes();
    mm2_model_release(opened);
    return most;
}

static void tensors_take_memory_in_proportion_to_the_file(void **state)
{
    static const char *const links[] = {"config.json", "tokenizer.json",
                                        "model-00001-of-00002.safetensors",
                                        "model-00002-of-00002.safetensors"};
    static const struct {
        const char *name;
        void (*write)(const char *path);
        int opens;
    } bombs[] = {{"model.safetensors.index.json", write_index, 1},
                 {"model.safetensors", write_header, 0},
                 {"model.gguf", write_gguf_header, 0}};
    char path[128], from[PATH_MAX], *directory = realpath(tiny, NULL);
    mm2_status status;
    long usual = peak_of_model(tiny, &status);
    assert_non_null(directory);
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, links[i]);
        snprintf(from, sizeof from, "%s/%s", directory, links[i]);
        assert_int_equal(0, symlink(from, path));
    }
    free(directory);
    for (size_t i = 0; i < sizeof bombs / sizeof *bombs; i++) {
        struct stat facts;
        snprintf(path, sizeof path, "%s/%s", folder, bombs[i].name);
        bombs[i].write(path);
        assert_int_equal(0, stat(path, &facts));
        long most = peak_of_model(strstr(path, ".gguf") ? path : folder, &status) -
                    (bombs[i].opens ? usual : 0);
        if (status != (bombs[i].opens ? MM2_OK : MM2_E_FORMAT))
            fail_msg("%s: status %d: %s", bombs[i].name, status, mm2_error());
        if (most > PER_BYTE * facts.st_size)
            fail_msg("%s: %ld bytes for a file of %ld", bombs[i].name, most, (long)facts.st_size);
        unlink(path);
    }
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, links[i]);
        unlink(path);
    }
}

/* ---- set up ---- */

static void put_text(FILE *f, const char *s)
{
    put_number(f, strlen(s), 8);
    if (*s)
        put(f, s, strlen(s));
}

static void put_pair(FILE *f, const char *key, const char *value)
{
    put_text(f, key);
    put_number(f, 8, 4); /* a string */
    put_text(f, value);
}

/* A file of metadata only: the 256 bytes, one merge. */
static void write_gguf(const char *path)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    put(f, "GGUF", 4);
    put_number(f, 3, 4);
    put_number(f, 0, 8);
    put_number(f, 5, 8);
    put_pair(f, "general.architecture", "minimax-m2");
    put_pair(f, "tokenizer.ggml.model", "gpt2");
    put_pair(f, "tokenizer.ggml.pre", "minimax-m2");
    put_text(f, "tokenizer.ggml.tokens");
    put_number(f, 9, 4);
    put_number(f, 8, 4);
    put_number(f, 257, 8);
    for (int i = 0, other = 0x100; i < 256; i++) {
        int plain = (i > 0x20 && i < 0x7f) || (i > 0xa0 && i != 0xad);
        int code = plain ? i : other++;
        char token[3] = {(char)code};
        if (code >= 0x80) {
            token[0] = (char)(0xc0 | code >> 6);
            token[1] = (char)(0x80 | (code & 0x3f));
        }
        put_text(f, token);
    }
    put_text(f, "ab");
    put_text(f, "tokenizer.ggml.merges");
    put_number(f, 9, 4);
    put_number(f, 8, 4);
    put_number(f, 1, 8);
    put_text(f, "a b");
    fclose(f);
}

static int set_up(void **state)
{
    mm2_model_options_init(&options);
    options.threads = 2;
    if (mm2_model_open(&model, tiny, &options) || !mkdtemp(folder))
        return -1;
    snprintf(gguf, sizeof gguf, "%s/t.gguf", folder);
    write_gguf(gguf);
    for (int32_t i = 0; i < PROMPT; i++)
        prompt[i] = (37 * i + 11) % 4000;
    mm2_status status = run_session();
    if (status)
        return status;
    mm2_tensor t;
    mm2_session_logits(session, &t);
    memcpy(expected, t.data, sizeof expected);
    mm2_session_free(session);
    return 0;
}

static int tear_down(void **state)
{
    mm2_model_release(model);
    unlink(gguf);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_opens_or_says_that_memory_ran_out),
        cmocka_unit_test(a_tokenizer_opens_or_says_so),
        cmocka_unit_test(text_is_encoded_or_says_so),
        cmocka_unit_test(a_reply_grows_or_says_so_and_grows_then),
        cmocka_unit_test(a_text_has_its_form_or_says_so_and_has_it_then),
        cmocka_unit_test(a_session_runs_or_says_so_and_runs_then),
        cmocka_unit_test(prefixes_are_shared_or_evaluated_again),
        cmocka_unit_test(a_session_is_saved_and_restored_or_says_so),
        cmocka_unit_test(opening_takes_memory_in_proportion_to_the_file),
        cmocka_unit_test(tensors_take_memory_in_proportion_to_the_file),
    };
    return cmocka_run_group_tests_name("faults", tests, set_up, tear_down);
}
