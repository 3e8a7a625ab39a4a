//! What operations allocate for themselves while they run, from shapes alone: at most, in bytes.
//!
//! Counted: copied rows of convolutions, transposed tiles, blocks of scores, sums of norms, images on the way of a
//! resampling, and what the matrix library packs. Not counted: lists of tasks (a few words a task), and the
//! panel that the library keeps for every thread from the first product on ([`KEPT_BYTES`], counted once a run).

use super::eval::{attention_sizes, group_sizes};
use super::{attention, conv, norm, product};
use crate::ir::{Attending, Graph, Node, Op};

/// What the matrix library keeps for a thread: as much as a second-level cache of a common machine.
pub const KEPT_BYTES: usize = 1 << 20;

/// Bytes that `node` allocates at most on `threads` threads, at `element` bytes a number.
pub fn bytes(graph: &Graph, node: &Node, element: usize, threads: usize) -> usize {
    let shape = |i: usize| graph.shape(node.inputs[i]);
    let out = || graph.shape(node.outputs[0]);
    match &node.op {
        Op::Linear | Op::LinearBwd => {
            let (rows, cols) = (shape(0).rows() / shape(0)[0].max(1), out().last());
            product::scratch((shape(0)[0], rows, cols, shape(0).last()), 1, false, threads) * element
        }
        Op::Conv2d { stride, padding } => {
            conv::scratch(shape(1), *stride, *padding, out(), threads) * element
        }
        Op::Conv2dBwd { stride, padding, .. } => {
            conv::scratch_bwd(shape(0), shape(1), (*stride, *padding), out(), threads) * element
        }
        Op::Attention { heads, causal } | Op::AttentionBwd { heads, causal } => {
            let attending = Attending::inferred(&node.op, &graph.shapes(&node.inputs));
            let sizes = attention_sizes(&attending, *heads, *causal);
            let forward = matches!(node.op, Op::Attention { .. });
            let scratch = if forward { attention::scratch } else { attention::scratch_bwd };
            scratch(attending.n, sizes, threads) * element
        }
        Op::GroupNorm { groups, eps, act } | Op::GroupNormBwd { groups, eps, act } => {
            let groups = group_sizes(shape(0), *groups, *eps, *act);
            let backward = matches!(node.op, Op::GroupNormBwd { .. });
            norm::scratch(shape(0)[0], groups, backward) * size_of::<f64>()
        }
        // One direction at a time; the adjoint scales a copy first.
        Op::Resample { .. } => shape(0).rows() / shape(0)[2] * out()[2] * out().last() * element,
        Op::ResampleBwd { .. } => {
            let half = shape(0).rows() / shape(0)[1] * out()[1] * shape(0).last();
            (shape(0).count() + half) * element
        }
        _ => 0,
    }
}
