//! Convolutions and their data gradients.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Epilogue, Params, Rules, Tile};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Conv2dParams {
    // x2: 0 where there is one source
    pub x: DevicePtr,
    pub x2: DevicePtr,
    pub filter: DevicePtr,
    pub y: DevicePtr,
    // f32 [splits, n, height, width, o]: takes the parts of the sums first; or 0
    pub sums: DevicePtr,
    pub epilogue: Epilogue,
    pub n: i32,
    // h x w: what the filter slides over
    pub h: i32,
    pub w: i32,
    // 1: that is the stored image twofold, the last line and column perhaps left out
    pub up: i32,
    pub c: i32,
    pub c2: i32,
    pub o: i32,
    pub r: i32,
    pub s: i32,
    pub stride_y: i32,
    pub stride_x: i32,
    pub top: i32,
    pub left: i32,
    pub height: i32,
    pub width: i32,
    // of lines and columns of y, with filters of their own: 1, or 2 or 3 (sub-pixel)
    pub kinds_y: i32,
    pub kinds_x: i32,
    pub splits: i32,
}
const _: () = assert!(size_of::<Conv2dParams>() == 40 + size_of::<Epilogue>() + 72);

impl Params for Conv2dParams {
    const NAME: &'static str = "Conv2dParams";
    const ADDRESSES: usize = 9;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [("x", self.x), ("filter", self.filter)] {
            rules.given(field, address);
        }
        rules.at_least("c", self.c, 1);
        rules.at_least("c2", self.c2, 0);
        let both = (self.x2 != DevicePtr::NONE) == (self.c2 > 0);
        rules.holds("x2", "one without the other", both, "given where `c2` is");
        let window = Window {
            images: self.n,
            pixels: self.height.saturating_mul(self.width),
            sizes: [[self.h, self.height], [self.w, self.width]],
            taps: [self.r, self.s],
            strides: [self.stride_y, self.stride_x],
            before: [self.top, self.left],
            kinds: [self.kinds_y, self.kinds_x],
            up: self.up,
            channels: self.c.saturating_add(self.c2),
            filters: self.o,
            splits: self.splits,
        };
        window.check(rules);
        let Some(tile) = Tile::of(rules.kernel) else {
            if is_narrow(rules) {
                rules.absent("x2", self.x2, "few channels");
                window.narrow(rules, [self.height, self.width], [("c", self.c), ("o", self.o)]);
                rules.aligned("x", self.x, 16);
                rules.aligned("filter", self.filter, 16);
            }
            return window.general(rules, &self.epilogue, self.o, (self.y, self.sums));
        };
        if rules.kernel.name.contains("_gather") {
            rules.absent("x2", self.x2, "elements that are gathered");
            window.gathered(rules);
        } else {
            rules.multiple_of("c", self.c, 8);
            rules.multiple_of("c2", self.c2, 8);
            for (field, address) in [("x", self.x), ("x2", self.x2), ("filter", self.filter), ("y", self.y)] {
                rules.aligned(field, address, 16);
            }
        }
        // Of every kind; a line or column may be the only one of its kind.
        let pixels = [(self.height, self.kinds_y), (self.width, self.kinds_x)];
        let pixels = pixels.map(|(out, kinds)| if kinds > 1 { (out / 2).max(1) } else { out });
        let (pixels, kinds) =
            (pixels[0].saturating_mul(pixels[1]), self.kinds_y.saturating_mul(self.kinds_x));
        if self.epilogue.stats != DevicePtr::NONE {
            let whole = kinds == 1 || (kinds == 4 && pixels % tile.m == 0);
            rules.holds("stats", "some", whole, "none where a kind of pixels is no whole tiles");
        }
        window.tiled(rules, tile, (pixels, kinds), &self.epilogue, self.o, (self.y, self.sums));
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Conv2dBwdParams {
    pub dy: DevicePtr,
    pub filter: DevicePtr,
    pub dx: DevicePtr,
    // f32 [splits, n, lines, columns, c]: takes the parts of the sums first; or 0
    pub sums: DevicePtr,
    pub epilogue: Epilogue,
    // as in Conv2dParams
    pub n: i32,
    pub h: i32,
    pub w: i32,
    pub up: i32,
    // dx has channels first .. first + c of the filter's
    pub channels: i32,
    pub first: i32,
    pub c: i32,
    pub o: i32,
    pub r: i32,
    pub s: i32,
    pub stride_y: i32,
    pub stride_x: i32,
    pub top: i32,
    pub left: i32,
    pub height: i32,
    pub width: i32,
    pub kinds_y: i32,
    pub kinds_x: i32,
    pub splits: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<Conv2dBwdParams>() == 32 + size_of::<Epilogue>() + 80);

impl Params for Conv2dBwdParams {
    const NAME: &'static str = "Conv2dBwdParams";
    const ADDRESSES: usize = 8;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [("dy", self.dy), ("filter", self.filter)] {
            rules.given(field, address);
        }
        rules.at_least("first", self.first, 0);
        rules.at_least("c", self.c, 1);
        let inside = i64::from(self.first) + i64::from(self.c) <= i64::from(self.channels);
        rules.holds("c", self.c, inside, "within the filter's channels");
        rules.absent("stats", self.epilogue.stats, "a gradient");
        let stored = |size: i32| if self.up == 1 { size / 2 + size % 2 } else { size };
        let sides = [(stored(self.h), self.stride_y), (stored(self.w), self.stride_x)];
        let window = Window {
            images: self.n,
            pixels: sides[0].0.saturating_mul(sides[1].0),
            sizes: [[self.h, self.height], [self.w, self.width]],
            taps: [self.r, self.s],
            strides: [self.stride_y, self.stride_x],
            before: [self.top, self.left],
            kinds: [self.kinds_y, self.kinds_x],
            up: self.up,
            channels: self.channels,
            filters: self.o,
            splits: self.splits,
        };
        window.check(rules);
        let Some(tile) = Tile::of(rules.kernel) else {
            if is_narrow(rules) {
                window.narrow(rules, [self.h, self.w], [("o", self.o), ("c", self.c)]);
                rules.aligned("dy", self.dy, 16);
            }
            return window.general(rules, &self.epilogue, self.c, (self.dx, self.sums));
        };
        let made = [("channels", self.channels), ("first", self.first), ("c", self.c)];
        let (vectors, addresses): (&[_], &[_]) = if rules.kernel.name.contains("_patches") {
            window.gathered(rules);
            rules.holds(
                "s",
                self.s,
                self.s == 1 && self.stride_x == 1,
                "1, as `stride_x`: a line is one pixel",
            );
            rules.holds("stride_y", self.stride_y, self.stride_y == self.r, "the lines of a patch");
            let whole =
                i64::from(self.h) == i64::from(self.height) * i64::from(self.r) && self.w == self.width;
            rules.holds("h", self.h, whole && [self.top, self.left] == [0, 0], "all in patches");
            (&[("o", self.o)], &[("dy", self.dy)])
        } else if rules.kernel.name.contains("_gather") {
            window.gathered(rules);
            rules.holds("stride_y", self.stride_y, self.stride_y == 1, "1 where elements are gathered");
            rules.holds("stride_x", self.stride_x, self.stride_x == 1, "1 where elements are gathered");
            (&made, &[("filter", self.filter)])
        } else {
            rules.multiple_of("o", self.o, 8);
            (&made, &[("dy", self.dy), ("filter", self.filter), ("dx", self.dx)])
        };
        for &(field, extent) in vectors {
            rules.multiple_of(field, extent, 8);
        }
        for &(field, address) in addresses {
            rules.aligned(field, address, 16);
        }
        // Of the class that the first pixel belongs to.
        let pixels = sides.map(|(size, stride)| size / stride.max(1) + i32::from(size % stride.max(1) != 0));
        let classes = (pixels[0].saturating_mul(pixels[1]), self.stride_y.saturating_mul(self.stride_x));
        window.tiled(rules, tile, classes, &self.epilogue, self.c, (self.dx, self.sums));
    }
}

