//! The programs whose launches are looked at: all that guided generations with a model run, and one of odd sizes.

use crate::error::Result;
use crate::ir::{Activation, Builder, Graph, Op, Reduce, Row, ValueId};
use crate::passes;
use crate::pipeline::Blueprint;
use crate::pipeline::programs::{Steering, decode, encode_text};
use crate::tensor::DType;

/// The text tower; steps whose gradient goes to x0, through the UNet, around it, and of Safe Latent Diffusion; the last
/// decoding.
pub fn of_model(blueprint: &Blueprint, batch: usize) -> Result<Vec<Graph>> {
    let step = |steering| blueprint.step(&blueprint.step_spec(steering, blueprint.size, batch));
    let factor = blueprint.decoder.factor();
    let (width, height) = blueprint.size;
    Ok(vec![
        passes::run_all(encode_text(&blueprint.text, blueprint.text.positions)?)?,
        step(Steering::X0(blueprint.guard()?))?,
        step(Steering::Xt { guard: blueprint.guard()?, frozen: false })?,
        step(Steering::Xt { guard: blueprint.guard()?, frozen: true })?,
        step(Steering::Sld)?,
        passes::run_all(decode(&blueprint.decoder, height / factor, width / factor)?)?,
    ])
}

/// Sizes that no tuned form takes, and operations that the published models do without: what is left to the general
/// forms, and kernels that no other program launches.
pub fn odd() -> Result<Graph> {
    use Activation::{Gelu, QuickGelu, Relu, Silu, Tanh};
    let mut odd = Odd { builder: Builder::new(), buffers: 0 };
    odd.one(Op::Linear, &[&[3, 7, 33], &[40, 33], &[40]])?;
    odd.one(Op::LinearBwd, &[&[3, 7, 40], &[40, 33]])?;
    let (stride, padding) = (1, crate::ir::Padding::all(1));
    odd.one(Op::Conv2d { stride, padding }, &[&[2, 9, 13, 7], &[33, 3, 3, 7], &[33]])?;
    let backward = Op::Conv2dBwd { stride, padding, height: 9, width: 13 };
    odd.one(backward, &[&[2, 9, 13, 33], &[33, 3, 3, 7]])?;
    odd.one(Op::LayerNorm { eps: 1e-5 }, &[&[5, 33], &[33], &[33]])?;
    odd.one(Op::LayerNormBwd { eps: 1e-5 }, &[&[5, 33], &[33], &[5, 33]])?;
    for act in [None, Some(Silu)] {
        odd.one(Op::GroupNorm { groups: 3, eps: 1e-5, act }, &[&[2, 9, 13, 33], &[33], &[33]])?;
        let operands: [&[usize]; 4] = [&[2, 9, 13, 33], &[33], &[33], &[2, 9, 13, 33]];
        odd.one(Op::GroupNormBwd { groups: 3, eps: 1e-5, act }, &operands)?;
    }
    odd.one(Op::Concat, &[&[2, 5, 7], &[2, 5, 6]])?;
    odd.one(Op::Add, &[&[3, 33], &[3, 33]])?;
    odd.one(Op::Add, &[&[4, 64], &[4, 64]])?;
    // Without a product in front of them.
    for c in [33, 64] {
        odd.one(Op::AddChannels, &[&[2, 5, 7, c], &[2, c]])?;
    }
    odd.one(Op::Upsample { height: 9, width: 14 }, &[&[2, 5, 7, 33]])?;
    odd.one(Op::UpsampleBwd { height: 5, width: 7 }, &[&[2, 9, 14, 33]])?;
    odd.one(Op::Affine { mul: 1.7, add: -0.3 }, &[&[3, 33]])?;
    for act in [Silu, Gelu, QuickGelu, Relu, Tanh] {
        for shape in [[3, 33], [4, 64]] {
            odd.one(Op::Activate(act), &[&shape])?;
            odd.one(Op::ActivateBwd(act), &[&shape, &shape])?;
        }
    }
    for c in [33, 64] {
        odd.one(Op::Geglu, &[&[5, 2 * c]])?;
        odd.one(Op::GegluBwd, &[&[5, 2 * c], &[5, c]])?;
    }
    // A head too wide for the kernels that take it whole, with rows that no tile takes; and one that is only odd.
    odd.attention([1, 9, 11], 1, 259)?;
    odd.attention([2, 33, 77], 3, 12)?;
    odd.one(Op::Normalise, &[&[3, 33]])?;
    odd.gather([2, 7, 33])?;
    let cosine = Op::ClipCosine { reduce: Reduce::SumLog, top_k: Some(2), scale_log2: 12 };
    odd.one(cosine, &[&[2, 40], &[3, 40]])?;
    Ok(odd.builder.finish())
}

struct Odd {
    builder: Builder,
    buffers: usize,
}

impl Odd {
    fn operand(&mut self, shape: &[usize], dtype: DType) -> Result<ValueId> {
        self.buffers += 1;
        let buffer = self.builder.buffer(&format!("buffer{}", self.buffers), shape, dtype);
        self.builder.load(buffer, Row::All)
    }

    fn keep(&mut self, values: &[ValueId]) -> Result<()> {
        for &value in values {
            self.buffers += 1;
            let shape = self.builder.shape(value).clone();
            let buffer = self.builder.buffer(&format!("buffer{}", self.buffers), shape, DType::F32);
            self.builder.store(value, buffer, Row::All)?;
        }
        Ok(())
    }

    fn one(&mut self, op: Op, shapes: &[&[usize]]) -> Result<()> {
        let inputs: Vec<ValueId> =
            shapes.iter().map(|shape| self.operand(shape, DType::F32)).collect::<Result<_>>()?;
        let outputs = self.builder.push_many(&format!("odd.{}", op.name()), op, &inputs)?;
        self.keep(&outputs)
    }

    /// Forward and backward, of `[images, queries, keys]`.
    fn attention(&mut self, [n, t, u]: [usize; 3], heads: usize, width: usize) -> Result<()> {
        let c = heads * width;
        let shapes = [[n, t, c], [n, u, c], [n, u, c]];
        let inputs: Vec<ValueId> =
            shapes.iter().map(|shape| self.operand(shape, DType::F32)).collect::<Result<_>>()?;
        let causal = false;
        let outputs = self.builder.push_many("odd.attention", Op::Attention { heads, causal }, &inputs)?;
        let d_o = self.operand(&[n, t, c], DType::F32)?;
        let inputs = [&outputs[..], &[d_o], &inputs].concat();
        let op = Op::AttentionBwd { heads, causal, of_keys: true };
        let gradients = self.builder.push_many("odd.attention.grad", op, &inputs)?;
        self.keep(&outputs)?;
        self.keep(&gradients)
    }

    fn gather(&mut self, [n, t, d]: [usize; 3]) -> Result<()> {
        let inputs = [self.operand(&[n, t, d], DType::F32)?, self.operand(&[n], DType::I32)?];
        let outputs = self.builder.push_many("odd.gather", Op::GatherToken, &inputs)?;
        self.keep(&outputs)
    }
}
