/* Products with weights of 4 or 8 bits in groups of 32 and inputs rounded to 8 bits.

   A weight is step * number - least, number unsigned, with a step and a least for each output and group (both float16). Sixteen outputs form a
   block; of each block and group there is one record: 16 steps, 16 leasts, then numbers, four neighbouring inputs of an output together:
     8 bits: 8 times [16 outputs][4 inputs];
     4 bits: 4 times [16 outputs][4 inputs in the low halves, the next 4 inputs in the high halves].
   A row of inputs is rounded group by group to step * level, level in -127..127. Then, over the groups of a block,
     out += step_w * step_x * sum(number * level) - least * step_x * sum(level),
   in an order that is the same for every row, so that a row does not depend on how many there are.

   Rows are taken in tiles of at most TILE, whose sums stay in registers. Of many tiles a SPAN of groups is multiplied at a time: the levels of all rows
   in it stay in the second cache while the records of all blocks are read once. */

#pragma once
#include "lanes.h"

enum { GROUP = 32, TILE = 8, SPAN = 64, HEADER = 64, AHEAD = 2048 };

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
    int64_t width;    /* rows of a tile; the last one may have fewer */
    float *gains;     /* [count] */
    float *steps;     /* of each tile [groups][rows of the tile] */
    float *sums;      /* as steps: step * sum of levels */
    int8_t *levels;   /* as steps, [GROUP] of each */
    float *partial;   /* [blocks][count][LANES]: what is summed up so far, where there are several spans */
};

static inline int64_t groups_of(const struct weights *w) { return (w->inputs + GROUP - 1) / GROUP; }

static inline int64_t blocks_of(const struct weights *w) { return (w->outputs + LANES - 1) / LANES; }

/* Of the tile that begins at row t. */
static inline int64_t rows_of_tile(const struct rows *r, int64_t t) { return r->count - t < r->width ? r->count - t : r->width; }

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

/* Row t in group g; `at`: its place in steps, sums and levels. */
static void round_group(const struct weights *w, const struct rows *r, int64_t g, int64_t t, int64_t at) {
    const __m512 low = sixteen(w, r, t, g * GROUP), high = sixteen(w, r, t, g * GROUP + LANES);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    const __m512 inverse = _mm512_set1_ps(largest > 1e-30f ? 127.0f / largest : 0.0f);
    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)), b = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
    _mm_storeu_si128((__m128i *)(r->levels + at * GROUP), _mm512_cvtsepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(r->levels + at * GROUP + LANES), _mm512_cvtsepi32_epi8(b));
    const float step = largest / 127.0f * (w->norm ? r->gains[t] : 1.0f);
    r->steps[at] = step;
    r->sums[at] = step * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
}

/* To each of sixteen sums: the products of its four numbers with four levels, the same for all. As one instruction, which compilers make two of. */
static inline __attribute__((always_inline)) __m512i dot(__m512i sums, __m512i numbers, const int8_t *levels) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(numbers), "m"(*(const int32_t(*)[1])levels));
    return sums;
}

