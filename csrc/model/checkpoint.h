/* A checkpoint on disk, whichever container: named tensor views on mapped files, and the facts
 * beside them. The readers (safetensors.h, gguf.h) fill it; container.h chooses among them. */
#ifndef MM2_CHECKPOINT_H
#define MM2_CHECKPOINT_H

#include "base/file.h"
#include "base/strmap.h"
#include "model/family.h"

#include <stdatomic.h>
#include <stddef.h>

/* Limits on what a file may claim. Each is far beyond the family's largest checkpoint. */
enum {
    MM2_MAX_TENSORS = 262144,
    MM2_MAX_NAME = 255, /* bytes of a tensor's name; printable ASCII */
    MM2_MAX_SHARDS = 1024,
    MM2_MAX_HEADER = 100000000,  /* bytes of a safetensors header or index */
    MM2_MAX_CONFIG = 1 << 20,    /* bytes of config.json and its like */
    MM2_MAX_DIMENSION_BITS = 40, /* a dimension is at most 2^40 */
    MM2_MAX_IDS = 1 << 20,       /* a token id is below */
    MM2_MAX_ENDS = 64            /* end tokens */
};

typedef struct mm2_entry {
    const char *name; /* as in the file */
    const char *file; /* path of the file that holds it, for sentences; borrowed */
    const char *odd;  /* "has dtype I64": why no view can describe it; NULL for all others */
    mm2_tensor view;  /* of an odd one: its data and bytes, where the reader checked their extent */
} mm2_entry;

typedef struct mm2_sampling_hints { /* generation_config.json or general.sampling.*; the family's
                                       defaults where absent */
    float temperature, top_p;
    int32_t top_k;
} mm2_sampling_hints;

typedef struct mm2_checkpoint {
    char *path;
    const char *format; /* "safetensors" or "gguf" */
    const mm2_family *family;
    mm2_file *files;
    int32_t file_count;
    mm2_entry *entries; /* the listed ones first, in file order; then those without a view */
    int32_t listed, entry_count, entry_room;
    mm2_strmap by_name;    /* name -> index; -2 - i: only an index has named it so far, in file i */
    char *names;           /* storage of the entries' names */
    char **reasons;        /* why entries are odd, each once */
    struct mm2_gguf *gguf; /* metadata of a GGUF's first file, the container's; else NULL */
    mm2_config config;
    mm2_sampling_hints hints;
    int32_t bos, eos;           /* -1: not named; eos: the first of the ends */
    int32_t ends[MM2_MAX_ENDS]; /* ids that end a generation, as the files name them */
    int32_t end_count;
    char architecture[64], model_name[128], license[128];
    _Atomic int64_t checked_at; /* nanoseconds; when the files were last looked at */
} mm2_checkpoint;

/* A checkpoint without files and tensors: the defaults of its facts. */
void mm2_checkpoint_init(mm2_checkpoint *c);
void mm2_checkpoint_close(mm2_checkpoint *c);

/* NULL if there is no tensor of this name that a view describes. */
const mm2_entry *mm2_checkpoint_find(const mm2_checkpoint *c, const char *name);
/* Is there one of this name, whatever its type? */
int mm2_checkpoint_has(const mm2_checkpoint *c, const char *name);
/* The same, or one that an index names and no file holds. */
int mm2_checkpoint_names(const mm2_checkpoint *c, const char *name);
/* Why no view describes the tensor of this name; NULL if one does, or there is none. */
const char *mm2_checkpoint_odd(const mm2_checkpoint *c, const char *name);
/* The `n` whole numbers of a tensor of that many, I32 or I64, that has this name. FORMAT, IO. */
mm2_status mm2_checkpoint_integers(const mm2_checkpoint *c, const char *name, int64_t *out,
                                   int32_t n);
/* Why mm2_checkpoint_find found nothing for a tensor that is needed: FORMAT if it is missing,
 * UNSUPPORTED if it has a type or form that this build does not read, IO if its file is not there.
 * */
mm2_status mm2_checkpoint_missing(const mm2_checkpoint *c, const char *name, const char *expected);
/* IO with a sentence that names the file if a mapped one was cut short or written to since it was
 * opened. Looks at the files at most every 100 ms; any thread. */
mm2_status mm2_checkpoint_check(mm2_checkpoint *c);

/* "[256, 3072]", for sentences. */
void mm2_shape_show(char *out, int cap, int32_t ndim, const int64_t *shape);

/* ---- For the readers ---- */

/* Can a tensor of this name be asked for? Others are left alone. */
int mm2_checkpoint_can_name(const char *name, size_t length);
/* The name as a sentence shows it, MM2_MAX_NAME + 1 bytes at most. */
void mm2_checkpoint_show(char *out, const char *name, size_t length);
/* Room for so many tensors, as far as there may be so many. Before the first of them. NOMEM. */
mm2_status mm2_checkpoint_reserve(mm2_checkpoint *c, int64_t count);
/* Appends an entry of this name, which must outlive the checkpoint; FORMAT if it is taken, or one
 * too many. */
mm2_status mm2_checkpoint_add(mm2_checkpoint *c, const char *name, const char *file,
                              mm2_entry **out);
/* Notes that an index, `where`, places this name in a file, by its number. Likewise. */
mm2_status mm2_checkpoint_expect(mm2_checkpoint *c, const char *name, const char *where,
                                 int32_t file);
/* Appends an entry for a name that a file has, if it was expected there; else *out is NULL. FORMAT
 * if it has been claimed. */
mm2_status mm2_checkpoint_claim(mm2_checkpoint *c, const char *name, int32_t file, mm2_entry **out);
/* Shape, strides and bytes of an entry's view, all arithmetic checked. FORMAT. */
mm2_status mm2_entry_shape(mm2_entry *e, int32_t dtype, int32_t ndim, const int64_t *shape);
/* No view describes this one, and why; copied. NOMEM. */
mm2_status mm2_checkpoint_set_odd(mm2_checkpoint *c, mm2_entry *e, const char *why);
/* When all entries are there: parts them into listed ones and others. FORMAT if none is listed. */
mm2_status mm2_checkpoint_settle(mm2_checkpoint *c);
/* How the files of tensors are opened for MM2_WRITABLE and MM2_IN_MEMORY: MM2_FILE_*. */
int32_t mm2_checkpoint_file_flags(uint32_t flags);
/* Reads the files that were opened for MM2_IN_MEMORY. NOMEM before anything is read if they will
 * not fit. */
mm2_status mm2_checkpoint_fill(mm2_checkpoint *c);
/* An id that ends a generation. One that is no id (negative, beyond any vocabulary) is left out. */
mm2_status mm2_checkpoint_end(mm2_checkpoint *c, int64_t id, const char *where);

#endif
