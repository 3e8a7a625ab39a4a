//! Shape inference: what every operation returns for given operands, or why it cannot.

use super::attending::Attending;
use super::op::{Op, Padding};
use crate::tensor::Shape;

type Shapes = Result<Vec<Shape>, String>;

/// Shapes of the outputs. The error says what was expected and what was found.
pub fn infer(op: &Op, inputs: &[&Shape]) -> Shapes {
    let (low, high) = arity(op);
    if !(low..=high).contains(&inputs.len()) {
        return Err(format!("expected {low} to {high} operands, found {}", inputs.len()));
    }
    let one = |shape: Shape| Ok(vec![shape]);
    let x = inputs.first().copied();
    match op {
        Op::Param { .. } | Op::Load { .. } | Op::Store { .. } | Op::Reshape => {
            Err("made by a method of its own".into())
        }
        Op::Concat => {
            let (a, b) = (inputs[0], inputs[1]);
            expect(b, &a.with_last(b.last()))?;
            one(a.with_last(a.last() + b.last()))
        }
        Op::SliceChannels { start, len } => {
            within(*start, *len, inputs[0].last(), "channels")?;
            one(inputs[0].with_last(*len))
        }
        Op::PadChannels { start, channels } => {
            within(*start, inputs[0].last(), *channels, "channels")?;
            one(inputs[0].with_last(*channels))
        }
        Op::SliceTokens { start, len } => {
            let [n, t, d] = extents(inputs[0])?;
            within(*start, *len, t, "tokens")?;
            one([n, *len, d].into())
        }
        Op::PadTokens { start, tokens } => {
            let [n, len, d] = extents(inputs[0])?;
            within(*start, len, *tokens, "tokens")?;
            one([n, *tokens, d].into())
        }
        Op::GatherToken => {
            let [n, _, d] = extents(inputs[0])?;
            expect(inputs[1], &[n].into())?;
            one([n, d].into())
        }
        Op::SliceBatch { start, len } => {
            within(*start, *len, first(inputs[0])?, "rows")?;
            one(inputs[0].with_first(*len))
        }
        Op::RepeatBatch { times } => one(inputs[0].with_first(first(inputs[0])? * times)),
        Op::SumBatch { times } => {
            divides(*times, first(inputs[0])?, "copies", "rows")?;
            one(inputs[0].with_first(inputs[0][0] / times))
        }
        Op::Add => {
            expect(inputs[1], inputs[0])?;
            one(inputs[0].clone())
        }
        Op::AddChannels => {
            let [n, c] = extents(inputs[1])?;
            if c != inputs[0].last() || (n != 1 && n != first(inputs[0])?) {
                return Err(format!("cannot add {} to every pixel of {}", inputs[1], inputs[0]));
            }
            one(inputs[0].clone())
        }
        Op::Affine { .. } | Op::Activate(_) | Op::Normalise | Op::FrozenPullback => one(inputs[0].clone()),
        Op::ActivateBwd(_) => {
            expect(inputs[1], inputs[0])?;
            one(inputs[0].clone())
        }
        Op::Geglu => {
            divides(2, inputs[0].last(), "halves", "channels")?;
            one(inputs[0].with_last(inputs[0].last() / 2))
        }
        Op::GegluBwd => {
            divides(2, inputs[0].last(), "halves", "channels")?;
            expect(inputs[1], &inputs[0].with_last(inputs[0].last() / 2))?;
            one(inputs[0].clone())
        }
        Op::Linear => {
            let [m, k] = extents(inputs[1])?;
            expect(inputs[0], &inputs[0].with_last(k))?;
            bias(inputs.get(2), m)?;
            one(inputs[0].with_last(m))
        }
        Op::LinearBwd => {
            let [m, k] = extents(inputs[1])?;
            expect(inputs[0], &inputs[0].with_last(m))?;
            one(inputs[0].with_last(k))
        }
        Op::Conv2d { stride, padding } => {
            let [n, h, w, c] = extents(inputs[0])?;
            let [o, r, s, wc] = extents(inputs[1])?;
            if wc != c {
                return Err(format!("a filter {} does not fit an image {}", inputs[1], inputs[0]));
            }
            bias(inputs.get(2), o)?;
            let (height, width) = conv_out((h, w), (r, s), *stride, *padding)?;
            one([n, height, width, o].into())
        }
        Op::Conv2dBwd { stride, padding, height, width } => {
            let [n, h, w, o] = extents(inputs[0])?;
            let [wo, r, s, c] = extents(inputs[1])?;
            if wo != o || (h, w) != conv_out((*height, *width), (r, s), *stride, *padding)? {
                return Err(format!("a filter {} does not fit a gradient {}", inputs[1], inputs[0]));
            }
            one([n, *height, *width, c].into())
        }
        Op::Attention { heads, .. } => {
            let Attending { n, t, c, .. } = Attending::of(op, inputs)?;
            Ok(vec![[n, t, c].into(), [n, *heads, t].into()])
        }
        Op::AttentionBwd { heads, .. } => {
            let Attending { n, t, c, first, .. } = Attending::of(op, inputs)?;
            expect(inputs[0], &[n, t, c].into())?;
            expect(inputs[1], &[n, *heads, t].into())?;
            expect(inputs[2], inputs[0])?;
            Ok(inputs[first..].iter().map(|&s| s.clone()).collect())
        }
        Op::GroupNorm { groups, .. } | Op::GroupNormBwd { groups, .. } => {
            let c = inputs[0].last();
            divides(*groups, c, "groups", "channels")?;
            expect(inputs[1], &[c].into())?;
            expect(inputs[2], &[c].into())?;
            inputs.get(3).map_or(Ok(()), |dy| expect(dy, inputs[0]))?;
            one(inputs[0].clone())
        }
        Op::LayerNorm { .. } => {
            expect(inputs[1], &[inputs[0].last()].into())?;
            expect(inputs[2], &[inputs[0].last()].into())?;
            one(inputs[0].clone())
        }
        Op::LayerNormBwd { .. } => {
            expect(inputs[1], &[inputs[0].last()].into())?;
            expect(inputs[2], inputs[0])?;
            one(inputs[0].clone())
        }
        Op::Upsample { height, width } => {
            let [n, h, w, c] = extents(inputs[0])?;
            if *height < h || *width < w {
                return Err(format!("cannot enlarge {} to {height} x {width}", inputs[0]));
            }
            one([n, *height, *width, c].into())
        }
        Op::UpsampleBwd { height, width } | Op::ResampleBwd { height, width, .. } => {
            let [n, _, _, c] = extents(inputs[0])?;
            one([n, *height, *width, c].into())
        }
        Op::Resample { height, width, .. } => {
            let [n, _, _, c] = extents(inputs[0])?;
            if c != 3 {
                return Err(format!("expected an image of 3 channels, found {}", inputs[0]));
            }
            one([n, *height, *width, c].into())
        }
        Op::EmbedText => {
            let [n, t] = extents(inputs[0])?;
            let [_, d] = extents(inputs[1])?;
            let [positions, pd] = extents(inputs[2])?;
            if pd != d || t > positions {
                return Err(format!("positions {} do not fit tokens {}", inputs[2], inputs[0]));
            }
            one([n, t, d].into())
        }
        Op::EmbedPatches => {
            let [n, t, d] = extents(inputs[0])?;
            expect(inputs[1], &[d].into())?;
            expect(inputs[2], &[t + 1, d].into())?;
            one([n, t + 1, d].into())
        }
        Op::TimestepEmbedding { channels, .. } => {
            divides(2, *channels, "halves", "channels")?;
            let [rows] = x.map_or(Ok([1]), extents)?;
            one([rows, *channels].into())
        }
        Op::CfgX0 => {
            let rows = inputs[1].with_first(first(inputs[0])?);
            if rows != *inputs[0] || ![1, 2].contains(&copies(inputs[1], inputs[0])?) {
                return Err(format!("rows {} do not fit latents {}", inputs[1], inputs[0]));
            }
            Ok(vec![inputs[0].clone(), inputs[0].clone()])
        }
        Op::CfgX0Bwd { rows } => {
            let n = first(inputs[0])?;
            Ok(vec![inputs[0].clone(), inputs[0].with_first(rows * n)])
        }
        Op::SldX0 => {
            expect(inputs[1], &inputs[0].with_first(3 * first(inputs[0])?))?;
            expect(inputs[2], inputs[0])?;
            Ok(vec![inputs[0].clone(), inputs[0].clone(), inputs[0].clone()])
        }
        Op::ClipCosine { top_k, .. } => {
            let [n, d] = extents(inputs[0])?;
            let [k, cd] = extents(inputs[1])?;
            if cd != d || k == 0 || top_k.is_some_and(|top| top == 0 || top > k) {
                let problem = format!("concepts {} with top-k {top_k:?}", inputs[1]);
                return Err(format!("{problem} do not fit an embedding {}", inputs[0]));
            }
            Ok(vec![[n, k].into(), [n].into(), [n].into(), [n, d].into(), [n].into()])
        }
        Op::DdimUnguide { .. } => {
            expect(inputs[1], inputs[0])?;
            expect(inputs[2], inputs[0])?;
            gate_and_gradient(&inputs[3..], inputs[0])?;
            Ok(vec![inputs[0].clone(), inputs[0].clone()])
        }
        Op::GuideEps { .. } => {
            expect(inputs[1], inputs[0])?;
            expect(inputs[2], inputs[0])?;
            gate_and_gradient(&inputs[3..], inputs[0])?;
            Ok(vec![inputs[0].clone(), inputs[0].clone()])
        }
    }
    .map_err(|problem: String| match x {
        Some(x) if problem.is_empty() => format!("does not take {x}"),
        _ => problem,
    })
}

