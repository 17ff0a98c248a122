/* What a tokenizer consists of; seen by the files of text/ only. */
#ifndef MM2_PARTS_H
#define MM2_PARTS_H

#include "text/added.h"
#include "text/bpe.h"
#include "text/order.h"
#include "text/split.h"
#include "text/tokenizer.h"

#include <stdatomic.h>

enum {                                     /* the chat format's own tokens, in mm2_tokenizer.tags */
       MM2_TAG_BEGIN,                      /* ]~!b[ */
       MM2_TAG_ROLE,                       /* ]~b] */
       MM2_TAG_END,                        /* [e~[ */
       MM2_TAG_THINK_OPEN,                 /* <think> */
       MM2_TAG_THINK_CLOSE,                /* </think> */
       MM2_TAG_NEEDED,                     /* without the ones below, those are texts */
       MM2_TAG_CALL_OPEN = MM2_TAG_NEEDED, /* <minimax:tool_call> */
       MM2_TAG_CALL_CLOSE,                 /* </minimax:tool_call> */
       MM2_TAG_COUNT
};
extern const char *const mm2_tag_text[MM2_TAG_COUNT];

struct mm2_tokenizer {
    mm2_bpe bpe;
    mm2_split *split;
    mm2_added raw;        /* found in the text as it is */
    mm2_added normalized; /* found after normalisation, in what the raw ones left */
    int nfc;
    mm2_tokenizer_info facts;
    int32_t tags[MM2_TAG_COUNT]; /* -1: the vocabulary has no such token */
    char *system;                /* default system prompt */
    const char *template_name;   /* NULL: not recognised, or none given */
    char *unknown_template;      /* where one stands that was not recognised; or NULL */
    char *unknown_text;          /* that one; or NULL */
    int keeps_tags;              /* the template leaves thinking in a content that holds its tags */
    int newline_after_calls;     /* it writes one */
    _Atomic(mm2_order *) order;  /* NULL: nobody has asked for it yet */
};

/* Called when bpe, split and nfc are set: sorts out the added tokens (`normalized`: one flag for
 * each id, may be NULL) and finds the ones that have a meaning. */
mm2_status mm2_tokenizer_finish(mm2_tokenizer *t, const uint8_t *normalized);

/* Encodes onto the end of `out`. */
mm2_status mm2_tokenizer_append(const mm2_tokenizer *t, const char *text, int64_t length,
                                int special, mm2_ids *out);

#endif
