// group_norm_bwd - the data gradient of group_norm, from x again.
//
//     xhat = (x - mean) / sqrt(var + eps)        y = xhat gamma + beta        d = act'(y) gamma dy
//     dx = (d - mean(d) - xhat mean(d xhat)) / sqrt(var + eps) + residual       means over the group, one block each
//
// Departures from the formula, for accuracy: those of moments.cuh.
//
// Reference: src/cpu/norm.rs. Class: reduced. Bound by: DRAM, six reads (four of them from L2), the residual and one write;
// with few groups, by the few blocks: group_norm_tiled_bwd.cu fills a GPU.
#include "activation.cuh"
#include "moments.cuh"
#include "params.cuh"

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
    const T* residual = p.residual.address == 0 ? nullptr : p.residual.as<T>() + image + first;
    const auto place = [&](int i) { return int64_t(i / width) * p.c + i % width; };

    // 1. Mean and variance.
    const Norm norm = block_norm<THREADS>(count, p.eps, [&](int i) { return to_f32(x[place(i)]); });
    const auto xhat = [&](int i) { return norm(to_f32(x[place(i)])); };
    const auto d = [&](int i, float xhat) {
        const float scale = gamma[i % width];
        return activation::slope(p.activation, xhat * scale + beta[i % width]) * scale * to_f32(dy[place(i)]);
    };

    // 2. mean(d) and mean(d xhat).
    const NormBwd bwd = block_norm_bwd<THREADS>(count, xhat, d);

    // 3. The group.
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const float at = xhat(i);
        const float value = bwd(norm.factor, at, d(i, at));
        dx[place(i)] = from_f32<T>(residual == nullptr ? value : value + to_f32(residual[place(i)]));
    }
}

}  // namespace group_norm_bwd
