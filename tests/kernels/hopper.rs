//! The sm_90 half of the SIMT layer: bulk copies put boxes where CuTe's swizzles say, products through a ring of
//! mbarriers are right under every schedule, and what is wrong is reported.

use bytemuck::{Pod, Zeroable, bytes_of, cast_slice};
use half::f16;
use serde_json::Value;
use unguide::launch::params::{DevicePtr, PointwiseParams};
use unguide::simt::{Copies, Counts, Mode, Schedule, Simt, SimtError, Swizzle, TensorMap};

/// As in kernels/simt/probes_sm90.cu.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Params {
    a: TensorMap,
    b: TensorMap,
    out: DevicePtr,
    at: [i32; 4],
    bytes: i32,
    rank: i32,
    steps: i64,
    pad: [DevicePtr; 3],
}

/// [64, 64 `steps`] twice, and their product.
struct Ring {
    a: Vec<f32>,
    b: Vec<f32>,
    steps: usize,
}

impl Ring {
    fn new(steps: usize) -> Self {
        let value = |i: usize, seed: usize| ((i * 7 + i / 64 * 5 + seed) % 13) as f32 - 6.0;
        let matrix = |seed| (0..64 * 64 * steps).map(|i| value(i, seed)).collect();
        Self { a: matrix(3), b: matrix(8), steps }
    }

    fn run(&self, probe: &str, mode: Mode) -> Result<(Vec<f32>, Counts), SimtError> {
        let mut simt = Simt::new();
        let mut map = |x: &[f32]| {
            let halves: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
            let k = 64 * self.steps as u64;
            let at = simt.put(cast_slice(&halves));
            TensorMap::tiled(at, 2, &[k, 64], &[2 * k], &[64, 64], Swizzle::B128)
                .expect("as a driver wants it")
        };
        let (a, b) = (map(&self.a), map(&self.b));
        let out = simt.alloc(64 * 64 * 4);
        let params = Params { a, b, out, steps: self.steps as i64, ..Default::default() };
        let counts =
            simt.launch(&format!("probe_ring_{probe}"), [1; 3], 256, 33024, bytes_of(&params), mode)?;
        Ok((cast_slice(&simt.get(out)).to_vec(), counts))
    }

    fn is_right(&self, got: &[f32]) -> bool {
        let k = 64 * self.steps;
        let want = |i: usize| (0..k).map(|j| self.a[i / 64 * k + j] * self.b[i % 64 * k + j]).sum::<f32>();
        got.iter().enumerate().all(|(i, &got)| got == want(i))
    }
}

#[test]
fn products_through_a_ring_of_bulk_copies_are_right_under_every_schedule() {
    let ring = Ring::new(5);
    for mode in Mode::all().chain(Mode::all().map(|mode| Mode { checked: true, ..mode })) {
        for probe in ["right", "rewritten"] {
            let (got, counts) = ring.run(probe, mode).unwrap_or_else(|error| panic!("{mode:?}: {error}"));
            assert!(ring.is_right(&got), "{probe} {mode:?}");
            assert_eq!((counts.bulk_copies, counts.wgmma), (10, 5 * 4 * 4));
            assert_eq!(counts.async_bytes, 10 * 8192);
            assert_eq!(counts.bulk_prefetches, 1);
        }
    }
}

