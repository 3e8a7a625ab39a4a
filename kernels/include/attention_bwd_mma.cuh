// attention_bwd_mma.cuh - what attention_bwd_dq.cu and attention_bwd_dkv.cu share: the gradient of attention for heads
// of 40, 64, 80 and 160 channels.
//
// Two kernels, so that every row of a gradient has one owner, which adds in order: nothing is atomic. A block has 64
// rows, 16 a warp, of two tensors that are read together (q and do, or k and v), and lets tiles of the other pair go
// by. The first products of a tile are, rounded to T, the left operands of the next ones as they lie in registers.
//
//   1. Exponents are of 2: log2(e) / sqrt(d) is folded into one multiplication before the exponential.
//   2. p is kept 2^BOOST times as large: a row of thousands of weights would be below f16's normal numbers.
//   3. ds is kept without 1 / sqrt(d) and with do scaled by a power of two, that of the largest |do| of the row
//      (dq) or of the head (dk): gradients of any size have their digits. The factor goes where f32 is stored.
//   4. What is beyond the end or hidden has the lowest score, and by that p = 0. Tiles in which all is hidden are
//      left out.
//   5. d = 40 is 48 in shared memory and where channels are the depth of a product.
//
// Three stages, so that one barrier a tile is enough. Tiles shrink with d, since registers hold 2 d sums a row for
// dk and dv. The order of all sums depends on t or u, and d alone.
#pragma once
#include "params.cuh"
#include "scaling.cuh"
#include "fragments.cuh"

namespace attention_bwd_mma {

constexpr int THREADS = 128;
constexpr int STAGES = 3;
constexpr int BOOST = 10;
constexpr float LOG2_E = 1.44269504088896341f;

template <int D>
struct Sizes {
    static_assert(D % 8 == 0, "whole chunks");
    static constexpr int OWN = THREADS / 32 * 16;                   // rows of the block
    static constexpr int OTHER = D <= 64 ? 64 : D <= 80 ? 32 : 16;  // rows of a tile that goes by
    static constexpr int CHUNKS = (D + 15) / 16 * 2;
    static constexpr int PARTS = D <= 80 ? 1 : 2;  // of keys: blocks that share the channels of one tile's dk and dv
    static constexpr int PART = D / PARTS;         // channels of such a block
};

// For dq: own q and do, others k and v. For dk and dv: own k and v, others q and do.
template <int D>
struct Smem {
    typedef Sizes<D> S;
    fragments::Chunk own[2][S::OWN * S::CHUNKS];
    fragments::Chunk other[STAGES][2][S::OTHER * S::CHUNKS];
};
template <typename T, int D>
DEVICE constexpr int shared_bytes() {
    return sizeof(Smem<D>);
}

// A head's tokens: two tensors that are read together.
template <typename T>
struct Pair {
    const T* x[2];  // [rows, D of stride]
    int stride[2];
    int rows;
};

// Two tiles of ROWS rows from `first` on.
template <int ROWS, int D, typename T>
DEVICE void copy_pair(fragments::Chunk (&to)[2][ROWS * Sizes<D>::CHUNKS], const Pair<T>& from, int first) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
        fragments::copy<ROWS, Sizes<D>::CHUNKS, THREADS>(cvta_to_shared(to[i]),
                                                         from.x[i] + int64_t(first) * from.stride[i], from.stride[i],
                                                         from.rows - first, D / 8);
}

// x y^T for this warp's 16 rows of x and all rows of y.
template <typename T, int D>
DEVICE void multiply(float (&out)[Sizes<D>::OTHER / 8][4], uint32_t x, uint32_t y) {
    typedef Sizes<D> S;
#pragma unroll
    for (int j = 0; j < S::OTHER / 8; ++j) out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0.f;
#pragma unroll
    for (int chunk = 0; chunk < S::CHUNKS; chunk += 2) {
        uint32_t a[4], b[2][2];
        fragments::read_a<S::CHUNKS>(a, x, threadIdx.x / 32 * 16, chunk);
#pragma unroll
        for (int j = 0; j < S::OTHER / 8; j += 2) {
            fragments::read_b<S::CHUNKS>(b, y, j * 8, chunk);
            mma_m16n8k16(out[j], a, b[0], T{});
            mma_m16n8k16(out[j + 1], a, b[1], T{});
        }
    }
}

