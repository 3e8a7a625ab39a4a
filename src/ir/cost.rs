//! Work counts of a graph: floating-point operations and bytes, per node.

use super::attending::Attending;
use super::graph::{Graph, Node};
use super::op::Op;

/// Work of one node as the mathematics has it: no padding, no fusion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-adds count two. Contractions only (linear, convolution, attention), as the field counts.
    pub flops: u64,
    /// Every operand read once and every result written once, at `element_bytes` an element.
    pub bytes: u64,
}

impl Cost {
    pub fn of(graph: &Graph, node: &Node, element_bytes: usize) -> Self {
        if node.op.is_free() {
            return Self::default();
        }
        let input = |i: usize| graph.shape(node.inputs[i]);
        let count = |values: &[super::ValueId]| -> u64 {
            values.iter().map(|&v| graph.shape(v).count() as u64).sum()
        };
        let flops = match &node.op {
            Op::Linear | Op::LinearBwd => 2 * input(0).rows() as u64 * input(1).count() as u64,
            Op::Conv2d { .. } => 2 * graph.shape(node.outputs[0]).rows() as u64 * input(1).count() as u64,
            Op::Conv2dBwd { .. } => 2 * input(0).rows() as u64 * input(1).count() as u64,
            Op::Attention { .. } => 4 * scores_by_channels(graph, node),
            Op::AttentionBwd { .. } => 10 * scores_by_channels(graph, node),
            _ => 0,
        };
        Self { flops, bytes: (count(&node.inputs) + count(&node.outputs)) * element_bytes as u64 }
    }
}

/// Multiply-adds of one of the products of an attention, over all heads.
fn scores_by_channels(graph: &Graph, node: &Node) -> u64 {
    let Attending { n, t, u, c, .. } = Attending::inferred(&node.op, &graph.shapes(&node.inputs));
    (n * t * c) as u64 * u as u64
}
