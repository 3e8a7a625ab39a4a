//! What attention promises beyond right numbers.

use std::ops::Range;

use unguide::launch::Storage;
use unguide::launch::attention::{Backward, Choice, Form, Forward, Sizes, Tokens, WIDTHS};
use unguide::launch::params::DevicePtr;
use unguide::simt::{Mode, Simt};

use crate::support::device::attention::{TARGET, Trial, trial};

#[test]
fn tiles_are_read_without_bank_conflicts() {
    let mut trials: Vec<Trial> = WIDTHS.iter().map(|&d| trial([1, 40, 65, 1, d])).collect();
    trials.push(trial([1, 20, 40, 1, 168]));
    for (trial, backward) in trials.iter().flat_map(|trial| [(trial, false), (trial, true)]) {
        let mut simt = Simt::new();
        let prepared = trial.prepare(&mut simt, Storage::F16, backward);
        let counts = prepared.run(&mut simt, Mode::FAST).expect("attention is right");
        let tiled = prepared.launches.iter().zip(counts).filter(|(launch, _)| launch.kernel.shared_bytes > 0);
        for (launch, counts) in tiled {
            assert!(counts.mma > 0, "{}", launch.kernel.name);
            assert_eq!(counts.bank_conflicts, 0, "{}", launch.kernel.name);
        }
    }
}

/// Runs one attention on slices of tensors `[2, 70, 3 heads of d]`; returns o, lse, dq, dk and dv, each whole.
fn run_slice(d: usize, images: Range<usize>, heads: Range<usize>, queries: Range<usize>) -> Outputs {
    const TOKENS: usize = 70;
    let (mut simt, c) = (Simt::new(), 3 * d);
    let whole = |simt: &mut Simt, seed: usize| {
        let data: Vec<u16> = (0..2 * TOKENS * c)
            .map(|i| half::f16::from_f32((((i + seed) * 7919) % 1009) as f32 / 504.0 - 1.0).to_bits())
            .collect();
        simt.put(bytemuck::cast_slice(&data))
    };
    let tokens = |at: DevicePtr, first: usize| Tokens {
        at: DevicePtr(at.0 + (2 * ((images.start * TOKENS + first) * c + heads.start * d)) as u64),
        row: c,
    };
    let [q, k, v, d_o] = [0, 10, 20, 30].map(|seed| whole(&mut simt, seed));
    let (n, t) = (images.len(), queries.len());
    let sizes = Sizes { n, t, u: TOKENS, heads: heads.len(), d, causal: false };
    let outputs = [0; 4].map(|_| simt.alloc(2 * 2 * TOKENS * c));
    let lse = simt.alloc(4 * n * heads.len() * t);
    let (q, k, v) = (tokens(q, queries.start), tokens(k, 0), tokens(v, 0));
    let (o, d_o) = (tokens(outputs[0], queries.start), tokens(d_o, queries.start));
    let forward = Forward { sizes, q_images: 0, q, k, v, o, lse };
    let dq = tokens(outputs[1], queries.start);
    let of_keys = Some((tokens(outputs[2], 0), tokens(outputs[3], 0)));
    let backward = Backward { sizes, q, k, v, o, d_o, lse, dq, of_keys };
    assert_eq!(forward.choose(TARGET).form, Form::Tiled);
    let workspace = simt.alloc(backward.workspace(Form::Tiled));
    let mut launches = forward.launches(Form::Tiled, Storage::F16, DevicePtr::NONE).expect("legal");
    launches.extend(backward.launches(Form::Tiled, Storage::F16, workspace).expect("legal"));
    for launch in &launches {
        simt.run(launch, Mode::FAST).expect("attention is right");
    }
    let bits = |at| bytemuck::cast_slice::<u8, u16>(&simt.get(at)).to_vec();
    outputs.map(bits)
}

type Outputs = [Vec<u16>; 4];

