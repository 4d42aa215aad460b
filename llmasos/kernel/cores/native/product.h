/* Products with packed weights and what surrounds them, for one element type; kernel.h includes this.
 *
 * What makes it exact: an output is the sum of parts of some steps, each summed in order from zero
 * and added in order, whatever rows share the tile. Short parts also keep float32's error small.
 */
enum { NAME(panel) = VEC_TILE * W, NAME(part) = WORD_ELEMENTS == 2 ? 64 : 32 };

/* Rows of x times `count` steps of a panel, times the columns' scales if there are any, added to totals; or
 * put there, for the first part. What comes next is fetched meanwhile, `ahead_bytes` a step. */
INLINE void NAME(product_tile)(int rows, const Operand *x, ptrdiff_t stride, int count,
                               const char *words, const float *scales, const char *ahead,
                               int ahead_bytes, int is_first, float *totals)
{
    vf acc[ROW_TILE][VEC_TILE];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VEC_TILE; v++)
            acc[r][v] = VSET1(0.0f);
    for (int step = 0; step < count; step++, words += NAME(panel) * 4) {
        vi word[VEC_TILE];
        for (int v = 0; v < VEC_TILE; v++)
            word[v] = LOADW(words + v * W * 4);
        for (int line = 0; line < ahead_bytes; line += 64)
            PREFETCH(ahead + (size_t)step * ahead_bytes + line);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VEC_TILE; v++)
                acc[r][v] = NAME(mul_add)(acc[r][v], x + r * stride + step * WORD_ELEMENTS, word[v]);
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VEC_TILE; v++) {
            float *to = totals + r * NAME(panel) + v * W;
            if (scales)
                acc[r][v] *= LOADF(scales + v * W);
            if (!is_first)
                acc[r][v] = LOADF(to) + acc[r][v];
            STOREF(to, acc[r][v]);
        }
}

static void NAME(product_rows)(int rows, const Operand *x, ptrdiff_t stride, int count,
                               const char *words, const float *scales, const char *ahead,
                               int ahead_bytes, int is_first, float *totals)
{
#define DO(n) NAME(product_tile)(n, x, stride, count, words, scales, ahead, ahead_bytes, is_first, totals)
    EACH_ROW_COUNT(rows, DO)
#undef DO
}

/* `count` steps of int8 weights as words; integers up to 127 are exact in either type. */
static void NAME(widen_weights)(const int8_t *from, int count, char *to)
{
#if DOT_BF16
    for (int i = 0; i < count * NAME(panel) * 2; i += 64)
        VWIDEN_I8(from + i, to + i * 2);
#else
    typedef int8_t vc __attribute__((vector_size(W)));
    for (int i = 0; i < count * NAME(panel); i += W) {
        vc narrow;
        memcpy(&narrow, from + i, sizeof narrow);
        STOREF(to + (size_t)i * 4, __builtin_convertvector(narrow, vf));
    }
#endif
}

/* silu(gate) * up */
INLINE vf NAME(gated)(vf gate, vf up)
{
    vf e = NAME(exp2)(VMIN(VSET1(126.0f), gate * VSET1(-1.44269504f)));
    return gate / (e + VSET1(1.0f)) * up;
}

INLINE Operand NAME(operand)(float x)
{
#if DOT_BF16
    return NAME(narrow)(x);
#else
    return x;
#endif
}

