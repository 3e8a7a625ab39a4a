//! Layer norms and group norms: which form they take, and their launches.
//!
//! One block a group leaves a GPU empty where groups are few and large. The tiled form cuts an image into tiles: one
//! launch takes the statistics of every tile, one merges and applies them, each over many blocks. Who made x may
//! have made the statistics too; then one launch is left. The order of every sum is a function of one image's shape,
//! so [`choose`] knows neither the batch nor the device.

use std::fmt;

use super::layout::{Element, Place};
use super::params::{self as p, DevicePtr};
use super::{Launch, Storage};
use crate::error::{Error, Result};
use crate::ir::Activation;

/// A group norm over `[n, pixels, c]`, or over two tensors whose channels stand side by side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    pub storage: Storage,
    pub n: usize,
    /// Images of statistics that are given, n or more: the first n are normalised, and all of them folded, for whoever
    /// reads the rest.
    pub measured: usize,
    pub pixels: usize,
    /// Of the first tensor and of the second, which need not be there: 0.
    pub c: [usize; 2],
    pub groups: usize,
    pub eps: f32,
    pub act: Option<Activation>,
}

/// Statistics of tiles, as in `tile_stats.cuh`: f32, `[n, tiles, c, 2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileStats {
    pub at: DevicePtr,
    /// Pixels of a tile.
    pub rows: usize,
}

/// Whose statistics are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stats {
    /// Of all channels together.
    Joint(TileStats),
    /// Of each tensor; those that are missing are taken.
    Each([Option<TileStats>; 2]),
}

impl Stats {
    pub const NONE: Self = Self::Each([None, None]);
}

/// How a group norm runs; it prints why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One block a group, because of this.
    General(&'static str),
    Tiled {
        /// Pixels of a tile.
        rows: usize,
        /// Channels of a block that applies.
        slab: usize,
    },
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::General(why) => write!(f, "one block a group: {why}"),
            Self::Tiled { rows, slab } => write!(f, "tiles of {rows} pixels, slabs of {slab} channels"),
        }
    }
}

/// Elements of a group that one block is quick with.
const SMALL_GROUP: usize = 8192;
/// Pixels of the smallest and of the largest tile.
const TILE: [usize; 2] = [64, 1024];
/// So many tiles an image is cut into, between the two.
const TILES: usize = 32;
/// More tiles than this are folded before a block has to merge them.
const MOST_TILES: usize = 64;
/// What a slab is to have at least, so that a row of it is whole sectors of 32 bytes, and what it may have.
const SLAB: [usize; 2] = [64, 512];
/// Blocks that are enough for any GPU.
const ENOUGH_BLOCKS: usize = 512;

pub fn choose(norm: &GroupNorm, stats: Stats) -> Form {
    let c = norm.c[0] + norm.c[1];
    let width = c / norm.groups.max(1);
    if !matches!(norm.act, None | Some(Activation::Silu)) {
        return Form::General("its activation has no tiled form");
    }
    if norm.c.iter().any(|c| !c.is_multiple_of(8)) {
        return Form::General("its channels are no multiple of 8");
    }
    if stats == Stats::NONE && norm.pixels * width < SMALL_GROUP {
        return Form::General("its groups are small");
    }
    let unit = least_common_multiple(width.max(1), 8);
    let sectors = least_common_multiple(unit, 16);
    let unit = if sectors <= SLAB[1] { sectors } else { unit };
    if unit > SLAB[1] {
        return Form::General("its groups are too wide");
    }
    let slab = unit * SLAB[0].div_ceil(unit);
    let rows = norm.pixels.div_ceil(TILES).next_multiple_of(32).clamp(TILE[0], TILE[1]);
    Form::Tiled { rows, slab: slab.min(c) }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

/// Addresses of a forward group norm; what is not there is [`DevicePtr::NONE`].
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    pub x: [DevicePtr; 2],
    pub gamma: DevicePtr,
    pub beta: DevicePtr,
    pub out: DevicePtr,
    /// [`GroupNorm::workspace`] bytes, aligned to 16.
    pub workspace: DevicePtr,
}

