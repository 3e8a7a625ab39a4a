//! `unguide generate`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use serde_json::{Value, json};

use super::args::GenerateArgs;
use super::cold_start::ColdStart;
use super::device::Device;
use super::progress::Progress;
use super::{print_line, settings, signals};
use crate::backend::{Backend, Stop};
use crate::cpu::Cpu;
use crate::cuda::{self, CudaDevice};
use crate::error::{Error, Result};
use crate::image::{Metadata, OutputPattern, Parameters, Picture, Target, check_writable, write_atomically};
use crate::pipeline::{
    GeneratedImage, Method, Model, Observer, Request, StepReport, Trace, batch_that_fits, generate,
};
use crate::weights::{EmbeddedFiles, to_safetensors};

pub fn run(args: &GenerateArgs, quiet: bool, demo: EmbeddedFiles, started: Instant) -> Result<()> {
    // Everything that can be judged without the model, so that a typing error costs no time.
    let early = settings::Early::new(args)?;
    let images = early.images(args)?;
    let seeds: Vec<u64> = (0..images as u64).map(|i| early.seed.wrapping_add(i)).collect();
    let to_stdout = args.output == "-";
    if to_stdout && args.json {
        return Err(Error::usage(
            "--json",
            "the image goes to stdout (-o -); there is no room for JSON lines",
        ));
    }
    let pattern = OutputPattern::parse(OsStr::new(&args.output))?;
    let _directory = NewDirectory::make(&args.output)?;
    let targets = pattern.check(&seeds, args.overwrite)?;
    if let Some(path) = &args.trace {
        check_trace(path, &targets, args.overwrite)?;
    }

    let stop = signals::listen()?;
    let (threads, device) = (early.threads, early.device);
    let model = Arc::new(settings::open(&args.model, demo, early.method.uses_guard())?);
    let (mut request, record) = early.request(args, &model, &stop)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| Error::usage("--threads", error.to_string()))?;
    pool.install(|| {
        let backend = backend(device, args.max_vram)?;
        if args.size.batch_size.is_none() {
            request.batch_size = batch_that_fits(&model, backend.as_ref(), &request)?;
        }
        let mut output = Output {
            record,
            digests: (!args.no_metadata || args.json).then(|| Digests::start(&model, &stop)),
            pattern,
            targets,
            overwrite: args.overwrite,
            metadata: !args.no_metadata,
            json: args.json,
            request: &request,
            progress: Progress::new(images, request.steps, quiet),
            trace: args.trace.is_some().then(Trace::default),
            scores: HashMap::new(),
            seconds: HashMap::new(),
            cold_start: ColdStart::new(started),
        };
        tracing::info!(seed = request.seed, images, batch = request.batch_size, "starting");
        let result = generate(&model, backend.as_ref(), &request, &mut output, &stop);
        output.progress.finish();
        let traced = match &result {
            // Where numbers went wrong the trace says which was the first.
            Ok(()) | Err(Error::NonFinite { .. } | Error::Partial { .. }) => output.write_trace(args),
            Err(_) => Ok(()),
        };
        if let (Err(_), Err(error)) = (&result, &traced) {
            tracing::error!("{error}");
        }
        result.and(traced)
    })
}

/// The backend of a device, on as many threads as the pool has that it is made in.
fn backend(device: Device, max_vram: Option<usize>) -> Result<Box<dyn Backend>> {
    Ok(match device {
        #[cfg(feature = "simt")]
        Device::Simt(storage, target) => {
            let device = crate::simt::SimtDevice::new(storage, rayon::current_num_threads());
            Box::new(device.like(target).within(max_vram))
        }
        Device::Cuda(ordinal, storage) => {
            Box::new(CudaDevice::open(&cuda::usable(ordinal)?, storage, max_vram)?)
        }
        _ => Box::new(Cpu::<f32>::new().within(max_vram)),
    })
}

/// A directory that was made for the images, and that goes again if none came.
struct NewDirectory(Option<PathBuf>);

impl NewDirectory {
    /// Makes `output` where it ends with a slash and is not there.
    fn make(output: &str) -> Result<Self> {
        let directory = Path::new(output);
        if !output.ends_with('/') || directory.is_dir() {
            return Ok(Self(None));
        }
        std::fs::create_dir_all(directory).map_err(|error| Error::io("create", directory, error))?;
        Ok(Self(Some(directory.to_owned())))
    }
}

