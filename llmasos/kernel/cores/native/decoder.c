/* One step of a Llama by one team of threads; and single products.
 *
 * Rows of activations are float32 between layers, and operands of the products (bfloat16 where the
 * path multiplies those) within. A step is a row of stages, a stage some units that threads take as
 * they come, so which one computes what has no part in the result. A stage is over when its units are
 * done, not when all threads have come by: one that is kept off its processor holds nobody up.
 */
#include <fenv.h>
#include <stdlib.h>
#include <string.h>

#include "decoder.h"

static size_t element_bytes(int bf16) { return bf16 ? 2 : 4; }

static int num_blocks(int rows, int size) { return (rows + size - 1) / size; }

/* ---- packing ------------------------------------------------------------------------------- */

/* The matrix's row that a packed column is, or -1 for padding. */
static int source_row(const Weights *w, int panel_width, int panel, int column)
{
    int width = w->gated ? panel_width / 2 : panel_width;
    int row = panel * width + column % width;
    if (row >= w->columns)
        return -1;
    return column < width ? row : w->columns + row;
}

/* Of [rows, groups], a panel's groups one after another. */
static float *packed_floats(const Weights *w, int groups, const float *from)
{
    int width = w->path->panel;
    float *packed = from ? calloc((size_t)w->panels * groups * width, sizeof(float)) : NULL;
    for (size_t i = 0; packed && i < (size_t)w->panels * groups * width; i++) {
        int row = source_row(w, width, (int)(i / width / groups), (int)(i % width));
        packed[i] = row < 0 ? 0 : from[(size_t)row * groups + i / width % groups];
    }
    return packed;
}

static void pack_column(char *to, size_t stride, const char *row, int steps, size_t size)
{
    if (size == 4)
        for (int s = 0; s < steps; s++)
            memcpy(to + s * stride, row + (size_t)s * 4, 4);
    else if (size == 2)
        for (int s = 0; s < steps; s++)
            memcpy(to + s * stride, row + (size_t)s * 2, 2);
    else
        for (int s = 0; s < steps; s++)
            to[s * stride] = row[s];
}

void free_weights(Weights *w)
{
    if (w) {
        free(w->scales);
        free(w->bias);
    }
    free(w);
}

/* Everything but the words themselves. */
static Weights shape_of(const Path *path, int bf16, int rows, int width, int group, int gated)
{
    int per_panel = gated ? path->panel / 2 : path->panel, columns = gated ? rows / 2 : rows;
    return (Weights){
        .path = path,
        .columns = columns,
        .steps = width / (bf16 ? 2 : 1),
        .panels = (columns + per_panel - 1) / per_panel,
        .bf16 = bf16,
        .gated = gated,
        .group = group / (bf16 ? 2 : 1),
        .groups = group ? num_blocks(width, group) : 0,
    };
}

/* Of one step of a panel. */
static size_t step_bytes(const Weights *w)
{
    return w->path->panel * (w->group ? w->bf16 ? 2 : 1 : 4);
}

size_t packed_bytes(const Path *path, int bf16, int rows, int width, int group, int gated)
{
    Weights w = shape_of(path, bf16, rows, width, group, gated);
    return w.panels * w.steps * step_bytes(&w);
}

static void pack_words(Weights *w, const char *matrix)
{
    size_t stride = step_bytes(w), size = stride / w->path->panel;
    for (int panel = 0; panel < w->panels; panel++)
        for (int column = 0; column < w->path->panel; column++) {
            int row = source_row(w, w->path->panel, panel, column);
            char *to = w->words + (size_t)panel * w->steps * stride + column * size;
            if (row >= 0) /* padding is zero as it is */
                pack_column(to, stride, matrix + row * w->steps * size, w->steps, size);
        }
}

Weights *pack_weights(const Path *path, int bf16, const char *matrix, int rows, int width, int group,
                      int gated, const float *scales, const float *bias, char *words)
{
    Weights *w = malloc(sizeof *w);
    if (!w)
        return NULL;
    *w = shape_of(path, bf16, rows, width, group, gated);
    w->words = words;
    w->scales = packed_floats(w, w->groups, scales);
    w->bias = packed_floats(w, 1, bias);
    if ((scales && !w->scales) || (bias && !w->bias)) {
        free_weights(w);
        return NULL;
    }
    pack_words(w, matrix);
    return w;
}

/* ---- stages ------------------------------------------------------------------------------- */

enum { ROWS = 8 };                      /* that a unit of row by row work has */

typedef struct {
    atomic_int next, done;
} Stage;

