// tile.cuh - the main loop of a product on tensor cores: a ring of shared memory that asynchronous copies fill,
// and warps that multiply what has arrived. Where a chunk of an operand comes from is the caller's business.
//
//     acc[m, n] = sum_k a[m, k] b[k, n]      a block makes M x N, in steps of K; the warps share it as rectangles
//
// The ring has STAGES stages, each with a slab of a and one of b. A step waits for its stage, passes one barrier,
// starts the copies of the step STAGES - 1 ahead into the stage that everybody has left, and multiplies. Slabs of
// a are [m, k], or [k, m] where a comes by columns; those of b are [n, k], or [k, n] where b comes by rows. Sums grow
// by 16 of k at a time in the order of k: they do not depend on M, N, K, STAGES or the warps.
#pragma once
#include "prelude.cuh"

namespace tile {

// 16 bytes that are copied to shared memory; what is beyond the first `bytes` of them, 0 to 16, becomes zero and is
// not read.
struct Piece {
    const void* from;
    int bytes;
};

// [ROWS, COLUMNS] 16-bit elements in shared memory, in chunks of eight. The chunks of a row are swapped by its
// number, so that eight rows of one chunk (a matrix of ldmatrix) and eight chunks in a row (what eight threads
// copy) lie in all 32 banks, once. Rows are counted from a multiple of eight.
template <int ROWS, int COLUMNS, int THREADS>
struct Slab {
    static constexpr int CHUNKS = COLUMNS / 8, ROW_BYTES = COLUMNS * 2, BYTES = ROWS * ROW_BYTES;
    static constexpr int COPIES = ROWS * CHUNKS / THREADS;  // of one thread
    // Where whole rows of chunks go round the threads, a thread has one chunk of rows that far apart.
    static constexpr bool REGULAR = THREADS % CHUNKS == 0;
    static constexpr int APART = THREADS / CHUNKS;
    static_assert(COLUMNS % 32 == 0 && ROWS % 8 == 0, "whole groups of banks");
    static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as much");

    // In bytes, from the beginning.
    static DEVICE_MEMBER uint32_t at(int row, int chunk) {
        const int swapped = CHUNKS % 8 == 0 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
        return uint32_t(row * ROW_BYTES + swapped * 16);
    }
    // The place of copy `i` of this thread.
    static DEVICE_MEMBER int row(int i) { return (int(threadIdx.x) + i * THREADS) / CHUNKS; }
    static DEVICE_MEMBER int chunk(int i) { return (int(threadIdx.x) + i * THREADS) % CHUNKS; }

    // `piece(i, row, chunk)` says what belongs there.
    template <typename Source>
    static DEVICE_MEMBER void fill(uint32_t slab, const Source& piece) {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const Piece it = piece(i, row(i), chunk(i));
            cp_async_cg16(slab + at(row(i), chunk(i)), it.from, it.bytes);
        }
    }
};

// How warps share a rectangle: WARPS_M x WARPS_N rectangles of fragments of 16 x 8. Of a fragment a thread has
// rows `lane / 4` and eight below, columns `lane % 4 * 2` and the next: acc[..][..][row * 2 + column].
template <int M_, int N_, int WARPS_M_, int WARPS_N_>
struct Warps {
    static constexpr int M = M_, N = N_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
    static constexpr int THREADS = WARPS_M * WARPS_N * 32;
    static constexpr int WARP_M = M / WARPS_M, WARP_N = N / WARPS_N;
    static constexpr int FRAGMENTS_M = WARP_M / 16, FRAGMENTS_N = WARP_N / 8;
    static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "whole fragments, those of b in pairs");

    static DEVICE_MEMBER int lane() { return int(threadIdx.x) % 32; }
    static DEVICE_MEMBER int first_row() { return int(threadIdx.x) / 32 / WARPS_N * WARP_M; }
    static DEVICE_MEMBER int first_column() { return int(threadIdx.x) / 32 % WARPS_N * WARP_N; }
    // All of them wait for each other.
    static DEVICE_MEMBER void sync() { sync_block(); }

    struct Accumulators {
        float of[FRAGMENTS_M][FRAGMENTS_N][4];  // fragment (i, j) is at first_row + 16 i, first_column + 8 j
    };
    static DEVICE_MEMBER void clear(Accumulators& acc) {
#pragma unroll
        for (int i = 0; i < FRAGMENTS_M; ++i)
#pragma unroll
            for (int j = 0; j < FRAGMENTS_N; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) acc.of[i][j][e] = 0.f;
    }
};

