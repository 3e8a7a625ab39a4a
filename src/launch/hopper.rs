//! Products and convolutions as launches of the kernels for sm_90a: a few blocks that each take tile after tile.

use bytemuck::pod_read_unaligned;

use super::conv2d::{self, BwdOperands, Conv2d, Geometry, Operands, join, largest};
use super::gemm::{Gemm, Order, Places, int, join_launch};
use super::params::{
    Conv2dBwdSm90Params, Conv2dSm90Params, DevicePtr, Epilogue, GemmParams, GemmSm90Params, JoinParams,
    Params, Tile,
};
use super::tune::conv2d::{Form, OnHopper};
use super::tune::hopper::Parts;
use super::tune::{Fastest, Obstacle, hopper};
use super::{Launch, Storage};
use crate::error::{Error, Result};

/// That tile, with the depth in so many parts of so much; `blocks` says how many take so many tiles. One launch, or
/// two where the depth is in parts.
pub fn gemm(
    gemm: &Gemm,
    tile: &hopper::Tile,
    [splits, k_split]: [usize; 2],
    blocks: impl Fn(i64) -> u32,
    storage: Storage,
    at: &Places,
) -> Result<Vec<Launch>> {
    let op = if gemm.order == Order::ByColumns { "gemm" } else { "gemm_bwd" };
    let kernel = format!("{op}_{}_{}", storage.name(), tile.variant());
    let GemmParams { a, b, d, epilogue, a_row, d_row, b_column, b_k, m, n, k, .. } = gemm.params(at)?;
    let b_row = b_column.max(b_k);
    let whole = GemmSm90Params { a, b, d, epilogue, a_row, b_row, d_row, m, n, k, ..Default::default() };
    let size = Tile { m: int(tile.m())?, n: int(tile.n)? };
    if tile.cluster > 1 {
        return Ok(vec![Launch::new(&kernel, clusters(whole.items(size), tile)?, &whole)?]);
    }
    let launch = |params: &GemmSm90Params| Launch::new(&kernel, [blocks(params.items(size)), 1, 1], params);
    if splits == 1 {
        return Ok(vec![launch(&whole)?]);
    }
    let (sums, k_split) = (at.workspace, int(k_split)?);
    let part = GemmSm90Params { d: DevicePtr::NONE, sums, epilogue: Epilogue::default(), k_split, ..whole };
    let join = JoinParams { sums, d, epilogue, d_row, m, n, splits: int(splits)?, pad: 0 };
    Ok(vec![launch(&part)?, join_launch(storage, &join)?])
}

/// A cluster for each of so many tiles.
fn clusters(tiles: i64, tile: &hopper::Tile) -> Result<[u32; 3]> {
    let blocks = tiles.saturating_mul(tile.cluster as i64);
    let blocks = u32::try_from(blocks)
        .map_err(|_| Error::Bug(format!("{tiles} tiles are too many for clusters, which are for a few")))?;
    Ok([blocks, 1, 1])
}

/// Tiles that the blocks of a launch take one after the other, parts of sums counted each; `None` for a kernel whose
/// blocks make one each.
pub fn items(launch: &Launch) -> Option<u64> {
    let tile = Tile::of(launch.kernel).filter(|_| launch.kernel.cluster == 1)?;
    let items = match launch.kernel.params {
        GemmSm90Params::NAME => pod_read_unaligned::<GemmSm90Params>(&launch.params).items(tile),
        Conv2dSm90Params::NAME => pod_read_unaligned::<Conv2dSm90Params>(&launch.params).items(tile),
        Conv2dBwdSm90Params::NAME => pod_read_unaligned::<Conv2dBwdSm90Params>(&launch.params).items(tile),
        _ => return None,
    };
    Some(items.unsigned_abs())
}

/// With fewer pixels of an image, or channels that are made, most of a slab is nothing.
const LEAST_PIXELS: usize = 64;
const LEAST_CHANNELS: usize = 32;
/// What these kernels are for.
pub(super) const TARGET: &str = "sm_90a";

