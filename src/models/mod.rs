//! The networks, as functions that build graphs.
//!
//! Every function appends one network to a [`Builder`](crate::ir::Builder) and returns its result.
//! Weights carry the component's name and the path that diffusers and transformers give them, such as
//! `unet.down_blocks.0.resnets.0.conv1.weight`, so that a graph says which tensors it needs, under which
//! names and with which shapes, before a file is opened.
//!
//! Configurations are parsed into typed structs that hold valid values only: ranges, divisors and every
//! switch that we do not build are checked while reading, and refused by name.
//!
//! This layer knows no files, no weights and no device.

mod blocks;
mod clip;
mod clip_text;
mod clip_vision;
mod config;
pub mod presets;
mod tiny_vae;
mod unet;
mod vae_decoder;

pub use clip::{ClipConfig, EncoderConfig};
pub use clip_text::{ClipTextConfig, pool_position, text_features, text_states};
pub use clip_vision::{ClipVisionConfig, IMAGE_MEAN, IMAGE_STD, image_features};
pub use tiny_vae::{TinyVaeConfig, tiny_vae_decoder};
pub use unet::{UnetConfig, UnetLevel, unet};
pub use vae_decoder::{VaeConfig, vae_decoder};
