// A token of one sequence, from its id to logits, in one launch: one block a multiprocessor, all of
// them there at once. Op by op it is eight launches a layer, which wait for each other 2.4 us each
// at 0.1b; here weights never stop coming (decode.cuh), and what is left of a launch is the way of
// a number from block to block.
//
// A layer is five works, each of which reads what other blocks have made of the one before:
//
//   project  LN1 and mixes; r, k, v and the LoRAs' first matrices
//   recall   a head: the LoRAs' second matrices, keys, the state, readout
//   output   on top of the residual stream
//   expand   LN2 and mix; key, relu²
//   value    on top of the residual stream
//
// A slice of outputs is one block's with all of its k, so a sum is finished where it is made and
// has the order, and the bits, of tensor.cu. The stream itself lies with the blocks that add to it;
// who has a norm to do gets all of it. A warp has a stretch of k, of inputs as of weights, so that
// between what it receives and its sums it waits for other warps only where a norm wants the whole
// row. What a work takes is how many instructions come one after the other, 5 clocks each: code is
// short, and everything is there once.
//
// H100, bf16, tok/s, op by op and in one launch: 0.1b 3,419 and 4,272, 0.4b 1,413 and 1,992, 1.5b,
// where the rows of ffn.value that are wanted are read apart (decode_listed.cuh), 821 and 951 with
// most of relu² zero, 714 and 797 with half of it. Rows together (0.1b, 2, 4, 8 of them: 6,778 and
// 5,837, 12,984 and 10,172, 24,156 and 17,476) and wider models (2.9b 424 and 373, 7.2b 231 and
// 136) lost, and go op by op.
#include "decode_listed.cuh"
#include "decode_recall.cuh"

