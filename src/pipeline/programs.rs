//! The graphs of a run: encode a text, embed a concept, one denoising step, decode.
//!
//! Here the models meet the method; nothing is computed. Buffers are named once, in [`names`].

use crate::autodiff;
use crate::error::Result;
use crate::ir::{Builder, Flag, Graph, Op, Reduce, Row, ValueId};
use crate::models::{self, ClipTextConfig, ClipVisionConfig, TinyVaeConfig, UnetConfig, VaeConfig};
use crate::passes::{self, Hoisting};
use crate::tensor::DType;

/// Names of the buffers, in the words of the method.
pub mod names {
    /// `[1, t]` i32: a text as tokens.
    pub const TOKENS: &str = "tokens";
    /// `[1]` i32: the token whose state stands for the text.
    pub const POOL: &str = "pool";
    /// `[1, t, c]`: a text as the UNet sees it.
    pub const STATES: &str = "states";
    /// `[1, d]`: a text as the guard sees it, of length one.
    pub const FEATURES: &str = "features";
    /// The noisy latents: read and, at the end of the step, replaced.
    pub const Z: &str = "z";
    /// Text states of the UNet's rows; see [`super::StepSpec`].
    pub const CONTEXT: &str = "context";
    /// `[steps]`: the timestep of every step.
    pub const TIMESTEPS: &str = "timesteps";
    /// `[steps, 1, c]`: all that the UNet computes of a timestep alone.
    pub const TIME: &str = "time";
    /// Normal noise for `--ddim-eta` > 0.
    pub const NOISE: &str = "noise";
    pub const EPS: &str = "eps";
    pub const X0: &str = "x0";
    /// x0 after guidance, whatever the method.
    pub const X0_GUIDED: &str = "x0_guided";
    /// `[k, d]`: unit embeddings of the concepts.
    pub const CONCEPTS: &str = "concepts";
    /// `[n, k]`: cosines.
    pub const SCORES: &str = "scores";
    /// `[n]`: p_h.
    pub const DENSITY: &str = "density";
    /// `[n]`: 1 where some score reached the threshold.
    pub const GATE: &str = "gate";
    /// `[n]`: 0, 1 (gradient of the largest score alone) or 2 (a score is not finite).
    pub const STATUS: &str = "status";
    /// 2^scale_log2 d log p_h / d x0 (or d x_t); of this step only where the gate is open.
    pub const GRADIENT: &str = "gradient";
    /// Safe Latent Diffusion's momentum.
    pub const NU: &str = "nu";
    /// `[1, H, W, 3]` in [0, 1], not clamped.
    pub const IMAGE: &str = "image";
}

/// What turns latents into pixels.
#[derive(Clone, Debug)]
pub enum Decoder {
    Vae(VaeConfig),
    Tiny(TinyVaeConfig),
}

impl Decoder {
    /// Pixels a latent pixel becomes, along each side.
    pub fn factor(&self) -> usize {
        match self {
            Self::Vae(config) => 1 << (config.channels.len() - 1),
            Self::Tiny(config) => config.factor(),
        }
    }

    /// RGB in [0, 1], not clamped. `x0 [n, h, w, 4] -> [n, f h, f w, 3]`
    pub fn decode(&self, b: &mut Builder, x0: ValueId) -> Result<ValueId> {
        match self {
            Self::Vae(config) => {
                let rgb = models::vae_decoder(b, config, x0)?;
                b.affine("rgb", rgb, 0.5, 0.5)
            }
            Self::Tiny(config) => models::tiny_vae_decoder(b, config, x0),
        }
    }
}

/// What scores an image against the concepts.
#[derive(Clone, Debug)]
pub struct Guard {
    pub decoder: Decoder,
    pub vision: ClipVisionConfig,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub concepts: usize,
    pub reduce: Reduce,
    pub top_k: Option<usize>,
    /// Gradients are stored times 2^scale_log2.
    pub scale_log2: i32,
}

/// How a step is steered.
#[derive(Clone, Debug)]
pub enum Steering {
    None,
    /// Safe Sampling: x0 moves along the gradient with respect to x0.
    X0(Guard),
    /// Negative classifier guidance: eps changes along the gradient with respect to x_t, through the UNet
    /// or (`frozen`) without it.
    Xt {
        guard: Guard,
        frozen: bool,
    },
    /// Safe Latent Diffusion: a third row of the UNet.
    Sld,
}

