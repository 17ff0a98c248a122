/* Chat templates: which of them renders the format that chat.c writes. */
#ifndef MM2_TEMPLATE_H
#define MM2_TEMPLATE_H

#include "minimax2.h"

enum { MM2_MAX_SYSTEM = 4096 }; /* bytes of a default system prompt in a template */

typedef struct mm2_template {
    uint64_t fingerprint; /* of the normal form; 0: the text cannot be read as a template */
    int known;            /* it renders as chat.c does, but for these: */
    int keeps_tags;       /* thinking stays in a content that holds <think> and </think> */
    int newline_after_calls;
    int system_length;
    char system[MM2_MAX_SYSTEM]; /* default system prompt, without a NUL */
} mm2_template;

void mm2_template_read(mm2_template *out, const char *text, int64_t length);

#endif
