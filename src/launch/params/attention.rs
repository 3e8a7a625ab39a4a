//! Attention.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct AttentionParams {
    pub q: DevicePtr,
    pub k: DevicePtr,
    pub v: DevicePtr,
    pub o: DevicePtr,
    pub lse: DevicePtr,
    pub n: i32,
    pub t: i32,
    pub u: i32,
    pub heads: i32,
    pub d: i32,
    pub causal: i32,
}
const _: () = assert!(size_of::<AttentionParams>() == 64);

impl Params for AttentionParams {
    const NAME: &'static str = "AttentionParams";
    const ADDRESSES: usize = 5;

    fn check(&self, rules: &mut Rules) {
        for (field, address) in
            [("q", self.q), ("k", self.k), ("v", self.v), ("o", self.o), ("lse", self.lse)]
        {
            rules.given(field, address);
        }
        for (field, extent) in [("n", self.n), ("t", self.t), ("u", self.u), ("heads", self.heads)] {
            rules.at_least(field, extent, 1);
        }
        rules.holds("d", self.d, (1..=256).contains(&self.d), "1 to 256");
        rules.holds("causal", self.causal, matches!(self.causal, 0 | 1), "0 or 1");
    }
}
