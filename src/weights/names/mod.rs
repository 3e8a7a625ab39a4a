//! From the names that checkpoints use to ours.
//!
//! Our name of a tensor is its component and its name in diffusers (UNet, VAE, TAESD) or transformers
//! (text encoder, CLIP): `unet.conv_in.weight`, `vae.decoder.mid_block.attentions.0.to_q.weight`,
//! `text_encoder.text_model.final_layer_norm.bias`, `clip.visual_projection.weight`,
//! `taesd.decoder.layers.0.weight`. Every other spelling is rewritten by a rule, and the rules count
//! blocks from the keys they see, so they hold for any number of levels and layers.
//!
//! Names in, names out: nothing here opens a file.

mod taesd;
mod text;
mod unet;
mod vae;

use std::collections::{BTreeMap, BTreeSet};

use super::component::Component;

pub(super) use unet::LDM_MARK as LDM_UNET_MARK;

/// What of a stored tensor is meant by one of our names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The i-th third of the rows: OpenCLIP stores the query, key and value projections as one.
    Third(usize),
    /// The transposed matrix.
    Transposed,
}

/// Where our tensors are found under a checkpoint's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Our name to the stored name.
    pub named: BTreeMap<String, (String, Part)>,
    /// Stored names that hold nothing we need: schedules, position ids, the encoder's EMA copy.
    pub ignored: BTreeSet<String>,
    /// Our names that two stored tensors claim.
    pub twice: BTreeSet<String>,
}

impl Mapping {
    fn add(&mut self, ours: String, stored: &str, part: Part) {
        if self.named.insert(ours.clone(), (stored.to_owned(), part)).is_some() {
            self.twice.insert(ours);
        }
    }

    fn ignore(&mut self, stored: &str) {
        self.ignored.insert(stored.to_owned());
    }
}

/// Maps the stored names that begin with `prefix` to names of `component`; others are left alone.
pub fn map<'a>(component: Component, stored: impl Iterator<Item = &'a str>, prefix: &str) -> Mapping {
    let keys: BTreeMap<&str, &str> =
        stored.filter_map(|name| Some((name.strip_prefix(prefix)?, name))).collect();
    let mut mapping = Mapping::default();
    match component {
        Component::Unet => unet::map(&keys, &mut mapping),
        Component::Vae => vae::map(&keys, &mut mapping),
        Component::TextEncoder | Component::Clip => text::map(component, &keys, &mut mapping),
        Component::Taesd => taesd::map(&keys, &mut mapping),
    }
    mapping
}

/// The number in front of the first dot, and what follows it.
fn numbered(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.split_once('.')?;
    let digits = !number.is_empty() && number.len() <= 4 && number.bytes().all(|b| b.is_ascii_digit());
    if digits { Some((number.parse().ok()?, rest)) } else { None }
}

/// `name` with its beginning replaced according to the first entry that fits.
fn replace_start(name: &str, table: &[(&str, &str)]) -> Option<String> {
    table.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

/// Whether a tensor of a checkpoint is of no use for generating images, whatever the component.
pub fn is_never_needed(stored: &str) -> bool {
    let starts =
        ["model_ema.", "alphas_cumprod", "sqrt_alphas", "sqrt_one_minus", "sqrt_recip", "log_one_minus"];
    let equals = ["betas", "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1"];
    starts.iter().any(|start| stored.starts_with(start))
        || equals.contains(&stored)
        || ["posterior_mean_coef2", "logvar", "scale_factor"].contains(&stored)
        || stored.ends_with("position_ids")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_short_and_stands_before_a_dot() {
        assert_eq!(numbered("12.weight"), Some((12, "weight")));
        assert_eq!(numbered("up.3"), None);
        assert_eq!(numbered("99999999999999999999.x"), None);
        assert_eq!(numbered(".x"), None);
        assert_eq!(numbered("+1.x"), None);
    }
}
