// clip_cosine - scores of the concepts, their density, the gate, and the gradient of the density.
//
// For every image n (one thread block each), with D channels and K concepts:
//
//     u    = e / |e|                     s_k = <u, c_k>                  (c_k is unit length)
//     p_h  = mean of the top_k largest s_k (log-mean), or their product (sum-log)
//     gate = any !(s_k < threshold)
//     w_k  = d log p_h / d s_k:  1 / (top_k p_h) (log-mean) or 1 / s_k (sum-log), 0 where not selected
//     de   = 2^scale_log2 (v - <u, v> u) / |e|,   v = sum_k w_k c_k
//
// Derivation. v is d log p_h / du; the normalisation passes on only the part of v that is orthogonal to u.
//
// Departures from the formula, for safety:
//   1. Where a logarithm has no meaning (mean <= 1e-6, or a selected score <= 1e-6) the gradient is that of
//      the largest score alone, and status is 1.
//   2. Where a score is not finite, status is 2, p_h is NaN, the gate is open and de is zero.
//   3. |e|^2 is clamped from below by 1e-24. Below, u is linear in e: the radial term is dropped.
//   4. Of equal scores the earlier counts as larger.
//
// Reference: src/cpu/cosine.rs, src/safety/density.rs. Class: reduced. Bound by: DRAM, (2 K + 3) D reads.
#include "params.cuh"
#include "reduce.cuh"

namespace clip_cosine {

constexpr int THREADS = 256;
constexpr int MOST_CONCEPTS = 1024;
constexpr float FLOOR = 1e-6f;
constexpr float MIN_SQUARED_LENGTH = 1e-24f;
enum Reduce { LOG_MEAN = 0, SUM_LOG = 1 };

struct Smem {
    float scores[MOST_CONCEPTS];
    float weights[MOST_CONCEPTS];  // w_k
};

// How many scores count as larger than s_k.
DEVICE int rank_of(const Smem& smem, int k, int count) {
    int rank = 0;
    for (int j = 0; j < count; ++j) {
        const float s = smem.scores[j];
        rank += s > smem.scores[k] || (s == smem.scores[k] && j < k);
    }
    return rank;
}

template <typename T>
__device__ void run(const ClipCosineParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.k >= 1 && p.k <= MOST_CONCEPTS && p.d >= 1);
    SHARED(Smem, smem);
    const StepState& state = *p.state.as<StepState>();
    const int64_t n = blockIdx.x;                         // image
    const T* e = p.e.as<T>() + n * p.d;                   // [d]
    const float* concepts = p.concepts.as<float>();       // [k, d], unit rows
    float* scores = p.scores.as<float>() + n * p.k;       // [k]
    T* de = p.de.as<T>() + n * p.d;                       // [d]
    const int selected = p.top_k < p.k ? p.top_k : p.k;

    // 1. |e|, the largest channel taken out first: squares of f32 reach neither end of its range.
    float largest = 0.f;
    for (int i = threadIdx.x; i < p.d; i += THREADS) {
        const float size = fabsf(to_f32(e[i]));
        largest = size > largest ? size : largest;
    }
    largest = block_max<THREADS>(largest);
    const float unit = largest > 0.f ? largest : 1.f;
    float sum = 0.f;
    for (int i = threadIdx.x; i < p.d; i += THREADS) {
        const float part = to_f32(e[i]) / unit;
        sum += part * part;
    }
    const float measured = sqrtf(block_sum<THREADS>(sum)) * unit;
    const bool clamped = measured < sqrtf(MIN_SQUARED_LENGTH);
    const float length = clamped ? sqrtf(MIN_SQUARED_LENGTH) : measured;

    // 2. Scores; whether one opens the gate, whether one is not finite.
    float opens = 0.f, broken = 0.f;
    for (int k = 0; k < p.k; ++k) {
        float dot = 0.f;
        for (int i = threadIdx.x; i < p.d; i += THREADS) dot += to_f32(e[i]) / length * concepts[int64_t(k) * p.d + i];
        const float s = block_sum<THREADS>(dot);
        if (!(s < state.threshold)) opens = 1.f;
        if (!is_finite(s)) broken = 1.f;
        if (threadIdx.x == 0) {
            smem.scores[k] = s;
            scores[k] = s;
        }
    }
    sync_block();

    // 3. The density: the selected scores reduced, and the weight of every score.
    float total = 0.f, logs_fail = 0.f;
    for (int k = threadIdx.x; k < p.k; k += THREADS) {
        const bool chosen = rank_of(smem, k, p.k) < selected;
        smem.weights[k] = chosen ? 1.f : 0.f;
        if (chosen) total += smem.scores[k];
        if (chosen && !(smem.scores[k] > FLOOR)) logs_fail = 1.f;
    }
    const float mean = block_sum<THREADS>(total) / float(selected);
    logs_fail = block_max<THREADS>(logs_fail);
    float product = 1.f;
    for (int k = 0; k < p.k; ++k)
        if (smem.weights[k] != 0.f) product *= smem.scores[k];
    const float p_h = p.reduce == LOG_MEAN ? mean : product;
    const bool usable = p.reduce == LOG_MEAN ? mean > FLOOR : logs_fail == 0.f;
    sync_block();
    for (int k = threadIdx.x; k < p.k; k += THREADS) {
        const float s = smem.scores[k];
        float weight = smem.weights[k] * (p.reduce == LOG_MEAN ? 1.f / (float(selected) * mean) : 1.f / s);
        if (!usable) weight = rank_of(smem, k, p.k) > 0 ? 0.f : s > 0.f ? 1.f / (s > FLOOR ? s : FLOOR) : 1.f;
        smem.weights[k] = smem.weights[k] != 0.f ? weight : 0.f;
    }
    sync_block();
    if (threadIdx.x == 0) {
        p.gate.as<float>()[n] = opens;
        p.p_h.as<float>()[n] = broken != 0.f ? nanf("") : p_h;
        p.status.as<float>()[n] = broken != 0.f ? 2.f : usable ? 0.f : 1.f;
    }

    // 4. de. v is summed twice, once for <u, v>: cheaper than keeping any number of channels.
    float e_dot_v = 0.f;
    for (int i = threadIdx.x; i < p.d; i += THREADS) {
        float v = 0.f;
        for (int k = 0; k < p.k; ++k) v += smem.weights[k] * concepts[int64_t(k) * p.d + i];
        e_dot_v += to_f32(e[i]) / length * v;
    }
    const float u_dot_v = clamped ? 0.f : block_sum<THREADS>(e_dot_v);
    for (int i = threadIdx.x; i < p.d; i += THREADS) {
        float v = 0.f;
        for (int k = 0; k < p.k; ++k) v += smem.weights[k] * concepts[int64_t(k) * p.d + i];
        const float wanted = (v - u_dot_v * (to_f32(e[i]) / length)) * (ldexpf(1.f, p.scale_log2) / length);
        de[i] = from_f32<T>(broken != 0.f ? 0.f : wanted);
    }
}

}  // namespace clip_cosine
