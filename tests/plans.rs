//! Plans by their numbers: sizes of the published models, no weights, nothing runs. And what a budget may not
//! change: the bits.

#[path = "support/golden.rs"]
mod golden;
#[path = "support/process.rs"]
mod process;
#[path = "support/requests.rs"]
mod requests;

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use process::Place;
use requests::{guidance, request, through_the_unet};
use unguide::Error;
use unguide::backend::{Backend, Program, Stop, WeightSource};
use unguide::cpu::Cpu;
use unguide::ir::{Fusion, Graph, Item, Op};
use unguide::passes::fuse;
use unguide::pipeline::programs::Steering;
use unguide::pipeline::{
    Blueprint, Memory, Method, Model, Plans, Request, Target, Trace, generate, required_memory,
};
use unguide::plan::{Fuse, Needs, Planner, StepProgram, Storage};
use unguide::safety::SldConfig;
use unguide::tensor::DType;

static DEMO: LazyLock<Model> = LazyLock::new(|| golden::open(&golden::demo()));

const F16: Storage = Storage::Half(DType::F16);
const F32: Storage = Storage::Uniform(4);

fn preset(name: &str) -> Blueprint {
    Blueprint::preset(name).expect("a preset")
}

/// Every way to steer.
fn methods(blueprint: &Blueprint) -> Vec<(&'static str, Steering)> {
    let guard = || blueprint.guard().expect("a guard");
    let tiny = blueprint.clone().with_tiny_guard().guard().expect("a guard");
    vec![
        ("plain", Steering::None),
        ("sld", Steering::Sld),
        ("safe x0", Steering::X0(guard())),
        ("safe xt", Steering::Xt { guard: guard(), frozen: false }),
        ("frozen unet", Steering::Xt { guard: guard(), frozen: true }),
        ("safe-taesd", Steering::X0(tiny)),
    ]
}

fn graph(blueprint: &Blueprint, steering: &Steering, batch: usize) -> Graph {
    let spec = blueprint.step_spec(steering.clone(), blueprint.size, batch);
    blueprint.step(&spec).expect("a step")
}

fn planner(graph: Graph, storage: Storage) -> Planner {
    let fuse: Fuse = if storage == F32 { Fusion::none } else { fuse };
    Planner::new(graph, storage, fuse).expect("a graph that holds")
}

/// Memory of a generation on a device in f16, with the text encoder kept.
fn on_device(
    blueprint: &Blueprint,
    steering: &Steering,
    batch: usize,
    limit: Option<usize>,
) -> Result<Memory, Error> {
    let target = target(F16, fuse);
    let spec = blueprint.step_spec(steering.clone(), blueprint.size, batch);
    Plans::new(blueprint, &spec, &target, limit)?.memory(&spec, &target)
}

/// A device whose operations need nothing for themselves.
fn target(storage: Storage, fuse: Fuse) -> Target<'static> {
    let needs = |program: &StepProgram| Ok(Needs { scratch_bytes: 0, weights: program.weights() });
    Target { storage, fuse, needs: Box::new(needs), mapped: Box::new(|_| false), keep_text: true }
}

fn total(blueprint: &Blueprint, steering: &Steering, batch: usize) -> usize {
    on_device(blueprint, steering, batch, None).expect("a plan").total_bytes()
}

#[test]
fn every_arena_is_within_three_percent_of_the_liveness_bound() {
    let models = [preset("sd15"), preset("sd21-base"), preset("sd21"), Blueprint::of(&DEMO)];
    for blueprint in &models {
        for (method, steering) in methods(blueprint) {
            for (storage, batch) in [(F16, 1), (F16, 8), (F32, 1)] {
                let program = planner(graph(blueprint, &steering, batch), storage).plan().expect("a plan");
                let (arena, bound) = (program.arena_bytes, program.live_bytes);
                let what = format!("{} {method} {storage:?} batch {batch}", blueprint.name);
                assert!(arena >= bound && 100 * arena <= 103 * bound, "{what}: {arena} over {bound}");
            }
        }
    }
}

