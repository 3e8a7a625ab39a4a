// attention_sm90 - softmax(q k^T / sqrt(d)) v and its log-sum-exp with wgmma and bulk copies, for heads of 40, 64, 80
// and 160 channels: attention_mma.cu for sm_90a, without causal masks.
//
//     s[i, j] = <q_i, k_j> / sqrt(d)
//     o[i]    = sum_j exp(s[i, j] - lse[i]) v_j      lse[i] = log sum_j exp(s[i, j])
//
// A block stays on its multiprocessor and takes item after item: 128 queries of one head, 64 of each of the two
// warpgroups that multiply. One elected thread of the last warpgroup brings the queries, and tiles of KEYS keys and
// values through a ring of stages, as mainloop_sm90.cuh does; it is ahead by whole items where sequences are short.
// Tiles go through the ring in the order in which they are wanted: k0, k1, v0, k2, v1, ..., the last v.
//
// A warpgroup issues s of tile j + 1 and then o += p v of tile j, waits for s alone, and makes weights of it while
// the other product still runs; p is an operand as it lies in the registers. The two groups issue in turns, so that
// one multiplies while the other one makes weights.
//
// Heads are as wide as they are: a copy's box has 64 or 32 channels of one head, and channels are a dimension of their
// own in the map, so that what a box has beyond the head's end is zeros, which no copy fetches. Of 40 channels s takes
// 48, since its depth comes by 16, the last eight of them such zeros, and o takes 40, five of the eight chunks of a
// row. 80 and 160 lie as spans of 32 channels, 40 and 64 as one of 64, each [rows, span] and swizzled by its row.
//
// Departures from the formula, for speed or safety:
//   1. Exponents are of 2: log2(e) / sqrt(d) is folded into one multiplication before the exponential.
//   2. The maximum of the tiles seen so far stands for lse; sums are rescaled when it grows.
//   3. Keys beyond the end have the lowest score, and by that a weight below 2^-125 beside a value of zero; rows
//      beyond the last query are zeros and not stored.
//   4. Of heads of up to 64, whose products take no longer than their exponentials, every eighth exponential is a
//      polynomial on the units that multiply and add: within 1.1e-4 of itself, a fifth of what rounding to f16 may
//      take; 2^0 is 1. More of them would fill the issue slots, which are the next bound.
//
// The order of all sums depends on u and d alone. Tokens are `*_row` elements apart, so that q, k and v can be slices
// of one product. Written by the rules of the ISA and run on the SIMT layer; its speed is not measured.
//
// Reference: src/cpu/attention.rs. Class: contracted. Bound by: tensor cores; for d = 40 the exponentials as much.
#include "params_sm90.cuh"
#include "ring_sm90.cuh"
#include "fragments.cuh"

namespace attention_sm90 {

constexpr int THREADS = CONSUMERS + 128;
constexpr int QUERIES = 128;  // of an item: 64 of each consumer warpgroup
constexpr int TURN = 1;       // and TURN + 1: barriers of the consumers, one for the turns of each warpgroup
constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.69314718055994531f;

template <int D, int KEYS>
struct Sizes {
    static_assert(D % 8 == 0 && KEYS % 16 == 0, "whole chunks of channels, whole products of keys");
    static constexpr int SPAN = D <= 64 ? 64 : 32;  // channels in a row of shared memory
    static constexpr int SPANS = (D + SPAN - 1) / SPAN;
    static constexpr int ROW = SPAN * 2;            // bytes of such a row
    static constexpr Swizzle SWIZZLE = SPAN == 64 ? SWIZZLE_128 : SWIZZLE_64;
    static constexpr int Q_BYTES = QUERIES * SPANS * ROW, TILE_BYTES = KEYS * SPANS * ROW;
    static constexpr int STAGES = D <= 80 ? 6 : 4, Q_STAGES = D <= 80 || KEYS < 128 ? 2 : 1;
    static constexpr bool POLYNOMIAL = D <= 64;  // for some of the exponentials