/// Addresses of a backward group norm.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub x: [DevicePtr; 2],
    pub gamma: DevicePtr,
    pub beta: DevicePtr,
    pub dy: DevicePtr,
    /// Added to the result, where there is one tensor; or none.
    pub residual: DevicePtr,
    pub dx: [DevicePtr; 2],
    /// [`GroupNorm::workspace_bwd`] bytes, aligned to 16.
    pub workspace: DevicePtr,
}

/// Bytes behind each other, each part aligned to 16.
struct Workspace {
    base: DevicePtr,
    bytes: usize,
}

impl Workspace {
    fn take(&mut self, bytes: usize) -> DevicePtr {
        let at = DevicePtr(self.base.0 + self.bytes as u64);
        self.bytes += bytes.next_multiple_of(16);
        at
    }
}

impl GroupNorm {
    fn channels(&self) -> usize {
        self.c[0] + self.c[1]
    }

    /// Bytes that [`GroupNorm::forward`] writes besides its result.
    pub fn workspace(&self, form: Form, stats: Stats) -> usize {
        let mut workspace = Workspace { base: DevicePtr::NONE, bytes: 0 };
        if let Form::Tiled { rows, .. } = form {
            self.plan(rows, stats, &mut workspace);
        }
        workspace.bytes
    }

    /// Bytes that [`GroupNorm::backward`] writes besides its result.
    pub fn workspace_bwd(&self, form: Form, stats: Stats) -> usize {
        match form {
            Form::Tiled { rows, .. } => {
                self.workspace(form, stats) + self.sum_bytes(rows).next_multiple_of(16)
            }
            Form::General(_) if self.c[1] > 0 => 2 * self.n * self.pixels * self.channels(),
            Form::General(_) => 0,
        }
    }

    /// The statistics of both tensors that [`GroupNorm::forward`] leaves, in few tiles: for the gradient.
    pub fn left(&self, form: Form, stats: Stats, workspace: DevicePtr) -> [Option<TileStats>; 2] {
        let (Form::Tiled { rows, .. }, Stats::Each(_)) = (form, stats) else { return [None; 2] };
        let plan = self.plan(rows, stats, &mut Workspace { base: workspace, bytes: 0 });
        plan.merged().map(|stats| (stats.at != DevicePtr::NONE).then_some(stats))
    }

    fn sum_bytes(&self, rows: usize) -> usize {
        8 * self.n * self.pixels.div_ceil(rows) * self.groups
    }

    pub fn forward(&self, form: Form, stats: Stats, at: &Forward) -> Result<Vec<Launch>> {
        let Form::Tiled { rows, slab } = form else { return self.forward_general(at) };
        let mut workspace = Workspace { base: at.workspace, bytes: 0 };
        let plan = self.plan(rows, stats, &mut workspace);
        let mut launches = self.statistics(&plan, at.x)?;
        let (share, grid) = self.shares(slab, &plan)?;
        let [first, second] = plan.merged();
        let [n, pixels, c1, c2, groups] = self.extents()?;
        let params = p::GroupApplyParams {
            x: at.x[0],
            x2: at.x[1],
            stats: first.at,
            stats2: second.at,
            gamma: at.gamma,
            beta: at.beta,
            out: at.out,
            n,
            pixels,
            c1,
            c2,
            groups,
            rows: int(first.rows)?,
            rows2: int(second.rows)?,
            slab: int(slab)?,
            share,
            eps: self.eps,
        };
        launches.push(Launch::new(&self.kernel("group_norm_apply"), grid, &params)?);
        Ok(launches)
    }

