// attention_bwd_mma - the gradient of attention, for heads of 40, 64, 80 and 160 channels.
//
//     p[i, j]  = exp(s[i, j] - lse[i])        s[i, j] = <q_i, k_j> / sqrt(d), causal: j <= i
//     ds[i, j] = p[i, j] (<do_i, v_j> - delta[i]) / sqrt(d)
//     dq_i = sum_j ds[i, j] k_j               dk_j = sum_i ds[i, j] q_i       dv_j = sum_i p[i, j] do_i
//
// Two kernels, so that every row of a gradient has one owner, which adds in order: nothing is atomic.
// `queries`: a block has 64 queries, 16 a warp, goes through the keys in tiles, and adds dq.
// `keys`: a block has 64 keys, 16 a warp, goes through the queries in tiles, and adds dk and dv. It multiplies the
// other way round (s^T = k q^T), so that here as there the first product of a tile is, rounded to T, the left
// operand of the next one as it lies in registers.
// Both hold two tiles of their own rows (q and do, or k and v) and let pairs of tiles of the others go by.
//
// Departures from the formula, for speed or safety:
//   1. Exponents are of 2: log2(e) / sqrt(d) is folded into one multiplication before the exponential.
//   2. p is kept 2^BOOST times as large: a row of thousands of weights would be below f16's normal numbers.
//   3. ds is kept without 1 / sqrt(d) and with do scaled by a power of two, that of the largest |do| of the row
//      (dq) or of the head (dk): gradients of any size have their digits. The factor goes where f32 is stored.
//   4. What is beyond the end or hidden has p = 0 by selection. Tiles in which all is hidden are left out.
//   5. d = 40 is 48 in shared memory and where channels are the depth of a product.
//
// Three stages, so that one barrier a tile is enough. Tiles shrink with d, since registers hold 2 d sums a row in
// `keys`; for d = 160 two blocks have half of them each, and both compute p and ds.
// The order of all sums depends on t or u, and d alone.
//
// Reference: src/cpu/attention.rs. Class: contracted. Bound by: mma.
#include "params.cuh"
#include "scaling.cuh"
#include "tiles.cuh"

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
    static constexpr int PARTS = D <= 80 ? 1 : 2;  // `keys`: blocks that share the channels of one tile's dk and dv
    static constexpr int PART = D / PARTS;         // channels of such a block
};

// `queries`: own q and do, others k and v. `keys`: own k and v, others q and do.
template <int D>
struct Smem {
    typedef Sizes<D> S;
    tiles::Chunk own[2][S::OWN * S::CHUNKS];
    tiles::Chunk other[STAGES][2][S::OTHER * S::CHUNKS];
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
DEVICE void copy_pair(tiles::Chunk (&to)[2][ROWS * Sizes<D>::CHUNKS], const Pair<T>& from, int first) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
        tiles::copy<ROWS, Sizes<D>::CHUNKS, THREADS>(cvta_to_shared(to[i]), from.x[i] + int64_t(first) * from.stride[i],
                                                     from.stride[i], from.rows - first, D / 8);
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
        tiles::read_a<S::CHUNKS>(a, x, threadIdx.x / 32 * 16, chunk);
#pragma unroll
        for (int j = 0; j < S::OTHER / 8; j += 2) {
            tiles::read_b<S::CHUNKS>(b, y, j * 8, chunk);
            mma_m16n8k16(out[j], a, b[0], T{});
            mma_m16n8k16(out[j + 1], a, b[1], T{});
        }
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
        tiles::as_a<T>(a, x[row / 8], x[row / 8 + 1]);
#pragma unroll
        for (int j = 0; j < PART / 8; j += 2) {
            tiles::read_b_across<S::CHUNKS>(b, y, row, first + j);
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
        const int row = first + h * 8 + tiles::row();
        if (row >= rows) continue;
        uint32_t* words = reinterpret_cast<uint32_t*>(to + int64_t(row) * stride + tiles::column());
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

// The loop that both kernels are: own rows from `first`, other rows from tile to tile. `step(tile, its first row)`.
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
}

template <typename T, int D>
__device__ void queries(const AttentionBwdParams& p) {
    typedef Sizes<D> S;
    KERNEL_ASSERT(blockDim.x == THREADS && p.d == D);
    DYNAMIC_SHARED(Smem<D>, smem);
    const Head<T, D> head(p);
    const int block_first = blockIdx.x * S::OWN, first = block_first + threadIdx.x / 32 * 16;
    const float scale = 1.f / sqrtf(float(D)), scale_2 = LOG2_E * scale;
    const int seen = p.causal && block_first + S::OWN < p.u ? block_first + S::OWN : p.u;

    // 1. What belongs to this lane's two queries.
    float log_sum[2], delta[2], power[2], dq[D / 8][4];  // log_sum: of base 2, less the boost
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int query = first + h * 8 + tiles::row(), row = query < p.t ? query : p.t - 1;
        log_sum[h] = head.lse[row] * LOG2_E - BOOST;
        delta[h] = head.delta[row];
        power[h] = scaling::power_of(head.peak[row]);
    }
#pragma unroll
    for (int j = 0; j < D / 8; ++j) dq[j][0] = dq[j][1] = dq[j][2] = dq[j][3] = 0.f;
    const float shrink[2] = {power[0] * (1.f / (1 << BOOST)), power[1] * (1.f / (1 << BOOST))};

