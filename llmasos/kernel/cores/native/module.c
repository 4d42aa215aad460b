/* Python's side of the kernel: which code paths run here, what a page looks like, and the call. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "decoder.h"
#include "lora_module.h"

static const Path *const all_paths[] = {path_avx512_bf16, path_avx512, path_avx2, path_neon,
                                        path_generic};

/* Whether this processor, and its operating system, run the path. */
static int runs_here(const Path *path)
{
    if (!path->name)
        return 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(path->name, "avx512_bf16"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi");
    if (!strcmp(path->name, "avx512"))
        return __builtin_cpu_supports("avx512f");
    if (!strcmp(path->name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return 1;
}

static const Path *find_path(const char *name, int bf16)
{
    for (size_t i = 0; i < sizeof all_paths / sizeof *all_paths; i++)
        if (runs_here(&all_paths[i][bf16]) && !strcmp(all_paths[i][bf16].name, name))
            return &all_paths[i][bf16];
    return NULL;
}

static size_t key_steps(int head_dim, int bf16) { return bf16 ? (head_dim + 1) / 2 : head_dim; }

static size_t value_words(int head_dim) { return (head_dim + 15) / 16 * 16; }

static size_t key_bytes(int page_size, int head_dim, int bf16)
{
    return page_size * key_steps(head_dim, bf16) * 4;
}

static size_t head_bytes(int page_size, int head_dim, int bf16)
{
    size_t value_steps = bf16 ? page_size / 2 : page_size;
    return key_bytes(page_size, head_dim, bf16) + value_steps * value_words(head_dim) * 4;
}

static PyObject *py_paths(PyObject *self, PyObject *args)
{
    int bf16;
    if (!PyArg_ParseTuple(args, "p", &bf16))
        return NULL;
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names && i < sizeof all_paths / sizeof *all_paths; i++) {
        const Path *path = &all_paths[i][bf16];
        PyObject *name = runs_here(path) ? PyUnicode_FromString(path->name) : NULL;
        if (name && PyList_Append(names, name))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *py_head_bytes(PyObject *self, PyObject *args)
{
    int page_size, head_dim, bf16;
    if (!PyArg_ParseTuple(args, "iip", &page_size, &head_dim, &bf16))
        return NULL;
    return PyLong_FromSize_t(head_bytes(page_size, head_dim, bf16));
}

static void free_capsule(PyObject *capsule) { free_pool(PyCapsule_GetPointer(capsule, "pool")); }

/* Fills in the layers from [(num_kv_heads, head_dim), ...]. -1 with an exception set. */
static int read_layers(Pool *pool, PyObject *shapes)
{
    pool->num_layers = (int)PySequence_Fast_GET_SIZE(shapes);
    pool->layers = calloc((size_t)pool->num_layers + 1, sizeof(Layer));
    if (!pool->layers) {
        PyErr_NoMemory();
        return -1;
    }
    for (int i = 0; i < pool->num_layers; i++) {
        Layer *layer = &pool->layers[i];
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(shapes, i), "ii", &layer->num_heads,
                              &layer->head_dim))
            return -1;
        layer->offset = pool->bytes_per_page;
        pool->bytes_per_page +=
            layer->num_heads * head_bytes(pool->page_size, layer->head_dim, pool->bf16);
    }
    return 0;
}

/* create(pages, page_size, shapes, is_bf16, path) -> capsule. `pages` is an address. */
static PyObject *py_create(PyObject *self, PyObject *args)
{
    Py_ssize_t pages;
    PyObject *shapes;
    const char *name;
    Pool *pool = calloc(1, sizeof(Pool));
    if (!pool)
        return PyErr_NoMemory();
    if (!PyArg_ParseTuple(args, "niO!ps", &pages, &pool->page_size, &PyTuple_Type, &shapes,
                          &pool->bf16, &name) ||
        read_layers(pool, shapes)) {
        free_pool(pool);
        return NULL;
    }
    pool->pages = (char *)pages;
    pool->path = find_path(name, pool->bf16);
    if (!pool->path) {
        free_pool(pool);
        return PyErr_Format(PyExc_ValueError, "no attention path %s runs here", name);
    }
    return PyCapsule_New(pool, "pool", free_capsule);
}

static Rows rows_of(const Py_ssize_t *argument)
{
    return (Rows){(const char *)argument[0], argument[1], argument[2]};
}

Call call_of(const Pool *pool, int index, int group)
{
    const Layer *layer = &pool->layers[index];
    int dim = layer->head_dim;
    return (Call){
        .layer = pool->pages + layer->offset,
        .bytes_per_page = pool->bytes_per_page,
        .page_size = pool->page_size,
        .head_dim = dim,
        .num_kv_heads = layer->num_heads,
        .group = group,
        .key_steps = (int)key_steps(dim, pool->bf16),
        .value_words = (int)value_words(dim),
        .key_bytes = key_bytes(pool->page_size, dim, pool->bf16),
        .head_bytes = head_bytes(pool->page_size, dim, pool->bf16),
    };
}

/* attend(pool, scale, softcap, layer, group, threads, window, q, token stride, head stride, the
 * same of k and v, out, spans, num_spans, page_table): addresses and numbers, checked by the
 * caller. Two calls on one pool must not overlap. */
static PyObject *py_attend(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    enum { INTEGERS = 17 };
    Py_ssize_t n[INTEGERS];
    if (count != INTEGERS + 3)
        return PyErr_Format(PyExc_TypeError, "attend takes %d arguments", INTEGERS + 3);
    Pool *pool = PyCapsule_GetPointer(args[0], "pool");
    double scale = PyFloat_AsDouble(args[1]), softcap = PyFloat_AsDouble(args[2]);
    for (int i = 0; i < INTEGERS; i++)
        n[i] = PyLong_AsSsize_t(args[i + 3]);
    if (PyErr_Occurred())
        return NULL;
    Call call = call_of(pool, (int)n[0], (int)n[1]);
    call.scale = (float)scale;
    call.softcap = (float)softcap;
    call.window = (int)n[3];
    call.q = rows_of(n + 4);
    call.k = rows_of(n + 7);
    call.v = rows_of(n + 10);
    call.out = (char *)n[13];
    call.page_table = (const int32_t *)n[16];
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = attend(pool, &call, (const Span *)n[14], (int)n[15], (int)n[2]);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* ---- models -------------------------------------------------------------------------------- */

static void free_packed(PyObject *capsule)
{
    free_weights(PyCapsule_GetPointer(capsule, "weights"));
}

/* The path of this name where it has products; NULL with an exception set otherwise. */
static const Path *find_products(const char *name, int bf16)
{
    const Path *path = find_path(name, bf16);
    if (path && path->panel)
        return path;
    PyErr_Format(PyExc_ValueError, "path %s does not multiply here", name);
    return NULL;
}

/* packed_bytes(path, is_bf16, rows, width, int8_group, is_gated). */
static PyObject *py_packed_bytes(PyObject *self, PyObject *args)
{
    const char *name;
    int bf16, rows, width, group, gated;
    if (!PyArg_ParseTuple(args, "spiiip", &name, &bf16, &rows, &width, &group, &gated))
        return NULL;
    const Path *path = find_products(name, bf16);
    return path ? PyLong_FromSize_t(packed_bytes(path, bf16, rows, width, group, gated)) : NULL;
}

/* pack(path, is_bf16, rows, width, int8_group, is_gated, matrix, scales, bias, words) -> capsule: the
 * last four are addresses, 0 for none. See pack_weights(). */
static PyObject *py_pack(PyObject *self, PyObject *args)
{
    const char *name;
    Py_ssize_t matrix, scales, bias, words;
    int bf16, rows, width, group, gated;
    if (!PyArg_ParseTuple(args, "spiiipnnnn", &name, &bf16, &rows, &width, &group, &gated, &matrix,
                          &scales, &bias, &words))
        return NULL;
    const Path *path = find_products(name, bf16);
    if (!path)
        return NULL;
    Weights *weights = pack_weights(path, bf16, (const char *)matrix, rows, width, group, gated,
                                    (const float *)scales, (const float *)bias, (char *)words);
    return weights ? PyCapsule_New(weights, "weights", free_packed) : PyErr_NoMemory();
}

static void free_model(PyObject *capsule)
{
    Model *model = PyCapsule_GetPointer(capsule, "model");
    free(model->layers);
    free(model->memory);
    free(model);
}

static int read_layer(DecoderLayer *layer, PyObject *parts)
{
    PyObject *capsules[4];
    Py_ssize_t norms[4];
    if (!PyArg_ParseTuple(parts, "nOnnOnOOi", &norms[0], &capsules[0], &norms[1], &norms[2],
                          &capsules[1], &norms[3], &capsules[2], &capsules[3], &layer->window))
        return -1;
    layer->input_norm = (const float *)norms[0];
    layer->q_norm = (const float *)norms[1];
    layer->k_norm = (const float *)norms[2];
    layer->mlp_norm = (const float *)norms[3];
    layer->qkv = PyCapsule_GetPointer(capsules[0], "weights");
    layer->output = PyCapsule_GetPointer(capsules[1], "weights");
    layer->gate_up = PyCapsule_GetPointer(capsules[2], "weights");
    layer->down = PyCapsule_GetPointer(capsules[3], "weights");
    return PyErr_Occurred() ? -1 : 0;
}

/* model(hidden, num_heads, num_kv_heads, head_dim, inner, eps, scale, layers) -> capsule. A layer is
 * (input norm, qkv, q norm, k norm, output, mlp norm, gate and up, down, window): norms are
 * addresses, products capsules. The caller keeps them alive. */
static PyObject *py_model(PyObject *self, PyObject *args)
{
    PyObject *layers;
    Model *model = calloc(1, sizeof(Model));
    if (!model)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(model, "model", free_model);
    if (!capsule || !PyArg_ParseTuple(args, "iiiiiffO!", &model->hidden, &model->num_heads,
                                      &model->num_kv_heads, &model->head_dim, &model->inner,
                                      &model->eps, &model->scale, &PyTuple_Type, &layers))
        goto failed;
    model->num_layers = (int)PyTuple_GET_SIZE(layers);
    model->layers = calloc((size_t)model->num_layers + 1, sizeof(DecoderLayer));
    if (!model->layers) {
        PyErr_NoMemory();
        goto failed;
    }
    for (int i = 0; i < model->num_layers; i++)
        if (read_layer(&model->layers[i], PyTuple_GET_ITEM(layers, i)))
            goto failed;
    model->path = model->layers[0].qkv->path;
    model->bf16 = model->layers[0].qkv->bf16;
    return capsule;
failed:
    Py_XDECREF(capsule);
    return NULL;
}

/* decode(model, pool, hidden, angles, rows, spans, num_spans, page_table, threads, loras, owners): the
 * adapters are a tuple of capsules, and the owners an address, of no account where that is empty. */
static PyObject *py_decode(PyObject *self, PyObject *args)
{
    PyObject *of_model, *of_pool, *capsules;
    Py_ssize_t hidden, angles, spans, page_table, owners;
    const Lora *loras[MAX_LORAS];
    Batch batch = {0};
    if (!PyArg_ParseTuple(args, "OOnnininiO!n", &of_model, &of_pool, &hidden, &angles, &batch.rows,
                          &spans, &batch.num_spans, &page_table, &batch.threads, &PyTuple_Type,
                          &capsules, &owners))
        return NULL;
    Model *model = PyCapsule_GetPointer(of_model, "model");
    Pool *pool = PyCapsule_GetPointer(of_pool, "pool");
    batch.num_loras = read_loras(capsules, loras, MAX_LORAS);
    if (PyErr_Occurred())
        return NULL;
    batch.loras = loras;
    batch.owners = (const int32_t *)owners;
    batch.hidden = (float *)hidden;
    batch.angles = (const float *)angles;
    batch.spans = (const Span *)spans;
    batch.page_table = (const int32_t *)page_table;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = decode(model, pool, &batch);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* multiply(weights, x, x_stride, out, out_stride, rows, adds, norm, eps, threads). */
static PyObject *py_multiply(PyObject *self, PyObject *args)
{
    PyObject *of_weights;
    Py_ssize_t x, x_stride, out, out_stride, norm;
    int rows, add, threads;
    float eps;
    if (!PyArg_ParseTuple(args, "Onnnnipnfi", &of_weights, &x, &x_stride, &out, &out_stride, &rows,
                          &add, &norm, &eps, &threads))
        return NULL;
    const Weights *weights = PyCapsule_GetPointer(of_weights, "weights");
    if (!weights)
        return NULL;
    Product product = {weights, (const char *)x, (char *)out, x_stride, out_stride, rows, add};
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = multiply(&product, (const float *)norm, eps, threads);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_multiplies(PyObject *self, PyObject *args)
{
    const char *name;
    int bf16;
    if (!PyArg_ParseTuple(args, "sp", &name, &bf16))
        return NULL;
    const Path *path = find_path(name, bf16);
    return PyBool_FromLong(path && path->panel);
}

static PyMethodDef methods[] = {
    {"paths", py_paths, METH_VARARGS, "paths(is_bf16): code paths that run here, best first."},
    {"head_bytes", py_head_bytes, METH_VARARGS, "head_bytes(page_size, head_dim, is_bf16)."},
    {"create", py_create, METH_VARARGS, "create(pages, page_size, shapes, is_bf16, path)."},
    {"attend", (PyCFunction)(void (*)(void))py_attend, METH_FASTCALL, "One layer of one step."},
    {"multiplies", py_multiplies, METH_VARARGS, "multiplies(path, is_bf16): has it products."},
    {"packed_bytes", py_packed_bytes, METH_VARARGS, "What pack needs."},
    {"pack", py_pack, METH_VARARGS, "A weight matrix, packed."},
    {"model", py_model, METH_VARARGS, "A model of packed weights."},
    {"lora", py_lora, METH_VARARGS, "An adapter of a model."},
    {"decode", py_decode, METH_VARARGS, "All layers of one step."},
    {"multiply", py_multiply, METH_VARARGS, "One product."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_paged_attention",
                                        "Attention over paged K/V, and a decoder over it.", -1, methods};

PyMODINIT_FUNC PyInit__paged_attention(void)
{
    find_threads();
    return PyModule_Create(&definition);
}
