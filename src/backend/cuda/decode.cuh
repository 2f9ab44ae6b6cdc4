// What the parts of decode.cu share: numbers that blocks hand to each other, the ring of weights,
// and products out of it.
#pragma once
#include "hopper.cuh"
#include "mma.cuh"
#include "moments.cuh"
#include "step.cuh"

// Sixteen warps compute, one for each stretch of k as tensor.cu cuts it; a thread asks for weights.
enum { WARPS = 16, CONSUMERS = WARPS * 32, DECODE_THREADS = CONSUMERS + 32 };
enum { PIECE = DECODE_SLOT / WARPS };
// Named barriers: all who compute; two that take turns at sums; the four warps that have a head;
// those that have a norm.
enum { ALL_MEET = 1, SUMS_MEET, HEAD_MEET = SUMS_MEET + 2, NORM_MEET };
enum { NORM_WARPS = 8 }; // that have a norm of more than WARP_ROW numbers, as in norm.cu

__host__ __device__ static inline int least(int a, int b) {
    return a < b ? a : b;
}
__host__ __device__ static inline int most(int a, int b) {
    return a > b ? a : b;
}
// k of a stretch, as tensor.cu cuts K into them.
__host__ __device__ static inline int stretch_of(int K) {
    return (K + 16 * WARPS - 1) / (16 * WARPS) * 16;
}
// A row of n bf16 in shared memory. Of every sixteen numbers the pairs lie in the order 0 4 1 5 2 6
// 3 7, so that what a lane wants of them is 8 bytes; rows begin 32 bytes further on in the banks.
__host__ __device__ static inline int row_pitch(int n) {
    return (2 * n + 127) / 128 * 128 + 32;
}
// A slice of DP_PROJECT that is the block's: as struct slice, but small.
struct mixed_slice {
    uint8_t matrix, plane;
    uint16_t o;
};
// What a block's warps share besides the ring and what has a size of its own.
struct decode_small {
    alignas(64) char zeros[64];
    phase_barrier full[DECODE_SLOTS], empty[DECODE_SLOTS];
    float2 moments;
    float norm_sums[2][NORM_WARPS];
    int slot;
    int reading; // warps that wait for rows of ffn.value
    decode_block block;
};

#ifdef HOPPER

__device__ static inline void go_on(int &work, int &layer, int L) {
    if (work == DW_BEGIN)
        work = DW_PROJECT;
    else if (work != DW_VALUE)
        work++;
    else
        work = ++layer < L ? DW_PROJECT : DW_LOGITS;
}

// ---- words -------------------------------------------------------------------------------------
//
// A number travels from block to block with a tag, in one word of 8 bytes that is written and read
// as a whole: who waits for it looks at the word until the tag is the one that is due, and needs no
// barrier, no fence and no second trip. Tags count up from launch to launch, so nothing has to be
// cleared. A word is written again only when all its readers are known to have gone on, for the
// writer has waited for something that came of what they read.

struct two_words {
    uint32_t x, x_tag, y, y_tag;
};

__device__ static inline void put_word(uint64_t *to, uint32_t x, uint32_t tag) {
    const uint64_t word = (uint64_t)tag << 32 | x;
#ifdef CUDA_EMU
    *to = word;
#else
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
#endif
}

__device__ static inline two_words get_words(const uint64_t *from) {
    uint64_t a, b;
#ifdef CUDA_EMU
    a = from[0], b = from[1];
#else
    asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                 : "=l"(a), "=l"(b)
                 : "l"(from)
                 : "memory");
#endif
    return {(uint32_t)a, (uint32_t)(a >> 32), (uint32_t)b, (uint32_t)(b >> 32)};
}

__device__ static inline bool are_due(const two_words &w, uint32_t tag) {
    return w.x_tag == tag && w.y_tag == tag;
}

// Who waits for two seconds waits for ever: a kernel that traps shows at sync.
__device__ static inline void look_again(int &looks) {
    enum { MOST = 1 << 22 }; // a look is 0.4 us or more
    if (++looks > MOST) __trap();
#ifdef CUDA_EMU
    emu_yield();
#endif
}

