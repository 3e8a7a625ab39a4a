//! `unguide doctor`: what this machine has, and whether a picture comes out right on its CPU and its GPUs.

use serde_json::{Value, json};

use super::args::DoctorArgs;
use super::{print_line, settings};
use crate::backend::{Backend, Stop};
use crate::cpu::{self, Cpu};
use crate::cuda::{self, CudaDevice, Gpu};
use crate::error::{Error, Result};
use crate::launch::Storage;
use crate::pipeline::{Guidance, Method, Model, Request, Trace, generate};
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

/// The same where weights and results are rounded to f16: the kernels are off by 6e-5 on the simulated device.
const TOLERANCE_F16: f64 = 1e-3;

pub fn run(args: &DoctorArgs, demo: EmbeddedFiles) -> Result<()> {
    let model = settings::open(&Default::default(), demo, true)?;
    let (gpus, cuda_problem) = match cuda::gpus() {
        Ok(gpus) if gpus.is_empty() => (gpus, Some("a driver, but no GPU".to_owned())),
        Ok(gpus) => (gpus, None),
        Err(problem) => (Vec::new(), Some(problem)),
    };
    let report = Report {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        cpu: self_test(&model, &Cpu::<f32>::new(), TOLERANCE)?,
        gpus: gpus.into_iter().map(|gpu| Checked::new(gpu, &model)).collect(),
        cuda_problem,
        nvrtc: cuda::nvrtc_version(),
    };
    if args.json {
        print_line(report.json())?;
    } else {
        report.lines().iter().try_for_each(print_line)?;
    }
    report.verdict()
}

/// What was found.
struct Report {
    threads: usize,
    cpu: SelfTest,
    gpus: Vec<Checked>,
    /// Why there is no GPU.
    cuda_problem: Option<String>,
    /// Its version, or why there is none.
    nvrtc: Result<String, String>,
}

/// A GPU, and what came of a picture that was made on it: the error if none could be.
struct Checked {
    gpu: Gpu,
    /// Why our kernels do not run there.
    problem: Option<String>,
    test: Option<Result<SelfTest>>,
}

impl Checked {
    fn new(gpu: Gpu, model: &Model) -> Self {
        if let Err(error) = cuda::usable(gpu.ordinal) {
            return Self { gpu, problem: Some(error.to_string()), test: None };
        }
        let device = CudaDevice::open(&gpu, Storage::F16, None);
        let test = device.and_then(|device| self_test(model, &device, TOLERANCE_F16));
        Self { gpu, problem: None, test: Some(test) }
    }

    fn word(&self) -> String {
        format!("cuda:{}", self.gpu.ordinal)
    }

    fn capability(&self) -> String {
        let (major, minor) = self.gpu.compute_capability;
        format!("{major}.{minor}")
    }

    fn json(&self) -> Value {
        let test = self.test.as_ref().map(|test| match test {
            Ok(test) => test.json(),
            Err(error) => json!({ "passed": false, "problem": error.to_string() }),
        });
        json!({
            "name": self.gpu.name, "memory_bytes": self.gpu.memory_bytes,
            "compute_capability": self.capability(), "target": self.gpu.target().ok(),
            "problem": self.problem, "self_test": test,
        })
    }

    fn line(&self) -> String {
        let gib = self.gpu.memory_bytes as f64 / (1u64 << 30) as f64;
        let kernels = match &self.problem {
            Some(problem) => problem.clone(),
            None => {
                self.gpu.target().map_or_else(|problem| problem, |target| format!("kernels for {target}"))
            }
        };
        let (word, name, capability) = (self.word(), &self.gpu.name, self.capability());
        format!("{word:<10} {name}, {gib:.1} GiB, compute capability {capability}, {kernels}")
    }
}

