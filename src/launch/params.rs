//! What kernels are given: the structs of `kernels/include/params.cuh`, field by field.
//!
//! Addresses come first, then 64-bit numbers, then 32-bit ones, so that there is no hidden padding; both sides
//! assert the sizes. What changes between two steps is not here but in a [`StepState`] that an address leads to.

use bytemuck::{Pod, Zeroable};

use crate::{ir, plan};

/// An address on the device; 0 is none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DevicePtr(pub u64);

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

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct TimestepParams {
    pub state: DevicePtr,
    pub out: DevicePtr,
    pub channels: i32,
    pub flip: i32,
    pub shift: f32,
    pub pad: i32,
}
const _: () = assert!(size_of::<TimestepParams>() == 32);

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

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct DdimUnguideParams {
    pub state: DevicePtr,
    pub eps: DevicePtr,
    pub x0: DevicePtr,
    pub noise: DevicePtr,
    // both zero: never guided
    pub gate: DevicePtr,
    pub g: DevicePtr,
    pub z: DevicePtr,
    pub guided: DevicePtr,
    pub count: i64,
    pub image: i64,
    pub scale_log2: i32,
    pub pad: i32,
}
const _: () = assert!(size_of::<DdimUnguideParams>() == 88);

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

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct FrozenPullbackParams {
    pub state: DevicePtr,
    pub x: DevicePtr,
    pub out: DevicePtr,
    pub count: i64,
}
const _: () = assert!(size_of::<FrozenPullbackParams>() == 32);

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

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct LayerNormBwdParams {
    pub x: DevicePtr,
    pub gamma: DevicePtr,
    pub dy: DevicePtr,
    pub dx: DevicePtr,
    pub rows: i64,
    pub c: i32,
    pub eps: f32,
}
const _: () = assert!(size_of::<LayerNormBwdParams>() == 48);

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

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GroupNormBwdParams {
    pub x: DevicePtr,
    pub gamma: DevicePtr,
    pub beta: DevicePtr,
    pub dy: DevicePtr,
    pub dx: DevicePtr,
    pub n: i32,
    pub pixels: i32,
    pub c: i32,
    pub groups: i32,
    pub eps: f32,
    pub activation: i32,
}
const _: () = assert!(size_of::<GroupNormBwdParams>() == 64);

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
