// gemm_sm90 - D = act(A B^T + bias) + residual with wgmma and bulk copies: gemm_tile.cu for sm_90a.
//
//     d[i, j] = epilogue(sum_k a[i, k] b[j, k])
//
// One block makes tiles of 128 PAIRS x N, one after the other, through mainloop_sm90.cuh. b is stored as linear layers
// keep their filter, [n, k], or B_BY_ROWS as their data gradient reads it, [k, n], which the matrix units take as it
// lies. With few rows and columns blocks share k, and the last one of a tile adds what all have (split.cuh); or the
// BLOCKS of a cluster do, which add it among themselves (cluster_sm90.cuh).
//
// Items are counted columns first, so that blocks which run together read the same rows of a; then tiles of rows, then
// splits. A tile of statistics is 128 rows of one image. Results leave as boxes of one image's rows (epilogue_sm90.cuh),
// or by rows.
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
#include "cluster_sm90.cuh"
#include "mainloop_sm90.cuh"
#include "params_sm90.cuh"

namespace gemm_sm90 {

constexpr int THREADS = mainloop::THREADS;

template <typename T, int PAIRS, int N, int STAGES, bool B_BY_ROWS, int BLOCKS = 1>
__device__ constexpr int shared_bytes() {
    return sizeof(typename mainloop::Loop<PAIRS, N, STAGES, B_BY_ROWS>::Smem);
}

// A tile, or its share of k.
template <typename T, typename Loop, int BLOCKS>
struct Work {
    const GemmSm90Params& p;
    int tile, column0, part, k0;
    int steps;

