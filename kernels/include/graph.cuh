// graph.cuh - what a kernel may tell the graph that it is part of, and what it is given for that.
#pragma once
#include "params.cuh"

struct ConditionParams {
    DevicePtr state;
    DevicePtr flags;  // [samples] f32
    uint64_t handle;  // of the driver: whose value is set
    int32_t kind;     // condition::Kind
    int32_t samples;
};
static_assert(sizeof(ConditionParams) == 32, "as in src/launch/params");

#ifdef __CUDACC__
// The driver's own: found when the module is loaded.
extern "C" __device__ void cudaGraphSetConditional(unsigned long long handle, unsigned int value);
DEVICE void set_condition(uint64_t handle, uint32_t value) { cudaGraphSetConditional(handle, value); }
#else
// Here a handle is the address of its value.
DEVICE void set_condition(uint64_t handle, uint32_t value) { *reinterpret_cast<uint32_t*>(handle) = value; }
#endif
