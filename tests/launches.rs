//! Steps as launches, without a device: what they cost, what they rely on, that they fit the plan.

#[path = "support/golden.rs"]
mod golden;

use std::time::Instant;

use bytemuck::pod_read_unaligned;
use unguide::ir::{Cost, Flag, Node, NodeId, Once, Op};
use unguide::launch::choice::{Tiling, Why};
use unguide::launch::device::Gpu;
use unguide::launch::params::{DevicePtr, StepState};
use unguide::launch::predict::Prediction;
use unguide::launch::tune::Reason;
use unguide::launch::{Launch, LaunchProgram, LaunchStage, LaunchStep, Location, Space, Storage, lower};
use unguide::passes::{fuse, run_all};
use unguide::pipeline::Blueprint;
use unguide::pipeline::programs::{Steering, StepSpec, encode_text, names};
use unguide::plan::{self, Stage, StepProgram};
use unguide::tensor::DType;

fn blueprint(name: &str) -> Blueprint {
    Blueprint::preset(name).expect("a published model")
}

fn planned(name: &str, steering: Steering, batch: usize) -> StepProgram {
    planned_for(&blueprint(name), steering, batch)
}

fn planned_for(blueprint: &Blueprint, steering: Steering, batch: usize) -> StepProgram {
    planned_as(blueprint, &blueprint.step_spec(steering, blueprint.size, batch))
}

fn planned_as(blueprint: &Blueprint, spec: &StepSpec) -> StepProgram {
    let graph = blueprint.step(spec).expect("a graph");
    let fusion = fuse(&graph);
    StepProgram::fused(graph, fusion, plan::Storage::of(Storage::F16.dtype())).expect("a plan")
}

fn safe(name: &str) -> Steering {
    Steering::X0(blueprint(name).guard().expect("a guard"))
}

/// All addresses of a launch.
fn locations(launch: &Launch) -> Vec<Location> {
    let addresses = launch.params.chunks(8).take(launch.addresses);
    addresses.filter_map(|bytes| Location::of(DevicePtr(pod_read_unaligned(bytes)))).collect()
}

fn bodies(stages: &[LaunchStage]) -> String {
    let words = stages.iter().map(|stage| match stage {
        LaunchStage::Run(_) => "run".to_owned(),
        LaunchStage::ForEachSample { samples, body } => format!("{samples} samples ({})", bodies(body)),
        LaunchStage::If(Flag::Once(once), body) => format!("once a {} ({})", once.name(), bodies(body)),
        LaunchStage::If(Flag::Window, body) => format!("if window ({})", bodies(body)),
        LaunchStage::If(Flag::Sample(_), body) => format!("if sample ({})", bodies(body)),
    });
    words.collect::<Vec<_>>().join(", ")
}

#[test]
fn a_unet_of_stable_diffusion_1_costs_what_its_shapes_say() {
    // One sample at 512 x 512, without the projections of text and time: 800.3 GFLOP.
    let program = lower(&planned("sd15", Steering::None, 1), Storage::F16, "sm_90a").expect("launches");
    let sd15 = blueprint("sd15");
    let spec = StepSpec { rows: 1, ..sd15.step_spec(Steering::None, sd15.size, 1) };
    let alone = lower(&planned_as(&sd15, &spec), Storage::F16, "sm_90a").expect("launches");
    let of_one_row = alone.cost_of(None).flops;
    assert!((of_one_row as f64 / 800.3e9 - 1.0).abs() <= 0.01, "{:.1} GFLOP", of_one_row as f64 / 1e9);
    // Both rows share 4096 pixels of 320 channels up to the queries for the text: two convolutions of nine taps,
    // products in and out of attention, six wide, and attention.
    let (pixels, c) = (4096, 320);
    let shared = 2 * pixels * c * (2 * 9 * c + 6 * c) + 4 * pixels * pixels * c;
    assert_eq!(program.cost_of(None).flops, 2 * of_one_row - shared);
    // 859 520 964 parameters in two bytes, but for biases, scales and shifts in four, and for a convolution
    // behind an enlargement, whose filters of nine taps become four of four.
    let enlarged = 2 * 640 * 640 * (16 - 9);
    let weights = (program.weight_bytes() - enlarged) as f64;
    assert!((1.0..1.01).contains(&(weights / 1_719_041_928.0)), "{weights} bytes");
}

