//! The simulated device: whole runs through the kernels' own sources, against the CPU backend.

#[path = "support/golden.rs"]
mod golden;

use std::collections::BTreeSet;

use golden::{demo, golden, json, open, request};
use unguide::backend::{Backend, Program, Stop};
use unguide::cpu::Cpu;
use unguide::error::{Error, Result};
use unguide::ir::Graph;
use unguide::launch::{Storage, lower};
use unguide::manifest::{Arch, KERNELS};
use unguide::passes::run_all;
use unguide::pipeline::programs::{self, Steering, names};
use unguide::pipeline::{Blueprint, Method, Model, Plans, Request, Target, Trace, generate};
use unguide::plan::{ALIGN, Planner, StepProgram, StepState};
use unguide::simt::{SimtDevice, SimtProgram};
use unguide::tensor::{DType, compare};

/// Relative L2 distance of final latents and gradients, with f16.
const LATENTS: f64 = 2e-2;
/// Scores that are so near to the threshold may fall on the other side.
const NEAR: f32 = 5e-3;

fn run(model: &Model, backend: &dyn Backend, request: &Request) -> Result<Trace> {
    let mut trace = Trace::default();
    generate(model, backend, request, &mut trace, &Stop::default()).map(|()| trace)
}

/// The run of a case with other numbers of steps and images.
fn shortened(model: &Model, case: &str, run: &str, steps: usize, images: usize) -> Request {
    let case = json(&golden(case).join("case.json"));
    let mut settings = case["runs"][run].clone();
    if settings.is_null() {
        // The demo's case has its numbers beside the runs.
        settings = case.clone();
        settings["method"] = if run == "safe" { "safe-sampling" } else { "none" }.into();
        settings["eta"] = 0.0.into();
    }
    let mut request = request(model, &case, &settings);
    request.steps = steps;
    if let Method::Sld { config, .. } = &mut request.method {
        // Or so few steps would show nothing of it.
        config.warmup = 1;
    }
    request.prompts.truncate(images);
    request.batch_size = images;
    request
}

/// Both backends with the same request, and what must hold between them. Returns how often the gate was open.
fn agree(model: &Model, request: &Request, storage: Storage, bound: f64, what: &str) -> usize {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(2);
    agree_on(&SimtDevice::new(storage, threads), model, request, bound, what)
}

fn agree_on(device: &SimtDevice, model: &Model, request: &Request, bound: f64, what: &str) -> usize {
    let got = run(model, device, request).expect("a run on the kernels");
    let want = run(model, &Cpu::<f32>::new(), request).expect("a run on the CPU");
    let distance = |name: &str| {
        let (got, want) = (got.get(name).expect("a tensor"), want.get(name).expect("a tensor"));
        assert_eq!(got.shape(), want.shape(), "{what}: {name}");
        compare(got.data(), want.data()).rel_l2
    };
    let (latents, image) = (distance("final.latents"), distance("final.image"));
    println!("{what}: relative L2 of latents {latents:.1e}, of the image {image:.1e}");
    assert!(latents <= bound && image <= bound, "{what}: latents {latents}, image {image}");
    let mut opened = 0;
    let threshold = request.method.guidance().map_or(0.0, |guidance| guidance.threshold as f32);
    for step in 0..request.steps {
        let name = |part: &str| format!("step.{step:03}.{part}");
        let Some(gates) = want.get(&name("gate")) else { continue };
        let scores = want.get(&name("scores")).expect("scores beside a gate");
        let found = got.get(&name("gate")).expect("a gate where the CPU has one");
        let alike = (0..gates.data().len()).all(|sample| {
            let near = scores.row(sample).iter().any(|score| (score - threshold).abs() <= NEAR);
            near || gates.data()[sample] == found.data()[sample]
        });
        assert!(alike, "{what}: at step {step} gates {:?}, wanted {:?}", found.data(), gates.data());
        if gates.data() == found.data() {
            let gradient = distance(&name("gradient"));
            assert!(gradient <= 2.0 * bound, "{what}: gradients of step {step} are {gradient} apart");
        }
        opened += gates.data().iter().filter(|&&gate| gate != 0.0).count();
    }
    opened
}

#[test]
fn the_demo_model_draws_on_the_kernels_what_it_draws_on_the_cpu() {
    let model = open(&demo());
    let plain = shortened(&model, "demo", "plain", 3, 1);
    agree(&model, &plain, Storage::F16, LATENTS, "plain");
    let safe = shortened(&model, "demo", "safe", 3, 1);
    let opened = agree(&model, &safe, Storage::F16, LATENTS, "safe");
    assert!((1..3).contains(&opened), "the gate is to open and to stay shut, and was open {opened} times");
}

#[test]
fn every_method_runs_on_the_kernels_several_samples_at_a_time() {
    let model = open(&golden("tiny-sd1"));
    for name in ["safe-topk2-sumlog", "sld", "xt", "xt-frozen", "guidance1"] {
        agree(&model, &shortened(&model, "tiny-sd1", name, 2, 2), Storage::F16, LATENTS, name);
    }
    let model = open(&golden("tiny-odd"));
    agree(&model, &shortened(&model, "tiny-odd", "safe-topk2-eta", 2, 2), Storage::F16, LATENTS, "eta");
}