static void run_stage(Stage *stage, int units, void (*run)(const void *, int), const void *work)
{
    int unit;
    while ((unit = atomic_fetch_add(&stage->next, 1)) < units) {
        run(work, unit);
        atomic_fetch_add(&stage->done, 1);
    }
    wait_until(&stage->done, units);
}

/* A thread may round, or flush denormals, in its own way: not here. */
static void in_plain_arithmetic(void (*share)(void *), void *work)
{
    fenv_t environment;
    fegetenv(&environment);
    fesetenv(FE_DFL_ENV);
    share(work);
    fesetenv(&environment);
}

static int end_of(int unit, int size, int rows) { return (unit + 1) * size < rows ? (unit + 1) * size : rows; }

/* A block of rows of a panel: all of a panel before the next one. */
static void product_unit(const void *work, int unit)
{
    const Product *p = work;
    int blocks = num_blocks(p->rows, ROW_BLOCK), block = unit % blocks;
    p->weights->path->product(p, unit / blocks, block * ROW_BLOCK, end_of(block, ROW_BLOCK, p->rows));
}

static void run_product(Stage *stage, const Product *p)
{
    run_stage(stage, num_blocks(p->rows, ROW_BLOCK) * p->weights->panels, product_unit, p);
}

/* What an adapter adds to a row of the product at that place, whose rows are `out`. */
static void raise_row(const Path *path, const LoraRows *lora, int row, LoraPlace place, float *out)
{
    const LoraProduct *product = lora_of(lora, row, place);
    if (product)
        path->raise(product, lowered_of(lora, row), out);
}

static void lower_row(const Path *path, const LoraRows *lora, int row, LoraPlace place, const void *x)
{
    const LoraProduct *product = lora_of(lora, row, place);
    if (product)
        path->lower(product, x, lowered_of(lora, row));
}

/* A product whose rows are all there is to it, and what adapters make of its x meanwhile. */
typedef struct {
    const Product *product;
    const LoraRows *lora;
    LoraPlace place;
} LoweredProduct;

static void lowered_unit(const void *work, int unit)
{
    const LoweredProduct *l = work;
    const Product *p = l->product;
    const Weights *w = p->weights;
    int units = num_blocks(p->rows, ROW_BLOCK) * w->panels, block = unit - units;
    size_t row_bytes = p->x_stride * element_bytes(w->bf16);
    if (unit < units)
        product_unit(p, unit);
    else
        for (int r = block * ROWS; r < end_of(block, ROWS, p->rows); r++)
            lower_row(w->path, l->lora, r, l->place, p->x + r * row_bytes);
}

static void run_lowered(Stage *stage, const LoweredProduct *l)
{
    const Product *p = l->product;
    int units = num_blocks(p->rows, ROW_BLOCK) * p->weights->panels;
    run_stage(stage, units + (l->lora ? num_blocks(p->rows, ROWS) : 0), lowered_unit, l);
}

typedef struct {
    const Path *path;
    const float *x, *norm;
    int rows, width;
    float eps;
    char *out;
    size_t row_bytes;
    const LoraRows *lora;               /* NULL: none; else what is first added to x, */
    LoraPlace before, after;            /* and the product that what comes out goes into */
} Normalising;

static void normalise_unit(const void *work, int unit)
{
    const Normalising *n = work;
    for (int r = unit * ROWS; r < end_of(unit, ROWS, n->rows); r++) {
        raise_row(n->path, n->lora, r, n->before, (float *)n->x + (size_t)r * n->width);
        n->path->normalise(n->x + (size_t)r * n->width, n->norm, n->width, n->eps,
                           n->out + r * n->row_bytes);
        lower_row(n->path, n->lora, r, n->after, n->out + r * n->row_bytes);
    }
}

static void run_normalising(Stage *stage, const Normalising *n)
{
    run_stage(stage, num_blocks(n->rows, ROWS), normalise_unit, n);
}

/* ---- one product --------------------------------------------------------------------------- */

typedef struct {
    Product product;
    Normalising before;                 /* without a norm: nothing */
    Stage stages[2];
} SingleProduct;

static void multiply_share(void *work)
{
    SingleProduct *s = work;
    if (s->before.norm)
        run_normalising(&s->stages[0], &s->before);
    run_product(&s->stages[1], &s->product);
}

static void multiply_thread(void *work) { in_plain_arithmetic(multiply_share, work); }

