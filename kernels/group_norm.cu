// group_norm - the pixels and channels of a group made zero mean and unit variance, scaled, shifted, activated.
//
//     out = act((x - mean) / sqrt(var + eps) gamma + beta)           one block a group and image
//
// Departures from the formula, for accuracy: sums are taken relative to the group's first element, which costs a
// large mean no digits; the variance is a second pass.
//
// Reference: src/cpu/norm.rs. Class: reduced. Bound by: DRAM, three reads (two of them from L2) and one write.
#include "activation.cuh"
#include "params.cuh"
#include "reduce.cuh"

namespace group_norm {

constexpr int THREADS = 256;

template <typename T>
__device__ void run(const GroupNormParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.c % p.groups == 0 && int(gridDim.x) == p.groups);
    const int width = p.c / p.groups, first = blockIdx.x * width, count = p.pixels * width;
    const int64_t image = int64_t(blockIdx.y) * p.pixels * p.c;
    const T* x = p.x.as<T>() + image + first;          // [pixels, width of c]
    const float* gamma = p.gamma.as<float>() + first;  // [width]
    const float* beta = p.beta.as<float>() + first;    // [width]
    T* out = p.out.as<T>() + image + first;            // [pixels, width of c]
    const float pivot = to_f32(x[0]);

    // 1. The mean, as a distance from the first element.
    float sum = 0.f;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += to_f32(x[int64_t(i / width) * p.c + i % width]) - pivot;
    const float mean = block_sum<THREADS>(sum) / float(count);

    // 2. The variance.
    float squares = 0.f;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const float centred = to_f32(x[int64_t(i / width) * p.c + i % width]) - pivot - mean;
        squares += centred * centred;
    }
    const float factor = rsqrtf(block_sum<THREADS>(squares) / float(count) + p.eps);

    // 3. The group.
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const int64_t at = int64_t(i / width) * p.c + i % width;
        const float y = (to_f32(x[at]) - pivot - mean) * factor * gamma[i % width] + beta[i % width];
        out[at] = from_f32<T>(activation::value(p.activation, y));
    }
}

}  // namespace group_norm
