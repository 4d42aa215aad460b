/* One step of a Llama by one team of threads, which meet at barriers; and single products.
 *
 * Rows of activations are float32 between layers, and operands of the products (bfloat16 where the
 * path multiplies those) within. Threads take panels of a product as they come, so which one
 * computes what has no part in the result.
 */
#include <fenv.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "decoder.h"

static size_t element_bytes(int bf16) { return bf16 ? 2 : 4; }

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

static float *packed_floats(const Weights *w, int width, const float *from)
{
    float *packed = from ? calloc((size_t)w->panels * width, sizeof(float)) : NULL;
    for (int i = 0; packed && i < w->panels * width; i++) {
        int row = source_row(w, width, i / width, i % width);
        packed[i] = row < 0 ? 0 : from[row];
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
static Weights shape_of(const Path *path, int bf16, int rows, int width, int int8, int gated)
{
    int per_panel = gated ? path->panel / 2 : path->panel, columns = gated ? rows / 2 : rows;
    return (Weights){
        .path = path,
        .columns = columns,
        .steps = width / (bf16 ? 2 : 1),
        .panels = (columns + per_panel - 1) / per_panel,
        .bf16 = bf16,
        .int8 = int8,
        .gated = gated,
    };
}

/* Of one step of a panel. */
static size_t step_bytes(const Weights *w)
{
    return w->path->panel * (w->int8 ? w->bf16 ? 2 : 1 : 4);
}

size_t packed_bytes(const Path *path, int bf16, int rows, int width, int int8, int gated)
{
    Weights w = shape_of(path, bf16, rows, width, int8, gated);
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

Weights *pack_weights(const Path *path, int bf16, const char *matrix, int rows, int width, int int8,
                      int gated, const float *scales, const float *bias, char *words)
{
    Weights *w = malloc(sizeof *w);
    if (!w)
        return NULL;
    *w = shape_of(path, bf16, rows, width, int8, gated);
    w->words = words;
    w->scales = packed_floats(w, path->panel, scales);
    w->bias = packed_floats(w, path->panel, bias);
    if ((scales && !w->scales) || (bias && !w->bias)) {
        free_weights(w);
        return NULL;
    }
    pack_words(w, matrix);
    return w;
}

/* ---- a team ------------------------------------------------------------------------------- */

typedef struct {
    atomic_int next_id, arrived, generation;
} Team;

typedef struct {
    Team *team;
    int id, size;
} Member;

static Member join(Team *team)
{
    return (Member){team, atomic_fetch_add(&team->next_id, 1), num_threads_here()};
}

/* Nobody goes on before all have come. */
static void meet(const Member *me)
{
    Team *team = me->team;
    int generation = atomic_load(&team->generation);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == me->size) {
        atomic_store(&team->arrived, 0);
        atomic_fetch_add(&team->generation, 1);
        return;
    }
    for (int spins = 0; atomic_load(&team->generation) == generation; spins++)
        if (spins > 2000)
            sched_yield();
}

/* Where the rows of member `id` begin. */
static int share(const Member *me, int rows, int id) { return (int)((int64_t)rows * id / me->size); }

/* Blocks of rows of panels, in the order of tickets. */
static void take_panels(const Path *path, const Product *p, atomic_int *ticket)
{
    int blocks = (p->rows + ROW_BLOCK - 1) / ROW_BLOCK, unit;
    while ((unit = atomic_fetch_add(ticket, 1)) < blocks * p->weights->panels) {
        int first = unit % blocks * ROW_BLOCK;
        int end = first + ROW_BLOCK < p->rows ? first + ROW_BLOCK : p->rows;
        path->product(p, unit / blocks, first, end);
    }
}

static void normalise_rows(const Path *path, const Member *me, const float *x, int rows, int width,
                           const float *norm, float eps, char *out, size_t row_bytes)
{
    for (int r = share(me, rows, me->id); r < share(me, rows, me->id + 1); r++)
        path->normalise(x + (size_t)r * width, norm, width, eps, out + r * row_bytes);
}

/* ---- one product --------------------------------------------------------------------------- */

typedef struct {
    const Path *path;
    Product product;
    const float *x, *norm;
    float eps;
    int width;
    size_t row_bytes;
    Team team;
    atomic_int ticket;
} SingleProduct;

static void multiply_share(void *argument)
{
    SingleProduct *s = argument;
    fenv_t environment;
    fegetenv(&environment);
    fesetenv(FE_DFL_ENV);
    if (s->norm) {
        Member me = join(&s->team);
        normalise_rows(s->path, &me, s->x, s->product.rows, s->width, s->norm, s->eps,
                       (char *)s->product.x, s->row_bytes);
        meet(&me);
    }
    take_panels(s->path, &s->product, &s->ticket);
    fesetenv(&environment);
}

int multiply(const Product *product, const float *norm, float eps, int threads)
{
    const Weights *w = product->weights;
    SingleProduct s = {.path = w->path, .product = *product, .norm = norm, .eps = eps};
    void *operands = NULL;
    if (norm) {
        s.width = (int)product->x_stride;
        s.row_bytes = (size_t)s.width * element_bytes(w->bf16);
        if (posix_memalign(&operands, 64, s.row_bytes * product->rows))
            return -1;
        s.x = (const float *)product->x;
        s.product.x = operands;
    }
    run_threads(multiply_share, &s, bounded_threads(threads));
    free(operands);
    return 0;
}

/* ---- one step ------------------------------------------------------------------------------ */

enum { PRODUCTS = 4 };                  /* of a layer */

typedef struct {
    Model *model;
    Pool *pool;
    const Batch *batch;
    Job attention;
    int failed, threads;
    char *x, *heads, *attended, *inner; /* operands; queries, keys and values; operands twice */
    float *qkv;
    atomic_int *tickets;                /* one a product */
    Team team;
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
    PUT(tickets, atomic_int *, sizeof(atomic_int) * PRODUCTS * m->num_layers);
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

static void attend_layer(Step *s, const Member *me, int layer)
{
    int rows = s->batch->rows;
    for (int r = share(me, rows, me->id); r < share(me, rows, me->id + 1); r++)
        turn_row(s, &s->model->layers[layer], r);
    if (me->id == 0) {
        memset(&s->attention, 0, sizeof s->attention);
        s->attention.call = attention_call(s, layer);
        s->attention.pool = s->pool;
        s->failed = prepare(&s->attention, s->batch->spans, s->batch->num_spans, me->size);
    }
    meet(me);
    if (!s->failed)
        attend_share(&s->attention);
    meet(me);
}

static void product_share(Step *s, const Member *me, int ticket, const Weights *weights,
                          const char *x, int x_stride, void *out, int out_stride, int add)
{
    Product p = {weights, x, out, x_stride, out_stride, s->batch->rows, add};
    take_panels(s->model->path, &p, &s->tickets[ticket]);
    meet(me);
}

static void normalise_share(Step *s, const Member *me, const float *norm)
{
    const Model *m = s->model;
    normalise_rows(m->path, me, s->batch->hidden, s->batch->rows, m->hidden, norm, m->eps, s->x,
                   m->hidden * element_bytes(m->bf16));
    meet(me);
}

static void layer_share(Step *s, const Member *me, int index)
{
    const Model *m = s->model;
    const DecoderLayer *layer = &m->layers[index];
    int ticket = index * PRODUCTS, dim = m->head_dim;
    normalise_share(s, me, layer->input_norm);
    product_share(s, me, ticket, layer->qkv, s->x, m->hidden, s->qkv, (int)num_heads_all(m) * dim, 0);
    attend_layer(s, me, index);
    product_share(s, me, ticket + 1, layer->output, s->attended, m->num_heads * dim,
                  s->batch->hidden, m->hidden, 1);
    normalise_share(s, me, layer->mlp_norm);
    product_share(s, me, ticket + 2, layer->gate_up, s->x, m->hidden, s->inner, m->inner, 0);
    product_share(s, me, ticket + 3, layer->down, s->inner, m->inner, s->batch->hidden, m->hidden, 1);
}

static void step_share(void *argument)
{
    Step *s = argument;
    Member me = join(&s->team);
    fenv_t environment; /* a thread may round, or flush denormals, in its own way: not here */
    fegetenv(&environment);
    fesetenv(FE_DFL_ENV);
    for (int layer = 0; layer < s->model->num_layers && !s->failed; layer++)
        layer_share(s, &me, layer);
    fesetenv(&environment);
}

int decode(Model *model, Pool *pool, const Batch *batch)
{
    Step step = {.model = model, .pool = pool, .batch = batch};
    size_t bytes = lay_out(&step, NULL);
    if (reserve((void **)&model->memory, &model->memory_room, bytes, 1))
        return -1;
    lay_out(&step, model->memory);
    memset(step.tickets, 0, sizeof(atomic_int) * PRODUCTS * model->num_layers);
    run_threads(step_share, &step, bounded_threads(batch->threads));
    return step.failed;
}
