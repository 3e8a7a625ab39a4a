// ring_sm90.cuh - stages in shared memory that one thread fills by bulk copies and two warpgroups read: what kernels
// of attention for sm_90a share. Products and convolutions have theirs in mainloop_sm90.cuh, with the loop around it.
#pragma once
#include "ptx_sm90.cuh"

constexpr int CONSUMERS = 256, PRODUCER = CONSUMERS;  // threads that read, and the first of the warp that copies

// Where a warp of either kind is in a ring of COUNT stages. Round r of a stage is complete when phase r of its `full`
// has ended, and may begin when phase r - 1 of its `empty` has.
template <int COUNT>
struct Ring {
    uint32_t full, empty;  // addresses of the stages' barriers
    int stage;
    uint32_t round;

    static DEVICE_MEMBER Ring at(const uint64_t (&full)[COUNT], const uint64_t (&empty)[COUNT]) {
        return {cvta_to_shared(full), cvta_to_shared(empty), 0, 0};
    }
    // One arrival at `full` announces the bytes; each of the eight warps that read arrives at `empty`.
    DEVICE_MEMBER void initialise() const {
        for (int i = 0; i < COUNT; ++i) {
            mbarrier_init(full + i * 8, 1);
            mbarrier_init(empty + i * 8, CONSUMERS / 32);
        }
    }
    // The stage is free for that many bytes, which are counted by the barrier that this gives. By the producer.
    DEVICE_MEMBER uint32_t fill(int bytes) const {
        // Of the first round nobody waits: the phase before the first counts as ended.
        mbarrier_wait_parity(empty + stage * 8, (round + 1) & 1);
        mbarrier_arrive_expect_tx(full + stage * 8, bytes);
        return full + stage * 8;
    }
    // The stage's bytes are there.
    DEVICE_MEMBER void wait() const { mbarrier_wait_parity(full + stage * 8, round & 1); }
    // This warp has read all of a stage.
    DEVICE_MEMBER void release(int of) const {
        if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + of * 8);
    }
    DEVICE_MEMBER void advance() {
        if (++stage < COUNT) return;
        stage = 0;
        ++round;
    }
};

// The operand so many bytes behind that of a descriptor. An addition to its address alone: taking every one apart and
// together again would be a tenth of a tile's instructions.
DEVICE uint64_t behind(uint64_t descriptor, int bytes) {
    return uint64_t(uint32_t(descriptor) + uint32_t(bytes >> 4)) | descriptor >> 32 << 32;
}
// Results of a product as the left operand of the next one: 64 rows, 2 N deep. Not while one reads the last ones.
template <typename T, int N>
DEVICE void as_operand(uint32_t (&a)[N / 8][4], const float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) a[i / 4][i % 4] = rounded_pair(T{}, x[2 * i], x[2 * i + 1]);
}
