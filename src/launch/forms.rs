//! Which launches compute a unit: the best form that its extents and alignment allow, else the general one.
//!
//! Forms differ in their kernels, in how many launches they take and in what they need besides their operands. What
//! stands around a contraction goes into its epilogue, which all its forms have; so every form of a group computes
//! all of it.

use super::attention::{self, Backward, Forward};
use super::choice::{Choice, Why};
use super::conv2d::{BwdOperands, Conv2d, Operands, int};
use super::device::MOST_BLOCKS;
use super::gemm::{After, Channels, Gemm, Order, Places};
use super::norms::{self, GroupNorm, LayerNorm, Stats, TileStats};
use super::params::{DevicePtr, Epilogue, Tile};
use super::pointwise;
use super::tune::conv2d::{self as tune, Form as Convolving};
use super::tune::hopper::SLAB;
use super::unit::{Reads, Unit};
use super::{Launch, Operand, Packing, Storage, general, hopper};
use crate::error::Result;
use crate::ir::Op;
use crate::tensor::Shape;

/// How one unit is computed.
pub(super) enum Form {
    Gemm(Gemm, &'static str),
    Conv2d(Conv2d, Convolving),
    Conv2dBwd(Conv2d, Convolving),
    GroupNorm(GroupNorm, norms::Form, Stats),
    GroupNormBwd(GroupNorm, norms::Form, Stats),
    LayerNorm(LayerNorm),
    LayerNormBwd(LayerNorm),
    Attention(Forward, attention::Form),
    AttentionBwd(Backward, attention::Form),
    /// The gradient of a gate whose operand has its two halves side by side.
    GegluBwdOfPairs,
    /// Eight elements a load.
    Pointwise,
    General,
}

/// What launches touch besides operands and results.
#[derive(Clone, Copy)]
pub(super) struct Around {
    /// A [`super::params::StepState`].
    pub state: DevicePtr,
    /// As many bytes as [`Form::workspace`] says.
    pub workspace: DevicePtr,
    /// As many bytes as [`Form::measuring`] says, for a form from there.
    pub stats: DevicePtr,
    /// As many counters as [`Form::counters`] says, all zero.
    pub arrived: DevicePtr,
}

impl Form {
    /// On a device of `target`, for operands that are stored so.
    pub fn of(
        unit: &Unit<'_>,
        (storage, target): (Storage, &'static str),
        reads: &Reads,
        outputs: &[Operand],
    ) -> Self {
        let inputs = &reads.inputs;
        match unit.root.op {
            Op::Linear => Self::Gemm(product(Order::ByColumns, unit, reads, outputs), target),
            Op::LinearBwd => Self::Gemm(product(Order::ByRows, unit, reads, outputs), target),
            Op::Conv2d { .. } => {
                let conv = convolution(unit, &inputs[0].shape, &inputs[1].shape);
                let conv = Conv2d { channels: channels(reads), ..conv };
                Self::Conv2d(conv, conv.form(target))
            }
            Op::Conv2dBwd { .. } => {
                let conv = convolution(unit, &outputs[0].shape, &inputs[1].shape);
                Self::Conv2dBwd(conv, conv.bwd_form(0, target))
            }
            Op::GroupNorm { groups, eps, act } => {
                let norm = GroupNorm { act, ..group_norm(storage, &outputs[0].shape, groups, eps) };
                let norm = GroupNorm { c: channels(reads), measured: reads.measured, ..norm };
                let stats = Stats::Each(reads.stats);
                Self::GroupNorm(norm, norms::choose(&norm, stats), stats)
            }
            Op::GroupNormBwd { groups, eps, act } => {
                let norm = GroupNorm { act, ..group_norm(storage, &outputs[0].shape, groups, eps) };
                let stats = Stats::Each(reads.stats);
                Self::GroupNormBwd(norm, norms::choose(&norm, stats), stats)
            }
            Op::GegluBwd if reads.paired => Self::GegluBwdOfPairs,
            Op::LayerNorm { eps } => Self::LayerNorm(layer_norm(storage, &outputs[0].shape, eps)),
            Op::LayerNormBwd { eps } => Self::LayerNormBwd(layer_norm(storage, &outputs[0].shape, eps)),
            Op::Attention { heads, causal } => {
                let attention = Forward::of(&unit.root.op, heads, causal, inputs, outputs);
                Self::Attention(attention, attention.choose(target).form)
            }
            Op::AttentionBwd { heads, causal, .. } => {
                let gradient = Backward::of(&unit.root.op, heads, causal, inputs, outputs);
                Self::AttentionBwd(gradient, gradient.choose(target).form)
            }
            ref op => match pointwise::choose(op, inputs, outputs) {
                pointwise::Form::Eights(_) => Self::Pointwise,
                pointwise::Form::General(_) => Self::General,
            },
        }
    }

    /// What was chosen on a device of `target`, and why.
    pub fn choice(&self, unit: &Unit<'_>, target: &str, reads: &Reads, outputs: &[Operand]) -> Choice {
        let inputs = &reads.inputs;
        match self {
            Self::Gemm(product, target) => Choice::of_gemm(product.choice(target)),
            Self::Conv2d(conv, _) => Choice::of_conv2d(conv, false, target),
            Self::Conv2dBwd(conv, _) => Choice::of_conv2d(conv, true, target),
            Self::GroupNorm(_, form, _) | Self::GroupNormBwd(_, form, _) => {
                Choice::because(Why::GroupNorm(*form))
            }
            Self::LayerNorm(norm) | Self::LayerNormBwd(norm) => {
                let all = inputs.iter().chain(&reads.residual).chain(outputs);
                let addresses: Vec<DevicePtr> = all.map(|operand| operand.at).collect();
                Choice::because(Why::LayerNorm(norms::choose_layer(norm.c, &addresses)))
            }
            Self::Attention(attention, _) => Choice::because(Why::Attention(attention.choose(target))),
            Self::AttentionBwd(gradient, _) => Choice::because(Why::Attention(gradient.choose(target))),
            Self::GegluBwdOfPairs | Self::Pointwise | Self::General => {
                Choice::because(Why::Elements(pointwise::choose(&unit.root.op, inputs, outputs)))
            }
        }
    }

    /// The same with statistics of what it makes, if it can take them: with the rows of a tile, and their bytes.
    pub fn measuring(&self, target: &'static str) -> Option<(Self, usize, usize)> {
        let bytes =
            |images: usize, pixels: usize, c: usize, rows: usize| 8 * images * pixels.div_ceil(rows) * c;
        match self {
            Self::Gemm(product, _) if product.after.activation != Epilogue::GEGLU => {
                let after = After { stats: true, ..product.after };
                let product = Gemm { after, ..*product };
                let rows = product.stat_rows(target)?;
                let bytes = bytes(product.images, product.m / product.images, product.n, rows);
                Some((Self::Gemm(product, target), rows, bytes))
            }
            Self::Conv2d(conv, _) => {
                let conv = Conv2d { stats: true, ..*conv };
                let form = conv.form(target);
                let rows = conv.statistics_tile(form)?;
                let bytes = bytes(conv.images, conv.out().iter().product(), conv.filter[0], rows);
                Some((Self::Conv2d(conv, form), rows, bytes))
            }
            _ => None,
        }
    }

    /// Statistics that are left in the workspace, of the first operand and of what stands beside it.
    pub fn left(&self, workspace: DevicePtr) -> [Option<TileStats>; 2] {
        match self {
            Self::GroupNorm(norm, form, stats) => norm.left(*form, *stats, workspace),
            _ => [None; 2],
        }
    }

    /// Bytes that the launches write and read besides their operands.
    pub fn workspace(&self) -> usize {
        match self {
            Self::Gemm(product, target) => product.workspace(target),
            Self::Conv2d(conv, form) => conv.workspace_bytes(*form),
            Self::Conv2dBwd(conv, form) => conv.bwd_workspace_bytes(0, *form),
            Self::GroupNorm(norm, form, stats) => norm.workspace(*form, *stats),
            Self::GroupNormBwd(norm, form, stats) => norm.workspace_bwd(*form, *stats),
            Self::Attention(attention, form) => attention.workspace(*form),
            Self::AttentionBwd(gradient, form) => gradient.workspace(*form),
            Self::LayerNorm(_)
            | Self::LayerNormBwd(_)
            | Self::GegluBwdOfPairs
            | Self::Pointwise
            | Self::General => 0,
        }
    }

    /// Tiles of `launch`, its own, whose parts are counted.
    pub fn counters(&self, launch: &Launch) -> usize {
        let parts = match self {
            Self::Gemm(product, target) => product.choice(target).form.kept(),
            Self::Conv2d(_, form) | Self::Conv2dBwd(_, form) => form.kept(),
            _ => 0,
        };
        // Blocks of sm_90a take tile after tile, of one slab of rows or of two.
        let blocks = launch.grid.iter().map(|&blocks| u64::from(blocks)).product::<u64>();
        let rows = Tile::of(launch.kernel).map_or(0, |tile| tile.m.unsigned_abs() as usize);
        let tiles = match hopper::items(launch) {
            Some(items) => items as usize * (rows / SLAB),
            None => blocks as usize,
        };
        tiles.checked_div(parts).unwrap_or(0)
    }

    /// In running order. `workspace` has as many bytes as [`Self::workspace`] says.
    pub fn launches(
        &self,
        unit: &Unit<'_>,
        storage: Storage,
        Around { state, workspace, stats, arrived }: Around,
        reads: &Reads,
        outputs: &[Operand],
    ) -> Result<Vec<Launch>> {
        let (op, inputs) = (&unit.root.op, &reads.inputs);
        let at = |operand: Option<&Operand>| operand.map_or(DevicePtr::NONE, |operand| operand.at);
        let input = |i: usize| at(inputs.get(i));
        let (second, residual) = (at(reads.second.as_ref()), at(reads.residual.as_ref()));
        let (channels, output) = (at(reads.channels.as_ref()), outputs[0].at);
        match self {
            Self::Gemm(product, target) => {
                let (a, b, bias, d) = (input(0), input(1), input(2), output);
                let at = Places { a, b, d, bias, channels, residual, stats, workspace, arrived };
                Ok(vec![product.launch(target, storage, &at)?])
            }
            Self::Conv2d(conv, form) => {
                let (bias, activation) = (input(2), unit.activation);
                let residual_rows = int(residual_rows(reads, &outputs[0].shape));
                let ends = Epilogue { bias, channels, residual, stats, ..Default::default() };
                let epilogue = Epilogue { activation, residual_rows, ..ends };
                let one_vector = reads.channels.as_ref().is_some_and(|channels| channels.shape[0] == 1);
                let (x, x2, filter, y) = (input(0), second, input(1), output);
                let at = Operands { x, x2, filter, y, epilogue, one_vector, workspace, arrived };
                Ok(vec![conv.forward(*form, storage, &at)?])
            }
            Self::Conv2dBwd(conv, form) => {
                let residual_rows = int(residual_rows(reads, &outputs[0].shape));
                let epilogue = Epilogue { residual, residual_rows, ..Default::default() };
                let (dy, filter) = (input(0), input(1));
                let at = BwdOperands { dy, filter, dx: output, epilogue, workspace, arrived };
                Ok(vec![conv.backward(0, *form, storage, &at)?])
            }
            Self::GroupNorm(norm, form, stats) => {
                let (x, gamma, beta) = ([input(0), second], input(1), input(2));
                norm.forward(*form, *stats, &norms::Forward { x, gamma, beta, out: output, workspace })
            }
            Self::GroupNormBwd(norm, form, stats) => {
                let (x, dx) = ([input(0), DevicePtr::NONE], [output, DevicePtr::NONE]);
                let (gamma, beta, dy) = (input(1), input(2), input(3));
                let at = norms::Backward { x, gamma, beta, dy, residual, dx, workspace };
                norm.backward(*form, *stats, &at)
            }
            Self::LayerNorm(norm) => Ok(vec![norm.forward([input(0), input(1), input(2), output])?]),
            Self::LayerNormBwd(norm) => {
                Ok(vec![norm.backward([input(0), input(1), input(2), residual, output])?])
            }
            Self::Attention(attention, form) => attention.launches(*form, storage, workspace),
            Self::AttentionBwd(gradient, form) => gradient.launches(*form, storage, workspace),
            Self::GegluBwdOfPairs => {
                Ok(vec![pointwise::geglu_bwd_of_pairs(storage, MOST_BLOCKS, inputs, output)?])
            }
            Self::Pointwise => Ok(vec![pointwise::launch(op, storage, MOST_BLOCKS, inputs, outputs)?]),
            Self::General => Ok(vec![general(op, storage, MOST_BLOCKS, state, inputs, outputs)?]),
        }
    }
}

/// Rows of the residual, where those are fewer than the result has: they repeat themselves.
fn residual_rows(reads: &Reads, result: &Shape) -> usize {
    let rows = |residual: &Operand| residual.shape.count() / result.last();
    reads.residual.as_ref().map(rows).filter(|&rows| rows < result.rows()).unwrap_or(0)
}

/// How the filter of a unit is packed; `small` is the image that is stored.
pub(super) fn packing(unit: &Unit<'_>, small: &Shape, filter: &Shape) -> Packing {
    match unit.root.op {
        Op::Conv2d { .. } | Op::Conv2dBwd { .. } => {
            let conv = convolution(unit, small, filter);
            if conv.sub_pixel { Packing::SubPixel(conv.cropped()) } else { Packing::Plain }
        }
        _ => Packing::Plain,
    }
}

/// A linear layer or its data gradient; the outermost extent counts images.
fn product(order: Order, unit: &Unit<'_>, reads: &Reads, outputs: &[Operand]) -> Gemm {
    let (x, filter) = (&reads.inputs[0].shape, &reads.inputs[1].shape);
    let n = if order == Order::ByColumns { filter[0] } else { filter[1] };
    let channels = reads.channels.as_ref().map(|channels| match channels.shape[0] {
        1 => Channels::OfAll,
        _ => Channels::OfImages,
    });
    let after = After {
        bias: reads.inputs.len() > 2,
        channels,
        activation: unit.activation,
        residual: reads.residual.is_some(),
        residual_rows: residual_rows(reads, &outputs[0].shape),
        stats: false,
    };
    let mut product = Gemm { images: x[0], after, ..Gemm::new(x.rows(), n, x.last(), order) };
    if unit.activation == Epilogue::GEGLU {
        product.rows[2] = n / 2;
    }
    product
}

/// A convolution or its data gradient, of one source; `small` is the shape of its input as that is stored.
fn convolution(unit: &Unit<'_>, small: &Shape, filter: &Shape) -> Conv2d {
    let (Op::Conv2d { stride, padding } | Op::Conv2dBwd { stride, padding, .. }) = unit.root.op else {
        unreachable!("`{}` is no convolution", unit.root.name)
    };
    let conv = Conv2d { enlarged: unit.enlarged, ..Conv2d::new(small, filter, stride, padding) };
    Conv2d { sub_pixel: conv.has_sub_pixel_form() && tune::sub_pixel_pays(conv.out()), ..conv }
}

/// Those of the first operand, and of what stands beside it.
fn channels(reads: &Reads) -> [usize; 2] {
    [reads.inputs[0].shape.last(), reads.second.as_ref().map_or(0, |second| second.shape.last())]
}

fn group_norm(storage: Storage, x: &Shape, groups: usize, eps: f32) -> GroupNorm {
    let pixels = x.rows() / x[0];
    GroupNorm { storage, n: x[0], measured: x[0], pixels, c: [x.last(), 0], groups, eps, act: None }
}

fn layer_norm(storage: Storage, x: &Shape, eps: f32) -> LayerNorm {
    LayerNorm { storage, rows: x.rows(), c: x.last(), eps }
}
