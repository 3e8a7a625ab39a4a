//! Operations that only move elements, and the sums that are their adjoints.

use super::loops::blocks;
use crate::tensor::{Real, Shape};

/// Joins the channels of `a [.., p]` and `b [.., q]`.
pub fn concat<T: Real>(a: &[T], p: usize, b: &[T], q: usize, out: &mut [T]) {
    blocks(out, p + q, |first, out| {
        for (i, row) in out.chunks_mut(p + q).enumerate() {
            let i = first + i;
            row[..p].copy_from_slice(&a[i * p..(i + 1) * p]);
            row[p..].copy_from_slice(&b[i * q..(i + 1) * q]);
        }
    });
}

/// Elements `start .. start + len` of every row of `width`.
pub fn slice_rows<T: Real>(x: &[T], width: usize, start: usize, len: usize, out: &mut [T]) {
    blocks(out, len, |first, out| {
        for (i, row) in out.chunks_mut(len).enumerate() {
            row.copy_from_slice(&x[(first + i) * width + start..][..len]);
        }
    });
}

/// Rows of `len` as elements `start ..` of rows of `width`, zero elsewhere.
pub fn pad_rows<T: Real>(x: &[T], len: usize, start: usize, width: usize, out: &mut [T]) {
    blocks(out, width, |first, out| {
        for (i, row) in out.chunks_mut(width).enumerate() {
            row[..start].fill(T::ZERO);
            row[start..start + len].copy_from_slice(&x[(first + i) * len..][..len]);
            row[start + len..].fill(T::ZERO);
        }
    });
}

/// Token `index[n]` of every sequence of `x [n, t, d]`.
pub fn gather_token<T: Real>(x: &[T], shape: &Shape, index: &[i32], out: &mut [T]) {
    let (t, d) = (shape[1], shape[2]);
    for (n, (out, &index)) in out.chunks_mut(d.max(1)).zip(index).enumerate() {
        let index = usize::try_from(index).expect("an index of a token is not negative");
        out.copy_from_slice(&x[(n * t + index) * d..][..d]);
    }
}

/// `x`, again and again until `out` is full.
pub fn repeat<T: Real>(x: &[T], out: &mut [T]) {
    out.chunks_mut(x.len().max(1)).for_each(|copy| copy.copy_from_slice(x));
}

/// Sum over the copies of which `x` consists.
pub fn sum_copies<T: Real>(x: &[T], out: &mut [T]) {
    let len = out.len();
    blocks(out, 1, |first, out| {
        out.copy_from_slice(&x[first..first + out.len()]);
        for copy in x.chunks(len).skip(1) {
            out.iter_mut().zip(&copy[first..]).for_each(|(out, &x)| *out += x);
        }
    });
}
