/* The driver's face: the pages of one PagedKV, and one call over them. */
#ifndef LLMASOS_DRIVER_H
#define LLMASOS_DRIVER_H

#include <stdatomic.h>

#include "attention.h"

typedef struct {
    int num_heads, head_dim;
    size_t offset;                      /* of the layer in a page, bytes */
} Layer;

typedef struct {
    Block block;
    int first_chunk, end_chunk;
    ptrdiff_t partials;                 /* into Pool.partials, floats; -1: not split */
    atomic_int unfinished;              /* units, where split */
} Group;

/* What a thread takes at a time: some chunks of a group. */
typedef struct {
    int group, first_chunk, end_chunk;
} Unit;

typedef struct {
    const Span *span;
    int first, end;
} Store;

/* The pages of one PagedKV. Memory that calls need is kept from one to the next. */
typedef struct {
    char *pages;
    size_t bytes_per_page;
    int page_size, bf16, num_layers;
    const Path *path;
    Layer *layers;
    Group *groups;
    Unit *units;
    Store *stores;
    float *partials;
    char *scratch;
    size_t groups_room, units_room, stores_room, partials_room, scratch_room;
} Pool;

/* Attends by at most `threads` threads. The call is filled in and sound; calls on one pool must not
 * overlap. -1 when memory is short: nothing was done. */
int attend(Pool *pool, const Call *call, const Span *spans, int num_spans, int threads);

void free_pool(Pool *pool);

/* Looks for the threads to share; torch must be loaded. Without it one thread computes. */
void find_threads(void);

#endif
