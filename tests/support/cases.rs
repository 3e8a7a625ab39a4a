//! The table of cases: for every operation a few odd shapes, and some of Stable Diffusion's channel counts.

use super::{Case, Class, Fill, Input};
use unguide::bench::operands::state;
use unguide::ir::{Activation, Op, Padding, Reduce};
use unguide::tensor::Shape;

const NORMAL: Fill = Fill::Normal { mean: 0.0, spread: 1.0 };
/// A large mean and a small spread: what naive variances lose all digits on.
const ADVERSARIAL: Fill = Fill::Normal { mean: 100.0, spread: 1.0 };

/// Every case.
pub fn all() -> Vec<Case> {
    let parts = [layout(), pointwise(), contractions(), attention(), norms(), images(), tokens(), method()];
    parts.into_iter().flatten().collect()
}

fn layout() -> Vec<Case> {
    let mut cases = Vec::new();
    for x in [&[1, 1, 1, 1][..], &[2, 9, 13, 7], &[3, 5, 33], &[2, 97, 320]] {
        let (c, wide) = (x[x.len() - 1], [x, &[]].concat());
        let with = |last: usize| [&wide[..wide.len() - 1], &[last]].concat();
        cases.push(exact(Op::Concat, vec![image(x), image(&with(5))], &[0, 1]));
        cases.push(exact(Op::SliceChannels { start: c / 3, len: c - c / 3 }, vec![image(x)], &[0]));
        cases.push(exact(Op::PadChannels { start: 3, channels: c + 4 }, vec![image(x)], &[0]));
        let n = x[0];
        cases.push(exact(Op::SliceBatch { start: n / 2, len: n - n / 2 }, vec![whole(x)], &[0]));
        cases.push(exact(Op::RepeatBatch { times: 2 }, vec![whole(x)], &[0]));
        let copies = [&[3 * n], &x[1..]].concat();
        cases.push(case(Op::SumBatch { times: 3 }, vec![whole(&copies)], Class::Rounded, &[0]));
    }
    for [n, t, d] in [[1, 1, 1], [3, 7, 33], [2, 77, 40]] {
        let x = image(&[n, t, d]);
        cases.push(exact(Op::SliceTokens { start: t / 2, len: t - t / 2 }, vec![x.clone()], &[0]));
        cases.push(exact(Op::PadTokens { start: 2, tokens: t + 5 }, vec![x.clone()], &[0]));
        cases.push(exact(Op::GatherToken, vec![x, index(&[n], t)], &[0]));
    }
    cases
}

fn pointwise() -> Vec<Case> {
    use Activation::{Gelu, QuickGelu, Relu, Silu, Tanh};
    let mut cases = Vec::new();
    for x in [&[1, 1][..], &[2, 9, 13, 7], &[3, 33], &[2, 101, 320]] {
        let wide = filled(x, Fill::Normal { mean: 0.0, spread: 3.0 }, true);
        cases.push(case(Op::Add, vec![image(x), image(x)], Class::Rounded, &[0, 1]));
        cases.push(case(Op::Affine { mul: 1.7, add: -0.3 }, vec![image(x)], Class::Rounded, &[0]));
        for activation in [Silu, Gelu, QuickGelu, Relu, Tanh] {
            cases.push(case(Op::Activate(activation), vec![wide.clone()], Class::Rounded, &[0]));
            let inputs = vec![wide.clone(), image(x)];
            cases.push(case(Op::ActivateBwd(activation), inputs, Class::Rounded, &[1]));
        }
        let c = x[x.len() - 1];
        let double = [&x[..x.len() - 1], &[2 * c]].concat();
        let double = filled(&double, Fill::Normal { mean: 0.0, spread: 3.0 }, true);
        cases.push(case(Op::Geglu, vec![double.clone()], Class::Rounded, &[0]));
        cases.push(case(Op::GegluBwd, vec![double, image(x)], Class::Rounded, &[1]));
        let one = vec![image(x), weight(&[1, c])];
        cases.push(case(Op::AddChannels, one, Class::Rounded, &[0, 1]));
        cases.push(case(Op::AddChannels, vec![image(x), image(&[x[0], c])], Class::Rounded, &[0, 1]));
    }
    cases
}

