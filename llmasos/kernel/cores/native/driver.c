/* Cuts a call into units and shares them over threads.
 *
 * Threads are those of the OpenMP runtime that torch has loaded, found by name: a second pool of
 * threads would spin against torch's own between two layers. Where there is none, one thread
 * computes. Which thread computes what has no part in the result.
 */
#include <dlfcn.h>
#include <fenv.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

enum { BLOCK_ROWS = 48 };               /* rows that share each K/V read, about */
enum { STORE_TOKENS = 16 };             /* tokens of a span that one ticket stores */
enum { UNITS_PER_THREAD = 4 };          /* how finely long sequences are split */
enum { MAX_THREADS = 256 };
enum { SMALL_WORK = 1 << 15 };          /* tiles * keys * head_dim that wake no second thread */

int reserve(void **array, size_t *room, size_t count, size_t size)
{
    if (count <= *room)
        return 0;
    size_t wanted = (count + count / 2) * size;
    void *grown = NULL;
    if (posix_memalign(&grown, 64, wanted))
        return -1;
    if (*array)
        memcpy(grown, *array, *room * size);
    free(*array);
    *array = grown;
    *room = count + count / 2;
    return 0;
}

/* ---- the work of one thread ---------------------------------------------------------------- */

static size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

static Partial partial_at(float *memory, int rows, int words)
{
    return (Partial){memory, memory + rows, memory + 2 * (size_t)rows};
}

static size_t partial_floats(int rows, int words) { return round_up((size_t)rows * (words + 2)); }

static Scratch carve(const Job *job, char *memory)
{
    size_t rows = (size_t)job->rows, words = (size_t)job->call.value_words;
    Scratch scratch;
    scratch.queries = memory;
    memory += round_up(rows * job->call.key_steps * 8);
    scratch.scores = (float *)memory;
    memory += rows * CHUNK * 4;
    scratch.weights = memory;
    memory += rows * CHUNK * 4;
    scratch.state = partial_at((float *)memory, (int)rows, (int)words);
    memory += partial_floats((int)rows, (int)words) * 4;
    scratch.chunk = partial_at((float *)memory, (int)rows, (int)words);
    return scratch;
}

static size_t scratch_bytes(const Job *job)
{
    size_t rows = (size_t)job->rows;
    return round_up(rows * job->call.key_steps * 8) + 2 * rows * CHUNK * 4 +
           2 * partial_floats((int)rows, job->call.value_words) * 4 + 4096;
}

static int group_rows(const Job *job, const Group *group)
{
    return group->block.num_queries * job->call.group;
}

static Partial split_partial(Job *job, Group *group, int chunk)
{
    int rows = group_rows(job, group), words = job->call.value_words;
    size_t at = group->partials + (chunk - group->first_chunk) * partial_floats(rows, words);
    return partial_at(job->pool->partials + at, rows, words);
}

static void clear(Partial *state, int rows)
{
    for (int r = 0; r < rows; r++) {
        state->maximum[r] = -INFINITY;
        state->sum[r] = 0;
    }
}

static void merge_split(Job *job, Group *group, Partial *state)
{
    for (int chunk = group->first_chunk; chunk < group->end_chunk; chunk++) {
        Partial partial = split_partial(job, group, chunk);
        job->pool->path->merge(&job->call, group_rows(job, group), state, &partial);
    }
}

static void run_unit(Job *job, const Unit *unit, Scratch *scratch)
{
    const Path *path = job->pool->path;
    Group *group = &job->pool->groups[unit->group];
    int rows = group_rows(job, group);
    path->load_queries(&job->call, &group->block, scratch);
    clear(&scratch->state, rows);
    for (int chunk = unit->first_chunk; chunk < unit->end_chunk; chunk++) {
        int split = group->partials >= 0;
        Partial partial = split ? split_partial(job, group, chunk) : scratch->chunk;
        path->attend_chunk(&job->call, &group->block, chunk, scratch, &partial);
        if (!split)
            path->merge(&job->call, rows, &scratch->state, &partial);
    }
    if (group->partials >= 0) {
        if (atomic_fetch_sub(&group->unfinished, 1) > 1)
            return;
        merge_split(job, group, &scratch->state); /* the last one finds every partial written */
    }
    path->finish(&job->call, &group->block, &scratch->state);
}

void wait_until(atomic_int *counter, int value)
{
    for (int spins = 0; atomic_load(counter) < value; spins++)
        if (spins > 1000)
            sched_yield();
}

/* Every key and value is in place before anyone attends. */
static void store_all(Job *job)
{
    int ticket, heads = job->call.num_kv_heads;
    while ((ticket = atomic_fetch_add(&job->next_store, 1)) < job->num_stores) {
        const Store *store = &job->pool->stores[ticket];
        for (int head = 0; head < heads; head++)
            job->pool->path->store(&job->call, store->span, head, store->first, store->end);
        atomic_fetch_add(&job->stores_done, 1);
    }
    wait_until(&job->stores_done, job->num_stores);
}

void attend_share(Job *job)
{
    int unit, worker = atomic_fetch_add(&job->next_worker, 1);
    Scratch scratch = carve(job, job->pool->scratch + worker * job->scratch_bytes);
    store_all(job);
    while ((unit = atomic_fetch_add(&job->next_unit, 1)) < job->num_units) {
        run_unit(job, &job->pool->units[unit], &scratch);
        atomic_fetch_add(&job->units_done, 1);
    }
}

