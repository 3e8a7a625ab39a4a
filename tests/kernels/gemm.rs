//! What the products on tensor cores promise beyond their numbers: the same bits from every tile, schedule and
//! batch, and main loops without bank conflicts.

use unguide::ir::Activation;
use unguide::launch::Storage;
use unguide::launch::gemm::{After, Channels, Order, Places};
use unguide::launch::params::DevicePtr;
use unguide::launch::tune::gemm::{STEP, TILES};
use unguide::launch::tune::hopper;
use unguide::simt::{Counts, Mode, Schedule, Simt};
use unguide::tensor::Tensor;

use crate::support::device::gemm::{Act, Form, Trial};

const ORDERS: [Order; 2] = [Order::ByColumns, Order::ByRows];

/// All outputs of a trial, and what its launches did.
fn outcome(trial: &Trial, storage: Storage, mode: Mode) -> (Vec<Vec<f32>>, Vec<Counts>) {
    let mut simt = Simt::new();
    let prepared = trial.prepare(&mut simt, storage);
    let counts = prepared.run(&mut simt, mode).expect("the kernels are right");
    (prepared.outputs.iter().map(|output| output.read(&simt)).collect(), counts)
}

#[test]
fn main_loops_have_no_bank_conflicts_and_do_each_product_once() {
    for order in ORDERS {
        for tile in TILES {
            let [m, n, k] = [tile.m, tile.n, 5 * STEP];
            let (_, counts) = outcome(&Trial::new(order, tile, [m, n, k]), Storage::F16, Mode::FAST);
            assert_eq!(counts[0].bank_conflicts, 0, "{order:?} {tile:?}");
            assert_eq!(counts[0].mma as usize, m * n * k / (16 * 8 * 16), "{order:?} {tile:?}");
            assert_eq!(counts[0].async_bytes as usize, (m + n) * k * 2, "{order:?} {tile:?}");
        }
    }
}

#[test]
fn every_tile_and_every_schedule_gives_the_same_bits() {
    for order in ORDERS {
        let after = After { bias: true, residual: true, ..After::default() };
        let trial = |tile| Trial::new(order, tile, [70, 48, 136]).after(after);
        let want = outcome(&trial(TILES[0]), Storage::Bf16, Mode::FAST).0;
        for tile in TILES {
            assert!(outcome(&trial(tile), Storage::Bf16, Mode::FAST).0 == want, "{order:?} {tile:?}");
        }
        for mode in Mode::all() {
            assert!(outcome(&trial(TILES[3]), Storage::Bf16, mode).0 == want, "{order:?} {mode:?}");
        }
    }
}

#[test]
fn tiles_of_sm_90a_do_each_product_once_and_give_the_same_bits() {
    for order in ORDERS {
        for tile in hopper::TILES {
            let [m, n, k] = [tile.m(), tile.n, 5 * hopper::STEP];
            let trial = Trial { form: Form::Hopper(tile, k, 1), ..Trial::new(order, TILES[0], [m, n, k]) };
            let (_, counts) = outcome(&trial, Storage::F16, Mode::FAST);
            // A warp has 16 rows.
            assert_eq!(counts[0].wgmma as usize, m / 16 * k / 16, "{order:?} {tile}");
            assert_eq!(counts[0].async_bytes as usize, (m + n) * k * 2, "{order:?} {tile}");
            // Weights of as many steps as the ring has stages, in one box or by columns of a swizzle's width.
            let span = if tile.n % 64 == 0 { 64 } else { 32 };
            let boxes = if order == Order::ByColumns { 1 } else { tile.n / span };
            assert_eq!(counts[0].bulk_prefetches as usize, boxes * tile.stages, "{order:?} {tile}");
        }
        let after = After { bias: true, residual: true, ..After::default() };
        let outputs = |tile, blocks| {
            let trial = Trial::new(order, TILES[0], [270, 72, 136]).after(after);
            outcome(&Trial { form: Form::Hopper(tile, 136, blocks), ..trial }, Storage::Bf16, Mode::FAST).0
        };
        let want = outputs(hopper::TILES[0], 1);
        for (tile, blocks) in hopper::TILES.into_iter().flat_map(|tile| [(tile, 1), (tile, 2)]) {
            assert!(outputs(tile, blocks) == want, "{order:?} {tile} on {blocks}");
        }
        // A cluster adds in the order in which parts are joined.
        let cluster = |form| {
            let trial = Trial::new(order, TILES[0], [140, 72, 4 * hopper::STEP]).after(after);
            outcome(&Trial { form, ..trial }, Storage::Bf16, Mode::FAST).0
        };
        let joined = cluster(Form::Hopper(hopper::TILES[2], hopper::STEP, 3));
        assert!(cluster(Form::Hopper(hopper::CLUSTERED[0], 4 * hopper::STEP, 1)) == joined, "{order:?}");
    }
}

