//! Whether what a device made of some operands is what the CPU backend makes of the same ones.
//!
//! The operands are numbers that both hold exactly, so what is left is rounding of the result, the order of sums, and
//! what kernels round on the way. `u(x)` is the distance to the next number of the result's type around x, `scale`
//! the largest wanted number.

use crate::ir::{Attending, Graph, Node, Op};
use crate::tensor::DType;

/// How near a result must come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    /// The very number, rounded: what only moves.
    Exact,
    /// u(x): a few roundings an element, in f32.
    Rounded,
    /// 2 u(scale) + 1e-6 sqrt(terms) scale: sums over so many terms, and weights that are rounded on the way.
    Reduced(usize),
    /// u(x) + 1e-6 sqrt(terms) scale: products summed in f32.
    Contracted(usize),
    /// As Contracted, and u(scale): what is rounded while it passes from one member of a group to the next.
    Grouped(usize),
}

impl Class {
    /// Of output `index` of a node, or of the group whose root it is.
    pub fn of(graph: &Graph, root: &Node, index: usize, grouped: bool) -> Self {
        let shape = |i: usize| graph.shape(root.inputs[i]);
        let contracted = |terms: usize| if grouped { Self::Grouped(terms) } else { Self::Contracted(terms) };
        match &root.op {
            Op::Concat
            | Op::SliceChannels { .. }
            | Op::PadChannels { .. }
            | Op::SliceTokens { .. }
            | Op::PadTokens { .. }
            | Op::GatherToken
            | Op::SliceBatch { .. }
            | Op::RepeatBatch { .. }
            | Op::Upsample { .. } => Self::Exact,
            // Gates and states are numbers that mean words.
            Op::ClipCosine { .. } if index == 2 || index == 4 => Self::Exact,
            Op::ClipCosine { .. } | Op::Normalise => Self::Reduced(shape(0).last()),
            // Angles of hundreds: a rounding of theirs is one of 1, not of the sine.
            Op::TimestepEmbedding { .. } => Self::Reduced(1),
            Op::LayerNorm { .. } | Op::LayerNormBwd { .. } => Self::Reduced(shape(0).last()),
            Op::GroupNorm { groups, .. } | Op::GroupNormBwd { groups, .. } => {
                Self::Reduced(shape(0).count() / shape(0)[0].max(1) / groups.max(&1))
            }
            Op::Resample { .. } | Op::ResampleBwd { .. } => Self::Reduced(16),
            Op::Attention { .. } | Op::AttentionBwd { .. } => {
                let Attending { t, u, c, .. } = Attending::inferred(&root.op, &graph.shapes(&root.inputs));
                Self::Reduced(t.max(u).max(c))
            }
            Op::Linear => contracted(shape(0).last()),
            Op::LinearBwd => contracted(shape(0).last()),
            Op::Conv2d { .. } => contracted(shape(1).count() / shape(1)[0].max(1)),
            Op::Conv2dBwd { .. } => contracted(shape(1).count() / shape(1).last().max(1)),
            _ => Self::Rounded,
        }
    }

    /// The worst distance as a share of what is allowed, or what is wrong. NaN is never right where a number is
    /// wanted.
    pub fn judge(self, got: &[f32], want: &[f32], dtype: DType) -> Result<f64, String> {
        if got.len() != want.len() {
            return Err(format!("{} numbers in place of {}", got.len(), want.len()));
        }
        let finite = want.iter().filter(|x| x.is_finite());
        let scale = finite.fold(0f64, |most, &x| most.max(f64::from(x).abs()));
        let (unit, scale_unit) = (|x: f64| ulp(dtype, x), ulp(dtype, scale));
        // What summing in f32 costs, however short the sum.
        let single = 4.0 * ulp(DType::F32, scale);
        let summed = |terms: usize| 1e-6 * (terms as f64).sqrt() * scale;
        let mut worst = 0f64;
        for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
            let rounded = rounded(dtype, want);
            if !rounded.is_finite() {
                let alike = got == rounded || (got.is_nan() && rounded.is_nan());
                if alike {
                    continue;
                }
                return Err(format!("element {at} is {got}, wanted {rounded}"));
            }
            let x = f64::from(want);
            let bound = match self {
                Self::Exact => (f64::from(rounded) - x).abs(),
                Self::Rounded => unit(x) + single,
                Self::Reduced(terms) => 2.0 * scale_unit + single + summed(terms),
                Self::Contracted(terms) => unit(x) + single + summed(terms),
                Self::Grouped(terms) => unit(x) + scale_unit + single + summed(terms),
            };
            let distance = (f64::from(got) - x).abs();
            // False for NaN.
            let near = distance <= bound;
            if !near {
                return Err(format!("element {at} is {got}, wanted {want} within {bound:.3e}"));
            }
            worst = worst.max(if bound > 0.0 { distance / bound } else { 0.0 });
        }
        Ok(worst)
    }
}

fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => half::f16::from_f32(x).to_f32(),
        DType::BF16 => half::bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// The distance to the next number of a type around `x`.
fn ulp(dtype: DType, x: f64) -> f64 {
    let (digits, lowest) = match dtype {
        DType::F16 => (10, -14),
        DType::BF16 => (7, -126),
        _ => (23, -126),
    };
    let exponent = if x == 0.0 { lowest } else { (x.abs().log2().floor() as i32).max(lowest) };
    2f64.powi(exponent - digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_passes_and_nan_never_does() {
        let want = [1.0f32, -2.0, 0.5];
        assert!(Class::Exact.judge(&want, &want, DType::F16).is_ok());
        for class in
            [Class::Exact, Class::Rounded, Class::Reduced(9), Class::Contracted(9), Class::Grouped(9)]
        {
            assert!(class.judge(&[1.0, f32::NAN, 0.5], &want, DType::F16).is_err(), "{class:?}");
            assert!(class.judge(&[1.0, -2.0], &want, DType::F16).is_err(), "{class:?}");
            assert!(class.judge(&[1.0, -2.02, 0.5], &want, DType::F16).is_err(), "{class:?}");
        }
        let near = [1.0 + 1.0 / 1024.0, -2.0, 0.5];
        assert!(Class::Exact.judge(&near, &want, DType::F16).is_err());
        let share = Class::Rounded.judge(&near, &want, DType::F16).expect("one unit in the last place");
        assert!((0.9..=1.0).contains(&share), "{share}");
    }

    #[test]
    fn overflow_is_wanted_where_the_type_overflows() {
        assert!(Class::Rounded.judge(&[f32::INFINITY], &[7e4], DType::F16).is_ok());
        assert!(Class::Rounded.judge(&[65504.0], &[7e4], DType::F16).is_err());
        assert!(Class::Rounded.judge(&[7e4], &[7e4], DType::F32).is_ok());
    }
}