/// What a convolution takes on a device for sm_90a, or what is in the way. Whether it is for these kernels and how sums
/// are made follows from one image.
pub(super) fn form(conv: &Conv2d) -> std::result::Result<(Form, Fastest), Obstacle> {
    let geometry = fitting(conv)?;
    let ([c, c2], taps) = (geometry.channels, geometry.taps);
    if c2 > 0 && !c.is_multiple_of(hopper::STEP) {
        return Err(Obstacle::SourcesWithinAStep);
    }
    let steps = taps[0] * taps[1] * (c.div_ceil(hopper::STEP) + c2.div_ceil(hopper::STEP));
    let kinds = kinds(&geometry);
    choose(conv, largest(geometry.out, [kinds; 2]), kinds * kinds, conv.filter[0], steps)
}

/// The same for a data gradient.
pub(super) fn bwd_form(conv: &Conv2d, source: usize) -> std::result::Result<(Form, Fastest), Obstacle> {
    let geometry = fitting(conv)?;
    let (kinds, taps) = (kinds(&geometry), geometry.taps);
    let steps = kinds * kinds * taps[0] * taps[1] * conv.filter[0].div_ceil(hopper::STEP);
    choose(conv, conv.size, 1, geometry.channels[source], steps)
}

/// Kinds of lines, and of columns, that are slabs of their own.
pub(super) fn kinds(geometry: &Geometry) -> usize {
    if geometry.up { 2 } else { geometry.kinds[0] }
}

fn fitting(conv: &Conv2d) -> std::result::Result<Geometry, Obstacle> {
    let geometry = conv.geometry();
    let twofold = conv.enlarged == Some(conv.size.map(|extent| 2 * extent));
    let pairs = geometry.out.iter().all(|extent| extent.is_multiple_of(2));
    if (geometry.up && !(twofold && pairs)) || geometry.kinds.contains(&3) {
        return Err(Obstacle::Enlarged);
    }
    if geometry.stride == [1, 1] { Ok(geometry) } else { Err(Obstacle::Stride) }
}

fn choose(
    conv: &Conv2d,
    pixels: [usize; 2],
    classes: usize,
    n: usize,
    steps: usize,
) -> std::result::Result<(Form, Fastest), Obstacle> {
    if pixels[0] * pixels[1] < LEAST_PIXELS {
        return Err(Obstacle::FewPixels);
    }
    if n < LEAST_CHANNELS {
        return Err(Obstacle::FewChannels);
    }
    let work = |images: usize, bits: [u32; 2]| hopper::Work {
        groups: classes,
        slabs: hopper::slabs(images, pixels, bits),
        n,
        steps,
    };
    let parts = work(2, hopper::pixel_bits(2, pixels)).parts();
    // Whole slabs that statistics are taken of have pixels of one image.
    let together = if conv.stats && parts == Parts::Joined(1) { 1 } else { conv.images };
    let bits = hopper::pixel_bits(together, pixels);
    let (tile, why) = work(conv.images, bits).tile(TARGET, parts);
    let (splits, blocks) = (parts.count(), hopper::blocks(TARGET, i64::MAX));
    Ok((Form::Hopper(OnHopper { tile, splits, bits, blocks }), why))
}

