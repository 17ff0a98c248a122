/* Looking inside: the length of the residual stream behind each layer, and how an edit changes it.
 *
 *   cc look.c $(pkg-config --cflags --libs minimax2) -lm -o look
 *   ./look MODEL "import os" */
#include <math.h>
#include <minimax2.h>
#include <stdio.h>
#include <string.h>

enum { CONTEXT = 512 };

static int failed(void)
{
    fprintf(stderr, "%s\n", mm2_error());
    return 1;
}

/* Evaluates ids and stops behind each layer; the tensor is a live view on the run's memory. */
static int look(mm2_session *session, const int32_t *ids, int32_t n)
{
    mm2_event event = {.size = sizeof event};
    mm2_status status;
    if (mm2_session_feed(session, ids, n) || mm2_session_tap(session, MM2_POINT_RESID_POST, -1, 1))
        return failed();
    while ((status = mm2_session_run(session, 0, &event)) == MM2_TAP) {
        int64_t width = event.tensor.shape[1];
        const float *last = (const float *)event.tensor.data + (event.count - 1) * width;
        double sum = 0;
        for (int64_t i = 0; i < width; i++)
            sum += (double)last[i] * (double)last[i];
        printf(" %.1f", sqrt(sum));
    }
    putchar('\n');
    return status ? failed() : 0;
}

int main(int argc, char **argv)
{
    mm2_model *model;
    mm2_session *session;
    int32_t ids[CONTEXT];
    if (argc != 3)
        return fprintf(stderr, "usage: look MODEL PROMPT\n"), 2;
    if (mm2_model_open(&model, argv[1], NULL) || mm2_session_new(&session, model, NULL))
        return failed();
    int32_t n = mm2_tokenizer_encode(mm2_model_tokenizer(model), argv[2], (int32_t)strlen(argv[2]),
                                     0, ids, CONTEXT);
    if (n > CONTEXT)
        return fprintf(stderr, "the prompt has %d tokens, there is room for %d\n", n, CONTEXT), 1;
    printf("as it is:       ");
    if (n < 0 || look(session, ids, n))
        return n < 0 ? failed() : 1;

    /* Attention of the first layer adds nothing, from now on and for this session. */
    mm2_edit edit = {.size = sizeof edit,
                     .kind = MM2_EDIT_SCALE,
                     .point = MM2_POINT_ATTN_OUT,
                     .end_layer = 1,
                     .factor = 0};
    printf("without attn 0: ");
    if (mm2_session_set_edits(session, &edit, 1) || mm2_session_rewind(session, 0))
        return failed();
    if (look(session, ids, n))
        return 1;
    mm2_session_free(session);
    mm2_model_release(model);
    return 0;
}
