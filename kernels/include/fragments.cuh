// fragments.cuh - tiles of rows in shared memory for ldmatrix and mma.m16n8k16: where they lie, how they are filled
// and read.
//
// A row is CHUNKS chunks of eight elements, 16 bytes. ldmatrix reads the same chunk of eight rows at once, and they
// must lie in eight different groups of banks: chunk index modulo 8. Row r begins at chunk r CHUNKS; the power of
// two in CHUNKS (GROUP, at most 8) makes 8 / GROUP rows differ by themselves, and the other rows have their chunks
// permuted within aligned groups of GROUP by an exclusive or. So no tile has a pad.
#pragma once
#include "prelude.cuh"

namespace fragments {

struct alignas(16) Chunk {
    uint16_t elements[8];
};

// Bytes from the tile's begin to a chunk.
template <int CHUNKS>
DEVICE uint32_t offset(int row, int chunk) {
    static_assert(CHUNKS % 2 == 0, "an odd number needs no permutation, and none is used");
    constexpr int GROUP = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
    return uint32_t(row * CHUNKS + (chunk ^ (row / (8 / GROUP) & (GROUP - 1)))) * 16;
}

// Copies a tile of ROWS rows by all THREADS threads, as one part of this thread's current group. Of `from`, there
// are `rows` rows of `chunks` chunks; the rest of the tile is zero. Within a tile 32 bits count its elements.
template <int ROWS, int CHUNKS, int THREADS, typename T>
DEVICE void copy(uint32_t to, const T* from, int row_stride, int rows, int chunks) {
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool inside = row < rows && chunk < chunks;
        const T* source = inside ? from + row * row_stride + chunk * 8 : from;
        cp_async_cg16(to + offset<CHUNKS>(row, chunk), source, inside ? 16 : 0);
    }
}

// Operand A, 16 x 16: rows are rows of the tile.
template <int CHUNKS>
DEVICE void read_a(uint32_t (&a)[4], uint32_t tile, int row, int chunk) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile + offset<CHUNKS>(row + lane % 16, chunk + lane / 16));
}
// Operand A, 16 x 16: rows are columns of the tile, beginning with `chunk`; `row` is the first of its columns.
template <int CHUNKS>
DEVICE void read_a_across(uint32_t (&a)[4], uint32_t tile, int row, int chunk) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(a, tile + offset<CHUNKS>(row + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
}
// Operand B twice, 16 x 8 each: columns are rows of the tile, 16 from `row`.
template <int CHUNKS>
DEVICE void read_b(uint32_t (&b)[2][2], uint32_t tile, int row, int chunk) {
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    ldmatrix_x4(r, tile + offset<CHUNKS>(row + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}
// Operand B twice, 16 x 8 each: columns are columns of the tile, in the two chunks from `chunk`.
template <int CHUNKS>
DEVICE void read_b_across(uint32_t (&b)[2][2], uint32_t tile, int row, int chunk) {
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    ldmatrix_x4_trans(r, tile + offset<CHUNKS>(row + lane % 16, chunk + lane / 16));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// Two results of a product, side by side, as operand A of the next one: 16 rows, 16 deep.
template <typename T>
DEVICE void as_a(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = rounded_pair(T{}, left[0], left[1]);
    a[1] = rounded_pair(T{}, left[2], left[3]);
    a[2] = rounded_pair(T{}, right[0], right[1]);
    a[3] = rounded_pair(T{}, right[2], right[3]);
}

// Where the results of a product lie: result i of a lane is row() + i / 2 * 8, column() + i % 2.
DEVICE int row() { return threadIdx.x % 32 / 4; }
DEVICE int column() { return threadIdx.x % 4 * 2; }

// Scores, 16 rows by 8 N columns, become LOWEST where not `seen(row, column)`: there the exponential is zero.
constexpr float LOWEST = -3.402823466e38f;
template <int N, typename Seen>
DEVICE void hide(float (&s)[N][4], Seen seen) {
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (!seen(i / 2 * 8 + row(), j * 8 + column() + i % 2)) s[j][i] = LOWEST;
}

}  // namespace fragments