#[test]
fn arenas_of_texts_concepts_and_images_are_within_five_percent_too() {
    let models = [preset("sd15"), preset("sd21-base"), preset("sd21"), Blueprint::of(&DEMO)];
    for (blueprint, storage) in models.iter().flat_map(|model| [(model, F16), (model, F32)]) {
        let target = target(storage, if storage == F32 { Fusion::none } else { fuse });
        let steering = Steering::X0(blueprint.guard().expect("a guard"));
        let spec = blueprint.step_spec(steering, blueprint.size, 1);
        let plans = Plans::new(blueprint, &spec, &target, None).expect("plans");
        let programs = [
            ("texts", Some(&plans.text)),
            ("concepts", plans.concepts.as_ref()),
            ("image", Some(&plans.decode)),
        ];
        for (what, program) in programs {
            let program = program.expect("every preset has a guard");
            let (arena, bound) = (program.arena_bytes, program.live_bytes);
            let what = format!("{} {what} {storage:?}", blueprint.name);
            assert!(arena >= bound && 100 * arena <= 105 * bound, "{what}: {arena} over {bound}");
        }
    }
}

#[test]
fn the_largest_plan_takes_a_second_at_most() {
    let blueprint = preset("sd21");
    let steering = Steering::Xt { guard: blueprint.guard().expect("a guard"), frozen: false };
    let graph = graph(&blueprint, &steering, 1);
    let start = Instant::now();
    planner(graph, F16).plan().expect("a plan");
    let took = start.elapsed();
    assert!(took <= Duration::from_secs(1), "{took:?}");
}

#[test]
fn stable_diffusion_1_5_in_f16_needs_what_it_was_meant_to_need() {
    let blueprint = preset("sd15");
    let guard = || blueprint.guard().expect("a guard");
    let (x0, xt) = (Steering::X0(guard()), Steering::Xt { guard: guard(), frozen: false });

    let one = on_device(&blueprint, &x0, 1, None).expect("a plan");
    assert!(one.total_bytes() <= 3_900_000_000, "{one:?}");
    assert_eq!(one.extra_flops, 0);
    // What the norms of the decoder read, and the operands of its attention.
    assert!((930_000_000..945_000_000).contains(&one.kept_bytes), "{one:?}");
    let through_the_unet = on_device(&blueprint, &xt, 1, None).expect("a plan");
    assert!(through_the_unet.total_bytes() <= 4_600_000_000, "{through_the_unet:?}");

    let lean = on_device(&blueprint, &x0, 1, Some(3_200_000_000)).expect("a plan that fits");
    assert!(lean.total_bytes() <= 3_200_000_000, "{lean:?}");
    let work = 1.0 + lean.extra_flops as f64 / lean.step_flops as f64;
    assert!(work <= 1.35, "{work}: {lean:?}");

    let eight = total(&blueprint, &x0, 8);
    assert!(eight <= 4_100_000_000, "{eight}");
    // The guard looks at one sample at a time: only the UNet grows.
    let plain = |batch| on_device(&blueprint, &Steering::None, batch, None).expect("a plan");
    let more = plain(32).transient_bytes();
    assert!(total(&blueprint, &x0, 32) <= eight + more);
}

#[test]
fn what_the_unet_and_the_decoder_hold_is_what_was_counted_for_them_by_hand() {
    // MB of a fused step at batch 1: two rows of the UNet, and the decoder.
    let blueprint = preset("sd15");
    let decode = unguide::pipeline::programs::decode(&blueprint.decoder, 64, 64).expect("a decoder");
    let decode = planner(unguide::passes::run_all(decode).expect("a graph"), F16).plan().expect("a plan");
    assert_eq!(decode.live_bytes / 100_000, 3355);
    let unet = planner(graph(&blueprint, &Steering::None, 1), F16).plan().expect("a plan");
    assert!((45_000_000..50_000_000).contains(&unet.live_bytes), "{}", unet.live_bytes);
}

#[test]
fn groups_are_legal_everywhere_and_find_what_they_should() {
    for blueprint in [preset("sd15"), preset("sd21")] {
        for (method, steering) in methods(&blueprint) {
            let graph = graph(&blueprint, &steering, 1);
            let fusion = fuse(&graph);
            check_groups(&graph, &fusion);
            let has = |op: &str| {
                let members = fusion.groups.iter().flat_map(|group| &group.members);
                members.filter(|&&id| graph.node(id).op.name() == op).count()
            };
            let in_unet = |id: &&unguide::ir::NodeId| graph.node(**id).name.starts_with("unet.");
            match method {
                "plain" | "sld" | "safe x0" => {
                    assert_eq!(fusion.pairs.iter().filter(in_unet).count(), 12, "{method}");
                    assert_eq!(has("geglu"), 16, "{method}");
                }
                // Read by the backward pass until the planner decides otherwise.
                "safe xt" => assert_eq!((fusion.pairs.len(), has("geglu")), (0, 0)),
                _ => {}
            }
            // Three in the UNet, three in the guard's decoder.
            assert_eq!(has("upsample"), if matches!(method, "plain" | "sld") { 3 } else { 6 }, "{method}");
        }
    }
}

