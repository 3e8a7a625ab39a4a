//! Convolutions over NHWC images as products with the filters where they lie, `[o, r, s, c]`.
//!
//! Forward: a row of the left operand is the window of one output pixel, `[r, s, c]`, copied together in
//! blocks of pixels (1 x 1 filters read the image itself). The data gradient at stride 1 is one product a
//! tap, of dy shifted by that tap; at larger strides it is the product that gives every window's gradient,
//! followed by the sum over the windows that a pixel lies in.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, gemm, packed};
use super::product::{self, Dense, Rows, product};
use crate::ir::Padding;
use crate::tensor::{Real, Shape};

/// Elements of window gradients that one task holds, about.
const WINDOW_ELEMENTS: usize = 1 << 19;

/// y = conv(x, w) + b; `out_size` is the height and width of y.
pub fn conv2d<T: Real>(
    x: (&Shape, &[T]),
    w: (&Shape, &[T]),
    bias: Option<&[T]>,
    (stride, padding): (usize, Padding),
    out_size: (usize, usize),
    out: &mut [T],
) {
    let ((height, width), (o, r, s, c)) = ((x.0[1], x.0[2]), filter(w.0));
    let rhs = [Mat::new(w.1, o, r * s * c, r * s * c).t()];
    let rows = out_size.0 * out_size.1;
    if (r, s, stride) == (1, 1, 1) && padding == Padding::NONE {
        product(out, rows, o, bias, &Dense { data: x.1, rows, width: c }, &rhs);
    } else {
        let (top, left) = (padding.top, padding.left);
        let windows =
            Windows { x: x.1, height, width, channels: c, taps: (r, s), stride, top, left, out: out_size };
        product(out, rows, o, bias, &windows, &rhs);
    }
}

/// dx of [`conv2d`]; `size` is the height and width of x.
pub fn conv2d_bwd<T: Real>(
    dy: (&Shape, &[T]),
    w: (&Shape, &[T]),
    (stride, padding): (usize, Padding),
    size: (usize, usize),
    out: &mut [T],
) {
    let (o, r, s, c) = filter(w.0);
    if stride > 1 {
        return strided_bwd(dy, w, (stride, padding), size, out);
    }
    let rows = size.0 * size.1;
    let tap = |i: usize| Mat::new(&w.1[i * c..], o, c, r * s * c);
    if (r, s) == (1, 1) && padding == Padding::NONE {
        return product(out, rows, c, None, &Dense { data: dy.1, rows, width: o }, &[tap(0)]);
    }
    let shifted = Shifted { dy: dy.1, size: (dy.0[1], dy.0[2]), channels: o, columns: s, padding, out: size };
    let taps: Vec<_> = (0..r * s).map(tap).collect();
    product(out, rows, c, None, &shifted, &taps);
}

/// Elements that [`conv2d`] to `out` `[n, h, w, o]` allocates at most.
pub fn scratch(w: &Shape, stride: usize, padding: Padding, out: &Shape, threads: usize) -> usize {
    let (o, r, s, c) = filter(w);
    let dense = (r, s, stride) == (1, 1, 1) && padding == Padding::NONE;
    product::scratch((out[0], out[1] * out[2], o, r * s * c), 1, !dense, threads)
}

/// Elements that [`conv2d_bwd`] from `dy` to `out` allocates at most.
pub fn scratch_bwd(
    dy: &Shape,
    w: &Shape,
    (stride, padding): (usize, Padding),
    out: &Shape,
    threads: usize,
) -> usize {
    let (o, r, s, c) = filter(w);
    if stride > 1 {
        let (window, wide) = (r * s * c, dy[2]);
        let lines = (WINDOW_ELEMENTS / (wide * window).max(1)).max(1) * stride;
        let tasks = out[0] * out[1].div_ceil(lines);
        // Lines of dy whose windows touch a task's lines of dx.
        let touched = (lines + r - 1).div_ceil(stride).min(dy[1]) + 1;
        let rows = touched * wide;
        return threads.min(tasks) * (rows * window + packed(rows, window, o));
    }
    let dense = (r, s) == (1, 1) && padding == Padding::NONE;
    product::scratch((out[0], out[1] * out[2], c, o), r * s, !dense, threads)
}

/// Windows of the output pixels: row (i, j) is x[i stride + r - top, j stride + s - left, c] over (r, s, c).
struct Windows<'a, T> {
    x: &'a [T],
    height: usize,
    width: usize,
    channels: usize,
    taps: (usize, usize),
    stride: usize,
    top: usize,
    left: usize,
    out: (usize, usize),
}

