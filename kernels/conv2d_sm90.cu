// conv2d_sm90 - conv2d with wgmma and bulk copies: conv2d_tile.cu for sm_90a, stride 1.
//
//     y[m, o] = epilogue(sum_{r, s, c} x[pixel of m under tap (r, s), c] f[o, r, s, c])
//
// One block makes tiles of PAIRS slabs of 128 pixels (conv_sm90.cuh) by N channels, one after the other, through
// mainloop_sm90.cuh. A step brings 64 channels of one tap: each slab's pixels by one copy of a box of the image, moved
// by the tap, and those channels of N filters by another. Two tensors side by side are two maps.
//
// Sub-pixel form (kinds = 2): as in conv2d_tile.cu, for an exactly twofold image; each of the four kinds of output pixel
// is a class of slabs with a filter of 2 x 2 taps on the small image. Without such filters (up = 1) each class walks
// over all taps, and every tap over the pixels of the small image that it sees.
//
// Items are counted channels first, so that blocks which run together read the same pixels; then tiles, kinds, splits.
//
// Departures from the formula:
//   1. With splits > 1 an item sums a share of the steps; the last one of a tile adds the shares (split.cuh). Or the
//      BLOCKS of a cluster share a tile's steps (cluster_sm90.cuh).
//   2. The order of a sum depends on the image's shape and `splits` alone, not on PAIRS, N, boxes or the batch.
//   3. In the sub-pixel form the sums of taps are rounded to storage, once each; nothing else differs.
//
// Needs c, c2 in whole vectors of 8, c in whole steps where there is a c2, and addresses of 16 bytes; o may be any.
// Written by the rules of the ISA and run on the SIMT layer; its speed is not measured.
//
// Reference: src/cpu/conv.rs. Class: contracted. Bound by: tensor cores; DRAM for small images with wide filters.
#include "conv_sm90.cuh"
#include "params_sm90.cuh"

namespace conv2d_sm90 {

constexpr int THREADS = mainloop::THREADS;

template <typename T, int PAIRS, int N, int STAGES, int BLOCKS = 1>
__device__ constexpr int shared_bytes() {
    return sizeof(typename mainloop::Loop<PAIRS, N, STAGES, false>::Smem);
}

// A tile of one kind, or its share of the steps.
template <typename T, typename Loop, int BLOCKS>
struct Work {
    const Conv2dSm90Params& p;
    conv_sm90::Slabs slabs;
    int tile, column0, kind, part;
    int first;  // step
    int steps;

