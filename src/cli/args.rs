//! The command line as types. Flag letters follow stable-diffusion.cpp, words follow diffusers; other
//! tools' words are aliases, so that pasted commands work.

mod tools;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

pub use tools::*;

/// Safe text-to-image generation: diffusion that steers away from named concepts.
#[derive(Debug, Parser)]
#[command(name = "unguide", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// More words on stderr; twice for every decision.
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 900)]
    pub verbose: u8,

    /// Nothing but errors on stderr.
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 901)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make images from prompts.
    Generate(Box<GenerateArgs>),
    /// Show what a model is, and what would run, without running it.
    Inspect(Box<InspectArgs>),
    /// Say what a generation takes in memory, by class, for every method; nothing runs and no weight is read.
    Memory(Box<MemoryArgs>),
    /// Measure, and say what could be had at best.
    Bench(BenchArgs),
    /// Look at this machine: what was found, what was not, and whether a picture comes out right on its CPU and its GPUs.
    Doctor(DoctorArgs),
}

/// Which model, and what of it to replace.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// A diffusers directory or an LDM-named .safetensors file [default: the embedded demo model]
    #[arg(short, long, value_name = "DIR|FILE", visible_alias = "ckpt")]
    pub model: Option<PathBuf>,

    /// The guard's CLIP: a transformers CLIPModel directory [default: clip/ in the model's directory]
    #[arg(long, value_name = "DIR|FILE")]
    pub clip: Option<PathBuf>,

    /// Another VAE: a diffusers AutoencoderKL directory or file.
    #[arg(long, value_name = "DIR|FILE", visible_alias = "vae-weights")]
    pub vae: Option<PathBuf>,

    /// A tiny VAE (TAESD) through which the guard looks; images are still decoded by the full one.
    #[arg(long, value_name = "DIR|FILE", visible_alias = "tae")]
    pub taesd: Option<PathBuf>,

    /// A directory with tokenizer.json, or vocab.json and merges.txt, for models that bring none.
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,

    /// What the UNet predicts, where the model does not say it.
    #[arg(long, value_enum, value_name = "WHAT")]
    pub prediction_type: Option<PredictionArg>,

    /// Use weights where they lie in the files: what a run on the CPU need not convert (f32 matrices and vectors)
    /// is mapped and not copied. A file that is cut short meanwhile ends the process.
    #[arg(long)]
    pub mmap: bool,
}

/// How large, and how many at a time.
#[derive(Args, Clone, Debug, Default)]
pub struct SizeArgs {
    #[command(flatten)]
    pub image: ImageArgs,

    /// Images that are denoised together; their pixels do not depend on it [default: what fills a GPU and fits, 1 on
    /// other devices]
    #[arg(long, value_name = "N", visible_alias = "bsize")]
    pub batch_size: Option<usize>,
}

/// What to steer away from, and how.
#[derive(Args, Clone, Debug, Default)]
pub struct SafetyArgs {
    /// none, safe-sampling, negative-prompt, sld[:weak|weak-200|medium|strong|max] or
    /// classifier-guidance[:frozen-unet]
    #[arg(long, value_name = "METHOD", default_value = "safe-sampling")]
    pub safety: String,

    /// Let classifier guidance act only where a score reaches the threshold.
    #[arg(long)]
    pub gated: bool,

    /// A concept to steer away from; repeat for several.
    #[arg(long, value_name = "TEXT", conflicts_with = "concepts")]
    pub concept: Vec<String>,

    /// Concepts from a file, one a line, or a list by name: thesis-single, thesis-multi, sd-filter.
    #[arg(long, value_name = "FILE|NAME")]
    pub concepts: Option<String>,

    /// The score from which an image is steered [default: the profile's]
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true)]
    pub threshold: Option<f64>,

    /// Whether a score at the threshold opens the gate, or only one above it [default: at-least]
    #[arg(long, value_enum, value_name = "WORD")]
    pub gate: Option<GateArg>,

    /// Mean and deviation of the guard's pixels [default: the profile's, else those of the CLIP's files]
    #[arg(long, value_enum, value_name = "WORD")]
    pub image_norm: Option<NormArg>,

    /// How far an image is steered [default: the profile's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub gamma: Option<f64>,

    /// Only the K highest scores count.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,

    /// How scores become one density: log-mean or sum-log.
    #[arg(long, value_name = "WORD")]
    pub reduce: Option<String>,

    /// constant, linear, cosine, or a file with one factor a step.
    #[arg(long, value_name = "WORD|FILE")]
    pub gamma_schedule: Option<String>,

    /// The steps at which the guard looks, from A up to but not including B, or a share of
    /// the run [default: the profile's]
    #[arg(long, value_name = "A..B|A%..B%")]
    pub guide_steps: Option<String>,

    /// A profile by name (thesis-single, thesis-multi, thesis-sd-filter, demo) or from a JSON file.
    #[arg(long, value_name = "FILE|NAME")]
    pub safety_profile: Option<String>,
}

