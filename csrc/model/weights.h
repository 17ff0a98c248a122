/* The weights of a checkpoint bound to their places in the model, shapes and types checked.
 *
 * A layer is a description: which attention, which feed-forward (model/family.h). The blocks behind
 * them (run/) are chosen by these tags, never by a family's name. */
#ifndef MM2_WEIGHTS_H
#define MM2_WEIGHTS_H

#include "kernels/kernels.h"
#include "model/checkpoint.h"

#include <stdatomic.h>

enum { MM2_SCALE_BLOCK = 128 }; /* rows and columns that share one FP8 scale */
_Static_assert(MM2_DTYPE_COUNT <= 64, "sets of dtypes are 64 bits");

typedef struct mm2_expert { /* down * (silu(gate x) * (up x)) */
    mm2_weight gate, up, down;
} mm2_expert;

typedef struct mm2_layer {
    int32_t attention;    /* MM2_ATTENTION_* */
    int32_t feed_forward; /* MM2_FEED_FORWARD_* */
    mm2_weight attn_norm, q, k, v, o, q_norm,
        k_norm; /* norms: n_out 1, any plain dtype; q_norm.data NULL without qk norm */
    mm2_weight mlp_norm, router; /* router [num_local_experts][hidden_size] */
    mm2_weight routing_bias;     /* n_out 1; data NULL if there is none */
    mm2_expert *experts;         /* [num_local_experts]: read by model/experts.h only */
    /* Types among all experts, a bit for each dtype: of gate and up, and of down. Experts of one
     * layer may differ in them. */
    uint64_t gate_up_dtypes, down_dtypes;
} mm2_layer;

typedef struct mm2_weights {
    mm2_weight embed, final_norm, head; /* embed: never FP8 */
    mm2_layer *layers;                  /* [num_hidden_layers] */
    mm2_expert *experts;
    atomic_uchar *expected; /* [experts]: 1 once model/experts.c has announced it */
} mm2_weights;

/* Finds every tensor under any of the names that the family gives it. FORMAT or UNSUPPORTED with
 * one sentence per failure; then nothing is left to free. */
mm2_status mm2_weights_bind(mm2_weights *w, const mm2_checkpoint *c);
void mm2_weights_free(mm2_weights *w);

/* The block scales of an FP8 tensor, checked against its shape; *out NULL for other dtypes. FORMAT.
 * */
mm2_status mm2_weights_scale(const mm2_checkpoint *c, const mm2_entry *e, const mm2_entry **out);
/* A tensor of two or more dimensions is a stack of matrices: rows [first, first + n_out) of matrix
 * `index`. `scale` as mm2_weights_scale gave it. */
mm2_weight mm2_weights_slice(const mm2_entry *e, const mm2_entry *scale, int64_t index,
                             int64_t first, int64_t n_out);

#endif
