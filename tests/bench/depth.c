/* What depth costs: one more token, and a piece of a prompt, behind contexts that need not be computed
 * first. The cells of a session are filled with random keys and values, so that a depth of 128k is
 * reached at once; attention does not care what it reads.
 *
 *   make -C csrc bench-depth ARGS="model.gguf [depth,... [prompt [level [threads]]]]"
 *
 * For each cache type, in turns: ms a token and tokens per second; GB of weights and cache that it
 * must read, per second, and as a share of the best read of memory, measured beside it; what the
 * positions alone take, the time of depth 0 taken away, as GB per second of cache. prompt: that many
 * tokens behind each depth (0: not measured), 2 * operations a second of attention alone, the time of
 * the same piece at depth 0 taken away. Medians of RUNS.
 *
 * Best under real-time priority (chrt -f 10) on an otherwise idle machine. */
#include "base/status.h"
#include "model/model.h"
#include "run/session.h"
#include "tensor/dtype.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RUNS = 7, TOKENS = 4, MAX_DEPTHS = 12, DTYPES = 3 };
static const int32_t dtypes[DTYPES] = {MM2_F32, MM2_BF16, MM2_INT8};
static uint64_t state = 88172645463325252u;

static void need(mm2_status status)
{
    if (status) {
        fprintf(stderr, "%s\n", mm2_status_text());
        exit(1);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x)
{
    qsort(x, RUNS, sizeof *x, by_size);
    return x[RUNS / 2];
}

static float draw(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (float)(int32_t)(state >> 32) * 0x1p-31f;
}

/* Keys or values of one head. */
static void fill(char *p, int32_t dtype, int32_t head_dim, int keys)
{
    int64_t n = (int64_t)MM2_CHUNK * head_dim;
    for (int64_t i = 0; i < n && dtype == MM2_F32; i++)
        ((float *)p)[i] = draw();
    for (int64_t i = 0; i < n && dtype == MM2_BF16; i++)
        ((uint16_t *)p)[i] = mm2_f32_bf16(draw());
    for (int32_t j = 0; j < MM2_CHUNK && dtype == MM2_INT8; j++) {
        float scale = 1.0f / 127;
        for (int32_t d = 0; d < head_dim; d++)
            p[keys ? mm2_key_at(dtype, head_dim, j, d) : mm2_value_at(dtype, head_dim, j, d)] =
                (char)(int)(127 * draw());
        memcpy(p + (keys ? mm2_key_scale_at(head_dim, j) : mm2_value_scale_at(head_dim, j)), &scale,
               4);
    }
}

/* A session that stands at `depth`. */
static mm2_session *session_at(mm2_model *m, int32_t dtype, int32_t depth, int32_t room)
{
    mm2_session_options o = {.size = sizeof o};
    mm2_session *s;
    mm2_session_options_init(&o);
    o.context = depth + room;
    o.kv_dtype = dtype;
    need(mm2_session_new(&s, m, &o));
    mm2_timeline *t = &s->timeline;
    const mm2_config *g = &m->checkpoint.config;
    int64_t bytes = mm2_kv_bytes(dtype, g->head_dim);
    need(mm2_pages_reserve(&t->pages, 0, depth));
    for (int32_t page = 0; page < t->pages.count; page++)
        for (int32_t layer = 0; layer < g->num_hidden_layers; layer++) {
            char *cell = mm2_pages_own_cell(&t->pages, page, layer);
            int64_t values = t->pages.layout->cells[layer].planes[1].at;
            for (int32_t head = 0; head < g->num_key_value_heads; head++) {
                if (page == 0) {
                    fill(cell + head * bytes, dtype, g->head_dim, 1);
                    fill(cell + values + head * bytes, dtype, g->head_dim, 0);
                    continue;
                }
                const char *first = mm2_pages_cell(&t->pages, 0, layer);
                memcpy(cell + head * bytes, first + head * bytes, (size_t)bytes);
                memcpy(cell + values + head * bytes, first + values + head * bytes, (size_t)bytes);
            }
        }
    memset(t->tokens->data, 0, (size_t)depth * 4);
    t->length = t->position = depth;
    return s;
}

/* Seconds for `count` tokens, `together` at a time, behind `depth` ones. */
static double evaluate(mm2_session *s, int32_t depth, int32_t count, int32_t together)
{
    int32_t ids[4096];
    for (int32_t i = 0; i < together; i++)
        ids[i] = 7 * i % s->timeline.model->checkpoint.config.vocab_size;
    need(mm2_session_rewind(s, depth));
    double start = now();
    for (int32_t i = 0; i < count; i += together) {
        need(mm2_session_feed(s, ids, together));
        need(mm2_session_run(s, 0, NULL));
    }
    return now() - start;
}

int main(int argc, char **argv)
{
    int32_t depths[MAX_DEPTHS] = {0}, count = 1; /* 0 is always the first */
    int32_t prompt = argc > 3 ? atoi(argv[3]) : 0;
    mm2_model_options o = {.size = sizeof o};
    mm2_model *m;
    if (argc < 2 || prompt < 0 || prompt > 4096) {
        fprintf(stderr,
                "usage: depth model [depth,... [prompt of at most 4096 [level [threads]]]]\n");
        return 1;
    }
    const char *list = argc > 2 ? argv[2] : "4096,16384,32768";
    for (char *end; *list && count < MAX_DEPTHS; list = *end ? end + 1 : end, count++)
        depths[count] = (int32_t)strtol(list, &end, 10);
    mm2_model_options_init(&o);
    o.threads = argc > 5 ? atoi(argv[5]) : 0;
    if (argc > 4)
        setenv("MM2_ISA", argv[4], 1);
    need(mm2_model_open(&m, argv[1], &o));
    const mm2_config *g = &m->checkpoint.config;
    printf("%s, %s, %d layers, %d threads\n", argv[1], mm2_model_info(m, "isa"),
           g->num_hidden_layers, mm2_model_threads(m));
    printf("%-6s %8s %9s %9s %8s %7s %11s", "cache", "depth", "ms/token", "tokens/s", "GB/s",
           "of best", "cache GB/s");
    if (prompt)
        printf(" %9s %11s %10s", "prompt/s", "attention s", "Gop/s");
    printf("\n");
    double base[DTYPES] = {0}, prompt_base[DTYPES] = {0};
    for (int32_t i = 0; i < count; i++) {
        mm2_session *s[DTYPES];
        double seconds[DTYPES][RUNS], share[DTYPES][RUNS], pieces[DTYPES][RUNS];
        mm2_cost layers, rest;
        int32_t room = TOKENS > prompt ? TOKENS : prompt;
        for (int32_t k = 0; k < DTYPES; k++) {
            s[k] = session_at(m, dtypes[k], depths[i], room);
            evaluate(s[k], depths[i], TOKENS, 1);
        }
        for (int32_t r = 0; r < RUNS; r++) {
            mm2_limits limits = {.size = sizeof limits};
            need(mm2_model_limits(m, &limits));
            for (int32_t k = 0; k < DTYPES; k++) {
                layers.size = rest.size = sizeof layers;
                need(mm2_model_cost(m, 1, depths[i] + TOKENS / 2, dtypes[k], &layers, &rest));
                double bytes = layers.weight_bytes + layers.kv_bytes + rest.weight_bytes;
                seconds[k][r] = evaluate(s[k], depths[i], TOKENS, 1) / TOKENS;
                share[k][r] = bytes / seconds[k][r] / limits.best_read;
                if (prompt && r < 3)
                    pieces[k][r] = evaluate(s[k], depths[i], prompt, prompt);
            }
        }
        for (int32_t k = 0; k < DTYPES; k++) {
            double t = median(seconds[k]), piece = 0;
            need(mm2_model_cost(m, 1, depths[i] + TOKENS / 2, dtypes[k], &layers, &rest));
            double bytes = layers.weight_bytes + layers.kv_bytes + rest.weight_bytes;
            if (prompt) {
                qsort(pieces[k], 3, sizeof(double), by_size);
                piece = pieces[k][1];
            }
            if (i == 0)
                base[k] = t, prompt_base[k] = piece;
            printf("%-6s %8d %9.3f %9.1f %8.1f %6.0f%% %11.1f", mm2_dtype_name(dtypes[k]),
                   depths[i], t * 1e3, 1 / t, bytes / t * 1e-9, 100 * median(share[k]),
                   i ? layers.kv_bytes / (t - base[k]) * 1e-9 : 0);
            double ops = 4.0 * g->num_attention_heads * g->head_dim * g->num_hidden_layers *
                         prompt * depths[i];
            if (prompt)
                printf(" %9.1f %11.3f %10.0f", prompt / piece, piece - prompt_base[k],
                       i ? ops / (piece - prompt_base[k]) * 1e-9 : 0);
            printf("\n");
            fflush(stdout);
            mm2_session_free(s[k]);
        }
    }
    mm2_model_release(m);
    return 0;
}
