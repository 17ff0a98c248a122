/* The model: checkpoint, bound weights, tokenizer, kernel table and pool under one reference count.
 * Immutable once open. */
#ifndef MM2_MODEL_H
#define MM2_MODEL_H

#include "base/pool.h"
#include "model/weights.h"
#include "text/tokenizer.h"

struct mm2_pass;

/* The forward passes that run/ has made for the model: kept here because their memory must live as
 * long as it does. */
typedef struct mm2_passes {
    atomic_int busy;             /* the id of the process whose thread looks at the lists, or 0 */
    struct mm2_pass *idle, *all; /* those that nobody has; every one */
    void (*free)(struct mm2_passes *passes); /* frees them all; NULL if there are none */
} mm2_passes;

struct mm2_prefix;

/* The cache of prefixes, which run/ makes when it is first needed: kept here for the same reason. */
typedef struct mm2_prefixes {
    int64_t limit, disk; /* bytes in memory and of files; limit 0: there is none */
    char *folder;        /* NULL: memory alone */
    _Atomic(struct mm2_prefix *) cache;
    void (*free)(struct mm2_prefixes *prefixes); /* NULL as long as there is none */
} mm2_prefixes;

struct mm2_model {
    atomic_int references;
    mm2_checkpoint checkpoint;
    mm2_weights weights;
    mm2_tokenizer *tokenizer; /* NULL if the checkpoint has none; then no_tokenizer says why */
    char *no_tokenizer;
    const mm2_kernels *kernels;
    int32_t precision; /* MM2_PRECISION_* */
    mm2_pool *pool;
    mm2_passes passes;
    mm2_prefixes prefixes;
    int64_t bytes, parameters;
    char quantization[128];         /* dtypes of the weights, most bytes first */
    int32_t ends[MM2_MAX_ENDS + 2]; /* ids that end a generation, ascending */
    int32_t end_count;
};

/* The tokenizer beside a checkpoint's weights, its template and ids set. MM2_OK with *out NULL and
 * a sentence if there is none, or one of a kind that this build does not know. */
mm2_status mm2_tokenizer_beside(mm2_tokenizer **out, const mm2_checkpoint *c);
/* Bytes of all weights that it is evaluated with. */
int64_t mm2_model_needed(const mm2_model *m);

#endif
