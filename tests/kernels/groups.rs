//! Groups that run as one, through planning and lowering: what their kernels make is what the CPU backend makes of
//! one operation after the other, at extents that fill tiles and at those that do not.

use unguide::backend::{Backend, Program, Stop, WeightSource};
use unguide::cpu::Cpu;
use unguide::error::Result;
use unguide::ir::{Activation, Builder, Graph, Layout, Op, Padding, Row, ValueId};
use unguide::launch::Storage;
use unguide::plan::{Planner, StepProgram, StepState};
use unguide::simt::{SimtDevice, SimtProgram};
use unguide::tensor::{DType, Shape, compare};

/// Relative L2 distance with f16: of two or three roundings.
const BOUND: f64 = 1e-3;
const SAME: (usize, Padding) = (1, Padding::all(1));

/// Numbers that f16 holds exactly, a sequence for every name.
fn numbers(name: &str, count: usize, scale: f32) -> Vec<f32> {
    let mut state = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 16) % 129) as f32 / 64.0 - 1.0
    };
    (0..count).map(|_| next() * scale).collect()
}

struct Numbers;

impl WeightSource for Numbers {
    fn load(&self, name: &str, shape: &Shape) -> Result<Vec<f32>> {
        let scale = if shape.len() > 1 { 0.125 } else { 0.5 };
        Ok(numbers(name, shape.count(), scale))
    }
}

/// A graph in the making; what it reads and makes are buffers of its own.
struct Case {
    b: Builder,
    read: Vec<String>,
    made: Vec<String>,
}

impl Case {
    fn new() -> Self {
        Self { b: Builder::new(), read: Vec::new(), made: Vec::new() }
    }

    fn input(&mut self, shape: impl Into<Shape>) -> ValueId {
        let name = format!("in{}", self.read.len());
        let buffer = self.b.buffer(&name, shape, DType::F32);
        self.read.push(name);
        self.b.load(buffer, Row::All).expect("a buffer")
    }

    fn push(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let name = format!("{}.{}", op.name(), self.b.graph().nodes.len());
        self.b.push(&name, op, inputs).expect("shapes fit")
    }

    fn output(&mut self, value: ValueId) {
        let name = format!("out{}", self.made.len());
        let shape = self.b.shape(value).clone();
        let buffer = self.b.buffer(&name, shape, DType::F32);
        self.b.store(value, buffer, Row::All).expect("a buffer");
        self.made.push(name);
    }

    fn filter(&mut self, shape: impl Into<Shape>) -> ValueId {
        self.b.param("filter", shape, Layout::Filter).expect("a name")
    }
}

fn load<T>(graph: &Graph, backend: &dyn Backend, by: impl FnOnce(StepProgram) -> Result<T>) -> T {
    let (storage, fuse) = backend.storage();
    let plan =
        Planner::new(graph.clone(), storage, fuse).expect("a graph that holds").plan().expect("a plan");
    by(plan).expect("a program")
}

/// Runs the graph of `build` both ways. `words` are beginnings of the names of all kernels that run, casts aside.
fn agrees(what: &str, words: &[&str], build: impl FnOnce(&mut Case)) {
    let mut case = Case::new();
    build(&mut case);
    let Case { b, read, made } = case;
    let graph = b.finish();
    let (device, cpu) = (SimtDevice::new(Storage::F16, 1), Cpu::<f32>::new());
    let mut got: SimtProgram = load(&graph, &device, |plan| device.load_program(plan, &Numbers));
    let mut want: Box<dyn Program> = load(&graph, &cpu, |plan| cpu.load(plan, &Numbers));
    let names = got.launches().steps().iter().map(|step| step.launch.kernel.name).collect::<Vec<_>>();
    let names: Vec<&str> = names.into_iter().filter(|name| !name.starts_with("place_")).collect();
    let alike =
        names.len() == words.len() && names.iter().zip(words).all(|(name, word)| name.starts_with(word));
    assert!(alike, "{what}: {names:?}");
    for program in [&mut got as &mut dyn Program, &mut *want] {
        for name in &read {
            let buffer = program.step().buffer(name).expect("declared");
            let count = program.step().graph.buffer(buffer).shape.count();
            program.write(name, &numbers(name, count, 1.0)).expect("room");
        }
        program.run(&StepState::default(), &Stop::default()).expect("a run");
    }
    for name in &made {
        let (got, want) = (got.read(name).expect("a buffer"), want.read(name).expect("a buffer"));
        let distance = compare(&got, &want).rel_l2;
        assert!(distance <= BOUND, "{what}: {name} is {distance} away");
    }
}

