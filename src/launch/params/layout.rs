//! Elements in other places.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct PlaceParams {
    // where the index of the chosen sample or step is; 0 where none is chosen
    pub state: DevicePtr,
    pub x: DevicePtr,
    // 0 where there is nothing beside x
    pub y: DevicePtr,
    pub out: DevicePtr,
    // of out
    pub rows: i64,
    pub width: i64,
    // columns of out that x fills
    pub start: i64,
    pub len: i64,
    // x's rows: where the first one starts, and elements between two
    pub first: i64,
    pub stride: i64,
    // elements between two samples, one of which is chosen; 0: one for all
    pub x_sample: i64,
    pub out_sample: i64,
}
const _: () = assert!(size_of::<PlaceParams>() == 96);

impl Params for PlaceParams {
    const NAME: &'static str = "PlaceParams";
    const ADDRESSES: usize = 4;

    fn check(&self, rules: &mut Rules) {
        rules.given("x", self.x);
        rules.given("out", self.out);
        for (field, least, found) in [
            ("rows", 1, self.rows),
            ("width", 1, self.width),
            ("start", 0, self.start),
            ("len", 1, self.len),
            ("first", 0, self.first),
            ("stride", 0, self.stride),
            ("x_sample", 0, self.x_sample),
            ("out_sample", 0, self.out_sample),
        ] {
            rules.at_least(field, found, least);
        }
        rules.holds(
            "len",
            self.len,
            self.len <= self.width - self.start,
            "inside of the width behind the start",
        );
        rules.holds(
            "rows",
            self.rows,
            self.rows <= i64::MAX / self.width.max(1),
            "so few that 64 bits count",
        );
        let chosen = self.x_sample != 0 || self.out_sample != 0;
        rules.holds(
            "state",
            "none",
            !chosen || self.state != DevicePtr::NONE,
            "given where samples are chosen",
        );
        let beside = self.y == DevicePtr::NONE || self.start == 0;
        rules.holds("start", self.start, beside, "0 where `y` stands behind x");
        if rules.kernel.name.ends_with("_v8") {
            for (field, address) in [("x", self.x), ("y", self.y), ("out", self.out)] {
                rules.aligned(field, address, 16);
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GatherParams {
    pub x: DevicePtr,
    pub index: DevicePtr,
    pub out: DevicePtr,
    // elements of out
    pub count: i64,
    pub t: i32,
    pub d: i32,
}
const _: () = assert!(size_of::<GatherParams>() == 40);

impl Params for GatherParams {
    const NAME: &'static str = "GatherParams";
    const ADDRESSES: usize = 3;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [("x", self.x), ("index", self.index), ("out", self.out)] {
            rules.given(field, address);
        }
        rules.at_least("t", self.t, 1);
        rules.at_least("d", self.d, 1);
        let whole = self.count > 0 && self.count % i64::from(self.d.max(1)) == 0;
        rules.holds("count", self.count, whole, "whole rows");
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SumCopiesParams {
    pub x: DevicePtr,
    pub out: DevicePtr,
    // elements of out
    pub count: i64,
    pub times: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<SumCopiesParams>() == 32);

impl Params for SumCopiesParams {
    const NAME: &'static str = "SumCopiesParams";
    const ADDRESSES: usize = 2;

    fn check(&self, rules: &mut Rules) {
        rules.given("x", self.x);
        rules.given("out", self.out);
        rules.at_least("count", self.count, 1);
        rules.at_least("times", self.times, 1);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct NormaliseParams {
    pub x: DevicePtr,
    pub out: DevicePtr,
    pub rows: i64,
    pub d: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<NormaliseParams>() == 32);

impl Params for NormaliseParams {
    const NAME: &'static str = "NormaliseParams";
    const ADDRESSES: usize = 2;

    fn check(&self, rules: &mut Rules) {
        rules.given("x", self.x);
        rules.given("out", self.out);
        rules.at_least("rows", self.rows, 1);
        rules.at_least("d", self.d, 1);
    }
}
