/* Byte-pair encoding. A word starts as one symbol a byte; the neighbouring pair with the lowest
 * rank, the leftmost among equals, becomes one symbol until no neighbours form a merge.
 *
 * The symbols are a doubly linked list inside an array. The candidate pairs wait in runs: lists of
 * positions, ascending, of one rank. A binary heap of the runs, by rank and first position, gives
 * the order of merging. A merge pushes the two new neighbourhoods, each onto the end of the run of
 * its rank that was pushed to last, or as a run of its own. So words in which few pairs repeat many
 * times, which are the long ones, cost little more than their length: there are about as many runs
 * as kinds of pairs. In the worst case all runs are short, and a word of n bytes costs O(n log n).
 * Nothing needs stack. Outdated entries are left behind: one counts only if the symbol at its
 * position still forms a pair of that rank.
 *
 * A word may be left in the middle and gone on with: all that it needs is in mm2_bpe_work.
 *
 * Files spell bytes as GPT-2 did, every byte a printable character: 0x21-0x7e, 0xa1-0xac and
 * 0xae-0xff stand for themselves, the others in ascending order for U+0100, U+0101, ... Here tokens
 * are plain bytes.
 *
 * Both hash tables hold four bytes a slot, so that they stay in the cache: loading is 800,000 look-ups
 * and nearly every one in a larger table is a trip to memory. The part of the hash that a slot keeps
 * answers most look-ups that miss.
 *
 * An mm2_bpe is written while it is built and only read from then on. */
#include "text/bpe.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct mm2_merge {
    uint32_t left, right, result;
} mm2_merge;

typedef struct mm2_symbol {
    uint32_t id;
    uint32_t rank;           /* of the pair with the next one; NONE: no merge */
    uint32_t previous, next; /* NONE at the ends */
} mm2_symbol;

typedef struct mm2_candidate {
    uint32_t position, next; /* in its run, or in the list of free ones; NONE: none */
} mm2_candidate;

typedef struct mm2_run {
    uint32_t rank, last; /* candidate; rank NONE: no run that can grow */
} mm2_run;

enum {
    SHOWN = 40,           /* bytes of a token that a sentence quotes */
    MAX_GROWING = 1 << 14 /* runs that can grow at a time */
};
static const uint32_t NONE = UINT32_MAX;

static int shown(int64_t length)
{
    return length < SHOWN ? (int)length : SHOWN;
}

mm2_status mm2_bpe_init(mm2_bpe *b, int64_t capacity)
{
    memset(b, 0, sizeof *b);
    if (capacity < 0 || capacity > UINT32_MAX)
        return mm2_fail(MM2_E_FORMAT, "the vocabulary has %lld bytes of tokens, at most %u fit",
                        (long long)capacity, UINT32_MAX);
    b->capacity = capacity;
    b->bytes = malloc((size_t)capacity + 1);
    b->start = calloc(MM2_MAX_VOCABULARY, sizeof *b->start);
    b->length = calloc(MM2_MAX_VOCABULARY, sizeof *b->length);
    b->kind = calloc(MM2_MAX_VOCABULARY, sizeof *b->kind);
    if (!b->bytes || !b->start || !b->length || !b->kind)
        return mm2_fail(MM2_E_NOMEM, "no memory for a vocabulary of %lld bytes",
                        (long long)capacity);
    return MM2_OK;
}

void mm2_bpe_free(mm2_bpe *b)
{
    free(b->bytes);
    free(b->start);
    free(b->length);
    free(b->kind);
    free(b->merges);
    free(b->words.slots);
    free(b->pairs.slots);
    memset(b, 0, sizeof *b);
}

mm2_status mm2_bpe_add_raw(mm2_bpe *b, int64_t id, const char *bytes, int64_t length, int kind)
{
    if (id < 0 || id >= MM2_MAX_VOCABULARY)
        return mm2_fail(MM2_E_FORMAT, "token \"%.*s\" has id %lld, expected 0..%d", shown(length),
                        bytes, (long long)id, MM2_MAX_VOCABULARY - 1);
    if (length < 1 || length > MM2_MAX_TOKEN)
        return mm2_fail(MM2_E_FORMAT, "token %lld has %lld bytes, expected 1..%d", (long long)id,
                        (long long)length, (int)MM2_MAX_TOKEN);
    if (b->kind[id])
        return mm2_fail(MM2_E_FORMAT, "id %lld is given to two tokens, \"%.*s\" and \"%.*s\"",
                        (long long)id, shown(b->length[id]), b->bytes + b->start[id], shown(length),
                        bytes);
    if (length > b->capacity - b->used)
        return mm2_fail(MM2_E_FORMAT, "the tokens are longer than the file that holds them");
    memcpy(b->bytes + b->used, bytes, (size_t)length);
    b->start[id] = (uint32_t)b->used;
    b->length[id] = (uint16_t)length;
    b->kind[id] = (uint8_t)kind;
    b->used += length;
    if (id >= b->size)
        b->size = (int32_t)id + 1;
    return MM2_OK;
}