fn contractions() -> Vec<Case> {
    let mut cases = Vec::new();
    let linear: [(&[usize], usize); 8] = [
        (&[1, 1], 1),
        (&[3, 7], 33),
        (&[2, 320], 1280),
        (&[2, 77, 40], 320),
        (&[1, 97, 320], 129),
        (&[2, 1031, 33], 40),
        (&[1, 33, 37, 7], 3),
        (&[2, 3, 5, 160], 7),
    ];
    for (x, m) in linear {
        let k = x[x.len() - 1];
        let class = Class::Contracted(k);
        cases.push(case(Op::Linear, vec![image(x), weight(&[m, k]), weight(&[m])], class, &[0]));
        cases.push(case(Op::Linear, vec![image(x), weight(&[m, k])], class, &[0]));
        let dy = [&x[..x.len() - 1], &[m]].concat();
        cases.push(case(Op::LinearBwd, vec![image(&dy), weight(&[m, k])], Class::Contracted(m), &[0]));
    }
    let asymmetric = Padding { top: 0, left: 0, bottom: 1, right: 1 };
    let lopsided = Padding { top: 2, left: 1, bottom: 0, right: 3 };
    // Image, filter, stride, padding.
    let convolutions: [([usize; 4], [usize; 3], usize, Padding); 14] = [
        ([1, 1, 1, 1], [1, 1, 1], 1, Padding::NONE),
        ([2, 9, 13, 7], [5, 3, 3], 1, Padding::all(1)),
        ([2, 9, 13, 7], [33, 1, 1], 1, Padding::NONE),
        ([2, 9, 13, 4], [5, 1, 1], 1, Padding::all(1)),
        ([1, 9, 13, 7], [5, 3, 3], 2, asymmetric),
        ([2, 8, 8, 33], [7, 3, 3], 2, Padding::all(1)),
        ([1, 7, 11, 3], [4, 3, 2], 3, lopsided),
        ([2, 16, 24, 3], [33, 8, 8], 8, Padding::NONE),
        ([1, 3, 3, 4], [7, 3, 3], 1, Padding::all(2)),
        ([1, 2, 2, 4], [7, 5, 5], 1, Padding::all(2)),
        ([1, 33, 37, 4], [40, 3, 3], 1, Padding::all(1)),
        ([2, 33, 37, 40], [3, 3, 3], 1, Padding::all(1)),
        ([1, 37, 33, 5], [7, 3, 3], 1, lopsided),
        ([1, 5, 7, 320], [129, 3, 3], 1, Padding::all(1)),
    ];
    for ([n, h, w, c], [o, r, s], stride, padding) in convolutions {
        let filter = weight(&[o, r, s, c]);
        let inputs = vec![image(&[n, h, w, c]), filter.clone(), weight(&[o])];
        cases.push(case(Op::Conv2d { stride, padding }, inputs, Class::Contracted(r * s * c), &[0]));
        let height = (h + padding.top + padding.bottom - r) / stride + 1;
        let width = (w + padding.left + padding.right - s) / stride + 1;
        let op = Op::Conv2dBwd { stride, padding, height: h, width: w };
        let inputs = vec![image(&[n, height, width, o]), filter];
        cases.push(case(op, inputs, Class::Contracted(r * s * o), &[0]));
    }
    cases
}

fn attention() -> Vec<Case> {
    let mut cases = Vec::new();
    const APART: usize = 3;
    const PAIR: usize = 2;
    const ALL: usize = 1;
    // Images, queries, keys, heads, head width; and how many operands hold q, k and v.
    let sizes = [
        ([1, 1, 1, 1, 4], APART),
        ([2, 7, 7, 3, 4], APART),
        ([2, 7, 7, 3, 4], ALL),
        ([1, 33, 77, 2, 40], APART),
        ([2, 13, 77, 2, 40], PAIR),
        ([2, 77, 77, 2, 12], APART),
        ([1, 131, 131, 8, 8], ALL),
        ([1, 300, 290, 1, 160], APART),
        ([1, 5, 9, 2, 8], APART),
        ([1, 70, 5, 2, 8], APART),
        ([1, 70, 5, 2, 5], PAIR),
    ];
    let sizes = sizes.into_iter().flat_map(|size| [(size, false), (size, true)]);
    for (([n, t, u, heads, d], operands), causal) in sizes {
        let (c, class) = (heads * d, Class::Contracted(u.max(d)));
        let given = match operands {
            ALL => vec![image(&[n, t, 3 * c])],
            PAIR => vec![image(&[n, t, c]), image(&[n, u, 2 * c])],
            _ => vec![image(&[n, t, c]), image(&[n, u, c]), image(&[n, u, c])],
        };
        let differentiable: &[usize] = &[0, 1, 2];
        let forward = Op::Attention { heads, causal };
        cases.push(case(forward, given.clone(), class, &differentiable[..operands]));
        let mut inputs = vec![
            filled(&[n, t, c], Fill::Attention { output: 0, heads, causal }, true),
            filled(&[n, heads, t], Fill::Attention { output: 1, heads, causal }, true),
            image(&[n, t, c]),
        ];
        inputs.extend(given);
        if operands != ALL {
            let alone = Op::AttentionBwd { heads, causal, of_keys: false };
            cases.push(case(alone, inputs.clone(), class, &[]));
        }
        cases.push(case(Op::AttentionBwd { heads, causal, of_keys: true }, inputs, class, &[]));
    }
    cases
}

