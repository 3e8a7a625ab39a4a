//! The CUDA backend without a GPU: against a stand-in for the driver, which either does nothing and fails on command,
//! or runs the kernels on the CPU.
//!
//! What this cannot show: that a real driver takes what the stand-in takes, and anything about speed.

#![cfg(target_os = "linux")]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/process.rs"]
mod process;
#[path = "support/stub.rs"]
mod stub;

use std::path::Path;
use std::process::Command;

use process::{Place, Ran, filled, read_tensors, write_tensors};
use stub::{Counts, stub, stub_with_kernels};
use unguide::backend::{Backend, Program, Stop, WeightSource};
use unguide::cuda::{CudaDevice, usable};
use unguide::error::Result;
use unguide::ir::{Activation, Builder, Flag, Graph, Op, Row};
use unguide::launch::Storage;
use unguide::passes::{Hoisting, hoist, run_all};
use unguide::pipeline::{Method, Trace, generate};
use unguide::plan::{Planner, StepState};
use unguide::simt::SimtDevice;
use unguide::tensor::{DType, Shape};

/// `generate` on the demo model with the stub for a driver, told to behave as `settings` say.
fn draw(defined: &str, settings: &[(&str, &str)], line: &str) -> (Ran, Counts) {
    let (ran, counts) = draw_uncounted(defined, settings, line);
    (ran, counts.expect("the stub's counts"))
}

/// The same where the driver may never be asked.
fn draw_uncounted(defined: &str, settings: &[(&str, &str)], line: &str) -> (Ran, Option<Counts>) {
    let place = Place::new();
    let report = place.path("report");
    let mut words = vec!["generate", "-p", "a battlefield"];
    for default in ["--steps 2", "--device cuda", "-o out.png"] {
        let flag = default.split(' ').next().expect("a flag");
        let given = line.contains(flag) || flag == "--device" && line.contains("--cpu");
        if !given {
            words.extend(default.split(' '));
        }
    }
    let mut command = place.command(words.into_iter().chain(line.split_whitespace()));
    command.env("LD_LIBRARY_PATH", stub(defined)).env("STUB_REPORT", &report);
    command.env("UNGUIDE_CACHE_DIR", place.path("cache")).envs(settings.iter().copied());
    let ran = Ran::new(command.output().expect("started"));
    let made = place.list("").iter().any(|name| name.ends_with(".png"));
    assert_eq!(made, ran.code == Some(0), "an image exactly where the run succeeded: {}", ran.stderr);
    (ran, report.exists().then(|| Counts::read(&report)))
}

#[test]
fn an_image_is_made_and_everything_is_given_back() {
    let (ran, counts) = draw("ALL", &[], "--steps 4 --json");
    ran.says(0, &[]);
    counts.are_even();
    let cold = &ran.json()[0]["cold_start"];
    let seconds = |part: &str| cold[part].as_f64().unwrap_or_else(|| panic!("{part} in {cold}"));
    let parts = ["open_s", "plan_s", "read_s", "upload_s", "texts_s", "first_step_s"];
    let sum: f64 = parts.iter().map(|part| seconds(part)).sum();
    assert!((sum - seconds("total_s")).abs() < 1e-4, "{cold}");
    assert!(seconds("modules_s") > 0.0 && seconds("graphs_s") > 0.0 && seconds("read_s") > 0.0, "{cold}");
    // The first step by launches, the others by graph; so do texts after the first.
    assert!(counts.get("launches") > 100 && counts.get("graph_launches") > 3);

    let (ran, counts) = draw("WITHOUT_GRAPHS", &[], "--steps 3");
    ran.says(0, &[]);
    counts.are_even();
    assert_eq!(counts.get("graph_launches"), 0);
}

