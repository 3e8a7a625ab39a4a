//! The command line as types. Flag letters follow stable-diffusion.cpp, words follow diffusers; other
//! tools' words are aliases, so that pasted commands work.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

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

/// Flags of [`ModelArgs`], which name files: the sizes of a published model are in none.
const OF_FILES: [&str; 7] = ["model", "clip", "vae", "taesd", "tokenizer", "prediction_type", "mmap"];

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

#[derive(Args, Debug)]
pub struct InspectArgs {
    #[command(subcommand)]
    pub what: InspectWhat,
}

#[derive(Debug, Subcommand)]
pub enum InspectWhat {
    /// Files, architecture, sizes.
    Model(InspectModelArgs),
    /// The operations of one denoising step.
    Graph(InspectStepArgs),
    /// The same with the place of every result, and the memory that it takes.
    Plan(InspectPlanArgs),
    /// The kernels that a GPU would run for it, one a line, with what each costs at least. Needs no GPU.
    Launches(InspectLaunchesArgs),
    /// How long each of its distinct launches is likely to take on a GPU, and how far from its floor that is. A model's
    /// word, not a measurement.
    Kernels(InspectLaunchesArgs),
}

#[derive(Args, Debug)]
pub struct InspectModelArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// One JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct InspectStepArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Sizes of a published model, without its weights: sd15, sd21-base or sd21.
    #[arg(long, value_name = "NAME", conflicts_with_all = OF_FILES)]
    pub preset: Option<String>,

    #[command(flatten)]
    pub size: SizeArgs,

    /// As for `generate`.
    #[arg(long, value_name = "METHOD", default_value = "safe-sampling")]
    pub safety: String,

    /// One JSON line an operation.
    #[arg(long)]
    pub json: bool,
}

const BENCH_KERNELS_HELP: &str = "\
A line of --json: kernel, arch, shape, node, uses, grid, block; flops and bytes (each operand once), floor_us of
floor_gpu (none where no device of the target is known), device (none where nothing is measured); registers,
smem_bytes, spill_bytes, waves, blocks_per_multiprocessor, occupancy, occupancy_bound; instructions by class,
where nvdisasm is; simt, where the build has the SIMT layer: what the first, the middle and the last block did
together (`blocks` of `of_blocks`). On a GPU also time_us (the median), tflops, gb_per_second, of_floor (floor
over time), times (percentiles and variation, which is steady up to 1 %), batch, copies, cold_l2, of_tolerance;
or not_measured, the reason.

A launch is measured with the operation that it belongs to. Every element of that operation's result is compared
with what the CPU computes from the same operands before anything is timed, and again, bit by bit, with what the
device computes afterwards; a launch that fails gets no time. Times are of batches, one graph of launches each.
From sm_90 on these overlap like those of a step: a launch begins before the one in front has ended, and its time
is what it adds there, less than it takes alone (UNGUIDE_CUDA_OVERLAP=0 turns that off). The clocks are whatever
the device makes of them.";

#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: BenchWhat,
}

#[derive(Subcommand, Debug)]
pub enum BenchWhat {
    /// Every distinct kernel launch of whole models: its floor, what it takes, what holds it back, and on a GPU how
    /// long it takes
    #[command(after_help = BENCH_KERNELS_HELP)]
    Kernels(BenchKernelsArgs),
}

#[derive(Args, Debug)]
pub struct BenchKernelsArgs {
    /// Only launches with this in their kernel's name, shape or node; several: any of them.
    #[arg(long, value_name = "TEXT")]
    pub filter: Vec<String>,

    /// Only launches of kernels whose names begin with this; several: any of them.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub kernel: Vec<String>,

    /// No launches of kernels whose names begin with this; several: none of them.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub no_kernel: Vec<String>,

    /// The models whose launches are taken: sd15, sd21-base, sd21, demo, and odd, the sizes that no tuned form takes
    /// [default: sd15, sd21 and odd]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub preset: Vec<String>,

    /// Images at a time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch_size: usize,

    /// Where launches are measured: auto (a GPU if there is one), none, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,

    /// Milliseconds that a launch runs before it is measured.
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub warm_up: u64,

    /// Milliseconds that a launch is measured, twenty batches at least.
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub duration: u64,

    /// Leaves operands in the device's cache; else launches go round among copies that do not fit into it.
    #[arg(long)]
    pub hot: bool,

