// copy - numbers from one place to another, in the storage type of each; either may be the current sample's row.
//
//     out[sample * out_row + i] = x[sample * x_row + i],  i < count
//
// Departures from the formula: none. The sample's index is read from the state, so that one launch serves every
// round of a loop over samples; a row of 0 elements from one sample to the next is the same place for all.
//
// Reference: the rows of buffers in src/cpu/program.rs. Class: rounded; exact between equal types.
// Bound by: DRAM, the bytes of both sides.
#include "params.cuh"

namespace copy {

constexpr int THREADS = 256;

template <typename From, typename To>
__device__ void run(const CopyParams& p) {
    const int64_t sample = p.state.as<StepState>()->sample;
    const From* x = p.x.as<From>() + sample * p.x_row;  // [count]
    To* out = p.out.as<To>() + sample * p.out_row;      // [count]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) out[i] = from_f32<To>(to_f32(x[i]));
}

}  // namespace copy
