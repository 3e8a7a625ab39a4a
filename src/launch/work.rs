//! The work of a unit, shared out among its launches: each has the bytes that it reads and writes itself, and what is
//! really multiplied is counted by tiles.

use bytemuck::pod_read_unaligned;

use super::attention::{self, Backward, Forward};
use super::forms::Form;
use super::params::{
    AttentionBwdParams, AttentionBwdSm90Params, GroupFoldParams, GroupTilesParams, Params, PlaceParams,
    ProductParams, SoftmaxParams, Tile,
};
use super::{Cost, Launch, hopper, tune};

/// Bytes of an element of the storage type.
const STORED: u64 = 2;
/// Bytes of a number in f32.
const SINGLE: u64 = 4;

/// One for every launch of `form`, from the work of all of them as if they were one.
pub(super) fn of(form: &Form, whole: Cost, launches: &[Launch]) -> Vec<Cost> {
    match form {
        Form::Gemm(product, target) => {
            let splits = product.choice(target).form.splits();
            let whole = Cost { executed_flops: of_tiles(&launches[0], splits, product.k), ..whole };
            vec![in_parts(whole, product.workspace(target))]
        }
        Form::Conv2d(conv, form) => {
            let whole = Cost { executed_flops: conv.executed_flops(*form), ..whole };
            vec![in_parts(whole, conv.workspace_bytes(*form))]
        }
        Form::Conv2dBwd(conv, form) => {
            let whole = Cost { executed_flops: conv.bwd_executed_flops(0, *form), ..whole };
            vec![in_parts(whole, conv.bwd_workspace_bytes(0, *form))]
        }
        Form::GroupNorm(..) | Form::GroupNormBwd(..) => {
            let backward = matches!(form, Form::GroupNormBwd(..));
            launches.iter().map(|launch| of_norm(whole, launch, backward)).collect()
        }
        &Form::Attention(Forward { sizes, .. }, attention::Form::Hopper { keys, .. }) => {
            vec![Cost { executed_flops: hopper::attention_flops(sizes, keys), ..whole }]
        }
        Form::Attention(..) | Form::AttentionBwd(..) if launches.len() > 1 => {
            let of_launch = |launch: &Launch| match (form, launch.kernel.params) {
                (
                    &Form::AttentionBwd(
                        Backward { sizes, of_keys, .. },
                        attention::Form::Hopper { keys, .. },
                    ),
                    AttentionBwdSm90Params::NAME,
                ) => {
                    let executed_flops = hopper::attention_bwd_flops(sizes, of_keys.is_some(), keys);
                    Cost { executed_flops, ..whole }
                }
                _ => of_attention(launch),
            };
            launches.iter().map(of_launch).collect()
        }
        _ => {
            let mut costs = vec![Cost::default(); launches.len()];
            costs[0] = whole;
            costs
        }
    }
}

/// Products of whole tiles and steps of `k`, which is in so many parts.
fn of_tiles(launch: &Launch, splits: usize, k: usize) -> u64 {
    // The general form has tiles of 32 x 32.
    let Tile { m, n } = Tile::of(launch.kernel).unwrap_or(Tile { m: 32, n: 32 });
    let [x, y, _] = launch.grid.map(u64::from);
    let (tiles, step) = match hopper::items(launch) {
        Some(items) => (items / splits as u64, tune::hopper::STEP),
        None if launch.kernel.cluster > 1 => (x / u64::from(launch.kernel.cluster), tune::hopper::STEP),
        // Parts are along z.
        None => (x * y, tune::gemm::STEP),
    };
    2 * tiles * u64::from(m.unsigned_abs()) * u64::from(n.unsigned_abs()) * k.next_multiple_of(step) as u64
}

/// A contraction whose parts are written and read again.
fn in_parts(whole: Cost, sums: usize) -> Cost {
    Cost { bytes: whole.bytes + 2 * sums as u64, ..whole }
}

fn of_norm(whole: Cost, launch: &Launch, backward: bool) -> Cost {
    let long = |extent: i32| u64::from(extent.unsigned_abs());
    let bytes = match launch.kernel.params {
        "GroupTilesParams" => {
            let p: GroupTilesParams = pod_read_unaligned(&launch.params);
            STORED * long(p.n) * long(p.pixels) * long(p.c)
        }
        "GroupFoldParams" => {
            let p: GroupFoldParams = pod_read_unaligned(&launch.params);
            let tiles = long(p.pixels).div_ceil(long(p.rows));
            2 * SINGLE * long(p.n) * long(p.c) * (tiles + tiles.div_ceil(long(p.times)))
        }
        "PlaceParams" => {
            let p: PlaceParams = pod_read_unaligned(&launch.params);
            let unit = if launch.kernel.name.ends_with("_v8") { 8 } else { 1 };
            2 * STORED * unit * p.rows.unsigned_abs() * p.width.unsigned_abs()
        }
        // Sums of x and dy, but no dx yet: two of three images.
        _ if backward && launch.kernel.function == "tiles" => whole.bytes / 3 * 2,
        _ => whole.bytes,
    };
    Cost { bytes, ..Cost::default() }
}

/// Of a launch among several that attend, or make the gradient: scores and their like lie in memory between them, or
/// are computed once more.
fn of_attention(launch: &Launch) -> Cost {
    let long = |extent: i32| u64::from(extent.unsigned_abs());
    let (file, function) = (launch.kernel.file, launch.kernel.function);
    match launch.kernel.params {
        "ProductParams" => {
            let p: ProductParams = pod_read_unaligned(&launch.params);
            let [m, n, k] = [p.m, p.n, p.k].map(long);
            // Scores and totals are in f32; only the latter are added to, all else is rounded.
            let lie = launch.kernel.arguments.rsplit("::").next();
            let result = if lie == Some("NN") { STORED } else { SINGLE * (1 + long(p.adds)) };
            let flops = 2 * m * n * k;
            Cost { flops, executed_flops: flops, bytes: STORED * (m + n) * k + result * m * n }
        }
        "SoftmaxParams" => {
            let p: SoftmaxParams = pod_read_unaligned(&launch.params);
            let (rows, row) = (long(p.rows), long(p.u));
            let (matrices, sums) = match function {
                "softmax" => (1, 1),
                "softmax_bwd" => (2, 2),
                _ => (1, 0),
            };
            let bytes = matrices * (SINGLE + STORED) * rows * row + sums * SINGLE * rows;
            Cost { bytes, ..Cost::default() }
        }
        "AttentionBwdParams" => {
            let p: AttentionBwdParams = pod_read_unaligned(&launch.params);
            let width = long(p.heads) * long(p.d);
            let (queries, keys) = (long(p.n) * long(p.t), long(p.n) * long(p.u));
            let product = 2 * queries * long(p.u) * width;
            // Products in all and those that no other launch makes; matrices of queries and of keys; sums.
            let (executed, own, of_queries, of_keys, sums) = match (file, function) {
                (_, "delta") => (0, 0, 2, 0, 1),
                // dq, and the scores and their slopes that both gradients take
                ("attention_bwd_dq.cu", _) => (3, 3, 3, 2, 3),
                // dk, dv, and those again
                _ => (4, 2, 2, 4, 3),
            };
            let bytes = STORED * width * (of_queries * queries + of_keys * keys);
            let bytes = bytes + SINGLE * sums * queries * long(p.heads);
            Cost { flops: own * product, executed_flops: executed * product, bytes }
        }
        _ => Cost::default(),
    }
}