fn check_groups(graph: &Graph, fusion: &Fusion) {
    let order = graph.order();
    let position: HashMap<_, _> = order.iter().enumerate().map(|(i, &id)| (id, i)).collect();
    let roots = graph.view_roots();
    for group in &fusion.groups {
        assert!(group.members.contains(&group.root) && group.members.len() > 1);
        assert!(group.members.is_sorted_by_key(|id| position[id]));
        for &member in &group.members[..group.members.len() - 1] {
            for &value in &graph.node(member).outputs {
                assert!(!fusion.is_materialised(value));
                let reads = |id: &&unguide::ir::NodeId| {
                    let node = graph.node(**id);
                    let reads = node.inputs.iter().any(|input| roots[input.0 as usize] == value);
                    reads && !matches!(node.op, Op::Reshape)
                };
                let readers: Vec<_> = order.iter().filter(reads).collect();
                assert_eq!(readers.len(), 1, "{}", graph.node(member).name);
                assert!(group.members.contains(readers[0]));
            }
        }
    }
}

#[test]
fn a_frontier_trades_bytes_for_work_and_its_second_runs_stand_behind_the_gate() {
    for (blueprint, storage) in [(preset("sd15"), F16), (Blueprint::of(&DEMO), F32)] {
        let steering = Steering::X0(blueprint.guard().expect("a guard"));
        let points = planner(graph(&blueprint, &steering, 1), storage).frontier().expect("plans");
        assert!(points.len() > 5, "{}", points.len());
        for pair in points.windows(2) {
            assert!(pair[1].arena_bytes < pair[0].arena_bytes, "{}", blueprint.name);
            assert!(pair[1].extra_flops > pair[0].extra_flops, "{}", blueprint.name);
        }
        for point in &points {
            let (flops, outside) = second_runs(&point.graph);
            assert_eq!((flops, outside), (point.extra_flops, 0));
        }
        let last = points.last().expect("a point");
        assert!(last.arena_bytes < points[0].arena_bytes * 7 / 10, "{}", blueprint.name);
    }
}

/// Work of the second runs of a graph, and how many stand outside of the backward body.
fn second_runs(graph: &Graph) -> (u64, usize) {
    fn walk(graph: &Graph, items: &[Item], gated: bool, found: &mut (u64, usize)) {
        for item in items {
            match item {
                Item::Node(id) if graph.node(*id).name.ends_with(".again") => {
                    found.0 += unguide::ir::Cost::of(graph, graph.node(*id), 1).flops;
                    found.1 += usize::from(!gated);
                }
                Item::Node(_) => {}
                Item::ForEachSample(body) => walk(graph, body, gated, found),
                Item::If(flag, body) => {
                    walk(graph, body, gated || matches!(flag, unguide::ir::Flag::Sample(_)), found);
                }
            }
        }
    }
    let mut found = (0, 0);
    walk(graph, &graph.body, false, &mut found);
    found
}

#[test]
fn equal_graphs_get_equal_plans() {
    let blueprint = preset("sd15");
    let steering = Steering::X0(blueprint.guard().expect("a guard"));
    let text = || {
        let plans = planner(graph(&blueprint, &steering, 1), F16).frontier().expect("plans");
        plans.last().expect("a plan").to_string()
    };
    assert_eq!(text(), text());
}

// --- Budgets on the CPU backend.

fn trace(backend: &dyn Backend, request: &Request) -> Result<Trace, Error> {
    let mut trace = Trace::default();
    generate(&DEMO, backend, request, &mut trace, &Stop::default())?;
    Ok(trace)
}

/// The smallest limit that works, as the refusal of an impossible one names it.
fn smallest(request: &Request) -> usize {
    match required_memory(&DEMO, &Cpu::<f32>::new().within(Some(1)), request) {
        Err(Error::OutOfMemory { needed_bytes, .. }) => needed_bytes as usize,
        Err(error) => panic!("{error}"),
        Ok(memory) => panic!("one byte is enough for {memory:?}"),
    }
}

