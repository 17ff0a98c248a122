/* Speculation: what the lookup finds, when the gate opens, and that tokens evaluated ahead are seen by
 * nobody and change no bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "run/gate.h"
#include "run/lookup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- The lookup ---- */

static int32_t random_below(uint64_t *at, int32_t n)
{
    return (int32_t)(mm2_uniform(7, (*at)++) * n);
}

static int32_t longest_match(const int32_t *tokens, int32_t n)
{
    int32_t longest = 0;
    for (int32_t at = 1; at < n; at++) {
        int32_t k = 0;
        while (k < at && k < MM2_MATCH_MOST && tokens[at - 1 - k] == tokens[n - 1 - k])
            k++;
        longest = k > longest ? k : longest;
    }
    return longest;
}

static void the_lookup_finds_the_longest_match(void **state)
{
    enum { LENGTH = 400 };
    int32_t tokens[LENGTH], ahead[9], judged[3] = {0};
    uint64_t at = 0;
    for (int32_t alphabet = 1; alphabet <= 7; alphabet++) {
        mm2_lookup l = {0};
        for (int32_t n = 0; n < LENGTH;) {
            int32_t known = n, matched = l.matched;
            tokens[n++] = random_below(&at, alphabet);
            while (random_below(&at, 10) == 0 && n < LENGTH) /* several at once */
                tokens[n++] = random_below(&at, alphabet);
            if (n > known + 1 && n < LENGTH)
                memcpy(tokens + n - 1, tokens + (n > 60 ? n - 60 : 0), sizeof *tokens);
            int32_t hit = mm2_lookup_follow(&l, tokens, n);
            assert_int_equal(hit<0, n> known + 1 || !matched);
            judged[hit + 1]++;
            assert_int_equal(longest_match(tokens, n), l.matched);
            for (int32_t k = 1; k <= l.matched; k++)
                assert_int_equal(tokens[l.at - k], tokens[n - k]);
            if (!l.matched)
                continue;
            mm2_lookup_read(&l, tokens, 9, ahead);
            for (int32_t i = 0; i < 9; i++)
                assert_int_equal(ahead[i], l.at + i < n ? tokens[l.at + i] : ahead[l.at + i - n]);
        }
        assert_int_equal(-1, mm2_lookup_follow(&l, tokens, LENGTH)); /* nothing new */
    }
    assert_true(judged[0] > 20 && judged[1] > 20 && judged[2] > 20);
}

/* ---- The gate ---- */

/* A gate to which `rows` rows cost 1 + step * (rows - 1). */
static mm2_gate gate_of(double step)
{
    double expected[MM2_GATE_ROWS + 1];
    mm2_gate g;
    for (int32_t rows = 0; rows <= MM2_GATE_ROWS; rows++)
        expected[rows] = 1 + step * (rows - 1);
    mm2_gate_init(&g, expected);
    return g;
}

static void the_gate_opens_where_it_wins(void **state)
{
    mm2_gate cheap = gate_of(0.1), dear = gate_of(0.98);
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(0, mm2_gate_choose(&cheap, 20, 15)); /* nothing is known yet */
        assert_int_equal(0, mm2_gate_closed(&cheap, 15));
        mm2_gate_ran(&cheap, 1, 1000);
        mm2_gate_ran(&dear, 1, 1000);
    }
    assert_in_range(mm2_gate_choose(&cheap, 20, 15), 8, 12); /* of ten rows, nine come */
    assert_int_equal(4, mm2_gate_choose(&cheap, 20, 4));
    assert_int_equal(0, mm2_gate_choose(&cheap, 20, 0));
    assert_int_equal(0, mm2_gate_choose(&cheap, 0, 15));
    assert_int_equal(0, mm2_gate_choose(&dear, 20, 15));
    assert_int_equal(0, mm2_gate_closed(&cheap, 15));
    assert_int_equal(1, mm2_gate_closed(&dear, 15));
    /* What never comes is not proposed, and what does is, however short the match. */
    for (int32_t i = 0; i < 200; i++) {
        mm2_gate_judged(&cheap, 20, 0);
        mm2_gate_judged(&cheap, 1, 1);
    }
    assert_int_equal(0, mm2_gate_choose(&cheap, 20, 15));
    assert_true(mm2_gate_choose(&cheap, 1, 15) > 0);
}

