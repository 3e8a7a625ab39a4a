//! Configurations of the published models, for files that come without one and for benchmarks.

use super::clip::{ClipConfig, EncoderConfig};
use super::clip_text::{ClipTextConfig, LEGACY_END};
use super::clip_vision::ClipVisionConfig;
use super::unet::{UnetConfig, UnetLevel};
use super::vae_decoder::VaeConfig;
use crate::ir::Activation;

/// The three networks of a Stable Diffusion.
#[derive(Clone, Debug, PartialEq)]
pub struct StableDiffusion {
    pub unet: UnetConfig,
    pub vae: VaeConfig,
    pub text: ClipTextConfig,
}

/// Stable Diffusion 1.1 to 1.5: 512 x 512.
pub fn sd15() -> StableDiffusion {
    let unet = stable_diffusion_unet([8; 4], 768, false, 64);
    StableDiffusion { unet, vae: stable_diffusion_vae(), text: clip_vit_l_14().text }
}

/// Stable Diffusion 2.0-base and 2.1-base: 512 x 512, predicts epsilon.
pub fn sd21_base() -> StableDiffusion {
    let unet = stable_diffusion_unet([5, 10, 20, 20], 1024, true, 64);
    // The last of CLIP's 24 layers is left out, its projection was never there: the width is a default.
    let encoder = EncoderConfig { layers: 23, ..encoder(1024, 24, 16, Activation::Gelu) };
    let text = ClipTextConfig { projection: 512, ..text(encoder, 512) };
    StableDiffusion { unet, vae: stable_diffusion_vae(), text }
}

/// Stable Diffusion 2.0 and 2.1: 768 x 768, predicts v.
pub fn sd21() -> StableDiffusion {
    let base = sd21_base();
    StableDiffusion { unet: UnetConfig { sample: Some([96, 96]), ..base.unet }, ..base }
}

/// OpenAI's CLIP ViT-B/32.
pub fn clip_vit_b_32() -> ClipConfig {
    clip_vit_b(32)
}

/// OpenAI's CLIP ViT-B/16.
pub fn clip_vit_b_16() -> ClipConfig {
    clip_vit_b(16)
}

/// OpenAI's CLIP ViT-L/14, whose text tower is the prompt encoder of Stable Diffusion 1.x.
pub fn clip_vit_l_14() -> ClipConfig {
    let act = Activation::QuickGelu;
    ClipConfig {
        text: text(encoder(768, 12, 12, act), 768),
        vision: vision(encoder(1024, 24, 16, act), 14, 768),
    }
}

/// OpenCLIP's ViT-H/14 (LAION-2B), whose text tower is the prompt encoder of Stable Diffusion 2.x.
pub fn clip_vit_h_14() -> ClipConfig {
    let act = Activation::Gelu;
    ClipConfig {
        text: text(encoder(1024, 24, 16, act), 1024),
        vision: vision(encoder(1280, 32, 16, act), 14, 1024),
    }
}

fn stable_diffusion_unet(
    heads: [usize; 4],
    context: usize,
    linear_projection: bool,
    side: usize,
) -> UnetConfig {
    let channels = [320, 640, 1280, 1280];
    let level = |i: usize| {
        let (channels, heads, attends) = (channels[i], heads[i], i < 3);
        UnetLevel { channels, layers: 2, heads, transformers: 1, attends_down: attends, attends_up: attends }
    };
    UnetConfig {
        levels: (0..4).map(level).collect(),
        context,
        time: 1280,
        norm_groups: 32,
        norm_eps: 1e-5,
        linear_projection,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        sample: Some([side, side]),
    }
}

fn stable_diffusion_vae() -> VaeConfig {
    VaeConfig {
        channels: vec![128, 256, 512, 512],
        layers: 2,
        norm_groups: 32,
        scaling_factor: 0.18215,
        post_quant_conv: true,
        mid_attention: true,
    }
}

fn clip_vit_b(patch: usize) -> ClipConfig {
    let act = Activation::QuickGelu;
    ClipConfig {
        text: text(encoder(512, 12, 8, act), 512),
        vision: vision(encoder(768, 12, 12, act), patch, 512),
    }
}

fn encoder(width: usize, layers: usize, heads: usize, act: Activation) -> EncoderConfig {
    EncoderConfig { width, hidden: 4 * width, layers, heads, act, norm_eps: 1e-5 }
}

fn text(encoder: EncoderConfig, projection: usize) -> ClipTextConfig {
    ClipTextConfig { encoder, vocabulary: 49_408, positions: 77, end: LEGACY_END, projection }
}

fn vision(encoder: EncoderConfig, patch: usize, projection: usize) -> ClipVisionConfig {
    ClipVisionConfig { encoder, image: 224, patch, projection }
}
