//! Matrix views and their product: the one door to the matrix library.
//!
//! One call runs on one thread. Its bits are a function of the extents and the values, so a caller that
//! cuts a problem by the shape of one image gets the same bits on any number of threads.

use crate::tensor::Real;

/// A matrix inside a slice: element (i, j) lies at `i * row + j * col`. Rows may overlap.
#[derive(Clone, Copy)]
pub struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row: usize,
    col: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Rows of `cols` neighbours that start `stride` elements apart.
    ///
    /// # Panics
    /// If the matrix does not fit into `data`.
    pub fn new(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, stride), "a {rows} x {cols} matrix lies inside of its data");
        Self { data, rows, cols, row: stride, col: 1 }
    }

    /// The transpose; nothing moves.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row: self.col, col: self.row, ..self }
    }

    /// Columns `start .. start + len`.
    pub fn columns(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.cols, "columns {start}..+{len} of {}", self.cols);
        Self { data: &self.data[(start * self.col).min(self.data.len())..], cols: len, ..self }
    }
}

/// A row-major matrix to write, whose rows start `stride` elements apart.
pub struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row: usize,
}

impl<'a, T> MatMut<'a, T> {
    /// # Panics
    /// If the matrix does not fit into `data`, or if rows overlap.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, stride), "a {rows} x {cols} matrix lies inside of its data");
        assert!(rows <= 1 || stride >= cols, "rows do not overlap");
        Self { data, rows, cols, row: stride }
    }
}

/// out = scale a b, or out += scale a b.
pub fn gemm<T: Real>(out: MatMut<T>, accumulate: bool, scale: T, a: Mat<T>, b: Mat<T>) {
    assert!(a.rows == out.rows && b.cols == out.cols && a.cols == b.rows, "extents of a product agree");
    let (rows, cols, inner) = (out.rows, out.cols, a.cols);
    let stride = |extent: usize| isize::try_from(extent).expect("a stride lies inside of a slice");
    // SAFETY: `Mat::new`, `MatMut::new` and `columns` are the only ways to make a view, and all check that
    // the last element of the last row lies inside of the slice; the extents above are theirs, so the library
    // reads and writes inside of the slices. `out.data` is borrowed exclusively and its rows do not overlap.
    // The element type is f32 or f64, the only `Real`s and types that the library takes.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            rows,
            cols,
            inner,
            out.data.as_mut_ptr(),
            1,
            stride(out.row),
            accumulate,
            a.data.as_ptr(),
            stride(a.col),
            stride(a.row),
            b.data.as_ptr(),
            stride(b.col),
            stride(b.row),
            T::ONE,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Deepest panel that the library packs, and the widest of an operand that it packs whole.
const DEPTH: usize = 512;
const WHOLE: usize = 768;

/// Elements that the library packs for one product of `[m, k]` and `[k, n]`, at most.
pub fn packed(m: usize, n: usize, k: usize) -> usize {
    // Panels are whole vectors wide; which operand is packed depends on the strides.
    k.min(DEPTH) * (m.max(n) + m.min(n).min(WHOLE) + 128)
}

fn fits(len: usize, rows: usize, cols: usize, stride: usize) -> bool {
    let end = || rows.checked_sub(1)?.checked_mul(stride)?.checked_add(cols);
    rows == 0 || cols == 0 || end().is_some_and(|end| end <= len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_of_views_is_the_sum_of_products() {
        let a: Vec<f64> = (0..40).map(f64::from).collect();
        let b: Vec<f64> = (0..40).map(|v| f64::from(v) * 0.5).collect();
        let mut out = vec![1.0; 20];
        // a: 3 x 4 with stride 10; b: 4 x 5, the transpose of 5 x 6's columns 1..5.
        let view = Mat::new(&b, 5, 6, 7).columns(1, 4).t();
        gemm(MatMut::new(&mut out, 3, 5, 6), true, 2.0, Mat::new(&a, 3, 4, 10), view);
        for i in 0..3 {
            for j in 0..5 {
                let sum: f64 = (0..4).map(|k| a[i * 10 + k] * b[j * 7 + 1 + k]).sum();
                assert_eq!(out[i * 6 + j], 1.0 + 2.0 * sum);
            }
        }
        assert_eq!((out[5], out[11]), (1.0, 1.0));
    }

    #[test]
    #[should_panic(expected = "lies inside of its data")]
    fn a_view_beyond_its_data_is_refused() {
        Mat::new(&[0f32; 10], 3, 4, 4);
    }
}
