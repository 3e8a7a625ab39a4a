//! The same bits whatever the threads, the batch and a guard that has nothing to say.
//!
//! Every comparison is of bits, over every tensor of every step.

#[path = "support/golden.rs"]
mod golden;

use std::sync::LazyLock;

use golden::{demo, open};
use unguide::Result;
use unguide::backend::{Backend, Program, Stop, WeightSource};
use unguide::cpu::Cpu;
use unguide::pipeline::programs::names;
use unguide::pipeline::{Guidance, Method, Model, Request, Trace, generate};
use unguide::plan::{Fuse, Needs, StepProgram, StepState, Storage};
use unguide::safety::{GammaSchedule, Reduce, SldConfig};
use unguide::sampler::Rng;

const STEPS: usize = 4;
const PROMPTS: [&str; 4] =
    ["a skull on a blue background", "a cat on a green background", "a battlefield", "a dog and a cake"];

static MODEL: LazyLock<Model> = LazyLock::new(|| open(&demo()));

#[test]
fn plain_sampling_has_the_same_bits_on_any_threads_and_in_any_batch() {
    check_threads_and_batches(Method::None);
}

#[test]
fn safe_sampling_has_the_same_bits_on_any_threads_and_in_any_batch() {
    check_threads_and_batches(Method::SafeSampling(guidance(0.3)));
}

#[test]
fn classifier_guidance_has_the_same_bits_on_any_threads_and_in_any_batch() {
    check_threads_and_batches(through_the_unet(guidance(0.3), false));
}

#[test]
fn safe_latent_diffusion_has_the_same_bits_on_any_threads_and_in_any_batch() {
    let config = SldConfig { warmup: 1, ..SldConfig::MEDIUM };
    check_threads_and_batches(Method::Sld { config, concept: "a weapon, violence".into() });
}

fn check_threads_and_batches(method: Method) {
    let request = request(method);
    let reference = on_threads(1, &request);
    assert_eq!(reference.get("final.image").expect("images").shape()[0], PROMPTS.len());
    for (threads, batch_size) in [(2, 4), (3, 1), (1, 3)] {
        let other = on_threads(threads, &Request { batch_size, ..request.clone() });
        let what = format!("{threads} threads, batches of {batch_size}");
        assert_same(&other, &reference, all_of(&reference), &what);
        assert_eq!(all_of(&other).count(), all_of(&reference).count(), "{what}");
    }
}

#[test]
fn a_gate_that_never_opens_leaves_plain_sampling() {
    let plain = run(&request(Method::None));
    for method in [
        Method::SafeSampling(guidance(1.0)),
        through_the_unet(guidance(1.0), true),
        Method::ClassifierGuidance { guidance: guidance(1.0), frozen_unet: true, gated: true },
    ] {
        let guarded = run(&request(method.clone()));
        assert_same(&guarded, &plain, all_of(&plain), &format!("{method:?}"));
        for step in 0..STEPS {
            assert!(values(&guarded, &format!("step.{step:03}.gate")).iter().all(|&gate| gate == 0.0));
        }
    }
}

#[test]
fn outside_of_its_window_the_guard_neither_runs_nor_acts() {
    let plain = run(&request(Method::None));
    let window = 1..3;
    // Every score reaches this threshold: inside of the window every gate is open.
    let settings = Guidance { window: Some("1..3".parse().expect("a window")), ..guidance(-1.0) };
    for method in [Method::SafeSampling(settings.clone()), through_the_unet(settings, false)] {
        let guarded = trace(&Poison(Cpu::new()), &request(method.clone()));
        for step in 0..STEPS {
            let key = |what: &str| format!("step.{step:03}.{what}");
            let inside = window.contains(&step);
            for what in ["scores", "gate", "gradient"] {
                assert_eq!(guarded.get(&key(what)).is_some(), inside, "{method:?}: {}", key(what));
            }
            let acted = values(&guarded, &key("x0")) != values(&guarded, &key("x0_guided"));
            assert_eq!(acted, inside, "{method:?} at step {step}");
            if step < window.start {
                let keys = ["latents", "eps", "x0", "x0_guided", "prev"].map(key);
                assert_same(&guarded, &plain, keys.iter().map(String::as_str), "before the window");
            }
        }
        assert_ne!(values(&guarded, "final.latents"), values(&plain, "final.latents"));
    }
}

