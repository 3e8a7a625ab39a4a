//! What `unguide bench kernels` measures: pieces of models, judged against the CPU backend; and measuring itself,
//! against the stand-in for the CUDA driver.

#[path = "support/golden.rs"]
mod golden;

use golden::{demo, open};
use unguide::backend::{Program, Stop};
use unguide::bench::operands::{Value, state};
use unguide::bench::pieces::{Piece, pieces};
use unguide::error::Result;
use unguide::ir::{Fusion, Graph};
use unguide::launch::Storage;
use unguide::passes::run_all;
use unguide::pipeline::Blueprint;
use unguide::pipeline::programs::{Steering, decode, encode_text};
use unguide::plan::{self, StepProgram};
use unguide::simt::SimtDevice;

fn planned(graph: Graph, storage: Storage) -> StepProgram {
    let fusion = Fusion::none(&graph);
    StepProgram::fused(graph, fusion, plan::Storage::of(storage.dtype())).expect("a plan")
}

/// The text tower, a guarded step through the UNet, and the decoder of the demo model.
fn programs(storage: Storage) -> Vec<StepProgram> {
    let blueprint = Blueprint::of(&open(&demo()));
    let steering = Steering::Xt { guard: blueprint.guard().expect("a guard"), frozen: false };
    let (width, height) = blueprint.size;
    let factor = blueprint.decoder.factor();
    let graphs = [
        run_all(encode_text(&blueprint.text, blueprint.text.positions).expect("a graph")).expect("passes"),
        blueprint.step(&blueprint.step_spec(steering, blueprint.size, 1)).expect("a graph"),
        run_all(decode(&blueprint.decoder, height / factor, width / factor).expect("a graph"))
            .expect("passes"),
    ];
    graphs.into_iter().map(|graph| planned(graph, storage)).collect()
}

/// What the kernels make of a piece, and how that is judged.
fn judge(piece: &Piece, storage: Storage) -> Result<Result<f64, String>> {
    let device = SimtDevice::new(storage, 1);
    let mut program = device.load_program(piece.step(storage, Fusion::none)?, &piece.weights(storage))?;
    let operands = piece.operands(storage)?;
    for (i, operand) in operands.iter().enumerate() {
        match operand {
            Value::Real(data, _) => program.write(&format!("in{i}"), data)?,
            Value::Index(data) => program.write_indices(&format!("in{i}"), data)?,
        }
    }
    program.run(&state(), &Stop::default())?;
    let wanted = piece.wanted(storage, &operands)?;
    let mut worst = 0f64;
    for (i, (class, wanted)) in piece.classes().iter().zip(&wanted.outputs).enumerate() {
        let name = format!("out{i}");
        let (_, buffer) = program.launches().buffer(&name).expect("an output");
        match class.judge(&program.read(&name)?, wanted, buffer.dtype) {
            Ok(share) => worst = worst.max(share),
            Err(problem) => return Ok(Err(problem)),
        }
    }
    Ok(Ok(worst))
}

#[test]
fn pieces_of_the_demo_model_give_on_the_kernels_what_the_cpu_gives() {
    for storage in Storage::BOTH {
        let programs = programs(storage);
        let pieces = pieces(&programs).expect("pieces");
        println!("{} pieces", pieces.len());
        let mut wrong = Vec::new();
        for piece in &pieces {
            let begun = std::time::Instant::now();
            let verdict = judge(piece, storage).expect("a run");
            println!(
                "{:>8.3} {:?} {} {:?}",
                begun.elapsed().as_secs_f64(),
                verdict,
                piece.node,
                piece.classes()
            );
            if let Err(problem) = verdict {
                wrong.push(format!("{} {:?}: {problem}", piece.node, piece.classes()));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