fn norms() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes: [(&[usize], usize); 6] = [
        (&[2, 1, 3, 4], 2),
        (&[2, 9, 13, 7], 7),
        (&[1, 9, 13, 33], 3),
        (&[2, 77, 40], 8),
        (&[1, 16, 16, 320], 32),
        (&[1, 33, 71, 96], 32),
    ];
    for (x, groups) in sizes {
        let c = x[x.len() - 1];
        for (fill, act) in [(NORMAL, None), (ADVERSARIAL, None), (ADVERSARIAL, Some(Activation::Silu))] {
            let (x, eps) = (filled(x, fill, true), 1e-5);
            let mut inputs = vec![x.clone(), weight(&[c]), weight(&[c])];
            let op = Op::GroupNorm { groups, eps, act };
            cases.push(case(op, inputs.clone(), Class::Reduced, &[0]));
            inputs.push(image(&x.shape));
            cases.push(case(Op::GroupNormBwd { groups, eps, act }, inputs, Class::Reduced, &[]));
        }
    }
    let acts = [Activation::Gelu, Activation::Relu, Activation::QuickGelu, Activation::Tanh];
    for act in acts.map(Some) {
        let inputs = vec![image(&[1, 5, 7, 6]), weight(&[6]), weight(&[6])];
        cases.push(case(Op::GroupNorm { groups: 3, eps: 1e-5, act }, inputs, Class::Reduced, &[0]));
    }
    for (x, fill) in
        [(&[1, 4][..], NORMAL), (&[3, 7], NORMAL), (&[2, 5, 33], ADVERSARIAL), (&[2, 77, 320], ADVERSARIAL)]
    {
        let (c, eps) = (x[x.len() - 1], 1e-5);
        let x = filled(x, fill, true);
        let inputs = vec![x.clone(), weight(&[c]), weight(&[c])];
        cases.push(case(Op::LayerNorm { eps }, inputs, Class::Reduced, &[0]));
        let inputs = vec![x.clone(), weight(&[c]), image(&x.shape)];
        cases.push(case(Op::LayerNormBwd { eps }, inputs, Class::Reduced, &[]));
    }
    cases
}

fn images() -> Vec<Case> {
    let mut cases = Vec::new();
    for ([n, h, w, c], height, width) in
        [([1, 1, 1, 1], 2, 3), ([2, 9, 13, 7], 18, 26), ([2, 3, 5, 33], 7, 5), ([1, 5, 4, 3], 9, 11)]
    {
        cases.push(exact(Op::Upsample { height, width }, vec![image(&[n, h, w, c])], &[0]));
        let op = Op::UpsampleBwd { height: h, width: w };
        cases.push(case(op, vec![image(&[n, height, width, c])], Class::Rounded, &[0]));
    }
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    for (n, (h, w), (height, width)) in [
        (1, (1, 1), (3, 2)),
        (2, (9, 13), (14, 7)),
        (1, (64, 48), (28, 28)),
        (1, (2, 3), (14, 14)),
        (2, (7, 7), (7, 7)),
    ] {
        let op = Op::Resample { height, width, mean, std };
        cases.push(case(op, vec![image(&[n, h, w, 3])], Class::Reduced, &[0]));
        let op = Op::ResampleBwd { height: h, width: w, std };
        cases.push(case(op, vec![image(&[n, height, width, 3])], Class::Reduced, &[0]));
    }
    cases
}

