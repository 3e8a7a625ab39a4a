//! Matrix products.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Epilogue, Params, Rules};
use crate::manifest::Kernel;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GemmParams {
    pub a: DevicePtr,
    pub b: DevicePtr,
    pub d: DevicePtr,
    // f32 [splits, m, n]: takes the parts of the sums first; or 0
    pub sums: DevicePtr,
    pub epilogue: Epilogue,
    // elements between two matrices of the batch; residual: as d
    pub a_batch: i64,
    pub b_batch: i64,
    pub d_batch: i64,
    // elements between two rows
    pub a_row: i64,
    pub d_row: i64,
    // b's element (column, k) is at column * b_column + k * b_k
    pub b_column: i64,
    pub b_k: i64,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    // of k for a split; with sums
    pub k_split: i32,
}
const _: () = assert!(size_of::<GemmParams>() == 152);

/// What a block of a tuned form makes, as its name says: `m128n64k32s4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub m: i32,
    pub n: i32,
}

impl Tile {
    /// `None` for a general form.
    pub fn of(kernel: &Kernel) -> Option<Self> {
        let (_, sizes) = kernel.name.rsplit_once("_m")?;
        let (m, rest) = sizes.split_once('n')?;
        let n = rest.split_once('k').map_or(rest, |(n, _)| n);
        Some(Self { m: m.parse().ok()?, n: n.parse().ok()? })
    }

    /// Tiles of [m, n], one after the other or image by image where statistics are wanted.
    pub fn blocks(self, epilogue: &Epilogue, m: i32, n: i32) -> [u32; 2] {
        let count = |extent: i32, of: i32| extent.max(1).unsigned_abs().div_ceil(of.unsigned_abs());
        let per_image = epilogue.stats != DevicePtr::NONE;
        let rows = if per_image { epilogue.stat_rows } else { m };
        let images = if per_image { m / epilogue.stat_rows.max(1) } else { 1 };
        [count(rows, self.m).saturating_mul(images.unsigned_abs()), count(n, self.n)]
    }
}

impl Params for GemmParams {
    const NAME: &'static str = "GemmParams";
    const ADDRESSES: usize = 8;

    fn check(&self, rules: &mut Rules) {
        rules.given("a", self.a);
        rules.given("b", self.b);
        for (field, extent) in [("m", self.m), ("n", self.n), ("k", self.k)] {
            rules.at_least(field, extent, 1);
        }
        // Steps of k are counted to their end.
        rules.holds("k", self.k, self.k <= i32::MAX - 64, "at most 2^31 - 65");
        let strides = [
            ("a_batch", self.a_batch),
            ("b_batch", self.b_batch),
            ("d_batch", self.d_batch),
            ("a_row", self.a_row),
            ("d_row", self.d_row),
            ("b_column", self.b_column),
            ("b_k", self.b_k),
        ];
        for (field, stride) in strides {
            rules.at_least(field, stride, 0);
        }
        let tile = Tile::of(rules.kernel);
        self.epilogue.check(rules, self.m, self.n, tile.is_some());
        let per_image = self.epilogue.channels != DevicePtr::NONE || self.epilogue.stats != DevicePtr::NONE;
        if per_image {
            rules.holds(
                "grid",
                rules.grid[2],
                rules.grid[2] == 1 || self.sums != DevicePtr::NONE,
                "one matrix",
            );
        }
        rules.given("d", self.d);
        let Some(tile) = tile else {
            rules.absent("sums", self.sums, "a general form");
            // A matrix of the batch after the other.
            return rules.blocks([Rules::tiles(self.m, 32), Rules::tiles(self.n, 32), rules.grid[2].into()]);
        };
        // Chunks of eight elements are copied at once.
        for (field, address) in [("a", self.a), ("b", self.b), ("sums", self.sums)] {
            rules.aligned(field, address, 16);
        }
        let by_rows = rules.kernel.name.starts_with("gemm_bwd");
        let (near, far) = (("b_k", self.b_k), ("b_column", self.b_column));
        let ((unit, one), (field, stride)) = if by_rows { (far, near) } else { (near, far) };
        rules.holds(unit, one, one == 1, "1");
        for (field, stride) in [(field, stride), ("a_batch", self.a_batch), ("b_batch", self.b_batch)] {
            rules.multiple_of(field, stride, 8);
        }
        rules.multiple_of("a_row", self.a_row, 8);
        rules.multiple_of("k", self.k, 8);
        if by_rows {
            rules.multiple_of("n", self.n, 8);
        }
        let [x, y] = tile.blocks(&self.epilogue, self.m, self.n);
        let grid @ [grid_x, grid_y, splits] = rules.grid;
        rules.holds("grid", format_args!("{grid:?}"), [grid_x, grid_y] == [x, y], "a block a tile");
        if self.sums == DevicePtr::NONE {
            return;
        }
        rules.at_least("k_split", self.k_split, 32);
        rules.multiple_of("k_split", self.k_split, 32);
        let parts = self.k.unsigned_abs().div_ceil(self.k_split.max(1).unsigned_abs());
        rules.holds("grid", splits, splits == parts, "a block a split");
    }
}

/// A product in tiles, whose blocks may share its depth.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GemmTileParams {
    // u32, one a tile, all zero before and after; 0 where no depth is shared
    pub arrived: DevicePtr,
    pub whole: GemmParams,
}
const _: () = assert!(size_of::<GemmTileParams>() == 8 + size_of::<GemmParams>());

impl Params for GemmTileParams {
    const NAME: &'static str = "GemmTileParams";
    const ADDRESSES: usize = 1 + GemmParams::ADDRESSES;

    fn check(&self, rules: &mut Rules) {
        self.whole.check(rules);
        rules.counters(self.arrived, self.whole.sums);
    }
}
