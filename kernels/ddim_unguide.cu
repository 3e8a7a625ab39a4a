// ddim_unguide - the sampler's steps over latents, each tensor read once and written once.
//
//     cfg_x0          m = m_u + guidance (m_c - m_u);  eps = eps_from . (z, m);  x0 = x0_from . (z, m)
//     cfg_x0_bwd      dz = x0_from[0] dx0;  drows = x0_from[1] dx0 (1 - guidance, guidance)
//     sld_x0          phi = m_c - m_s;  mu = phi >= threshold ? 0 : min(|phi| scale, 1)
//                     gamma = mu (m_s - m_u) + momentum nu;  nu' = beta nu + (1 - beta) gamma
//                     m = m_u + guidance (m_c - m_u - (warm ? gamma : 0)), then as cfg_x0
//     ddim_unguide    x0' = gate ? x0 - gamma 2^-scale_log2 g : x0
//                     z' = prev_x0 x0' + prev_eps eps + sigma noise
//     guide_eps       eps' = gate ? eps + gamma sqrt(1 - alpha) 2^-scale_log2 g : eps;  x0' from (z, eps')
//     frozen_pullback out = x / sqrt(alpha)
//
// Departures from the formulas, for safety:
//   1. The gate selects, it never multiplies: behind a closed gate the bits are those of the unguided step,
//      whatever g holds. A gate that is not a number is open.
//   2. Outside of the guided window every gate counts as shut, and g is not read.
//   3. Noise is read, or drawn, where sigma > 0 only. Drawn, element (channel, pixel) of an image is element
//      channel pixels + pixel of draw `draw` + step of its seed, as src/sampler/noise.rs would draw it on the host.
// z, eps, x0, noise and nu are f32; the UNet's rows and g are in the storage type T.
//
// Reference: src/cpu/sampler_ops.rs. Class: rounded. Bound by: DRAM, bytes an element: cfg_x0 16 (one row: 14),
// sld_x0 26, cfg_x0_bwd 12 (10), guide_eps 20 and g's 2, frozen_pullback 4; ddim_unguide 16, g's 2 where a gate is
// open, noise's 4 where it is read and none where it is drawn.
#include "params.cuh"
#include "philox.cuh"

namespace ddim_unguide {

constexpr int THREADS = 256;

DEVICE float eps_of(const StepState& s, float z, float m) { return s.eps_from[0] * z + s.eps_from[1] * m; }
DEVICE float x0_of(const StepState& s, float z, float m) { return s.x0_from[0] * z + s.x0_from[1] * m; }

template <typename T>
__device__ void cfg_x0(const CfgX0Params& p) {
    const StepState& s = *p.state.as<StepState>();
    const float* z = p.z.as<float>();  // [count]
    const T* rows = p.rows.as<T>();    // [copies, count]: uncond, cond; or cond alone
    float* eps = p.eps.as<float>();    // [count]
    float* x0 = p.x0.as<float>();      // [count]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        float m = to_f32(rows[i]);
        if (p.copies == 2) m = m + s.guidance * (to_f32(rows[p.count + i]) - m);
        eps[i] = eps_of(s, z[i], m);
        x0[i] = x0_of(s, z[i], m);
    }
}

template <typename T>
__device__ void cfg_x0_bwd(const CfgX0BwdParams& p) {
    const StepState& s = *p.state.as<StepState>();
    const float* dx0 = p.dx0.as<float>();  // [count]
    float* dz = p.dz.as<float>();          // [count]
    T* drows = p.drows.as<T>();            // [copies, count]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        const float d = dx0[i], dm = s.x0_from[1] * d;
        dz[i] = s.x0_from[0] * d;
        if (p.copies == 2) {
            drows[i] = from_f32<T>((1.f - s.guidance) * dm);
            drows[p.count + i] = from_f32<T>(s.guidance * dm);
        } else {
            drows[i] = from_f32<T>(dm);
        }
    }
}