    pub fn backward(&self, form: Form, stats: Stats, at: &Backward) -> Result<Vec<Launch>> {
        let Form::Tiled { rows, slab } = form else { return self.backward_general(at) };
        let mut workspace = Workspace { base: at.workspace, bytes: 0 };
        let plan = self.plan(rows, stats, &mut workspace);
        let sums = workspace.take(self.sum_bytes(rows));
        let mut launches = self.statistics(&plan, at.x)?;
        let (share, grid) = self.shares(slab, &plan)?;
        let [first, second] = plan.merged();
        let [n, pixels, c1, c2, groups] = self.extents()?;
        let params = p::GroupBwdParams {
            x: at.x[0],
            x2: at.x[1],
            dy: at.dy,
            stats: first.at,
            stats2: second.at,
            gamma: at.gamma,
            beta: at.beta,
            sums,
            residual: at.residual,
            dx: at.dx[0],
            dx2: at.dx[1],
            n,
            pixels,
            c1,
            c2,
            groups,
            rows: int(first.rows)?,
            rows2: int(second.rows)?,
            slab: int(slab)?,
            share,
            tile: int(rows)?,
            eps: self.eps,
            pad: 0,
        };
        let tiles = [count(self.pixels.div_ceil(rows))?, grid[1], grid[2]];
        launches.push(Launch::new(&self.kernel("group_norm_tiles_bwd"), tiles, &params)?);
        launches.push(Launch::new(&self.kernel("group_norm_apply_bwd"), grid, &params)?);
        Ok(launches)
    }

    /// Where statistics are and come to be: those of the first tensor or of all, then those of the second.
    fn plan(&self, rows: usize, stats: Stats, workspace: &mut Workspace) -> Plan {
        let given = match stats {
            Stats::Joint(stats) => {
                return Plan {
                    sources: [Some(self.source(self.channels(), Some(stats), rows, workspace)), None],
                };
            }
            Stats::Each(given) => given,
        };
        let [first, second] =
            [0, 1].map(|i| (self.c[i] > 0).then(|| self.source(self.c[i], given[i], rows, workspace)));
        Plan { sources: [first, second] }
    }

    fn source(&self, c: usize, given: Option<TileStats>, rows: usize, workspace: &mut Workspace) -> Source {
        let n = if given.is_some() { self.measured } else { self.n };
        let bytes = |rows: usize| 8 * n * self.pixels.div_ceil(rows) * c;
        let taken = given.unwrap_or_else(|| TileStats { at: workspace.take(bytes(rows)), rows });
        let times = self.pixels.div_ceil(taken.rows).div_ceil(MOST_TILES);
        let folded = (times > 1).then(|| {
            let rows = taken.rows * times;
            (times, TileStats { at: workspace.take(bytes(rows)), rows })
        });
        Source { n, c, is_given: given.is_some(), taken, folded }
    }

    /// The launches that make the statistics of a plan.
    fn statistics(&self, plan: &Plan, x: [DevicePtr; 2]) -> Result<Vec<Launch>> {
        let mut launches = Vec::new();
        for (source, x) in plan.sources.iter().zip(x) {
            let Some(Source { n: images, c, is_given, taken, folded }) = *source else { continue };
            let (n, pixels, c, rows) = (int(images)?, int(self.pixels)?, int(c)?, int(taken.rows)?);
            if !is_given {
                let params = p::GroupTilesParams { x, stats: taken.at, n, pixels, c, rows };
                let tiles = [self.pixels.div_ceil(taken.rows), (c as usize).div_ceil(64), self.n];
                let name = format!("group_norm_tiles_{}", self.storage.name());
                launches.push(Launch::new(&name, grid(tiles)?, &params)?);
            }
            if let Some((times, to)) = folded {
                let (stats, folded, times) = (taken.at, to.at, int(times)?);
                let params = p::GroupFoldParams { stats, folded, n, pixels, c, rows, times, pad: 0 };
                let sums = images * self.pixels.div_ceil(to.rows) * c as usize;
                launches.push(Launch::new(
                    "group_norm_fold_f32",
                    [count(sums.div_ceil(256))?, 1, 1],
                    &params,
                )?);
            }
        }
        Ok(launches)
    }

