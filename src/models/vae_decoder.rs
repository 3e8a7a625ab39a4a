//! The decoder of Stable Diffusion's autoencoder (diffusers' `AutoencoderKL`): latents to pixels.

use std::path::Path;

use super::blocks::{self, POINT, SAME};
use super::config::{CHANNELS, Fields, LAYERS, LEVELS};
use crate::error::Result;
use crate::ir::{Activation, Builder, ValueId};

/// Channels of the latents.
const LATENT: usize = 4;

/// Epsilon of every norm; the format has no field for it.
const NORM_EPS: f32 = 1e-6;

#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Channels from the finest resolution (pixels) to the coarsest (latents). Never empty.
    pub channels: Vec<usize>,
    /// Residual blocks a resolution, less one.
    pub layers: usize,
    pub norm_groups: usize,
    /// Latents of the UNet are those of the decoder times this.
    pub scaling_factor: f32,
    /// A convolution of one tap stands in front.
    pub post_quant_conv: bool,
    /// The middle attends.
    pub mid_attention: bool,
}

impl VaeConfig {
    /// Reads diffusers' `vae/config.json`; `path` is for errors.
    pub fn parse(json: &str, path: &Path) -> Result<Self> {
        let fields = Fields::parse(json, path)?;
        fields.only("_class_name", &["\"AutoencoderKL\""], "")?;
        fields.only("latent_channels", &["4"], "Stable Diffusion 1.x or 2.x")?;
        fields.only("out_channels", &["3"], "")?;
        fields.only("act_fn", &["\"silu\"", "\"swish\""], "")?;
        fields.only("shift_factor", &["null", "0", "0.0"], "")?;
        for field in ["latents_mean", "latents_std"] {
            fields.only(field, &["null"], "")?;
        }

        let config = Self {
            channels: fields.counts("block_out_channels", &[64], LEVELS, CHANNELS)?,
            layers: fields.count("layers_per_block", 1, LAYERS)?,
            norm_groups: fields.count("norm_num_groups", 32, CHANNELS)?,
            scaling_factor: fields.number("scaling_factor", 0.18215, 1e-6..=1e6)?,
            post_quant_conv: fields.flag("use_post_quant_conv", true)?,
            mid_attention: fields.flag("mid_block_add_attention", true)?,
        };
        let block = "UpDecoderBlock2D";
        let blocks = serde_json::json!(vec![block; config.channels.len()]).to_string();
        fields.only("up_block_types", &[&blocks], "")?;
        if let Some(channels) = config.channels.iter().find(|&c| !c.is_multiple_of(config.norm_groups)) {
            let found = config.norm_groups.to_string();
            return Err(fields.wrong("norm_num_groups", format!("a divisor of {channels} channels"), found));
        }
        Ok(config)
    }

    /// Pixels a latent, along each side.
    pub fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }
}

/// RGB in [-1, 1] (nothing is clamped) of the UNet's latents, factor `f` larger.
/// `x0 [n, h, w, 4] -> [n, f h, f w, 3]`
pub fn vae_decoder(b: &mut Builder, config: &VaeConfig, x0: ValueId) -> Result<ValueId> {
    blocks::input::<4>(b, x0, "vae", "vae_decoder", LATENT)?;
    b.scope("vae", |b| {
        let mut x = b.affine("unscale", x0, 1.0 / config.scaling_factor, 0.0)?;
        if config.post_quant_conv {
            x = b.conv2d("post_quant_conv", x, (LATENT, 1), POINT, true)?;
        }
        b.scope("decoder", |b| decoder(b, config, x))
    })
}

fn decoder(b: &mut Builder, config: &VaeConfig, x: ValueId) -> Result<ValueId> {
    let norm = (config.norm_groups, NORM_EPS);
    let resnet = |b: &mut Builder, i: usize, x: ValueId, out: usize| {
        b.scope(format!("resnets.{i}"), |b| blocks::resnet(b, x, None, out, norm))
    };
    let coarsest = config.channels[config.channels.len() - 1];
    let mut x = b.conv2d("conv_in", x, (coarsest, 3), SAME, true)?;
    x = b.scope("mid_block", |b| {
        let mut x = resnet(b, 0, x, coarsest)?;
        if config.mid_attention {
            x = b.scope("attentions.0", |b| pixel_attention(b, x, norm))?;
        }
        resnet(b, 1, x, coarsest)
    })?;
    for (i, &channels) in config.channels.iter().rev().enumerate() {
        x = b.scope(format!("up_blocks.{i}"), |b| {
            for layer in 0..=config.layers {
                x = resnet(b, layer, x, channels)?;
            }
            if i + 1 == config.channels.len() {
                return Ok(x);
            }
            let (height, width) = (2 * b.shape(x)[1], 2 * b.shape(x)[2]);
            b.scope("upsamplers.0", |b| blocks::upsample(b, x, height, width))
        })?;
    }
    x = b.group_norm("conv_norm_out", x, norm, Some(Activation::Silu))?;
    b.conv2d("conv_out", x, (3, 3), SAME, true)
}

/// x + attention of every pixel to all others, with a single head. `[n, h, w, c]`
fn pixel_attention(b: &mut Builder, x: ValueId, norm: (usize, f32)) -> Result<ValueId> {
    let image = b.shape(x).clone();
    let h = b.group_norm("group_norm", x, norm, None)?;
    let h = b.reshape(h, [image[0], image[1] * image[2], image[3]])?;
    let h = blocks::attention(b, h, h, 1, true)?;
    let h = b.reshape(h, image)?;
    b.add("add", x, h)
}