impl Report {
    fn backends(&self) -> Vec<&'static str> {
        let cuda = self.gpus.iter().any(|gpu| gpu.problem.is_none());
        let all = [("cpu", true), ("simt", cfg!(feature = "simt")), ("cuda", cuda)];
        all.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
    }

    fn json(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"), "threads": self.threads, "simd": cpu::simd(),
            "gpus": self.gpus.iter().map(Checked::json).collect::<Vec<_>>(), "cuda_problem": self.cuda_problem,
            "kernels": {
                "binaries": cuda::embedded(), "nvrtc": self.nvrtc.as_ref().ok(), "nvrtc_problem": self.nvrtc.as_ref().err(),
            },
            "backends": self.backends(), "self_test": self.cpu.json(),
        })
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("version    {}", env!("CARGO_PKG_VERSION")),
            format!("cpu        {} threads, {}", self.threads, cpu::simd()),
        ];
        lines.extend(self.cuda_problem.iter().map(|problem| format!("cuda       {problem}")));
        lines.extend(self.gpus.iter().map(Checked::line));
        let targets = cuda::embedded().join(", ");
        lines.push(match (targets.is_empty(), &self.nvrtc) {
            (true, Ok(version)) => {
                format!("kernels    sources, which NVRTC {version} compiles when they are needed")
            }
            (true, Err(problem)) => format!("kernels    sources alone: {problem}"),
            (false, Ok(version)) => format!("kernels    binaries for {targets}; NVRTC {version}"),
            (false, Err(_)) => format!("kernels    binaries for {targets}; no NVRTC, which they do not need"),
        });
        lines.push(format!("backends   {}", self.backends().join(", ")));
        lines.push(self.cpu.line("cpu"));
        for gpu in &self.gpus {
            lines.extend(gpu.test.as_ref().map(|test| match test {
                Ok(test) => test.line(&gpu.word()),
                Err(error) => format!("self-test  WRONG: {error}"),
            }));
        }
        lines
    }

    /// The first backend whose picture is not what it should be.
    fn verdict(self) -> Result<()> {
        if let Some(problem) = self.cpu.problem() {
            return Err(Error::Bug(problem));
        }
        for gpu in self.gpus {
            let device = gpu.word();
            if let Some(problem) = gpu.test.transpose()?.and_then(|test| test.problem()) {
                return Err(Error::Device { device, problem });
            }
        }
        Ok(())
    }
}

struct SelfTest {
    mean: [f64; 3],
    /// How far each channel may be off.
    tolerance: f64,
    opened: usize,
    seconds: f64,
}

impl SelfTest {
    fn passed(&self) -> bool {
        self.mean.iter().zip(EXPECTED).all(|(got, want)| (got - want).abs() <= self.tolerance)
    }

    fn problem(&self) -> Option<String> {
        (!self.passed()).then(|| format!("the self-test's image has mean {:?}, not {EXPECTED:?}", self.mean))
    }

    fn json(&self) -> Value {
        json!({
            "passed": self.passed(), "seconds": self.seconds, "mean": self.mean, "gate_opened": self.opened,
        })
    }

    fn line(&self, device: &str) -> String {
        let verdict = if self.passed() { "right" } else { "WRONG" };
        format!(
            "self-test  {verdict}: {STEPS} guarded steps of the demo model on {device} in {:.2} s, gate open at {}",
            self.seconds, self.opened
        )
    }
}

/// A guarded image of the demo model, judged by its mean colour.
fn self_test(model: &Model, backend: &dyn Backend, tolerance: f64) -> Result<SelfTest> {
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
    generate(model, backend, &request, &mut trace, &Stop::default())?;
    let seconds = start.elapsed().as_secs_f64();
    let pixels = trace.get("final.image").ok_or_else(|| Error::Bug("a run without an image".into()))?;
    let channel = |c: usize| {
        let plane = &pixels.data()[c * width * height..(c + 1) * width * height];
        plane.iter().map(|&v| f64::from(v)).sum::<f64>() / plane.len() as f64
    };
    let gates = (0..STEPS).filter_map(|step| trace.get(&format!("step.{step:03}.gate")));
    let opened = gates.filter(|gate| gate.data()[0] != 0.0).count();
    Ok(SelfTest { mean: [channel(0), channel(1), channel(2)], tolerance, opened, seconds })
}
