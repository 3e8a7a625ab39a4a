// conv2d_gather - convolutions and data gradients on tensor cores whose channels are no whole vectors: the first and
// the last layers, which read or write images of three channels or latents of four, and patches of 14 x 14.
//
//     run          y[m, o]  = epilogue(sum_k u[m, k] f[o, k])              k counts (tap, channel of x)
//     backward     dx[m, c] = epilogue(sum_k du[m, k] f[k, first + c])     k counts (tap, channel of dy); stride 1
//     patches_bwd  dx[m, c] = epilogue(sum_o dy[patch of m, o] f[o, line of m in its patch, c])
//
// Rows of u and du are the pixels that the taps lead to, zero outside of the image. Where a channel or two go to a
// pixel, a step of 32 channels of one tap would be zeros for the most part; so a sum runs over taps and channels
// together, 36 terms for four channels under 3 x 3 taps, in the order in which the forward filter lies in memory.
// Gradients read that very filter. A patch's pixels side by side are channels of one (src/launch/conv2d.rs).
//
// What it costs, against what it must: elements are loaded by two bytes, r s c of them a pixel for every N columns.
// For 3 -> 128 channels that is 54 loads a pixel beside 256 bytes that are stored, which bound it; for four channels
// and for patches all operands together are a few MB, and time goes into starting.
//
// Departures from the formulas:
//   1. Terms beyond the last one are zeros.
//   2. The sum grows by 16 of k at a time.
//
// backward needs c, channels and first in whole vectors of 8, and patches_bwd o; other addresses and extents may be
// any.
//
// Reference: src/cpu/conv.rs; conv2d.cu and conv2d_dgrad.cu are the general forms. Class: contracted.
// Bound by: DRAM, the result.
#include "epilogue.cuh"
#include "gather.cuh"

