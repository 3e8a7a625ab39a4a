// reduce.cuh - sums and maxima over a block, in an order that depends on the block's size alone.
#pragma once
#include "prelude.cuh"

struct WarpPartials {
    float of_warp[32];
};

struct Sum {
    static DEVICE_MEMBER float join(float a, float b) { return a + b; }
    static DEVICE_MEMBER float neutral() { return 0.f; }
};
struct Max {
    static DEVICE_MEMBER float join(float a, float b) { return a > b ? a : b; }
    static DEVICE_MEMBER float neutral() { return -3.402823466e38f; }
};

template <typename Join>
DEVICE float warp_reduce(float value) {
    for (int mask = 16; mask > 0; mask >>= 1) value = Join::join(value, shuffle_xor(value, mask));
    return value;
}

// The same value in every thread. All threads of the block must come here.
template <int THREADS, typename Join>
DEVICE float block_reduce(float value) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");
    SHARED(WarpPartials, partials);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    value = warp_reduce<Join>(value);
    sync_block();  // the partials of an earlier call may still be read
    if (lane == 0) partials.of_warp[warp] = value;
    sync_block();
    return warp_reduce<Join>(lane < THREADS / 32 ? partials.of_warp[lane] : Join::neutral());
}

template <int THREADS>
DEVICE float block_sum(float value) {
    return block_reduce<THREADS, Sum>(value);
}
template <int THREADS>
DEVICE float block_max(float value) {
    return block_reduce<THREADS, Max>(value);
}
