/* The tile instructions of AMX in C, for testing the amx level on processors without them. The
 * primitives of kernels/lanes_amx.h as functions, with the checks that the processor makes (and a
 * few that it does not): what would raise an exception there ends the test here.
 *
 * TDPBF16PS per output and instruction: two chains of fused multiply-adds, over the even and over
 * the odd elements of the 16 pairs, starting from +0; even + odd; added to C. Round to nearest,
 * subnormals taken as zero, whatever MXCSR says. The order was found by comparing 512,000 outputs
 * with the hardware's. */
#ifndef TILES_EMULATED_H
#define TILES_EMULATED_H

#define MM2_EMULATE_TILES
#include "kernels/lanes_amx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local struct emulated_tiles {
    int configured;
    tile_config config;
    uint8_t data[8][16][64];
} tiles;

static inline void tile_require(int right, const char *what)
{
    if (right)
        return;
    fprintf(stderr, "tiles: %s\n", what);
    abort();
}

static void tile_configure(const tile_config *c)
{
    static const uint8_t none[14];
    tile_require(!tiles.configured, "configured twice without a release");
    tile_require(c->palette == 1 && c->start_row == 0 && !memcmp(c->reserved, none, 14),
                 "palette, start_row or reserved bytes");
    for (int t = 0; t < 16; t++) {
        tile_require(c->rows[t] <= 16 && c->row_bytes[t] <= 64, "more than 16 rows of 64 bytes");
        tile_require((c->rows[t] == 0) == (c->row_bytes[t] == 0), "rows without bytes");
        tile_require(t < 8 || c->rows[t] == 0, "there are 8 tiles");
    }
    memset(&tiles, 0, sizeof tiles);
    tiles.config = *c;
    tiles.configured = 1;
}

static void tile_release(void)
{
    memset(&tiles, 0xee, sizeof tiles);
    tiles.configured = 0;
}

static inline void tile_usable(int t)
{
    tile_require(tiles.configured && t >= 0 && t < 8 && tiles.config.rows[t], "not configured");
}

static void tile_zero(int t)
{
    tile_usable(t);
    memset(tiles.data[t], 0, sizeof tiles.data[t]);
}

static void tile_load(int t, const void *p, int64_t stride)
{
    tile_zero(t);
    for (int r = 0; r < tiles.config.rows[t]; r++)
        memcpy(tiles.data[t][r], (const uint8_t *)p + r * stride, tiles.config.row_bytes[t]);
}

static void tile_store(int t, void *p, int64_t stride)
{
    tile_usable(t);
    for (int r = 0; r < tiles.config.rows[t]; r++)
        memcpy((uint8_t *)p + r * stride, tiles.data[t][r], tiles.config.row_bytes[t]);
}

static inline void tile_shapes(int c, int a, int b)
{
    tile_usable(c);
    tile_usable(a);
    tile_usable(b);
    tile_require(c != a && c != b && a != b, "a product of a tile with itself");
    tile_require(tiles.config.row_bytes[a] % 4 == 0 && tiles.config.row_bytes[b] % 4 == 0 &&
                     tiles.config.rows[c] == tiles.config.rows[a] &&
                     tiles.config.row_bytes[c] == tiles.config.row_bytes[b] &&
                     tiles.config.row_bytes[a] / 4 == tiles.config.rows[b],
                 "the shapes of a product do not fit");
}

static inline void tile_dot_bytes(int c, int a, int b, int negative)
{
    tile_shapes(c, a, b);
    for (int m = 0; m < tiles.config.rows[c]; m++)
        for (int n = 0; n < tiles.config.row_bytes[c] / 4; n++) {
            int32_t sum;
            memcpy(&sum, tiles.data[c][m] + n * 4, 4);
            for (int k = 0; k < tiles.config.row_bytes[a]; k++) {
                uint8_t x = tiles.data[a][m][k];
                sum += (negative ? (int8_t)x : x) * (int8_t)tiles.data[b][k / 4][n * 4 + k % 4];
            }
            memcpy(tiles.data[c][m] + n * 4, &sum, 4);
        }
}

static void tile_dot_signed(int c, int a, int b)
{
    tile_dot_bytes(c, a, b, 1);
}

static void tile_dot_unsigned(int c, int a, int b)
{
    tile_dot_bytes(c, a, b, 0);
}

static inline __m512 tile_upper(__m512i pairs)
{
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

static void tile_dot_bf16(int c, int a, int b)
{
    tile_shapes(c, a, b);
    uint32_t saved = _mm_getcsr();
    _mm_setcsr(0x9fc0);
    for (int m = 0; m < tiles.config.rows[c]; m++) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int k = 0; k < tiles.config.rows[b]; k++) {
            int32_t pair;
            memcpy(&pair, tiles.data[a][m] + k * 4, 4);
            __m512i x = _mm512_set1_epi32(pair), y = _mm512_loadu_si512(tiles.data[b][k]);
            even = _mm512_fmadd_ps(tile_upper(_mm512_slli_epi32(x, 16)),
                                   tile_upper(_mm512_slli_epi32(y, 16)), even);
            odd = _mm512_fmadd_ps(tile_upper(x), tile_upper(y), odd);
        }
        __m512 sum = _mm512_add_ps(even, odd);
        sum = _mm512_add_ps(_mm512_loadu_ps(tiles.data[c][m]), sum);
        _mm512_mask_storeu_ps(tiles.data[c][m], (1u << (tiles.config.row_bytes[c] / 4)) - 1, sum);
    }
    _mm_setcsr(saved);
}

#endif
