// embed - tokens and patches with their positions.
//
//     text      out[n, i] = token[ids[n, i]] + position[i]
//     patches   out[n, 0] = class + position[0];  out[n, i] = x[n, i - 1] + position[i]
//
// Departures from the formulas: none. An id outside of the vocabulary stops the kernel.
//
// Reference: src/cpu/embed.rs. Class: rounded. Bound by: DRAM, three elements moved for one.
#include "params.cuh"

namespace embed {

constexpr int THREADS = 256;

template <typename T>
__device__ void text(const EmbedTextParams& p) {
    const int32_t* ids = p.ids.as<int32_t>();  // [n, t]
    const T* token = p.token.as<T>();          // [vocabulary, d]
    const T* position = p.position.as<T>();    // [>= t, d]
    T* out = p.out.as<T>();                    // [n, t, d]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        const int64_t row = i / p.d, channel = i % p.d;
        const int32_t id = ids[row];
        KERNEL_ASSERT(id >= 0 && id < p.vocabulary);
        const float sum = to_f32(token[int64_t(id) * p.d + channel]) + to_f32(position[row % p.t * p.d + channel]);
        out[i] = from_f32<T>(sum);
    }
}

template <typename T>
__device__ void patches(const EmbedPatchesParams& p) {
    const T* x = p.x.as<T>();                      // [n, t, d]
    const T* class_token = p.class_token.as<T>();  // [d]
    const T* position = p.position.as<T>();        // [t + 1, d]
    T* out = p.out.as<T>();                        // [n, t + 1, d]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        const int64_t row = i / p.d, channel = i % p.d, image = row / (p.t + 1), at = row % (p.t + 1);
        const T from = at == 0 ? class_token[channel] : x[(image * p.t + at - 1) * p.d + channel];
        out[i] = from_f32<T>(to_f32(from) + to_f32(position[at * p.d + channel]));
    }
}

}  // namespace embed
