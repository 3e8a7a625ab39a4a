//! The timesteps of a run and the coefficients of each, exactly as diffusers' DDIMScheduler takes them.
//!
//! DDIM (Song et al. 2020, arXiv:2010.02502) is linear in the latent, the model's output and the noise, so a
//! step is seven numbers. They are computed in f64 from the float32 alphas of the config.

use super::{Prediction, SchedulerConfig, TimestepSpacing};
use crate::{Error, Result};

/// All steps of a run, the noisiest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub steps: Vec<StepCoefficients>,
}

/// One DDIM step from the latent `z` and the model's output `m`:
/// `z' = prev_x0 * x0' + prev_eps * eps + sigma * noise`, where `x0'` is `x0` or its guided form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCoefficients {
    pub timestep: u32,
    /// `x0 = a z + b m`
    pub x0_from: [f64; 2],
    /// `eps = a z + b m`
    pub eps_from: [f64; 2],
    pub prev_x0: f64,
    pub prev_eps: f64,
    pub sigma: f64,
    /// Share of signal at this timestep (the cumulative product of 1 - beta).
    pub alpha: f64,
    /// Share of signal after this step.
    pub alpha_prev: f64,
}

impl Schedule {
    /// `config` has been validated. `eta` is DDIM's: 0 deterministic, 1 as noisy as DDPM.
    pub fn new(config: &SchedulerConfig, steps: usize, eta: f64) -> Result<Self> {
        let trained = config.num_train_timesteps as usize;
        if steps == 0 || steps > trained {
            let problem = format!("expected 1 to {trained} (the model's num_train_timesteps), found {steps}");
            return Err(Error::usage("--steps", problem));
        }
        if !(0.0..=1.0).contains(&eta) {
            return Err(Error::usage("--ddim-eta", format!("expected 0 to 1, found {eta}")));
        }
        let alphas = config.alphas_cumprod();
        let last = if config.set_alpha_to_one { 1.0 } else { f64::from(alphas[0]) };
        let stride = trained / steps;
        let coefficients = |timestep: usize| {
            let Some(&alpha) = alphas.get(timestep) else {
                let problem = format!(
                    "{steps} steps with steps_offset {} reach timestep {timestep}, beyond the model's {trained}; \
                     use fewer",
                    config.steps_offset
                );
                return Err(Error::usage("--steps", problem));
            };
            if alpha == 0.0 && config.prediction_type == Prediction::Epsilon {
                let problem = format!(
                    "timestep {timestep} of this model holds no signal (rescale_betas_zero_snr), from which an \
                     epsilon prediction gives no x0; use fewer steps"
                );
                return Err(Error::usage("--steps", problem));
            }
            let alpha_prev =
                timestep.checked_sub(stride).map_or(last, |previous| f64::from(alphas[previous]));
            let prediction = config.prediction_type;
            Ok(StepCoefficients::new(timestep as u32, f64::from(alpha), alpha_prev, eta, prediction))
        };
        let timesteps = timesteps(config.timestep_spacing, trained, steps, config.steps_offset as usize);
        Ok(Self { steps: timesteps.into_iter().map(coefficients).collect::<Result<_>>()? })
    }
}

impl StepCoefficients {
    /// The step between two signal shares, `alpha < alpha_prev`.
    pub fn new(timestep: u32, alpha: f64, alpha_prev: f64, eta: f64, prediction: Prediction) -> Self {
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (x0_from, eps_from) = match prediction {
            Prediction::Epsilon => ([1.0 / signal, -noise / signal], [0.0, 1.0]),
            Prediction::VPrediction => ([signal, -noise], [noise, signal]),
            Prediction::Sample => ([0.0, 1.0], [1.0 / noise, -signal / noise]),
        };
        let variance = (1.0 - alpha_prev) / (1.0 - alpha) * (1.0 - alpha / alpha_prev);
        let sigma = eta * variance.sqrt();
        // Never negative but for rounding, as sigma^2 <= 1 - alpha_prev.
        let direction = (1.0 - alpha_prev - sigma * sigma).max(0.0);
        Self {
            timestep,
            x0_from,
            eps_from,
            prev_x0: alpha_prev.sqrt(),
            prev_eps: direction.sqrt(),
            sigma,
            alpha,
            alpha_prev,
        }
    }
}

/// `steps` training timesteps in descending order.
fn timesteps(spacing: TimestepSpacing, trained: usize, steps: usize, offset: usize) -> Vec<usize> {
    let round = |t: f64| t.round_ties_even() as usize;
    match spacing {
        TimestepSpacing::Leading => {
            let stride = trained / steps;
            (0..steps).rev().map(|i| i * stride + offset).collect()
        }
        TimestepSpacing::Linspace if steps == 1 => vec![0],
        TimestepSpacing::Linspace => {
            let (last, stride) = (trained - 1, (trained - 1) as f64 / (steps - 1) as f64);
            let at = |i| if i == steps - 1 { last } else { round(i as f64 * stride) };
            (0..steps).rev().map(at).collect()
        }
        TimestepSpacing::Trailing => {
            // numpy's arange: the second value minus the first is the stride that counts.
            let start = trained as f64;
            let stride = (start - start / steps as f64) - start;
            (0..steps).map(|i| round(start + i as f64 * stride) - 1).collect()
        }
    }
}
