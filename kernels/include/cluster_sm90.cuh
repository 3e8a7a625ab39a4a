// cluster_sm90.cuh - a tile by all blocks of a cluster: each sums a share of the depth, and finishes a share of the
// rows. For long sums where there are few tiles.
//
//     1. every block       its sums over its steps, in rows of its own shared memory
//     2. all wait          barrier of the cluster
//     3. block `rank`      its rows of everybody's sums, added from the first rank's to the last's: in registers
//     4. all wait          nobody reads others' rows any more: they may be overwritten, and the blocks may end
//     5. block `rank`      the epilogue of its rows
//
// Where the parts are equal, sums are those of as many parts that split.cuh adds, bit for bit, without a way through
// memory.
// The producers leave when they have copied everything; the cluster's barrier does not wait for who has left.
#pragma once
#include "mainloop_sm90.cuh"
#include "ptx_cluster_sm90.cuh"

namespace cluster {

// Rows that a block of BLOCKS finishes.
template <int BLOCKS>
__device__ constexpr int rows_of() {
    return mainloop::ROWS / BLOCKS;
}

// A share of a slab: its rows from `first` on.
template <typename Places>
struct Part {
    Places all;
    int first, count;
    int64_t tile;  // counted over all images; rows of the statistics

    DEVICE_MEMBER int64_t at(int line) const { return all.at(first + line); }
};

// `items(tile, rank)` says what is to be done, as for Loop::run; but in the place of `store` stands
// `finish_share(rank, sums)`, what becomes of this block's rows, which are the first in `sums`. A cluster a
// tile. By all threads.
template <typename T, typename Loop, int BLOCKS, typename Items>
DEVICE void run(typename Loop::Smem& smem, const Items& items) {
    typedef typename Loop::Warps Warps;
    typedef epilogue::Stage<Warps> Stage;
    constexpr int ROWS = rows_of<BLOCKS>(), QUADS = ROWS * Loop::N / 4;
    constexpr int OWN = (QUADS + mainloop::CONSUMERS - 1) / mainloop::CONSUMERS;
    static_assert(Loop::PAIRS == 1 && ROWS * BLOCKS == mainloop::ROWS && ROWS % 4 == 0, "whole shares of one slab");
    const int rank = cluster_rank();
    const auto work = items(int(blockIdx.x) / BLOCKS, rank);
    Loop::start(smem, work);
    typename Loop::Place place = {0, 0};
    if (threadIdx.x >= mainloop::PRODUCER) {
        setmaxnreg_dec<40>();
        if (threadIdx.x >= mainloop::PRODUCER + 32 || !elect_one()) return;
        Loop::produce(smem, place, work.steps,
                      [&](int step, uint32_t a, uint32_t b, uint32_t full) { work.copy(step, a, b, full); });
        return;
    }
    setmaxnreg_inc<232>();
    {
        float d[1][Loop::N / 2];
        Loop::template consume<T>(smem, place, work.steps, d);
        typename Warps::Accumulators acc;
        Loop::to_fragments(acc, d[0]);
        epilogue::to_rows<Warps>(acc, smem.sums);
    }
    cluster_arrive();
    cluster_wait();
    float own[OWN][4];  // quad threadIdx.x + i CONSUMERS of this block's rows
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int quad = int(threadIdx.x) + i * mainloop::CONSUMERS, row = quad / (Loop::N / 4);
        if (quad >= QUADS) continue;
        const float* from = Stage::at(smem.sums, rank * ROWS + row, quad % (Loop::N / 4) * 4);
        const uint32_t here = cvta_to_shared(from);
        ld_cluster(own[i], mapa(here, 0));
#pragma unroll
        for (int other = 1; other < BLOCKS; ++other) {
            float more[4];
            ld_cluster(more, mapa(here, other));
            for (int j = 0; j < 4; ++j) own[i][j] += more[j];
        }
    }
    cluster_arrive();
    cluster_wait();
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int quad = int(threadIdx.x) + i * mainloop::CONSUMERS;
        if (quad >= QUADS) continue;
        const Floats4 sum = {{own[i][0], own[i][1], own[i][2], own[i][3]}};
        *reinterpret_cast<Floats4*>(Stage::at(smem.sums, quad / (Loop::N / 4), quad % (Loop::N / 4) * 4)) = sum;
    }
    Warps::sync();
    work.finish_share(rank, smem.sums);
}

}  // namespace cluster
