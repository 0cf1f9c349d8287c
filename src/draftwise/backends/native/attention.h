/* Attention of a few rows over a slot's keys and values, which lie as [groups][rows][width] in bfloat16 or float32. A row's result does not depend on
   the rows beside it. */
#pragma once
#include "lanes.h"

enum { HEADS = 3, WIDEST = 16 }; /* heads of a group that share one reading of the keys; vectors of the widest head */

struct shape {
    int64_t heads, groups, width, half; /* half: keys and values are bfloat16 */
    double scale, eps;                  /* eps: of the norms of queries and keys */
};

struct segment {
    int64_t first, n, start, past; /* inputs first .. first + n - 1, after `past` entries of a slot that begins at row `start` */
    const uint8_t *seen;           /* [n][n]: who of the segment is seen by whom; null: all before and itself */
};

static inline __attribute__((always_inline)) __m512 entry(const void *base, int64_t at, __mmask16 there, const int half) {
    if (!half) return _mm512_maskz_loadu_ps(there, (const float *)base + at);
    const __m256i bits = _mm256_maskz_loadu_epi16(there, (const uint16_t *)base + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

static inline void store(void *base, int64_t at, float value, int64_t half) {
    if (!half) {
        ((float *)base)[at] = value;
        return;
    }
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    ((uint16_t *)base)[at] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* to the nearest, ties to even */
}

/* A head is divided by its root mean square and multiplied by `norm`, if there is one; then its halves are turned by an angle each. */
static void turn(const struct shape *s, float *head, const float *norm, const float *cosine, const float *sine) {
    const int64_t width = s->width, middle = width / 2;
    if (norm) {
        float sum = 0;
        for (int64_t i = 0; i < width; i++) sum += head[i] * head[i];
        const float gain = (float)(1.0 / sqrt(sum / (double)width + s->eps));
        for (int64_t i = 0; i < width; i++) head[i] *= gain * norm[i];
    }
    for (int64_t i = 0; i < middle; i++) {
        const float low = head[i], high = head[middle + i];
        head[i] = low * cosine[i] - high * sine[i];
        head[middle + i] = high * cosine[middle + i] + low * sine[middle + i];
    }
}

/* Head h of a row [heads + 2 * groups][width] of queries, keys and values: turned in place; keys and values go to row `at` of their buffers. */
static void place(
    const struct shape *s, int64_t h, float *row, const float *const norms[2], const float *cosine, const float *sine, void *keys, void *values,
    int64_t rows, int64_t at) {
    float *head = row + h * s->width;
    if (h < s->heads) {
        turn(s, head, norms[0], cosine, sine);
        return;
    }
    const int64_t own = h - s->heads, group = own % s->groups;
    if (own < s->groups) turn(s, head, norms[1], cosine, sine);
    void *buffer = own < s->groups ? keys : values;
    for (int64_t i = 0; i < s->width; i++) store(buffer, (group * rows + at) * s->width + i, head[i], s->half);
}

/* Scores of `n` heads against one key after the other, in `vectors` vectors of 16. */
static inline __attribute__((always_inline)) void dots(
    const struct shape *s, const float *query, const void *keys, int64_t at, int64_t length, float *scores, const int n, const int vectors, const int half) {
    const __mmask16 last = first(s->width - LANES * (vectors - 1));
    for (int64_t p = 0; p < length; p++) {
        __m512 sums[HEADS];
        for (int h = 0; h < n; h++) sums[h] = _mm512_setzero_ps();
        for (int c = 0; c < vectors; c++) {
            const __mmask16 there = c == vectors - 1 ? last : 0xffff;
            const __m512 key = entry(keys, at + p * s->width + LANES * c, there, half);
            for (int h = 0; h < n; h++) sums[h] = _mm512_fmadd_ps(key, _mm512_maskz_loadu_ps(there, query + h * s->width + LANES * c), sums[h]);
        }
        for (int h = 0; h < n; h++) scores[h * length + p] = _mm512_reduce_add_ps(sums[h]) * (float)s->scale;
    }
}

/* Four vectors from lane `from` on of the means of the values of `n` heads, by their `scores`. */
static inline __attribute__((always_inline)) void means(
    const struct shape *s, const float *scores, const void *values, int64_t at, int64_t length, int64_t from, float *out, const int n, const int half) {
    __m512 sums[HEADS][4];
    __mmask16 there[4];
    for (int c = 0; c < 4; c++) there[c] = first(s->width - from - LANES * c);
    for (int h = 0; h < n; h++)
        for (int c = 0; c < 4; c++) sums[h][c] = _mm512_setzero_ps();
    for (int64_t p = 0; p < length; p++)
        for (int c = 0; c < 4; c++) {
            const __m512 value = entry(values, at + p * s->width + from + LANES * c, there[c], half);
            for (int h = 0; h < n; h++) sums[h][c] = _mm512_fmadd_ps(value, _mm512_set1_ps(scores[h * length + p]), sums[h][c]);
        }
    for (int h = 0; h < n; h++)
        for (int c = 0; c < 4; c++) _mm512_mask_storeu_ps(out + h * s->width + from + LANES * c, there[c], sums[h][c]);
}

/* The chances of scores, in place. */
static void softmax(float *scores, int64_t length) {
    __m512 largest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t p = 0; p < length; p += LANES)
        largest = _mm512_mask_max_ps(largest, first(length - p), largest, _mm512_maskz_loadu_ps(first(length - p), scores + p));
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int64_t p = 0; p < length; p += LANES) {
        const __mmask16 there = first(length - p);
        const __m512 score = _mm512_maskz_loadu_ps(there, scores + p);
        const __mmask16 seen = there & _mm512_cmp_ps_mask(score, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
        const __m512 part = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(score, top)));
        _mm512_mask_storeu_ps(scores + p, there, part);
        sum = _mm512_add_ps(sum, part);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
    for (int64_t p = 0; p < length; p += LANES)
        _mm512_mask_storeu_ps(scores + p, first(length - p), _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(first(length - p), scores + p)));
}

