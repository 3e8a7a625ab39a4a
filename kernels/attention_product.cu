// attention_product - C = alpha A B / power (+ C): the matrix products of attention in pieces, where scores are f32,
// one operand may lie across, and sums go on from chunk to chunk. The general form: any size and stride.
//
//     c[i, j] = alpha / power sum_k a[i, k] b[k, j]  (+ c[i, j])
//
// How the operands lie, `a_row` and `b_row` elements between two rows in memory:
//     NT  a is [m, k], b is [n, k]          S = q k^T, dP = do v^T
//     NN  a is [m, k], b is [k, n]          o = P v,   dq = dS k
//     TN  a is [k, m], b is [k, n]          dk = dS^T q, dv = P^T do
//
// One block makes a tile of 32 x 32, four elements a thread; k advances by 32 through shared memory, in f32. The
// order of the sum depends on k alone.
//
// Departures from the formula: power is that of the largest of `peaks` numbers (scaling.cuh), one without them.
//
// Reference: src/cpu/gemm.rs. Class: contracted. Bound by: shared memory.
#include "params.cuh"
#include "scaling.cuh"

namespace attention_product {

constexpr int THREADS = 256;
constexpr int TILE = 32;  // rows, columns and depth of a tile
constexpr int OWN = TILE * TILE / THREADS;

enum Lie { NT, NN, TN };

struct Smem {
    float a[TILE][TILE + 1];  // [row, k]
    float b[TILE][TILE + 1];  // [column, k]
};

template <typename T, typename Out, Lie LIE>
__device__ void run(const ProductParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS);
    SHARED(Smem, smem);
    const T *a = p.a.as<T>(), *b = p.b.as<T>();
    const int64_t row0 = int64_t(blockIdx.x) * TILE, column0 = int64_t(blockIdx.y) * TILE;
    const int fast = threadIdx.x % TILE, slow = threadIdx.x / TILE;  // slow: also slow + 8, ...
    const float power = p.peak.address == 0 ? 1.f : scaling::power_of_all<THREADS>(p.peak.as<float>(), p.peaks);

    float sum[OWN];  // slow + own * (TILE / OWN) of the tile's rows
    for (int own = 0; own < OWN; ++own) sum[own] = 0.f;
    for (int k0 = 0; k0 < p.k; k0 += TILE) {
        // 1. A tile of a and one of b, zero beyond the edges; neighbours in memory to neighbouring threads.
        for (int own = 0; own < OWN; ++own) {
            const int line = slow + own * (TILE / OWN);
            if (LIE == TN) {
                const bool in = row0 + fast < p.m && k0 + line < p.k;
                smem.a[fast][line] = in ? to_f32(a[(k0 + line) * p.a_row + row0 + fast]) : 0.f;
            } else {
                const bool in = row0 + line < p.m && k0 + fast < p.k;
                smem.a[line][fast] = in ? to_f32(a[(row0 + line) * p.a_row + k0 + fast]) : 0.f;
            }
            if (LIE == NT) {
                const bool in = column0 + line < p.n && k0 + fast < p.k;
                smem.b[line][fast] = in ? to_f32(b[(column0 + line) * p.b_row + k0 + fast]) : 0.f;
            } else {
                const bool in = column0 + fast < p.n && k0 + line < p.k;
                smem.b[fast][line] = in ? to_f32(b[(k0 + line) * p.b_row + column0 + fast]) : 0.f;
            }
        }
        sync_block();

        // 2. Their product.
        for (int k = 0; k < TILE; ++k)
            for (int own = 0; own < OWN; ++own)
                sum[own] += smem.a[slow + own * (TILE / OWN)][k] * smem.b[fast][k];
        sync_block();
    }

    // 3. The tile.
    for (int own = 0; own < OWN; ++own) {
        const int64_t i = row0 + slow + own * (TILE / OWN), j = column0 + fast;
        if (i >= p.m || j >= p.n) continue;
        Out* c = p.c.as<Out>() + i * p.c_row + j;
        const float value = sum[own] * (p.alpha / power);
        *c = from_f32<Out>(p.adds ? to_f32(*c) + value : value);
    }
}

}  // namespace attention_product