/* The byte that a printable character of the spelling stands for, or -1. */
static int spelled_byte(int code)
{
    if ((code >= 0x21 && code <= 0x7e) || (code >= 0xa1 && code <= 0xff && code != 0xad))
        return code;
    if (code < 0x100 || code > 0x143)
        return -1;
    code -= 0x100;
    return code < 0x21 ? code : code < 0x43 ? code - 0x21 + 0x7f : 0xad;
}

/* Spelling to bytes. Returns how many, or -1 if a character stands for no byte; `out` has room for
 * `length`. */
static int64_t unspell(char *out, const char *spelled, int64_t length)
{
    const uint8_t *p = (const uint8_t *)spelled, *end = p + length;
    int64_t n = 0;
    while (p < end) {
        int byte, code = *p++;
        if (code >= 0x80) {
            if (code < 0xc2 || code > 0xc5 || p == end || (*p & 0xc0) != 0x80)
                return -1;
            code = (code & 0x1f) << 6 | (*p++ & 0x3f);
        }
        if ((byte = spelled_byte(code)) < 0)
            return -1;
        out[n++] = (char)byte;
    }
    return n;
}

mm2_status mm2_bpe_add_spelled(mm2_bpe *b, int64_t id, const char *spelled, int64_t length)
{
    char bytes[2 * MM2_MAX_TOKEN];
    int64_t n = -1;
    if (length > (int64_t)sizeof bytes)
        return mm2_fail(MM2_E_FORMAT, "token %lld is spelled with %lld bytes, expected at most %d",
                        (long long)id, (long long)length, (int)sizeof bytes);
    n = unspell(bytes, spelled, length);
    if (id >= 0 && id < b->size && (b->kind[id] & MM2_TOKEN_ADDED)) {
        if (length != b->length[id] || memcmp(spelled, b->bytes + b->start[id], (size_t)length))
            return mm2_fail(MM2_E_FORMAT,
                            "id %lld is \"%.*s\" among the words and \"%.*s\" among the added "
                            "tokens",
                            (long long)id, shown(length), spelled, shown(b->length[id]),
                            b->bytes + b->start[id]);
        if (n == length && !memcmp(bytes, spelled, (size_t)n))
            b->kind[id] |= MM2_TOKEN_WORD;
        return MM2_OK;
    }
    if (n < 0)
        return mm2_fail(MM2_E_FORMAT,
                        "token %lld, \"%.*s\", is not in the printable spelling of bytes",
                        (long long)id, shown(length), spelled);
    return mm2_bpe_add_raw(b, id, bytes, n, MM2_TOKEN_WORD);
}

/* ----------------------------------------------------------------------------------------------
 * The two hash tables: linear probing, at most half full */

enum { INDEX_BITS = 21 }; /* of a slot; the others hold a tag */

static mm2_status table_new(mm2_bpe_table *table, int64_t count)
{
    uint32_t slots = 16;
    while (slots < 2 * count)
        slots *= 2;
    table->mask = slots - 1;
    table->slots = calloc(slots, sizeof *table->slots);
    return table->slots
               ? MM2_OK
               : mm2_fail(MM2_E_NOMEM, "no memory for an index of %lld entries", (long long)count);
}

static uint32_t tag_of(uint64_t hash)
{
    return (uint32_t)(hash >> 32) << INDEX_BITS;
}

static uint32_t index_of(uint32_t slot)
{
    return (slot & ((1U << INDEX_BITS) - 1)) - 1;
}

static uint64_t mix(uint64_t h)
{
    h *= 0xbf58476d1ce4e5b9ULL;
    h ^= h >> 31;
    h *= 0x94d049bb133111ebULL;
    return h ^ h >> 29;
}

static uint64_t hash_word(uint64_t seed, const char *bytes, int64_t length)
{
    uint64_t h = seed ^ (uint64_t)length;
    for (; length > 0; bytes += 8, length -= 8) {
        uint64_t eight = 0;
        memcpy(&eight, bytes, length < 8 ? (size_t)length : 8);
        h = mix(h ^ eight);
    }
    return h;
}

