//! Convolutions with everything folded in, and their data gradients: tiled, general, and chosen.

use std::fmt;
use std::sync::Arc;

use unguide::ir::{Activation, Op, Padding};
use unguide::launch::conv2d::{BwdOperands, Conv2d, Operands};
use unguide::launch::params::{self as p, DevicePtr, Epilogue};
use unguide::launch::tune::conv2d::{FEW, Form, OnHopper, Tile};
use unguide::launch::tune::{Fact, hopper};
use unguide::launch::{Launch, Storage};
use unguide::plan::StepState;
use unguide::simt::Simt;
use unguide::tensor::{Shape, Tensor};
use unguide::weights::pack;

use super::gemm::COUNTERS;
use super::{Output, Prepared, Proof, Wanted, put, rounded};
use crate::support::{Class, Random, Value, run};

pub fn proofs() -> Vec<Proof> {
    let trials = trials().into_iter().map(Arc::new);
    trials.flat_map(|trial| [Trial::forward_proof(&trial), Trial::backward_proof(&trial)]).flatten().collect()
}

/// One convolution and what comes behind its sum; the gradient is that of the convolution alone.
#[derive(Clone, Debug)]
pub struct Trial {
    pub conv: Conv2d,
    pub ends: Ends,
    pub form: Wish,
    /// That image of the batch alone.
    pub only: Option<usize>,
}

/// What the epilogue adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ends {
    Bare,
    Bias,
    /// Bias, a vector an image, SiLU, a residual.
    All,
    /// The same with the residual of the first image for all; nothing of a gradient.
    Copies,
}

/// The form that a trial is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wish {
    General,
    Tiled(usize, usize, usize),
    Gathered,
    Narrow,
    /// A tile of sm_90a by its number among all, with sums in so many parts, on so many blocks.
    Hopper(usize, usize, u32),
    /// Whatever the choice says.
    Chosen,
}

pub const PLAIN: Conv2d = Conv2d {
    images: 1,
    size: [1, 1],
    channels: [8, 0],
    enlarged: None,
    filter: [8, 3, 3],
    stride: 1,
    padding: Padding::all(1),
    sub_pixel: false,
    stats: false,
};
/// What forms are chosen for.
pub const TARGET: &str = "sm_80";