#[test]
fn launches_of_a_graph_overlap_where_kernels_wait_by_themselves_and_the_driver_can() {
    for (settings, overlaps, words) in [
        (&[][..], true, &[][..]),
        (&[("STUB_CAPABILITY", "80")], false, &[]),
        (
            &[("STUB_NO_OVERLAP", "1")],
            false,
            &["launches do not overlap on this driver: cuGraphAddNode answers error 801"],
        ),
    ] {
        let (ran, counts) = draw("ALL", settings, "--steps 3");
        ran.says(0, words);
        counts.are_even();
        assert!(counts.get("graph_launches") > 1, "{settings:?}");
        assert_eq!(counts.get("overlaps") > 100, overlaps, "{settings:?}");
        assert!(overlaps || counts.get("overlaps") == 0, "{settings:?}");
    }
}

#[test]
fn without_a_usable_device_cuda_is_refused_and_auto_takes_the_cpu() {
    let refused = |defined: &str, settings: &[(&str, &str)], line: &str, words: &[&str]| {
        let (ran, counts) = draw(defined, settings, line);
        ran.says(4, &["error: device `cuda:"]).says(4, words);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        counts.are_even();
    };
    refused("ALL", &[("STUB_DEVICES", "0")], "", &["sees no GPU", "CUDA_VISIBLE_DEVICES"]);
    refused("ALL", &[("STUB_VERSION", "11040")], "", &["too old", "found 11.4", "12.0"]);
    refused("ALL", &[("STUB_CAPABILITY", "75")], "", &["compute capability 7.5", "8.0"]);
    refused("WITHOUT_PINNED", &[], "", &["too old", "cuMemHostAlloc"]);
    refused("ALL", &[], "--device cuda:3", &["`cuda:3`", "sees 1 of them"]);
    let (ran, counts) = draw("ALL", &[("STUB_VERSION", "11040")], "--device auto --safety none");
    ran.says(0, &["computing on the CPU", "too old"]);
    counts.are_even();
}

#[test]
fn auto_takes_the_first_usable_device_and_the_flag_for_the_cpu_none() {
    let two = [("STUB_DEVICES", "2"), ("STUB_FIRST_CAPABILITY", "75")];
    let (ran, counts) = draw("ALL", &two, "--device auto --safety none -v --json");
    ran.says(0, &["opened", "device=\"cuda:1\""]);
    assert_eq!(ran.json()[0]["settings"]["device"], "cuda");
    counts.are_even();
    let (ran, counts) = draw_uncounted("ALL", &[], "--cpu --safety none --json");
    ran.says(0, &[]);
    assert_eq!(ran.json()[0]["settings"]["device"], "cpu");
    assert!(counts.is_none_or(|counts| counts.get("allocations") == 0));
}

#[test]
fn the_doctor_judges_what_every_device_draws() {
    let doctor = |settings: &[(&str, &str)], flags: &[&'static str]| {
        let place = Place::new();
        let mut command = place.command(["doctor"].into_iter().chain(flags.iter().copied()));
        command.env("LD_LIBRARY_PATH", stub("ALL")).env("STUB_REPORT", place.path("report"));
        command.env("UNGUIDE_CACHE_DIR", place.path("cache")).envs(settings.iter().copied());
        let ran = Ran::new(command.output().expect("started"));
        Counts::read(&place.path("report")).are_even();
        ran
    };
    // Kernels that do nothing draw nothing.
    let ran = doctor(&[], &[]);
    ran.says(4, &["device `cuda:0` is not usable", "the self-test's image has mean"]);
    let text = ran.text();
    for words in [
        "on cpu in",
        "right: ",
        "WRONG: ",
        "on cuda:0 in",
        "cpu, simt, cuda",
        "kernels    binaries for sm_80",
    ] {
        assert!(text.contains(words), "no `{words}` in {text}");
    }
    let ran = doctor(&[("STUB_FAIL_LAUNCH", "1")], &["--json"]);
    ran.says(4, &["kernel `"]);
    let report = &ran.json()[0];
    assert_eq!(report["self_test"]["passed"], true);
    assert_eq!(report["gpus"][0]["self_test"]["passed"], false);
    assert!(
        report["gpus"][0]["self_test"]["problem"].as_str().is_some_and(|words| words.contains("kernel `"))
    );
    let ran = doctor(&[("STUB_CAPABILITY", "75")], &["--json"]);
    let report = &ran.says(0, &[]).json()[0];
    assert!(
        report["gpus"][0]["problem"].as_str().is_some_and(|words| words.contains("at least 8.0")),
        "{report}"
    );
    assert!(report["gpus"][0]["self_test"].is_null() && report["cuda_problem"].is_null());
    let ran = doctor(&[("STUB_VERSION", "11040")], &["--json"]);
    let report = &ran.says(0, &[]).json()[0];
    assert!(report["cuda_problem"].as_str().is_some_and(|words| words.contains("too old")), "{report}");
}

