// conv2d_tile - conv2d as a product of matrices whose left one is never made: pixels of y x channels of y, summed over
// taps and channels of x.
//
//     y[m, o] = epilogue(sum_{r, s, c} u[pixel of m under tap (r, s), c] f[o, r, s, c])
//
// A block makes BM pixels of one image by BN channels; a step of the walk brings 32 channels of one tap: of every
// pixel the 64 bytes that the tap makes it read (conv.cuh), zero outside of the image, and of every filter its 64
// bytes. Vectors of 16 bytes choose their source, so a step may lie across two tensors side by side.
//
// Sub-pixel form (kinds > 1): nearest-2x enlargement and then 3 x 3 taps is, for each parity of the output pixel, a
// convolution of 2 x 2 taps on the small image; the filters are packed so, [kinds_y kinds_x, o, 2, 2, c] with the
// taps summed that read one pixel. A third kind is the last line of an odd number: nothing lies below it.
//
// Departures from the formula:
//   1. With splits > 1 a block sums a share of the steps and leaves it in f32; gemm's join adds the shares in order.
//   2. The order of a sum depends on the image's shape and `splits` alone, not on BM, BN or the batch.
//
// Needs c, c2 in whole vectors of 8 and addresses of 16 bytes; o may be any.
//
// Reference: src/cpu/conv.rs. Class: contracted. Bound by: tensor cores; DRAM for small images with wide filters.
#include "conv.cuh"
#include "epilogue.cuh"
#include "params.cuh"
#include "tile.cuh"

namespace conv2d_tile {

using conv::DEPTH;
using conv::VECTOR;

constexpr int THREADS = 128;

template <typename T, int BM, int BN>
__device__ constexpr int shared_bytes() {
    return sizeof(tile::Smem<BM, BN>);
}

// Output pixels of one kind along one direction.
DEVICE conv::Axis axis_of(int kind, int kinds, int size, int stride, int taps) {
    if (kinds == 1) return {size, 1, 0, stride, taps};
    if (kind == 2) return {1, 2, size - 1, 1, taps};
    return {(size + 1 - kind) / 2 - (kind == 0 && kinds == 3), 2, kind, 1, taps};
}

// How far the first tap lies before the pixel of the same number.
DEVICE int before(int kind, int kinds, int size, int padding) {
    if (kinds == 1) return padding;
    return kind == 2 ? 2 - (size + 1) / 2 : 1 - kind;
}

template <typename T, int BM, int BN>
struct Loader {
    static constexpr int APART = THREADS / 4;  // four vectors make a row of a step
    static constexpr int A_OWN = BM / APART, B_OWN = BN / APART;

    const Conv2dParams& p;
    const T *x, *x2;       // [lines, columns, c] of this image
    const T* filter;       // [o, r, s, c + c2] of this kind
    int columns;           // of the stored image
    int above, left;       // of the first tap
    conv::Pixels<A_OWN> pixels;
    int filter_row[B_OWN];  // where the filter of channel n0 + threadIdx.x / 4 + own * APART begins; -1: there is none
    conv::Walk walk;

    DEVICE_MEMBER void aim() {
        pixels.aim({walk.line - above, 0, p.h, 0, 0}, {walk.column - left, 0, p.w, 0, 0}, columns, p.up);
    }
    DEVICE_MEMBER void load(uint32_t a, uint32_t b) {
        const int row = threadIdx.x / 4, vector = threadIdx.x % 4, channel = walk.channel + vector * VECTOR;
        const int channels = p.c + p.c2;
        const bool second = channel >= p.c;
        const T* source = second ? x2 + (channel - p.c) : x + channel;
        const int width = second ? p.c2 : p.c;
#pragma unroll
        for (int own = 0; own < A_OWN; ++own) {
            const bool there = pixels.at[own] >= 0 && channel < channels;
            const T* from = there ? source + int64_t(pixels.at[own]) * width : x;
            cp_async_cg16(tile::place(a, row + own * APART, vector), from, there ? 16 : 0);
        }
        const int tap = (walk.line * p.s + walk.column) * channels + channel;
#pragma unroll
        for (int own = 0; own < B_OWN; ++own) {
            const bool there = filter_row[own] >= 0 && channel < channels;
            cp_async_cg16(tile::place(b, row + own * APART, vector), there ? filter + filter_row[own] + tap : filter,
                          there ? 16 : 0);
        }
        if (walk.advance()) aim();
    }
};

template <typename T, int BM, int BN>
__device__ void run(const Conv2dParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS);
    constexpr int WM = BM / 2, WN = BN / 2;
    DYNAMIC_SHARED(decltype(tile::Smem<BM, BN>()), smem);