impl Drop for NewDirectory {
    fn drop(&mut self) {
        // Refused by the system unless the directory is empty, which is the point.
        let _ = self.0.as_ref().map(std::fs::remove_dir);
    }
}

/// SHA-256 of the model's files, computed beside the first image: gigabytes take a while to read.
struct Digests(JoinHandle<Result<Vec<(PathBuf, String)>>>);

impl Digests {
    fn start(model: &Arc<Model>, stop: &Stop) -> Self {
        let (model, stop) = (Arc::clone(model), stop.clone());
        Self(std::thread::spawn(move || model.files().digests(&|| stop.check())))
    }

    fn finish(self) -> Result<Value> {
        let digests =
            self.0.join().map_err(|_| Error::Bug("hashing the model's files panicked".into()))??;
        let file = |(path, sha256): &(PathBuf, String)| json!({ "path": path, "sha256": sha256 });
        Ok(digests.iter().map(file).collect())
    }
}

/// Writes what a run makes.
struct Output<'a> {
    record: Value,
    /// Under way until the first image needs them.
    digests: Option<Digests>,
    pattern: OutputPattern,
    targets: Vec<Target>,
    overwrite: bool,
    metadata: bool,
    json: bool,
    request: &'a Request,
    progress: Progress,
    trace: Option<Trace>,
    /// What the guard saw, step by step, of every image that is not finished.
    scores: HashMap<usize, Vec<GuardedStep>>,
    /// Wall time of every step, by image.
    seconds: HashMap<usize, Vec<f64>>,
    cold_start: ColdStart,
}

/// One guarded step of one image.
struct GuardedStep {
    step: usize,
    timestep: u32,
    scores: Vec<f32>,
    density: f32,
    gate: bool,
    fallback: bool,
}

impl Observer for Output<'_> {
    fn wants_tensors(&self) -> bool {
        self.trace.is_some()
    }

    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.cold_start.step(report);
        for image in report.images.clone().filter(|_| report.step == 0) {
            // An image that begins again.
            if self.seconds.remove(&image).is_some() {
                self.scores.remove(&image);
                self.progress.one_more();
            }
        }
        self.progress.step(report);
        for image in report.images.clone() {
            self.seconds.entry(image).or_default().push(report.seconds);
        }
        if let Some(guard) = &report.guard {
            for (sample, image) in report.images.clone().enumerate() {
                self.scores.entry(image).or_default().push(GuardedStep {
                    step: report.step,
                    timestep: report.timestep,
                    scores: guard.scores.row(sample).to_vec(),
                    density: guard.density[sample],
                    gate: guard.gate[sample],
                    fallback: guard.fallback[sample],
                });
            }
        }
        self.trace.as_mut().map_or(Ok(()), |trace| trace.step(report))
    }

    fn image(&mut self, image: &GeneratedImage) -> Result<()> {
        let steps = self.scores.remove(&image.index).unwrap_or_default();
        let seconds = self.seconds.remove(&image.index).unwrap_or_default();
        let opened = steps.iter().filter(|step| step.gate).count();
        let fallbacks = steps.iter().filter(|step| step.gate && step.fallback).count();
        let shape = image.pixels.shape();
        let picture = Picture::from_unit(shape[2] as u32, shape[1] as u32, image.pixels.data());
        let picture = picture.ok_or_else(|| Error::Bug("an image that is not finite".to_owned()))?;
        if let Some(digests) = self.digests.take() {
            self.record["files"] = digests.finish()?;
        }
        let metadata = self.metadata.then(|| self.metadata(image, opened));
        let target = self.write(image, &picture.to_png(metadata.as_ref())?)?;
        if let Some(trace) = &mut self.trace {
            trace.image(image)?;
        }

        let path = match &target {
            Target::File(path) => path.display().to_string(),
            Target::Stdout => "-".to_owned(),
        };
        let mut line = format!("{path}: seed {}", image.seed);
        if self.request.method.guidance().is_some() {
            line += &format!(", gate open at {opened} of {} steps", steps.len());
        }
        if fallbacks > 0 {
            line += &format!(" ({fallbacks} times by the largest score alone)");
        }
        self.progress.image(&line);
        if self.json { print_line(self.json_line(image, &path, (&steps, &seconds))) } else { Ok(()) }
    }
}

