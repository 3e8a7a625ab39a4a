//! Group norms in pieces.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};

/// Pixels that every sum of two extents stays countable with.
const MOST_PIXELS: i32 = 1 << 30;
/// Channels of a slab: what the kernels keep of its groups.
const MOST_SLAB: i32 = 512;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GroupTilesParams {
    pub x: DevicePtr,
    pub stats: DevicePtr,
    pub n: i32,
    pub pixels: i32,
    pub c: i32,
    pub rows: i32,
}
const _: () = assert!(size_of::<GroupTilesParams>() == 32);

impl Params for GroupTilesParams {
    const NAME: &'static str = "GroupTilesParams";
    const ADDRESSES: usize = 2;

    fn check(&self, rules: &mut Rules) {
        rules.given("x", self.x);
        rules.aligned("x", self.x, 16);
        rules.given("stats", self.stats);
        rules.at_least("c", self.c, 1);
        rules.multiple_of("c", self.c, 8);
        pixels(rules, self.n, self.pixels, &[("rows", self.rows)]);
        grid(rules, [tiles(self.pixels, self.rows), tiles(self.c, 64), self.n]);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GroupFoldParams {
    pub stats: DevicePtr,
    pub folded: DevicePtr,
    pub n: i32,
    pub pixels: i32,
    pub c: i32,
    pub rows: i32,
    pub times: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<GroupFoldParams>() == 40);

impl Params for GroupFoldParams {
    const NAME: &'static str = "GroupFoldParams";
    const ADDRESSES: usize = 2;

    fn check(&self, rules: &mut Rules) {
        rules.given("stats", self.stats);
        rules.given("folded", self.folded);
        rules.at_least("c", self.c, 1);
        pixels(rules, self.n, self.pixels, &[("rows", self.rows)]);
        let folded = i64::from(self.rows) * i64::from(self.times);
        let fits = (1..=i64::from(MOST_PIXELS)).contains(&folded);
        rules.holds("times", self.times, fits, "at least 1, and times the rows at most 2^30");
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GroupApplyParams {
    pub x: DevicePtr,
    // 0 where c2 is
    pub x2: DevicePtr,
    pub stats: DevicePtr,
    // 0 where stats are of all channels
    pub stats2: DevicePtr,
    pub gamma: DevicePtr,
    pub beta: DevicePtr,
    pub out: DevicePtr,
    pub n: i32,
    pub pixels: i32,
    pub c1: i32,
    pub c2: i32,
    pub groups: i32,
    // of a tile
    pub rows: i32,
    pub rows2: i32,
    // channels and pixels of a block
    pub slab: i32,
    pub share: i32,
    pub eps: f32,
}
const _: () = assert!(size_of::<GroupApplyParams>() == 96);

impl Params for GroupApplyParams {
    const NAME: &'static str = "GroupApplyParams";
    const ADDRESSES: usize = 7;

    fn check(&self, rules: &mut Rules) {
        let wide = [("x", self.x), ("gamma", self.gamma), ("beta", self.beta), ("out", self.out)];
        for (field, address) in wide {
            rules.given(field, address);
            rules.aligned(field, address, 16);
        }
        rules.given("stats", self.stats);
        rules.aligned("x2", self.x2, 16);
        sources(rules, [self.c1, self.c2], self.groups, self.slab, self.x2, self.stats2);
        rules.groups(self.n, self.pixels, self.c1.saturating_add(self.c2), self.groups, self.eps);
        // The second one's are looked at where there are any.
        let rows2 = if self.stats2 == DevicePtr::NONE { 1 } else { self.rows2 };
        pixels(rules, self.n, self.pixels, &[("rows", self.rows), ("rows2", rows2), ("share", self.share)]);
        let slabs = tiles(self.c1.saturating_add(self.c2), self.slab);
        grid(rules, [tiles(self.pixels, self.share), slabs, self.n]);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GroupBwdParams {
    pub x: DevicePtr,
    pub x2: DevicePtr,
    pub dy: DevicePtr,
    pub stats: DevicePtr,
    pub stats2: DevicePtr,
    pub gamma: DevicePtr,
    pub beta: DevicePtr,
    pub sums: DevicePtr,
    // as dx, where there is one tensor; or 0
    pub residual: DevicePtr,
    pub dx: DevicePtr,
    pub dx2: DevicePtr,
    pub n: i32,
    pub pixels: i32,
    pub c1: i32,
    pub c2: i32,
    pub groups: i32,
    pub rows: i32,
    pub rows2: i32,
    pub slab: i32,
    // pixels of a block that applies, and of one that sums
    pub share: i32,
    pub tile: i32,
    pub eps: f32,
    pub pad: i32,
}
const _: () = assert!(size_of::<GroupBwdParams>() == 136);

impl Params for GroupBwdParams {
    const NAME: &'static str = "GroupBwdParams";
    const ADDRESSES: usize = 11;

    fn check(&self, rules: &mut Rules) {
        let wide =
            [("x", self.x), ("dy", self.dy), ("gamma", self.gamma), ("beta", self.beta), ("dx", self.dx)];
        for (field, address) in wide {
            rules.given(field, address);
            rules.aligned(field, address, 16);
        }
        rules.given("stats", self.stats);
        rules.given("sums", self.sums);
        rules.aligned("x2", self.x2, 16);
        rules.aligned("dx2", self.dx2, 16);
        rules.both_or_none("dx2", self.dx2, "x2", self.x2);
        rules.aligned("residual", self.residual, 16);
        if self.x2 != DevicePtr::NONE {
            rules.absent("residual", self.residual, "two tensors");
        }
        sources(rules, [self.c1, self.c2], self.groups, self.slab, self.x2, self.stats2);
        rules.groups(self.n, self.pixels, self.c1.saturating_add(self.c2), self.groups, self.eps);
        let rows2 = if self.stats2 == DevicePtr::NONE { 1 } else { self.rows2 };
        let extents = [("rows", self.rows), ("rows2", rows2), ("share", self.share), ("tile", self.tile)];
        pixels(rules, self.n, self.pixels, &extents);
        let pieces = if rules.kernel.function == "tiles" { self.tile } else { self.share };
        let slabs = tiles(self.c1.saturating_add(self.c2), self.slab);
        grid(rules, [tiles(self.pixels, pieces), slabs, self.n]);
    }
}

fn pixels(rules: &mut Rules, n: i32, pixels: i32, parts: &[(&'static str, i32)]) {
    rules.at_least("n", n, 1);
    for &(field, extent) in [("pixels", pixels)].iter().chain(parts) {
        rules.holds(field, extent, (1..=MOST_PIXELS).contains(&extent), "1 to 2^30");
    }
}

/// One or two tensors side by side, cut into slabs of whole groups.
fn sources(rules: &mut Rules, c: [i32; 2], groups: i32, slab: i32, x2: DevicePtr, stats2: DevicePtr) {
    rules.at_least("c1", c[0], 1);
    rules.at_least("c2", c[1], 0);
    rules.multiple_of("c1", c[0], 8);
    rules.multiple_of("c2", c[1], 8);
    rules.holds("x2", "one without the other", (x2 == DevicePtr::NONE) == (c[1] == 0), "given where `c2` is");
    let statistics = stats2 == DevicePtr::NONE || c[1] > 0;
    rules.holds("stats2", "an address", statistics, "none where `c2` is 0");
    let width = c[0].saturating_add(c[1]) / groups.max(1);
    let whole = (1..=MOST_SLAB).contains(&slab) && slab % 8 == 0 && slab % width.max(1) == 0;
    rules.holds("slab", slab, whole, "at most 512, a multiple of 8 and of a group's channels");
}

fn tiles(extent: i32, part: i32) -> i32 {
    // In 64 bits: rules that say so come before this.
    let (extent, part) = (i64::from(extent.max(1)), i64::from(part.max(1)));
    i32::try_from((extent + part - 1) / part).unwrap_or(i32::MAX)
}

fn grid(rules: &mut Rules, wanted: [i32; 3]) {
    let found = rules.grid;
    let holds = found.iter().zip(wanted).all(|(&found, wanted)| i64::from(found) == i64::from(wanted));
    rules.holds("grid", format_args!("{found:?}"), holds, &format!("{wanted:?}"));
}
