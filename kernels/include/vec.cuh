// vec.cuh - several elements in one access. An address must be a multiple of what is accessed.
#pragma once
#include "prelude.cuh"

struct alignas(8) Words2 {
    uint32_t word[2];
};
struct alignas(8) Floats2 {
    float value[2];
};
struct alignas(16) Floats4 {
    float value[4];
};

// COUNT elements, 2 or 4, as f32.
template <int COUNT, typename T>
DEVICE void load_vector(float (&to)[4], const T* from) {
    static_assert(sizeof(T) == 2 && (COUNT == 2 || COUNT == 4), "one word or two");
    uint32_t word[2];
    if (COUNT == 4) {
        const Words2 both = *reinterpret_cast<const Words2*>(from);
        word[0] = both.word[0], word[1] = both.word[1];
    } else {
        word[0] = *reinterpret_cast<const uint32_t*>(from);
    }
    for (int i = 0; i < COUNT; ++i) to[i] = to_f32(T{uint16_t(word[i / 2] >> i % 2 * 16)});
}
template <int COUNT, typename T>
DEVICE void store_vector(T* to, const float (&from)[4]) {
    static_assert(sizeof(T) == 2 && (COUNT == 2 || COUNT == 4), "one word or two");
    Words2 both;
    for (int i = 0; i < COUNT; i += 2)
        both.word[i / 2] = from_f32<T>(from[i]).bits | uint32_t(from_f32<T>(from[i + 1]).bits) << 16;
    if (COUNT == 4)
        *reinterpret_cast<Words2*>(to) = both;
    else
        *reinterpret_cast<uint32_t*>(to) = both.word[0];
}

// Eight elements: 16 bytes of a storage type, 32 bytes of f32. As they lie in memory, to be unpacked
// later: a register holds two.
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
template <typename T>
DEVICE void add8(float (&x)[8], const T* from) {
    float more[8];
    load8(more, from);
    for (int i = 0; i < 8; ++i) x[i] += more[i];
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
