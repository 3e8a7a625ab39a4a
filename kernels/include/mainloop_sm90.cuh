// mainloop_sm90.cuh - the main loop of a product on the matrix units of sm_90a: a warp that brings slabs, two
// warpgroups that multiply them. Where a slab comes from is the caller's business.
//
//     acc[m, n] = sum_k a[m, k] b[k, n]      a block makes PAIRS x 128 x N at a time, in steps of 64 of k
//
// A block stays on its multiprocessor and takes item after item (a tile, or a tile's share of k) in a fixed order:
// item = block, block + blocks, ... One elected thread of the last warpgroup fills a ring of STAGES stages by bulk
// copies of tensors; it goes on with the next item while the other two warpgroups, 64 rows of every 128 each, are
// still storing the last one: what the epilogue stages is not part of the ring. It has room for one slab's sums in f32,
// or for two slabs' results: while the copies of one still read, the next one's are put beside it (epilogue_sm90.cuh).
//
//     full[stage]   one arrival, which announces the bytes, and those bytes: the slabs may be read
//     empty[stage]  an arrival of each of the eight warps, after its products from there are done
//
// Phases count the rounds of the ring: round r of a stage is complete when phase r of `full` has ended, and may begin
// when phase r - 1 of `empty` has. Products of one step are in flight while the next one's are issued.
//
// Before a block waits for the launch in front it brings the maps and the first weights of b into the caches, as many
// steps of them as the ring has stages: more would push out what that launch is still writing for this one. b is a
// weight, which no launch writes; the values that count are in any case those that the copies bring after the wait.
//
// Slabs of a are [128, 64] along k, swizzled by 128 bytes; of b [N, 64] likewise, or, where b comes by rows, columns
// of SPAN of n: each [64 of k, SPAN], swizzled by its row (64 bytes where N is no multiple of 64). One wgmma takes 16
// of k: sums grow as in tile.cuh and do not depend on PAIRS, N or STAGES.
//
// Registers: 65536 by 384 threads are 168 for each at the start. The producers give theirs back but 40, so that a
// consumer has 232: 64 PAIRS N / 128 are sums. One block fits a multiprocessor, which its ring fills as well: shared
// memory up to 227 KiB. Two blocks of half the ring would hide an epilogue too, but leave 84 registers a consumer.
#pragma once
#include "epilogue_sm90.cuh"
#include "split.cuh"

namespace mainloop {

constexpr int CONSUMERS = 256, PRODUCER = CONSUMERS, THREADS = CONSUMERS + 128;
constexpr int ROWS = 128;   // of a slab of a: 64 of each consumer warpgroup
constexpr int DEPTH = 64;   // of k in a step: 128 bytes
constexpr int BARRIER = 1;  // of the consumers

// A share of a sum's steps.
struct Share {
    int first, steps;
};
DEVICE Share share(int steps, int split, int splits) {
    const int first = int(int64_t(steps) * split / splits);
    return {first, int(int64_t(steps) * (split + 1) / splits) - first};
}

// The consumers as epilogue.cuh sees them: eight warps with 16 rows each.
template <int N_>
struct Consumers {
    static constexpr int M = ROWS, N = N_, THREADS = CONSUMERS, FRAGMENTS_M = 1, FRAGMENTS_N = N / 8;

    struct Accumulators {
        float of[1][FRAGMENTS_N][4];
    };
    static DEVICE_MEMBER int lane() { return int(threadIdx.x) % 32; }
    static DEVICE_MEMBER int first_row() { return int(threadIdx.x) / 32 * 16; }
    static DEVICE_MEMBER int first_column() { return 0; }
    static DEVICE_MEMBER void sync() { bar_sync(BARRIER, CONSUMERS); }
};

template <int PAIRS_, int N_, int STAGES_, bool B_BY_ROWS_>
struct Loop {
    static constexpr int PAIRS = PAIRS_, N = N_, STAGES = STAGES_;
    static constexpr bool B_BY_ROWS = B_BY_ROWS_;
    typedef Consumers<N> Warps;
    static constexpr int SPAN = N % 64 == 0 ? 64 : 32;  // of n in a row of b, where it comes by rows
    static constexpr int A_BYTES = ROWS * DEPTH * 2, B_BYTES = N * DEPTH * 2, SPAN_BYTES = SPAN * DEPTH * 2;
    static constexpr int STAGE_BYTES = PAIRS * A_BYTES + B_BYTES;
    static_assert(PAIRS <= 2 && N % 32 == 0 && STAGES >= 3, "whole columns of b, and a stage ahead of those in flight");

