// gemm - D = act(A B^T + bias) + residual, for every matrix of a batch. The general form: any size and stride.
//
//     d[i, j] = epilogue(sum_k a[i, k] b[j, k])
//
// One block makes a tile of 32 x 32, four elements a thread; k advances by 32 through shared memory, in f32. The
// order of the sum depends on k alone. b is addressed by two strides, so A B needs no transposed copy. The two
// columns of a GEGLU are in neighbouring lanes. There are no statistics here.
//
// Departures from the formula: none.
//
// Reference: src/cpu/gemm.rs, src/cpu/linear.rs. Class: contracted. Bound by: shared memory.
#include "epilogue.cuh"

namespace gemm {

constexpr int THREADS = 256;
constexpr int TILE = 32;  // rows, columns and depth of a tile
constexpr int OWN = TILE * TILE / THREADS;

struct Smem {
    float a[TILE][TILE + 1];  // [row, k]
    float b[TILE][TILE + 1];  // [column, k]
};

template <typename T>
__device__ void run(const GemmParams& p) {
    KERNEL_ASSERT(blockDim.x == THREADS);
    SHARED(Smem, smem);
    const T* a = p.a.as<T>() + blockIdx.z * p.a_batch;                // [m, k]
    const T* b = p.b.as<T>() + blockIdx.z * p.b_batch;                // [n, k] by strides
    const T* residual = p.epilogue.residual.as<T>();                  // [m or residual_rows, n], or none
    T* d = p.d.as<T>() + blockIdx.z * p.d_batch;                      // [m, n]; GEGLU: [m, n / 2]
    const int64_t row0 = int64_t(blockIdx.x) * TILE, column0 = int64_t(blockIdx.y) * TILE;
    const int column = threadIdx.x % TILE, row = threadIdx.x / TILE;  // this thread: row, row + 8, ...

    float sum[OWN];  // row + own * (TILE / OWN) of the tile
    for (int own = 0; own < OWN; ++own) sum[own] = 0.f;
    for (int k0 = 0; k0 < p.k; k0 += TILE) {
        // 1. A tile of a and one of b, zero beyond the edges.
        for (int own = 0; own < OWN; ++own) {
            const int line = row + own * (TILE / OWN), k = k0 + column;
            const bool a_in = row0 + line < p.m && k < p.k, b_in = column0 + line < p.n && k < p.k;
            smem.a[line][column] = a_in ? to_f32(a[(row0 + line) * p.a_row + k]) : 0.f;
            smem.b[line][column] = b_in ? to_f32(b[(column0 + line) * p.b_column + k * p.b_k]) : 0.f;
        }
        sync_block();

        // 2. Their product.
        for (int k = 0; k < TILE; ++k)
            for (int own = 0; own < OWN; ++own)
                sum[own] += smem.a[row + own * (TILE / OWN)][k] * smem.b[column][k];
        sync_block();
    }

    // 3. The epilogue. All lanes take part in the exchange, also those beyond the edges.
    const bool geglu = p.epilogue.activation == epilogue::GEGLU;
    for (int own = 0; own < OWN; ++own) {
        const int64_t i = row0 + row + own * (TILE / OWN), j = column0 + column;
        const bool in = i < p.m && j < p.n;
        float value = in ? epilogue::linear<T>(p.epilogue, sum[own], i, j, p.n) : 0.f;
        const float gate = shuffle_xor(value, 1);
        if (!in || (geglu && column % 2 != 0)) continue;
        value = geglu ? value * activation::value(activation::GELU, gate)
                      : activation::value(p.epilogue.activation, value);
        const int64_t to = geglu ? j / 2 : j, from = epilogue::residual_row(p.epilogue, i) * p.d_row + to;
        if (residual != nullptr) value += to_f32(residual[blockIdx.z * p.d_batch + from]);
        d[i * p.d_row + to] = from_f32<T>(value);
    }
}

}  // namespace gemm
