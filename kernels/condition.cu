// condition - whether a step's graph goes into a body: sets the value of the node that the next one asks.
//
//     window   value = the step lies inside the guided window
//     flag     value = flags[sample] != 0
//     first    sample = 0, value = 1
//     next     sample = sample + 1, value = sample < samples
//
// One thread does it. A flag that is NaN is not zero: the guard's body runs, and finds the fault.
//
// Departures from the formulas: none.
//
// Reference: src/launch/execute.rs. Class: exact. Bound by: the latency of a launch.
#include "graph.cuh"

namespace condition {

constexpr int THREADS = 32;

enum Kind { WINDOW = 0, FLAG = 1, FIRST = 2, NEXT = 3 };

__device__ void run(const ConditionParams& p) {
    if (threadIdx.x != 0) return;
    StepState* state = p.state.as<StepState>();
    bool value = false;
    if (p.kind == WINDOW) value = state->window != 0;
    if (p.kind == FLAG) value = p.flags.as<f32>()[state->sample] != 0.0f;
    if (p.kind == FIRST || p.kind == NEXT) {
        const int32_t sample = p.kind == FIRST ? 0 : state->sample + 1;
        state->sample = sample;
        value = sample < p.samples;
    }
    set_condition(p.handle, value ? 1u : 0u);
}

}  // namespace condition
