// conv2d - a convolution over NHWC images and its data gradient. The general form: any size, stride, padding.
//
//     run       y[n, i, j, o] = b[o] + sum_{r, s, c} w[o, r, s, c] x[n, i stride + r - top, j stride + s - left, c]
//     backward  dx[n, y, x, c] = sum_{r, s, o} w[o, r, s, c] dy[n, (y + top - r) / stride, (x + left - s) / stride, o]
//               over the taps for which both quotients are whole and inside; the same filter, read in place
//
// Departures from the formulas: none. One output a thread, in the order of the sum.
//
// Reference: src/cpu/conv.rs. Class: contracted. Bound by: cache, every x is read r s times an output channel.
#include "params.cuh"

namespace conv2d {

constexpr int THREADS = 256;

template <typename T>
__device__ void run(const Conv2dParams& p) {
    const T* x = p.x.as<T>();                // [n, h, w, c]
    const T* filter = p.filter.as<T>();      // [o, r, s, c]
    const float* bias = p.bias.as<float>();  // [o], or none
    T* y = p.y.as<T>();                      // [n, height, width, o]
    const int64_t count = int64_t(p.n) * p.height * p.width * p.o;
    for (int64_t at = grid_thread(); at < count; at += grid_threads()) {
        const int o = at % p.o, j = at / p.o % p.width, i = at / p.o / p.width % p.height;
        const T* image = x + at / (int64_t(p.o) * p.width * p.height) * p.h * p.w * p.c;
        float sum = 0.f;
        for (int r = 0; r < p.r; ++r)
            for (int s = 0; s < p.s; ++s) {
                const int line = i * p.stride + r - p.top, column = j * p.stride + s - p.left;
                if (line < 0 || line >= p.h || column < 0 || column >= p.w) continue;
                const T* pixel = image + (int64_t(line) * p.w + column) * p.c;
                const T* tap = filter + ((int64_t(o) * p.r + r) * p.s + s) * p.c;
                for (int c = 0; c < p.c; ++c) sum += to_f32(tap[c]) * to_f32(pixel[c]);
            }
        y[at] = from_f32<T>(bias != nullptr ? sum + bias[o] : sum);
    }
}

template <typename T>
__device__ void backward(const Conv2dParams& p) {
    const T* dy = p.y.as<T>();           // [n, height, width, o]
    const T* filter = p.filter.as<T>();  // [o, r, s, c]
    T* dx = p.x.as<T>();                 // [n, h, w, c]
    const int64_t count = int64_t(p.n) * p.h * p.w * p.c;
    for (int64_t at = grid_thread(); at < count; at += grid_threads()) {
        const int c = at % p.c, column = at / p.c % p.w, line = at / p.c / p.w % p.h;
        const T* image = dy + at / (int64_t(p.c) * p.w * p.h) * p.height * p.width * p.o;
        float sum = 0.f;
        for (int r = 0; r < p.r; ++r)
            for (int s = 0; s < p.s; ++s) {
                const int i = line + p.top - r, j = column + p.left - s;
                if (i < 0 || j < 0 || i % p.stride != 0 || j % p.stride != 0) continue;
                if (i / p.stride >= p.height || j / p.stride >= p.width) continue;
                const T* pixel = image + (int64_t(i / p.stride) * p.width + j / p.stride) * p.o;
                const T* tap = filter + (int64_t(r) * p.s + s) * p.c + c;
                for (int o = 0; o < p.o; ++o) sum += to_f32(tap[int64_t(o) * p.r * p.s * p.c]) * to_f32(pixel[o]);
            }
        dx[at] = from_f32<T>(sum);
    }
}

}  // namespace conv2d
