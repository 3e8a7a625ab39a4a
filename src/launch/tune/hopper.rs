//! Which tile a product takes on the matrix units of sm_90a. Nothing here was measured: rates are what the reads of
//! shared memory let the matrix units do, as far as their documentation says.

use std::fmt;

use super::reason::{Fastest, Rival, cheapest};
use super::{attention, multiprocessors};
use crate::manifest::Kernel;

/// A tile there is a kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// In slabs of 128 rows.
    pub pairs: usize,
    pub n: usize,
    pub stages: usize,
    /// Blocks that share its depth, and add their sums among themselves.
    pub cluster: usize,
    /// Of the rate of the best, in per cent.
    rate: usize,
}

/// The first of equals is taken.
pub const TILES: [Tile; 3] = [
    // Two slabs share each slab of filters: the most products for a byte. For narrow layers of many pixels.
    Tile { pairs: 2, n: 128, stages: 3, cluster: 1, rate: 100 },
    // The channels of Stable Diffusion are multiples of 320.
    Tile { pairs: 1, n: 160, stages: 4, cluster: 1, rate: 97 },
    // Reads as much of a as of b for a product, so that shared memory is as busy as the matrix units are.
    Tile { pairs: 1, n: 64, stages: 4, cluster: 1, rate: 65 },
];

/// Tiles by whole clusters. More blocks than eight are no cluster that every device has.
pub const CLUSTERED: [Tile; 2] = [
    Tile { pairs: 1, n: 160, stages: 4, cluster: 4, rate: 97 },
    Tile { pairs: 1, n: 160, stages: 4, cluster: 8, rate: 97 },
];

/// All tiles, of one block and of several.
pub fn all() -> impl Iterator<Item = Tile> {
    TILES.into_iter().chain(CLUSTERED)
}

/// Rows of a slab.
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
/// What it takes a cluster: its barrier, twice, and a tile's sums through each block.
pub const EXCHANGE_NS: usize = 2000;

/// In how many parts sums are made, and where these are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// By whoever is last, where there are several.
    Joined(usize),
    /// Within clusters.
    Clustered(usize),
}

impl Parts {
    pub fn count(self) -> usize {
        match self {
            Self::Joined(count) | Self::Clustered(count) => count,
        }
    }
}

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
        let cluster = if self.cluster > 1 { format!("c{}", self.cluster) } else { String::new() };
        format!("m{}n{}k{STEP}s{}{cluster}_sm90", self.m(), self.n, self.stages)
    }

    /// Rows of a tile of statistics, which each block takes of what it finishes.
    pub fn stat_rows(&self) -> usize {
        SLAB / self.cluster
    }

    /// Of one step.
    fn nanoseconds(&self) -> usize {
        2 * self.m() * self.n * STEP * 100 / self.rate / FLOPS_PER_NS
    }
}

impl Work {
    fn blocks(&self, tile: &Tile) -> usize {
        self.groups * self.slabs.div_ceil(tile.pairs) * self.n.div_ceil(tile.n)
    }

    /// In which parts sums are made: in those that take the least time. This is to be two images, as they come, so that
    /// the batch has no say.
    pub fn parts(&self) -> Parts {
        let most = self.steps / LEAST_STEPS;
        let joined = (1..=most.clamp(1, MOST_SPLITS)).map(Parts::Joined);
        let clusters = CLUSTERED.iter().map(|tile| tile.cluster).filter(|&blocks| blocks <= most);
        let all = joined.chain(clusters.map(Parts::Clustered));
        all.min_by_key(|&parts| self.nanoseconds(parts)).expect("one part is possible")
    }

    /// The tiles that make such parts.
    fn tiles(parts: Parts) -> Vec<Tile> {
        match parts {
            Parts::Joined(_) => TILES.to_vec(),
            Parts::Clustered(blocks) => CLUSTERED.into_iter().filter(|tile| tile.cluster == blocks).collect(),
        }
    }

    fn nanoseconds(&self, parts: Parts) -> usize {
        let count = parts.count();
        let bytes = count * self.groups * self.slabs * SLAB * self.n * size_of::<f32>();
        let more = match parts {
            Parts::Joined(1) => 0,
            Parts::Joined(_) => JOIN_NS + 2 * bytes / BYTES_PER_NS,
            Parts::Clustered(_) => EXCHANGE_NS,
        };
        let of_tiles = Self::tiles(parts).into_iter().map(|tile| self.of_tile(&tile, count));
        of_tiles.min().expect("there are tiles") + more
    }

    /// Nanoseconds of all main loops by one tile, each sum in so many parts.
    fn of_tile(&self, tile: &Tile, parts: usize) -> usize {
        let rounds = (self.blocks(tile) * parts).div_ceil(multiprocessors("sm_90a"));
        rounds * self.steps.div_ceil(parts) * tile.nanoseconds()
    }

    /// The tile whose blocks take the least time together, and why. Of a cluster's, the rival is the same tile by one
    /// block.
    pub fn tile(&self, target: &str, parts: Parts) -> (Tile, Fastest) {
        let (all, count) = (multiprocessors(target), parts.count());
        let blocks = |tile: &Tile| self.blocks(tile) * count;
        let cost = |tile: &Tile| (blocks(tile).div_ceil(all) * tile.m() * tile.n * 100).div_ceil(tile.rate);
        let (best, rival) = cheapest(&Self::tiles(parts), |tile| [tile.m(), tile.n], cost);
        let alone = || Rival {
            tile: [best.m(), best.n],
            percent: 100 * self.of_tile(&best, 1) / self.nanoseconds(parts).max(1),
        };
        (best, Fastest::of(blocks(&best), all, rival.or_else(|| Some(alone()))))
    }
}

/// The part of the best rate that a kernel's tile can keep up with; all of it where that is not from here.
pub fn share_of(kernel: &Kernel) -> f64 {
    if let Some(rate) = attention::rate_of(kernel) {
        return rate as f64 / 100.0;
    }
    let tile = all().find(|tile| kernel.name.ends_with(&tile.variant()));
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

/// The box of a convolution's slabs: one of an image, where statistics are to be taken and there is one.
pub fn bits_of(images: usize, pixels: [usize; 2], stats: bool) -> [u32; 2] {
    let of_an_image = box_of_an_image(pixels).filter(|_| stats);
    of_an_image.unwrap_or_else(|| pixel_bits(images, pixels))
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
