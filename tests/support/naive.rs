//! The oracle: every operation as plain loops over f64, straight from its formula.

use super::Value;
use unguide::ir::{Activation, Op, Padding, Reduce};
use unguide::plan::StepState;
use unguide::tensor::{Shape, Tensor};

/// Outputs of `op`.
pub fn eval(op: &Op, operands: &[Value<f64>], state: &StepState) -> Vec<Tensor<f64>> {
    let shapes = super::output_shapes(op, operands);
    let x = |i: usize| operands[i].real();
    let index = |i: usize| match &operands[i] {
        Value::Index(tensor) => tensor,
        Value::Real(_) => panic!("a real operand where an index is expected"),
    };
    let to = &shapes[0];
    let one = |f: &dyn Fn(&[usize]) -> f64| vec![tensor(to, f)];
    let each = |f: &dyn Fn(usize) -> f64| vec![Tensor::new(to.clone(), (0..to.count()).map(f).collect())];
    match op {
        Op::Param { .. } | Op::Load { .. } | Op::Store { .. } | Op::Reshape => panic!("not computed"),
        Op::Concat => {
            let p = x(0).shape().last();
            one(&|i| if last(i) < p { at(x(0), i) } else { at(x(1), &with_last(i, last(i) - p)) })
        }
        Op::SliceChannels { start, .. } => one(&|i| at(x(0), &with_last(i, last(i) + start))),
        Op::PadChannels { start, .. } => {
            let len = x(0).shape().last();
            one(&|i| match last(i).checked_sub(*start) {
                Some(k) if k < len => at(x(0), &with_last(i, k)),
                _ => 0.0,
            })
        }
        Op::SliceTokens { start, .. } => one(&|i| at(x(0), &[i[0], i[1] + start, i[2]])),
        Op::PadTokens { start, .. } => one(&|i| match i[1].checked_sub(*start) {
            Some(t) if t < x(0).shape()[1] => at(x(0), &[i[0], t, i[2]]),
            _ => 0.0,
        }),
        Op::GatherToken => one(&|i| at(x(0), &[i[0], index(1).data()[i[0]] as usize, i[1]])),
        Op::SliceBatch { start, .. } => one(&|i| at(x(0), &with_first(i, i[0] + start))),
        Op::RepeatBatch { .. } => one(&|i| at(x(0), &with_first(i, i[0] % x(0).shape()[0]))),
        Op::SumBatch { times } => {
            one(&|i| (0..*times).map(|copy| at(x(0), &with_first(i, copy * to[0] + i[0]))).sum())
        }
        Op::Add => each(&|i| x(0).data()[i] + x(1).data()[i]),
        Op::AddChannels => {
            one(&|i| at(x(0), i) + at(x(1), &[if x(1).shape()[0] == 1 { 0 } else { i[0] }, last(i)]))
        }
        Op::Affine { mul, add } => each(&|i| f64::from(*mul) * x(0).data()[i] + f64::from(*add)),
        Op::Activate(a) => each(&|i| act(*a, x(0).data()[i])),
        Op::ActivateBwd(a) => each(&|i| slope(*a, x(0).data()[i]) * x(1).data()[i]),
        Op::Geglu => {
            let c = to.last();
            one(&|i| at(x(0), i) * act(Activation::Gelu, at(x(0), &with_last(i, last(i) + c))))
        }
        Op::GegluBwd => {
            let c = x(1).shape().last();
            one(&|i| {
                let k = last(i) % c;
                let (a, b) = (at(x(0), &with_last(i, k)), at(x(0), &with_last(i, k + c)));
                let dy = at(x(1), &with_last(i, k));
                if last(i) < c { act(Activation::Gelu, b) * dy } else { a * slope(Activation::Gelu, b) * dy }
            })
        }
        Op::Linear => one(&|i| {
            let sum: f64 =
                (0..x(0).shape().last()).map(|k| at(x(0), &with_last(i, k)) * at(x(1), &[last(i), k])).sum();
            sum + operands.get(2).map_or(0.0, |b| b.real().data()[last(i)])
        }),
        Op::LinearBwd => one(&|i| {
            (0..x(0).shape().last()).map(|m| at(x(0), &with_last(i, m)) * at(x(1), &[m, last(i)])).sum()
        }),
        Op::Conv2d { stride, padding } => {
            let mut y = tensor(to, |i| operands.get(2).map_or(0.0, |b| b.real().data()[i[3]]));
            taps(x(0).shape(), x(1).shape(), to, *stride, *padding, |from, w, out| {
                y.data_mut()[out] += x(0).data()[from] * x(1).data()[w];
            });
            vec![y]
        }
        Op::Conv2dBwd { stride, padding, .. } => {
            let mut dx = Tensor::filled(to.clone(), 0.0);
            taps(to, x(1).shape(), x(0).shape(), *stride, *padding, |from, w, out| {
                dx.data_mut()[from] += x(0).data()[out] * x(1).data()[w];
            });
            vec![dx]
        }
        Op::Attention { heads, causal } => {
            let [q, k, v] = apart(operands);
            attention(&q, &k, &v, *heads, *causal)
        }
        Op::AttentionBwd { heads, causal } => {
            let [q, k, v] = apart(&operands[3..]);
            let [dq, dk, dv] = attention_bwd([&q, &k, &v, x(2)], *heads, *causal);
            match operands.len() - 3 {
                1 => vec![side_by_side(&[dq, dk, dv])],
                2 => vec![dq, side_by_side(&[dk, dv])],
                _ => vec![dq, dk, dv],
            }
        }
        Op::GroupNorm { groups, eps, act: f } => {
            let xhat = group_xhat(x(0), *groups, *eps).0;
            let f = |y: f64| f.map_or(y, |f| act(f, y));
            one(&|i| f(at(&xhat, i) * x(1).data()[last(i)] + x(2).data()[last(i)]))
        }
        Op::GroupNormBwd { groups, eps, act: f } => {
            let (xhat, inverse) = group_xhat(x(0), *groups, *eps);
            let d = tensor(to, |i| {
                let (gamma, beta) = (x(1).data()[last(i)], x(2).data()[last(i)]);
                f.map_or(1.0, |f| slope(f, at(&xhat, i) * gamma + beta)) * at(x(3), i) * gamma
            });
            vec![norm_pull(&xhat, &inverse, &d, |i| (i[0], last(i) / (to.last() / groups)))]
        }
        Op::LayerNorm { eps } => {
            let xhat = row_xhat(x(0), *eps).0;
            one(&|i| at(&xhat, i) * x(1).data()[last(i)] + x(2).data()[last(i)])
        }
        Op::LayerNormBwd { eps } => {
            let (xhat, inverse) = row_xhat(x(0), *eps);
            let d = tensor(to, |i| at(x(2), i) * x(1).data()[last(i)]);
            vec![norm_pull(&xhat, &inverse, &d, |i| (flat(to, i) / to.last(), 0))]
        }
        Op::Upsample { height, width } => {
            let (h, w) = (x(0).shape()[1], x(0).shape()[2]);
            one(&|i| at(x(0), &[i[0], i[1] * h / height, i[2] * w / width, i[3]]))
        }
        Op::UpsampleBwd { height: h, width: w } => {
            let (mut dx, from) = (Tensor::filled(to.clone(), 0.0), x(0).shape());
            for i in indices(from) {
                let source = flat(to, &[i[0], i[1] * h / from[1], i[2] * w / from[2], i[3]]);
                dx.data_mut()[source] += at(x(0), &i);
            }
            vec![dx]
        }
        Op::Resample { mean, std, .. } => {
            let mut y = Tensor::filled(to.clone(), 0.0);
            bicubic(x(0).shape(), to, |from, out, weight| y.data_mut()[out] += weight * x(0).data()[from]);
            one(&|i| (at(&y, i) - f64::from(mean[i[3]])) / f64::from(std[i[3]]))
        }
        Op::ResampleBwd { std, .. } => {
            let mut dx = Tensor::filled(to.clone(), 0.0);
            bicubic(to, x(0).shape(), |from, out, weight| {
                dx.data_mut()[from] += weight * x(0).data()[out] / f64::from(std[out % 3]);
            });
            vec![dx]
        }
        Op::EmbedText => {
            let id = |i: &[usize]| index(0).data()[i[0] * to[1] + i[1]] as usize;
            one(&|i| at(x(1), &[id(i), i[2]]) + at(x(2), &[i[1], i[2]]))
        }
        Op::EmbedPatches => one(&|i| {
            let token = if i[1] == 0 { x(1).data()[i[2]] } else { at(x(0), &[i[0], i[1] - 1, i[2]]) };
            token + at(x(2), &[i[1], i[2]])
        }),
        Op::TimestepEmbedding { channels, flip, shift } => {
            let half = channels / 2;
            one(&|i| {
                let k = (i[1] % half) as f64;
                let frequency = (-(10_000f64.ln()) * k / (half as f64 - f64::from(*shift))).exp();
                let t = if operands.is_empty() { f64::from(state.timestep) } else { at(x(0), &i[..1]) };
                let angle = t * frequency;
                if (i[1] < half) != *flip { angle.sin() } else { angle.cos() }
            })
        }
        Op::Normalise => one(&|i| {
            let squares: f64 = (0..to.last()).map(|k| at(x(0), &with_last(i, k)).powi(2)).sum();
            at(x(0), i) / squares.sqrt()
        }),
        Op::CfgX0 => {
            let (z, rows, n) = (x(0).data(), x(1).data(), x(0).data().len());
            let g = f64::from(state.guidance);
            let m = |i: usize| if rows.len() == n { rows[i] } else { rows[i] + g * (rows[n + i] - rows[i]) };
            vec![
                Tensor::new(to.clone(), (0..n).map(|i| mix(state.eps_from, z[i], m(i))).collect()),
                Tensor::new(to.clone(), (0..n).map(|i| mix(state.x0_from, z[i], m(i))).collect()),
            ]
        }
        Op::CfgX0Bwd { rows } => {
            let (dx0, [a, b]) = (x(0).data(), state.x0_from.map(f64::from));
            let (n, g) = (dx0.len(), f64::from(state.guidance));
            let factor = |row: usize| if *rows == 1 { 1.0 } else { [1.0 - g, g][row] };
            vec![
                Tensor::new(to.clone(), dx0.iter().map(|d| a * d).collect()),
                Tensor::new(
                    shapes[1].clone(),
                    (0..rows * n).map(|i| factor(i / n) * b * dx0[i % n]).collect(),
                ),
            ]
        }
        Op::SldX0 => sld(to, [x(0).data(), x(1).data(), x(2).data()], state),
        Op::ClipCosine { reduce, top_k, scale_log2 } => {
            clip_cosine(&shapes, x(0), x(1), *reduce, *top_k, *scale_log2, f64::from(state.threshold))
        }
        Op::DdimUnguide { scale_log2 } => {
            let factor = f64::from(state.gamma) * 2f64.powi(-scale_log2);
            let x0 = tensor(to, |i| {
                let open = operands.len() > 3 && x(3).data()[i[0]] != 0.0;
                if open { at(x(1), i) - factor * at(x(4), i) } else { at(x(1), i) }
            });
            let [a, b, c] = [state.prev_x0, state.prev_eps, state.sigma].map(f64::from);
            let z = tensor(to, |i| a * at(&x0, i) + b * at(x(0), i) + c * at(x(2), i));
            vec![z, x0]
        }
        Op::GuideEps { scale_log2 } => {
            let alpha = f64::from(state.alpha);
            let factor = f64::from(state.gamma) * 2f64.powi(-scale_log2) * (1.0 - alpha).sqrt();
            let open = |i: &[usize]| x(3).data()[i[0]] != 0.0;
            let eps = tensor(to, |i| if open(i) { at(x(1), i) + factor * at(x(4), i) } else { at(x(1), i) });
            let x0 = tensor(to, |i| match open(i) {
                true => (at(x(0), i) - (1.0 - alpha).sqrt() * at(&eps, i)) / alpha.sqrt(),
                false => at(x(2), i),
            });
            vec![eps, x0]
        }
        Op::FrozenPullback => each(&|i| x(0).data()[i] / f64::from(state.alpha).sqrt()),
    }
}