// Pairs of words for a warp; a lane has those that are `missing`, 64 words apart. All that has not
// come is looked at again and again: looking at one word first, lest who waits takes the
// second-level cache from those who do not, lost (0.1b on an H100, tok/s: 4,060 instead of 4,072;
// on an H200 3,975 instead of 4,059).
template <int MOST>
__device__ static inline void receive(two_words (&w)[MOST], const uint64_t *from,
                                      bool (&missing)[MOST], uint32_t tag) {
#pragma unroll 1
    for (int looks = 0;; look_again(looks)) {
#pragma unroll
        for (int i = 0; i < MOST; i++)
            if (missing[i]) w[i] = get_words(from + 64 * i);
        bool any = false;
#pragma unroll
        for (int i = 0; i < MOST; i++) any |= missing[i] &= !are_due(w[i], tag);
        if (!__ballot_sync(0xffffffffu, any)) return;
    }
}

// ---- inputs of products ------------------------------------------------------------------------

// Where a pair lies, in pairs.
__device__ static inline int pair_place(int pair) {
    return (pair & ~7) + 2 * (pair & 3) + (pair >> 2 & 1);
}

// A warp's stretch of k, of len where all are there.
struct stretch {
    int first, len, have;

    __device__ stretch(const decode_job &j, int warp)
        : first(warp * j.len), len(j.len), have(least(j.K - first, len)) {}
};

// ---- the ring ----------------------------------------------------------------------------------
//
// A slot holds of a slice of 16 or 32 outputs, for each warp's stretch, the next 32 or 16 k: 1 KB a
// warp. Of pieces of 16 bytes in it those of a row are interchanged (exclusive or) with the row's
// number, so that neither rows nor columns meet in a bank.
__device__ static inline int piece_place(int row, int piece, bool wide) {
    return wide ? row * 64 + ((piece ^ (row >> 1 & 3)) << 4)
                : row * 32 + ((piece ^ (row >> 2 & 1)) << 4);
}

// Second matrices of LoRAs lie in rows of the 64 outputs of a head.
enum { LORA_PITCH = 128, LORA_ROWS = LORA_SLOT };
__device__ static inline int lora_place(int row, int piece) {
    return row * LORA_PITCH + ((piece ^ (row & 7)) << 4);
}

struct weight_ring {
    char *slots;
    decode_small &small;
    const int length;
    int at = 0;
    uint32_t phase = 0;

    __device__ weight_ring(char *shared, const decode_args &a)
        : slots(shared), small(*(decode_small *)(shared + a.small_at)), length(a.slots) {}
    __device__ char *slot() const { return slots + at * DECODE_SLOT; }
    __device__ void next() {
        const bool last = at + 1 == length;
        at = last ? 0 : at + 1;
        phase ^= last;
    }
    // A warp that computes: the slot that comes next.
    __device__ const char *take() {
        barrier_await(small.full[at], phase);
        return slot();
    }
};
// All lanes have read what they want of slots: one of them says so afterwards.
__device__ static inline void slots_read() {
    tile_touched(); // or copies into them would be there first
    __syncwarp();
}

// A slice of a matrix.
struct slice {
    int matrix, plane, o; // enum decode_matrix; which of the block's mixes; its first output
};
// Those of DP_PROJECT are found once.
__device__ static inline mixed_slice *mixed_slices(const decode_args &a, char *shared) {
    return (mixed_slice *)(shared + a.slices_at);
}
__device__ static inline void find_mixed_slice(const decode_args &a, char *shared, int i) {
    const decode_block &b = ((decode_small *)(shared + a.small_at))->block;
    const int piece = b.first[DP_PROJECT] + i;
    int m = 0;
#pragma unroll 1
    while (piece >= a.first_slice[m + 1]) m++;
    mixed_slices(a, shared)[i] = {(uint8_t)m, b.plane_of[m],
                                  (uint16_t)((piece - a.first_slice[m]) * a.width[DP_PROJECT])};
}

