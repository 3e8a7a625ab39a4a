//! Every rule of differentiation against central differences in f64, on shapes that fit nothing evenly.

#[path = "support/graphs.rs"]
mod graphs;

use graphs::{Input, Runner};
use unguide::autodiff::pull_back;
use unguide::backend::WeightSource;
use unguide::ir::{Activation, Builder, Layout, Op, Padding, Reduce, ValueId};
use unguide::models::{
    self, ClipVisionConfig, EncoderConfig, IMAGE_MEAN, IMAGE_STD, UnetConfig, UnetLevel, VaeConfig,
};
use unguide::plan::StepState;
use unguide::tensor::{Shape, Tensor};
use unguide::{Error, Result};

const EPS: f64 = 1e-6;
const ATOL: f64 = 1e-7;
const RTOL: f64 = 1e-5;

#[test]
fn convolutions() {
    let conv = |out: usize, taps: [usize; 2], stride: usize, padding: Padding, bias: bool| {
        move |b: &mut Builder, x: &[ValueId]| {
            let shape = [out, taps[0], taps[1], b.shape(x[0]).last()];
            let mut operands = vec![x[0], b.param("conv.weight", shape, Layout::Filter)?];
            if bias {
                operands.push(b.param("conv.bias", [out], Layout::Plain)?);
            }
            Ok(vec![b.push("conv", Op::Conv2d { stride, padding }, &operands)?])
        }
    };
    let asymmetric = Padding { top: 0, left: 0, bottom: 1, right: 1 };
    let uneven = Padding { top: 2, left: 0, bottom: 1, right: 3 };
    check("3x3", &[&[2, 5, 7, 3]], conv(4, [3, 3], 1, Padding::all(1), true));
    check("3x3, no padding", &[&[1, 5, 4, 2]], conv(3, [3, 3], 1, Padding::NONE, false));
    check("3x3, uneven padding", &[&[1, 4, 5, 2]], conv(3, [3, 3], 1, uneven, true));
    check("3x3, stride 2", &[&[2, 5, 7, 3]], conv(2, [3, 3], 2, Padding::all(1), true));
    check("3x3, stride 2, padded behind", &[&[1, 6, 5, 3]], conv(2, [3, 3], 2, asymmetric, true));
    check("1x1", &[&[2, 3, 5, 4]], conv(3, [1, 1], 1, Padding::NONE, true));
    check("1x1, stride 2", &[&[1, 5, 4, 3]], conv(2, [1, 1], 2, Padding::NONE, true));
    check("1x3", &[&[1, 4, 5, 2]], conv(3, [1, 3], 1, Padding { left: 1, right: 1, ..Padding::NONE }, true));
    check("patches of 8", &[&[1, 17, 19, 3]], conv(5, [8, 8], 8, Padding::NONE, false));
}

#[test]
fn linear_layers() {
    check("with a bias", &[&[2, 3, 5]], |b, x| Ok(vec![b.linear("linear", x[0], 7, true)?]));
    check("without", &[&[3, 7]], |b, x| Ok(vec![b.linear("linear", x[0], 1, false)?]));
    let parts = ["q", "k", "v"];
    check("side by side", &[&[2, 3, 5]], move |b, x| {
        Ok(vec![b.linear_side_by_side("qkv", &parts, x[0], 2, true)?])
    });
}

