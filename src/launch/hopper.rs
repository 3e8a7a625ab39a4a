//! Products, convolutions and attention as launches of the kernels for sm_90a: a few blocks that each take tile after
//! tile.

use bytemuck::pod_read_unaligned;

use super::attention::{Forward, Sizes};
use super::conv2d::{self, BwdOperands, Conv2d, Geometry, Operands, in_parts, largest};
use super::gemm::{Gemm, Order, Places, int};
use super::params::{
    AttentionBwdParams, AttentionBwdSm90Params, AttentionParams, AttentionSm90Params, Conv2dBwdSm90Params,
    Conv2dSm90Params, GemmParams, GemmSm90Params, Params, Tile,
};
use super::tune::conv2d::{Form, OnHopper};
use super::tune::{Fastest, Obstacle, hopper};
use super::{Launch, Storage, tune};
use crate::error::{Error, Result};

/// That tile, with the depth in so many parts of so much; `blocks` says how many take so many tiles.
pub fn gemm(
    gemm: &Gemm,
    tile: &hopper::Tile,
    [splits, k_split]: [usize; 2],
    blocks: impl Fn(i64) -> u32,
    storage: Storage,
    at: &Places,
) -> Result<Launch> {
    let op = if gemm.order == Order::ByColumns { "gemm" } else { "gemm_bwd" };
    let kernel = format!("{op}_{}_{}", storage.name(), tile.variant());
    let GemmParams { a, b, d, epilogue, a_row, d_row, b_column, b_k, m, n, k, .. } = gemm.params(at)?;
    let b_row = b_column.max(b_k);
    let kept = if tile.cluster > 1 { 1 } else { splits };
    let (sums, arrived) = in_parts(kept, (at.workspace, at.arrived));
    let k_split = if kept > 1 { int(k_split)? } else { 0 };
    let params = GemmSm90Params {
        a,
        b,
        d,
        sums,
        arrived,
        epilogue,
        a_row,
        b_row,
        d_row,
        m,
        n,
        k,
        k_split,
        ..Default::default()
    };
    let size = Tile { m: int(tile.m())?, n: int(tile.n)? };
    let grid = match tile.cluster {
        1 => [blocks(params.items(size)), 1, 1],
        _ => clusters(params.items(size), tile)?,
    };
    Launch::new(&kernel, grid, &params)
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
    let tile = Tile::of(launch.kernel).filter(|_| launch.kernel.cluster == 1);
    let items = match (launch.kernel.params, tile) {
        (GemmSm90Params::NAME, Some(tile)) => {
            pod_read_unaligned::<GemmSm90Params>(&launch.params).items(tile)
        }
        (Conv2dSm90Params::NAME, Some(tile)) => {
            pod_read_unaligned::<Conv2dSm90Params>(&launch.params).items(tile)
        }
        (Conv2dBwdSm90Params::NAME, Some(tile)) => {
            pod_read_unaligned::<Conv2dBwdSm90Params>(&launch.params).items(tile)
        }
        (AttentionSm90Params::NAME, _) => pod_read_unaligned::<AttentionSm90Params>(&launch.params).items(),
        (AttentionBwdSm90Params::NAME, _) => {
            pod_read_unaligned::<AttentionBwdSm90Params>(&launch.params).items()
        }
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
    let bits = hopper::bits_of(conv.images, pixels, conv.stats);
    let (tile, why) = work(conv.images, bits).tile(TARGET, parts);
    let (splits, blocks) = (parts.count(), hopper::blocks(TARGET, i64::MAX));
    Ok((Form::Hopper(OnHopper { tile, splits, bits, blocks }), why))
}

impl OnHopper {
    fn tile(&self) -> Result<Tile> {
        Ok(Tile { m: int(self.tile.m())?, n: int(self.tile.n)? })
    }

    /// For so many items, parts of sums counted.
    fn grid(&self, items: i64) -> Result<[u32; 3]> {
        if self.tile.cluster > 1 {
            // As many parts as blocks share a tile.
            return clusters(items / int(self.splits).map(i64::from)?, &self.tile);
        }
        Ok([items.clamp(1, i64::from(self.blocks)) as u32, 1, 1])
    }
}

/// As [`Conv2d::forward`].
pub(super) fn forward(conv: &Conv2d, on: OnHopper, storage: Storage, at: &Operands) -> Result<Launch> {
    let geometry = conv.geometry();
    let Geometry { out, channels, taps: [r, s], before, up, .. } = geometry;
    let [h, w] = if up { conv.size } else { geometry.seen };
    let [n, h, w, height, width] = [conv.images, h, w, out[0], out[1]].map(conv2d::int);
    let [c, c2, o, r, s] = [channels[0], channels[1], conv.filter[0], r, s].map(conv2d::int);
    let [top, left, kinds, splits] = [before[0], before[1], kinds(&geometry), on.splits].map(conv2d::int);
    let [x_bits, y_bits] = on.bits.map(|bits| bits as i32);
    let Operands { x, x2, filter, y, .. } = *at;
    let (sums, arrived) = in_parts(on.kept(), (at.workspace, at.arrived));
    let whole = Conv2dSm90Params {
        x,
        x2,
        filter,
        y,
        sums,
        arrived,
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
    Launch::new(&kernel, on.grid(whole.items(on.tile()?))?, &whole)
}

/// As [`Conv2d::backward`].
pub(super) fn backward(
    conv: &Conv2d,
    source: usize,
    on: OnHopper,
    storage: Storage,
    at: &BwdOperands,
) -> Result<Launch> {
    let geometry = conv.geometry();
    let Geometry { out, channels, taps: [r, s], before, up, .. } = geometry;
    let [n, h, w, height, width] = [conv.images, conv.size[0], conv.size[1], out[0], out[1]].map(conv2d::int);
    let first = if source == 0 { 0 } else { channels[0] };
    let [channels, first, c] = [channels[0] + channels[1], first, channels[source]].map(conv2d::int);
    let [o, r, s] = [conv.filter[0], r, s].map(conv2d::int);
    let [top, left, kinds, splits] = [before[0], before[1], kinds(&geometry), on.splits].map(conv2d::int);
    let [x_bits, y_bits] = on.bits.map(|bits| bits as i32);
    let BwdOperands { dy, filter, dx, epilogue, .. } = *at;
    let (sums, arrived) = in_parts(on.kept(), (at.workspace, at.arrived));
    let whole = Conv2dBwdSm90Params {
        dy,
        filter,
        dx,
        sums,
        arrived,
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
    Launch::new(&kernel, on.grid(whole.items(on.tile()?))?, &whole)
}

/// `o` and `lse`, so many keys at a time, by at most so many blocks.
pub(super) fn attention(of: &Forward, keys: usize, blocks: u32, storage: Storage) -> Result<Launch> {
    let whole = of.params()?;
    let AttentionParams { q, k, v, o, lse, q_row, k_row, v_row, o_row, .. } = whole;
    let AttentionParams { n, t, u, heads, d, causal, q_images, .. } = whole;
    if causal != 0 {
        return Err(Error::Bug("attention for sm_90a knows no mask".to_owned()));
    }
    let params = AttentionSm90Params {
        q,
        k,
        v,
        o,
        lse,
        q_row,
        k_row,
        v_row,
        o_row,
        n,
        t,
        u,
        heads,
        d,
        q_images,
        ..Default::default()
    };
    let kernel = format!("attention_{}_{}", storage.name(), tune::attention::variant(of.sizes.d, keys));
    Launch::new(&kernel, [params.items().clamp(1, i64::from(blocks)) as u32, 1, 1], &params)
}

/// The gradients of that, with so many rows of the other tokens at a time.
pub(super) fn attention_bwd(
    of: &AttentionBwdParams,
    rows: usize,
    blocks: u32,
    storage: Storage,
) -> Result<Launch> {
    if of.causal != 0 {
        return Err(Error::Bug("attention for sm_90a knows no mask".to_owned()));
    }
    let &AttentionBwdParams { q, k, v, d_o, lse, delta, peak, dq, dk, dv, .. } = of;
    let &AttentionBwdParams { q_row, k_row, v_row, d_o_row, dq_row, dk_row, dv_row, .. } = of;
    let &AttentionBwdParams { n, t, u, heads, d, .. } = of;
    let params = AttentionBwdSm90Params {
        q,
        k,
        v,
        d_o,
        lse,
        delta,
        peak,
        dq,
        dk,
        dv,
        q_row,
        k_row,
        v_row,
        d_o_row,
        dq_row,
        dk_row,
        dv_row,
        n,
        t,
        u,
        heads,
        d,
        ..Default::default()
    };
    let variant = tune::attention::variant(d.unsigned_abs() as usize, rows);
    let kernel = format!("attention_bwd_{}_{variant}", storage.name());
    Launch::new(&kernel, [params.items().clamp(1, i64::from(blocks)) as u32, 1, 1], &params)
}

/// What attention multiplies: whole tiles, and 16 channels of a score at a time.
pub(super) fn attention_flops(sizes: Sizes, keys: usize) -> u64 {
    let Sizes { n, t, u, heads, d, .. } = sizes;
    let scores = t.next_multiple_of(hopper::SLAB) * u.next_multiple_of(keys);
    2 * (n * heads * scores * (d.next_multiple_of(16) + d)) as u64
}

/// What its gradients multiply: three products for queries, and four for keys where theirs are wanted.
pub(super) fn attention_bwd_flops(sizes: Sizes, of_keys: bool, rows: usize) -> u64 {
    let Sizes { n, t, u, heads, d, .. } = sizes;
    let pairs = |own: usize, other: usize| own.next_multiple_of(hopper::SLAB) * other.next_multiple_of(rows);
    let products = 3 * pairs(t, u) + if of_keys { 4 * pairs(u, t) } else { 0 };
    2 * (n * heads * products * d) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Padding;

    #[test]
    fn the_batch_chooses_among_tiles_but_not_how_sums_and_statistics_are_made() {
        for (extent, c, o) in
            [(8, 1280, 1280), (10, 1280, 1280), (16, 2560, 1280), (32, 640, 640), (64, 320, 320)]
        {
            let of = |images: usize, stats: bool| {
                let conv = Conv2d {
                    images,
                    size: [extent; 2],
                    channels: [c, 0],
                    enlarged: None,
                    filter: [o, 3, 3],
                    stride: 1,
                    padding: Padding::all(1),
                    sub_pixel: false,
                    stats,
                };
                let form = conv.form(TARGET);
                let Form::Hopper(on) = form else { panic!("{extent} x {extent} x {c}: {form}") };
                (on.tile.cluster, on.splits, conv.statistics_tile(form).filter(|_| stats))
            };
            for stats in [false, true] {
                let alone = of(1, stats);
                assert!((2..=16).all(|images| of(images, stats) == alone), "{extent} x {extent} x {c}");
            }
        }
    }
}
