//! What was chosen for the launches of a unit, and why: data that prints.

use std::fmt;

use super::conv2d::Conv2d;
use super::tune::conv2d::{self as conv2d_tune, OnHopper};
use super::tune::gemm::{self as gemm_tune, Form};
use super::tune::{Reason, hopper};
use super::{attention, norms, pointwise};

/// A form, and what decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Of a product by tiles.
    pub tiling: Option<Tiling>,
    pub why: Why,
}

/// How the blocks of a product go about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows or pixels, and columns or channels.
    pub tile: [usize; 2],
    /// Of the depth in a step, and steps that the ring in shared memory holds.
    pub step: usize,
    pub stages: usize,
    /// Parts that sums are in, and blocks of a cluster, which add as many without another launch.
    pub splits: usize,
    pub cluster: usize,
    /// Images, lines and columns of the pixels in a slab of sm_90a.
    pub slab: Option<[usize; 3]>,
}

/// By the choosers that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Product(Reason),
    Attention(attention::Choice),
    GroupNorm(norms::Form),
    LayerNorm(norms::LayerForm),
    Elements(pointwise::Form),
}

impl Choice {
    pub(super) fn because(why: Why) -> Self {
        Self { tiling: None, why }
    }

    pub(super) fn of_gemm(choice: gemm_tune::Choice) -> Self {
        let splits = choice.form.splits();
        let tiling = match choice.form {
            Form::General => None,
            Form::Tiled { tile, .. } => Some(Tiling {
                tile: [tile.m, tile.n],
                step: gemm_tune::STEP,
                stages: gemm_tune::STAGES,
                splits,
                cluster: 1,
                slab: None,
            }),
            Form::Hopper { tile, .. } => Some(Tiling::on_hopper(&tile, splits)),
        };
        Self { tiling, why: Why::Product(choice.reason) }
    }

    /// Of a convolution or, where `back`, of its data gradient.
    pub(super) fn of_conv2d(conv: &Conv2d, back: bool, target: &str) -> Self {
        let (form, reason) = if back { conv.choose_bwd(0, target) } else { conv.choose(target) };
        let tiling = match form {
            conv2d_tune::Form::Hopper(OnHopper { tile, splits, bits: [x, y], .. }) => {
                let n = hopper::SLAB.ilog2() - x - y;
                let slab = Some([n, y, x].map(|bits| 1 << bits));
                Some(Tiling { slab, ..Tiling::on_hopper(&tile, splits) })
            }
            _ => form.tile().map(|tile| Tiling {
                tile: [tile.m, tile.n],
                step: gemm_tune::STEP,
                stages: gemm_tune::STAGES,
                splits: tile.splits,
                cluster: 1,
                slab: None,
            }),
        };
        Self { tiling, why: Why::Product(reason) }
    }
}

impl Tiling {
    fn on_hopper(tile: &hopper::Tile, splits: usize) -> Self {
        let hopper::Tile { n, stages, cluster, .. } = *tile;
        Self { tile: [tile.m(), n], step: hopper::STEP, stages, splits, cluster, slab: None }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Product(reason) => reason.fmt(f),
            Self::Attention(choice) => choice.fmt(f),
            Self::GroupNorm(form) => form.fmt(f),
            Self::LayerNorm(form) => form.fmt(f),
            Self::Elements(form) => form.fmt(f),
        }
    }
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tile: [m, n], step, stages, splits, cluster, slab } = self;
        write!(f, "{m} x {n}, {stages} stages of {step}")?;
        match (splits, cluster) {
            (1, _) => {}
            (_, 1) => write!(f, ", sums in {splits} parts")?,
            (_, blocks) => write!(f, ", by clusters of {blocks}")?,
        }
        slab.map_or(Ok(()), |[n, y, x]| write!(f, ", slabs of {n} x {y} x {x} pixels"))
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tiling) = &self.tiling {
            write!(f, "{tiling}: ")?;
        }
        self.why.fmt(f)
    }
}
