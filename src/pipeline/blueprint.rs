//! The sizes of a model: all that its graphs and plans depend on, with or without its weights.

use super::model::Model;
use super::programs::{self, Decoder, Guard, Steering, StepSpec};
use crate::error::{Error, Result};
use crate::ir::{Graph, Reduce};
use crate::models::{ClipConfig, ClipTextConfig, IMAGE_MEAN, IMAGE_STD, TinyVaeConfig, UnetConfig, presets};
use crate::passes;

/// The configurations of all networks of a model.
#[derive(Clone, Debug)]
pub struct Blueprint {
    /// As the user calls it.
    pub name: String,
    pub text: ClipTextConfig,
    pub unet: UnetConfig,
    /// What the finished latents are decoded by, and what the guard looks through.
    pub decoder: Decoder,
    pub guard_decoder: Decoder,
    /// The guard's towers.
    pub clip: Option<ClipConfig>,
    /// Width and height of the images that it was trained on, in pixels.
    pub size: (usize, usize),
}

impl Blueprint {
    /// Names that [`Blueprint::preset`] takes.
    pub const PRESETS: [&str; 3] = ["sd15", "sd21-base", "sd21"];
    /// Steps of an image where nobody says how many.
    pub const STEPS: usize = 50;

    pub fn of(model: &Model) -> Self {
        let clip = model.clip().ok();
        Self {
            name: model.name.clone(),
            text: model.text.clone(),
            unet: model.unet.clone(),
            decoder: model.decoder.clone(),
            guard_decoder: model.guard_decoder().clone(),
            clip: clip.map(|clip| ClipConfig { text: clip.text.clone(), vision: clip.vision.clone() }),
            size: model.default_size(),
        }
    }

    /// The sizes of a published model, with a ViT-L/14 guard.
    pub fn preset(name: &str) -> Option<Self> {
        let (preset, pixels) = match name {
            "sd15" => (presets::sd15(), 512),
            "sd21-base" => (presets::sd21_base(), 512),
            "sd21" => (presets::sd21(), 768),
            _ => return None,
        };
        Some(Self {
            name: name.to_owned(),
            text: preset.text,
            unet: preset.unet,
            decoder: Decoder::Vae(preset.vae.clone()),
            guard_decoder: Decoder::Vae(preset.vae),
            clip: Some(presets::clip_vit_l_14()),
            size: (pixels, pixels),
        })
    }

    /// The same with a guard that looks through a TAESD: its own if it has one, else the published one.
    pub fn with_tiny_guard(mut self) -> Self {
        if !matches!(self.guard_decoder, Decoder::Tiny(_)) {
            self.guard_decoder = Decoder::Tiny(TinyVaeConfig::default());
        }
        self
    }

    /// A guard with settings that no size depends on.
    pub fn guard(&self) -> Result<Guard> {
        let clip = self.clip.as_ref().ok_or_else(|| {
            Error::usage("--safety", "this model brings no CLIP for a guard: give --clip, or --safety none")
        })?;
        Ok(Guard {
            decoder: self.guard_decoder.clone(),
            vision: clip.vision.clone(),
            mean: IMAGE_MEAN,
            std: IMAGE_STD,
            concepts: 4,
            reduce: Reduce::LogMean,
            top_k: None,
            scale_log2: 16,
        })
    }

    /// One of [`Self::STEPS`] steps of `batch` images of `size` pixels with classifier-free guidance.
    pub fn step_spec(&self, steering: Steering, (width, height): (usize, usize), batch: usize) -> StepSpec {
        let factor = self.decoder.factor();
        StepSpec {
            batch,
            height: height / factor,
            width: width / factor,
            tokens: self.text.positions,
            context_width: self.text.encoder.width,
            rows: if matches!(steering, Steering::Sld) { 3 } else { 2 },
            steps: Self::STEPS,
            steering,
        }
    }

    /// The graph of one step, after all passes.
    pub fn step(&self, spec: &StepSpec) -> Result<Graph> {
        passes::run_all(programs::hoisted(programs::step(&self.unet, spec)?, spec)?)
    }
}
