/* AVX2 with fused multiply-add. */
#include "attention.h"

#if defined(__x86_64__) && (defined(__clang__) || defined(__GNUC__))
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));
enum { W = 8, ROW_TILE = 3, VEC_TILE = 4 };
#define VSET1(x) ((vf)_mm256_set1_ps(x))
#define VFMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define VMAX(a, b) ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define VMIN(a, b) ((vf)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define LABEL "avx2"
#define PATHS path_avx2
#include "paths.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const Path path_avx2[2] = {{0}};
#endif
