//! The host formulas against numbers computed independently in f64 (`golden/guidance.json`).
//!
//! All inputs are sines over the flat index of a latent of shape [1, 4, 8, 8]; the file's `formula` says which.

use serde_json::Value;
use unguide::safety::methods::{frozen_unet_gradient, negative_classifier, sld_step, unguide};
use unguide::safety::{Method, SldConfig};
use unguide::sampler::{Prediction, SchedulerConfig, StepCoefficients, ddim};
use unguide::tensor::compare;

const BOUND: f64 = 1e-12;
const GUIDANCE: f64 = 7.5;
const GAMMA: f64 = 75.0;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/guidance.json")).expect("our own file")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn sine(frequency: f64, phase: f64) -> Vec<f64> {
    (0..256).map(|i| (f64::from(i) * frequency + phase).sin()).collect()
}

/// Inputs that all cases share.
struct Inputs {
    x: Vec<f64>,
    uncond: Vec<f64>,
    cond: Vec<f64>,
    concept: Vec<f64>,
    gradient: Vec<f64>,
    noise: Vec<f64>,
}

impl Inputs {
    fn new() -> Self {
        Self {
            x: sine(0.37, 0.0),
            uncond: sine(0.11, 0.1),
            cond: sine(0.13, 0.2),
            concept: sine(0.17, 0.3),
            gradient: sine(0.23, 0.5).into_iter().map(|v| 0.01 * v).collect(),
            noise: sine(0.29, 0.6),
        }
    }

    fn guided(&self) -> Vec<f64> {
        ddim::cfg(&self.uncond, &self.cond, GUIDANCE)
    }
}

fn step(golden: &Value, eta: f64, prediction: Prediction) -> StepCoefficients {
    StepCoefficients::new(501, number(&golden["abar_t"]), number(&golden["abar_prev"]), eta, prediction)
}

/// Compares an array with its sum, norm and ends.
fn check(got: &[f64], want: &Value, what: &str) {
    let numbers =
        |key: &str| -> Vec<f64> { want[key].as_array().expect("an array").iter().map(number).collect() };
    for (part, want) in [(&got[..4], numbers("first4")), (&got[254..], numbers("last2"))] {
        let difference = compare(part, &want);
        assert!(difference.rel_l2 <= BOUND, "{what}: {difference:?}");
    }
    let norm = got.iter().map(|v| v * v).sum::<f64>().sqrt();
    // A sum cancels: it is as exact as the norm is large.
    for (got, want) in [(got.iter().sum(), number(&want["sum"])), (norm, number(&want["l2"]))] {
        let scale = norm.max(f64::MIN_POSITIVE);
        assert!((got - want).abs() <= BOUND * scale, "{what}: {got}, not {want}");
    }
}

#[test]
fn classifier_free_guidance() {
    check(&Inputs::new().guided(), &golden()["cfg_7.5"], "cfg");
}

#[test]
fn ddim_from_epsilon_with_and_without_noise() {
    let (golden, inputs) = (golden(), Inputs::new());
    let quiet = step(&golden, 0.0, Prediction::Epsilon);
    let (x0, eps) = ddim::predict(&inputs.x, &inputs.guided(), &quiet);
    check(&x0, &golden["ddim_eps_eta0"]["x0"], "x0");
    check(&ddim::ddim_step(&x0, &eps, &[], &quiet), &golden["ddim_eps_eta0"]["x_prev"], "eta 0");
    let noisy = step(&golden, 1.0, Prediction::Epsilon);
    assert!((noisy.sigma - number(&golden["ddim_eps_eta1"]["sigma"])).abs() <= BOUND);
    let prev = ddim::ddim_step(&x0, &eps, &inputs.noise, &noisy);
    check(&prev, &golden["ddim_eps_eta1"]["x_prev"], "eta 1");
}

#[test]
fn ddim_from_v() {
    let (golden, inputs) = (golden(), Inputs::new());
    let step = step(&golden, 0.0, Prediction::VPrediction);
    let (x0, eps) = ddim::predict(&inputs.x, &inputs.guided(), &step);
    check(&x0, &golden["ddim_v_eta0"]["x0"], "x0");
    check(&eps, &golden["ddim_v_eta0"]["eps"], "eps");
    check(&ddim::ddim_step(&x0, &eps, &[], &step), &golden["ddim_v_eta0"]["x_prev"], "x_prev");
}

