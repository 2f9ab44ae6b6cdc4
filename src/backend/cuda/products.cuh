// What both families of products share: several products in one launch.
#pragma once
#include "device.cuh"

#include "kernels.h"

// Products of a launch lie one after the other in its blocks.
struct launch_list {
    product_list list;
    int first_block[MAX_PRODUCTS];
    int stretch[MAX_PRODUCTS]; // of k, what a warp takes
};

__device__ static inline int product_of_block(const launch_list &a) {
    int which = 0;
#pragma unroll
    for (int i = 1; i < MAX_PRODUCTS; i++) which += (int)blockIdx.x >= a.first_block[i];
    return which;
}

static inline size_t outputs_of(const product_list &list) {
    size_t outputs = 0;
    for (int i = 0; i < list.n; i++) outputs += list.p[i].O;
    return outputs;
}

// The number of blocks, each of `width` outputs of one product.
static inline int lay_out_blocks(launch_list *a, const product_list *list, int width) {
    int grid = 0;
    a->list = *list;
    for (int i = 0; i < MAX_PRODUCTS; i++) {
        a->first_block[i] = i < list->n ? grid : INT32_MAX;
        if (i < list->n) grid += (int)blocks(list->p[i].O, (size_t)width);
    }
    return grid;
}

// tensor.cu, integers.cu: products of one kind on tensor cores, packed as is_packed wants them.
void start_tensor(struct queue *s, const product_list &list);
void start_integers(struct queue *s, const product_list &list);
// integers_many.cu: inputs become integers in p.scratch, which the other takes from there, and
// integers.cu if it is there.
void start_making_integers(struct queue *s, const product_args &p);
void start_many_integers(struct queue *s, const product_args &p);
