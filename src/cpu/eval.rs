//! One operation on host data: from [`Op`] to the function that computes it.

use super::{attention, conv, cosine, embed, layout, linear, norm, pointwise, resample, sampler_ops};
use crate::ir::{Attending, Op};
use crate::plan::StepState;
use crate::tensor::{Real, Shape};

/// What an operation reads.
#[derive(Clone, Copy)]
pub enum Operand<'a, T> {
    Real { shape: &'a Shape, data: &'a [T] },
    Index { shape: &'a Shape, data: &'a [i32] },
}

/// What an operation writes, whole; it never reads what was there.
pub struct Target<'a, T> {
    pub shape: &'a Shape,
    pub data: &'a mut [T],
}

impl<'a, T> Operand<'a, T> {
    /// Shape and elements of an operand of real numbers.
    fn real(&self) -> (&'a Shape, &'a [T]) {
        match *self {
            Self::Real { shape, data } => (shape, data),
            Self::Index { shape, .. } => unreachable!("the verifier saw real numbers, not indices {shape}"),
        }
    }

    /// The elements of an operand of indices.
    fn index(&self) -> (&'a Shape, &'a [i32]) {
        match *self {
            Self::Index { shape, data } => (shape, data),
            Self::Real { shape, .. } => unreachable!("the verifier saw indices, not real numbers {shape}"),
        }
    }
}