#[test]
fn attentions() {
    let attention = |heads: usize, causal: bool| {
        move |b: &mut Builder, x: &[ValueId]| Ok(vec![b.attention("attention", x, heads, causal)?])
    };
    let of_one = |heads: usize, causal: bool| {
        move |b: &mut Builder, x: &[ValueId]| Ok(vec![b.attention("attention", &[x[0]; 3], heads, causal)?])
    };
    for (heads, channels) in [(1, 5), (3, 6)] {
        let (t, u) = ([2, 5, channels], [2, 7, channels]);
        check("cross", &[&t, &u, &u], attention(heads, false));
        check("self", &[&t, &t, &t], attention(heads, false));
        check("causal", &[&t, &t, &t], attention(heads, true));
        check("all of one value", &[&t], of_one(heads, false));
        check("causal, all of one value", &[&t], of_one(heads, true));
        let (two, three) = ([2, 7, 2 * channels], [2, 5, 3 * channels]);
        check("keys beside values", &[&t, &two], attention(heads, false));
        check("all side by side", &[&three], attention(heads, false));
        check("causal, all side by side", &[&three], attention(heads, true));
    }
    // More rows than one block of queries or keys has.
    check("in blocks", &[&[1, 37, 2], &[1, 35, 2], &[1, 35, 2]], attention(1, false));
    check("causal, in blocks", &[&[1, 37, 2]], of_one(2, true));
    check("causal, side by side, in blocks", &[&[1, 37, 6]], attention(2, true));
    check("keys beside values, in blocks", &[&[1, 35, 2], &[1, 37, 4]], attention(1, false));
}

#[test]
fn norms() {
    for act in [None, Some(Activation::Silu)] {
        for (shape, groups) in [([2, 3, 5, 6], 2), ([1, 5, 3, 15], 5), ([1, 2, 3, 4], 1), ([2, 3, 3, 3], 3)] {
            check("group norm", &[&shape], |b, x| {
                Ok(vec![b.group_norm("norm", x[0], (groups, 1e-5), act)?])
            });
        }
        check("group norm of tokens", &[&[2, 7, 6]], |b, x| {
            Ok(vec![b.group_norm("norm", x[0], (3, 1e-6), act)?])
        });
    }
    check("layer norm", &[&[2, 3, 7]], |b, x| Ok(vec![b.layer_norm("norm", x[0], 1e-5)?]));
    check("layer norm of rows", &[&[3, 33]], |b, x| Ok(vec![b.layer_norm("norm", x[0], 1e-5)?]));
}

#[test]
fn pointwise_functions() {
    use Activation::{Gelu, QuickGelu, Relu, Silu, Tanh};
    for act in [Silu, Gelu, QuickGelu, Relu, Tanh] {
        check(&format!("{act:?}"), &[&[3, 37]], |b, x| Ok(vec![b.activate("act", x[0], act)?]));
    }
    check("geglu", &[&[2, 3, 10]], |b, x| Ok(vec![b.push("geglu", Op::Geglu, &[x[0]])?]));
    check("affine", &[&[2, 7]], |b, x| Ok(vec![b.affine("affine", x[0], -1.5, 0.25)?]));
    check("add", &[&[2, 5], &[2, 5]], |b, x| Ok(vec![b.add("add", x[0], x[1])?]));
    check("add to itself", &[&[2, 5]], |b, x| Ok(vec![b.add("add", x[0], x[0])?]));
    check("a value used three times", &[&[2, 5]], |b, x| {
        let y = b.activate("act", x[0], Activation::Tanh)?;
        let z = b.add("add", x[0], y)?;
        Ok(vec![b.add("again", z, y)?, b.affine("other", x[0], 3.0, 0.0)?])
    });
    for rows in [1, 2] {
        check("add channels", &[&[2, 3, 5, 3]], |b, x| {
            let v = b.param("v.weight", [rows, 3], Layout::Plain)?;
            Ok(vec![b.push("add", Op::AddChannels, &[x[0], v])?])
        });
    }
}