/* The slot of a word, or the free one where it belongs; *tag is what the slot's upper part must be.
 */
static uint32_t *find_word(const mm2_bpe *b, const char *bytes, int64_t length, uint32_t *tag)
{
    uint64_t hash = hash_word(b->seed, bytes, length);
    *tag = tag_of(hash);
    for (uint32_t i = (uint32_t)hash & b->words.mask;; i = (i + 1) & b->words.mask) {
        uint32_t *slot = &b->words.slots[i], id = index_of(*slot);
        if (!*slot)
            return slot;
        if ((*slot ^ *tag) >> INDEX_BITS == 0 && b->length[id] == length &&
            !memcmp(b->bytes + b->start[id], bytes, (size_t)length))
            return slot;
    }
}

/* The same for a pair of ids. */
static uint32_t *find_pair(const mm2_bpe *b, uint32_t left, uint32_t right, uint32_t *tag)
{
    uint64_t hash = mix(((uint64_t)left << 32 | right) ^ b->seed);
    *tag = tag_of(hash);
    for (uint32_t i = (uint32_t)hash & b->pairs.mask;; i = (i + 1) & b->pairs.mask) {
        uint32_t *slot = &b->pairs.slots[i];
        if (!*slot)
            return slot;
        const mm2_merge *m = &b->merges[index_of(*slot)];
        if ((*slot ^ *tag) >> INDEX_BITS == 0 && m->left == left && m->right == right)
            return slot;
    }
}

int32_t mm2_bpe_word(const mm2_bpe *b, const char *bytes, int64_t length)
{
    uint32_t tag;
    return (int32_t)index_of(*find_word(b, bytes, length, &tag));
}

/* Gives back what was reserved for the largest file; keeps the old block if that fails. */
static void *shrink(void *block, size_t bytes)
{
    void *smaller = realloc(block, bytes ? bytes : 1);
    return smaller ? smaller : block;
}

static mm2_status index_word(mm2_bpe *b, int32_t id)
{
    const char *bytes = b->bytes + b->start[id];
    uint32_t tag, *slot = find_word(b, bytes, b->length[id], &tag);
    if (*slot)
        return mm2_fail(MM2_E_FORMAT, "tokens %u and %d are the same, \"%.*s\"", index_of(*slot),
                        id, shown(b->length[id]), bytes);
    *slot = tag | ((uint32_t)id + 1);
    return MM2_OK;
}

mm2_status mm2_bpe_index(mm2_bpe *b, int64_t merges)
{
    if (merges < 0 || merges > MM2_MAX_MERGES)
        return mm2_fail(MM2_E_FORMAT, "there are %lld merges, expected at most %d",
                        (long long)merges, (int)MM2_MAX_MERGES);
    size_t size = (size_t)b->size;
    b->bytes = shrink(b->bytes, (size_t)b->used);
    b->start = shrink(b->start, size * sizeof *b->start);
    b->length = shrink(b->length, size * sizeof *b->length);
    b->kind = shrink(b->kind, size * sizeof *b->kind);
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now); /* a file must not be able to foresee collisions */
    b->seed = ((uint64_t)(uintptr_t)b << 20) ^ (uint64_t)now.tv_nsec * 0x2545f4914f6cdd1dULL;
    b->merge_capacity = (int32_t)merges;
    b->merges = malloc(((size_t)merges + 1) * sizeof *b->merges);
    mm2_status status = table_new(&b->words, b->size);
    if (!status)
        status = table_new(&b->pairs, merges);
    if (!status && !b->merges)
        status = mm2_fail(MM2_E_NOMEM, "no memory for %lld merges", (long long)merges);
    for (int32_t id = 0; id < b->size && !status; id++)
        if (b->kind[id] & MM2_TOKEN_WORD)
            status = index_word(b, id);
    for (int i = 0; i < 256 && !status; i++) {
        char byte = (char)i;
        b->byte_ids[i] = mm2_bpe_word(b, &byte, 1);
        if (b->byte_ids[i] < 0)
            status =
                mm2_fail(MM2_E_FORMAT,
                         "no token stands for the byte %d; a byte-level vocabulary has all 256", i);
    }
    return status;
}

/* The word that a merge makes. Files list words in the order of the merges that make them, so the
 * one behind the last result is tried first: it is in the cache. */
