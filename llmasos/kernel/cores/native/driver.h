/* The driver's face: the pages of one PagedKV, one call over them, and the threads that share it. */
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

/* One call, cut up. */
typedef struct {
    Call call;
    Pool *pool;
    int num_groups, num_units, num_stores;
    int rows;                           /* of the largest block */
    int64_t work;                       /* row tiles * keys * head_dim, about */
    size_t num_partials, scratch_bytes;
    atomic_int next_worker, next_store, stores_done, next_unit, units_done;
} Job;

/* Attends by at most `threads` threads. The call is filled in and sound; calls on one pool must not
 * overlap. -1 when memory is short: nothing was done. */
int attend(Pool *pool, const Call *call, const Span *spans, int num_spans, int threads);

/* A call on a layer of a pool, without its rows, window and page table. */
Call call_of(const Pool *pool, int layer, int group);

void free_pool(Pool *pool);

/* For those who have a team of threads: one of them fills in the job (`call` and `pool` are set, the
 * rest is zero; -1 when memory is short), then all of at most `threads` do their share. It is done
 * when all of its units are. */
int prepare(Job *job, const Span *spans, int num_spans, int threads);
void attend_share(Job *job);

/* Waits for others, who are at work: so the wait is short, and cannot deadlock. */
void wait_until(atomic_int *counter, int value);

/* Makes room for `count` items of `size`; what was there is kept. -1 when memory is short. */
int reserve(void **array, size_t *room, size_t count, size_t size);

/* Runs the function on so many threads, or fewer. */
void run_threads(void (*function)(void *), void *argument, int threads);
int bounded_threads(int threads);

/* Looks for the threads to share; torch must be loaded. Without it one thread computes. */
void find_threads(void);

#endif