    /// Pixels of a block that applies, and its grid: enough blocks, but no block that merges more than it applies.
    fn shares(&self, slab: usize, plan: &Plan) -> Result<(i32, [u32; 3])> {
        let slabs = self.channels().div_ceil(slab);
        let merged = plan.merged().iter().map(|s| self.pixels.div_ceil(s.rows)).max().unwrap_or(1);
        let even = (self.pixels * slabs * self.n).div_ceil(ENOUGH_BLOCKS);
        let share = even.max(4 * merged).max(32).min(self.pixels);
        Ok((int(share)?, grid([self.pixels.div_ceil(share), slabs, self.n])?))
    }

    /// Images, pixels, channels of both tensors and groups, as kernels count them.
    fn extents(&self) -> Result<[i32; 5]> {
        Ok([int(self.n)?, int(self.pixels)?, int(self.c[0])?, int(self.c[1])?, int(self.groups)?])
    }

    fn kernel(&self, stem: &str) -> String {
        let ending = if self.act.is_some() { "_silu" } else { "" };
        format!("{stem}_{}{ending}", self.storage.name())
    }

    /// One block a group, over one tensor.
    fn forward_general(&self, at: &Forward) -> Result<Vec<Launch>> {
        let (mut launches, mut x) = (Vec::new(), at.x[0]);
        if self.c[1] > 0 {
            // The result holds both until it is normalised in place.
            launches.push(self.joined(at.x, at.out)?);
            x = at.out;
        }
        let [n, pixels, .., groups] = self.extents()?;
        let params = p::GroupNormParams {
            x,
            gamma: at.gamma,
            beta: at.beta,
            out: at.out,
            n,
            pixels,
            c: int(self.channels())?,
            groups,
            eps: self.eps,
            activation: p::activation(self.act),
        };
        let name = format!("group_norm_{}", self.storage.name());
        launches.push(Launch::new(&name, grid([self.groups, self.n, 1])?, &params)?);
        Ok(launches)
    }

    fn backward_general(&self, at: &Backward) -> Result<Vec<Launch>> {
        let two = self.c[1] > 0;
        // The workspace holds both tensors, then their gradients.
        let (x, dx) = if two { (at.workspace, at.workspace) } else { (at.x[0], at.dx[0]) };
        let mut launches = if two { vec![self.joined(at.x, x)?] } else { Vec::new() };
        let [n, pixels, .., groups] = self.extents()?;
        let params = p::GroupNormBwdParams {
            x,
            gamma: at.gamma,
            beta: at.beta,
            dy: at.dy,
            residual: at.residual,
            dx,
            n,
            pixels,
            c: int(self.channels())?,
            groups,
            eps: self.eps,
            activation: p::activation(self.act),
        };
        let name = format!("group_norm_bwd_{}", self.storage.name());
        launches.push(Launch::new(&name, grid([self.groups, self.n, 1])?, &params)?);
        if two {
            for (i, first) in [(0, 0), (1, self.c[0])] {
                let (width, stride) = (self.c[i], self.channels());
                let part = Place { width, len: width, first, stride, ..self.rows() };
                launches.push(self.place(&part, [dx, DevicePtr::NONE, at.dx[i]])?);
            }
        }
        Ok(launches)
    }

    fn rows(&self) -> Place {
        Place { rows: self.n * self.pixels, ..Place::default() }
    }

    fn joined(&self, x: [DevicePtr; 2], to: DevicePtr) -> Result<Launch> {
        let both = Place { width: self.channels(), len: self.c[0], stride: self.c[0], ..self.rows() };
        self.place(&both, [x[0], x[1], to])
    }

    fn place(&self, place: &Place, at: [DevicePtr; 3]) -> Result<Launch> {
        let element = Element::Stored(self.storage);
        place.launch((element, element), ENOUGH_BLOCKS as u32, DevicePtr::NONE, at)
    }
}

/// Statistics of up to two sources.
struct Plan {
    sources: [Option<Source>; 2],
}

#[derive(Clone, Copy)]
struct Source {
    /// Images.
    n: usize,
    c: usize,
    is_given: bool,
    taken: TileStats,
    /// So many tiles made one, where there are too many.
    folded: Option<(usize, TileStats)>,
}

