// conv.cuh - what the tiled convolutions share: which pixels a tile has, which pixels a tap makes it read, and
// the walk over taps and channels that brings them into shared memory.
//
// A convolution, its data gradient, strides, nearest-2x enlargement and its sub-pixel form are one thing here: the
// pixels of one image that a launch makes fall into classes (one, or one for every parity); pixel (i, j) of a class
// reads, for tap (a, b), the pixel (i step_y + shift_y(a), j step_x + shift_x(b)), where that lies within the tap's
// limits, and nothing elsewhere. Along one direction that is an Axis, and a Reach for every tap.
#pragma once
#include "prelude.cuh"

namespace conv {

constexpr int DEPTH = 32;          // channels of a step: 64 bytes of a pixel
constexpr int OUTSIDE = -(1 << 28);  // a line that no shift brings back

// One direction of a class of pixels.
struct Axis {
    int count;         // pixels of the class
    int scale, first;  // pixel i stands at i * scale + first of the image that is written
    int step;
    int taps;
};

// What a tap reads along one direction: pixel i reads i * step + shift, where low <= that < high.
struct Reach {
    int shift, low, high;
    int line, kind;  // of the filter
};

// A share of the steps of a walk.
struct Share {
    int first, steps;
};

// Steps of a walk: lines of taps, columns of taps, chunks of channels, the last one fastest.
struct Walk {
    int lines, columns, channels;  // of a whole walk
    int line, column, channel;     // where it is

    DEVICE_MEMBER int chunks() const { return (channels + DEPTH - 1) / DEPTH; }
    DEVICE_MEMBER int steps() const { return lines * columns * chunks(); }
    DEVICE_MEMBER Share share(int split, int splits) const {
        const int first = int(int64_t(steps()) * split / splits);
        return {first, int(int64_t(steps()) * (split + 1) / splits) - first};
    }
    DEVICE_MEMBER void start(int step) {
        const int tap = step / chunks();
        channel = (step - tap * chunks()) * DEPTH;
        line = tap / columns;
        column = tap - line * columns;
    }
    // True where another tap begins.
    DEVICE_MEMBER bool advance() {
        channel += DEPTH;
        if (channel < channels) return false;
        channel = 0;
        if (++column == columns) {
            column = 0;
            ++line;
        }
        return true;
    }
};

// The pixels that a thread brings, one for each of its copies.
template <int OWN>
struct Pixels {
    int line[OWN], column[OWN];  // i * step_y, j * step_x
    int at[OWN];                 // what the tap makes it read; negative: nothing

    // Copy `own` is for pixel `number(own)` of the class.
    template <typename Number>
    DEVICE_MEMBER void place(const Number& number, const Axis& y, const Axis& x) {
#pragma unroll
        for (int own = 0; own < OWN; ++own) {
            const int m = number(own), i = m / x.count, j = m - i * x.count;
            line[own] = i < y.count ? i * y.step : OUTSIDE;
            column[own] = j * x.step;
        }
    }
    // `columns` are those of the stored image; `up` says how often its lines and columns are halved.
    DEVICE_MEMBER void aim(const Reach& y, const Reach& x, int columns, int up) {
#pragma unroll
        for (int own = 0; own < OWN; ++own) {
            const int i = line[own] + y.shift, j = column[own] + x.shift;
            const bool inside = i >= y.low && i < y.high && j >= x.low && j < x.high;
            at[own] = inside ? (i >> up) * columns + (j >> up) : -1;
        }
    }
};

// The sums of a share of a loader's walk, whose steps it brings one after the other.
template <typename T, typename Tile, typename Loader>
DEVICE void sum(typename Tile::Of::Accumulators& acc, uint32_t ring, Loader& loader, int split, int splits) {
    const Share share = loader.walk.share(split, splits);
    if (share.steps > 0) {  // a class without taps has none
        loader.walk.start(share.first);
        loader.aim();
    }
    Tile::Of::clear(acc);
    Tile::template run<T>(acc, ring, share.steps, [&](int, uint32_t a, uint32_t b) { loader.step(a, b); });
}

// The rows of a tile as pixels of the images that are written: what epilogue::finish asks.
struct Places {
    int64_t image;        // its first pixel
    int width;            // of the image
    Axis y, x;
    int first, count;     // pixels of the class
    int64_t tile;         // counted over all images; rows of the statistics

    DEVICE_MEMBER int64_t at(int line) const {
        const int m = first + line, i = m / x.count, j = m - i * x.count;
        return image + int64_t(i * y.scale + y.first) * width + j * x.scale + x.first;
    }
};

}  // namespace conv
