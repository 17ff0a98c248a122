/* SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)
 * read as a counter-based generator. Its state is a counter that grows by an odd constant and its
 * output a hash of the state, so the output at any position costs one multiplication and one hash:
 *     splitmix64(state, position) = mix64(state + (position + 1) * GOLDEN)
 *
 * Seeds that people type are small and close together. They are hashed once into the state, so that
 * neighbouring seeds begin at unrelated counters:
 *     uniform(seed, position) = splitmix64(splitmix64(seed, 0), position) >> 11, times 2^-53
 *
 * Pure functions of integers; the last step is exact in a double. */
#include "base/rng.h"

static const uint64_t GOLDEN = 0x9e3779b97f4a7c15; /* 2^64 / golden ratio, odd */

uint64_t mm2_mix64(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

uint64_t mm2_splitmix64(uint64_t state, uint64_t position)
{
    return mm2_mix64(state + (position + 1) * GOLDEN);
}

double mm2_uniform(uint64_t seed, uint64_t position)
{
    return (double)(mm2_splitmix64(mm2_splitmix64(seed, 0), position) >> 11) * 0x1p-53;
}
