// conv2d_dgrad_tile - conv2d_dgrad as a product of matrices whose left one is never made: pixels of dx x a range of its
// channels, summed over taps and channels of dy.
//
//     dx[m, c] = epilogue(sum_{r, s, o} dy[pixel that tap (r, s) brought pixel m to, o] f[o, r, s, first + c])
//
// A block makes BM pixels of one image by BN channels; a step of the walk brings 32 channels of dy under one tap and
// 32 filters, of each BN channels of that tap. So the right matrix lies by rows of the sum, in the forward filter
// itself, and ldmatrix transposes it. Which pixels of dy a tap leads to (conv.cuh):
//
//     stride t          pixels of dx fall into t t classes by the remainders of y + top and x + left; a class has the
//                       taps of its own remainder alone, so no product with a zero is made
//     up = 1            dx gathers from the two lines and columns that it was copied to: r + r lines of taps
//     sub-pixel         the same with packed filters (conv2d_tile.cu): 2 lines of taps a kind of output pixel
//
// Departures from the formula:
//   1. With splits > 1 a block sums a share of the steps and leaves it in f32; gemm's join adds the shares in order.
//   2. The order of a sum depends on the image's shape and `splits` alone, not on BM, BN or the batch.
//
// Needs o, channels, first and c in whole vectors of 8 and addresses of 16 bytes.
//
// Reference: src/cpu/conv.rs. Class: contracted. Bound by: tensor cores; DRAM for small images with wide filters.
#include "conv.cuh"
#include "epilogue.cuh"
#include "params.cuh"
#include "tile.cuh"

namespace conv2d_dgrad_tile {

using conv::DEPTH;
using conv::VECTOR;

constexpr int THREADS = 128;

template <typename T, int BM, int BN>
__device__ constexpr int shared_bytes() {
    return sizeof(tile::Smem<BM, BN>);
}

// One direction of the launch: sizes of dx (enlarged, where `up`) and dy, filter lines, padding.
struct Side {
    int size, out, taps, stride, before, up, kinds;
    int kind;   // class of pixels, by remainder
    int first;  // pixel of the class

    DEVICE_MEMBER conv::Axis axis() {
        first = 0;
        if (kinds > 1) return {size, 1, 0, 2, 2 * kinds};
        if (up) return {(size + 1) >> 1, 1, 0, 2, 2 * taps};
        first = ((kind - before) % stride + stride) % stride;
        return {(size - first + stride - 1) / stride, stride, first, 1, (taps - kind + stride - 1) / stride};
    }
    DEVICE_MEMBER conv::Reach reach(int tap) const {
        if (kinds > 1) {
            const int type = tap / 2, below = tap % 2, odd = type == 1;
            const bool ends = type == 0 && kinds == 3;  // the last line has a kind of its own
            return {2 - 2 * below - odd, type == 2 ? out - 1 : 0, ends ? out - 1 : out, below, type};
        }
        if (up) {
            const int copy = tap >= taps, line = copy ? tap - taps : tap;
            const int shift = copy + before - line, high = size + before - line;
            return {shift, 0, high < out ? high : out, line, 0};
        }
        return {(first + before - kind) / stride - tap, 0, out, kind + tap * stride, 0};
    }
};

template <typename T, int BM, int BN>
struct Loader {
    static constexpr int A_APART = THREADS / 4;                      // four vectors make a row of a step
    static constexpr int B_VECTORS = BN / VECTOR, B_APART = THREADS / B_VECTORS;
    static constexpr int A_OWN = BM / A_APART, B_OWN = DEPTH / B_APART;

    const Conv2dBwdParams& p;
    const T* dy;      // [height, width, o] of this image
    const T* filter;  // [.., o, r, s, channels] from this thread's vector of channels on; none: beyond the last one
    Side y, x;
    conv::Pixels<A_OWN> pixels;
    int tap;  // where the tap stands in a filter of its kind
    conv::Walk walk;

