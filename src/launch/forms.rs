//! Which launches compute a node: the best form that its extents and alignment allow, else the general one.
//!
//! Forms differ in their kernels, in how many launches they take and in what they need besides their operands.

use super::attention::{self, Backward, Forward};
use super::conv2d::{BwdOperands, Conv2d, Operands};
use super::device::MOST_BLOCKS;
use super::gemm::{After, Gemm, Order, Places};
use super::norms::{self, GroupNorm, LayerNorm, Stats};
use super::params::{DevicePtr, Epilogue};
use super::tune::conv2d::Form as Convolving;
use super::{Launch, Operand, Storage, general};
use crate::error::Result;
use crate::ir::Op;
use crate::tensor::Shape;

/// How one node is computed.
pub(super) enum Form {
    Gemm(Gemm, &'static str),
    Conv2d(Conv2d, Convolving),
    Conv2dBwd(Conv2d, Convolving),
    GroupNorm(GroupNorm, norms::Form),
    GroupNormBwd(GroupNorm, norms::Form),
    LayerNorm(LayerNorm),
    LayerNormBwd(LayerNorm),
    Attention(Forward, attention::Form),
    AttentionBwd(Backward, attention::Form),
    General,
}

impl Form {
    /// On a device of `target`, for operands that are stored so.
    pub fn of(
        op: &Op,
        (storage, target): (Storage, &'static str),
        inputs: &[Operand],
        outputs: &[Operand],
    ) -> Self {
        match *op {
            Op::Linear => Self::Gemm(product(Order::ByColumns, inputs, outputs), target),
            Op::LinearBwd => Self::Gemm(product(Order::ByRows, inputs, outputs), target),
            Op::Conv2d { stride, padding } => {
                let conv = Conv2d::new(&inputs[0].shape, &inputs[1].shape, stride, padding);
                Self::Conv2d(conv, conv.form(target))
            }
            Op::Conv2dBwd { stride, padding, .. } => {
                let conv = Conv2d::new(&outputs[0].shape, &inputs[1].shape, stride, padding);
                Self::Conv2dBwd(conv, conv.bwd_form(0, target))
            }
            Op::GroupNorm { groups, eps, act } => {
                let norm = GroupNorm { act, ..group_norm(storage, &outputs[0].shape, groups, eps) };
                Self::GroupNorm(norm, norms::choose(&norm, Stats::NONE))
            }
            Op::GroupNormBwd { groups, eps, act } => {
                let norm = GroupNorm { act, ..group_norm(storage, &outputs[0].shape, groups, eps) };
                Self::GroupNormBwd(norm, norms::choose(&norm, Stats::NONE))
            }
            Op::LayerNorm { eps } => Self::LayerNorm(layer_norm(storage, &outputs[0].shape, eps)),
            Op::LayerNormBwd { eps } => Self::LayerNormBwd(layer_norm(storage, &outputs[0].shape, eps)),
            Op::Attention { heads, causal } => {
                let attention = Forward::of(op, heads, causal, inputs, outputs);
                Self::Attention(attention, attention.choose().form)
            }
            Op::AttentionBwd { heads, causal } => {
                let gradient = Backward::of(op, heads, causal, inputs, outputs);
                Self::AttentionBwd(gradient, gradient.choose().form)
            }
            _ => Self::General,
        }
    }

    /// Bytes that the launches write and read besides their operands.
    pub fn workspace(&self) -> usize {
        match self {
            Self::Gemm(product, target) => product.workspace(target),
            Self::Conv2d(conv, form) => conv.workspace_bytes(*form),
            Self::Conv2dBwd(conv, form) => conv.bwd_workspace_bytes(0, *form),
            Self::GroupNorm(norm, form) => norm.workspace(*form, Stats::NONE),
            Self::GroupNormBwd(norm, form) => norm.workspace_bwd(*form, Stats::NONE),
            Self::Attention(attention, form) => attention.workspace(*form),
            Self::AttentionBwd(gradient, form) => gradient.workspace(*form),
            Self::LayerNorm(_) | Self::LayerNormBwd(_) | Self::General => 0,
        }
    }

    /// In running order. `workspace` has as many bytes as [`Self::workspace`] says.
    pub fn launches(
        &self,
        op: &Op,
        storage: Storage,
        [state, workspace]: [DevicePtr; 2],
        inputs: &[Operand],
        outputs: &[Operand],
    ) -> Result<Vec<Launch>> {
        let input = |i: usize| inputs.get(i).map_or(DevicePtr::NONE, |operand| operand.at);
        let output = outputs[0].at;
        match self {
            Self::Gemm(product, target) => {
                let (a, b, bias) = (input(0), input(1), input(2));
                let at = Places { a, b, bias, d: output, workspace, ..Default::default() };
                product.launches(target, storage, &at)
            }
            Self::Conv2d(conv, form) => {
                let epilogue = Epilogue { bias: input(2), ..Default::default() };
                let (x, filter) = (input(0), input(1));
                let at = Operands { x, filter, y: output, epilogue, workspace, ..Default::default() };
                conv.forward(*form, storage, &at)
            }
            Self::Conv2dBwd(conv, form) => {
                let (dy, filter) = (input(0), input(1));
                let at = BwdOperands { dy, filter, dx: output, workspace, ..Default::default() };
                conv.backward(0, *form, storage, &at)
            }
            Self::GroupNorm(norm, form) => {
                let (x, gamma, beta) = ([input(0), DevicePtr::NONE], input(1), input(2));
                norm.forward(*form, Stats::NONE, &norms::Forward { x, gamma, beta, out: output, workspace })
            }
            Self::GroupNormBwd(norm, form) => {
                let (x, dx) = ([input(0), DevicePtr::NONE], [output, DevicePtr::NONE]);
                let (gamma, beta, dy) = (input(1), input(2), input(3));
                let at = norms::Backward { x, gamma, beta, dy, dx, workspace };
                norm.backward(*form, Stats::NONE, &at)
            }
            Self::LayerNorm(norm) => Ok(vec![norm.forward([input(0), input(1), input(2), output])?]),
            Self::LayerNormBwd(norm) => Ok(vec![norm.backward([input(0), input(1), input(2), output])?]),
            Self::Attention(attention, form) => attention.launches(*form, storage, workspace),
            Self::AttentionBwd(gradient, form) => gradient.launches(*form, storage, workspace),
            Self::General => Ok(vec![general(op, storage, MOST_BLOCKS, state, inputs, outputs)?]),
        }
    }
}

/// A linear layer or its data gradient; the outermost extent counts images.
fn product(order: Order, inputs: &[Operand], outputs: &[Operand]) -> Gemm {
    let (x, d) = (&inputs[0].shape, &outputs[0].shape);
    let after = After { bias: inputs.len() > 2, ..Default::default() };
    Gemm { images: d[0], after, ..Gemm::new(d.rows(), d.last(), x.last(), order) }
}

fn group_norm(storage: Storage, x: &Shape, groups: usize, eps: f32) -> GroupNorm {
    let pixels = x.rows() / x[0];
    GroupNorm { storage, n: x[0], pixels, c: [x.last(), 0], groups, eps, act: None }
}

fn layer_norm(storage: Storage, x: &Shape, eps: f32) -> LayerNorm {
    LayerNorm { storage, rows: x.rows(), c: x.last(), eps }
}