    // 2. Tile after tile of keys.
    const uint32_t q = cvta_to_shared(smem.own[0]), d_o = cvta_to_shared(smem.own[1]);
    go<D>(smem, head.queries, block_first, head.keys, 0, (seen + S::OTHER - 1) / S::OTHER,
          [&](uint32_t k, uint32_t v, int key0) {
              if (p.causal && key0 >= first + 16) return;  // hidden from the whole warp
              float s[S::OTHER / 8][4], ds[S::OTHER / 8][4];
              multiply<T, D>(s, q, k);
              multiply<T, D>(ds, d_o, v);
#pragma unroll
              for (int j = 0; j < S::OTHER / 8; ++j)
#pragma unroll
                  for (int i = 0; i < 4; ++i) {
                      const int h = i / 2, query = first + h * 8 + tiles::row();
                      const int key = key0 + j * 8 + tiles::column() + i % 2;
                      const bool in = key < p.u && (!p.causal || key <= query);
                      const float weight = in ? ex2_approx_ftz_f32(s[j][i] * scale_2 - log_sum[h]) : 0.f;
                      ds[j][i] = in ? weight * ((ds[j][i] - delta[h]) * shrink[h]) : 0.f;
                  }
              add_product<T, D, D>(dq, ds, k, 0);
          });

    // 3. The rows.
    const float factor[2] = {scale / power[0], scale / power[1]};
    store<T, D>(p.dq.as<T>() + int64_t(blockIdx.z) * p.t * p.dq_row + blockIdx.y * D, p.dq_row, p.t, first, dq,
                factor);
}

template <typename T, int D>
__device__ void keys(const AttentionBwdParams& p) {
    typedef Sizes<D> S;
    KERNEL_ASSERT(blockDim.x == THREADS && p.d == D);
    DYNAMIC_SHARED(Smem<D>, smem);
    const Head<T, D> head(p);
    const int part = blockIdx.x % S::PARTS, block_first = int(blockIdx.x / S::PARTS) * S::OWN;
    const int first = block_first + threadIdx.x / 32 * 16;
    const float scale = 1.f / sqrtf(float(D)), scale_2 = LOG2_E * scale;

    // 1. One power of two for all queries, since a sum runs over them.
    const float power = scaling::power_of_all<THREADS>(head.peak, p.t);
    const float shrink = power * (1.f / (1 << BOOST));
    float dk[S::PART / 8][4], dv[S::PART / 8][4];
#pragma unroll
    for (int j = 0; j < S::PART / 8; ++j) {
        dk[j][0] = dk[j][1] = dk[j][2] = dk[j][3] = 0.f;
        dv[j][0] = dv[j][1] = dv[j][2] = dv[j][3] = 0.f;
    }

    // 2. Tile after tile of queries. Those before the first key see none of this block.
    const uint32_t k = cvta_to_shared(smem.own[0]), v = cvta_to_shared(smem.own[1]);
    go<D>(smem, head.keys, block_first, head.queries, p.causal ? block_first / S::OTHER : 0,
          (p.t + S::OTHER - 1) / S::OTHER, [&](uint32_t q, uint32_t d_o, int query0) {
              if (p.causal && query0 + S::OTHER <= first) return;  // sees nothing of this warp
              float log_sum[S::OTHER / 8][2], delta[S::OTHER / 8][2];  // of this lane's columns
#pragma unroll
              for (int j = 0; j < S::OTHER / 8; ++j)
#pragma unroll
                  for (int i = 0; i < 2; ++i) {
                      const int query = query0 + j * 8 + tiles::column() + i, row = query < p.t ? query : p.t - 1;
                      log_sum[j][i] = head.lse[row] * LOG2_E - BOOST;
                      delta[j][i] = head.delta[row];
                  }
              float weight[S::OTHER / 8][4], ds[S::OTHER / 8][4];
              multiply<T, D>(weight, k, q);
              multiply<T, D>(ds, v, d_o);
#pragma unroll
              for (int j = 0; j < S::OTHER / 8; ++j)
#pragma unroll
                  for (int i = 0; i < 4; ++i) {
                      const int key = first + i / 2 * 8 + tiles::row();
                      const int query = query0 + j * 8 + tiles::column() + i % 2;
                      const bool in = query < p.t && (!p.causal || key <= query);
                      weight[j][i] = in ? ex2_approx_ftz_f32(weight[j][i] * scale_2 - log_sum[j][i % 2]) : 0.f;
                      ds[j][i] = in ? weight[j][i] * ((ds[j][i] - delta[j][i % 2]) * shrink) : 0.f;
                  }
              add_product<T, D, S::PART>(dv, weight, d_o, part * (S::PART / 8));
              add_product<T, D, S::PART>(dk, ds, q, part * (S::PART / 8));
          });

    // 3. The rows.
    const float of_dk[2] = {scale / power, scale / power}, of_dv[2] = {1.f / (1 << BOOST), 1.f / (1 << BOOST)};
    const int64_t before = int64_t(blockIdx.z) * p.u;
    const int channel = blockIdx.y * D + part * S::PART;
    store<T, S::PART>(p.dk.as<T>() + before * p.dk_row + channel, p.dk_row, p.u, first, dk, of_dk);
    store<T, S::PART>(p.dv.as<T>() + before * p.dv_row + channel, p.dv_row, p.u, first, dv, of_dv);
}

}  // namespace attention_bwd_mma
