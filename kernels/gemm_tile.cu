// gemm_tile - D = act(A B^T + bias) + residual on tensor cores, for every matrix of a batch.
//
//     d[i, j] = epilogue(sum_k a[i, k] b[j, k])
//
// One block makes a tile of M x N through a ring of STAGES steps of K. b is stored as linear layers keep their
// filter. With few rows and columns blocks share k, and the last one of a tile adds what all have (split.cuh).
//
// Departures from the formula:
//   1. Rows, columns and depth beyond the edges are zeros, by copies of no bytes.
//   2. The sum grows by 16 of k at a time; with splits in each of them, then over them in their order.
//
// Reference: src/cpu/gemm.rs, src/cpu/linear.rs; gemm.cu is the general form. Class: contracted.
// Bound by: tensor cores, 2 m n k; with few rows DRAM, (k n + m k + m n) elements.
#include "gemm_tile.cuh"

namespace gemm_tile {

constexpr int THREADS = product::THREADS;

template <typename T, int M, int N, int K, int STAGES>
__device__ constexpr int shared_bytes() {
    return sizeof(product::Smem<M, N, K, STAGES, false>);
}

template <typename T, int M, int N, int K, int STAGES>
__device__ void run(const GemmTileParams& p) {
    product::run<T, M, N, K, STAGES, false>(p);
}

}  // namespace gemm_tile
