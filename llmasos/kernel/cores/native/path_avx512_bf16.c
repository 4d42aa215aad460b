/* AVX-512 with its bfloat16 dot product: queries and weights stay bfloat16. Byte permutations, which
 * nearly every such processor has, widen int8. */
#include "attention.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vbmi,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vbmi,avx512bf16")
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
#define VDOT_WORDS(acc, a, b) ((vf)_mm512_dpbf16_ps((__m512)(acc), (__m512bh)(a), (__m512bh)(b)))
#define VSTORE_BF16(to, x)                                                                         \
    do {                                                                                           \
        __m256bh narrow = _mm512_cvtneps_pbh((__m512)(x));                                         \
        memcpy(to, &narrow, sizeof narrow);                                                        \
    } while (0)

/* The bytes of bfloat16 0 .. 127: a sign is all that a negative number has besides. */
#define BYTES_8(f, n) f(n), f(n + 1), f(n + 2), f(n + 3), f(n + 4), f(n + 5), f(n + 6), f(n + 7)
#define BYTES_64(f, n)                                                                             \
    BYTES_8(f, n), BYTES_8(f, n + 8), BYTES_8(f, n + 16), BYTES_8(f, n + 24), BYTES_8(f, n + 32),  \
        BYTES_8(f, n + 40), BYTES_8(f, n + 48), BYTES_8(f, n + 56)
#define LOG2(n) ((n) < 2 ? 0 : (n) < 4 ? 1 : (n) < 8 ? 2 : (n) < 16 ? 3 : (n) < 32 ? 4 : (n) < 64 ? 5 : 6)
#define BITS(n) ((n) ? (((127 + LOG2(n)) << 7) | ((((n) << (7 - LOG2(n))) & 127))) : 0)
#define LOW(n) (uint8_t)(BITS(n) & 255)
#define HIGH(n) (uint8_t)(BITS(n) >> 8)
static const uint8_t low_bytes[128] = {BYTES_64(LOW, 0), BYTES_64(LOW, 64)};
static const uint8_t high_bytes[128] = {BYTES_64(HIGH, 0), BYTES_64(HIGH, 64)};

static inline void widen_i8(const int8_t *from, char *to)
{
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    __m512i x = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(from));
    __m512i size = _mm512_abs_epi8(x);
    __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(low_bytes), size,
                                           _mm512_loadu_si512(low_bytes + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(high_bytes), size,
                                            _mm512_loadu_si512(high_bytes + 64));
    high = _mm512_ternarylogic_epi64(high, x, _mm512_set1_epi8(-128), 0xf8); /* high | (x & sign) */
    _mm512_storeu_si512(to, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi8(low, high));
}
#define VWIDEN_I8 widen_i8
#define LABEL "avx512_bf16"
#define PATHS path_avx512_bf16
#include "paths.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const Path path_avx512_bf16[2] = {{0}};
#endif
