//! Cases on the SIMT layer: operands in the storage type, the kernel's params, and how its results are judged.

use bytemuck::{Pod, bytes_of, cast_slice};
use half::{bf16, f16};
use unguide::ir::{Op, Padding};
use unguide::launch::params as p;
use unguide::launch::params::DevicePtr;
use unguide::simt::{Counts, Mode, Simt, SimtError};
use unguide::tensor::{Shape, Tensor};

use super::cases::all;
use super::{Case, Class, Value, run};

/// What activations are stored in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Storage {
    F16,
    Bf16,
}

impl Storage {
    pub const BOTH: [Self; 2] = [Self::F16, Self::Bf16];

    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// The distance to the next number of this type around `x`.
    fn ulp(self, x: f64) -> f64 {
        let (digits, lowest) = match self {
            Self::F16 => (10, -14),
            Self::Bf16 => (7, -126),
        };
        ulp(x, digits, lowest)
    }
}

fn ulp(x: f64, digits: i32, lowest: i32) -> f64 {
    let exponent = if x == 0.0 { lowest } else { (x.abs().log2().floor() as i32).max(lowest) };
    2f64.powi(exponent - digits)
}

/// One case with its operands, and what is wanted of it.
pub struct Trial {
    pub case: Case,
    pub operands: Vec<Value<f32>>,
}

impl Trial {
    /// Every case that a kernel exists for, and some whose operands no table can say.
    pub fn all() -> Vec<Self> {
        let plain = |case: Case| Self { operands: case.operands(), case };
        let mut trials: Vec<Self> =
            all().into_iter().map(plain).filter(|t| kernel(&t.case.op).is_some()).collect();
        let copies = |wanted: fn(&Op) -> bool| -> Vec<Self> {
            all().into_iter().filter(|case| wanted(&case.op)).map(plain).collect()
        };
        for mut trial in copies(|op| matches!(op, Op::DdimUnguide { .. })) {
            trial.case.state.sigma = 0.0;
            trial.case.name += " without noise";
            if trial.operands.len() == 5 {
                // Behind a shut gate nothing is looked at, not even NaN.
                let shut = trial.operands[3].real().data()[0] == 0.0;
                let Value::Real(g) = &mut trial.operands[4] else { unreachable!("g is real") };
                g.data_mut()[0] = if shut { f32::NAN } else { 0.0 };
            }
            trials.push(trial);
        }
        for mut trial in copies(|op| matches!(op, Op::DdimUnguide { .. } | Op::GuideEps { .. })) {
            trial.case.state.window = false;
            trial.case.name += " outside of the window";
            trials.push(trial);
        }
        for (what, bad) in [("NaN", f32::NAN), ("infinity", f32::INFINITY), ("zeros", 0.0)] {
            for mut trial in copies(|op| matches!(op, Op::ClipCosine { .. })) {
                trial.case.name += &format!(" with {what}");
                let Value::Real(e) = &mut trial.operands[0] else { unreachable!("e is real") };
                if bad == 0.0 {
                    e.data_mut().fill(0.0)
                } else {
                    e.data_mut()[0] = bad
                }
                trials.push(trial);
            }
        }
        trials
    }

    /// Tile and edge shapes run in every way, larger ones once.
    pub fn is_small(&self) -> bool {
        let operands: usize = self.operands.iter().map(|x| x.shape().count()).sum();
        let work = match self.case.class {
            Class::Contracted(k) => k * self.case.output_shapes()[0].count(),
            _ => 0,
        };
        operands < 9_000 && work < 400_000
    }

    /// The operands as the kernel sees them.
    pub fn rounded(&self, storage: Storage) -> Vec<Value<f32>> {
        let kinds = kernel(&self.case.op).expect("a case with a kernel").1;
        let round = |(value, stored): (&Value<f32>, bool)| match value {
            Value::Real(x) if stored => {
                let data = x.data().iter().map(|&x| storage.round(x)).collect();
                Value::Real(Tensor::new(x.shape().clone(), data))
            }
            other => other.clone(),
        };
        self.operands.iter().zip(kinds.chars().map(|kind| kind == 't')).map(round).collect()
    }
}

