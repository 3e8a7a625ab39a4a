//! The methods that steer a run, and their formulas on plain slices.
//!
//! The formulas are the ones that the fused ops are judged by: one image, all slices of equal lengths,
//! generic over the type they compute in.

use std::fmt;
use std::str::FromStr;

use crate::tensor::Real;
use crate::{Error, Result};

/// What keeps a run safe.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Method {
    /// Nothing.
    None,
    /// Classifier-free guidance away from [`SAFETY_CONCEPT`] instead of from the empty prompt.
    NegativePrompt,
    /// Safe Latent Diffusion.
    Sld(SldConfig),
    /// The predicted clean latent descends log p_h while the gate is open.
    #[default]
    SafeSampling,
    /// eps ascends the gradient of log p_h with respect to the noisy latent, through the UNet or with the
    /// UNet held fixed.
    ClassifierGuidance { frozen_unet: bool },
}

/// The settings of Safe Latent Diffusion, by the letters of its paper (arXiv:2211.05105).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SldConfig {
    /// The word after `sld:`.
    pub name: &'static str,
    /// delta: steps before it acts.
    pub warmup: usize,
    /// s_S
    pub scale: f64,
    /// lambda
    pub threshold: f64,
    /// s_m
    pub momentum_scale: f64,
    /// beta_m
    pub momentum_beta: f64,
}

impl SldConfig {
    pub const WEAK: Self = Self {
        name: "weak",
        warmup: 15,
        scale: 20.0,
        threshold: 0.0,
        momentum_scale: 0.0,
        momentum_beta: 0.0,
    };
    /// Weak as the authors of ESD ran it.
    pub const WEAK_200: Self = Self { name: "weak-200", scale: 200.0, ..Self::WEAK };
    pub const MEDIUM: Self = Self {
        name: "medium",
        warmup: 10,
        scale: 1000.0,
        threshold: 0.01,
        momentum_scale: 0.3,
        momentum_beta: 0.4,
    };
    pub const STRONG: Self = Self {
        name: "strong",
        warmup: 7,
        scale: 2000.0,
        threshold: 0.025,
        momentum_scale: 0.5,
        momentum_beta: 0.7,
    };
    pub const MAX: Self = Self {
        name: "max",
        warmup: 0,
        scale: 5000.0,
        threshold: 1.0,
        momentum_scale: 0.5,
        momentum_beta: 0.7,
    };
    pub const PRESETS: [Self; 5] = [Self::WEAK, Self::WEAK_200, Self::MEDIUM, Self::STRONG, Self::MAX];
}

/// What Safe Latent Diffusion and the negative-prompt baseline steer away from: the concept text of SLD.
pub const SAFETY_CONCEPT: &str = "an image showing hate, harassment, violence, suffering, humiliation, harm, \
                                  suicide, sexual, nudity, bodily fluids, blood, obscene gestures, illegal \
                                  activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty";

impl Method {
    /// Whether the method looks at the image through CLIP.
    pub fn uses_guard(self) -> bool {
        matches!(self, Self::SafeSampling | Self::ClassifierGuidance { .. })
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "none" => return Ok(Self::None),
            "negative-prompt" | "neg" => return Ok(Self::NegativePrompt),
            "sld" => return Ok(Self::Sld(SldConfig::MEDIUM)),
            "safe-sampling" => return Ok(Self::SafeSampling),
            "classifier-guidance" => return Ok(Self::ClassifierGuidance { frozen_unet: false }),
            "classifier-guidance:frozen-unet" => return Ok(Self::ClassifierGuidance { frozen_unet: true }),
            _ => {}
        }
        let preset = word.strip_prefix("sld:");
        let known = SldConfig::PRESETS.into_iter().find(|config| preset == Some(config.name));
        known.map(Self::Sld).ok_or_else(|| {
            let expected = "none, negative-prompt (neg), sld[:weak|weak-200|medium|strong|max], safe-sampling, \
                            classifier-guidance[:frozen-unet]";
            Error::usage("--safety", format!("expected one of {expected}; found `{word}`"))
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::NegativePrompt => f.write_str("negative-prompt"),
            Self::Sld(config) => write!(f, "sld:{}", config.name),
            Self::SafeSampling => f.write_str("safe-sampling"),
            Self::ClassifierGuidance { frozen_unet: false } => f.write_str("classifier-guidance"),
            Self::ClassifierGuidance { frozen_unet: true } => f.write_str("classifier-guidance:frozen-unet"),
        }
    }
}