#[test]
fn a_head_has_the_same_bits_alone_and_a_query_among_others() {
    for d in [40, 160] {
        let (c, row) = (3 * d, |image: usize, token: usize| (image * 70 + token) * 3 * d);
        let all = run_slice(d, 0..2, 0..3, 0..70);
        let alone = run_slice(d, 1..2, 2..3, 0..70);
        for (all, alone) in all.iter().zip(&alone) {
            for token in 0..70 {
                let at = row(1, token) + 2 * d;
                assert_eq!(all[at..at + d], alone[at..at + d], "d {d}, token {token}");
            }
        }
        // o and dq of some queries do not know of the others.
        let some = run_slice(d, 1..2, 0..3, 5..23);
        for (all, some) in all.iter().zip(&some).take(2) {
            let at = row(1, 5)..row(1, 22) + c;
            assert_eq!(all[at.clone()], some[at], "d {d}");
        }
    }
}

#[test]
fn the_form_follows_from_width_and_alignment_and_says_why() {
    let at = DevicePtr(1 << 20);
    let of = |[t, u, d]: [usize; 3], (row, offset): (usize, u64), causal: bool, target: &str| -> Choice {
        let tokens = Tokens { at: DevicePtr(at.0 + offset), row };
        let sizes = Sizes { n: 1, t, u, heads: 1, d, causal };
        Forward { sizes, q_images: 0, q: tokens, k: tokens, v: tokens, o: tokens, lse: at }.choose(target)
    };
    let choose = |t: usize, d: usize, row: usize, offset: u64| of([t, t, d], (row, offset), false, TARGET);
    let on_hopper = |[t, u, d]: [usize; 3], causal| of([t, u, d], (3 * d, 0), causal, "sm_90a");
    for (choice, words) in [
        (choose(4096, 40, 960, 0), "tiled: a width with kernels of its own, in whole chunks of 16 bytes"),
        (choose(4096, 40, 961, 0), "general: rows do not begin at multiples of 16 bytes"),
        (choose(4096, 40, 960, 8), "general: rows do not begin at multiples of 16 bytes"),
        (choose(4096, 33, 33, 0), "general: no kernel has this head width"),
        (choose(4096, 200, 201, 0), "general: no kernel has this head width"),
        (choose(4096, 512, 512, 0), "pieces of 4096 queries, tiled products: one head's"),
        (choose(9216, 512, 512, 0), "pieces of 4224 queries, tiled products: one head's"),
        (choose(50, 257, 257, 0), "pieces of 50 queries, general products: one head's"),
        (on_hopper([4096, 4096, 40], false), "sm_90a, 128 keys at a time: a width with kernels of its own"),
        (on_hopper([4096, 77, 40], false), "sm_90a, 80 keys at a time: a width with kernels of its own"),
        (on_hopper([197, 197, 64], false), "sm_90a, 128 keys at a time: a width with kernels of its own"),
        (on_hopper([64, 64, 160], false), "sm_90a, 80 keys at a time: a width with kernels of its own"),
        (on_hopper([77, 77, 64], true), "tiled: tiles that a mask hides are left out there"),
        (on_hopper([50, 50, 64], false), "tiled: most of a slab of queries would be nothing"),
        (on_hopper([4096, 4096, 33], false), "general: no kernel has this head width"),
        (on_hopper([4096, 4096, 512], false), "pieces of 4096 queries, tiled products: one head's"),
    ] {
        assert!(choice.to_string().starts_with(words), "{choice}");
    }
}

