/* NEON, which every 64-bit ARM processor has. */
#include "attention.h"

#if defined(__aarch64__) && (defined(__clang__) || defined(__GNUC__)) && !defined(__AARCH64EB__)
#include <arm_neon.h>

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
enum { W = 4, ROW_TILE = 4, VEC_TILE = 4 };
#define VSET1(x) ((vf)vdupq_n_f32(x))
#define VFMA(a, b, c) ((vf)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define VMAX(a, b) ((vf)vmaxq_f32((float32x4_t)(a), (float32x4_t)(b)))
#define VMIN(a, b) ((vf)vminq_f32((float32x4_t)(a), (float32x4_t)(b)))
#define LABEL "neon"
#define PATHS path_neon
#include "paths.h"
#else
const Path path_neon[2] = {{0}};
#endif