#[test]
fn what_is_wrong_with_a_ring_is_reported_with_its_lines() {
    let probes: [(&str, &[&str]); 22] = [
        ("no_empty_wait", &["more than 1 arrivals", "probes_sm90.cu:"]),
        ("no_full_wait", &["READ BEFORE WAIT of a bulk copy", "a product of warp", "probes_sm90.cu:"]),
        ("released_before_read", &["RACE write after read", "a product of warp"]),
        ("one_warp_releases", &["RACE write after read", "a product of warp"]),
        ("init_not_fenced", &["MISSING PROXY FENCE after the initialisation", "probes_sm90.cu:"]),
        ("init_not_shared", &["initialise", "probes_sm90.cu:"]),
        ("one_arrival_too_few", &["DEADLOCK", "an mbarrier at", "lacks 1 of 129 arrivals and 0 bytes"]),
        ("one_arrival_too_many", &["more than 1 arrivals", "probes_sm90.cu:"]),
        ("bytes_never_come", &["DEADLOCK", "lacks 0 of 1 arrivals and 16 bytes"]),
        ("no_wgmma_fence", &["MISSING wgmma.fence", "probes_sm90.cu:"]),
        ("registers_too_early", &["REGISTERS of a product", "probes_sm90.cu:"]),
        ("operand_too_early", &["REGISTERS of a product", "probes_sm90.cu:"]),
        ("rewritten_unfenced", &["MISSING PROXY FENCE after a write", "probes_sm90.cu:"]),
        ("rewritten_fenced_late", &["MISSING PROXY FENCE after a write"]),
        ("rewritten_no_barrier", &["RACE read after write", "a product of warp"]),
        ("product_left", &["LEFT IN FLIGHT", "products of warp 0"]),
        ("copy_left", &["LEFT IN FLIGHT", "bulk copies"]),
        ("warps_differ", &["WGMMA differs between warp", "probes_sm90.cu:"]),
        ("barrier_of_too_many", &["DEADLOCK", "a named barrier at"]),
        ("follows_late", &["BEFORE THE LAUNCH IN FRONT has ended", "a bulk copy", "probes_sm90.cu:"]),
        ("follows_twice", &["THE LAUNCH IN FRONT is waited for twice", "probes_sm90.cu:"]),
        ("consumers_follow", &["THE LAUNCH IN FRONT"]),
    ];
    let ring = Ring::new(5);
    for (probe, words) in probes {
        for schedule in [Schedule::Fifo, Schedule::Lifo, Schedule::Priorities] {
            match ring.run(probe, Mode { schedule, ..Mode::CHECKED }) {
                Ok(_) => panic!("{probe} passes instead of {words:?}"),
                Err(error) => {
                    let report = &error.report;
                    assert!(words.iter().all(|word| report.contains(word)), "{probe} {schedule:?}: {error}");
                }
            }
        }
    }
}

/// Eight blocks in clusters of four, each of which makes the sum of its cluster's numbers.
fn exchange(probe: &str, mode: Mode) -> Result<Vec<f32>, SimtError> {
    let mut simt = Simt::new();
    let out = simt.alloc(8 * 64 * 4);
    let params = PointwiseParams { out, ..Default::default() };
    simt.launch(&format!("probe_cluster_{probe}"), [8, 1, 1], 64, 0, bytes_of(&params), mode)?;
    Ok(cast_slice(&simt.get(out)).to_vec())
}

#[test]
fn blocks_of_a_cluster_wait_for_each_other_and_read_each_others_memory() {
    let sum = |block: usize, i: usize| (0..4).map(|k| (100 * (block / 4 * 4 + k) + i) as f32).sum::<f32>();
    for mode in Mode::all().flat_map(|mode| [mode, Mode { checked: true, ..mode }]) {
        let got = exchange("right", mode).unwrap_or_else(|error| panic!("{mode:?}: {error}"));
        assert!(got.iter().enumerate().all(|(at, &got)| got == sum(at / 64, at % 64)), "{mode:?}");
    }
    let probes: [(&str, &[&str]); 6] = [
        ("no_first_wait", &["shared memory byte", "probes_cluster.cu:"]),
        ("no_last_wait", &["which has ended", "probes_cluster.cu:"]),
        ("no_arrival", &["waits and has not arrived", "probes_cluster.cu:"]),
        ("two_arrivals", &["arrives twice", "probes_cluster.cu:"]),
        ("block_beyond", &["of block 4 of a cluster of 4"]),
        ("plain_read", &["16 bytes of shared memory at the address"]),
    ];
    for (probe, words) in probes {
        for schedule in [Schedule::Fifo, Schedule::Lifo, Schedule::Priorities] {
            let error = exchange(probe, Mode { schedule, ..Mode::CHECKED }).expect_err(probe);
            assert!(words.iter().all(|word| error.report.contains(word)), "{probe} {schedule:?}: {error}");
        }
    }
    let mut simt = Simt::new();
    let params = PointwiseParams { out: simt.alloc(6 * 64 * 4), ..Default::default() };
    let six = simt.launch("probe_cluster_right", [6, 1, 1], 64, 0, bytes_of(&params), Mode::FAST);
    assert!(six.expect_err("refused").report.contains("no whole clusters of 4"));
}

