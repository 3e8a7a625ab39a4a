//! Attention in all its forms: tiled by head width, general, in pieces; forward and backward.

use std::sync::Arc;

use unguide::ir::Op;
use unguide::launch::attention::{Backward, Form, Forward, Sizes, Tokens};
use unguide::launch::params::DevicePtr;
use unguide::launch::{Launch, Storage};
use unguide::plan::StepState;
use unguide::simt::Simt;
use unguide::tensor::{Shape, Tensor};

use super::{Output, Prepared, Proof, Wanted, put, rounded};
use crate::support::{Class, Random, Value, run};

pub fn proofs() -> Vec<Proof> {
    let all = trials().into_iter().flat_map(|trial| [false, true].map(|backward| (trial.clone(), backward)));
    // Of copies that nobody made there is no gradient.
    let all = all.filter(|(trial, backward)| !(*backward && trial.copies > 1));
    // The weight of a single key does not move: its gradient is nothing but rounding.
    let all = all.filter(|(trial, backward)| !(*backward && trial.sizes.u == 1));
    // Tiles of sm_90a are of one direction, which follows from their rows.
    let all = all.filter(|(trial, backward)| match trial.form {
        Some(Form::Hopper { keys, .. }) => *backward == (keys == GRADIENT),
        _ => true,
    });
    let proof = |(trial, backward): (Trial, bool)| {
        let direction = if backward { "AttentionBwd" } else { "Attention" };
        let name = format!("{direction} {}", trial.name());
        let (small, trial) = (trial.small, Arc::new(trial));
        let same = Arc::clone(&trial);
        let prepare = move |simt: &mut Simt, storage| trial.prepare(simt, storage, backward);
        Proof::new(name, small, prepare, move |storage| same.wanted(storage, backward))
    };
    all.map(proof).collect()
}

/// What forms are chosen for.
pub const TARGET: &str = "sm_80";
/// Rows of a tile of a gradient on sm_90a.
const GRADIENT: usize = 64;

/// One attention with its operands, and how it is computed.
#[derive(Clone, Debug)]
pub struct Trial {
    pub sizes: Sizes,
    /// The form that is chosen where there is none.
    pub form: Option<Form>,
    pub fill: Fill,
    /// Tensors that q, k and v are in, and their gradients: 3, or 2 with k and v in one, or 1.
    pub tensors: usize,
    /// How often the images of q repeat themselves; they are there once.
    pub copies: usize,
    /// Of the gradients dq alone is wanted.
    pub dq_alone: bool,
    pub small: bool,
}

/// What stands in the operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    Plain,
    /// Scores of some hundred.
    Steep,
    /// All keys are the same: weights are equal.
    EqualKeys,
    /// One key takes nearly everything.
    OneKey,
    /// Gradients of that size, and keys so large that those of queries show every digit of them.
    Gradients(f32),
    /// The same of queries, and of those of keys.
    KeyGradients(f32),
}

/// Images, queries, keys, heads, head width.
pub fn trial([n, t, u, heads, d]: [usize; 5]) -> Trial {
    let sizes = Sizes { n, t, u, heads, d, causal: false };
    Trial { sizes, form: None, fill: Fill::Plain, tensors: 3, copies: 1, dq_alone: false, small: false }
}

impl Trial {
    pub fn causal(mut self) -> Self {
        self.sizes.causal = true;
        self
    }

    fn small(self) -> Self {
        Self { small: true, ..self }
    }

    /// q, k and v are one tensor.
    pub fn fused(self) -> Self {
        Self { tensors: 1, ..self }
    }

    /// k and v are one tensor.
    fn paired(self) -> Self {
        Self { tensors: 2, ..self }
    }

    fn copied(self, copies: usize) -> Self {
        Self { copies, ..self }
    }

    fn dq_alone(self) -> Self {
        Self { dq_alone: true, ..self }
    }

    fn of(self, fill: Fill) -> Self {
        Self { fill, ..self }
    }

    pub fn by(self, form: Form) -> Self {
        Self { form: Some(form), ..self }
    }