#[test]
fn a_step_reads_no_text_and_no_timestep_and_takes_its_row_of_the_schedule_in_one_copy() {
    for steering in [Steering::None, safe("sd15")] {
        let program = lower(&planned("sd15", steering, 2), Storage::F16, "sm_90a").expect("launches");
        let readers = |part, name: &str| {
            let (buffer, _) = program.buffer(name).expect("a buffer");
            let of_buffer = |location: &Location| location.space == Space::Buffer(buffer.0);
            let steps = program.steps_of(part).into_iter();
            steps.filter(|step| locations(&step.launch).iter().any(of_buffer)).count()
        };
        assert_eq!((readers(None, names::CONTEXT), readers(None, names::TIMESTEPS)), (0, 0));
        assert!(readers(Some(Once::Prompt), names::CONTEXT) > 0);
        assert_eq!(readers(Some(Once::Schedule), names::TIMESTEPS), 1);
        assert_eq!((readers(Some(Once::Schedule), names::TIME), readers(None, names::TIME)), (1, 1));
        // Two rows an image, 77 tokens of 768 numbers, to keys and values of all levels.
        let outputs = 2 * (5 * 320 + 5 * 640 + 6 * 1280) as u64;
        assert_eq!(program.cost_of(Some(Once::Prompt)).flops, 2 * 4 * 77 * 768 * outputs);
        let [step, prompt, schedule] =
            [None, Some(Once::Prompt), Some(Once::Schedule)].map(|part| program.steps_of(part).len());
        println!("launches: {step} a step, {prompt} a prompt, {schedule} a schedule");
    }
}

#[test]
fn a_unet_step_of_stable_diffusion_1_is_few_launches() {
    for target in ["sm_90a", "sm_80"] {
        let start = Instant::now();
        let program = lower(&planned("sd15", Steering::None, 1), Storage::F16, target).expect("launches");
        let launches = program.steps_of(None).len();
        println!("{launches} launches on {target}, planned and lowered in {:?}", start.elapsed());
        assert!(launches <= 340, "{launches} launches on {target}");
    }
}

#[test]
fn what_the_rows_of_an_image_share_is_read_where_it_is() {
    for (name, steering) in [("sd15", Steering::None), ("sd21", Steering::Sld), ("sd15", safe("sd15"))] {
        let step = planned(name, steering, 2);
        let found: Vec<_> = step.fusion.in_place.iter().map(|&id| step.graph.node(id).op.name()).collect();
        // Of the first convolution some images; queries, and what two sums add.
        assert_eq!(found.iter().filter(|&&op| op == "slice_batch").count(), 1, "{found:?}");
        assert_eq!(found.iter().filter(|&&op| op == "repeat_batch").count(), 3, "{found:?}");
        for target in ["sm_90a", "sm_80"] {
            let program = lower(&step, Storage::F16, target).expect("launches");
            let copies = |step: &&LaunchStep| step.node.ends_with(".rows") || step.node.ends_with(".row");
            assert_eq!(program.steps().into_iter().filter(copies).count(), 0, "{name} on {target}");
        }
    }
}

