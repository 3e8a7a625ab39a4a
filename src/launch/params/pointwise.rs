//! Element by element, and changes of layout.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct PointwiseParams {
    pub x: DevicePtr,
    pub y: DevicePtr,
    pub out: DevicePtr,
    // elements of out (geglu_bwd: of dy)
    pub count: i64,
    // add_channels: elements of an image; 0: one v for all
    pub image: i64,
    // channels of a row, where rows matter
    pub c: i32,
    // activation::Kind
    pub activation: i32,
    // affine
    pub mul: f32,
    pub add: f32,
}
const _: () = assert!(size_of::<PointwiseParams>() == 56);

impl Params for PointwiseParams {
    const NAME: &'static str = "PointwiseParams";
    const ADDRESSES: usize = 3;

    fn check(&self, rules: &mut Rules) {
        rules.given("x", self.x);
        rules.given("out", self.out);
        rules.at_least("count", self.count, 1);
        rules.at_least("image", self.image, 0);
        rules.at_least("c", self.c, 0);
        rules.holds(
            "activation",
            self.activation,
            (0..=5).contains(&self.activation),
            "an activation, 0 to 5",
        );
        if rules.kernel.name.ends_with("_pairs") {
            rules.given("y", self.y);
            for (field, address) in [("x", self.x), ("out", self.out)] {
                rules.aligned(field, address, 4);
            }
        }
        if rules.kernel.name.contains("_v8") {
            for (field, address) in [("x", self.x), ("y", self.y), ("out", self.out)] {
                rules.aligned(field, address, 16);
            }
            let in_rows = ["geglu", "add_channels"].iter().any(|op| rules.kernel.name.starts_with(op));
            if in_rows {
                rules.at_least("c", self.c, 8);
                rules.multiple_of("c", self.c, 8);
                rules.multiple_of("count", self.count, self.c.max(1).into());
                rules.multiple_of("image", self.image, self.c.max(1).into());
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct TimestepParams {
    // f32 each; the step's own is the first number of its state
    pub times: DevicePtr,
    pub out: DevicePtr,
    pub channels: i32,
    pub flip: i32,
    pub shift: f32,
    pub pad: i32,
}
const _: () = assert!(size_of::<TimestepParams>() == 32);

impl Params for TimestepParams {
    const NAME: &'static str = "TimestepParams";
    const ADDRESSES: usize = 2;

    fn check(&self, rules: &mut Rules) {
        rules.given("times", self.times);
        rules.given("out", self.out);
        rules.at_least("channels", self.channels, 2);
        rules.holds("channels", self.channels, self.channels % 2 == 0, "even");
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct LayoutParams {
    pub x: DevicePtr,
    pub out: DevicePtr,
    pub pixels: i64,
    pub n: i32,
    pub c: i32,
}
const _: () = assert!(size_of::<LayoutParams>() == 32);

impl Params for LayoutParams {
    const NAME: &'static str = "LayoutParams";
    const ADDRESSES: usize = 2;

    fn check(&self, rules: &mut Rules) {
        rules.given("x", self.x);
        rules.given("out", self.out);
        rules.at_least("pixels", self.pixels, 1);
        rules.at_least("n", self.n, 1);
        rules.at_least("c", self.c, 1);
    }
}
