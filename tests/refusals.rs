//! What the build refuses: kernels that are wrong, spill, or take more than their row allows.

#![allow(dead_code)] // the build's own modules, of which this is one caller

#[path = "../kernels/build/cache.rs"]
mod cache;
#[path = "../kernels/build/cubins.rs"]
mod cubins;
#[path = "../src/manifest.rs"]
mod manifest;
#[path = "../kernels/build/nvrtc.rs"]
mod nvrtc;
#[path = "../src/cuda/places.rs"]
mod places;
#[path = "../kernels/build/sources.rs"]
mod sources;

use std::path::Path;

use manifest::{Arch, Kernel};
use nvrtc::Nvrtc;

/// A kernel that keeps 200 numbers at once.
const GREEDY: &str = "extern \"C\" __global__ void __launch_bounds__(1024) greedy_f32(float* x) {
    float kept[200];
    #pragma unroll
    for (int i = 0; i < 200; ++i) kept[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 200; ++i) x[i * 1024 + threadIdx.x] = kept[i] * kept[199 - i];
}";

#[test]
fn spills_are_refused_by_kernel() {
    let error = verdict(GREEDY, row("greedy_f32", 64)).expect_err("1024 threads have 64 registers each");
    assert!(error.contains("kernel greedy_f32 (kernels/greedy.cu:"), "{error}");
    assert!(error.contains("registers are spilled"), "{error}");
}

#[test]
fn more_registers_than_the_row_allows_are_refused_with_both_numbers() {
    let roomy = GREEDY.replace("1024)", "128)");
    let error = verdict(&roomy, row("greedy_f32", 40)).expect_err("200 numbers do not fit into 40");
    assert!(error.contains("registers, its row in the manifest allows 40"), "{error}");
    assert!(verdict(&roomy, row("greedy_f32", 255)).is_ok(), "with room it is right");
}

#[test]
fn local_memory_is_refused_for_the_tuned_forms() {
    let indexed = "extern \"C\" __global__ void greedy_f32(float* x) {
    float kept[16];
    for (int i = 0; i < 16; ++i) kept[i] = x[i];
    for (int i = 0; i < 16; ++i) x[i] = kept[int(x[i + 16]) & 15];
}";
    let tuned = Kernel { shared_bytes: 1024, ..row("greedy_f32", 255) };
    let error = verdict(indexed, tuned).expect_err("the array is indexed by what memory says");
    assert!(error.contains("bytes of local memory"), "{error}");
    assert!(verdict(indexed, row("greedy_f32", 255)).is_ok(), "a general form may");
}

#[test]
fn a_compile_error_names_file_and_line() {
    let error = verdict("\n\nextern \"C\" __global__ void greedy_f32(flaot* x) {}", row("greedy_f32", 255))
        .expect_err("no such type");
    assert!(error.contains("kernels/greedy.cu(3)") && error.contains("flaot"), "{error}");
}

#[test]
fn serialised_matrix_instructions_are_refused_although_they_compile() {
    let log =
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized";
    let Err(error) = cubins::accept([row("greedy_f32", 255)].iter(), log) else { panic!("accepted") };
    assert!(error.contains("serialised") && error.contains("C7510"), "{error}");
}

#[test]
fn a_kernel_that_the_log_leaves_out_is_refused() {
    let Err(error) = cubins::accept([row("greedy_f32", 255)].iter(), "") else { panic!("accepted") };
    assert!(error.contains("does not speak of it"), "{error}");
}

fn verdict(source: &str, row: Kernel) -> Result<(), String> {
    let nvrtc = Nvrtc::find(Path::new(env!("CARGO_MANIFEST_DIR")))?.ok_or("the build had one")?;
    let options = ["--gpu-architecture=sm_80", "--ptxas-options=-v"].map(str::to_owned);
    let compiled = nvrtc.compile(("kernels/greedy.cu", source), &[], &options, false)?;
    cubins::accept([row].iter(), &compiled.log).map(|_| ())
}

fn row(name: &'static str, registers: u32) -> Kernel {
    Kernel {
        name,
        file: "greedy.cu",
        function: "greedy_f32",
        arguments: "",
        params: "None",
        threads: 1024,
        shared_bytes: 0,
        registers,
        cluster: 1,
        arch: Arch::Sm80,
    }
}
