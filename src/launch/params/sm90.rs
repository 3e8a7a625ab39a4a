//! Params of kernels for sm_90a: `kernels/include/params_sm90.cuh`, and the tensors that they copy in bulk.
//!
//! `b` and `filter` are weights, in a piece of memory that no launch of a program writes: kernels bring some of them into
//! the L2 cache before the launch in front has ended. `tests/launches.rs` holds it.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::conv2d::Window;
use super::{DevicePtr, Epilogue, Params, Rules, Tile};
use crate::launch::maps::{Encoded, Map, Swizzle};
use crate::manifest::Kernel;

/// Rows of a slab, and elements of its depth.
pub(in crate::launch) const SLAB: [i32; 2] = [128, 64];

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GemmSm90Params {
    pub a: DevicePtr,
    pub b: DevicePtr,
    pub d: DevicePtr,
    // f32 [splits, m, n]: takes the parts of the sums first; or 0
    pub sums: DevicePtr,
    // u32, one for 128 rows of a tile, all zero before and after; or 0
    pub arrived: DevicePtr,
    pub epilogue: Epilogue,
    // elements between two rows as they are stored
    pub a_row: i64,
    pub b_row: i64,
    pub d_row: i64,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    // of k for a split; with sums
    pub k_split: i32,
    pub a_map: Encoded,
    pub b_map: Encoded,
    pub d_map: Encoded,
}
const _: () = assert!(size_of::<GemmSm90Params>() == 512 && offset_of!(GemmSm90Params, a_map) == 128);

/// Columns of a row of shared memory: of b, where it comes by rows, and of results.
fn span(columns: i32) -> u32 {
    match columns {
        _ if columns % 64 == 0 => 64,
        _ if columns % 32 == 0 => 32,
        _ => 16,
    }
}

/// The swizzle of such rows.
fn swizzle(span: u32) -> Swizzle {
    match span {
        64 => Swizzle::B128,
        32 => Swizzle::B64,
        _ => Swizzle::B32,
    }
}

/// Whether results leave in boxes, as `epilogue_sm90.cuh` has it: sums of `n` columns whose blocks finish them alone,
/// rows of results `row` elements apart.
fn in_boxes(kernel: &Kernel, sums: DevicePtr, e: &Epilogue, to: DevicePtr, [n, row]: [i64; 2]) -> bool {
    let places = to.0 | e.residual.0 | e.channels.0 | e.bias.0;
    kernel.cluster == 1 && sums == DevicePtr::NONE && n % 8 == 0 && row % 8 == 0 && places.is_multiple_of(16)
}

impl GemmSm90Params {
    fn by_rows(kernel: &Kernel) -> bool {
        kernel.name.starts_with("gemm_bwd")
    }

    /// Tiles, times splits.
    pub fn items(&self, tile: Tile) -> i64 {
        let [x, y] = tile.blocks(&self.epilogue, self.m, self.n).map(i64::from);
        let splits = if self.sums == DevicePtr::NONE {
            1
        } else {
            self.k.unsigned_abs().div_ceil(self.k_split.max(1).unsigned_abs())
        };
        x.saturating_mul(y).saturating_mul(i64::from(splits))
    }
}

