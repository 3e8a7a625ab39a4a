//! The denoising UNet of Stable Diffusion 1.x and 2.x (diffusers' `UNet2DConditionModel`).
//!
//! Levels go down in resolution, each with residual blocks and, where it attends, transformers that read
//! the prompt; then a middle; then the same levels upwards, joined with what the way down left behind.
//! Upsampling goes to the size of what it is joined with, so latents of any size fit, odd ones too.

use std::ops::RangeInclusive;
use std::path::Path;

use super::blocks::{self, POINT, SAME};
use super::config::{CHANNELS, Fields, LEVELS};
use crate::error::Result;
use crate::ir::{Activation, Builder, Op, Padding, ValueId};

/// Channels of the latents, in and out.
const LATENT: usize = 4;

/// Residual blocks a level, and transformers behind each; the deepest published UNet has 3 and 10.
const DEPTH: RangeInclusive<usize> = 1..=32;

/// Epsilon of the norm in front of a transformer; fixed, unlike that of the residual blocks.
const TRANSFORMER_NORM_EPS: f32 = 1e-6;

/// Epsilon of the norms inside a transformer.
const LAYER_NORM_EPS: f32 = 1e-5;

#[derive(Clone, Debug, PartialEq)]
pub struct UnetConfig {
    /// From the finest resolution to the coarsest; the middle follows the last one. Never empty.
    pub levels: Vec<UnetLevel>,
    /// Width of the prompt's states.
    pub context: usize,
    /// Width of the time embedding.
    pub time: usize,
    pub norm_groups: usize,
    pub norm_eps: f32,
    /// Transformers project with linear layers (2.x) rather than convolutions of one tap (1.x).
    pub linear_projection: bool,
    /// Cosines before sines in the timestep's embedding.
    pub flip_sin_to_cos: bool,
    pub freq_shift: f32,
    /// Height and width of the latents that the model was trained on, if the file says so.
    pub sample: Option<[usize; 2]>,
}

/// One resolution, on the way down and on the way up.
#[derive(Clone, Debug, PartialEq)]
pub struct UnetLevel {
    pub channels: usize,
    /// Residual blocks on the way down; there is one more on the way up.
    pub layers: usize,
    /// Heads of every attention. Their width is channels / heads.
    pub heads: usize,
    /// Transformer blocks behind every residual block that has any.
    pub transformers: usize,
    pub attends_down: bool,
    pub attends_up: bool,
}

impl UnetConfig {
    /// Reads diffusers' `unet/config.json`; `path` is for errors.
    pub fn parse(json: &str, path: &Path) -> Result<Self> {
        let fields = Fields::parse(json, path)?;
        refuse_other_architectures(&fields)?;

        let channels = fields.counts("block_out_channels", &[320, 640, 1280, 1280], LEVELS, CHANNELS)?;
        let levels = channels.len();
        let list_of_false = serde_json::json!(vec![false; levels]).to_string();
        fields.only("only_cross_attention", &["false", &list_of_false], "")?;

        let cross = "CrossAttnDownBlock2D";
        let kinds = [cross, "DownBlock2D"];
        let down = fields.kind_per_level("down_block_types", &[cross, cross, cross, kinds[1]], kinds)?;
        let cross = "CrossAttnUpBlock2D";
        let kinds = [cross, "UpBlock2D"];
        let mut up = fields.kind_per_level("up_block_types", &[kinds[1], cross, cross, cross], kinds)?;
        up.reverse();
        for (field, kinds) in [("down_block_types", &down), ("up_block_types", &up)] {
            if kinds.len() != levels {
                let expected = format!("{levels} blocks, one for each of `block_out_channels`");
                return Err(fields.wrong(field, expected, fields.found(field)));
            }
        }

        let layers = fields.count_per_level("layers_per_block", 2, levels, DEPTH)?;
        // Misnamed in the format since its first version: it is the number of heads.
        let heads = fields.count_per_level("attention_head_dim", 8, levels, CHANNELS)?;
        let transformers = fields.count_per_level("transformer_layers_per_block", 1, levels, DEPTH)?;
        let contexts = fields.count_per_level("cross_attention_dim", 1280, levels, CHANNELS)?;

        let config = Self {
            levels: (0..levels)
                .map(|i| UnetLevel {
                    channels: channels[i],
                    layers: layers[i],
                    heads: heads[i],
                    transformers: transformers[i],
                    attends_down: down[i],
                    attends_up: up[i],
                })
                .collect(),
            // The middle always attends, with the last level's values.
            context: contexts[levels - 1],
            time: fields.optional_count("time_embedding_dim", CHANNELS)?.unwrap_or(4 * channels[0]),
            norm_groups: fields.count("norm_num_groups", 32, CHANNELS)?,
            norm_eps: fields.number("norm_eps", 1e-5, 0.0..=1.0)?,
            linear_projection: fields.flag("use_linear_projection", false)?,
            flip_sin_to_cos: fields.flag("flip_sin_to_cos", true)?,
            freq_shift: fields.number("freq_shift", 0.0, 0.0..=16_384.0)?,
            sample: sample(&fields)?,
        };
        config.check(&fields, &contexts)?;
        Ok(config)
    }