#[test]
fn bf16_stays_near_with_its_three_digits() {
    let model = open(&golden("tiny-sd2"));
    agree(&model, &shortened(&model, "tiny-sd2", "safe", 2, 1), Storage::Bf16, 8.0 * LATENTS, "bf16");
}

#[test]
fn no_bit_depends_on_the_threads_or_on_the_batch() {
    let model = open(&golden("tiny-sd1"));
    let together = shortened(&model, "tiny-sd1", "safe", 2, 2);
    let one_by_one = Request { batch_size: 1, ..together.clone() };
    let runs = [(1, &together), (3, &together), (2, &one_by_one)].map(|(threads, request)| {
        run(&model, &SimtDevice::new(Storage::F16, threads), request).expect("a run")
    });
    for (name, want) in runs[0].tensors() {
        for other in &runs[1..] {
            let got = other.get(name).expect("the same tensors");
            let alike = got.data().iter().zip(want.data()).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(alike && got.shape() == want.shape(), "{name}");
        }
    }
}

#[test]
fn the_forms_of_sm_90a_draw_what_the_cpu_draws_and_no_bit_depends_on_the_batch() {
    let model = open(&golden("tiny-sd1"));
    let together = shortened(&model, "tiny-sd1", "safe", 1, 2);
    let device = |threads| SimtDevice::new(Storage::F16, threads).like("sm_90a");
    agree_on(&device(2), &model, &together, LATENTS, "sm_90a");
    let one_by_one = Request { batch_size: 1, ..together.clone() };
    let [want, got] = [(1, &together), (2, &one_by_one)]
        .map(|(threads, request)| run(&model, &device(threads), request).expect("a run"));
    for (name, want) in want.tensors() {
        let got = got.get(name).expect("the same tensors");
        assert!(got.data().iter().zip(want.data()).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
    }
}

#[test]
fn every_kernel_file_of_sm_90a_takes_part_in_a_guarded_step_that_is_the_cpus() {
    let model = open(&demo());
    let device = SimtDevice::new(Storage::F16, 2).like("sm_90a");
    let blueprint = Blueprint::of(&model);
    let guarded = blueprint.step_spec(Steering::X0(blueprint.guard().expect("a guard")), blueprint.size, 1);
    let plans = Plans::new(&blueprint, &guarded, &Target::of(&model, &device), None).expect("plans");
    let launches = lower(&plans.step, Storage::F16, "sm_90a").expect("launches");
    let taken: BTreeSet<&str> = launches.steps().iter().map(|step| step.launch.kernel.file).collect();
    let files: BTreeSet<&str> =
        KERNELS.iter().filter(|kernel| kernel.arch == Arch::Sm90a).map(|kernel| kernel.file).collect();
    assert!(!files.is_empty() && files.is_subset(&taken), "{files:?}, of which {taken:?} take part");

    let mut open_gate = shortened(&model, "demo", "safe", 1, 1);
    let Method::SafeSampling(guidance) = &mut open_gate.method else { panic!("a guarded run") };
    guidance.threshold = -1.0;
    assert_eq!(agree_on(&device, &model, &open_gate, LATENTS, "the demo on sm_90a"), 1);
}

/// Numbers that make sense everywhere: texts, latents, concepts.
fn fill(program: &mut SimtProgram) {
    for buffer in program.step().graph.buffers.clone() {
        let count = buffer.shape.count();
        let written = match buffer.dtype {
            DType::I32 => program.write_indices(&buffer.name, &vec![1; count]),
            _ => {
                let wave: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37).sin() * 0.2).collect();
                program.write(&buffer.name, &wave)
            }
        };
        written.expect("as many as there are");
    }
}

/// A step with its window and all gates open.
fn open_step() -> StepState {
    StepState { alpha: 0.9, gamma: 0.5, threshold: f32::NEG_INFINITY, ..Default::default() }
}