// The block's i-th of a work.
__device__ static inline slice slice_of(const decode_args &a, char *shared, const decode_job &j,
                                        int i) {
    if (j.part == DP_PROJECT) {
        const mixed_slice s = mixed_slices(a, shared)[i];
        return {s.matrix, s.plane, s.o};
    }
    const decode_block &b = ((decode_small *)(shared + a.small_at))->block;
    return {j.matrix, 0, (b.first[j.part] + i) * j.width};
}

// The first layer has no LoRA of values.
__device__ static inline bool is_absent(int matrix, int layer) {
    return layer == 0 && matrix == DM_V1;
}

// ---- what fills it -----------------------------------------------------------------------------

// One thread. It waits for room, and while others wait for rows of ffn.value, which they want at
// once: all that comes through the same memory. Weights come in the order in which they are wanted,
// however long what is wanted of other blocks takes. Most of relu² is zero, but up to 1,024
// channels to leave out the rows of value that meet zeros gains nothing (0.1b 4,072 and 4,078
// tok/s).
struct filler {
    const decode_args &a;
    char *shared;
    const decode_block &b;
    weight_ring ring, come; // what is asked for next; what has come for certain
    int ahead = 0;          // slots between them

    __device__ filler(const decode_args &a, char *shared)
        : a(a), shared(shared), b(((decode_small *)(shared + a.small_at))->block), ring(shared, a),
          come(shared, a) {}

    // The next slot, into which so many bytes will come.
    __device__ phase_barrier &begin(int bytes) {
        barrier_await(ring.small.empty[ring.at], ring.phase ^ 1);
        for (int looks = 0; *(volatile int *)&ring.small.reading;) look_again(looks);
        if (ahead == a.flight) {
            barrier_await(come.small.full[come.at], come.phase);
            come.next();
        } else {
            ahead++;
        }
        phase_barrier &full = ring.small.full[ring.at];
        barrier_expect(full, (uint32_t)bytes);
        return full;
    }

    __device__ void bring_slice(const decode_job &j, int layer, int i) {
        const slice s = slice_of(a, shared, j, i);
        if (is_absent(s.matrix, layer)) return;
        const decode_maps *m = a.maps + layer * DM_COUNT + s.matrix;
        const int bytes = (j.whole + j.rest) * PIECE;
#pragma unroll 1
        for (int k = 0; k < j.len; k += j.step) {
            phase_barrier &full = begin(bytes);
            if (j.whole) stretches_load(ring.slot(), &m->whole, k, s.o, full);
            if (j.rest) stretches_load(ring.slot() + j.whole * PIECE, &m->rest, k, s.o, full);
            ring.next();
        }
    }

    // A head's second matrices of LoRAs, one below the other.
    __device__ void bring_loras(int layer, int h) {
        const int absent = a.rank_from[LORA_V], end = layer ? absent : absent + a.rank[LORA_V];
        const decode_maps *maps = a.maps + layer * DM_COUNT + DM_W2;
        int lora = 0;
#pragma unroll 1
        for (int k0 = 0; k0 < a.ranks; k0 += LORA_ROWS) {
            const int stop = least(a.ranks, k0 + LORA_ROWS);
            const int none = most(least(stop, end) - most(k0, absent), 0);
            phase_barrier &full = begin((stop - k0 - none) * LORA_PITCH);
#pragma unroll 1
            for (int k = k0; k < stop; k += 16) {
                while (lora + 1 < DECODE_RANKS && k >= a.rank_from[lora + 1]) lora++;
                if (k >= absent && k < end) continue;
                tile_load(ring.slot() + (k - k0) * LORA_PITCH, &maps[lora].whole,
                          k - a.rank_from[lora], h * N, full);
            }
            ring.next();
        }
    }

    __device__ void bring_state(int layer, int h) {
        const int bytes = N * N * (a.half ? 2 : 4);
        const size_t state = ((size_t)layer * a.S + a.slot[0]) * a.H + h;
        phase_barrier &full = begin(bytes);
        bytes_load(ring.slot(), (const char *)a.wkv + state * bytes, (uint32_t)bytes, full);
        ring.next();
    }