#[test]
fn rearrangements() {
    check("reshape", &[&[2, 3, 5]], |b, x| {
        let y = b.reshape(x[0], [5, 6])?;
        Ok(vec![b.activate("act", y, Activation::Tanh)?])
    });
    check("concat", &[&[2, 3, 5], &[2, 3, 2]], |b, x| {
        Ok(vec![b.push("concat", Op::Concat, &[x[0], x[1]])?])
    });
    check("concat with itself", &[&[2, 3]], |b, x| Ok(vec![b.push("concat", Op::Concat, &[x[0], x[0]])?]));
    for (name, op) in [
        ("slice channels", Op::SliceChannels { start: 1, len: 3 }),
        ("pad channels", Op::PadChannels { start: 2, channels: 9 }),
        ("slice tokens", Op::SliceTokens { start: 2, len: 1 }),
        ("pad tokens", Op::PadTokens { start: 1, tokens: 6 }),
        ("repeat", Op::RepeatBatch { times: 3 }),
        ("sum copies", Op::SumBatch { times: 2 }),
    ] {
        check(name, &[&[4, 3, 5]], |b, x| Ok(vec![b.push("op", op.clone(), &[x[0]])?]));
    }
    check("embed patches", &[&[2, 3, 5]], |b, x| {
        let class = b.param("class.weight", [5], Layout::Plain)?;
        let position = b.param("position.weight", [4, 5], Layout::Plain)?;
        Ok(vec![b.push("embed", Op::EmbedPatches, &[x[0], class, position])?])
    });
}

#[test]
fn resizing() {
    for (height, width) in [(6, 10), (5, 9), (3, 5), (7, 11)] {
        let op = Op::Upsample { height, width };
        check(&format!("{op:?}"), &[&[2, 3, 5, 2]], |b, x| Ok(vec![b.push("up", op.clone(), &[x[0]])?]));
    }
    for (height, width) in [(11, 13), (3, 4), (5, 7), (9, 2), (1, 1)] {
        let op = Op::Resample { height, width, mean: IMAGE_MEAN, std: IMAGE_STD };
        check(&format!("{op:?}"), &[&[1, 5, 7, 3]], |b, x| {
            Ok(vec![b.push("resample", op.clone(), &[x[0]])?])
        });
    }
}

#[test]
fn the_predicted_clean_latents() {
    let state = StepState { guidance: 5.5, x0_from: [1.25, -0.75], ..StepState::default() };
    for rows in [1, 2] {
        check_at(state, "cfg_x0", &[&[2, 3, 3, 4], &[2 * rows, 3, 3, 4]], |b, x| {
            Ok(vec![b.push_many("cfg_x0", Op::CfgX0, &[x[0], x[1]])?[1]])
        });
        check_at(state, "cfg_x0 of one value", &[&[1, 3, 2, 4]], |b, x| {
            let rows = b.push("rows", Op::RepeatBatch { times: rows }, &[x[0]])?;
            let rows = b.activate("network", rows, Activation::Tanh)?;
            Ok(vec![b.push_many("cfg_x0", Op::CfgX0, &[x[0], rows])?[1]])
        });
    }
}

