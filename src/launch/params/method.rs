//! The method: guidance, the step, scores.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct CfgX0Params {
    pub state: DevicePtr,
    pub z: DevicePtr,
    pub rows: DevicePtr,
    pub eps: DevicePtr,
    pub x0: DevicePtr,
    // elements of z
    pub count: i64,
    // rows has copies * count elements: 1 or 2
    pub copies: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<CfgX0Params>() == 56);

impl Params for CfgX0Params {
    const NAME: &'static str = "CfgX0Params";
    const ADDRESSES: usize = 5;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in
            [("state", self.state), ("z", self.z), ("rows", self.rows), ("eps", self.eps), ("x0", self.x0)]
        {
            rules.given(field, address);
        }
        rules.at_least("count", self.count, 1);
        rules.holds("copies", self.copies, matches!(self.copies, 1 | 2), "1 or 2");
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct CfgX0BwdParams {
    pub state: DevicePtr,
    pub dx0: DevicePtr,
    pub dz: DevicePtr,
    pub drows: DevicePtr,
    pub count: i64,
    pub copies: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<CfgX0BwdParams>() == 48);

impl Params for CfgX0BwdParams {
    const NAME: &'static str = "CfgX0BwdParams";
    const ADDRESSES: usize = 4;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in
            [("state", self.state), ("dx0", self.dx0), ("dz", self.dz), ("drows", self.drows)]
        {
            rules.given(field, address);
        }
        rules.at_least("count", self.count, 1);
        rules.holds("copies", self.copies, matches!(self.copies, 1 | 2), "1 or 2");
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SldX0Params {
    pub state: DevicePtr,
    pub z: DevicePtr,
    pub rows: DevicePtr,
    pub nu: DevicePtr,
    pub eps: DevicePtr,
    pub x0: DevicePtr,
    pub next_nu: DevicePtr,
    pub count: i64,
}
const _: () = assert!(size_of::<SldX0Params>() == 64);

impl Params for SldX0Params {
    const NAME: &'static str = "SldX0Params";
    const ADDRESSES: usize = 7;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [
            ("state", self.state),
            ("z", self.z),
            ("rows", self.rows),
            ("nu", self.nu),
            ("eps", self.eps),
            ("x0", self.x0),
            ("next_nu", self.next_nu),
        ] {
            rules.given(field, address);
        }
        rules.at_least("count", self.count, 1);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct DdimUnguideParams {
    pub state: DevicePtr,
    pub eps: DevicePtr,
    pub x0: DevicePtr,
    // either, or none where sigma stays 0; seeds: one u64 an image
    pub noise: DevicePtr,
    pub seeds: DevicePtr,
    // both zero: never guided
    pub gate: DevicePtr,
    pub g: DevicePtr,
    pub z: DevicePtr,
    pub guided: DevicePtr,
    pub count: i64,
    pub image: i64,
    pub scale_log2: i32,
    // with seeds: channels of z, and the generator's draw that step 0 takes
    pub c: i32,
    pub draw: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<DdimUnguideParams>() == 104);

impl Params for DdimUnguideParams {
    const NAME: &'static str = "DdimUnguideParams";
    const ADDRESSES: usize = 9;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [
            ("state", self.state),
            ("eps", self.eps),
            ("x0", self.x0),
            ("z", self.z),
            ("guided", self.guided),
        ] {
            rules.given(field, address);
        }
        rules.both_or_none("gate", self.gate, "g", self.g);
        rules.whole_images(self.count, self.image);
        if self.seeds != DevicePtr::NONE {
            rules.aligned("seeds", self.seeds, 8);
            rules.holds("noise", "an address", self.noise == DevicePtr::NONE, "none where there are `seeds`");
            rules.at_least("draw", self.draw, 0);
            let whole = self.c >= 1 && self.image % i64::from(self.c.max(1)) == 0;
            rules.holds("c", self.c, whole, "the channels of an image");
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GuideEpsParams {
    pub state: DevicePtr,
    pub z: DevicePtr,
    pub eps: DevicePtr,
    pub x0: DevicePtr,
    pub gate: DevicePtr,
    pub g: DevicePtr,
    pub guided: DevicePtr,
    pub guided_x0: DevicePtr,
    pub count: i64,
    pub image: i64,
    pub scale_log2: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<GuideEpsParams>() == 88);

impl Params for GuideEpsParams {
    const NAME: &'static str = "GuideEpsParams";
    const ADDRESSES: usize = 8;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [
            ("state", self.state),
            ("z", self.z),
            ("eps", self.eps),
            ("x0", self.x0),
            ("gate", self.gate),
            ("g", self.g),
            ("guided", self.guided),
            ("guided_x0", self.guided_x0),
        ] {
            rules.given(field, address);
        }
        rules.whole_images(self.count, self.image);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct FrozenPullbackParams {
    pub state: DevicePtr,
    pub x: DevicePtr,
    pub out: DevicePtr,
    pub count: i64,
}
const _: () = assert!(size_of::<FrozenPullbackParams>() == 32);

impl Params for FrozenPullbackParams {
    const NAME: &'static str = "FrozenPullbackParams";
    const ADDRESSES: usize = 3;

    fn check(&self, rules: &mut Rules) {
        rules.given("state", self.state);
        rules.given("x", self.x);
        rules.given("out", self.out);
        rules.at_least("count", self.count, 1);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ClipCosineParams {
    pub state: DevicePtr,
    pub e: DevicePtr,
    pub concepts: DevicePtr,
    pub scores: DevicePtr,
    pub p_h: DevicePtr,
    pub gate: DevicePtr,
    pub de: DevicePtr,
    pub status: DevicePtr,
    // reduce: 0 log-mean, 1 sum-log
    pub k: i32,
    pub d: i32,
    pub top_k: i32,
    pub reduce: i32,
    pub scale_log2: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<ClipCosineParams>() == 88);

impl Params for ClipCosineParams {
    const NAME: &'static str = "ClipCosineParams";
    const ADDRESSES: usize = 8;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [
            ("state", self.state),
            ("e", self.e),
            ("concepts", self.concepts),
            ("scores", self.scores),
            ("p_h", self.p_h),
            ("gate", self.gate),
            ("de", self.de),
            ("status", self.status),
        ] {
            rules.given(field, address);
        }
        rules.at_least("k", self.k, 1);
        rules.at_least("d", self.d, 1);
        rules.holds("top_k", self.top_k, (1..=self.k).contains(&self.top_k), "1 to k");
        rules.holds("reduce", self.reduce, matches!(self.reduce, 0 | 1), "0 (log-mean) or 1 (sum-log)");
    }
}