static void the_gate_closes_where_it_loses_and_tries_again(void **state)
{
    mm2_gate g = gate_of(0.1);
    int32_t k, losses = 0, tries = 0;
    for (int32_t i = 0; i < 3; i++)
        mm2_gate_ran(&g, 1, 1000);
    /* Costs are five times what was expected. */
    for (; (k = mm2_gate_choose(&g, 20, 15)); losses++)
        mm2_gate_ran(&g, k + 1, 1000 + 500 * k);
    assert_in_range(losses, 1, 4);
    assert_int_equal(1, mm2_gate_closed(&g, 15));
    for (int32_t i = 0; i < 4000; i++) {
        k = mm2_gate_choose(&g, 20, 15);
        mm2_gate_ran(&g, k + 1, 1000 + 500 * k);
        tries += k > 0;
    }
    assert_in_range(tries, 1, 100);
    assert_true(g.balance > -0.01 * 4000); /* one in a hundred */
    /* By now it costs nothing. */
    for (int32_t i = 0, none = 1; i < 2000 && none; i++) {
        none = !(k = mm2_gate_choose(&g, 20, 15));
        mm2_gate_ran(&g, k + 1, 1000);
        mm2_gate_saved(&g, k);
    }
    for (int32_t i = 0; i < 100; i++) {
        k = mm2_gate_choose(&g, 20, 15);
        mm2_gate_ran(&g, k + 1, 1000);
        mm2_gate_saved(&g, k);
    }
    assert_true(mm2_gate_choose(&g, 20, 15) > 8);
}

static void one_disturbed_measurement_is_not_for_ever(void **state)
{
    mm2_gate g = gate_of(0.1);
    for (int32_t i = 0; i < 3; i++)
        mm2_gate_ran(&g, 1, 1000);
    int32_t k = mm2_gate_choose(&g, 20, 15);
    assert_true(k > 0);
    mm2_gate_ran(&g, k + 1, 1000000000);
    assert_int_equal(0, mm2_gate_choose(&g, 20, 15));
    assert_true(g.cost[k + 1] < 10);
    int32_t runs = 0;
    for (; !mm2_gate_choose(&g, 20, 15) && runs < 5000; runs++)
        mm2_gate_ran(&g, 1, 1000);
    assert_in_range(runs, 1, 4999);
}

/* ---- Sessions ---- */

enum { PROMPT = 250, STEPS = 24, VOCAB = 4096 }; /* the steps cross a page of the cache */

static mm2_model *model;
static int32_t tokens[PROMPT + STEPS];   /* the prompt, and the best tokens behind it */
static float expected[STEPS + 1][VOCAB]; /* logits behind the prompt and each of these */

static mm2_session *session_of(int32_t context, int32_t chunk)
{
    mm2_session_options o = {.size = sizeof o};
    mm2_session *s;
    mm2_session_options_init(&o);
    o.context = context;
    o.chunk = chunk;
    assert_int_equal(MM2_OK, mm2_session_new(&s, model, &o));
    return s;
}

static const float *logits_of(mm2_session *s)
{
    mm2_tensor t;
    assert_int_equal(MM2_OK, mm2_session_logits(s, &t));
    return t.data;
}

static mm2_speculation told(mm2_session *s)
{
    mm2_speculation out = {.size = sizeof out};
    assert_int_equal(MM2_OK, mm2_session_speculation(s, &out));
    return out;
}

static int set_up(void **state)
{
    if (mm2_model_open(&model, "../python/minimax2/m2-tiny", NULL))
        return -1;
    for (int32_t i = 0; i < PROMPT; i++)
        tokens[i] = 17 * (i % 40) % 4000;
    mm2_session *s = session_of(PROMPT + STEPS, 0);
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens, PROMPT));
    for (int32_t i = 0; i <= STEPS; i++) {
        assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
        memcpy(expected[i], logits_of(s), sizeof expected[i]);
        if (i == STEPS)
            break;
        float probability;
        assert_int_equal(MM2_OK, mm2_session_top(s, 1, tokens + PROMPT + i, &probability));
        assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + i, 1));
    }
    mm2_session_free(s);
    return 0;
}