    // All that the block reads in a step, in order.
    __device__ void run() {
        int layer = 0;
#pragma unroll 1
        for (int work = DW_PROJECT;; go_on(work, layer, a.L)) {
            const decode_job &j = a.jobs[work];
            const bool unwanted = work == DW_LOGITS && !a.logits;
            const bool listed = work == DW_VALUE && a.lists; // who computes reads it
            const int count = unwanted || listed ? 0 : b.count[j.part];
#pragma unroll 1
            for (int i = 0; i < count; i++) {
                if (work != DW_RECALL) {
                    bring_slice(j, layer, i);
                    continue;
                }
                const int h = b.first[DP_RECALL] + i;
                bring_loras(layer, h);
                bring_state(layer, h);
            }
            if (work == DW_LOGITS) return;
        }
    }
};

// ---- products ----------------------------------------------------------------------------------

// A lane's sums: outputs g and g + 8 of 16, rows 2q and 2q + 1 of x, for lane 4g + q. Only row 0 is
// one.
typedef float sums[2][4];

// Where a lane of load_matrices<true> reads A, 16 k by 16 outputs of a slot's piece: which k, and
// which 8 outputs.
__device__ static inline int lane_k() {
    return (int)(threadIdx.x & 7) + 8 * (int)(threadIdx.x >> 4 & 1);
}
__device__ static inline int lane_piece() {
    return (int)(threadIdx.x >> 3 & 1);
}

// What a warp multiplies out of a slot: two times 16 k and 16 outputs, which are other outputs if
// the slice is WIDE, else the next k. The second one lies `second` bytes behind the first.
template <bool WIDE> struct slot_lanes {
    uint32_t w[2][4];
    uint2 x[2];

    __device__ void take(const char *at, int second, const char *from) {
        load_matrices<true>(w[0], (const uint32_t *)at);
        load_matrices<true>(w[1], (const uint32_t *)(at + second));
        x[0] = *(const uint2 *)from;
        if (!WIDE) x[1] = *(const uint2 *)(from + 32);
    }
    // have: how many k there are, from the first of the slot on.
    __device__ void multiply(sums &sum, int have) const {
        if (have > 0) mma(sum[0], w[0], x[0].x, x[0].y);
        if (WIDE && have > 0) mma(sum[1], w[1], x[0].x, x[0].y);
        if (!WIDE && have > 16) mma(sum[0], w[1], x[1].x, x[1].y);
    }
};

// This warp's stretch of a slice that comes next in the ring. x: inputs for lanes of row 0; for the
// others zeros, all of them at one place, which is not `moving`. Two slots are under way at a time.
template <bool WIDE>
__device__ static inline void multiply_slice(sums &sum, weight_ring &ring, const char *x,
                                             bool moving, const stretch &k) {
    enum { STEP = WIDE ? 16 : 32 };
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int place = warp * PIECE + piece_place(lane_k(), lane_piece(), WIDE);
    const int second = WIDE ? (place ^ 32) - place : PIECE / 2, further = moving ? 2 * STEP : 0;
    const char *from = x + lane % 4 * 8;
#pragma unroll 1
    for (int have = k.have, left = k.len; left > 0; left -= 2 * STEP, have -= 2 * STEP) {
        slot_lanes<WIDE> a, b;
        const bool both = left > STEP;
        phase_barrier &done = ring.small.empty[ring.at];
        a.take(ring.take() + place, second, from);
        from += further;
        ring.next();
        phase_barrier &done_too = ring.small.empty[ring.at];
        if (both) {
            b.take(ring.take() + place, second, from);
            from += further;
            ring.next();
        }
        slots_read();
        if (lane == 0) barrier_arrive(done);
        if (lane == 0 && both) barrier_arrive(done_too);
        a.multiply(sum, have);
        if (both) b.multiply(sum, have - STEP);
    }
}

#endif // HOPPER