    struct Smem {
        alignas(1024) unsigned char ring[STAGES][STAGE_BYTES];  // slabs of a, then b
        alignas(1024) float sums[ROWS * N];                      // for the epilogue
        uint64_t full[STAGES], empty[STAGES];
    };

    // Where results of a slab are put: of the two places, in turn.
    static DEVICE_MEMBER unsigned char* results(float* sums, int turn) {
        static_assert(2 * epilogue_sm90::bytes<Warps>() <= sizeof(Smem::sums), "two slabs' results");
        return reinterpret_cast<unsigned char*>(sums) + turn * epilogue_sm90::bytes<Warps>();
    }

    // Once, before anything else, by all threads: up to the end of the launch in front. `first` is what the block does
    // first: its `prefetch_maps()` and `prefetch_weights(step)` are called by one thread.
    template <typename Work>
    static DEVICE_MEMBER void start(Smem& smem, const Work& first) {
        if (threadIdx.x == PRODUCER) {
            first.prefetch_maps();
            for (int step = 0; step < STAGES && step < first.steps; ++step) first.prefetch_weights(step);
        }
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; ++i) {
                mbarrier_init(cvta_to_shared(&smem.full[i]), 1);
                mbarrier_init(cvta_to_shared(&smem.empty[i]), CONSUMERS / 32);
            }
            fence_mbarrier_init();
        }
        follow_launch_in_front();
        sync_block();
    }

    // Where a warp of either kind is in the ring.
    struct Place {
        int stage;
        uint32_t round;

        DEVICE_MEMBER void advance() {
            if (++stage < STAGES) return;
            stage = 0;
            ++round;
        }
    };

    // Fills stages for `steps` steps; `copy(step, a, b, full)` starts the copies of a step's slabs to these addresses
    // of shared memory: all bytes of a stage, counted by `full`. By one thread.
    template <typename Copy>
    static DEVICE_MEMBER void produce(Smem& smem, Place& at, int steps, const Copy& copy) {
#pragma unroll 1
        for (int step = 0; step < steps; ++step, at.advance()) {
            const uint32_t full = cvta_to_shared(&smem.full[at.stage]), a = cvta_to_shared(smem.ring[at.stage]);
            // Of the first round nobody waits: the phase before the first counts as ended.
            mbarrier_wait_parity(cvta_to_shared(&smem.empty[at.stage]), (at.round + 1) & 1);
            mbarrier_arrive_expect_tx(full, STAGE_BYTES);
            copy(step, a, a + PAIRS * A_BYTES, full);
        }
    }

    // The columns of b of a step, where b comes by rows: `copy(to, column)` brings SPAN of them.
    template <typename Copy>
    static DEVICE_MEMBER void each_span(uint32_t b, const Copy& copy) {
        for (int i = 0; i < N / SPAN; ++i) copy(b + i * SPAN_BYTES, i * SPAN);
    }

    // This warp has read all of a stage.
    static DEVICE_MEMBER void release(Smem& smem, int stage) {
        if (Warps::lane() == 0) mbarrier_arrive(cvta_to_shared(&smem.empty[stage]));
    }

    // d[pair] = the sums of `steps` steps, at least one. By all consumers.
    template <typename T>
    static DEVICE_MEMBER void consume(Smem& smem, Place& at, int steps, float (&d)[PAIRS][N / 2]) {
        constexpr Major B_MAJOR = B_BY_ROWS ? MN_MAJOR : K_MAJOR;
        const uint32_t rows = threadIdx.x / 128 * 64 * DEPTH * 2;  // where those of this warpgroup begin
        int last = 0;
#pragma unroll 1
        for (int step = 0; step < steps; ++step, at.advance()) {
            mbarrier_wait_parity(cvta_to_shared(&smem.full[at.stage]), at.round & 1);
            const uint32_t a = cvta_to_shared(smem.ring[at.stage]) + rows, b = a - rows + PAIRS * A_BYTES;
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < DEPTH / 16; ++k) {
                const uint64_t of_b = B_BY_ROWS ? wgmma_descriptor(b + k * 16 * SPAN * 2, SPAN_BYTES, SPAN * 16,
                                                                   SPAN == 64 ? SWIZZLE_128 : SWIZZLE_64)
                                                : wgmma_descriptor(b + k * 32, 16, 1024, SWIZZLE_128);
#pragma unroll
                for (int pair = 0; pair < PAIRS; ++pair)
                    wgmma_m64k16<K_MAJOR, B_MAJOR>(
                        d[pair], wgmma_descriptor(a + pair * A_BYTES + k * 32, 16, 1024, SWIZZLE_128), of_b,
                        step > 0 || k > 0, T{});
            }
            wgmma_commit_group();
            // The step before is done: its stage is free.
            wgmma_wait_group<1>();
            if (step > 0) release(smem, last);
            last = at.stage;
        }
        wgmma_wait_group<0>();
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) keep_registers(d[pair]);
        release(smem, last);
    }

    // The sums of one pair's rows; their order is the epilogue's.
    static DEVICE_MEMBER void to_fragments(typename Warps::Accumulators& acc, const float (&d)[N / 2]) {
#pragma unroll
        for (int i = 0; i < N / 2; ++i) acc.of[0][i / 4][i % 4] = d[i];
    }

    // All items of a block, at least one. `items(item)` says what is to be done: `steps`, how many steps; `copy`, as for
    // `produce`; what `start` asks of it; `store(acc, pair, sums, turn)`, what becomes of the sums of a pair's rows, for
    // which the shared memory at `sums` is free, or of its places for results the one whose turn it is, while copies that
    // thread 0 has started still read the other one. By all threads.
    template <typename T, typename Items>
    static DEVICE_MEMBER void run(Smem& smem, int count, const Items& items) {
        start(smem, items(blockIdx.x));
        Place at = {0, 0};
        if (threadIdx.x >= PRODUCER) {
            setmaxnreg_dec<40>();
            if (threadIdx.x >= PRODUCER + 32 || !elect_one()) return;
            for (int item = blockIdx.x; item < count; item += gridDim.x) {
                const auto work = items(item);
                produce(smem, at, work.steps,
                        [&](int step, uint32_t a, uint32_t b, uint32_t full) { work.copy(step, a, b, full); });
            }
            return;
        }
        setmaxnreg_inc<232>();
        int turn = 0;
        for (int item = blockIdx.x; item < count; item += gridDim.x) {
            const auto work = items(item);
            float d[PAIRS][N / 2];
            consume<T>(smem, at, work.steps, d);
#pragma unroll 1
            for (int pair = 0; pair < PAIRS; ++pair, turn ^= 1) {
                typename Warps::Accumulators acc;
                to_fragments(acc, d[0]);
                if (threadIdx.x == 0) cp_async_bulk_wait_group_read<1>();
                Warps::sync();  // what was staged last has been read, by copies what was before
                work.store(acc, pair, smem.sums, turn);
                if (threadIdx.x == 0) cp_async_bulk_commit_group();
                // The next pair's take their place: an epilogue stands there once, and so do the sums.
#pragma unroll
                for (int i = 0; i < N / 2; ++i) d[0][i] = d[PAIRS - 1][i];
            }
        }
        // Shared memory ends with the block.
        if (threadIdx.x == 0) cp_async_bulk_wait_group<0>();
    }
};

}  // namespace mainloop