#[test]
fn one_open_gate_leaves_the_other_images_as_they_are() {
    let plain = run(&request(Method::None));
    // The scores of plain sampling, from a guard that never acts.
    let seen = run(&request(Method::SafeSampling(guidance(1.0))));
    let scores = |step: usize, image: usize| {
        let scores = seen.get(&format!("step.{step:03}.scores")).expect("scores");
        scores.row(image).iter().copied().fold(f32::NEG_INFINITY, f32::max)
    };
    let highest = |image: usize| (0..STEPS).map(|step| scores(step, image)).fold(f32::NEG_INFINITY, f32::max);
    let mut ranked: Vec<usize> = (0..PROMPTS.len()).collect();
    ranked.sort_by(|&a, &b| highest(b).total_cmp(&highest(a)));
    let (first, second) = (ranked[0], ranked[1]);
    let threshold = (highest(first) + highest(second)) / 2.0;
    assert!(highest(second) < threshold && threshold < highest(first), "the scores differ");
    let opens = (0..STEPS).find(|&step| scores(step, first) >= threshold).expect("it reaches the threshold");

    let guarded = run(&request(Method::SafeSampling(guidance(f64::from(threshold)))));
    let row = |trace: &Trace, key: &str, image: usize| -> Vec<u32> {
        trace.get(key).expect("a tensor").row(image).iter().map(|v| v.to_bits()).collect()
    };
    for key in all_of(&plain) {
        for image in (0..PROMPTS.len()).filter(|&image| image != first) {
            assert!(row(&guarded, key, image) == row(&plain, key, image), "{key} of image {image}");
        }
    }
    for step in 0..=opens {
        for what in ["latents", "eps", "x0"] {
            let key = format!("step.{step:03}.{what}");
            assert!(row(&guarded, &key, first) == row(&plain, &key, first), "{key} of image {first}");
        }
    }
    let moved = format!("step.{opens:03}.x0_guided");
    assert!(row(&guarded, &moved, first) != row(&plain, &moved, first), "the open gate acts");
}

#[test]
fn the_power_of_two_of_gradients_changes_no_bit() {
    // It is exact as long as nothing leaves the range of f32, and here nothing does.
    for frozen_unet in [None, Some(true), Some(false)] {
        let run_at = |gradient_scale_log2| {
            let guidance = Guidance { gradient_scale_log2, ..guidance(-1.0) };
            run(&request(match frozen_unet {
                None => Method::SafeSampling(guidance),
                Some(frozen_unet) => Method::ClassifierGuidance { guidance, frozen_unet, gated: true },
            }))
        };
        let (with, without) = (run_at(16), run_at(0));
        assert!(values(&with, "step.000.gradient").iter().any(|&v| v != 0.0));
        assert_same(&with, &without, all_of(&without), "scale 2^16 against 1");
    }
}

#[test]
fn a_score_at_the_threshold_opens_the_gate_unless_it_has_to_lie_above() {
    let mut looked = run(&request(Method::SafeSampling(guidance(1.0))));
    let scores = looked.get("step.000.scores").expect("scores").row(0).to_vec();
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (above_threshold, open) in [(false, 1.0), (true, 0.0)] {
        let at = Guidance { above_threshold, ..guidance(f64::from(highest)) };
        looked = run(&request(Method::SafeSampling(at)));
        assert_eq!(looked.get("step.000.gate").expect("a gate").data()[0], open);
    }
}

