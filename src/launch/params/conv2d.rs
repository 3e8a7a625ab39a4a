//! Convolutions.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Conv2dParams {
    // bias: 0 where there is none
    pub x: DevicePtr,
    pub filter: DevicePtr,
    pub bias: DevicePtr,
    pub y: DevicePtr,
    pub n: i32,
    pub h: i32,
    pub w: i32,
    pub c: i32,
    pub o: i32,
    pub r: i32,
    pub s: i32,
    pub stride: i32,
    pub top: i32,
    pub left: i32,
    pub height: i32,
    pub width: i32,
}
const _: () = assert!(size_of::<Conv2dParams>() == 80);

impl Params for Conv2dParams {
    const NAME: &'static str = "Conv2dParams";
    const ADDRESSES: usize = 4;

    fn check(&self, rules: &mut Rules) {
        rules.given("x", self.x);
        rules.given("filter", self.filter);
        rules.given("y", self.y);
        for (field, extent) in [
            ("n", self.n),
            ("h", self.h),
            ("w", self.w),
            ("c", self.c),
            ("o", self.o),
            ("r", self.r),
            ("s", self.s),
            ("stride", self.stride),
            ("height", self.height),
            ("width", self.width),
        ] {
            rules.at_least(field, extent, 1);
        }
        rules.at_least("top", self.top, 0);
        rules.at_least("left", self.left, 0);
    }
}