static inline __attribute__((always_inline)) void attend(
    const struct shape *s, const struct segment *part, int64_t t, const float *query, const void *keys, const void *values, int64_t rows, int64_t group,
    float *scores, float *out, const int n, const int half) {
    const int64_t length = part->past + (part->seen ? part->n : t + 1), at = (group * rows + part->start) * s->width;
    const int64_t vectors = (s->width + LANES - 1) / LANES;
    switch (vectors) { /* constants let the loops unroll */
        case 4: dots(s, query, keys, at, length, scores, n, 4, half); break;
        case 8: dots(s, query, keys, at, length, scores, n, 8, half); break;
        default: dots(s, query, keys, at, length, scores, n, (int)vectors, half);
    }
    for (int h = 0; h < n; h++) {
        if (part->seen)
            for (int64_t i = 0; i < part->n; i++)
                if (!part->seen[t * part->n + i]) scores[h * length + part->past + i] = -INFINITY;
        softmax(scores + h * length, length);
    }
    for (int64_t from = 0; from < s->width; from += 4 * LANES) means(s, scores, values, at, length, from, out, n, half);
}

/* Heads head .. head + n - 1, which share a group, of input t of a segment. `query` and `out` begin at the first of them. */
static void attend_some(
    const struct shape *s, const struct segment *part, int64_t t, int64_t n, const float *query, const void *keys, const void *values, int64_t rows,
    int64_t group, float *scores, float *out) {
#define ATTEND(n, half) attend(s, part, t, query, keys, values, rows, group, scores, out, n, half)
    switch (2 * n + (s->half != 0)) {
        case 2: ATTEND(1, 0); break;
        case 3: ATTEND(1, 1); break;
        case 4: ATTEND(2, 0); break;
        case 5: ATTEND(2, 1); break;
        case 6: ATTEND(3, 0); break;
        default: ATTEND(3, 1);
    }
#undef ATTEND
}
