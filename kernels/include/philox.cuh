// philox.cuh - normal numbers of a seed, a draw and an element alone: Philox-4x32-10 (Salmon et al. 2011) and
// Box-Muller, as src/sampler/noise.rs has them for torch's CUDA generator.
//
// The words are exact. Logarithm and sine are taken in f64 and rounded to f32 where the host rounds, so that the
// numbers are the host's but for a rounding that f64 leaves undecided.
#pragma once
#include "prelude.cuh"

namespace philox {

struct Words {
    uint32_t at[4];
};

DEVICE Words words(Words counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t(0xd2511f53u) * counter.at[0], b = uint64_t(0xcd9e8d57u) * counter.at[2];
        counter = Words{{uint32_t(b >> 32) ^ counter.at[1] ^ key0, uint32_t(b),
                         uint32_t(a >> 32) ^ counter.at[3] ^ key1, uint32_t(a)}};
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return counter;
}

// Of an angle in 0 .. 2 pi: a quarter of the circle and a Taylor series, right to 1e-14.
DEVICE float sine(float theta) {
    const int quarter = int(theta * 0.636619772f + 0.5f);
    const double r = (double(theta) - quarter * 1.5707963267948966) - quarter * 6.123233995736766e-17, rr = r * r;
    double sine = -1. / 1307674368000., cosine = -1. / 87178291200.;
    sine   = sine * rr + 1. / 6227020800.;
    cosine = cosine * rr + 1. / 479001600.;
    sine   = sine * rr - 1. / 39916800.;
    cosine = cosine * rr - 1. / 3628800.;
    sine   = sine * rr + 1. / 362880.;
    cosine = cosine * rr + 1. / 40320.;
    sine   = sine * rr - 1. / 5040.;
    cosine = cosine * rr - 1. / 720.;
    sine   = sine * rr + 1. / 120.;
    cosine = cosine * rr + 1. / 24.;
    sine   = sine * rr - 1. / 6.;
    cosine = cosine * rr - 1. / 2.;
    sine   = r + r * rr * sine;
    cosine = 1. + rr * cosine;
    const double value = quarter & 1 ? cosine : sine;
    return float(quarter & 2 ? -value : value);
}

// Element `index` of the `draw`-th array of normal numbers.
DEVICE float normal(uint64_t seed, uint64_t draw, uint64_t index) {
    const float step = 2.3283064365386963e-10f, angle = step * 6.2831853071795865f;  // 2^-32, and of the circle
    const Words found = words({{uint32_t(draw), uint32_t(draw >> 32), uint32_t(index), uint32_t(index >> 32)}},
                              uint32_t(seed), uint32_t(seed >> 32));
    const float u = float(found.at[0]) * step + step / 2.f;
    const float theta = fmaf(float(found.at[1]), angle, angle / 2.f);
    return sqrtf(-2.f * float(log(double(u)))) * sine(theta);
}

}  // namespace philox