#[test]
fn a_convolution_adds_the_time_activates_and_adds_the_residual() {
    for (n, [h, w], c, o, rows, kernel) in [
        (2, [5, 7], 16, 24, 1, "conv2d_f16_m"),
        (3, [4, 4], 8, 8, 3, "conv2d_f16_n8"),
        (2, [3, 3], 5, 7, 2, "conv2d_f16"),
    ] {
        agrees("conv2d", &[kernel], |case| {
            let x = case.input([n, h, w, c]);
            let y = case.b.conv2d("conv", x, (o, 3), SAME, true).expect("shapes fit");
            let time = case.input([rows, o]);
            let y = case.push(Op::AddChannels, &[y, time]);
            let y = case.push(Op::Activate(Activation::Silu), &[y]);
            let residual = case.input([n, h, w, o]);
            let y = case.push(Op::Add, &[residual, y]);
            case.output(y);
        });
    }
}

#[test]
fn a_split_sum_gets_its_epilogue_from_whoever_adds_its_parts() {
    agrees("conv2d", &["conv2d_f16_m"], |case| {
        let x = case.input([2, 3, 3, 128]);
        let y = case.b.conv2d("conv", x, (16, 3), SAME, true).expect("shapes fit");
        let time = case.input([1, 16]);
        let y = case.push(Op::AddChannels, &[y, time]);
        let residual = case.input([2, 3, 3, 16]);
        let y = case.push(Op::Add, &[y, residual]);
        case.output(y);
    });
    agrees("gated linear layer", &["gemm_f16_m"], |case| {
        let x = case.input([2, 5, 520]);
        let y = case.b.linear("linear", x, 48, true).expect("shapes fit");
        let y = case.push(Op::Geglu, &[y]);
        case.output(y);
    });
}

#[test]
fn a_linear_layer_activates_and_adds_what_is_shaped_otherwise() {
    for (k, o, kernel) in [(40, 72, "gemm_f16_m"), (9, 5, "gemm_f16")] {
        agrees("linear", &[kernel], |case| {
            let x = case.input([2, 15, k]);
            let y = case.b.linear("linear", x, o, true).expect("shapes fit");
            let shift = case.input([2, o]);
            let y = case.push(Op::AddChannels, &[y, shift]);
            let y = case.push(Op::Activate(Activation::QuickGelu), &[y]);
            let y = case.b.reshape(y, [2, 3, 5, o]).expect("as many");
            let residual = case.input([2, 3, 5, o]);
            let y = case.push(Op::Add, &[y, residual]);
            case.output(y);
        });
    }
}

#[test]
fn a_gate_is_in_the_epilogue_and_its_gradient_reads_the_same_weights() {
    for (k, halves, kernels) in [
        (24, 40, ["gemm_f16_m", "gemm_f16_m", "geglu_bwd_f16_pairs", "gemm_bwd_f16_m"]),
        (7, 5, ["gemm_f16", "gemm_f16", "geglu_bwd_f16_pairs", "gemm_f16"]),
    ] {
        agrees("gate", &kernels, |case| {
            let x = case.input([1, 33, k]);
            let weight = case.b.param("w", [2 * halves, k], Layout::Plain).expect("a name");
            let bias = case.b.param("bias", [2 * halves], Layout::Plain).expect("a name");
            let u = case.push(Op::Linear, &[x, weight, bias]);
            let y = case.push(Op::Geglu, &[u]);
            case.output(y);
            let again = case.push(Op::Linear, &[x, weight, bias]);
            let dy = case.input([1, 33, halves]);
            let du = case.push(Op::GegluBwd, &[again, dy]);
            let dx = case.push(Op::LinearBwd, &[du, weight]);
            let other = case.input([1, 33, k]);
            let dx = case.push(Op::Add, &[dx, other]);
            case.output(dx);
        });
    }
    // Somebody else sees the product as it is.
    agrees("no gate", &["gemm_f16_m", "geglu_f16_v8", "gemm_f16_m"], |case| {
        let x = case.input([1, 33, 24]);
        let weight = case.b.param("w", [80, 24], Layout::Plain).expect("a name");
        let u = case.push(Op::Linear, &[x, weight]);
        let y = case.push(Op::Geglu, &[u]);
        case.output(y);
        let seen = case.push(Op::Linear, &[x, weight]);
        case.output(seen);
    });
}

