/* AVX-512 with its bfloat16 dot product: queries and weights stay bfloat16. */
#include "attention.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bf16")
#endif
#include <immintrin.h>

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
enum { W = 16, ROW_TILE = 6, VEC_TILE = 4 };
#define VSET1(x) ((vf)_mm512_set1_ps(x))
#define VFMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define VMAX(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define VMIN(a, b) ((vf)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define VDOT(acc, word, pair)                                                                      \
    ((vf)_mm512_dpbf16_ps((__m512)(acc), (__m512bh)(word), (__m512bh)_mm512_set1_epi32(pair)))
#define VSTORE_BF16(to, x)                                                                         \
    do {                                                                                           \
        __m256bh narrow = _mm512_cvtneps_pbh((__m512)(x));                                         \
        memcpy(to, &narrow, sizeof narrow);                                                        \
    } while (0)
#define LABEL "avx512_bf16"
#define PATHS path_avx512_bf16
#include "paths.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const Path path_avx512_bf16[2] = {{0}};
#endif
