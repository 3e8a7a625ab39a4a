//! What `unguide bench kernels` measures: pieces of models, judged against the CPU backend; and measuring itself,
//! against the stand-in for the CUDA driver, which runs the kernels on the CPU and by whose clock every launch
//! takes as long as the other.

#![cfg(target_os = "linux")]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/process.rs"]
mod process;
#[path = "support/stub.rs"]
mod stub;
#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{CStr, c_char, c_void};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use golden::{demo, open};
use process::{Place, Ran};
use rayon::prelude::*;
use stub::{Counts, params_bytes, stub, stub_launch};
use support::device::proofs;
use unguide::backend::{Program, Stop};
use unguide::bench::kernels::{Case, Key, cases};
use unguide::bench::measure::{Measurement, Session, Settings};
use unguide::bench::operands::{Value, state};
use unguide::bench::pieces::{Piece, pieces};
use unguide::bench::programs;
use unguide::cuda::{CudaDevice, usable};
use unguide::error::Result;
use unguide::ir::Graph;
use unguide::launch::{LaunchProgram, Storage, lower};
use unguide::manifest::KERNELS;
use unguide::passes::fuse;
use unguide::pipeline::Blueprint;
use unguide::plan::{self, Stage, StepProgram};
use unguide::simt::{Mode, Simt, SimtDevice};

fn planned(graphs: Vec<Graph>, storage: Storage) -> Vec<StepProgram> {
    let plan = |graph: Graph| {
        let fusion = fuse(&graph);
        StepProgram::fused(graph, fusion, plan::Storage::of(storage.dtype())).expect("a plan")
    };
    graphs.into_iter().map(plan).collect()
}

fn of_demo() -> Vec<Graph> {
    programs::of_model(&Blueprint::of(&open(&demo())), 1).expect("graphs")
}

fn odd() -> Vec<Graph> {
    vec![programs::odd().expect("a graph")]
}

/// What the kernels make of a piece, and how that is judged.
fn judge(piece: &Piece, storage: Storage) -> Result<Result<f64, String>> {
    let device = SimtDevice::new(storage, 1);
    let mut program = device.load_program(piece.step(storage, fuse)?, &piece.weights(storage))?;
    let operands = piece.operands(storage)?;
    for (i, operand) in operands.iter().enumerate() {
        match operand {
            Value::Real(data, _) => program.write(&format!("in{i}"), data)?,
            Value::Index(data) => program.write_indices(&format!("in{i}"), data)?,
        }
    }
    program.run(&state(), &Stop::default())?;
    let wanted = piece.wanted(storage, &operands)?;
    let mut worst = 0f64;
    for (i, (class, wanted)) in piece.classes().iter().zip(&wanted).enumerate() {
        let name = format!("out{i}");
        let (_, buffer) = program.launches().buffer(&name).expect("an output");
        match class.judge(&program.read(&name)?, wanted, buffer.dtype) {
            Ok(share) => worst = worst.max(share),
            Err(problem) => return Ok(Err(problem)),
        }
    }
    Ok(Ok(worst))
}

#[test]
fn pieces_give_on_the_kernels_what_the_cpu_gives_and_nothing_is_judged_loosely() {
    for (storage, graphs) in [(Storage::F16, of_demo()), (Storage::F16, odd()), (Storage::Bf16, odd())] {
        let pieces = pieces(&planned(graphs, storage)).expect("pieces");
        let judged = pieces.par_iter().map(|piece| (piece, judge(piece, storage).expect("a run")));
        let wrong: Vec<String> = judged
            .filter_map(|(piece, verdict)| {
                let near = verdict.as_ref().is_ok_and(|share| *share <= 0.75);
                (!near).then(|| format!("{} {:?}: {verdict:?}", piece.node, piece.classes()))
            })
            .collect();
        assert!(wrong.is_empty() && pieces.len() > 30, "{} pieces, {wrong:#?}", pieces.len());
    }
}

#[test]
fn a_fused_group_is_one_piece_and_runs_as_one_by_itself() {
    let sd15 = Blueprint::preset("sd15").expect("a published model");
    for graph in programs::of_model(&sd15, 1).expect("graphs").into_iter().chain(of_demo()) {
        let (fusion, storage) = (fuse(&graph), plan::Storage::of(Storage::F16.dtype()));
        let groups = fusion.groups.len();
        let step = StepProgram::fused(graph, fusion, storage).expect("a plan");
        let pieces = pieces([&step]).expect("pieces");
        let mut together = 0;
        for piece in &pieces {
            let step = piece.step(Storage::F16, fuse).expect("a plan");
            let [Stage::Run(nodes)] = &step.body[..] else { panic!("{} branches", piece.node) };
            let running = nodes.iter().filter(|&&id| !step.graph.node(id).outputs.is_empty()).count();
            let fusion = || step.fusion.describe(&step.graph);
            assert_eq!(running, piece.units, "{} runs as {running}:\n{}", piece.node, fusion());
            together += step.fusion.groups.len();
        }
        assert!((groups > 0) == (together > 0), "{groups} groups, {together} of the pieces are some");
    }
}

