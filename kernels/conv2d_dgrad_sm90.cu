// conv2d_dgrad_sm90 - conv2d_dgrad with wgmma and bulk copies: conv2d_dgrad_tile.cu for sm_90a, stride 1.
//
//     dx[m, c] = epilogue(sum_{r, s, o} dy[pixel that tap (r, s) brought pixel m to, o] f[o, r, s, first + c])
//
// One block makes tiles of PAIRS slabs of 128 pixels of dx (conv_sm90.cuh) by N channels, one after the other, through
// mainloop_sm90.cuh. A step brings 64 channels of dy under one tap, and as many filters: of each N channels of that
// tap. So the right matrix lies by rows of the sum, in the forward filter itself, and the matrix units take it as it
// lies: no packing of its own. A tap moves the box the other way than forward.
//
// Sub-pixel form (kinds = 2): dy's pixels of each parity are an image of their own, with its own map, of which dx
// gathers 2 x 2 taps: four walks behind each other. Without such filters (up = 1) each walk is over all taps.
//
// Departures from the formula:
//   1. With splits > 1 an item sums a share of the steps; the last one of a tile adds the shares (split.cuh). Or the
//      BLOCKS of a cluster share a tile's steps (cluster_sm90.cuh).
//   2. The order of a sum depends on the image's shape and `splits` alone, not on PAIRS, N, boxes or the batch.
//
// Needs o, channels, first and c in whole vectors of 8 and addresses of 16 bytes. Written by the rules of the ISA and
// run on the SIMT layer; its speed is not measured.
//
// Reference: src/cpu/conv.rs. Class: contracted. Bound by: tensor cores; DRAM for small images with wide filters.
#include "conv_sm90.cuh"
#include "params_sm90.cuh"

namespace conv2d_dgrad_sm90 {

constexpr int THREADS = mainloop::THREADS;

template <typename T, int PAIRS, int N, int STAGES, int BLOCKS = 1>
__device__ constexpr int shared_bytes() {
    return sizeof(typename mainloop::Loop<PAIRS, N, STAGES, true>::Smem);
}

// A tile, or its share of the steps.
template <typename T, typename Loop, int BLOCKS>
struct Work {
    const Conv2dBwdSm90Params& p;
    conv_sm90::Slabs slabs;
    int tile, column0, part;
    int first;  // step
    int steps;

