// Ops over rows and over elements. All are bound by memory: each tensor goes through once, and what
// is summed over rows goes through again by columns, in chunks of a fixed number of rows whose
// sums are added in order.
#include "vector.cuh"

#include "kernels.h"

enum { ROW_THREADS = 256, COLUMNS = 128 };

size_t k_parts(size_t R) {
    return (R + part_rows(R) - 1) / part_rows(R);
}

// The sums of all parts, in order, to where they belong. Eight threads share a column's parts, a
// stretch each.
enum { PART_COLUMNS = 32, STRETCHES = 8 };

__host__ __device__ static inline size_t width_of(const part_sums &p) {
    size_t width = 0;
    for (int i = 0; i < SUM_OUTS; i++) width += p.n[i];
    return width;
}

static __global__ void add_parts(part_list list) {
    begin_kernel();
    __shared__ float sums[STRETCHES][PART_COLUMNS];
    size_t block = blockIdx.x;
    int which = 0;
    for (; block >= (width_of(list.of[which]) + PART_COLUMNS - 1) / PART_COLUMNS; which++)
        block -= (width_of(list.of[which]) + PART_COLUMNS - 1) / PART_COLUMNS;
    const part_sums &p = list.of[which];
    const size_t width = width_of(p);
    const int c = threadIdx.x % PART_COLUMNS, t = threadIdx.x / PART_COLUMNS;
    size_t i = block * PART_COLUMNS + c;
    const size_t each = (p.parts + STRETCHES - 1) / STRETCHES, from = t * each;
    const size_t end = from + each < p.parts ? from + each : p.parts;
    float sum = 0;
    if (i < width)
#pragma unroll 16
        for (size_t k = from; k < end; k++) sum += p.part[k * width + i];
    sums[t][c] = sum;
    __syncthreads();
    if (t || i >= width) return;
    for (int k = 1; k < STRETCHES; k++) sum += sums[k][c];
#pragma unroll
    for (int k = 0; k < SUM_OUTS; k++) {
        if (i < p.n[k]) {
            p.out[k][i] += sum;
            return;
        }
        i -= p.n[k];
    }
}

void k_add_parts(struct queue *s, const struct part_list *list) {
    unsigned grid = 0;
    for (int i = 0; i < list->n; i++) grid += blocks(width_of(list->of[i]), PART_COLUMNS);
    LAUNCH(add_parts, grid, PART_COLUMNS * STRETCHES, s, *list);
}

// ---- rows by number ----------------------------------------------------------------------------

static __global__ void gather_rows(float *y, const float *x, const int32_t *row, size_t C) {
    begin_kernel();
    const size_t o = blockIdx.x, r = (size_t)row[o];
    for (size_t c = threadIdx.x; c < C; c += blockDim.x) y[o * C + c] = x[r * C + c];
}

void k_gather_rows(struct queue *s, float *y, const float *x, const int32_t *row, size_t O,
                   size_t C) {
    if (O) LAUNCH(gather_rows, (unsigned)O, ROW_THREADS, s, y, x, row, C);
}

// ---- token shift -------------------------------------------------------------------------------

template <int N>
__device__ static several<N> before_row(const float *z, const float *in, int32_t prev, size_t c,
                                        size_t C) {
    if (prev >= 0) return load<N>(z + (size_t)prev * C + c);
    return in ? load<N>(in + (size_t)(-1 - prev) * C + c) : several<N>{};
}

enum { MIXES = 6, MIX_THREADS = 192 };

// m = z + d·mix, N neighbours a thread; z is read once for all mixes.
template <int N, class T>
static __global__ void shift_mix(T *m, float *out, const float *z, const float *in,
                                 const float *mix, const int32_t *prev, const int32_t *last,
                                 size_t n, size_t R, size_t C) {
    begin_kernel();
    const size_t c = (blockIdx.x * (size_t)MIX_THREADS + threadIdx.x) * N;
    if (c >= C) return;
    for (size_t r = blockIdx.y; r < R; r += gridDim.y) {
        const several<N> x = load<N>(z + r * C + c);
        several<N> d = before_row<N>(z, in, prev[r], c, C);
#pragma unroll
        for (int e = 0; e < N; e++) d[e] -= x[e];
#pragma unroll
        for (int k = 0; k < MIXES; k++) {
            if ((size_t)k >= n) continue;
            several<N> y = load<N>(mix + k * C + c);
#pragma unroll
            for (int e = 0; e < N; e++) y[e] = x[e] + d[e] * y[e];
            store<N>(m + (k * R + r) * C + c, y);
        }
        if (out && last[r] >= 0) store<N>(out + (size_t)last[r] * C + c, x);
    }
}

