/* The tiles of the amx level. A tile is a register of 16 rows of 64 bytes; a product adds A [16
 * weight rows][k] times B [k][16 activation rows] to C [16][16]. Tiles are numbered by literals: 0
 * to 3 are C, 4 and 5 A, 6 and 7 B.
 *
 * Under MM2_EMULATE_TILES the same names are functions that the includer has brought (see
 * tests/c/tiles_emulated.h): the level can be tested on processors without tiles. */
#ifndef MM2_LANES_AMX_H
#define MM2_LANES_AMX_H

#include <immintrin.h>
#include <stdint.h>

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;
_Static_assert(sizeof(tile_config) == 64, "the operand of LDTILECFG");

#ifndef MM2_EMULATE_TILES

#define tile_configure(config) _tile_loadconfig(config)
#define tile_release() _tile_release()
#define tile_zero(c) _tile_zero(c)
/* The intrinsic does not tell the compiler that it reads memory: stores must not be kept back. */
#define tile_load(t, p, stride)                                                                    \
    do {                                                                                           \
        __asm__ volatile("" ::: "memory");                                                         \
        _tile_loadd(t, p, stride);                                                                 \
    } while (0)
#define tile_store(t, p, stride) _tile_stored(t, p, stride)
/* c += a * b, in int32: bytes, signed; or unsigned a and signed b. */
#define tile_dot_signed(c, a, b) _tile_dpbssd(c, a, b)
#define tile_dot_unsigned(c, a, b) _tile_dpbusd(c, a, b)
/* c += a * b: pairs of bf16, in the order of kernels.h. */
#define tile_dot_bf16(c, a, b) _tile_dpbf16ps(c, a, b)

#else

static void tile_configure(const tile_config *config);
static void tile_release(void);
static void tile_zero(int c);
static void tile_load(int t, const void *p, int64_t stride);
static void tile_store(int t, void *p, int64_t stride);
static void tile_dot_signed(int c, int a, int b);
static void tile_dot_unsigned(int c, int a, int b);
static void tile_dot_bf16(int c, int a, int b);

#endif

/* Tiles are a thread's own state and belong to nobody across calls: configured where a product
 * begins, given back where it ends. `bytes`: of k in a step. */
static inline void tiles_begin(int bytes)
{
    tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = (uint16_t)(t == 4 || t == 5 ? bytes : 64);
        config.rows[t] = (uint8_t)(t < 6 ? 16 : bytes / 4);
    }
    __asm__ volatile("" ::: "memory"); /* gcc 12 drops the stores otherwise */
    tile_configure(&config);
}

static inline void tiles_end(void)
{
    tile_release();
}

#endif
