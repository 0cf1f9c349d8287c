/* Products with weights of 4 or 8 bits in groups of 32 and inputs rounded to 8 bits.

   A weight is step * number - least, number unsigned, with a step and a least for each output and group. Sixteen outputs form a block; eight groups
   of a block (or what is left at the end) form a record:
     16 largest steps and 16 largest leasts, float16; 8 times 16 steps and 8 times 16 leasts, bytes: the 256ths of the largest; then of each group
     the numbers, four neighbouring inputs of an output together:
       8 bits: 8 times [16 outputs][4 inputs];
       4 bits: 4 times [16 outputs][4 inputs in the low halves, the next 4 inputs in the high halves].
   A row of inputs is rounded group by group to step * level, level in -127..127. Then, over the groups of a block,
     out += step_w * sum(number * level) * step_x - least * step_x * sum(level),
   in an order that is the same for every row, so that a row does not depend on how many there are.

   Weights of 4 bits may have a `rest`, the next 4 bits of each number, less 7.5. It is added to the BEST blocks of a row only, those with the largest
   outputs without it: of a head the tokens that can be chosen have 8 bits, and the others are not read twice.

   Rows are taken in tiles of at most TILE, whose sums stay in registers. Of many tiles a SPAN of groups is multiplied at a time: the levels of all rows
   in it stay in the second cache while the records of all blocks are read once. */

#pragma once
#include "lanes.h"

enum { GROUP = 32, TILE = 11, RECORD = 8, SPAN = 6 * RECORD, HEADER = 64 + 2 * RECORD * LANES, AHEAD = 2048, BEST = 64 };

/* A loop over the rows of a tile: gcc keeps their sums in registers only if it is told to unroll it. */
#define EACH(k, n) _Pragma("GCC unroll 16") for (int k = 0; k < (n); k++)

struct weights {
    const uint8_t *records; /* [blocks][groups / RECORD, rounded up][HEADER + 64 * bits of each group] */
    const uint8_t *rest;    /* [blocks][groups][256] or null */
    const float *bias;      /* [outputs] or null */
    const float *norm;      /* [inputs]: rows are divided by their root mean square and multiplied by this; or null */
    const int32_t *chosen;  /* [choices]: the blocks that are multiplied, the other outputs are left as they are; null: all. Not with a rest */
    int64_t inputs, outputs, bits, choices;
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

/* Of a whole record. */
static inline int64_t bytes_of_record(int64_t bits) { return HEADER + 64 * bits * RECORD; }

static inline int64_t bytes_of_block(const struct weights *w) {
    return (groups_of(w) + RECORD - 1) / RECORD * HEADER + groups_of(w) * 64 * w->bits;
}

/* That are multiplied. */
static inline int64_t blocks_of(const struct weights *w) { return w->chosen ? w->choices : (w->outputs + LANES - 1) / LANES; }

/* Where the block of that number is among all. */
static inline int64_t place_of(const struct weights *w, int64_t block) { return w->chosen ? w->chosen[block] : block; }

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

/* What is known of sixteen outputs in group i of a record. */
static inline __m512 known(const uint8_t *bytes, int i, __m512 largest) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes + i))), largest);
}

/* 256ths of the largest steps of a record, or (1) of the largest leasts. */
static inline __m512 largest(const uint8_t *record, int which) {
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)record + which)), _mm512_set1_ps(1.0f / 256));
}

/* Groups from .. to - 1 of rows t .. t + n - 1, a tile, of a block. n and bits are constants where this is called, so that all sums stay in registers. */
static inline __attribute__((always_inline)) void tile(
    const struct weights *w, const struct rows *r, const int64_t block, const int64_t t, const int64_t from, const int64_t to, const int n, const int bits) {
    const int64_t groups = groups_of(w), first_output = place_of(w, block) * LANES;
    const uint8_t *record = w->records + place_of(w, block) * bytes_of_block(w) + from / RECORD * bytes_of_record(bits);
    float *partial = r->partial + (block * r->count + t) * LANES;
    const __m512i half = _mm512_set1_epi8(15);
    const __m512 whole = _mm512_set1_ps(0x1.8p23f); /* the number of this float's bits plus a small sum, read as a float, is the float plus the sum */
    __m512 total[TILE];
    EACH(k, n) total[k] = from ? _mm512_loadu_ps(partial + k * LANES) : _mm512_setzero_ps();
    for (int64_t g = from; g < to; record += bytes_of_record(bits)) {
        const int64_t here = to - g < RECORD ? to - g : RECORD;
        const __m512 most = largest(record, 0), least_most = largest(record, 1);
        const uint8_t *own = record + HEADER;
        EACH(c, HEADER / 64) _mm_prefetch((const char *)record + AHEAD + 64 * c, _MM_HINT_T0);
        for (int64_t i = 0; i < here; i++, g++, own += 64 * bits) {
            const int64_t at = t * groups + g * n;
            const int8_t *levels = r->levels + at * GROUP;
            __m512i sums[TILE];
            EACH(k, n) sums[k] = _mm512_castps_si512(whole);
            EACH(c, bits) {
                const __m512i numbers = _mm512_loadu_si512(own + 64 * c);
                _mm_prefetch((const char *)own + AHEAD + 64 * c, _MM_HINT_T0);
                if (bits == 8) {
                    EACH(k, n) sums[k] = dot(sums[k], numbers, levels + k * GROUP + 4 * c);
                } else {
                    const __m512i low = _mm512_and_si512(numbers, half), high = _mm512_and_si512(_mm512_srli_epi16(numbers, 4), half);
                    EACH(k, n) sums[k] = dot(sums[k], low, levels + k * GROUP + 8 * c);
                    EACH(k, n) sums[k] = dot(sums[k], high, levels + k * GROUP + 8 * c + 4);
                }
            }
            const __m512 step = known(record + 64, (int)i, most), beyond = _mm512_mul_ps(step, whole); /* both exact */
            const __m512 least = known(record + 64 + RECORD * LANES, (int)i, least_most);
            EACH(k, n) {
                const __m512 scaled = _mm512_fmsub_ps(_mm512_castsi512_ps(sums[k]), step, beyond);
                total[k] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(r->steps[at + k]), total[k]);
                total[k] = _mm512_fnmadd_ps(least, _mm512_set1_ps(r->sums[at + k]), total[k]);
            }
        }
    }
    if (to < groups) {
        EACH(k, n) _mm512_storeu_ps(partial + k * LANES, total[k]);
        return;
    }
    const __mmask16 there = first(w->outputs - first_output);
    EACH(k, n) {
        const int64_t at = (t + k) * w->outputs + first_output;
        if (w->bias) total[k] = _mm512_add_ps(total[k], _mm512_maskz_loadu_ps(there, w->bias + first_output));
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
    switch (rows_of_tile(r, t)) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) }
