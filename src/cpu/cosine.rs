//! Scores of the concepts, their density, the gate and the gradient, for one image after the other.
//!
//! With v = sum_k w_k c_k, where w_k = d log p_h / d s_k, the normalisation u = e / |e| passes on the part of v
//! that is orthogonal to u: de = 2^scale_log2 (v - <v, u> u) / |e|. |e|^2 is clamped from below; there u is
//! linear in e and the radial term is dropped. All arithmetic is f64; results are rounded once.

use super::loops::sum2_f64;
use crate::ir::Reduce;
use crate::safety::density;
use crate::tensor::Real;

/// Below this squared length an embedding counts as having exactly this one.
const MIN_SQUARED_LENGTH: f64 = 1e-24;
/// Attributes of the operation and the step's threshold.
#[derive(Clone, Copy)]
pub struct Attributes {
    pub reduce: Reduce,
    pub top_k: Option<usize>,
    pub scale_log2: i32,
    pub threshold: f32,
}

/// Outputs of one image.
pub struct Scores<'a, T> {
    pub scores: &'a mut [T],
    pub p_h: &'a mut T,
    pub gate: &'a mut T,
    pub de: &'a mut [T],
    /// 0: as meant; 1: p_h was too small, the gradient is that of the largest score; 2: not finite.
    pub status: &'a mut T,
}

/// One image: `e [d]`, `concepts [k, d]` unit rows.
pub fn clip_cosine<T: Real>(attributes: Attributes, e: &[T], concepts: &[T], out: Scores<T>) {
    let d = e.len();
    let squared = sum2_f64(e, e, |a, b| a.to_f64() * b.to_f64());
    let clamped = squared < MIN_SQUARED_LENGTH;
    let length = if clamped { MIN_SQUARED_LENGTH } else { squared }.sqrt();
    let dots = concepts.chunks(d).map(|c| sum2_f64(e, c, |e, c| e.to_f64() * c.to_f64()));
    for (score, dot) in out.scores.iter_mut().zip(dots) {
        *score = T::from_f64(dot / length);
    }
    let threshold = T::from_f32(attributes.threshold);
    let below = |s: &T| *s < threshold;
    *out.gate = if out.scores.iter().all(below) { T::ZERO } else { T::ONE };

    let scores: Vec<f64> = out.scores.iter().map(|s| s.to_f64()).collect();
    let density = density(&scores, attributes.reduce, attributes.top_k);
    *out.p_h = T::from_f64(density.p_h);
    *out.status = T::from_f64(if density.fault { 2.0 } else { f64::from(u8::from(density.fallback)) });
    if density.fault {
        out.de.fill(T::ZERO);
        return;
    }

    let mut v = vec![0.0; d];
    for (weight, concept) in density.dscores.iter().zip(concepts.chunks(d)) {
        v.iter_mut().zip(concept).for_each(|(v, c)| *v += weight * c.to_f64());
    }
    let along: f64 = v.iter().zip(e).map(|(v, e)| v * e.to_f64()).sum();
    let radial = if clamped { 0.0 } else { along / (length * length) };
    let factor = 2f64.powi(attributes.scale_log2) / length;
    for ((de, v), e) in out.de.iter_mut().zip(v).zip(e) {
        *de = T::from_f64((v - radial * e.to_f64()) * factor);
    }
}
