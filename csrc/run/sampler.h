/* From logits to a token, and log-probabilities. The public sampler functions are here too, all but
 * mm2_sampler_next, which adds a session to mm2_sampler_choose. */
#ifndef MM2_SAMPLER_H
#define MM2_SAMPLER_H

#include "minimax2.h"

/* ARG, with a sentence that names the field, if one is out of range. */
mm2_status mm2_sampler_check(const mm2_sampling *o);

/* How many logits the sampler expects: the vocabulary size of its model. */
int32_t mm2_sampler_vocab(const mm2_sampler *p);

/* Choose a token: `logits` f32 [vocab], not changed; `history`: the n tokens before it, which the
 * penalties look at; `position` >= 0 selects the draw; `mask` as in mm2_sampler_next. Returns an
 * id, or ARG, BUSY or NUMERIC with a sentence. Allocates nothing. */
int32_t mm2_sampler_choose(mm2_sampler *p, const float *logits, const int32_t *history, int32_t n,
                           int64_t position, const uint32_t *mask);

/* Natural-log probabilities of the n given ids under softmax(logits), f32 [vocab]. Infinite logits
 * share all probability among themselves. Fails with ARG (an id), NUMERIC (NaN, all -inf). */
mm2_status mm2_logprobs_of(const float *logits, int32_t vocab, const int32_t *ids, int32_t n,
                           float *out);
/* The n best, 0 <= n <= vocab, best first, ties: lower id. Fails with ARG, NUMERIC, NOMEM. */
mm2_status mm2_logprobs_top(const float *logits, int32_t vocab, int32_t n, int32_t *ids,
                            float *logprobs);

#endif
