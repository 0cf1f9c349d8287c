/* Products with weights of 4 or 8 bits in groups of 32 and inputs rounded to 8 bits.

   A weight is step * number - least, number unsigned, with a step and a least for each output and group (both float16). Sixteen outputs form a
   block; of each block and group there is one record: 16 steps, 16 leasts, then numbers, four neighbouring inputs of an output together:
     8 bits: 8 times [16 outputs][4 inputs];
     4 bits: 4 times [16 outputs][4 inputs in the low halves, the next 4 inputs in the high halves].
   A row of inputs is rounded group by group to step * level, level in -127..127. Then, over the groups of a block,
     out += step_w * step_x * sum(number * level) - least * step_x * sum(level),
   in an order that is the same for every row, so that a row does not depend on how many there are. Weights are read once for TILE rows. */

#pragma once
#include "lanes.h"

enum { GROUP = 32, TILE = 8, HEADER = 64, AHEAD = 2048 };

struct weights {
    const uint8_t *records; /* [blocks][groups][HEADER + 64 * bits] */
    const float *bias;      /* [outputs] or null */
    const float *norm;      /* [inputs]: rows are divided by their root mean square and multiplied by this; or null */
    int64_t inputs, outputs, bits;
    int64_t gated; /* rows of x are 2 * inputs wide, gates and values: silu(gate) * value is multiplied */
    double eps;    /* added to the mean square */
};

struct rows {
    int64_t count;
    const float *x;   /* [count][inputs, or 2 * inputs] */
    const float *add; /* [count][outputs] or null */
    float *out;       /* [count][outputs] */
    float *gains;     /* [count] */
    float *steps;     /* [groups][count] */
    float *sums;      /* [groups][count]: step * sum of levels */
    int8_t *levels;   /* [groups][count][GROUP] */
};

/* Up to 16 inputs of row t from input i on, as they are multiplied but for the gain of the norm; zeros behind the last. */
static inline __m512 sixteen(const struct weights *w, const struct rows *r, int64_t t, int64_t i) {
    const __mmask16 there = first(w->inputs - i);
    if (w->gated) {
        const float *gate = r->x + 2 * t * w->inputs + i;
        return _mm512_mul_ps(silu(_mm512_maskz_loadu_ps(there, gate)), _mm512_maskz_loadu_ps(there, gate + w->inputs));
    }
    const __m512 x = _mm512_maskz_loadu_ps(there, r->x + t * w->inputs + i);
    return w->norm ? _mm512_mul_ps(x, _mm512_maskz_loadu_ps(there, w->norm + i)) : x;
}

static float gain(const struct weights *w, const float *x) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < w->inputs; i += LANES) {
        const __m512 part = _mm512_maskz_loadu_ps(first(w->inputs - i), x + i);
        sum = _mm512_fmadd_ps(part, part, sum);
    }
    return (float)(1.0 / sqrt(_mm512_reduce_add_ps(sum) / (double)w->inputs + w->eps));
}

static void round_group(const struct weights *w, const struct rows *r, int64_t g, int64_t t) {
    const __m512 low = sixteen(w, r, t, g * GROUP), high = sixteen(w, r, t, g * GROUP + LANES);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    const __m512 inverse = _mm512_set1_ps(largest > 1e-30f ? 127.0f / largest : 0.0f);
    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)), b = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
    const int64_t at = g * r->count + t;
    _mm_storeu_si128((__m128i *)(r->levels + at * GROUP), _mm512_cvtsepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(r->levels + at * GROUP + LANES), _mm512_cvtsepi32_epi8(b));
    const float step = largest / 127.0f * (w->norm ? r->gains[t] : 1.0f);
    r->steps[at] = step;
    r->sums[at] = step * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
}

static inline __m512i four(const int8_t *levels) {
    int32_t together;
    __builtin_memcpy(&together, levels, sizeof together);
    return _mm512_set1_epi32(together);
}