fn mix(from: [f32; 2], z: f64, m: f64) -> f64 {
    f64::from(from[0]) * z + f64::from(from[1]) * m
}

fn act(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * 0.5 * (1.0 + libm::erf(x / 2f64.sqrt())),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
    }
}

fn slope(activation: Activation, x: f64) -> f64 {
    let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Silu => logistic(x) + x * logistic(x) * logistic(-x),
        Activation::Gelu => {
            let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
            0.5 * (1.0 + libm::erf(x / 2f64.sqrt())) + x * density
        }
        Activation::QuickGelu => {
            let z = 1.702 * x;
            logistic(z) + z * logistic(z) * logistic(-z)
        }
        Activation::Relu => f64::from(x > 0.0),
        Activation::Tanh => 1.0 / x.cosh().powi(2),
    }
}

/// Calls `f(element of x, element of w, element of y)` for every product of a convolution.
fn taps(
    x: &Shape,
    w: &Shape,
    y: &Shape,
    stride: usize,
    padding: Padding,
    mut f: impl FnMut(usize, usize, usize),
) {
    for i in indices(y) {
        let out = flat(y, &i);
        for (r, s) in (0..w[1]).flat_map(|r| (0..w[2]).map(move |s| (r, s))) {
            let row = (i[1] * stride + r).checked_sub(padding.top).filter(|&row| row < x[1]);
            let col = (i[2] * stride + s).checked_sub(padding.left).filter(|&col| col < x[2]);
            if let (Some(row), Some(col)) = (row, col) {
                for c in 0..x[3] {
                    f(flat(x, &[i[0], row, col, c]), flat(w, &[i[3], r, s, c]), out);
                }
            }
        }
    }
}

