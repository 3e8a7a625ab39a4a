//! The run itself, top to bottom.

use std::ops::Range;
use std::time::Instant;

use super::blueprint::Blueprint;
use super::contexts::{Contexts, embed};
use super::model::Model;
use super::observe::{GeneratedImage, GuardReport, Observer, Startup, StepReport, StepTensors};
use super::plans::{Memory, Plans, Target};
use super::programs::{Guard, Steering, StepSpec, names};
use super::request::{Guidance, Method, Request};
use crate::backend::{Backend, Program, Stop};
use crate::error::{Error, Result};
use crate::plan::{SldState, StepProgram, StepState};
use crate::sampler::{NoiseStream, Schedule, StepCoefficients};
use crate::tensor::Tensor;

/// Generates all images of a request, batch by batch, telling `observer` of every step and image. An image in which a
/// number does not stay finite is made again, alone, where the device has a type of a wider range.
///
/// # Errors
/// [`Error::NonFinite`] names the first image where none could be made, [`Error::Partial`] says how many could not
/// where others were: one image's numbers are no reason to leave out the next. Everything else ends the run at once;
/// images that were told of are whole.
pub fn generate(
    model: &Model,
    backend: &dyn Backend,
    request: &Request,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<()> {
    request.check(model.factor())?;
    let all = (0..request.images()).step_by(request.batch_size);
    let batches =
        all.map(|first| first..(first + request.batch_size).min(request.images())).collect::<Vec<_>>();
    let mut failed = attempt(model, backend, request, &batches, observer, stop)?;
    if let (false, Some(wider)) = (failed.is_empty(), backend.wider()) {
        for Fault { what, step, image } in &failed {
            let (narrow, wide) = (backend.dtype(), wider.dtype());
            tracing::warn!(
                "image {image}: {what} at step {step} is not finite in {narrow}; once more in {wide}"
            );
        }
        let alone = failed.iter().map(|fault| fault.image..fault.image + 1).collect::<Vec<_>>();
        let request = Request { batch_size: 1, ..request.clone() };
        failed = attempt(model, wider.as_ref(), &request, &alone, observer, stop)?;
    }
    for Fault { what, step, image } in &failed {
        tracing::error!(image, step, "non-finite value in {what}: no image");
    }
    match failed[..] {
        [] => Ok(()),
        [_, ..] if failed.len() < request.images() => {
            Err(Error::Partial { what: "images", failed: failed.len(), total: request.images() })
        }
        [Fault { what, step, image }, ..] => Err(Error::NonFinite { what, step, image }),
    }
}

/// All images of some batches, none larger than the request's. Returns those that could not be made.
fn attempt(
    model: &Model,
    backend: &dyn Backend,
    request: &Request,
    batches: &[Range<usize>],
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<Vec<Fault>> {
    let schedule = Schedule::new(&model.scheduler, request.steps, request.eta)?;
    let gammas = gammas(request)?;

    // All plans first: what does not fit is known before a weight is read.
    let start = Instant::now();
    let spec = step_spec(model, request)?;
    let plans = Planned::new(model, backend, request, &spec)?;
    let plan = start.elapsed();
    let startup = || {
        let (loading, ready) = (model.loading(), backend.preparation());
        let (read, upload) = (loading.read, loading.upload);
        Startup { plan, read, upload, modules: ready.modules, graphs: ready.graphs }
    };

    // Prompt -> tokens -> context; concepts -> tokens -> unit embeddings.
    let contexts = Contexts::encode(model, backend, &plans.all.text, request, stop)?;
    let concepts = match (request.method.guidance(), &plans.all.concepts) {
        (Some(guidance), Some(plan)) => match embed(model, backend, plan, guidance, stop) {
            Err(Error::NonFinite { what, step, .. }) => {
                let images = batches.iter().cloned().flatten();
                return Ok(images.map(|image| Fault { what, step, image }).collect());
            }
            embedded => Some(embedded?),
        },
        _ => None,
    };

    let mut decoder = Decoder::load(model, backend, &plans.all.decode, request, stop)?;
    let mut failed = Vec::new();
    let mut step: Option<(usize, Box<dyn Program>)> = None;
    for images in batches.iter().cloned() {
        // The last batch may be smaller than the others and then has a program of its own.
        let (_, program) = match step.take().filter(|(batch, _)| *batch == images.len()) {
            Some(loaded) => step.insert(loaded),
            None => {
                let program = model.load(backend, plans.step(images.len()).clone(), stop)?;
                step.insert((images.len(), program))
            }
        };
        if let Some(concepts) = &concepts {
            program.write(names::CONCEPTS, concepts)?;
        }
        program.write(names::CONTEXT, &contexts.rows(request, &spec, images.clone()))?;
        let timesteps: Vec<f32> = schedule.steps.iter().map(|step| step.timestep as f32).collect();
        program.write(names::TIMESTEPS, &timesteps)?;

        // Noise -> latents, one step after the other.
        let run = Run { request, schedule: &schedule, gammas: &gammas, startup: &startup, stop };
        let faults = run.denoise(program.as_mut(), images.clone(), observer)?;

        // Latents -> pixels.
        let z = latents(program.as_ref(), names::Z)?;
        for (sample, index) in images.enumerate() {
            let fault = |what, step| Fault { what, step, image: index };
            // What is not finite stays so: the latents remember every earlier fault but that of a score.
            let last = (!is_finite(&z, sample)).then(|| fault("the latents", request.steps - 1));
            if let Some(found) = faults[sample].or(last) {
                failed.push(found);
                continue;
            }
            let image = decoder.decode(&z, sample, index, request, stop)?;
            if is_finite(&image.pixels, 0) {
                observer.image(&clamped(image))?;
            } else {
                failed.push(fault("the decoded image", request.steps));
            }
        }
    }
    Ok(failed)
}

fn is_finite(tensor: &Tensor<f32>, sample: usize) -> bool {
    tensor.row(sample).iter().all(|value| value.is_finite())
}

/// What [`generate`] takes for a request at the busiest moment.
pub fn required_memory(model: &Model, backend: &dyn Backend, request: &Request) -> Result<Memory> {
    request.check(model.factor())?;
    Ok(Planned::new(model, backend, request, &step_spec(model, request)?)?.memory)
}

/// The plans of a run.
struct Planned {
    all: Plans,
    /// The step of the last batch, where that is smaller than the others.
    last: Option<StepProgram>,
    batch: usize,
    memory: Memory,
}

impl Planned {
    fn new(model: &Model, backend: &dyn Backend, request: &Request, spec: &StepSpec) -> Result<Self> {
        let target = Target::of(model, backend);
        let blueprint = Blueprint::of(model);
        let within = |spec: &StepSpec| Plans::new(&blueprint, spec, &target, backend.limit());
        let plan = |batch: usize| -> Result<(Plans, Memory)> {
            let spec = StepSpec { batch, ..spec.clone() };
            let fits = |spec: &StepSpec| within(spec).is_ok();
            let plans = within(&spec).map_err(|error| {
                with_a_budget(with_what_fits(error, &spec, model.factor(), &fits), backend)
            })?;
            let memory = plans.memory(&spec, &target)?;
            tracing::info!(batch, bytes = memory.total_bytes(), at = memory.peak_step, "planned");
            Ok((plans, memory))
        };
        let batch = request.batch_size.min(request.images());
        let rest = request.images() % batch;
        let (all, memory) = plan(batch)?;
        let last = if rest == 0 { None } else { Some(plan(rest)?.0.step) };
        Ok(Self { all, last, batch, memory })
    }

    /// The step of a batch of that size.
    fn step(&self, batch: usize) -> &StepProgram {
        self.last.as_ref().filter(|_| batch != self.batch).unwrap_or(&self.all.step)
    }
}

/// Adds to an error of memory what would have fitted: a smaller batch, else a smaller image.
fn with_what_fits(error: Error, spec: &StepSpec, factor: usize, fits: &dyn Fn(&StepSpec) -> bool) -> Error {
    let Error::OutOfMemory { what, needed_bytes, mut hint } = error else { return error };
    let halves = std::iter::successors(Some(spec.batch / 2), |batch| Some(batch / 2)).take_while(|&n| n > 0);
    let mut batches = halves.map(|batch| StepSpec { batch, ..spec.clone() });
    // Sides that every UNet can halve three times.
    let side = |side: usize, eighths: usize| side * eighths / 64 * 8;
    let smaller = |eighths: usize| StepSpec {
        batch: 1,
        height: side(spec.height, eighths),
        width: side(spec.width, eighths),
        ..spec.clone()
    };
    let mut sizes = [6, 4, 3, 2].map(smaller).into_iter().filter(|spec| spec.height.min(spec.width) > 0);
    if let Some(fitting) = batches.find(|spec| fits(spec)) {
        hint += &format!("; --batch-size {} fits", fitting.batch);
    } else if let Some(fitting) = sizes.find(|spec| fits(spec)) {
        hint += &format!("; -W {} -H {} fits", fitting.width * factor, fitting.height * factor);
    }
    Error::OutOfMemory { what, needed_bytes, hint }
}

/// The same with a budget: the smallest that works, where the user's own is what is too small; else what there is.
fn with_a_budget(error: Error, backend: &dyn Backend) -> Error {
    let Error::OutOfMemory { what, needed_bytes, mut hint } = error else { return error };
    match backend.room() {
        Some(room) if needed_bytes > room as u64 => hint += &format!("; {room} are free"),
        _ => hint += &format!("; --max-vram {needed_bytes} is enough"),
    }
    Error::OutOfMemory { what, needed_bytes, hint }
}

/// Where an image's numbers stopped being numbers.
#[derive(Clone, Copy)]
struct Fault {
    what: &'static str,
    step: usize,
    image: usize,
}

/// What all batches of a run have in common.
struct Run<'a> {
    request: &'a Request,
    schedule: &'a Schedule,
    gammas: &'a [f64],
    startup: &'a dyn Fn() -> Startup,
    stop: &'a Stop,
}

impl Run<'_> {
    /// All steps of one batch; returns the first fault of every sample.
    fn denoise(
        &self,
        program: &mut dyn Program,
        images: Range<usize>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Option<Fault>>> {
        let mut noise = Noise::new(self.request, program, images.clone());
        let start = noise.start();
        program.write(names::Z, start.data())?;
        if let Method::Sld { .. } = self.request.method {
            program.write(names::NU, &vec![0.0; start.data().len()])?;
        }
        let mut faults: Vec<Option<Fault>> = vec![None; images.len()];
        // Tensors come to the host only where they are there already, or somebody asks for them.
        let mut before = (program.is_near() || observer.wants_tensors()).then_some(start);
        for (index, coefficients) in self.schedule.steps.iter().enumerate() {
            if self.request.eta > 0.0 {
                program.write(names::NOISE, noise.draw().data())?;
            }
            let state = self.state(index, coefficients);
            let start = Instant::now();
            program.run(&state, self.stop)?;
            let seconds = start.elapsed().as_secs_f64();
            let report =
                self.report(program, images.clone(), coefficients, before.take(), (&state, seconds))?;
            for (sample, (fault, image)) in faults.iter_mut().zip(images.clone()).enumerate() {
                let what = first_non_finite(&report, sample);
                *fault = fault.or(what.map(|what| Fault { what, step: index, image }));
            }
            observer.step(&report)?;
            before = report.tensors.map(|tensors| tensors.prev);
        }
        Ok(faults)
    }

    /// The step as numbers.
    fn state(&self, index: usize, c: &StepCoefficients) -> StepState {
        let pair = |[a, b]: [f64; 2]| [a as f32, b as f32];
        let mut state = StepState {
            step: index as u32,
            sample: 0,
            // The first step of a batch finds its texts and timesteps just written.
            fresh: index == 0,
            window: false,
            timestep: c.timestep as f32,
            guidance: self.request.guidance_scale as f32,
            alpha: c.alpha as f32,
            x0_from: pair(c.x0_from),
            eps_from: pair(c.eps_from),
            prev_x0: c.prev_x0 as f32,
            prev_eps: c.prev_eps as f32,
            sigma: c.sigma as f32,
            gamma: 0.0,
            threshold: f32::INFINITY,
            sld: SldState::default(),
        };
        match &self.request.method {
            Method::None | Method::NegativePrompt { .. } => {}
            Method::Sld { config, .. } => {
                state.sld = SldState {
                    scale: config.scale as f32,
                    threshold: config.threshold as f32,
                    momentum: config.momentum_scale as f32,
                    beta: config.momentum_beta as f32,
                    warm: index >= config.warmup,
                };
            }
            Method::SafeSampling(guidance) | Method::ClassifierGuidance { guidance, .. } => {
                state.window = in_window(guidance, index, self.request.steps);
                state.gamma = self.gammas[index] as f32;
                let threshold = guidance.threshold as f32;
                state.threshold = match (self.request.method.is_gated(), guidance.above_threshold) {
                    // Without a gate every score reaches the threshold.
                    (false, _) => f32::NEG_INFINITY,
                    (true, false) => threshold,
                    // Above h means from the next number on.
                    (true, true) => threshold.next_up(),
                };
            }
        }
        state
    }

    fn report(
        &self,
        program: &dyn Program,
        images: Range<usize>,
        coefficients: &StepCoefficients,
        before: Option<Tensor<f32>>,
        (state, seconds): (&StepState, f64),
    ) -> Result<StepReport> {
        let guidance = self.request.method.guidance().filter(|_| state.window);
        let guard = guidance.map(|guidance| guard_report(program, guidance)).transpose()?;
        let gradient = || guidance.zip(guard.as_ref()).map(|(g, guard)| gradient(program, g, &guard.gate));
        let tensors = |z: Tensor<f32>| -> Result<StepTensors> {
            Ok(StepTensors {
                latents: z,
                eps: latents(program, names::EPS)?,
                x0: latents(program, names::X0)?,
                x0_guided: latents(program, names::X0_GUIDED)?,
                prev: latents(program, names::Z)?,
                gradient: gradient().transpose()?,
            })
        };
        let tensors = before.map(tensors).transpose()?;
        Ok(StepReport {
            images,
            step: state.step as usize,
            steps: self.schedule.steps.len(),
            timestep: coefficients.timestep,
            seconds,
            tensors,
            guard,
            startup: (self.startup)(),
        })
    }
}

fn in_window(guidance: &Guidance, step: usize, steps: usize) -> bool {
    guidance.window.as_ref().is_none_or(|window| window.of(steps).contains(&step))
}

/// Gamma of every step.
fn gammas(request: &Request) -> Result<Vec<f64>> {
    let Some(guidance) = request.method.guidance() else { return Ok(Vec::new()) };
    let factors = guidance.gamma_schedule.factors(request.steps)?;
    Ok(factors.into_iter().map(|factor| factor * guidance.gamma).collect())
}

fn guard_report(program: &dyn Program, guidance: &Guidance) -> Result<GuardReport> {
    let status = program.read(names::STATUS)?;
    let gate: Vec<bool> = program.read(names::GATE)?.iter().map(|&open| open != 0.0).collect();
    Ok(GuardReport {
        scores: Tensor::new([gate.len(), guidance.concepts.len()], program.read(names::SCORES)?),
        density: program.read(names::DENSITY)?,
        fallback: status.iter().map(|&status| status == 1.0).collect(),
        gate,
    })
}

fn gradient(program: &dyn Program, guidance: &Guidance, gate: &[bool]) -> Result<Tensor<f32>> {
    // Stored gradients carry a power of two; those of shut gates are left from earlier steps.
    let scale = (-guidance.gradient_scale_log2 as f32).exp2();
    let stored = latents(program, names::GRADIENT)?;
    let mut gradient = Tensor::filled(stored.shape().clone(), 0.0);
    let row = stored.data().len() / gate.len();
    for (sample, &open) in gate.iter().enumerate() {
        let range = sample * row..(sample + 1) * row;
        if open {
            let from = stored.data()[range.clone()].iter();
            gradient.data_mut()[range].iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }
    Ok(gradient)
}

/// The first thing of a sample that is not finite, in the order in which it is computed.
fn first_non_finite(report: &StepReport, sample: usize) -> Option<&'static str> {
    let tensors = |pick: fn(&StepTensors) -> Option<&Tensor<f32>>| {
        report.tensors.as_ref().and_then(pick).is_none_or(|tensor| is_finite(tensor, sample))
    };
    let guard = report.guard.as_ref();
    let checks = [
        (tensors(|t| Some(&t.eps)), "the UNet's output"),
        (tensors(|t| Some(&t.x0)), "the predicted latents"),
        (guard.is_none_or(|guard| is_finite(&guard.scores, sample)), "the concept scores"),
        (guard.is_none_or(|guard| guard.density[sample].is_finite()), "the density of the concepts"),
        (tensors(|t| t.gradient.as_ref()), "the guard's gradient"),
        (tensors(|t| Some(&t.prev)), "the latents"),
    ];
    checks.iter().find(|(finite, _)| !finite).map(|&(_, what)| what)
}

/// One step of this request, for a batch of one.
pub(super) fn step_spec(model: &Model, request: &Request) -> Result<StepSpec> {
    let guard = |guidance: &Guidance| -> Result<Guard> {
        Ok(Guard {
            decoder: model.guard_decoder().clone(),
            vision: model.clip()?.vision.clone(),
            mean: guidance.mean,
            std: guidance.std,
            concepts: guidance.concepts.len(),
            reduce: guidance.reduce,
            top_k: guidance.top_k,
            scale_log2: guidance.gradient_scale_log2,
        })
    };
    let steering = match &request.method {
        Method::None | Method::NegativePrompt { .. } => Steering::None,
        Method::Sld { .. } => Steering::Sld,
        Method::SafeSampling(guidance) => Steering::X0(guard(guidance)?),
        Method::ClassifierGuidance { guidance, frozen_unet, .. } => {
            Steering::Xt { guard: guard(guidance)?, frozen: *frozen_unet }
        }
    };
    Ok(StepSpec {
        batch: 1,
        height: request.height / model.factor(),
        width: request.width / model.factor(),
        tokens: model.text.positions,
        context_width: model.text.encoder.width,
        rows: match steering {
            Steering::Sld => 3,
            _ if request.guidance_scale > 1.0 => 2,
            _ => 1,
        },
        steps: request.steps,
        steering,
    })
}

/// The latents in a buffer of a step program.
fn latents(program: &dyn Program, name: &str) -> Result<Tensor<f32>> {
    let id = program.step().buffer(name).ok_or_else(|| Error::Bug(format!("no buffer `{name}`")))?;
    Ok(Tensor::new(program.step().graph.buffer(id).shape.clone(), program.read(name)?))
}

/// The noise of the images of a batch: every image has a stream of its own.
struct Noise<'a> {
    request: &'a Request,
    images: Range<usize>,
    streams: Vec<NoiseStream>,
    /// `[h, w]` of the latents.
    size: [usize; 2],
}

