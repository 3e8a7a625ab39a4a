//! The sampler against torch's noise and diffusers' DDIM (`golden/make_noise.py`, `golden/make_schedule.py`).

use std::path::Path;

use serde::Deserialize;
use unguide::sampler::{NoiseStream, Rng, Schedule, SchedulerConfig, ddim};
use unguide::tensor::compare;

#[derive(Deserialize)]
struct NoiseGolden {
    stride: usize,
    single: Vec<Single>,
    streams: Vec<Stream>,
}

#[derive(Deserialize)]
struct Single {
    seed: String,
    draw: Draw,
}

#[derive(Deserialize)]
struct Stream {
    seed: String,
    draws: Vec<Draw>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Draw {
    Whole { values: Vec<f32> },
    Parts { count: usize, first: Vec<f32>, last: Vec<f32>, strided: Vec<f32>, sum: f64 },
}

const NOISE_BOUND: f64 = 2e-6;

fn check_draw(stream: &mut NoiseStream, want: &Draw, stride: usize, case: &str) {
    let close = |got: &[f32], want: &[f32], part: &str| {
        let difference = compare(got, want);
        assert!(difference.max_abs <= NOISE_BOUND, "{case}, {part}: {difference:?}");
    };
    match want {
        Draw::Whole { values } => close(&stream.normal(values.len()), values, "all"),
        Draw::Parts { count, first, last, strided, sum } => {
            let got = stream.normal(*count);
            close(&got[..first.len()], first, "first");
            close(&got[count - last.len()..], last, "last");
            let picked: Vec<f32> = got.iter().step_by(stride).copied().collect();
            close(&picked, strided, "strided");
            let got_sum: f64 = got.iter().map(|&v| f64::from(v)).sum();
            assert!((got_sum - sum).abs() <= 1e-3, "{case}: sum {got_sum}, not {sum}");
        }
    }
}

#[test]
fn cpu_noise_is_torchs_for_every_seed_and_size() {
    let golden: NoiseGolden = serde_json::from_str(include_str!("golden/noise.json")).expect("our own file");
    assert_eq!((golden.single.len(), golden.streams.len()), (35, 5));
    for Single { seed, draw } in &golden.single {
        let mut stream = NoiseStream::new(Rng::Cpu, seed.parse().expect("a seed"));
        check_draw(&mut stream, draw, golden.stride, &format!("seed {seed}"));
    }
}

#[test]
fn later_draws_go_on_where_torchs_generator_stands() {
    let golden: NoiseGolden = serde_json::from_str(include_str!("golden/noise.json")).expect("our own file");
    for Stream { seed, draws } in &golden.streams {
        let mut stream = NoiseStream::new(Rng::Cpu, seed.parse().expect("a seed"));
        for (i, draw) in draws.iter().enumerate() {
            check_draw(&mut stream, draw, golden.stride, &format!("seed {seed}, draw {i}"));
        }
    }
}

#[test]
fn cuda_noise_is_the_published_vector_of_seed_zero() {
    let want = [
        -0.9246624,
        -0.4253439,
        -2.6438458,
        0.1451839,
        -0.1208669,
        -0.5797257,
        -0.6228516,
        -0.3283871,
        -1.0745417,
        -0.363144,
        -1.6710502,
        2.2655048f32,
    ];
    let difference = compare(&NoiseStream::new(Rng::Cuda, 0).normal(12), &want);
    assert!(difference.max_abs <= NOISE_BOUND, "{difference:?}");
}

#[test]
fn noise_has_these_very_bits_on_every_machine() {
    // FNV-1a over the bits.
    let hash = |values: &[f32]| {
        values.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, v| {
            (hash ^ u64::from(v.to_bits())).wrapping_mul(0x0100_0000_01b3)
        })
    };
    let bits = |rng, count| hash(&NoiseStream::new(rng, 42).normal(count));
    let hashes = [bits(Rng::Cpu, 16_384), bits(Rng::Cpu, 15), bits(Rng::Cuda, 16_384)];
    assert_eq!(hashes, [6945398784744927582, 1252947604407846961, 7168833687995767953]);
}

