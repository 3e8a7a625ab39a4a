//! A dense tensor in host memory.

use super::{Real, Shape};

/// A dense, row-major tensor. The length of `data` is the product of the extents.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T> {
    shape: Shape,
    data: Vec<T>,
}

impl<T: Copy> Tensor<T> {
    /// # Panics
    /// If `data` has another length than `shape` asks for: a mistake of the caller.
    pub fn new(shape: impl Into<Shape>, data: Vec<T>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.count(), data.len(), "a tensor of shape {shape} has as many elements");
        Self { shape, data }
    }

    pub fn filled(shape: impl Into<Shape>, value: T) -> Self {
        let shape = shape.into();
        let data = vec![value; shape.count()];
        Self { shape, data }
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn data(&self) -> &[T] {
        &self.data
    }

    pub fn data_mut(&mut self) -> &mut [T] {
        &mut self.data
    }

    pub fn into_data(self) -> Vec<T> {
        self.data
    }

    /// Elements of the `i`-th entry along the outermost extent.
    pub fn row(&self, i: usize) -> &[T] {
        let len = self.data.len() / self.shape[0];
        &self.data[i * len..(i + 1) * len]
    }

    /// `[n, c, h, w]` to `[n, h, w, c]`.
    pub fn nchw_to_nhwc(&self) -> Self {
        let [n, c, h, w] = self.extents4();
        self.permuted([n, h, w, c], |[i, y, x, k]| ((i * c + k) * h + y) * w + x)
    }

    /// `[n, h, w, c]` to `[n, c, h, w]`.
    pub fn nhwc_to_nchw(&self) -> Self {
        let [n, h, w, c] = self.extents4();
        self.permuted([n, c, h, w], |[i, k, y, x]| ((i * h + y) * w + x) * c + k)
    }

    fn extents4(&self) -> [usize; 4] {
        self.shape[..].try_into().expect("an image tensor has four extents")
    }

    fn permuted(&self, to: [usize; 4], source: impl Fn([usize; 4]) -> usize) -> Self {
        let [a, b, c, d] = to;
        let mut data = Vec::with_capacity(self.data.len());
        for i in 0..a {
            for j in 0..b {
                for k in 0..c {
                    data.extend((0..d).map(|l| self.data[source([i, j, k, l])]));
                }
            }
        }
        Self::new(to, data)
    }
}

impl<T: Real> Tensor<T> {
    pub fn cast<U: Real>(&self) -> Tensor<U> {
        let data = self.data.iter().map(|v| U::from_f64(v.to_f64())).collect();
        Tensor::new(self.shape.clone(), data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_change_and_back_is_the_identity() {
        let image = Tensor::new([2, 3, 2, 5], (0..60).map(|v| v as f32).collect());
        let nhwc = image.nchw_to_nhwc();
        assert_eq!(nhwc.shape()[..], [2, 2, 5, 3]);
        assert_eq!(nhwc.data()[..3], [0.0, 10.0, 20.0]); // the channels of the first pixel
        assert_eq!(nhwc.nhwc_to_nchw(), image);
    }
}
