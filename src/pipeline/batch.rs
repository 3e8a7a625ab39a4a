//! How many images to denoise at a time, where nobody says.

use super::blueprint::Blueprint;
use super::model::Model;
use super::plans::{Plans, Target};
use super::request::{MAX_BATCH, Request};
use super::run::step_spec;
use crate::backend::Backend;
use crate::error::{Error, Result};

/// The batch that keeps the device busy, if there are so many images and so much memory: twice as many as long as
/// that is not so, all of it fits and nothing has to be computed twice for it. Batches come out equally large.
pub fn batch_that_fits(model: &Model, backend: &dyn Backend, request: &Request) -> Result<usize> {
    request.check(model.factor())?;
    let images = request.images();
    if images == 1 {
        return Ok(1);
    }
    let target = Target::of(model, backend);
    let (blueprint, spec) = (Blueprint::of(model), step_spec(model, request)?);
    let plan = |batch: usize| {
        let spec = super::programs::StepSpec { batch, ..spec.clone() };
        match Plans::new(&blueprint, &spec, &target, backend.limit()) {
            Err(Error::OutOfMemory { .. }) => Ok(None),
            plans => plans.map(|plans| Some(plans.step)),
        }
    };
    let mut batch = 1;
    // What does not fit alone is told by the run itself, with what would.
    let mut step = plan(batch)?;
    while let Some(fits) = step {
        let next = (2 * batch).min(images).min(MAX_BATCH);
        if next == batch || backend.is_filled_by(&fits) {
            break;
        }
        step = plan(next)?.filter(|larger| larger.extra_flops <= fits.extra_flops);
        if step.is_some() {
            batch = next;
        }
    }
    let batch = images.div_ceil(images.div_ceil(batch));
    tracing::info!(batch, images, "batch size");
    Ok(batch)
}
