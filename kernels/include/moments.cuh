// moments.cuh - mean and variance of what a block holds, and what becomes of both: one text for every norm.
//
// Sums are taken relative to a value of the data, which costs a large mean no digits, and the variance is a second
// pass over centred values. E[x^2] - E[x]^2 stands nowhere.
#pragma once
#include "reduce.cuh"
#include "vec.cuh"

// x -> (x - mean) factor; the mean in two parts, since f32 does not hold it to the last digit.
struct Norm {
    float pivot, mean, factor;

    DEVICE_MEMBER float operator()(float x) const { return (x - pivot - mean) * factor; }
};

// Of count values, `value(i)` the i-th of them. All threads of the block must come here; all get the same.
template <int THREADS, typename Value>
DEVICE Norm block_norm(int count, float eps, Value value) {
    const float pivot = value(0);
    float sum = 0.f;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += value(i) - pivot;
    const float mean = block_sum<THREADS>(sum) / float(count);
    float squares = 0.f;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const float centred = value(i) - pivot - mean;
        squares += centred * centred;
    }
    return Norm{pivot, mean, rsqrtf(block_sum<THREADS>(squares) / float(count) + eps)};
}

// Of a row of count values that a warp holds, lane l the vectors 32 i + l of eight; beyond count anything finite.
template <typename T, int VECTORS>
DEVICE Norm warp_norm(const Packed (&own)[VECTORS], int count, float eps) {
    const int lane = threadIdx.x % 32;
    const float pivot = shuffle_from(first_of<T>(own[0].pair[0]), 0);
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        if (8 * (32 * i + lane) >= count) continue;
        float x[8];
        unpack<T>(x, own[i]);
        for (int k = 0; k < 8; ++k) sum += x[k] - pivot;
    }
    const float mean = warp_reduce<Sum>(sum) / float(count);
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        if (8 * (32 * i + lane) >= count) continue;
        float x[8];
        unpack<T>(x, own[i]);
        for (int k = 0; k < 8; ++k) squares += (x[k] - pivot - mean) * (x[k] - pivot - mean);
    }
    return Norm{pivot, mean, rsqrtf(warp_reduce<Sum>(squares) / float(count) + eps)};
}

// The data gradient of a norm: dx = factor (d - mean(d) - xhat mean(d xhat)), with d the gradient of xhat.
struct NormBwd {
    float d_mean, along;

    DEVICE_MEMBER float operator()(float factor, float xhat, float d) const {
        return factor * (d - d_mean - xhat * along);
    }
};

// Of count elements; `xhat(i)` and `d(i, xhat)` are the i-th one's.
template <int THREADS, typename Xhat, typename Pull>
DEVICE NormBwd block_norm_bwd(int count, Xhat xhat, Pull d) {
    float d_sum = 0.f, along_sum = 0.f;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const float x = xhat(i), pulled = d(i, x);
        d_sum += pulled;
        along_sum += pulled * x;
    }
    const float d_mean = block_sum<THREADS>(d_sum) / float(count);
    return NormBwd{d_mean, block_sum<THREADS>(along_sum) / float(count)};
}

// Of `count` values: their mean, and the sum of squared distances from it.
struct Moments {
    float count, mean, m2;
};

// Of both together (Chan, Golub and LeVeque). The mean moves by a fraction of the distance: equal means stay.
DEVICE Moments merged(const Moments& a, const Moments& b) {
    const float count = a.count + b.count, distance = b.mean - a.mean;
    const float share = count > 0.f ? b.count / count : 0.f;
    return Moments{count, a.mean + distance * share, a.m2 + b.m2 + distance * distance * a.count * share};
}