impl<'a> Noise<'a> {
    fn new(request: &'a Request, program: &dyn Program, images: Range<usize>) -> Self {
        let id = program.step().buffer(names::Z).expect("every step has latents");
        let shape = &program.step().graph.buffer(id).shape;
        let streams =
            images.clone().map(|image| NoiseStream::new(request.rng, request.image_seed(image))).collect();
        Self { request, size: [shape[1], shape[2]], images, streams }
    }

    /// The latents to start from, `[n, h, w, 4]`.
    fn start(&mut self) -> Tensor<f32> {
        match &self.request.latents {
            None => self.draw(),
            Some(given) => {
                let data = self.images.clone().flat_map(|image| given.row(image).iter().copied());
                self.nhwc(data.collect())
            }
        }
    }

    /// The next numbers of every stream, `[n, h, w, 4]`. Drawn channel by channel, as torch does.
    fn draw(&mut self) -> Tensor<f32> {
        let count = 4 * self.size[0] * self.size[1];
        let data = self.streams.iter_mut().flat_map(|stream| stream.normal(count)).collect();
        self.nhwc(data)
    }

    fn nhwc(&self, data: Vec<f32>) -> Tensor<f32> {
        let [h, w] = self.size;
        Tensor::new([self.images.len(), 4, h, w], data).nchw_to_nhwc()
    }
}

