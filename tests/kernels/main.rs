//! Every kernel on the SIMT layer against the CPU backend, on the same table of cases; and the layer itself,
//! on kernels that are wrong on purpose.

mod attention;
mod conv2d;
mod gemm;
mod groups;
mod hopper;
mod layouts;
mod noise;
mod norms;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;

use bytemuck::{bytes_of, cast_slice};
use half::{bf16, f16};
use rayon::prelude::*;
use support::device::{FAMILIES, proofs, round};
use unguide::launch::Storage;
use unguide::launch::params::{DevicePtr, LayoutParams, PointwiseParams};
use unguide::manifest::KERNELS;
use unguide::simt::{Copies, Counts, Mode, Simt, SimtError};

#[test]
fn kernels_with_f16_agree_with_the_cpu_backend_under_every_schedule() {
    agree(Storage::F16);
}

#[test]
fn kernels_with_bf16_agree_with_the_cpu_backend_under_every_schedule() {
    agree(Storage::Bf16);
}

fn agree(storage: Storage) {
    let failures: Vec<String> = proofs().par_iter().filter_map(|proof| proof.hold(storage).err()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_family_of_proofs_is_a_part_of_the_script_for_gpus() {
    let parts = include_str!("../../benches/gpu/parts.json");
    let parts: serde_json::Value = serde_json::from_str(parts).expect("JSON");
    let named: BTreeSet<&str> =
        parts["proofs"].as_object().expect("parts").keys().map(|name| &**name).collect();
    assert_eq!(named, FAMILIES.map(|(name, _)| name).into());
}

#[test]
fn rows_of_the_manifest_are_linked_with_their_threads() {
    for kernel in KERNELS {
        let (threads, _) = Simt::kernel(kernel.name).expect("every row is linked");
        assert_eq!(threads, kernel.threads, "{}", kernel.name);
    }
}

#[test]
fn a_wrong_launch_is_refused_before_it_starts() {
    let mut simt = Simt::new();
    for (kernel, threads, bytes, words) in [
        ("add_f17", 256, 56, "no such kernel"),
        ("add_f16", 128, 56, "128 threads"),
        ("add_f16", 256, 48, "48 bytes"),
    ] {
        let error =
            simt.launch(kernel, [1; 3], threads, 0, &vec![0; bytes], Mode::FAST).expect_err("refused");
        assert!(error.report.contains(words), "{error}");
    }
}

#[test]
fn what_is_right_passes_and_what_is_wrong_is_reported_with_its_lines() {
    // Probe, c, what the checked build says; nothing where the probe is right.
    let probes: [(&str, i32, &[&str]); 13] = [
        ("exchange_across_warps", 0, &[]),
        ("exchange_without_barrier", 0, &["RACE", "probes.cu:"]),
        ("exchange_in_warp", 0, &[]),
        ("shuffle_is_no_fence", 0, &["RACE"]),
        ("reads_unwritten", 0, &["UNINITIALISED read: shared memory"]),
        ("writes_into_red_zone", 1, &["OUT OF BOUNDS write: shared memory"]),
        ("reads_beyond_buffer", 1, &["OUT OF BOUNDS read: global memory"]),
        ("blocks_write_one_place", 0, &["RACE write after write: global memory"]),
        ("deadlocks", 0, &["DEADLOCK", "a shuffle at kernels/simt/probes.cu:"]),
        ("diverges", 0, &["DIVERGENT COLLECTIVE", "probes.cu:"]),
        ("asserts", 0, &["ASSERTION", "p.c == 12345"]),
        ("copies", 0, &[]),
        ("copies", 1, &["READ BEFORE WAIT"]),
    ];
    for (probe, c, words) in probes {
        match (words, launch_probe(probe, c, Mode::CHECKED)) {
            ([], Ok(_)) => {}
            ([], Err(error)) => panic!("{probe} is right: {error}"),
            (words, Ok(_)) => panic!("{probe} passes instead of {words:?}"),
            (words, Err(error)) => {
                assert!(words.iter().all(|word| error.report.contains(word)), "{probe}: {error}");
            }
        }
    }
}

#[test]
fn an_access_far_beyond_a_buffer_is_an_error_of_the_fast_build_too() {
    for c in [1 << 10, 1 << 28, -(1 << 20)] {
        let error = launch_probe("reads_beyond_buffer", c, Mode::FAST).expect_err("a fault");
        assert!(error.report.contains("FAULT") && error.report.contains("of a buffer"), "{error}");
    }
    assert!(launch_probe("exchange_across_warps", 0, Mode::FAST).is_ok(), "the layer goes on after a fault");
}

#[test]
fn a_missing_wait_shows_where_copies_come_late() {
    let late = Mode { copies: Copies::Lazy, ..Mode::FAST };
    let early = Mode { copies: Copies::Eager, ..Mode::FAST };
    let run = |mode| {
        let mut simt = Simt::new();
        let x: Vec<u16> = (0..512).collect();
        let (x, out) = (simt.put(cast_slice(&x)), simt.alloc(1024));
        let params = PointwiseParams { x, out, c: 1, ..Default::default() };
        simt.launch("probe_copies", [1; 3], 64, 4096, bytes_of(&params), mode).expect("no fault");
        cast_slice::<u8, u16>(&simt.get(out))[0]
    };
    assert_eq!((run(early), run(late)), (63 * 8, 0xffff));
}

#[test]
fn matrix_instructions_multiply_and_their_bank_conflicts_are_counted() {
    let value = |i: usize| ((i * 7 + 3) % 13) as f32 - 6.0;
    let (a, b): (Vec<f32>, Vec<f32>) =
        ((0..256).map(value).collect(), (0..128).map(|i| value(i + 5)).collect());
    for (swizzled, conflicts) in [(0, 4 * 2 * 2 * 7), (1, 0)] {
        let mut simt = Simt::new();
        let halves = |x: &[f32]| x.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>();
        let (x, y) = (simt.put(cast_slice(&halves(&a))), simt.put(cast_slice(&halves(&b))));
        let out = simt.alloc(512);
        let params = PointwiseParams { x, y, out, c: swizzled, ..Default::default() };
        let counts = simt.launch("probe_multiplies", [1; 3], 64, 4096, bytes_of(&params), Mode::CHECKED);
        let counts = counts.expect("the probe is right");
        assert_eq!((counts.ldmatrix, counts.mma, counts.bank_conflicts), (4, 2, conflicts));
        for (i, &got) in cast_slice::<u8, f32>(&simt.get(out)).iter().enumerate() {
            let want: f32 = (0..16).map(|k| a[i / 8 * 16 + k] * b[i % 8 * 16 + k]).sum();
            assert_eq!(got, want, "element {i}");
        }
    }
}

#[test]
fn an_element_is_read_and_written_once() {
    let proofs = proofs();
    let proof =
        proofs.iter().find(|proof| proof.name.starts_with("Add [2, 9, 13, 7]")).expect("in the table");
    let mut simt = Simt::new();
    let prepared = proof.prepare(&mut simt, Storage::F16);
    let counts = prepared.run(&mut simt, Mode::CHECKED).expect("the kernel is right")[0];
    let elements = 2 * 9 * 13 * 7;
    assert_eq!((counts.global_read_bytes, counts.global_written_bytes), (4 * elements, 2 * elements));
}

fn launch_probe(probe: &str, c: i32, mode: Mode) -> Result<Counts, SimtError> {
    let mut simt = Simt::new();
    let (x, out): (DevicePtr, DevicePtr) = (simt.put(cast_slice(&[1.0f32; 64])), simt.alloc(1024));
    // The copying probe takes 1 KiB, the others 64 numbers.
    let x = if probe == "copies" { simt.put(&[7; 1024]) } else { x };
    let params = PointwiseParams { x, out, c, ..Default::default() };
    let blocks = if probe.starts_with("blocks") { 2 } else { 1 };
    simt.launch(&format!("probe_{probe}"), [blocks, 1, 1], 64, 4096, bytes_of(&params), mode)
}

#[test]
fn casts_round_to_nearest_and_layouts_only_move_elements() {
    // Ties, subnormals, the ends of the range and beyond.
    let mut x =
        vec![0.0f32, -0.0, 1.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65504.0, 65520.0, -7e4, 6e-8, 3e-8];
    x.extend([2.9e-8, f32::INFINITY, f32::NAN, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, 1e-40]);
    x.extend((0..700).map(|i| (i as f32 - 350.5) * 1.37));
    let count = x.len();
    for mode in [Mode::FAST, Mode::CHECKED] {
        let mut simt = Simt::new();
        let from = simt.put(cast_slice(&x));
        for storage in Storage::BOTH {
            let (name, stored, back) = (storage.name(), simt.alloc(2 * count), simt.alloc(4 * count));
            for (kernel, x, out) in
                [(format!("cast_f32_{name}"), from, stored), (format!("cast_{name}_f32"), stored, back)]
            {
                let params = PointwiseParams { x, out, count: count as i64, ..Default::default() };
                simt.launch(&kernel, [2, 1, 1], 256, 0, bytes_of(&params), mode).expect("a cast is right");
            }
            for (&x, &got) in x.iter().zip(cast_slice::<u8, f32>(&simt.get(back))) {
                let want = round(storage, x);
                assert!(
                    got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                    "{name} {x}: {got}"
                );
            }
            let (n, c, pixels) = (3, 7, 33);
            let planes: Vec<f32> = (0..n * c * pixels).map(|i| (i % 251) as f32).collect();
            let planes_at = simt.put(cast_slice(&planes));
            let (rows, again) = (simt.alloc(2 * planes.len()), simt.alloc(4 * planes.len()));
            let there =
                LayoutParams { x: planes_at, out: rows, pixels: pixels as i64, n: n as i32, c: c as i32 };
            let back = LayoutParams { x: rows, out: again, ..there };
            for (kernel, params) in
                [(format!("to_nhwc_f32_{name}"), there), (format!("to_nchw_{name}_f32"), back)]
            {
                simt.launch(&kernel, [2, 1, 1], 256, 0, bytes_of(&params), mode).expect("a layout is right");
            }
            assert_eq!(cast_slice::<u8, f32>(&simt.get(again)), planes);
            let bits =
                |x: f32| if name == "f16" { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() };
            for (i, &got) in cast_slice::<u8, u16>(&simt.get(rows)).iter().enumerate() {
                let (image, pixel, channel) = (i / (c * pixels), i / c % pixels, i % c);
                assert_eq!(got, bits(planes[(image * c + channel) * pixels + pixel]), "{name} {i}");
            }
        }
    }
}
