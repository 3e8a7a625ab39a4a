//! The general form of every operation: one launch that takes any size and alignment.
//!
//! They are the fallback where no tuned form fits, and what tuned forms are compared with.

use super::attention::{Backward, Forward};
use super::conv2d::{BwdOperands, Conv2d, Operands};
use super::layout::{Element, Place, strided};
use super::params::{self as p, DevicePtr, Params};
use super::{Launch, Storage};
use crate::error::{Error, Result};
use crate::ir::Op;
use crate::tensor::Shape;

/// A tensor on the device. An optional operand that is not there has no address and the shape `[0]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    pub at: DevicePtr,
    pub shape: Shape,
}

/// The kernel of an operation without its storage type, and for every operand and result a letter: `t` storage
/// type, `f` f32, `i` i32. An operation may have fewer operands or results than there are letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    pub kernel: &'static str,
    pub inputs: &'static str,
    pub outputs: &'static str,
}

/// `None` for what needs no kernel of its own.
pub fn kinds(op: &Op) -> Option<Kinds> {
    let (kernel, inputs, outputs) = match op {
        Op::Activate(_) => ("activate", "t", "t"),
        Op::ActivateBwd(_) => ("activate_bwd", "tt", "t"),
        Op::Geglu => ("geglu", "t", "t"),
        Op::GegluBwd => ("geglu_bwd", "tt", "t"),
        Op::Add => ("add", "tt", "t"),
        Op::AddChannels => ("add_channels", "tt", "t"),
        Op::Affine { .. } => ("affine", "t", "t"),
        Op::TimestepEmbedding { .. } => ("timestep", "f", "t"),
        Op::CfgX0 => ("cfg_x0", "ft", "ff"),
        Op::CfgX0Bwd { .. } => ("cfg_x0_bwd", "f", "ft"),
        Op::SldX0 => ("sld_x0", "ftf", "fff"),
        Op::DdimUnguide { .. } => ("ddim_unguide", "fffft", "ff"),
        Op::GuideEps { .. } => ("guide_eps", "fffft", "ff"),
        Op::FrozenPullback => ("frozen_pullback", "t", "t"),
        Op::Concat => ("place", "tt", "t"),
        Op::SliceChannels { .. }
        | Op::PadChannels { .. }
        | Op::SliceTokens { .. }
        | Op::PadTokens { .. }
        | Op::SliceBatch { .. }
        | Op::RepeatBatch { .. } => ("place", "t", "t"),
        Op::GatherToken => ("gather_token", "ti", "t"),
        Op::SumBatch { .. } => ("sum_batch", "t", "t"),
        Op::Normalise => ("normalise", "t", "t"),
        Op::ClipCosine { .. } => ("clip_cosine", "tf", "ffftf"),
        Op::EmbedText => ("embed_text", "itt", "t"),
        Op::EmbedPatches => ("embed_patches", "ttt", "t"),
        Op::Resample { .. } => ("resample", "t", "t"),
        Op::ResampleBwd { .. } => ("resample_bwd", "t", "t"),
        Op::Upsample { .. } => ("upsample", "t", "t"),
        Op::UpsampleBwd { .. } => ("upsample_bwd", "t", "t"),
        Op::LayerNorm { .. } => ("layer_norm", "tff", "t"),
        Op::LayerNormBwd { .. } => ("layer_norm_bwd", "tft", "t"),
        Op::GroupNorm { .. } => ("group_norm", "tff", "t"),
        Op::GroupNormBwd { .. } => ("group_norm_bwd", "tfft", "t"),
        Op::Linear => ("gemm", "ttf", "t"),
        Op::LinearBwd => ("gemm", "tt", "t"),
        Op::Conv2d { .. } => ("conv2d", "ttf", "t"),
        Op::Conv2dBwd { .. } => ("conv2d_bwd", "tt", "t"),
        Op::Attention { .. } => ("attention", "ttt", "tf"),
        Op::AttentionBwd { .. } => ("attention_bwd", "tftttt", "ttt"),
        _ => return None,
    };
    Some(Kinds { kernel, inputs, outputs })
}

