// group_norm_tiled - group norm in pieces that fill a GPU, over one tensor or over two that lie side by side.
//
//     tiles    stats[n][tile][channel] = (mean, m2) of every tile of `rows` pixels
//     fold     the same for tiles of `times` tiles
//     apply    out = act((x - mean) / sqrt(var + eps) gamma + beta), mean and var from the statistics
//
// tile_stats.cuh says what the statistics are. Convolutions and products that emit theirs make `tiles` superfluous;
// `fold` keeps what every block of `apply` must merge small. `apply` reads the channels c1 .. c1 + c2 from x2, and
// their statistics from stats2 unless the first ones are of all channels; a group may lie across the boundary.
//
// Departures from the formulas, for speed:
//   1. A slab is a number of channels that both 8 and the width of a group divide. A block of `apply` takes one
//      slab of `share` pixels, so that it merges the statistics of that slab's groups alone.
//   2. The values of silu are those of two approximate instructions.
// Departure for accuracy: x is centred before it is scaled; scale and shift are never folded into one.
//
// Reference: src/cpu/norm.rs. Class: reduced. Bound by: DRAM; tiles: one read of x; apply: one read, one write.
#include "activation.cuh"
#include "tile_stats.cuh"

namespace group_norm_tiled {

constexpr int THREADS = 256;

constexpr int VECTORS = 8;                // of eight channels, side by side in a block of `tiles`
constexpr int LANES = THREADS / VECTORS;  // pixels that it takes at a time
constexpr int HELD = 4;                   // of them a thread holds so many

struct TilesSmem {
    float mean[THREADS / 32][8 * VECTORS];
    float m2[THREADS / 32][8 * VECTORS];
    float count[THREADS / 32];
};

// The next pixels of this thread, at most HELD from `pixel` on, joined to the moments of its eight channels.
template <typename T>
DEVICE void join_pixels(float& count, float (&mean)[8], float (&m2)[8], const T* x, int c, int pixel, int end) {
    Packed held[HELD];  // pixel + i LANES
    int n = 0;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        if (pixel + i * LANES >= end) continue;
        held[i] = load_packed(x + int64_t(pixel + i * LANES) * c);
        n       = i + 1;
    }
    if (n == 0) return;
    float pivot[8], sum[8] = {}, squares[8] = {};
    unpack<T>(pivot, held[0]);
#pragma unroll
    for (int i = 1; i < HELD; ++i) {
        if (i >= n) continue;
        float at[8];
        unpack<T>(at, held[i]);
        for (int k = 0; k < 8; ++k) sum[k] += at[k] - pivot[k];
    }
    const float inverse = 1.f / float(n);
    for (int k = 0; k < 8; ++k) sum[k] = pivot[k] + sum[k] * inverse;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        if (i >= n) continue;
        float at[8];
        unpack<T>(at, held[i]);
        for (int k = 0; k < 8; ++k) squares[k] += (at[k] - sum[k]) * (at[k] - sum[k]);
    }
    for (int k = 0; k < 8; ++k) {
        const Moments both = merged({count, mean[k], m2[k]}, {float(n), sum[k], squares[k]});
        mean[k] = both.mean;
        m2[k]   = both.m2;
    }
    count += float(n);
}

template <typename T>
__device__ void tiles(const GroupTilesParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.c % 8 == 0 && int(gridDim.x) == tiles_of(p.pixels, p.rows));
    SHARED(TilesSmem, smem);
    const int tile = blockIdx.x, vector = blockIdx.y * VECTORS + threadIdx.x % VECTORS;
    const int warp = threadIdx.x / 32, first = tile * p.rows;
    const int end = first + p.rows < p.pixels ? first + p.rows : p.pixels;
    const bool inside = 8 * vector < p.c;
    const T* x = p.x.as<T>() + int64_t(blockIdx.z) * p.pixels * p.c + 8 * vector;  // [pixels, 8 of c]

    // 1. Each thread every LANES-th pixel of eight channels.
    float count = 0.f, mean[8] = {}, m2[8] = {};
    if (inside)
        for (int pixel = first + threadIdx.x / VECTORS; pixel < end; pixel += HELD * LANES)
            join_pixels(count, mean, m2, x, p.c, pixel, end);

    // 2. The four pixels of a warp; the lane with the lower pixel takes in the other one.