static int32_t find_result(mm2_bpe *b, const char *bytes, int64_t length)
{
    int32_t id = b->expected;
    if (id >= b->size || b->length[id] != length || !(b->kind[id] & MM2_TOKEN_WORD) ||
        memcmp(b->bytes + b->start[id], bytes, (size_t)length))
        id = mm2_bpe_word(b, bytes, length);
    b->expected = id + 1;
    return id;
}

mm2_status mm2_bpe_add_merge(mm2_bpe *b, const char *left, int64_t left_length, const char *right,
                             int64_t right_length)
{
    char bytes[4 * MM2_MAX_TOKEN];
    int64_t limit = 2 * MM2_MAX_TOKEN, n = -1, m = -1;
    int32_t number = b->merge_count;
    if (left_length > 0 && left_length <= limit && right_length > 0 && right_length <= limit) {
        n = unspell(bytes, left, left_length);
        m = n < 0 ? -1 : unspell(bytes + n, right, right_length);
    }
    if (m < 0)
        return mm2_fail(MM2_E_FORMAT,
                        "merge %d, \"%.*s\" \"%.*s\", is not two tokens in the printable spelling "
                        "of bytes",
                        number, shown(left_length), left, shown(right_length), right);
    int32_t left_id = mm2_bpe_word(b, bytes, n), right_id = mm2_bpe_word(b, bytes + n, m);
    int32_t result = find_result(b, bytes, n + m);
    if (left_id < 0 || right_id < 0 || result < 0)
        return mm2_fail(MM2_E_FORMAT, "merge %d, \"%.*s\" \"%.*s\": the vocabulary has no %s",
                        number, shown(left_length), left, shown(right_length), right,
                        left_id < 0    ? "left side"
                        : right_id < 0 ? "right side"
                                       : "token for both together");
    if (number >= b->merge_capacity)
        return mm2_fail(MM2_E_FORMAT, "there are more merges than the %d announced",
                        b->merge_capacity);
    uint32_t tag, *slot = find_pair(b, (uint32_t)left_id, (uint32_t)right_id, &tag);
    if (*slot)
        return mm2_fail(MM2_E_FORMAT, "merges %u and %d are the same, \"%.*s\" \"%.*s\"",
                        index_of(*slot), number, shown(left_length), left, shown(right_length),
                        right);
    b->merges[number] = (mm2_merge){(uint32_t)left_id, (uint32_t)right_id, (uint32_t)result};
    *slot = tag | ((uint32_t)number + 1);
    b->merge_count++;
    return MM2_OK;
}

/* ----------------------------------------------------------------------------------------------
 * Encoding */

void mm2_bpe_work_free(mm2_bpe_work *w)
{
    free(w->symbols);
    free(w->heap);
    free(w->candidates);
    free(w->growing);
    memset(w, 0, sizeof *w);
}

static uint32_t growing_runs(int64_t length)
{
    uint32_t count = 16;
    while (count < length && count < MAX_GROWING)
        count *= 2;
    return count;
}

static mm2_status reserve(mm2_bpe_work *w, int64_t length)
{
    if (length <= w->capacity)
        return MM2_OK;
    if (length >= UINT32_MAX / 2)
        return mm2_fail(MM2_E_ARG, "a word of %lld bytes is too long", (long long)length);
    int64_t capacity = length < 256 ? 256 : length;
    mm2_bpe_work_free(w);
    w->symbols = malloc((size_t)capacity * sizeof *w->symbols);
    w->candidates =
        malloc((size_t)capacity * 2 * sizeof *w->candidates); /* a merge takes one, adds two */
    w->heap = malloc((size_t)capacity * 2 * sizeof *w->heap);
    w->growing = malloc(growing_runs(capacity) * sizeof *w->growing);
    if (!w->symbols || !w->candidates || !w->heap || !w->growing) {
        mm2_bpe_work_free(w);
        return mm2_fail(MM2_E_NOMEM, "no memory for a word of %lld bytes", (long long)length);
    }
    w->capacity = capacity;
    return MM2_OK;
}

mm2_status mm2_bpe_begin(mm2_bpe_work *w, const char *word, int64_t length)
{
    mm2_status status = reserve(w, length);
    if (status)
        return status;
    w->word = word;
    w->length = (uint32_t)length;
    w->count = w->read = w->used = w->written = 0;
    w->free = NONE;
    w->mask = growing_runs(length) - 1;
    memset(w->growing, 0xff, (w->mask + 1) * sizeof *w->growing); /* NONE */
    return MM2_OK;
}

