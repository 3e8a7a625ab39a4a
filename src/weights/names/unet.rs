//! UNet names: diffusers' as they are, the latent diffusion ones (`input_blocks.4.0.in_layers.2`)
//! by walking their flat numbering.
//!
//! In that numbering a block is a list: `input_blocks.k` is a downsampler (`.0.op`) or a resnet
//! (`.0`) with perhaps a transformer (`.1`); a downsampler ends a level. `output_blocks.k` is a
//! resnet with perhaps a transformer and perhaps an upsampler (`.1.conv` or `.2.conv`), which ends a
//! level. So levels and layers are counted, never assumed.

use std::collections::BTreeMap;

use super::{Mapping, Part, numbered, replace_start};

/// A UNet in the latent diffusion numbering has this key, one of diffusers never.
pub(in crate::weights) const LDM_MARK: &str = "input_blocks.0.0.weight";

pub(super) fn map(keys: &BTreeMap<&str, &str>, mapping: &mut Mapping) {
    let blocks = keys.contains_key(LDM_MARK).then(|| Blocks::count(keys));
    for (key, stored) in keys {
        let ours = match &blocks {
            None => Some((*key).to_owned()),
            Some(blocks) => blocks.rename(key),
        };
        mapping.add(format!("unet.{}", ours.as_deref().unwrap_or(key)), stored, Part::Whole);
    }
}

/// What each flat block number is in diffusers' tree.
struct Blocks {
    /// `input_blocks` by number: level, and layer (`None` for a downsampler).
    down: BTreeMap<usize, (usize, Option<usize>)>,
    /// `output_blocks` by number: level and layer.
    up: BTreeMap<usize, (usize, usize)>,
}

impl Blocks {
    fn count(keys: &BTreeMap<&str, &str>) -> Self {
        let has = |name: String| keys.contains_key(name.as_str());
        let numbers = |of: &str| {
            let inside = keys.keys().filter_map(|key| numbered(key.strip_prefix(of)?)).map(|(k, _)| k);
            inside.max().map_or(0, |largest| largest + 1)
        };
        let (mut down, mut up) = (BTreeMap::new(), BTreeMap::new());
        let (mut level, mut layer) = (0, 0);
        for k in 1..numbers("input_blocks.") {
            if has(format!("input_blocks.{k}.0.op.weight")) {
                down.insert(k, (level, None));
                (level, layer) = (level + 1, 0);
            } else {
                down.insert(k, (level, Some(layer)));
                layer += 1;
            }
        }
        (level, layer) = (0, 0);
        for k in 0..numbers("output_blocks.") {
            up.insert(k, (level, layer));
            layer += 1;
            if (1..=2).any(|part| has(format!("output_blocks.{k}.{part}.conv.weight"))) {
                (level, layer) = (level + 1, 0);
            }
        }
        Self { down, up }
    }

    fn rename(&self, key: &str) -> Option<String> {
        if let Some(name) = replace_start(key, OUTSIDE) {
            return Some(name);
        }
        let (tree, rest) = key.split_once('.')?;
        if tree == "middle_block" {
            let (part, rest) = numbered(rest)?;
            return Some(match resnet(rest) {
                Some(inner) => format!("mid_block.resnets.{}.{inner}", part.min(1)),
                None => format!("mid_block.attentions.0.{rest}"),
            });
        }
        let (k, rest) = numbered(rest)?;
        let (_, inner) = numbered(rest)?;
        match tree {
            "input_blocks" => match *self.down.get(&k)? {
                (level, None) => {
                    let parameter = inner.strip_prefix("op.")?;
                    Some(format!("down_blocks.{level}.downsamplers.0.conv.{parameter}"))
                }
                (level, Some(layer)) => Some(layer_name("down_blocks", level, layer, inner)),
            },
            "output_blocks" => {
                let (level, layer) = *self.up.get(&k)?;
                match inner.strip_prefix("conv.") {
                    Some(parameter) => Some(format!("up_blocks.{level}.upsamplers.0.conv.{parameter}")),
                    None => Some(layer_name("up_blocks", level, layer, inner)),
                }
            }
            _ => None,
        }
    }
}

fn layer_name(tree: &str, level: usize, layer: usize, inner: &str) -> String {
    match resnet(inner) {
        Some(inner) => format!("{tree}.{level}.resnets.{layer}.{inner}"),
        None => format!("{tree}.{level}.attentions.{layer}.{inner}"),
    }
}

/// The name of a resnet's part, or `None` if it belongs to no resnet; transformers have the same
/// names in both worlds.
fn resnet(inner: &str) -> Option<String> {
    replace_start(inner, RESNET)
}

const OUTSIDE: &[(&str, &str)] = &[
    ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."),
    ("input_blocks.0.0.", "conv_in."),
    ("out.0.", "conv_norm_out."),
    ("out.2.", "conv_out."),
];

const RESNET: &[(&str, &str)] = &[
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_layers_are_counted_from_the_keys() {
        // Two levels with one layer each; the second has no transformer on its way down or up.
        let pairs = [
            ("input_blocks.0.0.weight", "conv_in.weight"),
            ("input_blocks.1.0.in_layers.0.weight", "down_blocks.0.resnets.0.norm1.weight"),
            ("input_blocks.1.1.norm.bias", "down_blocks.0.attentions.0.norm.bias"),
            ("input_blocks.2.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"),
            ("input_blocks.3.0.emb_layers.1.bias", "down_blocks.1.resnets.0.time_emb_proj.bias"),
            ("middle_block.0.out_layers.3.weight", "mid_block.resnets.0.conv2.weight"),
            (
                "middle_block.1.transformer_blocks.0.attn1.to_q.weight",
                "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            ),
            ("middle_block.2.in_layers.2.weight", "mid_block.resnets.1.conv1.weight"),
            ("output_blocks.0.0.skip_connection.weight", "up_blocks.0.resnets.0.conv_shortcut.weight"),
            ("output_blocks.1.0.out_layers.0.bias", "up_blocks.0.resnets.1.norm2.bias"),
            ("output_blocks.1.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
            ("output_blocks.2.0.in_layers.0.weight", "up_blocks.1.resnets.0.norm1.weight"),
            ("output_blocks.3.1.proj_out.weight", "up_blocks.1.attentions.1.proj_out.weight"),
            ("time_embed.2.bias", "time_embedding.linear_2.bias"),
            ("out.2.weight", "conv_out.weight"),
        ];
        let keys = pairs.iter().map(|(from, _)| (*from, *from)).collect();
        let mut mapping = Mapping::default();
        map(&keys, &mut mapping);
        for (from, to) in pairs {
            let (stored, part) = &mapping.named[&format!("unet.{to}")];
            assert_eq!((stored.as_str(), *part), (from, Part::Whole));
        }
        assert_eq!(mapping.named.len(), pairs.len());
    }
}
