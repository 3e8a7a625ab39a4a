//! CLIP's two towers share one transformer and one configuration file.

use std::path::Path;

use super::clip_text::ClipTextConfig;
use super::clip_vision::ClipVisionConfig;
use super::config::{CHANNELS, Fields, LAYERS};
use crate::error::Result;
use crate::ir::{Activation, Builder, ValueId};

/// Both towers, with one width of embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    pub text: ClipTextConfig,
    pub vision: ClipVisionConfig,
}

impl ClipConfig {
    /// Reads the `config.json` of transformers' `CLIPModel`; `path` is for errors.
    pub fn parse(json: &str, path: &Path) -> Result<Self> {
        let fields = Fields::parse(json, path)?;
        fields.only("model_type", &["\"clip\""], "")?;
        // Files of 2021 repeat a tower as `..._dict`, which then counts instead.
        let tower = |field: &str| match fields.object(&format!("{field}_dict"))? {
            Some(tower) => Ok(Some(tower)),
            None => fields.object(field),
        };
        let missing = |field: &str| fields.wrong(field, "an object", "nothing");
        let text = tower("text_config")?.ok_or_else(|| missing("text_config"))?;
        let vision = tower("vision_config")?.ok_or_else(|| missing("vision_config"))?;
        // The model's own width counts, whatever its towers say.
        let projection = fields.count("projection_dim", 512, CHANNELS)?;
        Ok(Self {
            text: ClipTextConfig { projection, ..ClipTextConfig::read(&text)? },
            vision: ClipVisionConfig { projection, ..ClipVisionConfig::read(&vision)? },
        })
    }
}

/// The transformer of either tower.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    pub width: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub act: Activation,
    pub norm_eps: f32,
}

impl EncoderConfig {
    pub(super) fn read(fields: &Fields<'_>, default: &Self) -> Result<Self> {
        let act = fields.found("hidden_act");
        fields.only("hidden_act", &["\"quick_gelu\"", "\"gelu\""], "")?;
        let config = Self {
            width: fields.count("hidden_size", default.width, CHANNELS)?,
            hidden: fields.count("intermediate_size", default.hidden, 1..=4 * CHANNELS.end())?,
            layers: fields.count("num_hidden_layers", default.layers, LAYERS)?,
            heads: fields.count("num_attention_heads", default.heads, CHANNELS)?,
            act: if act == "\"gelu\"" { Activation::Gelu } else { Activation::QuickGelu },
            norm_eps: fields.number("layer_norm_eps", default.norm_eps, 0.0..=1.0)?,
        };
        if !config.width.is_multiple_of(config.heads) {
            let expected = format!("a divisor of the width {}", config.width);
            return Err(fields.wrong("num_attention_heads", expected, config.heads.to_string()));
        }
        Ok(config)
    }
}

/// All layers, each x + attention, then x + feed-forward, with a norm in front. `x [n, t, width]`
pub(super) fn encoder(
    b: &mut Builder,
    config: &EncoderConfig,
    mut x: ValueId,
    causal: bool,
) -> Result<ValueId> {
    for i in 0..config.layers {
        x = b.scope(format!("encoder.layers.{i}"), |b| layer(b, config, x, causal))?;
    }
    Ok(x)
}

fn layer(b: &mut Builder, config: &EncoderConfig, x: ValueId, causal: bool) -> Result<ValueId> {
    let h = b.layer_norm("layer_norm1", x, config.norm_eps)?;
    let h = b.scope("self_attn", |b| {
        let parts = ["q_proj", "k_proj", "v_proj"];
        let qkv = b.linear_side_by_side("qkv_proj", &parts, h, config.width, true)?;
        let mixed = b.attention("attention", &[qkv], config.heads, causal)?;
        b.linear("out_proj", mixed, config.width, true)
    })?;
    let x = b.add("add1", x, h)?;

    let h = b.layer_norm("layer_norm2", x, config.norm_eps)?;
    let h = b.linear("mlp.fc1", h, config.hidden, true)?;
    let h = b.activate("mlp.act", h, config.act)?;
    let h = b.linear("mlp.fc2", h, config.width, true)?;
    b.add("add2", x, h)
}
