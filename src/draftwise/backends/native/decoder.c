/* A whole pass of a Llama-shaped decoder for processors with AVX-512 VNNI: one team of threads from the first layer to the logits. */

#if defined(__x86_64__)
int possible(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")
#include <omp.h>

#include "attention.h"
#include "products.h"

struct layer {
    struct weights qkv, out, gated, down;
    const float *norms[2]; /* of queries and keys, [width]; or null */
};

struct model {
    struct shape shape;
    struct weights head;
    int64_t count; /* of layers */
    struct layer *layers;
};

struct pass {
    int64_t count, segments, wanted, taps, rows, threads; /* rows: that the buffers of keys and values have */
    int64_t whole; /* the last layer is asked for all inputs, not for the wanted ones alone */
    const struct segment *segment;
    void *const *keys, *const *values; /* of each layer, [groups][rows][width] */
    const float *cosine, *sine; /* [count][width] */
    const int64_t *want, *tap;  /* inputs whose logits are asked for; layers whose input is, ascending */
    float *x;                   /* [count][hidden]: in, the embeddings; out, what comes before the last norm, of all inputs or the wanted ones */
    float *hidden;              /* [taps][count][hidden] */
    float *logits;              /* [wanted][vocabulary] */
    float *scratch;             /* see room() */
};

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t longest(const struct pass *p) {
    int64_t most = 0;
    for (int64_t i = 0; i < p->segments; i++) most = larger(most, p->segment[i].past + p->segment[i].n);
    return most;
}

/* Floats of scratch that a pass needs: rows of queries, keys and values; of mixed values; of the gated layer; one product's own; scores. */
int64_t room(const struct model *m, const struct pass *p) {
    const struct layer *one = m->layers;
    const int64_t wide = one->qkv.outputs + one->out.inputs + one->gated.outputs, n = larger(p->count, p->wanted);
    int64_t own = scratch_of(&m->head, n);
    const struct weights *products[] = {&one->qkv, &one->out, &one->gated, &one->down};
    for (int i = 0; i < 4; i++) own = larger(own, scratch_of(products[i], n));
    return n * wide + own + p->threads * HEADS * ROWS * longest(p);
}

/* Whether one of the inputs from .. from + n - 1 is wanted. */
static int any_wanted(const struct pass *p, int64_t from, int64_t n) {
    for (int64_t k = 0; k < p->wanted; k++)
        if (p->want[k] >= from && p->want[k] < from + n) return 1;
    return 0;
}

/* Brings the wanted rows of [count][width] to the front; by all threads together. */
static void gather(struct team *team, const struct pass *p, float *rows, int64_t width) {
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < width; i++)
        for (int64_t k = 0; k < p->wanted; k++) rows[k * width + i] = rows[p->want[k] * width + i];
    meet(team);
}

/* Queries, keys and values of all inputs to what the heads make of them, or of the wanted ones alone. */
static void mix(
    struct team *team, const struct model *m, int64_t layer, const struct pass *p, int all_inputs, float *qkv, float *mixed, float *scores) {
    const struct shape *s = &m->shape;
    const float *const *norms = m->layers[layer].norms;
    void *keys = p->keys[layer], *values = p->values[layer];
    const int64_t wide = s->heads + 2 * s->groups, each = s->heads / s->groups, parts = (each + HEADS - 1) / HEADS, all = s->groups * parts;
    for (int64_t i = 0; i < p->segments; i++) {
        const struct segment *part = p->segment + i;
#pragma omp for schedule(static) collapse(2) nowait
        for (int64_t t = 0; t < part->n; t++)
            for (int64_t h = 0; h < wide; h++) {
                const int64_t row = part->first + t;
                const float *cosine = p->cosine + row * s->width, *sine = p->sine + row * s->width;
                place(s, h, qkv + row * wide * s->width, norms, cosine, sine, keys, values, p->rows, part->start + part->past + t);
            }
        meet(team);
#pragma omp for schedule(dynamic, 1) collapse(2) nowait
        for (int64_t t = 0; t < part->n; t += ROWS)
            for (int64_t some = 0; some < all; some++) {
                const int64_t row = part->first + t, group = some / parts, begin = some % parts * HEADS, head = group * each + begin;
                const int64_t rows = part->n - t < ROWS ? part->n - t : ROWS, n = each - begin < HEADS ? each - begin : HEADS;
                if (!all_inputs && !any_wanted(p, row, rows)) continue;
                const float *query = qkv + (row * wide + head) * s->width;
                float *out = mixed + (row * s->heads + head) * s->width;
                attend_some(s, part, t, rows, n, query, wide, keys, values, p->rows, group, scores, longest(p), out);
            }
        meet(team);
    }
}

void decode(const struct model *m, const struct pass *p) {
    const struct layer *one = m->layers;
    const int64_t hidden = one->qkv.inputs, n = larger(p->count, p->wanted), length = longest(p);
    float *qkv = p->scratch, *mixed = qkv + n * one->qkv.outputs, *gated = mixed + n * one->out.inputs, *scores = gated + n * one->gated.outputs;
    float *own = scores + p->threads * HEADS * ROWS * length;
    struct team all = {0}, *team = &all;
#pragma omp parallel num_threads((int)p->threads)
    {
        int64_t taken = 0;
        for (int64_t i = 0; i < m->count; i++) {
            const struct layer *l = m->layers + i;
            if (taken < p->taps && p->tap[taken] == i) {
#pragma omp for schedule(static) nowait
                for (int64_t at = 0; at < p->count * hidden; at++) p->hidden[taken * p->count * hidden + at] = p->x[at];
                taken++;
            }
            const int all_inputs = p->whole || i + 1 < m->count;
            const int64_t some = all_inputs ? p->count : p->wanted;
            multiply_together(team, &l->qkv, p->count, p->x, NULL, qkv, own);
            mix(team, m, i, p, all_inputs, qkv, mixed, scores + omp_get_thread_num() * HEADS * ROWS * length);
            if (!all_inputs) {
                gather(team, p, mixed, l->out.inputs);
                gather(team, p, p->x, hidden);
            }
            multiply_together(team, &l->out, some, mixed, p->x, p->x, own);
            multiply_together(team, &l->gated, some, p->x, NULL, gated, own);
            multiply_together(team, &l->down, some, gated, p->x, p->x, own);
        }
#pragma omp for schedule(static) collapse(2) nowait
        for (int64_t k = 0; k < p->wanted; k++)
            for (int64_t i = 0; i < hidden; i++) qkv[k * hidden + i] = p->x[(p->whole ? p->want[k] : k) * hidden + i];
        meet(team);
        multiply_together(team, &m->head, p->wanted, qkv, NULL, p->logits, own);
    }
}

/* One product alone; `scratch` as scratch_of says. */
void multiply(const struct weights *w, int64_t count, int64_t threads, const float *x, const float *add, float *out, float *scratch) {
    struct team team = {0};
#pragma omp parallel num_threads((int)threads)
    multiply_together(&team, w, count, x, add, out, scratch);
}
#else
int possible(void) { return 0; }
#endif
