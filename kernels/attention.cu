// attention - softmax(q k^T / sqrt(d)) v and its log-sum-exp. The general form: any lengths, d up to 256.
//
//     s[i, j] = <q_i, k_j> / sqrt(d)             causal: j <= i
//     o[i]    = sum_j exp(s[i, j] - lse[i]) v_j      lse[i] = log sum_j exp(s[i, j])
//
// One warp a query. Keys come 32 at a time, one a lane; the running maximum rescales what was summed so far, so
// nothing but one row of accumulators is kept.
//
// Departures from the formula, for safety: keys beyond the end have weight zero by selection; the maximum starts
// at the first chunk, which always has a key, so no exponent is infinite.
//
// Reference: src/cpu/attention.rs. Class: contracted. Bound by: cache, every key is read by every warp.
#include "params.cuh"
#include "reduce.cuh"

namespace attention {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int MOST_CHANNELS = 256;
constexpr int OWN = MOST_CHANNELS / 32;
constexpr float LOWEST = -3.402823466e38f;

template <typename T>
__device__ void run(const AttentionParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.d >= 1 && p.d <= MOST_CHANNELS && p.u >= 1);
    const int lane = threadIdx.x % 32, head = blockIdx.y;
    const int query = blockIdx.x * WARPS + threadIdx.x / 32;
    if (query >= p.t) return;  // a whole warp
    const int64_t n = blockIdx.z;
    const int64_t q_image = p.q_images != 0 ? n % p.q_images : n;
    const T* q = p.q.as<T>() + (q_image * p.t + query) * p.q_row + head * p.d;  // [d]
    const T* k = p.k.as<T>() + n * p.u * p.k_row + head * p.d;            // [u, d of k_row]
    const T* v = p.v.as<T>() + n * p.u * p.v_row + head * p.d;            // [u, d of v_row]
    T* o = p.o.as<T>() + (n * p.t + query) * p.o_row + head * p.d;        // [d]
    const float scale = 1.f / sqrtf(float(p.d));
    const int keys = p.causal && query + 1 < p.u ? query + 1 : p.u;

    float highest = LOWEST, total = 0.f, sum[OWN];  // channel own * 32 + lane
    for (int own = 0; own < OWN; ++own) sum[own] = 0.f;
    for (int first = 0; first < keys; first += 32) {
        // 1. A score a lane, and the new maximum.
        const bool inside = first + lane < keys;
        float score = 0.f;
        for (int c = 0; inside && c < p.d; ++c) score += to_f32(q[c]) * to_f32(k[int64_t(first + lane) * p.k_row + c]);
        score *= scale;
        const float chunk = warp_reduce<Max>(inside ? score : LOWEST);
        const float next = chunk > highest ? chunk : highest;
        const float shrink = expf(highest - next), weight = inside ? expf(score - next) : 0.f;
        highest = next;

        // 2. The values, weighted; channels over lanes.
        total = total * shrink + warp_reduce<Sum>(weight);
        for (int own = 0; own < OWN; ++own) sum[own] *= shrink;
        const int chunk_keys = keys - first < 32 ? keys - first : 32;
        for (int j = 0; j < chunk_keys; ++j) {
            const float w = shuffle_from(weight, j);
            const T* row = v + int64_t(first + j) * p.v_row;
            for (int own = 0; own < OWN; ++own) {
                const int c = own * 32 + lane;
                if (c < p.d) sum[own] += w * to_f32(row[c]);
            }
        }
    }

    // 3. The row.
    for (int own = 0; own < OWN; ++own) {
        const int c = own * 32 + lane;
        if (c < p.d) o[c] = from_f32<T>(sum[own] / total);
    }
    if (lane == 0) p.lse.as<float>()[(n * p.heads + head) * p.t + query] = highest + logf(total);
}

}  // namespace attention