/// Computes `op`. Operands and outputs have the shapes that [`crate::ir`] inferred for it.
///
/// Bits of image `i` depend on that image and the weights alone: not on its neighbours in the batch, nor on
/// the size of rayon's current pool.
pub fn eval<T: Real>(op: &Op, inputs: &[Operand<T>], outputs: &mut [Target<T>], state: &StepState) {
    let x = |i: usize| inputs[i].real().1;
    let shape = |i: usize| inputs[i].real().0;
    let last = |i: usize| shape(i).last();
    debug_assert!(outputs.iter().all(|out| out.shape.count() == out.data.len()));
    let (out, rest) = outputs.split_first_mut().expect("an operation that is evaluated has an output");
    let to = out.shape;
    let out = &mut *out.data;
    match op {
        Op::Param { .. } | Op::Load { .. } | Op::Store { .. } | Op::Reshape => {
            unreachable!("`{}` is a place, not a computation: whoever runs a program resolves it", op.name())
        }
        Op::Concat => layout::concat(x(0), last(0), x(1), last(1), out),
        Op::SliceChannels { start, len } => layout::slice_rows(x(0), last(0), *start, *len, out),
        Op::PadChannels { start, channels } => layout::pad_rows(x(0), last(0), *start, *channels, out),
        Op::SliceTokens { start, len } => {
            let (t, d) = (shape(0)[1], last(0));
            layout::slice_rows(x(0), t * d, start * d, len * d, out);
        }
        Op::PadTokens { start, tokens } => {
            let (t, d) = (shape(0)[1], last(0));
            layout::pad_rows(x(0), t * d, start * d, tokens * d, out);
        }
        Op::GatherToken => layout::gather_token(x(0), shape(0), inputs[1].index().1, out),
        Op::SliceBatch { start, .. } => {
            let row = x(0).len() / shape(0)[0].max(1);
            out.copy_from_slice(&x(0)[start * row..][..out.len()]);
        }
        Op::RepeatBatch { .. } => layout::repeat(x(0), out),
        Op::SumBatch { .. } => layout::sum_copies(x(0), out),

        Op::Add => pointwise::add(x(0), x(1), out),
        Op::AddChannels => {
            let image = shape(0)[1..].iter().product();
            pointwise::add_channels(x(0), x(1), last(0), image, out);
        }
        Op::Affine { mul, add } => pointwise::affine(x(0), T::from_f32(*mul), T::from_f32(*add), out),
        Op::Activate(activation) => pointwise::activate(*activation, x(0), out),
        Op::ActivateBwd(activation) => pointwise::activate_bwd(*activation, x(0), x(1), out),
        Op::Geglu => pointwise::geglu(x(0), to.last(), out),
        Op::GegluBwd => pointwise::geglu_bwd(x(0), x(1), last(1), out),

        Op::Linear => {
            let bias = inputs.get(2).map(|b| b.real().1);
            linear::linear(x(0), shape(0), x(1), bias, out);
        }
        Op::LinearBwd => linear::linear_bwd(x(0), shape(0), x(1), out),
        Op::Conv2d { stride, padding } => {
            let bias = inputs.get(2).map(|b| b.real().1);
            let size = (to[1], to[2]);
            conv::conv2d(inputs[0].real(), inputs[1].real(), bias, (*stride, *padding), size, out);
        }
        Op::Conv2dBwd { stride, padding, height, width } => {
            let size = (*height, *width);
            conv::conv2d_bwd(inputs[0].real(), inputs[1].real(), (*stride, *padding), size, out);
        }
        Op::Attention { heads, causal } | Op::AttentionBwd { heads, causal } => {
            let shapes: Vec<&Shape> = (0..inputs.len()).map(shape).collect();
            let attending = Attending::inferred(op, &shapes);
            let sizes = attention_sizes(&attending, *heads, *causal);
            let tokens = attending.at.map(|(operand, channel)| attention::Tokens {
                data: &x(attending.first + operand)[channel..],
                row: attending.row(operand),
            });
            if let Op::Attention { .. } = op {
                attention::attention(sizes, tokens, out, rest[0].data);
            } else {
                let [q, k, v] = tokens;
                let saved = attention::Saved { q, k, v, o: x(0), lse: x(1), d_o: x(2) };
                let mut gradients = vec![out];
                gradients.extend(rest.iter_mut().map(|gradient| &mut *gradient.data));
                attention::attention_bwd(sizes, &saved, &attending, &mut gradients);
            }
        }

        Op::GroupNorm { groups, eps, act } => {
            let groups = group_sizes(shape(0), *groups, *eps, *act);
            norm::group_norm(groups, x(0), x(1), x(2), out);
        }
        Op::GroupNormBwd { groups, eps, act } => {
            let groups = group_sizes(shape(0), *groups, *eps, *act);
            norm::group_norm_bwd(groups, x(0), (x(1), x(2)), x(3), out);
        }
        Op::LayerNorm { eps } => norm::layer_norm(x(0), x(1), x(2), *eps, out),
        Op::LayerNormBwd { eps } => norm::layer_norm_bwd(x(0), x(1), x(2), *eps, out),

        Op::Upsample { height, width } => resample::upsample(x(0), shape(0), (*height, *width), out),
        Op::UpsampleBwd { height, width } => resample::upsample_bwd(x(0), shape(0), (*height, *width), out),
        Op::Resample { height, width, mean, std } => {
            resample::resample(x(0), shape(0), (*height, *width), (*mean, *std), out);
        }
        Op::ResampleBwd { height, width, std } => {
            resample::resample_bwd(x(0), shape(0), (*height, *width), *std, out);
        }
        Op::EmbedText => {
            let (ids_shape, ids) = inputs[0].index();
            embed::embed_text(ids, ids_shape.last(), x(1), x(2), to.last(), out);
        }
        Op::EmbedPatches => embed::embed_patches(x(0), shape(0)[1], x(1), x(2), out),
        Op::TimestepEmbedding { flip, shift, .. } => {
            let given = inputs.first().map(|t| t.real().1);
            for (i, out) in out.chunks_mut(to.last()).enumerate() {
                let t = given.map_or(f64::from(state.timestep), |given| given[i].to_f64());
                embed::timestep_embedding(t, *flip, *shift, out);
            }
        }
        Op::Normalise => embed::normalise(x(0), last(0), out),

        Op::CfgX0 => sampler_ops::cfg_x0(state, x(0), x(1), out, rest[0].data),
        Op::CfgX0Bwd { .. } => sampler_ops::cfg_x0_bwd(state, x(0), out, rest[0].data),
        Op::SldX0 => {
            let [x0, nu] = rest else { unreachable!("shapes gave eps, x0 and nu") };
            sampler_ops::sld_x0(state, x(0), x(1), x(2), out, x0.data, nu.data);
        }
        Op::ClipCosine { reduce, top_k, scale_log2 } => {
            let [p_h, gate, de, status] = rest else { unreachable!("shapes gave five outputs") };
            let attributes = cosine::Attributes {
                reduce: *reduce,
                top_k: *top_k,
                scale_log2: *scale_log2,
                threshold: state.threshold,
            };
            let (d, k) = (last(0), shape(1)[0]);
            for (n, e) in x(0).chunks(d).enumerate() {
                let scores = cosine::Scores {
                    scores: &mut out[n * k..][..k],
                    p_h: &mut p_h.data[n],
                    gate: &mut gate.data[n],
                    de: &mut de.data[n * d..][..d],
                    status: &mut status.data[n],
                };
                cosine::clip_cosine(attributes, e, x(1), scores);
            }
        }
        Op::DdimUnguide { scale_log2 } => {
            let guide = (inputs.len() > 3).then(|| (x(3), x(4)));
            sampler_ops::ddim_unguide(state, *scale_log2, [x(0), x(1), x(2)], guide, out, rest[0].data);
        }
        Op::GuideEps { scale_log2 } => {
            let guide = (x(3), x(4));
            sampler_ops::guide_eps(state, *scale_log2, [x(0), x(1), x(2)], guide, out, rest[0].data);
        }
        Op::FrozenPullback => sampler_ops::frozen_pullback(state, x(0), out),
    }
}

pub(super) fn attention_sizes(attending: &Attending, heads: usize, causal: bool) -> attention::Sizes {
    let Attending { t, u, c, .. } = *attending;
    attention::Sizes { t, u, c, heads, causal }
}

pub(super) fn group_sizes(
    x: &Shape,
    groups: usize,
    eps: f32,
    act: Option<crate::ir::Activation>,
) -> norm::Groups {
    norm::Groups { pixels: x[1..x.len() - 1].iter().product(), c: x.last(), groups, eps, act }
}
