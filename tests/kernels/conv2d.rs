//! What convolutions on tensor cores promise beyond their numbers: no bank conflicts and no product twice, the same
//! bits from every tile and in every batch, statistics of what is stored, and refusals by name.

use unguide::ir::Padding;
use unguide::launch::Storage;
use unguide::launch::conv2d::{BwdOperands, Conv2d, Operands};
use unguide::launch::params::DevicePtr;
use unguide::launch::tune::conv2d::{Form, OnHopper, TILES, Tile};
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

/// Windows side by side.
fn patches(size: [usize; 2], filters: usize, taps: usize) -> Conv2d {
    Conv2d {
        size,
        channels: [3, 0],
        filter: [filters, taps, taps],
        stride: taps,
        padding: Padding::NONE,
        ..PLAIN
    }
}

/// Sub-pixel form of an image enlarged twofold.
fn doubled([height, width]: [usize; 2], channels: [usize; 2], o: usize) -> Conv2d {
    let enlarged = Some([2 * height, 2 * width]);
    Conv2d { size: [height, width], channels, filter: [o, 3, 3], enlarged, sub_pixel: true, ..PLAIN }
}

#[test]
fn main_loops_have_no_bank_conflicts_and_do_each_product_once() {
    let whole = Conv2d { size: [8, 16], channels: [64, 0], filter: [128, 3, 3], ..PLAIN };
    let strided = Conv2d { size: [16, 32], channels: [128, 0], filter: [64, 3, 3], stride: 2, ..PLAIN };
    let doubled = doubled([8, 16], [64, 64], 128);
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
    let few_read = Conv2d { size: [8, 16], channels: [4, 0], filter: [128, 3, 3], ..PLAIN };
    let few_made = Conv2d { size: [8, 16], channels: [64, 0], filter: [3, 3, 3], ..PLAIN };
    for (conv, direction, form, products) in [
        // 36 terms are two steps of 32, and 27 are one.
        (few_read, DIRECTIONS[0], Wish::Gathered, 128 * 128 * 64),
        (few_made, DIRECTIONS[1], Wish::Gathered, 128 * 64 * 32),
        (few_made, DIRECTIONS[0], Wish::Narrow, 128 * 8 * 9 * 64),
        (few_read, DIRECTIONS[1], Wish::Narrow, 128 * 8 * 9 * 128),
    ] {
        let trial = Trial::new(conv, Ends::All, form);
        let counts = outcome(&trial, direction, Mode::CHECKED).1;
        assert_eq!(counts.iter().map(|c| c.bank_conflicts).sum::<u64>(), 0, "{trial}");
        assert_eq!(counts.iter().map(|c| c.access_conflicts).sum::<u64>(), 0, "{trial}");
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
    let to_few = Conv2d { channels: [24, 0], filter: [3, 3, 3], ..small };
    let of_few = Conv2d { channels: [4, 0], filter: [24, 3, 3], ..small };
    let patches = Conv2d { images: 3, ..patches([14, 28], 24, 14) };
    for conv in [small, split, doubled, measured, to_few, of_few, patches] {
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
    let doubled = Conv2d { images: 2, ..doubled([8, 8], [16, 0], 24) };
    let of_few = Conv2d { channels: [4, 0], ..plain };
    // Slabs of eight columns and 16 lines, three of each image; and one of each kind of pixel.
    let slabs = Conv2d { size: [16, 24], ..plain };
    let kinds = Conv2d { size: [8, 16], enlarged: Some([16, 32]), ..doubled };
    // Both images in a slab, of which a cluster's blocks have shares.
    let small = Conv2d { size: [8, 8], ..plain };
    for (conv, form) in [
        (slabs, Wish::Hopper(0, 1, 2)),
        (slabs, Wish::Hopper(2, 2, 3)),
        // Slabs of two images, the last of one.
        (Conv2d { images: 3, size: [8, 8], ..plain }, Wish::Hopper(0, 1, 1)),
        (Conv2d { images: 3, size: [8, 8], ..plain }, Wish::Hopper(2, 3, 2)),
        (kinds, Wish::Hopper(0, 1, 1)),
        (slabs, Wish::Hopper(4, 8, 1)),
        (kinds, Wish::Hopper(3, 4, 1)),
        (small, Wish::Hopper(3, 4, 1)),
        (plain, Wish::Tiled(64, 64, 1)),
        (plain, Wish::Tiled(64, 64, 2)),
        (doubled, Wish::Tiled(64, 64, 1)),
        (of_few, Wish::Gathered),
    ] {
        let trial = Trial::new(Conv2d { stats: true, ..conv }, Ends::All, form);
        let outputs = outcome(&trial, DIRECTIONS[0], Mode::FAST).0;
        let class = if conv.sub_pixel { conv.size } else { conv.out() };
        let form = trial.form(Form::Gathered, class);
        let rows = conv.statistics_tile(form).expect("it takes them");
        let ([height, width], o) = (conv.out(), conv.filter[0]);
        // Pixels in the order of tiles: kind by kind, slab by slab.
        let mut pixels: Vec<(usize, usize)> =
            (0..height * width).map(|pixel| (pixel / width, pixel % width)).collect();
        if conv.sub_pixel {
            pixels.sort_by_key(|(i, j)| (i % 2, j % 2));
        }
        if let Form::Hopper(OnHopper { bits: [x, y], .. }) = form {
            let scale = if conv.sub_pixel { 2 } else { 1 };
            pixels.sort_by_key(|(i, j)| (i % scale, j % scale, (i / scale) >> y, (j / scale) >> x));
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
    let patches = patches([32, 32], 64, 8);
    assert_eq!(patches.form(TARGET).to_string(), "tiles of 64 x 64");
}

#[test]
fn what_the_forms_for_few_channels_rely_on_is_refused_by_name() {
    let some = DevicePtr(4096);
    let at = Operands { x: some, x2: some, filter: some, y: some, ..Operands::default() };
    let forward = |conv: Conv2d, form: Form, at: Operands| {
        let at = Operands { x2: if conv.channels[1] > 0 { at.x2 } else { DevicePtr::NONE }, ..at };
        conv.forward(form, Storage::F16, &at).expect_err("a rule is broken").to_string()
    };
    let at_bwd = BwdOperands { dy: some, filter: some, dx: some, ..BwdOperands::default() };
    let backward = |conv: Conv2d, form: Form, at: BwdOperands| {
        conv.backward(0, form, Storage::F16, &at).expect_err("a rule is broken").to_string()
    };
    let few = Conv2d { filter: [3, 3, 3], ..PLAIN };
    let patches = patches([28, 28], 8, 14);
    let shifted = DevicePtr(4104);
    for (refusal, words) in [
        (forward(Conv2d { channels: [4, 4], ..PLAIN }, Form::Gathered, at), "`x2` must be none"),
        (forward(Conv2d { enlarged: Some([2, 2]), ..PLAIN }, Form::Gathered, at), "`up` must be 0"),
        (forward(Conv2d { channels: [12, 0], ..few }, Form::Narrow, at), "`c` must be a multiple of 8"),
        (forward(Conv2d { filter: [9, 3, 3], ..PLAIN }, Form::Narrow, at), "`o` must be at most 8"),
        (forward(Conv2d { filter: [3, 3, 1], ..PLAIN }, Form::Narrow, at), "`s` must be 3"),
        (forward(Conv2d { stride: 2, ..few }, Form::Narrow, at), "`stride_y` must be 1"),
        (forward(few, Form::Narrow, Operands { x: shifted, ..at }), "`x` must be aligned to 16 bytes"),
        (
            backward(Conv2d { channels: [12, 0], ..few }, Form::Gathered, at_bwd),
            "`channels` must be a multiple of 8",
        ),
        (backward(Conv2d { stride: 2, ..few }, Form::Gathered, at_bwd), "`stride_y` must be 1"),
        (
            backward(few, Form::Gathered, BwdOperands { filter: shifted, ..at_bwd }),
            "`filter` must be aligned to 16 bytes",
        ),
        (
            backward(Conv2d { filter: [12, 14, 14], ..patches }, Form::Gathered, at_bwd),
            "`o` must be a multiple of 8",
        ),
        (
            backward(patches, Form::Gathered, BwdOperands { dy: shifted, ..at_bwd }),
            "`dy` must be aligned to 16 bytes",
        ),
        (
            backward(Conv2d { filter: [12, 3, 3], ..PLAIN }, Form::Narrow, at_bwd),
            "`o` must be a multiple of 8",
        ),
        (backward(Conv2d { channels: [16, 0], ..PLAIN }, Form::Narrow, at_bwd), "`c` must be at most 8"),
    ] {
        assert!(refusal.contains(words), "{refusal}");
    }
    assert!(patches.backward(0, Form::Gathered, Storage::F16, &at_bwd).is_ok());
}

#[test]
fn the_first_and_the_last_layers_take_the_forms_for_few_channels() {
    let conv = |channels: usize, filter| Conv2d { channels: [channels, 0], filter, size: [64, 64], ..PLAIN };
    let one = Conv2d { padding: Padding::NONE, ..conv(4, [4, 1, 1]) };
    let patches = |taps| patches([224, 224], 1024, taps);
    let gathered = Form::Gathered.to_string();
    let few = Form::Narrow.to_string();
    for (conv, forward, backward) in [
        (conv(4, [320, 3, 3]), &*gathered, &*few),
        (conv(4, [512, 3, 3]), &gathered, &few),
        (conv(320, [4, 3, 3]), &few, &gathered),
        (conv(128, [3, 3, 3]), &few, &gathered),
        (conv(64, [3, 3, 3]), &few, &gathered),
        (patches(14), &gathered, &gathered),
        (patches(16), "tiles", "tiles"),
        (patches(32), "tiles", "tiles"),
        (one, "general", "general"),
    ] {
        let forms = [conv.form(TARGET).to_string(), conv.bwd_form(0, TARGET).to_string()];
        assert!(forms[0].starts_with(forward) && forms[1].starts_with(backward), "{conv:?}: {forms:?}");
    }
}
