//! Files to checked tensors, by our names.
//!
//! | file | what it knows |
//! |---|---|
//! | `files` | where files come from: a directory, one file, bytes inside the program |
//! | `bytes` | ranges of one file; the only memory map, and what is said when its file shrinks |
//! | `json` | configuration files, `model_index.json` |
//! | `header`, `safetensors` | one safetensors file: its table, checked, and its values as f32 |
//! | `names` | the names that checkpoints use, rewritten to ours |
//! | `component` | which files hold a UNet, a VAE, ... in a directory: variants, shards |
//! | `detect` | what a single file is, in words |
//! | `report` | tensors that do not fit, told briefly |
//! | `pack` | filters in the layouts that kernels want |
//! | `store` | [`Weights`]: all of it behind one lookup by name and shape |

mod bytes;
mod component;
mod detect;
mod files;
mod header;
mod json;
pub mod names;
pub mod pack;
mod report;
mod safetensors;
mod store;

pub use ::safetensors::Dtype;
pub use bytes::{Blob, InPlace};
pub use component::Component;
pub use detect::{Kind, recognise};
pub use files::{EmbeddedFiles, ModelFiles, read_user_text};
pub use json::{CONFIG_CAP, ModelIndex, read_json, read_model_index};
pub use safetensors::{SafetensorsFile, TensorInfo, to_safetensors};
pub use store::{FileSummary, Layout, Weights};

pub(crate) use json::parse_json;