    /// What only several fields together can get wrong.
    fn check(&self, fields: &Fields<'_>, contexts: &[usize]) -> Result<()> {
        let wrong = |field: &str, expected: String| fields.wrong(field, expected, fields.found(field));
        let first = self.levels[0].channels;
        if !first.is_multiple_of(2) {
            return Err(wrong("block_out_channels", "an even first entry".into()));
        }
        if self.freq_shift >= (first / 2) as f32 {
            return Err(wrong("freq_shift", format!("a number below {}", first / 2)));
        }
        for (i, level) in self.levels.iter().enumerate() {
            let channels = level.channels;
            if !channels.is_multiple_of(self.norm_groups) {
                return Err(wrong("norm_num_groups", format!("a divisor of {channels} channels")));
            }
            if !level.attends_down && !level.attends_up && i + 1 < self.levels.len() {
                continue;
            }
            if !channels.is_multiple_of(level.heads) {
                return Err(wrong("attention_head_dim", format!("heads that divide {channels} channels")));
            }
            if contexts[i] != self.context {
                return Err(wrong("cross_attention_dim", "one width in all blocks that attend".into()));
            }
        }
        Ok(())
    }
}

/// The model's output (epsilon or v, as the scheduler has it) for the latents `z [n, h, w, 4]` and the
/// prompts' states `context [n, t, d]`, at `StepState::timestep`. `-> [n, h, w, 4]`
pub fn unet(b: &mut Builder, config: &UnetConfig, z: ValueId, context: ValueId) -> Result<ValueId> {
    blocks::input::<4>(b, z, "unet.conv_in", "unet", LATENT)?;
    blocks::input::<3>(b, context, "unet", "unet", config.context)?;
    b.scope("unet", |b| {
        let time = b.scope("time_embedding", |b| time_embedding(b, config))?;
        let stage = Stage { config, time, context };
        let mut x = b.conv2d("conv_in", z, (config.levels[0].channels, 3), SAME, true)?;
        let mut skips = vec![x];
        for i in 0..config.levels.len() {
            x = b.scope(format!("down_blocks.{i}"), |b| stage.down(b, i, x, &mut skips))?;
        }
        x = b.scope("mid_block", |b| stage.middle(b, x))?;
        for (i, level) in config.levels.iter().rev().enumerate() {
            x = b.scope(format!("up_blocks.{i}"), |b| stage.up(b, level, x, &mut skips))?;
        }
        let norm = (config.norm_groups, config.norm_eps);
        x = b.group_norm("conv_norm_out", x, norm, Some(Activation::Silu))?;
        b.conv2d("conv_out", x, (LATENT, 3), SAME, true)
    })
}

