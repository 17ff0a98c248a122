/* GGUF, version 3: the header of one file, its metadata pairs and tensor infos, and checkpoints of
 * one file or a split set. */
#ifndef MM2_GGUF_H
#define MM2_GGUF_H

#include "model/checkpoint.h"
#include "text/tokenizer.h"

enum { /* value types of metadata */
       MM2_GGUF_UINT8 = 0,
       MM2_GGUF_INT8 = 1,
       MM2_GGUF_UINT16 = 2,
       MM2_GGUF_INT16 = 3,
       MM2_GGUF_UINT32 = 4,
       MM2_GGUF_INT32 = 5,
       MM2_GGUF_FLOAT32 = 6,
       MM2_GGUF_BOOL = 7,
       MM2_GGUF_STRING = 8,
       MM2_GGUF_ARRAY = 9,
       MM2_GGUF_UINT64 = 10,
       MM2_GGUF_INT64 = 11,
       MM2_GGUF_FLOAT64 = 12
};

typedef struct mm2_gguf_pair {
    const char *key;     /* not terminated */
    const uint8_t *data; /* the scalar, the string's bytes, or the array's first item */
    int64_t count;       /* bytes of a string, items of an array */
    uint32_t key_length;
    uint32_t type, item; /* item: type of an array's items */
} mm2_gguf_pair;

typedef struct mm2_gguf_info {
    const char *name; /* not terminated; of any bytes */
    int64_t shape[4]; /* outermost first; not of more dimensions */
    int64_t offset;   /* from the file's beginning */
    uint32_t name_length, type;
    int32_t ndim, dtype; /* dtype 0: no type of ours */
} mm2_gguf_info;

/* All pointers lead into a copy of the header's bytes, so that a file that is written to meanwhile
 * changes nothing that was checked. */
typedef struct mm2_gguf {
    const mm2_file *file; /* borrowed */
    uint8_t *header;      /* the copy */
    mm2_gguf_pair *pairs;
    const uint8_t **infos; /* where the descriptions of tensors begin: mm2_gguf_info_at */
    int32_t pair_count, info_count;
    int64_t start; /* of the tensors' data, in the file */
} mm2_gguf;

/* Parses the header of a mapped file, all extents checked. FORMAT, UNSUPPORTED or NOMEM; then
 * nothing is left to free. */
mm2_status mm2_gguf_parse(mm2_gguf *g, const mm2_file *f);
void mm2_gguf_free(mm2_gguf *g);

/* The description of tensor i. */
mm2_gguf_info mm2_gguf_info_at(const mm2_gguf *g, int32_t i);
/* NULL if there is no such key. */
const mm2_gguf_pair *mm2_gguf_find(const mm2_gguf *g, const char *key);
/* "a string", "float32". Static. */
const char *mm2_gguf_kind(const mm2_gguf_pair *p);
/* Bytes of a scalar; 0 for strings, arrays and unknown types. */
int32_t mm2_gguf_scalar_bytes(uint32_t type);
/* Values by key: 1 found, 0 absent (*out stays as it is), FORMAT if it is of another kind. Integers
 * of any width are taken. */
int32_t mm2_gguf_integer(const mm2_gguf *g, const char *key, int64_t *out);
int32_t mm2_gguf_string(const mm2_gguf *g, const char *key, const char **out, int64_t *length);

/* "stem-00002-of-00005.gguf" to part 2 (counted from 1) of 5: the length of the stem, or 0 if the
 * name is of another form. */
int32_t mm2_gguf_split_name(const char *name, int32_t *part, int32_t *count);

/* The tokenizer that the metadata holds, its template and ids set; *out NULL if there is none. */
mm2_status mm2_gguf_tokenizer(mm2_tokenizer **out, const mm2_gguf *g);

/* "Q4_1": ggml's name of a tensor type that has no dtype here, or why it has none. Static. */
const char *mm2_gguf_type_name(uint32_t type);

/* Fills files, entries, configuration and facts of a checkpoint; what it leaves behind on failure,
 * mm2_container_close clears. */
mm2_status mm2_gguf_open(mm2_checkpoint *c, const char *path, uint32_t flags);

#endif