impl Plan {
    /// What is left to merge. A source that is not there has no address.
    fn merged(&self) -> [TileStats; 2] {
        let none = TileStats { at: DevicePtr::NONE, rows: 1 << 30 };
        self.sources.map(|source| source.map_or(none, |s| s.folded.map_or(s.taken, |(_, folded)| folded)))
    }
}

/// Rows of layer norms: the form for them and the number of rows that a block of it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerForm {
    /// A block a row, because of this.
    General(&'static str),
    /// A warp a row; what the kernel's name ends in.
    Warps(&'static str),
}

impl fmt::Display for LayerForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::General(why) => write!(f, "a block a row: {why}"),
            Self::Warps(_) => write!(f, "a warp a row, held in registers"),
        }
    }
}

/// The form for rows of `c` channels at these addresses.
pub fn choose_layer(c: usize, addresses: &[DevicePtr]) -> LayerForm {
    if !c.is_multiple_of(8) {
        return LayerForm::General("its channels are no multiple of 8");
    }
    if addresses.iter().any(|at| !at.0.is_multiple_of(16)) {
        return LayerForm::General("an address is no multiple of 16");
    }
    match c {
        ..=512 => LayerForm::Warps("_c512"),
        513..=1280 => LayerForm::Warps("_c1280"),
        _ => LayerForm::General("a warp holds 1280 channels"),
    }
}

/// Rows, channels and constant of a layer norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    pub storage: Storage,
    pub rows: usize,
    pub c: usize,
    pub eps: f32,
}

impl LayerNorm {
    pub fn forward(&self, [x, gamma, beta, out]: [DevicePtr; 4]) -> Result<Launch> {
        let (rows, c, eps) = (self.rows as i64, int(self.c)?, self.eps);
        let (ending, grid) = self.form(&[x, gamma, beta, out])?;
        let params = p::LayerNormParams { x, gamma, beta, out, rows, c, eps };
        Launch::new(&format!("layer_norm_{}{ending}", self.storage.name()), grid, &params)
    }

    /// dx, with `residual` added if there is one.
    pub fn backward(&self, [x, gamma, dy, residual, dx]: [DevicePtr; 5]) -> Result<Launch> {
        let (rows, c, eps) = (self.rows as i64, int(self.c)?, self.eps);
        let (ending, grid) = self.form(&[x, gamma, dy, residual, dx])?;
        let params = p::LayerNormBwdParams { x, gamma, dy, residual, dx, rows, c, eps };
        Launch::new(&format!("layer_norm_bwd_{}{ending}", self.storage.name()), grid, &params)
    }

    fn form(&self, addresses: &[DevicePtr]) -> Result<(&'static str, [u32; 3])> {
        const WARPS: usize = 8;
        Ok(match choose_layer(self.c, addresses) {
            LayerForm::General(_) => ("", [count(self.rows)?, 1, 1]),
            LayerForm::Warps(ending) => (ending, [count(self.rows.div_ceil(WARPS))?, 1, 1]),
        })
    }
}

fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| too_large(n))
}

fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| too_large(n))
}

fn grid([x, y, z]: [usize; 3]) -> Result<[u32; 3]> {
    Ok([count(x)?, count(y)?, count(z)?])
}

