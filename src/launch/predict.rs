//! How long a launch is likely to take, said before anybody measured it.
//!
//! ```text
//! busiest = ceil(blocks / multiprocessors) * ceil(tiles / blocks)   the tiles that the fullest multiprocessor gets
//! compute = busiest * executed / tiles / (unit's rate * share / multiprocessors)
//! memory  = bytes / (bandwidth * share * min(1, 2 blocks / multiprocessors))
//! time    = max(compute, memory) + FILL + GAP         and what a cluster's blocks take to exchange their sums
//! ```
//!
//! A block makes one tile, or stays and makes one after the other ([`hopper::items`]). `executed` is what they really
//! multiply: tails of tiles and of depths are in it. The shares are one table, [`FAMILIES`], times what `tune` says of
//! the tile on sm_90a, and guesses until a device was there: they follow what published kernels of the same technique
//! reach. A prediction that a measurement contradicts is to be explained, not tuned away.

use std::fmt;

use super::device::Gpu;
use super::{Cost, Launch, hopper, tune};

/// Between two kernels of a graph that wait for each other, in microseconds.
pub const GAP_US: f64 = 1.0;
/// From a block's first instruction to its first product and from its last to its last write: two round trips to
/// memory, in microseconds.
pub const FILL_US: f64 = 1.5;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Tensor cores through wgmma, which alone reaches their full rate on Hopper.
    Wgmma,
    /// Tensor cores through mma.sync.
    Mma,
    /// Multiply-adds of single numbers in f32.
    Scalar,
}

/// Kernels of one technique, by the files that they stand in.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub files: &'static [&'static str],
    pub unit: Unit,
    /// Of the unit's rate that the inner loop keeps up with.
    pub compute: f64,
    /// Of the bandwidth that its access pattern draws.
    pub memory: f64,
}

const fn family(files: &'static [&'static str], unit: Unit, compute: f64, memory: f64) -> Family {
    Family { files, unit, compute, memory }
}

/// Every file of kernels stands in one row.
pub const FAMILIES: &[Family] = &[
    // A ring of four stages in shared memory; the rest waits at barriers and reads fragments.
    family(&["gemm_tile.cu", "gemm_tile_bwd.cu"], Unit::Mma, 0.85, 0.80),
    // The same with addresses of taps in its loads.
    family(&["conv2d_tile.cu", "conv2d_dgrad_tile.cu"], Unit::Mma, 0.80, 0.80),
    // A ring of bulk copies that a warpgroup of its own fills.
    family(&["gemm_sm90.cu", "conv2d_sm90.cu", "conv2d_dgrad_sm90.cu"], Unit::Wgmma, 0.72, 0.80),
    // Exponentials between the products.
    family(&["attention_mma.cu"], Unit::Mma, 0.55, 0.80),
    // The same behind products of other warps and of the tile before.
    family(&["attention_sm90.cu"], Unit::Wgmma, 0.62, 0.80),
    family(&["attention_bwd_sm90.cu"], Unit::Wgmma, 0.45, 0.80),
    family(&["attention_bwd_dq.cu", "attention_bwd_dkv.cu"], Unit::Mma, 0.45, 0.80),
    // Operands that come element by element; most of a fragment of eight columns goes unused.
    family(&["conv2d_gather.cu", "conv2d_narrow.cu"], Unit::Mma, 0.30, 0.60),
    family(&["attention_product_tile.cu"], Unit::Mma, 0.70, 0.80),
    // One thread an element, operands through the caches.
    family(&["gemm.cu", "conv2d.cu", "conv2d_dgrad.cu", "attention_product.cu"], Unit::Scalar, 0.15, 0.40),
    family(&["attention.cu", "attention_bwd.cu"], Unit::Scalar, 0.10, 0.40),
    // Streams of 16 bytes a thread.
    family(&["group_norm_tiled.cu", "group_norm_tiled_bwd.cu", "layer_norm.cu"], Unit::Scalar, 0.5, 0.80),
    family(&["layer_norm_bwd.cu", "softmax.cu"], Unit::Scalar, 0.5, 0.75),
    family(&["pointwise.cu", "ddim_unguide.cu", "layout.cu", "condition.cu"], Unit::Scalar, 0.5, 0.80),
    // Elements one by one, or gathered.
    family(&["group_norm.cu", "group_norm_bwd.cu", "normalise.cu"], Unit::Scalar, 0.3, 0.40),
    family(&["resample.cu", "embed.cu", "clip_cosine.cu"], Unit::Scalar, 0.3, 0.40),
];

/// What holds a launch back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Compute,
    Memory,
    /// More than half of its time passes before and after its work.
    Launch,
}

/// The times of one launch on one device, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    pub blocks: u64,
    /// What they make, parts of sums counted each: a block one, or one after the other.
    pub tiles: u64,
    /// Tiles that the fullest multiprocessor makes.
    pub busiest: u64,
    /// Useful products of those that tiles make.
    pub of_tiles: f64,
    /// Tiles of those that the device has time for while the fullest multiprocessor makes its own.
    pub of_rounds: f64,
    pub compute_us: f64,
    pub memory_us: f64,
    pub us: f64,
    pub bound: Bound,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Compute => "compute",
            Self::Memory => "memory",
            Self::Launch => "launch",
        })
    }
}

