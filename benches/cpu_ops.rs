//! Times single operations of the CPU backend at real shapes: `cargo bench --bench cpu_ops [-- WORD]`.
//!
//! Per case: median and spread of the wall time over at least five runs, and GFLOP/s of the mathematics (plain
//! convolutions, no padding). The names of `WORD` filter the cases. `benches/torch_ops.py` times the same in PyTorch.

use std::time::{Duration, Instant};

use unguide::cpu::{Operand, Target, eval};
use unguide::ir::{Activation, Op, Padding};
use unguide::plan::StepState;
use unguide::tensor::Shape;

/// Shortest time and fewest runs of a measurement.
const TIME: Duration = Duration::from_millis(1500);
const RUNS: usize = 5;

struct Case {
    name: String,
    op: Op,
    inputs: Vec<Shape>,
    outputs: Vec<Shape>,
    flops: f64,
}

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    println!("{:44} {:>10} {:>16} {:>9}", "case", "median ms", "min..max ms", "GFLOP/s");
    for case in cases() {
        if filter.is_empty() || filter.iter().any(|word| case.name.contains(word)) {
            run(&case);
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (c, o, side) in
        [(320, 320, 64), (640, 640, 32), (1280, 1280, 16), (1280, 1280, 8), (128, 128, 256), (256, 256, 128)]
    {
        cases.push(conv(c, o, side, false));
        cases.push(conv(c, o, side, true));
    }
    for (rows, k, m) in [(4096, 320, 320), (4096, 320, 2560), (1024, 640, 640), (256, 1280, 10240)] {
        cases.push(Case {
            name: format!("linear {rows}x{k} -> {m}"),
            op: Op::Linear,
            inputs: vec![[1, rows, k].into(), [m, k].into(), [m].into()],
            outputs: vec![[1, rows, m].into()],
            flops: 2.0 * (rows * k * m) as f64,
        });
    }
    for (heads, tokens, keys, c) in
        [(8, 4096, 4096, 320), (8, 4096, 77, 320), (8, 1024, 1024, 640), (1, 4096, 4096, 512)]
    {
        cases.push(Case {
            name: format!("attention {heads} heads {tokens}x{keys} c {c}"),
            op: Op::Attention { heads, causal: false },
            inputs: vec![[1, tokens, c].into(), [1, keys, c].into(), [1, keys, c].into()],
            outputs: vec![[1, tokens, c].into(), [1, heads, tokens].into()],
            flops: 4.0 * (tokens * keys * c) as f64,
        });
    }
    for (side, c) in [(64, 320), (256, 256)] {
        for act in [None, Some(Activation::Silu)] {
            cases.push(pointwise(
                &format!("group_norm {act:?}"),
                Op::GroupNorm { groups: 32, eps: 1e-5, act },
                side,
                c,
            ));
        }
    }
    cases.push(Case {
        name: "geglu 4096x2560".into(),
        op: Op::Geglu,
        inputs: vec![[1, 4096, 2560].into()],
        outputs: vec![[1, 4096, 1280].into()],
        flops: 0.0,
    });
    cases.push(Case {
        name: "layer_norm 4096x320".into(),
        op: Op::LayerNorm { eps: 1e-5 },
        inputs: vec![[1, 4096, 320].into(), [320].into(), [320].into()],
        outputs: vec![[1, 4096, 320].into()],
        flops: 0.0,
    });
    cases
}

fn conv(c: usize, o: usize, side: usize, backward: bool) -> Case {
    let padding = Padding::all(1);
    let (op, from, to) = if backward {
        (Op::Conv2dBwd { stride: 1, padding, height: side, width: side }, o, c)
    } else {
        (Op::Conv2d { stride: 1, padding }, c, o)
    };
    Case {
        name: format!("{} 3x3 {c} -> {o} at {side}x{side}", op.name()),
        op,
        inputs: vec![[1, side, side, from].into(), [o, 3, 3, c].into()],
        outputs: vec![[1, side, side, to].into()],
        flops: 18.0 * (c * o * side * side) as f64,
    }
}

fn pointwise(name: &str, op: Op, side: usize, c: usize) -> Case {
    Case {
        name: format!("{name} {side}x{side}x{c}"),
        op,
        inputs: vec![[1, side, side, c].into(), [c].into(), [c].into()],
        outputs: vec![[1, side, side, c].into()],
        flops: 0.0,
    }
}

fn run(case: &Case) {
    let inputs: Vec<Vec<f32>> =
        case.inputs.iter().enumerate().map(|(i, shape)| random(shape.count(), i)).collect();
    let mut outputs: Vec<Vec<f32>> = case.outputs.iter().map(|shape| vec![0.0; shape.count()]).collect();
    let operands: Vec<Operand<'_, f32>> =
        case.inputs.iter().zip(&inputs).map(|(shape, data)| Operand::Real { shape, data }).collect();
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() <= RUNS || start.elapsed() < TIME {
        let mut targets: Vec<Target<'_, f32>> =
            case.outputs.iter().zip(&mut outputs).map(|(shape, data)| Target { shape, data }).collect();
        let once = Instant::now();
        eval(&case.op, &operands, &mut targets, &StepState::default());
        times.push(once.elapsed().as_secs_f64());
    }
    times.remove(0); // warm-up
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let spread = format!("{:.2}..{:.2}", 1e3 * times[0], 1e3 * times[times.len() - 1]);
    let speed = if case.flops > 0.0 { format!("{:.1}", case.flops / median / 1e9) } else { "-".into() };
    println!("{:44} {:>10.2} {spread:>16} {speed:>9}", case.name, 1e3 * median);
}

/// Numbers of unit scale; zeros would be kinder than real data.
fn random(count: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
