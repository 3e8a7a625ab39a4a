// prelude.cuh - what every kernel may rely on, with no CUDA header: scalar types and their conversions, entry
// points, shared memory, barriers, shuffles, assertions. Two bodies each: CUDA, and the SIMT layer's C++.
#pragma once

#ifdef __CUDACC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef int int32_t;
typedef long long int64_t;

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
// A function that is there once: for rare and long ones.
#define DEVICE_CALL static __device__ __noinline__
// A struct in the block's shared memory.
#define SHARED(T, name) __shared__ T name
// All of the launch's dynamic shared memory, aligned for the widest swizzle.
#define DYNAMIC_SHARED(T, name)                                        \
    extern __shared__ __align__(1024) unsigned char dynamic_shared_[]; \
    T& name = *reinterpret_cast<T*>(dynamic_shared_)
#define KERNEL_ENTRY(name, threads, Params, ...)                                                  \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p) { \
        follow_launch_in_front();                                                                 \
        __VA_ARGS__(p);                                                                           \
    }
// Preconditions that the host has checked before the launch.
#define KERNEL_ASSERT(condition)  \
    do {                          \
        if (!(condition)) __trap(); \
    } while (0)

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float shuffle_from(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE bool any_lane(bool vote) { return __ballot_sync(0xffffffffu, vote) != 0; }
DEVICE float bits_as_f32(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t f32_as_bits(float value) { return __float_as_uint(value); }

#else
#include "simt.h"

#define DEVICE static inline __attribute__((always_inline))
#define DEVICE_MEMBER inline __attribute__((always_inline))
#define DEVICE_CALL static __attribute__((noinline))
#define SHARED(T, name)                \
    static const char name##_key_ = 0; \
    T& name = *static_cast<T*>(simt::shared_object(&name##_key_, sizeof(T), alignof(T)))
#define DYNAMIC_SHARED(T, name) T& name = *static_cast<T*>(simt::dynamic_shared())
#define KERNEL_ENTRY(name, threads, Params, ...)                                                         \
    static void name(const void* p) {                                                                    \
        follow_launch_in_front();                                                                        \
        __VA_ARGS__(*static_cast<const Params*>(p));                                                     \
    }                                                                                                    \
    static const simt::Registration name##_registration_(SIMT_VARIANT, #name, name, threads, sizeof(Params));
#define KERNEL_ASSERT(condition)                                                       \
    do {                                                                               \
        if (!(condition)) simt::assertion_failed(#condition, {__FILE__, __LINE__}); \
    } while (0)

DEVICE void sync_block(SIMT_SITE) { simt::barrier(site); }
DEVICE void sync_warp(SIMT_SITE) { simt::warp_barrier(site); }
DEVICE float bits_as_f32(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
DEVICE uint32_t f32_as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
DEVICE float shuffle_xor(float value, int mask, SIMT_SITE) {
    return bits_as_f32(simt::shuffle(f32_as_bits(value), simt::current->lane ^ mask, site));
}
DEVICE float shuffle_from(float value, int lane, SIMT_SITE) {
    return bits_as_f32(simt::shuffle(f32_as_bits(value), lane & 31, site));
}
DEVICE bool any_lane(bool vote, SIMT_SITE) { return simt::ballot(vote, site) != 0; }
#endif

// Storage types: bits alone. All arithmetic is f32.
struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};
typedef float f32;

#include "ptx_sm80.cuh"
#include "ptx_launch.cuh"

DEVICE float to_f32(f16 x) { return cvt_f32_f16(x.bits); }
DEVICE float to_f32(bf16 x) { return cvt_f32_bf16(x.bits); }
DEVICE float to_f32(f32 x) { return x; }

// Round to nearest, ties to even.
DEVICE void round_to(f16& out, float x) { out.bits = cvt_rn_f16_f32(x); }
DEVICE void round_to(bf16& out, float x) { out.bits = cvt_rn_bf16_f32(x); }
DEVICE void round_to(f32& out, float x) { out = x; }
// Two of them in a word, `low` in its lower half.
DEVICE uint32_t rounded_pair(f16, float low, float high) { return cvt_rn_f16x2_f32(low, high); }
DEVICE uint32_t rounded_pair(bf16, float low, float high) { return cvt_rn_bf16x2_f32(low, high); }
template <typename T>
DEVICE T from_f32(float x) {
    T out;
    round_to(out, x);
    return out;
}

// An address of the device, as it stands in params.
struct DevicePtr {
    uint64_t address;

    template <typename T>
    DEVICE_MEMBER T* as() const {
        return reinterpret_cast<T*>(address);
    }
};

// This thread's place in a grid of one dimension, and how many threads the grid has.
DEVICE int64_t grid_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE int64_t grid_threads() { return int64_t(gridDim.x) * blockDim.x; }

DEVICE bool is_finite(float x) { return fabsf(x) <= 3.402823466e38f; }
