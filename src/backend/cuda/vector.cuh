// Neighbouring numbers in global memory as one load or store: f32, or bf16 rounded when stored.
#pragma once
#include "device.cuh"

// Whether float4s can be taken wherever these begin: rows of C numbers, addresses (NULL is fine).
template <class... P> static inline bool in_fours(size_t C, P... p) {
    return C % 4 == 0 && (((uintptr_t)p | ...) & 15) == 0;
}

template <int N> struct several {
    float x[N];
    __device__ float &operator[](int i) { return x[i]; }
    __device__ float operator[](int i) const { return x[i]; }
};

template <int N> __device__ static inline several<N> load(const float *p) {
    if constexpr (N == 4) {
        const float4 v = *(const float4 *)p;
        return {{v.x, v.y, v.z, v.w}};
    } else if constexpr (N == 2) {
        const float2 v = *(const float2 *)p;
        return {{v.x, v.y}};
    } else {
        return {{*p}};
    }
}

template <int N> __device__ static inline several<N> load(const uint16_t *p) {
    if constexpr (N == 4) {
        const uint2 v = *(const uint2 *)p;
        return {{bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y)}};
    } else if constexpr (N == 2) {
        const uint32_t v = *(const uint32_t *)p;
        return {{bf16_low(v), bf16_high(v)}};
    } else {
        return {{bf16_value(*p)}};
    }
}

// One instruction: a plain assignment may come apart into one a number. Not for shared memory.
__device__ static inline void store_whole(float *p, float4 v) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(p)), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
#else
    *(float4 *)p = v;
#endif
}

__device__ static inline void store_whole(float *p, float2 v) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v2.f32 [%0], {%1, %2};"
                 :
                 : "l"(__cvta_generic_to_global(p)), "f"(v.x), "f"(v.y)
                 : "memory");
#else
    *(float2 *)p = v;
#endif
}

__device__ static inline void store_whole(uint16_t *p, uint2 v) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v2.u32 [%0], {%1, %2};"
                 :
                 : "l"(__cvta_generic_to_global(p)), "r"(v.x), "r"(v.y)
                 : "memory");
#else
    *(uint2 *)p = v;
#endif
}

template <int N> __device__ static inline void store(float *p, const several<N> &v) {
    if constexpr (N == 4)
        store_whole(p, make_float4(v.x[0], v.x[1], v.x[2], v.x[3]));
    else if constexpr (N == 2)
        store_whole(p, make_float2(v.x[0], v.x[1]));
    else
        *p = v.x[0];
}

template <int N> __device__ static inline void store(uint16_t *p, const several<N> &v) {
    if constexpr (N == 4)
        store_whole(p, uint2{bf16_pair(v.x[0], v.x[1]), bf16_pair(v.x[2], v.x[3])});
    else if constexpr (N == 2)
        *(uint32_t *)p = bf16_pair(v.x[0], v.x[1]);
    else
        *p = bf16_bits(v.x[0]);
}

// ---- functions of what is stored as T ----------------------------------------------------------

// Of what is bf16 anyway they may be off by 2^-20.
template <class T> __device__ static inline float exponential(float x) {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(T) == 2) {
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
        return y;
    }
#endif
    return expf(x);
}

template <class T> __device__ static inline float quotient(float x, float y) {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(T) == 2) return __fdividef(x, y);
#endif
    return x / y;
}

// Of less than 2^-126 it is 0 then.
template <class T> __device__ static inline float root(float x) {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(T) == 2) {
        float y;
        asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
#endif
    return sqrtf(x);
}

template <class T> __device__ static inline float sigmoid_as(float x) {
    return quotient<T>(1.0f, 1.0f + exponential<T>(-x));
}

// ---- ahead -------------------------------------------------------------------------------------

// 4, 8 or 16 bytes of this thread's from global into shared memory, while it goes on; 16 go past
// the first-level cache. What is asked for between two calls of asked() is there, for this thread
// alone, when all but the last LEFT of such groups are waited for.
template <int BYTES> __device__ static inline void ask_bytes(void *to, const void *from) {
#ifdef CUDA_EMU
    emu_async_copy(to, from, BYTES);
#else
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(BYTES)
                     : "memory");
#endif
}

// N numbers.
template <int N, class T> __device__ static inline void ask(T *to, const T *from) {
    ask_bytes<N * sizeof(T)>(to, from);
}

__device__ static inline void asked() {
#ifdef CUDA_EMU
    emu_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int LEFT> __device__ static inline void wait_for_asked() {
#ifdef CUDA_EMU
    emu_async_wait(LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// WORDS · 4 bytes that are read once: not kept in L1. Zero if not `wanted`.
template <int WORDS>
__device__ static inline void load_once(uint32_t *to, const void *from, bool wanted) {
#ifdef CUDA_EMU
    for (int i = 0; i < WORDS; i++) to[i] = 0;
    if (wanted) std::memcpy(to, from, WORDS * 4);
#else
    if constexpr (WORDS == 4)
        asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; "
                     "mov.b32 %2, 0; mov.b32 %3, 0; "
                     "@p ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];}"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "l"(from), "r"((uint32_t)wanted));
    else if constexpr (WORDS == 2)
        asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; "
                     "@p ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];}"
                     : "=r"(to[0]), "=r"(to[1])
                     : "l"(from), "r"((uint32_t)wanted));
    else
        asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.b32 %0, 0; "
                     "@p ld.global.nc.L1::no_allocate.b32 %0, [%1];}"
                     : "=r"(to[0])
                     : "l"(from), "r"((uint32_t)wanted));
#endif
}