#[test]
fn the_arena_has_little_more_than_what_is_alive_and_no_more_than_the_plan_says() {
    let presets = ["sd15", "sd21-base", "sd21"].map(blueprint);
    for blueprint in presets.into_iter().chain([Blueprint::of(&golden::open(&golden::demo()))]) {
        for steering in [Steering::None, Steering::X0(blueprint.guard().expect("a guard"))] {
            let step = planned_for(&blueprint, steering, 1);
            for target in unguide::manifest::TARGETS {
                let program = lower(&step, Storage::F16, target).expect("launches");
                let (name, arena) = (&blueprint.name, program.arena_bytes);
                let over = arena as f64 / program.live_bytes as f64;
                assert!(over <= 1.05, "{name} on {target}: {arena} bytes, {over} of what is alive");
                // What does not fit into the gaps is in the figures of `unguide memory` as well. A small program has
                // no large gaps for the parts of its sums.
                let more = (step.arena_bytes / 50).max(512 << 10);
                assert!(arena <= step.arena_bytes + more, "{name} on {target}: {arena} bytes");
            }
        }
    }
}

#[test]
fn a_plan_has_every_buffer_in_the_type_that_kernels_store_it_in() {
    for blueprint in ["sd15", "sd21-base"].map(blueprint) {
        let guard = || blueprint.guard().expect("a guard");
        let through = |frozen| Steering::Xt { guard: guard(), frozen };
        for steering in [Steering::None, Steering::Sld, Steering::X0(guard()), through(false), through(true)]
        {
            let step = planned_for(&blueprint, steering, 2);
            let program = lower(&step, Storage::F16, "sm_80").expect("launches");
            let stored: Vec<usize> = program.buffers.iter().map(|buffer| buffer.bytes()).collect();
            let planned = plan::Storage::of(Storage::F16.dtype()).buffer_bytes(&step.graph);
            for ((buffer, stored), planned) in step.graph.buffers.iter().zip(stored).zip(planned) {
                assert_eq!(stored, planned, "{} of {}", buffer.name, blueprint.name);
            }
        }
    }
}

#[test]
fn what_attends_to_the_same_tokens_is_projected_by_one_product_and_back_by_one() {
    let blueprint = blueprint("sd15");
    let guard = blueprint.guard().expect("a guard");
    let spec = blueprint.step_spec(Steering::Xt { guard, frozen: false }, blueprint.size, 1);
    let graph = blueprint.step(&spec).expect("a graph");
    let count = |wanted: &dyn Fn(&Node) -> bool| graph.nodes.iter().filter(|node| wanted(node)).count();
    let attends = |operands: usize| {
        count(&|node| matches!(node.op, Op::Attention { .. }) && node.inputs.len() == operands)
    };
    // 16 blocks of the UNet, the decoder, 24 layers of the vision tower.
    assert_eq!((attends(1), attends(2), attends(3)), (16 + 1 + 24, 16, 0));
    let back = |name: &str| count(&|node| node.op == Op::LinearBwd && node.name.ends_with(name));
    assert_eq!(back(".to_qkv.grad") + back(".qkv_proj.grad"), 16 + 1 + 24);
    // Of the text no gradient is wanted.
    assert_eq!((back(".to_q.grad"), back(".to_kv.grad")), (16, 0));
}

#[test]
fn nothing_is_computed_of_the_gradients_of_a_texts_keys_and_values() {
    let guard = blueprint("sd15").guard().expect("a guard");
    let program = lower(&planned("sd15", Steering::Xt { guard, frozen: false }, 1), Storage::F16, "sm_80");
    let steps = program.expect("launches").steps().into_iter().cloned().collect::<Vec<_>>();
    let of = |part: &str, what: &str| {
        let mine = steps.iter().filter(|step| step.launch.kernel.name.starts_with(part));
        mine.filter(|step| step.node.contains(what)).cloned().collect::<Vec<_>>()
    };
    let (dq, dkv) = ("attention_bwd_dq", "attention_bwd_dkv");
    assert_eq!(["attn1", "attn2", "clip"].map(|what| of(dq, what).len()), [16, 16, 24]);
    assert_eq!(["attn1", "attn2", "clip"].map(|what| of(dkv, what).len()), [16, 0, 24]);
    // Of the five products of a gradient dq takes three; who makes dk and dv computes two of them once more.
    for (dq, dkv) in of(dq, "attn1").iter().zip(of(dkv, "attn1")) {
        assert_eq!((2 * dq.cost.flops, 4 * dq.cost.flops), (3 * dkv.cost.flops, 3 * dkv.cost.executed_flops));
    }
}