#[test]
fn tiles_refuse_rows_that_they_could_not_copy() {
    let tokens = |row| Tokens { at: DevicePtr(1 << 20), row };
    let sizes = Sizes { n: 1, t: 64, u: 64, heads: 8, d: 40, causal: false };
    let forward = Forward {
        sizes,
        q_images: 0,
        q: tokens(320),
        k: tokens(324),
        v: tokens(320),
        o: tokens(320),
        lse: DevicePtr(4096),
    };
    let refused = |forward: Forward| {
        let error = forward.launches(Form::Tiled, Storage::F16, DevicePtr::NONE).expect_err("refused");
        error.to_string()
    };
    let text = refused(forward);
    assert!(text.contains("`attention_f16_d40`: `k_row` must be a multiple of 8, found 324"), "{text}");
    let short = refused(Forward { k: tokens(312), ..forward });
    assert!(short.contains("`k_row` must be at least 320, found 312"), "{short}");
    let two = refused(Forward { q_images: 2, k: tokens(320), ..forward });
    assert!(two.contains("`q_images` must be images that divide n, or 0, found 2"), "{two}");
    let odd = Tokens { at: DevicePtr((1 << 20) + 8), row: 320 };
    let text = refused(Forward { k: odd, ..forward });
    assert!(text.contains("`k` must be aligned to 16 bytes"), "{text}");
}

#[test]
fn tiles_of_sm_90a_refuse_what_their_copies_and_blocks_could_not_reach() {
    let tokens = |row| Tokens { at: DevicePtr(1 << 20), row };
    let sizes = Sizes { n: 2, t: 300, u: 77, heads: 8, d: 40, causal: false };
    let [q, k, v, o] = [320; 4].map(tokens);
    let forward = Forward { sizes, q_images: 0, q, k, v, o, lse: DevicePtr(4096) };
    let launches = |forward: Forward, keys, blocks| {
        forward.launches(Form::Hopper { keys, blocks }, Storage::F16, DevicePtr::NONE)
    };
    // Three slabs of each head; never more blocks than slabs, nor more than were asked for.
    for (blocks, grid) in [(1000, 48), (48, 48), (5, 5)] {
        assert_eq!(launches(forward, 80, blocks).expect("legal")[0].grid, [grid, 1, 1]);
    }
    let refused = |forward, keys| launches(forward, keys, 4).expect_err("refused").to_string();
    for (forward, words) in [
        (Forward { k: tokens(324), ..forward }, "`k_row` must be a multiple of 8, found 324"),
        (Forward { v: tokens(312), ..forward }, "`v_row` must be at least 320, found 312"),
        (Forward { q: Tokens { at: DevicePtr(8), row: 320 }, ..forward }, "`q` must be aligned to 16 bytes"),
        (Forward { lse: DevicePtr::NONE, ..forward }, "`lse` must be an address"),
        (Forward { q_images: 3, ..forward }, "`q_images` must be images that divide n, or 0, found 3"),
        (Forward { sizes: Sizes { u: 0, ..sizes }, ..forward }, "`u` must be at least 1"),
        (
            Forward { sizes: Sizes { u: (1 << 31) - 1000, ..sizes }, ..forward },
            "so short that an image is below 2^40 bytes",
        ),
        (
            Forward { sizes: Sizes { n: 1 << 30, ..sizes }, ..forward },
            "less than 2^31 - 1024 slabs of tokens",
        ),
        (Forward { sizes: Sizes { causal: true, ..sizes }, ..forward }, "knows no mask"),
    ] {
        let text = refused(forward, 80);
        assert!(text.contains(words), "{text}");
    }
    assert!(refused(forward, 96).contains("no kernel `attention_f16_d40k96_sm90`"));
}

