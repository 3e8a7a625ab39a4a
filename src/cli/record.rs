//! What a picture's metadata and `--json` say of a run: enough to repeat it with the same files.

use serde_json::{Value, json};

use super::args::ModelArgs;
use super::device::Device;
use crate::pipeline::{Guidance, Method, Model, Request};

/// Everything that is needed to repeat a run, but for what is known later: the digests of the model's files, and of
/// the start noise where some was given.
pub fn record(request: &Request, model: &Model, device: Device, args: &ModelArgs) -> Value {
    let safety = match &request.method {
        Method::None => json!({ "method": "none" }),
        Method::NegativePrompt { concept } => json!({ "method": "negative-prompt", "concept": concept }),
        Method::Sld { config, concept } => json!({
            "method": "sld", "preset": config.name, "concept": concept, "warmup": config.warmup,
            "scale": config.scale, "threshold": config.threshold,
            "momentum_scale": config.momentum_scale, "momentum_beta": config.momentum_beta,
        }),
        Method::SafeSampling(guidance) => guidance_record("safe-sampling", guidance, true),
        Method::ClassifierGuidance { guidance, frozen_unet, gated } => {
            let word = if *frozen_unet { "classifier-guidance:frozen-unet" } else { "classifier-guidance" };
            let mut record = guidance_record(word, guidance, *gated);
            record["gated"] = json!(gated);
            record
        }
    };
    json!({
        "schema": 1,
        "program": "unguide",
        "version": env!("CARGO_PKG_VERSION"),
        "device": device.name(),
        "dtype": device.dtype(),
        "model": model.name,
        "clip": args.clip,
        "vae": args.vae,
        "taesd": args.taesd,
        "tokenizer": args.tokenizer,
        "prediction_type": model.scheduler.prediction_type,
        "files": null,
        "negative_prompt": request.negative_prompt,
        "sampler": "ddim",
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "ddim_eta": request.eta,
        "rng": request.rng.name(),
        "latents": null,
        "width": request.width,
        "height": request.height,
        "safety": safety,
    })
}

fn guidance_record(method: &str, guidance: &Guidance, gated: bool) -> Value {
    let gate = if guidance.above_threshold { "above" } else { "at-least" };
    json!({
        "method": method,
        "concepts": guidance.concepts,
        "threshold": gated.then_some(guidance.threshold),
        "gate": gated.then_some(gate),
        "gamma": guidance.gamma,
        "gamma_schedule": guidance.gamma_schedule,
        "guide_steps": guidance.window,
        "reduce": guidance.reduce,
        "top_k": guidance.top_k,
        "image_mean": guidance.mean,
        "image_std": guidance.std,
        "gradient_scale_log2": guidance.gradient_scale_log2,
    })
}
