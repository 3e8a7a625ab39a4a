//! What to generate, checked before anything is loaded or computed.

use crate::error::{Error, Result};
use crate::ir::Reduce;
use crate::safety::{GammaSchedule, GuideWindow, SldConfig};
use crate::sampler::Rng;
use crate::tensor::{Shape, Tensor};

/// Most images of one run, so that a slip of the finger is an error and not a week of work.
const MAX_IMAGES: usize = 1_000_000;
/// Longest side of an image in pixels.
const MAX_SIDE: usize = 1 << 14;
/// Most pixels of one image: 4096 x 4096.
const MAX_PIXELS: usize = 1 << 24;
/// Most images a step. Their latents and the UNet's activations are all in memory at once.
pub const MAX_BATCH: usize = 256;

/// How an image is steered, with all of the method's settings.
#[derive(Clone, Debug)]
pub enum Method {
    None,
    /// The concept text stands in for the empty prompt.
    NegativePrompt {
        concept: String,
    },
    /// Safe Latent Diffusion.
    Sld {
        config: SldConfig,
        concept: String,
    },
    /// Safe Sampling: along the gradient with respect to x0, where a score reaches the threshold.
    SafeSampling(Guidance),
    /// Along the gradient with respect to x_t, at every step unless `gated`.
    ClassifierGuidance {
        guidance: Guidance,
        frozen_unet: bool,
        gated: bool,
    },
}

impl Method {
    /// The scores, thresholds and strengths of the methods that have them.
    pub fn guidance(&self) -> Option<&Guidance> {
        match self {
            Self::SafeSampling(guidance) | Self::ClassifierGuidance { guidance, .. } => Some(guidance),
            _ => None,
        }
    }

    /// Whether a guard steers only where a score reaches its threshold.
    pub fn is_gated(&self) -> bool {
        !matches!(self, Self::ClassifierGuidance { gated: false, .. })
    }
}

/// What the guard steers away from, when, and how strongly.
#[derive(Clone, Debug)]
pub struct Guidance {
    pub concepts: Vec<String>,
    /// Without a meaning where the method is not gated.
    pub threshold: f64,
    /// A gate opens only above the threshold, not at it (as in the code of the thesis; its text says at).
    pub above_threshold: bool,
    pub gamma: f64,
    pub gamma_schedule: GammaSchedule,
    /// All steps, if absent.
    pub window: Option<GuideWindow>,
    pub reduce: Reduce,
    pub top_k: Option<usize>,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    /// Gradients are stored times 2^gradient_scale_log2.
    pub gradient_scale_log2: i32,
}

/// A run: images of prompts, image `i` from seed `seed + i`.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompts: Vec<String>,
    pub negative_prompt: String,
    /// Images of every prompt.
    pub images_per_prompt: usize,
    /// Images a step.
    pub batch_size: usize,
    pub steps: usize,
    pub guidance_scale: f64,
    pub seed: u64,
    /// Pixels.
    pub width: usize,
    pub height: usize,
    pub eta: f64,
    pub rng: Rng,
    /// The start noise, `[images, 4, h, w]`, in place of the generator's.
    pub latents: Option<Tensor<f32>>,
    pub method: Method,
}

impl Request {
    pub fn images(&self) -> usize {
        self.prompts.len() * self.images_per_prompt
    }

    /// The seed of image `index`.
    pub fn image_seed(&self, index: usize) -> u64 {
        self.seed.wrapping_add(index as u64)
    }

    /// The prompt of image `index`.
    pub fn image_prompt(&self, index: usize) -> &str {
        &self.prompts[index / self.images_per_prompt]
    }

