/* Several texts at once: the weights are read once for all of them, and each text is the one that it
 * would be alone.
 *
 *   cc together.c $(pkg-config --cflags --libs minimax2) -o together
 *   ./together MODEL "import " "class " "def " */
#include <minimax2.h>
#include <stdio.h>
#include <string.h>

enum { MOST = 16, CONTEXT = 256, NEW_TOKENS = 12 };

static int failed(void)
{
    fprintf(stderr, "%s\n", mm2_error());
    return 1;
}

int main(int argc, char **argv)
{
    mm2_model *model;
    mm2_batch *batch;
    mm2_session *sessions[MOST];
    mm2_sampler *sampler;
    int32_t ids[CONTEXT], begin[MOST], count = argc - 2;
    char text[4096];
    if (count < 1 || count > MOST)
        return fprintf(stderr, "usage: together MODEL PROMPT...\n"), 2;
    if (mm2_model_open(&model, argv[1], NULL) || mm2_batch_new(&batch, model, NULL))
        return failed();
    mm2_sampling greedy = {.size = sizeof greedy};
    mm2_sampling_init(&greedy, model);
    greedy.temperature = 0;
    if (mm2_sampler_new(&sampler, model, &greedy))
        return failed();
    const mm2_tokenizer *tokenizer = mm2_model_tokenizer(model);
    for (int32_t i = 0; i < count; i++) {
        const char *prompt = argv[i + 2];
        int32_t n =
            mm2_tokenizer_encode(tokenizer, prompt, (int32_t)strlen(prompt), 0, ids, CONTEXT);
        if (n > CONTEXT)
            return fprintf(stderr, "the prompt has %d tokens, there is room for %d\n", n, CONTEXT),
                   1;
        if (n < 0 || mm2_session_new(&sessions[i], model, NULL) ||
            mm2_session_feed(sessions[i], ids, n) || mm2_batch_add(batch, sessions[i]))
            return failed();
        begin[i] = n;
    }

    /* Whoever has caught up is told of, gets a token, and joins the next pass. */
    mm2_event event = {.size = sizeof event};
    mm2_status status;
    while ((status = mm2_batch_run(batch, 0, &event)) == MM2_READY) {
        mm2_session *one = sessions[event.session];
        int32_t id = mm2_sampler_next(sampler, one, NULL);
        if (id < 0)
            return failed();
        if (mm2_session_length(one) < begin[event.session] + NEW_TOKENS &&
            mm2_session_feed(one, &id, 1))
            return failed();
    }
    if (status)
        return failed();
    for (int32_t i = 0; i < count; i++) {
        mm2_tensor tokens;
        if (mm2_session_tokens(sessions[i], &tokens))
            return failed();
        int32_t n = mm2_tokenizer_decode(tokenizer, tokens.data, (int32_t)tokens.shape[0], 0, text,
                                         sizeof text);
        printf("--- %.*s\n", n < (int32_t)sizeof text ? n : (int32_t)sizeof text, text);
        mm2_session_free(sessions[i]);
    }
    mm2_batch_free(batch);
    mm2_sampler_free(sampler);
    mm2_model_release(model);
    return 0;
}
