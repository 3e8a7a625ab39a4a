//! Kernels as values, without a device.
//!
//! A [`Launch`] says all that a device must know: which kernel, over which grid, with which params. Whoever
//! makes one has its params checked against what the kernel relies on ([`params::Rules`]). [`general()`] turns any
//! operation into launches of the general forms, which take any size and alignment. [`lower()`] turns a whole step
//! into a [`LaunchProgram`]: launches in order, with locations instead of addresses.

mod attending;
pub mod attention;
pub mod binaries;
pub mod choice;
pub mod conv2d;
mod cost;
pub mod device;
mod direct;
mod execute;
mod forms;
pub mod gemm;
mod general;
pub mod hopper;
pub mod layout;
mod location;
mod lower;
pub mod maps;
pub mod norms;
pub mod params;
pub mod pointwise;
pub mod predict;
mod program;
mod statistics;
pub mod tune;
mod types;
mod unit;
mod weights;
mod work;

use bytemuck::bytes_of;

pub use cost::Cost;
pub use execute::{Addresses, Executor, execute, execute_hoisted};
pub use general::{Kinds, Operand, general, kinds};
pub use location::{Location, Space, relocate};
pub use lower::lower;
use maps::Map;
use params::{Params, Rules};
pub use program::{DeviceBuffer, LaunchProgram, LaunchStage, LaunchStep};
pub use weights::{PIECE_BYTES, Packing, Weight, WeightKey, from_bytes, to_bytes};

use crate::error::{Error, Result};
use crate::manifest::{self, Kernel};
use crate::tensor::DType;

/// What activations and weights are stored in on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    F16,
    Bf16,
}

impl Storage {
    pub const BOTH: [Self; 2] = [Self::F16, Self::Bf16];

    /// As in the names of kernels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    pub const fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// One run of one kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub kernel: &'static Kernel,
    pub grid: [u32; 3],
    /// The bytes of the kernel's params struct. It begins with [`Launch::addresses`] addresses of eight bytes.
    pub params: Vec<u8>,
    pub addresses: usize,
    /// Tensors that the kernel copies in bulk; their places in `params` are empty.
    pub maps: Vec<Map>,
}

impl Launch {
    /// Refuses params that break a rule of the kernel, and a grid that no device takes.
    pub fn new<P: Params>(kernel: &str, grid: [u32; 3], params: &P) -> Result<Self> {
        let kernel = manifest::find(kernel).ok_or_else(|| Error::Bug(format!("no kernel `{kernel}`")))?;
        if kernel.params != P::NAME {
            return Err(Error::Bug(format!("`{}` takes {}, not {}", kernel.name, kernel.params, P::NAME)));
        }
        let mut rules = Rules::new(kernel, grid);
        let [x, y, z] = grid;
        let fits = (1..=i32::MAX as u32).contains(&x) && (1..=65535).contains(&y) && (1..=65535).contains(&z);
        rules.holds("grid", format_args!("{grid:?}"), fits, "1 to 2^31 - 1, 65535 and 65535 blocks");
        params.check(&mut rules);
        rules.verdict()?;
        let maps = params.maps(kernel);
        Ok(Self { kernel, grid, params: bytes_of(params).to_vec(), addresses: P::ADDRESSES, maps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use params::{DevicePtr, GroupNormParams, PointwiseParams};

    #[test]
    fn broken_rules_name_the_kernel_the_field_and_the_rule() {
        let some = DevicePtr(4096);
        let norm = GroupNormParams {
            x: some,
            gamma: some,
            beta: some,
            out: some,
            n: 1,
            pixels: 4,
            c: 33,
            groups: 32,
            eps: 1e-5,
            activation: 0,
        };
        let error = Launch::new("group_norm_f16", [32, 1, 1], &norm).expect_err("33 channels in 32 groups");
        let text = error.to_string();
        assert!(text.contains("`group_norm_f16`: `c` must be a multiple of the groups, found 33"), "{text}");
        assert!(Launch::new("group_norm_f16", [32, 1, 1], &GroupNormParams { c: 64, ..norm }).is_ok());

        let empty = PointwiseParams { x: some, out: some, count: 0, ..Default::default() };
        let error = Launch::new("affine_f16", [1, 1, 1], &empty).expect_err("no elements");
        assert!(error.to_string().contains("`count` must be at least 1, found 0"), "{error}");
        let nowhere = PointwiseParams { x: some, count: 1, ..Default::default() };
        let error = Launch::new("affine_f16", [1, 1, 1], &nowhere).expect_err("no output");
        assert!(error.to_string().contains("`out` must be an address, found none"), "{error}");
    }

    #[test]
    fn a_grid_that_covers_another_size_is_refused() {
        let some = DevicePtr(4096);
        let (q, k, v, o, lse) = (some, some, some, some, some);
        let attention = params::AttentionParams { q, k, v, o, lse, ..Default::default() };
        let rows = [120, 120, 120, 120];
        let [q_row, k_row, v_row, o_row] = rows;
        let attention = params::AttentionParams { q_row, k_row, v_row, o_row, ..attention };
        let attention = params::AttentionParams { n: 2, t: 130, u: 77, heads: 3, d: 40, ..attention };
        let product =
            params::ProductParams { a: some, b: some, c: some, m: 200, n: 64, k: 32, ..Default::default() };
        let product = params::ProductParams { a_row: 32, b_row: 64, c_row: 64, alpha: 1.0, ..product };
        type Made<'a> = &'a dyn Fn([u32; 3]) -> Result<Launch>;
        let cases: [(Made, [u32; 3]); 4] = [
            (&|grid| Launch::new("attention_f16", grid, &attention), [17, 3, 2]),
            (&|grid| Launch::new("attention_f16_d40", grid, &attention), [2, 3, 2]),
            (&|grid| Launch::new("attention_product_nn_f16", grid, &product), [7, 2, 1]),
            (&|grid| Launch::new("attention_product_nn_f16_m128n128k32s3", grid, &product), [2, 1, 1]),
        ];
        for (make, [x, y, z]) in cases {
            make([x, y, z]).expect("the grid of that size");
            for grid in [[x + 1, y, z], [x, y + 1, z], [x, y, z + 1], [x - 1, y, z]] {
                let error = make(grid).expect_err("another grid").to_string();
                assert!(
                    error.contains("`grid` must be [") && error.contains(&format!("{grid:?}")),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_kernel_takes_its_own_params_and_a_grid_that_devices_have() {
        let some = DevicePtr(4096);
        let params = PointwiseParams { x: some, out: some, count: 1, ..Default::default() };
        assert!(matches!(Launch::new("gemm_f16", [1; 3], &params), Err(Error::Bug(_))));
        assert!(matches!(Launch::new("affine_f17", [1; 3], &params), Err(Error::Bug(_))));
        for grid in [[0, 1, 1], [1, 65536, 1], [u32::MAX, 1, 1]] {
            let error = Launch::new("affine_f16", grid, &params).expect_err("no such grid");
            assert!(error.to_string().contains("`grid`"), "{error}");
        }
    }
}