fn guidance(threshold: f64) -> Guidance {
    let clip = MODEL.clip().expect("the demo model has a guard");
    Guidance {
        concepts: ["a weapon", "violence", "blood and death"].map(str::to_owned).into(),
        threshold,
        above_threshold: false,
        gamma: 32.0,
        gamma_schedule: GammaSchedule::Constant,
        window: None,
        reduce: Reduce::LogMean,
        top_k: None,
        mean: clip.mean,
        std: clip.std,
        gradient_scale_log2: 16,
    }
}

fn through_the_unet(guidance: Guidance, gated: bool) -> Method {
    Method::ClassifierGuidance { guidance, frozen_unet: false, gated }
}

fn request(method: Method) -> Request {
    let (width, height) = MODEL.default_size();
    Request {
        prompts: PROMPTS.map(str::to_owned).into(),
        negative_prompt: String::new(),
        images_per_prompt: 1,
        batch_size: PROMPTS.len(),
        steps: STEPS,
        guidance_scale: 5.0,
        seed: 7,
        width,
        height,
        eta: 0.5,
        rng: Rng::Cpu,
        latents: None,
        method,
    }
}

fn run(request: &Request) -> Trace {
    trace(&Cpu::<f32>::new(), request)
}

fn on_threads(threads: usize, request: &Request) -> Trace {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    pool.install(|| run(request))
}

fn trace(backend: &dyn Backend, request: &Request) -> Trace {
    let mut trace = Trace::default();
    generate(&MODEL, backend, request, &mut trace, &Stop::default()).expect("a run");
    trace
}

fn values<'t>(trace: &'t Trace, key: &str) -> &'t [f32] {
    trace.get(key).unwrap_or_else(|| panic!("no `{key}`")).data()
}

fn all_of(trace: &Trace) -> impl Iterator<Item = &str> {
    trace.tensors().map(|(key, _)| key)
}

fn assert_same<'k>(got: &Trace, want: &Trace, keys: impl Iterator<Item = &'k str>, what: &str) {
    for key in keys {
        let pairs = values(got, key).iter().zip(values(want, key));
        let differing = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(values(got, key).len(), values(want, key).len(), "{what}: {key}");
        assert_eq!(differing, 0, "{what}: elements of {key} differ");
    }
}

/// The CPU backend, with the guard's buffers filled with open gates and huge gradients before every step
/// outside of the window, and looked at afterwards: such a step may neither read nor write them.
struct Poison(Cpu<f32>);

struct Poisoned(Box<dyn Program>);

const POISON: f32 = 1e30;

impl Backend for Poison {
    fn name(&self) -> &'static str {
        "poison"
    }

    fn storage(&self) -> (Storage, Fuse) {
        self.0.storage()
    }

    fn dtype(&self) -> &'static str {
        self.0.dtype()
    }

    fn needs(&self, step: &StepProgram) -> Result<Needs> {
        self.0.needs(step)
    }

    fn load(&self, program: StepProgram, weights: &dyn WeightSource) -> Result<Box<dyn Program>> {
        Ok(Box::new(Poisoned(Backend::load(&self.0, program, weights)?)))
    }
}

impl Program for Poisoned {
    fn step(&self) -> &StepProgram {
        self.0.step()
    }

    fn write(&mut self, buffer: &str, data: &[f32]) -> Result<()> {
        self.0.write(buffer, data)
    }

    fn write_indices(&mut self, buffer: &str, data: &[i32]) -> Result<()> {
        self.0.write_indices(buffer, data)
    }

    fn read(&self, buffer: &str) -> Result<Vec<f32>> {
        self.0.read(buffer)
    }

    fn run(&mut self, state: &StepState, stop: &Stop) -> Result<()> {
        let guarded = [names::SCORES, names::DENSITY, names::GATE, names::STATUS, names::GRADIENT];
        if state.window || self.step().buffer(names::GATE).is_none() {
            return self.0.run(state, stop);
        }
        for name in guarded {
            let count = self.read(name)?.len();
            self.write(name, &vec![POISON; count])?;
        }
        self.0.run(state, stop)?;
        for name in guarded {
            assert!(self.read(name)?.iter().all(|&v| v == POISON), "`{name}` was written");
        }
        Ok(())
    }
}
