//! Linear layers. The rows of one image are one product; a `[n, k]` matrix is n images of one row.

use super::gemm::Mat;
use super::product::{Dense, product};
use crate::tensor::{Real, Shape};

/// x W^T + b, `w [m, k]`.
pub fn linear<T: Real>(x: &[T], shape: &Shape, w: &[T], bias: Option<&[T]>, out: &mut [T]) {
    let k = shape.last();
    let m = w.len() / k.max(1);
    let lhs = Dense { data: x, rows: rows(shape), width: k };
    product(out, lhs.rows, m, bias, &lhs, &[Mat::new(w, m, k, k).t()]);
}

/// dy W.
pub fn linear_bwd<T: Real>(dy: &[T], shape: &Shape, w: &[T], out: &mut [T]) {
    let m = shape.last();
    let k = w.len() / m.max(1);
    let lhs = Dense { data: dy, rows: rows(shape), width: m };
    product(out, lhs.rows, k, None, &lhs, &[Mat::new(w, m, k, k)]);
}

/// Rows of one image: all extents but the first and the last.
fn rows(shape: &Shape) -> usize {
    shape.get(1..shape.len() - 1).map_or(1, |inner| inner.iter().product())
}
