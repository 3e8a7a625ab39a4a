// softmax - rows of scores become weights, and the slopes of weights those of scores: attention in pieces, for heads
// too wide for one kernel.
//
//     p[i, j] = exp(s[i, j] - lse[i])            lse[i] = log sum_j exp(s[i, j]);   causal: j <= i, p = 0 elsewhere
//     ds[i, j] = p[i, j] (dp[i, j] - delta[i])
//
// Scores and their slopes are f32, what is multiplied next is of type T. One block a row, three passes over it:
// maximum, sum, weights. A row's sum is taken in an order of its length alone.
//
// Departures from the formula:
//   1. `run` computes exp(s - max) / sum, which is the same and needs no second logarithm.
//   2. Both write p 2^BOOST, and `backward` ds times the power of two of the largest |do| of the head
//      (scaling.cuh): f16 would lose small ones. Who multiplies by them next divides again.
//   3. Columns between the last key and a row's end in memory are not touched.
//
// `round_rows` brings sums that went on from chunk to chunk in f32, `s`, to type T, `p`.
//
// Reference: src/cpu/attention.rs. Class: contracted. Bound by: DRAM; rows of some thousand scores stay in cache
// between passes.
#include "params.cuh"
#include "scaling.cuh"

namespace softmax {

constexpr int THREADS = 256;
constexpr int BOOST = 10;

template <typename T>
__device__ void run(const SoftmaxParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.u >= 1);
    const int query = p.first + blockIdx.x, keys = p.causal && query + 1 < p.u ? query + 1 : p.u;
    const float* s = p.s.as<float>() + blockIdx.x * p.score_row;  // [u]
    T* weights = p.p.as<T>() + blockIdx.x * p.weight_row;         // [u]

    // 1. The maximum.
    float most = Max::neutral();
    for (int j = threadIdx.x; j < keys; j += THREADS) most = fmaxf(most, s[j]);
    most = block_max<THREADS>(most);

    // 2. The sum.
    float total = 0.f;
    for (int j = threadIdx.x; j < keys; j += THREADS) total += expf(s[j] - most);
    total = block_sum<THREADS>(total);

    // 3. The row.
    const float inverse = (1 << BOOST) / total;
    for (int j = threadIdx.x; j < p.u; j += THREADS)
        weights[j] = from_f32<T>(j < keys ? expf(s[j] - most) * inverse : 0.f);
    if (threadIdx.x == 0) p.lse.as<float>()[query] = most + logf(total);
}

template <typename T>
__device__ void backward(const SoftmaxParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.u >= 1);
    const int query = p.first + blockIdx.x, keys = p.causal && query + 1 < p.u ? query + 1 : p.u;
    const float* s = p.s.as<float>() + blockIdx.x * p.score_row;    // [u]
    const float* dp = p.dp.as<float>() + blockIdx.x * p.score_row;  // [u]
    T* weights = p.p.as<T>() + blockIdx.x * p.weight_row;           // [u]
    T* ds = p.ds.as<T>() + blockIdx.x * p.weight_row;               // [u]
    const float lse = p.lse.as<float>()[query], delta = p.delta.as<float>()[query];
    const float power = scaling::power_of_all<THREADS>(p.peak.as<float>(), p.t);
    for (int j = threadIdx.x; j < p.u; j += THREADS) {
        const float weight = j < keys ? expf(s[j] - lse) : 0.f;
        weights[j] = from_f32<T>(weight * (1 << BOOST));
        ds[j] = from_f32<T>(j < keys ? weight * ((dp[j] - delta) * power) : 0.f);
    }
}

template <typename T>
__device__ void round_rows(const SoftmaxParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS);
    const float* from = p.s.as<float>() + blockIdx.x * p.score_row;  // [u]
    T* to = p.p.as<T>() + blockIdx.x * p.weight_row;                 // [u]
    for (int j = threadIdx.x; j < p.u; j += THREADS) to[j] = from_f32<T>(from[j]);
}

}  // namespace softmax