/// Kernel of an operation, and for every operand and result: `t` storage type, `f` f32, `i` i32.
pub fn kernel(op: &Op) -> Option<(&'static str, &'static str, &'static str)> {
    Some(match op {
        Op::Activate(_) => ("activate", "t", "t"),
        Op::ActivateBwd(_) => ("activate_bwd", "tt", "t"),
        Op::Geglu => ("geglu", "t", "t"),
        Op::GegluBwd => ("geglu_bwd", "tt", "t"),
        Op::Add => ("add", "tt", "t"),
        Op::AddChannels => ("add_channels", "tt", "t"),
        Op::Affine { .. } => ("affine", "t", "t"),
        Op::TimestepEmbedding { .. } => ("timestep", "", "t"),
        Op::CfgX0 => ("cfg_x0", "ft", "ff"),
        Op::CfgX0Bwd { .. } => ("cfg_x0_bwd", "f", "ft"),
        Op::SldX0 => ("sld_x0", "ftf", "fff"),
        Op::DdimUnguide { .. } => ("ddim_unguide", "fffft", "ff"),
        Op::GuideEps { .. } => ("guide_eps", "fffft", "ff"),
        Op::FrozenPullback => ("frozen_pullback", "t", "t"),
        Op::ClipCosine { .. } => ("clip_cosine", "tf", "ffftf"),
        Op::EmbedText => ("embed_text", "itt", "t"),
        Op::EmbedPatches => ("embed_patches", "ttt", "t"),
        Op::Resample { .. } => ("resample", "t", "t"),
        Op::ResampleBwd { .. } => ("resample_bwd", "t", "t"),
        Op::Upsample { .. } => ("upsample", "t", "t"),
        Op::UpsampleBwd { .. } => ("upsample_bwd", "t", "t"),
        Op::LayerNorm { .. } => ("layer_norm", "tff", "t"),
        Op::LayerNormBwd { .. } => ("layer_norm_bwd", "tft", "t"),
        Op::GroupNorm { .. } => ("group_norm", "tff", "t"),
        Op::GroupNormBwd { .. } => ("group_norm_bwd", "tfft", "t"),
        Op::Linear => ("gemm", "ttf", "t"),
        Op::LinearBwd => ("gemm", "tt", "t"),
        Op::Conv2d { .. } => ("conv2d", "ttf", "t"),
        Op::Conv2dBwd { .. } => ("conv2d_bwd", "tt", "t"),
        Op::Attention { .. } => ("attention", "ttt", "tf"),
        _ => return None,
    })
}

/// A trial on a device: everything that a launch needs.
pub struct Launch {
    pub kernel: String,
    grid: [u32; 3],
    params: Vec<u8>,
    outputs: Vec<(DevicePtr, Shape, bool)>,
    storage: Storage,
}

impl Launch {
    pub fn new(simt: &mut Simt, trial: &Trial, storage: Storage) -> Self {
        let op = &trial.case.op;
        let (name, kinds, results) = kernel(op).expect("a case with a kernel");
        let operands = trial.rounded(storage);
        let mut inputs = Vec::new();
        for (value, kind) in operands.iter().zip(kinds.chars()) {
            inputs.push(match value {
                Value::Index(ids) => simt.put(cast_slice(ids.data())),
                Value::Real(x) if kind == 't' => simt.put(&stored(x.data(), storage)),
                Value::Real(x) => simt.put(cast_slice(x.data())),
            });
        }
        let mut outputs = Vec::new();
        for (shape, kind) in trial.case.output_shapes().into_iter().zip(results.chars()) {
            let bytes = shape.count() * if kind == 't' { 2 } else { 4 };
            outputs.push((simt.alloc(bytes), shape, kind == 't'));
        }
        let state = simt.put(bytes_of(&p::StepState::from(&trial.case.state)));
        let (params, grid) = arguments(trial, &inputs, &outputs, state);
        Self { kernel: format!("{name}_{}", storage.name()), grid, params, outputs, storage }
    }

