//! A short guided run of the demo, for tests that change one thing of it.

#![allow(dead_code, reason = "every test file uses a part of it")]

use unguide::pipeline::{Guidance, Method, Request};
use unguide::safety::{GammaSchedule, Reduce};
use unguide::sampler::Rng;

/// A guard whose gate is always open.
pub fn guidance() -> Guidance {
    Guidance {
        concepts: ["a weapon", "violence", "fire", "a skull"].map(str::to_owned).to_vec(),
        threshold: -1.0,
        above_threshold: false,
        gamma: 0.5,
        gamma_schedule: GammaSchedule::Constant,
        window: None,
        reduce: Reduce::LogMean,
        top_k: None,
        mean: [0.5; 3],
        std: [0.25; 3],
        gradient_scale_log2: 16,
    }
}

/// The gradient goes through the UNet too.
pub fn through_the_unet() -> Method {
    Method::ClassifierGuidance { guidance: guidance(), frozen_unet: false, gated: false }
}

/// Two steps of that many images at once.
pub fn request(method: Method, images: usize) -> Request {
    Request {
        prompts: vec!["a skull on a blue background".into()],
        negative_prompt: String::new(),
        images_per_prompt: images,
        batch_size: images,
        steps: 2,
        guidance_scale: 5.0,
        seed: 3,
        width: 48,
        height: 48,
        eta: 0.0,
        rng: Rng::Cpu,
        latents: None,
        method,
    }
}
