//! `unguide doctor`: what this machine has, and whether a picture comes out right on it.

use serde_json::json;

use super::args::DoctorArgs;
use super::{print_line, settings};
use crate::backend::Stop;
use crate::cpu::{self, Cpu};
use crate::cuda;
use crate::error::{Error, Result};
use crate::pipeline::{Guidance, Method, Request, Trace, generate};
use crate::safety::SafetyProfile;
use crate::sampler::Rng;
use crate::weights::EmbeddedFiles;

/// Steps of the self-test: enough for the gate to open and shut.
const STEPS: usize = 8;
/// Those of the golden traces.
const THRESHOLD: f64 = 0.3;
const GAMMA: f64 = 32.0;
/// The mean of the self-test's pixels, a channel, as PyTorch computes it (`tests/golden/make_demo.py` with
/// these settings), and how far ours may be off.
const EXPECTED: [f64; 3] = [0.557_216_1, 0.703_580_6, 0.850_562_8];
const TOLERANCE: f64 = 1e-4;

pub fn run(args: &DoctorArgs, demo: EmbeddedFiles) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let gpus = cuda::gpus();
    let test = self_test(demo)?;
    let right = test.mean.iter().zip(EXPECTED).all(|(got, want)| (got - want).abs() <= TOLERANCE);
    if args.json {
        let gpus: Vec<_> = gpus
            .iter()
            .flatten()
            .map(|gpu| {
                let (major, minor) = gpu.compute_capability;
                json!({
                    "name": gpu.name, "memory_bytes": gpu.memory_bytes,
                    "compute_capability": format!("{major}.{minor}"), "target": gpu.target().ok(),
                })
            })
            .collect();
        print_line(json!({
            "version": env!("CARGO_PKG_VERSION"), "threads": threads, "simd": cpu::simd(), "gpus": gpus,
            "self_test": { "passed": right, "seconds": test.seconds, "mean": test.mean, "gate_opened": test.opened },
        }))?;
    } else {
        print_line(format!("version    {}", env!("CARGO_PKG_VERSION")))?;
        print_line(format!("cpu        {threads} threads, {}", cpu::simd()))?;
        match &gpus {
            Err(problem) => print_line(format!("cuda       {problem}"))?,
            Ok(gpus) if gpus.is_empty() => print_line("cuda       a driver, but no GPU")?,
            Ok(gpus) => {
                for gpu in gpus {
                    let (major, minor) = gpu.compute_capability;
                    let gib = gpu.memory_bytes as f64 / (1u64 << 30) as f64;
                    let kernels = match (cuda::usable(gpu.ordinal), gpu.target()) {
                        (Ok(_), Ok(target)) => format!("kernels for {target}"),
                        (Err(error), _) => error.to_string(),
                        (_, Err(problem)) => problem,
                    };
                    print_line(format!(
                        "cuda:{}     {}, {gib:.1} GiB, compute capability {major}.{minor}, {kernels}",
                        gpu.ordinal, gpu.name
                    ))?;
                }
            }
        }
        let simt = if cfg!(feature = "simt") { ", simt" } else { "" };
        let usable = cuda::usable(0).is_ok();
        print_line(format!("backends   cpu{simt}{}", if usable { ", cuda" } else { "" }))?;
        let verdict = if right { "right" } else { "WRONG" };
        print_line(format!(
            "self-test  {verdict}: {STEPS} guarded steps of the demo model in {:.2} s, gate open at {}",
            test.seconds, test.opened
        ))?;
    }
    if right {
        return Ok(());
    }
    Err(Error::Bug(format!("the self-test's image has mean {:?}, not {EXPECTED:?}", test.mean)))
}

struct SelfTest {
    mean: [f64; 3],
    opened: usize,
    seconds: f64,
}

/// A guarded image of the demo model, judged by its mean colour.
fn self_test(demo: EmbeddedFiles) -> Result<SelfTest> {
    let model = settings::open(&Default::default(), demo, true)?;
    let profile = SafetyProfile::built_in("demo").expect("a built-in profile");
    let (mean, std) = profile.normalisation.mean_std();
    let (width, height) = model.default_size();
    let request = Request {
        prompts: vec!["a skull on a blue background".to_owned()],
        negative_prompt: String::new(),
        images_per_prompt: 1,
        batch_size: 1,
        steps: STEPS,
        guidance_scale: 5.0,
        seed: 7,
        width,
        height,
        eta: 0.0,
        rng: Rng::Cpu,
        latents: None,
        method: Method::SafeSampling(Guidance {
            concepts: profile.concepts,
            threshold: THRESHOLD,
            above_threshold: false,
            gamma: GAMMA,
            gamma_schedule: profile.gamma_schedule,
            window: None,
            reduce: profile.reduce,
            top_k: profile.top_k,
            mean: mean.map(|v| v as f32),
            std: std.map(|v| v as f32),
            gradient_scale_log2: profile.gradient_scale_log2 as i32,
        }),
    };
    let mut trace = Trace::default();
    let start = std::time::Instant::now();
    generate(&model, &Cpu::<f32>::new(), &request, &mut trace, &Stop::default())?;
    let seconds = start.elapsed().as_secs_f64();
    let pixels = trace.get("final.image").ok_or_else(|| Error::Bug("a run without an image".into()))?;
    let channel = |c: usize| {
        let plane = &pixels.data()[c * width * height..(c + 1) * width * height];
        plane.iter().map(|&v| f64::from(v)).sum::<f64>() / plane.len() as f64
    };
    let gates = (0..STEPS).filter_map(|step| trace.get(&format!("step.{step:03}.gate")));
    let opened = gates.filter(|gate| gate.data()[0] != 0.0).count();
    Ok(SelfTest { mean: [channel(0), channel(1), channel(2)], opened, seconds })
}