/* Groups from .. to - 1 of rows t .. t + n - 1, a tile, of a block. n and bits are constants where this is called, so that all sums stay in registers. */
static inline __attribute__((always_inline)) void tile(
    const struct weights *w, const struct rows *r, const int64_t block, const int64_t t, const int64_t from, const int64_t to, const int n, const int bits) {
    const int64_t groups = groups_of(w), record = HEADER + 64 * bits;
    const uint8_t *own = w->records + (block * groups + from) * record;
    float *partial = r->partial + (block * r->count + t) * LANES;
    const __m512i half = _mm512_set1_epi8(15);
    __m512 total[TILE];
    for (int k = 0; k < n; k++) total[k] = from ? _mm512_loadu_ps(partial + k * LANES) : _mm512_setzero_ps();
    for (int64_t g = from; g < to; g++, own += record) {
        const int64_t at = t * groups + g * n;
        const int8_t *levels = r->levels + at * GROUP;
        __m512i sums[TILE];
        for (int k = 0; k < n; k++) sums[k] = _mm512_setzero_si512();
        _mm_prefetch((const char *)own + AHEAD, _MM_HINT_T0);
        for (int c = 0; c < bits; c++) {
            const __m512i numbers = _mm512_loadu_si512(own + HEADER + 64 * c);
            _mm_prefetch((const char *)own + AHEAD + HEADER + 64 * c, _MM_HINT_T0);
            if (bits == 8) {
                for (int k = 0; k < n; k++) sums[k] = dot(sums[k], numbers, levels + k * GROUP + 4 * c);
            } else {
                const __m512i low = _mm512_and_si512(numbers, half), high = _mm512_and_si512(_mm512_srli_epi16(numbers, 4), half);
                for (int k = 0; k < n; k++) sums[k] = dot(sums[k], low, levels + k * GROUP + 8 * c);
                for (int k = 0; k < n; k++) sums[k] = dot(sums[k], high, levels + k * GROUP + 8 * c + 4);
            }
        }
        const __m512 step = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)own));
        const __m512 least = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)own + 1));
        for (int k = 0; k < n; k++) {
            total[k] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[k]), _mm512_mul_ps(step, _mm512_set1_ps(r->steps[at + k])), total[k]);
            total[k] = _mm512_fnmadd_ps(least, _mm512_set1_ps(r->sums[at + k]), total[k]);
        }
    }
    if (to < groups) {
        for (int k = 0; k < n; k++) _mm512_storeu_ps(partial + k * LANES, total[k]);
        return;
    }
    const __mmask16 there = first(w->outputs - block * LANES);
    for (int k = 0; k < n; k++) {
        const int64_t at = (t + k) * w->outputs + block * LANES;
        if (w->bias) total[k] = _mm512_add_ps(total[k], _mm512_maskz_loadu_ps(there, w->bias + block * LANES));
        if (r->add) total[k] = _mm512_add_ps(total[k], _mm512_maskz_loadu_ps(there, r->add + at));
        _mm512_mask_storeu_ps(r->out + at, there, total[k]);
    }
}

static void rows_of_block(const struct weights *w, const struct rows *r, int64_t block, int64_t t, int64_t from, int64_t to) {
#define CASE(n) \
    case n: \
        if (w->bits == 4) tile(w, r, block, t, from, to, n, 4); \
        else tile(w, r, block, t, from, to, n, 8); \
        break;
    switch (rows_of_tile(r, t)) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

/* Whether a product of `count` rows is made a span of groups at a time. */
static int in_spans(const struct weights *w, int64_t count) { return count > TILE && groups_of(w) > SPAN; }

/* Floats of scratch that a product of `count` rows needs. */
int64_t scratch_of(const struct weights *w, int64_t count) {
    const int64_t partial = in_spans(w, count) ? blocks_of(w) * count * LANES : 0;
    return count + groups_of(w) * count * (2 + GROUP / 4) + partial;
}

/* By all threads of a team together. `x` and `out` must not overlap; `add` may be `out`. Nobody goes on before all have ended. */
static void multiply_together(const struct weights *w, int64_t count, const float *x, const float *add, float *out, float *scratch) {
    const int64_t groups = groups_of(w), blocks = blocks_of(w), tiles = (count + TILE - 1) / TILE, span = in_spans(w, count) ? SPAN : groups;
    float *steps = scratch + count, *sums = steps + groups * count, *levels = sums + groups * count;
    const int64_t width = tiles ? (count + tiles - 1) / tiles : 1;
    const struct rows rows = {count, x, add, out, width, scratch, steps, sums, (int8_t *)levels, levels + groups * count * (GROUP / 4)}, *r = &rows;
    if (w->norm) {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < count; t++) scratch[t] = gain(w, x + t * w->inputs);
    }
#pragma omp for schedule(static) collapse(2)
    for (int64_t t = 0; t < count; t += width)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t n = rows_of_tile(r, t);
            for (int64_t k = 0; k < n; k++) round_group(w, r, g, t + k, t * groups + g * n + k);
        }
    for (int64_t from = 0; from < groups; from += span) { /* a block is the same thread's in every span */
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t t = 0; t < count; t += width) rows_of_block(w, r, block, t, from, from + span < groups ? from + span : groups);
    }
#pragma omp barrier
}
