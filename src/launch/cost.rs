//! What a launch costs at best.

use super::device::Gpu;
use super::types::of_letter;
use super::{Kinds, Storage};
use crate::ir::{self, Graph, Node};

/// Work of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// As the mathematics has it, multiply-adds counting two: contractions only.
    pub flops: u64,
    pub executed_flops: u64,
    /// Every operand read once and every result written once, as they are stored.
    pub bytes: u64,
}

impl Cost {
    /// Of a node that one kernel computes.
    pub(super) fn of(graph: &Graph, node: &Node, kinds: Kinds, storage: Storage) -> Self {
        let bytes = |values: &[ir::ValueId], letters: &str| -> u64 {
            let sizes = values.iter().zip(letters.bytes());
            sizes
                .map(|(&v, letter)| graph.shape(v).count() * of_letter(letter, storage).bytes())
                .sum::<usize>() as u64
        };
        Self {
            flops: ir::Cost::of(graph, node, 0).flops,
            executed_flops: ir::Cost::of(graph, node, 0).flops,
            bytes: bytes(&node.inputs, kinds.inputs) + bytes(&node.outputs, kinds.outputs),
        }
    }

    pub fn times(self, count: u64) -> Self {
        Self {
            flops: self.flops * count,
            executed_flops: self.executed_flops * count,
            bytes: self.bytes * count,
        }
    }

    /// No device of that kind is faster, in microseconds.
    pub fn floor_us(&self, gpu: &Gpu) -> f64 {
        let compute = self.flops as f64 / (gpu.tflops * 1e6);
        let memory = self.bytes as f64 / (gpu.gb_per_second * 1e3);
        compute.max(memory)
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
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
            tflops: 100.0,
            gb_per_second: 1000.0,
            multiprocessors: 1,
            mma_share: 1.0,
            f32_tflops: 1.0,
        };
        assert_eq!(Cost { flops: 100_000_000, executed_flops: 0, bytes: 1000 }.floor_us(&gpu), 1.0);
        assert_eq!(Cost { flops: 100_000_000, executed_flops: 0, bytes: 5_000_000 }.floor_us(&gpu), 5.0);
    }
}
