// A head in a block of decode.cu: the second products of its LoRAs, and the step of step.cuh by the
// first four warps.
#pragma once
#include "decode.cuh"

// Its LoRAs' outputs, and what the step shares.
struct recall_room {
    float lora[DECODE_RANKS][N];
    float key[KEY_COUNT][N], read[READ_COUNT][N]; // parameters of keys and readout
    step_room step;
};

#ifdef HOPPER

template <class E> struct recalls {
    // What a warp of the step takes, and makes of it; KEYS makes the readout, too.
    enum { KEYS, DECAY, VALUES };

    const decode_args &a;
    char *shared;
    const int warp, lane;

    __device__ recalls(const decode_args &a, char *shared)
        : a(a), shared(shared), warp((int)threadIdx.x / 32), lane((int)threadIdx.x % 32) {}

    __device__ char *hidden() const { return shared + a.hidden_at; } // the LoRAs' hidden layers
    __device__ recall_room &room() const { return *(recall_room *)(shared + a.room_at); }
    // Layer 0's values: (heads,N).
    __device__ float *v_first(int index) const {
        return (float *)(shared + a.first_at) + index * N;
    }
    __device__ E *state_of(int layer, int h) const {
        const int slot = ((decode_small *)(shared + a.small_at))->slot;
        return (E *)a.wkv + (((size_t)layer * a.S + slot) * a.H + h) * N * N;
    }
    __device__ void meet() const { group_barrier(ALL_MEET, CONSUMERS); }
    __device__ void four_meet() const { group_barrier(HEAD_MEET, STEP_THREADS); }

    // Hidden layers of the LoRAs, rounded: every other warp does it, those that take no
    // projections.
    __device__ void take_hidden(int layer, uint32_t tag) const {
        enum { OTHERS = CONSUMERS / 2 };
        const int absent = a.rank_from[LORA_V], end = layer ? absent : absent + a.rank[LORA_V];
#pragma unroll 1
        for (int i = warp / 2 * 32 + lane; i < a.ranks / 4; i += OTHERS) {
            if (4 * i >= absent && 4 * i < end) continue;
            two_words w;
#pragma unroll 1
            for (int looks = 0;; look_again(looks)) {
                w = get_words(a.hidden + 2 * i);
                if (are_due(w, tag)) break;
            }
            uint32_t *to = (uint32_t *)hidden() + pair_place(2 * i);
            to[0] = w.x;
            to[2] = w.y;
        }
    }

    // r and k, or v, twice.
    __device__ void take_projections(lanes (&to)[2], int h, uint32_t tag) const {
        const bool values = warp == VALUES;
        const uint64_t *from = a.rkv + h * N + 2 * lane + (values ? RKV_V : RKV_R) * a.C;
        two_words w[2];
#pragma unroll 1
        for (int looks = 0;; look_again(looks)) {
            bool all = true;
#pragma unroll
            for (int i = 0; i < 2; i++) w[i] = get_words(from + (values ? 0 : i * a.C));
#pragma unroll
            for (int i = 0; i < 2; i++) all &= are_due(w[i], tag);
            if (all) break;
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
            to[i] = lanes{{__uint_as_float(w[i].x), __uint_as_float(w[i].y)}};
    }

    // A warp has sixteen outputs of one LoRA, and adds its stretches up one after the other. What
    // is multiplied comes for some times sixteen k at once.
    __device__ void multiply_loras(weight_ring &ring, int layer) const {
        enum { DEEP = 2 };
        const int lora = warp / 4, slab = warp % 4;
        const int from = a.rank_from[lora], end = from + a.rank[lora];
        const int stretch = stretch_of(a.rank[lora]), ranks = a.ranks;
        const int place = lora_place(lane_k(), 2 * slab + lane_piece());
        const uint2 *x = (const uint2 *)hidden() + lane % 4;
        float2 total = {};
        float sum[4] = {};
        int left = stretch; // of the stretch
#pragma unroll 1
        for (int k0 = 0; k0 < ranks; k0 += LORA_ROWS) {
            const char *at = ring.take();
            const int begin = from > k0 ? from : k0, stop = least(end, k0 + LORA_ROWS);
            if (layer || lora != LORA_V)
#pragma unroll 1
                for (int k = begin; k < stop; k += 16 * DEEP) {
                    uint32_t w[DEEP][4];
                    uint2 in[DEEP];
#pragma unroll
                    for (int d = 0; d < DEEP; d++) {
                        const int from = least(k + 16 * d, stop - 16);
                        load_matrices<true>(w[d], (const uint32_t *)(at + (from - k0) * LORA_PITCH +
                                                                     place));
                        in[d] = lane < 4 ? x[from / 4] : uint2{0, 0};
                    }
#pragma unroll
                    for (int d = 0; d < DEEP; d++) {
                        if (k + 16 * d >= stop) break;
                        mma(sum, w[d], in[d].x, in[d].y);
                        if ((left -= 16) && k + 16 * d + 16 < end) continue;
                        left = stretch;
                        total.x += sum[0], total.y += sum[2];
#pragma unroll
                        for (int e = 0; e < 4; e++) sum[e] = 0;
                    }
                }
            slots_read();
            if (lane == 0) barrier_arrive(ring.small.empty[ring.at]);
            ring.next();
        }
        if (lane % 4) return;
        float *to = room().lora[lora] + 16 * slab + lane / 4;
        to[0] = total.x, to[8] = total.y;
    }

    // h: the head; index: among this block's.
    __device__ void go(weight_ring &ring, int layer, int h, int index, uint32_t tag) const {
        const bool steps = warp < QUAD;
        // Zero, lest registers that only some warps fill are kept for them all the time.
        lanes projected[2] = {};
        if (steps) keep_vectors(layer, h); // on their way while others are at it
        if (warp % 2)
            take_hidden(layer, tag);
        else if (steps)
            take_projections(projected, h, tag);
        meet();
        multiply_loras(ring, layer);
        const E *state = (const E *)ring.take();
        phase_barrier &read = ring.small.empty[ring.at];
        ring.next();
        if (!steps && lane == 0) barrier_arrive(read);
        meet();
        if (steps) step(state, read, projected, layer, h, index, tag);
        meet(); // nobody reads the room any more
    }

    // The four warps' part. read: whom to tell that the state has been read.
    __device__ void step(const E *state, phase_barrier &read, lanes (&projected)[2], int layer,
                         int h, int index, uint32_t tag) const {
        recall_room &mine = room();
        prepare(mine, projected, layer, index);
        four_meet();
        state_lanes<E> S; // read twice rather than kept
        S.take(state);
        S.meet_a(mine.step);
        four_meet();
        S.take(state);
        S.go_on(mine.step, state_of(layer, h));
        slots_read();
        if (lane == 0) barrier_arrive(read);
        four_meet();
        if (warp != KEYS) return;
        lanes gate;
        read_lanes with;
        gate.take(mine.lora[LORA_G], N);
        with.take(mine.read[0], N);
        const lanes o = read_token<float>(mine.step, gate, with);
        put_word(a.o + h * N / 2 + lane, bf16_pair(o[0], o[1]), tag);
    }

    // A warp's parameters, where nobody has to keep them in registers until then. Lanes see only
    // their own.
    __device__ void keep_vectors(int layer, int h) const {
        recall_room &mine = room();
        const size_t at = layer * a.layer_stride + h * N;
        const float *key = a.key_vecs + at;
        static_assert(KEY_A0 == 1 && KEY_V0 == 2 && KEY_KK == 3 && KEY_KA == 4, "ops.h");
        if (warp == KEYS) {
            keep<1>(&mine.key[KEY_A0], key + KEY_A0 * a.C);
            keep<2>(&mine.key[KEY_KK], key + KEY_KK * a.C);
            keep<READ_COUNT>(mine.read, a.read_vecs + at);
        } else if (warp == DECAY || warp == VALUES) {
            const int which = warp == DECAY ? KEY_W0 : KEY_V0;
            keep<1>(&mine.key[which], key + which * a.C);
        }
    }
    template <int COUNT> __device__ void keep(float (*to)[N], const float *vecs) const {
        constexpr int VEC = 2, NL = 1;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            TAKE(v, vecs + i * a.C);
            *(float2 *)&to[i][2 * lane] = make_float2(v[0], v[1]);
        }
    }

    // What the recurrence reads, each warp its part of it.
    __device__ void prepare(recall_room &mine, lanes (&projected)[2], int layer, int index) const {
        constexpr int VEC = 2, NL = 1;
        if (warp == DECAY) {
            TAKE(w, mine.lora[LORA_W]);
            TAKE(w0, mine.key[KEY_W0]);
            EACH(i) w[i] += w0[i];
            put_decay<float>(mine.step, w);
        }
        if (warp == VALUES) {
            lanes &v = projected[0];
            float *kept = v_first(index);
            if (layer) {
                TAKE(mix, mine.lora[LORA_V]);
                TAKE(before, kept);
                TAKE(v0, mine.key[KEY_V0]);
                prepare_values<float>(v, mix, before, v0);
            } else {
                *(float2 *)(kept + 2 * lane) = make_float2(v[0], v[1]);
            }
            put_values<float>(mine.step, v);
        }
        if (warp == KEYS) {
            TAKE(rate, mine.lora[LORA_A]);
            TAKE(a0, mine.key[KEY_A0]);
            TAKE(k_k, mine.key[KEY_KK]);
            TAKE(k_a, mine.key[KEY_KA]);
            lanes &r = projected[0], &k = projected[1], both;
            prepare_keys<float>(k, rate, both, a0, k_k, k_a);
            put_keys<float>(mine.step, r, k, rate, both);
        }
    }
};

#endif // HOPPER