static int tear_down(void **state)
{
    mm2_model_release(model);
    return 0;
}

/* A session that stands behind the prompt and `steps` of the tokens, the last of them pending. */
static mm2_session *session_at(int32_t steps)
{
    mm2_session *s = session_of(PROMPT + STEPS, 0);
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens, PROMPT + steps - 1));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + steps - 1, 1));
    return s;
}

static void assert_stands(mm2_session *s, int32_t steps)
{
    assert_int_equal(PROMPT + steps, mm2_session_length(s));
    assert_int_equal(PROMPT + steps, mm2_session_position(s));
    assert_memory_equal(expected[steps], logits_of(s), sizeof expected[steps]);
}

static void step(mm2_session *s, int32_t steps)
{
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + steps - 1, 1));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    assert_stands(s, steps);
}

static void drafts_change_no_bit(void **state)
{
    for (int32_t right = 0; right <= 5; right++) { /* of five, as many come true */
        int32_t draft[5];
        mm2_session *s = session_at(1);
        memcpy(draft, tokens + PROMPT + 1, sizeof draft);
        if (right < 5)
            draft[right] ^= 1;
        assert_int_equal(MM2_OK, mm2_session_draft(s, draft, 5));
        assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
        assert_stands(s, 1);
        for (int32_t i = 2; i <= STEPS; i++)
            step(s, i);
        assert_int_equal(5, told(s).proposed);
        assert_int_equal(right, told(s).accepted);
        assert_int_equal(1, told(s).runs);
        mm2_session_free(s);
    }
}

static void those_that_come_take_no_work(void **state)
{
    mm2_session *s = session_at(1);
    mm2_event e = {.size = sizeof e};
    assert_int_equal(MM2_OK, mm2_session_draft(s, tokens + PROMPT + 1, 3));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, &e));
    assert_int_equal(e.total, e.done); /* the draft is no progress */
    /* While they agree with what is fed, others do not replace them. */
    assert_int_equal(MM2_OK, mm2_session_draft(s, NULL, 0));
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + 1, 1));
    assert_int_equal(MM2_OK, mm2_session_draft(s, tokens, 7));
    assert_int_equal(MM2_OK, mm2_session_run(s, 1, NULL)); /* a microsecond is enough */
    assert_stands(s, 2);
    /* The other two at once. */
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + 2, 2));
    assert_int_equal(MM2_OK, mm2_session_run(s, 1, NULL));
    assert_stands(s, 4);
    assert_int_equal(3, told(s).accepted);
    step(s, 5);
    assert_int_equal(3, told(s).proposed);
    /* Two of three, and two more behind them. */
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + 5, 1));
    int32_t draft[] = {tokens[PROMPT + 6], tokens[PROMPT + 7], tokens[PROMPT + 8] ^ 1};
    assert_int_equal(MM2_OK, mm2_session_draft(s, draft, 3));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + 6, 4));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    assert_stands(s, 10);
    assert_int_equal(5, told(s).accepted);
    mm2_session_free(s);
}

