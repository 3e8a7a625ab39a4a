//! CLIP's image tower (transformers' `CLIPVisionModelWithProjection`): what the concepts are compared to.

use std::path::Path;

use super::blocks;
use super::clip::{self, EncoderConfig};
use super::config::{CHANNELS, Fields};
use crate::error::Result;
use crate::ir::{Activation, Builder, Layout, Op, Padding, ValueId};

/// Mean of the pixels that CLIP was trained on, in [0, 1], a channel.
pub const IMAGE_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];

/// Their standard deviation.
#[allow(clippy::excessive_precision, reason = "the digits that everybody publishes")]
pub const IMAGE_STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

#[derive(Clone, Debug, PartialEq)]
pub struct ClipVisionConfig {
    pub encoder: EncoderConfig,
    /// Height and width of the image, in pixels.
    pub image: usize,
    /// Height and width of a patch, in pixels.
    pub patch: usize,
    /// Width of the joint embedding.
    pub projection: usize,
}

impl ClipVisionConfig {
    /// Reads the `config.json` of transformers' `CLIPVisionModelWithProjection`; `path` is for errors.
    pub fn parse(json: &str, path: &Path) -> Result<Self> {
        let fields = Fields::parse(json, path)?;
        fields.only("model_type", &["\"clip_vision_model\""], "")?;
        Self::read(&fields)
    }

    pub(super) fn read(fields: &Fields<'_>) -> Result<Self> {
        let default = EncoderConfig {
            width: 768,
            hidden: 3072,
            layers: 12,
            heads: 12,
            act: Activation::QuickGelu,
            norm_eps: 1e-5,
        };
        fields.only("num_channels", &["3"], "")?;
        let image = fields.count("image_size", 224, 1..=4096)?;
        let patch = fields.count("patch_size", 32, 1..=4096)?;
        if patch > image {
            return Err(fields.wrong("patch_size", format!("at most {image} pixels"), patch.to_string()));
        }
        Ok(Self {
            encoder: EncoderConfig::read(fields, &default)?,
            image,
            patch,
            projection: fields.count("projection_dim", 512, CHANNELS)?,
        })
    }
}

/// Embeddings of images, **not** of unit length. `prefix` is the component, `clip`.
/// `pixels [n, image, image, 3]` (less [`IMAGE_MEAN`], over [`IMAGE_STD`]) `-> [n, projection]`
pub fn image_features(
    b: &mut Builder,
    config: &ClipVisionConfig,
    prefix: &str,
    pixels: ValueId,
) -> Result<ValueId> {
    let [n, _, _, _] = blocks::input(b, pixels, prefix, "image_features", 3)?;
    let (width, eps) = (config.encoder.width, config.encoder.norm_eps);
    b.scope(prefix, |b| {
        let x = b.scope("vision_model", |b| {
            let x = b.scope("embeddings", |b| patches(b, config, pixels))?;
            let x = b.layer_norm("pre_layrnorm", x, eps)?;
            let x = clip::encoder(b, &config.encoder, x, false)?;
            let x = b.push("pool", Op::SliceTokens { start: 0, len: 1 }, &[x])?;
            let x = b.reshape(x, [n, width])?;
            b.layer_norm("post_layernorm", x, eps)
        })?;
        b.linear("visual_projection", x, config.projection, false)
    })
}

/// The class token and one token a patch. `[n, image, image, 3] -> [n, 1 + patches, width]`
fn patches(b: &mut Builder, config: &ClipVisionConfig, pixels: ValueId) -> Result<ValueId> {
    let (width, patch) = (config.encoder.width, config.patch);
    let side = config.image / patch;
    let x = b.conv2d("patch_embedding", pixels, (width, patch), (patch, Padding::NONE), false)?;
    let grid = b.shape(x).clone();
    let x = b.reshape(x, [grid[0], grid[1] * grid[2], width])?;
    let class = b.param("class_embedding", [width], Layout::Plain)?;
    let position = b.param("position_embedding.weight", [side * side + 1, width], Layout::Plain)?;
    b.push("embed", Op::EmbedPatches, &[x, class, position])
}
