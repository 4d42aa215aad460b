/* Low-rank additions (LoRA) to a decoder's products, for those rows of a step that want them.
 *
 * A row x of a product has scale * up . (down . x) added to its outcome. The first half, `lower`, is a few
 * numbers a row; they are computed where x is at hand, and what `raise` makes of them is added where the
 * outcome is next touched, so no stage of a step is there for it alone. A row is computed by itself, in one
 * order: its bits do not depend on who else is in the step, and rows without an adapter are not touched.
 */
#ifndef LLMASOS_LORA_H
#define LLMASOS_LORA_H

#include <stddef.h>
#include <stdint.h>

enum { LORA_QKV, LORA_OUTPUT, LORA_GATE_UP, LORA_DOWN, LORA_PRODUCTS };
enum { LORA_PARTS = 3 };                /* of a product that is several matrices side by side */
enum { LORA_PAD = 32 };                 /* rows of `down` and `up` are padded to so many elements */

/* What is added to some of a product's columns. */
typedef struct {
    int rank;                           /* 0: nothing */
    int column;                         /* the first of them */
    int columns;
    const char *up;                     /* elements [rank][stride] */
    ptrdiff_t stride;
    float scale;
} LoraPart;

typedef struct {
    int ranks, width;                   /* of all parts together; of x */
    const char *down;                   /* elements [ranks][stride], part after part */
    ptrdiff_t stride;
    LoraPart parts[LORA_PARTS];
} LoraProduct;

/* An adapter, laid out for one path. */
typedef struct {
    int num_layers, ranks;              /* the most of any product */
    LoraProduct (*layers)[LORA_PRODUCTS];
} Lora;

/* Whose each row of a step is, and what `lower` made of the rows for the product under way. */
typedef struct {
    const Lora *const *of_row;          /* NULL where a row is the bare model's */
    float *lowered;                     /* [rows][ranks] */
    int ranks;
} LoraRows;

/* One product of one layer. */
typedef struct {
    int layer, product;                 /* layer -1: none */
} LoraPlace;

static inline const LoraProduct *lora_of(const LoraRows *rows, int row, LoraPlace place)
{
    if (!rows || place.layer < 0 || !rows->of_row[row])
        return NULL;
    const LoraProduct *found = &rows->of_row[row]->layers[place.layer][place.product];
    return found->ranks ? found : NULL;
}

static inline float *lowered_of(const LoraRows *rows, int row)
{
    return rows->lowered + (ptrdiff_t)row * rows->ranks;
}

#endif
