//! Norms in their tuned forms, on data that naive variances and large batches get wrong.

use std::sync::Arc;

use bytemuck::cast_slice;
use unguide::ir::{Activation, Op};
use unguide::launch::norms::{Backward, Form, Forward, GroupNorm, LayerForm, LayerNorm, Stats, TileStats};
use unguide::launch::norms::{choose, choose_layer};
use unguide::launch::params::DevicePtr;
use unguide::launch::{Launch, Storage};
use unguide::plan;
use unguide::simt::Simt;
use unguide::tensor::{Shape, Tensor};

use super::layout::{normals, proof, real};
use super::{Output, Prepared, Proof, Wanted, put, rounded};
use crate::support::{Class, Random, Value, run};

const EPS: f32 = 1e-5;

pub fn proofs() -> Vec<Proof> {
    let groups = Groups::all().into_iter().map(Arc::new);
    let groups = groups.flat_map(|groups| [groups.proof(false), groups.proof(true)]);
    groups.chain(layers()).collect()
}

/// What x is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Data {
    /// A large mean and a small spread: what naive variances lose all digits on.
    Around100,
    /// One number among others that are 10^4 times smaller.
    Outlier,
    /// Nothing but one number.
    Constant,
}

impl Data {
    fn draw(self, random: &mut Random, count: usize) -> Vec<f32> {
        match self {
            Self::Around100 => random.normals(count, 100.0, 1.0),
            Self::Outlier => {
                let mut data = random.normals(count, 0.0, 1.0);
                data[count / 3] = 2e4;
                data
            }
            Self::Constant => vec![100.3; count],
        }
    }
}

/// Where statistics come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Given {
    Nothing,
    /// Tiles of that many pixels, over all channels.
    Joint(usize),
    /// Tiles of so many pixels of the first tensor and of the second; 0: they are missing.
    Each([usize; 2]),
}

/// One group norm and its operands.
#[derive(Clone, Debug)]
pub struct Groups {
    pub n: usize,
    pub pixels: usize,
    pub c: [usize; 2],
    pub groups: usize,
    pub act: Option<Activation>,
    pub data: Data,
    pub given: Given,
    /// Pixels of a tile and channels of a slab; none where the choice is to be made.
    pub cut: Option<(usize, usize)>,
    /// Of dy.
    pub spread: f64,
    /// Whether the gradient is added to another, here dy.
    pub added: bool,
}

impl Groups {
    pub fn new(n: usize, pixels: usize, c: [usize; 2], groups: usize) -> Self {
        let (act, data, given) = (Some(Activation::Silu), Data::Around100, Given::Nothing);
        Self { n, pixels, c, groups, act, data, given, cut: None, spread: 1.0, added: false }
    }

    fn cut(self, rows: usize, slab: usize) -> Self {
        Self { cut: Some((rows, slab)), ..self }
    }

    fn all() -> Vec<Self> {
        let plain = Self::new;
        let straddling = plain(2, 117, [40, 24], 4).cut(32, 32);
        vec![
            // Groups of 16 channels, one of them across the boundary; tiles with a rest; two slabs.
            straddling.clone(),
            Self { data: Data::Outlier, act: None, ..straddling.clone() },
            Self { data: Data::Constant, ..straddling.clone() },
            Self { spread: 1e-6, ..straddling.clone() },
            Self { given: Given::Each([10, 0]), act: None, ..straddling.clone() },
            Self { given: Given::Each([10, 64]), ..straddling.clone() },
            Self { given: Given::Joint(117), ..straddling },
            // One pixel; a slab that is cut short; a row of vectors that does not divide the block.
            plain(2, 1, [16, 0], 2).cut(64, 16),
            plain(1, 33, [24, 24], 2).cut(64, 24),
            Self { added: true, ..plain(1, 65, [80, 0], 8).cut(64, 80) },
            Self { added: true, act: None, ..plain(2, 35, [40, 0], 10).cut(64, 32) },
            // More tiles than a block merges.
            Self { given: Given::Joint(1), ..plain(2, 131, [16, 0], 4).cut(64, 16) },
            // What has no tiled form.
            plain(2, 9, [5, 4], 3),
            Self { act: Some(Activation::Gelu), ..plain(1, 9, [16, 8], 3) },
            // True channels.
            plain(1, 144, [1280, 640], 32),
            plain(1, 289, [640, 320], 32),
            Self { act: None, data: Data::Outlier, ..plain(2, 819, [320, 0], 32) },
        ]
    }

