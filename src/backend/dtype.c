#include "backend/dtype.h"

#include "base/half.h"

#include <assert.h>
#include <string.h>

static const struct {
    const char *name;
    size_t size;
} types[DT_COUNT] = {
    [DT_NONE] = {"none", 0}, [DT_F64] = {"f64", 8},   [DT_F32] = {"f32", 4},
    [DT_BF16] = {"bf16", 2}, [DT_F16] = {"f16", 2},   [DT_I64] = {"i64", 8},
    [DT_I32] = {"i32", 4},   [DT_U16] = {"u16", 2},   [DT_U8] = {"u8", 1},
    [DT_INT8] = {"int8", 0}, [DT_INT4] = {"int4", 0},
};

size_t dtype_size(enum dtype t) {
    return types[t].size;
}

const char *dtype_name(enum dtype t) {
    return types[t].name;
}

enum dtype dtype_parse(const char *name) {
    for (int t = DT_F64; t < DT_COUNT; t++)
        if (strcmp(name, types[t].name) == 0) return (enum dtype)t;
    return DT_NONE;
}

static double load(const unsigned char *p, enum dtype t) {
    double d;
    float f;
    uint16_t h;
    switch (t) {
    case DT_F64: memcpy(&d, p, 8); return d;
    case DT_F32: memcpy(&f, p, 4); return (double)f;
    case DT_BF16: memcpy(&h, p, 2); return (double)bf16_to_f32(h);
    case DT_F16: memcpy(&h, p, 2); return (double)f16_to_f32(h);
    default: assert(!"dtype_convert reads floats only"); return 0;
    }
}

static void store(unsigned char *p, enum dtype t, double d) {
    const float f = (float)d;
    const uint16_t h = t == DT_BF16 ? f32_to_bf16(f) : f32_to_f16(f);
    switch (t) {
    case DT_F64: memcpy(p, &d, 8); break;
    case DT_F32: memcpy(p, &f, 4); break;
    case DT_BF16:
    case DT_F16: memcpy(p, &h, 2); break;
    default: assert(!"dtype_convert writes floats only");
    }
}

void dtype_convert(void *dst, enum dtype to, const void *src, enum dtype from, size_t count) {
    const size_t ds = dtype_size(to), ss = dtype_size(from);
    unsigned char *d = dst;
    const unsigned char *s = src;
    if (to == from) {
        if (count && dst != src) memcpy(dst, src, count * ds);
    } else if (to == DT_F32 && from == DT_BF16) { // the common case of loading
        for (size_t i = 0; i < count; i++) {
            uint16_t h;
            memcpy(&h, s + 2 * i, 2);
            const float f = bf16_to_f32(h);
            memcpy(d + 4 * i, &f, 4);
        }
    } else if (to == DT_BF16 && from == DT_F32) { // and of saving
        for (size_t i = 0; i < count; i++) {
            float f;
            memcpy(&f, s + 4 * i, 4);
            const uint16_t h = f32_to_bf16(f);
            memcpy(d + 2 * i, &h, 2);
        }
    } else {
        for (size_t i = 0; i < count; i++) store(d + i * ds, to, load(s + i * ss, from));
    }
}