#[test]
fn gradients_and_images_have_the_same_bits_under_every_budget() {
    for (method, images) in [(Method::SafeSampling(guidance()), 2), (through_the_unet(), 1)] {
        let request = request(method, images);
        let free = Cpu::<f32>::new();
        let reference = trace(&free, &request).expect("a run");
        assert!(reference.get("step.000.gradient").expect("a gradient").data().iter().any(|&v| v != 0.0));
        let most = required_memory(&DEMO, &free, &request).expect("a plan");
        let least = smallest(&request);
        assert!(least < most.total_bytes());
        for limit in [least, least + (most.total_bytes() - least) / 3, most.total_bytes() - 1] {
            let backend = Cpu::<f32>::new().within(Some(limit));
            let memory = required_memory(&DEMO, &backend, &request).expect("a plan");
            assert!(memory.total_bytes() <= limit, "{limit}: {memory:?}");
            // A byte less than without a limit may cost nothing but a norm; the least of all costs contractions.
            assert!(memory.extra_flops > 0 || limit > least, "{limit}: {memory:?}");
            let lean = trace(&backend, &request).expect("a run");
            let bits = |trace: &Trace| -> Vec<(String, Vec<u32>)> {
                let bits = |data: &[f32]| data.iter().map(|value| value.to_bits()).collect();
                trace.tensors().map(|(name, tensor)| (name.to_owned(), bits(tensor.data()))).collect()
            };
            assert_eq!(bits(&lean), bits(&reference), "{limit} bytes");
        }
    }
}

#[test]
fn a_budget_without_second_runs_to_save_by_is_still_a_bound() {
    let sld = Method::Sld { config: SldConfig::MAX, concept: "a weapon".into() };
    for method in [Method::None, sld] {
        let request = request(method, 1);
        let least = smallest(&request);
        let most = required_memory(&DEMO, &Cpu::<f32>::new(), &request).expect("a plan").total_bytes();
        assert_eq!(least, most);
        assert!(trace(&Cpu::<f32>::new().within(Some(least)), &request).is_ok());
    }
}

#[test]
fn no_weight_is_read_after_somebody_asked_to_stop() {
    let stop = Stop::default();
    let program = || {
        let blueprint = Blueprint::of(&DEMO);
        planner(graph(&blueprint, &Steering::None, 1), F32).plan().expect("a plan")
    };
    assert!(!stop.ask(15));
    let reads = || DEMO.loading().read;
    let before = reads();
    let stopped = DEMO.load(&Cpu::<f32>::new(), program(), &stop);
    assert!(matches!(stopped, Err(Error::Interrupted { signal: 15 })));
    assert!(DEMO.load(&Cpu::<f32>::new(), program(), &Stop::default()).is_ok() && reads() > before);
    assert!(stop.ask(2), "the second signal hears that it is the second");
}

/// The CPU backend under a limit of a few bytes; whoever loads something from it is a bug.
struct Untouched(Cpu<f32>);

impl Backend for Untouched {
    fn name(&self) -> &'static str {
        "untouched"
    }

    fn storage(&self) -> (Storage, Fuse) {
        self.0.storage()
    }

    fn dtype(&self) -> &'static str {
        self.0.dtype()
    }

    fn needs(&self, program: &StepProgram) -> unguide::Result<Needs> {
        self.0.needs(program)
    }

    fn limit(&self) -> Option<usize> {
        Some(1000)
    }

    fn load(&self, program: StepProgram, _: &dyn WeightSource) -> unguide::Result<Box<dyn Program>> {
        panic!("loaded {} weights", program.params.len());
    }
}

#[test]
fn a_budget_that_cannot_be_met_is_refused_before_any_weight_is_loaded() {
    let request = request(Method::SafeSampling(guidance()), 1);
    let error = trace(&Untouched(Cpu::new()), &request).err().expect("a refusal");
    assert_eq!(error.exit_code(), 5);
    let (words, least) = (error.to_string(), smallest(&request).to_string());
    assert!(
        words.contains("1000 bytes") && words.contains(&least) && words.contains("the weights"),
        "{words}"
    );
}

// --- The command.

const FIELDS: [&str; 13] = [
    "model",
    "method",
    "gradient",
    "batch",
    "dtype",
    "total_bytes",
    "weights_bytes",
    "kept_bytes",
    "transient_bytes",
    "extra_flops",
    "budget_bytes",
    "peak_step",
    "mapped_bytes",
];

