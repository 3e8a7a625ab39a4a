//! Whole runs against PyTorch: every step of every golden trace, from the weights on disk to the pixels.
//!
//! The traces were written by `golden/make_models.py` and `golden/make_demo.py` with torch, diffusers and
//! transformers in f32 from the same stored weights.

#[path = "support/golden.rs"]
mod golden;

use std::collections::HashMap;
use std::path::Path;

use golden::{demo, golden, json, open, request, tensors};
use unguide::backend::Stop;
use unguide::cpu::Cpu;
use unguide::pipeline::{Model, Request, Trace, generate};
use unguide::tensor::compare;

/// Relative L2 distance of latents after every step, and of gradients.
const LATENTS: f64 = 3e-4;
const GRADIENTS: f64 = 1e-3;

#[test]
fn a_small_stable_diffusion_1_runs_as_in_torch() {
    check_all_runs("tiny-sd1");
}

#[test]
fn a_small_stable_diffusion_2_runs_as_in_torch() {
    check_all_runs("tiny-sd2");
}

#[test]
fn an_odd_model_runs_as_in_torch() {
    check_all_runs("tiny-odd");
}

#[test]
fn the_demo_model_runs_as_in_torch() {
    let golden = golden("demo");
    let case = json(&golden.join("case.json"));
    let model = open(&demo());
    for (run, method) in [("plain", "none"), ("safe", "safe-sampling")] {
        let mut settings = case.clone();
        settings["method"] = method.into();
        settings["eta"] = 0.0.into();
        let request = request(&model, &case, &settings);
        check(&model, &request, &golden.join(format!("{run}.safetensors")), run);
    }
}

fn check_all_runs(name: &str) {
    let golden = golden(name);
    let case = json(&golden.join("case.json"));
    let model = open(&golden);
    let runs = case["runs"].as_object().expect("runs");
    assert!(runs.len() >= 4);
    for (run, settings) in runs {
        let request = request(&model, &case, settings);
        let trace = golden.join(format!("traces/{run}.safetensors"));
        check(&model, &request, &trace, &format!("{name} {run}"));
    }
}

fn check(model: &Model, request: &Request, golden: &Path, run: &str) {
    let mut trace = Trace::default();
    generate(model, &Cpu::<f32>::new(), request, &mut trace, &Stop::default()).expect("a run");
    let want = tensors(golden);
    let mut worst: HashMap<&str, f64> = HashMap::new();
    for (key, want) in &want {
        let got = trace.get(key).unwrap_or_else(|| panic!("{run}: no `{key}` in our trace"));
        assert_eq!(got.shape(), want.shape(), "{run}: {key}");
        let difference = compare(got.data(), want.data());
        let what = key.rsplit('.').next().expect("a last word");
        let bound = match what {
            "gate" => 0.0,
            "gradient" => GRADIENTS,
            _ => LATENTS,
        };
        assert!(difference.rel_l2 <= bound, "{run}: {key} differs by {difference:?}");
        let entry = worst.entry(what).or_default();
        *entry = entry.max(difference.rel_l2);
    }
    let mut worst: Vec<_> = worst.into_iter().collect();
    worst.sort_by_key(|(what, _)| *what);
    let shown: Vec<_> = worst.iter().map(|(what, rel_l2)| format!("{what} {rel_l2:.1e}")).collect();
    println!("{run}: relative L2 {}", shown.join(", "));
}