#[test]
fn no_memory_at_any_allocation_ends_with_everything_given_back() {
    for k in 1.. {
        let (ran, counts) = draw("ALL", &[("STUB_FAIL_ALLOC", &k.to_string())], "");
        counts.are_even();
        if ran.code == Some(0) {
            assert!(k > 8, "only {k} allocations");
            return;
        }
        ran.says(5, &["out of memory", "bytes", "cuda:0"]);
    }
}

#[test]
fn too_little_memory_is_told_before_a_weight_is_read() {
    let (ran, counts) = draw("ALL", &[("STUB_MEMORY", "270000000")], "");
    ran.says(5, &["out of memory", "does not fit into", "the smallest plan", "needs"]);
    counts.are_even();
    assert_eq!(counts.get("allocations"), 0);
    let (ran, counts) = draw("ALL", &[], "--max-vram 1MB");
    ran.says(5, &["does not fit into 1000000 bytes"]);
    assert_eq!(counts.get("allocations"), 0);
}

#[test]
fn a_refused_launch_names_its_kernel_and_a_lost_device_ends_the_run() {
    for n in ["1", "20"] {
        let (ran, counts) = draw("ALL", &[("STUB_FAIL_LAUNCH", n)], "");
        ran.says(4, &["kernel `", "cuLaunchKernel answers CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (701)"]);
        ran.says(4, &["(grid [", "threads, params 0000"]);
        counts.are_even();
    }
    // Within a run by launches, and in a later one by graph.
    let (whole, counts) = draw("ALL", &[], "--steps 3");
    whole.says(0, &[]);
    let launches = counts.get("launches");
    for n in [0, launches / 2, launches - 1] {
        let (ran, counts) = draw("ALL", &[("STUB_STICKY", &n.to_string())], "--steps 3");
        ran.says(4, &["CUDA_ERROR_ILLEGAL_ADDRESS (700)"]);
        counts.are_even();
    }
}

#[test]
fn sources_are_compiled_once_where_a_compiler_is_and_asked_for_where_none_is() {
    let source = ("UNGUIDE_KERNELS", "source");
    let (ran, counts) = draw("ALL", &[source], "");
    // Only where the loader finds a compiler by itself may this succeed.
    if ran.code != Some(0) {
        ran.says(4, &["no NVRTC", "tried ", "libnvrtc.so.13", "UNGUIDE_NVRTC"]);
    }
    counts.are_even();
    let nvrtc = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nvrtc/nvidia/cuda_nvrtc/lib");
    assert!(nvrtc.exists(), "{}: kernels/setup.sh puts it there", nvrtc.display());
    let place = Place::new();
    let paths = format!("{}:{}", stub("ALL").display(), nvrtc.display());
    let compile = || {
        let words = [
            "generate",
            "-p",
            "a",
            "--steps",
            "1",
            "--safety",
            "none",
            "--device",
            "cuda",
            "-v",
            "--overwrite",
        ];
        let mut command = place.command(words.into_iter().chain(["-o", "out.png"]));
        command.env("LD_LIBRARY_PATH", &paths).env("UNGUIDE_CACHE_DIR", place.path("cache")).envs([source]);
        let ran = Ran::new(command.output().expect("started"));
        ran.says(0, &[]);
        ran.stderr.matches("compiling").count()
    };
    let files = compile();
    assert!(files > 3 && place.list("cache").len() == files, "{files} files");
    assert_eq!(compile(), 0, "everything is in the cache");
    let first = place.path("cache").join(&place.list("cache")[0]);
    std::fs::write(&first, b"cut off").expect("written");
    assert_eq!(compile(), 1, "what is not whole is compiled again");
}

