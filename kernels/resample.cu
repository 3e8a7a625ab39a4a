// resample - bicubic resizing with normalisation, nearest-neighbour enlargement, and the adjoints of both.
//
//     bicubic      u[i, j] = sum_{a, b} w_a w_b x[clamp(y + a), clamp(x + b)],  out = (u - mean) / std
//                  at position (i + 1/2) h / height - 1/2, a = -0.75, no antialias, a and b in -1 .. 2
//     bicubic_bwd  its adjoint: every pixel gathers from the outputs that read it
//     nearest      out[i, j] = x[floor(i h / height), floor(j w / width)]
//     nearest_bwd  its adjoint: the sum over the copies
//
// Departures from the formulas, for accuracy: positions are exact fractions of integers, so an image of any size
// has weights that are right to the last digit of f32.
//
// Reference: src/cpu/resample.rs. Class: reduced; nearest: exact; nearest_bwd: rounded.
// Bound by: DRAM where the sizes are alike, else by the gather of bicubic_bwd.
#include "params.cuh"

namespace resample {

constexpr int THREADS = 256;

// Where output `i` of `to` reads in a line of `from`: at `first` - 1 .. `first` + 2, with these weights.
struct Taps {
    int first;
    float weight[4];
};

DEVICE float near_weight(float t) { return (1.25f * t - 2.25f) * t * t + 1.f; }                // |t| <= 1
DEVICE float far_weight(float t) { return ((-0.75f * t + 3.75f) * t - 6.f) * t + 3.f; }        // 1 <= |t| <= 2

DEVICE Taps taps_of(int i, int from, int to) {
    const int64_t twice = (2 * int64_t(i) + 1) * from - to;  // the position is twice / (2 to)
    const int64_t whole = twice >= 0 ? twice / (2 * to) : -((2 * to - 1 - twice) / (2 * to));
    const float t = float(twice - whole * 2 * to) / float(2 * to);
    return Taps{int(whole), {far_weight(t + 1.f), near_weight(t), near_weight(1.f - t), far_weight(2.f - t)}};
}

DEVICE int clamped(int at, int size) { return at < 0 ? 0 : at >= size ? size - 1 : at; }

// How much of input `at` output `i` reads.
DEVICE float weight_of(int i, int at, int from, int to) {
    const Taps taps = taps_of(i, from, to);
    float weight = 0.f;
    for (int k = 0; k < 4; ++k)
        if (clamped(taps.first - 1 + k, from) == at) weight += taps.weight[k];
    return weight;
}

// Outputs below this do not read input `at`, unless it is the first one: positions are at most at - 2.
DEVICE int first_reader(int at, int from, int to) {
    if (at == 0) return 0;
    const int64_t i = ((2 * int64_t(at) - 3) * to) / (2 * int64_t(from)) - 2;
    return i < 0 ? 0 : i > to ? to : int(i);
}

// Outputs from this on do not read it, unless it is the last one.
DEVICE int end_of_readers(int at, int from, int to) {
    if (at == from - 1) return to;
    const int64_t i = ((2 * int64_t(at) + 5) * to) / (2 * int64_t(from)) + 2;
    return i > to ? to : int(i);
}

template <typename T>
__device__ void bicubic(const ResampleParams& p) {
    const T* x = p.x.as<T>();  // [n, h, w, 3]
    T* out = p.out.as<T>();    // [n, height, width, 3]
    const int64_t count = int64_t(p.n) * p.height * p.width * 3;
    for (int64_t i = grid_thread(); i < count; i += grid_threads()) {
        const int channel = i % 3, column = i / 3 % p.width, line = i / 3 / p.width % p.height;
        const T* image = x + i / (int64_t(p.height) * p.width * 3) * p.h * p.w * 3;
        const Taps rows = taps_of(line, p.h, p.height), columns = taps_of(column, p.w, p.width);
        float u = 0.f;
        for (int a = 0; a < 4; ++a) {
            const T* row = image + int64_t(clamped(rows.first - 1 + a, p.h)) * p.w * 3 + channel;
            float along = 0.f;
            for (int b = 0; b < 4; ++b) along += columns.weight[b] * to_f32(row[clamped(columns.first - 1 + b, p.w) * 3]);
            u += rows.weight[a] * along;
        }
        out[i] = from_f32<T>((u - p.mean[channel]) / p.std[channel]);
    }
}

template <typename T>
__device__ void bicubic_bwd(const ResampleParams& p) {
    const T* dy = p.x.as<T>();  // [n, height, width, 3]
    T* dx = p.out.as<T>();      // [n, h, w, 3]
    const int64_t count = int64_t(p.n) * p.h * p.w * 3;
    for (int64_t i = grid_thread(); i < count; i += grid_threads()) {
        const int channel = i % 3, column = i / 3 % p.w, line = i / 3 / p.w % p.h;
        const T* image = dy + i / (int64_t(p.h) * p.w * 3) * p.height * p.width * 3 + channel;
        const int left = first_reader(column, p.w, p.width), right = end_of_readers(column, p.w, p.width);
        float sum = 0.f;
        for (int a = first_reader(line, p.h, p.height); a < end_of_readers(line, p.h, p.height); ++a) {
            const float weight = weight_of(a, line, p.h, p.height);
            float along = 0.f;
            for (int b = left; b < right; ++b)
                along += weight_of(b, column, p.w, p.width) * to_f32(image[(int64_t(a) * p.width + b) * 3]);
            sum += weight * along;
        }
        dx[i] = from_f32<T>(sum / p.std[channel]);
    }
}

template <typename T>
__device__ void nearest(const UpsampleParams& p) {
    const T* x = p.x.as<T>();  // [n, h, w, c]
    T* out = p.out.as<T>();    // [n, height, width, c]
    const int64_t count = int64_t(p.n) * p.height * p.width * p.c;
    for (int64_t i = grid_thread(); i < count; i += grid_threads()) {
        const int64_t pixel = i / p.c, column = pixel % p.width, line = pixel / p.width % p.height;
        const int64_t image = pixel / (int64_t(p.width) * p.height);
        const int64_t source = (image * p.h + line * p.h / p.height) * p.w + column * p.w / p.width;
        out[i] = x[source * p.c + i % p.c];
    }
}

// The outputs that copy input `at` end before this one.
DEVICE int64_t copies_before(int64_t at, int from, int to) { return (at * to + from - 1) / from; }

template <typename T>
__device__ void nearest_bwd(const UpsampleParams& p) {
    const T* dy = p.x.as<T>();  // [n, height, width, c]
    T* dx = p.out.as<T>();      // [n, h, w, c]
    const int64_t count = int64_t(p.n) * p.h * p.w * p.c;
    for (int64_t i = grid_thread(); i < count; i += grid_threads()) {
        const int64_t pixel = i / p.c, column = pixel % p.w, line = pixel / p.w % p.h;
        const int64_t image = pixel / (int64_t(p.w) * p.h);
        float sum = 0.f;
        for (int64_t a = copies_before(line, p.h, p.height); a < copies_before(line + 1, p.h, p.height); ++a)
            for (int64_t b = copies_before(column, p.w, p.width); b < copies_before(column + 1, p.w, p.width); ++b)
                sum += to_f32(dy[((image * p.height + a) * p.width + b) * p.c + i % p.c]);
        dx[i] = from_f32<T>(sum);
    }
}

}  // namespace resample
