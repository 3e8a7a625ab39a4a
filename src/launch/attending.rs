//! Attention on the operands and results of an operation: q, k and v, and their gradients, may lie side by side.

use super::Operand;
use super::attention::{Backward, Forward, Sizes, Tokens, elements};
use super::params::DevicePtr;
use crate::ir::{Attending, Op};
use crate::tensor::Shape;

/// What the shapes of operands say.
struct Given {
    attending: Attending,
    sizes: Sizes,
}

impl Given {
    fn new(op: &Op, heads: usize, causal: bool, inputs: &[Operand]) -> Self {
        let shapes: Vec<&Shape> = inputs.iter().map(|input| &input.shape).collect();
        let attending = Attending::inferred(op, &shapes);
        let Attending { n, t, u, c, .. } = attending;
        Self { attending, sizes: Sizes { n, t, u, heads, d: c / heads, causal } }
    }

    /// Where q, k and v, or their gradients, are in `tensors`.
    fn three(&self, tensors: &[Operand]) -> [Tokens; 3] {
        self.attending.at.map(|(tensor, channel)| {
            let at = elements(tensors[tensor].at, channel, 2);
            Tokens { at, row: self.attending.row(tensor) }
        })
    }

    /// A tensor of as many channels as the queries have.
    fn queries(&self, at: DevicePtr) -> Tokens {
        Tokens { at, row: self.attending.c }
    }
}

impl Forward {
    /// Of an [`Op::Attention`] with these operands and results.
    pub(super) fn of(op: &Op, heads: usize, causal: bool, inputs: &[Operand], outputs: &[Operand]) -> Self {
        let given = Given::new(op, heads, causal, inputs);
        let [q, k, v] = given.three(inputs);
        Self { sizes: given.sizes, q, k, v, o: given.queries(outputs[0].at), lse: outputs[1].at }
    }
}

impl Backward {
    /// Of an [`Op::AttentionBwd`] with these operands and results.
    pub(super) fn of(op: &Op, heads: usize, causal: bool, inputs: &[Operand], outputs: &[Operand]) -> Self {
        let given = Given::new(op, heads, causal, inputs);
        let [q, k, v] = given.three(&inputs[given.attending.first..]);
        let [dq, dk, dv] = given.three(outputs);
        Self {
            sizes: given.sizes,
            q,
            k,
            v,
            o: given.queries(inputs[0].at),
            lse: inputs[1].at,
            d_o: given.queries(inputs[2].at),
            dq,
            of_keys: Some((dk, dv)),
        }
    }
}
