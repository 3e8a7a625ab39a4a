// probes_sm90 - bulk copies, mbarriers and products of a warpgroup, right and wrong on purpose. None of them ships.
#include "params.cuh"
#include "ptx_sm90.cuh"

namespace probes_sm90 {

struct Params {
    TensorMap a, b;      // boxes of [64, 64] f16, swizzled by 128 bytes
    DevicePtr out;        // f32 [64, 64], or the bytes of a box
    int32_t at[4];        // of a box
    int32_t bytes, rank;  // likewise
    int64_t steps;        // K / 64; or bytes between two lanes
    DevicePtr pad[3];
};
static_assert(sizeof(Params) == 320, "as in tests/kernels/hopper.rs");

enum Fault {
    NONE,
    NO_EMPTY_WAIT,
    NO_FULL_WAIT,
    RELEASED_BEFORE_READ,
    ONE_WARP_RELEASES,
    INIT_NOT_FENCED,
    INIT_NOT_SHARED,
    ONE_ARRIVAL_TOO_FEW,
    ONE_ARRIVAL_TOO_MANY,
    BYTES_NEVER_COME,
    NO_WGMMA_FENCE,
    REGISTERS_TOO_EARLY,
    OPERAND_TOO_EARLY,
    REWRITTEN,              // by ordinary stores, with all that it takes: right
    REWRITTEN_UNFENCED,
    REWRITTEN_FENCED_LATE,  // behind the barrier
    REWRITTEN_NO_BARRIER,
    PRODUCT_LEFT,
    COPY_LEFT,
    WARPS_DIFFER,
    BARRIER_OF_TOO_MANY,
    FOLLOWS_LATE,  // behind the first copies
    FOLLOWS_TWICE,
    CONSUMERS_FOLLOW,
};

constexpr int STAGES = 2, TILE = 64 * 64 * 2, CONSUMERS = 128;
struct Stage {
    unsigned char a[TILE], b[TILE];
};
struct Ring {
    Stage stage[STAGES];
    uint64_t full[STAGES], empty[STAGES];
};

template <Fault FAULT>
__device__ void produce(const Params& p, Ring& ring) {
    for (int step = 0; step < int(p.steps); ++step) {
        Stage& stage = ring.stage[step % STAGES];
        const uint32_t full = cvta_to_shared(&ring.full[step % STAGES]);
        if (FAULT != NO_EMPTY_WAIT && step >= STAGES)
            mbarrier_wait_parity(cvta_to_shared(&ring.empty[step % STAGES]), (step / STAGES - 1) % 2);
        mbarrier_arrive_expect_tx(full, 2 * TILE + (FAULT == BYTES_NEVER_COME ? 16 : 0));
        if (FAULT == ONE_ARRIVAL_TOO_MANY) mbarrier_arrive(full);
        cp_async_bulk_tensor_2d(cvta_to_shared(stage.a), p.a, full, step * 64, 0);
        cp_async_bulk_tensor_2d(cvta_to_shared(stage.b), p.b, full, step * 64, 0);
        if (FAULT == FOLLOWS_LATE && step == 0) follow_launch_in_front();
    }
    if (FAULT == COPY_LEFT) {  // one more for the second stage, which of five steps has had two
        const uint32_t full = cvta_to_shared(&ring.full[1]);
        mbarrier_wait_parity(cvta_to_shared(&ring.empty[1]), 1);
        mbarrier_arrive_expect_tx(full, TILE);
        cp_async_bulk_tensor_2d(cvta_to_shared(ring.stage[1].a), p.a, full, 0, 0);
    }
}

// A stage's B once more, by ordinary stores: the same bytes, unless the grid is larger than any.
template <Fault FAULT>
__device__ void rewrite(Stage& stage) {
    uint32_t* words = reinterpret_cast<uint32_t*>(stage.b);
    for (int i = threadIdx.x; i < TILE / 4; i += CONSUMERS) words[i] ^= gridDim.z >> 16;
    if (FAULT == REWRITTEN || FAULT == REWRITTEN_NO_BARRIER) fence_proxy_async();
    if (FAULT != REWRITTEN_NO_BARRIER) bar_sync(1, CONSUMERS);
    if (FAULT == REWRITTEN_FENCED_LATE) fence_proxy_async();
}

template <Fault FAULT>
__device__ void consume(const Params& p, Ring& ring) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float d[32];
    for (int i = 0; i < 32; ++i) d[i] = 0.f;
    uint32_t operand[4] = {0, 0, 0, 0};
    for (int step = 0; step < int(p.steps); ++step) {
        Stage& stage = ring.stage[step % STAGES];
        const uint32_t empty = cvta_to_shared(&ring.empty[step % STAGES]);
        if (FAULT != NO_FULL_WAIT)
            mbarrier_wait_parity(cvta_to_shared(&ring.full[step % STAGES]), step / STAGES % 2);
        if (FAULT >= REWRITTEN && FAULT <= REWRITTEN_NO_BARRIER) rewrite<FAULT>(stage);
        if (FAULT != NO_WGMMA_FENCE) wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int shift = FAULT == WARPS_DIFFER && warp == 2 ? 0 : k * 32;
            const uint64_t a = wgmma_descriptor(cvta_to_shared(stage.a) + shift, 16, 1024, SWIZZLE_128);
            const uint64_t b = wgmma_descriptor(cvta_to_shared(stage.b) + shift, 16, 1024, SWIZZLE_128);
            wgmma_m64k16<K_MAJOR, K_MAJOR>(d, a, b, true, f16{0});
            if (FAULT == OPERAND_TOO_EARLY) wgmma_m64k16<K_MAJOR>(d, operand, b, true, f16{0});
        }
        wgmma_commit_group();
        if (FAULT == REGISTERS_TOO_EARLY) d[0] += 1.f;
        if (FAULT == OPERAND_TOO_EARLY) operand[0] = uint32_t(step);
        if (FAULT == RELEASED_BEFORE_READ) mbarrier_arrive(empty);
        if (FAULT != PRODUCT_LEFT || step + 1 < int(p.steps)) wgmma_wait_group<0>();
        if (FAULT == ONE_WARP_RELEASES) {
            if (warp == 0) mbarrier_arrive(empty);
        } else if (FAULT != RELEASED_BEFORE_READ) {
            mbarrier_arrive(empty);
        }
    }
    keep_registers(d);
    if (FAULT == PRODUCT_LEFT) return;
    for (int i = 0; i < 32; ++i) {
        const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        p.out.as<float>()[row * 64 + column] = d[i];
    }
}