namespace {

enum { PLACES = 2, SUM_PITCH = 32 }; // for sums of a slice; of a warp's in one of them

#ifdef HOPPER

// Of two columns: parameters of a norm and its first mix, and what was there a token before.
struct norm_lanes {
    float2 w, b, mix, before;
};

// LISTS: as decode_args has it; who has none has no code for them.
template <class E, bool LISTS> struct worker {
    // Pairs of columns a lane asks for ahead, and pairs of words that it waits for at a time.
    enum { SETS = 2, DEEP = 2 };

    const decode_args &a;
    char *shared;
    weight_ring ring;
    recalls<E> heads;
    const uint32_t base; // the tag before this launch's
    const int tid, warp, lane;
    unsigned summed = 0; // slices
    int unwritten = -1;  // which norm of which layer lies in x and not yet with the states

    __device__ worker(const decode_args &a, char *shared)
        : a(a), shared(shared), ring(shared, a), heads(a, shared), base(a.turns[blockIdx.x]),
          tid((int)threadIdx.x), warp(tid / 32), lane(tid % 32) {}

    __device__ decode_small &small() const { return *(decode_small *)(shared + a.small_at); }
    __device__ const decode_block &block() const { return small().block; }
    __device__ float *x() const { return (float *)(shared + a.x_at); } // (C) stream or norm of it
    __device__ float *own() const { return (float *)(shared + a.own_at); } // (…,width) of stream
    __device__ float *part() const { // (PLACES,16,SUM_PITCH) sums
        return (float *)(shared + a.part_at) + summed % PLACES * (WARPS * SUM_PITCH);
    }
    // This warp's inputs of products: (planes,row_pitch(len)).
    __device__ char *act() const { return shared + a.act_at + warp * a.act_pitch; }
    __device__ float *shift(int which) const { // one of the norms of the sequence's slot
        return a.shift + which * a.norm_stride + (size_t)small().slot * a.C;
    }
    __device__ void meet() const { group_barrier(ALL_MEET, CONSUMERS); }

    // ---- what others have made -----------------------------------------------------------------

    // n pairs of words. put(which of them, the words)
    template <class Put>
    __device__ void take_words(const uint64_t *from, int n, uint32_t tag, Put put) const {
#pragma unroll 1
        for (int p = lane; p - lane < n; p += 32 * DEEP) {
            bool missing[DEEP];
            two_words w[DEEP];
#pragma unroll
            for (int i = 0; i < DEEP; i++) missing[i] = p + 32 * i < n;
            receive(w, from + 2 * p, missing, tag);
#pragma unroll
            for (int i = 0; i < DEEP; i++)
                if (p + 32 * i < n) put(p + 32 * i, w[i]);
        }
    }

    // The stream as its blocks have left it. Whoever sees any of it knows that all have read the
    // norms of a token before that belong to what it was made of: these are written now.
    __device__ void take_stream(const stretch &k, uint32_t tag) {
        float *old = unwritten >= 0 ? shift(unwritten) + k.first : nullptr;
        float *mine = x() + k.first;
        take_words(a.x + k.first, k.have / 2, tag, [&](int p, const two_words &w) {
            float2 *to = (float2 *)mine + p;
            if (old) store_whole(old + 2 * p, *to);
            *to = make_float2(__uint_as_float(w.x), __uint_as_float(w.y));
        });
        unwritten = -1;
    }

    // Inputs that are rounded already.
    __device__ void take_pairs(const uint64_t *from, const stretch &k, uint32_t tag) const {
        take_words(from + k.first / 2, k.have / 4, tag, [&](int p, const two_words &w) {
            uint32_t *to = (uint32_t *)act() + pair_place(2 * p);
            to[0] = w.x;
            to[2] = w.y;
        });
        __syncwarp();
    }

    // As k_embed has it.
    __device__ int token_of() const {
        int token = a.token[0];
        if (token < 0) {
            if (-1 - token >= a.num_drawn) __trap();
            token = a.drawn[-1 - token];
        }
        if (token < 0 || token >= a.V) __trap();
        return token;
    }

    // The embedding: every block has the whole stream once.
    __device__ void look_up(const stretch &k) {
        const size_t row = (size_t)token_of() * a.C;
#pragma unroll 1
        for (int c = k.first + 2 * lane; c < k.first + k.have; c += 64) {
            const uint32_t pair = *(const uint32_t *)(a.embedding + row + c);
            *(float2 *)(x() + c) = make_float2(bf16_low(pair), bf16_high(pair));
        }
    }

    // ---- norms ---------------------------------------------------------------------------------

    // As norm.cu has them, of one warp or of eight: if all found them they would take each other's
    // turns. Read twice rather than kept. Loads are on their way together, for no branch lies
    // between them: where the row has ended they are of its end, and not counted.
    template <int GROUP> __device__ float2 moments_by() const {
        enum { LOADS = 3, STEP = 128 * GROUP };
        const float *row = x();
        const int C = a.C;
        float *const sums = &small().norm_sums[0][0];
        int round = 0;
        const auto each = [&](auto f, float none) {
#pragma unroll 1
            for (int c = 4 * (GROUP == 1 ? lane : tid); c < C; c += LOADS * STEP) {
                several<4> v[LOADS];
#pragma unroll
                for (int i = 0; i < LOADS; i++) v[i] = load<4>(row + least(c + i * STEP, C - 4));
#pragma unroll
                for (int i = 0; i < LOADS; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) f(c + i * STEP < C ? v[i][e] : none);
            }
        };
        const auto total = [&](float x) {
            x = warp_sum(x);
            if (GROUP == 1) return x;
            float *const all = sums + round++ * NORM_WARPS;
            if (lane == 0) all[warp] = x;
            group_barrier(NORM_MEET, 32 * GROUP);
            x = all[0];
#pragma unroll
            for (int w = 1; w < GROUP; w++) x += all[w];
            return x;
        };
        return moments_of(each, row[0], (float)C, a.eps, total);
    }
    __device__ void find_moments() {
        const bool wide = LISTS && a.C > WARP_ROW;
        if (wide ? warp < NORM_WARPS : warp == 0) {
            const float2 m = wide ? moments_by<NORM_WARPS>() : moments_by<1>();
            if (tid == 0) small().moments = m;
        }
        meet();
    }

    __device__ static float2 norm_of(float2 v, float2 m, float2 w, float2 shift) {
        return make_float2(normed(v.x, m, w.x, shift.x), normed(v.y, m, w.y, shift.y));
    }
    __device__ static float2 mixed_pair(float2 z, float2 before, float2 mix) {
        return make_float2(mixed(z.x, before.x - z.x, mix.x), mixed(z.y, before.y - z.y, mix.y));
    }

    // For this lane's two columns from c on, and 64 columns further on; as far as the warp has
    // some.
    __device__ void ask(norm_lanes (&n)[SETS], int work, int layer, int c, int end) const {
        const decode_job &j = a.jobs[work];
        const bool mixes = j.mix;
        const size_t at = (mixes ? layer * a.layer_stride : 0) + c;
        const float *w = j.w + at, *b = j.b + at, *mix = mixes ? j.mix + at : nullptr;
        const float *before = shift(2 * layer + (work == DW_EXPAND)) + c;
        const int first = work == DW_PROJECT ? block().mix[0] * a.C : 0;
        const int planes = work == DW_PROJECT ? block().planes : 1;
#pragma unroll
        for (int s = 0; s < SETS; s++) {
            if (c + 64 * s >= end) break;
            n[s].w = *(const float2 *)(w + 64 * s);
            n[s].b = *(const float2 *)(b + 64 * s);
            if (!mixes) continue;
            n[s].mix = *(const float2 *)(mix + first + 64 * s);
            n[s].before = *(const float2 *)(before + 64 * s);
#pragma unroll 1
            for (int plane = 1; plane < planes; plane++)
                prefetch(mix + block().mix[plane] * a.C + 64 * s);
        }
    }

    // Pair p of this warp's. keeps: the norm takes the stream's place.
    __device__ void put_norms(int work, int layer, const norm_lanes &n, const stretch &k, int p,
                              bool keeps) const {
        const bool mixes = work == DW_PROJECT || work == DW_EXPAND;
        const int c = k.first + 2 * p, pitch = row_pitch(k.len);
        char *to = act() + 4 * pair_place(p);
        float2 *at = (float2 *)(x() + c);
        const float2 z = norm_of(*at, small().moments, n.w, n.b);
        if (keeps) *at = z;
        const float2 v = mixes ? mixed_pair(z, n.before, n.mix) : z;
        *(uint32_t *)to = bf16_pair(v.x, v.y);
        if (work == DW_PROJECT && block().planes > 1)
            put_planes(layer, to + pitch, pitch, z, n.before, c);
    }
    // The mixes behind the first one.
    __device__ void put_planes(int layer, char *to, int pitch, float2 z, float2 before,
                               int c) const {
        const float *mixes = a.jobs[DW_PROJECT].mix + layer * a.layer_stride + c;
#pragma unroll 1
        for (int plane = 1; plane < block().planes; plane++, to += pitch) {
            const float2 mix = *(const float2 *)(mixes + block().mix[plane] * a.C),
                         v = mixed_pair(z, before, mix);
            *(uint32_t *)to = bf16_pair(v.x, v.y);
        }
    }

    // The norm that a work begins with, and its mixes.
    __device__ void norm_and_mix(int work, int layer, const stretch &k) {
        const int which = 2 * layer + (work == DW_EXPAND);
        const bool mixes = work == DW_PROJECT || work == DW_EXPAND;
        const bool keeps = work == DW_BEGIN || (mixes && block().writes[work == DW_EXPAND]);
        norm_lanes n[SETS] = {};
        const int c = k.first + 2 * lane, end = k.first + k.have;
        ask(n, work, layer, c, end); // while the stream is on its way
        if (work == DW_BEGIN)
            look_up(k);
        else if (which)
            take_stream(k, base + which);
        meet();
        find_moments(); // and after it nobody wants the stream any more
        if (keeps && mixes) unwritten = which;
#pragma unroll 1
        for (int p = lane; 2 * (p - lane) < k.have;) {
#pragma unroll
            for (int s = 0; s < SETS; s++)
                if (2 * (p + 32 * s) < k.have) put_norms(work, layer, n[s], k, p + 32 * s, keeps);
            p += 32 * SETS;
            if (2 * p < k.have) ask(n, work, layer, k.first + 2 * p, end);
        }
        __syncwarp();
    }

    // ---- products ------------------------------------------------------------------------------

    // Who adds up the block's i-th slice of a work, an output a lane.
    __device__ bool adds(int i) const {
        return warp == (i & (WARPS - 1));
    }

    // What of the stream is added to here, kept by who will.
    __device__ void keep_own() {
        const int width = a.width[DP_STREAM];
        meet();
#pragma unroll 1
        for (int i = 0; i < block().count[DP_STREAM]; i++)
            if (adds(i) && lane < width)
                own()[i * width + lane] = x()[(block().first[DP_STREAM] + i) * width + lane];
        meet();
    }

    // This warp's sums to where they are added up. Lanes of row 0 have them.
    __device__ void put_sums(const sums &sum, bool wide) const {
        if (lane & 3) return;
        float *to = part() + warp * SUM_PITCH + lane / 4;
#pragma unroll
        for (int s = 0; s < 2; s++)
            if (s == 0 || wide) to[16 * s] = sum[s][0], to[16 * s + 8] = sum[s][2];
    }

    // A sum over all stretches: those that are empty have put zeros, which change nothing.
    __device__ float total_of(int output) const {
        const float *from = part() + output;
        float v[WARPS], sum = 0;
#pragma unroll
        for (int s = 0; s < WARPS; s++) v[s] = from[s * SUM_PITCH];
#pragma unroll
        for (int s = 0; s < WARPS; s++) sum += v[s];
        return sum;
    }

    // What becomes of output o, and where it goes. All lanes of a warp come, neighbours have
    // neighbours, those who have none are not `in`.
    __device__ void put_output(int work, int matrix, float *mine, bool in, int o, float sum,
                               uint32_t tag) {
        static_assert(DM_W1 - DM_V1 == 1 && DM_A1 - DM_V1 == 2 && DM_G1 - DM_V1 == 3, "loras");
        if (work == DW_PROJECT ? matrix > DM_V : work == DW_EXPAND) {
            const int lora = matrix == DM_V1 ? LORA_V : matrix == DM_G1 ? LORA_G : matrix - DM_W1;
            const int act = work == DW_EXPAND ? A_RELU2
                            : lora == LORA_W  ? A_TANH
                            : lora == LORA_G  ? A_SIGMOID
                                              : A_NONE;
            sum = activate(sum, act);
            const float next = __shfl_down_sync(0xffffffffu, sum, 1);
            if (!in || o & 1) return;
            if (work == DW_EXPAND)
                put_word(a.h + o / 2, bf16_pair(sum, next), tag);
            else if (o < a.rank[lora])
                put_word(a.hidden + (a.rank_from[lora] + o) / 2, bf16_pair(sum, next), tag);
        } else if (!in) {
            return;
        } else if (work == DW_LOGITS) {
            if (o < a.V) a.logits[o] = sum;
        } else if (work == DW_PROJECT) {
            put_word(a.rkv + matrix * a.C + o, __float_as_uint(sum), tag);
        } else {
            *mine += sum;
            put_word(a.x + o, __float_as_uint(*mine), tag + (work == DW_VALUE));
        }
    }

    // All who have put sums meet those who add them up. Who goes on at once may be a slice ahead of
    // these, which therefore have another barrier and another place; it is never two ahead, for
    // what it would multiply then comes of this block's own sums. That holds from work to work, not
    // from slice to slice.
    __device__ void meet_for_sums(bool waits) const {
        const int id = SUMS_MEET + summed % PLACES;
        if (waits)
            group_barrier(id, CONSUMERS);
        else
            group_arrive(id, CONSUMERS);
    }

    // Nothing else is asked for while some of the block's warps wait for rows of ffn.value.
    __device__ void wait_for_rows(int more) const {
        if (lane == 0) atomicAdd(&small().reading, more);
    }
    // This warp's sums of a slice of ffn.value, by list.
    __device__ void add_listed(int layer, const slice &s, const stretch &k, const uint16_t *list,
                               int listed) const {
        const int pitch = a.value_pitch;
        const char *w = (const char *)(a.values[layer] + (size_t)k.first * pitch + s.o);
        add_wanted(part() + warp * SUM_PITCH, list, listed, act(), w, 2 * pitch);
    }

    // All slices of a work, whose inputs this warp has. s: the first one.
    __device__ void multiply(int work, int layer, int count, const decode_job &j, const stretch &k,
                             slice s) {
        const int width = j.width;
        const bool wide = width == 32, has = lane < 4; // row 0 of x
        const bool lists = LISTS && work == DW_VALUE;
        const uint32_t tag = base + 2 * layer + 1;
        uint16_t *const list = (uint16_t *)(shared + a.list_at + warp * a.list_pitch);
        if (lists) wait_for_rows(1);
        const int listed = lists ? list_wanted(list, act(), k.have) : 0;
#pragma unroll 1
        for (int i = 0; i < count; i++) {
            if (i) s = slice_of(a, shared, j, i);
            if (is_absent(s.matrix, layer)) {
                meet();
                continue;
            }
            if (lists) {
                add_listed(layer, s, k, list, listed);
                if (i + 1 == count) wait_for_rows(-1);
            } else {
                sums sum = {};
                const char *x = has ? act() + s.plane * row_pitch(k.len) : small().zeros;
                if (wide)
                    multiply_slice<true>(sum, ring, x, has, k);
                else
                    multiply_slice<false>(sum, ring, x, has, k);
                put_sums(sum, wide);
            }
            meet_for_sums(count > 1 || adds(i));
            if (adds(i)) {
                const bool in = lane < width;
                put_output(work, s.matrix, own() + i * width + lane, in, s.o + lane,
                           in ? total_of(lane) : 0, tag);
            }
            summed++;
        }
    }

    __device__ void recall(int layer) {
#pragma unroll 1
        for (int i = 0; i < block().count[DP_RECALL]; i++)
            heads.go(ring, layer, block().first[DP_RECALL] + i, i, base + 2 * layer + 1);
    }

    // A work that is products, or the norm before the first layer.
    __device__ void project(int work, int layer) {
        const decode_job &j = a.jobs[work];
        const bool begins = work == DW_BEGIN, ends = work == DW_LOGITS;
        const int count = begins || (ends && !a.logits) ? 0 : block().count[j.part];
        const stretch k(j, warp);
        slice first = {};
        if (count) first = slice_of(a, shared, j, 0); // before there is anything to wait for
        if (work == DW_OUTPUT || work == DW_VALUE) {
            if (count) take_pairs(work == DW_VALUE ? a.h : a.o, k, base + 2 * layer + 1);
        } else if (count || begins || (ends && unwritten >= 0)) {
            norm_and_mix(work, layer, k);
        }
        if (begins) keep_own();
        if (count) multiply(work, layer, count, j, k, first);
    }

    __device__ void run() {
        int layer = 0;
#pragma unroll 1
        for (int work = DW_BEGIN;; go_on(work, layer, a.L)) {
            if (work == DW_RECALL)
                recall(layer);
            else
                project(work, layer);
            if (work == DW_LOGITS) break;
        }
        if (tid == 0) a.turns[blockIdx.x] = base + 2 * a.L;
    }
};

#endif // HOPPER

template <class E, bool LISTS>
__global__ void __launch_bounds__(DECODE_THREADS, 1) decode(const __grid_constant__ decode_args a) {
#ifdef HOPPER
    begin_kernel();
    SHARED_BYTES(shared);
    decode_small &small = *(decode_small *)(shared + a.small_at);
    if (threadIdx.x < sizeof small.zeros / 4) ((uint32_t *)small.zeros)[threadIdx.x] = 0;
    if (threadIdx.x == 0) small.slot = a.slot[0], small.reading = 0;
    if (threadIdx.x < sizeof small.block / 4)
        ((uint32_t *)&small.block)[threadIdx.x] =
            ((const uint32_t *)(a.blocks + blockIdx.x))[threadIdx.x];
    if (threadIdx.x == CONSUMERS) {
#pragma unroll 1
        for (int i = 0; i < a.slots; i++) {
            barrier_init(small.full[i], 1);
            barrier_init(small.empty[i], WARPS);
        }
        barriers_ready();
    }
    __syncthreads();
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < small.block.count[DP_PROJECT]; i += DECODE_THREADS)
        find_mixed_slice(a, shared, i);
    __syncthreads();
    if (threadIdx.x < CONSUMERS)
        worker<E, LISTS>(a, shared).run();
    else if (threadIdx.x == CONSUMERS)
        filler(a, shared).run();
#else
    __trap();
#endif
}

} // namespace

