//! `unguide inspect`: what is there and what would run.

use serde_json::json;

use super::args::{DTypeArg, InspectArgs, InspectModelArgs, InspectStepArgs, InspectWhat};
use super::{kernels, launches, print_line, settings};
use crate::error::Result;
use crate::ir::{Cost, Graph, NodeId, Once};
use crate::passes;
use crate::pipeline::programs::Steering;
use crate::plan::{Planner, Slot, StepProgram, Storage};
use crate::safety;
use crate::tensor::DType;
use crate::weights::EmbeddedFiles;

pub fn run(args: &InspectArgs, demo: EmbeddedFiles) -> Result<()> {
    match &args.what {
        InspectWhat::Model(args) => model(args, demo),
        InspectWhat::Graph(args) => {
            let graph = step(args, demo)?;
            if args.json {
                return graph_lines(&graph);
            }
            print_line(&graph)?;
            totals(&graph)
        }
        InspectWhat::Plan(args) => {
            let graph = step(&args.step, demo)?;
            let program = match args.dtype {
                DTypeArg::F32 => StepProgram::new(graph, size_of::<f32>())?,
                DTypeArg::F16 => Planner::new(graph, Storage::of(DType::F16), passes::fuse)?.plan()?,
                DTypeArg::Bf16 => Planner::new(graph, Storage::of(DType::BF16), passes::fuse)?.plan()?,
            };
            if args.step.json {
                return plan_lines(&program);
            }
            print_line(&program)?;
            totals(&program.graph)
        }
        InspectWhat::Launches(args) => launches::run(args, demo),
        InspectWhat::Kernels(args) => kernels::run(args, demo),
    }
}

fn model(args: &InspectModelArgs, demo: EmbeddedFiles) -> Result<()> {
    let model = settings::open(&args.model, demo, true)?;
    let (width, height) = model.default_size();
    let files = model.files().describe();
    let clip = model.clip().ok();
    if args.json {
        let digests = model.files().digests(&|| Ok(()))?;
        let digest = |path| digests.iter().find(|(found, _)| found == path).map(|(_, digest)| digest);
        let files: Vec<_> = files
            .iter()
            .map(|file| {
                let mut record = json!(file);
                record["sha256"] = json!(digest(&file.path));
                record
            })
            .collect();
        return print_line(json!({
            "model": model.name, "width": width, "height": height, "factor": model.factor(),
            "tokens": model.text.positions, "context": model.unet.context,
            "prediction": model.scheduler.prediction_type, "has_clip": clip.is_some(), "files": files,
        }));
    }
    print_line(format!("model      {}", model.name))?;
    print_line(format!("images     {width} x {height} pixels, {} to a latent pixel", model.factor()))?;
    print_line(format!(
        "predicts   {}",
        json!(model.scheduler.prediction_type).as_str().unwrap_or_default()
    ))?;
    let channels: Vec<_> = model.unet.levels.iter().map(|level| level.channels.to_string()).collect();
    let channels = channels.join(", ");
    print_line(format!("unet       channels {channels}; context {}", model.unet.context))?;
    let text = &model.text.encoder;
    print_line(format!(
        "text       {} layers of {}, {} tokens",
        text.layers, text.width, model.text.positions
    ))?;
    match clip {
        Some(clip) => print_line(format!("guard      CLIP with {}", clip.identity()))?,
        None => print_line("guard      none: give a CLIP with --clip")?,
    }
    for file in files {
        let dtypes: Vec<_> = file.dtypes.iter().map(|(dtype, n)| format!("{n} {dtype}")).collect();
        print_line(format!(
            "file       {}: {} bytes, {} parameters ({}), for {}",
            file.path.display(),
            file.bytes,
            file.parameters,
            dtypes.join(", "),
            file.components.join(", ")
        ))?;
    }
    Ok(())
}

/// The graph of one denoising step, of a model or of the sizes of one.
pub(super) fn step(args: &InspectStepArgs, demo: EmbeddedFiles) -> Result<Graph> {
    let method: safety::Method = args.safety.parse()?;
    let blueprint = settings::blueprint(&args.model, args.preset.as_deref(), demo, method.uses_guard())?;
    let batch = args.size.batch_size.unwrap_or(1);
    let size = settings::checked_size(&args.size.image, batch, &blueprint)?;
    let steering = match method {
        safety::Method::None | safety::Method::NegativePrompt => Steering::None,
        safety::Method::Sld(_) => Steering::Sld,
        safety::Method::SafeSampling => Steering::X0(blueprint.guard()?),
        safety::Method::ClassifierGuidance { frozen_unet } => {
            Steering::Xt { guard: blueprint.guard()?, frozen: frozen_unet }
        }
    };
    blueprint.step(&blueprint.step_spec(steering, size, batch))
}

/// Nodes that run and their work, of the step and of what runs once for all steps.
fn totals(graph: &Graph) -> Result<()> {
    for part in Once::PARTS {
        let nodes = graph.order_of(part).into_iter().map(|id| graph.node(id));
        let nodes: Vec<_> = nodes.filter(|node| !node.op.is_free()).collect();
        let flops: u64 = nodes.iter().map(|node| Cost::of(graph, node, 1).flops).sum();
        if !nodes.is_empty() {
            let giga = flops as f64 / 1e9;
            print_line(format!("{:<10} {} nodes, {giga:.1} GFLOP", Once::part(part), nodes.len()))?;
        }
    }
    Ok(())
}

fn graph_lines(graph: &Graph) -> Result<()> {
    for (part, id) in parts(graph) {
        let node = graph.node(id);
        let cost = Cost::of(graph, node, size_of::<f32>());
        let shapes: Vec<_> = node.outputs.iter().map(|&value| graph.shape(value).to_vec()).collect();
        print_line(json!({
            "node": node.name, "op": node.op.name(), "outputs": shapes, "flops": cost.flops, "bytes": cost.bytes,
            "part": part,
        }))?;
    }
    Ok(())
}

/// All nodes in running order, each with the word for its part.
fn parts(graph: &Graph) -> impl Iterator<Item = (&'static str, NodeId)> {
    Once::PARTS
        .into_iter()
        .flat_map(|part| graph.order_of(part).into_iter().map(move |id| (Once::part(part), id)))
}

fn plan_lines(program: &StepProgram) -> Result<()> {
    print_line(json!({
        "arena_bytes": program.arena_bytes, "live_bytes": program.live_bytes,
        "param_bytes": program.param_bytes(), "buffer_bytes": program.buffer_bytes(),
    }))?;
    for (part, id) in parts(&program.graph) {
        let node = program.graph.node(id);
        for &value in &node.outputs {
            if let (Slot::Arena { offset, bytes }, false) = (program.slot(value), node.op.is_free()) {
                print_line(json!({
                    "node": node.name, "op": node.op.name(), "shape": program.graph.shape(value).to_vec(),
                    "offset": offset, "bytes": bytes, "part": part,
                }))?;
            }
        }
    }
    Ok(())
}
