// pointwise - operations on one element at a time: activations, GEGLU, sums, casts, layout, time embedding.
//
//     activate          out = f(x)                        activate_bwd   out = f'(x) dy
//     geglu             out = a gelu(b), x = [a, b] in halves of a row of 2 c
//     geglu_bwd         out = [gelu(b) dy, a gelu'(b) dy]
//     geglu_bwd_pairs   the same where x and out have a and b of a channel side by side
//     add               out = x + y                       affine         out = mul x + add
//     add_channels      out = x + v, v one row of c for every image or for all
//     cast              out = x, in another storage type
//     timestep          out = [sin, cos] of t exp(-ln(10000) i / (half - shift)); [cos, sin] if flip
//     to_nhwc, to_nchw  out = x, channels last or first
//
// Functions named ..8 take eight elements at a time, from addresses that are multiples of 16 bytes: for geglu8 and
// add_channels8 c is a multiple of eight, elsewhere the elements beyond the last eight are taken one by one.
//
// Departures from the formulas: none. Every element is read once and written once; a grid-stride loop takes any
// count, and but for ..8 no alignment beyond an element's own is asked for.
//
// Reference: src/cpu/pointwise.rs, src/cpu/embed.rs (timestep). Class: rounded; layout: exact.
// Bound by: DRAM, the bytes of operands and result.
#include "activation.cuh"
#include "params.cuh"
#include "vec.cuh"

namespace pointwise {

constexpr int THREADS = 256;

template <typename T>
__device__ void activate(const PointwiseParams& p) {
    const T* x = p.x.as<T>();  // [count]
    T* out = p.out.as<T>();    // [count]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads())
        out[i] = from_f32<T>(activation::value(p.activation, to_f32(x[i])));
}

template <typename T>
__device__ void activate_bwd(const PointwiseParams& p) {
    const T* x = p.x.as<T>();   // [count]
    const T* dy = p.y.as<T>();  // [count]
    T* dx = p.out.as<T>();      // [count]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads())
        dx[i] = from_f32<T>(activation::slope(p.activation, to_f32(x[i])) * to_f32(dy[i]));
}

template <typename T>
__device__ void geglu(const PointwiseParams& p) {
    const T* x = p.x.as<T>();  // [count / c, 2 c]
    T* out = p.out.as<T>();    // [count / c, c]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        const int64_t a_at = i + i / p.c * p.c;
        const float a = to_f32(x[a_at]), b = to_f32(x[a_at + p.c]);
        out[i] = from_f32<T>(a * activation::value(activation::GELU, b));
    }
}

template <typename T>
__device__ void geglu_bwd(const PointwiseParams& p) {
    const T* x = p.x.as<T>();   // [count / c, 2 c]
    const T* dy = p.y.as<T>();  // [count / c, c]
    T* dx = p.out.as<T>();      // [count / c, 2 c]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        const int64_t a_at = i + i / p.c * p.c;
        const float a = to_f32(x[a_at]), b = to_f32(x[a_at + p.c]), d = to_f32(dy[i]);
        dx[a_at] = from_f32<T>(activation::value(activation::GELU, b) * d);
        dx[a_at + p.c] = from_f32<T>(a * activation::slope(activation::GELU, b) * d);
    }
}

template <typename T>
__device__ void add(const PointwiseParams& p) {
    const T* x = p.x.as<T>();  // [count]
    const T* y = p.y.as<T>();  // [count]
    T* out = p.out.as<T>();    // [count]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads())
        out[i] = from_f32<T>(to_f32(x[i]) + to_f32(y[i]));
}

template <typename T>
__device__ void add_channels(const PointwiseParams& p) {
    const T* x = p.x.as<T>();  // [n, image / c, c]
    const T* v = p.y.as<T>();  // [n or 1, c]
    T* out = p.out.as<T>();    // [n, image / c, c]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        const int64_t n = p.image > 0 ? i / p.image : 0;
        out[i] = from_f32<T>(to_f32(x[i]) + to_f32(v[n * p.c + i % p.c]));
    }
}

template <typename T>
__device__ void affine(const PointwiseParams& p) {
    const T* x = p.x.as<T>();  // [count]
    T* out = p.out.as<T>();    // [count]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads())
        out[i] = from_f32<T>(p.mul * to_f32(x[i]) + p.add);
}

// out[i] = f(x[i]), eight at a time.
template <typename T, typename F>
DEVICE void map8(const T* x, T* out, int64_t count, F f) {
    for (int64_t i = 8 * grid_thread(); i + 8 <= count; i += 8 * grid_threads()) {
        float at[8];
        load8(at, x + i);
        for (int k = 0; k < 8; ++k) at[k] = f(at[k]);
        store8(out + i, at);
    }
    const int64_t i = count / 8 * 8 + grid_thread();
    if (i < count) out[i] = from_f32<T>(f(to_f32(x[i])));
}

// out[i] = f(x[i], y[i]), eight at a time.
template <typename T, typename F>
DEVICE void zip8(const T* x, const T* y, T* out, int64_t count, F f) {
    for (int64_t i = 8 * grid_thread(); i + 8 <= count; i += 8 * grid_threads()) {
        float at[8], other[8];
        load8(at, x + i);
        load8(other, y + i);
        for (int k = 0; k < 8; ++k) at[k] = f(at[k], other[k]);
        store8(out + i, at);
    }
    const int64_t i = count / 8 * 8 + grid_thread();
    if (i < count) out[i] = from_f32<T>(f(to_f32(x[i]), to_f32(y[i])));
}

template <typename T, int ACT>
__device__ void activate8(const PointwiseParams& p) {
    map8(p.x.as<T>(), p.out.as<T>(), p.count, [](float x) { return activation::value(ACT, x); });
}

