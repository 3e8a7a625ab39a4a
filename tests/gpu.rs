//! Kernels and whole models on a GPU: the proofs of `tests/kernels` and the golden runs of the demo, with the CUDA
//! backend in place of the CPU's. What they are judged by is the same. All but one are ignored unless they are asked for
//! (`--include-ignored`), for they take a GPU.
//!
//! | variable | what it does |
//! |---|---|
//! | `UNGUIDE_TEST_GPU=N` | names the GPU; 0, the first, if absent |
//! | `UNGUIDE_TEST_STUB=1` | the driver is `tests/stub_cuda`, found by the loader: kernels run on the CPU |
//! | `UNGUIDE_TEST_FAMILY=NAME` | only proofs of that family: `gemm`, `conv2d`, .. |
//! | `UNGUIDE_TEST_FILTER=WORD` | only proofs with that word in their names |
//! | `UNGUIDE_TEST_EVERY=N` | only every Nth of them |
//! | `UNGUIDE_TEST_STEPS=N` | of whole runs; 12, those of the golden traces, if absent |
//! | `UNGUIDE_TEST_RUNS=N` | that have to be equal; 20 if absent |
//! | `UNGUIDE_TEST_PROBES=FILE` | what `benches/gpu/probes.py` recorded on a device, for the twins of its instructions |

#![cfg(target_os = "linux")]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/stub.rs"]
mod stub;
mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use bytemuck::bytes_of;
use half::{bf16, f16};
use serde::Deserialize;
use support::device::{FAMILIES, Proof};
use unguide::backend::{Backend, Stop};
use unguide::cuda::{CudaDevice, Gpu, TrialOperand, usable};
use unguide::launch::Storage;
use unguide::launch::params::{DevicePtr, PointwiseParams};
use unguide::manifest::Arch;
use unguide::pipeline::{Model, Request, Trace, generate};
use unguide::simt::{Mode, Simt, Swizzle, TensorMap};
use unguide::tensor::{Tensor, compare};

/// One test at a time has the device.
static DEVICE: Mutex<()> = Mutex::new(());

fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable)
        .map_or(otherwise, |n| n.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}

/// Runs a test on the GPU that was asked for.
fn on_the_device(test: &str, body: impl FnOnce(&Gpu)) {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let gpu = usable(number("UNGUIDE_TEST_GPU", 0)).unwrap_or_else(|error| panic!("{error}"));
    let place = if number("UNGUIDE_TEST_STUB", 0) == 1 {
        let _ = stub::stub_with_kernels();
        "a stand-in for a GPU".to_owned()
    } else {
        format!("{} ({})", gpu.name, gpu.target().unwrap_or_else(|error| panic!("{error}")))
    };
    println!("{test}: on {place}");
    body(&gpu);
}

fn device(gpu: &Gpu, storage: Storage) -> CudaDevice {
    CudaDevice::open(gpu, storage, None).unwrap_or_else(|error| panic!("{error}"))
}

// --- Kernels.

/// What is wrong with a proof's results on the device, if anything is.
fn hold(device: &CudaDevice, proof: &Proof, storage: Storage) -> Result<(), String> {
    let mut simt = Simt::new();
    let prepared = proof.prepare(&mut simt, storage);
    let at = |at| TrialOperand { at, bytes: simt.get(at) };
    let operands: Vec<TrialOperand> = simt.buffers().map(at).collect();
    let run = || {
        let mut operands = operands.clone();
        let ran = device.try_launches(&prepared.launches, &mut operands);
        ran.map(|()| operands).map_err(|error| error.to_string())
    };
    let (one, other) = (run()?, run()?);
    one.iter().for_each(|operand| simt.write(operand.at, 0, &operand.bytes));
    prepared.judge(&simt, &proof.wanted(storage))?;
    if one == other { Ok(()) } else { Err("two runs differ".to_owned()) }
}