/// One denoising step of a batch of `batch` samples. The UNet has `rows` rows a sample: [cond],
/// [uncond, cond] or [uncond, cond, safety].
///
/// The context is `[rows * batch, t, c]`, row by row. Where the UNet itself is differentiated the whole
/// step runs sample by sample and the context is `[batch, rows, t, c]`.
#[derive(Clone, Debug)]
pub struct StepSpec {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub tokens: usize,
    pub context_width: usize,
    pub rows: usize,
    /// How many steps a program makes of an image at most.
    pub steps: usize,
    pub steering: Steering,
}

impl StepSpec {
    /// Whether the step runs sample by sample.
    pub fn by_sample(&self) -> bool {
        matches!(self.steering, Steering::Xt { frozen: false, .. })
    }
}

/// tokens -> states.
pub fn encode_text(config: &ClipTextConfig, tokens: usize) -> Result<Graph> {
    let mut b = Builder::new();
    let ids = b.buffer(names::TOKENS, [1, tokens], DType::I32);
    let states = b.buffer(names::STATES, [1, tokens, config.encoder.width], DType::F32);
    let ids = b.load(ids, Row::All)?;
    let result = models::text_states(&mut b, config, "text_encoder", ids)?;
    b.store(result, states, Row::All)?;
    Ok(b.finish())
}

/// tokens -> features.
pub fn embed_text(config: &ClipTextConfig) -> Result<Graph> {
    let mut b = Builder::new();
    let ids = b.buffer(names::TOKENS, [1, config.positions], DType::I32);
    let pool = b.buffer(names::POOL, [1], DType::I32);
    let features = b.buffer(names::FEATURES, [1, config.projection], DType::F32);
    let (ids, pool) = (b.load(ids, Row::All)?, b.load(pool, Row::All)?);
    let result = models::text_features(&mut b, config, "clip", ids, pool)?;
    b.store(result, features, Row::All)?;
    Ok(b.finish())
}

/// image -> features: the guard's view of normalised pixels. Runs as a part of [`step`] only.
pub fn embed_image(config: &ClipVisionConfig) -> Result<Graph> {
    let mut b = Builder::new();
    let image = b.buffer(names::IMAGE, [1, config.image, config.image, 3], DType::F32);
    let features = b.buffer(names::FEATURES, [1, config.projection], DType::F32);
    let image = b.load(image, Row::All)?;
    let result = models::image_features(&mut b, config, "clip", image)?;
    b.store(result, features, Row::All)?;
    Ok(b.finish())
}

/// z -> image, for one sample.
pub fn decode(decoder: &Decoder, height: usize, width: usize) -> Result<Graph> {
    let mut b = Builder::new();
    let factor = decoder.factor();
    let z = b.buffer(names::Z, [1, height, width, 4], DType::F32);
    let image = b.buffer(names::IMAGE, [1, factor * height, factor * width, 3], DType::F32);
    let z = b.load(z, Row::All)?;
    let result = decoder.decode(&mut b, z)?;
    b.store(result, image, Row::All)?;
    Ok(b.finish())
}

/// A step without what its text and its schedule settle: that stands in bodies of its own, see [`passes::hoist`].
pub fn hoisted(step: Graph, spec: &StepSpec) -> Result<Graph> {
    let hoisting = Hoisting {
        prompt: &[names::CONTEXT],
        steps: spec.steps,
        timesteps: names::TIMESTEPS,
        rows: names::TIME,
    };
    passes::hoist(step, &hoisting)
}

