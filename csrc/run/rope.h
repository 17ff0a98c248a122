/* Rotary position embedding: the angle of pair i at a position is position * theta^(-2 i /
 * rotary_dim). */
#ifndef MM2_ROPE_H
#define MM2_ROPE_H

#include <stdint.h>

/* frequency[i] for i < half; theta^(-i / half) rounded to float. */
void mm2_rope_frequencies(float *frequency, float theta, int32_t half);
/* cosine and sine of float(position * frequency[i]), as the reference implementation forms the
 * angle. */
void mm2_rope_angles(float *cosine, float *sine, const float *frequency, int32_t half,
                     int32_t position);

#endif