fn trials() -> Vec<Trial> {
    use Ends::{All, Bare, Bias, Copies};
    use Wish::{Chosen, Gathered, General, Hopper, Narrow, Tiled};
    let asymmetric = Padding { top: 0, left: 0, bottom: 1, right: 1 };
    let conv = |images, size, channels, filter| Conv2d { images, size, channels, filter, ..PLAIN };
    let strided = |stride, padding, conv| Conv2d { stride, padding, ..conv };
    let enlarged = |to, conv| Conv2d { enlarged: Some(to), ..conv };
    let sub_pixel = |to, conv| Conv2d { enlarged: Some(to), sub_pixel: true, ..conv };
    let small = Tiled(64, 64, 1);
    let trials = [
        // Two sources, enlargements that are whole and cropped, strides and patches.
        (conv(2, [5, 7], [4, 3], [7, 3, 3]), All, General),
        (conv(3, [2, 3], [4, 3], [7, 3, 3]), Copies, General),
        (enlarged([6, 9], conv(1, [3, 5], [3, 0], [4, 3, 3])), All, General),
        (enlarged([7, 1], conv(2, [4, 1], [2, 5], [3, 3, 3])), Bias, General),
        (strided(2, asymmetric, conv(1, [9, 13], [3, 4], [5, 3, 3])), Bare, General),
        (strided(14, Padding::NONE, conv(2, [28, 14], [3, 0], [5, 14, 14])), Bias, General),
        // Edges of tiles in every direction; sources that share a step; strides; images in a batch.
        (conv(2, [9, 13], [40, 24], [72, 3, 3]), All, small),
        (conv(1, [7, 11], [8, 0], [4, 3, 3]), Bias, small),
        (strided(1, Padding::NONE, conv(2, [5, 7], [40, 0], [24, 1, 1])), Copies, small),
        (strided(2, asymmetric, conv(1, [9, 14], [16, 8], [8, 3, 3])), Bias, small),
        (strided(2, Padding::all(1), conv(1, [10, 7], [24, 0], [16, 3, 3])), Bare, small),
        (strided(8, Padding::NONE, conv(1, [16, 24], [3, 0], [40, 8, 8])), Bias, small),
        (enlarged([10, 13], conv(2, [5, 7], [8, 16], [8, 3, 3])), All, small),
        (sub_pixel([8, 10], conv(2, [4, 5], [16, 8], [24, 3, 3])), All, small),
        (sub_pixel([9, 13], conv(1, [5, 7], [40, 0], [16, 3, 3])), Bias, small),
        (sub_pixel([6, 11], conv(1, [3, 6], [8, 0], [8, 3, 3])), Bare, small),
        (sub_pixel([1, 2], conv(1, [1, 1], [8, 0], [8, 3, 3])), Bare, small),
        (conv(2, [7, 11], [64, 0], [72, 3, 3]), All, Tiled(64, 64, 5)),
        (strided(2, Padding::all(1), conv(1, [6, 5], [24, 0], [16, 3, 3])), All, Tiled(64, 64, 3)),
        (conv(1, [11, 13], [32, 0], [136, 3, 3]), All, Tiled(128, 128, 1)),
        (conv(1, [11, 13], [32, 8], [72, 3, 3]), Bias, Tiled(128, 64, 1)),
        // Few channels to read: taps and channels in one sum, of one step and of two, and edges of tiles.
        (conv(2, [9, 13], [4, 0], [72, 3, 3]), All, Gathered),
        (strided(2, asymmetric, conv(1, [9, 14], [3, 0], [13, 3, 3])), Bias, Gathered),
        (conv(2, [7, 10], [72, 0], [3, 3, 3]), Copies, Gathered),
        (strided(1, Padding::all(2), conv(1, [5, 3], [16, 0], [4, 4, 3])), Bare, Gathered),
        (strided(14, Padding::NONE, conv(2, [28, 42], [3, 0], [72, 14, 14])), All, Gathered),
        (conv(1, [5, 7], [16, 8], [5, 3, 3]), Bare, Chosen),
        // Few channels to make: edges of tiles in both directions, margins of several widths, a rest of channels.
        (conv(2, [9, 17], [40, 0], [3, 3, 3]), All, Narrow),
        (conv(1, [17, 5], [72, 0], [8, 3, 3]), Bias, Narrow),
        (strided(1, Padding::NONE, conv(1, [8, 20], [136, 0], [4, 3, 3])), Bare, Narrow),
        (conv(2, [9, 17], [3, 0], [40, 3, 3]), All, Narrow),
        (strided(1, asymmetric, conv(1, [10, 33], [8, 0], [104, 3, 3])), All, Narrow),
        // Slabs of sm_90a: of one image and of several, ragged in every direction, rings that go round, tiles after each
        // other on a block, sources that meet at a step, four kinds of pixels, sums in parts.
        (conv(2, [9, 13], [64, 24], [72, 3, 3]), All, Hopper(2, 1, 1)),
        (conv(3, [5, 6], [40, 0], [40, 3, 3]), Copies, Hopper(2, 1, 2)),
        (strided(1, Padding::NONE, conv(1, [7, 11], [72, 0], [136, 1, 1])), Bias, Hopper(2, 1, 1)),
        (conv(1, [17, 18], [8, 0], [136, 3, 3]), Bias, Hopper(0, 1, 1)),
        (conv(1, [12, 13], [64, 8], [168, 3, 3]), Bare, Hopper(1, 1, 2)),
        (sub_pixel([8, 10], conv(2, [4, 5], [64, 8], [40, 3, 3])), All, Hopper(2, 1, 1)),
        (sub_pixel([16, 34], conv(1, [8, 17], [16, 0], [16, 3, 3])), Bare, Hopper(0, 1, 2)),
        (conv(2, [7, 11], [64, 0], [72, 3, 3]), Copies, Hopper(2, 4, 2)),
        // Enlarged, with one filter for all kinds of pixels.
        (enlarged([10, 14], conv(2, [5, 7], [64, 8], [40, 3, 3])), All, Hopper(2, 1, 1)),
        (enlarged([16, 34], conv(1, [8, 17], [16, 0], [16, 3, 3])), Bare, Hopper(0, 1, 2)),
        (enlarged([8, 10], conv(2, [4, 5], [40, 0], [72, 3, 3])), Bias, Hopper(3, 4, 1)),
        // By clusters.
        (conv(2, [9, 13], [64, 24], [72, 3, 3]), All, Hopper(3, 4, 1)),
        (conv(3, [5, 6], [40, 0], [40, 3, 3]), Copies, Hopper(4, 8, 1)),
        (sub_pixel([8, 10], conv(2, [4, 5], [64, 8], [40, 3, 3])), All, Hopper(3, 4, 1)),
        // Of which a share is several images, not all of them there.
        (conv(7, [9, 9], [56, 0], [40, 3, 3]), All, Hopper(3, 4, 1)),
        (conv(9, [1, 2], [64, 0], [40, 3, 3]), Bias, Hopper(4, 8, 1)),
        // Channels as they are.
        (conv(1, [9, 8], [4, 0], [320, 3, 3]), Bias, Chosen),
        (conv(1, [9, 20], [128, 0], [3, 3, 3]), Bias, Chosen),
        (conv(1, [8, 9], [4, 0], [512, 3, 3]), Bias, Chosen),
        (strided(14, Padding::NONE, conv(1, [14, 28], [3, 0], [1024, 14, 14])), Bare, Chosen),
        (strided(1, Padding::NONE, conv(2, [5, 7], [4, 0], [4, 1, 1])), Bias, Chosen),
        (conv(1, [5, 7], [320, 0], [129, 3, 3]), Bias, Chosen),
        (conv(1, [8, 8], [640, 320], [320, 3, 3]), All, Chosen),
        (sub_pixel([8, 7], conv(1, [4, 4], [320, 0], [320, 3, 3])), Bias, Chosen),
        (conv(2, [8, 8], [640, 320], [320, 3, 3]), All, Hopper(1, 4, 4)),
    ];
    trials.map(|(conv, ends, form)| Trial::new(conv, ends, form)).into()
}

