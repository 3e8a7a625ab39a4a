//! What looks into a run without making an image: `inspect`, `memory` and `bench`.

use clap::{Args, Subcommand, ValueEnum};

use super::{DTypeArg, ImageArgs, ModelArgs, SizeArgs, parse_bytes};

/// Flags of [`ModelArgs`], which name files: the sizes of a published model are in none.
const OF_FILES: [&str; 7] = ["model", "clip", "vae", "taesd", "tokenizer", "prediction_type", "mmap"];

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