impl Output<'_> {
    fn write_trace(&self, args: &GenerateArgs) -> Result<()> {
        let (Some(path), Some(trace)) = (&args.trace, &self.trace) else { return Ok(()) };
        write_atomically("--trace", path, args.overwrite, &to_safetensors(trace.tensors())?)
    }

    /// Writes one picture and says where it went.
    fn write(&self, image: &GeneratedImage, png: &[u8]) -> Result<Target> {
        let mut target = self.targets[image.index].clone();
        loop {
            match target.write(self.overwrite, png) {
                // Another process took the number in the same directory meanwhile: the next one will do.
                Err(Error::Usage { .. }) if matches!(self.pattern, OutputPattern::Directory(_)) => {
                    target = self.pattern.check(&[image.seed], false)?.remove(0);
                }
                written => return written.map(|()| target),
            }
        }
    }

    fn metadata(&self, image: &GeneratedImage, opened: usize) -> Metadata {
        let request = self.request;
        let prompt = request.image_prompt(image.index);
        let mut record = self.record.clone();
        record["prompt"] = json!(prompt);
        record["seed"] = json!(image.seed);
        record["gate_opened"] = json!(opened);
        record["dtype"] = json!(image.dtype);
        let setting = |name: &str, value: String| (name.to_owned(), value);
        let mut settings = vec![
            setting("Steps", request.steps.to_string()),
            setting("Sampler", "DDIM".to_owned()),
            setting("CFG scale", request.guidance_scale.to_string()),
            setting("Seed", image.seed.to_string()),
            setting("Size", format!("{}x{}", request.width, request.height)),
            setting("Model", self.record["model"].as_str().unwrap_or_default().to_owned()),
        ];
        if request.eta > 0.0 {
            settings.push(setting("Eta", request.eta.to_string()));
        }
        settings.push(setting("RNG", request.rng.name().to_uppercase()));
        let method = self.record["safety"]["method"].as_str().unwrap_or_default();
        settings.push(setting("Safety", method.to_owned()));
        if let Some(guidance) = request.method.guidance() {
            settings.push(setting("Safety concepts", guidance.concepts.join(", ")));
            if request.method.is_gated() {
                settings.push(setting("Safety threshold", guidance.threshold.to_string()));
            }
            settings.push(setting("Safety gamma", guidance.gamma.to_string()));
        } else if let Method::Sld { config, .. } = &request.method {
            settings.push(setting("Safety preset", config.name.to_owned()));
        }
        settings.push(setting("Version", concat!("unguide ", env!("CARGO_PKG_VERSION")).to_owned()));
        let parameters = Parameters {
            prompt: prompt.to_owned(),
            negative_prompt: request.negative_prompt.clone(),
            settings,
        };
        Metadata { parameters: parameters.to_string(), record }
    }

    fn json_line(
        &self,
        image: &GeneratedImage,
        path: &str,
        (steps, seconds): (&[GuardedStep], &[f64]),
    ) -> Value {
        let opened = steps.iter().filter(|step| step.gate).count();
        let steps: Vec<Value> = steps
            .iter()
            .map(|s| {
                json!({
                    "step": s.step, "timestep": s.timestep, "scores": s.scores, "p_h": s.density,
                    "gate": s.gate, "largest_score_alone": s.fallback,
                })
            })
            .collect();
        let mut settings = self.record.clone();
        settings["dtype"] = json!(image.dtype);
        json!({
            "event": "image",
            "path": path,
            "index": image.index,
            "prompt": self.request.image_prompt(image.index),
            "seed": image.seed,
            "gate_opened": opened,
            "steps": steps,
            "step_seconds": seconds,
            "cold_start": self.cold_start.json(),
            "settings": settings,
        })
    }
}

/// Complains before hours of work rather than after.
fn check_trace(path: &Path, targets: &[Target], overwrite: bool) -> Result<()> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let trace = absolute(path);
    if targets.iter().any(|target| matches!(target, Target::File(path) if absolute(path) == trace)) {
        let problem = format!("an image goes to `{}` too; give the trace a file of its own", path.display());
        return Err(Error::usage("--trace", problem));
    }
    check_writable("--trace", path, overwrite)
}
