//! Classifier-free guidance and one DDIM step on plain slices.
//!
//! These are the formulas that the fused ops `cfg_x0` and `ddim_unguide` are judged by: as short as they can
//! be, generic over the type they compute in. All slices of one call have equal lengths.

use super::StepCoefficients;
use crate::tensor::Real;

/// `uncond + scale (cond - uncond)`, on whatever the model predicts.
pub fn cfg<T: Real>(uncond: &[T], cond: &[T], scale: f64) -> Vec<T> {
    let scale = T::from_f64(scale);
    uncond.iter().zip(cond).map(|(&u, &c)| u + scale * (c - u)).collect()
}

/// `(x0, eps)` from the noisy latent `z` and the model's (guided) prediction `m`.
pub fn predict<T: Real>(z: &[T], m: &[T], step: &StepCoefficients) -> (Vec<T>, Vec<T>) {
    let combine = |[a, b]: [f64; 2]| {
        let (a, b) = (T::from_f64(a), T::from_f64(b));
        z.iter().zip(m).map(|(&z, &m)| a * z + b * m).collect()
    };
    (combine(step.x0_from), combine(step.eps_from))
}

/// The less noisy latent. `noise` is read only where the step's sigma is not zero.
pub fn ddim_step<T: Real>(x0: &[T], eps: &[T], noise: &[T], step: &StepCoefficients) -> Vec<T> {
    let (prev_x0, prev_eps) = (T::from_f64(step.prev_x0), T::from_f64(step.prev_eps));
    let quiet = x0.iter().zip(eps).map(|(&x0, &eps)| prev_x0 * x0 + prev_eps * eps);
    if step.sigma == 0.0 {
        return quiet.collect();
    }
    let sigma = T::from_f64(step.sigma);
    quiet.zip(noise).map(|(z, &noise)| z + sigma * noise).collect()
}