/// Embedding of the timestep with the activation that every residual block would apply. `-> [1, time]`
fn time_embedding(b: &mut Builder, config: &UnetConfig) -> Result<ValueId> {
    let (flip, shift) = (config.flip_sin_to_cos, config.freq_shift);
    let op = Op::TimestepEmbedding { channels: config.levels[0].channels, flip, shift };
    let x = b.push("sinusoid", op, &[])?;
    let x = b.linear("linear_1", x, config.time, true)?;
    let x = b.activate("act", x, Activation::Silu)?;
    let x = b.linear("linear_2", x, config.time, true)?;
    b.activate("post_act", x, Activation::Silu)
}

/// What every block sees: the time embedding `[1, time]` and the prompts' states `[n, t, d]`.
struct Stage<'c> {
    config: &'c UnetConfig,
    time: ValueId,
    context: ValueId,
}

impl Stage<'_> {
    /// Level `i`: `[n, h, w, c]` to the next level's size, half of it rounded up. Leaves every
    /// intermediate image on `skips`.
    fn down(&self, b: &mut Builder, i: usize, mut x: ValueId, skips: &mut Vec<ValueId>) -> Result<ValueId> {
        let level = &self.config.levels[i];
        for layer in 0..level.layers {
            x = self.resnet(b, layer, x, level.channels)?;
            if level.attends_down {
                x = self.transformer(b, layer, x, level)?;
            }
            skips.push(x);
        }
        if i + 1 < self.config.levels.len() {
            let halve = (2, Padding::all(1));
            x = b.conv2d("downsamplers.0.conv", x, (level.channels, 3), halve, true)?;
            skips.push(x);
        }
        Ok(x)
    }

    fn middle(&self, b: &mut Builder, x: ValueId) -> Result<ValueId> {
        let level = &self.config.levels[self.config.levels.len() - 1];
        let x = self.resnet(b, 0, x, level.channels)?;
        let x = self.transformer(b, 0, x, level)?;
        self.resnet(b, 1, x, level.channels)
    }

    /// Joins with one image of `skips` a layer, and ends at the size of the next one, if there is one.
    fn up(
        &self,
        b: &mut Builder,
        level: &UnetLevel,
        mut x: ValueId,
        skips: &mut Vec<ValueId>,
    ) -> Result<ValueId> {
        for layer in 0..=level.layers {
            let skip = skips.pop().expect("the way down left one image for every layer of the way up");
            x = b.push(&format!("concat.{layer}"), Op::Concat, &[x, skip])?;
            x = self.resnet(b, layer, x, level.channels)?;
            if level.attends_up {
                x = self.transformer(b, layer, x, level)?;
            }
        }
        let Some(&next) = skips.last() else { return Ok(x) };
        let (height, width) = (b.shape(next)[1], b.shape(next)[2]);
        b.scope("upsamplers.0", |b| blocks::upsample(b, x, height, width))
    }

    fn resnet(&self, b: &mut Builder, layer: usize, x: ValueId, out: usize) -> Result<ValueId> {
        let norm = (self.config.norm_groups, self.config.norm_eps);
        b.scope(format!("resnets.{layer}"), |b| blocks::resnet(b, x, Some(self.time), out, norm))
    }

    /// x + the transformer's view of x, pixels as tokens. `[n, h, w, c]`
    fn transformer(&self, b: &mut Builder, layer: usize, x: ValueId, level: &UnetLevel) -> Result<ValueId> {
        let image = b.shape(x).clone();
        let (n, tokens, c) = (image[0], image[1] * image[2], image[3]);
        b.scope(format!("attentions.{layer}"), |b| {
            let norm = (self.config.norm_groups, TRANSFORMER_NORM_EPS);
            let mut h = b.group_norm("norm", x, norm, None)?;
            if self.config.linear_projection {
                h = b.reshape(h, [n, tokens, c])?;
                h = b.linear("proj_in", h, c, true)?;
            } else {
                h = b.conv2d("proj_in", h, (c, 1), POINT, true)?;
                h = b.reshape(h, [n, tokens, c])?;
            }
            for i in 0..level.transformers {
                let block = format!("transformer_blocks.{i}");
                h = b.scope(block, |b| transformer_block(b, h, self.context, level.heads))?;
            }
            if self.config.linear_projection {
                h = b.linear("proj_out", h, c, true)?;
                h = b.reshape(h, image)?;
            } else {
                h = b.reshape(h, image)?;
                h = b.conv2d("proj_out", h, (c, 1), POINT, true)?;
            }
            b.add("add", x, h)
        })
    }
}

