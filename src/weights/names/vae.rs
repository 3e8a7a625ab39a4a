//! Autoencoder names: diffusers' with the newer and the older names of the attention, and the
//! latent diffusion ones, whose decoder counts its levels from the finest (`up.0` is the last of
//! `up_blocks`).

use std::collections::BTreeMap;

use super::{Mapping, Part, numbered, replace_start};

pub(super) fn map(keys: &BTreeMap<&str, &str>, mapping: &mut Mapping) {
    let levels = keys.keys().filter_map(|key| numbered(key.strip_prefix("decoder.up.")?)).map(|(i, _)| i);
    let last_level = levels.max().unwrap_or(0);
    for (key, stored) in keys {
        if key.starts_with("loss.") || key.starts_with("model_ema.") {
            mapping.ignore(stored);
            continue;
        }
        let ours = rename_ldm(key, last_level).unwrap_or_else(|| rename_attention(key));
        mapping.add(format!("vae.{ours}"), stored, Part::Whole);
    }
}

/// The older diffusers names of the attention; everything else stays.
fn rename_attention(key: &str) -> String {
    let Some((block, inner)) = key.split_once(".attentions.0.") else { return key.to_owned() };
    let inner = replace_start(inner, ATTENTION_OLD).unwrap_or_else(|| inner.to_owned());
    format!("{block}.attentions.0.{inner}")
}

fn rename_ldm(key: &str, last_level: usize) -> Option<String> {
    let (half, inner) = key.split_once('.')?;
    if half != "decoder" && half != "encoder" {
        return None;
    }
    if let Some(rest) = inner.strip_prefix("norm_out.") {
        return Some(format!("{half}.conv_norm_out.{rest}"));
    }
    let (tree, inner) = inner.split_once('.')?;
    match tree {
        "mid" => {
            let (block, inner) = inner.split_once('.')?;
            match block {
                "block_1" => Some(format!("{half}.mid_block.resnets.0.{}", resnet(inner))),
                "block_2" => Some(format!("{half}.mid_block.resnets.1.{}", resnet(inner))),
                "attn_1" => {
                    let inner = replace_start(inner, ATTENTION_LDM)?;
                    Some(format!("{half}.mid_block.attentions.0.{inner}"))
                }
                _ => None,
            }
        }
        "up" | "down" => {
            let (level, inner) = numbered(inner)?;
            let level = if tree == "up" { last_level.checked_sub(level)? } else { level };
            if let Some(inner) = inner.strip_prefix("block.") {
                let (layer, inner) = numbered(inner)?;
                return Some(format!("{half}.{tree}_blocks.{level}.resnets.{layer}.{}", resnet(inner)));
            }
            let parameter = inner.strip_prefix("upsample.").or_else(|| inner.strip_prefix("downsample."))?;
            Some(format!("{half}.{tree}_blocks.{level}.{tree}samplers.0.{parameter}"))
        }
        _ => None,
    }
}

fn resnet(inner: &str) -> String {
    replace_start(inner, &[("nin_shortcut.", "conv_shortcut.")]).unwrap_or_else(|| inner.to_owned())
}

const ATTENTION_OLD: &[(&str, &str)] =
    &[("query.", "to_q."), ("key.", "to_k."), ("value.", "to_v."), ("proj_attn.", "to_out.0.")];

const ATTENTION_LDM: &[(&str, &str)] = &[
    ("norm.", "group_norm."),
    ("q.", "to_q."),
    ("k.", "to_k."),
    ("v.", "to_v."),
    ("proj_out.", "to_out.0."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_spellings_give_one() {
        let pairs = [
            ("decoder.mid.attn_1.q.weight", "decoder.mid_block.attentions.0.to_q.weight"),
            ("decoder.mid.attn_1.proj_out.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
            ("decoder.mid.attn_1.norm.bias", "decoder.mid_block.attentions.0.group_norm.bias"),
            ("decoder.mid.block_2.conv1.weight", "decoder.mid_block.resnets.1.conv1.weight"),
            ("decoder.up.3.block.0.norm1.weight", "decoder.up_blocks.0.resnets.0.norm1.weight"),
            ("decoder.up.3.upsample.conv.bias", "decoder.up_blocks.0.upsamplers.0.conv.bias"),
            ("decoder.up.0.block.2.nin_shortcut.bias", "decoder.up_blocks.3.resnets.2.conv_shortcut.bias"),
            ("encoder.down.1.downsample.conv.bias", "encoder.down_blocks.1.downsamplers.0.conv.bias"),
            ("encoder.down.1.block.0.conv2.bias", "encoder.down_blocks.1.resnets.0.conv2.bias"),
            ("decoder.norm_out.weight", "decoder.conv_norm_out.weight"),
            ("decoder.conv_out.weight", "decoder.conv_out.weight"),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
            ("encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.to_q.weight"),
            ("encoder.mid_block.attentions.0.proj_attn.bias", "encoder.mid_block.attentions.0.to_out.0.bias"),
            ("encoder.mid_block.attentions.0.to_k.bias", "encoder.mid_block.attentions.0.to_k.bias"),
        ];
        let keys = pairs.iter().map(|(from, _)| (*from, *from)).collect();
        let mut mapping = Mapping::default();
        map(&keys, &mut mapping);
        for (from, to) in pairs {
            assert_eq!(
                mapping.named.get(&format!("vae.{to}")).map(|(stored, _)| stored.as_str()),
                Some(from)
            );
        }
        assert!(mapping.twice.is_empty());
    }
}
