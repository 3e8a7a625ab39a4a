//! What a single safetensors file is, told from the names and shapes of its tensors.
//!
//! File names and metadata say what they like; the tensors are what would have to run. The answer
//! is worth having also for files that cannot be used, since it is what the user wants to read.

use std::collections::BTreeMap;
use std::fmt;

use super::names::LDM_UNET_MARK;
use super::safetensors::TensorInfo;

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole checkpoint with the text encoder of Stable Diffusion 1.x (CLIP in transformers' names).
    Sd1,
    /// A whole checkpoint with the text encoder of Stable Diffusion 2.x (OpenCLIP).
    Sd2,
    /// A checkpoint in the same names of which parts are missing.
    Incomplete {
        missing: Vec<&'static str>,
    },
    UnetOnly,
    VaeOnly,
    TextEncoderOnly,
    ClipModel,
    OpenClip,
    Taesd,
    TaesdEncoder,
    Sdxl,
    Sd3,
    Flux,
    ControlNet,
    Lora,
    TextualInversion,
    Unknown {
        first: Vec<String>,
    },
}

impl Kind {
    /// The supported layout that a user of such a file most likely wants.
    pub const fn nearest(&self) -> &'static str {
        match self {
            Self::Sd2 | Self::OpenClip => "Stable Diffusion 2.x",
            Self::VaeOnly => "a VAE for --vae",
            Self::Taesd | Self::TaesdEncoder => "a TAESD decoder for --taesd",
            Self::ClipModel => "a CLIP model for --clip",
            _ => "Stable Diffusion 1.x",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sd1 => "a Stable Diffusion 1.x checkpoint",
            Self::Sd2 => "a Stable Diffusion 2.x checkpoint",
            Self::Incomplete { missing } => {
                return write!(f, "a Stable Diffusion checkpoint without its {}", missing.join(" and "));
            }
            Self::UnetOnly => "only a UNet, without text encoder and VAE",
            Self::VaeOnly => "only a VAE",
            Self::TextEncoderOnly => "only a text encoder",
            Self::ClipModel => "a CLIP model (transformers)",
            Self::OpenClip => "a CLIP model in OpenCLIP's names",
            Self::Taesd => "a TAESD autoencoder",
            Self::TaesdEncoder => "the encoder half of TAESD",
            Self::Sdxl => "a Stable Diffusion XL checkpoint",
            Self::Sd3 => "a Stable Diffusion 3 checkpoint",
            Self::Flux => "a FLUX checkpoint",
            Self::ControlNet => "a ControlNet",
            Self::Lora => "a LoRA",
            Self::TextualInversion => "a textual inversion embedding",
            Self::Unknown { first } => {
                return write!(f, "nothing we know (its first tensors are {})", first.join(", "));
            }
        })
    }
}

/// Tells what the tensors of a file make up.
pub fn recognise(tensors: &BTreeMap<String, TensorInfo>) -> Kind {
    let starts = |prefix: &str| {
        tensors.range(prefix.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(prefix))
    };
    let contains = |part: &str| tensors.keys().any(|name| name.contains(part));
    let has = |name: &str| tensors.contains_key(name);

    if ["lora_down.", "lora_up.", ".lora_A.", ".lora_B.", "_lora.", "lora_unet_", "lora_te_"]
        .iter()
        .any(|part| contains(part))
    {
        return Kind::Lora;
    }
    if starts("control_model.") || contains("controlnet_") {
        return Kind::ControlNet;
    }
    if starts("conditioner.embedders.") || contains("add_embedding.") || contains("label_emb.") {
        return Kind::Sdxl;
    }
    if contains("double_blocks.") {
        return Kind::Flux;
    }
    if contains("joint_blocks.") || contains("transformer_blocks.0.attn.add_q_proj") {
        return Kind::Sd3;
    }
    let parts = [
        ("UNet", starts("model.diffusion_model.")),
        ("VAE", starts("first_stage_model.")),
        ("text encoder", starts("cond_stage_model.")),
    ];
    let missing: Vec<_> = parts.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
    match missing.as_slice() {
        [] if starts("cond_stage_model.model.") => return Kind::Sd2,
        [] => return Kind::Sd1,
        ["VAE", "text encoder"] => return Kind::UnetOnly,
        ["UNet", "text encoder"] => return Kind::VaeOnly,
        [_] | ["UNet", "VAE"] => return Kind::Incomplete { missing },
        _ => {}
    }
    if has(LDM_UNET_MARK) || has("time_embedding.linear_1.weight") && has("conv_in.weight") {
        return Kind::UnetOnly;
    }
    if has("decoder.conv_in.weight") {
        return Kind::VaeOnly;
    }
    if starts("vision_model.") && starts("text_model.") {
        return Kind::ClipModel;
    }
    if has("visual.conv1.weight") || starts("visual.transformer.") {
        return Kind::OpenClip;
    }
    if starts("text_model.") || has("embeddings.token_embedding.weight") || has("token_embedding.weight") {
        return Kind::TextEncoderOnly;
    }
    if has("decoder.layers.0.weight") || has("1.weight") || has("decoder.1.weight") {
        return Kind::Taesd;
    }
    if has("0.weight") && has("1.conv.0.weight") {
        return Kind::TaesdEncoder;
    }
    if has("emb_params") || contains("string_to_param") || tensors.len() == 1 && starts("<") {
        return Kind::TextualInversion;
    }
    Kind::Unknown { first: tensors.keys().take(3).cloned().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_their_tensors() {
        let kind = |names: &[&str]| {
            let info = TensorInfo { dtype: safetensors::Dtype::F32, shape: vec![1], range: 0..4 };
            recognise(&names.iter().map(|name| ((*name).to_owned(), info.clone())).collect())
        };
        let unet = "model.diffusion_model.out.0.bias";
        let vae = "first_stage_model.post_quant_conv.bias";
        assert_eq!(kind(&[unet, vae, "cond_stage_model.transformer.x"]), Kind::Sd1);
        assert_eq!(kind(&[unet, vae, "cond_stage_model.model.x"]), Kind::Sd2);
        assert_eq!(kind(&[unet, vae]), Kind::Incomplete { missing: vec!["text encoder"] });
        assert_eq!(kind(&[unet]), Kind::UnetOnly);
        assert_eq!(kind(&["decoder.conv_in.weight"]), Kind::VaeOnly);
        assert_eq!(kind(&["0.weight", "1.conv.0.weight"]), Kind::TaesdEncoder);
        assert_eq!(kind(&["lora_unet_down_blocks_0.lora_down.weight"]), Kind::Lora);
        assert_eq!(kind(&[unet, vae, "conditioner.embedders.0.x"]), Kind::Sdxl);
        assert_eq!(kind(&["<cat>"]), Kind::TextualInversion);
        assert!(kind(&["a", "b"]).to_string().contains("a, b"));
    }
}
