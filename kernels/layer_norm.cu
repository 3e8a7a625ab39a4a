// layer_norm - every row of c channels made zero mean and unit variance, then scaled and shifted.
//
//     out = (x - mean) / sqrt(var + eps) gamma + beta
//
// Two forms: `run`, a block a row, for any c; `warps`, a warp a row, which holds the row in registers.
//
// Departures from the formula, for accuracy: those of moments.cuh; for speed: in `warps` lane l owns the channels
// 8 (32 i + l) .. 8 (32 i + l) + 7, so c is a multiple of 8 and at most 256 VECTORS, and a row is read once.
//
// Reference: src/cpu/norm.rs. Class: reduced. Bound by: DRAM, one read and one write of x.
#include "moments.cuh"
#include "params.cuh"
#include "vec.cuh"

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

        // 1. Mean and variance.
        const Norm norm = block_norm<THREADS>(p.c, p.eps, [&](int i) { return to_f32(x[i]); });

        // 2. The row.
        for (int i = threadIdx.x; i < p.c; i += THREADS)
            out[i] = from_f32<T>(norm(to_f32(x[i])) * gamma[i] + beta[i]);
    }
}

template <typename T, int VECTORS>
__device__ void warps(const LayerNormParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.c % 8 == 0 && p.c <= 256 * VECTORS);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float* gamma = p.gamma.as<float>();  // [c]
    const float* beta = p.beta.as<float>();    // [c]
    for (int64_t row = int64_t(blockIdx.x) * (THREADS / 32) + warp; row < p.rows;
         row += int64_t(gridDim.x) * (THREADS / 32)) {
        const T* x = p.x.as<T>() + row * p.c;  // [c]
        T* out = p.out.as<T>() + row * p.c;    // [c]

        // 1. The row, and its mean and variance.
        Packed own[VECTORS];  // vector 32 i + lane
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            own[i] = Packed{};
            if (8 * (32 * i + lane) < p.c) own[i] = load_packed(x + 8 * (32 * i + lane));
        }
        const Norm norm = warp_norm<T>(own, p.c, p.eps);

        // 2. The row, normalised.
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            const int channel = 8 * (32 * i + lane);
            if (channel >= p.c) continue;
            float y[8], scale[8], shift[8];
            unpack<T>(y, own[i]);
            load8(scale, gamma + channel);
            load8(shift, beta + channel);
            for (int k = 0; k < 8; ++k) y[k] = norm(y[k]) * scale[k] + shift[k];
            store8(out + channel, y);
        }
    }
}

}  // namespace layer_norm