    struct Smem {
        alignas(1024) unsigned char q[Q_STAGES][Q_BYTES];
        alignas(1024) unsigned char ring[STAGES][TILE_BYTES];
        uint64_t q_full[Q_STAGES], q_empty[Q_STAGES], full[STAGES], empty[STAGES];
    };
};
template <typename T, int D, int KEYS>
__device__ constexpr int shared_bytes() {
    return sizeof(typename Sizes<D, KEYS>::Smem);
}

// Items are counted tiles of queries first, so that blocks which run together read the same keys.
struct Item {
    int query, head, image;

    DEVICE_MEMBER Item(const AttentionSm90Params& p, int number) {
        const int tiles = (p.t + QUERIES - 1) / QUERIES;
        query = number % tiles * QUERIES;
        head = number / tiles % p.heads;
        image = number / tiles / p.heads;
    }
    static DEVICE_MEMBER int count(const AttentionSm90Params& p) {
        return (p.t + QUERIES - 1) / QUERIES * p.heads * p.n;
    }
};

// ROWS tokens of one head of an image from `token` on, span by span.
template <typename S, int ROWS>
DEVICE void copy(uint32_t to, const TensorMap& map, uint32_t full, int token, int head, int image) {
#pragma unroll
    for (int span = 0; span < S::SPANS; ++span)
        cp_async_bulk_tensor_4d(to + span * ROWS * S::ROW, map, full, span * S::SPAN, head, token, image);
}

// All copies of a block's items, by one thread.
template <int D, int KEYS>
DEVICE void producer(const AttentionSm90Params& p, typename Sizes<D, KEYS>::Smem& smem) {
    typedef Sizes<D, KEYS> S;
    auto queries = Ring<S::Q_STAGES>::at(smem.q_full, smem.q_empty);
    auto ring = Ring<S::STAGES>::at(smem.full, smem.empty);
    const int steps = (p.u + KEYS - 1) / KEYS;
    const auto bring = [&](const TensorMap& map, int step, const Item& item) {
        const uint32_t to = cvta_to_shared(smem.ring[ring.stage]);
        copy<S, KEYS>(to, map, ring.fill(S::TILE_BYTES), step * KEYS, item.head, item.image);
        ring.advance();
    };
#pragma unroll 1
    for (int number = blockIdx.x; number < Item::count(p); number += gridDim.x) {
        const Item item(p, number);
        const int q_image = p.q_images != 0 ? item.image % p.q_images : item.image;
        const uint32_t to = cvta_to_shared(smem.q[queries.stage]);
        copy<S, QUERIES>(to, p.q_map, queries.fill(S::Q_BYTES), item.query, item.head, q_image);
        queries.advance();
        bring(p.k_map, 0, item);
#pragma unroll 1
        for (int step = 1; step < steps; ++step) {
            bring(p.k_map, step, item);
            bring(p.v_map, step - 1, item);
        }
        bring(p.v_map, steps - 1, item);
    }
}

// What a thread knows of its two queries, rows lane / 4 and 8 more of its warp's 16.
template <int D>
struct Rows {
    float o[D / 2];                      // as wgmma_m64k16 leaves it
    float highest[2], total[2], shrink[2];  // of base 2; total: this lane's columns alone; shrink: by the last tile
};

// s = q k^T of one tile of keys, on its way when this returns.
template <typename T, typename S, int D, int KEYS>
DEVICE void scores(float (&s)[KEYS / 2], uint64_t q, uint64_t k) {
    wgmma_fence();
#pragma unroll
    for (int channel = 0; channel < D; channel += 16) {
        const int span = channel / S::SPAN, within = channel % S::SPAN * 2;
        wgmma_m64k16<K_MAJOR, K_MAJOR>(s, behind(q, span * QUERIES * S::ROW + within),
                                       behind(k, span * KEYS * S::ROW + within), channel > 0, T{});
    }
    wgmma_commit_group();
}

// o += p v for one tile of keys, or o = p v; on its way when this returns.
template <typename T, typename S, int D, int KEYS>
DEVICE void add_values(float (&o)[D / 2], const uint32_t (&weights)[KEYS / 16][4], uint64_t v, bool adds) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; ++i)
        wgmma_m64k16<MN_MAJOR>(o, weights[i], behind(v, i * 16 * S::ROW), adds || i > 0, T{});
    wgmma_commit_group();
}

