//! The parts that a pipeline is made of, and the files of a directory that hold each of them.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::files::ModelFiles;
use super::header::{conversion_command, shown};
use super::json::read_json;
use super::safetensors::SafetensorsFile;
use crate::error::{Error, Result};

/// A part of a pipeline that has weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    Unet,
    Vae,
    TextEncoder,
    /// The guard's CLIP: both towers and their projections.
    Clip,
    /// The tiny autoencoder's decoder.
    Taesd,
}

impl Component {
    /// What our names of its tensors begin with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Unet => "unet.",
            Self::Vae => "vae.",
            Self::TextEncoder => "text_encoder.",
            Self::Clip => "clip.",
            Self::Taesd => "taesd.",
        }
    }

    /// Its folder in a diffusers directory.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::Clip => "clip",
            Self::Taesd => "taesd",
        }
    }

    /// The component that a name of ours belongs to.
    pub fn of(name: &str) -> Option<Self> {
        ALL.into_iter().find(|component| name.starts_with(component.prefix()))
    }

    /// A tensor that every such component has; without it the files hold something else.
    pub(super) const fn hallmark(self) -> &'static str {
        match self {
            Self::Unet => "unet.conv_in.weight",
            Self::Vae => "vae.decoder.conv_in.weight",
            Self::TextEncoder => "text_encoder.text_model.embeddings.token_embedding.weight",
            Self::Clip => "clip.visual_projection.weight",
            Self::Taesd => "taesd.decoder.layers.0.weight",
        }
    }

    /// What its tensors may begin with inside a single file, the most telling first.
    pub(super) const fn prefixes_in_file(self) -> &'static [&'static str] {
        match self {
            Self::Unet => &["model.diffusion_model.", ""],
            Self::Vae => &["first_stage_model.", ""],
            Self::TextEncoder => &["cond_stage_model.transformer.", "cond_stage_model.model.", ""],
            Self::Clip | Self::Taesd => &[""],
        }
    }

    /// File names without extension.
    const fn stems(self) -> &'static [&'static str] {
        match self {
            Self::Unet | Self::Vae => &["diffusion_pytorch_model"],
            Self::TextEncoder | Self::Clip => &["model"],
            Self::Taesd => &["diffusion_pytorch_model", "taesd_decoder"],
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unet => "UNet",
            Self::Vae => "VAE",
            Self::TextEncoder => "text encoder",
            Self::Clip => "CLIP model",
            Self::Taesd => "TAESD decoder",
        })
    }
}

const ALL: [Component; 5] =
    [Component::Unet, Component::Vae, Component::TextEncoder, Component::Clip, Component::Taesd];

/// Whether a file may hold this tensor of ours without anyone asking for it: the encoder halves
/// and projections that generating images does not need.
pub(super) fn is_optional(name: &str) -> bool {
    let starts = ["vae.encoder.", "vae.quant_conv.", "taesd.encoder.", "text_encoder.text_projection."];
    starts.iter().any(|start| name.starts_with(start))
}

/// Opens the files that hold a component in a folder (`""` is the root of `files`).
pub(super) fn open_folder(
    files: &ModelFiles,
    component: Component,
    folder: &str,
) -> Result<Vec<SafetensorsFile>> {
    let inside = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    let names = files.list(folder)?;
    let Some(name) = component.stems().iter().find_map(|stem| choose(&names, stem)) else {
        return Err(nothing_to_read(files, component, folder, &names));
    };
    tracing::debug!(%component, file = name, "weights found");
    if name.ends_with(".json") {
        open_shards(files, &inside(name), inside)
    } else {
        Ok(vec![SafetensorsFile::new(files.blob(&inside(name))?)?])
    }
}

/// Whether a folder holds a file that [`open_folder`] would try.
pub(super) fn has_files(files: &ModelFiles, component: Component, folder: &str) -> Result<bool> {
    let names = files.list(folder)?;
    Ok(component.stems().iter().any(|stem| choose(&names, stem).is_some()))
}

