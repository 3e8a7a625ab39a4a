//! How many bytes everything takes: the types that values, weights and buffers are stored in.

use crate::ir::{Attending, Buffer, Graph, Node, Op, ValueId, WIDEST_WHOLE, queries_of_piece, score_row};
use crate::tensor::{DType, Shape};

/// The types of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Every number in this many bytes, as the CPU backend has it.
    Uniform(usize),
    /// A 16-bit type for activations and weights. Latents, epsilon, x0, momentum, gradients with respect to
    /// latents, scores and log-sum-exps are f32, and so are the weights of one extent (biases, scales and
    /// shifts of norms), which kernels read as f32.
    Half(DType),
}

impl Storage {
    /// f32 for a run on the CPU, or what a device stores.
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::F16 | DType::BF16 => Self::Half(dtype),
            _ => Self::Uniform(dtype.bytes()),
        }
    }

    /// Bytes of one element of an activation.
    pub fn element_bytes(self) -> usize {
        match self {
            Self::Uniform(bytes) => bytes,
            Self::Half(dtype) => dtype.bytes(),
        }
    }

    /// Bytes of a value that is neither a weight nor a buffer.
    pub fn value_bytes(self, graph: &Graph, value: ValueId) -> usize {
        let node = graph.producer(value);
        let position = node.outputs.iter().position(|&output| output == value).unwrap_or(0);
        let bytes = match self {
            Self::Half(_) if is_single(&node.op, position) => DType::F32.bytes(),
            _ => self.element_bytes(),
        };
        graph.shape(value).count() * bytes
    }

    pub fn param_bytes(self, shape: &Shape) -> usize {
        let bytes = match self {
            Self::Half(_) if shape.len() == 1 => DType::F32.bytes(),
            _ => self.element_bytes(),
        };
        shape.count() * bytes
    }

    /// Bytes of every buffer. A 16-bit type is for those that some operation reads or writes as it does activations,
    /// and none in f32.
    pub fn buffer_bytes(self, graph: &Graph) -> Vec<usize> {
        let roots = graph.view_roots();
        let (mut single, mut half) = (vec![false; graph.buffers.len()], vec![false; graph.buffers.len()]);
        for id in graph.order() {
            let node = graph.node(id);
            let roots = node.inputs.iter().map(|input| roots[input.0 as usize]);
            for (i, (root, maker)) in roots.map(|root| (root, graph.producer(root))).enumerate() {
                let (buffer, is_single) = match (&maker.op, &node.op) {
                    (Op::Load { .. } | Op::Param { .. }, Op::Store { .. }) | (_, Op::Reshape) => continue,
                    (Op::Load { buffer, .. }, op) => (*buffer, reads_single(op, i)),
                    (op, Op::Store { buffer, .. }) => {
                        let position = maker.outputs.iter().position(|&output| output == root);
                        (*buffer, is_single(op, position.unwrap_or(0)))
                    }
                    _ => continue,
                };
                (if is_single { &mut single } else { &mut half })[buffer.0 as usize] = true;
            }
        }
        let bytes = |(i, buffer): (usize, &Buffer)| {
            let bytes = match (self, buffer.dtype) {
                (_, DType::I32) => DType::I32.bytes(),
                (Self::Uniform(bytes), _) => bytes,
                (Self::Half(dtype), _) if half[i] && !single[i] => dtype.bytes(),
                (Self::Half(_), _) => DType::F32.bytes(),
            };
            buffer.shape.count() * bytes
        };
        graph.buffers.iter().enumerate().map(bytes).collect()
    }

    /// Bytes of the arena that a node needs for itself while it runs. On the CPU scratch is the business of
    /// the operations (`cpu::scratch_bytes`) and not of the arena.
    pub fn workspace_bytes(self, graph: &Graph, node: &Node) -> usize {
        let Self::Half(_) = self else { return 0 };
        let (heads, backward) = match node.op {
            Op::Attention { heads, .. } => (heads, false),
            Op::AttentionBwd { heads, .. } => (heads, true),
            _ => return 0,
        };
        let Attending { n, t, u, c, .. } = Attending::inferred(&node.op, &graph.shapes(&node.inputs));
        let (single, half) = (DType::F32.bytes(), self.element_bytes());
        // rowsum(dO * O) and the largest slope, like the log-sum-exps.
        let sums = if backward { 2 * n * heads * t * single } else { 0 };
        if c / heads <= WIDEST_WHOLE {
            return sums;
        }
        // Scores and weights of a piece of one head, their slopes, and the gradients of its keys and values.
        let piece = queries_of_piece(t, u) * score_row(u) * (single + half);
        sums + if backward { 2 * piece + 2 * u * (c / heads) * single } else { piece }
    }
}

/// Whether result `position` of an operation is f32 whatever activations are stored in.
fn is_single(op: &Op, position: usize) -> bool {
    match op {
        Op::CfgX0 | Op::SldX0 | Op::DdimUnguide { .. } | Op::GuideEps { .. } => true,
        // The latents' gradient is one of the sampler's numbers, the rows' goes on through the UNet.
        Op::CfgX0Bwd { .. } => position == 0,
        Op::Attention { .. } => position == 1,
        // The embedding's gradient goes on through the vision tower.
        Op::ClipCosine { .. } => position != 3,
        _ => false,
    }
}

/// Whether operand `i` of an operation is read in f32 whatever activations are stored in: weights aside, the sampler's
/// numbers.
fn reads_single(op: &Op, i: usize) -> bool {
    match op {
        Op::TimestepEmbedding { .. } | Op::CfgX0Bwd { .. } => true,
        Op::CfgX0 => i == 0,
        Op::SldX0 => i != 1,
        Op::ClipCosine { .. } => i == 1,
        // The gradient is an activation.
        Op::DdimUnguide { .. } | Op::GuideEps { .. } => i < 4,
        _ => false,
    }
}