#[test]
fn some_faults_of_a_ring_never_show_in_its_numbers() {
    // They are why products and copies are agents of the checks.
    let ring = Ring::new(5);
    for probe in ["init_not_fenced", "no_wgmma_fence", "rewritten_unfenced", "rewritten_fenced_late"] {
        for mode in Mode::all() {
            let (got, _) = ring.run(probe, mode).unwrap_or_else(|error| panic!("{probe} {mode:?}: {error}"));
            assert!(ring.is_right(&got), "{probe} {mode:?}");
        }
    }
    // A missing wait shows where copies come late, and one that is too early where they come at once.
    for probe in ["no_full_wait", "released_before_read", "registers_too_early"] {
        let by_chance = (1..50).map(|seed| Mode { copies: Copies::Random, seed, ..Mode::FAST });
        let wrong = |mode| ring.run(probe, mode).is_ok_and(|(got, _)| !ring.is_right(&got));
        assert!(Mode::all().chain(by_chance).any(wrong), "{probe}");
    }
}

/// Element i of the tensor is i + 1; outside there is nothing.
fn run_box(extents: &[u64], tile: &[u32], swizzle: Swizzle, at: &[i32], mode: Mode) -> Vec<u16> {
    let mut simt = Simt::new();
    // Rows of 16 bytes' multiple; what is between two rows is not the tensor's.
    let pitch = extents[0].next_multiple_of(8);
    let rows: u64 = extents[1..].iter().product();
    let mut x = vec![0xeeeeu16; (pitch * rows) as usize];
    for (i, x) in x.iter_mut().enumerate().filter(|(i, _)| (*i as u64) % pitch < extents[0]) {
        *x = (i as u64 / pitch * extents[0] + i as u64 % pitch + 1) as u16;
    }
    let mut strides = vec![2 * pitch];
    strides.extend(extents[1..].iter().scan(2 * pitch, |bytes, n| {
        *bytes *= n;
        Some(*bytes)
    }));
    strides.truncate(extents.len() - 1);
    let address = simt.put(cast_slice(&x));
    let a = TensorMap::tiled(address, 2, extents, &strides, tile, swizzle).expect("as a driver wants it");
    let bytes = tile.iter().product::<u32>() as i32 * 2;
    let out = simt.alloc(bytes as usize);
    let mut params = Params { a, out, bytes, rank: extents.len() as i32, ..Default::default() };
    params.at[..at.len()].copy_from_slice(at);
    simt.launch("probe_box", [1; 3], 64, 16392, bytes_of(&params), mode).expect("the probe is right");
    cast_slice(&simt.get(out)).to_vec()
}

#[test]
fn boxes_land_where_the_swizzles_of_cute_put_them_with_zeros_outside() {
    let golden: Value = serde_json::from_str(include_str!("../golden/layouts.json")).expect("JSON");
    let swizzles =
        [(Swizzle::None, "none"), (Swizzle::B32, "32"), (Swizzle::B64, "64"), (Swizzle::B128, "128")];
    for ((swizzle, name), checked) in swizzles.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let table = &golden[format!("swizzle_{name}")];
        // In 16-byte chunks; the table is the pattern's period.
        let place = |chunk: usize| chunk / 64 * 64 + table[chunk % 64].as_u64().expect("a number") as usize;
        let row = match swizzle {
            Swizzle::None => 24,
            span => span as u32 / 2,
        };
        let mode = Mode { checked, ..Mode::FAST };
        for at in [[0, 0], [5, 3], [-3, -2], [60, 50], [200, 0]] {
            let (extents, tile) = ([77u64, 53], [row, 16]);
            let got = run_box(&extents, &tile, swizzle, &at, mode);
            for i in 0..(row * 16) as usize {
                let (x, y) = (at[0] + i as i32 % row as i32, at[1] + i as i32 / row as i32);
                let inside = (0..77).contains(&x) && (0..53).contains(&y);
                let want = if inside { (y * 77 + x + 1) as u16 } else { 0 };
                assert_eq!(got[place(i / 8) * 8 + i % 8], want, "{name} {at:?}: ({x}, {y})");
            }
        }
    }
}

