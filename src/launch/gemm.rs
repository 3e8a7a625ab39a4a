//! Matrix products as launches: the tuned form where it fits, in parts where one image has few rows and columns,
//! else the general one.

use super::params::{DevicePtr, Epilogue, GemmParams, GemmTileParams, Tile};
use super::tune::gemm::{self as tune, Choice, Extents, Form};
use super::tune::hopper;
use super::{Launch, Storage};
use crate::error::{Error, Result};

/// d = epilogue(a b) for every matrix of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    /// Rows of all images.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// The rows are those of so many images, one after the other.
    pub images: usize,
    /// Matrices, each with a `b` of its own.
    pub batch: usize,
    pub order: Order,
    /// Elements between two rows: of a, of b as it is stored, of d and the residual.
    pub rows: [usize; 3],
    /// Elements between two matrices of a, b and d.
    pub matrices: [usize; 3],
    pub after: After,
}

/// How b is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `[n, k]`: the filter of a linear layer.
    ByColumns,
    /// `[k, n]`: the same filter for its data gradient.
    ByRows,
}

/// What becomes of the sums; see [`Epilogue`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct After {
    /// f32 `[n]`.
    pub bias: bool,
    /// `[images, n]`, or one row for all.
    pub channels: Option<Channels>,
    /// As [`Epilogue::activation`].
    pub activation: i32,
    /// As d.
    pub residual: bool,
    /// Of d, that the residual has and repeats; 0: all.
    pub residual_rows: usize,
    /// Mean and squared deviations of every tile and channel.
    pub stats: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    OfImages,
    OfAll,
}

/// Where the operands are; those that the product does not have are not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub a: DevicePtr,
    pub b: DevicePtr,
    pub d: DevicePtr,
    pub bias: DevicePtr,
    pub channels: DevicePtr,
    pub residual: DevicePtr,
    pub stats: DevicePtr,
    /// As many bytes as [`Gemm::workspace`] says.
    pub workspace: DevicePtr,
    /// A u32 a block where there are parts, all zero; zero again afterwards.
    pub arrived: DevicePtr,
}

impl Gemm {
    /// Dense, of one image, with nothing after it.
    pub fn new(m: usize, n: usize, k: usize, order: Order) -> Self {
        let b_row = if order == Order::ByColumns { k } else { n };
        let (rows, matrices) = ([k, b_row, n], [0; 3]);
        Self { m, n, k, images: 1, batch: 1, order, rows, matrices, after: After::default() }
    }

    /// How it runs on a device of `target`, for operands at multiples of 16 bytes.
    pub fn choice(&self, target: &str) -> Choice {
        let [a_row, b_row, _] = self.rows;
        let [a_batch, b_batch, _] = self.matrices;
        let near = if self.order == Order::ByColumns { self.k } else { self.n };
        let eights = [self.k, near, a_row, b_row, a_batch, b_batch];
        let aligned = eights.iter().all(|x| x.is_multiple_of(8));
        let Self { m, n, k, images, batch, .. } = *self;
        let rows = m / images.max(1);
        tune::choose(target, &Extents { rows, images, n, k, batch, aligned, stats: self.after.stats })
    }

    /// Bytes that it writes and reads besides its operands.
    pub fn workspace(&self, target: &str) -> usize {
        self.choice(target).form.kept() * self.m * self.n * 4
    }

    /// Rows of a tile of statistics; `None` where it cannot take them.
    pub fn stat_rows(&self, target: &str) -> Option<usize> {
        match self.choice(target).form {
            Form::General => None,
            Form::Tiled { tile, .. } => Some(tile.m),
            Form::Hopper { tile, .. } => Some(tile.stat_rows()),
        }
    }

    /// One launch of the chosen form.
    pub fn launch(&self, target: &str, storage: Storage, at: &Places) -> Result<Launch> {
        let addresses = [at.a, at.b, at.workspace];
        match self.choice(target).form {
            Form::Tiled { tile, splits, k_split } if addresses.iter().all(|at| at.0.is_multiple_of(16)) => {
                self.tiled(&tile, splits, k_split, storage, at)
            }
            Form::Hopper { tile, splits, k_split } if addresses.iter().all(|at| at.0.is_multiple_of(16)) => {
                let depths = [splits, k_split];
                super::hopper::gemm(self, &tile, depths, |items| hopper::blocks(target, items), storage, at)
            }
            _ => self.general(storage, at),
        }
    }

