/* AVX-512 without bfloat16 instructions: bfloat16 is widened on the way into registers. */
#include "attention.h"

#if defined(__x86_64__) && (defined(__clang__) || defined(__GNUC__))
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif
#include <immintrin.h>

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
enum { W = 16, ROW_TILE = 5, VEC_TILE = 4 };
#define VSET1(x) ((vf)_mm512_set1_ps(x))
#define VFMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define VMAX(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define VMIN(a, b) ((vf)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define LABEL "avx512"
#define PATHS path_avx512
#include "paths.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const Path path_avx512[2] = {{0}};
#endif
