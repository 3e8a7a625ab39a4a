// group_norm - the pixels and channels of a group made zero mean and unit variance, scaled, shifted, activated.
//
//     out = act((x - mean) / sqrt(var + eps) gamma + beta)           one block a group and image
//
// Departures from the formula, for accuracy: those of moments.cuh. out may be x.
//
// Reference: src/cpu/norm.rs. Class: reduced. Bound by: DRAM, three reads (two of them from L2) and one write;
// with few groups, by the few blocks: group_norm_tiled.cu fills a GPU.
#include "activation.cuh"
#include "moments.cuh"
#include "params.cuh"

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
    const auto place = [&](int i) { return int64_t(i / width) * p.c + i % width; };

    // 1. Mean and variance.
    const Norm norm = block_norm<THREADS>(count, p.eps, [&](int i) { return to_f32(x[place(i)]); });

    // 2. The group.
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const float y = norm(to_f32(x[place(i)])) * gamma[i % width] + beta[i % width];
        out[place(i)] = from_f32<T>(activation::value(p.activation, y));
    }
}

}  // namespace group_norm
