// join - adds the partial sums of a product that blocks shared by depth, and finishes it.
//
//     d[i, j] = epilogue(sum_s sums[s, i, j])
//
// One block makes a tile of M x N, in the places that the tiles of gemm and conv2d have for it; the splits are
// added in their order.
//
// Departures from the formula: none.
//
// Reference: src/cpu/gemm.rs. Class: contracted. Bound by: DRAM, splits m n sums.
#include "epilogue.cuh"

namespace join {

constexpr int THREADS = 128;

template <int M, int N>
struct Smem {
    alignas(16) float stage[M * N];
};

template <typename T, int M, int N>
__device__ constexpr int shared_bytes() {
    return sizeof(Smem<M, N>);
}

template <typename T, int M, int N>
__device__ void run(const JoinParams& p) {
    typedef tile::Warps<M, N, 2, 2> Warps;
    typedef Smem<M, N> Shared;
    DYNAMIC_SHARED(Shared, smem);
    KERNEL_ASSERT(blockDim.x == THREADS);
    const epilogue::Rows rows = epilogue::rows_of<M>(p.epilogue, blockIdx.x, p.m);
    const int column0 = blockIdx.y * N;

    typename Warps::Accumulators acc;
    Warps::clear(acc);
    for (int split = 0; split < p.splits; ++split)
        epilogue::add_sums<Warps>(acc, rows, column0, p.n, p.sums.as<float>() + int64_t(split) * p.m * p.n);
    epilogue::finish<T, Warps>(p.epilogue, acc, rows, column0, p.n, p.d.as<T>(), p.epilogue.residual.as<T>(),
                               p.d_row, smem.stage);
}

}  // namespace join
