// probes - kernels that are right or wrong on purpose: what the SIMT layer is tested with. None of them ships.
#include "params.cuh"
#include "reduce.cuh"

namespace probes {

struct Row {
    float value[64];
};
struct Pair {
    Row first, second;
};
struct Tile {
    uint16_t half[2][16][64];
};

__device__ void exchange_across_warps(const PointwiseParams& p) {
    SHARED(Row, row);
    row.value[threadIdx.x] = float(threadIdx.x);
    sync_block();
    p.out.as<float>()[threadIdx.x] = row.value[63 - threadIdx.x];
}
__device__ void exchange_without_barrier(const PointwiseParams& p) {
    SHARED(Row, row);
    row.value[threadIdx.x] = float(threadIdx.x);
    p.out.as<float>()[threadIdx.x] = row.value[63 - threadIdx.x];
}
__device__ void exchange_in_warp(const PointwiseParams& p) {
    SHARED(Row, row);
    row.value[threadIdx.x] = 1.f;
    sync_warp();
    p.out.as<float>()[threadIdx.x] = row.value[threadIdx.x ^ 1];
}
__device__ void shuffle_is_no_fence(const PointwiseParams& p) {
    SHARED(Row, row);
    row.value[threadIdx.x] = 1.f;
    const float zero = shuffle_xor(0.f, 1);
    p.out.as<float>()[threadIdx.x] = row.value[threadIdx.x ^ 1] + zero;
}
__device__ void reads_unwritten(const PointwiseParams& p) {
    SHARED(Row, row);
    if (threadIdx.x < 63) row.value[threadIdx.x] = 1.f;
    sync_block();
    p.out.as<float>()[threadIdx.x] = row.value[threadIdx.x];
}
__device__ void writes_into_red_zone(const PointwiseParams& p) {
    SHARED(Row, row);
    row.value[threadIdx.x + p.c] = 1.f;
    p.out.as<float>()[threadIdx.x] = 0.f;
}
__device__ void reads_beyond_buffer(const PointwiseParams& p) {
    p.out.as<float>()[threadIdx.x] = p.x.as<float>()[threadIdx.x + p.c];
}
__device__ void blocks_write_one_place(const PointwiseParams& p) {
    if (threadIdx.x == 0) p.out.as<float>()[0] = 1.f;
}
__device__ void deadlocks(const PointwiseParams& p) {
    if (threadIdx.x < 7) return;
    p.out.as<float>()[threadIdx.x] = shuffle_xor(1.f, 1);
}
__device__ void diverges(const PointwiseParams& p) {
    if (threadIdx.x % 2 == 0) {
        p.out.as<float>()[threadIdx.x] = shuffle_xor(1.f, 1);
    } else {
        p.out.as<float>()[threadIdx.x] = any_lane(true) ? 1.f : 0.f;
    }
}
__device__ void asserts(const PointwiseParams& p) { KERNEL_ASSERT(p.c == 12345); }

// 16 bytes a thread from x to out through shared memory; c: 0 right, 1 no wait, 2 no barrier.
__device__ void copies(const PointwiseParams& p) {
    DYNAMIC_SHARED(Tile, tile);
    uint16_t* half = &tile.half[0][0][0];
    cp_async_cg16(cvta_to_shared(half + threadIdx.x * 8), p.x.as<uint16_t>() + threadIdx.x * 8, 16);
    cp_async_commit_group();
    if (p.c != 1) cp_async_wait_group<0>();
    if (p.c != 2) sync_block();
    const int from = 63 - threadIdx.x;
    for (int i = 0; i < 8; ++i) p.out.as<uint16_t>()[threadIdx.x * 8 + i] = half[from * 8 + i];
}

// D [16, 8] = A [16, 16] B [8, 16]^T by one mma a warp, rows of 128 bytes in shared memory; c = 1: swizzled.
__device__ void multiplies(const PointwiseParams& p) {
    DYNAMIC_SHARED(Tile, tile);
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < 256; i += 64) {
        const int row = i / 16, k = i % 16, chunk = p.c ? (k / 8) ^ (row % 8) : k / 8;
        tile.half[0][row][chunk * 8 + k % 8] = p.x.as<uint16_t>()[i];
        tile.half[1][row][chunk * 8 + k % 8] = row < 8 ? p.y.as<uint16_t>()[i] : uint16_t(0);
    }
    sync_block();
    const int row = lane % 16, chunk = p.c ? (lane / 16) ^ (row % 8) : lane / 16;
    uint32_t a[4], both[4];
    ldmatrix_x4(a, cvta_to_shared(&tile.half[0][row][chunk * 8]));
    ldmatrix_x4(both, cvta_to_shared(&tile.half[1][row][chunk * 8]));
    const uint32_t b[2] = {both[0], both[2]};
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    mma_m16n8k16(d, a, b, f16{0});
    if (threadIdx.x < 32)
        for (int i = 0; i < 4; ++i) p.out.as<float>()[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

}  // namespace probes

KERNEL_ENTRY(probe_exchange_across_warps, 64, PointwiseParams, probes::exchange_across_warps)
KERNEL_ENTRY(probe_exchange_without_barrier, 64, PointwiseParams, probes::exchange_without_barrier)
KERNEL_ENTRY(probe_exchange_in_warp, 64, PointwiseParams, probes::exchange_in_warp)
KERNEL_ENTRY(probe_shuffle_is_no_fence, 64, PointwiseParams, probes::shuffle_is_no_fence)
KERNEL_ENTRY(probe_reads_unwritten, 64, PointwiseParams, probes::reads_unwritten)
KERNEL_ENTRY(probe_writes_into_red_zone, 64, PointwiseParams, probes::writes_into_red_zone)
KERNEL_ENTRY(probe_reads_beyond_buffer, 64, PointwiseParams, probes::reads_beyond_buffer)
KERNEL_ENTRY(probe_blocks_write_one_place, 64, PointwiseParams, probes::blocks_write_one_place)
KERNEL_ENTRY(probe_deadlocks, 64, PointwiseParams, probes::deadlocks)
KERNEL_ENTRY(probe_diverges, 64, PointwiseParams, probes::diverges)
KERNEL_ENTRY(probe_asserts, 64, PointwiseParams, probes::asserts)
KERNEL_ENTRY(probe_copies, 64, PointwiseParams, probes::copies)
KERNEL_ENTRY(probe_multiplies, 64, PointwiseParams, probes::multiplies)