/// Extents of a convolution's output.
pub fn conv_out(
    (h, w): (usize, usize),
    (r, s): (usize, usize),
    stride: usize,
    padding: Padding,
) -> Result<(usize, usize), String> {
    let extent = |size: usize, before: usize, after: usize, taps: usize| {
        let padded = size + before + after;
        (stride > 0 && taps > 0 && padded >= taps).then(|| (padded - taps) / stride + 1)
    };
    let height = extent(h, padding.top, padding.bottom, r);
    let width = extent(w, padding.left, padding.right, s);
    height.zip(width).ok_or_else(|| format!("a {r} x {s} filter does not fit into a {h} x {w} image"))
}

/// Fewest and most operands.
fn arity(op: &Op) -> (usize, usize) {
    match op {
        Op::Param { .. } | Op::Load { .. } => (0, 0),
        Op::TimestepEmbedding { .. } => (0, 1),
        Op::Store { .. }
        | Op::Reshape
        | Op::SliceChannels { .. }
        | Op::PadChannels { .. }
        | Op::SliceTokens { .. }
        | Op::PadTokens { .. }
        | Op::SliceBatch { .. }
        | Op::RepeatBatch { .. }
        | Op::SumBatch { .. }
        | Op::Affine { .. }
        | Op::Activate(_)
        | Op::Geglu
        | Op::Upsample { .. }
        | Op::UpsampleBwd { .. }
        | Op::Resample { .. }
        | Op::ResampleBwd { .. }
        | Op::Normalise
        | Op::FrozenPullback
        | Op::CfgX0Bwd { .. } => (1, 1),
        Op::Concat
        | Op::GatherToken
        | Op::Add
        | Op::AddChannels
        | Op::ActivateBwd(_)
        | Op::GegluBwd
        | Op::LinearBwd
        | Op::Conv2dBwd { .. }
        | Op::CfgX0
        | Op::ClipCosine { .. } => (2, 2),
        Op::Linear | Op::Conv2d { .. } => (2, 3),
        Op::Attention { .. } => (1, 3),
        Op::GroupNorm { .. }
        | Op::LayerNorm { .. }
        | Op::LayerNormBwd { .. }
        | Op::EmbedText
        | Op::EmbedPatches
        | Op::SldX0 => (3, 3),
        Op::GroupNormBwd { .. } => (4, 4),
        Op::DdimUnguide { .. } => (3, 5),
        Op::GuideEps { .. } => (5, 5),
        Op::AttentionBwd { .. } => (4, 6),
    }
}

