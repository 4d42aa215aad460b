/* Causal attention over paged K/V: what the driver (module.c) and the code paths share.
 *
 * A page holds, for every layer, for every K/V head, a block of keys and then a block of values.
 * Both are made of 32-bit words: one float32, or a pair of bfloat16 (the low half comes first).
 *
 *     keys    [page_size / 16][key steps][16]    word: elements (2i, 2i+1) of one key
 *     values  [value steps][padded dim]          word: one element of keys (2j, 2j+1)
 *
 * With float32 a pair is a single element or key. So one vector of words always serves as many keys
 * (or elements of the output) as it has lanes, and no sum across lanes is needed.
 *
 * What makes it exact: a query's keys are cut into chunks of CHUNK positions, counted from
 * position 0. A chunk gives a maximum, a sum of weights and a weighted sum of values, each computed
 * in key order; chunks are merged in order. None of it depends on which rows share a tile, on
 * where pages lie, or on which thread computes what, and no key out of a row's sight is used.
 */
#ifndef LLMASOS_ATTENTION_H
#define LLMASOS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "lora.h"

enum { LANE_KEYS = 16 };                /* keys interleaved in a block */
enum { CHUNK = 256 };                   /* keys whose weights share one maximum */
enum { CHUNK_BLOCKS = CHUNK / LANE_KEYS };

/* Strides are in elements. */
typedef struct {
    const char *data;
    ptrdiff_t token_stride, head_stride;
} Rows;

/* One call of attend(), for one layer. */
typedef struct {
    char *layer;                        /* page 0's part of this layer */
    size_t bytes_per_page;
    int page_size, head_dim, num_kv_heads;
    int group;                          /* query heads per K/V head */
    int key_steps, value_words;         /* words of a key; words of a step of values (padded dim) */
    size_t key_bytes, head_bytes;       /* of a head in a page: its keys; keys and values */
    Rows q, k, v;
    char *out;                          /* contiguous [tokens, query heads, head_dim] */
    const int32_t *page_table;
    float scale, softcap;               /* softcap 0: none */
    int window;                         /* 0: none */
} Call;

/* Some consecutive tokens of one sequence. */
typedef struct {
    int32_t first_row, num_tokens, start, first_entry;
} Span;

/* Consecutive queries of a span with all query heads of one K/V head: num_queries * group rows,
 * row r being query r / group, head r % group. */
typedef struct {
    const Span *span;
    int head, first_query, num_queries;
} Block;

/* Row-wise state of attention over some keys. maximum is -inf where no key was visible. */
typedef struct {
    float *maximum, *sum;               /* [rows] */
    float *weighted;                    /* [rows][value_words] */
} Partial;

/* Where CHUNK keys lie, in blocks of 16, and what to fetch meanwhile. */
typedef struct {
    int64_t first;                      /* position of the first key */
    char *keys[CHUNK_BLOCKS], *values[CHUNK_BLOCKS];
    char *next_keys[CHUNK_BLOCKS];      /* of the chunk after; values again where there is none */
} Chunk;

/* A thread's own memory, for one block. */
typedef struct {
    char *queries;                      /* operands [rows][key steps] */
    float *scores;                      /* [rows][CHUNK] */
    char *weights;                      /* operands [rows][CHUNK] */
    Partial state, chunk;
} Scratch;

/* A weight matrix, packed: panels of columns, each the words of one step after another. A word holds
 * one float32 or two bfloat16 that are neighbours in a row of the matrix; as int8, a quarter or a half
 * of it, with a scale for each group of steps of a column. A gated panel is half gate, half up. */
typedef struct {
    const struct Path *path;
    int columns, steps, panels;         /* columns of the product's result */
    int bf16, gated;
    int group, groups;                  /* steps that share a scale, 0: not int8; and how many such */
    char *words;
    float *scales;                      /* [panels][groups][packed columns]; NULL: none */
    float *bias;                        /* one a packed column; NULL: none */
} Weights;

/* out = x . weights, or out += it: float32, but the operands of the next product where gated.
 * Strides are in elements. */
typedef struct {
    const Weights *weights;
    const char *x;
    char *out;
    ptrdiff_t x_stride, out_stride;
    int rows, add;
    const LoraRows *lora;               /* of a gated one; NULL: none */
    LoraPlace place;
} Product;

enum { ROW_BLOCK = 96 };                /* rows that share a panel in the cache */
enum { AHEAD_BYTES = 8192 };            /* how far weights are fetched ahead of their use */

/* One instruction set's code for one element type. What is after `panel` may be missing. */
typedef struct Path {
    const char *name;
    void (*store)(const Call *, const Span *, int head, int first, int end);
    void (*load_queries)(const Call *, const Block *, Scratch *);
    void (*attend_chunk)(const Call *, const Block *, int chunk, Scratch *, Partial *);
    void (*merge)(const Call *, int rows, Partial *state, const Partial *chunk);
    void (*finish)(const Call *, const Block *, const Partial *);
    int panel;                          /* packed columns to a panel; 0: no products */
    void (*product)(const Product *, int panel, int first_row, int end_row);
    void (*normalise)(const float *x, const float *weight, int width, float eps, void *out);
    void (*turn)(float *head, const float *weight, const float *angles, int dim, float eps, void *out);
    void (*lower)(const LoraProduct *, const void *x, float *lowered);
    void (*raise)(const LoraProduct *, const float *lowered, float *out);
} Path;

/* Indexed by element type: 0 float32, 1 bfloat16. name is NULL where there is no such code. */
extern const Path path_avx512_bf16[2], path_avx512[2], path_avx2[2], path_neon[2],
    path_generic[2];

static inline char *page_base(const Call *call, const Span *span, int position, int head)
{
    int32_t page = call->page_table[span->first_entry + position / call->page_size];
    return call->layer + page * call->bytes_per_page + head * call->head_bytes;
}

static inline int64_t block_position(const Block *block, int query)
{
    return (int64_t)block->span->start + block->first_query + query;
}

#endif