/// One launch of the general form. Kernels that loop over the grid get at most `most_blocks` blocks. Inputs and
/// outputs are those of the operation, in its order; `state` leads to a [`p::StepState`].
pub fn general(
    op: &Op,
    storage: Storage,
    most_blocks: u32,
    state: DevicePtr,
    inputs: &[Operand],
    outputs: &[Operand],
) -> Result<Launch> {
    let kinds = kinds(op).ok_or_else(|| none_for(op))?;
    let all = inputs.iter().chain(outputs);
    if let Some(large) =
        all.map(|operand| &operand.shape).find(|shape| shape.rows() > MOST || shape.last() > MOST)
    {
        let problem = format!("{large} has an extent that no kernel counts to");
        return Err(Error::Shape { node: String::new(), op: op.name(), problem });
    }
    let Some(first) = outputs.first() else { return Err(none_for(op)) };
    let make = Make { kernel: format!("{}_{}", kinds.kernel, storage.name()), most_blocks };
    let shape = |i: usize| &inputs[i].shape;
    let input = |i: usize| inputs.get(i).map_or(DevicePtr::NONE, |operand| operand.at);
    let output = |i: usize| outputs[i].at;
    let count = |i: usize| outputs[i].shape.count();
    let to = &first.shape;
    let pointwise = |count: usize, c: usize| p::PointwiseParams {
        x: input(0),
        y: input(1),
        out: output(0),
        count: count as i64,
        c: int(c),
        ..Default::default()
    };
    let plain = |params: p::PointwiseParams, count: usize| make.launch(&params, make.strided(count));
    match op {
        Op::Activate(act) | Op::ActivateBwd(act) => {
            let params = pointwise(count(0), 0);
            plain(p::PointwiseParams { activation: p::activation(Some(*act)), ..params }, count(0))
        }
        Op::Geglu => plain(pointwise(count(0), to.last()), count(0)),
        Op::GegluBwd => plain(pointwise(count(0) / 2, to.last() / 2), count(0) / 2),
        Op::Add => plain(pointwise(count(0), 0), count(0)),
        Op::Affine { mul, add } => {
            plain(p::PointwiseParams { mul: *mul, add: *add, ..pointwise(count(0), 0) }, count(0))
        }
        Op::AddChannels => {
            let shared = shape(1)[0] == 1;
            let image = if shared { 0 } else { count(0) / to[0] };
            plain(p::PointwiseParams { image: image as i64, ..pointwise(count(0), to.last()) }, count(0))
        }
        Op::TimestepEmbedding { channels, flip, shift } => {
            let (channels, flip, shift) = (int(*channels), i32::from(*flip), *shift);
            // The state begins with the step's own.
            let times = if inputs.is_empty() { state } else { input(0) };
            let params = p::TimestepParams { times, out: output(0), channels, flip, shift, pad: 0 };
            make.launch(&params, [int(to[0]) as u32, 1, 1])
        }
        Op::CfgX0 => {
            let copies = int(shape(1).count() / count(0));
            let (z, rows, eps, x0) = (input(0), input(1), output(0), output(1));
            let params = p::CfgX0Params { state, z, rows, eps, x0, count: count(0) as i64, copies, pad: 0 };
            make.launch(&params, make.strided(count(0)))
        }
        Op::CfgX0Bwd { rows } => {
            let (dx0, dz, drows, copies) = (input(0), output(0), output(1), int(*rows));
            let params = p::CfgX0BwdParams { state, dx0, dz, drows, count: count(0) as i64, copies, pad: 0 };
            make.launch(&params, make.strided(count(0)))
        }
        Op::SldX0 => {
            let (z, rows, nu) = (input(0), input(1), input(2));
            let (eps, x0, next_nu) = (output(0), output(1), output(2));
            let params = p::SldX0Params { state, z, rows, nu, eps, x0, next_nu, count: count(0) as i64 };
            make.launch(&params, make.strided(count(0)))
        }
        Op::DdimUnguide { scale_log2 } => {
            let params = p::DdimUnguideParams {
                state,
                eps: input(0),
                x0: input(1),
                noise: input(2),
                gate: input(3),
                g: input(4),
                z: output(0),
                guided: output(1),
                count: count(0) as i64,
                image: (count(0) / to[0]) as i64,
                scale_log2: *scale_log2,
                ..Default::default()
            };
            make.launch(&params, make.strided(count(0)))
        }
        Op::GuideEps { scale_log2 } => {
            let params = p::GuideEpsParams {
                state,
                z: input(0),
                eps: input(1),
                x0: input(2),
                gate: input(3),
                g: input(4),
                guided: output(0),
                guided_x0: output(1),
                count: count(0) as i64,
                image: (count(0) / to[0]) as i64,
                scale_log2: *scale_log2,
                pad: 0,
            };
            make.launch(&params, make.strided(count(0)))
        }
        Op::FrozenPullback => {
            let params =
                p::FrozenPullbackParams { state, x: input(0), out: output(0), count: count(0) as i64 };
            make.launch(&params, make.strided(count(0)))
        }
        Op::ClipCosine { reduce, top_k, scale_log2 } => {
            let k = shape(1)[0];
            let params = p::ClipCosineParams {
                state,
                e: input(0),
                concepts: input(1),
                scores: output(0),
                p_h: output(1),
                gate: output(2),
                de: output(3),
                status: output(4),
                k: int(k),
                d: int(shape(1)[1]),
                top_k: int(top_k.unwrap_or(k)),
                reduce: p::reduce(*reduce),
                scale_log2: *scale_log2,
                pad: 0,
            };
            make.launch(&params, [shape(0)[0] as u32, 1, 1])
        }
        Op::EmbedText => {
            let params = p::EmbedTextParams {
                ids: input(0),
                token: input(1),
                position: input(2),
                out: output(0),
                count: count(0) as i64,
                t: int(to[1]),
                d: int(to[2]),
                vocabulary: int(shape(1)[0]),
                pad: 0,
            };
            make.launch(&params, make.strided(count(0)))
        }
        Op::EmbedPatches => {
            let params = p::EmbedPatchesParams {
                x: input(0),
                class_token: input(1),
                position: input(2),
                out: output(0),
                count: count(0) as i64,
                t: int(to[1] - 1),
                d: int(to[2]),
            };
            make.launch(&params, make.strided(count(0)))
        }
        Op::Resample { height, width, mean, std } => {
            resample(&make, shape(0), (*height, *width), (*mean, *std), (input(0), output(0)), count(0))
        }
        Op::ResampleBwd { std, .. } => {
            let small = (shape(0)[1], shape(0)[2]);
            resample(&make, to, small, ([0.0; 3], *std), (input(0), output(0)), count(0))
        }
        Op::Upsample { height, width } => {
            upsample(&make, shape(0), (*height, *width), (input(0), output(0)), count(0))
        }
        Op::UpsampleBwd { .. } => {
            upsample(&make, to, (shape(0)[1], shape(0)[2]), (input(0), output(0)), count(0))
        }
        Op::LayerNorm { eps } => {
            let (c, rows) = (to.last(), count(0) / to.last());
            let (x, gamma, beta, out) = (input(0), input(1), input(2), output(0));
            let params = p::LayerNormParams { x, gamma, beta, out, rows: rows as i64, c: int(c), eps: *eps };
            make.launch(&params, [make.blocks(rows), 1, 1])
        }
        Op::LayerNormBwd { eps } => {
            let (c, rows) = (to.last(), count(0) / to.last());
            let (x, gamma, dy, dx) = (input(0), input(1), input(2), output(0));
            let params = p::LayerNormBwdParams {
                x,
                gamma,
                dy,
                dx,
                rows: rows as i64,
                c: int(c),
                eps: *eps,
                ..Default::default()
            };
            make.launch(&params, [make.blocks(rows), 1, 1])
        }
        Op::GroupNorm { groups, eps, act } => {
            let params = p::GroupNormParams {
                x: input(0),
                gamma: input(1),
                beta: input(2),
                out: output(0),
                n: int(to[0]),
                pixels: int(count(0) / to[0] / to.last()),
                c: int(to.last()),
                groups: int(*groups),
                eps: *eps,
                activation: p::activation(*act),
            };
            make.launch(&params, [*groups as u32, to[0] as u32, 1])
        }
        Op::GroupNormBwd { groups, eps, act } => {
            let params = p::GroupNormBwdParams {
                x: input(0),
                gamma: input(1),
                beta: input(2),
                dy: input(3),
                dx: output(0),
                n: int(to[0]),
                pixels: int(count(0) / to[0] / to.last()),
                c: int(to.last()),
                groups: int(*groups),
                eps: *eps,
                activation: p::activation(*act),
                ..Default::default()
            };
            make.launch(&params, [*groups as u32, to[0] as u32, 1])
        }
        Op::Linear | Op::LinearBwd => {
            let (m, n, k) = (count(0) / to.last(), to.last(), shape(0).last());
            // The filter is [out, in]: by columns for x W^T, by rows for dy W.
            let forward = matches!(op, Op::Linear);
            let (b_column, b_k) = if forward { (k, 1) } else { (1, n) };
            let params = p::GemmParams {
                a: input(0),
                b: input(1),
                d: output(0),
                epilogue: p::Epilogue { bias: input(2), ..Default::default() },
                a_row: k as i64,
                d_row: n as i64,
                b_column: b_column as i64,
                b_k: b_k as i64,
                m: int(m),
                n: int(n),
                k: int(k),
                ..Default::default()
            };
            make.launch(&params, [m.div_ceil(32) as u32, n.div_ceil(32) as u32, 1])
        }
        Op::Conv2d { stride, padding } => {
            let conv = Conv2d::new(shape(0), shape(1), *stride, *padding);
            let epilogue = p::Epilogue { bias: input(2), ..Default::default() };
            let at = Operands { x: input(0), filter: input(1), y: output(0), epilogue, ..Default::default() };
            make.launch(&conv.general(&at), make.strided(count(0)))
        }
        Op::Conv2dBwd { stride, padding, .. } => {
            let conv = Conv2d::new(to, shape(1), *stride, *padding);
            let at = BwdOperands { dy: input(0), filter: input(1), dx: output(0), ..Default::default() };
            make.launch(&conv.bwd_general(0, &at), make.strided(count(0)))
        }
        Op::Attention { heads, causal } => Forward::of(op, *heads, *causal, inputs, outputs).general(storage),
        Op::AttentionBwd { heads, causal, .. } => {
            Backward::of(op, *heads, *causal, inputs, outputs).general(storage)
        }
        Op::GatherToken => {
            let (x, index, out) = (input(0), input(1), output(0));
            let (t, d) = (int(shape(0)[1]), int(shape(0)[2]));
            let params = p::GatherParams { x, index, out, count: count(0) as i64, t, d };
            make.launch(&params, make.strided(count(0)))
        }
        Op::SumBatch { times } => {
            let (x, out, count) = (input(0), output(0), count(0));
            let params = p::SumCopiesParams { x, out, count: count as i64, times: int(*times), pad: 0 };
            make.launch(&params, make.strided(count))
        }
        Op::Normalise => {
            let (x, out, rows) = (input(0), output(0), to[0]);
            let params = p::NormaliseParams { x, out, rows: rows as i64, d: int(to.last()), pad: 0 };
            make.launch(&params, [make.blocks(rows), 1, 1])
        }
        _ => {
            let place =
                inputs.first().and_then(|x| Place::of(op, &x.shape, to)).ok_or_else(|| none_for(op))?;
            let element = Element::Stored(storage);
            place.launch((element, element), most_blocks, state, [input(0), input(1), output(0)])
        }
    }
}

