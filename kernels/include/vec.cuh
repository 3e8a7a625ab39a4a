// vec.cuh - eight elements at a time: 16 bytes of a storage type, 32 bytes of f32.
//
// Addresses are multiples of 16 bytes.
#pragma once
#include "prelude.cuh"

// As they lie in memory, to be unpacked later: a register holds two.
struct alignas(16) Packed {
    uint32_t pair[4];
};

template <typename T>
DEVICE Packed load_packed(const T* from) {
    static_assert(sizeof(T) == 2, "eight elements are 16 bytes");
    return *reinterpret_cast<const Packed*>(from);
}

template <typename T>
DEVICE float first_of(uint32_t pair) {
    return to_f32(T{uint16_t(pair)});
}
template <typename T>
DEVICE float second_of(uint32_t pair) {
    return to_f32(T{uint16_t(pair >> 16)});
}

template <typename T>
DEVICE void unpack(float (&x)[8], const Packed& packed) {
    for (int i = 0; i < 4; ++i) {
        x[2 * i]     = first_of<T>(packed.pair[i]);
        x[2 * i + 1] = second_of<T>(packed.pair[i]);
    }
}

template <typename T>
DEVICE void load8(float (&x)[8], const T* from) {
    unpack<T>(x, load_packed(from));
}
DEVICE void load8(float (&x)[8], const float* from) {
    struct alignas(16) Four {
        float at[4];
    };
    const Four low = reinterpret_cast<const Four*>(from)[0], high = reinterpret_cast<const Four*>(from)[1];
    for (int i = 0; i < 4; ++i) {
        x[i]     = low.at[i];
        x[i + 4] = high.at[i];
    }
}

template <typename T>
DEVICE void store8(T* to, const float (&x)[8]) {
    static_assert(sizeof(T) == 2, "eight elements are 16 bytes");
    Packed packed;
    for (int i = 0; i < 4; ++i)
        packed.pair[i] = from_f32<T>(x[2 * i]).bits | uint32_t(from_f32<T>(x[2 * i + 1]).bits) << 16;
    *reinterpret_cast<Packed*>(to) = packed;
}