/* Rows t .. t + n - 1 of a block. n and bits are constants where this is called, so that all sums stay in registers. */
static inline __attribute__((always_inline)) void tile(
    const struct weights *w, const struct rows *r, const int64_t block, const int64_t t, const int n, const int bits) {
    const int64_t groups = (w->inputs + GROUP - 1) / GROUP, record = HEADER + 64 * bits;
    const uint8_t *own = w->records + block * groups * record;
    const __m512i half = _mm512_set1_epi8(15);
    __m512 total[TILE];
    for (int k = 0; k < n; k++) total[k] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++, own += record) {
        const int8_t *levels = r->levels + (g * r->count + t) * GROUP;
        __m512i sums[TILE];
        for (int k = 0; k < n; k++) sums[k] = _mm512_setzero_si512();
        _mm_prefetch((const char *)own + AHEAD, _MM_HINT_T0);
        for (int c = 0; c < bits; c++) {
            const __m512i numbers = _mm512_loadu_si512(own + HEADER + 64 * c);
            _mm_prefetch((const char *)own + AHEAD + HEADER + 64 * c, _MM_HINT_T0);
            if (bits == 8) {
                for (int k = 0; k < n; k++) sums[k] = _mm512_dpbusd_epi32(sums[k], numbers, four(levels + k * GROUP + 4 * c));
            } else {
                const __m512i low = _mm512_and_si512(numbers, half), high = _mm512_and_si512(_mm512_srli_epi16(numbers, 4), half);
                for (int k = 0; k < n; k++) sums[k] = _mm512_dpbusd_epi32(sums[k], low, four(levels + k * GROUP + 8 * c));
                for (int k = 0; k < n; k++) sums[k] = _mm512_dpbusd_epi32(sums[k], high, four(levels + k * GROUP + 8 * c + 4));
            }
        }
        const __m512 step = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)own));
        const __m512 least = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)own + 1));
        for (int k = 0; k < n; k++) {
            const int64_t at = g * r->count + t + k;
            total[k] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[k]), _mm512_mul_ps(step, _mm512_set1_ps(r->steps[at])), total[k]);
            total[k] = _mm512_fnmadd_ps(least, _mm512_set1_ps(r->sums[at]), total[k]);
        }
    }
    const int64_t from = block * LANES;
    const __mmask16 there = first(w->outputs - from);
    for (int k = 0; k < n; k++) {
        const int64_t at = (t + k) * w->outputs + from;
        if (w->bias) total[k] = _mm512_add_ps(total[k], _mm512_maskz_loadu_ps(there, w->bias + from));
        if (r->add) total[k] = _mm512_add_ps(total[k], _mm512_maskz_loadu_ps(there, r->add + at));
        _mm512_mask_storeu_ps(r->out + at, there, total[k]);
    }
}

#define TILES(bits)                                   \
    switch (n) {                                      \
        case 1: tile(w, r, block, t, 1, bits); break; \
        case 2: tile(w, r, block, t, 2, bits); break; \
        case 3: tile(w, r, block, t, 3, bits); break; \
        case 4: tile(w, r, block, t, 4, bits); break; \
        case 5: tile(w, r, block, t, 5, bits); break; \
        case 6: tile(w, r, block, t, 6, bits); break; \
        case 7: tile(w, r, block, t, 7, bits); break; \
        default: tile(w, r, block, t, 8, bits);       \
    }

static void rows_of_block(const struct weights *w, const struct rows *r, int64_t block, int64_t t, int64_t n) {
    if (w->bits == 4) {
        TILES(4)
    } else {
        TILES(8)
    }
}

/* Floats of scratch that a product of `count` rows needs. */
int64_t scratch_of(const struct weights *w, int64_t count) {
    return count + (w->inputs + GROUP - 1) / GROUP * count * (2 + GROUP / 4);
}

/* By all threads of a team together. `x` and `out` must not overlap; `add` may be `out`. Nobody goes on before all have ended. */
static void multiply_together(const struct weights *w, int64_t count, const float *x, const float *add, float *out, float *scratch) {
    const int64_t groups = (w->inputs + GROUP - 1) / GROUP, blocks = (w->outputs + LANES - 1) / LANES;
    float *steps = scratch + count, *sums = steps + groups * count;
    const struct rows rows = {count, x, add, out, scratch, steps, sums, (int8_t *)(sums + groups * count)}, *r = &rows;
    if (w->norm) {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < count; t++) scratch[t] = gain(w, x + t * w->inputs);
    }
#pragma omp for schedule(static)
    for (int64_t g = 0; g < groups; g++)
        for (int64_t t = 0; t < count; t++) round_group(w, r, g, t);
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t t = 0; t < count; t += TILE) rows_of_block(w, r, block, t, count - t < TILE ? count - t : TILE);
}