    /// Checks every number against what the method and a latent pixel of `factor` x `factor` pixels allow.
    pub fn check(&self, factor: usize) -> Result<()> {
        let images = self.prompts.len().checked_mul(self.images_per_prompt);
        if !images.is_some_and(|images| (1..=MAX_IMAGES).contains(&images)) {
            let problem = format!("prompts times images is to lie in 1..={MAX_IMAGES}");
            return Err(Error::usage("--batch-count", problem));
        }
        if !(1..=MAX_BATCH).contains(&self.batch_size) {
            let problem = format!("expected 1 to {MAX_BATCH}, found {}", self.batch_size);
            return Err(Error::usage("--batch-size", problem));
        }
        for (flag, side) in [("--width", self.width), ("--height", self.height)] {
            check_side(flag, side, factor)?;
        }
        if self.width.checked_mul(self.height).is_none_or(|pixels| pixels > MAX_PIXELS) {
            let problem = format!("{} x {} has more than {MAX_PIXELS} pixels", self.width, self.height);
            return Err(Error::usage("--width", problem));
        }
        finite("--guidance-scale", self.guidance_scale)?;
        finite("--ddim-eta", self.eta)?;
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(Error::usage("--ddim-eta", format!("expected 0 to 1, found {}", self.eta)));
        }
        if let Some(latents) = &self.latents {
            self.check_latents(latents.shape(), factor)?;
        }
        self.check_method()
    }

    /// Checks the shape of start noise.
    pub fn check_latents(&self, shape: &Shape, factor: usize) -> Result<()> {
        let expected = [self.images(), 4, self.height / factor, self.width / factor];
        if shape[..] == expected {
            return Ok(());
        }
        Err(Error::usage("--latents", format!("expected noise of shape {expected:?}, found {shape}")))
    }

    fn check_method(&self) -> Result<()> {
        let through_guidance = match self.method {
            Method::Sld { .. } => Some(("--safety", "sld acts")),
            Method::NegativePrompt { .. } => Some(("--safety", "negative-prompt acts")),
            _ if !self.negative_prompt.is_empty() => Some(("--negative-prompt", "it acts")),
            _ => None,
        };
        if let (Some((flag, acts)), true) = (through_guidance, self.guidance_scale <= 1.0) {
            let problem = format!(
                "{acts} through classifier-free guidance, which --guidance-scale {} turns off; use a scale above 1",
                self.guidance_scale
            );
            return Err(Error::usage(flag, problem));
        }
        if let Method::Sld { config, .. } = &self.method
            && config.warmup >= self.steps
        {
            let problem = format!(
                "sld:{} does nothing in its first {} steps, and this run has {}: use more steps, or sld:max, which \
                 acts from the first one on",
                config.name, config.warmup, self.steps
            );
            return Err(Error::usage("--safety", problem));
        }
        let Some(guidance) = self.method.guidance() else { return Ok(()) };
        finite("--gamma", guidance.gamma)?;
        if self.method.is_gated() && !(-1.0..=1.0).contains(&guidance.threshold) {
            let problem = format!("expected a cosine, -1 to 1, found {}", guidance.threshold);
            return Err(Error::usage("--threshold", problem));
        }
        if guidance.concepts.is_empty() {
            return Err(Error::usage("--concept", "no concept to steer away from"));
        }
        if guidance.top_k.is_some_and(|k| k == 0 || k > guidance.concepts.len()) {
            let problem = format!("expected 1 to {} (the number of concepts)", guidance.concepts.len());
            return Err(Error::usage("--top-k", problem));
        }
        if let Some(window) = &guidance.window {
            window.check(self.steps)?;
        }
        Ok(())
    }
}

/// Whether an image may be `side` pixels wide or high; if not, what is nearest.
pub fn check_side(flag: &str, side: usize, factor: usize) -> Result<()> {
    if (1..=MAX_SIDE).contains(&side) && side.is_multiple_of(factor) {
        return Ok(());
    }
    let below = side.min(MAX_SIDE) / factor * factor;
    let above = below + factor;
    let nearest = match (below, side) {
        (0, _) => above.to_string(),
        (_, MAX_SIDE..) => below.to_string(),
        _ => format!("{below} or {above}"),
    };
    let problem =
        format!("expected a multiple of {factor} up to {MAX_SIDE}, found {side}; nearest: {nearest}");
    Err(Error::usage(flag, problem))
}

fn finite(flag: &str, value: f64) -> Result<()> {
    value.is_finite().then_some(()).ok_or_else(|| Error::usage(flag, format!("{value} is not finite")))
}