#[test]
fn on_sm_90a_a_head_has_the_same_bits_whoever_stands_beside_it_and_however_many_blocks_there_are() {
    let run = |images: Range<usize>, heads: Range<usize>, queries: Range<usize>, blocks: u32| {
        const TOKENS: usize = 150;
        let (mut simt, d) = (Simt::new(), 40);
        let c = 3 * d;
        let whole = |simt: &mut Simt, seed: usize| {
            let number = |i: usize| (((i + seed) * 7919) % 1009) as f32 / 504.0 - 1.0;
            let data: Vec<u16> =
                (0..2 * TOKENS * c).map(|i| half::f16::from_f32(number(i)).to_bits()).collect();
            simt.put(bytemuck::cast_slice(&data))
        };
        let tokens = |at: DevicePtr, first: usize| Tokens {
            at: DevicePtr(at.0 + (2 * ((images.start * TOKENS + first) * c + heads.start * d)) as u64),
            row: c,
        };
        let [q, k, v, o] = [0, 10, 20, 30].map(|seed| whole(&mut simt, seed));
        let (n, t) = (images.len(), queries.len());
        let sizes = Sizes { n, t, u: TOKENS, heads: heads.len(), d, causal: false };
        let lse = simt.alloc(4 * n * heads.len() * t);
        let (q, o_tokens) = (tokens(q, queries.start), tokens(o, queries.start));
        let forward = Forward { sizes, q_images: 0, q, k: tokens(k, 0), v: tokens(v, 0), o: o_tokens, lse };
        let form = Form::Hopper { keys: 128, blocks };
        for launch in forward.launches(form, Storage::F16, DevicePtr::NONE).expect("legal") {
            simt.run(&launch, Mode::FAST).expect("attention is right");
        }
        let bits = bytemuck::cast_slice::<u8, u16>(&simt.get(o)).to_vec();
        // Of the last head of the second image, some queries.
        (20..140).flat_map(|token| bits[((TOKENS + token) * 3 + 2) * d..][..d].to_vec()).collect::<Vec<_>>()
    };
    let alone = run(1..2, 2..3, 0..150, 1);
    for blocks in [1, 5, 12] {
        assert_eq!(run(0..2, 0..3, 0..150, blocks), alone, "{blocks} blocks");
    }
    // Queries do not know of each other.
    assert_eq!(run(1..2, 0..3, 20..140, 2), alone);
}

#[test]
fn gradients_of_heads_of_64_take_one_launch_on_sm_90a_where_nothing_is_masked() {
    let at = DevicePtr(1 << 20);
    let of = |d: usize, causal: bool| {
        let tokens = Tokens { at, row: 2 * d };
        let sizes = Sizes { n: 1, t: 257, u: 257, heads: 2, d, causal };
        let (q, k, v, o, d_o, dq) = (tokens, tokens, tokens, tokens, tokens, tokens);
        Backward { sizes, q, k, v, o, d_o, lse: at, dq, of_keys: Some((tokens, tokens)) }
    };
    for (d, causal, words) in [
        (64, false, "sm_90a, 64 keys at a time: a width with kernels of its own"),
        (64, true, "tiled: tiles that a mask hides are left out there"),
        (80, false, "tiled: of gradients there are kernels for heads of 64 alone"),
    ] {
        let choice = of(d, causal).choose("sm_90a");
        assert!(choice.to_string().starts_with(words), "{choice}");
    }
    let launches = |backward: Backward| {
        backward.launches(Form::Hopper { keys: 64, blocks: 1000 }, Storage::Bf16, DevicePtr(1 << 21))
    };
    let grids = |backward| -> Vec<(&str, [u32; 3])> {
        let made = launches(backward).expect("legal");
        made.iter().map(|launch| (launch.kernel.name, launch.grid)).collect()
    };
    // Three slabs of queries and three of keys, of two heads each.
    let wanted = [("attention_bwd_delta_bf16", [33, 2, 1]), ("attention_bwd_bf16_d64k64_sm90", [12, 1, 1])];
    assert_eq!(grids(of(64, false)), wanted);
    let alone = Backward { of_keys: None, ..of(64, false) };
    assert_eq!(grids(alone)[1].1, [6, 1, 1]);
    let odd = Tokens { at, row: 132 };
    for (backward, words) in [
        (Backward { d_o: odd, ..of(64, false) }, "`d_o_row` must be a multiple of 8, found 132"),
        (Backward { of_keys: Some((odd, odd)), ..of(64, false) }, "`dk_row` must be a multiple of 8"),
        (Backward { lse: DevicePtr::NONE, ..of(64, false) }, "`lse` must be an address"),
        (of(64, true), "knows no mask"),
        (of(80, false), "no kernel `attention_bwd_bf16_d80k64_sm90`"),
    ] {
        let text = launches(backward).expect_err("refused").to_string();
        assert!(text.contains(words), "{text}");
    }
}
