// conv2d_narrow - convolutions of 3 x 3 taps that make at most eight channels, and data gradients that do: the last
// layers, to latents of four channels and images of three, and the gradients of the first ones.
//
//     run       y[m, o]  = epilogue(sum_{c, r, s} x[pixel of m under tap (r, s), c] f[o, r, s, c])
//     backward  dx[m, c] = epilogue(sum_{o, r, s} dy[pixel that tap (r, s) brought m to, o] f[o, r, s, c])
//
// Few columns make few products, so what bounds these is how often an image is read. As a product of matrices
// (conv2d_tile.cu) every pixel comes nine times from L2, and seven of eight columns of the smallest tile are
// nothing. Here a block makes LINES lines of 16 pixels a warp, and brings these with a margin of one pixel into
// shared memory, 32 channels at a time: each pixel 1.4 times. A fragment of 16 pixels x 16 channels, at one of the
// three columns of taps, is loaded once and multiplied for every line of taps that it lies under. For 128 -> 3
// channels at 512 x 512 DRAM gives 67 MB and ldmatrix reads 550 MB of shared memory, which is some ten times as fast.
//
// A gradient is the same walk over dy with the taps mirrored; it reads the forward filter element by element, since
// its channels are too few for vectors.
//
// Departures from the formulas:
//   1. Channels of the sum come first, 32 at a time, then 16 of them under every tap, then the other 16.
//   2. Columns beyond the last channel are zeros.
//
// Needs the channels of the sum in whole vectors of 8, and addresses of 16 bytes. Strides are 1.
//
// Reference: src/cpu/conv.rs; conv2d.cu and conv2d_dgrad.cu are the general forms. Class: contracted.
// Bound by: DRAM, what is read.
#include "epilogue.cuh"
#include "fragments.cuh"

namespace conv2d_narrow {

constexpr int THREADS = 128, WARPS = THREADS / 32;
constexpr int TAPS = 3, COLUMNS = 8;
constexpr int LINES = 2;                            // of a warp
constexpr int TILE_Y = WARPS * LINES, TILE_X = 16;  // pixels of a block
constexpr int SEEN_X = TILE_X + TAPS - 1, SEEN = (TILE_Y + TAPS - 1) * SEEN_X;  // with their margin
constexpr int DEPTH = 32, CHUNKS = DEPTH / 8;       // channels of a step
constexpr int STAGES = 3;
constexpr int COPIES = (SEEN * CHUNKS + THREADS - 1) / THREADS;  // of one thread, at most

struct Stage {
    fragments::Chunk pixels[SEEN * CHUNKS];                   // [SEEN, DEPTH]
    fragments::Chunk filter[TAPS * TAPS * COLUMNS * CHUNKS];  // [tap, column, DEPTH]
};
struct Smem {
    Stage stages[STAGES];
};

template <typename T>
__device__ constexpr int shared_bytes() {
    return sizeof(Smem);
}

// What is summed over, and where the block stands.
template <typename T>
struct Source {
    const T* image;  // [lines, columns, channels]
    int lines, columns, channels;
    int line, column;  // of the margin's first pixel
};

// Brings the pixels of a walk.
template <typename T>
struct Loader {
    const Source<T>& from;
    int at[COPIES];  // pixel of copy i; negative: none

    DEVICE_MEMBER void aim() {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int pixel = (int(threadIdx.x) + i * THREADS) / CHUNKS;
            const int line = from.line + pixel / SEEN_X, column = from.column + pixel % SEEN_X;
            const bool in = line >= 0 && line < from.lines && column >= 0 && column < from.columns;
            at[i] = in ? line * from.columns + column : -1;
        }
    }
    DEVICE_MEMBER void bring(fragments::Chunk* to, int channel0) const {
        const uint32_t slab = cvta_to_shared(to);
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int place = int(threadIdx.x) + i * THREADS, chunk = place % CHUNKS;
            if (place >= SEEN * CHUNKS) break;
            const int channel = channel0 + chunk * 8;
            const bool in = at[i] >= 0 && channel < from.channels;
            cp_async_cg16(slab + fragments::offset<CHUNKS>(place / CHUNKS, chunk),
                          in ? from.image + int64_t(at[i]) * from.channels + channel : from.image, in ? 16 : 0);
        }
    }
};

// What a warp has: fragment i is line i of its pixels.
typedef float Sums[LINES][4];

// One step of 32 channels.
template <typename T>
DEVICE void multiply(Sums& sums, const Stage& stage) {
    const int lane = threadIdx.x % 32, first_line = threadIdx.x / 32 * LINES;
    const uint32_t pixels = cvta_to_shared(stage.pixels), filter = cvta_to_shared(stage.filter);
    uint32_t b[TAPS * TAPS][4];  // both halves of the channels
#pragma unroll
    for (int tap = 0; tap < TAPS * TAPS; ++tap)
        ldmatrix_x4(b[tap], filter + fragments::offset<CHUNKS>(tap * COLUMNS + lane % 8, lane / 8));
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int line = 0; line < LINES + TAPS - 1; ++line)
#pragma unroll
            for (int s = 0; s < TAPS; ++s) {
                uint32_t a[4];
                fragments::read_a<CHUNKS>(a, pixels, (first_line + line) * SEEN_X + s, half * 2);
#pragma unroll
                for (int i = 0; i < LINES; ++i) {
                    const int r = line - i;
                    if (r < 0 || r >= TAPS) continue;
                    const uint32_t both[2] = {b[r * TAPS + s][half * 2], b[r * TAPS + s][half * 2 + 1]};
                    mma_m16n8k16(sums[i], a, both, T{});
                }
            }
}

