//! Products of the rows of every image with one matrix, cut into tiles: linear layers and convolutions.
//!
//! out [n, rows, cols] = bias + sum over the terms of lhs_term [n, rows, k] rhs_term [k, cols].
//!
//! The library packs an operand again in every call, so a tile must be large both ways. Images of many rows
//! are cut into blocks of rows; those of few rows into blocks of columns, computed as the transpose, which
//! lets the library read the weights where they lie. Either way the cut is a function of one image's shape.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, gemm, packed};
use super::loops;
use crate::tensor::Real;

/// Rows of a tile of a tall image.
const TALL: usize = 512;
/// Columns of a tile of a flat image.
const FLAT: usize = 128;

/// The left operand, image by image.
pub trait Rows<T>: Sync {
    /// Rows `range` of `image` in `term`: a view of them where they lie in order, else copied to `scratch`.
    fn rows<'s>(
        &'s self,
        image: usize,
        term: usize,
        range: Range<usize>,
        scratch: &'s mut Vec<T>,
    ) -> Mat<'s, T>;
}

/// Rows that lie one behind the other: `[n, rows, width]`.
pub struct Dense<'a, T> {
    pub data: &'a [T],
    pub rows: usize,
    pub width: usize,
}

impl<T: Real> Rows<T> for Dense<'_, T> {
    fn rows<'s>(&'s self, image: usize, _: usize, range: Range<usize>, _: &'s mut Vec<T>) -> Mat<'s, T> {
        let first = image * self.rows + range.start;
        Mat::new(&self.data[first * self.width..], range.len(), self.width, self.width)
    }
}

/// `out [n, rows, cols]` with one `[k, cols]` matrix of `rhs` a term.
pub fn product<T: Real>(
    out: &mut [T],
    rows: usize,
    cols: usize,
    bias: Option<&[T]>,
    lhs: &impl Rows<T>,
    rhs: &[Mat<T>],
) {
    if out.is_empty() {
        return;
    }
    if rows >= 2 * TALL {
        tall(out, rows, cols, bias, lhs, rhs);
    } else {
        flat(out, rows, cols, bias, lhs, rhs);
    }
}

/// Elements that [`product`] of `[n, rows, inner]` and `[inner, cols]` allocates at most, the library's included;
/// `copies` says whether [`Rows::rows`] copies its rows together.
pub fn scratch(
    (images, rows, cols, inner): (usize, usize, usize, usize),
    terms: usize,
    copies: bool,
    threads: usize,
) -> usize {
    let copied = if copies { inner } else { 0 };
    if rows >= 2 * TALL {
        let tasks = threads.min(images * rows.div_ceil(TALL));
        tasks * (TALL * copied + packed(TALL, cols, inner))
    } else {
        let tiles = images * cols.div_ceil(FLAT);
        images * terms * rows * copied + tiles * FLAT * rows + threads.min(tiles) * packed(FLAT, rows, inner)
    }
}

fn tall<T: Real>(
    out: &mut [T],
    rows: usize,
    cols: usize,
    bias: Option<&[T]>,
    lhs: &impl Rows<T>,
    rhs: &[Mat<T>],
) {
    let tiles = out.chunks_mut(rows * cols).enumerate().flat_map(|(image, out)| {
        out.chunks_mut(TALL * cols).enumerate().map(move |(i, tile)| (image, i * TALL, tile))
    });
    let tiles: Vec<_> = tiles.collect();
    tiles.into_par_iter().for_each_init(Vec::new, |scratch, (image, first, tile)| {
        let count = tile.len() / cols;
        if let Some(bias) = bias {
            tile.chunks_mut(cols).for_each(|row| row.copy_from_slice(bias));
        }
        for (term, &rhs) in rhs.iter().enumerate() {
            let lhs = lhs.rows(image, term, first..first + count, scratch);
            let accumulate = bias.is_some() || term > 0;
            gemm(MatMut::new(tile, count, cols, cols), accumulate, T::ONE, lhs, rhs);
        }
    });
}

fn flat<T: Real>(
    out: &mut [T],
    rows: usize,
    cols: usize,
    bias: Option<&[T]>,
    lhs: &impl Rows<T>,
    rhs: &[Mat<T>],
) {
    let (images, terms) = (out.len() / (rows * cols), rhs.len());
    let mut scratch = vec![Vec::new(); images * terms];
    let operands: Vec<Mat<T>> = scratch
        .par_iter_mut()
        .enumerate()
        .map(|(i, scratch)| lhs.rows(i / terms, i % terms, 0..rows, scratch))
        .collect();

    // The tiles of all images, each the transpose [columns, rows].
    let tiles = cols.div_ceil(FLAT);
    let mut transposed = vec![T::ZERO; images * tiles * FLAT * rows];
    transposed.par_chunks_mut(FLAT * rows).enumerate().for_each(|(i, tile)| {
        let (image, start) = (i / tiles, i % tiles * FLAT);
        let count = FLAT.min(cols - start);
        if let Some(bias) = bias {
            let columns = tile.chunks_mut(rows).zip(&bias[start..start + count]);
            columns.for_each(|(column, &bias)| column.fill(bias));
        }
        for (term, rhs) in rhs.iter().enumerate() {
            let lhs = operands[image * terms + term];
            let accumulate = bias.is_some() || term > 0;
            let out = MatMut::new(tile, count, rows, rows);
            gemm(out, accumulate, T::ONE, rhs.columns(start, count).t(), lhs.t());
        }
    });
    loops::blocks(out, cols, |first, block| {
        for (i, row) in block.chunks_mut(cols).enumerate() {
            let (image, i) = ((first + i) / rows, (first + i) % rows);
            for (tile, row) in row.chunks_mut(FLAT).enumerate() {
                let tile = &transposed[(image * tiles + tile) * FLAT * rows..];
                for (j, out) in row.iter_mut().enumerate() {
                    *out = tile[j * rows + i];
                }
            }
        }
    });
}