impl Params for GemmSm90Params {
    const NAME: &'static str = "GemmSm90Params";
    const ADDRESSES: usize = 9;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [("a", self.a), ("b", self.b)] {
            rules.given(field, address);
        }
        for (field, address) in [("a", self.a), ("b", self.b), ("sums", self.sums)] {
            rules.aligned(field, address, 16);
        }
        for (field, extent) in [("m", self.m), ("n", self.n), ("k", self.k)] {
            rules.at_least(field, extent, 1);
            // Tiles reach beyond the end.
            rules.holds(field, extent, extent <= i32::MAX - 512, "at most 2^31 - 513");
        }
        rules.multiple_of("k", self.k, 8);
        for (field, row) in [("a_row", self.a_row), ("b_row", self.b_row)] {
            rules.at_least(field, row, 8);
            rules.multiple_of(field, row, 8);
            rules.holds(field, row, row < 1 << 39, "below 2^39");
        }
        rules.at_least("d_row", self.d_row, 0);
        let apart = self.d_row.saturating_mul(i64::from(self.m));
        rules.holds("d_row", self.d_row, apart < 1 << 39, "rows of fewer than 2^39 elements in all");
        self.epilogue.check(rules, self.m, self.n, true);
        let Some(tile) = Tile::of(rules.kernel) else { return };
        let cluster = i64::from(rules.kernel.cluster);
        if cluster > 1 {
            rules.absent("sums", self.sums, "a cluster");
            rules.holds("k", self.k, chunks(self.k) >= cluster, "a step for each block of a cluster");
        }
        grid(rules, self.items(tile).saturating_mul(cluster));
        rules.given("d", self.d);
        rules.counters(self.arrived, self.sums);
        if self.sums == DevicePtr::NONE {
            return;
        }
        rules.at_least("k_split", self.k_split, i64::from(SLAB[1]));
        rules.multiple_of("k_split", self.k_split, i64::from(SLAB[1]));
    }

    fn maps(&self, kernel: &Kernel) -> Vec<Map> {
        let columns = Tile::of(kernel).map_or(0, |tile| tile.n);
        let [m, n, k] = [self.m, self.n, self.k].map(|extent| extent as u64);
        let [rows, depth] = SLAB.map(|extent| extent as u32);
        let matrix = |space: usize, address: usize, extents: [u64; 2], row: i64, tile: [u32; 2]| Map {
            space,
            address,
            offset: 0,
            extents: extents.to_vec(),
            strides: vec![2 * row as u64],
            tile: tile.to_vec(),
            swizzle: swizzle(tile[0]),
        };
        let a = matrix(offset_of!(Self, a_map), 0, [k, m], self.a_row, [depth, rows]);
        let (extents, tile) = if Self::by_rows(kernel) {
            ([n, k], [span(columns), depth])
        } else {
            ([k, n], [depth, columns as u32])
        };
        let mut maps = vec![a, matrix(offset_of!(Self, b_map), 1, extents, self.b_row, tile)];
        if in_boxes(kernel, self.sums, &self.epilogue, self.d, [self.n.into(), self.d_row]) {
            let of_image =
                if self.epilogue.stats == DevicePtr::NONE { m } else { self.epilogue.stat_rows as u64 };
            let span = span(self.epilogue.columns(columns));
            let row = 2 * self.d_row as u64;
            maps.push(Map {
                space: offset_of!(Self, d_map),
                address: 2,
                offset: 0,
                extents: vec![self.epilogue.columns(self.n) as u64, of_image, m / of_image],
                strides: vec![row, row * of_image],
                tile: vec![span, rows, 1],
                swizzle: swizzle(span),
            });
        }
        maps
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Conv2dSm90Params {
    // x2: 0 where there is one source
    pub x: DevicePtr,
    pub x2: DevicePtr,
    pub filter: DevicePtr,
    pub y: DevicePtr,
    // f32 [splits, n, height, width, o]: takes the parts of the sums first; or 0
    pub sums: DevicePtr,
    // u32, one a slab and tile of channels, all zero before and after; or 0
    pub arrived: DevicePtr,
    pub epilogue: Epilogue,
    pub n: i32,
    pub h: i32,
    pub w: i32,
    pub c: i32,
    pub c2: i32,
    pub o: i32,
    pub r: i32,
    pub s: i32,
    pub top: i32,
    pub left: i32,
    pub height: i32,
    pub width: i32,
    // of lines and of columns of y that are slabs of their own: 1, or 2
    pub kinds: i32,
    pub splits: i32,
    // a slab is 2^x_bits columns of 2^y_bits lines
    pub x_bits: i32,
    pub y_bits: i32,
    // with 2 kinds: 1 where they have one filter, 0 where each has its own (sub-pixel)
    pub up: i32,
    pub pad: [i32; 7],
    pub x_map: Encoded,
    pub x2_map: Encoded,
    pub filter_map: Encoded,
    pub y_map: [Encoded; 4],
}
const _: () = assert!(size_of::<Conv2dSm90Params>() == 1088 && offset_of!(Conv2dSm90Params, x_map) == 192);

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Conv2dBwdSm90Params {
    pub dy: DevicePtr,
    pub filter: DevicePtr,
    pub dx: DevicePtr,
    // f32 [splits, n, h, w, c]: takes the parts of the sums first; or 0
    pub sums: DevicePtr,
    // as in Conv2dSm90Params
    pub arrived: DevicePtr,
    pub epilogue: Epilogue,
    pub n: i32,
    pub h: i32,
    pub w: i32,
    // dx has channels first .. first + c of the filter's
    pub channels: i32,
    pub first: i32,
    pub c: i32,
    pub o: i32,
    pub r: i32,
    pub s: i32,
    pub top: i32,
    pub left: i32,
    pub height: i32,
    pub width: i32,
    // as in Conv2dSm90Params
    pub kinds: i32,
    pub splits: i32,
    pub x_bits: i32,
    pub y_bits: i32,
    pub up: i32,
    pub pad: [i32; 8],
    pub dy_map: [Encoded; 4],
    pub filter_map: Encoded,
    pub dx_map: Encoded,
}
const _: () =
    assert!(size_of::<Conv2dBwdSm90Params>() == 960 && offset_of!(Conv2dBwdSm90Params, dy_map) == 192);

/// Blocks that take `items` one after the other, or clusters with a block for each.
fn grid(rules: &mut Rules, items: i64) {
    let most = i64::from(i32::MAX) - 1024;
    rules.holds("grid", items, items <= most, "less than 2^31 - 1024 tiles and splits");
    let grid @ [blocks, y, z] = rules.grid;
    let least = if rules.kernel.cluster > 1 { items } else { 1 };
    let fits = (least..=items).contains(&i64::from(blocks)) && [y, z] == [1, 1];
    rules.holds("grid", format_args!("{grid:?}"), fits, "at most a block a tile and split, clusters whole");
}

/// Slabs, tiles and steps of a convolution: what both directions rely on.
struct Walk {
    images: i32,
    /// Lines and columns of a class of pixels, and classes.
    pixels: [i32; 2],
    classes: i32,
    bits: [i32; 2],
    /// Channels that are made.
    columns: i32,
    steps: i64,
    splits: i32,
    sums: DevicePtr,
    arrived: DevicePtr,
    to: DevicePtr,
}

impl Walk {
    fn slabs(&self) -> i64 {
        let [x, y] = self.bits.map(|bits| bits.clamp(0, 7));
        let count = |extent: i32, bits: i32| (i64::from(extent) + (1 << bits) - 1) >> bits;
        let [lines, columns] = self.pixels;
        count(self.images, (7 - x - y).max(0)) * count(lines, y) * count(columns, x)
    }

    fn items(&self, tile: Tile) -> i64 {
        let tiles = self.slabs().saturating_mul(i64::from(SLAB[0])) as u64;
        let tiles = tiles.div_ceil(tile.m.unsigned_abs().into()) as i64;
        let columns = i64::from(self.columns.unsigned_abs().div_ceil(tile.n.unsigned_abs()));
        let parts = i64::from(self.classes) * i64::from(self.splits);
        tiles.saturating_mul(columns).saturating_mul(parts)
    }

    fn check(&self, rules: &mut Rules, epilogue: &Epilogue) {
        let [x, y] = self.bits;
        rules.holds(
            "x_bits",
            format_args!("{x} and {y}"),
            x >= 0 && y >= 0 && x + y <= 7,
            "bits of 128 pixels",
        );
        let cluster = i64::from(rules.kernel.cluster);
        if epilogue.stats != DevicePtr::NONE {
            let ([lines, columns], share) = (self.pixels, i64::from(SLAB[0]) / cluster);
            // One block stages its rows in fours.
            let of_image = 1 << (x + y).clamp(0, 7) >= if cluster == 1 { 4 } else { share };
            let whole = of_image && lines % (1 << y.clamp(0, 7)) == 0 && columns % (1 << x.clamp(0, 7)) == 0;
            rules.holds("stats", "some", whole, "none where an image is no whole slabs, or shares of them");
        }
        let splits = i64::from(self.splits);
        rules.holds("splits", splits, splits <= self.steps, "at least a step each");
        if cluster > 1 {
            rules.holds("splits", splits, splits == cluster, "one for each block of a cluster");
        }
        let kept = splits > 1 && cluster == 1;
        rules.holds("sums", splits, kept == (self.sums != DevicePtr::NONE), "given where splits are joined");
        rules.aligned("sums", self.sums, 16);
        rules.counters(self.arrived, self.sums);
        rules.given("y", self.to);
        if let Some(tile) = Tile::of(rules.kernel) {
            grid(rules, self.items(tile));
        }
    }

    /// The images that slabs are copied from or to, `span` channels at a time: `apart` pixels of theirs are one of this
    /// class.
    fn images(
        &self,
        [space, address]: [usize; 2],
        [height, width, c]: [i32; 3],
        span: u32,
        apart: i32,
        first: u64,
    ) -> Map {
        let [h, w, c, t] = [height, width, c, apart].map(|extent| extent as u64);
        let [x, y] = self.bits;
        Map {
            space,
            address,
            offset: first * c * 2,
            extents: vec![c, w / t, h / t, self.images as u64],
            strides: vec![t * c * 2, t * w * c * 2, h * w * c * 2],
            tile: vec![span, 1 << x, 1 << y, 1 << (7 - x - y)],
            swizzle: swizzle(span),
        }
    }
}

/// `[classes, filters, taps, channels]`, of which a copy takes `tile`.
fn filters(space: usize, address: usize, extents: [i32; 4], tile: [u32; 3]) -> Map {
    let [classes, filters, taps, channels] = extents.map(|extent| extent as u64);
    let row = 2 * channels;
    Map {
        space,
        address,
        offset: 0,
        extents: vec![channels, taps, filters, classes],
        strides: vec![row, taps * row, filters * taps * row],
        tile: tile.into_iter().chain([1]).collect(),
        swizzle: swizzle(tile[0]),
    }
}

/// An image that a map's strides can count.
fn countable(rules: &mut Rules, extents: [i32; 3]) {
    let bytes = extents.map(i64::from).iter().try_fold(2i64, |product, &extent| product.checked_mul(extent));
    rules.holds("h", "more", bytes.is_some_and(|bytes| bytes < 1 << 40), "an image below 2^40 bytes");
}

/// What one filter relies on for an enlarged image: pixels of both kinds in pairs.
fn enlarged(rules: &mut Rules, up: i32, kinds: i32, made: [i32; 2]) {
    let pairs = kinds == 2 && made.iter().all(|extent| extent % 2 == 0);
    rules.holds("up", up, up == 0 || pairs, "0, or 1 with two kinds of lines and columns");
}

/// Filters of all kinds of pixels.
fn filters_of(up: i32, kinds: i32) -> i32 {
    if up > 0 { 1 } else { kinds * kinds }
}

/// The first pixel of a kind.
fn first_of(kind: i32, kinds: i32, width: i32) -> u64 {
    (kind / kinds * width + kind % kinds) as u64
}

fn chunks(channels: i32) -> i64 {
    i64::from(channels.unsigned_abs().div_ceil(SLAB[1].unsigned_abs()))
}

impl Conv2dSm90Params {
    /// Tiles of all classes, times splits.
    pub fn items(&self, tile: Tile) -> i64 {
        self.walk().items(tile)
    }

    fn walk(&self) -> Walk {
        let kinds = self.kinds.clamp(1, 2);
        Walk {
            images: self.n,
            pixels: [self.height / kinds, self.width / kinds],
            classes: kinds * kinds,
            bits: [self.x_bits, self.y_bits],
            columns: self.o,
            steps: i64::from(self.r) * i64::from(self.s) * (chunks(self.c) + chunks(self.c2)),
            splits: self.splits,
            sums: self.sums,
            arrived: self.arrived,
            to: self.y,
        }
    }
}

impl Params for Conv2dSm90Params {
    const NAME: &'static str = "Conv2dSm90Params";
    const ADDRESSES: usize = 10;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [("x", self.x), ("filter", self.filter)] {
            rules.given(field, address);
        }
        for (field, address) in [("x", self.x), ("x2", self.x2), ("filter", self.filter), ("y", self.y)] {
            rules.aligned(field, address, 16);
        }
        rules.at_least("c", self.c, 8);
        rules.at_least("c2", self.c2, 0);
        let both = (self.x2 != DevicePtr::NONE) == (self.c2 > 0);
        rules.holds("x2", "one without the other", both, "given where `c2` is");
        rules.multiple_of("c", self.c, if self.c2 > 0 { i64::from(SLAB[1]) } else { 8 });
        rules.multiple_of("c2", self.c2, 8);
        rules.holds("kinds", self.kinds, (1..=2).contains(&self.kinds), "1 or 2");
        let window = Window {
            images: self.n,
            pixels: self.height.saturating_mul(self.width),
            sizes: [[self.h, self.height], [self.w, self.width]],
            taps: [self.r, self.s],
            strides: [1, 1],
            before: [self.top, self.left],
            kinds: [if self.up > 0 { 1 } else { self.kinds }; 2],
            up: self.up,
            channels: self.c.saturating_add(self.c2),
            filters: self.o,
            splits: self.splits,
        };
        window.check(rules);
        enlarged(rules, self.up, self.kinds, [self.height, self.width]);
        countable(rules, [self.h, self.w, self.c.max(self.c2)]);
        window.epilogue(rules, &self.epilogue, self.o, true);
        self.walk().check(rules, &self.epilogue);
    }

    fn maps(&self, kernel: &Kernel) -> Vec<Map> {
        let (walk, columns) = (self.walk(), Tile::of(kernel).map_or(0, |tile| tile.n));
        let depth = SLAB[1] as u32;
        let extents = [filters_of(self.up, self.kinds), self.o, self.r * self.s, self.c + self.c2];
        let mut maps = vec![
            walk.images([offset_of!(Self, x_map), 0], [self.h, self.w, self.c], depth, 1, 0),
            filters(offset_of!(Self, filter_map), 2, extents, [depth, 1, columns as u32]),
        ];
        if self.c2 > 0 {
            maps.push(walk.images([offset_of!(Self, x2_map), 1], [self.h, self.w, self.c2], depth, 1, 0));
        }
        if in_boxes(kernel, self.sums, &self.epilogue, self.y, [self.o.into(); 2]) {
            let image = [self.height, self.width, self.o];
            maps.extend((0..self.kinds * self.kinds).map(|kind| {
                let space = offset_of!(Self, y_map) + kind as usize * size_of::<Encoded>();
                walk.images(
                    [space, 3],
                    image,
                    span(columns),
                    self.kinds,
                    first_of(kind, self.kinds, self.width),
                )
            }));
        }
        maps
    }
}

