//! Matrix products.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GemmParams {
    // bias, residual: 0 where there is none
    pub a: DevicePtr,
    pub b: DevicePtr,
    pub bias: DevicePtr,
    pub residual: DevicePtr,
    pub d: DevicePtr,
    // elements between two matrices of the batch
    pub a_batch: i64,
    pub b_batch: i64,
    pub d_batch: i64,
    // b's element (column, k) is at column * b_column + k * b_k
    pub b_column: i64,
    pub b_k: i64,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub activation: i32,
}
const _: () = assert!(size_of::<GemmParams>() == 96);

impl Params for GemmParams {
    const NAME: &'static str = "GemmParams";
    const ADDRESSES: usize = 5;

    fn check(&self, rules: &mut Rules) {
        rules.given("a", self.a);
        rules.given("b", self.b);
        rules.given("d", self.d);
        for (field, extent) in [("m", self.m), ("n", self.n), ("k", self.k)] {
            rules.at_least(field, extent, 1);
        }
        for (field, stride) in [
            ("a_batch", self.a_batch),
            ("b_batch", self.b_batch),
            ("d_batch", self.d_batch),
            ("b_column", self.b_column),
            ("b_k", self.b_k),
        ] {
            rules.at_least(field, stride, 0);
        }
        rules.holds(
            "activation",
            self.activation,
            (0..=5).contains(&self.activation),
            "an activation, 0 to 5",
        );
    }
}
