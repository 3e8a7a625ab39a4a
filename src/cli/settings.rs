//! From flags to a checked request: profiles, defaults, files.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::args::{
    GateArg, GenerateArgs, ImageArgs, ModelArgs, NormArg, PredictionArg, RngArg, SafetyArgs, SizeArgs,
};
use super::device::{Device, device};
use super::latents::GivenLatents;
use super::record::record;
use crate::backend::Stop;
use crate::error::{Error, Result};
use crate::ir::Reduce;
use crate::pipeline::{Blueprint, Guidance, MAX_BATCH, Method, Model, ModelSource, Request, check_side};
use crate::safety::concepts::MAX_CONCEPT_BYTES;
use crate::safety::methods::SAFETY_CONCEPT;
use crate::safety::{self, Concepts, GammaSchedule, GuideWindow, Normalisation, SafetyProfile};
use crate::sampler::{Prediction, Rng};
use crate::text::MAX_PROMPT_BYTES;
use crate::weights::{EmbeddedFiles, read_user_text};

const DEFAULT_GUIDANCE: f64 = 7.5;
/// What the demo model was tuned with.
const DEMO_GUIDANCE: f64 = 5.0;
const MAX_PROMPT_FILE_BYTES: u64 = 16 << 20;
const MAX_PROMPTS: usize = 100_000;
const MAX_THREADS: usize = 1024;

fn model_source(args: &ModelArgs, demo: EmbeddedFiles, guard: bool) -> ModelSource {
    ModelSource {
        model: args.model.clone(),
        demo,
        clip: args.clip.clone(),
        vae: args.vae.clone(),
        taesd: args.taesd.clone(),
        tokenizer: args.tokenizer.clone(),
        prediction: args.prediction_type.map(|prediction| match prediction {
            PredictionArg::Epsilon => Prediction::Epsilon,
            PredictionArg::VPrediction => Prediction::VPrediction,
            PredictionArg::Sample => Prediction::Sample,
        }),
        mmap: args.mmap,
        guard,
    }
}

/// The model that the flags name; `guard` where somebody looks through its CLIP.
pub fn open(args: &ModelArgs, demo: EmbeddedFiles, guard: bool) -> Result<Model> {
    let model = Model::open(&model_source(args, demo, guard))?;
    if args.mmap {
        model.files().explain_lost_pages()?;
    }
    Ok(model)
}

/// What can be judged before a model is opened: words, numbers, files of the user.
pub struct Early {
    pub device: Device,
    pub prompts: Vec<String>,
    pub seed: u64,
    pub threads: usize,
    pub method: safety::Method,
    concepts: Option<Vec<String>>,
    profile: Option<SafetyProfile>,
    gamma_schedule: Option<GammaSchedule>,
    window: Option<GuideWindow>,
    reduce: Option<Reduce>,
    latents: Option<GivenLatents>,
}

impl Early {
    pub fn new(args: &GenerateArgs) -> Result<Self> {
        let device = device(args)?;
        let safety = &args.safety;
        let method: safety::Method = safety.safety.parse()?;
        check_safety_flags(safety, &args.model, method)?;
        let early = Self {
            device,
            prompts: prompts(args)?,
            seed: seed(args.seed)?,
            threads: threads(args.threads)?,
            method,
            concepts: concepts(safety)?,
            profile: safety.safety_profile.as_deref().map(SafetyProfile::resolve).transpose()?,
            gamma_schedule: safety.gamma_schedule.as_deref().map(GammaSchedule::resolve).transpose()?,
            window: safety.guide_steps.as_deref().map(str::parse).transpose()?,
            reduce: safety.reduce.as_deref().map(str::parse).transpose()?,
            latents: args.latents.as_deref().map(GivenLatents::open).transpose()?,
        };
        early.check_safety_text(args)?;
        if !(1..=100_000).contains(&args.steps) {
            let problem = format!("expected 1 to the model's training steps (1000), found {}", args.steps);
            return Err(Error::usage("--steps", problem));
        }
        Ok(early)
    }

    /// Number of images, if it is one that a run may have.
    pub fn images(&self, args: &GenerateArgs) -> Result<usize> {
        let images =
            self.prompts.len().checked_mul(args.batch_count).filter(|&n| n > 0 && n <= MAX_PROMPTS * 10);
        images.ok_or_else(|| {
            let problem = format!(
                "{} prompts with {} images each; a run makes 1 to {} images",
                self.prompts.len(),
                args.batch_count,
                MAX_PROMPTS * 10
            );
            Error::usage("--batch-count", problem)
        })
    }

