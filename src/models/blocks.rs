//! Pieces that the UNet, the decoders and CLIP share.

use crate::error::{Error, Result};
use crate::ir::{Activation, Builder, Op, Padding, ValueId};

/// Stride and padding of a convolution with three taps that keeps the image's size.
pub const SAME: (usize, Padding) = (1, Padding::all(1));

/// Stride and padding of a convolution with one tap.
pub const POINT: (usize, Padding) = (1, Padding::NONE);

/// The extents of a network's input, if it has `N` of them and the innermost one is `width`.
pub fn input<const N: usize>(
    b: &Builder,
    value: ValueId,
    node: &str,
    op: &'static str,
    width: usize,
) -> Result<[usize; N]> {
    let shape = b.shape(value);
    let extents: Option<[usize; N]> = shape[..].try_into().ok();
    extents.filter(|_| shape.last() == width).ok_or_else(|| Error::Shape {
        node: node.to_owned(),
        op,
        problem: format!("expected {N} extents, the last one {width}, found {shape}"),
    })
}

/// Residual block: x + conv2(silu(norm2(conv1(silu(norm1(x))) + W time))), with a convolution of one tap
/// on x where the channels change.
///
/// `x [n, h, w, c]`, `time [1, t]` (activated already) `-> [n, h, w, out]`
pub fn resnet(
    b: &mut Builder,
    x: ValueId,
    time: Option<ValueId>,
    out: usize,
    norm: (usize, f32),
) -> Result<ValueId> {
    let h = b.group_norm("norm1", x, norm, Some(Activation::Silu))?;
    let mut h = b.conv2d("conv1", h, (out, 3), SAME, true)?;
    if let Some(time) = time {
        let shift = b.linear("time_emb_proj", time, out, true)?;
        h = b.push("add_time", Op::AddChannels, &[h, shift])?;
    }
    let h = b.group_norm("norm2", h, norm, Some(Activation::Silu))?;
    let h = b.conv2d("conv2", h, (out, 3), SAME, true)?;
    let x = if b.shape(x).last() == out { x } else { b.conv2d("conv_shortcut", x, (out, 1), POINT, true)? };
    b.add("add", x, h)
}

/// Attention with its four projections; `bias` is that of the first three, the last one always has one. What
/// projects the same tokens is one layer.
///
/// `x [n, t, c]`, `context [n, u, d] -> [n, t, c]`
pub fn attention(b: &mut Builder, x: ValueId, context: ValueId, heads: usize, bias: bool) -> Result<ValueId> {
    let channels = b.shape(x).last();
    let operands = if x == context {
        vec![b.linear_side_by_side("to_qkv", &["to_q", "to_k", "to_v"], x, channels, bias)?]
    } else {
        let q = b.linear("to_q", x, channels, bias)?;
        vec![q, b.linear_side_by_side("to_kv", &["to_k", "to_v"], context, channels, bias)?]
    };
    let mixed = b.attention("attention", &operands, heads, false)?;
    b.linear("to_out.0", mixed, channels, true)
}

/// Nearest neighbour to `height` x `width`, then a convolution. `[n, h, w, c] -> [n, height, width, c]`
pub fn upsample(b: &mut Builder, x: ValueId, height: usize, width: usize) -> Result<ValueId> {
    let channels = b.shape(x).last();
    let x = b.push("nearest", Op::Upsample { height, width }, &[x])?;
    b.conv2d("conv", x, (channels, 3), SAME, true)
}