#[test]
fn kernels_store_half_precision_alone() {
    draw_uncounted("ALL", &[], "--dtype f32").0.says(2, &["--dtype"]);
    let (ran, counts) = draw("ALL", &[], "--dtype bf16");
    ran.says(0, &[]);
    counts.are_even();
    draw_uncounted("ALL", &[], "--device cuda:x").0.says(2, &["cuda:N"]);
    draw_uncounted("ALL", &[], "--device cudax").0.says(2, &["expected"]);
}

#[test]
fn several_images_are_denoised_together_as_memory_and_device_allow() {
    let batch = |settings: &[(&str, &str)], line: &str| -> usize {
        let (ran, counts) = draw("ALL", settings, &format!("-v -b 6 -o %d.png --steps 1 {line}"));
        ran.says(0, &[]);
        counts.are_even();
        let words = ran.stderr.split("starting").nth(1).expect("the line of the start");
        let digits = words.split("batch=").nth(1).expect("the batch");
        digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a number")
    };
    assert_eq!(batch(&[], ""), 6, "the demo's images are too small for one to fill a device");
    assert_eq!(batch(&[("STUB_MULTIPROCESSORS", "1")], ""), 1, "one is enough");
    assert_eq!(batch(&[("STUB_MULTIPROCESSORS", "1")], "--batch-size 5"), 5, "the user knows better");
    // Batches of 4 and 2 where 6 do not fit come out as 3 and 3.
    let four = batch_bytes(4);
    assert_eq!(batch(&[("STUB_MEMORY", &(SPARE + four).to_string())], ""), 3);
    assert_eq!(batch(&[("STUB_MEMORY", &(SPARE + batch_bytes(1)).to_string())], ""), 1);
    assert_eq!(batch(&[], &format!("--max-vram {four}")), 3);
}

/// What the backend leaves to the driver.
const SPARE: u64 = 256 << 20;

/// What a run of the demo takes at that batch: the error says it.
fn batch_bytes(batch: usize) -> u64 {
    let (ran, _) = draw("ALL", &[], &format!("-b 6 -o %d.png --batch-size {batch} --max-vram 1kB"));
    ran.says(5, &["does not fit into 1000 bytes"]);
    let words = ran.stderr.split("needs ").nth(1).expect("bytes");
    words.split(' ').next().and_then(|digits| digits.parse().ok()).expect("a number")
}

#[test]
fn what_does_not_fit_is_told_with_what_would() {
    let tight = SPARE + batch_bytes(3);
    let memory = [("STUB_MEMORY", &*tight.to_string())];
    let (ran, counts) = draw("ALL", &memory, "-b 6 -o %d.png --batch-size 6");
    ran.says(5, &["out of memory", "--batch-size 3 fits"]);
    assert!(!ran.stderr.contains("--max-vram"), "no budget makes memory: {}", ran.stderr);
    assert_eq!((counts.get("allocations"), counts.get("bytes")), (0, 0));
    draw("ALL", &memory, "-b 6 -o %d.png --batch-size 3").0.says(0, &[]);

    let (ran, counts) = draw("ALL", &memory, "-W 256 -H 256");
    ran.says(5, &["out of memory", "-W ", " -H ", " fits"]);
    assert_eq!(counts.get("allocations"), 0);
    let word = |flag: &str| {
        let rest = ran.stderr.split(&format!("{flag} ")).nth(1).expect("a size");
        rest.split([' ', ';', '\n']).next().expect("a number").to_owned()
    };
    draw("ALL", &memory, &format!("-W {} -H {}", word("-W"), word("-H"))).0.says(0, &[]);

    // A budget that is too small, and the one that the error names.
    for device in ["cuda", "simt", "cpu"] {
        let refused = draw_uncounted("ALL", &[], &format!("--device {device} --max-vram 2MB")).0;
        refused.says(5, &["does not fit into 2000000 bytes", "is enough"]);
        let rest = refused.stderr.split("--max-vram ").nth(1).expect("a budget");
        let enough = rest.split(' ').next().expect("a number");
        if device != "simt" {
            draw_uncounted("ALL", &[], &format!("--device {device} --max-vram {enough}")).0.says(0, &[]);
        }
    }
}