fn too_large(n: usize) -> Error {
    let problem = format!("{n} is more than a kernel counts to");
    Error::Shape { node: String::new(), op: "norm", problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(pixels: usize, c: [usize; 2]) -> GroupNorm {
        GroupNorm {
            storage: Storage::F16,
            n: 2,
            measured: 2,
            pixels,
            c,
            groups: 32,
            eps: 1e-5,
            act: Some(Activation::Silu),
        }
    }

    #[test]
    fn the_form_says_why() {
        let print = |norm: GroupNorm| choose(&norm, Stats::NONE).to_string();
        assert_eq!(print(norm(4096, [320, 0])), "tiles of 128 pixels, slabs of 80 channels");
        assert_eq!(print(norm(1024, [1280, 640])), "tiles of 64 pixels, slabs of 240 channels");
        assert_eq!(print(norm(512 * 512, [128, 0])), "tiles of 1024 pixels, slabs of 64 channels");
        assert_eq!(print(norm(64, [1280, 0])), "one block a group: its groups are small");
        assert_eq!(print(norm(4096, [36, 28])), "one block a group: its channels are no multiple of 8");
        let gelu = GroupNorm { act: Some(Activation::Gelu), ..norm(4096, [320, 0]) };
        assert_eq!(print(gelu), "one block a group: its activation has no tiled form");
    }

    #[test]
    fn statistics_that_are_there_make_small_groups_tiled_too() {
        let given = Stats::Joint(TileStats { at: DevicePtr(4096), rows: 64 });
        assert!(matches!(choose(&norm(64, [1280, 0]), given), Form::Tiled { slab: 80, .. }));
    }

    #[test]
    fn launches_follow_from_which_statistics_are_missing_and_how_many() {
        let at = |k: u64| DevicePtr(4096 * k);
        let forward = |norm: GroupNorm, stats: Stats| -> Vec<&str> {
            let form = choose(&norm, stats);
            let x = [at(1), if norm.c[1] > 0 { at(2) } else { DevicePtr::NONE }];
            let at = Forward { x, gamma: at(3), beta: at(4), out: at(5), workspace: at(6) };
            let launches = norm.forward(form, stats, &at).expect("legal");
            launches.iter().map(|launch| launch.kernel.name).collect()
        };
        let (tiles, fold, apply) =
            ("group_norm_tiles_f16", "group_norm_fold_f32", "group_norm_apply_f16_silu");
        assert_eq!(forward(norm(4096, [320, 0]), Stats::NONE), [tiles, apply]);
        assert_eq!(forward(norm(4096, [640, 320]), Stats::NONE), [tiles, tiles, apply]);
        let some = Some(TileStats { at: at(7), rows: 128 });
        assert_eq!(forward(norm(4096, [640, 320]), Stats::Each([some, None])), [tiles, apply]);
        assert_eq!(forward(norm(512 * 512, [128, 0]), Stats::Each([some, None])), [fold, apply]);
        assert_eq!(forward(norm(64, [1280, 0]), Stats::NONE), ["group_norm_f16"]);
        assert_eq!(forward(norm(64, [1280, 1280]), Stats::NONE), ["place_f16_v8", "group_norm_f16"]);
    }

    #[test]
    fn statistics_of_a_batch_are_folded_whole_also_where_its_first_images_alone_are_read() {
        let at = |k: u64| DevicePtr(4096 * k);
        let given = Stats::Each([Some(TileStats { at: at(7), rows: 128 }), None]);
        let at =
            Forward { x: [at(1), DevicePtr::NONE], gamma: at(3), beta: at(4), out: at(5), workspace: at(6) };
        let one = GroupNorm { n: 1, ..norm(512 * 512, [128, 0]) };
        let form = choose(&one, given);
        let launches = one.forward(form, given, &at).expect("legal");
        let fold: p::GroupFoldParams = bytemuck::pod_read_unaligned(&launches[0].params);
        let apply: p::GroupApplyParams = bytemuck::pod_read_unaligned(&launches[1].params);
        assert_eq!((fold.n, apply.n, apply.stats), (2, 1, fold.folded));
        assert_eq!(one.workspace(form, given), norm(512 * 512, [128, 0]).workspace(form, given));
    }

    #[test]
    fn rows_that_fit_a_warp_stay_in_its_registers() {
        let somewhere = [DevicePtr(4096)];
        assert_eq!(choose_layer(320, &somewhere), LayerForm::Warps("_c512"));
        assert_eq!(choose_layer(1280, &somewhere), LayerForm::Warps("_c1280"));
        assert_eq!(choose_layer(33, &somewhere), LayerForm::General("its channels are no multiple of 8"));
        assert_eq!(choose_layer(320, &[DevicePtr(2)]), LayerForm::General("an address is no multiple of 16"));
        assert_eq!(choose_layer(1664, &somewhere).to_string(), "a block a row: a warp holds 1280 channels");
    }
}
