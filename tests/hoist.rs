//! Steps with and without what is hoisted out of them, and what their rows share: the same bits, with less to do.

#[path = "support/golden.rs"]
mod golden;

use golden::{golden, open};
use unguide::backend::{Backend, Program, Stop};
use unguide::cpu::Cpu;
use unguide::ir::{Cost, Once, Op};
use unguide::passes::{fuse, remove_dead, run_all};
use unguide::pipeline::programs::{self, Guard, Steering, StepSpec, names};
use unguide::pipeline::{Blueprint, Model};
use unguide::plan::{Fit, Planner, StepProgram, StepState};

/// Not the numbers of any sampler; every step has other ones.
fn state(step: u32) -> StepState {
    StepState {
        step,
        fresh: step == 0,
        timestep: timestep(step),
        guidance: 3.0,
        alpha: 0.5,
        x0_from: [1.1, -0.4],
        prev_x0: 0.7,
        prev_eps: 0.6,
        gamma: 0.05,
        threshold: f32::NEG_INFINITY,
        ..StepState::default()
    }
}

fn timestep(step: u32) -> f32 {
    901.0 - 300.0 * step as f32
}

/// Numbers without a pattern, about one large.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i + 7 * seed) * 7919) as f32).sin()).collect()
}

struct Case {
    model: Model,
    spec: StepSpec,
}

impl Case {
    fn new(model: &str, batch: usize, steering: impl FnOnce(&Blueprint) -> Steering) -> Self {
        let model = open(&golden(model));
        let blueprint = Blueprint::of(&model);
        let size = 4 * blueprint.decoder.factor();
        let spec = blueprint.step_spec(steering(&blueprint), (2 * size, size), batch);
        Self { model, spec: StepSpec { steps: 3, ..spec } }
    }

    fn plan(&self, hoisted: bool, backend: &dyn Backend) -> StepProgram {
        let graph = programs::step(&self.model.unet, &self.spec).expect("a step");
        let graph = if hoisted { programs::hoisted(graph, &self.spec).expect("a pass") } else { graph };
        let (storage, fuse) = backend.storage();
        Planner::new(run_all(graph).expect("passes"), storage, fuse).expect("a graph").plan().expect("a plan")
    }

    /// Hoisted, and with or without what the rows of an image share.
    fn plan_rows(&self, shared: bool, backend: &dyn Backend) -> StepProgram {
        let graph = programs::step(&self.model.unet, &self.spec).expect("a step");
        let mut graph = programs::hoisted(graph, &self.spec).expect("a pass");
        if shared {
            graph = run_all(graph).expect("passes");
        } else {
            remove_dead(&mut graph);
        }
        let (storage, fuse) = backend.storage();
        Planner::new(graph, storage, fuse).expect("a graph").plan().expect("a plan")
    }

    /// Writes what the step reads; `texts` chooses them.
    fn write(&self, program: &mut dyn Program, texts: usize) {
        let StepSpec { batch, height, width, tokens, context_width, rows, steps, .. } = self.spec;
        let latents = numbers(batch * height * width * 4, 1);
        let context = numbers(rows * batch * tokens * context_width, texts);
        program.write(names::Z, &latents).expect("latents");
        program.write(names::CONTEXT, &context).expect("texts");
        if program.step().buffer(names::TIMESTEPS).is_some() {
            let timesteps: Vec<f32> = (0..steps as u32).map(timestep).collect();
            program.write(names::TIMESTEPS, &timesteps).expect("timesteps");
        }
        if let Some(id) = program.step().buffer(names::CONCEPTS) {
            let shape = program.step().graph.buffer(id).shape.clone();
            let mut concepts = numbers(shape.count(), 5);
            for concept in concepts.chunks_mut(shape.last()) {
                let length = concept.iter().map(|x| x * x).sum::<f32>().sqrt();
                concept.iter_mut().for_each(|x| *x /= length);
            }
            program.write(names::CONCEPTS, &concepts).expect("concepts");
        }
    }