/// A copy of a small model whose first convolution leaves the range of f16 and not that of bf16.
fn loud(place: &Place) -> std::path::PathBuf {
    let model = place.copy_model("tiny-sd1", "loud");
    let (file, name) = (model.join("unet/diffusion_pytorch_model.safetensors"), "conv_in.weight");
    let mut tensors = read_tensors(&file);
    let (dtype, shape, bytes) = tensors.get_mut(name).expect("there");
    let count = shape.iter().product();
    (*dtype, *bytes) = (safetensors::Dtype::F32, filled(6e4, count));
    write_tensors(&file, &tensors);
    model
}

#[test]
fn an_image_that_leaves_f16_is_made_again_in_bf16_and_else_there_is_none() {
    let place = Place::new();
    loud(&place);
    let drawn = |words: &str| {
        place.draw(&format!(
            "--device simt -m loud --threshold -1 -W 16 -H 16 -s 7 --steps 1 --overwrite {words}"
        ))
    };
    let ran = drawn("--gamma 1 --json");
    ran.says(0, &["image 0", "is not finite in f16; once more in bf16"]);
    let line = &ran.json()[0];
    assert_eq!(line["settings"]["dtype"], "bf16");
    assert_eq!(line["steps"].as_array().map(Vec::len), Some(1), "what was seen before is forgotten");
    let again = place.pixels("out.png");
    let quiet = drawn("--gamma 1 --dtype bf16");
    quiet.says(0, &[]);
    assert!(!quiet.stderr.contains("once more"), "{}", quiet.stderr);
    assert_eq!(place.pixels("out.png"), again);

    std::fs::remove_file(place.path("out.png")).expect("there");
    drawn("--gamma 1e300").says(8, &["once more in bf16", "non-finite", "image 0"]);
    drawn("--gamma 1e300 --dtype bf16").says(8, &["non-finite"]);
    assert!(!place.path("out.png").exists());
}

/// Numbers in place of a checkpoint, others for every number of a source.
struct Drawn(u64);

impl WeightSource for Drawn {
    fn identity(&self) -> u64 {
        self.0
    }

    fn load(&self, name: &str, shape: &Shape) -> Result<Vec<f32>> {
        let seed = name
            .bytes()
            .fold(7 + self.0 as u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        let number =
            |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16) as f32 / 65536.0;
        Ok((0..shape.count()).map(|i| number(i) - 0.5).collect())
    }
}

const SAMPLES: usize = 3;
const STEPS: usize = 6;

