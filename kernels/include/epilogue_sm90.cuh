// epilogue_sm90.cuh - what epilogue.cuh does, of sums as wgmma leaves them: results are rounded in registers, and leave
// through shared memory as boxes of a tensor.
//
//     1. every thread     two rows of the tile, in each every fourth pair of columns: bias, channels, activation, residual
//     2. every warp       its 16 rows, rounded, to shared memory: eight columns of 16 rows twice an stmatrix
//     3. one thread       boxes of the tile, from there to the tensor: bulk copies, which leave out what the tensor lacks
//     4. every thread     the statistics of what is stored, where they are wanted
//
// Every number goes through the operations of epilogue::finish_rows in their order, so both give the same bits. What
// this saves is the way of f32 sums through shared memory, two numbers a word instead of one, and the addresses: a
// thread has two rows instead of a row for every four columns, and none of the result's. Boxes suit slabs of pixels
// as they suit rows, since an edge in the middle of a slab is the tensor's.
//
// It wants rows of whole 16 bytes (takes). Elsewhere, and where sums come from several blocks, they are staged in f32
// as before: parts are stored and added in f32 by rows, and a cluster's block finishes rows that others have summed.
//
// A tile lies in slabs of SPAN columns, as boxes are: rows of SPAN, whose chunks of eight columns are swapped as the
// copy's swizzle swaps them. So neither the eight rows of a matrix meet in a bank, nor 32 columns of a row.
#pragma once
#include "epilogue.cuh"
#include "fragments.cuh"
#include "ptx_sm90.cuh"

namespace epilogue_sm90 {

// Whether results go this way: n columns of sums, rows of results d_row elements apart. The host knows it too
// (src/launch/params/sm90.rs), and makes maps of what is stored.
DEVICE bool takes(const Epilogue& e, uint64_t d, int n, int64_t d_row) {
    return n % 8 == 0 && d_row % 8 == 0 && (d | e.residual.address | e.channels.address | e.bias.address) % 16 == 0;
}

// Results of a tile, [M, COLUMNS]. PAIRED: a result is made of two columns.
template <typename Warps, bool PAIRED>
struct Tile {
    static constexpr int COLUMNS = PAIRED ? Warps::N / 2 : Warps::N, FRAGMENTS = COLUMNS / 8;
    static constexpr int SPAN = COLUMNS % 64 == 0 ? 64 : COLUMNS % 32 == 0 ? 32 : 16;  // columns of a box
    static constexpr int BOX_BYTES = Warps::M * SPAN * 2;
    // Fragments for which everything is fetched together: as many trips to memory as there are groups.
    // What 232 registers have room for beside the sums of one slab of 160 columns, or of two of 128.
    static constexpr int GROUP = PAIRED ? 2 : FRAGMENTS % 10 == 0 ? 10 : 4;
    static_assert(COLUMNS % SPAN == 0 && FRAGMENTS % GROUP == 0, "whole boxes, and fragments in groups");

