//! Which tile a product takes on the matrix units of sm_90a. Nothing here was measured: rates are what the reads of
//! shared memory let the matrix units do, as far as their documentation says.

use std::fmt;

use super::multiprocessors;
use super::reason::{Fastest, cheapest};
use crate::manifest::Kernel;

/// A tile there is a kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// In slabs of 128 rows.
    pub pairs: usize,
    pub n: usize,
    pub stages: usize,
    /// Of the rate of the best, in per cent.
    rate: usize,
}

/// The first of equals is taken.
pub const TILES: [Tile; 3] = [
    // Two slabs share each slab of filters: the most products for a byte. For narrow layers of many pixels.
    Tile { pairs: 2, n: 128, stages: 3, rate: 100 },
    // The channels of Stable Diffusion are multiples of 320.
    Tile { pairs: 1, n: 160, stages: 4, rate: 97 },
    // Reads as much of a as of b for a product, so that shared memory is as busy as the matrix units are.
    Tile { pairs: 1, n: 64, stages: 4, rate: 65 },
];

/// Rows of a slab, and so of a tile of statistics.
pub const SLAB: usize = 128;
/// Of the depth in one step.
pub const STEP: usize = 64;
/// A part of a sum that is shorter costs more than it gains.
const LEAST_STEPS: usize = 4;
const MOST_SPLITS: usize = 16;

/// Products and sums that a multiprocessor makes in a nanosecond with the best tile.
const FLOPS_PER_NS: usize = 4350;
/// What it takes to add parts of sums: to count and to see what others have stored, two round trips to memory; and
/// every part is written and read again.
const JOIN_NS: usize = 1500;
const BYTES_PER_NS: usize = 3000;

/// What a choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Groups of slabs that no tile straddles, and slabs of each.
    pub groups: usize,
    pub slabs: usize,
    pub n: usize,
    /// Steps of the longest sum.
    pub steps: usize,
}

impl Tile {
    pub fn m(&self) -> usize {
        self.pairs * SLAB
    }

    /// What so many slabs are rounded up to, in rows.
    pub fn rows(&self, slabs: usize) -> usize {
        slabs.next_multiple_of(self.pairs) * SLAB
    }

    /// The variant in names of kernels.
    pub fn variant(&self) -> String {
        format!("m{}n{}k{STEP}s{}_sm90", self.m(), self.n, self.stages)
    }
}

impl Work {
    fn blocks(&self, tile: &Tile) -> usize {
        self.groups * self.slabs.div_ceil(tile.pairs) * self.n.div_ceil(tile.n)
    }

    /// In how many parts sums are made: as many as take the least time. This is to be two images, as they come, so
    /// that the batch has no say.
    pub fn splits(&self) -> usize {
        let most = (self.steps / LEAST_STEPS).clamp(1, MOST_SPLITS);
        (1..=most).min_by_key(|&splits| self.nanoseconds(splits)).expect("one part is possible")
    }

    fn nanoseconds(&self, splits: usize) -> usize {
        let all = multiprocessors("sm_90a");
        let of_tile = |tile: &Tile| {
            let step = 2 * tile.m() * tile.n * STEP * 100 / tile.rate / FLOPS_PER_NS;
            (self.blocks(tile) * splits).div_ceil(all) * self.steps.div_ceil(splits) * step
        };
        let parts = splits * self.groups * self.slabs * SLAB * self.n * size_of::<f32>();
        let join = if splits > 1 { JOIN_NS + 2 * parts / BYTES_PER_NS } else { 0 };
        TILES.iter().map(of_tile).min().expect("there are tiles") + join
    }

    /// The tile whose blocks take the least time together, and why.
    pub fn tile(&self, target: &str, splits: usize) -> (Tile, Fastest) {
        let all = multiprocessors(target);
        let blocks = |tile: &Tile| self.blocks(tile) * splits;
        let cost = |tile: &Tile| (blocks(tile).div_ceil(all) * tile.m() * tile.n * 100).div_ceil(tile.rate);
        let (best, rival) = cheapest(&TILES, |tile| [tile.m(), tile.n], cost);
        (best, Fastest::of(blocks(&best), all, rival))
    }
}

/// The part of the best rate that a kernel's tile can keep up with; all of it where that is not from here.
pub fn share_of(kernel: &Kernel) -> f64 {
    let tile = TILES.iter().find(|tile| kernel.name.ends_with(&tile.variant()));
    tile.map_or(1.0, |tile| tile.rate as f64 / 100.0)
}

/// The box of pixels of a slab that makes the fewest slabs of so many images, as powers of two: of columns and of lines.
/// What is left of a slab are images.
pub fn pixel_bits(images: usize, [lines, columns]: [usize; 2]) -> [u32; 2] {
    let bits = SLAB.ilog2();
    let boxes = (0..=bits).rev().flat_map(|x| (0..=bits - x).rev().map(move |y| [x, y]));
    boxes.min_by_key(|&bits| slabs(images, [lines, columns], bits)).expect("there are boxes")
}

/// The largest box of which an image is whole ones, if a slab is so for two images at most. Statistics are those of
/// such boxes, whatever the batch.
pub fn box_of_an_image([lines, columns]: [usize; 2]) -> Option<[u32; 2]> {
    let bits = SLAB.ilog2();
    let x = columns.trailing_zeros().min(bits);
    let y = lines.trailing_zeros().min(bits - x);
    (x + y + 1 >= bits).then_some([x, y])
}

/// Slabs of that box.
pub fn slabs(images: usize, [lines, columns]: [usize; 2], [x, y]: [u32; 2]) -> usize {
    let n = SLAB.ilog2() - x - y;
    images.div_ceil(1 << n) * lines.div_ceil(1 << y) * columns.div_ceil(1 << x)
}

/// Blocks for so many items: each stays on its multiprocessor and takes one after the other.
pub fn blocks(target: &str, items: i64) -> u32 {
    items.clamp(1, multiprocessors(target) as i64) as u32
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.variant())
    }
}