/// The operands of one trial, as they are or as they are stored.
struct Values {
    sources: Vec<Value<f32>>,
    filter: Value<f32>,
    bias: Value<f32>,
    vector: Value<f32>,
    /// Of the shape of the output, or of one image of it.
    residual: Value<f32>,
    dy: Value<f32>,
}

impl Trial {
    pub fn new(conv: Conv2d, ends: Ends, form: Wish) -> Self {
        Self { conv, ends, form, only: None }
    }

    /// What is launched: the batch, or one image of it.
    pub fn launched(&self) -> Conv2d {
        Conv2d { images: if self.only.is_some() { 1 } else { self.conv.images }, ..self.conv }
    }

    fn is_small(&self) -> bool {
        let Conv2d { images, filter: [o, r, s], channels: [c, c2], .. } = self.conv;
        let [height, width] = self.conv.out();
        images * height * width * o * r * s * (c + c2) < 12_000_000
    }

    fn values(&self) -> Values {
        let Conv2d { images, size: [h, w], channels, filter: [o, r, s], .. } = self.conv;
        let mut random = Random::named(&format!("{:?}", self.conv));
        let mut filled = |shape: &[usize]| {
            let shape = Shape::from(shape);
            let data = random.normals(shape.count(), 0.0, 1.0);
            Value::Real(Tensor::new(shape, data))
        };
        let [height, width] = self.conv.out();
        let sources = channels.into_iter().filter(|&c| c > 0).map(|c| filled(&[images, h, w, c])).collect();
        let (filter, bias) = (filled(&[o, r, s, channels.iter().sum()]), filled(&[o]));
        let vector = filled(&[images, o]);
        let residuals = if self.ends == Ends::Copies { 1 } else { images };
        let (residual, dy) = (filled(&[residuals, height, width, o]), filled(&[images, height, width, o]));
        let values = Values { sources, filter, bias, vector, residual, dy };
        let Some(i) = self.only else { return values };
        Values {
            sources: values.sources.iter().map(|x| x.image(i)).collect(),
            vector: values.vector.image(i),
            residual: values.residual.image(i),
            dy: values.dy.image(i),
            ..values
        }
    }