namespace conv2d_gather {

constexpr int THREADS = 128;

template <int M, int N, bool B_BY_ROWS>
struct Smem : epilogue::Shared<tile::Tile<M, N, conv::DEPTH, 2, 2, 2, B_BY_ROWS>> {
    typedef tile::Tile<M, N, conv::DEPTH, 2, 2, 2, B_BY_ROWS> Tile;
    typedef typename Tile::A A;
    typedef typename Tile::B B;
    static_assert(A::REGULAR && B::REGULAR, "one chunk a thread");
};

template <typename T, int M, int N>
__device__ constexpr int shared_bytes() {
    static_assert(sizeof(Smem<M, N, false>) == sizeof(Smem<M, N, true>), "whichever way b lies");
    return sizeof(Smem<M, N, false>);
}

// Where a block works: x of the grid counts the tiles of all images, y the tiles of columns.
struct Place {
    int image, tile, m0, n0;
};
template <int M, int N>
DEVICE Place place(int images) {
    const int tiles = gridDim.x / images, tile = blockIdx.x % tiles;
    return {int(blockIdx.x) / tiles, tile, tile * M, int(blockIdx.y) * N};
}

template <int M>
DEVICE int rows_left(const conv::Axis& y, const conv::Axis& x, int m0) {
    const int left = y.count * x.count - m0;
    return left < M ? left : M;
}

// The sums over `depth` terms, which `load` brings (gather.cuh), and what becomes of them: columns from n0 on, of n.
template <typename T, typename Shared, typename Load>
DEVICE void make(const Epilogue& e, const conv::Places& places, int n0, int n, T* to, Shared& smem, int depth,
                 const Load& load) {
    typedef typename Shared::Tile Tile;
    typedef typename Tile::Of Warps;
    typename Warps::Accumulators acc;
    Warps::clear(acc);
    gather::run<T, Tile>(acc, cvta_to_shared(smem.bytes), (depth + Tile::K - 1) / Tile::K, load);
    epilogue::finish<T, Warps>(e, acc, places, n0, n, to, e.residual.as<T>(), n, reinterpret_cast<float*>(smem.bytes));
}

template <typename T, int M, int N>
__device__ void run(const Conv2dParams& p) {
    typedef Smem<M, N, false> Shared;
    typedef typename Shared::A A;
    typedef typename Shared::B B;
    DYNAMIC_SHARED(Shared, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.c2 == 0 && p.up == 0);

    // 1. Which pixels, which channels.
    const Place at = place<M, N>(p.n);
    const conv::Axis y = {p.height, 1, 0, p.stride_y, p.r}, x = {p.width, 1, 0, p.stride_x, p.s};
    const conv::Places places{int64_t(at.image) * p.height * p.width, p.width, y, x, at.m0,
                              rows_left<M>(y, x, at.m0), int64_t(blockIdx.x)};
    const int depth = p.r * p.s * p.c, filters = p.o - at.n0;
    const T* filter = p.filter.as<T>() + int64_t(at.n0) * depth;  // [o, r, s, c] from n0 on
    gather::Windows<T, A::COPIES> windows{
        p.x.as<T>() + int64_t(at.image) * p.h * p.w * p.c, p.h, p.w, p.c, p.r, p.s, p.top, p.left, 1, {}};
    windows.pixels.place([&](int i) { return at.m0 + A::row(i); }, y, x);

    // 2. The sums, and what becomes of them.
    make<T>(p.epilogue, places, at.n0, p.o, p.y.as<T>(), smem, depth,
            [&](int step, gather::Chunk (&a)[A::COPIES], gather::Chunk (&b)[B::COPIES]) {
        windows.chunks(a, step * conv::DEPTH + A::chunk(0) * 8);
        const int k = step * conv::DEPTH + B::chunk(0) * 8;
#pragma unroll
        for (int i = 0; i < B::COPIES; ++i) {
            const int row = B::row(i);
            b[i] = gather::elements(filter + int64_t(row) * depth + k, row < filters ? depth - k : 0);
        }
    });
}

template <typename T, int M, int N>
__device__ void backward(const Conv2dBwdParams& p) {
    typedef Smem<M, N, true> Shared;
    typedef typename Shared::A A;
    typedef typename Shared::B B;
    DYNAMIC_SHARED(Shared, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.c % 8 == 0 && p.stride_y == 1 && p.stride_x == 1 && p.up == 0);

    // 1. Which pixels, which channels.
    const Place at = place<M, N>(p.n);
    const conv::Axis y = {p.h, 1, 0, 1, p.r}, x = {p.w, 1, 0, 1, p.s};
    const conv::Places places{int64_t(at.image) * p.h * p.w, p.w, y, x, at.m0, rows_left<M>(y, x, at.m0), 0};
    const int taps = p.r * p.s, depth = taps * p.o, column = at.n0 + B::chunk(0) * 8;
    const T* filter = p.filter.as<T>() + p.first + column;  // [o, r, s, channels] from this thread's channels on
    gather::Windows<T, A::COPIES> windows{p.dy.as<T>() + int64_t(at.image) * p.height * p.width * p.o,
                                          p.height, p.width, p.o, p.r, p.s, p.top, p.left, -1, {}};
    windows.pixels.place([&](int i) { return at.m0 + A::row(i); }, y, x);

    // 2. The sums, and what becomes of them.
    make<T>(p.epilogue, places, at.n0, p.c, p.dx.as<T>(), smem, depth,
            [&](int step, gather::Chunk (&a)[A::COPIES], gather::Chunk (&b)[B::COPIES]) {
        windows.chunks(a, step * conv::DEPTH + A::chunk(0) * 8);
#pragma unroll
        for (int i = 0; i < B::COPIES; ++i) {
            const int k = step * conv::DEPTH + B::row(i), tap = k / p.o, o = k - tap * p.o;
            b[i] = gather::vector(filter + (int64_t(o) * taps + tap) * p.channels, k < depth && column < p.c);
        }
    });
}

// z of the grid is the line of a patch.
template <typename T, int M, int N>
__device__ void patches_bwd(const Conv2dBwdParams& p) {
    typedef Smem<M, N, true> Shared;
    typedef typename Shared::A A;
    typedef typename Shared::B B;
    DYNAMIC_SHARED(Shared, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.o % 8 == 0 && p.h == p.height * p.r && p.w == p.width && p.s == 1);

    // 1. Which patches, which channels, which line.
    const Place at = place<M, N>(p.n);
    const int line = blockIdx.z;
    const conv::Axis y = {p.height, p.r, line, 1, 1}, x = {p.width, 1, 0, 1, 1};
    const int rows = rows_left<M>(y, x, at.m0);
    const conv::Places places{int64_t(at.image) * p.h * p.w, p.w, y, x, at.m0, rows, 0};
    const int64_t window = int64_t(p.r) * p.channels;
    const int column = at.n0 + B::chunk(0) * 8;
    const T* filter = p.filter.as<T>() + int64_t(line) * p.channels + p.first + column;  // [o, r, channels]
    const T* dy = p.dy.as<T>() + (int64_t(at.image) * p.height * p.width + at.m0) * p.o;  // [rows, o]

    // 2. The sums, and what becomes of them.
    make<T>(p.epilogue, places, at.n0, p.c, p.dx.as<T>(), smem, p.o,
            [&](int step, gather::Chunk (&a)[A::COPIES], gather::Chunk (&b)[B::COPIES]) {
        const int k = step * conv::DEPTH + A::chunk(0) * 8;
#pragma unroll
        for (int i = 0; i < A::COPIES; ++i)
            a[i] = gather::vector(dy + int64_t(A::row(i)) * p.o + k, A::row(i) < rows && k < p.o);
#pragma unroll
        for (int i = 0; i < B::COPIES; ++i) {
            const int o = step * conv::DEPTH + B::row(i);
            b[i] = gather::elements(filter + o * window, o < p.o ? p.c - column : 0);
        }
    });
}

}  // namespace conv2d_gather