#[test]
fn costs_of_a_node_are_shared_out_among_its_launches() {
    let program = lower(&planned("sd15", Steering::None, 1), Storage::F16, "sm_90a").expect("launches");
    for step in program.steps() {
        assert!(step.cost.bytes > 0, "{} of {} moves nothing", step.launch.kernel.name, step.node);
        let multiplies = step.cost.flops > 0;
        assert_eq!(multiplies, step.cost.executed_flops > 0, "{} of {}", step.launch.kernel.name, step.node);
    }
    // Sub-pixel filters save more than tiles waste.
    let cost = program.cost();
    let share = cost.executed_flops as f64 / cost.flops as f64;
    assert!((0.95..1.05).contains(&share), "{share}");
}

#[test]
fn launches_multiply_together_what_their_nodes_multiply() {
    fn of(step: &StepProgram, stages: &[Stage]) -> u64 {
        let of_node = |&id: &NodeId| Cost::of(&step.graph, step.graph.node(id), 2).flops;
        let members =
            |nodes: &[NodeId]| nodes.iter().flat_map(|&id| step.fusion.members(id)).collect::<Vec<_>>();
        let of_stage = |stage: &Stage| match stage {
            Stage::Run(nodes) => members(nodes).iter().map(of_node).sum(),
            Stage::ForEachSample(body) | Stage::If(_, body) => of(step, body),
        };
        stages.iter().map(of_stage).sum()
    }
    // The gradient of 50, 257 and 4096 tokens: in tiles and in pieces.
    let guard = || blueprint("sd15").guard().expect("a guard");
    let through = Steering::Xt { guard: guard(), frozen: false };
    for (name, steering) in [("sd15", safe("sd15")), ("sd21", safe("sd21")), ("sd15", through)] {
        let step = planned(name, steering, 1);
        for target in ["sm_80", "sm_90a"] {
            let program = lower(&step, Storage::F16, target).expect("launches");
            let launches: u64 = program.steps().iter().map(|step| step.cost.flops).sum();
            assert_eq!(launches, of(&step, &step.body), "{name} on {target}");
        }
    }
}

#[test]
fn every_tile_of_a_step_says_why_it_was_chosen() {
    for target in ["sm_90a", "sm_80"] {
        let gpu = Gpu::of_target(target).expect("in the table");
        let program = lower(&planned("sd15", safe("sd15"), 1), Storage::F16, target).expect("launches");
        let (mut on_wgmma, mut elsewhere) = (0, 0);
        for step in program.steps() {
            let (kernel, file) = (step.launch.kernel.name, step.launch.kernel.file);
            let Some(choice) = step.choice else {
                assert!(file == "layout.cu" || file == "pointwise.cu", "nobody chose {kernel}");
                continue;
            };
            assert!(!choice.why.to_string().is_empty(), "{kernel}");
            if !file.starts_with("gemm") && !file.starts_with("conv2d") {
                continue;
            }
            let Why::Product(reason) = choice.why else { panic!("{kernel}: {choice}") };
            let Reason::Fastest(fastest) = reason else { continue };
            let Tiling { tile: [m, n], step: depth, stages, cluster, .. } =
                choice.tiling.expect("tiles were compared");
            assert!(kernel.contains(&format!("_m{m}n{n}k{depth}s{stages}")), "{kernel}: {choice}");
            assert_eq!(kernel.contains(&format!("c{cluster}_sm90")), cluster > 1, "{kernel}: {choice}");
            let found = Prediction::of(&step.launch, &step.cost, gpu).expect("a family");
            // Where statistics are taken one image alone chooses, but on sm_90a.
            let images = found.tiles / fastest.tiles as u64;
            assert_eq!(found.tiles, images * fastest.tiles as u64, "{kernel}: {choice}");
            assert!(found.busiest <= images * fastest.rounds as u64, "{kernel}: {choice}");
            assert!(images == 1 || !kernel.ends_with("_sm90"), "{kernel}: {choice}");
            assert!(fastest.rival.is_some_and(|rival| rival.percent >= 100), "{kernel}: {choice}");
            assert_eq!(
                fastest.obstacle.is_some(),
                target == "sm_90a" && !kernel.ends_with("_sm90"),
                "{kernel}"
            );
            *(if kernel.ends_with("_sm90") { &mut on_wgmma } else { &mut elsewhere }) += 1;
        }
        assert_eq!(on_wgmma > 0, target == "sm_90a");
        assert!(on_wgmma == 0 || on_wgmma > 10 * elsewhere, "{on_wgmma} on wgmma, {elsewhere} elsewhere");
    }
}