int multiply(const Product *product, const float *norm, float eps, int threads)
{
    const Weights *w = product->weights;
    int width = (int)product->x_stride;
    size_t row_bytes = width * element_bytes(w->bf16);
    SingleProduct s = {.product = *product};
    void *operands = NULL;
    if (norm) {
        if (posix_memalign(&operands, 64, row_bytes * product->rows))
            return -1;
        s.before = (Normalising){w->path, (const float *)product->x, norm, product->rows, width, eps,
                                 operands, row_bytes};
        s.product.x = operands;
    }
    run_threads(multiply_thread, &s, bounded_threads(threads));
    free(operands);
    return 0;
}

/* ---- one step ------------------------------------------------------------------------------ */

enum { NORM, QKV, TURN, OUTPUT, MLP_NORM, GATE_UP, DOWN, STAGES };

typedef struct {
    Model *model;
    Pool *pool;
    const Batch *batch;
    atomic_int failed;
    char *x, *heads, *attended, *inner; /* operands; queries, keys and values; operands twice */
    float *qkv;
    Stage (*stages)[STAGES];            /* of each layer, and its attention */
    Job *attention;
    Stage last;
    LoraRows rows;
    const LoraRows *lora;               /* the same; NULL where no row has an adapter */
} Step;

static size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

static size_t num_heads_all(const Model *m) { return m->num_heads + 2 * (size_t)m->num_kv_heads; }

/* Hands out the parts of the step's memory; with a NULL base, only their total. */
static size_t lay_out(Step *s, char *base)
{
    const Model *m = s->model;
    size_t size = element_bytes(m->bf16), rows = s->batch->rows, at = 0;
    size_t heads = num_heads_all(m) * m->head_dim, q = (size_t)m->num_heads * m->head_dim;
#define PUT(field, type, bytes)                                                                    \
    s->field = (type)(base + at);                                                                  \
    at += aligned(bytes)
    PUT(x, char *, rows * m->hidden * size);
    PUT(qkv, float *, rows * heads * 4);
    PUT(heads, char *, rows * heads * size);
    PUT(attended, char *, rows * q * size);
    PUT(inner, char *, rows * m->inner * size);
    PUT(stages, Stage(*)[STAGES], sizeof(Stage[STAGES]) * m->num_layers);
    PUT(attention, Job *, sizeof(Job) * m->num_layers);
    PUT(rows.of_row, const Lora *const *, s->lora ? rows * sizeof(Lora *) : 0);
    PUT(rows.lowered, float *, rows * s->rows.ranks * 4);
#undef PUT
    return at;
}

static Call attention_call(const Step *s, int layer)
{
    const Model *m = s->model;
    Call call = call_of(s->pool, layer, m->num_heads / m->num_kv_heads);
    size_t size = element_bytes(m->bf16), dim = m->head_dim;
    ptrdiff_t token = (ptrdiff_t)(num_heads_all(m) * dim);
    call.scale = m->scale;
    call.window = m->layers[layer].window;
    call.q = (Rows){s->heads, token, m->head_dim};
    call.k = (Rows){s->heads + m->num_heads * dim * size, token, m->head_dim};
    call.v = (Rows){s->heads + (m->num_heads + m->num_kv_heads) * dim * size, token, m->head_dim};
    call.out = s->attended;
    call.page_table = s->batch->page_table;
    return call;
}

static void turn_row(const Step *s, const DecoderLayer *layer, int row)
{
    const Model *m = s->model;
    int dim = m->head_dim, heads = (int)num_heads_all(m);
    const float *angles = s->batch->angles + (size_t)row * 2 * dim;
    for (int h = 0; h < heads; h++) {
        size_t at = ((size_t)row * heads + h) * dim;
        int is_q = h < m->num_heads, is_v = h >= m->num_heads + m->num_kv_heads;
        m->path->turn(s->qkv + at, is_v ? NULL : is_q ? layer->q_norm : layer->k_norm,
                      is_v ? NULL : angles, dim, m->eps, s->heads + at * element_bytes(m->bf16));
    }
}

typedef struct {
    Step *step;
    int layer;
} Turning;

/* Unit 0 cuts up the attention that comes next; the others turn rows. */
static void turn_unit(const void *work, int unit)
{
    const Turning *t = work;
    Step *s = t->step;
    const Batch *b = s->batch;
    if (unit == 0) {
        Job *job = &s->attention[t->layer];
        job->call = attention_call(s, t->layer);
        job->pool = s->pool;
        if (prepare(job, b->spans, b->num_spans, bounded_threads(b->threads)))
            atomic_store(&s->failed, -1);
    } else
        for (int r = (unit - 1) * ROWS; r < end_of(unit - 1, ROWS, b->rows); r++) {
            raise_row(s->model->path, s->lora, r, (LoraPlace){t->layer, LORA_QKV},
                      s->qkv + r * num_heads_all(s->model) * s->model->head_dim);
            turn_row(s, &s->model->layers[t->layer], r);
        }
}

