//! Operations on one element at a time.

use super::loops::{blocks, map, map2, vectorised};
use crate::ir::Activation;
use crate::tensor::Real;

/// a + b.
pub fn add<T: Real>(a: &[T], b: &[T], out: &mut [T]) {
    map2(out, a, b, |a, b| a + b);
}

/// x + v, `x [n, .., c]`, `v [n or 1, c]`; `image` is the number of elements of one image of x.
pub fn add_channels<T: Real>(x: &[T], v: &[T], c: usize, image: usize, out: &mut [T]) {
    let shared = v.len() == c;
    blocks(out, c, |first, out| {
        let x = &x[first * c..][..out.len()];
        for (i, (out, x)) in out.chunks_mut(c).zip(x.chunks(c)).enumerate() {
            let n = if shared { 0 } else { (first + i) * c / image };
            let v = &v[n * c..][..c];
            vectorised(
                #[inline(always)]
                || out.iter_mut().zip(x.iter().zip(v)).for_each(|(out, (&x, &v))| *out = x + v),
            );
        }
    });
}

/// mul x + add.
pub fn affine<T: Real>(x: &[T], mul: T, add: T, out: &mut [T]) {
    map(out, x, |x| mul * x + add);
}

/// f(x).
pub fn activate<T: Real>(activation: Activation, x: &[T], out: &mut [T]) {
    match activation {
        Activation::Silu => map(out, x, silu),
        Activation::Gelu => map(out, x, gelu),
        Activation::QuickGelu => map(out, x, quick_gelu),
        Activation::Relu => map(out, x, relu),
        Activation::Tanh => map(out, x, T::tanh),
    }
}

/// f'(x) dy.
pub fn activate_bwd<T: Real>(activation: Activation, x: &[T], dy: &[T], out: &mut [T]) {
    match activation {
        Activation::Silu => map2(out, x, dy, |x, dy| silu_slope(x) * dy),
        Activation::Gelu => map2(out, x, dy, |x, dy| gelu_slope(x) * dy),
        Activation::QuickGelu => map2(out, x, dy, |x, dy| quick_gelu_slope(x) * dy),
        Activation::Relu => map2(out, x, dy, |x, dy| relu_slope(x) * dy),
        Activation::Tanh => map2(out, x, dy, |x, dy| tanh_slope(x) * dy),
    }
}

/// a gelu(b), `x = [a, b]` in halves of rows of 2 c.
pub fn geglu<T: Real>(x: &[T], c: usize, out: &mut [T]) {
    blocks(out, c, |first, out| {
        let x = &x[2 * first * c..][..2 * out.len()];
        for (out, x) in out.chunks_mut(c).zip(x.chunks(2 * c)) {
            let (a, b) = x.split_at(c);
            vectorised(
                #[inline(always)]
                || out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (&a, &b))| *out = a * gelu(b)),
            );
        }
    });
}

/// d[a, b] of [`geglu`].
pub fn geglu_bwd<T: Real>(x: &[T], dy: &[T], c: usize, out: &mut [T]) {
    blocks(out, 2 * c, |first, out| {
        let x = &x[2 * first * c..][..out.len()];
        let dy = &dy[first * c..][..out.len() / 2];
        for ((out, x), dy) in out.chunks_mut(2 * c).zip(x.chunks(2 * c)).zip(dy.chunks(c)) {
            let ((a, b), (da, db)) = (x.split_at(c), out.split_at_mut(c));
            vectorised(
                #[inline(always)]
                || {
                    da.iter_mut().zip(b.iter().zip(dy)).for_each(|(da, (&b, &dy))| *da = gelu(b) * dy);
                    for (db, ((&a, &b), &dy)) in db.iter_mut().zip(a.iter().zip(b).zip(dy)) {
                        *db = a * gelu_slope(b) * dy;
                    }
                },
            );
        }
    });
}

/// f of one element; for loops that choose the activation outside.
#[inline(always)]
pub fn activation<T: Real>(activation: Activation, x: T) -> T {
    match activation {
        Activation::Silu => silu(x),
        Activation::Gelu => gelu(x),
        Activation::QuickGelu => quick_gelu(x),
        Activation::Relu => relu(x),
        Activation::Tanh => x.tanh(),
    }
}

/// f' of one element.
#[inline(always)]
pub fn slope<T: Real>(activation: Activation, x: T) -> T {
    match activation {
        Activation::Silu => silu_slope(x),
        Activation::Gelu => gelu_slope(x),
        Activation::QuickGelu => quick_gelu_slope(x),
        Activation::Relu => relu_slope(x),
        Activation::Tanh => tanh_slope(x),
    }
}

#[inline(always)]
pub fn silu<T: Real>(x: T) -> T {
    x / (T::ONE + (-x).exp())
}

#[inline(always)]
pub fn silu_slope<T: Real>(x: T) -> T {
    let s = T::ONE / (T::ONE + (-x).exp());
    s * (T::ONE + x * (T::ONE - s))
}

#[inline(always)]
fn gelu<T: Real>(x: T) -> T {
    x * normal_below(x)
}

#[inline(always)]
fn gelu_slope<T: Real>(x: T) -> T {
    let density = (-(x * x) * T::from_f64(0.5)).exp() * T::from_f64(0.398_942_280_401_432_7);
    normal_below(x) + x * density
}

/// Phi(x).
#[inline(always)]
fn normal_below<T: Real>(x: T) -> T {
    (T::ONE + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf()) * T::from_f64(0.5)
}

#[inline(always)]
fn quick_gelu<T: Real>(x: T) -> T {
    x / (T::ONE + (-T::from_f64(1.702) * x).exp())
}

#[inline(always)]
fn quick_gelu_slope<T: Real>(x: T) -> T {
    let z = T::from_f64(1.702) * x;
    let s = T::ONE / (T::ONE + (-z).exp());
    s * (T::ONE + z * (T::ONE - s))
}

/// NaN stays NaN.
#[inline(always)]
fn relu<T: Real>(x: T) -> T {
    if x < T::ZERO { T::ZERO } else { x }
}

#[inline(always)]
fn relu_slope<T: Real>(x: T) -> T {
    if x <= T::ZERO { T::ZERO } else { T::ONE }
}

#[inline(always)]
fn tanh_slope<T: Real>(x: T) -> T {
    let y = x.tanh();
    T::ONE - y * y
}