#[test]
fn the_fused_gradient_of_the_density() {
    const D: usize = 7;
    let concepts: Vec<Vec<f64>> = (0..5).map(|k| unit(&positive(D, 90 + k))).collect();
    // As above, but two concepts point away.
    let mut mixed = concepts.clone();
    for k in [1, 3] {
        mixed[k].iter_mut().for_each(|v| *v = -*v);
    }
    let away: Vec<Vec<f64>> = concepts.iter().map(|c| c.iter().map(|v| -v).collect()).collect();
    // Scores, largest first, to what the gradient is that of.
    type LogP = fn(&[f64]) -> f64;
    type Case<'c> = (&'c str, &'c [Vec<f64>], Reduce, Option<usize>, f64, LogP);
    let cases: [Case; 8] = [
        ("log-mean", &concepts, Reduce::LogMean, None, 0.0, |s| (s.iter().sum::<f64>() / 5.0).ln()),
        ("log-mean of one", &concepts, Reduce::LogMean, Some(1), 0.0, |s| s[0].ln()),
        ("log-mean of three", &concepts, Reduce::LogMean, Some(3), 0.0, |s| {
            (s[..3].iter().sum::<f64>() / 3.0).ln()
        }),
        ("sum-log", &concepts, Reduce::SumLog, None, 0.0, |s| s.iter().map(|s| s.ln()).sum()),
        ("sum-log of two", &concepts, Reduce::SumLog, Some(2), 0.0, |s| s[0].ln() + s[1].ln()),
        ("sum-log of the positive ones", &mixed, Reduce::SumLog, Some(3), 0.0, |s| {
            s[..3].iter().map(|s| s.ln()).sum()
        }),
        ("the largest instead", &mixed, Reduce::SumLog, None, 1.0, |s| s[0].ln()),
        ("the largest of negative ones", &away, Reduce::LogMean, None, 1.0, |s| s[0]),
    ];
    for (name, concepts, reduce, top_k, status, log_p) in cases {
        let e = Tensor::new([2, D], [positive(D, 3), positive(D, 4)].concat());
        let c = Tensor::new([concepts.len(), D], concepts.concat());
        let op = Op::ClipCosine { reduce, top_k, scale_log2: 3 };
        let mut runner = Runner::<f64>::new(&Random, &[e.clone().into(), c.into()], |b, x| {
            b.push_many("cosine", op, &[x[0], x[1]])
        })
        .expect("it fits");
        let results = runner.run();
        assert!(results[4].data().iter().all(|&found| found == status), "{name}");
        let gradient: Vec<f64> = results[3].data().iter().map(|g| g / 8.0).collect();
        let k = concepts.len();
        let loss = |data: &[f64]| {
            runner.set(0, data);
            let scores = runner.run().swap_remove(0);
            let each = scores.data().chunks(k).map(|scores| {
                let mut sorted = scores.to_vec();
                sorted.sort_by(|a, b| b.total_cmp(a));
                log_p(&sorted)
            });
            each.sum()
        };
        assert_gradient(name, e.data(), &gradient, loss);
    }
}

#[test]
fn from_the_density_to_the_latents() {
    let x0 = Tensor::new([1, 3, 5, 4], normal(60, 11));
    check_loss("through the decoder", &[x0], |b, x| Ok((x[0], embed(b, x[0])?)));
}

#[test]
fn from_the_density_through_the_unet() {
    let z = Tensor::new([1, 5, 3, 4], normal(60, 12));
    let context = Tensor::new([2, 3, 10], normal(60, 13));
    check_loss("through the UNet", &[z, context], |b, x| {
        let rows = b.push("rows", Op::RepeatBatch { times: 2 }, &[x[0]])?;
        let rows = models::unet(b, &unet(), rows, x[1])?;
        let x0 = b.push_many("cfg_x0", Op::CfgX0, &[x[0], rows])?[1];
        Ok((x[0], embed(b, x0)?))
    });
}

