// product_mma - C = alpha A B / power (+ C): product.cu for operands whose rows are aligned to 16 bytes.
//
//     c[i, j] = alpha / power sum_k a[i, k] b[k, j]  (+ c[i, j])
//
// How the operands lie, `a_row` and `b_row` elements between two rows in memory:
//     NT  a is [m, k], b is [n, k]          S = q k^T, dP = do v^T
//     NN  a is [m, k], b is [k, n]          o = P v,   dq = dS k
//     TN  a is [k, m], b is [k, n]          dk = dS^T q, dv = P^T do
//
// A block makes a tile of 128 x 128 with 2 x 4 warps of 64 x 32. Depth comes by 32, in three stages: what a step
// loads goes where the step before last read, so one barrier a step is enough. Tiles lie in shared memory as their
// operands do in memory; ldmatrix transposes what lies across. The order of the sum depends on k alone.
//
// Departures from the formula:
//   1. power is that of the largest of `peaks` numbers (scaling.cuh), one without them.
//   2. Chunks of eight elements are copied as far as the matrix goes: the rest of a tile is zero.
//
// Reference: src/cpu/gemm.rs. Class: contracted. Bound by: mma.
#include "params.cuh"
#include "scaling.cuh"
#include "tiles.cuh"

namespace product_mma {

constexpr int THREADS = 256;
constexpr int STAGES = 3;
constexpr int TILE = 128, DEPTH = 32;
constexpr int ROWS = 64, COLUMNS = 32;  // of a warp
constexpr int M = ROWS / 16, N = COLUMNS / 8;

enum Lie { NT, NN, TN };

// Both kinds of tile have as many chunks: [TILE, DEPTH] along k, [DEPTH, TILE] across.
constexpr int CHUNKS = TILE * DEPTH / 8;
constexpr int ALONG = DEPTH / 8, ACROSS = TILE / 8;

struct Smem {
    tiles::Chunk a[STAGES][CHUNKS];
    tiles::Chunk b[STAGES][CHUNKS];
};
template <typename T, typename Out, Lie LIE>
DEVICE constexpr int shared_bytes() {
    return sizeof(Smem);
}

// A tile of an operand: [outer of row] in memory with k inside if ALONG_K, else [k of row] with the outer inside.
template <bool ALONG_K, typename T>
DEVICE void copy_operand(tiles::Chunk (&to)[CHUNKS], const T* from, int64_t row, int64_t outer0, int outer, int k0,
                         int depth) {
    const int rows = ALONG_K ? TILE : DEPTH, chunks = CHUNKS / rows;
    const uint32_t tile = cvta_to_shared(to);
    for (int i = threadIdx.x; i < CHUNKS; i += THREADS) {
        const int line = i / chunks, chunk = i % chunks;
        const int64_t y = (ALONG_K ? outer0 : k0) + line, x = (ALONG_K ? k0 : outer0) + chunk * 8;
        const int64_t left = (ALONG_K ? depth : outer) - x;
        const bool inside = y < (ALONG_K ? outer : depth) && left > 0;
        const uint32_t at = ALONG_K ? tiles::offset<ALONG>(line, chunk) : tiles::offset<ACROSS>(line, chunk);
        const int bytes = !inside ? 0 : left < 8 ? int(left) * 2 : 16;
        cp_async_cg16(tile + at, inside ? from + y * row + x : from, bytes);
    }
}

// sum += a b for one step of depth; row and column are those of the warp in the tile.
template <typename T, Lie LIE>
DEVICE void multiply(float (&sum)[M][N][4], uint32_t a_tile, uint32_t b_tile, int row, int column) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t a[M][4], b[2][2];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            if (LIE == TN)
                tiles::read_a_across<ACROSS>(a[m], a_tile, k, row / 8 + m * 2);
            else
                tiles::read_a<ALONG>(a[m], a_tile, row + m * 16, k / 8);
        }
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            if (LIE == NT)
                tiles::read_b<ALONG>(b, b_tile, column + j * 8, k / 8);
            else
                tiles::read_b_across<ACROSS>(b, b_tile, k, column / 8 + j);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma_m16n8k16(sum[m][j], a[m], b[0], T{});
                mma_m16n8k16(sum[m][j + 1], a[m], b[1], T{});
            }
        }
    }
}

template <typename T, typename Out, Lie LIE>
__device__ void run(const ProductParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS);
    DYNAMIC_SHARED(Smem, smem);
    const T *a = p.a.as<T>(), *b = p.b.as<T>();
    const int64_t row0 = int64_t(blockIdx.x) * TILE, column0 = int64_t(blockIdx.y) * TILE;
    const int warp = threadIdx.x / 32, row = warp / 4 * ROWS, column = warp % 4 * COLUMNS;
    const int steps = (p.k + DEPTH - 1) / DEPTH;

    // 1. The first tiles are on their way.
    const auto load = [&](int step) {
        if (step < steps) {
            copy_operand<LIE != TN>(smem.a[step % STAGES], a, p.a_row, row0, p.m, step * DEPTH, p.k);
            copy_operand<LIE == NT>(smem.b[step % STAGES], b, p.b_row, column0, p.n, step * DEPTH, p.k);
        }
        cp_async_commit_group();
    };
    for (int step = 0; step < STAGES - 1; ++step) load(step);
    const float power = p.peak.address == 0 ? 1.f : scaling::power_of_all<THREADS>(p.peak.as<float>(), p.peaks);
    float sum[M][N][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int j = 0; j < N; ++j) sum[m][j][0] = sum[m][j][1] = sum[m][j][2] = sum[m][j][3] = 0.f;

    // 2. Step after step. Behind the barrier all have this step's tiles, and nobody reads those before.
    for (int step = 0; step < steps; ++step) {
        cp_async_wait_group<STAGES - 2>();
        sync_block();
        load(step + STAGES - 1);
        multiply<T, LIE>(sum, cvta_to_shared(smem.a[step % STAGES]), cvta_to_shared(smem.b[step % STAGES]), row,
                         column);
    }

    // 3. The tile.
    const float factor = p.alpha / power;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int j = 0; j < N; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int64_t y = row0 + row + m * 16 + i / 2 * 8 + tiles::row();
                const int64_t x = column0 + column + j * 8 + tiles::column() + i % 2;
                if (y >= p.m || x >= p.n) continue;
                Out* c = p.c.as<Out>() + y * p.c_row + x;
                const float value = sum[m][j][i] * factor;
                *c = from_f32<Out>(p.adds ? to_f32(*c) + value : value);
            }
}

}  // namespace product_mma