    // Of the chunk with columns 8 chunk .. 8 chunk + 7, in bytes.
    static DEVICE_MEMBER uint32_t at(int row, int chunk) {
        return chunk / (SPAN / 8) * BOX_BYTES + fragments::offset<SPAN / 8>(row, chunk % (SPAN / 8));
    }
};
// Bytes of a tile at most.
template <typename Warps>
__device__ constexpr int bytes() {
    return Warps::M * Warps::N * 2;
}

// One of a thread's rows. Pointers are to its first column there; others are so many behind, and there are `left` in all.
template <typename T>
struct Line {
    const float* bias;
    const T *channels, *residual;  // null where there are none, or no such row
    int left;
};

// What two neighbouring sums are made with. WITH_RESIDUAL: so are the results.
struct Added {
    Floats2 bias;
    uint32_t channels, residual;
};
template <bool WITH_RESIDUAL, typename T>
DEVICE Added added(const Line<T>& line, int behind) {
    const bool there = behind < line.left;
    Added of = {{{0.f, 0.f}}, 0, 0};
    if (there && line.bias != nullptr) of.bias = *reinterpret_cast<const Floats2*>(line.bias + behind);
    if (there && line.channels != nullptr) of.channels = *reinterpret_cast<const uint32_t*>(line.channels + behind);
    if (WITH_RESIDUAL && there && line.residual != nullptr)
        of.residual = *reinterpret_cast<const uint32_t*>(line.residual + behind);
    return of;
}

template <typename T>
DEVICE float half_of(uint32_t pair, int which) {
    return which == 0 ? first_of<T>(pair) : second_of<T>(pair);
}

// u = sum + bias + channels, of two columns.
template <typename T>
DEVICE void add_vectors(float (&u)[2], const Epilogue& e, const Added& more) {
    if (e.bias.address != 0)
        for (int i = 0; i < 2; ++i) u[i] += more.bias.value[i];
    if (e.channels.address != 0)
        for (int i = 0; i < 2; ++i) u[i] += half_of<T>(more.channels, i);
}

// Two results, rounded.
template <typename T>
DEVICE uint32_t pair_of(const Epilogue& e, const Added& more, float (&u)[2]) {
    add_vectors<T>(u, e, more);
    if (e.activation != activation::IDENTITY)
        for (int i = 0; i < 2; ++i) u[i] = epilogue::activated(e.activation, u[i]);
    if (e.residual.address != 0)
        for (int i = 0; i < 2; ++i) u[i] += half_of<T>(more.residual, i);
    return rounded_pair(T{}, u[0], u[1]);
}

// The same of a fragment of gated results in a row, from two fragments of sums: lane t of four has the sums of columns
// t and 4 + t, and gets results 2 t and 2 t + 1. By whole warps.
template <typename T, typename Accumulators>
DEVICE uint32_t gated_pair(const Epilogue& e, const Line<T>& line, const Accumulators& acc, int fragment, int h) {
    const int lane = threadIdx.x % 32;
    float value[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const int of_sums = fragment * 2 + j;
        float u[2] = {acc.of[0][of_sums][h * 2], acc.of[0][of_sums][h * 2 + 1]};
        add_vectors<T>(u, e, added<false>(line, of_sums * 8));
        value[j] = u[0] * epilogue::activated(activation::GELU, u[1]);
        if (line.residual != nullptr && of_sums * 8 < line.left) value[j] += to_f32(line.residual[of_sums * 4]);
    }
    const uint32_t own = rounded_pair(T{}, value[0], value[1]);
    const int from = lane / 4 * 4 + lane % 2 * 2;
    const uint32_t low = f32_as_bits(shuffle_from(bits_as_f32(own), from));
    const uint32_t high = f32_as_bits(shuffle_from(bits_as_f32(own), from + 1));
    return lane % 4 < 2 ? (low & 0xffffu) | high << 16 : low >> 16 | (high & 0xffff0000u);
}

// Steps 1 and 2: the results of a tile at `tile` of shared memory, which nobody may still read. `rows` as in
// epilogue::finish_rows. By all of the block that multiplies.
template <typename T, typename Warps, bool PAIRED, typename Places>
DEVICE void to_tile(const Epilogue& e, const typename Warps::Accumulators& acc, const Places& rows, int column0, int n,
                    int64_t d_row, uint32_t tile) {
    typedef Tile<Warps, PAIRED> Tile;
    const int lane = Warps::lane(), column = column0 + lane % 4 * 2;
    const float* bias = e.bias.as<float>();  // [n], or none
    const T* channels = e.channels.as<T>();  // [m / channel_rows, n], or none
    const T* residual = e.residual.as<T>();  // [m or residual_rows, n], rows d_row elements apart, or none
    Line<T> line[2];                         // rows lane / 4 and lane / 4 + 8 of the warp's
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int number = Warps::first_row() + h * 8 + lane / 4;
        const int64_t row = number < rows.count ? rows.at(number) : -1;
        line[h] = {nullptr, nullptr, nullptr, row < 0 ? 0 : n - column};
        if (row < 0) continue;
        if (bias != nullptr) line[h].bias = bias + column;
        if (channels != nullptr)
            line[h].channels = channels + int64_t(uint32_t(row) / uint32_t(e.channel_rows)) * n + column;
        if (residual != nullptr)
            line[h].residual = residual + epilogue::residual_row(e, row) * d_row + (PAIRED ? column / 2 : column);
    }
#pragma unroll
    for (int first = 0; first < Tile::FRAGMENTS; first += Tile::GROUP) {
        uint32_t r[Tile::GROUP][2];  // of both rows
        if constexpr (PAIRED) {
#pragma unroll
            for (int i = 0; i < Tile::GROUP * 2; ++i)
                r[i / 2][i % 2] = gated_pair<T>(e, line[i % 2], acc, first + i / 2, i % 2);
        } else {
            Added more[Tile::GROUP][2];
#pragma unroll
            for (int i = 0; i < Tile::GROUP * 2; ++i)
                more[i / 2][i % 2] = added<true>(line[i % 2], (first + i / 2) * 8);
#pragma unroll
            for (int i = 0; i < Tile::GROUP * 2; ++i) {
                const float(&of)[4] = acc.of[0][first + i / 2];
                float u[2] = {of[i % 2 * 2], of[i % 2 * 2 + 1]};
                r[i / 2][i % 2] = pair_of<T>(e, more[i / 2][i % 2], u);
            }
        }
#pragma unroll
        for (int i = 0; i < Tile::GROUP; i += 2) {
            const uint32_t four[4] = {r[i][0], r[i][1], r[i + 1][0], r[i + 1][1]};
            stmatrix_x4(tile + Tile::at(Warps::first_row() + lane % 16, first + i + lane / 16), four);
        }
    }
}

