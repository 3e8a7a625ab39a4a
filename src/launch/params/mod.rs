//! What kernels are given: the structs of `kernels/include/params.cuh`, field by field.
//!
//! Addresses come first, then 64-bit numbers, then 32-bit ones, so that there is no hidden padding; both sides
//! assert the sizes. What changes between two steps is not here but in a [`StepState`] that an address leads to.

mod attention;
mod attention_sm90;
mod condition;
mod conv2d;
mod epilogue;
mod gemm;
mod groups;
mod images;
mod layout;
mod method;
mod norms;
mod pointwise;
mod rules;
mod sm90;

use bytemuck::{Pod, Zeroable};

pub use attention::{AttentionBwdParams, AttentionParams, ProductParams, SoftmaxParams};
pub use attention_sm90::{AttentionBwdSm90Params, AttentionSm90Params};
pub use condition::{Condition, ConditionParams};
pub use conv2d::{Conv2dBwdParams, Conv2dBwdTileParams, Conv2dParams, Conv2dTileParams};
pub use epilogue::Epilogue;
pub use gemm::{GemmParams, GemmTileParams, Tile};
pub use groups::{GroupApplyParams, GroupBwdParams, GroupFoldParams, GroupTilesParams};
pub use images::{EmbedPatchesParams, EmbedTextParams, ResampleParams, UpsampleParams};
pub use layout::{GatherParams, NormaliseParams, PlaceParams, SumCopiesParams};
pub use method::{
    CfgX0BwdParams, CfgX0Params, ClipCosineParams, DdimUnguideParams, FrozenPullbackParams, GuideEpsParams,
    SldX0Params,
};
pub use norms::{GroupNormBwdParams, GroupNormParams, LayerNormBwdParams, LayerNormParams};
pub use pointwise::{LayoutParams, PointwiseParams, TimestepParams};
pub use rules::Rules;
pub use sm90::{Conv2dBwdSm90Params, Conv2dSm90Params, GemmSm90Params};

use super::maps::Map;
use crate::manifest::Kernel;
use crate::{ir, plan};

/// A kernel's params, and what they must be.
pub trait Params: Pod {
    /// Its name in `params.cuh` and in the manifest.
    const NAME: &'static str;
    /// So many addresses stand at its beginning.
    const ADDRESSES: usize;

    /// Says what does not hold: the kernel relies on every rule.
    fn check(&self, rules: &mut Rules);

    /// Tensors that `kernel` copies in bulk.
    fn maps(&self, _kernel: &Kernel) -> Vec<Map> {
        Vec::new()
    }
}

/// An address on the device; 0 is none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    pub const NONE: Self = Self(0);
}

/// The numbers of `activation.cuh`.
pub fn activation(act: Option<ir::Activation>) -> i32 {
    match act {
        None => 0,
        Some(ir::Activation::Silu) => 1,
        Some(ir::Activation::Gelu) => 2,
        Some(ir::Activation::QuickGelu) => 3,
        Some(ir::Activation::Relu) => 4,
        Some(ir::Activation::Tanh) => 5,
    }
}

/// The numbers of `clip_cosine.cu`.
pub fn reduce(reduce: ir::Reduce) -> i32 {
    match reduce {
        ir::Reduce::LogMean => 0,
        ir::Reduce::SumLog => 1,
    }
}

impl From<&plan::StepState> for StepState {
    fn from(state: &plan::StepState) -> Self {
        Self {
            timestep: state.timestep,
            guidance: state.guidance,
            alpha: state.alpha,
            x0_from: state.x0_from,
            eps_from: state.eps_from,
            prev_x0: state.prev_x0,
            prev_eps: state.prev_eps,
            sigma: state.sigma,
            gamma: state.gamma,
            threshold: state.threshold,
            sld_scale: state.sld.scale,
            sld_threshold: state.sld.threshold,
            sld_momentum: state.sld.momentum,
            sld_beta: state.sld.beta,
            // Counts of steps and samples are far below 2^31.
            step: state.step as i32,
            sample: state.sample as i32,
            window: i32::from(state.window),
            sld_warm: i32::from(state.sld.warm),
        }
    }
}

/// What one step needs; see [`plan::StepState`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct StepState {
    pub timestep: f32,
    pub guidance: f32,
    pub alpha: f32,
    pub x0_from: [f32; 2],
    pub eps_from: [f32; 2],
    pub prev_x0: f32,
    pub prev_eps: f32,
    pub sigma: f32,
    pub gamma: f32,
    pub threshold: f32,
    pub sld_scale: f32,
    pub sld_threshold: f32,
    pub sld_momentum: f32,
    pub sld_beta: f32,
    pub step: i32,
    pub sample: i32,
    pub window: i32,
    pub sld_warm: i32,
}
const _: () = assert!(size_of::<StepState>() == 80);
