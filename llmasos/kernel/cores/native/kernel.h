/* The inner routines, written once; each path_*.c includes this per element type, having defined
 *
 *     NAME(x)                        a name of its own for x
 *     BF16                           1: elements are bfloat16, 0: float32
 *     DOT_BF16                       1: weights and queries stay bfloat16 (needs VDOT)
 *     W, vf, vi                      lanes of a vector, and vectors of float and int32_t
 *     VSET1, VFMA, VMAX, VMIN        VMAX and VMIN give their second operand where it is NaN
 *     VWIDEN_I8(from, to)            DOT_BF16 only: 64 int8, of 127 at most, as bfloat16
 *     VDOT_WORDS(acc, a, b)          DOT_BF16 only: acc + a . b, of vectors of pairs
 *     ROW_TILE, VEC_TILE             rows and vectors of an accumulator tile
 *
 * Arithmetic that order or contraction could change is spelled out by VFMA, and files are
 * compiled with -ffp-contract=off: every row's result is the same whatever tile it is in.
 */
#include "lanes.h"

/* ---- K/V in ------------------------------------------------------------------------------- */

static void NAME(store_key)(const Call *call, const Element *key, char *base, int slot)
{
    int lane = slot % LANE_KEYS;
    char *words = base + (size_t)(slot - lane) * call->key_steps * 4;
    for (int step = 0; step < call->key_steps; step++) {
        Element pair[WORD_ELEMENTS] = {0};
        for (int e = 0; e < WORD_ELEMENTS && step * WORD_ELEMENTS + e < call->head_dim; e++)
            pair[e] = key[step * WORD_ELEMENTS + e];
        memcpy(words + ((size_t)step * LANE_KEYS + lane) * 4, pair, 4);
    }
}

static void NAME(store_value)(const Call *call, const Element *value, char *base, int slot)
{
    Element *words = (Element *)(base + call->key_bytes);
    words += (size_t)(slot / WORD_ELEMENTS) * call->value_words * WORD_ELEMENTS;
    for (int d = 0; d < call->head_dim; d++)
        words[d * WORD_ELEMENTS + slot % WORD_ELEMENTS] = value[d];
}

/* Tokens first..end-1 of a span go into their slots. */
static void NAME(store)(const Call *call, const Span *span, int head, int first, int end)
{
    for (int token = first; token < end; token++) {
        int position = span->start + token, slot = position % call->page_size;
        ptrdiff_t row = (ptrdiff_t)span->first_row + token;
        char *base = page_base(call, span, position, head);
        const Element *key = (const Element *)call->k.data;
        const Element *value = (const Element *)call->v.data;
        key += row * call->k.token_stride + head * call->k.head_stride;
        value += row * call->v.token_stride + head * call->v.head_stride;
        NAME(store_key)(call, key, base, slot);
        NAME(store_value)(call, value, base, slot);
    }
}

static void NAME(load_queries)(const Call *call, const Block *block, Scratch *scratch)
{
    int width = call->key_steps * WORD_ELEMENTS;
    Operand *to = (Operand *)scratch->queries;
    for (int row = 0; row < block->num_queries * call->group; row++, to += width) {
        ptrdiff_t token = (ptrdiff_t)block->span->first_row + block->first_query + row / call->group;
        int head = block->head * call->group + row % call->group;
        const Element *q = (const Element *)call->q.data;
        q += token * call->q.token_stride + head * call->q.head_stride;
        for (int d = 0; d < width; d++) {
            Element element = d < call->head_dim ? q[d] : 0;
#if DOT_BF16
            to[d] = element;
#else
            to[d] = NAME(widen)(element);
#endif
        }
    }
}

/* ---- tiles: `rows` and `vecs` are constants wherever these are inlined --------------------- */

enum {
    NAME(line_vecs) = 64 / (W * 4),     /* vectors to a cache line */
    NAME(block_vecs) = LANE_KEYS / W,   /* ... to a block of keys */
    NAME(tile_blocks) = VEC_TILE * W / LANE_KEYS,
    NAME(block_steps) = LANE_KEYS / WORD_ELEMENTS,
};

/* Scores of some rows with the keys of tile_blocks blocks. `ahead` is fetched line by line: memory
 * then works while the processor does. */