    fn name(&self) -> String {
        let Sizes { n, t, u, heads, d, causal } = self.sizes;
        let causal = if causal { " causal" } else { "" };
        let fused = ["", " fused", " paired", ""][self.tensors];
        let alone = if self.dq_alone { " dq alone" } else { "" };
        let form = self.form.map_or(String::new(), |form| format!(" {form:?}"));
        let copied = if self.copies > 1 { format!(" copied {}", self.copies) } else { String::new() };
        format!("[{n}, {t}, {u}, {heads}, {d}]{causal}{fused}{copied}{alone} {:?}{form}", self.fill)
    }

    fn width(&self) -> usize {
        self.sizes.heads * self.sizes.d
    }

    /// q, k, v and do.
    fn operands(&self) -> [Value<f32>; 4] {
        let (Sizes { n, t, u, d, .. }, c) = (self.sizes, self.width());
        let mut random = Random::named(&self.name());
        let mut normals = |rows: usize, spread: f64| {
            Value::Real(Tensor::new(Shape::from([n, rows, c]), random.normals(n * rows * c, 0.0, spread)))
        };
        let (queries, keys, gradients) = match self.fill {
            Fill::Steep => (12.0, 12.0, 1.0),
            Fill::Gradients(size) => (1.0 / 64.0, 64.0, f64::from(size)),
            Fill::KeyGradients(size) => (64.0, 1.0 / 64.0, f64::from(size)),
            _ => (1.0, 1.0, 1.0),
        };
        let mut operands = [normals(t, queries), normals(u, keys), normals(u, 1.0), normals(t, gradients)];
        if let Value::Real(q) = &mut operands[0] {
            let images = q.data().len() / self.copies;
            let first = q.data()[..images].to_vec();
            q.data_mut().chunks_mut(images).for_each(|copy| copy.copy_from_slice(&first));
        }
        if let Value::Real(k) = &mut operands[1] {
            let k = k.data_mut();
            match self.fill {
                Fill::EqualKeys => (c..k.len()).for_each(|i| k[i] = k[i - c]),
                Fill::OneKey => {
                    let key = u / 2 * c;
                    k[key..key + c].iter_mut().for_each(|x| *x *= 3.0 * (d as f32).sqrt());
                }
                _ => {}
            }
        }
        operands
    }

    /// The operands as the kernel sees them.
    fn stored(&self, storage: Storage) -> [Value<f32>; 4] {
        self.operands().map(|x| rounded(&x, storage))
    }

    fn op(&self, backward: bool) -> Op {
        let Sizes { heads, causal, .. } = self.sizes;
        match backward {
            true => Op::AttentionBwd { heads, causal, of_keys: !self.dq_alone },
            false => Op::Attention { heads, causal },
        }
    }

    /// o and lse on the CPU.
    fn attended(&self, operands: &[Value<f32>]) -> [Tensor<f32>; 2] {
        let results = run(&self.op(false), operands, &StepState::default());
        results.try_into().expect("attention has two results")
    }

    /// What the gradient is computed from: o as it is stored.
    fn saved(&self, storage: Storage) -> [Value<f32>; 6] {
        let [q, k, v, d_o] = self.stored(storage);
        let [o, lse] = self.attended(&[q.clone(), k.clone(), v.clone()]);
        [rounded(&Value::Real(o), storage), Value::Real(lse), d_o, q, k, v]
    }

    fn wanted(&self, storage: Storage, backward: bool) -> Vec<Wanted> {
        let Sizes { t, u, d, .. } = self.sizes;
        let class = Class::Contracted(u.max(t).max(d));
        let (rounded, exact) = if backward {
            let [q, k, v, d_o] = self.operands();
            let [o, lse] = self.attended(&[q.clone(), k.clone(), v.clone()]);
            let exact = [Value::Real(o), Value::Real(lse), d_o, q, k, v];
            let gradients = |operands: &[Value<f32>]| run(&self.op(true), operands, &StepState::default());
            (gradients(&self.saved(storage)), gradients(&exact))
        } else {
            let (stored, exact) = (self.stored(storage), self.operands());
            (self.attended(&stored[..3]).to_vec(), self.attended(&exact[..3]).to_vec())
        };
        let (rounded, exact) = match backward && !self.dq_alone {
            true => (self.joined(&rounded), self.joined(&exact)),
            false => (rounded, exact),
        };
        rounded.into_iter().zip(exact).map(|(rounded, exact)| Wanted::new(rounded, exact, class)).collect()
    }