static __global__ void shift_out(float *out, const float *z, const int32_t *last, size_t C) {
    begin_kernel();
    const size_t r = blockIdx.x;
    if (last[r] < 0) return;
    for (size_t c = threadIdx.x; c < C; c += blockDim.x)
        out[(size_t)last[r] * C + c] = z[r * C + c];
}

constexpr size_t MAX_GRID_Y = 65535;

void k_shift_mix(struct queue *s, void *m, bool narrow, float *out, const float *z, const float *in,
                 const float *mix, const int32_t *prev, const int32_t *last, size_t n, size_t R,
                 size_t C, bool single) {
    if (!R) return;
    // A row may read the slot that another one writes, unless each span is one row.
    float *now = single ? out : nullptr;
    const bool fours = in_fours(C, m, out, z, in, mix);
    const dim3 grid(blocks(C, MIX_THREADS * (fours ? 4 : 1)),
                    (unsigned)(R < MAX_GRID_Y ? R : MAX_GRID_Y));
#define GO(N, T)                                                                                   \
    LAUNCH((shift_mix<N, T>), grid, MIX_THREADS, s, (T *)m, now, z, in, mix, prev, last, n, R, C)
    if (narrow && fours)
        GO(4, uint16_t);
    else if (narrow)
        GO(1, uint16_t);
    else if (fours)
        GO(4, float);
    else
        GO(1, float);
#undef GO
    if (out && !single) LAUNCH(shift_out, (unsigned)R, ROW_THREADS, s, out, z, last, C);
}

// Upwards through a chunk: what a row gets from the next one's mixes is read once, as the next
// one's own.
template <int N, class T>
static __global__ void shift_mix_bwd(float *dz, float *part, const T *dm, const float *z,
                                     const float *in, const float *mix, const int32_t *prev,
                                     const int32_t *last, size_t n, size_t R, size_t C,
                                     size_t chunk) {
    begin_kernel();
    const size_t c = (blockIdx.x * (size_t)COLUMNS + threadIdx.x) * N;
    const size_t first = blockIdx.y * chunk;
    if (c >= C) return;
    const size_t end = first + chunk < R ? first + chunk : R;
    several<N> weight[MIXES], sum[MIXES] = {}, here[MIXES] = {};
#pragma unroll
    for (int k = 0; k < MIXES; k++) {
        if ((size_t)k >= n) continue;
        weight[k] = load<N>(mix + k * C + c);
        here[k] = load<N>(dm + (k * R + first) * C + c);
    }
    for (size_t r = first; r < end; r++) {
        several<N> d = before_row<N>(z, in, prev[r], c, C), total = {}, next[MIXES] = {};
        const several<N> x = load<N>(z + r * C + c);
        const bool followed = last[r] < 0;
        if (r + 1 < R)
#pragma unroll
            for (int k = 0; k < MIXES; k++)
                if ((size_t)k < n && (followed || r + 1 < end))
                    next[k] = load<N>(dm + (k * R + r + 1) * C + c);
#pragma unroll
        for (int k = 0; k < MIXES; k++) {
            if ((size_t)k >= n) continue;
#pragma unroll
            for (int e = 0; e < N; e++) {
                const float g = here[k][e], w = weight[k][e];
                total[e] += g * (1 - w) + (followed ? next[k][e] : 0) * w;
                sum[k][e] += g * (d[e] - x[e]);
            }
            here[k] = next[k];
        }
        store<N>(dz + r * C + c, total);
    }
#pragma unroll
    for (int k = 0; k < MIXES; k++)
        if ((size_t)k < n) store<N>(part + (blockIdx.y * n + k) * C + c, sum[k]);
}

void k_shift_mix_bwd(struct queue *s, float *dz, const void *dm, bool narrow, const float *z,
                     const float *in, const float *mix, const int32_t *prev, const int32_t *last,
                     float *part, size_t n, size_t R, size_t C) {
    if (!R) return;
    const bool twos = C % 2 == 0 && in_fours(4, dz, dm, z, in, mix);
    const dim3 grid(blocks(C, COLUMNS * (twos ? 2 : 1)), (unsigned)k_parts(R));
#define GO(N, T)                                                                                   \
    LAUNCH((shift_mix_bwd<N, T>), grid, COLUMNS, s, dz, part, (const T *)dm, z, in, mix, prev,     \
           last, n, R, C, part_rows(R))
    if (narrow && twos)
        GO(2, uint16_t);
    else if (narrow)
        GO(1, uint16_t);
    else if (twos)
        GO(2, float);
    else
        GO(1, float);
#undef GO
}

// ---- elements ----------------------------------------------------------------------------------

enum { ELEMENTS = 256 };
constexpr size_t MOST_BLOCKS = 4096;