/// P and the log-sum-exp of one query.
fn softmax(
    q: &Tensor<f64>,
    k: &Tensor<f64>,
    [n, i, h]: [usize; 3],
    d: usize,
    causal: bool,
) -> (Vec<f64>, f64) {
    let dot = |j: usize| -> f64 { (h * d..(h + 1) * d).map(|c| at(q, &[n, i, c]) * at(k, &[n, j, c])).sum() };
    let seen = |j: usize| !causal || j <= i;
    let score = |j: usize| if seen(j) { dot(j) / (d as f64).sqrt() } else { f64::NEG_INFINITY };
    let scores: Vec<f64> = (0..k.shape()[1]).map(score).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
    (scores.iter().map(|s| (s - most).exp() / sum).collect(), most + sum.ln())
}

/// q, k and v, of which an operand may hold several side by side.
fn apart(operands: &[Value<f64>]) -> [Tensor<f64>; 3] {
    let parts = |operand: &Value<f64>, count: usize| {
        let x = operand.real().clone();
        let c = x.shape().last() / count;
        let part = move |part: usize| {
            let shape = x.shape().with_last(c);
            tensor(&shape, |i| at(&x, &with_last(i, part * c + last(i))))
        };
        (0..count).map(part)
    };
    let all: Vec<_> = match operands {
        [all] => parts(all, 3).collect(),
        [q, kv] => parts(q, 1).chain(parts(kv, 2)).collect(),
        _ => operands.iter().map(|x| x.real().clone()).collect(),
    };
    all.try_into().expect("q, k and v")
}