int k_decode_stretch(int K) {
    return stretch_of(K);
}

void k_decode_lay_out(struct decode_args *a, const int *most_pieces, int most_planes) {
    int at = 0;
    const auto carve = [&](int bytes) {
        const int begin = at;
        at += (bytes + 127) / 128 * 128;
        return begin;
    };
    const int inputs = most_planes * row_pitch(stretch_of(a->C)),
              wide = row_pitch(stretch_of(4 * a->C));
    a->act_pitch = most(inputs, wide);
    a->x_at = carve(a->C * 4);
    a->act_at = carve(WARPS * a->act_pitch);
    a->part_at = carve(PLACES * WARPS * SUM_PITCH * 4);
    a->own_at = carve(most_pieces[DP_STREAM] * a->width[DP_STREAM] * 4);
    a->first_at = carve(most_pieces[DP_RECALL] * N * 4);
    a->room_at = carve((int)sizeof(recall_room));
    a->hidden_at = carve(row_pitch(a->ranks));
    a->list_pitch = a->lists ? (2 * stretch_of(4 * a->C) + 15) / 16 * 16 : 0;
    a->list_at = carve(WARPS * a->list_pitch);
    a->slices_at = carve(most_pieces[DP_PROJECT] * (int)sizeof(mixed_slice));
    a->small_at = carve((int)sizeof(decode_small));
    const int left = DECODE_SHARED - at;
    a->slots = left > 0 ? left / DECODE_SLOT : 0;
    if (a->slots > DECODE_SLOTS) a->slots = DECODE_SLOTS;
    const int ring = a->slots * DECODE_SLOT;
    int *const places[] = {&a->x_at,    &a->act_at,    &a->part_at, &a->own_at,    &a->first_at,
                           &a->room_at, &a->hidden_at, &a->list_at, &a->slices_at, &a->small_at};
    for (int *place : places) *place += ring;
    a->shared = ring + at;
}