// Step 3: `store(column, from)` starts the copy of the box whose first column of results that is; n columns of results
// there are. Afterwards the tile may be read, and be written once the copies have been waited for. By all.
template <typename Warps, bool PAIRED, typename Store>
DEVICE void store_tile(int column0, int n, uint32_t tile, const Store& store) {
    typedef Tile<Warps, PAIRED> Tile;
    fence_proxy_async();
    Warps::sync();  // the whole tile is there
    if (threadIdx.x != 0) return;
    for (int first = 0; first < Tile::COLUMNS && column0 + first < n; first += Tile::SPAN)
        store(column0 + first, tile + first / Tile::SPAN * Tile::BOX_BYTES);
}

// Step 4: of `count` rows from `first` on, as epilogue::finish_rows takes them of its own. A thread a channel.
template <typename T, typename Warps>
DEVICE void take_statistics(const Epilogue& e, int first, int count, int64_t number, int column0, int n,
                            const unsigned char* tile) {
    typedef Tile<Warps, false> Tile;
    float* stats = e.stats.as<float>() + number * n * 2;  // [n, 2]
    for (int column = threadIdx.x; column < Warps::N && column0 + column < n; column += Warps::THREADS) {
        const auto stored = [&](int line) {
            return to_f32(*reinterpret_cast<const T*>(tile + Tile::at(first + line, column / 8) + column % 8 * 2));
        };
        float sum = 0.f, squares = 0.f;
        for (int line = 0; line < count; ++line) sum += stored(line);
        const float mean = sum / float(count);
        for (int line = 0; line < count; ++line) {
            const float deviation = stored(line) - mean;
            squares += deviation * deviation;
        }
        *reinterpret_cast<Floats2*>(stats + (column0 + column) * 2) = {{mean, squares}};
    }
}

// Steps 1 to 3, whatever the activation is.
template <typename T, typename Warps, typename Places, typename Store>
DEVICE void finish(const Epilogue& e, const typename Warps::Accumulators& acc, const Places& rows, int column0, int n,
                   int64_t d_row, unsigned char* tile, const Store& store) {
    const uint32_t at = cvta_to_shared(tile);
    if (e.activation == epilogue::GEGLU) {
        to_tile<T, Warps, true>(e, acc, rows, column0, n, d_row, at);
        store_tile<Warps, true>(column0 / 2, n / 2, at, store);
    } else {
        to_tile<T, Warps, false>(e, acc, rows, column0, n, d_row, at);
        store_tile<Warps, false>(column0, n, at, store);
    }
}

}  // namespace epilogue_sm90
