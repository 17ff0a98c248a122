/* Eight lanes take the words in turn: xor, times an odd number, rotate. For one value of the other
 * operand each of these steps maps words to words one to one, and so does the mixing of the lanes
 * at the end: two inputs that differ in one word have different sums. Eight multiplications are
 * under way at a time, so a word costs one cycle. The last words are padded with zeros, and the
 * length goes into the end. */
#include "base/checksum.h"

#include "base/rng.h"

#include <string.h>

enum { LANES = 8, BLOCK = LANES * 8 };

static const uint64_t ODD = 0x9fb21c651e98df25;

static uint64_t step(uint64_t lane, uint64_t word)
{
    lane = (lane ^ word) * ODD;
    return lane << 27 | lane >> 37;
}

static void add_block(uint64_t lanes[LANES], const uint8_t *block)
{
    uint64_t words[LANES];
    memcpy(words, block, BLOCK);
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i++)
        lanes[i] = step(lanes[i], words[i]);
}

uint64_t mm2_checksum(const void *data, int64_t bytes)
{
    const uint8_t *p = data;
    uint64_t lanes[LANES], sum = (uint64_t)bytes;
    uint8_t last[BLOCK] = {0};
    for (int i = 0; i < LANES; i++)
        lanes[i] = mm2_splitmix64(ODD, (uint64_t)i);
    int64_t left = bytes;
    for (; left >= BLOCK; left -= BLOCK, p += BLOCK)
        add_block(lanes, p);
    if (left) {
        memcpy(last, p, (size_t)left);
        add_block(lanes, last);
    }
    for (int i = 0; i < LANES; i++)
        sum = mm2_mix64(sum ^ lanes[i]);
    return sum;
}