    /// The whole request, for an opened model, and what pictures say of it.
    pub fn request(self, args: &GenerateArgs, model: &Model, stop: &Stop) -> Result<(Request, Value)> {
        let (width, height) = size(&args.size, model);
        let demo = args.model.model.is_none();
        let default_guidance = if demo { DEMO_GUIDANCE } else { DEFAULT_GUIDANCE };
        let method = self.method(args, model, demo)?;
        let mut request = Request {
            prompts: self.prompts,
            negative_prompt: args.negative_prompt.clone(),
            images_per_prompt: args.batch_count,
            batch_size: args.size.batch_size.unwrap_or(1),
            steps: args.steps,
            guidance_scale: args.guidance_scale.unwrap_or(default_guidance),
            seed: self.seed,
            width,
            height,
            eta: args.ddim_eta,
            rng: if args.rng == RngArg::Cpu { Rng::Cpu } else { Rng::Cuda },
            latents: None,
            method,
        };
        request.check(model.factor())?;
        let mut record = record(&request, model, self.device, &args.model);
        if let Some(given) = self.latents {
            // Its size first: a file may say anything of itself.
            request.check_latents(&given.shape(), model.factor())?;
            request.latents = Some(given.read()?);
            record["latents"] = given.record(stop)?;
        }
        Ok((request, record))
    }

    /// What SLD and negative prompts steer away from, as one text.
    fn safety_text(&self) -> String {
        self.concepts.as_ref().map_or_else(|| SAFETY_CONCEPT.to_owned(), |concepts| concepts.join(", "))
    }

    /// Checks the length of that text, with what else it is put behind.
    fn check_safety_text(&self, args: &GenerateArgs) -> Result<()> {
        let before = match self.method {
            safety::Method::NegativePrompt => args.negative_prompt.len() + ", ".len(),
            safety::Method::Sld(_) => 0,
            _ => return Ok(()),
        };
        let bytes = before + self.safety_text().len();
        if bytes <= MAX_PROMPT_BYTES {
            return Ok(());
        }
        let problem = format!(
            "--safety {} reads all concepts as one text, which has {bytes} bytes; at most {MAX_PROMPT_BYTES} are taken",
            self.method
        );
        Err(Error::usage(concept_flag(&args.safety), problem))
    }

    fn method(&self, args: &GenerateArgs, model: &Model, demo: bool) -> Result<Method> {
        Ok(match self.method {
            safety::Method::None => Method::None,
            safety::Method::NegativePrompt => Method::NegativePrompt { concept: self.safety_text() },
            safety::Method::Sld(config) => Method::Sld { config, concept: self.safety_text() },
            safety::Method::SafeSampling => Method::SafeSampling(self.guidance(&args.safety, model, demo)?),
            safety::Method::ClassifierGuidance { frozen_unet } => Method::ClassifierGuidance {
                guidance: self.guidance(&args.safety, model, demo)?,
                frozen_unet,
                gated: args.safety.gated,
            },
        })
    }

    /// The guard's settings: the profile's, with flags on top.
    fn guidance(&self, args: &SafetyArgs, model: &Model, demo: bool) -> Result<Guidance> {
        let clip = model.clip()?;
        let (needed, tuned) = match self.method {
            // There is no gate for a threshold to open.
            safety::Method::ClassifierGuidance { .. } if !args.gated => ("--gamma", args.gamma.is_some()),
            _ => ("--threshold and --gamma", args.threshold.is_some() && args.gamma.is_some()),
        };
        let profile = match &self.profile {
            Some(profile) => {
                // With a threshold and a strength of one's own, any profile will do for the rest.
                if let (Err(difference), false) = (profile.fits(&clip.identity()), tuned) {
                    let problem = format!(
                        "{difference}; its threshold and gamma mean nothing here: give {needed}, or a profile that \
                         was tuned with this CLIP"
                    );
                    return Err(Error::usage("--safety-profile", problem));
                }
                Some(profile.clone())
            }
            None => {
                let word = if demo { "demo" } else { "thesis-multi" };
                let default = SafetyProfile::built_in(word).expect("a built-in profile");
                let fit = default.fits(&clip.identity());
                if let (Err(_), false) = (&fit, tuned) {
                    let problem = format!(
                        "no built-in profile belongs to this CLIP, and a threshold or strength that was tuned with \
                         another one means nothing here: give {needed}, or a profile of its own with --safety-profile"
                    );
                    let flag = needed.split(' ').next().unwrap_or_default();
                    return Err(Error::usage(flag, problem));
                }
                fit.is_ok().then_some(default)
            }
        };
        let normalisation = match args.image_norm {
            Some(NormArg::Imagenet) => Some(Normalisation::Imagenet),
            Some(NormArg::Clip) => Some(Normalisation::Clip),
            None => profile.as_ref().map(|profile| profile.normalisation),
        };
        let (mean, std) = match normalisation.map(|normalisation| normalisation.mean_std()) {
            Some((mean, std)) => (mean.map(|v| v as f32), std.map(|v| v as f32)),
            None => (clip.mean, clip.std),
        };
        let fallback = || SafetyProfile::built_in("thesis-multi").expect("a built-in profile");
        let profile = profile.unwrap_or_else(fallback);
        Ok(Guidance {
            concepts: self.concepts.clone().unwrap_or(profile.concepts),
            threshold: args.threshold.unwrap_or(profile.threshold),
            above_threshold: args.gate == Some(GateArg::Above),
            gamma: args.gamma.unwrap_or(profile.gamma),
            gamma_schedule: self.gamma_schedule.clone().unwrap_or(profile.gamma_schedule),
            window: self.window.clone().or(profile.window),
            reduce: self.reduce.unwrap_or(profile.reduce),
            top_k: args.top_k.or(profile.top_k.filter(|_| self.concepts.is_none())),
            mean,
            std,
            gradient_scale_log2: profile.gradient_scale_log2 as i32,
        })
    }
}