static unsigned element_blocks(size_t n) {
    const size_t b = (n + ELEMENTS - 1) / ELEMENTS;
    return (unsigned)(b < MOST_BLOCKS ? b : MOST_BLOCKS);
}

#define EACH(i, n)                                                                                 \
    for (size_t i = blockIdx.x * (size_t)ELEMENTS + threadIdx.x; i < (n);                          \
         i += gridDim.x * (size_t)ELEMENTS)

// Four at a time where all lie so.
#define GO_EACH(kernel, n, fours, ...)                                                             \
    do {                                                                                           \
        if (fours)                                                                                 \
            LAUNCH((kernel<4>), element_blocks((n) / 4), ELEMENTS, s, __VA_ARGS__, (n) / 4);       \
        else                                                                                       \
            LAUNCH((kernel<1>), element_blocks(n), ELEMENTS, s, __VA_ARGS__, n);                   \
    } while (0)

template <int N, class T> __device__ static void act_all(T *y, const T *x, int act, size_t n) {
    EACH(i, n) {
        several<N> v = load<N>(x + i * N);
#pragma unroll
        for (int e = 0; e < N; e++) v[e] = activate(v[e], act);
        store<N>(y + i * N, v);
    }
}

template <int N>
static __global__ void act_each(void *y, const void *x, bool narrow, int act, size_t n) {
    begin_kernel();
    if (narrow)
        act_all<N>((uint16_t *)y, (const uint16_t *)x, act, n);
    else
        act_all<N>((float *)y, (const float *)x, act, n);
}

void k_act(struct queue *s, void *y, const void *x, bool narrow, size_t n, int act) {
    if (n) GO_EACH(act_each, n, in_fours(n, y, x), y, x, narrow, act);
}

template <int N, class T>
__device__ static void act_bwd_all(T *dx, const T *dy, const T *y, int act, size_t n) {
    EACH(i, n) {
        const several<N> v = load<N>(y + i * N);
        several<N> g = load<N>(dy + i * N);
#pragma unroll
        for (int e = 0; e < N; e++) g[e] *= slope(v[e], act);
        store<N>(dx + i * N, g);
    }
}

template <int N>
static __global__ void act_bwd_each(void *dx, const void *dy, const void *y, bool narrow, int act,
                                    size_t n) {
    begin_kernel();
    if (narrow)
        act_bwd_all<N>((uint16_t *)dx, (const uint16_t *)dy, (const uint16_t *)y, act, n);
    else
        act_bwd_all<N>((float *)dx, (const float *)dy, (const float *)y, act, n);
}

void k_act_bwd(struct queue *s, void *dx, const void *dy, const void *y, bool narrow, size_t n,
               int act) {
    const bool fours = in_fours(n, dx, dy, y);
    if (n) GO_EACH(act_bwd_each, n, fours, dx, dy, y, narrow, act);
}

template <int N, class T> __device__ static void add_all(T *y, const T *x, size_t n) {
    EACH(i, n) {
        several<N> v = load<N>(y + i * N);
        const several<N> u = load<N>(x + i * N);
#pragma unroll
        for (int e = 0; e < N; e++) v[e] += u[e];
        store<N>(y + i * N, v);
    }
}

template <int N> static __global__ void add_each(void *y, const void *x, bool narrow, size_t n) {
    begin_kernel();
    if (narrow)
        add_all<N>((uint16_t *)y, (const uint16_t *)x, n);
    else
        add_all<N>((float *)y, (const float *)x, n);
}

void k_add(struct queue *s, void *y, const void *x, bool narrow, size_t n) {
    if (n) GO_EACH(add_each, n, in_fours(n, y, x), y, x, narrow);
}

template <class T> static __global__ void fill_each(T *y, T value, size_t n) {
    begin_kernel();
    EACH(i, n) y[i] = value;
}

void k_fill(struct queue *s, void *y, const void *value, size_t size, size_t n) {
    if (!n) return;
    if (size == 2 && n % 2 == 0 && (uintptr_t)y % 4 == 0) { // in pairs
        const uint32_t pair = *(const uint16_t *)value * 0x10001u;
        LAUNCH(fill_each<uint32_t>, element_blocks(n / 2), ELEMENTS, s, (uint32_t *)y, pair, n / 2);
        return;
    }
    const unsigned grid = element_blocks(n);
    if (size == 2)
        LAUNCH(fill_each<uint16_t>, grid, ELEMENTS, s, (uint16_t *)y, *(const uint16_t *)value, n);
    else if (size == 4)
        LAUNCH(fill_each<uint32_t>, grid, ELEMENTS, s, (uint32_t *)y, *(const uint32_t *)value, n);
    else
        LAUNCH(fill_each<uint64_t>, grid, ELEMENTS, s, (uint64_t *)y, *(const uint64_t *)value, n);
}