#[test]
fn results_that_leave_in_boxes_have_the_bits_of_those_that_leave_by_rows() {
    let all = After { bias: true, residual: true, channels: Some(Channels::OfImages), ..After::default() };
    for (order, act) in ORDERS
        .into_iter()
        .flat_map(|order| [Act::None, Act::Of(Activation::QuickGelu), Act::Geglu].map(|act| (order, act)))
    {
        let trial = |form, n| {
            let trial = Trial::new(order, TILES[3], [270, n, 136]).images(2).after(all).act(act);
            outcome(&Trial { form, ..trial }, Storage::F16, Mode::CHECKED)
        };
        // The last columns are no whole tile, nor is the last slab of rows; or rows are no whole 16 bytes.
        let gated = matches!(act, Act::Geglu);
        let sizes = [(176, true), (40, !gated), (36, false)];
        // By rows b has as many columns.
        for (n, boxed) in sizes.into_iter().filter(|(n, _)| order == Order::ByColumns || n % 8 == 0) {
            let (want, _) = trial(Form::Tiled(TILES[3], 136), n);
            for tile in hopper::TILES {
                let (got, counts) = trial(Form::Hopper(tile, 136, 1), n);
                assert!(got == want, "{order:?} {act:?} {tile} {n}");
                assert_eq!(counts[0].bulk_stores > 0, boxed, "{order:?} {act:?} {tile} {n}");
                assert_eq!(counts[0].bank_conflicts, 0, "{order:?} {act:?} {tile} {n}");
            }
        }
    }
}

#[test]
fn an_image_alone_gives_the_bits_that_it_gives_in_a_batch() {
    for (n, k) in [(24, 1032), (320, 40)] {
        let rows = 21;
        let after = After { bias: true, stats: true, ..After::default() };
        let mut together = Trial::new(Order::ByColumns, TILES[0], [3 * rows, n, k]).images(3).after(after);
        together = together.chosen("sm_80");
        let (outputs, _) = outcome(&together, Storage::F16, Mode::FAST);
        let operands = together.operands();
        for image in 0..3 {
            let mut alone = together.clone();
            (alone.gemm.m, alone.gemm.images) = (rows, 1);
            alone.image = Some((image, operands.clone()));
            let (of_one, _) = outcome(&alone, Storage::F16, Mode::FAST);
            for (all, one) in outputs.iter().zip(&of_one) {
                assert!(all[image * one.len()..][..one.len()] == one[..], "{n} {k} image {image}");
            }
        }
    }
}

#[test]
fn rows_that_lie_apart_give_the_same_bits() {
    let after = After { residual: true, ..After::default() };
    for order in ORDERS {
        let trial = Trial::new(order, TILES[2], [70, 40, 72]).after(after);
        let (want, _) = outcome(&trial, Storage::F16, Mode::FAST);
        // Odd rows after even ones, each launch over every second row of a, d and the residual.
        let mut simt = Simt::new();
        let (places, outputs) = trial.place(&mut simt, Storage::F16);
        for odd in 0..2 {
            let mut half = trial.clone();
            half.gemm.m /= 2;
            (half.gemm.rows[0], half.gemm.rows[2]) = (2 * 72, 2 * 40);
            let row = |at: DevicePtr, elements: u64| DevicePtr(at.0 + odd * elements * 2);
            let (a, d, residual) = (row(places.a, 72), row(places.d, 40), row(places.residual, 40));
            let launch = half.launch(Storage::F16, &Places { a, d, residual, ..places });
            simt.run(&launch, Mode::CHECKED).expect("the kernel is right");
        }
        assert!(outputs[0].read(&simt) == want[0], "{order:?}");
    }
}

#[test]
fn parts_are_added_in_their_order_whoever_comes_last_and_leave_their_counters_at_zero() {
    let after = After { bias: true, residual: true, stats: true, ..After::default() };
    for order in ORDERS {
        let trial = Trial::new(order, TILES[3], [130, 72, 200]).split(64).images(2).after(after);
        let mut simt = Simt::new();
        let (places, outputs) = trial.place(&mut simt, Storage::F16);
        let launch = trial.launch(Storage::F16, &places);
        let mut first = None;
        for schedule in [Schedule::Fifo, Schedule::Lifo, Schedule::Priorities, Schedule::Fifo] {
            simt.run(&launch, Mode { schedule, ..Mode::CHECKED }).expect("the kernel is right");
            assert!(simt.get(places.arrived).iter().all(|&byte| byte == 0), "{order:?} {schedule:?}");
            let found = [outputs[0].read(&simt), outputs[1].read(&simt)];
            assert!(*first.get_or_insert_with(|| found.clone()) == found, "{order:?} {schedule:?}");
        }
    }
}

#[test]
fn statistics_are_those_of_what_is_stored() {
    let after = After { bias: true, stats: true, ..After::default() };
    for trial in [
        Trial::new(Order::ByColumns, TILES[3], [260, 24, 40]).images(2).after(after),
        Trial { mean: 100.0, ..Trial::new(Order::ByRows, TILES[0], [130, 168, 40]).after(after) },
    ] {
        let (outputs, _) = outcome(&trial, Storage::F16, Mode::FAST);
        let (m, n) = (trial.gemm.m, trial.gemm.n);
        let want = trial.statistics(&Tensor::new(&[1, m, n][..], outputs[0].clone()));
        for (i, (&got, &want)) in outputs[1].iter().zip(want.data()).enumerate() {
            let near = (got - want).abs() <= 2e-5 * want.abs().max(1e-2);
            assert!(near, "{i}: {got}, wanted {want}");
        }
    }
}