#[derive(Deserialize)]
struct ScheduleGolden {
    alphas: Vec<Alphas>,
    timesteps: Vec<Timesteps>,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Alphas {
    config: SchedulerConfig,
    at: Vec<usize>,
    alphas: Vec<f32>,
    sum: f64,
}

#[derive(Deserialize)]
struct Timesteps {
    spacing: String,
    offset: u64,
    steps: usize,
    count: usize,
    ends: Vec<u32>,
    sum: u64,
}

#[derive(Deserialize)]
struct Run {
    config: SchedulerConfig,
    steps: usize,
    eta: f64,
    taken: Vec<Taken>,
}

#[derive(Deserialize)]
struct Taken {
    t: u32,
    x0: Vec<f64>,
    prev: Vec<f64>,
}

fn schedule_golden() -> ScheduleGolden {
    serde_json::from_str(include_str!("golden/schedule.json")).expect("our own file")
}

/// Relative bound on one alpha and absolute bound on the sum of all. With a zero terminal SNR the values go
/// through torch's vector square root, which is not correctly rounded and differs between machines.
fn alpha_bounds(config: &SchedulerConfig) -> (f32, f64) {
    if config.rescale_betas_zero_snr { (5e-7, 1e-4) } else { (0.0, 1e-9) }
}

#[test]
fn alphas_have_the_bits_of_diffusers() {
    for case in schedule_golden().alphas {
        case.config.validate(Path::new("scheduler_config.json")).expect("a config that diffusers takes");
        let table = case.config.alphas_cumprod();
        let got: Vec<f32> = case.at.iter().map(|&t| table[t]).collect();
        let sum: f64 = table.iter().map(|&alpha| f64::from(alpha)).sum();
        let (each, whole) = alpha_bounds(&case.config);
        for (got, want) in got.iter().zip(&case.alphas) {
            assert!((got - want).abs() <= each * want, "{:?}: {got}, not {want}", case.config);
        }
        assert!((sum - case.sum).abs() <= whole, "{:?}: sum {sum}, not {}", case.config, case.sum);
    }
}

#[test]
fn timesteps_are_those_of_diffusers() {
    for case in schedule_golden().timesteps {
        let mut config = SchedulerConfig::stable_diffusion(unguide::sampler::Prediction::Epsilon);
        config.steps_offset = case.offset;
        config.timestep_spacing =
            serde_json::from_value(case.spacing.clone().into()).expect("one of the three spacings");
        let schedule = Schedule::new(&config, case.steps, 0.0);
        if case.ends[0] >= 1000 {
            let message = schedule.expect_err("there is no such timestep").to_string();
            assert!(message.starts_with("--steps: ") && message.contains("1000"), "{message}");
            continue;
        }
        let steps = schedule.expect("a plain request").steps;
        let got: Vec<u32> = steps.iter().map(|step| step.timestep).collect();
        let got_ends =
            if got.len() <= 50 { got.clone() } else { [&got[..5], &got[got.len() - 5..]].concat() };
        assert_eq!((got.len(), got_ends), (case.count, case.ends), "{} {}", case.spacing, case.steps);
        assert_eq!(got.iter().map(|&t| u64::from(t)).sum::<u64>(), case.sum);
    }
}

#[test]
fn ddim_chains_are_those_of_diffusers() {
    let runs = schedule_golden().runs;
    assert_eq!(runs.len(), 30);
    for run in runs {
        let schedule = Schedule::new(&run.config, run.steps, run.eta).expect("a plain request");
        let mut z = vec![0.5, -1.25, 2.0, 0.0];
        for (i, (step, want)) in schedule.steps.iter().zip(&run.taken).enumerate() {
            assert_eq!(step.timestep, want.t);
            let m: Vec<f64> = (0..4).map(|j| f64::from((7 * i as u32 + 3 * j) % 11) / 8.0 - 0.625).collect();
            let noise: Vec<f64> = (0..4).map(|j| f64::from((5 * i as u32 + 2 * j) % 9) / 4.0 - 1.0).collect();
            let (x0, eps) = ddim::predict(&z, &m, step);
            z = ddim::ddim_step(&x0, &eps, &noise, step);
            for (got, want) in [(&x0, &want.x0), (&z, &want.prev)] {
                let difference = compare(got, want);
                let bound = if run.config.rescale_betas_zero_snr { 1e-6 } else { 1e-12 };
                assert!(difference.rel_l2 <= bound, "{:?} step {i}: {difference:?}", run.config);
            }
        }
        assert_eq!(schedule.steps.len(), run.taken.len());
    }
}

#[test]
fn trailing_steps_are_as_many_as_asked_for() {
    // For some counts (61, 103 ...) numpy's arange yields one value too many, -1 after rounding.
    let config: SchedulerConfig =
        serde_json::from_str(r#"{"timestep_spacing": "trailing"}"#).expect("a partial config");
    for steps in 1..=1000 {
        let schedule = Schedule::new(&config, steps, 0.0).expect("a plain request");
        assert_eq!(schedule.steps.len(), steps);
        assert!(schedule.steps.windows(2).all(|pair| pair[0].timestep > pair[1].timestep));
        assert!(schedule.steps.iter().all(|step| step.prev_eps.is_finite() && step.timestep < 1000));
    }
}

#[test]
fn the_config_of_another_scheduler_is_read_for_its_betas() {
    let pndm: SchedulerConfig = serde_json::from_str(
        r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
            "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
            "clip_sample": false}"#,
    )
    .expect("what Stable Diffusion 1.5 ships");
    pndm.validate(Path::new("scheduler_config.json")).expect("it is supported");
    let want = SchedulerConfig::stable_diffusion(unguide::sampler::Prediction::Epsilon);
    assert_eq!(pndm, SchedulerConfig { class_name: "PNDMScheduler".to_owned(), ..want });
}

#[test]
fn a_hostile_config_is_refused_by_the_name_of_its_field() {
    let cases = [
        (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps"),
        (r#"{"num_train_timesteps": 1000000000}"#, "num_train_timesteps"),
        (r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#, "_class_name"),
        (r#"{"trained_betas": [0.1, 0.2]}"#, "trained_betas"),
        (r#"{"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}"#, "trained_betas[1]"),
        (r#"{"beta_end": 1.0}"#, "beta_end"),
        (r#"{"beta_start": -0.1}"#, "beta_start"),
        (r#"{"beta_start": 0}"#, "beta_start"),
        (r#"{"beta_start": 1e-30}"#, "alphas_cumprod"),
        (r#"{"num_train_timesteps": 100000}"#, "alphas_cumprod"),
        (r#"{"num_train_timesteps": 1, "rescale_betas_zero_snr": true}"#, "alphas_cumprod"),
        (r#"{"steps_offset": 1000}"#, "steps_offset"),
        (r#"{"clip_sample": true}"#, "clip_sample"),
        (r#"{"thresholding": true}"#, "thresholding"),
    ];
    for (text, field) in cases {
        let config: SchedulerConfig = serde_json::from_str(text).expect("well-formed");
        let error = config.validate(Path::new("model/scheduler_config.json")).expect_err(text);
        let message = error.to_string();
        assert!(message.starts_with(&format!("model/scheduler_config.json: `{field}`: ")), "{message}");
        assert_eq!(error.exit_code(), 3);
    }
    let nan = SchedulerConfig { beta_end: f64::NAN, ..SchedulerConfig::default() };
    assert!(nan.validate(Path::new("x")).is_err());
}

#[test]
fn steps_and_eta_out_of_range_are_usage_errors() {
    let config = SchedulerConfig::default();
    for (steps, eta, flag) in [
        (0, 0.0, "--steps"),
        (1001, 0.0, "--steps"),
        (usize::MAX, 0.0, "--steps"),
        (10, f64::NAN, "--ddim-eta"),
        (10, -0.1, "--ddim-eta"),
        (10, 1.1, "--ddim-eta"),
    ] {
        let error = Schedule::new(&config, steps, eta).expect_err("out of range");
        assert!(error.to_string().starts_with(flag), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn a_step_without_signal_needs_another_prediction_than_epsilon() {
    let text = r#"{"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}"#;
    let config: SchedulerConfig = serde_json::from_str(text).expect("well-formed");
    assert_eq!(Schedule::new(&config, 5, 0.0).expect_err("1/0").exit_code(), 2);
}