#[test]
fn what_no_device_holds_is_refused() {
    // More than 64 GiB may be had; terabytes may not.
    let of = |pixels: usize, batch: usize| {
        let blueprint = blueprint("sd15");
        let spec = blueprint.step_spec(Steering::None, (pixels, pixels), batch);
        let graph = blueprint.step(&spec).expect("a graph");
        let fusion = fuse(&graph);
        let step = StepProgram::fused(graph, fusion, plan::Storage::of(DType::F16)).expect("a plan");
        lower(&step, Storage::F16, "sm_90a")
    };
    let large = of(2048, 128).expect("launches").arena_bytes;
    assert!(large > 1 << 36, "{large} bytes");
    let Err(error) = of(16384, 256) else { panic!("an arena of terabytes") };
    assert_eq!(error.exit_code(), 5, "{error}");
}

#[test]
fn work_grows_with_the_batch_and_the_guards_arena_does_not() {
    let of = |batch: usize| {
        let step = planned("sd15", safe("sd15"), batch);
        lower(&step, Storage::F16, "sm_80").expect("launches")
    };
    let (one, two) = (of(1), of(2));
    assert_eq!(two.cost().flops, 2 * one.cost().flops);
    assert_eq!(one.steps().len(), two.steps().len());
    assert_eq!(one.weights, two.weights);
    // The decoder with its gradient is the busiest, one sample at a time.
    assert!(two.arena_bytes as f64 <= 1.05 * one.arena_bytes as f64, "{} bytes", two.arena_bytes);
}

#[test]
fn a_guarded_step_asks_for_the_window_then_for_every_sample_and_its_gate() {
    let program =
        lower(&planned("sd21-base", safe("sd21-base"), 3), Storage::Bf16, "sm_80").expect("launches");
    let hoisted = "once a schedule (run), once a prompt (run)";
    let step = "run, if window (3 samples (run, if sample (run))), run";
    assert_eq!(bodies(&program.body), format!("{hoisted}, {step}"));
    assert_eq!(
        program,
        lower(&planned("sd21-base", safe("sd21-base"), 3), Storage::Bf16, "sm_80").expect("again")
    );
}