#[test]
fn every_launch_of_a_model_is_one_of_a_piece() {
    let sd15 = Blueprint::preset("sd15").expect("a published model");
    let steps = planned(programs::of_model(&sd15, 1).expect("graphs"), Storage::F16);
    for target in ["sm_80", "sm_90a"] {
        let of_piece = |piece: &Piece| {
            let program = piece.lower(Storage::F16, fuse, target).expect("launches");
            program.steps().into_iter().map(|step| Key::of(&step.launch)).collect::<Vec<_>>()
        };
        let of_pieces: HashSet<Key> = pieces(&steps).expect("pieces").iter().flat_map(of_piece).collect();
        for step in &steps {
            for step in lower(step, Storage::F16, target).expect("launches").steps() {
                let name = step.launch.kernel.name;
                let known = name.starts_with("place_") || of_pieces.contains(&Key::of(&step.launch));
                assert!(known, "{name} of {}", step.node);
            }
        }
    }
}

/// Kernels that no program launches and no proof of the table runs, and who proves them.
const BESIDE: [(&str, &str); 6] = [
    ("geglu_bwd_f16_pairs", "tests/kernels/groups.rs; gates that are computed again under a budget"),
    ("geglu_bwd_bf16_pairs", "tests/kernels/groups.rs; gates that are computed again under a budget"),
    ("cast_", "tests/kernels/main.rs; no program has casts of their own"),
    ("to_nhwc_", "tests/kernels/main.rs; tensors are turned around on the host"),
    ("to_nchw_", "tests/kernels/main.rs; tensors are turned around on the host"),
    ("condition_", "tests/cuda.rs; a node of the driver's graphs"),
];

/// For addresses that are no multiple of 16, which no plan makes: they have proofs, and no program launches them.
fn is_not_chosen(name: &str) -> bool {
    ["add_f16", "add_bf16", "affine_f16", "affine_bf16"].contains(&name)
}

#[test]
fn every_kernel_has_a_proof_and_a_row_of_the_bench() {
    // What is there for one storage type is there for the other.
    let (storage, twin) = (Storage::F16, |name: &str| name.replace("_bf16", "_f16"));
    let proven = proofs().into_par_iter().flat_map_iter(|proof| {
        let prepared = proof.prepare(&mut Simt::new(), storage);
        prepared.launches.into_iter().map(|launch| launch.kernel.name).collect::<Vec<_>>()
    });
    let proven: BTreeSet<&str> = proven.collect();
    let presets = ["sd15", "sd21"].into_iter().flat_map(|name| {
        programs::of_model(&Blueprint::preset(name).expect("a published model"), 1).expect("graphs")
    });
    let mut benched = BTreeSet::new();
    for step in planned(presets.chain(of_demo()).chain(odd()).collect(), storage) {
        for target in ["sm_80", "sm_90a"] {
            let program = lower(&step, storage, target).expect("launches");
            benched.extend(program.steps().into_iter().map(|step| step.launch.kernel.name));
        }
    }
    let missing = |found: &BTreeSet<&str>, excused: fn(&str) -> bool| -> Vec<&str> {
        let names = KERNELS.iter().map(|kernel| kernel.name);
        let beside = |name: &&str| BESIDE.iter().any(|(prefix, _)| name.starts_with(prefix));
        names.filter(|name| !found.contains(&*twin(name)) && !beside(name) && !excused(name)).collect()
    };
    assert_eq!(missing(&proven, |_| false), [""; 0], "kernels without a proof");
    assert_eq!(missing(&benched, is_not_chosen), [""; 0], "kernels without a row of the bench");
}

/// Starts a test of this file again, with the stub in the place of the driver; true inside of it.
fn inside(test: &str, settings: &[(&str, &str)]) -> bool {
    const INSIDE: &str = "UNGUIDE_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // The loader looks at its path when a process starts.
    let mut again = Command::new(std::env::current_exe().expect("this test"));
    again.args(["--exact", test, "--nocapture"]).env("LD_LIBRARY_PATH", stub("ALL")).env(INSIDE, "1");
    let ran = again.envs(settings.iter().copied()).output().expect("started");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(ran.status.success(), "{}\n{}", said(&ran.stdout), said(&ran.stderr));
    false
}