/// Rows and channels of the largest tensor: kernels count them in 32 bits.
const MOST: usize = i32::MAX as usize;

fn none_for(op: &Op) -> Error {
    Error::Bug(format!("`{}` has no kernel of its own", op.name()))
}

/// Makes launches of one kernel.
struct Make {
    kernel: String,
    most_blocks: u32,
}

impl Make {
    fn launch<P: Params>(&self, params: &P, grid: [u32; 3]) -> Result<Launch> {
        Launch::new(&self.kernel, grid, params)
    }

    fn blocks(&self, wanted: usize) -> u32 {
        u32::try_from(wanted).unwrap_or(u32::MAX).clamp(1, self.most_blocks)
    }

    /// For a kernel whose threads take one element after the other.
    fn strided(&self, count: usize) -> [u32; 3] {
        strided(count, self.most_blocks)
    }
}

fn int(n: usize) -> i32 {
    i32::try_from(n).expect("extents were compared with MOST")
}

fn resample(
    make: &Make,
    image: &Shape,
    (height, width): (usize, usize),
    (mean, std): ([f32; 3], [f32; 3]),
    (x, out): (DevicePtr, DevicePtr),
    count: usize,
) -> Result<Launch> {
    let (n, h, w) = (int(image[0]), int(image[1]), int(image[2]));
    let (height, width) = (int(height), int(width));
    let params = p::ResampleParams { x, out, n, h, w, height, width, pad: 0, mean, std };
    make.launch(&params, make.strided(count))
}

fn upsample(
    make: &Make,
    image: &Shape,
    (height, width): (usize, usize),
    (x, out): (DevicePtr, DevicePtr),
    count: usize,
) -> Result<Launch> {
    let (n, h, w, c) = (int(image[0]), int(image[1]), int(image[2]), int(image[3]));
    let params = p::UpsampleParams { x, out, n, h, w, c, height: int(height), width: int(width) };
    make.launch(&params, make.strided(count))
}