    // 1. Which pixels, which channels, which share of the walk.
    const int split = blockIdx.z % p.splits, kind = blockIdx.z / p.splits % (p.kinds_y * p.kinds_x);
    const int image = blockIdx.z / p.splits / (p.kinds_y * p.kinds_x);
    const int kind_y = kind / p.kinds_x, kind_x = kind % p.kinds_x;
    const conv::Axis y = axis_of(kind_y, p.kinds_y, p.height, p.stride_y, p.r);
    const conv::Axis x = axis_of(kind_x, p.kinds_x, p.width, p.stride_x, p.s);
    const int m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
    if (m0 >= y.count * x.count) return;
    const int columns = (p.w + p.up) >> p.up;
    const int64_t pixels = int64_t((p.h + p.up) >> p.up) * columns;
    const int window = p.r * p.s * (p.c + p.c2);
    Loader<T, BM, BN> loader{p,
                             p.x.as<T>() + image * pixels * p.c,
                             p.x2.as<T>() + image * pixels * p.c2,
                             p.filter.as<T>() + int64_t(kind) * p.o * window,
                             columns,
                             before(kind_y, p.kinds_y, p.height, p.top),
                             before(kind_x, p.kinds_x, p.width, p.left),
                             {},
                             {},
                             {p.r, p.s, p.c + p.c2, 0, 0, 0}};
    loader.pixels.place(m0 + threadIdx.x / 4, loader.APART, y, x);
    for (int own = 0; own < loader.B_OWN; ++own) {
        const int o = n0 + threadIdx.x / 4 + own * loader.APART;
        loader.filter_row[own] = o < p.o ? o * window : -1;
    }
    const int all = loader.walk.steps(), begin = int64_t(all) * split / p.splits;
    const int steps = int(int64_t(all) * (split + 1) / p.splits) - begin;
    loader.walk.start(begin);
    loader.aim();

    // 2. The product.
    tile::Core<T, BM, BN, WM, WN, false> core;
    core.clear();
    const int warp = threadIdx.x / 32, row0 = warp / 2 * WM, column0 = warp % 2 * WN;
    tile::pipeline(core, loader, smem, steps, row0, column0);

    // 3. The epilogue.
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < WM / 8; ++i) {
        const int m = m0 + row0 + i * 8 + lane / 4, line = m / x.count, column = m - line * x.count;
        if (line >= y.count) continue;
        const int64_t pixel = (int64_t(image) * p.height + line * y.scale + y.first) * p.width + column * x.scale + x.first;
#pragma unroll
        for (int j = 0; j < WN / 8; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int o = n0 + column0 + j * 8 + lane % 4 * 2 + e;
                if (o >= p.o) continue;
                const float sum = core.sum[i / 2][j][i % 2 * 2 + e];
                const int64_t at = pixel * p.o + o;
                if (p.splits > 1)
                    p.partials.as<float>()[int64_t(split) * p.n * p.height * p.width * p.o + at] = sum;
                else
                    p.y.as<T>()[at] = from_f32<T>(epilogue::value<T>(p.epilogue, sum, image, at, o, p.o));
            }
    }
}

}  // namespace conv2d_tile