    DEVICE_MEMBER conv_sm90::Slab slab(int pair) const {
        const int line = kind / p.kinds, column = kind % p.kinds;
        return conv_sm90::slab(slabs, tile * Loop::PAIRS + pair, p.kinds, line, column, p.height, p.width);
    }
    // What a step brings: channels of one of the sources under a tap.
    struct Taken {
        int tap, channel;
        bool second;
    };
    DEVICE_MEMBER Taken taken(int step) const {
        const int of_x = conv_sm90::chunks(p.c), of_tap = of_x + conv_sm90::chunks(p.c2);
        const int chunk = (first + step) % of_tap;
        const bool second = chunk >= of_x;
        return {(first + step) / of_tap, (second ? chunk - of_x : chunk) * mainloop::DEPTH, second};
    }
    // Calls `take(c0, c1, c2, c3)` for the box of filters of that.
    template <typename Take>
    DEVICE_MEMBER void weights(const Taken& of, const Take& take) const {
        take(of.second ? p.c + of.channel : of.channel, of.tap, column0, p.up ? 0 : kind);
    }
    DEVICE_MEMBER bool in_boxes() const {
        return BLOCKS == 1 && p.sums.address == 0 && epilogue_sm90::takes(p.epilogue, p.y.address, p.o, p.o);
    }
    DEVICE_MEMBER void prefetch_maps() const {
        prefetch_tensormap(p.x_map);
        if (p.c2 > 0) prefetch_tensormap(p.x2_map);
        prefetch_tensormap(p.filter_map);
        if (in_boxes()) prefetch_tensormap(p.y_map[kind]);
    }
    DEVICE_MEMBER void prefetch_weights(int step) const {
        weights(taken(step),
                [&](int c0, int c1, int c2, int c3) { prefetch_bulk_tensor_4d(p.filter_map, c0, c1, c2, c3); });
    }
    DEVICE_MEMBER void copy(int step, uint32_t a, uint32_t b, uint32_t full) const {
        const Taken from = taken(step);
        const int i = from.tap / p.s, j = from.tap % p.s, line = kind / p.kinds, column = kind % p.kinds;
        const int down = p.up ? conv_sm90::seen(line, i, p.top) : i - (p.kinds == 1 ? p.top : 1 - line);
        const int across = p.up ? conv_sm90::seen(column, j, p.left) : j - (p.kinds == 1 ? p.left : 1 - column);
        for (int pair = 0; pair < Loop::PAIRS; ++pair) {
            const conv_sm90::Slab of = slab(pair);
            cp_async_bulk_tensor_4d(a + pair * Loop::A_BYTES, from.second ? p.x2_map : p.x_map, full, from.channel,
                                    of.column + across, of.line + down, of.image);
        }
        weights(from, [&](int c0, int c1, int c2, int c3) {
            cp_async_bulk_tensor_4d(b, p.filter_map, full, c0, c1, c2, c3);
        });
    }
    DEVICE_MEMBER void store(const typename Loop::Warps::Accumulators& acc, int pair, float* sums, int turn) const {
        typedef typename Loop::Warps Warps;
        const conv_sm90::Slab of = slab(pair);
        if (of.count == 0) return;  // an odd number of slabs
        if (in_boxes())
            return conv_sm90::finish_boxes<T, Warps>(p.epilogue, acc, of, column0, p.o, Loop::results(sums, turn),
                                                     p.y_map[kind]);
        epilogue::to_rows<Warps>(acc, sums);
        if (p.sums.address != 0) {
            const int columns = (p.o + Loop::N - 1) / Loop::N;
            const int tiles = (slabs.count() + Loop::PAIRS - 1) / Loop::PAIRS;
            const int counter = ((kind * tiles + tile) * Loop::PAIRS + pair) * columns + column0 / Loop::N;
            if (!split::is_whole<Warps>(of, column0, p.o, p.sums.as<float>(), int64_t(p.n) * p.height * p.width * p.o, part,
                                        p.splits, p.arrived.as<uint32_t>() + counter, sums))
                return;
        }
        conv_sm90::finish<T, Warps>(p.epilogue, of, column0, p.o, p.y.as<T>(), sums);
    }
    // A block's share of a cluster's tile.
    DEVICE_MEMBER void finish_share(int rank, float* sums) const {
        const cluster::Part<conv_sm90::Slab> of = conv_sm90::part<BLOCKS>(slab(0), rank);
        if (of.count > 0)
            epilogue::finish_rows<T, typename Loop::Warps>(p.epilogue, of, column0, p.o, p.y.as<T>(),
                                                           p.epilogue.residual.as<T>(), p.o, sums);
    }
};

template <typename T, int PAIRS, int N, int STAGES, int BLOCKS = 1>
__device__ void run(const Conv2dSm90Params& p) {
    typedef mainloop::Loop<PAIRS, N, STAGES, false> Loop;
    typedef typename Loop::Smem Smem;
    DYNAMIC_SHARED(Smem, smem);
    KERNEL_ASSERT(blockDim.x == THREADS && p.c % 8 == 0 && p.c2 % 8 == 0 && (p.c2 == 0 || p.c % mainloop::DEPTH == 0));
    const conv_sm90::Slabs slabs = {p.n, p.height / p.kinds, p.width / p.kinds, p.x_bits, p.y_bits};
    const int columns = (p.o + N - 1) / N, tiles = (slabs.count() + PAIRS - 1) / PAIRS, kinds = p.kinds * p.kinds;
    const int steps = p.r * p.s * (conv_sm90::chunks(p.c) + conv_sm90::chunks(p.c2));
    const int items = columns * tiles * kinds;
    const auto work = [&](int item, int part) {
        const mainloop::Share share = mainloop::share(steps, part, p.splits);
        return Work<T, Loop, BLOCKS>{p,     slabs,       item / columns % tiles, item % columns * N, item / columns / tiles,
                             part,  share.first, share.steps};
    };
    if constexpr (BLOCKS > 1)
        cluster::run<T, Loop, BLOCKS>(smem, work);
    else
        Loop::template run<T>(smem, items * p.splits, [&](int item) { return work(item % items, item / items); });
}

}  // namespace conv2d_sm90