/// From which of a kernel's launches on its result is wrong, how, and how many there were.
struct Spoil {
    kernel: &'static str,
    after: usize,
    with: u16,
    launches: usize,
}

static SPOIL: Mutex<Spoil> = Mutex::new(Spoil { kernel: "none", after: 0, with: 0, launches: 0 });

extern "C" fn launch(kernel: *const c_char, grid: *const u32, params: *const c_void, bytes: usize) {
    let launch = stub_launch(kernel, grid, params, bytes);
    Simt::new().run(&launch, Mode::FAST).expect("a launch that is right");
    let mut spoil = SPOIL.lock().expect("nobody panics with it");
    if launch.kernel.name.starts_with(spoil.kernel) {
        spoil.launches += 1;
        if spoil.launches > spoil.after {
            // Of products the result is the third address, behind the counters of parts where there may be some.
            let at = if launch.kernel.params == "GemmTileParams" { 24 } else { 16 };
            let out = u64::from_le_bytes(launch.params[at..at + 8].try_into().expect("an address"));
            // SAFETY: memory of the stub, of at least one element; nothing else uses it during a launch.
            unsafe { *(out as *mut u16) = spoil.with };
        }
    }
}

const NAN: u16 = 0x7e00;

/// Everything for measuring a few launches of the demo with f16.
struct Measuring {
    steps: Vec<StepProgram>,
    rows: Vec<Case>,
}

impl Measuring {
    fn of(target: &'static str, words: &[&str]) -> Self {
        let steps = planned(of_demo(), Storage::F16);
        let programs: Vec<LaunchProgram> =
            steps.iter().map(|step| lower(step, Storage::F16, target).expect("launches")).collect();
        let mut rows = cases(steps.iter().map(|step| &step.graph).zip(&programs));
        rows.retain(|case| words.iter().any(|word| case.matches(word)));
        Self { steps, rows }
    }

    /// With a kernel that is wrong from some launch on.
    fn run(&self, device: &CudaDevice, spoil: Spoil) -> Vec<(String, Measurement)> {
        *SPOIL.lock().expect("nobody panics with it") = spoil;
        let gpu = usable(0).expect("the stub");
        let target = gpu.target().expect("a target");
        let settings = Settings { warm_up: Duration::ZERO, duration: Duration::ZERO, hot: false };
        let steps: Vec<&StepProgram> = self.steps.iter().collect();
        let how = (Storage::F16, fuse as plan::Fuse);
        let session = Session::new((device, &gpu), target, &steps, how, &self.rows, settings);
        let mut session = session.expect("pieces");
        let measured = self.rows.iter().map(|case| {
            let measured = session.measure(case).expect("a device that goes on");
            (format!("{} {}", case.launch.kernel.name, case.node), measured)
        });
        measured.collect()
    }
}

#[test]
fn what_is_right_gets_a_time_and_what_is_wrong_a_reason() {
    let test = "what_is_right_gets_a_time_and_what_is_wrong_a_reason";
    if !inside(test, &[("STUB_LAUNCH_US", "250")]) {
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
        stub.get::<Kernels>(b"stub_kernels").expect("the stub")(params_bytes, launch);
        *stub.get::<unsafe extern "C" fn(*const c_char) -> i64>(b"stub_count").expect("the stub")
    };
    let device = CudaDevice::open(&gpu, Storage::F16, None).expect("opened");
    let target = gpu.target().expect("a target");
    let measuring =
        Measuring::of(target, &["time_embedding", "mid_block.resnets.0.norm1", "mid_block.resnets.0.conv1"]);
    let right = Spoil { kernel: "none", after: 0, with: 0, launches: 0 };
    let mut timed = 0;
    for (name, measured) in measuring.run(&device, right) {
        let Measurement::Timed(measured) = measured else { panic!("{name}: {measured:?}") };
        // The stub's clock.
        let by_the_clock = (measured.times.median_us - 250.0).abs() < 0.01 && measured.times.variation < 1e-6;
        assert!(by_the_clock && measured.times.runs >= 20, "{name}: {measured:?}");
        assert!(measured.batch >= measured.copies.max(2) && measured.of_tolerance <= 0.75, "{name}");
        timed += 1;
    }
    assert!(timed > 1, "{timed} launches");

    let only = Measuring::of(target, &["time_embedding"]);
    let reasons = |spoil: Spoil| -> BTreeMap<String, String> {
        let reason = |(name, measured)| match measured {
            Measurement::Without(reason) => Some((name, reason)),
            Measurement::Timed(_) => None,
        };
        only.run(&device, spoil).into_iter().filter_map(reason).collect()
    };
    for (after, with, words) in [
        (0, NAN, "its result is wrong: output 0: element 0 is NaN"),
        // A number that is far from right.
        (0, 0x5000, "its result is wrong: output 0: element 0 is 32, wanted"),
        // Only from some launch on, after the comparison.
        (30, NAN, "its result is another after it was timed"),
    ] {
        let reasons = reasons(Spoil { kernel: "gemm", after, with, launches: 0 });
        let spoilt: Vec<_> = reasons.iter().filter(|(name, _)| name.starts_with("gemm")).collect();
        assert!(!spoilt.is_empty() && spoilt.len() == reasons.len(), "{reasons:#?}");
        assert!(spoilt.iter().any(|(_, reason)| reason.starts_with(words)), "{reasons:#?}");
    }
    drop(device);
    // SAFETY: names end in NUL.
    let count = |name: &CStr| unsafe { count(name.as_ptr()) };
    assert_eq!((count(c"mistakes"), count(c"alive")), (0, 0));
}

