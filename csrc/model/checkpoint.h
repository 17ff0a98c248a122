/* A checkpoint on disk, whichever container: named tensor views on mapped files, and the facts
 * beside them. */
#ifndef MM2_CHECKPOINT_H
#define MM2_CHECKPOINT_H

#include "base/file.h"
#include "base/strmap.h"

/* Limits on what a file may claim. Each is far beyond the family's largest checkpoint. */
enum {
    MM2_MAX_TENSORS = 262144,
    MM2_MAX_NAME = 255, /* bytes of a tensor's name; printable ASCII */
    MM2_MAX_SHARDS = 1024,
    MM2_MAX_HEADER = 100000000, /* bytes of a safetensors header or index */
    MM2_MAX_CONFIG = 1 << 20,   /* bytes of config.json and its like */
    MM2_MAX_DIMENSION_BITS = 40 /* a dimension is at most 2^40 */
};

typedef struct mm2_entry {
    const char *name; /* as in the file */
    const char *file; /* path of the file that holds it, for sentences; borrowed */
    mm2_tensor view;
} mm2_entry;

typedef struct mm2_sampling_hints { /* generation_config.json or general.sampling.*; the family's
                                       defaults where absent */
    float temperature, top_p;
    int32_t top_k;
} mm2_sampling_hints;

typedef struct mm2_checkpoint {
    char *path;
    const char *format; /* "safetensors" or "gguf" */
    mm2_file *files;
    int32_t file_count;
    mm2_entry *entries;
    int32_t entry_count, entry_room;
    mm2_strmap by_name;    /* name -> index */
    char *names;           /* storage of the entries' names */
    struct mm2_gguf *gguf; /* metadata of a GGUF's first file; NULL for safetensors */
    mm2_config config;
    mm2_sampling_hints hints;
    int32_t bos, eos; /* -1: not named */
    char architecture[64], model_name[128], license[128];
} mm2_checkpoint;

/* Opens and validates the container (files, extents, dtypes, duplicate names) and its
 * configuration. `flags`: MM2_WRITABLE. On failure nothing is left open. */
mm2_status mm2_checkpoint_open(mm2_checkpoint *c, const char *path, uint32_t flags);
void mm2_checkpoint_close(mm2_checkpoint *c);
/* NULL if there is no tensor of this name. */
const mm2_entry *mm2_checkpoint_find(const mm2_checkpoint *c, const char *name);
/* Which container a path holds: *out becomes the path to open, owned by the caller, and *format
 * "safetensors" (a directory) or "gguf" (a file: of a directory, the only one or a part of the only
 * set). IO or FORMAT. */
mm2_status mm2_checkpoint_locate(char **out, const char **format, const char *path);

/* The two readers, called by mm2_checkpoint_open after it looked at the path. Each fills files,
 * entries, config and facts; what they leave behind on failure, mm2_checkpoint_close clears. */
mm2_status mm2_safetensors_open(mm2_checkpoint *c, const char *directory, uint32_t flags);
mm2_status mm2_gguf_open(mm2_checkpoint *c, const char *path, uint32_t flags);

/* For the readers. Appends an entry of this name, which must outlive the checkpoint's map; FORMAT
 * if the name is improper, taken, or one too many. */
mm2_status mm2_checkpoint_add(mm2_checkpoint *c, const char *name, const char *file,
                              mm2_entry **out);
/* Shape, strides and bytes of an entry's view, all arithmetic checked. FORMAT. */
mm2_status mm2_entry_shape(mm2_entry *e, int32_t dtype, int32_t ndim, const int64_t *shape);

/* config.json, generation_config.json and the front matter of README.md of a directory. */
mm2_status mm2_config_read(mm2_checkpoint *c, const char *directory);
/* generation_config.json alone, if there is one: hints, bos and eos. */
mm2_status mm2_generation_read(mm2_checkpoint *c, const char *directory);
/* Field by field range checks, with a sentence; called by both readers. `where` is the file to
 * name. */
mm2_status mm2_config_check(const mm2_config *config, const char *where);

#endif
