//! What a run tells while it runs, and the trace of every tensor of it.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::Result;
use crate::tensor::Tensor;

/// One step of one batch. Latent tensors are `[n, h, w, 4]`.
pub struct StepReport {
    /// Images of the batch, by their index in the run.
    pub images: Range<usize>,
    /// Index of the step, from 0, and how many there are.
    pub step: usize,
    pub steps: usize,
    pub timestep: u32,
    /// Wall time that the step took, for all of its images.
    pub seconds: f64,
    pub latents: Tensor<f32>,
    /// After classifier-free guidance, converted to epsilon.
    pub eps: Tensor<f32>,
    /// Predicted clean latents before the guard moved them, and after.
    pub x0: Tensor<f32>,
    pub x0_guided: Tensor<f32>,
    pub prev: Tensor<f32>,
    /// What the guard saw; absent outside of its window and without one.
    pub guard: Option<GuardReport>,
}

/// The guard's view of one step.
pub struct GuardReport {
    /// `[n, k]`: cosine of every sample with every concept.
    pub scores: Tensor<f32>,
    /// p_h of every sample.
    pub density: Vec<f32>,
    /// Whether some score reached the threshold.
    pub gate: Vec<bool>,
    /// Whether the density was too small for its logarithm, so that the largest score took its place.
    pub fallback: Vec<bool>,
    /// d log p_h / d x0 (or d x_t), zero where the gate was shut.
    pub gradient: Tensor<f32>,
}

/// A finished image.
pub struct GeneratedImage {
    /// Index in the run.
    pub index: usize,
    pub seed: u64,
    pub latents: Tensor<f32>,
    /// `[1, H, W, 3]` in [0, 1].
    pub pixels: Tensor<f32>,
}

/// Who watches a run.
pub trait Observer {
    fn step(&mut self, report: &StepReport) -> Result<()>;
    fn image(&mut self, image: &GeneratedImage) -> Result<()>;
}

/// Collects every tensor of a run, images of all batches joined, in NCHW.
#[derive(Default)]
pub struct Trace {
    tensors: BTreeMap<String, Tensor<f32>>,
}

impl Trace {
    /// Names and tensors, in the order of the names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor<f32>)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub fn get(&self, name: &str) -> Option<&Tensor<f32>> {
        self.tensors.get(name)
    }

    /// Appends along the batch.
    fn append(&mut self, name: String, more: Tensor<f32>) {
        let joined = match self.tensors.remove(&name) {
            None => more,
            Some(so_far) => {
                let shape = so_far.shape().with_first(so_far.shape()[0] + more.shape()[0]);
                let mut data = so_far.into_data();
                data.extend(more.data());
                Tensor::new(shape, data)
            }
        };
        self.tensors.insert(name, joined);
    }
}

impl Observer for Trace {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        let name = |what: &str| format!("step.{:03}.{what}", report.step);
        let images = [
            ("latents", &report.latents),
            ("eps", &report.eps),
            ("x0", &report.x0),
            ("x0_guided", &report.x0_guided),
            ("prev", &report.prev),
        ];
        for (what, tensor) in images {
            self.append(name(what), tensor.nhwc_to_nchw());
        }
        if let Some(guard) = &report.guard {
            let gate = guard.gate.iter().map(|&open| f32::from(u8::from(open))).collect();
            self.append(name("scores"), guard.scores.clone());
            self.append(name("gate"), Tensor::new([guard.gate.len()], gate));
            self.append(name("gradient"), guard.gradient.nhwc_to_nchw());
        }
        Ok(())
    }

    fn image(&mut self, image: &GeneratedImage) -> Result<()> {
        self.append("final.latents".into(), image.latents.nhwc_to_nchw());
        self.append("final.image".into(), image.pixels.nhwc_to_nchw());
        Ok(())
    }
}