/// One denoising step.
pub fn step(unet: &UnetConfig, spec: &StepSpec) -> Result<Graph> {
    let mut b = Builder::new();
    let buffers = Buffers::declare(&mut b, spec);
    if spec.by_sample() {
        let Steering::Xt { guard, .. } = &spec.steering else { unreachable!("by_sample says so") };
        b.for_each_sample(|b| step_of_one_sample(b, unet, spec, guard, &buffers))?;
        return Ok(b.finish());
    }

    // 1. The UNet's opinion: epsilon and the predicted clean latents.
    let z = b.load(buffers.z, Row::All)?;
    let context = b.load(buffers.context, Row::All)?;
    let rows = unet_rows(&mut b, unet, spec.rows, z, context)?;
    let (eps, x0) = match spec.steering {
        Steering::Sld => {
            let nu = b.load(buffers.nu, Row::All)?;
            let [eps, x0, nu] = b.push_many("sld_x0", Op::SldX0, &[z, rows, nu])?[..] else {
                unreachable!("three results")
            };
            b.store(nu, buffers.nu, Row::All)?;
            (eps, x0)
        }
        _ => cfg(&mut b, z, rows)?,
    };
    b.store(eps, buffers.eps, Row::All)?;
    b.store(x0, buffers.x0, Row::All)?;

    // 2. The guard's, one sample at a time; the gradient only where the gate is open.
    if let Steering::X0(guard) | Steering::Xt { guard, .. } = &spec.steering {
        let frozen = matches!(spec.steering, Steering::Xt { .. });
        b.when(Flag::Window, |b| {
            b.for_each_sample(|b| {
                let x0 = b.load(buffers.x0, Row::Sample)?;
                let seed = score(b, guard, &buffers, x0)?;
                b.when(Flag::Sample(buffers.gate), |b| {
                    let mut gradient = gradient_of(b, seed, x0)?;
                    if frozen {
                        gradient = b.push("frozen_pullback", Op::FrozenPullback, &[gradient])?;
                    }
                    b.store(gradient, buffers.gradient, Row::Sample)
                })
            })
        })?;
    }

    // 3. The step itself.
    let noise = b.load(buffers.noise, Row::All)?;
    let (next, guided) = match &spec.steering {
        Steering::None | Steering::Sld => ddim(&mut b, 0, &[eps, x0, noise])?,
        Steering::X0(guard) => {
            let (gate, gradient) = (b.load(buffers.gate, Row::All)?, b.load(buffers.gradient, Row::All)?);
            ddim(&mut b, guard.scale_log2, &[eps, x0, noise, gate, gradient])?
        }
        Steering::Xt { guard, .. } => {
            let (gate, gradient) = (b.load(buffers.gate, Row::All)?, b.load(buffers.gradient, Row::All)?);
            let (eps, x0) = guide_eps(&mut b, guard.scale_log2, &[z, eps, x0, gate, gradient])?;
            ddim(&mut b, 0, &[eps, x0, noise])?
        }
    };
    b.store(guided, buffers.x0_guided, Row::All)?;
    b.store(next, buffers.z, Row::All)?;
    Ok(b.finish())
}

/// The step where the gradient goes through the UNet: nothing of one sample outlives its turn.
fn step_of_one_sample(
    b: &mut Builder,
    unet: &UnetConfig,
    spec: &StepSpec,
    guard: &Guard,
    buffers: &Buffers,
) -> Result<()> {
    let z = b.load(buffers.z, Row::Sample)?;
    let context = b.load(buffers.context, Row::Sample)?;
    let context = b.reshape(context, [spec.rows, spec.tokens, spec.context_width])?;
    let rows = unet_rows(b, unet, spec.rows, z, context)?;
    let (eps, x0) = cfg(b, z, rows)?;
    b.store(eps, buffers.eps, Row::Sample)?;
    b.store(x0, buffers.x0, Row::Sample)?;
    b.when(Flag::Window, |b| {
        let seed = score(b, guard, buffers, x0)?;
        b.when(Flag::Sample(buffers.gate), |b| {
            let gradient = gradient_of(b, seed, z)?;
            b.store(gradient, buffers.gradient, Row::Sample)
        })
    })?;
    let gate = b.load(buffers.gate, Row::Sample)?;
    let gradient = b.load(buffers.gradient, Row::Sample)?;
    let noise = b.load(buffers.noise, Row::Sample)?;
    let (eps, x0) = guide_eps(b, guard.scale_log2, &[z, eps, x0, gate, gradient])?;
    let (next, guided) = ddim(b, 0, &[eps, x0, noise])?;
    b.store(guided, buffers.x0_guided, Row::Sample)?;
    b.store(next, buffers.z, Row::Sample)
}

/// Model outputs of all rows. `z [n, h, w, 4] -> [rows n, h, w, 4]`
fn unet_rows(
    b: &mut Builder,
    unet: &UnetConfig,
    rows: usize,
    z: ValueId,
    context: ValueId,
) -> Result<ValueId> {
    let z = if rows == 1 { z } else { b.push("rows", Op::RepeatBatch { times: rows }, &[z])? };
    models::unet(b, unet, z, context)
}

fn cfg(b: &mut Builder, z: ValueId, rows: ValueId) -> Result<(ValueId, ValueId)> {
    let results = b.push_many("cfg_x0", Op::CfgX0, &[z, rows])?;
    Ok((results[0], results[1]))
}

