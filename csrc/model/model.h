/* The model: checkpoint, bound weights, tokenizer, kernel table and pool under one reference count.
 * Immutable once open. */
#ifndef MM2_MODEL_H
#define MM2_MODEL_H

#include "base/pool.h"
#include "model/weights.h"
#include "text/tokenizer.h"

struct mm2_model {
    atomic_int references;
    mm2_checkpoint checkpoint;
    mm2_weights weights;
    mm2_tokenizer *tokenizer; /* NULL if the checkpoint has none; then no_tokenizer says why */
    char *no_tokenizer;
    const mm2_kernels *kernels;
    int32_t precision; /* MM2_PRECISION_* */
    mm2_pool *pool;
    int64_t bytes, parameters;
    char quantization[128];         /* dtypes of the weights, most bytes first */
    int32_t ends[MM2_MAX_ENDS + 2]; /* ids that end a generation, ascending */
    int32_t end_count;
};

/* The tokenizer beside a checkpoint's weights, its template and ids set. MM2_OK with *out NULL and
 * a sentence if there is none, or one of a kind that this build does not know. */
mm2_status mm2_tokenizer_beside(mm2_tokenizer **out, const mm2_checkpoint *c);

#endif