/// Attention to the other pixels, attention to the prompt, and a gated feed-forward layer, each added to
/// what it reads. `x [n, t, c]`, `context [n, u, d] -> [n, t, c]`
fn transformer_block(b: &mut Builder, x: ValueId, context: ValueId, heads: usize) -> Result<ValueId> {
    let channels = b.shape(x).last();
    let h = b.layer_norm("norm1", x, LAYER_NORM_EPS)?;
    let h = b.scope("attn1", |b| blocks::attention(b, h, h, heads, false))?;
    let x = b.add("add1", x, h)?;

    let h = b.layer_norm("norm2", x, LAYER_NORM_EPS)?;
    let h = b.scope("attn2", |b| blocks::attention(b, h, context, heads, false))?;
    let x = b.add("add2", x, h)?;

    let h = b.layer_norm("norm3", x, LAYER_NORM_EPS)?;
    let h = b.linear("ff.net.0.proj", h, 8 * channels, true)?;
    let h = b.push("ff.net.0.geglu", Op::Geglu, &[h])?;
    let h = b.linear("ff.net.2", h, channels, true)?;
    b.add("add3", x, h)
}

/// Switches of the format whose other values we do not build.
fn refuse_other_architectures(fields: &Fields<'_>) -> Result<()> {
    let sdxl = "Stable Diffusion XL, SDXL, is not supported: give a 1.x or 2.x model";
    let images = "inpainting, depth, upscaling and editing models are not supported";
    fields.only("_class_name", &["\"UNet2DConditionModel\""], "")?;
    fields.only("addition_embed_type", &["null"], sdxl)?;
    fields.only("in_channels", &["4"], images)?;
    fields.only("out_channels", &["4"], "")?;
    fields.only("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""], "")?;
    fields.only("act_fn", &["\"silu\"", "\"swish\""], "")?;
    fields.only("time_embedding_type", &["\"positional\""], "")?;
    fields.only("resnet_time_scale_shift", &["\"default\""], "")?;
    fields.only("attention_type", &["\"default\""], "GLIGEN is not supported")?;
    for field in ["conv_in_kernel", "conv_out_kernel"] {
        fields.only(field, &["3"], "")?;
    }
    for field in ["downsample_padding", "mid_block_scale_factor", "resnet_out_scale_factor"] {
        fields.only(field, &["1", "1.0"], "")?;
    }
    for field in
        ["center_input_sample", "class_embeddings_concat", "dual_cross_attention", "resnet_skip_time_act"]
    {
        fields.only(field, &["false"], "")?;
    }
    fields.only("mid_block_only_cross_attention", &["null", "false"], "")?;
    for field in [
        "class_embed_type",
        "cross_attention_norm",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "num_attention_heads",
        "num_class_embeds",
        "reverse_transformer_layers_per_block",
        "time_cond_proj_dim",
        "time_embedding_act_fn",
        "timestep_post_act",
    ] {
        fields.only(field, &["null"], "")?;
    }
    Ok(())
}

/// `sample_size`: one side of a square, or height and width.
fn sample(fields: &Fields<'_>) -> Result<Option<[usize; 2]>> {
    let range = 1..=4096;
    if fields.is_list("sample_size") {
        let sides = fields.counts("sample_size", &[], 2..=2, range)?;
        return Ok(Some([sides[0], sides[1]]));
    }
    Ok(fields.optional_count("sample_size", range)?.map(|side| [side, side]))
}