/// A step with all that a step may have: work for the whole batch, a loop over samples inside of the window, a branch
/// inside of the loop, and what texts and timesteps settle alone, hoisted.
fn step(width: usize) -> Result<Graph> {
    let mut b = Builder::new();
    let z = b.buffer("z", [SAMPLES, width], DType::F32);
    let flags = b.buffer("flags", [SAMPLES], DType::F32);
    let outside = b.buffer("outside", [SAMPLES, width], DType::F32);
    let seen = b.buffer("seen", [SAMPLES, width], DType::F32);
    let moved = b.buffer("moved", [SAMPLES, width], DType::F32);
    let all = b.load(z, Row::All)?;
    let all = b.linear(&format!("mix{width}"), all, width, true)?;
    let all = b.activate("act", all, Activation::Silu)?;
    let text = b.buffer("text", [SAMPLES, width], DType::F32);
    let text = b.load(text, Row::All)?;
    let text = b.linear(&format!("text{width}"), text, width, false)?;
    let all = b.add("and text", all, text)?;
    let time = b.push("sinusoid", Op::TimestepEmbedding { channels: width, flip: true, shift: 0.0 }, &[])?;
    let time = b.linear(&format!("time{width}"), time, width, true)?;
    let all = b.push("and time", Op::AddChannels, &[all, time])?;
    b.store(all, outside, Row::All)?;
    b.when(Flag::Window, |b| {
        b.for_each_sample(|b| {
            let row = b.load(outside, Row::Sample)?;
            let row = b.affine("look", row, 2.0, 1.0)?;
            b.store(row, seen, Row::Sample)?;
            b.when(Flag::Sample(flags), |b| {
                let back = b.linear(&format!("back{width}"), row, width, false)?;
                b.store(back, moved, Row::Sample)
            })
        })
    })?;
    let last = b.push("last", Op::Concat, &[all, all])?;
    let both = b.buffer("both", [SAMPLES, 2 * width], DType::F32);
    b.store(last, both, Row::All)?;
    let hoisting = Hoisting { prompt: &["text"], steps: STEPS, timesteps: "timesteps", rows: "time" };
    run_all(hoist(b.finish(), &hoisting)?)
}

const BUFFERS: [&str; 4] = ["outside", "seen", "moved", "both"];

/// What a backend makes of a few steps, in and out of the window, with other flags each; a program with a larger
/// arena comes and goes in between.
fn steps(backend: &dyn Backend) -> Vec<Vec<f32>> {
    let load_from = |source: u64, width: usize| -> Box<dyn Program> {
        let (storage, fuse) = backend.storage();
        let plan = Planner::new(step(width).expect("a graph"), storage, fuse)
            .and_then(|p| p.plan())
            .expect("a plan");
        backend.load(plan, &Drawn(source)).expect("a program")
    };
    let load = |width| load_from(1, width);
    let mut program = load(40);
    program.write("timesteps", &[981.0, 801.0, 601.0, 401.0, 201.0, 1.0]).expect("room");
    let mut results = Vec::new();
    for (i, (window, flags)) in [
        (true, [0.0, 1.0, 0.0]),
        (true, [1.0, 0.0, f32::NAN]),
        (false, [1.0, 1.0, 1.0]),
        (true, [0.0, 0.0, 0.0]),
        (true, [1.0, 1.0, 1.0]),
        (true, [0.0, 0.0, -1.0]),
    ]
    .into_iter()
    .enumerate()
    {
        if i == 4 {
            let mut wide = load(200);
            wide.write("z", &[0.5; 600]).expect("room");
            wide.run(&StepState::default(), &Stop::default()).expect("a run");
            results.push(wide.read("both").expect("numbers"));
        }
        let z: Vec<f32> = (0..SAMPLES * 40).map(|n| ((n * 37 + i * 11) % 101) as f32 / 50.0 - 1.0).collect();
        program.write("z", &z).expect("room");
        program.write("flags", &flags).expect("room");
        // The first text is heard by launches, the second in front of a graph, and none in between.
        let text: Vec<f32> = z.iter().map(|z| z * 0.25).collect();
        program.write("text", &text).expect("room");
        let state = StepState { step: i as u32, fresh: i % 3 == 0, window, ..StepState::default() };
        program.run(&state, &Stop::default()).expect("a run");
        results.extend(BUFFERS.iter().map(|name| program.read(name).expect("numbers")));
    }
    // Another model with weights of the same names.
    let mut other = load_from(2, 40);
    let both = [&mut program, &mut other].map(|program| {
        program.write("z", &[0.25; 3 * 40]).expect("room");
        program.run(&StepState::default(), &Stop::default()).expect("a run");
        program.read("outside").expect("numbers")
    });
    assert_ne!(both[0], both[1], "every model has its own weights");
    results.extend(both);
    results
}

