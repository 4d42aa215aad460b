/* What module.c has of lora.c. */
#ifndef LLMASOS_LORA_MODULE_H
#define LLMASOS_LORA_MODULE_H

#include <Python.h>

#include "lora.h"

enum { MAX_LORAS = 256 };               /* adapters in one step */

/* lora(layers) -> capsule. A layer is its four products (qkv, output, gate and up, down), each (width, down,
 * stride, parts); a part is (rank, column, columns, up, stride, scale). `down` and `up` are addresses that
 * the caller keeps alive. */
PyObject *py_lora(PyObject *self, PyObject *args);

/* The adapters in a tuple of capsules; how many, or -1 with an exception set. */
int read_loras(PyObject *capsules, const Lora **loras, int most);

#endif