/// The proofs that were asked for and that the device can run, those that older ones can run first: where a fault ends
/// everything, these are done. And how many it cannot run.
fn chosen(target: &str, storage: Storage) -> (Vec<Proof>, usize) {
    let word = |variable: &str| std::env::var(variable).unwrap_or_default();
    let (family, name) = (word("UNGUIDE_TEST_FAMILY"), word("UNGUIDE_TEST_FILTER"));
    let names = FAMILIES.map(|(name, _)| name);
    assert!(family.is_empty() || names.contains(&&*family), "UNGUIDE_TEST_FAMILY: one of {names:?}");
    let of_family = FAMILIES.iter().filter(|(name, _)| family.is_empty() || *name == family);
    let named = of_family.flat_map(|(_, proofs)| proofs()).filter(|proof| proof.name.contains(&name));
    let asked: Vec<Proof> = named.step_by(number("UNGUIDE_TEST_EVERY", 1)).collect();
    assert!(!asked.is_empty(), "no proof has {name:?} in its name");
    let (count, mut older, mut newest) = (asked.len(), Vec::new(), Vec::new());
    for proof in asked {
        let launches = proof.prepare(&mut Simt::new(), storage).launches;
        if launches.iter().all(|launch| launch.kernel.arch == Arch::Sm80) {
            older.push(proof);
        } else if launches.iter().all(|launch| launch.kernel.arch.runs_on(target)) {
            newest.push(proof);
        }
    }
    older.append(&mut newest);
    let left_out = count - older.len();
    (older, left_out)
}

/// Whether the device still does what it is told: after a kernel's fault it does nothing for this process any more.
fn goes_on(device: &CudaDevice) -> bool {
    device.try_launches(&[], &mut [TrialOperand { at: DevicePtr::NONE, bytes: vec![0; 4] }]).is_ok()
}

fn all_hold(gpu: &Gpu, storage: Storage) {
    let (device, target) = (device(gpu, storage), gpu.target().unwrap_or_else(|error| panic!("{error}")));
    let (proofs, left_out) = chosen(target, storage);
    let (mut failures, count) = (Vec::new(), proofs.len());
    println!("{count} proofs in {}; {left_out} are not for {target}", storage.name());
    for (i, proof) in proofs.iter().enumerate() {
        // Said before: it may be the last that is heard of this process.
        println!("{}", proof.name);
        if let Err(problem) = hold(&device, proof, storage) {
            println!("FAILED: {problem}");
            failures.push(format!("{}: {problem}", proof.name));
            if !goes_on(&device) {
                failures.push(format!("the device is lost since: {} proofs were not tried", count - i - 1));
                break;
            }
        }
    }
    assert!(failures.is_empty(), "{} in {}:\n{}", failures.len(), storage.name(), failures.join("\n"));
    println!("all {count} hold");
}

#[test]
#[ignore = "takes a GPU"]
fn kernels_with_f16_hold() {
    on_the_device("kernels with f16", |gpu| all_hold(gpu, Storage::F16));
}

#[test]
#[ignore = "takes a GPU"]
fn kernels_with_bf16_hold() {
    on_the_device("kernels with bf16", |gpu| all_hold(gpu, Storage::Bf16));
}

/// That a proof reaches a device as it should, without one: every so many of them, of every family, on the stand-in.
#[test]
fn some_proofs_of_every_family_hold_on_a_stand_in() {
    // The loader looks at its path when a process starts.
    let mut again = Command::new(std::env::current_exe().expect("this test"));
    again.args(["--exact", "kernels_with_f16_hold", "--include-ignored", "--nocapture"]);
    again.env("LD_LIBRARY_PATH", stub::stub("ALL"));
    again.envs([("UNGUIDE_TEST_GPU", "0"), ("UNGUIDE_TEST_STUB", "1"), ("UNGUIDE_TEST_EVERY", "7")]);
    let ran = again.output().expect("started");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let text = said(&ran.stdout);
    assert!(ran.status.success() && text.contains(" hold\n"), "{text}\n{}", said(&ran.stderr));
    assert!(text.contains("on a stand-in") && text.contains("; 0 are not for sm_90a"), "{text}");
    for word in ["forward", "backward", "sm90"] {
        assert!(text.contains(word), "no proof of {word} in\n{text}");
    }
}

// --- What the hardware did.

/// A record of `benches/gpu/probes.py`.
#[derive(Deserialize)]
struct Record {
    kernel: String,
    kind: String,
    threads: u32,
    shared_bytes: u32,
    out_bytes: usize,
    seed: u64,
    dtype: String,
    #[serde(default)]
    x: usize,
    #[serde(default)]
    y: usize,
    #[serde(default)]
    c: i32,
    #[serde(default)]
    a_desc: u64,
    #[serde(default)]
    b_desc: u64,
    #[serde(default)]
    extents: Vec<u64>,
    #[serde(default)]
    tile: Vec<u32>,
    #[serde(default)]
    swizzle: u64,
    #[serde(default)]
    at: Vec<i32>,
    #[serde(default)]
    fnv1a: String,
    #[serde(default)]
    first_bytes: String,
}

