// layer_norm - every row of c channels made zero mean and unit variance, then scaled and shifted.
//
//     out = (x - mean) / sqrt(var + eps) gamma + beta
//
// Departures from the formula, for accuracy: sums are taken relative to the row's first element, which costs a
// large mean no digits; the variance is a second pass over the row, from cache.
//
// Reference: src/cpu/norm.rs. Class: reduced. Bound by: DRAM, one read and one write of x.
#include "params.cuh"
#include "reduce.cuh"

namespace layer_norm {

constexpr int THREADS = 256;

template <typename T>
__device__ void run(const LayerNormParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.c >= 1);
    const float* gamma = p.gamma.as<float>();  // [c]
    const float* beta = p.beta.as<float>();    // [c]
    for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const T* x = p.x.as<T>() + row * p.c;  // [c]
        T* out = p.out.as<T>() + row * p.c;    // [c]
        const float pivot = to_f32(x[0]);

        // 1. The mean, as a distance from the first element.
        float sum = 0.f;
        for (int i = threadIdx.x; i < p.c; i += THREADS) sum += to_f32(x[i]) - pivot;
        const float mean = block_sum<THREADS>(sum) / float(p.c);

        // 2. The variance.
        float squares = 0.f;
        for (int i = threadIdx.x; i < p.c; i += THREADS) {
            const float centred = to_f32(x[i]) - pivot - mean;
            squares += centred * centred;
        }
        const float factor = rsqrtf(block_sum<THREADS>(squares) / float(p.c) + p.eps);

        // 3. The row.
        for (int i = threadIdx.x; i < p.c; i += THREADS)
            out[i] = from_f32<T>((to_f32(x[i]) - pivot - mean) * factor * gamma[i] + beta[i]);
    }
}

}  // namespace layer_norm
