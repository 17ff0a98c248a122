/* Text that goes on with a prompt.
 *
 *   cc generate.c $(pkg-config --cflags --libs minimax2) -o generate
 *   ./generate MODEL "def fibonacci(n):" */
#include <minimax2.h>
#include <stdio.h>
#include <string.h>

enum { CONTEXT = 512, NEW_TOKENS = 40 };

static int failed(void)
{
    fprintf(stderr, "%s\n", mm2_error());
    return 1;
}

int main(int argc, char **argv)
{
    mm2_model *model;
    mm2_session *session;
    mm2_sampler *sampler;
    mm2_reply *reply;
    int32_t ids[CONTEXT];
    if (argc != 3)
        return fprintf(stderr, "usage: generate MODEL PROMPT\n"), 2;
    if (mm2_model_open(&model, argv[1], NULL))
        return failed();

    mm2_session_options options = {.size = sizeof options};
    mm2_session_options_init(&options);
    options.context = CONTEXT;
    mm2_sampling draws = {.size = sizeof draws};
    mm2_sampling_init(&draws, model); /* as the checkpoint recommends */
    draws.seed = 6;
    mm2_reply_options ends = {.size = sizeof ends};
    mm2_reply_options_init(&ends);
    ends.max_tokens = NEW_TOKENS;
    const mm2_tokenizer *tokenizer = mm2_model_tokenizer(model);
    int32_t n = mm2_tokenizer_encode(tokenizer, argv[2], (int32_t)strlen(argv[2]), 0, ids, CONTEXT);
    if (n > CONTEXT)
        return fprintf(stderr, "the prompt has %d tokens, there is room for %d\n", n, CONTEXT), 1;
    if (n < 0 || mm2_session_new(&session, model, &options) ||
        mm2_sampler_new(&sampler, model, &draws) || mm2_reply_new(&reply, tokenizer, &ends) ||
        mm2_session_feed(session, ids, n))
        return failed();

    mm2_piece piece = {.size = sizeof piece};
    do {
        if (mm2_session_run(session, 0, NULL))
            return failed();
        int32_t id = mm2_sampler_next(sampler, session, NULL);
        if (id < 0 || mm2_session_feed(session, &id, 1) || mm2_reply_push(reply, id, &piece))
            return failed();
        fwrite(piece.text, 1, (size_t)piece.text_len, stdout);
        fflush(stdout);
    } while (piece.end == MM2_END_NONE);
    putchar('\n');

    mm2_reply_free(reply);
    mm2_sampler_free(sampler);
    mm2_session_free(session);
    mm2_model_release(model);
    return 0;
}