    /// All that the steps leave behind, for one set of texts after the other.
    fn run(&self, program: &mut dyn Program, texts: &[usize], steps: u32) -> Vec<(String, Vec<f32>)> {
        let results = [names::Z, names::EPS, names::X0_GUIDED, names::SCORES, names::GRADIENT, names::NU];
        let mut found = Vec::new();
        for &texts in texts {
            self.write(program, texts);
            for step in 0..steps {
                program.run(&state(step), &Stop::default()).expect("a step");
                for name in results {
                    if program.step().buffer(name).is_some() {
                        let what = format!("{name} of step {step} with texts {texts}");
                        found.push((what, program.read(name).expect("numbers")));
                    }
                }
            }
        }
        found
    }
}

fn load(case: &Case, plan: StepProgram, backend: &dyn Backend) -> Box<dyn Program> {
    case.model.load(backend, plan, &Stop::default()).expect("a program")
}

fn same(found: &[(String, Vec<f32>)], wanted: &[(String, Vec<f32>)], what: &str) {
    assert_eq!(found.len(), wanted.len());
    for ((name, found), (_, wanted)) in found.iter().zip(wanted) {
        let other = found.iter().zip(wanted).position(|(a, b)| a.to_bits() != b.to_bits() || !a.is_finite());
        let numbers = other.map(|i| (i, found[i], wanted[i]));
        assert_eq!(numbers, None, "{what}: {name}, element, found, wanted");
    }
}

fn cases() -> Vec<(&'static str, Case)> {
    // Random latents have gradients that f16 does not hold times 2^16.
    let guard = |blueprint: &Blueprint| Guard { scale_log2: 0, ..blueprint.guard().expect("a guard") };
    let xt = |frozen| move |b: &Blueprint| Steering::Xt { guard: guard(b), frozen };
    vec![
        ("plain", Case::new("tiny-odd", 2, |_| Steering::None)),
        ("sld", Case::new("tiny-sd2", 1, |_| Steering::Sld)),
        ("safe", Case::new("tiny-sd1", 2, |b| Steering::X0(guard(b)))),
        ("xt", Case::new("tiny-sd1", 2, xt(false))),
        ("xt-frozen", Case::new("tiny-sd1", 1, xt(true))),
    ]
}

#[test]
fn hoisting_changes_no_bit_of_any_method() {
    for (name, case) in cases() {
        let backend = Cpu::<f32>::new();
        let run =
            |hoisted| case.run(load(&case, case.plan(hoisted, &backend), &backend).as_mut(), &[2, 3], 3);
        same(&run(true), &run(false), name);
    }
}

#[test]
fn what_the_rows_of_an_image_share_changes_no_bit_of_any_method() {
    for (name, case) in cases() {
        let backend = Cpu::<f32>::new();
        let flops = |plan: &StepProgram| -> u64 {
            let nodes = plan.graph.order_of(None).into_iter().map(|id| plan.graph.node(id));
            nodes.map(|node| Cost::of(&plan.graph, node, 4).flops).sum()
        };
        let [all, shared] = [false, true].map(|shared| case.plan_rows(shared, &backend));
        // Where the gradient goes through the UNet, it reads what every row has of its own.
        assert_eq!(flops(&shared) < flops(&all), name != "xt", "{name}");
        let run = |plan| case.run(load(&case, plan, &backend).as_mut(), &[2], 2);
        same(&run(shared), &run(all), name);
    }
}

#[test]
fn a_step_of_one_row_has_nothing_to_share() {
    let mut case = Case::new("tiny-sd1", 2, |_| Steering::None);
    case.spec.rows = 1;
    let plan = |shared| case.plan_rows(shared, &Cpu::<f32>::new()).graph.to_string();
    assert_eq!(plan(true), plan(false));
}

#[test]
fn a_steps_row_does_not_depend_on_how_many_steps_there_are() {
    let case = Case::new("tiny-sd1", 1, |_| Steering::None);
    let longer = Case {
        spec: StepSpec { steps: 17, ..case.spec.clone() },
        ..Case::new("tiny-sd1", 1, |_| Steering::None)
    };
    let run = |case: &Case| {
        let backend = Cpu::<f32>::new();
        let mut program = load(case, case.plan(true, &backend), &backend);
        case.write(program.as_mut(), 2);
        let z = |step| {
            program.run(&state(step), &Stop::default()).expect("a step");
            (format!("step {step}"), program.read(names::Z).expect("latents"))
        };
        (0..3).map(z).collect::<Vec<_>>()
    };
    same(&run(&longer), &run(&case), "17 steps against 3");
}