#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// What to draw; repeat for several. `-` reads one prompt from stdin.
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Vec<String>,

    /// What to draw, as with --prompt.
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    pub positional: Vec<String>,

    /// Prompts from a file, one a line.
    #[arg(long, value_name = "FILE", visible_alias = "from-file", conflicts_with_all = ["prompt", "positional"])]
    pub prompt_file: Option<PathBuf>,

    /// What not to draw.
    #[arg(
        short,
        long,
        value_name = "TEXT",
        default_value = "",
        visible_alias = "uncond-prompt",
        hide_default_value = true
    )]
    pub negative_prompt: String,

    #[command(flatten)]
    pub model: ModelArgs,

    /// A .png file, a directory, or a pattern with one %d or %03d. `-` is stdout.
    #[arg(short, long, value_name = "FILE|DIR|PATTERN", default_value = "outputs/",
          visible_aliases = ["output-dir", "outdir", "final-image"])]
    pub output: String,

    /// Replace files that exist.
    #[arg(long)]
    pub overwrite: bool,

    /// Denoising steps.
    #[arg(long, value_name = "N", default_value_t = 50,
          visible_aliases = ["num-inference-steps", "denoising-steps", "ddim-steps", "n-steps"])]
    pub steps: usize,

    /// Classifier-free guidance; 1 or less turns it off [default: 7.5; the demo model: 5]
    #[arg(long, value_name = "G", visible_aliases = ["cfg-scale", "scale"], allow_negative_numbers = true)]
    pub guidance_scale: Option<f64>,

    /// Image i of the run starts from seed + i; negative means random [default: random, and printed]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<i128>,

    #[command(flatten)]
    pub size: SizeArgs,

    /// Images of every prompt.
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 1,
        visible_alias = "num-images",
        short_alias = 'N'
    )]
    pub batch_count: usize,

    /// The sampler.
    #[arg(long, value_enum, default_value_t = Sampler::Ddim, visible_alias = "sampling-method")]
    pub sampler: Sampler,

    /// Noise that DDIM puts back at every step: 0 none, 1 as much as DDPM.
    #[arg(long, value_name = "E", default_value_t = 0.0, allow_negative_numbers = true)]
    pub ddim_eta: f64,

    /// Whose noise: torch's CPU generator or its CUDA generator (both computed here).
    #[arg(long, value_enum, default_value_t = RngArg::Cpu, visible_alias = "randn-source")]
    pub rng: RngArg,

    /// The start noise: a .safetensors file with the key `latents`, [images, 4, h, w] in f32.
    #[arg(long, value_name = "FILE")]
    pub latents: Option<PathBuf>,

    #[command(flatten)]
    pub safety: SafetyArgs,

    /// auto, cpu, simt[:ARCH] or cuda[:N]
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,

    /// The same as `--device cpu`.
    #[arg(long, conflicts_with = "device", hide = true)]
    pub cpu: bool,

    /// What weights and activations are stored in [default: f32 on cpu, which takes no other; f16 elsewhere]
    #[arg(long, value_enum, visible_alias = "type")]
    pub dtype: Option<DTypeArg>,

    /// Bytes that the run may take, such as 300MB: activations are computed twice where that saves enough.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_vram: Option<usize>,

    /// Threads [default: one a core]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,

    /// Every tensor of every step, into a .safetensors file.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// One JSON line an image on stdout: file, seed, scores and gate of every step.
    #[arg(long)]
    pub json: bool,

    /// Do not store prompt and settings in the image.
    #[arg(long)]
    pub no_metadata: bool,
}

/// How large an image.
#[derive(Args, Clone, Debug, Default)]
pub struct ImageArgs {
    /// Width in pixels [default: the model's]
    #[arg(short = 'W', long, value_name = "PIXELS")]
    pub width: Option<usize>,

    /// Height in pixels [default: the model's]
    #[arg(short = 'H', long, value_name = "PIXELS")]
    pub height: Option<usize>,

    /// Both at once, as WIDTHxHEIGHT.
    #[arg(long, value_name = "WxH", conflicts_with_all = ["width", "height"], value_parser = parse_size)]
    pub size: Option<(usize, usize)>,
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sampler {
    Ddim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RngArg {
    #[value(alias = "CPU")]
    Cpu,
    #[value(aliases = ["CUDA", "gpu", "nv"])]
    Cuda,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GateArg {
    AtLeast,
    Above,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NormArg {
    Imagenet,
    Clip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PredictionArg {
    Epsilon,
    #[value(name = "v_prediction", alias = "v")]
    VPrediction,
    Sample,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DTypeArg {
    F32,
    F16,
    Bf16,
}

/// A number of bytes, with the usual words for thousands and their binary relatives.
fn parse_bytes(text: &str) -> Result<usize, String> {
    let wrong = || format!("expected bytes, such as 3200000000, 3.2GB or 3GiB, found `{text}`");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    if factor == 1 {
        return number.parse().map_err(|_| wrong());
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * factor as f64;
    if bytes < 1e18 { Ok(bytes as usize) } else { Err(wrong()) }
}

fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once(['x', 'X']).and_then(|(w, h)| w.parse().ok().zip(h.parse().ok()));
    sides.ok_or_else(|| format!("expected WIDTHxHEIGHT such as 512x512, found `{text}`"))
}
