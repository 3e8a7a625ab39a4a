//! Safe text-to-image generation: diffusion that steers away from named concepts.
//!
//! ```text
//! prompt -text-> tokens[77] -clip_text-> context[77,c]
//!   for t = T..1:   z -unet-> eps(cond, uncond) -cfg-> eps, x0 -vae_decoder-> rgb -resample-> clip_vision-> e -cosine-> s_k, p_h
//!                   if any s_k >= threshold:  g = d log p_h / d x0     (vision tower and decoder differentiated; never the UNet)
//!                   z <- ddim_unguide(z, eps, x0, g)
//! z -vae_decoder-> rgb -> image.png
//! ```
//!
//! Three sentences to read the code by:
//! - *A model is a function that builds a graph; it never runs anything* ([`models`], [`ir`]).
//! - *A sampling step is one value*, a [`plan::StepProgram`]: what runs always, once a sample, or behind a
//!   flag, over one arena, with named buffers that outlive the step and a [`plan::StepState`] as the only
//!   per-step input. Differentiation ([`autodiff`]) turns a graph into more of the same graph. What the text
//!   or the schedule settle alone stands in bodies of its own, which run once for all steps
//!   ([`passes::hoist`]); what the rows of an image have in common runs once for them ([`passes::share`]).
//! - *The pipeline is the only place that knows every stage* ([`pipeline`]), and it reads top to bottom in the
//!   order of the data.
//!
//! Modules, each using only those before it (`tests/layering.rs` holds the table): [`error`]; [`tensor`];
//! [`ir`]; [`autodiff`], [`passes`], [`plan`]; [`weights`], [`models`]; [`backend`], `room`; [`sampler`], [`safety`];
//! [`cpu`], [`cuda`]; [`manifest`], [`launch`], `simt`; [`text`], [`image`]; [`pipeline`]; [`bench`]; [`cli`].

pub mod autodiff;
pub mod backend;
pub mod bench;
pub mod cli;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod image;
pub mod ir;
pub mod launch;
pub mod manifest;
pub mod models;
pub mod passes;
pub mod pipeline;
pub mod plan;
mod room;
pub mod safety;
pub mod sampler;
#[cfg(feature = "simt")]
pub mod simt;
pub mod tensor;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
