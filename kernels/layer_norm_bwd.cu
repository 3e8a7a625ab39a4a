// layer_norm_bwd - the data gradient of layer_norm, from x again.
//
//     xhat = (x - mean) / sqrt(var + eps)          d = gamma dy
//     dx = (d - mean(d) - xhat mean(d xhat)) / sqrt(var + eps) + residual
//
// Two forms: `run`, a block a row, for any c; `warps`, a warp a row, which holds x and dy in registers.
//
// Departures from the formula: as in layer_norm.
//
// Reference: src/cpu/norm.rs. Class: reduced. Bound by: DRAM, two or three reads and one write a row.
#include "moments.cuh"
#include "params.cuh"
#include "vec.cuh"

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
        const T* residual = p.residual.address == 0 ? nullptr : p.residual.as<T>() + row * p.c;  // [c]

        // 1. Mean and variance.
        const Norm norm = block_norm<THREADS>(p.c, p.eps, [&](int i) { return to_f32(x[i]); });
        const auto xhat = [&](int i) { return norm(to_f32(x[i])); };
        const auto d = [&](int i, float) { return gamma[i] * to_f32(dy[i]); };

        // 2. mean(d) and mean(d xhat).
        const NormBwd bwd = block_norm_bwd<THREADS>(p.c, xhat, d);

        // 3. The row.
        for (int i = threadIdx.x; i < p.c; i += THREADS) {
            const float value = bwd(norm.factor, xhat(i), d(i, 0.f));
            dx[i] = from_f32<T>(residual == nullptr ? value : value + to_f32(residual[i]));
        }
    }
}

template <typename T, int VECTORS>
__device__ void warps(const LayerNormBwdParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.c % 8 == 0 && p.c <= 256 * VECTORS);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float* gamma = p.gamma.as<float>();  // [c]
    for (int64_t row = int64_t(blockIdx.x) * (THREADS / 32) + warp; row < p.rows;
         row += int64_t(gridDim.x) * (THREADS / 32)) {
        const T* x = p.x.as<T>() + row * p.c;    // [c]
        const T* dy = p.dy.as<T>() + row * p.c;  // [c]
        T* dx = p.dx.as<T>() + row * p.c;        // [c]
        const T* residual = p.residual.address == 0 ? nullptr : p.residual.as<T>() + row * p.c;  // [c]

        // 1. Both rows, and the mean and variance of x.
        Packed own_x[VECTORS], own_dy[VECTORS];  // vector 32 i + lane
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            const int channel = 8 * (32 * i + lane);
            own_x[i] = own_dy[i] = Packed{};
            if (channel >= p.c) continue;
            own_x[i]  = load_packed(x + channel);
            own_dy[i] = load_packed(dy + channel);
        }
        const Norm norm = warp_norm<T>(own_x, p.c, p.eps);

        // 2. mean(d) and mean(d xhat).
        float d_sum = 0.f, along_sum = 0.f;
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            const int channel = 8 * (32 * i + lane);
            if (channel >= p.c) continue;
            float xhat[8], d[8], scale[8];
            unpack<T>(xhat, own_x[i]);
            unpack<T>(d, own_dy[i]);
            load8(scale, gamma + channel);
            for (int k = 0; k < 8; ++k) {
                d_sum += scale[k] * d[k];
                along_sum += scale[k] * d[k] * norm(xhat[k]);
            }
        }
        const NormBwd bwd{warp_reduce<Sum>(d_sum) / float(p.c), warp_reduce<Sum>(along_sum) / float(p.c)};

        // 3. The row.
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            const int channel = 8 * (32 * i + lane);
            if (channel >= p.c) continue;
            float xhat[8], d[8], scale[8];
            unpack<T>(xhat, own_x[i]);
            unpack<T>(d, own_dy[i]);
            load8(scale, gamma + channel);
            for (int k = 0; k < 8; ++k) d[k] = bwd(norm.factor, norm(xhat[k]), scale[k] * d[k]);
            if (residual != nullptr) add8(d, residual + channel);
            store8(dx + channel, d);
        }
    }
}

}  // namespace layer_norm_bwd
