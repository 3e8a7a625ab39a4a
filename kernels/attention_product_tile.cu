// attention_product_tile - C = alpha A B / power (+ C): attention_product.cu for operands whose rows are aligned to
// 16 bytes.
//
//     c[i, j] = alpha / power sum_k a[i, k] b[k, j]  (+ c[i, j])
//
// How the operands lie, `a_row` and `b_row` elements between two rows in memory:
//     NT  a is [m, k], b is [n, k]          S = q k^T, dP = do v^T
//     NN  a is [m, k], b is [k, n]          o = P v,   dq = dS k
//     TN  a is [k, m], b is [k, n]          dk = dS^T q, dv = P^T do
//
// A block makes a tile of 128 x 128 with 2 x 4 warps of 64 x 32, by the main loop of tile.cuh in three stages of 32 of
// k. Slabs lie in shared memory as their operands do in memory; ldmatrix transposes what lies across. The order of the
// sum depends on k alone.
//
// Departures from the formula:
//   1. power is that of the largest of `peaks` numbers (scaling.cuh), one without them.
//   2. Chunks of eight elements are copied as far as the matrix goes: the rest of a tile is zero.
//
// Reference: src/cpu/gemm.rs. Class: contracted. Bound by: mma.
#include "fragments.cuh"
#include "params.cuh"
#include "scaling.cuh"
#include "tile.cuh"

namespace attention_product_tile {

constexpr int THREADS = 256;
constexpr int STAGES = 3;
constexpr int TILE = 128, DEPTH = 32;

enum Lie { NT, NN, TN };

template <Lie LIE>
using Tile = tile::Tile<TILE, TILE, DEPTH, STAGES, 2, 4, LIE != NT, LIE == TN>;

template <Lie LIE>
struct alignas(16) Smem {
    unsigned char bytes[Tile<LIE>::RING_BYTES];
};
template <typename T, typename Out, Lie LIE>
DEVICE constexpr int shared_bytes() {
    return sizeof(Smem<LIE>);
}

// An operand in memory: lines of k, ACROSS of rows (of a) or columns (of b), from those of the block on.
template <bool ACROSS, typename T>
struct Operand {
    const T* from;
    int64_t row;     // elements between two lines
    int64_t first;   // row or column of the block
    int count, depth;

    DEVICE_MEMBER tile::Piece piece(int k0, int line, int chunk) const {
        const int64_t y = (ACROSS ? k0 : first) + line, x = (ACROSS ? first : k0) + chunk * 8;
        const int64_t left = (ACROSS ? count : depth) - x;
        const bool inside = y < (ACROSS ? depth : count) && left > 0;
        return {inside ? from + y * row + x : from, !inside ? 0 : left < 8 ? int(left) * 2 : 16};
    }
};

template <typename T, typename Out, Lie LIE>
__device__ void run(const ProductParams& p) {
    typedef attention_product_tile::Tile<LIE> Tile;
    typedef typename Tile::Of Warps;
    DYNAMIC_SHARED(Smem<LIE>, smem);
    KERNEL_ASSERT(blockDim.x == THREADS);
    const int64_t row0 = int64_t(blockIdx.x) * TILE, column0 = int64_t(blockIdx.y) * TILE;
    const Operand<LIE == TN, T> a{p.a.as<T>(), p.a_row, row0, p.m, p.k};
    const Operand<LIE != NT, T> b{p.b.as<T>(), p.b_row, column0, p.n, p.k};

    // 1. The sums.
    typename Warps::Accumulators acc;
    Warps::clear(acc);
    Tile::template run<T>(acc, cvta_to_shared(smem.bytes), (p.k + DEPTH - 1) / DEPTH,
                          [&](int step, uint32_t a_slab, uint32_t b_slab) {
        Tile::A::fill(a_slab, [&](int, int line, int chunk) { return a.piece(step * DEPTH, line, chunk); });
        Tile::B::fill(b_slab, [&](int, int line, int chunk) { return b.piece(step * DEPTH, line, chunk); });
    });

    // 2. The tile.
    const float power = p.peak.address == 0 ? 1.f : scaling::power_of_all<THREADS>(p.peak.as<float>(), p.peaks);
    const float factor = p.alpha / power;
#pragma unroll
    for (int i = 0; i < Warps::FRAGMENTS_M; ++i)
#pragma unroll
        for (int j = 0; j < Warps::FRAGMENTS_N; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int64_t y = row0 + Warps::first_row() + i * 16 + e / 2 * 8 + fragments::row();
                const int64_t x = column0 + Warps::first_column() + j * 8 + fragments::column() + e % 2;
                if (y >= p.m || x >= p.n) continue;
                Out* c = p.c.as<Out>() + y * p.c_row + x;
                const float value = acc.of[i][j][e] * factor;
                *c = from_f32<Out>(p.adds ? to_f32(*c) + value : value);
            }
}

}  // namespace attention_product_tile