// What a query brings to its weights and slopes.
struct Query {
    float log_sum;  // of base 2, less the boost
    float delta;
    float shrink;   // its power of two, without the boost
};

// Scores become weights, and <do, v> becomes ds. `of(j, i)` is the query of result i of column tile j.
template <int N, typename Of>
DEVICE void weigh(float (&s)[N][4], float (&ds)[N][4], float scale_2, Of of) {
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Query query = of(j, i);
            s[j][i] = ex2_approx_ftz_f32(s[j][i] * scale_2 - query.log_sum);
            ds[j][i] = s[j][i] * ((ds[j][i] - query.delta) * query.shrink);
        }
}

// sum += x y for this warp's 16 rows of x, which are results of `multiply`, and the rows of y: its channels from
// chunk `first` on.
template <typename T, int D, int PART>
DEVICE void add_product(float (&sum)[PART / 8][4], const float (&x)[Sizes<D>::OTHER / 8][4], uint32_t y, int first) {
    typedef Sizes<D> S;
#pragma unroll
    for (int row = 0; row < S::OTHER; row += 16) {
        uint32_t a[4], b[2][2];
        fragments::as_a<T>(a, x[row / 8], x[row / 8 + 1]);
#pragma unroll
        for (int j = 0; j < PART / 8; j += 2) {
            fragments::read_b_across<S::CHUNKS>(b, y, row, first + j);
            mma_m16n8k16(sum[j], a, b[0], T{});
            if (j + 1 < PART / 8) mma_m16n8k16(sum[j + 1], a, b[1], T{});
        }
    }
}

// This lane's two rows of a gradient, those of them that there are.
template <typename T, int PART>
DEVICE void store(T* to, int stride, int rows, int first, const float (&sum)[PART / 8][4], const float (&factor)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = first + h * 8 + fragments::row();
        if (row >= rows) continue;
        uint32_t* words = reinterpret_cast<uint32_t*>(to + int64_t(row) * stride + fragments::column());
#pragma unroll
        for (int j = 0; j < PART / 8; ++j)
            words[j * 4] = rounded_pair(T{}, sum[j][h * 2] * factor[h], sum[j][h * 2 + 1] * factor[h]);
    }
}

// One head of one image.
template <typename T, int D>
struct Head {
    Pair<T> queries, keys;  // q and do; k and v
    const float *lse, *delta, *peak;  // [t]

    DEVICE_MEMBER Head(const AttentionBwdParams& p) {
        const int64_t n = blockIdx.z, head = blockIdx.y, sums = (n * p.heads + head) * p.t;
        queries = {{p.q.as<T>() + n * p.t * p.q_row + head * D, p.d_o.as<T>() + n * p.t * p.d_o_row + head * D},
                   {p.q_row, p.d_o_row},
                   p.t};
        keys = {{p.k.as<T>() + n * p.u * p.k_row + head * D, p.v.as<T>() + n * p.u * p.v_row + head * D},
                {p.k_row, p.v_row},
                p.u};
        lse = p.lse.as<float>() + sums;
        delta = p.delta.as<float>() + sums;
        peak = p.peak.as<float>() + sums;
    }
};

// The loop that both are: own rows from `first`, other rows from tile to tile. `step(tile, its first row)`.
template <int D, typename T, typename Step>
DEVICE void go(Smem<D>& smem, const Pair<T>& own, int first, const Pair<T>& other, int begin, int end, Step step) {
    typedef Sizes<D> S;
    const auto load = [&](int tile) {
        if (tile < end) copy_pair<S::OTHER, D>(smem.other[tile % STAGES], other, tile * S::OTHER);
        cp_async_commit_group();
    };
    copy_pair<S::OWN, D>(smem.own, own, first);
    for (int tile = begin; tile < begin + STAGES - 1; ++tile) load(tile);
    for (int tile = begin; tile < end; ++tile) {
        // Behind the barrier all have this tile, and nobody reads the one before.
        cp_async_wait_group<STAGES - 2>();
        sync_block();
        load(tile + STAGES - 1);
        step(cvta_to_shared(smem.other[tile % STAGES][0]), cvta_to_shared(smem.other[tile % STAGES][1]),
             tile * S::OTHER);
    }
    cp_async_wait_group<0>();  // where no tile came by, own rows are on their way still
}

}  // namespace attention_bwd_mma
