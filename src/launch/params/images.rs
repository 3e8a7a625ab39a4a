//! Images and tokens: embeddings and resizing.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct EmbedTextParams {
    pub ids: DevicePtr,
    pub token: DevicePtr,
    pub position: DevicePtr,
    pub out: DevicePtr,
    // elements of out
    pub count: i64,
    pub t: i32,
    pub d: i32,
    pub vocabulary: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<EmbedTextParams>() == 56);

impl Params for EmbedTextParams {
    const NAME: &'static str = "EmbedTextParams";
    const ADDRESSES: usize = 4;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in
            [("ids", self.ids), ("token", self.token), ("position", self.position), ("out", self.out)]
        {
            rules.given(field, address);
        }
        rules.at_least("t", self.t, 1);
        rules.at_least("d", self.d, 1);
        rules.at_least("vocabulary", self.vocabulary, 1);
        let row = i64::from(self.t) * i64::from(self.d);
        rules.holds("count", self.count, self.count > 0 && self.count % row.max(1) == 0, "whole sequences");
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct EmbedPatchesParams {
    pub x: DevicePtr,
    pub class_token: DevicePtr,
    pub position: DevicePtr,
    pub out: DevicePtr,
    // elements of out
    pub count: i64,
    pub t: i32,
    pub d: i32,
}
const _: () = assert!(size_of::<EmbedPatchesParams>() == 48);

impl Params for EmbedPatchesParams {
    const NAME: &'static str = "EmbedPatchesParams";
    const ADDRESSES: usize = 4;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in
            [("x", self.x), ("class_token", self.class_token), ("position", self.position), ("out", self.out)]
        {
            rules.given(field, address);
        }
        rules.at_least("t", self.t, 1);
        rules.at_least("d", self.d, 1);
        let row = (i64::from(self.t) + 1) * i64::from(self.d);
        rules.holds("count", self.count, self.count > 0 && self.count % row.max(1) == 0, "whole sequences");
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ResampleParams {
    pub x: DevicePtr,
    pub out: DevicePtr,
    // h x w: the image; height x width: what CLIP sees
    pub n: i32,
    pub h: i32,
    pub w: i32,
    pub height: i32,
    pub width: i32,
    pub pad: i32,
    pub mean: [f32; 3],
    pub std: [f32; 3],
}
const _: () = assert!(size_of::<ResampleParams>() == 64);

impl Params for ResampleParams {
    const NAME: &'static str = "ResampleParams";
    const ADDRESSES: usize = 2;

    fn check(&self, rules: &mut Rules) {
        rules.given("x", self.x);
        rules.given("out", self.out);
        for (field, extent) in
            [("n", self.n), ("h", self.h), ("w", self.w), ("height", self.height), ("width", self.width)]
        {
            rules.at_least(field, extent, 1);
        }
        let finite = self.mean.iter().all(|x| x.is_finite());
        rules.holds("mean", format_args!("{:?}", self.mean), finite, "finite");
        let usable = self.std.iter().all(|x| x.is_finite() && *x != 0.0);
        rules.holds("std", format_args!("{:?}", self.std), usable, "finite and not zero");
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct UpsampleParams {
    pub x: DevicePtr,
    pub out: DevicePtr,
    pub n: i32,
    pub h: i32,
    pub w: i32,
    pub c: i32,
    pub height: i32,
    pub width: i32,
}
const _: () = assert!(size_of::<UpsampleParams>() == 40);

impl Params for UpsampleParams {
    const NAME: &'static str = "UpsampleParams";
    const ADDRESSES: usize = 2;

    fn check(&self, rules: &mut Rules) {
        rules.given("x", self.x);
        rules.given("out", self.out);
        for (field, extent) in [("n", self.n), ("h", self.h), ("w", self.w), ("c", self.c)] {
            rules.at_least(field, extent, 1);
        }
        rules.at_least("height", self.height, 1);
        rules.at_least("width", self.width, 1);
    }
}
