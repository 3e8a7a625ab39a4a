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
