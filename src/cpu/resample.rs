//! Nearest-neighbour enlargement and bicubic resizing, with their adjoints.
//!
//! Bicubic resizing is two sums over taps, first along columns, then along lines. The adjoint is the same
//! sum over the transposed taps, lines first, so one routine serves both.

use super::loops::blocks;
use crate::tensor::{Real, Shape};

/// y[i, j] = x[floor(i h / height), floor(j w / width)].
pub fn upsample<T: Real>(x: &[T], shape: &Shape, (height, width): (usize, usize), out: &mut [T]) {
    let (h, w, c) = (shape[1], shape[2], shape[3]);
    blocks(out, width * c, |first, out| {
        for (i, line) in out.chunks_mut(width * c).enumerate() {
            let (image, i) = ((first + i) / height, (first + i) % height);
            let source = &x[(image * h + i * h / height) * w * c..][..w * c];
            for (j, pixel) in line.chunks_mut(c).enumerate() {
                pixel.copy_from_slice(&source[j * w / width * c..][..c]);
            }
        }
    });
}

/// Sum over the pixels that were copied; `shape` is that of dy, `h` x `w` the size returned to.
pub fn upsample_bwd<T: Real>(dy: &[T], shape: &Shape, (h, w): (usize, usize), out: &mut [T]) {
    let (height, width, c) = (shape[1], shape[2], shape[3]);
    // The i with floor(i h / height) = y.
    let copies = |y: usize, h: usize, height: usize| (y * height).div_ceil(h)..((y + 1) * height).div_ceil(h);
    blocks(out, w * c, |first, out| {
        for (i, line) in out.chunks_mut(w * c).enumerate() {
            let (image, y) = ((first + i) / h, (first + i) % h);
            for (x, pixel) in line.chunks_mut(c).enumerate() {
                pixel.fill(T::ZERO);
                for i in copies(y, h, height) {
                    for j in copies(x, w, width) {
                        let dy = &dy[((image * height + i) * width + j) * c..][..c];
                        pixel.iter_mut().zip(dy).for_each(|(sum, &dy)| *sum += dy);
                    }
                }
            }
        }
    });
}

/// Bicubic, then (u - mean) / std a channel.
pub fn resample<T: Real>(
    x: &[T],
    shape: &Shape,
    (height, width): (usize, usize),
    (mean, std): ([f32; 3], [f32; 3]),
    out: &mut [T],
) {
    let (h, w) = (shape[1], shape[2]);
    let half = along_columns(x, w, &bicubic(w, width), 3);
    along_lines(&half, h, &bicubic(h, height), width * 3, out);
    let (mean, std) = (mean.map(T::from_f32), std.map(T::from_f32));
    blocks(out, 3, |_, out| {
        for pixel in out.chunks_mut(3) {
            for ((u, &mean), &std) in pixel.iter_mut().zip(&mean).zip(&std) {
                *u = (*u - mean) / std;
            }
        }
    });
}

/// The adjoint; `shape` is that of dy, `h` x `w` the size returned to.
pub fn resample_bwd<T: Real>(dy: &[T], shape: &Shape, (h, w): (usize, usize), std: [f32; 3], out: &mut [T]) {
    let (height, width) = (shape[1], shape[2]);
    let std = std.map(T::from_f32);
    let mut scaled = vec![T::ZERO; dy.len()];
    for (out, dy) in scaled.chunks_mut(3).zip(dy.chunks(3)) {
        for ((out, &dy), &std) in out.iter_mut().zip(dy).zip(&std) {
            *out = dy / std;
        }
    }
    let mut half = vec![T::ZERO; dy.len() / height * h];
    along_lines(&scaled, height, &transposed(&bicubic(h, height), h), width * 3, &mut half);
    out.copy_from_slice(&along_columns(&half, width, &transposed(&bicubic(w, width), w), 3));
}

/// For every output position, the input positions that it reads and their weights.
type Taps<T> = Vec<Vec<(usize, T)>>;

/// Bicubic taps, a = -0.75, half-pixel centres, positions beyond the edge moved to it.
fn bicubic<T: Real>(from: usize, to: usize) -> Taps<T> {
    const A: f64 = -0.75;
    let near = |t: f64| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0; // |t| <= 1
    let far = |t: f64| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A; // 1 <= |t| <= 2
    let taps_of = |i: usize| {
        let position = from as f64 / to as f64 * (i as f64 + 0.5) - 0.5;
        let t = position - position.floor();
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        let first = position.floor() - 1.0;
        let last = (from - 1) as f64;
        let tap = |(k, w)| ((first + k as f64).clamp(0.0, last) as usize, T::from_f64(w));
        weights.into_iter().enumerate().map(tap).collect()
    };
    (0..to).map(taps_of).collect()
}

/// For every input position, the output positions that read it.
fn transposed<T: Real>(taps: &Taps<T>, from: usize) -> Taps<T> {
    let mut readers = vec![Vec::new(); from];
    for (i, taps) in taps.iter().enumerate() {
        taps.iter().for_each(|&(source, weight)| readers[source].push((i, weight)));
    }
    readers
}

/// Sums over taps along the columns of lines of `w` pixels.
fn along_columns<T: Real>(x: &[T], w: usize, taps: &Taps<T>, c: usize) -> Vec<T> {
    let mut out = vec![T::ZERO; x.len() / w * taps.len()];
    blocks(&mut out, taps.len() * c, |first, out| {
        let lines = out.chunks_mut(taps.len() * c).zip(x[first * w * c..].chunks(w * c));
        for (out, x) in lines {
            for (out, taps) in out.chunks_mut(c).zip(taps) {
                for &(source, weight) in taps {
                    out.iter_mut().zip(&x[source * c..]).for_each(|(out, &x)| *out += weight * x);
                }
            }
        }
    });
    out
}

/// Sums over taps along images of `h` lines of `len` elements.
fn along_lines<T: Real>(x: &[T], h: usize, taps: &Taps<T>, len: usize, out: &mut [T]) {
    blocks(out, len, |first, out| {
        for (i, out) in out.chunks_mut(len).enumerate() {
            let (image, i) = ((first + i) / taps.len(), (first + i) % taps.len());
            out.fill(T::ZERO);
            for &(source, weight) in &taps[i] {
                let line = &x[(image * h + source) * len..][..len];
                out.iter_mut().zip(line).for_each(|(out, &x)| *out += weight * x);
            }
        }
    });
}