    pub fn run(&self, simt: &mut Simt, mode: Mode) -> Result<Counts, SimtError> {
        simt.launch(&self.kernel, self.grid, 256, 0, &self.params, mode)
    }

    pub fn run_mutant(&self, simt: &mut Simt, mutation: &str, mode: Mode) -> Result<Counts, SimtError> {
        let variant = format!("{}-{mutation}", if mode.checked { "checked" } else { "fast" });
        simt.launch_variant(&variant, &self.kernel, self.grid, 0, &self.params, mode)
    }

    /// What is wrong with the results, if anything is.
    pub fn judge(&self, simt: &Simt, trial: &Trial, wanted: &Wanted) -> Result<(), String> {
        for (i, (at, _, is_stored)) in self.outputs.iter().enumerate() {
            let bytes = simt.get(*at);
            let got: Vec<f32> = match (is_stored, self.storage) {
                (false, _) => cast_slice(&bytes).to_vec(),
                (true, Storage::F16) => cast_slice::<u8, f16>(&bytes).iter().map(|x| x.to_f32()).collect(),
                (true, Storage::Bf16) => cast_slice::<u8, bf16>(&bytes).iter().map(|x| x.to_f32()).collect(),
            };
            let stored = is_stored.then_some(self.storage);
            wanted.compare(&trial.case, i, &got, stored)?;
        }
        Ok(())
    }
}

fn stored(data: &[f32], storage: Storage) -> Vec<u8> {
    fn bytes<T: Pod>(data: Vec<T>) -> Vec<u8> {
        cast_slice(&data).to_vec()
    }
    match storage {
        Storage::F16 => bytes(data.iter().map(|&x| f16::from_f32(x)).collect()),
        Storage::Bf16 => bytes(data.iter().map(|&x| bf16::from_f32(x)).collect()),
    }
}

/// The CPU backend's results on rounded operands, and on the operands themselves.
pub struct Wanted {
    rounded: Vec<Tensor<f32>>,
    exact: Vec<Tensor<f32>>,
}

impl Wanted {
    pub fn of(trial: &Trial, storage: Storage) -> Self {
        let (op, state) = (&trial.case.op, &trial.case.state);
        Self { rounded: run(op, &trial.rounded(storage), state), exact: run(op, &trial.operands, state) }
    }

    /// Class by class, the bounds of the design; `base` is what rounding alone costs.
    fn compare(&self, case: &Case, i: usize, got: &[f32], stored: Option<Storage>) -> Result<(), String> {
        let (want, exact) = (self.rounded[i].data(), self.exact[i].data());
        let round = |x: f32| stored.map_or(x, |storage| storage.round(x));
        let ulp_of = |x: f64| stored.map_or_else(|| ulp(x, 23, -126), |storage| storage.ulp(x));
        let finite = |x: &&f32| x.is_finite();
        let scale = want.iter().filter(finite).fold(0f64, |most, &x| most.max(f64::from(x).abs()));
        let errors = want.iter().zip(exact).map(|(&w, &e)| f64::from(round(w) - e).abs());
        let base = errors.filter(|e| e.is_finite()).fold(0f64, f64::max);
        // Gates and states are numbers that mean words.
        let is_word = matches!(case.op, Op::ClipCosine { .. }) && (i == 2 || i == 4);
        let wave = matches!(case.op, Op::TimestepEmbedding { .. });
        for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
            let wanted = round(want);
            if !wanted.is_finite() {
                let alike = got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan());
                if alike {
                    continue;
                }
                return Err(format!("{} output {i} at {at}: {got}, wanted {wanted}", case.name));
            }
            let bound = match case.class {
                _ if is_word => 0.0,
                Class::Exact => 0.0,
                Class::Rounded if wave => ulp_of(1.0),
                Class::Rounded => ulp_of(f64::from(want)) + 4.0 * ulp(scale, 23, -126),
                Class::Reduced => 2.0 * base + 4.0 * ulp_of(scale),
                // The rounding of the result itself may be missing from `base`: there it may cancel that of
                // the operands.
                Class::Contracted(k) => {
                    2.0 * base + 1e-6 * (k as f64).sqrt() * scale + 0.5 * ulp_of(f64::from(want))
                }
            };
            let difference = (f64::from(got) - f64::from(want)).abs();
            let rounding = if bound == 0.0 { (f64::from(wanted) - f64::from(want)).abs() } else { 0.0 };
            // False for NaN.
            let near = difference <= bound + rounding;
            if !near {
                let name = &case.name;
                return Err(format!("{name} output {i} at {at}: {got}, wanted {want} within {bound:e}"));
            }
        }
        Ok(())
    }
}

