//! What norms promise besides their numbers: nothing is read twice, and no image sees another one.

use unguide::launch::norms::LayerNorm;
use unguide::launch::{Launch, Storage};
use unguide::simt::{Counts, Mode, Simt};

use crate::support::device::norms::{Data, Given, Groups};
use crate::support::device::{Prepared, proofs};

/// Two tensors with a group across the boundary; the last tile of an image is not whole.
fn straddling(n: usize) -> Groups {
    Groups { cut: Some((32, 32)), ..Groups::new(n, 117, [40, 24], 4) }
}

#[test]
fn an_image_has_the_same_bits_in_every_batch() {
    let true_channels = |n| Groups { data: Data::Outlier, ..Groups::new(n, 288, [320, 0], 32) };
    let given = |n| Groups { given: Given::Joint(1), ..straddling(n) };
    let run = |groups: Groups, storage, backward| {
        let mut simt = Simt::new();
        let prepared = groups.prepare(&mut simt, storage, backward);
        prepared.run(&mut simt, Mode::FAST).expect("the kernels are right");
        let bits = |x: &f32| x.to_bits();
        let read = prepared.outputs.iter().map(|output| output.read(&simt));
        read.map(|x| x.iter().map(bits).collect()).collect::<Vec<Vec<u32>>>()
    };
    for make in [straddling, true_channels, given] {
        for (storage, backward) in [(Storage::F16, false), (Storage::F16, true), (Storage::Bf16, true)] {
            let (one, three) = (run(make(1), storage, backward), run(make(3), storage, backward));
            for (one, three) in one.iter().zip(&three) {
                assert_eq!(*one, three[..one.len()], "{:?}", make(1));
            }
        }
    }
}

#[test]
fn statistics_and_application_read_every_element_once_each() {
    let groups = straddling(2);
    let counts = counted(|simt| groups.prepare(simt, Storage::F16, false));
    let (pixels, tiles) = (2 * 117, 2 * 4);
    let bytes = |i: usize| (counts[i].global_read_bytes, counts[i].global_written_bytes);
    assert_eq!(bytes(0), (2 * 40 * pixels, 8 * 40 * tiles), "statistics of the first tensor");
    assert_eq!(bytes(1), (2 * 24 * pixels, 8 * 24 * tiles), "statistics of the second tensor");
    let (read, written) = bytes(2);
    assert_eq!(written, 2 * 64 * pixels);
    // Slabs of 32 channels and shares of 32 pixels: in all 256 threads load gamma and beta of eight channels. Every
    // block merges its slab's statistics, in two passes from a pivot.
    let blocks = 2 * 4 * 2;
    let constants = blocks * 256 * 64;
    let merged = blocks * (2 * 4 * 32 * 8 + 2 * 32 * 4);
    let least = 2 * 64 * pixels + constants;
    assert!((least..=least + merged).contains(&read), "{read}, at least {least}, at most {merged} more");
    assert!(merged < 4 * 64 * pixels, "a second read of x would be seen");
}

#[test]
fn a_layer_norm_reads_and_writes_its_rows_once() {
    let proofs = proofs();
    let (rows, c) = (9, 1280);
    for (op, tensors) in [("LayerNorm {", 1), ("LayerNormBwd {", 2)] {
        let named = |name: &str| name.contains(op) && name.contains("Outlier") && name.contains("[9, 1280]");
        let proof = proofs.iter().find(|proof| named(&proof.name)).expect("among the proofs");
        let counts = counted(|simt| proof.prepare(simt, Storage::F16))[0];
        // gamma and beta are f32, and come from cache; backwards gamma is used twice.
        assert_eq!(counts.global_read_bytes, rows * c * (2 * tensors + 8), "{op}");
        assert_eq!(counts.global_written_bytes, rows * c * 2, "{op}");
    }
}

#[test]
fn eight_elements_at_a_time_are_read_and_written_once() {
    let proofs = proofs();
    let count = 7 * 13 * 101;
    let named = |name: &str| name.starts_with("in eights Add") && name.contains("[7, 13, 101]");
    let proof = proofs.iter().find(|proof| named(&proof.name)).expect("among the proofs");
    let counts = counted(|simt| proof.prepare(simt, Storage::Bf16))[0];
    assert_eq!((counts.global_read_bytes, counts.global_written_bytes), (4 * count, 2 * count));
}

#[test]
fn addresses_and_channels_that_do_not_fit_are_refused() {
    let some = |k: u64| unguide::launch::params::DevicePtr(4096 * k);
    let norm = LayerNorm { storage: Storage::F16, rows: 3, c: 40, eps: 1e-5 };
    let Launch { kernel, grid, params, .. } =
        norm.forward([some(1), some(2), some(3), some(4)]).expect("all is aligned");
    assert_eq!((kernel.name, grid), ("layer_norm_f16_c512", [1, 1, 1]));
    let mut params: unguide::launch::params::LayerNormParams = bytemuck::pod_read_unaligned(&params);
    params.out.0 += 8;
    let error = Launch::new(kernel.name, grid, &params).expect_err("half a vector too far");
    assert!(error.to_string().contains("`out` must be aligned to 16 bytes"), "{error}");
    params.out.0 -= 8;
    params.c = 1280;
    let error = Launch::new(kernel.name, grid, &params).expect_err("too wide a row");
    assert!(error.to_string().contains("`c` must be at most 512"), "{error}");
}

fn counted(prepare: impl Fn(&mut Simt) -> Prepared) -> Vec<Counts> {
    let mut simt = Simt::new();
    let prepared = prepare(&mut simt);
    prepared.run(&mut simt, Mode::CHECKED).expect("the kernels are right")
}