template <typename T>
__device__ void sld_x0(const SldX0Params& p) {
    const StepState& s = *p.state.as<StepState>();
    const float* z = p.z.as<float>();         // [count]
    const T* rows = p.rows.as<T>();           // [3, count]: uncond, cond, safety
    const float* nu = p.nu.as<float>();       // [count]
    float* eps = p.eps.as<float>();           // [count]
    float* x0 = p.x0.as<float>();             // [count]
    float* next_nu = p.next_nu.as<float>();   // [count], may be nu
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        const float m_u = to_f32(rows[i]), m_c = to_f32(rows[p.count + i]), m_s = to_f32(rows[2 * p.count + i]);
        const float phi = m_c - m_s, size = fabsf(phi) * s.sld_scale;
        const float mu = phi >= s.sld_threshold ? 0.f : size > 1.f ? 1.f : size;
        const float gamma = mu * (m_s - m_u) + s.sld_momentum * nu[i];
        next_nu[i] = s.sld_beta * nu[i] + (1.f - s.sld_beta) * gamma;
        const float towards = s.sld_warm ? m_c - m_u - gamma : m_c - m_u;
        const float m = m_u + s.guidance * towards;
        eps[i] = eps_of(s, z[i], m);
        x0[i] = x0_of(s, z[i], m);
    }
}

// The noise of element i of a batch whose images are [pixels, c].
DEVICE float drawn(const DdimUnguideParams& p, const StepState& s, const uint64_t* seeds, int64_t i) {
    const int64_t at = i % p.image, pixel = at / p.c, channel = at % p.c;
    return philox::normal(seeds[i / p.image], uint64_t(p.draw + s.step), uint64_t(channel * (p.image / p.c) + pixel));
}

template <typename T>
__device__ void ddim_unguide(const DdimUnguideParams& p) {
    const StepState& s = *p.state.as<StepState>();
    const float* eps = p.eps.as<float>();      // [n, image]
    const float* x0 = p.x0.as<float>();        // [n, image]
    const float* noise = p.noise.as<float>();  // [n, image], read where sigma > 0
    const uint64_t* seeds = p.seeds.as<uint64_t>();  // [n], or none
    const float* gate = p.gate.as<float>();    // [n], or none
    const T* g = p.g.as<T>();                  // [n, image], times 2^scale_log2
    float* z = p.z.as<float>();                // [n, image]
    float* guided = p.guided.as<float>();      // [n, image]
    const float strength = ldexpf(s.gamma, -p.scale_log2);
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        const bool open = gate != nullptr && s.window && gate[i / p.image] != 0.f;
        const float x = open ? x0[i] - strength * to_f32(g[i]) : x0[i];
        float next = s.prev_x0 * x + s.prev_eps * eps[i];
        if (s.sigma > 0.f) next = next + s.sigma * (seeds == nullptr ? noise[i] : drawn(p, s, seeds, i));
        guided[i] = x;
        z[i] = next;
    }
}

template <typename T>
__device__ void guide_eps(const GuideEpsParams& p) {
    const StepState& s = *p.state.as<StepState>();
    const float* z = p.z.as<float>();              // [n, image]
    const float* eps = p.eps.as<float>();          // [n, image]
    const float* x0 = p.x0.as<float>();            // [n, image]
    const float* gate = p.gate.as<float>();        // [n]
    const T* g = p.g.as<T>();                      // [n, image], times 2^scale_log2
    float* guided = p.guided.as<float>();          // [n, image]
    float* guided_x0 = p.guided_x0.as<float>();    // [n, image]
    const float signal = sqrtf(s.alpha), noise = sqrtf(1.f - s.alpha);
    const float strength = ldexpf(s.gamma, -p.scale_log2) * noise;
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) {
        const bool open = s.window && gate[i / p.image] != 0.f;
        const float steered = open ? eps[i] + strength * to_f32(g[i]) : eps[i];
        guided[i] = steered;
        guided_x0[i] = open ? (z[i] - noise * steered) / signal : x0[i];
    }
}

template <typename T>
__device__ void frozen_pullback(const FrozenPullbackParams& p) {
    const float signal = sqrtf(p.state.as<StepState>()->alpha);
    const T* x = p.x.as<T>();  // [count]
    T* out = p.out.as<T>();    // [count]
    for (int64_t i = grid_thread(); i < p.count; i += grid_threads()) out[i] = from_f32<T>(to_f32(x[i]) / signal);
}

}  // namespace ddim_unguide
