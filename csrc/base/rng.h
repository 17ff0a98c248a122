/* Random numbers by counter: the draw for a position is a pure function of (seed, position), so it
 * does not depend on what was drawn before, in which order, or in which session. */
#ifndef MM2_RNG_H
#define MM2_RNG_H

#include <stdint.h>

/* The output function of SplitMix64: a bijection of 64-bit words, 0 maps to 0. */
uint64_t mm2_mix64(uint64_t z);
/* The `position`-th output, from 0, of a SplitMix64 generator whose state begins at `state`. */
uint64_t mm2_splitmix64(uint64_t state, uint64_t position);
/* Uniform in [0, 1), a multiple of 2^-53. */
double mm2_uniform(uint64_t seed, uint64_t position);

#endif
