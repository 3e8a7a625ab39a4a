//! What a launch costs at best.

use super::Storage;
use super::device::Gpu;
use super::types::of_letter;
use super::unit::Unit;
use crate::ir::{self, Op, ValueId};
use crate::plan::StepProgram;

/// Work of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// As the mathematics has it, multiply-adds counting two: contractions only.
    pub flops: u64,
    /// What is really multiplied: whole tiles, and of an enlarged image the taps that are summed beforehand once.
    /// Attention is counted as the mathematics has it, but on sm_90a.
    pub executed_flops: u64,
    /// Every operand read once, as far as it is needed, and every result written once, as they are stored.
    pub bytes: u64,
}

impl Cost {
    /// Of a unit that one kernel computes.
    pub(super) fn of(step: &StepProgram, unit: &Unit<'_>, storage: Storage) -> Self {
        let graph = &step.graph;
        let bytes = |(value, letter): (ValueId, u8)| {
            // Copies that nobody makes are read from the one.
            let stored = match (&graph.producer(value).op, step.fusion.sources(graph, value)) {
                (Op::RepeatBatch { .. }, Some(&[one])) => one,
                _ => value,
            };
            (graph.shape(stored).count() * of_letter(letter, storage).bytes()) as u64
        };
        let made: u64 = unit.makes().map(bytes).sum();
        // Of what only a part is moved of, no more is read than is made; of tables, a row for each of the two sums.
        let most = match unit.root.op {
            Op::GatherToken
            | Op::SliceBatch { .. }
            | Op::SliceChannels { .. }
            | Op::SliceTokens { .. }
            | Op::EmbedText => made,
            _ => u64::MAX,
        };
        let read: u64 = unit.reads().map(|read| bytes(read).min(most)).sum();
        let flops = ir::Cost::of(graph, unit.root, 0).flops;
        Self { flops, executed_flops: flops, bytes: read + made }
    }

    pub fn times(self, count: u64) -> Self {
        let Self { flops, executed_flops, bytes } = self;
        Self { flops: flops * count, executed_flops: executed_flops * count, bytes: bytes * count }
    }

    /// No device of that kind is faster, in microseconds, however little of a tile is wasted.
    pub fn floor_us(&self, gpu: &Gpu) -> f64 {
        let compute = self.flops.min(self.executed_flops) as f64 / (gpu.tflops * 1e6);
        let memory = self.bytes as f64 / (gpu.gb_per_second * 1e3);
        compute.max(memory)
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.executed_flops += other.executed_flops;
        self.bytes += other.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_slower_of_arithmetic_and_memory() {
        let gpu = Gpu {
            name: "x",
            target: "sm_80",
            architecture: "sm_80",
            tflops: 100.0,
            gb_per_second: 1000.0,
            multiprocessors: 1,
            mma_share: 1.0,
            f32_tflops: 1.0,
        };
        let cost = |executed_flops, bytes| Cost { flops: 100_000_000, executed_flops, bytes };
        assert_eq!(cost(150_000_000, 1000).floor_us(&gpu), 1.0);
        assert_eq!(cost(100_000_000, 5_000_000).floor_us(&gpu), 5.0);
        // Taps that are summed beforehand need not be multiplied.
        assert_eq!(cost(50_000_000, 1000).floor_us(&gpu), 0.5);
    }
}
