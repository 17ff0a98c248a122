/* Which tensors make one weight. Quantised checkpoints keep codes, scales and zero points of a
 * matrix in tensors of their own; here they are found, checked against each other, and put
 * together. */
#ifndef MM2_QUANTISED_H
#define MM2_QUANTISED_H

#include "kernels/kernels.h"
#include "model/checkpoint.h"

enum { MM2_SCALE_BLOCK = 128 }; /* rows and columns that share one FP8 scale */

/* Scales that cannot be used where they lie, as float32. Zeros at first. */
typedef struct mm2_floats {
    struct mm2_floats_chunk *chunks;
} mm2_floats;

void mm2_floats_free(mm2_floats *f);

/* A weight: a matrix, a stack of matrices of one shape, or a vector, which counts as one row. */
typedef struct mm2_stack {
    const mm2_entry *codes; /* the tensor of its values, codes or blocks */
    int64_t shape[MM2_MAX_DIMS];
    int32_t ndim;
    int64_t nbytes; /* of all its tensors */
    mm2_weight first;
    int64_t data_step, scale_step, spans_step, global_step; /* bytes from a matrix to the next */
    const mm2_entry *global;                                /* f32; NULL: none */
} mm2_stack;

/* Is there a weight of this name, "X.weight" or that of a stack, in whatever form? */
int mm2_stack_exists(const mm2_checkpoint *c, const char *name);
/* Finds its tensors. `shape`, of `ndim` dimensions: what the configuration demands; NULL: any.
 * Scales that need a copy are put into `floats`; NULL: nothing is copied, and `first` has none of
 * them. FORMAT, UNSUPPORTED, NOMEM. */
mm2_status mm2_stack_find(const mm2_checkpoint *c, const char *name, int32_t ndim,
                          const int64_t *shape, mm2_floats *floats, mm2_stack *out);
/* A tensor alone, whatever stands beside it. */
void mm2_stack_alone(const mm2_entry *e, mm2_stack *out);
/* Rows [first, first + n_out) of matrix `index`. */
mm2_weight mm2_stack_slice(const mm2_stack *s, int64_t index, int64_t first, int64_t n_out);

/* The weight that a tensor holds the codes of: "X.weight" of "X.weight_packed", for all others
 * their own name. MM2_MAX_NAME + 1 bytes. */
void mm2_stack_name(const mm2_entry *e, char *out);
/* Is a tensor part of a weight beside it: its scales, zero points, shape? */
int mm2_is_part(const mm2_checkpoint *c, const mm2_entry *e);

/* What a product with it reads: codes, scales, zero points. Returns how many there are. */
typedef struct mm2_extent {
    const void *data;
    int64_t bytes;
} mm2_extent;
enum { MM2_WEIGHT_PARTS = 4 };
int32_t mm2_weight_parts(const mm2_weight *w, mm2_extent *parts);
/* Their bytes together. */
int64_t mm2_weight_bytes(const mm2_weight *w);

#endif