#[test]
fn memory_prints_one_json_line_a_row_with_classes_that_add_up() {
    let place = Place::new();
    let ran = place.run(&["memory", "-m", "sd15", "--json", "--batch-size", "1,2", "--dtype", "f16,f32"]);
    ran.says(0, &[]);
    let lines = ran.json();
    assert_eq!(lines.len(), 7 * 2 * 2);
    for line in &lines {
        let object = line.as_object().expect("an object");
        assert!(object.keys().eq(FIELDS), "{line}");
        let bytes = |field: &str| line[field].as_u64().expect("bytes");
        let sum = bytes("weights_bytes") + bytes("kept_bytes") + bytes("transient_bytes");
        assert_eq!(bytes("total_bytes"), sum);
        assert!(line["budget_bytes"].is_null() && !line["peak_step"].as_str().expect("a name").is_empty());
    }
    let words = |field: &str| -> Vec<&str> {
        lines[..7].iter().map(|line| line[field].as_str().expect("a word")).collect()
    };
    assert_eq!(words("method"), ["plain", "sld", "safe-taesd", "safe", "safe", "classifier", "classifier"]);
    assert_eq!(words("gradient"), ["none", "none", "x0", "x0", "xt", "x0", "xt"]);
}

#[test]
fn memory_takes_presets_directories_sizes_and_methods() {
    let place = Place::new();
    let demo = golden::demo();
    let demo = demo.to_str().expect("a path");
    let table =
        place.run(&["memory", "-m", demo, "--method", "safe", "--dtype", "f32", "-W", "96", "-H", "64"]);
    let text = table.says(0, &[]).text();
    assert!(text.contains("safe x0") && text.contains("safe xt") && text.contains("x0 against xt"), "{text}");
    assert!(text.contains("ours against torch") && text.contains("not measured"), "{text}");
    place.run(&["memory", "--preset", "sd21-base", "--method", "plain"]).says(0, &[]);
    let embedded = place.run(&[
        "memory",
        "--json",
        "--release-text",
        "--gradient",
        "x0",
        "--frontier",
        "--dtype",
        "f32",
    ]);
    let lines = embedded.says(0, &[]).json();
    assert!(lines.iter().all(|line| line["budget_bytes"] == line["total_bytes"]) && lines.len() > 8);
    let plan = place.run(&["inspect", "plan", "--preset", "sd15", "--dtype", "f16"]);
    assert!(plan.says(0, &[]).text().contains("upsample+conv2d"));
}

#[test]
fn memory_within_a_budget_and_without_one_that_works() {
    let place = Place::new();
    let base = ["memory", "-m", "sd15", "--method", "safe", "--gradient", "x0", "--json", "--max-vram"];
    let ran = place.run(&[&base[..], &["3.4GB"]].concat());
    let line = &ran.says(0, &[]).json()[0];
    assert!(line["total_bytes"].as_u64().expect("bytes") <= 3_400_000_000, "{line}");
    assert_eq!(line["budget_bytes"], 3_400_000_000u64);
    assert!(line["extra_flops"].as_u64().expect("work") > 0);
    let ran = place.run(&[&base[..], &["2GiB"]].concat());
    ran.says(5, &["2147483648 bytes", "smallest", "the weights"]);
    assert!(ran.stdout.is_empty());
    place.draw("--max-vram 1MB").says(5, &["1000000 bytes", "smallest"]);
    place.draw("--max-vram 300MB").says(0, &[]);
}

#[test]
fn memory_refuses_what_it_does_not_understand() {
    let place = Place::new();
    for (args, says) in [
        (&["--max-vram", "lots"][..], "3.2GB"),
        (&["--max-vram=-1"], "--max-vram"),
        (&["--max-vram", "1GB", "--frontier"], "--frontier"),
        (&["--method", "magic"], "safe-taesd"),
        (&["--method", "plain", "--gradient", "xt"], "--gradient"),
        (&["--preset", "sd3"], "sd21-base"),
        (&["--batch-size", "0"], "--batch-size"),
        (&["-W", "30"], "--width"),
        (&["--dtype", "f8"], "f16"),
    ] {
        place.run(&[&["memory"], args].concat()).says(2, &[says]);
    }
    place.run(&["memory", "-m", "no-such-model"]).says(3, &["no-such-model"]);
}