#[test]
fn what_has_no_derivative_is_refused_by_name() {
    let weight = |b: &mut Builder, shape: &[usize]| b.param("w", shape, Layout::Plain);
    // (node, input, graph: the result and what it is differentiated by)
    type Graph = fn(&mut Builder, ValueId, ValueId) -> Result<[ValueId; 2]>;
    let cases: [(&str, usize, Graph); 9] = [
        ("linear", 1, |b, x, w| Ok([b.push("linear", Op::Linear, &[x, w])?, w])),
        ("norm", 1, |b, x, _| {
            let gamma = b.param("gamma", [4], Layout::Plain)?;
            let beta = b.param("beta", [4], Layout::Plain)?;
            Ok([b.push("norm", Op::LayerNorm { eps: 1e-5 }, &[x, gamma, beta])?, gamma])
        }),
        ("norm", 2, |b, x, _| {
            let gamma = b.param("gamma", [4], Layout::Plain)?;
            let beta = b.param("beta", [4], Layout::Plain)?;
            Ok([b.push("norm", Op::GroupNorm { groups: 2, eps: 1e-5, act: None }, &[x, gamma, beta])?, beta])
        }),
        ("shift", 1, |b, x, _| {
            let v = b.param("v", [1, 4], Layout::Plain)?;
            Ok([b.push("shift", Op::AddChannels, &[x, v])?, v])
        }),
        ("unit", 0, |b, x, _| Ok([b.push("unit", Op::Normalise, &[x])?, x])),
        ("cut", 0, |b, x, _| Ok([b.push("cut", Op::SliceBatch { start: 0, len: 1 }, &[x])?, x])),
        ("eps", 0, |b, x, _| Ok([b.push_many("eps", Op::CfgX0, &[x, x])?[0], x])),
        ("twice", 0, |b, x, _| Ok([b.push("twice", Op::ActivateBwd(Activation::Silu), &[x, x])?, x])),
        ("deep.shift", 1, |b, x, _| {
            let v = b.param("v", [1, 4], Layout::Plain)?;
            let y = b.scope("deep", |b| b.push("shift", Op::AddChannels, &[x, v]))?;
            Ok([b.activate("act", y, Activation::Silu)?, v])
        }),
    ];
    for (name, at, graph) in cases {
        let mut b = Builder::new();
        let x = b.param("x", [2, 4], Layout::Plain).expect("new");
        let w = weight(&mut b, &[4, 4]).expect("new");
        let [y, wrt] = graph(&mut b, x, w).expect("it fits");
        match pull_back(&mut b, &[(y, y)], &[wrt]) {
            Err(Error::NotDifferentiable { node, input, .. }) => assert_eq!((&*node, input), (name, at)),
            other => panic!("{name}: {other:?}"),
        }
    }
    // The log-sum-exp of an attention.
    let mut b = Builder::new();
    let x = b.param("x", [1, 3, 4], Layout::Plain).expect("new");
    let op = Op::Attention { heads: 2, causal: false };
    let lse = b.push_many("attention", op, &[x, x, x]).expect("it fits")[1];
    assert!(matches!(pull_back(&mut b, &[(lse, lse)], &[x]), Err(Error::NotDifferentiable { .. })));
}

#[test]
fn what_does_not_depend_on_the_input_has_no_gradient_and_costs_nothing() {
    let mut b = Builder::new();
    let x = b.param("x", [2, 4], Layout::Plain).expect("new");
    let other = b.param("other", [2, 4], Layout::Plain).expect("new");
    let y = b.push("unit", Op::Normalise, &[other]).expect("it fits");
    let before = b.graph().nodes.len();
    let gradients = pull_back(&mut b, &[(y, y)], &[x]).expect("nothing to differentiate");
    assert_eq!((gradients, b.graph().nodes.len()), (vec![None], before));
}

/// Checks the gradient of sum <cotangent, result> with respect to every element of every operand.
fn check(
    name: &str,
    shapes: &[&[usize]],
    build: impl FnOnce(&mut Builder, &[ValueId]) -> Result<Vec<ValueId>>,
) {
    check_at(StepState::default(), name, shapes, build);
}

