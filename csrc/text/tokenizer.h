/* The tokenizer: repair UTF-8, cut out added tokens, normalise (NFC), split by the file's pattern,
 * merge bytes (BPE). Immutable once its model or its user holds it. */
#ifndef MM2_TOKENIZER_H
#define MM2_TOKENIZER_H

#include "minimax2.h"

/* From the JSON text of a tokenizer.json; `where` is the path to name in sentences. Nothing is kept
 * of the arguments. *out is owned: mm2_tokenizer_release. */
mm2_status mm2_tokenizer_from_json(mm2_tokenizer **out, const char *json, int64_t length,
                                   const char *where);

typedef struct mm2_vocabulary { /* what a GGUF file holds */
    int32_t count;              /* of tokens */
    const char *const *tokens;  /* in GPT-2's printable spelling, not terminated; types 3 and 4 as
                                  they are */
    const uint32_t *token_lengths;
    const int32_t *types; /* GGUF token types: 1 normal, 2 unknown and 3 control (both special), 4
                             user defined, 5 unused; NULL: all normal */
    int32_t merge_count;
    const char *const *merges; /* "left right" */
    const uint32_t *merge_lengths;
    const char *pre;            /* tokenizer.ggml.pre; NULL if absent */
    int32_t bos, eos, unk, pad; /* -1: absent */
} mm2_vocabulary;

mm2_status mm2_tokenizer_from_vocabulary(mm2_tokenizer **out, const mm2_vocabulary *v,
                                         const char *where);

/* Ids that config files name; one that is not in the vocabulary, such as -1, leaves the tokenizer's
 * own: the family's strings, if it has them. */
void mm2_tokenizer_set_ids(mm2_tokenizer *t, int32_t bos, int32_t eos, int32_t unk, int32_t pad);
/* Recognises the text of a chat template (NULL: none) and keeps its default system prompt. Never
 * executed. `where` names it in sentences: a path, or a field of a file. An unknown template is no
 * failure here: the chat functions then say UNSUPPORTED. Fails with NOMEM only. */
mm2_status mm2_tokenizer_set_template(mm2_tokenizer *t, const char *text, int64_t length,
                                      const char *where);
/* "minimax-m2", or NULL if none was given or it was not recognised. Static. */
const char *mm2_tokenizer_template(const mm2_tokenizer *t);
/* Default system prompt; borrowed until the template is set again. */
const char *mm2_tokenizer_system(const mm2_tokenizer *t);

#endif