fn tokens() -> Vec<Case> {
    let mut cases = Vec::new();
    for [n, t, d] in [[1, 1, 1], [3, 7, 33], [2, 77, 40]] {
        let inputs = vec![index(&[n, t], 50), weight(&[50, d]), weight(&[t + 2, d])];
        cases.push(case(Op::EmbedText, inputs, Class::Rounded, &[]));
        let inputs = vec![image(&[n, t, d]), weight(&[d]), weight(&[t + 1, d])];
        cases.push(case(Op::EmbedPatches, inputs, Class::Rounded, &[0]));
        cases.push(case(Op::Normalise, vec![image(&[n, d])], Class::Rounded, &[]));
    }
    for (channels, flip, shift) in [(2, false, 0.0), (320, true, 0.0), (34, false, 1.0)] {
        let given = filled(&[3], Fill::Normal { mean: 500.0, spread: 200.0 }, true);
        for inputs in [vec![], vec![given]] {
            cases.push(case(Op::TimestepEmbedding { channels, flip, shift }, inputs, Class::Rounded, &[]));
        }
    }
    cases
}

fn method() -> Vec<Case> {
    let mut cases = Vec::new();
    for z in [&[1, 1][..], &[2, 9, 13, 4], &[3, 64, 64, 4]] {
        let rows = |times: usize| whole(&[&[times * z[0]], &z[1..]].concat());
        let gate = filled(&z[..1], Fill::Gate, true);
        for times in [1, 2] {
            cases.push(case(Op::CfgX0, vec![image(z), rows(times)], Class::Rounded, &[0, 1]));
            cases.push(case(Op::CfgX0Bwd { rows: times }, vec![image(z)], Class::Rounded, &[]));
        }
        for warm in [false, true] {
            let mut sld = case(Op::SldX0, vec![image(z), rows(3), image(z)], Class::Rounded, &[]);
            sld.state.sld.warm = warm;
            cases.push(sld);
        }
        let latents = vec![image(z), image(z), image(z)];
        let guided = [latents.clone(), vec![gate, image(z)]].concat();
        cases.push(case(Op::DdimUnguide { scale_log2: 10 }, latents, Class::Rounded, &[]));
        cases.push(case(Op::DdimUnguide { scale_log2: 10 }, guided.clone(), Class::Rounded, &[]));
        cases.push(case(Op::GuideEps { scale_log2: 10 }, guided, Class::Rounded, &[]));
        cases.push(case(Op::FrozenPullback, vec![image(z)], Class::Rounded, &[0]));
    }
    for (n, k, d, top_k) in [(1, 1, 7, None), (3, 4, 33, None), (2, 4, 512, Some(1)), (4, 7, 40, Some(3))] {
        for reduce in [Reduce::LogMean, Reduce::SumLog] {
            let e = filled(&[n, d], Fill::Normal { mean: 0.8, spread: 1.0 }, true);
            let inputs = vec![e, filled(&[k, d], Fill::UnitRows, false)];
            cases.push(case(Op::ClipCosine { reduce, top_k, scale_log2: 12 }, inputs, Class::Reduced, &[]));
        }
    }
    cases
}

fn case(op: Op, inputs: Vec<Input>, class: Class, differentiable: &'static [usize]) -> Case {
    let shapes: Vec<String> = inputs.iter().map(|input| input.shape.to_string()).collect();
    let mut name = format!("{op:?} {}", shapes.join(" "));
    if inputs.first().is_some_and(|x| x.fill == ADVERSARIAL) {
        name += " around 100";
    }
    Case { name, op, inputs, class, differentiable, state: state() }
}

fn exact(op: Op, inputs: Vec<Input>, differentiable: &'static [usize]) -> Case {
    case(op, inputs, Class::Exact, differentiable)
}

fn filled(shape: &[usize], fill: Fill, batched: bool) -> Input {
    Input { shape: Shape::from(shape), fill, batched }
}

/// Images, one behind the other.
fn image(shape: &[usize]) -> Input {
    filled(shape, NORMAL, true)
}

/// A tensor that is the same for every image.
fn weight(shape: &[usize]) -> Input {
    filled(shape, NORMAL, false)
}

/// A batch that the operation takes apart or puts together.
fn whole(shape: &[usize]) -> Input {
    filled(shape, NORMAL, false)
}

fn index(shape: &[usize], below: usize) -> Input {
    filled(shape, Fill::Index(below as i32), true)
}