// B_BY_ROWS: the slab of b is [k, n], else [n, k]. A_BY_COLUMNS: that of a is [k, m], else [m, k].
template <int M, int N, int K_, int STAGES_, int WARPS_M, int WARPS_N, bool B_BY_ROWS_, bool A_BY_COLUMNS = false>
struct Tile : Warps<M, N, WARPS_M, WARPS_N> {
    typedef Warps<M, N, WARPS_M, WARPS_N> Of;
    static constexpr int K = K_, STAGES = STAGES_;
    static constexpr bool B_BY_ROWS = B_BY_ROWS_;
    typedef Slab<A_BY_COLUMNS ? K : M, A_BY_COLUMNS ? M : K, Of::THREADS> A;
    typedef Slab<B_BY_ROWS ? K : N, B_BY_ROWS ? N : K, Of::THREADS> B;
    static constexpr int STAGE_BYTES = A::BYTES + B::BYTES, RING_BYTES = STAGES * STAGE_BYTES;
    static_assert(K % 32 == 0 && STAGES >= 2, "steps of 16, one stage ahead");

    // The operands of one 16 of k.
    struct Fragments {
        uint32_t a[Of::FRAGMENTS_M][4];
        uint32_t b[Of::FRAGMENTS_N / 2][4];  // two fragments each
    };

    static DEVICE_MEMBER void load(Fragments& f, uint32_t stage, int k16) {
        const int lane = Of::lane();
        // Rows of warps and of fragments are multiples of eight: they do not take part in the swapping.
        if (A_BY_COLUMNS) {
            const int row = lane % 8 + lane / 16 * 8, chunk = Of::first_row() / 8 + lane / 8 % 2;
#pragma unroll
            for (int i = 0; i < Of::FRAGMENTS_M; ++i)
                ldmatrix_x4_trans(f.a[i], stage + A::at(row, chunk + i * 2) + k16 * 16 * A::ROW_BYTES);
        } else {
            const uint32_t a = stage + A::at(lane % 16, k16 * 2 + lane / 16) + Of::first_row() * A::ROW_BYTES;
#pragma unroll
            for (int i = 0; i < Of::FRAGMENTS_M; ++i) ldmatrix_x4(f.a[i], a + i * 16 * A::ROW_BYTES);
        }
        const uint32_t b = stage + A::BYTES;
        if (B_BY_ROWS) {
            const int chunk = Of::first_column() / 8 + lane / 16;
#pragma unroll
            for (int j = 0; j < Of::FRAGMENTS_N / 2; ++j)
                ldmatrix_x4_trans(f.b[j], b + B::at(lane % 16, chunk + j * 2) + k16 * 16 * B::ROW_BYTES);
        } else {
            const int row = lane % 8 + lane / 16 * 8, chunk = k16 * 2 + lane / 8 % 2;
            const uint32_t at = b + B::at(row, chunk) + Of::first_column() * B::ROW_BYTES;
#pragma unroll
            for (int j = 0; j < Of::FRAGMENTS_N / 2; ++j) ldmatrix_x4(f.b[j], at + j * 16 * B::ROW_BYTES);
        }
    }

    template <typename T>
    static DEVICE_MEMBER void multiply(typename Of::Accumulators& acc, const Fragments& f) {
#pragma unroll
        for (int i = 0; i < Of::FRAGMENTS_M; ++i)
#pragma unroll
            for (int j = 0; j < Of::FRAGMENTS_N; ++j) {
                const uint32_t b[2] = {f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]};
                mma_m16n8k16(acc.of[i][j], f.a[i], b, T{});
            }
    }

    // `fill(step, a, b)` starts the copies of a step, 0 <= step < steps, into the slabs at these addresses of
    // shared memory. Everybody comes here, with as many steps. Afterwards the ring is free for other things.
    template <typename T, typename Fill>
    static DEVICE_MEMBER void run(typename Of::Accumulators& acc, uint32_t ring, int steps, const Fill& fill) {
        uint32_t full = ring, free = ring;
        const uint32_t last = ring + (STAGES - 1) * STAGE_BYTES;
#pragma unroll 1
        for (int step = 1 - STAGES; step < steps; ++step) {
            // 1. This step's stage is there, for everybody; and everybody has left that of the step before. The
            // first STAGES - 1 times there is nothing to wait for.
            if (step >= 0) {
                cp_async_wait_group<STAGES - 2>();
                sync_block();
            }

            // 2. Copies for the step STAGES - 1 ahead. Beyond the last one groups are empty: the wait counts them.
            if (step + STAGES - 1 < steps) fill(step + STAGES - 1, free, free + A::BYTES);
            cp_async_commit_group();
            free = free == last ? ring : free + STAGE_BYTES;
            if (step < 0) continue;

            // 3. The product: the operands of the next 16 of k are loaded before those of this one are used.
            Fragments f[2];
            load(f[0], full, 0);
#pragma unroll
            for (int k16 = 0; k16 < K / 16; ++k16) {
                if (k16 + 1 < K / 16) load(f[(k16 + 1) % 2], full, k16 + 1);
                multiply<T>(acc, f[k16 % 2]);
            }
            full = full == last ? ring : full + STAGE_BYTES;
        }
        cp_async_wait_group<0>();
        sync_block();
    }
};

}  // namespace tile
