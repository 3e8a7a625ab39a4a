// normalise - rows of length one.
//
//     out = x / |x|                                                  one block a row
//
// Departures from the formula, for safety: x is divided by its largest element first, so that no square leaves the
// range of f32. A row of zeros has no direction: it becomes NaN, as 0 / 0 is.
//
// Reference: src/cpu/embed.rs. Class: reduced. Bound by: DRAM, one read and one write.
#include "params.cuh"
#include "reduce.cuh"

namespace normalise {

constexpr int THREADS = 256;

template <typename T>
__device__ void run(const NormaliseParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.d >= 1);
    for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const T* x = p.x.as<T>() + row * p.d;  // [d]
        T* out = p.out.as<T>() + row * p.d;    // [d]

        // 1. The largest element. Where it is zero, infinite or none, lengths say so themselves.
        float most = 0.f;
        for (int i = threadIdx.x; i < p.d; i += THREADS) most = Max::join(fabsf(to_f32(x[i])), most);
        most = block_max<THREADS>(most);
        const float unit = most > 0.f && is_finite(most) ? most : 1.f;

        // 2. The length.
        float squares = 0.f;
        for (int i = threadIdx.x; i < p.d; i += THREADS) squares += (to_f32(x[i]) / unit) * (to_f32(x[i]) / unit);
        const float length = sqrtf(block_sum<THREADS>(squares));

        // 3. The row.
        for (int i = threadIdx.x; i < p.d; i += THREADS) out[i] = from_f32<T>(to_f32(x[i]) / unit / length);
    }
}

}  // namespace normalise