static void work(void *job)
{
    fenv_t environment; /* a thread may round, or flush denormals, in its own way: not here */
    fegetenv(&environment);
    fesetenv(FE_DFL_ENV);
    attend_share(job);
    fesetenv(&environment);
}

/* ---- cutting a call into units ------------------------------------------------------------- */

static int add_stores(Job *job, const Span *span)
{
    Pool *pool = job->pool;
    for (int first = 0; first < span->num_tokens; first += STORE_TOKENS) {
        int end = first + STORE_TOKENS < span->num_tokens ? first + STORE_TOKENS : span->num_tokens;
        if (reserve((void **)&pool->stores, &pool->stores_room, job->num_stores + 1, sizeof(Store)))
            return -1;
        pool->stores[job->num_stores++] = (Store){span, first, end};
    }
    return 0;
}

static int add_groups(Job *job, const Span *span)
{
    Pool *pool = job->pool;
    const Call *call = &job->call;
    int step = BLOCK_ROWS / call->group > 0 ? BLOCK_ROWS / call->group : 1;
    for (int first = 0; first < span->num_tokens; first += step) {
        int count = first + step < span->num_tokens ? step : span->num_tokens - first;
        int from = call->window ? span->start + first - call->window + 1 : 0;
        int end = span->start + first + count, tiles = (count * call->group + 5) / 6;
        from = from > 0 ? from : 0;
        job->work += (int64_t)tiles * (end - from) * call->head_dim * call->num_kv_heads;
        for (int head = 0; head < call->num_kv_heads; head++) {
            if (reserve((void **)&pool->groups, &pool->groups_room, job->num_groups + 1,
                        sizeof(Group)))
                return -1;
            Group *group = &pool->groups[job->num_groups++];
            group->block = (Block){span, head, first, count};
            group->first_chunk = from / CHUNK;
            group->end_chunk = (end - 1) / CHUNK + 1;
            group->partials = -1;
        }
        if (count * call->group > job->rows)
            job->rows = count * call->group;
    }
    return 0;
}

/* Groups longer than a fair share are split by chunks; `share` 0 splits none. */
static int add_units(Job *job, int index, int share)
{
    Pool *pool = job->pool;
    Group *group = &pool->groups[index];
    int chunks = group->end_chunk - group->first_chunk;
    int pieces = share ? (chunks + share - 1) / share : 1;
    if (reserve((void **)&pool->units, &pool->units_room, job->num_units + pieces, sizeof(Unit)))
        return -1;
    if (pieces > 1) {
        group->partials = (ptrdiff_t)job->num_partials;
        job->num_partials +=
            chunks * partial_floats(group_rows(job, group), job->call.value_words);
    }
    atomic_init(&group->unfinished, pieces);
    for (int i = 0; i < pieces; i++)
        pool->units[job->num_units++] =
            (Unit){index, group->first_chunk + (int)((int64_t)chunks * i / pieces),
                   group->first_chunk + (int)((int64_t)chunks * (i + 1) / pieces)};
    return 0;
}

int prepare(Job *job, const Span *spans, int num_spans, int threads)
{
    Pool *pool = job->pool;
    int64_t chunks = 0;
    for (int i = 0; i < num_spans; i++)
        if (add_stores(job, &spans[i]) || add_groups(job, &spans[i]))
            return -1;
    for (int i = 0; i < job->num_groups; i++)
        chunks += pool->groups[i].end_chunk - pool->groups[i].first_chunk;
    int split = threads > 1 && job->work >= SMALL_WORK;
    int share = split ? (int)(chunks / (threads * UNITS_PER_THREAD)) + 1 : 0;
    for (int i = 0; i < job->num_groups; i++)
        if (add_units(job, i, share))
            return -1;
    job->scratch_bytes = scratch_bytes(job);
    return reserve((void **)&pool->partials, &pool->partials_room, job->num_partials, 4) ||
           reserve((void **)&pool->scratch, &pool->scratch_room, threads * job->scratch_bytes, 1);
}

/* ---- threads ------------------------------------------------------------------------------- */

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

static Parallel parallel; /* GOMP_parallel of torch's OpenMP; set once, at import */

void find_threads(void) { parallel = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel"); }

void run_threads(void (*function)(void *), void *argument, int threads)
{
    if (parallel && threads > 1)
        parallel(function, argument, (unsigned)threads, 0);
    else
        function(argument);
}

int bounded_threads(int threads)
{
    return threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
}

int attend(Pool *pool, const Call *call, const Span *spans, int num_spans, int threads)
{
    Job job = {.call = *call, .pool = pool};
    threads = parallel ? bounded_threads(threads) : 1;
    if (prepare(&job, spans, num_spans, threads))
        return -1;
    threads = threads < job.num_units ? threads : job.num_units;
    run_threads(work, &job, job.work < SMALL_WORK ? 1 : threads);
    return 0;
}

void free_pool(Pool *pool)
{
    free(pool->layers);
    free(pool->groups);
    free(pool->units);
    free(pool->stores);
    free(pool->partials);
    free(pool->scratch);
    free(pool);
}
