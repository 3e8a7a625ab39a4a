//! Normalisations.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct LayerNormParams {
    pub x: DevicePtr,
    pub gamma: DevicePtr,
    pub beta: DevicePtr,
    pub out: DevicePtr,
    pub rows: i64,
    pub c: i32,
    pub eps: f32,
}
const _: () = assert!(size_of::<LayerNormParams>() == 48);

impl Params for LayerNormParams {
    const NAME: &'static str = "LayerNormParams";
    const ADDRESSES: usize = 4;

    fn check(&self, rules: &mut Rules) {
        let addresses = [("x", self.x), ("gamma", self.gamma), ("beta", self.beta), ("out", self.out)];
        for (field, address) in addresses {
            rules.given(field, address);
        }
        rules.rows(self.rows, self.c, self.eps);
        warps(rules, &addresses, self.c);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct LayerNormBwdParams {
    pub x: DevicePtr,
    pub gamma: DevicePtr,
    pub dy: DevicePtr,
    // as dx, or 0
    pub residual: DevicePtr,
    pub dx: DevicePtr,
    pub rows: i64,
    pub c: i32,
    pub eps: f32,
}
const _: () = assert!(size_of::<LayerNormBwdParams>() == 56);

impl Params for LayerNormBwdParams {
    const NAME: &'static str = "LayerNormBwdParams";
    const ADDRESSES: usize = 5;

    fn check(&self, rules: &mut Rules) {
        let addresses = [("x", self.x), ("gamma", self.gamma), ("dy", self.dy), ("dx", self.dx)];
        for (field, address) in addresses {
            rules.given(field, address);
        }
        rules.rows(self.rows, self.c, self.eps);
        warps(rules, &addresses, self.c);
        warps(rules, &[("residual", self.residual)], self.c);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GroupNormParams {
    pub x: DevicePtr,
    pub gamma: DevicePtr,
    pub beta: DevicePtr,
    pub out: DevicePtr,
    pub n: i32,
    pub pixels: i32,
    pub c: i32,
    pub groups: i32,
    pub eps: f32,
    pub activation: i32,
}
const _: () = assert!(size_of::<GroupNormParams>() == 56);

impl Params for GroupNormParams {
    const NAME: &'static str = "GroupNormParams";
    const ADDRESSES: usize = 4;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in [("x", self.x), ("gamma", self.gamma), ("beta", self.beta), ("out", self.out)]
        {
            rules.given(field, address);
        }
        rules.groups(self.n, self.pixels, self.c, self.groups, self.eps);
        rules.blocks([self.groups.into(), self.n.into(), 1]);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GroupNormBwdParams {
    pub x: DevicePtr,
    pub gamma: DevicePtr,
    pub beta: DevicePtr,
    pub dy: DevicePtr,
    // as dx, or 0
    pub residual: DevicePtr,
    pub dx: DevicePtr,
    pub n: i32,
    pub pixels: i32,
    pub c: i32,
    pub groups: i32,
    pub eps: f32,
    pub activation: i32,
}
const _: () = assert!(size_of::<GroupNormBwdParams>() == 72);

impl Params for GroupNormBwdParams {
    const NAME: &'static str = "GroupNormBwdParams";
    const ADDRESSES: usize = 6;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in
            [("x", self.x), ("gamma", self.gamma), ("beta", self.beta), ("dy", self.dy), ("dx", self.dx)]
        {
            rules.given(field, address);
        }
        rules.groups(self.n, self.pixels, self.c, self.groups, self.eps);
        rules.blocks([self.groups.into(), self.n.into(), 1]);
    }
}

/// What the forms with a warp a row rely on; their names end in the most channels that they hold.
fn warps(rules: &mut Rules, addresses: &[(&'static str, DevicePtr)], c: i32) {
    let most = rules.kernel.name.rsplit_once("_c").and_then(|(_, most)| most.parse::<i32>().ok());
    if let Some(most) = most {
        addresses.iter().for_each(|&(field, address)| rules.aligned(field, address, 16));
        rules.multiple_of("c", c, 8);
        rules.holds("c", c, c <= most, &format!("at most {most}"));
    }
}