    // The rows that this pair makes: of all m as if they were one image, or of each image where statistics are wanted.
    DEVICE_MEMBER epilogue::Rows rows(int pair) const {
        const int tiles = (blocks_of(mainloop::ROWS) + Loop::PAIRS - 1) / Loop::PAIRS;
        return rows_of(tile / tiles, tile % tiles * Loop::PAIRS + pair, mainloop::ROWS);
    }
    DEVICE_MEMBER int of_image() const { return p.epilogue.stats.address != 0 ? p.epilogue.stat_rows : p.m; }
    DEVICE_MEMBER int blocks_of(int rows) const { return of_image() / rows + (of_image() % rows != 0); }
    // Those of an image that come after `number` times as many.
    DEVICE_MEMBER epilogue::Rows rows_of(int image, int number, int rows) const {
        const int first = number * rows, left = of_image() - first, count = left < 0 ? 0 : left > rows ? rows : left;
        return {int64_t(image) * of_image() + first, count, int64_t(image) * blocks_of(rows) + number};
    }
    DEVICE_MEMBER int depth(int step) const { return k0 + step * mainloop::DEPTH; }
    // Calls `take(to, c0, c1)` for every box of b in a step, whose slab begins at `b`.
    template <typename Take>
    DEVICE_MEMBER void weights(int step, uint32_t b, const Take& take) const {
        if (!Loop::B_BY_ROWS) return take(b, depth(step), column0);
        Loop::each_span(b, [&](uint32_t to, int column) { take(to, column0 + column, depth(step)); });
    }
    DEVICE_MEMBER bool in_boxes() const {
        return BLOCKS == 1 && p.sums.address == 0 && epilogue_sm90::takes(p.epilogue, p.d.address, p.n, p.d_row);
    }
    DEVICE_MEMBER void prefetch_maps() const {
        prefetch_tensormap(p.a_map);
        prefetch_tensormap(p.b_map);
        if (in_boxes()) prefetch_tensormap(p.d_map);
    }
    DEVICE_MEMBER void prefetch_weights(int step) const {
        weights(step, 0, [&](uint32_t, int c0, int c1) { prefetch_bulk_tensor_2d(p.b_map, c0, c1); });
    }
    DEVICE_MEMBER void copy(int step, uint32_t a, uint32_t b, uint32_t full) const {
        const int row = int(rows(0).first);
        for (int pair = 0; pair < Loop::PAIRS; ++pair)
            cp_async_bulk_tensor_2d(a + pair * Loop::A_BYTES, p.a_map, full, depth(step), row + pair * mainloop::ROWS);
        weights(step, b, [&](uint32_t to, int c0, int c1) { cp_async_bulk_tensor_2d(to, p.b_map, full, c0, c1); });
    }
    DEVICE_MEMBER void store(const typename Loop::Warps::Accumulators& acc, int pair, float* sums, int turn) const {
        typedef typename Loop::Warps Warps;
        const epilogue::Rows of = rows(pair);
        if (of.count == 0) return;  // an image of an odd number of slabs
        if (in_boxes()) {
            unsigned char* results = Loop::results(sums, turn);
            const int image = int(of.first) / of_image(), row = int(of.first) % of_image();
            epilogue_sm90::finish<T, Warps>(p.epilogue, acc, of, column0, p.n, p.d_row, results,
                                            [&](int column, uint32_t from) {
                                                cp_async_bulk_tensor_store_3d(p.d_map, from, column, row, image);
                                            });
            if (p.epilogue.stats.address != 0)
                epilogue_sm90::take_statistics<T, Warps>(p.epilogue, 0, of.count, of.tile, column0, p.n, results);
            return;
        }
        epilogue::to_rows<Warps>(acc, sums);
        if (p.sums.address != 0) {
            const int columns = (p.n + Loop::N - 1) / Loop::N, splits = (p.k + p.k_split - 1) / p.k_split;
            uint32_t* arrived = p.arrived.as<uint32_t>() + (tile * Loop::PAIRS + pair) * columns + column0 / Loop::N;
            if (!split::is_whole<Warps>(of, column0, p.n, p.sums.as<float>(), int64_t(p.m) * p.n, part, splits, arrived,
                                        sums))
                return;
        }
        finish(of, sums);
    }
    // Rows whose sums are whole.
    DEVICE_MEMBER void finish(const epilogue::Rows& of, float* sums) const {
        if (of.count == 0) return;
        epilogue::finish_rows<T, typename Loop::Warps>(p.epilogue, of, column0, p.n, p.d.as<T>(),
                                                       p.epilogue.residual.as<T>(), p.d_row, sums);
    }
    // A block's share of a cluster's tile.
    DEVICE_MEMBER void finish_share(int rank, float* sums) const {
        const int slabs = blocks_of(mainloop::ROWS), number = tile % slabs * BLOCKS + rank;
        finish(rows_of(tile / slabs, number, cluster::rows_of<BLOCKS>()), sums);
    }
};

template <typename T, int PAIRS, int N, int STAGES, bool B_BY_ROWS, int BLOCKS = 1>
__device__ void run(const GemmSm90Params& p) {
    typedef mainloop::Loop<PAIRS, N, STAGES, B_BY_ROWS> Loop;
    typedef typename Loop::Smem Smem;
    typedef Work<T, Loop, BLOCKS> Work;
    DYNAMIC_SHARED(Smem, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.k % 8 == 0 && p.k_split % mainloop::DEPTH == 0);
    const int columns = (p.n + N - 1) / N, splits = p.sums.address != 0 ? (p.k + p.k_split - 1) / p.k_split : 1;
    const int of_image = p.epilogue.stats.address != 0 ? p.epilogue.stat_rows : p.m;
    const int tiles = p.m / of_image * ((of_image + PAIRS * mainloop::ROWS - 1) / (PAIRS * mainloop::ROWS));
    const int items = columns * tiles;
    const auto work = [&](int item, int part) {
        const int tile = item / columns, column0 = item % columns * N;
        if (BLOCKS > 1) {
            const mainloop::Share share = mainloop::share((p.k + mainloop::DEPTH - 1) / mainloop::DEPTH, part, BLOCKS);
            return Work{p, tile, column0, part, share.first * mainloop::DEPTH, share.steps};
        }
        const int k0 = part * p.k_split, depth = splits > 1 && p.k - k0 > p.k_split ? p.k_split : p.k - k0;
        return Work{p, tile, column0, part, k0, (depth + mainloop::DEPTH - 1) / mainloop::DEPTH};
    };
    if constexpr (BLOCKS > 1)
        cluster::run<T, Loop, BLOCKS>(smem, work);
    else
        Loop::template run<T>(smem, items * splits, [&](int item) { return work(item % items, item / items); });
}

}  // namespace gemm_sm90
