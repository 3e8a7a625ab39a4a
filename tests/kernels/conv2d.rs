//! What convolutions on tensor cores promise beyond their numbers: no bank conflicts and no product twice, the same
//! bits from every tile and in every batch, statistics of what is stored, and refusals by name.

use unguide::ir::Padding;
use unguide::launch::Storage;
use unguide::launch::conv2d::{Conv2d, Operands};
use unguide::launch::params::DevicePtr;
use unguide::launch::tune::conv2d::{Form, TILES, Tile};
use unguide::simt::{Counts, Mode, Simt};

use crate::support::device::conv2d::{Ends, PLAIN, TARGET, Trial, Wish};

type Direction = fn(&Trial, &mut Simt, Storage) -> crate::support::device::Prepared;
const DIRECTIONS: [Direction; 2] = [Trial::forward, Trial::backward];

fn outcome(trial: &Trial, direction: Direction, mode: Mode) -> (Vec<Vec<f32>>, Vec<Counts>) {
    let mut simt = Simt::new();
    let prepared = direction(trial, &mut simt, Storage::F16);
    let counts = prepared.run(&mut simt, mode).expect("the kernels are right");
    (prepared.outputs.iter().map(|output| output.read(&simt)).collect(), counts)
}

#[test]
fn main_loops_have_no_bank_conflicts_and_do_each_product_once() {
    let whole = Conv2d { size: [8, 16], channels: [64, 0], filter: [128, 3, 3], ..PLAIN };
    let strided = Conv2d { size: [16, 32], channels: [128, 0], filter: [64, 3, 3], stride: 2, ..PLAIN };
    let doubled = Conv2d {
        size: [8, 16],
        channels: [64, 64],
        filter: [128, 3, 3],
        enlarged: Some([16, 32]),
        sub_pixel: true,
        ..PLAIN
    };
    for (conv, direction, products) in [
        (whole, DIRECTIONS[0], 128 * 128 * 9 * 64),
        // Every pixel of the output meets every tap once, also where the gradient takes it.
        (strided, DIRECTIONS[1], 128 * 64 * 9 * 128),
        // 16 taps instead of 36.
        (doubled, DIRECTIONS[0], 128 * 128 * 16 * 128),
        (doubled, DIRECTIONS[1], 128 * 128 * 16 * 128),
    ] {
        let trial = Trial::new(conv, Ends::Bare, Wish::Tiled(64, 64, 1));
        let counts = outcome(&trial, direction, Mode::FAST).1;
        assert_eq!(counts.iter().map(|c| c.bank_conflicts).sum::<u64>(), 0, "{trial}");
        assert_eq!(counts.iter().map(|c| c.mma).sum::<u64>(), products / (16 * 8 * 16), "{trial}");
    }
    for (m, n, _) in TILES {
        for direction in DIRECTIONS {
            let conv = Conv2d { size: [5, 7], channels: [40, 24], filter: [72, 3, 3], ..PLAIN };
            let trial = Trial::new(conv, Ends::All, Wish::Tiled(m, n, 1));
            let counts = outcome(&trial, direction, Mode::FAST).1;
            assert_eq!(counts.iter().map(|c| c.bank_conflicts).sum::<u64>(), 0, "{trial}");
        }
    }
}

#[test]
fn every_tile_gives_the_same_bits() {
    let conv = Conv2d { size: [9, 8], channels: [40, 24], filter: [72, 3, 3], ..PLAIN };
    for direction in DIRECTIONS {
        for splits in [1, 2] {
            let outputs = |(m, n, _)| {
                let trial = Trial::new(conv, Ends::All, Wish::Tiled(m, n, splits));
                outcome(&trial, direction, Mode::FAST).0
            };
            let want = outputs(TILES[0]);
            assert!(TILES.into_iter().all(|tile| outputs(tile) == want), "{splits} parts");
        }
    }
}

#[test]
fn an_image_alone_gives_the_bits_that_it_gives_in_a_batch() {
    let small = Conv2d { images: 3, size: [5, 7], channels: [40, 24], filter: [24, 3, 3], ..PLAIN };
    let split = Conv2d { images: 2, size: [3, 3], channels: [128, 0], filter: [8, 3, 3], ..PLAIN };
    let doubled = Conv2d { enlarged: Some([9, 14]), sub_pixel: true, ..small };
    let measured = Conv2d { stats: true, ..small };
    for conv in [small, split, doubled, measured] {
        for direction in DIRECTIONS {
            let trial = Trial::new(conv, Ends::All, Wish::Chosen);
            let together = outcome(&trial, direction, Mode::FAST).0;
            for image in 0..conv.images {
                let alone = outcome(&Trial { only: Some(image), ..trial.clone() }, direction, Mode::FAST).0;
                for (all, one) in together.iter().zip(&alone) {
                    assert!(all[image * one.len()..][..one.len()] == one[..], "{trial}, image {image}");
                }
            }
        }
    }
}