// 2^x for x <= 0 by multiplications and additions: x = n + f with |f| <= 1/2, a polynomial of f, n to its exponent.
// Within 1.1e-4 of itself; below 2^-125 it stays there.
DEVICE float ex2_polynomial(float x) {
    constexpr float WHOLE = 12582912.f;  // 1.5 2^23: what is added to it loses its fraction, and n is its last bits
    x = fmaxf(x, -125.f);
    const float shifted = x + WHOLE, f = x - (shifted - WHOLE);
    const float y = ((0.05500893618f * f + 0.24221099869f) * f + 0.69328293090f) * f + 1.f;
    return bits_as_f32(f32_as_bits(y) + (f32_as_bits(shifted) << 23));
}

// Scores become weights of base 2; the maxima and totals follow. The tile has `keys` keys or more.
template <int D, int KEYS, bool POLYNOMIAL>
DEVICE void softmax(Rows<D>& rows, float (&s)[KEYS / 2], float scale, int keys) {
    if (keys < KEYS) {
#pragma unroll
        for (int i = 0; i < KEYS / 2; ++i)
            if (i / 4 * 8 + fragments::column() + i % 2 >= keys) s[i] = fragments::LOWEST;
    }
    float highest[2] = {s[0], s[2]};
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) highest[i / 2 % 2] = fmaxf(highest[i / 2 % 2], s[i]);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        highest[h] = fmaxf(highest[h], shuffle_xor(highest[h], 1));
        highest[h] = fmaxf(highest[h], shuffle_xor(highest[h], 2));
        highest[h] = fmaxf(highest[h] * scale, rows.highest[h]);
        rows.shrink[h] = ex2_approx_ftz_f32(rows.highest[h] - highest[h]);
        rows.highest[h] = highest[h];
        rows.total[h] *= rows.shrink[h];
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
        const float x = s[i] * scale - highest[i / 2 % 2];
        // Of every 32 keys four, the same for all queries.
        const bool by_polynomial = POLYNOMIAL && i / 4 % 4 == 1 && i % 2 == 1;
        s[i] = by_polynomial ? ex2_polynomial(x) : ex2_approx_ftz_f32(x);
        rows.total[i / 2 % 2] += s[i];
    }
}

// o and lse of the rows that there are; `first` is the first query of this thread's warp.
template <typename T, int D>
DEVICE void store(const AttentionSm90Params& p, const Item& item, const Rows<D>& rows, int first) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float total = rows.total[h];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        const int query = first + h * 8 + fragments::row();
        if (query >= p.t) continue;
        const float inverse = 1.f / total;
        T* o = p.o.as<T>() + (int64_t(item.image) * p.t + query) * p.o_row + item.head * D;           // [D]
        float* lse = p.lse.as<float>() + (int64_t(item.image) * p.heads + item.head) * p.t + query;  // [1]
        uint32_t* to = reinterpret_cast<uint32_t*>(o + fragments::column());
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
            to[j * 4] = rounded_pair(T{}, rows.o[j * 4 + h * 2] * inverse, rows.o[j * 4 + h * 2 + 1] * inverse);
        if (fragments::column() == 0) *lse = rows.highest[h] * LN_2 + logf(total);
    }
}

