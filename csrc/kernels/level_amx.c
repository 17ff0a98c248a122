/* The amx level: avx512, and tiles for products of many activation rows.
 *
 * What it adds are the slots `pack` and `matmul_packed`, and attention of many rows. Everything is
 * compiled with the flags that the suffix of this file stands for; dispatch.c calls into it only on
 * processors that have them and where the system lets the process use tiles.
 *
 * Kernels keep no state, but tiles are state of the thread: each product configures them and gives
 * them back, which costs a hundred cycles among hundreds of thousands. A caller's own tiles do not
 * survive a call, as the ABI has it for any function. */
#if defined(__x86_64__)

#include "kernels/kernels.h"

#include "base/cpu.h"

#include "kernels/lanes_amx.h"
#include "kernels/lanes_avx512.h"
#include "kernels/codes_avx512.h"
#include "kernels/direct_avx512.h"
#include "kernels/wide_avx512.h"
#include "kernels/codebooks_avx512.h"

#include <math.h>

#include "kernels/body_exp.h"
#include "kernels/body_float.h"
#include "kernels/body_unpack.h"
#include "kernels/body_planes.h"
#include "kernels/body_int_direct.h"
#include "kernels/body_pieces.h"
#include "kernels/body_codebooks.h"
#include "kernels/body_fill_tiles.h"
#include "kernels/body_packed.h"
#include "kernels/body_attend_tiles.h"
#include "kernels/body_attend_tiles_int8.h"

#define PACKED_SLOT(format, dtype)                                                                 \
    static __attribute__((noinline)) void work_##format(flow *f, int32_t most)                     \
    {                                                                                              \
        work(dtype, f, most);                                                                      \
    }                                                                                              \
    static void matmul_packed_##format(float *const *out, const mm2_weight *w, int32_t first,      \
                                       int32_t count, const void *panel, int32_t rows)             \
    {                                                                                              \
        multiply_packed(dtype, work_##format, out, w, first, count, panel, rows);                  \
    }

#define PACKED(ID, name, ...) PACKED_SLOT(name, MM2_##ID)
PACKED_SLOT(f8_e4m3, MM2_F8_E4M3)
MM2_INTEGER_FORMATS(PACKED)

/* The peaks of the tiles: four products for every four loads from the first-level cache. */
#define PEAK(name, dot, bytes)                                                                     \
    static uint64_t name(const void *data, int32_t rounds, int64_t *ops)                           \
    {                                                                                              \
        enum { TILES = MM2_PEAK_BYTES / 1024, PEAK_BYTES_K = 64 };                                 \
        _Alignas(64) uint32_t c[16][16];                                                           \
        const uint8_t *p = data;                                                                   \
        tiles_begin(PEAK_BYTES_K);                                                                 \
        tile_zero(0);                                                                              \
        tile_zero(1);                                                                              \
        tile_zero(2);                                                                              \
        tile_zero(3);                                                                              \
        for (int32_t r = 0; r < rounds; r++)                                                       \
            for (int t = 0; t < TILES; t += 4) {                                                   \
                tile_load(4, p + t * 1024, 64);                                                    \
                tile_load(6, p + t * 1024 + 1024, 64);                                             \
                dot(0, 4, 6);                                                                      \
                tile_load(7, p + t * 1024 + 2048, 64);                                             \
                dot(1, 4, 7);                                                                      \
                tile_load(5, p + t * 1024 + 3072, 64);                                             \
                dot(2, 5, 6);                                                                      \
                dot(3, 5, 7);                                                                      \
            }                                                                                      \
        tile_store(0, c, 64);                                                                      \
        tiles_end();                                                                               \
        *ops = 2LL * 16 * 16 * (PEAK_BYTES_K / bytes) * TILES * rounds;                            \
        return c[0][0];                                                                            \
    }

PEAK(peak_int8_tiles, tile_dot_signed, 1)
PEAK(peak_bf16_tiles, tile_dot_bf16, 2)

void mm2_kernels_amx(mm2_kernels *t)
{
    t->pack[MM2_ACT_BF16] = pack_bf16;
    t->pack[MM2_ACT_Q8_32] = pack_q8_32;
    t->pack[MM2_ACT_Q8_256] = pack_q8_256;
    attend_few = t->attend[MM2_KV_BF16];
    t->attend[MM2_KV_BF16] = attend_bf16_tiles;
    attend_few_int8 = t->attend[MM2_KV_INT8];
    t->attend[MM2_KV_INT8] = attend_int8_tiles;
    t->peak[MM2_PEAK_INT8] = peak_int8_tiles;
    t->peak[MM2_PEAK_BF16] = peak_bf16_tiles;
    t->packed_rows[MM2_ACT_BF16] = 3;
    t->packed_rows[MM2_ACT_Q8_32] = 48;
    t->packed_rows[MM2_ACT_Q8_256] = 13;
#define FILL(ID, name, ...)                                                                        \
    if (has_tiles(MM2_##ID))                                                                       \
        t->matmul_packed[MM2_##ID] = matmul_packed_##name;
    MM2_PAIRS(FILL)
    MM2_INTEGER_FORMATS(FILL)
}

#endif
