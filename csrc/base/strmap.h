/* Names to indices: an open-addressing hash map over strings that somebody else keeps alive.
 * Seeded, so that a file cannot be made to collide; insertion is O(1) and reports duplicates. */
#ifndef MM2_STRMAP_H
#define MM2_STRMAP_H

#include <stdint.h>

enum { MM2_STRMAP_TAILS = 10 }; /* bits of such a hash */

typedef struct mm2_strmap {
    struct mm2_strslot *slots; /* NULL while empty */
    uint32_t room;             /* slots */
    uint32_t count;
    uint64_t seed;
    uint64_t tails[1 << MM2_STRMAP_TAILS >> 6]; /* a bit for each hash of the keys' last bytes */
} mm2_strmap;

/* Room for `expected` entries without growing, 48 bytes each. 0, or -1 if memory is short. */
int mm2_strmap_init(mm2_strmap *map, uint32_t expected);
void mm2_strmap_free(mm2_strmap *map);
/* Key bytes are borrowed while the map lives. 1 inserted, 0 already there (value kept), -1 memory
 * is short. */
int mm2_strmap_add(mm2_strmap *map, const char *key, uint32_t length, int32_t value);
/* The value, or -1. Quick where no key ends like this one. */
int32_t mm2_strmap_find(const mm2_strmap *map, const char *key, uint32_t length);
/* Where the value lies until the next insertion, and the key as it was added; NULL: not there. */
int32_t *mm2_strmap_at(mm2_strmap *map, const char *key, uint32_t length, const char **own);

#endif
