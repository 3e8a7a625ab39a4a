//! Which form a matrix product runs in.

use std::fmt;

use super::multiprocessors;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub form: Form,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Any size and alignment.
    General,
    /// On tensor cores, the depth in that many parts of `k_split`.
    Tiled { tile: Tile, splits: usize, k_split: usize },
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

/// Of k in one step of every tile.
pub const STEP: usize = 32;

/// An image alone should give so many blocks: half a device, since images come in pairs.
const BLOCKS_OF_AN_IMAGE: usize = 64;
/// A split that is shallower costs more in sums than it saves.
const SHALLOWEST: usize = 256;

/// The form, tile and splits for a device of `target`.
pub fn choose(target: &str, extents: &Extents) -> Choice {
    let Extents { rows, images, n, k, batch, aligned, stats } = *extents;
    if !aligned {
        return Choice {
            form: Form::General,
            reason: "rows of operands are not aligned to 16 bytes".to_owned(),
        };
    }
    let (splits, k_split) = splits(rows, n, k, batch);
    // Statistics are those of a tile, so that there one image alone decides.
    let rows = if stats { rows } else { rows * images };
    let blocks = |tile: &Tile| rows.div_ceil(tile.m) * n.div_ceil(tile.n) * batch * splits;
    // Blocks that the busiest multiprocessor gets, and what they cost it.
    let rounds = |tile: &Tile| blocks(tile).div_ceil(multiprocessors(target));
    let cost = |tile: &Tile| (rounds(tile) * tile.m * tile.n * 100).div_ceil(tile.rate);
    let mut best = TILES[0];
    for tile in &TILES[1..] {
        if cost(tile) < cost(&best) {
            best = *tile;
        }
    }
    let depth = if splits > 1 { format!(", depth in {splits} parts of {k_split}") } else { String::new() };
    let (blocks, rounds) = (blocks(&best), rounds(&best));
    let reason = format!("{blocks} blocks, at most {rounds} on a multiprocessor{depth}");
    Choice { form: Form::Tiled { tile: best, splits, k_split }, reason }
}

/// In how many parts, and of how much of k: of one image alone.
fn splits(rows: usize, n: usize, k: usize, batch: usize) -> (usize, usize) {
    let blocks = rows.div_ceil(64) * n.div_ceil(64);
    let wanted = if batch > 1 { 1 } else { (BLOCKS_OF_AN_IMAGE / blocks).min(k / SHALLOWEST).max(1) };
    let k_split = k.div_ceil(wanted).next_multiple_of(STEP);
    (k.div_ceil(k_split), k_split)
}

impl Form {
    /// Parts of the depth.
    pub fn splits(&self) -> usize {
        match *self {
            Self::General => 1,
            Self::Tiled { splits, .. } => splits,
        }
    }
}

impl Tile {
    /// The variant in names of kernels.
    pub fn variant(&self) -> String {
        format!("m{}n{}k{STEP}s4", self.m, self.n)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.form {
            Form::General => write!(f, "general: {}", self.reason),
            Form::Tiled { tile, splits: 1, .. } => write!(f, "{}: {}", tile.variant(), self.reason),
            Form::Tiled { tile, splits, .. } => write!(f, "{} x {splits}: {}", tile.variant(), self.reason),
        }
    }
}