/// Tensors of equally many channels as one.
fn side_by_side(parts: &[Tensor<f64>]) -> Tensor<f64> {
    let c = parts[0].shape().last();
    let shape = parts[0].shape().with_last(parts.len() * c);
    tensor(&shape, |i| at(&parts[last(i) / c], &with_last(i, last(i) % c)))
}

fn attention(
    q: &Tensor<f64>,
    k: &Tensor<f64>,
    v: &Tensor<f64>,
    heads: usize,
    causal: bool,
) -> Vec<Tensor<f64>> {
    let (n, t, d) = (q.shape()[0], q.shape()[1], q.shape()[2] / heads);
    let mut o = Tensor::filled(q.shape().clone(), 0.0);
    let mut lse = Tensor::filled([n, heads, t], 0.0);
    for [n, h, i] in indices(&[n, heads, t].into()).map(|i| [i[0], i[1], i[2]]) {
        let (p, sum) = softmax(q, k, [n, i, h], d, causal);
        let place = flat(lse.shape(), &[n, h, i]);
        lse.data_mut()[place] = sum;
        for c in h * d..(h + 1) * d {
            let place = flat(q.shape(), &[n, i, c]);
            o.data_mut()[place] = p.iter().enumerate().map(|(j, p)| p * at(v, &[n, j, c])).sum();
        }
    }
    vec![o, lse]
}

fn attention_bwd([q, k, v, d_o]: [&Tensor<f64>; 4], heads: usize, causal: bool) -> [Tensor<f64>; 3] {
    let (n, t, d) = (q.shape()[0], q.shape()[1], q.shape()[2] / heads);
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| Tensor::filled(x.shape().clone(), 0.0));
    for [n, h, i] in indices(&[n, heads, t].into()).map(|i| [i[0], i[1], i[2]]) {
        let (p, _) = softmax(q, k, [n, i, h], d, causal);
        let dp =
            |j: usize| -> f64 { (h * d..(h + 1) * d).map(|c| at(d_o, &[n, i, c]) * at(v, &[n, j, c])).sum() };
        let dp: Vec<f64> = (0..p.len()).map(dp).collect();
        let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
        for (j, (p, dp)) in p.iter().zip(&dp).enumerate() {
            let ds = p * (dp - mean) / (d as f64).sqrt();
            for c in h * d..(h + 1) * d {
                let (query, key) = (flat(q.shape(), &[n, i, c]), flat(k.shape(), &[n, j, c]));
                dq.data_mut()[query] += ds * k.data()[key];
                dk.data_mut()[key] += ds * q.data()[query];
                dv.data_mut()[key] += p * d_o.data()[query];
            }
        }
    }
    [dq, dk, dv]
}