    /// q, k and v, or what is like them, in as many tensors as there are to be.
    fn joined(&self, three: &[Tensor<f32>]) -> Vec<Tensor<f32>> {
        match self.tensors {
            1 => vec![self.side_by_side(three)],
            2 => vec![three[0].clone(), self.side_by_side(&three[1..])],
            _ => three.to_vec(),
        }
    }

    /// Tensors `[n, t, c]` as one, `[n, t, c and c ..]`.
    fn side_by_side(&self, tensors: &[Tensor<f32>]) -> Tensor<f32> {
        let (shape, c) = (tensors[0].shape(), self.width());
        let rows =
            (0..shape.rows()).flat_map(|row| tensors.iter().flat_map(move |x| &x.data()[row * c..][..c]));
        Tensor::new(shape.with_last(tensors.len() * c), rows.copied().collect())
    }

    /// Where q, k and v are in the tensors at those places.
    fn three(&self, tensors: &[DevicePtr]) -> [Tokens; 3] {
        let c = self.width();
        let places = match self.tensors {
            1 => [(0, 0, 3), (0, 1, 3), (0, 2, 3)],
            2 => [(0, 0, 1), (1, 0, 2), (1, 1, 2)],
            _ => [(0, 0, 1), (1, 0, 1), (2, 0, 1)],
        };
        places.map(|(tensor, part, parts)| Tokens {
            at: DevicePtr(tensors[tensor].0 + (2 * part * c) as u64),
            row: parts * c,
        })
    }

    /// q, k and v on the device.
    fn put_inputs(&self, simt: &mut Simt, operands: &[Value<f32>], storage: Storage) -> [Tokens; 3] {
        let mut three: Vec<_> = operands.iter().map(|x| x.real().clone()).collect();
        if self.copies > 1 {
            let (shape, images) = (three[0].shape().clone(), self.sizes.n / self.copies);
            let one = three[0].data()[..shape.count() / self.copies].to_vec();
            three[0] = Tensor::new(shape.with_first(images), one);
        }
        let put = |x: Tensor<f32>| put(simt, &Value::Real(x), Some(storage));
        self.three(&self.joined(&three).into_iter().map(put).collect::<Vec<_>>())
    }

    /// Results of those widths for so many tokens an image.
    fn outputs(&self, simt: &mut Simt, shapes: &[[usize; 2]], storage: Storage) -> Vec<Output> {
        let output = |&[tokens, c]: &[usize; 2]| {
            Output::new(simt, &Shape::from([self.sizes.n, tokens, c]), Some(storage))
        };
        shapes.iter().map(output).collect()
    }

    pub fn prepare(&self, simt: &mut Simt, storage: Storage, backward: bool) -> Prepared {
        if backward { self.prepare_backward(simt, storage) } else { self.prepare_forward(simt, storage) }
    }

    fn prepare_forward(&self, simt: &mut Simt, storage: Storage) -> Prepared {
        let Sizes { n, t, heads, .. } = self.sizes;
        let [q, k, v] = self.put_inputs(simt, &self.stored(storage)[..3], storage);
        let mut outputs = self.outputs(simt, &[[t, self.width()]], storage);
        let o = Tokens { at: outputs[0].at, row: self.width() };
        let lse = Output::new(simt, &Shape::from([n, heads, t]), None);
        let q_images = if self.copies > 1 { n / self.copies } else { 0 };
        let forward = Forward { sizes: self.sizes, q_images, q, k, v, o, lse: lse.at };
        let form = self.form.unwrap_or(forward.choose(TARGET).form);
        let workspace = simt.alloc(forward.workspace(form));
        let launches = forward.launches(form, storage, workspace).expect("a trial is legal");
        outputs.push(lse);
        Prepared { launches, outputs, ..Prepared::default() }
    }

