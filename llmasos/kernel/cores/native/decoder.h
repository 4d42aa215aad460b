/* A model of the Llama family: its packed weights, and one step of it over the pages of a PagedKV. */
#ifndef LLMASOS_DECODER_H
#define LLMASOS_DECODER_H

#include "driver.h"

typedef struct {
    const float *input_norm, *q_norm, *k_norm, *mlp_norm; /* those of queries and keys may be NULL */
    const Weights *qkv, *output, *gate_up, *down;
    int window;                         /* 0: none */
} DecoderLayer;

typedef struct {
    const Path *path;
    int bf16, hidden, num_heads, num_kv_heads, head_dim, inner, num_layers;
    float eps, scale;
    DecoderLayer *layers;
    char *memory;                       /* of the step under way; kept from one to the next */
    size_t memory_room;
} Model;

/* What a step is about. `hidden` is [rows, hidden], changed in place; `angles` [rows, 2, head_dim]. */
typedef struct {
    float *hidden;
    const float *angles;
    const Span *spans;
    int rows, num_spans, threads;
    const int32_t *page_table;
    const Lora *const *loras;           /* the adapters in it, and each row's: 0 none, 1 the first ... */
    const int32_t *owners;
    int num_loras;
} Batch;

/* All layers. -1 when memory is short; what was written to pages then is of no account. */
int decode(Model *model, Pool *pool, const Batch *batch);

/* One product by at most `threads` threads. With a norm, x is dense float32 and normalised first.
 * -1 when memory is short. */
int multiply(const Product *product, const float *norm, float eps, int threads);

/* What packing a row-major [rows, width] matrix takes. Its elements are those that words are made of,
 * or int8 where `group` of a row, an even number, share a scale; a gated one has the gate's rows first. */
size_t packed_bytes(const Path *path, int bf16, int rows, int width, int group, int gated);

/* Packs it into `words`, that many zeros, which the caller keeps. Scales are [rows, groups], bias [rows];
 * or NULL. NULL when memory is short. */
Weights *pack_weights(const Path *path, int bf16, const char *matrix, int rows, int width, int group,
                      int gated, const float *scales, const float *bias, char *words);
void free_weights(Weights *weights);

#endif