/// The best of a folder's files: the plain one, then `fp16`, then any other variant; a file before
/// an index of shards.
fn choose<'a>(names: &'a [String], stem: &str) -> Option<&'a str> {
    let exact = [
        format!("{stem}.safetensors"),
        format!("{stem}.safetensors.index.json"),
        format!("{stem}.fp16.safetensors"),
        format!("{stem}.fp16.safetensors.index.json"),
        format!("{stem}.safetensors.index.fp16.json"),
    ];
    let plain = exact.iter().find_map(|wanted| names.iter().find(|name| *name == wanted));
    let variant = || {
        let of_stem = |name: &&String| name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.'));
        let is_weights = |name: &&String| {
            name.ends_with(".safetensors") && !name.contains("-of-")
                || name.contains(".safetensors.index") && name.ends_with(".json")
        };
        names.iter().filter(of_stem).find(is_weights)
    };
    plain.or_else(variant).map(String::as_str)
}

fn nothing_to_read(files: &ModelFiles, component: Component, folder: &str, names: &[String]) -> Error {
    let pickle = names
        .iter()
        .find(|name| [".bin", ".ckpt", ".pt", ".pth"].iter().any(|extension| name.ends_with(extension)));
    let path = files.path(folder);
    let stem = component.stems()[0];
    match pickle {
        Some(name) => {
            let pickle = path.join(name);
            let command = conversion_command(&pickle, &path.join(format!("{stem}.safetensors")));
            let problem = format!(
                "a pickled PyTorch checkpoint can run code when it is loaded and is never opened; \
                 convert it first: {command}"
            );
            Error::input(pickle, problem)
        }
        None => Error::input(path, format!("it holds no {component}: expected a file {stem}.safetensors")),
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(
    files: &ModelFiles,
    index_name: &str,
    inside: impl Fn(&str) -> String,
) -> Result<Vec<SafetensorsFile>> {
    let index: ShardIndex = read_json(files, index_name)?;
    let mut shards: BTreeMap<&str, SafetensorsFile> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        let is_plain = shard.ends_with(".safetensors")
            && !shard.starts_with('.')
            && !shard.contains(['/', '\\', ':', '\0']);
        if !is_plain {
            return Err(Error::Config {
                path: files.path(index_name),
                field: format!("weight_map.{}", shown(tensor)),
                expected: "the name of a .safetensors file beside the index".to_owned(),
                found: format!("`{}`", shown(shard)),
            });
        }
        if !shards.contains_key(shard.as_str()) {
            if !files.exists(&inside(shard)) {
                let problem = format!(
                    "this shard is missing, and {} says that it holds `{}`",
                    index_name,
                    shown(tensor)
                );
                return Err(Error::input(files.path(&inside(shard)), problem));
            }
            shards.insert(shard, SafetensorsFile::new(files.blob(&inside(shard))?)?);
        }
        if !shards[shard.as_str()].tensors.contains_key(tensor) {
            return Err(Error::Tensor {
                path: files.path(index_name),
                tensor: shown(tensor),
                expected: format!("it in shard {}", shown(shard)),
                found: "no such tensor there".to_owned(),
            });
        }
    }
    let mut owner: BTreeMap<&str, &str> = BTreeMap::new();
    for (shard, file) in &shards {
        for tensor in file.tensors.keys() {
            if let Some(first) = owner.insert(tensor, shard) {
                return Err(Error::Tensor {
                    path: file.path().to_owned(),
                    tensor: tensor.clone(),
                    expected: "each tensor in one shard".to_owned(),
                    found: format!("it in shard {first} too"),
                });
            }
        }
    }
    if shards.is_empty() {
        return Err(Error::input(files.path(index_name), "its weight_map is empty"));
    }
    Ok(shards.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_file_is_preferred_and_any_variant_will_do() {
        let pick = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            choose(&names, "model").map(str::to_owned)
        };
        assert_eq!(
            pick(&["model.fp16.safetensors", "model.safetensors"]).as_deref(),
            Some("model.safetensors")
        );
        assert_eq!(pick(&["model.bf16.safetensors", "model.bin"]).as_deref(), Some("model.bf16.safetensors"));
        assert_eq!(
            pick(&["model-00001-of-00002.safetensors", "model.safetensors.index.json"]).as_deref(),
            Some("model.safetensors.index.json")
        );
        assert_eq!(pick(&["model.bin", "model_ema.safetensors", "config.json"]), None);
    }
}