struct put_words {
    uint32_t word[PUT_WORDS];
};

static __global__ void put(uint32_t *to, const __grid_constant__ put_words from, int n) {
    begin_kernel();
    for (int i = threadIdx.x; i < n; i += blockDim.x) to[i] = from.word[i];
}

bool k_put(struct queue *s, void *to, const void *from, size_t bytes) {
    put_words words;
    if (bytes > sizeof words || bytes % 4 || (uintptr_t)to % 4) return false;
    memcpy(&words, from, bytes);
    memset((char *)&words + bytes, 0, sizeof words - bytes);
    LAUNCH(put, 1, 128, s, (uint32_t *)to, words, (int)(bytes / 4));
    return true;
}

// They travel with the launch.
struct slot_list {
    int32_t slot[128];
    int count;
};

template <class T>
static __global__ void clear_each(T *y, size_t S, size_t n, const __grid_constant__ slot_list of) {
    begin_kernel();
    y += (blockIdx.y / of.count * S + (size_t)of.slot[blockIdx.y % of.count]) * n;
    EACH(i, n) y[i] = T();
}

template <class T>
static void clear(struct queue *s, void *y, size_t n, size_t S, size_t bytes, const slot_list &of) {
    const dim3 grid(element_blocks(bytes / sizeof(T)), (unsigned)n * (unsigned)of.count);
    LAUNCH(clear_each<T>, grid, ELEMENTS, s, (T *)y, S, bytes / sizeof(T), of);
}

void k_clear(struct queue *s, void *y, size_t n, size_t S, size_t bytes, const int32_t *slots,
             int count) {
    slot_list of = {};
    constexpr size_t ROOM = sizeof of.slot / sizeof *of.slot;
    if (!n || !bytes) return;
    const int most = (int)(MAX_GRID_Y / n < ROOM ? MAX_GRID_Y / n : ROOM);
    for (; count > 0; slots += most, count -= most) {
        of.count = count < most ? count : most;
        memcpy(of.slot, slots, (size_t)of.count * sizeof *slots);
        if (((size_t)y | bytes) % 16 == 0)
            clear<float4>(s, y, n, S, bytes, of);
        else
            clear<uint16_t>(s, y, n, S, bytes, of);
    }
}

static __global__ void copy_each(void *y, int to, const void *x, int from, size_t n) {
    begin_kernel();
    EACH(i, n) store_number(y, to, i, load_number(x, from, i));
}

template <int N> static __global__ void narrow_each(uint16_t *y, const float *x, size_t n) {
    begin_kernel();
    EACH(i, n) store<N>(y + i * N, load<N>(x + i * N));
}

void k_round_bf16(struct queue *s, uint16_t *y, const float *x, size_t n) {
    if (n) GO_EACH(narrow_each, n, in_fours(n, y, x), y, x);
}

template <int N> static __global__ void widen_each(float *y, const uint16_t *x, size_t n) {
    begin_kernel();
    EACH(i, n) store<N>(y + i * N, load<N>(x + i * N));
}

void k_widen_bf16(struct queue *s, float *y, const uint16_t *x, size_t n) {
    if (n) GO_EACH(widen_each, n, in_fours(n, y, x), y, x);
}

void k_copy(struct queue *s, void *y, int to, const void *x, int from, size_t n) {
    if (!n) return;
    if (to == T_BF16 && from == T_F32)
        k_round_bf16(s, (uint16_t *)y, (const float *)x, n);
    else if (to == T_F32 && from == T_BF16)
        k_widen_bf16(s, (float *)y, (const uint16_t *)x, n);
    else
        LAUNCH(copy_each, element_blocks(n), ELEMENTS, s, y, to, x, from, n);
}

template <class T> static __global__ void copy_words(T *y, const T *x, size_t n) {
    begin_kernel();
    EACH(i, n) y[i] = x[i];
}

void k_copy_bytes(struct queue *s, void *y, const void *x, size_t bytes) {
    const size_t together = (size_t)y | (size_t)x | bytes;
    if (!bytes) return;
    if (together % 16 == 0)
        LAUNCH(copy_words<float4>, element_blocks(bytes / 16), ELEMENTS, s, (float4 *)y,
               (const float4 *)x, bytes / 16);
    else if (together % 4 == 0)
        LAUNCH(copy_words<float>, element_blocks(bytes / 4), ELEMENTS, s, (float *)y,
               (const float *)x, bytes / 4);
    else
        LAUNCH(copy_words<char>, element_blocks(bytes), ELEMENTS, s, (char *)y, (const char *)x,
               bytes);
}
