//! Loops over many elements: in vector code, on all cores, in a fixed order.
//!
//! Reductions run in [`LANES`] interleaved accumulators whatever the machine's vector width, and work is
//! cut into blocks by shape alone; so neither the instruction set nor the thread count changes a bit.

use rayon::prelude::*;

use crate::tensor::Real;

/// Accumulators of a reduction: one AVX-512 register of f32.
pub const LANES: usize = 16;

/// Elements of one task of a loop: enough to pay for handing it to a thread.
const BLOCK: usize = 1 << 14;

/// Runs `body` compiled for the widest vectors that the machine has. Loops in it are vectorised if all
/// that they call is inlined.
#[inline(always)]
pub fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// Cuts `out` (rows of `row` elements) into blocks of whole rows; `body(first row, block)` on all cores.
pub fn blocks<T: Real>(out: &mut [T], row: usize, body: impl Fn(usize, &mut [T]) + Sync) {
    let row = row.max(1);
    let rows = (BLOCK / row).max(1);
    if out.len() <= rows * row {
        body(0, out);
    } else {
        out.par_chunks_mut(rows * row).enumerate().for_each(|(i, block)| body(i * rows, block));
    }
}

/// out = f(a), element by element.
pub fn map<T: Real>(out: &mut [T], a: &[T], f: impl Fn(T) -> T + Sync) {
    debug_assert_eq!(out.len(), a.len());
    blocks(out, 1, |first, out| {
        let a = &a[first..first + out.len()];
        vectorised(
            #[inline(always)]
            || out.iter_mut().zip(a).for_each(|(out, &a)| *out = f(a)),
        );
    });
}

/// out = f(a, b), element by element.
pub fn map2<T: Real>(out: &mut [T], a: &[T], b: &[T], f: impl Fn(T, T) -> T + Sync) {
    debug_assert!(out.len() == a.len() && out.len() == b.len());
    blocks(out, 1, |first, out| {
        let (a, b) = (&a[first..first + out.len()], &b[first..first + out.len()]);
        vectorised(
            #[inline(always)]
            || out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (&a, &b))| *out = f(a, b)),
        );
    });
}

/// Sum of f(a) in f64.
#[inline(always)]
pub fn sum_f64<T: Real>(a: &[T], f: impl Fn(T) -> f64) -> f64 {
    let (chunks, rest) = a.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, &a) in lanes.iter_mut().zip(chunk) {
            *lane += f(a);
        }
    }
    for (lane, &a) in lanes.iter_mut().zip(rest) {
        *lane += f(a);
    }
    lanes.iter().sum()
}

/// Sum of f(a, b) in f64.
#[inline(always)]
pub fn sum2_f64<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> f64) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for (lane, (&a, &b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += f(a, b);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += f(a, b);
    }
    lanes.iter().sum()
}