#undef CASE
}

/* The blocks of row t with the largest outputs, the first of equals; as many as `chosen` has room for. */
static void best_blocks(const struct weights *w, const float *out, int32_t *chosen, float *values) {
    const int64_t blocks = blocks_of(w), n = blocks < BEST ? blocks : BEST;
    for (int64_t i = 0; i < n; i++) chosen[i] = (int32_t)i, values[i] = -INFINITY;
    for (int64_t b = 0, found = 0; b < blocks; b++) {
        const __mmask16 there = first(w->outputs - b * LANES);
        const float value = _mm512_mask_reduce_max_ps(there, _mm512_maskz_loadu_ps(there, out + b * LANES));
        if (found == n && !(value > values[n - 1])) continue;
        int64_t at = found < n ? found++ : n - 1;
        for (; at && value > values[at - 1]; at--) chosen[at] = chosen[at - 1], values[at] = values[at - 1];
        chosen[at] = (int32_t)b, values[at] = value;
    }
}

/* Adds the rest to a block of row t. */
static void refine(const struct weights *w, const struct rows *r, int64_t block, int64_t t) {
    const int64_t groups = groups_of(w), begin = t / r->width * r->width, n = rows_of_tile(r, begin), k = t - begin;
    const uint8_t *record = w->records + block * bytes_of_block(w), *own = w->rest + block * groups * 256;
    const __m512i half = _mm512_set1_epi8(15);
    __m512 total = _mm512_setzero_ps(), most = largest(record, 0);
    for (int64_t g = 0; g < groups; g++, own += 256) {
        const int64_t at = begin * groups + g * n + k;
        const int8_t *levels = r->levels + at * GROUP;
        if (g && g % RECORD == 0) record += bytes_of_record(4), most = largest(record, 0);
        __m512i sum = _mm512_setzero_si512();
        for (int c = 0; c < 4; c++) {
            const __m512i numbers = _mm512_loadu_si512(own + 64 * c);
            sum = dot(sum, _mm512_and_si512(numbers, half), levels + 8 * c);
            sum = dot(sum, _mm512_and_si512(_mm512_srli_epi16(numbers, 4), half), levels + 8 * c + 4);
        }
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(r->steps[at]));
        const __m512 step = known(record + 64, (int)(g % RECORD), most);
        total = _mm512_fmadd_ps(_mm512_sub_ps(scaled, _mm512_set1_ps(7.5f * r->sums[at])), step, total);
    }
    const __mmask16 there = first(w->outputs - block * LANES);
    float *out = r->out + t * w->outputs + block * LANES;
    const __m512 sum = _mm512_fmadd_ps(total, _mm512_set1_ps(1.0f / 16), _mm512_maskz_loadu_ps(there, out));
    _mm512_mask_storeu_ps(out, there, sum);
}

/* Whether a product of `count` rows is made a span of groups at a time. */
static int in_spans(const struct weights *w, int64_t count) { return count > TILE && groups_of(w) > SPAN; }

/* Floats of scratch before what is known of tiles: gains, and the best blocks of each row with their values. */
static int64_t ahead_of_tiles(const struct weights *w, int64_t count) { return count * (1 + (w->rest ? 2 * BEST : 0)); }

/* Floats of scratch that a product of `count` rows needs. */
int64_t scratch_of(const struct weights *w, int64_t count) {
    const int64_t partial = in_spans(w, count) ? blocks_of(w) * count * LANES : 0;
    return ahead_of_tiles(w, count) + groups_of(w) * count * (2 + GROUP / 4) + partial;
}

/* By all threads of a team together. `x` and `out` must not overlap; `add` may be `out`. Nobody goes on before all have ended. */
static void multiply_together(const struct weights *w, int64_t count, const float *x, const float *add, float *out, float *scratch) {
    const int64_t groups = groups_of(w), blocks = blocks_of(w), tiles = (count + TILE - 1) / TILE, span = in_spans(w, count) ? SPAN : groups;
    int32_t *chosen = (int32_t *)(scratch + count);
    float *values = scratch + count * (1 + BEST);
    float *steps = scratch + ahead_of_tiles(w, count), *sums = steps + groups * count, *levels = sums + groups * count;
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
    if (!w->rest) return;
    const int64_t best = blocks < BEST ? blocks : BEST;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < count; t++) best_blocks(w, out + t * w->outputs, chosen + t * BEST, values + t * BEST);
#pragma omp for schedule(static) collapse(2)
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < best; i++) refine(w, r, chosen[t * BEST + i], t);
}
