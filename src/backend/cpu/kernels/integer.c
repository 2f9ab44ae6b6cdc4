// Products of small integers, four to a 32-bit lane: weights unsigned, inputs signed. The weights'
// zero is taken back beforehand, from the sum of the inputs. A group's sum is exact, so only the
// sum over groups has an order, and that runs upward.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/lanes.h"
#include "backend/quant.h"

#if defined(__AVX512F__)
enum { TILE_ROWS = 6 };
#else
enum { TILE_ROWS = 4 };
#endif
enum { VECS = PANEL / LANES, HALF = PANEL / 2 };

#define EACH_ROW _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++)
#define EACH_VEC _Pragma("GCC unroll 8") for (int v = 0; v < VECS; v++)

// a += the products of four unsigned and four signed bytes in each lane.
INLINE vi dot_bytes(vi a, vu w, uint32_t x) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)a, (__m512i)w, _mm512_set1_epi32((int)x));
#else
    // By twos in 16 bits: bytes 0 and 2, then 1 and 3.
    const uint32_t x02 = (uint32_t)(uint16_t)(int8_t)x | (uint32_t)(int8_t)(x >> 16) << 16;
    const uint32_t x13 = (uint32_t)(uint16_t)(int8_t)(x >> 8) | (uint32_t)(int8_t)(x >> 24) << 16;
    a += multiply_add_16(w & 0x00ff00ffu, x02 - (vu){0});
    return a + multiply_add_16(w >> 8 & 0x00ff00ffu, x13 - (vu){0});
#endif
}

INLINE vu load_u(const uint8_t *p) {
    vu v;
    memcpy(&v, p, sizeof v);
    return v;
}

// The scales of a panel's outputs, from bf16 with interleaved halves.
INLINE void load_scales(vf s[VECS], const uint8_t *p) {
#pragma GCC unroll 4
    for (int l = 0; l < VECS / 2; l++) {
        const vu both = load_u(p + 4 * l * LANES);
        s[l] = (vf)(both << 16);
        s[l + VECS / 2] = (vf)(both & 0xffff0000u);
    }
}

INLINE uint32_t four(const int8_t *x) {
    uint32_t u;
    memcpy(&u, x, 4);
    return u;
}

// `rows` and `bits` are constants at every call.
INLINE void tile(int rows, int bits, float *acc, const struct quantised *x, size_t row,
                 const uint8_t *panel, size_t from, size_t to, struct fetch next) {
    const size_t groups = x->K / x->group;
    const size_t bytes = bits == 8 ? INT8_GROUP_BYTES : INT4_GROUP_BYTES;
    const int group = bits == 8 ? INT8_GROUP : INT4_GROUP, zero = bits == 8 ? 128 : 8;
    vf a[TILE_ROWS][VECS];
    EACH_ROW EACH_VEC a[r][v] = from ? load(acc + r * PANEL + v * LANES) : (vf){0};
    for (size_t g = from; g < to; g++) {
        const uint8_t *w = panel + (g - from) * bytes;
        vi sum[TILE_ROWS][VECS];
        EACH_ROW {
            const vi start = -zero * x->sum[(row + (size_t)r) * groups + g] - (vi){0};
            EACH_VEC sum[r][v] = start;
        }
        for (size_t i = 0; i < next.step; i += 64) __builtin_prefetch(next.at + i);
        next.at += next.step;
        const int8_t *at = x->value + row * x->K + g * (size_t)group;
#pragma GCC unroll 2
        for (int k = 0; k < group; k += bits == 8 ? 4 : 8, w += 4 * PANEL) {
            vu word[VECS];
            EACH_VEC word[v] = load_u(w + 4 * v * LANES);
            EACH_ROW {
                const int8_t *xr = at + (size_t)r * x->K + k;
                if (bits == 8) {
                    EACH_VEC sum[r][v] = dot_bytes(sum[r][v], word[v], four(xr));
                } else {
                    EACH_VEC sum[r][v] = dot_bytes(sum[r][v], word[v] & 0x0f0f0f0fu, four(xr));
                    EACH_VEC sum[r][v] =
                        dot_bytes(sum[r][v], word[v] >> 4 & 0x0f0f0f0fu, four(xr + 4));
                }
            }
        }
        vf scale[VECS];
        load_scales(scale, w);
        EACH_ROW {
            const vf xs = splat(x->scale[(row + (size_t)r) * groups + g]);
            EACH_VEC a[r][v] += __builtin_convertvector(sum[r][v], vf) * (scale[v] * xs);
        }
    }
    EACH_ROW EACH_VEC store(acc + r * PANEL + v * LANES, a[r][v]);
}

INLINE void walk(int bits, float *acc, const struct quantised *x, size_t row, const uint8_t *panel,
                 size_t rows, size_t from, size_t to, struct fetch next) {
    for (size_t at = 0; at < rows;) {
        const size_t n = rows - at < TILE_ROWS ? rows - at : TILE_ROWS;
        float *y = acc + at * PANEL;
        switch (n) {
        case 1: tile(1, bits, y, x, row + at, panel, from, to, next); break;
        case 2: tile(2, bits, y, x, row + at, panel, from, to, next); break;
        case 3: tile(3, bits, y, x, row + at, panel, from, to, next); break;
        case 4: tile(4, bits, y, x, row + at, panel, from, to, next); break;
#if defined(__AVX512F__)
        case 5: tile(5, bits, y, x, row + at, panel, from, to, next); break;
        case 6: tile(6, bits, y, x, row + at, panel, from, to, next); break;
#endif
        }
        at += n;
        next.at += (to - from) * next.step;
    }
}

static void product_int8(float *acc, const struct quantised *x, size_t row, const uint8_t *panel,
                         size_t rows, size_t from, size_t to, struct fetch next) {
    walk(8, acc, x, row, panel, rows, from, to, next);
}

static void product_int4(float *acc, const struct quantised *x, size_t row, const uint8_t *panel,
                         size_t rows, size_t from, size_t to, struct fetch next) {
    walk(4, acc, x, row, panel, rows, from, to, next);
}

typedef int8_t bytes __attribute__((vector_size(LANES)));

// As quant_inputs of backend/quant.h, to the bit.
static void quantise(int8_t *value, float *scale, int32_t *sum, const float *x, size_t K,
                     size_t group) {
    for (size_t g = 0; g < K / group; g++, x += group, value += group) {
        vf most = {0}, blemish = {0};
        for (size_t i = 0; i < group; i += LANES) {
            const vf m = magnitude(load(x + i));
            most = choose(m > most, m, most);
            blemish += m * 0.0f;
        }
        float lane[LANES], top = 0;
        store(lane, most);
        for (int l = 0; l < LANES; l++) top = lane[l] > top ? lane[l] : top;
        const float twice = top > 0 ? 254.0f / top : 0;
        vi total = {0};
        for (size_t i = 0; i < group; i += LANES) {
            const vi t = __builtin_convertvector(load(x + i) * twice, vi);
            const vi away = t + (t >> 31 | 1), q = (away - (away >> 31)) >> 1; // away / 2
            const bytes b = __builtin_convertvector(q, bytes);
            memcpy(value + i, &b, sizeof b);
            total += q;
        }
        int32_t each[LANES];
        memcpy(each, &total, sizeof each);
        sum[g] = 0;
        for (int l = 0; l < LANES; l++) sum[g] += each[l];
        scale[g] = top / 127.0f + sum_lanes(blemish);
    }
}

const struct integer_kernels LEVEL(integer_kernels) = {.tile_rows = TILE_ROWS,
                                                       .int8 = product_int8,
                                                       .int4 = product_int4,
                                                       .quantise = quantise};