    /// The filter as the kernel gets it, before it is rounded.
    fn packed(&self, filter: &Value<f32>) -> Value<f32> {
        if self.conv.sub_pixel {
            Value::Real(pack::sub_pixel(filter.real(), self.conv.cropped()))
        } else {
            filter.clone()
        }
    }

    fn rounded(&self, storage: Storage) -> Values {
        let values = self.values();
        let all = |values: &[Value<f32>]| values.iter().map(|value| rounded(value, storage)).collect();
        Values {
            sources: all(&values.sources),
            filter: rounded(&self.packed(&values.filter), storage),
            bias: values.bias.clone(),
            vector: rounded(&values.vector, storage),
            residual: rounded(&values.residual, storage),
            dy: rounded(&values.dy, storage),
        }
    }

    /// `pixels` are those of a class, of so many images.
    pub fn form(&self, chosen: Form, pixels: [usize; 2]) -> Form {
        let bits = hopper::bits_of(self.launched().images, pixels, self.conv.stats);
        match self.form {
            Wish::General => Form::General { why: Fact::NoVectors },
            Wish::Tiled(m, n, splits) => Form::Tiled(Tile { m, n, splits }),
            Wish::Gathered => Form::Gathered,
            Wish::Narrow => Form::Narrow,
            Wish::Hopper(tile, splits, blocks) => {
                let tile = hopper::all().nth(tile).expect("a tile of that number");
                Form::Hopper(OnHopper { tile, splits, bits, blocks })
            }
            Wish::Chosen => chosen,
        }
    }

    // -- forward -------------------------------------------------------------------------------------------

    fn forward_proof(trial: &Arc<Self>) -> Option<Proof> {
        let Conv2d { filter: [o, ..], channels: [c, _], .. } = trial.conv;
        let whole = trial.form != Wish::Narrow || (c.is_multiple_of(8) && o <= FEW);
        let (prepare, wanted) = (Arc::clone(trial), Arc::clone(trial));
        whole.then(|| {
            Proof::new(
                format!("forward {trial}"),
                trial.is_small(),
                move |simt, storage| prepare.forward(simt, storage),
                move |storage| wanted.forward_wanted(storage),
            )
        })
    }

    pub fn forward(&self, simt: &mut Simt, storage: Storage) -> Prepared {
        let (conv, values) = (self.launched(), self.values());
        let stored = Some(storage);
        let mut at =
            Operands { filter: put(simt, &self.packed(&values.filter), stored), ..Operands::default() };
        at.x = put(simt, &values.sources[0], stored);
        at.x2 = values.sources.get(1).map_or(DevicePtr::NONE, |x2| put(simt, x2, stored));
        at.epilogue = self.epilogue(simt, &values, storage);
        let output = Output::new(simt, values.dy.shape(), stored);
        at.y = output.at;
        let in_kinds = conv.sub_pixel || (conv.enlarged.is_some() && matches!(self.form, Wish::Hopper(..)));
        let halved = if in_kinds { conv.out().map(|extent| extent / 2) } else { conv.out() };
        let form = self.form(conv.form(TARGET), halved);
        at.workspace = workspace(simt, conv.workspace_bytes(form));
        at.arrived = simt.put(&vec![0; COUNTERS]);
        let mut outputs = vec![output];
        if conv.stats {
            let tile = conv.statistics_tile(form).expect("the trial's form takes statistics");
            let tiles = (conv.out().iter().product::<usize>()).div_ceil(tile);
            outputs.push(Output::new(simt, &Shape::from([conv.images, tiles, conv.filter[0], 2]), None));
            at.epilogue.stats = outputs[1].at;
        }
        let launch = conv.forward(form, storage, &at).expect("a trial is legal");
        Prepared { launches: vec![launch], outputs, counters: vec![at.arrived] }
    }

