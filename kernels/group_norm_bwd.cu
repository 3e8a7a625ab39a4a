// group_norm_bwd - the data gradient of group_norm, from x again.
//
//     xhat = (x - mean) / sqrt(var + eps)        y = xhat gamma + beta        d = act'(y) gamma dy
//     dx = (d - mean(d) - xhat mean(d xhat)) / sqrt(var + eps)       means over the group, one block each
//
// Departures from the formula, for accuracy: as in group_norm.
//
// Reference: src/cpu/norm.rs. Class: reduced. Bound by: DRAM, six reads (four of them from L2) and one write.
#include "activation.cuh"
#include "params.cuh"
#include "reduce.cuh"

namespace group_norm_bwd {

constexpr int THREADS = 256;

template <typename T>
__device__ void run(const GroupNormBwdParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.c % p.groups == 0 && int(gridDim.x) == p.groups);
    const int width = p.c / p.groups, first = blockIdx.x * width, count = p.pixels * width;
    const int64_t image = int64_t(blockIdx.y) * p.pixels * p.c;
    const T* x = p.x.as<T>() + image + first;          // [pixels, width of c]
    const T* dy = p.dy.as<T>() + image + first;        // [pixels, width of c]
    const float* gamma = p.gamma.as<float>() + first;  // [width]
    const float* beta = p.beta.as<float>() + first;    // [width]
    T* dx = p.dx.as<T>() + image + first;              // [pixels, width of c]
    const float pivot = to_f32(x[0]);

    // 1. The mean, as a distance from the first element, then the variance.
    float sum = 0.f;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += to_f32(x[int64_t(i / width) * p.c + i % width]) - pivot;
    const float mean = block_sum<THREADS>(sum) / float(count);
    float squares = 0.f;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const float centred = to_f32(x[int64_t(i / width) * p.c + i % width]) - pivot - mean;
        squares += centred * centred;
    }
    const float factor = rsqrtf(block_sum<THREADS>(squares) / float(count) + p.eps);

    // 2. mean(d) and mean(d xhat).
    float d_sum = 0.f, along_sum = 0.f;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const int64_t at = int64_t(i / width) * p.c + i % width;
        const float xhat = (to_f32(x[at]) - pivot - mean) * factor, scale = gamma[i % width];
        const float d = activation::slope(p.activation, xhat * scale + beta[i % width]) * scale * to_f32(dy[at]);
        d_sum += d;
        along_sum += d * xhat;
    }
    const float d_mean = block_sum<THREADS>(d_sum) / float(count);
    const float along = block_sum<THREADS>(along_sum) / float(count);

    // 3. The group.
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const int64_t at = int64_t(i / width) * p.c + i % width;
        const float xhat = (to_f32(x[at]) - pivot - mean) * factor, scale = gamma[i % width];
        const float d = activation::slope(p.activation, xhat * scale + beta[i % width]) * scale * to_f32(dy[at]);
        dx[at] = from_f32<T>(factor * (d - d_mean - xhat * along));
    }
}

}  // namespace group_norm_bwd
