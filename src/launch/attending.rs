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

    /// Where q, k and v, or those gradients of them that there are, lie in `tensors`.
    fn three(&self, tensors: &[Operand]) -> [Option<Tokens>; 3] {
        self.attending.at.map(|(tensor, channel)| {
            let at = elements(tensors.get(tensor)?.at, channel, 2);
            Some(Tokens { at, row: self.attending.row(tensor) })
        })
    }

    /// Where q, k and v are in operands.
    fn all(&self, tensors: &[Operand]) -> [Tokens; 3] {
        self.three(tensors).map(|tokens| tokens.expect("shapes of these operands were asked"))
    }

    /// A tensor of as many channels as the queries have.
    fn queries(&self, at: DevicePtr) -> Tokens {
        Tokens { at, row: self.attending.c }
    }
}

impl Forward {
    /// Of an [`Op::Attention`] with these operands and results.
    pub(super) fn of(op: &Op, heads: usize, causal: bool, inputs: &[Operand], outputs: &[Operand]) -> Self {
        // Of queries there may be fewer images than of keys: copies that nobody made.
        let (n, mut alike) = (outputs[0].shape[0], inputs.to_vec());
        let q_images = inputs[0].shape[0];
        alike[0].shape = inputs[0].shape.with_first(n);
        let given = Given::new(op, heads, causal, &alike);
        let [q, k, v] = given.all(inputs);
        let (o, lse) = (given.queries(outputs[0].at), outputs[1].at);
        Self { sizes: given.sizes, q_images: if q_images < n { q_images } else { 0 }, q, k, v, o, lse }
    }
}

impl Backward {
    /// Of an [`Op::AttentionBwd`] with these operands and results.
    pub(super) fn of(op: &Op, heads: usize, causal: bool, inputs: &[Operand], outputs: &[Operand]) -> Self {
        let given = Given::new(op, heads, causal, inputs);
        let [q, k, v] = given.all(&inputs[given.attending.first..]);
        let [dq, dk, dv] = given.three(outputs);
        Self {
            sizes: given.sizes,
            q,
            k,
            v,
            o: given.queries(inputs[0].at),
            lse: inputs[1].at,
            d_o: given.queries(inputs[2].at),
            dq: dq.expect("the first result is that of queries"),
            of_keys: dk.zip(dv),
        }
    }
}