static void nobody_sees_a_draft(void **state)
{
    char path[] = "/tmp/minimax2-ahead-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    for (int32_t when = 0; when < 2; when++) { /* in flight; evaluated */
        mm2_session *s = session_at(2), *fork, *restored;
        mm2_tensor seen;
        assert_int_equal(MM2_OK, mm2_session_draft(s, tokens + PROMPT + 2, 9));
        assert_int_equal(when ? MM2_OK : MM2_MORE, mm2_session_run(s, when ? 0 : 1, NULL));
        assert_int_equal(PROMPT + 2, mm2_session_length(s));
        assert_int_equal(PROMPT + 1 + when, mm2_session_position(s));
        assert_int_equal(MM2_OK, mm2_session_tokens(s, &seen));
        assert_int_equal(PROMPT + 2, seen.shape[0]);
        assert_int_equal(MM2_OK, mm2_session_fork(&fork, s));
        assert_int_equal(MM2_OK, mm2_session_save(s, path));
        assert_int_equal(MM2_OK, mm2_session_restore(&restored, model, path, NULL));
        mm2_session *all[] = {s, fork, restored};
        for (int32_t i = 2; i < 20; i++)
            for (int32_t k = 0; k < 3; k++) {
                assert_int_equal(MM2_OK, mm2_session_run(all[k], 0, NULL));
                assert_stands(all[k], i);
                if (k != 1 || i != 5) {
                    assert_int_equal(MM2_OK, mm2_session_feed(all[k], tokens + PROMPT + i, 1));
                    continue;
                }
                int32_t other = 1; /* the fork writes elsewhere, and comes back */
                assert_int_equal(MM2_OK, mm2_session_feed(fork, &other, 1));
                assert_int_equal(MM2_OK, mm2_session_run(fork, 0, NULL));
                assert_int_equal(MM2_OK, mm2_session_rewind(fork, PROMPT + 5));
                assert_int_equal(MM2_OK, mm2_session_feed(fork, tokens + PROMPT + 5, 1));
            }
        assert_int_equal(9, told(s).accepted);
        assert_int_equal(0, told(fork).accepted);
        for (int32_t k = 0; k < 3; k++)
            mm2_session_free(all[k]);
    }
    unlink(path);
}

static void cutting_and_feeding_in_the_middle_keep_the_bits(void **state)
{
    int32_t other = 5, draft[] = {tokens[PROMPT + 2], 5, 6};
    for (int32_t when = 0; when < 2; when++) {
        mm2_session *s = session_at(2);
        assert_int_equal(MM2_OK, mm2_session_draft(s, tokens + PROMPT + 2, 9));
        assert_int_equal(when ? MM2_OK : MM2_MORE, mm2_session_run(s, when ? 0 : 1, NULL));
        assert_int_equal(MM2_OK, mm2_session_rewind(s, PROMPT + 1));
        step(s, 2);
        /* More is fed while rows are in flight, some of it as was foretold. */
        for (int32_t same = 0; same < 3; same++) {
            assert_int_equal(MM2_OK, mm2_session_rewind(s, PROMPT + 1));
            assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + 1, 1));
            assert_int_equal(MM2_OK,
                             mm2_session_draft(s, same == 1 ? draft : &other, same == 1 ? 3 : 1));
            assert_int_equal(when ? MM2_OK : MM2_MORE, mm2_session_run(s, when ? 0 : 1, NULL));
            assert_int_equal(MM2_OK, mm2_session_draft(s, tokens, 4)); /* comes too late */
            assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + 2, 3));
            assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
            assert_stands(s, 5);
        }
        mm2_session_free(s);
    }
}

static void taps_see_each_row_in_its_turn(void **state)
{
    for (int32_t when = 0; when < 3; when++) { /* switched on before; in flight; afterwards */
        mm2_session *s = session_at(2);
        mm2_event e = {.size = sizeof e};
        int32_t logits = MM2_POINT_LOGITS, last = MM2_POINT_MLP_OUT, seen = 0;
        for (int32_t i = 0; i < 2 && !when; i++)
            assert_int_equal(MM2_OK, mm2_session_tap(s, i ? logits : last, -1, 1));
        assert_int_equal(MM2_OK, mm2_session_draft(s, tokens + PROMPT + 2, 9));
        if (when)
            assert_int_equal(when == 1 ? MM2_MORE : MM2_OK,
                             mm2_session_run(s, when == 1 ? 1 : 0, NULL));
        for (int32_t i = 0; i < 2 && when; i++)
            assert_int_equal(MM2_OK, mm2_session_tap(s, i ? logits : last, -1, 1));
        for (int32_t i = 2 + (when == 2); i < 6; i++) {
            mm2_status status;
            if (mm2_session_length(s) < PROMPT + i)
                assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + i - 1, 1));
            while ((status = mm2_session_run(s, 0, &e)) == MM2_TAP) {
                assert_int_equal(PROMPT + i - 1, e.first);
                assert_int_equal(1, e.count);
                assert_int_equal(1, e.tensor.shape[0]);
                if (e.point == logits)
                    assert_memory_equal(expected[i], e.tensor.data, sizeof expected[i]);
                seen++;
            }
            assert_int_equal(MM2_OK, status);
            assert_stands(s, i);
        }
        assert_true(seen >= 6);
        assert_int_equal(0, told(s).accepted);
        mm2_session_free(s);
    }
}