fn extents<const N: usize>(shape: &Shape) -> Result<[usize; N], String> {
    shape[..].try_into().map_err(|_| format!("expected {N} extents, found {shape}"))
}

fn first(shape: &Shape) -> Result<usize, String> {
    shape.first().copied().ok_or_else(|| "expected a batch, found a scalar".to_owned())
}

fn copies(rows: &Shape, of: &Shape) -> Result<usize, String> {
    divides(first(of)?, first(rows)?, "samples", "rows")?;
    Ok(rows[0] / of[0])
}

fn expect(found: &Shape, expected: &Shape) -> Result<(), String> {
    (found == expected).then_some(()).ok_or_else(|| format!("expected {expected}, found {found}"))
}

fn bias(found: Option<&&Shape>, channels: usize) -> Result<(), String> {
    found.map_or(Ok(()), |found| expect(found, &[channels].into()))
}

fn gate_and_gradient(found: &[&Shape], latents: &Shape) -> Result<(), String> {
    match found {
        [] => Ok(()),
        [gate, gradient] => {
            expect(gate, &[first(latents)?].into())?;
            expect(gradient, latents)
        }
        _ => Err("a gate without a gradient".into()),
    }
}

fn divides(parts: usize, whole: usize, part: &str, of: &str) -> Result<(), String> {
    let fits = parts > 0 && whole.is_multiple_of(parts);
    fits.then_some(()).ok_or_else(|| format!("{whole} {of} cannot be split into {parts} {part}"))
}

fn within(start: usize, len: usize, whole: usize, of: &str) -> Result<(), String> {
    let fits = len > 0 && start.checked_add(len).is_some_and(|end| end <= whole);
    fits.then_some(()).ok_or_else(|| format!("{of} {start}..+{len} lie outside of {whole}"))
}