// out = A B^T through a ring of two stages: threads from 128 on are the producer's, the first 128 multiply.
template <Fault FAULT>
__device__ void ring(const Params& p) {
    DYNAMIC_SHARED(Ring, ring);
    if (threadIdx.x == CONSUMERS) {
        prefetch_tensormap(p.a);
        prefetch_bulk_tensor_2d(p.b, 0, 0);
    }
    if (threadIdx.x < CONSUMERS || (FAULT != FOLLOWS_LATE && FAULT != CONSUMERS_FOLLOW)) follow_launch_in_front();
    if (FAULT == FOLLOWS_TWICE && threadIdx.x == 5) follow_launch_in_front();
    if (threadIdx.x == 0) {
        const int releases = FAULT == ONE_WARP_RELEASES ? 32 : FAULT == ONE_ARRIVAL_TOO_FEW ? CONSUMERS + 1 : CONSUMERS;
        for (int i = 0; i < STAGES; ++i) {
            mbarrier_init(cvta_to_shared(&ring.full[i]), 1);
            mbarrier_init(cvta_to_shared(&ring.empty[i]), releases);
        }
        if (FAULT != INIT_NOT_FENCED) fence_mbarrier_init();
    }
    if (FAULT != INIT_NOT_SHARED) sync_block();
    if (threadIdx.x >= CONSUMERS) {
        setmaxnreg_dec<40>();
        const bool copies = threadIdx.x < CONSUMERS + 32 && elect_one();
        if (FAULT == FOLLOWS_LATE && !copies) follow_launch_in_front();
        if (copies) produce<FAULT>(p, ring);
        if (FAULT == BARRIER_OF_TOO_MANY) bar_sync(2, 256);
    } else {
        setmaxnreg_inc<232>();
        consume<FAULT>(p, ring);
        if (FAULT == BARRIER_OF_TOO_MANY && threadIdx.x < 96) bar_sync(2, 256);
    }
}