// Both warpgroups, 64 queries of every item each.
template <typename T, int D, int KEYS>
DEVICE void consumer(const AttentionSm90Params& p, typename Sizes<D, KEYS>::Smem& smem) {
    typedef Sizes<D, KEYS> S;
    auto queries = Ring<S::Q_STAGES>::at(smem.q_full, smem.q_empty);
    auto ring = Ring<S::STAGES>::at(smem.full, smem.empty);
    const int group = threadIdx.x / 128, steps = (p.u + KEYS - 1) / KEYS;
    const float scale = LOG2_E / sqrtf(float(D));
    const auto keys = [&](int stage) {
        return wgmma_descriptor(cvta_to_shared(smem.ring[stage]), 16, 8 * S::ROW, S::SWIZZLE);
    };
    const auto values = [&](int stage) {
        return wgmma_descriptor(cvta_to_shared(smem.ring[stage]), KEYS * S::ROW, 8 * S::ROW, S::SWIZZLE);
    };
    // The first turn is that of the first group.
    if (group == 1) bar_arrive(TURN, CONSUMERS);
#pragma unroll 1
    for (int number = blockIdx.x; number < Item::count(p); number += gridDim.x) {
        const Item item(p, number);
        const uint32_t of_group = cvta_to_shared(smem.q[queries.stage]) + group * 64 * S::ROW;
        const uint64_t q = wgmma_descriptor(of_group, 16, 8 * S::ROW, S::SWIZZLE);
        Rows<D> rows;
        float s[KEYS / 2];
        uint32_t weights[KEYS / 16][4];
        for (int h = 0; h < 2; ++h) rows.highest[h] = fragments::LOWEST, rows.total[h] = 0.f;

        // 1. The weights of the first tile.
        queries.wait();
        ring.wait();
        scores<T, S, D, KEYS>(s, q, keys(ring.stage));
        wgmma_wait_group<0>();
        keep_registers(s);
        ring.release(ring.stage);
        ring.advance();
        softmax<D, KEYS, S::POLYNOMIAL>(rows, s, scale, p.u);
        as_operand<T>(weights, s);
        ring.wait();

        // 2. The weights of every other tile, while those of the tile before are multiplied.
#pragma unroll 1
        for (int step = 1; step < steps; ++step) {
            const int k = ring.stage;
            ring.advance();
            bar_sync(TURN + group, CONSUMERS);
            scores<T, S, D, KEYS>(s, q, keys(k));
            ring.wait();
            add_values<T, S, D, KEYS>(rows.o, weights, values(ring.stage), step > 1);
            bar_arrive(TURN + (1 - group), CONSUMERS);
            wgmma_wait_group<1>();
            keep_registers(s);
            ring.release(k);
            softmax<D, KEYS, S::POLYNOMIAL>(rows, s, scale, p.u - step * KEYS);
            const int v = ring.stage;
            ring.advance();
            // Between the weights and the wait for the other product, so that no compiler puts that first.
            ring.wait();
            wgmma_wait_group<0>();
            keep_registers(rows.o);
            ring.release(v);
#pragma unroll
            for (int i = 0; i < D / 2; ++i) rows.o[i] *= rows.shrink[i / 2 % 2];
            as_operand<T>(weights, s);
        }
        queries.release(queries.stage);
        queries.advance();

        // 3. The values of the last tile, and the rows.
        add_values<T, S, D, KEYS>(rows.o, weights, values(ring.stage), steps > 1);
        wgmma_wait_group<0>();
        keep_registers(rows.o);
        ring.release(ring.stage);
        ring.advance();
        store<T, D>(p, item, rows, item.query + threadIdx.x / 32 * 16);
    }
    // The turn that is left to it.
    if (group == 0) bar_sync(TURN, CONSUMERS);
}

template <typename T, int D, int KEYS>
__device__ void run(const AttentionSm90Params& p) {
    typedef Sizes<D, KEYS> S;
    KERNEL_ASSERT(blockDim.x == THREADS && p.d == D && p.u >= 1);
    DYNAMIC_SHARED(typename S::Smem, smem);
    if (threadIdx.x == 0) {
        Ring<S::Q_STAGES>::at(smem.q_full, smem.q_empty).initialise();
        Ring<S::STAGES>::at(smem.full, smem.empty).initialise();
        fence_mbarrier_init();
    }
    follow_launch_in_front();
    sync_block();
    if (threadIdx.x >= PRODUCER) {
        setmaxnreg_dec<24>();
        if (threadIdx.x < PRODUCER + 32 && elect_one()) producer<D, KEYS>(p, smem);
        return;
    }
    setmaxnreg_inc<240>();
    consumer<T, D, KEYS>(p, smem);
}

}  // namespace attention_sm90