#[test]
fn a_box_of_an_image_has_zeros_beyond_every_edge() {
    // NHWC, innermost first: 2 images of 5 x 7 pixels of 16 channels; a tile of 1 x 3 x 4 x 8.
    let (extents, tile) = ([16u64, 7, 5, 2], [8u32, 4, 3, 1]);
    for at in [[0, 0, 0, 0], [8, -1, -1, 1], [8, 5, 3, 1], [0, 2, 4, 2]] {
        for copies in [Copies::Eager, Copies::Lazy, Copies::Random] {
            let got = run_box(&extents, &tile, Swizzle::None, &at, Mode { copies, ..Mode::CHECKED });
            for (i, &got) in got.iter().enumerate() {
                let place = [i % 8, i / 8 % 4, i / 32 % 3, i / 96];
                let x: Vec<i64> = place.iter().zip(at).map(|(&i, at)| i as i64 + i64::from(at)).collect();
                let inside = x.iter().zip(extents).all(|(&x, n)| (0..n as i64).contains(&x));
                let want = if inside { (((x[3] * 5 + x[2]) * 7 + x[1]) * 16 + x[0] + 1) as u16 } else { 0 };
                assert_eq!(got, want, "{at:?}: {x:?}");
            }
        }
    }
}

/// The numbers 1, 2, .. as a box of a tensor that was 0xeeee, and what the tensor is then.
fn store_box(
    probe: &str,
    extents: &[u64],
    (tile, swizzle): (&[u32], Swizzle),
    at: &[i32],
    mode: Mode,
) -> Result<(Vec<u16>, Counts), SimtError> {
    let mut simt = Simt::new();
    let count = extents.iter().product::<u64>() as usize;
    let strides = extents.iter().scan(2, |bytes, n| {
        *bytes *= n;
        Some(*bytes)
    });
    let strides: Vec<u64> = strides.take(extents.len() - 1).collect();
    let out = simt.put(cast_slice(&vec![0xeeeeu16; count]));
    let a = TensorMap::tiled(out, 2, extents, &strides, tile, swizzle).expect("as a driver wants it");
    let bytes = tile.iter().product::<u32>() as i32 * 2;
    let mut params = Params { a, out, bytes, rank: extents.len() as i32, ..Default::default() };
    params.at[..at.len()].copy_from_slice(at);
    let counts = simt.launch(&format!("probe_store_{probe}"), [1; 3], 64, 16392, bytes_of(&params), mode)?;
    Ok((cast_slice(&simt.get(out)).to_vec(), counts))
}

/// Extents of a tensor, rows of a box behind its span, and where boxes go.
type Boxes = (&'static [u64], &'static [u32], [[i32; 4]; 4]);

#[test]
fn boxes_are_stored_from_where_copies_put_them_and_what_the_tensor_lacks_is_left_out() {
    let golden: Value = serde_json::from_str(include_str!("../golden/layouts.json")).expect("JSON");
    let swizzles = [(Swizzle::B32, "32", 16), (Swizzle::B64, "64", 32), (Swizzle::B128, "128", 64)];
    // Rows of images, and pixels of them: innermost first.
    let shapes: [Boxes; 2] = [
        (&[72, 53, 2], &[16, 1], [[0; 4], [24, 45, 1, 0], [64, -3, 0, 0], [-8, 50, 1, 0]]),
        (&[40, 7, 5, 3], &[4, 2, 2], [[0; 4], [8, 5, -1, 1], [32, -2, 4, 2], [16, 3, 2, 0]]),
    ];
    for (swizzle, name, span) in swizzles {
        let table = &golden[format!("swizzle_{name}")];
        let place = |chunk: usize| chunk / 64 * 64 + table[chunk % 64].as_u64().expect("a number") as usize;
        for ((extents, rows, places), mode) in
            shapes.iter().flat_map(|shape| Mode::all().chain([Mode::CHECKED]).map(move |mode| (shape, mode)))
        {
            let tile: Vec<u32> = [span].into_iter().chain(rows.iter().copied()).collect();
            for at in places {
                let of_rank = &at[..extents.len()];
                let (got, counts) = store_box("box", extents, (&tile, swizzle), of_rank, mode)
                    .unwrap_or_else(|error| panic!("{name} {at:?} {mode:?}: {error}"));
                assert_eq!(counts.bulk_stores, 1);
                for (i, &got) in got.iter().enumerate() {
                    let (mut rest, mut number, mut apart, mut inside) = (i as i64, 0, 1, true);
                    for ((&extent, &tile), &at) in extents.iter().zip(&tile).zip(of_rank) {
                        let x = rest % extent as i64 - i64::from(at);
                        inside &= (0..i64::from(tile)).contains(&x);
                        (rest, number, apart) =
                            (rest / extent as i64, number + x * apart, apart * i64::from(tile));
                    }
                    let number = if inside { number as usize } else { 0 };
                    let want = if inside { place(number / 8) * 8 + number % 8 + 1 } else { 0xeeee };
                    assert_eq!(usize::from(got), want, "{name} {at:?} {mode:?}: element {i}");
                }
            }
        }
    }
}