template <typename T, int ACT>
__device__ void activate_bwd8(const PointwiseParams& p) {
    zip8(p.x.as<T>(), p.y.as<T>(), p.out.as<T>(), p.count,
         [](float x, float dy) { return activation::slope(ACT, x) * dy; });
}

template <typename T>
__device__ void add8(const PointwiseParams& p) {
    zip8(p.x.as<T>(), p.y.as<T>(), p.out.as<T>(), p.count, [](float x, float y) { return x + y; });
}

template <typename T>
__device__ void affine8(const PointwiseParams& p) {
    const float mul = p.mul, add = p.add;
    map8(p.x.as<T>(), p.out.as<T>(), p.count, [mul, add](float x) { return mul * x + add; });
}

template <typename T>
__device__ void add_channels8(const PointwiseParams& p) {
    const T* x = p.x.as<T>();  // [n, image / c, c]
    const T* v = p.y.as<T>();  // [n or 1, c]
    T* out = p.out.as<T>();    // [n, image / c, c]
    for (int64_t i = 8 * grid_thread(); i < p.count; i += 8 * grid_threads()) {
        const int64_t row = p.image > 0 ? i / p.image * p.c : 0;
        float at[8], other[8];
        load8(at, x + i);
        load8(other, v + row + i % p.c);
        for (int k = 0; k < 8; ++k) at[k] += other[k];
        store8(out + i, at);
    }
}

template <typename T>
__device__ void geglu8(const PointwiseParams& p) {
    const T* x = p.x.as<T>();  // [count / c, 2 c]
    T* out = p.out.as<T>();    // [count / c, c]
    for (int64_t i = 8 * grid_thread(); i < p.count; i += 8 * grid_threads()) {
        const int64_t a_at = i + i / p.c * p.c;
        float a[8], b[8];
        load8(a, x + a_at);
        load8(b, x + a_at + p.c);
        for (int k = 0; k < 8; ++k) a[k] *= activation::value(activation::GELU, b[k]);
        store8(out + i, a);
    }
}

template <typename T>
__device__ void geglu_bwd8(const PointwiseParams& p) {
    const T* x = p.x.as<T>();   // [count / c, 2 c]
    const T* dy = p.y.as<T>();  // [count / c, c]
    T* dx = p.out.as<T>();      // [count / c, 2 c]
    for (int64_t i = 8 * grid_thread(); i < p.count; i += 8 * grid_threads()) {
        const int64_t a_at = i + i / p.c * p.c;
        float a[8], b[8], d[8], da[8];
        load8(a, x + a_at);
        load8(b, x + a_at + p.c);
        load8(d, dy + i);
        for (int k = 0; k < 8; ++k) {
            da[k] = activation::value(activation::GELU, b[k]) * d[k];
            b[k]  = a[k] * activation::slope(activation::GELU, b[k]) * d[k];
        }
        store8(dx + a_at, da);
        store8(dx + a_at + p.c, b);
    }
}

template <typename T>
__device__ void geglu_bwd_pairs(const PointwiseParams& p) {
    const T* x = p.x.as<T>();   // [count, 2]
    const T* dy = p.y.as<T>();  // [count]
    T* dx = p.out.as<T>();      // [count, 2]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        float at[4], slopes[4];
        load_vector<2>(at, x + 2 * i);
        const float d = to_f32(dy[i]);
        slopes[0] = activation::value(activation::GELU, at[1]) * d;
        slopes[1] = at[0] * activation::slope(activation::GELU, at[1]) * d;
        store_vector<2>(dx + 2 * i, slopes);
    }
}

template <typename From, typename To>
__device__ void cast(const PointwiseParams& p) {
    const From* x = p.x.as<From>();  // [count]
    To* out = p.out.as<To>();        // [count]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) out[i] = from_f32<To>(to_f32(x[i]));
}

template <typename T>
__device__ void timestep(const TimestepParams& p) {
    const int half = p.channels / 2;
    // A row for every t: those of an operand, or the one that StepState begins with.
    const float t = p.state.as<float>()[blockIdx.x];
    T* out = p.out.as<T>() + int64_t(blockIdx.x) * p.channels;  // [n, channels]
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        // The first frequency is 1 also where the quotient is 0 / 0.
        const float exponent = i == 0 ? 0.f : float(i) / (float(half) - p.shift);
        const float angle = t * expf(-9.210340371976184f * exponent);
        out[i] = from_f32<T>(p.flip ? cosf(angle) : sinf(angle));
        out[half + i] = from_f32<T>(p.flip ? sinf(angle) : cosf(angle));
    }
}

template <typename From, typename To>
__device__ void to_nhwc(const LayoutParams& p) {
    const From* x = p.x.as<From>();  // [n, c, pixels]
    To* out = p.out.as<To>();        // [n, pixels, c]
    const int64_t image = p.pixels * p.c;
    for (int64_t i = grid_thread(); i < image * p.n; i += grid_threads()) {
        const int64_t n = i / image, pixel = i % image / p.c, channel = i % p.c;
        out[i] = from_f32<To>(to_f32(x[n * image + channel * p.pixels + pixel]));
    }
}

template <typename From, typename To>
__device__ void to_nchw(const LayoutParams& p) {
    const From* x = p.x.as<From>();  // [n, pixels, c]
    To* out = p.out.as<To>();        // [n, c, pixels]
    const int64_t image = p.pixels * p.c;
    for (int64_t i = grid_thread(); i < image * p.n; i += grid_threads()) {
        const int64_t n = i / image, channel = i % image / p.pixels, pixel = i % p.pixels;
        out[i] = from_f32<To>(to_f32(x[n * image + pixel * p.c + channel]));
    }
}

}  // namespace pointwise
