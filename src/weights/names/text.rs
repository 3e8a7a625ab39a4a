//! Names of the text encoder and of the guard's CLIP: transformers', with or without the
//! `text_model.` level, and OpenCLIP's, which keeps query, key and value in one matrix and the text
//! projection transposed.
//!
//! Stable Diffusion 2 uses the output of the last layer but one of OpenCLIP's 24, so the last is
//! left out and the encoder has 23, as in diffusers.

use std::collections::BTreeMap;

use super::{Mapping, Part, is_never_needed, numbered, replace_start};
use crate::weights::component::Component;

/// An encoder with OpenCLIP's names has this key.
const OPENCLIP_MARK: &str = "transformer.resblocks.0.attn.in_proj_weight";

pub(super) fn map(component: Component, keys: &BTreeMap<&str, &str>, mapping: &mut Mapping) {
    let prefix = component.prefix();
    if keys.contains_key(OPENCLIP_MARK) {
        return map_openclip(prefix, keys, mapping);
    }
    for (key, stored) in keys {
        if is_never_needed(key) || *key == "logit_scale" {
            mapping.ignore(stored);
        } else if ["embeddings.", "encoder.", "final_layer_norm."].iter().any(|start| key.starts_with(start))
        {
            mapping.add(format!("{prefix}text_model.{key}"), stored, Part::Whole);
        } else {
            mapping.add(format!("{prefix}{key}"), stored, Part::Whole);
        }
    }
}

fn map_openclip(prefix: &str, keys: &BTreeMap<&str, &str>, mapping: &mut Mapping) {
    let layer_of = |key: &str| numbered(key.strip_prefix(LAYERS)?).map(|(layer, _)| layer);
    let last = keys.keys().filter_map(|key| layer_of(key)).max().unwrap_or(0);
    for (key, stored) in keys {
        if *key == "text_projection" {
            mapping.add(format!("{prefix}text_projection.weight"), stored, Part::Transposed);
        } else if let Some(name) = replace_start(key, OUTSIDE) {
            mapping.add(format!("{prefix}text_model.{name}"), stored, Part::Whole);
        } else if let Some((layer, inner)) = key.strip_prefix(LAYERS).and_then(numbered) {
            let to = format!("{prefix}text_model.encoder.layers.{layer}");
            if layer == last {
                mapping.ignore(stored);
            } else if let Some(kind) = inner.strip_prefix("attn.in_proj_") {
                for (third, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
                    mapping.add(format!("{to}.self_attn.{name}.{kind}"), stored, Part::Third(third));
                }
            } else {
                let inner = replace_start(inner, LAYER).unwrap_or_else(|| inner.to_owned());
                mapping.add(format!("{to}.{inner}"), stored, Part::Whole);
            }
        } else if is_never_needed(key) || ["logit_scale", "attn_mask"].contains(key) {
            mapping.ignore(stored);
        } else {
            mapping.add(format!("{prefix}{key}"), stored, Part::Whole);
        }
    }
}

const LAYERS: &str = "transformer.resblocks.";

const OUTSIDE: &[(&str, &str)] = &[
    ("token_embedding.", "embeddings.token_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final.", "final_layer_norm."),
];

const LAYER: &[(&str, &str)] = &[
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("attn.out_proj.", "self_attn.out_proj."),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(keys: &[&str]) -> Mapping {
        let mut mapping = Mapping::default();
        map(Component::TextEncoder, &keys.iter().map(|key| (*key, *key)).collect(), &mut mapping);
        mapping
    }

    #[test]
    fn the_text_model_level_may_be_missing() {
        for name in ["text_model.final_layer_norm.bias", "final_layer_norm.bias"] {
            let mapping = mapped(&[name, "text_model.embeddings.position_ids"]);
            let ours: Vec<_> = mapping.named.keys().collect();
            assert_eq!(ours, ["text_encoder.text_model.final_layer_norm.bias"]);
            assert_eq!(mapping.ignored.len(), 1);
        }
    }

    #[test]
    fn openclip_is_split_and_loses_its_last_layer() {
        let mapping = mapped(&[
            "positional_embedding",
            "text_projection",
            "transformer.resblocks.0.attn.in_proj_weight",
            "transformer.resblocks.0.mlp.c_proj.bias",
            "transformer.resblocks.1.ln_1.bias",
            "logit_scale",
        ]);
        let layer = "text_encoder.text_model.encoder.layers.0";
        let fused = "transformer.resblocks.0.attn.in_proj_weight".to_owned();
        assert_eq!(
            mapping.named[&format!("{layer}.self_attn.q_proj.weight")],
            (fused.clone(), Part::Third(0))
        );
        assert_eq!(mapping.named[&format!("{layer}.self_attn.v_proj.weight")], (fused, Part::Third(2)));
        assert!(mapping.named.contains_key(&format!("{layer}.mlp.fc2.bias")));
        assert!(mapping.named.contains_key("text_encoder.text_model.embeddings.position_embedding.weight"));
        assert_eq!(mapping.named["text_encoder.text_projection.weight"].1, Part::Transposed);
        assert_eq!(mapping.named.len(), 6);
        assert_eq!(mapping.ignored.len(), 2);
    }
}