    fn epilogue(&self, simt: &mut Simt, values: &Values, storage: Storage) -> Epilogue {
        let bias = |simt: &mut Simt| put(simt, &values.bias, None);
        match self.ends {
            Ends::Bare => Epilogue::default(),
            Ends::Bias => Epilogue { bias: bias(simt), ..Epilogue::default() },
            Ends::All | Ends::Copies => Epilogue {
                bias: bias(simt),
                channels: put(simt, &values.vector, Some(storage)),
                residual: put(simt, &values.residual, Some(storage)),
                activation: p::activation(Some(Activation::Silu)),
                residual_rows: match self.ends {
                    Ends::Copies => self.conv.out().iter().product::<usize>() as i32,
                    _ => 0,
                },
                ..Epilogue::default()
            },
        }
    }

    fn forward_wanted(&self, storage: Storage) -> Vec<Wanted> {
        let values = self.rounded(storage);
        let sum = if self.conv.sub_pixel { self.by_kinds(&values) } else { self.composed(&values) };
        let rounded = self.ended(sum, &values);
        let values = self.values();
        let exact = self.ended(self.composed(&values), &values);
        vec![Wanted::new(
            rounded,
            exact,
            Class::Contracted(values.filter.shape().count() / self.conv.filter[0]),
        )]
    }

    /// The sum and its bias, operation by operation.
    fn composed(&self, values: &Values) -> Value<f32> {
        let mut x = values.sources[0].clone();
        if let Some(x2) = values.sources.get(1) {
            x = eval(&Op::Concat, &[x, x2.clone()]);
        }
        if let Some([height, width]) = self.conv.enlarged {
            x = eval(&Op::Upsample { height, width }, &[x]);
        }
        let Conv2d { stride, padding, .. } = self.conv;
        eval(&Op::Conv2d { stride, padding }, &[x, values.filter.clone()])
    }

    /// The same from the small image: a convolution for every kind of output pixel.
    fn by_kinds(&self, values: &Values) -> Value<f32> {
        let mut x = values.sources[0].clone();
        if let Some(x2) = values.sources.get(1) {
            x = eval(&Op::Concat, &[x, x2.clone()]);
        }
        let mut y = Tensor::filled(values.dy.shape().clone(), 0.0f32);
        for kind in self.kinds() {
            let made = eval(
                &Op::Conv2d { stride: 1, padding: kind.padding },
                &[x.clone(), kind.filter(&values.filter)],
            );
            kind.each_pixel(&self.conv, |large, small, o| {
                y.data_mut()[large..large + o].copy_from_slice(&made.real().data()[small..small + o]);
            });
        }
        Value::Real(y)
    }

    fn ended(&self, sum: Value<f32>, values: &Values) -> Tensor<f32> {
        let channels = |x: Value<f32>, v: Value<f32>| eval(&Op::AddChannels, &[x, v]);
        let mut y = sum;
        if self.ends != Ends::Bare {
            let o = self.conv.filter[0];
            y = channels(y, Value::Real(Tensor::new([1, o], values.bias.real().data().to_vec())));
        }
        if matches!(self.ends, Ends::All | Ends::Copies) {
            y = channels(y, values.vector.clone());
            y = eval(&Op::Activate(Activation::Silu), &[y]);
            let times = self.launched().images / values.residual.shape()[0];
            y = eval(
                &Op::Add,
                &[y, eval(&Op::RepeatBatch { times }, std::slice::from_ref(&values.residual))],
            );
        }
        y.real().clone()
    }