INLINE void NAME(score_tile)(int rows, const Operand *q, int steps, char *const *keys,
                             char *const *ahead, float *out)
{
    vf acc[ROW_TILE][VEC_TILE];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VEC_TILE; v++)
            acc[r][v] = VSET1(0.0f);
    for (int step = 0; step < steps; step++) {
        vi word[VEC_TILE];
        for (int v = 0; v < VEC_TILE; v++)
            word[v] = LOADW(keys[v / NAME(block_vecs)] +
                            (step * LANE_KEYS + v % NAME(block_vecs) * W) * 4);
        for (int b = 0; b < NAME(tile_blocks); b++)
            PREFETCH(ahead[b] + step * 64);
        for (int r = 0; r < rows; r++) {
            const Operand *a = q + (r * steps + step) * WORD_ELEMENTS;
            for (int v = 0; v < VEC_TILE; v++)
                acc[r][v] = NAME(mul_add)(acc[r][v], a, word[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VEC_TILE; v++)
            STOREF(out + r * CHUNK + v * W, acc[r][v]);
}

/* Adds weights . values to `out`, for value steps first..end-1 of a chunk and `vecs` vectors of
 * the output from its element d on. */
INLINE void NAME(value_tile)(int rows, int vecs, const Operand *weights, char *const *values,
                             char *const *ahead, int words, int d, int first, int end, float *out)
{
    vf acc[ROW_TILE][VEC_TILE];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++)
            acc[r][v] = LOADF(out + r * words + d + v * W);
    for (int step = first; step < end;) {
        int block = step / NAME(block_steps), stop = (block + 1) * NAME(block_steps);
        for (stop = stop < end ? stop : end; step < stop; step++) {
            size_t at = ((size_t)(step % NAME(block_steps)) * words + d) * 4;
            vi word[VEC_TILE];
            for (int v = 0; v < vecs; v++)
                word[v] = LOADW(values[block] + at + v * W * 4);
            for (int v = 0; v < vecs; v += NAME(line_vecs))
                PREFETCH(ahead[block] + at + v * W * 4);
            for (int r = 0; r < rows; r++) {
                const Operand *a = weights + r * CHUNK + step * WORD_ELEMENTS;
                for (int v = 0; v < vecs; v++)
                    acc[r][v] = NAME(mul_add)(acc[r][v], a, word[v]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++)
            STOREF(out + r * words + d + v * W, acc[r][v]);
}

/* The same for one row and the first key of one step alone. */
static void NAME(value_half)(const Operand *weights, char *const *values, int words, int step,
                             float *out)
{
    const char *at = values[step / NAME(block_steps)] + (size_t)(step % NAME(block_steps)) * words * 4;
    for (int d = 0; d < words; d += W) {
        vi word = LOADW(at + d * 4) & 0xffff;
        STOREF(out + d, NAME(mul_add)(LOADF(out + d), weights + step * WORD_ELEMENTS, word));
    }
}

#define EACH_ROW_COUNT(rows, DO)                                                                   \
    switch (rows) {                                                                                \
    case 1: DO(1); break;                                                                          \
    case 2: if (ROW_TILE >= 2) { DO(2); } break;                                                   \
    case 3: if (ROW_TILE >= 3) { DO(3); } break;                                                   \
    case 4: if (ROW_TILE >= 4) { DO(4); } break;                                                   \
    case 5: if (ROW_TILE >= 5) { DO(5); } break;                                                   \
    default: if (ROW_TILE >= 6) { DO(6); } break;                                                  \
    }

static void NAME(score_rows)(int rows, const Operand *q, int steps, char *const *keys,
                             char *const *ahead, float *out)
{
#define DO(n) NAME(score_tile)(n, q, steps, keys, ahead, out)
    EACH_ROW_COUNT(rows, DO)
#undef DO
}

static void NAME(value_rows)(int rows, const Operand *weights, char *const *values,
                             char *const *ahead, int words, int first, int end, float *out)
{
    int d = 0;
#define DO(n) NAME(value_tile)(n, VEC_TILE, weights, values, ahead, words, d, first, end, out)
    for (; d + VEC_TILE * W <= words; d += VEC_TILE * W)
        EACH_ROW_COUNT(rows, DO)
#undef DO
#define DO(n) NAME(value_tile)(n, 1, weights, values, ahead, words, d, first, end, out)
    for (; d < words; d += W)
        EACH_ROW_COUNT(rows, DO)
#undef DO
}

/* ---- one chunk ---------------------------------------------------------------------------- */

/* Scores of one row become weights; keys below lo or from hi on weigh exactly 0. */
INLINE void NAME(weigh)(const Call *call, float *scores, Operand *weights, int lo, int hi,
                        float *maximum, float *sum)
{
    float lanes[W];
    vi lane;
    for (int i = 0; i < W; i++)
        lane[i] = i;
    vf best = VSET1(-INFINITY), total = VSET1(0.0f);
    vf factor = VSET1(call->scale * 1.44269504f);
    for (int key = 0; key < hi; key += W) {
        vf t = LOADF(scores + key);
        t = call->softcap > 0 ? NAME(soft_cap)(t, call->scale, call->softcap) : t * factor;
        if (key < lo || key + W > hi)
            t = NAME(select)((lane >= lo - key) & (lane < hi - key), t, VSET1(-INFINITY));
        STOREF(scores + key, t);
        best = VMAX(best, t);
    }
    STOREF(lanes, best);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    *maximum = lanes[0];
    for (int key = 0; key < hi; key += W) {
        vf weight = NAME(exp2)(LOADF(scores + key) - VSET1(lanes[0]));
        total += weight;
#if DOT_BF16
        VSTORE_BF16(weights + key, weight);
#else
        STOREF(weights + key, weight);
#endif
    }
    STOREF(lanes, total);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    *sum = lanes[0];
}

/* Which of the CHUNK keys from position `first` on a row's query sees: [lo, hi) of them. */
INLINE void NAME(sight)(const Call *call, const Block *block, int row, int64_t first, int *lo,
                        int *hi)
{
    int64_t position = block_position(block, row / call->group);
    int64_t from = call->window ? position - call->window + 1 - first : 0;
    int64_t to = position + 1 - first;
    *lo = from < 0 ? 0 : from > CHUNK ? CHUNK : (int)from;
    *hi = to < 0 ? 0 : to > CHUNK ? CHUNK : (int)to;
}

/* Finds the 16-key blocks of a chunk; past the last position they repeat the last block, whose
 * scores are then masked. */
static void NAME(find_blocks)(const Call *call, const Block *block, int64_t first, char **keys,
                              char **values)
{
    int64_t last = block_position(block, block->num_queries - 1);
    char *base = NULL;
    for (int b = 0, slot = call->page_size; b < CHUNK_BLOCKS; b++, slot += LANE_KEYS) {
        int64_t position = first + b * LANE_KEYS;
        if (position > last) {
            keys[b] = keys[b - 1];
            values[b] = values[b - 1];
            continue;
        }
        if (slot >= call->page_size) {
            base = page_base(call, block->span, (int)position, block->head);
            slot = (int)(position % call->page_size);
        }
        keys[b] = base + (size_t)slot * call->key_steps * 4;
        values[b] = base + call->key_bytes + (size_t)slot / WORD_ELEMENTS * call->value_words * 4;
    }
}

static void NAME(find_chunk)(const Call *call, const Block *block, int64_t first, Chunk *chunk)
{
    char *unused[CHUNK_BLOCKS];
    chunk->first = first;
    NAME(find_blocks)(call, block, first, chunk->keys, chunk->values);
    if (first + CHUNK <= block_position(block, block->num_queries - 1))
        NAME(find_blocks)(call, block, first + CHUNK, chunk->next_keys, unused);
    else
        memcpy(chunk->next_keys, chunk->values, sizeof chunk->values);
}

/* Rows r0 .. r0 + rows - 1, all of which see some of the chunk. */
static void NAME(attend_tile)(const Call *call, const Block *block, const Chunk *chunk, int r0,
                              int rows, Scratch *scratch, Partial *out)
{
    int lo[ROW_TILE] = {0}, hi[ROW_TILE] = {0}, words = call->value_words;
    const Operand *queries = (Operand *)scratch->queries;
    float *scores = scratch->scores + (size_t)r0 * CHUNK;
    Operand *weights = (Operand *)scratch->weights + (size_t)r0 * CHUNK;
    float *weighted = out->weighted + (size_t)r0 * words;
    queries += (size_t)r0 * call->key_steps * WORD_ELEMENTS;
    for (int r = 0; r < rows; r++)
        NAME(sight)(call, block, r0 + r, chunk->first, &lo[r], &hi[r]);
    /* Later rows see further: the last row's sight bounds the tile's, the first row's is common. */
    for (int b = 0; b * LANE_KEYS < hi[rows - 1]; b += NAME(tile_blocks))
        NAME(score_rows)(rows, queries, call->key_steps, chunk->keys + b, chunk->values + b,
                         scores + b * LANE_KEYS);
    for (int r = 0; r < rows; r++)
        NAME(weigh)(call, scores + r * CHUNK, weights + r * CHUNK, lo[r], hi[r],
                    &out->maximum[r0 + r], &out->sum[r0 + r]);
    memset(weighted, 0, (size_t)rows * words * sizeof(float));
    int common = hi[0] / WORD_ELEMENTS;
    NAME(value_rows)(rows, weights, chunk->values, chunk->next_keys, words, lo[0] / WORD_ELEMENTS,
                     common, weighted);
    for (int r = 0; r < rows; r++) {
        int steps = hi[r] / WORD_ELEMENTS;
        const Operand *own = weights + r * CHUNK;
        if (steps > common)
            NAME(value_rows)(1, own, chunk->values, chunk->next_keys, words, common, steps,
                             weighted + r * words);
        if (hi[r] % WORD_ELEMENTS) /* the pair's second key is out of sight: it may be anything */
            NAME(value_half)(own, chunk->values, words, steps, weighted + r * words);
    }
}

static int NAME(sees)(const Call *call, const Block *block, int row, int64_t first)
{
    int lo = 0, hi = 0;
    NAME(sight)(call, block, row, first, &lo, &hi);
    return lo < hi;
}

static void NAME(attend_chunk)(const Call *call, const Block *block, int index, Scratch *scratch,
                               Partial *out)
{
    int rows = block->num_queries * call->group, begin = 0, end = rows;
    Chunk chunk;
    NAME(find_chunk)(call, block, (int64_t)index * CHUNK, &chunk);
    for (int r = 0; r < rows; r++)
        out->maximum[r] = -INFINITY;
    while (begin < end && !NAME(sees)(call, block, begin, chunk.first))
        begin++;
    while (begin < end && !NAME(sees)(call, block, end - 1, chunk.first))
        end--;
    for (int r = begin; r < end; r += ROW_TILE)
        NAME(attend_tile)(call, block, &chunk, r, end - r < ROW_TILE ? end - r : ROW_TILE, scratch,
                          out);
}

/* ---- chunks together ---------------------------------------------------------------------- */

/* Adds the next chunk, in order, to the state of a block's rows. */
static void NAME(merge)(const Call *call, int rows, Partial *state, const Partial *chunk)
{
    int words = call->value_words;
    for (int r = 0; r < rows; r++) {
        float *to = state->weighted + (size_t)r * words;
        const float *from = chunk->weighted + (size_t)r * words;
        float old = state->maximum[r], new = chunk->maximum[r];
        if (new == -INFINITY)
            continue;
        if (old == -INFINITY) {
            state->maximum[r] = new;
            state->sum[r] = chunk->sum[r];
            memcpy(to, from, (size_t)words * sizeof(float));
            continue;
        }
        float maximum = old > new ? old : new;
        float keep = NAME(exp2_scalar)(old - maximum), add = NAME(exp2_scalar)(new - maximum);
        state->maximum[r] = maximum;
        state->sum[r] = state->sum[r] * keep + chunk->sum[r] * add;
        for (int d = 0; d < words; d += W)
            STOREF(to + d, LOADF(to + d) * VSET1(keep) + LOADF(from + d) * VSET1(add));
    }
}

static void NAME(finish)(const Call *call, const Block *block, const Partial *state)
{
    int num_heads = call->num_kv_heads * call->group;
    for (int r = 0; r < block->num_queries * call->group; r++) {
        size_t token = (size_t)block->span->first_row + block->first_query + r / call->group;
        size_t head = (size_t)block->head * call->group + r % call->group;
        Element *out = (Element *)call->out + (token * num_heads + head) * call->head_dim;
        const float *weighted = state->weighted + (size_t)r * call->value_words;
        float inverse = 1.0f / state->sum[r];
        for (int d = 0; d < call->head_dim; d++)
            out[d] = NAME(narrow)(weighted[d] * inverse);
    }
}

#if !BF16 || DOT_BF16
#include "low_rank.h"
#include "product.h"
#endif

#undef Element
#undef Operand
#undef WORD_ELEMENTS
#undef INLINE
#undef LOADF
#undef LOADW
#undef STOREF
#undef PREFETCH