#[test]
fn an_enlarged_image_is_read_small_and_its_gradient_is_written_small() {
    // Small images with the taps as they are, larger ones with filters for the small image, and odd channels.
    let tiled = ["conv2d_f16_m", "conv2d_bwd_f16_m"];
    for ([h, w], [height, width], c, o, kernels) in [
        ([3, 4], [6, 8], 8, 16, &tiled[..]),
        ([3, 4], [5, 7], 8, 16, &tiled[..]),
        ([20, 20], [40, 40], 16, 8, &tiled[..]),
        ([20, 20], [39, 40], 16, 8, &tiled[..]),
        ([7, 8], [13, 15], 16, 8, &tiled[..]),
        ([7, 8], [14, 15], 3, 5, &["conv2d_f16", "conv2d_bwd_f16"][..]),
    ] {
        agrees("enlarged", kernels, |case| {
            let x = case.input([2, h, w, c]);
            let filter = case.filter([o, 3, 3, c]);
            let large = case.push(Op::Upsample { height, width }, &[x]);
            let y = case.push(Op::Conv2d { stride: 1, padding: Padding::all(1) }, &[large, filter]);
            let residual = case.input([2, height, width, o]);
            let y = case.push(Op::Add, &[y, residual]);
            case.output(y);
            let dy = case.input([2, height, width, o]);
            let (stride, padding) = SAME;
            let dx = case.push(Op::Conv2dBwd { stride, padding, height, width }, &[dy, filter]);
            let dx = case.push(Op::UpsampleBwd { height: h, width: w }, &[dx]);
            let other = case.input([2, h, w, c]);
            let dx = case.push(Op::Add, &[other, dx]);
            case.output(dx);
        });
    }
}

#[test]
fn gradients_of_strided_convolutions_are_added_to_others() {
    for (c, o, kernel) in [(16, 8, "conv2d_bwd_f16_m"), (3, 5, "conv2d_bwd_f16")] {
        agrees("strided", &[kernel], |case| {
            let dy = case.input([2, 4, 5, o]);
            let filter = case.filter([o, 3, 3, c]);
            let (stride, padding) = (2, Padding::all(1));
            let dx = case.push(Op::Conv2dBwd { stride, padding, height: 7, width: 9 }, &[dy, filter]);
            let other = case.input([2, 7, 9, c]);
            let dx = case.push(Op::Add, &[dx, other]);
            case.output(dx);
        });
    }
}

#[test]
fn gradients_of_norms_are_added_to_others() {
    let tiled =
        &["group_norm_tiles_f16", "group_norm_tiles_bwd_f16_silu", "group_norm_apply_bwd_f16_silu"][..];
    for (sides, c, kernels) in [([40, 41], 40, tiled), ([3, 5], 40, &["group_norm_bwd_f16"][..])] {
        agrees("group norm", kernels, |case| {
            let shape = [2, sides[0], sides[1], c];
            let [x, dy, other] = [0; 3].map(|_| case.input(shape));
            let [gamma, beta] =
                ["gamma", "beta"].map(|name| case.b.param(name, [c], Layout::Plain).expect("a name"));
            let op = Op::GroupNormBwd { groups: 5, eps: 1e-5, act: Some(Activation::Silu) };
            let dx = case.push(op, &[x, gamma, beta, dy]);
            let dx = case.push(Op::Add, &[other, dx]);
            case.output(dx);
        });
    }
    for (c, kernel) in [(40, "layer_norm_bwd_f16_c512"), (7, "layer_norm_bwd_f16")] {
        agrees("layer norm", &[kernel], |case| {
            let [x, dy, other] = [0; 3].map(|_| case.input([2, 9, c]));
            let gamma = case.b.param("gamma", [c], Layout::Plain).expect("a name");
            let dx = case.push(Op::LayerNormBwd { eps: 1e-5 }, &[x, gamma, dy]);
            let dx = case.push(Op::Add, &[dx, other]);
            case.output(dx);
        });
    }
}