fn check_at(
    state: StepState,
    name: &str,
    shapes: &[&[usize]],
    build: impl FnOnce(&mut Builder, &[ValueId]) -> Result<Vec<ValueId>>,
) {
    let operands: Vec<Tensor<f64>> = shapes
        .iter()
        .enumerate()
        .map(|(i, &shape)| {
            let shape = Shape::from(shape);
            Tensor::new(shape.clone(), normal(shape.count(), i as u64))
        })
        .collect();
    let inputs: Vec<Input<f64>> = operands.iter().cloned().map(Input::from).collect();
    let mut results = 0;
    let mut runner = Runner::new(&Random, &inputs, |b, x| {
        let mut all = build(b, x)?;
        results = all.len();
        let cotangents = all.iter().enumerate().map(|(i, &y)| {
            let shape = b.shape(y).clone();
            b.param(&format!("cotangent{i}"), shape, Layout::Plain)
        });
        let cotangents = cotangents.collect::<Result<Vec<_>>>()?;
        let seeds: Vec<_> = all.iter().copied().zip(cotangents.iter().copied()).collect();
        let gradients = pull_back(b, &seeds, x)?;
        all.extend(gradients.into_iter().map(|gradient| gradient.expect("the result depends on it")));
        // A value that is loaded cannot be stored; this copies it.
        for cotangent in cotangents {
            all.push(b.affine("copy", cotangent, 1.0, 0.0)?);
        }
        Ok(all)
    })
    .unwrap_or_else(|error| panic!("{name}: {error}"));
    runner.state = state;
    let first = runner.run();
    let (gradients, cotangents) = first[results..].split_at(operands.len());
    for (i, operand) in operands.iter().enumerate() {
        let loss = |data: &[f64]| {
            runner.set(i, data);
            runner.run()[..results].iter().zip(cotangents).map(|(y, c)| dot(y.data(), c.data())).sum()
        };
        let what = format!("{name}, operand {i}");
        assert_gradient(&what, operand.data(), gradients[i].data(), loss);
        runner.set(i, operand.data());
    }
}

/// Compares a gradient with central differences, element by element.
fn assert_gradient(name: &str, at: &[f64], gradient: &[f64], mut loss: impl FnMut(&[f64]) -> f64) {
    let mut worst = 0.0;
    for i in 0..at.len() {
        let mut moved = |by: f64| {
            let mut data = at.to_vec();
            data[i] += by;
            loss(&data)
        };
        let want = (moved(EPS) - moved(-EPS)) / (2.0 * EPS);
        assert_close(&format!("{name}, element {i}"), gradient[i], want);
        worst = f64::max(worst, (gradient[i] - want).abs());
    }
    assert!(gradient.iter().any(|&g| g != 0.0), "{name}: no gradient at all");
    println!("{name}: {worst:.1e} at most");
}

fn assert_close(name: &str, got: f64, want: f64) {
    let close = (got - want).abs() <= ATOL + RTOL * want.abs();
    assert!(close, "{name}: the gradient is {got}, differences give {want}");
}

/// Checks the gradient of log p_h of an embedding in random directions. `network` returns what is
/// differentiated by and the embedding.
fn check_loss(
    name: &str,
    operands: &[Tensor<f64>],
    network: impl Fn(&mut Builder, &[ValueId]) -> Result<(ValueId, ValueId)>,
) {
    let state = StepState { timestep: 500.0, guidance: 3.0, x0_from: [1.2, -0.7], ..StepState::default() };
    let inputs = || operands.iter().cloned().map(Input::from).collect::<Vec<Input<f64>>>();
    let mut runner = Runner::new(&Random, &inputs(), |b, x| Ok(vec![network(b, x)?.1])).expect("it fits");
    runner.state = state;
    // Concepts near the embedding, so that all cosines are positive and unlike.
    let embedding = runner.run().swap_remove(0);
    let concepts = (0..3).flat_map(|k| {
        let near = unit(embedding.data()).into_iter().zip(normal(embedding.data().len(), 30 + k));
        unit(&near.map(|(e, noise)| e + 0.3 * noise).collect::<Vec<_>>())
    });
    let concepts = Tensor::new([3, embedding.data().len()], concepts.collect());

    for (reduce, top_k) in [(Reduce::LogMean, None), (Reduce::SumLog, Some(2))] {
        let mut inputs = inputs();
        inputs.push(concepts.clone().into());
        let mut runner = Runner::new(&Random, &inputs, |b, x| {
            let (wrt, embedding) = network(b, x)?;
            let op = Op::ClipCosine { reduce, top_k, scale_log2: 0 };
            let concepts = x[x.len() - 1];
            let cosine = b.push_many("cosine", op, &[embedding, concepts])?;
            let gradients = pull_back(b, &[(embedding, cosine[3])], &[wrt])?;
            Ok(vec![cosine[1], gradients[0].expect("the embedding depends on it"), cosine[4]])
        })
        .expect("it fits");
        runner.state = state;
        let start = runner.run();
        assert_eq!(start[2].data(), [0.0], "no fallback");
        let mut worst = 0.0;
        for direction in 0..10 {
            let direction = unit(&normal(operands[0].data().len(), 50 + direction));
            let mut log_p = |by: f64| {
                let moved: Vec<f64> =
                    operands[0].data().iter().zip(&direction).map(|(x, d)| x + by * d).collect();
                runner.set(0, &moved);
                runner.run()[0].data()[0].ln()
            };
            let want = (log_p(EPS) - log_p(-EPS)) / (2.0 * EPS);
            let got = dot(start[1].data(), &direction);
            assert_close(name, got, want);
            worst = f64::max(worst, (got - want).abs() / want.abs());
        }
        let length = dot(start[1].data(), start[1].data()).sqrt();
        assert!(length > 100.0 * ATOL, "{name}: a gradient of length {length} would pass unseen");
        println!("{name}, {}: {worst:.1e} relative at most, gradient of length {length:.1e}", reduce.name());
    }
}

