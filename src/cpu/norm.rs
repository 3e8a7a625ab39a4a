//! Group and layer normalisation. Mean and variance take two passes over x and accumulate in f64, so
//! a large mean costs no digits; the mean is subtracted in two parts for the same reason.

use rayon::prelude::*;

use super::loops::{blocks, sum_f64, sum2_f64, vectorised};
use super::pointwise::{activation, slope};
use crate::ir::Activation;
use crate::tensor::Real;

/// Elements of an image that one task of a group norm's statistics sums.
const PART: usize = 1 << 16;

/// Channels whose gradients are held at once.
const STRIP: usize = 256;

/// Extents and constants of a group norm over `[n, pixels, c]`.
#[derive(Clone, Copy)]
pub struct Groups {
    pub pixels: usize,
    pub c: usize,
    pub groups: usize,
    pub eps: f32,
    pub act: Option<Activation>,
}

/// act(xhat gamma + beta).
pub fn group_norm<T: Real>(groups: Groups, x: &[T], gamma: &[T], beta: &[T], out: &mut [T]) {
    let norms = norms(groups, x);
    match groups.act {
        None => write_group_norm(groups, &norms, x, (gamma, beta), out, |y| y),
        Some(Activation::Silu) => {
            write_group_norm(groups, &norms, x, (gamma, beta), out, |y| activation(Activation::Silu, y));
        }
        Some(act) => write_group_norm(groups, &norms, x, (gamma, beta), out, |y| activation(act, y)),
    }
}

/// dx, from x again.
pub fn group_norm_bwd<T: Real>(
    groups: Groups,
    x: &[T],
    (gamma, beta): (&[T], &[T]),
    dy: &[T],
    out: &mut [T],
) {
    let norms = norms(groups, x);
    match groups.act {
        None => write_group_norm_bwd(groups, &norms, x, (gamma, beta), dy, out, |_| T::ONE),
        Some(Activation::Silu) => {
            let slope = |y| slope(Activation::Silu, y);
            write_group_norm_bwd(groups, &norms, x, (gamma, beta), dy, out, slope);
        }
        Some(act) => write_group_norm_bwd(groups, &norms, x, (gamma, beta), dy, out, |y| slope(act, y)),
    }
}

/// f64 numbers that a group norm of `n` images allocates at most, in the `backward` direction or forwards.
pub fn scratch(n: usize, groups: Groups, backward: bool) -> usize {
    let parts = groups.pixels.div_ceil((PART / groups.c).max(1));
    let sums = if backward { 2 } else { 1 };
    // Partial sums and their headers; totals, means and constants of all channels.
    n * parts * sums * (groups.c + 3) + 9 * n * groups.c
}

/// (x - mean) / sqrt(var + eps) gamma + beta over rows.
pub fn layer_norm<T: Real>(x: &[T], gamma: &[T], beta: &[T], eps: f32, out: &mut [T]) {
    let c = gamma.len();
    blocks(out, c, |first, out| {
        let x = &x[first * c..][..out.len()];
        for (out, x) in out.chunks_mut(c).zip(x.chunks(c)) {
            vectorised(
                #[inline(always)]
                || {
                    let row = RowNorm::of(x, eps);
                    for ((out, &x), (&gamma, &beta)) in out.iter_mut().zip(x).zip(gamma.iter().zip(beta)) {
                        *out = row.apply(x) * gamma + beta;
                    }
                },
            );
        }
    });
}

/// dx of [`layer_norm`].
pub fn layer_norm_bwd<T: Real>(x: &[T], gamma: &[T], dy: &[T], eps: f32, out: &mut [T]) {
    let c = gamma.len();
    blocks(out, c, |first, out| {
        let x = &x[first * c..][..out.len()];
        let dy = &dy[first * c..][..out.len()];
        for ((out, x), dy) in out.chunks_mut(c).zip(x.chunks(c)).zip(dy.chunks(c)) {
            vectorised(
                #[inline(always)]
                || {
                    let row = RowNorm::of(x, eps);
                    for (out, (&gamma, &dy)) in out.iter_mut().zip(gamma.iter().zip(dy)) {
                        *out = gamma * dy;
                    }
                    let mean = T::from_f64(sum_f64(out, T::to_f64) / c as f64);
                    let along = sum2_f64(out, x, |d, x| d.to_f64() * row.apply(x).to_f64());
                    let along = T::from_f64(along / c as f64);
                    for (out, &x) in out.iter_mut().zip(x) {
                        *out = row.factor * (*out - mean - row.apply(x) * along);
                    }
                },
            );
        }
    });
}