// One box at `at`, 16 bits at a time.
struct Box {
    uint16_t half[8192];
    uint64_t full;
};
__device__ void box(const Params& p) {
    DYNAMIC_SHARED(Box, box);
    const uint32_t full = cvta_to_shared(&box.full), to = cvta_to_shared(box.half);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(full, p.bytes);
        if (p.rank == 2) cp_async_bulk_tensor_2d(to, p.a, full, p.at[0], p.at[1]);
        if (p.rank == 3) cp_async_bulk_tensor_3d(to, p.a, full, p.at[0], p.at[1], p.at[2]);
        if (p.rank == 4) cp_async_bulk_tensor_4d(to, p.a, full, p.at[0], p.at[1], p.at[2], p.at[3]);
    }
    sync_block();
    mbarrier_wait_parity(full, 0);
    for (int i = threadIdx.x; i < p.bytes / 2; i += 64) p.out.as<uint16_t>()[i] = box.half[i];
}

// The numbers 1, 2, .. of a box, to the tensor at `at`.
enum StoreFault {
    STORED,
    STORED_UNFENCED,
    STORED_WITHOUT_BARRIER,
    STORE_LEFT,
    STORE_OVERWRITTEN,  // before it has been read
    STORE_READ_BACK,    // before it is there
};
template <StoreFault FAULT>
__device__ void stores_box(const Params& p) {
    DYNAMIC_SHARED(Box, box);
    for (int i = threadIdx.x; i < p.bytes / 2; i += 64) box.half[i] = uint16_t(i + 1);
    if (FAULT != STORED_UNFENCED) fence_proxy_async();
    if (FAULT != STORED_WITHOUT_BARRIER) sync_block();
    if (threadIdx.x == 0) {
        const uint32_t from = cvta_to_shared(box.half);
        if (p.rank == 3) cp_async_bulk_tensor_store_3d(p.a, from, p.at[0], p.at[1], p.at[2]);
        if (p.rank == 4) cp_async_bulk_tensor_store_4d(p.a, from, p.at[0], p.at[1], p.at[2], p.at[3]);
        cp_async_bulk_commit_group();
        if (FAULT == STORE_OVERWRITTEN)
            cp_async_bulk_wait_group_read<1>();
        else
            cp_async_bulk_wait_group_read<0>();
        box.half[0] = 0;
        if (FAULT == STORE_READ_BACK) box.half[1] = p.out.as<uint16_t>()[0];
        if (FAULT != STORE_LEFT) cp_async_bulk_wait_group<0>();
    }
}

// Two halves of the block hand numbers over through a barrier of which one half only arrives. rank: 0 right, 1 the
// other way round.
struct Row {
    float value[64];
};
__device__ void hands_over(const Params& p) {
    SHARED(Row, row);
    if (threadIdx.x >= 64) {
        row.value[threadIdx.x - 64] = float(threadIdx.x);
        if (p.rank == 0)
            bar_arrive(3, 128);
        else
            bar_sync(3, 128);
    } else {
        if (p.rank == 0)
            bar_sync(3, 128);
        else
            bar_arrive(3, 128);
        p.out.as<float>()[threadIdx.x] = row.value[threadIdx.x];
    }
}