impl Record {
    /// What the twins of its instructions make of the same operands.
    fn replayed(&self) -> Vec<u8> {
        let mut simt = Simt::new();
        let out = simt.alloc(self.out_bytes);
        let params = match &*self.kind {
            "pointwise" => {
                let (x, y) = (simt.put(&self.halves(self.x, 0)), simt.put(&self.halves(self.y, 1)));
                bytes_of(&PointwiseParams { x, y, out, c: self.c, ..Default::default() }).to_vec()
            }
            "wgmma" => {
                let (a, b) = (simt.put(&self.halves(self.x, 0)), simt.put(&self.halves(self.y, 1)));
                bytes_of(&[a.0, b.0, out.0, self.a_desc, self.b_desc]).to_vec()
            }
            "box" => self.box_params(&mut simt, out),
            other => panic!("a record of kind {other}"),
        };
        let ran = simt.launch(&self.kernel, [1; 3], self.threads, self.shared_bytes, &params, Mode::FAST);
        ran.unwrap_or_else(|error| panic!("{error}"));
        simt.get(out)
    }

    /// Small whole numbers that follow from the seed, in f16 or bf16.
    fn halves(&self, count: usize, which: u64) -> Vec<u8> {
        let seed = self.seed + which;
        let number = |i: u64| {
            let mixed = (i * 2_654_435_761 + seed * 40_503) % (1 << 32);
            (mixed >> 16) as i32 % 9 - 4
        };
        let bits = |i: u64| match &*self.dtype {
            "bf16" => bf16::from_f32(number(i) as f32).to_bits(),
            _ => f16::from_f32(number(i) as f32).to_bits(),
        };
        (0..count as u64).flat_map(|i| bits(i).to_le_bytes()).collect()
    }