static void attend_layer(Step *s, int layer)
{
    Job *job = &s->attention[layer];
    run_stage(&s->stages[layer][TURN], 1 + num_blocks(s->batch->rows, ROWS), turn_unit,
              &(Turning){s, layer});
    if (atomic_load(&s->failed))
        return;
    attend_share(job);
    wait_until(&job->units_done, job->num_units);
}

static void layer_share(Step *s, int index)
{
    const Model *m = s->model;
    const DecoderLayer *layer = &m->layers[index];
    Stage *stages = s->stages[index];
    float *hidden = s->batch->hidden;
    int rows = s->batch->rows, q = m->num_heads * m->head_dim;
    int heads = (int)num_heads_all(m) * m->head_dim;
    const LoraRows *lora = s->lora;
    Normalising norm = {m->path, hidden, layer->input_norm, rows, m->hidden, m->eps, s->x,
                        m->hidden * element_bytes(m->bf16), lora, {index - 1, LORA_DOWN},
                        {index, LORA_QKV}};
    run_normalising(&stages[NORM], &norm);
    run_product(&stages[QKV], &(Product){layer->qkv, s->x, (char *)s->qkv, m->hidden, heads, rows, 0});
    attend_layer(s, index);
    if (atomic_load(&s->failed))
        return;
    Product output = {layer->output, s->attended, (char *)hidden, q, m->hidden, rows, 1};
    run_lowered(&stages[OUTPUT], &(LoweredProduct){&output, lora, {index, LORA_OUTPUT}});
    norm.norm = layer->mlp_norm;
    norm.before = (LoraPlace){index, LORA_OUTPUT};
    norm.after = (LoraPlace){index, LORA_GATE_UP};
    run_normalising(&stages[MLP_NORM], &norm);
    run_product(&stages[GATE_UP],
                &(Product){layer->gate_up, s->x, s->inner, m->hidden, m->inner, rows, 0, lora,
                           norm.after});
    Product down = {layer->down, s->inner, (char *)hidden, m->inner, m->hidden, rows, 1};
    run_lowered(&stages[DOWN], &(LoweredProduct){&down, lora, {index, LORA_DOWN}});
}

static void last_unit(const void *work, int unit)
{
    const Step *s = work;
    const Model *m = s->model;
    for (int r = unit * ROWS; r < end_of(unit, ROWS, s->batch->rows); r++)
        raise_row(m->path, s->lora, r, (LoraPlace){m->num_layers - 1, LORA_DOWN},
                  s->batch->hidden + (size_t)r * m->hidden);
}

static void step_share(void *work)
{
    Step *s = work;
    for (int layer = 0; layer < s->model->num_layers && !atomic_load(&s->failed); layer++)
        layer_share(s, layer);
    if (s->lora && !atomic_load(&s->failed))
        run_stage(&s->last, num_blocks(s->batch->rows, ROWS), last_unit, s);
}

/* Who has which adapter; called with and without memory for it, as lay_out() is. */
static void find_loras(Step *s, int has_memory)
{
    const Batch *b = s->batch;
    const Lora **of_row = (const Lora **)s->rows.of_row;
    for (int i = 0; i < b->num_loras; i++)
        if (b->loras[i]->ranks > s->rows.ranks)
            s->rows.ranks = b->loras[i]->ranks;
    s->lora = b->num_loras ? &s->rows : NULL;
    for (int r = 0; has_memory && s->lora && r < b->rows; r++)
        of_row[r] = b->owners[r] ? b->loras[b->owners[r] - 1] : NULL;
}

static void step_thread(void *work) { in_plain_arithmetic(step_share, work); }

int decode(Model *model, Pool *pool, const Batch *batch)
{
    Step step = {.model = model, .pool = pool, .batch = batch};
    find_loras(&step, 0);
    size_t bytes = lay_out(&step, NULL);
    if (reserve((void **)&model->memory, &model->memory_room, bytes, 1))
        return -1;
    lay_out(&step, model->memory);
    find_loras(&step, 1);
    memset(step.stages, 0, sizeof(Stage[STAGES]) * model->num_layers);
    memset(step.attention, 0, sizeof(Job) * model->num_layers);
    run_threads(step_thread, &step, bounded_threads(batch->threads));
    return step.failed;
}