/// x -> (x - mean) factor; the mean in two parts, since f32 does not hold it to the last digit.
#[derive(Clone, Copy)]
struct RowNorm<T> {
    mean: T,
    rest: T,
    factor: T,
}

impl<T: Real> RowNorm<T> {
    fn new(mean: f64, variance: f64, eps: f32) -> Self {
        let high = T::from_f64(mean);
        let rest = T::from_f64(mean - high.to_f64());
        Self { mean: high, rest, factor: T::from_f64(1.0 / (variance + f64::from(eps)).sqrt()) }
    }

    #[inline(always)]
    fn of(row: &[T], eps: f32) -> Self {
        let mean = sum_f64(row, T::to_f64) / row.len() as f64;
        let variance = sum_f64(row, |x| (x.to_f64() - mean) * (x.to_f64() - mean)) / row.len() as f64;
        Self::new(mean, variance, eps)
    }

    #[inline(always)]
    fn apply(&self, x: T) -> T {
        (x - self.mean - self.rest) * self.factor
    }
}

/// The normalisation of every channel, `[n, c]`.
fn norms<T: Real>(groups: Groups, x: &[T]) -> Vec<RowNorm<T>> {
    let Groups { pixels, c, eps, .. } = groups;
    let [sums] = channel_sums(groups, x.len(), |_, i, sums: [&mut [f64]; 1]| {
        let [sums] = sums;
        sums.iter_mut().zip(&x[i..]).for_each(|(sum, &x)| *sum += x.to_f64());
    });
    let count = (pixels * c / groups.groups) as f64;
    let means = group_means(groups, &sums, count);
    let [squares] = channel_sums(groups, x.len(), |image, i, sums: [&mut [f64]; 1]| {
        let [sums] = sums;
        for (sum, (&x, &mean)) in sums.iter_mut().zip(x[i..].iter().zip(&means[image * c..])) {
            *sum += (x.to_f64() - mean) * (x.to_f64() - mean);
        }
    });
    let variances = group_means(groups, &squares, count);
    means.iter().zip(&variances).map(|(&mean, &variance)| RowNorm::new(mean, variance, eps)).collect()
}

/// Sums over the pixels, `[n, c]` each: `add(image, offset of a pixel, sums)` adds one pixel.
fn channel_sums<const N: usize>(
    Groups { pixels, c, .. }: Groups,
    len: usize,
    add: impl Fn(usize, usize, [&mut [f64]; N]) + Sync,
) -> [Vec<f64>; N] {
    let rows = (PART / c).max(1);
    let (images, parts) = (len / (pixels * c).max(1), pixels.div_ceil(rows));
    let partial: Vec<[Vec<f64>; N]> = (0..images * parts)
        .into_par_iter()
        .map(|part| {
            let (image, first) = (part / parts, part % parts * rows);
            let mut sums: [Vec<f64>; N] = std::array::from_fn(|_| vec![0.0; c]);
            vectorised(
                #[inline(always)]
                || {
                    for pixel in first..pixels.min(first + rows) {
                        add(image, (image * pixels + pixel) * c, sums.each_mut().map(|sums| &mut sums[..]));
                    }
                },
            );
            sums
        })
        .collect();
    std::array::from_fn(|which| {
        let mut total = vec![0.0; images * c];
        for (total, partial) in total.chunks_mut(c).zip(partial.chunks(parts)) {
            for part in partial {
                total.iter_mut().zip(&part[which]).for_each(|(total, part)| *total += part);
            }
        }
        total
    })
}

