//! `scheduler_config.json` of a diffusers model, and the noise levels it stands for.
//!
//! Whatever scheduler a model ships with, we sample with DDIM, as diffusers does after
//! `DDIMScheduler.from_config`: fields that DDIM knows are taken from the file, the others ignored, and those
//! that are missing get DDIM's defaults. One exception follows diffusers' Stable Diffusion pipelines:
//! `clip_sample` counts as false unless the file says otherwise, for a latent is no image in [-1, 1].
//!
//! The alphas are float32 numbers in diffusers, and a run inherits their rounding. They are computed here with
//! the same rounding: linspace with one fused multiply-add from the nearer end, the running product in f64
//! rounded at each store.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The fields of a diffusers scheduler that matter to DDIM.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub num_train_timesteps: u64,
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: BetaSchedule,
    pub trained_betas: Option<Vec<f64>>,
    pub clip_sample: bool,
    pub thresholding: bool,
    pub set_alpha_to_one: bool,
    pub steps_offset: u64,
    pub prediction_type: Prediction,
    pub timestep_spacing: TimestepSpacing,
    pub rescale_betas_zero_snr: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    Linear,
    /// Linear in the square root; Stable Diffusion's.
    ScaledLinear,
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// What the UNet's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    Epsilon,
    VPrediction,
    /// The clean latent itself.
    Sample,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    Leading,
    Trailing,
    Linspace,
}

impl Default for SchedulerConfig {
    /// Those of diffusers' DDIMScheduler, but for `clip_sample`.
    fn default() -> Self {
        Self {
            class_name: "DDIMScheduler".to_owned(),
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            clip_sample: false,
            thresholding: false,
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: Prediction::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            rescale_betas_zero_snr: false,
        }
    }
}

/// Schedulers whose `betas` mean the same as DDIM's.
const COMPATIBLE: [&str; 14] = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
];

pub const MAX_TRAIN_TIMESTEPS: u64 = 100_000;

impl SchedulerConfig {
    /// The schedule of every Stable Diffusion 1.x and 2.x checkpoint, for files that carry none.
    pub fn stable_diffusion(prediction_type: Prediction) -> Self {
        Self {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            set_alpha_to_one: false,
            steps_offset: 1,
            prediction_type,
            ..Self::default()
        }
    }

    /// Checks every field; `path` is the file that the error names.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let refuse = |field: &str, expected: &str, found: String| {
            Err(Error::Config {
                path: path.to_owned(),
                field: field.to_owned(),
                expected: expected.to_owned(),
                found,
            })
        };
        if !COMPATIBLE.contains(&self.class_name.as_str()) {
            let expected = format!("one of {}", COMPATIBLE.join(", "));
            return refuse("_class_name", &expected, format!("`{}`", self.class_name));
        }
        if !(1..=MAX_TRAIN_TIMESTEPS).contains(&self.num_train_timesteps) {
            return refuse("num_train_timesteps", "1 to 100000", self.num_train_timesteps.to_string());
        }
        if self.steps_offset >= self.num_train_timesteps {
            return refuse("steps_offset", "less than num_train_timesteps", self.steps_offset.to_string());
        }
        if self.clip_sample {
            let expected =
                "false (a latent is no image in [-1, 1]; set it to false, as Stable Diffusion does)";
            return refuse("clip_sample", expected, "true".to_owned());
        }
        if self.thresholding {
            return refuse("thresholding", "false (it is for pixel-space models)", "true".to_owned());
        }
        let is_beta = |beta: f64| beta > 0.0 && beta < 1.0;
        match &self.trained_betas {
            Some(betas) if betas.len() as u64 != self.num_train_timesteps => {
                let expected = format!("{} values (num_train_timesteps)", self.num_train_timesteps);
                return refuse("trained_betas", &expected, betas.len().to_string());
            }
            Some(betas) => {
                if let Some(i) = betas.iter().position(|&beta| !is_beta(beta)) {
                    let field = format!("trained_betas[{i}]");
                    return refuse(&field, "a number between 0 and 1", betas[i].to_string());
                }
            }
            None => {
                for (field, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
                    if !is_beta(beta) {
                        return refuse(field, "a number between 0 and 1", beta.to_string());
                    }
                }
            }
        }
        let alphas = self.alphas_cumprod();
        let silent = |t: usize| self.rescale_betas_zero_snr && t + 1 == alphas.len();
        let is_fine =
            |t: usize, alpha: f32| if silent(t) { alpha == 0.0 } else { alpha > 0.0 && alpha < 1.0 };
        if let Some(t) = (0..alphas.len()).find(|&t| !is_fine(t, alphas[t])) {
            let found = format!("{} at timestep {t}", alphas[t]);
            return refuse("alphas_cumprod", "betas that leave signal and noise at every timestep", found);
        }
        Ok(())
    }

    /// The share of signal in the latent at every training timestep: the running product of `1 - beta`, with
    /// the rounding of diffusers. At least one value for a config that `validate` accepts.
    pub fn alphas_cumprod(&self) -> Vec<f32> {
        let betas = self.betas();
        let alphas = betas.iter().map(|beta| 1.0 - beta);
        running_product(if self.rescale_betas_zero_snr {
            zero_terminal_snr(alphas)
        } else {
            alphas.collect()
        })
    }

    fn betas(&self) -> Vec<f32> {
        let n = self.num_train_timesteps as usize;
        if let Some(betas) = &self.trained_betas {
            return betas.iter().map(|&beta| beta as f32).collect();
        }
        match self.beta_schedule {
            BetaSchedule::Linear => linspace(self.beta_start, self.beta_end, n),
            BetaSchedule::ScaledLinear => {
                let roots = linspace(self.beta_start.sqrt(), self.beta_end.sqrt(), n);
                roots.into_iter().map(|root| root * root).collect()
            }
            BetaSchedule::SquaredCosine => {
                let alpha_bar = |i: usize| {
                    let angle = (i as f64 / n as f64 + 0.008) / 1.008 * std::f64::consts::PI / 2.0;
                    libm::cos(angle) * libm::cos(angle)
                };
                (0..n).map(|i| (1.0 - alpha_bar(i + 1) / alpha_bar(i)).min(0.999) as f32).collect()
            }
        }
    }
}

fn linspace(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    if n == 1 {
        return vec![start];
    }
    let step = (end - start) / (n - 1) as f32;
    let from_the_nearer_end =
        |i| if i < n / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((n - 1 - i) as f32, end) };
    (0..n).map(from_the_nearer_end).collect()
}

fn running_product(factors: Vec<f32>) -> Vec<f32> {
    let mut product = 1.0f64;
    factors
        .into_iter()
        .map(|factor| {
            product *= f64::from(factor);
            product as f32
        })
        .collect()
}

/// Factors whose running product ends at exactly 0: the square root of the product is shifted and stretched
/// (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
fn zero_terminal_snr(alphas: impl Iterator<Item = f32>) -> Vec<f32> {
    let roots: Vec<f32> = running_product(alphas.collect()).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let stretch = first / (first - last);
    let bars: Vec<f32> =
        roots.into_iter().map(|root| (root - last) * stretch).map(|root| root * root).collect();
    // diffusers goes through betas once more, which rounds twice.
    let through_beta = |alpha: f32| 1.0 - (1.0 - alpha);
    let ratios = bars.windows(2).map(|pair| pair[1] / pair[0]);
    std::iter::once(bars[0]).chain(ratios).map(through_beta).collect()
}