/// As [`Conv2d::forward`].
pub(super) fn forward(conv: &Conv2d, on: OnHopper, storage: Storage, at: &Operands) -> Result<Vec<Launch>> {
    let geometry = conv.geometry();
    let Geometry { out, channels, taps: [r, s], before, up, .. } = geometry;
    let [h, w] = if up { conv.size } else { geometry.seen };
    let [n, h, w, height, width] = [conv.images, h, w, out[0], out[1]].map(conv2d::int);
    let [c, c2, o, r, s] = [channels[0], channels[1], conv.filter[0], r, s].map(conv2d::int);
    let [top, left, kinds, splits] = [before[0], before[1], kinds(&geometry), on.splits].map(conv2d::int);
    let [x_bits, y_bits] = on.bits.map(|bits| bits as i32);
    let Operands { x, x2, filter, y, .. } = *at;
    let whole = Conv2dSm90Params {
        x,
        x2,
        filter,
        y,
        epilogue: conv.epilogue(at),
        n,
        h,
        w,
        c,
        c2,
        o,
        r,
        s,
        top,
        left,
        height,
        width,
        kinds,
        splits,
        x_bits,
        y_bits,
        up: i32::from(up),
        ..Default::default()
    };
    let kernel = format!("conv2d_{}_{}", storage.name(), on.tile.variant());
    let items = whole.items(Tile { m: int(on.tile.m())?, n: int(on.tile.n)? });
    if on.tile.cluster > 1 {
        // As many parts as blocks share a tile.
        return Ok(vec![Launch::new(&kernel, clusters(items / i64::from(splits), &on.tile)?, &whole)?]);
    }
    let grid = [items.clamp(1, i64::from(on.blocks)) as u32, 1, 1];
    if on.splits == 1 {
        return Ok(vec![Launch::new(&kernel, grid, &whole)?]);
    }
    let (sums, epilogue, m) = (at.workspace, whole.epilogue, n.saturating_mul(height).saturating_mul(width));
    let part = Conv2dSm90Params { y: DevicePtr::NONE, sums, epilogue: Epilogue::default(), ..whole };
    let parts = Launch::new(&kernel, grid, &part)?;
    let sum = JoinParams { sums, d: y, epilogue, m, n: o, ..Default::default() };
    Ok(vec![parts, join(on.splits, storage, sum)?])
}

/// As [`Conv2d::backward`].
pub(super) fn backward(
    conv: &Conv2d,
    source: usize,
    on: OnHopper,
    storage: Storage,
    at: &BwdOperands,
) -> Result<Vec<Launch>> {
    let geometry = conv.geometry();
    let Geometry { out, channels, taps: [r, s], before, up, .. } = geometry;
    let [n, h, w, height, width] = [conv.images, conv.size[0], conv.size[1], out[0], out[1]].map(conv2d::int);
    let first = if source == 0 { 0 } else { channels[0] };
    let [channels, first, c] = [channels[0] + channels[1], first, channels[source]].map(conv2d::int);
    let [o, r, s] = [conv.filter[0], r, s].map(conv2d::int);
    let [top, left, kinds, splits] = [before[0], before[1], kinds(&geometry), on.splits].map(conv2d::int);
    let [x_bits, y_bits] = on.bits.map(|bits| bits as i32);
    let BwdOperands { dy, filter, dx, epilogue, workspace: sums } = *at;
    let whole = Conv2dBwdSm90Params {
        dy,
        filter,
        dx,
        epilogue,
        n,
        h,
        w,
        channels,
        first,
        c,
        o,
        r,
        s,
        top,
        left,
        height,
        width,
        kinds,
        splits,
        x_bits,
        y_bits,
        up: i32::from(up),
        ..Default::default()
    };
    let kernel = format!("conv2d_bwd_{}_{}", storage.name(), on.tile.variant());
    let items = whole.items(Tile { m: int(on.tile.m())?, n: int(on.tile.n)? });
    if on.tile.cluster > 1 {
        // As many parts as blocks share a tile.
        return Ok(vec![Launch::new(&kernel, clusters(items / i64::from(splits), &on.tile)?, &whole)?]);
    }
    let grid = [items.clamp(1, i64::from(on.blocks)) as u32, 1, 1];
    if on.splits == 1 {
        return Ok(vec![Launch::new(&kernel, grid, &whole)?]);
    }
    let part = Conv2dBwdSm90Params { dx: DevicePtr::NONE, sums, epilogue: Epilogue::default(), ..whole };
    let parts = Launch::new(&kernel, grid, &part)?;
    let m = n.saturating_mul(h).saturating_mul(w);
    let sum = JoinParams { sums, d: dx, epilogue, m, n: c, ..Default::default() };
    Ok(vec![parts, join(on.splits, storage, sum)?])
}