#[test]
fn what_is_wrong_with_a_store_is_reported_with_its_lines() {
    let probes: [(&str, &[&str]); 5] = [
        ("unfenced", &["MISSING PROXY FENCE after a write", "probes_sm90.cu:"]),
        ("without_barrier", &["a bulk copy", "probes_sm90.cu:"]),
        ("left", &["LEFT IN FLIGHT", "bulk stores of thread 0"]),
        ("overwritten", &["RACE write after read", "a bulk copy", "probes_sm90.cu:"]),
        ("read_back", &["READ BEFORE WAIT of a bulk copy", "probes_sm90.cu:"]),
    ];
    let (extents, tile): ([u64; 3], [u32; 3]) = ([64, 16, 1], [64, 16, 1]);
    for (probe, words) in probes {
        for schedule in [Schedule::Fifo, Schedule::Lifo, Schedule::Priorities] {
            let mode = Mode { schedule, ..Mode::CHECKED };
            let ran = store_box(probe, &extents, (&tile, Swizzle::B128), &[0; 3], mode);
            let error = ran.map(|_| ()).expect_err(probe);
            assert!(words.iter().all(|word| error.report.contains(word)), "{probe} {schedule:?}: {error}");
        }
    }
}

#[test]
fn whoever_only_arrives_at_a_barrier_learns_nothing() {
    for (rank, wrong) in [(0, false), (1, true)] {
        let mut simt = Simt::new();
        let out = simt.alloc(256);
        let params = Params { out, rank, ..Default::default() };
        let result = simt.launch("probe_hands_over", [1; 3], 128, 0, bytes_of(&params), Mode::CHECKED);
        match result {
            Ok(_) => assert!(!wrong, "the reader has not waited"),
            Err(error) => assert!(wrong && error.report.contains("RACE"), "{error}"),
        }
    }
}

#[test]
fn conflicts_of_loads_and_stores_are_those_of_their_turns() {
    // Bytes of an access, bytes between two lanes, cycles too many of a store and a load by one warp.
    let cases = [
        (4, 4, 0),
        (4, 8, 2),
        (4, 128, 2 * 31),
        (4, 0, 0), // one word for all
        (4, 132, 0),
        (8, 8, 0),
        (8, 16, 2 * 2),
        (8, 128, 2 * 2 * 15),
        (16, 16, 0),
        (16, 32, 2 * 4),
        (16, 128, 2 * 4 * 7),
        (16, 144, 0),
    ];
    for (bytes, stride, conflicts) in cases {
        let mut simt = Simt::new();
        let out = simt.alloc(128);
        let params = Params { out, steps: stride, ..Default::default() };
        let run = |mode, simt: &mut Simt| {
            simt.launch(&format!("probe_strides_{bytes}"), [1; 3], 32, 32768, bytes_of(&params), mode)
        };
        let mode = if stride == 0 { Mode::FAST } else { Mode::CHECKED };
        let counts = run(mode, &mut simt).unwrap_or_else(|error| panic!("{bytes} {stride}: {error}"));
        assert_eq!(counts.access_conflicts, conflicts, "{bytes} bytes, {stride} apart");
    }
}