/// Width and height in pixels.
pub fn size(args: &SizeArgs, model: &Model) -> (usize, usize) {
    let (width, height) = model.default_size();
    sides(&args.image, (width, height))
}

fn sides(args: &ImageArgs, (width, height): (usize, usize)) -> (usize, usize) {
    args.size.unwrap_or((args.width.unwrap_or(width), args.height.unwrap_or(height)))
}

/// The sizes of a model: of a published one by its name, or of the files that the flags name.
pub fn blueprint(
    args: &ModelArgs,
    preset: Option<&str>,
    demo: EmbeddedFiles,
    guard: bool,
) -> Result<Blueprint> {
    match preset {
        None => Ok(Blueprint::of(&open(args, demo, guard)?)),
        Some(name) => Blueprint::preset(name).ok_or_else(|| {
            let expected = Blueprint::PRESETS.join(", ");
            Error::usage("--preset", format!("expected one of {expected}; found `{name}`"))
        }),
    }
}

/// Width and height in pixels, checked together with the batch.
pub fn checked_size(args: &ImageArgs, batch: usize, blueprint: &Blueprint) -> Result<(usize, usize)> {
    let (width, height) = sides(args, blueprint.size);
    for (flag, side) in [("--width", width), ("--height", height)] {
        check_side(flag, side, blueprint.decoder.factor())?;
    }
    if !(1..=MAX_BATCH).contains(&batch) {
        return Err(Error::usage("--batch-size", format!("expected 1 to {MAX_BATCH}, found {batch}")));
    }
    Ok((width, height))
}

/// Flags that the chosen method would silently ignore are mistakes.
fn check_safety_flags(args: &SafetyArgs, model: &ModelArgs, method: safety::Method) -> Result<()> {
    let guard_flags = [
        ("--clip", model.clip.is_some()),
        ("--taesd", model.taesd.is_some()),
        ("--threshold", args.threshold.is_some()),
        ("--gamma", args.gamma.is_some()),
        ("--gate", args.gate.is_some()),
        ("--image-norm", args.image_norm.is_some()),
        ("--top-k", args.top_k.is_some()),
        ("--reduce", args.reduce.is_some()),
        ("--gamma-schedule", args.gamma_schedule.is_some()),
        ("--guide-steps", args.guide_steps.is_some()),
        ("--safety-profile", args.safety_profile.is_some()),
    ];
    let given = guard_flags.iter().find(|(_, given)| *given && !method.uses_guard());
    if let Some((flag, _)) = given {
        return Err(Error::usage(*flag, format!("does nothing with --safety {method}")));
    }
    let classifier = matches!(method, safety::Method::ClassifierGuidance { .. });
    if args.gated && !classifier {
        return Err(Error::usage("--gated", format!("does nothing with --safety {method}")));
    }
    let gate_flags = [("--threshold", args.threshold.is_some()), ("--gate", args.gate.is_some())];
    if let (Some((flag, _)), true) = (gate_flags.iter().find(|(_, given)| *given), classifier && !args.gated)
    {
        let problem = format!("does nothing with --safety {method}, which has no gate; add --gated");
        return Err(Error::usage(*flag, problem));
    }
    let concepts = !args.concept.is_empty() || args.concepts.is_some();
    if concepts && method == safety::Method::None {
        return Err(Error::usage(concept_flag(args), "does nothing with --safety none"));
    }
    if let Some(gamma) = args.gamma.filter(|gamma| !(gamma.is_finite() && *gamma >= 0.0)) {
        return Err(Error::usage("--gamma", format!("expected a finite number, 0 or more, found {gamma}")));
    }
    if let Some(threshold) = args.threshold.filter(|threshold| !(-1.0..=1.0).contains(threshold)) {
        return Err(Error::usage("--threshold", format!("expected a cosine, -1 to 1, found {threshold}")));
    }
    Ok(())
}

