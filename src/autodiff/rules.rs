//! The table of derivatives: one arm an operation.

use crate::error::{Error, Result};
use crate::ir::{Builder, Node, Op, ValueId};

/// Cotangents of the operands of `node` that are `wanted`, from those of its results.
pub fn pull_back(
    b: &mut Builder,
    node: &Node,
    incoming: &[Option<ValueId>],
    wanted: &[bool],
) -> Result<Vec<(usize, ValueId)>> {
    let name = format!("{}.grad", node.name);
    let inputs = &node.inputs;
    let none = |input: usize| Error::NotDifferentiable { node: node.name.clone(), op: node.op.name(), input };
    // All operations but the ones with several results have their cotangent here.
    let dy = incoming[0].ok_or_else(|| none(0));

    // Most operations are differentiable with respect to their first operand only; the others are weights.
    let first_only = |dx: ValueId| match wanted.iter().skip(1).position(|&wanted| wanted) {
        Some(other) => Err(none(other + 1)),
        None => Ok(vec![(0, dx)]),
    };
    match &node.op {
        Op::Reshape => {
            let shape = b.shape(inputs[0]).clone();
            Ok(vec![(0, b.reshape(dy?, shape)?)])
        }
        Op::Concat => {
            let (dy, split) = (dy?, b.shape(inputs[0]).last());
            let rest = b.shape(inputs[1]).last();
            let mut result = Vec::new();
            for (input, start, len) in [(0, 0, split), (1, split, rest)] {
                if wanted[input] {
                    let slice = Op::SliceChannels { start, len };
                    result.push((input, b.push(&format!("{name}.{input}"), slice, &[dy])?));
                }
            }
            Ok(result)
        }
        Op::SliceChannels { start, .. } => {
            let op = Op::PadChannels { start: *start, channels: b.shape(inputs[0]).last() };
            Ok(vec![(0, b.push(&name, op, &[dy?])?)])
        }
        Op::PadChannels { start, .. } => {
            let op = Op::SliceChannels { start: *start, len: b.shape(inputs[0]).last() };
            Ok(vec![(0, b.push(&name, op, &[dy?])?)])
        }
        Op::SliceTokens { start, .. } => {
            let op = Op::PadTokens { start: *start, tokens: b.shape(inputs[0])[1] };
            Ok(vec![(0, b.push(&name, op, &[dy?])?)])
        }
        Op::PadTokens { start, .. } => {
            let op = Op::SliceTokens { start: *start, len: b.shape(inputs[0])[1] };
            Ok(vec![(0, b.push(&name, op, &[dy?])?)])
        }
        Op::RepeatBatch { times } => Ok(vec![(0, b.push(&name, Op::SumBatch { times: *times }, &[dy?])?)]),
        Op::SumBatch { times } => Ok(vec![(0, b.push(&name, Op::RepeatBatch { times: *times }, &[dy?])?)]),
        Op::Add => {
            let dy = dy?;
            Ok((0..2).filter(|&input| wanted[input]).map(|input| (input, dy)).collect())
        }
        Op::AddChannels => first_only(dy?),
        Op::Affine { mul, .. } => Ok(vec![(0, b.affine(&name, dy?, *mul, 0.0)?)]),
        Op::Activate(act) => Ok(vec![(0, b.push(&name, Op::ActivateBwd(*act), &[inputs[0], dy?])?)]),
        Op::Geglu => Ok(vec![(0, b.push(&name, Op::GegluBwd, &[inputs[0], dy?])?)]),
        Op::Linear => first_only(b.push(&name, Op::LinearBwd, &[dy?, inputs[1]])?),
        Op::Conv2d { stride, padding } => {
            let (height, width) = (b.shape(inputs[0])[1], b.shape(inputs[0])[2]);
            let op = Op::Conv2dBwd { stride: *stride, padding: *padding, height, width };
            first_only(b.push(&name, op, &[dy?, inputs[1]])?)
        }
        Op::Attention { heads, causal } => {
            let (o, lse) = (node.outputs[0], node.outputs[1]);
            if incoming[1].is_some() {
                return Err(none(0));
            }
            let op = Op::AttentionBwd { heads: *heads, causal: *causal };
            let operands: Vec<_> = [o, lse, dy?].into_iter().chain(inputs.iter().copied()).collect();
            let all = b.push_many(&name, op, &operands)?;
            Ok(all.into_iter().enumerate().filter(|&(input, _)| wanted[input]).collect())
        }
        Op::GroupNorm { groups, eps, act } => {
            let op = Op::GroupNormBwd { groups: *groups, eps: *eps, act: *act };
            first_only(b.push(&name, op, &[inputs[0], inputs[1], inputs[2], dy?])?)
        }
        Op::LayerNorm { eps } => {
            first_only(b.push(&name, Op::LayerNormBwd { eps: *eps }, &[inputs[0], inputs[1], dy?])?)
        }
        Op::Upsample { .. } => {
            let (height, width) = (b.shape(inputs[0])[1], b.shape(inputs[0])[2]);
            Ok(vec![(0, b.push(&name, Op::UpsampleBwd { height, width }, &[dy?])?)])
        }
        Op::Resample { std, .. } => {
            let (height, width) = (b.shape(inputs[0])[1], b.shape(inputs[0])[2]);
            Ok(vec![(0, b.push(&name, Op::ResampleBwd { height, width, std: *std }, &[dy?])?)])
        }
        Op::EmbedPatches => {
            let op = Op::SliceTokens { start: 1, len: b.shape(inputs[0])[1] };
            first_only(b.push(&name, op, &[dy?])?)
        }
        Op::CfgX0 => {
            // The method differentiates x0, never eps.
            let [None, Some(dx0)] = incoming[..] else { return Err(none(0)) };
            let rows = b.shape(inputs[1])[0] / b.shape(inputs[0])[0];
            let both = b.push_many(&name, Op::CfgX0Bwd { rows }, &[dx0])?;
            Ok(both.into_iter().enumerate().filter(|&(input, _)| wanted[input]).collect())
        }
        Op::Param { .. }
        | Op::Load { .. }
        | Op::Store { .. }
        | Op::GatherToken
        | Op::SliceBatch { .. }
        | Op::ActivateBwd(_)
        | Op::GegluBwd
        | Op::LinearBwd
        | Op::Conv2dBwd { .. }
        | Op::AttentionBwd { .. }
        | Op::GroupNormBwd { .. }
        | Op::LayerNormBwd { .. }
        | Op::UpsampleBwd { .. }
        | Op::ResampleBwd { .. }
        | Op::EmbedText
        | Op::TimestepEmbedding { .. }
        | Op::Normalise
        | Op::CfgX0Bwd { .. }
        | Op::SldX0
        | Op::ClipCosine { .. }
        | Op::DdimUnguide { .. }
        | Op::GuideEps { .. }
        | Op::FrozenPullback => Err(none(wanted.iter().position(|&wanted| wanted).unwrap_or(0))),
    }
}
