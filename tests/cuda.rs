//! The CUDA backend without a GPU: against a stand-in for the driver, which either does nothing and fails on command,
//! or runs the kernels on the CPU.
//!
//! What this cannot show: that a real driver takes what the stand-in takes, and anything about speed.

#![cfg(target_os = "linux")]

#[path = "support/process.rs"]
mod process;
#[path = "support/stub.rs"]
mod stub;

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::process::Command;

use process::{Place, Ran};
use stub::{Counts, stub};
use unguide::backend::{Backend, Program, Stop, WeightSource};
use unguide::cuda::{CudaDevice, usable};
use unguide::error::Result;
use unguide::ir::{Activation, Builder, Flag, Graph, Op, Row};
use unguide::launch::{Launch, Storage};
use unguide::manifest;
use unguide::plan::{Planner, StepState};
use unguide::simt::{Mode, Simt, SimtDevice};
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
    let mut words = vec!["generate", "-p", "a battlefield", "-o", "out.png"];
    for default in ["--steps 2", "--device cuda"] {
        let flag = default.split(' ').next().expect("a flag");
        if !line.contains(flag) {
            words.extend(default.split(' '));
        }
    }
    let mut command = place.command(words.into_iter().chain(line.split_whitespace()));
    command.env("LD_LIBRARY_PATH", stub(defined)).env("STUB_REPORT", &report);
    command.env("UNGUIDE_CACHE_DIR", place.path("cache")).envs(settings.iter().copied());
    let ran = Ran::new(command.output().expect("started"));
    let made = place.path("out.png").exists();
    assert_eq!(made, ran.code == Some(0), "an image exactly where the run succeeded: {}", ran.stderr);
    (ran, report.exists().then(|| Counts::read(&report)))
}

#[test]
fn an_image_is_made_and_everything_is_given_back() {
    let (ran, counts) = draw("ALL", &[], "--steps 4");
    ran.says(0, &[]);
    counts.are_even();
    // The first step by launches, the others by graph; so do texts after the first.
    assert!(counts.get("launches") > 100 && counts.get("graph_launches") > 3);

    let (ran, counts) = draw("WITHOUT_GRAPHS", &[], "--steps 3");
    ran.says(0, &[]);
    counts.are_even();
    assert_eq!(counts.get("graph_launches"), 0);
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
        ran.says(4, &["no NVRTC", "nvidia-cuda-nvrtc-cu12"]);
    }
    counts.are_even();
    let nvrtc = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nvrtc/nvidia/cuda_nvrtc/lib");
    if !nvrtc.exists() {
        return;
    }
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

/// Numbers in place of a checkpoint.
struct Drawn;

impl WeightSource for Drawn {
    fn load(&self, name: &str, shape: &Shape) -> Result<Vec<f32>> {
        let seed = name.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        let number =
            |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16) as f32 / 65536.0;
        Ok((0..shape.count()).map(|i| number(i) - 0.5).collect())
    }
}

const SAMPLES: usize = 3;

/// A step with all that a step may have: work for the whole batch, a loop over samples inside of the window, and a
/// branch inside of the loop.
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
    Ok(b.finish())
}

const BUFFERS: [&str; 4] = ["outside", "seen", "moved", "both"];

/// What a backend makes of a few steps, in and out of the window, with other flags each; a program with a larger
/// arena comes and goes in between.
fn steps(backend: &dyn Backend) -> Vec<Vec<f32>> {
    let load = |width: usize| -> Box<dyn Program> {
        let (storage, fuse) = backend.storage();
        let plan = Planner::new(step(width).expect("a graph"), storage, fuse)
            .and_then(|p| p.plan())
            .expect("a plan");
        backend.load(plan, &Drawn).expect("a program")
    };
    let mut program = load(40);
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
        program.run(&StepState { window, ..StepState::default() }, &Stop::default()).expect("a run");
        results.extend(BUFFERS.iter().map(|name| program.read(name).expect("numbers")));
    }
    results
}

/// What the stub runs: the very sources of the kernels, on the CPU.
extern "C" fn params_bytes(kernel: *const c_char) -> usize {
    // SAFETY: the stub's names end in NUL.
    let name = unsafe { CStr::from_ptr(kernel) }.to_str().expect("a name");
    Simt::kernel(name).expect("a kernel").1
}

extern "C" fn launch(kernel: *const c_char, grid: *const u32, params: *const c_void, bytes: usize) {
    // SAFETY: the stub's names end in NUL, its grids have three extents, and params the bytes that it was told.
    let (name, grid, params) = unsafe {
        let params = std::slice::from_raw_parts(params.cast::<u8>(), bytes).to_vec();
        (CStr::from_ptr(kernel).to_str().expect("a name"), *grid.cast::<[u32; 3]>(), params)
    };
    let kernel = manifest::find(name).expect("a row");
    let launch = Launch { kernel, grid, params, addresses: 0, maps: Vec::new() };
    Simt::new().run(&launch, Mode::FAST).expect("a launch that is right");
}

#[test]
fn steps_give_what_the_simulated_device_gives_bit_for_bit() {
    const INSIDE: &str = "UNGUIDE_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        // The loader looks at its path when a process starts.
        for (graph, library) in [("1", "ALL"), ("0", "ALL"), ("1", "WITHOUT_GRAPHS")] {
            let mut again = Command::new(std::env::current_exe().expect("this test"));
            again.args(["--exact", "steps_give_what_the_simulated_device_gives_bit_for_bit", "--nocapture"]);
            again.env("LD_LIBRARY_PATH", stub(library)).env("UNGUIDE_CUDA_GRAPH", graph);
            again.env(INSIDE, if library == "ALL" { graph } else { "0" });
            let ran = again.output().expect("started");
            let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert!(ran.status.success(), "{graph} {library}\n{}\n{}", said(&ran.stdout), said(&ran.stderr));
        }
        return;
    }
    let gpu = usable(0).expect("the stub");
    // SAFETY: the library is the stub, loaded by the line above; these are its functions.
    let count = unsafe {
        let stub = cudarc::driver::sys::culib();
        type Kernels = unsafe extern "C" fn(
            extern "C" fn(*const c_char) -> usize,
            extern "C" fn(*const c_char, *const u32, *const c_void, usize),
        );
        let kernels = stub.get::<Kernels>(b"stub_kernels").expect("the stub");
        kernels(params_bytes, launch);
        *stub.get::<unsafe extern "C" fn(*const c_char) -> i64>(b"stub_count").expect("the stub")
    };
    // SAFETY: names end in NUL.
    let count = |name: &CStr| unsafe { count(name.as_ptr()) };
    for storage in Storage::BOTH {
        let expected = steps(&SimtDevice::new(storage, 1));
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
        // The first run, and that after the arena moved, are by launches.
        let graph = std::env::var(INSIDE).is_ok_and(|graph| graph == "1");
        assert_eq!(graphs, if graph { 4 } else { 0 });
    }
}