    fn prepare_backward(&self, simt: &mut Simt, storage: Storage) -> Prepared {
        let Sizes { t, u, .. } = self.sizes;
        let saved = self.saved(storage);
        let [q, k, v] = self.put_inputs(simt, &saved[3..], storage);
        let row = self.width();
        let [o, d_o] = [0, 2].map(|i| Tokens { at: put(simt, &saved[i], Some(storage)), row });
        let lse = put(simt, &saved[1], None);
        let shapes: &[[usize; 2]] = match self.tensors {
            1 => &[[t, 3 * row]],
            2 => &[[t, row], [u, 2 * row]],
            _ => &[[t, row], [u, row], [u, row]],
        };
        let mut outputs = self.outputs(simt, shapes, storage);
        let [dq, dk, dv] = self.three(&outputs.iter().map(|output| output.at).collect::<Vec<_>>());
        if self.dq_alone {
            outputs.truncate(1);
        }
        let of_keys = (!self.dq_alone).then_some((dk, dv));
        let backward = Backward { sizes: self.sizes, q, k, v, o, d_o, lse, dq, of_keys };
        let form = self.form.unwrap_or(backward.choose(TARGET).form);
        let workspace = simt.alloc(backward.workspace(form));
        let launches: Vec<Launch> = backward.launches(form, storage, workspace).expect("a trial is legal");
        Prepared { launches, outputs, ..Prepared::default() }
    }
}