    // -- backward ------------------------------------------------------------------------------------------

    fn backward_proof(trial: &Arc<Self>) -> Option<Proof> {
        // The forms of the two directions have different rules.
        let Conv2d { filter: [o, ..], channels: [c, _], .. } = trial.conv;
        let whole = match trial.form {
            Wish::General | Wish::Chosen => true,
            Wish::Tiled(..) | Wish::Hopper(..) => o.is_multiple_of(8),
            Wish::Gathered => trial.conv.bwd_form(0, TARGET) == Form::Gathered,
            Wish::Narrow => o.is_multiple_of(8) && c <= FEW,
        };
        let (prepare, wanted) = (Arc::clone(trial), Arc::clone(trial));
        whole.then(|| {
            Proof::new(
                format!("backward {trial}"),
                trial.is_small(),
                move |simt, storage| prepare.backward(simt, storage),
                move |storage| wanted.backward_wanted(storage),
            )
        })
    }

    pub fn backward(&self, simt: &mut Simt, storage: Storage) -> Prepared {
        let (conv, values) = (self.launched(), self.values());
        let stored = Some(storage);
        let filter = put(simt, &self.packed(&values.filter), stored);
        let dy = put(simt, &values.dy, stored);
        let (mut launches, mut outputs, mut counters): (Vec<Launch>, _, _) =
            (Vec::new(), Vec::new(), Vec::new());
        for (source, x) in values.sources.iter().enumerate() {
            let dx = Output::new(simt, x.shape(), stored);
            // What was there before stands in for another path's gradient.
            let residual = if self.ends == Ends::All { put(simt, x, stored) } else { DevicePtr::NONE };
            let form = self.form(conv.bwd_form(source, TARGET), conv.size);
            let workspace = workspace(simt, conv.bwd_workspace_bytes(source, form));
            let epilogue = Epilogue { residual, ..Epilogue::default() };
            let arrived = simt.put(&vec![0; COUNTERS]);
            let at = BwdOperands { dy, filter, dx: dx.at, epilogue, workspace, arrived };
            launches.push(conv.backward(source, form, storage, &at).expect("a trial is legal"));
            outputs.push(dx);
            counters.push(arrived);
        }
        Prepared { launches, outputs, counters }
    }

    fn backward_wanted(&self, storage: Storage) -> Vec<Wanted> {
        let values = self.rounded(storage);
        let gradient =
            if self.conv.sub_pixel { self.gradient_by_kinds(&values) } else { self.gradient(&values) };
        let rounded = self.shares(gradient, &values);
        let values = self.values();
        let exact = self.shares(self.gradient(&values), &values);
        let [o, r, s] = self.conv.filter;
        let copies = if self.conv.enlarged.is_some() { 4 } else { 1 };
        let class = Class::Contracted(copies * o * r * s);
        rounded.into_iter().zip(exact).map(|(rounded, exact)| Wanted::new(rounded, exact, class)).collect()
    }

    fn gradient(&self, values: &Values) -> Value<f32> {
        let Conv2d { stride, padding, .. } = self.conv;
        let [height, width] = self.conv.seen();
        let du = eval(
            &Op::Conv2dBwd { stride, padding, height, width },
            &[values.dy.clone(), values.filter.clone()],
        );
        if self.conv.enlarged.is_none() {
            return du;
        }
        let [height, width] = self.conv.size;
        eval(&Op::UpsampleBwd { height, width }, &[du])
    }

