/* Attention of a few rows over a slot's keys and values, which lie as [groups][rows][width] in bfloat16 or float32. A row's result does not depend on
   the rows beside it. */
#pragma once
#include "lanes.h"

enum { HEADS = 3, ROWS = 2, KEYS = 4 }; /* heads of a group and inputs that share one reading of the keys; keys that are read together */

struct shape {
    int64_t heads, groups, width, half; /* half: keys and values are bfloat16 */
    double scale, eps;                  /* eps: of the norms of queries and keys */
};

struct segment {
    int64_t first, n, start, past; /* inputs first .. first + n - 1, after `past` entries of a slot that begins at row `start` */
    const uint8_t *seen;           /* [n][n]: who of the segment is seen by whom; null: all before and itself */
};

/* Those that share one reading of keys and values: heads of an input, then the same ones of the next. */
struct queries {
    const float *query[HEADS * ROWS];
    float *scores[HEADS * ROWS], *out[HEADS * ROWS];
};

static inline struct queries behind(const struct queries *q, int n) {
    struct queries rest;
    for (int i = 0; i < n; i++) {
        rest.query[i] = q->query[n + i];
        rest.scores[i] = q->scores[n + i];
    }
    return rest;
}

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

/* The sums of the lanes of four vectors, each added up as _mm512_reduce_add_ps does. */
static inline __attribute__((always_inline)) __m128 four_sums(const __m512 x[4]) {
    __m512 halves[2];
    for (int i = 0; i < 2; i++) {
        const __m512 a = x[2 * i], b = x[2 * i + 1];
        halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    __m512 sum = _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88), _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
    sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0x4e));
    sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0xb1));
    return _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, sum));
}

/* Scores of `n` queries against keys from .. to - 1, of which KEYS are read together, in `vectors` vectors of 16. */
static inline __attribute__((always_inline)) void dots(
    const struct shape *s, const struct queries *q, const void *keys, int64_t at, int64_t from, int64_t to, const int n, const int vectors, const int half) {
    const __mmask16 last = first(s->width - LANES * (vectors - 1));
    const float scale = (float)s->scale;
    int64_t p = from;
    for (; p + KEYS <= to; p += KEYS) {
        __m512 sums[HEADS * ROWS][KEYS];
        for (int i = 0; i < n; i++)
            for (int k = 0; k < KEYS; k++) sums[i][k] = _mm512_setzero_ps();
        for (int c = 0; c < vectors; c++) {
            const __mmask16 there = c == vectors - 1 ? last : 0xffff;
            __m512 key[KEYS];
            for (int k = 0; k < KEYS; k++) key[k] = entry(keys, at + (p + k) * s->width + LANES * c, there, half);
            for (int i = 0; i < n; i++) {
                const __m512 query = _mm512_maskz_loadu_ps(there, q->query[i] + LANES * c);
                for (int k = 0; k < KEYS; k++) sums[i][k] = _mm512_fmadd_ps(key[k], query, sums[i][k]);
            }
        }
        for (int i = 0; i < n; i++) _mm_storeu_ps(q->scores[i] + p, _mm_mul_ps(four_sums(sums[i]), _mm_set1_ps(scale)));
    }
    for (; p < to; p++)
        for (int i = 0; i < n; i++) {
            __m512 sum = _mm512_setzero_ps();
            for (int c = 0; c < vectors; c++) {
                const __mmask16 there = c == vectors - 1 ? last : 0xffff;
                sum = _mm512_fmadd_ps(entry(keys, at + p * s->width + LANES * c, there, half), _mm512_maskz_loadu_ps(there, q->query[i] + LANES * c), sum);
            }
            q->scores[i][p] = _mm512_reduce_add_ps(sum) * scale;
        }
}

/* Four vectors from lane `from` on of the means of the values, by the scores of `n` queries: of a row's `each`, which have seen `length` values and
   one more for each row before. */