// Stores and loads of 4, 8 and 16 bytes with `steps` bytes between two lanes.
struct Bytes {
    uint32_t word[8192];
};
template <int N>
__device__ void strides(const Params& p) {
    DYNAMIC_SHARED(Bytes, smem);
    const uint32_t at = cvta_to_shared(smem.word) + threadIdx.x * uint32_t(p.steps);
    uint32_t r[N];
    for (int i = 0; i < N; ++i) r[i] = threadIdx.x;
    st_shared(at, r);
    sync_block();
    ld_shared(r, at);
    p.out.as<uint32_t>()[threadIdx.x] = r[N - 1];
}

}  // namespace probes_sm90

#define RING(name, FAULT) SM90_KERNEL_ENTRY(name, 256, probes_sm90::Params, probes_sm90::ring<probes_sm90::FAULT>)
RING(probe_ring_right, NONE)
RING(probe_ring_rewritten, REWRITTEN)
// What is wrong is nothing for a GPU, whose compiler mends some of it.
#ifndef __CUDACC__
RING(probe_ring_no_empty_wait, NO_EMPTY_WAIT)
RING(probe_ring_no_full_wait, NO_FULL_WAIT)
RING(probe_ring_released_before_read, RELEASED_BEFORE_READ)
RING(probe_ring_one_warp_releases, ONE_WARP_RELEASES)
RING(probe_ring_init_not_fenced, INIT_NOT_FENCED)
RING(probe_ring_init_not_shared, INIT_NOT_SHARED)
RING(probe_ring_one_arrival_too_few, ONE_ARRIVAL_TOO_FEW)
RING(probe_ring_one_arrival_too_many, ONE_ARRIVAL_TOO_MANY)
RING(probe_ring_bytes_never_come, BYTES_NEVER_COME)
RING(probe_ring_no_wgmma_fence, NO_WGMMA_FENCE)
RING(probe_ring_registers_too_early, REGISTERS_TOO_EARLY)
RING(probe_ring_operand_too_early, OPERAND_TOO_EARLY)
RING(probe_ring_rewritten_unfenced, REWRITTEN_UNFENCED)
RING(probe_ring_rewritten_fenced_late, REWRITTEN_FENCED_LATE)
RING(probe_ring_rewritten_no_barrier, REWRITTEN_NO_BARRIER)
RING(probe_ring_product_left, PRODUCT_LEFT)
RING(probe_ring_copy_left, COPY_LEFT)
RING(probe_ring_warps_differ, WARPS_DIFFER)
RING(probe_ring_barrier_of_too_many, BARRIER_OF_TOO_MANY)
RING(probe_ring_follows_late, FOLLOWS_LATE)
RING(probe_ring_follows_twice, FOLLOWS_TWICE)
RING(probe_ring_consumers_follow, CONSUMERS_FOLLOW)
#endif
KERNEL_ENTRY(probe_box, 64, probes_sm90::Params, probes_sm90::box)
#define STORES(name, FAULT) KERNEL_ENTRY(name, 64, probes_sm90::Params, probes_sm90::stores_box<probes_sm90::FAULT>)
STORES(probe_store_box, STORED)
STORES(probe_store_unfenced, STORED_UNFENCED)
STORES(probe_store_without_barrier, STORED_WITHOUT_BARRIER)
STORES(probe_store_left, STORE_LEFT)
STORES(probe_store_overwritten, STORE_OVERWRITTEN)
STORES(probe_store_read_back, STORE_READ_BACK)
KERNEL_ENTRY(probe_hands_over, 128, probes_sm90::Params, probes_sm90::hands_over)
KERNEL_ENTRY(probe_strides_4, 32, probes_sm90::Params, probes_sm90::strides<1>)
KERNEL_ENTRY(probe_strides_8, 32, probes_sm90::Params, probes_sm90::strides<2>)
KERNEL_ENTRY(probe_strides_16, 32, probes_sm90::Params, probes_sm90::strides<4>)