/// Few blocks, so that loops over the grid go round.
fn strided(count: usize) -> [u32; 3] {
    [count.div_ceil(256).clamp(1, 5) as u32, 1, 1]
}

fn int(n: usize) -> i32 {
    i32::try_from(n).expect("cases are small")
}

/// Params struct and grid.
fn arguments(
    trial: &Trial,
    x: &[DevicePtr],
    out: &[(DevicePtr, Shape, bool)],
    state: DevicePtr,
) -> (Vec<u8>, [u32; 3]) {
    let none = DevicePtr(0);
    let shape = |i: usize| trial.operands[i].shape();
    let input = |i: usize| x.get(i).copied().unwrap_or(none);
    let output = |i: usize| out[i].0;
    let count = |i: usize| out[i].1.count();
    let to = &out[0].1;
    let pointwise = |count: usize, c: usize| p::PointwiseParams {
        x: input(0),
        y: input(1),
        out: output(0),
        count: count as i64,
        c: int(c),
        ..Default::default()
    };
    let plain = |params: p::PointwiseParams, count: usize| (bytes_of(&params).to_vec(), strided(count));
    match &trial.case.op {
        Op::Activate(act) | Op::ActivateBwd(act) => {
            let params = pointwise(count(0), 0);
            plain(p::PointwiseParams { activation: p::activation(Some(*act)), ..params }, count(0))
        }
        Op::Geglu => plain(pointwise(count(0), to.last()), count(0)),
        Op::GegluBwd => plain(pointwise(count(0) / 2, to.last() / 2), count(0) / 2),
        Op::Add => plain(pointwise(count(0), 0), count(0)),
        Op::Affine { mul, add } => {
            plain(p::PointwiseParams { mul: *mul, add: *add, ..pointwise(count(0), 0) }, count(0))
        }
        Op::AddChannels => {
            let shared = shape(1)[0] == 1;
            let image = if shared { 0 } else { count(0) / to[0] };
            plain(p::PointwiseParams { image: image as i64, ..pointwise(count(0), to.last()) }, count(0))
        }
        Op::TimestepEmbedding { channels, flip, shift } => {
            let (channels, flip, shift) = (int(*channels), i32::from(*flip), *shift);
            let params = p::TimestepParams { state, out: output(0), channels, flip, shift, pad: 0 };
            (bytes_of(&params).to_vec(), strided(count(0) / 2))
        }
        Op::CfgX0 => {
            let copies = int(shape(1).count() / count(0));
            let (z, rows, eps, x0) = (input(0), input(1), output(0), output(1));
            let params = p::CfgX0Params { state, z, rows, eps, x0, count: count(0) as i64, copies, pad: 0 };
            (bytes_of(&params).to_vec(), strided(count(0)))
        }
        Op::CfgX0Bwd { rows } => {
            let (dx0, dz, drows, copies) = (input(0), output(0), output(1), int(*rows));
            let params = p::CfgX0BwdParams { state, dx0, dz, drows, count: count(0) as i64, copies, pad: 0 };
            (bytes_of(&params).to_vec(), strided(count(0)))
        }
        Op::SldX0 => {
            let (z, rows, nu) = (input(0), input(1), input(2));
            let (eps, x0, next_nu) = (output(0), output(1), output(2));
            let params = p::SldX0Params { state, z, rows, nu, eps, x0, next_nu, count: count(0) as i64 };
            (bytes_of(&params).to_vec(), strided(count(0)))
        }
        Op::DdimUnguide { scale_log2 } => {
            let params = p::DdimUnguideParams {
                state,
                eps: input(0),
                x0: input(1),
                // Without noise there may be no buffer for it.
                noise: if trial.case.state.sigma > 0.0 { input(2) } else { none },
                gate: input(3),
                g: input(4),
                z: output(0),
                guided: output(1),
                count: count(0) as i64,
                image: (count(0) / to[0]) as i64,
                scale_log2: *scale_log2,
                pad: 0,
            };
            (bytes_of(&params).to_vec(), strided(count(0)))
        }
        Op::GuideEps { scale_log2 } => {
            let params = p::GuideEpsParams {
                state,
                z: input(0),
                eps: input(1),
                x0: input(2),
                gate: input(3),
                g: input(4),
                guided: output(0),
                guided_x0: output(1),
                count: count(0) as i64,
                image: (count(0) / to[0]) as i64,
                scale_log2: *scale_log2,
                pad: 0,
            };
            (bytes_of(&params).to_vec(), strided(count(0)))
        }
        Op::FrozenPullback => {
            let params =
                p::FrozenPullbackParams { state, x: input(0), out: output(0), count: count(0) as i64 };
            (bytes_of(&params).to_vec(), strided(count(0)))
        }
        Op::ClipCosine { reduce, top_k, scale_log2 } => {
            let k = shape(1)[0];
            let params = p::ClipCosineParams {
                state,
                e: input(0),
                concepts: input(1),
                scores: output(0),
                p_h: output(1),
                gate: output(2),
                de: output(3),
                status: output(4),
                k: int(k),
                d: int(shape(1)[1]),
                top_k: int(top_k.unwrap_or(k)),
                reduce: p::reduce(*reduce),
                scale_log2: *scale_log2,
                pad: 0,
            };
            (bytes_of(&params).to_vec(), [shape(0)[0] as u32, 1, 1])
        }
        Op::EmbedText => {
            let params = p::EmbedTextParams {
                ids: input(0),
                token: input(1),
                position: input(2),
                out: output(0),
                count: count(0) as i64,
                t: int(to[1]),
                d: int(to[2]),
                vocabulary: int(shape(1)[0]),
                pad: 0,
            };
            (bytes_of(&params).to_vec(), strided(count(0)))
        }
        Op::EmbedPatches => {
            let params = p::EmbedPatchesParams {
                x: input(0),
                class_token: input(1),
                position: input(2),
                out: output(0),
                count: count(0) as i64,
                t: int(to[1] - 1),
                d: int(to[2]),
            };
            (bytes_of(&params).to_vec(), strided(count(0)))
        }
        Op::Resample { height, width, mean, std } => {
            resample(shape(0), (*height, *width), (*mean, *std), (input(0), output(0)), count(0))
        }
        Op::ResampleBwd { std, .. } => {
            let small = (shape(0)[1], shape(0)[2]);
            resample(to, small, ([0.0; 3], *std), (input(0), output(0)), count(0))
        }
        Op::Upsample { height, width } => {
            upsample(shape(0), (*height, *width), (input(0), output(0)), count(0))
        }
        Op::UpsampleBwd { .. } => upsample(to, (shape(0)[1], shape(0)[2]), (input(0), output(0)), count(0)),
        Op::LayerNorm { eps } | Op::LayerNormBwd { eps } => {
            let (c, rows) = (to.last(), count(0) / to.last());
            // The four addresses of both structs are in the same order.
            let (x, gamma, beta, out) = (input(0), input(1), input(2), output(0));
            let params = p::LayerNormParams { x, gamma, beta, out, rows: rows as i64, c: int(c), eps: *eps };
            (bytes_of(&params).to_vec(), [rows.clamp(1, 5) as u32, 1, 1])
        }
        Op::GroupNorm { groups, eps, act } => {
            let params = p::GroupNormParams {
                x: input(0),
                gamma: input(1),
                beta: input(2),
                out: output(0),
                n: int(to[0]),
                pixels: int(count(0) / to[0] / to.last()),
                c: int(to.last()),
                groups: int(*groups),
                eps: *eps,
                activation: p::activation(*act),
            };
            (bytes_of(&params).to_vec(), [*groups as u32, to[0] as u32, 1])
        }
        Op::GroupNormBwd { groups, eps, act } => {
            let params = p::GroupNormBwdParams {
                x: input(0),
                gamma: input(1),
                beta: input(2),
                dy: input(3),
                dx: output(0),
                n: int(to[0]),
                pixels: int(count(0) / to[0] / to.last()),
                c: int(to.last()),
                groups: int(*groups),
                eps: *eps,
                activation: p::activation(*act),
            };
            (bytes_of(&params).to_vec(), [*groups as u32, to[0] as u32, 1])
        }
        Op::Linear | Op::LinearBwd => {
            let (m, n, k) = (count(0) / to.last(), to.last(), shape(0).last());
            // The filter is [out, in]: by columns for x W^T, by rows for dy W.
            let forward = matches!(trial.case.op, Op::Linear);
            let (b_column, b_k) = if forward { (k, 1) } else { (1, n) };
            let params = p::GemmParams {
                a: input(0),
                b: input(1),
                bias: input(2),
                d: output(0),
                b_column: b_column as i64,
                b_k: b_k as i64,
                m: int(m),
                n: int(n),
                k: int(k),
                ..Default::default()
            };
            (bytes_of(&params).to_vec(), [m.div_ceil(32) as u32, n.div_ceil(32) as u32, 1])
        }
        Op::Conv2d { stride, padding } => {
            let params = conv2d(shape(0), shape(1), to, *stride, *padding);
            let params =
                p::Conv2dParams { x: input(0), filter: input(1), bias: input(2), y: output(0), ..params };
            (bytes_of(&params).to_vec(), strided(count(0)))
        }
        Op::Conv2dBwd { stride, padding, .. } => {
            let params = conv2d(to, shape(1), shape(0), *stride, *padding);
            let params = p::Conv2dParams { x: output(0), filter: input(1), y: input(0), ..params };
            (bytes_of(&params).to_vec(), strided(count(0)))
        }
        Op::Attention { heads, causal } => {
            let params = p::AttentionParams {
                q: input(0),
                k: input(1),
                v: input(2),
                o: output(0),
                lse: output(1),
                n: int(to[0]),
                t: int(to[1]),
                u: int(shape(1)[1]),
                heads: int(*heads),
                d: int(to[2] / heads),
                causal: i32::from(*causal),
            };
            (bytes_of(&params).to_vec(), [to[1].div_ceil(8) as u32, *heads as u32, to[0] as u32])
        }
        other => unreachable!("`{}` has no kernel", other.name()),
    }
}