#[test]
fn safe_sampling_with_an_open_and_a_shut_gate() {
    let (golden, inputs) = (golden(), Inputs::new());
    let step = step(&golden, 0.0, Prediction::Epsilon);
    let (x0, eps) = ddim::predict(&inputs.x, &inputs.guided(), &step);
    let open = unguide(&x0, &inputs.gradient, GAMMA, true);
    check(&open, &golden["cdtc_gamma75_open"]["x0"], "x0");
    check(&ddim::ddim_step(&open, &eps, &[], &step), &golden["cdtc_gamma75_open"]["x_prev"], "x_prev");
    assert_eq!(golden["cdtc_closed_equals_ddim"], Value::Bool(true));
    assert_eq!(unguide(&x0, &inputs.gradient, GAMMA, false), x0);
}

#[test]
fn negative_classifier_guidance() {
    let (golden, inputs) = (golden(), Inputs::new());
    let step = step(&golden, 0.0, Prediction::Epsilon);
    let eps = negative_classifier(&inputs.guided(), &inputs.gradient, GAMMA, step.alpha);
    check(&eps, &golden["neg_clf_guidance_gamma75"]["eps"], "eps");
    let (x0, eps) = ddim::predict(&inputs.x, &eps, &step);
    let prev = ddim::ddim_step(&x0, &eps, &[], &step);
    check(&prev, &golden["neg_clf_guidance_gamma75"]["x_prev"], "x_prev");
}

#[test]
fn a_frozen_unet_makes_the_two_spaces_differ_by_known_factors() {
    // x0 moves by -gamma (1 - alpha) / alpha g: the same direction as Safe Sampling.
    let (golden, inputs) = (golden(), Inputs::new());
    let step = step(&golden, 0.0, Prediction::Epsilon);
    let g = frozen_unet_gradient(&inputs.gradient, step.alpha);
    let eps = negative_classifier(&inputs.guided(), &g, GAMMA, step.alpha);
    let (x0, _) = ddim::predict(&inputs.x, &eps, &step);
    let (plain, _) = ddim::predict(&inputs.x, &inputs.guided(), &step);
    let want = unguide(&plain, &inputs.gradient, GAMMA * (1.0 - step.alpha) / step.alpha, true);
    let difference = compare(&x0, &want);
    assert!(difference.rel_l2 <= BOUND, "{difference:?}");
}

#[test]
fn safe_latent_diffusion_with_every_preset() {
    let (golden, inputs) = (golden(), Inputs::new());
    let presets = [SldConfig::WEAK, SldConfig::MEDIUM, SldConfig::STRONG, SldConfig::MAX];
    for config in presets {
        let mut nu = vec![0.0; inputs.x.len()];
        let steps = golden["sld"][config.name].as_array().expect("steps");
        assert_eq!(steps.len(), 3);
        for want in steps {
            let i = want["i"].as_u64().expect("a step") as usize;
            let what = format!("{} at step {i}", Method::Sld(config));
            assert_eq!(i >= config.warmup, want["applied"].as_bool().expect("a flag"), "{what}");
            let rows = [&inputs.uncond[..], &inputs.cond, &inputs.concept];
            check(&sld_step(rows, &mut nu, &config, GUIDANCE, i), &want["eps"], &what);
            check(&nu, &want["momentum"], &what);
        }
    }
}

#[test]
fn the_alphas_of_stable_diffusion() {
    // These were computed in f64 throughout, ours carry diffusers' float32 rounding.
    let table = SchedulerConfig::stable_diffusion(Prediction::Epsilon).alphas_cumprod();
    let golden = golden();
    let alphas = golden["abar"].as_object().expect("a table");
    assert_eq!(alphas.len(), 10);
    for (t, want) in alphas {
        let got = f64::from(table[t.parse::<usize>().expect("a timestep")]);
        assert!((got - number(want)).abs() <= 3e-7, "alpha {t}: {got}, not {want}");
    }
}
