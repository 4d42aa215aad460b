/* Any processor the compiler knows: it makes of four lanes what it can. */
#include "attention.h"

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
enum { W = 4, ROW_TILE = 2, VEC_TILE = 4 };
static inline vf pick(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}
#define VSET1(x) ((vf){x, x, x, x})
#define VFMA(a, b, c) ((a) * (b) + (c))
#define VMAX(a, b) pick((a) > (b), a, b)
#define VMIN(a, b) pick((a) < (b), a, b)
#define LABEL "generic"
#define PATHS path_generic
#include "paths.h"