/* One row's totals: biased, and put where the product goes. */
static void NAME(finish_row)(const Product *p, int panel, int row, float *totals)
{
    const Weights *w = p->weights;
    for (int v = 0; v < NAME(panel); v += W) {
        vf total = LOADF(totals + v);
        if (w->bias)
            total += LOADF(w->bias + panel * NAME(panel) + v);
        STOREF(totals + v, total);
    }
    int width = w->gated ? NAME(panel) / 2 : NAME(panel);
    int columns = w->columns - panel * width < width ? w->columns - panel * width : width;
    ptrdiff_t at = row * p->out_stride + (ptrdiff_t)panel * width;
    if (w->gated) {
        Operand *out = (Operand *)p->out + at;
        const LoraProduct *lora = lora_of(p->lora, row, p->place);
        if (lora)
            NAME(raise_gated)(lora, lowered_of(p->lora, row), panel, width, totals);
        for (int v = 0; v < width; v += W)
            STOREF(totals + v, NAME(gated)(LOADF(totals + v), LOADF(totals + v + width)));
        for (int c = 0; c < columns; c++)
            out[c] = NAME(operand)(totals[c]);
        return;
    }
    float *out = (float *)p->out + at;
    for (int c = 0; c < columns; c++)
        out[c] = p->add ? out[c] + totals[c] : totals[c];
}

/* Rows [first, end) of one panel of a product. */
static void NAME(product)(const Product *p, int panel, int first, int end)
{
    float totals[ROW_BLOCK * NAME(panel)] __attribute__((aligned(64)));
    char wide[NAME(part) * NAME(panel) * 4] __attribute__((aligned(64)));
    const Weights *w = p->weights;
    size_t step_bytes = NAME(panel) * (w->group ? WORD_ELEMENTS : 4);
    const char *words = w->words + panel * w->steps * step_bytes;
    int most = w->group && w->group < NAME(part) ? w->group : NAME(part);
    for (int step = 0; step < w->steps; step += most) {
        int count = w->steps - step < most ? w->steps - step : most;
        const float *scales = NULL;
        const char *part = words + step * step_bytes, *ahead = part + AHEAD_BYTES;
        if (w->group) {
            scales = w->scales + ((size_t)panel * w->groups + step / w->group) * NAME(panel);
            NAME(widen_weights)((const int8_t *)part, count, wide);
            part = wide;
        }
        for (int r = first; r < end; r += ROW_TILE)
            NAME(product_rows)(end - r < ROW_TILE ? end - r : ROW_TILE,
                               (const Operand *)p->x + r * p->x_stride + step * WORD_ELEMENTS,
                               p->x_stride, count, part, scales, ahead, (int)step_bytes, !step,
                               totals + (r - first) * NAME(panel));
    }
    for (int r = first; r < end; r++)
        NAME(finish_row)(p, panel, r, totals + (r - first) * NAME(panel));
}

/* ---- between products ---------------------------------------------------------------------- */

INLINE float NAME(inverse_rms)(const float *x, int width, float eps)
{
    float lanes[W], sum = 0;
    vf total = VSET1(0.0f);
    int d = 0;
    for (; d + W <= width; d += W)
        total = VFMA(LOADF(x + d), LOADF(x + d), total);
    STOREF(lanes, total);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    for (; d < width; d++)
        sum += x[d] * x[d];
    return 1.0f / sqrtf((lanes[0] + sum) / (float)width + eps);
}

static void NAME(normalise)(const float *x, const float *weight, int width, float eps, void *out)
{
    float inverse = NAME(inverse_rms)(x, width, eps);
    Operand *to = out;
    for (int d = 0; d < width; d++)
        to[d] = NAME(operand)(x[d] * inverse * weight[d]);
}

/* One head: normalised if there is a weight, then turned by its position's angles, if there are. */
static void NAME(turn)(float *x, const float *weight, const float *angles, int dim, float eps, void *out)
{
    Element *to = out;
    if (weight) {
        float inverse = NAME(inverse_rms)(x, dim, eps);
        for (int d = 0; d < dim; d++)
            x[d] = x[d] * inverse * weight[d];
    }
    for (int d = 0; d < dim && !angles; d++)
        to[d] = NAME(narrow)(x[d]);
    for (int d = 0; d < dim / 2 && angles; d++) {
        float a = x[d], b = x[d + dim / 2];
        const float *cos = angles, *sin = angles + dim; /* the sines of the first half are negated */
        to[d] = NAME(narrow)(a * cos[d] + b * sin[d]);
        to[d + dim / 2] = NAME(narrow)(b * cos[d + dim / 2] + a * sin[d + dim / 2]);
    }
}