#[test]
fn a_step_beyond_the_schedule_is_refused() {
    let case = Case::new("tiny-sd1", 1, |_| Steering::None);
    let backend = Cpu::<f32>::new();
    let mut program = load(&case, case.plan(true, &backend), &backend);
    let refused = program.run(&StepState { step: 3, ..StepState::default() }, &Stop::default());
    assert!(matches!(refused, Err(unguide::Error::Bug(_))), "{refused:?}");
}

#[test]
fn a_step_keeps_no_projection_of_its_text_or_its_time() {
    for (name, case) in cases() {
        let graph = case.plan(true, &Cpu::<f32>::new()).graph;
        let nodes = |part: Option<Once>| graph.order_of(part).into_iter().map(|id| graph.node(id));
        let linear = |part, word: &str| {
            nodes(part).filter(|node| node.op == Op::Linear && node.name.contains(word)).count()
        };
        for word in ["time_emb_proj", "time_embedding"] {
            assert_eq!(linear(None, word), 0, "{name}: {word}");
            assert!(linear(Some(Once::Schedule), word) > 0, "{name}: {word}");
        }
        // Of the projections in front of attention to the text the queries stay.
        let attentions = nodes(None).filter(|node| node.name.ends_with("attn2.attention")).count();
        assert_eq!(linear(None, "attn2.to_"), 2 * attentions, "{name}: to_q and to_out");
        assert!(linear(Some(Once::Prompt), "attn2.to_") >= attentions, "{name}");
        let loads = |wanted: &str| {
            let loads = nodes(None).filter(|node| matches!(node.op, Op::Load { .. }));
            loads.filter(|node| node.name == wanted).count()
        };
        assert_eq!(loads(names::CONTEXT) + loads(names::TIMESTEPS), 0, "{name}");
    }
}

#[test]
fn a_budget_and_groups_find_hoisted_bodies_as_they_are() {
    let (_, case) = cases().swap_remove(2);
    let graph = programs::step(&case.model.unet, &case.spec).expect("a step");
    let graph = run_all(programs::hoisted(graph, &case.spec).expect("a pass")).expect("passes");
    let storage = unguide::plan::Storage::of(unguide::tensor::DType::F16);
    let planner = Planner::new(graph, storage, fuse).expect("a graph");
    let (Fit::Fits(lean) | Fit::Smallest(lean)) = planner.within(1).expect("a plan");
    let runs = |program: &StepProgram, part| {
        let nodes = program.graph.order_of(part).into_iter();
        nodes.map(|id| program.graph.node(id).name.clone()).collect::<Vec<_>>()
    };
    let free = planner.plan().expect("a plan");
    for once in [Once::Prompt, Once::Schedule] {
        assert_eq!(runs(&lean, Some(once)), runs(&free, Some(once)));
    }
    assert!(runs(&lean, None).len() > runs(&free, None).len());
}

#[cfg(feature = "simt")]
#[test]
fn the_kernels_make_the_same_bits_of_it_too() {
    use unguide::launch::Storage;
    use unguide::simt::SimtDevice;
    for (name, index) in [("plain", 0), ("xt", 3)] {
        let (_, case) = cases().swap_remove(index);
        let backend = SimtDevice::new(Storage::F16, 2);
        let run = |hoisted| case.run(load(&case, case.plan(hoisted, &backend), &backend).as_mut(), &[2], 2);
        same(&run(true), &run(false), name);
    }
    // Two images of two rows, and one of three.
    for (name, index) in [("plain", 0), ("sld", 1)] {
        let (_, case) = cases().swap_remove(index);
        let backend = SimtDevice::new(Storage::F16, 2);
        let run =
            |shared| case.run(load(&case, case.plan_rows(shared, &backend), &backend).as_mut(), &[2], 1);
        same(&run(true), &run(false), name);
    }
}
