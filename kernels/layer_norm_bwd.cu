// layer_norm_bwd - the data gradient of layer_norm, from x again.
//
//     xhat = (x - mean) / sqrt(var + eps)          d = gamma dy
//     dx = (d - mean(d) - xhat mean(d xhat)) / sqrt(var + eps)
//
// Departures from the formula, for accuracy: as in layer_norm.
//
// Reference: src/cpu/norm.rs. Class: reduced. Bound by: DRAM, two reads and one write a row.
#include "params.cuh"
#include "reduce.cuh"

namespace layer_norm_bwd {

constexpr int THREADS = 256;

template <typename T>
__device__ void run(const LayerNormBwdParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.c >= 1);
    const float* gamma = p.gamma.as<float>();  // [c]
    for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const T* x = p.x.as<T>() + row * p.c;    // [c]
        const T* dy = p.dy.as<T>() + row * p.c;  // [c]
        T* dx = p.dx.as<T>() + row * p.c;        // [c]
        const float pivot = to_f32(x[0]);

        // 1. The mean, as a distance from the first element, then the variance.
        float sum = 0.f;
        for (int i = threadIdx.x; i < p.c; i += THREADS) sum += to_f32(x[i]) - pivot;
        const float mean = block_sum<THREADS>(sum) / float(p.c);
        float squares = 0.f;
        for (int i = threadIdx.x; i < p.c; i += THREADS) {
            const float centred = to_f32(x[i]) - pivot - mean;
            squares += centred * centred;
        }
        const float factor = rsqrtf(block_sum<THREADS>(squares) / float(p.c) + p.eps);

        // 2. mean(d) and mean(d xhat).
        float d_sum = 0.f, along_sum = 0.f;
        for (int i = threadIdx.x; i < p.c; i += THREADS) {
            const float d = gamma[i] * to_f32(dy[i]);
            d_sum += d;
            along_sum += d * (to_f32(x[i]) - pivot - mean) * factor;
        }
        const float d_mean = block_sum<THREADS>(d_sum) / float(p.c);
        const float along = block_sum<THREADS>(along_sum) / float(p.c);

        // 3. The row.
        for (int i = threadIdx.x; i < p.c; i += THREADS) {
            const float xhat = (to_f32(x[i]) - pivot - mean) * factor;
            dx[i] = from_f32<T>(factor * (gamma[i] * to_f32(dy[i]) - d_mean - xhat * along));
        }
    }
}

}  // namespace layer_norm_bwd