/// A convolution in tiles, whose blocks may share its depth.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Conv2dTileParams {
    // u32, one a tile, all zero before and after; 0 where no depth is shared
    pub arrived: DevicePtr,
    pub whole: Conv2dParams,
}
const _: () = assert!(size_of::<Conv2dTileParams>() == 8 + size_of::<Conv2dParams>());

impl Params for Conv2dTileParams {
    const NAME: &'static str = "Conv2dTileParams";
    const ADDRESSES: usize = 1 + Conv2dParams::ADDRESSES;

    fn check(&self, rules: &mut Rules) {
        self.whole.check(rules);
        rules.counters(self.arrived, self.whole.sums);
    }
}

/// The data gradient of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Conv2dBwdTileParams {
    // as in Conv2dTileParams
    pub arrived: DevicePtr,
    pub whole: Conv2dBwdParams,
}
const _: () = assert!(size_of::<Conv2dBwdTileParams>() == 8 + size_of::<Conv2dBwdParams>());

impl Params for Conv2dBwdTileParams {
    const NAME: &'static str = "Conv2dBwdTileParams";
    const ADDRESSES: usize = 1 + Conv2dBwdParams::ADDRESSES;

    fn check(&self, rules: &mut Rules) {
        self.whole.check(rules);
        rules.counters(self.arrived, self.whole.sums);
    }
}