impl<T: Real> Rows<T> for Windows<'_, T> {
    fn rows<'s>(
        &'s self,
        image: usize,
        _: usize,
        range: Range<usize>,
        scratch: &'s mut Vec<T>,
    ) -> Mat<'s, T> {
        let (c, (r, s)) = (self.channels, self.taps);
        let (count, len) = (range.len(), r * s * c);
        let x = &self.x[image * self.height * self.width * c..][..self.height * self.width * c];
        scratch.resize(count * len, T::ZERO);
        for (pixel, window) in range.zip(scratch.chunks_exact_mut(len)) {
            let (i, j) = (pixel / self.out.1 * self.stride, pixel % self.out.1 * self.stride);
            // The taps of a line that lie inside of the image are neighbours there and here.
            let inside =
                self.left.saturating_sub(j).min(s)..(self.width + self.left).saturating_sub(j).min(s);
            for (tap, line) in window.chunks_exact_mut(s * c).enumerate() {
                match (i + tap).checked_sub(self.top) {
                    Some(y) if y < self.height && !inside.is_empty() => {
                        let from = (y * self.width + j + inside.start - self.left) * c;
                        line[..inside.start * c].fill(T::ZERO);
                        line[inside.start * c..inside.end * c]
                            .copy_from_slice(&x[from..from + inside.len() * c]);
                        line[inside.end * c..].fill(T::ZERO);
                    }
                    _ => line.fill(T::ZERO),
                }
            }
        }
        Mat::new(scratch, count, len, len)
    }
}

/// dy seen from the input pixels through one tap: row (y, x) is dy[y + top - r, x + left - s, o].
struct Shifted<'a, T> {
    dy: &'a [T],
    size: (usize, usize),
    channels: usize,
    columns: usize,
    padding: Padding,
    out: (usize, usize),
}

impl<T: Real> Rows<T> for Shifted<'_, T> {
    fn rows<'s>(
        &'s self,
        image: usize,
        tap: usize,
        range: Range<usize>,
        scratch: &'s mut Vec<T>,
    ) -> Mat<'s, T> {
        let ((h, w), o) = (self.size, self.channels);
        let dy = &self.dy[image * h * w * o..][..h * w * o];
        let (r, s) = (tap / self.columns, tap % self.columns);
        scratch.resize(range.len() * o, T::ZERO);
        for (pixel, row) in range.clone().zip(scratch.chunks_exact_mut(o)) {
            let y = (pixel / self.out.1 + self.padding.top).checked_sub(r).filter(|&y| y < h);
            let x = (pixel % self.out.1 + self.padding.left).checked_sub(s).filter(|&x| x < w);
            match y.zip(x) {
                Some((y, x)) => row.copy_from_slice(&dy[(y * w + x) * o..][..o]),
                None => row.fill(T::ZERO),
            }
        }
        Mat::new(scratch, range.len(), o, o)
    }
}

/// Any stride: lines of dx in blocks, each from the gradients of all windows that touch it.
fn strided_bwd<T: Real>(
    dy: (&Shape, &[T]),
    w: (&Shape, &[T]),
    (stride, padding): (usize, Padding),
    (height, width): (usize, usize),
    out: &mut [T],
) {
    let ((h, wide), (o, r, s, c)) = ((dy.0[1], dy.0[2]), filter(w.0));
    let window = r * s * c;
    // Lines of dy a task, and the lines of dx that they cover.
    let lines = (WINDOW_ELEMENTS / (wide * window).max(1)).max(1) * stride;
    let filters = Mat::new(w.1, o, window, window);
    let blocks = out.chunks_mut(height * width * c).enumerate().flat_map(|(image, out)| {
        out.chunks_mut(lines * width * c).enumerate().map(move |(i, block)| (image, i * lines, block))
    });
    let blocks: Vec<_> = blocks.collect();
    blocks.into_par_iter().for_each_init(Vec::new, |windows, (image, first, block)| {
        let last = first + block.len() / (width * c) - 1;
        // Output lines i with i stride - top <= last and i stride - top + r > first.
        let low = (first + padding.top + 1).saturating_sub(r).div_ceil(stride);
        let high = ((last + padding.top) / stride + 1).min(h);
        block.fill(T::ZERO);
        if low >= high {
            return;
        }
        let rows = (high - low) * wide;
        windows.resize(rows * window, T::ZERO);
        let dy = Mat::new(&dy.1[(image * h + low) * wide * o..], rows, o, o);
        gemm(MatMut::new(windows, rows, window, window), false, T::ONE, dy, filters);
        for (pixel, window) in windows.chunks_exact(window).enumerate() {
            let (i, j) = ((low + pixel / wide) * stride, pixel % wide * stride);
            for (tap, gradient) in window.chunks_exact(c).enumerate() {
                let y = (i + tap / s).checked_sub(padding.top).filter(|y| (first..=last).contains(y));
                let x = (j + tap % s).checked_sub(padding.left).filter(|&x| x < width);
                if let Some((y, x)) = y.zip(x) {
                    let pixel = &mut block[((y - first) * width + x) * c..][..c];
                    pixel.iter_mut().zip(gradient).for_each(|(out, &g)| *out += g);
                }
            }
        }
    });
}

/// Output channels, lines, columns and input channels of a filter.
fn filter(shape: &Shape) -> (usize, usize, usize, usize) {
    (shape[0], shape[1], shape[2], shape[3])
}