/* Whether run a, `rank << 32 | first candidate`, is merged before run b. */
static int before(const mm2_candidate *candidates, uint64_t a, uint64_t b)
{
    if (a >> 32 != b >> 32)
        return a < b;
    return candidates[(uint32_t)a].position < candidates[(uint32_t)b].position;
}

static void sift_up(const mm2_candidate *candidates, uint64_t *heap, uint32_t i)
{
    uint64_t run = heap[i];
    while (i > 0 && before(candidates, run, heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = run;
}

static void sift_down(const mm2_candidate *candidates, uint64_t *heap, uint32_t count)
{
    uint64_t run = heap[0];
    uint32_t i = 0;
    for (uint32_t child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && before(candidates, heap[child + 1], heap[child]))
            child++;
        if (!before(candidates, heap[child], run))
            break;
        heap[i] = heap[child];
    }
    heap[i] = run;
}

/* Notes the rank of the symbol at i with its next one; if there is one the pair is a candidate. */
static void push_pair(const mm2_bpe *b, mm2_bpe_work *w, uint32_t i)
{
    mm2_symbol *s = w->symbols;
    uint32_t tag;
    s[i].rank = s[i].next == NONE ? NONE : index_of(*find_pair(b, s[i].id, s[s[i].next].id, &tag));
    if (s[i].rank == NONE)
        return;
    uint32_t new = w->free;
    if (new == NONE)
        new = w->used++;
    else
        w->free = w->candidates[new].next;
    w->candidates[new] = (mm2_candidate){i, NONE};
    mm2_run *run = &w->growing[s[i].rank & w->mask];
    if (run->rank == s[i].rank && w->candidates[run->last].position < i) {
        w->candidates[run->last].next = new;
    } else {
        w->heap[w->count] = (uint64_t)s[i].rank << 32 | new;
        sift_up(w->candidates, w->heap, w->count++);
    }
    *run = (mm2_run){s[i].rank, new};
}

/* Takes the first candidate out of the first run; its position. */
static uint32_t pop(mm2_bpe_work *w, uint32_t *rank)
{
    uint32_t first = (uint32_t)w->heap[0];
    mm2_candidate c = w->candidates[first];
    *rank = (uint32_t)(w->heap[0] >> 32);
    if (c.next != NONE) {
        w->heap[0] = (uint64_t)*rank << 32 | c.next;
    } else {
        mm2_run *run = &w->growing[*rank & w->mask];
        if (run->last == first)
            run->rank = NONE;
        w->heap[0] = w->heap[--w->count];
    }
    if (w->count)
        sift_down(w->candidates, w->heap, w->count);
    w->candidates[first].next = w->free;
    w->free = first;
    return c.position;
}

/* The byte that is next becomes a symbol, and with the one before it a pair. */
static void read_byte(const mm2_bpe *b, mm2_bpe_work *w)
{
    uint32_t i = w->read++;
    w->symbols[i] =
        (mm2_symbol){(uint32_t)b->byte_ids[(uint8_t)w->word[i]], NONE, i ? i - 1 : NONE, NONE};
    if (i) {
        w->symbols[i - 1].next = i;
        push_pair(b, w, i - 1);
    }
}

static void merge_first(const mm2_bpe *b, mm2_bpe_work *w)
{
    mm2_symbol *s = w->symbols;
    uint32_t rank, i = pop(w, &rank);
    if (s[i].rank != rank)
        return; /* outdated */
    uint32_t gone = s[i].next;
    s[i].id = b->merges[rank].result;
    s[i].next = s[gone].next;
    s[gone].rank = NONE;
    if (s[i].next != NONE)
        s[s[i].next].previous = i;
    if (s[i].previous != NONE)
        push_pair(b, w, s[i].previous);
    push_pair(b, w, i);
}

mm2_status mm2_bpe_run(const mm2_bpe *b, mm2_bpe_work *w, mm2_ids *out, mm2_pace *pace)
{
    while (w->read < w->length) {
        read_byte(b, w);
        if (mm2_pace_over(pace))
            return MM2_MORE;
    }
    while (w->count) {
        merge_first(b, w);
        if (mm2_pace_over(pace))
            return MM2_MORE;
    }
    for (; w->written < w->length; w->written = w->symbols[w->written].next) {
        if (out->count == out->cap)
            return MM2_MORE;
        out->ids[out->count++] = (int32_t)w->symbols[w->written].id;
    }
    return MM2_OK;
}
