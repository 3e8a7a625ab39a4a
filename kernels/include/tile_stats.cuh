// tile_stats.cuh - statistics of the tiles of an image, and what a group norm makes of them.
//
// A tile is `rows` consecutive pixels of one image, the last one what is left. For every channel of a tile two
// numbers are kept: the mean of its values, and the sum of their squared distances from it, m2,
//
//     stats[image][tile][channel][2]      f32, tile < ceil(pixels / rows)
//
// A group's mean and variance are the weighted mean of these means, and the mean of m2 + rows (mean - group's)^2:
// again two passes, with no difference of large numbers. Order: tiles, in each the group's channels, dealt to the
// lanes of a warp; a function of one image's shape.
#pragma once
#include "moments.cuh"
#include "params.cuh"

// What to do with x in a group: (x - mean) factor.
struct GroupConstants {
    float mean, factor;
};

// The statistics of some channels of one image.
struct Source {
    const float* stats;     // [tiles, end - begin, 2]
    int rows, begin, end;  // its channels, among all
};

// Those of all channels, in one source or in two.
struct TileStats {
    Source first, second;
    int pixels;
};

DEVICE int tiles_of(int pixels, int rows) { return (pixels + rows - 1) / rows; }

// This lane's part of the sum over tiles and the channels first .. first + width of f(pixels of the tile, mean, m2).
template <typename F>
DEVICE float lane_sum_of_tiles(const Source& of, int pixels, int first, int width, F f) {
    const int from = first > of.begin ? first : of.begin, to = first + width < of.end ? first + width : of.end;
    if (from >= to) return 0.f;
    const int wide = to - from, entries = tiles_of(pixels, of.rows) * wide;
    float sum = 0.f;
    for (int i = threadIdx.x % 32; i < entries; i += 32) {
        const int tile = i / wide, left = pixels - tile * of.rows;
        const float* at = of.stats + 2 * (int64_t(tile) * (of.end - of.begin) + from - of.begin + i % wide);
        sum += f(float(left < of.rows ? left : of.rows), at[0], at[1]);
    }
    return sum;
}

// The whole sum, in every lane.
template <typename F>
DEVICE float warp_sum_of_tiles(const TileStats& stats, int first, int width, F f) {
    const float sum = lane_sum_of_tiles(stats.first, stats.pixels, first, width, f);
    return warp_reduce<Sum>(sum + lane_sum_of_tiles(stats.second, stats.pixels, first, width, f));
}

DEVICE GroupConstants warp_group_constants(const TileStats& stats, int first, int width, float eps) {
    const float pivot = first < stats.first.end ? stats.first.stats[2 * first]
                                                : stats.second.stats[2 * (first - stats.second.begin)];
    const float count = float(stats.pixels) * float(width);
    const float sum = warp_sum_of_tiles(
        stats, first, width, [=](float n, float mean, float) { return n * (mean - pivot); });
    const float mean = pivot + sum / count;
    const float m2 = warp_sum_of_tiles(stats, first, width, [=](float n, float tile_mean, float m2) {
        return m2 + n * (tile_mean - mean) * (tile_mean - mean);
    });
    return GroupConstants{mean, rsqrtf(m2 / count + eps)};
}

// Those of image n, from params that name two sources.
template <typename Params>
DEVICE TileStats tile_stats(const Params& p, int n) {
    const int c = p.c1 + p.c2;
    const bool two = p.stats2.address != 0;
    const int64_t tiles = int64_t(n) * tiles_of(p.pixels, p.rows);
    const int64_t tiles2 = two ? int64_t(n) * tiles_of(p.pixels, p.rows2) : 0;
    return TileStats{{p.stats.template as<float>() + 2 * tiles * (two ? p.c1 : c), p.rows, 0, two ? p.c1 : c},
                     {p.stats2.template as<float>() + 2 * tiles2 * p.c2, p.rows2, two ? p.c1 : c, c},
                     p.pixels};
}
