// activation.cuh - point-wise functions and their slopes in f32, numbered as in launch/params.rs.
#pragma once
#include "prelude.cuh"

namespace activation {

enum Kind { IDENTITY = 0, SILU = 1, GELU = 2, QUICK_GELU = 3, RELU = 4, TANH = 5 };

DEVICE float logistic(float x) { return 1.f / (1.f + expf(-x)); }
DEVICE float normal_below(float x) { return (1.f + erff(x * 0.70710678118654752f)) * 0.5f; }

DEVICE float value(int kind, float x) {
    switch (kind) {
        case SILU: return x * logistic(x);
        case GELU: return x * normal_below(x);
        case QUICK_GELU: return x * logistic(1.702f * x);
        case RELU: return x < 0.f ? 0.f : x;  // NaN stays NaN
        case TANH: return tanhf(x);
        default: return x;
    }
}

// x s(x) with s = logistic(a x) has the slope s (1 + a x (1 - s)).
DEVICE float logistic_slope(float ax) {
    const float s = logistic(ax);
    return s * (1.f + ax * (1.f - s));
}

DEVICE float slope(int kind, float x) {
    switch (kind) {
        case SILU: return logistic_slope(x);
        case GELU: return normal_below(x) + x * expf(-0.5f * x * x) * 0.39894228040143268f;
        case QUICK_GELU: return logistic_slope(1.702f * x);
        case RELU: return x <= 0.f ? 0.f : 1.f;
        case TANH: {
            const float y = tanhf(x);
            return 1.f - y * y;
        }
        default: return 1.f;
    }
}

// What tuned forms use: approximate instructions, right to some units in the last place of f32.
DEVICE float fast_logistic(float x) { return rcp_approx_ftz_f32(1.f + ex2_approx_ftz_f32(-1.4426950408889634f * x)); }

template <int KIND>
DEVICE float fast_value(float x) {
    static_assert(KIND == IDENTITY || KIND == SILU, "no tuned form of this one");
    return KIND == SILU ? x * fast_logistic(x) : x;
}

template <int KIND>
DEVICE float fast_slope(float x) {
    static_assert(KIND == IDENTITY || KIND == SILU, "no tuned form of this one");
    if (KIND == IDENTITY) return 1.f;
    const float s = fast_logistic(x);
    return s * (1.f + x * (1.f - s));
}

}  // namespace activation