    DEVICE_MEMBER void aim() {
        const conv::Reach down = y.reach(walk.line), across = x.reach(walk.column);
        pixels.aim(down, across, p.width, 0);
        const int kind = down.kind * p.kinds_x + across.kind;
        tap = ((kind * p.o * p.r + down.line) * p.s + across.line) * p.channels;
    }
    DEVICE_MEMBER void load(uint32_t a, uint32_t b) {
        const int row = threadIdx.x / 4, vector = threadIdx.x % 4, channel = walk.channel + vector * VECTOR;
#pragma unroll
        for (int own = 0; own < A_OWN; ++own) {
            const bool there = pixels.at[own] >= 0 && channel < p.o;
            const T* from = there ? dy + int64_t(pixels.at[own]) * p.o + channel : dy;
            cp_async_cg16(tile::place(a, row + own * A_APART, vector), from, there ? 16 : 0);
        }
        const int b_row = threadIdx.x / B_VECTORS, b_vector = threadIdx.x % B_VECTORS;
#pragma unroll
        for (int own = 0; own < B_OWN; ++own) {
            const int o = walk.channel + b_row + own * B_APART;
            const bool there = filter != nullptr && o < p.o;
            const T* from = there ? filter + tap + o * p.r * p.s * p.channels : dy;
            cp_async_cg16(tile::place_wide<BN>(b, b_row + own * B_APART, b_vector), from, there ? 16 : 0);
        }
        if (walk.advance()) aim();
    }
};

template <typename T, int BM, int BN>
__device__ void run(const Conv2dBwdParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS);
    constexpr int WM = BM / 2, WN = BN / 2;
    DYNAMIC_SHARED(decltype(tile::Smem<BM, BN>()), smem);

    // 1. Which pixels, which channels, which share of the walk.
    const int classes = p.stride_y * p.stride_x;
    const int split = blockIdx.z % p.splits, kind = blockIdx.z / p.splits % classes;
    const int image = blockIdx.z / p.splits / classes;
    Side down{p.h, p.height, p.r, p.stride_y, p.top, p.up, p.kinds_y, kind / p.stride_x, 0};
    Side across{p.w, p.width, p.s, p.stride_x, p.left, p.up, p.kinds_x, kind % p.stride_x, 0};
    const conv::Axis y = down.axis(), x = across.axis();
    const int m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
    if (m0 >= y.count * x.count) return;
    const int channel = n0 + threadIdx.x % (BN / VECTOR) * VECTOR;
    Loader<T, BM, BN> loader{p,
                             p.dy.as<T>() + int64_t(image) * p.height * p.width * p.o,
                             channel < p.c ? p.filter.as<T>() + p.first + channel : nullptr,
                             down,
                             across,
                             {},
                             0,
                             {y.taps, x.taps, p.o, 0, 0, 0}};
    loader.pixels.place(m0 + threadIdx.x / 4, loader.A_APART, y, x);
    const int all = loader.walk.steps(), begin = int64_t(all) * split / p.splits;
    const int steps = int(int64_t(all) * (split + 1) / p.splits) - begin;
    if (steps > 0) {
        loader.walk.start(begin);
        loader.aim();
    }

    // 2. The product.
    tile::Core<T, BM, BN, WM, WN, true> core;
    core.clear();
    const int warp = threadIdx.x / 32, row0 = warp / 2 * WM, column0 = warp % 2 * WN;
    tile::pipeline(core, loader, smem, steps, row0, column0);

    // 3. The epilogue.
    const int lines = (p.h + p.up) >> p.up, columns = (p.w + p.up) >> p.up;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < WM / 8; ++i) {
        const int m = m0 + row0 + i * 8 + lane / 4, line = m / x.count, column = m - line * x.count;
        if (line >= y.count) continue;
        const int64_t pixel = (int64_t(image) * lines + line * y.scale + y.first) * columns + column * x.scale + x.first;
#pragma unroll
        for (int j = 0; j < WN / 8; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int c = n0 + column0 + j * 8 + lane % 4 * 2 + e;
                if (c >= p.c) continue;
                const float sum = core.sum[i / 2][j][i % 2 * 2 + e];
                const int64_t at = pixel * p.c + c;
                if (p.splits > 1)
                    p.partials.as<float>()[int64_t(split) * p.n * lines * columns * p.c + at] = sum;
                else
                    p.dx.as<T>()[at] = from_f32<T>(epilogue::value<T>(p.epilogue, sum, image, at, c, p.c));
            }
    }
}

}  // namespace conv2d_dgrad_tile
