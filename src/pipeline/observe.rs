//! What a run tells while it runs, and the trace of every tensor of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::error::Result;
use crate::tensor::Tensor;

/// One step of one batch.
pub struct StepReport {
    /// Images of the batch, by their index in the run.
    pub images: Range<usize>,
    /// Index of the step, from 0, and how many there are.
    pub step: usize,
    pub steps: usize,
    pub timestep: u32,
    /// Wall time that the step took, for all of its images.
    pub seconds: f64,
    /// Where somebody wants them, and where they are in the host's memory anyway.
    pub tensors: Option<StepTensors>,
    /// What the guard saw; absent outside of its window and without one.
    pub guard: Option<GuardReport>,
    /// All that there was to get ready so far.
    pub startup: Startup,
}

/// The tensors of a step, `[n, h, w, 4]`.
pub struct StepTensors {
    pub latents: Tensor<f32>,
    /// After classifier-free guidance, converted to epsilon.
    pub eps: Tensor<f32>,
    /// Predicted clean latents before the guard moved them, and after.
    pub x0: Tensor<f32>,
    pub x0_guided: Tensor<f32>,
    pub prev: Tensor<f32>,
    /// d log p_h / d x0 (or d x_t), zero where the gate was shut; absent where the guard did not look.
    pub gradient: Option<Tensor<f32>>,
}

/// Time that went by before and beside the steps, by what it went to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// Graphs built, and their memory and launches laid out.
    pub plan: Duration,
    /// Weights out of their files.
    pub read: Duration,
    /// Weights packed as kernels want them, and sent.
    pub upload: Duration,
    /// Kernels found or compiled, and loaded.
    pub modules: Duration,
    /// Steps made into graphs of the driver, which happens when a program runs for the second time.
    pub graphs: Duration,
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
}

/// A finished image.
pub struct GeneratedImage {
    /// Index in the run.
    pub index: usize,
    pub seed: u64,
    /// What it was computed in, as `--dtype` says it.
    pub dtype: &'static str,
    pub latents: Tensor<f32>,
    /// `[1, H, W, 3]` in [0, 1].
    pub pixels: Tensor<f32>,
}

/// Who watches a run.
///
/// An image that did not stay finite may begin again, from step 0 and with a batch of one.
pub trait Observer {
    /// Whether it looks at the tensors of every step: on a device of its own they are then copied to the host.
    fn wants_tensors(&self) -> bool {
        false
    }

    fn step(&mut self, report: &StepReport) -> Result<()>;
    fn image(&mut self, image: &GeneratedImage) -> Result<()>;
}

/// Collects every tensor of a run, images of all batches joined in their order, in NCHW.
#[derive(Default)]
pub struct Trace {
    tensors: BTreeMap<String, Tensor<f32>>,
    /// The image of every row.
    images: BTreeMap<String, Vec<usize>>,
}

impl Trace {
    /// Names and tensors, in the order of the names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor<f32>)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub fn get(&self, name: &str) -> Option<&Tensor<f32>> {
        self.tensors.get(name)
    }

    /// Adds a row for every image, in place of the one that an image had.
    fn put(&mut self, name: &str, images: Range<usize>, rows: &Tensor<f32>) {
        let known = self.images.entry(name.to_owned()).or_default();
        let width: usize = rows.shape()[1..].iter().product();
        let mut data = self.tensors.remove(name).map_or_else(Vec::new, Tensor::into_data);
        for (image, row) in images.zip(rows.data().chunks_exact(width.max(1))) {
            let (at, end) = match known.binary_search(&image) {
                Ok(at) => (at, at + 1),
                Err(at) => {
                    known.insert(at, image);
                    (at, at)
                }
            };
            data.splice(at * width..end * width, row.iter().copied());
        }
        self.tensors.insert(name.to_owned(), Tensor::new(rows.shape().with_first(known.len()), data));
    }
}

impl Observer for Trace {
    fn wants_tensors(&self) -> bool {
        true
    }

    fn step(&mut self, report: &StepReport) -> Result<()> {
        let mut put = |what: &str, rows: &Tensor<f32>| {
            self.put(&format!("step.{:03}.{what}", report.step), report.images.clone(), rows);
        };
        if let Some(tensors) = &report.tensors {
            put("latents", &tensors.latents.nhwc_to_nchw());
            put("eps", &tensors.eps.nhwc_to_nchw());
            put("x0", &tensors.x0.nhwc_to_nchw());
            put("x0_guided", &tensors.x0_guided.nhwc_to_nchw());
            put("prev", &tensors.prev.nhwc_to_nchw());
            if let Some(gradient) = &tensors.gradient {
                put("gradient", &gradient.nhwc_to_nchw());
            }
        }
        if let Some(guard) = &report.guard {
            let gate = guard.gate.iter().map(|&open| f32::from(u8::from(open))).collect();
            put("scores", &guard.scores);
            put("gate", &Tensor::new([guard.gate.len()], gate));
        }
        Ok(())
    }

    fn image(&mut self, image: &GeneratedImage) -> Result<()> {
        let images = image.index..image.index + 1;
        self.put("final.latents", images.clone(), &image.latents.nhwc_to_nchw());
        self.put("final.image", images, &image.pixels.nhwc_to_nchw());
        Ok(())
    }
}