    /// The form that takes any size and alignment.
    pub fn general(&self, storage: Storage, at: &Places) -> Result<Launch> {
        let params = self.params(at)?;
        let grid = [self.m.div_ceil(32), self.n.div_ceil(32), self.batch];
        Launch::new(&format!("gemm_{}", storage.name()), grid_of(grid), &params)
    }

    /// That tile, with the depth in `splits` parts of `k_split`.
    pub fn tiled(
        &self,
        tile: &tune::Tile,
        splits: usize,
        k_split: usize,
        storage: Storage,
        at: &Places,
    ) -> Result<Launch> {
        let op = if self.order == Order::ByColumns { "gemm" } else { "gemm_bwd" };
        let kernel = format!("{op}_{}_{}", storage.name(), tile.variant());
        let params = self.params(at)?;
        let tile = Tile { m: int(tile.m)?, n: int(tile.n)? };
        let [x, y] = tile.blocks(&params.epilogue, params.m, params.n);
        let (params, z) = match splits {
            1 => (GemmTileParams { whole: params, ..Default::default() }, self.batch),
            _ => {
                let whole = GemmParams { sums: at.workspace, k_split: int(k_split)?, ..params };
                (GemmTileParams { arrived: at.arrived, whole }, splits)
            }
        };
        Launch::new(&kernel, [x, y, grid_of([1, 1, z])[2]], &params)
    }

    pub(super) fn params(&self, at: &Places) -> Result<GemmParams> {
        let After { bias, channels, activation, residual, residual_rows, stats } = self.after;
        let given = |given: bool, at: DevicePtr| if given { at } else { DevicePtr::NONE };
        let of_image = self.m / self.images.max(1);
        let channel_rows = if channels == Some(Channels::OfAll) { self.m } else { of_image };
        let epilogue = Epilogue {
            bias: given(bias, at.bias),
            channels: given(channels.is_some(), at.channels),
            residual: given(residual, at.residual),
            stats: given(stats, at.stats),
            channel_rows: int(channel_rows)?,
            stat_rows: int(of_image)?,
            activation,
            residual_rows: int(residual_rows)?,
        };
        let [a_row, b_row, d_row] = self.rows.map(|stride| stride as i64);
        let [a_batch, b_batch, d_batch] = self.matrices.map(|stride| stride as i64);
        let (b_column, b_k) = if self.order == Order::ByColumns { (b_row, 1) } else { (1, b_row) };
        Ok(GemmParams {
            a: at.a,
            b: at.b,
            d: at.d,
            sums: DevicePtr::NONE,
            epilogue,
            a_batch,
            b_batch,
            d_batch,
            a_row,
            d_row,
            b_column,
            b_k,
            m: int(self.m)?,
            n: int(self.n)?,
            k: int(self.k)?,
            k_split: 0,
        })
    }
}

pub(super) fn int(extent: usize) -> Result<i32> {
    i32::try_from(extent).map_err(|_| {
        let problem = format!("{extent} is an extent that no kernel counts to");
        Error::Shape { node: String::new(), op: "gemm", problem }
    })
}

