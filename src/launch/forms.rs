//! Which launches compute a node: the best form that its extents and alignment allow, else the general one.
//!
//! Forms differ in their kernels, in how many launches they take and in what they need besides their operands.

use super::attention::{self, Backward, Forward, Sizes, Tokens};
use super::device::MOST_BLOCKS;
use super::params::DevicePtr;
use super::{Launch, Operand, Storage, general};
use crate::error::Result;
use crate::ir::Op;

/// How one node is computed.
pub(super) enum Form {
    Attention(Forward, attention::Form),
    AttentionBwd(Backward, attention::Form),
    General,
}

impl Form {
    pub fn of(op: &Op, inputs: &[Operand], outputs: &[Operand]) -> Self {
        match *op {
            Op::Attention { heads, causal } => {
                let attention = forward(heads, causal, inputs, outputs);
                Self::Attention(attention, attention.choose().form)
            }
            Op::AttentionBwd { heads, causal } => {
                let gradient = backward(heads, causal, inputs, outputs);
                Self::AttentionBwd(gradient, gradient.choose().form)
            }
            _ => Self::General,
        }
    }

    /// Bytes that the launches write and read besides their operands.
    pub fn workspace(&self) -> usize {
        match self {
            Self::Attention(attention, form) => attention.workspace(*form),
            Self::AttentionBwd(gradient, form) => gradient.workspace(*form),
            Self::General => 0,
        }
    }

    /// In running order. `workspace` has as many bytes as [`Self::workspace`] says.
    pub fn launches(
        &self,
        op: &Op,
        storage: Storage,
        [state, workspace]: [DevicePtr; 2],
        inputs: &[Operand],
        outputs: &[Operand],
    ) -> Result<Vec<Launch>> {
        match self {
            Self::Attention(attention, form) => attention.launches(*form, storage, workspace),
            Self::AttentionBwd(gradient, form) => gradient.launches(*form, storage, workspace),
            Self::General => Ok(vec![general(op, storage, MOST_BLOCKS, state, inputs, outputs)?]),
        }
    }
}

fn sizes(heads: usize, causal: bool, q: &Operand, k: &Operand) -> Sizes {
    Sizes { n: q.shape[0], t: q.shape[1], u: k.shape[1], heads, d: q.shape.last() / heads, causal }
}

/// All of a tensor's channels, row after row.
fn tokens(operand: &Operand) -> Tokens {
    Tokens { at: operand.at, row: operand.shape.last() }
}

fn forward(heads: usize, causal: bool, inputs: &[Operand], outputs: &[Operand]) -> Forward {
    Forward {
        sizes: sizes(heads, causal, &inputs[0], &inputs[1]),
        q: tokens(&inputs[0]),
        k: tokens(&inputs[1]),
        v: tokens(&inputs[2]),
        o: tokens(&outputs[0]),
        lse: outputs[1].at,
    }
}

fn backward(heads: usize, causal: bool, inputs: &[Operand], outputs: &[Operand]) -> Backward {
    Backward {
        sizes: sizes(heads, causal, &inputs[0], &inputs[1]),
        q: tokens(&inputs[0]),
        k: tokens(&inputs[1]),
        v: tokens(&inputs[2]),
        o: tokens(&inputs[3]),
        lse: inputs[4].at,
        d_o: tokens(&inputs[5]),
        dq: tokens(&outputs[0]),
        of_keys: Some((tokens(&outputs[1]), tokens(&outputs[2]))),
    }
}