/// Whether the kernel is one for a few channels.
fn is_narrow(rules: &Rules) -> bool {
    rules.kernel.name.ends_with("_n8")
}

/// What a convolution and its gradient have in common; of two numbers the first is that of lines.
pub(super) struct Window {
    pub images: i32,
    /// Of an image that is written.
    pub pixels: i32,
    /// What the filter slides over, and what it makes.
    pub sizes: [[i32; 2]; 2],
    pub taps: [i32; 2],
    pub strides: [i32; 2],
    pub before: [i32; 2],
    pub kinds: [i32; 2],
    pub up: i32,
    pub channels: i32,
    pub filters: i32,
    pub splits: i32,
}

impl Window {
    pub fn check(&self, rules: &mut Rules) {
        let fields = [
            ["h", "height", "r", "stride_y", "top", "kinds_y"],
            ["w", "width", "s", "stride_x", "left", "kinds_x"],
        ];
        for (i, [from, to, taps, stride, before, kinds]) in fields.into_iter().enumerate() {
            let [size, out] = self.sizes[i];
            for (field, extent) in [(from, size), (to, out), (taps, self.taps[i]), (stride, self.strides[i])]
            {
                rules.at_least(field, extent, 1);
                // Where a tap reaches is counted in 32 bits.
                rules.holds(field, extent, extent < 1 << 20, "below 2^20");
            }
            let padding = self.before[i];
            rules.holds(before, padding, (0..1 << 20).contains(&padding), "0 to 2^20");
            let kind = self.kinds[i];
            rules.holds(kinds, kind, (1..=3).contains(&kind), "1 to 3");
            if kind > 1 {
                let twofold = 2 * i64::from(size) == i64::from(out) + i64::from(kind) - 2;
                rules.holds(to, out, twofold, "twofold, one less with three kinds");
                rules.holds(stride, self.strides[i], self.strides[i] == 1, "1 in the sub-pixel form");
                rules.holds(taps, self.taps[i], self.taps[i] == 2, "2 in the sub-pixel form");
            }
        }
        let sub_pixel = self.kinds[0] > 1;
        rules.holds(
            "kinds_x",
            self.kinds[1],
            (self.kinds[1] > 1) == sub_pixel,
            "more than 1 where `kinds_y` is",
        );
        let enlarged = (0..=1).contains(&self.up) && (self.up == 0 || (self.strides == [1, 1] && !sub_pixel));
        rules.holds("up", self.up, enlarged, "0, or 1 with stride 1");
        for (field, extent) in [("n", self.images), ("o", self.filters), ("channels", self.channels)] {
            rules.at_least(field, extent, 1);
        }
        let images = self.sizes.map(|[size, _]| i64::from(size)).iter().product::<i64>();
        let made = self.sizes.map(|[_, out]| i64::from(out)).iter().product::<i64>();
        rules.holds(
            "h",
            images.max(made),
            images.max(made) <= i64::from(i32::MAX),
            "an image of less than 2^31 pixels",
        );
        let filters = [self.taps, self.kinds].concat().into_iter().chain([self.channels, self.filters]);
        let elements = filters.map(i64::from).try_fold(1i64, i64::checked_mul);
        let few = elements.is_some_and(|n| n <= i64::from(i32::MAX));
        rules.holds("filter", "more", few, "less than 2^31 elements");
        rules.at_least("splits", self.splits, 1);
    }

