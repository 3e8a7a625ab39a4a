// conv2d_tile - conv2d on tensor cores, as a product of matrices whose left one is never made: pixels of y x channels
// of y, summed over taps and channels of x.
//
//     y[m, o] = epilogue(sum_{r, s, c} u[pixel of m under tap (r, s), c] f[o, r, s, c])
//
// A block makes M pixels of one image by N channels; a step of the walk brings 32 channels of one tap: of every
// pixel the 64 bytes that the tap makes it read (conv.cuh), zero outside of the image, and of every filter its 64
// bytes. Vectors of 16 bytes choose their source, so a step may lie across two tensors side by side.
//
// Sub-pixel form (kinds > 1): nearest-2x enlargement and then 3 x 3 taps is, for each parity of the output pixel, a
// convolution of 2 x 2 taps on the small image; the filters are packed so, [kinds_y kinds_x, o, 2, 2, c] with the
// taps summed that read one pixel. A third kind is the last line of an odd number: nothing lies below it.
//
// Departures from the formula:
//   1. With splits > 1 a block sums a share of the steps; the last one of a tile adds the shares (split.cuh).
//   2. The order of a sum depends on the image's shape and `splits` alone, not on M, N or the batch.
//   3. In the sub-pixel form the sums of taps are rounded to storage, once each; nothing else differs.
//
// Needs c, c2 in whole vectors of 8 and addresses of 16 bytes; o may be any.
//
// Reference: src/cpu/conv.rs. Class: contracted. Bound by: tensor cores; DRAM for small images with wide filters.
#include "conv.cuh"
#include "split.cuh"

typedef InParts<Conv2dParams> Conv2dTileParams;

namespace conv2d_tile {

constexpr int THREADS = 128;

template <int M, int N, int STAGES>
using Smem = epilogue::Shared<tile::Tile<M, N, conv::DEPTH, STAGES, 2, 2, false>>;

template <typename T, int M, int N, int STAGES>
__device__ constexpr int shared_bytes() {
    return sizeof(Smem<M, N, STAGES>);
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

// Brings the steps of a walk, one after the other.
template <typename T, typename Tile>
struct Loader {
    typedef typename Tile::A A;
    typedef typename Tile::B B;

    const Conv2dParams& p;
    const T *x, *x2;       // [lines, columns, c] of this image
    const T* filter;       // [o, r, s, c + c2] of this kind, from channel n0 on
    int columns;           // of the stored image
    int above, left;       // of the first tap
    int filters;           // from n0 on
    conv::Pixels<A::COPIES> pixels;  // rows A::row(i)
    conv::Walk walk;

    DEVICE_MEMBER void aim() {
        pixels.aim({walk.line - above, 0, p.h, 0, 0}, {walk.column - left, 0, p.w, 0, 0}, columns, p.up);
    }
    DEVICE_MEMBER void step(uint32_t a, uint32_t b) {
        const int channels = walk.channels, window = p.r * p.s * channels;
        const int tap = (walk.line * p.s + walk.column) * channels;
        A::fill(a, [&](int i, int, int chunk) {
            const int channel = walk.channel + chunk * 8;
            const bool second = channel >= p.c, in = pixels.at[i] >= 0 && channel < channels;
            const T* from = second ? x2 + int64_t(pixels.at[i]) * p.c2 + (channel - p.c)
                                   : x + int64_t(pixels.at[i]) * p.c + channel;
            return tile::Piece{in ? from : x, in ? 16 : 0};
        });
        B::fill(b, [&](int, int row, int chunk) {
            const int channel = walk.channel + chunk * 8;
            const bool in = row < filters && channel < channels;
            return tile::Piece{in ? filter + row * window + tap + channel : filter, in ? 16 : 0};
        });
        if (walk.advance()) aim();
    }
};

template <typename T, int M, int N, int STAGES>
__device__ void run(const Conv2dTileParams& params) {
    const Conv2dParams& p = params.whole;
    typedef Smem<M, N, STAGES> Shared;
    typedef typename Shared::Tile Tile;
    typedef typename Tile::Of Warps;
    DYNAMIC_SHARED(Shared, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.c % 8 == 0 && p.c2 % 8 == 0);

    // 1. Which pixels, which channels, which share of the walk: x counts the tiles of all images.
    const int kinds = p.kinds_y * p.kinds_x, part = blockIdx.z % p.splits, kind = blockIdx.z / p.splits;
    const int tiles = gridDim.x / p.n, image = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const int kind_y = kind / p.kinds_x, kind_x = kind % p.kinds_x;
    const conv::Axis y = axis_of(kind_y, p.kinds_y, p.height, p.stride_y, p.r);
    const conv::Axis x = axis_of(kind_x, p.kinds_x, p.width, p.stride_x, p.s);
    const int m0 = tile * M, n0 = blockIdx.y * N, left = y.count * x.count - m0;
    if (left <= 0) return;
    const conv::Places places{int64_t(image) * p.height * p.width, p.width, y, x, m0, left < M ? left : M,
                              int64_t(image * kinds + kind) * tiles + tile};
    const int columns = (p.w + p.up) >> p.up, window = p.r * p.s * (p.c + p.c2);
    const int64_t pixels = int64_t((p.h + p.up) >> p.up) * columns;
    Loader<T, Tile> loader{p,
                           p.x.as<T>() + image * pixels * p.c,
                           p.x2.as<T>() + image * pixels * p.c2,
                           p.filter.as<T>() + (int64_t(kind) * p.o + n0) * window,
                           columns,
                           before(kind_y, p.kinds_y, p.height, p.top),
                           before(kind_x, p.kinds_x, p.width, p.left),
                           p.o - n0,
                           {},
                           {p.r, p.s, p.c + p.c2, 0, 0, 0}};
    loader.pixels.place([&](int i) { return m0 + Tile::A::row(i); }, y, x);

    // 2. The sums.
    typename Warps::Accumulators acc;
    conv::sum<T, Tile>(acc, cvta_to_shared(smem.bytes), loader, part, p.splits);

    // 3. What becomes of them.
    float* stage = reinterpret_cast<float*>(smem.bytes);
    epilogue::to_rows<Warps>(acc, stage);
    const int64_t stride = int64_t(p.n) * p.height * p.width * p.o;
    uint32_t* arrived = params.arrived.as<uint32_t>() + (kind * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (p.splits > 1 && !split::is_whole<Warps>(places, n0, p.o, p.sums.as<float>(), stride, part, p.splits, arrived,
                                                stage))
        return;
    epilogue::finish_rows<T, Warps>(p.epilogue, places, n0, p.o, p.y.as<T>(), p.epilogue.residual.as<T>(), p.o,
                                    stage);
}

}  // namespace conv2d_tile
