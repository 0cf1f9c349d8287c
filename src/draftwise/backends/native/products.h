/* Products with weights of 4 or 8 bits in groups of 32 and inputs rounded to 8 bits.

   A weight is step * (level - 128) with a level in 0..255. Sixteen outputs form a block; eight groups of a block (or what is left at the end) form a record:
     8 bits: 16 steps, float32; then of each group 8 times [16 outputs][4 neighbouring inputs], levels;
     4 bits: 16 units, float32; 8 times 16 parts, bytes: the step of an output in a group is its unit times its part; 8 times 16 offsets, bytes; then of
       each group 4 times [16 outputs][4 inputs in the low halves, the next 4 inputs in the high halves], numbers: a level is 8 * number + offset.
   A row of inputs is rounded group by group to scale * level, level in -127..127; for weights of 4 bits the scale is a power of two. Then, over groups,
     out += step * scale * sum((level of the weight - 128) * level of the input),
   in an order that is the same for every row, so that a row does not depend on how many there are. A record of 8 bits is multiplied by its steps as a
   whole, one of 4 bits group by group.

   Multiplications are what the time goes into, so there is one for a row, a block and a group besides those of levels. An integer sum starts at the bits
   of a large float, WHOLE, less 128 times the sum of the row's levels: read as a float it is WHOLE plus the sum, exactly. With the bits of WHOLE times a
   power of two it is that plus the sum times the power.

   Weights of 4 bits may have a `rest`, the next 4 bits of each number, less 7.5. It is added to the BEST blocks of a row only, those with the largest
   outputs without it: of a head the tokens that can be chosen have 8 bits, and the others are not read twice.

   Rows are taken in tiles of at most TILE, whose sums stay in registers. Of many tiles a SPAN of groups is multiplied at a time: the levels of all rows
   in it stay in the second cache while the records of all blocks are read once. */

#pragma once
#include "lanes.h"
#include "team.h"

enum { GROUP = 32, TILE = 12, RECORD = 8, SPAN = 6 * RECORD, PARTS = RECORD * LANES, AHEAD = 2048, BEST = 64 };

/* A loop over the rows of a tile: gcc keeps their sums in registers only if it is told to unroll it. */
#define EACH(k, n) _Pragma("GCC unroll 16") for (int k = 0; k < (n); k++)

struct weights {
    const uint8_t *records; /* [blocks][groups / RECORD, rounded up][header, 64 * bits of each group] */
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
    float *scales;    /* of each tile [groups][rows of the tile]; for 4 bits WHOLE times the scale */
    int32_t *starts;  /* as scales: the bits of WHOLE, or WHOLE times the scale, less 128 * the sum of levels */
    int8_t *levels;   /* as scales, [GROUP] of each */
    float *partial;   /* [blocks][count][LANES]: what is summed up so far, where there are several spans */
};

static inline int64_t groups_of(const struct weights *w) { return (w->inputs + GROUP - 1) / GROUP; }

/* What a record has before its numbers. */
static inline int64_t header(int64_t bits) { return 64 + (bits == 4 ? 2 * PARTS : 0); }

/* Of a whole record. */
static inline int64_t bytes_of_record(int64_t bits) { return header(bits) + 64 * bits * RECORD; }

static inline int64_t bytes_of_block(const struct weights *w) {
    return (groups_of(w) + RECORD - 1) / RECORD * header(w->bits) + groups_of(w) * 64 * w->bits;
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

static inline int32_t bits_of(float x) {
    int32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(int32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

/* A float with room for a sum of 22 bits and a sign in its last bits. */
static const float WHOLE = 0x1.8p23f;

/* Row t in group g; `at`: its place in scales, starts and levels. */
static void round_group(const struct weights *w, const struct rows *r, int64_t g, int64_t t, int64_t at) {
    const __m512 low = sixteen(w, r, t, g * GROUP), high = sixteen(w, r, t, g * GROUP + LANES);
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    const int lost = !(most < 0x1p90f) || _mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q); /* what is no number stays none */
    float scale = fminf(fmaxf(most / 127.0f, 0x1p-90f), 0x1p90f);
    if (w->bits == 4) scale = float_of((bits_of(scale) + 0x7fffff) & 0x7f800000); /* the power of two next to it, or itself */
    const __m512 inverse = _mm512_set1_ps(1.0f / scale);
    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)), b = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
    _mm_storeu_si128((__m128i *)(r->levels + at * GROUP), _mm512_cvtsepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(r->levels + at * GROUP + LANES), _mm512_cvtsepi32_epi8(b));
    const float whole = w->bits == 4 ? WHOLE * scale : WHOLE;
    r->scales[at] = lost ? NAN : w->bits == 4 ? whole : scale;
    r->starts[at] = bits_of(whole) - 128 * _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
}