    /// What the general forms rely on; `to` is where they store, and where they would store sums.
    fn general(&self, rules: &mut Rules, epilogue: &Epilogue, columns: i32, to: (DevicePtr, DevicePtr)) {
        rules.given("y", to.0);
        rules.absent("sums", to.1, "a general form");
        rules.holds("splits", self.splits, self.splits == 1, "1 in a general form");
        rules.holds("kinds_y", self.kinds[0], self.kinds[0] == 1, "1 in a general form");
        self.epilogue(rules, epilogue, columns, false);
    }

    /// What the forms for a few channels rely on, besides what the general ones do: `to` is the image that is
    /// written, and a sum over channels of the first kind makes the second.
    fn narrow(&self, rules: &mut Rules, to: [i32; 2], [summed, made]: [(&'static str, i32); 2]) {
        rules.multiple_of(summed.0, summed.1, 8);
        rules.holds(made.0, made.1, made.1 <= 8, "at most 8");
        let plain = [("r", self.taps[0], 3), ("s", self.taps[1], 3), ("stride_y", self.strides[0], 1)];
        for (field, found, wanted) in
            plain.into_iter().chain([("stride_x", self.strides[1], 1), ("up", self.up, 0)])
        {
            rules.holds(field, found, found == wanted, &format!("{wanted} where channels are few"));
        }
        let [lines, columns] = to.map(|size| i64::from(size.max(1)));
        let blocks = i64::from(self.images).saturating_mul((lines + 7) / 8 * ((columns + 15) / 16));
        let found = format!("{:?}", rules.grid);
        rules.holds(
            "grid",
            found,
            rules.grid.map(i64::from) == [blocks, 1, 1],
            "a block a tile of 8 x 16 pixels",
        );
    }

    /// What the forms rely on whose elements are gathered one by one.
    fn gathered(&self, rules: &mut Rules) {
        rules.holds("up", self.up, self.up == 0, "0 where elements are gathered");
        rules.holds("kinds_y", self.kinds[0], self.kinds[0] == 1, "1 where elements are gathered");
        rules.holds("splits", self.splits, self.splits == 1, "1 where elements are gathered");
        // Steps of a sum are counted to their end.
        let window = self.taps.map(i64::from).iter().product::<i64>();
        let terms = window.saturating_mul(i64::from(self.channels.max(self.filters)));
        rules.holds("channels", terms, terms <= 1 << 30, "so few that a sum has at most 2^30 terms");
    }

    /// What the tiled forms rely on: `classes` are the pixels of the largest one, and their number.
    fn tiled(
        &self,
        rules: &mut Rules,
        tile: Tile,
        (pixels, classes): (i32, i32),
        epilogue: &Epilogue,
        columns: i32,
        (to, parts): (DevicePtr, DevicePtr),
    ) {
        let blocks = |extent: i32, of: i32| extent.unsigned_abs().div_ceil(of.unsigned_abs());
        let tiles = i64::from(self.images).saturating_mul(i64::from(blocks(pixels, tile.m)));
        let shares = i64::from(classes).saturating_mul(i64::from(self.splits));
        let grid = [tiles, i64::from(blocks(columns, tile.n)), shares];
        let found = format!("{:?}", rules.grid);
        rules.holds(
            "grid",
            found,
            rules.grid.map(i64::from) == grid,
            "a block a tile of an image, class and split",
        );
        let whole = (self.splits > 1) == (parts != DevicePtr::NONE);
        rules.holds("sums", self.splits, whole, "given where there are splits");
        rules.aligned("sums", parts, 16);
        rules.given("y", to);
        self.epilogue(rules, epilogue, columns, true);
    }

    pub fn epilogue(&self, rules: &mut Rules, epilogue: &Epilogue, columns: i32, tuned: bool) {
        rules.holds("activation", epilogue.activation, epilogue.activation != Epilogue::GEGLU, "not GEGLU");
        if epilogue.stats != DevicePtr::NONE {
            let whole = epilogue.stat_rows == self.pixels;
            rules.holds("stat_rows", epilogue.stat_rows, whole, "the pixels of an image");
        }
        epilogue.check(rules, self.images.saturating_mul(self.pixels), columns, tuned);
    }
}