fn even(counts: Option<Counts>) {
    counts.expect("the stub's counts").are_even();
}

/// `bench kernels` on a few launches, with a driver whose kernels do nothing.
fn bench(settings: &[(&str, &str)], line: &str) -> (Ran, Option<Counts>) {
    let place = Place::new();
    let report = place.path("report");
    let words = "bench kernels --preset demo --filter time_embedding --warm-up 0 --duration 0";
    let mut command = place.command(words.split(' ').chain(line.split_whitespace()));
    command.env("LD_LIBRARY_PATH", stub("ALL")).env("STUB_REPORT", &report).envs(settings.iter().copied());
    let ran = Ran::new(command.output().expect("started"));
    (ran, report.exists().then(|| Counts::read(&report)))
}

#[test]
fn a_device_that_computes_nothing_gets_no_times_and_one_that_is_lost_ends_the_run() {
    for line in ["", "--device cuda", "--device cuda:0"] {
        let (ran, counts) = bench(&[], &format!("--json {line}"));
        ran.says(0, &[]);
        even(counts);
        let lines = ran.json();
        assert!(lines.len() > 1);
        for line in lines {
            assert!(line["time_us"].is_null() && line["floor_us"].is_number(), "{line}");
            let reason = line["not_measured"].as_str().expect("a reason");
            assert!(reason.starts_with("its result is wrong: output 0: element 0 is NaN"), "{line}");
            assert!(line["simt"]["blocks"].is_number() && line["simt"]["bank_conflicts"] == 0, "{line}");
        }
    }
    let (ran, counts) = bench(&[("STUB_STICKY", "3")], "");
    ran.says(4, &["kernel `", "CUDA_ERROR_ILLEGAL_ADDRESS (700)", "(grid ["]);
    even(counts);
    let (ran, counts) = bench(&[("STUB_FAIL_LAUNCH", "2")], "");
    ran.says(4, &["kernel `", "cuLaunchKernel answers CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (701)"]);
    even(counts);
    // No room for the operands of one piece is that piece's misfortune.
    let (ran, counts) = bench(&[("STUB_FAIL_ALLOC", "1")], "--hot");
    ran.says(0, &[]);
    assert!(ran.text().contains("not measured: out of memory"), "{}", ran.text());
    even(counts);
}

#[test]
fn where_nothing_is_measured_one_line_says_why() {
    for (settings, line, words) in [
        (&[][..], "--device none", "nothing is measured: --device none"),
        (&[("STUB_DEVICES", "0")], "", "nothing is measured: device `cuda:0` is not usable"),
        (&[], "--arch sm_80", "nothing is measured: Stub runs sm_90a, not sm_80"),
    ] {
        let place = Place::new();
        let all = "bench kernels --preset demo --filter time_embedding";
        let mut command = place.command(all.split(' ').chain(line.split_whitespace()));
        command.env("LD_LIBRARY_PATH", stub("ALL")).envs(settings.iter().copied());
        let ran = Ran::new(command.output().expect("started"));
        ran.says(0, &[]);
        assert_eq!(ran.text().lines().filter(|line| line.starts_with(words)).count(), 1, "{}", ran.text());
    }
    let (ran, _) = bench(&[], "--device cuda --arch sm_80");
    ran.says(2, &["--arch", "Stub runs sm_90a"]);
    let (ran, _) = bench(&[], "--device abacus");
    ran.says(2, &["--device", "auto, none, cuda or cuda:N"]);
}
