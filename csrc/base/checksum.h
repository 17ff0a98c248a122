/* A checksum of 64 bits, as fast as one thread reads memory. */
#ifndef MM2_CHECKSUM_H
#define MM2_CHECKSUM_H

#include <stdint.h>

/* Whatever is changed within one word of 8 bytes, at a multiple of 8 from the beginning, changes the
 * sum; of other damage one in 2^64 passes. It protects from accidents, not from somebody who makes a
 * file on purpose. The sum is part of file formats: it never changes. */
uint64_t mm2_checksum(const void *data, int64_t bytes);

#endif
