// gemm_tile.cuh - one tile of a product on tensor cores, whichever way b lies: gemm_tile.cu and gemm_tile_bwd.cu.
#pragma once
#include "split.cuh"

typedef InParts<GemmParams> GemmTileParams;

namespace product {

constexpr int THREADS = 128;

template <int M, int N, int K, int STAGES, bool B_BY_ROWS>
using Smem = epilogue::Shared<tile::Tile<M, N, K, STAGES, 2, 2, B_BY_ROWS>>;

// b is [n, k], or [k, n] where it comes by rows.
template <typename T, int M, int N, int K, int STAGES, bool B_BY_ROWS>
DEVICE void run(const GemmTileParams& params) {
    const GemmParams& p = params.whole;
    typedef Smem<M, N, K, STAGES, B_BY_ROWS> Shared;
    typedef typename Shared::Tile Tile;
    typedef typename Tile::Of Warps;
    DYNAMIC_SHARED(Shared, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.k % 8 == 0 && (B_BY_ROWS ? p.n : p.k) % 8 == 0);
    // z counts the matrices of the batch, or the splits of k.
    const bool in_parts = p.sums.address != 0;
    const int matrix = in_parts ? 0 : blockIdx.z, k0 = in_parts ? blockIdx.z * p.k_split : 0;
    const int k_end = in_parts && p.k - k0 > p.k_split ? k0 + p.k_split : p.k;
    const T* a = p.a.as<T>() + matrix * p.a_batch;  // [m, k]
    const T* b = p.b.as<T>() + matrix * p.b_batch;  // [n, k] or [k, n]
    const epilogue::Rows rows = epilogue::rows_of<M>(p.epilogue, blockIdx.x, p.m);
    const int column0 = blockIdx.y * N;

    // 1. The sums. A chunk is eight elements, all inside or all outside. Addresses outside are not followed.
    typedef typename Tile::A A;
    typedef typename Tile::B B;
    static_assert(A::REGULAR, "one chunk a thread");
    const T* a_first = a + (rows.first + A::row(0)) * p.a_row + k0 + A::chunk(0) * 8;
    const int64_t b_row = B_BY_ROWS ? p.b_k : p.b_column, b_step = B_BY_ROWS ? K * b_row : K;
    const T* b_begin = b + (B_BY_ROWS ? k0 * b_row + column0 : column0 * b_row + k0);
    const T* b_first = b_begin + B::row(0) * b_row + B::chunk(0) * 8;
    typename Warps::Accumulators acc;
    Warps::clear(acc);
    Tile::template run<T>(acc, cvta_to_shared(smem.bytes), (k_end - k0 + K - 1) / K,
                          [&](int step, uint32_t a_slab, uint32_t b_slab) {
        const int left = k_end - k0 - step * K;
        const T* a_now = a_first + int64_t(step) * K;
        A::fill(a_slab, [&](int i, int row, int chunk) {
            const bool in = row < rows.count && chunk * 8 < left;
            return tile::Piece{a_now + i * (A::APART * p.a_row), in ? 16 : 0};
        });
        const T* b_now = b_first + step * b_step;
        B::fill(b_slab, [&](int i, int row, int chunk) {
            const int k = B_BY_ROWS ? row : chunk * 8, column = column0 + (B_BY_ROWS ? chunk * 8 : row);
            const T* from = B::REGULAR ? b_now + i * (B::APART * b_row)
                                       : b_begin + step * b_step + row * b_row + chunk * 8;
            return tile::Piece{from, column < p.n && k < left ? 16 : 0};
        });
    });

    // 2. What becomes of them.
    float* stage = reinterpret_cast<float*>(smem.bytes);
    epilogue::to_rows<Warps>(acc, stage);
    uint32_t* arrived = params.arrived.as<uint32_t>() + blockIdx.y * gridDim.x + blockIdx.x;
    if (in_parts && !split::is_whole<Warps>(rows, column0, p.n, p.sums.as<float>(), int64_t(p.m) * p.n, blockIdx.z,
                                         gridDim.z, arrived, stage))
        return;
    const T* residual = p.epilogue.residual.as<T>();
    if (residual != nullptr) residual += matrix * p.d_batch;
    epilogue::finish_rows<T, Warps>(p.epilogue, rows, column0, p.n, p.d.as<T>() + matrix * p.d_batch, residual,
                                    p.d_row, stage);
}

}  // namespace product
