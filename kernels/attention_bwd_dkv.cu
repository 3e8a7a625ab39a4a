// attention_bwd_dkv - the gradient of attention by its keys and values, for heads of 40, 64, 80 and 160 channels.
//
//     p[i, j]  = exp(s[i, j] - lse[i])        s[i, j] = <q_i, k_j> / sqrt(d), causal: j <= i
//     ds[i, j] = p[i, j] (<do_i, v_j> - delta[i]) / sqrt(d)
//     dk_j     = sum_i ds[i, j] q_i           dv_j = sum_i p[i, j] do_i
//
// A block has 64 keys, 16 a warp, goes through the queries in tiles, and adds dk and dv (attention_bwd_mma.cuh). It
// multiplies the other way round (s^T = k q^T), so that here as in attention_bwd_dq.cu the first product of a tile is
// the left operand of the next one. For d = 160 two blocks have half of the channels each, and both compute p and ds.
//
// Departures from the formula: those of attention_bwd_mma.cuh.
//
// Reference: src/cpu/attention.rs. Class: contracted. Bound by: mma.
#include "attention_bwd_mma.cuh"

namespace attention_bwd_dkv {

using namespace attention_bwd_mma;

template <typename T, int D>
__device__ void run(const AttentionBwdParams& p) {
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
                      const int query = query0 + j * 8 + fragments::column() + i, row = query < p.t ? query : p.t - 1;
                      log_sum[j][i] = head.lse[row] * LOG2_E - BOOST;
                      delta[j][i] = head.delta[row];
                  }
              float weight[S::OTHER / 8][4], ds[S::OTHER / 8][4];
              multiply<T, D>(weight, k, q);
              multiply<T, D>(ds, v, d_o);
              const int queries = p.t - query0, behind = first - query0;
              if (queries < S::OTHER || (p.causal && behind > -15))
                  fragments::hide(weight, [&](int row, int column) {
                      return column < queries && (!p.causal || column >= behind + row);
                  });
              weigh(weight, ds, scale_2, [&](int j, int i) {
                  return Query{log_sum[j][i % 2], delta[j][i % 2], shrink};
              });
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

}  // namespace attention_bwd_dkv