/// Decodes, resizes and embeds.
fn embed(b: &mut Builder, x0: ValueId) -> Result<ValueId> {
    let vae = VaeConfig {
        channels: vec![6, 9],
        layers: 1,
        norm_groups: 3,
        scaling_factor: 0.5,
        post_quant_conv: true,
        mid_attention: true,
    };
    let encoder = EncoderConfig {
        width: 6,
        hidden: 10,
        layers: 2,
        heads: 2,
        act: Activation::QuickGelu,
        norm_eps: 1e-5,
    };
    let vision = ClipVisionConfig { encoder, image: 9, patch: 4, projection: 5 };
    let rgb = models::vae_decoder(b, &vae, x0)?;
    let rgb = b.affine("rgb", rgb, 0.5, 0.5)?;
    let op = Op::Resample { height: 9, width: 9, mean: IMAGE_MEAN, std: IMAGE_STD };
    let pixels = b.push("resample", op, &[rgb])?;
    models::image_features(b, &vision, "clip", pixels)
}

fn unet() -> UnetConfig {
    let level = |channels, heads, attends| UnetLevel {
        channels,
        layers: 1,
        heads,
        transformers: 1,
        attends_down: attends,
        attends_up: attends,
    };
    UnetConfig {
        levels: vec![level(8, 2, true), level(12, 3, false)],
        context: 10,
        time: 16,
        norm_groups: 4,
        norm_eps: 1e-5,
        linear_projection: false,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        sample: None,
    }
}

/// Weights from their names: matrices keep the size of what they are applied to, scales lie around one.
struct Random;

impl WeightSource for Random {
    fn load(&self, name: &str, shape: &Shape) -> Result<Vec<f32>> {
        let seed = name.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let inputs: usize = shape[1..].iter().product();
        let scale = 1.0 / (inputs as f64).sqrt();
        let norm = shape.len() == 1 && name.ends_with("weight");
        let value = |v: f64| if norm { 1.0 + 0.2 * v } else { v * scale };
        Ok(normal(shape.count(), seed).into_iter().map(|v| value(v) as f32).collect())
    }
}

/// Numbers of mean zero and variance one, from a generator that only has to be well mixed (SplitMix64).
fn normal(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..count).map(|_| (next() + next() + next() - 1.5) * 2.0).collect()
}

fn positive(count: usize, seed: u64) -> Vec<f64> {
    normal(count, seed).into_iter().map(|v| 0.1 + v.abs()).collect()
}

fn unit(x: &[f64]) -> Vec<f64> {
    let length = dot(x, x).sqrt();
    x.iter().map(|v| v / length).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
