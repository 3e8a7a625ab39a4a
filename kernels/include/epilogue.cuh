// epilogue.cuh - what becomes of the sums of a product before they are stored: of gemm, of conv2d, of their
// general forms and of what adds parts of sums (split.cuh).
//
//     v[i, j] = act(sum[i, j] + bias[j] + channels[i / channel_rows, j]) + residual[i, j]
//     GEGLU:    v[i, j] = u[i, 2j] gelu(u[i, 2j + 1]) + residual[i, j],  u = sum + bias + channels
//
// Where the residual has a part of the rows, row i takes row i modulo their number: copies that nobody made.
//
// rounded to storage once. Of what is stored each tile can give, for every channel, the mean and the sum of
// squared deviations from it. Then a tile is `M` rows of one image, the last of an image may have fewer, and
// both numbers are those of the tile alone: mean first, then deviations, rows in their order.
#pragma once
#include "activation.cuh"
#include "params.cuh"
#include "tile.cuh"
#include "vec.cuh"

namespace epilogue {

constexpr int GEGLU = 6;  // after activation::Kind

DEVICE_CALL float activated(int kind, float x) { return activation::value(kind, x); }

// The rows that a block makes.
struct Rows {
    int64_t first;  // of all
    int count;
    int64_t tile;   // counted over all images; rows of `stats`