/// The flag that concepts were given by.
fn concept_flag(args: &SafetyArgs) -> &'static str {
    if args.concepts.is_some() { "--concepts" } else { "--concept" }
}

/// What a list of concepts takes, the tokenizer takes.
const _: () = assert!(MAX_CONCEPT_BYTES <= MAX_PROMPT_BYTES);

fn concepts(args: &SafetyArgs) -> Result<Option<Vec<String>>> {
    let concepts = match &args.concepts {
        Some(word) => Some(Concepts::resolve(word)?),
        None if !args.concept.is_empty() => Some(Concepts::from_flags(&args.concept)?),
        None => None,
    };
    Ok(concepts.map(|concepts| concepts.texts().to_vec()))
}

fn prompts(args: &GenerateArgs) -> Result<Vec<String>> {
    let given = if args.prompt.is_empty() { &args.positional } else { &args.prompt };
    if given.iter().filter(|text| *text == "-").count() > 1 {
        return Err(Error::usage("--prompt", "stdin (`-`) holds one prompt and can be named only once"));
    }
    let prompts = match &args.prompt_file {
        Some(path) => prompt_file(path)?,
        None => given.iter().map(|text| stdin_or(text)).collect::<Result<_>>()?,
    };
    if prompts.is_empty() {
        return Err(Error::usage("--prompt", "nothing to draw: give a prompt, such as -p \"a cat\""));
    }
    for text in &prompts {
        check_length("--prompt", text)?;
    }
    check_length("--negative-prompt", &args.negative_prompt)?;
    Ok(prompts)
}

fn check_length(flag: &str, text: &str) -> Result<()> {
    if text.len() <= MAX_PROMPT_BYTES {
        return Ok(());
    }
    Err(Error::usage(flag, format!("{} bytes of text; at most {MAX_PROMPT_BYTES} are taken", text.len())))
}

fn stdin_or(text: &str) -> Result<String> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    // Two bytes more than a prompt may have: room for the end of its line.
    let mut bytes = Vec::new();
    let limit = MAX_PROMPT_BYTES as u64 + 2;
    let read = std::io::stdin().lock().take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::io("read", "(stdin)", error))?;
    if bytes.len() as u64 > limit {
        let problem = format!("more than {MAX_PROMPT_BYTES} bytes on stdin; that many are taken");
        return Err(Error::usage("--prompt", problem));
    }
    let prompt = String::from_utf8(bytes).map_err(|_| Error::input("(stdin)", "the prompt is not UTF-8"))?;
    Ok(prompt.trim_end_matches(['\r', '\n']).to_owned())
}

fn prompt_file(path: &Path) -> Result<Vec<String>> {
    let text = read_user_text(path, MAX_PROMPT_FILE_BYTES)?;
    let lines = text.lines().map(|line| line.trim_end_matches('\r'));
    let prompts: Vec<String> = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if !(1..=MAX_PROMPTS).contains(&prompts.len()) {
        let problem = format!("expected 1 to {MAX_PROMPTS} prompts, one a line, found {}", prompts.len());
        return Err(Error::input(path, problem));
    }
    Ok(prompts)
}

fn seed(given: Option<i128>) -> Result<u64> {
    match given {
        None => Ok(random_seed()),
        Some(seed) if seed < 0 => Ok(random_seed()),
        Some(seed) => u64::try_from(seed)
            .map_err(|_| Error::usage("--seed", format!("expected 0 to {}, found {seed}", u64::MAX))),
    }
}

/// A seed that is easy to copy: below 2^32, from the operating system's randomness.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.finish() & u64::from(u32::MAX)
}

fn threads(given: Option<usize>) -> Result<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match given {
        None => Ok(cores),
        Some(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        Some(threads) => {
            Err(Error::usage("--threads", format!("expected 1 to {MAX_THREADS}, found {threads}")))
        }
    }
}