/// The VAE, one image at a time.
struct Decoder {
    program: Box<dyn Program>,
    /// `[1, H, W, 3]`
    shape: [usize; 4],
    dtype: &'static str,
}

impl Decoder {
    fn load(
        model: &Model,
        backend: &dyn Backend,
        plan: &StepProgram,
        request: &Request,
        stop: &Stop,
    ) -> Result<Self> {
        let program = model.load(backend, plan.clone(), stop)?;
        Ok(Self { program, shape: [1, request.height, request.width, 3], dtype: backend.dtype() })
    }

    fn decode(
        &mut self,
        z: &Tensor<f32>,
        sample: usize,
        index: usize,
        request: &Request,
        stop: &Stop,
    ) -> Result<GeneratedImage> {
        let latents = Tensor::new(z.shape().with_first(1), z.row(sample).to_vec());
        self.program.write(names::Z, latents.data())?;
        self.program.run(&StepState::default(), stop)?;
        let pixels = Tensor::new(self.shape, self.program.read(names::IMAGE)?);
        Ok(GeneratedImage { index, seed: request.image_seed(index), dtype: self.dtype, latents, pixels })
    }
}

fn clamped(mut image: GeneratedImage) -> GeneratedImage {
    image.pixels.data_mut().iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
    image
}
