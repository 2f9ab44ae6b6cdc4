// What the parts of decode.cu share: numbers that blocks hand to each other, the ring of weights,
// and products out of it.
#pragma once
#include "hopper.cuh"
#include "mma.cuh"
#include "moments.cuh"
#include "step.cuh"

// Sixteen warps compute, one for each stretch of k as tensor.cu cuts it; four bring weights.
enum { WARPS = 16, CONSUMERS = WARPS * 32, FILLING = 4, FILLERS = FILLING * 32 };
enum { DECODE_THREADS = CONSUMERS + FILLERS };
enum { PIECE = DECODE_SLOT / WARPS, EACH_FILLS = WARPS / FILLING };
// Slots that are on their way at a time. 64 KB of each of 132 multiprocessors are three times what
// the memory's 3.3 TB/s want for an answer after 0.8 us: more would gain nothing.
enum { FLIGHT = 4 };
// Named barriers: all who compute; two that take turns at sums; the four warps that have a head;
// those that have a norm.
enum { ALL_MEET = 1, SUMS_MEET, HEAD_MEET = SUMS_MEET + 2, NORM_MEET };
enum { NORM_WARPS = 8 }; // that have a norm of more than WARP_ROW numbers, as in norm.cu

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

__device__ static inline int least(int a, int b) {
    return a < b ? a : b;
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
enum { LORA_PITCH = 128, LORA_ROWS = DECODE_SLOT / LORA_PITCH };
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
    // A warp that computes: the slot that comes next, and that all its lanes are done with it.
    __device__ const char *take() {
        barrier_await(small.full[at], phase);
        return slot();
    }
    __device__ void give(int lane) {
        if (lane == 0) barrier_arrive(small.empty[at]);
        next();
    }
};

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

// Four warps, a quarter of each slot each. They wait for room and for nothing else: weights come in
// the order in which they are wanted, however long what is wanted of others takes. Most of relu² is
// zero, but up to 1,024 channels to leave out the rows of value that meet zeros gains nothing (0.1b
// 4,072 and 4,078 tok/s).
struct filler {
    const decode_args &a;
    char *shared;
    const decode_block &b;
    weight_ring ring, come; // what is asked for next; what has come for certain
    int ahead = 0;          // slots between them
    const int lane, warp;

    __device__ filler(const decode_args &a, char *shared)
        : a(a), shared(shared), b(((decode_small *)(shared + a.small_at))->block), ring(shared, a),
          come(shared, a), lane((int)threadIdx.x & 31), warp((int)(threadIdx.x >> 5) % FILLING) {}

    // With the next slot at most FLIGHT are on their way.
    __device__ void await_flight() {
        if (ahead == FLIGHT) {
            barrier_await(come.small.full[come.at], come.phase);
            come.next();
        } else {
            ahead++;
        }
    }

    // The i-th slot of a slice, which begins at w.
    template <bool WIDE>
    __device__ void copy_slice(char *to, const char *w, int line, const decode_job &j,
                               int i) const {
        enum { PIECES = WIDE ? 4 : 2, ROWS = 32 / PIECES }; // of an instruction
        const int s0 = warp * EACH_FILLS, k = 2 * ROWS * i + lane / PIECES;
        const char *from = w + (size_t)(s0 * j.len + k) * (size_t)line + lane % PIECES * 16;
        const size_t next = (size_t)j.len * (size_t)line, second = (size_t)(ROWS * line);
        int all = j.K - s0 * j.len; // from this stretch on
        to += s0 * PIECE + piece_place(lane / PIECES, lane % PIECES, WIDE);
#pragma unroll
        for (int s = 0; s < EACH_FILLS; s++) {
            const int left = least(all, j.len) - k;
            if (left > 0) async_copy(to + s * PIECE, from);
            if (left > ROWS) async_copy(to + s * PIECE + PIECE / 2, from + second);
            from += next;
            all -= j.len;
        }
    }

