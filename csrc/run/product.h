/* What blocks call to multiply: input rows are quantised, packed where the kernels pack, and
 * multiplied by tiles of a weight. */
#ifndef MM2_PRODUCT_H
#define MM2_PRODUCT_H

#include "run/pass.h"

/* Told by a block's carve: products will take `count` rows of n elements together; ... */
void mm2_product_need(mm2_pass *p, int64_t count, int32_t n);
/* ... or groups of 16 rows, packed apart; ... */
void mm2_product_need_groups(mm2_pass *p, int64_t groups, int32_t n);
/* ... and a thread's scratch of n floats. */
void mm2_product_need_scratch(mm2_pass *p, int64_t n);
/* Takes the memory for all that was told. `threads` scratches. */
void mm2_product_carve(mm2_pass *p, mm2_carver *c);

/* Makes `rows` (float [count][n]) the input of products with weights of these kinds; *units: what
 * mm2_product_quantize must do first. `whole`: those of the kinds whose products take all rows
 * together. */
void mm2_product_input(mm2_pass *p, const float *rows, int32_t n, int32_t count, uint32_t kinds,
                       uint32_t whole, int32_t *units);
/* Work function behind it: quantises the rows of a unit and packs them in the whole kinds. */
void mm2_product_quantize(void *pass, int32_t unit, int32_t thread);
/* Quantises input row `row`. */
void mm2_product_quantize_row(mm2_pass *p, int32_t row);
/* Packs `rows` rows of activations of a kind into the panel, from its group `group` on. */
void mm2_product_pack(mm2_pass *p, int32_t kind, int32_t group, const void *const *acts,
                      int32_t rows);
/* Are products of so many rows made from a panel? */
static inline int mm2_product_packs(const mm2_pass *p, int32_t kind, int32_t rows)
{
    return p->input.panel[kind] && rows >= p->model->kernels->packed_rows[kind];
}

/* The activations that products with weights of a dtype take: MM2_ACT_*. */
static inline int32_t mm2_product_act(const mm2_pass *p, int32_t dtype)
{
    return p->model->precision == MM2_PRECISION_EXACT ? MM2_ACT_F32 : mm2_act_of(dtype);
}
static inline uint32_t mm2_product_kind(const mm2_pass *p, const mm2_weight *w)
{
    return 1u << mm2_product_act(p, w->dtype);
}

/* Output features of one unit of a product of `rows` rows: small enough to end within a few
 * milliseconds. */
int32_t mm2_product_tile(const mm2_pass *p, int32_t n_out, int32_t n_in, int32_t rows);
/* Rows [first, first + count) of w times `rows` activations: those of the panel from group `group`
 * on where such products are made from a panel, else acts. */
void mm2_product_multiply(const mm2_pass *p, const mm2_weight *w, float *const *out, int32_t first,
                          int32_t count, const void *const *acts, int32_t group, int32_t rows);

/* A product of all input rows with all of w, cut into units: how many there are, ... */
int32_t mm2_product_units(const mm2_pass *p, const mm2_weight *w);
/* ... and unit `unit` of them: out[r * w->n_out + i] is weight row i times input row r. */
void mm2_product_unit(const mm2_pass *p, const mm2_weight *w, float *out, int32_t unit,
                      int32_t thread);

#endif