    /// Binaries looked at: sm_80, sm_90a, sm_100, sm_120, compute_80 [default: the device's, else sm_90a]
    #[arg(long, value_name = "TARGET")]
    pub arch: Option<String>,

    /// The device of the floors: h100, h200, a100, rtx4090 [default: the one that measures, if it is known, else the
    /// first that runs the target; none where no such device is known]
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,

    /// What activations and weights are stored in: f16 or bf16 [default: f16]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<DTypeArg>,

    /// One JSON line a launch.
    #[arg(long)]
    pub json: bool,
}

impl BenchKernelsArgs {
    /// Whether launches of a kernel of that name are looked at, by `--kernel` and `--no-kernel`.
    pub fn picks(&self, kernel: &str) -> bool {
        let begins = |prefixes: &[String]| prefixes.iter().any(|prefix| kernel.starts_with(&**prefix));
        (self.kernel.is_empty() || begins(&self.kernel)) && !begins(&self.no_kernel)
    }
}

#[derive(Args, Debug)]
pub struct InspectPlanArgs {
    #[command(flatten)]
    pub step: InspectStepArgs,

    /// f16 and bf16 are plans for a GPU, with the operations that it runs as one; f32 is the CPU backend's.
    #[arg(long, value_enum, default_value_t = DTypeArg::F32, visible_alias = "type")]
    pub dtype: DTypeArg,
}

#[derive(Args, Debug)]
pub struct InspectLaunchesArgs {
    #[command(flatten)]
    pub step: InspectStepArgs,

    /// What the kernels are compiled for: sm_80, sm_90a, sm_100, sm_120 or compute_80 [default: that of --gpu, else
    /// sm_90a]
    #[arg(long, value_name = "TARGET")]
    pub arch: Option<String>,

    /// Whose limits the floors are: h100, h200, a100 or rtx4090 [default: the first that --arch runs on]
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,

    /// f16 or bf16 [default: f16]
    #[arg(long, value_enum, visible_alias = "type")]
    pub dtype: Option<DTypeArg>,
}

#[derive(Args, Debug)]
pub struct MemoryArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Sizes of a published model, without its weights: sd15, sd21-base or sd21 (--model takes the names too).
    #[arg(long, value_name = "NAME", conflicts_with_all = OF_FILES)]
    pub preset: Option<String>,

    /// Methods, one or several [default: all]
    #[arg(long, value_enum, value_name = "WORD", value_delimiter = ',')]
    pub method: Vec<MemoryMethod>,

    /// Gradients with respect to what, one or several [default: all that the methods have]
    #[arg(long, value_enum, value_name = "WORD", value_delimiter = ',')]
    pub gradient: Vec<GradientArg>,

    #[command(flatten)]
    pub image: ImageArgs,

    /// Images that are denoised together, one or several numbers [default: 1]
    #[arg(long, value_name = "N", value_delimiter = ',', visible_alias = "bsize")]
    pub batch_size: Vec<usize>,

    /// f16 and bf16 are plans for a GPU, f32 those of the CPU backend; one or several [default: f16]
    #[arg(long, value_enum, value_delimiter = ',', visible_alias = "type")]
    pub dtype: Vec<DTypeArg>,

    /// Bytes that everything is to fit into, such as 3200000000, 3.2GB or 3GiB.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_vram: Option<usize>,

    /// Every plan that is worth having, from no extra work to the least memory.
    #[arg(long, conflicts_with = "max_vram")]
    pub frontier: bool,

    /// Count the text encoder only while texts are encoded, as `generate` has it.
    #[arg(long)]
    pub release_text: bool,

    /// One JSON line a row.
    #[arg(long)]
    pub json: bool,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MemoryMethod {
    Plain,
    Sld,
    Safe,
    SafeTaesd,
    Classifier,
}

impl MemoryMethod {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Sld => "sld",
            Self::Safe => "safe",
            Self::SafeTaesd => "safe-taesd",
            Self::Classifier => "classifier",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GradientArg {
    None,
    /// With respect to the predicted clean latents: through decoder and CLIP.
    X0,
    /// With respect to the noisy latents: through the UNet as well.
    #[value(alias = "x_t")]
    Xt,
}

impl GradientArg {
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::X0 => "x0",
            Self::Xt => "xt",
        }
    }
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