#[test]
fn statistics_are_those_of_what_is_stored() {
    let plain = Conv2d { images: 2, size: [9, 13], channels: [16, 0], filter: [72, 3, 3], ..PLAIN };
    let doubled = Conv2d {
        images: 2,
        size: [8, 8],
        channels: [16, 0],
        filter: [24, 3, 3],
        enlarged: Some([16, 16]),
        sub_pixel: true,
        ..PLAIN
    };
    for (conv, form) in
        [(plain, Wish::Tiled(64, 64, 1)), (plain, Wish::Tiled(64, 64, 2)), (doubled, Wish::Tiled(64, 64, 1))]
    {
        let trial = Trial::new(Conv2d { stats: true, ..conv }, Ends::All, form);
        let outputs = outcome(&trial, DIRECTIONS[0], Mode::FAST).0;
        let Wish::Tiled(m, n, splits) = form else { unreachable!("the forms are named") };
        let rows = conv.statistics_tile(Form::Tiled(Tile { m, n, splits })).expect("it takes them");
        let ([height, width], o) = (conv.out(), conv.filter[0]);
        // Pixels in the order of tiles: kind by kind.
        let mut pixels: Vec<(usize, usize)> =
            (0..height * width).map(|pixel| (pixel / width, pixel % width)).collect();
        if conv.sub_pixel {
            pixels.sort_by_key(|(i, j)| (i % 2, j % 2));
        }
        let tiles = pixels.len().div_ceil(rows);
        for (at, got) in outputs[1].chunks_exact(2).enumerate() {
            let (image, tile, channel) = (at / o / tiles, at / o % tiles, at % o);
            let of_tile = pixels.iter().skip(tile * rows).take(rows);
            let value =
                |(i, j): &(usize, usize)| outputs[0][((image * height + i) * width + j) * o + channel];
            let values: Vec<f64> = of_tile.map(|pixel| f64::from(value(pixel))).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            for (got, want) in [(got[0], mean), (got[1], squares)] {
                let near = (f64::from(got) - want).abs() <= 2e-5 * want.abs().max(1.0);
                assert!(
                    near,
                    "{trial}: tile {tile} of image {image}, channel {channel}: {got}, wanted {want}"
                );
            }
        }
    }
}

#[test]
fn what_the_tiles_rely_on_is_refused_by_name() {
    let some = DevicePtr(4096);
    let at = Operands { x: some, filter: some, y: some, ..Operands::default() };
    let tiled = Form::Tiled(Tile { m: 64, n: 64, splits: 1 });
    let refusal = |conv: Conv2d, at: Operands| {
        let error = conv.forward(tiled, Storage::F16, &at).expect_err("a rule is broken");
        error.to_string()
    };
    let odd = Conv2d { channels: [12, 0], ..PLAIN };
    assert!(refusal(odd, at).contains("`c` must be a multiple of 8, found 12"), "{}", refusal(odd, at));
    let shifted = Operands { x: DevicePtr(4098), ..at };
    assert!(refusal(PLAIN, shifted).contains("`x` must be aligned to 16 bytes"));
    let far = Conv2d { size: [1 << 20, 1], ..PLAIN };
    assert!(refusal(far, at).contains("`h` must be below 2^20"), "{}", refusal(far, at));
    let crowd = Conv2d { images: 70_000, ..PLAIN };
    assert!(crowd.forward(tiled, Storage::F16, &at).is_ok());
    assert_eq!(
        Conv2d { channels: [3, 0], ..PLAIN }.form(TARGET).to_string(),
        "general form: the channels are no whole vectors of 8"
    );
    let patches = Conv2d {
        size: [32, 32],
        channels: [3, 0],
        filter: [64, 8, 8],
        stride: 8,
        padding: Padding::NONE,
        ..PLAIN
    };
    assert_eq!(patches.form(TARGET).to_string(), "tiles of 64 x 64");
}
