//! The sampler's steps over latents: classifier-free guidance, SLD, and the steps that unguidance enters.
//!
//! What a gate selects is selected, never multiplied: behind a closed gate the bits are those of the
//! unguided step, whatever the gradient holds.

use super::loops::{map, map2, vectorised};
use crate::plan::StepState;
use crate::tensor::Real;

/// `rows` = [uncond, cond] or [cond] over `z`: eps and x0.
pub fn cfg_x0<T: Real>(state: &StepState, z: &[T], rows: &[T], eps: &mut [T], x0: &mut [T]) {
    let guidance = T::from_f32(state.guidance);
    if rows.len() == z.len() {
        eps.copy_from_slice(rows);
    } else {
        let (uncond, cond) = rows.split_at(z.len());
        map2(eps, uncond, cond, |u, c| u + guidance * (c - u));
    }
    eps_and_x0(state, z, eps, x0);
}

/// Pull-back of dx0 to z and to the rows, [uncond, cond] or [cond].
pub fn cfg_x0_bwd<T: Real>(state: &StepState, dx0: &[T], dz: &mut [T], drows: &mut [T]) {
    let [from_z, from_m] = state.x0_from.map(T::from_f32);
    let guidance = T::from_f32(state.guidance);
    map(dz, dx0, |d| from_z * d);
    if drows.len() == dx0.len() {
        return map(drows, dx0, |d| from_m * d);
    }
    debug_assert_eq!(drows.len(), 2 * dx0.len());
    let (uncond, cond) = drows.split_at_mut(dx0.len());
    map(uncond, dx0, |d| (T::ONE - guidance) * (from_m * d));
    map(cond, dx0, |d| guidance * (from_m * d));
}

/// `rows` = [uncond, cond, safety]: eps, x0 and the next nu.
pub fn sld_x0<T: Real>(
    state: &StepState,
    z: &[T],
    rows: &[T],
    nu: &[T],
    eps: &mut [T],
    x0: &mut [T],
    next_nu: &mut [T],
) {
    let sld = state.sld;
    let (scale, threshold) = (T::from_f32(sld.scale), T::from_f32(sld.threshold));
    let (momentum, beta) = (T::from_f32(sld.momentum), T::from_f32(sld.beta));
    let guidance = T::from_f32(state.guidance);
    let (uncond, rest) = rows.split_at(z.len());
    let (cond, safety) = rest.split_at(z.len());
    for (i, (m, next)) in eps.iter_mut().zip(next_nu).enumerate() {
        let (u, c, s) = (uncond[i], cond[i], safety[i]);
        let phi = c - s;
        let size = (if phi < T::ZERO { -phi } else { phi }) * scale;
        let mu = if phi >= threshold {
            T::ZERO
        } else if size > T::ONE {
            T::ONE
        } else {
            size
        };
        let gamma = mu * (s - u) + momentum * nu[i];
        *next = beta * nu[i] + (T::ONE - beta) * gamma;
        let towards = if sld.warm { c - u - gamma } else { c - u };
        *m = u + guidance * towards;
    }
    eps_and_x0(state, z, eps, x0);
}

/// The DDIM step; `guide` is the gate of every image and the gradient. Outside of the guided window both are
/// left over from earlier steps.
pub fn ddim_unguide<T: Real>(
    state: &StepState,
    scale_log2: i32,
    [eps, x0, noise]: [&[T]; 3],
    guide: Option<(&[T], &[T])>,
    z: &mut [T],
    guided: &mut [T],
) {
    let factor = strength::<T>(state.gamma, scale_log2);
    select(guide.filter(|_| state.window), x0, guided, |x0, g| x0 - factor * g);
    let (from_x0, from_eps) = (T::from_f32(state.prev_x0), T::from_f32(state.prev_eps));
    map2(z, guided, eps, |x0, eps| from_x0 * x0 + from_eps * eps);
    if state.sigma > 0.0 {
        let sigma = T::from_f32(state.sigma);
        z.iter_mut().zip(noise).for_each(|(z, &noise)| *z += sigma * noise);
    }
}

/// Guidance in x_t space: eps' and x0' from (z, eps').
pub fn guide_eps<T: Real>(
    state: &StepState,
    scale_log2: i32,
    [z, eps, x0]: [&[T]; 3],
    (gate, g): (&[T], &[T]),
    guided: &mut [T],
    guided_x0: &mut [T],
) {
    if !state.window {
        guided.copy_from_slice(eps);
        guided_x0.copy_from_slice(x0);
        return;
    }
    let alpha = T::from_f32(state.alpha);
    let (signal, noise) = (alpha.sqrt(), (T::ONE - alpha).sqrt());
    let factor = strength::<T>(state.gamma, scale_log2) * noise;
    select(Some((gate, g)), eps, guided, |eps, g| eps + factor * g);
    let image = z.len() / gate.len().max(1);
    for (i, out) in guided_x0.iter_mut().enumerate() {
        *out = if gate[i / image] != T::ZERO { (z[i] - noise * guided[i]) / signal } else { x0[i] };
    }
}

/// x / sqrt(alpha).
pub fn frozen_pullback<T: Real>(state: &StepState, x: &[T], out: &mut [T]) {
    let signal = T::from_f32(state.alpha).sqrt();
    map(out, x, |x| x / signal);
}

/// From the model's output m, in `eps`: eps = eps_from . (z, m), x0 = x0_from . (z, m).
fn eps_and_x0<T: Real>(state: &StepState, z: &[T], eps: &mut [T], x0: &mut [T]) {
    let [x0_z, x0_m] = state.x0_from.map(T::from_f32);
    let [eps_z, eps_m] = state.eps_from.map(T::from_f32);
    map2(x0, z, eps, |z, m| x0_z * z + x0_m * m);
    vectorised(
        #[inline(always)]
        || eps.iter_mut().zip(z).for_each(|(eps, &z)| *eps = eps_z * z + eps_m * *eps),
    );
}

/// guided(x, g) for the images whose gate is open, x for the others. A gate that is not a number is open.
fn select<T: Real>(guide: Option<(&[T], &[T])>, x: &[T], out: &mut [T], guided: impl Fn(T, T) -> T + Sync) {
    out.copy_from_slice(x);
    let Some((gate, g)) = guide else { return };
    let image = (x.len() / gate.len().max(1)).max(1);
    let images = out.chunks_mut(image).zip(x.chunks(image).zip(g.chunks(image)));
    for ((out, (x, g)), &gate) in images.zip(gate) {
        if gate != T::ZERO {
            map2(out, x, g, &guided);
        }
    }
}

/// gamma 2^-scale_log2.
fn strength<T: Real>(gamma: f32, scale_log2: i32) -> T {
    T::from_f64(f64::from(gamma) * 2f64.powi(-scale_log2))
}