/// Set in a process that is such a test again, with the stub where the loader looks when it starts.
const INSIDE: &str = "UNGUIDE_TEST_INSIDE";

/// Runs the test of that name in a process of its own for every setting of graphs, unless this is such a process.
fn inside(test: &str, settings: &[(&str, &str)]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    for &(graph, library) in settings {
        let mut again = Command::new(std::env::current_exe().expect("this test"));
        again.args(["--exact", test, "--nocapture"]);
        again.env("LD_LIBRARY_PATH", stub(library)).env("UNGUIDE_CUDA_GRAPH", graph);
        again.env(INSIDE, if library == "ALL" { graph } else { "0" });
        let ran = again.output().expect("started");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(ran.status.success(), "{graph} {library}\n{}\n{}", said(&ran.stdout), said(&ran.stderr));
    }
    false
}

#[test]
fn steps_give_what_the_simulated_device_gives_bit_for_bit() {
    let settings = [("1", "ALL"), ("0", "ALL"), ("1", "WITHOUT_GRAPHS")];
    if !inside("steps_give_what_the_simulated_device_gives_bit_for_bit", &settings) {
        return;
    }
    let gpu = usable(0).expect("the stub");
    let target = gpu.target().expect("a target");
    let count = stub_with_kernels();
    for storage in Storage::BOTH {
        let expected = steps(&SimtDevice::new(storage, 1).like(target));
        let before = count(c"graph_launches");
        let device = CudaDevice::open(&gpu, storage, None).expect("opened");
        let got = steps(&device);
        assert_eq!(got.len(), expected.len());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let same = got.iter().zip(expected).all(|(got, expected)| got.to_bits() == expected.to_bits());
            assert!(same && got.len() == expected.len(), "result {i}: {got:?}\n{expected:?}");
        }
        let graphs = count(c"graph_launches") - before;
        drop(device);
        assert_eq!((count(c"mistakes"), count(c"alive")), (0, 0));
        // The first run, that after the arena moved, and the other model's only one are by launches.
        let graph = std::env::var(INSIDE).is_ok_and(|graph| graph == "1");
        assert_eq!(graphs, if graph { 5 } else { 0 });
    }
}

#[test]
fn images_are_those_of_the_simulated_device_with_a_second_try_too() {
    if !inside("images_are_those_of_the_simulated_device_with_a_second_try_too", &[("1", "ALL")]) {
        return;
    }
    let gpu = usable(0).expect("the stub");
    let target = gpu.target().expect("a target");
    let count = stub_with_kernels();
    let place = Place::new();
    for (folder, method) in [(golden::golden("tiny-sd1"), "safe"), (loud(&place), "plain")] {
        let model = golden::open(&folder);
        let case = golden::json(&golden::golden("tiny-sd1").join("case.json"));
        let mut request = golden::request(&model, &case, &case["runs"][method]);
        // As short as can be: the loud model's images are made twice.
        let guarded = !matches!(request.method, Method::None);
        (request.steps, request.batch_size) = if guarded { (2, 1) } else { (1, 1) };
        request.prompts.truncate(if guarded { 1 } else { 2 });
        let run = |backend: &dyn Backend| {
            let mut trace = Trace::default();
            generate(&model, backend, &request, &mut trace, &Stop::default()).expect("images");
            trace
        };
        let device = CudaDevice::open(&gpu, Storage::F16, None).expect("opened");
        let (got, expected) = (run(&device), run(&SimtDevice::new(Storage::F16, 1).like(target)));
        for (name, expected) in expected.tensors() {
            let got = got.get(name).expect("the same tensors");
            let same = got.data().iter().zip(expected.data()).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && got.shape() == expected.shape(), "{name}");
        }
        assert_eq!(got.get("final.image").expect("images").shape()[0], request.images());
        drop(device);
        assert_eq!((count(c"mistakes"), count(c"alive")), (0, 0));
    }
}
