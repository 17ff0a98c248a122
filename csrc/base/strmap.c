/* Linear probing at a load of at most one half. The full hash is kept in the slot, so a probe
 * compares bytes only on a true match but for one in 2^32. The seed mixes an address and the clock:
 * it need not be secret, only not in the file.
 *
 * Who reads a file asks for many names that are not there, and each is a trip to memory. Most of
 * them end like no key at all ("w1.bias"), so the last eight bytes of the keys are noted in a small
 * filter, which is asked first. */
#include "base/strmap.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct mm2_strslot {
    const char *key; /* NULL: free */
    uint32_t length, hash;
    int32_t value;
};

static uint32_t hash_bytes(uint64_t seed, const char *key, uint32_t length)
{
    uint64_t h = seed ^ (length * 0x9e3779b97f4a7c15ULL);
    for (uint32_t i = 0; i < length; i += 8) {
        uint64_t word = 0;
        memcpy(&word, key + i, length - i < 8 ? length - i : 8);
        h = (h ^ word) * 0xbf58476d1ce4e5b9ULL;
        h ^= h >> 29;
    }
    h *= 0x94d049bb133111ebULL;
    return (uint32_t)(h ^ h >> 32);
}

/* The bit of a key in the filter. */
static uint32_t tail_of(const char *key, uint32_t length)
{
    uint32_t n = length < 8 ? length : 8;
    uint64_t word = 0;
    memcpy(&word, key + length - n, n);
    return (uint32_t)(word * 0x9e3779b97f4a7c15ULL >> (64 - MM2_STRMAP_TAILS));
}

int mm2_strmap_init(mm2_strmap *map, uint32_t expected)
{
    if (expected > UINT32_MAX / 2)
        return -1;
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    memset(map, 0, sizeof *map);
    map->room = expected < 8 ? 16 : expected * 2;
    map->seed = ((uint64_t)(uintptr_t)map << 20) ^ (uint64_t)now.tv_nsec * 0x2545f4914f6cdd1dULL;
    map->slots = calloc(map->room, sizeof *map->slots);
    return map->slots ? 0 : -1;
}

void mm2_strmap_free(mm2_strmap *map)
{
    free(map->slots);
    memset(map, 0, sizeof *map);
}

/* The slot that holds the key, or the free one where it belongs. */
static struct mm2_strslot *probe(const mm2_strmap *map, const char *key, uint32_t length,
                                 uint32_t hash)
{
    struct mm2_strslot *s = &map->slots[(uint64_t)hash * map->room >> 32];
    while (s->key && (s->hash != hash || s->length != length || memcmp(s->key, key, length)))
        s = s + 1 < map->slots + map->room ? s + 1 : map->slots;
    return s;
}

static int grow(mm2_strmap *map)
{
    mm2_strmap larger;
    if (mm2_strmap_init(&larger, map->room))
        return -1;
    larger.seed = map->slots ? map->seed : larger.seed;
    larger.count = map->count;
    memcpy(larger.tails, map->tails, sizeof larger.tails);
    for (uint32_t i = 0; i < map->room; i++) {
        struct mm2_strslot *s = &map->slots[i];
        if (s->key)
            *probe(&larger, s->key, s->length, s->hash) = *s;
    }
    free(map->slots);
    *map = larger;
    return 0;
}

int mm2_strmap_add(mm2_strmap *map, const char *key, uint32_t length, int32_t value)
{
    if (map->count >= map->room / 2 && grow(map))
        return -1;
    uint32_t hash = hash_bytes(map->seed, key, length), tail = tail_of(key, length);
    struct mm2_strslot *s = probe(map, key, length, hash);
    if (s->key)
        return 0;
    *s = (struct mm2_strslot){key, length, hash, value};
    map->tails[tail / 64] |= UINT64_C(1) << tail % 64;
    map->count++;
    return 1;
}

/* The slot that holds the key; NULL: none. */
static struct mm2_strslot *find(const mm2_strmap *map, const char *key, uint32_t length)
{
    uint32_t tail = tail_of(key, length);
    if (!(map->tails[tail / 64] >> tail % 64 & 1))
        return NULL;
    struct mm2_strslot *s = probe(map, key, length, hash_bytes(map->seed, key, length));
    return s->key ? s : NULL;
}

int32_t mm2_strmap_find(const mm2_strmap *map, const char *key, uint32_t length)
{
    const struct mm2_strslot *s = find(map, key, length);
    return s ? s->value : -1;
}

int32_t *mm2_strmap_at(mm2_strmap *map, const char *key, uint32_t length, const char **own)
{
    struct mm2_strslot *s = find(map, key, length);
    *own = s ? s->key : NULL;
    return s ? &s->value : NULL;
}
