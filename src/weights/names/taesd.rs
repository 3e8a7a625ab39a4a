//! TAESD's names: diffusers' AutoencoderTiny (`decoder.layers.0.weight`), or the original's, where
//! the decoder is one list whose first entry is a clamp without weights (`1.weight`, or
//! `decoder.1.weight` in a file with both halves).

use std::collections::BTreeMap;

use super::{Mapping, Part, numbered};

pub(super) fn map(keys: &BTreeMap<&str, &str>, mapping: &mut Mapping) {
    for (key, stored) in keys {
        match original_decoder(key) {
            Some((layer, rest)) if layer > 0 => {
                mapping.add(format!("taesd.decoder.layers.{}.{rest}", layer - 1), stored, Part::Whole);
            }
            _ if key.starts_with("encoder.") => mapping.ignore(stored),
            _ => mapping.add(format!("taesd.{key}"), stored, Part::Whole),
        }
    }
}

fn original_decoder(key: &str) -> Option<(usize, &str)> {
    numbered(key.strip_prefix("decoder.").unwrap_or(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_numberings_meet() {
        for (stored, ours) in [
            ("1.weight", "taesd.decoder.layers.0.weight"),
            ("decoder.3.conv.2.bias", "taesd.decoder.layers.2.conv.2.bias"),
            ("decoder.layers.18.weight", "taesd.decoder.layers.18.weight"),
        ] {
            let mut mapping = Mapping::default();
            map(&BTreeMap::from([(stored, stored)]), &mut mapping);
            assert!(mapping.named.contains_key(ours), "{stored}: {mapping:?}");
        }
    }
}