    DEVICE_MEMBER conv_sm90::Slab slab(int pair) const {
        return conv_sm90::slab(slabs, tile * Loop::PAIRS + pair, 1, 0, 0, p.h, p.w);
    }
    // What a step brings: channels of dy's pixels of a kind under a tap.
    struct Taken {
        int kind, tap, o;
    };
    DEVICE_MEMBER Taken taken(int step) const {
        const int chunks = conv_sm90::chunks(p.o), taps = p.r * p.s, walked = (first + step) / chunks;
        return {walked / taps, walked % taps, (first + step) % chunks * mainloop::DEPTH};
    }
    // Calls `take(to, c0, c1, c2, c3)` for every box of filters of that, whose slab begins at `b`.
    template <typename Take>
    DEVICE_MEMBER void weights(const Taken& of, uint32_t b, const Take& take) const {
        Loop::each_span(b, [&](uint32_t to, int column) {
            take(to, p.first + column0 + column, of.tap, of.o, p.up ? 0 : of.kind);
        });
    }
    DEVICE_MEMBER bool in_boxes() const {
        return BLOCKS == 1 && p.sums.address == 0 && epilogue_sm90::takes(p.epilogue, p.dx.address, p.c, p.c);
    }
    DEVICE_MEMBER void prefetch_maps() const {
        for (int kind = 0; kind < p.kinds * p.kinds; ++kind) prefetch_tensormap(p.dy_map[kind]);
        prefetch_tensormap(p.filter_map);
        if (in_boxes()) prefetch_tensormap(p.dx_map);
    }
    DEVICE_MEMBER void prefetch_weights(int step) const {
        weights(taken(step), 0, [&](uint32_t, int c0, int c1, int c2, int c3) {
            prefetch_bulk_tensor_4d(p.filter_map, c0, c1, c2, c3);
        });
    }
    DEVICE_MEMBER void copy(int step, uint32_t a, uint32_t b, uint32_t full) const {
        const Taken from = taken(step);
        const int i = from.tap / p.s, j = from.tap % p.s, line = from.kind / p.kinds, column = from.kind % p.kinds;
        const int up = p.up ? -conv_sm90::seen(line, i, p.top) : (p.kinds == 1 ? p.top : 1 - line) - i;
        const int back = p.up ? -conv_sm90::seen(column, j, p.left) : (p.kinds == 1 ? p.left : 1 - column) - j;
        for (int pair = 0; pair < Loop::PAIRS; ++pair) {
            const conv_sm90::Slab of = slab(pair);
            cp_async_bulk_tensor_4d(a + pair * Loop::A_BYTES, p.dy_map[from.kind], full, from.o, of.column + back,
                                    of.line + up, of.image);
        }
        weights(from, b, [&](uint32_t to, int c0, int c1, int c2, int c3) {
            cp_async_bulk_tensor_4d(to, p.filter_map, full, c0, c1, c2, c3);
        });
    }
    DEVICE_MEMBER void store(const typename Loop::Warps::Accumulators& acc, int pair, float* sums, int turn) const {
        typedef typename Loop::Warps Warps;
        const conv_sm90::Slab of = slab(pair);
        if (of.count == 0) return;  // an odd number of slabs
        if (in_boxes())
            return conv_sm90::finish_boxes<T, Warps>(p.epilogue, acc, of, column0, p.c, Loop::results(sums, turn), p.dx_map);
        epilogue::to_rows<Warps>(acc, sums);
        if (p.sums.address != 0) {
            const int columns = (p.c + Loop::N - 1) / Loop::N;
            const int counter = (tile * Loop::PAIRS + pair) * columns + column0 / Loop::N;
            if (!split::is_whole<Warps>(of, column0, p.c, p.sums.as<float>(), int64_t(p.n) * p.h * p.w * p.c, part,
                                        p.splits, p.arrived.as<uint32_t>() + counter, sums))
                return;
        }
        finish(of, sums);
    }
    // Rows whose sums are whole.
    template <typename Places>
    DEVICE_MEMBER void finish(const Places& of, float* sums) const {
        epilogue::finish_rows<T, typename Loop::Warps>(p.epilogue, of, column0, p.c, p.dx.as<T>(),
                                                       p.epilogue.residual.as<T>(), p.c, sums);
    }
    // A block's share of a cluster's tile.
    DEVICE_MEMBER void finish_share(int rank, float* sums) const {
        const cluster::Part<conv_sm90::Slab> of = conv_sm90::part<BLOCKS>(slab(0), rank);
        if (of.count > 0) finish(of, sums);
    }
};

template <typename T, int PAIRS, int N, int STAGES, int BLOCKS = 1>
__device__ void run(const Conv2dBwdSm90Params& p) {
    typedef mainloop::Loop<PAIRS, N, STAGES, true> Loop;
    typedef typename Loop::Smem Smem;
    DYNAMIC_SHARED(Smem, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.o % 8 == 0 && p.c % 8 == 0);
    const conv_sm90::Slabs slabs = {p.n, p.h, p.w, p.x_bits, p.y_bits};
    const int columns = (p.c + N - 1) / N, tiles = (slabs.count() + PAIRS - 1) / PAIRS;
    const int steps = p.kinds * p.kinds * p.r * p.s * conv_sm90::chunks(p.o);
    const int items = columns * tiles;
    const auto work = [&](int item, int part) {
        const mainloop::Share share = mainloop::share(steps, part, p.splits);
        return Work<T, Loop, BLOCKS>{p, slabs, item / columns, item % columns * N, part, share.first, share.steps};
    };
    if constexpr (BLOCKS > 1)
        cluster::run<T, Loop, BLOCKS>(smem, work);
    else
        Loop::template run<T>(smem, items * p.splits, [&](int item) { return work(item % items, item / items); });
}

}  // namespace conv2d_dgrad_sm90