static void edits_work_on_rows_ahead(void **state)
{
    mm2_edit edit = {
        .size = sizeof edit, .kind = MM2_EDIT_SCALE, .point = MM2_POINT_MLP_OUT, .factor = 2};
    for (int32_t when = 0; when < 3; when++) { /* set before; in flight; afterwards */
        mm2_session *s = session_at(2), *plain = session_at(2);
        edit.first = PROMPT + 3 - 3 * (when == 1);
        for (int32_t i = 2; i < 12; i++) {
            if (i == 2 && when == 0)
                assert_int_equal(MM2_OK, mm2_session_set_edits(s, &edit, 1));
            if (i == 2)
                assert_int_equal(MM2_OK, mm2_session_draft(s, tokens + PROMPT + 2, 9));
            if (i == 2 && when == 1)
                assert_int_equal(MM2_MORE, mm2_session_run(plain, 1, NULL));
            if (i == 2)
                assert_int_equal(when == 1 ? MM2_MORE : MM2_OK,
                                 mm2_session_run(s, when == 1 ? 1 : 0, NULL));
            if (i == 2 && when)
                assert_int_equal(MM2_OK, mm2_session_set_edits(s, &edit, 1));
            if (i == 2)
                assert_int_equal(MM2_OK, mm2_session_set_edits(plain, &edit, 1));
            mm2_session *both[] = {s, plain};
            for (int32_t k = 0; k < 2; k++)
                assert_int_equal(MM2_OK, mm2_session_run(both[k], 0, NULL));
            assert_memory_equal(logits_of(plain), logits_of(s), sizeof expected[0]);
            assert_true((i > 3 || when == 1) ==
                        !!memcmp(logits_of(s), expected[i], sizeof expected[0]));
            for (int32_t k = 0; k < 2; k++)
                assert_int_equal(MM2_OK, mm2_session_feed(both[k], tokens + PROMPT + i, 1));
        }
        assert_int_equal(when ? 0 : 9, told(s).accepted);
        mm2_session_free(plain);
        mm2_session_free(s);
    }
}

static void there_are_no_more_than_there_is_room_for(void **state)
{
    int32_t bad = VOCAB, many[40] = {0};
    mm2_speculation small = {.size = 0};
    mm2_session *s = session_of(PROMPT + 4, 0);
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens, PROMPT + 1));
    memcpy(many, tokens + PROMPT + 1, 20 * sizeof *many);
    assert_int_equal(MM2_E_ARG, mm2_session_draft(s, &bad, 1));
    assert_int_equal(MM2_E_ARG, mm2_session_draft(s, NULL, 1));
    assert_int_equal(MM2_E_ARG, mm2_session_draft(s, many, -1));
    assert_int_equal(MM2_E_ARG, mm2_session_speculate(s, -1));
    assert_int_equal(MM2_E_ARG, mm2_session_speculate(s, MM2_DRAFT_MOST + 1));
    assert_int_equal(MM2_E_ARG, mm2_session_speculation(s, &small));
    assert_int_equal(MM2_OK, mm2_session_draft(s, many, 40));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    assert_int_equal(3, told(s).proposed); /* the context ends */
    for (int32_t i = 2; i <= 4; i++)
        step(s, i);
    assert_int_equal(MM2_OK, mm2_session_draft(s, many, 1));
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    mm2_session_free(s);
    for (int32_t chunk = 1; chunk <= 3; chunk++) { /* a run has so many rows */
        s = session_of(PROMPT + STEPS, chunk);
        assert_int_equal(MM2_OK, mm2_session_feed(s, tokens, PROMPT));
        assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
        assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT, 1));
        assert_int_equal(MM2_OK, mm2_session_draft(s, many, 9));
        assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
        assert_stands(s, 1);
        assert_int_equal(chunk - 1, told(s).proposed);
        mm2_session_free(s);
    }
}

