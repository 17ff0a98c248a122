/* A tokenizer whose ids are the 256 bytes, the chat format's tags, and texts of the test's choice:
 * what a row of ids means can be read off it. Include after cmocka.h. */
#ifndef TAG_TOKENIZER_H
#define TAG_TOKENIZER_H

#include "base/utf8.h"
#include "text/tokenizer.h"

enum { BEGIN = 256, ROLE, END, THINK, UNTHINK, CALL, UNCALL, TOKENS, MOST_EXTRA = 32 };

/* The first `count` tokens (without the last ones some tags are missing), then the extra ones. */
static mm2_tokenizer *make_with(int count, const char *const *extra, int extra_count)
{
    static char spelled[256][3];
    static const char *const tags[] = {"]~!b[",
                                       "]~b]",
                                       "[e~[",
                                       "<think>",
                                       "</think>",
                                       "<minimax:tool_call>",
                                       "</minimax:tool_call>"};
    const char *tokens[TOKENS + MOST_EXTRA];
    uint32_t lengths[TOKENS + MOST_EXTRA];
    int32_t types[TOKENS + MOST_EXTRA];
    int next = 0x100, total = count + extra_count;
    mm2_tokenizer *t;
    memset(spelled, 0, sizeof spelled);
    for (int i = 0; i < total; i++) {
        int printable = (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i != 0xad);
        if (i < 256)
            mm2_utf8_put((uint8_t *)spelled[i], printable ? i : next++);
        tokens[i] = i < 256 ? spelled[i] : i < count ? tags[i - 256] : extra[i - count];
        lengths[i] = (uint32_t)strlen(tokens[i]);
        types[i] = i < 256 ? 1 : i < THINK && i < count ? 3 : 4;
    }
    mm2_vocabulary v = {total, tokens, lengths, types, 0, NULL, NULL, "minimax-m2", -1, -1, -1, -1};
    assert_int_equal(mm2_tokenizer_from_vocabulary(&t, &v, "tags.gguf"), MM2_OK);
    return t;
}

static inline mm2_tokenizer *make(int count)
{
    return make_with(count, NULL, 0);
}

#endif
