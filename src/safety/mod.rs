//! What "unsafe" means and what is done about it: host-side formulas and settings.
//!
//! - [`concepts`]: the texts to steer away from
//! - [`density`]: from cosine scores to p_h and the gradient of log p_h
//! - [`methods`]: which method steers, and its formula on plain slices; the oracles of the fused ops
//! - [`schedule`]: how strong at which step
//! - [`profile`]: all of it under one name, for the CLIP it was tuned with

pub mod concepts;
pub mod density;
pub mod methods;
pub mod profile;
pub mod schedule;

pub use concepts::Concepts;
pub use density::{Density, Reduce, density};
pub use methods::{Method, SldConfig};
pub use profile::{ClipIdentity, Normalisation, SafetyProfile};
pub use schedule::{GammaSchedule, GuideWindow};
