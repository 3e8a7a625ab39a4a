// attention_mma - softmax(q k^T / sqrt(d)) v and its log-sum-exp, for heads of 40, 64, 80 and 160 channels.
//
//     s[i, j] = <q_i, k_j> / sqrt(d)             causal: j <= i
//     o[i]    = sum_j exp(s[i, j] - lse[i]) v_j      lse[i] = log sum_j exp(s[i, j])
//
// A block has four warps with 16 or 32 queries each, and goes through the keys in tiles. A warp keeps its queries'
// rows of everything in registers: the scores of one tile, the running maximum and total, and the sums o.
// The scores of a tile, rounded to T, are the left operand of the second product as they lie.
//
// Departures from the formula, for speed or safety:
//   1. Exponents are of 2: log2(e) / sqrt(d) is folded into one multiplication before the exponential.
//   2. The maximum of the tiles seen so far stands for lse; sums are rescaled when it grows. Key 0 is seen by
//      every query and comes first, so the maximum is finite from the first tile on.
//   3. Keys beyond the end, or hidden, have the lowest score, and by that weight zero. Tiles that hide all keys are
//      left out: they would multiply the sums by one and add zero.
//   4. d = 40 is 48 in shared memory and in the first product, where depth comes by 16; o has 40.
//
// K and V have three stages: what a step loads goes where the step before last read, so one barrier a tile is
// enough. Tiles have 64 keys; 32 for wide heads, which by that fit the 99 KiB of the smallest devices and registers.
// The order of all sums depends on u and d alone. Tokens are `*_row` elements apart, so that q, k and v can be
// slices of one product.
//
// Reference: src/cpu/attention.rs. Class: contracted. Bound by: mma, for d = 40 by the exponentials.
#include "params.cuh"
#include "fragments.cuh"

namespace attention_mma {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int STAGES = 3;
constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.69314718055994531f;

template <int D>
struct Sizes {
    static_assert(D % 8 == 0, "whole chunks");
    static constexpr int M = D <= 64 ? 2 : 1;  // tiles of 16 queries a warp; for wide heads registers end at one
    static constexpr int QUERIES = WARPS * M * 16;
    static constexpr int KEYS = D <= 64 ? 64 : 32;
    static constexpr int CHUNKS = (D + 15) / 16 * 2;
};

template <int D>
struct Smem {
    typedef Sizes<D> S;
    fragments::Chunk q[S::QUERIES * S::CHUNKS];
    fragments::Chunk k[STAGES][S::KEYS * S::CHUNKS];
    fragments::Chunk v[STAGES][S::KEYS * S::CHUNKS];
};
template <typename T, int D>
DEVICE constexpr int shared_bytes() {
    return sizeof(Smem<D>);
}

// What a warp knows about its queries. Rows of a lane: 16 m + 8 h + fragments::row().
template <int D>
struct Rows {
    typedef Sizes<D> S;
    float o[S::M][D / 8][4];
    float highest[S::M][2], total[S::M][2];  // of base 2; total: this lane's columns alone
};

// s = q k^T for one tile of keys.
template <typename T, int D>
DEVICE void scores(float (&s)[Sizes<D>::M][Sizes<D>::KEYS / 8][4], uint32_t q, uint32_t k) {
    typedef Sizes<D> S;
    const int first = threadIdx.x / 32 * S::M * 16;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int j = 0; j < S::KEYS / 8; ++j) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0.f;
#pragma unroll
    for (int chunk = 0; chunk < S::CHUNKS; chunk += 2) {
        uint32_t a[S::M][4];
#pragma unroll
        for (int m = 0; m < S::M; ++m) fragments::read_a<S::CHUNKS>(a[m], q, first + m * 16, chunk);
#pragma unroll
        for (int j = 0; j < S::KEYS / 8; j += 2) {
            uint32_t b[2][2];
            fragments::read_b<S::CHUNKS>(b, k, j * 8, chunk);
#pragma unroll
            for (int m = 0; m < S::M; ++m) {
                mma_m16n8k16(s[m][j], a[m], b[0], T{});
                mma_m16n8k16(s[m][j + 1], a[m], b[1], T{});
            }
        }
    }
}

// Scores become weights; maxima, totals and sums follow. `keys` and `ahead` bound what a row sees: column j of the
// tile if j < keys and, where it is causal, j <= ahead + row.
template <int D>
DEVICE void softmax(Rows<D>& rows, float (&s)[Sizes<D>::M][Sizes<D>::KEYS / 8][4], float scale, int keys, int ahead,
                    bool causal) {
    typedef Sizes<D> S;
    const bool whole = keys >= S::KEYS && (!causal || ahead >= S::KEYS - 1);
#pragma unroll
    for (int m = 0; m < S::M; ++m) {
        if (!whole)
            fragments::hide(s[m], [&](int row, int column) {
                return column < keys && (!causal || column <= ahead + m * 16 + row);
            });
        float highest[2] = {fragments::LOWEST, fragments::LOWEST};
#pragma unroll
        for (int j = 0; j < S::KEYS / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) highest[i / 2] = fmaxf(highest[i / 2], s[m][j][i]);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            highest[h] = fmaxf(highest[h], shuffle_xor(highest[h], 1));
            highest[h] = fmaxf(highest[h], shuffle_xor(highest[h], 2));
            highest[h] = fmaxf(highest[h] * scale, rows.highest[m][h]);
            const float shrink = ex2_approx_ftz_f32(rows.highest[m][h] - highest[h]);
            rows.highest[m][h] = highest[h];
            rows.total[m][h] *= shrink;
#pragma unroll
            for (int j = 0; j < D / 8; ++j) {
                rows.o[m][j][h * 2] *= shrink;
                rows.o[m][j][h * 2 + 1] *= shrink;
            }
        }
#pragma unroll
        for (int j = 0; j < S::KEYS / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                s[m][j][i] = ex2_approx_ftz_f32(s[m][j][i] * scale - highest[i / 2]);
                rows.total[m][i / 2] += s[m][j][i];
            }
    }
}