/// The plan and the device differ in two things, both counted here. The plan leaves out the step's state, with the
/// counters behind it. And it has programs share one arena, where every program of the simulated device has its own.
#[test]
fn the_simulated_device_takes_what_the_plan_says_and_touches_all_of_it() {
    let model = open(&golden("tiny-sd1"));
    let blueprint = Blueprint::of(&model);
    let guard = || blueprint.guard().expect("a guard");
    let through_the_unet = |frozen| Steering::Xt { guard: guard(), frozen };
    let steerings = [
        Steering::None,
        Steering::Sld,
        Steering::X0(guard()),
        through_the_unet(false),
        through_the_unet(true),
    ];
    for (steering, batch) in steerings.into_iter().zip([1, 1, 2, 1, 1]) {
        let device = SimtDevice::new(Storage::F16, 2);
        let target = Target::of(&model, &device);
        let spec = blueprint.step_spec(steering, blueprint.size, batch);
        let plans = Plans::new(&blueprint, &spec, &target, None).expect("plans");
        let arena =
            |plan: &StepProgram| plan.arena_bytes + device.needs(plan).expect("launches").scratch_bytes;
        let run = |device: &SimtDevice, plan: &StepProgram| {
            let mut program = device.load_program(plan.clone(), model.files()).expect("a program");
            let buffers = program.launches().buffer_bytes();
            let state = program.launches().state_bytes();
            assert_eq!(program.device_bytes(), arena(plan) + buffers + state);
            assert_eq!(buffers, plan.buffer_bytes());
            fill(&mut program);
            program.run(&open_step(), &Stop::default()).expect("a run");
            let (touched, arena) = (program.touched_bytes(), arena(plan));
            assert!(touched <= arena && touched + ALIGN > arena, "{touched} of {arena}");
            program.device_bytes() - state
        };
        let before = SimtDevice::new(Storage::F16, 2);
        run(&before, &plans.text);
        plans.concepts.iter().for_each(|plan| _ = run(&before, plan));

        let [step, decode] = [&plans.step, &plans.decode].map(|plan| run(&device, plan));
        let weights = device.weight_bytes();
        let images = step + decode + weights;
        let (step, decode) = (arena(&plans.step), arena(&plans.decode));
        let planned = plans.memory(&spec, &target).expect("launches");
        assert_eq!(weights, planned.weights_bytes);
        assert_eq!(images - step.min(decode), planned.total_bytes());
    }
}

#[test]
fn gradients_have_the_same_bits_on_the_kernels_however_little_is_kept() {
    let model = open(&golden("tiny-sd1"));
    let blueprint = Blueprint::of(&model);
    let steering = Steering::Xt { guard: blueprint.guard().expect("a guard"), frozen: false };
    let device = SimtDevice::new(Storage::F16, 2);
    let target = Target::of(&model, &device);
    let (width, height) = blueprint.size;
    let spec = blueprint.step_spec(steering, (width / 2, height / 2), 1);
    let plans = Plans::frontier(&blueprint, &spec, &target).expect("plans");
    let (most, least) = (&plans[0].step, &plans[plans.len() - 1].step);
    assert!(least.arena_bytes < most.arena_bytes && least.extra_flops > most.extra_flops);
    let bits = |plan: &StepProgram| {
        let mut program = device.load_program(plan.clone(), model.files()).expect("a program");
        fill(&mut program);
        program.run(&open_step(), &Stop::default()).expect("a run");
        [names::GRADIENT, names::SCORES, names::Z].map(|name| {
            let values = program.read(name).expect("numbers");
            assert!(values.iter().any(|&value| value != 0.0), "{name}");
            values.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        })
    };
    assert!(bits(most) == bits(least), "a budget changes a bit");
}

#[test]
fn what_is_not_finite_is_reported_as_on_the_cpu_and_never_drawn() {
    let model = open(&golden("tiny-sd1"));
    let mut request = shortened(&model, "tiny-sd1", "safe", 2, 1);
    request.guidance_scale = 1e38;
    let fault = |backend: &dyn Backend| match run(&model, backend, &request) {
        Err(Error::NonFinite { what, step, image }) => (what, step, image),
        other => panic!("{} answers {:?}", backend.name(), other.map(|_| "an image")),
    };
    assert_eq!(fault(&SimtDevice::new(Storage::F16, 1)), fault(&Cpu::<f32>::new()));
}

#[test]
fn weights_are_packed_once_and_shared_by_the_programs_of_a_device() {
    let model = open(&golden("tiny-sd1"));
    let device = SimtDevice::new(Storage::F16, 1);
    let load = |graph: Graph| {
        let (storage, fuse) = device.storage();
        let planner = Planner::new(run_all(graph).expect("passes"), storage, fuse).expect("a graph");
        device.load_program(planner.plan().expect("a plan"), model.files()).expect("a program")
    };
    let mut first = load(programs::decode(&model.decoder, 8, 8).expect("a graph"));
    let held = device.weight_bytes();
    let second = load(programs::decode(&model.decoder, 8, 9).expect("a graph"));
    let bytes = first.launches().weights.iter().map(|weight| weight.bytes.next_multiple_of(ALIGN));
    assert_eq!(held, bytes.sum::<usize>());
    assert_eq!(device.weight_bytes(), held);
    assert_eq!(first.launches().weights, second.launches().weights);

    // The device outlives nobody: a program keeps what it needs.
    drop(second);
    drop(device);
    first.write(names::Z, &[0.5; 256]).expect("room");
    first.run(&StepState::default(), &Stop::default()).expect("a run");
    assert!(first.read(names::IMAGE).expect("pixels").iter().all(|pixel| pixel.is_finite()));
    assert!(matches!(first.write(names::Z, &[0.5; 255]), Err(Error::Bug(_))));
    assert!(matches!(first.read("no such buffer"), Err(Error::Bug(_))));
}