    fn gradient_by_kinds(&self, values: &Values) -> Value<f32> {
        let Conv2d { images, size: [height, width], filter: [o, ..], .. } = self.conv;
        let mut parts = self.kinds().into_iter().map(|kind| {
            let (lines, columns) = (
                height + kind.padding.top + kind.padding.bottom - 1,
                width + kind.padding.left + kind.padding.right - 1,
            );
            let mut dy = Tensor::filled([images, lines, columns, o], 0.0f32);
            kind.each_pixel(&self.conv, |large, small, o| {
                dy.data_mut()[small..small + o].copy_from_slice(&values.dy.real().data()[large..large + o]);
            });
            let op = Op::Conv2dBwd { stride: 1, padding: kind.padding, height, width };
            eval(&op, &[Value::Real(dy), kind.filter(&values.filter)])
        });
        let first = parts.next().expect("there are kinds");
        parts.fold(first, |sum, part| eval(&Op::Add, &[sum, part]))
    }

    /// Every source's channels, and what they are added to.
    fn shares(&self, gradient: Value<f32>, values: &Values) -> Vec<Tensor<f32>> {
        let mut start = 0;
        let share = |x: &Value<f32>| {
            let len = x.shape().last();
            let share = eval(&Op::SliceChannels { start, len }, std::slice::from_ref(&gradient));
            start += len;
            let share = if self.ends == Ends::All { eval(&Op::Add, &[share, x.clone()]) } else { share };
            share.real().clone()
        };
        values.sources.iter().map(share).collect()
    }

    fn kinds(&self) -> Vec<Kind> {
        let [lines, columns] = self.conv.cropped().map(|cropped| if cropped { 3 } else { 2 });
        (0..lines * columns).map(|i| Kind::new(i, i / columns, i % columns)).collect()
    }
}

/// One kind of output pixel of the sub-pixel form; lines and columns are even, odd, or the last of an odd number.
struct Kind {
    number: usize,
    kind: [usize; 2],
    padding: Padding,
}

impl Kind {
    fn new(number: usize, line: usize, column: usize) -> Self {
        let odd = |kind: usize| usize::from(kind == 1);
        let padding =
            Padding { top: 1 - odd(line), left: 1 - odd(column), bottom: odd(line), right: odd(column) };
        Self { number, kind: [line, column], padding }
    }

    fn filter(&self, packed: &Value<f32>) -> Value<f32> {
        let [_, o, r, s, c] = packed.shape()[..] else { panic!("packed filters have five extents") };
        Value::Real(Tensor::new([o, r, s, c], packed.real().row(self.number).to_vec()))
    }

    /// Where a pixel of this kind begins in the large image, and in the image of its kind; and its channels.
    fn each_pixel(&self, conv: &Conv2d, mut visit: impl FnMut(usize, usize, usize)) {
        let ([h, w], [height, width], o) = (conv.size, conv.out(), conv.filter[0]);
        let is = |at: usize, size: usize, kind: usize| {
            let last = size % 2 == 1 && at == size - 1;
            kind == if last { 2 } else { at % 2 }
        };
        for (n, i, j) in
            (0..conv.images * height * width).map(|k| (k / width / height, k / width % height, k % width))
        {
            if is(i, height, self.kind[0]) && is(j, width, self.kind[1]) {
                visit(((n * height + i) * width + j) * o, ((n * h + i / 2) * w + j / 2) * o, o);
            }
        }
    }
}

fn eval(op: &Op, operands: &[Value<f32>]) -> Value<f32> {
    Value::Real(run(op, operands, &StepState::default()).remove(0))
}

fn workspace(simt: &mut Simt, bytes: usize) -> DevicePtr {
    if bytes == 0 { DevicePtr::NONE } else { simt.alloc(bytes) }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conv2d { images, size: [h, w], channels: [c, c2], filter: [o, r, s], stride, .. } = self.conv;
        write!(
            f,
            "convolution {images} x {h} x {w} x ({c} + {c2}), filter {o} x {r} x {s}, stride {stride}"
        )?;
        if let Some([height, width]) = self.conv.enlarged {
            let how = if self.conv.sub_pixel { "sub-pixel" } else { "enlarged" };
            write!(f, ", {how} to {height} x {width}")?;
        }
        write!(f, ", {:?}, {:?}", self.ends, self.form)
    }
}
