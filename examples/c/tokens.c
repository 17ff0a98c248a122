/* The tokens of a text, with a tokenizer alone: no model is opened.
 *
 *   cc tokens.c $(pkg-config --cflags --libs minimax2) -o tokens
 *   ./tokens MODEL/tokenizer.json "def fibonacci(n):" */
#include <minimax2.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    mm2_tokenizer *tokenizer;
    int32_t ids[1024];
    if (argc != 3)
        return fprintf(stderr, "usage: tokens TOKENIZER TEXT\n"), 2;
    int32_t n = mm2_tokenizer_open(&tokenizer, argv[1]);
    if (!n)
        n = mm2_tokenizer_encode(tokenizer, argv[2], (int32_t)strlen(argv[2]), 0, ids, 1024);
    if (n < 0)
        return fprintf(stderr, "%s\n", mm2_error()), 1;
    for (int32_t i = 0; i < n && i < 1024; i++) {
        int32_t len;
        const char *bytes = mm2_tokenizer_token(tokenizer, ids[i], &len);
        printf("%6d  \"%.*s\"\n", ids[i], len, bytes);
    }
    mm2_tokenizer_release(tokenizer);
    return 0;
}
