/* The avx2 level: the bodies in terms of the primitives of the files _avx2.h, compiled with the flags
 * that the suffix of this file stands for. dispatch.c calls into it only on processors that
 * have them. */
#if defined(__x86_64__)

#include "kernels/lanes_avx2.h"
#include "kernels/codes_avx2.h"
#include "kernels/direct_avx2.h"
#include "kernels/wide_avx2.h"
#include "kernels/codebooks_avx2.h"

#include "kernels/body_level.h"

void mm2_kernels_avx2(mm2_kernels *t)
{
    fill_level(t);
}

#endif