/// Every channel's group sum over `count`, `[n, c]`.
fn group_means(Groups { c, groups, .. }: Groups, sums: &[f64], count: f64) -> Vec<f64> {
    let width = c / groups;
    let means = sums.chunks(width).map(|sums| sums.iter().sum::<f64>() / count);
    means.flat_map(|mean| std::iter::repeat_n(mean, width)).collect()
}

fn write_group_norm<T: Real>(
    Groups { pixels, c, .. }: Groups,
    norms: &[RowNorm<T>],
    x: &[T],
    (gamma, beta): (&[T], &[T]),
    out: &mut [T],
    act: impl Fn(T) -> T + Sync,
) {
    blocks(out, c, |first, out| {
        vectorised(
            #[inline(always)]
            || {
                let x = &x[first * c..][..out.len()];
                for (i, (out, x)) in out.chunks_mut(c).zip(x.chunks(c)).enumerate() {
                    let norms = &norms[(first + i) / pixels * c..][..c];
                    let constants = norms.iter().zip(gamma.iter().zip(beta));
                    for ((out, &x), (norm, (&gamma, &beta))) in out.iter_mut().zip(x).zip(constants) {
                        *out = act(norm.apply(x) * gamma + beta);
                    }
                }
            },
        );
    });
}

fn write_group_norm_bwd<T: Real>(
    groups: Groups,
    norms: &[RowNorm<T>],
    x: &[T],
    (gamma, beta): (&[T], &[T]),
    dy: &[T],
    out: &mut [T],
    slope: impl Fn(T) -> T + Sync,
) {
    let Groups { pixels, c, .. } = groups;
    // The gradient with respect to xhat.
    let pull = |xhat: T, gamma: T, beta: T, dy: T| slope(xhat * gamma + beta) * dy * gamma;
    let [sums, along] = channel_sums(groups, x.len(), |image, i, [sums, along]: [&mut [f64]; 2]| {
        // One loop a result: the compiler gives up on loops over more arrays.
        let (x, dy, norms) = (&x[i..][..c], &dy[i..][..c], &norms[image * c..][..c]);
        let mut d = [T::ZERO; STRIP];
        for first in (0..c).step_by(STRIP) {
            let strip = first..c.min(first + STRIP);
            let (x, norms) = (&x[strip.clone()], &norms[strip.clone()]);
            let constants = gamma[strip.clone()].iter().zip(&beta[strip.clone()]);
            let elements = x.iter().zip(norms).zip(dy[strip.clone()].iter().zip(constants));
            for (d, ((&x, norm), (&dy, (&gamma, &beta)))) in d.iter_mut().zip(elements) {
                *d = pull(norm.apply(x), gamma, beta, dy);
            }
            sums[strip.clone()].iter_mut().zip(&d).for_each(|(sum, d)| *sum += d.to_f64());
            for (sum, (d, (&x, norm))) in along[strip].iter_mut().zip(d.iter().zip(x.iter().zip(norms))) {
                *sum += d.to_f64() * norm.apply(x).to_f64();
            }
        }
    });
    let count = (pixels * c / groups.groups) as f64;
    let means = group_means(groups, &sums, count);
    let alongs = group_means(groups, &along, count);
    let means: Vec<(T, T)> =
        means.iter().zip(&alongs).map(|(&m, &a)| (T::from_f64(m), T::from_f64(a))).collect();
    blocks(out, c, |first, out| {
        vectorised(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_mut(c).enumerate() {
                    let (row, image) = ((first + i) * c, (first + i) / pixels);
                    let elements = x[row..].iter().zip(&dy[row..]).zip(&norms[image * c..]);
                    let constants = means[image * c..].iter().zip(gamma.iter().zip(beta));
                    for ((out, ((&x, &dy), norm)), (&(mean, along), (&gamma, &beta))) in
                        out.iter_mut().zip(elements).zip(constants)
                    {
                        let xhat = norm.apply(x);
                        *out = norm.factor * (pull(xhat, gamma, beta, dy) - mean - xhat * along);
                    }
                }
            },
        );
    });
}