/// What does not fit is a grid that no device takes, and refused as one.
fn grid_of(blocks: [usize; 3]) -> [u32; 3] {
    blocks.map(|count| u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tune::TILES;

    #[test]
    fn the_batch_chooses_among_tiles_but_not_how_sums_are_made() {
        let layers = [(64, 1280, 1280), (4096, 320, 320), (256, 1280, 5120), (77, 768, 768), (1, 1280, 320)];
        for ((rows, n, k), target) in
            layers.into_iter().flat_map(|layer| [(layer, "sm_80"), (layer, "sm_90a")])
        {
            let forms = [1, 2, 16].map(|images| {
                let mut gemm = Gemm { images, ..Gemm::new(rows * images, n, k, Order::ByColumns) };
                let (Form::Tiled { splits, k_split, .. } | Form::Hopper { splits, k_split, .. }) =
                    gemm.choice(target).form
                else {
                    panic!("{rows} x {n} x {k} is aligned")
                };
                gemm.after.stats = true;
                (splits, k_split, gemm.stat_rows(target))
            });
            assert!(forms.iter().all(|form| *form == forms[0]), "{rows} x {n} x {k}: {forms:?}");
        }
    }

    #[test]
    fn a_choice_says_why() {
        let odd = Gemm::new(33, 5, 7, Order::ByColumns);
        assert_eq!(odd.choice("sm_80").to_string(), "general: rows of operands are not aligned to 16 bytes");
        let level = Gemm { images: 2, ..Gemm::new(8192, 320, 320, Order::ByColumns) };
        let text = level.choice("sm_90a").to_string();
        let rival = "256 x 128 takes 155 % of the time";
        assert_eq!(text, format!("m128n160k64s4_sm90: 128 tiles, at most 1 on a multiprocessor; {rival}"));
        let deep = Gemm { images: 2, ..Gemm::new(128, 1280, 5120, Order::ByRows) };
        let text = deep.choice("sm_90a").to_string();
        let rival = "128 x 160 takes 605 % of the time";
        assert_eq!(text, format!("m128n160k64s4c8_sm90: 64 tiles, at most 1 on a multiprocessor; {rival}"));
        assert_eq!(deep.workspace("sm_90a"), 0, "a cluster adds its sums by itself");
        let deepest = Gemm { images: 2, ..Gemm::new(128, 1280, 23040, Order::ByRows) };
        let text = deepest.choice("sm_90a").to_string();
        assert!(text.starts_with("m128n160k64s4_sm90 x 16 of 1472: 128 tiles, at most 1"), "{text}");
        assert_eq!(deepest.workspace("sm_90a"), 16 * 128 * 1280 * 4);
        let small = Gemm { images: 2, ..Gemm::new(128, 1280, 1280, Order::ByRows) };
        let text = small.choice("sm_80").to_string();
        let rival = "64 x 64 takes 121 % of the time";
        assert_eq!(
            text,
            format!("m128n64k32s4 x 3 of 448: 60 tiles, at most 1 on a multiprocessor; {rival}")
        );
        let few = Gemm { images: 2, ..Gemm::new(2, 1280, 320, Order::ByColumns) };
        let text = few.choice("sm_90a").to_string();
        assert!(text.ends_with("; not on wgmma: an image has fewer rows than half a slab"), "{text}");
    }

    #[test]
    fn a_product_that_a_kernel_cannot_make_is_refused_before_the_launch() {
        let some = DevicePtr(4096);
        let (stats, bias, channels, residual) = (some, some, some, some);
        let (workspace, arrived) = (some, some);
        let places =
            Places { a: some, b: some, d: some, bias, channels, residual, stats, workspace, arrived };
        let tiled = |change: fn(&mut Gemm)| {
            let mut gemm = Gemm::new(64, 64, 64, Order::ByColumns);
            change(&mut gemm);
            gemm.tiled(&TILES[3], 1, gemm.k, Storage::F16, &places).map_err(|e| e.to_string())
        };
        assert!(tiled(|_| ()).is_ok());
        type Change = fn(&mut Gemm);
        let wrong: [(&str, Change); 8] = [
            ("`b_column` must be a multiple of 8, found 60", |gemm| gemm.rows[1] = 60),
            ("`k` must be a multiple of 8, found 60", |gemm| gemm.k = 60),
            ("`activation` must be an activation", |gemm| gemm.after.activation = 7),
            ("`stats` must be none with GEGLU", |gemm| {
                (gemm.after.stats, gemm.after.activation) = (true, Epilogue::GEGLU);
            }),
            ("`m` must be whole images, found 64", |gemm| (gemm.images, gemm.after.stats) = (3, true)),
            ("`residual_rows` must be rows that divide those of the result, or 0, found 48", |gemm| {
                (gemm.after.residual, gemm.after.residual_rows) = (true, 48);
            }),
            ("`residual` must be an address, found none", |gemm| gemm.after.residual_rows = 32),
            ("`grid` must be one matrix, found 2", |gemm| {
                (gemm.batch, gemm.after.channels) = (2, Some(Channels::OfAll));
            }),
        ];
        for (words, change) in wrong {
            let error = tiled(change).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
        let mut gemm = Gemm::new(64, 64, 64, Order::ByRows);
        gemm.after.stats = true;
        let error =
            gemm.general(Storage::F16, &places).expect_err("statistics of a general form").to_string();
        assert!(error.contains("`stats` must be none with a general form"), "{error}");
        let aside = Places { a: DevicePtr(4098), ..places };
        let launch = Gemm::new(64, 64, 64, Order::ByRows).launch("sm_80", Storage::F16, &aside);
        assert_eq!(launch.expect("the general form takes any address").kernel.name, "gemm_f16");
    }
}
