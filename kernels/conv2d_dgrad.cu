// conv2d_dgrad - the data gradient of conv2d, for a range of the channels of its input. The general form: any
// size, stride and padding.
//
//     du[n, i, j, c] = sum_{r, s, o} f[o, r, s, first + c] dy[n, (i + top - r) / stride_y, (j + left - s) / stride_x, o]
//     dx[n, i, j, c] = epilogue(sum of du over the pixels that pixel (i, j) was copied to)
//
// over the taps for which both quotients are whole and inside of dy. The filter is the forward one, read in place.
// Of two tensors side by side, each gets its gradient by its own range of channels.
//
// Departures from the formulas: none. du is never made; one output a thread: copies, then taps, then o.
//
// Reference: src/cpu/conv.rs. Class: contracted. Bound by: cache, every dy is read r s times an input channel.
#include "epilogue.cuh"

namespace conv2d_dgrad {

constexpr int THREADS = 256;

// Adds the gradient of pixel (line, column) of u.
template <typename T>
DEVICE float gather(const Conv2dBwdParams& p, const T* image, const T* filter, int line, int column, float sum) {
    for (int r = 0; r < p.r; ++r)
        for (int s = 0; s < p.s; ++s) {
            const int i = line + p.top - r, j = column + p.left - s;
            if (i < 0 || j < 0 || i % p.stride_y != 0 || j % p.stride_x != 0) continue;
            if (i / p.stride_y >= p.height || j / p.stride_x >= p.width) continue;
            const T* pixel = image + (int64_t(i / p.stride_y) * p.width + j / p.stride_x) * p.o;
            const T* tap = filter + (int64_t(r) * p.s + s) * p.channels;
            for (int o = 0; o < p.o; ++o)
                sum += to_f32(tap[int64_t(o) * p.r * p.s * p.channels]) * to_f32(pixel[o]);
        }
    return sum;
}

template <typename T>
__device__ void run(const Conv2dBwdParams& p) {
    const T* dy = p.dy.as<T>();                    // [n, height, width, o]
    const T* filter = p.filter.as<T>() + p.first;  // [o, r, s, channels], from channel `first` on
    T* dx = p.dx.as<T>();                          // [n, lines, columns, c]
    const int lines = (p.h + p.up) >> p.up, columns = (p.w + p.up) >> p.up;
    const int64_t count = int64_t(p.n) * lines * columns * p.c;
    for (int64_t at = grid_thread(); at < count; at += grid_threads()) {
        const int c = at % p.c, column = at / p.c % columns, line = at / p.c / columns % lines;
        const int64_t image = at / (int64_t(p.c) * columns * lines);
        float sum = 0.f;
        for (int i = line << p.up; i < p.h && i >> p.up == line; ++i)
            for (int j = column << p.up; j < p.w && j >> p.up == column; ++j)
                sum = gather(p, dy + image * p.height * p.width * p.o, filter + c, i, j, sum);
        dx[at] = from_f32<T>(epilogue::point<T>(p.epilogue, sum, at / p.c, c, p.c));
    }
}

}  // namespace conv2d_dgrad