/* To each of sixteen sums: the products of its four numbers with four levels, the same for all. As one instruction, which compilers make two of. */
static inline __attribute__((always_inline)) __m512i dot(__m512i sums, __m512i numbers, const int8_t *levels) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(numbers), "m"(*(const int32_t(*)[1])levels));
    return sums;
}

/* The steps of sixteen outputs in group i of a record of 4 bits. */
static inline __m512 steps_of(const uint8_t *record, int64_t i) {
    const __m128i parts = _mm_loadu_si128((const __m128i *)(record + 64) + i);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(parts)), _mm512_loadu_ps(record));
}

/* Their offsets, each four times. */
static inline __m512i offsets_of(const uint8_t *record, int64_t i) {
    const __m512i each = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(record + 64 + PARTS) + i));
    const __m512i four = _mm512_set_epi32(
        0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a, 0x09090909, 0x08080808, 0x07070707, 0x06060606, 0x05050505, 0x04040404,
        0x03030303, 0x02020202, 0x01010101, 0x00000000);
    return _mm512_shuffle_epi8(each, four);
}

/* Groups from .. to - 1 of rows t .. t + n - 1, a tile, of a block. n and bits are constants where this is called, so that all sums stay in registers. */
static inline __attribute__((always_inline)) void tile(
    const struct weights *w, const struct rows *r, const int64_t block, const int64_t t, const int64_t from, const int64_t to, const int n, const int bits) {
    const int64_t groups = groups_of(w), first_output = place_of(w, block) * LANES;
    const uint8_t *record = w->records + place_of(w, block) * bytes_of_block(w) + from / RECORD * bytes_of_record(bits);
    float *partial = r->partial + (block * r->count + t) * LANES;
    const __m512i eightfold = _mm512_set1_epi8(0x78); /* where a number lies in its level */
    __m512 total[TILE];
    EACH(k, n) total[k] = from ? _mm512_loadu_ps(partial + k * LANES) : _mm512_setzero_ps();
    for (int64_t g = from; g < to; record += bytes_of_record(bits)) {
        const int64_t here = to - g < RECORD ? to - g : RECORD;
        __m512 sum_of_record[TILE]; /* of 8 bits */
        EACH(k, n) sum_of_record[k] = _mm512_setzero_ps();
        const uint8_t *own = record + header(bits);
        EACH(c, header(bits) / 64) _mm_prefetch((const char *)record + AHEAD + 64 * c, _MM_HINT_T0);
        for (int64_t i = 0; i < here; i++, g++, own += 64 * bits) {
            const int64_t at = t * groups + g * n;
            const int8_t *levels = r->levels + at * GROUP;
            const __m512i offsets = bits == 4 ? offsets_of(record, i) : _mm512_setzero_si512();
            __m512i sums[TILE];
            EACH(k, n) sums[k] = _mm512_set1_epi32(r->starts[at + k]);
            EACH(c, bits) {
                const __m512i numbers = _mm512_loadu_si512(own + 64 * c);
                _mm_prefetch((const char *)own + AHEAD + 64 * c, _MM_HINT_T0);
                if (bits == 8) {
                    EACH(k, n) sums[k] = dot(sums[k], numbers, levels + k * GROUP + 4 * c);
                } else {
                    const __m512i low = _mm512_add_epi8(_mm512_and_si512(_mm512_slli_epi16(numbers, 3), eightfold), offsets);
                    const __m512i high = _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(numbers, 1), eightfold), offsets);
                    EACH(k, n) sums[k] = dot(sums[k], low, levels + k * GROUP + 8 * c);
                    EACH(k, n) sums[k] = dot(sums[k], high, levels + k * GROUP + 8 * c + 4);
                }
            }
            if (bits == 8) {
                EACH(k, n) {
                    const __m512 sum = _mm512_sub_ps(_mm512_castsi512_ps(sums[k]), _mm512_set1_ps(WHOLE));
                    sum_of_record[k] = _mm512_fmadd_ps(sum, _mm512_set1_ps(r->scales[at + k]), sum_of_record[k]);
                }
            } else {
                const __m512 step = steps_of(record, i);
                EACH(k, n) {
                    const __m512 sum = _mm512_sub_ps(_mm512_castsi512_ps(sums[k]), _mm512_set1_ps(r->scales[at + k]));
                    total[k] = _mm512_fmadd_ps(sum, step, total[k]);
                }
            }
        }
        if (bits == 8) EACH(k, n) total[k] = _mm512_fmadd_ps(sum_of_record[k], _mm512_loadu_ps(record), total[k]);
    }
    if (to < groups) {
        EACH(k, n) _mm512_storeu_ps(partial + k * LANES, total[k]);
        return;
    }
    const __mmask16 there = first(w->outputs - first_output);
    EACH(k, n) {
        const int64_t at = (t + k) * w->outputs + first_output;
        if (w->norm) total[k] = _mm512_mul_ps(total[k], _mm512_set1_ps(r->gains[t + k]));
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
    switch (rows_of_tile(r, t)) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) }
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
    __m512 total = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++, own += 256) {
        const int64_t at = begin * groups + g * n + k;
        const int8_t *levels = r->levels + at * GROUP;
        if (g && g % RECORD == 0) record += bytes_of_record(4);
        __m512i sum = _mm512_setzero_si512();
        for (int c = 0; c < 4; c++) {
            const __m512i numbers = _mm512_loadu_si512(own + 64 * c);
            sum = dot(sum, _mm512_and_si512(numbers, half), levels + 8 * c);
            sum = dot(sum, _mm512_and_si512(_mm512_srli_epi16(numbers, 4), half), levels + 8 * c + 4);
        }
        const int32_t whole = bits_of(r->scales[at]);
        const float scale = float_of(whole - bits_of(WHOLE) + bits_of(1.0f)), middle = 7.5f / 128 * (float)(whole - r->starts[at]);
        const __m512 step = _mm512_mul_ps(steps_of(record, g % RECORD), _mm512_set1_ps(scale));
        total = _mm512_fmadd_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(middle)), step, total);
    }
    const __mmask16 there = first(w->outputs - block * LANES);
    float *out = r->out + t * w->outputs + block * LANES;
    const float part = 0.5f * (w->norm ? r->gains[t] : 1.0f); /* a 16th of the eight levels from number to number */
    _mm512_mask_storeu_ps(out, there, _mm512_fmadd_ps(total, _mm512_set1_ps(part), _mm512_maskz_loadu_ps(there, out)));
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
static void multiply_together(
    struct team *team, const struct weights *w, int64_t count, const float *x, const float *add, float *out, float *scratch) {
    const int64_t groups = groups_of(w), blocks = blocks_of(w), tiles = (count + TILE - 1) / TILE, span = in_spans(w, count) ? SPAN : groups;
    int32_t *chosen = (int32_t *)(scratch + count);
    float *values = scratch + count * (1 + BEST);
    float *scales = scratch + ahead_of_tiles(w, count), *starts = scales + groups * count, *levels = starts + groups * count;
    const int64_t width = tiles ? (count + tiles - 1) / tiles : 1;
    const struct rows rows = {count, x, add, out, width, scratch, scales, (int32_t *)starts, (int8_t *)levels, levels + groups * count * (GROUP / 4)}, *r = &rows;
    if (w->norm) {
#pragma omp for schedule(static) nowait
        for (int64_t t = 0; t < count; t++) scratch[t] = gain(w, x + t * w->inputs); /* of use when all is multiplied */
    }
#pragma omp for schedule(static) collapse(2) nowait
    for (int64_t t = 0; t < count; t += width)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t n = rows_of_tile(r, t);
            for (int64_t k = 0; k < n; k++) round_group(w, r, g, t + k, t * groups + g * n + k);
        }
    meet(team);
    for (int64_t from = 0; from < groups; from += span) { /* a block is the same thread's in every span */
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t t = 0; t < count; t += width) rows_of_block(w, r, block, t, from, from + span < groups ? from + span : groups);
    }
    meet(team);
    if (!w->rest) return;
    const int64_t best = blocks < BEST ? blocks : BEST;
#pragma omp for schedule(static) nowait
    for (int64_t t = 0; t < count; t++) best_blocks(w, out + t * w->outputs, chosen + t * BEST, values + t * BEST);
    meet(team);
#pragma omp for schedule(static) collapse(2) nowait
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < best; i++) refine(w, r, chosen[t * BEST + i], t);
    meet(team);
}
