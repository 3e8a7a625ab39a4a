// product.cuh - one tile of one product on tensor cores: what gemm_tile.cu and gemm_tile_bwd.cu share.
#pragma once
#include "epilogue.cuh"

namespace product {

constexpr int THREADS = 128;

// A tile and the rows of the sums in it.
template <int M, int N, int K, int STAGES, bool B_BY_ROWS>
struct Smem {
    typedef tile::Tile<M, N, K, STAGES, 2, 2, B_BY_ROWS> Tile;
    static constexpr int STAGED = epilogue::shared_bytes<typename Tile::Of>();
    alignas(16) unsigned char bytes[Tile::RING_BYTES > STAGED ? Tile::RING_BYTES : STAGED];
};

// b is [n, k], or [k, n] where it comes by rows.
template <typename T, int M, int N, int K, int STAGES, bool B_BY_ROWS>
DEVICE void run(const GemmParams& p) {
    typedef Smem<M, N, K, STAGES, B_BY_ROWS> Shared;
    typedef typename Shared::Tile Tile;
    typedef typename Tile::Of Warps;
    DYNAMIC_SHARED(Shared, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.k % 8 == 0 && (B_BY_ROWS ? p.n : p.k) % 8 == 0);
    // z counts the matrices of the batch, or the splits of k.
    const bool split = p.sums.address != 0;
    const int matrix = split ? 0 : blockIdx.z, k0 = split ? blockIdx.z * p.k_split : 0;
    const int k_end = split && p.k - k0 > p.k_split ? k0 + p.k_split : p.k;
    const T* a = p.a.as<T>() + matrix * p.a_batch;  // [m, k]
    const T* b = p.b.as<T>() + matrix * p.b_batch;  // [n, k] or [k, n]
    const epilogue::Rows rows = epilogue::rows_of<M>(p.epilogue, blockIdx.x, p.m);
    const int column0 = blockIdx.y * N;

    // 1. The sums. A chunk is eight elements, all inside or all outside.
    typename Warps::Accumulators acc;
    Warps::clear(acc);
    Tile::template run<T>(acc, cvta_to_shared(smem.bytes), (k_end - k0 + K - 1) / K,
                          [&](int step, uint32_t a_slab, uint32_t b_slab) {
        const int from = k0 + step * K;
        Tile::A::fill(a_slab, [&](int, int row, int chunk) {
            const int k = from + chunk * 8;
            const bool in = row < rows.count && k < k_end;
            return tile::Piece{in ? a + (rows.first + row) * p.a_row + k : a, in ? 16 : 0};
        });
        Tile::B::fill(b_slab, [&](int, int row, int chunk) {
            const int k = from + (B_BY_ROWS ? row : chunk * 8), column = column0 + (B_BY_ROWS ? chunk * 8 : row);
            const bool in = column < p.n && k < k_end;
            const int64_t at = B_BY_ROWS ? k * p.b_k + column : column * p.b_column + k;
            return tile::Piece{in ? b + at : b, in ? 16 : 0};
        });
    });

    // 2. What becomes of them.
    if (split) return epilogue::store_sums<Warps>(acc, rows, column0, p.n,
                                                  p.sums.as<float>() + int64_t(blockIdx.z) * p.m * p.n);
    const T* residual = p.epilogue.residual.as<T>();
    if (residual != nullptr) residual += matrix * p.d_batch;
    epilogue::finish<T, Warps>(p.epilogue, acc, rows, column0, p.n, p.d.as<T>() + matrix * p.d_batch, residual,
                               p.d_row, reinterpret_cast<float*>(smem.bytes));
}

}  // namespace product