impl Conv2dBwdSm90Params {
    /// Tiles, times splits.
    pub fn items(&self, tile: Tile) -> i64 {
        self.walk().items(tile)
    }

    fn walk(&self) -> Walk {
        let kinds = i64::from(self.kinds.clamp(1, 2));
        Walk {
            images: self.n,
            pixels: [self.h, self.w],
            classes: 1,
            bits: [self.x_bits, self.y_bits],
            columns: self.c,
            steps: kinds * kinds * i64::from(self.r) * i64::from(self.s) * chunks(self.o),
            splits: self.splits,
            sums: self.sums,
            arrived: self.arrived,
            to: self.dx,
        }
    }
}

impl Params for Conv2dBwdSm90Params {
    const NAME: &'static str = "Conv2dBwdSm90Params";
    const ADDRESSES: usize = 9;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [("dy", self.dy), ("filter", self.filter)] {
            rules.given(field, address);
        }
        for (field, address) in [("dy", self.dy), ("filter", self.filter), ("dx", self.dx)] {
            rules.aligned(field, address, 16);
        }
        rules.at_least("first", self.first, 0);
        rules.at_least("c", self.c, 1);
        let inside = i64::from(self.first) + i64::from(self.c) <= i64::from(self.channels);
        rules.holds("c", self.c, inside, "within the filter's channels");
        for (field, extent) in
            [("o", self.o), ("channels", self.channels), ("first", self.first), ("c", self.c)]
        {
            rules.multiple_of(field, extent, 8);
        }
        rules.absent("stats", self.epilogue.stats, "a gradient");
        rules.holds("kinds", self.kinds, (1..=2).contains(&self.kinds), "1 or 2");
        let window = Window {
            images: self.n,
            pixels: self.h.saturating_mul(self.w),
            sizes: [[self.h, self.height], [self.w, self.width]],
            taps: [self.r, self.s],
            strides: [1, 1],
            before: [self.top, self.left],
            kinds: [if self.up > 0 { 1 } else { self.kinds }; 2],
            up: self.up,
            channels: self.channels,
            filters: self.o,
            splits: self.splits,
        };
        window.check(rules);
        enlarged(rules, self.up, self.kinds, [self.height, self.width]);
        countable(rules, [self.height, self.width, self.o]);
        window.epilogue(rules, &self.epilogue, self.c, true);
        self.walk().check(rules, &self.epilogue);
    }

    fn maps(&self, kernel: &Kernel) -> Vec<Map> {
        let (walk, columns) = (self.walk(), Tile::of(kernel).map_or(0, |tile| tile.n));
        let (kinds, image) = (self.kinds, [self.height, self.width, self.o]);
        let extents = [filters_of(self.up, kinds), self.o, self.r * self.s, self.channels];
        let tile = [span(columns), 1, SLAB[1] as u32];
        let of_kind = |kind: i32| {
            let space = offset_of!(Self, dy_map) + kind as usize * size_of::<Encoded>();
            walk.images([space, 0], image, SLAB[1] as u32, kinds, first_of(kind, kinds, self.width))
        };
        let mut maps: Vec<Map> = (0..kinds * kinds).map(of_kind).collect();
        maps.push(filters(offset_of!(Self, filter_map), 1, extents, tile));
        if in_boxes(kernel, self.sums, &self.epilogue, self.dx, [self.c.into(); 2]) {
            maps.push(walk.images(
                [offset_of!(Self, dx_map), 2],
                [self.h, self.w, self.c],
                span(columns),
                1,
                0,
            ));
        }
        maps
    }
}