    fn is_small(&self) -> bool {
        self.pixels * (self.c[0] + self.c[1]) < 9_000
    }

    pub fn problem(&self, storage: Storage) -> GroupNorm {
        let Self { n, pixels, c, groups, act, .. } = *self;
        GroupNorm { storage, n, measured: n, pixels, c, groups, eps: EPS, act }
    }

    fn form(&self, norm: &GroupNorm, stats: Stats) -> Form {
        self.cut.map_or_else(|| choose(norm, stats), |(rows, slab)| Form::Tiled { rows, slab })
    }

    /// x over all channels, gamma, beta and dy. An image is the same in every batch.
    fn operands(&self) -> [Value<f32>; 4] {
        let mut random = Random::named(&format!("{:?}", Self { n: 1, ..self.clone() }));
        let (c, count) = (self.c[0] + self.c[1], self.pixels * (self.c[0] + self.c[1]));
        let [gamma, beta] = [0, 1].map(|_| normals(&mut random, &[c], 1.0));
        let (mut x, mut dy) = (Vec::new(), Vec::new());
        for _ in 0..self.n {
            x.extend(self.data.draw(&mut random, count));
            dy.extend(random.normals(count, 0.0, self.spread));
        }
        let shape = [self.n, self.pixels, c];
        [real(&shape, x), gamma, beta, real(&shape, dy)]
    }

    /// The channels of one of the tensors.
    fn part(&self, x: &Value<f32>, which: usize) -> Value<f32> {
        let c = self.c[0] + self.c[1];
        let from = if which == 0 { 0 } else { self.c[0] };
        let rows = x.real().data().chunks(c);
        let data = rows.flat_map(|row| row[from..from + self.c[which]].to_vec()).collect();
        real(&[self.n, self.pixels, self.c[which]], data)
    }

    /// Statistics of tiles as somebody else would have left them.
    fn statistics(&self, simt: &mut Simt, x: &Value<f32>, storage: Storage, rows: usize) -> TileStats {
        let (c, x) = (x.shape().last(), rounded(x, storage));
        let mut stats: Vec<f32> = Vec::new();
        for image in x.real().data().chunks(self.pixels * c) {
            for tile in image.chunks(rows * c) {
                for channel in 0..c {
                    let values = || tile.iter().skip(channel).step_by(c).map(|&x| f64::from(x));
                    let mean = values().sum::<f64>() / values().count() as f64;
                    let m2: f64 = values().map(|x| (x - mean) * (x - mean)).sum();
                    stats.extend([mean as f32, m2 as f32]);
                }
            }
        }
        TileStats { at: simt.put(cast_slice(&stats)), rows }
    }

    fn proof(self: &Arc<Self>, backward: bool) -> Proof {
        let name = format!("group norm{} {self:?}", if backward { " backward" } else { "" });
        let (one, other) = (Arc::clone(self), Arc::clone(self));
        let prepare = move |simt: &mut Simt, storage| one.prepare(simt, storage, backward);
        Proof::new(name, self.is_small(), prepare, move |storage| other.wanted(storage, backward))
    }

    pub fn prepare(&self, simt: &mut Simt, storage: Storage, backward: bool) -> Prepared {
        let [x, gamma, beta, dy] = self.operands();
        let norm = self.problem(storage);
        let parts = [0, 1].map(|i| (self.c[i] > 0).then(|| self.part(&x, i)));
        let stats = match self.given {
            Given::Nothing => Stats::NONE,
            Given::Joint(rows) => Stats::Joint(self.statistics(simt, &x, storage, rows)),
            Given::Each(rows) => Stats::Each([0, 1].map(|i| {
                let part = parts[i].as_ref().filter(|_| rows[i] > 0);
                part.map(|part| self.statistics(simt, part, storage, rows[i]))
            })),
        };
        let form = self.form(&norm, stats);
        let at = |simt: &mut Simt, value: &Option<Value<f32>>| {
            value.as_ref().map_or(DevicePtr::NONE, |value| put(simt, value, Some(storage)))
        };
        let x = [at(simt, &parts[0]), at(simt, &parts[1])];
        let (gamma, beta) = (put(simt, &gamma, None), put(simt, &beta, None));
        let whole = Shape::from([self.n, self.pixels, self.c[0] + self.c[1]]);
        if !backward {
            let output = Output::new(simt, &whole, Some(storage));
            let workspace = simt.alloc(norm.workspace(form, stats).max(16));
            let at = Forward { x, gamma, beta, out: output.at, workspace };
            let launches = norm.forward(form, stats, &at).expect("legal");
            return Prepared { launches, outputs: vec![output], ..Prepared::default() };
        }
        let dy = put(simt, &dy, Some(storage));
        let outputs: Vec<Output> =
            parts.iter().flatten().map(|part| Output::new(simt, part.shape(), Some(storage))).collect();
        let dx = [outputs[0].at, outputs.get(1).map_or(DevicePtr::NONE, |output| output.at)];
        let workspace = simt.alloc(norm.workspace_bwd(form, stats).max(16));
        let residual = if self.added { dy } else { DevicePtr::NONE };
        let at = Backward { x, gamma, beta, dy, residual, dx, workspace };
        Prepared { launches: norm.backward(form, stats, &at).expect("legal"), outputs, ..Prepared::default() }
    }