// o += p v for one tile of keys.
template <typename T, int D>
DEVICE void add_values(Rows<D>& rows, const float (&p)[Sizes<D>::M][Sizes<D>::KEYS / 8][4], uint32_t v) {
    typedef Sizes<D> S;
#pragma unroll
    for (int key = 0; key < S::KEYS; key += 16) {
        uint32_t a[S::M][4];
#pragma unroll
        for (int m = 0; m < S::M; ++m) fragments::as_a<T>(a[m], p[m][key / 8], p[m][key / 8 + 1]);
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            uint32_t b[2][2];
            fragments::read_b_across<S::CHUNKS>(b, v, key, j);
#pragma unroll
            for (int m = 0; m < S::M; ++m) {
                mma_m16n8k16(rows.o[m][j], a[m], b[0], T{});
                if (j + 1 < D / 8) mma_m16n8k16(rows.o[m][j + 1], a[m], b[1], T{});
            }
        }
    }
}

// o and lse of the rows that there are.
template <typename T, int D>
DEVICE void store(const AttentionParams& p, Rows<D>& rows, T* o, float* lse, int first) {
    typedef Sizes<D> S;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float total = rows.total[m][h];
            total += shuffle_xor(total, 1);
            total += shuffle_xor(total, 2);
            const int query = first + m * 16 + h * 8 + fragments::row();
            if (query >= p.t) continue;
            const float inverse = 1.f / total;
            uint32_t* to = reinterpret_cast<uint32_t*>(o + int64_t(query) * p.o_row + fragments::column());
#pragma unroll
            for (int j = 0; j < D / 8; ++j)
                to[j * 4] = rounded_pair(T{}, rows.o[m][j][h * 2] * inverse, rows.o[m][j][h * 2 + 1] * inverse);
            if (fragments::column() == 0) lse[query] = rows.highest[m][h] * LN_2 + logf(total);
        }
}

template <typename T, int D>
__device__ void run(const AttentionParams& p) {
    typedef Sizes<D> S;
    KERNEL_ASSERT(blockDim.x == THREADS && p.d == D && p.u >= 1);
    DYNAMIC_SHARED(Smem<D>, smem);
    const int64_t n = blockIdx.z;
    const int head = blockIdx.y, block_query = blockIdx.x * S::QUERIES, warp = threadIdx.x / 32;
    const int64_t q_image = p.q_images != 0 ? blockIdx.z % p.q_images : n;
    const T* q = p.q.as<T>() + (q_image * p.t + block_query) * p.q_row + head * D;  // [QUERIES or less, D of q_row]
    const T* k = p.k.as<T>() + n * p.u * p.k_row + head * D;                        // [u, D of k_row]
    const T* v = p.v.as<T>() + n * p.u * p.v_row + head * D;                        // [u, D of v_row]
    T* o = p.o.as<T>() + n * p.t * p.o_row + head * D;                              // [t, D of o_row]
    float* lse = p.lse.as<float>() + (n * p.heads + head) * p.t;                    // [t]
    const float scale = LOG2_E / sqrtf(float(D));
    const int keys = p.causal && block_query + S::QUERIES < p.u ? block_query + S::QUERIES : p.u;
    const int steps = (keys + S::KEYS - 1) / S::KEYS;
    const uint32_t q_tile = cvta_to_shared(smem.q);

    // 1. The queries and the first tiles of keys are on their way.
    const auto load = [&](int step) {
        const int key = step * S::KEYS, stage = step % STAGES;
        if (step < steps) {
            fragments::copy<S::KEYS, S::CHUNKS, THREADS>(cvta_to_shared(smem.k[stage]), k + int64_t(key) * p.k_row,
                                                         p.k_row, p.u - key, D / 8);
            fragments::copy<S::KEYS, S::CHUNKS, THREADS>(cvta_to_shared(smem.v[stage]), v + int64_t(key) * p.v_row,
                                                         p.v_row, p.u - key, D / 8);
        }
        cp_async_commit_group();
    };
    fragments::copy<S::QUERIES, S::CHUNKS, THREADS>(q_tile, q, p.q_row, p.t - block_query, D / 8);
    for (int step = 0; step < STAGES - 1; ++step) load(step);

    Rows<D> rows;
#pragma unroll
    for (int m = 0; m < S::M; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) rows.highest[m][h] = fragments::LOWEST, rows.total[m][h] = 0.f;
#pragma unroll
        for (int j = 0; j < D / 8; ++j) rows.o[m][j][0] = rows.o[m][j][1] = rows.o[m][j][2] = rows.o[m][j][3] = 0.f;
    }

    // 2. Tile after tile of keys. Behind the barrier all have this one, and nobody reads the one before.
    const int first = block_query + warp * S::M * 16;  // this warp's queries begin here
    for (int step = 0; step < steps; ++step) {
        cp_async_wait_group<STAGES - 2>();
        sync_block();
        load(step + STAGES - 1);
        const int key = step * S::KEYS, stage = step % STAGES;
        if (p.causal && key >= first + S::M * 16) continue;  // hidden from the whole warp
        float s[S::M][S::KEYS / 8][4];
        scores<T, D>(s, q_tile, cvta_to_shared(smem.k[stage]));
        softmax<D>(rows, s, scale, p.u - key, first - key, p.causal != 0);
        add_values<T, D>(rows, s, cvta_to_shared(smem.v[stage]));
    }

    // 3. The rows.
    store<T, D>(p, rows, o, lse, first);
}

}  // namespace attention_mma
