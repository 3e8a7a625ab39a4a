// group_norm_tiled_bwd - the data gradient of group_norm_tiled, from x and its statistics again.
//
//     xhat = (x - mean) / sqrt(var + eps)        y = xhat gamma + beta        d = act'(y) gamma dy
//     tiles    sums[n][tile][group] = (sum d, sum d xhat) of every tile of `tile` pixels
//     apply    dx = (d - mean(d) - xhat mean(d xhat)) / sqrt(var + eps) + residual    means over the group
//
// x is one tensor or two side by side, dy one over all channels; dx and dx2 have the channels of x and x2. A
// residual is for one tensor.
//
// Departures from the formulas: those of group_norm_tiled, for the slope of silu.
//
// Reference: src/cpu/norm.rs. Class: reduced. Bound by: DRAM; tiles: one read of x and dy; apply: the same again, the
// residual and one write.
#include "activation.cuh"
#include "tile_stats.cuh"

namespace group_norm_tiled_bwd {

constexpr int THREADS = 256;

constexpr int MOST_SLAB = 512;   // channels
constexpr int MOST_GROUPS = 512;  // of a slab
constexpr int HELD = 2;          // pixels that a thread holds at a time

struct Constants {
    GroupConstants group[MOST_GROUPS];
};

// What a thread has to do with a block's slab: eight channels of every `lanes`-th pixel.
struct Own {
    int first, channels, width;  // of the slab
    int vectors, lanes, own;
    bool idle;
    int channel, c, from_c;
    bool second;
};

DEVICE Own own_of(const GroupBwdParams& p) {
    const int c = p.c1 + p.c2, first = blockIdx.y * p.slab, channels = first + p.slab < c ? p.slab : c - first;
    const int vectors = channels / 8, lanes = THREADS / vectors, own = threadIdx.x % vectors;
    const int channel = first + 8 * own;
    const bool second = channel >= p.c1;
    return Own{first, channels, c / p.groups, vectors, lanes, own, int(threadIdx.x) >= lanes * vectors,
               channel, c, second ? p.c2 : p.c1, second};
}

// mean, factor, gamma and beta of eight channels.
struct Channels {
    float mean[8], factor[8], gamma[8], beta[8];
};

DEVICE void load_channels(Channels& of, const GroupBwdParams& p, const Own& o, const Constants& constants) {
    load8(of.gamma, p.gamma.as<float>() + o.channel);
    load8(of.beta, p.beta.as<float>() + o.channel);
    for (int k = 0; k < 8; ++k) {
        const GroupConstants group = constants.group[(8 * o.own + k) / o.width];
        of.mean[k]   = group.mean;
        of.factor[k] = group.factor;
    }
}

// xhat in place of x, and d in place of dy.
template <int ACT>
DEVICE void pull(float (&x)[8], float (&dy)[8], const Channels& of) {
    for (int k = 0; k < 8; ++k) {
        x[k] = (x[k] - of.mean[k]) * of.factor[k];
        dy[k] *= activation::fast_slope<ACT>(x[k] * of.gamma[k] + of.beta[k]) * of.gamma[k];
    }
}

DEVICE void block_constants(Constants& constants, const GroupBwdParams& p, const Own& o) {
    const TileStats stats = tile_stats(p, blockIdx.z);
    for (int group = threadIdx.x / 32; group < o.channels / o.width; group += THREADS / 32) {
        const GroupConstants found = warp_group_constants(stats, o.first + group * o.width, o.width, p.eps);
        if (threadIdx.x % 32 == 0) constants.group[group] = found;
    }
}

// f(pixel, xhat, d) for this thread's pixels of begin .. end.
template <typename T, int ACT, typename F>
DEVICE void each_pixel(const GroupBwdParams& p, const Own& o, const Channels& of, int begin, int end, F f) {
    const int64_t image = int64_t(blockIdx.z) * p.pixels;
    // [pixels, 8 of c1 or c2] and [pixels, 8 of c]
    const T* x = (o.second ? p.x2 : p.x).as<T>() + image * o.from_c + (o.second ? o.channel - p.c1 : o.channel);
    const T* dy = p.dy.as<T>() + image * o.c + o.channel;
    for (int pixel = begin + threadIdx.x / o.vectors; pixel < end; pixel += HELD * o.lanes) {
        Packed held_x[HELD], held_dy[HELD];  // pixel + i lanes
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int64_t at = pixel + i * o.lanes;
            if (at >= end) continue;
            held_x[i]  = load_packed(x + at * o.from_c);
            held_dy[i] = load_packed(dy + at * o.c);
        }
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            if (pixel + i * o.lanes >= end) continue;
            float xhat[8], d[8];
            unpack<T>(xhat, held_x[i]);
            unpack<T>(d, held_dy[i]);
            pull<ACT>(xhat, d, of);
            f(pixel + i * o.lanes, xhat, d);
        }
    }
}

struct TilesSmem {
    Constants constants;
    float d[8][THREADS];      // of thread t's k-th channel
    float along[8][THREADS];
};