/// Safe Sampling: `x0 - gamma g` where the gate is open, `x0` itself, bit for bit, where it is shut; then `g`
/// is not even read. `g` is d log p_h / d x0.
pub fn unguide<T: Real>(x0: &[T], g: &[T], gamma: f64, open: bool) -> Vec<T> {
    if !open {
        return x0.to_vec();
    }
    let gamma = T::from_f64(gamma);
    x0.iter().zip(g).map(|(&x0, &g)| x0 - gamma * g).collect()
}

/// Negative classifier guidance: `eps + gamma sqrt(1 - alpha) g`, where `g` is d log p_h / d z and `alpha` the
/// share of signal in z. The result stands in for eps in x0, too.
pub fn negative_classifier<T: Real>(eps: &[T], g: &[T], gamma: f64, alpha: f64) -> Vec<T> {
    let scale = T::from_f64(gamma * (1.0 - alpha).sqrt());
    eps.iter().zip(g).map(|(&eps, &g)| eps + scale * g).collect()
}

/// d log p_h / d z from d log p_h / d x0 with the UNet held fixed: `g / sqrt(alpha)`.
pub fn frozen_unet_gradient<T: Real>(g_x0: &[T], alpha: f64) -> Vec<T> {
    let scale = T::from_f64(1.0 / alpha.sqrt());
    g_x0.iter().map(|&g| scale * g).collect()
}

/// Safe Latent Diffusion at step `step` (0 is the first): the guided prediction from those for the empty
/// prompt, the prompt and the safety concept. `nu` is the momentum, zero before the first step; it is updated
/// during the warm-up too.
pub fn sld_step<T: Real>(
    [uncond, cond, concept]: [&[T]; 3],
    nu: &mut [T],
    config: &SldConfig,
    guidance_scale: f64,
    step: usize,
) -> Vec<T> {
    let of = T::from_f64;
    let acts = step >= config.warmup;
    let predictions = uncond.iter().zip(cond).zip(concept);
    predictions
        .zip(nu)
        .map(|(((&u, &p), &s), nu)| {
            let phi = p - s;
            let size = if phi < T::ZERO { -phi } else { phi } * of(config.scale);
            let clamped = if size > T::ONE { T::ONE } else { size };
            let mu = if phi >= of(config.threshold) { T::ZERO } else { clamped };
            let gamma = mu * (s - u) + of(config.momentum_scale) * *nu;
            *nu = of(config.momentum_beta) * *nu + of(1.0 - config.momentum_beta) * gamma;
            let guidance = if acts { (p - u) - gamma } else { p - u };
            u + of(guidance_scale) * guidance
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_written_as_it_is_read() {
        for word in [
            "none",
            "negative-prompt",
            "sld:weak",
            "sld:weak-200",
            "sld:medium",
            "sld:strong",
            "sld:max",
            "safe-sampling",
            "classifier-guidance",
            "classifier-guidance:frozen-unet",
        ] {
            assert_eq!(word.parse::<Method>().expect("a known word").to_string(), word);
        }
        assert_eq!("sld".parse::<Method>().expect("known").to_string(), "sld:medium");
        assert_eq!("neg".parse::<Method>().expect("known"), Method::NegativePrompt);
        for bad in ["", "sld:", "sld:hyper", "safe", "None", "classifier-guidance:"] {
            assert_eq!(bad.parse::<Method>().expect_err(bad).exit_code(), 2);
        }
    }

    #[test]
    fn a_shut_gate_leaves_the_latent_as_it_is_even_if_the_gradient_is_nan() {
        let x0 = [1.0f32, -0.0, 3.5];
        let same = unguide(&x0, &[f32::NAN; 3], f64::NAN, false);
        assert_eq!(same.map_bits(), x0.to_vec().map_bits());
    }

    trait MapBits {
        fn map_bits(&self) -> Vec<u32>;
    }
    impl MapBits for Vec<f32> {
        fn map_bits(&self) -> Vec<u32> {
            self.iter().map(|v| v.to_bits()).collect()
        }
    }
}