fn trials() -> Vec<Trial> {
    let pieces = |queries, tiled| Form::Pieces { queries, tiled };
    let hopper = |keys, blocks| Form::Hopper { keys, blocks };
    vec![
        // -- tiled: edges of tiles of queries and of keys --------------------------------------------------
        trial([1, 7, 77, 2, 40]).small(),
        trial([2, 9, 77, 2, 40]).paired().small(),
        trial([2, 65, 65, 1, 40]).causal().fused().small(),
        trial([1, 1, 1, 1, 64]).small(),
        trial([1, 1, 2, 1, 64]).small(),
        trial([1, 33, 77, 1, 80]).dq_alone().small(),
        trial([1, 77, 77, 1, 64]).causal().small(),
        trial([1, 50, 129, 1, 64]).small(),
        trial([1, 64, 63, 1, 80]).causal().small(),
        trial([1, 33, 33, 2, 80]).fused().small(),
        trial([2, 7, 65, 2, 64]).paired().small(),
        trial([2, 33, 65, 1, 80]).paired().small(),
        trial([1, 65, 50, 1, 160]).paired().small(),
        trial([1, 33, 33, 2, 160]).causal().fused().small(),
        trial([1, 129, 257, 1, 40]).causal(),
        trial([1, 257, 129, 2, 40]),
        trial([1, 257, 257, 1, 64]).fused(),
        trial([1, 197, 197, 2, 64]).causal(),
        trial([2, 129, 197, 1, 80]),
        trial([1, 197, 63, 1, 80]).causal(),
        trial([1, 129, 129, 1, 160]),
        trial([1, 64, 257, 1, 160]).causal(),
        // -- tiled: copies of queries, in every form ---------------------------------------------------------
        trial([4, 7, 33, 1, 40]).paired().copied(2).small(),
        trial([3, 33, 20, 1, 80]).copied(3).small(),
        trial([4, 5, 9, 2, 33]).copied(2).small(),
        trial([4, 70, 77, 1, 40]).paired().copied(2).by(hopper(80, 3)).small(),
        trial([2, 33, 65, 1, 160]).copied(2).by(hopper(80, 1)).small(),
        trial([2, 9, 21, 1, 168]).copied(2).by(pieces(8, true)).small(),
        // -- tiled: what is hard ---------------------------------------------------------------------------
        trial([1, 65, 130, 1, 40]).of(Fill::Steep),
        trial([1, 65, 130, 1, 80]).of(Fill::Steep).causal(),
        trial([1, 65, 257, 1, 64]).of(Fill::EqualKeys),
        trial([1, 65, 130, 1, 160]).of(Fill::OneKey),
        trial([1, 17, 130, 1, 40]).of(Fill::Gradients(1e-5)).small(),
        trial([1, 40, 4096, 1, 40]).of(Fill::Gradients(1e-5)),
        trial([1, 20, 9216, 1, 64]),
        trial([1, 65, 257, 1, 64]).of(Fill::Gradients(1e-4)),
        trial([1, 197, 130, 1, 40]).of(Fill::Gradients(3e-6)),
        trial([1, 65, 130, 1, 160]).of(Fill::Gradients(300.0)),
        // -- sm_90a: edges of slabs of queries and of tiles of keys, more slabs than blocks ----------------------
        trial([1, 7, 77, 2, 40]).paired().by(hopper(80, 1)).small(),
        trial([2, 130, 77, 2, 40]).by(hopper(80, 3)).small(),
        trial([1, 129, 129, 2, 40]).fused().by(hopper(128, 1)).small(),
        trial([1, 1, 1, 1, 64]).by(hopper(80, 1)).small(),
        trial([1, 70, 390, 1, 64]).by(hopper(128, 1)).small(),
        trial([1, 65, 241, 1, 64]).by(hopper(80, 1)).small(),
        trial([1, 33, 80, 1, 80]).by(hopper(80, 1)).small(),
        trial([2, 65, 128, 1, 80]).paired().by(hopper(128, 2)).small(),
        trial([1, 130, 257, 1, 160]).by(hopper(128, 1)).small(),
        trial([1, 65, 150, 2, 160]).paired().by(hopper(80, 1)).small(),
        trial([1, 130, 600, 1, 40]).of(Fill::Steep).by(hopper(128, 2)),
        trial([1, 65, 300, 1, 80]).of(Fill::Steep).by(hopper(80, 1)),
        trial([1, 65, 257, 1, 64]).of(Fill::EqualKeys).by(hopper(128, 1)),
        trial([1, 65, 257, 1, 40]).of(Fill::EqualKeys).by(hopper(80, 1)),
        trial([1, 65, 300, 1, 160]).of(Fill::OneKey).by(hopper(128, 1)),
        trial([1, 40, 4096, 1, 40]).by(hopper(128, 1)),
        trial([1, 20, 9216, 1, 64]).by(hopper(128, 1)),
        trial([1, 256, 77, 8, 160]).by(hopper(80, 5)),
        trial([1, 197, 197, 12, 64]).fused().by(hopper(128, 7)),
        trial([1, 7, 70, 1, 64]).by(hopper(GRADIENT, 1)).small(),
        trial([2, 65, 50, 2, 64]).paired().by(hopper(GRADIENT, 3)).small(),
        trial([1, 129, 129, 1, 64]).fused().by(hopper(GRADIENT, 1)).small(),
        trial([1, 33, 77, 2, 64]).dq_alone().by(hopper(GRADIENT, 1)).small(),
        trial([1, 17, 130, 1, 64]).of(Fill::Gradients(1e-5)).by(hopper(GRADIENT, 1)).small(),
        trial([1, 17, 130, 1, 64]).of(Fill::KeyGradients(1e-5)).by(hopper(GRADIENT, 1)).small(),
        trial([1, 197, 130, 1, 64]).of(Fill::Gradients(300.0)).by(hopper(GRADIENT, 2)),
        trial([1, 65, 257, 1, 64]).of(Fill::EqualKeys).by(hopper(GRADIENT, 1)),
        trial([1, 197, 197, 12, 64]).fused().by(hopper(GRADIENT, 9)),
        // -- general: odd widths, and one that is not aligned ----------------------------------------------
        trial([1, 9, 35, 2, 33]).paired().small(),
        trial([2, 34, 7, 1, 33]).causal().small(),
        trial([1, 5, 6, 1, 255]),
        trial([1, 9, 6, 1, 8]).dq_alone(),
        // -- in pieces -------------------------------------------------------------------------------------
        trial([1, 70, 77, 1, 512]).by(pieces(32, true)),
        trial([1, 35, 35, 1, 512]).fused().by(pieces(16, true)),
        trial([1, 129, 140, 1, 512]).of(Fill::Gradients(1e-4)).by(pieces(128, true)),
        trial([2, 37, 37, 2, 168]).causal().fused().by(pieces(16, true)),
        trial([1, 9, 21, 1, 168]).by(pieces(8, true)).small(),
        trial([1, 9, 11, 2, 257]).causal().by(pieces(4, false)).small(),
        trial([1, 40, 35, 1, 512]).by(pieces(40, false)),
        trial([1, 9, 35, 1, 512]).dq_alone(),
    ]
}