// The sums of a block. `filter(stage, channel)` brings what the pixels from that channel on are multiplied with.
template <typename T, typename Filter>
DEVICE void walk(Sums& sums, Smem& smem, const Source<T>& from, const Filter& filter) {
    Loader<T> loader{from, {}};
    loader.aim();
    const int steps = (from.channels + DEPTH - 1) / DEPTH;
    const auto load = [&](int step) {
        if (step < steps) {
            Stage& stage = smem.stages[step % STAGES];
            loader.bring(stage.pixels, step * DEPTH);
            filter(stage.filter, step * DEPTH);
        }
        cp_async_commit_group();
    };
#pragma unroll
    for (int i = 0; i < LINES; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.f;
    for (int step = 0; step < STAGES - 1; ++step) load(step);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        // Behind the barrier all have this step's stage, and nobody reads that of the step before.
        cp_async_wait_group<STAGES - 2>();
        sync_block();
        load(step + STAGES - 1);
        multiply<T>(sums, smem.stages[step % STAGES]);
    }
}

// The tiles of an image one after the other, image after image.
struct Place {
    int image, line, column;
};
DEVICE Place place(int lines, int columns) {
    const int across = (columns + TILE_X - 1) / TILE_X, tiles = (lines + TILE_Y - 1) / TILE_Y * across;
    const int tile = blockIdx.x % tiles;
    return {int(blockIdx.x) / tiles, tile / across * TILE_Y, tile % across * TILE_X};
}

// Stores what the epilogue makes of the sums of an image of lines x columns x n.
template <typename T>
DEVICE void store(const Epilogue& e, const Sums& sums, const Place& at, int lines, int columns, int n, T* to) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < LINES; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int line = at.line + int(threadIdx.x) / 32 * LINES + i;
            const int column = at.column + fragments::row() + j / 2 * 8;
            const int channel = fragments::column() + j % 2;
            if (line >= lines || column >= columns || channel >= n) continue;
            const int64_t pixel = (int64_t(at.image) * lines + line) * columns + column;
            to[pixel * n + channel] = from_f32<T>(epilogue::point<T>(e, sums[i][j], pixel, channel, n));
        }
}

template <typename T>
__device__ void run(const Conv2dParams& p) {
    DYNAMIC_SHARED(Smem, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.o <= COLUMNS && p.c % 8 == 0 && p.r == TAPS && p.s == TAPS);
    const T* weights = p.filter.as<T>();  // [o, r, s, c]
    const Place at = place(p.height, p.width);
    const Source<T> x{p.x.as<T>() + int64_t(at.image) * p.h * p.w * p.c, p.h, p.w, p.c, at.line - p.top,
                      at.column - p.left};
    Sums sums;
    walk(sums, smem, x, [&](fragments::Chunk* to, int channel0) {
        const uint32_t slab = cvta_to_shared(to);
        for (int i = threadIdx.x; i < TAPS * TAPS * COLUMNS * CHUNKS; i += THREADS) {
            const int row = i / CHUNKS, chunk = i % CHUNKS, tap = row / COLUMNS, o = row % COLUMNS;
            const int channel = channel0 + chunk * 8;
            const bool in = o < p.o && channel < p.c;
            cp_async_cg16(slab + fragments::offset<CHUNKS>(row, chunk),
                          in ? weights + (o * TAPS * TAPS + tap) * p.c + channel : weights, in ? 16 : 0);
        }
    });
    store<T>(p.epilogue, sums, at, p.height, p.width, p.o, p.y.as<T>());
}

template <typename T>
__device__ void backward(const Conv2dBwdParams& p) {
    DYNAMIC_SHARED(Smem, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.c <= COLUMNS && p.o % 8 == 0 && p.r == TAPS && p.s == TAPS);
    const T* weights = p.filter.as<T>() + p.first;  // [o, r, s, channels] from channel `first` on
    const Place at = place(p.h, p.w);
    const Source<T> dy{p.dy.as<T>() + int64_t(at.image) * p.height * p.width * p.o, p.height, p.width, p.o,
                       at.line + p.top - (TAPS - 1), at.column + p.left - (TAPS - 1)};
    Sums sums;
    walk(sums, smem, dy, [&](fragments::Chunk* to, int o0) {
        // A thread has one column, also where there is none: that becomes zeros.
        const int column = threadIdx.x % COLUMNS, filters = p.o - o0;
        const T* from = weights + int64_t(o0) * TAPS * TAPS * p.channels + column;
#pragma unroll 3
        for (int i = threadIdx.x / COLUMNS; i < TAPS * TAPS * DEPTH; i += THREADS / COLUMNS) {
            const int o = i / (TAPS * TAPS), tap = i % (TAPS * TAPS);
            const uint16_t bits = column < p.c && o < filters ? from[i * p.channels].bits : 0;
            const int row = (TAPS * TAPS - 1 - tap) * COLUMNS + column;
            to[fragments::offset<CHUNKS>(row, o / 8) / 16].elements[o % 8] = bits;
        }
    });
    store<T>(p.epilogue, sums, at, p.h, p.w, p.c, p.dx.as<T>());
}

}  // namespace conv2d_narrow
