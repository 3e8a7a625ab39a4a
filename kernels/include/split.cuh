// split.cuh - sums whose depth blocks share: each stores its part, and whoever comes last adds all parts of the tile.
//
//     sum[i, j] = sum_s parts[s, i, j]          s in order, whoever adds them
//
// No block waits for another one: it counts itself, and unless all others have done so before it is through. The last
// one sets the count of its tile back to zero, so that the next launch finds it as this one did.
#pragma once
#include "epilogue.cuh"
#include "ptx_atomic.cuh"

// Params of a product whose blocks may share its depth.
template <typename Whole>
struct InParts {
    DevicePtr arrived;  // u32, one a tile, all zero before and after; 0 where no depth is shared
    Whole whole;
};

namespace split {

// Stores this block's part of a tile: `part` of `parts`, each `stride` elements long in `sums`, f32 [parts, .., n].
// True in the block that comes last: then the whole sums lie in `stage` (epilogue::to_rows), as the part did before.
// All that Warps::sync() waits for must come here.
template <typename Warps, typename Places>
DEVICE bool is_whole(const Places& rows, int column0, int n, float* sums, int64_t stride, int part, int parts,
                     uint32_t* arrived, float* stage) {
    typedef epilogue::Stage<Warps> Stage;
    // 1. The part, and whether it is the last.
    epilogue::store_sums<Warps>(rows, column0, n, sums + part * stride, stage);
    Warps::sync();  // all of it is stored, and the stage is free
    uint32_t* before = reinterpret_cast<uint32_t*>(stage);
    if (threadIdx.x == 0) {
        *before = atom_add_acq_rel_gpu(arrived, 1);
        if (*before == uint32_t(parts - 1)) *arrived = 0;
    }
    Warps::sync();  // how many came before
    const bool is_last = *before == uint32_t(parts - 1);
    Warps::sync();  // everybody knows
    if (!is_last) return false;

    // 2. All parts, four columns of a row at a time.
    constexpr int QUADS = Warps::N / 4;
#pragma unroll 1
    for (int item = threadIdx.x; item < rows.count * QUADS; item += Warps::THREADS) {
        const int line = item / QUADS, in_tile = item % QUADS * 4, column = column0 + in_tile;
        const int64_t row = rows.at(line);
        if (row < 0 || column >= n) continue;
        const float* place = sums + row * n + column;
        Floats4 sum = {};
#pragma unroll 4
        for (int other = 0; other < parts; ++other, place += stride) {
            Floats4 more = {};
            if (n % 4 == 0)
                more = *reinterpret_cast<const Floats4*>(place);
            else
                for (int i = 0; i < 4 && column + i < n; ++i) more.value[i] = place[i];
            for (int i = 0; i < 4; ++i) sum.value[i] += more.value[i];
        }
        *reinterpret_cast<Floats4*>(Stage::at(stage, line, in_tile)) = sum;
    }
    Warps::sync();  // the sums
    return true;
}

}  // namespace split
