// gemm_sm90 - D = act(A B^T + bias) + residual with wgmma and bulk copies: gemm_tile.cu for sm_90a.
//
//     d[i, j] = epilogue(sum_k a[i, k] b[j, k])
//
// One block makes tiles of 128 PAIRS x N, one after the other, through mainloop_sm90.cuh. b is stored as linear layers
// keep their filter, [n, k], or B_BY_ROWS as their data gradient reads it, [k, n], which the matrix units take as it
// lies. With few rows and columns blocks share k, and the last one of a tile adds what all have (split.cuh).
//
// Items are counted columns first, so that blocks which run together read the same rows of a; then tiles of rows, then
// splits. A tile of statistics is 128 rows of one image.
//
// Departures from the formula:
//   1. Rows, columns and depth beyond the edges are zeros, which the copies put there.
//   2. The sum grows by 16 of k at a time; with splits in each of them, then over them in their order.
//
// Needs k in whole vectors of 8, rows and addresses of 16 bytes, splits of whole steps. Written by the rules of the
// ISA and run on the SIMT layer; its speed is not measured.
//
// Reference: src/cpu/gemm.rs, src/cpu/linear.rs; gemm.cu is the general form. Class: contracted.
// Bound by: tensor cores, 2 m n k; with few rows DRAM, (k n + m k + m n) elements.
#include "mainloop_sm90.cuh"
#include "params_sm90.cuh"

namespace gemm_sm90 {

constexpr int THREADS = mainloop::THREADS;

template <typename T, int PAIRS, int N, int STAGES, bool B_BY_ROWS>
__device__ constexpr int shared_bytes() {
    return sizeof(typename mainloop::Loop<PAIRS, N, STAGES, B_BY_ROWS>::Smem);
}

// A tile, or its share of k.
template <typename T, typename Loop>
struct Work {
    const GemmSm90Params& p;
    int tile, column0, part, k0;
    int steps;

    // The rows that this pair makes: of all m as if they were one image, or of each image where statistics are wanted.
    DEVICE_MEMBER epilogue::Rows rows(int pair) const {
        const int of_image = p.epilogue.stats.address != 0 ? p.epilogue.stat_rows : p.m;
        const int slabs = of_image / mainloop::ROWS + (of_image % mainloop::ROWS != 0);
        const int tiles = (slabs + Loop::PAIRS - 1) / Loop::PAIRS, image = tile / tiles;
        const int slab = tile % tiles * Loop::PAIRS + pair, first = slab * mainloop::ROWS, left = of_image - first;
        const int count = left < 0 ? 0 : left > mainloop::ROWS ? mainloop::ROWS : left;
        return {int64_t(image) * of_image + first, count, int64_t(image) * slabs + slab};
    }
    DEVICE_MEMBER void copy(int step, uint32_t a, uint32_t b, uint32_t full) const {
        const int k = k0 + step * mainloop::DEPTH;
        for (int pair = 0; pair < Loop::PAIRS; ++pair)
            cp_async_bulk_tensor_2d(a + pair * Loop::A_BYTES, p.a_map, full, k, int(rows(0).first) + pair * mainloop::ROWS);
        if (!Loop::B_BY_ROWS) return cp_async_bulk_tensor_2d(b, p.b_map, full, k, column0);
        Loop::each_span(b, [&](uint32_t to, int column) {
            cp_async_bulk_tensor_2d(to, p.b_map, full, column0 + column, k);
        });
    }
    DEVICE_MEMBER void store(const typename Loop::Warps::Accumulators& acc, int pair, float* sums) const {
        typedef typename Loop::Warps Warps;
        const epilogue::Rows of = rows(pair);
        if (of.count == 0) return;  // an image of an odd number of slabs
        epilogue::to_rows<Warps>(acc, sums);
        if (p.sums.address != 0) {
            const int columns = (p.n + Loop::N - 1) / Loop::N, splits = (p.k + p.k_split - 1) / p.k_split;
            uint32_t* arrived = p.arrived.as<uint32_t>() + (tile * Loop::PAIRS + pair) * columns + column0 / Loop::N;
            if (!split::is_whole<Warps>(of, column0, p.n, p.sums.as<float>(), int64_t(p.m) * p.n, part, splits, arrived,
                                        sums))
                return;
        }
        epilogue::finish_rows<T, Warps>(p.epilogue, of, column0, p.n, p.d.as<T>(),
                                        p.epilogue.residual.as<T>(), p.d_row, sums);
    }
};

template <typename T, int PAIRS, int N, int STAGES, bool B_BY_ROWS>
__device__ void run(const GemmSm90Params& p) {
    typedef mainloop::Loop<PAIRS, N, STAGES, B_BY_ROWS> Loop;
    typedef typename Loop::Smem Smem;
    typedef Work<T, Loop> Work;
    DYNAMIC_SHARED(Smem, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.k % 8 == 0 && p.k_split % mainloop::DEPTH == 0);
    const int columns = (p.n + N - 1) / N, splits = p.sums.address != 0 ? (p.k + p.k_split - 1) / p.k_split : 1;
    const int of_image = p.epilogue.stats.address != 0 ? p.epilogue.stat_rows : p.m;
    const int tiles = p.m / of_image * ((of_image + PAIRS * mainloop::ROWS - 1) / (PAIRS * mainloop::ROWS));
    Loop::template run<T>(smem, columns * tiles * splits, [&](int item) {
        const int part = item / columns / tiles, k0 = part * p.k_split;
        const int depth = splits > 1 && p.k - k0 > p.k_split ? p.k_split : p.k - k0;
        return Work{p,     item / columns % tiles, item % columns * N, part,
                    k0, (depth + mainloop::DEPTH - 1) / mainloop::DEPTH};
    });
}

}  // namespace gemm_sm90