    // The i-th slot of the second matrices of the LoRAs, 64 outputs of them, one below the other.
    __device__ void copy_loras(char *to, int layer, int o, int i) const {
        const int row = lane / 8, piece = lane % 8, end = least(a.ranks - i * LORA_ROWS, LORA_ROWS);
#pragma unroll 1
        for (int at = 16 * warp; at < end; at += 16 * FILLING) {
            const int k = i * LORA_ROWS + at;
            int l = 0;
#pragma unroll 1
            while (l + 1 < DECODE_RANKS && k >= a.rank_from[l + 1]) l++;
            if (layer == 0 && l == LORA_V) continue;
            const int pitch = a.pitch[DM_W2 + l];
            const uint16_t *from = a.layers[layer].w[DM_W2 + l] +
                                   (size_t)(k - a.rank_from[l] + row) * (size_t)pitch + o +
                                   piece * 8;
#pragma unroll 1
            for (int r = at + row; r < at + 16; r += 4, from += 4 * pitch)
                async_copy(to + lora_place(r, piece), from);
        }
    }

    __device__ void copy_bytes(char *to, const char *from, int bytes) const {
#pragma unroll 1
        for (int at = ((int)threadIdx.x - CONSUMERS) * 16; at < bytes; at += FILLERS * 16)
            async_copy(to + at, from + at);
    }

    // What comes in a row: a slice; or of a head the second matrices, and then its state.
    struct load {
        int slots;
        const char *w; // a slice's, and bytes of a row of the matrix
        int line;
        const char *state; // NULL with w: LoRAs
    };
    __device__ load of_slice(int work, int layer, const decode_job &j, int i) const {
        const slice s = slice_of(a, shared, j, i);
        if (is_absent(s.matrix, layer)) return {};
        const bool last = work == DW_LOGITS;
        const int wide = j.width == 32, each = wide ? 16 : 32;
        const uint16_t *w = last ? a.head : a.layers[layer].w[s.matrix];
        return {(j.len + each - 1) >> (wide ? 4 : 5), (const char *)(w + s.o),
                2 * (last ? a.head_pitch : a.pitch[s.matrix]), nullptr};
    }
    __device__ load of_loras() const {
        return {(a.ranks + LORA_ROWS - 1) / LORA_ROWS, nullptr, 0, nullptr};
    }
    __device__ load of_state(int layer, int h) const {
        const size_t state = ((size_t)layer * a.S + a.slot[0]) * a.H + h;
        return {1, nullptr, 0, (const char *)a.wkv + state * state_bytes()};
    }
    __device__ int state_bytes() const {
        return N * N * (a.half ? 2 : 4);
    }

    // The i-th slot of a load. h: the head.
    __device__ void fill(const load &l, const decode_job &j, int layer, int h, int i) {
        barrier_await(ring.small.empty[ring.at], ring.phase ^ 1);
        await_flight();
        char *to = ring.slot();
        if (l.w && j.width == 32)
            copy_slice<true>(to, l.w, l.line, j, i);
        else if (l.w)
            copy_slice<false>(to, l.w, l.line, j, i);
        else if (l.state)
            copy_bytes(to, l.state, state_bytes());
        else
            copy_loras(to, layer, h * N, i);
        async_arrive(ring.small.full[ring.at]);
        ring.next();
    }

    // All that the block reads in a step, in order. Every slot is filled here.
    __device__ void run() {
        int layer = 0;
#pragma unroll 1
        for (int work = DW_PROJECT;; go_on(work, layer, a.L)) {
            const decode_job &j = a.jobs[work];
            const bool recall = work == DW_RECALL, unwanted = work == DW_LOGITS && !a.logits;
            const bool listed = work == DW_VALUE && a.lists; // who computes reads it
            const int count = unwanted || listed ? 0 : b.count[j.part], loads = recall ? 2 : 1;
#pragma unroll 1
            for (int i = 0; i < loads * count; i++) {
                const int h = b.first[DP_RECALL] + i / 2; // if there is one
                const load l = !recall ? of_slice(work, layer, j, i)
                               : i % 2 ? of_state(layer, h)
                                       : of_loras();
#pragma unroll 1
                for (int n = 0; n < l.slots; n++) fill(l, j, layer, h, n);
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
        phase_barrier &done = ring.small.empty[ring.at];
        a.take(ring.take() + place, second, from);
        from += further;
        ring.next();
        if (left > STEP) b.take(ring.take() + place, second, from);
        a.multiply(sum, have);
        if (lane == 0) barrier_arrive(done);
        if (left <= STEP) break;
        b.multiply(sum, have - STEP);
        from += further;
        ring.give(lane);
    }
}

#endif // HOPPER