template <typename T, int ACT>
__device__ void tiles(const GroupBwdParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.slab % 8 == 0 && p.slab <= MOST_SLAB && p.c1 % 8 == 0);
    SHARED(TilesSmem, smem);
    const Own o = own_of(p);
    const int begin = blockIdx.x * p.tile, end = begin + p.tile < p.pixels ? begin + p.tile : p.pixels;

    // 1. The constants of the slab's groups, a warp each.
    block_constants(smem.constants, p, o);
    sync_block();

    // 2. Each thread its pixels.
    float d_sum[8] = {}, along[8] = {};
    if (!o.idle) {
        Channels of;
        load_channels(of, p, o, smem.constants);
        each_pixel<T, ACT>(p, o, of, begin, end, [&](int, const float (&xhat)[8], const float (&d)[8]) {
            for (int k = 0; k < 8; ++k) {
                d_sum[k] += d[k];
                along[k] += d[k] * xhat[k];
            }
        });
    }
    for (int k = 0; k < 8; ++k) {
        smem.d[k][threadIdx.x]     = d_sum[k];
        smem.along[k][threadIdx.x] = along[k];
    }
    sync_block();

    // 3. A warp a group: pixels, in each the group's channels, dealt to its lanes.
    for (int group = threadIdx.x / 32; group < o.channels / o.width; group += THREADS / 32) {
        float group_d = 0.f, group_along = 0.f;
        for (int i = threadIdx.x % 32; i < o.lanes * o.width; i += 32) {
            const int channel = group * o.width + i % o.width, thread = i / o.width * o.vectors + channel / 8;
            group_d += smem.d[channel % 8][thread];
            group_along += smem.along[channel % 8][thread];
        }
        group_d     = warp_reduce<Sum>(group_d);
        group_along = warp_reduce<Sum>(group_along);
        if (threadIdx.x % 32 != 0) continue;
        // [tiles, groups, 2] of this image
        float* sums = p.sums.as<float>() + 2 * (int64_t(blockIdx.z) * gridDim.x + blockIdx.x) * p.groups;
        sums[2 * (o.first / o.width + group)]     = group_d;
        sums[2 * (o.first / o.width + group) + 1] = group_along;
    }
}

struct ApplySmem {
    Constants constants;
    NormBwd bwd[MOST_GROUPS];
};

template <typename T, int ACT>
__device__ void apply(const GroupBwdParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS && p.slab % 8 == 0 && p.slab <= MOST_SLAB && p.c1 % 8 == 0);
    SHARED(ApplySmem, smem);
    const Own o = own_of(p);
    const int begin = blockIdx.x * p.share, end = begin + p.share < p.pixels ? begin + p.share : p.pixels;

    // 1. The constants of the slab's groups and their means of d and d xhat, a warp each.
    block_constants(smem.constants, p, o);
    const int tiles = tiles_of(p.pixels, p.tile);
    const float* sums = p.sums.as<float>() + 2 * int64_t(blockIdx.z) * tiles * p.groups;  // [tiles, groups, 2]
    const float count = float(p.pixels) * float(o.width);
    for (int group = threadIdx.x / 32; group < o.channels / o.width; group += THREADS / 32) {
        float d_sum = 0.f, along = 0.f;
        for (int tile = threadIdx.x % 32; tile < tiles; tile += 32) {
            const float* at = sums + 2 * (int64_t(tile) * p.groups + o.first / o.width + group);
            d_sum += at[0];
            along += at[1];
        }
        d_sum = warp_reduce<Sum>(d_sum);
        along = warp_reduce<Sum>(along);
        if (threadIdx.x % 32 == 0) smem.bwd[group] = NormBwd{d_sum / count, along / count};
    }
    sync_block();

    // 2. Each thread its pixels.
    if (o.idle) return;
    Channels of;
    load_channels(of, p, o, smem.constants);
    NormBwd bwd[8];
    for (int k = 0; k < 8; ++k) bwd[k] = smem.bwd[(8 * o.own + k) / o.width];
    // [pixels, 8 of c1 or c2]
    T* dx = (o.second ? p.dx2 : p.dx).as<T>() + int64_t(blockIdx.z) * p.pixels * o.from_c +
            (o.second ? o.channel - p.c1 : o.channel);
    const T* residual = p.residual.address == 0  // [pixels, 8 of c]
                            ? nullptr
                            : p.residual.as<T>() + int64_t(blockIdx.z) * p.pixels * o.c + o.channel;
    each_pixel<T, ACT>(p, o, of, begin, end, [&](int pixel, const float (&xhat)[8], const float (&d)[8]) {
        float out[8];
        for (int k = 0; k < 8; ++k) out[k] = bwd[k](of.factor[k], xhat[k], d[k]);
        if (residual != nullptr) add8(out, residual + int64_t(pixel) * o.c);
        store8(dx + int64_t(pixel) * o.from_c, out);
    });
}

}  // namespace group_norm_tiled_bwd
