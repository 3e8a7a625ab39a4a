// attention_bwd_dq - the gradient of attention by its queries, for heads of 40, 64, 80 and 160 channels.
//
//     p[i, j]  = exp(s[i, j] - lse[i])        s[i, j] = <q_i, k_j> / sqrt(d), causal: j <= i
//     ds[i, j] = p[i, j] (<do_i, v_j> - delta[i]) / sqrt(d)
//     dq_i     = sum_j ds[i, j] k_j
//
// A block has 64 queries, 16 a warp, goes through the keys in tiles, and adds dq (attention_bwd_mma.cuh).
//
// Departures from the formula: those of attention_bwd_mma.cuh.
//
// Reference: src/cpu/attention.rs. Class: contracted. Bound by: mma.
#include "attention_bwd_mma.cuh"

namespace attention_bwd_dq {

using namespace attention_bwd_mma;

template <typename T, int D>
__device__ void run(const AttentionBwdParams& p) {
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
        const int query = first + h * 8 + fragments::row(), row = query < p.t ? query : p.t - 1;
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
              const int keys = p.u - key0, ahead = first - key0;
              if (keys < S::OTHER || (p.causal && ahead < S::OTHER - 1))
                  fragments::hide(s, [&](int row, int column) {
                      return column < keys && (!p.causal || column <= ahead + row);
                  });
              weigh(s, ds, scale_2, [&](int, int i) {
                  return Query{log_sum[i / 2], delta[i / 2], shrink[i / 2]};
              });
              add_product<T, D, D>(dq, ds, k, 0);
          });

    // 3. The rows.
    const float factor[2] = {scale / power[0], scale / power[1]};
    store<T, D>(p.dq.as<T>() + int64_t(blockIdx.z) * p.t * p.dq_row + blockIdx.y * D, p.dq_row, p.t, first, dq,
                factor);
}

}  // namespace attention_bwd_dq