static inline __attribute__((always_inline)) void means(
    const struct shape *s, const struct queries *q, const void *values, int64_t at, int64_t length, int64_t more, int64_t from, const int n, const int each,
    const int half) {
    __m512 sums[HEADS * ROWS][4];
    __mmask16 there[4];
    for (int c = 0; c < 4; c++) there[c] = first(s->width - from - LANES * c);
    for (int i = 0; i < n; i++)
        for (int c = 0; c < 4; c++) sums[i][c] = _mm512_setzero_ps();
    for (int64_t p = 0; p < length; p++)
        for (int c = 0; c < 4; c++) {
            const __m512 value = entry(values, at + p * s->width + from + LANES * c, there[c], half);
            for (int i = 0; i < n; i++) sums[i][c] = _mm512_fmadd_ps(value, _mm512_set1_ps(q->scores[i][p]), sums[i][c]);
        }
    if (n > each && more) /* the second row sees itself too */
        for (int c = 0; c < 4; c++) {
            const __m512 value = entry(values, at + length * s->width + from + LANES * c, there[c], half);
            for (int i = each; i < n; i++) sums[i][c] = _mm512_fmadd_ps(value, _mm512_set1_ps(q->scores[i][length]), sums[i][c]);
        }
    for (int i = 0; i < n; i++)
        for (int c = 0; c < 4; c++) _mm512_mask_storeu_ps(q->out[i] + from + LANES * c, there[c], sums[i][c]);
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

/* The chances of a row of a tree, in place, 0 for those of the segment that it does not see. Its scores are added up side by side, as in a chain of the
   same tokens: the result is the same to the last bit. */
static void softmax_of_tree(float *scores, const struct segment *part, const uint8_t *seen) {
    float *own = scores + part->past;
    int64_t n = 0;
    for (int64_t k = 0; k < part->n; k++)
        if (seen[k]) own[n++] = own[k];
    softmax(scores, part->past + n);
    for (int64_t k = part->n; k-- > 0;) own[k] = seen[k] ? own[--n] : 0;
}

/* Input t of a segment and, of two `rows`, the next: `each` heads of each, which share a group. */
static inline __attribute__((always_inline)) void attend(
    const struct shape *s, const struct segment *part, int64_t t, const struct queries *q, const void *keys, const void *values, int64_t buffer,
    int64_t group, const int rows, const int each, const int half) {
    const int64_t length = part->past + (part->seen ? part->n : t + 1), more = !part->seen, at = (group * buffer + part->start) * s->width;
    const int64_t vectors = (s->width + LANES - 1) / LANES;
    const struct queries second = rows > 1 ? behind(q, each) : *q;
#define DOTS(vectors)                                                                             \
    dots(s, q, keys, at, 0, length, rows *each, vectors, half);                                   \
    if (rows > 1 && more) dots(s, &second, keys, at, length, length + 1, each, vectors, half);    \
    break;
    switch (vectors) { /* constants let the loops unroll */
        case 4: DOTS(4)
        case 8: DOTS(8)
        default: DOTS((int)vectors)
    }
#undef DOTS
    for (int i = 0; i < rows * each; i++) {
        const int64_t row = i / each, own = length + more * row;
        if (part->seen) softmax_of_tree(q->scores[i], part, part->seen + (t + row) * part->n);
        else softmax(q->scores[i], own);
    }
    for (int64_t from = 0; from < s->width; from += 4 * LANES) means(s, q, values, at, length, more, from, rows * each, each, half);
}

/* Heads of inputs t .. t + rows - 1 of a segment, `each` that share a group, from `query` to `out`, where a row is so many heads behind the one
   before. `scores`: room for rows * each times the longest. */
static void attend_some(
    const struct shape *s, const struct segment *part, int64_t t, int64_t rows, int64_t each, const float *query, int64_t wide, const void *keys,
    const void *values, int64_t buffer, int64_t group, float *scores, int64_t longest, float *out) {
    struct queries q;
    for (int64_t i = 0; i < rows * each; i++) {
        q.query[i] = query + (i / each * wide + i % each) * s->width;
        q.out[i] = out + (i / each * s->heads + i % each) * s->width;
        q.scores[i] = scores + i * longest;
    }
#define ATTEND(rows, each, half) attend(s, part, t, &q, keys, values, buffer, group, rows, each, half)
#define BOTH(rows, each)                          \
    if (s->half) ATTEND(rows, each, 1);           \
    else ATTEND(rows, each, 0);                   \
    break;
    switch (HEADS * (rows - 1) + each) {
        case 1: BOTH(1, 1)
        case 2: BOTH(1, 2)
        case 3: BOTH(1, 3)
        case 4: BOTH(2, 1)
        case 5: BOTH(2, 2)
        default: BOTH(2, 3)
    }
#undef BOTH
#undef ATTEND
}