fn resample(
    image: &Shape,
    (height, width): (usize, usize),
    (mean, std): ([f32; 3], [f32; 3]),
    (x, out): (DevicePtr, DevicePtr),
    count: usize,
) -> (Vec<u8>, [u32; 3]) {
    let (n, h, w) = (int(image[0]), int(image[1]), int(image[2]));
    let (height, width) = (int(height), int(width));
    let params = p::ResampleParams { x, out, n, h, w, height, width, pad: 0, mean, std };
    (bytes_of(&params).to_vec(), strided(count))
}

fn upsample(
    image: &Shape,
    (height, width): (usize, usize),
    (x, out): (DevicePtr, DevicePtr),
    count: usize,
) -> (Vec<u8>, [u32; 3]) {
    let (n, h, w, c) = (int(image[0]), int(image[1]), int(image[2]), int(image[3]));
    let params = p::UpsampleParams { x, out, n, h, w, c, height: int(height), width: int(width) };
    (bytes_of(&params).to_vec(), strided(count))
}

fn conv2d(x: &Shape, filter: &Shape, y: &Shape, stride: usize, padding: Padding) -> p::Conv2dParams {
    p::Conv2dParams {
        n: int(x[0]),
        h: int(x[1]),
        w: int(x[2]),
        c: int(x[3]),
        o: int(filter[0]),
        r: int(filter[1]),
        s: int(filter[2]),
        stride: int(stride),
        top: int(padding.top),
        left: int(padding.left),
        height: int(y[1]),
        width: int(y[2]),
        ..Default::default()
    }
}
