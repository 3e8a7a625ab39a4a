//! The work of a unit, shared out among its launches: each has the bytes that it reads and writes itself, and what is
//! really multiplied is counted by tiles.

use bytemuck::pod_read_unaligned;

use super::forms::Form;
use super::params::{GroupFoldParams, GroupTilesParams, PlaceParams, Tile};
use super::{Cost, Launch};

/// Bytes of an element of the storage type.
const STORED: u64 = 2;
/// Bytes of a number in f32.
const SINGLE: u64 = 4;

/// One for every launch of `form`, from the work of all of them as if they were one.
pub(super) fn of(form: &Form, whole: Cost, launches: &[Launch]) -> Vec<Cost> {
    match form {
        Form::Gemm(product, target) => {
            let [m, n, k] = [product.m, product.n, product.k].map(|extent| extent as u64);
            let whole = Cost { executed_flops: of_tiles(&launches[0], k), ..whole };
            in_parts(whole, STORED * (m + n) * k, product.workspace(target) as u64, launches)
        }
        Form::Conv2d(conv, form) => {
            let whole = Cost { executed_flops: conv.executed_flops(*form), ..whole };
            let operands = conv.images * conv.size[0] * conv.size[1] * conv.channels.iter().sum::<usize>()
                + conv.filter_elements();
            in_parts(whole, STORED * operands as u64, conv.workspace_bytes(*form) as u64, launches)
        }
        Form::Conv2dBwd(conv, form) => {
            let whole = Cost { executed_flops: conv.bwd_executed_flops(0, *form), ..whole };
            let [height, width] = conv.out();
            let operands = conv.images * height * width * conv.filter[0] + conv.filter_elements();
            in_parts(whole, STORED * operands as u64, conv.bwd_workspace_bytes(0, *form) as u64, launches)
        }
        Form::GroupNorm(..) | Form::GroupNormBwd(..) => {
            let backward = matches!(form, Form::GroupNormBwd(..));
            launches.iter().map(|launch| of_norm(whole, launch, backward)).collect()
        }
        Form::Attention(..) | Form::AttentionBwd(..) if launches.len() > 1 => {
            let products = |launch: &&Launch| launch.kernel.name.starts_with("attention_product");
            let multiplying = launches.iter().filter(products).count().max(1) as u64;
            // Scores and their like are written once and read once.
            let bytes = (whole.bytes + 2 * form.workspace() as u64) / launches.len() as u64;
            let share = |launch: &Launch| match products(&launch) {
                true => Cost {
                    flops: whole.flops / multiplying,
                    executed_flops: whole.executed_flops / multiplying,
                    bytes,
                },
                false => Cost { bytes, ..Cost::default() },
            };
            launches.iter().map(share).collect()
        }
        _ => {
            let mut costs = vec![Cost::default(); launches.len()];
            costs[0] = whole;
            costs
        }
    }
}

/// Products of whole tiles and steps of `k`.
fn of_tiles(launch: &Launch, k: u64) -> u64 {
    // The general form has tiles of 32 x 32; splits are along z and share k.
    let Tile { m, n } = Tile::of(launch.kernel).unwrap_or(Tile { m: 32, n: 32 });
    let [x, y, _] = launch.grid.map(u64::from);
    2 * x * y * u64::from(m.unsigned_abs()) * u64::from(n.unsigned_abs()) * k.next_multiple_of(32)
}

/// A contraction, and what joins it where it is in parts: those write `sums` bytes, which are read again.
fn in_parts(whole: Cost, operands: u64, sums: u64, launches: &[Launch]) -> Vec<Cost> {
    if launches.len() < 2 {
        return vec![whole];
    }
    let join = Cost { bytes: whole.bytes.saturating_sub(operands) + sums, ..Cost::default() };
    vec![Cost { bytes: operands + sums, ..whole }, join]
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
