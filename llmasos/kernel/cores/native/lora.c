/* Python's side of adapters: what `decode` is given of each. */
#define PY_SSIZE_T_CLEAN
#include "lora_module.h"

#include <stdlib.h>

static void free_lora(PyObject *capsule)
{
    Lora *lora = PyCapsule_GetPointer(capsule, "lora");
    free(lora->layers);
    free(lora);
}

/* (rank, column, columns, up, stride, scale): `up` is an address. */
static int read_part(LoraPart *part, PyObject *values)
{
    Py_ssize_t up;
    if (!PyArg_ParseTuple(values, "iiinnf", &part->rank, &part->column, &part->columns, &up,
                          &part->stride, &part->scale))
        return -1;
    part->up = (const char *)up;
    return 0;
}

/* (width, down, stride, parts). */
static int read_product(LoraProduct *product, PyObject *values)
{
    Py_ssize_t down;
    PyObject *parts;
    if (!PyArg_ParseTuple(values, "innO!", &product->width, &down, &product->stride, &PyTuple_Type,
                          &parts))
        return -1;
    product->down = (const char *)down;
    if (PyTuple_GET_SIZE(parts) > LORA_PARTS) {
        PyErr_SetString(PyExc_ValueError, "a product has too many parts");
        return -1;
    }
    for (int i = 0; i < PyTuple_GET_SIZE(parts); i++) {
        if (read_part(&product->parts[i], PyTuple_GET_ITEM(parts, i)))
            return -1;
        product->ranks += product->parts[i].rank;
    }
    return 0;
}

static int read_products(Lora *lora, PyObject *layers)
{
    for (int i = 0; i < lora->num_layers; i++) {
        PyObject *products = PyTuple_GET_ITEM(layers, i);
        if (!PyTuple_Check(products) || PyTuple_GET_SIZE(products) != LORA_PRODUCTS) {
            PyErr_SetString(PyExc_ValueError, "a layer has another number of products");
            return -1;
        }
        for (int p = 0; p < LORA_PRODUCTS; p++) {
            if (read_product(&lora->layers[i][p], PyTuple_GET_ITEM(products, p)))
                return -1;
            if (lora->layers[i][p].ranks > lora->ranks)
                lora->ranks = lora->layers[i][p].ranks;
        }
    }
    return 0;
}

PyObject *py_lora(PyObject *self, PyObject *args)
{
    PyObject *layers;
    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &layers))
        return NULL;
    Lora *lora = calloc(1, sizeof(Lora));
    if (!lora)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(lora, "lora", free_lora);
    if (!capsule) {
        free(lora);
        return NULL;
    }
    lora->num_layers = (int)PyTuple_GET_SIZE(layers);
    lora->layers = calloc((size_t)lora->num_layers + 1, sizeof *lora->layers);
    if (!lora->layers)
        PyErr_NoMemory();
    if (!lora->layers || read_products(lora, layers)) {
        Py_DECREF(capsule);
        return NULL;
    }
    return capsule;
}

int read_loras(PyObject *capsules, const Lora **loras, int most)
{
    Py_ssize_t count = PyTuple_GET_SIZE(capsules);
    if (count > most) {
        PyErr_SetString(PyExc_ValueError, "a step has too many adapters");
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (!(loras[i] = PyCapsule_GetPointer(PyTuple_GET_ITEM(capsules, i), "lora")))
            return -1;
    return (int)count;
}
