//! From noise to a clean latent: where the noise comes from, which steps are taken, and one step.
//!
//! - [`noise`]: the normal numbers that torch draws for a seed, on its CPU and on its CUDA generator
//! - [`config`]: `scheduler_config.json` and the noise levels (alphas) that a model was trained with
//! - [`schedule`]: the timesteps of a run and the coefficients of each
//! - [`ddim`]: classifier-free guidance and the DDIM step on plain slices; the oracles of the fused ops

pub mod config;
pub mod ddim;
mod mt19937;
pub mod noise;
mod philox;
pub mod schedule;

pub use config::{BetaSchedule, Prediction, SchedulerConfig, TimestepSpacing};
pub use noise::{NoiseStream, Rng};
pub use schedule::{Schedule, StepCoefficients};
