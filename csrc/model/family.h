/* A family of models: what its files call things, and what its layers consist of. One file for each
 * family (minimax_m2.c) fills this in; the readers, the checks and the binding know no family. */
#ifndef MM2_FAMILY_H
#define MM2_FAMILY_H

#include "minimax2.h"

/* ---- Keys of the configuration ---- */

enum {                     /* mm2_fact.kind: what the value must be */
       MM2_FACT_SIZE = 1,  /* a whole number for an int32_t field; it must be there */
       MM2_FACT_SIZE_OR,   /* the same, or absent: the field keeps its value */
       MM2_FACT_NUMBER,    /* a number for a float field; it must be there */
       MM2_FACT_NUMBER_OR, /* the same, or absent */
       MM2_FACT_SCALE,     /* as NUMBER_OR; 0 means that there is none */
       MM2_FACT_FLAG,      /* true or false for an int32_t field, or absent */
       MM2_FACT_SAME,      /* absent, or as the int32_t field says */
       MM2_FACT_IS,        /* absent, or the number `is`, or `or_is`; a flag counts as 0 or 1 */
       MM2_FACT_SAYS,      /* absent, or the text `says`, or `or_says` */
       MM2_FACT_EACH_IS,   /* absent, or a list with an item for each layer, each the number `is` */
       MM2_FACT_EACH_SAYS, /* likewise the text `says` */
       MM2_FACT_UNUSED     /* changes nothing that is computed here, whatever it says */
};

/* One row says one thing. Where a key is of no row, nobody that runs the family reads it. */
typedef struct mm2_fact {
    const char *json; /* in config.json; NULL: not there */
    const char *gguf; /* in GGUF behind the architecture and a dot; NULL: not there */
    int32_t kind;     /* MM2_FACT_* */
    int32_t field;    /* its offset in mm2_config */
    double is, or_is; /* IS: the values that change nothing */
    const char *says, *or_says;
    const char *gguf_else; /* the key that counts if `gguf` is absent */
} mm2_fact;

/* ---- Names of tensors ---- */

enum { /* places in the model: indices of mm2_family.names */
       MM2_PLACE_EMBED,
       MM2_PLACE_FINAL_NORM,
       MM2_PLACE_HEAD,
       MM2_PLACE_ATTN_NORM,
       MM2_PLACE_Q,
       MM2_PLACE_K,
       MM2_PLACE_V,
       MM2_PLACE_O,
       MM2_PLACE_Q_NORM,
       MM2_PLACE_K_NORM,
       MM2_PLACE_MLP_NORM,
       MM2_PLACE_ROUTER,
       MM2_PLACE_ROUTING_BIAS,
       MM2_PLACE_GATE, /* of one expert */
       MM2_PLACE_UP,
       MM2_PLACE_DOWN,
       MM2_PLACE_GATES, /* of all experts of a layer, stacked */
       MM2_PLACE_UPS,
       MM2_PLACE_DOWNS,
       MM2_PLACE_GATES_UPS, /* gate above up for each expert */
       MM2_PLACE_COUNT
};

enum { MM2_SPELLINGS = 4 };

/* Spellings of a name; the first is the usual one, the list ends with NULL. "%d" stands for the
 * layer, a second one for the expert. */
typedef struct mm2_names {
    const char *safetensors[MM2_SPELLINGS], *gguf[MM2_SPELLINGS];
} mm2_names;

/* A tensor that would change the result, and that this build does not compute with. */
typedef struct mm2_foreign {
    const char *safetensors, *gguf; /* patterns; NULL: not there */
    const char *what;               /* behind "tensor X " in a sentence */
} mm2_foreign;

/* ---- Layers ---- */

/* Tags that choose the blocks of a layer (run/). */
enum { MM2_ATTENTION_GQA = 0 };
enum { MM2_FEED_FORWARD_MOE = 0 };

typedef struct mm2_layer_kind {
    int32_t attention, feed_forward; /* MM2_ATTENTION_*, MM2_FEED_FORWARD_* */
} mm2_layer_kind;

typedef struct mm2_family {
    const char *model_type;   /* in config.json */
    const char *architecture; /* in GGUF, and in front of its keys */
    const char *end_tag;      /* the token that ends a turn, whatever the files name */
    mm2_config defaults; /* what holds where no key says otherwise; rotary_dim -1: the whole head */
    const mm2_fact *facts;
    int32_t fact_count, foreign_count;
    const mm2_names *names; /* [MM2_PLACE_COUNT] */
    const mm2_foreign *foreign;
    void (*layer)(const mm2_config *c, int32_t layer, mm2_layer_kind *out);
} mm2_family;

/* By the name in config.json, or in GGUF. NULL with UNSUPPORTED and a sentence that names `where`.
 * */
const mm2_family *mm2_family_of_model_type(const char *name, const char *where);
const mm2_family *mm2_family_of_architecture(const char *name, const char *where);

/* The families. */
extern const mm2_family mm2_minimax_m2;

#endif
