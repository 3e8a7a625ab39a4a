//! Which form a convolution or its data gradient takes: pure numbers in, a choice that says its reason out.
//!
//! The steps of a sum and how it is split follow from one image; only the tile's size may look at the batch, and
//! that changes no bit of the result.

use std::fmt;

use super::reason::cheapest;
use super::{Fact, Fastest, hopper, multiprocessors};
use crate::launch::Storage;

/// What a tiled convolution makes of one image, and of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    pub images: usize,
    /// Classes of pixels with taps of their own, and the pixels of the largest.
    pub classes: usize,
    pub pixels: usize,
    /// Channels that are made.
    pub columns: usize,
    /// Steps of the longest sum, 32 channels of a tap each.
    pub steps: usize,
}

/// A tile of the output, and in how many parts its sums are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    pub m: usize,
    pub n: usize,
    pub splits: usize,
}

/// How a convolution runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    General {
        why: Fact,
    },
    Tiled(Tile),
    Hopper(OnHopper),
    /// In tiles whose operands come element by element: channels in no whole vectors.
    Gathered,
    /// To at most [`FEW`] channels, each pixel read but once.
    Narrow,
}

/// A tile on the matrix units of sm_90a.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OnHopper {
    pub tile: hopper::Tile,
    pub splits: usize,
    /// Of a slab's box; see [`hopper::pixel_bits`].
    pub bits: [u32; 2],
    /// That take the tiles, at most.
    pub blocks: u32,
}

/// Channels that [`Form::Narrow`] makes at most, and of which the others want as many.
pub const FEW: usize = 8;
/// Lines and columns of pixels that a block of [`Form::Narrow`] makes.
pub const NARROW: [usize; 2] = [8, 16];

/// The tile of [`Form::Gathered`].
pub const GATHERED: Tile = Tile { m: 64, n: 64, splits: 1 };

/// Tiles there are kernels for, and what part of the matrix units' speed each can keep up with, in per cent: a
/// smaller tile reads more of shared memory for a product.
pub const TILES: [(usize, usize, usize); 3] = [(128, 128, 100), (128, 64, 85), (64, 64, 70)];

/// An image alone should give so many blocks of the smallest tile: half a device, since images come in pairs.
const BLOCKS_OF_AN_IMAGE: usize = 64;
/// A part of a sum has at least as many steps: below, starting the pipeline costs more than it gains.
const LEAST_STEPS: usize = 16;
/// Parts of a sum, at most: what they leave is read again.
const MOST_SPLITS: usize = 16;

/// Operations that a byte of a second form of filters must save. Reading one takes as long as 200 to 300; the rest is
/// for the memory, which the widest filters of a UNet would take for little. One number for all devices, since filters
/// that are packed for the small image are rounded differently.
const FLOPS_PER_BYTE: usize = 2000;

/// Whether a 3 x 3 convolution behind twofold enlargement to `out` is worth filters for the small image:
/// 16 taps for four pixels instead of 36, but 16 to read instead of 9. Images come in pairs.
pub fn sub_pixel_pays(out: [usize; 2]) -> bool {
    let saved_flops = 2 * 2 * out[0] * out[1] * (9 - 4);
    saved_flops / FLOPS_PER_BYTE > 2 * (16 - 9)
}

impl Problem {
    fn blocks(&self, m: usize, n: usize) -> usize {
        self.classes * self.pixels.div_ceil(m) * self.columns.div_ceil(n)
    }

    /// Splits where even small tiles of one image leave most of a device idle.
    fn splits(&self) -> usize {
        let wanted = BLOCKS_OF_AN_IMAGE.div_ceil(self.blocks(64, 64));
        wanted.min(self.steps / LEAST_STEPS).clamp(1, MOST_SPLITS)
    }

    /// The tile whose blocks take the least time together on a device of `target`, and why: full waves, each as long
    /// as its tile is large.
    pub fn tile(&self, target: &str) -> (Tile, Fastest) {
        let (splits, all) = (self.splits(), multiprocessors(target));
        let blocks = |m: usize, n: usize| self.images * splits * self.blocks(m, n);
        let cost = |&(m, n, speed): &(usize, usize, usize)| blocks(m, n).div_ceil(all) * m * n * 100 / speed;
        let ((m, n, _), rival) = cheapest(&TILES, |&(m, n, _)| [m, n], cost);
        (Tile { m, n, splits }, Fastest::of(blocks(m, n), all, rival))
    }
}

