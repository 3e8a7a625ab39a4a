// conv2d - a convolution over NHWC images, of one tensor or of two side by side, enlarged or as they are.
// The general form: any size, stride and padding.
//
//     u[n, i, j, :] = [x, x2][n, i / 2^up, j / 2^up, :]
//     y[n, i, j, o] = epilogue(sum_{r, s, c} f[o, r, s, c] u[n, i stride_y + r - top, j stride_x + s - left, c])
//
// u has h x w pixels and is zero outside. The stored images have (h + up) / 2^up lines, so that an enlarged image
// may be one line or column short of twofold.
//
// Departures from the formulas: none. u is never made; one output a thread, in the order of the sum.
//
// Reference: src/cpu/conv.rs. Class: contracted. Bound by: cache, every x is read r s times an output channel.
#include "epilogue.cuh"

namespace conv2d {

constexpr int THREADS = 256;

template <typename T>
DEVICE float dot(const T* a, const T* b, int count, float sum) {
    for (int c = 0; c < count; ++c) sum += to_f32(a[c]) * to_f32(b[c]);
    return sum;
}

template <typename T>
__device__ void run(const Conv2dParams& p) {
    const T* x = p.x.as<T>();            // [n, lines, columns, c]
    const T* x2 = p.x2.as<T>();          // [n, lines, columns, c2], or none
    const T* filter = p.filter.as<T>();  // [o, r, s, c + c2]
    T* y = p.y.as<T>();                  // [n, height, width, o]
    const int lines = (p.h + p.up) >> p.up, columns = (p.w + p.up) >> p.up, channels = p.c + p.c2;
    const int64_t count = int64_t(p.n) * p.height * p.width * p.o;
    for (int64_t at = grid_thread(); at < count; at += grid_threads()) {
        const int o = at % p.o, j = at / p.o % p.width, i = at / p.o / p.width % p.height;
        const int64_t image = at / (int64_t(p.o) * p.width * p.height);
        float sum = 0.f;
        for (int r = 0; r < p.r; ++r)
            for (int s = 0; s < p.s; ++s) {
                const int line = i * p.stride_y + r - p.top, column = j * p.stride_x + s - p.left;
                if (line < 0 || line >= p.h || column < 0 || column >= p.w) continue;
                const int64_t pixel = (image * lines + (line >> p.up)) * columns + (column >> p.up);
                const T* tap = filter + ((int64_t(o) * p.r + r) * p.s + s) * channels;
                sum = dot(x + pixel * p.c, tap, p.c, sum);
                if (p.c2 > 0) sum = dot(x2 + pixel * p.c2, tap + p.c, p.c2, sum);
            }
        y[at] = from_f32<T>(epilogue::point<T>(p.epilogue, sum, at / p.o, o, p.o));
    }
}

}  // namespace conv2d
