//! The simulated device: whole programs through the kernels' own sources, against the CPU backend.

#[path = "support/golden.rs"]
mod golden;

use golden::{demo, open};
use unguide::backend::{Backend, Program, Stop};
use unguide::cpu::Cpu;
use unguide::ir::Graph;
use unguide::launch::Storage;
use unguide::pipeline::Model;
use unguide::pipeline::programs::{self, names};
use unguide::plan::{Planner, StepState};
use unguide::simt::SimtDevice;
use unguide::tensor::compare;

fn load(model: &Model, backend: &dyn Backend, graph: Graph) -> Box<dyn Program> {
    let (storage, fuse) = backend.storage();
    let plan = Planner::new(unguide::passes::run_all(graph).expect("a graph"), storage, fuse)
        .expect("a plan")
        .plan();
    model.load(backend, plan.expect("a plan")).expect("a program")
}

#[test]
fn texts_and_latents_become_what_they_are_on_the_cpu() {
    let model = open(&demo());
    let simt = SimtDevice::new(Storage::F16, 2);
    let cpu = Cpu::<f32>::new();
    let run = |backend: &dyn Backend| {
        let graph = programs::encode_text(&model.text, model.text.positions).expect("a graph");
        let mut program = load(&model, backend, graph);
        program.write_indices(names::TOKENS, &model.tokenize("a battlefield").expect("ids")).expect("room");
        let t = std::time::Instant::now();
        program.run(&StepState::default(), &Stop::default()).expect("a run");
        println!("{} text {:?}", backend.name(), t.elapsed());
        let states = program.read(names::STATES).expect("numbers");
        let graph = programs::decode(&model.decoder, 8, 8).expect("a graph");
        let mut program = load(&model, backend, graph);
        let z: Vec<f32> = (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect();
        program.write(names::Z, &z).expect("room");
        let t = std::time::Instant::now();
        program.run(&StepState::default(), &Stop::default()).expect("a run");
        println!("{} decode {:?}", backend.name(), t.elapsed());
        (states, program.read(names::IMAGE).expect("numbers"))
    };
    let (got, want) = (run(&simt), run(&cpu));
    println!("{:?} {:?}", compare(&got.0, &want.0), compare(&got.1, &want.1));
}
