// gather.cuh - the main loop of a product whose operands are gathered element by element: what tile.cuh does, for
// rows that no copy of 16 bytes could bring.
//
// Elements pass through registers: those of the next step are on their way while this one is multiplied, and there
// are two stages of shared memory. Slabs, fragments and the order of a sum are those of tile.cuh.
#pragma once
#include "conv.cuh"
#include "tile.cuh"
#include "vec.cuh"

namespace gather {

// A chunk of a slab: eight elements.
struct Chunk {
    uint32_t pair[4];
};

// The first `count` of eight elements from any address, and zeros.
template <typename T>
DEVICE Chunk elements(const T* from, int count) {
    Chunk chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t low = 2 * i < count ? from[2 * i].bits : 0, high = 2 * i + 1 < count ? from[2 * i + 1].bits : 0;
        chunk.pair[i] = low | high << 16;
    }
    return chunk;
}

// Eight elements from a multiple of 16 bytes, or zeros.
template <typename T>
DEVICE Chunk vector(const T* from, bool in) {
    Chunk chunk = {{0, 0, 0, 0}};
    if (in) {
        const Packed packed = load_packed(from);
        for (int i = 0; i < 4; ++i) chunk.pair[i] = packed.pair[i];
    }
    return chunk;
}

// An image under the taps of a filter, as rows of a matrix: element k of pixel (i, j)'s row is that of channel
// k % channels of the pixel that tap k / channels makes it read.
template <typename T, int OWN>
struct Windows {
    const T* image;      // [lines, columns, channels]
    int lines, columns, channels;
    int taps_y, taps_x;
    int before_y, before_x, sign;  // tap (a, b) reads (i + sign (a - before_y), j + sign (b - before_x))
    conv::Pixels<OWN> pixels;

    DEVICE_MEMBER void aim(int line, int column) {
        const int high = line < taps_y ? lines : 0;  // behind the last tap there is nothing
        pixels.aim({sign * (line - before_y), 0, high, 0, 0}, {sign * (column - before_x), 0, columns, 0, 0},
                   columns, 0);
    }
    // Eight elements from k on, of each pixel.
    DEVICE_MEMBER void chunks(Chunk (&to)[OWN], int k) {
        const int tap = k / channels;
        int channel = k - tap * channels, line = tap / taps_x, column = tap - line * taps_x;
        aim(line, column);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
#pragma unroll
            for (int own = 0; own < OWN; ++own) {
                const int at = pixels.at[own];
                const uint32_t bits = at >= 0 ? image[int64_t(at) * channels + channel].bits : 0;
                to[own].pair[e / 2] = e % 2 == 0 ? bits : to[own].pair[e / 2] | bits << 16;
            }
            if (++channel < channels) continue;
            channel = 0;
            if (++column == taps_x) {
                column = 0;
                ++line;
            }
            aim(line, column);
        }
    }
};

template <typename Slab>
DEVICE void store(uint32_t slab, const Chunk (&from)[Slab::COPIES]) {
#pragma unroll
    for (int i = 0; i < Slab::COPIES; ++i) st_shared(slab + Slab::at(Slab::row(i), Slab::chunk(i)), from[i].pair);
}

// `load(step, a, b)` says what this thread's chunks of a step are, 0 <= step < steps. Everybody comes here, with as
// many steps. Afterwards the ring is free for other things.
template <typename T, typename Tile, typename Load>
DEVICE void run(typename Tile::Of::Accumulators& acc, uint32_t ring, int steps, const Load& load) {
    static_assert(Tile::STAGES == 2, "one is read and one is written");
    Chunk a[Tile::A::COPIES], b[Tile::B::COPIES];
    load(0, a, b);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        // 1. Everybody has left this stage: it was read two steps ago, before the barrier of the last one.
        const uint32_t stage = ring + step % 2 * Tile::STAGE_BYTES;
        store<typename Tile::A>(stage, a);
        store<typename Tile::B>(stage + Tile::A::BYTES, b);
        sync_block();  // the stage is full

        // 2. What comes next, and meanwhile the product.
        if (step + 1 < steps) load(step + 1, a, b);
#pragma unroll
        for (int k16 = 0; k16 < Tile::K / 16; ++k16) {
            typename Tile::Fragments f;
            Tile::load(f, stage, k16);
            Tile::template multiply<T>(acc, f);
        }
    }
    sync_block();
}

}  // namespace gather