#[test]
fn launches_are_the_same_for_every_sample_and_read_its_index_from_the_state() {
    let guard = blueprint("sd15").guard().expect("a guard");
    for steering in [safe("sd15"), Steering::Xt { guard, frozen: false }] {
        let program = lower(&planned("sd15", steering, 2), Storage::F16, "sm_80").expect("launches");
        let inside = |stages: &[LaunchStage]| {
            let mut all = LaunchProgram { body: stages.to_vec(), ..program.clone() };
            all.weights.clear();
            all
        };
        let mut open: Vec<&[LaunchStage]> = vec![&program.body];
        while let Some(stages) = open.pop() {
            for stage in stages {
                match stage {
                    LaunchStage::Run(_) => {}
                    LaunchStage::If(_, body) => open.push(body),
                    LaunchStage::ForEachSample { body, .. } => {
                        for step in inside(body).steps() {
                            let found = locations(&step.launch);
                            let of_samples = |location: &&Location| {
                                matches!(location.space, Space::Buffer(index)
                                    if program.buffers[index as usize].shape.first() == Some(&2))
                            };
                            // Counters lie behind it.
                            let of_state = |location: &Location| {
                                location.space == Space::State
                                    && location.offset < size_of::<StepState>() as u64
                            };
                            let state = found.iter().any(of_state);
                            assert!(
                                found.iter().find(of_samples).is_none() || state,
                                "`{}` ({}) takes a row of a buffer without asking for the sample",
                                step.node,
                                step.launch.kernel.name
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn everything_lies_inside_of_what_the_program_asks_for() {
    for (name, steering) in [("sd15", safe("sd15")), ("sd21", Steering::Sld)] {
        let step = planned(name, steering, 2);
        for target in unguide::manifest::TARGETS {
            let program = lower(&step, Storage::F16, target).expect("launches");
            for step in program.steps() {
                assert!(step.launch.kernel.arch.runs_on(target), "{} on {target}", step.launch.kernel.name);
                for location in locations(&step.launch) {
                    let room = match location.space {
                        Space::Arena => program.arena_bytes,
                        Space::State => program.state_bytes(),
                        Space::Weight(index) => program.weights[index as usize].bytes,
                        Space::Buffer(index) => program.buffers[index as usize].bytes(),
                        Space::Scratch(_) => 0,
                    };
                    assert!((location.offset as usize) < room, "{}: {location:?} of {room}", step.node);
                }
            }
        }
    }
}

#[test]
fn weights_are_in_the_type_that_their_kernels_read_and_have_places_of_their_own() {
    let blueprint = blueprint("sd15");
    let graph = run_all(encode_text(&blueprint.text, 77).expect("a graph")).expect("passes");
    let fusion = fuse(&graph);
    let step = StepProgram::fused(graph, fusion, plan::Storage::of(Storage::F16.dtype())).expect("a plan");
    let program = lower(&step, Storage::F16, "sm_80").expect("launches");
    let mut end = 0;
    for weight in &program.weights {
        let name = &weight.param.name;
        let single = name.ends_with(".bias") || name.contains("norm");
        assert_eq!(weight.dtype.bytes() == 4, single, "{name} is {}", weight.dtype);
        assert!(weight.offset >= end && weight.offset.is_multiple_of(256), "{name} at {}", weight.offset);
        end = weight.offset + weight.bytes;
    }
    assert_eq!(program.weight_bytes(), end);
}

#[test]
fn right_operands_of_products_for_sm_90a_are_weights() {
    // Kernels bring some of them into a cache before the launch in front has ended.
    let operands = [("GemmSm90Params", 1), ("Conv2dSm90Params", 2), ("Conv2dBwdSm90Params", 1)];
    for name in ["sd15", "sd21"] {
        let program = lower(&planned(name, safe(name), 1), Storage::F16, "sm_90a").expect("launches");
        let mut found = operands.map(|_| 0);
        for step in program.steps() {
            let kernel = step.launch.kernel;
            let Some(which) = operands.iter().position(|(params, _)| *params == kernel.params) else {
                continue;
            };
            let address = pod_read_unaligned(&step.launch.params[8 * operands[which].1..][..8]);
            let location = Location::of(DevicePtr(address)).expect("a place");
            assert!(
                matches!(location.space, Space::Weight(_)),
                "{}: {} at {location:?}",
                step.node,
                kernel.name
            );
            found[which] += 1;
        }
        assert!(found.iter().all(|&count| count > 20), "{name}: {found:?}");
    }
}