#pragma unroll
    for (int mask = VECTORS; mask < 32; mask *= 2) {
        const float others = shuffle_xor(count, mask);
        for (int k = 0; k < 8; ++k) {
            const Moments other{others, shuffle_xor(mean[k], mask), shuffle_xor(m2[k], mask)};
            const Moments both = merged({count, mean[k], m2[k]}, other);
            mean[k] = both.mean;
            m2[k]   = both.m2;
        }
        count += others;
    }
    if (threadIdx.x % 32 < VECTORS) {
        for (int k = 0; k < 8; ++k) {
            smem.mean[warp][8 * (threadIdx.x % VECTORS) + k] = mean[k];
            smem.m2[warp][8 * (threadIdx.x % VECTORS) + k]   = m2[k];
        }
        if (threadIdx.x % 32 == 0) smem.count[warp] = count;
    }
    sync_block();

    // 3. The warps, in their order; a thread a channel.
    const int channel = blockIdx.y * 8 * VECTORS + threadIdx.x;
    if (threadIdx.x >= 8 * VECTORS || channel >= p.c) return;
    Moments all{smem.count[0], smem.mean[0][threadIdx.x], smem.m2[0][threadIdx.x]};
    for (int i = 1; i < THREADS / 32; ++i)
        all = merged(all, {smem.count[i], smem.mean[i][threadIdx.x], smem.m2[i][threadIdx.x]});
    // [tiles, c, 2] of this image
    float* stats = p.stats.as<float>() + 2 * (int64_t(blockIdx.z) * gridDim.x + tile) * p.c;
    stats[2 * channel]     = all.mean;
    stats[2 * channel + 1] = all.m2;
}

__device__ void fold(const GroupFoldParams& p) {
    const int from = tiles_of(p.pixels, p.rows), to = tiles_of(p.pixels, p.rows * p.times);
    const int64_t count = int64_t(p.n) * to * p.c;
    const float* stats = p.stats.as<float>();  // [n, from, c, 2]
    float* folded = p.folded.as<float>();      // [n, to, c, 2]
    for (int64_t i = grid_thread(); i < count; i += grid_threads()) {
        const int64_t image = i / p.c / to;
        const int channel = int(i % p.c), first = int(i / p.c % to) * p.times;
        Moments all{0.f, 0.f, 0.f};
        for (int tile = first; tile < first + p.times && tile < from; ++tile) {
            const int left = p.pixels - tile * p.rows;
            const float* at = stats + 2 * ((image * from + tile) * p.c + channel);
            all = merged(all, {float(left < p.rows ? left : p.rows), at[0], at[1]});
        }
        folded[2 * i]     = all.mean;
        folded[2 * i + 1] = all.m2;
    }
}

constexpr int MOST_SLAB = 512;   // channels
constexpr int MOST_GROUPS = 512;  // of a slab

struct ApplySmem {
    GroupConstants group[MOST_GROUPS];
};

template <typename T, int ACT>
__device__ void apply(const GroupApplyParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.slab % 8 == 0 && p.slab <= MOST_SLAB && p.c1 % 8 == 0);
    SHARED(ApplySmem, smem);
    const int c = p.c1 + p.c2, width = c / p.groups, first = blockIdx.y * p.slab;
    const int channels = first + p.slab < c ? p.slab : c - first;
    KERNEL_ASSERT(p.slab % width == 0);

    // 1. The constants of the slab's groups, a warp each.
    const TileStats stats = tile_stats(p, blockIdx.z);
    for (int group = threadIdx.x / 32; group < channels / width; group += THREADS / 32) {
        const GroupConstants constants = warp_group_constants(stats, first + group * width, width, p.eps);
        if (threadIdx.x % 32 == 0) smem.group[group] = constants;
    }
    sync_block();

    // 2. Each thread eight channels of every `lanes`-th pixel.
    const int vectors = channels / 8, lanes = THREADS / vectors, own = threadIdx.x % vectors;
    const int begin = blockIdx.x * p.share, end = begin + p.share < p.pixels ? begin + p.share : p.pixels;
    if (int(threadIdx.x) >= lanes * vectors) return;
    const int channel = first + 8 * own;
    const bool second = channel >= p.c1;
    const int from_c = second ? p.c2 : p.c1;
    const int64_t image = int64_t(blockIdx.z) * p.pixels;
    // [pixels, 8 of c1 or c2] and [pixels, 8 of c]
    const T* x = (second ? p.x2 : p.x).as<T>() + image * from_c + (second ? channel - p.c1 : channel);
    T* out = p.out.as<T>() + image * c + channel;
    float mean[8], scale[8], shift[8];  // of the channel and those behind it
    load8(scale, p.gamma.as<float>() + channel);
    load8(shift, p.beta.as<float>() + channel);
    for (int k = 0; k < 8; ++k) {
        const GroupConstants constants = smem.group[(8 * own + k) / width];
        mean[k] = constants.mean;
        scale[k] *= constants.factor;
    }
    for (int pixel = begin + threadIdx.x / vectors; pixel < end; pixel += HELD * lanes) {
        Packed held[HELD];  // pixel + i lanes
#pragma unroll
        for (int i = 0; i < HELD; ++i)
            if (pixel + i * lanes < end) held[i] = load_packed(x + int64_t(pixel + i * lanes) * from_c);
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            if (pixel + i * lanes >= end) continue;
            float y[8];
            unpack<T>(y, held[i]);
            for (int k = 0; k < 8; ++k) y[k] = activation::fast_value<ACT>((y[k] - mean[k]) * scale[k] + shift[k]);
            store8(out + int64_t(pixel + i * lanes) * c, y);
        }
    }
}

}  // namespace group_norm_tiled
