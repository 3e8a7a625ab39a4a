// gemm_tile_bwd - D = act(A B + bias) + residual on tensor cores, for every matrix of a batch.
//
//     d[i, j] = epilogue(sum_k a[i, k] b[k, j])
//
// As gemm_tile.cu, with b by rows: the data gradient of a linear layer reads the very filter of the forward pass,
// transposed on its way from shared memory to registers.
//
// Departures from the formula:
//   1. Rows, columns and depth beyond the edges are zeros, by copies of no bytes.
//   2. The sum grows by 16 of k at a time; with splits in each of them, then over them in their order.
//
// Reference: src/cpu/gemm.rs, src/cpu/linear.rs; gemm.cu is the general form. Class: contracted.
// Bound by: tensor cores, 2 m n k; with few rows DRAM, (k n + m k + m n) elements.
#include "gemm_tile.cuh"

namespace gemm_tile_bwd {

constexpr int THREADS = product::THREADS;

template <typename T, int M, int N, int K, int STAGES>
__device__ constexpr int shared_bytes() {
    return sizeof(product::Smem<M, N, K, STAGES, true>);
}

template <typename T, int M, int N, int K, int STAGES>
__device__ void run(const GemmTileParams& p) {
    product::run<T, M, N, K, STAGES, true>(p);
}

}  // namespace gemm_tile_bwd