typedef void (*decode_kernel)(decode_args);
template <class E> static decode_kernel kernel_of(bool lists) {
    return lists ? (decode_kernel)decode<E, true> : (decode_kernel)decode<E, false>;
}
static decode_kernel kernel_of(bool half, bool lists) {
    return half ? kernel_of<uint16_t>(lists) : kernel_of<float>(lists);
}

void k_decode(struct queue *s, const struct decode_args *a) {
    const launch_shape shape = {(unsigned)a->grid, DECODE_THREADS, (size_t)a->shared, WHOLE_GRID};
    launch_shaped(s, kernel_of(a->half, a->lists), shape, *a);
}

int k_decode_blocks(int device) {
#ifdef CUDA_EMU
    (void)device;
    return 3;
#else
    int shared = 0, cooperative = 0;
    bool can =
        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
            cudaSuccess &&
        cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device) == cudaSuccess &&
        cooperative && shared >= DECODE_SHARED;
    for (int which = 0; which < 4 && can; which++) {
        const void *kernel = (const void *)kernel_of(which & 1, which & 2);
        int blocks = 0;
        can = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   DECODE_SHARED) == cudaSuccess &&
              cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, DECODE_THREADS,
                                                            DECODE_SHARED) == cudaSuccess &&
              blocks >= 1;
    }
    return can ? processors() : 0;
#endif
}
