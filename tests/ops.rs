//! Every operation of the CPU backend against the naive oracle, finite differences and itself.

mod support;

use support::cases::all;
use support::{Case, Class, Random, Value, bits, naive, run};
use unguide::ir::{Activation, Op, Reduce};
use unguide::plan::StepState;
use unguide::tensor::{Real, Tensor, compare};

#[test]
fn f32_results_are_within_the_bound_of_their_class() {
    let mut failures = Vec::new();
    for case in all() {
        let operands = case.operands();
        let reference: Vec<_> = operands.iter().map(Value::cast::<f64>).collect();
        let want = naive::eval(&case.op, &reference, &case.state);
        let got = run(&case.op, &operands, &case.state);
        let scales: Vec<f64> = want.iter().map(largest).collect();
        for (output, (got, want)) in got.iter().zip(&want).enumerate() {
            let difference = compare(got.data(), want.data());
            // Gradients of one softmax share a scale: with a single key those of q and k are zero.
            let shared = matches!(case.op, Op::AttentionBwd { .. });
            let scale = if shared { scales.iter().copied().fold(0.0, f64::max) } else { scales[output] };
            let bound = scale * tolerance(case.class);
            let alike = difference.dissimilarity < 1e-5 || scales[output] == 0.0;
            if !(difference.max_abs <= bound && alike) {
                failures.push(format!("{} output {output}: {difference:?}, bound {bound:e}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn f64_results_agree_with_the_oracle_to_twelve_digits() {
    let mut failures = Vec::new();
    for case in all() {
        let operands: Vec<_> = case.operands().iter().map(Value::cast::<f64>).collect();
        let want = naive::eval(&case.op, &operands, &case.state);
        let got = run(&case.op, &operands, &case.state);
        for (output, (got, want)) in got.iter().zip(&want).enumerate() {
            let difference = compare(got.data(), want.data());
            // The saved softmax of the backward pass was rounded to f32.
            let bound = if matches!(case.op, Op::AttentionBwd { .. }) { 1e-6 } else { 1e-12 };
            let near = difference.rel_l2 <= bound;
            if !near {
                failures.push(format!("{} output {output}: {difference:?}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
    let pools = [1, 2, 3].map(pool);
    for case in all() {
        let operands = case.operands();
        let [one, two, three] = pools.each_ref().map(|pool| {
            pool.install(|| run(&case.op, &operands, &case.state).iter().map(bits).collect::<Vec<_>>())
        });
        assert!(one == two && two == three, "{}", case.name);
    }
}

#[test]
fn bits_of_an_image_do_not_depend_on_its_batch() {
    let alone = |case: &&Case| case.inputs.iter().any(|input| input.batched) && !joins_images(&case.op);
    for case in all().iter().filter(alone).map(|case| case.with_batch(4)) {
        let operands = case.operands();
        let together = run(&case.op, &operands, &case.state);
        for i in 0..4 {
            let single: Vec<_> = operands
                .iter()
                .zip(&case.inputs)
                .map(|(value, input)| if input.batched { value.image(i) } else { value.clone() })
                .collect();
            for (output, single) in run(&case.op, &single, &case.state).iter().enumerate() {
                let image = Tensor::new(single.shape().clone(), together[output].row(i).to_vec());
                assert!(bits(&image) == bits(single), "image {i}, output {output} of {}", case.name);
            }
        }
    }
}

#[test]
fn backward_operations_are_the_derivatives_of_forward_ones() {
    let mut checked = 0;
    for case in all() {
        let operands: Vec<_> = case.operands().iter().map(Value::cast::<f64>).collect();
        if operands.iter().map(|x| x.shape().count()).sum::<usize>() < 20_000 {
            checked += usize::from(check_derivative(&case, &operands));
        }
    }
    assert!(checked > 90, "only {checked} cases have a backward operation");
}

#[test]
fn the_density_has_the_gradient_that_clip_cosine_returns() {
    for case in all() {
        let Op::ClipCosine { reduce, top_k, .. } = case.op else { continue };
        let op = Op::ClipCosine { reduce, top_k, scale_log2: 0 };
        let operands: Vec<_> = case.operands().iter().map(Value::cast::<f64>).collect();
        let results = run(&op, &operands, &case.state);
        let n = results[1].data().len();
        for i in (0..n).filter(|&i| results[4].data()[i] == 0.0) {
            let d = operands[0].shape().last();
            for c in i * d..(i + 1) * d {
                let log_p = |step: f64| {
                    let mut moved = operands.clone();
                    nudge(&mut moved[0], c, step);
                    run(&op, &moved, &case.state)[1].data()[i].ln()
                };
                let want = (log_p(1e-6) - log_p(-1e-6)) / 2e-6;
                let got = results[3].data()[c];
                assert!((got - want).abs() <= 1e-7 + 1e-5 * want.abs(), "{}: {got} {want}", case.name);
            }
        }
    }
}

#[test]
fn scores_that_cannot_be_trusted_open_the_gate() {
    let concepts = Tensor::new([2, 3], vec![1.0f32, 0.0, 0.0, 0.0, 1.0, 0.0]);
    let state = StepState { threshold: 0.2, ..StepState::default() };
    let op = Op::ClipCosine { reduce: Reduce::LogMean, top_k: None, scale_log2: 3 };
    let cases = [
        // Embedding, gate, status, whether there is a gradient.
        ([f32::NAN, 0.0, 0.0], 1.0, 2.0, false),
        ([f32::INFINITY, 0.0, 1.0], 1.0, 2.0, false),
        ([-1.0, -1.0, 0.5], 0.0, 1.0, true),
        ([1.0, -1.0, 0.5], 1.0, 1.0, true),
        ([0.1, 0.1, 1.0], 0.0, 0.0, true),
        ([0.0, 0.0, 0.0], 0.0, 1.0, true),
    ];
    for (e, gate, status, gradient) in cases {
        let e = Tensor::new([1, 3], e.to_vec());
        let out = run(&op, &[Value::Real(e.clone()), Value::Real(concepts.clone())], &state);
        assert_eq!((out[2].data()[0], out[4].data()[0]), (gate, status), "{e:?}");
        assert_eq!(out[3].data().iter().any(|&x| x != 0.0), gradient, "{e:?}");
        assert!(out[3].data().iter().all(|x| x.is_finite()));
    }
}

#[test]
fn equal_scores_count_from_the_lower_index() {
    let op = Op::ClipCosine { reduce: Reduce::LogMean, top_k: Some(1), scale_log2: 0 };
    let e = Tensor::new([1, 3], vec![1.0f64, 1.0, 1.0]);
    let concepts = Tensor::new([3, 3], vec![0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
    let de = &run(&op, &[Value::Real(e), Value::Real(concepts)], &StepState::default())[3];
    assert!(de.data()[2] > 0.0 && de.data()[1] < 0.0 && de.data()[0] < 0.0);
}

#[test]
fn a_closed_gate_leaves_the_bits_of_plain_sampling() {
    let mut random = Random::named("closed gate");
    let mut latents = || Value::Real(Tensor::new([2, 3, 5], random.normals(30, 0.0, 1.0)));
    let mut operands = vec![latents(), latents(), latents()];
    let state = StepState { prev_x0: 0.3, prev_eps: 0.9, gamma: 75.0, alpha: 0.5, ..StepState::default() };
    let plain = run(&Op::DdimUnguide { scale_log2: 4 }, &operands, &state);
    operands.push(Value::Real(Tensor::filled([2], 0.0)));
    operands.push(Value::Real(Tensor::filled([2, 3, 5], f32::NAN)));
    let gated = run(&Op::DdimUnguide { scale_log2: 4 }, &operands, &state);
    assert!(bits(&plain[0]) == bits(&gated[0]) && bits(&plain[1]) == bits(&gated[1]));
    let eps = run(&Op::GuideEps { scale_log2: 4 }, &operands, &state);
    assert!(bits(&eps[0]) == bits(operands[1].real()) && bits(&eps[1]) == bits(operands[2].real()));
}

#[test]
fn noise_is_not_even_read_where_sigma_is_zero() {
    let latents = |x: f32| Value::Real(Tensor::filled([1, 4], x));
    let operands = [latents(1.0), latents(2.0), latents(f32::NAN)];
    let z = &run(&Op::DdimUnguide { scale_log2: 0 }, &operands, &StepState::default())[0];
    assert_eq!(z.data(), [2.0; 4]);
}

#[test]
fn resampling_to_the_same_size_changes_nothing() {
    let image = Tensor::new([1, 5, 7, 3], Random::named("image").normals(105, 0.0, 1.0));
    let op = Op::Resample { height: 5, width: 7, mean: [0.0; 3], std: [1.0; 3] };
    let same = run(&op, &[Value::Real(image.clone())], &StepState::default());
    assert_eq!(same[0].data(), image.data());
}

#[test]
fn not_a_number_goes_through_activations() {
    use Activation::{Gelu, QuickGelu, Relu, Silu, Tanh};
    let x = Value::Real(Tensor::filled([1, 3], f32::NAN));
    for activation in [Silu, Gelu, QuickGelu, Relu, Tanh] {
        let y = &run(&Op::Activate(activation), std::slice::from_ref(&x), &StepState::default())[0];
        assert!(y.data().iter().all(|y| y.is_nan()), "{activation:?}");
    }
}

fn largest(x: &Tensor<f64>) -> f64 {
    x.data().iter().fold(0.0, |most: f64, x| most.max(x.abs()))
}

/// Error over the largest magnitude of the result.
fn tolerance(class: Class) -> f64 {
    let ulp = f64::from(f32::EPSILON);
    match class {
        Class::Exact => 0.0,
        Class::Rounded => 5.0 * ulp,
        Class::Reduced => 8.0 * ulp,
        Class::Contracted(terms) => 1e-6 * (terms as f64).sqrt(),
    }
}

/// Whether images meet or multiply in the operation, so that there is no image i of the result.
fn joins_images(op: &Op) -> bool {
    matches!(op, Op::CfgX0 | Op::CfgX0Bwd { .. } | Op::SldX0)
}

/// An operation, its operands, and the operands of the forward one that its results belong to.
type Backward = (Op, Vec<Value<f64>>, &'static [usize]);

/// The backward operation of `case`, for the cotangents `d` of all outputs, if there is one.
fn backward(case: &Case, x: &[Value<f64>], y: &[Tensor<f64>], d: &[Value<f64>]) -> Option<Backward> {
    let (dy, extent) = (d.first()?.clone(), |i: usize| x[0].shape()[i]);
    let operand = |i: usize| x[i].clone();
    let first: &[usize] = &[0];
    Some(match case.op.clone() {
        Op::Activate(activation) => (Op::ActivateBwd(activation), vec![operand(0), dy], first),
        Op::Geglu => (Op::GegluBwd, vec![operand(0), dy], first),
        Op::Linear => (Op::LinearBwd, vec![dy, operand(1)], first),
        Op::Conv2d { stride, padding } => {
            let op = Op::Conv2dBwd { stride, padding, height: extent(1), width: extent(2) };
            (op, vec![dy, operand(1)], first)
        }
        Op::Attention { heads, causal } => {
            let saved = y.iter().cloned().map(Value::Real);
            let operands = saved.chain([dy]).chain(x.iter().cloned()).collect();
            (Op::AttentionBwd { heads, causal }, operands, case.differentiable)
        }
        Op::GroupNorm { groups, eps, act } => {
            let operands = vec![operand(0), operand(1), operand(2), dy];
            (Op::GroupNormBwd { groups, eps, act }, operands, first)
        }
        Op::LayerNorm { eps } => (Op::LayerNormBwd { eps }, vec![operand(0), operand(1), dy], first),
        Op::Upsample { .. } => (Op::UpsampleBwd { height: extent(1), width: extent(2) }, vec![dy], first),
        Op::Resample { std, .. } => {
            (Op::ResampleBwd { height: extent(1), width: extent(2), std }, vec![dy], first)
        }
        Op::SliceChannels { start, .. } => {
            (Op::PadChannels { start, channels: x[0].shape().last() }, vec![dy], first)
        }
        Op::SliceTokens { start, .. } => (Op::PadTokens { start, tokens: extent(1) }, vec![dy], first),
        Op::RepeatBatch { times } => (Op::SumBatch { times }, vec![dy], first),
        Op::CfgX0 => {
            let rows = x[1].shape()[0] / extent(0);
            (Op::CfgX0Bwd { rows }, vec![d[1].clone()], &[0, 1])
        }
        _ => return None,
    })
}

/// Compares the backward operation, if there is one, with central differences of <cotangent, outputs>
/// along single elements and random directions.
fn check_derivative(case: &Case, operands: &[Value<f64>]) -> bool {
    const STEP: f64 = 1e-6;
    let mut random = Random::named(&case.name);
    let outputs = run(&case.op, operands, &case.state);
    // The backward operations take no gradient of the log-sum-exp, nor of CfgX0's eps.
    let pulled = if matches!(case.op, Op::CfgX0) { 1 } else { 0 };
    let cotangent = |(i, y): (usize, &Tensor<f64>)| {
        let data = (0..y.data().len()).map(|_| if i == pulled { random.normal() } else { 0.0 }).collect();
        Value::Real(Tensor::new(y.shape().clone(), data))
    };
    let cotangents: Vec<_> = outputs.iter().enumerate().map(cotangent).collect();
    let Some((op, inputs, wanted)) = backward(case, operands, &outputs, &cotangents) else { return false };
    let gradients = run(&op, &inputs, &case.state);
    let pairing = |operands: &[Value<f64>]| -> f64 {
        let outputs = run(&case.op, operands, &case.state);
        outputs[pulled].data().iter().zip(cotangents[pulled].real().data()).map(|(y, d)| y * d).sum()
    };
    for (gradient, &which) in gradients.iter().zip(wanted) {
        let count = gradient.data().len();
        for trial in 0..10 {
            let direction: Vec<f64> = if trial < 2 {
                (0..count).map(|_| random.normal() / (count as f64).sqrt()).collect()
            } else {
                let chosen = random.bits() as usize % count;
                (0..count).map(|i| f64::from(i == chosen)).collect()
            };
            let moved = |step: f64| {
                let mut moved = operands.to_vec();
                direction.iter().enumerate().for_each(|(i, d)| nudge(&mut moved[which], i, step * d));
                pairing(&moved)
            };
            let want = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let got: f64 = gradient.data().iter().zip(&direction).map(|(g, d)| g * d).sum();
            let bound = 1e-5 + 1e-3 * want.abs();
            assert!((got - want).abs() <= bound, "{} operand {which}: {got} not {want}", case.name);
        }
    }
    true
}

fn nudge<T: Real>(value: &mut Value<T>, i: usize, by: T) {
    match value {
        Value::Real(tensor) => tensor.data_mut()[i] += by,
        Value::Index(_) => panic!("an index has no derivative"),
    }
}