    fn wanted(&self, storage: Storage, backward: bool) -> Vec<Wanted> {
        let [x, gamma, beta, dy] = self.operands();
        let (groups, eps, act) = (self.groups, EPS, self.act);
        let op =
            if backward { Op::GroupNormBwd { groups, eps, act } } else { Op::GroupNorm { groups, eps, act } };
        let result = |x: Value<f32>, dy: Value<f32>| {
            let mut operands = vec![x, gamma.clone(), beta.clone()];
            operands.extend(backward.then_some(dy));
            let result = run(&op, &operands, &plan::StepState::default()).remove(0);
            match operands.pop().filter(|_| self.added && backward) {
                Some(dy) => run(&Op::Add, &[Value::Real(result), dy], &plan::StepState::default()).remove(0),
                None => result,
            }
        };
        let seen = result(rounded(&x, storage), rounded(&dy, storage));
        let exact = result(x, dy);
        if !backward {
            return vec![Wanted::new(seen, exact, Class::Reduced)];
        }
        let part = |whole: &Tensor<f32>, i: usize| self.part(&Value::Real(whole.clone()), i).real().clone();
        let parts = (0..2).filter(|&i| self.c[i] > 0);
        parts.map(|i| Wanted::new(part(&seen, i), part(&exact, i), Class::Reduced)).collect()
    }
}

/// A warp a row: one vector, a rest of lanes, all of both sizes; more rows than warps.
fn layers() -> Vec<Proof> {
    let mut proofs = Vec::new();
    let sizes = [(1, 8), (11, 40), (3, 320), (2, 512), (2, 520), (9, 1280)];
    for (rows, c) in sizes {
        for data in [Data::Around100, Data::Outlier, Data::Constant] {
            let mut random = Random::named(&format!("layer {rows} {c} {data:?}"));
            let x = real(&[rows, c], data.draw(&mut random, rows * c));
            let mut weight = |spread: f64| normals(&mut random, &[c], spread);
            let (gamma, beta) = (weight(1.0), weight(1.0));
            let spread = if data == Data::Around100 { 1e-6 } else { 1.0 };
            let dy = normals(&mut random, &[rows, c], spread);
            let checked = move |launch: Launch, at: &[DevicePtr]| {
                assert!(matches!(choose_layer(c, at), LayerForm::Warps(_)), "{}", launch.kernel.name);
                launch
            };
            let operands = vec![x.clone(), gamma.clone(), beta];
            let op = Op::LayerNorm { eps: EPS };
            let name = format!("{data:?}");
            proofs.push(proof(&name, op, operands, Class::Reduced, move |storage, inputs, outputs| {
                let at = [inputs[0].at, inputs[1].at, inputs[2].at, outputs[0].at];
                checked(LayerNorm { storage, rows, c, eps: EPS }.forward(at).expect("legal"), &at)
            }));
            let op = Op::LayerNormBwd { eps: EPS };
            proofs.push(proof(
                &name,
                op,
                vec![x, gamma, dy],
                Class::Reduced,
                move |storage, inputs, outputs| {
                    let at = [inputs[0].at, inputs[1].at, inputs[2].at, DevicePtr::NONE, outputs[0].at];
                    checked(LayerNorm { storage, rows, c, eps: EPS }.backward(at).expect("legal"), &at)
                },
            ));
        }
    }
    proofs
}
