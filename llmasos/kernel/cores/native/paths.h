/* Instantiates kernel.h for both element types and tabulates them as PATHS, named LABEL; with VDOT
 * for bfloat16 alone, which is all that it changes. */
#ifndef VDOT
#define NAME(x) x##_f32
#define BF16 0
#define DOT_BF16 0
#include "kernel.h"
#undef NAME
#undef BF16
#undef DOT_BF16
#endif

#define NAME(x) x##_bf16
#define BF16 1
#ifdef VDOT
#define DOT_BF16 1
#else
#define DOT_BF16 0
#endif
#include "kernel.h"

#define ATTENTION(type)                                                                            \
    LABEL, store_##type, load_queries_##type, attend_chunk_##type, merge_##type, finish_##type
#define PRODUCTS(type) panel_##type, product_##type, normalise_##type, turn_##type, lower_##type, raise_##type
#ifdef VDOT
const Path PATHS[2] = {{0}, {ATTENTION(bf16), PRODUCTS(bf16)}};
#else
const Path PATHS[2] = {{ATTENTION(f32), PRODUCTS(f32)}, {ATTENTION(bf16)}};
#endif
