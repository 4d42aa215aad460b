/* The two halves of a low-rank addition, a row at a time; kernel.h includes this. See lora.h. */

/* Lanes of a . b, added to acc: a vector of words each. */
INLINE vf NAME(mul_words)(vf acc, vi a, vi b)
{
#if DOT_BF16
    return VDOT_WORDS(acc, a, b);
#else
    return VFMA((vf)a, (vf)b, acc);
#endif
}

/* W elements of `up` as float32. */
INLINE vf NAME(load_up)(const Element *from)
{
#if DOT_BF16
    typedef uint16_t vh __attribute__((vector_size(W * 2)));
    vh narrow;
    memcpy(&narrow, from, sizeof narrow);
    return (vf)(__builtin_convertvector(narrow, vi) << 16);
#else
    return LOADF(from);
#endif
}

INLINE float NAME(sum_of_lanes)(vf x)
{
    float lanes[W];
    STOREF(lanes, x);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

enum { NAME(words_step) = W * WORD_ELEMENTS, NAME(rank_tile) = 4 };

/* `count` ranks; `rest` is what of x does not fill a vector, filled up with zeros. */
INLINE void NAME(lower_tile)(int count, const Operand *x, const Operand *rest, int width,
                             const Operand *down, ptrdiff_t stride, float *out)
{
    vf acc[NAME(rank_tile)];
    int d = 0;
    for (int r = 0; r < count; r++)
        acc[r] = VSET1(0.0f);
    for (; d + NAME(words_step) <= width; d += NAME(words_step)) {
        vi words = LOADW(x + d);
        for (int r = 0; r < count; r++)
            acc[r] = NAME(mul_words)(acc[r], words, LOADW(down + r * stride + d));
    }
    if (d < width)
        for (int r = 0; r < count; r++)
            acc[r] = NAME(mul_words)(acc[r], LOADW(rest), LOADW(down + r * stride + d));
    for (int r = 0; r < count; r++)
        out[r] = NAME(sum_of_lanes)(acc[r]);
}

/* lowered = scale * down . x, for all parts. */
static void NAME(lower)(const LoraProduct *product, const void *row, float *lowered)
{
    Operand rest[NAME(words_step)] = {0};
    const Operand *x = row, *down = (const Operand *)product->down;
    int width = product->width, left = width % NAME(words_step), r = 0;
    memcpy(rest, x + width - left, left * sizeof(Operand));
    for (; r + NAME(rank_tile) <= product->ranks; r += NAME(rank_tile))
        NAME(lower_tile)(NAME(rank_tile), x, rest, width, down + r * product->stride,
                         product->stride, lowered + r);
    for (; r < product->ranks; r++)
        NAME(lower_tile)(1, x, rest, width, down + r * product->stride, product->stride, lowered + r);
    for (int part = 0, at = 0; part < LORA_PARTS; at += product->parts[part++].rank)
        for (int i = 0; i < product->parts[part].rank; i++)
            lowered[at + i] *= product->parts[part].scale;
}

/* out += up . lowered, for `columns` of a part's columns, of which `first`, a multiple of W, is the first. */
INLINE void NAME(raise_part)(const LoraPart *part, const float *lowered, int first, int columns, float *out)
{
    const Element *up = (const Element *)part->up + first;
    for (int c = 0; c < columns; c += W) {
        vf sum = VSET1(0.0f);
        for (int r = 0; r < part->rank; r++)
            sum = VFMA(VSET1(lowered[r]), NAME(load_up)(up + r * part->stride + c), sum);
        if (c + W <= columns)
            STOREF(out + c, LOADF(out + c) + sum);
        else
            for (int i = 0; i < columns - c; i++)
                out[c + i] += sum[i];
    }
}

/* out += up . lowered, for all parts of a row. */
static void NAME(raise)(const LoraProduct *product, const float *lowered, float *out)
{
    for (int i = 0; i < LORA_PARTS; lowered += product->parts[i++].rank)
        if (product->parts[i].rank)
            NAME(raise_part)(&product->parts[i], lowered, 0, product->parts[i].columns,
                             out + product->parts[i].column);
}

/* The same for one panel of a gated product, whose gates are the first half of `totals`. */
static void NAME(raise_gated)(const LoraProduct *product, const float *lowered, int panel, int width,
                              float *totals)
{
    for (int i = 0; i < 2; lowered += product->parts[i++].rank) {
        const LoraPart *part = &product->parts[i];
        int first = panel * width, left = part->columns - first;
        if (part->rank)
            NAME(raise_part)(part, lowered, first, left < width ? left : width, totals + i * width);
    }
}