    // Where row `line` of the tile is stored.
    DEVICE_MEMBER int64_t at(int line) const { return first + line; }
};

// Tiles of M rows: of all m rows as if they were one image, or of each image where statistics are wanted.
template <int M>
DEVICE Rows rows_of(const Epilogue& e, int block, int m) {
    const int rows = e.stats.address != 0 ? e.stat_rows : m;
    const int tiles = rows / M + (rows % M != 0), image = block / tiles, first = block % tiles * M;
    return {int64_t(image) * rows + first, rows - first > M ? M : rows - first, block};
}

// The row of the residual that is added to a row of the result.
DEVICE_CALL int64_t residual_row(const Epilogue& e, int64_t row) {
    return e.residual_rows != 0 ? uint32_t(row) % uint32_t(e.residual_rows) : row;
}

// One column of one row in a general form, GEGLU aside.
template <typename T>
DEVICE float linear(const Epilogue& e, float sum, int64_t row, int column, int n) {
    const float* bias = e.bias.as<float>();      // [n]
    const T* channels = e.channels.as<T>();      // [rows / channel_rows, n]
    if (bias != nullptr) sum += bias[column];
    if (channels != nullptr) sum += to_f32(channels[row / e.channel_rows * n + column]);
    return sum;
}

// All of it for one element of [m, n] in a general form, GEGLU aside.
template <typename T>
DEVICE float point(const Epilogue& e, float sum, int64_t row, int column, int n) {
    const T* residual = e.residual.as<T>();  // [m or residual_rows, n]
    const float value = activated(e.activation, linear<T>(e, sum, row, column, n));
    return residual != nullptr ? value + to_f32(residual[residual_row(e, row) * n + column]) : value;
}

// Four elements of a row, or those of them that exist.
template <typename T>
DEVICE void gather(float (&to)[4], const T* from, bool whole, int left) {
    if (whole) return load_vector<4>(to, from);
    for (int i = 0; i < 4; ++i) to[i] = i < left ? to_f32(from[i]) : 0.f;
}

// A rectangle [M, N] of f32 in shared memory. Chunks of four columns are swapped by the row, so that neither the
// fragments of a warp nor four columns a thread meet in a bank.
template <typename Warps>
struct Stage {
    static constexpr int BYTES = Warps::M * Warps::N * 4;
    static DEVICE_MEMBER float* at(float* stage, int row, int column) {
        const int chunk = column / 4 ^ (row & 3) * 2;
        return stage + row * Warps::N + chunk * 4 + column % 4;
    }
};

// Shared memory that `finish` wants.
template <typename Warps>
__device__ constexpr int shared_bytes() {
    return Stage<Warps>::BYTES;
}

// Shared memory of a block: the ring of a tile, and the rows of its sums in the same place.
template <typename Tile_>
struct Shared {
    typedef Tile_ Tile;
    static constexpr int STAGED = shared_bytes<typename Tile::Of>();
    alignas(16) unsigned char bytes[Tile::RING_BYTES > STAGED ? Tile::RING_BYTES : STAGED];
};

// The sums of a block, from fragments to rows of `stage`. All of the block must come here, and nobody may still use
// `stage`.
template <typename Warps>
DEVICE void to_rows(const typename Warps::Accumulators& acc, float* stage) {
    const int lane = Warps::lane();
#pragma unroll
    for (int i = 0; i < Warps::FRAGMENTS_M; ++i)
#pragma unroll
        for (int j = 0; j < Warps::FRAGMENTS_N; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = Warps::first_row() + i * 16 + half * 8 + lane / 4;
                const int column = Warps::first_column() + j * 8 + lane % 4 * 2;
                const Floats2 pair = {{acc.of[i][j][half * 2], acc.of[i][j][half * 2 + 1]}};
                *reinterpret_cast<Floats2*>(Stage<Warps>::at(stage, row, column)) = pair;
            }
    Warps::sync();
}

// Stores a block's sums; `rows` is a Rows, or says likewise how many there are and where they go. `d` and `residual`
// are [m, n] (the residual: or [residual_rows, n]) with rows `d_row` elements apart, of GEGLU [m, n / 2]; n counts the
// columns of the sums, column0 is the block's first. The sums lie in `stage` (to_rows). All of the block must come
// here.
template <typename T, typename Warps, typename Places>
DEVICE void finish_rows(const Epilogue& e, const Places& rows, int column0, int n, T* d, const T* residual,
                        int64_t d_row, float* stage) {
    typedef Stage<Warps> Stage;
    // 1. Four columns of a row at a time.
    const float* bias = e.bias.as<float>();  // [n], or none
    const T* channels = e.channels.as<T>();  // [rows / channel_rows, n], or none
    const bool geglu = e.activation == GEGLU;
    const uint64_t places = reinterpret_cast<uint64_t>(d) | reinterpret_cast<uint64_t>(residual) | e.channels.address;
    const bool whole = n % 4 == 0 && d_row % 4 == 0 && places % 8 == 0;
    constexpr int QUADS = Warps::N / 4;
#pragma unroll 1
    for (int item = threadIdx.x; item < rows.count * QUADS; item += Warps::THREADS) {
        const int line = item / QUADS, in_tile = item % QUADS * 4, column = column0 + in_tile;
        const int64_t row = rows.at(line);
        if (row < 0 || column >= n) continue;
        float* staged = Stage::at(stage, line, in_tile);
        float value[4], other[4];
        const Floats4 sums = *reinterpret_cast<const Floats4*>(staged);
        for (int i = 0; i < 4; ++i) value[i] = sums.value[i];
        if (bias != nullptr)
            for (int i = 0; i < 4; ++i) value[i] += column + i < n ? bias[column + i] : 0.f;
        if (channels != nullptr) {
            const int64_t image = uint32_t(row) / uint32_t(e.channel_rows);
            gather(other, channels + image * n + column, whole, n - column);
            for (int i = 0; i < 4; ++i) value[i] += other[i];
        }
        if (geglu) {
            const int64_t at = row * d_row + column / 2, from = residual_row(e, row) * d_row + column / 2;
            for (int i = 0; i < 2; ++i)
                value[i] = value[2 * i] * activated(activation::GELU, value[2 * i + 1]);
            if (whole) {
                if (residual != nullptr) {
                    load_vector<2>(other, residual + from);
                    for (int i = 0; i < 2; ++i) value[i] += other[i];
                }
                store_vector<2>(d + at, value);
            } else {
                for (int i = 0; i < 2 && column / 2 + i < n / 2; ++i)
                    d[at + i] = from_f32<T>(residual != nullptr ? value[i] + to_f32(residual[from + i]) : value[i]);
            }
            continue;
        }
        if (e.activation != activation::IDENTITY)
            for (int i = 0; i < 4; ++i) value[i] = activated(e.activation, value[i]);
        const int64_t at = row * d_row + column;
        if (residual != nullptr) {
            gather(other, residual + (residual_row(e, row) * d_row + column), whole, n - column);
            for (int i = 0; i < 4; ++i) value[i] += other[i];
        }
        if (whole)
            store_vector<4>(d + at, value);
        else
            for (int i = 0; i < 4 && column + i < n; ++i) d[at + i] = from_f32<T>(value[i]);
        if (e.stats.address != 0) {
            Floats4 stored;
            for (int i = 0; i < 4; ++i) stored.value[i] = to_f32(from_f32<T>(value[i]));
            *reinterpret_cast<Floats4*>(staged) = stored;
        }
    }
    if (e.stats.address == 0) return;
    Warps::sync();

    // 2. The statistics: a thread a channel.
    float* stats = e.stats.as<float>() + rows.tile * n * 2;  // [n, 2]
    for (int in_tile = threadIdx.x; in_tile < Warps::N && column0 + in_tile < n; in_tile += Warps::THREADS) {
        float sum = 0.f, squares = 0.f;
        for (int line = 0; line < rows.count; ++line) sum += *Stage::at(stage, line, in_tile);
        const float mean = sum / float(rows.count);
        for (int line = 0; line < rows.count; ++line) {
            const float deviation = *Stage::at(stage, line, in_tile) - mean;
            squares += deviation * deviation;
        }
        *reinterpret_cast<Floats2*>(stats + (column0 + in_tile) * 2) = {{mean, squares}};
    }
}

// The same, of sums that are still in fragments.
template <typename T, typename Warps, typename Places>
DEVICE void finish(const Epilogue& e, const typename Warps::Accumulators& acc, const Places& rows, int column0,
                   int n, T* d, const T* residual, int64_t d_row, float* stage) {
    to_rows<Warps>(acc, stage);
    finish_rows<T, Warps>(e, rows, column0, n, d, residual, d_row, stage);
}

// The bare sums of a block, to be joined with those of others: `to` is [m, n] of f32. They lie in `stage` (to_rows).
template <typename Warps, typename Places>
DEVICE void store_sums(const Places& rows, int column0, int n, float* to, float* stage) {
    constexpr int QUADS = Warps::N / 4;
#pragma unroll 1
    for (int item = threadIdx.x; item < rows.count * QUADS; item += Warps::THREADS) {
        const int line = item / QUADS, in_tile = item % QUADS * 4, column = column0 + in_tile;
        const int64_t row = rows.at(line);
        if (row < 0 || column >= n) continue;
        const Floats4 sums = *reinterpret_cast<const Floats4*>(Stage<Warps>::at(stage, line, in_tile));
        float* place = to + row * n + column;
        if (n % 4 == 0)
            *reinterpret_cast<Floats4*>(place) = sums;
        else
            for (int i = 0; i < 4 && column + i < n; ++i) place[i] = sums.value[i];
    }
}

}  // namespace epilogue
