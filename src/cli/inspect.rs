//! `unguide inspect`: what is there and what would run.

use serde_json::json;

use super::args::{InspectArgs, InspectModelArgs, InspectStepArgs, InspectWhat};
use super::{print_line, settings};
use crate::error::{Error, Result};
use crate::ir::{Cost, Graph, Reduce};
use crate::models::{ClipConfig, UnetConfig, presets};
use crate::passes;
use crate::pipeline::programs::{self, Decoder, Guard, Steering, StepSpec};
use crate::pipeline::{MAX_BATCH, Model, check_side};
use crate::plan::{Slot, StepProgram};
use crate::safety;
use crate::weights::EmbeddedFiles;

pub fn run(args: &InspectArgs, demo: EmbeddedFiles) -> Result<()> {
    match &args.what {
        InspectWhat::Model(args) => model(args, demo),
        InspectWhat::Graph(args) => {
            let graph = step(args, demo)?;
            if args.json { graph_lines(&graph) } else { print_line(graph) }
        }
        InspectWhat::Plan(args) => {
            let program = StepProgram::new(step(args, demo)?, size_of::<f32>())?;
            if args.json { plan_lines(&program) } else { print_line(program) }
        }
    }
}

fn model(args: &InspectModelArgs, demo: EmbeddedFiles) -> Result<()> {
    let model = Model::open(&settings::model_source(&args.model, demo))?;
    let (width, height) = model.default_size();
    let files = model.files().describe();
    let clip = model.clip().ok();
    if args.json {
        let digests = model.files().digests()?;
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
fn step(args: &InspectStepArgs, demo: EmbeddedFiles) -> Result<Graph> {
    let parts = match &args.preset {
        Some(name) => Parts::preset(name)?,
        None => Parts::of(&Model::open(&settings::model_source(&args.model, demo))?),
    };
    let factor = parts.decoder.factor();
    let (width, height) = args
        .size
        .size
        .unwrap_or((args.size.width.unwrap_or(parts.size.0), args.size.height.unwrap_or(parts.size.1)));
    for (flag, side) in [("--width", width), ("--height", height)] {
        check_side(flag, side, factor)?;
    }
    let batch = args.size.batch_size.unwrap_or(1);
    if !(1..=MAX_BATCH).contains(&batch) {
        return Err(Error::usage("--batch-size", format!("expected 1 to {MAX_BATCH}, found {batch}")));
    }
    let method: safety::Method = args.safety.parse()?;
    let guard = || {
        let clip = parts.clip.as_ref().ok_or_else(|| {
            Error::usage("--safety", "this model brings no CLIP for a guard: give --clip, or --safety none")
        })?;
        Ok::<_, Error>(Guard {
            decoder: parts.decoder.clone(),
            vision: clip.vision.clone(),
            mean: [0.5; 3],
            std: [0.5; 3],
            concepts: 4,
            reduce: Reduce::LogMean,
            top_k: None,
            scale_log2: 16,
        })
    };
    let steering = match method {
        safety::Method::None | safety::Method::NegativePrompt => Steering::None,
        safety::Method::Sld(_) => Steering::Sld,
        safety::Method::SafeSampling => Steering::X0(guard()?),
        safety::Method::ClassifierGuidance { frozen_unet } => {
            Steering::Xt { guard: guard()?, frozen: frozen_unet }
        }
    };
    let spec = StepSpec {
        batch,
        height: height / factor,
        width: width / factor,
        tokens: parts.tokens,
        context_width: parts.unet.context,
        rows: if matches!(steering, Steering::Sld) { 3 } else { 2 },
        steering,
    };
    passes::run_all(programs::step(&parts.unet, &spec)?)
}

/// What the graph of a step depends on.
struct Parts {
    unet: UnetConfig,
    decoder: Decoder,
    clip: Option<ClipConfig>,
    tokens: usize,
    /// Width and height in pixels.
    size: (usize, usize),
}

impl Parts {
    fn of(model: &Model) -> Self {
        let clip = model.clip().ok();
        Self {
            unet: model.unet.clone(),
            decoder: model.guard_decoder().clone(),
            clip: clip.map(|clip| ClipConfig { text: clip.text.clone(), vision: clip.vision.clone() }),
            tokens: model.text.positions,
            size: model.default_size(),
        }
    }

    fn preset(name: &str) -> Result<Self> {
        let (preset, pixels) = match name {
            "sd15" => (presets::sd15(), 512),
            "sd21-base" => (presets::sd21_base(), 512),
            "sd21" => (presets::sd21(), 768),
            _ => {
                let problem = format!("expected sd15, sd21-base or sd21, found `{name}`");
                return Err(Error::usage("--preset", problem));
            }
        };
        Ok(Self {
            unet: preset.unet,
            decoder: Decoder::Vae(preset.vae),
            clip: Some(presets::clip_vit_l_14()),
            tokens: preset.text.positions,
            size: (pixels, pixels),
        })
    }
}

fn graph_lines(graph: &Graph) -> Result<()> {
    for id in graph.order() {
        let node = graph.node(id);
        let cost = Cost::of(graph, node, size_of::<f32>());
        let shapes: Vec<_> = node.outputs.iter().map(|&value| graph.shape(value).to_vec()).collect();
        print_line(json!({
            "node": node.name, "op": node.op.name(), "outputs": shapes, "flops": cost.flops, "bytes": cost.bytes,
        }))?;
    }
    Ok(())
}

fn plan_lines(program: &StepProgram) -> Result<()> {
    print_line(json!({
        "arena_bytes": program.arena_bytes, "live_bytes": program.live_bytes,
        "param_bytes": program.param_bytes(), "buffer_bytes": program.buffer_bytes(),
    }))?;
    for id in program.graph.order() {
        let node = program.graph.node(id);
        for &value in &node.outputs {
            if let (Slot::Arena { offset, bytes }, false) = (program.slot(value), node.op.is_free()) {
                print_line(json!({
                    "node": node.name, "op": node.op.name(), "shape": program.graph.shape(value).to_vec(),
                    "offset": offset, "bytes": bytes,
                }))?;
            }
        }
    }
    Ok(())
}
