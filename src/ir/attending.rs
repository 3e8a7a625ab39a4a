//! How attention is handed queries, keys and values.
//!
//! One linear layer may make several of them, side by side in the channels of one tensor: all three from the pixels
//! of an image, keys and values from a text. Attention reads them where they lie, and its gradient is written
//! likewise, so that it flows back through that one layer.

use super::op::Op;
use crate::tensor::Shape;

/// The widest head whose sums a kernel holds in registers. Wider ones are composed of products of matrices, a piece of
/// the queries at a time, whose scores are in memory.
pub const WIDEST_WHOLE: usize = 160;

/// Queries of a piece, at most: products with values of 512 channels are then 132 tiles of 128 x 128, one for every
/// multiprocessor of the largest devices. Fewer where scores would be more than [`MOST_SCORES`].
const QUERIES: usize = 33 * 128;
/// Scores of a piece, at most. What a piece has in memory is 6 bytes a score, and 12 in the gradient: half a gigabyte,
/// where the tensors of the decoder's last level take as much.
const MOST_SCORES: usize = 40 << 20;

/// Queries of a piece, of `t` in all that look at `u` keys: the business of one image's shape alone.
pub fn queries_of_piece(t: usize, u: usize) -> usize {
    (MOST_SCORES / score_row(u) / 128 * 128).clamp(128, QUERIES).min(t)
}

/// Elements of a row of scores in memory.
pub fn score_row(u: usize) -> usize {
    u.next_multiple_of(8).max(8)
}

/// Extents of an attention, and where its operands lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attending {
    pub n: usize,
    /// Queries.
    pub t: usize,
    /// Keys and values.
    pub u: usize,
    /// Channels of each of them.
    pub c: usize,
    /// The operand of the operation that holds the queries; keys and values are in it or behind it. The gradient
    /// of operand `first + i` is result `i`, if there is that result.
    pub first: usize,
    /// Of q, k and v: in which operand, counted from `first`, and from which of its channels on.
    pub at: [(usize, usize); 3],
}

impl Attending {
    /// Of an [`Op::Attention`] or [`Op::AttentionBwd`] with operands of these shapes. The error says what was
    /// expected and what was found.
    pub fn of(op: &Op, inputs: &[&Shape]) -> Result<Self, String> {
        let (first, heads) = match op {
            Op::Attention { heads, .. } => (0, *heads),
            Op::AttentionBwd { heads, .. } => (3, *heads),
            _ => return Err(format!("`{}` does not attend", op.name())),
        };
        let sequence = |shape: &Shape| -> Result<[usize; 3], String> {
            shape[..].try_into().map_err(|_| format!("expected 3 extents, found {shape}"))
        };
        let given = inputs.get(first..).unwrap_or_default();
        let queries = given.first().ok_or("expected queries, keys and values")?;
        let [n, t, width] = sequence(queries)?;
        let (c, u, at) = match given {
            [_] => (width / 3, t, [0, 1, 2].map(|i| (0, i * (width / 3)))),
            [_, keys] => (width, sequence(keys)?[1], [(0, 0), (1, 0), (1, width)]),
            [_, keys, _] => (width, sequence(keys)?[1], [(0, 0), (1, 0), (2, 0)]),
            _ => {
                return Err(format!(
                    "expected queries, keys and values in 1 to 3 operands, found {}",
                    given.len()
                ));
            }
        };
        let attending = Self { n, t, u, c, first, at };
        for (i, &found) in given.iter().enumerate() {
            let expected = Shape::from([n, if i == 0 { t } else { u }, attending.row(i)]);
            if *found != expected {
                return Err(format!("expected {expected}, found {found}"));
            }
        }
        if heads == 0 || !c.is_multiple_of(heads) {
            return Err(format!("{c} channels cannot be split into {heads} heads"));
        }
        Ok(attending)
    }

    /// The same of operands whose shapes the graph has inferred results from.
    pub fn inferred(op: &Op, inputs: &[&Shape]) -> Self {
        Self::of(op, inputs).expect("results were inferred from these shapes")
    }

    /// Channels of operand `first + operand`: the distance of its tokens.
    pub fn row(&self, operand: usize) -> usize {
        self.c * self.at.iter().filter(|&&(of, _)| of == operand).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(shapes: &[&[usize]]) -> Result<Attending, String> {
        let shapes: Vec<Shape> = shapes.iter().map(|&shape| shape.into()).collect();
        let shapes: Vec<&Shape> = shapes.iter().collect();
        Attending::of(&Op::Attention { heads: 2, causal: false }, &shapes)
    }

    #[test]
    fn operands_may_lie_apart_or_side_by_side() {
        let apart = of(&[&[2, 5, 8], &[2, 7, 8], &[2, 7, 8]]).expect("q, k, v");
        assert_eq!((apart.c, apart.u, apart.at), (8, 7, [(0, 0), (1, 0), (2, 0)]));
        let pair = of(&[&[2, 5, 8], &[2, 7, 16]]).expect("q, kv");
        assert_eq!((pair.c, pair.u, pair.at), (8, 7, [(0, 0), (1, 0), (1, 8)]));
        assert_eq!([pair.row(0), pair.row(1)], [8, 16]);
        let all = of(&[&[2, 5, 24]]).expect("qkv");
        assert_eq!((all.c, all.u, all.at, all.row(0)), (8, 5, [(0, 0), (0, 8), (0, 16)], 24));
    }

    #[test]
    fn operands_that_do_not_fit_are_refused_with_what_was_expected() {
        for (shapes, problem) in [
            (&[&[2, 5, 25][..]][..], "expected [2, 5, 24], found [2, 5, 25]"),
            (&[&[2, 5, 8], &[2, 7, 8]], "expected [2, 7, 16], found [2, 7, 8]"),
            (&[&[2, 5, 8], &[2, 7, 8], &[2, 6, 8]], "expected [2, 7, 8], found [2, 6, 8]"),
            (&[&[2, 5, 9]], "3 channels cannot be split into 2 heads"),
            (&[&[5, 8], &[5, 8], &[5, 8]], "expected 3 extents, found [5, 8]"),
            (&[], "expected queries, keys and values"),
        ] {
            assert_eq!(of(shapes), Err(problem.to_owned()));
        }
    }
}
