/* Pages of the cache of prefixes as files: one a page, each with all tokens up to its end. */
#ifndef MM2_PREFIX_FILE_H
#define MM2_PREFIX_FILE_H

#include "model/fingerprint.h"
#include "run/pages.h"

typedef struct mm2_prefix_files {
    const mm2_model *model;
    const char *folder; /* the model's */
    int64_t limit;      /* bytes of all files */
    mm2_fingerprint fingerprint;
    uint64_t base; /* what names begin with */
} mm2_prefix_files;

/* Which page. */
typedef struct mm2_prefix_key {
    const int32_t *tokens; /* all up to its end */
    int32_t count;         /* of them */
    int32_t kv_dtype;
    uint64_t hash; /* of tokens and kv_dtype */
    mm2_layout *layout;
} mm2_prefix_key;

/* Reads samples of the weights. */
void mm2_prefix_files_init(mm2_prefix_files *f, const mm2_model *m);
/* A new page with what the file holds: OK; MORE if there is none; FORMAT if it is damaged or of
 * something else, and then it is removed; IO, NOMEM. */
mm2_status mm2_prefix_read(const mm2_prefix_files *f, const mm2_prefix_key *key, mm2_page **out);
/* Writes a page, and removes the least recently used files if there is no room; adds their number to
 * *removed. MORE: it is there already, or somebody else is writing it. IO, NOMEM. */
mm2_status mm2_prefix_write(const mm2_prefix_files *f, const mm2_prefix_key *key,
                            const mm2_page *page, int64_t *removed);
/* Its file, if there is one, was used now. */
void mm2_prefix_touch(const mm2_prefix_files *f, const mm2_prefix_key *key);

#endif