/// Normalised x, and 1 / sqrt(var + eps) of every element.
fn xhat<K: Ord>(x: &Tensor<f64>, eps: f32, key: impl Fn(&[usize]) -> K) -> (Tensor<f64>, Vec<f64>) {
    let mut groups = std::collections::BTreeMap::<K, Vec<f64>>::new();
    for i in indices(x.shape()) {
        groups.entry(key(&i)).or_default().push(at(x, &i));
    }
    let moments = |values: &Vec<f64>| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, 1.0 / (variance + f64::from(eps)).sqrt())
    };
    let groups: std::collections::BTreeMap<K, _> =
        groups.into_iter().map(|(k, v)| (k, moments(&v))).collect();
    let hat = tensor(x.shape(), |i| (at(x, i) - groups[&key(i)].0) * groups[&key(i)].1);
    (hat, indices(x.shape()).map(|i| groups[&key(&i)].1).collect())
}

fn group_xhat(x: &Tensor<f64>, groups: usize, eps: f32) -> (Tensor<f64>, Vec<f64>) {
    let width = x.shape().last() / groups;
    xhat(x, eps, |i| (i[0], last(i) / width))
}

fn row_xhat(x: &Tensor<f64>, eps: f32) -> (Tensor<f64>, Vec<f64>) {
    xhat(x, eps, |i| i[..i.len() - 1].to_vec())
}

/// dx from the gradient `d` of xhat.
fn norm_pull(
    xhat: &Tensor<f64>,
    inverse: &[f64],
    d: &Tensor<f64>,
    key: impl Fn(&[usize]) -> (usize, usize),
) -> Tensor<f64> {
    let mut sums = std::collections::BTreeMap::<(usize, usize), [f64; 3]>::new();
    for i in indices(xhat.shape()) {
        let sum = sums.entry(key(&i)).or_default();
        sum[0] += 1.0;
        sum[1] += at(d, &i);
        sum[2] += at(d, &i) * at(xhat, &i);
    }
    tensor(xhat.shape(), |i| {
        let [count, sum, along] = sums[&key(i)];
        inverse[flat(xhat.shape(), i)] * (at(d, i) - sum / count - at(xhat, i) * along / count)
    })
}

