//! Which tiles attention takes on the matrix units of sm_90a, and where it is not for them. Nothing here was measured.

use crate::manifest::Kernel;

/// Why attention stays on the forms of every device.
type Refusal = &'static str;

/// Heads there are kernels for, and how much of the time the matrix units are busy of what they are with wide ones, in
/// per cent: of narrow heads exponentials, and the instructions around them, take as long as products.
const HEADS: [(usize, usize); 4] = [(40, 65), (64, 82), (80, 95), (160, 100)];
/// Keys of a tile, and how well it does, in per cent: a short one issues less at a time. The texts of Stable Diffusion
/// have 77.
const KEYS: [(usize, usize); 2] = [(128, 100), (80, 85)];
/// With fewer queries of an image most of a slab is nothing.
const LEAST_QUERIES: usize = 64;
/// Heads there is a kernel of the gradient for, and rows of the tiles that go by in it.
const GRADIENT: (usize, usize) = (64, 64);

const MASKED: Refusal = "tiles that a mask hides are left out there";

/// The variant in names of kernels.
pub fn variant(d: usize, keys: usize) -> String {
    format!("d{d}k{keys}_sm90")
}

/// In per cent of the best; none for a kernel of something else.
pub(super) fn rate_of(kernel: &Kernel) -> Option<usize> {
    let tiles = HEADS.iter().flat_map(|of| KEYS.iter().map(move |keys| (of, keys)));
    let mut known = tiles.filter(|((d, _), (keys, _))| kernel.name.ends_with(&variant(*d, *keys)));
    known.next().map(|((_, of_d), (_, of_keys))| of_d * of_keys / 100)
}

/// Keys of a tile for so many queries and keys of one image, which alone decides on the order of a sum.
pub fn keys(t: usize, u: usize, causal: bool) -> Result<usize, Refusal> {
    if causal {
        return Err(MASKED);
    }
    if t < LEAST_QUERIES {
        return Err("most of a slab of queries would be nothing");
    }
    let cost = |&&(keys, rate): &&(usize, usize)| (u.next_multiple_of(keys) * 100).div_ceil(rate);
    let (keys, _) = KEYS.iter().min_by_key(cost).expect("there are tiles");
    Ok(*keys)
}

/// Rows of a tile that goes by in a gradient. One launch instead of two pays whatever the extents are.
pub fn rows_of_gradient(d: usize, causal: bool) -> Result<usize, Refusal> {
    match (d, causal) {
        (_, true) => Err(MASKED),
        (d, _) if d == GRADIENT.0 => Ok(GRADIENT.1),
        _ => Err("of gradients there are kernels for heads of 64 alone"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::KERNELS;

    #[test]
    fn every_tile_that_is_chosen_has_kernels() {
        let chosen = [(4096, 4096), (4096, 77), (257, 257), (197, 197), (64, 64), (9216, 1)]
            .map(|(t, u)| keys(t, u, false));
        assert_eq!(chosen, [Ok(128), Ok(80), Ok(80), Ok(128), Ok(80), Ok(80)]);
        for (d, _) in HEADS {
            for (keys, _) in KEYS {
                let named = |op: &str| format!("attention_{op}_{}", variant(d, keys));
                for name in ["f16", "bf16"].map(named) {
                    let row = KERNELS.iter().find(|kernel| kernel.name == name);
                    assert!(row.is_some_and(|row| rate_of(row).is_some()), "{name}");
                }
            }
        }
    }
}
