/* Elements, operands and vectors of them: the bottom of kernel.h, which includes this and says what
 * the macros are. */
#include <math.h>
#include <string.h>

#if BF16
typedef uint16_t NAME(Element);
#define WORD_ELEMENTS 2
#else
typedef float NAME(Element);
#define WORD_ELEMENTS 1
#endif

/* What is multiplied with a word: as many numbers as a word holds. */
#if DOT_BF16
typedef uint16_t NAME(Operand);
#else
typedef float NAME(Operand);
#endif

#define Element NAME(Element)
#define Operand NAME(Operand)
#define INLINE static inline __attribute__((always_inline))

/* Vectors in memory, with no alignment asked for. */
typedef vf NAME(vf_mem) __attribute__((aligned(4), may_alias));
typedef vi NAME(vi_mem) __attribute__((aligned(4), may_alias));
#define LOADF(p) (*(const NAME(vf_mem) *)(p))
#define LOADW(p) (*(const NAME(vi_mem) *)(p))
#define PREFETCH(p) __builtin_prefetch(p, 0, 2) /* into L2: a chunk would not stay in L1 */
#define STOREF(p, x) (*(NAME(vf_mem) *)(p) = (x))

INLINE float NAME(widen)(Element x)
{
#if BF16
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
#else
    return x;
#endif
}

/* To the nearest, ties to even; NaN stays NaN. */
INLINE Element NAME(narrow)(float x)
{
#if BF16
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (Element)(x != x ? 0x7fc0 : rounded);
#else
    return x;
#endif
}

/* acc + a . word, lane by lane. */
INLINE vf NAME(mul_add)(vf acc, const Operand *a, vi word)
{
#if DOT_BF16
    int32_t pair;
    memcpy(&pair, a, 4);
    return VDOT(acc, word, pair);
#elif BF16
    acc = VFMA(VSET1(a[0]), (vf)(word << 16), acc);
    return VFMA(VSET1(a[1]), (vf)(word & (int32_t)0xffff0000), acc);
#else
    return VFMA(VSET1(a[0]), (vf)word, acc);
#endif
}

INLINE vf NAME(select)(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* 2^x within 2e-7, x at most 126; exactly 1 at 0, exactly 0 below -126, NaN for NaN. */
INLINE vf NAME(exp2)(vf x)
{
    const vf magic = VSET1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vf bounded = VMAX(VSET1(-126.0f), x);
    vf shifted = bounded + magic;
    vf f = bounded - (shifted - magic);
    vf y = VFMA(f, VSET1(0x1.440404p-13f), VSET1(0x1.5f0896p-10f));
    y = VFMA(y, f, VSET1(0x1.3b2a1cp-7f));
    y = VFMA(y, f, VSET1(0x1.c6af6cp-5f));
    y = VFMA(y, f, VSET1(0x1.ebfbe0p-3f));
    y = VFMA(y, f, VSET1(0x1.62e430p-1f));
    y = VFMA(y, f, VSET1(1.0f));
    y = (vf)((vi)y + ((vi)shifted << 23)); /* the low bits of `shifted` are the exponent */
    return NAME(select)(x < VSET1(-126.0f), VSET1(0.0f), y);
}

INLINE float NAME(exp2_scalar)(float x)
{
    return NAME(exp2)(VSET1(x))[0];
}

/* log2(e) times the soft-capped score: cap * tanh(score * scale / cap). */
INLINE vf NAME(soft_cap)(vf score, float scale, float cap)
{
    const float log2e = 1.44269504f;
    vf x = score * VSET1(2 * log2e * scale / cap);
    vf e = NAME(exp2)(VMIN(VSET1(126.0f), x));
    vf tanh = VSET1(1.0f) - VSET1(2.0f) / (e + VSET1(1.0f));
    return tanh * VSET1(cap * log2e);
}
