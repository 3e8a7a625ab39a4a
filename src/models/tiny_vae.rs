//! TAESD, a small stand-in for the decoder of Stable Diffusion's autoencoder (diffusers'
//! `AutoencoderTiny`): about eighteen times fewer operations, for previews and cheap guidance.

use std::path::Path;

use super::blocks::{self, SAME};
use super::config::{CHANNELS, Fields, LEVELS};
use crate::error::Result;
use crate::ir::{Activation, Builder, Op, ValueId};

/// Channels of the latents.
const LATENT: usize = 4;

/// Latents are bent smoothly into (-3, 3) first.
const RANGE: f32 = 3.0;

#[derive(Clone, Debug, PartialEq)]
pub struct TinyVaeConfig {
    /// Channels of all blocks.
    pub channels: usize,
    /// Residual blocks a resolution, from the coarsest (latents) to the finest (pixels). Never empty.
    pub blocks: Vec<usize>,
    /// Latents of the UNet are those of the decoder times this.
    pub scaling_factor: f32,
}

impl Default for TinyVaeConfig {
    /// The published TAESD, whose weights come without a configuration file.
    fn default() -> Self {
        Self { channels: 64, blocks: vec![3, 3, 3, 1], scaling_factor: 1.0 }
    }
}

impl TinyVaeConfig {
    /// Reads the `config.json` of diffusers' `AutoencoderTiny`; `path` is for errors.
    pub fn parse(json: &str, path: &Path) -> Result<Self> {
        let fields = Fields::parse(json, path)?;
        fields.only("_class_name", &["\"AutoencoderTiny\""], "")?;
        fields.only("latent_channels", &["4"], "TAESD for Stable Diffusion 1.x or 2.x")?;
        fields.only("out_channels", &["3"], "")?;
        fields.only("act_fn", &["\"relu\""], "")?;
        fields.only("upsample_fn", &["\"nearest\""], "")?;
        fields.only("upsampling_scaling_factor", &["2"], "")?;
        fields.only("shift_factor", &["null", "0", "0.0"], "")?;

        let default = Self::default();
        let scaling_factor = fields.number("scaling_factor", default.scaling_factor, 1e-6..=1e6)?;
        let blocks = fields.counts("num_decoder_blocks", &default.blocks, LEVELS, 1..=64)?;
        let levels = blocks.len();
        let field = "decoder_block_out_channels";
        let channels = fields.counts(field, &[default.channels; 4], LEVELS, CHANNELS)?;
        // The format has no layer that could change the channels between two resolutions.
        if channels.len() != levels || channels.iter().any(|&c| c != channels[0]) {
            let expected = format!("{levels} equal entries, one for each of `num_decoder_blocks`");
            return Err(fields.wrong(field, expected, fields.found(field)));
        }
        Ok(Self { channels: channels[0], blocks, scaling_factor })
    }

    /// Pixels a latent, along each side.
    pub fn factor(&self) -> usize {
        1 << (self.blocks.len() - 1)
    }
}

/// RGB in **[0, 1]** (nothing is clamped) of the UNet's latents, factor `f` larger.
/// `x0 [n, h, w, 4] -> [n, f h, f w, 3]`
///
/// This is what the network itself returns. [`vae_decoder`](super::vae_decoder) returns [-1, 1], and so
/// does diffusers for both, which maps TAESD's result by 2 u - 1.
pub fn tiny_vae_decoder(b: &mut Builder, config: &TinyVaeConfig, x0: ValueId) -> Result<ValueId> {
    blocks::input::<4>(b, x0, "taesd", "tiny_vae_decoder", LATENT)?;
    b.scope("taesd.decoder", |b| {
        let mut x = b.affine("shrink", x0, 1.0 / (RANGE * config.scaling_factor), 0.0)?;
        x = b.activate("bend", x, Activation::Tanh)?;
        x = b.affine("stretch", x, RANGE, 0.0)?;

        // Layers are numbered through, those without weights included.
        let mut next = 0;
        let mut layer = || {
            next += 1;
            format!("layers.{}", next - 1)
        };
        x = b.conv2d(&layer(), x, (config.channels, 3), SAME, true)?;
        x = b.activate(&layer(), x, Activation::Relu)?;
        for (i, &blocks) in config.blocks.iter().enumerate() {
            for _ in 0..blocks {
                x = b.scope(layer(), |b| tiny_block(b, x))?;
            }
            let last = i + 1 == config.blocks.len();
            if !last {
                let (height, width) = (2 * b.shape(x)[1], 2 * b.shape(x)[2]);
                x = b.push(&layer(), Op::Upsample { height, width }, &[x])?;
            }
            let out = if last { 3 } else { config.channels };
            x = b.conv2d(&layer(), x, (out, 3), SAME, last)?;
        }
        Ok(x)
    })
}

/// relu(x + three convolutions of x, with relu between them). `[n, h, w, c]`
fn tiny_block(b: &mut Builder, x: ValueId) -> Result<ValueId> {
    let channels = b.shape(x).last();
    let mut h = b.conv2d("conv.0", x, (channels, 3), SAME, true)?;
    h = b.activate("conv.1", h, Activation::Relu)?;
    h = b.conv2d("conv.2", h, (channels, 3), SAME, true)?;
    h = b.activate("conv.3", h, Activation::Relu)?;
    h = b.conv2d("conv.4", h, (channels, 3), SAME, true)?;
    h = b.add("add", h, x)?;
    b.activate("fuse", h, Activation::Relu)
}
