//! CLIP's text tower (transformers' `CLIPTextModel`): the prompt encoder of Stable Diffusion and, with
//! its projection, the embedding of concepts.

use std::path::Path;

use super::clip::{self, EncoderConfig};
use super::config::{CHANNELS, Fields};
use crate::error::Result;
use crate::ir::{Activation, Builder, Layout, Op, ValueId};

/// The end token's id in old files (all published ones), which is wrong there and means: the largest id.
pub const LEGACY_END: i32 = 2;

#[derive(Clone, Debug, PartialEq)]
pub struct ClipTextConfig {
    pub encoder: EncoderConfig,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Longest text, in tokens.
    pub positions: usize,
    /// The id that ends a text; [`pool_position`] says how it is used.
    pub end: i32,
    /// Width of the joint embedding; only [`text_features`] reads it.
    pub projection: usize,
}

impl ClipTextConfig {
    /// Reads the `config.json` of transformers' `CLIPTextModel`; `path` is for errors.
    pub fn parse(json: &str, path: &Path) -> Result<Self> {
        let fields = Fields::parse(json, path)?;
        fields.only("model_type", &["\"clip_text_model\""], "")?;
        Self::read(&fields)
    }

    pub(super) fn read(fields: &Fields<'_>) -> Result<Self> {
        let default = EncoderConfig {
            width: 512,
            hidden: 2048,
            layers: 12,
            heads: 8,
            act: Activation::QuickGelu,
            norm_eps: 1e-5,
        };
        Ok(Self {
            encoder: EncoderConfig::read(fields, &default)?,
            vocabulary: fields.count("vocab_size", 49_408, 1..=1 << 22)?,
            positions: fields.count("max_position_embeddings", 77, CHANNELS)?,
            end: fields.count("eos_token_id", 49_407, 0..=1 << 22)? as i32,
            projection: fields.count("projection_dim", 512, CHANNELS)?,
        })
    }
}

/// States of every token after the last norm: what the UNet reads. Token i sees tokens 0 ..= i.
/// `ids [n, t] i32 -> [n, t, width]`
///
/// `prefix` is the component: `text_encoder` of a Stable Diffusion, or `clip`.
pub fn text_states(b: &mut Builder, config: &ClipTextConfig, prefix: &str, ids: ValueId) -> Result<ValueId> {
    let width = config.encoder.width;
    b.scope(format!("{prefix}.text_model"), |b| {
        let x = b.scope("embeddings", |b| {
            let token = b.param("token_embedding.weight", [config.vocabulary, width], Layout::Plain)?;
            let position = b.param("position_embedding.weight", [config.positions, width], Layout::Plain)?;
            b.push("embed", Op::EmbedText, &[ids, token, position])
        })?;
        let x = clip::encoder(b, &config.encoder, x, true)?;
        b.layer_norm("final_layer_norm", x, config.encoder.norm_eps)
    })
}

/// Unit vectors of whole texts in the joint embedding.
/// `ids [n, t] i32`, `ends [n] i32` by [`pool_position`] `-> [n, projection]`
pub fn text_features(
    b: &mut Builder,
    config: &ClipTextConfig,
    prefix: &str,
    ids: ValueId,
    ends: ValueId,
) -> Result<ValueId> {
    let states = text_states(b, config, prefix, ids)?;
    b.scope(prefix, |b| {
        let x = b.push("text_pool", Op::GatherToken, &[states, ends])?;
        let x = b.linear("text_projection", x, config.projection, false)?;
        b.push("text_unit", Op::Normalise, &[x])
    })
}

/// Position of the token that stands for the whole text: the first end token, or the first token where
/// there is none. With the end id of old files it is the first of the largest ids.
pub fn pool_position(config: &ClipTextConfig, ids: &[i32]) -> usize {
    let end = if config.end == LEGACY_END { ids.iter().copied().max() } else { Some(config.end) };
    ids.iter().position(|&id| Some(id) == end).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(end: i32) -> ClipTextConfig {
        let default = ClipTextConfig::parse("{}", Path::new("config.json")).expect("defaults are valid");
        ClipTextConfig { end, ..default }
    }

    #[test]
    fn a_text_is_pooled_at_its_first_end_token() {
        // Padded with the end token, as Stable Diffusion 1.x does.
        assert_eq!(pool_position(&config(49_407), &[49_406, 320, 49_407, 49_407]), 2);
        // Ids above the end token are new words, not ends.
        assert_eq!(pool_position(&config(49_407), &[49_406, 49_410, 49_407, 0]), 2);
        assert_eq!(pool_position(&config(49_407), &[49_406, 320, 320]), 0);
    }

    #[test]
    fn old_files_pool_at_the_first_of_the_largest_ids() {
        assert_eq!(pool_position(&config(2), &[49_406, 2, 49_407, 49_407]), 2);
        assert_eq!(pool_position(&config(2), &[49_406, 49_410, 49_407, 0]), 1);
        assert_eq!(pool_position(&config(2), &[]), 0);
    }
}
