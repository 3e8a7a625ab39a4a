// conv_sm90.cuh - what the convolutions of sm_90a share: slabs of pixels as boxes of images, and the walk over them.
//
// 128 rows of the left matrix are a rectangle of pixels, in whole lines of 2^x_bits columns, 2^y_bits of them, of one
// image or of several. A tap shifts the rectangle; what leaves the image comes as zeros from the copy itself, and that
// is the padding. Pixels beyond the edge of the image that is written are made and not stored.
#pragma once
#include "cluster_sm90.cuh"
#include "mainloop_sm90.cuh"

namespace conv_sm90 {

// The slabs of all images of one class of pixels.
struct Slabs {
    int images, lines, columns;  // of the class
    int x_bits, y_bits;

    DEVICE_MEMBER int x() const { return (columns + (1 << x_bits) - 1) >> x_bits; }
    DEVICE_MEMBER int y() const { return (lines + (1 << y_bits) - 1) >> y_bits; }
    DEVICE_MEMBER int of_image() const { return x() * y(); }
    DEVICE_MEMBER int n_bits() const { return 7 - x_bits - y_bits; }
    DEVICE_MEMBER int count() const { return of_image() * ((images + (1 << n_bits()) - 1) >> n_bits()); }
};

// One of them, as pixels of the images that are written: what epilogue::finish asks.
struct Slab {
    int image, line, column;  // its first pixel; an image that is not there where the slab is none
    Slabs all;
    int scale, first_line, first_column;  // pixel (i, j) of the class stands at (scale i + first_line, ...)
    int height, width;                    // of the image that is written
    int count;                            // of those images that are there
    int64_t tile;                         // of the first image, counted over all; rows of the statistics
    DEVICE_MEMBER int64_t at(int number) const {
        const int j = column + (number & ((1 << all.x_bits) - 1));
        const int i = line + (number >> all.x_bits & ((1 << all.y_bits) - 1));
        const int n = image + (number >> (all.x_bits + all.y_bits));
        if (i >= all.lines || j >= all.columns) return -1;
        return (int64_t(n) * height + i * scale + first_line) * width + j * scale + first_column;
    }
};

DEVICE Slab slab(const Slabs& all, int number, int scale, int first_line, int first_column, int height, int width) {
    const int of_image = all.of_image(), within = number % of_image, image = (number / of_image) << all.n_bits();
    const int line = (within / all.x()) << all.y_bits, column = (within % all.x()) << all.x_bits;
    const int kinds = scale * scale, kind = first_line * scale + first_column;
    const int most = 1 << all.n_bits(), left = all.images - image, images = left < 0 ? 0 : left < most ? left : most;
    return {image, line, column, all, scale, first_line, first_column, height, width,
            images << (all.x_bits + all.y_bits), (int64_t(image) * kinds + kind) * of_image + within};
}

// The pixels of one image in a slab: its statistics are theirs.
struct Rectangle {
    const Slab& slab;
    int first, count;
    int64_t tile;

    DEVICE_MEMBER int64_t at(int number) const { return slab.at(first + number); }
};

// epilogue::finish_rows, image by image where statistics are taken.
template <typename T, typename Warps>
DEVICE void finish(const Epilogue& e, const Slab& of, int column0, int n, T* y, float* sums) {
    const int pixels = e.stats.address != 0 ? 1 << (of.all.x_bits + of.all.y_bits) : of.count;
    const int apart = of.scale * of.scale * of.all.of_image();
#pragma unroll 1
    for (int first = 0; first < of.count; first += pixels) {
        const Rectangle rows{of, first, pixels, of.tile + int64_t(first / pixels) * apart};
        epilogue::finish_rows<T, Warps>(e, rows, column0, n, y, e.residual.as<T>(), n, sums + first * Warps::N);
    }
}

// The same of sums in registers, by way of `results` in shared memory; the map is that of the slab's class.
template <typename T, typename Warps>
DEVICE void finish_boxes(const Epilogue& e, const typename Warps::Accumulators& acc, const Slab& of, int column0, int n,
                         unsigned char* results, const TensorMap& map) {
    epilogue_sm90::finish<T, Warps>(e, acc, of, column0, n, n, results, [&](int column, uint32_t from) {
        cp_async_bulk_tensor_store_4d(map, from, column, of.column, of.line, of.image);
    });
    if (e.stats.address == 0) return;
    const int pixels = 1 << (of.all.x_bits + of.all.y_bits), apart = of.scale * of.scale * of.all.of_image();
#pragma unroll 1
    for (int first = 0; first < of.count; first += pixels)
        epilogue_sm90::take_statistics<T, Warps>(e, first, pixels, of.tile + int64_t(first / pixels) * apart, column0, n,
                                                 results);
}

// What a block of BLOCKS finishes of a slab: rows of one image, whose tiles of statistics are such shares, or of
// several small ones without statistics. Those behind the last image come last in a slab, and are nobody's.
template <int BLOCKS>
DEVICE cluster::Part<Slab> part(const Slab& of, int rank) {
    constexpr int ROWS = cluster::rows_of<BLOCKS>();
    const int first = rank * ROWS, pixels = 1 << (of.all.x_bits + of.all.y_bits), ahead = first / pixels;
    const int shares = (pixels + ROWS - 1) / ROWS, kinds = of.scale * of.scale, of_image = of.all.of_image();
    const int left = of.count - first;
    return {of, first, left < 0 ? 0 : left < ROWS ? left : ROWS,
            (of.tile + int64_t(ahead) * kinds * of_image) * shares + first % pixels / ROWS};
}

// How far from pixel i of a small image that pixel is which tap `tap` of the output pixel 2 i + kind of the twofold
// image sees: nearest neighbours, and the smaller number at the edge, which is as far outside.
DEVICE int seen(int kind, int tap, int before) { return (kind + tap - before) >> 1; }

DEVICE int chunks(int channels) { return (channels + mainloop::DEPTH - 1) / mainloop::DEPTH; }

}  // namespace conv_sm90
