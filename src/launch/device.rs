//! What devices can do: the numbers behind floors, and how wide a grid is worth being.

use crate::error::{Error, Result};
use crate::manifest::TARGETS;

/// A GPU by its limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    pub name: &'static str,
    /// The kernels' target that runs on it.
    pub target: &'static str,
    /// What its multiprocessors are.
    pub architecture: &'static str,
    /// Matrix products of f16 or bf16, sums in f32. Of the two Hopper devices what PyTorch's product of matrices of
    /// 8192 x 8192 reached there, which is no measurement of ours; of the others the data sheet's.
    pub tflops: f64,
    /// The part of it that mma.sync reaches: all where there is nothing faster, else what was published.
    pub mma_share: f64,
    /// Multiply-adds of f32 outside tensor cores, by the data sheet.
    pub f32_tflops: f64,
    /// Between memory and chip: what PyTorch's copy reached on the two Hopper devices, else the data sheet's.
    pub gb_per_second: f64,
    pub multiprocessors: u32,
}

#[rustfmt::skip] // a table
pub const GPUS: [Gpu; 4] = [
    Gpu { name: "h100",    target: "sm_90a", architecture: "sm_90a", tflops: 798.0, mma_share: 0.62, f32_tflops: 67.0, gb_per_second: 3000.0, multiprocessors: 132 },
    Gpu { name: "h200",    target: "sm_90a", architecture: "sm_90a", tflops: 790.0, mma_share: 0.62, f32_tflops: 67.0, gb_per_second: 4300.0, multiprocessors: 132 },
    Gpu { name: "a100",    target: "sm_80",  architecture: "sm_80",  tflops: 312.0, mma_share: 1.0,  f32_tflops: 19.5, gb_per_second: 2039.0, multiprocessors: 108 },
    Gpu { name: "rtx4090", target: "sm_80",  architecture: "sm_89",  tflops: 165.0, mma_share: 1.0,  f32_tflops: 82.6, gb_per_second: 1008.0, multiprocessors: 128 },
];

impl Gpu {
    /// The first of the table that runs binaries for `target`.
    pub fn of_target(target: &str) -> Option<&'static Self> {
        GPUS.iter().find(|gpu| gpu.target == target)
    }

    pub fn named(name: &str) -> Option<&'static Self> {
        GPUS.iter().find(|gpu| gpu.name == name)
    }
}

/// One of [`TARGETS`], by a user's word.
pub fn target(word: &str) -> Result<&'static str> {
    TARGETS.into_iter().find(|target| *target == word).ok_or_else(|| {
        Error::usage("--arch", format!("expected one of {}, found `{word}`", TARGETS.join(", ")))
    })
}

/// Most blocks of a kernel that loops over its grid: eight for each of the largest device's multiprocessors.
/// Results do not depend on it.
pub const MOST_BLOCKS: u32 = 8 * 132;