/// Calls `f(element of x, element of y, weight)` for all sixteen taps of every output.
fn bicubic(x: &Shape, y: &Shape, mut f: impl FnMut(usize, usize, f64)) {
    let kernel = |t: f64| {
        let (a, t) = (-0.75, t.abs());
        if t <= 1.0 {
            (a + 2.0) * t.powi(3) - (a + 3.0) * t.powi(2) + 1.0
        } else if t < 2.0 {
            a * t.powi(3) - 5.0 * a * t.powi(2) + 8.0 * a * t - 4.0 * a
        } else {
            0.0
        }
    };
    let place = |i: usize, from: usize, to: usize| (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    for i in indices(y) {
        let (v, u) = (place(i[1], x[1], y[1]), place(i[2], x[2], y[2]));
        for (a, b) in (-1..3).flat_map(|a| (-1..3).map(move |b| (a, b))) {
            let (row, col) = (v.floor() + f64::from(a), u.floor() + f64::from(b));
            let weight = kernel(v - row) * kernel(u - col);
            let inside = |p: f64, len: usize| p.clamp(0.0, (len - 1) as f64) as usize;
            f(flat(x, &[i[0], inside(row, x[1]), inside(col, x[2]), i[3]]), flat(y, &i), weight);
        }
    }
}

fn sld(to: &Shape, [z, rows, nu]: [&[f64]; 3], state: &StepState) -> Vec<Tensor<f64>> {
    let (n, sld) = (z.len(), state.sld);
    let mut outputs = [vec![0.0; n], vec![0.0; n], vec![0.0; n]];
    for i in 0..n {
        let [u, c, s] = [rows[i], rows[n + i], rows[2 * n + i]];
        let phi = c - s;
        let mu =
            if phi >= f64::from(sld.threshold) { 0.0 } else { (phi.abs() * f64::from(sld.scale)).min(1.0) };
        let gamma = mu * (s - u) + f64::from(sld.momentum) * nu[i];
        let m = u + f64::from(state.guidance) * (c - u - if sld.warm { gamma } else { 0.0 });
        outputs[0][i] = mix(state.eps_from, z[i], m);
        outputs[1][i] = mix(state.x0_from, z[i], m);
        outputs[2][i] = f64::from(sld.beta) * nu[i] + (1.0 - f64::from(sld.beta)) * gamma;
    }
    outputs.map(|data| Tensor::new(to.clone(), data)).into()
}

fn clip_cosine(
    shapes: &[Shape],
    e: &Tensor<f64>,
    concepts: &Tensor<f64>,
    reduce: Reduce,
    top_k: Option<usize>,
    scale_log2: i32,
    threshold: f64,
) -> Vec<Tensor<f64>> {
    let mut outputs: Vec<_> = shapes.iter().map(|shape| Tensor::filled(shape.clone(), 0.0)).collect();
    let (k, d) = (concepts.shape()[0], e.shape()[1]);
    for n in 0..e.shape()[0] {
        let e = e.row(n);
        let length = e.iter().map(|x| x * x).sum::<f64>().sqrt();
        let u: Vec<f64> = e.iter().map(|x| x / length).collect();
        let score = |k: usize| -> f64 { u.iter().zip(concepts.row(k)).map(|(u, c)| u * c).sum() };
        let scores: Vec<f64> = (0..k).map(score).collect();
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).expect("finite scores").then(a.cmp(&b)));
        order.truncate(top_k.unwrap_or(k));
        let sum: f64 = order.iter().map(|&k| scores[k]).sum();
        let (p_h, small) = match reduce {
            Reduce::LogMean => (sum / order.len() as f64, sum / order.len() as f64 <= 1e-6),
            Reduce::SumLog => {
                (order.iter().map(|&k| scores[k]).product(), order.iter().any(|&k| scores[k] <= 1e-6))
            }
        };
        // The largest score alone: by its logarithm where it has one.
        let largest = scores[order[0]];
        let alone = if largest > 0.0 { 1.0 / largest.max(1e-6) } else { 1.0 };
        // The derivative of the score by the embedding: (c_k - s_k u) / |e|.
        let pull = |k: usize, c: usize| (concepts.row(k)[c] - scores[k] * u[c]) / length;
        for c in 0..d {
            let gradient: f64 = match reduce {
                _ if small => pull(order[0], c) * alone,
                Reduce::LogMean => order.iter().map(|&k| pull(k, c) / sum).sum(),
                Reduce::SumLog => order.iter().map(|&k| pull(k, c) / scores[k]).sum(),
            };
            outputs[3].data_mut()[n * d + c] = gradient * 2f64.powi(scale_log2);
        }
        outputs[0].data_mut()[n * k..(n + 1) * k].copy_from_slice(&scores);
        outputs[1].data_mut()[n] = p_h;
        outputs[2].data_mut()[n] = f64::from(scores.iter().any(|&s| s >= threshold));
        outputs[4].data_mut()[n] = f64::from(small);
    }
    outputs
}

fn tensor(shape: &Shape, f: impl Fn(&[usize]) -> f64) -> Tensor<f64> {
    Tensor::new(shape.clone(), indices(shape).map(|i| f(&i)).collect())
}

/// All index tuples, the last one fastest.
fn indices(shape: &Shape) -> impl Iterator<Item = Vec<usize>> + use<> {
    let shape = shape.clone();
    (0..shape.count()).map(move |mut flat| {
        let mut index = vec![0; shape.len()];
        for (i, &extent) in index.iter_mut().zip(&shape[..]).rev() {
            *i = flat % extent;
            flat /= extent;
        }
        index
    })
}

fn flat(shape: &Shape, index: &[usize]) -> usize {
    index.iter().zip(&shape[..]).fold(0, |flat, (i, extent)| flat * extent + i)
}

fn at(x: &Tensor<f64>, index: &[usize]) -> f64 {
    x.data()[flat(x.shape(), index)]
}

fn last(index: &[usize]) -> usize {
    index[index.len() - 1]
}

fn with_last(index: &[usize], last: usize) -> Vec<usize> {
    let mut index = index.to_vec();
    *index.last_mut().expect("an index") = last;
    index
}

fn with_first(index: &[usize], first: usize) -> Vec<usize> {
    let mut index = index.to_vec();
    index[0] = first;
    index
}
