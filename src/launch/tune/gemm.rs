//! Which form a matrix product runs in.

use std::fmt;

use super::reason::cheapest;
use super::{Fact, Fastest, Obstacle, Reason, hopper, multiprocessors};

/// What the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    /// Rows of one image, and images: together the rows of the product.
    pub rows: usize,
    pub images: usize,
    pub n: usize,
    pub k: usize,
    /// Matrices with a `b` of their own.
    pub batch: usize,
    /// All rows of operands begin at multiples of 16 bytes.
    pub aligned: bool,
    /// Tiles may not straddle images.
    pub stats: bool,
}

/// How the product is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub form: Form,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Any size and alignment.
    General,
    /// On tensor cores, the depth in that many parts of `k_split`.
    Tiled { tile: Tile, splits: usize, k_split: usize },
    /// The same on those of sm_90a, by bulk copies; or in as many parts as a cluster has blocks.
    Hopper { tile: hopper::Tile, splits: usize, k_split: usize },
}

/// A row of the manifest, and how well it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub m: usize,
    pub n: usize,
    /// Of the rate of the largest, in per cent: smaller tiles read more of shared memory for a product.
    rate: usize,
}

/// From the largest; the first of equals is taken.
pub const TILES: [Tile; 4] = [
    // The channels of Stable Diffusion are multiples of 320.
    Tile { m: 128, n: 160, rate: 100 },
    Tile { m: 128, n: 128, rate: 98 },
    Tile { m: 128, n: 64, rate: 85 },
    Tile { m: 64, n: 64, rate: 70 },
];

/// Of k in one step of every tile, and steps that its ring holds.
pub const STEP: usize = 32;
pub const STAGES: usize = 4;

/// An image alone should give so many blocks: half a device, since images come in pairs.
const BLOCKS_OF_AN_IMAGE: usize = 64;
/// A split that is shallower costs more in sums than it saves.
const SHALLOWEST: usize = 256;

/// The form, tile and splits for a device of `target`.
pub fn choose(target: &str, extents: &Extents) -> Choice {
    let Extents { rows, images, n, k, batch, aligned, stats } = *extents;
    if !aligned {
        return Choice { form: Form::General, reason: Reason::Only(Fact::Unaligned) };
    }
    // One image decides, so that a batch changes no bit.
    let obstacle = match () {
        () if batch > 1 => Some(Obstacle::Batch),
        () if rows < LEAST_ROWS => Some(Obstacle::FewRows),
        () => None,
    };
    if target == "sm_90a" && obstacle.is_none() {
        return on_hopper(target, extents);
    }
    let (splits, k_split) = splits(rows, n, k, batch);
    // Statistics are those of a tile, so that there one image alone decides.
    let rows = if stats { rows } else { rows * images };
    let blocks = |tile: &Tile| rows.div_ceil(tile.m) * n.div_ceil(tile.n) * batch * splits;
    let all = multiprocessors(target);
    let cost = |tile: &Tile| (blocks(tile).div_ceil(all) * tile.m * tile.n * 100).div_ceil(tile.rate);
    let (tile, rival) = cheapest(&TILES, |tile| [tile.m, tile.n], cost);
    let obstacle = obstacle.filter(|_| target == "sm_90a");
    let reason = Fastest { obstacle, ..Fastest::of(blocks(&tile), all, rival) };
    Choice { form: Form::Tiled { tile, splits, k_split }, reason: Reason::Fastest(reason) }
}

/// With fewer rows most of a slab is nothing.
const LEAST_ROWS: usize = 64;

fn on_hopper(target: &str, extents: &Extents) -> Choice {
    let Extents { rows, images, n, k, stats, .. } = *extents;
    let of = |rows: usize| hopper::Work {
        groups: 1,
        slabs: rows.div_ceil(hopper::SLAB),
        n,
        steps: k.div_ceil(hopper::STEP),
    };
    let (parts, k_split) = match of(2 * rows).parts() {
        hopper::Parts::Joined(count) => {
            let k_split = k.div_ceil(count).next_multiple_of(hopper::STEP);
            (hopper::Parts::Joined(k.div_ceil(k_split)), k_split)
        }
        clustered => (clustered, k),
    };
    // Slabs go on from image to image, unless statistics are taken.
    let work = match stats {
        true => hopper::Work { groups: images, ..of(rows) },
        false => of(rows * images),
    };
    let (tile, reason) = work.tile(target, parts);
    Choice { form: Form::Hopper { tile, splits: parts.count(), k_split }, reason: Reason::Fastest(reason) }
}

/// In how many parts, and of how much of k: of one image alone.
fn splits(rows: usize, n: usize, k: usize, batch: usize) -> (usize, usize) {
    let blocks = rows.div_ceil(64) * n.div_ceil(64);
    let wanted = if batch > 1 { 1 } else { (BLOCKS_OF_AN_IMAGE / blocks).min(k / SHALLOWEST).max(1) };
    let k_split = k.div_ceil(wanted).next_multiple_of(STEP);
    (k.div_ceil(k_split), k_split)
}

impl Form {
    /// In how many parts the depth is.
    pub fn splits(&self) -> usize {
        match *self {
            Self::General => 1,
            Self::Tiled { splits, .. } | Self::Hopper { splits, .. } => splits,
        }
    }

    /// Parts whose sums are kept, for the last block of a tile to add.
    pub fn kept(&self) -> usize {
        match *self {
            Self::Hopper { tile, .. } if tile.cluster > 1 => 0,
            _ if self.splits() > 1 => self.splits(),
            _ => 0,
        }
    }
}

impl Tile {
    /// The variant in names of kernels.
    pub fn variant(&self) -> String {
        format!("m{}n{}k{STEP}s{STAGES}", self.m, self.n)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = |k_split: usize| match self.form.kept() {
            0 => String::new(),
            splits => format!(" x {splits} of {k_split}"),
        };
        match self.form {
            Form::General => write!(f, "general")?,
            Form::Tiled { tile, k_split, .. } => write!(f, "{}{}", tile.variant(), parts(k_split))?,
            Form::Hopper { tile, k_split, .. } => write!(f, "{tile}{}", parts(k_split))?,
        }
        write!(f, ": {}", self.reason)
    }
}