#[test]
fn two_tensors_side_by_side_are_read_where_they_are_with_the_statistics_of_their_makers() {
    let apply = "group_norm_apply_f16_silu";
    for (sides, [a, c], groups, kernels) in [
        ([12, 14], [16, 24], 4, &["conv2d_f16_m", "conv2d_f16_m", apply, "conv2d_f16_m", "conv2d_f16_m"][..]),
        // A group across the boundary, a last tile that is not whole.
        ([9, 13], [8, 16], 2, &["conv2d_f16_m", "conv2d_f16_m", apply, "conv2d_f16_m", "conv2d_f16_n8"][..]),
        ([3, 5], [3, 9], 4, &["conv2d_f16", "conv2d_f16", "group_norm_f16", "conv2d_f16", "conv2d_f16"][..]),
    ] {
        agrees("pair", kernels, |case| {
            let [h, w] = sides;
            let x = case.input([2, h, w, 8]);
            let first = case.b.conv2d("first", x, (a, 3), SAME, true).expect("shapes fit");
            let second = case.b.conv2d("second", x, (c, 1), (1, Padding::NONE), true).expect("shapes fit");
            let both = case.push(Op::Concat, &[first, second]);
            let h = case.b.group_norm("norm", both, (groups, 1e-5), Some(Activation::Silu)).expect("groups");
            let y = case.b.conv2d("conv", h, (a, 3), SAME, true).expect("shapes fit");
            let short = case.b.conv2d("short", both, (a, 1), (1, Padding::NONE), true).expect("shapes fit");
            let y = case.push(Op::Add, &[short, y]);
            case.output(y);
        });
    }
}

#[test]
fn a_norm_takes_the_statistics_of_whoever_made_its_operand() {
    let apply = "group_norm_apply_f16";
    // A linear layer seen as an image; an enlarged image, whose tiles are of one kind of pixels each.
    agrees("linear", &["gemm_f16_m", apply], |case| {
        let x = case.input([2, 99, 40]);
        let y = case.b.linear("linear", x, 64, true).expect("shapes fit");
        let y = case.b.reshape(y, [2, 9, 11, 64]).expect("as many");
        let residual = case.input([2, 9, 11, 64]);
        let y = case.push(Op::Add, &[y, residual]);
        let y = case.b.group_norm("norm", y, (8, 1e-5), None).expect("groups");
        case.output(y);
    });
    agrees("parts", &["gemm_f16_m", apply], |case| {
        let x = case.input([2, 35, 520]);
        let y = case.b.linear("linear", x, 64, true).expect("shapes fit");
        let y = case.b.group_norm("norm", y, (8, 1e-5), None).expect("groups");
        case.output(y);
    });
    for ([h, w], [height, width], kernels) in [
        ([24, 24], [48, 48], &["conv2d_f16_m", apply][..]),
        ([24, 24], [47, 48], &["conv2d_f16_m", "group_norm_tiles_f16", apply][..]),
    ] {
        agrees("enlarged", kernels, |case| {
            let x = case.input([1, h, w, 8]);
            let x = case.push(Op::Upsample { height, width }, &[x]);
            let y = case.b.conv2d("conv", x, (32, 3), SAME, true).expect("shapes fit");
            let y = case.b.group_norm("norm", y, (4, 1e-5), None).expect("groups");
            case.output(y);
        });
    }
}

#[test]
fn the_gradient_of_a_norm_finds_the_statistics_that_the_norm_left() {
    let backward = ["group_norm_tiles_bwd_f16_silu", "group_norm_apply_bwd_f16_silu"];
    let (tiles, fold, apply) = ("group_norm_tiles_f16", "group_norm_fold_f32", "group_norm_apply_f16_silu");
    for (side, is_made, forward) in [
        (12, true, &["conv2d_f16_m", apply][..]),
        // So many tiles that some are made one.
        (96, true, &["conv2d_f16_m", fold, apply][..]),
        (64, false, &[tiles, apply][..]),
    ] {
        agrees("gradient of a norm", &[forward, &backward].concat(), |case| {
            let x = case.input([1, side, side, 16]);
            let filter = (16, 3);
            let x =
                if is_made { case.b.conv2d("conv", x, filter, SAME, true).expect("shapes fit") } else { x };
            let act = Some(Activation::Silu);
            let y = case.b.group_norm("norm", x, (4, 1e-5), act).expect("groups");
            case.output(y);
            let [gamma, beta] = ["norm.weight", "norm.bias"]
                .map(|name| case.b.param(name, [16], Layout::Plain).expect("a name"));
            let dy = case.input([1, side, side, 16]);
            let dx = case.push(Op::GroupNormBwd { groups: 4, eps: 1e-5, act }, &[x, gamma, beta, dy]);
            case.output(dx);
        });
    }
}
