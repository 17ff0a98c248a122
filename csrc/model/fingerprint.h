/* Which model it is, as far as what one has computed can go on in another. */
#ifndef MM2_FINGERPRINT_H
#define MM2_FINGERPRINT_H

#include "model/model.h"

/* Part of the format of saved sessions. Zero where it says nothing. */
typedef struct mm2_fingerprint {
    char family[32];
    char weights[96]; /* their dtypes, for sentences */
    mm2_config config;
    int32_t precision; /* MM2_PRECISION_* */
    int32_t blas;      /* 1: kernels that give bits of their own */
    uint32_t reserved;
    uint64_t types;   /* of the dtypes of all weights */
    uint64_t samples; /* of some bytes of the weights */
} mm2_fingerprint;

/* Looks at 256 bytes from the middle of each weight outside the experts, and of one expert a layer,
 * as they are in memory. So it tells another training, another quantisation and another merge, but
 * neither a change to a few weights nor one to a few experts. */
void mm2_fingerprint_of(const mm2_model *m, mm2_fingerprint *out);
/* ARG with a sentence that says what differs, if what `theirs` has computed cannot go on here. The
 * number of positions may differ. `where`: whose fingerprint it is. */
mm2_status mm2_fingerprint_compare(const mm2_fingerprint *theirs, const mm2_fingerprint *ours,
                                   const mm2_model *m, const char *where);

#endif