    fn box_params(&self, simt: &mut Simt, out: DevicePtr) -> Vec<u8> {
        let (width, height) = (self.extents[0], self.extents[1]);
        let pitch = width.next_multiple_of(8);
        let element = |i: u64| match i % pitch {
            x if x < width => (i / pitch * width + x + 1) as u16,
            _ => 0xeeee,
        };
        let x: Vec<u8> = (0..pitch * height).flat_map(|i| element(i).to_le_bytes()).collect();
        let address = simt.put(&x);
        let swizzle = match self.swizzle {
            32 => Swizzle::B32,
            64 => Swizzle::B64,
            128 => Swizzle::B128,
            _ => Swizzle::None,
        };
        let map = TensorMap::tiled(address, 2, &self.extents, &[2 * pitch], &self.tile, swizzle);
        let mut params = bytes_of(&map.expect("as a driver takes it")).to_vec();
        params.extend([0; 128]);
        params.extend(out.0.to_le_bytes());
        let words = [self.at[0], self.at[1], 0, 0, self.out_bytes as i32, 2];
        params.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        params.extend([0; 32]);
        params
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[test]
#[ignore = "takes what a device has recorded: UNGUIDE_TEST_PROBES=probes.json"]
fn what_the_hardware_did_is_what_its_twins_do() {
    let file = std::env::var_os("UNGUIDE_TEST_PROBES").expect("UNGUIDE_TEST_PROBES names the records");
    let all = golden::json(&PathBuf::from(file));
    let records: Vec<Record> = serde_json::from_value(all["records"].clone()).expect("records");
    assert!(!records.is_empty(), "no records");
    for record in &records {
        let out = record.replayed();
        let first: String = out.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(first, record.first_bytes, "{}", record.kernel);
        assert_eq!(format!("{:016x}", fnv1a(&out)), record.fnv1a, "{}", record.kernel);
    }
    println!("{} records of {}: the twins do the same", records.len(), all["device"]);
}

// --- Whole models.

/// Relative L2 distance of final latents and images from torch's in f32.
const NEAR: f64 = 2e-2;
/// Scores that are so near to the threshold may fall on the other side.
const UNDECIDED: f32 = 5e-3;

/// A folder of the repository, which may have moved since the test was compiled.
fn folder(path: &str) -> PathBuf {
    let here = PathBuf::from(path);
    if here.exists() { here } else { PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path) }
}

/// The demo with the request of its golden runs.
fn demo(method: &str) -> (Model, Request) {
    let model = golden::open(&folder("assets/emoji-sd"));
    let case = golden::json(&folder("tests/golden/demo").join("case.json"));
    let mut settings = case.clone();
    (settings["method"], settings["eta"]) = (method.into(), 0.0.into());
    let mut request = golden::request(&model, &case, &settings);
    request.steps = number("UNGUIDE_TEST_STEPS", request.steps);
    (model, request)
}

fn run(model: &Model, backend: &dyn Backend, request: &Request) -> Trace {
    let mut trace = Trace::default();
    generate(model, backend, request, &mut trace, &Stop::default()).unwrap_or_else(|error| panic!("{error}"));
    trace
}

/// Samples whose gates are torch's wherever its scores are decided.
fn same_gates(got: &Trace, want: &dyn Fn(&str) -> Option<Tensor<f32>>, request: &Request) -> Vec<bool> {
    let threshold = request.method.guidance().map_or(0.0, |guidance| guidance.threshold as f32);
    let mut same = vec![true; request.images()];
    for step in 0..request.steps {
        let name = |part: &str| format!("step.{step:03}.{part}");
        let (Some(gates), Some(scores)) = (want(&name("gate")), want(&name("scores"))) else { continue };
        let found = got.get(&name("gate")).expect("a gate where torch has one");
        for (sample, same) in same.iter_mut().enumerate() {
            let undecided = scores.row(sample).iter().any(|score| (score - threshold).abs() <= UNDECIDED);
            let agree = found.data()[sample] == gates.data()[sample];
            assert!(agree || undecided || !*same, "step {step}, sample {sample}: {:?}", scores.row(sample));
            *same &= agree;
        }
    }
    same
}

#[test]
#[ignore = "takes a GPU"]
fn the_demo_draws_its_golden_images() {
    on_the_device("the demo's golden runs", |gpu| {
        for (kind, method) in [("plain", "none"), ("safe", "safe-sampling")] {
            let (model, request) = demo(method);
            let recorded = golden::tensors(&folder("tests/golden/demo").join(format!("{kind}.safetensors")));
            let reference =
                (request.steps != 12).then(|| run(&model, &unguide::cpu::Cpu::<f32>::new(), &request));
            let want = |name: &str| match &reference {
                Some(trace) => trace.get(name).cloned(),
                None => recorded.get(name).cloned(),
            };
            let got = run(&model, &device(gpu, Storage::F16), &request);
            let judged = same_gates(&got, &want, &request);
            for name in ["final.latents", "final.image"] {
                let (got, want) = (got.get(name).expect("a result"), want(name).expect("a result"));
                for sample in (0..request.images()).filter(|&sample| judged[sample]) {
                    let distance = compare(got.row(sample), want.row(sample)).rel_l2;
                    println!("{kind} {name} {sample}: relative L2 {distance:.1e}");
                    assert!(distance <= NEAR, "{kind} {name} {sample}: {distance}");
                }
            }
            println!("{kind}: {} of {} images judged", judged.iter().filter(|&&j| j).count(), judged.len());
            assert!(judged.contains(&true), "every image was near to the threshold");
        }
    });
}

#[test]
#[ignore = "takes a GPU"]
fn every_run_and_every_batch_give_the_same_bits() {
    on_the_device("determinism", |gpu| {
        let (model, mut request) = demo("safe-sampling");
        request.prompts = request.prompts.iter().cycle().take(8).cloned().collect();
        request.batch_size = 8;
        let bits = |trace: &Trace| -> Vec<(String, Vec<u32>)> {
            let bits = |x: &Tensor<f32>| x.data().iter().map(|x| x.to_bits()).collect();
            trace.tensors().map(|(name, tensor)| (name.to_owned(), bits(tensor))).collect()
        };
        let on_a_new_device = |request: &Request| bits(&run(&model, &device(gpu, Storage::F16), request));
        let first = on_a_new_device(&request);
        let runs = number("UNGUIDE_TEST_RUNS", 20);
        for n in 1..runs {
            assert!(on_a_new_device(&request) == first, "run {n} is another");
        }
        for batch_size in [1, 3] {
            let other = on_a_new_device(&Request { batch_size, ..request.clone() });
            assert!(other == first, "a batch of {batch_size} gives other images than one of 8");
        }
        println!("{runs} runs of 8 images, and batches of 1 and 3: the same bits");
    });
}