impl Form {
    /// What a block makes, where that is a tile of pixels by channels.
    pub fn tile(&self) -> Option<Tile> {
        match *self {
            Self::General { .. } | Self::Narrow | Self::Hopper(_) => None,
            Self::Tiled(tile) => Some(tile),
            Self::Gathered => Some(GATHERED),
        }
    }

    /// Parts whose sums are kept: none where the sum is whole.
    pub fn kept(&self) -> usize {
        match *self {
            Self::Hopper(on) => on.kept(),
            Self::Tiled(Tile { splits, .. }) if splits > 1 => splits,
            _ => 0,
        }
    }
}

impl OnHopper {
    /// As [`Form::kept`]: a cluster adds its own.
    pub fn kept(&self) -> usize {
        if self.tile.cluster > 1 || self.splits == 1 { 0 } else { self.splits }
    }
}

impl Tile {
    /// The row of the manifest.
    pub fn kernel(&self, op: &str, storage: Storage) -> String {
        format!("{op}_{}_m{}n{}k32s4", storage.name(), self.m, self.n)
    }

    /// Blocks for so many images, classes of pixels, pixels of the largest class, and channels.
    pub fn grid(&self, images: usize, classes: usize, pixels: usize, columns: usize) -> [u32; 3] {
        let parts = [images * pixels.div_ceil(self.m), columns.div_ceil(self.n), classes * self.splits];
        parts.map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX))
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::General { why } => write!(f, "general form: {}", why.words()),
            Self::Hopper(OnHopper { tile, splits, bits: [x, y], .. }) => {
                let n = hopper::SLAB.ilog2() - x - y;
                write!(f, "{tile}, slabs of {} x {} x {} pixels", 1 << n, 1 << y, 1 << x)?;
                if self.kept() > 0 { write!(f, ", sums in {splits} parts") } else { Ok(()) }
            }
            Self::Tiled(Tile { m, n, splits: 1 }) => write!(f, "tiles of {m} x {n}"),
            Self::Tiled(Tile { m, n, splits }) => write!(f, "tiles of {m} x {n}, sums in {splits} parts"),
            Self::Gathered => write!(f, "tiles of {} x {}, element by element", GATHERED.m, GATHERED.n),
            Self::Narrow => write!(f, "few channels, tiles of {} x {} pixels", NARROW[0], NARROW[1]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(images: usize, pixels: usize, columns: usize, steps: usize) -> Problem {
        Problem { images, classes: 1, pixels, columns, steps }
    }

    #[test]
    fn large_images_take_large_tiles_and_whole_sums() {
        let (tile, why) = problem(1, 512 * 512, 128, 36).tile("sm_90a");
        assert_eq!(tile, Tile { m: 128, n: 128, splits: 1 });
        assert_eq!(
            why.to_string(),
            "2048 tiles, at most 16 on a multiprocessor; 128 x 64 takes 117 % of the time"
        );
        assert_eq!(problem(2, 4096, 320, 90).tile("sm_90a").0, Tile { m: 128, n: 64, splits: 1 });
    }

    #[test]
    fn small_images_with_long_sums_are_split() {
        let (tile, _) = problem(2, 64, 1280, 360).tile("sm_90a");
        assert_eq!(tile, Tile { m: 64, n: 64, splits: 4 });
        assert_eq!(Form::Tiled(tile).to_string(), "tiles of 64 x 64, sums in 4 parts");
        assert_eq!(problem(1, 64, 1280, 20).tile("sm_90a").0.splits, 1);
    }

    #[test]
    fn the_order_of_a_sum_is_that_of_one_image() {
        for (pixels, columns, steps) in [(64, 1280, 720), (117, 320, 90), (256, 640, 180), (4096, 4, 90)] {
            let splits = |images| problem(images, pixels, columns, steps).tile("sm_90a").0.splits;
            assert!((2..40).all(|images| splits(images) == splits(1)));
        }
    }
}
