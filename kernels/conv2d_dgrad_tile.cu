// conv2d_dgrad_tile - conv2d_dgrad on tensor cores, as a product of matrices whose left one is never made: pixels of
// dx x a range of its channels, summed over taps and channels of dy.
//
//     dx[m, c] = epilogue(sum_{r, s, o} dy[pixel that tap (r, s) brought pixel m to, o] f[o, r, s, first + c])
//
// A block makes M pixels of one image by N channels; a step of the walk brings 32 channels of dy under one tap and
// 32 filters, of each N channels of that tap. So the right matrix lies by rows of the sum, in the forward filter
// itself, and ldmatrix transposes it. Which pixels of dy a tap leads to (conv.cuh):
//
//     stride t    pixels of dx fall into t t classes by the remainders of y + top and x + left; a class has the taps
//                 of its own remainder alone, so no product with a zero is made
//     up = 1      dx gathers from the two lines and columns that it was copied to: r + r lines of taps
//     sub-pixel   the same with packed filters (conv2d_tile.cu): 2 lines of taps a kind of output pixel
//
// Departures from the formula:
//   1. With splits > 1 a block sums a share of the steps; the last one of a tile adds the shares (split.cuh).
//   2. The order of a sum depends on the image's shape and `splits` alone, not on M, N or the batch.
//
// Needs o, channels, first and c in whole vectors of 8 and addresses of 16 bytes.
//
// Reference: src/cpu/conv.rs. Class: contracted. Bound by: tensor cores; DRAM for small images with wide filters.
#include "conv.cuh"
#include "split.cuh"

typedef InParts<Conv2dBwdParams> Conv2dBwdTileParams;

namespace conv2d_dgrad_tile {

constexpr int THREADS = 128;

template <int M, int N, int STAGES>
using Smem = epilogue::Shared<tile::Tile<M, N, conv::DEPTH, STAGES, 2, 2, true>>;

template <typename T, int M, int N, int STAGES>
__device__ constexpr int shared_bytes() {
    return sizeof(Smem<M, N, STAGES>);
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

// Brings the steps of a walk, one after the other.
template <typename T, typename Tile>
struct Loader {
    typedef typename Tile::A A;
    typedef typename Tile::B B;

    const Conv2dBwdParams& p;
    const T* dy;      // [height, width, o] of this image
    const T* filter;  // [kinds, o, r, s, channels] from channel first + n0 on
    int columns;      // of dx, from n0 on
    Side y, x;
    conv::Pixels<A::COPIES> pixels;  // rows A::row(i)
    int tap;                         // where it stands in a filter
    conv::Walk walk;

    DEVICE_MEMBER void aim() {
        const conv::Reach down = y.reach(walk.line), across = x.reach(walk.column);
        pixels.aim(down, across, p.width, 0);
        const int kind = down.kind * p.kinds_x + across.kind;
        tap = ((kind * p.o * p.r + down.line) * p.s + across.line) * p.channels;
    }
    DEVICE_MEMBER void step(uint32_t a, uint32_t b) {
        const int window = p.r * p.s * p.channels;
        A::fill(a, [&](int i, int, int chunk) {
            const int o = walk.channel + chunk * 8;
            const bool in = pixels.at[i] >= 0 && o < p.o;
            return tile::Piece{in ? dy + int64_t(pixels.at[i]) * p.o + o : dy, in ? 16 : 0};
        });
        B::fill(b, [&](int, int row, int chunk) {
            const int o = walk.channel + row;
            const bool in = chunk * 8 < columns && o < p.o;
            return tile::Piece{in ? filter + tap + o * window + chunk * 8 : filter, in ? 16 : 0};
        });
        if (walk.advance()) aim();
    }
};

template <typename T, int M, int N, int STAGES>
__device__ void run(const Conv2dBwdTileParams& params) {
    const Conv2dBwdParams& p = params.whole;
    typedef Smem<M, N, STAGES> Shared;
    typedef typename Shared::Tile Tile;
    typedef typename Tile::Of Warps;
    DYNAMIC_SHARED(Shared, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.o % 8 == 0 && p.c % 8 == 0);

    // 1. Which pixels, which channels, which share of the walk: x counts the tiles of all images.
    const int part = blockIdx.z % p.splits, kind = blockIdx.z / p.splits;
    const int tiles = gridDim.x / p.n, image = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    Side down{p.h, p.height, p.r, p.stride_y, p.top, p.up, p.kinds_y, kind / p.stride_x, 0};
    Side across{p.w, p.width, p.s, p.stride_x, p.left, p.up, p.kinds_x, kind % p.stride_x, 0};
    const conv::Axis y = down.axis(), x = across.axis();
    const int m0 = tile * M, n0 = blockIdx.y * N, left = y.count * x.count - m0;
    if (left <= 0) return;
    const int lines = (p.h + p.up) >> p.up, columns = (p.w + p.up) >> p.up;
    const int64_t pixels = int64_t(lines) * columns;
    const conv::Places places{image * pixels, columns, y, x, m0, left < M ? left : M, 0};
    Loader<T, Tile> loader{p,
                           p.dy.as<T>() + int64_t(image) * p.height * p.width * p.o,
                           p.filter.as<T>() + p.first + n0,
                           p.c - n0,
                           down,
                           across,
                           {},
                           0,
                           {y.taps, x.taps, p.o, 0, 0, 0}};
    loader.pixels.place([&](int i) { return m0 + Tile::A::row(i); }, y, x);

    // 2. The sums.
    typename Warps::Accumulators acc;
    conv::sum<T, Tile>(acc, cvta_to_shared(smem.bytes), loader, part, p.splits);

    // 3. What becomes of them.
    float* stage = reinterpret_cast<float*>(smem.bytes);
    epilogue::to_rows<Warps>(acc, stage);
    uint32_t* arrived = params.arrived.as<uint32_t>() + (kind * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (p.splits > 1 && !split::is_whole<Warps>(places, n0, p.c, p.sums.as<float>(), p.n * pixels * p.c, part,
                                                p.splits, arrived, stage))
        return;
    epilogue::finish_rows<T, Warps>(p.epilogue, places, n0, p.c, p.dx.as<T>(), p.epilogue.residual.as<T>(), p.c,
                                    stage);
}

}  // namespace conv2d_dgrad_tile
