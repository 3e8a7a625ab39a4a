// layout - elements in other places, with their bits as they are; and the sum that is an adjoint of copying.
//
//     place         out[row][start + i] = x[first + row stride + i] for i < len; beside it y's row, or zero
//     gather_token  out[n] = x[n][index[n]]
//     sum_batch     out = sum over the copies of which x consists, in their order
//
// Concatenation, slices and padding of channels, tokens and batches, and repetition are `place` with other numbers
// (src/launch/layout.rs). Where `state` is given it leads to the index of the sample, or step, of x and out.
//
// Departures from the formulas: an element of `place` may be 16 bytes, eight of a storage type, where all numbers are
// multiples of eight; between two types it converts. A token that is not there stops gather_token.
//
// Reference: src/cpu/layout.rs. Class: exact; sum_batch: rounded. Bound by: DRAM, one read and one write an element.
#include "params.cuh"
#include "vec.cuh"

namespace layout {

constexpr int THREADS = 256;

template <typename T>
DEVICE void convert(T& out, const T& x) {
    out = x;
}
template <typename From, typename To>
DEVICE void convert(To& out, const From& x) {
    out = from_f32<To>(to_f32(x));
}

template <typename From, typename To>
__device__ void place(const PlaceParams& p) {
    const int64_t sample = p.state.address != 0 ? *p.state.as<int32_t>() : 0;  // or the step
    const From* x = p.x.as<From>() + sample * p.x_sample + p.first;  // [rows, len of stride]
    const From* y = p.y.as<From>();                                  // [rows, width - len], or none
    To* out = p.out.as<To>() + sample * p.out_sample;                // [rows, width]
    for (int64_t i = grid_thread(); i < p.rows * p.width; i += grid_threads()) {
        const int64_t row = i / p.width, at = i % p.width - p.start;
        To value{};
        if (at >= 0 && at < p.len)
            convert(value, x[row * p.stride + at]);
        else if (y != nullptr)
            convert(value, y[row * (p.width - p.len) + at - p.len]);
        out[i] = value;
    }
}

template <typename T>
__device__ void gather_token(const GatherParams& p) {
    const T* x = p.x.as<T>();                        // [n, t, d]
    const int32_t* index = p.index.as<int32_t>();  // [n]
    T* out = p.out.as<T>();                          // [n, d]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        const int64_t n = i / p.d;
        const int32_t token = index[n];
        KERNEL_ASSERT(token >= 0 && token < p.t);
        out[i] = x[(n * p.t + token) * p.d + i % p.d];
    }
}

template <typename T>
__device__ void sum_batch(const SumCopiesParams& p) {
    const T* x = p.x.as<T>();  // [times, count]
    T* out = p.out.as<T>();    // [count]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        float sum = to_f32(x[i]);
        for (int copy = 1; copy < p.times; ++copy) sum += to_f32(x[copy * p.count + i]);
        out[i] = from_f32<T>(sum);
    }
}

}  // namespace layout