static void a_batch_has_some_while_one_is_alone_in_it(void **state)
{
    mm2_batch *b;
    mm2_event e = {.size = sizeof e};
    mm2_session *s = session_at(1), *other = session_at(1);
    assert_int_equal(MM2_OK, mm2_batch_new(&b, model, NULL));
    assert_int_equal(MM2_OK, mm2_batch_add(b, s));
    assert_int_equal(MM2_OK, mm2_session_draft(s, tokens + PROMPT + 1, 3));
    assert_int_equal(MM2_READY, mm2_batch_run(b, 0, &e));
    assert_stands(s, 1);
    /* What was evaluated while it was alone is good afterwards. */
    assert_int_equal(MM2_OK, mm2_batch_add(b, other));
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + 1, 1));
    assert_int_equal(MM2_READY, mm2_batch_run(b, 1, &e));
    assert_int_equal(0, e.session);
    assert_stands(s, 2);
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + PROMPT + 2, 3));
    assert_int_equal(MM2_OK, mm2_session_draft(other, tokens + PROMPT + 1, 3));
    while (mm2_batch_run(b, 0, &e) != MM2_OK)
        ;
    assert_stands(s, 5);
    assert_stands(other, 1);
    assert_int_equal(3, told(s).accepted);
    assert_int_equal(0, told(other).proposed);
    mm2_batch_free(b);
    mm2_session_free(s);
    mm2_session_free(other);
}

static void proposals_are_made_and_come_true(void **state)
{
    mm2_session *s = session_of(800, 0);
    assert_int_equal(MM2_OK, mm2_session_speculate(s, MM2_DRAFT_MOST));
    assert_int_equal(MM2_OK, mm2_session_feed(s, tokens, PROMPT));
    for (int32_t i = 0; i < 400; i++) { /* what is fed repeats itself */
        assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
        if (i == 9 || i == 200)
            assert_int_equal(MM2_OK, mm2_session_rewind(s, PROMPT + i - 7));
        assert_int_equal(MM2_OK, mm2_session_feed(s, tokens + mm2_session_length(s) % 40, 1));
    }
    mm2_speculation got = told(s);
    assert_int_equal(MM2_DRAFT_MOST, got.most);
    assert_true(got.accepted > 0 && got.accepted <= got.proposed && got.runs <= got.accepted);
    mm2_session *plain = session_of(800, 0);
    assert_int_equal(MM2_OK, mm2_session_run(s, 0, NULL));
    mm2_tensor all;
    assert_int_equal(MM2_OK, mm2_session_tokens(s, &all));
    assert_int_equal(MM2_OK, mm2_session_feed(plain, all.data, (int32_t)all.shape[0]));
    assert_int_equal(MM2_OK, mm2_session_run(plain, 0, NULL));
    assert_memory_equal(logits_of(plain), logits_of(s), sizeof expected[0]);
    assert_int_equal(MM2_OK, mm2_session_speculate(s, 0));
    assert_int_equal(0, told(s).proposed);
    mm2_session_free(plain);
    mm2_session_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_lookup_finds_the_longest_match),
        cmocka_unit_test(the_gate_opens_where_it_wins),
        cmocka_unit_test(the_gate_closes_where_it_loses_and_tries_again),
        cmocka_unit_test(one_disturbed_measurement_is_not_for_ever),
        cmocka_unit_test(drafts_change_no_bit),
        cmocka_unit_test(those_that_come_take_no_work),
        cmocka_unit_test(nobody_sees_a_draft),
        cmocka_unit_test(cutting_and_feeding_in_the_middle_keep_the_bits),
        cmocka_unit_test(taps_see_each_row_in_its_turn),
        cmocka_unit_test(edits_work_on_rows_ahead),
        cmocka_unit_test(there_are_no_more_than_there_is_room_for),
        cmocka_unit_test(a_batch_has_some_while_one_is_alone_in_it),
        cmocka_unit_test(proposals_are_made_and_come_true),
    };
    return cmocka_run_group_tests_name("ahead", tests, set_up, tear_down);
}