impl Family {
    /// `None` for a file that stands in no row.
    pub fn of(file: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.files.contains(&file))
    }
}

impl Unit {
    /// Products and sums a microsecond, all multiprocessors together.
    fn rate(self, gpu: &Gpu) -> f64 {
        1e6 * match self {
            Self::Wgmma => gpu.tflops,
            Self::Mma => gpu.tflops * gpu.mma_share,
            Self::Scalar => gpu.f32_tflops,
        }
    }
}

impl Prediction {
    /// Useful products of those that the device has time for.
    pub fn efficiency(&self) -> f64 {
        self.of_tiles * self.of_rounds
    }

    /// `None` for a kernel that stands in no row of [`FAMILIES`].
    pub fn of(launch: &Launch, cost: &Cost, gpu: &Gpu) -> Option<Self> {
        let family = Family::of(launch.kernel.file)?;
        let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
        let (tiles, multiprocessors) =
            (hopper::items(launch).unwrap_or(blocks), u64::from(gpu.multiprocessors));
        let busiest = blocks.div_ceil(multiprocessors) * tiles.div_ceil(blocks);
        let share = family.compute * tune::hopper::share_of(launch.kernel);
        let rate = family.unit.rate(gpu) * share / multiprocessors as f64;
        let compute_us = busiest as f64 * cost.executed_flops as f64 / tiles as f64 / rate;
        let drawn = (2.0 * blocks as f64 / multiprocessors as f64).min(1.0);
        let memory_us = cost.bytes as f64 / (gpu.gb_per_second * 1e3 * family.memory * drawn);
        let exchange = if launch.kernel.cluster > 1 { tune::hopper::EXCHANGE_NS as f64 / 1e3 } else { 0.0 };
        let (work, around) = (compute_us.max(memory_us) + exchange, FILL_US + GAP_US);
        let bound = match () {
            () if work < around => Bound::Launch,
            () if compute_us > memory_us => Bound::Compute,
            () => Bound::Memory,
        };
        let useful = match cost.executed_flops {
            0 => 1.0,
            // Taps that are summed beforehand are useful products, and fewer.
            executed => cost.flops.min(executed) as f64 / executed as f64,
        };
        let filled = tiles as f64 / (busiest * multiprocessors) as f64;
        Some(Self {
            blocks,
            tiles,
            busiest,
            of_tiles: useful,
            of_rounds: filled,
            compute_us,
            memory_us,
            us: work + around,
            bound,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::device::GPUS;
    use crate::launch::params::{DevicePtr, PointwiseParams};
    use crate::manifest::KERNELS;

    #[test]
    fn every_file_of_kernels_is_in_one_family() {
        for kernel in KERNELS {
            let rows = FAMILIES.iter().filter(|family| family.files.contains(&kernel.file)).count();
            assert_eq!(rows, 1, "{}", kernel.file);
        }
        for file in FAMILIES.iter().flat_map(|family| family.files) {
            assert!(KERNELS.iter().any(|kernel| kernel.file == *file), "{file}");
        }
    }

    fn of(blocks: u32, cost: Cost) -> Prediction {
        let at = DevicePtr(4096);
        let params = PointwiseParams { x: at, out: at, count: 1, ..Default::default() };
        let launch = Launch::new("affine_f16", [blocks, 1, 1], &params).expect("a launch");
        Prediction::of(&launch, &cost, &GPUS[0]).expect("a family")
    }

    #[test]
    fn a_launch_is_never_faster_than_its_floor() {
        for (flops, bytes) in [(0, 1 << 30), (1 << 40, 1 << 20), (0, 1)] {
            for blocks in [1, 131, 132, 133, 10_000] {
                let cost = Cost { flops, executed_flops: flops, bytes };
                let found = of(blocks, cost);
                assert!(found.us > cost.floor_us(&GPUS[0]), "{found:?}");
            }
        }
    }

    #[test]
    fn one_block_too_many_costs_a_round() {
        let cost = Cost { flops: 1 << 40, executed_flops: 1 << 40, bytes: 0 };
        let (full, more) = (of(132, cost), of(133, cost));
        assert_eq!((full.busiest, more.busiest), (1, 2));
        assert!((full.efficiency() - 1.0).abs() < 1e-12 && more.of_rounds < 0.51);
        assert!(more.compute_us > 1.9 * full.compute_us && more.bound == Bound::Compute);
    }

    #[test]
    fn padding_is_paid_and_is_not_useful() {
        let whole = of(132, Cost { flops: 1 << 40, executed_flops: 1 << 40, bytes: 0 });
        let padded = of(132, Cost { flops: 1 << 39, executed_flops: 1 << 40, bytes: 0 });
        assert_eq!((whole.us, padded.of_tiles), (padded.us, 0.5));
    }
}
