//! Embeddings of tokens, patches and time steps, and unit rows.

use super::loops::{blocks, sum_f64};
use crate::tensor::Real;

/// token[id] + position[i], for sequences of `t` ids.
pub fn embed_text<T: Real>(ids: &[i32], t: usize, token: &[T], position: &[T], d: usize, out: &mut [T]) {
    for (i, (out, &id)) in out.chunks_mut(d.max(1)).zip(ids).enumerate() {
        let id = usize::try_from(id).expect("the tokenizer gives ids of its vocabulary");
        let (token, position) = (&token[id * d..][..d], &position[i % t * d..][..d]);
        out.iter_mut().zip(token.iter().zip(position)).for_each(|(out, (&token, &p))| *out = token + p);
    }
}

/// Class token, then `t` patches, plus positions.
pub fn embed_patches<T: Real>(x: &[T], t: usize, class: &[T], position: &[T], out: &mut [T]) {
    let d = class.len();
    blocks(out, d, |first, out| {
        for (i, out) in out.chunks_mut(d).enumerate() {
            let (image, i) = ((first + i) / (t + 1), (first + i) % (t + 1));
            let row = if i == 0 { class } else { &x[(image * t + i - 1) * d..][..d] };
            let position = &position[i * d..][..d];
            out.iter_mut().zip(row.iter().zip(position)).for_each(|(out, (&x, &p))| *out = x + p);
        }
    });
}

/// Sines and cosines of t exp(-ln(10000) i / (half - shift)); cosines first if `flip`.
pub fn timestep_embedding<T: Real>(timestep: f64, flip: bool, shift: f32, out: &mut [T]) {
    let half = out.len() / 2;
    let (first, second) = out.split_at_mut(half);
    let (sines, cosines) = if flip { (second, first) } else { (first, second) };
    for (i, (sine, cosine)) in sines.iter_mut().zip(cosines).enumerate() {
        // The first frequency is 1 also where the quotient is 0 / 0.
        let exponent = if i == 0 { 0.0 } else { i as f64 / (half as f64 - f64::from(shift)) };
        let angle = timestep * (-(10_000f64.ln()) * exponent).exp();
        (*sine, *cosine) = (T::from_f64(angle.sin()), T::from_f64(angle.cos()));
    }
}

/// x / |x| of rows of `d`.
pub fn normalise<T: Real>(x: &[T], d: usize, out: &mut [T]) {
    blocks(out, d, |first, out| {
        let x = &x[first * d..][..out.len()];
        for (out, x) in out.chunks_mut(d).zip(x.chunks(d)) {
            let length = sum_f64(x, |x| x.to_f64() * x.to_f64()).sqrt();
            out.iter_mut().zip(x).for_each(|(out, &x)| *out = T::from_f64(x.to_f64() / length));
        }
    });
}
