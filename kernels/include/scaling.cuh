// scaling.cuh - the power of two that brings small gradients into the middle of a narrow type's range.
#pragma once
#include "reduce.cuh"

namespace scaling {

// Brings `peak` into [1/8, 1/4), so that sums of some hundred products with it stay finite in f16 and their small
// ones stay normal. A power of two: multiplying by it is exact. One where the peak is zero or not finite.
DEVICE float power_of(float peak) {
    const uint32_t exponent = f32_as_bits(peak) >> 23 & 255;
    if (exponent == 0 || exponent > 250) return 1.f;
    return bits_as_f32((251 - exponent) << 23);
}

// That of the largest of `count` peaks, in every thread. All threads of the block must come here.
template <int THREADS>
DEVICE float power_of_all(const float* peaks, int count) {
    float most = 0.f;
    for (int i = threadIdx.x; i < count; i += THREADS) most = Max::join(peaks[i], most);
    return power_of(block_max<THREADS>(most));
}

}  // namespace scaling