fn ddim(b: &mut Builder, scale_log2: i32, operands: &[ValueId]) -> Result<(ValueId, ValueId)> {
    let results = b.push_many("ddim_unguide", Op::DdimUnguide { scale_log2 }, operands)?;
    Ok((results[0], results[1]))
}

fn guide_eps(b: &mut Builder, scale_log2: i32, operands: &[ValueId]) -> Result<(ValueId, ValueId)> {
    let results = b.push_many("guide_eps", Op::GuideEps { scale_log2 }, operands)?;
    Ok((results[0], results[1]))
}

/// The embedding of the decoded image, and the gradient of log p_h with respect to it.
struct Seed {
    embedding: ValueId,
    gradient: ValueId,
}

/// Decodes, embeds and scores one sample; stores scores, density, gate and status.
fn score(b: &mut Builder, guard: &Guard, buffers: &Buffers, x0: ValueId) -> Result<Seed> {
    let rgb = guard.decoder.decode(b, x0)?;
    let size = guard.vision.image;
    let resample = Op::Resample { height: size, width: size, mean: guard.mean, std: guard.std };
    let pixels = b.push("resample", resample, &[rgb])?;
    let embedding = models::image_features(b, &guard.vision, "clip", pixels)?;
    let concepts = b.load(buffers.concepts, Row::All)?;
    let cosine = Op::ClipCosine { reduce: guard.reduce, top_k: guard.top_k, scale_log2: guard.scale_log2 };
    let results = b.push_many("clip_cosine", cosine, &[embedding, concepts])?;
    let [scores, density, gate, gradient, status] = results[..] else { unreachable!("five results") };
    b.store(scores, buffers.scores, Row::Sample)?;
    b.store(density, buffers.density, Row::Sample)?;
    b.store(gate, buffers.gate, Row::Sample)?;
    b.store(status, buffers.status, Row::Sample)?;
    Ok(Seed { embedding, gradient })
}

/// d log p_h / d `wrt`, times 2^scale_log2.
fn gradient_of(b: &mut Builder, seed: Seed, wrt: ValueId) -> Result<ValueId> {
    let gradients = autodiff::pull_back(b, &[(seed.embedding, seed.gradient)], &[wrt])?;
    Ok(gradients[0].expect("the embedding depends on the latents"))
}

/// The buffers of a step. Those that a method does not use are not touched by it.
struct Buffers {
    z: crate::ir::BufferId,
    context: crate::ir::BufferId,
    noise: crate::ir::BufferId,
    eps: crate::ir::BufferId,
    x0: crate::ir::BufferId,
    x0_guided: crate::ir::BufferId,
    concepts: crate::ir::BufferId,
    scores: crate::ir::BufferId,
    density: crate::ir::BufferId,
    gate: crate::ir::BufferId,
    status: crate::ir::BufferId,
    gradient: crate::ir::BufferId,
    nu: crate::ir::BufferId,
}

impl Buffers {
    fn declare(b: &mut Builder, spec: &StepSpec) -> Self {
        let StepSpec { batch, height, width, tokens, context_width, rows, .. } = *spec;
        let latents = [batch, height, width, 4];
        let (concepts, projection) = match &spec.steering {
            Steering::X0(guard) | Steering::Xt { guard, .. } => (guard.concepts, guard.vision.projection),
            Steering::None | Steering::Sld => (0, 0),
        };
        let context = if spec.by_sample() {
            b.buffer(names::CONTEXT, [batch, rows, tokens, context_width], DType::F32)
        } else {
            b.buffer(names::CONTEXT, [rows * batch, tokens, context_width], DType::F32)
        };
        let mut buffer = |name: &str, shape: &[usize]| b.buffer(name, shape, DType::F32);
        Self {
            z: buffer(names::Z, &latents),
            context,
            noise: buffer(names::NOISE, &latents),
            eps: buffer(names::EPS, &latents),
            x0: buffer(names::X0, &latents),
            x0_guided: buffer(names::X0_GUIDED, &latents),
            concepts: buffer(names::CONCEPTS, &[concepts, projection]),
            scores: buffer(names::SCORES, &[batch, concepts]),
            density: buffer(names::DENSITY, &[batch]),
            gate: buffer(names::GATE, &[batch]),
            status: buffer(names::STATUS, &[batch]),
            gradient: buffer(names::GRADIENT, &latents),
            nu: buffer(names::NU, &latents),
        }
    }
}
